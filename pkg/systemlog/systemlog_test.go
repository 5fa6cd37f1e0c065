package systemlog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// fixtures are all events of testdata.
func fixtures(t testing.TB) [][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/samples/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatal("no samples", err)
	}
	var docs [][]byte
	for _, f := range append(files, "testdata/full_api.json", "testdata/full_hook.json") {
		if strings.HasSuffix(f, "event_hook_envelopes.jsonl") {
			continue // a request body, not an event
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for l := range bytes.Lines(b) {
			if l = bytes.TrimSpace(l); len(l) > 0 {
				docs = append(docs, l)
			}
		}
	}
	return docs
}

func testMask(t testing.TB) *Mask {
	t.Helper()
	m, err := NewMask([]byte("a key for tests only, 32 bytes.."))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSamples(t *testing.T) {
	r, schema := newReference(t)
	docs := fixtures(t)
	if len(docs) != 30+2 {
		t.Errorf("%d events, want the 30 samples and 2 of our own", len(docs))
	}
	for _, doc := range docs {
		agree(t, r, schema, doc)
		ev, found, err := FromJSON(doc, testMask(t))
		if err != nil {
			t.Errorf("%.100s: %v", doc, err)
			continue
		}
		for _, f := range found {
			if f != (Finding{"uuid", ProblemGone}) && f != (Finding{"published", ProblemTime}) {
				t.Errorf("%.100s: %v", doc, f)
			}
		}
		if ev.Derived.Masked == 0 && !bytes.Equal(ev.JSON, doc) {
			t.Errorf("%.100s: json is not the input", doc)
		}
	}
}

// Every field of the schema that comes from Okta is filled by the fixture that has all of them, in either shape.
func TestFullFixtureFillsEveryField(t *testing.T) {
	api, hook := readFixture(t, "full_api.json"), readFixture(t, "full_hook.json")
	for name, ev := range map[string]*record.SystemLog{"api": api, "hook": hook} {
		for _, path := range unfilled(reflect.ValueOf(ev).Elem(), "") {
			t.Errorf("%s: field %s of the schema is filled by no fixture: add it to testdata/full_%s.json", name, path, name)
		}
	}
	api.JSON, hook.JSON = nil, nil
	if diff := cmp.Diff(api, hook); diff != "" {
		t.Errorf("the two shapes give different records:\n%s", diff)
	}
}

func readFixture(t *testing.T, name string) *record.SystemLog {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	ev, found, err := FromJSON(b, nil)
	if err != nil || len(found) > 0 {
		t.Fatal(name, err, found)
	}
	return ev
}

func unfilled(v reflect.Value, at string) (paths []string) {
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("avro")
		if name == "" {
			paths = append(paths, v.Type().Field(i).Name+" (no avro tag)")
			continue
		}
		if at == "" && ours[name] {
			continue
		}
		f, path := v.Field(i), strings.TrimPrefix(at+"."+name, ".")
		switch {
		case f.Kind() == reflect.Pointer && f.IsNil(), f.Kind() != reflect.Pointer && f.IsZero():
			paths = append(paths, path)
			continue
		case f.Kind() == reflect.Slice && f.Len() > 0 && f.Index(0).Kind() == reflect.Struct:
			f = f.Index(0)
		case f.Kind() == reflect.Pointer:
			f = f.Elem()
		}
		if f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[time.Time]() {
			paths = append(paths, unfilled(f, path)...)
		}
	}
	return paths
}

func TestOpenObjects(t *testing.T) {
	ev := readFixture(t, "full_api.json")
	want := map[string]string{
		"responseTime": "42", "passed": "true", "nothing": "", "threatSuspected": "false",
		"originalPrincipal": `{"alternateId":"carol@example.com","displayName":"Carol \u003cC\u003e","id":"00uCAROL","type":"User"}`,
	}
	for k, v := range want {
		got, there := ev.DebugContext.DebugData[k]
		if !there || got != v {
			t.Errorf("debugData[%s] = %q (there: %v), want %q", k, got, there, v)
		}
	}
	if got := ev.Target[0].ChangeDetails.To["roles"]; got != `["SUPER_ADMIN"]` {
		t.Errorf("changeDetails.to.roles = %q", got)
	}
}

