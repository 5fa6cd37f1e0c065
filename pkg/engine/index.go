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
}

// maxTypes bounds the event types that an index remembers; Okta has some 1,300.
const maxTypes = 8192

// prepared is a rule with the part of its detections that is the same for all of them.
type prepared struct {
	*rule.Compiled
	detection record.Detection
}

func newIndex(rules []*rule.Compiled, disabled bool) *index {
	ix := &index{types: map[string][]*prepared{}}
	for _, c := range rules {
		if c.Detection.Kind != rule.KindMatch || c.Mode == rule.ModeDisabled && !disabled {
			continue
		}
		ix.rules = append(ix.rules, &prepared{c, ruleParts(c)})
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
