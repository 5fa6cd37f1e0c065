package rule

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/cel-go/cel"
	celast "github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
)

// ValueType is the type of an aggregate.
type ValueType uint8

// The types of aggregates.
const (
	IntValue ValueType = iota
	DoubleValue
	TimeValue // microseconds since the epoch, in Int
	CountsValue
)

// Value is what an aggregate is over one window; its type says which member holds it.
type Value struct {
	Int    int64
	Double float64
	Counts map[string]int64
}

// AggregateType is how one aggregate of a compiled rule is made.
type AggregateType struct {
	Name string
	How  AggregateHow
	Type ValueType
}

// StepType is what the engine must know of one step.
type StepType struct {
	ID      string
	Count   int
	Within  time.Duration
	Not     bool
	Over    bool // detections are its input
	Dynamic bool // reads earlier steps: where the filter says true, StepHolds must be asked too
	Refs    []int
}

type compiledAggregate struct{ expr, where *program }

// stateful is the compiled part of detection that kinds with memory have.
type stateful struct {
	AggregateTypes []AggregateType
	StepTypes      []StepType
	ReadsEvidence  bool // an expression over hits reads evidence
	ReadsEvent     bool // an expression over hits reads the hit's event

	groupBy   []*program
	aggs      []compiledAggregate
	having    *program
	steps     []*program
	stepConds []*condition
	learn     *program
	learnCond *condition
	plan      *keepPlan
	keepText  []string
	over      overDetections
	shown     []string // names that HitValues tells
}

// nameKind is what a name that only hits have stands for.
type nameKind uint8

const (
	nameKey nameKind = 1 + iota
	nameAgg
	nameRecent
	nameBase
	nameStep
	nameEvidence
)

type hitName struct {
	kind nameKind
	i    int // which; of aggregates their number stands for count
}

// Hit is what expressions over a hit see beside their event. The engine fills it.
type Hit struct {
	Event    *Event // last record of the hit
	Key      []string
	Count    int64
	Agg      []Value // by number of aggregate; values are worked out here
	Recent   []any   // *Baseline or *KeyBaseline by number of aggregate, count behind them
	Base     []any
	Steps    []*Event // by number of step
	Evidence func() []*Event

	values   []ref.Val
	evidence ref.Val
}

// Reset makes the hit ready for other values of the same rule.
func (h *Hit) Reset() { clear(h.values); h.evidence = nil }

func (d *Detection) rebase(old func(Expr) Expr) {
	d.Where, d.Having, d.LearnFrom = old(d.Where), old(d.Having), old(d.LearnFrom)
	d.GroupBy, d.Aggregates, d.Steps = slices.Clone(d.GroupBy), slices.Clone(d.Aggregates), slices.Clone(d.Steps)
	for i := range d.GroupBy {
		d.GroupBy[i].Expr = old(d.GroupBy[i].Expr)
	}
	for i := range d.Aggregates {
		d.Aggregates[i].Expr, d.Aggregates[i].Where = old(d.Aggregates[i].Expr), old(d.Aggregates[i].Where)
	}
	for i := range d.Steps {
		d.Steps[i].Where = old(d.Steps[i].Where)
	}
}

