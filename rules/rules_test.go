package rules

import (
	"flag"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
)

func load(t *testing.T) *rule.Set {
	t.Helper()
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: FS})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
	return set
}

// TestRules plays the tests of every rule.
func TestRules(t *testing.T) {
	set := load(t)
	for _, c := range set.Rules {
		t.Run(c.ID, func(t *testing.T) {
			dir := strings.TrimPrefix(path.Dir(c.File), "rules/")
			for _, res := range ruletest.Run(set, &c.Rule, FS, dir) {
				t.Run(res.Test, func(t *testing.T) {
					for _, f := range res.Failures {
						t.Errorf("%s: %s", res.Pos, f)
					}
				})
			}
		})
	}
}

// TestAuthors asks of our own rules what the language only asks of their authors.
func TestAuthors(t *testing.T) {
	for _, c := range load(t).Rules {
		hits, misses := 0, 0
		for _, test := range c.Tests {
			if test.Expect.None {
				misses++
			} else {
				hits++
			}
		}
		if hits < 1 || misses < 2 {
			t.Errorf("%s: %d hits and %d near misses: write one hit and two near misses", c.File, hits, misses)
		}
		if c.Description == "" || len(c.FalsePositives) == 0 {
			t.Errorf("%s: description and false_positives are needed", c.File)
		}
		if c.Mode == rule.ModeAlert && c.Rule.Severity >= rule.Medium && c.Runbook == "" {
			t.Errorf("%s: a runbook is needed", c.File)
		}
		if !strings.HasPrefix(string(c.Source()), "# yaml-language-server: $schema=../../../schemas/rule.v1.schema.json\n") {
			t.Errorf("%s: the first line names the schema for editors", c.File)
		}
	}
}

var update = flag.Bool("update", false, "write testdata/judges.txt anew")

// TestJudges holds what is worked out of each rule against a file that people read: how it is found, which copies of an event it judges,
// and what it reads. A change there is a change of what wakes a rule: look at it, then write the file by -update.
func TestJudges(t *testing.T) {
	set := load(t)
	kinds := map[rule.Kind]bool{}
	var b strings.Builder
	b.WriteString("# rule | copies of an event that it judges | event types that wake it | sections that it reads\n")
	for _, c := range set.Rules {
		kinds[c.Detection.Kind] = true
		types := "every"
		if c.Bound() {
			types = strings.Join(append(slices.Clone(c.Types.Exact), c.Types.Globs...), " ")
		}
		fmt.Fprintf(&b, "%s | %s | %s | %s\n", c.ID, c.Copies, types, strings.Join(c.Reads, " "))
	}
	if len(kinds) != len(rule.Kinds()) {
		t.Errorf("the pack has the kinds %v: one of each", kinds)
	}
	const file = "testdata/judges.txt"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil { //nolint:gosec // part of the tree
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		was, is := strings.Split(string(want), "\n"), strings.Split(got, "\n")
		for _, line := range is {
			if !slices.Contains(was, line) {
				t.Errorf("is not in %s: %s", file, line)
			}
		}
		for _, line := range was {
			if !slices.Contains(is, line) {
				t.Errorf("is in %s, and is no more: %s", file, line)
			}
		}
	}
}

// TestReadme plays the rule that the README shows.
func TestReadme(t *testing.T) {
	src, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(src, -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks", len(blocks))
	}
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	own := fstest.MapFS{
		"mine/unmanaged-device.yaml": {Data: blocks[0][1]},
		"overlays/mine.yaml":         {Data: blocks[1][1]},
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: FS}, rule.Source{Name: "mine", FS: own, Site: true})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	c, ok := set.Rule("unmanaged-device")
	if !ok || c.Copies != rule.JudgesComplete || len(c.Tests) != 3 {
		t.Fatalf("%+v", c)
	}
	for _, res := range ruletest.Run(set, &c.Rule, own, "mine") {
		if len(res.Failures) > 0 {
			t.Errorf("%s: %v", res.Test, res.Failures)
		}
	}
}
