package oktasim

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// apiError is an answer in Okta's error form.
type apiError struct {
	status  int
	code    string
	summary string
	causes  []string
}

func (e *apiError) Error() string { return e.code + ": " + e.summary }

func invalid(what, cause string) *apiError {
	return &apiError{http.StatusBadRequest, "E0000001", "Api validation failed: " + what, []string{cause}}
}

func notFound(id, kind string) *apiError {
	return &apiError{http.StatusNotFound, "E0000007", "Not found: Resource not found: " + id + " (" + kind + ")", nil}
}

var (
	errToken       = &apiError{http.StatusUnauthorized, "E0000011", "Invalid token provided", nil}
	errLimit       = &apiError{http.StatusTooManyRequests, "E0000047", "API call exceeded rate limit due to too many requests.", nil}
	errInternal    = &apiError{http.StatusInternalServerError, "E0000009", "Internal Server Error", nil}
	errInternal53  = &apiError{http.StatusInternalServerError, "E0000053", "Internal error while evaluating the query.", nil}
	errReadOnly    = &apiError{http.StatusServiceUnavailable, "E0000010", "Service is in read only mode", nil}
	errNotEnabled  = &apiError{http.StatusUnauthorized, "E0000015", "You do not have permission to access the feature you are requesting", nil}
	errMethod      = &apiError{http.StatusMethodNotAllowed, "E0000022", "The endpoint does not support the provided HTTP method", nil}
	errOldSince    = &apiError{http.StatusBadRequest, "E0000053", "Invalid filter: since must not be more than 180 days in the past", nil}
	errCursorParam = invalid("after", "after: The cursor is invalid or has expired")
)

func (o *Org) fail(w http.ResponseWriter, e *apiError) {
	type cause struct {
		Summary string `json:"errorSummary"`
	}
	causes := make([]cause, len(e.causes))
	for i, c := range e.causes {
		causes[i].Summary = c
	}
	o.genMu.Lock()
	id := o.traffic.id("oae", 22)
	o.genMu.Unlock()
	reply(w, e.status, map[string]any{"errorCode": e.code, "errorSummary": e.summary, "errorLink": e.code, "errorId": id, "errorCauses": causes})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller went away
}

// base is the address the caller used, for absolute links.
func base(r *http.Request) string {
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// route is one protected path of the API.
type route struct {
	pattern string
	bucket  string
	scope   string
	serve   func(w http.ResponseWriter, r *http.Request) *apiError
}

// routes is the whole API.
func (o *Org) routes() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range []route{
		{"GET /api/v1/logs", "logs", "okta.logs.read", o.getLogs},
		{"GET /api/v1/users", "users", "okta.users.read", o.listUsers},
		{"GET /api/v1/users/{id}", "user", "okta.users.read", o.getUser},
		{"GET /api/v1/users/{id}/devices", "user", "okta.users.read", o.userDevices},
		{"GET /api/v1/devices", "devices", "okta.devices.read", o.listDevices},
		{"GET /api/v1/devices/{id}", "devices", "okta.devices.read", o.getDevice},
		{"GET /api/v1/devices/{id}/users", "devices", "okta.devices.read", o.deviceUsers},
		{"GET /api/v1/eventHooks", "other", "okta.eventHooks.read", o.listHooks},
		{"POST /api/v1/eventHooks", "other", "okta.eventHooks.manage", o.createHook},
		{"GET /api/v1/eventHooks/{id}", "other", "okta.eventHooks.read", o.getHook},
		{"PUT /api/v1/eventHooks/{id}", "other", "okta.eventHooks.manage", o.replaceHook},
		{"DELETE /api/v1/eventHooks/{id}", "other", "okta.eventHooks.manage", o.deleteHook},
		{"POST /api/v1/eventHooks/{id}/lifecycle/{do}", "other", "okta.eventHooks.manage", o.hookLifecycle},
	} {
		mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) { o.guard(w, r, rt) })
	}
	mux.HandleFunc("/api/v1/", func(w http.ResponseWriter, r *http.Request) {
		o.guard(w, r, route{"", "other", "", func(http.ResponseWriter, *http.Request) *apiError {
			if _, known := mux.Handler(&http.Request{Method: http.MethodGet, URL: r.URL, Host: r.Host}); known != "/api/v1/" {
				return errMethod
			}
			return notFound(r.URL.Path, "Path")
		}})
	})
	mux.HandleFunc("POST /oauth2/v1/token", o.grantToken)
	mux.HandleFunc("GET /.well-known/okta-organization", o.wellKnown)
	o.control(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", o.now().UTC().Format(http.TimeFormat))
		mux.ServeHTTP(w, r)
	})
}

func (o *Org) wellKnown(w http.ResponseWriter, r *http.Request) {
	reply(w, http.StatusOK, map[string]any{
		"id": o.company.orgID, "pipeline": o.cfg.Engine, "_links": map[string]any{"organization": map[string]string{"href": base(r)}},
		"settings": map[string]any{"analyticsCollectionEnabled": false, "bugReportingEnabled": true, "omEnabled": false},
	})
}

