package detect

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
)

func TestMain(m *testing.M) {
	if os.Getenv(childSeeds) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// rig is a broker with a detect on it.
type rig struct {
	t      testing.TB
	b      *bustest.Broker
	sender *bus.Sender
	s      *Service
}

func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	b := bustest.Start(t, topics.SystemLog, topics.SystemLog.DLQ(), topics.Detections, topics.DetectMatchRedrive,
		topics.Matches, topics.Matches.DLQ(), topics.DetectStateState, topics.DetectStateRedrive)
	r := &rig{t: t, b: b, sender: b.Bus(t, "sender").Sender()}
	made := b.Bus(t, "one")
	s, err := New(cfg, Deps{Log: bustest.Logger(), Bus: made, Pack: rules.FS, Metrics: metrics.NewSet()})
	if err != nil {
		t.Fatal(err)
	}
	r.s = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("run:", err)
		}
	})
	return r
}

func (r *rig) send(logs ...*record.SystemLog) {
	r.t.Helper()
	for _, log := range logs {
		if err := r.sender.Send(r.t.Context(), topics.SystemLog, log.Derived.Org+"/"+log.Actor.ID, log); err != nil {
			r.t.Fatal(err)
		}
	}
}

// detections waits until n were written and gives them ordered by rule and update.
func (r *rig) detections(n int) []*record.Detection {
	r.t.Helper()
	var got []bus.Message
	bustest.Until(r.t, 20*time.Second, func() error {
		if got = r.b.Read(r.t, topics.Detections); len(got) < n {
			return fmt.Errorf("%d detections, want %d", len(got), n)
		}
		return nil
	})
	out := make([]*record.Detection, 0, len(got))
	for _, m := range got {
		d := new(record.Detection)
		if err := r.b.Serde().Decode(r.t.Context(), m.Value, d); err != nil {
			r.t.Fatal(err)
		}
		if string(m.Key) != d.Fingerprint {
			r.t.Errorf("key %s, fingerprint %s", m.Key, d.Fingerprint)
		}
		out = append(out, d)
	}
	slices.SortStableFunc(out, func(a, b *record.Detection) int {
		return cmp.Or(cmp.Compare(a.RuleID, b.RuleID), cmp.Compare(a.Update, b.Update), cmp.Compare(a.ID, b.ID))
	})
	if len(out) != n {
		for _, d := range out {
			r.t.Logf("%s %s/%d", d.RuleID, d.ID, d.Update)
		}
		r.t.Fatalf("%d detections, want %d", len(out), n)
	}
	return out
}

var at = time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)

func event(t testing.TB, n int, eventType string) *record.SystemLog {
	t.Helper()
	ev := ruletest.Fixture(eventType)
	ev["uuid"] = fmt.Sprintf("00000000-0000-4000-8000-%012d", n)
	ev["published"] = at.Add(time.Duration(n) * time.Second).Format("2006-01-02T15:04:05.000Z")
	log, err := ruletest.Record(ev)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// packOf copies rules of the pack into a folder, to judge by them alone.
func packOf(t testing.TB, ids ...string) Config {
	t.Helper()
	dir, left := t.TempDir(), len(ids)
	err := fs.WalkDir(rules.FS, ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || !slices.Contains(ids, strings.TrimSuffix(path.Base(name), ".yaml")) {
			return err
		}
		text, err := fs.ReadFile(rules.FS, name)
		if err == nil {
			left--
			write(t, filepath.Join(dir, filepath.FromSlash(name)), string(text))
		}
		return err
	})
	if err != nil || left != 0 {
		t.Fatalf("%d of %d rules are not in the pack; %v", left, len(ids), err)
	}
	return Config{RulesDir: dir, Rules: Rules{Builtin: new(bool)}}
}

// twelve are the match rules that the pack began with.
var twelve = []string{
	"account-locked", "admin-role-granted-to-user", "api-token-created", "fastpass-phishing-declined", "mfa-all-factors-reset", "mfa-factor-disabled",
	"password-reset", "rate-limit-violation", "session-client-roaming-denied", "user-login", "user-reported-suspicious-activity", "user-suspended",
}

