package oktasim_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/oktasim"
)

// clock is a clock that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 5, 6, 7, 8, 9, 123e6, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
	return c.t
}

// still is an org that nothing moves but the test: no Run, no network, a clock set by hand.
type still struct {
	*oktasim.Org
	*clock
	t testing.TB
}

func newStill(t testing.TB, cfg oktasim.Config) *still {
	t.Helper()
	c := newClock()
	cfg.Now = c.now
	org, err := oktasim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &still{org, c, t}
}

func (s *still) do(method, path, auth, body string, header ...string) answer {
	s.t.Helper()
	r := httptest.NewRequestWithContext(s.t.Context(), method, "http://org.test"+strings.TrimPrefix(path, "http://org.test"), strings.NewReader(body))
	if auth != "" {
		r.Header.Set("Authorization", auth)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return answer{w.Code, w.Result().Header, w.Body.Bytes()}
}

func (s *still) get(path string) answer {
	s.t.Helper()
	return s.do(http.MethodGet, path, "SSWS "+oktasim.DefaultToken, "")
}

// event is a small event of one's own.
func event(uuid string, published time.Time, typ string) []byte {
	return fmt.Appendf(nil, `{"uuid":%q,"published":%q,"eventType":%q,"displayMessage":"Whole-Word test"}`, uuid, published.UTC().Format(time.RFC3339Nano), typ)
}

func uuids(t testing.TB, a answer) string {
	t.Helper()
	var out []string
	for _, e := range a.events(t) {
		var v struct{ UUID string }
		if err := json.Unmarshal(e, &v); err != nil {
			t.Fatal(err)
		}
		out = append(out, v.UUID)
	}
	return strings.Join(out, " ")
}

// Facts 1.1, 1.5: parameters and what is answered to bad ones.
func TestLogParameters(t *testing.T) {
	s := newStill(t, oktasim.Config{Limits: unlimited})
	if err := s.Burst(150); err != nil {
		t.Fatal(err)
	}
	day := func(n int) string { return s.now().Add(-time.Duration(n) * 24 * time.Hour).Format(time.RFC3339) }
	for name, tc := range map[string]struct {
		query  string
		status int
		code   string
		n      int
	}{
		"default limit":              {"", 200, "", 100},
		"limit":                      {"limit=7", 200, "", 7},
		"limit 0":                    {"limit=0", 200, "", 0},
		"limit 1000":                 {"limit=1000", 200, "", 150},
		"limit 1001":                 {"limit=1001", 400, "E0000001", 0},
		"limit no number":            {"limit=x", 400, "E0000001", 0},
		"sortOrder":                  {"sortOrder=UP", 400, "E0000001", 0},
		"since malformed":            {"since=yesterday", 400, "E0000001", 0},
		"since of 100 days":          {"since=" + day(100), 200, "", 100},
		"since of 181 days":          {"since=" + day(181), 400, "E0000053", 0},
		"since in the future":        {"since=" + day(-1), 200, "", 0},
		"cursor refused":             {"after=nonsense", 400, "E0000001", 0},
		"filter":                     {"limit=1000&filter=" + url.QueryEscape(`eventType eq "nothing.of.it"`), 200, "", 0},
		"filter operator":            {"filter=" + url.QueryEscape(`eventType co "user"`), 400, "E0000031", 0},
		"filter field":               {"filter=" + url.QueryEscape(`published gt "2020"`), 400, "E0000031", 0},
		"filter syntax":              {"filter=" + url.QueryEscape(`eventType eq`), 400, "E0000053", 0},
		"filter unclosed":            {"filter=" + url.QueryEscape(`(eventType eq "a"`), 400, "E0000053", 0},
		"eleven keywords":            {"q=" + url.QueryEscape("a b c d e f g h i j k"), 400, "E0000001", 0},
		"keyword of 41":              {"q=" + strings.Repeat("x", 41), 400, "E0000001", 0},
		"keyword found nowhere":      {"q=qwertzuiop", 200, "", 0},
		"keyword found, any case":    {"limit=5&q=SIGN-ON", 200, "", 5},
		"keyword is no part of word": {"limit=5&q=displayMessag", 200, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.get("/api/v1/logs?" + tc.query)
			if a.status != tc.status || a.code() != tc.code {
				t.Fatalf("status %d %s, want %d %s: %s", a.status, a.code(), tc.status, tc.code, a.body)
			}
			if tc.status == 200 && len(a.events(t)) != tc.n {
				t.Errorf("%d events, want %d", len(a.events(t)), tc.n)
			}
		})
	}
}