func TestOddFields(t *testing.T) {
	for name, tc := range map[string]struct {
		doc  string
		want []Finding
		is   func(*record.SystemLog) bool
	}{
		"text zone null": {
			`{"uuid":"u","eventType":"e","client":{"zone":"null"}}`, nil,
			func(e *record.SystemLog) bool { return e.Client.Zone == "" },
		},
		"zone None is a name": {
			`{"uuid":"u","eventType":"e","client":{"zone":"None"}}`, nil,
			func(e *record.SystemLog) bool { return e.Client.Zone == "None" },
		},
		"numeric version and postal code": {
			`{"uuid":"u","eventType":"e","version":0,"client":{"geographicalContext":{"postalCode":10118}}}`, nil,
			func(e *record.SystemLog) bool {
				return e.Version == "0" && e.Client.GeographicalContext.PostalCode == "10118"
			},
		},
		"number where a text is": {
			`{"uuid":"u","eventType":"e","severity":3}`,
			[]Finding{{"severity", ProblemType}},
			func(e *record.SystemLog) bool { return e.Severity == "" },
		},
		"text where an object is": {
			`{"uuid":"u","eventType":"e","actor":"alice"}`,
			[]Finding{{"actor", ProblemType}},
			func(e *record.SystemLog) bool { return e.Actor == nil },
		},
		"object where a list is": {
			`{"uuid":"u","eventType":"e","target":{"id":"x"}}`,
			[]Finding{{"target", ProblemType}},
			func(e *record.SystemLog) bool { return len(e.Target) == 0 },
		},
		"null and text in a list": {
			`{"uuid":"u","eventType":"e","target":[null,"x",{"id":"y"}]}`,
			[]Finding{{"target[]", ProblemType}},
			func(e *record.SystemLog) bool { return len(e.Target) == 1 && e.Target[0].ID == "y" },
		},
		"bad member of a target": {
			`{"uuid":"u","eventType":"e","target":[{"id":1,"type":"User"}]}`,
			[]Finding{{"target[].id", ProblemType}},
			func(e *record.SystemLog) bool { return e.Target[0].Type == "User" },
		},
		"31 September": {
			`{"uuid":"u","eventType":"e","published":"2017-09-31T22:23:07.777Z"}`,
			[]Finding{{"published", ProblemTime}},
			func(e *record.SystemLog) bool { return e.Published == nil },
		},
		"time with an offset": {
			`{"uuid":"u","eventType":"e","published":"2026-01-05T12:00:00+02:00"}`, nil,
			func(e *record.SystemLog) bool {
				return e.Published.Equal(time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)) && e.Published.Location() == time.UTC
			},
		},
		"number too large": {
			`{"uuid":"u","eventType":"e","securityContext":{"asNumber":1e40,"isProxy":true}}`,
			[]Finding{{"securityContext.asNumber", ProblemRange}},
			func(e *record.SystemLog) bool { return e.SecurityContext.ASNumber == nil && *e.SecurityContext.IsProxy },
		},
		"double too large": {
			`{"uuid":"u","eventType":"e","client":{"geographicalContext":{"geolocation":{"lat":1e999,"lon":0}}}}`,
			[]Finding{{"client.geographicalContext.geolocation.lat", ProblemRange}},
			func(e *record.SystemLog) bool {
				g := e.Client.GeographicalContext.Geolocation
				return g.Lat == nil && *g.Lon == 0
			},
		},
		"last of two keys": {
			`{"uuid":"u","eventType":"a","eventType":"b","actor":{"id":"1"},"actor":{"type":"User"}}`, nil,
			func(e *record.SystemLog) bool {
				return e.EventType == "b" && e.Actor.ID == "" && e.Actor.Type == "User"
			},
		},
		"hook's chain": {
			`{"uuid":"u","eventType":"e","client":{"ipChain":[{"ip":"192.0.2.1"}]}}`, nil,
			func(e *record.SystemLog) bool { return e.Request.IPChain[0].IP == "192.0.2.1" },
		},
		"hook's chain beside an empty one": {
			`{"uuid":"u","eventType":"e","client":{"ipChain":[{"ip":"192.0.2.1"}]},"request":{"ipChain":[]}}`, nil,
			func(e *record.SystemLog) bool { return e.Request.IPChain[0].IP == "192.0.2.1" },
		},
		"both chains": {
			`{"uuid":"u","eventType":"e","request":{"ipChain":[{"ip":"192.0.2.2"}]},"client":{"ipChain":[{"ip":"192.0.2.1"}]}}`, nil,
			func(e *record.SystemLog) bool {
				return len(e.Request.IPChain) == 1 && e.Request.IPChain[0].IP == "192.0.2.2"
			},
		},
		"our names in the event": {
			`{"uuid":"u","eventType":"e","json":"x","derived":{"org":"evil","copy":9},"enrichment":{"users":[{}]}}`, nil,
			func(e *record.SystemLog) bool {
				return e.Derived.Org == "" && e.Enrichment == nil && e.JSON[0] == '{'
			},
		},
		"no event type": {
			`{"uuid":"u"}`,
			[]Finding{{"eventType", ProblemGone}},
			func(e *record.SystemLog) bool { return e.UUID == "u" },
		},
		"no uuid": {
			`{"eventType":"user.session.start"}`,
			[]Finding{{"uuid", ProblemGone}},
			func(e *record.SystemLog) bool { return len(e.UUID) == 36 && e.UUID[14] == '8' },
		},
		"uuid is a number": {
			`{"uuid":7,"eventType":"user.session.start"}`,
			[]Finding{{"uuid", ProblemType}, {"uuid", ProblemGone}},
			func(e *record.SystemLog) bool { return len(e.UUID) == 36 },
		},
		"uuid without end": {
			`{"uuid":"` + strings.Repeat("x", 129) + `","eventType":"e"}`,
			[]Finding{{"uuid", ProblemRange}, {"uuid", ProblemGone}},
			func(e *record.SystemLog) bool { return len(e.UUID) == 36 },
		},
		"escaped keys": {
			`{"\u0075uid":"u","eventType":"\u0065"}`, nil,
			func(e *record.SystemLog) bool { return e.UUID == "u" && e.EventType == "e" },
		},
		"names are exact": {
			`{"uuid":"u","EVENTTYPE":"e"}`,
			[]Finding{{"eventType", ProblemGone}},
			func(e *record.SystemLog) bool { return e.EventType == "" },
		},
		"invalid UTF-8": {
			"{\"uuid\":\"u\",\"eventType\":\"e\xff\"}", nil,
			func(e *record.SystemLog) bool { return e.EventType == "e\uFFFD" },
		},
		"half a surrogate": {
			`{"uuid":"u","eventType":"\ud83dx\ude00\ud83d\ude00"}`, nil,
			func(e *record.SystemLog) bool { return e.EventType == "\uFFFDx\uFFFD😀" },
		},
		"deep, but allowed": {
			`{"uuid":"u","eventType":"e","more":` + strings.Repeat("[", 9_999) + strings.Repeat("]", 9_999) + `}`, nil,
			func(e *record.SystemLog) bool { return e.UUID == "u" },
		},
		"deep in an open object": {
			`{"uuid":"u","eventType":"e","debugContext":{"debugData":{"x":` + strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000) + `}}}`, nil,
			func(e *record.SystemLog) bool { return len(e.DebugContext.DebugData["x"]) == 18_000 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			ev, found, err := FromJSON([]byte(tc.doc), testMask(t))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(found, tc.want) {
				t.Errorf("findings %v, want %v", found, tc.want)
			}
			if !tc.is(ev) {
				t.Errorf("record is %+v", ev)
			}
		})
	}
}

