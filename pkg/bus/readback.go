package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oktawatch/oktawatch/pkg/topics"
)

// ReadBack reads single records again, of which it is known that they were committed. Those that are gone (retention, compaction) are
// missing in the answer. Every offset costs a request: it is for a few records now and then.
func (b *Bus) ReadBack(ctx context.Context, t topics.Topic, partition int32, offsets ...int64) (map[int64]Message, error) {
	out := make(map[int64]Message, len(offsets))
	if len(offsets) == 0 {
		return out, nil
	}
	cl, err := b.client()
	if err != nil {
		return nil, err
	}
	name := t.Full(b.deps.Prefix)
	what := fmt.Sprintf("read back from %s/%d", name, partition)
	meta := kmsg.NewPtrMetadataRequest()
	mt := kmsg.NewMetadataRequestTopic()
	mt.Topic = &name
	meta.Topics = append(meta.Topics, mt)
	resp, err := meta.RequestWith(ctx, cl)
	if err != nil {
		return nil, b.explain(what, err)
	}
	if len(resp.Topics) != 1 {
		return nil, fmt.Errorf("%s: the broker answered for %d topics", what, len(resp.Topics))
	}
	if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil {
		return nil, b.explain(what, err)
	}
	leader := int32(-1)
	for _, p := range resp.Topics[0].Partitions {
		if p.Partition == partition {
			leader = p.Leader
		}
	}
	if leader < 0 {
		return nil, fmt.Errorf("%s: the partition has no leader", what)
	}
	for _, offset := range offsets {
		if _, ok := out[offset]; ok || offset < 0 {
			continue
		}
		r, err := fetchOne(ctx, cl, name, resp.Topics[0].TopicID, leader, partition, offset)
		if err != nil {
			return nil, b.explain(what, err)
		}
		if r == nil {
			continue
		}
		m := Message{Topic: t, Partition: partition, Offset: offset, Timestamp: r.Timestamp.UTC(), Key: r.Key, Value: r.Value, raw: r}
		for _, h := range r.Headers {
			m.Headers = append(m.Headers, Header(h))
		}
		out[offset] = m
	}
	return out, nil
}

// fetchOne asks for the one batch that holds an offset: a broker gives a batch whole, however little is asked for. Nil: it is gone.
func fetchOne(ctx context.Context, cl *kgo.Client, topic string, id [16]byte, leader, partition int32, offset int64) (*kgo.Record, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel, req.SessionEpoch = 0, 0, 1, readUncommitted, -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = topic, id
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch = partition, offset, 1, -1
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	answer, err := cl.Broker(int(leader)).Request(ctx, req)
	if err != nil {
		return nil, err
	}
	got := answer.(*kmsg.FetchResponse) //nolint:forcetypeassert // the request's own answer
	if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
		return nil, err
	}
	if len(got.Topics) != 1 || len(got.Topics[0].Partitions) != 1 {
		return nil, fmt.Errorf("the broker answered for %d topics", len(got.Topics))
	}
	rp := &got.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(rp.ErrorCode); err != nil {
		if errors.Is(err, kerr.OffsetOutOfRange) {
			return nil, nil
		}
		return nil, err
	}
	part, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Offset: offset, Topic: topic, Partition: partition}, rp, kgo.DefaultDecompressor(), nil)
	for _, r := range part.Records {
		if r.Offset == offset {
			return r, nil
		}
	}
	return nil, part.Err
}
