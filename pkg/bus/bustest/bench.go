package bustest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Cost is what a stage took for the records of its input.
type Cost struct {
	Records   int
	Wall, CPU time.Duration // CPU of this process: with the broker in process, its part too
}

// PerSecond is how many records one core takes in a second.
func (c Cost) PerSecond() float64 { return float64(c.Records) / c.CPU.Seconds() }

// Fill writes n records to a topic, spread over its partitions by their keys.
func (b *Broker) Fill(t testing.TB, row topics.Topic, n int, record func(i int) (key string, value []byte)) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DisableClientMetrics(),
		kgo.ProducerBatchMaxBytes(int32(max(row.MaxBytes, 1<<20))), kgo.ProducerBatchCompression(kgo.SnappyCompression()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var mu sync.Mutex
	var failed error
	for i := range n {
		key, value := record(i)
		rec := &kgo.Record{Topic: row.Full(b.Prefix), Key: []byte(key), Value: value, Partition: row.PartitionFor(key, b.partitions)}
		cl.Produce(t.Context(), rec, func(_ *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if failed != nil {
		t.Fatalf("fill %s: %v", row.Name, failed)
	}
}

// Drain runs a stage until it has committed all that is in the group's first input, and tells what that took. To compare two stages, Fill
// and Drain them in turn in one run, and several times: only ratios of one run mean anything.
func (b *Broker) Drain(t testing.TB, g topics.Group, run func(ctx context.Context, one *bus.Bus) error) Cost {
	t.Helper()
	name, group := g.Inputs[0].Full(b.Prefix), g.Name(b.Prefix)
	open := func() (left int, err error) {
		ends, err := b.admin.ListEndOffsets(t.Context(), name)
		if err != nil {
			return 0, err
		}
		committed, err := b.admin.FetchOffsets(t.Context(), group)
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // nobody has committed anything yet
			return 0, err
		}
		for p, end := range ends[name] {
			at := int64(0)
			if o, ok := committed.Lookup(name, p); ok {
				at = max(o.At, 0)
			}
			left += int(end.Offset - at)
		}
		return left, nil
	}
	n, err := open()
	if err != nil {
		t.Fatal(err)
	}
	made, err := bus.New(bus.Config{Brokers: b.Seeds}, bus.Deps{Log: Logger(), Serde: b.Serde(), Prefix: b.Prefix, InstanceID: "drain"})
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cpu, wall := cpuTime(), time.Now()
	go func() { done <- run(ctx, made) }()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		left, err := open()
		if err == nil && left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("drain %s: %d of %d records left: %v: %+v", name, left, n, err, made.Health())
		}
	}
	c := Cost{Records: n, Wall: time.Since(wall), CPU: cpuTime() - cpu}
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("drain %s: %v", name, err)
	}
	return c
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// PassThrough is the stage to compare with: the same bus and group, records copied to out as they are, nothing decoded.
func PassThrough(g topics.Group, out topics.Topic) func(ctx context.Context, one *bus.Bus) error {
	return func(ctx context.Context, one *bus.Bus) error {
		if g.State == nil {
			return one.RunHandler(ctx, g, func(_ context.Context, m bus.Message, e *bus.Emit) error {
				return e.PutRaw(out, string(m.Key), m.Value)
			})
		}
		return one.RunTasks(ctx, g, func(int32) (bus.Task, error) { return passThrough{out}, nil })
	}
}

type passThrough struct{ out topics.Topic }

func (passThrough) Restore([]byte, []byte) error { return nil }
func (p passThrough) Process(_ context.Context, batch []bus.Message, e *bus.Emit) error {
	for _, m := range batch {
		if err := e.PutRaw(p.out, string(m.Key), m.Value); err != nil {
			return err
		}
	}
	return nil
}
func (passThrough) Tick(context.Context, time.Time, *bus.Emit) error { return nil }
func (passThrough) Commit()                                          {}
func (passThrough) Abort()                                           {}

// Latency is how long records took.
type Latency struct {
	N             int
	P50, P99, Max time.Duration
}

// NewLatency sorts what was measured.
func NewLatency(took []time.Duration) Latency {
	if len(took) == 0 {
		return Latency{}
	}
	slices.Sort(took)
	return Latency{N: len(took), P50: took[len(took)/2], P99: took[len(took)*99/100], Max: took[len(took)-1]}
}

// String is the line people read.
func (l Latency) String() string {
	return fmt.Sprintf("n %d, p50 %v, p99 %v, max %v", l.N, l.P50.Round(10*time.Microsecond), l.P99.Round(10*time.Microsecond), l.Max.Round(10*time.Microsecond))
}

// Chain measures a bare chain of transactional hops: n records, so many a second, from before the first write until a reader of
// committed records has them behind the last hop. Each hop is a stage of one instance that copies. It is what a pipeline of as many
// hops is to be compared with, in the same run. The first half second is on top and does not count: it is connecting.
func (b *Broker) Chain(t testing.TB, hops, n, perSecond int) Latency {
	t.Helper()
	row := func(i int) topics.Topic {
		return topics.Topic{Name: "bench.hop" + strconv.Itoa(i) + ".v1", Partitioner: topics.ByKey, Cleanup: topics.Delete, Retention: time.Hour, MaxBytes: 1 << 20}
	}
	var rows []topics.Topic
	for i := range hops + 1 {
		rows = append(rows, row(i))
	}
	b.create(t, rows)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var buses []*bus.Bus
	for i := range hops {
		g := topics.Group{Service: "bench", Stage: "hop" + strconv.Itoa(i), Inputs: rows[i : i+1]}
		one := b.Bus(t, "chain")
		buses = append(buses, one)
		wg.Go(func() {
			if err := PassThrough(g, rows[i+1])(ctx, one); err != nil {
				t.Errorf("hop %d: %v", i, err)
			}
		})
	}
	Until(t, 30*time.Second, func() error {
		for _, one := range buses {
			if h := one.Health(); len(h) == 0 || len(h[0].Partitions) != int(b.partitions) {
				return errors.New("the hops are not ready")
			}
		}
		return nil
	})
	from := map[int32]kgo.Offset{}
	for p := range b.partitions {
		from[p] = kgo.NewOffset().AtStart()
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{rows[hops].Full(b.Prefix): from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100*time.Millisecond), kgo.DisableClientMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	warm := perSecond / 2
	wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for i := range warm + n {
			<-tick.C
			value := binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
			value = binary.BigEndian.AppendUint32(value, uint32(i))
			wg.Go(func() {
				if err := buses[0].Sender().SendRaw(ctx, rows[0], "k"+strconv.Itoa(i), value); err != nil {
					t.Errorf("write: %v", err)
				}
			})
		}
	})
	var took []time.Duration
	for deadline := time.Now().Add(time.Minute + time.Duration(n)*time.Second/time.Duration(perSecond)); len(took) < n; {
		pctx, stop := context.WithDeadline(ctx, deadline)
		fetches := reader.PollFetches(pctx)
		stop()
		now := time.Now()
		if now.After(deadline) {
			t.Fatalf("%d of %d records came through", len(took), n)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if int(binary.BigEndian.Uint32(r.Value[8:])) >= warm {
				took = append(took, now.Sub(time.Unix(0, int64(binary.BigEndian.Uint64(r.Value)))))
			}
		})
	}
	return NewLatency(took)
}
