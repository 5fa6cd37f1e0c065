package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Sender writes single records outside of any stage: idempotent, acknowledged by all replicas in sync. Many callers at once share
// batches.
type Sender struct {
	b  *Bus
	cl *kgo.Client
	// err is why there is no client; every Send gives it back.
	err error
}

// Sender returns the bus's one sender.
func (b *Bus) Sender() *Sender {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sender != nil && b.sender.err == nil {
		return b.sender
	}
	s := &Sender{b: b}
	b.sender = s
	if b.closed {
		s.err = errClosed
		return s
	}
	opts, err := b.options("sender")
	if err != nil {
		s.err = err
		return s
	}
	opts = append(opts,
		kgo.MaxBufferedRecords(10_000),
		kgo.MaxBufferedBytes(64<<20),
		kgo.RecordDeliveryTimeout(30*time.Second),
		kgo.UnknownTopicRetries(3),
	)
	s.cl, s.err = kgo.NewClient(opts...)
	return s
}

// Send writes one record, a nil one as a tombstone, and returns when the broker has it, or with an error when it may not have: at the latest when the context
// ends. After such an error the record may still come to stand.
func (s *Sender) Send(ctx context.Context, t topics.Topic, key string, r record.Record, opts ...PutOption) error {
	if r == nil {
		return s.SendRaw(ctx, t, key, nil, opts...)
	}
	value, err := s.b.encode(ctx, t, r, nil)
	if err != nil {
		return err
	}
	return s.SendRaw(ctx, t, key, value, opts...)
}

// SendRaw is Send with bytes as they are; nil is a tombstone.
func (s *Sender) SendRaw(ctx context.Context, t topics.Topic, key string, value []byte, opts ...PutOption) error {
	if s.err != nil {
		return s.err
	}
	rec, err := s.b.build(t, key, value, opts...)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	s.cl.Produce(ctx, rec, func(_ *kgo.Record, err error) { done <- err })
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	switch {
	case err == nil:
		return nil
	case isTooLarge(err):
		return tooLarge(fmt.Errorf("write to %s: %w", t.Name, err))
	case errors.Is(err, kgo.ErrRecordTimeout):
		return fmt.Errorf("write to %s: not acknowledged in time: %w", t.Name, err)
	}
	return s.b.explain("write to "+t.Name, err)
}

// DeadLetter writes bytes that no stage has read to a topic's dead letters: where is who could not read them, as service and stage.
func (s *Sender) DeadLetter(ctx context.Context, t topics.Topic, g topics.Group, key string, value []byte, class string, reason error, opts ...PutOption) error {
	if s.err != nil {
		return s.err
	}
	m := Message{Topic: t, Partition: -1, Offset: -1, Timestamp: time.Now(), Key: []byte(key), Value: value}
	rec := s.b.deadLetter(g, m, class, reason)
	for _, o := range opts {
		o(rec)
	}
	headers := make([]PutOption, len(rec.Headers))
	for i, h := range rec.Headers {
		headers[i] = WithHeader(h.Key, h.Value)
	}
	return s.SendRaw(ctx, t.DLQ(), key, rec.Value, headers...)
}

func (s *Sender) close() {
	if s.cl != nil {
		s.cl.Close()
	}
}
