// Package detect judges System Log records by rules and writes detections. It owns which rules are in force: the pack of
// the binary, the site's folders, read again when they change, a refused file by its last good version. What a rule means
// is pkg/rule, how it judges pkg/engine; both know nothing of Kafka, and this package knows nothing of either's insides.
package detect

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Config is the section detect of the configuration.
type Config struct {
	RulesDir    string        `yaml:"rules_dir"`    // empty: the pack of the binary alone; a rule here replaces the pack's of the same id
	ListsDir    string        `yaml:"lists_dir"`    // empty: none beside lists/ of rules_dir; a list here adds to the pack's of the same name
	OverlaysDir string        `yaml:"overlays_dir"` // empty: none beside overlays/ of rules_dir; changes to rules one does not own
	Rules       Rules         `yaml:"rules"`        //
	Reload      time.Duration `yaml:"reload"`       // zero: 1s; how often the folders are looked at
}

// Rules says which rules there are, and when one counts as ill.
type Rules struct {
	Builtin   *bool         `yaml:"builtin"`    // absent: true; false leaves the pack of the binary out
	Budget    time.Duration `yaml:"budget"`     // zero: 5ms; a rule of which judging one event takes longer (p99, measured) is reported
	QuietDays int           `yaml:"quiet_days"` // zero: 30; after so many days without its event types, or without a first match, a rule is reported
}

// Deps are what the service works with.
type Deps struct {
	Log     *slog.Logger // nil: discards
	Bus     *bus.Bus
	Metrics *metrics.Set // nil: discards
	Pack    fs.FS        // the rules of the binary
}

// Service is a detect process's work.
type Service struct {
	cfg     Config
	bus     *bus.Bus
	log     *slog.Logger
	m       instruments
	pack    fs.FS
	loader  *rule.Loader
	current atomic.Pointer[generation]

	newWindows func(*rule.Set, engine.Observer) windows
	windowed   atomic.Bool    // a windowed rule has been loaded since the start: time must go on
	clocks     sync.WaitGroup // what clocks do beside the stage
	evidence   evidence
	health     *health
	second     func() bool   // a rule in force reads what others found: there is a second time
	patience   time.Duration // with a Match of a rule that is not loaded

	mu   sync.Mutex
	free []*worker   // of the current generation
	sets []*rule.Set // the last few that were in force, the current one last
}

// generation is the rules in force at one time.
type generation struct {
	set      *rule.Set
	problems []rule.Problem
}

// worker judges one message at a time.
type worker struct {
	s       *Service
	gen     *generation
	matcher *engine.Matcher
	view    record.SystemLogView
	org     string // of the message
	at      int64  // event time, milliseconds
	counts  bool   // it is of the live lane, and no seed
}

const (
	defaultReload    = time.Second
	defaultBudget    = 5 * time.Millisecond
	defaultQuietDays = 30
)

// New checks the configuration. It touches neither network nor disk.
func New(cfg Config, deps Deps) (*Service, error) {
	if deps.Bus == nil {
		return nil, errors.New("detect: no bus")
	}
	builtin := cfg.Rules.Builtin == nil || *cfg.Rules.Builtin
	switch {
	case cfg.Reload < 0:
		return nil, fmt.Errorf("detect.reload: %v is less than zero: leave it out, or write a duration such as 1s", cfg.Reload)
	case cfg.Rules.Budget < 0:
		return nil, fmt.Errorf("detect.rules.budget: %v is less than zero: leave it out, or write a duration such as 5ms", cfg.Rules.Budget)
	case cfg.Rules.QuietDays < 0 || cfg.Rules.QuietDays > 3650:
		return nil, fmt.Errorf("detect.rules.quiet_days: %d is not from 0 to 3650: leave it out, or write a number of days such as 30", cfg.Rules.QuietDays)
	case !builtin && cfg.RulesDir == "":
		return nil, errors.New("detect.rules.builtin is false and detect.rules_dir is empty: there would be no rule; set rules_dir, or leave builtin out")
	case builtin && deps.Pack == nil:
		return nil, errors.New("detect: no pack of rules")
	}
	cfg.Reload = cmp.Or(cfg.Reload, defaultReload)
	cfg.Rules.Budget = cmp.Or(cfg.Rules.Budget, defaultBudget)
	cfg.Rules.QuietDays = cmp.Or(cfg.Rules.QuietDays, defaultQuietDays)
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	loader, err := rule.NewLoader()
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, bus: deps.Bus, log: deps.Log, m: newInstruments(deps.Metrics), loader: loader, patience: maxUnknown}
	s.health = newHealth(s)
	s.newWindows = func(set *rule.Set, o engine.Observer) windows {
		return engine.NewState(set, engine.WithTopic(topics.SystemLog.Name), engine.WithStateObserver(o), engine.WithStateMeter(s.health.meter()))
	}
	s.second = func() bool { return false } // no kind does yet
	if builtin {
		s.pack = deps.Pack
	}
	return s, nil
}

// Ready says why the service does not judge as its folders say: no rules read yet, or files that were refused.
func (s *Service) Ready(context.Context) error {
	gen := s.current.Load()
	if gen == nil {
		return errors.New("the rules were not read yet")
	}
	if n := len(gen.problems); n > 0 {
		return fmt.Errorf("%d problems in rule files, the last good versions are in force; first: %s", n, gen.problems[0])
	}
	return nil
}

// Rules are the rules in force; nil before Run has read them.
func (s *Service) Rules() *rule.Set {
	if gen := s.current.Load(); gen != nil {
		return gen.set
	}
	return nil
}

