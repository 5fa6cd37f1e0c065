package detect

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
)

var hasty = intervals{
	beat: 100 * time.Millisecond, alive: 3 * time.Second, differ: 500 * time.Millisecond,
	adopt: 4 * time.Second, look: 50 * time.Millisecond,
}

// detecting runs a detect that reports hastily on a site's rules alone.
func (r *stateRig) detecting(instance, dir string, change func(*Service)) (s *Service, stop func()) {
	r.t.Helper()
	builtin := false
	s, err := New(Config{RulesDir: dir, Rules: Rules{Builtin: &builtin}, Reload: 20 * time.Millisecond},
		Deps{Log: bustest.Logger(), Bus: r.b.Bus(r.t, instance), Pack: rules.FS, Metrics: metrics.NewSet()})
	if err != nil {
		r.t.Fatal(err)
	}
	s.health.every = hasty
	if change != nil {
		change(s)
	}
	return s, r.run(s)
}

// health are the findings about rules, as finding, rule and what else the id names.
func (r *stateRig) health() map[string]int {
	r.t.Helper()
	out := map[string]int{}
	for _, d := range r.found() {
		if d.Kind == finding.RuleHealth {
			out[strings.TrimSpace(d.RuleID+" "+strings.Trim(d.Context["rule"], `"`)+" "+d.Org)]++
		}
	}
	return out
}

// statuses are the records of the status topic that stand.
func (r *stateRig) statuses() map[string]*record.RuleStatus {
	r.t.Helper()
	out := map[string]*record.RuleStatus{}
	for _, m := range r.b.Read(r.t, topics.RuleStatus) {
		delete(out, string(m.Key))
		if m.Value == nil {
			continue
		}
		st := new(record.RuleStatus)
		if err := r.b.Serde().Decode(r.t.Context(), m.Value, st); err != nil {
			r.t.Fatal(err)
		}
		out[string(m.Key)] = st
	}
	return out
}

func rulesOf(t *testing.T, dir, text string) {
	t.Helper()
	for doc := range strings.SplitSeq(text, "---\n") {
		id, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(doc), "id: "), "\n")
		write(t, filepath.Join(dir, "site", id+".yaml"), strings.TrimSpace(doc)+"\n")
	}
}

const illRules = `id: fails
title: Divides by zero
severity: low
detection:
  kind: match
  where: event.eventType == "user.session.start" && 10 / event.outcome.reason.size() > 20
---
id: fails-later
title: Divides by zero, over events held
severity: low
mode: shadow
detection:
  kind: aggregate
  where: event.eventType == "user.session.start"
  group_by: {org: '"all"'}
  window: 1h
  having: 10 / (agg.count - agg.count) > 20
---
id: misspelt
title: A type that is not there
severity: low
detection:
  kind: match
  where: event.eventType in ["user.sesion.start", "user.session.start"] && event.actor.id == "nobody at all"
---
id: pattern
title: A pattern that no type is like
severity: low
detection:
  kind: match
  where: event.eventType.startsWith("nosuch.")
---
id: unseen
title: A type that does not come
severity: low
detection:
  kind: match
  where: event.eventType == "user.lifecycle.suspend"
---
id: hidden
title: Its exception is too wide
severity: low
detection:
  kind: match
  where: event.eventType == "user.session.end"
exceptions:
  - {name: everybody, when: event.actor.id.known(), reason: a mistake}
---
id: lapsed
title: Its exception is over
severity: low
detection:
  kind: match
  where: event.eventType == "user.session.start"
exceptions:
  - {name: for a while, when: event.actor.id == "nobody", reason: a project, expires: "2026-01-09"}
---
id: impossible
title: Two types at once
severity: low
detection:
  kind: match
  where: event.eventType == "user.session.start" && event.eventType == "user.session.end"
---
id: steps
title: Its second step does not come
severity: low
detection:
  kind: sequence
  group_by: {user: event.actor.id}
  window: 1h
  steps:
    - {id: one, where: event.eventType == "user.session.start"}
    - {id: two, where: event.eventType == "user.lifecycle.delete.completed"}
---
id: off
title: Not run
severity: low
mode: disabled
detection:
  kind: match
  where: event.eventType == "nor.this.one"
`

const brokenRule = `id: broken
title: Broken
severity: low
detection:
  kind: match
  where: event.eventTipe == "user.session.start"
`

