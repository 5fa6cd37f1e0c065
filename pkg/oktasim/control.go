package oktasim

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

const maxInjected = 64 << 20

// faultBody is a fault in JSON: durations as text ("30s").
type faultBody struct {
	Kind  string  `json:"kind"`
	Path  string  `json:"path,omitempty"`
	Count int     `json:"count,omitempty"`
	For   string  `json:"for,omitempty"`
	Share float64 `json:"share,omitempty"`
	Delay string  `json:"delay,omitempty"`
	Token string  `json:"token,omitempty"`
	Hits  int     `json:"hits,omitempty"`
}

func refuse(w http.ResponseWriter, status int, format string, a ...any) {
	reply(w, status, map[string]string{"error": fmt.Sprintf(format, a...)})
}

// control is the API that Okta does not have: what a test or a person does to the org from outside. It asks for no token.
func (o *Org) control(mux *http.ServeMux) {
	mux.HandleFunc("GET /sim/{$}", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]any{"org": o.company.orgID, "summary": o.Truth().Summary(), "scenarios": Scenarios(), "faults": FaultKinds})
	})
	mux.HandleFunc("GET /sim/scenarios", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, Scenarios()) })
	mux.HandleFunc("POST /sim/scenarios/{name}", o.controlPlay)
	mux.HandleFunc("GET /sim/faults", func(w http.ResponseWriter, _ *http.Request) {
		out := []faultBody{}
		for _, f := range o.Faults() {
			b := faultBody{Kind: f.Kind, Path: f.Path, Count: f.Count, Share: f.Share, Token: f.Token, Hits: f.hits, Delay: f.Delay.String()}
			if f.For > 0 {
				b.For = f.For.String()
			}
			out = append(out, b)
		}
		reply(w, http.StatusOK, out)
	})
	mux.HandleFunc("POST /sim/faults", o.controlFault)
	mux.HandleFunc("DELETE /sim/faults", func(w http.ResponseWriter, r *http.Request) {
		o.ClearFaults(r.URL.Query().Get("kind"))
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /sim/pause", func(w http.ResponseWriter, _ *http.Request) {
		o.Pause(true)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /sim/resume", func(w http.ResponseWriter, _ *http.Request) {
		o.Pause(false)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /sim/rate", func(w http.ResponseWriter, r *http.Request) {
		v, err := strconv.ParseFloat(r.URL.Query().Get("rate"), 64)
		if err != nil || v < 0 {
			refuse(w, http.StatusBadRequest, "rate: give events a second, as ?rate=50")
			return
		}
		o.SetRate(v)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /sim/burst", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.URL.Query().Get("n"))
		if err != nil || n < 1 || n > 10_000_000 {
			refuse(w, http.StatusBadRequest, "n: give how many events, 1 to 10000000")
			return
		}
		if err := o.Burst(n); err != nil {
			refuse(w, http.StatusInternalServerError, "%v", err)
			return
		}
		reply(w, http.StatusOK, o.Truth().Summary())
	})
	mux.HandleFunc("POST /sim/events", o.controlEmit)
	mux.HandleFunc("POST /sim/tokens/revoke", func(w http.ResponseWriter, _ *http.Request) {
		o.RevokeTokens()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /sim/truth", o.controlTruth)
	mux.HandleFunc("GET /sim/truth/summary", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, o.Truth().Summary()) })
}

func (o *Org) controlPlay(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	pace := 0.0
	if s := r.URL.Query().Get("pace"); s != "" {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			refuse(w, http.StatusBadRequest, "pace: give a number; 0 plays without pauses, 1 in the story's time")
			return
		}
		pace = v
	}
	if _, ok := scenarioNamed(name); !ok {
		refuse(w, http.StatusNotFound, "there is no scenario %q: choose of %s", name, scenarioNames())
		return
	}
	if pace > 0 { // takes its time: in the background
		select {
		case o.plays <- play{name, pace}:
			w.WriteHeader(http.StatusAccepted)
		default:
			refuse(w, http.StatusServiceUnavailable, "too many scenarios wait: try again")
		}
		return
	}
	seqs, err := o.Play(r.Context(), name, 0)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "%v", err)
		return
	}
	out := []Emitted{}
	o.store.mu.RLock()
	for _, q := range seqs {
		if e := o.store.entries.at(q); e != nil {
			out = append(out, o.store.emitted(q, e))
		}
	}
	o.store.mu.RUnlock()
	reply(w, http.StatusOK, out)
}

