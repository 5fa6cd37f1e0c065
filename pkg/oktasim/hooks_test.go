package oktasim_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/oktasim/simtest"
)

// receiver is an endpoint for hooks with a script: what it answers, one status after the other, then 200.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	statuses []int // 0: hang
	got      []delivery
	verified []http.Header
	wrong    bool // does not return the challenge
}

type delivery struct {
	header http.Header
	body   []byte
	env    struct {
		EventType, EventTypeVersion, CloudEventsVersion, Source, EventID, EventTime, ContentType string
		Data                                                                                     struct{ Events []map[string]any }
	}
}

func newReceiver(t testing.TB, statuses ...int) *receiver {
	r := &receiver{statuses: statuses}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) serve(w http.ResponseWriter, req *http.Request) {
	if c := req.Header.Get("X-Okta-Verification-Challenge"); req.Method == http.MethodGet {
		r.mu.Lock()
		r.verified = append(r.verified, req.Header)
		status := 200
		if len(r.statuses) > 0 {
			status, r.statuses = r.statuses[0], r.statuses[1:]
		}
		if r.wrong {
			c = "wrong"
		}
		r.mu.Unlock()
		if status != 200 {
			w.WriteHeader(status)
			return
		}
		fmt.Fprintf(w, `{"verification":%q}`, c)
		return
	}
	b, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	d := delivery{header: req.Header, body: b}
	_ = json.Unmarshal(b, &d.env)
	r.mu.Lock()
	status := 200
	if len(r.statuses) > 0 {
		status, r.statuses = r.statuses[0], r.statuses[1:]
	}
	r.got = append(r.got, d)
	r.mu.Unlock()
	if status == 0 {
		<-req.Context().Done()
		return
	}
	w.WriteHeader(status)
}

func (r *receiver) deliveries() []delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]delivery(nil), r.got...)
}

func hookJSON(name, uri string, types ...string) string {
	b, err := json.Marshal(types)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf(`{"name":%q,"events":{"type":"EVENT_TYPE","items":%s},"channel":{"type":"HTTP","version":"1.0.0","config":{"uri":%q,"headers":[{"key":"X-Site","value":"dublin"}],"authScheme":{"type":"HEADER","key":"Authorization","value":"hush"}}}}`, name, b, uri)
}

const ssws = "SSWS " + oktasim.DefaultToken

// makeHook creates and verifies a hook and returns its path.
func makeHook(t testing.TB, base, name, uri string, types ...string) string {
	t.Helper()
	a := do(t, "POST", base+"/api/v1/eventHooks", ssws, hookJSON(name, uri, types...))
	var v struct{ ID, Status, VerificationStatus string }
	if err := json.Unmarshal(a.body, &v); err != nil || a.status != 200 || v.Status != "ACTIVE" || v.VerificationStatus != "UNVERIFIED" {
		t.Fatalf("create: %d %s", a.status, a.body)
	}
	path := base + "/api/v1/eventHooks/" + v.ID
	if a := do(t, "POST", path+"/lifecycle/verify", ssws, ""); a.status != 200 || !strings.Contains(string(a.body), `"VERIFIED"`) {
		t.Fatalf("verify: %d %s", a.status, a.body)
	}
	return path
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 2000 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not within 20s: %s", what)
}

