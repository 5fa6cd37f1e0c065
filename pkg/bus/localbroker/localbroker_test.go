package localbroker

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBound(t *testing.T) {
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		max              int32
		partitions, want []int32
	}{
		"one":                        {mib, []int32{mib}, []int32{mib}},
		"one that may take more":     {100, []int32{mib}, []int32{100}},
		"a record at a time":         {1, []int32{1}, []int32{1}},
		"nothing":                    {0, []int32{0}, []int32{0}},
		"as most clients ask":        {50 * mib, []int32{mib, mib, mib}, []int32{mib, mib, mib}},
		"a share each":               {8 * mib, []int32{8 * mib, 8 * mib}, []int32{4 * mib, 4 * mib}},
		"shares that are too little": {2 * mib, []int32{2 * mib, 2 * mib, 2 * mib, 100}, []int32{mib, mib, mib, 100}},
		"a session goes on":          {mib, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := fetch("t", tc.max, tc.partitions...)
			for range 2 { // a fetch that waits comes by again
				bound(r)
				var got []int32
				for _, p := range r.Topics[0].Partitions {
					got = append(got, p.PartitionMaxBytes)
				}
				if d := cmp.Diff(tc.want, got); d != "" {
					t.Errorf("limits of the partitions (-want +got):\n%s", d)
				}
				if r.MaxBytes != math.MaxInt32 {
					t.Errorf("limit of the request %d", r.MaxBytes)
				}
			}
		})
	}
}

func fetch(topic string, maxBytes int32, partitions ...int32) *kmsg.FetchRequest {
	r := kmsg.NewPtrFetchRequest()
	r.MaxWaitMillis, r.MaxBytes, r.IsolationLevel, r.SessionEpoch = 100, maxBytes, 1, -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic = topic
	for i, limit := range partitions {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.PartitionMaxBytes, p.CurrentLeaderEpoch = int32(i), limit, -1
		t.Partitions = append(t.Partitions, p)
	}
	r.Topics = append(r.Topics, t)
	return r
}

// However little a reader asks for, an answer names the aborted transactions of what it holds, request after request.
func TestAnswersNameTheAborted(t *testing.T) {
	for name, open := range map[string]func(opts ...kfake.Opt) (*kfake.Cluster, error){
		"as opened": Open,
		"renewed again and again": func(opts ...kfake.Opt) (*kfake.Cluster, error) {
			c, err := kfake.NewCluster(opts...)
			if err == nil {
				boundFetches(c, 3)
			}
			return c, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := open(kfake.NumBrokers(1), kfake.SeedTopics(2, "t"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.TransactionalID("x"), kgo.RecordPartitioner(kgo.ManualPartitioner()),
				kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.DisableClientMetrics(),
				kgo.MaxVersions(kversion.V2_8_0())) // the last that fetches by name
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			const size = 1000
			for n := range 10 {
				if err := cl.BeginTransaction(); err != nil {
					t.Fatal(err)
				}
				for p := range int32(2) {
					if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Partition: p, Value: make([]byte, size)}).FirstErr(); err != nil {
						t.Fatal(err)
					}
				}
				if err := cl.EndTransaction(t.Context(), n%2 == 1); err != nil { // the even ones are aborted
					t.Fatal(err)
				}
			}
			for n := range 20 {
				limit := int32(1 + n*size/2)
				resp, err := fetch("t", limit, limit, limit).RequestWith(t.Context(), cl)
				if err != nil {
					t.Fatal(err)
				}
				if len(resp.Topics) != 1 {
					t.Fatalf("request of %d bytes: %d topics", limit, len(resp.Topics))
				}
				for i := range resp.Topics[0].Partitions {
					rp := &resp.Topics[0].Partitions[i]
					part, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{IsolationLevel: kgo.ReadCommitted(), Topic: "t", Partition: rp.Partition},
						rp, kgo.DefaultDecompressor(), nil)
					if part.Err != nil {
						t.Fatal(part.Err)
					}
					for _, r := range part.Records {
						if r.Offset%4 == 0 { // a record, its abort marker, a record, its commit marker
							t.Errorf("request %d of %d bytes: the aborted record at %d/%d is given as committed", n, limit, r.Partition, r.Offset)
						}
					}
				}
			}
		})
	}
}
