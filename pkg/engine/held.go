package engine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sort"
	"strings"

	"github.com/oktawatch/oktawatch/pkg/rule"
)

// held is one event of a group: as it comes, and as it is read back. Its texts point into what it was read from.
type held struct {
	time      int64  // event time, milliseconds
	uuid      []byte // 16 bytes, or the text where it is no UUID
	sub       []byte // key within the group, of rules with seen_before; detection of a pair
	after     int64  // of a sighting that came late: it counts behind this time only
	published int64
	offset    int64
	partition int32
	flags     uint32
	bits      uint16
	copy      uint8
	values    []byte // of the aggregates
	ref       []byte // of a pair: what the rule reads of its detection
	payload   []byte // of one that comes; State.payload makes that of one that is held

	shape  uint32
	first  int // place of the tokens in data
	total  int // how many there are
	next   int // place of those of the payload
	count  int // how many there are
	packed [16]byte
}

const (
	bitExcepted = 1 << iota
	bitSeed
	bitPartial
	bitBackfill
	bitPublished
	bitPair                 // it comes through a detection: sub is its id
	bitOpen                 // what the rule reads of the detection may change
	bitsKept  = 1<<iota - 1 // those above are in the changelog
	bitPacked = 1 << iota   // the uuid is 16 bytes
	bitAfter
	bitSub
	bitValues
)

const uuidText = 36

// setUUID takes the text of an event's identity.
func (h *held) setUUID(text string) {
	if packUUID(&h.packed, text) {
		h.bits |= bitPacked
		h.uuid = h.packed[:]
		return
	}
	h.bits &^= bitPacked
	h.uuid = []byte(text)
}

// packUUID reads a UUID in the one form that comes back the same.
func packUUID(into *[16]byte, s string) bool {
	if len(s) != uuidText || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return false
	}
	i := 0
	for n := range into {
		if n == 4 || n == 6 || n == 8 || n == 10 {
			i++
		}
		hi, lo := nibbles[s[i]], nibbles[s[i+1]]
		if hi|lo > 15 {
			return false
		}
		into[n] = hi<<4 | lo
		i += 2
	}
	return true
}

var nibbles = func() (out [256]byte) {
	for i := range out {
		out[i] = 0xff
	}
	for i, c := range []byte(hexDigits) {
		out[c] = byte(i) //nolint:gosec // at most 15
	}
	return out
}()

const hexDigits = "0123456789abcdef"

// appendUUID appends the text.
func (h *held) appendUUID(b []byte) []byte {
	if h.bits&bitPacked == 0 {
		return append(b, h.uuid...)
	}
	for i, c := range h.uuid {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, hexDigits[c>>4], hexDigits[c&15])
	}
	return b
}

// identity is the text.
func (h *held) identity() string {
	var text [uuidText]byte
	return string(h.appendUUID(text[:0]))
}

func (h *held) isUUID(b []byte) bool {
	if h.bits&bitPacked == 0 {
		return bytes.Equal(b, h.uuid)
	}
	var text [uuidText]byte
	return len(b) == uuidText && bytes.Equal(b, h.appendUUID(text[:0]))
}

// order is the order of records. Packed UUIDs sort as their texts do.
func (h *held) order(o *held) int {
	if c := cmp.Compare(h.time, o.time); c != 0 {
		return c
	}
	var c int
	if h.bits&bitPacked == o.bits&bitPacked {
		c = bytes.Compare(h.uuid, o.uuid)
	} else {
		var a, b [uuidText]byte
		c = bytes.Compare(h.appendUUID(a[:0]), o.appendUUID(b[:0]))
	}
	return cmp.Or(c, bytes.Compare(h.sub, o.sub))
}

// The held events of a group lie in group.data, one behind the other as they came; work.index has their places in
// record order. One is written so:
//
//	time 8 bytes, bits 2, copy 1, flags, uuid, [published], offset, partition, [after], shape, number of tokens, tokens
//
// with numbers as varints and times as distances. Tokens are the values, what is read of a pair's detection and the
// sub-key, where bits say so, and what differs from event to event in the payload (see shapes). A text that the group has is not written again.
const (
	tokenText   = iota // so many bytes follow
	tokenSame          // the text at a place of data
	tokenKey           // a part of the group's key; from maxParts on so many bytes at a place, less maxParts
	tokenNumber        // itself
	tokenKinds  = 4
	maxParts    = 16
	leastShared = 4 // bytes of a text that is looked for
)

