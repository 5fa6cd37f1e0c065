package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Headers of a dead letter, beside those the record had. All are text.
const (
	dlqTopic     = "dlq.topic"         // where the record was read: row name
	dlqPartition = "dlq.partition"     //
	dlqOffset    = "dlq.offset"        //
	dlqTimestamp = "dlq.timestamp"     // milliseconds
	dlqService   = "dlq.service"       // who could not handle it
	dlqStage     = "dlq.stage"         //
	dlqAttempts  = "dlq.attempts"      // how often it became a dead letter
	dlqClass     = "dlq.error.class"   // permanent, decode, panic, too_large or the caller's own
	dlqMessage   = "dlq.error.message" // at most maxErrorText bytes
	dlqCut       = "dlq.value.cut"     // size of a value that even the dead letter topic refused

	maxErrorText = 1024
)

const (
	txnHeader      = "txn" // of a changelog record: the number of its task's transaction
	recordOverhead = 128   // what a batch of one record adds to key, value and headers, at most
)

// Emit takes what a stage writes. Nothing leaves before the call it was given to has returned; then all of it is committed together
// with what was read, or nothing. It must not be used after the call, nor by two goroutines at once.
type Emit struct {
	b    *Bus
	ctx  context.Context //nolint:containedctx // lives as long as one call of the stage
	g    topics.Group
	part int32 // of the task
	task bool

	recs  []emitted
	dead  int
	err   error  // of State, which returns none
	arena []byte // what Put encodes into; the records share it
}

// A record of Put is encoded behind the one before it, so that a batch of many needs few allocations and grows no slice record by
// record. A small batch begins small.
const (
	arenaFirst = 8 << 10
	arenaNext  = 128 << 10
	arenaRoom  = 6 << 10 // less than that: a new one, for most records fit in
)

// emitted is a record and what it came from.
type emitted struct {
	rec   *kgo.Record
	src   *kgo.Record // the input it was made for; nil: unknown, or a tick
	state bool
	dlq   bool
}

// PutOption changes one record.
type PutOption func(*kgo.Record)

// ToPartition names the partition, where the topic's row leaves it to the writer.
func ToPartition(n int32) PutOption { return func(r *kgo.Record) { r.Partition = n } }

// WithHeader adds a header.
func WithHeader(key string, value []byte) PutOption {
	return func(r *kgo.Record) { r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: value}) }
}

// Put writes a record; a nil one is a tombstone. It fails at once, as a Permanent error, on a record its topic would not take.
func (e *Emit) Put(t topics.Topic, key string, r record.Record, opts ...PutOption) error {
	if r == nil {
		return e.PutRaw(t, key, nil, opts...)
	}
	switch room := cap(e.arena) - len(e.arena); {
	case e.arena == nil:
		e.arena = make([]byte, 0, arenaFirst)
	case room < arenaRoom:
		e.arena = make([]byte, 0, arenaNext)
	}
	out, err := e.b.encode(e.ctx, t, r, e.arena)
	if err != nil {
		return err
	}
	value := out[len(e.arena):len(out):len(out)]
	e.arena = out
	return e.PutRaw(t, key, value, opts...)
}

// PutRaw writes bytes as they are; nil is a tombstone.
func (e *Emit) PutRaw(t topics.Topic, key string, value []byte, opts ...PutOption) error {
	rec, err := e.b.build(t, key, value, opts...)
	if err != nil {
		return err
	}
	e.recs = append(e.recs, emitted{rec: rec})
	return nil
}

// State writes to the task's changelog: the value of a key, nil when it has ended. The bus does not look into it. It comes back by
// Restore.
func (e *Emit) State(key, value []byte) {
	if e.g.State == nil || !e.task {
		e.err = errors.Join(e.err, fmt.Errorf("%s has no state topic", e.g.Name("")))
		return
	}
	rec := &kgo.Record{Topic: e.g.State.Full(e.b.deps.Prefix), Partition: e.part, Key: slices.Clone(key), Value: slices.Clone(value)}
	if size := sizeOf(rec); size > e.g.State.MaxBytes {
		e.err = errors.Join(e.err, tooLarge(fmt.Errorf("state of %d bytes for %s, which takes %d", size, e.g.State.Name, e.g.State.MaxBytes)))
		return
	}
	e.recs = append(e.recs, emitted{rec: rec, state: true})
}

