package bus

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OpenTransaction is a transaction that a partition's log shows begun and not ended.
type OpenTransaction struct {
	Topic      string // full name
	Partition  int32
	ProducerID int64
	Epoch      int16
}

// AbortOpen writes an abort marker for each of them, as a coordinator does. It is for the embedded broker after a crash, whose
// coordinator forgets what was open: a cluster's own does this itself.
func (b *Bus) AbortOpen(ctx context.Context, open []OpenTransaction) error {
	if len(open) == 0 {
		return nil
	}
	cl, err := b.client()
	if err != nil {
		return err
	}
	req := kmsg.NewPtrWriteTxnMarkersRequest()
	for _, o := range open {
		t := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
		t.Topic, t.Partitions = o.Topic, []int32{o.Partition}
		m := kmsg.NewWriteTxnMarkersRequestMarker()
		m.ProducerID, m.ProducerEpoch, m.Topics = o.ProducerID, o.Epoch, []kmsg.WriteTxnMarkersRequestMarkerTopic{t}
		req.Markers = append(req.Markers, m)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return b.explain("end transactions that a crash left open", err)
	}
	answered := 0
	for _, m := range resp.Markers {
		for _, t := range m.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return fmt.Errorf("end a transaction that a crash left open in %s/%d: %w", t.Topic, p.Partition, err)
				}
				answered++
			}
		}
	}
	if answered != len(open) {
		return fmt.Errorf("end transactions that a crash left open: the broker answered for %d of %d", answered, len(open))
	}
	return nil
}
