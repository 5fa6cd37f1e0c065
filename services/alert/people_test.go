package alert

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/record"
)

func TestLooksLikeAccount(t *testing.T) {
	for s, want := range map[string]bool{
		"alice@example.com": true, "a.b+c@sub.example.co.uk": true, `CORP\alice`: true, "alice": true, "svc-backup": true, "alice.smith": true,
		"Summer2024": false, "hunter2": false, "P@ssw0rd": false, "correct horse": false, "": false, "Tr0ub4dor&3": false, "a@b": false, "ALICE": false,
		"alice@example.com ": false, strings.Repeat("a", 33): false,
	} {
		if got := looksLikeAccount(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestNotificationsMaskWhatIsNoAccount(t *testing.T) {
	d := detection("f1", "d1", func(d *record.Detection) {
		d.Users = []string{"alice@example.com", "Summer2024!", "Summer2024!more"}
		d.DedupKey = []string{"Summer2024!", "198.51.100.7", "00uALICE"}
		d.Title = "sign-in of Summer2024! failed, then of Summer2024!more and alice@example.com"
		d.Context = map[string]string{"names": `["Summer2024!","x"]`}
		d.Runbook = "Ask."
	})
	s := sketch(t)
	task := newTask(s, 0)
	task.detection(d)
	a := task.dirty["f1.1"]
	n := forPeople(a, d, false)
	if !slices.Equal(n.Users, []string{"alice@example.com", "Su***", "Su***"}) || !slices.Equal(n.DedupKey, []string{"Su***", "198.51.100.7", "00uALICE"}) {
		t.Errorf("users %v, dedup key %v", n.Users, n.DedupKey)
	}
	if n.Title != "sign-in of Su*** failed, then of Su*** and alice@example.com" || n.Context["names"] != `["Su***","x"]` {
		t.Errorf("title %q, context %v", n.Title, n.Context)
	}
	if a.Alert.Users[1] != "Summer2024!" {
		t.Error("the alert itself was masked: it is what an analyst works with")
	}
}

func TestFindingSaysItIsAboutATestOrg(t *testing.T) {
	task := newTask(sketch(t), 0) // knows no source yet
	for fingerprint, labels := range map[string]map[string]string{"f1": {"test_org": "true"}, "f2": nil} {
		task.detection(detection(fingerprint, "d-"+fingerprint, func(d *record.Detection) { d.Kind, d.Labels = "source_health", labels }))
	}
	if !task.isTest(task.dirty["f1.1"]) || task.isTest(task.dirty["f2.1"]) {
		t.Error("test orgs are confused")
	}
}

func TestLongListsAreCut(t *testing.T) {
	d := detection("f1", "d1", func(d *record.Detection) {
		d.Addresses = make([]string, 0, 1500)
		for i := range 1500 {
			d.Addresses = append(d.Addresses, "a"+strings.Repeat("x", i%7)+string(rune('a'+i%26))+time.Duration(i).String())
		}
		d.Runbook = strings.Repeat("é", 10_000)
	})
	task := newTask(sketch(t), 0)
	task.detection(d)
	a := task.dirty["f1.1"]
	n := forPeople(a, d, false)
	if len(a.Alert.Addresses) != maxSet || len(n.Addresses) != shownItems || len(n.Runbook) > shownText+4 {
		t.Errorf("%d addresses kept, %d shown, runbook of %d bytes", len(a.Alert.Addresses), len(n.Addresses), len(n.Runbook))
	}
}

// An alert that thousands of detections joined still fits its topic.
func TestHugeAlertFits(t *testing.T) {
	task := newTask(sketch(t), 0)
	p := &page{}
	for i := range 3000 {
		task.detection(detection("f1", time.Duration(i).String(), func(d *record.Detection) {
			d.Title = strings.Repeat("t", 256)
			d.Users = []string{strings.Repeat("u", 300) + time.Duration(i).String()}
			d.Sessions = []string{strings.Repeat("s", 300) + time.Duration(i).String()}
		}))
	}
	if err := task.flush(p); err != nil {
		t.Fatal(err)
	}
	a := p.alerts[0]
	b, err := a.AppendAvro(nil)
	if err != nil || len(b) > maxAlertBytes {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if a.DetectionCount != 3000 || a.EventCount != 3000 || len(a.Detections) < 100 || a.Detections[len(a.Detections)-1].ID != time.Duration(2999).String() {
		t.Errorf("%d detections counted, %d shown", a.DetectionCount, len(a.Detections))
	}
}

func TestConfig(t *testing.T) {
	secret := secretFile(t, 1)
	for name, tc := range map[string]struct {
		cfg  Config
		want string // in the error; empty: none
	}{
		"zero is a terminal": {Config{}, ""},
		"two of a name":      {Config{Receivers: []Receiver{{Name: "a", Sink: "terminal"}, {Name: "a", Sink: "terminal"}}}, "twice"},
		"no name":            {Config{Receivers: []Receiver{{Sink: "terminal"}}}, "name"},
		"unknown sink":       {Config{Receivers: []Receiver{{Name: "a", Sink: "pager"}}}, "terminal, webhook"},
		"unknown severity":   {Config{Receivers: []Receiver{{Name: "a", Sink: "terminal", MinSeverity: "huge"}}}, "info, low, medium, high, critical"},
		"unknown option":     {Config{Receivers: []Receiver{{Name: "a", Sink: "terminal", With: map[string]any{"colour": "x"}}}}, `unknown field "colour"`},
		"option of a type":   {Config{Receivers: []Receiver{{Name: "a", Sink: "terminal", With: map[string]any{"format": 3}}}}, "with.format"},
		"webhook":            {Config{Receivers: []Receiver{{Name: "a", Sink: "webhook", With: map[string]any{"url": "https://a.example/x", "secret_files": []any{secret}}}}}, ""},
		"forget too soon":    {Config{ForgetAfter: time.Minute}, "forget_after"},
		"no workers":         {Config{Workers: -1}, "workers"},
		"few pending":        {Config{MaxPending: 5}, "max_pending"},
	} {
		_, err := New(tc.cfg, Deps{Bus: new(bus.Bus)})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestVia(t *testing.T) {
	s := sketch(t)
	s.noteSource("src1/poll", &record.SourceStatus{Part: "poll", Org: "polled"})
	s.noteSource("src1/hook.a", &record.SourceStatus{Part: "hook.a", Org: "polled", TestOrg: true})
	s.noteSource("src2/hook.a", &record.SourceStatus{Part: "hook.a", Org: "hooked"})
	for name, tc := range map[string]struct {
		d    record.Detection
		want string
	}{
		"partial copy":           {record.Detection{Org: "polled", Partial: true}, "hook"},
		"complete copy, polled":  {record.Detection{Org: "polled"}, "poller"},
		"complete copy, hook":    {record.Detection{Org: "hooked"}, "hook"},
		"unknown org":            {record.Detection{Org: "other"}, ""},
		"backfill":               {record.Detection{Org: "polled", Backfill: true}, "backfill"},
		"about oktawatch itself": {record.Detection{Org: "polled", Kind: "source_health"}, ""},
	} {
		if got := s.via(&tc.d); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	if !s.isTest("polled") || s.isTest("hooked") {
		t.Error("test orgs are confused")
	}
	s.noteSource("src1/hook.a", nil)
	if s.isTest("polled") {
		t.Error("a source that is gone still counts")
	}
}

func TestOtherLanes(t *testing.T) {
	s := sketch(t)
	s.cfg.Backfill = true
	task := newTask(s, 0)
	lane := func(l string) func(*record.Detection) { return func(d *record.Detection) { d.Lane = l } }
	for _, step := range []struct {
		d    *record.Detection
		want string
	}{
		{detection("f1", "d1"), "opened"},
		{detection("f1", "d1", lane("run1")), "known_from_live"},
		{detection("f1", "d2", lane("run1")), "opened"}, // an alert of its own lane
		{detection("f1", "d3", lane("run1")), "joined"},
		{detection("f1", "d4"), "joined"},
	} {
		if got := task.detection(step.d); got != step.want {
			t.Errorf("%s of %s: %s, want %s", step.d.ID, step.d.Lane, got, step.want)
		}
	}
	s.cfg.Backfill = false
	if got := task.detection(detection("f9", "d9", lane("run1"))); got != "other_lane" {
		t.Error(got)
	}
	if got := task.detection(detection("f9", "d9", func(d *record.Detection) { d.Backfill = true })); got != "backfill" {
		t.Error(got)
	}
}

func TestMinSeverity(t *testing.T) {
	s := sketch(t, &fakeSink{}, &fakeSink{})
	s.receivers[1].least = 4
	task := newTask(s, 0)
	told := func() (n [2]int) {
		for _, r := range task.outbox.All() {
			n[r.Receiver[1]-'0']++
		}
		return n
	}
	change := func(update int64, severity int32) *record.Detection {
		return detection("f1", "d1", func(d *record.Detection) { d.Update, d.Severity = update, severity })
	}
	task.detection(change(1, 3))
	if got := told(); got != [2]int{1, 0} {
		t.Errorf("medium: %v", got)
	}
	task.detection(change(2, 4))
	if got := told(); got != [2]int{2, 1} {
		t.Errorf("high: %v", got)
	}
	task.detection(change(3, 2))
	task.detection(detection("f1", "d1", func(d *record.Detection) { d.Update, d.Severity, d.Withdrawn = 4, 2, true }))
	if got := told(); got != [2]int{3, 2} {
		t.Errorf("closed: who was told of the alert is told of its end: %v", got)
	}
}
