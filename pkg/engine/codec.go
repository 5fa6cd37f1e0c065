package engine

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// heldOf reads what Take wrote into a Match. What is held points into the Match.
func heldOf(h *held, c *rule.Compiled, m *record.Match) error {
	*h = held{
		time: m.Time.UnixMilli(), partition: m.Partition, offset: m.Offset,
		copy: uint8(min(max(m.Copy, 1), 255)), //nolint:gosec // 1 to 255
	}
	flags, n := binary.Uvarint(m.Fields)
	if n <= 0 {
		return fmt.Errorf("match of event %s for rule %s: its fields are broken", m.UUID, m.RuleID)
	}
	b := m.Fields[n:]
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return fmt.Errorf("match of event %s for rule %s: its fields are broken", m.UUID, m.RuleID)
	}
	b = b[n:]
	h.flags, h.values, h.payload = uint32(flags), b[:size], b[size:] //nolint:gosec // as written
	if len(c.Detection.SeenBefore) > 0 {
		key := make([]string, len(c.Detection.GroupBy))
		for i, p := range c.Detection.GroupBy {
			key[i] = m.Key[p.Name]
		}
		h.sub = []byte(groupText(c, key, false))
	}
	set := func(bit uint16, is bool) {
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
	h.setUUID(m.UUID)
	return nil
}

// keys gives the parts of the group's key.
func (g *group) keys() []string { return keyOf(g.m.c, g.id) }

// keysOf is keys for the group that is judged; it holds until the next.
func (s *State) keysOf(g *group) []string {
	if s.keysFor != g {
		s.keysFor, s.keys = g, g.keys()
	}
	return s.keys
}

