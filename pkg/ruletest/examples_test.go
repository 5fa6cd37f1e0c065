package ruletest_test

import (
	"os"
	"path"
	"strings"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
)

// TestExamples plays the examples of the rule language's page, as whole rules.
func TestExamples(t *testing.T) {
	fsys := os.DirFS("testdata/examples")
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "examples", FS: fsys})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	kinds := map[rule.Kind]int{}
	for _, c := range set.Rules {
		kinds[c.Detection.Kind]++
		t.Run(c.ID, func(t *testing.T) {
			for _, res := range ruletest.Run(set, &c.Rule, fsys, strings.TrimPrefix(path.Dir(c.File), "examples/")) {
				t.Run(res.Test, func(t *testing.T) {
					for _, f := range res.Failures {
						t.Errorf("%s: %s", res.Pos, f)
					}
				})
			}
		})
	}
	for _, k := range rule.Kinds() {
		if kinds[k] == 0 {
			t.Errorf("no example of kind %s", k)
		}
	}
}
