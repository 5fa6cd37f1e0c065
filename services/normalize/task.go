package normalize

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// classes of dead letters that are not the reader's.
const (
	classDecode   = "decode"
	classOversize = "oversize"
	classTooLarge = "too_large"
)

// Keys of changelog records. The topic is cut by time, so nothing is ever looked up by them.
const (
	stateSeen = "seen" // events of one batch
	stateTold = "told" // UTC day of the last word about an overflow
)

// task handles one partition.
type task struct {
	s         *Service
	mask      *systemlog.Mask
	partition int32
	label     string
	memory    memory
	forgotten int    // events forgotten before their time and not yet told
	told      int64  // UTC day of the last word about that
	telling   int64  // the same, of the transaction under way
	org       string // of the last event
	event     record.SystemLog
	scratch   []byte
}

func newTask(s *Service, mask *systemlog.Mask, partition int32) *task {
	return &task{s: s, mask: mask, partition: partition, label: strconv.Itoa(int(partition)), memory: memory{cfg: s.cfg.Dedup}}
}

func (t *task) Restore(key, value []byte) error {
	switch {
	case value == nil:
		return nil
	case string(key) == stateTold:
		day, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil {
			return fmt.Errorf("read dedup memory: day of the last overflow: %w", err)
		}
		t.told = day
		return nil
	}
	return t.memory.load(value)
}

func (t *task) Process(ctx context.Context, batch []bus.Message, out *bus.Emit) error {
	t.makeRoom()
	t.memory.pending = t.memory.pending[:0]
	for _, m := range batch {
		what, err := t.handle(ctx, m, out)
		if err != nil {
			return err
		}
		t.s.m.results[what].Inc()
	}
	if b := t.memory.flush(); b != nil {
		out.State([]byte(stateSeen), b)
	}
	return t.tell(out)
}

// handle writes what one raw event asks for.
func (t *task) handle(ctx context.Context, m bus.Message, out *bus.Emit) (result, error) {
	raw, err := bus.Decode[record.RawEvent](ctx, t.s.bus, m)
	if err != nil {
		if !errors.Is(err, record.ErrUnreadable) {
			return "", err // the registry: it may pass
		}
		t.s.m.unreadable.With(classDecode).Inc()
		out.DeadLetter(m, classDecode, err)
		return deadUnread, nil
	}
	if raw.Oversize {
		// There is nothing to normalize, now or later. As a dead letter it is at least seen, and names the event to look up in Okta.
		out.DeadLetter(m, classOversize, fmt.Errorf("event %q of %d bytes is larger than is carried (%d): look it up in Okta by its uuid", raw.UUID, raw.Size, topics.MaxEvent))
		return deadOversize, nil
	}
	ev := &t.event
	found, err := systemlog.Read(raw.JSON, t.mask, ev)
	if err != nil {
		class := "unreadable"
		if unread, ok := errors.AsType[*systemlog.Error](err); ok {
			class = unread.Class
		}
		t.s.m.unreadable.With(class).Inc()
		out.DeadLetter(m, class, err)
		return deadUnread, nil
	}
	derive(ev, raw, m)
	t.org = raw.Org
	if raw.Seed {
		return t.seed(ev, found, m, out)
	}
	what, keep := t.judge(ev, uint32(max(m.Timestamp.Unix(), 0)))
	if what != wroteFirst && what != wroteSecond {
		return what, nil
	}
	if err := out.Put(topics.SystemLog, keyFor(ev), ev); err != nil {
		if !errors.Is(err, bus.ErrTooLarge) {
			return "", err
		}
		out.DeadLetter(m, classTooLarge, err)
		return deadTooLarge, nil
	}
	keep()
	t.count(ev, found)
	return what, nil
}

// seed passes on an event of the past for rules with memory. It is no copy of anything: the live event of its uuid is to be
// judged whether a seed came or not, and a seed is wanted again by a rule that came later. A rule counts it once.
func (t *task) seed(ev *record.SystemLog, found []systemlog.Finding, m bus.Message, out *bus.Emit) (result, error) {
	ev.Derived.Partial = false // no better copy will come
	if err := out.Put(topics.SystemLog, keyFor(ev), ev); err != nil {
		if !errors.Is(err, bus.ErrTooLarge) {
			return "", err
		}
		out.DeadLetter(m, classTooLarge, err)
		return deadTooLarge, nil
	}
	t.count(ev, found)
	return wroteSeed, nil
}

