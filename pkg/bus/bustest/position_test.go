package bustest_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestPassed follows a group past ends, with an open transaction, an aborted one and an empty partition among what is to be passed.
func TestPassed(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t, topics.Raw, topics.Raw.DLQ(), topics.NormalizeDedupState, topics.NormalizeDedupRedrive, topics.SystemLog)
	one := b.Bus(t, "one")
	passed := func(e bus.Ends, want bool) {
		t.Helper()
		bustest.Until(t, 20*time.Second, func() error {
			got, err := one.Passed(t.Context(), topics.NormalizeDedup, e)
			if err != nil || got != want {
				return fmt.Errorf("passed %v, want %v: %w", got, want, err)
			}
			return nil
		})
	}
	ends := func() bus.Ends {
		t.Helper()
		e, err := one.Ends(t.Context(), topics.Raw)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	passed(ends(), true) // nothing was ever written, nobody ever read
	b.Write(t, topics.Raw, "k", "1", "k", "2")
	before := ends()
	passed(before, false)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- bustest.PassThrough(topics.NormalizeDedup, topics.SystemLog)(ctx, one) }()
	passed(before, true)

	open, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...), kgo.TransactionalID(b.Prefix+"open"), kgo.DisableClientMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for _, commit := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
		if err := open.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := open.ProduceSync(t.Context(), &kgo.Record{Topic: topics.Raw.Full(b.Prefix), Key: []byte("k"), Value: []byte("3")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		e := ends()
		time.Sleep(300 * time.Millisecond)
		passed(e, false)
		if err := open.EndTransaction(t.Context(), commit); err != nil {
			t.Fatal(err)
		}
		passed(e, true)
		passed(ends(), true) // the marker too
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n, err := one.Partitions(t.Context(), topics.Raw); err != nil || n != topics.EmbeddedPartitions {
		t.Errorf("%d partitions, %v", n, err)
	}
}

func TestReadBack(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t, topics.SystemLog)
	one := b.Bus(t, "one")
	var kv []string
	for i := range 200 {
		kv = append(kv, "k", fmt.Sprintf("%d %s", i, strings.Repeat("x", 10_000)))
	}
	b.Write(t, topics.SystemLog, kv...)
	all := b.Read(t, topics.SystemLog)
	n := all[0].Partition
	got, err := one.ReadBack(t.Context(), topics.SystemLog, n, all[0].Offset, all[150].Offset, all[199].Offset, all[150].Offset, all[199].Offset+100, -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []bus.Message{all[0], all[150], all[199]} {
		if g := got[m.Offset]; string(g.Value) != string(m.Value) || string(g.Key) != "k" || g.Topic.Name != m.Topic.Name || !g.Timestamp.Equal(m.Timestamp) {
			t.Errorf("%s read back as %.30q", m, g.Value)
		}
	}
	if len(got) != 3 {
		t.Errorf("%d records", len(got))
	}
}
