package engine_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/ident"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// Example judges one event by one rule.
func Example() {
	loader, err := rule.NewLoader()
	if err != nil {
		panic(err)
	}
	set, problems, err := loader.Load(rule.Source{Name: "rules", FS: fstest.MapFS{
		"site/factors-reset.yaml": {Data: []byte(`id: factors-reset
title: All factors of a user reset
severity: medium
detection:
  kind: match
  where: event.eventType == "user.mfa.factor.reset_all"
alert:
  title: ${event.actor.alternateId} reset all factors of ${event.targetOf("User").alternateId}
`)},
	}})
	if err != nil || len(problems) > 0 {
		panic(fmt.Sprint(problems, err))
	}
	log := &record.SystemLog{
		UUID: "3b2b0c2e-0001-11f1-8000-000000000001", EventType: "user.mfa.factor.reset_all",
		Actor:  &record.Actor{ID: "00uALICE", Type: "User", AlternateID: "alice@example.com"},
		Target: []record.Target{{ID: "00uBOB", Type: "User", AlternateID: "bob@example.com"}},
	}
	log.Derived = record.Derived{Org: "00oORG", Lane: "live", Copy: 1, Time: time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)}
	var view record.SystemLogView
	if err := view.Load(log); err != nil {
		panic(err)
	}
	for _, d := range engine.NewMatcher(set).Match(&view, engine.Place{}) {
		fmt.Println(d.RuleID, rule.Severity(d.Severity), d.Title, d.Users, d.Final)
	}
	// Output: factors-reset medium alice@example.com reset all factors of bob@example.com [alice@example.com bob@example.com] true
}

func load(t testing.TB, files map[string]string) *rule.Set {
	t.Helper()
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	fsys := fstest.MapFS{}
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: fsys})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	return set
}

func view(t testing.TB, log *record.SystemLog) *record.SystemLogView {
	t.Helper()
	v := new(record.SystemLogView)
	if err := v.Load(log); err != nil {
		t.Fatal(err)
	}
	return v
}

func login(uuid string) *record.SystemLog {
	at := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	return &record.SystemLog{
		UUID: uuid, Published: &at, EventType: "user.session.start", Outcome: &record.Outcome{Result: "SUCCESS"},
		Actor:   &record.Actor{ID: "00uALICE", Type: "User", AlternateID: "alice@example.com"},
		Client:  &record.Client{IPAddress: "198.51.100.7"},
		Derived: record.Derived{Org: "00oORG", Lane: "live", Copy: 1, Time: at, Received: at},
		JSON:    []byte(`{"uuid":"` + uuid + `"}`),
	}
}

const loginRule = "id: login\ntitle: Login\nrevision: 3\nseverity: low\nmitre: [TA0001/T1078, T1078.004]\ndetection: {kind: match, where: 'event.eventType == \"user.session.start\"'}\n"

func TestIdentity(t *testing.T) {
	set := load(t, map[string]string{"p/login.yaml": loginRule})
	m := engine.NewMatcher(set)
	d := m.Match(view(t, login("u1")), engine.Place{})[0]
	ns := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/oktawatch/oktawatch"))
	if want := uuid.NewSHA1(ns, []byte("login\x003\x0000oORG\x00u1")).String(); d.ID != want {
		t.Errorf("id %s, want %s", d.ID, want)
	}
	if d.Fingerprint != ident.Fingerprint("00oORG", "login", []string{"00uALICE"}) || len(d.Fingerprint) != 32 || strings.Contains(d.Fingerprint, ".") {
		t.Errorf("fingerprint %s", d.Fingerprint)
	}
	if fmt.Sprint(d.Mitre, d.Techniques, d.Tactics) != "[TA0001/T1078 T1078.004] [T1078 T1078.004] [TA0001]" {
		t.Error(d.Mitre, d.Techniques, d.Tactics)
	}
	reused := login("u1")
	reused.Derived.UUIDReused, reused.Derived.ContentHash = true, "abc"
	if e := m.Match(view(t, reused), engine.Place{})[0]; e.ID == d.ID || e.EvidenceUUIDs[0] != "u1#abc" {
		t.Errorf("a reused uuid is the same detection: %+v", e)
	}
	seed := login("u2")
	seed.Derived.Seed = true
	if ds := m.Match(view(t, seed), engine.Place{}); len(ds) > 0 {
		t.Error("a seed was judged")
	}
}