func TestFilterFindsTypes(t *testing.T) {
	s := newStill(t, oktasim.Config{Limits: unlimited})
	for i, typ := range []string{"a.b", "a.c", "x.y"} {
		if _, err := s.Emit(event("u"+strconv.Itoa(i), s.now(), typ)); err != nil {
			t.Fatal(err)
		}
	}
	for filter, want := range map[string]string{
		`eventType eq "a.b"`:                       "u0",
		`eventType eq "a.b" or eventType eq "x.y"`: "u0 u2",
		`eventType sw "a."`:                        "u0 u1",

		`(eventType sw "a." and eventType eq "a.c") OR eventType eq ""`: "u1",
	} {
		if got := uuids(t, s.get("/api/v1/logs?filter="+url.QueryEscape(filter))); got != want {
			t.Errorf("%s: %q, want %q", filter, got, want)
		}
	}
}

// Facts 1.2: a polling query is endless and in the order of persistence; published may go backwards.
func TestPollingIsEndlessAndByPersistence(t *testing.T) {
	s := newStill(t, oktasim.Config{Limits: unlimited})
	start := s.now()
	a := s.get("/api/v1/logs?limit=2&sortOrder=ASCENDING&since=" + start.Format(time.RFC3339Nano))
	if len(a.events(t)) != 0 || a.link("next") == "" || a.link("self") == "" {
		t.Fatalf("empty page: %v", a.header.Values("Link"))
	}
	if n := len(a.header.Values("Link")); n != 2 {
		t.Errorf("%d Link lines, want one a relation", n)
	}
	if !strings.HasPrefix(a.link("next"), "http://org.test/api/v1/logs?") {
		t.Errorf("next is %s: not absolute on the host used", a.link("next"))
	}
	if u, _ := url.Parse(a.link("next")); u.Query().Has("since") || !u.Query().Has("after") || u.Query().Get("limit") != "2" {
		t.Errorf("next of a poll is %s", u)
	}
	must := func(_ uint64, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.EmitLate(10*time.Second, event("late", s.now(), "t.t")))
	s.add(time.Second)
	must(s.Emit(event("one", s.now(), "t.t"), event("two", s.now(), "t.t"), event("three", s.now(), "t.t")))
	a = s.get(a.link("next"))
	if got := uuids(t, a); got != "one two" {
		t.Fatalf("page: %s", got)
	}
	a = s.get(a.link("next"))
	if got := uuids(t, a); got != "three" {
		t.Fatalf("page: %s", got)
	}
	again := a.link("next")
	for range 3 {
		if a = s.get(a.link("next")); uuids(t, a) != "" || a.link("next") != again {
			t.Fatalf("empty page moved: %s", a.link("next"))
		}
	}
	s.add(20 * time.Second)
	if a = s.get(again); uuids(t, a) != "late" {
		t.Errorf("the late event did not come: %s", uuids(t, a))
	}
	if got := uuids(t, s.get("/api/v1/logs?since="+url.QueryEscape(start.Add(5*time.Second).Format(time.RFC3339Nano)))); got != "late" {
		t.Errorf("since of a poll compares with the time of persistence: got %q", got)
	}
	if got := uuids(t, s.get("/api/v1/logs?limit=1000&since="+url.QueryEscape(start.Format(time.RFC3339Nano)))); got != "one two three late" {
		t.Errorf("again from the start: %q", got)
	}
}

