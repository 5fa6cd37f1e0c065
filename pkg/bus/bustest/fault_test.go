package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/bus/internal/hook"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// wire is a network that can be cut.
type wire struct {
	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("the wire is cut")}
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if w.conns == nil {
		w.conns = map[net.Conn]bool{}
	}
	w.conns[c] = true
	return c, nil
}

func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	if cut {
		for c := range w.conns {
			_ = c.Close()
		}
		clear(w.conns)
	}
}

// TestWireCut cuts a member off in the middle of a transaction, shortly and for longer than its session lives.
func TestWireCut(t *testing.T) {
	t.Parallel()
	for step, long := range map[string]time.Duration{hook.OffsetsSent: 500 * time.Millisecond, hook.Produced: 9 * time.Second} {
		t.Run(fmt.Sprintf("%s %v", step, long), func(t *testing.T) {
			t.Parallel()
			b := begin(t, countingTopics()...)
			l := startLoad(t, b, 5*time.Millisecond)
			var w wire
			var armed atomic.Bool
			var once sync.Once
			back := make(chan struct{})
			one := run(t, b, "one", &hook.Hooks{Dial: w.dial, At: func(_ context.Context, s string, _ int32) error {
				if s == step && armed.Load() {
					once.Do(func() {
						w.set(true)
						time.AfterFunc(long, func() {
							w.set(false)
							close(back)
						})
					})
				}
				return nil
			}}, newCounter)
			two := run(t, b, "two", nil, newCounter)
			owning(t, 2, one, two)
			armed.Store(true)
			<-back
			owning(t, 2, one, two)
			exactly(t, b, l.stop())
		})
	}
}

// TestTornChangelog has a changelog with a transaction that the committed offset knows nothing of, as the embedded broker can leave one
// when it is killed: it does not count, neither now nor when later transactions have passed its number.
func TestTornChangelog(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	keys := keysFor(topics.EmbeddedPartitions)
	m := run(t, b, "one", nil, newCounter)
	b.Write(t, topics.Raw, keys[0], "x", keys[0], "x", keys[1], "x")
	exactly(t, b, map[string]int{keys[0]: 2, keys[1]: 1})
	m.stop(t)
	header := []kgo.RecordHeader{{Key: "txn", Value: []byte("900")}}
	state := topics.NormalizeDedupState.Full(b.Prefix)
	b.Produce(
		t,
		&kgo.Record{Topic: state, Partition: 0, Key: []byte(keys[0]), Value: []byte("77"), Headers: header},
		&kgo.Record{Topic: state, Partition: 0, Key: []byte("never"), Value: []byte("1"), Headers: header},
	)
	for i := range 3 {
		m = run(t, b, "one", nil, newCounter)
		b.Write(t, topics.Raw, keys[0], "x")
		exactly(t, b, map[string]int{keys[0]: 3 + i, keys[1]: 1})
		m.stop(t)
	}
	latest := map[string]string{}
	for _, r := range b.Read(t, topics.NormalizeDedupState) {
		latest[string(r.Key)] = string(r.Value)
	}
	if latest[keys[0]] != "5" || latest["never"] != "" {
		t.Errorf("the changelog ends with %v", latest)
	}
}

