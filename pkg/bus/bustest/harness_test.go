package bustest_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/bus/internal/hook"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// The test binary is also the process that is killed: with these set it runs one member of the counting stage.
const (
	childSeeds    = "BUSTEST_CHILD_SEEDS"
	childPrefix   = "BUSTEST_CHILD_PREFIX"
	childInstance = "BUSTEST_CHILD_INSTANCE"
	childHalt     = "BUSTEST_CHILD_HALT" // a file: once it exists the child stands still with its transaction open, and says so
)

func TestMain(m *testing.M) {
	if os.Getenv(childSeeds) != "" {
		child()
		return
	}
	// These tests wait for timers far more than for processors.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set("6")
	}
	goleak.VerifyTestMain(m)
}

func child() {
	b, err := bus.New(bus.Config{Brokers: strings.Split(os.Getenv(childSeeds), ",")}, bus.Deps{
		Log: bustest.Logger(), Prefix: os.Getenv(childPrefix), InstanceID: os.Getenv(childInstance),
	})
	ctx := context.Background()
	if file := os.Getenv(childHalt); file != "" {
		ctx = hook.With(ctx, &hook.Hooks{At: func(_ context.Context, step string, _ int32) error {
			if _, err := os.Stat(file); err == nil && step == hook.OffsetsSent {
				fmt.Println("halted")
				select {}
			}
			return nil
		}})
	}
	if err == nil {
		err = b.RunTasks(ctx, topics.NormalizeDedup, newCounter)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// spawn starts a member in a process of its own.
func spawn(t *testing.T, b *bustest.Broker, instance string) *exec.Cmd {
	t.Helper()
	cmd, _ := spawnHalting(t, b, instance)
	return cmd
}

// spawnHalting also returns what has it stand still in the middle of a transaction, and waits until it does.
func spawnHalting(t *testing.T, b *bustest.Broker, instance string) (*exec.Cmd, func()) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "halt")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childSeeds+"="+strings.Join(b.Seeds, ","), childPrefix+"="+b.Prefix, childInstance+"="+instance, childHalt+"="+file)
	cmd.Stderr = os.Stderr
	if os.Getenv("BUSTEST_LOG") == "" {
		cmd.Stderr = nil
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	return cmd, func() {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("wait for the child to stand still: %v", err)
		}
	}
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // SIGKILL
	_ = cmd.Wait()
}

// counter counts the records of each key and writes the count. So the output shows it when a record is handled twice or never, when a
// write is repeated, and when memory is lost, stale or from a transaction that did not happen: the counts of a key are then not 1, 2, 3.
type counter struct {
	counts bus.Overlay[string, int]
	tick   func(c *counter, out *bus.Emit) error
}

func newCounter(int32) (bus.Task, error) { return &counter{}, nil }

func (c *counter) Restore(key, value []byte) error {
	if value == nil {
		c.counts.Unload(string(key))
		return nil
	}
	n, err := strconv.Atoi(string(value))
	if err != nil {
		return err
	}
	c.counts.Load(string(key), n)
	return nil
}

func (c *counter) Process(_ context.Context, batch []bus.Message, out *bus.Emit) error {
	for _, m := range batch {
		if err := c.add(string(m.Key), out); err != nil {
			return err
		}
	}
	return nil
}

func (c *counter) add(key string, out *bus.Emit) error {
	n, _ := c.counts.Get(key)
	n++
	c.counts.Put(key, n)
	out.State([]byte(key), []byte(strconv.Itoa(n)))
	// All into one partition: an open transaction of one member is then in the way of the others' output.
	return out.PutRaw(topics.SystemLog, key, []byte(strconv.Itoa(n)), bus.ToPartition(0))
}

func (c *counter) Tick(_ context.Context, _ time.Time, out *bus.Emit) error {
	if c.tick == nil {
		return nil
	}
	return c.tick(c, out)
}
func (c *counter) Commit() { c.counts.Commit() }
func (c *counter) Abort()  { c.counts.Abort() }

// begin starts what a test of raw records needs.
func begin(t *testing.T, ts ...topics.Topic) *bustest.Broker {
	t.Helper()
	return bustest.StartWith(t, []bustest.Option{bustest.OwnRegistry()}, ts...)
}

// countingTopics is what the counting stage needs.
func countingTopics() []topics.Topic {
	return []topics.Topic{
		topics.Raw, topics.Raw.DLQ(), topics.NormalizeDedupRedrive, topics.NormalizeDedupState, topics.SystemLog,
	}
}

// member is one running member in this process.
type member struct {
	bus    *bus.Bus
	cancel context.CancelFunc
	done   chan struct{}
	err    error
	killed chan struct{}
}

// run starts a member of the counting stage. h may be nil.
func run(t *testing.T, b *bustest.Broker, instance string, h *hook.Hooks, newTask func(int32) (bus.Task, error)) *member {
	t.Helper()
	return start(t, b, instance, h, func(ctx context.Context, one *bus.Bus) error {
		return one.RunTasks(ctx, topics.NormalizeDedup, newTask)
	})
}

func start(t *testing.T, b *bustest.Broker, instance string, h *hook.Hooks, f func(context.Context, *bus.Bus) error) *member {
	t.Helper()
	m := &member{bus: b.Bus(t, instance), done: make(chan struct{}), killed: make(chan struct{})}
	if h == nil {
		h = &hook.Hooks{}
	}
	h.Killed = m.killed
	ctx, cancel := context.WithCancel(hook.With(context.Background(), h))
	m.cancel = cancel
	go func() {
		defer close(m.done)
		m.err = f(ctx, m.bus)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-m.done:
		case <-time.After(40 * time.Second):
			t.Errorf("member %s does not stop", instance)
		}
	})
	return m
}

