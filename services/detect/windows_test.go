package detect

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
)

// tally stands in for the engine: it counts the events of each group, each once, and writes an update for each. So it shows in the
// updates of a group when a Match was taken twice or never, when one was written again, and when memory was lost, stale or from a
// transaction that did not happen: they are then not 1, 2, 3. What the clock has passed is late; a group ends when the clock passes its
// last event by a minute.
type tally struct {
	o      engine.StateObserver
	groups bus.Overlay[string, group]
	clocks bus.Overlay[string, int64]
	out    engine.Output
}

type group struct {
	Org, Lane, Rule string
	Updates         int64
	Last            int64
	UUIDs           []string
}

func (t *tally) SetRules(*rule.Set) {}

func (t *tally) Restored() {}

func (t *tally) Orphans() int { return 0 }

func (t *tally) Begin(string, string, time.Time) {}

func (t *tally) Seeded(string, string, time.Time) {}

func (t *tally) Restore(key string, value []byte) error {
	k, isClock := strings.CutPrefix(key, "clock/")
	switch {
	case isClock:
		n, err := strconv.ParseInt(string(value), 10, 64)
		t.clocks.Load(k, n)
		return err
	default:
		var g group
		err := json.Unmarshal(value, &g)
		t.groups.Load(key, g)
		return err
	}
}

func (t *tally) put(key string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	t.out.Changes = append(t.out.Changes, engine.Change{Key: key, Value: b})
}

func (t *tally) Apply(m *record.Match) error {
	if m.StateHash == "unknown" {
		return engine.ErrUnknownRule
	}
	if at, ok := t.clocks.Get(m.Org + "/" + m.Lane); ok && m.Time.UnixMilli() <= at {
		return nil
	}
	key := "group/" + m.Org + "/" + m.Lane + "/" + m.Group
	g, _ := t.groups.Get(key)
	if slices.Contains(g.UUIDs, m.UUID) {
		return nil
	}
	if m.Group == "limited" {
		t.o.Limited(m.RuleID, "told to")
	}
	g.Org, g.Lane, g.Rule = m.Org, m.Lane, m.RuleID
	g.Updates++
	g.Last = max(g.Last, m.Time.UnixMilli())
	g.UUIDs = append(slices.Clone(g.UUIDs), m.UUID)
	t.groups.Put(key, g)
	t.put(key, g)
	d := g.detection(key)
	d.Evidence = []record.Evidence{{UUID: m.UUID, Topic: topics.SystemLog.Name, Partition: m.Partition, Offset: m.Offset}}
	t.out.Detections = append(t.out.Detections, d)
	return nil
}

func (g group) detection(key string) *record.Detection {
	at := time.UnixMilli(g.Last).UTC()
	return &record.Detection{
		ID: key, Update: g.Updates, RuleID: g.Rule, Org: g.Org, Lane: g.Lane, Mode: "signal", Kind: "aggregate", Fingerprint: strings.ReplaceAll(key, ".", "_"),
		EventCount: int64(len(g.UUIDs)), EvidenceUUIDs: slices.Sorted(slices.Values(g.UUIDs)), FirstTime: at, LastTime: at,
	}
}

func (t *tally) Advance(org, lane string, through time.Time) {
	id := org + "/" + lane
	at := through.UnixMilli()
	if was, ok := t.clocks.Get(id); ok && at <= was {
		return
	}
	t.clocks.Put(id, at)
	t.put("clock/"+id, at)
	t.decide(org, lane, at-time.Minute.Milliseconds())
}

func (t *tally) decide(org, lane string, upTo int64) {
	groups := maps.Collect(t.groups.All())
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := groups[key]
		if g.Org != org || g.Lane != lane || g.Last > upTo {
			continue
		}
		g.Updates++
		d := g.detection(key)
		d.Final = true
		t.out.Detections = append(t.out.Detections, d)
		t.groups.Delete(key)
		t.out.Changes = append(t.out.Changes, engine.Change{Key: key})
	}
}

func (t *tally) Close(org, lane string, at time.Time) { t.decide(org, lane, at.UnixMilli()) }

func (t *tally) Forget(org, lane string) {
	t.clocks.Delete(org + "/" + lane)
	t.out.Changes = append(t.out.Changes, engine.Change{Key: "clock/" + org + "/" + lane})
}

func (t *tally) AdvanceSecond(string, string, time.Time) {}

func (t *tally) CloseSecond(string, string, time.Time) {}

func (t *tally) ForgetSecond(string, string) {}

func (t *tally) Flush() engine.Output {
	o := t.out
	t.out = engine.Output{}
	return o
}

func (t *tally) Commit() { t.groups.Commit(); t.clocks.Commit() }

func (t *tally) Abort() { t.groups.Abort(); t.clocks.Abort(); t.out = engine.Output{} }

// The test binary is also the process that is killed: with these set it is a detect that tallies.
const (
	childSeeds    = "DETECT_CHILD_SEEDS"
	childRegistry = "DETECT_CHILD_REGISTRY"
	childPrefix   = "DETECT_CHILD_PREFIX"
	childInstance = "DETECT_CHILD_INSTANCE"
	childRules    = "DETECT_CHILD_RULES" // a folder: it judges by the rules there instead
)