// compileState compiles the detection of a kind with memory. It returns the environment that expressions over hits
// have and that of keys.
func (s *scope) compileState(c *Compiled, env *cel.Env, need func(*program) *program, cs *conditions) (hits, keys *cel.Env, err error) {
	str, strs := types.StringType, types.NewListType(types.StringType)
	det := &c.Detection
	var hitOpts, keyOpts []cel.EnvOption
	name := func(opts *[]cel.EnvOption, n string, t *types.Type, h hitName) {
		*opts = append(*opts, cel.Variable(n, t))
		c.names[n] = binding{hit: h}
	}
	for i, g := range det.GroupBy {
		c.groupBy = append(c.groupBy, need(s.lang.compile(env, g.Expr, "group_by."+g.Name, str, strs)))
		name(&hitOpts, "key."+g.Name, str, hitName{nameKey, i})
		keyOpts = append(keyOpts, cel.Variable("key."+g.Name, str))
	}
	name(&hitOpts, "evidence", types.NewListType(cel.ObjectType(typeEvent)), hitName{nameEvidence, 0})
	switch det.Kind {
	case KindMatch: // has no memory
	case KindAggregate:
		aggs, err := s.compileAggregates(c, env, need)
		if err != nil {
			return nil, nil, err
		}
		hitOpts = append(hitOpts, aggs...)
		if det.Detections {
			c.any = constant(false)
		}
	case KindSequence:
		steps := env
		var union []*condition
		for i, st := range det.Steps {
			p := need(s.lang.compile(steps, st.Where, "step "+st.ID, types.BoolType))
			t := StepType{ID: st.ID, Count: st.Count, Within: st.Within, Not: st.Not, Over: st.Detections}
			cond := &condition{}
			if p != nil {
				for _, id := range deepIdents(p, "steps", cs.named) {
					t.Dynamic = true
					t.Refs = append(t.Refs, slices.IndexFunc(det.Steps, func(o Step) bool { return o.ID == id }))
				}
				cond = cs.of(p.ast, p.ast.Expr(), false)
			}
			c.steps, c.stepConds = append(c.steps, p), append(c.stepConds, cond)
			if !st.Detections {
				union = append(union, cond)
			}
			c.StepTypes = append(c.StepTypes, t)
			if !st.Not {
				n := "steps." + st.ID
				name(&hitOpts, n, cel.ObjectType(typeEvent), hitName{nameStep, i})
				if steps, err = steps.Extend(cel.Variable(n, cel.ObjectType(typeEvent))); err != nil {
					return nil, nil, fmt.Errorf("step %s: %w", st.ID, err)
				}
			}
		}
		c.any = &condition{op: condAnd, kids: []*condition{c.cond, {op: condOr, kids: union}}}
	case KindFirstSeen:
		c.learnCond = c.cond
		c.any = c.cond
		if !det.LearnFrom.Empty() {
			if c.learn = need(s.lang.compile(env, det.LearnFrom, "learn_from", types.BoolType)); c.learn != nil {
				c.learnCond = cs.of(c.learn.ast, c.learn.ast.Expr(), false)
				c.any = &condition{op: condOr, kids: []*condition{c.cond, c.learnCond}}
			}
		}
	}
	if hits, err = env.Extend(hitOpts...); err != nil {
		return nil, nil, fmt.Errorf("names of hits: %w", err)
	}
	if keys, err = s.lang.bare.Extend(keyOpts...); err != nil {
		return nil, nil, fmt.Errorf("names of keys: %w", err)
	}
	if det.Kind == KindAggregate {
		c.having = need(s.lang.compile(hits, det.Having, "having", types.BoolType))
	}
	return hits, keys, nil
}

func (s *scope) compileAggregates(c *Compiled, env *cel.Env, need func(*program) *program) ([]cel.EnvOption, error) {
	str, strs := types.StringType, types.NewListType(types.StringType)
	det := &c.Detection
	var opts, raw []cel.EnvOption
	add := func(name string, i int, t *types.Type, vt ValueType, value bool) {
		c.names["agg."+name] = binding{hit: hitName{nameAgg, i}}
		opts = append(opts, cel.Variable("agg."+name, t))
		if !value {
			raw = append(raw, cel.Variable("agg."+name, t))
		}
		if det.Baseline == 0 || vt == TimeValue {
			return
		}
		bt := cel.ObjectType(typeBaseline)
		if vt == CountsValue {
			bt = cel.ObjectType(typeKeyBaseline)
		}
		c.names["recent."+name] = binding{hit: hitName{nameRecent, i}}
		c.names["base."+name] = binding{hit: hitName{nameBase, i}}
		opts = append(opts, cel.Variable("recent."+name, bt), cel.Variable("base."+name, bt))
	}
	c.aggs = make([]compiledAggregate, len(det.Aggregates))
	c.AggregateTypes = make([]AggregateType, len(det.Aggregates))
	add("count", len(det.Aggregates), types.IntType, IntValue, false)
	for i, a := range det.Aggregates {
		at := AggregateType{Name: a.Name, How: a.How}
		c.AggregateTypes[i] = at
		what := "aggregate " + a.Name
		var p *program
		ct := types.IntType
		switch a.How {
		case AggCount:
			p = need(s.lang.compile(env, a.Expr, what, types.BoolType))
		case AggDistinct, AggCountBy:
			p = need(s.lang.compile(env, a.Expr, what, str, strs))
			if a.How == AggCountBy {
				at.Type, ct = CountsValue, types.NewMapType(types.StringType, types.IntType)
			}
		case AggMin, AggMax:
			p = need(s.lang.compile(env, a.Expr, what, types.IntType, types.DoubleType, types.TimestampType))
			if p != nil {
				at.Type, ct = numberType(p.typ)
			}
		default:
			continue
		}
		c.aggs[i].expr = p
		if !a.Where.Empty() {
			c.aggs[i].where = need(s.lang.compile(env, a.Where, what+" where", types.BoolType))
		}
		c.AggregateTypes[i] = at
		add(a.Name, i, ct, at.Type, false)
	}
	values, err := s.lang.bare.Extend(append(raw, s.paramOpts(c)...)...)
	if err != nil {
		return nil, fmt.Errorf("names of aggregates: %w", err)
	}
	for i, a := range det.Aggregates {
		if a.How != AggValue {
			continue
		}
		at := AggregateType{Name: a.Name, How: a.How}
		ct := types.IntType
		p := need(s.lang.compile(values, a.Expr, "aggregate "+a.Name, types.IntType, types.DoubleType))
		if p != nil {
			at.Type, ct = numberType(p.typ)
		}
		c.aggs[i].expr, c.AggregateTypes[i] = p, at
		add(a.Name, i, ct, at.Type, true)
	}
	return opts, nil
}

