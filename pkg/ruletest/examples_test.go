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
	set, problems := playable(t, "testdata/examples")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	kinds := playAll(t, set, "testdata/examples")
	for _, k := range rule.Kinds() {
		if kinds[k] == 0 {
			t.Errorf("no example of kind %s", k)
		}
	}
	if len(set.Rules) != 9 {
		t.Errorf("%d examples, the page has nine that read events", len(set.Rules))
	}
}

// TestExampleOverDetections plays the page's example over detections where the loader takes such rules.
func TestExampleOverDetections(t *testing.T) {
	set, problems := playable(t, "testdata/detections")
	for _, p := range problems {
		if !strings.Contains(p.Message, "detections") {
			t.Error(p)
		}
	}
	if len(problems) > 0 {
		t.Skip("rules over detections are refused: ", problems)
	}
	playAll(t, set, "testdata/detections")
}

func playable(t *testing.T, dir string) (*rule.Set, []rule.Problem) {
	t.Helper()
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "examples", FS: os.DirFS(dir)})
	if err != nil {
		t.Fatal(err)
	}
	return set, problems
}

func playAll(t *testing.T, set *rule.Set, dir string) map[rule.Kind]int {
	t.Helper()
	kinds := map[rule.Kind]int{}
	for _, c := range set.Rules {
		kinds[c.Detection.Kind]++
		hits, misses := 0, 0
		for _, test := range c.Tests {
			if test.Expect.None {
				misses++
			} else {
				hits++
			}
		}
		if hits < 1 || misses < 2 {
			t.Errorf("%s: %d hits and %d near misses", c.File, hits, misses)
		}
		t.Run(c.ID, func(t *testing.T) {
			for _, res := range ruletest.Run(set, &c.Rule, os.DirFS(dir), strings.TrimPrefix(path.Dir(c.File), "examples/")) {
				t.Run(res.Test, func(t *testing.T) {
					for _, f := range res.Failures {
						t.Errorf("%s: %s", res.Pos, f)
					}
				})
			}
		})
	}
	return kinds
}
