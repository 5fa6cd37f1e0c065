package engine_test

import (
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
)

// FuzzMatch brings Matches with any fields, and any entries of a changelog: nothing must fall over.
func FuzzMatch(f *testing.F) {
	set := load(f, map[string]string{
		"p/agg.yaml":   "id: agg\ntitle: X\nseverity: low\ndetection: {kind: aggregate, group_by: {u: event.actor.id}, aggregates: {d: {distinct: event.actor.id}, m: {max: event.published}, k: {count_by: event.actor.id}}, baseline: 10h, learning: 0s, bucket: 1h, window: 1h, having: 'agg.count >= 1 && base.count.n >= 0'}\nalert: {title: '${event.actor.id} ${agg.d} ${agg.m} ${evidence.size()}'}\n",
		"p/seq.yaml":   "id: seq\ntitle: X\nseverity: low\ndetection: {kind: sequence, window: 5m, steps: [{id: a, where: 'true', count: 2}, {id: b, where: 'event.actor.id == steps.a.actor.id'}]}\n",
		"p/first.yaml": "id: first\ntitle: X\nseverity: low\ndetection: {kind: first_seen, memory: 5m, learning: 0s, group_by: {u: event.actor.id, ip: event.client.ipAddress}, seen_before: [u]}\n",
		"p/over.yaml":  "id: over\ntitle: X\nseverity: low\ndetection: {kind: sequence, window: 5m, steps: [{id: a, input: detections, where: event.detection.severity >= 2}, {id: b, where: 'event.actor.id == steps.a.actor.id'}]}\nalert: {title: '${steps.a.detection.title} ${steps.a.detection.firstTime}'}\n",
	})
	m := engine.NewMatcher(set)
	for _, mt := range m.Take(view(f, login("u1")), engine.Place{}) {
		f.Add(mt.Fields, mt.Group, uint8(1), int64(0), "", []byte{})
		st := engine.NewState(set)
		if err := st.Apply(mt); err != nil {
			f.Fatal(err)
		}
		for _, c := range st.Flush().Changes {
			f.Add(mt.Fields, mt.Group, uint8(2), int64(1), c.Key, c.Value)
		}
	}
	f.Fuzz(func(t *testing.T, fields []byte, group string, flags uint8, after int64, key string, value []byte) {
		st := engine.NewState(set)
		_ = st.Restore(key, value)
		st.Restored()
		at := login("u").Derived.Time.Add(time.Duration(after % int64(240*time.Hour)))
		for i, c := range set.Rules {
			mt := &record.Match{
				Kind: engine.MatchEvent, Org: "00oORG", Lane: "live", RuleID: c.ID, StateHash: c.StateHash, Group: group, UUID: "u" + string(rune('0'+i)),
				Key: map[string]string{"u": group, "ip": "x"}, Time: &at, Copy: int32(flags), Seed: flags&8 != 0, Excepted: flags&16 != 0, Partial: flags&32 != 0, Fields: fields,
			}
			_ = st.Apply(mt)
			mt.UUID += "b"
			_ = st.Apply(mt)
			mt.Kind = engine.MatchPair
			for n := range 3 {
				mt.Detection = &record.MatchDetection{ID: key, Title: group, Severity: int32(flags), Withdrawn: n == 1 && flags&64 != 0, Open: flags&128 != 0, Tags: []string{key}}
				_ = st.Apply(mt)
				at = at.Add(time.Duration(after % 1000))
			}
		}
		held := map[string]string{}
		out := st.Flush()
		for _, c := range out.Changes {
			held[c.Key] = string(c.Value)
		}
		for _, c := range st.Snapshot() {
			if want, ok := held[c.Key]; ok && c.Key[0] == 'E' && want != string(c.Value) {
				t.Fatalf("held event %q is %x in the changelog and %x in the memory", c.Key, want, c.Value)
			}
		}
		for _, mt := range out.Pairs {
			_ = st.Apply(mt)
		}
		st.AdvanceSecond("00oORG", "live", at.Add(time.Hour))
		st.Advance("00oORG", "live", at.Add(time.Hour))
		st.Flush()
		st.Advance("00oORG", "live", at.Add(2000*time.Hour))
		st.Flush()
		st.Abort()
		st.Advance("00oORG", "live", at.Add(2000*time.Hour))
		st.Flush()
		st.AdvanceSecond("00oORG", "live", at.Add(2000*time.Hour))
		st.Flush()
		st.Commit()
		st.Snapshot()
	})
}
