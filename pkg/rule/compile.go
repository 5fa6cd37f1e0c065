package rule

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
)

// Compiled is a rule ready to judge: overlays laid over it, expressions compiled, what it reads worked out.
type Compiled struct {
	Rule // overlays laid over it
	stateful

	Types       EventTypes // event types it can be true for
	Copies      Copies     // which copies of an event it judges
	Reads       []string   // top-level fields its expressions read
	ContentHash string     // of rule, params, shared expressions and overlays
	StateHash   string     // of what starts a rule with state empty

	names      map[string]binding
	slots      int // of vars
	where      *program
	cond       *condition
	any        *condition // of kinds with memory: true for all that the rule wants
	exceptions []compiledException
	severity   []compiledSeverity
	title      []compiledPart
	context    []compiledContext
	dedup      []*program
}

type compiledException struct {
	Exception
	when *program
}

type compiledSeverity struct {
	when     *program
	severity Severity
}

type compiledPart struct {
	text string
	prg  *program // nil: text
}

type compiledContext struct {
	name string
	prg  *program
}

// binding is what a name stands for.
type binding struct {
	constant ref.Val  // params
	lib      *program // computed at most once an event
	variable *program // computed at most once an event and rule
	slot     int
	list     string
	hit      hitName // of hits only
}

// scope is what rules see beside themselves: the shared expressions and the lists that there are.
type scope struct {
	lang  *language
	env   *cel.Env // base with lib and lists
	libs  map[string]*program
	lists map[string]*List
}

func (l *language) scope(libs map[string]*program, lists map[string]*List) (*scope, error) {
	opts := []cel.EnvOption{}
	for _, name := range slices.Sorted(maps.Keys(libs)) {
		opts = append(opts, cel.Variable("lib."+name, libs[name].typ))
	}
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		opts = append(opts, cel.Variable("lists."+name, listType))
	}
	env, err := l.base.Extend(opts...)
	if err != nil {
		return nil, fmt.Errorf("build the rule language with lib and lists: %w", err)
	}
	return &scope{l, env, libs, lists}, nil
}

