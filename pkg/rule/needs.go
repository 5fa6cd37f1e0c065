package rule

// Needs are the event types without which the rule cannot find anything: of each there must come one. For most rules that are the
// types it is woken by; a sequence needs those of each step that must happen, and first_seen not those it only remembers.
func (c *Compiled) Needs() []EventTypes {
	if c.Detection.Kind != KindSequence {
		return []EventTypes{c.cond.eventTypes()}
	}
	var out []EventTypes
	for i, st := range c.StepTypes {
		if !st.Not {
			out = append(out, (&condition{op: condAnd, kids: []*condition{c.cond, c.stepConds[i]}}).eventTypes())
		}
	}
	return out
}