// Facts 2.1, 2.5: what a hook may be.
func TestHookIsChecked(t *testing.T) {
	s := newStill(t, oktasim.Config{Limits: unlimited})
	good := hookJSON("h", "https://receiver.example/okta", "user.session.start")
	for name, tc := range map[string]struct {
		body   string
		status int
	}{
		"good":             {good, 200},
		"same name":        {good, 400},
		"no JSON":          {"{", 400},
		"no name":          {hookJSON("", "https://r.example/", "user.session.start"), 400},
		"no types":         {hookJSON("a", "https://r.example/"), 400},
		"not eligible":     {hookJSON("a", "https://r.example/", "policy.evaluate_sign_on"), 400},
		"unknown type":     {hookJSON("a", "https://r.example/", "no.such.type"), 400},
		"http":             {hookJSON("a", "http://r.example/", "user.session.start"), 400},
		"white space":      {hookJSON("a", "https://r.example/a b", "user.session.start"), 400},
		"1025 characters":  {hookJSON("a", "https://r.example/"+strings.Repeat("x", 1025), "user.session.start"), 400},
		"301 types":        {hookJSON("a", "https://r.example/", strings.Split(strings.Repeat("user.session.start,", 300)+"user.session.end", ",")...), 400},
		"loopback http":    {hookJSON("b", "http://127.0.0.1:9/", "user.session.start"), 200},
		"reserved header":  {strings.Replace(hookJSON("c", "https://r.example/", "user.session.start"), "X-Site", "Accept", 1), 400},
		"unknown channel":  {strings.Replace(hookJSON("c", "https://r.example/", "user.session.start"), `"HTTP"`, `"FTP"`, 1), 400},
		"header auth only": {strings.Replace(hookJSON("c", "https://r.example/", "user.session.start"), `"HEADER"`, `"OAUTH2"`, 1), 400},
	} {
		if name == "same name" {
			continue
		}
		if a := s.do("POST", "/api/v1/eventHooks", ssws, tc.body); a.status != tc.status || a.status == 400 && a.code() != "E0000001" && a.code() != "E0000003" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		} else if strings.Contains(string(a.body), "hush") {
			t.Errorf("%s: the secret is returned", name)
		}
	}
	if a := s.do("POST", "/api/v1/eventHooks", ssws, good); a.status != 400 {
		t.Errorf("same name: %d", a.status)
	}
	var ids []struct{ ID string }
	a := s.get("/api/v1/eventHooks")
	if err := json.Unmarshal(a.body, &ids); err != nil || len(ids) != 2 || strings.Contains(string(a.body), "hush") {
		t.Fatalf("list: %s", a.body)
	}
	path := "/api/v1/eventHooks/" + ids[0].ID
	if a := s.do("DELETE", path, ssws, ""); a.status != 400 {
		t.Errorf("delete of an active hook: %d", a.status)
	}
	if a := s.do("POST", path+"/lifecycle/deactivate", ssws, ""); a.status != 200 || !strings.Contains(string(a.body), `"INACTIVE"`) {
		t.Errorf("deactivate: %d %s", a.status, a.body)
	}
	if a := s.do("DELETE", path, ssws, ""); a.status != 204 {
		t.Errorf("delete: %d", a.status)
	}
	if a := s.get(path); a.status != 404 {
		t.Errorf("deleted: %d", a.status)
	}
	for i := range 30 {
		a := s.do("POST", "/api/v1/eventHooks", ssws, hookJSON(fmt.Sprint("n", i), "https://r.example/", "user.session.start"))
		if want := map[bool]int{true: 200, false: 400}[i < 24]; a.status != want {
			t.Errorf("active hook %d: %d", i+2, a.status)
		}
	}
}

// Facts 2.2: one GET with the challenge and the header, one retry after a 5xx, then 400.
func TestHookVerification(t *testing.T) {
	for name, tc := range map[string]struct {
		statuses []int
		wrong    bool
		status   int
		asked    int
	}{
		"at once":         {nil, false, 200, 1},
		"second time":     {[]int{500}, false, 200, 2},
		"never":           {[]int{500, 500}, false, 400, 2},
		"refused":         {[]int{401}, false, 400, 1},
		"wrong challenge": {nil, true, 400, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStill(t, oktasim.Config{Limits: unlimited, Client: &http.Client{Transport: transport}})
			r := newReceiver(t, tc.statuses...)
			r.wrong = tc.wrong
			a := s.do("POST", "/api/v1/eventHooks", ssws, hookJSON("h", r.URL, "user.session.start"))
			var v struct{ ID string }
			if err := json.Unmarshal(a.body, &v); err != nil {
				t.Fatal(err)
			}
			a = s.do("POST", "/api/v1/eventHooks/"+v.ID+"/lifecycle/verify", ssws, "")
			transport.CloseIdleConnections()
			if a.status != tc.status || len(r.verified) != tc.asked {
				t.Fatalf("%d after %d GETs: %s", a.status, len(r.verified), a.body)
			}
			if h := r.verified[0]; h.Get("Authorization") != "hush" || h.Get("X-Site") != "dublin" {
				t.Errorf("headers of the GET: %v", h)
			}
			if a.status == 200 {
				a = s.do("PUT", "/api/v1/eventHooks/"+v.ID, ssws, strings.Replace(hookJSON("h2", r.URL, "user.session.end"), `,"value":"hush"`, "", 1))
				if a.status != 200 || !strings.Contains(string(a.body), `"UNVERIFIED"`) || !strings.Contains(string(a.body), "user.session.end") {
					t.Errorf("replaced without its secret: %d %s", a.status, a.body)
				}
			}
		})
	}
}

