package alert

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/services/alert/sink"
)

const (
	statusOpen         = "open"
	statusAcknowledged = "acknowledged"
	statusClosed       = "closed"

	liveLane   = "live"
	modeAlert  = "alert"
	modeShadow = "shadow"

	byUs            = "alert"
	reasonWithdrawn = "withdrawn"
	reasonStale     = "stale"

	maxDetections = 1000 // of an alert that its record shows
	maxSet        = 1000 // of users, addresses, … of an alert
	maxAlertBytes = 900 << 10
)

// alertState is an alert as the task keeps it.
type alertState struct {
	Alert record.Alert `json:"alert"`
	Sent  int64        `json:"sent"` // notifications so far: the last part of their keys
	Via   string       `json:"via,omitempty"`
	Pub   *time.Time   `json:"published,omitempty"`
}

// printState is what is kept of a fingerprint: the number of its last alert is never used again.
type printState struct {
	Number int64 `json:"n"`
	At     int64 `json:"at"` // seconds, of the last change
}

// held is a detection and the alert it went to.
type held struct {
	Alert     string `json:"a"`
	Update    int64  `json:"u"`
	Events    int64  `json:"e"`
	Severity  int32  `json:"s"`
	Withdrawn bool   `json:"w,omitempty"`
	At        int64  `json:"at"` // seconds, of its last update
}

// heldKey stands for (lane, detection id).
type heldKey [16]byte

func heldOf(lane, id string) heldKey {
	sum := sha256.Sum256([]byte(lane + "\x00" + id))
	return heldKey(sum[:16])
}

