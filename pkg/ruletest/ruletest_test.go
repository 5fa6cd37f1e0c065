package ruletest_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
)

const head = `id: x
title: X
severity: low
params: {word: SUCCESS}
detection:
  kind: match
  where: event.eventType == "user.session.start" && event.outcome.result == params.word
alert:
  title: ${event.actor.alternateId} from ${event.client.ipAddress}
  severity_when: [{when: 'lists.bad.contains(event.client.ipAddress)', severity: high}]
  context: {n: 'event.target.size()', published: event.published}
tests:
`

// run plays the tests of a rule and gives what failed.
func run(t *testing.T, text string) string {
	t.Helper()
	fsys := fstest.MapFS{
		"p/x.yaml":                {Data: []byte(text)},
		"lists/bad.txt":           {Data: []byte("192.0.2.1\n")},
		"p/testdata/events.jsonl": {Data: []byte("{}\n" + `{"uuid":"u-file","eventType":"user.session.start","outcome":{"result":"SUCCESS"},"actor":{"id":"00uF","alternateId":"f@example.com"}}` + "\n")},
	}
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: fsys})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	var out []string
	for _, res := range ruletest.Run(set, &set.Rules[0].Rule, fsys, "p") {
		for _, f := range res.Failures {
			out = append(out, res.Pos.String()+": "+f)
		}
	}
	return strings.Join(out, "\n")
}

func TestExpect(t *testing.T) {
	for name, tc := range map[string]struct{ test, want string }{
		"hit":           {`events: [{fixture: user.session.start}], expect: {detections: 1, alerts: 1, events: 1, severity: low, title: alice@example.com from 198.51.100.7, dedup_key: 00uALICE, at: 0s, context.n: 1, context: {published: "2026-01-05T10:00:00Z"}}`, ""},
		"miss":          {`events: [{fixture: user.session.end}], expect: none`, ""},
		"not none":      {`events: [{fixture: user.session.start}], expect: none`, "rules/p/x.yaml:13:5: expected none, got 1: "},
		"count":         {`events: [{fixture: user.session.start, repeat: 3}], expect: {detections: 2}`, "expected 2 detections, got 3"},
		"none at all":   {`events: [{fixture: user.session.end}], expect: {severity: low}`, "expected a detection, got none"},
		"severity":      {`events: [{fixture: user.session.start}], expect: {severity: high}`, "expected severity high, got low"},
		"title":         {`events: [{fixture: user.session.start}], expect: {title: x}`, `expected title "x", got "alice@example.com from 198.51.100.7"`},
		"key":           {`events: [{fixture: user.session.start}], expect: {dedup_key: x}`, `expected dedup_key "x", got "00uALICE"`},
		"at":            {`events: [{fixture: user.session.start, at: 5m}], expect: {at: 4m}`, "expected the first hit 4m0s after the start, got 5m0s"},
		"context":       {`events: [{fixture: user.session.start}], expect: {context.n: 2}`, "expected context.n to be 2, got 1"},
		"no context":    {`events: [{fixture: user.session.start}], expect: {context.m: 2}`, "expected context.m, which the rule does not have"},
		"alerts":        {`events: [{fixture: user.session.start, repeat: 2, every: 2h}], expect: {alerts: 1}`, "expected 1 alerts, got 2"},
		"alerts join":   {`events: [{fixture: user.session.start, repeat: 3, every: 40m}], expect: {detections: 3, alerts: 1}`, ""},
		"each":          {`events: [{fixture: user.session.start, repeat: 3, each: {actor.id: "u${i}"}}], expect: {detections: 3, alerts: 3, dedup_key: u2}`, ""},
		"list":          {`lists: {bad: [198.51.100.0/24]}, events: [{fixture: user.session.start}], expect: {severity: high}`, ""},
		"param":         {`params: {word: FAILURE}, events: [{fixture: user.session.start}], expect: none`, ""},
		"unknown param": {`params: {wrd: FAILURE}, events: [{fixture: user.session.start}], expect: none`, "param wrd, which the rule does not have"},
		"history":       {`events: [{fixture: user.session.start, at: -1h}, {fixture: user.session.start, at: 0s}], expect: {detections: 1}`, ""},
		"until":         {`until: 1h, events: [{fixture: user.session.start}, {fixture: user.session.start, at: 2h}], expect: {detections: 1}`, ""},
		"start":         {`start: 2026-02-01T00:00:00Z, events: [{fixture: user.session.start}], expect: {context.published: "2026-02-01T00:00:00Z"}`, ""},
		"event":         {`events: [{event: {eventType: user.session.start, outcome: {result: SUCCESS}, actor: {id: a}}}], expect: {detections: 1, dedup_key: a}`, ""},
		"file":          {`events: [{file: testdata/events.jsonl#2}], expect: {detections: 1, dedup_key: 00uF}`, ""},
		"no such line":  {`events: [{file: testdata/events.jsonl#4}], expect: none`, "testdata/events.jsonl has no line 4"},
		"no such file":  {`events: [{file: testdata/x.jsonl#1}], expect: none`, "read test data"},
		"set in a list": {`events: [{fixture: user.session.start, set: {target.0.id: x, request.ipChain.0.ip: y}}], expect: {detections: 1}`, ""},
		"set nowhere":   {`events: [{fixture: user.session.start, set: {target.7.id: x}}], expect: none`, "7 is no place in a list of 1"},
		"detection":     {`events: [{fixture: user.session.start, detection: {ruleId: x}}], expect: none`, "this rule reads events, not detections"},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t, head+"  - {name: n, "+tc.test+"}\n")
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestFailingExpression: a test of a rule whose expression fails at run time does not pass.
func TestFailingExpression(t *testing.T) {
	got := run(t, strings.Replace(head, "params.word\n", "event.target[3].id\n", 1)+"  - {name: n, events: [{fixture: user.session.start}], expect: none}\n")
	if !strings.Contains(got, "an expression failed") {
		t.Error(got)
	}
}

func TestFixtures(t *testing.T) {
	types := append(ruletest.FixtureTypes(), "no.such.type")
	if len(types) < 14 {
		t.Errorf("%d fixtures", len(types))
	}
	for _, eventType := range types {
		ev := ruletest.Fixture(eventType)
		ev["uuid"], ev["published"] = "u", "2026-01-05T10:00:00.000Z"
		log, err := ruletest.Record(ev)
		if err != nil {
			t.Errorf("%s: %v", eventType, err)
			continue
		}
		if log.EventType != eventType || log.Actor == nil || log.Client == nil || log.Client.IPAddress != "198.51.100.7" || log.Client.GeographicalContext.City != "Oslo" {
			t.Errorf("%s: %+v", eventType, log)
		}
	}
}
