package tail

import (
	"testing"

	"github.com/linkedin/goavro/v2"

	"github.com/oktawatch/oktawatch/pkg/record"
)

func text(t testing.TB, name string) string {
	t.Helper()
	s, ok := record.Schema(name)
	if !ok {
		t.Fatalf("no schema %s", name)
	}
	return s
}

func TestIDs(t *testing.T) {
	for name, tc := range map[string]struct {
		r    record.Record
		want ID
	}{
		"event":     {&record.SystemLog{UUID: "u", EventType: "x", Derived: record.Derived{Lane: "live", Copy: 2}}, ID{"live", "u", 2}},
		"raw event": {&record.RawEvent{UUID: "u", Lane: "run1", JSON: []byte("{}")}, ID{"run1", "u", 0}},
		"detection": {&record.Detection{ID: "d", Update: 7, Lane: "live"}, ID{"live", "d", 7}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := tc.r.AppendAvro(nil)
			if err != nil {
				t.Fatal(err)
			}
			r := newIDReader(text(t, tc.r.SchemaName()))
			if r == nil {
				t.Fatal("schema has no identity")
			}
			if got, err := r.read(b); err != nil || got != tc.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
			}
		})
	}
	for _, schema := range []string{`"string"`, `{"type":"record","name":"R","fields":[{"name":"x","type":"string"}]}`, `nonsense`, text(t, "state")} {
		if newIDReader(schema) != nil {
			t.Errorf("an identity was found in %.60s", schema)
		}
	}
}

// TestIDsOfOtherVersions: where the fields stand and what is around them does not matter.
func TestIDsOfOtherVersions(t *testing.T) {
	const schema = `{"type":"record","name":"SystemLog","namespace":"x.y","fields":[
		{"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}},
		{"name":"f","type":{"type":"fixed","name":"F","size":3}},
		{"name":"f2","type":["null","F"]},
		{"name":"m","type":{"type":"map","values":["null","double","x.y.F"]}},
		{"name":"a","type":{"type":"array","items":{"type":"record","name":"N","fields":[{"name":"n","type":["null","N"]},{"name":"b","type":"boolean"},{"name":"uuid","type":"string"}]}}},
		{"name":"fl","type":"float"},
		{"name":"ts","type":["null",{"type":"long","logicalType":"timestamp-millis"}]},
		{"name":"derived","type":{"type":"record","name":"D","fields":[{"name":"by","type":"bytes"},{"name":"copy","type":"int"},{"name":"lane","type":"string"}]}},
		{"name":"uuid","type":"string"},
		{"name":"json","type":"bytes"}]}`
	codec, err := goavro.NewCodec(schema)
	if err != nil {
		t.Fatal(err)
	}
	b, err := codec.BinaryFromNative(nil, map[string]any{
		"e": "B", "f": []byte("abc"), "f2": goavro.Union("x.y.F", []byte("def")),
		"m":  map[string]any{"k": goavro.Union("double", 1.5), "l": nil},
		"a":  []any{map[string]any{"n": goavro.Union("x.y.N", map[string]any{"n": nil, "b": true, "uuid": "inner"}), "b": false, "uuid": "no"}},
		"fl": 2.5, "ts": nil, "derived": map[string]any{"by": []byte("z"), "copy": 2, "lane": "live"}, "uuid": "u1", "json": []byte("{}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	r := newIDReader(schema)
	if r == nil {
		t.Fatal("no identity found")
	}
	if got, err := r.read(b); err != nil || got != (ID{"live", "u1", 2}) {
		t.Errorf("got %+v, %v", got, err)
	}
	for n := range b[:len(b)-3] { // the last bytes lie behind the uuid
		if got, err := r.read(b[:n]); err == nil {
			t.Errorf("%d bytes of %d give %+v", n, len(b), got)
		}
	}
}

// FuzzIDs: whatever goavro can read gives the identity that goavro sees; nothing makes the walk panic or run on.
func FuzzIDs(f *testing.F) {
	for _, r := range []record.Record{
		&record.SystemLog{UUID: "u", EventType: "x", Derived: record.Derived{Lane: "live", Copy: 2}, JSON: []byte("{}")},
		&record.SystemLog{},
	} {
		b, err := r.AppendAvro(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	schema := text(f, "system_log")
	r := newIDReader(schema)
	codec, err := goavro.NewCodec(schema)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4<<10 {
			return // bounded
		}
		got, err := r.read(b)
		native := func() (v any) {
			defer func() { _ = recover() }() // goavro panics on some hostile lengths
			v, _, nerr := codec.NativeFromBinary(b)
			if nerr != nil {
				return nil
			}
			return v
		}()
		m, ok := native.(map[string]any)
		if !ok {
			return
		}
		d, _ := m["derived"].(map[string]any)
		copies, _ := d["copy"].(int32)
		want := ID{ID: m["uuid"].(string), Lane: d["lane"].(string), N: int64(copies)}
		if err != nil || got != want {
			t.Errorf("got %+v, %v, goavro sees %+v", got, err, want)
		}
	})
}