// TestCopies goes through what normalize can write of one event, and a rule of each sort.
func TestCopies(t *testing.T) {
	where := func(id, w string) string {
		return "id: " + id + "\ntitle: X\nseverity: low\ndetection: {kind: match, where: '" + w + "'}\n"
	}
	set := load(t, map[string]string{
		"p/both.yaml":    where("both", `event.eventType == "user.session.start"`),
		"p/device.yaml":  where("device", `event.eventType == "user.session.start" && event.device.id != "none"`),
		"p/differs.yaml": where("differs", `event.eventType == "user.session.start" && event.displayMessage == "second"`),
		"p/only1.yaml":   where("only1", `event.eventType == "user.session.start" && event.displayMessage == "first"`),
	})
	copyOf := func(n int32, partial bool) *record.SystemLog {
		log := login("u1")
		log.Derived.Copy, log.Derived.Partial = n, partial
		log.DisplayMessage = map[int32]string{1: "first", 2: "second"}[n]
		return log
	}
	for name, tc := range map[string]struct {
		log  *record.SystemLog
		want string
	}{
		"hook, poller to come": {copyOf(1, true), "both/1 partial, only1/1 partial"},
		"poller after hook":    {copyOf(2, false), "both/2 final, device/2 final, differs/2 final"},
		"poller alone":         {copyOf(1, false), "both/1 final, device/1 final, only1/1 final"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, d := range engine.NewMatcher(set).Match(view(t, tc.log), engine.Place{}) {
				s := fmt.Sprintf("%s/%d", d.RuleID, d.Update)
				if d.Final {
					s += " final"
				}
				if d.Partial {
					s += " partial"
				}
				got = append(got, s)
			}
			if s := strings.Join(got, ", "); s != tc.want {
				t.Errorf("got  %s\nwant %s", s, tc.want)
			}
		})
	}
}

type heard struct {
	excepted []string
	failed   []string
}

func (h *heard) Excepted(r, e string) { h.excepted = append(h.excepted, r+": "+e) }
func (h *heard) Failed(err error)     { h.failed = append(h.failed, err.Error()) }

func TestFailuresAndExceptions(t *testing.T) {
	set := load(t, map[string]string{
		"p/fails.yaml":   "id: fails\ntitle: X\nseverity: low\ndetection: {kind: match, where: 'event.target[5].id == \"x\" || event.eventType == \"never\"'}\n",
		"p/titled.yaml":  "id: titled\ntitle: X\nseverity: low\ndetection: {kind: match}\nalert:\n  title: it is ${1 / int(event.published.getMilliseconds())} ${event.actor.alternateId}\n",
		"p/keyless.yaml": "id: keyless\ntitle: X\nseverity: low\ndetection: {kind: match}\nalert: {dedup: {key: ['event.target[5].id']}}\n",
		"p/spared.yaml":  "id: spared\ntitle: X\nseverity: low\ndetection: {kind: match}\nexceptions: [{name: bot, when: event.actor.id.startsWith(\"00uA\"), reason: known}]\n",
	})
	h := &heard{}
	ds := engine.NewMatcher(set, engine.WithObserver(h)).Match(view(t, login("u1")), engine.Place{})
	if len(ds) != 1 || ds[0].Title != "it is (error) alice@example.com" {
		t.Errorf("%v", ds)
	}
	if got := strings.Join(h.excepted, "; "); got != "spared: bot" {
		t.Error(got)
	}
	if len(h.failed) != 3 || !strings.HasPrefix(h.failed[0], "rule fails: where: ") || !strings.HasPrefix(h.failed[1], "rule keyless: dedup.key: ") || !strings.HasPrefix(h.failed[2], "rule titled: title: ") {
		t.Error(h.failed)
	}
}

func TestOrgsHaveRulesOfTheirOwn(t *testing.T) {
	set := load(t, map[string]string{
		"p/login.yaml":      loginRule,
		"overlays/org.yaml": "- {rules: [login], orgs: [00oQUIET], mode: disabled}\n- {rules: [login], orgs: [00oLOUD], severity: critical, labels: {team: soc}}\n",
	})
	m := engine.NewMatcher(set)
	for org, want := range map[string]int32{"00oORG": 2, "00oQUIET": 0, "00oLOUD": 5} {
		log := login("u1")
		log.Derived.Org = org
		ds := m.Match(view(t, log), engine.Place{})
		var got int32
		if len(ds) > 0 {
			got = ds[0].Severity
		}
		if got != want {
			t.Errorf("%s: severity %d, want %d", org, got, want)
		}
	}
}

// TestFits makes detections of the largest events there can be.
func TestFits(t *testing.T) {
	set := load(t, map[string]string{"p/login.yaml": loginRule + "description: |\n  " + strings.Repeat("x", 200<<10) + "\nalert:\n  title: ${event.actor.displayName}\n  context: {who: event.actor.displayName, targets: event.target}\n"})
	log := login("u1")
	log.JSON = []byte(`"` + strings.Repeat("j", 2<<20) + `"`)
	log.Actor.DisplayName = strings.Repeat("ü", 1<<20)
	for i := range 20_000 {
		log.Target = append(log.Target, record.Target{ID: fmt.Sprintf("00u%d", i), Type: "User", AlternateID: fmt.Sprintf("%s%d@example.com", strings.Repeat("n", 900), i)})
	}
	d := engine.NewMatcher(set).Match(view(t, log), engine.Place{})[0]
	b, err := d.AppendAvro(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 1<<20-1024 || !d.EvidenceTruncated || len(d.Evidence[0].JSON) > 0 || len(d.Users) == 0 {
		t.Errorf("%d bytes, evidence truncated %v, %d users", len(b), d.EvidenceTruncated, len(d.Users))
	}
	if n := len([]rune(d.Title)); n != 256 {
		t.Errorf("a title of %d characters", n)
	}
	if len(d.Context["who"]) > 4096 || len(d.Context["targets"]) > 4096 {
		t.Errorf("context of %d and %d bytes", len(d.Context["who"]), len(d.Context["targets"]))
	}
}
