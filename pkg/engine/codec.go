package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// heldOf reads what Take wrote into a Match.
func heldOf(c *rule.Compiled, m *record.Match) (held, error) {
	h := held{
		time: m.Time.UnixMilli(), uuid: strings.Clone(m.UUID), partition: m.Partition, offset: m.Offset,
		copy: uint8(min(max(m.Copy, 1), 255)), //nolint:gosec // 1 to 255
	}
	flags, n := binary.Uvarint(m.Fields)
	if n <= 0 {
		return h, fmt.Errorf("match of event %s for rule %s: its fields are broken", m.UUID, m.RuleID)
	}
	b := m.Fields[n:]
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return h, fmt.Errorf("match of event %s for rule %s: its fields are broken", m.UUID, m.RuleID)
	}
	h.flags, h.values = uint32(flags), uint32(size) //nolint:gosec // bounded by what was written
	h.blob = append([]byte(nil), b[n:]...)
	if len(c.Detection.SeenBefore) > 0 {
		key := make([]string, len(c.Detection.GroupBy))
		for i, p := range c.Detection.GroupBy {
			key[i] = m.Key[p.Name]
		}
		h.sub = groupText(c, key, false)
	}
	set := func(bit uint8, is bool) {
		if is {
			h.bits |= bit
		}
	}
	set(bitExcepted, m.Excepted)
	set(bitSeed, m.Seed)
	set(bitPartial, m.Partial)
	set(bitBackfill, m.Backfill)
	if m.Published != nil {
		h.bits |= bitPublished
		h.published = m.Published.UnixMilli()
	}
	return h, nil
}

// keys gives the parts of the group's key.
func (g *group) keys() []string { return keyOf(g.m.c, g.id) }

// The sorts of entries of a changelog.
const (
	entryLane   = 'W' // a lane's watermark
	entryBegin  = 'L' // first record since a rule's memory began, and the earliest seed
	entryHeld   = 'E' // a held event
	entrySent   = 'D' // a detection that was written
	entryMeta   = 'G' // how far a group is decided and forgotten
	entrySeen   = 'S' // a last sighting
	entryBucket = 'B' // a closed bucket
)

func key(entry byte, parts ...string) string {
	size := 1 + 2*len(parts)
	for _, p := range parts {
		size += len(p)
	}
	b := append(make([]byte, 0, min(size, 512)), entry)
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return string(b)
}

func parts(k string) (entry byte, out []string, err error) {
	errBroken := errors.New("a key of the changelog is broken")
	if k == "" {
		return 0, nil, errBroken
	}
	entry = k[0]
	b := []byte(k[1:])
	for len(b) > 0 {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return 0, nil, errBroken
		}
		out = append(out, string(b[w:w+int(n)])) //nolint:gosec // not above len(b)
		b = b[w+int(n):]                         //nolint:gosec // not above len(b)
	}
	return entry, out, nil
}

func keyOfLane(l *lane) string    { return key(entryLane, l.org, l.lane) }
func keyOfBegin(m *memory) string { return key(entryBegin, m.lane.org, m.lane.lane, m.id, m.hash) }

func (g *group) key(entry byte, more string) string {
	return key(entry, g.m.lane.org, g.m.lane.lane, g.m.ruleID.id, g.m.hash, g.id, more)
}

func keyOfHeld(g *group, h *held) string {
	return key(entryHeld, g.m.lane.org, g.m.lane.lane, g.m.ruleID.id, g.m.hash, g.id, h.uuid, h.sub)
}

func keyOfSent(g *group, id string) string  { return g.key(entrySent, id) }
func keyOfMeta(g *group) string             { return g.key(entryMeta, "") }
func keyOfSeen(g *group, sub string) string { return g.key(entrySeen, sub) }
func keyOfBucket(g *group, start int64) string {
	return g.key(entryBucket, string(appendInt(nil, start)))
}
func appendInt(b []byte, n int64) []byte { return binary.AppendVarint(b, n) }
func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBegin(b []byte, m *memory) []byte {
	b = appendInt(b, m.begin)
	if m.seeded != never {
		b = appendInt(b, m.seeded)
	}
	return b
}

