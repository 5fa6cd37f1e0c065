package rule

import (
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

const (
	sprayFile = `id: spray
title: T
severity: low
detection:
  kind: aggregate
  where: event.eventType == "user.session.start"
  group_by: {ip: event.client.ipAddress}
  lateness: 20m
  window: 5m
  having: agg.count >= 2
`
	entryFile = `id: entry
title: T
severity: low
params: {attacks: [spray, stuffing]}
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
  title: ${key.user} signed in from ${event.client.geographicalContext.country} after "${steps.attack.detection.title}"
`
)

func byID(t *testing.T, set *Set, id string) *Compiled {
	t.Helper()
	c, ok := set.Rule(id)
	if !ok {
		t.Fatalf("no rule %s", id)
	}
	return c
}

// TestSources: which rules a rule over detections reads follows from what it says of their ids.
func TestSources(t *testing.T) {
	head := "id: r\ntitle: T\nseverity: low\nparams: {one: spray, some: [spray, b]}\nvars: {named: event.detection.ruleId == params.one}\ndetection:\n  kind: aggregate\n  input: detections\n  window: 5m\n  having: agg.count > 1\n  where: '"
	for where, want := range map[string]string{
		`true`:                          "detections of every rule",
		`event.detection.severity >= 3`: "detections of every rule",
		`event.detection.ruleId == "a"`: "detections of a",
		`"a" == event.detection.ruleId && event.detection.severity > 2`:            "detections of a",
		`event.detection.ruleId in params.some`:                                    "detections of b, spray",
		`event.detection.ruleId in ["a", params.one]`:                              "detections of a, spray",
		`vars.named || event.detection.ruleId.startsWith("okta.")`:                 "detections of spray, okta.*",
		`event.detection.ruleId != "a"`:                                            "detections of every rule",
		`!(event.detection.ruleId != "a")`:                                         "detections of a",
		`event.detection.ruleId == "a" || event.eventType == "user.session.start"`: "detections of every rule",
	} {
		set, ps := load(t, map[string]string{"p/r.yaml": head + where + "'\n"})
		if len(ps) > 0 {
			t.Fatalf("%s: %v", where, ps)
		}
		got := byID(t, set, "r").Sources()
		if strings.Join(sortedWords(got), " ") != strings.Join(sortedWords(want), " ") {
			t.Errorf("%s reads %s, want %s", where, got, want)
		}
	}
}

func sortedWords(s string) []string {
	m := map[string]any{}
	for w := range strings.FieldsSeq(strings.ReplaceAll(s, ",", "")) {
		m[w] = nil
	}
	return sortedKeys(m)
}

// TestReadRuleKeepsWhatReadersRead: a rule keeps of its events what rules over its detections read; only a field that was
// not kept starts it empty. The clock of the reader waits for it.
func TestReadRuleKeepsWhatReadersRead(t *testing.T) {
	alone, ps := load(t, map[string]string{"p/spray.yaml": sprayFile})
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	both, ps := load(t, map[string]string{"p/spray.yaml": sprayFile, "p/entry.yaml": entryFile})
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	one, two, entry := byID(t, alone, "spray"), byID(t, both, "spray"), byID(t, both, "entry")
	if keeps := strings.Join(two.Keeps(), " "); !strings.Contains(keeps, "Outcome.result") || !strings.Contains(keeps, "GeographicalContext.country") {
		t.Errorf("keeps %s", keeps)
	}
	if one.StateHash == two.StateHash {
		t.Error("the state hash does not tell that more is kept")
	}
	if entry.Wait() != 20*time.Minute || two.Wait() != 20*time.Minute || byID(t, both, "entry").Detection.Lateness != 10*time.Minute {
		t.Errorf("the reader waits %v, the other %v", entry.Wait(), two.Wait())
	}
	if one.KeepsFor(entry) || !two.KeepsFor(entry) {
		t.Error("an earlier version is taken to keep what it does not, or the present one not to")
	}
	if !entry.CanRead(two) || two.CanRead(entry) || entry.CanRead(entry) {
		t.Error("who reads whom")
	}
	for name, files := range map[string]map[string]string{
		"other rules named":        {"p/spray.yaml": sprayFile, "p/entry.yaml": strings.Replace(entryFile, "[spray, stuffing]", "[stuffing]", 1)},
		"reads what is kept":       {"p/spray.yaml": sprayFile, "p/entry.yaml": "id: entry\ntitle: T\nseverity: low\ndetection:\n  kind: aggregate\n  input: detections\n  group_by: {ip: event.client.ipAddress}\n  window: 5m\n  having: agg.count > 1\n"},
		"mode of the rule":         {"p/spray.yaml": sprayFile + "mode: shadow\n"},
		"reader of events is none": {"p/spray.yaml": sprayFile, "p/entry.yaml": strings.Replace(entryFile, "input: detections", "input: events", 1)},
	} {
		set, ps := load(t, files)
		if len(ps) > 0 {
			t.Fatal(name, ps)
		}
		if h := byID(t, set, "spray").StateHash; h != one.StateHash {
			t.Errorf("%s: the state hash changed", name)
		}
	}
	off, _ := load(t, map[string]string{"p/spray.yaml": sprayFile + "mode: shadow\n", "p/entry.yaml": entryFile})
	if byID(t, off, "spray").StateHash != two.StateHash || byID(t, off, "entry").Wait() != 10*time.Minute {
		t.Error("a change of mode starts the rule empty, or a rule in shadow is waited for")
	}
}

// TestOneLevel: detections of a rule that reads detections are read by none.
func TestOneLevel(t *testing.T) {
	second := strings.NewReplacer("id: entry", "id: second", "[spray, stuffing]", "[spray, entry]").Replace(entryFile)
	set, ps := load(t, map[string]string{"p/spray.yaml": sprayFile, "p/entry.yaml": entryFile, "p/second.yaml": second})
	if len(ps) != 1 || ps[0].File != "rules/p/second.yaml" || ps[0].Line != 12 || !strings.Contains(ps[0].Message, "rule entry reads detections itself") {
		t.Errorf("%v", ps)
	}
	if _, ok := set.Rule("second"); ok || len(set.Rules) != 2 {
		t.Error("the rule is in force")
	}
}

// TestTakeOfPairs: a record of the other input never fulfils a step, and event.detection is empty without one.
func TestTakeOfPairs(t *testing.T) {
	set, ps := load(t, map[string]string{
		"p/spray.yaml": sprayFile, "p/entry.yaml": entryFile,
		"p/never.yaml": strings.NewReplacer("id: spray", "id: never", "event.eventType ==", `event.detection.ruleId != "" && event.eventType ==`).Replace(sprayFile),
	})
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	ev := set.NewEvent()
	entry := byID(t, set, "entry")
	log := &record.SystemLog{UUID: "u", EventType: "user.session.start", Outcome: &record.Outcome{Result: "SUCCESS"}, Actor: &record.Actor{AlternateID: "a@example.com"}, Client: &record.Client{IPAddress: "192.0.2.1"}}
	for name, tt := range map[string]struct {
		ref  *DetectionRef
		rule string
		want uint32
		none bool
	}{
		"event":             {nil, "entry", 2, false},
		"pair":              {&DetectionRef{ID: "d", RuleID: "spray"}, "entry", 1, false},
		"pair of another":   {&DetectionRef{ID: "d", RuleID: "other"}, "entry", 0, true},
		"events only":       {&DetectionRef{ID: "d", RuleID: "spray"}, "spray", 0, true},
		"without detection": {nil, "never", 0, true},
	} {
		ev.Reset(viewOf(t, log))
		ev.SetDetection(tt.ref)
		got, _, err := byID(t, set, tt.rule).Take(ev)
		if err != nil || (got == nil) != tt.none || got != nil && got.Flags != tt.want {
			t.Errorf("%s: %+v %v", name, got, err)
		}
	}
	if got := entry.Types.Exact; len(got) != 1 || got[0] != "user.session.start" {
		t.Errorf("wakes at %v", got)
	}
	if entry.Refs() != RefTitle || !entry.KeepsRef("title") || entry.KeepsRef("ruleId") {
		t.Error("what is read of the detection")
	}
}
