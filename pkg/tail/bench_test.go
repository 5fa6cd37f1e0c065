package tail_test

import (
	"crypto/rand"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// benchmark reads 100,000 records of 1,300 bytes in batches of 500, as normalize writes them, over and over.
func benchmark(b *testing.B, codec kgo.CompressionCodec) {
	k := bustest.Start(b, topics.Audit)
	topic := topics.Audit.Full(k.Prefix)
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Seeds...), kgo.ProducerBatchCompression(codec), kgo.TransactionalID(topic),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(1<<20-1000))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	const n = 100_000
	value := make([]byte, 1300)
	_, _ = rand.Read(value[:600])
	for i := 0; i < n; {
		if err := cl.BeginTransaction(); err != nil {
			b.Fatal(err)
		}
		for range 2000 {
			cl.Produce(b.Context(), &kgo.Record{Topic: topic, Partition: int32(i % 4), Key: []byte("org/actor"), Value: value}, nil)
			i++
		}
		if err := cl.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := cl.EndTransaction(b.Context(), kgo.TryCommit); err != nil {
			b.Fatal(err)
		}
	}
	r, err := tail.Open(tail.Config{Brokers: k.Seeds}, tail.Deps{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, err := r.Count(b.Context(), topic, tail.Options{Exit: true}, nil)
		if err != nil || c.Records != n {
			b.Fatalf("%d records, %v", c.Records, err)
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "records/s")
}
