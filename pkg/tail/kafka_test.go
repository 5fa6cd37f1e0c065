package tail_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(closer{m}) }

// closer ends the connections that clients leave in the default transport: a real registry keeps them open.
type closer struct{ m *testing.M }

func (c closer) Run() int {
	defer http.DefaultClient.CloseIdleConnections()
	return c.m.Run()
}

// kafkaT is a broker for one test: kfake, or the real one that KAFKA_SEEDS names.
type kafkaT struct {
	*bustest.Broker
	t *testing.T
}

// start starts a cluster of so many brokers; a real one has as many as it has.
func start(t *testing.T, brokers int) kafkaT {
	t.Helper()
	k := kafkaT{bustest.Start(t, topics.Audit), t}
	for !k.Real && brokers > 1 {
		if _, _, err := k.Cluster.AddNode(-1, 0); err != nil {
			t.Fatal(err)
		}
		brokers--
	}
	return k
}

func (k kafkaT) client(opts ...kgo.Opt) *kgo.Client {
	k.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(k.Seeds...), kgo.MetadataMinAge(50 * time.Millisecond), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
	}, opts...)...)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(cl.Close)
	return cl
}

// topic makes a topic of its own name.
func (k kafkaT) topic(partitions int32, configs map[string]string) string {
	k.t.Helper()
	name := k.Prefix + "tail." + uuid.NewString()
	conf := map[string]*string{}
	for key, v := range configs {
		conf[key] = &v
	}
	if _, err := k.Admin().CreateTopic(k.t.Context(), partitions, -1, conf, name); err != nil {
		k.t.Fatal(err)
	}
	return name
}

func (k kafkaT) reader() *tail.Reader {
	k.t.Helper()
	r, err := tail.Open(tail.Config{Brokers: k.Seeds, Prefix: k.Prefix, Registry: k.RegistryURL}, tail.Deps{Log: slog.New(slog.NewTextHandler(testWriter{k.t}, nil))})
	if err != nil {
		k.t.Fatal(err)
	}
	return r
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// produce writes values outside transactions and waits.
func (k kafkaT) produce(cl *kgo.Client, topic string, partition int32, values ...string) {
	k.t.Helper()
	var rs []*kgo.Record
	for _, v := range values {
		rs = append(rs, &kgo.Record{Topic: topic, Partition: partition, Key: []byte("k" + v), Value: []byte(v)})
	}
	if err := cl.ProduceSync(k.t.Context(), rs...).FirstErr(); err != nil {
		k.t.Fatal(err)
	}
}

func line(partition int32, offset int64, value string) string {
	return fmt.Sprintf("%d/%d=%s", partition, offset, value)
}

// tailed reads a topic to its end and returns a line a record, by partition.
func (k kafkaT) tailed(topic string, opts tail.Options) []string {
	k.t.Helper()
	opts.Exit = true
	ctx, cancel := context.WithTimeout(k.t.Context(), 30*time.Second)
	defer cancel()
	var got []string
	last := map[int32]int64{}
	err := k.reader().Read(ctx, topic, opts, func(r tail.Record) error {
		if o, ok := last[r.Partition]; ok && r.Offset <= o {
			k.t.Errorf("partition %d: offset %d after %d", r.Partition, r.Offset, o)
		}
		last[r.Partition] = r.Offset
		got = append(got, line(r.Partition, r.Offset, string(r.Value)))
		return nil
	})
	if err != nil {
		k.t.Fatalf("read: %v", err)
	}
	slices.SortStableFunc(got, byPartition)
	return got
}

func byPartition(a, b string) int {
	return strings.Compare(a[:strings.IndexByte(a, '/')], b[:strings.IndexByte(b, '/')])
}

// committed is what franz-go's read-committed consumer gives, n records of it.
func (k kafkaT) committed(topic string, n int) []string {
	k.t.Helper()
	cl := k.client(kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer cl.Close()
	var got []string
	for len(got) < n {
		ctx, cancel := context.WithTimeout(k.t.Context(), 20*time.Second)
		fs := cl.PollFetches(ctx)
		cancel()
		if err := fs.Err(); err != nil {
			k.t.Fatalf("franz-go: %v after %d of %d", err, len(got), n)
		}
		fs.EachRecord(func(r *kgo.Record) { got = append(got, line(r.Partition, r.Offset, string(r.Value))) })
	}
	// And nothing more.
	ctx, cancel := context.WithTimeout(k.t.Context(), 300*time.Millisecond)
	defer cancel()
	cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) { got = append(got, line(r.Partition, r.Offset, string(r.Value))) })
	slices.SortStableFunc(got, byPartition)
	return got
}

