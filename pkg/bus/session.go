package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oktawatch/oktawatch/pkg/bus/internal/hook"
)

// session is a stage with one client: it joins, restores, processes and commits until something ends it. One goroutine, loop, owns
// everything that is not under mu; the client's callbacks and the restores only touch what is.
//
// Why a partition lost meanwhile cannot be committed: each transaction's offsets carry member and generation as they were when the
// loop last saw that the partition was still there, and the broker refuses an older generation. A partition is the loop's from adopt
// on, and a unit that went away and came back is another unit, so records polled for the first never meet the second.
type session struct {
	*stage
	cl   *kgo.Client
	made chan struct{} // cl is set
	can  abilities

	parent context.Context //nolint:containedctx // the stage's: what its units do ends with it
	bg     context.Context //nolint:containedctx // ends the session's own goroutines
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	units    map[int32]*unit
	fatal    error
	member   string
	inited   bool // the transactional id is ours
	joined   bool // a member of the group, as far as we know
	cutPoll  context.CancelFunc
	woken    bool
	changes  int
	position map[string]map[int32]int64 // committed, for the lag

	busy sync.Mutex // held while a transaction is under way

	refusals int // commits in a row that the broker would not take; the loop's own

	// of RunAssigned; the loop's own
	told, tellTries int
	toldOnce        bool
	tellAt          time.Time
}

// unit is a partition number this member owns.
type unit struct {
	n      int32
	ctx    context.Context //nolint:containedctx // ends when the partition goes away
	cancel context.CancelFunc
	began  time.Time

	tickNow  atomic.Bool
	restored bool // hands the unit to the loop; under session.mu

	// The loop's own from adopt on.
	ready    bool
	task     Task
	number   int64            // of the task's last transaction
	offsets  map[string]int64 // committed: the next to read
	heal     []emitted        // what a torn commit left in the changelog, set right by the next transaction
	logged   int64            // the changelog's end behind what the task's last transaction wrote to it
	rebuild  *rebuild         // the changelog was lost: the memory is made again from the input
	pending  []*kgo.Record    // read, not committed
	paused   bool
	tries    int
	retryAt  time.Time
	span     int             // how many records a batch may have, while a bad one is looked for; 0: any
	suspect  *kgo.Record     // the last record of the batch that has the bad one; nil: it is found
	poison   map[place]error // refused by the broker for what it makes of them
	cut      map[place]bool  // dead letters that were refused too
	nextTick time.Time
	tickFail int
}

type place struct {
	topic  string
	offset int64
}

func placeOf(r *kgo.Record) place { return place{r.Topic, r.Offset} }

func newSession(ctx context.Context, st *stage, can abilities) *session {
	s := &session{stage: st, can: can, parent: ctx, made: make(chan struct{}), units: map[int32]*unit{}, position: map[string]map[int32]int64{}}
	s.bg, s.cancel = context.WithCancel(hook.With(context.Background(), st.hooks))
	return s
}

// fail ends the session. The first cause counts.
func (s *session) fail(err error) {
	s.mu.Lock()
	if s.fatal == nil || errors.Is(err, ErrInstanceTaken) {
		s.fatal = err
	}
	s.mu.Unlock()
	s.wake()
}

// wake ends a poll that waits.
func (s *session) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.woken = true
	if s.cutPoll != nil {
		s.cutPoll()
	}
}

// OnGroupManageError is called by the client when its membership ended.
func (s *session) OnGroupManageError(err error) {
	switch {
	case errors.Is(err, kerr.FencedInstanceID):
		s.fail(ErrInstanceTaken)
	case isContext(err):
	default:
		s.mu.Lock()
		s.joined = false
		s.mu.Unlock()
		s.h.failed(s.b.explain("be a member of "+s.name, err))
	}
}

var _ kgo.HookGroupManageError = (*session)(nil)

