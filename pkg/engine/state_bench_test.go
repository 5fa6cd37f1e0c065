package engine_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

const (
	benchHead      = "id: r\ntitle: X\nseverity: low\n"
	benchCount     = benchHead + "detection: {kind: aggregate, where: 'event.eventType == \"user.session.start\"', group_by: {user: event.actor.id}, window: 5m, having: agg.count >= 1000}\n"
	benchDistinct  = benchHead + "detection: {kind: aggregate, where: 'event.eventType == \"user.session.start\"', group_by: {user: event.actor.id}, window: 5m, aggregates: {ips: {distinct: event.client.ipAddress}}, having: agg.ips >= 1000}\n"
	benchSequence  = benchHead + "detection: {kind: sequence, group_by: {user: event.actor.id}, window: 5m, steps: [{id: a, where: 'event.eventType == \"user.session.start\"'}, {id: b, where: 'event.eventType == \"b\"'}]}\n"
	benchBound     = benchHead + "detection: {kind: sequence, group_by: {user: event.actor.id}, window: 1d, steps: [{id: a, where: 'event.eventType == \"user.session.start\"'}, {id: b, where: 'event.client.ipAddress != steps.a.client.ipAddress && speedKmh(steps.a, event) > 900.0'}]}\n"
	benchFirstSeen = benchHead + "detection: {kind: first_seen, where: 'event.eventType == \"user.session.start\"', group_by: {user: event.actor.id}, memory: 30d}\n"
)

// matches are what Take makes of n events of so many users, a millisecond apart.
func matches(tb testing.TB, set *rule.Set, n, users int) []*record.Match {
	tb.Helper()
	m := engine.NewMatcher(set)
	out := make([]*record.Match, 0, n)
	base := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	for i := range n {
		log := login(fmt.Sprintf("3b2b0c2e-0001-11f1-8000-%012d", i))
		log.JSON = nil
		log.Actor.ID = fmt.Sprintf("00u%d", i%users)
		log.Client.IPAddress = fmt.Sprintf("198.51.%d.%d", i/256%256, i%256)
		log.Derived.Time = base.Add(time.Duration(i) * time.Millisecond)
		log.Derived.Received = log.Derived.Time
		log.Published = &log.Derived.Time
		out = append(out, m.Take(view(tb, log), engine.Place{Topic: "t", Offset: int64(i)})...)
	}
	return out
}

