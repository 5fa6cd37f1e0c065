package engine

import (
	"encoding/binary"
	"slices"
	"sort"
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
	l := s.lane(laneID{org, laneName, false})
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

// needless tells that a seed changes nothing: the rule takes none, it is too old, it was counted, or the live events are
// counted in its place.
func (m *memory) needless(g *group, h *held) bool {
	if !TakesSeeds(m.c) {
		return true
	}
	d := &m.c.Detection
	if d.Kind == rule.KindFirstSeen {
		return m.clock != ever && h.time <= m.clock-d.Memory.Milliseconds()
	}
	b := d.Bucket.Milliseconds()
	k := floorDiv(h.time, b)
	if !m.seedable(k) || m.clock != ever && k <= floorDiv(m.clock+1, b)-(d.Window+d.Baseline).Milliseconds()/b {
		return true
	}
	if g == nil || g.work == nil {
		return false
	}
	old, ok := g.buckets.find(k * b)
	return ok && old.past.has(recordOf(h))
}

// past is what a bucket that seeds may still come to remembers, so that each record counts once. It is never changed.
type past struct {
	records string // hashes of their identities, sorted, 8 bytes each
}

const recordSize = 8

func newPast(records []uint64) *past {
	slices.Sort(records)
	records = slices.Compact(records)
	b := make([]byte, 0, recordSize*len(records))
	for _, n := range records {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return &past{string(b)}
}

func recordOf(h *held) uint64 {
	var sum hasher
	sum.Reset()
	sum.text(h.identity())
	if len(h.sub) > 0 {
		sum.text(string(h.sub))
	}
	return sum.Sum64()
}

func (p *past) len() int { return len(p.records) / recordSize }

func (p *past) record(i int) uint64 {
	var b [recordSize]byte
	copy(b[:], p.records[recordSize*i:])
	return binary.LittleEndian.Uint64(b[:])
}

func (p *past) has(record uint64) bool {
	if p == nil {
		return false
	}
	i := sort.Search(p.len(), func(i int) bool { return p.record(i) >= record })
	return i < p.len() && p.record(i) == record
}

func (p *past) with(o *past) *past {
	all := make([]uint64, 0, p.len()+o.len())
	for _, one := range [...]*past{p, o} {
		for i := range one.len() {
			all = append(all, one.record(i))
		}
	}
	return newPast(all)
}

// news are the events that a bucket does not know yet, as many as it can remember.
type news struct {
	known   *past
	keeps   bool // seeds may come to the bucket
	n       int
	records []uint64
	cut     bool
}

func (n *news) take(h *held) bool {
	if n.known == nil && !n.keeps {
		return true
	}
	record := recordOf(h)
	switch {
	case n.known == nil:
	case n.known.has(record):
		return false
	case n.known.len()+n.n >= maxPast:
		n.cut = true
		return false
	}
	n.n++
	if n.keeps {
		n.records = append(n.records, record)
	}
	return true
}

// mergeable has a bucket keep what merging it with another needs: which records it holds, the values of distinct, and
// whether there was anything to be the least or the greatest.
func (k *bucket) mergeable(a *accumulator, records []uint64) {
	k.past = newPast(records)
	for i, t := range a.types {
		switch v := &a.vals[i]; {
		case t.How == rule.AggDistinct:
			k.keys[i] = packCounts(v.all())
		case (t.How == rule.AggMin || t.How == rule.AggMax) && v.n > 0:
			k.keys[i] = packCounts(map[string]int64{"": v.n})
		}
	}
}

func sum(a, b counts) counts {
	out := a.all()
	b.each(func(key string, n int64) { out[key] += n })
	return packCounts(out)
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
		var v rule.Value
		switch t.Type {
		case rule.CountsValue:
			v.Counts = k.keys[i].all()
		case rule.DoubleValue:
			v.Double = k.nums[i]
		default:
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