// assigned is called before the client fetches offsets. Nothing is restored here, but whatever would keep those offsets from being
// stable is ended: our own id's last transaction and those of the dead.
func (s *session) assigned(_ context.Context, cl *kgo.Client, added map[string][]int32) {
	<-s.made
	cl.PauseFetchPartitions(added)
	s.mu.Lock()
	s.member, _ = cl.GroupMetadata()
	inited := s.inited
	s.mu.Unlock()
	if s.txnID != "" {
		ctx, cancel := context.WithTimeout(s.bg, 10*time.Second)
		defer cancel()
		if !inited {
			// The group first, then the transactional id: of two processes with one id the older hears FENCED_INSTANCE_ID before its
			// producer is fenced, and does not mistake the newcomer for a survivor that gave it up.
			if _, _, err := cl.ProducerID(ctx); err != nil {
				s.fail(s.b.explain("take over transactional id "+s.txnID, err))
				return
			}
		}
		if len(added) > 0 {
			s.survive(ctx)
			s.settle(ctx, added)
		}
	}
	s.mu.Lock()
	s.inited, s.joined = true, true
	if len(added) > 0 {
		s.changes++
		s.b.m.rebalances.With(s.label).Inc()
	}
	var late bool
	for n := range partitionsOf(added) {
		if late = s.units[n] != nil; late {
			break
		}
		s.units[n] = s.newUnit(n)
	}
	s.mu.Unlock()
	if late { // a leader that did not know all topics yet; what we have read of the others has no place in a new unit
		s.fail(fmt.Errorf("partitions of %s came apart from those of its other topics", s.name))
	}
	s.wake()
}

func partitionsOf(byTopic map[string][]int32) map[int32]bool {
	set := map[int32]bool{}
	for _, ns := range byTopic {
		for _, n := range ns {
			set[n] = true
		}
	}
	return set
}

func (s *session) newUnit(n int32) *unit {
	u := &unit{n: n, began: time.Now(), offsets: map[string]int64{}}
	ctx, cancel := context.WithCancel(s.parent)
	u.ctx, u.cancel = context.WithValue(ctx, wakeKey{}, func() {
		u.tickNow.Store(true)
		s.wake()
	}), cancel
	if s.changed != nil {
		u.restored = true
		return u
	}
	s.wg.Go(func() { s.restore(u) })
	return u
}

// revoked takes partitions away. A transaction under way may still end well: it is waited for, a little.
func (s *session) revoked(_ context.Context, cl *kgo.Client, gone map[string][]int32) {
	<-s.made
	if len(gone) == 0 {
		return
	}
	cl.PauseFetchPartitions(gone)
	for range 100 {
		if s.busy.TryLock() {
			defer s.busy.Unlock()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.mu.Lock()
	s.changes++
	for _, n := range gone[s.names[0]] {
		if u := s.units[n]; u != nil {
			u.cancel()
			delete(s.units, n)
		}
		for _, name := range s.names {
			delete(s.position[name], n)
		}
	}
	s.mu.Unlock()
	s.b.m.rebalances.With(s.label).Inc()
	s.wake()
}

// loop is the stage at work.
func (s *session) loop(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	s.wg.Go(s.watch)
	for {
		s.mu.Lock()
		fatal := s.fatal
		s.mu.Unlock()
		switch {
		case s.killed():
			return errKilled
		case fatal != nil:
			return fatal
		case ctx.Err() != nil:
			return nil
		}
		now := time.Now()
		units := s.adopt(now)
		if s.changed != nil {
			if err := s.tell(ctx, now); err != nil {
				return err
			}
			s.poll(ctx, now, units, time.Second)
			continue
		}
		if err := s.ticks(ctx, now, units); err != nil {
			return err
		}
		worked, err := s.process(ctx, now, units)
		if err != nil {
			return err
		}
		if worked && s.backlog(time.Now(), units) {
			continue
		}
		s.poll(ctx, now, units, s.idle(time.Now(), units))
	}
}

func (s *session) killed() bool {
	select {
	case <-s.hooks.Killed:
		return true
	default:
		return false
	}
}

// adopt takes over what has been restored, and returns the units to work on in the order of their numbers.
func (s *session) adopt(now time.Time) []*unit {
	ready, resume, rewind := s.adoptRestored(now)
	s.rewind(rewind)
	if len(resume) > 0 && s.changed == nil {
		s.cl.ResumeFetchPartitions(resume)
	}
	return ready
}

func (s *session) adoptRestored(now time.Time) ([]*unit, map[string][]int32, map[string]map[int32]kgo.EpochOffset) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ready []*unit
	resume, rewind := map[string][]int32{}, map[string]map[int32]kgo.EpochOffset{}
	restoring := 0
	for _, u := range s.units {
		if !u.restored {
			restoring++
			continue
		}
		if !u.ready {
			u.ready = true
			u.nextTick = now
			for _, name := range s.names {
				resume[name] = append(resume[name], u.n)
				if s.position[name] == nil {
					s.position[name] = map[int32]int64{}
				}
				s.position[name][u.n] = u.offsets[name]
			}
			if u.rebuild != nil {
				u.rewindTo(rewind)
			}
			s.b.m.restoreSeconds.With(s.label).Observe(now.Sub(u.began).Seconds())
		}
		ready = append(ready, u)
	}
	slices.SortFunc(ready, func(a, b *unit) int { return int(a.n - b.n) })
	owned := make([]int32, len(ready))
	for i, u := range ready {
		owned[i] = u.n
	}
	retrying := s.failing()
	alive := s.joined && s.fatal == nil && s.refusals < 3
	s.h.set(func(h *StageHealth) {
		h.Alive, h.Partitions, h.Restoring, h.Retrying = alive, owned, restoring, retrying
	})
	s.b.m.partitions.With(s.label).Set(float64(len(owned)))
	return ready, resume, rewind
}

// failing counts the units whose next record or Tick fails and is tried again. Under mu, by the loop.
func (s *session) failing() int {
	n := 0
	for _, u := range s.units {
		if u.ready && (u.tries > 0 || u.tickFail > 0) {
			n++
		}
	}
	return n
}

// owned says whether the unit is still this member's.
func (s *session) owned(u *unit) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.units[u.n] == u
}

