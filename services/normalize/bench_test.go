package normalize

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// passThrough hands raw events on as they are.
type passThrough struct{}

func (passThrough) Restore(_, _ []byte) error                        { return nil }
func (passThrough) Tick(context.Context, time.Time, *bus.Emit) error { return nil }
func (passThrough) Commit()                                          {}
func (passThrough) Abort()                                           {}
func (passThrough) Process(_ context.Context, batch []bus.Message, out *bus.Emit) error {
	for _, m := range batch {
		if err := out.PutRaw(topics.SystemLog, string(m.Key), m.Value); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkShare measures what share of a pass-through's rate normalize reaches: CPU time of this process for each raw event,
// by getrusage, so that a busy machine does not matter. With KAFKA_SEEDS the broker is another process, as it should be;
// without, its work is part of both sides and flatters the ratio. Run with -cpu 1 -benchtime 1x.
func BenchmarkShare(b *testing.B) {
	const n = 20_000
	docs := benchDocs(b)
	measure := func(run func(ctx context.Context, made *bus.Bus) error) float64 {
		broker := bustest.Start(b, topics.Raw, topics.Raw.DLQ(), topics.SystemLog, topics.NormalizeDedupState, topics.NormalizeDedupRedrive)
		sender := broker.Bus(b, "sender").Sender()
		serial := 0
		for serial < n {
			errs := make(chan error, 500)
			for range cap(errs) {
				id := fmt.Sprintf("00000000-0000-4000-8000-%012d", serial)
				doc := []byte(strings.Replace(docs[serial%len(docs)], "$UUID", id, 1))
				serial++
				go func() { errs <- sender.Send(b.Context(), topics.Raw, "00o1/"+id, rawOf(doc, id, "poller", false)) }()
			}
			for range cap(errs) {
				if err := <-errs; err != nil {
					b.Fatal(err)
				}
			}
		}
		before := cpu(b)
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		made := broker.Bus(b, "one")
		go func() { done <- run(ctx, made) }()
		for {
			time.Sleep(100 * time.Millisecond)
			ends, err := broker.Admin().ListCommittedOffsets(ctx, topics.SystemLog.Full(broker.Prefix))
			if err != nil {
				b.Fatal(err)
			}
			var written int64
			for _, o := range ends[topics.SystemLog.Full(broker.Prefix)] {
				written += o.Offset
			}
			if written >= n {
				break
			}
		}
		used := cpu(b) - before
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		return used.Seconds() * 1e6 / n
	}
	for b.Loop() {
		pass := measure(func(ctx context.Context, made *bus.Bus) error {
			return made.RunTasks(ctx, topics.NormalizeDedup, func(int32) (bus.Task, error) { return passThrough{}, nil })
		})
		norm := measure(func(ctx context.Context, made *bus.Bus) error {
			s, err := New(Config{Masking: Masking{Key: testKey}}, Deps{Bus: made})
			if err != nil {
				return err
			}
			return s.Run(ctx)
		})
		b.ReportMetric(pass, "pass-us/event")
		b.ReportMetric(norm, "normalize-us/event")
		b.ReportMetric(pass/norm, "share")
	}
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchDocs are whole recorded events with a uuid to be filled in.
func benchDocs(b *testing.B) []string {
	var docs []string
	for _, f := range []string{"okta-developer-docs", "sekoia-automation", "unqork-tomisp", "observiq-bindplane"} {
		text, err := os.ReadFile(filepath.Join("../../pkg/systemlog/testdata/samples", f+".jsonl"))
		if err != nil {
			b.Fatal(err)
		}
		for l := range strings.Lines(string(text)) {
			from := strings.Index(l, `"uuid":"`) + len(`"uuid":"`)
			to := from + strings.IndexByte(l[from:], '"')
			docs = append(docs, strings.TrimSpace(l[:from]+"$UUID"+l[to:]))
		}
	}
	return docs
}
