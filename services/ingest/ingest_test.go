package ingest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/oktasim/simtest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
	}
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/patrickmn/go-cache.(*janitor).Run")) // of the SDK's token cache; ended by its finalizer
}

// The rows that ingest touches.
var rows = []topics.Topic{
	topics.Raw, topics.Raw.DLQ(), topics.Sources, topics.Cursors, topics.SourceStatus, topics.Detections,
}

const (
	token  = "00test-token-never-to-be-seen"
	secret = "hook-secret-never-to-be-seen-0123456789"
)

func unlimited() map[string]int {
	return map[string]int{"logs": -1, "users": -1, "user": -1, "devices": -1, "other": -1}
}

func simulate(t *testing.T, cfg oktasim.Config) *oktasim.Org {
	t.Helper()
	if cfg.Limits == nil {
		cfg.Limits = unlimited()
	}
	cfg.Users, cfg.APITokens = 30, []string{token}
	return simtest.Start(t, cfg)
}

// bench is a broker, an org and what its instances log.
type bench struct {
	t   *testing.T
	b   *bustest.Broker
	org *oktasim.Org
	dir string
	log buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }

func (b *buffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func newBench(t *testing.T, sim oktasim.Config) *bench {
	t.Helper()
	x := &bench{t: t, b: bustest.Start(t, rows...), org: simulate(t, sim), dir: t.TempDir()}
	x.put("token", token)
	x.put("secret", secret)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", x.log.String())
		}
	})
	return x
}

func (x *bench) put(name, text string) string {
	x.t.Helper()
	path := filepath.Join(x.dir, name)
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		x.t.Fatal(err)
	}
	return path
}

func (x *bench) config(roles ...string) Config {
	c := Config{
		Roles: roles,
		Sources: []SourceConfig{{
			ID: "acme", OrgURL: x.org.URL(), TokenFile: filepath.Join(x.dir, "token"), Poll: PollConfig{Interval: 50 * time.Millisecond},
		}},
	}
	for _, r := range roles {
		if r == roleHook {
			c.Hook = HookConfig{PublicURL: "auto", Listen: "127.0.0.1:0", SecretFiles: []string{filepath.Join(x.dir, "secret")}}
		}
	}
	return c
}

type instance struct {
	s      *Service
	m      *metrics.Set
	bus    *bus.Bus
	cancel context.CancelFunc
	done   chan error
	ready  func(ctx context.Context) error
}

