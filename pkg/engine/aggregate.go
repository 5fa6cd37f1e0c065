package engine

import (
	"cmp"
	"math"
	"slices"

	"github.com/oktawatch/oktawatch/pkg/rule"
)

// accumulator is what the aggregates of a rule are over some events, to which events are added and from which they are
// taken.
type accumulator struct {
	types []rule.AggregateType
	vals  []accumulated
	count int64
	cut   bool // more values than are counted
}

type accumulated struct {
	n      int64            // count; min, max: how many numbers there are
	few    []counted        // distinct: records by value, while there are few
	counts map[string]int64 // distinct, count_by: records by value
	best   uint64           // min, max
	stale  bool             // the best one was taken away
}

type counted struct {
	text []byte
	n    int64
}

// fewValues is how many values are looked through rather than looked up.
const fewValues = 12

// note counts a value of a distinct among few. It tells whether that was all.
func (v *accumulated) note(text []byte, sign int64) bool {
	if len(v.counts) > 0 {
		return false
	}
	for i := range v.few {
		if o := &v.few[i]; string(o.text) == string(text) {
			if o.n += sign; o.n == 0 {
				last := len(v.few) - 1
				v.few[i] = v.few[last]
				v.few = v.few[:last]
			}
			return true
		}
	}
	switch {
	case sign < 0:
		return true
	case len(v.few) < fewValues:
		v.few = append(v.few, counted{text, 1})
		return true
	}
	if v.counts == nil {
		v.counts = map[string]int64{}
	}
	for _, o := range v.few {
		v.counts[string(o.text)] = o.n
	}
	v.few = v.few[:0]
	return false
}

// all is how many records each value of a distinct has.
func (v *accumulated) all() map[string]int64 {
	if len(v.few) == 0 {
		return v.counts
	}
	out := make(map[string]int64, len(v.few))
	for _, o := range v.few {
		out[string(o.text)] = o.n
	}
	return out
}

func (a *accumulator) reset(types []rule.AggregateType) {
	if len(a.vals) != len(types) {
		a.vals = make([]accumulated, len(types))
	}
	a.types, a.count, a.cut = types, 0, false
	for i := range a.vals {
		v := &a.vals[i]
		if len(v.counts) > 1024 {
			v.counts = nil
		}
		clear(v.counts)
		v.few, v.n, v.stale = v.few[:0], 0, false
	}
}

func (a *accumulator) apply(h *held, sign int64) {
	a.count += sign
	if len(a.types) == 0 {
		return
	}
	b := h.values
	for i := range a.types {
		v := &a.vals[i]
		t := a.types[i]
		there, number, rest := rule.ReadValue(t, b, func(text []byte) {
			if t.How == rule.AggDistinct && v.note(text, sign) {
				return
			}
			n, ok := v.counts[string(text)]
			switch {
			case ok && n+sign == 0:
				delete(v.counts, string(text))
			case ok:
				v.counts[string(text)] = n + sign
			case sign < 0:
			case len(v.counts) >= maxHeld:
				a.cut = true
			default:
				if v.counts == nil {
					v.counts = map[string]int64{}
				}
				v.counts[string(text)] = 1
			}
		})
		if rest == nil && t.How != rule.AggValue {
			rest = []byte{}
		}
		b = rest
		if !there {
			continue
		}
		switch t.How {
		case rule.AggDistinct, rule.AggCountBy, rule.AggValue: // above, or computed from the others
		case rule.AggCount:
			v.n += sign
		case rule.AggMin, rule.AggMax:
			switch {
			case sign < 0:
				v.n--
				v.stale = v.stale || number == v.best
			case v.n == 0 || better(t, number, v.best):
				v.best = number
				v.n++
			default:
				v.n++
			}
		}
	}
}

// better tells whether x wins over y.
func better(t rule.AggregateType, x, y uint64) bool {
	var c int
	if t.Type == rule.DoubleValue {
		c = cmp.Compare(math.Float64frombits(x), math.Float64frombits(y))
	} else {
		c = cmp.Compare(int64(x), int64(y)) //nolint:gosec // written as signed
	}
	if t.How == rule.AggMin {
		return c < 0
	}
	return c > 0
}

