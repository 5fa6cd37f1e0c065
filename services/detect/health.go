package detect

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	maxRefused   = 100
	maxParts     = 200
	stopWithin   = 5 * time.Second // for the last word
	retryHealth  = 5 * time.Second
	afterNews    = time.Second // at most one heartbeat in it
	maxTextBytes = 500
)

// InstanceAlive is how long after its last heartbeat an instance counts as running: longer than three of them take, shorter than
// instances may have different rules.
const InstanceAlive = 50 * time.Second

// intervals are how often what is done; tests have others.
type intervals struct {
	beat   time.Duration // between heartbeats, and between records of what is remembered when that has changed
	alive  time.Duration // InstanceAlive
	differ time.Duration // for how long instances may judge by different rules
	adopt  time.Duration // after its last heartbeat an instance's memory becomes another's
	look   time.Duration // at the health of the rules
}

var usual = intervals{
	beat: 15 * time.Second, alive: InstanceAlive, differ: time.Minute, adopt: 10 * time.Minute, look: 5 * time.Second,
}

// health is what this instance reports of its rules, and what all have reported. Nothing here is needed to judge: where the topic
// cannot be read or written, that is said and judging goes on.
type health struct {
	s       *Service
	every   intervals
	least   int // samples
	sample  int // one in so many is measured
	facts   *facts
	started time.Time
	loaded  atomic.Pointer[time.Time] // when the rules in force were loaded

	mu      sync.Mutex
	open    bool // the table is whole
	version int
	states  map[string]*record.RuleStatus // by key

	restored bool
	written  int             // own parts on the topic, from 1 on
	gone     map[string]bool // keys of records that were taken over, until the topic has them no more; true: deleted
}

func newHealth(s *Service) *health {
	return &health{
		s: s, every: usual, least: minSamples, sample: meterEvery, facts: newFacts(), started: time.Now(),
		states: map[string]*record.RuleStatus{}, gone: map[string]bool{},
	}
}

// statuses are the records of the topic; ok is false while they are not all known.
func (h *health) statuses() (states map[string]*record.RuleStatus, version int, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.states), h.version, h.open
}

// run reports until ctx ends, and once more then.
func (h *health) run(ctx context.Context) {
	for tries := 1; ctx.Err() == nil; tries++ {
		err := h.report(ctx)
		if ctx.Err() != nil {
			return
		}
		h.mu.Lock()
		h.open = false
		h.mu.Unlock()
		if tries&(tries-1) == 0 {
			h.s.log.Warn("the health of the rules is not reported; tried again", "topic", topics.RuleStatus.Name, "error", err, "tries", tries)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryHealth):
		}
	}
}

func (h *health) report(ctx context.Context) error {
	tctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.mu.Lock()
	clear(h.states)
	h.mu.Unlock()
	table, err := h.s.bus.OpenTable(tctx, topics.RuleStatus, func(key string, value []byte) { h.apply(tctx, key, value) })
	if err != nil {
		return err
	}
	defer func() { cancel(); <-table.Done() }()
	if !h.restored {
		h.restore()
		h.restored = true
	}
	h.mu.Lock()
	h.open = true
	h.mu.Unlock()
	beat := time.NewTicker(h.every.beat)
	defer beat.Stop()
	for err = h.beat(ctx, false); err == nil && ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-table.Done():
			err = table.Err()
		case <-beat.C:
			h.adopt(time.Now())
			err = errors.Join(h.remember(ctx), h.beat(ctx, false))
		case <-h.facts.news:
			err = h.beat(ctx, false)
			select { // what follows shares the next one
			case <-ctx.Done():
			case <-time.After(min(afterNews, h.every.beat)):
			}
		}
	}
	if ctx.Err() == nil {
		return err
	}
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer done()
	if err := errors.Join(h.remember(ctx), h.beat(ctx, true)); err != nil {
		h.s.log.Warn("what the rules met last is not remembered", "error", err)
	}
	return nil
}

