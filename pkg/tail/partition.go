package tail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
)

// maxBytes bounds one answer, and so, times the partitions, what a read holds in memory. A larger record comes alone.
const maxBytes = 1 << 20

// partition is the reading of one partition.
type partition struct {
	id   int32
	next int64 // offset to read next
	end  int64 // to stop at; -1: never

	gap   int64  // the offset at which nothing came though there should be something
	buf   []byte // holds one record at a time
	heads []Header
}

func (p *partition) done() bool { return p.end >= 0 && p.next >= p.end }

// run reads until the end, an error of f, or the end of ctx.
func (p *partition) run(ctx context.Context, c *cluster, mu *sync.Mutex, f func(Record) error) error {
	wait, failures := minBackoff, 0
	for !p.done() && ctx.Err() == nil {
		part, err := p.fetch(ctx, c)
		if err == nil {
			err = p.take(c, part, mu, f)
			if stop := (*stopError)(nil); errors.As(err, &stop) {
				return stop.err
			}
		}
		switch {
		case err == nil:
			if failures > 0 {
				c.healed()
			}
			wait, failures = minBackoff, 0
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, kafka.OffsetOutOfRange):
			if err = p.reset(ctx, c); err == nil {
				continue
			}
		}
		failures++
		if !retriable(err) || (failures >= giveUp && hopeless(err)) {
			return fmt.Errorf("read %s partition %d at offset %d: %w", c.topic, p.id, p.next, err)
		}
		if failures > 2 {
			c.trouble(err)
			c.widen()
		}
		pause(ctx, wait)
		wait = min(2*wait, maxBackoff)
	}
	return nil
}

// stopError marks what came from the caller's function: it is never tried again.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }

var errUnreadable = errors.New("records cannot be read")

// hopeless tells whether an error that has come again and again will go on coming: the broker answers, but what is asked
// for is not there or cannot be read. A broker that does not answer, or has no leader yet, is waited for.
func hopeless(err error) bool {
	var (
		code    kafka.Error
		network net.Error
		routing *fetch.Error
	)
	switch {
	case errors.Is(err, protocol.ErrNoTopic):
		return true
	case errors.As(err, &code):
		return code == kafka.UnknownTopicOrPartition || code == kafka.OffsetOutOfRange || code == kafka.InvalidMessage
	case errors.As(err, &network), errors.As(err, &routing), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, io.ErrClosedPipe), errors.Is(err, net.ErrClosed), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return false
	}
	return true
}

func (p *partition) fetch(ctx context.Context, c *cluster) (*fetch.ResponsePartition, error) {
	// The metadata behind a request's routing is the transport's; an unknown leader is an error that heals.
	resp, err := c.roundTrip(ctx, &fetch.Request{
		ReplicaID: -1, MaxWaitTime: int32(maxWait.Milliseconds()), MinBytes: 1, MaxBytes: maxBytes, IsolationLevel: readCommitted, SessionEpoch: -1,
		Topics: []fetch.RequestTopic{{Topic: c.topic, Partitions: []fetch.RequestPartition{{
			Partition: p.id, CurrentLeaderEpoch: -1, FetchOffset: p.next, LogStartOffset: -1, PartitionMaxBytes: maxBytes,
		}}}},
	})
	if err != nil {
		return nil, err
	}
	fr, ok := resp.(*fetch.Response)
	if !ok {
		return nil, fmt.Errorf("fetch answered with %T", resp)
	}
	if fr.ErrorCode != 0 {
		return nil, kafka.Error(fr.ErrorCode)
	}
	for i := range fr.Topics {
		for j := range fr.Topics[i].Partitions {
			if part := &fr.Topics[i].Partitions[j]; part.Partition == p.id {
				if part.ErrorCode != 0 {
					return nil, kafka.Error(part.ErrorCode)
				}
				return part, nil
			}
		}
	}
	return nil, fmt.Errorf("fetch answered without partition %d", p.id)
}

