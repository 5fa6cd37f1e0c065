package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
	"unsafe"
)

func appendLong(b []byte, x int64) []byte {
	return binary.AppendUvarint(b, uint64(x)<<1^uint64(x>>63))
}

func appendString(b []byte, s string) []byte {
	b = appendLong(b, int64(len(s)))
	return append(b, s...)
}

func appendBytes(b, s []byte) []byte {
	b = appendLong(b, int64(len(s)))
	return append(b, s...)
}

func appendBool(b []byte, x bool) []byte {
	if x {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendDouble(b []byte, x float64) []byte {
	return binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
}

func appendStrings(b []byte, s []string) []byte {
	if len(s) > 0 {
		b = appendLong(b, int64(len(s)))
		for _, x := range s {
			b = appendString(b, x)
		}
	}
	return append(b, 0)
}

// appendMap writes keys in order, so that the same record always gives the same bytes.
func appendMap(b []byte, m map[string]string) []byte {
	if len(m) > 0 {
		var buf [32]string
		keys := buf[:0]
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		b = appendLong(b, int64(len(keys)))
		for _, k := range keys {
			b = appendString(b, k)
			b = appendString(b, m[k])
		}
	}
	return append(b, 0)
}

// roomAtOnce is how many items room is made for before they are seen.
const roomAtOnce = 256

var errShort = errors.New("the bytes end within a value")

// wire reads Avro bytes. The first error stays; after it every read gives zero values and no loop goes on.
type wire struct {
	b     []byte
	i     int
	alias bool // strings and bytes point into b
	err   error
}

func (r *wire) fail(err error) {
	if r.err == nil {
		r.err = fmt.Errorf("at byte %d of %d: %w", r.i, len(r.b), err)
	}
	r.i = len(r.b)
}

// end returns the error, also when bytes are left.
func (r *wire) end() error {
	if r.err == nil && r.i < len(r.b) {
		r.fail(errors.New("bytes are left after the record"))
	}
	return r.err
}

func (r *wire) long() int64 {
	if r.i < len(r.b) && r.b[r.i] < 0x80 {
		x := r.b[r.i]
		r.i++
		return int64(x>>1) ^ -int64(x&1)
	}
	x, n := binary.Uvarint(r.b[r.i:])
	if n <= 0 {
		if n == 0 {
			r.fail(errShort)
		} else {
			r.fail(errors.New("a number of more than 64 bits"))
		}
		return 0
	}
	r.i += n
	return int64(x>>1) ^ -int64(x&1)
}

func (r *wire) int() int32 {
	x := r.long()
	if x != int64(int32(x)) {
		r.fail(errors.New("an int of more than 32 bits"))
		return 0
	}
	return int32(x)
}

func (r *wire) bool() bool {
	if r.i >= len(r.b) {
		r.fail(errShort)
		return false
	}
	x := r.b[r.i]
	if x > 1 {
		r.fail(fmt.Errorf("a boolean of value %d", x))
		return false
	}
	r.i++
	return x == 1
}

func (r *wire) double() float64 {
	if len(r.b)-r.i < 8 {
		r.fail(errShort)
		return 0
	}
	x := binary.LittleEndian.Uint64(r.b[r.i:])
	r.i += 8
	return math.Float64frombits(x)
}

func (r *wire) time() time.Time { return time.UnixMilli(r.long()).UTC() }

// some reads the branch of a ["null", T].
func (r *wire) some() bool {
	x := r.long()
	if uint64(x) > 1 {
		r.fail(fmt.Errorf("branch %d of a union of two", x))
	}
	return r.err == nil && x == 1
}

// raw reads a length and returns that many bytes of the input itself.
func (r *wire) raw() []byte {
	n := r.long()
	if uint64(n) > uint64(len(r.b)-r.i) {
		r.fail(fmt.Errorf("a length of %d with %d bytes left", n, len(r.b)-r.i))
		return nil
	}
	s := r.b[r.i : r.i+int(n) : r.i+int(n)]
	r.i += int(n)
	return s
}

// take passes over n bytes.
func (r *wire) take(n int) {
	if n > len(r.b)-r.i {
		r.fail(errShort)
		return
	}
	r.i += n
}

func (r *wire) str() string {
	s := r.raw()
	if len(s) == 0 {
		return ""
	}
	if r.alias {
		return unsafe.String(&s[0], len(s))
	}
	return string(s)
}

func (r *wire) bytes() []byte {
	s := r.raw()
	if r.alias || len(s) == 0 {
		return slices.Clip(s)
	}
	return slices.Clone(s)
}

// block reads the count of an array's or map's next block, 0 at the end. An item takes at least least bytes, so a count
// that the bytes left cannot hold is refused before anything is made for it.
func (r *wire) block(least int) int {
	n := r.long()
	if n < 0 {
		if size := r.long(); size < 0 || size > int64(len(r.b)-r.i) {
			r.fail(fmt.Errorf("a block of %d bytes with %d bytes left", size, len(r.b)-r.i))
			return 0
		}
		n = -n
	}
	if n < 0 || (least > 0 && n > int64((len(r.b)-r.i)/least)) || n > math.MaxInt32 {
		r.fail(fmt.Errorf("a block of %d items with %d bytes left", n, len(r.b)-r.i))
		return 0
	}
	return int(n)
}

func (r *wire) strs(s []string) []string {
	s = s[:0]
	for n := r.block(1); n > 0; n = r.block(1) {
		s = slices.Grow(s, min(n, roomAtOnce))
		for range n {
			if s = append(s, r.str()); r.err != nil {
				return s
			}
		}
	}
	return s
}

func (r *wire) strMap(m map[string]string) map[string]string {
	clear(m)
	for n := r.block(2); n > 0; n = r.block(2) {
		if m == nil {
			m = make(map[string]string, min(n, roomAtOnce))
		}
		for range n {
			k := r.str()
			if m[k] = r.str(); r.err != nil {
				return m
			}
		}
	}
	return m
}

// decodeList reads an array of records into the memory of s.
func decodeList[T any](r *wire, s []T, least int, decode func(*T, *wire)) []T {
	s = s[:0]
	for n := r.block(least); n > 0; n = r.block(least) {
		s = slices.Grow(s, min(n, roomAtOnce))
		for range n {
			if len(s) == cap(s) {
				s = slices.Grow(s, 1)
			}
			s = s[:len(s)+1]
			decode(&s[len(s)-1], r)
			if r.err != nil {
				return s
			}
		}
	}
	return s
}

func (r *wire) skipStrings() {
	for n := r.block(1); n > 0; n = r.block(1) {
		for range n {
			r.raw()
		}
	}
}

func (r *wire) skipMap() {
	for n := r.block(2); n > 0; n = r.block(2) {
		for range n {
			r.raw()
			r.raw()
		}
	}
}

func (r *wire) skipList(least int, skip func(*wire)) {
	for n := r.block(least); n > 0; n = r.block(least) {
		for range n {
			if skip(r); r.err != nil {
				return
			}
		}
	}
}
