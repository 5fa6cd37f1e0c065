package alert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/services/alert/sink"
)

// sketch is a service without a bus, whose receivers are the test's: enough for a task's own judgement.
func sketch(t interface{ Fatal(args ...any) }, sinks ...sink.Sink) *Service {
	s, err := New(Config{}, Deps{Bus: new(bus.Bus), Out: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	s.jobCtx = context.Background()
	s.receivers = nil
	for i, k := range sinks {
		s.receivers = append(s.receivers, &receiver{name: fmt.Sprintf("r%d", i), kind: "fake", least: 1, print: "p", sink: k, slots: make(chan struct{}, slotsOf)})
	}
	return s
}

// page keeps what a task writes.
type page struct {
	alerts []*record.Alert
	found  []*record.Detection
	state  map[string][]byte
	dead   int
}

func (p *page) Put(t topics.Topic, _ string, r record.Record, _ ...bus.PutOption) error {
	if t.Name == topics.Alerts.Name {
		a := *r.(*record.Alert)
		p.alerts = append(p.alerts, &a)
	}
	if d, ok := r.(*record.Detection); ok {
		p.found = append(p.found, d)
	}
	return nil
}

func (p *page) State(key, value []byte) {
	if p.state == nil {
		p.state = map[string][]byte{}
	}
	p.state[string(key)] = value
}

func (p *page) DeadLetter(bus.Message, string, error) { p.dead++ }

// fakeSink answers what it is told to and keeps what came.
type fakeSink struct {
	mu     sync.Mutex
	got    []sink.Notification
	at     []time.Time
	answer func(n int) error
}

func (f *fakeSink) Deliver(_ context.Context, n sink.Notification) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got, f.at = append(f.got, n), append(f.at, time.Now())
	if f.answer == nil {
		return nil
	}
	return f.answer(len(f.got))
}

// run lets virtual time pass, with a Tick each step.
func run(t *testing.T, task *task, p *page, step, until time.Duration) {
	t.Helper()
	for end := time.Now().Add(until); time.Now().Before(end); {
		synctest.Wait()
		if err := task.tick(time.Now(), p); err != nil {
			t.Fatal(err)
		}
		task.Commit()
		time.Sleep(step)
	}
}

func opening(t *testing.T, task *task, p *page, ds ...*record.Detection) {
	t.Helper()
	task.requeue()
	for _, d := range ds {
		task.detection(d)
	}
	if err := task.flush(p); err != nil {
		t.Fatal(err)
	}
	task.Commit()
}

func TestBackoffIsTenTriesInThreeDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSink{answer: func(int) error { return errors.New("no") }}
		task, p := newTask(sketch(t, f), 0), &page{}
		began := time.Now()
		opening(t, task, p, detection("f1", "d1"))
		run(t, task, p, time.Second, 5*24*time.Hour)
		if len(f.at) != 10 {
			t.Fatalf("%d tries, want 10", len(f.at))
		}
		if f.at[0] != began {
			t.Errorf("the first try waited %v", f.at[0].Sub(began))
		}
		if last := f.at[9].Sub(began); last < 71*time.Hour || last > 80*time.Hour {
			t.Errorf("the last try came after %v", last)
		}
		for i := 1; i < 10; i++ {
			if gap := f.at[i].Sub(f.at[i-1]); gap < backoff[i-1] || gap > backoff[i-1]*11/10+2*time.Second {
				t.Errorf("try %d came %v after the one before", i+1, gap)
			}
			if f.got[i].Key != f.got[0].Key {
				t.Errorf("try %d has key %s, the first %s", i+1, f.got[i].Key, f.got[0].Key)
			}
		}
		if d := p.alerts[len(p.alerts)-1].Deliveries[0]; d.State != "failed" || d.Attempts != 10 || d.LastError != "no" {
			t.Errorf("%+v", d)
		}
		if task.outbox.Len() != 0 {
			t.Error("a given-up notification still waits")
		}
		if len(p.found) != 1 || p.found[0].RuleID != findGivenUp.Name || p.found[0].Org != "00o1" {
			t.Errorf("%d findings", len(p.found))
		}
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSink{answer: func(n int) error {
			if n == 1 {
				return fmt.Errorf("slow down: %w", &sink.Error{RetryAfter: 10 * time.Minute, Err: errors.New("429")})
			}
			return nil
		}}
		task, p := newTask(sketch(t, f), 0), &page{}
		opening(t, task, p, detection("f1", "d1"))
		run(t, task, p, time.Second, time.Hour)
		if len(f.at) != 2 || f.at[1].Sub(f.at[0]) < 10*time.Minute || f.at[1].Sub(f.at[0]) > 10*time.Minute+3*time.Second {
			t.Errorf("tries at %v", f.at)
		}
	})
}

