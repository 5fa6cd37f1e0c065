package bus

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// StageHealth is how a stage of this process is doing.
type StageHealth struct {
	Group        string    `json:"group"`   // with prefix
	Service      string    `json:"service"` //
	Stage        string    `json:"stage"`
	Alive        bool      `json:"alive"`         // in the group and able to work; false while it starts, and while it cannot
	Partitions   []int32   `json:"partitions"`    // those it works on now
	Restoring    int       `json:"restoring"`     // assigned, memory not yet read back
	Lag          int64     `json:"lag"`           // records of its partitions written and not yet committed; -1: not known
	Retrying     int       `json:"retrying"`      // partitions whose next record fails and is tried again
	DeadLetters  int64     `json:"dead_letters"`  // since the process started
	LastProgress time.Time `json:"last_progress"` // last commit, or last look that found nothing to do
	LastEvent    time.Time `json:"last_event"`    // Kafka timestamp of the newest record handled
	LastError    string    `json:"last_error"`    // empty again after the next commit
	LastErrorAt  time.Time `json:"last_error_at"`
}

// Health tells how each stage of this process is doing, in the order of their names.
func (b *Bus) Health() []StageHealth {
	b.mu.Lock()
	var all []*stageHealth
	for _, h := range b.stages {
		all = append(all, h)
	}
	b.mu.Unlock()
	out := make([]StageHealth, 0, len(all))
	for _, h := range all {
		h.mu.Lock()
		s := h.s
		s.Partitions = slices.Clone(s.Partitions)
		h.mu.Unlock()
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b StageHealth) int { return cmp.Compare(a.Group, b.Group) })
	return out
}

type stageHealth struct {
	mu sync.Mutex
	s  StageHealth
}

func (b *Bus) stage(g topics.Group) *stageHealth {
	b.mu.Lock()
	defer b.mu.Unlock()
	name := g.Name(b.deps.Prefix)
	h := b.stages[name]
	if h == nil {
		h = &stageHealth{s: StageHealth{Group: name, Service: g.Service, Stage: g.Stage, Lag: -1}}
		b.stages[name] = h
	}
	return h
}

func (h *stageHealth) set(f func(*StageHealth)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.s)
}

func (h *stageHealth) failed(err error) {
	h.set(func(s *StageHealth) {
		s.LastError, s.LastErrorAt = clip(err.Error(), maxErrorText), time.Now()
	})
}

func (h *stageHealth) progressed(failing int) {
	h.set(func(s *StageHealth) {
		s.LastProgress, s.Retrying = time.Now(), failing
		if failing == 0 {
			s.LastError = ""
		}
	})
}

// instruments are the bus's metrics.
type instruments struct {
	in, out, dead, retries, restarts, rebalances, rebuilds *metrics.Counter
	txns                                                   *metrics.Counter
	txnSeconds, restoreSeconds                             *metrics.Histogram
	lag, partitions                                        *metrics.Gauge
	sinceEvent                                             *metrics.Gauge
}

func newInstruments(s *metrics.Set) *instruments {
	return &instruments{
		in:             s.Counter("oktawatch_bus_records_read_total", "Records committed as handled.", "stage", "topic"),
		out:            s.Counter("oktawatch_bus_records_written_total", "Records committed as written, changelog and dead letters too.", "stage"),
		dead:           s.Counter("oktawatch_bus_dead_letters_total", "Records that became dead letters.", "stage"),
		retries:        s.Counter("oktawatch_bus_retries_total", "Batches that failed and were put back to be tried again.", "stage"),
		restarts:       s.Counter("oktawatch_bus_restarts_total", "Times a stage dropped its client and memory and began again.", "stage"),
		rebalances:     s.Counter("oktawatch_bus_rebalances_total", "Changes of the partitions a stage works on.", "stage"),
		txns:           s.Counter("oktawatch_bus_transactions_total", "Transactions by how they ended: committed, aborted, unknown.", "stage", "outcome"),
		txnSeconds:     s.Histogram("oktawatch_bus_transaction_seconds", "Time from the first write of a transaction to the answer of its commit.", "stage"),
		rebuilds:       s.Counter("oktawatch_bus_rebuilds_total", "Partitions whose changelog was lost, so that their memory was made again from the input.", "stage"),
		restoreSeconds: s.Histogram("oktawatch_bus_restore_seconds", "Time from the assignment of a partition to its first record.", "stage"),
		lag:            s.Gauge("oktawatch_bus_lag_records", "Records written to the stage's partitions and not yet committed.", "stage"),
		partitions:     s.Gauge("oktawatch_bus_partitions", "Partitions the stage works on.", "stage"),
		sinceEvent:     s.Gauge("oktawatch_bus_last_event_timestamp_seconds", "Kafka timestamp of the newest record handled.", "stage"),
	}
}
