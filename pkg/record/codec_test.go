package record

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/linkedin/goavro/v2"
	"github.com/twmb/avro"
	"pgregory.net/rapid"
)

var timeType = reflect.TypeFor[time.Time]()

// arbitrary fills any generated struct.
func arbitrary(t *rapid.T, v reflect.Value) {
	text := rapid.OneOf(rapid.Just(""), rapid.String(), rapid.SampledFrom([]string{"null", "00u1", "user.session.start", "\x00", "Ü€😀"}))
	if v.Type() == timeType {
		ms := rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(-62135596800000, 253402300799999)).Draw(t, "ms")
		v.Set(reflect.ValueOf(time.UnixMilli(ms).UTC()))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			arbitrary(t, field)
		}
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "set") {
			v.Set(reflect.New(v.Type().Elem()))
			arbitrary(t, v.Elem())
		}
	case reflect.String:
		v.SetString(text.Draw(t, "text"))
	case reflect.Int32:
		v.SetInt(int64(rapid.Int32().Draw(t, "int")))
	case reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "long"))
	case reflect.Float64:
		v.SetFloat(rapid.Float64().Draw(t, "double"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Map:
		m := rapid.MapOfN(text, text, 0, 5).Draw(t, "map")
		if len(m) > 0 {
			v.Set(reflect.ValueOf(m))
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			if b := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "bytes"); len(b) > 0 {
				v.SetBytes(b)
			}
			return
		}
		n := rapid.IntRange(0, 3).Draw(t, "n")
		if n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				arbitrary(t, v.Index(i))
			}
		}
	default:
		t.Fatalf("kind %s", v.Kind())
	}
}

// native is the record as the reference codec wants it and gives it.
func native(v reflect.Value) any {
	if v.Type() == timeType {
		return v.Interface()
	}
	switch v.Kind() {
	case reflect.Struct:
		m := map[string]any{}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			x := native(v.Field(i))
			if v.Type() == reflect.TypeFor[State]() && f.Name == "Value" { // the one nullable bytes
				if v.Field(i).IsNil() {
					x = nil
				} else {
					x = map[string]any{"bytes": x}
				}
			}
			m[f.Tag.Get("avro")] = x
		}
		return m
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		name := map[reflect.Type]string{
			timeType: "long.timestamp-millis", reflect.TypeFor[int64](): "long", reflect.TypeFor[float64](): "double", reflect.TypeFor[bool](): "boolean",
		}[v.Type().Elem()]
		if name == "" {
			name = "io.github.oktawatch." + v.Type().Elem().Name()
		}
		return map[string]any{name: native(v.Elem())}
	case reflect.Map:
		m := map[string]any{}
		for k, x := range v.Seq2() {
			m[k.String()] = x.String()
		}
		return m
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return append([]byte{}, v.Bytes()...)
		}
		s := []any{}
		for i := range v.Len() {
			s = append(s, native(v.Index(i)))
		}
		return s
	}
	return v.Interface()
}

func codecOf(t testing.TB, name string) *goavro.Codec {
	t.Helper()
	text, _ := Schema(name)
	c, err := goavro.NewCodec(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type failer interface {
	Helper()
	Fatalf(string, ...any)
}

// agree checks that every decoder reads the same from the bytes of every encoder.
func agree(t failer, codec *goavro.Codec, r Record) {
	t.Helper()
	fail := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %s: %v", r.SchemaName(), what, err)
		}
	}
	same := func(what string, want, got any) {
		t.Helper()
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateNaNs()); d != "" {
			t.Fatalf("%s: %s: -want +got\n%s", r.SchemaName(), what, d)
		}
	}
	ours, err := r.AppendAvro([]byte("before"))
	fail("encode", err)
	ours = ours[len("before"):]

	want := native(reflect.ValueOf(r).Elem())
	got, rest, err := codec.NativeFromBinary(ours)
	fail("goavro decodes our bytes", err)
	if len(rest) > 0 {
		t.Fatalf("%s: goavro leaves %d bytes", r.SchemaName(), len(rest))
	}
	same("goavro of our bytes", want, got)

	theirs, err := codec.BinaryFromNative(nil, want)
	fail("goavro encodes", err)
	back := New(r.SchemaName())
	fail("decode goavro's bytes", back.DecodeAvro(theirs))
	same("our decode of goavro's bytes", r, back)

	again, err := back.AppendAvro(nil)
	fail("encode again", err)
	if !bytes.Equal(again, ours) {
		t.Fatalf("%s: the same record gave other bytes", r.SchemaName())
	}

	all, err := compiled()
	fail("compile", err)
	third := New(r.SchemaName())
	_, err = all[r.SchemaName()].Decode(ours, third)
	fail("twmb/avro decodes our bytes", err)
	same("twmb/avro of our bytes", r, third)
	enc, err := all[r.SchemaName()].AppendEncode(nil, r)
	fail("twmb/avro encodes", err)
	back = New(r.SchemaName())
	fail("decode twmb/avro's bytes", back.DecodeAvro(enc))
	same("our decode of twmb/avro's bytes", r, back)

	if s, ok := r.(*SystemLog); ok {
		viewAgrees(t, s, ours)
		viewAgrees(t, s, theirs)
	}
}

