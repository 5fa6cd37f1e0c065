package svc

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Ready is what a service needs: broker, topics, schemas. What is missing is named, with what to do.
func TestReadiness(t *testing.T) {
	b := bustest.Start(t, topics.Raw, topics.Raw.DLQ())
	wait := func(ctx context.Context, _ *Process) error { <-ctx.Done(); return nil }
	run := func(sets ...string) *started {
		args := []string{"--set", freePort, "--set", "kafka.brokers=" + strings.Join(b.Seeds, ","), "--set", "registry.url=" + b.RegistryURL, "--set", "topics.prefix=" + b.Prefix}
		for _, s := range sets {
			args = append(args, "--set", s)
		}
		return start(t, nil, wait, args...)
	}
	s := run()
	code, body := get(t, "http://"+s.adminAddr(t)+"/readyz?verbose")
	if code != 503 || !strings.Contains(body, "[+] kafka\n") || !strings.Contains(body, "[+] schemas\n") ||
		!strings.Contains(body, b.Prefix+"okta.sources.v1") || !strings.Contains(body, "run oktawatch topics apply") {
		t.Errorf("without its topics: %d\n%s", code, body)
	}
	if _, err := topics.Apply(t.Context(), b.Admin(), topics.Plan{Prefix: b.Prefix, Partitions: topics.EmbeddedPartitions, Replication: b.Replication}); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 20*time.Second, func() error {
		if code, body := get(t, "http://"+s.adminAddr(t)+"/readyz"); code != 200 || body != "ok\n" {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	s.signals <- syscall.SIGTERM
	s.wait(t, ExitOK)

	s = run("topics.prefix=" + b.Prefix + "other.") // its schemas were never registered
	_, body = get(t, "http://"+s.adminAddr(t)+"/readyz?verbose")
	if !strings.Contains(body, "[-] schemas: ") || !strings.Contains(body, "schemas apply") {
		t.Errorf("without its schemas:\n%s", body)
	}
	s.signals <- syscall.SIGTERM
	s.wait(t, ExitOK)
}

func TestInstanceTakenHasItsOwnCode(t *testing.T) {
	s := start(t, nil, func(context.Context, *Process) error { return fmt.Errorf("ingest.sources: %w", bus.ErrInstanceTaken) }, "--set", freePort)
	s.wait(t, ExitInstanceTaken)
	if !strings.Contains(s.err.String(), "give each process its own") {
		t.Errorf("stderr %s", s.err.String())
	}
}

// One file serves every service: the sections of others are passed over, a misspelt one is not.
func TestOneFileForAll(t *testing.T) {
	file := write(t, good+"normalize: {masking: {key_file: /x}}\nsim: {users: 3}\ndata_dir: /d\n")
	var cfg ingestSection
	s := start(t, []string{"OKTAWATCH_DETECT__RULES_DIR=/r", "OKTAWATCH_INGEST__WAIT=9s"}, func(_ context.Context, p *Process) error { return p.Config(&cfg) }, "--config", file, "--set", freePort, "--set", "alert.workers=3")
	s.wait(t, ExitOK)
	if cfg.Wait != 9*time.Second {
		t.Errorf("config %+v", cfg)
	}
}
