package rule

import (
	"slices"
	"strings"

	celast "github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// condition is what of a rule's where can be judged without CEL: tests of texts of the event against constants, joined
// by and and or. What cannot is maybe. Negation is pushed down to the tests.
type condition struct {
	op   condOp
	kids []*condition
	test *textTest
}

type condOp uint8

const (
	condMaybe condOp = iota
	condTrue
	condFalse
	condAnd
	condOr
	condTest
)

// verdict is a three-valued answer.
type verdict uint8

const (
	no verdict = iota
	maybe
	yes
)

// textTest compares one text of the event with constants.
type textTest struct {
	path  textPath
	neg   bool
	how   string // operators.Equals, operators.In, startsWith, endsWith, contains, glob, known
	words []string
}

// textPath reads one text of the event.
type textPath struct {
	name string                               // eventType, outcome.result, …
	get  func(v *record.SystemLogView) string // nil: it is not in the record
}

func (t *textTest) holds(v *record.SystemLogView) bool {
	if t.how == testKnown {
		return Known(t.path.get(v)) != t.neg
	}
	return matchesWord(t.how, t.path.get(v), t.words) != t.neg
}

// testKnown asks whether a text says anything.
const testKnown = "known"

func matchesWord(how, s string, words []string) bool {
	for _, w := range words {
		var ok bool
		switch how {
		case operators.Equals, operators.In:
			ok = s == w
		case "startsWith":
			ok = strings.HasPrefix(s, w)
		case "endsWith":
			ok = strings.HasSuffix(s, w)
		case "contains":
			ok = strings.Contains(s, w)
		case "glob":
			ok = Glob(w, s)
		}
		if ok {
			return true
		}
	}
	return false
}

// judge says what is certain without CEL. It reads sections in the order of the expression and no more than needed.
func (c *condition) judge(v *record.SystemLogView) verdict {
	switch c.op {
	case condTrue:
		return yes
	case condFalse:
		return no
	case condTest:
		if c.test.path.get == nil {
			return maybe
		}
		if c.test.holds(v) {
			return yes
		}
		return no
	case condAnd:
		out := yes
		for _, k := range c.kids {
			switch k.judge(v) {
			case no:
				return no
			case maybe:
				out = maybe
			case yes:
			}
		}
		return out
	case condOr:
		out := no
		for _, k := range c.kids {
			switch k.judge(v) {
			case yes:
				return yes
			case maybe:
				out = maybe
			case no:
			}
		}
		return out
	case condMaybe:
	}
	return maybe
}

// EventTypes are the event types a rule can be true for: All, or the listed ones and those that match a glob.
type EventTypes struct {
	All   bool
	Exact []string
	Globs []string
}

// Has tells whether an event type is among them.
func (t EventTypes) Has(eventType string) bool {
	return t.All || slices.Contains(t.Exact, eventType) || slices.ContainsFunc(t.Globs, func(g string) bool { return Glob(g, eventType) })
}

func (c *condition) eventTypes() EventTypes { return c.values("eventType") }

// values are the values of one text that an expression can be true for.
func (c *condition) values(path string) EventTypes {
	switch c.op {
	case condFalse:
		return EventTypes{}
	case condTest:
		t := c.test
		if t.path.name != path || t.neg {
			return EventTypes{All: true}
		}
		switch t.how {
		case operators.Equals, operators.In:
			return EventTypes{Exact: t.words}
		case "startsWith", "glob":
			var out EventTypes
			for _, w := range t.words {
				switch {
				case t.how == "startsWith" && strings.ContainsAny(w, "*?"):
					return EventTypes{All: true}
				case t.how == "startsWith":
					out.Globs = append(out.Globs, w+"*")
				case strings.ContainsAny(w, "*?"):
					out.Globs = append(out.Globs, w)
				default:
					out.Exact = append(out.Exact, w)
				}
			}
			return out
		}
	case condAnd:
		out := EventTypes{All: true}
		for _, k := range c.kids {
			out = intersect(out, k.values(path))
		}
		return out
	case condOr:
		var out EventTypes
		for _, k := range c.kids {
			t := k.values(path)
			if t.All {
				return t
			}
			out.Exact = append(out.Exact, t.Exact...)
			out.Globs = append(out.Globs, t.Globs...)
		}
		slices.Sort(out.Exact)
		slices.Sort(out.Globs)
		out.Exact, out.Globs = slices.Compact(out.Exact), slices.Compact(out.Globs)
		return out
	case condMaybe, condTrue:
	}
	return EventTypes{All: true}
}

// intersect gives at least the types that are in both.
func intersect(a, b EventTypes) EventTypes {
	switch {
	case a.All:
		return b
	case b.All:
		return a
	case len(a.Globs) == 0:
		return EventTypes{Exact: slices.DeleteFunc(slices.Clone(a.Exact), func(s string) bool { return !b.Has(s) })}
	case len(b.Globs) == 0:
		return intersect(b, a)
	}
	return a
}

// conditions builds the condition of an expression.
type conditions struct {
	types  *typeSystem
	params map[string]ref.Val
	named  func(name string) *program // vars.x and lib.x
	depth  int
}

func (cs *conditions) of(a *celast.AST, e celast.Expr, neg bool) *condition {
	if cs.depth++; cs.depth > 10_000 {
		return &condition{}
	}
	switch e.Kind() {
	case celast.LiteralKind:
		if b, ok := e.AsLiteral().(types.Bool); ok {
			return constant(bool(b) != neg)
		}
	case celast.IdentKind:
		name := e.AsIdent()
		if v, ok := cs.params[name]; ok {
			if b, ok := v.(types.Bool); ok {
				return constant(bool(b) != neg)
			}
			return &condition{}
		}
		if p := cs.named(name); p != nil && p.typ.Kind() == types.BoolKind {
			return cs.of(p.ast, p.ast.Expr(), neg)
		}
	case celast.SelectKind:
		if p, ok := cs.truth(e); ok {
			return testOf(&textTest{path: p, how: operators.Equals, words: []string{textTrue}}, neg)
		}
	case celast.CallKind:
		c := e.AsCall()
		switch fn := c.FunctionName(); fn {
		case operators.LogicalNot:
			return cs.of(a, c.Args()[0], !neg)
		case operators.LogicalAnd, operators.LogicalOr:
			op := condAnd
			if (fn == operators.LogicalOr) != neg {
				op = condOr
			}
			out := &condition{op: op}
			for _, arg := range c.Args() {
				k := cs.of(a, arg, neg)
				if k.op == op {
					out.kids = append(out.kids, k.kids...)
				} else {
					out.kids = append(out.kids, k)
				}
			}
			return out
		case operators.Equals, operators.NotEquals:
			x, y := c.Args()[0], c.Args()[1]
			if t := cs.test(operators.Equals, x, y); t != nil {
				return testOf(t, neg != (fn == operators.NotEquals))
			}
			if t := cs.test(operators.Equals, y, x); t != nil {
				return testOf(t, neg != (fn == operators.NotEquals))
			}
		case operators.In:
			if t := cs.test(fn, c.Args()[0], c.Args()[1]); t != nil {
				return testOf(t, neg)
			}
		case testKnown:
			if c.IsMemberFunction() {
				if p, ok := cs.path(c.Target()); ok {
					return testOf(&textTest{path: p, how: testKnown}, neg)
				}
			}
		case "startsWith", "endsWith", "contains", "glob":
			if c.IsMemberFunction() && len(c.Args()) == 1 {
				if t := cs.test(fn, c.Target(), c.Args()[0]); t != nil {
					return testOf(t, neg)
				}
			}
		}
	}
	return &condition{}
}

func constant(b bool) *condition {
	if b {
		return &condition{op: condTrue}
	}
	return &condition{op: condFalse}
}

func testOf(t *textTest, neg bool) *condition {
	t.neg = neg
	return &condition{op: condTest, test: t}
}

func (cs *conditions) test(how string, text, words celast.Expr) *textTest {
	p, ok := cs.path(text)
	if !ok {
		return nil
	}
	ws, ok := cs.constants(words, how == operators.In)
	if !ok {
		return nil
	}
	return &textTest{path: p, how: how, words: ws}
}

// constants reads a text, or a list of texts, known when the rule is loaded.
func (cs *conditions) constants(e celast.Expr, list bool) ([]string, bool) {
	switch e.Kind() {
	case celast.LiteralKind:
		s, ok := e.AsLiteral().(types.String)
		return []string{string(s)}, ok && !list
	case celast.IdentKind:
		v, ok := cs.params[e.AsIdent()]
		if !ok {
			return nil, false
		}
		if s, ok := v.(types.String); ok {
			return []string{string(s)}, !list
		}
		if !list || v.Type() != types.ListType {
			return nil, false
		}
		var out []string
		for el := range items(v) {
			s, ok := el.(types.String)
			if !ok {
				return nil, false
			}
			out = append(out, string(s))
		}
		return out, true
	case celast.ListKind:
		if !list {
			return nil, false
		}
		var out []string
		for _, el := range e.AsList().Elements() {
			ws, ok := cs.constants(el, false)
			if !ok {
				return nil, false
			}
			out = append(out, ws...)
		}
		return out, true
	}
	return nil, false
}

// textTrue is what a boolean field reads as where it is true.
const textTrue = "true"

// path reads event.a.b where it is a text, an entry of an open object, or either in lower case.
func (cs *conditions) path(e celast.Expr) (textPath, bool) {
	if e.Kind() == celast.CallKind {
		c := e.AsCall()
		switch fn := c.FunctionName(); {
		case fn == "lowerAscii" && c.IsMemberFunction() && len(c.Args()) == 0:
			p, ok := cs.path(c.Target())
			if !ok {
				return textPath{}, false
			}
			get := p.get
			if get == nil {
				return textPath{}, false
			}
			return textPath{name: p.name + ".lowerAscii()", get: func(v *record.SystemLogView) string { return lowerASCII(get(v)) }}, true
		case fn == operators.Index && len(c.Args()) == 2 && c.Args()[1].Kind() == celast.LiteralKind:
			if key, ok := c.Args()[1].AsLiteral().(types.String); ok {
				return cs.entry(segments(c.Args()[0]), string(key))
			}
		}
		return textPath{}, false
	}
	segs := segments(e)
	p := textPath{name: strings.Join(segs, ".")}
	switch p.name {
	case pathRuleID:
		return p, true
	case "":
		return textPath{}, false
	case "eventType":
		p.get = (*record.SystemLogView).EventType
		return p, true
	case "outcome.result", "outcome.reason": // decoded once an event, for all rules
		reason := p.name == "outcome.reason"
		p.get = func(v *record.SystemLogView) string {
			o := v.Outcome()
			switch {
			case o == nil:
				return ""
			case reason:
				return o.Reason
			}
			return o.Result
		}
		return p, true
	}
	if last, of, ok := cs.field(segs); ok && last.kind == kindString {
		p.get = func(v *record.SystemLogView) string {
			o, ok := of(v)
			if !ok {
				return ""
			}
			s, _ := last.str(o)
			return s
		}
		return p, true
	}
	return cs.entry(segs[:len(segs)-1], segs[len(segs)-1])
}

// truth reads event.a.b where it is a boolean.
func (cs *conditions) truth(e celast.Expr) (textPath, bool) {
	segs := segments(e)
	last, of, ok := cs.field(segs)
	if !ok || last.kind != kindBool {
		return textPath{}, false
	}
	return textPath{name: strings.Join(segs, "."), get: func(v *record.SystemLogView) string {
		if o, ok := of(v); ok {
			if b, _ := last.bol(o); b {
				return textTrue
			}
		}
		return ""
	}}, true
}

// entry reads one key of an open object.
func (cs *conditions) entry(segs []string, key string) (textPath, bool) {
	last, of, ok := cs.field(segs)
	if !ok || last.kind != kindStringMap {
		return textPath{}, false
	}
	return textPath{name: strings.Join(segs, ".") + "." + key, get: func(v *record.SystemLogView) string {
		o, ok := of(v)
		if !ok {
			return ""
		}
		return last.smap(o)[key]
	}}, true
}

// segments are the names of event.a.b behind event; none where an expression is not of this form.
func segments(e celast.Expr) []string {
	var segs []string
	for e.Kind() == celast.SelectKind && !e.AsSelect().IsTestOnly() {
		segs = append(segs, e.AsSelect().FieldName())
		e = e.AsSelect().Operand()
	}
	if e.Kind() != celast.IdentKind || e.AsIdent() != "event" {
		return nil
	}
	slices.Reverse(segs)
	return segs
}

// field finds a field of the event, with what gives the object it is of.
func (cs *conditions) field(segs []string) (last *field, of func(v *record.SystemLogView) (any, bool), ok bool) {
	if len(segs) == 0 {
		return nil, nil, false
	}
	t := cs.types.byName[typeEvent]
	var objs []*field
	for i, s := range segs {
		f := t.byName[s]
		switch {
		case f == nil || f.ofEvent != nil:
			return nil, nil, false
		case i == len(segs)-1:
			last = f
		case f.kind != kindObject:
			return nil, nil, false
		default:
			t = cs.types.byName[f.elem]
			objs = append(objs, f)
		}
	}
	return last, func(v *record.SystemLogView) (any, bool) {
		var o any = v
		for _, f := range objs {
			next, ok := f.obj(o)
			if !ok {
				return nil, false
			}
			o = next
		}
		return o, true
	}, true
}

// lowerASCII is CEL's lowerAscii.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}, s)
}
