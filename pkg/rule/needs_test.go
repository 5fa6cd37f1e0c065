package rule_test

import (
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/oktawatch/oktawatch/pkg/rule"
)

func TestNeeds(t *testing.T) {
	const head = "id: r\ntitle: R\nseverity: low\ndetection:\n"
	for name, tc := range map[string]struct{ detection, want string }{
		"match":   {"  kind: match\n  where: event.eventType in [\"a.b\", \"a.c\"]\n", "[a.b a.c]"},
		"unbound": {"  kind: match\n  where: event.actor.id == \"x\"\n", "all"},
		"sequence": {"  kind: sequence\n  window: 1h\n  steps:\n    - {id: one, where: event.eventType == \"a.b\"}\n" +
			"    - {id: never, not: true, where: event.eventType == \"a.c\"}\n    - {id: two, where: event.eventType == \"a.d\"}\n", "[a.b] [a.d]"},
		"sequence with a filter": {"  kind: sequence\n  window: 1h\n  where: event.eventType.startsWith(\"a.\")\n  steps:\n" +
			"    - {id: one, where: event.outcome.result == \"FAILURE\"}\n    - {id: two, where: event.eventType == \"a.d\"}\n", "[a.*] [a.d]"},
		"first_seen": {"  kind: first_seen\n  memory: 7d\n  where: event.eventType == \"a.b\"\n  learn_from: event.eventType == \"a.c\"\n", "[a.b]"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := rule.NewLoader()
			if err != nil {
				t.Fatal(err)
			}
			set, problems, err := l.Load(rule.Source{Name: "rules", FS: fstest.MapFS{"p/r.yaml": {Data: []byte(head + tc.detection)}}})
			if err != nil || len(problems) > 0 {
				t.Fatal(problems, err)
			}
			got := ""
			for _, n := range set.Rules[0].Needs() {
				if got != "" {
					got += " "
				}
				if n.All {
					got += "all"
					continue
				}
				got += fmt.Sprint(append(n.Exact, n.Globs...))
			}
			if got != tc.want {
				t.Errorf("needs %s, want %s", got, tc.want)
			}
		})
	}
}
