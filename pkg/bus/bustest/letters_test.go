package bustest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// matchTopics is what a stage without memory needs, with Detections for its output.
func matchTopics() []topics.Topic {
	return []topics.Topic{topics.SystemLog, topics.SystemLog.DLQ(), topics.DetectMatchRedrive, topics.Detections}
}

func startHandler(t *testing.T, b *bustest.Broker, h bus.Handler) *member {
	t.Helper()
	return start(t, b, "one", nil, func(ctx context.Context, one *bus.Bus) error { return one.RunHandler(ctx, topics.DetectMatch, h) })
}

func waitFor(t *testing.T, b *bustest.Broker, row topics.Topic, n int) []bus.Message {
	t.Helper()
	var got []bus.Message
	bustest.Until(t, time.Minute, func() error {
		if got = b.Read(t, row); len(got) < n {
			return fmt.Errorf("%s: %d of %d records", row.Name, len(got), n)
		}
		return nil
	})
	if len(got) > n {
		t.Fatalf("%s: %d records, want %d", row.Name, len(got), n)
	}
	return got
}

// TestDeadLetters has a handler that refuses some records, in each of the ways it can: the stream goes on, and the letters say all.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	b := begin(t, matchTopics()...)
	startHandler(t, b, func(_ context.Context, m bus.Message, out *bus.Emit) error {
		if err := out.PutRaw(topics.Detections, string(m.Key), m.Value); err != nil {
			return err
		}
		switch string(m.Value) {
		case "permanent":
			return bus.Permanent(errors.New("no such thing\nunder the sun"))
		case "panic":
			panic("out of order")
		case "letter":
			out.DeadLetter(m, "mine", errors.New("kept aside"))
		case "too large":
			return out.PutRaw(topics.Detections, string(m.Key), make([]byte, 2<<20))
		}
		return nil
	})
	part := topics.SystemLog.PartitionFor("k", topics.EmbeddedPartitions)
	var recs []*kgo.Record
	for _, v := range []string{"a", "permanent", "b", "panic", "letter", "too large", "c"} {
		recs = append(recs, &kgo.Record{
			Topic: topics.SystemLog.Full(b.Prefix), Partition: part, Key: []byte("k"), Value: []byte(v),
			Headers: []kgo.RecordHeader{{Key: "h", Value: []byte{0, 1, 2}}}, Timestamp: time.UnixMilli(1_700_000_000_123),
		})
	}
	b.Produce(t, recs...)
	var values []string
	for _, m := range waitFor(t, b, topics.Detections, 4) {
		values = append(values, string(m.Value))
	}
	if want := []string{"a", "b", "letter", "c"}; !slices.Equal(values, want) {
		t.Errorf("out: %q, want %q", values, want)
	}
	letters := waitFor(t, b, topics.SystemLog.DLQ(), 4)
	for i, want := range []struct{ value, class, message string }{
		{"permanent", "permanent", "no such thing under the sun"},
		{"panic", "panic", "panic: out of order"},
		{"letter", "mine", "kept aside"},
		{"too large", "too_large", bus.ErrTooLarge.Error()},
	} {
		m := letters[i]
		if string(m.Value) != want.value || string(m.Key) != "k" || !bytes.Equal(m.Header("h"), []byte{0, 1, 2}) {
			t.Errorf("letter %d is %q under %q", i, m.Value, m.Key)
		}
		at := slices.IndexFunc(recs, func(r *kgo.Record) bool { return string(r.Value) == want.value })
		for k, v := range map[string]string{
			"dlq.topic": topics.SystemLog.Name, "dlq.partition": strconv.Itoa(int(part)), "dlq.offset": strconv.Itoa(at),
			"dlq.timestamp": "1700000000123", "dlq.service": "detect", "dlq.stage": "match", "dlq.attempts": "1", "dlq.error.class": want.class,
		} {
			if got := string(m.Header(k)); got != v {
				t.Errorf("letter %q: %s is %q, want %q", want.value, k, got, v)
			}
		}
		if got := string(m.Header("dlq.error.message")); !strings.Contains(got, want.message) {
			t.Errorf("letter %q: message %q, want %q", want.value, got, want.message)
		}
	}
}

