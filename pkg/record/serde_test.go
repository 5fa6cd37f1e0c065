package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/linkedin/goavro/v2"
	"pgregory.net/rapid"
)

// registry answers the two questions a Serde asks.
type registry struct {
	schemas map[int]string // by id
	subject string         // under which they are registered
	asked   atomic.Int64
	down    atomic.Bool
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.asked.Add(1)
	w.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	fail := func(status, code int) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error_code": code, "message": "no"})
	}
	if r.down.Load() {
		fail(500, 50001)
		return
	}
	if id, ok := strings.CutPrefix(req.URL.Path, "/schemas/ids/"); ok {
		n, _ := strconv.Atoi(id)
		if s, ok := r.schemas[n]; ok {
			_ = json.NewEncoder(w).Encode(map[string]any{"schema": s})
			return
		}
		fail(404, 40403)
		return
	}
	var body struct{ Schema string }
	_ = json.NewDecoder(req.Body).Decode(&body)
	for id, s := range r.schemas {
		if s == body.Schema && req.URL.Path == "/subjects/"+r.subject {
			_ = json.NewEncoder(w).Encode(map[string]any{"subject": r.subject, "version": 1, "id": id, "schema": s})
			return
		}
	}
	fail(404, 40403)
}

// olderCursor lacks most fields of today's, has one that is gone, an int where there is a long, and another order.
const olderCursor = `{"type":"record","name":"Cursor","namespace":"io.github.oktawatch","fields":[
	{"name":"pages","type":"int"},
	{"name":"gone","type":{"type":"map","values":"long"}},
	{"name":"source_id","type":"string"},
	{"name":"through","type":["null",{"type":"long","logicalType":"timestamp-millis"}],"default":null},
	{"name":"updated_at","type":{"type":"long","logicalType":"timestamp-millis"}}]}`

func start(t *testing.T) (*registry, *Serde) {
	t.Helper()
	r := &registry{subject: "t.okta.cursors.v1-value", schemas: map[int]string{7: CursorSchema, 3: olderCursor, 4: `{"type":"record","name":"Cursor","namespace":"io.github.oktawatch","fields":[]}`, 5: "no schema"}}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	return r, NewSerde(srv.URL, "t.")
}

