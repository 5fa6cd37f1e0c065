package detect

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
)

// TestReplicasThatReloadApart: two instances read a changed rule at different times. Meanwhile each takes events by the version it has, and
// a partition may get events of both. No detection mixes what two versions took, none of what they took is lost, and nothing becomes a
// dead letter.
func TestReplicasThatReloadApart(t *testing.T) {
	r := newStateRig(t)
	changed := strings.Replace(sprayRule, "window: 5m", "window: 6m", 1)
	builtin := false
	var services []*Service
	var files []string
	for _, instance := range []string{"one", "two"} {
		dir := t.TempDir()
		file := filepath.Join(dir, "site", "password-spray.yaml")
		write(t, file, sprayRule)
		s, err := New(Config{RulesDir: dir, Rules: Rules{Builtin: &builtin}, Reload: 20 * time.Millisecond}, Deps{Log: bustest.Logger(), Bus: r.b.Bus(t, instance), Pack: rules.FS})
		if err != nil {
			t.Fatal(err)
		}
		r.run(s)
		services, files = append(services, s), append(files, file)
	}
	bustest.Until(t, 30*time.Second, func() error {
		for _, s := range services {
			for _, h := range s.bus.Health() {
				if len(h.Partitions) != topics.EmbeddedPartitions/2 || h.Restoring > 0 {
					return fmt.Errorf("%+v", h)
				}
			}
			if len(s.bus.Health()) != 2 {
				return errors.New("not both stages are there")
			}
		}
		return nil
	})
	reload := func(i int) {
		t.Helper()
		before := services[i].Rules()
		write(t, files[i], changed)
		bustest.Until(t, 10*time.Second, func() error {
			if services[i].Rules() == before {
				return errors.New("not loaded")
			}
			return nil
		})
	}
	n := 0
	send := func(many int) { // to every partition in turn, so that each instance takes some
		for range many {
			n++
			key := 0
			for topics.SystemLog.PartitionFor("eval/"+strconv.Itoa(key), topics.EmbeddedPartitions) != int32(n%topics.EmbeddedPartitions) {
				key++
			}
			r.put(topics.SystemLog, "eval/"+strconv.Itoa(key), failure(t, n, fmt.Sprintf("user%d@example.com", n), "203.0.113.7"))
		}
	}
	// taken are the events by the state hash they were taken with.
	taken := func() map[string]map[string]bool {
		out := map[string]map[string]bool{}
		for _, m := range r.b.Read(t, topics.Matches) {
			rec := new(record.Match)
			if err := r.b.Serde().Decode(t.Context(), m.Value, rec); err != nil {
				t.Fatal(err)
			}
			if rec.Kind == engine.MatchEvent {
				if out[rec.StateHash] == nil {
					out[rec.StateHash] = map[string]bool{}
				}
				out[rec.StateHash][rec.UUID] = true
			}
		}
		return out
	}
	total := func() (sum int) {
		for _, of := range taken() {
			sum += len(of)
		}
		return sum
	}
	await := func(sent int) {
		t.Helper()
		bustest.Until(t, 20*time.Second, func() error {
			if got := total(); got != sent {
				return fmt.Errorf("%d of %d events were taken", got, sent)
			}
			return nil
		})
	}
	send(8)
	await(8)
	reload(1)
	send(24)
	await(32)
	reload(0)
	send(8)
	await(40)

	want := taken()
	if len(want) != 2 {
		t.Fatalf("events were taken by %d versions, want both", len(want))
	}
	bustest.Until(t, 30*time.Second, func() error {
		last := map[string]*record.Detection{}
		for _, d := range r.found() {
			if d.Kind != "aggregate" {
				return fmt.Errorf("a finding: %s", d.Title)
			}
			if old := last[d.StateHash]; old == nil || d.Update > old.Update {
				last[d.StateHash] = d
			}
		}
		for hash, of := range want {
			d := last[hash]
			if d == nil {
				return fmt.Errorf("no detection by version %s, which took %d events", hash, len(of))
			}
			got := map[string]bool{}
			for _, u := range d.EvidenceUUIDs {
				got[u] = true
				if !of[u] {
					t.Fatalf("the detection of version %s has event %s, which it did not take", hash, u)
				}
			}
			if int(d.EventCount) != len(of) || !maps.Equal(got, of) {
				return fmt.Errorf("the detection of version %s has %d of %d events", hash, d.EventCount, len(of))
			}
		}
		return nil
	})
	if dead := r.b.Read(t, topics.Matches.DLQ()); len(dead) > 0 {
		t.Errorf("%d dead letters", len(dead))
	}
}
