package oktawatch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/oktasim/simtest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
	"github.com/oktawatch/oktawatch/services/alert"
	"github.com/oktawatch/oktawatch/services/detect"
	"github.com/oktawatch/oktawatch/services/ingest"
	"github.com/oktawatch/oktawatch/services/normalize"
	"github.com/oktawatch/oktawatch/services/oktawatch/internal/embedded"
)

// The load: every event is of a user granted an admin role, so that every one becomes an alert of its own and a webhook call.
const (
	latencyRate   = 50 // events a second
	latencyEvents = 750
	latencyPoll   = 2 * time.Millisecond // between two polls of the System Log
)

// BenchmarkLatency measures the way of an event to its webhook beside a bare chain of as many hops in the same run: hook, from the POST
// of the event hook, three transactional hops behind one plain write; poll, from Okta's published, four transactional hops, the first
// the poller's. With it goes the wait for the next poll, which is the setting's and not the pipeline's: the figures after-poll begin
// when the event's page is there. The broker is the one of `oktawatch up` with its data on disk; with KAFKA_SEEDS it is that cluster.
// Everything else is in this process, over one bus, as in `up`.
//
//	go test -run '^$' -bench Latency -benchtime 1x ./services/oktawatch
func BenchmarkLatency(b *testing.B) {
	b.Run("hook", func(b *testing.B) {
		measureLatency(b, 3, "hook", "poller")
	})
	b.Run("poll", func(b *testing.B) {
		measureLatency(b, 4, "poller")
	})
}

func measureLatency(b *testing.B, hops int, roles ...string) {
	onDisk(b)
	for b.Loop() {
		before := bustest.Start(b).Chain(b, hops, latencyEvents/2, latencyRate)
		p := startPipeline(b, roles...)
		if roles[0] == "hook" {
			p.run(b, 25, p.post)
			clear(p.took)
			p.run(b, latencyEvents, p.post)
		} else {
			p.run(b, 25, p.publish)
			clear(p.took)
			p.run(b, latencyEvents, p.publish)
		}
		var waits, rest []time.Duration
		if roles[0] != "hook" {
			waits, rest = p.afterPoll()
		}
		p.stop()
		after := bustest.Start(b).Chain(b, hops, latencyEvents/2, latencyRate)
		ours := bustest.NewLatency(slices.Collect(maps.Values(p.took)))
		b.Logf("chain of %d: %v; %v", hops, before, after)
		b.Logf("pipeline: %v", ours)
		base50, base99 := (before.P50+after.P50)/2, (before.P99+after.P99)/2
		report := func(d time.Duration, unit string) { b.ReportMetric(float64(d.Microseconds())/1000, unit) }
		if rest != nil {
			after := bustest.NewLatency(rest)
			b.Logf("waiting for the poll, each %v: %v; after it: %v", latencyPoll, bustest.NewLatency(waits), after)
			report(after.P50, "after-poll-p50-ms")
			report(after.P99, "after-poll-p99-ms")
		}
		report(ours.P50, "p50-ms")
		report(ours.P99, "p99-ms")
		report(base50, "chain-p50-ms")
		report(base99, "chain-p99-ms")
		b.ReportMetric(float64(ours.P50)/float64(base50), "p50-ratio")
		b.ReportMetric(float64(ours.P99)/float64(base99), "p99-ratio")
		b.ReportMetric(0, "ns/op")
	}
}

// onDisk starts the broker and the registry of `oktawatch up` for the Start calls of this benchmark, unless it runs on a cluster.
func onDisk(b *testing.B) {
	b.Helper()
	if os.Getenv("KAFKA_SEEDS") != "" {
		return
	}
	e, err := embedded.Start(b.Context(), embedded.Config{DataDir: b.TempDir(), KafkaListen: "127.0.0.1:0", RegistryListen: "127.0.0.1:0"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(); err != nil {
			b.Error(err)
		}
	})
	b.Setenv("KAFKA_SEEDS", e.Kafka())
	b.Setenv("SCHEMA_REGISTRY_URL", e.Registry())
}

// pipeline is all services over one bus, an org before them and a webhook behind.
type pipeline struct {
	b      *testing.B
	br     *bustest.Broker
	org    *oktasim.Org
	hook   string // address of the event hook
	stop   func()
	sample map[string]any
	serial int

	mu   sync.Mutex
	sent map[string]time.Time
	took map[string]time.Duration
}

const latencySecret = "hook-secret-of-a-benchmark"