// idle is how long a poll may wait.
func (s *session) idle(now time.Time, units []*unit) time.Duration {
	wait := time.Second
	for _, u := range units {
		if u.task != nil && u.rebuild == nil {
			wait = min(wait, u.nextTick.Sub(now))
		}
		if len(u.pending) > 0 {
			wait = min(wait, u.retryAt.Sub(now))
		}
	}
	return max(wait, 0)
}

func (s *session) backlog(now time.Time, units []*unit) bool {
	for _, u := range units {
		if len(u.pending) > 0 && !now.Before(u.retryAt) {
			return true
		}
	}
	return false
}

// poll waits for records and gives them to their units. Those of a partition that is not ready are dropped: it was taken away, and
// its next owner reads them.
func (s *session) poll(ctx context.Context, now time.Time, units []*unit, wait time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	s.mu.Lock()
	if s.woken {
		cancel()
	}
	s.woken, s.cutPoll = false, cancel
	s.mu.Unlock()
	fetches := s.cl.PollRecords(ctx, maxBatchRecords)
	s.mu.Lock()
	s.cutPoll = nil
	s.mu.Unlock()

	fetches.EachError(func(topic string, partition int32, err error) {
		var loss *kgo.ErrDataLoss
		switch {
		case isContext(err):
		case errors.Is(err, kerr.FencedInstanceID):
			s.fail(ErrInstanceTaken)
		case errors.As(err, &loss):
			s.log.Error("records were removed before they were read", "topic", topic, "partition", partition, "from", loss.ConsumedTo, "to", loss.ResetTo)
			s.h.failed(err)
		case topic == "":
			s.h.failed(s.b.explain("be a member of "+s.name, err))
		default:
			s.h.failed(s.b.explain(fmt.Sprintf("read %s/%d", topic, partition), err))
		}
	})
	byNumber := make(map[int32]*unit, len(units))
	for _, u := range units {
		byNumber[u.n] = u
	}
	fetches.EachRecord(func(r *kgo.Record) {
		if u := byNumber[r.Partition]; u != nil && r.Offset >= u.offsets[r.Topic] && !u.rebuild.beyond(r) {
			u.pending = append(u.pending, r)
		}
	})
	for _, u := range units {
		if u.rebuilt() {
			s.rebuilt(u)
		}
	}
	if fetches.NumRecords() == 0 {
		s.h.set(func(h *StageHealth) {
			if h.Alive && h.Retrying == 0 && now.Sub(h.LastProgress) > time.Second {
				h.LastProgress = now
			}
		})
	}
}

// turn is what one unit did and wants committed.
type turn struct {
	u      *unit
	e      *Emit
	upTo   int // of pending
	read   int // records among them that are not control records
	tick   bool
	newest time.Time
}

