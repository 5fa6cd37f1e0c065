package rule

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/google/cel-go/common/types"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// FuzzRuleFile feeds odd files to the loader, as a rule, a lib, an overlay and a list. None may panic; a rule that
// loads must judge.
func FuzzRuleFile(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("- {rules: ['*'], params: {n: 1}, exceptions: [{name: a, when: 'true', reason: r}]}\n"))
	f.Add([]byte("lib: {a: event.actor.id.known(), b: lib.a}\n"))
	f.Add([]byte("values: [a, 10.0.0.0/8]\n"))
	f.Add([]byte("value,owner\n10.0.0.0/8,x\n"))
	own, err := filepath.Glob("../../rules/okta/*/*.yaml")
	if err != nil || len(own) == 0 {
		f.Fatal("no rules to begin with: ", err)
	}
	for _, p := range own {
		src, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	loader, err := NewLoader()
	if err != nil {
		f.Fatal(err)
	}
	var view record.SystemLogView
	if err := view.Load(exampleLog()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		r, problems := Parse("p/x.yaml", src)
		if (r == nil) == (len(problems) == 0) {
			t.Fatalf("rule %v, problems %v", r, problems)
		}
		name := "p/x.yaml"
		for _, p := range problems { // the file's name is all that is wrong with it: then call it as it wants
			if p.Check == checkName {
				if d, root := parseYAML("x", src); root != nil {
					if fs, ok := d.fields(root, "a rule", ruleKeys...); ok && fs["id"].value != nil {
						if id, ok := d.text(fs["id"].value, "id"); ok && idPattern.MatchString(id) {
							name = "p/" + id + ".yaml"
						}
					}
				}
			}
		}
		set, _, err := loader.Load(Source{Name: "f", FS: fstest.MapFS{
			name: {Data: src}, "lib/l.yaml": {Data: src}, "overlays/o.yaml": {Data: src},
			"lists/admins.txt": {Data: src}, "lists/a.yaml": {Data: src}, "lists/b.csv": {Data: src}, "p/pack.yaml": {Data: src},
		}})
		if err != nil {
			t.Fatal(err)
		}
		judge(t, set, &view)
	})
}

func judge(t *testing.T, set *Set, view *record.SystemLogView) {
	t.Helper()
	ev := set.NewEvent()
	ev.Reset(view)
	for _, c := range set.Rules {
		_, _, err := c.Judge(ev)
		_, err1 := c.SeverityOf(ev)
		_, err2 := c.TitleOf(ev)
		_, err3 := c.ContextOf(ev)
		_, err4 := c.DedupKeyOf(ev)
		for _, err := range []error{err, err1, err2, err3, err4} {
			var e *EvalError
			if err != nil && !errors.As(err, &e) {
				t.Fatal(err)
			}
		}
	}
}

// FuzzExpression feeds odd CEL to the compiler and evaluates what compiles.
func FuzzExpression(f *testing.F) {
	for _, fn := range Functions() {
		for _, x := range fn.Examples {
			f.Add(x.Expr)
		}
	}
	for _, s := range []string{
		`event.eventType in ["a", "b"] && event.target.exists(t, t.type == "User" && t.id != event.actor.id)`,
		`event.debugContext.debugData.transformMap(k, v, v != "", v.lowerAscii())`, `cel.bind(a, event.client, a.ipAddress + a.zone)`,
		`[1, 2.0, "x"].map(x, x)`, `math.greatest([1, 2]) + event.securityContext.asNumber`, `"%s %d".format([event.eventType, 1])`,
		`event == event`, `"((((((((((" + "a".matches("(a+)+$")`, `{"a": [event]}.a[0].device.id`, `lists.range(3).map(x, x * 2)`, `[[1]].flatten()`,
	} {
		f.Add(s)
	}
	l, err := newLanguage()
	if err != nil {
		f.Fatal(err)
	}
	sc, err := l.scope(nil, map[string]*List{"example": newList("example", []listEntry{{value: "10.0.0.0/8"}})})
	if err != nil {
		f.Fatal(err)
	}
	var view record.SystemLogView
	if err := view.Load(exampleLog()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := &document{file: "x.yaml", src: []byte(text), lines: []int{0}}
		p := l.compile(sc.env, Expr{text, place{d, 0}}, "x")
		if p == nil {
			if len(d.problems) == 0 {
				t.Fatal("refused without a word")
			}
			return
		}
		set := &Set{scope: sc, Lists: sc.lists}
		ev := set.NewEvent()
		ev.Reset(&view)
		c := &Compiled{names: map[string]binding{"lists.example": {list: "example"}}}
		rd := newReads(l, func(string) *program { return nil })
		rd.program(p)
		rd.result(p)
		cs := &conditions{types: l.types, named: func(string) *program { return nil }}
		got := cs.of(p.ast, p.ast.Expr(), false).judge(&view)
		v, err := c.eval(ev, p)
		if err != nil {
			return
		}
		if got != maybe && p.typ == types.BoolType && (got == yes) != (v.Value() == true) {
			t.Fatalf("%s: %v without CEL, %v with it", text, got == yes, v)
		}
		_ = titleText(v)
		_ = jsonText(v)
	})
}