// BenchmarkState brings Matches to a State in batches of 1,000, with the entries of its changelog and a clock for each
// batch, as the state stage does.
func BenchmarkState(b *testing.B) {
	for _, bc := range []struct {
		name, rule string
		users      int
	}{
		{"count, 1 event a group", benchCount, 1 << 30},
		{"count, 10 events a group", benchCount, 10_000},
		{"count, 100 events a group", benchCount, 1000},
		{"count, 5000 events a group", benchCount, 20},
		{"distinct, 10 events a group", benchDistinct, 10_000},
		{"sequence, 10 events a group", benchSequence, 10_000},
		{"sequence, each step reads the one before, 100 events a group", benchBound, 1000},
		{"first_seen, 10 events a group", benchFirstSeen, 10_000},
	} {
		b.Run(bc.name, func(b *testing.B) {
			set := load(b, map[string]string{"p/r.yaml": bc.rule})
			ms := matches(b, set, 100_000, bc.users)
			b.ReportAllocs()
			b.ResetTimer()
			n, began := 0, cpu()
			var st *engine.State
			for b.Loop() {
				if n%len(ms) == 0 {
					st = engine.NewState(set)
					st.Begin("00oORG", "live", ms[0].Time.AddDate(-1, 0, 0))
				}
				m := ms[n%len(ms)]
				if err := st.Apply(m); err != nil {
					b.Fatal(err)
				}
				if n++; n%1000 == 0 {
					st.Advance("00oORG", "live", *m.Time)
					st.Flush()
					st.Commit()
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "updates/s")
			if used := cpu() - began; used > 0 {
				b.ReportMetric(float64(n)/used.Seconds(), "updates/cpu-s")
			}
		})
	}
}

// BenchmarkTake judges one event by a rule with memory and writes what is kept of it.
func BenchmarkTake(b *testing.B) {
	set := load(b, map[string]string{"p/r.yaml": benchDistinct})
	m := engine.NewMatcher(set)
	v := view(b, login("3b2b0c2e-0001-11f1-8000-000000000001"))
	p := v.Payload()
	b.ReportAllocs()
	for b.Loop() {
		if err := v.Reset(p); err != nil {
			b.Fatal(err)
		}
		if len(m.Take(v, engine.Place{})) != 1 {
			b.Fatal("not taken")
		}
	}
}

const (
	memCount      = benchHead + "detection: {kind: aggregate, where: 'event.eventType == \"user.session.start\"', group_by: {user: event.actor.id}, window: 1d, having: agg.count >= 100000}\n"
	memSettle     = benchHead + "detection: {kind: aggregate, where: 'event.eventType == \"user.session.start\"', group_by: {user: event.actor.id}, window: 1d, settle: 5m, having: agg.count >= 100000}\n"
	memDistinct   = benchHead + "detection: {kind: aggregate, where: 'event.eventType == \"user.session.start\"', group_by: {user: event.actor.id}, window: 1d, aggregates: {ips: {distinct: event.client.ipAddress}}, having: agg.ips >= 100000}\n"
	memSequence   = benchHead + "detection: {kind: sequence, group_by: {user: event.actor.id}, window: 1d, steps: [{id: a, where: 'event.eventType == \"user.session.start\"'}, {id: b, where: 'event.eventType == \"b\"'}]}\n"
	memSeenBefore = benchHead + "detection: {kind: first_seen, where: 'event.eventType == \"user.session.start\"', group_by: {user: event.actor.id, ip: event.client.ipAddress}, seen_before: [user], memory: 30d}\n"
	memBaseline   = benchHead + "detection: {kind: aggregate, where: 'event.eventType == \"user.session.start\"', group_by: {user: event.actor.id}, window: 1h, bucket: 1h, baseline: 30d, aggregates: {ips: {distinct: event.client.ipAddress}}, having: agg.ips >= 100000 && base.count.n >= 0}\n"
)

// realLogin is a login with texts as long as Okta's.
func realLogin(i, user int) *record.SystemLog {
	log := login(fmt.Sprintf("3b2b0c2e-0001-11f1-8000-%012x", i))
	log.JSON = nil
	log.Actor.ID = fmt.Sprintf("00u1t2kg%05xXqs7L697", user)
	log.Actor.AlternateID = fmt.Sprintf("first.last%07d@ex.com", user)
	log.Client.IPAddress = fmt.Sprintf("198.%d.%d.%d", 18+i>>16, i>>8&255, i&255)
	return log
}

// memoryOf brings n events of so many users, so far apart, to a State, as the state stage does, and tells by how many
// bytes the heap has grown when the clock stands so far behind the last one.
func memoryOf(t *testing.T, text string, n, users int, apart, behind time.Duration) float64 {
	t.Helper()
	const warm = 2000 // what a State has once: it is not counted
	set := load(t, map[string]string{"p/r.yaml": text})
	m, st := engine.NewMatcher(set), engine.NewState(set)
	at := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	st.Begin("00oORG", "live", at.AddDate(-1, 0, 0))
	done := func(through time.Time) {
		st.Advance("00oORG", "live", through)
		st.Flush()
		st.Commit()
	}
	bring := func(from, to, users, first int) {
		for i := from; i < to; i++ {
			log := realLogin(i, first+i%users)
			at = at.Add(apart)
			published := at
			log.Published, log.Derived.Time, log.Derived.Received = &published, at, at.Add(1234*time.Millisecond)
			for _, mt := range m.Take(view(t, log), engine.Place{Topic: "t", Offset: 5_000_000 + int64(i)}) {
				if err := st.Apply(mt); err != nil {
					t.Fatal(err)
				}
			}
			if i%1000 == 999 {
				done(at)
			}
		}
	}
	heap := func() float64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&s)
		return float64(s.HeapAlloc)
	}
	bring(0, warm, warm, 500_000)
	at = at.Add(behind)
	done(at)
	before := heap()
	bring(warm, warm+n, users, 0)
	done(at.Add(behind))
	after := heap()
	runtime.KeepAlive(st)
	return after - before
}

