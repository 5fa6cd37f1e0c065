package bustest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/oktawatch/oktawatch/pkg/bus/localbroker"
	"github.com/oktawatch/oktawatch/pkg/registry"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Processor time is counted by process. For a figure that is a stage's alone the broker has to work in another process: the test binary
// starts itself again, told by this variable.
const apart = "BUSTEST_APART"

// Apart has the Start calls of this test use an in-memory broker and a registry in a process of their own, which runs the test of the
// given name: that one calls ServeApart and nothing else. With KAFKA_SEEDS set the broker is in another process anyway.
func Apart(t testing.TB, test string) {
	t.Helper()
	if os.Getenv("KAFKA_SEEDS") != "" {
		return
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), apart+"=1")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr
	life, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	w.Close()
	if err != nil {
		t.Fatalf("start the broker's process: %v", err)
	}
	t.Cleanup(func() {
		life.Close()
		_ = cmd.Wait()
	})
	var at addresses
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &at)
	}
	if err != nil {
		t.Fatalf("start the broker's process: test %s of this package does not call ServeApart? %v", test, err)
	}
	t.Setenv("KAFKA_SEEDS", strings.Join(at.Seeds, ","))
	t.Setenv("SCHEMA_REGISTRY_URL", at.Registry)
}

type addresses struct {
	Seeds    []string
	Registry string
}

// ServeApart is the broker's process; in a process that Apart did not start it does nothing.
func ServeApart(t testing.TB) {
	t.Helper()
	if os.Getenv(apart) == "" {
		return
	}
	cluster, err := localbroker.Open(kfake.NumBrokers(1), kfake.DefaultNumPartitions(topics.EmbeddedPartitions))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed by Run
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.New(registry.Config{}, registry.Deps{Listener: ln})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = r.Run(t.Context()) }()
	<-r.Ready()
	if err := json.NewEncoder(os.NewFile(3, "addresses")).Encode(addresses{cluster.ListenAddrs(), r.URL()}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the one who started us is gone
}