// TestIllRules makes each finding that an instance's rules and events can give appear, once, also over restarts, at others and on days
// that follow; what was met before a restart counts.
func TestIllRules(t *testing.T) {
	r := newStateRig(t)
	dir := t.TempDir()
	rulesOf(t, dir, illRules)
	write(t, filepath.Join(dir, "site", "broken.yaml"), brokenRule)
	hasty := func(s *Service) {
		s.cfg.Rules.Budget = 1 // nothing is that fast
		s.health.sample, s.health.least = 1, 20
	}
	_, stop := r.detecting("one", dir, hasty)
	n := 0
	send := func(eventType string, when time.Time, times int) {
		for range times {
			n++
			log := event(t, n, eventType)
			log.Outcome.Reason = ""
			log.Published, log.Derived.Time, log.Derived.Received = &when, when, when
			r.put(topics.SystemLog, "eval/u", log)
		}
	}
	send("user.session.start", at, 1)
	send("user.session.start", at.AddDate(0, 0, 20), 1)
	send("user.session.end", at.AddDate(0, 0, 20), 60)
	bustest.Until(t, 20*time.Second, func() error {
		for _, st := range r.statuses() {
			if st.Part > 0 && len(st.Orgs) == 1 && len(st.Seen) == 9 && len(st.Types) == 2 && len(st.Exceptions) == 1 && st.Exceptions[0].Used == 60 {
				return nil
			}
		}
		return errors.New("the first events are not remembered")
	})
	stop()
	if head := r.statuses()["one/0"]; head == nil || !head.Stopped {
		t.Errorf("a clean stop does not say so: %+v", head)
	}
	_, stop = r.detecting("one", dir, hasty)
	send("user.session.start", at.AddDate(0, 0, 31), 2)
	send("user.session.end", at.AddDate(0, 0, 31), 60)
	want := map[string]int{
		"rule-refused":                          1,
		"rule-failing fails":                    1,
		"rule-failing fails-later":              1,
		"rule-unknown-event-type misspelt":      1,
		"rule-unknown-event-type pattern":       1,
		"rule-cannot-fire impossible":           1,
		"rule-types-unseen unseen eval":         1,
		"rule-types-unseen steps eval":          1,
		"rule-types-unseen pattern eval":        1,
		"rule-never-matched misspelt eval":      1,
		"rule-never-matched fails eval":         1,
		"rule-never-matched fails-later eval":   1,
		"rule-hidden-by-exceptions hidden eval": 1,
		"rule-exception-expired lapsed eval":    1,
		"rule-over-budget hidden":               1,
	}
	same := func() error {
		got := r.health()
		if !maps.Equal(got, want) {
			var lines []string
			for _, k := range slices.Sorted(maps.Keys(got)) {
				if got[k] != want[k] {
					lines = append(lines, fmt.Sprintf("%s: %d", k, got[k]))
				}
			}
			for k := range want {
				if got[k] == 0 {
					lines = append(lines, k+": none")
				}
			}
			return errors.New(strings.Join(lines, "\n"))
		}
		return nil
	}
	bustest.Until(t, 20*time.Second, same)
	for _, d := range r.found() {
		detail := d.Context["detail"]
		switch d.RuleID + " " + strings.Trim(d.Context["rule"], `"`) {
		case "rule-refused ":
			if !strings.Contains(detail, "broken.yaml:6:") || !strings.Contains(detail, "did you mean eventType") {
				t.Errorf("refused: %s", detail)
			}
		case "rule-unknown-event-type misspelt":
			if !strings.Contains(detail, `did you mean \"user.session.start\"?`) {
				t.Errorf("misspelt: %s", detail)
			}
		case "rule-failing fails":
			if !strings.Contains(detail, "where: division by zero; ") {
				t.Errorf("failing: %s", detail)
			}
		case "rule-hidden-by-exceptions hidden":
			if !strings.HasPrefix(detail, `"kept away by everybody (`) {
				t.Errorf("hidden: %s", detail)
			}
		case "rule-exception-expired lapsed":
			if detail != `"for a while, in force through 2026-01-09"` {
				t.Errorf("expired: %s", detail)
			}
		}
	}
	// Others, and the same one again, say nothing of it a second time.
	_, stopTwo := r.detecting("two", dir, hasty)
	stop()
	send("user.session.end", at.AddDate(0, 0, 32), 30)
	time.Sleep(time.Second)
	_, stop = r.detecting("one", dir, hasty)
	send("user.session.start", at.AddDate(0, 0, 32), 5)
	time.Sleep(time.Second)
	stopTwo()
	time.Sleep(500 * time.Millisecond)
	stop()
	if err := same(); err != nil {
		t.Error("after restarts: ", err)
	}
	ids := map[string]bool{}
	for _, d := range r.found() {
		if k := fmt.Sprint(d.ID, d.Update); d.Kind == finding.RuleHealth && ids[k] {
			t.Errorf("%s stands twice", k)
		} else {
			ids[k] = true
		}
	}
}

