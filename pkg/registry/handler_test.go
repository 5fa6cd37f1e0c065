package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"
	"go.uber.org/goleak"

	"github.com/oktawatch/oktawatch/pkg/registry"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"))
}

const (
	v1       = `{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}`
	v1Spaced = "{ \"name\":\"R\",\n \"type\":\"record\", \"fields\": [ {\"type\":\"string\", \"name\":\"a\"} ] }"
	v2       = `{"type":"record","name":"R","fields":[{"name":"a","type":"string"},{"name":"b","type":["null","string"],"default":null}]}`
	noDef    = `{"type":"record","name":"R","fields":[{"name":"a","type":"string"},{"name":"b","type":"string"}]}`
	retyped  = `{"type":"record","name":"R","fields":[{"name":"a","type":"int"}]}`
	empty    = `{"type":"record","name":"R","fields":[]}`
)

type api struct {
	t *testing.T
	h http.Handler
}

func open(t *testing.T, store registry.Store) api {
	t.Helper()
	h, err := registry.NewHandler(registry.Config{}, store)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return api{t, h}
}

func schema(text string) string {
	b, _ := json.Marshal(map[string]string{"schema": text})
	return string(b)
}

// do sends one request and returns its status and body.
func (a api) do(method, path, body string) (int, string) {
	a.t.Helper()
	req := httptest.NewRequestWithContext(a.t.Context(), method, path, strings.NewReader(body))
	w := httptest.NewRecorder()
	a.h.ServeHTTP(w, req)
	if ct := w.Header().Get("Content-Type"); w.Body.Len() > 0 && ct != "application/vnd.schemaregistry.v1+json" {
		a.t.Errorf("%s %s: content type %q", method, path, ct)
	}
	return w.Code, strings.TrimSpace(w.Body.String())
}

func (a api) want(method, path, body string, status int, contains string) {
	a.t.Helper()
	code, got := a.do(method, path, body)
	if code != status || !strings.Contains(got, contains) {
		a.t.Errorf("%s %s\n got %d %s\nwant %d …%s…", method, path, code, got, status, contains)
	}
}

func TestRegister(t *testing.T) {
	a := open(t, nil)
	a.want("GET", "/subjects", "", 200, `[]`)
	a.want("GET", "/subjects/s/versions", "", 404, `"error_code":40401`)
	a.want("POST", "/subjects/s/versions", schema(v1), 200, `{"id":1}`)
	a.want("POST", "/subjects/s/versions", schema(v1Spaced), 200, `{"id":1}`)
	a.want("POST", "/subjects/other/versions", schema(v1Spaced), 200, `{"id":1}`)
	a.want("POST", "/subjects/s/versions", schema(v2), 200, `{"id":2}`)
	a.want("GET", "/subjects", "", 200, `["other","s"]`)
	a.want("GET", "/subjects/s/versions", "", 200, `[1,2]`)
	a.want("GET", "/subjects/other/versions", "", 200, `[1]`)
	a.want("GET", "/subjects/s/versions/latest", "", 200, `"version":2,"id":2`)
	a.want("GET", "/subjects/s/versions/-1", "", 200, `"version":2,"id":2`)
	a.want("GET", "/subjects/s/versions/9", "", 404, `"error_code":40402`)
	a.want("GET", "/schemas/ids/2", "", 200, `"schema":"{\"type\":\"record\"`)
	a.want("GET", "/schemas/ids/3", "", 404, `"error_code":40403`)
	a.want("GET", "/schemas/ids/1/versions", "", 200, `"subject":"other"`)
	a.want("POST", "/subjects/s", schema(v1Spaced), 200, `"version":1,"id":1`)
	a.want("POST", "/subjects/s", schema(noDef), 404, `"error_code":40403`)
	a.want("POST", "/subjects/none", schema(v1), 404, `"error_code":40401`)
	a.want("GET", "/schemas/types", "", 200, `["AVRO"]`)
	a.want("GET", "/", "", 200, `{}`)
	a.want("PATCH", "/subjects/s", "", 405, `"error_code":405`)
	a.want("POST", "/subjects/a%2Fb/versions", schema(v1), 200, `{"id":1}`)
	a.want("GET", "/subjects/a%2Fb/versions", "", 200, `[1]`)
}

