package engine

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strings"

	"github.com/oktawatch/oktawatch/pkg/rule"
)

// firstSeen finds the hits from from on. It walks all that is held, for each sighting makes later ones no news.
func (s *State) firstSeen(g *group, from int64) {
	m := g.m
	c := m.c
	memory := c.Detection.Memory.Milliseconds()
	known := len(c.Detection.SeenBefore) > 0
	if s.last == nil || len(s.last) > 1024 {
		s.last = map[string]int64{}
	}
	clear(s.last)
	last := s.last
	part := int64(ever)
	see := func(sub string, t int64) {
		if old, ok := last[sub]; !ok || t > old {
			last[sub] = t
		}
		part = max(part, t)
	}
	for _, one := range g.seen.all() {
		see(one.sub, one.time)
	}
	if t, ok := m.seen.get(g.id); ok {
		see("", t)
	}
	ev := s.sightings[:0]
	subs := len(c.Detection.SeenBefore) > 0
	g.each(0, g.len(), func(h *held) {
		one := maybeSeen{time: h.time, after: h.after, flags: h.flags}
		if subs {
			one.sub = string(h.sub)
		}
		ev = append(ev, one)
	})
	s.sightings = ev
	var late []int
	for i := 0; i < len(ev); {
		t := ev[i].time
		end := i
		for end < len(ev) && ev[end].time == t {
			end++
		}
		rest := late[:0]
		for _, n := range late {
			if ev[n].after < t {
				see(ev[n].sub, ev[n].time)
			} else {
				rest = append(rest, n)
			}
		}
		late = rest
		if t >= from && m.learned(t) {
			for n := i; n < end; n++ {
				h := &ev[n]
				if h.flags&rule.Judged == 0 || laterOfSub(ev, n, end) {
					continue
				}
				if seen, ok := last[h.sub]; ok && seen >= t-memory {
					continue
				}
				if known && (part == ever || part < t-memory) {
					continue
				}
				one := hit{at: t, sub: h.sub, last: int32(n)} //nolint:gosec // at most maxHeld
				for k := i; k <= n; k++ {
					if ev[k].sub == h.sub && ev[k].flags&rule.Judged != 0 {
						one.events = append(one.events, int32(k)) //nolint:gosec // at most maxHeld
					}
				}
				one.severity = c.Severity
				if c.HasSeverityWhen() {
					own := one
					s.bind(g, &own)
					var err error
					one.severity, err = c.HitSeverity(&s.hit)
					s.failed(err)
				}
				g.hits = append(g.hits, one)
				if s.lens.used > maxListed {
					s.lens.clear()
				}
			}
		}
		for n := i; n < end; n++ {
			if ev[n].flags&rule.Sighting == 0 {
				continue
			}
			if ev[n].after >= t {
				late = append(late, n)
			} else {
				see(ev[n].sub, t)
			}
		}
		i = end
	}
}

// maybeSeen is what an event says of a first sighting.
type maybeSeen struct {
	time, after int64
	flags       uint32
	sub         string
}

// laterOfSub tells whether a judged event of the same key comes behind n and before end.
func laterOfSub(ev []maybeSeen, n, end int) bool {
	for k := n + 1; k < end; k++ {
		if ev[k].sub == ev[n].sub && ev[k].flags&rule.Judged != 0 {
			return true
		}
	}
	return false
}

// foldSeen remembers the sightings of the first n events, which are about to go.
func (s *State) foldSeen(g *group, n int) {
	last := map[string]int64{}
	g.each(0, n, func(h *held) {
		if h.flags&rule.Sighting != 0 {
			if t, ok := last[string(h.sub)]; !ok || h.time > t {
				last[string(h.sub)] = h.time
			}
		}
	})
	old := g.floor - g.m.c.Detection.Memory.Milliseconds()
	if t, ok := last[""]; ok {
		if was, had := g.m.seen.get(g.id); t > old && (!had || t > was) {
			s.remember(g.m, g.id, t)
		}
		return
	}
	seen := g.seen.all()
	for _, sub := range sortedKeys(last) {
		t := last[sub]
		at, had := slices.BinarySearchFunc(seen, sub, func(o sighting, sub string) int { return strings.Compare(o.sub, sub) })
		switch {
		case t <= old || had && seen[at].time >= t:
			continue
		case had:
			seen[at].time = t
		default:
			seen = slices.Insert(seen, at, sighting{sub, t})
		}
		s.change(keyOfSeen(g, sub), appendInt(nil, t))
	}
	g.seen = packSeen(seen)
}

// remember notes the last sighting of a group that has no keys within.
func (s *State) remember(m *memory, id string, t int64) {
	was, had := m.seen.get(id)
	s.undo = append(s.undo, func() {
		if had {
			m.seen.put(id, was)
		} else {
			m.seen.remove(id)
		}
	})
	m.seen.put(id, t)
	s.change(keyOfSighting(m, id), appendInt(nil, t))
}

func (s *State) forgetSeen(m *memory, id string) {
	was, _ := m.seen.get(id)
	s.undo = append(s.undo, func() { m.seen.put(id, was) })
	m.seen.remove(id)
	s.change(keyOfSighting(m, id), nil)
}

