package oktasim

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxActiveHooks = 25
	maxHookTypes   = 300
	maxHookQueue   = 200_000
)

// hook is an event hook as the org keeps it, its secret included.
type hook struct {
	ID          string          `json:"id"`
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Active      bool            `json:"active"`
	Verified    bool            `json:"verified"`
	Created     time.Time       `json:"created"`
	LastUpdated time.Time       `json:"lastUpdated"`
	Items       []string        `json:"items"`
	Filter      json.RawMessage `json:"filter,omitempty"` // kept, not evaluated
	URI         string          `json:"uri"`
	Headers     []hookHeader    `json:"headers"`
	AuthKey     string          `json:"authKey"`
	AuthValue   string          `json:"authValue"`
	wants       map[string]bool
	queue       []uint64
	flying      int
}

type hookHeader struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// hookBody is what people send.
type hookBody struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Events      *struct {
		Type   string          `json:"type"`
		Items  []string        `json:"items"`
		Filter json.RawMessage `json:"filter"`
	} `json:"events"`
	Channel *struct {
		Type    string `json:"type"`
		Version string `json:"version"`
		Config  *struct {
			URI        string       `json:"uri"`
			Headers    []hookHeader `json:"headers"`
			AuthScheme *struct {
				Type  string `json:"type"`
				Key   string `json:"key"`
				Value string `json:"value"`
			} `json:"authScheme"`
		} `json:"config"`
	} `json:"channel"`
}

// hooks are the org's event hooks and their queues.
type hooks struct {
	mu   sync.Mutex
	list []*hook
	path string // where they are kept, or empty
	// marks are the ids of the active and verified hooks by event type, as events carry them.
	marks atomic.Pointer[map[string]string]
	wake  chan struct{}

	day     time.Time // when the running 24 h began
	today   int
	warned  bool
	capped  bool
	notices []func(t *traffic) spec
	stats   HookStats
}

// HookStats counts deliveries.
type HookStats struct {
	Deliveries int64 `json:"deliveries"` // POSTs, retries included
	Acked      int64 `json:"acked"`
	Failed     int64 `json:"failed"`
	Dropped    int64 `json:"dropped"`    // batches taken by a fault
	Duplicated int64 `json:"duplicated"` // batches sent twice by a fault
	Overflow   int64 `json:"overflow"`   // events that found a queue full
	Capped     int64 `json:"capped"`     // events beyond the daily cap
}

func (h *hooks) init() { h.wake = make(chan struct{}, 1) }

func (o *Org) hookStats() HookStats {
	o.hooks.mu.Lock()
	defer o.hooks.mu.Unlock()
	return o.hooks.stats
}

func (h *hooks) load(dir string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.path = filepath.Join(dir, "hooks.json")
	b, err := os.ReadFile(h.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read event hooks: %w", err)
	}
	if err := json.Unmarshal(b, &h.list); err != nil {
		return fmt.Errorf("read event hooks from %s: %w", h.path, err)
	}
	for _, k := range h.list {
		k.index()
	}
	h.mark()
	return nil
}

func (k *hook) index() {
	k.wants = make(map[string]bool, len(k.Items))
	for _, t := range k.Items {
		k.wants[t] = true
	}
}

// mark works out the marks anew; the caller holds the lock.
func (h *hooks) mark() {
	m := map[string]string{}
	for _, k := range h.list {
		if !k.Active || !k.Verified {
			continue
		}
		for t := range k.wants {
			if m[t] != "" {
				m[t] += ","
			}
			m[t] += k.ID
		}
	}
	h.marks.Store(&m)
}

func (h *hooks) marksOf(typ string) string {
	if m := h.marks.Load(); m != nil {
		return (*m)[typ]
	}
	return ""
}

// save keeps the hooks; the caller holds the lock.
func (h *hooks) save() *apiError {
	h.mark()
	if h.path == "" {
		return nil
	}
	b, err := json.MarshalIndent(h.list, "", " ")
	if err == nil {
		if err = os.WriteFile(h.path+".new", b, 0o600); err == nil {
			err = os.Rename(h.path+".new", h.path)
		}
	}
	if err != nil {
		return errInternal
	}
	return nil
}

