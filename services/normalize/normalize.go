// Package normalize turns raw events into System Log records. Of each event it writes at most two: the first copy at once,
// and once more, as copy 2, when that one was an event hook's partial copy and the complete one has come. Everything else
// is a duplicate, dropped and counted. What cannot be read at all is a dead letter, whole; one bad field never drops an
// event.
//
// Seeds pass through beside all that: they are copies of nothing.
//
// Invariant: an event is remembered only together with its record, in one transaction, so that neither a restart nor a
// rebalance loses or repeats one. How JSON becomes a record is pkg/systemlog; what a record means is for the rules.
package normalize

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Config is the section normalize of the configuration.
type Config struct {
	Masking Masking `yaml:"masking"`
	Dedup   Dedup   `yaml:"dedup"`
}

// Masking says with which key secrets are replaced. Every normalize of an installation needs the same one.
type Masking struct {
	KeyFile string `yaml:"key_file"` // file with at least 16 bytes; without it the service is not ready and handles nothing
	Key     []byte `yaml:"-"`        // instead of a file, for the process that makes its own (embedded mode)
}

// Dedup bounds the memory of events seen.
type Dedup struct {
	Memory        time.Duration `yaml:"memory"`         // zero: 72h; how long an event is known again, by the raw record's Kafka timestamp
	PartialMemory time.Duration `yaml:"partial_memory"` // zero: 336h, which is the most; the same for one of which only a partial copy has come
	MaxBytes      int64         `yaml:"max_bytes"`      // zero: 64 MiB, some 750,000 events; of one partition; beyond it the oldest are forgotten, counted and told
}

const (
	defaultMemory        = 72 * time.Hour
	defaultPartialMemory = 14 * 24 * time.Hour // the changelog keeps no more
	defaultMaxBytes      = 64 << 20
	keyFileRetry         = 2 * time.Second
)

// Deps are what the service works with.
type Deps struct {
	Log     *slog.Logger // nil: discards
	Bus     *bus.Bus
	Metrics *metrics.Set // nil: discards
}

// Service is a normalize process's work.
type Service struct {
	cfg   Config
	bus   *bus.Bus
	log   *slog.Logger
	m     instruments
	mask  atomic.Pointer[systemlog.Mask]
	fault atomic.Pointer[error] // why there is no mask yet
}

