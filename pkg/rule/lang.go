package rule

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/common"
	celast "github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/ext"
)

// language is CEL as rules speak it. It is built once and shared.
type language struct {
	types *typeSystem
	funcs []Function
	base  *cel.Env
	bare  *cel.Env // without the event
}

func newLanguage() (*language, error) {
	ts, err := newTypeSystem()
	if err != nil {
		return nil, fmt.Errorf("build the rule language's types: %w", err)
	}
	reg, err := types.NewRegistry()
	if err != nil {
		return nil, fmt.Errorf("build the rule language's types: %w", err)
	}
	l := &language{types: ts, funcs: functions(newPatterns())}
	opts := []cel.EnvOption{
		ext.Strings(), ext.Lists(), ext.Sets(), ext.Math(), ext.Bindings(), ext.TwoVarComprehensions(),
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(maxExprChars),
		cel.ParserRecursionLimit(100),
		cel.CostEstimatorOptions(boundedLists()...),
	}
	for _, f := range l.funcs {
		opts = append(opts, f.opt)
	}
	// Behind the libraries, for each of them may set a provider.
	opts = append(opts, cel.CustomTypeAdapter(reg), cel.CustomTypeProvider(&provider{reg, ts}))
	if l.bare, err = cel.NewEnv(opts...); err != nil {
		return nil, fmt.Errorf("build the rule language: %w", err)
	}
	if l.base, err = l.bare.Extend(cel.Variable("event", cel.ObjectType(typeEvent))); err != nil {
		return nil, fmt.Errorf("build the rule language: %w", err)
	}
	return l, nil
}

// program is one compiled expression.
type program struct {
	what string // where | vars.x | …, for messages
	text string
	ast  *celast.AST
	prg  cel.Program
	typ  *types.Type
	env  *cel.Env // to trace it
}

// compile parses, checks and plans one expression. It reports what is wrong into the expression's document.
func (l *language) compile(env *cel.Env, e Expr, what string, want ...*types.Type) *program {
	d := e.at.doc
	report := func(off int, check, format string, args ...any) {
		line, col := e.at.locate(e.Text, off)
		d.problems = append(d.problems, Problem{d.file, line, col, check, what + ": " + fmt.Sprintf(format, args...)})
	}
	if n := len([]rune(e.Text)); n > maxExprChars {
		report(0, checkCost, "the expression has %d characters, at most %d are read: give parts of it names under vars", n, maxExprChars)
		return nil
	}
	checked, iss := compileSafely(env, e.Text)
	if iss != nil && iss.Err() != nil {
		errs := iss.Errors()
		for i, err := range errs {
			if i == 3 {
				break
			}
			report(offsetOf(e.Text, err.Location), checkCEL, "%s", l.hint(err.Message, env))
		}
		if len(errs) == 0 {
			report(0, checkCEL, "%v", iss.Err())
		}
		return nil
	}
	a := checked.NativeRep()
	before := len(d.problems)
	l.validate(a, func(id int64, check, format string, args ...any) {
		off := 0
		if r, ok := a.SourceInfo().GetOffsetRange(id); ok {
			off = byteOffset(e.Text, int(r.Start))
		}
		report(off, check, format, args...)
	})
	if len(d.problems) > before {
		return nil
	}
	typ := a.GetType(a.Expr().ID())
	if len(want) > 0 && !slices.ContainsFunc(want, func(w *types.Type) bool {
		return w.IsExactType(typ) || w.IsAssignableType(typ) && typ.Kind() != types.DynKind
	}) {
		var ws []string
		for _, w := range want {
			ws = append(ws, describe(w))
		}
		report(0, checkCEL, "this is a %s: write an expression that gives %s", describe(typ), strings.Join(ws, " or "))
		return nil
	}
	if cost, err := estimate(env, checked); err != nil || cost > maxExprCost {
		report(0, checkCost, "the expression may cost too much (estimate %s, limit %d): nest fewer comprehensions, or filter first", costText(cost), maxExprCost)
		return nil
	}
	prg, err := env.Program(checked, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		report(0, checkCEL, "%v", err)
		return nil
	}
	return &program{what: what, text: e.Text, ast: a, prg: prg, typ: typ, env: env}
}