func numberType(t *types.Type) (ValueType, *types.Type) {
	switch t.Kind() {
	case types.DoubleKind:
		return DoubleValue, types.DoubleType
	case types.TimestampKind:
		return TimeValue, types.TimestampType
	}
	return IntValue, types.IntType
}

func (s *scope) paramOpts(c *Compiled) []cel.EnvOption {
	var opts []cel.EnvOption
	for _, p := range c.Params {
		t, _ := paramCEL(p.Value)
		opts = append(opts, cel.Variable("params."+p.Name, t))
	}
	return opts
}

// deepIdents lists the names place.x that a program uses, through vars and lib too.
func deepIdents(p *program, place string, named func(string) *program) []string {
	out := identsOf(p.ast.Expr(), place)
	seen := map[*program]bool{p: true}
	var walk func(e celast.Expr)
	walk = func(e celast.Expr) {
		if e.Kind() == celast.IdentKind {
			if q := named(e.AsIdent()); q != nil && !seen[q] {
				seen[q] = true
				out = append(out, identsOf(q.ast.Expr(), place)...)
				walk(q.ast.Expr())
			}
		}
		for _, k := range children(e) {
			walk(k)
		}
	}
	walk(p.ast.Expr())
	slices.Sort(out)
	return slices.Compact(out)
}

// afterFilter walks the expressions that are judged on what was kept of events.
func (c *Compiled) afterFilter() []*program {
	out := []*program{c.having}
	for i, p := range c.steps {
		if c.StepTypes[i].Dynamic {
			out = append(out, p)
		}
	}
	for _, w := range c.severity {
		out = append(out, w.when)
	}
	for _, p := range c.title {
		out = append(out, p.prg)
	}
	for _, x := range c.context {
		out = append(out, x.prg)
	}
	return slices.DeleteFunc(out, func(p *program) bool { return p == nil })
}

// finishState works out what is kept of events.
func (c *Compiled) finishState(l *language, named func(string) *program) {
	rd := newReads(l, named)
	for _, rf := range setFields {
		rd.fields[rf] = true
	}
	c.over.later = rd
	for _, p := range c.afterFilter() {
		rd.program(p)
		c.ReadsEvidence = c.ReadsEvidence || usesIdent(p.ast.Expr(), func(n string) bool { return n == "evidence" })
		c.ReadsEvent = c.ReadsEvent || usesIdent(p.ast.Expr(), func(n string) bool { return n == "event" || named(n) != nil })
	}
	for _, x := range c.context {
		rd.result(x.prg)
	}
	c.findShown()
	c.plan = newKeepPlan(rd)
	c.keepText = c.plan.text()
}

func usesIdent(e celast.Expr, is func(name string) bool) bool {
	if e.Kind() == celast.IdentKind && is(e.AsIdent()) {
		return true
	}
	return slices.ContainsFunc(children(e), func(k celast.Expr) bool { return usesIdent(k, is) })
}

// HasSeverityWhen tells whether hits differ in severity.
func (c *Compiled) HasSeverityWhen() bool { return len(c.severity) > 0 }

// statePrograms are the expressions under detection but where.
func (c *Compiled) statePrograms() []*program {
	var out []*program
	out = append(out, c.groupBy...)
	for _, a := range c.aggs {
		out = append(out, a.expr, a.where)
	}
	out = append(out, c.steps...)
	return append(out, c.learn)
}

