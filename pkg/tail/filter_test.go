package tail

import (
	"slices"
	"testing"

	"github.com/segmentio/kafka-go/protocol/fetch"
)

// entry is one batch of the model's log.
type entry struct {
	batch
	visible bool // once the transactions are decided
}

// model plays the steps that bytes describe on a partition: producers that begin, write, commit and abort, interleaved,
// and one that writes outside transactions. It returns the log up to the last stable offset and the aborted transactions,
// each with the offset of its marker.
func model(steps []byte) (log []entry, aborted []fetch.ResponseTransaction, markers []int64) {
	type open struct {
		first   int64
		batches []int
	}
	producers := map[int64]*open{}
	offset := int64(0)
	for _, s := range steps {
		id := int64(s>>2) % 5
		switch {
		case s&3 == 3 && producers[id] != nil: // the transaction ends
			o := producers[id]
			abort := s&0x80 != 0
			log = append(log, entry{batch: batch{base: offset, producer: id, transactional: true, control: true, abort: abort}})
			if abort {
				aborted = append(aborted, fetch.ResponseTransaction{ProducerID: id, FirstOffset: o.first})
				markers = append(markers, offset)
			} else {
				for _, i := range o.batches {
					log[i].visible = true
				}
			}
			delete(producers, id)
			offset++
		case s&3 == 2: // outside a transaction, by a producer that may have one open elsewhere
			log = append(log, entry{batch{base: offset, producer: -1}, true})
			offset += 1 + int64(s>>5)
		default:
			if producers[id] == nil {
				producers[id] = &open{first: offset}
			}
			producers[id].batches = append(producers[id].batches, len(log))
			log = append(log, entry{batch: batch{base: offset, producer: id, transactional: true}})
			offset += 1 + int64(s>>5)
		}
	}
	stable := offset
	for _, o := range producers {
		stable = min(stable, o.first)
	}
	log = slices.DeleteFunc(log, func(e entry) bool { return e.base >= stable })
	return log, aborted, markers
}

// check fetches from every batch on, as a broker would answer, and compares with what the model knows.
func check(t *testing.T, steps []byte) {
	log, aborted, markers := model(steps)
	for from := range log {
		var list []fetch.ResponseTransaction
		for i, a := range aborted {
			if markers[i] >= log[from].base { // brokers list what touches the range, here in the order of the markers
				list = append(list, a)
			}
		}
		f := newFilter(list)
		for _, e := range log[from:] {
			if got := f.keep(e.batch); got != e.visible {
				t.Fatalf("steps %x: from offset %d the batch at %d (%+v) is kept: %v, want %v", steps, log[from].base, e.base, e.batch, got, e.visible)
			}
		}
	}
}

func TestFilter(t *testing.T) {
	for name, steps := range map[string][]byte{
		"nothing":                        {},
		"plain":                          {2, 2, 2},
		"one committed":                  {0, 0, 3},
		"one aborted":                    {0, 0, 0x83},
		"aborted, then committed":        {0, 0x83, 0, 3},
		"committed, then aborted":        {0, 3, 0, 0x83, 2},
		"two, crossing":                  {0, 4, 0, 3, 4, 0x87, 2},
		"two aborted, crossing":          {0, 4, 0, 0x83, 4, 2, 0x87, 0, 3},
		"aborted around plain":           {0, 2, 0, 2, 0x83, 2},
		"open at the end":                {0, 3, 0, 4, 7},
		"a producer aborts again":        {0, 0x83, 0, 0x83, 0, 3},
		"marker of a transaction before": {0, 4, 0x83, 4, 0x87, 0, 3},
	} {
		t.Run(name, func(t *testing.T) { check(t, steps) })
	}
}

func FuzzFilter(f *testing.F) {
	f.Add([]byte{0, 4, 0, 0x83, 4, 2, 0x87, 0, 3})
	f.Add([]byte{0, 8, 12, 16, 2, 0x83, 0x8b, 0xf, 0x93})
	f.Fuzz(func(t *testing.T, steps []byte) {
		if len(steps) > 200 {
			return // bounded
		}
		check(t, steps)
	})
}