func (h *hooks) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hooks) find(id string) *hook {
	for _, k := range h.list {
		if k.ID == id {
			return k
		}
	}
	return nil
}

func (o *Org) view(r *http.Request, k *hook) map[string]any {
	status, verified := "INACTIVE", "UNVERIFIED"
	if k.Active {
		status = "ACTIVE"
	}
	if k.Verified {
		verified = "VERIFIED"
	}
	self := base(r) + "/api/v1/eventHooks/" + k.ID
	link := func(path, method string) map[string]any {
		return map[string]any{"href": self + path, "hints": map[string]any{"allow": []string{method}}}
	}
	links := map[string]any{"self": map[string]any{"href": self}, "verify": link("/lifecycle/verify", "POST")}
	if k.Active {
		links["deactivate"] = link("/lifecycle/deactivate", "POST")
	} else {
		links["activate"] = link("/lifecycle/activate", "POST")
		links["delete"] = link("", "DELETE")
	}
	var filter any
	if len(k.Filter) > 0 {
		filter = k.Filter
	}
	headers := k.Headers
	if headers == nil {
		headers = []hookHeader{}
	}
	var auth any
	if k.AuthKey != "" {
		auth = map[string]string{"type": "HEADER", "key": k.AuthKey}
	}
	return map[string]any{
		"id": k.ID, "name": k.Name, "description": k.Description, "status": status, "verificationStatus": verified, "created": stamp(k.Created),
		"createdBy": o.company.people[0].id, "lastUpdated": stamp(k.LastUpdated), "events": map[string]any{"type": "EVENT_TYPE", "items": k.Items, "filter": filter},
		"channel": map[string]any{"type": "HTTP", "version": "1.0.0", "config": map[string]any{"uri": k.URI, "method": "POST", "headers": headers, "authScheme": auth}}, "_links": links,
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func (o *Org) listHooks(w http.ResponseWriter, r *http.Request) *apiError {
	o.hooks.mu.Lock()
	defer o.hooks.mu.Unlock()
	out := make([]any, len(o.hooks.list))
	for i, k := range o.hooks.list {
		out[i] = o.view(r, k)
	}
	reply(w, http.StatusOK, out)
	return nil
}

func (o *Org) getHook(w http.ResponseWriter, r *http.Request) *apiError {
	o.hooks.mu.Lock()
	defer o.hooks.mu.Unlock()
	k := o.hooks.find(r.PathValue("id"))
	if k == nil {
		return notFound(r.PathValue("id"), "EventHook")
	}
	reply(w, http.StatusOK, o.view(r, k))
	return nil
}

func (o *Org) createHook(w http.ResponseWriter, r *http.Request) *apiError {
	k := &hook{Active: true}
	if e := o.readHook(r, k); e != nil {
		return e
	}
	o.genMu.Lock()
	k.ID = oktaID(o.traffic.r, "who")
	o.genMu.Unlock()
	o.hooks.mu.Lock()
	defer o.hooks.mu.Unlock()
	if o.hooks.named(k.Name) != nil {
		return invalid("name", "name: An event hook with this name already exists in the current organization")
	}
	if o.hooks.active() >= maxActiveHooks {
		return invalid("eventHook", fmt.Sprintf("The maximum of %d active event hooks is reached", maxActiveHooks))
	}
	k.Created = o.now().UTC().Truncate(time.Millisecond)
	k.LastUpdated = k.Created
	o.hooks.list = append(o.hooks.list, k)
	if e := o.hooks.save(); e != nil {
		return e
	}
	o.hooks.tell(kHookCreated, k)
	reply(w, http.StatusOK, o.view(r, k))
	return nil
}

func (h *hooks) named(name string) *hook {
	for _, k := range h.list {
		if k.Name == name {
			return k
		}
	}
	return nil
}

func (h *hooks) active() (n int) {
	for _, k := range h.list {
		if k.Active {
			n++
		}
	}
	return n
}

func (o *Org) replaceHook(w http.ResponseWriter, r *http.Request) *apiError {
	n := &hook{}
	if e := o.readHook(r, n); e != nil {
		return e
	}
	o.hooks.mu.Lock()
	defer o.hooks.mu.Unlock()
	k := o.hooks.find(r.PathValue("id"))
	if k == nil {
		return notFound(r.PathValue("id"), "EventHook")
	}
	if other := o.hooks.named(n.Name); other != nil && other != k {
		return invalid("name", "name: An event hook with this name already exists in the current organization")
	}
	if n.URI != k.URI || n.AuthKey != k.AuthKey || n.AuthValue != k.AuthValue || !slices.Equal(n.Headers, k.Headers) {
		k.Verified = false
	}
	// A full replace: a secret left out is gone. Okta does not say what it does then; this is the worst case.
	k.Name, k.Description, k.Items, k.Filter, k.URI, k.Headers, k.AuthKey, k.AuthValue = n.Name, n.Description, n.Items, n.Filter, n.URI, n.Headers, n.AuthKey, n.AuthValue
	k.LastUpdated = o.now().UTC().Truncate(time.Millisecond)
	k.index()
	if e := o.hooks.save(); e != nil {
		return e
	}
	o.hooks.tell(kHookUpdated, k)
	reply(w, http.StatusOK, o.view(r, k))
	return nil
}

func (o *Org) deleteHook(w http.ResponseWriter, r *http.Request) *apiError {
	o.hooks.mu.Lock()
	defer o.hooks.mu.Unlock()
	k := o.hooks.find(r.PathValue("id"))
	if k == nil {
		return notFound(r.PathValue("id"), "EventHook")
	}
	if k.Active {
		return invalid("eventHook", "An active event hook cannot be deleted; deactivate it first")
	}
	o.hooks.list = slices.DeleteFunc(o.hooks.list, func(x *hook) bool { return x == k })
	if e := o.hooks.save(); e != nil {
		return e
	}
	o.hooks.tell(kHookDeleted, k)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (o *Org) hookLifecycle(w http.ResponseWriter, r *http.Request) *apiError {
	do := r.PathValue("do")
	o.hooks.mu.Lock()
	k := o.hooks.find(r.PathValue("id"))
	if k == nil {
		o.hooks.mu.Unlock()
		return notFound(r.PathValue("id"), "EventHook")
	}
	if do == "verify" {
		c := *k // the call takes seconds: not under the lock
		o.hooks.mu.Unlock()
		if err := o.verify(r, &c); err != nil {
			return invalid("eventHook", "Failed to verify event hook: "+err.Error())
		}
		o.hooks.mu.Lock()
		if c.URI == k.URI && c.AuthValue == k.AuthValue {
			k.Verified = true
		}
	}
	defer o.hooks.mu.Unlock()
	note := kHookVerified
	switch do {
	case "verify":
	case "activate":
		if !k.Active && o.hooks.active() >= maxActiveHooks {
			return invalid("eventHook", fmt.Sprintf("The maximum of %d active event hooks is reached", maxActiveHooks))
		}
		k.Active, note = true, kHookOn
	case "deactivate":
		k.Active, k.queue, note = false, nil, kHookOff
	default:
		return notFound(r.URL.Path, "Path")
	}
	k.LastUpdated = o.now().UTC().Truncate(time.Millisecond)
	if e := o.hooks.save(); e != nil {
		return e
	}
	o.hooks.tell(note, k)
	reply(w, http.StatusOK, o.view(r, k))
	return nil
}

// reserved headers cannot be configured.
var reserved = []string{"Accept", "Content-Type", "Content-Length", "Host", "Connection", "Transfer-Encoding", "X-Okta-Verification-Challenge"}

// readHook checks a body and fills k from it.
func (o *Org) readHook(r *http.Request, k *hook) *apiError {
	var b hookBody
	raw, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil || json.Unmarshal(raw, &b) != nil {
		return &apiError{http.StatusBadRequest, "E0000003", "The request body was not well-formed.", nil}
	}
	if n := len([]rune(b.Name)); n < 1 || n > 255 {
		return invalid("name", "name: must be between 1 and 255 characters")
	}
	if b.Events == nil || b.Events.Type != "EVENT_TYPE" || len(b.Events.Items) == 0 {
		return invalid("events", "events: type must be EVENT_TYPE and items must not be empty")
	}
	if len(b.Events.Items) > maxHookTypes {
		return invalid("events.items", fmt.Sprintf("events.items: at most %d event types", maxHookTypes))
	}
	for _, t := range b.Events.Items {
		if !o.eligible[t] {
			return invalid("events.items", "events.items: "+t+" is not an event type eligible for event hooks")
		}
	}
	if b.Channel == nil || b.Channel.Type != "HTTP" || b.Channel.Version != "1.0.0" || b.Channel.Config == nil {
		return invalid("channel", "channel: type must be HTTP, version 1.0.0, config must be there")
	}
	c := b.Channel.Config
	if e := checkHookURI(c.URI); e != nil {
		return e
	}
	for _, h := range c.Headers {
		if h.Key == "" || slices.ContainsFunc(reserved, func(x string) bool { return strings.EqualFold(x, h.Key) }) {
			return invalid("channel.config.headers", "channel.config.headers: "+h.Key+" is reserved")
		}
	}
	if a := c.AuthScheme; a != nil {
		if a.Type != "HEADER" || a.Key == "" {
			return invalid("channel.config.authScheme", "channel.config.authScheme: type must be HEADER, key must not be empty")
		}
		k.AuthKey, k.AuthValue = a.Key, a.Value
	}
	k.Name, k.Description, k.Items, k.Filter, k.URI, k.Headers = b.Name, b.Description, b.Events.Items, b.Events.Filter, c.URI, c.Headers
	if string(k.Filter) == "null" {
		k.Filter = nil
	}
	k.index()
	return nil
}

// checkHookURI takes https, and http where the host is loopback or one label, as in a compose network: a test org's receivers.
func checkHookURI(s string) *apiError {
	bad := invalid("channel.config.uri", "channel.config.uri: must be a valid https URL of at most 1024 characters")
	u, err := url.Parse(s)
	if err != nil || len(s) > 1024 || strings.ContainsAny(s, " \t\r\n") || u.Host == "" {
		return bad
	}
	if u.Scheme == "https" {
		return nil
	}
	host := u.Hostname()
	ip := net.ParseIP(host)
	if u.Scheme == "http" && (host == "localhost" || ip != nil && ip.IsLoopback() || ip == nil && !strings.Contains(host, ".")) {
		return nil
	}
	return bad
}

func (o *Org) client() *http.Client {
	c := http.Client{}
	if o.cfg.Client != nil {
		c = *o.cfg.Client
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// verify asks the endpoint once, and once more if it did not answer.
func (o *Org) verify(r *http.Request, k *hook) error {
	challenge := rand.Text()
	var err error
	for range 2 {
		var retry bool
		if retry, err = o.challenge(r, k, challenge); err == nil || !retry {
			return err
		}
	}
	return err
}

func (o *Org) challenge(r *http.Request, k *hook, challenge string) (retry bool, err error) {
	ctx, cancel := timeout(r.Context(), o.cfg.HookTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.URI, nil)
	if err != nil {
		return false, err
	}
	k.dress(req)
	req.Header.Set("X-Okta-Verification-Challenge", challenge)
	res, err := o.client().Do(req)
	if err != nil {
		return true, errors.New("the endpoint did not answer")
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return true, errors.New("the endpoint did not answer whole")
	}
	if res.StatusCode != http.StatusOK {
		return res.StatusCode >= 500, fmt.Errorf("the endpoint answered %d", res.StatusCode)
	}
	var v struct {
		Verification string `json:"verification"`
	}
	if json.Unmarshal(b, &v) != nil || v.Verification != challenge {
		return false, errors.New("the endpoint did not return the challenge")
	}
	return false, nil
}

// dress sets the headers of every request to the hook.
func (k *hook) dress(req *http.Request) {
	for _, h := range k.Headers {
		req.Header.Set(h.Key, h.Value)
	}
	if k.AuthKey != "" {
		req.Header.Set(k.AuthKey, k.AuthValue)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "Okta-Event-Hook (simulated)")
}