// take hands out what an answer holds and moves on.
func (p *partition) take(c *cluster, part *fetch.ResponsePartition, mu *sync.Mutex, f func(Record) error) error {
	begun := p.next
	stream, _ := part.RecordSet.Records.(*protocol.RecordStream)
	if stream == nil || len(stream.Records) == 0 {
		// A partition asked for alone gets at least one batch if there is any below the last stable offset. Seen twice, there
		// is none: compaction took it.
		if part.LastStableOffset > p.next {
			if p.gap == p.next+1 {
				p.next = part.LastStableOffset
			}
			p.gap = begun + 1
		}
		return nil
	}
	filter := newFilter(part.AbortedTransactions)
	for _, batch := range stream.Records {
		if err := p.batch(c, filter, batch, mu, f); err != nil {
			return err
		}
		if p.done() {
			return nil
		}
	}
	if p.next == begun {
		// The batch holds this offset's place, but compaction took the record, and kafka-go does not tell where the batch ends.
		p.next++
	}
	return nil
}

func (p *partition) batch(c *cluster, filter *filter, records protocol.RecordReader, mu *sync.Mutex, f func(Record) error) error {
	keep := true
	switch b := records.(type) {
	case *protocol.ControlBatch:
		marker, err := b.ReadControlRecord()
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		last := b.BaseOffset
		if marker != nil {
			last = marker.Offset
		}
		filter.keep(batch{base: b.BaseOffset, producer: b.ProducerID, control: true, abort: marker != nil && marker.Type == 0})
		p.next = max(p.next, last+1)
		return nil
	case *protocol.RecordBatch:
		keep = filter.keep(batch{base: b.BaseOffset, producer: b.ProducerID, transactional: b.Attributes.Transactional()})
	}
	if keep {
		mu.Lock()
		defer mu.Unlock()
	}
	for {
		rec, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		if err := p.record(c, rec, keep, f); err != nil {
			return err
		}
		if p.done() {
			return nil
		}
	}
}

func (p *partition) record(c *cluster, rec *protocol.Record, keep bool, f func(Record) error) error {
	if rec.Key != nil {
		defer rec.Key.Close()
	}
	if rec.Value != nil {
		defer rec.Value.Close()
	}
	if rec.Offset < p.next { // a broker begins at the batch, not at the offset
		return nil
	}
	if p.end >= 0 && rec.Offset >= p.end {
		p.next = rec.Offset
		return nil
	}
	if keep {
		out := Record{Topic: c.topic, Partition: p.id, Offset: rec.Offset, Timestamp: rec.Time.UTC(), r: c.r}
		size := 0
		for _, b := range []protocol.Bytes{rec.Key, rec.Value} {
			if b != nil {
				size += b.Len()
			}
		}
		if cap(p.buf) < size {
			p.buf = make([]byte, size, max(size, 4<<10))
		}
		rest := p.buf[:size]
		var err error
		if out.Key, rest, err = p.read(rec.Key, rest); err == nil {
			out.Value, _, err = p.read(rec.Value, rest)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		p.heads = p.heads[:0]
		for _, h := range rec.Headers {
			p.heads = append(p.heads, Header(h))
		}
		out.Headers = p.heads
		if err := f(out); err != nil {
			return &stopError{err}
		}
	}
	p.next = rec.Offset + 1
	return nil
}

// read fills the front of buf and returns it and what is left.
func (*partition) read(b protocol.Bytes, buf []byte) (filled, rest []byte, err error) {
	if b == nil {
		return nil, buf, nil
	}
	n := b.Len()
	if _, err := io.ReadFull(b, buf[:n]); err != nil {
		return nil, nil, err
	}
	return buf[:n:n], buf[n:], nil
}

// reset goes on where the log is when the offset asked for is not in it any more.
func (p *partition) reset(ctx context.Context, c *cluster) error {
	first, err := c.offsets(ctx, []int32{p.id}, earliest)
	if err != nil {
		return err
	}
	last, err := c.offsets(ctx, []int32{p.id}, latest)
	if err != nil {
		return err
	}
	to := first[p.id]
	if p.next > last[p.id] {
		to = last[p.id]
	}
	if to == p.next {
		return fmt.Errorf("offset %d: %w", p.next, kafka.OffsetOutOfRange)
	}
	c.r.log.Warn("records are gone, reading goes on behind them", "topic", c.topic, "partition", p.id, "from", p.next, "to", to)
	p.next = to
	return nil
}
