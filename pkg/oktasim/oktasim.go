// Package oktasim is a fake Okta org that speaks HTTP as Okta does: the System Log with its polling and its bounded queries, event
// hooks, users, devices, OAuth tokens, rate limits. It lives: ordinary traffic from a seed, attack scenarios by name, faults on
// demand; and it keeps the ground truth of what it emitted, so that a test can say what is missing. It is a test org: it believes
// everybody who knows its tokens, and takes loopback http addresses where Okta takes https only. It knows nothing of the pipeline.
//
// Invariants: an event is on disk (with a data directory) before anybody can see it; positions in the System Log only grow, over
// restarts too, so an old cursor always reads on exactly after what it had; a uuid is never given twice.
package oktasim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oktawatch/oktawatch/pkg/eventtype"
)

// Config is an org. The zero value is a quiet org in memory on a free loopback port.
type Config struct {
	Listen    string `yaml:"listen"`     // empty: 127.0.0.1:7070 of `oktawatch sim`, else a free port; none: Run serves nothing, use Handler
	DataDir   string `yaml:"data_dir"`   // empty: all in memory; else the System Log and the hooks are kept there over restarts
	TruthFile string `yaml:"truth_file"` // empty: none; else the ground truth is appended there as JSON lines
	MaxEvents int    `yaml:"max_events"` // zero: 250000, in memory 50000; beyond it the oldest are forgotten

	Seed          uint64        `yaml:"seed"`           // zero: 1; users, devices and ids follow from it
	Users         int           `yaml:"users"`          // zero: 200
	Rate          float64       `yaml:"rate"`           // ordinary events a second; by default 5 of `oktawatch`; zero: none
	LateShare     float64       `yaml:"late_share"`     // zero: none; share of ordinary events persisted late
	LateBy        time.Duration `yaml:"late_by"`        // zero: 30s; the longest such delay
	ScenarioEvery time.Duration `yaml:"scenario_every"` // one scenario of the list is played that often; by default 5s of `oktawatch`; zero: never
	Scenarios     []string      `yaml:"scenarios"`      // empty: all; which ones take turns
	ScenarioPace  float64       `yaml:"scenario_pace"`  // by default 5 of `oktawatch`; zero: 1; 10 plays ten times as fast, below zero without pauses

	Engine    string         `yaml:"engine"`     // empty: idx; v1 is a Classic org, without devices
	APITokens []string       `yaml:"api_tokens"` // empty: 00simulated-oktawatch-token, of the demo one made at its first start; the SSWS tokens that work
	Clients   []Client       `yaml:"clients"`    // OAuth service apps
	Limits    map[string]int `yaml:"limits"`     // requests a minute of the whole org by bucket (logs, users, user, devices, other); below zero: unlimited
	Share     int            `yaml:"share"`      // zero: 50; per cent of a bucket that one token may use
	InFlight  int            `yaml:"in_flight"`  // zero: 75; requests at once

	HookLinger   time.Duration `yaml:"hook_linger"`    // zero: 20ms; events so close in time share one POST
	HookMax      int           `yaml:"hook_max"`       // zero: 100; events in one POST
	HookParallel int           `yaml:"hook_parallel"`  // zero: 4; POSTs at once to one hook
	HookDailyCap int           `yaml:"hook_daily_cap"` // zero: 400000 as Okta; below zero: none
	HookTimeout  time.Duration `yaml:"hook_timeout"`   // zero: 3s as Okta

	Now      func() time.Time `yaml:"-"` // nil: time.Now
	Listener net.Listener     `yaml:"-"` // nil: made from Listen
	Client   *http.Client     `yaml:"-"` // nil: a plain one; for hook deliveries
	Log      *slog.Logger     `yaml:"-"` // nil: none
}

// DefaultToken is the SSWS token of an org that was given none.
const DefaultToken = "00simulated-oktawatch-token"

// Org is one simulated org.
type Org struct {
	cfg      Config
	now      func() time.Time
	log      *slog.Logger
	company  *company
	store    *store
	eligible map[string]bool
	handler  http.Handler

	genMu   sync.Mutex // the forge, the people's plans and sessions
	traffic *traffic
	quiet   bool

	dirMu   sync.RWMutex // status and lastUpdated of people and devices; statuses change under genMu too
	blocked []*person

	hooks  hooks
	faults faults
	limits limiter
	tokens tokens
	plays  chan play

	rate    atomic.Uint64
	retune  chan struct{}
	paused  atomic.Bool
	running atomic.Bool
	flights atomic.Int64
	ready   chan struct{}
	addr    atomic.Value // string
}