// compile makes a rule ready to judge. Problems go into the rule's document, or that of the overlay they stand in.
func (s *scope) compile(r *Rule) *Compiled {
	c := &Compiled{Rule: *r, names: map[string]binding{}}
	ok := true
	need := func(p *program) *program {
		if p == nil {
			ok = false
		}
		return p
	}
	var opts []cel.EnvOption
	consts := map[string]ref.Val{}
	for _, p := range r.Params {
		typ, val := paramCEL(p.Value)
		opts = append(opts, cel.Variable("params."+p.Name, typ))
		consts["params."+p.Name] = val
		c.names["params."+p.Name] = binding{constant: val}
	}
	for name, p := range s.libs {
		c.names["lib."+name] = binding{lib: p}
	}
	for name := range s.lists {
		c.names["lists."+name] = binding{list: name}
	}
	env, err := s.env.Extend(opts...)
	if err != nil {
		r.doc.add(0, checkCEL, "params: %v", err)
		return nil
	}
	vars, env, fine := s.compileNamed(env, r.Vars, "vars")
	ok = ok && fine
	for i, v := range r.Vars {
		if p := vars[v.Name]; p != nil {
			c.names["vars."+v.Name] = binding{variable: p, slot: i}
		}
	}
	c.slots = len(r.Vars)
	named := func(name string) *program {
		b := c.names[name]
		if b.variable != nil {
			return b.variable
		}
		return b.lib
	}
	str, strs := types.StringType, types.NewListType(types.StringType)

	cs := &conditions{types: s.lang.types, params: consts, named: named}
	c.cond = constant(true)
	if !r.Detection.Where.Empty() {
		if c.where = need(s.lang.compile(env, r.Detection.Where, "where", types.BoolType)); c.where != nil {
			c.cond = cs.of(c.where.ast, c.where.ast.Expr(), false)
		}
	}
	hits, keys := env, env
	if r.Detection.Kind != KindMatch {
		if hits, keys, err = s.compileState(c, env, need, cs); err != nil {
			r.doc.add(0, checkCEL, "%v", err)
			return nil
		}
	}
	for _, e := range r.Exceptions {
		c.exceptions = append(c.exceptions, compiledException{e, need(s.lang.compile(env, e.When, "exception "+e.Name, types.BoolType))})
	}
	for _, w := range r.Alert.SeverityWhen {
		c.severity = append(c.severity, compiledSeverity{need(s.lang.compile(hits, w.When, "severity_when", types.BoolType)), w.Severity})
	}
	for _, p := range r.Title.parts {
		if !p.expr {
			c.title = append(c.title, compiledPart{text: p.text})
			continue
		}
		e := Expr{Text: p.text, at: r.Title.partAt(p)}
		c.title = append(c.title, compiledPart{prg: need(s.lang.compile(hits, e, "title",
			str, types.IntType, types.UintType, types.DoubleType, types.BoolType, types.TimestampType, strs))})
	}
	for _, x := range r.Alert.Context {
		c.context = append(c.context, compiledContext{x.Name, need(s.lang.compile(hits, x.Expr, "context."+x.Name))})
	}
	for _, k := range r.Alert.DedupKey {
		c.dedup = append(c.dedup, need(s.lang.compile(keys, k, "dedup.key", str, strs)))
	}
	if !ok || !patternsCompile(c, vars, consts) {
		return nil
	}
	rd := newReads(s.lang, named)
	for p := range c.programs() {
		rd.program(p)
	}
	for _, x := range c.context {
		rd.result(x.prg)
	}
	if len(c.dedup) == 0 && c.Detection.Kind == KindMatch {
		rd.fields[readField{typeEvent, "actor"}] = true
	}
	wants := c.cond
	if c.any != nil {
		wants = c.any
	}
	c.Types, c.Copies, c.Reads = wants.eventTypes(), rd.copies(), rd.sections()
	if c.Detection.Kind != KindMatch {
		c.finishState(s.lang, named)
	}
	c.over.reads, c.over.wait, c.over.takes = rd, c.Detection.Lateness, newReads(s.lang, named)
	for _, p := range append([]*program{c.where}, c.steps...) {
		c.over.takes.program(p)
	}
	for _, e := range c.exceptions {
		c.over.takes.program(e.when)
	}
	c.hash(rd)
	return c
}

// programs walks the rule's own expressions.
func (c *Compiled) programs() func(yield func(*program) bool) {
	return func(yield func(*program) bool) {
		all := []*program{c.where}
		for _, e := range c.exceptions {
			all = append(all, e.when)
		}
		for _, w := range c.severity {
			all = append(all, w.when)
		}
		for _, p := range c.title {
			all = append(all, p.prg)
		}
		for _, x := range c.context {
			all = append(all, x.prg)
		}
		all = append(append(all, c.statePrograms()...), c.having)
		for _, p := range append(all, c.dedup...) {
			if p != nil && !yield(p) {
				return
			}
		}
	}
}

