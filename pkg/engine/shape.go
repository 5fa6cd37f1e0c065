package engine

import (
	"encoding/binary"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// Limits of the table of shapes; a payload beyond them is held as it came.
const (
	maxShapes     = 1 << 14
	maxShape      = 4 << 10
	maxFixed      = 64
	maxNumber     = 1 << 62
	shapeVerbatim = 0 // one text: the payload
)

// few are the texts with so few values that they belong to the shape, by field.
var few = map[string]bool{"eventType": true, "type": true, "org": true, "lane": true, "source": true, "result": true}

// Where a text or a time of a payload is found, as the shape says.
const (
	atNone  = iota // an empty text
	atToken        // the next token
	atShape        // in the shape itself
	atUUID         // the uuid of the event
	atTime         // the time of the event
	atPublished
)

// part is one field of a payload, in the order of the bytes.
type part struct {
	kind     record.Kind
	nullable bool
	few      bool
	object   *[]part
}

// token is one value that differs from event to event: a text, or a number where the text is nil.
type token struct {
	text   []byte
	number uint64
}

// shapes keeps once what the payloads of held events have in common: which fields are there and the texts that have few
// values. What is left of a payload are its tokens.
type shapes struct {
	parts []part
	ids   map[string]uint32
	list  []string

	in     []byte // of the payload that is split
	shape  []byte
	tokens []token
	h      *held
	bad    bool
}

func newShapes() *shapes {
	types := record.SystemLogTypes()
	made := make(map[string]*[]part, len(types))
	for _, t := range types {
		made[t.Name] = new([]part)
	}
	for _, t := range types {
		for _, f := range t.Fields {
			*made[t.Name] = append(*made[t.Name], part{f.Kind, f.Nullable, few[f.Name], made[f.Object]})
		}
	}
	return &shapes{parts: *made[types[0].Name], ids: map[string]uint32{}, list: []string{""}}
}

// split gives the number of a payload's shape and its tokens, which point into the payload and hold until the next call.
func (s *shapes) split(h *held) (uint32, []token) {
	s.in, s.shape, s.tokens, s.h, s.bad = h.payload, s.shape[:0], s.tokens[:0], h, false
	s.object(s.parts)
	if !s.bad && len(s.in) == 0 && len(s.shape) <= maxShape {
		id, ok := s.ids[string(s.shape)]
		if !ok && len(s.list) < maxShapes {
			id, ok = uint32(len(s.list)), true //nolint:gosec // below maxShapes
			text := string(s.shape)
			s.list = append(s.list, text)
			s.ids[text] = id
		}
		if ok {
			return id, s.tokens
		}
	}
	s.tokens = append(s.tokens[:0], token{text: h.payload})
	if h.payload == nil {
		s.tokens[0].text = []byte{}
	}
	return shapeVerbatim, s.tokens
}

// long reads a number, in its shortest form only: others would not come back the same.
func (s *shapes) long() uint64 {
	if len(s.in) > 0 && s.in[0] < 0x80 {
		n := uint64(s.in[0])
		s.in = s.in[1:]
		return n
	}
	n, w := binary.Uvarint(s.in)
	if w <= 0 || s.in[w-1] == 0 {
		s.bad, s.in = true, nil
		return 0
	}
	s.in = s.in[w:]
	return n
}

func (s *shapes) bytes(n uint64) []byte {
	if n > uint64(len(s.in)) {
		s.bad, s.in = true, nil
		return nil
	}
	b := s.in[:n:n]
	s.in = s.in[n:]
	return b
}

func (s *shapes) count() int {
	n := s.long()
	s.shape = binary.AppendUvarint(s.shape, n)
	if n&1 != 0 || n>>1 > uint64(len(s.in)) { // a block with its size in bytes, or more items than bytes
		s.bad, s.in = true, nil
		return 0
	}
	return int(n >> 1) //nolint:gosec // not above len(s.in)
}

func (s *shapes) token(t token) {
	s.shape = append(s.shape, atToken)
	s.tokens = append(s.tokens, t)
}

func (s *shapes) text(few bool) {
	if len(s.in) > 0 && s.in[0] == 0 {
		s.in = s.in[1:]
		s.shape = append(s.shape, atNone)
		return
	}
	n := s.long()
	if n&1 != 0 {
		s.bad, s.in = true, nil
		return
	}
	b := s.bytes(n >> 1)
	switch {
	case s.bad:
	case few && len(b) <= maxFixed:
		s.shape = append(append(s.shape, atShape, byte(len(b))), b...)
	case s.h.isUUID(b):
		s.shape = append(s.shape, atUUID)
	default:
		s.token(token{text: b})
	}
}

func (s *shapes) object(parts []part) {
	for i := range parts {
		p := &parts[i]
		if s.bad {
			return
		}
		if p.nullable {
			if len(s.in) == 0 || s.in[0] != 0 && s.in[0] != 2 {
				s.bad = true
				return
			}
			there := s.in[0]
			s.in = s.in[1:]
			s.shape = append(s.shape, there)
			if there == 0 {
				continue
			}
		}
		switch p.kind {
		case record.KindString, record.KindBytes:
			s.text(p.few)
		case record.KindInt:
			s.number(s.long())
		case record.KindDouble:
			s.tokens = append(s.tokens, token{text: s.bytes(8)})
		case record.KindBool:
			if b := s.bytes(1); !s.bad {
				s.shape = append(s.shape, b[0])
			}
		case record.KindTime:
			s.time()
		case record.KindStrings:
			for n := s.count(); n > 0; n = s.count() {
				for range n {
					s.text(false)
				}
			}
		case record.KindMap:
			for n := s.count(); n > 0; n = s.count() {
				for range 2 * n {
					s.text(false)
				}
			}
		case record.KindObject:
			s.object(*p.object)
		case record.KindObjects:
			for n := s.count(); n > 0; n = s.count() {
				for range n {
					if s.object(*p.object); s.bad {
						return
					}
				}
			}
		}
	}
}

func (s *shapes) number(n uint64) {
	if n >= maxNumber {
		s.bad = true
		return
	}
	s.tokens = append(s.tokens, token{number: n})
}

func (s *shapes) time() {
	z := s.long()
	ms := unzigzag(z)
	switch {
	case ms == s.h.time:
		s.shape = append(s.shape, atTime)
	case s.h.bits&bitPublished != 0 && ms == s.h.published:
		s.shape = append(s.shape, atPublished)
	default:
		s.shape = append(s.shape, atToken)
		s.number(zigzag(ms - s.h.time))
	}
}

func zigzag(n int64) uint64   { return uint64(n)<<1 ^ uint64(n>>63) } //nolint:gosec // bits
func unzigzag(n uint64) int64 { return int64(n>>1) ^ -int64(n&1) }    //nolint:gosec // bits

// joiner makes a payload again.
type joiner struct {
	out   []byte
	shape string
	h     *held
	next  func() token
}

// join appends the payload of a shape; next gives its tokens in order.
func (s *shapes) join(dst []byte, id uint32, h *held, next func() token) []byte {
	if id == shapeVerbatim {
		return append(dst, next().text...)
	}
	j := joiner{dst, s.list[id], h, next}
	j.object(s.parts)
	return j.out
}

func (j *joiner) byte() byte {
	b := j.shape[0]
	j.shape = j.shape[1:]
	return b
}

func (j *joiner) text() {
	switch j.byte() {
	case atNone:
		j.out = append(j.out, 0)
	case atShape:
		n := int(j.byte())
		j.out = append(binary.AppendUvarint(j.out, uint64(n)<<1), j.shape[:n]...) //nolint:gosec // at most maxFixed
		j.shape = j.shape[n:]
	case atUUID:
		if j.h.bits&bitPacked != 0 {
			j.out = append(j.out, 2*uuidText)
		} else {
			j.out = binary.AppendUvarint(j.out, uint64(len(j.h.uuid))<<1)
		}
		j.out = j.h.appendUUID(j.out)
	default:
		b := j.next().text
		j.out = append(binary.AppendUvarint(j.out, uint64(len(b))<<1), b...)
	}
}

func (j *joiner) count() int {
	n, shift := 0, 0
	for {
		b := j.byte()
		j.out = append(j.out, b)
		n |= int(b&0x7f) << shift
		if b < 0x80 {
			return n >> 1
		}
		shift += 7
	}
}

func (j *joiner) object(parts []part) {
	for i := range parts {
		p := &parts[i]
		if p.nullable {
			there := j.byte()
			j.out = append(j.out, there)
			if there == 0 {
				continue
			}
		}
		switch p.kind {
		case record.KindString, record.KindBytes:
			j.text()
		case record.KindInt:
			j.out = binary.AppendUvarint(j.out, j.next().number)
		case record.KindDouble:
			j.out = append(j.out, j.next().text...)
		case record.KindBool:
			j.out = append(j.out, j.byte())
		case record.KindTime:
			ms := j.h.time
			switch j.byte() {
			case atPublished:
				ms = j.h.published
			case atToken:
				ms += unzigzag(j.next().number)
			}
			j.out = binary.AppendUvarint(j.out, zigzag(ms))
		case record.KindStrings:
			for n := j.count(); n > 0; n = j.count() {
				for range n {
					j.text()
				}
			}
		case record.KindMap:
			for n := j.count(); n > 0; n = j.count() {
				for range 2 * n {
					j.text()
				}
			}
		case record.KindObject:
			j.object(*p.object)
		case record.KindObjects:
			for n := j.count(); n > 0; n = j.count() {
				for range n {
					j.object(*p.object)
				}
			}
		}
	}
}
