package normalize

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a broker with a normalize on it that can be stopped and started.
type rig struct {
	t      testing.TB
	b      *bustest.Broker
	sender *bus.Sender
	cfg    Config
}

func newRig(t testing.TB, opts ...bustest.Option) *rig {
	t.Helper()
	b := bustest.StartWith(t, opts, topics.Raw, topics.Raw.DLQ(), topics.SystemLog, topics.NormalizeDedupState, topics.NormalizeDedupRedrive, topics.Detections)
	return &rig{t: t, b: b, sender: b.Bus(t, "sender").Sender(), cfg: Config{Masking: Masking{Key: testKey}}}
}

// start runs the service until the returned function is called.
func (r *rig) start() (stop func()) {
	r.t.Helper()
	made := r.b.Bus(r.t, "one")
	s, err := New(r.cfg, Deps{Log: bustest.Logger(), Bus: made})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.Ready(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Error("run:", err)
		}
		made.Close()
	}
	r.t.Cleanup(stop)
	return stop
}

func rawOf(doc []byte, uuid, source string, partial bool) *record.RawEvent {
	sum := sha256.Sum256(doc)
	return &record.RawEvent{
		Org: "00o1", SourceID: "src", Source: source, Lane: "live", Partial: partial, ReceivedAt: time.Date(2026, 1, 5, 10, 0, 1, 0, time.UTC),
		UUID: uuid, Size: int64(len(doc)), SHA256: hex.EncodeToString(sum[:]), JSON: doc,
	}
}

func (r *rig) send(raws ...*record.RawEvent) {
	r.t.Helper()
	for _, raw := range raws {
		if err := r.sender.Send(r.t.Context(), topics.Raw, raw.Org+"/"+raw.UUID, raw); err != nil {
			r.t.Fatal(err)
		}
	}
}

// records waits until n records were written and gives them by uuid, in the order they were written.
func (r *rig) records(n int) map[string][]*record.SystemLog {
	r.t.Helper()
	var all []bus.Message
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if all = r.b.Read(r.t, topics.SystemLog); len(all) >= n {
			break
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%d records after 20 s, want %d", len(all), n)
		}
	}
	if len(all) != n {
		r.t.Fatalf("%d records, want %d", len(all), n)
	}
	serde := r.b.Serde()
	out := map[string][]*record.SystemLog{}
	for _, m := range all {
		ev := new(record.SystemLog)
		if err := serde.Decode(r.t.Context(), m.Value, ev); err != nil {
			r.t.Fatal(err)
		}
		out[ev.UUID] = append(out[ev.UUID], ev)
	}
	return out
}

func event(uuid string, second int) []byte {
	return fmt.Appendf(nil, `{"uuid":%q,"published":"2026-01-05T10:00:%02d.000Z","eventType":"user.session.start","actor":{"id":"00u1","type":"User"},"displayMessage":"x"}`, uuid, second%60)
}

// dlq waits for n dead letters and gives their class by the raw event's uuid.
func (r *rig) dlq(n int) map[string]string {
	r.t.Helper()
	var all []bus.Message
	for deadline := time.Now().Add(20 * time.Second); len(all) < n && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		all = r.b.Read(r.t, topics.Raw.DLQ())
	}
	if len(all) != n {
		r.t.Fatalf("%d dead letters, want %d", len(all), n)
	}
	out := map[string]string{}
	for _, m := range all {
		_, uuid, _ := strings.Cut(string(m.Key), "/")
		out[uuid] = string(m.Header("dlq.error.class"))
	}
	return out
}