// viewAgrees compares each section of a view, asked for in both directions, with the record.
func viewAgrees(t failer, s *SystemLog, payload []byte) {
	t.Helper()
	for _, back := range []bool{false, true} {
		v := &SystemLogView{}
		if err := v.Reset(payload); err != nil {
			t.Fatalf("reset: %v", err)
		}
		got := &SystemLog{}
		for i := range sectionCount {
			if back {
				i = sectionCount - 1 - i
			}
			copySection(got, v, Section(i+1))
		}
		if err := v.Check(); err != nil {
			t.Fatalf("check: %v", err)
		}
		if d := cmp.Diff(s, got, cmpopts.EquateEmpty(), cmpopts.EquateNaNs()); d != "" {
			t.Fatalf("view: -want +got\n%s", d)
		}
		full, err := v.Full()
		if err != nil {
			t.Fatalf("full: %v", err)
		}
		if d := cmp.Diff(s, full, cmpopts.EquateEmpty(), cmpopts.EquateNaNs()); d != "" {
			t.Fatalf("full: -want +got\n%s", d)
		}
	}
}

// copySection takes one section of a view by the method named like the struct's field.
func copySection(into *SystemLog, v *SystemLogView, s Section) {
	f := reflect.TypeFor[SystemLog]().Field(int(s) - 1)
	out := reflect.ValueOf(v).MethodByName(f.Name).Call(nil)
	dst := reflect.ValueOf(into).Elem().Field(int(s) - 1)
	switch {
	case len(out) == 2: // a nullable time
		if out[1].Bool() {
			x := out[0].Interface().(time.Time)
			dst.Set(reflect.ValueOf(&x))
		}
	case out[0].Kind() == reflect.Pointer && dst.Kind() != reflect.Pointer:
		dst.Set(out[0].Elem())
	default:
		dst.Set(out[0])
	}
}

func TestDecodersAgree(t *testing.T) {
	for _, s := range Schemas() {
		t.Run(s.Name, func(t *testing.T) {
			codec := codecOf(t, s.Name)
			agree(t, codec, New(s.Name))
			rapid.Check(t, func(t *rapid.T) {
				r := New(s.Name)
				arbitrary(t, reflect.ValueOf(r).Elem())
				agree(t, codec, r)
			})
		})
	}
}

// TestEmptyBytesAreNotNull: an empty value of a changelog is not a deletion.
func TestEmptyBytesAreNotNull(t *testing.T) {
	for name, value := range map[string][]byte{"null": nil, "empty": {}, "some": {0}} {
		b, err := (&State{Transaction: 7, Value: value}).AppendAvro(nil)
		if err != nil {
			t.Fatal(err)
		}
		var s State
		if err := s.DecodeAvro(b); err != nil {
			t.Fatal(err)
		}
		if (s.Value == nil) != (value == nil) || !bytes.Equal(s.Value, value) {
			t.Errorf("%s: got %#v", name, s.Value)
		}
	}
}

// samples turns the recorded events into records, roughly: enough for their shapes.
func samples(t testing.TB) []*SystemLog {
	t.Helper()
	files, err := filepath.Glob("../systemlog/testdata/samples/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	var out []*SystemLog
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			line = bytes.TrimSpace(line)
			var m map[string]any
			if len(line) == 0 || json.Unmarshal(line, &m) != nil {
				continue
			}
			s := &SystemLog{JSON: line, Derived: Derived{Org: "00o1", Lane: "live", Copy: 1, Time: time.UnixMilli(1767600000000).UTC(), RawOffset: 12345}}
			fill(reflect.ValueOf(s).Elem(), m)
			out = append(out, s)
		}
	}
	return out
}