// ticks lets the tasks whose time has come act, and commits what they wrote in one transaction.
func (s *session) ticks(ctx context.Context, now time.Time, units []*unit) error {
	var turns []turn
	for _, u := range units {
		if u.task == nil || u.rebuild != nil || now.Before(u.nextTick) && !u.tickNow.Load() || !s.owned(u) {
			continue
		}
		if u.tickFail > 0 && now.Before(u.nextTick) {
			continue
		}
		u.tickNow.Store(false)
		u.nextTick = now.Add(tickEvery)
		e := s.emit(u)
		err := safely(func() error { return u.task.Tick(e.ctx, now, e) })
		if err == nil {
			err = e.err
		}
		if err == nil {
			err = s.hooks.Step(ctx, hook.BeforeTickWrite, u.n)
		}
		switch {
		case err != nil:
			u.task.Abort()
			if u.ctx.Err() == nil {
				s.tickFailed(u, err)
			}
		case len(e.recs) == 0:
			u.task.Commit()
			u.tickFail = 0
		default:
			turns = append(turns, turn{u: u, e: e, tick: true})
		}
	}
	if len(turns) == 0 {
		return nil
	}
	return s.commit(ctx, turns)
}

func (s *session) tickFailed(u *unit, err error) {
	u.tickFail++
	u.nextTick = time.Now().Add(backoff(u.tickFail))
	s.h.failed(fmt.Errorf("tick of partition %d: %w", u.n, err))
	s.b.m.retries.With(s.label).Inc()
	s.logFailure(u.tickFail, "tick, tried again", u.n, err)
}

// logFailure tells the first of a row of failures, and then fewer and fewer.
func (s *session) logFailure(tries int, what string, n int32, err error) {
	if tries&(tries-1) != 0 {
		return
	}
	args := []any{"what", what, "partition", n, "tries", tries, "err", err}
	var ce *classError
	if errors.As(err, &ce) && ce.stack != nil {
		args = append(args, "stack", string(ce.stack))
	}
	s.log.Warn("a step failed", args...)
}

func (s *session) emit(u *unit) *Emit {
	return &Emit{b: s.b, ctx: u.ctx, g: s.g, part: u.n, task: u.task != nil}
}

// process hands out what is due, up to one transaction's worth, and commits it.
func (s *session) process(ctx context.Context, now time.Time, units []*unit) (bool, error) {
	var turns []turn
	records, bytes := maxBatchRecords, maxBatchBytes
	for _, u := range units {
		if ctx.Err() != nil {
			break
		}
		if len(u.pending) == 0 || now.Before(u.retryAt) || records <= 0 || bytes <= 0 || !s.owned(u) {
			continue
		}
		take := 0
		for take < len(u.pending) && take < records {
			size := sizeOf(u.pending[take])
			if size > bytes && (take > 0 || len(turns) > 0) {
				break
			}
			bytes -= size
			take++
		}
		if take == 0 {
			break
		}
		records -= take
		t, err := s.handle(ctx, u, u.pending[:take])
		if err != nil && u.ctx.Err() == nil {
			s.putBack(u, err)
		}
		if t.upTo > 0 {
			turns = append(turns, t)
		}
	}
	if len(turns) == 0 {
		return false, nil
	}
	return true, s.commit(ctx, turns)
}

// handle runs the stage on some records of one unit. What it returns is to be committed also when there is an error: that is about
// the record after it.
func (s *session) handle(ctx context.Context, u *unit, recs []*kgo.Record) (turn, error) {
	t := turn{u: u, e: s.emit(u)}
	msgs := make([]Message, 0, len(recs))
	ends := make([]int, 0, len(recs)) // of pending, behind each message
	lead := 0                         // control records before the first
	for i, r := range recs {
		switch {
		case !r.Attrs.IsControl():
			msgs = append(msgs, s.message(r))
			ends = append(ends, i+1)
		case len(ends) == 0:
			lead = i + 1
		default:
			ends[len(ends)-1] = i + 1
		}
	}
	var done int
	var err error
	if u.task != nil {
		done, err = s.runTask(t.e, u, msgs)
	} else {
		done, err = s.runHandler(t.e, u, msgs)
	}
	if err == nil {
		err = s.hooks.Step(ctx, hook.Processed, u.n)
		if err != nil {
			if u.task != nil {
				u.task.Abort()
			}
			return turn{}, err
		}
	}
	t.upTo, t.read = lead, done
	if done > 0 {
		t.upTo = ends[done-1]
		t.newest = msgs[done-1].Timestamp
	}
	if u.rebuild != nil {
		t.e.stateOnly()
	}
	return t, err
}