// guard is what Okta does before it looks at a request: token, limits; and here, faults.
func (o *Org) guard(w http.ResponseWriter, r *http.Request, rt route) {
	now := o.now()
	defer o.flights.Add(-1)
	flights := o.flights.Add(1)
	token, scopes, ok := o.tokens.who(r, now)
	if ok {
		if _, gone := o.faults.strike(now, func(f *Fault) bool {
			return f.Kind == FaultRevoked && (f.Token == "" || f.Token == token) && strings.HasPrefix(r.URL.Path, f.Path)
		}); gone {
			ok = false
		}
	}
	if !ok {
		o.fail(w, errToken)
		return
	}
	left := o.limits.spend(rt.bucket, token, now)
	h := w.Header()
	h.Set("X-Okta-Request-Id", strconv.FormatInt(now.UnixNano(), 36))
	set := func(limit, remaining int, reset time.Time) {
		h["X-Rate-Limit-Limit"] = []string{strconv.Itoa(limit)}
		h["X-Rate-Limit-Remaining"] = []string{strconv.Itoa(remaining)}
		h["X-Rate-Limit-Reset"] = []string{strconv.FormatInt(reset.Unix(), 10)}
	}
	set(left.limit, left.remaining, left.reset)
	if left.over {
		o.fail(w, errLimit)
		return
	}
	if int(flights) > o.cfg.InFlight {
		set(0, 0, now.Add(time.Minute))
		o.fail(w, errLimit)
		return
	}
	hit := func(kind string) (Fault, bool) {
		return o.faults.strike(now, func(f *Fault) bool { return f.Kind == kind && strings.HasPrefix(r.URL.Path, f.Path) })
	}
	if f, ok := hit(FaultLatency); ok && !sleep(r.Context(), f.Delay) {
		return
	}
	if _, ok := hit(FaultHang); ok {
		<-r.Context().Done() // the caller's end, or the org's: its server's requests live in its context
		return
	}
	if f, ok := hit(FaultRateLimit); ok {
		set(left.limit, 0, now.Add(f.Delay+time.Second-time.Nanosecond))
		o.fail(w, errLimit)
		return
	}
	if _, ok := hit(FaultConcurrency); ok {
		set(0, 0, now.Add(time.Minute))
		o.fail(w, errLimit)
		return
	}
	for _, k := range []struct {
		kind string
		err  *apiError
	}{{FaultTimeout, errInternal}, {FaultInternal, errInternal53}, {FaultReadOnly, errReadOnly}} {
		if _, ok := hit(k.kind); ok {
			o.fail(w, k.err)
			return
		}
	}
	if r.URL.Query().Has("after") {
		if _, ok := hit(FaultCursor); ok {
			o.fail(w, errCursorParam)
			return
		}
	}
	if _, ok := hit(FaultHTML); ok {
		h.Set("Content-Type", "text/html")
		_, _ = fmt.Fprint(w, "<html><body><h1>Please sign in to the network</h1></body></html>")
		return
	}
	if scopes != nil && rt.scope != "" && !scopes[rt.scope] && !scopes[strings.Replace(rt.scope, ".read", ".manage", 1)] {
		h.Set("WWW-Authenticate", `Bearer error="insufficient_scope", error_description="The access token provided does not contain the required scopes.", scope="`+rt.scope+`"`)
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if _, ok := hit(FaultCut); ok {
		cw := &cutter{ResponseWriter: w}
		if err := rt.serve(cw, r); err == nil {
			cw.cut()
		}
		return
	}
	if err := rt.serve(w, r); err != nil {
		o.fail(w, err)
	}
}

// cutter holds a body back and then breaks off in its middle.
type cutter struct {
	http.ResponseWriter
	body   []byte
	status int
}

func (c *cutter) WriteHeader(status int) { c.status = status }

func (c *cutter) Write(b []byte) (int, error) {
	c.body = append(c.body, b...)
	return len(b), nil
}

func (c *cutter) cut() {
	c.Header().Set("Content-Length", strconv.Itoa(len(c.body)+1))
	if c.status != 0 {
		c.ResponseWriter.WriteHeader(c.status)
	}
	_, _ = c.ResponseWriter.Write(c.body[:len(c.body)/2])
	if f, ok := c.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	panic(http.ErrAbortHandler)
}

// defaultLimits are Okta's last printed figures for a workforce org, requests a minute of the whole org.
var defaultLimits = map[string]int{"logs": 120, "users": 600, "user": 2000, "devices": 100, "other": 1200}

type limiter struct {
	mu      sync.Mutex
	limits  map[string]int
	share   int
	windows map[string]*window
}

type window struct {
	start time.Time
	used  int
}

type allowance struct {
	limit, remaining int
	reset            time.Time
	over             bool
}

func (l *limiter) init(cfg Config) {
	l.limits = map[string]int{}
	maps.Copy(l.limits, defaultLimits)
	maps.Copy(l.limits, cfg.Limits)
	l.share, l.windows = cfg.Share, map[string]*window{}
}

const minute = time.Minute

// spend takes one request out of the token's and the org's window. A window begins with its first request, wherever in the minute
// that is, and lasts 60 s.
func (l *limiter) spend(bucket, token string, now time.Time) allowance {
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := l.limits[bucket]
	if limit < 0 {
		return allowance{limit: 1_000_000, remaining: 999_999, reset: now.Add(minute)}
	}
	if len(l.windows) > 10_000 {
		for k, w := range l.windows {
			if now.Sub(w.start) >= minute {
				delete(l.windows, k)
			}
		}
	}
	org, own := l.window(bucket+"\x00", now), l.window(bucket+"\x00"+token, now)
	share := max(limit*l.share/100, min(limit, 1))
	a := allowance{limit: share, remaining: share - own.used, reset: own.start.Add(minute)}
	if limit-org.used < a.remaining {
		a.remaining, a.reset = limit-org.used, org.start.Add(minute)
	}
	if a.remaining <= 0 {
		a.remaining, a.over = 0, true
		return a
	}
	org.used++
	own.used++
	a.remaining--
	a.reset = a.reset.Add(time.Second - time.Nanosecond) // whole seconds, rounded up
	return a
}

func (l *limiter) window(key string, now time.Time) *window {
	w := l.windows[key]
	if w == nil || now.Sub(w.start) >= minute {
		w = &window{start: now}
		l.windows[key] = w
	}
	return w
}