// Run judges until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if err := s.load(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx) })
	reporting, reported := context.WithCancel(context.WithoutCancel(ctx)) // it has the last word, when the stages have ended
	defer reported()
	watching.Go(func() { s.health.run(reporting) })
	stages := make(chan error, 2)
	go func() { stages <- s.bus.RunHandler(ctx, topics.DetectMatch, s.judge) }()
	go func() { stages <- s.bus.RunTasks(ctx, topics.DetectState, s.newStateTask) }()
	err := <-stages
	if err != nil {
		cancel() // one without the other is of no use
	}
	err = errors.Join(err, <-stages)
	cancel()
	reported()
	watching.Wait()
	s.clocks.Wait()
	return err
}

// judge writes the detections of one record.
func (s *Service) judge(ctx context.Context, m bus.Message, out *bus.Emit) error {
	w := s.take()
	defer s.give(w)
	payload, err := s.bus.Payload(ctx, m, "system_log")
	if err != nil {
		return err
	}
	if err := w.view.Reset(payload); err != nil {
		return bus.Permanent(err)
	}
	s.m.events.Inc()
	facts := s.health.facts
	w.begin()
	at := engine.Place{Topic: m.Topic.Name, Partition: m.Partition, Offset: m.Offset}
	for _, d := range w.matcher.Match(&w.view, at) {
		if err := out.Put(topics.Detections, d.Fingerprint, d); err != nil {
			return fmt.Errorf("write detection of rule %s: %w", d.RuleID, err)
		}
		s.m.detections.With(d.RuleID, d.Mode).Inc()
		if w.counts {
			facts.met(w.org, d.RuleID, func(r *ruleFacts) { r.take(w.at); r.hit(w.at) })
		}
	}
	taken := w.matcher.Take(&w.view, at)
	seed := w.view.Derived().Seed
	if len(taken) > 0 && !seed { // a seed is never evidence
		s.evidence.remember(at, bytes.Clone(w.view.JSON()))
	}
	for _, mt := range taken {
		if err := out.Put(topics.Matches, engine.MatchKey(mt), mt); err != nil {
			return fmt.Errorf("write event for rule %s: %w", mt.RuleID, err)
		}
		s.m.matches.With(mt.RuleID).Inc()
		if w.counts && !mt.Excepted {
			facts.met(w.org, mt.RuleID, func(r *ruleFacts) { r.take(w.at) })
		}
	}
	if seed && s.windowed.Load() {
		if err := putSeed(w.view.Derived(), out); err != nil {
			return err
		}
	}
	// Sections are read as rules ask for them: what was broken in them shows now.
	return bus.Permanent(w.view.Err())
}

// take hands out a worker of the rules in force.
func (s *Service) take() *worker {
	gen := s.current.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.free) > 0 {
		w := s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
		if w.gen == gen {
			return w
		}
	}
	w := &worker{s: s, gen: gen}
	w.matcher = engine.NewMatcher(gen.set, engine.WithObserver(w), engine.WithMeter(s.health.meter()))
	return w
}

// begin notes what the health of the rules needs to know of a message.
func (w *worker) begin() {
	d := w.view.Derived()
	w.org, w.at, w.counts = d.Org, d.Time.UnixMilli(), d.Lane == liveLane && !d.Seed && d.Org != "" && !d.Time.IsZero()
	if w.counts {
		w.s.health.facts.saw(d.Org, w.view.EventType(), w.at)
	}
}

// Excepted implements engine.Observer.
func (w *worker) Excepted(ruleID, exception string) {
	w.s.Excepted(ruleID, exception)
	if !w.counts {
		return
	}
	w.s.health.facts.met(w.org, ruleID, func(r *ruleFacts) {
		x := r.exception(exception)
		x.used++
		x.alone++
		x.usedAt = max(x.usedAt, w.at)
	})
}

// Failed implements engine.Observer.
func (w *worker) Failed(err error) { w.s.Failed(err) }

// Limited implements engine.StateObserver.
func (w *worker) Limited(ruleID, what string) { w.s.Limited(ruleID, what) }

// Late implements engine.StateObserver.
func (w *worker) Late(ruleID string) { w.s.Late(ruleID) }

func (s *Service) give(w *worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, w)
}

// Excepted implements engine.Observer.
func (s *Service) Excepted(ruleID, exception string) { s.m.exceptions.With(ruleID, exception).Inc() }

// Failed implements engine.Observer: the log has the first failure of each expression until the rules change.
func (s *Service) Failed(err error) {
	var ev *rule.EvalError
	if !errors.As(err, &ev) {
		return
	}
	s.m.failures.With(ev.Rule).Inc()
	s.health.facts.failed(ev, time.Now())
	if s.m.first(ev.Rule + "\x00" + ev.What) {
		s.log.Warn("an expression failed and counts as false", "rule", ev.Rule, "expression", ev.What, "error", ev.Err)
	}
}

// Limited implements engine.StateObserver.
func (s *Service) Limited(ruleID, what string) {
	s.m.limits.With(ruleID).Inc()
	if s.m.first(ruleID + "\x00" + what) {
		s.log.Warn("a limit of what a rule holds was reached", "rule", ruleID, "limit", what)
	}
}

// Late implements engine.StateObserver.
func (s *Service) Late(ruleID string) { s.m.late.With(ruleID).Inc() }

// lately are the last sets of rules that were in force, the current one last.
func (s *Service) lately() []*rule.Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sets)
}
