// Package bustest starts what a test of a stage needs: a broker, a schema registry, the topics of pkg/topics and their schemas. Without
// further ado it is all in this process (kfake, pkg/registry). With KAFKA_SEEDS set, and SCHEMA_REGISTRY_URL if there is one, the same
// test runs on a real cluster, under a prefix of its own that is removed at the end. Nothing in a test may tell the two apart.
package bustest

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/localbroker"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/registry"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Broker is what Start started.
type Broker struct {
	Seeds       []string // host:port
	RegistryURL string
	Prefix      string         // before topics, groups, transactional ids and subjects
	Cluster     *kfake.Cluster // to make it fail; nil on a real broker
	Real        bool           // KAFKA_SEEDS was set
	Replication int16          // of the topics

	partitions int32
	admin      *kadm.Client
	client     *kgo.Client
}

// Option changes what Start starts.
type Option func(*config)

type config struct {
	partitions int32
	registry   bool
	inProcess  bool
	kfake      []kfake.Opt
}

// OwnRegistry is for tests that care for no registry: one in this process, also where SCHEMA_REGISTRY_URL is set.
func OwnRegistry() Option { return func(c *config) { c.registry = true } }

// InProcess is for faults that only a broker of our own can be made to have: kfake also where KAFKA_SEEDS is set, with these options.
func InProcess(opts ...kfake.Opt) Option {
	return func(c *config) { c.inProcess, c.kfake = true, opts }
}

// Partitions sets the topics' partition count; topics.EmbeddedPartitions otherwise.
func Partitions(n int32) Option { return func(c *config) { c.partitions = n } }

// Start starts a broker with the given topics, or with all topics of the map when none is given. All of it ends with the test.
func Start(t testing.TB, ts ...topics.Topic) *Broker {
	t.Helper()
	return StartWith(t, nil, ts...)
}

// StartWith is Start with options.
func StartWith(t testing.TB, opts []Option, ts ...topics.Topic) *Broker {
	t.Helper()
	c := config{partitions: topics.EmbeddedPartitions}
	for _, o := range opts {
		o(&c)
	}
	b := &Broker{Prefix: "t" + strconv.FormatUint(rand.Uint64()>>20, 36) + ".", Replication: 1, partitions: c.partitions}
	if seeds := os.Getenv("KAFKA_SEEDS"); seeds != "" && !c.inProcess {
		b.Seeds, b.Real = strings.Split(seeds, ","), true
		if os.Getenv("KAFKA_BROKERS_REPLICATED") != "" || len(b.Seeds) >= 3 {
			b.Replication = 3
		}
		if !c.registry {
			b.RegistryURL = os.Getenv("SCHEMA_REGISTRY_URL")
		}
	} else {
		cluster, err := localbroker.Open(append([]kfake.Opt{kfake.NumBrokers(1), kfake.DefaultNumPartitions(int(c.partitions))}, c.kfake...)...)
		if err != nil {
			t.Fatalf("start kfake: %v", err)
		}
		t.Cleanup(cluster.Close)
		b.Cluster, b.Seeds = cluster, cluster.ListenAddrs()
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...), kgo.DisableClientMetrics(), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatalf("make client: %v", err)
	}
	b.client, b.admin = cl, kadm.NewClient(cl)
	if b.RegistryURL == "" {
		b.RegistryURL = startRegistry(t)
	}
	t.Cleanup(func() {
		if b.Real {
			b.remove(t)
		}
		cl.Close()
		http.DefaultClient.CloseIdleConnections() // the registry's client keeps some
	})
	b.create(t, ts)
	if _, err := registry.Apply(t.Context(), b.RegistryURL, b.Prefix); err != nil {
		t.Fatalf("register schemas: %v", err)
	}
	return b
}

func startRegistry(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed by Run
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.New(registry.Config{}, registry.Deps{Listener: ln})
	if err != nil {
		t.Fatalf("make registry: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run registry: %v", err)
		}
	})
	select {
	case <-r.Ready():
	case err := <-done:
		t.Fatalf("run registry: %v", err)
	}
	return r.URL()
}

func (b *Broker) create(t testing.TB, ts []topics.Topic) {
	t.Helper()
	if len(ts) == 0 {
		ts = topics.All()
	}
	for _, row := range ts {
		configs := map[string]*string{}
		for k, v := range row.Configs() {
			configs[k] = &v
		}
		if _, err := b.admin.CreateTopic(t.Context(), b.partitions, b.Replication, configs, row.Full(b.Prefix)); err != nil {
			t.Fatalf("create %s: %v", row.Full(b.Prefix), err)
		}
	}
	// A real cluster answers before every broker knows the topic.
	for _, row := range ts {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			listed, err := b.admin.ListEndOffsets(t.Context(), row.Full(b.Prefix))
			if err == nil && listed.Error() == nil && len(listed[row.Full(b.Prefix)]) == int(b.partitions) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("topic %s is not there: %v %v", row.Full(b.Prefix), err, listed.Error())
			}
		}
	}
}