// Facts 1.2: a bounded query is finite, by published, and lacks what comes late until it is asked again.
func TestBoundedQueryIsFiniteAndByPublished(t *testing.T) {
	s := newStill(t, oktasim.Config{Limits: unlimited})
	start := s.now()
	if _, err := s.EmitLate(time.Minute, event("late", s.now(), "t.t")); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		s.add(time.Second)
		if _, err := s.Emit(event("e"+strconv.Itoa(i), s.now(), "t.t")); err != nil {
			t.Fatal(err)
		}
	}
	q := "/api/v1/logs?limit=2&since=" + start.Format(time.RFC3339Nano) + "&until=" + start.Add(5*time.Second).Format(time.RFC3339Nano)
	walk := func(next string) (got []string) {
		for next != "" {
			a := s.get(next)
			got = append(got, uuids(t, a))
			next = a.link("next")
		}
		return got
	}
	if got := strings.Join(walk(q), "|"); got != "e0 e1|e2 e3" {
		t.Errorf("first: %s", got)
	}
	s.add(2 * time.Minute)
	if got := strings.Join(walk(q), "|"); got != "late e0|e1 e2|e3" {
		t.Errorf("once the late one is there: %s", got)
	}
	if got := strings.Join(walk(q+"&sortOrder=DESCENDING"), "|"); got != "e3 e2|e1 e0|late" {
		t.Errorf("descending: %s", got)
	}
	if u, _ := url.Parse(s.get(q).link("next")); !u.Query().Has("since") || !u.Query().Has("until") || !u.Query().Has("after") {
		t.Errorf("next of a bounded query: %s", u)
	}
	if a := s.get("/api/v1/logs?sortOrder=DESCENDING&limit=1"); uuids(t, a) != "e4" {
		t.Errorf("newest: %s", uuids(t, a))
	}
}

func TestRetentionIs90Days(t *testing.T) {
	s := newStill(t, oktasim.Config{Limits: unlimited})
	if _, err := s.Emit(event("old", s.now(), "t.t")); err != nil {
		t.Fatal(err)
	}
	s.add(91 * 24 * time.Hour)
	if _, err := s.Emit(event("new", s.now(), "t.t")); err != nil {
		t.Fatal(err)
	}
	since := s.now().Add(-100 * 24 * time.Hour).Format(time.RFC3339)
	if got := uuids(t, s.get("/api/v1/logs?since="+since)); got != "new" {
		t.Errorf("got %q", got)
	}
}

// Facts 1.4: windows of 60 s that begin with the first request; half of the bucket for one token; concurrency 429 with 0 and 0.
func TestRateLimits(t *testing.T) {
	s := newStill(t, oktasim.Config{APITokens: []string{"a", "b", "c"}, Limits: map[string]int{"logs": 6}})
	ask := func(token string) answer { return s.do("GET", "/api/v1/logs?limit=1", "SSWS "+token, "") }
	s.add(31 * time.Second)
	begin := s.now()
	for i := range 3 {
		a := ask("a")
		if a.status != 200 || a.header.Get("X-Rate-Limit-Limit") != "3" || a.header.Get("X-Rate-Limit-Remaining") != strconv.Itoa(2-i) {
			t.Fatalf("request %d: %d %v", i, a.status, a.header)
		}
	}
	a := ask("a")
	if a.status != 429 || a.code() != "E0000047" || a.header.Get("X-Rate-Limit-Remaining") != "0" {
		t.Fatalf("fourth: %d %s %v", a.status, a.code(), a.header)
	}
	reset, _ := strconv.ParseInt(a.header.Get("X-Rate-Limit-Reset"), 10, 64)
	if at := time.Unix(reset, 0); at.Before(begin.Add(60*time.Second)) && begin.Add(60*time.Second).Sub(at) > time.Second || at.After(begin.Add(62*time.Second)) {
		t.Errorf("reset %s after the first request", at.Sub(begin))
	}
	date, err := http.ParseTime(a.header.Get("Date"))
	if err != nil || !date.Equal(begin.Truncate(time.Second)) {
		t.Errorf("Date %s", a.header.Get("Date"))
	}
	for range 3 {
		if a := ask("b"); a.status != 200 {
			t.Fatalf("another token: %d", a.status)
		}
	}
	if a := ask("c"); a.status != 429 {
		t.Errorf("beyond the org's bucket: %d", a.status)
	}
	s.add(59 * time.Second)
	if a := ask("a"); a.status != 429 {
		t.Errorf("after 59 s: %d", a.status)
	}
	s.add(time.Second)
	if a := ask("a"); a.status != 200 {
		t.Errorf("after 60 s: %d", a.status)
	}
}