func TestTwelve(t *testing.T) {
	hits := map[string]string{
		"user.account.lock": "account-locked", "user.account.privilege.grant": "admin-role-granted-to-user",
		"system.api_token.create": "api-token-created", "user.mfa.factor.reset_all": "mfa-all-factors-reset",
		"user.mfa.factor.deactivate": "mfa-factor-disabled", "user.account.reset_password": "password-reset",
		"system.org.rate_limit.violation": "rate-limit-violation", "security.session.detect_client_roaming": "session-client-roaming-denied",
		"user.session.start": "user-login", "user.account.report_suspicious_activity_by_enduser": "user-reported-suspicious-activity",
		"user.lifecycle.suspend": "user-suspended",
	}
	r := newRig(t, packOf(t, twelve...))
	n := 0
	for eventType := range hits {
		n++
		r.send(event(t, n, eventType))
	}
	phish := event(t, n+1, "user.authentication.auth_via_mfa")
	phish.Outcome.Result, phish.Outcome.Reason = "FAILURE", "FastPass declined phishing attempt"
	r.send(phish, event(t, n+2, "user.authentication.auth_via_mfa"), event(t, n+3, "user.session.end"))
	got := map[string]bool{}
	for _, d := range r.detections(len(hits) + 1) {
		got[d.RuleID] = true
		if !d.Final || d.Update != 1 || d.Kind != "match" || d.Org != "eval" || d.Lane != "live" || d.EventCount != 1 ||
			len(d.Evidence) != 1 || len(d.Evidence[0].JSON) == 0 || d.Evidence[0].Topic != "okta.systemlog.v1" || d.Evidence[0].Offset < 0 {
			t.Errorf("%+v", d)
		}
		if mode := map[bool]string{true: "signal", false: "alert"}[d.RuleID == "user-login"]; d.Mode != mode {
			t.Errorf("%s is of mode %s", d.RuleID, d.Mode)
		}
	}
	if len(got) != 12 {
		t.Errorf("rules that found something: %v", got)
	}
	if err := r.s.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

const deviceRule = `id: unmanaged-device
title: Sign-in from an unmanaged device
severity: low
detection:
  kind: match
  where: event.eventType == "user.session.start" && has(event.device.id) && !event.device.managed
`

// TestCopies sends a hook's partial copy and the poller's complete one.
func TestCopies(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "site", "unmanaged-device.yaml"), deviceRule)
	r := newRig(t, Config{RulesDir: dir})
	partial, complete := event(t, 1, "user.session.start"), event(t, 1, "user.session.start")
	partial.Derived.Partial, complete.Derived.Copy = true, 2
	complete.Device = &record.Device{ID: "guo1", Name: "laptop"}
	r.send(partial)
	first := r.detections(1)[0]
	if first.RuleID != "user-login" || first.Update != 1 || first.Final || !first.Partial || !first.Unconfirmed || len(first.Devices) > 0 {
		t.Errorf("by the partial copy: %+v", first)
	}
	r.send(complete)
	ds := r.detections(3)
	device, login := ds[0], ds[2]
	if device.RuleID != "unmanaged-device" || device.Update != 2 || !device.Final {
		t.Errorf("by the rule that reads device: %+v", device)
	}
	if login.ID != first.ID || login.Update != 2 || !login.Final || login.Partial || login.Unconfirmed || !slices.Equal(login.Devices, []string{"guo1"}) {
		t.Errorf("by the complete copy: %+v", login)
	}
	// The same event, its complete copy alone: the same detections in the end.
	alone := event(t, 1, "user.session.start")
	alone.Device = complete.Device
	m := engine.NewMatcher(r.s.Rules())
	var v record.SystemLogView
	if err := v.Load(alone); err != nil {
		t.Fatal(err)
	}
	for i, d := range m.Match(&v, engine.Place{}) {
		want := []*record.Detection{device, login}[i]
		if d.ID != want.ID || d.Update != 1 || !d.Final || d.Title != want.Title || d.Fingerprint != want.Fingerprint || !slices.Equal(d.Devices, want.Devices) {
			t.Errorf("alone: %+v", d)
		}
	}
}