func (b *Broker) remove(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	all, err := b.admin.ListTopics(ctx)
	if err != nil {
		t.Logf("remove topics: %v", err)
		return
	}
	var names []string
	for name := range all {
		if strings.HasPrefix(name, b.Prefix) {
			names = append(names, name)
		}
	}
	if _, err := b.admin.DeleteTopics(ctx, names...); err != nil {
		t.Logf("remove topics: %v", err)
	}
	for _, g := range topics.Groups() {
		_, _ = b.admin.DeleteGroup(ctx, g.Name(b.Prefix)) // most never were
	}
}

// Admin is a client for looking around.
func (b *Broker) Admin() *kadm.Client { return b.admin }

// Serde encodes and decodes by the broker's registry.
func (b *Broker) Serde() *record.Serde { return record.NewSerde(b.RegistryURL, b.Prefix) }

// Bus returns a bus that goes by the given instance id. It is closed with the test.
func (b *Broker) Bus(t testing.TB, instanceID string) *bus.Bus {
	t.Helper()
	made, err := bus.New(bus.Config{Brokers: b.Seeds}, bus.Deps{Log: Logger(), Serde: b.Serde(), Prefix: b.Prefix, InstanceID: instanceID})
	if err != nil {
		t.Fatalf("make bus: %v", err)
	}
	t.Cleanup(made.Close)
	return made
}

// Logger discards, or with BUSTEST_LOG set writes all there is to standard error.
func Logger() *slog.Logger {
	if os.Getenv("BUSTEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Write writes raw values under keys, in turn, one by one: key, value, key, value.
func (b *Broker) Write(t testing.TB, row topics.Topic, keyValues ...string) {
	t.Helper()
	b.WriteAt(t, row, time.Time{}, keyValues...)
}

// WriteAt is Write with the records' timestamp; the zero time is now.
func (b *Broker) WriteAt(t testing.TB, row topics.Topic, at time.Time, keyValues ...string) {
	t.Helper()
	var recs []*kgo.Record
	for kv := range slices.Chunk(keyValues, 2) {
		recs = append(recs, &kgo.Record{
			Topic: row.Full(b.Prefix), Key: []byte(kv[0]), Value: []byte(kv[1]), Partition: row.PartitionFor(kv[0], b.partitions), Timestamp: at,
		})
	}
	b.Produce(t, recs...)
}

// Produce writes records as they are: topic and partition are the caller's.
func (b *Broker) Produce(t testing.TB, recs ...*kgo.Record) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DisableClientMetrics(),
		kgo.ProducerBatchMaxBytes(8<<20), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.ProduceSync(t.Context(), recs...).FirstErr(); err != nil {
		t.Fatalf("write: %v", err)
	}
}

// Read returns the committed records of a topic so far, ordered by partition and offset.
func (b *Broker) Read(t testing.TB, row topics.Topic) []bus.Message {
	t.Helper()
	got, err := b.TryRead(t.Context(), row)
	if err != nil {
		t.Fatalf("read %s: %v", row.Name, err)
	}
	return got
}

// TryRead is Read for use outside the test's own goroutine.
func (b *Broker) TryRead(ctx context.Context, row topics.Topic) ([]bus.Message, error) {
	name := row.Full(b.Prefix)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ends, err := b.admin.ListCommittedOffsets(ctx, name)
	if err != nil {
		return nil, err
	}
	starts, err := b.admin.ListStartOffsets(ctx, name)
	if err != nil {
		return nil, err
	}
	from, left := map[int32]kgo.Offset{}, map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if start, ok := starts.Lookup(name, o.Partition); ok && start.Offset < o.Offset {
			from[o.Partition], left[o.Partition] = kgo.NewOffset().At(start.Offset), o.Offset
		}
	})
	if len(left) == 0 {
		return nil, nil
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.DisableClientMetrics(), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	var out []bus.Message
	quiet := time.Now()
	for len(left) > 0 {
		pctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		fetches := cl.PollFetches(pctx)
		cancel()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%d partitions are not read to their end: %w", len(left), ctx.Err())
		}
		fetches.EachRecord(func(r *kgo.Record) {
			quiet = time.Now()
			end, ok := left[r.Partition]
			if !ok || r.Offset >= end {
				return
			}
			if r.Offset+1 >= end {
				delete(left, r.Partition)
			}
			if r.Attrs.IsControl() {
				return
			}
			m := bus.Message{Topic: row, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp.UTC(), Key: r.Key, Value: r.Value}
			for _, h := range r.Headers {
				m.Headers = append(m.Headers, bus.Header(h))
			}
			out = append(out, m)
		})
		if time.Since(quiet) > 3*time.Second {
			break // the last offsets were compacted away
		}
	}
	slices.SortFunc(out, func(a, b bus.Message) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	return out, nil
}

// Until calls f every 20 ms until it returns nil, and fails the test with its last error after the given time.
func Until(t testing.TB, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
