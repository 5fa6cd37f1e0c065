// Package alert tells people. Detections of one fingerprint join one alert; what changes in an alert is told to every
// receiver, once, through an outbox that lies in the same transaction as the change and survives restarts.
//
// Invariant: nothing is sent that is not committed, and nothing committed is forgotten until it was delivered or given up;
// a repeated send carries the key of the first. What is sent where are the sinks' own packages, listed in kinds.go.
package alert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/services/alert/sink"
)

// Config is the section alert of the configuration.
type Config struct {
	Receivers   []Receiver    `yaml:"receivers"`    // empty: one terminal
	Backfill    bool          `yaml:"backfill"`     // true: detections of backfills and replays become alerts too, each lane has its own
	ForgetAfter time.Duration `yaml:"forget_after"` // zero: 720h; an alert without change for so long is closed as stale, a closed one takes no more updates
	Workers     int           `yaml:"workers"`      // zero: 16; deliveries at once
	MaxPending  int           `yaml:"max_pending"`  // zero: 10,000; notifications of one partition that wait, beyond it the oldest are given up, counted and told
}

// Receiver is one place to tell.
type Receiver struct {
	Name        string         `yaml:"name"`         // unique; kept in the state, so a renamed receiver is a new one
	Sink        string         `yaml:"sink"`         // a kind of kinds.go: terminal, webhook
	MinSeverity string         `yaml:"min_severity"` // empty: info; less severe alerts are not told
	With        map[string]any `yaml:"with"`         // the sink's options: docs/sinks.md
}

const (
	defaultForget     = 30 * 24 * time.Hour
	defaultWorkers    = 16
	defaultMaxPending = 10_000
	maxReceiverName   = 64
)

// Deps are what the service works with.
type Deps struct {
	Log     *slog.Logger // nil: discards
	Bus     *bus.Bus
	Metrics *metrics.Set     // nil: discards
	Out     io.Writer        // of the terminal sink; nil: standard output
	Now     func() time.Time // nil: time.Now
}

// Service is an alert process's work.
type Service struct {
	cfg       Config
	bus       *bus.Bus
	log       *slog.Logger
	m         instruments
	now       func() time.Time
	receivers []*receiver
	workers   chan struct{}

	mu    sync.Mutex
	parts map[string]part // of the sources, by source status key

	jobs   sync.WaitGroup
	jobCtx context.Context //nolint:containedctx // of deliveries: ends after the tasks have
}

// receiver is a configured place to tell, ready to use.
type receiver struct {
	name  string
	kind  string
	least int32
	print string // hash of its configuration: one that changed is tried again after it had gone
	sink  sink.Sink
	slots chan struct{}
	gone  atomic.Bool
}

// slotsOf bounds the deliveries to one receiver, so that a slow one leaves workers to the others.
const slotsOf = 4

// New checks the configuration. It touches neither network nor disk.
func New(cfg Config, deps Deps) (*Service, error) {
	if deps.Bus == nil {
		return nil, errors.New("alert: no bus")
	}
	return build(cfg, deps)
}

// Check says what New would find wrong with the configuration, to who has no bus yet.
func (c Config) Check() error {
	_, err := build(c, Deps{})
	return err
}

func build(cfg Config, deps Deps) (*Service, error) {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if cfg.ForgetAfter == 0 {
		cfg.ForgetAfter = defaultForget
	}
	if cfg.Workers == 0 {
		cfg.Workers = defaultWorkers
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = defaultMaxPending
	}
	switch {
	case cfg.ForgetAfter < time.Hour:
		return nil, fmt.Errorf("alert.forget_after: %v is less than 1h", cfg.ForgetAfter)
	case cfg.Workers < 1:
		return nil, fmt.Errorf("alert.workers: %d is less than 1", cfg.Workers)
	case cfg.MaxPending < 100:
		return nil, fmt.Errorf("alert.max_pending: %d is less than 100", cfg.MaxPending)
	}
	if len(cfg.Receivers) == 0 {
		cfg.Receivers = []Receiver{{Name: "terminal", Sink: "terminal"}}
	}
	s := &Service{
		cfg: cfg, bus: deps.Bus, log: deps.Log, m: newInstruments(deps.Metrics), now: deps.Now,
		workers: make(chan struct{}, cfg.Workers), parts: map[string]part{},
	}
	seen := map[string]bool{}
	for i, rc := range cfg.Receivers {
		r, err := newReceiver(rc, sink.Deps{Out: deps.Out, Now: deps.Now})
		if err == nil && seen[rc.Name] {
			err = errors.New("the name is used twice")
		}
		if err != nil {
			return nil, fmt.Errorf("alert.receivers[%d] (%s): %w", i, rc.Name, err)
		}
		seen[rc.Name] = true
		s.receivers = append(s.receivers, r)
	}
	return s, nil
}

