package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/bus/internal/hook"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestAbortUnderRebalance makes a transaction fail at each of its steps while a rebalance that keeps the partition goes on.
func TestAbortUnderRebalance(t *testing.T) {
	t.Parallel()
	for _, step := range []string{hook.Processed, hook.Produced, hook.OffsetsSent, hook.Committed} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := begin(t, countingTopics()...)
			l := startLoad(t, b, 5*time.Millisecond)
			var armed atomic.Bool
			at, rebalanced := make(chan struct{}), make(chan struct{})
			var once sync.Once
			first := run(t, b, "first", &hook.Hooks{At: func(ctx context.Context, s string, _ int32) error {
				if s != step || !armed.Load() {
					return nil
				}
				var err error
				once.Do(func() {
					close(at)
					select {
					case <-rebalanced:
					case <-time.After(20 * time.Second):
					}
					err = errors.New("told to fail here")
				})
				return err
			}}, newCounter)
			owning(t, 4, first)
			armed.Store(true)
			<-at
			second := run(t, b, "second", nil, newCounter)
			bustest.Until(t, 20*time.Second, func() error {
				if n := len(groupOwns(t, b, topics.NormalizeDedup)["second-dedup"]); n != 2 {
					return fmt.Errorf("the newcomer was given %d partitions", n)
				}
				return nil
			})
			close(rebalanced)
			owning(t, 2, first, second)
			exactly(t, b, l.stop())
		})
	}
}

// TestPausedOwner lets an owner stand still in the middle of a transaction while its partitions are given to another, and go on when
// that one restores. With the offsets already in the transaction, its commit counts and the successor's memory has it; without them it
// cannot commit any more.
func TestPausedOwner(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		owner, successor string
	}{
		"offsets sent, successor waits for stable offsets": {owner: hook.OffsetsSent},
		"records written, successor knows its offset":      {owner: hook.Produced, successor: hook.OffsetsFetched},
		"records written, successor knows the end":         {owner: hook.Produced, successor: hook.EndFetched},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := begin(t, countingTopics()...)
			at, goOn, gate := make(chan struct{}), make(chan struct{}), make(chan struct{})
			var steps atomic.Int32
			first := run(t, b, "first", &hook.Hooks{At: func(_ context.Context, s string, _ int32) error {
				if s == hook.Processed {
					<-gate
				}
				// What piles up behind the gate makes a transaction of all partitions, after the two that the client had begun to fetch.
				if s == tc.owner && steps.Add(1) == 3 {
					close(at)
					<-goOn
				}
				return nil
			}}, newCounter)
			owning(t, 4, first)
			l := startLoad(t, b, 5*time.Millisecond)
			time.Sleep(500 * time.Millisecond)
			close(gate)
			<-at
			reached := make(chan struct{}, 100)
			second := run(t, b, "second", &hook.Hooks{At: func(_ context.Context, s string, _ int32) error {
				if s == tc.successor {
					reached <- struct{}{}
				}
				return nil
			}}, newCounter)
			bustest.Until(t, 20*time.Second, func() error {
				if n := len(groupOwns(t, b, topics.NormalizeDedup)["second-dedup"]); n != 2 {
					return fmt.Errorf("the newcomer was given %d partitions", n)
				}
				return nil
			})
			if tc.successor != "" {
				select {
				case <-reached:
				case <-time.After(10 * time.Second):
					t.Error("the successor does not get there")
				}
			} else {
				time.Sleep(300 * time.Millisecond)
			}
			if n := len(second.owns()); n != 0 {
				t.Errorf("the successor works on %d partitions while the owner's transaction is open", n)
			}
			close(goOn)
			owning(t, 2, first, second)
			exactly(t, b, l.stop())
		})
	}
}

// TestRemovedMembersTick has a Tick write while the partition goes to another member: it must not count.
func TestRemovedMembersTick(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	var armed atomic.Bool
	at, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	first := run(t, b, "first", &hook.Hooks{At: func(_ context.Context, s string, _ int32) error {
		if s == hook.Produced {
			once.Do(func() {
				close(at)
				<-goOn
			})
		}
		return nil
	}}, func(n int32) (bus.Task, error) {
		return &counter{tick: func(c *counter, out *bus.Emit) error {
			if !armed.Load() {
				return nil
			}
			return c.add(fmt.Sprintf("tick%d", n), out)
		}}, nil
	})
	owning(t, 4, first)
	armed.Store(true)
	<-at
	armed.Store(false)
	second := run(t, b, "second", nil, newCounter)
	bustest.Until(t, 20*time.Second, func() error {
		if n := len(groupOwns(t, b, topics.NormalizeDedup)["second-dedup"]); n != 2 {
			return fmt.Errorf("the newcomer was given %d partitions", n)
		}
		return nil
	})
	close(goOn)
	owning(t, 2, first, second)
	time.Sleep(500 * time.Millisecond)
	if got := b.Read(t, topics.SystemLog); len(got) != 0 {
		t.Errorf("a Tick of a member that has lost its partition wrote %d records", len(got))
	}
	if got := b.Read(t, topics.NormalizeDedupState); len(got) != 0 {
		t.Errorf("a Tick of a member that has lost its partition changed the memory: %d records", len(got))
	}
}

// TestTickAloneSurvives has a Tick write memory without any record read, and looks for it after a restart.
func TestTickAloneSurvives(t *testing.T) {
	t.Parallel()
	b := begin(t, countingTopics()...)
	var ticks atomic.Int32
	m := run(t, b, "one", nil, func(n int32) (bus.Task, error) {
		return &counter{tick: func(c *counter, out *bus.Emit) error {
			if n != 1 || ticks.Add(1) > 3 {
				return nil
			}
			return c.add("tick", out)
		}}, nil
	})
	bustest.Until(t, 20*time.Second, func() error {
		if n := ticks.Load(); n < 4 {
			return fmt.Errorf("%d ticks", n)
		}
		return nil
	})
	m.stop(t)
	restored := make(chan int, 4)
	again := run(t, b, "one", nil, func(n int32) (bus.Task, error) {
		first := true
		return &counter{tick: func(c *counter, _ *bus.Emit) error {
			if n == 1 && first {
				first = false
				v, _ := c.counts.Get("tick")
				restored <- v
			}
			return nil
		}}, nil
	})
	select {
	case v := <-restored:
		if v != 3 {
			t.Errorf("after the restart the count is %d, want 3", v)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no tick after the restart")
	}
	again.stop(t)
}
