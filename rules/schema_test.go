package rules

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/oktawatch/oktawatch/pkg/rule"
)

func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile("../schemas/rule.v1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSchemaTakesRules holds the schema that editors use against every rule.
func TestSchemaTakesRules(t *testing.T) {
	s := schema(t)
	n := 0
	err := fs.WalkDir(FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(p) != ".yaml" || path.Base(p) == "pack.yaml" || path.Base(path.Dir(p)) == "lib" {
			return err
		}
		n++
		src, err := fs.ReadFile(FS, p)
		if err != nil {
			return err
		}
		doc, problems := rule.Document(p, src)
		if len(problems) > 0 {
			t.Error(problems)
		} else if err := s.Validate(doc); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		return nil
	})
	if err != nil || n != len(load(t).Rules) {
		t.Errorf("%d rules: %v", n, err)
	}
}

// TestModeline follows the path by which an editor finds the schema from a rule of the pack.
func TestModeline(t *testing.T) {
	for _, c := range load(t).Rules {
		first, _, _ := strings.Cut(string(c.Source()), "\n")
		at, ok := strings.CutPrefix(first, "# yaml-language-server: $schema=")
		if !ok {
			t.Errorf("%s: the first line names no schema", c.File)
			continue
		}
		if _, err := os.Stat(path.Join("..", path.Dir(c.File), at)); err != nil {
			t.Errorf("%s: %v", c.File, err)
		}
	}
}

// TestSchemaAgrees holds the schema against the loader: where one refuses, so does the other.
func TestSchemaAgrees(t *testing.T) {
	s := schema(t)
	head := "id: x\ntitle: X\nseverity: low\ndetection: {kind: match, where: 'true'}\n"
	for name, tc := range map[string]struct {
		text string
		good bool
	}{
		"least":               {head, true},
		"no id":               {"title: X\nseverity: low\ndetection: {kind: match}\n", false},
		"severity":            {"id: x\ntitle: X\nseverity: bad\ndetection: {kind: match}\n", false},
		"unknown key":         {head + "enabled: true\n", false},
		"unknown kind":        {"id: x\ntitle: X\nseverity: low\ndetection: {kind: threshold}\n", false},
		"other kind's key":    {"id: x\ntitle: X\nseverity: low\ndetection: {kind: match, window: 5m}\n", false},
		"mitre":               {head + "mitre: [T1110.001, TA0006/T1110]\n", true},
		"mitre name":          {head + "mitre: [Brute Force]\n", false},
		"params":              {head + "params: {a: 1, b: x, c: [1, 2.5], d: {k: v}, e: {k: 3}, f: true, g: []}\n", true},
		"param of null":       {head + "params: {a: null}\n", false},
		"param name":          {head + "params: {A: 1}\n", false},
		"mixed list":          {head + "params: {a: [1, x]}\n", false},
		"exception":           {head + "exceptions: [{name: a, when: 'true', reason: r, expires: \"2027-06-30\"}]\n", true},
		"exception, reason":   {head + "exceptions: [{name: a, when: 'true'}]\n", false},
		"period":              {head + "alert: {dedup: {period: 1h30m, key: [event.actor.id]}}\n", true},
		"period without unit": {head + "alert: {dedup: {period: \"90\"}}\n", false},
		"test":                {head + "tests: [{name: n, events: [{fixture: a, at: -1d, each: {a: 'x${i}'}}], expect: {detections: 1, context.a: 1}}]\n", true},
		"test of two kinds":   {head + "tests: [{name: n, events: [{fixture: a, file: b#1}], expect: none}]\n", false},
		"test of a pair":      {head + "tests: [{name: n, events: [{fixture: a, detection: {ruleId: x, severity: 3, mode: signal, techniques: [T1110], firstTime: \"2026-01-05T10:00:00Z\"}}], expect: none}]\n", true},
		"pair's wrong field":  {head + "tests: [{name: n, events: [{fixture: a, detection: {rule: x}}], expect: none}]\n", false},
		"pair's severity":     {head + "tests: [{name: n, events: [{fixture: a, detection: {ruleId: x, severity: high}}], expect: none}]\n", false},
		"expect some":         {head + "tests: [{name: n, events: [{fixture: a}], expect: some}]\n", false},
		"expect nothing":      {head + "tests: [{name: n, events: [{fixture: a}], expect: {}}]\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			doc, problems := rule.Document("x.yaml", []byte(tc.text))
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			if err := s.Validate(doc); (err == nil) != tc.good {
				t.Errorf("the schema says %v", err)
			}
			if _, problems := rule.Parse("x.yaml", []byte(tc.text)); (len(problems) == 0) != tc.good {
				t.Errorf("the loader says %v", problems)
			}
		})
	}
}

// TestSchemaNamesKinds finds a kind that is known to the loader only.
func TestSchemaNamesKinds(t *testing.T) {
	def := schema(t).Properties["detection"].Ref.Properties["kind"].Enum.Values
	for _, k := range rule.Kinds() {
		if !slices.Contains(def, any(string(k))) {
			t.Errorf("schemas/rule.v1.schema.json does not know kind %s", k)
		}
	}
	if len(def) != len(rule.Kinds()) {
		t.Errorf("kinds of the schema: %v", def)
	}
}

// TestSchemaTakesExamples holds the schema against the examples of the language's page, which have every kind.
func TestSchemaTakesExamples(t *testing.T) {
	sch := schema(t)
	dir := os.DirFS("../pkg/ruletest/testdata/examples/pack")
	names, err := fs.Glob(dir, "*.yaml")
	if err != nil || len(names) < 9 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		src, err := fs.ReadFile(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		doc, problems := rule.Document(name, src)
		if len(problems) > 0 {
			t.Error(problems)
		} else if err := sch.Validate(doc); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, detection := range map[string]string{
		"no window":   "{kind: aggregate, having: 'true'}",
		"two in one":  "{kind: aggregate, window: 5m, having: 'true', aggregates: {a: {count: 'true', distinct: x}}}",
		"count taken": "{kind: aggregate, window: 5m, having: 'true', aggregates: {count: {count: 'true'}}}",
		"no steps":    "{kind: sequence, window: 5m}",
		"no memory":   "{kind: first_seen}",
		"other key":   "{kind: first_seen, memory: 5m, window: 5m}",
		"not counted": "{kind: sequence, window: 5m, steps: [{id: a, where: 'true'}, {id: b, where: 'true', not: true, count: 2}]}",
	} {
		text := "id: x\ntitle: X\nseverity: low\ndetection: " + detection + "\n"
		doc, problems := rule.Document("x.yaml", []byte(text))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if sch.Validate(doc) == nil {
			t.Errorf("%s: the schema takes it", name)
		}
		if _, problems := rule.Parse("x.yaml", []byte(text)); len(problems) == 0 {
			t.Errorf("%s: the loader takes it", name)
		}
	}
}