// apply takes a record of the topic. One that cannot be read is of a later version, or nobody's.
func (h *health) apply(ctx context.Context, key string, value []byte) {
	var st *record.RuleStatus
	for tries := 0; value != nil; tries++ {
		var err error
		st, err = bus.Decode[record.RuleStatus](ctx, h.s.bus, bus.Message{Topic: topics.RuleStatus, Key: []byte(key), Value: value})
		if err == nil {
			break
		}
		st = nil
		if errors.Is(err, record.ErrUnreadable) || tries > 10 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.version++
	if st == nil {
		delete(h.states, key)
		return
	}
	h.states[key] = st
}

// restore takes back what this instance had remembered.
func (h *health) restore() {
	states, _, _ := h.statuses()
	for _, st := range ofInstance(states, h.s.bus.InstanceID()) {
		if st.Part == 0 {
			h.facts.recall(st)
			continue
		}
		h.facts.add(st)
		h.written = max(h.written, int(st.Part))
	}
	if set := h.s.Rules(); set != nil {
		h.facts.use(set)
	}
}

// ofInstance are the records of one instance by part.
func ofInstance(states map[string]*record.RuleStatus, instance string) (out []*record.RuleStatus) {
	for _, st := range states {
		if st.Instance == instance {
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(a, b *record.RuleStatus) int { return int(a.Part - b.Part) })
	return out
}

func (h *health) send(ctx context.Context, st *record.RuleStatus, now time.Time) error {
	st.Instance, st.HeartbeatAt = h.s.bus.InstanceID(), now
	return h.s.bus.Sender().Send(ctx, topics.RuleStatus, statusKey(st.Instance, int(st.Part)), st)
}

func statusKey(instance string, part int) string { return instance + "/" + strconv.Itoa(part) }

// beat writes the heartbeat.
func (h *health) beat(ctx context.Context, stopped bool) error {
	gen := h.s.current.Load()
	if gen == nil {
		return nil
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	st := &record.RuleStatus{
		StartedAt: new(h.started.UTC().Truncate(time.Millisecond)), Stopped: stopped, LoadedAt: h.loaded.Load(), Hash: gen.set.Hash, Rules: int32(len(gen.set.Rules)),
		RefusedCount: int32(len(gen.problems)),
	}
	for _, p := range gen.problems[:min(len(gen.problems), maxRefused)] {
		st.Refused = append(st.Refused, record.RuleRefused{
			File: p.File, Line: int32(p.Line), Col: int32(p.Col), Check: p.Check, Message: clip(p.Message, maxTextBytes),
			Stale: slices.Contains(gen.set.Stale, p.File),
		})
	}
	h.facts.report(st, now, h.least)
	for _, c := range st.Costs {
		h.s.m.cost.With(c.RuleID).Set(c.P99Us / 1e6)
	}
	return h.send(ctx, st, now)
}

// remember writes what has changed of what the instance remembers, then deletes what it has taken over.
func (h *health) remember(ctx context.Context) error {
	if set := h.s.Rules(); set != nil {
		h.facts.use(set)
	}
	parts := h.facts.parts()
	if len(parts) == 0 {
		return nil
	}
	if len(parts) > maxParts {
		h.s.log.Warn("not all that the rules met is remembered", "parts", len(parts), "limit", maxParts)
		parts = parts[:maxParts]
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	for _, st := range parts {
		if err := h.send(ctx, st, now); err != nil {
			h.facts.again()
			return err
		}
	}
	sender := h.s.bus.Sender()
	for n := len(parts) + 1; n <= h.written; n++ {
		if err := sender.Send(ctx, topics.RuleStatus, statusKey(h.s.bus.InstanceID(), n), nil); err != nil {
			return err
		}
	}
	h.written = len(parts)
	for key, deleted := range h.gone {
		if deleted {
			continue
		}
		if err := sender.Send(ctx, topics.RuleStatus, key, nil); err != nil {
			return err
		}
		h.gone[key] = true
	}
	return nil
}

// adopt takes over what instances remembered that have not been heard of for long, so that it is neither lost nor kept for ever. The
// living instance whose id comes first does it.
func (h *health) adopt(now time.Time) {
	states, _, _ := h.statuses()
	heard := map[string]time.Time{}
	for _, st := range states {
		if st.HeartbeatAt.After(heard[st.Instance]) {
			heard[st.Instance] = st.HeartbeatAt
		}
	}
	me := h.s.bus.InstanceID()
	for id := range heard {
		if head := states[statusKey(id, 0)]; id < me && head != nil && h.every.lives(head, now) {
			return
		}
	}
	maps.DeleteFunc(h.gone, func(key string, deleted bool) bool {
		st := states[key]
		return deleted && (st == nil || now.Sub(st.HeartbeatAt) < h.every.adopt)
	})
	for id, at := range heard {
		if id == me || now.Sub(at) < h.every.adopt {
			continue
		}
		for _, st := range ofInstance(states, id) {
			key := statusKey(id, int(st.Part))
			if _, ok := h.gone[key]; ok {
				continue
			}
			if st.Part > 0 {
				h.facts.add(st)
			}
			h.facts.again()
			h.gone[key] = false
		}
	}
}

// lives tells whether a heartbeat is of an instance that runs.
func (i intervals) lives(head *record.RuleStatus, now time.Time) bool {
	return head.Part == 0 && !head.Stopped && now.Sub(head.HeartbeatAt) < i.alive
}

// living are the heartbeats of the instances that run, by instance.
func (i intervals) living(states map[string]*record.RuleStatus, now time.Time) (out []*record.RuleStatus) {
	for _, st := range states {
		if i.lives(st, now) {
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(a, b *record.RuleStatus) int { return strings.Compare(a.Instance, b.Instance) })
	return out
}

// remembered joins what all instances remember.
func remembered(states map[string]*record.RuleStatus) *facts {
	f := newFacts()
	for _, st := range slices.SortedFunc(maps.Values(states), func(a, b *record.RuleStatus) int {
		return cmp.Or(strings.Compare(a.Instance, b.Instance), cmp.Compare(a.Part, b.Part))
	}) {
		if st.Part > 0 {
			f.add(st)
		}
	}
	return f
}

// use is told that other rules are in force.
func (h *health) use(set *rule.Set) {
	h.loaded.Store(new(time.Now().UTC().Truncate(time.Millisecond)))
	h.facts.use(set)
	h.facts.tell()
}

// meter measures a sample of what is judged.
func (h *health) meter() engine.Meter {
	return engine.Meter{Every: h.sample, Now: func() time.Duration { return time.Since(h.started) }, Took: h.facts.took}
}
