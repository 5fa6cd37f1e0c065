package engine

import (
	"maps"
	"math"
	"slices"
	"sort"
	"strconv"
	"time"

	"github.com/oktawatch/oktawatch/pkg/ident"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

const (
	pace        = int64(60_000) // a detection that only grows is sent at most once in it
	dayMS       = int64(24 * 60 * 60 * 1000)
	fewEvents   = 8
	maxEvidence = 5 // events of a detection with their place
	evidenceEnd = 50
	maxListed   = 1000 // events that evidence shows to CEL
)

// hit is one hit of a group. Its events are numbers in group.events.
type hit struct {
	at       int64
	severity rule.Severity
	sub      string
	last     int32   // the hit's event
	lo, hi   int32   // aggregate: events[lo:hi] but seeds
	steps    []int32 // sequence: by step, -1 for negated ones
	events   []int32 // sequence, first_seen: evidence, in order
	begun    *begun  // of the first hit of a detection
}

// begun is the id of a detection that begins with a hit, as a definition has it.
type begun struct {
	c  *rule.Compiled
	id string
}

// sent is what is known of a detection that was written.
type sent struct {
	update    int64
	digest    uint64 // of first time, severity, title and sets
	content   uint64 // of all but update and final
	first     int64
	last      int64
	count     int64
	at        int64 // event time of the sending
	slotEnd   int64 // end of the period that the id names
	severity  int32
	final     bool
	withdrawn bool
	pending   bool // grown since
	title     string
	carry     []byte // what it was before the limit of records cut it, as a Detection
	given     *given // what rules over detections have of it
}

// cand is a detection as the hits make it now.
type cand struct {
	sub, id     string
	first, last int64
	hits        []int32
	carried     *record.Detection
}

func (m *memory) period() int64 { return max(m.c.Alert.DedupPeriod.Milliseconds(), 1) }

func (m *memory) trail() int64 {
	var out int64
	steps := m.c.StepTypes
	for i := len(steps) - 1; i >= 0 && steps[i].Not; i-- {
		out = max(out, steps[i].Within.Milliseconds())
	}
	return out
}

// waits tells how long after a record its hit is decided, and whether it waits for the clock at all.
func (m *memory) waits() int64 {
	if m.c.Detection.Kind == rule.KindSequence {
		return m.trail()
	}
	return m.c.Detection.Settle.Milliseconds()
}

// learned tells whether learning is over at t.
func (m *memory) learned(t int64) bool {
	d := m.c.Detection.Learning.Milliseconds()
	if d == 0 || m.c.Detection.Kind == rule.KindAggregate && m.c.Detection.Baseline == 0 {
		return true
	}
	began := m.began()
	return began != never && t >= began+d
}

// process judges a group anew from what changed on, sends what follows and lets go of what is over.
func (s *State) process(g *group) {
	s.touch(g)
	m := g.m
	if m.c == nil {
		return
	}
	s.own(g)
	if g.anew {
		g.hits, g.cover, g.swept, g.dirty, g.anew = nil, nil, g.floor, ever, false
	}
	s.limit(g)
	waits := m.waits()
	from, to := g.dirty, int64(math.MaxInt64-1)
	if waits > 0 {
		to = m.clock
		if g.swept != ever {
			from = min(from, g.swept+1)
		} else {
			from = ever
		}
	}
	if g.floor != ever {
		from = max(from, g.floor+1)
	}
	if from <= to {
		n := sort.Search(len(g.hits), func(i int) bool { return g.hits[i].at >= from })
		g.hits = g.hits[:n:n]
		switch m.c.Detection.Kind {
		case rule.KindMatch: // has no memory
		case rule.KindAggregate:
			s.aggregate(g, from, to)
		case rule.KindSequence:
			s.sequence(g, from, to)
		case rule.KindFirstSeen:
			s.firstSeen(g, from)
		}
		if waits > 0 {
			g.swept = max(g.swept, to)
		}
	}
	g.dirty = never
	s.from = from
	var cands []cand
	if len(g.hits) > 0 || len(g.dets) > 0 {
		cands = s.join(g)
		s.reconcile(g, cands, from)
	}
	s.settle(g, cands)
	s.lens.clear()
	s.keysFor = nil
	if !g.gone {
		s.trim(g)
	}
}

// limit keeps a group within the number of records: the oldest go. A detection that loses records this way is carried
// on as it was.
func (s *State) limit(g *group) {
	over := g.len() - maxHeld
	if len(g.data) > maxBytes {
		over = max(over, 0) + g.len()/8
	}
	if over <= 0 {
		return
	}
	g.cover = nil
	over = min(over+maxHeld/8, g.len()-1)
	m := g.m
	if !g.truncated {
		g.truncated = true
		s.limited(m.c.ID, "a group holds more than 10,000 records: the oldest go")
	}
	cut := g.time(over - 1)
	for _, c := range s.join(g) {
		id := c.id
		if old, ok := g.dets[id]; ok && !old.final && !old.withdrawn && c.first <= cut {
			kept := c
			n := sort.Search(len(c.hits), func(i int) bool { return g.hits[c.hits[i]].at > cut })
			kept.hits = c.hits[:n]
			d, _, _ := s.write(g, kept, id)
			d.LastTime = time.UnixMilli(max(old.first, lastHit(g, kept))).UTC()
			d.Truncated = true
			d.Evidence = nil
			if b, err := d.AppendAvro(nil); err == nil {
				old.carry = b
				g.note(id, old)
				s.change(keyOfSent(g, id), appendSent(nil, &old))
			}
		}
	}
	g.floor = max(g.floor, cut)
	g.hits = slices.DeleteFunc(slices.Clone(g.hits), func(h hit) bool { return h.at <= g.floor })
	s.cut(g, over)
	s.writeMeta(g)
}

func lastHit(g *group, c cand) int64 {
	if len(c.hits) == 0 {
		return c.first
	}
	return g.hits[c.hits[len(c.hits)-1]].at
}

// cut drops the first n events.
func (s *State) cut(g *group, n int) {
	g.each(0, n, func(h *held) { s.changeHeld(g, h, true) })
	s.dropFirst(g, n)
	for i := range g.hits {
		h := &g.hits[i]
		h.last -= int32(n) //nolint:gosec // at most maxHeld
		h.lo = max(h.lo-int32(n), 0)
		h.hi -= int32(n) //nolint:gosec // at most maxHeld
		for j := range h.steps {
			if h.steps[j] >= 0 {
				h.steps[j] -= int32(n) //nolint:gosec // at most maxHeld
			}
		}
		for j := range h.events {
			h.events[j] -= int32(n) //nolint:gosec // at most maxHeld
		}
	}
}

func (s *State) writeMeta(g *group) {
	g.meta = true
	s.change(keyOfMeta(g), appendMeta(nil, g))
}

// join makes detections of the hits of each key.
func (s *State) join(g *group) []cand {
	period := g.m.period()
	long := max(dayMS, period)
	var out []cand
	many := len(g.m.c.Detection.SeenBefore) > 0 // keys within the group
	var open map[string]int
	if many || g.truncated {
		open = map[string]int{}
	}
	for _, id := range s.carried(g) {
		d := g.dets[id]
		if len(d.carry) == 0 || d.final || d.withdrawn {
			continue
		}
		c := new(record.Detection)
		if c.DecodeAvro(d.carry) != nil {
			continue
		}
		sub := s.subOf(g, c)
		open[sub] = len(out)
		out = append(out, cand{sub: sub, first: d.first, last: c.LastTime.UnixMilli(), carried: c})
	}
	lastSub, lastAt := "", -1
	if i, ok := open[""]; ok {
		lastAt = i
	}
	for i := range g.hits {
		h := &g.hits[i]
		at := lastAt
		if many && (h.sub != lastSub || at < 0) {
			var ok bool
			if at, ok = open[h.sub]; !ok {
				at = -1
			}
		}
		if at >= 0 && h.at-out[at].last <= period && h.at-out[at].first < long {
			out[at].last = h.at
			out[at].hits = append(out[at].hits, int32(i)) //nolint:gosec // at most maxHeld
		} else {
			at = len(out)
			out = append(out, cand{sub: h.sub, first: h.at, last: h.at, hits: []int32{int32(i)}}) //nolint:gosec // at most maxHeld
		}
		if many {
			open[h.sub] = at
		}
		lastSub, lastAt = h.sub, at
	}
	for i := range out {
		c := &out[i]
		if c.carried != nil {
			c.id = s.detectionID(g, *c)
			continue
		}
		h := &g.hits[c.hits[0]]
		if h.begun == nil || h.begun.c != g.m.c {
			h.begun = &begun{g.m.c, s.detectionID(g, *c)}
		}
		c.id = h.begun.id
	}
	return out
}

// carried are the detections that may be carried on: none in a group that was never cut.
func (s *State) carried(g *group) []string {
	if !g.truncated {
		return nil
	}
	return sortedKeys(g.dets)
}

// subOf is the key within the group that a carried detection is of.
func (s *State) subOf(g *group, d *record.Detection) string {
	if len(g.m.c.Detection.SeenBefore) == 0 {
		return ""
	}
	key := make([]string, len(g.m.c.Detection.GroupBy))
	for i, p := range g.m.c.Detection.GroupBy {
		key[i] = d.Key[p.Name]
	}
	return groupText(g.m.c, key, false)
}

// keyText is the canonical key of a candidate.
func (g *group) keyText(sub string) string {
	if sub != "" {
		return sub
	}
	return g.id
}

func (s *State) detectionID(g *group, c cand) string {
	m := g.m
	b := append(append(s.buf[:0], m.c.ID...), 0)
	b = append(strconv.AppendInt(b, int64(m.c.Revision), 10), 0)
	b = append(append(b, m.lane.org...), 0)
	b = append(append(b, m.hash...), 0)
	if k := g.keyText(c.sub); k != "" {
		b = append(append(b, k...), 0)
	}
	b = strconv.AppendInt(b, floorDiv(c.first, m.period()), 10)
	s.buf = b
	return ident.ID(b)
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b != 0 && a < 0 {
		q--
	}
	return q
}

// reconcile compares the detections as they are now with what was sent, and sends what differs: new ones before those
// that are withdrawn.
func (s *State) reconcile(g *group, cands []cand, from int64) {
	m := g.m
	period := m.period()
	live := func(id string) bool { return slices.ContainsFunc(cands, func(c cand) bool { return c.id == id }) }
	if len(cands) > fewEvents {
		ids := make(map[string]bool, len(cands))
		for _, c := range cands {
			ids[c.id] = true
		}
		live = func(id string) bool { return ids[id] }
	}
	decided := s.decided(g)
	for _, c := range cands {
		id := c.id
		old, known := g.dets[id]
		if known && old.final && !old.withdrawn {
			continue
		}
		now := max(m.lane.watermark, c.last)
		final := decided != ever && decided >= c.last+period
		if known && !old.withdrawn && c.last < from && old.first == c.first && old.last == c.last && !final && (!old.pending || !s.closing && now-old.at < pace) {
			continue
		}
		d, digest, content := s.write(g, c, id)
		if given := s.give(g, c, d, old, final); given != old.given {
			old.given = given
			if known {
				g.note(id, old)
			}
		}
		switch {
		case !known || old.withdrawn:
		case final:
		case digest != old.digest:
		case content != old.content && (s.closing || now-old.at >= pace):
		default:
			if pending := content != old.content; pending != old.pending || old.last != c.last {
				old.pending, old.last = pending, c.last
				g.note(id, old) // not worth an entry: a restart finds it again
			}
			continue
		}
		d.Update, d.Final = old.update+1, final
		s.keep(g, id, sent{
			update: d.Update, digest: digest, content: content, first: c.first, last: c.last, count: d.EventCount, at: now,
			slotEnd: (floorDiv(c.first, period) + 1) * period, severity: d.Severity, final: final, title: d.Title, carry: old.carry,
			given: old.given,
		})
		s.out.Detections = append(s.out.Detections, d)
	}
	for _, id := range sortedKeys(g.dets) {
		old := g.dets[id]
		if live(id) || old.withdrawn || old.final {
			continue
		}
		s.takeAway(g, id, old)
		old.update++
		old.withdrawn, old.pending, old.given = true, false, nil
		d := s.base(g, "")
		d.ID, d.Update, d.Withdrawn = id, old.update, true
		d.FirstTime, d.LastTime = time.UnixMilli(old.first).UTC(), time.UnixMilli(old.last).UTC()
		d.Severity, d.Title, d.EventCount = old.severity, old.title, old.count
		s.keep(g, id, old)
		s.out.Detections = append(s.out.Detections, d)
	}
}

// keep notes what was sent.
func (s *State) keep(g *group, id string, d sent) {
	g.note(id, d)
	s.change(keyOfSent(g, id), appendSent(nil, &d))
}

func (g *group) note(id string, d sent) {
	g.ownDets()
	g.dets[id] = d
}

// ownDets is called before dets is changed: a snapshot may have it too.
func (g *group) ownDets() {
	switch {
	case g.dets == nil:
		g.dets = map[string]sent{}
	case g.lent&lentDets != 0:
		g.dets = maps.Clone(g.dets)
	}
	g.lent &^= lentDets
}

// base is what every detection of a group says.
func (s *State) base(g *group, sub string) *record.Detection {
	m := g.m
	d := new(record.Detection)
	*d = *m.part
	d.Org, d.Lane = m.lane.org, m.lane.lane
	key := keyOf(m.c, g.keyText(sub))
	if len(key) > 0 {
		d.Key = make(map[string]string, len(key))
		for i, p := range m.c.Detection.GroupBy {
			d.Key[p.Name] = key[i]
		}
	}
	h := &rule.Hit{Event: s.event, Key: key}
	s.event.Reset(&s.empty)
	dedup, err := m.c.HitDedupKey(h)
	s.failed(err)
	for i, k := range dedup {
		dedup[i] = clip(k, maxDedupBytes)
	}
	d.DedupKey, d.Fingerprint = dedup, ident.Fingerprint(m.lane.org, m.c.ID, dedup)
	return d
}

// write makes the detection of a candidate, with a digest of what is told at once and one of all of it.
func (s *State) write(g *group, c cand, id string) (d *record.Detection, digest, content uint64) {
	m := g.m
	d = s.base(g, c.sub)
	d.ID = id
	d.FirstTime, d.LastTime = time.UnixMilli(c.first).UTC(), time.UnixMilli(c.last).UTC()
	d.Truncated = g.truncated
	best := -1
	for _, i := range c.hits {
		if best < 0 || g.hits[i].severity >= g.hits[best].severity {
			best = int(i)
		}
	}
	d.Severity = 0
	if c.carried != nil {
		d.Severity, d.Title, d.Context = c.carried.Severity, c.carried.Title, c.carried.Context
		d.Values = c.carried.Values
		d.Published = c.carried.Published
	}
	if best >= 0 && int32(g.hits[best].severity) >= d.Severity { //nolint:gosec // 1 to 5
		d.Severity = int32(g.hits[best].severity) //nolint:gosec // 1 to 5
		h := s.bind(g, &g.hits[best])
		var err error
		d.Title, err = m.c.HitTitle(h)
		s.failed(err)
		d.Context, err = m.c.HitContext(h)
		s.failed(err)
		d.Values = s.values(g, &g.hits[best], h)
	}
	s.evidence(g, c, d)
	hash := &s.sum
	hash.Reset()
	hash.int(int64(d.Severity))
	hash.text(d.Title)
	for _, set := range [][]string{d.Users, d.Addresses, d.Sessions, d.Devices, d.Apps} {
		hash.int(int64(len(set)))
		for _, e := range set {
			hash.text(e)
		}
	}
	hash.int(c.first)
	digest = hash.Sum64()
	hash.int(c.last)
	hash.int(d.EventCount)
	for _, e := range d.EvidenceUUIDs {
		hash.text(e)
	}
	for i := range d.Evidence {
		hash.int(int64(d.Evidence[i].Copy))
	}
	for _, m := range []map[string]string{d.Context, d.Values} {
		for _, k := range sortedKeys(m) {
			hash.text(k)
			hash.text(m[k])
		}
	}
	for _, b := range []bool{d.Backfill, d.Partial, d.Truncated} {
		if b {
			hash.int(1)
		} else {
			hash.int(0)
		}
	}
	fit(d)
	return d, digest, hash.Sum64()
}

// hasher is a hash that is the same in every process.
type hasher struct {
	h    uint64
	init bool
}

// Reset begins anew.
func (h *hasher) Reset() { h.h, h.init = 14695981039346656037, true }

func (h *hasher) text(s string) {
	for i := range len(s) {
		h.h = (h.h ^ uint64(s[i])) * 1099511628211
	}
	h.int(int64(len(s)))
}

func (h *hasher) int(n int64) {
	u := uint64(n) //nolint:gosec // bits
	for range 8 {
		h.h = (h.h ^ (u & 0xff)) * 1099511628211
		u >>= 8
	}
}

// Sum64 is the hash so far.
func (h *hasher) Sum64() uint64 { return h.h }

// evidence fills what a detection says of its events.
func (s *State) evidence(g *group, c cand, d *record.Detection) {
	nums := s.union(g, c)
	if g.m.c.Over() {
		nums = g.distinct(nums)
	}
	d.EventCount = int64(len(nums))
	var lost []string
	if c.carried != nil {
		lost = c.carried.EvidenceUUIDs
		d.EventCount = max(d.EventCount, c.carried.EventCount)
		d.Users, d.Apps, d.Addresses = slices.Clone(c.carried.Users), slices.Clone(c.carried.Apps), slices.Clone(c.carried.Addresses)
		d.Sessions, d.Devices = slices.Clone(c.carried.Sessions), slices.Clone(c.carried.Devices)
	}
	d.Backfill = true
	sets, upto := newSetBuilder(d), int64(ever)
	var cover *cover
	if len(nums) > fewCovered && g.m.c.Detection.Kind == rule.KindAggregate && c.carried == nil {
		if cover = g.cover; cover == nil || cover.id != c.id || s.from <= cover.upto {
			cover = newCover(c.id)
			g.cover = cover
		}
		sets, upto = cover.sets, cover.upto
		cover.upto = c.last
	}
	h, published := &s.comes, -1
	for n, i := range nums {
		bits := g.bits(int(i))
		d.Backfill = d.Backfill && bits&bitBackfill != 0
		if bits&bitPartial != 0 {
			d.Partial, d.Unconfirmed = true, true
		}
		if bits&bitPublished != 0 {
			published = int(i)
		}
		listed := n < evidenceEnd || n >= len(nums)-evidenceEnd
		if !listed && g.time(int(i)) <= upto {
			continue
		}
		g.read(int(i), h)
		if listed {
			d.EvidenceUUIDs = append(d.EvidenceUUIDs, h.identity())
		}
		if n >= maxEvidence && h.time <= upto {
			continue
		}
		s.kept = s.payload(s.kept[:0], g, h)
		if s.view.Reset(s.kept) != nil {
			continue
		}
		if h.time > upto {
			sets.add(&s.view)
		}
		if n < maxEvidence {
			e := record.Evidence{
				UUID: d.EvidenceUUIDs[n], EventType: string([]byte(s.view.EventType())), Time: s.view.Derived().Time, Topic: s.topic,
				Partition: h.partition, Offset: h.offset, Copy: int32(h.copy), Published: h.wasPublished(),
			}
			d.Evidence = append(d.Evidence, e)
		}
	}
	if published >= 0 {
		g.read(published, h)
		d.Published = h.wasPublished()
	}
	if cover != nil {
		o := &cover.d
		d.Users, d.Apps, d.Addresses = slices.Clip(o.Users), slices.Clip(o.Apps), slices.Clip(o.Addresses)
		d.Sessions, d.Devices = slices.Clip(o.Sessions), slices.Clip(o.Devices)
	}
	if len(nums) == 0 {
		d.Backfill = c.carried != nil && c.carried.Backfill
	}
	if len(lost) > 0 {
		first := lost[:min(evidenceEnd, len(lost))]
		own := d.EvidenceUUIDs
		d.EvidenceUUIDs = append(slices.Clone(first), own[max(0, len(own)-evidenceEnd):]...)
	}
}

// wasPublished is when Okta published the event, nil where that is not known.
func (h *held) wasPublished() *time.Time {
	if h.bits&bitPublished == 0 {
		return nil
	}
	t := time.UnixMilli(h.published).UTC()
	return &t
}

// fewCovered is how much evidence is read again each time.
const fewCovered = 8

// cover is what the evidence of a large detection says up to a time, so that only what came behind it must be read. In
// an aggregate no later hit has evidence before that time that an earlier one had not.
type cover struct {
	id   string
	upto int64
	d    record.Detection
	sets *setBuilder
}

func newCover(id string) *cover {
	c := &cover{id: id, upto: ever}
	c.sets = newSetBuilder(&c.d)
	return c
}

// union is the evidence of a candidate, as numbers of events in order.
func (s *State) union(g *group, c cand) []int32 {
	out := s.nums[:0]
	if g.m.c.Detection.Kind == rule.KindAggregate {
		next := int32(0)
		for _, i := range c.hits {
			h := &g.hits[i]
			for n := max(next, h.lo); n < h.hi; n++ {
				if g.bits(int(n))&bitSeed == 0 {
					out = append(out, n)
				}
			}
			next = max(next, h.hi)
		}
		s.nums = out
		return out
	}
	for _, i := range c.hits {
		out = append(out, g.hits[i].events...)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	s.nums = out
	return out
}

// bind makes what the expressions over a hit see.
func (s *State) bind(g *group, h *hit) *rule.Hit {
	switch g.m.c.Detection.Kind {
	case rule.KindAggregate:
		s.window(g, h)
	default:
		s.hit = rule.Hit{Event: s.lens.event(s, g, h.last)}
		if h.steps != nil {
			s.hit.Steps = make([]*rule.Event, len(h.steps))
			for i, n := range h.steps {
				if n >= 0 {
					s.hit.Steps[i] = s.lens.event(s, g, n)
				}
			}
		}
	}
	s.hit.Key = keyOf(g.m.c, g.keyText(h.sub))
	s.hit.Evidence = func() []*rule.Event { return s.shown(g, h) }
	return &s.hit
}

// shown are the events of a hit that evidence shows: the last 1,000.
func (s *State) shown(g *group, h *hit) []*rule.Event {
	nums := h.events
	if g.m.c.Detection.Kind == rule.KindAggregate {
		nums = nil
		for n := h.hi - 1; n >= h.lo && len(nums) < maxListed; n-- {
			if g.bits(int(n))&bitSeed == 0 {
				nums = append(nums, n)
			}
		}
		slices.Reverse(nums)
	}
	if len(nums) > maxListed {
		nums = nums[len(nums)-maxListed:]
	}
	out := make([]*rule.Event, len(nums))
	for i, n := range nums {
		out[i] = s.lens.event(s, g, n)
	}
	return out
}

const keptLens = 32

// lens shows held events to expressions. It holds them while one group is processed.
type lens struct {
	all  []*seenEvent
	used int
	by   map[int32]*seenEvent
}

type seenEvent struct {
	ev   *rule.Event
	view record.SystemLogView
	kept []byte // the payload
}

func (l *lens) event(s *State, g *group, n int32) *rule.Event {
	if e := l.by[n]; e != nil {
		return e.ev
	}
	if l.used == len(l.all) {
		l.all = append(l.all, &seenEvent{ev: s.set.NewEvent()})
	}
	e := l.all[l.used]
	l.used++
	g.read(int(n), &s.comes)
	e.kept = s.payload(e.kept[:0], g, &s.comes)
	if err := e.view.Reset(e.kept); err != nil {
		s.failed(err)
	}
	e.ev.Reset(&e.view)
	e.ev.SetDetection(s.comes.detection())
	if l.by == nil {
		l.by = map[int32]*seenEvent{}
	}
	l.by[n] = e
	return e.ev
}

func (l *lens) clear() {
	if l.used == 0 {
		return
	}
	if l.used > keptLens {
		l.all, l.by = slices.Clone(l.all[:keptLens]), nil // a view is some kilobytes
	}
	l.used = 0
	clear(l.by)
}

// settle lets go of what is over and says when to look again.
func (s *State) settle(g *group, cands []cand) {
	m := g.m
	period := m.period()
	late := m.c.Wait().Milliseconds()
	s.sureOfAll(g, m.clock)
	open := s.open(g)
	due := int64(never)
	wake := func(clock int64) { due = min(due, clock+late) }
	wakeDecided := func(at int64) { // when all up to at is decided
		if open <= at {
			at = max(at, open+openFor)
		}
		wake(at)
	}
	minFirst := int64(never)
	for _, c := range cands {
		d := g.dets[c.id]
		if d.final {
			continue
		}
		wakeDecided(c.last + period)
		if d.pending {
			due = min(due, d.at+pace)
		}
		if len(c.hits) > 0 {
			minFirst = min(minFirst, g.hits[c.hits[0]].at)
		}
	}
	wrote := false
	if m.clock != ever {
		if floor := min(m.clock, minFirst-1, open-1); floor > g.floor {
			g.floor = floor
			n := sort.Search(len(g.hits), func(i int) bool { return g.hits[i].at > floor })
			g.hits = slices.Clone(g.hits[n:])
		}
		for _, id := range sortedKeys(g.dets) {
			d := g.dets[id]
			switch {
			case d.withdrawn && d.slotEnd <= min(m.clock, open-1), d.final && !d.withdrawn && d.last <= g.floor:
				g.ownDets()
				delete(g.dets, id)
				s.change(keyOfSent(g, id), nil)
				wrote = true
			case d.withdrawn:
				wakeDecided(d.slotEnd)
			}
		}
		if len(g.dets) == 0 {
			g.dets = nil
		}
		wrote = s.prune(g) || wrote
	}
	if g.len() == 0 && len(g.dets) == 0 && g.seen == "" && g.buckets == "" && open == never {
		s.drop(g)
		return
	}
	if wrote {
		s.writeMeta(g)
	}
	if waits := m.waits(); waits > 0 {
		n := 0
		if g.swept != ever {
			n = g.timeAfter(g.swept - waits)
		}
		if n < g.len() {
			wake(g.time(n) + waits)
		}
	}
	if open != never {
		wake(open + openFor)
	} else if minFirst == never || m.clock == ever || g.floor >= m.clock {
		if g.len() > 0 {
			wake(s.prunable(g))
		}
		switch {
		case g.buckets != "":
			d := &m.c.Detection
			wake(g.buckets.start() + (d.Bucket + d.Window + d.Baseline).Milliseconds())
		case g.seen != "":
			if one, rest := g.seen.first(0); rest == "" {
				wake(one.time + m.c.Detection.Memory.Milliseconds())
			} else {
				wake(max(m.clock, 0) + max(m.c.Detection.Memory.Milliseconds()/8, pace))
			}
		}
	}
	s.schedule(g, max(due, ever+1))
}

// cutoff is the time up to which no later hit needs the group's events.
func (m *memory) cutoff(floor int64) int64 {
	d := &m.c.Detection
	switch {
	case d.Kind == rule.KindFirstSeen:
		return floor
	case d.Kind == rule.KindSequence:
		return floor - d.Window.Milliseconds() - m.trail()
	case d.Baseline > 0:
		b := d.Bucket.Milliseconds()
		// Whole buckets only, and none with a record that is still to be judged.
		return min(floorDiv(floor+1, b)-d.Window.Milliseconds()/b+1, floorDiv(floor+1-d.Settle.Milliseconds(), b))*b - 1
	}
	return floor - d.Window.Milliseconds()
}

// slack is how long pruning may wait, so that it is not done for each event of a busy group.
func (m *memory) slack(g *group) int64 {
	if g.len() <= fewEvents {
		return 0
	}
	d := &m.c.Detection
	return min((d.Window+d.Memory).Milliseconds()/8, 60*pace)
}

// prunable is the clock at which the oldest event can go.
func (s *State) prunable(g *group) int64 {
	m := g.m
	d := &m.c.Detection
	t := g.time(0) + m.slack(g)
	switch {
	case d.Kind == rule.KindFirstSeen:
		g.read(0, &s.comes)
		return max(t, s.comes.after)
	case d.Kind == rule.KindSequence:
		return t + d.Window.Milliseconds() + m.trail()
	case d.Baseline > 0:
		b := d.Bucket.Milliseconds()
		k := floorDiv(t, b)
		return max((k+d.Window.Milliseconds()/b)*b, (k+1)*b+d.Settle.Milliseconds())
	}
	return t + d.Window.Milliseconds()
}

// prune drops events that no later hit needs; first_seen and baselines keep what they say. It tells whether anything
// went: then the changelog must say how far the group is decided, for what is left does not give the past again.
func (s *State) prune(g *group) bool {
	m := g.m
	wrote := s.expire(g)
	if g.len() == 0 || g.floor < s.prunable(g) {
		return wrote
	}
	cut := m.cutoff(g.floor)
	n := g.timeAfter(cut)
	if m.c.Detection.Kind == rule.KindFirstSeen {
		for i := range n {
			if g.read(i, &s.comes); s.comes.after > g.floor {
				n = i
				break
			}
		}
	}
	if n == 0 {
		return wrote
	}
	switch {
	case m.c.Detection.Kind == rule.KindFirstSeen:
		s.foldSeen(g, n)
	case m.c.Detection.Baseline > 0:
		s.foldBuckets(g, n)
	}
	s.cut(g, n)
	return true
}

// expire drops sightings and buckets that are too old.
func (s *State) expire(g *group) bool {
	m := g.m
	d := &m.c.Detection
	wrote := false
	if g.seen != "" {
		old := g.floor - d.Memory.Milliseconds()
		all := g.seen.all()
		rest := slices.DeleteFunc(all, func(one sighting) bool {
			if one.time > old {
				return false
			}
			s.change(keyOfSeen(g, one.sub), nil)
			return true
		})
		if len(rest) < len(all) {
			g.seen, wrote = packSeen(rest), true
		}
	}
	if g.buckets != "" {
		b := d.Bucket.Milliseconds()
		least := (floorDiv(g.floor+1, b) - (d.Window+d.Baseline).Milliseconds()/b + 1) * b
		if g.buckets.start() < least {
			all := g.buckets.all()
			n := 0
			for n < len(all) && all[n].start < least {
				s.change(keyOfBucket(g, all[n].start), nil)
				n++
			}
			g.buckets, wrote = packBuckets(all[n:]), true
		}
	}
	return wrote
}

// setBuilder fills the sets of a detection.
type setBuilder struct {
	d    *record.Detection
	have [5]map[string]struct{}
}

func newSetBuilder(d *record.Detection) *setBuilder { return &setBuilder{d: d} }

func (b *setBuilder) put(which int, set *[]string, names ...string) {
	if len(*set) >= maxSet {
		return
	}
	for _, n := range names {
		if !rule.Known(n) || len(n) > maxSetText {
			continue
		}
		if b.have[which] == nil {
			if len(*set) < fewEvents {
				if !slices.Contains(*set, n) {
					*set = append(*set, string([]byte(n)))
				}
				return
			}
			b.have[which] = make(map[string]struct{}, 2*len(*set))
			for _, o := range *set {
				b.have[which][o] = struct{}{}
			}
		}
		if _, ok := b.have[which][n]; !ok {
			n = string([]byte(n))
			b.have[which][n] = struct{}{}
			*set = append(*set, n)
		}
		return
	}
}

func (b *setBuilder) add(v *record.SystemLogView) {
	d := b.d
	if a := v.Actor(); a != nil && a.Type == "User" {
		b.put(0, &d.Users, a.AlternateID, a.ID)
	}
	targets := v.Target()
	for i := range targets {
		switch t := &targets[i]; t.Type {
		case "User":
			b.put(0, &d.Users, t.AlternateID, t.ID)
		case "AppInstance":
			b.put(1, &d.Apps, t.AlternateID, t.DisplayName, t.ID)
		}
	}
	if c := v.Client(); c != nil {
		b.put(2, &d.Addresses, c.IPAddress)
	}
	if a := v.AuthenticationContext(); a != nil {
		b.put(3, &d.Sessions, a.ExternalSessionID)
	}
	if dev := v.Device(); dev != nil {
		b.put(4, &d.Devices, dev.ID)
	}
}