// compileNamed compiles expressions that may use each other, each after those it uses.
func (s *scope) compileNamed(env *cel.Env, named []Named, place string) (map[string]*program, *cel.Env, bool) {
	byName := map[string]Named{}
	for _, n := range named {
		byName[n.Name] = n
	}
	out := map[string]*program{}
	ok := true
	state := map[string]int{} // 1 open, 2 done
	var visit func(n Named) bool
	visit = func(n Named) bool {
		switch state[n.Name] {
		case 1:
			d := n.Expr.at.doc
			line, col := n.Expr.at.locate(n.Expr.Text, 0)
			d.problems = append(d.problems, Problem{d.file, line, col, checkCircle, fmt.Sprintf("%s.%s uses itself in a circle: write out one of the expressions", place, n.Name)})
			return false
		case 2:
			return out[n.Name] != nil
		}
		state[n.Name] = 1
		defer func() { state[n.Name] = 2 }()
		fine := true
		for _, used := range usesOf(env, n.Expr.Text, place) {
			if u, there := byName[used]; there && !visit(u) {
				fine = false
			}
		}
		if !fine {
			return false
		}
		p := s.lang.compile(env, n.Expr, place+"."+n.Name)
		if p == nil {
			return false
		}
		next, err := env.Extend(cel.Variable(place+"."+n.Name, p.typ))
		if err != nil {
			n.Expr.at.doc.add(n.Expr.at.off, checkCEL, "%s.%s: %v", place, n.Name, err)
			return false
		}
		env, out[n.Name] = next, p
		return true
	}
	for _, n := range named {
		if !visit(n) {
			ok = false
		}
	}
	return out, env, ok
}

// usesOf lists the names place.x that a text uses, as far as it parses.
func usesOf(env *cel.Env, text, place string) (out []string) {
	defer func() { _ = recover() }() // the compiler says it again, with its own shield
	if len(text) > 4*maxExprChars {
		return nil
	}
	a, iss := env.Parse(text)
	if iss.Err() != nil {
		return nil
	}
	return identsOf(a.NativeRep().Expr(), place)
}

// paramCEL gives a param's value its CEL type.
func paramCEL(v any) (*types.Type, ref.Val) {
	list := func(el *types.Type, n int, at func(i int) ref.Val) (*types.Type, ref.Val) {
		vals := make([]ref.Val, n)
		for i := range vals {
			vals[i] = at(i)
		}
		return types.NewListType(el), types.NewRefValList(types.DefaultTypeAdapter, vals)
	}
	switch v := v.(type) {
	case string:
		return types.StringType, types.String(v)
	case int64:
		return types.IntType, types.Int(v)
	case float64:
		return types.DoubleType, types.Double(v)
	case bool:
		return types.BoolType, types.Bool(v)
	case []string:
		return list(types.StringType, len(v), func(i int) ref.Val { return types.String(v[i]) })
	case []int64:
		return list(types.IntType, len(v), func(i int) ref.Val { return types.Int(v[i]) })
	case []float64:
		return list(types.DoubleType, len(v), func(i int) ref.Val { return types.Double(v[i]) })
	case []bool:
		return list(types.BoolType, len(v), func(i int) ref.Val { return types.Bool(v[i]) })
	case map[string]string:
		return types.NewMapType(types.StringType, types.StringType), stringMap(v)
	default:
		m, _ := v.(map[string]int64)
		return types.NewMapType(types.StringType, types.IntType), intMap(m)
	}
}

// partAt is where a template's CEL stands.
func (t Template) partAt(p templatePart) place {
	return place{t.at.doc, t.at.within(t.text, p.off)}
}

// within is the file offset of character i of a scalar's text.
func (p place) within(text string, i int) int {
	line, col := p.locate(text, i)
	off := p.doc.lines[line-1]
	for ; col > 1 && off < len(p.doc.src); col-- {
		_, n := utf8.DecodeRune(p.doc.src[off:])
		off += n
	}
	return off
}