// start runs an instance until stop, or the end of the test.
func (x *bench) start(id string, cfg Config, change ...func(*Deps)) *instance {
	x.t.Helper()
	in := &instance{m: metrics.NewSet(), done: make(chan error, 1), bus: x.b.Bus(x.t, id)}
	deps := Deps{
		Log: slog.New(slog.NewTextHandler(&x.log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("instance", id), Bus: in.bus, Metrics: in.m,
		Getenv: func(string) string { return "" },
		Ready:  func(_ string, check func(context.Context) error) { in.ready = check },
	}
	for _, c := range change {
		c(&deps)
	}
	s, err := New(cfg, deps)
	if err != nil {
		x.t.Fatal(err)
	}
	in.s = s
	ctx, cancel := context.WithCancel(context.Background())
	in.cancel = cancel
	go func() { in.done <- s.Run(ctx) }()
	x.t.Cleanup(func() { in.stop(x.t) })
	return in
}

func (in *instance) stop(t *testing.T) {
	t.Helper()
	if in.cancel == nil {
		return
	}
	in.cancel()
	in.cancel = nil
	select {
	case err := <-in.done:
		if err != nil {
			t.Errorf("run ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("did not stop in 20 s")
	}
	in.bus.Close()
}

// raws reads okta.raw.v1.
func (x *bench) raws() []*record.RawEvent {
	x.t.Helper()
	return decodeAll[record.RawEvent](x, topics.Raw)
}

func decodeAll[R any, P interface {
	*R
	record.Record
}](x *bench, row topics.Topic,
) []P {
	x.t.Helper()
	reader := x.b.Serde()
	var out []P
	for _, m := range x.b.Read(x.t, row) {
		if len(m.Value) == 0 {
			continue
		}
		r := P(new(R))
		if err := reader.Decode(x.t.Context(), m.Value, r); err != nil {
			x.t.Fatalf("decode %s: %v", m, err)
		}
		out = append(out, r)
	}
	return out
}

func hash(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

// complete checks that every event the org shows stands in okta.raw.v1 by that way, with its bytes; times is how often at most.
func (x *bench) complete(way string, times int) error {
	seen := map[string]int{}
	bad := ""
	for _, r := range x.raws() {
		if r.Source != way {
			continue
		}
		seen[r.SHA256]++
		if !r.Oversize && (hash(r.JSON) != r.SHA256 || int64(len(r.JSON)) != r.Size) {
			bad = r.UUID
		}
	}
	if bad != "" {
		return fmt.Errorf("the bytes of %s are not those of its hash", bad)
	}
	missing, n := 0, 0
	for e := range x.org.Truth().Events(oktasim.Query{Persisted: true}) {
		b, ok := x.org.Truth().Raw(e.Seq)
		if !ok {
			continue
		}
		n++
		switch got := seen[hash(b)]; {
		case got == 0:
			missing++
		case got > times:
			return fmt.Errorf("event %s stands %d times", e.UUID, got)
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d missing", missing, n)
	}
	return nil
}

func (x *bench) cursor() *record.Cursor {
	x.t.Helper()
	var last *record.Cursor
	for _, c := range decodeAll[record.Cursor](x, topics.Cursors) {
		last = c
	}
	return last
}

func (x *bench) findings(name string) (out []*record.Detection) {
	x.t.Helper()
	for _, d := range decodeAll[record.Detection](x, topics.Detections) {
		if d.RuleID == name {
			out = append(out, d)
		}
	}
	return out
}

// noSecrets looks for the secrets wherever they must not be.
func (x *bench) noSecrets() {
	x.t.Helper()
	places := map[string][]byte{"log": []byte(x.log.String())}
	for _, row := range rows {
		for _, m := range x.b.Read(x.t, row) {
			places[row.Name] = append(append(places[row.Name], m.Key...), m.Value...)
			for _, h := range m.Headers {
				places[row.Name] = append(places[row.Name], h.Value...)
			}
		}
	}
	for where, what := range places {
		for _, s := range []string{token, secret} {
			if bytes.Contains(what, []byte(s)) {
				x.t.Errorf("%s holds the secret %s", where, s)
			}
		}
	}
}

func TestPollCompletesThroughFaults(t *testing.T) {
	x := newBench(t, oktasim.Config{LateShare: 0.1, LateBy: 2 * time.Second})
	if err := x.org.Burst(2500); err != nil {
		t.Fatal(err)
	}
	for _, f := range []oktasim.Fault{
		{Kind: oktasim.FaultRateLimit, Count: 1, Delay: time.Second},
		{Kind: oktasim.FaultInternal, Count: 1},
		{Kind: oktasim.FaultReadOnly, Count: 1},
		{Kind: oktasim.FaultCut, Count: 1},
		{Kind: oktasim.FaultHTML, Count: 1},
		{Kind: oktasim.FaultConcurrency, Count: 1},
		{Kind: oktasim.FaultTimeout, Count: 2},
	} {
		if err := x.org.Inject(f); err != nil {
			t.Fatal(err)
		}
	}
	in := x.start("a", x.config(rolePoller))
	if err := x.org.Burst(700); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 40*time.Second, func() error {
		if s := x.org.Truth().Summary(); s.Waiting > 0 {
			return fmt.Errorf("%d are still late", s.Waiting)
		}
		return x.complete(wayPoller, 1)
	})
	if err := in.ready(t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
	in.stop(t)
	c := x.cursor()
	if c.Through == nil || time.Since(*c.Through) > 10*time.Second || c.Org != x.org.ID() || !strings.HasPrefix(c.Next, logsPath+"?") || c.Previous == "" {
		t.Errorf("cursor %+v", c)
	}
	x.noSecrets()
}

func TestHookDelivers(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	in := x.start("a", x.config(roleHook))
	bustest.Until(t, 10*time.Second, func() error {
		for _, s := range decodeAll[record.SourceStatus](x, topics.SourceStatus) {
			if s.HookState == "active" {
				return nil
			}
		}
		return fmt.Errorf("the hook is not active")
	})
	if err := x.org.Burst(200); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 10*time.Second, func() error {
		s := x.org.Truth().Summary()
		if s.Hook["acked"] == 0 || s.Hook["queued"] > 0 {
			return fmt.Errorf("deliveries %v", s.Hook)
		}
		return nil
	})
	got := 0
	for _, r := range x.raws() {
		if r.Source != wayHook || !r.Partial || r.DeliveryID == "" || r.Org != x.org.ID() || hash(r.JSON) != r.SHA256 {
			t.Fatalf("record %+v", r)
		}
		got++
	}
	if want := int(x.org.Truth().Summary().Hook["acked"]); got < want {
		t.Errorf("%d events, Okta had %d acknowledged", got, want)
	}
	in.stop(t)
	msgs := x.b.Read(t, topics.SourceStatus)
	if last := msgs[len(msgs)-1]; len(last.Value) != 0 {
		t.Errorf("the status was not taken back: %s", last)
	}
	x.noSecrets()
}