func startPipeline(b *testing.B, roles ...string) *pipeline {
	b.Helper()
	p := &pipeline{b: b, sample: sample(b), sent: map[string]time.Time{}, took: map[string]time.Duration{}}
	p.org = simtest.Start(b, oktasim.Config{Limits: map[string]int{"logs": -1, "users": -1, "user": -1, "devices": -1, "other": -1}})
	receiver := httptest.NewServer(http.HandlerFunc(p.receive))
	p.br = bustest.Start(b)
	dir := b.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		return path
	}
	listen := freeAddress(b)
	p.hook = "http://" + listen + "/okta/events/sim"
	in := ingest.Config{
		Roles:   roles,
		Sources: []ingest.SourceConfig{{ID: "sim", OrgURL: p.org.URL(), TokenFile: file("token", oktasim.DefaultToken), Poll: ingest.PollConfig{Interval: latencyPoll}}},
	}
	if roles[0] == "hook" {
		in.Sources[0].Poll.Interval = 0
		in.Hook = ingest.HookConfig{PublicURL: "http://" + listen, Listen: listen, SecretFiles: []string{file("hook", latencySecret)}}
	}
	out := alert.Config{Receivers: []alert.Receiver{{Name: "hook", Sink: "webhook", With: map[string]any{
		"url": receiver.URL, "allow_loopback": true, "secret_files": []string{file("webhook", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")},
	}}}}

	set := metrics.NewSet()
	made, err := bus.New(bus.Config{Brokers: p.br.Seeds}, bus.Deps{Log: bustest.Logger(), Metrics: set, Serde: p.br.Serde(), Prefix: p.br.Prefix, InstanceID: "latency"})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
	var running sync.WaitGroup
	run := func(name string, s interface{ Run(context.Context) error }, err error) {
		if err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		running.Go(func() {
			if err := s.Run(ctx); err != nil {
				b.Errorf("%s: %v", name, err)
			}
		})
	}
	log := slog.New(slog.DiscardHandler)
	s1, err := ingest.New(in, ingest.Deps{Log: log, Bus: made, Metrics: set, DataDir: dir})
	run("ingest", s1, err)
	s2, err := normalize.New(normalize.Config{Masking: normalize.Masking{Key: []byte("0123456789abcdef0123456789abcdef")}}, normalize.Deps{Log: log, Bus: made, Metrics: set})
	run("normalize", s2, err)
	s3, err := detect.New(detect.Config{}, detect.Deps{Log: log, Bus: made, Metrics: set, Pack: grants(b)})
	run("detect", s3, err)
	s4, err := alert.New(out, alert.Deps{Log: log, Bus: made, Metrics: set})
	run("alert", s4, err)
	p.stop = func() {
		cancel()
		running.Wait()
		made.Close()
		receiver.Close()
	}
	bustest.Until(b, time.Minute, func() error {
		stages := made.Health()
		working := 0
		for _, h := range stages {
			if h.Alive && len(h.Partitions) > 0 {
				working++
			}
		}
		if want := 3; working < want {
			return fmt.Errorf("%d of %d stages work: %+v", working, want, stages)
		}
		if roles[0] == "hook" {
			return p.deliver(nil)
		}
		return nil
	})
	return p
}

func freeAddress(b *testing.B) string {
	b.Helper()
	s := httptest.NewServer(nil)
	defer s.Close()
	return s.Listener.Addr().String()
}

var latencyMark = regexp.MustCompile(`latency-\d+@example\.com`)

// receive is the webhook: the first call for an event counts.
func (p *pipeline) receive(_ http.ResponseWriter, r *http.Request) {
	now := time.Now()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	mark := string(latencyMark.Find(body))
	p.mu.Lock()
	defer p.mu.Unlock()
	if from, ok := p.sent[mark]; ok {
		delete(p.sent, mark)
		p.took[mark] = now.Sub(from)
	}
}

// event makes a full event of Okta's, published now, and the mark by which its alert is known.
func (p *pipeline) event() (doc []byte, mark string, at time.Time) {
	p.serial++
	mark = fmt.Sprintf("latency-%06d@example.com", p.serial)
	at = time.Now().Truncate(time.Millisecond).Add(time.Millisecond)
	p.sample["uuid"] = fmt.Sprintf("00000000-0000-4000-8000-%012d", p.serial)
	p.sample["published"] = at.UTC().Format("2006-01-02T15:04:05.000Z")
	for _, t := range p.sample["target"].([]any) {
		if user := t.(map[string]any); user["type"] == "User" {
			user["id"], user["alternateId"] = fmt.Sprintf("00u%017d", p.serial), mark
		}
	}
	doc, err := json.Marshal(p.sample)
	if err != nil {
		p.b.Fatal(err)
	}
	time.Sleep(time.Until(at)) // published has whole milliseconds: emitted when one begins, or the rounding would count as waiting
	return doc, mark, at
}

// sample is an admin role granted in a simulated org.
func sample(b *testing.B) map[string]any {
	b.Helper()
	org, err := oktasim.New(oktasim.Config{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := org.Play(b.Context(), "helpdesk-takeover", -1); err != nil {
		b.Fatal(err)
	}
	for e := range org.Truth().Events(oktasim.Query{EventType: "user.account.privilege.grant"}) {
		doc, _ := org.Truth().Raw(e.Seq)
		var event map[string]any
		if err := json.Unmarshal(doc, &event); err != nil {
			b.Fatal(err)
		}
		return event
	}
	b.Fatal("the scenario grants no role")
	return nil
}

// run sends events at the rate and waits for all their webhooks.
func (p *pipeline) run(b *testing.B, n int, send func() error) {
	b.Helper()
	tick := time.NewTicker(time.Second / latencyRate)
	defer tick.Stop()
	for range n {
		<-tick.C
		if err := send(); err != nil {
			b.Fatal(err)
		}
	}
	bustest.Until(b, time.Minute, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.sent) > 0 {
			return fmt.Errorf("%d of %d webhooks are missing", len(p.sent), n)
		}
		return nil
	})
}

// afterPoll parts what events took into waiting for the page that brought them and the rest. Times of records are whole milliseconds.
func (p *pipeline) afterPoll() (waits, rest []time.Duration) {
	for _, m := range p.br.Read(p.b, topics.Raw) {
		raw := new(record.RawEvent)
		if err := p.br.Serde().Decode(p.b.Context(), m.Value, raw); err != nil {
			p.b.Fatal(err)
		}
		took, ok := p.took[string(latencyMark.Find(raw.JSON))]
		var event struct {
			Published time.Time `json:"published"`
		}
		if err := json.Unmarshal(raw.JSON, &event); err != nil || !ok {
			continue // the org's own events
		}
		wait := raw.ReceivedAt.Sub(event.Published)
		waits, rest = append(waits, wait), append(rest, took-wait)
	}
	return waits, rest
}

func (p *pipeline) expect(mark string, from time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent[mark] = from
}

// post sends an event as Okta's event hook does; the time begins with the POST.
func (p *pipeline) post() error {
	doc, mark, _ := p.event()
	p.expect(mark, time.Now())
	go func() {
		if err := p.deliver([]json.RawMessage{doc}); err != nil {
			p.b.Error(err)
		}
	}()
	return nil
}

func (p *pipeline) deliver(events []json.RawMessage) error {
	if events == nil {
		events = []json.RawMessage{}
	}
	body, err := json.Marshal(map[string]any{
		"eventType": "com.okta.event_hook", "eventTypeVersion": "1.0", "cloudEventsVersion": "0.1", "contentType": "application/json",
		"eventId": "latency", "eventTime": time.Now().UTC(), "source": p.org.URL() + "/api/v1/eventHooks/who1", "data": map[string]any{"events": events},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(p.b.Context(), http.MethodPost, p.hook, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", latencySecret)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New("the hook answers " + resp.Status)
	}
	return nil
}

// publish has the org emit an event; the time begins with its published.
func (p *pipeline) publish() error {
	doc, mark, at := p.event()
	p.expect(mark, at)
	_, err := p.org.Emit(doc)
	return err
}

// grants is the pack with the one rule that the events of these measurements are for: each event one detection, alert and webhook call.
func grants(tb testing.TB) fs.FS {
	tb.Helper()
	const name = "okta/admin-privilege/admin-role-granted-to-user.yaml"
	text, err := fs.ReadFile(rules.FS, name)
	if err != nil {
		tb.Fatal(err)
	}
	out := fstest.MapFS{name: {Data: text}}
	lists, err := fs.Glob(rules.FS, "okta/lists/*")
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range lists {
		if text, err = fs.ReadFile(rules.FS, l); err != nil {
			tb.Fatal(err)
		}
		out[l] = &fstest.MapFile{Data: text}
	}
	return out
}