// stateText is what starts a rule empty, but for the expressions' own vars, lib and params.
func (c *Compiled) stateText() []string {
	d := &c.Detection
	if d.Kind == KindMatch {
		return nil
	}
	out := []string{d.Lateness.String(), d.Learning.String(), d.Window.String(), d.Settle.String(), d.Baseline.String(), d.Bucket.String(), d.Memory.String()}
	for _, g := range d.GroupBy {
		out = append(out, "key", g.Name, g.Expr.Text)
	}
	for _, a := range d.Aggregates {
		out = append(out, "agg", a.Name, string(a.How), a.Expr.Text, a.Where.Text)
	}
	for _, s := range d.Steps {
		out = append(out, "step", s.ID, s.Where.Text, fmt.Sprint(s.Count, s.Within, s.Not))
		if s.Detections {
			out = append(out, "detections")
		}
	}
	if d.Detections {
		out = append(out, "detections")
	}
	out = append(out, "learn", d.LearnFrom.Text)
	out = append(append(out, "seen"), d.SeenBefore...)
	return append(append(out, "keep"), c.keepText...)
}

// Taken is what a rule with memory takes of an event.
type Taken struct {
	Keys     [][]string // one for each group, by part
	Cut      bool       // the event had more groups than MaxGroups
	Flags    uint32     // sequence: bit i, step i may hold; first_seen: Judged, Sighting
	Excepted bool       // an exception names the event: only negated steps and sightings see it
	Values   []byte     // aggregates' values, see ReadValue
}

// Flags of first_seen.
const (
	Judged   = 1 << 0
	Sighting = 1 << 1
)

// Take judges an event by a rule with memory. Nil where the rule does not want it. An exception that keeps it from
// being judged is named. Failed expressions count as false; a failed key drops the event from the rule.
func (c *Compiled) Take(ev *Event) (t *Taken, exception string, err error) {
	over := ev.detection != nil // the record is a pair
	if !over && c.any != nil && c.any.judge(ev.view) == no || over && !c.Over() {
		return nil, "", nil
	}
	hit, exception, err := c.Judge(ev)
	t = &Taken{Excepted: exception != ""}
	switch c.Detection.Kind {
	case KindMatch: // has no memory
	case KindAggregate:
		if !hit {
			return nil, exception, err
		}
		vals, verr := c.values(ev)
		t.Values, err = vals, errors.Join(err, verr)
	case KindSequence:
		if !hit && exception == "" {
			return nil, "", err
		}
		for i, p := range c.steps {
			st := &c.StepTypes[i]
			if t.Excepted && !st.Not || st.Over != over {
				continue
			}
			v := c.stepConds[i].judge(ev.view)
			if v == maybe && !st.Dynamic {
				ok, serr := c.evalBool(ev, p)
				err = errors.Join(err, serr)
				if !ok {
					v = no
				}
			}
			if v != no {
				t.Flags |= 1 << i
			}
		}
	case KindFirstSeen:
		if hit {
			t.Flags |= Judged
		}
		switch {
		case c.Detection.LearnFrom.Empty():
			if hit || exception != "" {
				t.Flags |= Sighting
			}
		default:
			v := c.learnCond.judge(ev.view)
			if v == maybe {
				ok, lerr := c.evalBool(ev, c.learn)
				err = errors.Join(err, lerr)
				if !ok {
					v = no
				}
			}
			if v != no {
				t.Flags |= Sighting
			}
		}
	}
	if c.Detection.Kind != KindAggregate && t.Flags == 0 {
		return nil, exception, err
	}
	kerr := c.keys(ev, t)
	err = errors.Join(err, kerr)
	if kerr != nil || len(t.Keys) == 0 {
		return nil, exception, err
	}
	return t, exception, err
}

const maxKeyBytes = 1024

// keyText makes of a value what stands in a key: without zero bytes, which part keys from each other, and of bounded
// length. A longer one ends with a digest of all of it, so that two of them do not become one group.
func keyText(s string) string {
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "\u2400")
	}
	if len(s) > maxKeyBytes {
		sum := sha256.Sum256([]byte(s))
		tail := "~" + hex.EncodeToString(sum[:8])
		n := maxKeyBytes - len(tail)
		for n > 0 && s[n]&0xC0 == 0x80 {
			n--
		}
		return s[:n] + tail
	}
	return strings.Clone(s)
}

