package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// watch looks after the dead, and after the lag, until the session ends.
func (s *session) watch() {
	tick := time.NewTicker(surviveEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-s.bg.Done():
			return
		case <-s.hooks.Killed:
			s.cancel()
			s.wake()
			return
		case <-tick.C:
		}
		if s.txnID == "" {
			continue
		}
		s.survive(s.bg)
		if i%2 == 0 {
			s.measureLag(s.bg)
		}
	}
}

// survive ends the transactions of members that are gone. What they had written unfinished would keep everyone who reads those
// partitions standing still until the broker's own timeout.
//
// The transactions are listed before the members: whoever has one open was a member before, so a successor that is just starting is
// not taken for dead.
func (s *session) survive(ctx context.Context) {
	open, err := s.openTransactions(ctx)
	if err != nil || len(open) == 0 {
		return
	}
	members, err := s.b.members(ctx, s.cl, s.name)
	if err != nil || members[s.instance] == "" {
		return // who is not a member itself is no survivor
	}
	for _, id := range open {
		instance := strings.TrimPrefix(id, s.name+".")
		if _, ok := members[instance]; ok || id == s.txnID {
			continue
		}
		if err := s.endTransaction(ctx, id); err != nil {
			if s.bg.Err() == nil {
				s.log.Warn("end the transaction of a member that is gone", "transactional_id", id, "err", err)
			}
			continue
		}
		s.log.Info("ended the transaction of a member that is gone", "transactional_id", id)
	}
}

// openTransactions lists the open transactions of the group's transactional ids.
func (s *session) openTransactions(ctx context.Context) ([]string, error) {
	if !s.can.listTransactions {
		return nil, nil
	}
	prefix := s.name + "."
	req := kmsg.NewPtrListTransactionsRequest()
	req.StateFilters = []string{"Ongoing"}
	req.DurationFilterMillis = -1
	req.TransactionalIDPattern = new("^" + regexp.QuoteMeta(prefix) + ".*") // brokers before 4.1 ignore it
	var ids []string
	for _, shard := range s.cl.RequestSharded(ctx, req) {
		if shard.Err != nil {
			continue // of a broker that is down; another one coordinates its transactions soon
		}
		resp := shard.Resp.(*kmsg.ListTransactionsResponse) //nolint:forcetypeassert // the request's own answer
		for _, t := range resp.TransactionStates {
			if t.TransactionState == "Ongoing" && strings.HasPrefix(t.TransactionalID, prefix) {
				ids = append(ids, t.TransactionalID)
			}
		}
	}
	return ids, nil
}

// members lists a group: instance id to member id.
func (b *Bus) members(ctx context.Context, cl *kgo.Client, group string) (map[string]string, error) {
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Groups = []string{group}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, fmt.Errorf("describe group %s: %w", group, err)
	}
	members := map[string]string{}
	for _, g := range resp.Groups {
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
			return nil, fmt.Errorf("describe group %s: %w", group, err)
		}
		for _, m := range g.Members {
			if m.InstanceID != nil {
				members[*m.InstanceID] = m.MemberID
			}
		}
	}
	return members, nil
}

// endTransaction aborts what is open under the id, by taking it over.
func (s *session) endTransaction(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return retryGroup(ctx, func() error {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionalID = &id
		req.TransactionTimeoutMillis = int32(stageTimeout.Milliseconds())
		req.ProducerID, req.ProducerEpoch = -1, -1
		resp, err := req.RequestWith(ctx, s.cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err != nil {
			return fmt.Errorf("take over %s: %w", id, err)
		}
		return nil
	})
}

// settle waits, a little, until the offsets of new partitions are stable: the client itself would look again only after a second.
func (s *session) settle(ctx context.Context, added map[string][]int32) {
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
		_, err := s.fetchOffsets(ctx, added)
		if !errors.Is(err, kerr.UnstableOffsetCommit) {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// taken says whether another process is a member under our instance id.
func (s *session) taken(ctx context.Context) bool {
	if s.member == "" {
		return false
	}
	cl, err := s.b.client()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	members, err := s.b.members(ctx, cl, s.name)
	return err == nil && members[s.instance] != "" && members[s.instance] != s.member
}

// goodbye leaves the group: the client does not do that for a static member.
func (s *session) goodbye(ctx context.Context) error {
	cl, err := s.b.client()
	if err != nil {
		return err
	}
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = s.name
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID, m.InstanceID, m.Reason = s.member, &s.instance, new("clean stop")
	req.Members = append(req.Members, m)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return fmt.Errorf("leave group %s: %w", s.name, err)
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return fmt.Errorf("leave group %s: %w", s.name, err)
	}
	return nil
}

// measureLag compares what is committed with what is written, both as of about now.
func (s *session) measureLag(ctx context.Context) {
	s.mu.Lock()
	ask := map[string][]int32{}
	for topic, byPart := range s.position {
		for n := range byPart {
			ask[topic] = append(ask[topic], n)
		}
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ends, err := listOffsets(ctx, s.cl, ask, latest, readUncommitted)
	if err != nil {
		return
	}
	var lag int64
	s.mu.Lock()
	for topic, byPart := range ends {
		for n, end := range byPart {
			if at, ok := s.position[topic][n]; ok {
				lag += max(end-at, 0)
			}
		}
	}
	s.mu.Unlock()
	s.h.set(func(h *StageHealth) { h.Lag = lag })
	s.b.m.lag.With(s.label).Set(float64(lag))
}

// Timestamps and isolation levels of ListOffsets.
const (
	latest          = -1
	earliest        = -2
	readUncommitted = 0
	readCommitted   = 1
)

func listOffsets(ctx context.Context, cl *kgo.Client, of map[string][]int32, timestamp int64, isolation int8) (map[string]map[int32]int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.IsolationLevel = -1, isolation
	for topic, ns := range of {
		t := kmsg.NewListOffsetsRequestTopic()
		t.Topic = topic
		for _, n := range ns {
			p := kmsg.NewListOffsetsRequestTopicPartition()
			p.Partition, p.Timestamp, p.CurrentLeaderEpoch = n, timestamp, -1
			t.Partitions = append(t.Partitions, p)
		}
		req.Topics = append(req.Topics, t)
	}
	if len(req.Topics) == 0 {
		return nil, nil
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	out := map[string]map[int32]int64{}
	for _, t := range resp.Topics {
		out[t.Topic] = map[int32]int64{}
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("list offsets of %s/%d: %w", t.Topic, p.Partition, err)
			}
			out[t.Topic][p.Partition] = p.Offset
		}
	}
	for topic, ns := range of {
		for _, n := range ns {
			if _, ok := out[topic][n]; !ok {
				return nil, fmt.Errorf("list offsets of %s/%d: no answer", topic, n)
			}
		}
	}
	return out, nil
}