// Facts 2.1, 2.3, 2.4: one POST for events close in time, in the hook's shape; only the types asked for.
func TestHookDelivery(t *testing.T) {
	org := simtest.Start(t, oktasim.Config{Limits: unlimited, HookLinger: 500 * time.Millisecond})
	r := newReceiver(t)
	path := makeHook(t, org.URL(), "h", r.URL, "user.session.start", "user.account.reset_password", "user.mfa.factor.reset_all", "user.account.privilege.grant", "system.api_token.create")
	if _, err := org.Play(t.Context(), "helpdesk-takeover", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "five events acknowledged", func() bool { return org.Truth().Summary().Hook["acked"] == 5 })
	ds := r.deliveries()
	if len(ds) != 1 {
		t.Fatalf("%d POSTs", len(ds))
	}
	d := ds[0]
	e := d.env
	if e.EventType != "com.okta.event_hook" || e.EventTypeVersion != "1.0" || e.CloudEventsVersion != "0.1" || e.Source != path || e.EventID == "" || e.ContentType != "application/json" {
		t.Errorf("envelope: %+v", e)
	}
	if _, err := time.Parse(time.RFC3339, e.EventTime); err != nil {
		t.Error(err)
	}
	if h := d.header; h.Get("Authorization") != "hush" || h.Get("X-Site") != "dublin" || h.Get("Content-Type") != "application/json" || h.Get("Accept") != "application/json" {
		t.Errorf("headers: %v", h)
	}
	if len(e.Data.Events) != 5 {
		t.Fatalf("%d events", len(e.Data.Events))
	}
	api := map[string]map[string]any{}
	for _, raw := range get(t, org.URL()+"/api/v1/logs?limit=1000").events(t) {
		var v map[string]any
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		api[v["uuid"].(string)] = v
	}
	for _, ev := range e.Data.Events {
		twin := api[ev["uuid"].(string)]
		if twin == nil {
			t.Fatalf("%v is not in the System Log", ev["uuid"])
		}
		for _, k := range []string{"device", "insertionTimestamp"} {
			if v, ok := ev[k]; !ok || v != nil {
				t.Errorf("%s is %v", k, v)
			}
		}
		for k, v := range ev["securityContext"].(map[string]any) {
			if v != nil {
				t.Errorf("securityContext.%s is %v", k, v)
			}
		}
		if _, ok := ev["request"]; ok {
			t.Error("request is there")
		}
		chain, _ := json.Marshal(ev["client"].(map[string]any)["ipChain"])
		if want, _ := json.Marshal(twin["request"].(map[string]any)["ipChain"]); string(chain) != string(want) {
			t.Errorf("client.ipChain %s, want %s", chain, want)
		}
		for _, k := range []string{"actor", "target", "outcome", "debugContext", "published", "eventType", "transaction", "authenticationContext"} {
			a, _ := json.Marshal(ev[k])
			if b, _ := json.Marshal(twin[k]); string(a) != string(b) {
				t.Errorf("%s differs: %s, %s", k, a, b)
			}
		}
		if id := path[strings.LastIndexByte(path, '/')+1:]; ev["debugContext"].(map[string]any)["debugData"].(map[string]any)["targetEventHookIds"] != id {
			t.Error("debugData does not carry the hook's id")
		}
	}
}