// compileSafely shields the loader from a fault in the CEL parser or checker.
func compileSafely(env *cel.Env, text string) (a *cel.Ast, iss *cel.Issues) {
	defer func() {
		if p := recover(); p != nil {
			errs := common.NewErrors(common.NewTextSource(text))
			errs.ReportErrorString(common.NoLocation, fmt.Sprintf("the CEL compiler gave up (%v): simplify the expression", p))
			a, iss = nil, cel.NewIssues(errs)
		}
	}()
	return env.Compile(text)
}

func offsetOf(text string, loc common.Location) int {
	if loc == nil || loc.Line() < 1 {
		return 0
	}
	off := 0
	for line := 1; line < loc.Line(); line++ {
		i := strings.IndexByte(text[off:], '\n')
		if i < 0 {
			return off
		}
		off += i + 1
	}
	return off + byteOffset(text[off:], loc.Column())
}

// byteOffset is where the n-th character begins.
func byteOffset(text string, n int) int {
	for i := range text {
		if n <= 0 {
			return i
		}
		n--
	}
	return max(len(text)-1, 0)
}

var (
	undefinedField = regexp.MustCompile(`^undefined field '([^']*)'`)
	undeclared     = regexp.MustCompile(`^undeclared reference to '([^']*)'`)
)

// hint says what to write where the compiler only says what is wrong.
func (l *language) hint(msg string, env *cel.Env) string {
	msg = strings.TrimSuffix(strings.ReplaceAll(msg, " (in container '')", ""), "\n")
	if i := strings.Index(msg, "Syntax error"); i == 0 && len(msg) > 200 {
		msg = msg[:200]
	}
	if m := undefinedField.FindStringSubmatch(msg); m != nil {
		var all []string
		for _, t := range l.types.byName {
			for _, f := range t.fields {
				all = append(all, f.name)
			}
		}
		slices.Sort(all)
		if s := Nearest(m[1], slices.Compact(all)); s != "" {
			return fmt.Sprintf("there is no field %s here: did you mean %s?", m[1], s)
		}
		return fmt.Sprintf("there is no field %s here: see docs/fields.md; a field Okta added later is read by event.raw(\"path\")", m[1])
	}
	if m := undeclared.FindStringSubmatch(msg); m != nil {
		known := []string{"event", "vars", "params", "lists", "lib"}
		for _, v := range env.Variables() {
			known = append(known, v.Name())
		}
		for _, f := range l.funcs {
			known = append(known, f.name)
		}
		if slices.Contains([]string{"vars", "params", "lists", "lib", "key", "agg", "steps", "base", "recent"}, m[1]) {
			return fmt.Sprintf("%s has no such name: declare it, or see whether it is misspelt", m[1])
		}
		if s := Nearest(m[1], known); s != "" && s != m[1] {
			return fmt.Sprintf("%s is unknown: did you mean %s?", m[1], s)
		}
		return fmt.Sprintf("%s is unknown: a record is read as event, others as vars.x, params.x, lists.x or lib.x; texts go in quotes", m[1])
	}
	return msg
}

// Nearest is the known word that a misspelt one most likely meant; empty: none is near.
func Nearest(word string, known []string) string {
	best, bestD := "", 4
	for _, k := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(k), bestD); d < bestD && d <= len(word)/2 {
			best, bestD = k, d
		}
	}
	return best
}