func (s *session) runHandler(e *Emit, u *unit, msgs []Message) (int, error) {
	for i, m := range msgs {
		recs, dead := e.mark()
		err := u.poison[placeOf(m.raw)]
		if err == nil {
			err = safely(func() error { return s.handler(e.ctx, m, e) })
		}
		if err == nil {
			err = e.err
		}
		if err == nil {
			e.source(recs, m.raw)
			continue
		}
		e.reset(recs, dead)
		class, permanent := isPermanent(err)
		if !permanent {
			return i, fmt.Errorf("%s: %w", m, err)
		}
		s.bury(e, u, m, class, err)
	}
	return len(msgs), nil
}

// runTask looks for the bad record of a batch by halving it. Bad ones leave no trace in the task, so that any number of them goes into
// the transaction of the next good batch.
func (s *session) runTask(e *Emit, u *unit, msgs []Message) (int, error) {
	for i := 0; i < len(msgs); {
		n := len(msgs) - i
		if u.span > 0 {
			n = min(n, u.span)
		}
		batch := msgs[i : i+n]
		recs, dead := e.mark()
		var err error
		if len(u.poison) > 0 {
			for k, m := range batch {
				if err = u.poison[placeOf(m.raw)]; err != nil {
					n = max(k, 1) // up to it, or it alone
					batch = msgs[i : i+n]
					if k > 0 {
						err = nil
					}
					break
				}
			}
		}
		if err == nil {
			err = safely(func() error { return u.task.Process(e.ctx, batch, e) })
			if err == nil {
				err = e.err
			}
			if err != nil {
				e.reset(recs, dead)
				u.task.Abort()
			}
		}
		if err == nil {
			if n == 1 {
				e.source(recs, batch[0].raw)
			}
			u.widen(batch)
			return i + n, nil
		}
		class, permanent := isPermanent(err)
		switch {
		case !permanent:
			return i, fmt.Errorf("%d records from %s: %w", n, batch[0], err)
		case n > 1:
			u.span, u.suspect = n/2, batch[n-1].raw
		default:
			s.bury(e, u, batch[0], class, err)
			u.span, u.suspect = 1, nil // bad ones come in rows
			i++
		}
	}
	return len(msgs), nil
}

// widen says how many records the batch after a good one may have. While the bad one is known to be in what is left of a batch that
// failed, no more than now; after it, more and more.
func (u *unit) widen(good []Message) {
	switch {
	case u.suspect == nil:
		u.span *= 4
	case slices.ContainsFunc(good, func(m Message) bool { return m.raw == u.suspect }):
		u.span, u.suspect = 0, nil
	}
	if u.span >= maxBatchRecords {
		u.span = 0
	}
}

func (s *session) bury(e *Emit, u *unit, m Message, class string, err error) {
	e.DeadLetter(m, class, err)
	if u.cut[placeOf(m.raw)] {
		cutValue(e.recs[len(e.recs)-1].rec)
	}
	s.logFailure(1, "record, now a dead letter", m.Partition, fmt.Errorf("%s: %s: %w", m, class, err))
}

func backoff(tries int) time.Duration {
	return jitter(min(50*time.Millisecond<<min(tries-1, 10), 10*time.Second))
}

// putBack has a unit's next record tried again later. Its partition is not fetched meanwhile.
func (s *session) putBack(u *unit, err error) {
	u.tries++
	u.retryAt = time.Now().Add(backoff(u.tries))
	s.h.failed(err)
	s.b.m.retries.With(s.label).Inc()
	s.logFailure(u.tries, "records, tried again", u.n, err)
	s.pause(u, true)
}

func (s *session) pause(u *unit, paused bool) {
	if u.paused == paused {
		return
	}
	u.paused = paused
	all := map[string][]int32{}
	for _, name := range s.names {
		all[name] = []int32{u.n}
	}
	if paused {
		s.cl.PauseFetchPartitions(all)
	} else if s.owned(u) {
		s.cl.ResumeFetchPartitions(all)
	}
}