// Every sample survives, whole; of those that are two copies of one event, one.
func TestSamplesSurvive(t *testing.T) {
	r := newRig(t)
	r.start()
	files, err := filepath.Glob("../../pkg/systemlog/testdata/samples/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatal("no samples", err)
	}
	type sample struct {
		doc  []byte
		uuid string
	}
	var docs []sample
	events := map[string]bool{}
	for _, f := range files {
		if strings.HasSuffix(f, "event_hook_envelopes.jsonl") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for l := range bytes.Lines(b) {
			l = bytes.TrimSpace(l)
			var head struct{ UUID, Published, EventType string }
			if err := json.Unmarshal(l, &head); err != nil {
				t.Fatal(err)
			}
			docs = append(docs, sample{l, head.UUID})
			id := head.UUID + head.Published + head.EventType
			if head.UUID == "" {
				id = string(l)
			}
			events[id] = true
		}
	}
	if len(docs) != 30 {
		t.Fatalf("%d samples", len(docs))
	}
	for _, d := range docs {
		r.send(rawOf(d.doc, d.uuid, "poller", false))
	}
	got := r.records(len(events))
	for _, recs := range got {
		for _, ev := range recs {
			i := slices.IndexFunc(docs, func(d sample) bool {
				sum := sha256.Sum256(d.doc)
				return hex.EncodeToString(sum[:]) == ev.Derived.RawSHA256
			})
			if i < 0 {
				t.Errorf("%s: no sample has the hash %s", ev.UUID, ev.Derived.RawSHA256)
				continue
			}
			if ev.Derived.Masked == 0 && !bytes.Equal(ev.JSON, docs[i].doc) {
				t.Errorf("%s: json is not the input", ev.UUID)
			}
			if ev.Derived.Masked > 0 && !json.Valid(ev.JSON) {
				t.Errorf("%s: json is broken by masking", ev.UUID)
			}
		}
	}
	if reused := got["9de5069c-5afe-602b-2ea0-a04b66beb2c0"]; len(reused) != 2 || reused[0].Derived.UUIDReused == reused[1].Derived.UUIDReused {
		t.Errorf("two events with one uuid: %d records", len(reused))
	}
}

// Copies in any order, over restarts: one or two records an event, and nothing written before is written again.
func TestRestarts(t *testing.T) {
	r := newRig(t)
	stop := r.start()
	const n = 40
	for i := range n {
		id := fmt.Sprintf("e%d", i)
		if i%2 == 0 {
			r.send(rawOf(event(id, i), id, "hook", true))
		} else {
			r.send(rawOf(event(id, i), id, "poller", false))
		}
	}
	r.records(n)
	stop()
	for i := range n {
		id := fmt.Sprintf("e%d", i)
		r.send(rawOf(event(id, i), id, "poller", false), rawOf(event(id, i), id, "hook", true))
	}
	stop = r.start()
	r.records(n + n/2)
	stop()
	for i := range n {
		id := fmt.Sprintf("e%d", i)
		r.send(rawOf(event(id, i), id, "hook", true), rawOf(event(id, i), id, "poller", false))
	}
	r.send(rawOf(event("last", 0), "last", "poller", false))
	r.start()
	got := r.records(n + n/2 + 1)
	for i := range n {
		recs := got[fmt.Sprintf("e%d", i)]
		last := recs[len(recs)-1].Derived
		if want := 2 - i%2; len(recs) != want || last.Partial || int(last.Copy) != want || last.Differs {
			t.Errorf("event %d: %d records, the last %+v", i, len(recs), last)
		}
	}
}

func TestDeadLetters(t *testing.T) {
	r := newRig(t)
	r.start()
	for class, doc := range map[string]string{
		"not_json": `<html>`, "not_object": `[1]`, "no_event": `{"a":1}`,
		"too_deep": strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001),
	} {
		r.send(rawOf([]byte(doc), class, "hook", true))
	}
	huge := rawOf(nil, "oversize", "poller", false)
	huge.Oversize, huge.Size = true, 3<<20
	r.send(huge, rawOf(event("good", 1), "good", "poller", false))
	big := fmt.Appendf(nil, `{"uuid":"big","eventType":"e","debugContext":{"debugData":{"x":%q}}}`, strings.Repeat("y", topics.MaxEvent-200))
	r.send(rawOf(big, "big", "poller", false))
	got := r.records(2)
	if len(got["good"]) != 1 || len(got["big"]) != 1 || !bytes.Equal(got["big"][0].JSON, big) {
		t.Error("the stream did not go on")
	}
	for uuid, class := range r.dlq(5) {
		if uuid != class {
			t.Errorf("%s is a dead letter of class %s", uuid, class)
		}
	}
}

