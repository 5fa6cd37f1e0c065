package rule

import (
	"fmt"
	"slices"

	"github.com/google/cel-go/cel"
	celast "github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/interpreter"
)

// Traced is one expression, or a part of one, and what it was for one event.
type Traced struct {
	What  string // where | vars.x | group_by.x | step x | …; of a part: empty
	Depth int    // of a part: how deep it lies in the expression
	Text  string // CEL
	Value string // JSON, at most 300 bytes; "" where it was not looked at
	Note  string // of a whole expression: why its value is none, or not the one that was
}

const (
	maxTraced      = 300 // bytes of a value
	maxTracedParts = 200 // of an event
)

// Trace evaluates the rule's expressions over one event and tells what each and its parts were, those that it names
// (vars, lib) behind it. Of a rule with memory these are the ones that look at one event: what only a hit has (key, agg,
// steps) is not known here, and expressions that read it are left out. It compiles anew and is for people, not for streams.
func (c *Compiled) Trace(ev *Event) []Traced {
	t := tracer{c: c, ev: ev, done: map[string]bool{}}
	add := func(what string, p *program) {
		if p != nil {
			t.program(what, p)
		}
	}
	add("where", c.where)
	for i, p := range c.steps {
		if i < len(c.StepTypes) && !c.StepTypes[i].Dynamic {
			add("step "+c.StepTypes[i].ID, p)
		}
	}
	add("learn_from", c.learn)
	for i, p := range c.groupBy {
		add("group_by."+c.Detection.GroupBy[i].Name, p)
	}
	for i, a := range c.aggs {
		if c.AggregateTypes[i].How != AggValue {
			add("aggregates."+c.AggregateTypes[i].Name, a.expr)
			add("aggregates."+c.AggregateTypes[i].Name+" where", a.where)
		}
	}
	for _, e := range c.exceptions {
		add("exception "+e.Name, e.when)
	}
	if c.Detection.Kind == KindMatch {
		for _, w := range c.severity {
			add("severity "+w.severity.String(), w.when)
		}
	}
	return t.out
}

type tracer struct {
	c    *Compiled
	ev   *Event
	hit  *Hit // of expressions over hits
	at   AtHand
	done map[string]bool // names told
	out  []Traced
}

func (t *tracer) put(s Traced) {
	if len(t.out) < maxTracedParts {
		t.out = append(t.out, s)
	}
}

func (t *tracer) program(what string, p *program) {
	note, judged := t.note(p)
	if !judged {
		t.put(Traced{What: what, Text: p.text, Note: note})
		return
	}
	env, err := p.env.Extend(cel.EnableMacroCallTracking())
	if err != nil {
		return
	}
	a, iss := compileSafely(env, p.text)
	if iss.Err() != nil {
		return
	}
	prg, err := env.Program(a, cel.EvalOptions(cel.OptTrackState))
	if err != nil {
		return
	}
	t.ev.prepare()
	t.ev.act.use(t.c)
	t.ev.act.hit = t.hit
	v, details, err := prg.Eval(&t.ev.act)
	t.ev.act.hit = nil
	whole := Traced{What: what, Text: p.text, Note: note}
	switch {
	case err != nil:
		whole.Value = "error: " + clipTraced(err.Error())
	case types.IsUnknownOrError(v):
		whole.Value = "error: " + clipTraced(fmt.Sprint(v))
	default:
		whole.Value = clipTraced(jsonText(v))
	}
	t.put(whole)
	if details == nil || details.State() == nil {
		return
	}
	n := a.NativeRep()
	x := parts{t, n, details.State()}
	x.walk(n.Expr(), 0)
	for _, place := range []string{"vars", "lib"} {
		for _, name := range identsOf(n.Expr(), place) {
			name = place + "." + name
			b := t.c.names[name]
			used := b.variable
			if used == nil {
				used = b.lib
			}
			if used != nil && !t.done[name] {
				t.done[name] = true
				t.program(name, used)
			}
		}
	}
}

// parts tells the values of an expression's parts.
type parts struct {
	t     *tracer
	ast   *celast.AST
	state interpreter.EvalState
}

// walk tells what says something below e: conditions and what they compare, fields and calls, but no literals, no parts
// of a field's path and nothing from inside a loop, of which only the last round would be known.
func (x parts) walk(e celast.Expr, depth int) {
	tell := func(c celast.Expr) {
		text, err := cel.ExprToString(c, x.ast.SourceInfo())
		v, ok := x.state.Value(c.ID())
		if err != nil || !ok {
			if err == nil && isCondition(c) {
				x.t.put(Traced{Depth: depth + 1, Text: text})
			}
			return
		}
		value := "error"
		if !types.IsUnknownOrError(v) {
			value = clipTraced(jsonText(v))
		}
		x.t.put(Traced{Depth: depth + 1, Text: text, Value: value})
		x.walk(c, depth+1)
	}
	if _, macro := x.ast.SourceInfo().GetMacroCall(e.ID()); macro {
		if e.Kind() == celast.ComprehensionKind {
			if r := e.AsComprehension().IterRange(); r.Kind() != celast.ListKind && (r.Kind() != celast.IdentKind || !isRecord(r.AsIdent())) {
				tell(r)
			}
		}
		return
	}
	if e.Kind() == celast.SelectKind { // a.b.c is told as a whole; f(x).c tells f(x)
		op := e.AsSelect().Operand()
		for op.Kind() == celast.SelectKind {
			op = op.AsSelect().Operand()
		}
		if op.Kind() == celast.CallKind {
			tell(op)
		}
		return
	}
	if e.Kind() == celast.ComprehensionKind {
		return
	}
	for _, c := range children(e) {
		if joins(e) != "" && joins(c) == joins(e) { // a && b && c is told as three
			x.walk(c, depth)
			continue
		}
		if c.Kind() == celast.LiteralKind || c.Kind() == celast.IdentKind && isRecord(c.AsIdent()) {
			continue
		}
		if c.Kind() == celast.ListKind && !slices.ContainsFunc(c.AsList().Elements(), func(el celast.Expr) bool { return el.Kind() != celast.LiteralKind }) {
			continue
		}
		tell(c)
	}
}

// joins is && or || where an expression is one of these.
func joins(e celast.Expr) string {
	if e.Kind() == celast.CallKind {
		if fn := e.AsCall().FunctionName(); fn == operators.LogicalAnd || fn == operators.LogicalOr {
			return fn
		}
	}
	return ""
}

func isCondition(e celast.Expr) bool {
	return e.Kind() == celast.CallKind || e.Kind() == celast.ComprehensionKind
}

func clipTraced(s string) string {
	if len(s) <= maxTraced {
		return s
	}
	n := maxTraced
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}
