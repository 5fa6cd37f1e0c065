//go:build long

package oktawatch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/services/oktawatch/internal/embedded"
	"github.com/oktawatch/oktawatch/services/oktawatch/internal/fleet"
)

// rounds is how often each process is killed; OKTAWATCH_KILLS sets another number.
func rounds(t *testing.T, usual int) int {
	if s := os.Getenv("OKTAWATCH_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return usual
}

// simulated runs an org in the test's own process, so that its ground truth outlives every process that is killed.
func simulated(t *testing.T, rate float64) *oktasim.Org {
	t.Helper()
	org, err := oktasim.New(oktasim.Config{
		Rate: rate, ScenarioEvery: 500 * time.Millisecond, ScenarioPace: -1, LateShare: 0.01, LateBy: 2 * time.Second,
		Limits: map[string]int{"logs": -1, "other": -1}, HookDailyCap: -1, DataDir: t.TempDir(), MaxEvents: 2_000_000, // the ground truth is kept whole
	})
	if err != nil {
		t.Fatal(err)
	}
	live(t, org)
	return org
}

// live runs an org until the test ends.
func live(t *testing.T, org *oktasim.Org) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- org.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	<-org.Ready()
}

// freePort is a port that was free a moment ago: a process that is killed and started again needs the same one.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// settings writes a configuration file of the common sections and those of the named services, and returns its path.
func settings(t *testing.T, org *oktasim.Org, common string, services ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"token": oktasim.DefaultToken, "hook": "hook-secret-of-a-test", "key": "0123456789abcdef0123456789abcdef"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "rules", "test"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rules", "test", sprayID+".yaml"), []byte(sprayRule), 0o600); err != nil {
		t.Fatal(err)
	}
	hook := freePort(t)
	sections := map[string]string{
		"ingest": fmt.Sprintf(`ingest:
  sources:
    - id: sim
      org_url: %s
      token_file: %s
      poll: {interval: 100ms, rate_share: 1}
  hook:
    public_url: http://%s
    listen: %s
    secret_files: [%s]
`, org.URL(), filepath.Join(dir, "token"), hook, hook, filepath.Join(dir, "hook")),
		"detect":    fmt.Sprintf("detect:\n  rules_dir: %s\n", filepath.Join(dir, "rules")),
		"normalize": fmt.Sprintf("normalize:\n  masking: {key_file: %s}\n", filepath.Join(dir, "key")),
	}
	text := common
	for _, name := range services {
		text += sections[name]
	}
	path := filepath.Join(dir, "oktawatch.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// outside reads the topics as an outsider.
func outside(t *testing.T, brokers []string, registry, prefix string) *tail.Reader {
	t.Helper()
	r, err := tail.Open(tail.Config{Brokers: brokers, Registry: registry, Prefix: prefix}, tail.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// seen is what stands in a topic: the records of each identity.
type seen struct {
	by     map[tail.ID][]stored
	ids    map[string]bool
	count  tail.Count
	failed error
}

type stored struct {
	where string
	key   string
	plain []byte
}

// read reads a topic to its end. With plain it keeps what the records say.
func read(t *testing.T, r *tail.Reader, topic topics.Topic, plain bool) seen {
	t.Helper()
	s := seen{by: map[tail.ID][]stored{}, ids: map[string]bool{}}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s.count, s.failed = r.Count(ctx, topic.Name, tail.Options{Exit: true}, func(rec tail.Record, id tail.ID) {
		st := stored{where: fmt.Sprintf("%d@%d", rec.Partition, rec.Offset), key: string(rec.Key)}
		if plain {
			b, err := rec.Plain(ctx)
			if err != nil {
				t.Error(err)
			}
			st.plain = b
		}
		s.by[id] = append(s.by[id], st)
		s.ids[id.ID] = true
	})
	return s
}

// expected are the rules that judge an event by its type alone, so that the ground truth says how many detections there must be.
var expected = map[string]string{
	"user.session.start":          "user-login",
	"system.api_token.create":     "api-token-created",
	"user.account.lock":           "account-locked",
	"user.lifecycle.suspend":      "user-suspended",
	"user.mfa.factor.reset_all":   "mfa-all-factors-reset",
	"user.account.reset_password": "password-reset",
}

// settled waits until every event of the ground truth has come out and every expected detection is there.
func settled(t *testing.T, r *tail.Reader, org *oktasim.Org, within time.Duration) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		missing, undetected := lost(t, r, org)
		if missing == 0 && undetected == 0 && org.Truth().Summary().Waiting == 0 {
			return
		}
		if time.Now().After(deadline) {
			events := read(t, r, topics.SystemLog, false)
			told, detections := 0, detected(t, r)
			for e := range org.Truth().Events(oktasim.Query{}) {
				if told == 20 {
					break
				}
				rule := expected[e.EventType]
				if !events.ids[e.UUID] {
					told++
					t.Logf("missing: %s %s, published %s, seq %d", e.EventType, e.UUID, e.Published, e.Seq)
				} else if rule != "" && !detections[rule+" "+e.UUID] {
					told++
					for id, at := range events.by {
						if id.ID == e.UUID {
							t.Logf("undetected by %s: %s, published %s, copy %d at %v", rule, e.UUID, e.Published, id.N, at)
						}
					}
				}
			}
			t.Fatalf("%s after the last event %d events and %d detections are still missing", within, missing, undetected)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func lost(t *testing.T, r *tail.Reader, org *oktasim.Org) (missing, undetected int) {
	t.Helper()
	events := read(t, r, topics.SystemLog, false)
	detections := detected(t, r)
	for e := range org.Truth().Events(oktasim.Query{}) {
		if !events.ids[e.UUID] {
			missing++
		}
		if rule := expected[e.EventType]; rule != "" && !detections[rule+" "+e.UUID] {
			undetected++
		}
	}
	return missing, undetected
}

// detected are the rules and events that detections speak of.
func detected(t *testing.T, r *tail.Reader) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, records := range read(t, r, topics.Detections, true).by {
		var d struct {
			RuleID string   `json:"rule_id"`
			UUIDs  []string `json:"evidence_uuids"`
		}
		if err := json.Unmarshal(records[len(records)-1].plain, &d); err != nil {
			t.Fatal(err)
		}
		for _, u := range d.UUIDs {
			found[d.RuleID+" "+u] = true
		}
	}
	return found
}

// TestKillEachServiceUnderLoad kills each service process in turn while events flow and asks that nothing is missing and
// nothing is there twice: on kfake, which lives on in this process, and on Apache Kafka (KAFKA_SEEDS is set).
func TestKillEachServiceUnderLoad(t *testing.T) {
	b := bustest.Start(t)
	org := simulated(t, 150)
	common := fmt.Sprintf("kafka: {brokers: [%q]}\nregistry: {url: %q}\ntopics: {prefix: %q}\nlog: {level: info}\nadmin: {listen: off}\ninstance_id: one\n",
		b.Seeds[0], b.RegistryURL, b.Prefix)
	names := []string{"ingest", "normalize", "detect", "alert"}
	f := fleet.New(t, fleet.Build(t, names...))
	procs := map[string]*fleet.Process{}
	for _, name := range names {
		procs[name] = f.Start(name, name, nil, "--config", settings(t, org, common, name))
	}
	r := outside(t, b.Seeds, b.RegistryURL, b.Prefix)

	// A reader follows the detections all the while, as another team's would.
	following, stopFollowing := context.WithCancel(t.Context())
	defer stopFollowing()
	followed := make(chan tail.Count, 1)
	go func() {
		c, _ := r.Count(following, topics.Detections.Name, tail.Options{}, func(tail.Record, tail.ID) {})
		followed <- c
	}()

	for round := range rounds(t, 4) {
		for _, name := range names {
			time.Sleep(time.Duration(1000+rand.IntN(1500)) * time.Millisecond)
			f.Kill(procs[name])
			time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
			f.Restart(procs[name])
			t.Logf("round %d: killed and restarted %s at %d events", round, name, org.Truth().Summary().Emitted)
		}
	}
	time.Sleep(2 * time.Second)
	org.Pause(true)
	settled(t, r, org, 90*time.Second)
	windowed(t, r, org)
	for _, name := range names {
		f.Stop(procs[name])
	}
	missing, undetected := lost(t, r, org)
	for _, topic := range []topics.Topic{topics.SystemLog, topics.Detections} {
		s := read(t, r, topic, true)
		for id, records := range s.by {
			for _, again := range records[1:] {
				t.Logf("%s: %v twice, at %s and %s:\n%s\n%s", topic.Name, id, records[0].where, again.where, records[0].plain, again.plain)
			}
		}
		t.Logf("%s: %d records, %d ids, %d repeated, %d unreadable", topic.Name, s.count.Records, s.count.Distinct, s.count.Repeated, s.count.Unreadable)
		if s.count.Repeated > 0 || s.count.Unreadable > 0 || s.failed != nil {
			t.Errorf("%s: %d repeated, %d unreadable, %v", topic.Name, s.count.Repeated, s.count.Unreadable, s.failed)
		}
	}
	sum := org.Truth().Summary()
	t.Logf("Okta sent %d events (%d late, hook %v); missing: %d, undetected: %d", sum.Emitted, sum.Late, sum.Hook, missing, undetected)
	stopFollowing()
	c := <-followed
	t.Logf("the reader that followed: %d records, %d repeated, %d unreadable", c.Records, c.Repeated, c.Unreadable)
	if c.Repeated > 0 || c.Unreadable > 0 {
		t.Errorf("a reader that followed %s saw %d repeated and %d unreadable records", topics.Detections.Name, c.Repeated, c.Unreadable)
	}
}

// TestKillTheWholeProcess kills a whole `oktawatch up`, broker and all, at full load. Nothing may be missing; what is there
// twice must be the same.
func TestKillTheWholeProcess(t *testing.T) {
	org := simulated(t, 400)
	config := settings(t, org, "log: {level: info}\n", "ingest", "normalize", "detect")
	f := fleet.New(t, fleet.Build(t, "oktawatch"))
	data := os.Getenv("OKTAWATCH_KEEP_DATA") // to look at what a failed run left
	if data == "" {
		data = t.TempDir()
	}
	env := fleet.Env(map[string]string{
		"OKTAWATCH_DATA_DIR": data, "OKTAWATCH_ADMIN__LISTEN": "off",
		"OKTAWATCH_EMBEDDED__KAFKA_LISTEN": freePort(t), "OKTAWATCH_EMBEDDED__REGISTRY_LISTEN": freePort(t),
	})
	p := f.Start("up", "oktawatch", env, "up", "--config", config)
	kills := rounds(t, 200)
	for n := range kills {
		// Sometimes in the middle of its start, mostly in the middle of its work.
		time.Sleep(time.Duration(300+rand.IntN(2200)) * time.Millisecond)
		if ended, err := p.Ended(); ended {
			t.Fatalf("after %d kills it ended by itself: %v", n, err)
		}
		f.Kill(p)
		f.Restart(p)
		if n%20 == 19 {
			t.Logf("%d kills, %d events", n+1, org.Truth().Summary().Emitted)
		}
	}
	org.Pause(true)
	run := waitRun(t, data)
	r := outside(t, []string{run.Kafka}, run.Registry, "")
	settled(t, r, org, 3*time.Minute)
	windowed(t, r, org)
	missing, undetected := lost(t, r, org)
	for _, topic := range []topics.Topic{topics.SystemLog, topics.Detections} {
		s := read(t, r, topic, true)
		differing := 0
		for id, records := range s.by {
			for _, again := range records[1:] {
				if bytes.Contains(again.plain, []byte(sprayID)) {
					continue // an update that was lost with its offsets is made anew of what has come by then
				}
				if again.key != records[0].key || !bytes.Equal(same(t, again.plain), same(t, records[0].plain)) {
					differing++
					if differing < 5 {
						t.Errorf("%s: %v at %s and %s differ:\n%s\n%s", topic.Name, id, records[0].where, again.where, records[0].plain, again.plain)
					}
				}
			}
		}
		t.Logf("%s: %d records, %d ids, %d repeated, %d of them with other content, %d unreadable", topic.Name, s.count.Records, s.count.Distinct, s.count.Repeated, differing, s.count.Unreadable)
		if s.count.Unreadable > 0 || s.failed != nil {
			t.Errorf("%s: %d unreadable, %v", topic.Name, s.count.Unreadable, s.failed)
		}
	}
	t.Logf("%d kills; Okta sent %d events; missing: %d, undetected: %d", kills, org.Truth().Summary().Emitted, missing, undetected)
	f.Stop(p)
}

// same leaves out what says where a record's raw event lay: a page written again lies elsewhere.
func same(t *testing.T, plain []byte) []byte {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(plain, &v); err != nil {
		t.Fatal(err)
	}
	forget(v)
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// placed are the fields that tell of one delivery and not of the event.
var placed = []string{"raw_partition", "raw_offset", "raw_timestamp", "received", "partition", "offset"}

func forget(v any) {
	switch x := v.(type) {
	case map[string]any:
		maps.DeleteFunc(x, func(k string, _ any) bool { return slices.Contains(placed, k) })
		for _, e := range x {
			forget(e)
		}
	case []any:
		for _, e := range x {
			forget(e)
		}
	}
}

func waitRun(t *testing.T, data string) embedded.Run {
	t.Helper()
	for range 100 {
		if run, err := embedded.ReadRun(data); err == nil {
			return run
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("oktawatch up did not write run.json within 10 s")
	return embedded.Run{}
}
