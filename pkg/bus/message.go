package bus

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Header is one of a record's headers.
type Header struct {
	Key   string
	Value []byte
}

// Message is a record as it came. Its bytes belong to the bus: copy what is kept beyond the call.
//
// A dead letter that is tried again carries the topic, offset and timestamp it first had, so that a stage sees what it saw then.
type Message struct {
	Topic     topics.Topic
	Partition int32
	Offset    int64
	Timestamp time.Time
	Key       []byte
	Value     []byte // framed
	Headers   []Header
	Redriven  bool // came by the stage's redrive topic

	raw *kgo.Record
}

// Header returns the value of the last header of that name, nil if there is none.
func (m Message) Header(key string) []byte {
	for _, v := range slices.Backward(m.Headers) {
		if v.Key == key {
			return v.Value
		}
	}
	return nil
}

// String names the record's place.
func (m Message) String() string {
	return m.Topic.Name + "/" + strconv.Itoa(int(m.Partition)) + "@" + strconv.FormatInt(m.Offset, 10)
}

// Decode reads a message's value into a new record. A value that is no such record is a Permanent error; a registry that cannot be
// asked is not.
func Decode[R any, P interface {
	*R
	record.Record
}](ctx context.Context, b *Bus, m Message) (P, error) {
	r := P(new(R))
	if b.deps.Serde == nil {
		return nil, fmt.Errorf("decode %s: the bus has no Serde", m)
	}
	if err := b.deps.Serde.Decode(ctx, m.Value, r); err != nil {
		return nil, fmt.Errorf("decode %s of %s: %w", r.SchemaName(), m, decodeClass(err))
	}
	return r, nil
}

// Payload is a message's value without its frame, in our own schema of that name: what a view reads. Nothing is copied when the writer
// had the same schema. Its errors are classed as Decode's are.
func (b *Bus) Payload(ctx context.Context, m Message, name string) ([]byte, error) {
	if b.deps.Serde == nil {
		return nil, fmt.Errorf("decode %s: the bus has no Serde", m)
	}
	payload, _, err := b.deps.Serde.Payload(ctx, m.Value, name)
	if err != nil {
		return nil, fmt.Errorf("decode %s of %s: %w", name, m, decodeClass(err))
	}
	return payload, nil
}

// message gives a fetched record its row. A redriven one gets back the place that its dead letter headers tell.
func (st *stage) message(r *kgo.Record) Message {
	m := Message{
		Topic: st.rows[r.Topic], Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp.UTC(), Key: r.Key, Value: r.Value, raw: r,
	}
	if len(r.Headers) > 0 {
		m.Headers = make([]Header, len(r.Headers))
		for i, h := range r.Headers {
			m.Headers[i] = Header(h)
		}
	}
	if r.Topic != st.redrive {
		return m
	}
	m.Redriven = true
	m.Topic = st.g.Inputs[0]
	for _, in := range st.g.Inputs {
		if name := string(m.Header(dlqTopic)); name == in.Name || name == in.Full(st.b.deps.Prefix) {
			m.Topic = in
		}
	}
	if o, err := strconv.ParseInt(string(m.Header(dlqOffset)), 10, 64); err == nil {
		m.Offset = o
	}
	if p, err := strconv.ParseInt(string(m.Header(dlqPartition)), 10, 32); err == nil {
		m.Partition = int32(p)
	}
	if ms, err := strconv.ParseInt(string(m.Header(dlqTimestamp)), 10, 64); err == nil {
		m.Timestamp = time.UnixMilli(ms).UTC()
	}
	return m
}
