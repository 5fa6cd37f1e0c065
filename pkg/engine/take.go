package engine

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// Take gives what rules with memory take of one record: a Match of kind event for each rule and group, to be brought to
// the State that holds the group. What depends on one event only is worked out here, on the whole event, and travels in
// Match.Fields with the few fields that the rule reads later.
func (m *Matcher) Take(v *record.SystemLogView, at Place) []*record.Match {
	derived := v.Derived()
	rules := m.indexOf(derived.Org).stateful(v.EventType())
	if len(rules) == 0 {
		return nil
	}
	var out []*record.Match
	m.event.Reset(v)
	for _, c := range rules {
		m.meter.next(c.ID)
		if !c.Judges(derived.Partial) || derived.Seed && !TakesSeeds(c) {
			continue
		}
		t, exception, err := c.Take(m.event)
		m.failed(err)
		if exception != "" {
			m.observer.Excepted(c.ID, exception)
		}
		if t == nil {
			continue
		}
		when := derived.Time
		out = append(out, matchesOf(c, t, v, m.observer, record.Match{
			Kind: MatchEvent, Org: derived.Org, Lane: derived.Lane, UUID: Identity(v), Time: &when,
			Partition: at.partition(), Offset: at.offset(), Copy: max(derived.Copy, 1), Partial: derived.Partial, Seed: derived.Seed,
		})...)
	}
	m.meter.stop()
	return out
}

// matchesOf spreads what a rule took of a record over its groups; base says what does not depend on the rule.
func matchesOf(c *rule.Compiled, t *rule.Taken, v *record.SystemLogView, o Observer, base record.Match) []*record.Match {
	if t.Cut {
		limitedBy(o, c.ID, "an event has more than 100 groups: the first 100 by name are judged")
	}
	payload, err := c.Kept(v)
	if err != nil {
		o.Failed(err)
		return nil
	}
	fields := binary.AppendUvarint(nil, uint64(t.Flags))
	fields = binary.AppendUvarint(fields, uint64(len(t.Values)))
	fields = append(append(fields, t.Values...), payload...)
	derived := v.Derived()
	if p, ok := v.Published(); ok {
		base.Published = &p
	}
	received := derived.Received
	base.RuleID, base.StateHash, base.Received, base.EventType = c.ID, c.StateHash, &received, v.EventType()
	base.Unconfirmed, base.Backfill, base.Excepted, base.Fields = base.Partial, derived.Backfill, t.Excepted, fields
	out := make([]*record.Match, 0, len(t.Keys))
	for _, key := range t.Keys {
		mt := base
		mt.Key = make(map[string]string, len(key))
		for i, g := range c.Detection.GroupBy {
			mt.Key[g.Name] = key[i]
		}
		mt.Group = groupText(c, key, len(c.Detection.SeenBefore) > 0)
		out = append(out, &mt)
	}
	return out
}

func (p Place) partition() int32 {
	if p.Topic == "" {
		return -1
	}
	return p.Partition
}

func (p Place) offset() int64 {
	if p.Topic == "" {
		return -1
	}
	return p.Offset
}

// Kinds of a Match.
const (
	MatchEvent  = "event"
	MatchPair   = "detection" // an evidence event of a detection
	MatchClock  = "clock"
	MatchSeed   = "seed"   // of any seed, whatever rules take of it
	MatchSeeded = "seeded" // how far back seeds go, for every partition
)

// MatchKey is the key under which a Match is written, so that all of a group meet.
func MatchKey(m *record.Match) string { return m.Org + "/" + m.RuleID + "/" + m.Group }

// TakesSeeds tells whether a rule takes in events of the past that are not judged: first_seen and baselines over events do.
func TakesSeeds(c *rule.Compiled) bool {
	return c.Detection.Kind == rule.KindFirstSeen || c.Detection.Baseline > 0 && !c.Over()
}

// groupText is a key in its canonical form: part=value by name of part, with zero bytes between. Of a rule with
// seen_before only those parts make the group that meets in one place.
func groupText(c *rule.Compiled, key []string, routing bool) string {
	var b strings.Builder
	first := true
	for i, g := range c.Detection.GroupBy {
		if routing && !contains(c.Detection.SeenBefore, g.Name) {
			continue
		}
		if !first {
			b.WriteByte(0)
		}
		first = false
		b.WriteString(g.Name)
		b.WriteByte('=')
		b.WriteString(key[i])
	}
	return b.String()
}

func contains(list []string, s string) bool {
	return slices.Contains(list, s)
}

// keyOf reads the parts back.
func keyOf(c *rule.Compiled, text string) []string {
	key := make([]string, len(c.Detection.GroupBy))
	if text == "" {
		return key
	}
	for i := range key {
		var p string
		p, text, _ = strings.Cut(text, "\x00")
		_, key[i], _ = strings.Cut(p, "=")
	}
	return key
}

// StateObserver is an Observer that also hears of what only rules with memory meet.
type StateObserver interface {
	Late(ruleID string)          // a record came after its time was decided
	Limited(ruleID, what string) // a limit of the language cut something
}

func limitedBy(o Observer, ruleID, what string) {
	if o, ok := o.(StateObserver); ok {
		o.Limited(ruleID, what)
	}
}