func newReceiver(rc Receiver, deps sink.Deps) (*receiver, error) {
	if rc.Name == "" || len(rc.Name) > maxReceiverName || strings.ContainsAny(rc.Name, "/\x00") {
		return nil, fmt.Errorf("name: a text of 1 to %d characters without /", maxReceiverName)
	}
	kinds := Kinds()
	i := slices.IndexFunc(kinds, func(k sink.Kind) bool { return k.Name == rc.Sink })
	if i < 0 {
		var names []string
		for _, k := range kinds {
			names = append(names, k.Name)
		}
		return nil, fmt.Errorf("sink: %q is none of %s", rc.Sink, strings.Join(names, ", "))
	}
	least := 1
	if rc.MinSeverity != "" {
		names := record.Severities()
		if least = 1 + slices.Index(names, rc.MinSeverity); least < 1 {
			return nil, fmt.Errorf("min_severity: %q is none of %s", rc.MinSeverity, strings.Join(names, ", "))
		}
	}
	raw := []byte("{}")
	if len(rc.With) > 0 {
		var err error
		if raw, err = json.Marshal(rc.With); err != nil {
			return nil, fmt.Errorf("with: %w", err)
		}
	}
	out, err := kinds[i].New(raw, deps)
	if err != nil {
		return nil, err
	}
	return &receiver{
		name: rc.Name, kind: rc.Sink, least: int32(least), print: hashText(rc.Sink, string(raw)), sink: out, slots: make(chan struct{}, slotsOf),
	}, nil
}

func (s *Service) receiver(name string) *receiver {
	for _, r := range s.receivers {
		if r.name == name {
			return r
		}
	}
	return nil
}

const stopWait = 5 * time.Second // for deliveries under way at a clean stop

// Run groups detections and tells receivers until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if err := s.follow(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	jobCtx, stopJobs := context.WithCancel(context.WithoutCancel(ctx))
	defer stopJobs()
	s.jobCtx = jobCtx
	err := s.bus.RunTasks(ctx, topics.AlertState, func(partition int32) (bus.Task, error) { return newTask(s, partition), nil })
	done := make(chan struct{})
	go func() { s.jobs.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(stopWait):
		stopJobs()
		select {
		case <-done:
		case <-time.After(stopWait):
			s.log.Warn("a sink does not end: left behind; what it was sending is sent again after the next start, under the same key")
		}
	}
	return err
}

// follow keeps what alerts need of the sources' status: which orgs are test orgs.
func (s *Service) follow(ctx context.Context) error {
	for said := ""; ; {
		_, err := s.bus.OpenTable(ctx, topics.SourceStatus, func(key string, value []byte) {
			var st *record.SourceStatus
			if value != nil {
				var err error
				if st, err = bus.Decode[record.SourceStatus](ctx, s.bus, bus.Message{Topic: topics.SourceStatus, Key: []byte(key), Value: value}); err != nil {
					s.log.Debug("source status not understood", "key", key, "error", err)
					return
				}
			}
			s.noteSource(key, st)
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err.Error() != said {
			said = err.Error()
			s.log.Warn("not ready: source status cannot be read; tried again until it works", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// part is what alerts need of one part of a source.
type part struct {
	org        string
	test       bool
	poll, hook bool
}

func (s *Service) noteSource(key string, st *record.SourceStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st == nil || st.Org == "" {
		delete(s.parts, key)
		return
	}
	s.parts[key] = part{org: st.Org, test: st.TestOrg, poll: st.Part == "poll", hook: strings.HasPrefix(st.Part, "hook.")}
}

// isTest says whether an org is a test org on a loopback address.
func (s *Service) isTest(org string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.parts {
		if p.org == org && p.test {
			return true
		}
	}
	return false
}

// via says how the event behind a detection came. A polled source's hook copies are all partial, so a complete one came by
// its poller; a source that is not polled has only its hook.
func (s *Service) via(d *record.Detection) string {
	switch {
	case finding.IsHealth(d.Kind):
		return ""
	case d.Backfill:
		return "backfill"
	case d.Partial:
		return "hook"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	hook := false
	for _, p := range s.parts {
		if p.org == d.Org && p.poll {
			return "poller"
		}
		hook = hook || p.org == d.Org && p.hook
	}
	if hook {
		return "hook"
	}
	return ""
}

// instruments are what is counted.
type instruments struct {
	detections *metrics.Counter
	changes    *metrics.Counter
	commands   *metrics.Counter
	deliveries *metrics.Counter
	latency    *metrics.Histogram
	pending    *metrics.Gauge
	open       *metrics.Gauge
	gone       *metrics.Gauge
}

func newInstruments(m *metrics.Set) instruments {
	return instruments{
		detections: m.Counter("oktawatch_alert_detections_total", "Detections read, by what became of them.", "result"),
		changes:    m.Counter("oktawatch_alert_changes_total", "Changes of alerts, by kind.", "change"),
		commands:   m.Counter("oktawatch_alert_commands_total", "Commands of people, by command and result.", "command", "result"),
		deliveries: m.Counter("oktawatch_alert_deliveries_total", "Tries to tell a receiver, by result.", "receiver", "result"),
		latency:    m.Histogram("oktawatch_alert_latency_seconds", "From Okta's published to the delivered notification of an opened alert.", "receiver"),
		pending:    m.Gauge("oktawatch_alert_pending", "Notifications that wait to be delivered.", "partition"),
		open:       m.Gauge("oktawatch_alert_alerts", "Alerts in memory.", "partition"),
		gone:       m.Gauge("oktawatch_alert_receiver_gone", "1 for a receiver that answered it wants nothing any more (410).", "receiver"),
	}
}
