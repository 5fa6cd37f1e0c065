package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// groupOwns is the assignment as the broker knows it: instance id to partitions of the first input.
func groupOwns(t *testing.T, b *bustest.Broker, g topics.Group) map[string][]int32 {
	t.Helper()
	out := map[string][]int32{}
	for _, m := range describe(t, b, g).Members {
		a, ok := m.Assigned.AsConsumer()
		if !ok || m.InstanceID == nil {
			continue
		}
		for _, at := range a.Topics {
			if at.Topic == g.Inputs[0].Full(b.Prefix) {
				out[*m.InstanceID] = at.Partitions
			}
		}
	}
	return out
}

func describe(t *testing.T, b *bustest.Broker, g topics.Group) kadm.DescribedGroup {
	t.Helper()
	all, err := b.Admin().DescribeGroups(t.Context(), g.Name(b.Prefix))
	if err != nil {
		t.Fatal(err)
	}
	return all[g.Name(b.Prefix)]
}

// TestKilledMemberReturns kills a member's process under load and starts it again: it reads on at once, and nothing is lost or repeated.
func TestKilledMemberReturns(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	l := startLoad(t, b, 2*time.Millisecond)
	w := watch(t, b)
	cmd := spawn(t, b, "one")
	for range 3 {
		bustest.Until(t, 20*time.Second, func() error {
			for _, key := range l.keys {
				if n, at := w.seen(key); n == 0 || time.Since(at) > 200*time.Millisecond {
					return fmt.Errorf("%s: %d counts", key, n)
				}
			}
			return nil
		})
		kill(cmd)
		before := map[string]int{}
		for _, key := range l.keys {
			before[key], _ = w.seen(key)
		}
		time.Sleep(100 * time.Millisecond) // whatever it had sent has come
		began := time.Now()
		cmd = spawn(t, b, "one")
		bustest.Until(t, 20*time.Second, func() error {
			for _, key := range l.keys {
				if _, at := w.seen(key); at.Before(began) {
					return fmt.Errorf("%s: nothing yet", key)
				}
			}
			return nil
		})
		took := time.Since(began)
		t.Logf("reads again in all partitions after %v", took)
		if took > 2*time.Second {
			t.Errorf("reads again after %v, want under 2 s", took)
		}
	}
	exactly(t, b, l.stop())
}

// TestKilledMemberStaysAway kills one of three for good: the others take over within 10 s, and nobody's records stand still for longer.
func TestKilledMemberStaysAway(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	l := startLoad(t, b, 2*time.Millisecond)
	w := watch(t, b)
	two, three := run(t, b, "two", nil, newCounter), run(t, b, "three", nil, newCounter)
	cmd, halt := spawnHalting(t, b, "one")
	var lost []int32
	bustest.Until(t, 30*time.Second, func() error {
		lost = groupOwns(t, b, topics.NormalizeDedup)["one-dedup"]
		if len(lost) == 0 {
			return errors.New("the third has no partition yet")
		}
		if describe(t, b, topics.NormalizeDedup).State != "Stable" {
			return errors.New("the group is not stable")
		}
		for _, key := range l.keys {
			if n, at := w.seen(key); n == 0 || time.Since(at) > 200*time.Millisecond {
				return fmt.Errorf("%s: %d counts", key, n)
			}
		}
		return nil
	})
	w.forget()
	halt() // with a transaction open, which is what makes the others stand still too
	kill(cmd)
	killed := time.Now()
	bustest.Until(t, 30*time.Second, func() error {
		for _, n := range lost {
			if _, at := w.seen(l.keys[n]); at.Before(killed.Add(500 * time.Millisecond)) {
				return fmt.Errorf("nobody reads partition %d", n)
			}
		}
		return nil
	})
	took := time.Since(killed)
	gaps := w.gaps()
	t.Logf("partitions %v of the dead are read again after %v; longest silence by key: %v", lost, took, gaps)
	if took > 10*time.Second {
		t.Errorf("taken over after %v, want under 10 s", took)
	}
	for key, gap := range gaps {
		if gap > 10*time.Second {
			t.Errorf("%s stood still for %v", key, gap)
		}
	}
	exactly(t, b, l.stop())
	two.stop(t)
	three.stop(t)
}