// TestMemory tells what a group with one event costs, each further event of a group, and a value of first_seen or of a
// baseline, with all that is around it: index, timers, the room that lists have to grow.
func TestMemory(t *testing.T) {
	const n, ms, hour = 20_000, time.Millisecond, time.Hour
	const address = len("198.18.100.100") // of the texts only the address is another in each event of a group
	for _, tc := range []struct {
		name, text string
		own        int // bytes of what is copied of each event
	}{
		{"count", memCount, address},
		{"settle", memSettle, address},
		{"distinct", memDistinct, address + 2}, // the value with its lengths; the field shares its text
		{"sequence", memSequence, address},
	} {
		one := memoryOf(t, tc.text, n, 1<<30, ms, 0) / n
		t.Logf("%s, a group with one event: %.0f bytes, all copied fields among them", tc.name, one)
		if one > 300 {
			t.Errorf("%s, a group with one event: %.0f bytes, above 300", tc.name, one)
		}
		for _, each := range []int{10, 2000} {
			all := memoryOf(t, tc.text, n, n/each, ms, 0)
			further := (all - one*float64(n/each)) / float64(n-n/each)
			t.Logf("%s, a further event of a group of %d: %.0f bytes, %d of them copied", tc.name, each, further, tc.own)
			if further > float64(96+tc.own) {
				t.Errorf("%s, a further event of a group of %d: %.0f bytes, above 96 and what is copied", tc.name, each, further)
			}
		}
	}
	for _, tc := range []struct {
		name, text string
		users      int
		apart      time.Duration
		key        int // bytes of the text of its key
	}{
		{"first_seen", benchFirstSeen, 1 << 30, ms, len("user=00u1t2kg00000Xqs7L697")},
		{"first_seen with seen_before, 100 values a user", memSeenBefore, n / 100, ms, len("ip=198.18.100.100.user=00u1t2kg00000Xqs7L697")},
		{"baseline, buckets of two aggregates", memBaseline, 40, hour / 40, 0},
	} {
		each := memoryOf(t, tc.text, n, tc.users, tc.apart, 72*hour) / n
		t.Logf("%s: %.0f bytes a value, %d of them the text of its key", tc.name, each, tc.key)
		if each > 64 {
			t.Errorf("%s: %.0f bytes a value, above 64", tc.name, each)
		}
	}
}

// BenchmarkRestore makes a memory of a million keys from its changelog, up to the first Flush, which judges all of it:
// groups with one held event each, and last sightings.
func BenchmarkRestore(b *testing.B) {
	for _, bc := range []struct {
		name, rule string
		fold       time.Duration
	}{
		{"groups with one event", benchCount, 0},
		{"first_seen values", benchFirstSeen, 72 * time.Hour},
	} {
		b.Run(bc.name, func(b *testing.B) {
			set := load(b, map[string]string{"p/r.yaml": bc.rule})
			const n = 1_000_000
			st, m := engine.NewState(set), engine.NewMatcher(set)
			at := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
			st.Begin("00oORG", "live", at.AddDate(-1, 0, 0))
			one := realLogin(0, 0)
			published := at
			one.Published, one.Derived.Time, one.Derived.Received = &published, at, at.Add(time.Second)
			for _, mt := range m.Take(view(b, one), engine.Place{Topic: "t", Offset: 5_000_000}) {
				if err := st.Apply(mt); err != nil {
					b.Fatal(err)
				}
			}
			st.Advance("00oORG", "live", at.Add(bc.fold))
			st.Flush()
			st.Commit()
			// The entries of the others are those of the first with other texts of the same length.
			var keys []string
			var values [][]byte
			for _, c := range st.Snapshot() {
				others := n
				if !strings.Contains(c.Key, one.Actor.ID) {
					others = 1 // of the lane
				}
				for i := range others {
					with := realLogin(i, i)
					r := strings.NewReplacer(one.Actor.ID, with.Actor.ID, one.Actor.AlternateID, with.Actor.AlternateID, one.UUID, with.UUID)
					keys = append(keys, r.Replace(c.Key))
					values = append(values, []byte(r.Replace(string(c.Value))))
				}
			}
			b.ResetTimer()
			began := cpu()
			for b.Loop() {
				again := engine.NewState(set)
				for i, k := range keys {
					if err := again.Restore(k, values[i]); err != nil {
						b.Fatal(err)
					}
				}
				again.Restored()
				again.Advance("00oORG", "live", at.Add(bc.fold+time.Millisecond))
				again.Flush()
				again.Commit()
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s")
			b.ReportMetric((cpu()-began).Seconds()/float64(b.N), "cpu-s")
			b.ReportMetric(float64(len(keys)), "entries")
			b.ReportMetric(0, "ns/op")
		})
	}
}
