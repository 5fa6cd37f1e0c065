package engine

import (
	"github.com/oktawatch/oktawatch/pkg/record"
)

// Match judges one record by every match rule of its org and returns a detection for each hit, in order of rule ids.
// The detections are the caller's; their texts point into the record's payload, which must not be changed.
//
// A match rule keeps no memory: what it says of a copy of an event depends on that copy alone. So the number of an
// update is the number of the copy (1 or 2), which makes (lane, id, update) unique whatever happened to rules between
// the copies: a rule that judges both says update 1 on the first copy and 2 on the second, a rule that judges complete
// copies only, or hits on the second copy only, begins with update 2. A detection is final unless made from a partial
// copy. A seed is judged by nothing.
func (m *Matcher) Match(v *record.SystemLogView, at Place) []*record.Detection {
	derived := v.Derived()
	if derived.Seed {
		return nil
	}
	candidates := m.indexOf(derived.Org).candidates(v.EventType())
	if len(candidates) == 0 {
		return nil
	}
	var out []*record.Detection
	m.event.Reset(v)
	for _, p := range candidates {
		m.meter.next(p.ID)
		if !p.Judges(derived.Partial) {
			continue
		}
		hit, exception, err := p.Judge(m.event)
		if err != nil {
			m.observer.Failed(err)
		}
		if exception != "" {
			m.observer.Excepted(p.ID, exception)
		}
		if !hit {
			continue
		}
		if d := m.detect(p, v, at); d != nil {
			out = append(out, d)
		}
	}
	m.meter.stop()
	return out
}

// Wanted tells whether any rule could be a hit for an event type of an org.
func (m *Matcher) Wanted(org, eventType string) bool {
	ix := m.indexOf(org)
	return len(ix.candidates(eventType)) > 0 || len(ix.stateful(eventType)) > 0
}
