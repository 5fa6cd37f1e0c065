package ruletest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
)

func TestReadEvents(t *testing.T) {
	const a = `{"uuid":"a","published":"2026-01-05T10:00:01.000Z","eventType":"t"}`
	const b = `{"uuid":"b","published":"2026-01-05T10:00:02.000Z","eventType":"t"}`
	for name, tc := range map[string]struct {
		text    string
		n       int
		skipped string // lines
	}{
		"nothing":                  {"", 0, ""},
		"blank":                    {"\n \r\n\n", 0, ""},
		"lines":                    {a + "\n" + b, 2, ""},
		"lines of Windows":         {"\xef\xbb\xbf" + a + "\r\n" + b + "\r\n", 2, ""},
		"an array":                 {"[" + a + "," + b + "]", 2, ""},
		"arrays and lines":         {"[" + a + "]\n" + b + "\n[]\n", 2, ""},
		"an array over lines":      {"[\n" + a + ",\n" + b + "\n]\n{", 2, "5"},
		"an event over lines":      {strings.ReplaceAll(a, ",", ",\n") + "\n" + b + "\nx", 2, "5"},
		"two in a line":            {a + " " + b, 2, ""},
		"copies":                   {a + "\n" + a + "\n" + b, 2, ""},
		"no JSON":                  {"x\n" + a + "\n{y\n" + b, 2, "1 3"},
		"no time":                  {`{"uuid":"c","eventType":"t"}` + "\n" + a, 1, "1"},
		"no event":                 {`{}` + "\n[1]\n" + a, 1, "1 2"},
		"a broken array":           {"[" + a + ",{\n" + b, 2, "1"},
		"a broken end":             {a + "\n" + b[:20], 1, "2"},
		"the same uuid, two times": {a + "\n" + strings.Replace(a, ":01", ":03", 1) + "\n" + a, 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var skipped []string
			in, err := ruletest.ReadEvents(strings.NewReader(tc.text), int64(len(tc.text)), "eval", func(line int, _ error) { skipped = append(skipped, fmt.Sprint(line)) })
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(skipped, " "); in.Len() != tc.n || got != tc.skipped {
				t.Errorf("%d events, skipped lines %q; want %d, %q", in.Len(), got, tc.n, tc.skipped)
			}
		})
	}
}

// TestEvalTellsReusedUUIDs sees to it that two events of one uuid are two detections, as in the pipeline.
func TestEvalTellsReusedUUIDs(t *testing.T) {
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: fstest.MapFS{"x.yaml": {Data: []byte("id: x\ntitle: X\nseverity: low\ndetection: {kind: match, where: event.eventType == \"t\"}\n")}}})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	const text = `{"uuid":"a","published":"2026-01-05T10:00:01.000Z","eventType":"t"}
{"uuid":"a","published":"2026-01-05T10:00:02.000Z","eventType":"t"}
`
	in, err := ruletest.ReadEvents(strings.NewReader(text), int64(len(text)), "eval", func(int, error) {})
	if err != nil {
		t.Fatal(err)
	}
	in.Sort()
	ids := map[string]string{}
	err = ruletest.Eval(set, in, ruletest.Report{
		Found:    func(d *record.Detection) error { ids[d.ID] = d.EvidenceUUIDs[0]; return nil },
		Failed:   func(err error) { t.Error(err) },
		Late:     func(id string) { t.Errorf("late for %s", id) },
		Limited:  func(id, what string) { t.Errorf("%s: %s", id, what) },
		Excepted: func(string, string) {},
	})
	if err != nil || len(ids) != 2 {
		t.Errorf("detections of %v, %v; want two", ids, err)
	}
}

