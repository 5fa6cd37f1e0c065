package normalize

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestApart is the broker's process of the benchmark below; otherwise it does nothing.
func TestApart(t *testing.T) { bustest.ServeApart(t) }

const benchEvents = 40_000

// BenchmarkShare measures normalize beside a pass-through of the same raw events. poller: each event comes once, complete. both: each
// comes by hook first, marked partial, and then by the poller.
func BenchmarkShare(b *testing.B) {
	for _, way := range []string{"poller", "both"} {
		b.Run(way, func(b *testing.B) {
			bustest.Apart(b, "TestApart")
			bustest.Contest{
				Group: topics.NormalizeDedup, Out: topics.SystemLog,
				Fill: func(round int, emit func(bustest.Keyed)) { rawEvents(b, uint64(round+1), way == "both", emit) },
				Start: func(ctx context.Context, made *bus.Bus, m *metrics.Set) error {
					s, err := New(Config{Masking: Masking{Key: testKey}}, Deps{Bus: made, Metrics: m})
					if err != nil {
						return err
					}
					return s.Run(ctx)
				},
			}.Run(b)
		})
	}
}

// rawEvents are the events of ordinary days of a simulated org, as ingest writes them.
func rawEvents(b *testing.B, seed uint64, both bool, emit func(bustest.Keyed)) {
	b.Helper()
	org, err := oktasim.New(oktasim.Config{Seed: seed, Users: 500, MaxEvents: benchEvents})
	if err != nil {
		b.Fatal(err)
	}
	n := benchEvents
	if both {
		n /= 2
	}
	if err := org.Burst(n); err != nil {
		b.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	for e := range org.Truth().Events(oktasim.Query{}) {
		doc, ok := org.Truth().Raw(e.Seq)
		if !ok {
			b.Fatalf("event %d is gone", e.Seq)
		}
		sum := sha256.Sum256(doc)
		raw := record.RawEvent{
			Org: org.ID(), SourceID: "bench", Source: "poller", Lane: "live", ReceivedAt: now,
			UUID: e.UUID, Size: int64(len(doc)), SHA256: hex.EncodeToString(sum[:]), JSON: doc,
		}
		if both {
			hook := raw
			hook.Source, hook.Partial, hook.DeliveryID = "hook", true, "d"
			emit(bustest.Keyed{Key: hook.Org + "/" + hook.UUID, Record: &hook})
		}
		emit(bustest.Keyed{Key: raw.Org + "/" + raw.UUID, Record: &raw})
	}
}