// keys works out the groups of an event.
func (c *Compiled) keys(ev *Event, t *Taken) error {
	t.Keys = [][]string{make([]string, 0, len(c.groupBy))}
	for _, p := range c.groupBy {
		v, err := c.eval(ev, p)
		if err != nil {
			return err
		}
		vals := knownTexts(v)
		for i, s := range vals {
			vals[i] = keyText(s)
		}
		slices.Sort(vals)
		vals = slices.Compact(vals)
		var next [][]string
		for _, k := range t.Keys {
			for _, s := range vals {
				next = append(next, append(slices.Clone(k), s))
				if len(next) > MaxGroups*MaxGroups {
					t.Cut = true
					break
				}
			}
		}
		t.Keys = next
	}
	if len(t.Keys) > MaxGroups {
		t.Keys, t.Cut = t.Keys[:MaxGroups], true
	}
	return nil
}

// knownTexts are the known texts of a text or list of texts.
func knownTexts(v ref.Val) []string {
	if s, ok := v.(types.String); ok {
		if Known(string(s)) {
			return []string{string(s)}
		}
		return nil
	}
	return slices.DeleteFunc(texts(v), func(s string) bool { return !Known(s) })
}

// values works out what each aggregate needs of an event, one after the other: of a count one byte; of distinct and
// count_by the number of values and each with its length; of min and max one byte and the number.
func (c *Compiled) values(ev *Event) (out []byte, errs error) {
	for i := range c.aggs {
		a, at := &c.aggs[i], &c.AggregateTypes[i]
		if at.How == AggValue {
			continue
		}
		ok := true
		if a.where != nil {
			var err error
			ok, err = c.evalBool(ev, a.where)
			errs = errors.Join(errs, err)
		}
		var v ref.Val
		if ok {
			var err error
			v, err = c.eval(ev, a.expr)
			errs = errors.Join(errs, err)
			ok = err == nil
		}
		switch at.How {
		case AggCount:
			if ok && v == types.True {
				out = append(out, 1)
			} else {
				out = append(out, 0)
			}
		case AggDistinct, AggCountBy:
			var vals []string
			if ok {
				vals = knownTexts(v)
				for j, s := range vals {
					if len(s) > maxKeyBytes {
						vals[j] = keyText(s)
					}
				}
				if len(vals) > 1 {
					slices.Sort(vals)
					vals = slices.Compact(vals)
				}
			}
			out = binary.AppendUvarint(out, uint64(len(vals)))
			for _, s := range vals {
				out = append(binary.AppendUvarint(out, uint64(len(s))), s...)
			}
		default:
			if !ok {
				out = append(out, 0)
				continue
			}
			out = append(out, 1)
			switch v := v.(type) {
			case types.Int:
				out = binary.LittleEndian.AppendUint64(out, uint64(v))
			case types.Double:
				out = binary.LittleEndian.AppendUint64(out, math.Float64bits(float64(v)))
			case types.Timestamp:
				out = binary.LittleEndian.AppendUint64(out, uint64(v.UnixMicro())) //nolint:gosec // read back as signed
			default:
				out = binary.LittleEndian.AppendUint64(out, 0)
			}
		}
	}
	return out, errs
}

// ReadValue reads one value that Take wrote: for count whether it counts, for distinct and count_by the texts through
// each, for min and max whether there is a number, and it. rest is nil where the bytes are broken.
func ReadValue(t AggregateType, b []byte, each func(text []byte)) (there bool, number uint64, rest []byte) {
	switch t.How {
	case AggValue: // computed from the others
	case AggCount:
		if len(b) < 1 {
			return false, 0, nil
		}
		return b[0] == 1, 0, b[1:]
	case AggDistinct, AggCountBy:
		n, w := binary.Uvarint(b)
		if w <= 0 {
			return false, 0, nil
		}
		b = b[w:]
		for range n {
			l, w := binary.Uvarint(b)
			if w <= 0 || l > uint64(len(b)-w) {
				return false, 0, nil
			}
			each(b[w : w+int(l)]) //nolint:gosec // not above len(b)
			b = b[w+int(l):]      //nolint:gosec // not above len(b)
		}
		return n > 0, 0, b
	case AggMin, AggMax:
		if len(b) < 1 || b[0] == 1 && len(b) < 9 {
			return false, 0, nil
		}
		if b[0] == 0 {
			return false, 0, b[1:]
		}
		return true, binary.LittleEndian.Uint64(b[1:]), b[9:]
	}
	return false, 0, b
}