// derive fills what is known of the record beside Okta's own fields.
func derive(ev *record.SystemLog, raw *record.RawEvent, m bus.Message) {
	sum := raw.SHA256
	if sum == "" {
		s := sha256.Sum256(raw.JSON)
		sum = hex.EncodeToString(s[:])
	}
	lane := raw.Lane
	if lane == "" {
		lane = liveLane
	}
	ev.Derived = record.Derived{
		Org: raw.Org, Lane: lane, Copy: 1, Partial: raw.Partial, Seed: raw.Seed,
		Backfill: lane != liveLane || raw.Source == "backfill" || raw.Source == "replay",
		Time:     systemlog.EventTime(ev.Published, raw.ReceivedAt), Received: raw.ReceivedAt,
		Source: raw.Source, SourceID: raw.SourceID, RawPartition: m.Partition, RawOffset: m.Offset, RawSHA256: sum,
		Masked: ev.Derived.Masked,
	}
}

const liveLane = "live"

// judge says which copy of which event this is, and how to remember it once it is written.
func (t *task) judge(ev *record.SystemLog, at uint32) (what result, keep func()) {
	d := &ev.Derived
	identity := identityOf(ev)
	k := keyOf(d.Lane, d.Org, ev.UUID)
	known, ok := t.memory.get(k, at)
	if ok && known.identity != identity { // the uuid is another event's
		k = k.other(identity)
		d.UUIDReused, d.ContentHash = true, fmt.Sprintf("%016x", identity)
		known, ok = t.memory.get(k, at)
	}
	now := seen{identity: identity, at: at, partial: d.Partial}
	switch {
	case !ok:
		if d.Partial {
			now.sections = carried(ev)
			now.content, t.scratch = contentOf(ev, now.sections, t.scratch)
		}
		what = wroteFirst
	case !d.Partial && known.partial:
		d.Copy = 2
		var content uint64
		content, t.scratch = contentOf(ev, known.sections, t.scratch)
		d.Differs = content != known.content
		what = wroteSecond
	case d.Partial && !known.partial:
		return dropPartial, nil
	default:
		return dropDuplicate, nil
	}
	return what, func() { t.memory.put(k, now) }
}

func (t *task) count(ev *record.SystemLog, found []systemlog.Finding) {
	for _, f := range found {
		t.s.m.fields.With(f.Field, f.Problem).Inc()
	}
	if n := ev.Derived.Masked; n > 0 {
		t.s.m.masked.Add(float64(n))
	}
	if ev.Derived.Differs {
		t.s.m.differs.Inc()
	}
	if ev.Derived.UUIDReused {
		t.s.m.reused.Inc()
	}
}

// Tick forgets what is too old. It writes nothing.
func (t *task) Tick(context.Context, time.Time, *bus.Emit) error {
	t.memory.sweep()
	n := t.memory.events.Len()
	t.s.m.known.With(t.label).Set(float64(n))
	t.s.m.bytes.With(t.label).Set(float64(n * entryBytes))
	return nil
}

func (t *task) Commit() {
	t.memory.events.Commit()
	if t.telling != 0 {
		t.told, t.telling, t.forgotten = t.telling, 0, 0
	}
}

func (t *task) Abort() {
	t.memory.events.Abort()
	t.memory.pending = t.memory.pending[:0]
	t.telling = 0
}

// makeRoom forgets the oldest events when the memory is full.
func (t *task) makeRoom() {
	if n := t.memory.evict(); n > 0 {
		t.s.m.overflow.Add(float64(n))
		t.forgotten += n
	}
}

// tell raises the finding that events were forgotten before their time, once a day.
func (t *task) tell(out *bus.Emit) error {
	at := time.Unix(int64(t.memory.newest), 0).UTC()
	day := at.Unix() / (24 * 3600)
	if t.forgotten == 0 || t.org == "" || day == t.told {
		return nil
	}
	d := overflow(t.org, t.partition, at, t.forgotten, t.memory.cfg.MaxBytes)
	if err := out.Put(topics.Detections, d.Fingerprint, d); err != nil {
		return fmt.Errorf("tell that the dedup memory is full: %w", err)
	}
	out.State([]byte(stateTold), strconv.AppendInt(nil, day, 10))
	t.telling = day
	t.s.log.Warn("the dedup memory is full: a copy that comes later than usual would be taken for a new event; raise normalize.dedup.max_bytes or lower normalize.dedup.memory",
		"partition", t.partition, "max_bytes", t.memory.cfg.MaxBytes, "forgotten", t.forgotten)
	return nil
}
