package detect

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
)

// eachRule has a detection for each event; windowed ones each a group of its own.
const (
	eachRule = `id: each
title: Each event
severity: low
mode: signal
detection:
  kind: match
  where: event.eventType == "user.session.end"
`
	eachWindowedRule = `id: each
title: Each event a group of its own
severity: low
mode: signal
detection:
  kind: aggregate
  where: event.eventType == "user.session.end"
  group_by: {who: event.actor.alternateId}
  window: 5m
  having: agg.count >= 1
`
)

// BenchmarkLatency measures the way from a System Log record to the detection, of a match rule (one stage) and of a windowed one (the
// match stage, then the state stage), 200 a second, every one a detection, beside a bare chain of as many hops in the same run.
func BenchmarkLatency(b *testing.B) {
	const n, perSecond = 2000, 200
	for _, bc := range []struct {
		name, rule string
		hops       int
	}{{"match", eachRule, 1}, {"windowed", eachWindowedRule, 2}} {
		b.Run(bc.name, func(b *testing.B) {
			for b.Loop() {
				chain := bustest.Start(b).Chain(b, bc.hops, n, perSecond)
				ours := latency(b, bc.rule, n, perSecond)
				b.Logf("chain of %d: %v", bc.hops, chain)
				b.Logf("detect: %v", ours)
				report := func(d time.Duration, unit string) { b.ReportMetric(float64(d.Microseconds())/1000, unit) }
				report(ours.P50, "p50-ms")
				report(ours.P99, "p99-ms")
				report(chain.P50, "chain-p50-ms")
				report(chain.P99, "chain-p99-ms")
				b.ReportMetric(float64(ours.P50)/float64(chain.P50), "p50-ratio")
				b.ReportMetric(float64(ours.P99)/float64(chain.P99), "p99-ratio")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

func latency(b *testing.B, rule string, n, perSecond int) bustest.Latency {
	b.Helper()
	dir := b.TempDir()
	write(b, filepath.Join(dir, "site", "each.yaml"), rule)
	br := bustest.Start(b)
	builtin := false
	made := br.Bus(b, "one")
	s, err := New(Config{RulesDir: dir, Rules: Rules{Builtin: &builtin}}, Deps{Log: bustest.Logger(), Bus: made, Pack: rules.FS})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	outside := br.Bus(b, "outside")
	var mu sync.Mutex
	sent := map[string]time.Time{}
	var took []time.Duration
	var tables sync.WaitGroup
	table, err := outside.OpenTable(ctx, topics.Detections, func(_ string, value []byte) {
		now := time.Now()
		d, err := bus.Decode[record.Detection](ctx, outside, bus.Message{Topic: topics.Detections, Value: value})
		if err != nil {
			b.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if at, ok := sent[d.Evidence[0].UUID]; ok {
			took = append(took, now.Sub(at))
			delete(sent, d.Evidence[0].UUID)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	bustest.Until(b, 20*time.Second, func() error {
		h := made.Health()
		for _, stage := range h {
			if len(stage.Partitions) != topics.EmbeddedPartitions {
				return errors.New("the stages are not ready")
			}
		}
		if len(h) != 2 {
			return errors.New("the stages are not there")
		}
		return nil
	})
	cursors := outside.Sender()
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for i := range n {
		log := event(b, i, "user.session.end")
		log.Actor.AlternateID = "user" + strconv.Itoa(i) + "@example.com"
		<-tick.C
		mu.Lock()
		sent[log.UUID] = time.Now()
		mu.Unlock()
		tables.Go(func() {
			if err := cursors.Send(ctx, topics.SystemLog, "eval/"+log.Actor.AlternateID, log); err != nil {
				b.Error(err)
			}
		})
		if i%perSecond == 0 { // the time goes on meanwhile
			through := at.Add(time.Duration(i) * time.Second)
			if err := cursors.Send(ctx, topics.Cursors, "acme", &record.Cursor{SourceID: "acme", Org: "eval", Lane: liveLane, Kind: pollKind, Through: &through, UpdatedAt: at, Slices: []record.CursorSlice{}}); err != nil {
				b.Fatal(err)
			}
		}
	}
	tables.Wait()
	bustest.Until(b, 30*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(sent) > 0 {
			return fmt.Errorf("%d events are not detected", len(sent))
		}
		return nil
	})
	cancel()
	<-table.Done()
	if err := <-done; err != nil {
		b.Error(err)
	}
	return bustest.NewLatency(took)
}
