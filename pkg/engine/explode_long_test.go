//go:build long

package engine_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
)

// limitsMet counts what a State says it could not hold.
type limitsMet struct{ n int }

func (*limitsMet) Excepted(string, string)  {}
func (*limitsMet) Failed(error)             {}
func (*limitsMet) Late(string)              {}
func (l *limitsMet) Limited(string, string) { l.n++ }

// TestGroupsExplode brings ten million keys to a rule that groups by what an attacker chooses. The State holds a million of them, says
// of each further one that it is not tracked, stays within a gigabyte, still judges the keys it has, and takes new ones when the old
// have expired.
func TestGroupsExplode(t *testing.T) {
	const keys, limit = 10_000_000, 1_000_000
	set := load(t, map[string]string{"p/r.yaml": benchHead + "detection: {kind: aggregate, where: 'event.eventType == \"user.session.start\"', group_by: {user: event.actor.alternateId}, window: 5m, having: agg.count >= 2}\n"})
	one := matches(t, set, 1, 1)[0]
	met := &limitsMet{}
	st := engine.NewState(set, engine.WithStateObserver(met))
	base := *one.Time
	apply := func(key string, uuid int, at time.Time) {
		m := *one
		m.Group, m.Key = "user="+key, map[string]string{"user": key}
		m.UUID, m.Time, m.Published = fmt.Sprintf("3b2b0c2e-0001-11f1-8000-%012d", uuid), &at, &at
		if err := st.Apply(&m); err != nil {
			t.Fatal(err)
		}
	}
	flush := func() (out []*record.Detection) {
		out = st.Flush().Detections
		st.Commit()
		return out
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range keys {
		apply(fmt.Sprintf("u%d", i), i, base)
		if i%1000 == 999 {
			if d := flush(); len(d) > 0 {
				t.Fatalf("%s after %d keys of one event each", d[0].Title, i)
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	held := float64(after.HeapAlloc) - float64(before.HeapAlloc)
	t.Logf("%d keys: %d not tracked, %.0f MB held", keys, met.n, held/1e6)
	if met.n != keys-limit {
		t.Errorf("%d keys were told as not tracked, want %d", met.n, keys-limit)
	}
	if held > 1<<30 {
		t.Errorf("%.0f MB are held", held/1e6)
	}
	apply("u7", keys, base.Add(time.Second))
	apply(fmt.Sprintf("u%d", keys-1), keys+1, base.Add(time.Second))
	if d := flush(); len(d) != 1 || d[0].Key["user"] != "u7" {
		t.Errorf("%d detections, want one of the key that is held", len(d))
	}
	st.Advance(one.Org, one.Lane, base.Add(48*time.Hour))
	flush()
	later := base.Add(49 * time.Hour)
	apply("new", keys+2, later)
	apply("new", keys+3, later.Add(time.Second))
	if d := flush(); len(d) != 1 {
		t.Errorf("%d detections of a new key after the old ones expired, want one", len(d))
	}
	runtime.KeepAlive(st)
}
