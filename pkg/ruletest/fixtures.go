package ruletest

import (
	_ "embed"
	"encoding/json"
	"slices"
	"sync"
)

//go:embed fixtures.json
var fixtureText []byte

// fixtures is what fixtures.json says: the event that all begin with, and by event type what differs from it.
var fixtures = sync.OnceValue(func() (f struct {
	Base  map[string]any            `json:"base"`
	Types map[string]map[string]any `json:"types"`
},
) {
	if err := json.Unmarshal(fixtureText, &f); err != nil {
		panic("fixtures.json of pkg/ruletest: " + err.Error())
	}
	return f
})

// Fixture is a whole plausible event of a type: alice@example.com (00uALICE) from 198.51.100.7 in Oslo. A type that
// has no fixture of its own gives an event that succeeded and has the user bob@example.com as target.
func Fixture(eventType string) map[string]any {
	ev := clone(fixtures().Base).(map[string]any)
	ev["eventType"] = eventType
	overlay(ev, fixtures().Types[eventType])
	return ev
}

// FixtureTypes lists the event types with a fixture of their own.
func FixtureTypes() []string {
	var out []string
	for t := range fixtures().Types {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

// overlay lays maps over maps; everything else replaces.
func overlay(into, over map[string]any) {
	for k, v := range over {
		if m, ok := v.(map[string]any); ok {
			if old, ok := into[k].(map[string]any); ok {
				overlay(old, m)
				continue
			}
		}
		into[k] = clone(v)
	}
}