func child() {
	b, err := bus.New(bus.Config{Brokers: strings.Split(os.Getenv(childSeeds), ",")}, bus.Deps{
		Log: bustest.Logger(), Prefix: os.Getenv(childPrefix), InstanceID: os.Getenv(childInstance),
		Serde: record.NewSerde(os.Getenv(childRegistry), os.Getenv(childPrefix)),
	})
	var s *Service
	switch dir := os.Getenv(childRules); {
	case err != nil:
	case dir == "":
		s, err = tallying(b)
	default:
		builtin := false
		s, err = New(Config{RulesDir: dir, Rules: Rules{Builtin: &builtin}}, Deps{Log: bustest.Logger(), Bus: b, Pack: rules.FS})
	}
	if err == nil {
		s.health.every = hasty
		err = s.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// tallying is a detect whose windows tally; its one rule takes no event of these tests.
func tallying(b *bus.Bus) (*Service, error) {
	pack := fstest.MapFS{"p/suspended.yaml": {Data: []byte("id: suspended\ntitle: X\nseverity: low\ndetection: {kind: match, where: 'event.eventType == \"user.lifecycle.suspend\"'}\n")}}
	s, err := New(Config{}, Deps{Log: bustest.Logger(), Bus: b, Pack: pack})
	if err != nil {
		return nil, err
	}
	s.newWindows = func(_ *rule.Set, o engine.Observer) windows { return &tally{o: o.(engine.StateObserver)} } //nolint:forcetypeassert // it is
	s.windowed.Store(true)
	return s, nil
}

func spawn(t *testing.T, b *bustest.Broker, instance string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childSeeds+"="+strings.Join(b.Seeds, ","), childRegistry+"="+b.RegistryURL, childPrefix+"="+b.Prefix, childInstance+"="+instance)
	cmd.Env = append(cmd.Env, env...)
	if os.Getenv("BUSTEST_LOG") != "" {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	return cmd
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // SIGKILL
	_ = cmd.Wait()
}

// stateRig is a broker with all topics, and detects that tally.
type stateRig struct {
	t      *testing.T
	b      *bustest.Broker
	bus    *bus.Bus
	sender *bus.Sender
}

func newStateRig(t *testing.T) *stateRig {
	t.Helper()
	b := bustest.Start(t)
	one := b.Bus(t, "outside")
	return &stateRig{t: t, b: b, bus: one, sender: one.Sender()}
}

// start runs a detect in this process and returns what stops it.
func (r *stateRig) start(instance string, change func(*Service)) (stop func()) {
	r.t.Helper()
	s, err := tallying(r.b.Bus(r.t, instance))
	if err != nil {
		r.t.Fatal(err)
	}
	if change != nil {
		change(s)
	}
	return r.run(s)
}

// run runs a detect and returns what stops it.
func (r *stateRig) run(s *Service) (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var stopped atomic.Bool
	stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		if err := <-done; err != nil {
			r.t.Error("run:", err)
		}
	}
	r.t.Cleanup(stop)
	return stop
}

func (r *stateRig) put(row topics.Topic, key string, rec record.Record) {
	r.t.Helper()
	if err := r.sender.Send(r.t.Context(), row, key, rec); err != nil {
		r.t.Fatal(err)
	}
}

func (r *stateRig) cursor(id, org, lane, kind string, through time.Time, ended bool) {
	r.t.Helper()
	r.put(topics.Cursors, id, &record.Cursor{SourceID: id, Org: org, Lane: lane, Kind: kind, Through: &through, Ended: ended, UpdatedAt: at, Slices: []record.CursorSlice{}})
}

func match(org, group string, n int, time time.Time) *record.Match {
	return &record.Match{
		Kind: "event", Org: org, Lane: liveLane, RuleID: "tally", StateHash: "h", Group: group, UUID: fmt.Sprintf("%s-%d", group, n),
		Time: &time, EventType: "x", Partition: -1, Offset: -1, Copy: 1,
	}
}

func (r *stateRig) match(m *record.Match) {
	r.t.Helper()
	r.put(topics.Matches, m.Org+"/"+m.RuleID+"/"+m.Group, m)
}

// clocks are the clock records so far: for each partition, in order.
func (r *stateRig) clocks() map[int32][]*record.Match {
	r.t.Helper()
	out := map[int32][]*record.Match{}
	for _, m := range r.b.Read(r.t, topics.Matches) {
		rec := new(record.Match)
		if err := r.b.Serde().Decode(r.t.Context(), m.Value, rec); err != nil {
			r.t.Fatal(err)
		}
		if rec.Kind == engine.MatchClock {
			out[m.Partition] = append(out[m.Partition], rec)
		}
	}
	return out
}

// awaitClock waits until every partition's last clock record of a lane says this.
func (r *stateRig) awaitClock(org, lane string, through time.Time, ended bool) {
	r.t.Helper()
	bustest.Until(r.t, 20*time.Second, func() error {
		all := r.clocks()
		for n := range int32(topics.EmbeddedPartitions) {
			var last *record.Match
			for _, m := range all[n] {
				if m.Org == org && m.Lane == lane {
					last = m
				}
			}
			if last == nil || !last.Through.Equal(through) || last.Ended != ended {
				return fmt.Errorf("partition %d: %+v, want %v %v", n, last, through, ended)
			}
		}
		return nil
	})
}

func (r *stateRig) found() []*record.Detection {
	r.t.Helper()
	var out []*record.Detection
	for _, m := range r.b.Read(r.t, topics.Detections) {
		d := new(record.Detection)
		if err := r.b.Serde().Decode(r.t.Context(), m.Value, d); err != nil {
			r.t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

// TestClockFollowsWhatIsComplete: a silent org's time goes on; hook-only sources and runs over the past have their own; what only
// seeds the live lane does not move it.
func TestClockFollowsWhatIsComplete(t *testing.T) {
	r := newStateRig(t)
	r.start("one", nil)
	r.cursor("acme", "00oA", liveLane, pollKind, at, false)
	r.awaitClock("00oA", liveLane, at, false)
	r.cursor("acme", "00oA", liveLane, pollKind, at.Add(time.Minute), false)
	r.cursor("acme/run1", "00oA", "run1", backfillKind, at.Add(-time.Hour), false)
	r.cursor("acme/seed", "00oA", liveLane, backfillKind, at.Add(time.Hour), false)
	through := at.Add(2 * time.Minute)
	r.put(topics.SourceStatus, "hooked/hook.one", &record.SourceStatus{SourceID: "hooked", Part: "hook.one", Org: "00oH", State: "running", Through: &through, HeartbeatAt: at, Warnings: []string{}})
	r.awaitClock("00oA", liveLane, at.Add(time.Minute), false)
	r.awaitClock("00oA", "run1", at.Add(-time.Hour), false)
	r.awaitClock("00oH", liveLane, through, false)
	before := len(r.clocks()[0])
	r.cursor("acme", "00oA", liveLane, pollKind, at, false) // it never goes back
	time.Sleep(2 * roundEvery)
	if n := len(r.clocks()[0]); n != before {
		t.Errorf("%d clock records, want %d: %+v", n, before, r.clocks()[0][n-1])
	}
}

// TestNoWindowedRuleNoClock: without a windowed rule nothing is written.
func TestNoWindowedRuleNoClock(t *testing.T) {
	r := newStateRig(t)
	pack := fstest.MapFS{"p/x.yaml": {Data: []byte("id: x\ntitle: X\nseverity: low\ndetection: {kind: match, where: event.eventType == \"a\"}\n")}}
	s, err := New(Config{}, Deps{Log: bustest.Logger(), Bus: r.b.Bus(t, "one"), Pack: pack})
	if err != nil {
		t.Fatal(err)
	}
	r.run(s)
	r.cursor("acme", "00oA", liveLane, pollKind, at, false)
	time.Sleep(2 * roundEvery)
	if got := r.clocks(); len(got) > 0 {
		t.Errorf("%+v", got)
	}
}

// TestClockWaitsForNormalize: time stands while an event that the cursor counted has not come through.
func TestClockWaitsForNormalize(t *testing.T) {
	r := newStateRig(t)
	r.b.Write(t, topics.Raw, "00oA/u1", "an event")
	r.start("one", nil)
	r.cursor("acme", "00oA", liveLane, pollKind, at, false)
	time.Sleep(2 * roundEvery)
	if got := r.clocks(); len(got) > 0 {
		t.Fatalf("time went on without normalize: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- bustest.PassThrough(topics.NormalizeDedup, topics.Audit)(ctx, r.bus) }()
	r.awaitClock("00oA", liveLane, at, false)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestEndedLane: everything is decided at the end, once, also by an owner that comes later; an org that is added again begins anew.
func TestEndedLane(t *testing.T) {
	r := newStateRig(t)
	stop := r.start("one", nil)
	r.cursor("acme", "00oA", liveLane, pollKind, at, false)
	r.awaitClock("00oA", liveLane, at, false)
	r.match(match("00oA", "g", 1, at.Add(time.Second)))
	r.cursor("acme", "00oA", liveLane, pollKind, at.Add(2*time.Second), true)
	r.awaitClock("00oA", liveLane, at.Add(2*time.Second), true)
	final := func(want int) {
		t.Helper()
		bustest.Until(t, 20*time.Second, func() error {
			n := 0
			for _, d := range r.found() {
				if d.Final {
					n++
				}
			}
			if n != want {
				return fmt.Errorf("%d final detections, want %d", n, want)
			}
			return nil
		})
	}
	final(1)
	stop()
	before := len(r.clocks()[0])
	r.start("two", nil)
	time.Sleep(3 * roundEvery)
	if n := len(r.clocks()[0]); n != before {
		t.Errorf("the end was handed on again: %+v", r.clocks()[0][n-1])
	}
	r.cursor("acme", "00oA", liveLane, pollKind, at.Add(time.Second), false)
	r.awaitClock("00oA", liveLane, at.Add(time.Second), false)
	r.match(match("00oA", "again", 1, at.Add(2*time.Second))) // late, had the time of the lane not been forgotten
	r.cursor("acme", "00oA", liveLane, pollKind, at.Add(time.Hour), false)
	final(2)
}

// TestUnknownRule: a Match of a rule that is not loaded waits, then becomes a dead letter and a finding; the records behind it go on.
func TestUnknownRule(t *testing.T) {
	r := newStateRig(t)
	r.start("one", func(s *Service) { s.patience = 300 * time.Millisecond })
	m := match("00oA", "g", 1, at)
	m.StateHash = "unknown"
	r.match(m)
	m.UUID = "another"
	r.match(m)
	r.match(match("00oA", "g", 2, at))
	r.b.Write(t, topics.Matches, "00oA/tally/g", "no record at all")
	bustest.Until(t, 20*time.Second, func() error {
		kinds := map[string]int{}
		for _, d := range r.found() {
			kinds[d.Kind]++
		}
		if n := len(r.b.Read(t, topics.Matches.DLQ())); n != 3 || kinds["rule_health"] != 1 || kinds["aggregate"] != 1 {
			return fmt.Errorf("%d dead letters, detections: %v", n, kinds)
		}
		return nil
	})
}

// TestLimitIsToldOnceADay: a rule that is over its limit is a finding, once for a partition and day.
func TestLimitIsToldOnceADay(t *testing.T) {
	r := newStateRig(t)
	stop := r.start("one", nil)
	health := func(updates int) {
		t.Helper()
		bustest.Until(t, 20*time.Second, func() error {
			kinds := map[string]int{}
			for _, d := range r.found() {
				kinds[d.Kind]++
			}
			if kinds["rule_health"] != 1 || kinds["aggregate"] != updates {
				return fmt.Errorf("%v, want one finding and %d others", kinds, updates)
			}
			return nil
		})
	}
	r.match(match("00oA", "limited", 1, at))
	health(1)
	r.match(match("00oA", "limited", 2, at.Add(time.Second)))
	health(2)
	stop()
	r.start("two", nil)
	r.match(match("00oA", "limited", 3, at.Add(2*time.Second)))
	health(3)
}

// TestSecondTime: where rules read what others found, a second time follows the first when the state stage has passed that everywhere.
func TestSecondTime(t *testing.T) {
	r := newStateRig(t)
	r.start("one", func(s *Service) { s.second = func() bool { return true } })
	for i := range 3 {
		through := at.Add(time.Duration(i) * time.Minute)
		r.cursor("acme", "00oA", liveLane, pollKind, through, false)
		bustest.Until(t, 20*time.Second, func() error {
			for n, ms := range r.clocks() {
				if len(ms) == 0 || ms[len(ms)-1].Clock != secondClock || !ms[len(ms)-1].Through.Equal(through) {
					return fmt.Errorf("partition %d: %+v", n, ms)
				}
			}
			if n := len(r.clocks()); n != topics.EmbeddedPartitions {
				return fmt.Errorf("%d partitions have a clock", n)
			}
			return nil
		})
	}
	for n, ms := range r.clocks() {
		for i, m := range ms {
			if want := int32(i%2 + 1); m.Clock != want || !m.Through.Equal(at.Add(time.Duration(i/2)*time.Minute)) {
				t.Errorf("partition %d: %d. is clock %d at %v", n, i+1, m.Clock, m.Through)
			}
		}
	}
}

// TestEvidenceIsReadBack fills in the events' texts from where they lie, and says so where retention took them.
func TestEvidenceIsReadBack(t *testing.T) {
	r := newStateRig(t)
	for i := range 2 {
		log := event(t, i, "user.session.end")
		r.put(topics.SystemLog, "eval/x", log)
	}
	logs := r.b.Read(t, topics.SystemLog)
	r.start("one", nil)
	place := func(m *record.Match, i int) *record.Match {
		m.Partition, m.Offset = logs[i].Partition, logs[i].Offset
		return m
	}
	r.match(place(match("00oA", "g", 0, at), 0))
	var got []*record.Detection
	wait := func(n int) {
		t.Helper()
		bustest.Until(t, 20*time.Second, func() error {
			if got = r.found(); len(got) != n {
				return fmt.Errorf("%d detections, want %d", len(got), n)
			}
			return nil
		})
		slices.SortFunc(got, func(a, b *record.Detection) int { return cmp.Compare(a.Update, b.Update) })
	}
	wait(1)
	want := event(t, 0, "user.session.end")
	if d := got[0]; !bytes.Equal(d.Evidence[0].JSON, want.JSON) || d.EvidenceTruncated {
		t.Errorf("%s, want %s", d.Evidence[0].JSON, want.JSON)
	}
	ends, err := r.b.Admin().ListEndOffsets(t.Context(), topics.SystemLog.Full(r.b.Prefix))
	if err == nil {
		_, err = r.b.Admin().DeleteRecords(t.Context(), ends.Offsets())
	}
	if err != nil {
		t.Fatal(err)
	}
	r.match(place(match("00oA", "g", 1, at), 1))
	wait(2)
	if d := got[1]; len(d.Evidence[0].JSON) > 0 || !d.EvidenceTruncated {
		t.Errorf("%+v", d)
	}
}

// TestStateSurvives kills and moves members of the stage while Matches, each written twice, and the time come in; every group must have
// each of its events once, and its updates 1, 2, 3.
func TestStateSurvives(t *testing.T) {
	r := newStateRig(t)
	const groups, each = 12, 100
	members := map[string]*exec.Cmd{"a": spawn(t, r.b, "a"), "b": spawn(t, r.b, "b")}
	stop := make(chan struct{})
	killed := make(chan int, 1)
	go func() {
		n := 0
		rnd := rand.New(rand.NewPCG(4, 4)) //nolint:gosec // a test's own
		defer func() { killed <- n }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(150+rnd.IntN(500)) * time.Millisecond):
			}
			name := []string{"a", "b"}[rnd.IntN(2)]
			kill(members[name])
			n++
			if rnd.IntN(3) > 0 {
				time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
			}
			members[name] = spawn(t, r.b, name)
		}
	}()
	for i := range each {
		for g := range groups {
			m := match("00oA", "g"+strconv.Itoa(g), i, at.Add(time.Duration(i)*time.Second))
			r.match(m)
			if i%3 == 0 {
				r.match(m)
			}
		}
		if i%10 == 9 {
			r.cursor("acme", "00oA", liveLane, pollKind, at.Add(-time.Minute+time.Duration(i)*time.Second), false)
		}
		time.Sleep(40 * time.Millisecond)
	}
	close(stop)
	kills := <-killed
	r.cursor("acme", "00oA", liveLane, pollKind, at.Add(time.Hour), false)
	byID := map[string][]*record.Detection{}
	bustest.Until(t, 60*time.Second, func() error {
		clear(byID)
		final := 0
		for _, d := range r.found() {
			byID[d.ID] = append(byID[d.ID], d)
			if d.Final {
				final++
			}
		}
		if final < groups {
			return fmt.Errorf("%d of %d groups are final", final, groups)
		}
		return nil
	})
	for id, ds := range byID {
		slices.SortFunc(ds, func(a, b *record.Detection) int { return cmp.Compare(a.Update, b.Update) })
		for i, d := range ds {
			if d.Update != int64(i+1) || d.EventCount != min(d.Update, each) || d.Final != (i == each) {
				t.Errorf("%s: %d. update is %d with %d events, final %v", id, i+1, d.Update, d.EventCount, d.Final)
				break
			}
		}
		if len(ds) != each+1 {
			t.Errorf("%s: %d updates, want %d", id, len(ds), each+1)
		}
	}
	t.Logf("%d kills, %d groups of %d events", kills, len(byID), each)
	for _, cmd := range members {
		kill(cmd)
	}
}

const sprayRule = `id: password-spray
title: One address tries many users
severity: medium
params: {users: 5}
detection:
  kind: aggregate
  where: event.eventType == "user.session.start" && event.outcome.result == "FAILURE"
  group_by: {ip: event.client.ipAddress}
  window: 5m
  aggregates:
    users:
      distinct: event.actor.alternateId
  having: agg.users >= params.users
alert:
  title: ${key.ip} failed to log in as ${agg.users} users (${agg.count} tries)
`

// failure is the n-th second's failed sign-in of a user from an address.
func failure(t *testing.T, n int, user, ip string) *record.SystemLog {
	t.Helper()
	log := event(t, n, "user.session.start")
	log.Outcome.Result = "FAILURE"
	log.Actor.AlternateID = user
	log.Client.IPAddress = ip
	return log
}

// TestPasswordSpray runs a windowed rule from events to detections, with a restart in the middle of the attack.
func TestPasswordSpray(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/site/password-spray.yaml", sprayRule)
	r := newStateRig(t)
	builtin := false
	start := func(instance string) func() {
		s, err := New(Config{RulesDir: dir, Rules: Rules{Builtin: &builtin}}, Deps{Log: bustest.Logger(), Bus: r.b.Bus(t, instance), Pack: rules.FS})
		if err != nil {
			t.Fatal(err)
		}
		return r.run(s)
	}
	stop := start("one")
	n := 0
	send := func(user, ip string) {
		n++
		r.put(topics.SystemLog, "eval/"+user, failure(t, n, user, ip))
	}
	for i := range 4 {
		send(fmt.Sprintf("user%d@example.com", i), "203.0.113.7")
		send("alice@example.com", "198.51.100.1") // one user who forgot
	}
	bustest.Until(t, 20*time.Second, func() error {
		if n := len(r.b.Read(t, topics.Matches)); n < 8 {
			return fmt.Errorf("%d matches", n)
		}
		return nil
	})
	stop()
	start("two")
	for i := 4; i < 8; i++ {
		send(fmt.Sprintf("user%d@example.com", i), "203.0.113.7")
	}
	last := at.Add(time.Duration(n) * time.Second)
	updates := func(want func(ds []*record.Detection) bool) []*record.Detection {
		t.Helper()
		var ds []*record.Detection
		bustest.Until(t, 20*time.Second, func() error {
			ds = r.found()
			slices.SortFunc(ds, func(a, b *record.Detection) int { return cmp.Compare(a.Update, b.Update) })
			if !want(ds) {
				return fmt.Errorf("%d detections: %+v", len(ds), ds)
			}
			return nil
		})
		return ds
	}
	ds := updates(func(ds []*record.Detection) bool { return len(ds) > 0 && ds[len(ds)-1].EventCount == 8 })
	d := ds[len(ds)-1]
	if d.RuleID != "password-spray" || d.Final || d.Key["ip"] != "203.0.113.7" || len(d.Users) != 8 || len(d.Evidence) != 5 || len(d.Evidence[0].JSON) == 0 || d.EvidenceTruncated {
		t.Errorf("%+v", d)
	}
	if d.Title != "203.0.113.7 failed to log in as 8 users (8 tries)" {
		t.Error(d.Title)
	}
	r.cursor("acme", "eval", liveLane, pollKind, last.Add(2*time.Hour), false)
	ds = updates(func(ds []*record.Detection) bool { return len(ds) > 0 && ds[len(ds)-1].Final })
	for i, d := range ds {
		if d.Update != int64(i+1) || d.ID != ds[0].ID || d.Withdrawn {
			t.Errorf("update %d: %+v", i+1, d)
		}
	}
	if d := ds[len(ds)-1]; d.EventCount != 8 || len(d.Evidence) != 5 || len(d.Evidence[4].JSON) == 0 {
		t.Errorf("%+v", d)
	}
}

// kindRules are rules of each windowed kind over the events of TestSameAsAtOnce.
var kindRules = map[string]string{
	"password-spray": sprayRule,
	"settled": `id: settled
title: Many tries of few users
severity: low
detection:
  kind: aggregate
  where: event.eventType == "user.session.start"
  group_by: {ip: event.client.ipAddress}
  window: 10m
  settle: 2m
  aggregates:
    failed: {count: 'event.outcome.result == "FAILURE"'}
  having: agg.failed >= 4 && agg.count - agg.failed <= 1
`,
	"chain": `id: chain
title: Refused, refused, in
severity: high
detection:
  kind: sequence
  group_by: {user: event.actor.alternateId}
  window: 10m
  steps:
    - id: refused
      where: event.eventType == "user.session.start" && event.outcome.result == "FAILURE"
      count: 2
    - id: entered
      where: event.eventType == "user.session.start" && event.outcome.result == "SUCCESS"
    - id: left
      not: true
      within: 3m
      where: event.eventType == "user.session.end"
`,
	"novel": `id: novel
title: An address new to a user
severity: info
detection:
  kind: first_seen
  where: event.eventType == "user.session.start" && event.outcome.result == "SUCCESS"
  group_by: {user: event.actor.alternateId, ip: event.client.ipAddress}
  seen_before: [user]
  memory: 30d
  learning: 5m
`,
	"ended": `id: ended
title: A session ended
severity: info
mode: signal
detection:
  kind: match
  where: event.eventType == "user.session.end" && event.client.ipAddress != "203.0.113.2"
`,
	"entered": `id: entered
title: In after an attack
severity: high
params: {attacks: [password-spray, settled, ended]}
detection:
  kind: sequence
  group_by: {user: event.actor.alternateId}
  window: 10m
  steps:
    - id: attack
      input: detections
      where: event.detection.ruleId in params.attacks
    - id: entered
      where: event.eventType == "user.session.start" && event.outcome.result == "SUCCESS"
    - id: left
      not: true
      within: 1m
      where: event.eventType == "user.session.end"
alert:
  title: ${key.user} after ${steps.attack.detection.title}
`,
	"several": `id: several
title: Several rules found a user
severity: medium
detection:
  kind: aggregate
  input: detections
  where: event.detection.severity > 1
  group_by: {user: event.actor.alternateId}
  window: 20m
  aggregates:
    rules: {distinct: event.detection.ruleId}
  having: agg.rules >= 2
alert:
  title: ${key.user} was found ${agg.count} times by ${agg.rules} rules
`,
}

// last is what remains of detections: of each the last update, unless it is withdrawn.
func last(ds []*record.Detection) map[string]string {
	updates := map[string]*record.Detection{}
	for _, d := range ds {
		if u := updates[d.Lane+" "+d.ID]; u == nil || d.Update > u.Update {
			updates[d.Lane+" "+d.ID] = d
		}
	}
	out := map[string]string{}
	for id, d := range updates {
		if !d.Withdrawn {
			out[id] = fmt.Sprint(d.RuleID, d.Severity, d.Title, d.FirstTime, d.LastTime, d.EventCount, d.EvidenceUUIDs, d.Users, d.Addresses, d.Fingerprint, d.Final, d.Backfill)
		}
	}
	return out
}

// TestSameAsAtOnce sends events of half an hour out of order, twice, and as partial and complete copies, while the time goes on behind
// them and members come and go, in two lanes side by side, and ends the lanes: what was found is what the same engine finds in all events at once.
func TestSameAsAtOnce(t *testing.T) {
	dir := t.TempDir()
	for name, text := range kindRules {
		write(t, dir+"/site/"+name+".yaml", text)
	}
	seeds := uint64(3)
	if s := os.Getenv("OKTAWATCH_SEEDS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = n
	}
	for seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { sameAsAtOnce(t, dir, seed) })
	}
}

// inPast is the event as a run over the past brings it.
func inPast(log *record.SystemLog) *record.SystemLog {
	past := *log
	past.Derived.Lane, past.Derived.Backfill = "run1", true
	return &past
}

// atOnce judges events in their order, each once, without Kafka.
func atOnce(t *testing.T, set *rule.Set, all []*record.SystemLog) []*record.Detection {
	t.Helper()
	m, st := engine.NewMatcher(set), engine.NewState(set)
	first, end := all[0].Derived, all[len(all)-1].Derived
	st.Begin(first.Org, first.Lane, first.Time)
	var out []*record.Detection
	apply := func(ms []*record.Match) {
		for _, mt := range ms {
			if err := st.Apply(mt); err != nil {
				t.Fatal(err)
			}
		}
	}
	flush := func() {
		for o := st.Flush(); len(o.Detections)+len(o.Pairs) > 0; o = st.Flush() {
			out = append(out, o.Detections...)
			apply(o.Pairs)
		}
	}
	for _, log := range all {
		var v record.SystemLogView
		if err := v.Load(log); err != nil {
			t.Fatal(err)
		}
		for _, d := range m.Match(&v, engine.Place{}) {
			out = append(out, d)
			apply(m.TakeDetection(&v, engine.Place{}, d))
		}
		apply(m.Take(&v, engine.Place{}))
	}
	flush()
	st.Close(end.Org, end.Lane, end.Time)
	flush()
	st.CloseSecond(end.Org, end.Lane, end.Time)
	flush()
	return out
}

func sameAsAtOnce(t *testing.T, dir string, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 17)) //nolint:gosec // a test's own
	var all []*record.SystemLog
	for i := range 160 {
		log := event(t, i*11, []string{"user.session.start", "user.session.start", "user.session.start", "user.session.end"}[rnd.IntN(4)])
		log.Actor.AlternateID = fmt.Sprintf("user%d@example.com", rnd.IntN(8))
		log.Client.IPAddress = fmt.Sprintf("203.0.113.%d", rnd.IntN(3))
		if rnd.IntN(5) < 3 && log.EventType == "user.session.start" {
			log.Outcome.Result = "FAILURE"
		}
		all = append(all, log)
	}
	r := newStateRig(t)
	builtin := false
	members := map[string]func(){}
	names := 0
	join := func() {
		names++
		name := "m" + strconv.Itoa(names)
		s, err := New(Config{RulesDir: dir, Rules: Rules{Builtin: &builtin}}, Deps{Log: bustest.Logger(), Bus: r.b.Bus(t, name), Pack: rules.FS})
		if err != nil {
			t.Fatal(err)
		}
		members[name] = r.run(s)
		if names == 1 {
			bustest.Until(t, 10*time.Second, func() error {
				if s.Rules() == nil {
					return errors.New("no rules")
				}
				return nil
			})
			if err := s.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	leave := func() {
		name := slices.Sorted(maps.Keys(members))[rnd.IntN(len(members))]
		members[name]()
		delete(members, name)
	}
	join()
	r.cursor("acme", "eval", liveLane, pollKind, all[0].Derived.Time, false)
	r.cursor("acme/run1", "eval", "run1", backfillKind, all[0].Derived.Time, false)
	r.awaitClock("eval", liveLane, all[0].Derived.Time, false)
	r.awaitClock("eval", "run1", all[0].Derived.Time, false)

	// Each event somewhere in the next 20 (3.6 minutes), a third of them once more, a third as a partial copy first.
	type sending struct {
		at   float64
		log  *record.SystemLog
		copy int32
	}
	var sendings []sending
	for i, log := range all {
		where := float64(i) + rnd.Float64()*20
		partial := rnd.IntN(3) == 0
		if partial {
			first := *log
			first.Derived.Partial = true
			sendings = append(sendings, sending{where, &first, 1})
			second := *log
			second.Derived.Copy = 2
			where += 1 + rnd.Float64()*10
			sendings = append(sendings, sending{where, &second, 2})
			log = &second
		} else {
			sendings = append(sendings, sending{where, log, 1})
		}
		if rnd.IntN(3) == 0 {
			sendings = append(sendings, sending{where + rnd.Float64()*10, log, 1})
		}
	}
	slices.SortStableFunc(sendings, func(a, b sending) int { return cmp.Compare(a.at, b.at) })
	for i, s := range sendings {
		r.put(topics.SystemLog, "eval/"+s.log.Actor.AlternateID, s.log)
		r.put(topics.SystemLog, "eval/"+s.log.Actor.AlternateID, inPast(s.log))
		switch {
		case i%40 == 39: // everything before has come, but for what comes again
			first := s.log.Derived.Time
			for _, later := range sendings[i+1:] {
				if later.log.Derived.Time.Before(first) {
					first = later.log.Derived.Time
				}
			}
			r.cursor("acme", "eval", liveLane, pollKind, first.Add(-time.Millisecond), false)
			if i%80 == 79 {
				r.cursor("acme/run1", "eval", "run1", backfillKind, first.Add(-time.Second), false)
			}
		case rnd.IntN(30) == 0 && len(members) < 3:
			join()
		case rnd.IntN(40) == 0 && len(members) > 1:
			leave()
		case rnd.IntN(40) == 0:
			leave()
			join()
		}
	}
	end := all[len(all)-1].Derived.Time
	r.cursor("acme", "eval", liveLane, pollKind, end, true)
	r.cursor("acme/run1", "eval", "run1", backfillKind, end, true)

	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: os.DirFS(dir), Site: true})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	var past []*record.SystemLog
	for _, log := range all {
		past = append(past, inPast(log))
	}
	at := slices.Concat(atOnce(t, set, all), atOnce(t, set, past))
	want := last(at)
	kinds := map[string]int{}
	for _, d := range at {
		kinds[d.RuleID]++
	}
	var got map[string]string
	var found []*record.Detection
	wait := time.Now().Add(30 * time.Second)
	for ; ; time.Sleep(100 * time.Millisecond) {
		found = r.found()
		if got = last(found); maps.Equal(got, want) || time.Now().After(wait) {
			break
		}
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if got[id] != want[id] {
			t.Errorf("%s is\n%s\nwant\n%s", id, got[id], want[id])
		}
	}
	for id, d := range got {
		if want[id] == "" {
			t.Errorf("%s should not be: %s", id, d)
		}
	}
	once := map[string]bool{}
	for _, d := range found {
		u := fmt.Sprint(d.Lane, d.ID, d.Update)
		if once[u] && d.Kind != string(rule.KindMatch) { // what normalize would have dropped is a hit again
			t.Errorf("update %d of %s is there twice", d.Update, d.ID)
		}
		once[u] = true
	}
	t.Logf("%d sendings of %d events, %d members in turn; %d detections in %d updates, at once %v", len(sendings), len(all), names, len(got), len(found), kinds)
}