// read gives the values; events are those it holds, for numbers whose best one was taken away.
func (a *accumulator) read(out []rule.Value, events func(func(h *held))) []rule.Value {
	out = out[:0]
	for i := range a.types {
		v := &a.vals[i]
		t := a.types[i]
		var val rule.Value
		switch t.How {
		case rule.AggValue: // computed from the others
		case rule.AggCount:
			val.Int = v.n
		case rule.AggDistinct:
			val.Int = int64(len(v.few) + len(v.counts))
		case rule.AggCountBy:
			val.Counts = v.counts
		case rule.AggMin, rule.AggMax:
			if v.stale && v.n > 0 {
				a.rescan(i, events)
			}
			v.stale = false
			if v.n > 0 {
				if t.Type == rule.DoubleValue {
					val.Double = math.Float64frombits(v.best)
				} else {
					val.Int = int64(v.best) //nolint:gosec // written as signed
				}
			}
		}
		out = append(out, val)
	}
	return out
}

func (a *accumulator) rescan(i int, events func(func(h *held))) {
	first := true
	events(func(h *held) {
		b := h.values
		for j := 0; j <= i; j++ {
			there, number, rest := rule.ReadValue(a.types[j], b, func([]byte) {})
			b = rest
			if j == i && there && (first || better(a.types[i], number, a.vals[i].best)) {
				a.vals[i].best, first = number, false
			}
		}
	})
}

// reach is where the window of T begins: events behind it are in.
func (m *memory) reach(t int64) int64 {
	d := &m.c.Detection
	if d.Baseline > 0 {
		b := d.Bucket.Milliseconds()
		return (floorDiv(t, b)-d.Window.Milliseconds()/b+1)*b - 1
	}
	return t - d.Window.Milliseconds()
}

// aggregate finds the hits at from to to.
func (s *State) aggregate(g *group, from, to int64) {
	m := g.m
	settle := m.c.Detection.Settle.Milliseconds()
	start := 0
	if from != ever {
		start = g.timeAfter(from - settle - 1)
	}
	a := &s.agg
	a.reset(m.c.AggregateTypes)
	lo, hi := -1, 0
	past := pastBuckets{s: s, g: g}
	n := g.len()
	var e held
	for i := start; i < n; i++ {
		if g.bits(i)&bitSeed != 0 || i+1 < n && g.time(i+1) == g.time(i) && g.laterJudged(i) {
			continue
		}
		t := g.time(i) + settle
		if t > to {
			break
		}
		reach := m.reach(t)
		if lo < 0 {
			lo = g.timeAfter(reach)
			hi = lo
		}
		for hi < n && g.time(hi) <= t {
			if g.bits(hi)&bitSeed == 0 {
				g.readValues(hi, &e)
				a.apply(&e, 1)
			}
			hi++
		}
		for lo < hi && g.time(lo) <= reach {
			if g.bits(lo)&bitSeed == 0 {
				g.readValues(lo, &e)
				a.apply(&e, -1)
			}
			lo++
		}
		if a.count == 0 || !m.learned(t) { // with whole buckets and settle the window may have passed the record by
			continue
		}
		h := hit{at: t, lo: int32(lo), hi: int32(hi)} //nolint:gosec // at most maxHeld
		s.read(g, &h)
		if m.c.Detection.Baseline > 0 {
			s.hit.Recent, s.hit.Base = past.of(t)
		}
		ok, err := m.c.Having(&s.hit)
		s.failed(err)
		if !ok {
			continue
		}
		if a.cut && !g.truncated {
			g.truncated = true
			s.limited(m.c.ID, "a distinct or count_by has more than 10,000 values: those that come later are not counted")
		}
		h.severity, err = m.c.HitSeverity(&s.hit)
		s.failed(err)
		g.hits = append(g.hits, h)
		if s.lens.used > maxListed {
			s.lens.clear()
		}
	}
}

// laterJudged tells whether an event of the same time that is no seed comes behind i.
func (g *group) laterJudged(i int) bool {
	t := g.time(i)
	for j := i + 1; j < g.len() && g.time(j) == t; j++ {
		if g.bits(j)&bitSeed == 0 {
			return true
		}
	}
	return false
}

// read fills s.hit from the accumulator.
func (s *State) read(g *group, h *hit) {
	c := g.m.c
	h.last = h.hi - 1
	for h.last > h.lo && g.bits(int(h.last))&bitSeed != 0 {
		h.last--
	}
	hit := &s.hit
	hit.Reset()
	hit.Key = s.keysOf(g)
	hit.Count = s.agg.count
	hit.Steps, hit.Recent, hit.Base = nil, nil, nil
	lo, hi := h.lo, h.hi
	hit.Agg = s.agg.read(hit.Agg, func(each func(*held)) {
		g.each(int(lo), int(hi), func(h *held) {
			if h.bits&bitSeed == 0 {
				each(h)
			}
		})
	})
	if c.ReadsEvent {
		hit.Event = s.lens.event(s, g, h.last)
	} else {
		s.event.Reset(&s.empty)
		hit.Event = s.event
	}
	if c.ReadsEvidence {
		own := *h
		hit.Evidence = func() []*rule.Event { return s.shown(g, &own) }
	} else {
		hit.Evidence = nil
	}
}