// validate looks for what CEL allows and the language does not.
func (l *language) validate(a *celast.AST, report func(id int64, check, format string, args ...any)) {
	var walk func(e celast.Expr, loops int)
	walk = func(e celast.Expr, loops int) {
		switch e.Kind() {
		case celast.SelectKind:
			s := e.AsSelect()
			if s.IsTestOnly() && a.GetType(s.Operand().ID()).Kind() == types.MapKind {
				report(e.ID(), checkCEL, "has() of a key of an open object is always true: write %q in the map", s.FieldName())
			}
		case celast.CallKind:
			c := e.AsCall()
			if isPattern(c) {
				arg := c.Args()[len(c.Args())-1]
				if arg.Kind() == celast.LiteralKind {
					if s, ok := arg.AsLiteral().(types.String); ok {
						if _, err := regexp.Compile(string(s)); err != nil {
							report(arg.ID(), checkPattern, "the pattern does not compile (%v): write RE2 syntax, best in r\"…\"", err)
						}
					}
				}
			}
		case celast.StructKind:
			if l.types.byName[e.AsStruct().TypeName()] != nil {
				report(e.ID(), checkCEL, "a %s cannot be written in a rule", e.AsStruct().TypeName())
			}
		case celast.ComprehensionKind:
			r := e.AsComprehension().IterRange()
			if r.Kind() != celast.ListKind || r.AsList().Size() > 0 { // cel.bind loops over nothing
				if loops++; loops == maxComprehensions+1 {
					report(e.ID(), checkCost, "comprehensions are nested %d deep, at most %d are allowed", loops, maxComprehensions)
				}
			}
		}
		for _, c := range children(e) {
			walk(c, loops)
		}
	}
	walk(a.Expr(), 0)
}

