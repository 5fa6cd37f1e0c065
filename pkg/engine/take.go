package engine

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

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
		if t.Cut {
			m.limited(c.ID, "an event has more than 100 groups: the first 100 by name are judged")
		}
		payload, err := c.Kept(v)
		if err != nil {
			m.failed(err)
			continue
		}
		fields := binary.AppendUvarint(nil, uint64(t.Flags))
		fields = binary.AppendUvarint(fields, uint64(len(t.Values)))
		fields = append(append(fields, t.Values...), payload...)
		when := derived.Time
		var published *time.Time
		if p, ok := v.Published(); ok {
			published = &p
		}
		received := derived.Received
		for _, key := range t.Keys {
			parts := make(map[string]string, len(key))
			for i, g := range c.Detection.GroupBy {
				parts[g.Name] = key[i]
			}
			mt := &record.Match{
				Kind: MatchEvent, Org: derived.Org, Lane: derived.Lane, RuleID: c.ID, StateHash: c.StateHash,
				Group: groupText(c, key, len(c.Detection.SeenBefore) > 0), Key: parts, UUID: Identity(v), Time: &when,
				Published: published, Received: &received, EventType: v.EventType(), Partition: at.Partition,
				Offset: at.Offset, Copy: max(derived.Copy, 1), Partial: derived.Partial, Unconfirmed: derived.Partial,
				Seed: derived.Seed, Backfill: derived.Backfill, Excepted: t.Excepted, Fields: fields,
			}
			if at.Topic == "" {
				mt.Partition, mt.Offset = -1, -1
			}
			out = append(out, mt)
		}
	}
	m.meter.stop()
	return out
}

// Kinds of a Match.
const (
	MatchEvent  = "event"
	MatchClock  = "clock"
	MatchSeed   = "seed"   // of any seed, whatever rules take of it
	MatchSeeded = "seeded" // how far back seeds go, for every partition
)

// MatchKey is the key under which a Match is written, so that all of a group meet.
func MatchKey(m *record.Match) string { return m.Org + "/" + m.RuleID + "/" + m.Group }

// TakesSeeds tells whether a rule takes in events of the past that are not judged: first_seen and baselines do.
func TakesSeeds(c *rule.Compiled) bool {
	return c.Detection.Kind == rule.KindFirstSeen || c.Detection.Baseline > 0
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
	for i, p := range strings.Split(text, "\x00") {
		if i < len(key) {
			_, key[i], _ = strings.Cut(p, "=")
		}
	}
	return key
}

// StateObserver is an Observer that also hears of what only rules with memory meet.
type StateObserver interface {
	Late(ruleID string)          // a record came after its time was decided
	Limited(ruleID, what string) // a limit of the language cut something
}

func (m *Matcher) limited(ruleID, what string) {
	if o, ok := m.observer.(StateObserver); ok {
		o.Limited(ruleID, what)
	}
}