func (k kafkaT) begin(cl *kgo.Client) {
	k.t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		k.t.Fatal(err)
	}
}

func (k kafkaT) end(cl *kgo.Client, how kgo.TransactionEndTry) {
	k.t.Helper()
	if err := cl.EndTransaction(k.t.Context(), how); err != nil {
		k.t.Fatal(err)
	}
}

// TestInterleavedTransactions is the proof of the filter: two producers interleaved batch by batch over three partitions,
// every third transaction aborted, plain records between, in each compression.
func TestInterleavedTransactions(t *testing.T) {
	k := start(t, 3)
	for name, codec := range map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	} {
		t.Run(name, func(t *testing.T) {
			k := k
			k.t = t
			topic := k.topic(3, nil)
			plain := k.client(kgo.ProducerBatchCompression(codec))
			var txn [2]*kgo.Client
			for i := range txn {
				txn[i] = k.client(kgo.TransactionalID(topic+fmt.Sprint(i)), kgo.ProducerBatchCompression(codec))
			}
			const rounds = 30
			var want int
			step := [2]int{}
			for round := range rounds {
				for i, cl := range txn {
					// The two are out of step, so that each begins and ends inside the other's transaction.
					if (round+i)%2 == 0 || round == 0 {
						if round > 0 {
							how := kgo.TryCommit
							if step[i]%3 == 2 {
								how = kgo.TryAbort
							}
							k.end(cl, how)
							step[i]++
						}
						k.begin(cl)
					}
					var rs []*kgo.Record
					for p := range int32(3) {
						for j := range 4 {
							v := fmt.Sprintf("p%d txn%d round%d.%d %s", i, step[i], round, j, strings.Repeat("x", 200))
							rs = append(rs, &kgo.Record{Topic: topic, Partition: p, Value: []byte(v)})
							if step[i]%3 != 2 {
								want++
							}
						}
					}
					if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
						t.Fatal(err)
					}
				}
				k.produce(plain, topic, int32(round%3), fmt.Sprintf("plain %d", round))
				want++
			}
			for i, cl := range txn {
				how := kgo.TryCommit
				if step[i]%3 == 2 {
					how = kgo.TryAbort
				}
				k.end(cl, how)
			}
			// The last markers take a moment on a real broker.
			franz := k.committed(topic, want)
			got := k.tailed(topic, tail.Options{})
			if len(franz) != want {
				t.Errorf("franz-go gives %d records, %d were committed", len(franz), want)
			}
			if !slices.Equal(got, franz) {
				t.Errorf("tail gives %d records, franz-go %d; first difference: %s", len(got), len(franz), difference(got, franz))
			}
			// From any offset on it is the same.
			for at := int64(1); at < 60; at += 7 {
				got := k.tailed(topic, tail.Options{Offsets: map[int32]int64{0: at, 1: at, 2: at}})
				var rest []string
				for _, l := range franz {
					var p int32
					var o int64
					if _, err := fmt.Sscanf(l, "%d/%d=", &p, &o); err != nil {
						t.Fatal(err)
					}
					if o >= at {
						rest = append(rest, l)
					}
				}
				if !slices.Equal(got, rest) {
					t.Errorf("from offset %d: tail gives %d records, franz-go %d; first difference: %s", at, len(got), len(rest), difference(got, rest))
				}
			}
		})
	}
}