func fill(v reflect.Value, x any) {
	if x == nil {
		return
	}
	asText := func(x any) string {
		if s, ok := x.(string); ok {
			return s
		}
		b, _ := json.Marshal(x)
		return string(b)
	}
	switch {
	case v.Type() == timeType:
		if at, err := time.Parse(time.RFC3339, asText(x)); err == nil {
			v.Set(reflect.ValueOf(at.UTC().Truncate(time.Millisecond)))
		}
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), x)
	case v.Kind() == reflect.String:
		v.SetString(asText(x))
	case v.Kind() == reflect.Struct:
		m, _ := x.(map[string]any)
		for i := range v.NumField() {
			if y, ok := m[v.Type().Field(i).Tag.Get("json")]; ok {
				fill(v.Field(i), y)
			}
		}
	case v.Kind() == reflect.Map:
		m, _ := x.(map[string]any)
		for k, y := range m {
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type()))
			}
			v.SetMapIndex(reflect.ValueOf(k), reflect.ValueOf(asText(y)))
		}
	case v.Kind() == reflect.Slice:
		s, _ := x.([]any)
		v.Set(reflect.MakeSlice(v.Type(), len(s), len(s)))
		for i, y := range s {
			fill(v.Index(i), y)
		}
	case v.Kind() == reflect.Bool:
		b, _ := x.(bool)
		v.SetBool(b)
	case v.CanFloat():
		f, _ := x.(float64)
		v.SetFloat(f)
	case v.CanInt():
		f, _ := x.(float64)
		v.SetInt(int64(f))
	}
}