func TestDerived(t *testing.T) {
	r := newRig(t)
	r.start()
	doc := []byte(`{"uuid":"u1","published":"2026-01-05T10:30:00Z","eventType":"e","severity":5,"debugContext":{"debugData":{"stateToken":"secret-of-somebody"}}}`)
	raw := rawOf(doc, "u1", "backfill", false)
	raw.Lane, raw.Seed = "run1", true
	r.send(raw)
	ev := r.records(1)["u1"][0]
	d := ev.Derived
	if d.Org != "00o1" || d.Lane != "run1" || !d.Seed || !d.Backfill || d.Source != "backfill" || d.SourceID != "src" || d.RawSHA256 != raw.SHA256 || d.Masked != 1 || d.Copy != 1 {
		t.Errorf("derived: %+v", d)
	}
	if !d.Received.Equal(raw.ReceivedAt) || !d.Time.Equal(raw.ReceivedAt) {
		t.Errorf("published is half an hour after received, event time is %v", d.Time)
	}
	if d.RawPartition < 0 || d.RawOffset != 0 {
		t.Errorf("place in okta.raw.v1: %d@%d", d.RawPartition, d.RawOffset)
	}
	if bytes.Contains(ev.JSON, []byte("secret-of-somebody")) || ev.DebugContext.DebugData["stateToken"][:3] != "***" {
		t.Error("the secret is still there")
	}
}

// A memory that is too small is told once a day and partition, over restarts too, and the stream goes on.
func TestOverflowIsTold(t *testing.T) {
	r := newRig(t, bustest.Partitions(1))
	r.cfg.Dedup.MaxBytes = minMaxBytes
	n, sent := minMaxBytes/entryBytes, 0
	more := func() {
		errs := make(chan error, n)
		for range n {
			id := fmt.Sprintf("e%d", sent)
			sent++
			go func() {
				errs <- r.sender.Send(t.Context(), topics.Raw, "00o1/"+id, rawOf(event(id, 1), id, "poller", false))
			}()
		}
		for range n {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
	stop := r.start()
	for range 3 {
		more()
	}
	r.records(sent)
	stop()
	r.start()
	more()
	r.records(sent)
	found := r.b.Read(t, topics.Detections)
	if len(found) != 1 {
		t.Fatalf("%d findings, want 1", len(found))
	}
	d := new(record.Detection)
	if err := r.b.Serde().Decode(t.Context(), found[0].Value, d); err != nil {
		t.Fatal(err)
	}
	if d.Kind != "source_health" || d.RuleID != "dedup-memory-overflow" || d.Org != "00o1" || d.Fingerprint != string(found[0].Key) || d.Mode != "alert" {
		t.Errorf("%+v", d)
	}
}

// Without a masking key nothing is handled, readiness says why, and it begins when the key comes.
func TestWaitsForMaskingKey(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "key")
	s, err := New(Config{Masking: Masking{KeyFile: file}}, Deps{Bus: r.b.Bus(t, "one")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.send(rawOf(event("u", 1), "u", "poller", false))
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := s.Ready(ctx); err != nil && strings.Contains(err.Error(), file) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("readiness does not name the file: ", s.Ready(ctx))
		}
	}
	if n := len(r.b.Read(t, topics.SystemLog)); n != 0 {
		t.Errorf("%d records without a key", n)
	}
	if err := os.WriteFile(file, testKey, 0o600); err != nil {
		t.Fatal(err)
	}
	r.records(1)
	if err := s.Ready(ctx); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A seed is passed on each time it comes, is never a copy of anything, and leaves the live event of its uuid to be judged.
func TestSeedsPassBesideCopies(t *testing.T) {
	r := newRig(t)
	stop := r.start()
	seed := func(uuid string) *record.RawEvent {
		raw := rawOf(event(uuid, 1), uuid, "backfill", false)
		raw.Seed = true
		return raw
	}
	r.send(seed("before"), rawOf(event("before", 1), "before", "poller", false), rawOf(event("after", 1), "after", "poller", false), seed("after"))
	r.records(4)
	stop()
	r.start()
	r.send(seed("after"), rawOf(event("before", 1), "before", "poller", false), rawOf(event("last", 1), "last", "poller", false))
	all := r.records(6)
	for uuid, want := range map[string]int{"before": 1, "after": 2} {
		seeds := 0
		for _, ev := range all[uuid] {
			if ev.Derived.Copy != 1 || ev.Derived.Lane != "live" || ev.Derived.UUIDReused || ev.Derived.Partial {
				t.Errorf("%s: %+v", uuid, ev.Derived)
			}
			if ev.Derived.Seed {
				seeds++
			}
		}
		if seeds != want || len(all[uuid]) != want+1 {
			t.Errorf("%s: %d records, %d of them seeds", uuid, len(all[uuid]), seeds)
		}
	}
}
