package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oktawatch/oktawatch/pkg/bus/internal/hook"
)

// restore makes a unit ready: until it works, or the partition goes away.
func (s *session) restore(u *unit) {
	for tries := 1; u.ctx.Err() == nil; tries++ {
		err := s.tryRestore(u)
		if err == nil {
			s.mu.Lock()
			u.restored = s.units[u.n] == u
			s.mu.Unlock()
			s.wake()
			return
		}
		if u.ctx.Err() != nil {
			return
		}
		s.h.failed(fmt.Errorf("restore partition %d: %w", u.n, err))
		s.logFailure(tries, "restore, tried again", u.n, err)
		select {
		case <-time.After(backoff(tries)):
		case <-u.ctx.Done():
		}
	}
}

// tryRestore follows the state protocol: first the offset that is committed for certain, then the changelog's end, then the changelog up
// to that end, committed records only, and of those only what belongs to a transaction the offset knows of.
func (s *session) tryRestore(u *unit) error {
	ctx := u.ctx
	ask := map[string][]int32{}
	for _, name := range s.names {
		ask[name] = []int32{u.n}
	}
	var got map[string]map[int32]committedOffset
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		var err error
		if got, err = s.fetchOffsets(ctx, ask); err == nil {
			break
		}
		if !errors.Is(err, kerr.UnstableOffsetCommit) {
			return err
		}
		// A transaction of the last owner is still open. It ends by its owner, by a survivor, or by the broker.
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	starts := map[string][]int32{}
	for _, name := range s.names {
		if got[name][u.n].offset < 0 {
			starts[name] = []int32{u.n}
		}
	}
	first, err := listOffsets(ctx, s.cl, starts, earliest, readUncommitted)
	if err != nil {
		return err
	}
	for _, name := range s.names {
		u.offsets[name] = got[name][u.n].offset
		if o, ok := first[name][u.n]; ok {
			u.offsets[name] = o
		}
	}
	u.number, u.logged, u.rebuild = got[s.names[0]][u.n].number, got[s.names[0]][u.n].logged, nil
	if err := s.hooks.Step(ctx, hook.OffsetsFetched, u.n); err != nil {
		return err
	}
	if s.newTask == nil {
		return nil
	}
	var task Task
	if err := safely(func() (err error) { task, err = s.newTask(u.n); return err }); err != nil {
		return fmt.Errorf("make task: %w", err)
	}
	u.heal = nil
	if s.g.State != nil {
		u.goesOn(s.names, got)
		if err := s.readChangelog(u, task, got); err != nil {
			return fmt.Errorf("read %s: %w", s.g.State.Name, err)
		}
	}
	u.task = task
	return nil
}

func (s *session) readChangelog(u *unit, task Task, committed map[string]map[int32]committedOffset) error {
	ctx := u.ctx
	topic := s.g.State.Full(s.b.deps.Prefix)
	end, err := listOffsets(ctx, s.cl, map[string][]int32{topic: {u.n}}, latest, readUncommitted)
	if err != nil {
		return err
	}
	if err := s.hooks.Step(ctx, hook.EndFetched, u.n); err != nil {
		return err
	}
	whole := end[topic][u.n] >= u.logged
	if !whole {
		if err := s.lost(ctx, u, end[topic][u.n], committed); err != nil {
			return err
		}
	}
	torn := map[string][]byte{} // key: its last value that counts
	read := func(each func(r *kgo.Record, counts bool) error) error {
		return s.b.readTo(ctx, s.hooks.Dial, topic, u.n, end[topic][u.n], func(r *kgo.Record) error {
			number := int64(0)
			for _, h := range r.Headers {
				if h.Key == txnHeader {
					n, err := strconv.ParseInt(string(h.Value), 10, 64)
					if err != nil {
						return fmt.Errorf("%s/%d@%d: transaction number: %w", topic, u.n, r.Offset, err)
					}
					number = n
				}
			}
			return each(r, number <= u.number)
		})
	}
	err = read(func(r *kgo.Record, counts bool) error {
		if !counts || !whole {
			torn[string(r.Key)] = nil // of a changelog that is not whole nothing counts
			return nil
		}
		if err := safely(func() error { return task.Restore(r.Key, r.Value) }); err != nil {
			return fmt.Errorf("restore %s/%d@%d: %w", topic, u.n, r.Offset, err)
		}
		return nil
	})
	if err != nil || len(torn) == 0 {
		return err
	}
	// The broker kept a transaction's changelog and lost its offsets (only the embedded one can). What it wrote is not in the memory; so
	// that it does not count later on, or hide in compaction what does, the next transaction writes the true values again.
	err = read(func(r *kgo.Record, counts bool) error {
		if _, ok := torn[string(r.Key)]; ok && counts && whole {
			torn[string(r.Key)] = slices.Clone(r.Value)
		}
		return nil
	})
	for key, value := range torn {
		u.heal = append(u.heal, emitted{rec: &kgo.Record{Topic: topic, Partition: u.n, Key: []byte(key), Value: value}, state: true})
	}
	if whole {
		s.log.Warn("the changelog holds a transaction whose offsets were lost: ignored", "partition", u.n, "keys", len(torn))
	}
	return err
}

// fetchOffsets asks for committed offsets that no open transaction can still change: UNSTABLE_OFFSET_COMMIT while one can. None committed
// is -1.
func (s *session) fetchOffsets(ctx context.Context, of map[string][]int32) (map[string]map[int32]committedOffset, error) {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = s.name
	for topic, ns := range of {
		t := kmsg.NewOffsetFetchRequestGroupTopic()
		t.Topic, t.Partitions = topic, ns
		g.Topics = append(g.Topics, t)
	}
	req.Groups = append(req.Groups, g)
	resp, err := req.RequestWith(ctx, s.cl)
	if err != nil {
		return nil, s.b.explain("fetch offsets of "+s.name, err)
	}
	if len(resp.Groups) != 1 {
		return nil, fmt.Errorf("fetch offsets of %s: the broker answered for %d groups", s.name, len(resp.Groups))
	}
	if err := kerr.ErrorForCode(resp.Groups[0].ErrorCode); err != nil {
		return nil, s.b.explain("fetch offsets of "+s.name, err)
	}
	out := map[string]map[int32]committedOffset{}
	for _, t := range resp.Groups[0].Topics {
		out[t.Topic] = map[int32]committedOffset{}
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("fetch offset of %s/%d: %w", t.Topic, p.Partition, err)
			}
			c := committedOffset{offset: p.Offset, epoch: p.LeaderEpoch}
			if p.Metadata != nil {
				if err := c.read(*p.Metadata); err != nil {
					return nil, fmt.Errorf("committed offset of %s/%d: metadata %q: %w", t.Topic, p.Partition, *p.Metadata, err)
				}
			}
			out[t.Topic][p.Partition] = c
		}
	}
	for topic, ns := range of {
		for _, n := range ns {
			if _, ok := out[topic][n]; !ok {
				return nil, fmt.Errorf("fetch offset of %s/%d: no answer", topic, n)
			}
		}
	}
	return out, nil
}