func TestDecodersAgreeOnSamples(t *testing.T) {
	codec := codecOf(t, "system_log")
	all := samples(t)
	for _, s := range all {
		agree(t, codec, s)
	}
	// One view over all of them: nothing of an event may stay for the next.
	v := &SystemLogView{}
	for range 2 {
		for _, s := range all {
			b, err := s.AppendAvro(nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Reset(b); err != nil {
				t.Fatal(err)
			}
			got := &SystemLog{}
			for i := range sectionCount {
				copySection(got, v, Section(i+1))
			}
			if d := cmp.Diff(s, got, cmpopts.EquateEmpty()); d != "" {
				t.Fatalf("reused view: -want +got\n%s", d)
			}
		}
	}
}

func TestViewByKnownRecords(t *testing.T) {
	s := &SystemLog{
		UUID: "u1", EventType: "user.session.start", Derived: Derived{Org: "00o1", Lane: "live", Copy: 2, Partial: true},
		Outcome: &Outcome{Result: "FAILURE", Reason: "LOCKED_OUT"}, Actor: &Actor{ID: "00u1"}, JSON: []byte(`{}`),
	}
	v := &SystemLogView{}
	if err := v.Load(s); err != nil {
		t.Fatal(err)
	}
	if _, ok := v.Published(); ok {
		t.Error("published is there")
	}
	got := []any{v.UUID(), v.EventType(), v.Org(), v.Lane(), v.Copy(), v.Partial(), v.OutcomeResult(), v.OutcomeReason(), v.ActorID(), v.Client() == nil, string(v.JSON())}
	want := []any{"u1", "user.session.start", "00o1", "live", 2, true, "FAILURE", "LOCKED_OUT", "00u1", true, "{}"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	c := v.Clone()
	if err := v.Load(&SystemLog{UUID: "u2"}); err != nil {
		t.Fatal(err)
	}
	if v.Identity() != "u2" || v.ActorID() != "" || v.Actor() != nil || v.OutcomeResult() != "" || c.UUID() != "u1" || c.ActorID() != "00u1" {
		t.Error("a view shows another record's values")
	}
	if err := v.Load(&SystemLog{UUID: "u2", Derived: Derived{ContentHash: "aa"}}); err != nil || v.Identity() != "u2#aa" {
		t.Errorf("identity %s, err %v", v.Identity(), err)
	}
	a, b := c.SectionBytes(SectionActor), c.Clone().SectionBytes(SectionActor)
	if len(a) == 0 || !bytes.Equal(a, b) || c.SectionBytes(0) != nil {
		t.Errorf("section bytes %x and %x", a, b)
	}
}

func TestBrokenBytes(t *testing.T) {
	s := samples(t)[0]
	good, err := s.AppendAvro(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(good) {
		var r SystemLog
		err := r.DecodeAvro(good[:n])
		if err == nil {
			t.Fatalf("%d of %d bytes decode", n, len(good))
		}
		if r.UUID != "" || r.JSON != nil {
			t.Fatal("the record is not empty after an error")
		}
		v := &SystemLogView{}
		if v.Reset(good[:n]) == nil && v.Check() == nil {
			t.Fatalf("view of %d of %d bytes is fine", n, len(good))
		}
	}
	var r SystemLog
	if err := r.DecodeAvro(append(bytes.Clone(good), 0)); err == nil || !strings.Contains(err.Error(), "left after the record") {
		t.Errorf("one byte more: %v", err)
	}
	for name, b := range map[string][]byte{
		"huge length":     {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
		"negative length": {1},
		"long number":     bytes.Repeat([]byte{0xff}, 11),
	} {
		if err := new(SystemLog).DecodeAvro(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestHostileCountsAllocateNothing: a count is believed only as far as the bytes reach.
func TestHostileCountsAllocateNothing(t *testing.T) {
	for _, count := range []int64{1 << 20, 1 << 40, -(1 << 40), -1 << 63} {
		b := appendLong(nil, count)
		b = append(b, make([]byte, 64)...)
		for name, f := range map[string]func(*wire){
			"list":    func(r *wire) { decodeList(r, nil, 1, (*Target).decode) },
			"strings": func(r *wire) { r.strs(nil) },
			"map":     func(r *wire) { r.strMap(nil) },
		} {
			if n := testing.AllocsPerRun(5, func() {
				r := wire{b: b}
				f(&r)
				if r.err == nil {
					t.Errorf("%s of %d items: no error", name, count)
				}
			}); n > 12 {
				t.Errorf("%s of %d items: %v allocations", name, count, n)
			}
		}
	}
}

func FuzzSystemLog(f *testing.F) {
	for _, s := range samples(f) {
		b, err := s.AppendAvro(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	codec := codecOf(f, "system_log")
	f.Fuzz(func(t *testing.T, b []byte) {
		var s SystemLog
		err := s.DecodeAvro(b)
		v := &SystemLogView{}
		verr := v.Reset(b)
		for i := range sectionCount {
			copySection(new(SystemLog), v, Section(i+1))
		}
		v.OutcomeReason()
		v.ActorID()
		if verr == nil {
			verr = v.Check()
		}
		if (err == nil) != (verr == nil) {
			t.Fatalf("record: %v, view: %v", err, verr)
		}
		if err != nil {
			return
		}
		want, _, err := codec.NativeFromBinary(b) // fit for it now: it trusts counts
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, native(reflect.ValueOf(&s).Elem()), cmpopts.EquateEmpty(), cmpopts.EquateNaNs()); d != "" {
			t.Fatal(d)
		}
		out, err := s.AppendAvro(nil)
		if err != nil {
			t.Fatal(err)
		}
		var again SystemLog
		if err := again.DecodeAvro(out); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, again, cmpopts.EquateEmpty(), cmpopts.EquateNaNs()); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzRecords(f *testing.F) {
	for i, s := range Schemas() {
		b, err := New(s.Name).AppendAvro(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	var plain []*Plainer
	for _, s := range Schemas() {
		p, err := NewPlainer(s.Text)
		if err != nil {
			f.Fatal(err)
		}
		plain = append(plain, p)
	}
	f.Fuzz(func(t *testing.T, i uint8, b []byte) {
		n := int(i) % len(plain)
		s := Schemas()[n]
		r := New(s.Name)
		err := r.DecodeAvro(b)
		j, perr := plain[n].JSON(b)
		if (err == nil) != (perr == nil) || perr == nil && !json.Valid(j) {
			t.Fatalf("%s: record %v, plain %v, %s", s.Name, err, perr, j)
		}
		if err != nil {
			return
		}
		if _, err := r.AppendAvro(nil); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOurSchemasParseEverywhere(t *testing.T) {
	for _, s := range Schemas() {
		codecOf(t, s.Name)
		if _, err := avro.Parse(s.Text); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		if New(s.Name).SchemaName() != s.Name {
			t.Errorf("New(%q) is a %s", s.Name, New(s.Name).SchemaName())
		}
		if err := CheckCompatibility(s.Text, s.Text); err != nil {
			t.Errorf("%s does not read itself: %v", s.Name, err)
		}
	}
	if New("nothing") != nil {
		t.Error("there is a record for nothing")
	}
}
