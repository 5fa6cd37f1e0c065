package alert

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/services/alert/sink"
)

// Keys of the changelog: a kind, a slash, and what it is about. Values are JSON.
const (
	keyAlert  = "a/" // alert id: alertState
	keyPrint  = "f/" // fingerprint: printState
	keyHeld   = "d/" // hash of lane and detection id: held
	keyOutbox = "o/" // alert id/number/receiver: row
	keyGone   = "g/" // receiver: hash of the configuration that was gone
	keyTold   = "t/" // finding/receiver: UTC day it was last told
)

const (
	expireEvery = time.Minute
	expireMax   = 500             // things forgotten in one Tick
	printMemory = 400 * 24 * 3600 // seconds: longer than an alert's record is kept
)

// task handles the fingerprints of one partition.
type task struct {
	s         *Service
	partition int32
	label     string

	alerts bus.Overlay[string, *alertState]
	prints bus.Overlay[string, printState]
	held   bus.Overlay[heldKey, held]
	outbox bus.Overlay[string, *row]
	gone   bus.Overlay[string, string]
	told   bus.Overlay[string, string]

	// of the transaction under way
	dirty   map[string]*alertState
	touched []string            // alerts to write, in order
	state   map[string][]byte   // changelog; nil: ended
	changed map[string]struct{} // outbox rows written or ended
	settled []outcome           // taken from the inbox

	queue    *queue
	mail     inbox
	restored bool
	expireAt time.Time
	scratch  []byte
}

func newTask(s *Service, partition int32) *task {
	return &task{
		s: s, partition: partition, label: strconv.Itoa(int(partition)), dirty: map[string]*alertState{}, state: map[string][]byte{},
		changed: map[string]struct{}{}, queue: newQueue(),
	}
}

func (t *task) Restore(key, value []byte) error {
	kind, id := string(key[:min(2, len(key))]), string(key[min(2, len(key)):])
	var err error
	switch kind {
	case keyAlert:
		err = restore(&t.alerts, id, value)
	case keyPrint:
		err = restore(&t.prints, id, value)
	case keyHeld:
		var k heldKey
		if n, derr := hex.Decode(k[:], []byte(id)); derr != nil || n != len(k) {
			return fmt.Errorf("read alert state: key %q is of another form", key)
		}
		err = restore(&t.held, k, value)
	case keyOutbox:
		err = restore(&t.outbox, id, value)
	case keyGone:
		err = restore(&t.gone, id, value)
	case keyTold:
		err = restore(&t.told, id, value)
	default:
		return fmt.Errorf("read alert state: key %q is of another form; was it written by a later version?", key)
	}
	if err != nil {
		return fmt.Errorf("read alert state %q: %w", key, err)
	}
	return nil
}

func restore[K comparable, V any](o *bus.Overlay[K, V], k K, value []byte) error {
	if value == nil {
		o.Unload(k)
		return nil
	}
	var v V
	if err := json.Unmarshal(value, &v); err != nil {
		return err
	}
	o.Load(k, v)
	return nil
}

// requeue takes the outbox as the changelog left it: what was under way is tried again with the same key.
func (t *task) requeue() {
	if t.restored {
		return
	}
	t.restored = true
	for id, r := range t.outbox.All() {
		t.queue.add(id, r)
	}
	for _, r := range t.s.receivers {
		if t.isGone(r) {
			r.gone.Store(true)
			t.s.m.gone.With(r.name).Set(1)
		}
	}
}

func (t *task) begin(ctx context.Context) {
	t.requeue()
	t.mail.mu.Lock()
	t.mail.wake = func() { bus.Wake(ctx) }
	t.mail.mu.Unlock()
}

// edit gives an alert to change: the copy of this transaction. Nil: not known.
func (t *task) edit(id string) *alertState {
	if a := t.dirty[id]; a != nil {
		return a
	}
	a, ok := t.alerts.Get(id)
	if !ok {
		return nil
	}
	c := *a
	t.dirty[id] = &c
	return &c
}

// touch says that an alert was changed and is to be written.
func (t *task) touch(a *alertState) {
	id := a.Alert.ID
	t.dirty[id] = a
	if !slices.Contains(t.touched, id) {
		t.touched = append(t.touched, id)
	}
}

