package detect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	liveLane     = "live"
	roundEvery   = time.Second
	lookFirst    = 10 * time.Millisecond // how soon a group's offsets are looked at again, at first
	lookLast     = 500 * time.Millisecond
	stepTimeout  = 10 * time.Second
	firstClock   = 1 // rules over events
	secondClock  = 2 // rules over detections
	endedPrefix  = "\x00ended\x00"
	hookPart     = "hook."
	pollKind     = "poll"
	backfillKind = "backfill"
	replayKind   = "replay"
)

// lane is what has a time of its own.
type lane struct{ org, lane string }

func (l lane) String() string { return l.org + "/" + l.lane }

// laneTime is how far a lane is complete.
type laneTime struct {
	through time.Time
	ended   bool
}

// clock turns what the pollers have completed (`through` of their cursors, the status of a source that has only a hook) into the time
// of every partition of the state stage. The owner of partition 0 holds it. It works in rounds for all orgs and lanes together: what
// the cursors say; then the end of the raw events, until normalize has passed it; then the end of the events, until the match stage has
// passed it; then everything that the cursors counted lies in oktawatch.matches.v1, and the time is written behind it. So a stage that is
// slow or down holds time back, and nothing it still has to do can come late. A round goes on beside the stage, which only collects
// what came of it in its Tick and never waits.
type clock struct {
	b      *bus.Bus
	log    *slog.Logger
	second func() bool // rules over detections are loaded: there is a second time
	wg     *sync.WaitGroup

	mu      sync.Mutex
	values  map[string][]byte // of cursors and source status, by topic and key; framed
	version int               // of values
	open    bool              // the tables are whole and kept up

	started  bool
	began    time.Time
	seen     int // version that the last round has read
	running  chan outcome
	parts    int32
	due      *outcome // to be written
	writing  bool     // by the transaction under way
	told     map[lane]laneTime
	handedOn map[string]string // changelog key of a lane: the end that was told
	failed   int
}

// outcome is what a round, or its second half, came to.
type outcome struct {
	clock int32
	more  bool // the second time follows
	times map[lane]laneTime
	back  []string // changelog keys of lanes that began anew after their end
	parts int32
	seen  int
	err   error
}

func newClock(b *bus.Bus, log *slog.Logger, wg *sync.WaitGroup, second func() bool) *clock {
	return &clock{b: b, log: log, wg: wg, second: second, values: map[string][]byte{}, told: map[lane]laneTime{}, handedOn: map[string]string{}}
}

// restore takes back which lanes' ends were handed on.
func (c *clock) restore(key string, value []byte) {
	if value == nil {
		delete(c.handedOn, key)
		return
	}
	c.handedOn[key] = string(value)
}

// tick goes on with a round: it begins one, or writes what one came to. It never waits.
func (c *clock) tick(ctx context.Context, now time.Time, out *bus.Emit) error {
	if !c.started {
		c.started = true
		c.follow(ctx)
	}
	if c.running != nil {
		select {
		case o := <-c.running:
			c.running = nil
			if o.err != nil {
				c.fail(o.err)
				break
			}
			c.failed, c.seen, c.parts = 0, o.seen, o.parts
			if len(o.times) > 0 || len(o.back) > 0 {
				c.due = &o
			}
		default:
			return nil
		}
	}
	if c.due != nil {
		return c.write(out)
	}
	c.mu.Lock()
	fresh := c.open && c.version != c.seen
	c.mu.Unlock()
	if !fresh || now.Sub(c.began) < roundEvery {
		return nil
	}
	c.began = now
	told := maps.Clone(c.told)
	handedOn := maps.Clone(c.handedOn)
	c.run(ctx, func() outcome { return c.round(ctx, told, handedOn) })
	return nil
}

// run does something beside the stage and has the next Tick collect it.
func (c *clock) run(ctx context.Context, f func() outcome) {
	done := make(chan outcome, 1)
	c.running = done
	c.wg.Go(func() {
		done <- f()
		bus.Wake(ctx)
	})
}

