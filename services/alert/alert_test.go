package alert

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/services/alert/sink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a broker with an alert service on it that can be stopped and started.
type rig struct {
	t      testing.TB
	b      *bustest.Broker
	sender *bus.Sender
	cfg    Config
	out    io.Writer
	n      int
}

func newRig(t testing.TB, receivers ...Receiver) *rig {
	t.Helper()
	b := bustest.Start(t, topics.Detections, topics.Detections.DLQ(), topics.Alerts, topics.AlertCommands, topics.AlertCommands.DLQ(),
		topics.AlertStateState, topics.AlertStateRedrive, topics.SourceStatus)
	return &rig{t: t, b: b, sender: b.Bus(t, "sender").Sender(), cfg: Config{Receivers: receivers}, out: io.Discard}
}

func (r *rig) start() (stop func()) {
	r.t.Helper()
	r.n++
	made := r.b.Bus(r.t, "one")
	s, err := New(r.cfg, Deps{Log: bustest.Logger(), Bus: made, Out: r.out})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Error("run:", err)
		}
		made.Close()
	}
	r.t.Cleanup(stop)
	return stop
}

var testTime = time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)

func detection(fingerprint, id string, change ...func(*record.Detection)) *record.Detection {
	published := testTime
	d := &record.Detection{
		ID: id, Update: 1, Revision: 1, Kind: "match", RuleID: "api-token-created", RuleTitle: "API token created", Title: "alice@example.com created an API token",
		Severity: 3, Mode: "alert", Org: "00o1", Lane: "live", Fingerprint: fingerprint, DedupPeriodMS: time.Hour.Milliseconds(), DedupKey: []string{"00u1"},
		FirstTime: testTime, LastTime: testTime, Published: &published, EventCount: 1, Users: []string{"alice@example.com"}, Addresses: []string{"198.51.100.7"},
	}
	for _, c := range change {
		c(d)
	}
	return d
}