func (c *Compiled) evalHit(h *Hit, ev *Event, p *program) (ref.Val, error) {
	ev.prepare()
	ev.act.use(c)
	ev.act.hit = h
	v, _, err := p.prg.Eval(&ev.act)
	ev.act.hit = nil
	if err == nil && types.IsUnknownOrError(v) {
		err = fmt.Errorf("%v", v)
	}
	if err != nil {
		return nil, &EvalError{c.ID, p.what, err}
	}
	return v, nil
}

// Having judges a window.
func (c *Compiled) Having(h *Hit) (bool, error) {
	v, err := c.evalHit(h, h.Event, c.having)
	return err == nil && v == types.True, err
}

// StepHolds judges a step that reads earlier ones, which h.Steps holds.
func (c *Compiled) StepHolds(i int, h *Hit, ev *Event) (bool, error) {
	v, err := c.evalHit(h, ev, c.steps[i])
	return err == nil && v == types.True, err
}

// Computed works out an aggregate of how value.
func (c *Compiled) Computed(h *Hit, i int) (Value, error) {
	v, err := c.evalHit(h, h.Event, c.aggs[i].expr)
	if err != nil {
		return Value{}, err
	}
	switch v := v.(type) {
	case types.Int:
		return Value{Int: int64(v)}, nil
	case types.Double:
		return Value{Double: float64(v)}, nil
	}
	return Value{}, nil
}

// HitDedupKey is the dedup key of a group.
func (c *Compiled) HitDedupKey(h *Hit) ([]string, error) {
	if len(c.dedup) == 0 {
		return slices.Clone(h.Key), nil
	}
	key := make([]string, 0, len(c.dedup))
	for _, p := range c.dedup {
		v, err := c.evalHit(h, h.Event, p)
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

// value finds what a name stands for.
func (h *Hit) value(c *Compiled, n hitName) (ref.Val, bool) {
	switch n.kind {
	case nameAgg: // below
	case nameKey:
		if n.i < len(h.Key) {
			return types.String(h.Key[n.i]), true
		}
		return types.String(""), true
	case nameStep:
		if n.i >= len(h.Steps) || h.Steps[n.i] == nil {
			return nil, false
		}
		h.Steps[n.i].prepare()
		return h.Steps[n.i].self, true
	case nameEvidence:
		if h.evidence == nil {
			var vals []ref.Val
			if h.Evidence != nil {
				for _, e := range h.Evidence() {
					e.prepare()
					vals = append(vals, e.self)
				}
			}
			h.evidence = types.NewRefValList(types.DefaultTypeAdapter, vals)
		}
		return h.evidence, true
	case nameRecent, nameBase:
		all := h.Recent
		if n.kind == nameBase {
			all = h.Base
		}
		if n.i >= len(all) || all[n.i] == nil {
			return nil, false
		}
		heap := &h.Event.heap
		if k, ok := all[n.i].(*KeyBaseline); ok {
			return heap.object(heap.types.byName[typeKeyBaseline], k), true
		}
		return heap.object(heap.types.byName[typeBaseline], all[n.i]), true
	}
	if n.i == len(c.AggregateTypes) {
		return types.Int(h.Count), true
	}
	if len(h.values) != len(c.AggregateTypes) {
		h.values = make([]ref.Val, len(c.AggregateTypes))
	}
	if v := h.values[n.i]; v != nil {
		return v, true
	}
	at := c.AggregateTypes[n.i]
	var v ref.Val
	switch {
	case at.How == AggValue:
		out, _, err := c.aggs[n.i].expr.prg.Eval(&h.Event.act)
		if err != nil {
			return types.NewErr("%s: %v", c.aggs[n.i].expr.what, err), true
		}
		v = out
	case at.Type == DoubleValue:
		v = types.Double(h.Agg[n.i].Double)
	case at.Type == TimeValue:
		v = types.Timestamp{Time: time.UnixMicro(h.Agg[n.i].Int).UTC()}
	case at.Type == CountsValue:
		v = intMap(h.Agg[n.i].Counts)
	default:
		v = types.Int(h.Agg[n.i].Int)
	}
	h.values[n.i] = v
	return v, true
}

var _ traits.Mapper = (*totalMap[int64])(nil)