func TestSerdeRoundTrip(t *testing.T) {
	reg, s := start(t)
	want := &Cursor{SourceID: "s1", Next: "/api/v1/logs?after=1", UpdatedAt: time.UnixMilli(1).UTC()}
	var framed []byte
	for range 3 {
		b, err := s.Encode(t.Context(), reg.subject, want, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		framed = b[1:]
	}
	if string(framed[:5]) != "\x00\x00\x00\x00\x07" {
		t.Errorf("frame % x", framed[:5])
	}
	for range 3 {
		var got Cursor
		if err := s.Decode(t.Context(), framed, &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, &got, cmpopts.EquateEmpty()); d != "" {
			t.Error(d)
		}
	}
	payload, same, err := s.Payload(t.Context(), framed, "cursor")
	if err != nil || !same || &payload[0] != &framed[5] {
		t.Errorf("payload: same %t, err %v", same, err)
	}
	if n := reg.asked.Load(); n != 2 {
		t.Errorf("asked the registry %d times, want once for the id and once for the schema", n)
	}
}

func TestSerdeReadsOtherWriters(t *testing.T) {
	_, s := start(t)
	codec, err := goavro.NewCodec(olderCursor)
	if err != nil {
		t.Fatal(err)
	}
	at := time.UnixMilli(1767600000000).UTC()
	b, err := codec.BinaryFromNative([]byte{0, 0, 0, 0, 3}, map[string]any{
		"pages": 9, "gone": map[string]any{"a": 1}, "source_id": "s1", "through": map[string]any{"long.timestamp-millis": at}, "updated_at": at,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Cursor{SourceID: "s1", Kind: "poll", Lane: "live", State: "running", Pages: 9, Through: &at, UpdatedAt: at}
	got := Cursor{Run: "left over", Slices: make([]CursorSlice, 2)}
	if err := s.Decode(t.Context(), b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	payload, same, err := s.Payload(t.Context(), b, "cursor")
	if err != nil || same {
		t.Fatalf("payload: same %t, err %v", same, err)
	}
	if err := got.DecodeAvro(payload); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	if err := s.Decode(t.Context(), b[:len(b)-1], &got); !errors.Is(err, ErrUnreadable) || got.SourceID != "" {
		t.Errorf("cut bytes: %v, record %+v", err, got)
	}
}

func TestSerdeErrors(t *testing.T) {
	reg, s := start(t)
	for name, tc := range map[string]struct {
		framed     []byte
		want       string
		unreadable bool
	}{
		"no frame":       {[]byte("{}"), "no registry frame", true},
		"empty":          {nil, "no registry frame", true},
		"unknown schema": {[]byte{0, 0, 0, 0, 99, 1}, "schema id 99", true},
		"cannot resolve": {[]byte{0, 0, 0, 0, 4, 1}, "source_id", true},
		"broken schema":  {[]byte{0, 0, 0, 0, 5, 1}, "parse the writer's schema", true},
		"broken bytes":   {[]byte{0, 0, 0, 0, 7, 1}, "decode cursor", true},
	} {
		err := s.Decode(t.Context(), tc.framed, new(Cursor))
		if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, ErrUnreadable) != tc.unreadable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Encode(t.Context(), "t.other-value", new(Cursor), nil); !errors.Is(err, ErrNotRegistered) || !strings.Contains(err.Error(), "oktawatch schemas apply") {
		t.Errorf("not registered: %v", err)
	}
	if _, err := s.Encode(t.Context(), "other-value", new(Cursor), nil); err == nil || !strings.Contains(err.Error(), "prefix") {
		t.Errorf("foreign prefix: %v", err)
	}
	reg.down.Store(true)
	short := NewSerde("http://127.0.0.1:1", "")
	if err := short.Decode(t.Context(), []byte{0, 0, 0, 0, 7, 1}, new(Cursor)); err == nil || errors.Is(err, ErrUnreadable) {
		t.Errorf("registry unreachable: %v", err)
	}
	if _, err := s.Encode(t.Context(), reg.subject, new(Cursor), nil); err == nil || errors.Is(err, ErrNotRegistered) {
		t.Errorf("registry fails: %v", err)
	}
	reg.down.Store(false)
	if _, err := s.Encode(t.Context(), reg.subject, new(Cursor), nil); err != nil {
		t.Errorf("registry is back: %v", err)
	}
}

func TestCheckCompatibility(t *testing.T) {
	if err := CheckCompatibility(CursorSchema, olderCursor); err != nil {
		t.Errorf("today's reads yesterday's: %v", err)
	}
	err := CheckCompatibility(olderCursor, CursorSchema)
	if err == nil || !strings.Contains(err.Error(), "pages") && !strings.Contains(err.Error(), "gone") {
		t.Errorf("yesterday's reads today's: %v", err)
	}
	if err := CheckCompatibility("{", CursorSchema); err == nil || !strings.Contains(err.Error(), "reader") {
		t.Error(err)
	}
	if err := CheckCompatibility(CursorSchema, "{"); err == nil || !strings.Contains(err.Error(), "writer") {
		t.Error(err)
	}
}

func TestPlain(t *testing.T) {
	at := time.UnixMilli(1767600000123).UTC()
	s := &SystemLog{
		UUID: "u1", Published: &at, EventType: "a<b", JSON: []byte(`{ "b": 1.50, "a": null }`),
		Client: &Client{GeographicalContext: &GeographicalContext{Geolocation: &Geolocation{Lat: new(1.5)}}},
		Target: []Target{{ID: "t1", DetailEntry: map[string]string{"z": "1", "a": "2"}}},
	}
	b, err := s.AppendAvro(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Plain(SystemLogSchema, b)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(got) {
		t.Fatalf("not JSON: %s", got)
	}
	for _, want := range []string{
		`{"uuid":"u1","published":"2026-01-05T08:00:00.123Z","eventType":"a<b","derived":{"org":""`, `"outcome":null`,
		`"detailEntry":{"a":"2","z":"1"},"changeDetails":null`, `"geolocation":{"lat":1.5,"lon":null}`, `"json":{"b":1.50,"a":null}}`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s\nis not in\n%s", want, got)
		}
	}
	for name, tc := range map[string]struct {
		value []byte
		want  string
	}{
		"null": {nil, `null`}, "text": {[]byte("a\"b"), `"a\"b"`}, "binary": {[]byte{0xff}, `"base64:/w=="`}, "json": {[]byte(`[1, 2]`), `[1,2]`},
		"json that is no UTF-8":        {[]byte("[\"\xff\"]"), `"base64:WyL/Il0="`},
		"json as deep as readers take": {deep(200), string(deep(200))}, "deeper": {deep(201), `"` + string(deep(201)) + `"`},
		"brackets in text": {[]byte(`"` + strings.Repeat(`[\"`, 300) + `"`), `"` + strings.Repeat(`[\"`, 300) + `"`},
	} {
		b, err := (&State{Transaction: 1, Value: tc.value}).AppendAvro(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Plain(StateSchema, b)
		if want := `{"transaction":1,"value":` + tc.want + `}`; err != nil || string(got) != want {
			t.Errorf("%s: got %s (%v), want %s", name, got, err, want)
		}
	}
	if _, err := Plain(SystemLogSchema, b[:9]); !errors.Is(err, ErrUnreadable) {
		t.Errorf("cut bytes: %v", err)
	}
}

func deep(n int) []byte { return []byte(strings.Repeat("[", n) + strings.Repeat("]", n)) }

// TestPlainReadsAnySchema: other people's schemas have types that ours do not.
func TestPlainReadsAnySchema(t *testing.T) {
	schema := `{"type":"record","name":"a.X","fields":[
		{"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}},
		{"name":"f","type":{"type":"fixed","name":"F","size":2}},
		{"name":"u","type":["long","string","E",{"type":"map","values":["null","float"]}]},
		{"name":"r","type":["null","a.X"]},
		{"name":"n","type":{"type":"array","items":{"type":"array","items":"double"}}}]}`
	codec, err := goavro.NewCodec(schema)
	if err != nil {
		t.Fatal(err)
	}
	x := func(u, r any) map[string]any {
		return map[string]any{"e": "B", "f": []byte("hi"), "u": u, "r": r, "n": []any{[]any{1.5}, []any{}}}
	}
	b, err := codec.BinaryFromNative(nil, x(map[string]any{"map": map[string]any{"k": map[string]any{"float": float32(0.5)}, "n": nil}},
		map[string]any{"a.X": x(map[string]any{"a.E": "A"}, nil)}))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Plain(schema, b)
	want := `{"e":"B","f":"hi","u":{"k":0.5,"n":null},"r":{"e":"B","f":"hi","u":"A","r":null,"n":[[1.5],[]]},"n":[[1.5],[]]}`
	if err != nil || string(got) != want {
		t.Errorf("got %s (%v)\nwant %s", got, err, want)
	}
}

// TestPlainBoundsMemory: the reference codec alone would make room for two thousand million items.
func TestPlainBoundsMemory(t *testing.T) {
	for name, schema := range map[string]string{
		"array": `{"type":"array","items":"long"}`, "nothing": `{"type":"array","items":"null"}`, "map": `{"type":"map","values":"long"}`,
		"empty records": `{"type":"array","items":{"type":"record","name":"X","fields":[]}}`,
	} {
		for _, count := range []int64{1 << 30, -(1 << 30), -1 << 63} {
			b := appendLong(nil, count)
			b = append(b, make([]byte, 20)...)
			schema := `{"type":"record","name":"R","fields":[{"name":"a","type":` + schema + `}]}`
			if _, err := Plain(schema, b); !errors.Is(err, ErrUnreadable) {
				t.Errorf("%s of %d items: %v", name, count, err)
			}
		}
	}
	deep := `{"type":"record","name":"R","fields":[{"name":"r","type":["null","R"]}]}`
	if _, err := Plain(deep, append(bytes.Repeat([]byte{2}, 1<<20), 0)); !errors.Is(err, ErrUnreadable) {
		t.Errorf("deep nesting: %v", err)
	}
	if got, err := Plain(deep, []byte{2, 2, 0}); err != nil || string(got) != `{"r":{"r":{"r":null}}}` {
		t.Errorf("nesting: %s, %v", got, err)
	}
}

// TestOlderSystemLogsRead: bytes of a schema that lacks some of today's fields give today's record without them, by way of
// the registry and in the view.
func TestOlderSystemLogsRead(t *testing.T) {
	var today map[string]any
	if err := json.Unmarshal([]byte(SystemLogSchema), &today); err != nil {
		t.Fatal(err)
	}
	// Fields without which the rest still stands: they have a default and define no type that others use.
	droppable := []string{"severity", "displayMessage", "version", "outcome", "actor", "target", "transaction", "debugContext", "authenticationContext", "securityContext", "device", "enrichment", "json"}
	rapid.Check(t, func(t *rapid.T) {
		gone := map[string]bool{}
		for _, name := range droppable {
			gone[name] = rapid.Bool().Draw(t, "without "+name)
		}
		older := maps.Clone(today)
		var fields []any
		for _, f := range today["fields"].([]any) {
			if !gone[f.(map[string]any)["name"].(string)] {
				fields = append(fields, f)
			}
		}
		older["fields"] = fields
		text, err := json.Marshal(older)
		if err != nil {
			t.Fatal(err)
		}
		codec, err := goavro.NewCodec(string(text))
		if err != nil {
			t.Fatal(err)
		}
		want := &SystemLog{}
		arbitrary(t, reflect.ValueOf(want).Elem())
		v := reflect.ValueOf(want).Elem()
		for i := range v.NumField() {
			if gone[v.Type().Field(i).Tag.Get("avro")] {
				v.Field(i).SetZero()
			}
		}
		value := native(v).(map[string]any)
		for name := range gone {
			if gone[name] {
				delete(value, name)
			}
		}
		b, err := codec.BinaryFromNative(nil, value)
		if err != nil {
			t.Fatal(err)
		}
		w, err := newWriter("system_log", string(text))
		if err != nil {
			t.Fatal(err)
		}
		got := &SystemLog{Target: make([]Target, 3), DebugContext: &DebugContext{DebugData: map[string]string{"left": "over"}}}
		if w.same {
			err = got.DecodeAvro(b)
		} else {
			err = w.read(b, got)
		}
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateNaNs()); d != "" {
			t.Fatal(d)
		}
		payload, err := got.AppendAvro(nil)
		if err != nil {
			t.Fatal(err)
		}
		viewAgrees(t, want, payload)
	})
}

// TestSerdeConcurrently: many callers ask for the same schemas at once.
func TestSerdeConcurrently(t *testing.T) {
	reg, s := start(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				b, err := s.Encode(t.Context(), reg.subject, &Cursor{SourceID: "s"}, nil)
				if err == nil {
					err = s.Decode(t.Context(), b, new(Cursor))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