func (c *clock) fail(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	c.failed++
	if c.failed&(c.failed-1) == 0 {
		c.log.Warn("the time of windowed rules stands still; tried again", "error", err, "tries", c.failed)
	}
}

// follow keeps the cursors and the status of the sources at hand until ctx ends.
func (c *clock) follow(ctx context.Context) {
	c.wg.Go(func() {
		for tries := 1; ctx.Err() == nil; tries++ {
			err := c.keep(ctx)
			c.mu.Lock()
			c.open = false
			c.mu.Unlock()
			if ctx.Err() != nil {
				return
			}
			if tries&(tries-1) == 0 {
				c.log.Warn("the cursors cannot be read, and the time of windowed rules stands still; tried again", "error", err, "tries", tries)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
}

func (c *clock) keep(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tables []*bus.Table
	c.mu.Lock()
	clear(c.values)
	c.mu.Unlock()
	defer func() {
		cancel()
		for _, t := range tables {
			<-t.Done()
		}
	}()
	for _, row := range []topics.Topic{topics.Cursors, topics.SourceStatus} {
		t, err := c.b.OpenTable(ctx, row, func(key string, value []byte) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.version++
			if value == nil {
				delete(c.values, row.Name+"\x00"+key)
				return
			}
			c.values[row.Name+"\x00"+key] = value
		})
		if err != nil {
			return err
		}
		tables = append(tables, t)
	}
	c.mu.Lock()
	c.open = true
	c.mu.Unlock()
	bus.Wake(ctx)
	select {
	case <-tables[0].Done():
		return tables[0].Err()
	case <-tables[1].Done():
		return tables[1].Err()
	}
}

// round is one from the cursors to what is to be written.
func (c *clock) round(ctx context.Context, told map[lane]laneTime, handedOn map[string]string) outcome {
	c.mu.Lock()
	values, version := maps.Clone(c.values), c.version
	c.mu.Unlock()
	now, err := c.times(ctx, values)
	if err != nil {
		return outcome{err: err}
	}
	o := outcome{clock: firstClock, times: map[lane]laneTime{}, parts: c.parts, seen: version}
	for l, t := range now {
		key := endedPrefix + l.org + "\x00" + l.lane
		at := strconv.FormatInt(t.through.UnixMilli(), 10)
		last, known := told[l]
		switch {
		case t.ended && handedOn[key] != at:
			o.times[l] = t
		case t.ended:
		case handedOn[key] != "":
			o.back = append(o.back, key)
			o.times[l] = t
		case !known || t.through.After(last.through):
			o.times[l] = t
		}
	}
	for key := range handedOn { // its cursor is gone: nobody asks any more
		org, name, _ := strings.Cut(strings.TrimPrefix(key, endedPrefix), "\x00")
		if _, ok := now[lane{org, name}]; !ok {
			o.back = append(o.back, key)
		}
	}
	slices.Sort(o.back)
	if len(o.times) == 0 {
		return o
	}
	if o.parts == 0 {
		if o.parts, err = c.b.Partitions(ctx, topics.Matches); err != nil {
			return outcome{err: err}
		}
	}
	if err := c.passed(ctx, topics.Raw, topics.NormalizeDedup); err != nil {
		return outcome{err: err}
	}
	if err := c.passed(ctx, topics.SystemLog, topics.DetectMatch); err != nil {
		return outcome{err: err}
	}
	return o
}

// passed notes the end of a topic and returns when a group has passed it.
func (c *clock) passed(ctx context.Context, t topics.Topic, g topics.Group) error {
	ends, err := c.b.Ends(ctx, t)
	if err != nil {
		return err
	}
	for wait := lookFirst; ; wait = min(2*wait, lookLast) {
		sctx, cancel := context.WithTimeout(ctx, stepTimeout)
		done, err := c.b.Passed(sctx, g, ends)
		cancel()
		if err != nil {
			return err
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// times is how far each lane is complete by what the cursors and the status of the sources say.
func (c *clock) times(ctx context.Context, values map[string][]byte) (map[lane]laneTime, error) {
	out := map[lane]laneTime{}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value := values[key]
		topic := topics.Cursors
		if strings.HasPrefix(key, topics.SourceStatus.Name+"\x00") {
			topic = topics.SourceStatus
		}
		m := bus.Message{Topic: topic, Value: value}
		var l lane
		var t laneTime
		if topic.Name == topics.Cursors.Name {
			cur, err := bus.Decode[record.Cursor](ctx, c.b, m)
			if err != nil {
				if errors.Is(err, record.ErrUnreadable) {
					continue
				}
				return nil, fmt.Errorf("read a cursor: %w", err)
			}
			l = lane{cur.Org, cur.Lane}
			switch cur.Kind {
			case pollKind:
			case backfillKind, replayKind:
				if cur.Lane == liveLane { // it seeds the live lane, whose time is the poller's
					continue
				}
			default:
				continue
			}
			t.ended = cur.Ended
			if cur.Through != nil {
				t.through = *cur.Through
			}
		} else {
			st, err := bus.Decode[record.SourceStatus](ctx, c.b, m)
			if err != nil {
				if errors.Is(err, record.ErrUnreadable) {
					continue
				}
				return nil, fmt.Errorf("read the status of a source: %w", err)
			}
			if !strings.HasPrefix(st.Part, hookPart) || st.Through == nil { // what a poller has completed its cursor says
				continue
			}
			l, t.through = lane{st.Org, liveLane}, *st.Through
		}
		if l.org == "" || t.through.IsZero() && !t.ended {
			continue
		}
		// An org has one source; should there be traces of another, what goes on counts.
		switch have, ok := out[l]; {
		case !ok, have.ended && !t.ended, have.ended == t.ended && t.through.After(have.through):
			out[l] = t
		}
	}
	return out, nil
}

// write puts the time behind everything it is about, in every partition.
func (c *clock) write(out *bus.Emit) error {
	o := c.due
	c.writing = true
	o.more = o.clock == firstClock && c.second()
	for _, l := range slices.SortedFunc(maps.Keys(o.times), func(a, b lane) int {
		return cmp.Or(cmp.Compare(a.org, b.org), cmp.Compare(a.lane, b.lane))
	}) {
		t := o.times[l]
		through := t.through.UTC()
		m := &record.Match{Kind: engine.MatchClock, Org: l.org, Lane: l.lane, Partition: -1, Offset: -1, Clock: o.clock, Ended: t.ended, Through: &through}
		for n := range o.parts {
			if err := out.Put(topics.Matches, l.org+"//"+l.lane, m, bus.ToPartition(n)); err != nil {
				return fmt.Errorf("write the time of %s: %w", l, err)
			}
		}
		if t.ended && !o.more { // else an owner that comes between hands the first time on once more, which ends nothing
			out.State([]byte(endedPrefix+l.org+"\x00"+l.lane), strconv.AppendInt(nil, t.through.UnixMilli(), 10))
		}
	}
	for _, key := range o.back {
		out.State([]byte(key), nil)
	}
	return nil
}

// commit is told that what tick wrote stands.
func (c *clock) commit(ctx context.Context) {
	if !c.writing {
		return
	}
	o := c.due
	c.due, c.writing = nil, false
	for _, key := range o.back {
		delete(c.handedOn, key)
	}
	for l, t := range o.times {
		switch {
		case !t.ended:
			c.told[l] = t
		case o.more:
			delete(c.told, l)
		default:
			delete(c.told, l)
			c.handedOn[endedPrefix+l.org+"\x00"+l.lane] = strconv.FormatInt(t.through.UnixMilli(), 10)
		}
	}
	if o.more {
		// What the first time decides has been written by the state stage when its group has passed it in every partition.
		next := outcome{clock: secondClock, times: o.times, parts: o.parts, seen: o.seen}
		c.run(ctx, func() outcome {
			for {
				err := c.passed(ctx, topics.Matches, topics.DetectState)
				if err == nil || ctx.Err() != nil {
					next.err = err
					return next
				}
				c.log.Warn("the time of rules over detections stands still; tried again", "error", err)
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
}

// abort is told that it does not: it is written again.
func (c *clock) abort() { c.writing = false }
