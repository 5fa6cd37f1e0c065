package engine_test

import (
	"fmt"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
)

// BenchmarkOver brings events of which each is evidence, in detections of 100, to a State, and the pairs that it makes to the
// rule that reads them, a group for each user.
func BenchmarkOver(b *testing.B) {
	found := "id: found\ntitle: T\nseverity: low\ndetection: {kind: aggregate, where: 'event.eventType == \"user.session.start\"', group_by: {ip: event.client.ipAddress}, window: 5m, having: agg.count >= 1}\nalert: {title: '${agg.count} times'}\n"
	reads := "id: reads\ntitle: T\nseverity: low\ndetection: {kind: aggregate, input: detections, where: event.detection.ruleId == \"found\", group_by: {user: event.actor.id}, window: 5m, having: agg.count >= 1000}\n"
	for _, bc := range []struct {
		name  string
		rules map[string]string
	}{
		{"nobody reads", map[string]string{"p/found.yaml": found}},
		{"reads ruleId", map[string]string{"p/found.yaml": found, "p/reads.yaml": reads}},
		{"reads a title that counts", map[string]string{"p/found.yaml": found, "p/reads.yaml": reads + "alert: {title: '${event.detection.title}'}\n"}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			set := load(b, bc.rules)
			m := engine.NewMatcher(set)
			var ms []*record.Match
			for i := range 20_000 {
				log := attempt(i / 100)
				log.JSON, log.UUID, log.Actor.ID = nil, fmt.Sprintf("3b2b0c2e-0001-11f1-8000-%012d", i), fmt.Sprintf("00u%d", i%5000)
				log.Client.IPAddress = fmt.Sprintf("198.51.%d.%d", i%200, i%50)
				ms = append(ms, m.Take(view(b, log), engine.Place{Topic: "t", Offset: int64(i)})...)
			}
			b.ReportAllocs()
			b.ResetTimer()
			events, pairs := 0, 0
			for b.Loop() {
				st := engine.NewState(set)
				for i := 0; i < len(ms); i += 1000 {
					for _, mt := range ms[i:min(i+1000, len(ms))] {
						if err := st.Apply(mt); err != nil {
							b.Fatal(err)
						}
						events++
					}
					for out := st.Flush(); len(out.Pairs) > 0; out = st.Flush() {
						for _, mt := range out.Pairs {
							if err := st.Apply(mt); err != nil {
								b.Fatal(err)
							}
							pairs++
						}
					}
					st.Commit()
				}
			}
			b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(pairs)/float64(events), "pairs/event")
		})
	}
}