// len is how many events the group holds.
func (g *group) len() int {
	switch {
	case g.work != nil && g.index != nil:
		return len(g.index)
	case g.single:
		return 1
	}
	return 0
}

// place is where the event of a number lies in data.
func (g *group) place(i int) int {
	if g.work != nil && g.index != nil {
		return int(g.index[i])
	}
	return 0
}

func (g *group) time(i int) int64 {
	return int64(binary.LittleEndian.Uint64(g.data[g.place(i):])) //nolint:gosec // bits
}

func (g *group) bits(i int) uint16 { return binary.LittleEndian.Uint16(g.data[g.place(i)+8:]) }

func (g *group) flags(i int) uint32 {
	n, _ := binary.Uvarint(g.data[g.place(i)+11:])
	return uint32(n) //nolint:gosec // as written
}

// is tells whether an event has the identity of another.
func (g *group) is(i int, h *held) bool {
	at := g.place(i) + 8
	if packed := binary.LittleEndian.Uint16(g.data[at:]) & bitPacked; packed != h.bits&bitPacked {
		return false
	} else if packed != 0 { // most are told apart without all the rest
		if _, at := long(g.data, at+3); !bytes.Equal(g.data[at:at+len(h.packed)], h.uuid) {
			return false
		}
	}
	var o held
	g.read(i, &o)
	return bytes.Equal(o.uuid, h.uuid) && bytes.Equal(o.sub, h.sub)
}

// uuid is the identity of an event.
func (g *group) uuid(i int32) string {
	var h held
	g.read(int(i), &h)
	return h.identity()
}

// timeAfter is the number of the first event behind t.
func (g *group) timeAfter(t int64) int {
	return sort.Search(g.len(), func(i int) bool { return g.time(i) > t })
}

// each gives the events from lo to hi; they hold until the next.
func (g *group) each(lo, hi int, f func(h *held)) {
	var h held
	for i := lo; i < hi; i++ {
		g.read(i, &h)
		f(&h)
	}
}

// read gives an event. Its texts point into the group's data.
func (g *group) read(i int, h *held) { g.readAt(g.place(i), h) }

// readValues is read for what aggregates need.
func (g *group) readValues(i int, h *held) {
	if len(g.m.c.AggregateTypes) > 0 {
		g.read(i, h)
	}
}

func (g *group) readAt(at int, h *held) {
	b := g.data
	h.time = int64(binary.LittleEndian.Uint64(b[at:])) //nolint:gosec // bits
	h.bits = binary.LittleEndian.Uint16(b[at+8:])
	h.copy = b[at+10]
	at += 11
	flags, at := long(b, at)
	h.flags = uint32(flags) //nolint:gosec // as written
	n := uint64(len(h.packed))
	if h.bits&bitPacked == 0 {
		n, at = long(b, at)
	}
	h.uuid = b[at : at+int(n) : at+int(n)] //nolint:gosec // as written
	at += int(n)                           //nolint:gosec // as written
	h.published, h.after, h.sub, h.values, h.ref, h.payload = 0, 0, nil, nil, nil, nil
	if h.bits&bitPublished != 0 {
		n, at = long(b, at)
		h.published = h.time + unzigzag(n)
	}
	n, at = long(b, at)
	h.offset = unzigzag(n)
	n, at = long(b, at)
	h.partition = int32(unzigzag(n)) //nolint:gosec // as written
	if h.bits&bitAfter != 0 {
		n, at = long(b, at)
		h.after = unzigzag(n)
	}
	n, at = long(b, at)
	h.shape = uint32(n) //nolint:gosec // as written
	n, at = long(b, at)
	h.total = int(n) //nolint:gosec // as written
	h.first, h.count = at, h.total
	if h.bits&bitValues != 0 {
		var t token
		t, at = g.token(at)
		h.values = t.text
		h.count--
	}
	if h.bits&bitPair != 0 {
		var t token
		t, at = g.token(at)
		h.ref = t.text
		h.count--
	}
	if h.bits&bitSub != 0 {
		var t token
		t, at = g.token(at)
		h.sub = t.text
		h.count--
	}
	h.next = at
}

// long reads a number, and tells what is behind it.
func long(b []byte, at int) (uint64, int) {
	if c := b[at]; c < 0x80 {
		return uint64(c), at + 1
	}
	n, w := binary.Uvarint(b[at:])
	return n, at + w
}

