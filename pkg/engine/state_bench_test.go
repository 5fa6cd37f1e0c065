package engine_test

import (
	"fmt"
	"runtime"
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

// TestMemory tells what a held event costs, and a first sighting.
func TestMemory(t *testing.T) {
	const n = 20_000
	for _, tc := range []struct {
		name, rule string
		users      int
		fold       bool
	}{
		{"group with one event", benchCount, 1 << 30, false},
		{"further event of a group", benchCount, 10, false},
		{"first_seen value", benchFirstSeen, 1 << 30, true},
	} {
		set := load(t, map[string]string{"p/r.yaml": tc.rule})
		ms := matches(t, set, n, tc.users)
		fields := len(ms[0].Fields)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		st := engine.NewState(set)
		st.Begin("00oORG", "live", ms[0].Time.AddDate(-1, 0, 0))
		for i, m := range ms {
			if err := st.Apply(m); err != nil {
				t.Fatal(err)
			}
			if i%1000 == 999 {
				st.Flush()
				st.Commit()
			}
		}
		if tc.fold {
			st.Advance("00oORG", "live", ms[n-1].Time.Add(72*time.Hour))
			st.Flush()
			st.Commit()
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		each := float64(after.HeapAlloc-before.HeapAlloc) / n
		t.Logf("%s: %.0f bytes, of which %d are copied fields", tc.name, each, fields)
		if each > 1200 {
			t.Errorf("%s: %.0f bytes", tc.name, each)
		}
		runtime.KeepAlive(st)
		runtime.KeepAlive(ms)
	}
}

// BenchmarkRestore makes a memory of 100,000 keys, one held event each, from its changelog.
func BenchmarkRestore(b *testing.B) {
	set := load(b, map[string]string{"p/r.yaml": benchCount})
	const n = 100_000
	st := engine.NewState(set)
	for _, m := range matches(b, set, n, 1<<30) {
		if err := st.Apply(m); err != nil {
			b.Fatal(err)
		}
	}
	st.Flush()
	st.Commit()
	all := st.Snapshot()
	b.ResetTimer()
	for b.Loop() {
		again := engine.NewState(set)
		for _, c := range all {
			if err := again.Restore(c.Key, c.Value); err != nil {
				b.Fatal(err)
			}
		}
		again.Restored()
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
}
