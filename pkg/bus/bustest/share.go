package bustest

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Keyed is a record and its key.
type Keyed struct {
	Key    string
	Record record.Record
}

// Contest measures what a stage costs beside a pass-through: the same bus, transactions, topics and records, one in, one out, nothing
// decoded.
type Contest struct {
	Group  topics.Group                                                // of the stage; its first input is read
	Out    topics.Topic                                                // where the pass-through writes: another topic than it reads
	Others []topics.Topic                                              // what else the stage writes to
	Fill   func(round int, emit func(Keyed))                           // the same records in the same order for a round
	Start  func(ctx context.Context, b *bus.Bus, m *metrics.Set) error // the stage
}

// Rounds is how often both sides run, in turn: one result is the median.
const Rounds = 5

// Run reports processor time of this process (so have the broker Apart) for each record and the share of the pass-through's speed that
// the stage reaches, on one core. Each side reads what was written before it started; the first and the last tenth do not count.
func (c Contest) Run(b *testing.B) {
	b.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	through := topics.Group{Service: "bench", Stage: "through", Inputs: c.Group.Inputs[:1]}
	pass := func(ctx context.Context, made *bus.Bus, _ *metrics.Set) error {
		return PassThrough(through, c.Out)(ctx, made)
	}
	for b.Loop() {
		var ours, base, shares []float64
		var written float64
		for round := range Rounds {
			p, _ := c.measure(b, round, through, pass)
			s, out := c.measure(b, round, c.Group, c.Start)
			base, ours, shares, written = append(base, p), append(ours, s), append(shares, p/s), out
		}
		b.ReportMetric(median(base), "pass-us/record")
		b.ReportMetric(median(ours), "us/record")
		b.ReportMetric(1e6/median(ours), "records/s")
		b.ReportMetric(median(shares), "share")
		b.ReportMetric(written, "written/record")
		b.ReportMetric(0, "ns/op")
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// measure gives the microseconds of processor time a record costs, and how many records (and transaction markers) were written for one.
func (c Contest) measure(b *testing.B, round int, g topics.Group, run func(context.Context, *bus.Bus, *metrics.Set) error) (cost, written float64) {
	b.Helper()
	rows := append(g.Topics(), c.Group.Inputs[0], c.Out, c.Group.Inputs[0].DLQ())
	rows = append(rows, c.Others...)
	if g.State != nil {
		rows = append(rows, *g.State)
	}
	slices.SortFunc(rows, func(x, y topics.Topic) int { return cmp.Compare(x.Name, y.Name) })
	rows = slices.CompactFunc(rows, func(x, y topics.Topic) bool { return x.Name == y.Name })

	sub := &scope{B: b}
	defer sub.end()
	br := Start(sub, rows...)
	total := c.preload(b, br, round)
	runtime.GC()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	done := make(chan error, 1)
	set := metrics.NewSet()
	made, err := bus.New(bus.Config{Brokers: br.Seeds}, bus.Deps{Log: Logger(), Metrics: set, Serde: br.Serde(), Prefix: br.Prefix, InstanceID: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	sub.Cleanup(made.Close)
	go func() { done <- run(ctx, made, set) }()
	type sample struct {
		n   int64
		cpu time.Duration
	}
	var first, last sample
	name := c.Group.Inputs[0].Full(br.Prefix)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%s stands still", g.Name(""))
		}
		offsets, err := br.Admin().FetchOffsets(ctx, g.Name(br.Prefix))
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // the stage has not joined yet
			b.Fatal(err)
		}
		now := sample{cpu: cpuTime()}
		for _, o := range offsets[name] {
			now.n += max(o.At, 0)
		}
		if first.n == 0 && now.n >= total/10 {
			first = now
		}
		if now.n <= total*9/10 {
			last = now
		}
		if now.n >= total {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	if last.n <= first.n {
		b.Fatalf("%d records are too few to measure", total)
	}
	ends, err := br.Admin().ListEndOffsets(b.Context(), c.Out.Full(br.Prefix))
	if err != nil {
		b.Fatal(err)
	}
	ends.Each(func(o kadm.ListedOffset) { written += float64(o.Offset) })
	return float64(last.cpu-first.cpu) / float64(time.Microsecond) / float64(last.n-first.n), written / float64(total)
}

func (c Contest) preload(b *testing.B, br *Broker, round int) int64 {
	b.Helper()
	in := c.Group.Inputs[0]
	serde := br.Serde()
	var recs []*kgo.Record
	total := int64(0)
	flush := func() {
		br.Produce(b, recs...)
		total += int64(len(recs))
		recs = recs[:0]
	}
	c.Fill(round, func(k Keyed) {
		value, err := serde.Encode(b.Context(), in.Subject(br.Prefix), k.Record, nil)
		if err != nil {
			b.Fatal(err)
		}
		recs = append(recs, &kgo.Record{Topic: in.Full(br.Prefix), Key: []byte(k.Key), Value: value, Partition: in.PartitionFor(k.Key, br.partitions)})
		if len(recs) == 5000 {
			flush()
		}
	})
	flush()
	return total
}

// scope ends what a round started with the round, not with the benchmark.
type scope struct {
	*testing.B
	ends []func()
}

func (s *scope) Cleanup(f func()) { s.ends = append(s.ends, f) }

func (s *scope) end() {
	for _, f := range slices.Backward(s.ends) {
		f()
	}
}
