package tail_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/tail"
)

// TestLeadersMove: nothing is lost or repeated while leaders change and a broker goes away.
func TestLeadersMove(t *testing.T) {
	k := start(t, 3)
	topic := k.topic(4, nil)
	const n = 2000
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	done := make(chan error, 1)
	seen := make([][]string, 4)
	progress := make(chan int, n)
	go func() {
		total := 0
		done <- k.reader().Read(ctx, topic, tail.Options{}, func(r tail.Record) error {
			seen[r.Partition] = append(seen[r.Partition], string(r.Value))
			total++
			progress <- total
			if total == n {
				return tail.Stop
			}
			return nil
		})
	}()
	cl := k.client()
	var want [4][]string
	for i := range n / 20 {
		var rs []*kgo.Record
		for j := range 20 {
			p := int32(j % 4)
			v := fmt.Sprint(i, ".", j)
			want[p] = append(want[p], v)
			rs = append(rs, &kgo.Record{Topic: topic, Partition: p, Value: []byte(v)})
		}
		if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if k.Real {
			if i == n/60 {
				k.brokerTwo("kill")
			}
			continue
		}
		if i%10 == 5 {
			k.Cluster.ShufflePartitionLeaders()
		}
		if i == n/40 {
			if err := k.Cluster.RemoveNode(2); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := <-done; err != nil {
		t.Fatalf("%v after %d records", err, len(progress))
	}
	k.brokerTwo("start")
	for p := range want {
		if !slices.Equal(seen[p], want[p]) {
			t.Errorf("partition %d: %d records, want %d; first difference: %s", p, len(seen[p]), len(want[p]), difference(seen[p], want[p]))
		}
	}
}

// brokerTwo kills or starts one broker of a real cluster, where the test may: KAFKA_TEST_DIR is what .ci/kafka made.
func (k kafkaT) brokerTwo(do string) {
	k.t.Helper()
	dir := os.Getenv("KAFKA_TEST_DIR")
	if !k.Real || k.Replication < 3 || dir == "" {
		return
	}
	if out, err := exec.CommandContext(k.t.Context(), filepath.Join("..", "..", ".ci", "kafka", "kafka"), do, dir, "2").CombinedOutput(); err != nil {
		k.t.Fatalf("%s broker 2: %v: %s", do, err, out)
	}
}

// TestCompacted: where compaction took records, inside batches and whole ones, a read neither hangs nor misses the rest.
func TestCompacted(t *testing.T) {
	k := start(t, 1)
	if k.Real {
		return // compaction cannot be asked for there
	}
	topic := k.topic(1, map[string]string{"cleanup.policy": "compact"})
	cl := k.client()
	var rs []*kgo.Record
	for i := range 300 {
		rs = append(rs, &kgo.Record{Topic: topic, Key: fmt.Append(nil, "k", i%40), Value: fmt.Append(nil, i)})
		if len(rs) == 50 {
			if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			rs = rs[:0]
		}
	}
	before := k.tailed(topic, tail.Options{})
	k.Cluster.Compact()
	after := k.tailed(topic, tail.Options{})
	if len(before) != 300 || len(after) >= 200 || after[len(after)-1] != "0/299=299" {
		t.Errorf("%d records, after compaction %d, the last %q", len(before), len(after), after[len(after)-1])
	}
	newest := map[string]bool{}
	for _, l := range after {
		newest[l[strings.IndexByte(l, '=')+1:]] = true
	}
	for i := 260; i < 300; i++ {
		if !newest[fmt.Sprint(i)] {
			t.Errorf("the newest value %d is missing", i)
		}
	}
	// From offsets that compaction took.
	for at := range int64(300) {
		got := k.tailed(topic, tail.Options{Offsets: map[int32]int64{0: at}})
		if len(got) == 0 || got[len(got)-1] != "0/299=299" {
			t.Fatalf("from offset %d: %d records", at, len(got))
		}
	}
}

// TestRetention: a reader that is behind what the broker still has goes on at what is left.
func TestRetention(t *testing.T) {
	k := start(t, 1)
	if k.Real {
		return // it would take the broker minutes
	}
	topic := k.topic(1, nil)
	cl := k.client()
	k.produce(cl, topic, 0, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []string
	err := k.reader().Read(ctx, topic, tail.Options{}, func(r tail.Record) error {
		got = append(got, string(r.Value))
		switch string(r.Value) {
		case "a":
			k.produce(cl, topic, 0, "b", "c", "d")
			return k.Cluster.DeleteRecords(topic, 0, 3)
		case "d":
			return tail.Stop
		}
		return nil
	})
	if err != nil || !slices.Equal(got, []string{"a", "d"}) {
		t.Errorf("got %v, %v", got, err)
	}
}

func BenchmarkRead(b *testing.B) {
	for _, c := range []struct {
		name  string
		codec kgo.CompressionCodec
	}{{"none", kgo.NoCompression()}, {"snappy", kgo.SnappyCompression()}} {
		b.Run(c.name, func(b *testing.B) { benchmark(b, c.codec) })
	}
}