// Facts 2.1: one retry after a timeout or a 5xx, none after a 4xx; only a failure is in the System Log.
func TestHookRetries(t *testing.T) {
	for name, tc := range map[string]struct {
		statuses []int
		posts    int
		want     string
	}{
		"200":            {nil, 1, "acked"},
		"204":            {[]int{204}, 1, "acked"},
		"503 then 200":   {[]int{503}, 2, "acked"},
		"503 twice":      {[]int{503, 503}, 2, "failed"},
		"hang then 200":  {[]int{0}, 2, "acked"},
		"hang twice":     {[]int{0, 0}, 2, "failed"},
		"401":            {[]int{401}, 1, "failed"},
		"429":            {[]int{429}, 1, "failed"},
		"redirect":       {[]int{302}, 1, "failed"},
		"503 then a 400": {[]int{503, 400}, 2, "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			org := simtest.Start(t, oktasim.Config{Limits: unlimited, HookTimeout: time.Second})
			r := newReceiver(t)
			makeHook(t, org.URL(), "h", r.URL, "user.lifecycle.suspend")
			r.mu.Lock()
			r.statuses = tc.statuses
			r.mu.Unlock()
			if _, err := org.Play(t.Context(), "account-contained", 0); err != nil {
				t.Fatal(err)
			}
			eventually(t, tc.want, func() bool { return org.Truth().Summary().Hook[tc.want] == 1 })
			ds := r.deliveries()
			if len(ds) != tc.posts {
				t.Errorf("%d POSTs, want %d", len(ds), tc.posts)
			}
			for _, d := range ds {
				if string(d.body) != string(ds[0].body) {
					t.Error("the retry differs")
				}
			}
			failures := func() (n int) {
				for range org.Truth().Events(oktasim.Query{EventType: "event_hook.delivery"}) {
					n++
				}
				return n
			}
			if tc.want == "failed" {
				eventually(t, "event_hook.delivery", func() bool { return failures() == 1 })
			} else if failures() != 0 {
				t.Error("a success is logged")
			}
		})
	}
}

func TestHookFaultsAndCap(t *testing.T) {
	org := simtest.Start(t, oktasim.Config{Limits: unlimited, HookDailyCap: 10, HookLinger: time.Millisecond})
	r := newReceiver(t)
	makeHook(t, org.URL(), "h", r.URL, "user.lifecycle.suspend")
	once := func() {
		t.Helper()
		if _, err := org.Play(t.Context(), "account-contained", 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []oktasim.Fault{{Kind: oktasim.FaultHookDrop, Count: 1}, {Kind: oktasim.FaultHookTwice, Count: 1}} {
		if err := org.Inject(f); err != nil {
			t.Fatal(err)
		}
	}
	once()
	eventually(t, "a dropped delivery", func() bool { return org.Truth().Summary().Hook["dropped"] == 1 })
	once()
	eventually(t, "the same delivery twice", func() bool {
		ds := r.deliveries()
		return len(ds) == 2 && ds[0].env.EventID == ds[1].env.EventID
	})
	for range 10 {
		once()
	}
	eventually(t, "two beyond the cap", func() bool {
		s := org.Truth().Summary()
		return s.Hook["dropped"] == 3 && s.Hook["acked"] == 9 && s.Hooks.Capped == 2
	})
	count := func(typ string) (n int) {
		for range org.Truth().Events(oktasim.Query{EventType: typ}) {
			n++
		}
		return n
	}
	eventually(t, "warning and violation", func() bool {
		return count("system.operation.rate_limit.warning") == 1 && count("system.operation.rate_limit.violation") == 1
	})
}

func TestHookSplitsWhatIsTooBig(t *testing.T) {
	org := simtest.Start(t, oktasim.Config{Limits: unlimited})
	r := newReceiver(t)
	makeHook(t, org.URL(), "h", r.URL, "user.session.start")
	big := fmt.Appendf(nil, `{"uuid":"b","eventType":"user.session.start","displayMessage":%q}`, strings.Repeat("x", 3<<20))
	small := []byte(`{"uuid":"s","eventType":"user.session.start"}`)
	if _, err := org.Emit(small, big, small, []byte(`not JSON`)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "three events", func() bool { return org.Truth().Summary().Hook["acked"] == 3 })
	if n := len(r.deliveries()); n != 3 {
		t.Errorf("%d POSTs", n)
	}
}
