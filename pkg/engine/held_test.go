package engine

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"reflect"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// fill sets every field of a record, with texts that are all different.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Float64:
		v.SetFloat(float64(*n) / 3)
	case reflect.Bool:
		v.SetBool(*n%2 == 0)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte("{}"))
			return
		}
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			e := reflect.New(v.Type().Elem()).Elem()
			fill(e, n)
			v.SetMapIndex(reflect.ValueOf(fmt.Sprintf("key %d", *n)), e)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.UnixMilli(1_767_600_000_000 + int64(*n)).UTC()))
			return
		}
		for _, f := range v.Fields() {
			fill(f, n)
		}
	default:
	}
}

// TestShapes takes payloads apart and makes them again: all fields, none, and bytes that are no record.
func TestShapes(t *testing.T) {
	full, n := &record.SystemLog{}, 0
	fill(reflect.ValueOf(full).Elem(), &n)
	whole, err := full.AppendAvro(nil)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := (&record.SystemLog{}).AppendAvro(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := newShapes()
	for name, tc := range map[string]struct {
		payload  []byte
		verbatim bool
	}{
		"every field":       {whole, false},
		"no field":          {empty, false},
		"no payload":        {nil, true},
		"cut":               {whole[:len(whole)/2], true},
		"bytes behind":      {append(bytes.Clone(whole), 0), true},
		"a number too long": {append([]byte{0x80, 0x00}, empty[1:]...), true},
	} {
		h := &held{time: full.Derived.Time.UnixMilli(), published: full.Published.UnixMilli(), bits: bitPublished, payload: tc.payload}
		h.setUUID(full.UUID)
		id, tokens := s.split(h)
		if (id == shapeVerbatim) != tc.verbatim {
			t.Errorf("%s: shape %d", name, id)
		}
		got := s.join(nil, id, h, func() token {
			one := tokens[0]
			tokens = tokens[1:]
			return one
		})
		if !bytes.Equal(got, tc.payload) || len(tokens) > 0 {
			t.Errorf("%s: %x came back as %x, %d tokens are left", name, tc.payload, got, len(tokens))
		}
	}
}

func TestPackUUID(t *testing.T) {
	const text = "3b2b0c2e-0001-11f1-8000-00000000abcd"
	for in, packed := range map[string]bool{
		text: true, "": false, "u1": false, text + "#1": false, text[:35] + "D": false, text[:35] + "g": false,
		"3b2b0c2e00001-11f1-8000-00000000abcd": false, "3b2b0c2e-0001-11f1-8000-0000-000abcd": false,
	} {
		var h held
		h.setUUID(in)
		if got := string(h.appendUUID(nil)); got != in || (h.bits&bitPacked != 0) != packed {
			t.Errorf("%q came back as %q, packed %v", in, got, h.bits&bitPacked != 0)
		}
	}
}

// TestSightings compares the table of sightings with a map.
func TestSightings(t *testing.T) {
	have := sightings{seed: maphash.MakeSeed()}
	want := map[string]int64{}
	for i := range 20_000 {
		key := fmt.Sprint("key", i*7919%1500)
		if i*31%7 < 3 {
			have.remove(key)
			delete(want, key)
		} else {
			have.put(key, int64(i))
			want[key] = int64(i)
		}
	}
	if have.len() != len(want) || len(have.keys()) != len(want) {
		t.Errorf("%d and %d keys, want %d", have.len(), len(have.keys()), len(want))
	}
	for key, at := range want {
		if got, ok := have.get(key); !ok || got != at {
			t.Errorf("%s: %d %v, want %d", key, got, ok, at)
		}
	}
	for key := range want {
		have.remove(key)
	}
	if have.len() != 0 || len(have.slots) > 8 {
		t.Errorf("%d keys in %d slots are left", have.len(), len(have.slots))
	}
}

func TestPackedLists(t *testing.T) {
	seen := []sighting{{"a", 5}, {"b", -7}, {"", 1 << 50}}
	if got := packSeen(seen).all(); !reflect.DeepEqual(got, seen) {
		t.Error(got)
	}
	buckets := []bucket{
		{start: -3_600_000, nums: []float64{0, 1.5, -2, 1 << 60}, keys: []counts{"", packCounts(map[string]int64{"x": 3, "yy": -1}), ""}},
		{start: 3_600_000, nums: []float64{7}},
		{start: 7_200_000, nums: []float64{2}, keys: []counts{packCounts(map[string]int64{"z": 2})}, past: newPast([]uint64{9, 1 << 60, 3, 9})},
		{start: 10_800_000, nums: []float64{1}, past: newPast(nil)},
	}
	packed := packBuckets(buckets)
	if got := packed.all(); !reflect.DeepEqual(got, buckets) {
		t.Error(got)
	}
	for _, want := range buckets {
		if got, ok := packed.find(want.start); !ok || !reflect.DeepEqual(got, want) {
			t.Error(got, ok)
		}
		if got, ok := packed.find(want.start + 1); ok {
			t.Error(got)
		}
	}
	p := buckets[2].past
	for record, want := range map[uint64]bool{0: false, 3: true, 4: false, 9: true, 1 << 60: true, 1<<60 + 1: false} {
		if p.has(record) != want {
			t.Error(record)
		}
	}
}
