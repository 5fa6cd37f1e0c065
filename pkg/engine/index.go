package engine

import (
	"strings"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// index finds the rules that an event type can make true, so that the cost of an event grows with its candidates and
// not with the pack.
type index struct {
	rules []*prepared
	types map[string][]*prepared // filled as event types come, at most maxTypes of them

	memory      []*rule.Compiled // rules with memory
	memoryTypes map[string][]*rule.Compiled

	readers []*rule.Compiled            // rules over detections
	reads   map[string][]*rule.Compiled // those that read a match rule's detections, by its id
}

// maxTypes bounds the event types that an index remembers; Okta has some 1,300.
const maxTypes = 8192

// prepared is a rule with the part of its detections that is the same for all of them.
type prepared struct {
	*rule.Compiled
	detection record.Detection
}

func newIndex(rules []*rule.Compiled, disabled bool) *index {
	ix := &index{types: map[string][]*prepared{}, memoryTypes: map[string][]*rule.Compiled{}}
	for _, c := range rules {
		if c.Mode == rule.ModeDisabled && !disabled {
			continue
		}
		if c.Detection.Kind != rule.KindMatch {
			ix.memory = append(ix.memory, c)
			if c.Over() {
				ix.readers = append(ix.readers, c)
			}
			continue
		}
		ix.rules = append(ix.rules, &prepared{c, ruleParts(c)})
	}
	ix.reads = map[string][]*rule.Compiled{}
	for _, p := range ix.rules {
		for _, c := range ix.readers {
			if p.Mode.Read() && c.CanRead(p.Compiled) {
				ix.reads[p.ID] = append(ix.reads[p.ID], c)
			}
		}
	}
	return ix
}

// candidates are the rules an event of this type can be a hit of, in order of their ids.
func (ix *index) candidates(eventType string) []*prepared {
	if c, ok := ix.types[eventType]; ok {
		return c
	}
	var out []*prepared
	for _, p := range ix.rules {
		if p.Types.Has(eventType) {
			out = append(out, p)
		}
	}
	if len(ix.types) >= maxTypes {
		clear(ix.types)
	}
	ix.types[strings.Clone(eventType)] = out
	return out
}

// stateful are the rules with memory that want events of this type.
func (ix *index) stateful(eventType string) []*rule.Compiled {
	if len(ix.memory) == 0 {
		return nil
	}
	if c, ok := ix.memoryTypes[eventType]; ok {
		return c
	}
	var out []*rule.Compiled
	for _, c := range ix.memory {
		if c.Types.Has(eventType) {
			out = append(out, c)
		}
	}
	if len(ix.memoryTypes) >= maxTypes {
		clear(ix.memoryTypes)
	}
	ix.memoryTypes[strings.Clone(eventType)] = out
	return out
}
