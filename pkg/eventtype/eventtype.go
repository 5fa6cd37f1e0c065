// Package eventtype is Okta's list of System Log event types, as its documentation had it when this was built. Okta adds types all
// the time: one that is not here may exist all the same, so nothing is refused for its sake. What events of a type look like does not
// belong here.
package eventtype

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// The table is data/event-types.json of okta/okta-developer-docs, release 2026.08.1, Apache-2.0.
//
//go:embed event-types.csv
var table string

// Type is one event type.
type Type struct {
	Name         string
	HookEligible bool // an event hook can carry it
}

var read = sync.OnceValue(func() []Type {
	rows, err := csv.NewReader(strings.NewReader(table)).ReadAll()
	if err != nil {
		panic(fmt.Sprintf("event-types.csv: %v", err)) // part of the binary: a test reads it
	}
	out := make([]Type, 0, len(rows))
	for _, r := range rows[1:] {
		out = append(out, Type{Name: r[0], HookEligible: r[3] == "public" && r[4] == "yes"})
	}
	slices.SortFunc(out, func(a, b Type) int { return strings.Compare(a.Name, b.Name) })
	return out
})

// All lists the types by name.
func All() []Type { return slices.Clone(read()) }

// Known tells whether a type is in the list.
func Known(name string) bool {
	_, ok := slices.BinarySearchFunc(read(), name, func(t Type, name string) int { return strings.Compare(t.Name, name) })
	return ok
}

// Names lists the names of all types.
func Names() []string {
	out := make([]string, 0, len(read()))
	for _, t := range read() {
		out = append(out, t.Name)
	}
	return out
}
