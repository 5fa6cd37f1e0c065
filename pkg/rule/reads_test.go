package rule

import (
	"fmt"
	"strings"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// one compiles a rule with a head of its own before the given lines.
func one(t *testing.T, rest string, more ...string) *Compiled {
	t.Helper()
	files := map[string]string{"p/x.yaml": "id: x\ntitle: X\nseverity: low\n" + rest}
	for i := 0; i < len(more); i += 2 {
		files[more[i]] = more[i+1]
	}
	set, ps := load(t, files)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	return set.Rules[0]
}

func quoted(expr string) string { return "'" + strings.ReplaceAll(expr, "'", "''") + "'" }

func TestEventTypes(t *testing.T) {
	for expr, want := range map[string]string{
		`event.eventType == "a"`: "a",
		`"a" == event.eventType`: "a",
		`event.eventType in ["b", "a"] && event.outcome.result == "x"`:                  "b a",
		`event.eventType == "a" || event.eventType == "b" && event.actor.id == "x"`:     "a b",
		`event.eventType.startsWith("user.")`:                                           "user.*",
		`event.eventType.glob("user.*.start") || event.eventType.glob("b")`:             "b user.*.start",
		`event.eventType.startsWith("user.") && event.eventType in ["user.a", "app.a"]`: "user.a",
		`event.eventType in params.types && params.on`:                                  "p1 p2",
		`event.eventType == params.one`:                                                 "p1",
		`vars.start && event.actor.id == "x"`:                                           "user.session.start",
		`lib.start || vars.start`:                                                       "lib.start user.session.start",
		`!(event.eventType != "a")`:                                                     "a",
		`!(event.eventType != "a" || event.actor.id == "x")`:                            "a",
		`false`:                  "",
		`params.off && true`:     "",
		`event.eventType != "a"`: "every",
		`event.eventType == "a" || event.displayMessage == "x"`:                     "every",
		`event.eventType.contains("a")`:                                             "every",
		`event.eventType == event.actor.id`:                                         "every",
		`event.eventType == "a" ? true : false`:                                     "every",
		`event.actor.id == "x"`:                                                     "every",
		`event.eventType.startsWith("a*")`:                                          "every",
		`event.eventType == "a" && !event.outcome.reason.startsWith("User reset")`:  "a",
		`event.eventType == "a" && event.target.exists(t, t.id == event.eventType)`: "a",
		`event.target.exists(event, event.id == "x")`:                               "every",
	} {
		t.Run(expr, func(t *testing.T) {
			c := one(t, "params: {types: [p1, p2], one: p1, on: true, off: false}\nvars: {start: 'event.eventType == \"user.session.start\"'}\ndetection: {kind: match, where: "+quoted(expr)+"}\n",
				"lib/l.yaml", "lib: {start: 'event.eventType == \"lib.start\"'}\n")
			got := "every"
			if c.Bound() {
				got = strings.Join(append(c.Types.Exact, c.Types.Globs...), " ")
			}
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// TestEventTypesOfKinds derives the event types of rules with memory: of all their filters, and of those that only
// remember or must not happen too.
func TestEventTypesOfKinds(t *testing.T) {
	for name, tc := range map[string]struct{ detection, want string }{
		"aggregate": {
			"kind: aggregate\n  where: vars.start || event.eventType.glob(\"app.*\")\n  window: 5m\n  aggregates: {b: {count: event.eventType == \"b\"}}\n  having: agg.b > 1", "user.session.start app.*",
		},
		"aggregate, where in params": {"kind: aggregate\n  where: event.eventType in params.types && event.eventType.startsWith(params.start)\n  window: 5m\n  having: agg.count > 1", "p1 p2"},
		"aggregate without where":    {"kind: aggregate\n  window: 5m\n  aggregates: {b: {count: event.eventType == \"b\"}}\n  having: agg.b > 1", "every"},
		"sequence": {
			"kind: sequence\n  window: 5m\n  steps:\n    - {id: one, where: event.eventType == \"a\"}\n    - {id: two, where: 'lib.start && event.actor.id == steps.one.actor.id'}\n    - {id: three, not: true, where: event.eventType.startsWith(\"c.\")}", "a lib.start c.*",
		},
		"sequence with where": {
			"kind: sequence\n  where: event.eventType in [\"a\", \"b\"]\n  window: 5m\n  steps:\n    - {id: one, where: event.outcome.result == \"DENY\"}\n    - {id: two, where: event.outcome.result == \"ALLOW\"}", "a b",
		},
		"sequence with a step of any type": {
			"kind: sequence\n  window: 5m\n  steps:\n    - {id: one, where: event.eventType == \"a\"}\n    - {id: two, where: event.outcome.result == \"ALLOW\"}", "every",
		},
		"first_seen": {
			"kind: first_seen\n  where: event.eventType == \"a\"\n  memory: 1d", "a",
		},
		"first_seen that learns": {
			"kind: first_seen\n  where: event.eventType == \"a\"\n  learn_from: event.eventType in [\"a\", \"b\"] || event.eventType.glob(\"c.?\")\n  memory: 1d", "a b c.?",
		},
		"first_seen that learns from every event": {
			"kind: first_seen\n  where: event.eventType == \"a\"\n  learn_from: event.actor.id != \"\"\n  memory: 1d", "every",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := one(t, "params: {types: [p1, p2, q], start: p}\nvars: {start: 'event.eventType == \"user.session.start\"'}\ndetection:\n  "+tc.detection+"\n",
				"lib/l.yaml", "lib: {start: 'event.eventType == \"lib.start\"'}\n")
			got := "every"
			if c.Bound() {
				got = strings.Join(append(c.Types.Exact, c.Types.Globs...), " ")
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestCopies(t *testing.T) {
	for expr, want := range map[string]Copies{
		`event.actor.id == "x"`:                                   JudgesBoth,
		`event.request.ipChain.exists(i, i.ip == "x")`:            JudgesBoth,
		`event.request.ipChain.size() > 1`:                        JudgesBoth,
		`event.target.exists(t, t.changeDetails.to.a == "x")`:     JudgesBoth,
		`event.debugContext.debugData.risk.contains("HIGH")`:      JudgesBoth,
		`event.raw("outcome.later") == "x"`:                       JudgesBoth,
		`event.user(event.actor.id).department == "x"`:            JudgesBoth,
		`event.client.device == "Computer"`:                       JudgesBoth,
		`vars.unused_is_not_read`:                                 JudgesBoth,
		`event.request.ipChain.exists(i, i.ipDetails.isp == "x")`: JudgesComplete,
		`event.device.managed`:                                    JudgesComplete,
		`has(event.device)`:                                       JudgesComplete,
		`event.securityContext.isProxy`:                           JudgesComplete,
		`event.behaviors()["New IP"] == "POSITIVE"`:               JudgesComplete,
		`event.risk().level == "HIGH"`:                            JudgesComplete,
		`vars.dev.managed`:                                        JudgesComplete,
		`lib.proxy`:                                               JudgesComplete,
		`cel.bind(e, event, e.device.id == "x")`:                  JudgesComplete,
		`[event].exists(e, e.securityContext.asOrg == "x")`:       JudgesComplete,
		`event.raw("device.later") == "x"`:                        JudgesComplete,
		`event.raw("request.ipChain.0.ip") == "x"`:                JudgesComplete,
		`event.raw("brandNew") == "x"`:                            JudgesComplete,
		`event.raw(event.actor.id) == "x"`:                        JudgesComplete,
		`event == event`:                                          JudgesComplete,
		`dyn(event).device.id == "x"`:                             JudgesComplete,
		`[event, 1][0] == 1`:                                      JudgesComplete,
		`{"a": event, "b": 1}["a"].device.id == "x"`:              JudgesComplete,
	} {
		t.Run(expr, func(t *testing.T) {
			c := one(t, "vars: {dev: event.device, unused_is_not_read: 'event.actor.id == \"x\"', never: event.device.managed}\ndetection: {kind: match, where: "+quoted(expr)+"}\n",
				"lib/l.yaml", "lib: {proxy: event.securityContext.isProxy}\n")
			if c.Copies != want {
				t.Errorf("judges %s, want %s; reads %v", c.Copies, want, c.Reads)
			}
		})
	}
	for place, rest := range map[string]string{
		"title":         "alert: {title: 'from ${event.device.name}'}\n",
		"context":       "alert: {context: {d: event.device.name}}\n",
		"whole context": "alert: {context: {d: event}}\n",
		"dedup":         "alert: {dedup: {key: [event.device.id]}}\n",
		"severity_when": "alert: {severity_when: [{when: event.device.managed, severity: high}]}\n",
		"exceptions":    "exceptions: [{name: a, when: event.device.managed, reason: r}]\n",
	} {
		t.Run(place, func(t *testing.T) {
			if c := one(t, rest+"detection: {kind: match}\n"); c.Copies != JudgesComplete {
				t.Errorf("judges %s", c.Copies)
			}
		})
	}
}

// TestConditionAgreesWithCEL holds what is judged without CEL against CEL.
func TestConditionAgreesWithCEL(t *testing.T) {
	words := []string{"", "a", "ab", "user.session.start", "User reset X", "None", "\u00c9A"}
	var exprs []string
	for _, path := range []string{
		"event.eventType", "event.displayMessage", "event.outcome.result", "event.outcome.reason", "event.actor.id", "event.client.geographicalContext.country", "event.org",
		"event.debugContext.debugData.key", `event.debugContext.debugData["a b"]`, "event.transaction.detail.key.lowerAscii()", "event.displayMessage.lowerAscii().lowerAscii()",
	} {
		for _, how := range []string{`%s.known()`, `!%s.known()`, `%s == "a"`, `%s != "a"`, `%s in ["a", "ab"]`, `!(%s in params.list)`, `%s.startsWith("a")`, `!%s.startsWith("User reset")`, `%s.endsWith("b")`, `%s.contains("a")`, `%s.glob("a*")`, `!(%s.glob("?") || false)`, `%s == params.text`} {
			exprs = append(exprs, fmt.Sprintf(how, path))
		}
	}
	for _, path := range []string{"event.securityContext.isProxy", "event.backfill", "event.device.managed"} {
		exprs = append(exprs, path, "!"+path, path+" || event.actor.id.known()")
	}
	for i, e := range exprs[:len(exprs)-1] {
		exprs = append(exprs, fmt.Sprintf("(%s) && !(%s)", e, exprs[i+1]), fmt.Sprintf("!(%s) || (%s) && event.target.size() == 0", e, exprs[i+1]))
	}
	files := map[string]string{}
	for i, e := range exprs {
		files[fmt.Sprintf("p/r%d.yaml", i)] = fmt.Sprintf("id: r%d\ntitle: X\nseverity: low\nparams: {list: [a, ab], text: ab}\ndetection: {kind: match, where: %s}\n", i, quoted(e))
	}
	set, ps := load(t, files)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	certain := 0
	ev := set.NewEvent()
	for i, w := range words {
		log := &record.SystemLog{EventType: w, DisplayMessage: words[(i+1)%len(words)]}
		if i > 0 {
			log.Outcome = &record.Outcome{Result: w, Reason: words[(i+2)%len(words)]}
			log.Actor = &record.Actor{ID: w}
			log.DebugContext = &record.DebugContext{DebugData: map[string]string{"key": w, "a b": words[(i+1)%len(words)]}}
			log.Transaction = &record.Transaction{Detail: map[string]string{"key": w}}
			log.SecurityContext = &record.SecurityContext{IsProxy: new(i%2 == 0)}
			log.Derived = record.Derived{Org: w, Backfill: i%2 == 1}
			log.Client = &record.Client{GeographicalContext: &record.GeographicalContext{Country: w}}
		}
		ev.Reset(viewOf(t, log))
		for _, c := range set.Rules {
			got := c.cond.judge(ev.view)
			if got == maybe {
				continue
			}
			certain++
			want, err := c.evalBool(ev, c.where)
			if err != nil || (got == yes) != want {
				t.Errorf("%s over %q: %v without CEL, %v with it (%v)", c.where.text, w, got == yes, want, err)
			}
			if want && !c.Types.Has(w) {
				t.Errorf("%s is true for %q, which is not among its event types %+v", c.where.text, w, c.Types)
			}
		}
	}
	if certain < 3000 {
		t.Errorf("only %d were judged without CEL", certain)
	}
}