func TestNonsenseIsRefused(t *testing.T) {
	a := open(t, nil)
	deep := strings.Repeat(`{"type":"array","items":`, 100) + `"string"` + strings.Repeat("}", 100)
	for name, body := range map[string]string{
		"not JSON":             `{`,
		"two objects":          schema(v1) + schema(v1),
		"no schema":            `{}`,
		"schema not JSON":      schema(`record`),
		"nonsense type":        schema(`{"type":"nonsense"}`),
		"number":               schema(`42`),
		"null":                 schema(`null`),
		"record without name":  schema(`{"type":"record","fields":[]}`),
		"unknown field type":   schema(`{"type":"record","name":"R","fields":[{"name":"a","type":"Other"}]}`),
		"wrong default":        schema(`{"type":"record","name":"R","fields":[{"name":"a","type":"int","default":"x"}]}`),
		"protobuf":             `{"schema":"syntax = \"proto3\";","schemaType":"PROTOBUF"}`,
		"references":           `{"schema":"\"string\"","references":[{"name":"x","subject":"y","version":1}]}`,
		"too deep":             schema(deep),
		"schema of wrong type": `{"schema":{"type":"string"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			a := api{t, a.h}
			a.want("POST", "/subjects/s/versions", body, 422, `"error_code":42201`)
			a.want("POST", "/compatibility/subjects/s/versions", body, 422, `"error_code":42201`)
		})
	}
	a.want("POST", "/subjects/s/versions", schema(strings.Repeat(" ", 2<<20)), 422, "too large")
	a.want("POST", "/subjects/s/versions", `{"schema":"\"string\"","id":7}`, 422, `"error_code":42205`)
	a.want("POST", "/subjects/"+strings.Repeat("x", 300)+"/versions", schema(v1), 422, `"error_code":42208`)
	a.want("GET", "/subjects", "", 200, `[]`)
}

func TestCompatibility(t *testing.T) {
	for name, tc := range map[string]struct {
		level  string
		first  []string // registered at NONE
		next   string
		reason string // empty: compatible
	}{
		"none takes all":                     {"NONE", []string{v1}, retyped, ""},
		"backward takes a new default":       {"BACKWARD", []string{v1}, v2, ""},
		"backward refuses no default":        {"BACKWARD", []string{v1}, noDef, "cannot read records of version 1: b: writer has"},
		"backward looks at the latest only":  {"BACKWARD", []string{v1, noDef}, `{"type":"record","name":"R","fields":[{"name":"b","type":"string"}]}`, ""},
		"backward transitive looks at all":   {"BACKWARD_TRANSITIVE", []string{v1, noDef}, `{"type":"record","name":"R","fields":[{"name":"b","type":"string"}]}`, "version 1"},
		"forward takes a field more":         {"FORWARD", []string{v1}, noDef, ""},
		"forward refuses a field less":       {"FORWARD", []string{v1}, empty, "version 1 cannot read records of the new schema"},
		"forward transitive looks at all":    {"FORWARD_TRANSITIVE", []string{v1, empty}, `{"type":"record","name":"R","doc":"no a","fields":[]}`, "version 1 cannot"},
		"full takes a new default":           {"FULL", []string{v1}, v2, ""},
		"full refuses no default":            {"FULL", []string{v1}, noDef, "b: writer"},
		"full transitive refuses a new type": {"FULL_TRANSITIVE", []string{v1}, retyped, "a: writer has"},
		"first version is always compatible": {"FULL_TRANSITIVE", nil, v1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := open(t, nil)
			a.want("PUT", "/config/s", `{"compatibility":"NONE"}`, 200, `"NONE"`)
			for _, s := range tc.first {
				a.want("POST", "/subjects/s/versions", schema(s), 200, `"id"`)
			}
			a.want("PUT", "/config/s", `{"compatibility":"`+tc.level+`"}`, 200, tc.level)
			if tc.reason == "" {
				a.want("POST", "/compatibility/subjects/s/versions?verbose=true", schema(tc.next), 200, `{"is_compatible":true,"messages":[]}`)
				a.want("POST", "/subjects/s/versions", schema(tc.next), 200, `"id"`)
				return
			}
			a.want("POST", "/compatibility/subjects/s/versions", schema(tc.next), 200, `{"is_compatible":false}`)
			a.want("POST", "/compatibility/subjects/s/versions?verbose=true", schema(tc.next), 200, tc.reason)
			a.want("POST", "/subjects/s/versions", schema(tc.next), 409, `"error_code":409`)
			a.want("POST", "/subjects/s/versions", schema(tc.next), 409, tc.reason)
		})
	}
}

func TestCompatibilityWithOneVersion(t *testing.T) {
	a := open(t, nil)
	a.want("POST", "/subjects/s/versions", schema(v1), 200, `"id"`)
	a.want("POST", "/compatibility/subjects/s/versions/1", schema(v2), 200, `{"is_compatible":true}`)
	a.want("POST", "/compatibility/subjects/s/versions/latest", schema(retyped), 200, `{"is_compatible":false}`)
	a.want("POST", "/compatibility/subjects/s/versions/2", schema(v2), 404, `"error_code":40402`)
	a.want("POST", "/compatibility/subjects/s/versions/x", schema(v2), 422, `"error_code":42202`)
	a.want("POST", "/compatibility/subjects/none/versions/1", schema(v2), 404, `"error_code":40401`)
}

func TestConfigAndMode(t *testing.T) {
	a := open(t, nil)
	a.want("GET", "/config", "", 200, `{"compatibilityLevel":"BACKWARD"}`)
	a.want("GET", "/config/s", "", 404, `"error_code":40408`)
	a.want("GET", "/config/s?defaultToGlobal=true", "", 200, `{"compatibilityLevel":"BACKWARD"}`)
	a.want("PUT", "/config", `{"compatibility":"full"}`, 200, `{"compatibility":"FULL"}`)
	a.want("PUT", "/config/s", `{"compatibility":"bad"}`, 422, `"error_code":42203`)
	a.want("PUT", "/config/s", `{"compatibility":"NONE"}`, 200, `NONE`)
	a.want("GET", "/config/s", "", 200, `{"compatibilityLevel":"NONE"}`)
	a.want("GET", "/subjects", "", 200, `[]`) // a level makes no subject
	a.want("DELETE", "/config/s", "", 200, `{"compatibility":"FULL"}`)
	a.want("GET", "/config/s", "", 404, `"error_code":40408`)

	a.want("GET", "/mode", "", 200, `{"mode":"READWRITE"}`)
	a.want("GET", "/mode/s", "", 404, `"error_code":40409`)
	a.want("PUT", "/mode", `{"mode":"IMPORT"}`, 422, `"error_code":42204`)
	a.want("PUT", "/mode/s", `{"mode":"READONLY"}`, 200, `READONLY`)
	a.want("POST", "/subjects/s/versions", schema(v1), 422, `"error_code":42205`)
	a.want("DELETE", "/mode/s", "", 200, `READONLY`)
	a.want("POST", "/subjects/s/versions", schema(v1), 200, `"id":1`)
}

func TestDeleteKeepsNumbers(t *testing.T) {
	store := registry.Memory()
	a := open(t, store)
	a.want("PUT", "/config", `{"compatibility":"NONE"}`, 200, "")
	a.want("POST", "/subjects/s/versions", schema(v1), 200, `"id":1`)
	a.want("POST", "/subjects/s/versions", schema(v2), 200, `"id":2`)
	a.want("POST", "/subjects/u/versions", schema(v1), 200, `"id":1`)
	a.want("DELETE", "/subjects/s/versions/1?permanent=true", "", 404, `"error_code":40407`)
	a.want("DELETE", "/subjects/s/versions/1", "", 200, `1`)
	a.want("DELETE", "/subjects/s/versions/1", "", 404, `"error_code":40406`)
	a.want("GET", "/subjects/s/versions", "", 200, `[2]`)
	a.want("GET", "/subjects/s/versions?deleted=true", "", 200, `[1,2]`)
	a.want("GET", "/schemas/ids/1", "", 200, `schema`)
	a.want("DELETE", "/subjects/s/versions/1?permanent=true", "", 200, `1`)
	a.want("GET", "/subjects/s/versions?deleted=true", "", 200, `[2]`)
	a.want("POST", "/subjects/s/versions", schema(v1), 200, `"id":1`) // u has it still
	a.want("DELETE", "/subjects/s?permanent=true", "", 404, `"error_code":40405`)
	a.want("DELETE", "/subjects/s", "", 200, `[2,3]`)
	a.want("DELETE", "/subjects/s", "", 404, `"error_code":40404`)
	a.want("GET", "/subjects", "", 200, `["u"]`)
	a.want("GET", "/subjects?deleted=true", "", 200, `["s","u"]`)
	a.want("GET", "/subjects/s/versions/latest", "", 404, `"error_code":40401`)
	a.want("POST", "/subjects/s/versions", schema(v2), 200, `"id":2`) // may come back
	a.want("GET", "/subjects/s/versions", "", 200, `[4]`)
	a.want("DELETE", "/subjects/s", "", 200, `[4]`)
	a.want("DELETE", "/subjects/s?permanent=true", "", 200, `[2,3,4]`)
	a.want("GET", "/schemas/ids/2", "", 404, `"error_code":40403`)
	a.want("DELETE", "/subjects/s", "", 404, `"error_code":40401`)
	a.want("POST", "/subjects/s/versions", schema(v2), 200, `"id":3`) // 2 is never given again
	a.want("GET", "/subjects/s/versions", "", 200, `[5]`)

	again := open(t, store)
	for _, path := range []string{
		"/subjects", "/subjects?deleted=true", "/schemas", "/config", "/schemas/ids/1", "/schemas/ids/3", "/schemas/ids/1/versions",
		"/subjects/s/versions?deleted=true", "/subjects/s/versions/latest", "/subjects/u/versions/1",
	} {
		_, before := a.do("GET", path, "")
		again.want("GET", path, "", 200, before)
	}
}

// failing is a Store whose next save fails.
type failing struct {
	registry.Store
	fail bool
}

func (f *failing) Save(ctx context.Context, key string, value []byte) error {
	if f.fail {
		return errors.New("disk full")
	}
	return f.Store.Save(ctx, key, value)
}

func TestNothingIsShownThatIsNotSaved(t *testing.T) {
	store := &failing{Store: registry.Memory(), fail: true}
	a := open(t, store)
	a.want("POST", "/subjects/s/versions", schema(v1), 500, `{"error_code":50001,"message":"disk full"}`)
	a.want("PUT", "/config", `{"compatibility":"NONE"}`, 500, `disk full`)
	a.want("GET", "/subjects", "", 200, `[]`)
	a.want("GET", "/config", "", 200, `BACKWARD`)
	store.fail = false
	a.want("POST", "/subjects/s/versions", schema(v2), 200, `"id":1`)
}

func TestNotLoaded(t *testing.T) {
	h, err := registry.NewHandler(registry.Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	api{t, h}.want("GET", "/subjects", "", 503, `"error_code":50001`)
}

// TestClient runs the client that services use over a real listener, many at once.
func TestClient(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.New(registry.Config{Compatibility: "FULL_TRANSITIVE"}, registry.Deps{Listener: ln})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-r.Ready()

	transport := &http.Transport{}
	cl, err := sr.NewClient(sr.URLs(r.URL()), sr.HTTPClient(&http.Client{Transport: transport}))
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]int, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			s, err := cl.CreateSchema(t.Context(), "s", sr.Schema{Schema: v1})
			if err != nil || s.Version != 1 {
				t.Errorf("create: version %d, %v", s.Version, err)
			}
			ids[i] = s.ID
		})
	}
	wg.Wait()
	if slices.Min(ids) != slices.Max(ids) {
		t.Errorf("one schema got ids %v", ids)
	}
	_, err = cl.CreateSchema(t.Context(), "s", sr.Schema{Schema: retyped})
	if re := (*sr.ResponseError)(nil); !errors.As(err, &re) || re.ErrorCode != 409 || !strings.Contains(re.Message, "a: writer has") {
		t.Errorf("incompatible schema: %v", err)
	}
	got, err := cl.CheckCompatibility(sr.WithParams(t.Context(), sr.Verbose), "s", -1, sr.Schema{Schema: retyped})
	if err != nil || got.Is || len(got.Messages) == 0 {
		t.Errorf("check: %+v, %v", got, err)
	}
	if text, err := cl.SchemaByID(t.Context(), ids[0]); err != nil || text.Schema != v1 {
		t.Errorf("schema by id: %q, %v", text.Schema, err)
	}
	if res := cl.SetCompatibility(t.Context(), sr.SetCompatibility{Level: sr.CompatNone}, "s"); res[0].Err != nil || res[0].Level != sr.CompatNone {
		t.Errorf("set compatibility: %+v", res)
	}
	if res := cl.Compatibility(t.Context(), "s", ""); res[0].Level != sr.CompatNone || res[1].Level != sr.CompatFullTransitive {
		t.Errorf("compatibility: %+v", res)
	}

	for what, change := range map[string]func(*http.Request){
		"another origin": func(req *http.Request) { req.Header.Set("Origin", "https://evil.example") },
		"another name":   func(req *http.Request) { req.Host = "rebound.example:8081" },
	} {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", r.URL()+"/subjects/x/versions", strings.NewReader(schema(v1)))
		change(req)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: status %d, want 403", what, resp.StatusCode)
		}
	}

	transport.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := registry.New(registry.Config{}, registry.Deps{}); err == nil {
		t.Error("no listener was taken")
	}
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := registry.New(registry.Config{}, registry.Deps{Listener: ln}); err == nil || !strings.Contains(err.Error(), "not a loopback") {
		t.Errorf("listener on all addresses: %v", err)
	}
	if _, err := registry.NewHandler(registry.Config{Compatibility: "odd"}, nil); err == nil {
		t.Error("an unknown level was taken")
	}
}

// FuzzHandler sends any body to every address that takes one. No answer may be a 5xx, none may break the registry, and a
// schema that was taken must be there after a restart under the id that was given.
func FuzzHandler(f *testing.F) {
	for _, s := range []string{v1, v2, noDef, retyped, `"string"`, `{"type":"nonsense"}`, `{"type":["null","int"]}`, `{"type":"record","name":"R","fields":[{"name":"n","type":["null","R"]}]}`} {
		f.Add("s", schema(s))
	}
	f.Add("a/b", `{"compatibility":"FULL","mode":"READONLY"}`)
	f.Add("..", `[]`)
	f.Fuzz(func(t *testing.T, subject, body string) {
		if len(body) > 4<<10 || len(subject) > 300 || subject == "" {
			return // bounded
		}
		store := registry.Memory()
		a := open(t, store)
		a.want("POST", "/subjects/s/versions", schema(v1), 200, `"id":1`)
		path := escape(subject)
		for _, r := range [][2]string{
			{"POST", "/subjects/" + path + "/versions"},
			{"POST", "/subjects/" + path},
			{"POST", "/compatibility/subjects/" + path + "/versions?verbose=true"},
			{"PUT", "/config/" + path},
			{"PUT", "/mode/" + path},
			{"PUT", "/config"},
			{"GET", "/subjects/" + path + "/versions"},
		} {
			if code, got := a.do(r[0], r[1], body); code >= 500 {
				t.Errorf("%s %q: %d %s", r[0], r[1], code, got)
			}
		}
		_, before := a.do("GET", "/schemas", "")
		if _, after := open(t, store).do("GET", "/schemas", ""); after != before {
			t.Errorf("after a restart\n%s\nbefore it\n%s", after, before)
		}
	})
}

// escape makes any text one path element, which url.PathEscape does not for "." and "..".
func escape(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		b.WriteByte('%')
		b.WriteByte(hex[s[i]>>4])
		b.WriteByte(hex[s[i]&15])
	}
	return b.String()
}
