package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

type table struct {
	mu sync.Mutex
	m  map[string]string
}

func (tb *table) apply(key string, value []byte) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if tb.m == nil {
		tb.m = map[string]string{}
	}
	if value == nil {
		delete(tb.m, key)
		return
	}
	tb.m[key] = string(value)
}

func (tb *table) get(key string) string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return tb.m[key]
}

// TestTable is whole when it is opened, holds nothing uncommitted, and is kept up.
func TestTable(t *testing.T) {
	t.Parallel()
	b := begin(t, topics.Cursors)
	one := b.Bus(t, "one")
	ctx, cancel := context.WithCancel(t.Context())
	var kv []string
	for i := range 500 {
		kv = append(kv, fmt.Sprintf("k%d", i%100), fmt.Sprint(i))
	}
	b.Write(t, topics.Cursors, kv...)
	if err := one.Sender().SendRaw(ctx, topics.Cursors, "k7", nil); err != nil {
		t.Fatal(err)
	}
	aborted, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...), kgo.TransactionalID(b.Prefix+"aborted"), kgo.DisableClientMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer aborted.Close()
	write := func(end kgo.TransactionEndTry) {
		if err := aborted.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			if err := aborted.ProduceSync(ctx, &kgo.Record{Topic: topics.Cursors.Full(b.Prefix), Key: fmt.Appendf(nil, "k%d", i), Value: []byte("aborted")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := aborted.EndTransaction(ctx, end); err != nil {
			t.Fatal(err)
		}
	}
	write(kgo.TryAbort)
	var tb table
	opened, err := one.OpenTable(ctx, topics.Cursors, tb.apply)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		want := fmt.Sprint(400 + i)
		if i == 7 {
			want = ""
		}
		if got := tb.get(fmt.Sprintf("k%d", i)); got != want {
			t.Fatalf("k%d is %q, want %q", i, got, want)
		}
	}
	// What is open when Sync begins is in the table when it returns, as it ended.
	if err := aborted.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := aborted.ProduceSync(ctx, &kgo.Record{Topic: topics.Cursors.Full(b.Prefix), Key: []byte("late"), Value: []byte("committed")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	synced := make(chan error, 1)
	go func() { synced <- opened.Sync(ctx) }()
	select {
	case err := <-synced:
		t.Fatalf("synced with a transaction open: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := aborted.EndTransaction(ctx, kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if err := <-synced; err != nil {
		t.Fatal(err)
	}
	if got := tb.get("late"); got != "committed" {
		t.Errorf("late is %q", got)
	}
	b.Write(t, topics.Cursors, "new", "v")
	bustest.Until(t, 5*time.Second, func() error {
		if tb.get("new") != "v" {
			return errors.New("not kept up")
		}
		return nil
	})
	cancel()
	<-opened.Done()
	if err := opened.Err(); err != nil {
		t.Error(err)
	}
}

// TestTransactional has one owner at a time: who opens the id ends what the last one left open, and that one is told.
func TestTransactional(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t, topics.Raw, topics.Cursors)
	one, two := b.Bus(t, "one"), b.Bus(t, "two")
	id := topics.PollTransactionalID("s1")
	first, err := one.OpenTransactional(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	page := func(n string) func(*bus.Emit) error {
		return func(out *bus.Emit) error {
			if err := out.Put(topics.Raw, "org/"+n, &record.RawEvent{Org: "org"}); err != nil {
				return err
			}
			return out.PutRaw(topics.Cursors, "s1", []byte(n))
		}
	}
	if err := first.Do(t.Context(), page("1")); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if err := first.Do(t.Context(), func(out *bus.Emit) error {
		if err := page("x")(out); err != nil {
			return err
		}
		return boom
	}); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if err := first.Do(t.Context(), func(out *bus.Emit) error { return out.PutRaw(topics.Cursors, "s1", make([]byte, 2<<20)) }); !errors.Is(err, bus.ErrTooLarge) {
		t.Fatalf("got %v", err)
	}
	if err := first.Do(t.Context(), page("2")); err != nil {
		t.Fatal(err)
	}
	second, err := two.OpenTransactional(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := first.Do(t.Context(), page("stale")); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("the older owner got %v, want ErrFenced", err)
	}
	if err := first.Do(t.Context(), page("stale")); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("the older owner got %v again, want ErrFenced", err)
	}
	if err := second.Do(t.Context(), page("3")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range waitFor(t, b, topics.Cursors, 3) {
		got = append(got, string(m.Value))
	}
	if strings.Join(got, "") != "123" {
		t.Errorf("cursors: %q", got)
	}
	events := waitFor(t, b, topics.Raw, 3)
	ev, err := bus.Decode[record.RawEvent](t.Context(), one, events[0])
	if err != nil || ev.Org != "org" {
		t.Errorf("decode: %+v, %v", ev, err)
	}
	events[0].Value = []byte("junk")
	if _, err := bus.Decode[record.RawEvent](t.Context(), one, events[0]); !errors.Is(err, record.ErrUnreadable) {
		t.Errorf("decode junk: %v", err)
	}
}

// TestSender has many callers at once, and one whose time is up before the broker answers.
func TestSender(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t, topics.Raw)
	one := b.Bus(t, "one")
	var wg sync.WaitGroup
	began := time.Now()
	for i := range 200 {
		wg.Go(func() {
			if err := one.Sender().Send(t.Context(), topics.Raw, fmt.Sprintf("org/%d", i), &record.RawEvent{Org: "org"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("200 callers after %v", time.Since(began))
	waitFor(t, b, topics.Raw, 200)

	down, err := bus.New(bus.Config{Brokers: []string{"127.0.0.1:1"}}, bus.Deps{Serde: b.Serde(), Prefix: b.Prefix, InstanceID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began = time.Now()
	err = down.Sender().Send(ctx, topics.Raw, "org/1", &record.RawEvent{})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

// TestRunAssigned tells each member which partitions are its own, and all of them have one owner.
func TestRunAssigned(t *testing.T) {
	t.Parallel()
	b := begin(t, topics.Sources)
	var mu sync.Mutex
	has := map[string][]int32{}
	join := func(id string) *member {
		return start(t, b, id, nil, func(ctx context.Context, one *bus.Bus) error {
			return one.RunAssigned(ctx, topics.IngestSources, func(_ context.Context, ns []int32) error {
				mu.Lock()
				defer mu.Unlock()
				has[id] = ns
				return nil
			})
		})
	}
	settled := func(want map[string]int) {
		t.Helper()
		bustest.Until(t, 20*time.Second, func() error {
			mu.Lock()
			defer mu.Unlock()
			for id, n := range want {
				if len(has[id]) != n {
					return fmt.Errorf("%v, want %v", has, want)
				}
			}
			return nil
		})
	}
	one := join("one")
	settled(map[string]int{"one": 4})
	join("two")
	settled(map[string]int{"one": 2, "two": 2})
	one.stop(t)
	settled(map[string]int{"two": 4})
}

// TestTableAfterCompaction opens a table whose last offsets hold nothing any more: it is complete all the same, and soon.
func TestTableAfterCompaction(t *testing.T) {
	t.Parallel()
	b := bustest.StartWith(t, []bustest.Option{bustest.InProcess()}, topics.Cursors)
	one := b.Bus(t, "one")
	for i := range 10 {
		b.Write(t, topics.Cursors, "gone", fmt.Sprint(i), "stays", fmt.Sprint(i))
	}
	if err := one.Sender().SendRaw(t.Context(), topics.Cursors, "gone", nil); err != nil {
		t.Fatal(err)
	}
	zero := "0"
	if _, err := b.Admin().AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "delete.retention.ms", Value: &zero}}, topics.Cursors.Full(b.Prefix)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		b.Cluster.Compact()
	}
	var tb table
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	opened, err := one.OpenTable(ctx, topics.Cursors, tb.apply)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("complete after %v", time.Since(began))
	if tb.get("stays") != "9" || tb.get("gone") != "" {
		t.Errorf("table: %v", tb.m)
	}
	cancel()
	<-opened.Done()
}
