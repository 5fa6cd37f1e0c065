package oktawatch

import (
	"slices"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
	"github.com/oktawatch/oktawatch/rules"
)

// TestScenariosTripThePack plays each story of the simulated org and has the shipped rules judge it: they find what the story says that
// they find, as far as the pack has the rules, and every kind of rule finds something.
func TestScenariosTripThePack(t *testing.T) {
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: rules.FS})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	kinds := map[rule.Kind][]string{}
	for _, sc := range oktasim.Scenarios() {
		t.Run(sc.Name, func(t *testing.T) {
			now := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
			org, err := oktasim.New(oktasim.Config{Listen: "none", Now: func() time.Time { now = now.Add(time.Second); return now }})
			if err != nil {
				t.Fatal(err)
			}
			seqs, err := org.Play(t.Context(), sc.Name, 0)
			if err != nil {
				t.Fatal(err)
			}
			m, st := engine.NewMatcher(set), engine.NewState(set)
			var found []string
			add := func(d *record.Detection) {
				if !slices.Contains(found, d.RuleID) {
					found = append(found, d.RuleID)
				}
			}
			for _, seq := range seqs {
				raw, ok := org.Truth().Raw(seq)
				if !ok {
					t.Fatal("not in the truth")
				}
				log, _, err := systemlog.FromJSON(raw, nil)
				if err != nil {
					t.Fatal(err)
				}
				log.Derived.Org, log.Derived.Lane, log.Derived.Copy, log.Derived.Time, log.Derived.Received = org.ID(), "live", 1, *log.Published, *log.Published
				var v record.SystemLogView
				if err := v.Load(log); err != nil {
					t.Fatal(err)
				}
				for _, d := range m.Match(&v, engine.Place{}) {
					add(d)
				}
				for _, mt := range m.Take(&v, engine.Place{}) {
					if err := st.Apply(mt); err != nil {
						t.Fatal(err)
					}
				}
				for _, d := range st.Flush().Detections {
					add(d)
				}
				st.Commit()
			}
			want := slices.Clone(sc.Rules)
			for _, id := range sc.Later {
				if _, ok := set.Rule(id); ok {
					want = append(want, id)
				}
			}
			for _, id := range want { // that others find it too is as it should be
				if !slices.Contains(found, id) {
					t.Errorf("not found by %s, as the story says, but by %v", id, found)
				}
			}
			for _, id := range found {
				c, _ := set.Rule(id)
				if c.Mode == rule.ModeAlert {
					kinds[c.Detection.Kind] = append(kinds[c.Detection.Kind], sc.Name)
				}
			}
		})
	}
	for _, k := range rule.Kinds() {
		if len(kinds[k]) == 0 {
			t.Errorf("no story raises an alert by a rule of kind %s", k)
		}
	}
}
