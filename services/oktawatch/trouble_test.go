//go:build long

package oktawatch

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/services/oktawatch/internal/fleet"
)

// TestTimeThroughTrouble has everything happen that could make time wrong: the poller cut off from Okta for longer than a rule's
// lateness while hooks go on, one of two normalize tasks that stands still for shorter and for longer than its session, services
// killed, an org that says nothing after one attack, and a lane of the past beside the live one. No event may be lost, repeated or
// late, and a windowed rule must find in each lane what the ground truth says.
func TestTimeThroughTrouble(t *testing.T) {
	b := bustest.Start(t)
	busy := simulated(t, 80)
	silent := silentOrg(t)
	common := fmt.Sprintf("kafka: {brokers: [%q]}\nregistry: {url: %q}\ntopics: {prefix: %q}\nlog: {level: info}\n", b.Seeds[0], b.RegistryURL, b.Prefix)
	admin := freePort(t)
	f := fleet.New(t, fleet.Build(t, "ingest", "normalize", "detect"))
	procs := map[string]*fleet.Process{}
	for _, p := range []struct{ name, program, more string }{
		{"ingest", "ingest", "instance_id: one\nadmin: {listen: off}\n"},
		{"normalize", "normalize", "instance_id: one\nadmin: {listen: off}\n"},
		{"slow normalize", "normalize", "instance_id: two\nadmin: {listen: off}\n"},
		{"detect", "detect", "instance_id: one\nadmin: {listen: " + admin + "}\n"},
	} {
		config := settings(t, busy, common+p.more, p.program)
		if p.program == "ingest" {
			addSource(t, config, silent)
		}
		procs[p.name] = f.Start(p.name, p.program, nil, "--config", config)
	}
	r := outside(t, b.Seeds, b.RegistryURL, b.Prefix)
	signal := func(p *fleet.Process, s syscall.Signal) {
		if err := p.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	pause := func(d time.Duration) { time.Sleep(d) } // real processes: there is no other clock

	pause(6 * time.Second)
	if _, err := silent.Play(t.Context(), "password-spray", -1); err != nil {
		t.Fatal(err)
	}
	past := time.Now().UTC().Truncate(time.Millisecond)
	pause(time.Second)
	half := replay(t, b, busy, past.Add(-4*time.Second), past)
	if err := busy.Inject(oktasim.Fault{Kind: oktasim.FaultReadOnly, For: 25 * time.Second}); err != nil {
		t.Fatal(err)
	}
	pause(3 * time.Second)
	signal(procs["slow normalize"], syscall.SIGSTOP)
	pause(4 * time.Second)
	signal(procs["slow normalize"], syscall.SIGCONT)
	f.Kill(procs["detect"])
	pause(time.Second)
	f.Restart(procs["detect"])
	half()
	pause(3 * time.Second)
	signal(procs["slow normalize"], syscall.SIGSTOP)
	pause(12 * time.Second)
	signal(procs["slow normalize"], syscall.SIGCONT)
	pause(4 * time.Second)
	for _, name := range []string{"ingest", "normalize"} {
		f.Kill(procs[name])
		pause(500 * time.Millisecond)
		f.Restart(procs[name])
		pause(2 * time.Second)
	}
	busy.Pause(true)
	settled(t, r, busy, 90*time.Second)
	settled(t, r, silent, 90*time.Second)
	windowed(t, r, busy)
	windowed(t, r, silent)
	windowedIn(t, r, busy, replayLane, past)
	if n := metric(t, admin, "oktawatch_detect_late_total"); n != 0 {
		t.Errorf("%v events came late to a windowed rule; Okta sent none late", n)
	}
	for _, p := range procs {
		f.Stop(p)
	}
	for _, topic := range []topics.Topic{topics.SystemLog, topics.Detections} {
		s := read(t, r, topic, false)
		t.Logf("%s: %d records, %d ids, %d repeated, %d unreadable", topic.Name, s.count.Records, s.count.Distinct, s.count.Repeated, s.count.Unreadable)
		if s.count.Repeated > 0 || s.count.Unreadable > 0 || s.failed != nil {
			t.Errorf("%s: %d repeated, %d unreadable, %v", topic.Name, s.count.Repeated, s.count.Unreadable, s.failed)
		}
	}
}

// silentOrg is an org that sends nothing by itself.
func silentOrg(t *testing.T) *oktasim.Org {
	t.Helper()
	org, err := oktasim.New(oktasim.Config{Seed: 7, Limits: map[string]int{"logs": -1, "other": -1}, DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	live(t, org)
	return org
}

// addSource writes a second source into the settings of ingest.
func addSource(t *testing.T, config string, org *oktasim.Org) {
	t.Helper()
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	more := fmt.Sprintf("  sources:\n    - id: silent\n      org_url: %s\n      token_file: %s\n      poll: {interval: 100ms, rate_share: 1}\n", org.URL(), filepath.Join(filepath.Dir(config), "token"))
	if err := os.WriteFile(config, []byte(strings.Replace(string(text), "  sources:\n", more, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

const replayLane = "replay-1"

// replay brings what an org published before an end into okta.raw.v1 once more, as a lane of its own, in two pieces: it writes the
// first, and the second when what it returns is called, which also ends the lane.
func replay(t *testing.T, b *bustest.Broker, org *oktasim.Org, middle, end time.Time) func() {
	t.Helper()
	txn, err := b.Bus(t, "replay").OpenTransactional(t.Context(), "oktawatch.ingest.replay.sim/"+replayLane)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(txn.Close)
	write := func(from, to, through time.Time, ended bool) {
		var events []*record.RawEvent
		for e := range org.Truth().Events(oktasim.Query{}) {
			if e.Published.Before(from) || !e.Published.Before(to) {
				continue
			}
			doc, ok := org.Truth().Raw(e.Seq)
			if !ok {
				t.Fatalf("the ground truth has lost event %d", e.Seq)
			}
			events = append(events, &record.RawEvent{
				Org: org.ID(), SourceID: "sim", Source: "replay", Lane: replayLane, ReceivedAt: time.Now().UTC().Truncate(time.Millisecond),
				UUID: e.UUID, Size: int64(len(doc)), JSON: doc,
			})
		}
		err := txn.Do(context.WithoutCancel(t.Context()), func(out *bus.Emit) error {
			for _, e := range events {
				if err := out.Put(topics.Raw, e.Org+"/"+e.UUID, e); err != nil {
					return err
				}
			}
			return out.Put(topics.Cursors, "sim/"+replayLane, &record.Cursor{
				SourceID: "sim", Run: replayLane, Kind: "replay", Org: org.ID(), Lane: replayLane, Through: &through, Ended: ended,
				State: "running", Slices: []record.CursorSlice{}, UpdatedAt: time.Now().UTC().Truncate(time.Millisecond),
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("lane %s: %d events through %s", replayLane, len(events), through.Format(time.RFC3339Nano))
	}
	write(time.Time{}, middle, middle, false)
	// The lane's end is so far behind its last event that every detection of it is final.
	return func() { write(middle, end, end.Add(10*time.Minute), true) }
}

// metric sums a counter over its labels.
func metric(t *testing.T, admin, name string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+admin+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sum := 0.0
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if line := sc.Text(); strings.HasPrefix(line, name) {
			v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}
