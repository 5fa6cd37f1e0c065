package engine

import (
	"slices"

	"github.com/oktawatch/oktawatch/pkg/rule"
)

const maxTries = 100_000 // expressions judged in search of one chain

// sequence finds the hits at from to to: for each last record the chain whose records are latest.
func (s *State) sequence(g *group, from, to int64) {
	m := g.m
	trail := m.trail()
	q := &search{s: s, g: g, steps: m.c.StepTypes, window: m.c.Detection.Window.Milliseconds()}
	for i := range q.steps {
		if !q.steps[i].Not {
			q.real = append(q.real, i)
		}
	}
	q.chain = make([]int32, len(q.steps))
	start := 0
	if from != ever {
		start = g.timeAfter(from - trail - 1)
	}
	for i := start; i < g.len(); i++ {
		if g.time(i)+trail > to {
			break
		}
		if !q.fits(int32(i), q.real[len(q.real)-1]) { //nolint:gosec // at most maxHeld
			continue
		}
		h, ok := q.find(int32(i)) //nolint:gosec // at most maxHeld
		if q.tries > maxTries && !g.truncated {
			g.truncated = true
			s.limited(m.c.ID, "the search for a chain was given up: let earlier steps take fewer events")
		}
		if !ok {
			continue
		}
		h.at = g.time(i) + trail
		if m.c.HasSeverityWhen() {
			own := h
			s.bind(g, &own)
			var err error
			h.severity, err = m.c.HitSeverity(&s.hit)
			s.failed(err)
		} else {
			h.severity = m.c.Severity
		}
		g.hits = append(g.hits, h)
		if s.lens.used > maxListed {
			s.lens.clear()
		}
	}
}

// search looks for the chains of one group.
type search struct {
	s      *State
	g      *group
	steps  []rule.StepType
	real   []int   // steps that are not negated
	chain  []int32 // by step, -1 where none is bound
	window int64
	least  int64 // records lie behind it
	tries  int
	asked  rule.Hit // what a step that reads earlier ones is shown
	found  hit
}

// fits tells whether the filter of a step took an event that is judged.
func (q *search) fits(n int32, step int) bool {
	return q.g.flags(int(n))&(1<<step) != 0 && q.g.bits(int(n))&(bitExcepted|bitSeed) == 0
}

// holds judges a step that reads earlier ones.
func (q *search) holds(step int, n int32) bool {
	if !q.steps[step].Dynamic {
		return true
	}
	if q.tries++; q.tries > maxTries {
		return false
	}
	s := q.s
	if s.lens.used > maxHeld+maxListed { // more than a group holds: never within one scan of it
		s.lens.clear()
	}
	hit := &q.asked
	if hit.Steps == nil {
		hit.Steps = make([]*rule.Event, len(q.steps))
	}
	clear(hit.Steps)
	for _, r := range q.steps[step].Refs {
		if r < 0 || q.chain[r] < 0 {
			return false
		}
		hit.Steps[r] = s.lens.event(s, q.g, q.chain[r])
	}
	ok, err := q.g.m.c.StepHolds(step, hit, s.lens.event(s, q.g, n))
	s.failed(err)
	return ok
}

func (q *search) find(last int32) (hit, bool) {
	for i := range q.chain {
		q.chain[i] = -1
	}
	q.tries = 0
	q.least = q.g.time(int(last)) - q.window
	q.chain[q.real[len(q.real)-1]] = last
	if !q.back(len(q.real) - 1) {
		return hit{}, false
	}
	return q.found, true
}

// back has bound real[j:] and looks for those before, the latest first.
func (q *search) back(j int) bool {
	if !q.bound(j) {
		return false
	}
	if j == 0 {
		return q.complete()
	}
	g := q.g
	step, next := q.real[j-1], q.real[j]
	t := g.time(int(q.chain[next]))
	least := max(q.least, t-q.steps[next].Within.Milliseconds()-1)
	for n := int32(g.timeAfter(t)) - 1; n >= 0 && g.time(int(n)) > least; n-- { //nolint:gosec // at most maxHeld
		if !q.fits(n, step) || slices.Contains(q.chain, n) {
			continue
		}
		if q.tries > maxTries {
			return false
		}
		q.chain[step] = n
		if q.back(j - 1) {
			return true
		}
		q.chain[step] = -1
	}
	return false
}

// bound judges the steps whose last missing name real[j] is.
func (q *search) bound(j int) bool {
	for k := j; k < len(q.real); k++ {
		step := q.real[k]
		refs := q.steps[step].Refs
		if len(refs) > 0 && slices.Min(refs) == q.real[j] && !q.holds(step, q.chain[step]) {
			return false
		}
	}
	return true
}

// complete judges what needs the whole chain: further records of steps with a count, and negated steps.
func (q *search) complete() bool {
	g := q.g
	evidence := make([]int32, 0, len(q.real))
	for _, step := range q.real {
		evidence = append(evidence, q.chain[step])
	}
	for k, step := range q.real {
		want := q.steps[step].Count - 1
		if want == 0 {
			continue
		}
		until := g.time(int(q.chain[step]))
		least := q.least
		if k > 0 {
			least = max(least, g.time(int(q.chain[q.real[k-1]]))-1)
		}
		for n := int32(g.timeAfter(until)) - 1; want > 0 && n >= 0 && g.time(int(n)) > least; n-- { //nolint:gosec // at most maxHeld
			if q.fits(n, step) && !slices.Contains(evidence, n) && q.holds(step, n) {
				evidence = append(evidence, n)
				want--
			}
		}
		if want > 0 {
			return false
		}
	}
	last := q.chain[q.real[len(q.real)-1]]
	before := int32(-1)
	for i := range q.steps {
		if !q.steps[i].Not {
			before = q.chain[i]
			continue
		}
		lo := g.time(int(before))
		var hi int64
		except := int32(-1)
		if next := slices.IndexFunc(q.real, func(r int) bool { return r > i }); next >= 0 {
			except = q.chain[q.real[next]]
			hi = g.time(int(except))
		} else {
			lo = g.time(int(last))
			hi = lo + q.steps[i].Within.Milliseconds()
		}
		for n := g.timeAfter(lo); n < g.len() && g.time(n) <= hi; n++ {
			if int32(n) != except && g.bits(n)&bitSeed == 0 && g.flags(n)&(1<<i) != 0 && q.holds(i, int32(n)) { //nolint:gosec // at most maxHeld
				return false
			}
		}
	}
	slices.Sort(evidence)
	q.found = hit{last: last, steps: slices.Clone(q.chain), events: evidence}
	return true
}