// TestTwoWithOneID starts a second process under an id that is in use: the older one stops with its own error, and nothing is repeated.
func TestTwoWithOneID(t *testing.T) {
	t.Parallel()
	for _, why := range []string{"busy", "idle"} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			b := begin(t, countingTopics()...)
			var l *load
			if why == "busy" {
				l = startLoad(t, b, 2*time.Millisecond)
			}
			older := run(t, b, "same", nil, newCounter)
			owning(t, 4, older)
			if l != nil {
				time.Sleep(500 * time.Millisecond)
			}
			newer := run(t, b, "same", nil, newCounter)
			select {
			case <-older.done:
				if !errors.Is(older.err, bus.ErrInstanceTaken) {
					t.Errorf("the older one ended with %v", older.err)
				}
				if strings.Contains(older.err.Error(), "\n") {
					t.Errorf("more than one line: %v", older.err)
				}
			case <-newer.done:
				t.Fatalf("the newer one ended: %v", newer.err)
			case <-time.After(15 * time.Second):
				t.Fatal("both live on")
			}
			owning(t, 4, newer)
			if l != nil {
				exactly(t, b, l.stop())
			}
			time.Sleep(2 * time.Second)
			owning(t, 4, newer)
			newer.stop(t)
		})
	}
}

// TestCleanStopLeaves stops one of two: the other has its partitions at once, and not when the session runs out.
func TestCleanStopLeaves(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	l := startLoad(t, b, 2*time.Millisecond)
	one, two := run(t, b, "one", nil, newCounter), run(t, b, "two", nil, newCounter)
	owning(t, 2, one, two)
	began := time.Now()
	one.stop(t)
	stopped := time.Since(began)
	owning(t, 4, two)
	took := time.Since(began)
	t.Logf("stopped after %v, taken over after %v", stopped, took)
	if took > 5*time.Second {
		t.Errorf("taken over after %v", took)
	}
	exactly(t, b, l.stop())
	two.stop(t)
}

// TestTogether has members of a group of two topics come, go and die: partition n of both is always at one member.
func TestTogether(t *testing.T) {
	t.Parallel()
	g := topics.AlertState
	b := bustest.StartWith(t, []bustest.Option{bustest.Partitions(12), bustest.OwnRegistry()}, append(g.Topics(), *g.State)...)
	var mu sync.Mutex
	seen := 0
	check := func() {
		for _, m := range describe(t, b, g).Members {
			a, ok := m.Assigned.AsConsumer()
			if !ok {
				continue
			}
			by := map[string][]int32{}
			for _, at := range a.Topics {
				slices.Sort(at.Partitions)
				by[at.Topic] = at.Partitions
			}
			first := by[g.Inputs[0].Full(b.Prefix)]
			for _, row := range g.Topics() {
				if !slices.Equal(first, by[row.Full(b.Prefix)]) {
					t.Errorf("%s: %s %v, %s %v", *m.InstanceID, g.Inputs[0].Name, first, row.Name, by[row.Full(b.Prefix)])
				}
			}
			mu.Lock()
			seen++
			mu.Unlock()
		}
	}
	live := map[string]*member{}
	join := func(id string) {
		live[id] = start(t, b, id, nil, func(ctx context.Context, one *bus.Bus) error {
			return one.RunTasks(ctx, g, newCounter)
		})
	}
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's own
	next := 0
	for range 12 {
		switch n := len(live); {
		case n < 2 || n < 5 && rnd.IntN(2) == 0:
			join(fmt.Sprintf("m%d", next))
			next++
		default:
			for id, m := range live {
				if rnd.IntN(3) == 0 {
					close(m.killed)
					<-m.done
				} else {
					m.stop(t)
				}
				delete(live, id)
				break
			}
		}
		for until := time.Now().Add(time.Duration(300+rnd.IntN(900)) * time.Millisecond); time.Now().Before(until); time.Sleep(30 * time.Millisecond) {
			check()
		}
	}
	// In the end everything has one owner.
	bustest.Until(t, 30*time.Second, func() error {
		check()
		all := 0
		for _, ns := range groupOwns(t, b, g) {
			all += len(ns)
		}
		owned := 0
		for _, m := range live {
			owned += len(m.owns())
		}
		if all != 12 || owned != 12 {
			return fmt.Errorf("%d partitions are assigned, %d are worked on", all, owned)
		}
		return nil
	})
	if seen < 20 {
		t.Errorf("looked at %d assignments only", seen)
	}
}