// New checks the configuration. It touches neither network nor disk.
func New(cfg Config, deps Deps) (*Service, error) {
	if deps.Bus == nil {
		return nil, errors.New("normalize: no bus")
	}
	d := &cfg.Dedup
	if d.Memory == 0 {
		d.Memory = defaultMemory
	}
	if d.PartialMemory == 0 {
		d.PartialMemory = defaultPartialMemory
	}
	if d.MaxBytes == 0 {
		d.MaxBytes = defaultMaxBytes
	}
	switch {
	case d.Memory < 0 || d.Memory > defaultPartialMemory:
		return nil, fmt.Errorf("normalize.dedup.memory: %v is not between 0 and 336h, which is what the changelog keeps", d.Memory)
	case d.PartialMemory < d.Memory || d.PartialMemory > defaultPartialMemory:
		return nil, fmt.Errorf("normalize.dedup.partial_memory: %v is not between dedup.memory (%v) and 336h, which is what the changelog keeps", d.PartialMemory, d.Memory)
	case d.MaxBytes < minMaxBytes:
		return nil, fmt.Errorf("normalize.dedup.max_bytes: %d is less than %d", d.MaxBytes, minMaxBytes)
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{cfg: cfg, bus: deps.Bus, log: deps.Log, m: newInstruments(deps.Metrics)}
	if len(cfg.Masking.Key) > 0 {
		mask, err := systemlog.NewMask(cfg.Masking.Key)
		if err != nil {
			return nil, fmt.Errorf("normalize.masking: %w", err)
		}
		s.mask.Store(mask)
	} else {
		s.waiting(errors.New("the masking key was not read yet"))
	}
	return s, nil
}

func (s *Service) waiting(err error) { s.fault.Store(&err) }

// Ready says why the service cannot work yet: nil once it has its masking key.
func (s *Service) Ready(context.Context) error {
	if s.mask.Load() != nil {
		return nil
	}
	return *s.fault.Load()
}

// Run normalizes until ctx ends. Without a masking key it waits for one: nothing is written unmasked.
func (s *Service) Run(ctx context.Context) error {
	if !s.readKey(ctx) {
		return nil // stopped while waiting
	}
	mask := s.mask.Load()
	return s.bus.RunTasks(ctx, topics.NormalizeDedup, func(partition int32) (bus.Task, error) {
		return newTask(s, mask, partition), nil
	})
}

func (s *Service) readKey(ctx context.Context) bool {
	said := ""
	for s.mask.Load() == nil {
		mask, err := maskFromFile(s.cfg.Masking.KeyFile)
		if err == nil {
			s.mask.Store(mask)
			break
		}
		s.waiting(err)
		if err.Error() != said {
			said = err.Error()
			s.log.Error("not ready: no masking key", "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(keyFileRetry):
		}
	}
	return true
}

func maskFromFile(path string) (*systemlog.Mask, error) {
	if path == "" {
		return nil, errors.New("normalize.masking.key_file is not set: name a file with at least 16 bytes, the same for every normalize; make one with: head -c 32 /dev/urandom | base64")
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read normalize.masking.key_file: %w", err)
	}
	mask, err := systemlog.NewMask(bytes.TrimSpace(key))
	if err != nil {
		return nil, fmt.Errorf("read normalize.masking.key_file %s: %w", path, err)
	}
	return mask, nil
}

// instruments are what is counted. Labels are results, classes and fields of the schema: all few.
type instruments struct {
	results    map[result]*metrics.Counter
	unreadable *metrics.Counter
	fields     *metrics.Counter
	masked     *metrics.Counter
	differs    *metrics.Counter
	reused     *metrics.Counter
	overflow   *metrics.Counter
	known      *metrics.Gauge
	bytes      *metrics.Gauge
}

// result is what became of one raw event.
type result string

const (
	wroteFirst    result = "first"         // copy 1
	wroteSecond   result = "second"        // copy 2: the complete one after a partial one
	wroteSeed     result = "seed"          // of the past, for rules with memory alone
	dropDuplicate result = "duplicate"     // a copy of the kind that was there
	dropPartial   result = "partial_after" // a partial copy after the complete one
	deadUnread    result = "unreadable"    // dead letter
	deadOversize  result = "oversize"      // dead letter: its bytes were left out at the source
	deadTooLarge  result = "too_large"     // dead letter: the record would not fit its topic
)

func newInstruments(m *metrics.Set) instruments {
	i := instruments{
		results:    map[result]*metrics.Counter{},
		unreadable: m.Counter("oktawatch_normalize_unreadable_total", "Raw events that became dead letters because they could not be read, by class.", "class"),
		fields:     m.Counter("oktawatch_normalize_bad_fields_total", "Fields left empty because what was there could not be taken, by Okta's path and problem.", "field", "problem"),
		masked:     m.Counter("oktawatch_normalize_masked_values_total", "Secret values replaced."),
		differs:    m.Counter("oktawatch_normalize_differing_copies_total", "Second copies that differ from the first in a section both carry."),
		reused:     m.Counter("oktawatch_normalize_reused_uuids_total", "Events whose uuid was seen before with another published or eventType."),
		overflow:   m.Counter("oktawatch_normalize_dedup_overflow_total", "Events forgotten before their time because the dedup memory was full."),
		known:      m.Gauge("oktawatch_normalize_dedup_events", "Events in the dedup memory.", "partition"),
		bytes:      m.Gauge("oktawatch_normalize_dedup_bytes", "Size of the dedup memory, estimated.", "partition"),
	}
	events := m.Counter("oktawatch_normalize_events_total", "Raw events handled, by what became of them.", "result")
	for _, r := range []result{wroteFirst, wroteSecond, wroteSeed, dropDuplicate, dropPartial, deadUnread, deadOversize, deadTooLarge} {
		i.results[r] = events.With(string(r))
	}
	return i
}