func (t *task) put(k heldKey, h held) {
	t.held.Put(k, h)
	t.state[keyHeld+hex.EncodeToString(k[:])] = marshal(h)
}

func (t *task) putPrint(fingerprint string, p printState) {
	t.prints.Put(fingerprint, p)
	t.state[keyPrint+fingerprint] = marshal(p)
}

func (t *task) putRow(id string, r *row) {
	t.outbox.Put(id, r)
	t.state[keyOutbox+id] = marshal(r)
	t.changed[id] = struct{}{}
}

func (t *task) endRow(id string) {
	t.outbox.Delete(id)
	t.state[keyOutbox+id] = nil
	t.changed[id] = struct{}{}
}

// isGone says whether a receiver wants nothing any more: what one task of this process has learned holds for all.
func (t *task) isGone(r *receiver) bool {
	if r.gone.Load() {
		return true
	}
	print, ok := t.gone.Get(r.name)
	return ok && print == r.print
}

// isTest says whether an alert is about a test org. A finding says so itself: it may come before the first status of its source.
func (t *task) isTest(a *alertState) bool {
	return a.Alert.Labels[finding.TestOrg] == "true" || t.s.isTest(a.Alert.Org)
}

// notify writes a row for each receiver that wants to know of a change.
func (t *task) notify(a *alertState, kind string, d *record.Detection) {
	t.s.m.changes.With(strings.TrimPrefix(kind, "alert.")).Inc()
	now := t.s.now()
	a.Sent++
	n := sink.Notification{
		Key: fmt.Sprintf("%s.%d", a.Alert.ID, a.Sent), Type: kind, At: now, Alert: forPeople(a, d, t.isTest(a)),
	}
	for _, r := range t.s.receivers {
		// Who was once told of an alert is told of its end too, less severe or not.
		told := slices.ContainsFunc(a.Alert.Deliveries, func(x record.AlertDelivery) bool { return x.Receiver == r.name })
		if t.isGone(r) || a.Alert.Severity < r.least && !told {
			continue
		}
		id := fmt.Sprintf("%s/%08d/%s", a.Alert.ID, a.Sent, r.name)
		t.putRow(id, &row{Note: n, Receiver: r.name, Alert: a.Alert.ID, Seq: a.Sent, Next: now, Created: now})
		setDelivery(a, record.AlertDelivery{Receiver: r.name, Sink: r.kind, Key: n.Key, State: "pending"})
	}
}

func setDelivery(a *alertState, d record.AlertDelivery) {
	list := slices.Clone(a.Alert.Deliveries)
	i := slices.IndexFunc(list, func(x record.AlertDelivery) bool { return x.Receiver == d.Receiver })
	if i < 0 {
		list = append(list, d)
	} else {
		list[i] = d
	}
	a.Alert.Deliveries = list
}

// writer is what the task needs of bus.Emit.
type writer interface {
	Put(t topics.Topic, key string, r record.Record, opts ...bus.PutOption) error
	State(key, value []byte)
	DeadLetter(m bus.Message, class string, err error)
}

func (t *task) Process(ctx context.Context, batch []bus.Message, out *bus.Emit) error {
	t.begin(ctx)
	for _, m := range batch {
		switch m.Topic.Name {
		case topics.AlertCommands.Name:
			command, result, err := t.command(ctx, m, out)
			if err != nil {
				return err
			}
			t.s.m.commands.With(command, result).Inc()
		default:
			result, err := t.read(ctx, m, out)
			if err != nil {
				return err
			}
			t.s.m.detections.With(result).Inc()
		}
	}
	if err := t.settleAll(out); err != nil {
		return err
	}
	return t.flush(out)
}

// Tick takes in what became of deliveries, forgets what is old and starts what is due.
func (t *task) Tick(ctx context.Context, now time.Time, out *bus.Emit) error {
	t.begin(ctx)
	return t.tick(now, out)
}

func (t *task) tick(now time.Time, out writer) error {
	if t.mail.due(now, t.queue.holdsUp) {
		if err := t.settleAll(out); err != nil {
			return err
		}
	}
	if now.After(t.expireAt) {
		t.expireAt = now.Add(expireEvery)
		t.expire(now)
		t.bound()
		t.s.m.open.With(t.label).Set(float64(t.alerts.Len()))
		t.s.m.pending.With(t.label).Set(float64(t.outbox.Len()))
	}
	if err := t.flush(out); err != nil {
		return err
	}
	t.start(now)
	return nil
}