func appendMeta(b []byte, g *group) []byte {
	b = appendInt(b, g.floor)
	if g.truncated {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendHeld(b []byte, h *held) []byte {
	if b == nil {
		b = make([]byte, 0, 48+len(h.blob))
	}
	b = append(b, 1, h.bits, h.copy)
	for _, n := range []int64{h.time, h.after, h.published, h.offset, int64(h.partition), int64(h.flags), int64(h.values)} {
		b = appendInt(b, n)
	}
	return append(b, h.blob...)
}

func appendSent(b []byte, d *sent) []byte {
	flags := byte(0)
	for i, is := range []bool{d.final, d.withdrawn, d.pending} {
		if is {
			flags |= 1 << i
		}
	}
	b = append(b, 1, flags, byte(d.severity))
	b = binary.LittleEndian.AppendUint64(b, d.digest)
	b = binary.LittleEndian.AppendUint64(b, d.content)
	for _, n := range []int64{d.update, d.first, d.last, d.count, d.at, d.slotEnd} {
		b = appendInt(b, n)
	}
	b = appendText(b, d.title)
	return append(b, d.carry...)
}

func appendBucket(b []byte, k *bucket) []byte {
	version := byte(1)
	if k.past != nil {
		version = 2
	}
	b = binary.AppendUvarint(append(b, version), uint64(len(k.nums)))
	for _, n := range k.nums {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(n))
	}
	for _, m := range k.keys {
		b = binary.AppendUvarint(b, uint64(len(m)))
		for _, key := range sortedKeys(m) {
			b = appendInt(appendText(b, key), m[key])
		}
	}
	if k.past != nil {
		b = binary.AppendUvarint(b, uint64(len(k.past.records)))
		for _, n := range k.past.records {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
	}
	return b
}

// reader reads what the append functions wrote.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) int() int64 {
	n, w := binary.Varint(r.b)
	if w <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[w:]
	return n
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) fixed() uint64 {
	if len(r.b) < 8 {
		r.bad = true
		return 0
	}
	n := binary.LittleEndian.Uint64(r.b)
	r.b = r.b[8:]
	return n
}

func (r *reader) size() int {
	n, w := binary.Uvarint(r.b)
	if w <= 0 || n > uint64(len(r.b)) {
		r.bad = true
		return 0
	}
	r.b = r.b[w:]
	return int(n) //nolint:gosec // not above len(b)
}

func (r *reader) text() string {
	n := r.size()
	if r.bad || n > len(r.b) {
		r.bad = true
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// Restore takes one entry of a changelog, in any order; nil values are ignored. Restored must be called when all are
// there, before anything else.
func (s *State) Restore(k string, value []byte) error {
	if value == nil {
		return nil
	}
	entry, p, err := parts(k)
	if err != nil {
		return err
	}
	r := &reader{b: value}
	broken := func() error {
		if r.bad {
			return fmt.Errorf("an entry %c of the changelog is broken", entry)
		}
		return nil
	}
	want := map[byte]int{entryLane: 2, entryBegin: 4, entryHeld: 7, entrySent: 6, entryMeta: 6, entrySeen: 6, entryBucket: 6}[entry]
	if want == 0 || want != len(p) {
		return fmt.Errorf("the changelog has an entry of an unknown sort %q", entry)
	}
	l := s.lane(p[0], p[1])
	if entry == entryLane {
		l.watermark = max(l.watermark, r.int())
		return broken()
	}
	m := s.memory(l, ruleID{p[2], p[3]}, false)
	if entry == entryBegin {
		m.begin = r.int()
		if len(r.b) > 0 {
			m.seeded = r.int()
		}
		return broken()
	}
	g := m.groups[p[4]]
	if g == nil {
		g = &group{m: m, id: p[4], floor: ever, swept: ever, dirty: ever, due: never}
		m.groups[g.id] = g
	}
	switch entry {
	case entryHeld:
		h := held{uuid: p[5], sub: p[6]}
		if r.byte() != 1 {
			r.bad = true
		}
		h.bits, h.copy = r.byte(), r.byte()
		h.time, h.after, h.published, h.offset = r.int(), r.int(), r.int(), r.int()
		h.partition, h.flags, h.values = int32(r.int()), uint32(r.int()), uint32(r.int()) //nolint:gosec // as written
		if r.bad || int(h.values) > len(r.b) {
			r.bad = true
			return broken()
		}
		h.blob = append([]byte(nil), r.b...)
		g.events = append(g.events, h)
	case entrySent:
		var d sent
		if r.byte() != 1 {
			r.bad = true
		}
		flags := r.byte()
		d.final, d.withdrawn, d.pending = flags&1 != 0, flags&2 != 0, flags&4 != 0
		d.severity = int32(r.byte())
		d.digest, d.content = r.fixed(), r.fixed()
		d.update, d.first, d.last, d.count, d.at, d.slotEnd = r.int(), r.int(), r.int(), r.int(), r.int(), r.int()
		d.title = r.text()
		if len(r.b) > 0 {
			d.carry = append([]byte(nil), r.b...)
		}
		if g.dets == nil {
			g.dets = map[string]sent{}
		}
		g.dets[p[5]] = d
	case entryMeta:
		g.floor, g.truncated, g.meta = r.int(), r.byte() == 1, true
	case entrySeen:
		g.seen = append(g.seen, sighting{p[5], r.int()})
	case entryBucket:
		one := bucket{}
		start := &reader{b: []byte(p[5])}
		one.start = start.int()
		version := r.byte()
		if version != 1 && version != 2 {
			r.bad = true
		}
		for range r.size() {
			one.nums = append(one.nums, math.Float64frombits(r.fixed()))
		}
		for range max(len(one.nums)-1, 0) {
			var counts map[string]int64
			for range r.size() {
				if counts == nil {
					counts = map[string]int64{}
				}
				key := r.text()
				counts[key] = r.int()
			}
			one.keys = append(one.keys, counts)
		}
		if version == 2 {
			one.past = new(past)
			for range r.size() {
				one.past.records = append(one.past.records, r.fixed())
			}
		}
		g.buckets = append(g.buckets, one)
	}
	return broken()
}
