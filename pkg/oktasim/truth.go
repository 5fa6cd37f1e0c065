package oktasim

import (
	"encoding/json"
	"iter"
	"time"
)

// Truth is the ground truth: what the org really emitted, whatever the faults then did to it.
type Truth struct{ o *Org }

// Emitted is one event of the ground truth.
type Emitted struct {
	Seq       uint64    `json:"seq"` // the order of emission, from 1, without gaps
	UUID      string    `json:"uuid"`
	EventType string    `json:"eventType"`
	Published time.Time `json:"published"`
	Persisted time.Time `json:"persisted,omitzero"` // zero: not yet to be seen in the System Log
	Hook      string    `json:"hook"`               // none, queued, acked, failed or dropped
	Scenario  string    `json:"scenario,omitempty"`
	Size      int       `json:"size"`
}

// Query selects events of the ground truth; its zero value selects all that are kept.
type Query struct {
	After     uint64 // only with a greater Seq
	EventType string
	Scenario  string // "*": any scenario, not the ordinary traffic
	Persisted bool   // only what the System Log shows
	Limit     int    // zero: no limit
}

// Summary counts the ground truth. Its numbers hold for the whole life of the org, restarts with a data directory included.
type Summary struct {
	Emitted   int64            `json:"emitted"`
	Persisted int64            `json:"persisted"`
	Late      int64            `json:"late"`      // persisted later than emitted, or to be
	Waiting   int              `json:"waiting"`   // late events not yet persisted
	Forgotten int64            `json:"forgotten"` // no longer kept: beyond max_events
	Bytes     int64            `json:"bytes"`
	LastSeq   uint64           `json:"last_seq"`
	Hook      map[string]int64 `json:"hook"`
	Hooks     HookStats        `json:"deliveries"`
	Paused    bool             `json:"paused"`
	Rate      float64          `json:"rate"`
}

type counts struct {
	Emitted, Late, Forgotten, Bytes int64
	Hook                            [len(hookStates)]int64
}

// Summary returns the counts.
func (t Truth) Summary() Summary {
	s := t.o.store
	s.settle(t.o.now())
	hooks := t.o.hookStats()
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.stats
	sum := Summary{
		Emitted: c.Emitted, Persisted: c.Emitted - int64(len(s.late)), Late: c.Late, Waiting: len(s.late), Forgotten: c.Forgotten, Bytes: c.Bytes,
		LastSeq: s.entries.next - 1, Hook: map[string]int64{}, Hooks: hooks, Paused: t.o.paused.Load(), Rate: t.o.Rate(),
	}
	for i, n := range c.Hook {
		if i != int(hookNone) {
			sum.Hook[hookStates[i]] = n
		}
	}
	return sum
}

// Events lists emitted events in the order of emission, in small steps that do not hold the org up.
func (t Truth) Events(q Query) iter.Seq[Emitted] {
	return func(yield func(Emitted) bool) {
		s := t.o.store
		s.settle(t.o.now())
		seq, left := q.After+1, q.Limit
		for {
			s.mu.RLock()
			seq = max(seq, s.entries.first)
			page := make([]Emitted, 0, 256)
			for ; seq < s.entries.next && len(page) < 256; seq++ {
				e := s.entries.at(seq)
				typ, tale := s.types.names[e.typ], s.tales.names[e.scenario]
				if q.EventType != "" && typ != q.EventType || q.Persisted && e.at.ms == 0 ||
					q.Scenario != "" && tale != q.Scenario && (q.Scenario != "*" || tale == "") {
					continue
				}
				page = append(page, s.emitted(seq, e))
			}
			end := seq >= s.entries.next
			s.mu.RUnlock()
			for _, e := range page {
				if !yield(e) {
					return
				}
				if left--; left == 0 {
					return
				}
			}
			if end {
				return
			}
		}
	}
}

// Raw returns the bytes of an emitted event, as the System Log shows them.
func (t Truth) Raw(seq uint64) ([]byte, bool) {
	s := t.o.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.entries.at(seq) == nil {
		return nil, false
	}
	b, err := s.raws([]uint64{seq})
	if err != nil {
		return nil, false
	}
	return b[0], true
}

func (s *store) emitted(seq uint64, e *entry) Emitted {
	m := Emitted{
		Seq: seq, UUID: s.uuidOf(seq, e), EventType: s.types.names[e.typ], Published: time.UnixMilli(e.pub).UTC(),
		Hook: hookStates[e.hook], Scenario: s.tales.names[e.scenario], Size: int(e.size),
	}
	if e.at.ms != 0 {
		m.Persisted = time.UnixMilli(e.at.ms).UTC()
	}
	return m
}

// tell appends a line to the truth file: one at emission, another at each change; the last line of a seq holds.
func (s *store) tell(seq uint64, e *entry) {
	if s.truth == nil {
		return
	}
	b, err := json.Marshal(s.emitted(seq, e))
	if err == nil {
		_, _ = s.truth.Write(append(b, '\n')) // the flush reports it
	}
}