// overFiles are a spray, a rule that tells of each locked account, and rules that read them.
var overFiles = fstest.MapFS{
	"p/spray.yaml": {Data: []byte(`id: spray
title: T
severity: low
detection:
  kind: aggregate
  where: event.eventType == "user.session.start" && event.outcome.result == "FAILURE"
  group_by: {ip: event.client.ipAddress}
  window: 5m
  aggregates: {users: {distinct: event.actor.alternateId}}
  having: agg.users >= 3
alert:
  title: ${agg.users} users
  severity_when: [{when: agg.users >= 5, severity: high}]
`)},
	"p/locked.yaml": {Data: []byte(`id: locked
title: Locked
severity: info
mode: signal
detection:
  kind: match
  where: event.eventType == "user.account.lock"
`)},
	"p/off.yaml": {Data: []byte(`id: off
title: Not read
severity: info
mode: shadow
detection:
  kind: match
  where: event.eventType == "user.session.start"
`)},
	"p/entry.yaml": {Data: []byte(`id: entry
title: T
severity: high
params: {attacks: [spray, locked, off]}
detection:
  kind: sequence
  group_by: {user: event.actor.alternateId}
  window: 3h
  steps:
    - id: attack
      input: detections
      where: event.detection.ruleId in params.attacks
    - id: success
      where: event.eventType == "user.session.start" && event.outcome.result == "SUCCESS"
alert:
  title: ${key.user} after ${steps.attack.detection.ruleId} ${steps.attack.detection.title} ${string(steps.attack.detection.severity)}
`)},
	"p/many.yaml": {Data: []byte(`id: many
title: T
severity: high
detection:
  kind: aggregate
  input: detections
  group_by: {user: event.actor.alternateId}
  window: 1h
  aggregates: {rules: {distinct: event.detection.ruleId}}
  having: agg.rules >= 2
alert:
  title: ${agg.count} of ${agg.rules}
`)},
}

// TestEvalFeedsDetectionsToRules: rules over detections read what the others of the set find.
func TestEvalFeedsDetectionsToRules(t *testing.T) {
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: overFiles})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	var b strings.Builder
	n := 0
	event := func(minute, second int, kind, user, result string) {
		n++
		fmt.Fprintf(&b, `{"uuid":"u%02d","published":"2026-01-05T10:%02d:%02d.000Z","eventType":%q,"actor":{"id":%q,"type":"User","alternateId":%q},"client":{"ipAddress":"192.0.2.1"},"outcome":{"result":%q}}`+"\n", n, minute, second, kind, user, user, result)
	}
	for i := range 6 {
		event(0, i, "user.session.start", fmt.Sprintf("u%d@example.com", i), "FAILURE")
	}
	event(1, 0, "user.account.lock", "u1@example.com", "SUCCESS")
	event(5, 30, "user.session.start", "u4@example.com", "SUCCESS")
	event(40, 0, "user.session.start", "u1@example.com", "SUCCESS")
	event(41, 0, "user.session.start", "u9@example.com", "SUCCESS")
	in, err := ruletest.ReadEvents(strings.NewReader(b.String()), int64(b.Len()), "eval", func(_ int, err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]*record.Detection{}
	err = ruletest.Eval(set, in, ruletest.Report{
		Found: func(d *record.Detection) error {
			if old := last[d.ID]; old != nil && old.Update >= d.Update {
				t.Errorf("update %d of %s comes behind %d", d.Update, d.RuleID, old.Update)
			}
			last[d.ID] = d
			return nil
		},
		Failed: func(err error) { t.Error(err) }, Late: func(id string) { t.Errorf("late for %s", id) },
		Limited: func(id, what string) { t.Errorf("%s: %s", id, what) }, Excepted: func(string, string) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range last {
		if d.RuleID == "entry" || d.RuleID == "many" {
			got = append(got, fmt.Sprint(d.RuleID, " ", d.Title, " ", d.EventCount, " ", d.EvidenceUUIDs, " ", d.Withdrawn))
		}
	}
	slices.Sort(got)
	want := []string{
		"entry u1@example.com after locked Locked 1 2 [u07 u09] false",
		"entry u4@example.com after spray 6 users 4 2 [u05 u08] false",
		"many 2 of 2 2 [u02 u07] false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