func TestUnreadable(t *testing.T) {
	for name, tc := range map[string]struct{ doc, class string }{
		"empty":             {"", ClassNotJSON},
		"blanks":            {" \n", ClassNotJSON},
		"text":              {`"x"`, ClassNotObject},
		"list":              {`[{"uuid":"u"}]`, ClassNotObject},
		"number":            {`12`, ClassNotObject},
		"null":              {`null`, ClassNotObject},
		"not json":          {`<html>`, ClassNotJSON},
		"cut":               {`{"uuid":"u","actor":{"id":"x`, ClassNotJSON},
		"bytes after":       {`{"uuid":"u"} x`, ClassNotJSON},
		"two documents":     {`{"uuid":"u"}{"uuid":"v"}`, ClassNotJSON},
		"zero byte after":   {"{\"uuid\":\"u\"}\x00", ClassNotJSON},
		"comma at the end":  {`{"uuid":"u",}`, ClassNotJSON},
		"control character": {"{\"uuid\":\"u\n\"}", ClassNotJSON},
		"bad escape":        {`{"uuid":"\x"}`, ClassNotJSON},
		"short escape":      {`{"uuid":"\u12"}`, ClassNotJSON},
		"leading zero":      {`{"uuid":"u","version":01}`, ClassNotJSON},
		"bare word":         {`{"uuid":nul}`, ClassNotJSON},
		"too deep":          {strings.Repeat(`{"a":`, 10_001) + "1" + strings.Repeat("}", 10_001), ClassTooDeep},
		"deep without end":  {strings.Repeat("[", 5<<20), ClassTooDeep},
		"no event":          {`{"foo":1}`, ClassNoEvent},
		"empty object":      {`{}`, ClassNoEvent},
		"null uuid":         {`{"uuid":null,"eventType":null}`, ClassNoEvent},
		"byte order mark":   {"\ufeff{\"uuid\":\"u\"}", ClassNotJSON},
	} {
		t.Run(name, func(t *testing.T) {
			ev, found, err := FromJSON([]byte(tc.doc), nil)
			var e *Error
			if !errors.As(err, &e) || e.Class != tc.class || ev != nil || found != nil {
				t.Errorf("record %v, findings %v, error %v, want class %s", ev, found, err, tc.class)
			}
		})
	}
}

