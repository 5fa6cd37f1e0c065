package detect

import (
	"context"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
)

// TestApart is the broker's process of the benchmark below; otherwise it does nothing.
func TestApart(t *testing.T) { bustest.ServeApart(t) }

const benchEvents = 60_000

// BenchmarkShare measures detect with the whole pack beside a pass-through of the same System Log records.
func BenchmarkShare(b *testing.B) {
	bustest.Apart(b, "TestApart")
	bustest.Contest{
		Group: topics.DetectMatch, Out: topics.Detections,
		Fill: func(round int, emit func(bustest.Keyed)) { records(b, uint64(round+1), emit) },
		Start: func(ctx context.Context, made *bus.Bus, m *metrics.Set) error {
			s, err := New(Config{}, Deps{Bus: made, Metrics: m, Pack: rules.FS})
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	}.Run(b)
}

// records are the events of ordinary days of a simulated org with an attack now and then, as normalize writes them.
func records(b *testing.B, seed uint64, emit func(bustest.Keyed)) {
	b.Helper()
	org, err := oktasim.New(oktasim.Config{Seed: seed, Users: 500, MaxEvents: 2 * benchEvents})
	if err != nil {
		b.Fatal(err)
	}
	stories := oktasim.Scenarios()
	for i := range benchEvents / 2000 {
		if err := org.Burst(2000); err != nil {
			b.Fatal(err)
		}
		if _, err := org.Play(b.Context(), stories[i%len(stories)].Name, -1); err != nil {
			b.Fatal(err)
		}
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	for e := range org.Truth().Events(oktasim.Query{}) {
		doc, ok := org.Truth().Raw(e.Seq)
		if !ok {
			b.Fatalf("event %d is gone", e.Seq)
		}
		ev, _, err := systemlog.FromJSON(doc, nil)
		if err != nil {
			b.Fatal(err)
		}
		ev.Derived = record.Derived{Org: org.ID(), Lane: "live", Copy: 1, Time: e.Published, Received: now, Source: "poller", SourceID: "bench"}
		emit(bustest.Keyed{Key: org.ID() + "/" + ev.Actor.ID, Record: ev})
	}
}
