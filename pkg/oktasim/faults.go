package oktasim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// The names of the faults.
const (
	FaultRateLimit   = "rate_limit"
	FaultConcurrency = "concurrency"
	FaultTimeout     = "timeout"
	FaultInternal    = "internal"
	FaultReadOnly    = "read_only"
	FaultLatency     = "latency"
	FaultHang        = "hang"
	FaultCut         = "cut"
	FaultHTML        = "html"
	FaultCursor      = "cursor_expired"
	FaultRevoked     = "token_revoked"
	FaultLate        = "late"
	FaultHookDrop    = "hook_drop"
	FaultHookTwice   = "hook_duplicate"
	FaultHookDelay   = "hook_delay"
)

// FaultKind describes a fault.
type FaultKind struct {
	Name string `json:"name"`
	Doc  string `json:"doc"`
	http bool
}

// FaultKinds is the whole list.
var FaultKinds = []FaultKind{
	{FaultRateLimit, "429 E0000047: the token's window is spent; X-Rate-Limit-Reset is the delay (default 5s) away", true},
	{FaultConcurrency, "429 E0000047 with Limit and Remaining 0: too many requests at once", true},
	{FaultTimeout, "500 E0000009: the query ran past its 30 s", true},
	{FaultInternal, "500 with code E0000053, which as a 400 means a bad filter", true},
	{FaultReadOnly, "503 E0000010: the org is read-only", true},
	{FaultLatency, "answers only after the delay (default 1s)", true},
	{FaultHang, "takes the request and never answers, until the caller gives up", true},
	{FaultCut, "sends half the body and breaks the connection", true},
	{FaultHTML, "a proxy's page of HTML with status 200 instead of JSON", true},
	{FaultCursor, "400 E0000001 to every request with an after", true},
	{FaultRevoked, "401 E0000011 to every request with the token (empty: any)", true},
	{FaultLate, "events emitted meanwhile reach the System Log the delay (default 30s) later", false},
	{FaultHookDrop, "hook deliveries vanish without a trace", false},
	{FaultHookTwice, "hook deliveries are sent once more after they were answered", false},
	{FaultHookDelay, "hook deliveries wait for the delay (default 1s)", false},
}

// Fault is something to go wrong.
type Fault struct {
	Kind  string
	Path  string        // of faults in answers: prefix of the path; empty: /api/v1/logs, but token_revoked: any
	Count int           // how many times; zero: no limit
	For   time.Duration // how long; zero: until cleared
	Share float64       // of the cases it could strike; zero: all
	Delay time.Duration // how much, where the kind says so
	Token string        // token_revoked: whose

	until time.Time
	hits  int
}

type faults struct {
	mu   sync.Mutex
	list []*Fault
	r    *rand.Rand
}

const maxFaults = 1000

// Inject lets something go wrong from now on. Several faults may be active; the oldest that fits strikes.
func (o *Org) Inject(f Fault) error {
	i := slices.IndexFunc(FaultKinds, func(k FaultKind) bool { return k.Name == f.Kind })
	if i < 0 {
		names := make([]string, len(FaultKinds))
		for i, k := range FaultKinds {
			names[i] = k.Name
		}
		return fmt.Errorf("inject fault %q: there is none of that kind: choose of %s", f.Kind, strings.Join(names, ", "))
	}
	if f.Count < 0 || f.For < 0 || f.Delay < 0 || f.Share < 0 || f.Share > 1 {
		return fmt.Errorf("inject fault %q: count, for and delay must not be below zero, share must be 0 to 1", f.Kind)
	}
	if f.Path == "" && FaultKinds[i].http && f.Kind != FaultRevoked {
		f.Path = "/api/v1/logs"
	}
	if f.Delay == 0 {
		switch f.Kind {
		case FaultRateLimit:
			f.Delay = 5 * time.Second
		case FaultLate:
			f.Delay = 30 * time.Second
		default:
			f.Delay = time.Second
		}
	}
	if f.For > 0 {
		f.until = o.now().Add(f.For)
	}
	o.faults.mu.Lock()
	defer o.faults.mu.Unlock()
	if len(o.faults.list) >= maxFaults {
		return fmt.Errorf("inject fault %q: %d are active: clear some", f.Kind, maxFaults)
	}
	if o.faults.r == nil {
		o.faults.r = rand.New(rand.NewPCG(o.cfg.Seed, 0xfa17))
	}
	o.faults.list = append(o.faults.list, &f)
	o.log.Info("fault injected", "kind", f.Kind, "path", f.Path, "count", f.Count, "for", f.For)
	return nil
}

// ClearFaults ends the faults of a kind, or all for an empty one.
func (o *Org) ClearFaults(kind string) {
	o.faults.mu.Lock()
	defer o.faults.mu.Unlock()
	o.faults.list = slices.DeleteFunc(o.faults.list, func(f *Fault) bool { return kind == "" || f.Kind == kind })
}

// Faults lists the active ones.
func (o *Org) Faults() []Fault {
	o.faults.mu.Lock()
	defer o.faults.mu.Unlock()
	o.faults.sweep(o.now())
	out := make([]Fault, len(o.faults.list))
	for i, f := range o.faults.list {
		out[i] = *f
	}
	return out
}

func (fs *faults) sweep(now time.Time) {
	fs.list = slices.DeleteFunc(fs.list, func(f *Fault) bool {
		return !f.until.IsZero() && !now.Before(f.until) || f.Count > 0 && f.hits >= f.Count
	})
}

// take spends one case of a fault of the kind, if one strikes.
func (fs *faults) take(kind, token string, now time.Time) (Fault, bool) {
	return fs.strike(now, func(f *Fault) bool { return f.Kind == kind && (f.Token == "" || f.Token == token) })
}

func (fs *faults) strike(now time.Time, fits func(*Fault) bool) (Fault, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.list) == 0 {
		return Fault{}, false
	}
	fs.sweep(now)
	for _, f := range fs.list {
		if fits(f) && (f.Share == 0 || fs.r.Float64() < f.Share) {
			f.hits++
			return *f, true
		}
	}
	return Fault{}, false
}