// TestRedrive sends a dead letter back: the stage sees it where it was, and what fails again counts its attempts.
func TestRedrive(t *testing.T) {
	t.Parallel()
	b := begin(t, matchTopics()...)
	var cured atomic.Bool
	var seen atomic.Value
	startHandler(t, b, func(_ context.Context, m bus.Message, out *bus.Emit) error {
		if !cured.Load() {
			return bus.Permanent(errors.New("ill"))
		}
		seen.Store(m)
		return out.PutRaw(topics.Detections, string(m.Key), m.Value)
	})
	b.Write(t, topics.SystemLog, "other", "x", "k", "v")
	again := func(letter bus.Message) {
		part, err := strconv.Atoi(string(letter.Header("dlq.partition")))
		if err != nil {
			t.Fatal(err)
		}
		rec := &kgo.Record{Topic: topics.DetectMatchRedrive.Full(b.Prefix), Partition: int32(part), Key: letter.Key, Value: letter.Value}
		for _, h := range letter.Headers {
			rec.Headers = append(rec.Headers, kgo.RecordHeader(h))
		}
		b.Produce(t, rec)
	}
	pick := func(n int) bus.Message {
		letters := waitFor(t, b, topics.SystemLog.DLQ(), n)
		letters = slices.DeleteFunc(letters, func(m bus.Message) bool { return string(m.Key) != "k" })
		return slices.MaxFunc(letters, func(a, b bus.Message) int { return int(a.Offset - b.Offset) })
	}
	first := pick(2)
	again(first)
	second := pick(3)
	if got := string(second.Header("dlq.attempts")); got != "2" {
		t.Errorf("attempts: %s, want 2", got)
	}
	if len(second.Headers) != len(first.Headers) {
		t.Errorf("headers grew: %v", second.Headers)
	}
	cured.Store(true)
	again(second)
	waitFor(t, b, topics.Detections, 1)
	m, _ := seen.Load().(bus.Message)
	if !m.Redriven || m.Topic.Name != topics.SystemLog.Name || strconv.FormatInt(m.Offset, 10) != string(first.Header("dlq.offset")) ||
		strconv.FormatInt(m.Timestamp.UnixMilli(), 10) != string(first.Header("dlq.timestamp")) {
		t.Errorf("redriven as %s at %v, header %s@%s", m, m.Timestamp, first.Header("dlq.topic"), first.Header("dlq.offset"))
	}
}

// TestPoisonInBatch hides some records that no Process survives among many.
func TestPoisonInBatch(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]func(i int) bool{
		"one":        func(i int) bool { return i == 577 },
		"a few":      func(i int) bool { return i%250 == 3 },
		"a long row": func(i int) bool { return i >= 100 && i < 700 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := begin(t, countingTopics()...)
			key := keysFor(topics.EmbeddedPartitions)[2]
			var kv []string
			var want int
			for i := range 1000 {
				v := "good"
				if bad(i) {
					v = "bad" + strconv.Itoa(i)
					want++
				}
				kv = append(kv, key, v)
			}
			b.Write(t, topics.Raw, kv...)
			began := time.Now()
			run(t, b, "one", nil, func(int32) (bus.Task, error) { return &picky{}, nil })
			letters := waitFor(t, b, topics.Raw.DLQ(), want)
			exactly(t, b, map[string]int{key: 1000 - want})
			t.Logf("%d dead letters, all done after %v", want, time.Since(began))
			for _, m := range letters {
				if !strings.HasPrefix(string(m.Value), "bad") {
					t.Fatalf("a good record was buried: %s", m.Value)
				}
			}
		})
	}
}

// picky changes its memory for each record and panics at a bad one.
type picky struct{ counter }

