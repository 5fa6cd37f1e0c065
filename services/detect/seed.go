package detect

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Learning begins with the first record of an org, of any type, so every partition of the state stage must hear how far back
// seeds go, also of those that no rule takes. The match stage, which remembers nothing, brings the time of each seed to one
// partition; that one tells the earliest of a batch to all, in the transaction of the batch. What comes twice changes nothing.

func putSeed(d *record.Derived, out *bus.Emit) error {
	when := d.Time
	m := &record.Match{Kind: engine.MatchSeed, Org: d.Org, Lane: d.Lane, Time: &when, Partition: -1, Offset: -1, Seed: true}
	if err := out.Put(topics.Matches, d.Org+"//"+d.Lane, m); err != nil {
		return fmt.Errorf("write the time of a seed: %w", err)
	}
	return nil
}

func (t *stateTask) takeSeed(m bus.Message, match *record.Match, w *judged) {
	switch {
	case match.Time == nil:
		w.out.DeadLetter(m, classDecode, errors.New("a seed without a time"))
	case match.Kind == engine.MatchSeeded:
		t.state.Seeded(match.Org, match.Lane, *match.Time)
	default:
		l := lane{match.Org, match.Lane}
		if w.seeds == nil {
			w.seeds = map[lane]time.Time{}
		}
		if old, ok := w.seeds[l]; !ok || match.Time.Before(old) {
			w.seeds[l] = *match.Time
		}
	}
}

func (w *judged) tellSeeds() error {
	if len(w.seeds) == 0 {
		return nil
	}
	t := w.t
	if t.parts == 0 {
		n, err := t.s.bus.Partitions(w.ctx, topics.Matches)
		if err != nil {
			return err
		}
		t.parts = n
	}
	for _, l := range slices.SortedFunc(maps.Keys(w.seeds), func(a, b lane) int {
		return cmp.Or(cmp.Compare(a.org, b.org), cmp.Compare(a.lane, b.lane))
	}) {
		when := w.seeds[l]
		m := &record.Match{Kind: engine.MatchSeeded, Org: l.org, Lane: l.lane, Time: &when, Partition: -1, Offset: -1, Seed: true}
		for n := range t.parts {
			if err := w.out.Put(topics.Matches, l.org+"//"+l.lane, m, bus.ToPartition(n)); err != nil {
				return fmt.Errorf("tell how far back the seeds of %s go: %w", l, err)
			}
		}
	}
	return nil
}
