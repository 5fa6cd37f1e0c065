package engine

import (
	"math"
	"time"
)

// Meter measures what judging by each rule costs, from a sample. The engine has no clock of its own and judges nothing by this one.
type Meter struct {
	Every int                                  // one in so many is measured; a prime, so that it meets every rule of an event
	Now   func() time.Duration                 // a clock that only goes on
	Took  func(ruleID string, d time.Duration) // one event by one rule, of a State one group by its rule
}

// WithMeter measures by m. The matchers of one Meter count on their own.
func WithMeter(m Meter) Option { return func(x *Matcher) { x.meter = meter{Meter: m} } }

// WithStateMeter measures by m.
func WithStateMeter(m Meter) StateOption { return func(s *State) { s.meter = meter{Meter: m} } }

// meter counts down to the next one to measure; without a Meter it counts for ever.
type meter struct {
	Meter
	left  int
	rule  string // that is being measured
	began time.Duration
}

// next says that judging by a rule begins, and that by the one before is over.
func (m *meter) next(ruleID string) {
	if m.left--; m.left <= 0 {
		m.turn(ruleID)
	}
}

func (m *meter) turn(ruleID string) {
	switch {
	case m.Now == nil:
		m.left = math.MaxInt
	case m.rule != "":
		m.stop()
		m.left--
	default:
		m.rule, m.left, m.began = ruleID, 1, m.Now()
	}
}

// stop says that the last rule is done with.
func (m *meter) stop() {
	if m.rule != "" {
		m.Took(m.rule, m.Now()-m.began)
		m.rule, m.left = "", m.Every
	}
}
