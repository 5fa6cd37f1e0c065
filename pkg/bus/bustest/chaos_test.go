package bustest_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
)

// TestChaos kills, freezes, thaws and starts processes of one stage at random under load, two of them at times under one id.
func TestChaos(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	l := startLoad(t, b, 2*time.Millisecond)
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's own
	t.Logf("seed %d", seed)
	var live []*exec.Cmd
	ids := []string{"a", "b", "c"}
	for _, id := range ids {
		live = append(live, spawn(t, b, id))
	}
	done := func(what string, args ...any) { t.Logf(what, args...) }
	for range 9 {
		time.Sleep(time.Duration(500+rnd.IntN(1200)) * time.Millisecond)
		i := rnd.IntN(len(ids))
		switch rnd.IntN(4) {
		case 0:
			done("kill %s and start it again", ids[i])
			kill(live[i])
			live[i] = spawn(t, b, ids[i])
		case 1:
			done("kill %s, start it again later", ids[i])
			kill(live[i])
			time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
			live[i] = spawn(t, b, ids[i])
		case 2:
			long := time.Duration(500+rnd.IntN(8500)) * time.Millisecond
			done("freeze %s for %v", ids[i], long)
			_ = live[i].Process.Signal(syscall.SIGSTOP)
			time.Sleep(long)
			_ = live[i].Process.Signal(syscall.SIGCONT)
		default:
			done("freeze %s, start another under its id, thaw it", ids[i])
			old := live[i]
			_ = old.Process.Signal(syscall.SIGSTOP)
			live[i] = spawn(t, b, ids[i])
			time.Sleep(time.Duration(200+rnd.IntN(2000)) * time.Millisecond)
			_ = old.Process.Signal(syscall.SIGCONT)
			ended := make(chan error, 1)
			go func() { ended <- old.Wait() }()
			select {
			case <-ended:
			case <-time.After(15 * time.Second):
				t.Errorf("the older %s lives on", ids[i])
			}
		}
	}
	sent := l.stop()
	exactly(t, b, sent)
	all := 0
	for _, n := range sent {
		all += n
	}
	t.Logf("%d records", all)
}

// TestReplicatedBrokerKilled kills one of three brokers in the middle.
func TestReplicatedBrokerKilled(t *testing.T) {
	dir := os.Getenv("KAFKA_TEST_DIR")
	if os.Getenv("KAFKA_REPLICATED_SEEDS") == "" || dir == "" {
		t.Skip("needs three brokers that can be killed: make test-kafka runs it")
	}
	script, err := filepath.Abs("../../../.ci/kafka/kafka")
	if err != nil {
		t.Fatal(err)
	}
	b := begin(t, countingTopics()...)
	run(t, b, "one", nil, newCounter)
	run(t, b, "two", nil, newCounter)
	w := watch(t, b)
	l := startLoad(t, b, 5*time.Millisecond)
	flows := func() {
		bustest.Until(t, 60*time.Second, func() error {
			for _, key := range l.keys {
				if n, at := w.seen(key); n == 0 || time.Since(at) > time.Second {
					return fmt.Errorf("%s: %d counts", key, n)
				}
			}
			return nil
		})
	}
	flows()
	broker := func(what string) {
		out, err := exec.CommandContext(t.Context(), script, what, dir, "3").CombinedOutput()
		if err != nil {
			t.Fatalf("%s broker: %v: %s", what, err, out)
		}
	}
	w.forget()
	broker("kill")
	time.Sleep(time.Second)
	flows()
	var longest time.Duration
	for _, gap := range w.gaps() {
		longest = max(longest, gap)
	}
	t.Logf("longest silence after a broker was killed: %v", longest)
	broker("start")
	time.Sleep(5 * time.Second)
	flows()
	exactly(t, b, l.stop())
}