// TestIllRulesKilled kills instances over and over while there is something to tell: each finding stands once.
func TestIllRulesKilled(t *testing.T) {
	r := newStateRig(t)
	dir := t.TempDir()
	rulesOf(t, dir, illRules)
	const files = 30
	for i := range files {
		id := fmt.Sprintf("broken-%d", i)
		write(t, filepath.Join(dir, "site", id+".yaml"), strings.Replace(brokenRule, "id: broken", "id: "+id, 1))
	}
	n := 0
	for round := range 8 {
		one, two := spawn(t, r.b, "one", childRules+"="+dir), spawn(t, r.b, "two", childRules+"="+dir)
		for end := time.Now().Add(time.Duration(300+150*round) * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			n++
			log := event(t, n, "user.session.start")
			log.Outcome.Reason = ""
			r.put(topics.SystemLog, "eval/u", log)
		}
		kill(one)
		kill(two)
	}
	spawn(t, r.b, "one", childRules+"="+dir)
	bustest.Until(t, 40*time.Second, func() error {
		got := r.health()
		if got["rule-refused"] < files || got["rule-failing fails"] == 0 || got["rule-failing fails-later"] == 0 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	time.Sleep(time.Second)
	got := r.health()
	for what, n := range got {
		if want := map[string]int{"rule-refused": files}[what]; n != max(want, 1) {
			t.Errorf("%s stands %d times", what, n)
		}
	}
	t.Logf("%d events, 16 kills: %d findings, each once", n, len(got)-1+files)
}

// TestRulesDiffer starts two instances with different rules; nothing is said of it for a while, then once.
func TestRulesDiffer(t *testing.T) {
	r := newStateRig(t)
	one, two := t.TempDir(), t.TempDir()
	rulesOf(t, one, deviceRule)
	rulesOf(t, two, deviceRule)
	r.detecting("one", one, nil)
	r.detecting("two", two, nil)
	bustest.Until(t, 20*time.Second, func() error {
		if n := len(r.statuses()); n < 2 {
			return fmt.Errorf("%d statuses", n)
		}
		return nil
	})
	time.Sleep(2 * hasty.differ)
	if got := r.health(); len(got) > 0 {
		t.Fatalf("the same rules differ: %v", got)
	}
	rulesOf(t, two, strings.Replace(deviceRule, "severity: low", "severity: high", 1))
	bustest.Until(t, 20*time.Second, func() error {
		if got := r.health(); got["rules-differ"] != 1 {
			return fmt.Errorf("findings: %v", got)
		}
		return nil
	})
	for _, d := range r.found() {
		if !strings.Contains(d.Context["detail"], "one has ") || !strings.Contains(d.Context["detail"], "two has ") {
			t.Errorf("%+v", d.Context)
		}
	}
	time.Sleep(2 * hasty.differ)
	if got := r.health(); !maps.Equal(got, map[string]int{"rules-differ": 1}) {
		t.Errorf("findings: %v", got)
	}
}

// TestAdopt: what an instance remembered that does not come back becomes another's, and its records go.
func TestAdopt(t *testing.T) {
	r := newStateRig(t)
	old := time.Now().Add(-time.Hour).UTC().Truncate(time.Millisecond)
	since := at.AddDate(0, 0, -50)
	r.put(topics.RuleStatus, "gone/0", &record.RuleStatus{Instance: "gone", HeartbeatAt: old, Hash: "another"})
	r.put(topics.RuleStatus, "gone/1", &record.RuleStatus{
		Instance: "gone", Part: 1, HeartbeatAt: old, Orgs: []record.OrgSeen{{Org: "eval", Since: since, Newest: at}},
		Types: []record.TypeSeen{{Org: "eval", EventType: "user.session.end", At: at}},
	})
	dir := t.TempDir()
	rulesOf(t, dir, strings.Split(illRules, "---\n")[4]) // unseen
	r.detecting("one", dir, nil)
	bustest.Until(t, 20*time.Second, func() error {
		states := r.statuses()
		mine := states["one/1"]
		if states["gone/0"] != nil || states["gone/1"] != nil || mine == nil || len(mine.Orgs) != 1 || !mine.Orgs[0].Since.Equal(since) || len(mine.Types) != 1 {
			return fmt.Errorf("%+v", states)
		}
		if got := r.health(); !maps.Equal(got, map[string]int{"rule-types-unseen unseen eval": 1}) {
			return fmt.Errorf("findings: %v", got)
		}
		return nil
	})
}

// TestWhatRulesMetIsShown: a rule with memory takes events, finds something and gets an event too late; a match rule has an exception.
func TestWhatRulesMetIsShown(t *testing.T) {
	r := newStateRig(t)
	dir := t.TempDir()
	rulesOf(t, dir, sprayRule+"---\n"+strings.Split(illRules, "---\n")[5]) // hidden
	r.detecting("one", dir, nil)
	for i := range 6 {
		r.put(topics.SystemLog, "eval/u", failure(t, i, fmt.Sprintf("user%d@example.com", i), "203.0.113.7"))
	}
	r.put(topics.SystemLog, "eval/u", event(t, 7, "user.session.end"))
	seen := func(want record.RuleSeen, used int64) {
		t.Helper()
		bustest.Until(t, 20*time.Second, func() error {
			var got record.RuleSeen
			excepted := int64(0)
			for _, st := range r.statuses() {
				for _, x := range st.Seen {
					if x.RuleID == "password-spray" {
						got = x
					}
				}
				for _, x := range st.Exceptions {
					excepted += x.Used
				}
			}
			if got.Taken != want.Taken || got.Hits < want.Hits || got.Late != want.Late || excepted != used || got.HitAt == nil {
				return fmt.Errorf("%+v, %d excepted", got, excepted)
			}
			return nil
		})
	}
	seen(record.RuleSeen{Taken: 6, Hits: 1}, 1)
	r.cursor("acme", "eval", liveLane, pollKind, at.Add(time.Hour), false)
	r.awaitClock("eval", liveLane, at.Add(time.Hour), false)
	r.put(topics.SystemLog, "eval/u", failure(t, 8, "user8@example.com", "203.0.113.7"))
	seen(record.RuleSeen{Taken: 7, Hits: 1, Late: 1}, 1)
}

// TestNoStatusTopic: where the topic is missing the rules judge all the same.
func TestNoStatusTopic(t *testing.T) {
	r := newRig(t, Config{})
	r.send(event(t, 1, "user.account.lock"))
	r.detections(1)
}

// TestDiffersForAMinute goes by the times that Tick is given.
func TestDiffersForAMinute(t *testing.T) {
	b, err := bus.New(bus.Config{Brokers: []string{"127.0.0.1:1"}}, bus.Deps{InstanceID: "one"})
	if err != nil {
		t.Fatal(err)
	}
	set := metrics.NewSet()
	s, err := New(Config{}, Deps{Bus: b, Pack: rules.FS, Metrics: set})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	task := &stateTask{s: s, gen: s.current.Load()}
	d := &doctor{h: s.health}
	begin := time.Now()
	look := func(after time.Duration, hashes map[string]string) bool {
		now := begin.Add(after)
		states := map[string]*record.RuleStatus{}
		for id, hash := range hashes {
			states[id+"/0"] = &record.RuleStatus{Instance: id, Hash: hash, HeartbeatAt: now, Stopped: hash == "stopped"}
		}
		states["dead/0"] = &record.RuleStatus{Instance: "dead", Hash: "old", HeartbeatAt: now.Add(-usual.alive)}
		d.look(task, states, now)
		return slices.ContainsFunc(d.left, func(i illness) bool { return i.Name == findDiffer.Name })
	}
	for _, step := range []struct {
		after  time.Duration
		hashes map[string]string
		want   bool
	}{
		{0, map[string]string{"a": "x", "b": "x"}, false},
		{10 * time.Second, map[string]string{"a": "x", "b": "y"}, false},
		{65 * time.Second, map[string]string{"a": "x", "b": "y"}, false},
		{68 * time.Second, map[string]string{"a": "y", "b": "y"}, false},
		{69 * time.Second, map[string]string{"a": "y", "b": "z"}, false},
		{120 * time.Second, map[string]string{"a": "y", "b": "z"}, false},
		{130 * time.Second, map[string]string{"a": "y", "b": "z"}, true},
		{140 * time.Second, map[string]string{"a": "y", "b": "stopped"}, false},
	} {
		if got := look(step.after, step.hashes); got != step.want {
			t.Errorf("after %v %v: differ %v", step.after, step.hashes, got)
		}
		page := httptest.NewRecorder()
		set.Handler().ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		for _, f := range ruleFindings() {
			line := fmt.Sprintf("oktawatch_detect_ill_rules{finding=%q} %d\n", f.Name, map[bool]int{true: 1}[step.want && f.Name == findDiffer.Name])
			if !strings.Contains(page.Body.String(), line) {
				t.Errorf("after %v there is no %s", step.after, line)
			}
		}
	}
}

// TestFacts: what two instances met of one org is the same in either order, and comes back as it was.
func TestFacts(t *testing.T) {
	make := func(days ...int) *facts {
		f := newFacts()
		for _, day := range days {
			when := at.AddDate(0, 0, day).UnixMilli()
			f.saw("00oA", fmt.Sprintf("type.%d", day%3), when)
			f.met("00oA", "r", func(r *ruleFacts) {
				r.hash = "h"
				if day%2 == 0 {
					r.take(when)
					r.hit(when)
				} else {
					x := r.exception("e")
					x.used, x.alone, x.usedAt = x.used+1, x.alone+1, max(x.usedAt, when)
				}
			})
		}
		return f
	}
	join := func(fs ...*facts) string {
		sum := newFacts()
		for _, f := range fs {
			f.again()
			for _, p := range f.parts() {
				b, err := p.AppendAvro(nil)
				if err != nil {
					t.Fatal(err)
				}
				back := new(record.RuleStatus)
				if err := back.DecodeAvro(b); err != nil {
					t.Fatal(err)
				}
				sum.add(back)
			}
		}
		return fmt.Sprintf("%+v", sum.parts()[0])
	}
	a, b := make(1, 2, 3, 5), make(0, 4, 7)
	if one, two := join(a, b), join(b, a); one != two {
		t.Errorf("%s\n%s", one, two)
	}
	if one, two := join(a), fmt.Sprintf("%+v", func() *record.RuleStatus { a.again(); return a.parts()[0] }()); one != two {
		t.Errorf("%s\n%s", one, two)
	}
	if a.parts() != nil {
		t.Error("nothing has changed, and it is given again")
	}
	big := newFacts()
	for i := range 2*entriesAPart + 10 {
		big.saw(fmt.Sprintf("00o%d", i%500), fmt.Sprintf("type.%d", i), at.UnixMilli())
	}
	parts := big.parts()
	if len(parts) != 3 {
		t.Errorf("%d parts", len(parts))
	}
	for _, p := range parts {
		if b, err := p.AppendAvro(nil); err != nil || len(b) > topics.RuleStatus.MaxBytes/2 {
			t.Errorf("part %d has %d bytes: %v", p.Part, len(b), err)
		}
	}
}

func TestCosts(t *testing.T) {
	var c costs
	for i := range 10_000 {
		c.add(time.Duration(i+1) * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 5 * time.Millisecond, 0.99: 9900 * time.Microsecond} {
		if got := c.at(q); got < want || float64(got) > 1.13*float64(want) {
			t.Errorf("%v is %v, want %v or a little more", q, got, want)
		}
	}
	for range 40_000 { // what was long ago counts less
		c.add(time.Microsecond)
	}
	if got := c.at(0.9); got > 2*time.Microsecond {
		t.Errorf("0.9 is %v", got)
	}
	c.add(-time.Second)
	c.add(1 << 62)
	if (&costs{}).at(0.99) != 0 {
		t.Error("nothing has a cost")
	}
}

// TestEveryFindingIsDocumented: each has its row on the page, and the page has no other.
func TestEveryFindingIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/rule-health.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, f := range ruleFindings() {
		again := "each day"
		if f.slow {
			again = "after `quiet_days`"
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s | %s | %s |\n", f.Name, record.SeverityName(f.Severity), f.Title+".", f.when, f.Runbook, again)
	}
	_, rest, _ := strings.Cut(string(page), "|---|---|---|---|---|---|\n")
	got, _, _ := strings.Cut(rest, "\n\n")
	if got+"\n" != want.String() {
		t.Errorf("the table of docs/rule-health.md is not the list of findings. It should be:\n%s", want.String())
	}
}

func TestLasts(t *testing.T) {
	for _, tc := range []struct {
		name  string
		quiet int
		want  int // days
	}{{findFailing.Name, 7, 2}, {findUnseen.Name, 7, 8}, {findUnseen.Name, 0, 31}, {"not one of ours", 7, 2}} {
		if got := Lasts(tc.name, tc.quiet); got != time.Duration(tc.want)*24*time.Hour {
			t.Errorf("%s lasts %v, want %d days", tc.name, got, tc.want)
		}
	}
}
