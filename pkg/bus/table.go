package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oktawatch/oktawatch/pkg/bus/internal/hook"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Table is a compacted topic, whole, at this instance. What it holds is the caller's, told by apply.
type Table struct {
	b     *Bus
	topic string
	cl    *kgo.Client
	done  chan struct{}

	mu    sync.Mutex
	at    map[int32]int64 // next offset to apply
	moved chan struct{}   // closed when at grows
	err   error
	last  error // of reading; empty again after the next record
}

// OpenTable reads a topic to its end, committed records only, and returns when all of it has been applied; it is kept up until the
// context ends. apply is called by one goroutine, in order per key; value nil: deleted. value is framed and must not be changed.
func (b *Bus) OpenTable(ctx context.Context, t topics.Topic, apply func(key string, value []byte)) (*Table, error) {
	name := t.Full(b.deps.Prefix)
	what := "read table " + name
	shared, err := b.client()
	if err != nil {
		return nil, err
	}
	counts, err := b.partitions(ctx, shared, name)
	if err != nil {
		return nil, err
	}
	all := map[int32]kgo.Offset{}
	for n := range counts[name] {
		all[n] = kgo.NewOffset().AtStart()
	}
	opts, err := b.options("table")
	if err != nil {
		return nil, err
	}
	opts = append(opts, tableOptions(name, all)...)
	if h := hook.From(ctx); h.Dial != nil {
		opts = append(opts, kgo.Dialer(h.Dial))
	}
	tb := &Table{b: b, topic: name, done: make(chan struct{}), at: map[int32]int64{}, moved: make(chan struct{})}
	if tb.cl, err = kgo.NewClient(opts...); err != nil {
		return nil, fmt.Errorf("make kafka client: %w", err)
	}
	for n := range all {
		tb.at[n] = 0
	}
	rctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		tb.run(rctx, apply)
	}()
	if err := tb.Sync(ctx); err != nil {
		cancel()
		<-tb.done
		tb.mu.Lock()
		last := tb.last
		tb.mu.Unlock()
		if last != nil {
			err = fmt.Errorf("%w (%w)", err, last)
		}
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return tb, nil
}

func tableOptions(topic string, from map[int32]kgo.Offset) []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.FetchMinBytes(1),
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.FetchMaxPartitionBytes(fetchPartBytes),
		kgo.MaxConcurrentFetches(4),
	}
}

func (t *Table) run(ctx context.Context, apply func(string, []byte)) {
	defer close(t.done)
	defer t.cl.Close()
	for {
		fetches := t.cl.PollRecords(ctx, maxBatchRecords)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			if !isContext(err) {
				t.mu.Lock()
				t.last = t.b.explain(fmt.Sprintf("read %s/%d", topic, partition), err)
				t.mu.Unlock()
			}
		})
		next := map[int32]int64{}
		var failed error
		fetches.EachRecord(func(r *kgo.Record) {
			if failed != nil {
				return
			}
			if !r.Attrs.IsControl() {
				failed = safely(func() error { apply(string(r.Key), r.Value); return nil })
			}
			next[r.Partition] = r.Offset + 1
		})
		t.mu.Lock()
		if failed != nil {
			t.err = fmt.Errorf("apply a record of %s: %w", t.topic, failed)
			t.mu.Unlock()
			return
		}
		if len(next) > 0 {
			t.last = nil
			maps.Copy(t.at, next)
			close(t.moved)
			t.moved = make(chan struct{})
		}
		t.mu.Unlock()
	}
}

// Sync returns when the table holds everything that was committed before the call, and everything that was being committed then.
func (t *Table) Sync(ctx context.Context) error {
	t.mu.Lock()
	ask := map[string][]int32{}
	for n := range t.at {
		ask[t.topic] = append(ask[t.topic], n)
	}
	t.mu.Unlock()
	// Unlike the committed end, the uncommitted one covers what stands behind another's open transaction.
	ends, err := listOffsets(ctx, t.cl, ask, latest, readUncommitted)
	if err != nil {
		return t.b.explain("find the end of "+t.topic, err)
	}
	starts, err := listOffsets(ctx, t.cl, ask, earliest, readUncommitted)
	if err != nil {
		return t.b.explain("find the start of "+t.topic, err)
	}
	want := map[int32]int64{}
	for n, end := range ends[t.topic] {
		if end > starts[t.topic][n] {
			want[n] = end
		}
	}
	for {
		t.mu.Lock()
		for n, end := range want {
			if t.at[n] >= end {
				delete(want, n)
			}
		}
		moved, err := t.moved, t.err
		t.mu.Unlock()
		if len(want) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-moved:
		case <-t.done:
			if err := t.Err(); err != nil {
				return err
			}
			return errors.New("the table was stopped")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quietAfter):
			for n, end := range want {
				t.mu.Lock()
				at := max(t.at[n], starts[t.topic][n])
				t.mu.Unlock()
				if emptyTail(ctx, t.cl, t.topic, n, at, end) {
					delete(want, n)
				}
			}
		}
	}
}