// hash works out the content and the state hash.
func (c *Compiled) hash(rd *reads) {
	h := sha256.New()
	put := func(parts ...string) {
		for _, p := range parts {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
	}
	put("content", string(c.doc.src), string(c.Mode), c.Severity.String())
	for _, k := range slices.Sorted(maps.Keys(c.Alert.Labels)) {
		put("label", k, c.Alert.Labels[k])
	}
	for _, e := range c.exceptions {
		put("exception", e.Name, e.when.text, e.Expires.Format(time.DateOnly))
	}
	putNamed := func(seen map[*program]bool) {
		for _, name := range slices.Sorted(maps.Keys(c.names)) {
			switch b := c.names[name]; {
			case b.constant != nil:
				put("param", name, jsonText(b.constant))
			case b.lib != nil && seen[b.lib]:
				put("lib", name, b.lib.text)
			case b.variable != nil && seen[b.variable]:
				put("var", name, b.variable.text)
			}
		}
	}
	putNamed(rd.seen)
	c.ContentHash = hex.EncodeToString(h.Sum(nil)[:16])
	c.stateHash(rd)
}

// stateHash works out what starts the rule empty.
func (c *Compiled) stateHash(rd *reads) {
	h := sha256.New()
	put := func(parts ...string) {
		for _, p := range parts {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
	}
	put("state", string(c.Detection.Kind))
	put(c.stateText()...)
	used := newReads(&language{types: rd.types, funcs: rd.funcs}, rd.named)
	if c.where != nil {
		put(c.where.text)
		used.program(c.where)
	}
	for _, p := range c.statePrograms() {
		used.program(p)
	}
	params := map[string]bool{}
	for p := range used.seen {
		for _, n := range identsOf(p.ast.Expr(), "params") {
			params["params."+n] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.names)) {
		switch b := c.names[name]; {
		case params[name]:
			put(name, jsonText(b.constant))
		case b.lib != nil && used.seen[b.lib]:
			put(name, b.lib.text)
		case b.variable != nil && used.seen[b.variable]:
			put(name, b.variable.text)
		}
	}
	c.StateHash = hex.EncodeToString(h.Sum(nil)[:8])
}

// Bound tells whether the rule is found by event type.
func (c *Compiled) Bound() bool { return !c.Types.All }

// Judges tells whether the rule judges a copy.
func (c *Compiled) Judges(partial bool) bool { return c.Copies == JudgesBoth || !partial }

// EvalError is a failure of one of a rule's expressions at run time.
type EvalError struct {
	Rule string
	What string // where, dedup.key, …
	Err  error
}

// Error says which expression failed and how.
func (e *EvalError) Error() string { return fmt.Sprintf("rule %s: %s: %v", e.Rule, e.What, e.Err) }

// Unwrap gives CEL's own error.
func (e *EvalError) Unwrap() error { return e.Err }

// Judge tells whether an event is a hit of the rule, or would be one but for an exception, which is then named. A
// failed expression counts as false and comes back as an *EvalError.
func (c *Compiled) Judge(ev *Event) (hit bool, exception string, err error) {
	switch c.cond.judge(ev.view) {
	case no:
		return false, "", nil
	case maybe:
		if hit, err = c.evalBool(ev, c.where); !hit {
			return false, "", err
		}
	case yes:
	}
	for i := range c.exceptions {
		e := &c.exceptions[i]
		if !e.Expires.IsZero() && !ev.Time().Before(e.Expires) {
			continue
		}
		ok, xerr := c.evalBool(ev, e.when)
		if ok {
			return false, e.Name, nil
		}
		err = errors.Join(err, xerr)
	}
	return true, "", err
}

func (c *Compiled) evalBool(ev *Event, p *program) (bool, error) {
	v, err := c.eval(ev, p)
	if err != nil {
		return false, err
	}
	return v == types.True, nil
}

func (c *Compiled) eval(ev *Event, p *program) (ref.Val, error) {
	ev.prepare()
	ev.act.use(c)
	v, _, err := p.prg.Eval(&ev.act)
	if err == nil && types.IsUnknownOrError(v) {
		err = fmt.Errorf("%v", v)
	}
	if err != nil {
		return nil, &EvalError{c.ID, p.what, err}
	}
	return v, nil
}

// SeverityOf is the severity of a hit.
func (c *Compiled) SeverityOf(ev *Event) (Severity, error) { return c.severityOf(ev, nil) }

// HitSeverity is the severity of a hit of a rule with memory.
func (c *Compiled) HitSeverity(h *Hit) (Severity, error) { return c.severityOf(h.Event, h) }

func (c *Compiled) severityOf(ev *Event, h *Hit) (Severity, error) {
	var errs error
	for _, w := range c.severity {
		v, err := c.evalHit(h, ev, w.when)
		if err == nil && v == types.True {
			return w.severity, errs
		}
		errs = errors.Join(errs, err)
	}
	return c.Severity, errs
}

// TitleOf is the title of a hit, at most 256 characters.
func (c *Compiled) TitleOf(ev *Event) (string, error) { return c.titleOf(ev, nil) }

// HitTitle is the title of a hit of a rule with memory.
func (c *Compiled) HitTitle(h *Hit) (string, error) { return c.titleOf(h.Event, h) }

func (c *Compiled) titleOf(ev *Event, h *Hit) (string, error) {
	if len(c.title) == 1 && c.title[0].prg == nil {
		return cut(c.title[0].text), nil
	}
	var b strings.Builder
	var errs error
	for _, p := range c.title {
		if p.prg == nil {
			b.WriteString(p.text)
			continue
		}
		v, err := c.evalHit(h, ev, p.prg)
		if err != nil {
			b.WriteString("(error)")
			errs = errors.Join(errs, err)
			continue
		}
		b.WriteString(titleText(v))
	}
	return cut(b.String()), errs
}

func cut(s string) string {
	if len(s) <= maxTitleChars {
		return s
	}
	n := 0
	for i := range s {
		if n++; n > maxTitleChars {
			return s[:i]
		}
	}
	return s
}

func titleText(v ref.Val) string {
	switch v := v.(type) {
	case types.String:
		return string(v)
	case types.Double:
		return strconv.FormatFloat(float64(v), 'g', -1, 64)
	case types.Timestamp:
		return v.UTC().Format(time.RFC3339)
	case traits.Lister:
		return strings.Join(texts(v), ", ")
	}
	return jsonText(v)
}

// ContextOf is the hit's context: each value as JSON, at most 4 kB.
func (c *Compiled) ContextOf(ev *Event) (map[string]string, error) { return c.contextOf(ev, nil) }

// HitContext is the context of a hit of a rule with memory.
func (c *Compiled) HitContext(h *Hit) (map[string]string, error) { return c.contextOf(h.Event, h) }

func (c *Compiled) contextOf(ev *Event, h *Hit) (map[string]string, error) {
	if len(c.context) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(c.context))
	var errs error
	for _, x := range c.context {
		v, err := c.evalHit(h, ev, x.prg)
		if err != nil {
			out[x.name] = `"(error)"`
			errs = errors.Join(errs, err)
			continue
		}
		s := jsonText(v)
		if len(s) > maxContextBytes {
			s = cutJSON(s)
		}
		out[x.name] = s
	}
	return out, errs
}

// cutJSON makes a JSON text of at most 4 kB of one that is longer.
func cutJSON(s string) string {
	n := maxContextBytes - 16
	for {
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
		b, err := json.Marshal(s[:n] + "…")
		if err == nil && len(b) <= maxContextBytes {
			return string(b)
		}
		n = n * 3 / 4
	}
}

// DedupKeyOf is the hit's dedup key. ok is false where an expression failed: such a record drops out of the rule.
func (c *Compiled) DedupKeyOf(ev *Event) (key []string, err error) {
	if len(c.dedup) == 0 {
		return []string{ev.view.ActorID()}, nil
	}
	key = make([]string, 0, len(c.dedup))
	for _, p := range c.dedup {
		v, err := c.eval(ev, p)
		if err != nil {
			return nil, err
		}
		if s, ok := v.(types.String); ok {
			key = append(key, strings.Clone(string(s)))
			continue
		}
		key = append(key, strings.Join(texts(v), ", "))
	}
	return key, nil
}

// jsonText writes a CEL value as compact JSON.
func jsonText(v ref.Val) string {
	b, err := json.Marshal(plainValue(v, 0))
	if err != nil {
		return "null"
	}
	return string(b)
}

// plainValue turns a CEL value into Go values that encoding/json writes. It stops at a depth no record has.
func plainValue(v ref.Val, depth int) any {
	if depth > 32 {
		return nil
	}
	switch v := v.(type) {
	case types.String:
		return string(v)
	case types.Int:
		return int64(v)
	case types.Uint:
		return uint64(v)
	case types.Double:
		if f := float64(v); !math.IsNaN(f) && !math.IsInf(f, 0) {
			return f
		}
		return nil
	case types.Bool:
		return bool(v)
	case types.Bytes:
		return []byte(v)
	case types.Timestamp:
		return v.UTC().Format(time.RFC3339Nano)
	case types.Duration:
		return v.Duration.String()
	case types.Null:
		return nil
	case *List:
		return v.Name
	case *object:
		out := map[string]any{}
		for _, f := range v.t.fields {
			if v.present(f) {
				out[f.name] = plainValue(v.get(f), depth+1)
			}
		}
		return out
	case traits.Mapper:
		out := map[string]any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			k := it.Next()
			name := text(k)
			if _, ok := k.(types.String); !ok {
				name = fmt.Sprint(k.Value())
			}
			out[name] = plainValue(v.Get(k), depth+1)
		}
		return out
	case traits.Lister:
		out := []any{}
		for e := range items(v) {
			out = append(out, plainValue(e, depth+1))
		}
		return out
	}
	return fmt.Sprint(v.Value())
}

