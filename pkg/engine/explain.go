package engine

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// values are what a detection tells of the hit that its title is of, so that it can be explained when the memory that made
// it is gone. b is the hit as its expressions see it.
func (s *State) values(g *group, h *hit, b *rule.Hit) map[string]string {
	c := g.m.c
	out := c.HitValues(b)
	if out == nil {
		out = map[string]string{}
	}
	put := func(name string, v any) {
		if text, err := json.Marshal(v); err == nil {
			out[name] = string(text)
		}
	}
	at := func(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339Nano) }
	put("hit", at(h.at))
	put("event", g.uuid(h.last))
	for i, n := range h.steps {
		if n >= 0 {
			put("steps."+c.StepTypes[i].ID, g.uuid(n))
		}
	}
	if c.Detection.Kind != rule.KindFirstSeen {
		return out
	}
	if began := g.m.began(); c.Detection.Learning > 0 && began != never {
		put("learned", at(began+c.Detection.Learning.Milliseconds()))
	}
	if len(c.Detection.SeenBefore) > 0 {
		last := int64(ever)
		for _, one := range g.seen.all() {
			if one.time < h.at {
				last = max(last, one.time)
			}
		}
		g.each(0, g.timeAfter(h.at-1), func(e *held) {
			if e.after < h.at && e.flags&rule.Sighting != 0 {
				last = max(last, e.time)
			}
		})
		if last != ever {
			put("seen_before", at(last))
		}
	}
	return out
}

// Window is the time that a hit of an aggregate or a sequence at at looks over: behind from, up to to.
func Window(c *rule.Compiled, at time.Time) (from, to time.Time) {
	m := &memory{c: c}
	t := at.UnixMilli()
	if c.Detection.Kind == rule.KindSequence {
		t -= m.trail()
	}
	return time.UnixMilli(m.reach(t)).UTC(), time.UnixMilli(t).UTC()
}

// Recount works out what the aggregates of a rule are over some events of one group, as a window that holds just these
// has them: for hits whose numbers were not told. ev shows the events to expressions.
func Recount(c *rule.Compiled, ev *rule.Event, key []string, events []*record.SystemLogView) (values []rule.Value, count int64) {
	var a accumulator
	a.reset(c.AggregateTypes)
	var all []held
	for _, v := range events {
		ev.Reset(v)
		t, _, _ := c.Take(ev) // what failed counts as false, as it did
		if t == nil || !slices.ContainsFunc(t.Keys, func(k []string) bool { return slices.Equal(k, key) }) {
			continue
		}
		all = append(all, held{values: t.Values})
		a.apply(&all[len(all)-1], 1)
	}
	return a.read(nil, func(each func(*held)) {
		for i := range all {
			each(&all[i])
		}
	}), a.count
}