// patternsCompile checks the patterns that are params: those that are literals were checked with their expressions.
func patternsCompile(c *Compiled, vars map[string]*program, consts map[string]ref.Val) bool {
	bad := map[string]error{}
	var walk func(e celast.Expr)
	walk = func(e celast.Expr) {
		if e.Kind() == celast.CallKind {
			if call := e.AsCall(); isPattern(call) {
				if arg := call.Args()[len(call.Args())-1]; arg.Kind() == celast.IdentKind {
					if s, ok := consts[arg.AsIdent()].(types.String); ok {
						if _, err := regexp.Compile(string(s)); err != nil {
							bad[arg.AsIdent()] = err
						}
					}
				}
			}
		}
		for _, k := range children(e) {
			walk(k)
		}
	}
	for p := range c.programs() {
		walk(p.ast.Expr())
	}
	for _, p := range vars {
		if p != nil {
			walk(p.ast.Expr())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		c.doc.add(0, checkPattern, "%s is used as a pattern and does not compile (%v): write RE2 syntax", name, bad[name])
	}
	return len(bad) == 0
}

func isPattern(c celast.CallExpr) bool {
	return (c.FunctionName() == "matches" || c.FunctionName() == "extract") && len(c.Args()) > 0
}

// children lists the expressions directly inside one.
func children(e celast.Expr) []celast.Expr {
	switch e.Kind() {
	case celast.SelectKind:
		return []celast.Expr{e.AsSelect().Operand()}
	case celast.CallKind:
		c := e.AsCall()
		if c.IsMemberFunction() {
			return append([]celast.Expr{c.Target()}, c.Args()...)
		}
		return c.Args()
	case celast.ListKind:
		return e.AsList().Elements()
	case celast.MapKind:
		var out []celast.Expr
		for _, en := range e.AsMap().Entries() {
			out = append(out, en.AsMapEntry().Key(), en.AsMapEntry().Value())
		}
		return out
	case celast.StructKind:
		var out []celast.Expr
		for _, f := range e.AsStruct().Fields() {
			out = append(out, f.AsStructField().Value())
		}
		return out
	case celast.ComprehensionKind:
		c := e.AsComprehension()
		return []celast.Expr{c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()}
	}
	return nil
}

// sizes is what the static cost estimate takes values of a record to be at most.
type sizes struct{}

const (
	estimatedText = 512
	estimatedList = 32
)

// EstimateSize implements checker.CostEstimator.
func (sizes) EstimateSize(n checker.AstNode) *checker.SizeEstimate {
	switch n.Type().Kind() {
	case types.ListKind, types.MapKind:
		return &checker.SizeEstimate{Max: estimatedList}
	case types.StringKind, types.BytesKind, types.StructKind:
		return &checker.SizeEstimate{Max: estimatedText}
	}
	return nil
}

// EstimateCallCost implements checker.CostEstimator for the functions of the language.
func (sizes) EstimateCallCost(function, overload string, _ *checker.AstNode, _ []checker.AstNode) *checker.CallEstimate {
	cost := func(c uint64) *checker.CallEstimate {
		return &checker.CallEstimate{CostEstimate: checker.CostEstimate{Min: 1, Max: c}, ResultSize: &checker.SizeEstimate{Max: estimatedText}}
	}
	list := func(c uint64) *checker.CallEstimate {
		return &checker.CallEstimate{CostEstimate: checker.CostEstimate{Min: 1, Max: c}, ResultSize: &checker.SizeEstimate{Max: estimatedList}}
	}
	switch function {
	case "targets":
		return list(estimatedList)
	case "targetOf", "user", "deviceOf", "known", "mask", "emailDomain", "countryCode", "glob", "ratio", "zscore":
		return cost(20)
	case "behaviors", "getFold":
		return list(200)
	case "risk", "jsonValue", "raw":
		return cost(500)
	case "jsonValues":
		return list(500)
	case "containsAny", "inCidr", "firstKnown", "extract":
		return cost(1000)
	case "similarity":
		return cost(20_000)
	case "lookup":
		return list(10)
	case "contains":
		if overload == "list_contains" {
			return cost(10)
		}
	case "distanceKm", "speedKmh", "mode", "sum":
		return cost(50)
	}
	return nil
}

// boundedLists takes the place of the libraries' own estimates where those know no bound for a list that was made by map or flatten.
func boundedLists() []checker.CostOption {
	overloads := []string{"list_distinct", "list_flatten", "list_flatten_int"}
	for _, t := range []*cel.Type{cel.IntType, cel.UintType, cel.DoubleType, cel.BoolType, cel.DurationType, cel.TimestampType, cel.StringType, cel.BytesType} {
		overloads = append(overloads, fmt.Sprintf("list_%s_sort", t.TypeName()), fmt.Sprintf("list_%s_sortByAssociatedKeys", t.TypeName()))
	}
	var out []checker.CostOption
	for _, o := range overloads {
		out = append(out, checker.OverloadCostEstimate(o, func(checker.CostEstimator, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
			return &checker.CallEstimate{
				CostEstimate: checker.CostEstimate{Min: 1, Max: 2 * estimatedList * estimatedList}, ResultSize: &checker.SizeEstimate{Max: estimatedList},
			}
		}))
	}
	return out
}

func estimate(env *cel.Env, a *cel.Ast) (cost uint64, err error) {
	defer func() {
		if p := recover(); p != nil {
			cost, err = math.MaxUint64, fmt.Errorf("estimate cost: %v", p)
		}
	}()
	est, err := env.EstimateCost(a, sizes{})
	return est.Max, err
}

func costText(c uint64) string {
	if c == math.MaxUint64 {
		return "unbounded"
	}
	return fmt.Sprint(c)
}

// identsOf lists the names of the form place.name that an expression uses, checked or only parsed.
func identsOf(e celast.Expr, place string) []string {
	var out []string
	var walk func(e celast.Expr)
	walk = func(e celast.Expr) {
		switch e.Kind() {
		case celast.IdentKind:
			if n, ok := strings.CutPrefix(e.AsIdent(), place+"."); ok {
				out = append(out, n)
			}
		case celast.SelectKind:
			if s := e.AsSelect(); s.Operand().Kind() == celast.IdentKind && s.Operand().AsIdent() == place {
				out = append(out, s.FieldName())
			}
		}
		for _, c := range children(e) {
			walk(c)
		}
	}
	walk(e)
	slices.Sort(out)
	return slices.Compact(out)
}