func (p *picky) Process(_ context.Context, batch []bus.Message, out *bus.Emit) error {
	for _, m := range batch {
		if strings.HasPrefix(string(m.Value), "bad") {
			var none map[string]int
			none["x"] = 1 //nolint:staticcheck // the panic is the point
		}
		if err := p.add(string(m.Key), out); err != nil {
			return err
		}
	}
	return nil
}

// TestTooLargeForBroker has a broker that takes less than the row says: the input of what it refuses becomes a dead letter, and the rest
// of the batch goes on.
func TestTooLargeForBroker(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	for _, row := range []topics.Topic{topics.SystemLog, topics.Raw.DLQ()} {
		small := "2000"
		if _, err := b.Admin().AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &small}}, row.Full(b.Prefix)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	key := keysFor(topics.EmbeddedPartitions)[1]
	noise := make([]byte, 5000) // snappy makes nothing of it
	for i := range noise {
		noise[i] = byte((i * i * 7919) >> 5)
	}
	var kv []string
	for i := range 40 {
		v := "small"
		if i == 17 || i == 23 {
			v = string(noise)
		}
		kv = append(kv, key, v)
	}
	b.Write(t, topics.Raw, kv...)
	run(t, b, "one", nil, func(int32) (bus.Task, error) { return &echo{}, nil })
	letters := waitFor(t, b, topics.Raw.DLQ(), 2)
	waitFor(t, b, topics.SystemLog, 38)
	for _, m := range letters {
		// They do not fit into their dead letter topic either: their place must do.
		if len(m.Value) != 0 || string(m.Header("dlq.value.cut")) != "5000" || string(m.Header("dlq.error.class")) != "too_large" {
			t.Errorf("letter of %d bytes: %q", len(m.Value), m.Headers)
		}
	}
}

type echo struct{ counter }

func (e *echo) Process(_ context.Context, batch []bus.Message, out *bus.Emit) error {
	for _, m := range batch {
		if err := out.PutRaw(topics.SystemLog, string(m.Key), m.Value); err != nil {
			return err
		}
	}
	return nil
}

// TestRetry has a handler that fails for a while at one record: nothing behind it is handled before it, other partitions go on, and
// Health says why.
func TestRetry(t *testing.T) {
	t.Parallel()
	b := begin(t, matchTopics()...)
	var well atomic.Bool
	m := startHandler(t, b, func(_ context.Context, m bus.Message, out *bus.Emit) error {
		if string(m.Value) == "stuck" && !well.Load() {
			return errors.New("the other side is down")
		}
		return out.PutRaw(topics.Detections, string(m.Key), m.Value)
	})
	keys := keysFor(topics.EmbeddedPartitions)
	b.Write(t, topics.SystemLog, keys[0], "before", keys[0], "stuck", keys[0], "after", keys[1], "free")
	waitFor(t, b, topics.Detections, 2)
	bustest.Until(t, 10*time.Second, func() error {
		h := m.bus.Health()[0]
		if h.Retrying != 1 || !strings.Contains(h.LastError, "the other side is down") {
			return fmt.Errorf("health: %+v", h)
		}
		return nil
	})
	// What comes meanwhile may be fetched already when the partition is paused.
	want := []string{"before", "stuck", "after"}
	for i := range 100 {
		want = append(want, strconv.Itoa(i))
		b.Write(t, topics.SystemLog, keys[0], strconv.Itoa(i), keys[1], "free too")
	}
	waitFor(t, b, topics.Detections, 102)
	well.Store(true)
	var got []string
	for _, m := range waitFor(t, b, topics.Detections, 204) {
		if string(m.Key) == keys[0] {
			got = append(got, string(m.Value))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	bustest.Until(t, 10*time.Second, func() error {
		if h := m.bus.Health()[0]; h.Retrying != 0 || h.LastError != "" || h.Lag != 0 || !h.Alive || h.LastEvent.IsZero() {
			return fmt.Errorf("health: %+v", h)
		}
		return nil
	})
}
