package rule

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// pathRuleID is the text by which a rule over detections names the rules that it reads.
const pathRuleID = "detection.ruleId"

// overDetections is what there is to know of a rule that reads detections, and of one whose detections are read.
type overDetections struct {
	reads *reads        // of all its expressions
	later *reads        // of those that see what was kept of an event
	takes *reads        // of those that say whether the rule takes a record
	wait  time.Duration // what its clock lies behind the watermark
}

// overDetections tells whether the rule or one of its steps reads detections.
func (d *Detection) overDetections() bool {
	return d.Detections || slices.ContainsFunc(d.Steps, func(s Step) bool { return s.Detections })
}

// Over tells whether the rule, or a step of it, has detections as its input.
func (c *Compiled) Over() bool { return c.Detection.overDetections() }

// sources are the rules whose detections can fulfil the rule, as its expressions name them.
func (c *Compiled) sources() EventTypes {
	if !c.Over() {
		return EventTypes{}
	}
	if c.Detection.Kind != KindSequence {
		return c.cond.values(pathRuleID)
	}
	var out EventTypes
	for i, st := range c.Detection.Steps {
		if !st.Detections {
			continue
		}
		t := intersect(c.cond.values(pathRuleID), c.stepConds[i].values(pathRuleID))
		if t.All {
			return t
		}
		out.Exact, out.Globs = append(out.Exact, t.Exact...), append(out.Globs, t.Globs...)
	}
	return out
}

// Sources says in words whose detections the rule reads; empty where it reads none.
func (c *Compiled) Sources() string {
	if !c.Over() {
		return ""
	}
	t := c.sources()
	if t.All {
		return "detections of every rule"
	}
	return "detections of " + strings.Join(append(slices.Clone(t.Exact), t.Globs...), ", ")
}

// CanRead tells whether detections of a rule can be records of this one: it reads detections, the other one reads events
// only, and what this one says of event.detection.ruleId does not leave the other out.
func (c *Compiled) CanRead(o *Compiled) bool { return c.Over() && !o.Over() && c.sources().Has(o.ID) }

// KeepsFor tells whether what c keeps of its events is enough for a rule that reads its detections: it is not when that one
// came, or began to read more, after c was replaced.
func (c *Compiled) KeepsFor(reader *Compiled) bool {
	for _, rd := range []*reads{reader.over.reads, reader.over.later} {
		if rd == nil {
			continue
		}
		for rf := range rd.fields {
			own := rf == readField{typeEvent, "detection"} || rf.typ == typeDetection || rf.typ == typeBaseline || rf.typ == typeKeyBaseline
			if _, kept := slices.BinarySearch(c.keepText, rf.typ+"."+rf.field); !own && !kept {
				return false
			}
		}
		if _, kept := slices.BinarySearch(c.keepText, "raw"); len(rd.raw) > 0 && !kept {
			return false
		}
	}
	return true
}

// Read tells whether detections in this mode are read by rules over detections.
func (m Mode) Read() bool { return m == ModeAlert || m == ModeSignal }

// Wait is how far the rule's clock lies behind its watermark: its lateness; of a rule over detections the greatest of it and
// those of the rules that it can read.
func (c *Compiled) Wait() time.Duration { return c.over.wait }

// Groups are the keys under which a record would be taken, whatever the rule's conditions say of it.
func (c *Compiled) Groups(ev *Event) ([][]string, error) {
	t := &Taken{}
	if err := c.keys(ev, t); err != nil {
		return nil, err
	}
	return t.Keys, nil
}

// Fields of event.detection that a later update of the detection may change.
const (
	RefTitle = 1 << iota
	RefSeverity
	RefFirstTime
)

// Refs tells which changing fields of event.detection any of the rule's expressions reads.
func (c *Compiled) Refs() (bits int) { return changingRefs(c.over.reads) }

// TakesByRefs tells which of them decide whether the rule takes a record.
func (c *Compiled) TakesByRefs() (bits int) { return changingRefs(c.over.takes) }

func changingRefs(rd *reads) (bits int) {
	for name, bit := range map[string]int{"title": RefTitle, "severity": RefSeverity, "firstTime": RefFirstTime} {
		if rd.fields[readField{typeDetection, name}] {
			bits |= bit
		}
	}
	return bits
}

// Changing tells which fields of the rule's detections differ from hit to hit.
func (c *Compiled) Changing() (bits int) {
	if len(c.severity) > 0 {
		bits |= RefSeverity | RefTitle // with the severity another hit gives the title
	}
	if slices.ContainsFunc(c.title, func(p compiledPart) bool { return p.prg != nil }) {
		bits |= RefTitle
	} else {
		bits &^= RefTitle
	}
	return bits
}

// KeepsRef tells whether an expression that sees what was kept of an event reads a field of event.detection.
func (c *Compiled) KeepsRef(field string) bool {
	return c.over.later != nil && c.over.later.fields[readField{typeDetection, field}]
}

// readable says what is wrong where the rule names rules that it cannot read: those that read detections themselves.
func (c *Compiled) readable(rules []*Rule) bool {
	if !c.Over() {
		return true
	}
	for _, id := range c.sources().Exact {
		i := slices.IndexFunc(rules, func(r *Rule) bool { return r.ID == id })
		if i < 0 || !rules[i].Detection.overDetections() {
			continue
		}
		at := c.Detection.Where
		for j, st := range c.Detection.Steps {
			if st.Detections && slices.Contains(c.stepConds[j].values(pathRuleID).Exact, id) {
				at = st.Where
			}
		}
		c.doc.add(at.at.off, checkValue, "rule %s reads detections itself, so its own are read by no rule: name rules over events only", id)
		return false
	}
	return true
}

// link makes each rule know the others of its set: a rule over detections waits for those that it can read, and those
// keep of their events what it reads. That does not depend on modes: switching a rule on or off starts none empty.
func link(rules []*Compiled) []*Compiled {
	var readers []*Compiled
	for _, c := range rules {
		if c.Over() {
			readers = append(readers, c)
		}
	}
	if len(readers) == 0 {
		return rules
	}
	out := slices.Clone(rules)
	for i, c := range rules {
		if c.Over() {
			wait := c.Detection.Lateness
			for _, o := range rules {
				if o.Mode.Read() && c.CanRead(o) {
					wait = max(wait, o.Detection.Lateness)
				}
			}
			if wait != c.over.wait {
				n := *c
				n.over.wait = wait
				out[i] = &n
			}
			continue
		}
		if c.Detection.Kind == KindMatch {
			continue
		}
		keeps := &reads{types: c.over.later.types, fields: maps.Clone(c.over.later.fields), raw: slices.Clone(c.over.later.raw)}
		for _, r := range readers {
			if !r.CanRead(c) {
				continue
			}
			for _, rd := range []*reads{r.over.reads, r.over.later} {
				for rf := range rd.fields {
					if rf != (readField{typeEvent, "detection"}) {
						keeps.fields[rf] = true
					}
				}
				keeps.raw = append(keeps.raw, rd.raw...)
			}
		}
		plan := newKeepPlan(keeps)
		if slices.Equal(plan.text(), c.keepText) {
			continue
		}
		n := *c
		n.plan, n.keepText = plan, plan.text()
		n.stateHash(c.over.reads)
		out[i] = &n
	}
	return out
}
