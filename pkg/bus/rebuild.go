package bus

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A changelog can be lost: truncated, or deleted and made anew. The committed offset knows how far it had been written (`log`), so a
// restore sees that it is shorter. Then the task's memory is made again from what the input topics still hold: it reads them once more
// from their beginning up to where the group was, and of what it writes only the changelog counts, for the rest has been written
// before. The offsets go back meanwhile, so that whoever waits for this stage waits, and carry how far the way is (`until`), so that
// another member goes on with it.

// rebuild is how far a unit's memory has to be made again.
type rebuild struct {
	to  map[string]int64 // by topic: offset of the first record that was not yet handled
	met map[string]bool  // topics that had a record at or beyond it
}

// until is what a committed offset carries; 0: the topic is not read again.
func (r *rebuild) until(topic string) int64 {
	if r == nil {
		return 0
	}
	return r.to[topic]
}

// beyond tells whether a record comes only after the rebuild. It is dropped, and read again then.
func (r *rebuild) beyond(rec *kgo.Record) bool {
	if r == nil || rec.Offset < r.to[rec.Topic] {
		return false
	}
	r.met[rec.Topic] = true
	return true
}

// rebuilt tells whether the memory is complete.
func (u *unit) rebuilt() bool {
	if u.rebuild == nil || len(u.pending) > 0 {
		return false
	}
	for topic, to := range u.rebuild.to {
		if u.offsets[topic] < to && !u.rebuild.met[topic] {
			return false
		}
	}
	return true
}

// rebuilt ends a rebuild: what was dropped meanwhile is read now.
func (s *session) rebuilt(u *unit) {
	for topic, to := range u.rebuild.to {
		u.offsets[topic] = max(u.offsets[topic], to)
	}
	u.rebuild = nil
	back := map[string]map[int32]kgo.EpochOffset{}
	u.rewindTo(back)
	s.rewind(back)
	s.log.Warn("the memory of a partition is complete again", "partition", u.n)
}

func (u *unit) rewindTo(all map[string]map[int32]kgo.EpochOffset) {
	for topic, offset := range u.offsets {
		if all[topic] == nil {
			all[topic] = map[int32]kgo.EpochOffset{}
		}
		all[topic][u.n] = kgo.EpochOffset{Epoch: -1, Offset: offset}
	}
}

// rewind has the client read on from other offsets, unless the partition is being taken away.
func (s *session) rewind(to map[string]map[int32]kgo.EpochOffset) {
	if len(to) == 0 {
		return
	}
	s.busy.Lock()
	defer s.busy.Unlock()
	s.mu.Lock()
	for topic, byPart := range to {
		for n := range byPart {
			if s.units[n] == nil {
				delete(to[topic], n)
			}
		}
	}
	s.mu.Unlock()
	s.cl.SetOffsets(to)
}

// lost begins a rebuild when the changelog is shorter than the committed offset says.
func (s *session) lost(ctx context.Context, u *unit, end int64, committed map[string]map[int32]committedOffset) error {
	topic := s.g.State.Full(s.b.deps.Prefix)
	u.rebuild = &rebuild{to: map[string]int64{}, met: map[string]bool{}}
	ask := map[string][]int32{}
	for _, name := range s.names {
		ask[name] = []int32{u.n}
	}
	first, err := listOffsets(ctx, s.cl, ask, earliest, readUncommitted)
	if err != nil {
		return err
	}
	for _, name := range s.names {
		at := committed[name][u.n]
		begin := first[name][u.n]
		if to := max(at.offset, at.until); to > begin {
			u.rebuild.to[name] = to
			u.offsets[name] = begin
		}
	}
	s.b.m.rebuilds.With(s.label).Inc()
	s.log.Error("the changelog is shorter than it was: it was truncated or made anew. The memory is made again from what the input still holds; what was decided by older records is forgotten, and numbers of updates may be given again",
		"topic", topic, "partition", u.n, "end", end, "was", u.logged, "from", fmt.Sprint(u.offsets), "to", fmt.Sprint(u.rebuild.to))
	u.logged = end
	return nil
}

// goesOn takes up a rebuild that another member began.
func (u *unit) goesOn(names []string, committed map[string]map[int32]committedOffset) {
	for _, name := range names {
		if c := committed[name][u.n]; c.until > max(c.offset, 0) {
			if u.rebuild == nil {
				u.rebuild = &rebuild{to: map[string]int64{}, met: map[string]bool{}}
			}
			u.rebuild.to[name] = c.until
		}
	}
}

// stateOnly drops what does not go to the changelog.
func (e *Emit) stateOnly() {
	e.recs = slices.DeleteFunc(e.recs, func(em emitted) bool { return !em.state })
	e.dead = 0
}

// noteLogged puts the changelog's end, known now that its records stand, into the offsets.
func (s *session) noteLogged(turns []turn, offsets map[string]map[int32]committedOffset) {
	for _, t := range turns {
		c, ok := offsets[s.names[0]][t.u.n]
		if !ok {
			continue
		}
		for _, em := range t.e.recs {
			if em.state {
				c.logged = max(c.logged, em.rec.Offset+1)
			}
		}
		offsets[s.names[0]][t.u.n] = c
	}
}

// committedOffset is an offset with what its metadata says, of the form `txn=7 log=120 until=90`.
type committedOffset struct {
	offset   int64
	epoch    int32
	number   int64 // of the task's last transaction
	logged   int64 // end of the changelog behind it
	until    int64 // while the memory is made again: where it is complete
	numbered bool
}

const (
	metaLogged = "log"
	metaUntil  = "until"
)

func (c committedOffset) metadata() *string {
	var words []string
	if c.numbered {
		words = append(words, txnHeader+"="+strconv.FormatInt(c.number, 10))
	}
	if c.logged > 0 {
		words = append(words, metaLogged+"="+strconv.FormatInt(c.logged, 10))
	}
	if c.until > 0 {
		words = append(words, metaUntil+"="+strconv.FormatInt(c.until, 10))
	}
	text := strings.Join(words, " ")
	return &text
}

// read takes back what metadata says. What it does not know was written by somebody else.
func (c *committedOffset) read(metadata string) error {
	for word := range strings.FieldsSeq(metadata) {
		name, value, _ := strings.Cut(word, "=")
		var into *int64
		switch name {
		case txnHeader:
			into, c.numbered = &c.number, true
		case metaLogged:
			into = &c.logged
		case metaUntil:
			into = &c.until
		default:
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		*into = n
	}
	return nil
}