// commit writes what the turns emitted and the offsets of all of them as one transaction. An error ends the session: the memory is
// dropped, because nobody knows what stands. Everything else is settled here.
func (s *session) commit(ctx context.Context, turns []turn) error {
	s.busy.Lock()
	defer s.busy.Unlock()
	s.mu.Lock()
	member, generation := s.cl.GroupMetadata()
	turns = slices.DeleteFunc(turns, func(t turn) bool { return s.units[t.u.n] != t.u })
	s.member = member
	s.mu.Unlock()
	if len(turns) == 0 {
		return nil
	}
	began := time.Now()
	var recs []emitted
	for i := range turns {
		t := &turns[i]
		if len(t.e.recs) == 0 {
			continue
		}
		if t.u.task != nil {
			number := []byte(strconv.FormatInt(t.u.number+1, 10))
			for _, em := range t.u.heal {
				rec := *em.rec // an aborted one is not written again
				t.e.recs = append(t.e.recs, emitted{rec: &rec, state: true})
			}
			// What heals goes first: the task's own word on a key is the last.
			n := len(t.u.heal)
			t.e.recs = slices.Concat(t.e.recs[len(t.e.recs)-n:], t.e.recs[:len(t.e.recs)-n])
			for _, em := range t.e.recs {
				if em.state {
					em.rec.Headers = []kgo.RecordHeader{{Key: txnHeader, Value: number}}
				}
			}
		}
		recs = append(recs, t.e.recs...)
	}
	offsets := s.offsetsOf(turns)

	// Once begun it is brought to an end, whether or not the stage is being stopped.
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if s.hooks.Killed != nil {
		defer context.AfterFunc(s.bg, cancel)()
	}
	var err error
	if len(recs) == 0 {
		// Nothing was written: the offsets alone need no transaction.
		err = s.commitOffsets(cctx, member, generation, offsets)
	} else {
		err = commitRecords(cctx, s.cl, recs, func(ctx context.Context) error {
			if err := s.hooks.Step(ctx, hook.Produced, turns[0].u.n); err != nil {
				return err
			}
			s.noteLogged(turns, offsets)
			if err := s.commitTxnOffsets(ctx, member, generation, offsets); err != nil {
				return err
			}
			return s.hooks.Step(ctx, hook.OffsetsSent, turns[0].u.n)
		})
		s.b.m.txnSeconds.With(s.label).Observe(time.Since(began).Seconds())
	}
	if err == nil {
		err = s.hooks.Step(ctx, hook.Committed, turns[0].u.n)
		if err != nil {
			return err // as if the answer had been lost
		}
		s.committed(turns, len(recs), offsets)
		return nil
	}
	var end *endError
	if errors.As(err, &end) && !end.clean {
		s.b.m.txns.With(s.label, "unknown").Inc()
		return s.b.explain("commit", err)
	}
	s.b.m.txns.With(s.label, "aborted").Inc()
	for _, t := range turns {
		if t.u.task != nil {
			t.u.task.Abort()
		}
	}
	switch {
	case errors.Is(err, kerr.FencedInstanceID):
		return ErrInstanceTaken
	case movedOn(err):
		// The group is changing: what stays ours is tried again when it has settled.
		for _, t := range turns {
			t.u.retryAt = time.Now().Add(20 * time.Millisecond)
			t.u.nextTick = t.u.retryAt
		}
		return nil
	case isTooLarge(err) && end != nil && end.refused != nil && s.refused(turns, end):
		return nil
	}
	s.refusals++
	for _, t := range turns {
		if t.tick {
			s.tickFailed(t.u, s.b.explain("commit", err))
		} else {
			s.putBack(t.u, s.b.explain("commit", err))
		}
	}
	return nil
}