// A restart in the middle of the backoff goes on where it was.
func TestBackoffSurvivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSink{answer: func(int) error { return errors.New("no") }}
		s := sketch(t, f)
		task, p := newTask(s, 0), &page{}
		opening(t, task, p, detection("f1", "d1"))
		for range 20 {
			run(t, task, p, time.Second, 11*time.Hour)
			task = newTask(s, 0)
			for k, v := range p.state {
				if err := task.Restore([]byte(k), v); err != nil {
					t.Fatal(err)
				}
			}
			task.requeue()
		}
		if len(f.at) != 10 {
			t.Errorf("%d tries, want 10", len(f.at))
		}
	})
}

// A receiver that hangs takes nothing from the others, and a sink that panics is a failed try.
func TestReceiversDoNotHinderEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		slow := &fakeSink{}
		stuck := sinkFunc(func(context.Context, sink.Notification) error { <-hang; return nil })
		wild := &fakeSink{answer: func(n int) error {
			if n == 1 {
				panic("wild")
			}
			return nil
		}}
		task, p := newTask(sketch(t, stuck, slow, wild), 0), &page{}
		var ds []*record.Detection
		for i := range 30 {
			ds = append(ds, detection(fmt.Sprintf("f%d", i), fmt.Sprintf("d%d", i)))
		}
		opening(t, task, p, ds...)
		run(t, task, p, 100*time.Millisecond, 10*time.Second)
		if len(slow.got) != 30 || len(wild.got) != 31 {
			t.Errorf("%d and %d deliveries while another hung, want 30 and 31", len(slow.got), len(wild.got))
		}
		close(hang)
		run(t, task, p, 100*time.Millisecond, 10*time.Second)
		if n := task.outbox.Len(); n != 0 {
			t.Errorf("%d wait", n)
		}
	})
}

type sinkFunc func(context.Context, sink.Notification) error

func (f sinkFunc) Deliver(ctx context.Context, n sink.Notification) error { return f(ctx, n) }

// One receiver hears of one alert in order, whatever fails in between.
func TestOrderOfOneAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSink{answer: func(n int) error {
			if n%2 == 1 {
				return errors.New("every other try")
			}
			return nil
		}}
		task, p := newTask(sketch(t, f), 0), &page{}
		for i := range int32(4) {
			opening(t, task, p, detection("f1", fmt.Sprintf("d%d", i), func(d *record.Detection) { d.Severity = i + 1 }))
		}
		run(t, task, p, time.Second, time.Hour)
		var keys []string
		for i, n := range f.got {
			if i%2 == 1 {
				keys = append(keys, n.Key)
			}
		}
		if !slices.Equal(keys, []string{"f1.1.1", "f1.1.2", "f1.1.3", "f1.1.4"}) {
			t.Errorf("delivered %v", keys)
		}
	})
}

func TestTooManyPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSink{answer: func(int) error { return errors.New("no") }}
		s := sketch(t, f)
		s.cfg.MaxPending = 100
		task, p := newTask(s, 0), &page{}
		for i := range 150 {
			opening(t, task, p, detection(fmt.Sprintf("f%d", i), "d"+fmt.Sprint(i)))
			time.Sleep(time.Millisecond)
		}
		run(t, task, p, time.Second, 3*time.Minute)
		if n := task.outbox.Len(); n > 100 {
			t.Errorf("%d wait, 100 are allowed", n)
		}
		if _, ok := task.outbox.Get("f149.1/00000001/r0"); !ok {
			t.Error("the newest was given up")
		}
	})
}

func TestOldAlertsAreClosedThenForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSink{}
		task, p := newTask(sketch(t, f), 0), &page{}
		opening(t, task, p, detection("f1", "d1"))
		run(t, task, p, time.Minute, 31*24*time.Hour)
		if a := p.alerts[len(p.alerts)-1]; a.Status != statusClosed || a.CloseReason != reasonStale {
			t.Errorf("after 31 days: %+v", a)
		}
		run(t, task, p, time.Minute, 31*24*time.Hour)
		if n, h := task.alerts.Len(), task.held.Len(); n != 0 || h != 0 {
			t.Errorf("%d alerts and %d detections are kept", n, h)
		}
		opening(t, task, p, detection("f1", "d9"))
		if a := p.alerts[len(p.alerts)-1]; a.ID != "f1.2" {
			t.Errorf("a number was used again: %s", a.ID)
		}
	})
}

