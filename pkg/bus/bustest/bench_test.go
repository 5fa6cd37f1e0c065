package bustest_test

import (
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// BenchmarkPassThrough copies events of ordinary size through each kind of stage.
//
//	go test -run - -bench PassThrough -cpu 1 ./bus/bustest
func BenchmarkPassThrough(b *testing.B) {
	noise := make([]byte, 1300)
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a benchmark's own
	for i := range noise {
		noise[i] = byte(rnd.UintN(64)) + ' '
	}
	record := func(i int) (string, []byte) { return "org/" + strconv.Itoa(i%5000), noise }
	for name, tc := range map[string]struct {
		g   topics.Group
		out topics.Topic
	}{
		"handler": {topics.DetectMatch, topics.Detections},
		"task":    {topics.NormalizeDedup, topics.SystemLog},
	} {
		b.Run(name, func(b *testing.B) {
			ts := append(tc.g.Topics(), tc.out)
			if tc.g.State != nil {
				ts = append(ts, *tc.g.State)
			}
			br := bustest.Start(b, ts...)
			const n = 100_000
			var total bustest.Cost
			for b.Loop() {
				b.StopTimer()
				br.Fill(b, tc.g.Inputs[0], n, record)
				b.StartTimer()
				c := br.Drain(b, tc.g, bustest.PassThrough(tc.g, tc.out))
				total.Records += c.Records
				total.CPU += c.CPU
				total.Wall += c.Wall
			}
			b.ReportMetric(total.PerSecond(), "records/cpu-s")
			b.ReportMetric(float64(total.Records)/total.Wall.Seconds(), "records/s")
		})
	}
}

// BenchmarkChain sends 50 records a second through bare chains.
func BenchmarkChain(b *testing.B) {
	for _, hops := range []int{1, 4} {
		b.Run(strconv.Itoa(hops), func(b *testing.B) {
			for b.Loop() {
				l := bustest.Start(b, topics.Raw).Chain(b, hops, 500, 50)
				b.ReportMetric(float64(l.P50.Microseconds())/1000, "p50-ms")
				b.ReportMetric(float64(l.P99.Microseconds())/1000, "p99-ms")
				b.ReportMetric(float64(l.Max.Microseconds())/1000, "max-ms")
			}
		})
	}
}