// settleAll notes what became of deliveries.
func (t *task) settleAll(out writer) error {
	t.settled = append(t.settled, t.mail.take()...)
	for _, o := range t.settled {
		if err := t.settle(o, out); err != nil {
			return err
		}
	}
	return nil
}

// settle notes what became of one try.
func (t *task) settle(o outcome, out writer) error {
	r, ok := t.outbox.Get(o.row)
	if !ok {
		return nil
	}
	var told error
	rec := t.s.receiver(r.Receiver)
	attempts := r.Attempts
	if !errors.Is(o.err, errNoReceiver) {
		attempts++
	}
	d := record.AlertDelivery{Receiver: r.Receiver, Key: r.Note.Key, Attempts: int64(attempts), LastAttemptAt: &o.at}
	if rec != nil {
		d.Sink = rec.kind
	}
	result := "delivered"
	var failure *sink.Error
	switch {
	case o.err == nil:
		d.State, d.DeliveredAt = "delivered", &o.at
		t.endRow(o.row)
		if r.Note.Type == sink.Opened && r.Note.Alert.Published != nil && attempts == 1 {
			t.s.m.latency.With(r.Receiver).Observe(o.at.Sub(*r.Note.Alert.Published).Seconds())
		}
	case errors.Is(o.err, errNoReceiver):
		result = "given_up"
		d.State, d.LastError = "failed", o.err.Error()
		t.endRow(o.row)
	case errors.As(o.err, &failure) && failure.Gone:
		result = "gone"
		d.State, d.LastError = "failed", clip(o.err.Error(), maxErrorBytes)
		t.endRow(o.row)
		t.markGone(rec)
		told = t.tell(findGone, r, o, out)
	case attempts >= maxAttempts:
		result = "given_up"
		d.State, d.LastError = "failed", clip(o.err.Error(), maxErrorBytes)
		t.endRow(o.row)
		t.s.log.Error("notification given up", "receiver", r.Receiver, "alert", r.Alert, "key", r.Note.Key, "attempts", attempts, "error", o.err)
		told = t.tell(findGivenUp, r, o, out)
	default:
		result = "failed"
		var after time.Duration
		if failure != nil {
			after = failure.RetryAfter
		}
		next := *r
		next.Attempts = attempts
		next.Next = o.at.Add(wait(r.Note.Key, attempts, after))
		d.State, d.LastError, d.NextAttemptAt = "pending", clip(o.err.Error(), maxErrorBytes), &next.Next
		t.putRow(o.row, &next)
		if attempts == 1 {
			t.s.log.Warn("delivery failed, tried again later", "receiver", r.Receiver, "alert", r.Alert, "key", r.Note.Key, "next", next.Next, "error", o.err)
		}
	}
	t.s.m.deliveries.With(r.Receiver, result).Inc()
	if a := t.edit(r.Alert); a != nil {
		// An older notification must not hide what became of a newer one.
		i := slices.IndexFunc(a.Alert.Deliveries, func(x record.AlertDelivery) bool { return x.Receiver == r.Receiver })
		if i < 0 || a.Alert.Deliveries[i].Key == r.Note.Key {
			setDelivery(a, d)
			t.touch(a)
		}
	}
	return told
}

// tell raises a finding about a receiver, once a day.
func (t *task) tell(f finding.Finding, r *row, o outcome, out writer) error {
	k, day := f.Name+"/"+r.Receiver, o.at.UTC().Format(time.DateOnly)
	if last, ok := t.told.Get(k); ok && last >= day {
		return nil
	}
	d := receiverFinding(f, r.Note.Alert.Org, r.Receiver, t.label, clip(o.err.Error(), maxErrorBytes), o.at)
	if err := out.Put(topics.Detections, d.Fingerprint, d); err != nil {
		return fmt.Errorf("tell of receiver %s: %w", r.Receiver, err)
	}
	t.told.Put(k, day)
	t.state[keyTold+k] = marshal(day)
	return nil
}