func (m *member) stop(t *testing.T) {
	t.Helper()
	m.cancel()
	select {
	case <-m.done:
	case <-time.After(25 * time.Second):
		t.Fatal("a clean stop takes over 25 s")
	}
	if m.err != nil {
		t.Fatalf("clean stop: %v", m.err)
	}
}

func (m *member) owns() []int32 {
	var ns []int32
	for _, h := range m.bus.Health() {
		ns = append(ns, h.Partitions...)
	}
	return ns
}

// alone waits until the members own so many partitions each.
func owning(t *testing.T, n int, ms ...*member) {
	t.Helper()
	bustest.Until(t, 25*time.Second, func() error {
		for _, m := range ms {
			if got := len(m.owns()); got != n {
				return fmt.Errorf("member owns %d partitions, want %d: %+v", got, n, m.bus.Health())
			}
		}
		return nil
	})
}

// load writes records to the keys in turn until it is stopped, and knows how many it wrote to each.
type load struct {
	keys []string
	stop func() map[string]int
}

// keysFor finds a key for each partition.
func keysFor(n int32) []string {
	keys := make([]string, n)
	for i, left := 0, int(n); left > 0; i++ {
		key := "key" + strconv.Itoa(i)
		if p := topics.Raw.PartitionFor(key, n); keys[p] == "" {
			keys[p] = key
			left--
		}
	}
	return keys
}

func startLoad(t *testing.T, b *bustest.Broker, every time.Duration) *load {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DisableClientMetrics(), kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerLinger(0))
	if err != nil {
		t.Fatal(err)
	}
	l := &load{keys: keysFor(topics.EmbeddedPartitions)}
	sent := map[string]int{}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			p := i % len(l.keys)
			cl.Produce(context.Background(), &kgo.Record{
				Topic: topics.Raw.Full(b.Prefix), Partition: int32(p), Key: []byte(l.keys[p]), Value: []byte(strconv.Itoa(i)),
			}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Errorf("write load: %v", err)
				}
			})
			sent[l.keys[p]]++
		}
	}()
	var once sync.Once
	l.stop = func() map[string]int {
		once.Do(func() {
			close(quit)
			<-done
			if err := cl.Flush(context.Background()); err != nil {
				t.Errorf("write load: %v", err)
			}
			cl.Close()
		})
		return sent
	}
	t.Cleanup(func() { l.stop() })
	return l
}

// watcher sees what the stage commits as it is committed.
type watcher struct {
	mu   sync.Mutex
	last map[string]time.Time     // key: when its newest count was seen
	gap  map[string]time.Duration // key: the longest wait between two
	n    map[string]int
	stop func()
}

func watch(t *testing.T, b *bustest.Broker) *watcher {
	t.Helper()
	from := map[int32]kgo.Offset{}
	for p := range int32(topics.EmbeddedPartitions) {
		from[p] = kgo.NewOffset().AtStart()
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topics.SystemLog.Full(b.Prefix): from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(50*time.Millisecond), kgo.DisableClientMetrics())
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{last: map[string]time.Time{}, gap: map[string]time.Duration{}, n: map[string]int{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			fetches := cl.PollFetches(context.Background())
			if fetches.IsClientClosed() {
				return
			}
			now := time.Now()
			w.mu.Lock()
			fetches.EachRecord(func(r *kgo.Record) {
				key := string(r.Key)
				if last, ok := w.last[key]; ok {
					w.gap[key] = max(w.gap[key], now.Sub(last))
				}
				w.last[key] = now
				w.n[key]++
			})
			w.mu.Unlock()
		}
	}()
	w.stop = sync.OnceFunc(func() {
		cl.Close()
		<-done
	})
	t.Cleanup(w.stop)
	return w
}

// since returns how many counts of a key have been seen, and when the newest was.
func (w *watcher) seen(key string) (int, time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n[key], w.last[key]
}

// forget begins to look for silences anew.
func (w *watcher) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.gap)
	for key := range w.last {
		w.last[key] = time.Now() // a silence begins here
	}
}

func (w *watcher) gaps() map[string]time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]time.Duration{}
	maps.Copy(out, w.gap)
	for k, l := range w.last {
		out[k] = max(out[k], time.Since(l))
	}
	return out
}

// exactly waits until the stage has counted what was sent, and fails on any count that is missing, repeated or out of its turn.
func exactly(t *testing.T, b *bustest.Broker, sent map[string]int) {
	t.Helper()
	check := func() error {
		got := map[string][]string{}
		all, err := b.TryRead(t.Context(), topics.SystemLog)
		if err != nil {
			return err
		}
		for _, m := range all {
			got[string(m.Key)] = append(got[string(m.Key)], string(m.Value))
		}
		for key, n := range sent {
			for i, v := range got[key] {
				if v != strconv.Itoa(i+1) {
					return fatal{fmt.Errorf("%s: count %d is %s: something is lost, repeated or forgotten: %v", key, i+1, v, got[key][max(0, i-5):i+1])}
				}
			}
			if len(got[key]) > n {
				return fatal{fmt.Errorf("%s: %d counts of %d records", key, len(got[key]), n)}
			}
			if len(got[key]) < n {
				return fmt.Errorf("%s: %d counts of %d records", key, len(got[key]), n)
			}
		}
		return nil
	}
	bustest.Until(t, 40*time.Second, func() error {
		err := check()
		if _, ok := errors.AsType[fatal](err); ok {
			t.Fatal(err)
		}
		return err
	})
}

type fatal struct{ error }