// TestReloadKeepsWhatIsHeld changes a rule's words, which keeps what it holds, then its window, which starts it empty: what the old
// one took is decided by it, also what was still on its way. A rule that is removed while nobody runs is waited for, then forgotten.
func TestReloadKeepsWhatIsHeld(t *testing.T) {
	dir := t.TempDir()
	file := dir + "/site/password-spray.yaml"
	write(t, file, sprayRule)
	r := newStateRig(t)
	builtin := false
	var s *Service
	start := func(instance string) func() {
		var err error
		s, err = New(Config{RulesDir: dir, Rules: Rules{Builtin: &builtin}, Reload: 20 * time.Millisecond}, Deps{Log: bustest.Logger(), Bus: r.b.Bus(t, instance), Pack: rules.FS})
		if err != nil {
			t.Fatal(err)
		}
		s.patience = time.Second
		return r.run(s)
	}
	reload := func(text string) {
		t.Helper()
		before := s.Rules()
		write(t, file, text)
		bustest.Until(t, 10*time.Second, func() error {
			if now := s.Rules(); now == before || len(now.Rules) != 1 || s.Ready(t.Context()) != nil {
				return errors.New("not loaded")
			}
			return nil
		})
	}
	n := 0
	send := func(users ...int) {
		for _, u := range users {
			n++
			r.put(topics.SystemLog, "eval/u", failure(t, n, fmt.Sprintf("user%d@example.com", u), "203.0.113.7"))
		}
	}
	wait := func(what string, ok func(d *record.Detection) bool) {
		t.Helper()
		bustest.Until(t, 20*time.Second, func() error {
			found := r.found()
			if !slices.ContainsFunc(found, ok) {
				return fmt.Errorf("%s: not among %d detections", what, len(found))
			}
			return nil
		})
	}
	stop := start("one")
	bustest.Until(t, 10*time.Second, func() error {
		if s.Rules() == nil {
			return errors.New("not loaded")
		}
		return nil
	})
	send(1, 2, 3, 4)
	bustest.Until(t, 10*time.Second, func() error {
		if n := len(r.b.Read(t, topics.Matches)); n != 4 {
			return fmt.Errorf("%d matches", n)
		}
		return nil
	})
	reload(strings.Replace(sprayRule, "failed to log in", "was refused", 1))
	send(5)
	wait("with the new words", func(d *record.Detection) bool {
		return d.EventCount == 5 && d.Title == "203.0.113.7 was refused as 5 users (5 tries)"
	})
	old := r.found()[0].StateHash

	// A Match that the old rule took comes to a partition after the new one is in force.
	reload(strings.Replace(sprayRule, "window: 5m", "window: 6m", 1))
	var late *record.Match
	for _, m := range r.b.Read(t, topics.Matches) {
		late = new(record.Match)
		if err := r.b.Serde().Decode(t.Context(), m.Value, late); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 * topics.EmbeddedPartitions { // to every partition, so that one has held nothing of the rule
		late.Org = "00o" + strconv.Itoa(i)
		r.match(late)
	}
	send(1, 2, 3, 4, 5, 6)
	wait("by the new rule", func(d *record.Detection) bool { return d.StateHash != old && d.EventCount == 6 })
	if n := len(r.b.Read(t, topics.Matches.DLQ())); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	stop()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/site/another.yaml", strings.Replace(sprayRule, "id: password-spray", "id: another", 1))
	start("two")
	r.cursor("acme", "eval", liveLane, pollKind, at.Add(24*time.Hour), false)
	r.awaitClock("eval", liveLane, at.Add(24*time.Hour), false)
	bustest.Until(t, 20*time.Second, func() error {
		left := map[string]bool{}
		for _, m := range r.b.Read(t, topics.DetectStateState) {
			if m.Value == nil {
				delete(left, string(m.Key))
			} else if strings.Contains(string(m.Key), "eval") && strings.Contains(string(m.Key), "password-spray") {
				left[string(m.Key)] = true
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("%d entries of the changelog are left", len(left))
		}
		return nil
	})
}