func (t *task) markGone(r *receiver) {
	if r == nil {
		return
	}
	r.gone.Store(true)
	if print, ok := t.gone.Get(r.name); ok && print == r.print {
		return
	}
	t.gone.Put(r.name, r.print)
	t.state[keyGone+r.name] = marshal(r.print)
	t.s.m.gone.With(r.name).Set(1)
	t.s.log.Error("receiver answered 410 Gone: it is told nothing more; change its configuration and restart to use it again", "receiver", r.name)
}

// expire closes alerts nobody looked at for long, and forgets closed ones, their detections and old numbers.
func (t *task) expire(now time.Time) {
	left := expireMax
	old := now.Add(-t.s.cfg.ForgetAfter)
	for id, a := range t.alerts.All() {
		if left == 0 {
			return
		}
		if last := changedAt(a); last.After(old) {
			continue
		}
		left--
		if a.Alert.Status != statusClosed {
			if c := t.edit(id); c != nil {
				t.close(c, now, byUs, reasonStale, "")
				t.touch(c)
				t.notify(c, sink.Closed, nil)
			}
			continue
		}
		t.alerts.Delete(id)
		delete(t.dirty, id)
		t.state[keyAlert+id] = nil
	}
	for k, h := range t.held.All() {
		if left == 0 {
			return
		}
		if time.Unix(h.At, 0).After(old) {
			continue
		}
		left--
		t.held.Delete(k)
		t.state[keyHeld+hex.EncodeToString(k[:])] = nil
	}
	for f, p := range t.prints.All() {
		if left == 0 {
			return
		}
		if now.Unix()-p.At < printMemory {
			continue
		}
		left--
		t.prints.Delete(f)
		t.state[keyPrint+f] = nil
	}
}

func changedAt(a *alertState) time.Time {
	if a.Alert.UpdatedAt.After(a.Alert.OpenedAt) {
		return a.Alert.UpdatedAt
	}
	return a.Alert.OpenedAt
}

// bound gives the oldest notifications up when there are too many.
func (t *task) bound() {
	over := t.outbox.Len() - t.s.cfg.MaxPending
	if over <= 0 {
		return
	}
	type aged struct {
		id string
		at time.Time
	}
	var all []aged
	for id, r := range t.outbox.All() {
		all = append(all, aged{id, r.Created})
	}
	slices.SortFunc(all, func(a, b aged) int { return a.at.Compare(b.at) })
	for _, a := range all[:over] {
		if r, ok := t.outbox.Get(a.id); ok {
			t.s.m.deliveries.With(r.Receiver, "given_up").Inc()
		}
		t.endRow(a.id)
	}
	t.s.log.Error("too many notifications wait: the oldest were given up; see why their receivers fail, or raise alert.max_pending",
		"partition", t.partition, "given_up", over, "max_pending", t.s.cfg.MaxPending)
}

// flush writes the transaction's alerts and changelog.
func (t *task) flush(out writer) error {
	for _, id := range t.touched {
		a := t.dirty[id]
		if a == nil {
			continue
		}
		a.Alert.UpdatedAt = t.s.now()
		if err := t.write(a, out); err != nil {
			return err
		}
		t.alerts.Put(id, a)
		t.state[keyAlert+id] = marshal(a)
	}
	for k, v := range t.state {
		out.State([]byte(k), v)
	}
	return nil
}

// Commit: what was written stands, so what it says may be sent.
func (t *task) Commit() {
	t.alerts.Commit()
	t.prints.Commit()
	t.held.Commit()
	t.outbox.Commit()
	t.gone.Commit()
	t.told.Commit()
	for id := range t.changed {
		if r, ok := t.outbox.Get(id); ok {
			t.queue.add(id, r)
		} else {
			t.queue.done(id)
		}
	}
	t.settled = nil
	t.clear()
	t.start(t.s.now())
}

// Abort: what was written does not stand; what became of deliveries is noted by the next Tick.
func (t *task) Abort() {
	t.alerts.Abort()
	t.prints.Abort()
	t.held.Abort()
	t.outbox.Abort()
	t.gone.Abort()
	t.told.Abort()
	if len(t.settled) > 0 {
		t.mail.putBack(t.settled)
		t.settled = nil
	}
	t.clear()
}

func (t *task) clear() {
	clear(t.dirty)
	t.touched = t.touched[:0]
	clear(t.state)
	clear(t.changed)
}