// window makes what expressions over a hit of an aggregate see, from the events.
func (s *State) window(g *group, h *hit) {
	s.agg.reset(g.m.c.AggregateTypes)
	g.each(int(h.lo), int(h.hi), func(h *held) {
		if h.bits&bitSeed == 0 {
			s.agg.apply(h, 1)
		}
	})
	s.read(g, h)
	if g.m.c.Detection.Baseline > 0 {
		past := pastBuckets{s: s, g: g}
		s.hit.Recent, s.hit.Base = past.of(h.at)
	}
}

// bucket is what the aggregates were over one stretch of time. Numbers stand by number of aggregate, count behind them.
type bucket struct {
	start int64
	nums  []float64
	keys  []counts // of count_by
	past  *past    // of one that seeds may still come to
}

// pastBuckets works out what base and recent are, keeping the buckets that are whole.
type pastBuckets struct {
	s    *State
	g    *group
	old  []bucket // those that are closed
	read bool
	made map[int64]bucket
}

// of gives recent and base at T.
func (p *pastBuckets) of(t int64) (recent, base []any) {
	d := &p.g.m.c.Detection
	b := d.Bucket.Milliseconds()
	now := floorDiv(t, b)
	n, nb := d.Window.Milliseconds()/b, d.Baseline.Milliseconds()/b
	var in, before []bucket
	if !p.read {
		p.old, p.read = p.g.buckets.all(), true
	}
	for _, old := range p.old {
		if i := floorDiv(old.start, b); i >= now-n-nb+1 && i <= now-n {
			if mixed, ok := p.at(i, math.MaxInt64, true); ok {
				before = append(before, p.s.merge(p.g, old, mixed))
				continue
			}
			before = append(before, old)
		}
	}
	g := p.g
	for i := 0; i < g.len(); {
		k := floorDiv(g.time(i), b)
		i = g.timeAfter((k+1)*b - 1)
		switch {
		case k > now || k < now-n-nb+1:
		case k > now-n:
			until := int64(math.MaxInt64)
			if k == now {
				until = t
			}
			if one, ok := p.at(k, until, false); ok {
				in = append(in, one)
			}
		case slices.ContainsFunc(p.old, func(o bucket) bool { return o.start == k*b }):
		default:
			if one, ok := p.at(k, math.MaxInt64, true); ok {
				before = append(before, one)
			}
		}
	}
	return summary(p.g.m.c.AggregateTypes, in), summary(p.g.m.c.AggregateTypes, before)
}

// at makes one bucket from held events; seeds count in the past only.
func (p *pastBuckets) at(k, until int64, seeds bool) (bucket, bool) {
	seeds = seeds && p.g.m.seedable(k)
	id := k * 2
	if seeds {
		id++
	}
	if until == math.MaxInt64 {
		if one, ok := p.made[id]; ok {
			return one, len(one.nums) > 0
		}
	}
	b := p.g.m.c.Detection.Bucket.Milliseconds()
	lo, hi := p.g.timeAfter(k*b-1), p.g.timeAfter(min((k+1)*b-1, until))
	one := p.s.bucketOf(p.g, k*b, lo, max(lo, hi), seeds, nil)
	if until == math.MaxInt64 {
		if p.made == nil {
			p.made = map[int64]bucket{}
		}
		p.made[id] = one
	}
	return one, len(one.nums) > 0
}

// bucketOf computes every aggregate over some events, with or without seeds, less those that are known already; without
// any the bucket has no numbers. One that seeds may come to can be merged with another exactly.
func (s *State) bucketOf(g *group, start int64, lo, hi int, seeds bool, known *past) bucket {
	types := g.m.c.AggregateTypes
	out := bucket{start: start}
	var a accumulator
	a.reset(types)
	news := news{known: known, keeps: seeds}
	g.each(lo, hi, func(h *held) {
		if (seeds || h.bits&bitSeed == 0) && news.take(h) {
			a.apply(h, 1)
		}
	})
	if news.cut {
		s.limited(g.m.c.ID, "a bucket of a baseline has more than 100,000 seeds: the rest is not counted")
	}
	if a.count == 0 {
		return out
	}
	vals := a.read(nil, nil)
	out.nums = make([]float64, len(types)+1)
	out.keys = make([]counts, len(types))
	scratch := &rule.Hit{Event: s.set.NewEvent(), Agg: vals, Count: a.count, Key: g.keys()}
	scratch.Event.Reset(&s.empty)
	for i, t := range types {
		switch {
		case t.How == rule.AggValue:
			v, err := g.m.c.Computed(scratch, i)
			s.failed(err)
			out.nums[i] = number(t, v)
		case t.Type == rule.CountsValue:
			out.keys[i] = packCounts(vals[i].Counts)
		default:
			out.nums[i] = number(t, vals[i])
		}
	}
	out.nums[len(types)] = float64(a.count)
	if seeds {
		out.mergeable(&a, news.records)
	}
	return out
}