// DeadLetter sends one record of the batch to its dead letter topic, for a caller that goes on with the others. Class is one word
// ("decode"), the error what a person reads: it must carry no secrets.
func (e *Emit) DeadLetter(m Message, class string, err error) {
	e.recs = append(e.recs, emitted{rec: e.b.deadLetter(e.g, m, class, err), src: m.raw, dlq: true})
	e.dead++
}

func (e *Emit) mark() (int, int) { return len(e.recs), e.dead }

func (e *Emit) reset(recs, dead int) {
	clear(e.recs[recs:])
	e.recs, e.dead, e.err = e.recs[:recs], dead, nil
}

// source notes which input the records since mark were made for.
func (e *Emit) source(mark int, r *kgo.Record) {
	for i := mark; i < len(e.recs); i++ {
		e.recs[i].src = r
	}
}

// encode appends the framed record to dst.
func (b *Bus) encode(ctx context.Context, t topics.Topic, r record.Record, dst []byte) ([]byte, error) {
	if b.deps.Serde == nil {
		return nil, fmt.Errorf("write to %s: the bus has no Serde", t.Name)
	}
	value, err := b.deps.Serde.Encode(ctx, t.Subject(b.deps.Prefix), r, dst)
	if err != nil {
		return nil, fmt.Errorf("encode %s for %s: %w", r.SchemaName(), t.Name, err)
	}
	return value, nil
}

func (b *Bus) build(t topics.Topic, key string, value []byte, opts ...PutOption) (*kgo.Record, error) {
	rec := &kgo.Record{Topic: t.Full(b.deps.Prefix), Partition: -1, Key: []byte(key), Value: value}
	for _, o := range opts {
		o(rec)
	}
	if t.Partitioner == topics.Explicit && rec.Partition < 0 {
		return nil, Permanent(fmt.Errorf("write to %s: its partition is the writer's to name: use ToPartition", t.Name))
	}
	if size := sizeOf(rec); t.MaxBytes > 0 && size > t.MaxBytes {
		return nil, tooLarge(fmt.Errorf("%d bytes under key %q for %s, which takes %d", size, clip(key, 64), t.Name, t.MaxBytes))
	}
	return rec, nil
}

func sizeOf(r *kgo.Record) int {
	n := len(r.Key) + len(r.Value) + recordOverhead
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value) + 10
	}
	return n
}

// deadLetter keeps key, value and headers as they were and says where, when and why.
func (b *Bus) deadLetter(g topics.Group, m Message, class string, err error) *kgo.Record {
	attempts := 1
	if n, perr := strconv.Atoi(string(m.Header(dlqAttempts))); perr == nil && m.Redriven {
		attempts = n + 1
	}
	dlq := m.Topic.DLQ()
	rec := &kgo.Record{Topic: dlq.Full(b.deps.Prefix), Partition: -1, Key: m.Key, Value: m.Value}
	for _, h := range m.Headers {
		if m.Redriven && strings.HasPrefix(h.Key, "dlq.") {
			continue // those of the last attempt
		}
		rec.Headers = append(rec.Headers, kgo.RecordHeader(h))
	}
	text := ""
	if err != nil {
		text = clip(err.Error(), maxErrorText)
	}
	for _, kv := range [][2]string{
		{dlqTopic, m.Topic.Name},
		{dlqPartition, strconv.Itoa(int(m.Partition))},
		{dlqOffset, strconv.FormatInt(m.Offset, 10)},
		{dlqTimestamp, strconv.FormatInt(m.Timestamp.UnixMilli(), 10)},
		{dlqService, g.Service},
		{dlqStage, g.Stage},
		{dlqAttempts, strconv.Itoa(attempts)},
		{dlqClass, clip(class, 64)},
		{dlqMessage, text},
	} {
		rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: kv[0], Value: []byte(kv[1])})
	}
	if sizeOf(rec) > dlq.MaxBytes {
		cutValue(rec)
	}
	return rec
}

// cutValue drops the bytes that even the dead letter topic refuses: the headers still say where they lie.
func cutValue(rec *kgo.Record) {
	rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: dlqCut, Value: []byte(strconv.Itoa(len(rec.Value)))})
	rec.Value = nil
}

// clip makes text short and printable.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