// expireSeen drops sightings that are too old: it goes through all of them in an eighth of the rule's memory, a few each
// time the clock moves.
func (s *State) expireSeen(m *memory) {
	t := &m.seen
	if t.at == ever || t.n == 0 {
		t.at = m.clock
		return
	}
	memory := m.c.Detection.Memory.Milliseconds()
	round, went := max(memory/8, pace), m.clock-t.at
	steps := len(t.slots)
	if went < round {
		steps = int(float64(steps) * float64(went) / float64(round))
	}
	if steps == 0 {
		return
	}
	t.at = m.clock
	for range steps {
		if t.n == 0 {
			break
		}
		t.next &= len(t.slots) - 1
		for t.slots[t.next] != 0 {
			key, seen := t.entry(t.slots[t.next])
			decided := m.clock
			if g := m.groups[string(key)]; g != nil {
				decided = g.floor // it may judge events behind it once more
			}
			if decided == ever || seen > decided-memory {
				break
			}
			s.forgetSeen(m, string(key)) // another may take its slot
			if t.n == 0 {
				break
			}
			t.next &= len(t.slots) - 1
		}
		t.next++
	}
}

// sightings are last times by key, packed: there are many and each is a text and a number.
type sightings struct {
	seed  maphash.Seed
	slots []uint32 // place in data plus one: open addressing, a power of two
	data  []byte   // time 8 bytes, length, key
	n     int
	dead  int // bytes of keys that went

	at   int64 // clock at which expireSeen last went on
	next int   // slot it comes to
}

func (t *sightings) len() int { return t.n }

func (t *sightings) entry(slot uint32) (key []byte, seen int64) {
	b := t.data[slot-1:]
	n, w := binary.Uvarint(b[8:])
	return b[8+w : 8+w+int(n)], int64(binary.LittleEndian.Uint64(b)) //nolint:gosec // as written
}

// find is the slot of a key, or the empty one where it belongs.
func (t *sightings) find(key string) (int, bool) {
	if len(t.slots) == 0 {
		return 0, false
	}
	i := t.home([]byte(key))
	for t.slots[i] != 0 {
		if k, _ := t.entry(t.slots[i]); string(k) == key {
			return i, true
		}
		i = (i + 1) & (len(t.slots) - 1)
	}
	return i, false
}

func (t *sightings) home(key []byte) int {
	return int(maphash.Bytes(t.seed, key) & uint64(len(t.slots)-1)) //nolint:gosec // below len
}

func (t *sightings) has(key string) bool {
	_, ok := t.find(key)
	return ok
}

func (t *sightings) get(key string) (int64, bool) {
	i, ok := t.find(key)
	if !ok {
		return 0, false
	}
	_, seen := t.entry(t.slots[i])
	return seen, true
}

func (t *sightings) put(key string, seen int64) {
	i, ok := t.find(key)
	if ok {
		binary.LittleEndian.PutUint64(t.data[t.slots[i]-1:], uint64(seen)) //nolint:gosec // bits
		return
	}
	if 8*(t.n+1) > 7*len(t.slots) {
		t.rebuild(max(8, 2*len(t.slots)))
		i, _ = t.find(key)
	}
	t.slots[i] = uint32(len(t.data)) + 1 //nolint:gosec // maxGroups keys of 1 KiB at most
	t.append(key, seen)
	t.n++
}

func (t *sightings) append(key string, seen int64) {
	if need := len(t.data) + 12 + len(key); need > cap(t.data) {
		t.data = append(make([]byte, 0, need+need/8), t.data...)
	}
	t.data = binary.LittleEndian.AppendUint64(t.data, uint64(seen)) //nolint:gosec // bits
	t.data = appendText(t.data, key)
}

func (t *sightings) remove(key string) {
	i, ok := t.find(key)
	if !ok {
		return
	}
	k, _ := t.entry(t.slots[i])
	t.dead += 9 + len(k)
	t.n--
	mask := len(t.slots) - 1
	for j := (i + 1) & mask; t.slots[j] != 0; j = (j + 1) & mask {
		k, _ := t.entry(t.slots[j])
		if home := t.home(k); (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = 0
	if 2*t.dead > len(t.data) {
		size := len(t.slots)
		for size > 8 && 4*t.n < size {
			size /= 2
		}
		t.rebuild(size)
	}
}

// rebuild makes the table anew with so many slots.
func (t *sightings) rebuild(size int) {
	old := *t
	t.slots, t.dead = make([]uint32, size), 0
	if old.dead > 0 {
		t.data = make([]byte, 0, len(old.data)-old.dead)
	}
	for _, slot := range old.slots {
		if slot == 0 {
			continue
		}
		key, seen := old.entry(slot)
		i := t.home(key)
		for t.slots[i] != 0 {
			i = (i + 1) & (size - 1)
		}
		if old.dead > 0 {
			slot = uint32(len(t.data)) + 1 //nolint:gosec // no more than there was
			t.append(string(key), seen)
		}
		t.slots[i] = slot
	}
}

// keys lists what is there, in order.
func (t *sightings) keys() []string {
	var out []string
	for _, slot := range t.slots {
		if slot != 0 {
			key, _ := t.entry(slot)
			out = append(out, string(key))
		}
	}
	slices.Sort(out)
	return out
}