// New checks the config and builds the org; the data directory is opened by Run.
func New(cfg Config) (*Org, error) {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	defD := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	if cfg.DataDir == "" {
		def(&cfg.MaxEvents, 50_000)
	}
	def(&cfg.MaxEvents, 250_000)
	def(&cfg.Users, 200)
	def(&cfg.Share, 50)
	def(&cfg.InFlight, 75)
	def(&cfg.HookMax, 100)
	def(&cfg.HookParallel, 4)
	def(&cfg.HookDailyCap, 400_000)
	defD(&cfg.LateBy, 30*time.Second)
	defD(&cfg.HookLinger, 20*time.Millisecond)
	defD(&cfg.HookTimeout, 3*time.Second)
	if cfg.Seed == 0 {
		cfg.Seed = 1
	}
	if cfg.ScenarioPace == 0 {
		cfg.ScenarioPace = 1
	}
	if cfg.Engine == "" {
		cfg.Engine = "idx"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.APITokens) == 0 {
		cfg.APITokens = []string{DefaultToken}
	}
	var errs []error
	bad := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	bad(cfg.Users > 0 && cfg.Users <= 200_000, "users %d: choose 1 to 200000", cfg.Users)
	bad(cfg.MaxEvents > 0, "max_events %d: choose more than 0", cfg.MaxEvents)
	bad(cfg.Rate >= 0 && cfg.Rate <= 1e6, "rate %v: choose 0 to 1000000 events a second", cfg.Rate)
	bad(cfg.LateShare >= 0 && cfg.LateShare <= 1, "late_share %v: choose 0 to 1", cfg.LateShare)
	bad(cfg.Engine == "idx" || cfg.Engine == "v1", "engine %q: choose idx or v1", cfg.Engine)
	bad(cfg.Share > 0 && cfg.Share <= 100, "share %d: choose 1 to 100 per cent", cfg.Share)
	for _, n := range cfg.Scenarios {
		_, ok := scenarioNamed(n)
		bad(ok, "scenarios: %q is none: choose of %s", n, scenarioNames())
	}
	for name := range cfg.Limits {
		_, ok := defaultLimits[name]
		bad(ok, "limits: %q is no bucket: choose logs, users, user, devices or other", name)
	}
	eligible := map[string]bool{}
	for _, t := range eventtype.All() {
		eligible[t.Name] = t.HookEligible
	}
	o := &Org{
		cfg: cfg, now: cfg.Now, log: cfg.Log, eligible: eligible, store: newStore(cfg.DataDir, cfg.MaxEvents),
		ready: make(chan struct{}), retune: make(chan struct{}, 1), plays: make(chan play, 64),
	}
	if err := o.tokens.init(cfg); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("check config of simulated org: %w", errors.Join(errs...))
	}
	now := o.now()
	o.company = newCompany(cfg.Seed, cfg.Users, now)
	o.traffic = &traffic{o.newForge(now, 0), o.company}
	o.limits.init(cfg)
	o.hooks.init()
	o.rate.Store(math.Float64bits(cfg.Rate))
	o.handler = o.routes()
	return o, nil
}

func (o *Org) newForge(start time.Time, before uint64) *forge {
	f := newForge(o.cfg.Seed, start, before)
	f.marks = o.hooks.marksOf
	return f
}

// Handler serves the org's HTTP, Okta's paths and the control API under /sim/. Without Run nothing moves by itself: no traffic, no
// hook deliveries.
func (o *Org) Handler() http.Handler { return o.handler }

// ID is the org's id, as /.well-known/okta-organization tells it.
func (o *Org) ID() string { return o.company.orgID }

// Ready is closed when Run serves.
func (o *Org) Ready() <-chan struct{} { return o.ready }

// URL is the org's address while Run serves.
func (o *Org) URL() string {
	if a, ok := o.addr.Load().(string); ok {
		return "http://" + a
	}
	return ""
}

// Truth is the ground truth of what was emitted.
func (o *Org) Truth() Truth { return Truth{o} }

// Run opens the data, serves and lives until ctx ends; it returns nil on a clean stop. An org runs once.
func (o *Org) Run(ctx context.Context) error {
	if o.running.Swap(true) {
		return errors.New("run simulated org: it runs already")
	}
	if err := o.store.open(o.cfg.TruthFile); err != nil {
		return errors.Join(fmt.Errorf("open simulated org: %w", err), o.store.close())
	}
	if o.cfg.DataDir != "" {
		o.store.mu.RLock()
		before := o.store.entries.next
		o.store.mu.RUnlock()
		o.genMu.Lock()
		o.traffic.forge = o.newForge(o.now(), before)
		o.genMu.Unlock()
		if err := o.hooks.load(o.cfg.DataDir); err != nil {
			return errors.Join(fmt.Errorf("open simulated org: %w", err), o.store.close())
		}
	}
	err := o.live(ctx)
	return errors.Join(err, o.store.close())
}