// offsetsOf is what a transaction commits: for each unit the next offset of every topic it read, and always that of the first topic,
// which carries the number of the task's last transaction.
func (s *session) offsetsOf(turns []turn) map[string]map[int32]committedOffset {
	offsets := map[string]map[int32]committedOffset{}
	put := func(topic string, n int32, c committedOffset) {
		if offsets[topic] == nil {
			offsets[topic] = map[int32]committedOffset{}
		}
		offsets[topic][n] = c
	}
	for _, t := range turns {
		next := map[string]committedOffset{s.names[0]: {offset: t.u.offsets[s.names[0]], epoch: -1}}
		if t.u.rebuild != nil {
			for _, name := range s.names {
				next[name] = committedOffset{offset: t.u.offsets[name], epoch: -1}
			}
		}
		for _, r := range t.u.pending[:t.upTo] {
			next[r.Topic] = committedOffset{offset: r.Offset + 1, epoch: r.LeaderEpoch}
		}
		for topic, c := range next {
			c.until = t.u.rebuild.until(topic)
			next[topic] = c
		}
		if t.u.task != nil {
			first := next[s.names[0]]
			first.number, first.logged = t.u.number, t.u.logged
			if len(t.e.recs) > 0 {
				first.number++
			}
			first.numbered = true
			next[s.names[0]] = first
		}
		for topic, c := range next {
			put(topic, t.u.n, c)
		}
	}
	return offsets
}

// committed tells the memory, and everyone who counts.
func (s *session) committed(turns []turn, written int, offsets map[string]map[int32]committedOffset) {
	s.refusals = 0
	if written > 0 {
		s.b.m.txns.With(s.label, "committed").Inc()
		s.b.m.out.With(s.label).Add(float64(written))
	}
	dead := 0
	var newest time.Time
	read := map[string]int{}
	for _, t := range turns {
		u := t.u
		if u.task != nil {
			u.task.Commit()
			if len(t.e.recs) > 0 {
				u.number++
				u.heal = nil
			}
		}
		for topic, byPart := range offsets {
			if c, ok := byPart[u.n]; ok {
				u.offsets[topic] = c.offset
				if topic == s.names[0] {
					u.logged = c.logged
				}
			}
		}
		if t.tick {
			u.tickFail = 0
			continue
		}
		for _, r := range u.pending[:t.upTo] {
			if len(u.poison) > 0 {
				delete(u.poison, placeOf(r))
				delete(u.cut, placeOf(r))
			}
			if !r.Attrs.IsControl() {
				read[r.Topic]++
			}
		}
		clear(u.pending[:t.upTo])
		u.pending = u.pending[t.upTo:]
		if len(u.pending) == 0 {
			u.pending = nil
		}
		if t.upTo > 0 && time.Now().After(u.retryAt) {
			u.tries = 0
			s.pause(u, false)
		}
		u.tickNow.Store(u.task != nil)
		dead += t.e.dead
		if t.newest.After(newest) {
			newest = t.newest
		}
	}
	s.mu.Lock()
	for topic, byPart := range offsets {
		for n, c := range byPart {
			if s.units[n] != nil {
				s.position[topic][n] = c.offset
			}
		}
	}
	failing := s.failing()
	s.mu.Unlock()
	for topic, n := range read {
		s.b.m.in.With(s.label, s.rows[topic].Name).Add(float64(n))
	}
	if dead > 0 {
		s.b.m.dead.With(s.label).Add(float64(dead))
	}
	s.h.set(func(h *StageHealth) {
		h.DeadLetters += int64(dead)
		if newest.After(h.LastEvent) {
			h.LastEvent = newest
		}
	})
	if !newest.IsZero() {
		s.b.m.sinceEvent.With(s.label).Set(float64(newest.UnixMilli()) / 1000)
	}
	s.h.progressed(failing)
}

// refused deals with a record the broker finds too large, although its row does not: what it was made from becomes a dead letter, and
// a dead letter that is refused itself goes without its value. False: it was a Tick's own.
func (s *session) refused(turns []turn, end *endError) bool {
	for _, t := range turns {
		if !slices.ContainsFunc(t.e.recs, func(em emitted) bool { return em.rec == end.refused.rec }) {
			continue
		}
		src := end.refused.src
		switch {
		case t.tick:
			return false
		case src == nil:
			for _, r := range t.u.pending[:t.upTo] {
				if !r.Attrs.IsControl() {
					src = r
				}
			}
			if t.read > 1 {
				t.u.span, t.u.suspect = t.read/2, src
				return true
			}
			fallthrough
		default:
			if t.u.poison == nil {
				t.u.poison, t.u.cut = map[place]error{}, map[place]bool{}
			}
			if end.refused.dlq {
				t.u.cut[placeOf(src)] = true
			}
			if t.u.poison[placeOf(src)] == nil {
				t.u.poison[placeOf(src)] = tooLarge(end.err)
			}
		}
		return true
	}
	return false
}