// The sorts of entries of a changelog.
const (
	entryLane   = 'W' // a lane's watermark
	entryBegin  = 'L' // first record since a rule's memory began, and the earliest seed
	entryHeld   = 'E' // a held event
	entrySent   = 'D' // a detection that was written
	entryMeta   = 'G' // how far a group is decided and forgotten
	entrySeen   = 'S' // a last sighting
	entryBucket = 'B' // a closed bucket
	entryGiven  = 'P' // an evidence event that rules over detections were given
	entryUnsure = 'U' // a pair that is not taken but may yet be
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

// parts reads a key into p and tells how many parts it has.
func parts(k string, p *[maxKeyParts]string) (entry byte, n int, err error) {
	errBroken := errors.New("a key of the changelog is broken")
	if k == "" {
		return 0, 0, errBroken
	}
	entry, k = k[0], k[1:]
	for k != "" {
		size, w := uint64(0), 0
		for shift := 0; ; shift += 7 {
			if w == len(k) || shift > 28 || n == maxKeyParts {
				return 0, 0, errBroken
			}
			c := k[w]
			w++
			size |= uint64(c&0x7f) << shift
			if c < 0x80 {
				break
			}
		}
		if size > uint64(len(k)-w) {
			return 0, 0, errBroken
		}
		end := w + int(size) //nolint:gosec // not above len(k)
		p[n], k = k[w:end], k[end:]
		n++
	}
	return entry, n, nil
}

const maxKeyParts = 7

func keyOfLane(l *lane) string    { return key(entryLane, l.org, l.text()) }
func keyOfBegin(m *memory) string { return key(entryBegin, m.lane.org, m.lane.text(), m.id, m.hash) }

func (g *group) key(entry byte, more string) string {
	return key(entry, g.m.lane.org, g.m.lane.text(), g.m.id, g.m.hash, g.id, more)
}

func appendKeyOfHeld(b []byte, g *group, h *held) []byte {
	b = append(append(b, entryHeld), g.m.head...)
	b = appendText(b, g.id)
	if h.bits&bitPacked != 0 {
		b = append(b, uuidText)
	} else {
		b = binary.AppendUvarint(b, uint64(len(h.uuid)))
	}
	b = h.appendUUID(b)
	b = binary.AppendUvarint(b, uint64(len(h.sub)))
	return append(b, h.sub...)
}

func keyOfSighting(m *memory, id string) string {
	return key(entrySeen, m.lane.org, m.lane.text(), m.id, m.hash, id, "")
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

func appendHeld(b []byte, h *held, payload []byte) []byte {
	size := len(h.values)
	if h.bits&bitPair != 0 {
		size += len(h.ref) + refSize
	}
	b = append(b, 1, byte(h.bits&bitsKept), h.copy)
	for _, n := range [...]int64{h.time, h.after, h.published, h.offset, int64(h.partition), int64(h.flags), int64(size)} {
		b = appendInt(b, n)
	}
	b = append(b, h.values...)
	if h.bits&bitPair != 0 {
		b = binary.LittleEndian.AppendUint32(append(b, h.ref...), uint32(len(h.ref))) //nolint:gosec // of a record's size
	}
	return append(b, payload...)
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
	for _, c := range k.keys {
		if c == "" {
			c = "\x00"
		}
		b = append(b, c...)
	}
	if k.past != nil {
		b = append(binary.AppendUvarint(b, uint64(k.past.len())), k.past.records...) //nolint:gosec // a length
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

func (r *reader) text() string { return r.raw(r.size()) }

func (r *reader) raw(n int) string {
	if r.bad || n > len(r.b) {
		r.bad = true
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// loose is what was restored of a group and is to be packed.
type loose struct {
	seen    []sighting
	buckets []bucket
}

func (s *State) loose(g *group) *loose {
	l := s.restored[g]
	if l == nil {
		if s.restored == nil {
			s.restored = map[*group]*loose{}
		}
		l = &loose{}
		s.restored[g] = l
	}
	return l
}

// pack sorts what was restored and drops what cannot be.
func (g *group) pack(l *loose) {
	if l == nil {
		return
	}
	slices.SortFunc(l.seen, func(a, b sighting) int { return strings.Compare(a.sub, b.sub) })
	l.buckets = slices.DeleteFunc(l.buckets, func(b bucket) bool {
		n := len(b.keys)
		return len(b.nums) != n+1 || g.m.c != nil && n != len(g.m.c.AggregateTypes)
	})
	slices.SortFunc(l.buckets, func(a, b bucket) int { return cmp.Compare(a.start, b.start) })
	g.seen, g.buckets = packSeen(l.seen), packBuckets(l.buckets)
}

// Restore takes one entry of a changelog, in any order; nil values are ignored. Restored must be called when all are
// there, before anything else.
func (s *State) Restore(k string, value []byte) error {
	if value == nil {
		return nil
	}
	var p [maxKeyParts]string
	entry, n, err := parts(k, &p)
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
	want := 6
	switch entry {
	case entryLane:
		want = 2
	case entryBegin:
		want = 4
	case entryHeld, entryGiven, entryUnsure:
		want = 7
	case entrySent, entryMeta, entrySeen, entryBucket:
	default:
		want = 0
	}
	if want == 0 || want != n {
		return fmt.Errorf("the changelog has an entry of an unknown sort %q", entry)
	}
	l := s.lane(laneOf(p[0], p[1]))
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
	if entry == entrySeen && p[5] == "" {
		if t := r.int(); !r.bad {
			m.seen.put(p[4], t)
		}
		return broken()
	}
	g := m.groups[p[4]]
	if g == nil {
		g = &group{m: m, id: strings.Clone(p[4]), floor: ever, due: never, anew: true}
		m.groups[g.id] = g
		m.back = append(m.back, g)
	}
	if entry != entryHeld && entry != entryMeta {
		s.own(g)
	}
	switch entry {
	case entryHeld:
		h := &s.comes
		*h = held{sub: []byte(p[6])}
		if r.byte() != 1 {
			r.bad = true
		}
		h.bits, h.copy = uint16(r.byte())&bitsKept, r.byte()
		h.time, h.after, h.published, h.offset = r.int(), r.int(), r.int(), r.int()
		h.partition, h.flags = int32(r.int()), uint32(r.int()) //nolint:gosec // as written
		size := r.int()
		if r.bad || size < 0 || size > int64(len(r.b)) {
			r.bad = true
			return broken()
		}
		h.values, h.payload = r.b[:size], r.b[size:]
		if h.bits&bitPair != 0 && !h.splitRef() {
			r.bad = true
			return broken()
		}
		h.setUUID(p[5])
		s.add(g, g.len(), h)
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
		id := strings.Clone(p[5])
		d.given = g.dets[id].given
		g.dets[id] = d
	case entryGiven:
		g.restoreGiven(strings.Clone(p[5]), strings.Clone(p[6]), r)
	case entryUnsure:
		s.pairs.restore(g, pairID{strings.Clone(p[5]), strings.Clone(p[6])}, r.int())
	case entryMeta:
		g.floor, g.truncated, g.meta = r.int(), r.byte() == 1, true
	case entrySeen:
		if one := (sighting{strings.Clone(p[5]), r.int()}); !r.bad {
			s.loose(g).seen = append(s.loose(g).seen, one)
		}
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
			var counted map[string]int64
			for range r.size() {
				if counted == nil {
					counted = map[string]int64{}
				}
				key := r.text()
				counted[key] = r.int()
			}
			one.keys = append(one.keys, packCounts(counted))
		}
		if version == 2 {
			one.past = &past{r.raw(8 * r.size())}
		}
		if !r.bad && !start.bad {
			s.loose(g).buckets = append(s.loose(g).buckets, one)
		}
	}
	return broken()
}