// token reads the token at a place, and where the next one is.
func (g *group) token(at int) (token, int) {
	n, at := long(g.data, at)
	kind, n := n%tokenKinds, n/tokenKinds
	switch kind {
	case tokenNumber:
		return token{number: n}, at
	case tokenSame:
		return token{text: g.textAt(int(n))}, at //nolint:gosec // as written
	case tokenKey:
		if n >= maxParts {
			size, at := long(g.data, at)
			from := int(n - maxParts)                                              //nolint:gosec // as written
			return token{text: g.data[from : from+int(size) : from+int(size)]}, at //nolint:gosec // as written
		}
		return token{text: []byte(keyPart(g.id, int(n)))}, at //nolint:gosec // as written
	}
	end := at + int(n) //nolint:gosec // as written
	return token{text: g.data[at:end:end]}, end
}

func (g *group) textAt(at int) []byte {
	n, at := long(g.data, at)
	end := at + int(n/tokenKinds) //nolint:gosec // as written
	return g.data[at:end:end]
}

// keyPart is the value of a part of a canonical key.
func keyPart(id string, n int) string {
	for ; n > 0; n-- {
		_, id, _ = strings.Cut(id, "\x00")
	}
	id, _, _ = strings.Cut(id, "\x00")
	_, id, _ = strings.Cut(id, "=")
	return id
}

// payload appends the payload of an event that was read.
func (s *State) payload(dst []byte, g *group, h *held) []byte {
	at := h.next
	return s.shapes.join(dst, h.shape, h, func() (t token) {
		t, at = g.token(at)
		return t
	})
}

// locate tells the number that an event has or would have.
func (s *State) locate(g *group, h *held) (int, bool) {
	n := g.len()
	if n == 0 || g.time(n-1) < h.time {
		return n, false
	}
	o := &s.other
	at := func(i int) int {
		if t := g.time(i); t != h.time {
			return cmp.Compare(t, h.time)
		}
		g.read(i, o)
		return o.order(h)
	}
	i := sort.Search(n, func(i int) bool { return at(i) >= 0 })
	return i, i < n && at(i) == 0
}

// add puts an event in as the one of number i.
func (s *State) add(g *group, i int, h *held) {
	n := g.len()
	if n == 0 {
		g.data, g.single = nil, true
		if g.work != nil {
			g.index, g.dict, g.words, g.dead = nil, nil, 0, 0
		}
		s.hold(g, h)
		return
	}
	s.own(g)
	if g.index == nil {
		g.index = append(make([]uint32, 0, 4), 0)
	}
	at := s.hold(g, h)
	if i == n && n < cap(g.index) {
		g.index = append(g.index, at)
		return
	}
	index := make([]uint32, 0, n+3+n/8)
	g.index = append(append(append(index, g.index[:i]...), at), g.index[i:]...)
}

// replace puts an event in the place of another.
func (s *State) replace(g *group, i int, h *held) {
	n := g.len()
	if n == 1 {
		g.single = false
		if g.work != nil {
			g.index = nil
		}
		s.add(g, 0, h)
		return
	}
	g.dead += uint32(len(g.data) / n) //nolint:gosec // below 4 GiB
	at := s.hold(g, h)
	g.ownIndex()
	g.index[i] = at
	s.tidy(g)
}

// dropFirst lets the first n events go.
func (s *State) dropFirst(g *group, n int) {
	all := g.len()
	switch {
	case n == 0:
	case n >= all:
		g.data, g.single = nil, false
		if g.work != nil {
			g.index, g.dict, g.words, g.dead = nil, nil, 0, 0
		}
	default:
		g.dead += uint32(len(g.data) / all * n) //nolint:gosec // below 4 GiB
		rest := g.index[n:]
		if cap(rest) > 2*len(rest)+16 {
			rest = slices.Clone(rest)
		}
		g.index = rest
		s.tidy(g)
	}
}

// ownIndex is called before places in the index are changed: a snapshot may have it too.
func (g *group) ownIndex() {
	if g.lent&lentIndex != 0 {
		g.index = slices.Clone(g.index)
		g.lent &^= lentIndex
	}
}

// remove lets one event go.
func (s *State) remove(g *group, i int) {
	n := g.len()
	if n == 1 {
		s.dropFirst(g, 1)
		return
	}
	g.dead += uint32(len(g.data) / n) //nolint:gosec // below 4 GiB
	g.ownIndex()
	g.index = slices.Delete(g.index, i, i+1)
	s.tidy(g)
}

