package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Ends are where the partitions of a topic ended at one time: what had been written to it by then, and more, lies before them.
type Ends struct {
	topic topics.Topic
	at    map[int32]int64
}

// Partitions counts the partitions of a topic.
func (b *Bus) Partitions(ctx context.Context, t topics.Topic) (int32, error) {
	cl, err := b.client()
	if err != nil {
		return 0, err
	}
	counts, err := b.partitions(ctx, cl, t.Full(b.deps.Prefix))
	return counts[t.Full(b.deps.Prefix)], err
}

// Ends notes the ends of a topic, open transactions included.
func (b *Bus) Ends(ctx context.Context, t topics.Topic) (Ends, error) {
	at, err := b.offsetsOf(ctx, t, latest)
	return Ends{topic: t, at: at}, err
}

// Passed tells whether a group has done with everything before some ends. What it is about to commit does not count yet. A partition
// that holds nothing before its end, or no longer does, counts as done.
func (b *Bus) Passed(ctx context.Context, g topics.Group, e Ends) (bool, error) {
	starts, err := b.offsetsOf(ctx, e.topic, earliest)
	if err != nil {
		return false, err
	}
	cl, err := b.client()
	if err != nil {
		return false, err
	}
	topic, name := e.topic.Full(b.deps.Prefix), g.Name(b.deps.Prefix)
	t := kmsg.NewOffsetFetchRequestGroupTopic()
	t.Topic = topic
	for n, end := range e.at {
		if starts[n] < end {
			t.Partitions = append(t.Partitions, n)
		}
	}
	if len(t.Partitions) == 0 {
		return true, nil
	}
	group := kmsg.NewOffsetFetchRequestGroup()
	group.Group, group.Topics = name, append(group.Topics, t)
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Groups = append(req.Groups, group)
	what := "fetch offsets of " + name
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return false, b.explain(what, err)
	}
	if len(resp.Groups) != 1 {
		return false, fmt.Errorf("%s: the broker answered for %d groups", what, len(resp.Groups))
	}
	if err := kerr.ErrorForCode(resp.Groups[0].ErrorCode); err != nil {
		if errors.Is(err, kerr.GroupIDNotFound) { // it has never run
			return false, nil
		}
		return false, b.explain(what, err)
	}
	done := 0
	for _, rt := range resp.Groups[0].Topics {
		for _, p := range rt.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return false, b.explain(what, err)
			}
			if rt.Topic == topic && p.Offset >= e.at[p.Partition] {
				done++
			}
		}
	}
	return done == len(t.Partitions), nil
}

func (b *Bus) offsetsOf(ctx context.Context, t topics.Topic, timestamp int64) (map[int32]int64, error) {
	cl, err := b.client()
	if err != nil {
		return nil, err
	}
	name := t.Full(b.deps.Prefix)
	counts, err := b.partitions(ctx, cl, name)
	if err != nil {
		return nil, err
	}
	ask := map[string][]int32{}
	for n := range counts[name] {
		ask[name] = append(ask[name], n)
	}
	got, err := listOffsets(ctx, cl, ask, timestamp, readUncommitted)
	if err != nil {
		return nil, b.explain("find where "+name+" starts and ends", err)
	}
	return got[name], nil
}
