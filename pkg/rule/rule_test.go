package rule

import (
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

const sample = `id: mfa-reset-by-other
title: All factors of a user reset by somebody else
description: Every factor of an account was removed by an actor who is not its owner.
severity: medium
mitre: [T1556.006]
false_positives: [Help desk enrolling a replacement phone]
runbook: Find the help desk ticket. Without one, end the user's sessions and restore the factors.
vars:
  user: event.targetOf("User")
detection:
  kind: match
  where: >-
    event.eventType == "user.mfa.factor.reset_all" && event.outcome.result == "SUCCESS"
    && vars.user.id != event.actor.id
exceptions:
  - name: enrolment bot
    when: event.actor.alternateId == "enrol-bot@example.com"
    reason: acts on approved tickets
    ticket: SEC-101
    expires: "2027-06-30"
alert:
  title: ${event.actor.alternateId} reset all factors of ${vars.user.alternateId}
  severity_when:
    - when: lists.admins.contains(vars.user.alternateId)
      severity: critical
  dedup:
    key: [vars.user.id]
`

func load(t *testing.T, files map[string]string) (*Set, []Problem) {
	t.Helper()
	l, err := NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	fsys := fstest.MapFS{}
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	set, ps, err := l.Load(Source{Name: "rules", FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	return set, ps
}

func viewOf(t *testing.T, s *record.SystemLog) *record.SystemLogView {
	t.Helper()
	var v record.SystemLogView
	if err := v.Load(s); err != nil {
		t.Fatal(err)
	}
	return &v
}

func TestSampleRule(t *testing.T) {
	set, ps := load(t, map[string]string{"okta/mfa/mfa-reset-by-other.yaml": sample, "lists/admins.txt": "admin@example.com\n"})
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	c, ok := set.Rule("mfa-reset-by-other")
	if !ok {
		t.Fatal("rule not loaded")
	}
	if got := strings.Join(c.Types.Exact, ","); got != "user.mfa.factor.reset_all" || c.Types.All {
		t.Errorf("event types %+v", c.Types)
	}
	if c.Copies != JudgesBoth || c.Pack != "mfa" {
		t.Errorf("copies %s pack %s reads %v", c.Copies, c.Pack, c.Reads)
	}
	ev := set.NewEvent()
	log := &record.SystemLog{
		UUID: "u1", EventType: "user.mfa.factor.reset_all", Outcome: &record.Outcome{Result: "SUCCESS"},
		Actor:  &record.Actor{ID: "00uALICE", AlternateID: "alice@example.com", Type: "User"},
		Target: []record.Target{{ID: "00uADM", Type: "User", AlternateID: "Admin@example.com"}},
	}
	log.Derived.Org, log.Derived.Time = "00oX", time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	ev.Reset(viewOf(t, log))
	hit, exc, err := c.Judge(ev)
	if !hit || exc != "" || err != nil {
		t.Fatal(hit, exc, err)
	}
	if s, err := c.SeverityOf(ev); s != Critical || err != nil {
		t.Error(s, err)
	}
	if s, err := c.TitleOf(ev); s != "alice@example.com reset all factors of Admin@example.com" || err != nil {
		t.Error(s, err)
	}
	if k, err := c.DedupKeyOf(ev); len(k) != 1 || k[0] != "00uADM" || err != nil {
		t.Error(k, err)
	}
	log.Actor.AlternateID = "enrol-bot@example.com"
	ev.Reset(viewOf(t, log))
	if hit, exc, err := c.Judge(ev); hit || exc != "enrolment bot" || err != nil {
		t.Error(hit, exc, err)
	}
	log.Derived.Time = time.Date(2027, 7, 1, 0, 0, 0, 0, time.UTC)
	ev.Reset(viewOf(t, log))
	if hit, exc, _ := c.Judge(ev); !hit {
		t.Error("an expired exception still holds", exc)
	}
}

func TestProblems(t *testing.T) {
	rule := func(detection string) string {
		return "id: x\ntitle: X\nseverity: low\ndetection:\n  kind: match\n" + detection
	}
	for name, tc := range map[string]struct{ text, want string }{
		"kind":        {"id: x\ntitle: X\nseverity: low\ndetection:\n  kind: agregate\n", `rules/p/x.yaml:5:9: kind: unknown kind "agregate": write one of match`},
		"key":         {rule("  were: true\n"), `rules/p/x.yaml:6:3: unknown-key: detection of kind match has no key "were": did you mean "where"?`},
		"field":       {rule("  where: event.outcome.resultt == \"X\"\n"), `rules/p/x.yaml:6:23: cel: where: there is no field resultt here: did you mean result?`},
		"folded":      {rule("  where: >-\n    event.eventType == \"a\"\n    && event.outcome.resultt == \"X\"\n"), `rules/p/x.yaml:8:21: cel: where: there is no field resultt here: did you mean result?`},
		"quoted":      {rule("  where: 'event.eventType == \"it''s\" && evnt.x'\n"), `rules/p/x.yaml:6:41: cel: where: evnt is unknown: did you mean event?`},
		"type":        {rule("  where: event.eventType\n"), `rules/p/x.yaml:6:10: cel: where: this is a string: write an expression that gives bool`},
		"number":      {rule("  where: event.eventType == 5\n"), `rules/p/x.yaml:6:26: cel: where: found no matching overload for '_==_' applied to '(string, int)'`},
		"has map":     {rule("  where: has(event.debugContext.debugData.url)\n"), `has() of a key of an open object is always true: write "url" in the map`},
		"anchor":      {rule("  where: &a true\n"), "yaml-feature: an anchor"},
		"tag":         {rule("  where: !x\n"), "yaml-feature: YAML reads !x as a tag"},
		"repeated":    {"id: x\nid: x\ntitle: X\nseverity: low\ndetection: {kind: match}\n", "rules/p/x.yaml:2:1: repeated-key: id stands here a second time, first in line 1: keep one"},
		"file name":   {"id: y\ntitle: X\nseverity: low\ndetection: {kind: match}\n", "rules/p/x.yaml:1:5: name: the file is x.yaml but the id is y: name the file y.yaml"},
		"circle":      {rule("vars:\n  a: vars.b\n  b: vars.a\n"), "circle: vars.a uses itself in a circle"},
		"unknown var": {rule("  where: vars.nope\n"), "vars has no such name"},
		"optional":    {rule("  where: event.?outcome.result == \"x\"\n"), "cel"},
		"pattern":     {rule("  where: event.eventType.matches(\"(\")\n"), "pattern: where: the pattern does not compile"},
		"nesting":     {rule("  where: event.target.exists(a, event.target.exists(b, event.target.exists(c, event.target.exists(d, a.id == d.id))))\n"), "nested 4 deep"},
		"title":       {rule("") + "alert: {title: '${event.actor}'}\n", "title: this is a Actor: write an expression that gives string"},
		"two docs":    {rule("") + "---\nid: y\n", "a second document begins here"},
		"deep":        {strings.Repeat("[", 1000), "nested more than"},
		"construct":   {rule("  where: 'Actor{id: \"x\"}.id == \"x\"'\n"), "a Actor cannot be written in a rule"},
	} {
		t.Run(name, func(t *testing.T) {
			set, ps := load(t, map[string]string{"p/x.yaml": tc.text})
			if len(ps) == 0 {
				t.Fatal("no problem found")
			}
			if len(set.Rules) > 0 {
				t.Error("the rule was loaded")
			}
			if !strings.Contains(ps[0].String(), tc.want) {
				t.Errorf("got  %s\nwant %s", ps[0], tc.want)
			}
		})
	}
}