// An answer as full as it may be says as well as any other what was aborted.
func TestAbortedInFullAnswers(t *testing.T) {
	k := start(t, 1)
	topic := k.topic(1, nil)
	cl := k.client(kgo.TransactionalID(topic), kgo.ProducerBatchCompression(kgo.NoCompression()))
	var want []string
	for n := range 60 { // 6 MB, several answers
		k.begin(cl)
		how := kgo.TransactionEndTry(n%2 == 0)
		value := fmt.Sprintf("%d %s", n, strings.Repeat("x", 100_000))
		r := &kgo.Record{Topic: topic, Value: []byte(value)}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		k.end(cl, how)
		if how == kgo.TryCommit {
			want = append(want, line(0, r.Offset, value))
		}
	}
	if got := k.committed(topic, len(want)); !slices.Equal(got, want) {
		t.Errorf("franz-go gives %d records, %d were committed", len(got), len(want))
	}
	if got := k.tailed(topic, tail.Options{}); !slices.Equal(got, want) {
		t.Errorf("tail gives %d records, %d were committed", len(got), len(want))
	}
}

func difference(a, b []string) string {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			get := func(s []string) string {
				if i < len(s) {
					return s[i]
				}
				return "nothing"
			}
			return fmt.Sprintf("%.60s / %.60s", get(a), get(b))
		}
	}
	return "none"
}

// TestExitEnds: markers at the tail, an open transaction, an empty topic, and a start behind the end must not hang it.
func TestExitEnds(t *testing.T) {
	k := start(t, 1)
	topic := k.topic(1, nil)
	if got := k.tailed(topic, tail.Options{}); len(got) != 0 {
		t.Errorf("empty topic: %v", got)
	}
	cl := k.client(kgo.TransactionalID(topic))
	k.begin(cl)
	k.produce(cl, topic, 0, "a", "b")
	k.end(cl, kgo.TryCommit)
	k.begin(cl)
	k.produce(cl, topic, 0, "lost")
	k.end(cl, kgo.TryAbort)
	want := []string{"0/0=a", "0/1=b"}
	k.committed(topic, 2)
	if got := k.tailed(topic, tail.Options{}); !slices.Equal(got, want) {
		t.Errorf("aborted tail: %v, want %v", got, want)
	}

	k.begin(cl)
	k.produce(cl, topic, 0, "open")
	k.produce(k.client(), topic, 0, "behind it")
	if got := k.tailed(topic, tail.Options{}); !slices.Equal(got, want) {
		t.Errorf("open transaction: %v, want %v", got, want)
	}
	k.end(cl, kgo.TryCommit)
	want = append(want, "0/5=open", "0/6=behind it")
	k.committed(topic, 4)
	if got := k.tailed(topic, tail.Options{}); !slices.Equal(got, want) {
		t.Errorf("committed in the end: %v, want %v", got, want)
	}
	if got := k.tailed(topic, tail.Options{FromEnd: true}); len(got) != 0 {
		t.Errorf("from the end: %v", got)
	}
	if got := k.tailed(topic, tail.Options{Offsets: map[int32]int64{0: 100}}); len(got) != 0 {
		t.Errorf("behind the end: %v", got)
	}
}

// TestFollow: from the end, what is committed later comes, what is aborted does not.
func TestFollow(t *testing.T) {
	k := start(t, 3)
	topic := k.topic(2, nil)
	k.produce(k.client(), topic, 0, "old")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := make(chan string, 10)
	done := make(chan error, 1)
	first := make(chan struct{})
	go func() {
		// A reader from the start tells when following has begun.
		done <- k.reader().Read(ctx, topic, tail.Options{}, func(r tail.Record) error {
			if string(r.Value) == "old" {
				close(first)
				return nil
			}
			got <- string(r.Value)
			if string(r.Value) == "last" {
				return tail.Stop
			}
			return nil
		})
	}()
	<-first
	cl := k.client(kgo.TransactionalID(topic))
	for i, how := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit} {
		k.begin(cl)
		k.produce(cl, topic, 1, fmt.Sprint(i))
		k.end(cl, how)
	}
	k.produce(k.client(), topic, 1, "last")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(got)
	var all []string
	for v := range got {
		all = append(all, v)
	}
	if want := []string{"0", "2", "last"}; !slices.Equal(all, want) {
		t.Errorf("got %v, want %v", all, want)
	}
}

