package engine

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/oktawatch/oktawatch/pkg/rule"
)

// A seed is an event of the past that only first_seen and baselines take in, whatever the clock. Each counts once, however
// often and in whatever order it comes: first_seen remembers the last sighting of a key, and a baseline takes seeds for the
// buckets before the one in which the live events of the rule begin, of which it remembers the records.

// maxPast is how many records of one bucket are remembered; beyond it seeds of the bucket are not counted.
const maxPast = 100_000

// Seeded says that a seed of the org lies at t, of any type: learning begins with the earliest.
func (s *State) Seeded(org, laneName string, t time.Time) {
	l := s.lane(org, laneName)
	ms := t.UnixMilli()
	for _, c := range s.set.For(org) {
		if c.Detection.Learning <= 0 || !TakesSeeds(c) {
			continue
		}
		m := s.memory(l, ruleID{c.ID, c.StateHash}, true)
		if m == nil || ms >= m.seeded {
			continue
		}
		was, began := m.seeded, m.began()
		s.undo = append(s.undo, func() { m.seeded = was })
		m.seeded = ms
		s.change(keyOfBegin(m), appendBegin(nil, m))
		if began == never || began+c.Detection.Learning.Milliseconds() > m.clock { // else all that is open has been learned anyway
			s.again(m, ms)
		}
	}
}

// began is when learning begins.
func (m *memory) began() int64 { return min(m.begin, m.seeded) }

// seedable tells whether seeds count in a bucket: before the one in which the live events begin.
func (m *memory) seedable(k int64) bool {
	return m.begin == never || k < floorDiv(m.begin, m.c.Detection.Bucket.Milliseconds())
}

// needless tells that a seed changes nothing: it is too old, it was counted, or the live events are counted in its place.
func (m *memory) needless(g *group, h *held) bool {
	d := &m.c.Detection
	if d.Kind == rule.KindFirstSeen {
		return m.clock != ever && h.time <= m.clock-d.Memory.Milliseconds()
	}
	b := d.Bucket.Milliseconds()
	k := floorDiv(h.time, b)
	if !m.seedable(k) || m.clock != ever && k <= floorDiv(m.clock+1, b)-(d.Window+d.Baseline).Milliseconds()/b {
		return true
	}
	if g == nil {
		return false
	}
	i, ok := slices.BinarySearchFunc(g.buckets, k*b, func(o bucket, t int64) int { return cmp.Compare(o.start, t) })
	return ok && g.buckets[i].past.has(h)
}

// past is what a bucket that seeds may still come to remembers, so that each record counts once. It is never changed.
type past struct {
	records []uint64 // hashes of uuids, sorted
}

func recordOf(h *held) uint64 {
	var sum hasher
	sum.Reset()
	sum.text(h.uuid)
	return sum.Sum64()
}

func (p *past) has(h *held) bool {
	if p == nil {
		return false
	}
	_, ok := slices.BinarySearch(p.records, recordOf(h))
	return ok
}

func (p *past) with(o *past) *past {
	all := append(slices.Clone(p.records), o.records...)
	slices.Sort(all)
	return &past{slices.Clip(slices.Compact(all))}
}

// unknown are the events that a bucket does not know yet, as many as it can remember.
func (s *State) unknown(g *group, p *past, events []held) []held {
	events = slices.DeleteFunc(slices.Clone(events), func(h held) bool { return p.has(&h) })
	if room := max(maxPast-len(p.records), 0); len(events) > room {
		s.limited(g.m.c.ID, "a bucket of a baseline has more than 100,000 seeds: the rest is not counted")
		events = events[:room]
	}
	return events
}

// mergeable has a bucket keep what merging it with another needs: which records it holds, the values of distinct, and
// whether there was anything to be the least or the greatest.
func (k *bucket) mergeable(a *accumulator, events []held) {
	k.past = &past{make([]uint64, 0, len(events))}
	for i := range events {
		k.past.records = append(k.past.records, recordOf(&events[i]))
	}
	slices.Sort(k.past.records)
	for i, t := range a.types {
		switch v := &a.vals[i]; {
		case t.How == rule.AggDistinct:
			k.keys[i] = v.counts
		case (t.How == rule.AggMin || t.How == rule.AggMax) && v.n > 0:
			k.keys[i] = map[string]int64{"": v.n}
		}
	}
}

func sum(a, b map[string]int64) map[string]int64 {
	out := make(map[string]int64, len(a)+len(b))
	maps.Copy(out, a)
	for k, n := range b {
		out[k] += n
	}
	return out
}

// recompute works out the aggregates of a bucket that are made of others.
func (s *State) recompute(g *group, k *bucket) {
	types := g.m.c.AggregateTypes
	if !slices.ContainsFunc(types, func(t rule.AggregateType) bool { return t.How == rule.AggValue }) {
		return
	}
	scratch := &rule.Hit{Event: s.set.NewEvent(), Count: int64(k.nums[len(types)]), Key: g.keys()}
	scratch.Event.Reset(&s.empty)
	for i, t := range types {
		v := rule.Value{Counts: k.keys[i]}
		if t.Type == rule.DoubleValue {
			v.Double = k.nums[i]
		} else {
			v.Int = int64(k.nums[i])
		}
		scratch.Agg = append(scratch.Agg, v)
	}
	for i, t := range types {
		if t.How == rule.AggValue {
			v, err := g.m.c.Computed(scratch, i)
			s.failed(err)
			k.nums[i] = number(t, v)
		}
	}
}
