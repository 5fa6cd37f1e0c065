package tail

import (
	"cmp"
	"slices"

	"github.com/segmentio/kafka-go/protocol/fetch"
)

// filter tells committed batches from the rest within one fetch answer of one partition, as Kafka's own consumer does: the
// answer lists the aborted transactions that touch its range; each is in force from its first offset to the abort marker
// of its producer.
type filter struct {
	aborted []fetch.ResponseTransaction // by first offset, those not yet in force
	active  map[int64]struct{}          // producers inside an aborted transaction
}

// batch is what the filter needs to know of one.
type batch struct {
	base          int64
	producer      int64
	transactional bool
	control       bool
	abort         bool // a control batch that holds an abort marker
}

func newFilter(aborted []fetch.ResponseTransaction) *filter {
	if len(aborted) == 0 {
		return &filter{}
	}
	f := &filter{aborted: slices.Clone(aborted), active: map[int64]struct{}{}}
	slices.SortFunc(f.aborted, func(a, b fetch.ResponseTransaction) int { return cmp.Compare(a.FirstOffset, b.FirstOffset) })
	return f
}

// keep takes the batches of an answer in order and says which ones a reader may see.
func (f *filter) keep(b batch) bool {
	// A transaction's first offset is at most the base of its first batch, so the base is as good as the last offset here,
	// and it survives compaction.
	for len(f.aborted) > 0 && f.aborted[0].FirstOffset <= b.base {
		f.active[f.aborted[0].ProducerID] = struct{}{}
		f.aborted = f.aborted[1:]
	}
	if b.control {
		if b.abort {
			delete(f.active, b.producer)
		}
		return false
	}
	if !b.transactional {
		return true
	}
	_, dropped := f.active[b.producer]
	return !dropped
}
