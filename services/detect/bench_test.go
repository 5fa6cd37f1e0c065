package detect

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// BenchmarkShare measures detect beside a pass-through of the same System Log records. ordinary: the traffic of ordinary days, every
// sign-in a detection of mode signal, with an attack now and then, by the twelve match rules. attacks: attacks alone, the worst there can
// be. pack: ordinary traffic by the whole pack, rules with memory too.
func BenchmarkShare(b *testing.B) {
	for _, bc := range []struct {
		name     string
		ordinary int
		rules    []string
	}{{"ordinary", 2000, twelve}, {"attacks", 0, twelve}, {"pack", 2000, nil}} {
		b.Run(bc.name, func(b *testing.B) {
			cfg := Config{}
			if bc.rules != nil {
				cfg = packOf(b, bc.rules...)
			}
			share(b, bc.ordinary, cfg)
		})
	}
}

// BenchmarkShareOfMany is the same with 150 rules on ordinary traffic: all bound to event types that do not come, or 25 of them without an
// event type, of the sorts that the public catalogues have.
func BenchmarkShareOfMany(b *testing.B) {
	conditions, err := os.ReadFile("../../pkg/engine/testdata/unbound.txt")
	if err != nil {
		b.Fatal(err)
	}
	unbound := strings.Split(strings.TrimSpace(string(conditions)), "\n")
	for _, bc := range []struct {
		name    string
		unbound int
	}{{"bound", 0}, {"25 unbound", 25}} {
		b.Run(bc.name, func(b *testing.B) {
			dir := b.TempDir()
			for i := range 150 {
				where := fmt.Sprintf(`event.eventType == "type.%d" && event.target.exists(t, t.type == "User" && t.id != event.actor.id)`, i)
				if i < bc.unbound {
					where = unbound[i%len(unbound)]
				}
				write(b, filepath.Join(dir, "site", fmt.Sprintf("r%d.yaml", i)), fmt.Sprintf("id: r%d\ntitle: X\nseverity: low\nmode: signal\ndetection:\n  kind: match\n  where: >-\n    %s\n", i, where))
			}
			share(b, 2000, Config{RulesDir: dir, Rules: Rules{Builtin: new(bool)}})
		})
	}
}

// share measures the stage with a configuration beside a pass-through.
func share(b *testing.B, ordinary int, cfg Config) {
	b.Helper()
	bustest.Apart(b, "TestApart")
	bustest.Contest{
		Group: topics.DetectMatch, Out: topics.Detections,
		Others: append(topics.DetectState.Topics(), topics.Matches.DLQ(), topics.DetectStateState, topics.RuleStatus),
		Fill:   func(round int, emit func(bustest.Keyed)) { records(b, uint64(round+1), ordinary, emit) },
		Start: func(ctx context.Context, made *bus.Bus, m *metrics.Set) error {
			s, err := New(cfg, Deps{Bus: made, Metrics: m, Pack: rules.FS})
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	}.Run(b)
}

// records are the events of a simulated org as normalize writes them: so many ordinary ones between two attacks.
func records(b *testing.B, seed uint64, ordinary int, emit func(bustest.Keyed)) {
	b.Helper()
	org, err := oktasim.New(oktasim.Config{Seed: seed, Users: 500, MaxEvents: 2 * benchEvents})
	if err != nil {
		b.Fatal(err)
	}
	stories := oktasim.Scenarios()
	n := 0
	for i := 0; n < benchEvents; i++ {
		if err := org.Burst(ordinary); err != nil {
			b.Fatal(err)
		}
		seqs, err := org.Play(b.Context(), stories[i%len(stories)].Name, -1)
		if err != nil {
			b.Fatal(err)
		}
		n += ordinary + len(seqs)
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