// tidy writes the group's data anew when half of it is of events that are gone.
func (s *State) tidy(g *group) {
	if 2*int(g.dead) > len(g.data) {
		s.compact(g)
	}
}

func (s *State) compact(g *group) {
	old := *g
	old.work = nil
	places := g.index
	g.data, g.dict, g.words, g.dead = make([]byte, 0, len(old.data)/2), nil, 0, 0
	g.index = make([]uint32, 0, len(places))
	h := &s.other
	var tokens []token
	for _, at := range places {
		old.readAt(int(at), h)
		tokens = tokens[:0]
		next := h.next
		for range h.count {
			var t token
			t, next = old.token(next)
			tokens = append(tokens, t)
		}
		at := s.put(g, h, h.shape, tokens)
		g.index = append(g.index, at)
	}
	g.data = slices.Clip(g.data)
	if cap(g.data) > len(g.data)+len(g.data)/8 {
		g.data = slices.Clone(g.data)
	}
}

// hold appends an event that comes to the group's data and tells where it is.
func (s *State) hold(g *group, h *held) uint32 {
	shape, tokens := s.shapes.split(h)
	return s.put(g, h, shape, tokens)
}

func (s *State) put(g *group, h *held, shape uint32, tokens []token) uint32 {
	start := len(g.data)
	count := len(tokens)
	h.bits &^= bitAfter | bitSub | bitValues
	if h.after != 0 {
		h.bits |= bitAfter
	}
	if len(h.sub) > 0 {
		h.bits |= bitSub
		count++
	}
	if len(h.values) > 0 {
		h.bits |= bitValues
		count++
	}
	if h.bits&bitPair != 0 {
		count++
	}
	b := binary.LittleEndian.AppendUint64(s.record[:0], uint64(h.time)) //nolint:gosec // bits
	b = binary.LittleEndian.AppendUint16(b, h.bits)
	b = binary.AppendUvarint(append(b, h.copy), uint64(h.flags))
	if h.bits&bitPacked == 0 {
		b = binary.AppendUvarint(b, uint64(len(h.uuid)))
	}
	b = append(b, h.uuid...)
	if h.bits&bitPublished != 0 {
		b = binary.AppendUvarint(b, zigzag(h.published-h.time))
	}
	b = binary.AppendUvarint(b, zigzag(h.offset))
	b = binary.AppendUvarint(b, zigzag(int64(h.partition)))
	if h.bits&bitAfter != 0 {
		b = binary.AppendUvarint(b, zigzag(h.after))
	}
	b = binary.AppendUvarint(b, uint64(shape))
	b = binary.AppendUvarint(b, uint64(count)) //nolint:gosec // a length
	s.record, s.fresh = b, s.fresh[:0]
	if start > 0 && g.work != nil && g.dict == nil {
		s.learn(g)
	}
	s.inner = s.inner[:0]
	if h.bits&bitValues != 0 {
		s.inside(g, h.values, s.text(g, start, h.values))
	}
	if h.bits&bitPair != 0 {
		s.text(g, start, h.ref)
	}
	if h.bits&bitSub != 0 {
		s.text(g, start, h.sub)
	}
	for i := range tokens {
		if t := &tokens[i]; t.text != nil {
			s.text(g, start, t.text)
		} else {
			s.record = binary.AppendUvarint(s.record, t.number*tokenKinds+tokenNumber)
		}
	}
	g.data = grown(g.data, len(s.record))
	g.data = append(g.data, s.record...)
	for _, at := range s.fresh {
		s.know(g, at)
	}
	return uint32(start) //nolint:gosec // bounded by maxHeld and the size of a record
}

// grown makes room for n more bytes, less than append would: most groups are small and there are many.
func grown(b []byte, n int) []byte {
	need := len(b) + n
	if need <= cap(b) {
		return b
	}
	room := need
	if len(b) > 0 {
		room += need / 8
	}
	return append(make([]byte, 0, room), b...)
}

// inside notes the texts in the values of aggregates, which are written at a place: fields often say the same.
func (s *State) inside(g *group, values []byte, at int) {
	if g.m.c == nil || at < 0 {
		return
	}
	rest := values
	for _, t := range g.m.c.AggregateTypes {
		_, _, rest = rule.ReadValue(t, rest, func(text []byte) {
			if len(text) >= leastShared && len(s.inner) < fewEvents {
				s.inner = append(s.inner, innerText{text, at + cap(values) - cap(text)})
			}
		})
	}
}

