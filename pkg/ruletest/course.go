package ruletest

import (
	"fmt"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// course judges records one after the other by every rule of a set, whatever its mode, and brings what rules find to the
// rules that read it, as the service does over Kafka.
type course struct {
	m     *engine.Matcher
	st    *engine.State
	org   string
	found func(*record.Detection) error
	view  record.SystemLogView
}

func newCourse(set *rule.Set, o engine.Observer, org string, found func(*record.Detection) error) *course {
	return &course{
		m:  engine.NewMatcher(set, engine.WithDisabled(), engine.WithObserver(o)),
		st: engine.NewState(set, engine.WithStateObserver(o), engine.WithDisabledReaders()), org: org, found: found,
	}
}

// judge takes one record. What rules with memory make of it tell tells.
func (c *course) judge(rec Event) error {
	v := &c.view
	if err := v.Load(rec.Log); err != nil {
		return fmt.Errorf("encode it: %w", err)
	}
	if rec.Through != nil {
		ref := *rec.Through
		if ref.FirstTime.IsZero() {
			ref.FirstTime = rec.time()
		}
		return c.apply(c.m.TakePair(v, engine.Place{}, ref, rec.time()))
	}
	for _, d := range c.m.Match(v, engine.Place{}) {
		if err := c.found(d); err != nil {
			return err
		}
		if err := c.apply(c.m.TakeDetection(v, engine.Place{}, d)); err != nil {
			return err
		}
	}
	return c.apply(c.m.Take(v, engine.Place{}))
}

func (c *course) apply(all []*record.Match) error {
	for _, mt := range all {
		if err := c.st.Apply(mt); err != nil {
			return err
		}
	}
	return nil
}

// tell passes on what was found since it told last, and what other rules find in that.
func (c *course) tell() error {
	for {
		out := c.st.Flush()
		for _, d := range out.Detections {
			if err := c.found(d); err != nil {
				return err
			}
		}
		if len(out.Pairs) == 0 {
			c.st.Commit()
			return nil
		}
		if err := c.apply(out.Pairs); err != nil {
			return err
		}
	}
}

// advance moves the clock of all rules: of those over detections behind what the others made of it.
func (c *course) advance(now time.Time) error {
	c.st.Advance(c.org, lane, now)
	if err := c.tell(); err != nil {
		return err
	}
	c.st.AdvanceSecond(c.org, lane, now)
	return c.tell()
}

// end is the end of the input: the clock of every rule is at it.
func (c *course) end(at time.Time) error {
	c.st.Close(c.org, lane, at)
	if err := c.tell(); err != nil {
		return err
	}
	c.st.CloseSecond(c.org, lane, at)
	return c.tell()
}
