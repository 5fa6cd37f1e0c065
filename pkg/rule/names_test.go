package rule

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// exampleRules are a rule for each example that says whether it gives what it should.
func exampleRules(t *testing.T, examples []Example) *Set {
	t.Helper()
	files := map[string]string{"lists/example.csv": ExampleList, "lib/l.yaml": "lib: {sign_in: 'event.eventType == \"user.session.start\"'}\n"}
	for i, x := range examples {
		kind := `  kind: aggregate
  group_by: {user: event.actor.id}
  window: 2h
  baseline: 6h
  aggregates:
    failed: {count: event.outcome.result == "FAILURE"}
    addresses: {distinct: event.client.ipAddress}
    per_address: {count_by: event.client.ipAddress}
    last: {max: event.published}
    share: {value: 'ratio(agg.failed, agg.count)'}
  having: 'true'
`
		if strings.Contains(x.Expr, "steps.") {
			kind = `  kind: sequence
  group_by: {user: event.actor.id}
  window: 2h
  steps:
    - {id: first, where: lib.sign_in}
    - {id: then, where: lib.sign_in}
`
		}
		files[fmt.Sprintf("p/r%03d.yaml", i)] = fmt.Sprintf("id: r%03d\ntitle: X\nseverity: low\nparams: {least: 3}\nvars: {user: 'event.targetOf(\"User\")'}\ndetection:\n%salert:\n  severity_when:\n    - {when: %s, severity: high}\n",
			i, kind, quoted(fmt.Sprintf("(%s) == (%s)", x.Expr, x.Gives)))
	}
	set, ps := load(t, files)
	for _, p := range ps {
		t.Error(p)
	}
	return set
}

func exampleHit(t *testing.T, set *Set) *Hit {
	first, last := tracedEvent(t, set, ExampleFirst), tracedEvent(t, set, ExampleEvent)
	return &Hit{
		Event: last, Key: []string{"00uALICE"}, Count: 4, Steps: []*Event{first, last}, Evidence: func() []*Event { return []*Event{first, last} },
		// by name: addresses, failed, last, per_address, share
		Agg:    []Value{{Int: 2}, {Int: 3}, {Int: 1767607200000000}, {Counts: map[string]int64{"192.0.2.7": 3, "203.0.113.9": 1}}, {}},
		Recent: []any{nil, nil, nil, nil, nil, &Baseline{N: 1, Sum: 4, Max: 4, Mean: 4}},
		Base: []any{
			nil, nil, nil, &KeyBaseline{N: 3, Buckets: map[string]int64{"192.0.2.7": 2}, Totals: map[string]int64{"192.0.2.7": 5}}, nil,
			&Baseline{N: 3, Sum: 3.75, Mean: 1.25, Max: 2, Stddev: 0.5},
		},
	}
}

// TestExamples runs the example of every function and of every name.
func TestExamples(t *testing.T) {
	var all []Example
	for _, f := range Functions() {
		if f.Doc == "" || len(f.Examples) == 0 {
			t.Errorf("%s has no doc or no example", f.Signature)
		}
		for _, x := range f.Examples {
			if !regexp.MustCompile(`\b` + f.name + `\(`).MatchString(x.Expr) {
				t.Errorf("%s: the example %s does not call it", f.Signature, x.Expr)
			}
		}
		all = append(all, f.Examples...)
	}
	for _, name := range []string{"event", "evidence", "vars", "params", "lists", "lib", "key", "agg", "steps", "base", "recent"} {
		if !slices.ContainsFunc(Names(), func(n Name) bool { return regexp.MustCompile(`\b` + name + `\b`).MatchString(n.Name) }) {
			t.Errorf("%s is not among the names", name)
		}
	}
	for _, n := range Names() {
		if n.Doc == "" || len(n.Examples) == 0 {
			t.Errorf("%s has no doc or no example", n.Name)
		}
		all = append(all, n.Examples...)
	}
	set := exampleRules(t, all)
	for i, x := range all {
		c, ok := set.Rule(fmt.Sprintf("r%03d", i))
		if !ok {
			continue
		}
		if got, err := c.HitSeverity(exampleHit(t, set)); err != nil || got != High {
			t.Errorf("%s does not give %s: %v", x.Expr, x.Gives, err)
		}
	}
}

