package engine

import (
	"slices"
	"strings"

	"github.com/oktawatch/oktawatch/pkg/rule"
)

// firstSeen finds the hits from from on. It walks all that is held, for each sighting makes later ones no news.
func (s *State) firstSeen(g *group, from int64) {
	m := g.m
	c := m.c
	memory := c.Detection.Memory.Milliseconds()
	known := len(c.Detection.SeenBefore) > 0
	if s.last == nil || len(s.last) > 1024 {
		s.last = map[string]int64{}
	}
	clear(s.last)
	last := s.last
	part := int64(ever)
	see := func(sub string, t int64) {
		if old, ok := last[sub]; !ok || t > old {
			last[sub] = t
		}
		part = max(part, t)
	}
	for _, one := range g.seen {
		see(one.sub, one.time)
	}
	ev := g.events
	var late []int
	for i := 0; i < len(ev); {
		t := ev[i].time
		end := i
		for end < len(ev) && ev[end].time == t {
			end++
		}
		rest := late[:0]
		for _, n := range late {
			if ev[n].after < t {
				see(ev[n].sub, ev[n].time)
			} else {
				rest = append(rest, n)
			}
		}
		late = rest
		if t >= from && m.learned(t) {
			for n := i; n < end; n++ {
				h := &ev[n]
				if h.flags&rule.Judged == 0 || laterOfSub(ev, n, end) {
					continue
				}
				if seen, ok := last[h.sub]; ok && seen >= t-memory {
					continue
				}
				if known && (part == ever || part < t-memory) {
					continue
				}
				one := hit{at: t, sub: h.sub, last: int32(n)} //nolint:gosec // at most maxHeld
				for k := i; k <= n; k++ {
					if ev[k].sub == h.sub && ev[k].flags&rule.Judged != 0 {
						one.events = append(one.events, int32(k)) //nolint:gosec // at most maxHeld
					}
				}
				one.severity = c.Severity
				if c.HasSeverityWhen() {
					own := one
					s.bind(g, &own)
					var err error
					one.severity, err = c.HitSeverity(&s.hit)
					s.failed(err)
				}
				g.hits = append(g.hits, one)
				if s.lens.used > maxListed {
					s.lens.clear()
				}
			}
		}
		for n := i; n < end; n++ {
			if ev[n].flags&rule.Sighting == 0 {
				continue
			}
			if ev[n].after >= t {
				late = append(late, n)
			} else {
				see(ev[n].sub, t)
			}
		}
		i = end
	}
}

// laterOfSub tells whether a judged event of the same key comes behind n and before end.
func laterOfSub(ev []held, n, end int) bool {
	for k := n + 1; k < end; k++ {
		if ev[k].sub == ev[n].sub && ev[k].flags&rule.Judged != 0 {
			return true
		}
	}
	return false
}

// foldSeen remembers the sightings of the first n events, which are about to go.
func (s *State) foldSeen(g *group, n int) {
	last := map[string]int64{}
	for i := range n {
		if h := &g.events[i]; h.flags&rule.Sighting != 0 {
			if t, ok := last[h.sub]; !ok || h.time > t {
				last[h.sub] = h.time
			}
		}
	}
	old := g.floor - g.m.c.Detection.Memory.Milliseconds()
	seen := slices.Clone(g.seen)
	for _, sub := range sortedKeys(last) {
		t := last[sub]
		at, had := slices.BinarySearchFunc(seen, sub, func(o sighting, sub string) int { return strings.Compare(o.sub, sub) })
		switch {
		case t <= old || had && seen[at].time >= t:
			continue
		case had:
			seen[at].time = t
		default:
			seen = slices.Insert(seen, at, sighting{sub, t})
		}
		s.change(keyOfSeen(g, sub), appendInt(nil, t))
	}
	g.seen = slices.Clip(seen)
}