// innerText is a text within another.
type innerText struct {
	text []byte
	at   int
}

// text appends a text to s.record, or where the group has it already. It tells where the bytes are, unless they are in
// the key.
func (s *State) text(g *group, start int, b []byte) int {
	if len(b) >= leastShared {
		rest := g.id
		for n := uint64(0); rest != "" && n < maxParts; n++ {
			var one string
			one, rest, _ = strings.Cut(rest, "\x00")
			if _, one, _ = strings.Cut(one, "="); one == string(b) {
				s.record = binary.AppendUvarint(s.record, n*tokenKinds+tokenKey)
				return -1
			}
		}
		for _, in := range s.inner {
			if string(in.text) == string(b) {
				s.record = binary.AppendUvarint(s.record, uint64(in.at+maxParts)*tokenKinds+tokenKey) //nolint:gosec // a place
				s.record = binary.AppendUvarint(s.record, uint64(len(b)))
				return in.at
			}
		}
		if g.work != nil && g.dict != nil {
			if at, ok := s.known(g, b); ok {
				s.record = binary.AppendUvarint(s.record, uint64(at)*tokenKinds+tokenSame)
				_, from := long(g.data, int(at))
				return from
			}
		}
		for _, at := range s.fresh { // those of this record
			r := s.record[int(at)-start:]
			n, w := binary.Uvarint(r)
			if string(r[w:w+int(n/tokenKinds)]) == string(b) { //nolint:gosec // as written
				s.record = binary.AppendUvarint(s.record, uint64(at)*tokenKinds+tokenSame)
				return int(at) + w
			}
		}
		s.fresh = append(s.fresh, uint32(start+len(s.record))) //nolint:gosec // as start
	}
	s.record = binary.AppendUvarint(s.record, uint64(len(b))*tokenKinds+tokenText)
	at := start + len(s.record)
	s.record = append(s.record, b...)
	return at
}

// learn makes the table of the group's texts: open addressing, places in data plus one.
func (s *State) learn(g *group) {
	var h held
	g.dict, g.words = make([]uint32, 8), 0
	for i := range g.len() {
		g.read(i, &h)
		at := h.first
		for range h.total {
			n, w := binary.Uvarint(g.data[at:])
			if n%tokenKinds == tokenText && n/tokenKinds >= leastShared {
				s.know(g, uint32(at)) //nolint:gosec // as the places of records
			}
			switch at += w; {
			case n%tokenKinds == tokenText:
				at += int(n / tokenKinds) //nolint:gosec // as written
			case n%tokenKinds == tokenKey && n/tokenKinds >= maxParts:
				_, at = long(g.data, at)
			}
		}
	}
}

func (s *State) slot(dict []uint32, b []byte) int {
	return int(maphash.Bytes(s.seed, b) & uint64(len(dict)-1)) //nolint:gosec // below len(dict)
}

func (s *State) known(g *group, b []byte) (uint32, bool) {
	mask := len(g.dict) - 1
	for i := s.slot(g.dict, b); g.dict[i] != 0; i = (i + 1) & mask {
		if at := g.dict[i] - 1; bytes.Equal(g.textAt(int(at)), b) {
			return at, true
		}
	}
	return 0, false
}

// know takes the text at a place into the table.
func (s *State) know(g *group, at uint32) {
	if g.work == nil || g.dict == nil {
		return
	}
	if 5*(int(g.words)+1) > 4*len(g.dict) {
		old := g.dict
		g.dict = make([]uint32, 2*len(old))
		for _, one := range old {
			if one != 0 {
				s.enter(g.dict, g.textAt(int(one-1)), one)
			}
		}
	}
	s.enter(g.dict, g.textAt(int(at)), at+1)
	g.words++
}

func (s *State) enter(dict []uint32, text []byte, one uint32) {
	i := s.slot(dict, text)
	for dict[i] != 0 {
		i = (i + 1) & (len(dict) - 1)
	}
	dict[i] = one
}

// sort brings restored events into record order.
func (s *State) sort(g *group) {
	if g.work == nil || g.index == nil {
		return
	}
	var a, b held
	slices.SortFunc(g.index, func(x, y uint32) int {
		g.readAt(int(x), &a)
		g.readAt(int(y), &b)
		return a.order(&b)
	})
}
