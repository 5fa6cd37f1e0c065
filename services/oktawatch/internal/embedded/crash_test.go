package embedded

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestACrashLeavesNothingOpen crashes twice, the first time with a transaction open. The same producer then commits: its
// record is read by who reads both in one fetch, and after the second crash the first record does not come back.
func TestACrashLeavesNothingOpen(t *testing.T) {
	topic := topics.Audit.Name
	write := func(e *Embedded, value string) *kgo.Client {
		t.Helper()
		cl, err := kgo.NewClient(kgo.SeedBrokers(e.Kafka()), kgo.TransactionalID("one"), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(topic))
		if err != nil {
			t.Fatal(err)
		}
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		return cl
	}
	// read returns what a read-committed consumer sees up to a last record written for it.
	read := func(e *Embedded) []string {
		t.Helper()
		cl := write(e, "end")
		if err := cl.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		cl.Close()
		cl, err := kgo.NewClient(kgo.SeedBrokers(e.Kafka()), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var got []string
		for len(got) == 0 || got[len(got)-1] != "end" {
			fs := cl.PollFetches(ctx)
			if err := fs.Err(); err != nil {
				t.Fatalf("read: %v; so far %q", err, got)
			}
			fs.EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
		}
		return got
	}
	// crash is the directory as a SIGKILL would leave it.
	crash := func(e *Embedded) *Embedded {
		t.Helper()
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(e.cfg.DataDir)); err != nil {
			t.Fatal(err)
		}
		next := start(t, config(dir))
		if !next.Unclean() {
			t.Fatal("a crash was taken for a clean stop")
		}
		return next
	}

	e1 := start(t, config(t.TempDir()))
	if _, err := topics.Apply(t.Context(), connect(t, e1).Admin(), topics.Plan{Partitions: topics.EmbeddedPartitions}); err != nil {
		t.Fatal(err)
	}
	left := write(e1, "open when it crashed")
	defer left.Close()
	e2 := crash(e1)
	cl := write(e2, "committed after it")
	if err := cl.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	cl.Close()
	e3 := crash(e2)
	if got, want := read(e2), []string{"committed after it", "end"}; !slices.Equal(got, want) {
		t.Errorf("after the first crash %q is read, want %q", got, want)
	}
	if got, want := read(e3), []string{"committed after it", "end"}; !slices.Equal(got, want) {
		t.Errorf("after the second crash %q is read, want %q", got, want)
	}
}