// Whatever comes, whatever is aborted, wherever it is restarted: the alerts say what the detections said, numbers and keys
// are never used twice, and everything notified was delivered.
func TestAnyCourse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var mu sync.Mutex
		keys := map[string]int{}
		s := sketch(t, sinkFunc(func(_ context.Context, n sink.Notification) error {
			mu.Lock()
			defer mu.Unlock()
			keys[n.Key]++
			return nil
		}))
		now := testTime
		s.now = func() time.Time { return now }
		task := newTask(s, 0)
		changelog := map[string][]byte{}
		updates := map[string]int64{}
		last := map[string]*record.Detection{}
		sent := map[string]bool{}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			p := &page{}
			task.requeue()
			now = now.Add(time.Second)
			var batch []*record.Detection
			for range rapid.IntRange(0, 4).Draw(t, "detections") {
				id := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "id")
				updates[id]++
				batch = append(batch, detection("f", id, func(d *record.Detection) {
					d.Update = updates[id]
					d.Severity = int32(rapid.IntRange(1, 5).Draw(t, "severity"))
					d.EventCount = int64(rapid.IntRange(1, 9).Draw(t, "events"))
					d.Withdrawn = rapid.IntRange(0, 4).Draw(t, "withdrawn") == 0
				}))
			}
			apply := func() {
				for _, d := range batch {
					task.detection(d)
				}
				if err := task.tick(now, p); err != nil {
					t.Fatal(err)
				}
			}
			apply()
			if rapid.IntRange(0, 3).Draw(t, "abort") == 0 {
				task.Abort()
				p = &page{}
				apply()
			}
			for k, v := range p.state {
				if v == nil {
					delete(changelog, k)
				} else {
					changelog[k] = v
				}
			}
			task.Commit()
			s.jobs.Wait()
			for _, d := range batch {
				if known, ok := last[d.ID]; !ok && d.Withdrawn || ok && d.Update <= known.Update {
					continue
				}
				last[d.ID] = d
			}
			for _, a := range p.alerts {
				for _, x := range a.Deliveries {
					sent[x.Key] = true
				}
			}
			if rapid.IntRange(0, 4).Draw(t, "restart") == 0 {
				task = newTask(s, 0)
				for k, v := range changelog {
					if err := task.Restore([]byte(k), v); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for range 100 { // the notifications of one alert go out one after the other
			now = now.Add(time.Second)
			task.requeue()
			now = now.Add(time.Second)
			if err := task.tick(now, &page{}); err != nil {
				t.Fatal(err)
			}
			task.Commit()
			s.jobs.Wait()
		}
		var count, events int64
		for _, a := range task.alerts.All() {
			var c, e int64
			worst := int32(0)
			for _, x := range a.Alert.Detections {
				if !x.Withdrawn {
					c++
					e += x.EventCount
					worst = max(worst, x.Severity)
				}
				if d := last[x.ID]; d == nil || d.Update != x.Update || d.Withdrawn != x.Withdrawn {
					t.Fatalf("alert %s has detection %+v, the last was %+v", a.Alert.ID, x, d)
				}
			}
			if c != a.Alert.DetectionCount || e != a.Alert.EventCount || c > 0 && worst != a.Alert.Severity {
				t.Fatalf("alert %s counts %d detections, %d events, severity %d; its list has %d, %d, %d", a.Alert.ID,
					a.Alert.DetectionCount, a.Alert.EventCount, a.Alert.Severity, c, e, worst)
			}
			if c == 0 && a.Alert.Status != statusClosed {
				t.Fatalf("alert %s has no detection and is %s", a.Alert.ID, a.Alert.Status)
			}
			count += c
			events += e
		}
		var wantCount, wantEvents int64
		for _, d := range last {
			if !d.Withdrawn {
				wantCount++
				wantEvents += d.EventCount
			}
		}
		if count != wantCount || events != wantEvents {
			t.Fatalf("%d detections and %d events in alerts, want %d and %d", count, events, wantCount, wantEvents)
		}
		for k := range sent {
			if keys[k] == 0 {
				t.Fatalf("notification %s was never delivered (delivered: %v)", k, keys)
			}
		}
		if n := task.outbox.Len(); n != 0 {
			t.Fatalf("%d notifications still wait", n)
		}
	})
}
