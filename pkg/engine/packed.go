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
		b = binary.AppendUvarint(b, uint64(len(one.keys)))
		for _, c := range one.keys {
			b = appendText(b, string(c))
		}
	}
	return bucketList(b)
}

// start is when the first bucket begins.
func (l bucketList) start() int64 {
	z, _ := uvarint(string(l))
	return unzigzag(z)
}

func (l bucketList) all() (out []bucket) {
	s := string(l)
	next := func() uint64 {
		n, w := uvarint(s)
		s = s[w:]
		return n
	}
	last := int64(0)
	for s != "" {
		last += unzigzag(next())
		one := bucket{start: last, nums: make([]float64, next())}
		for i := range one.nums {
			n := next()
			if n&1 == 0 {
				one.nums[i] = float64(n >> 1)
				continue
			}
			var b [8]byte
			s = s[copy(b[:], s):]
			one.nums[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[:]))
		}
		if n := next(); n > 0 {
			one.keys = make([]counts, n)
			for i := range one.keys {
				size := next()
				one.keys[i], s = counts(s[:size]), s[size:]
			}
		}
		out = append(out, one)
	}
	return out
}