func number(t rule.AggregateType, v rule.Value) float64 {
	if t.Type == rule.DoubleValue {
		return v.Double
	}
	return float64(v.Int)
}

// summary sums buckets up, by number of aggregate and count behind them.
func summary(types []rule.AggregateType, buckets []bucket) []any {
	out := make([]any, len(types)+1)
	n := float64(len(buckets))
	for i := range out {
		if i < len(types) && types[i].Type == rule.CountsValue {
			k := &rule.KeyBaseline{N: int64(len(buckets)), Buckets: map[string]int64{}, Totals: map[string]int64{}}
			for _, b := range buckets {
				b.keys[i].each(func(key string, n int64) {
					k.Buckets[key]++
					k.Totals[key] += n
				})
			}
			out[i] = k
			continue
		}
		one := &rule.Baseline{N: int64(len(buckets))}
		for j, b := range buckets {
			one.Sum += b.nums[i]
			if j == 0 || b.nums[i] > one.Max {
				one.Max = b.nums[i]
			}
		}
		if n > 0 {
			one.Mean = one.Sum / n
			for _, b := range buckets {
				one.Stddev += (b.nums[i] - one.Mean) * (b.nums[i] - one.Mean)
			}
			one.Stddev = math.Sqrt(one.Stddev / n)
		}
		out[i] = one
	}
	return out
}

// merge adds what came later to a closed bucket. Where one of the two was not made for it, distinct values count as if
// all were new.
func (s *State) merge(g *group, a, b bucket) bucket {
	types := g.m.c.AggregateTypes
	out := bucket{start: a.start, nums: slices.Clone(a.nums), keys: slices.Clone(a.keys)}
	exact := a.past != nil && b.past != nil
	if exact {
		out.past = a.past.with(b.past)
	}
	for i := range out.nums {
		switch {
		case i < len(types) && types[i].How == rule.AggValue && exact: // below, from the others
		case i < len(types) && types[i].Type == rule.CountsValue:
			out.keys[i] = sum(a.keys[i], b.keys[i])
		case i < len(types) && types[i].How == rule.AggDistinct && exact:
			out.keys[i] = sum(a.keys[i], b.keys[i])
			out.nums[i] = float64(out.keys[i].len())
		case i < len(types) && exact && b.keys[i] == "" && (types[i].How == rule.AggMin || types[i].How == rule.AggMax):
		case i < len(types) && exact && a.keys[i] == "" && (types[i].How == rule.AggMin || types[i].How == rule.AggMax):
			out.nums[i], out.keys[i] = b.nums[i], b.keys[i]
		case i < len(types) && types[i].How == rule.AggMin:
			out.nums[i] = min(a.nums[i], b.nums[i])
		case i < len(types) && types[i].How == rule.AggMax:
			out.nums[i] = max(a.nums[i], b.nums[i])
		default:
			out.nums[i] += b.nums[i]
		}
	}
	if exact {
		s.recompute(g, &out)
	}
	return out
}

// foldBuckets closes the buckets of the first n events, which are about to go.
func (s *State) foldBuckets(g *group, n int) {
	b := g.m.c.Detection.Bucket.Milliseconds()
	buckets := g.buckets.all()
	for i := 0; i < n; {
		k := floorDiv(g.time(i), b)
		end := min(g.timeAfter((k+1)*b-1), n)
		at, found := slices.BinarySearchFunc(buckets, k*b, func(o bucket, t int64) int { return cmp.Compare(o.start, t) })
		var known *past
		if found {
			known = buckets[at].past
		}
		one := s.bucketOf(g, k*b, i, end, g.m.seedable(k), known)
		i = end
		if len(one.nums) == 0 {
			continue
		}
		if found {
			one = s.merge(g, buckets[at], one)
			buckets[at] = one
		} else {
			buckets = slices.Insert(buckets, at, one)
		}
		s.change(keyOfBucket(g, one.start), appendBucket(nil, &one))
	}
	g.buckets = packBuckets(buckets)
}