func TestBrokenRecordIsADeadLetter(t *testing.T) {
	r := newRig(t, Config{})
	r.b.Write(t, topics.SystemLog, "eval/x", "no record at all")
	r.send(event(t, 1, "user.session.start"))
	r.detections(1)
	bustest.Until(t, 10*time.Second, func() error {
		if n := len(r.b.Read(t, topics.SystemLog.DLQ())); n != 1 {
			return fmt.Errorf("%d dead letters, want 1", n)
		}
		return nil
	})
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "site", "session-ended.yaml")
	text := func(title string) string {
		return "id: session-ended\ntitle: X\nseverity: low\ndetection:\n  kind: match\n  where: event.eventType == \"user.session.end\"\nalert:\n  title: " + title + "\n"
	}
	builtin := false
	r := newRig(t, Config{RulesDir: dir, Rules: Rules{Builtin: &builtin}, Reload: 20 * time.Millisecond})
	loads := 1
	after := func(want string) {
		t.Helper()
		loads++
		bustest.Until(t, 10*time.Second, func() error {
			set := r.s.Rules()
			if set == nil {
				return fmt.Errorf("nothing loaded")
			}
			var got []string
			for _, c := range set.Rules {
				got = append(got, string(c.Mode)+":"+c.ID)
			}
			err := r.s.Ready(t.Context())
			if s := fmt.Sprintf("%v %v", got, err); !strings.Contains(s, want) {
				return fmt.Errorf("%s, want %s", s, want)
			}
			return nil
		})
	}
	after("[] <nil>")
	write(t, file, text("first"))
	after("[alert:session-ended] <nil>")
	r.send(event(t, 1, "user.session.end"))
	if d := r.detections(1)[0]; d.Title != "first" {
		t.Errorf("%+v", d)
	}
	write(t, file, strings.Replace(text("second"), "event.eventType", "event.eventTyp", 1))
	after(file + ":6:15: cel: where: there is no field eventTyp here: did you mean eventType?")
	r.send(event(t, 2, "user.session.end"))
	if d := r.detections(2)[1]; d.Title != "first" {
		t.Errorf("the last good version is not in force: %+v", d)
	}
	write(t, file, text("third"))
	after("[alert:session-ended] <nil>")
	r.send(event(t, 3, "user.session.end"))
	titles := map[string]int{}
	for _, d := range r.detections(3) {
		titles[d.Title]++
	}
	if titles["third"] != 1 {
		t.Errorf("%v", titles)
	}
	write(t, filepath.Join(dir, "overlays", "quiet.yaml"), "- rules: [session-*]\n  mode: shadow\n")
	after("[shadow:session-ended] <nil>")
	r.send(event(t, 4, "user.session.end"))
	shadows := 0
	for _, d := range r.detections(4) {
		if d.Mode == "shadow" {
			shadows++
		}
	}
	if shadows != 1 {
		t.Errorf("%d shadow detections", shadows)
	}
	write(t, filepath.Join(dir, "overlays", "quiet.yaml"), "- rules: [pack:site]\n  mode: disabled\n")
	after("[disabled:session-ended] <nil>")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	after("no rule is called pack:site")
	if err := os.RemoveAll(filepath.Join(dir, "overlays")); err != nil {
		t.Fatal(err)
	}
	after("[] <nil>")
}

func TestConfig(t *testing.T) {
	no := false
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"no rules at all": {Config{Rules: Rules{Builtin: &no}}, "rules_dir is empty"},
		"reload":          {Config{Reload: -time.Second}, "detect.reload"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(tc.cfg, Deps{Bus: new(bus.Bus), Pack: rules.FS}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Error(err)
			}
		})
	}
}