// Err is why the table is no longer kept up: nil while it is, and after its context has ended.
func (t *Table) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Done is closed when the table is no longer kept up.
func (t *Table) Done() <-chan struct{} { return t.done }

// quietAfter is how long nothing comes before a reader asks whether there is nothing: the last offsets of a log may hold no record
// (compaction and retention leave none behind).
const quietAfter = time.Second

// emptyTail says that no committed record and no marker stands from one offset up to another, by asking the broker for just that. It
// is not enough that nothing has come for a while: the broker may be slow.
func emptyTail(ctx context.Context, cl *kgo.Client, topic string, n int32, from, end int64) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stable, err := listOffsets(ctx, cl, map[string][]int32{topic: {n}}, latest, readCommitted)
	if err != nil || stable[topic][n] < end {
		return false
	}
	meta := kmsg.NewPtrMetadataRequest()
	mt := kmsg.NewMetadataRequestTopic()
	mt.Topic = &topic
	meta.Topics = append(meta.Topics, mt)
	resp, err := meta.RequestWith(ctx, cl)
	if err != nil || len(resp.Topics) != 1 || kerr.ErrorForCode(resp.Topics[0].ErrorCode) != nil {
		return false
	}
	leader := int32(-1)
	for _, p := range resp.Topics[0].Partitions {
		if p.Partition == n {
			leader = p.Leader
		}
	}
	for from < end {
		req := kmsg.NewPtrFetchRequest()
		req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel, req.SessionEpoch = 100, 0, fetchPartBytes, readCommitted, -1
		t := kmsg.NewFetchRequestTopic()
		t.Topic, t.TopicID = topic, resp.Topics[0].TopicID
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch = n, from, fetchPartBytes, -1
		t.Partitions = append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		answer, err := cl.Broker(int(leader)).Request(ctx, req)
		if err != nil {
			return false
		}
		got := answer.(*kmsg.FetchResponse) //nolint:forcetypeassert // the request's own answer
		if len(got.Topics) != 1 || len(got.Topics[0].Partitions) != 1 {
			return false
		}
		rp := &got.Topics[0].Partitions[0]
		if kerr.ErrorForCode(got.ErrorCode) != nil || kerr.ErrorForCode(rp.ErrorCode) != nil || rp.LastStableOffset < end {
			return false
		}
		if len(rp.RecordBatches) == 0 {
			return true
		}
		part, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
			KeepControlRecords: true, Offset: from, IsolationLevel: kgo.ReadCommitted(), Topic: topic, Partition: n,
		}, rp, kgo.DefaultDecompressor(), nil)
		if part.Err != nil || len(part.Records) > 0 && part.Records[0].Offset < end || next <= from {
			return false
		}
		from = next
	}
	return true
}

// readTo reads one partition from its start up to an offset, committed records only.
func (b *Bus) readTo(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), topic string, n int32, end int64, each func(*kgo.Record) error) error {
	opts, err := b.options("restore")
	if err != nil {
		return err
	}
	opts = append(opts, tableOptions(topic, map[int32]kgo.Offset{n: kgo.NewOffset().AtStart()})...)
	if dial != nil {
		opts = append(opts, kgo.Dialer(dial))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("make kafka client: %w", err)
	}
	defer cl.Close()
	start, err := listOffsets(ctx, cl, map[string][]int32{topic: {n}}, earliest, readUncommitted)
	if err != nil {
		return err
	}
	for at := start[topic][n]; at < end; {
		pctx, cancel := context.WithTimeout(ctx, quietAfter)
		fetches := cl.PollRecords(pctx, 10_000)
		cancel()
		if err := ctx.Err(); err != nil {
			return err
		}
		var failed error
		fetches.EachError(func(_ string, _ int32, err error) {
			if failed == nil && !isContext(err) {
				failed = err
			}
		})
		fetches.EachRecord(func(r *kgo.Record) {
			if failed != nil || r.Offset >= end {
				at = max(at, r.Offset+1)
				return
			}
			if !r.Attrs.IsControl() {
				failed = each(r)
			}
			at = r.Offset + 1
		})
		if failed != nil {
			return failed
		}
		if fetches.NumRecords() == 0 && emptyTail(ctx, cl, topic, n, at, end) {
			return nil
		}
	}
	return nil
}