// commitOffsets commits offsets outside of any transaction.
func (s *session) commitOffsets(ctx context.Context, member string, generation int32, offsets map[string]map[int32]committedOffset) error {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.MemberID, req.Generation, req.InstanceID = s.name, member, generation, &s.instance
	for topic, byPart := range offsets {
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic = topic
		for n, c := range byPart {
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = n, c.offset, c.epoch, c.metadata()
			t.Partitions = append(t.Partitions, p)
		}
		req.Topics = append(req.Topics, t)
	}
	return retryGroup(ctx, func() error {
		resp, err := req.RequestWith(ctx, s.cl)
		if err != nil {
			return fmt.Errorf("commit offsets: %w", err)
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return fmt.Errorf("commit offset of %s/%d: %w", t.Topic, p.Partition, err)
				}
			}
		}
		return nil
	})
}

// commitTxnOffsets adds offsets to the open transaction.
func (s *session) commitTxnOffsets(ctx context.Context, member string, generation int32, offsets map[string]map[int32]committedOffset) error {
	id, epoch, err := s.cl.ProducerID(ctx)
	if err != nil {
		return fmt.Errorf("add offsets to transaction: %w", err)
	}
	if !s.can.secondKind {
		err := retryGroup(ctx, func() error {
			req := kmsg.NewPtrAddOffsetsToTxnRequest()
			req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group = s.txnID, id, epoch, s.name
			resp, err := req.RequestWith(ctx, s.cl)
			if err == nil {
				err = kerr.ErrorForCode(resp.ErrorCode)
			}
			if err != nil {
				return fmt.Errorf("add group %s to transaction: %w", s.name, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch = s.txnID, id, epoch
	req.Group, req.MemberID, req.Generation, req.InstanceID = s.name, member, generation, &s.instance
	for topic, byPart := range offsets {
		t := kmsg.NewTxnOffsetCommitRequestTopic()
		t.Topic = topic
		for n, c := range byPart {
			p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = n, c.offset, c.epoch, c.metadata()
			t.Partitions = append(t.Partitions, p)
		}
		req.Topics = append(req.Topics, t)
	}
	return retryGroup(ctx, func() error {
		resp, err := req.RequestWith(ctx, s.cl)
		if err != nil {
			return fmt.Errorf("add offsets to transaction: %w", err)
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return fmt.Errorf("add offset of %s/%d to transaction: %w", t.Topic, p.Partition, err)
				}
			}
		}
		return nil
	})
}

// retryGroup tries again what a coordinator on the move, or a marker still being written, refuses.
func retryGroup(ctx context.Context, f func() error) error {
	wait := 5 * time.Millisecond
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := f()
		switch {
		case errors.Is(err, kerr.ConcurrentTransactions), errors.Is(err, kerr.CoordinatorLoadInProgress),
			errors.Is(err, kerr.CoordinatorNotAvailable), errors.Is(err, kerr.NotCoordinator), errors.Is(err, kerr.UnknownTopicOrPartition):
		default:
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
		wait = min(2*wait, 200*time.Millisecond)
	}
}

// tell passes on which partitions are ours, for RunAssigned.
func (s *session) tell(ctx context.Context, now time.Time) error {
	s.mu.Lock()
	changes := s.changes
	owned := slices.Sorted(maps.Keys(s.units))
	ready := s.inited
	s.mu.Unlock()
	if !ready || changes == s.told && s.toldOnce || now.Before(s.tellAt) {
		return nil
	}
	if err := s.changed(ctx, owned); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		s.tellTries++
		s.tellAt = now.Add(backoff(s.tellTries))
		s.h.failed(err)
		s.logFailure(s.tellTries, "taking over the assignment, tried again", -1, err)
		return nil
	}
	s.told, s.toldOnce, s.tellTries = changes, true, 0
	s.h.progressed(0)
	return nil
}

// close ends the session. leave says goodbye, so that the others need not wait for the session to run out.
func (s *session) close(leave bool) {
	s.mu.Lock()
	for _, u := range s.units {
		u.cancel()
	}
	s.member, _ = s.cl.GroupMetadata()
	s.mu.Unlock()
	s.cancel()
	s.cl.CloseAllowingRebalance()
	s.wg.Wait()
	if leave && s.member != "" {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := s.goodbye(ctx); err != nil {
			s.log.Debug("leave group", "err", err)
		}
	}
}