func TestEventTime(t *testing.T) {
	received := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { x := received.Add(d); return &x }
	for name, tc := range map[string]struct {
		published *time.Time
		want      time.Time
	}{
		"missing":             {nil, received},
		"before":              {at(-time.Hour), received.Add(-time.Hour)},
		"ten minutes ahead":   {at(10 * time.Minute), received.Add(10 * time.Minute)},
		"a little more ahead": {at(10*time.Minute + time.Millisecond), received},
	} {
		if got := EventTime(tc.published, received); !got.Equal(tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// What FromJSON gives does not change with the caller's buffer.
func TestFromJSONCopies(t *testing.T) {
	doc := []byte(`{"uuid":"u","eventType":"e"}`)
	ev, _, err := FromJSON(doc, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range doc {
		doc[i] = 'x'
	}
	if ev.UUID != "u" || string(ev.JSON) != `{"uuid":"u","eventType":"e"}` {
		t.Errorf("%+v", ev)
	}
}

// Reading into a used record leaves nothing of what was there.
func TestReadOverwrites(t *testing.T) {
	ev := readFixture(t, "full_api.json")
	if _, err := Read([]byte(`{"uuid":"u","eventType":"e"}`), nil, ev); err != nil {
		t.Fatal(err)
	}
	want := &record.SystemLog{UUID: "u", EventType: "e", JSON: []byte(`{"uuid":"u","eventType":"e"}`)}
	if diff := cmp.Diff(want, ev); diff != "" {
		t.Error(diff)
	}
}