func TestSince(t *testing.T) {
	k := start(t, 1)
	topic := k.topic(2, nil)
	cl := k.client()
	base := time.Now().Add(-time.Hour).Truncate(time.Second)
	for i := range 20 {
		r := &kgo.Record{Topic: topic, Partition: int32(i % 2), Value: fmt.Append(nil, i), Timestamp: base.Add(time.Duration(i) * time.Minute)}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		since time.Time
		want  int
	}{
		"before all":       {base.Add(-time.Minute), 20},
		"exactly one":      {base.Add(10 * time.Minute), 10},
		"between":          {base.Add(10*time.Minute + time.Second), 9},
		"younger than all": {base.Add(time.Hour), 0},
	} {
		t.Run(name, func(t *testing.T) {
			k := k
			k.t = t
			if got := k.tailed(topic, tail.Options{Since: tc.since}); len(got) != tc.want {
				t.Errorf("got %d records, want %d: %v", len(got), tc.want, got)
			}
		})
	}
}

func TestEndings(t *testing.T) {
	k := start(t, 1)
	topic := k.topic(1, nil)
	k.produce(k.client(), topic, 0, "a", "b", "c")
	boom := errors.New("boom")
	n := 0
	err := k.reader().Read(t.Context(), topic, tail.Options{}, func(tail.Record) error { n++; return boom })
	if !errors.Is(err, boom) || n != 1 {
		t.Errorf("error of the function: %v after %d records", err, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = k.reader().Read(ctx, topic, tail.Options{}, func(r tail.Record) error {
		if string(r.Value) == "c" {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	begun := time.Now()
	err = k.reader().Read(t.Context(), "no-such-topic-"+uuid.NewString(), tail.Options{Exit: true}, func(tail.Record) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "there is no such topic") || time.Since(begun) > 8*time.Second {
		t.Errorf("no such topic: %v after %s", err, time.Since(begun))
	}
	if _, err := tail.Open(tail.Config{}, tail.Deps{}); err == nil {
		t.Error("a reader without brokers was opened")
	}
	if _, err := tail.Open(tail.Config{Brokers: k.Seeds, SASL: tail.SASL{Mechanism: "PLAIN", PasswordFile: "/none"}}, tail.Deps{}); err == nil {
		t.Error("a password file that is not there was taken")
	}
}

func TestUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("connection refused")
		r, err := tail.Open(tail.Config{Brokers: []string{"kafka:9092"}}, tail.Deps{
			Dial: func(context.Context, string, string) (net.Conn, error) { return nil, refused },
		})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		err = r.Read(t.Context(), "x", tail.Options{}, func(tail.Record) error { return nil })
		if err == nil || !errors.Is(err, refused) || !strings.Contains(err.Error(), "reach Kafka at kafka:9092") {
			t.Errorf("unreachable: %v", err)
		}
		if took := time.Since(begun); took < 10*time.Second || took > 15*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// TestRecord: everything a record has arrives, tombstones, empty values and the largest too.
func TestRecord(t *testing.T) {
	k := start(t, 1)
	topic := k.topic(1, map[string]string{"max.message.bytes": fmt.Sprint(8 << 20)})
	cl := k.client(kgo.ProducerBatchMaxBytes(7<<20), kgo.ProducerBatchCompression(kgo.NoCompression()))
	big := strings.Repeat("b", 5<<20)
	at := time.UnixMilli(time.Now().UnixMilli()).UTC()
	in := []*kgo.Record{
		{Key: []byte("k"), Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("1")}, {Key: "h", Value: nil}}},
		{Key: []byte("k"), Value: nil},
		{Key: nil, Value: []byte{}},
		{Key: []byte("big"), Value: []byte(big)},
	}
	for _, r := range in {
		r.Topic, r.Timestamp = topic, at
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	var n int
	err := k.reader().Read(t.Context(), topic, tail.Options{Exit: true}, func(r tail.Record) error {
		want := in[n]
		n++
		if string(r.Key) != string(want.Key) || string(r.Value) != string(want.Value) || (r.Value == nil) != (want.Value == nil) || (r.Key == nil) != (want.Key == nil) {
			t.Errorf("record %d: key %q value %.20q (%d bytes)", n, r.Key, r.Value, len(r.Value))
		}
		if !r.Timestamp.Equal(at) || r.Topic != topic || r.Offset != int64(n-1) || len(r.Headers) != len(want.Headers) {
			t.Errorf("record %d: %v %s %d %v", n, r.Timestamp, r.Topic, r.Offset, r.Headers)
		}
		return nil
	})
	if err != nil || n != len(in) {
		t.Errorf("got %d records, %v", n, err)
	}
}
