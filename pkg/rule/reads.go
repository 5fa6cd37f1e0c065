package rule

import (
	"cmp"
	"slices"
	"strings"

	celast "github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/types"
)

// Copies says which of the at most two records of one event a rule judges.
type Copies string

// The two sorts of rules.
const (
	JudgesBoth     Copies = "both"     // the second copy in place of the first
	JudgesComplete Copies = "complete" // the complete copy only
)

// partialOpen is the one list of what an event hook's copy leaves open where the poller's has it: Okta's hook body has
// device null, every member of securityContext null, and its client.ipChain (found under request.ipChain) without
// ipDetails. A rule that reads one of these judges the complete copy only.
var partialOpen = []readField{
	{typeEvent, "device"},
	{typeEvent, "securityContext"},
	{"IPChainEntry", "ipDetails"},
}

// rawClosed are the first names of event.raw paths that a partial copy carries in the same JSON. All others make a
// rule judge the complete copy only: they are open there, written elsewhere (request), or new to us.
var rawClosed = []string{
	"uuid", "published", "eventType", "version", "severity", "legacyEventType", "displayMessage", "actor", "target",
	"outcome", "transaction", "debugContext", "authenticationContext",
}

// reads is what a rule's expressions read of a record.
type reads struct {
	types  *typeSystem
	funcs  []Function
	named  func(name string) *program
	fields map[readField]bool
	raw    []string // first names of the paths of raw; "*" where the path is no literal
	seen   map[*program]bool
}

func newReads(l *language, named func(string) *program) *reads {
	return &reads{types: l.types, funcs: l.funcs, named: named, fields: map[readField]bool{}, seen: map[*program]bool{}}
}

// moves are functions that hand objects on without looking inside.
var moves = []string{
	operators.Index, operators.Conditional, operators.Add, "size", "slice", "flatten", "reverse", "first", "last",
	"type", "@not_strictly_false",
}

func (r *reads) program(p *program) {
	if p == nil || r.seen[p] {
		return
	}
	r.seen[p] = true
	r.walk(p.ast, p.ast.Expr())
}

// result adds what is read where the value of an expression itself is written out.
func (r *reads) result(p *program) {
	if p != nil {
		r.whole(p.typ)
	}
}

func (r *reads) walk(a *celast.AST, e celast.Expr) {
	switch e.Kind() {
	case celast.IdentKind:
		if p := r.named(e.AsIdent()); p != nil {
			r.program(p)
		}
	case celast.SelectKind:
		s := e.AsSelect()
		switch t := a.GetType(s.Operand().ID()); t.Kind() {
		case types.StructKind:
			if r.types.byName[t.TypeName()] != nil {
				r.fields[readField{t.TypeName(), s.FieldName()}] = true
			}
		case types.MapKind:
		default: // a type CEL cannot know beforehand
			r.whole(r.types.byName[typeEvent].typ)
		}
	case celast.CallKind:
		r.call(a, e.AsCall())
	case celast.ListKind, celast.MapKind:
		// Objects of different types in one list lose their type: what is read of them later cannot be told.
		if t := a.GetType(e.ID()); slices.ContainsFunc(t.Parameters(), func(p *types.Type) bool { return p.Kind() == types.DynKind }) {
			for _, c := range children(e) {
				r.whole(a.GetType(c.ID()))
			}
		}
	}
	for _, c := range children(e) {
		r.walk(a, c)
	}
}

func (r *reads) call(a *celast.AST, c celast.CallExpr) {
	own := false
	for _, f := range r.funcs {
		if f.name != c.FunctionName() {
			continue
		}
		if c.IsMemberFunction() && strings.HasPrefix(f.Signature, "event.") {
			if t := a.GetType(c.Target().ID()); t.TypeName() != typeEvent {
				continue
			}
		}
		own = true
		for _, rf := range f.reads {
			r.fields[rf] = true
		}
	}
	if c.FunctionName() == "raw" && own && len(c.Args()) == 1 {
		first := "*"
		if arg := c.Args()[0]; arg.Kind() == celast.LiteralKind {
			if s, ok := arg.AsLiteral().(types.String); ok {
				first, _, _ = strings.Cut(string(s), ".")
			}
		}
		if !slices.Contains(r.raw, first) {
			r.raw = append(r.raw, first)
		}
	}
	if own || slices.Contains(moves, c.FunctionName()) {
		return
	}
	for _, arg := range c.Args() {
		r.whole(a.GetType(arg.ID()))
	}
	if c.IsMemberFunction() {
		r.whole(a.GetType(c.Target().ID()))
	}
}

// whole adds every field of the object types inside a type.
func (r *reads) whole(t *types.Type) {
	if t == nil {
		return
	}
	for _, p := range t.Parameters() {
		r.whole(p)
	}
	ot := r.types.byName[t.TypeName()]
	if ot == nil {
		return
	}
	for _, f := range ot.fields {
		rf := readField{ot.name, f.name}
		if !r.fields[rf] {
			r.fields[rf] = true
			if f.elem != "" {
				r.whole(r.types.byName[f.elem].typ)
			}
		}
	}
}

func (r *reads) copies() Copies {
	for _, open := range partialOpen {
		if r.fields[open] {
			return JudgesComplete
		}
	}
	for _, first := range r.raw {
		if !slices.Contains(rawClosed, first) {
			return JudgesComplete
		}
	}
	return JudgesBoth
}

// sections lists the top-level fields that are read, raw for the JSON.
func (r *reads) sections() []string {
	var out []string
	for rf := range r.fields {
		if rf.typ == typeEvent {
			out = append(out, rf.field)
		}
	}
	if len(r.raw) > 0 {
		out = append(out, "raw")
	}
	slices.SortFunc(out, cmp.Compare)
	return out
}
