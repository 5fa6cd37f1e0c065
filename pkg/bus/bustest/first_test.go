package bustest_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

func TestHandlerCopies(t *testing.T) {
	b := bustest.Start(t, topics.SystemLog, topics.SystemLog.DLQ(), topics.DetectMatchRedrive, topics.Matches)
	one := b.Bus(t, "a")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- one.RunHandler(ctx, topics.DetectMatch, func(_ context.Context, m bus.Message, out *bus.Emit) error {
			return out.PutRaw(topics.Matches, string(m.Key), m.Value)
		})
	}()
	began := time.Now()
	for i := range 20 {
		b.Write(t, topics.SystemLog, fmt.Sprintf("k%d", i), "v")
	}
	bustest.Until(t, 15*time.Second, func() error {
		if got := len(b.Read(t, topics.Matches)); got != 20 {
			return fmt.Errorf("%d of 20 records; %+v", got, one.Health())
		}
		return nil
	})
	t.Log(time.Since(began))
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestSender(t *testing.T) {
	b := bustest.Start(t, topics.Sources)
	one := b.Bus(t, "a")
	if err := one.Sender().Send(t.Context(), topics.Sources, "s1", &record.Source{}); err != nil {
		t.Fatal(err)
	}
	var keys []string
	tb, err := one.OpenTable(t.Context(), topics.Sources, func(key string, value []byte) { keys = append(keys, key) })
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 1 {
		t.Fatal(keys)
	}
	_ = tb
}