func TestDefaultLogLimitIs60AMinute(t *testing.T) {
	s := newStill(t, oktasim.Config{})
	for i := range 60 {
		if a := s.get("/api/v1/logs?limit=1"); a.status != 200 {
			t.Fatalf("request %d: %d", i, a.status)
		}
	}
	if a := s.get("/api/v1/logs?limit=1"); a.status != 429 {
		t.Errorf("61st: %d", a.status)
	}
}

// Facts 1.5: the error of each kind, in Okta's form.
func TestFaultsInAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		fault  oktasim.Fault
		path   string
		status int
		code   string
		remain string
	}{
		"rate limit":  {oktasim.Fault{Kind: oktasim.FaultRateLimit}, "/api/v1/logs", 429, "E0000047", "0"},
		"concurrency": {oktasim.Fault{Kind: oktasim.FaultConcurrency}, "/api/v1/logs", 429, "E0000047", "0"},
		"timeout":     {oktasim.Fault{Kind: oktasim.FaultTimeout}, "/api/v1/logs", 500, "E0000009", ""},
		"internal":    {oktasim.Fault{Kind: oktasim.FaultInternal}, "/api/v1/logs", 500, "E0000053", ""},
		"read only":   {oktasim.Fault{Kind: oktasim.FaultReadOnly}, "/api/v1/logs", 503, "E0000010", ""},
		"cursor":      {oktasim.Fault{Kind: oktasim.FaultCursor}, "/api/v1/logs?after=5_1", 400, "E0000001", ""},
		"revoked":     {oktasim.Fault{Kind: oktasim.FaultRevoked}, "/api/v1/users", 401, "E0000011", ""},
		"other path":  {oktasim.Fault{Kind: oktasim.FaultInternal, Path: "/api/v1/users"}, "/api/v1/users", 500, "E0000053", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStill(t, oktasim.Config{Limits: unlimited})
			tc.fault.Count = 2
			if err := s.Inject(tc.fault); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				a := s.get(tc.path)
				if a.status != tc.status || a.code() != tc.code {
					t.Fatalf("%d %s: %s", a.status, a.code(), a.body)
				}
				if tc.remain != "" && a.header.Get("X-Rate-Limit-Remaining") != tc.remain {
					t.Errorf("remaining %q", a.header.Get("X-Rate-Limit-Remaining"))
				}
				var form map[string]any
				if err := json.Unmarshal(a.body, &form); err != nil || form["errorSummary"] == "" || form["errorLink"] != tc.code || form["errorId"] == "" || form["errorCauses"] == nil {
					t.Errorf("error form: %s", a.body)
				}
			}
			if a := s.get(tc.path); a.status != 200 {
				t.Errorf("after the fault: %d", a.status)
			}
		})
	}
	s := newStill(t, oktasim.Config{Limits: unlimited})
	if err := s.Inject(oktasim.Fault{Kind: oktasim.FaultReadOnly, For: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if a := s.get("/api/v1/logs"); a.status != 503 {
		t.Errorf("within the minute: %d", a.status)
	}
	s.add(time.Minute)
	if a := s.get("/api/v1/logs"); a.status != 200 || len(s.Faults()) != 0 {
		t.Errorf("after the minute: %d", a.status)
	}
	if err := s.Inject(oktasim.Fault{Kind: "no such"}); err == nil || !strings.Contains(err.Error(), "choose of") {
		t.Errorf("unknown kind: %v", err)
	}
}

func TestWhoMayAsk(t *testing.T) {
	s := newStill(t, oktasim.Config{Limits: unlimited})
	for auth, status := range map[string]int{"": 401, "SSWS wrong": 401, "Bearer wrong": 401, "SSWS " + oktasim.DefaultToken: 200} {
		if a := s.do("GET", "/api/v1/logs", auth, ""); a.status != status || status == 401 && a.code() != "E0000011" {
			t.Errorf("%q: %d %s", auth, a.status, a.code())
		}
	}
	if a := s.do("GET", "/.well-known/okta-organization", "", ""); a.status != 200 || !bytes.Contains(a.body, []byte(s.ID())) || !bytes.Contains(a.body, []byte(`"pipeline":"idx"`)) {
		t.Errorf("well-known: %d %s", a.status, a.body)
	}
	if a := s.get("/api/v1/nothing"); a.status != 404 || a.code() != "E0000007" {
		t.Errorf("unknown path: %d %s", a.status, a.code())
	}
	if a := s.do("DELETE", "/api/v1/logs", "SSWS "+oktasim.DefaultToken, ""); a.status != 405 || a.code() != "E0000022" {
		t.Errorf("wrong method: %d %s", a.status, a.code())
	}
}

// Facts 1.6: tokens of service apps, both ways to ask.
func TestOAuthTokens(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	s := newStill(t, oktasim.Config{Limits: unlimited, Clients: []oktasim.Client{
		{ID: "app", PublicKey: public}, {ID: "integration", Secret: "hush", Scopes: []string{"okta.users.read"}},
	}})
	assertion := func(sub, aud string, life time.Duration, k crypto.Signer) string {
		b64 := base64.RawURLEncoding.EncodeToString
		text := b64([]byte(`{"alg":"ES256"}`)) + "." + b64(fmt.Appendf(nil, `{"iss":%q,"sub":%q,"aud":%q,"exp":%d}`, sub, sub, aud, s.now().Add(life).Unix()))
		sum := sha256.Sum256([]byte(text))
		r, v, err := ecdsa.Sign(rand.Reader, k.(*ecdsa.PrivateKey), sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return text + "." + b64(append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...))
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const aud = "http://org.test/oauth2/v1/token"
	form := func(scope, jwt string) string {
		return url.Values{"grant_type": {"client_credentials"}, "scope": {scope}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {jwt}}.Encode()
	}
	for name, tc := range map[string]struct {
		body, basic string
		status      int
		err         string
	}{
		"assertion":     {form("okta.logs.read", assertion("app", aud, time.Minute, key)), "", 200, ""},
		"signature":     {form("okta.logs.read", assertion("app", aud, time.Minute, stranger)), "", 401, "invalid_client"},
		"expired":       {form("okta.logs.read", assertion("app", aud, -time.Minute, key)), "", 401, "invalid_client"},
		"too long":      {form("okta.logs.read", assertion("app", aud, 2*time.Hour, key)), "", 401, "invalid_client"},
		"audience":      {form("okta.logs.read", assertion("app", "http://org.test", time.Minute, key)), "", 401, "invalid_client"},
		"unknown":       {form("okta.logs.read", assertion("other", aud, time.Minute, key)), "", 401, "invalid_client"},
		"no scope":      {form("", assertion("app", aud, time.Minute, key)), "", 400, "invalid_scope"},
		"secret":        {"grant_type=client_credentials&scope=okta.users.read", "hush", 200, ""},
		"wrong secret":  {"grant_type=client_credentials&scope=okta.users.read", "oops", 401, "invalid_client"},
		"foreign scope": {"grant_type=client_credentials&scope=okta.logs.read", "hush", 400, "invalid_scope"},
		"grant type":    {"grant_type=password", "hush", 400, "unsupported_grant_type"},
	} {
		t.Run(name, func(t *testing.T) {
			auth := ""
			if tc.basic != "" {
				auth = "Basic " + base64.StdEncoding.EncodeToString([]byte("integration:"+tc.basic))
			}
			a := s.do("POST", "/oauth2/v1/token", auth, tc.body, "Content-Type", "application/x-www-form-urlencoded")
			var v struct {
				Error       string `json:"error"`
				AccessToken string `json:"access_token"`
				TokenType   string `json:"token_type"`
				ExpiresIn   int    `json:"expires_in"`
			}
			if err := json.Unmarshal(a.body, &v); err != nil || a.status != tc.status || v.Error != tc.err {
				t.Fatalf("%d %s", a.status, a.body)
			}
			if tc.status != 200 {
				return
			}
			if v.TokenType != "Bearer" || v.ExpiresIn != 3600 {
				t.Errorf("%s", a.body)
			}
			logs := s.do("GET", "/api/v1/logs", "Bearer "+v.AccessToken, "")
			if tc.basic == "" && logs.status != 200 {
				t.Errorf("logs: %d", logs.status)
			}
			if tc.basic != "" && (logs.status != 403 || !strings.Contains(logs.header.Get("WWW-Authenticate"), "insufficient_scope")) {
				t.Errorf("logs without the scope: %d %v", logs.status, logs.header)
			}
		})
	}
	// As one SDK sends it: in the query.
	a := s.do("POST", "/oauth2/v1/token?"+form("okta.logs.read", assertion("app", aud, time.Minute, key)), "", "", "Content-Type", "application/x-www-form-urlencoded")
	var v struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(a.body, &v); err != nil || a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if s.add(59 * time.Minute); s.do("GET", "/api/v1/logs", "Bearer "+v.AccessToken, "").status != 200 {
		t.Error("token ended before its hour")
	}
	if s.add(2 * time.Minute); s.do("GET", "/api/v1/logs", "Bearer "+v.AccessToken, "").status != 401 {
		t.Error("token outlived its hour")
	}
}

// Facts 5: users and devices.
func TestDirectory(t *testing.T) {
	s := newStill(t, oktasim.Config{Limits: unlimited, Users: 450})
	walk := func(next string) (n, pages int) {
		for next != "" {
			a := s.get(next)
			n += len(a.events(t))
			pages++
			next = a.link("next")
		}
		return n, pages
	}
	if n, pages := walk("/api/v1/users"); n != 450 || pages != 3 {
		t.Errorf("%d users on %d pages", n, pages)
	}
	if n, pages := walk("/api/v1/users?limit=500"); n != 450 || pages != 3 {
		t.Errorf("%d users on %d pages of at most 200", n, pages)
	}
	if n, _ := walk("/api/v1/users?q=a"); n > 10 || n == 0 {
		t.Errorf("q finds %d", n)
	}
	before := s.now()
	s.add(time.Hour)
	if _, err := s.Play(t.Context(), "account-contained", 0); err != nil {
		t.Fatal(err)
	}
	if n, _ := walk("/api/v1/users?search=" + url.QueryEscape(`lastUpdated gt "`+before.Format("2006-01-02T15:04:05.000Z")+`"`)); n != 1 {
		t.Errorf("%d users changed", n)
	}
	a := s.get("/api/v1/users?search=" + url.QueryEscape(`status eq "SUSPENDED"`))
	var users []struct {
		ID      string
		Profile struct{ Login string }
	}
	if err := json.Unmarshal(a.body, &users); err != nil || len(users) != 1 {
		t.Fatalf("suspended: %s", a.body)
	}
	for _, key := range []string{users[0].ID, users[0].Profile.Login} {
		if a := s.get("/api/v1/users/" + key); a.status != 200 || !bytes.Contains(a.body, []byte(users[0].ID)) {
			t.Errorf("%s: %d", key, a.status)
		}
	}
	if a := s.get("/api/v1/users/00unobody"); a.status != 404 {
		t.Errorf("nobody: %d", a.status)
	}
	n, _ := walk("/api/v1/devices?limit=20")
	if n < 200 || n > 350 {
		t.Errorf("%d devices", n)
	}
	a = s.get("/api/v1/devices?limit=1&expand=user")
	var devices []struct {
		ID       string
		Embedded struct{ Users []json.RawMessage } `json:"_embedded"`
	}
	if err := json.Unmarshal(a.body, &devices); err != nil || len(devices) != 1 || len(devices[0].Embedded.Users) != 1 {
		t.Fatalf("devices: %s", a.body)
	}
	if a := s.get("/api/v1/devices/" + devices[0].ID + "/users"); a.status != 200 || !bytes.Contains(a.body, []byte("managementStatus")) {
		t.Errorf("users of a device: %d %s", a.status, a.body)
	}
	classic := newStill(t, oktasim.Config{Limits: unlimited, Engine: "v1"})
	if a := classic.get("/api/v1/devices"); a.status != 401 || a.code() != "E0000015" {
		t.Errorf("devices of a Classic org: %d %s", a.status, a.code())
	}
}
