package rule

import (
	"cmp"
	"fmt"
	"slices"
)

// Problem is something a person must fix in a file.
type Problem struct {
	File      string
	Line, Col int    // from 1; 0 where the file as a whole is meant
	Check     string // stable id, one of Checks
	Message   string // what is wrong, then what to write
}

// String is the line a person reads.
func (p Problem) String() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s: %s", p.File, p.Check, p.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", p.File, p.Line, p.Col, p.Check, p.Message)
}

// Check is one thing that is looked for.
type Check struct {
	ID  string
	Doc string
}

// Checks is the whole list: a problem names no other check.
var Checks = []Check{
	{checkSize, "A file has at most 256 kB, is UTF-8 and is nested at most 64 deep."},
	{checkSyntax, "The file is YAML: one document, a map."},
	{checkFeature, "Anchors, aliases, merge keys and tags are refused: what a rule says stands where it says it."},
	{checkUnknownKey, "Every key is one of the language."},
	{checkRepeatedKey, "A key stands once in its map."},
	{checkMissing, "A required key is there."},
	{checkType, "A value is of the type its key asks for."},
	{checkValue, "A value is one the language knows."},
	{checkName, "The file is named id + .yaml; names are [a-z][a-z0-9_]* and no CEL keyword; ids are unique."},
	{checkKind, "detection.kind is a known kind."},
	{checkCEL, "Expressions parse and type-check against the event."},
	{checkCircle, "vars and lib do not use each other in a circle."},
	{checkPattern, "Patterns of matches and extract compile."},
	{checkCost, "An expression's length, nesting and static cost estimate stay within the limits."},
	{checkOverlay, "An overlay names rules, params and values that are there."},
	{checkList, "A list file can be read."},
	{checkRead, "A file can be read."},
}

const (
	checkSize        = "size"
	checkSyntax      = "syntax"
	checkFeature     = "yaml-feature"
	checkUnknownKey  = "unknown-key"
	checkRepeatedKey = "repeated-key"
	checkMissing     = "missing-key"
	checkType        = "type"
	checkValue       = "value"
	checkName        = "name"
	checkKind        = "kind"
	checkCEL         = "cel"
	checkCircle      = "circle"
	checkPattern     = "pattern"
	checkCost        = "cost"
	checkOverlay     = "overlay"
	checkList        = "list"
	checkRead        = "read"
)

func sortProblems(ps []Problem) []Problem {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	return ps
}