func hashText(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// read decodes a detection and joins it to its alert.
func (t *task) read(ctx context.Context, m bus.Message, out writer) (string, error) {
	d, err := bus.Decode[record.Detection](ctx, t.s.bus, m)
	if err != nil {
		if !errors.Is(err, record.ErrUnreadable) {
			return "", err
		}
		out.DeadLetter(m, "decode", err)
		return "unreadable", nil
	}
	if d.Fingerprint == "" || d.ID == "" {
		out.DeadLetter(m, "no_identity", errors.New("a detection without id or fingerprint"))
		return "unreadable", nil
	}
	return t.detection(d), nil
}

// detection joins a detection to its alert, if it is for people.
func (t *task) detection(d *record.Detection) string {
	if d.Lane == "" {
		d.Lane = liveLane
	}
	if d.Lane != liveLane {
		if !t.s.cfg.Backfill {
			return "other_lane"
		}
		if _, ok := t.held.Get(heldOf(liveLane, d.ID)); ok {
			return "known_from_live"
		}
	}
	k := heldOf(d.Lane, d.ID)
	known, ok := t.held.Get(k)
	switch {
	case ok && d.Update <= known.Update:
		return "repeated"
	case ok:
		return t.update(k, known, d)
	case d.Backfill && !t.s.cfg.Backfill:
		return "backfill"
	case d.Mode != modeAlert && d.Mode != "" && (!finding.IsHealth(d.Kind) || d.Mode == modeShadow):
		return "not_for_people"
	case d.Withdrawn:
		return "withdrawn_unseen"
	}
	return t.join(k, d)
}

// join takes a detection at its first update: into the open alert of its fingerprint, or into a new one.
func (t *task) join(k heldKey, d *record.Detection) string {
	now := t.s.now()
	fp, _ := t.prints.Get(d.Fingerprint)
	result := "joined"
	a := t.openFor(d, fp.Number)
	if a == nil {
		result = "opened"
		fp = printState{Number: fp.Number + 1, At: now.Unix()}
		t.putPrint(d.Fingerprint, fp)
		a = &alertState{Alert: record.Alert{
			ID: alertID(d.Fingerprint, fp.Number), Fingerprint: d.Fingerprint, Number: fp.Number, Org: d.Org, Lane: d.Lane, Status: statusOpen,
			OpenedAt: now, FirstTime: d.FirstTime, LastTime: d.LastTime, Backfill: d.Backfill,
		}}
	}
	before := severityOf(a)
	t.put(k, held{Alert: a.Alert.ID, Update: d.Update, Events: d.EventCount, Severity: d.Severity, At: now.Unix()})
	a.Alert.DetectionCount++
	a.Alert.EventCount += d.EventCount
	absorb(a, d)
	a.Via = t.s.via(d)
	t.touch(a)
	switch {
	case result == "opened":
		t.notify(a, sink.Opened, d)
	case a.Alert.Severity > before:
		t.notify(a, sink.Raised, d)
	}
	return result
}

// openFor finds the open alert a new detection joins: the latest whose last hit is at most the dedup period before the
// detection's first.
func (t *task) openFor(d *record.Detection, last int64) *alertState {
	period := time.Duration(d.DedupPeriodMS) * time.Millisecond
	for n := last; n > 0 && n > last-maxLook; n-- {
		a := t.edit(alertID(d.Fingerprint, n))
		if a == nil || a.Alert.Status == statusClosed || a.Alert.Lane != d.Lane {
			continue
		}
		if !d.FirstTime.After(a.Alert.LastTime.Add(period)) {
			return a
		}
	}
	return nil
}

const maxLook = 20 // alerts of a fingerprint that are looked at

func alertID(fingerprint string, n int64) string { return fmt.Sprintf("%s.%d", fingerprint, n) }

// update takes a later writing of a detection into the alert that has it, closed or not.
func (t *task) update(k heldKey, known held, d *record.Detection) string {
	a := t.edit(known.Alert)
	if a == nil {
		return "forgotten"
	}
	before := severityOf(a)
	now := held{Alert: known.Alert, Update: d.Update, Events: d.EventCount, Severity: d.Severity, Withdrawn: d.Withdrawn, At: t.s.now().Unix()}
	t.put(k, now)
	if !known.Withdrawn {
		a.Alert.DetectionCount--
		a.Alert.EventCount -= known.Events
	}
	if !d.Withdrawn {
		a.Alert.DetectionCount++
		a.Alert.EventCount += d.EventCount
	}
	absorb(a, d)
	a.Via = t.s.via(d)
	t.touch(a)
	switch {
	case a.Alert.DetectionCount == 0 && a.Alert.Status != statusClosed:
		t.close(a, t.s.now(), byUs, reasonWithdrawn, "")
		t.notify(a, sink.Closed, d)
		return "withdrawn"
	case d.Withdrawn:
		return "withdrawn"
	case a.Alert.Severity > before && a.Alert.Status == statusClosed:
		a.Alert.Status, a.Alert.ClosedAt, a.Alert.ClosedBy, a.Alert.CloseReason, a.Alert.CloseComment = statusOpen, nil, "", "", ""
		a.Alert.Reopened++
		t.notify(a, sink.Reopened, d)
		return "reopened"
	case a.Alert.Severity > before:
		t.notify(a, sink.Raised, d)
		return "raised"
	}
	return "updated"
}

// severityOf is what a change has to rise above: nothing, for an alert that is new or was closed because its detections
// were withdrawn.
func severityOf(a *alertState) int32 {
	if a.Alert.Status == statusClosed && a.Alert.ClosedBy == byUs && a.Alert.CloseReason == reasonWithdrawn {
		return 0
	}
	return a.Alert.Severity
}

// absorb takes what a detection tells into its alert. a is the caller's own copy; its lists are replaced, never changed.
func absorb(a *alertState, d *record.Detection) {
	r := &a.Alert
	one := record.AlertDetection{
		ID: d.ID, Lane: d.Lane, Update: d.Update, RuleID: d.RuleID, Title: d.Title, Severity: d.Severity, FirstTime: d.FirstTime, LastTime: d.LastTime,
		EventCount: d.EventCount, Final: d.Final, Withdrawn: d.Withdrawn,
	}
	list := slices.DeleteFunc(slices.Clone(r.Detections), func(x record.AlertDetection) bool { return x.ID == d.ID && x.Lane == d.Lane })
	r.Detections = append(list[max(0, len(list)+1-maxDetections):], one)

	if d.Withdrawn {
		recount(r)
		return
	}
	if !d.FirstTime.IsZero() && d.FirstTime.Before(r.FirstTime) {
		r.FirstTime = d.FirstTime
	}
	if d.LastTime.After(r.LastTime) {
		r.LastTime = d.LastTime
	}
	recount(r)
	if d.Severity >= r.Severity || r.DetectionCount == 1 {
		r.Description, r.Runbook, r.DedupKey = d.Description, d.Runbook, d.DedupKey
		r.Context = d.Context
	}
	r.RuleIDs = union(r.RuleIDs, d.RuleID)
	r.Packs = union(r.Packs, d.Pack)
	r.Techniques = union(r.Techniques, d.Techniques...)
	r.Tags = union(r.Tags, d.Tags...)
	r.Users = union(r.Users, d.Users...)
	r.Addresses = union(r.Addresses, d.Addresses...)
	r.Sessions = union(r.Sessions, d.Sessions...)
	r.Devices = union(r.Devices, d.Devices...)
	r.Apps = union(r.Apps, d.Apps...)
	if len(d.Labels) > 0 {
		labels := maps.Clone(r.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, d.Labels)
		r.Labels = labels
	}
	r.Backfill = r.Backfill && d.Backfill
	if d.Published != nil {
		a.Pub = d.Published
	}
}

// recount takes severity, title and times from the detections that are not withdrawn. Without one they stay as they were.
func recount(r *record.Alert) {
	var best *record.AlertDetection
	var first, last time.Time
	for i := range r.Detections {
		x := &r.Detections[i]
		if x.Withdrawn {
			continue
		}
		if best == nil || x.Severity > best.Severity || x.Severity == best.Severity && !x.LastTime.Before(best.LastTime) {
			best = x
		}
		if first.IsZero() || x.FirstTime.Before(first) {
			first = x.FirstTime
		}
		if x.LastTime.After(last) {
			last = x.LastTime
		}
	}
	if best == nil {
		return
	}
	r.Severity = min(max(best.Severity, 1), 5)
	r.Title = cmp.Or(best.Title, best.RuleID)
	if len(r.Detections) < maxDetections { // all of them are known
		r.FirstTime, r.LastTime = first, last
	}
}

// union adds what is not there yet, in order, up to maxSet.
func union(l []string, more ...string) []string {
	out := l
	for _, s := range more {
		if s != "" && len(out) < maxSet && !slices.Contains(out, s) {
			out = append(slices.Clip(out), s)
		}
	}
	return out
}

func (t *task) close(a *alertState, at time.Time, by, reason, comment string) {
	a.Alert.Status, a.Alert.ClosedAt, a.Alert.ClosedBy, a.Alert.CloseReason, a.Alert.CloseComment = statusClosed, &at, by, reason, comment
}

// command does what a person asks of an alert.
func (t *task) command(ctx context.Context, m bus.Message, out writer) (command, result string, err error) {
	c, err := bus.Decode[record.AlertCommand](ctx, t.s.bus, m)
	if err != nil {
		if !errors.Is(err, record.ErrUnreadable) {
			return "", "", err
		}
		out.DeadLetter(m, "decode", err)
		return "", "unreadable", nil
	}
	a := t.edit(c.AlertID)
	if a == nil {
		out.DeadLetter(m, "unknown_alert", fmt.Errorf("command %s for alert %q, which is not known (any more)", c.Command, c.AlertID))
		return c.Command, "unknown_alert", nil
	}
	at := c.At
	if at.IsZero() {
		at = t.s.now()
	}
	closed := a.Alert.Status == statusClosed
	switch c.Command {
	case "acknowledge":
		if a.Alert.Status != statusOpen {
			return c.Command, "nothing_to_do", nil
		}
		a.Alert.Status, a.Alert.AcknowledgedAt, a.Alert.AcknowledgedBy = statusAcknowledged, &at, c.By
	case "assign":
		if a.Alert.Assignee == c.Assignee {
			return c.Command, "nothing_to_do", nil
		}
		a.Alert.Assignee = c.Assignee
	case "close":
		if closed {
			return c.Command, "nothing_to_do", nil
		}
		t.close(a, at, c.By, c.Reason, c.Comment)
		t.touch(a)
		t.notify(a, sink.Closed, nil)
		return c.Command, "done", nil
	case "reopen":
		if !closed {
			return c.Command, "nothing_to_do", nil
		}
		a.Alert.Status, a.Alert.ClosedAt, a.Alert.ClosedBy, a.Alert.CloseReason, a.Alert.CloseComment = statusOpen, nil, "", "", ""
		a.Alert.Reopened++
		t.touch(a)
		t.notify(a, sink.Reopened, nil)
		return c.Command, "done", nil
	case "comment":
		return c.Command, "nothing_to_do", nil // kept in the audit topic by who sent it
	default:
		out.DeadLetter(m, "unknown_command", fmt.Errorf("command %q is none of acknowledge, assign, close, reopen, comment", c.Command))
		return "", "unknown_command", nil
	}
	t.touch(a)
	return c.Command, "done", nil
}

// write puts an alert's state on its topic. One that would not fit is shown with fewer detections, then shorter sets.
func (t *task) write(a *alertState, out writer) error {
	r := a.Alert
	r.UpdatedAt = t.s.now()
	r.TestOrg = t.isTest(a)
	for range 16 {
		b, err := r.AppendAvro(t.scratch[:0])
		if err != nil {
			return fmt.Errorf("write alert %s: %w", r.ID, err)
		}
		t.scratch = b
		if len(b) <= maxAlertBytes {
			break
		}
		if n := len(r.Detections); n > 8 {
			r.Detections = r.Detections[n/2:]
			continue
		}
		for _, l := range []*[]string{&r.Users, &r.Addresses, &r.Sessions, &r.Devices, &r.Apps, &r.Tags, &r.DedupKey} {
			*l = (*l)[:len(*l)/2]
		}
		r.Context = nil
	}
	if err := out.Put(topics.Alerts, r.ID, &r); err != nil {
		return fmt.Errorf("write alert %s: %w", r.ID, err)
	}
	return nil
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("alert: state that is no JSON: %v", err)) // our own structs: texts, numbers and times
	}
	return b
}