func (r *rig) send(ds ...*record.Detection) {
	r.t.Helper()
	for _, d := range ds {
		if err := r.sender.Send(r.t.Context(), topics.Detections, d.Fingerprint, d); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) command(c *record.AlertCommand) {
	r.t.Helper()
	if err := r.sender.Send(r.t.Context(), topics.AlertCommands, c.AlertID, c); err != nil {
		r.t.Fatal(err)
	}
}

// alerts gives the last state of each alert.
func (r *rig) alerts() map[string]*record.Alert {
	r.t.Helper()
	serde := r.b.Serde()
	out := map[string]*record.Alert{}
	for _, m := range r.b.Read(r.t, topics.Alerts) {
		a := new(record.Alert)
		if err := serde.Decode(r.t.Context(), m.Value, a); err != nil {
			r.t.Fatal(err)
		}
		if string(m.Key) != a.ID {
			r.t.Errorf("key %s, id %s", m.Key, a.ID)
		}
		out[a.ID] = a
	}
	return out
}

// until waits for an alert to be as wanted.
func (r *rig) until(id string, is func(*record.Alert) bool) *record.Alert {
	r.t.Helper()
	var a *record.Alert
	bustest.Until(r.t, 20*time.Second, func() error {
		if a = r.alerts()[id]; a == nil || !is(a) {
			return fmt.Errorf("alert %s is %+v", id, a)
		}
		return nil
	})
	return a
}

func (r *rig) webhook(h *hooked) Receiver {
	return Receiver{Name: "siem", Sink: "webhook", With: map[string]any{
		"url": h.URL, "secret_files": []string{secretFile(r.t, 1)}, "allow_loopback": true, "timeout": "5s",
	}}
}

type posted struct {
	Type string
	Data sink.Notification
}

func posts(t testing.TB, h *hooked) []posted {
	t.Helper()
	var out []posted
	for _, b := range h.arrived() {
		var p posted
		if err := json.Unmarshal([]byte(b), &p); err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func types(ps []posted) string {
	var l []string
	for _, p := range ps {
		l = append(l, strings.TrimPrefix(p.Type, "alert."))
	}
	return strings.Join(l, " ")
}

func delivered(a *record.Alert) bool {
	return len(a.Deliveries) > 0 && !slices.ContainsFunc(a.Deliveries, func(d record.AlertDelivery) bool { return d.State != "delivered" })
}

func TestDetectionBecomesAlert(t *testing.T) {
	h := newHooked(t)
	s := &screen{}
	r := newRig(t)
	r.out = s
	r.cfg.Receivers = []Receiver{{Name: "terminal", Sink: "terminal"}, r.webhook(h)}
	if err := r.sender.Send(t.Context(), topics.SourceStatus, "src/poll", &record.SourceStatus{SourceID: "src", Part: "poll", Org: "00o1", TestOrg: true, State: "running", HeartbeatAt: testTime}); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.send(detection("f1", "d1"))
	a := r.until("f1.1", delivered)
	if a.Status != "open" || a.Severity != 3 || a.Title != "alice@example.com created an API token" || a.DetectionCount != 1 || a.EventCount != 1 || !a.TestOrg ||
		a.Number != 1 || a.Org != "00o1" || !slices.Equal(a.Users, []string{"alice@example.com"}) || a.Detections[0].ID != "d1" {
		t.Errorf("%+v", a)
	}
	ps := posts(t, h)
	if len(ps) != 1 || ps[0].Type != sink.Opened || ps[0].Data.Alert.ID != "f1.1" || !ps[0].Data.Alert.TestOrg || ps[0].Data.Alert.Detection != "d1" {
		t.Errorf("%+v", ps)
	}
	if id := h.headers()[0].Get("Webhook-Id"); id != "f1.1.1" || ps[0].Data.Key != id {
		t.Errorf("webhook-id %s", id)
	}
	if got := strings.Join(s.arrived(), ""); !strings.Contains(got, "MEDIUM") || !strings.Contains(got, "(test org)") || !strings.Contains(got, "by poller") {
		t.Errorf("terminal: %s", got)
	}
}

func TestGrouping(t *testing.T) {
	h := newHooked(t)
	r := newRig(t)
	r.cfg.Receivers = []Receiver{r.webhook(h)}
	r.start()
	at := func(d time.Duration) func(*record.Detection) {
		return func(x *record.Detection) { x.FirstTime, x.LastTime = testTime.Add(d), testTime.Add(d) }
	}
	severity := func(n int32) func(*record.Detection) { return func(x *record.Detection) { x.Severity = n } }
	update := func(n int64) func(*record.Detection) { return func(x *record.Detection) { x.Update = n } }
	withdrawn := func(x *record.Detection) { x.Withdrawn = true }

	r.send(
		detection("f1", "d1"),
		detection("f1", "d1"),                                                  // the same update again
		detection("f1", "d2", at(50*time.Minute)),                              // joins
		detection("f1", "d3", at(110*time.Minute), severity(4)),                // joins: an hour after the last; worse
		detection("f1", "d4", at(171*time.Minute)),                             // too late: a new alert
		detection("f2", "x1", func(d *record.Detection) { d.Mode = "signal" }), // tells nobody
		detection("f2", "x2", func(d *record.Detection) { d.Mode = "shadow" }),
		detection("f2", "x3", func(d *record.Detection) { d.Lane = "run1" }),
		detection("f2", "x4", withdrawn),
		detection("f3", "h1", func(d *record.Detection) { d.Kind, d.RuleID, d.Org = "source_health", "unauthorized", "00o1" }),
		detection("f4", "w1"), detection("f4", "w1", update(2), withdrawn),
	)
	first := r.until("f1.1", func(a *record.Alert) bool { return a.DetectionCount == 3 && delivered(a) })
	if first.Severity != 4 || first.EventCount != 3 || !first.LastTime.Equal(testTime.Add(110*time.Minute)) || !first.FirstTime.Equal(testTime) || len(first.Detections) != 3 {
		t.Errorf("%+v", first)
	}
	r.until("f1.2", delivered)
	r.until("f3.1", delivered)
	gone := r.until("f4.1", func(a *record.Alert) bool { return a.Status == "closed" && delivered(a) })
	if gone.CloseReason != "withdrawn" || gone.ClosedBy != "alert" || gone.DetectionCount != 0 {
		t.Errorf("%+v", gone)
	}
	if all := r.alerts(); len(all) != 4 {
		t.Errorf("%d alerts", len(all))
	}

	// Back again: the same detection leads to the same alert, open again.
	r.send(detection("f4", "w1", update(3)))
	r.until("f4.1", func(a *record.Alert) bool {
		return a.Status == "open" && a.Reopened == 1 && a.DetectionCount == 1 && delivered(a)
	})

	byAlert := map[string][]posted{}
	for _, p := range posts(t, h) {
		byAlert[p.Data.Alert.ID] = append(byAlert[p.Data.Alert.ID], p)
	}
	for id, want := range map[string]string{"f1.1": "opened raised", "f1.2": "opened", "f3.1": "opened", "f4.1": "opened closed reopened"} {
		if got := types(byAlert[id]); got != want {
			t.Errorf("%s was told %q, want %q", id, got, want)
		}
	}
	if !byAlert["f3.1"][0].Data.Alert.Health {
		t.Error("a finding about oktawatch itself does not say so")
	}
}

func TestCommands(t *testing.T) {
	h := newHooked(t)
	r := newRig(t)
	r.cfg.Receivers = []Receiver{r.webhook(h)}
	r.start()
	r.send(detection("f1", "d1"))
	r.until("f1.1", delivered)
	at := testTime.Add(time.Hour)
	send := func(command string, change ...func(*record.AlertCommand)) {
		c := &record.AlertCommand{ID: command, AlertID: "f1.1", Command: command, By: "bob", At: at}
		for _, f := range change {
			f(c)
		}
		r.command(c)
	}
	send("acknowledge")
	a := r.until("f1.1", func(a *record.Alert) bool { return a.Status == "acknowledged" })
	if a.AcknowledgedBy != "bob" || !a.AcknowledgedAt.Equal(at) {
		t.Errorf("%+v", a)
	}
	send("assign", func(c *record.AlertCommand) { c.Assignee = "carol" })
	r.until("f1.1", func(a *record.Alert) bool { return a.Assignee == "carol" })
	send("close", func(c *record.AlertCommand) { c.Reason, c.Comment = "false_positive", "a test" })
	a = r.until("f1.1", func(a *record.Alert) bool { return a.Status == "closed" && delivered(a) })
	if a.ClosedBy != "bob" || a.CloseReason != "false_positive" || a.CloseComment != "a test" || !a.ClosedAt.Equal(at) {
		t.Errorf("%+v", a)
	}

	// A later update of its detection goes to the closed alert; it opens it only when the severity rises.
	r.send(detection("f1", "d1", func(d *record.Detection) { d.Update, d.EventCount = 2, 7 }))
	if a = r.until("f1.1", func(a *record.Alert) bool { return a.EventCount == 7 }); a.Status != "closed" {
		t.Errorf("an update without more severity opened it: %+v", a)
	}
	r.send(detection("f1", "d1", func(d *record.Detection) { d.Update, d.EventCount, d.Severity = 3, 7, 5 }))
	if a = r.until("f1.1", func(a *record.Alert) bool { return a.Status == "open" && delivered(a) }); a.Reopened != 1 || a.ClosedAt != nil || a.CloseReason != "" {
		t.Errorf("%+v", a)
	}
	// A new detection after a close is a new alert.
	send("close", func(c *record.AlertCommand) { c.ID = "close2" })
	r.until("f1.1", func(a *record.Alert) bool { return a.Status == "closed" })
	r.send(detection("f1", "d2"))
	r.until("f1.2", delivered)
	// What leads nowhere is a dead letter, and the stream goes on.
	r.command(&record.AlertCommand{ID: "x", AlertID: "nobody.1", Command: "close", At: at})
	r.command(&record.AlertCommand{ID: "y", AlertID: "f1.2", Command: "explode", At: at})
	bustest.Until(t, 20*time.Second, func() error {
		if n := len(r.b.Read(t, topics.AlertCommands.DLQ())); n != 2 {
			return fmt.Errorf("%d dead letters", n)
		}
		return nil
	})
	if got := types(posts(t, h)); got != "opened closed reopened closed opened" {
		t.Errorf("told %q", got)
	}
}

// A receiver that is down gets everything when it is up again, in order, under the keys of the first tries; restarts in
// between lose nothing and repeat nothing that was acknowledged.
func TestOutboxSurvivesRestarts(t *testing.T) {
	h := newHooked(t)
	r := newRig(t)
	r.cfg.Receivers = []Receiver{r.webhook(h)}
	h.answers(func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) })
	const n = 8
	stop := r.start()
	for i := range n {
		r.send(detection(fmt.Sprintf("f%d", i), "d"+fmt.Sprint(i)))
	}
	for i := range n {
		r.until(fmt.Sprintf("f%d.1", i), func(a *record.Alert) bool { return len(a.Deliveries) == 1 && a.Deliveries[0].Attempts == 1 })
	}
	stop()
	tried := map[string]bool{}
	for _, head := range h.headers() {
		tried[head.Get("Webhook-Id")] = true
	}
	h.answers(nil)
	stop = r.start()
	for i := range n {
		a := r.until(fmt.Sprintf("f%d.1", i), delivered)
		if d := a.Deliveries[0]; !tried[d.Key] || d.Attempts != 2 {
			t.Errorf("delivered under key %s in try %d", d.Key, d.Attempts)
		}
	}
	stop()
	r.start()
	r.send(detection("last", "last"))
	r.until("last.1", delivered)
	ids := map[string]int{}
	for _, p := range posts(t, h) {
		ids[p.Data.Key]++
	}
	if len(ids) != n+1 {
		t.Errorf("%d different notifications, want %d", len(ids), n+1)
	}
	for id, times := range ids {
		if times != 1 {
			t.Errorf("%s was delivered %d times", id, times)
		}
	}
}

func TestGone(t *testing.T) {
	h := newHooked(t)
	r := newRig(t)
	r.cfg.Receivers = []Receiver{r.webhook(h), {Name: "terminal", Sink: "terminal"}}
	h.answers(func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusGone) })
	stop := r.start()
	state := func(a *record.Alert) string {
		var l []string
		for _, d := range a.Deliveries {
			l = append(l, d.Receiver+" "+d.State)
		}
		slices.Sort(l)
		return strings.Join(l, ", ")
	}
	r.send(detection("f1", "d1"))
	r.until("f1.1", func(a *record.Alert) bool { return state(a) == "siem failed, terminal delivered" })
	r.send(detection("f1", "d2", func(d *record.Detection) { d.Severity = 5 }))
	r.until("f1.1", func(a *record.Alert) bool {
		return a.DetectionCount == 2 && delivered(&record.Alert{Deliveries: a.Deliveries[1:]})
	})
	stop()
	r.start()
	r.send(detection("f1", "d3", func(d *record.Detection) { d.FirstTime = testTime.Add(9 * time.Hour) }))
	r.until("f1.2", func(a *record.Alert) bool { return state(a) == "terminal delivered" })
	if n := len(h.headers()); n != 1 {
		t.Errorf("%d posts to a receiver that is gone", n)
	}
	// It is told to the others, as an alert of its own.
	for _, a := range r.alerts() {
		if slices.Contains(a.RuleIDs, findGone.Name) && a.Title == "A receiver wants nothing any more: siem" {
			return
		}
	}
	t.Error("no alert says that the receiver is gone")
}
