package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oktawatch/oktawatch/pkg/topics"
)

// readBackBytes is how much is asked for at once where several records are wanted.
const readBackBytes = 256 << 10

// ReadBack reads single records again, of which it is known that they were committed. Those that are gone (retention, compaction) are
// missing in the answer. Records that lie together cost one request: it is for a few now and then.
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
	wanted := slices.Compact(slices.Sorted(slices.Values(offsets)))
	for len(wanted) > 0 {
		offset := wanted[0]
		if wanted = wanted[1:]; offset < 0 {
			continue
		}
		size := int32(1) // a broker gives a batch whole, however little is asked for
		if len(wanted) > 0 {
			size = readBackBytes
		}
		records, err := fetchFrom(ctx, cl, name, resp.Topics[0].TopicID, leader, partition, offset, size)
		if err != nil {
			return nil, b.explain(what, err)
		}
		for _, r := range records {
			if r.Offset != offset {
				n, ok := slices.BinarySearch(wanted, r.Offset)
				if !ok {
					continue
				}
				wanted = slices.Delete(wanted, n, n+1)
			}
			m := Message{Topic: t, Partition: partition, Offset: r.Offset, Timestamp: r.Timestamp.UTC(), Key: r.Key, Value: r.Value, raw: r}
			for _, h := range r.Headers {
				m.Headers = append(m.Headers, Header(h))
			}
			out[r.Offset] = m
		}
	}
	return out, nil
}

// fetchFrom asks for records from an offset on, at least for those of the batch that holds it. None: it is gone.
func fetchFrom(ctx context.Context, cl *kgo.Client, topic string, id [16]byte, leader, partition int32, offset int64, size int32) ([]*kgo.Record, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel, req.SessionEpoch = 0, 0, size, readUncommitted, -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = topic, id
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch = partition, offset, size, -1
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
	if len(part.Records) == 0 {
		return nil, part.Err
	}
	return part.Records, nil
}
