// Package engine judges events by compiled rules and writes what it finds as detections. It knows nothing of Kafka,
// files or the wall clock: the same events and rules always give the same detections. It reads rules through package
// rule and owns what becomes of a hit; where events come from and detections go to is the caller's.
package engine

import (
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// Place is where a record lies, for the evidence of a detection. The zero Place is nowhere.
type Place struct {
	Topic     string
	Partition int32
	Offset    int64
}

// Observer hears what judging meets beside detections.
type Observer interface {
	Excepted(ruleID, exception string) // an exception kept an event from being a hit
	Failed(err error)                  // an expression failed at run time and counted as false
}

// Identity is what tells a record from every other of its org: its uuid, with the content's hash where Okta used the
// uuid twice.
func Identity(v *record.SystemLogView) string {
	if d := v.Derived(); d.UUIDReused {
		return v.UUID() + "#" + d.ContentHash
	}
	return v.UUID()
}

// Option changes how a Matcher judges.
type Option func(*Matcher)

// WithDisabled judges by disabled rules too: tests and evaluations do.
func WithDisabled() Option { return func(m *Matcher) { m.disabled = true } }

// WithObserver tells o what judging meets.
func WithObserver(o Observer) Option { return func(m *Matcher) { m.observer = o } }

// Matcher judges events by the match rules of a set. It serves one goroutine; many may share the set.
type Matcher struct {
	set      *rule.Set
	disabled bool
	observer Observer
	event    *rule.Event
	orgs     map[string]*index
	org      string // the last
	ix       *index
	buf      []byte
	meter    meter
}

// NewMatcher makes a matcher for a set.
func NewMatcher(set *rule.Set, opts ...Option) *Matcher {
	m := &Matcher{set: set, event: set.NewEvent(), orgs: map[string]*index{}, observer: silent{}}
	for _, o := range opts {
		o(m)
	}
	return m
}

type silent struct{}

func (silent) Excepted(string, string) {}
func (silent) Failed(error)            {}

// indexOf is the index of the rules of an org. Orgs without rules of their own share one.
func (m *Matcher) indexOf(org string) *index {
	if m.ix != nil && m.org == org {
		return m.ix
	}
	key := ""
	rules := m.set.Rules
	for _, o := range m.set.Orgs() {
		if o == org {
			key, rules = o, m.set.For(o)
		}
	}
	ix := m.orgs[key]
	if ix == nil {
		ix = newIndex(rules, m.disabled)
		m.orgs[key] = ix
	}
	m.org, m.ix = string([]byte(org)), ix
	return ix
}