// TestFunctionsAreTotal calls every function with odd input of the right types: none fails.
func TestFunctionsAreTotal(t *testing.T) {
	texts := []string{`""`, `"\u0000"`, `"[["`, `"{\"a\":"`, `"*?*?["`, `"255.255.255.256"`, `"::/0"`, `"a@b@c"`, `event.raw("")`, `"` + strings.Repeat("ö", 600) + `"`}
	lists := []string{`[]`, `["", "/", "::1/200", "10.0.0.0/8"]`, `event.request.ipChain.map(i, i.ip)`}
	numbers := []string{`0.0`, `-1.0`, `0.0 / 0.0`, `1.0 / 0.0`}
	values := map[string][]string{
		"string": texts, "list<string>": lists, "double": numbers,
		"x": append([]string{"0", "-9223372036854775808"}, numbers...), "a": numbers, "b": numbers,
		"list<int>": {"[]", "[9223372036854775807, 1]", "[-9223372036854775808, -1]"}, "list<double>": {"[]", "[1.0 / 0.0, -1.0 / 0.0]"},
		"map<string,int>": {"{}", "agg.per_address"}, "Baseline": {"base.count", "recent.count"}, "Event": {"event", "evidence[0]"},
		"s": texts, "m": {`{}`, `{"a": "b", "A": "c"}`}, "lists.x": {"lists.example"}, "event": {"event", "evidence[0]"},
	}
	pick := func(kind string) []string {
		kind = strings.TrimSpace(kind)
		for _, k := range []string{kind, strings.Fields(kind + " ")[0]} {
			if vs := values[k]; len(vs) > 0 {
				return vs
			}
		}
		t.Errorf("no odd input of type %s", kind)
		return nil
	}
	signature := regexp.MustCompile(`^(?:([a-z.]+)\.)?([a-zA-Z]+)\((.*)\) -> `)
	var calls []Example
	for _, f := range Functions() {
		for sig := range strings.SplitSeq(f.Signature, ", sum(") {
			if !strings.Contains(sig[:5], "sum(") && strings.HasPrefix(sig, "list<double>") {
				sig = "sum(" + sig
			}
			m := signature.FindStringSubmatch(sig)
			if m == nil {
				t.Fatalf("signature %q", sig)
			}
			made := []string{f.name + "("}
			if m[1] != "" {
				made = nil
				for _, on := range pick(m[1]) {
					made = append(made, on+"."+f.name+"(")
				}
			}
			if m[3] != "" {
				for i, arg := range strings.Split(strings.ReplaceAll(m[3], "string,int", "string;int"), ",") {
					var next []string
					for _, call := range made {
						if i > 0 {
							call += ", "
						}
						vs := pick(strings.ReplaceAll(arg, ";", ","))
						for _, v := range vs[:min(5, len(vs))] {
							if f.name == "extract" {
								v += ` + event.raw("")` // a pattern that is written out is checked at load
							}
							next = append(next, call+v)
						}
					}
					made = next
				}
			}
			for _, call := range made {
				calls = append(calls, Example{"[" + call + ")].size()", "1"})
			}
		}
	}
	if len(calls) < 300 {
		t.Fatalf("only %d calls", len(calls))
	}
	for start := 0; start < len(calls); start += 400 {
		part := calls[start:min(start+400, len(calls))]
		set := exampleRules(t, part)
		for i, x := range part {
			c, ok := set.Rule(fmt.Sprintf("r%03d", i))
			if !ok {
				continue // told above
			}
			if got, err := c.HitSeverity(exampleHit(t, set)); err != nil || got != High {
				t.Errorf("%.200s fails: %v", x.Expr, err)
			}
		}
	}
}