// activation is where the expressions of one rule find their names for one event.
type activation struct {
	ev   *Event
	rule *Compiled
	vars []ref.Val
	hit  *Hit // while an expression over a hit is judged
}

func (a *activation) use(c *Compiled) {
	if a.rule == c {
		return
	}
	a.rule = c
	clear(a.vars)
	if cap(a.vars) < c.slots {
		a.vars = make([]ref.Val, c.slots)
	}
	a.vars = a.vars[:c.slots]
	clear(a.vars)
}

// ResolveName implements cel.Activation.
func (a *activation) ResolveName(name string) (any, bool) {
	if name == "event" {
		return a.ev.self, true
	}
	b, ok := a.rule.names[name]
	switch {
	case !ok:
		return nil, false
	case b.constant != nil:
		return b.constant, true
	case b.hit.kind != 0:
		if a.hit == nil {
			return nil, false
		}
		v, ok := a.hit.value(a.rule, b.hit)
		return v, ok
	case b.list != "":
		return a.ev.lists[b.list], true
	case b.variable != nil:
		if v := a.vars[b.slot]; v != nil {
			return v, true
		}
		v := a.compute(b.variable)
		a.vars[b.slot] = v
		return v, true
	}
	if v, ok := a.ev.libs[b.lib]; ok {
		return v, true
	}
	v := a.compute(b.lib)
	if a.ev.libs == nil {
		a.ev.libs = map[*program]ref.Val{}
	}
	a.ev.libs[b.lib] = v
	return v, true
}

// compute evaluates a named expression. A failure is a value: whoever uses it fails too.
func (a *activation) compute(p *program) ref.Val {
	v, _, err := p.prg.Eval(a)
	if err != nil {
		return types.NewErr("%s: %v", p.what, err)
	}
	return v
}

// Parent implements cel.Activation.
func (a *activation) Parent() cel.Activation { return nil }

var _ cel.Activation = (*activation)(nil)

// Explain lists the rule's event types, copies and sections for people.
func (c *Compiled) Explain() string {
	on := "every event"
	if c.Bound() {
		on = strings.Join(append(slices.Clone(c.Types.Exact), c.Types.Globs...), ", ")
	}
	if c.Over() {
		on = strings.TrimPrefix(on+", and of "+c.Sources(), ", and of ")
	}
	return fmt.Sprintf("reads %s of %s; judges the %s", strings.Join(c.Reads, ", "), on,
		map[Copies]string{JudgesBoth: "first copy, and the second in its place", JudgesComplete: "complete copy only"}[c.Copies])
}
