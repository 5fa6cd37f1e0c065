package alert

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/services/alert/sink"
)

// row is a notification for one receiver that is not done with.
type row struct {
	Note     sink.Notification `json:"note"`
	Receiver string            `json:"receiver"`
	Alert    string            `json:"alert"`
	Seq      int64             `json:"seq"`
	Attempts int               `json:"attempts"`
	Next     time.Time         `json:"next"` // not before
	Created  time.Time         `json:"created"`
}

// backoff is how long to wait after the first, second, … failed try: ten tries over three days.
var backoff = [...]time.Duration{
	5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 16 * time.Hour, 48 * time.Hour,
}

const (
	maxAttempts   = len(backoff) + 1
	maxErrorBytes = 300
	deliverLimit  = 40 * time.Second // of one try, whatever the sink does
)

// wait is the pause after so many tries, spread by up to a tenth so that receivers do not see waves.
func wait(key string, attempts int, after time.Duration) time.Duration {
	d := backoff[min(attempts, len(backoff))-1]
	h := fnv.New32a()
	fmt.Fprint(h, key, attempts)
	d += time.Duration(float64(d) * 0.1 * float64(h.Sum32()%1000) / 1000)
	return max(d, after)
}

// outcome is what became of one try.
type outcome struct {
	row string
	err error
	at  time.Time
}

// settleAfter is how long an outcome may wait for a transaction to go with, at most. That of the next detections takes it; one of its
// own, as often as there are deliveries, would keep those waiting.
const settleAfter = 100 * time.Millisecond

// inbox collects outcomes until the next transaction. The goroutines that fill it may outlive the task.
type inbox struct {
	mu   sync.Mutex
	list []outcome
	wake func()
}

func (i *inbox) add(o outcome) {
	i.mu.Lock()
	i.list = append(i.list, o)
	wake := i.wake
	i.mu.Unlock()
	if wake != nil {
		wake()
	}
}

func (i *inbox) take() []outcome {
	i.mu.Lock()
	defer i.mu.Unlock()
	l := i.list
	i.list = nil
	return l
}

// due says whether outcomes have waited long enough, or something waits for one of them.
func (i *inbox) due(now time.Time, urgent func(row string) bool) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.ContainsFunc(i.list, func(o outcome) bool { return now.Sub(o.at) >= settleAfter || urgent(o.row) })
}

func (i *inbox) putBack(l []outcome) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list = append(l, i.list...)
}

// start hands due rows to workers, as many as there is room for. It never waits. Only committed rows are handed over: it
// is called by Commit, and by Tick for rows whose time has come. Of one alert and receiver the oldest row goes first.
func (t *task) start(now time.Time) {
	for _, id := range t.queue.due(now) {
		r, ok := t.outbox.Get(id)
		if !ok {
			t.queue.done(id)
			continue
		}
		rec := t.s.receiver(r.Receiver)
		if rec == nil || t.isGone(rec) {
			t.mail.add(outcome{row: id, err: errNoReceiver, at: now})
			t.queue.begun(id)
			continue
		}
		if !t.s.deliver(rec, r.Note, func(err error) {
			t.mail.add(outcome{row: id, err: err, at: t.s.now()})
		}) {
			continue // no room: tried again when something is done, at the latest at the next Tick
		}
		t.queue.begun(id)
	}
}

var errNoReceiver = errors.New("the receiver is no longer configured, or wants nothing any more")

// deliver tries once, in a goroutine of its own. False: there is no room now.
func (s *Service) deliver(r *receiver, n sink.Notification, done func(error)) bool {
	select {
	case r.slots <- struct{}{}:
	default:
		return false
	}
	select {
	case s.workers <- struct{}{}:
	default:
		<-r.slots
		return false
	}
	s.jobs.Go(func() {
		ctx, cancel := context.WithTimeout(s.jobCtx, deliverLimit)
		defer cancel()
		err := safely(func() error { return r.sink.Deliver(ctx, n) })
		<-s.workers
		<-r.slots
		done(err)
	})
	return true
}

// safely turns a sink's panic into an error: no alert may stop the service.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the sink panicked: %v", p)
		}
	}()
	return f()
}

// queue orders the rows of an outbox: by alert and receiver, oldest first, and what is under way. It is made of committed
// rows only.
type queue struct {
	lanes map[string]*lane // by alert and receiver
	ready map[string]*lane // lanes with a row that is not under way
	where map[string]*lane // by row
}

type lane struct {
	key  string
	rows []queued
	busy bool
}

type queued struct {
	id   string
	next time.Time
}

func newQueue() *queue {
	return &queue{lanes: map[string]*lane{}, ready: map[string]*lane{}, where: map[string]*lane{}}
}

func laneOf(r *row) string { return r.Alert + "\x00" + r.Receiver }

// add appends a row, or changes when it is due.
func (q *queue) add(id string, r *row) {
	k := laneOf(r)
	l := q.lanes[k]
	if l == nil {
		l = &lane{key: k}
		q.lanes[k] = l
	}
	for i := range l.rows {
		if l.rows[i].id == id {
			l.rows[i].next, l.busy = r.Next, false
			q.ready[k] = l
			return
		}
	}
	at := len(l.rows)
	for at > 0 && l.rows[at-1].id > id { // ids of one lane sort by number
		at--
	}
	l.rows = append(l.rows, queued{})
	copy(l.rows[at+1:], l.rows[at:])
	l.rows[at] = queued{id, r.Next}
	q.where[id] = l
	if !l.busy {
		q.ready[k] = l
	}
}

// done takes a row out.
func (q *queue) done(id string) {
	l := q.where[id]
	if l == nil {
		return
	}
	delete(q.where, id)
	if l.rows[0].id == id {
		l.busy = false
	}
	kept := l.rows[:0]
	for _, r := range l.rows {
		if r.id != id {
			kept = append(kept, r)
		}
	}
	l.rows = kept
	if len(l.rows) == 0 {
		delete(q.lanes, l.key)
		delete(q.ready, l.key)
	} else if !l.busy {
		q.ready[l.key] = l
	}
}

// begun marks the first row of a lane as under way.
func (q *queue) begun(id string) {
	if l := q.where[id]; l != nil {
		l.busy = true
		delete(q.ready, l.key)
	}
}

// holdsUp says whether another row of the lane waits behind a row.
func (q *queue) holdsUp(id string) bool {
	l := q.where[id]
	return l != nil && len(l.rows) > 1
}

// due gives the rows that can be started now.
func (q *queue) due(now time.Time) []string {
	var ids []string
	for _, l := range q.ready {
		if !l.rows[0].next.After(now) {
			ids = append(ids, l.rows[0].id)
		}
	}
	return ids
}
