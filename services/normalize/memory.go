package normalize

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
)

const (
	entryBytes  = 88 // of one event in the map, measured: TestMemorySize
	minMaxBytes = 1 << 16
	sweepEvery  = time.Hour
)

// eventKey stands for (lane, org, uuid), and for the other events of a uuid with published and eventType besides.
type eventKey [16]byte

// seen is what is remembered of an event. Neither it nor its key holds a pointer, so that a memory of millions of events
// costs the garbage collector nothing.
type seen struct {
	identity uint64 // hash of published and eventType
	content  uint64 // partial: hash of the sections it carried
	at       uint32 // Kafka timestamp of the raw record, seconds
	sections uint16 // partial: which those were
	partial  bool   // no complete copy yet
}

func keyOf(lane, org, uuid string) eventKey {
	var buf [256]byte
	b := append(buf[:0], lane...)
	b = append(append(b, 0), org...)
	b = append(append(b, 0), uuid...)
	sum := sha256.Sum256(b)
	return eventKey(sum[:16])
}

// other is the key of an event whose uuid another event had first.
func (k eventKey) other(identity uint64) eventKey {
	var b [25]byte
	copy(b[:], k[:])
	b[16] = '#'
	binary.BigEndian.PutUint64(b[17:], identity)
	sum := sha256.Sum256(b[:])
	return eventKey(sum[:16])
}

// memory is the events of one partition that are known again.
type memory struct {
	cfg     Dedup
	events  bus.Overlay[eventKey, seen]
	newest  uint32 // greatest timestamp met
	swept   uint32 // newest at the last sweep
	pending []byte // entries of this batch, as the changelog has them
}

func (m *memory) limit() int { return int(m.cfg.MaxBytes / entryBytes) }

func (m *memory) alive(s seen, at uint32) bool {
	if at <= s.at {
		return true
	}
	age := time.Duration(at-s.at) * time.Second
	if s.partial {
		return age <= m.cfg.PartialMemory
	}
	return age <= m.cfg.Memory
}

// get gives what is known of an event at the time of a raw record.
func (m *memory) get(k eventKey, at uint32) (seen, bool) {
	s, ok := m.events.Get(k)
	if !ok || !m.alive(s, at) {
		return seen{}, false
	}
	return s, true
}

func (m *memory) put(k eventKey, s seen) {
	m.newest = max(m.newest, s.at)
	m.events.Put(k, s)
	m.pending = appendEntry(m.pending, k, s)
}

// The changelog: each record holds the events of one batch, in the order they came. A later entry of a key replaces an
// earlier one. The topic is cut by time, not compacted, so an event needs no record of its own.
const (
	stateVersion = 1
	entrySize    = 16 + 8 + 8 + 4 + 2 + 1
)

func appendEntry(b []byte, k eventKey, s seen) []byte {
	if len(b) == 0 {
		b = append(b, stateVersion)
	}
	b = append(b, k[:]...)
	b = binary.BigEndian.AppendUint64(b, s.identity)
	b = binary.BigEndian.AppendUint64(b, s.content)
	b = binary.BigEndian.AppendUint32(b, s.at)
	b = binary.BigEndian.AppendUint16(b, s.sections)
	if s.partial {
		return append(b, 1)
	}
	return append(b, 0)
}

// flush gives the batch's changelog record, nil if nothing was seen.
func (m *memory) flush() []byte {
	b := m.pending
	m.pending = m.pending[:0]
	if len(b) == 0 {
		return nil
	}
	return b
}

// load reads a changelog record back. What is too old by now is left out on the way: the changelog is kept as long as a
// partial copy is remembered, most events are not.
func (m *memory) load(b []byte) error {
	if len(b) == 0 || b[0] != stateVersion || (len(b)-1)%entrySize != 0 {
		return errors.New("read dedup memory: a changelog record of another form; was it written by a later version?")
	}
	for b = b[1:]; len(b) > 0; b = b[entrySize:] {
		s := seen{
			identity: binary.BigEndian.Uint64(b[16:]),
			content:  binary.BigEndian.Uint64(b[24:]),
			at:       binary.BigEndian.Uint32(b[32:]),
			sections: binary.BigEndian.Uint16(b[36:]),
			partial:  b[38] == 1,
		}
		m.newest = max(m.newest, s.at)
		m.events.Load(eventKey(b[:16]), s)
	}
	m.sweep()
	m.evict()
	return nil
}

// sweep forgets what is too old. It is not part of a transaction: what get would not give is only taken out of the map.
func (m *memory) sweep() {
	if time.Duration(m.newest-m.swept)*time.Second < sweepEvery {
		return
	}
	m.swept = m.newest
	for k, s := range m.events.All() {
		if !m.alive(s, m.newest) {
			m.events.Unload(k)
		}
	}
}

// evict forgets the oldest events when there are too many, a tenth of them at once, and says how many.
func (m *memory) evict() int {
	n := m.events.Len()
	if n <= m.limit() {
		return 0
	}
	at := make([]uint32, 0, n)
	for _, s := range m.events.All() {
		at = append(at, s.at)
	}
	slices.Sort(at)
	drop := n - m.limit() + m.limit()/10
	before := at[min(drop, n-1)]
	evicted := 0
	for k, s := range m.events.All() {
		if s.at < before || s.at == before && evicted < drop {
			m.events.Unload(k)
			evicted++
		}
	}
	return evicted
}