func (o *Org) live(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if l, err := o.listen(ctx); err != nil {
		return err
	} else if l != nil {
		o.addr.Store(l.Addr().String())
		srv := &http.Server{Handler: o.handler, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve simulated org: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if srv.Shutdown(end) != nil {
				_ = srv.Close() // somebody would not let go
			}
			return nil
		})
	}
	o.log.Info("simulated org lives", "url", o.URL(), "org", o.company.orgID, "users", o.cfg.Users, "rate", o.cfg.Rate, "events", o.Truth().Summary().Emitted)
	close(o.ready)
	g.Go(func() error { return o.live1(ctx, o.tick) })
	g.Go(func() error { return o.live1(ctx, o.ripen) })
	g.Go(func() error { return o.live1(ctx, o.dispatch) })
	g.Go(func() error { return o.live1(ctx, o.perform) })
	if o.cfg.ScenarioEvery > 0 {
		g.Go(func() error { return o.live1(ctx, o.takeTurns) })
	}
	return g.Wait()
}

func (o *Org) live1(ctx context.Context, f func(context.Context) error) error {
	if err := f(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func (o *Org) listen(ctx context.Context) (net.Listener, error) {
	if o.cfg.Listener != nil {
		return o.cfg.Listener, nil
	}
	addr := o.cfg.Listen
	switch addr {
	case "none":
		return nil, nil
	case "":
		addr = "127.0.0.1:0"
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for simulated org: %w", err)
	}
	return l, nil
}

// Rate is how many ordinary events a second the org emits.
func (o *Org) Rate() float64 { return math.Float64frombits(o.rate.Load()) }

// SetRate changes it.
func (o *Org) SetRate(r float64) {
	o.rate.Store(math.Float64bits(min(max(r, 0), 1e6)))
	select {
	case o.retune <- struct{}{}:
	default:
	}
}

// Pause stops ordinary traffic and scheduled scenarios, or lets them go on.
func (o *Org) Pause(p bool) { o.paused.Store(p) }

// Quiet stops them for good, and the scenarios that are being played with them: the org goes on answering and delivering, and emits
// nothing more.
func (o *Org) Quiet() {
	o.paused.Store(true)
	o.genMu.Lock() // what is being emitted is out when Quiet returns
	defer o.genMu.Unlock()
	o.quiet = true
}

var errQuiet = errors.New("the org was told to be quiet")

// tick emits ordinary traffic at the rate set.
func (o *Org) tick(ctx context.Context) error {
	last, due := o.now(), 0.0
	for {
		wait := 250 * time.Millisecond
		if r := o.Rate(); r > 0 {
			wait = min(max(time.Duration(float64(time.Second)/r), 5*time.Millisecond), wait)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-o.retune:
			t.Stop()
		case <-t.C:
		}
		now := o.now()
		if r := o.Rate(); r == 0 || o.paused.Load() {
			due = 0
		} else {
			due = min(due+r*now.Sub(last).Seconds(), max(r, 1)) // a machine that slept owes at most a second
		}
		last = now
		if n := int(due); n > 0 {
			due -= float64(n)
			if err := o.ordinary(n); err != nil {
				return err
			}
		}
	}
}

// ripen persists late events in their time.
func (o *Org) ripen(ctx context.Context) error {
	for {
		wait := 100 * time.Millisecond
		if next, any := o.store.settle(o.now()); any {
			wait = min(max(next.Sub(o.now()), time.Millisecond), wait)
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Burst emits n ordinary events as fast as it can.
func (o *Org) Burst(n int) error { return o.ordinary(n) }

func (o *Org) ordinary(n int) error {
	for n > 0 {
		k := min(n, 500)
		n -= k
		ds := make([]draft, k)
		o.genMu.Lock()
		now := o.now()
		for i := range ds {
			s := o.traffic.next()
			ds[i] = o.traffic.render(&s, now)
			if o.cfg.LateShare > 0 && o.traffic.r.Float64() < o.cfg.LateShare {
				ds[i].late = time.Millisecond + time.Duration(o.traffic.r.Int64N(int64(o.cfg.LateBy)))
			}
		}
		_, err := o.publish(now, ds)
		o.genMu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Emit publishes events of one's own, byte for byte, be they JSON or not. It returns the sequence number of the first; the others
// follow without gaps.
func (o *Org) Emit(events ...[]byte) (uint64, error) { return o.EmitLate(0, events...) }

// EmitLate is Emit for events that reach the System Log only after a while; hooks get them at once.
func (o *Org) EmitLate(after time.Duration, events ...[]byte) (uint64, error) {
	now := o.now()
	ds := make([]draft, len(events))
	for i, e := range events {
		if len(e) > math.MaxUint32 {
			return 0, fmt.Errorf("emit event: %d bytes are too many", len(e))
		}
		ds[i] = draftOf(e, now)
		ds[i].late = after
	}
	return o.publish(now, ds)
}

func (o *Org) publish(now time.Time, ds []draft) (uint64, error) {
	if len(ds) == 0 {
		return 0, nil
	}
	if f, ok := o.faults.take(FaultLate, "", now); ok {
		for i := range ds {
			ds[i].late = max(ds[i].late, f.Delay)
		}
	}
	first, err := o.store.append(now, ds)
	if err != nil {
		return 0, err
	}
	o.hooks.wanted(o, now, first, ds)
	return first, nil
}
