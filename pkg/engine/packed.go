package engine

import (
	"encoding/binary"
	"math"
)

// What stays of events that are gone is packed into a text of each group: there is much of it and it is read seldom.

// seenList is sightings in order of their keys, each time as the distance from the one before.
type seenList string

func packSeen(list []sighting) seenList {
	var b []byte
	last := int64(0)
	for _, one := range list {
		b = appendInt(appendText(b, one.sub), one.time-last)
		last = one.time
	}
	return seenList(b)
}

func (l seenList) first(last int64) (one sighting, rest seenList) {
	n, w := uvarint(string(l))
	l = l[w:]
	one.sub, l = string(l[:n]), l[n:]
	z, w := uvarint(string(l))
	one.time = last + unzigzag(z)
	return one, l[w:]
}

func (l seenList) all() (out []sighting) {
	var one sighting
	for l != "" {
		one, l = l.first(one.time)
		out = append(out, one)
	}
	return out
}

// uvarint is binary.Uvarint of a text that holds one.
func uvarint(s string) (n uint64, w int) {
	for shift := 0; ; shift += 7 {
		c := s[w]
		w++
		n |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return n, w
		}
	}
}

// counts is how often each value of a count_by was there: their number, then each value and its count.
type counts string

func packCounts(m map[string]int64) counts {
	if len(m) == 0 {
		return ""
	}
	b := binary.AppendUvarint(nil, uint64(len(m)))
	for _, key := range sortedKeys(m) {
		b = appendInt(appendText(b, key), m[key])
	}
	return counts(b)
}

// len is how many values there are.
func (c counts) len() int {
	if c == "" {
		return 0
	}
	n, _ := uvarint(string(c))
	return int(n) //nolint:gosec // as written
}

func (c counts) all() map[string]int64 {
	out := make(map[string]int64, c.len())
	c.each(func(key string, n int64) { out[key] = n })
	return out
}

func (c counts) each(f func(key string, n int64)) {
	if c == "" {
		return
	}
	s := string(c)
	n, w := uvarint(s)
	s = s[w:]
	for range n {
		size, w := uvarint(s)
		end := w + int(size) //nolint:gosec // as written
		key := s[w:end]
		z, w := uvarint(s[end:])
		f(key, unzigzag(z))
		s = s[end+w:]
	}
}

// bucketList is closed buckets in order of time.
type bucketList string

func packBuckets(list []bucket) bucketList {
	var b []byte
	last := int64(0)
	for _, one := range list {
		b = appendInt(b, one.start-last)
		last = one.start
		b = binary.AppendUvarint(b, uint64(len(one.nums)))
		for _, n := range one.nums {
			// A whole number is written as itself, twice, so that the lowest bit tells.
			if whole := int64(n); float64(whole) == n && whole >= 0 && whole < 1<<53 && !math.Signbit(n) {
				b = binary.AppendUvarint(b, uint64(whole)<<1)
				continue
			}
			b = binary.LittleEndian.AppendUint64(append(b, 1), math.Float64bits(n))
		}
		keys := uint64(len(one.keys)) << 1 // the lowest bit tells whether there is a past
		if one.past != nil {
			keys |= 1
		}
		b = binary.AppendUvarint(b, keys)
		for _, c := range one.keys {
			b = appendText(b, string(c))
		}
		if one.past != nil {
			b = appendText(b, one.past.records)
		}
	}
	return bucketList(b)
}

// start is when the first bucket begins.
func (l bucketList) start() int64 {
	start, _ := l.head(0)
	return start
}

func (l bucketList) all() (out []bucket) {
	last := int64(0)
	for l != "" {
		var one bucket
		one.start, l = l.head(last)
		last = one.start
		l = l.body(&one)
		out = append(out, one)
	}
	return out
}

// find gives the bucket that begins at t.
func (l bucketList) find(t int64) (one bucket, ok bool) {
	for l != "" {
		one.start, l = l.head(one.start)
		switch {
		case one.start > t:
			return bucket{}, false
		case one.start == t:
			l.body(&one)
			return one, true
		}
		l = l.body(nil)
	}
	return bucket{}, false
}

// head reads when a bucket begins; last is when the one before does.
func (l bucketList) head(last int64) (start int64, body bucketList) {
	z, w := uvarint(string(l))
	return last + unzigzag(z), l[w:]
}

// body reads a bucket into one that is not nil, and gives what is behind it.
func (l bucketList) body(one *bucket) (rest bucketList) {
	s := string(l)
	next := func() uint64 {
		n, w := uvarint(s)
		s = s[w:]
		return n
	}
	text := func() string {
		n := next()
		out := s[:n]
		s = s[n:]
		return out
	}
	n := next()
	if one != nil {
		one.nums = make([]float64, n)
	}
	for i := range n {
		bits := next()
		value := float64(bits >> 1)
		if bits&1 != 0 {
			var b [8]byte
			s = s[copy(b[:], s):]
			value = math.Float64frombits(binary.LittleEndian.Uint64(b[:]))
		}
		if one != nil {
			one.nums[i] = value
		}
	}
	n = next()
	if one != nil && n > 1 {
		one.keys = make([]counts, n>>1)
	}
	for i := range n >> 1 {
		if c := text(); one != nil {
			one.keys[i] = counts(c)
		}
	}
	if n&1 != 0 {
		if records := text(); one != nil {
			one.past = &past{records}
		}
	}
	return bucketList(s)
}
