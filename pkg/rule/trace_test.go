package rule_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
)

func TestTrace(t *testing.T) {
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: fstest.MapFS{"p/x.yaml": {Data: []byte(`id: x
title: X
severity: low
params: {least: 2}
vars:
  user: event.targetOf("User")
detection:
  kind: match
  where: >-
    event.eventType == "user.mfa.factor.reset_all" && vars.user.id != event.actor.id && event.target.filter(t, t.type == "User").size() >= params.least
    && (event.outcome.result in ["SUCCESS", "ALLOW"] || event.severity.startsWith("W"))
exceptions:
  - {name: bot, when: 'event.actor.alternateId == "bot@example.com"', reason: approved}
`)}}})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	log, _, err := systemlog.FromJSON([]byte(`{"uuid":"u","published":"2026-01-05T10:00:00.000Z","eventType":"user.mfa.factor.reset_all","severity":"INFO",
		"actor":{"id":"00u1","alternateId":"a@example.com"},"outcome":{"result":"SUCCESS"},"target":[{"type":"User","id":"00u2"},{"type":"User","id":"00u3"}]}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	var v record.SystemLogView
	if err := v.Load(log); err != nil {
		t.Fatal(err)
	}
	c, _ := set.Rule("x")
	ev := set.NewEvent()
	ev.Reset(&v)
	var b strings.Builder
	for _, s := range c.Trace(ev) {
		fmt.Fprintf(&b, "%s%s[%s] = %s\n", strings.Repeat("  ", s.Depth), s.What, strings.Join(strings.Fields(s.Text), " "), s.Value)
	}
	want := `where[event.eventType == "user.mfa.factor.reset_all" && vars.user.id != event.actor.id && event.target.filter(t, t.type == "User").size() >= params.least && (event.outcome.result in ["SUCCESS", "ALLOW"] || event.severity.startsWith("W"))] = true
  [event.eventType == "user.mfa.factor.reset_all"] = true
    [event.eventType] = "user.mfa.factor.reset_all"
  [vars.user.id != event.actor.id] = true
    [vars.user.id] = "00u2"
    [event.actor.id] = "00u1"
  [event.target.filter(t, t.type == "User").size() >= params.least] = true
    [event.target.filter(t, t.type == "User").size()] = 2
      [event.target.filter(t, t.type == "User")] = [{"id":"00u2","type":"User"},{"id":"00u3","type":"User"}]
        [event.target] = [{"id":"00u2","type":"User"},{"id":"00u3","type":"User"}]
    [params.least] = 2
  [event.outcome.result in ["SUCCESS", "ALLOW"] || event.severity.startsWith("W")] = true
    [event.outcome.result in ["SUCCESS", "ALLOW"]] = true
      [event.outcome.result] = "SUCCESS"
    [event.severity.startsWith("W")] = 
vars.user[event.targetOf("User")] = {"id":"00u2","type":"User"}
exception bot[event.actor.alternateId == "bot@example.com"] = false
  [event.actor.alternateId] = "a@example.com"
`
	if b.String() != want {
		t.Errorf("traced\n%s\nwant\n%s", b.String(), want)
	}
}
