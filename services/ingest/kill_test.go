package ingest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/record"
)

// A child is this test binary run again as an ingest process, so that it can be killed as one.
const childEnv = "OKTAWATCH_TEST_INGEST_CHILD"

type childSetup struct {
	Seeds            []string
	Registry, Prefix string
	Instance         string
	Config           Config
}

func child() {
	var c childSetup
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &c); err != nil {
		panic(err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	b, err := bus.New(bus.Config{Brokers: c.Seeds}, bus.Deps{Log: log, Serde: record.NewSerde(c.Registry, c.Prefix), Prefix: c.Prefix, InstanceID: c.Instance})
	if err != nil {
		panic(err)
	}
	s, err := New(c.Config, Deps{Log: log, Bus: b})
	if err != nil {
		panic(err)
	}
	if err := s.Run(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(0)
}

func (x *bench) spawn(instance string, cfg Config) *exec.Cmd {
	x.t.Helper()
	setup, err := json.Marshal(childSetup{Seeds: x.b.Seeds, Registry: x.b.RegistryURL, Prefix: x.b.Prefix, Instance: instance, Config: cfg})
	if err != nil {
		x.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		x.t.Fatal(err)
	}
	cmd := exec.CommandContext(x.t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+string(setup))
	cmd.Stderr = &x.log
	if err := cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	return cmd
}

// A poller killed again and again under load goes on where its last transaction ended: nothing is missing, nothing stands twice.
func TestKilledPollerResumes(t *testing.T) {
	x := newBench(t, oktasim.Config{Rate: 200})
	cfg := x.config(rolePoller)
	cfg.Sources[0].Poll.Limit = 20 // many transactions
	for range 6 {
		cmd := x.spawn("a", cfg)
		time.Sleep(800*time.Millisecond + rand.N(900*time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	if n := len(x.raws()); n == 0 {
		t.Fatal("no process came as far as writing an event")
	}
	x.org.Pause(true)
	x.start("a", cfg)
	bustest.Until(t, 40*time.Second, func() error { return x.complete(wayPoller, 1) })
}

// A delivery that was answered 200 stands, whatever happens to the process after; what was not answered Okta sends again.
func TestKilledHookKeepsWhatItAnswered(t *testing.T) {
	x := newBench(t, oktasim.Config{Rate: 100})
	cfg := x.config(roleHook)
	for range 4 {
		cmd := x.spawn("a", cfg)
		time.Sleep(1200*time.Millisecond + rand.N(500*time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	x.org.Pause(true)
	have := map[string]bool{}
	for _, r := range x.raws() {
		have[r.UUID] = true
	}
	acked := 0
	bustest.Until(t, 20*time.Second, func() error {
		if s := x.org.Truth().Summary(); s.Hook["queued"] > 0 {
			return fmt.Errorf("deliveries %v", s.Hook)
		}
		return nil
	})
	for e := range x.org.Truth().Events(oktasim.Query{}) {
		if e.Hook != "acked" {
			continue
		}
		acked++
		if !have[e.UUID] {
			t.Errorf("event %s was answered 200 and is missing", e.UUID)
		}
	}
	if acked == 0 {
		t.Error("no delivery was answered")
	}
}