func (o *Org) controlFault(w http.ResponseWriter, r *http.Request) {
	var b faultBody
	d := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		refuse(w, http.StatusBadRequest, "read fault: %v", err)
		return
	}
	f := Fault{Kind: b.Kind, Path: b.Path, Count: b.Count, Share: b.Share, Token: b.Token}
	for _, x := range []struct {
		text string
		to   *time.Duration
	}{{b.For, &f.For}, {b.Delay, &f.Delay}} {
		if x.text == "" {
			continue
		}
		v, err := time.ParseDuration(x.text)
		if err != nil {
			refuse(w, http.StatusBadRequest, "read fault: %v", err)
			return
		}
		*x.to = v
	}
	if err := o.Inject(f); err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// controlEmit takes one event as raw bytes; with ?lines each line is one, with ?base64 each line is one in base64; ?oversize=N
// makes one of N bytes. ?late=30s persists them later.
func (o *Org) controlEmit(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	var late time.Duration
	if s := v.Get("late"); s != "" {
		var err error
		if late, err = time.ParseDuration(s); err != nil {
			refuse(w, http.StatusBadRequest, "late: %v", err)
			return
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxInjected))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "read events: %v", err)
		return
	}
	var events [][]byte
	switch {
	case v.Has("oversize"):
		n, err := strconv.Atoi(v.Get("oversize"))
		if err != nil || n < 1 || n > maxInjected {
			refuse(w, http.StatusBadRequest, "oversize: give bytes, 1 to %d", maxInjected)
			return
		}
		events = append(events, o.Oversize(n))
	case v.Has("lines"), v.Has("base64"):
		for line := range lines(body) {
			if v.Has("base64") {
				b, err := base64.StdEncoding.DecodeString(string(line))
				if err != nil {
					refuse(w, http.StatusBadRequest, "read events: %v", err)
					return
				}
				line = b
			}
			events = append(events, line)
		}
	default:
		events = append(events, body)
	}
	if len(events) == 0 {
		refuse(w, http.StatusBadRequest, "read events: there are none in the body")
		return
	}
	first, err := o.EmitLate(late, events...)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "%v", err)
		return
	}
	reply(w, http.StatusOK, map[string]any{"first_seq": first, "count": len(events)})
}

func lines(b []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			i := 0
			for i < len(b) && b[i] != '\n' {
				i++
			}
			if i > 0 && !yield(b[:i]) {
				return
			}
			b = b[min(i+1, len(b)):]
		}
	}
}

// Oversize makes, without publishing it, a good event of at least n bytes.
func (o *Org) Oversize(n int) []byte {
	o.genMu.Lock()
	defer o.genMu.Unlock()
	s := o.traffic.next()
	d := o.traffic.render(&s, o.now())
	pad := max(n-len(d.raw), 1)
	b := make([]byte, pad)
	for i := range b {
		b[i] = 'x'
	}
	s.debug = kv(s.debug, "padding", string(b))
	return o.traffic.render(&s, o.now()).raw
}

// controlTruth streams the ground truth as JSON lines: ?after=SEQ&type=T&scenario=NAME|*&persisted&limit=N.
func (o *Org) controlTruth(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	q := Query{EventType: v.Get("type"), Scenario: v.Get("scenario"), Persisted: v.Has("persisted")}
	if s := v.Get("after"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			refuse(w, http.StatusBadRequest, "after: %v", err)
			return
		}
		q.After = n
	}
	if s := v.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			refuse(w, http.StatusBadRequest, "limit: %v", err)
			return
		}
		q.Limit = n
	}
	w.Header().Set("Content-Type", "application/jsonl")
	enc := json.NewEncoder(w)
	for e := range o.Truth().Events(q) {
		if enc.Encode(e) != nil {
			return
		}
	}
}
