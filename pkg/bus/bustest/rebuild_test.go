package bustest_test

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/bus/internal/hook"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestChangelogLost deletes a stage's changelog while nobody runs. The memory is made again from the input, also when the member that
// does it is killed on the way and records come meanwhile; what was written before is not written again, and the counts go on.
func TestChangelogLost(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	keys, sent := keysFor(topics.EmbeddedPartitions), map[string]int{}
	b.Fill(t, topics.Raw, 12_000, func(i int) (string, []byte) {
		key := keys[i%len(keys)]
		sent[key]++
		return key, []byte(strconv.Itoa(i))
	})
	first := run(t, b, "first", nil, newCounter)
	exactly(t, b, sent)
	first.stop(t)

	state := topics.NormalizeDedupState.Full(b.Prefix)
	if _, err := b.Admin().DeleteTopic(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 20*time.Second, func() error {
		_, err := b.Admin().CreateTopic(t.Context(), topics.EmbeddedPartitions, b.Replication, nil, state)
		return err
	})
	more := startLoad(t, b, 5*time.Millisecond)
	var steps atomic.Int32
	halfway := make(chan struct{})
	second := run(t, b, "second", &hook.Hooks{At: func(ctx context.Context, step string, _ int32) error {
		if step == hook.Committed && steps.Add(1) == 5 {
			close(halfway)
			<-ctx.Done()
			return errors.New("killed")
		}
		return nil
	}}, newCounter)
	<-halfway
	close(second.killed)
	second.cancel()
	<-second.done
	third := run(t, b, "third", nil, newCounter)
	owning(t, 4, third)
	time.Sleep(time.Second)
	for key, n := range more.stop() {
		sent[key] += n
	}
	exactly(t, b, sent)
}