// TestBrokerFails has the broker answer writes with UNKNOWN_SERVER_ERROR, as it does on a full disk: Health says so, and it goes on when
// the disk has room again.
func TestBrokerFails(t *testing.T) {
	t.Parallel()
	b := bustest.StartWith(t, []bustest.Option{bustest.InProcess()}, countingTopics()...)
	l := startLoad(t, b, 5*time.Millisecond)
	var full atomic.Bool
	b.Cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.Cluster.KeepControl()
		p := req.(*kmsg.ProduceRequest) //nolint:forcetypeassert // the key says so
		if !full.Load() || p.TransactionID == nil {
			return nil, nil, false
		}
		resp := p.ResponseKind().(*kmsg.ProduceResponse) //nolint:forcetypeassert // its own
		for _, rt := range p.Topics {
			st := kmsg.NewProduceResponseTopic()
			st.Topic, st.TopicID = rt.Topic, rt.TopicID
			for _, rp := range rt.Partitions {
				sp := kmsg.NewProduceResponseTopicPartition()
				sp.Partition, sp.ErrorCode = rp.Partition, kerr.UnknownServerError.Code
				st.Partitions = append(st.Partitions, sp)
			}
			resp.Topics = append(resp.Topics, st)
		}
		return resp, nil, true
	})
	one := run(t, b, "one", nil, newCounter)
	owning(t, 4, one)
	full.Store(true)
	bustest.Until(t, 20*time.Second, func() error {
		if h := one.bus.Health()[0]; !strings.Contains(h.LastError, "full disk") || h.Alive {
			return fmt.Errorf("health: %+v", h)
		}
		return nil
	})
	time.Sleep(time.Second)
	full.Store(false)
	exactly(t, b, l.stop())
	bustest.Until(t, 10*time.Second, func() error {
		if h := one.bus.Health()[0]; h.LastError != "" || !h.Alive {
			return fmt.Errorf("health: %+v", h)
		}
		return nil
	})
}

// TestClearErrors starts stages that cannot work yet.
func TestClearErrors(t *testing.T) {
	t.Parallel()
	b := begin(t, topics.Detections)
	says := func(one *bus.Bus, want string) {
		t.Helper()
		bustest.Until(t, 20*time.Second, func() error {
			hs := one.Health()
			if len(hs) != 1 || !strings.Contains(hs[0].LastError, want) || hs[0].Alive {
				return fmt.Errorf("want %q: %+v", want, hs)
			}
			return nil
		})
	}
	missing := startHandler(t, b, func(_ context.Context, m bus.Message, out *bus.Emit) error {
		return out.PutRaw(topics.Detections, string(m.Key), m.Value)
	})
	says(missing.bus, "run oktawatch topics apply")
	if _, err := missing.bus.OpenTable(t.Context(), topics.Sources, nil); err == nil || !strings.Contains(err.Error(), "run oktawatch topics apply") {
		t.Errorf("open table: %v", err)
	}
	for _, row := range matchTopics()[:3] {
		if _, err := b.Admin().CreateTopic(t.Context(), topics.EmbeddedPartitions, b.Replication, nil, row.Full(b.Prefix)); err != nil {
			t.Fatal(err)
		}
	}
	bustest.Until(t, 10*time.Second, func() error { // the cluster may take a while to know them
		_, err := b.TryRead(t.Context(), topics.SystemLog)
		return err
	})
	b.Write(t, topics.SystemLog, "k", "v")
	waitFor(t, b, topics.Detections, 1)

	down, err := bus.New(bus.Config{Brokers: []string{"127.0.0.1:1"}}, bus.Deps{Log: bustest.Logger(), InstanceID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := down.Ping(ctx); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), "check kafka.brokers") {
		t.Errorf("ping: %v", err)
	}
}

// TestReplicated runs the stage under a steady load and looks at the time each transaction takes. On a replicated cluster a client that
// refreshes its metadata too seldom stalls for 5 s several times a minute.
func TestReplicated(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	var mu sync.Mutex
	began := map[int32]time.Time{}
	var took []time.Duration
	run(t, b, "one", &hook.Hooks{At: func(_ context.Context, s string, n int32) error {
		mu.Lock()
		defer mu.Unlock()
		switch s {
		case hook.Processed:
			began[n] = time.Now()
		case hook.Committed:
			took = append(took, time.Since(began[n]))
		}
		return nil
	}}, newCounter)
	l := startLoad(t, b, 5*time.Millisecond)
	wait := 3 * time.Second
	if b.Replication > 1 {
		wait = 25 * time.Second
	}
	time.Sleep(wait)
	exactly(t, b, l.stop())
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(took)
	t.Logf("%d transactions: p50 %v, p99 %v, longest %v", len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	if longest := took[len(took)-1]; longest > 2*time.Second {
		t.Errorf("a transaction took %v", longest)
	}
}
