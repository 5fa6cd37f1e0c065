package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// Rules over detections read pairs: each evidence event of each detection, once. Whoever writes a detection makes them:
// the Matcher of a match rule's, the State of all others. They travel as a Match, and the State that holds the group of
// the rule that reads them replaces and removes them. A State remembers, in sent.given and the changelog, what it gave of
// each detection that may still change, so that it sends what is new, other or gone and no more.

const (
	maxGiven = maxHeld // evidence events of a detection that are read
	// openFor is longer than a detection can grow and wait: the longest period twice, a day at least. A pair behind it
	// does not change, even if nobody is left to say so.
	openFor = 15 * dayMS
)

// pair is one evidence event of a detection.
type pair struct {
	org, lane, uuid string
	at              int64 // time of the first hit that has the event as evidence
	ref             rule.DetectionRef
	update          int64
	place           Place
	copy            int32
	partial         bool
}

// openness is what a later update of its detection may change of a pair.
type openness uint8

const (
	settled openness = iota
	open             // what the rule reads
	unsure           // whether the rule takes it
)

// take gives what a rule takes of the pair, whose event ev stands at. What it does not take, but may yet, is a Match
// without fields: the rule's group waits for it.
func (p *pair) take(c *rule.Compiled, ev *rule.Event, is openness, o Observer) []*record.Match {
	if !c.Judges(p.partial) {
		return nil
	}
	ev.SetDetection(&p.ref)
	t, exception, err := c.Take(ev)
	if err != nil {
		o.Failed(err)
	}
	if exception != "" {
		o.Excepted(c.ID, exception)
	}
	at := time.UnixMilli(p.at).UTC()
	base := record.Match{
		Kind: MatchPair, Org: p.org, Lane: p.lane, UUID: p.uuid, Time: &at, Partition: p.place.partition(), Offset: p.place.offset(),
		Copy: p.copy, Partial: p.partial, Detection: p.said(c, is != settled),
	}
	if t != nil {
		return matchesOf(c, t, ev.View(), o, base)
	}
	if is != unsure {
		return nil
	}
	keys, err := c.Groups(ev)
	if err != nil { // told already
		return nil
	}
	out := matchesOf(c, &rule.Taken{Keys: keys}, ev.View(), o, base)
	for _, mt := range out {
		mt.Fields = nil
	}
	return out
}

// said is what travels of the detection: the fields that the rule still reads of a held pair, and its identity.
func (p *pair) said(c *rule.Compiled, open bool) *record.MatchDetection {
	r := &p.ref
	d := &record.MatchDetection{ID: r.ID, Update: p.update, RuleID: r.RuleID, Mode: r.Mode, Techniques: []string{}, Tags: []string{}, Open: open}
	if c.KeepsRef("title") {
		d.Title = r.Title
	}
	if c.KeepsRef("severity") {
		d.Severity = int32(r.Severity) //nolint:gosec // 1 to 5
	}
	if c.KeepsRef("techniques") {
		d.Techniques = r.Techniques
	}
	if c.KeepsRef("tags") {
		d.Tags = r.Tags
	}
	if c.KeepsRef("firstTime") && !r.FirstTime.IsZero() {
		t := r.FirstTime
		d.FirstTime = &t
	}
	return d
}

// refTo is event.detection of a detection's evidence.
func refTo(d *record.Detection) rule.DetectionRef {
	return rule.DetectionRef{
		ID: d.ID, RuleID: d.RuleID, Title: d.Title, Mode: d.Mode, Severity: int64(d.Severity), Techniques: d.Techniques, Tags: d.Tags,
		FirstTime: d.FirstTime,
	}
}

// TakeDetection gives what rules over detections take of a detection that Match made of the record: a Match for each of
// these rules and group. That of the record's second copy takes the place of that of the first.
func (m *Matcher) TakeDetection(v *record.SystemLogView, at Place, d *record.Detection) []*record.Match {
	readers := m.indexOf(d.Org).reads[d.RuleID]
	if len(readers) == 0 {
		return nil
	}
	return m.takePair(readers, v, at, refTo(d), d.Update, d.FirstTime)
}

// TakePair gives what rules over detections take of a record that comes through a detection, at the time of that one's
// first hit with it: what a test of a rule gives. Whose detection it is, is the rules' own condition.
func (m *Matcher) TakePair(v *record.SystemLogView, at Place, ref rule.DetectionRef, when time.Time) []*record.Match {
	return m.takePair(m.indexOf(v.Derived().Org).readers, v, at, ref, 1, when)
}

func (m *Matcher) takePair(readers []*rule.Compiled, v *record.SystemLogView, at Place, ref rule.DetectionRef, update int64, when time.Time) []*record.Match {
	var out []*record.Match
	derived := v.Derived()
	p := pair{
		org: derived.Org, lane: derived.Lane, uuid: Identity(v), at: when.UnixMilli(), ref: ref, update: update, place: at,
		copy: max(derived.Copy, 1), partial: derived.Partial,
	}
	m.event.Reset(v)
	for _, c := range readers {
		out = append(out, p.take(c, m.event, settled, m.observer)...)
	}
	m.event.SetDetection(nil)
	return out
}

// text is the lane's name in keys of the changelog.
func (l *laneID) text() string {
	if l.second {
		return l.lane + "\x00"
	}
	return l.lane
}

func laneOf(org, text string) laneID {
	name, second := strings.CutSuffix(text, "\x00")
	return laneID{org, name, second}
}

// memoryOf is the memory that a Match is for; nil where no rule is known for it.
func (s *State) memoryOf(mt *record.Match) *memory {
	id := ruleID{mt.RuleID, mt.StateHash}
	if m := s.lastMemory; m != nil && m.c != nil && m.ruleID == id && m.lane.org == mt.Org && m.lane.lane == mt.Lane {
		return m
	}
	for _, second := range []bool{false, true} {
		if l := s.lanes[laneID{mt.Org, mt.Lane, second}]; l != nil {
			if m := l.rules[id]; m != nil && m.c != nil {
				s.lastMemory = m
				return m
			}
		}
	}
	c := s.find(mt.Org, id)
	if c == nil {
		return nil
	}
	return s.memory(s.lane(laneID{mt.Org, mt.Lane, c.Over()}), id, true)
}

// pairing is what the State works with when it makes and places pairs.
type pairing struct {
	disabled bool // rules that are disabled read too
	set      *rule.Set
	event    *rule.Event
	view     record.SystemLogView
	held     held
	unsure   map[*group]map[pairID]int64
}

// pairID is a pair that is not taken but may yet be; with its time the group's memory waits for it.
type pairID struct{ id, uuid string }

// WithDisabledReaders makes pairs for disabled rules too: tests and evaluations do.
func WithDisabledReaders() StateOption { return func(s *State) { s.pairs.disabled = true } }

// readers are the rules that read what a memory's rule finds, by a set of rules.
type readers struct {
	of       *rule.Set
	c        *rule.Compiled
	rules    []readingRule
	changing int
}

type readingRule struct {
	c    *rule.Compiled
	refs int // fields of event.detection that it reads and that may change
	take int // those that decide whether it takes a record
}

func (s *State) readers(m *memory) *readers {
	r := &m.reads
	if r.of == s.set && r.c == m.c {
		return r
	}
	*r = readers{of: s.set, c: m.c, changing: m.c.Changing()}
	if m.c.Mode.Read() && !m.c.Over() {
		for _, c := range s.set.For(m.lane.org) {
			if (c.Mode != rule.ModeDisabled || s.pairs.disabled) && c.CanRead(m.c) && m.c.KeepsFor(c) {
				r.rules = append(r.rules, readingRule{c, c.Refs(), c.TakesByRefs()})
			}
		}
	}
	return r
}

// given are the pairs that were made of a detection, by the identity of the event.
type given struct {
	pairs map[string]givenPair
	last  int64 // no pair lies behind it
}

type givenPair struct {
	at      int64
	copy    uint8
	partial bool
}

func keyOfGiven(g *group, id, uuid string) string {
	return key(entryGiven, g.m.lane.org, g.m.lane.text(), g.m.id, g.m.hash, g.id, id, uuid)
}

func (p givenPair) encode() []byte {
	b := appendInt([]byte{1, p.copy, 0}, p.at)
	if p.partial {
		b[2] = 1
	}
	return b
}

func (g *group) restoreGiven(id, uuid string, r *reader) {
	d := g.dets[id]
	if d.given == nil {
		d.given = newGiven()
		if g.dets == nil {
			g.dets = map[string]sent{}
		}
		g.dets[id] = d
	}
	if r.byte() != 1 {
		r.bad = true
	}
	p := givenPair{copy: r.byte(), partial: r.byte() == 1}
	p.at = r.int()
	d.given.pairs[uuid] = p
	d.given.last = max(d.given.last, p.at)
}

func newGiven() *given { return &given{pairs: map[string]givenPair{}, last: ever} }

func (v *given) entries(g *group, id string) []Change {
	if v == nil {
		return nil
	}
	out := make([]Change, 0, len(v.pairs))
	for uuid, p := range v.pairs {
		out = append(out, Change{keyOfGiven(g, id, uuid), p.encode()})
	}
	return out
}

// list notes that a pair was made.
func (s *State) list(g *group, id string, v *given, uuid string, p givenPair) {
	was, had := v.pairs[uuid]
	s.undo = append(s.undo, func() {
		if had {
			v.pairs[uuid] = was
		} else {
			delete(v.pairs, uuid)
		}
	})
	v.pairs[uuid] = p
	v.last = max(v.last, p.at)
	s.change(keyOfGiven(g, id, uuid), p.encode())
}

// strike notes that a pair is taken away.
func (s *State) strike(g *group, id string, v *given, uuid string) {
	was := v.pairs[uuid]
	s.undo = append(s.undo, func() { v.pairs[uuid] = was })
	delete(v.pairs, uuid)
	s.change(keyOfGiven(g, id, uuid), nil)
}

// unlist forgets what was made of a detection that does not change any more. What v holds stays, for Abort.
func (s *State) unlist(g *group, id string, v *given) {
	if v == nil {
		return
	}
	for _, uuid := range sortedKeys(v.pairs) {
		s.change(keyOfGiven(g, id, uuid), nil)
	}
}

// give makes the pairs of a detection as it is now, against those that were made of it as old. Unlike the detection they
// wait for no minute: the clock of the rules that read them does not.
func (s *State) give(g *group, c cand, d *record.Detection, old sent, final bool) *given {
	m := g.m
	rs := s.readers(m)
	v := old.given
	if len(rs.rules) == 0 {
		if final {
			s.unlist(g, c.id, v)
			return nil
		}
		return v
	}
	if v == nil {
		v = newGiven()
	}
	x := exchange{
		s: s, g: g, rs: rs, final: final,
		now: pair{org: m.lane.org, lane: m.lane.lane, ref: refTo(d), update: old.update + 1},
	}
	x.was = x.now
	x.was.ref.Title, x.was.ref.Severity, x.was.ref.FirstTime = old.title, int64(old.severity), time.UnixMilli(old.first).UTC()
	said := 0 // fields that say something else than before, or will say nothing else from now on
	if len(v.pairs) > 0 {
		if x.was.ref.Title != x.now.ref.Title {
			said |= rule.RefTitle
		}
		if x.was.ref.Severity != x.now.ref.Severity {
			said |= rule.RefSeverity
		}
		if !x.was.ref.FirstTime.Equal(x.now.ref.FirstTime) {
			said |= rule.RefFirstTime
		}
		if final {
			said |= rs.changing
		}
	}
	wanted := map[string]bool{} // true: said as it is now
	var h held
	var text []byte
	firstHits(g, c, s.from, func(n int32, at int64) {
		g.read(int(n), &h)
		text = h.appendUUID(text[:0])
		if _, seen := wanted[string(text)]; seen {
			return
		}
		p := givenPair{at, h.copy, h.bits&bitPartial != 0}
		have, had := v.pairs[string(text)]
		switch {
		case had && have.at < s.from: // an earlier hit has it, which stands
			return
		case !had && len(v.pairs) >= maxGiven:
			if !g.truncated {
				g.truncated = true
				s.writeMeta(g)
				s.limited(m.c.ID, "a detection has more than 10,000 events: rules over detections read the first of them")
			}
			return
		}
		uuid := string(text)
		if wanted[uuid] = !had || have != p; !wanted[uuid] {
			return
		}
		s.list(g, c.id, v, uuid, p)
		for _, r := range rs.rules {
			if had {
				x.replace(n, r, have, p)
			} else {
				x.send(n, r, p)
			}
		}
	})
	if v.last >= s.from || said != 0 {
		for n := range g.len() {
			g.read(n, &h)
			text = h.appendUUID(text[:0])
			have, had := v.pairs[string(text)]
			if !had || string(h.sub) != c.sub {
				continue
			}
			switch done, want := wanted[string(text)]; {
			case !want && have.at >= s.from:
				x.remove(int32(n), have) //nolint:gosec // at most maxHeld
				s.strike(g, c.id, v, string(text))
			case !done:
				for _, r := range rs.rules {
					if r.refs&said != 0 {
						x.replace(int32(n), r, have, have) //nolint:gosec // at most maxHeld
					}
				}
			}
		}
	}
	if final {
		s.unlist(g, c.id, v)
		return nil
	}
	return v
}

// takeAway takes back all pairs of a detection that is withdrawn.
func (s *State) takeAway(g *group, id string, old sent) {
	if old.given == nil {
		return
	}
	x := exchange{s: s, g: g, rs: s.readers(g.m), was: pair{org: g.m.lane.org, lane: g.m.lane.lane, update: old.update}}
	x.was.ref = refTo(g.m.part)
	x.was.ref.ID, x.was.ref.Title, x.was.ref.Severity, x.was.ref.FirstTime = id, old.title, int64(old.severity), time.UnixMilli(old.first).UTC()
	done := map[string]bool{}
	for n := range g.len() {
		uuid := g.uuid(int32(n)) //nolint:gosec // at most maxHeld
		if have, had := old.given.pairs[uuid]; had && !done[uuid] {
			done[uuid] = true
			x.remove(int32(n), have) //nolint:gosec // at most maxHeld
		}
	}
	s.unlist(g, id, old.given)
}

// firstHits calls each with the evidence of a detection's hits from a time on, and the time of the hit. In an aggregate what
// an earlier hit has is left out; else an event may come again.
func firstHits(g *group, c cand, from int64, each func(n int32, at int64)) {
	k := sort.Search(len(c.hits), func(i int) bool { return g.hits[c.hits[i]].at >= from })
	if g.m.c.Detection.Kind != rule.KindAggregate {
		for _, i := range c.hits[k:] {
			for _, n := range g.hits[i].events {
				each(n, g.hits[i].at)
			}
		}
		return
	}
	next := int32(0)
	if k > 0 {
		next = g.hits[c.hits[k-1]].hi
	}
	for _, i := range c.hits[k:] {
		h := &g.hits[i]
		for n := max(next, h.lo); n < h.hi; n++ {
			if g.bits(int(n))&bitSeed == 0 {
				each(n, h.at)
			}
		}
		next = max(next, h.hi)
	}
}

// exchange puts the pairs of a detection as it is now in the place of those of it as it was.
type exchange struct {
	s        *State
	g        *group
	rs       *readers
	was, now pair
	final    bool
	viewed   int32 // number of the event that the view shows, plus one
}

// taken is what a rule takes of one of the group's events as a pair.
func (x *exchange) taken(n int32, c *rule.Compiled, p pair, as givenPair, is openness) []*record.Match {
	w := &x.s.pairs
	if w.set != x.s.set {
		w.set, w.event = x.s.set, x.s.set.NewEvent()
	}
	h := &w.held
	if x.viewed != n+1 {
		x.g.read(int(n), h)
		if err := w.view.Reset(x.s.payload(nil, x.g, h)); err != nil { // what is taken points into it
			x.viewed = 0
			x.s.failed(err)
			return nil
		}
		x.viewed = n + 1
	}
	w.event.Reset(&w.view)
	p.uuid, p.at, p.copy, p.partial = h.identity(), as.at, int32(as.copy), as.partial
	p.place = Place{x.s.topic, h.partition, h.offset}
	out := p.take(c, w.event, is, x.s.observer)
	for _, mt := range out { // without a topic as it came
		mt.Partition, mt.Offset = h.partition, h.offset
	}
	return out
}

func (x *exchange) openness(r readingRule, final bool) openness {
	switch {
	case final:
	case r.take&x.rs.changing != 0:
		return unsure
	case r.refs&x.rs.changing != 0:
		return open
	}
	return settled
}

// send makes a pair that was not there.
func (x *exchange) send(n int32, r readingRule, p givenPair) {
	x.s.out.Pairs = append(x.s.out.Pairs, x.taken(n, r.c, x.now, p, x.openness(r, x.final))...)
}

// replace sends what is other than before and takes away what is no more.
func (x *exchange) replace(n int32, r readingRule, was, now givenPair) {
	before := x.taken(n, r.c, x.was, was, x.openness(r, false))
	for _, mt := range x.taken(n, r.c, x.now, now, x.openness(r, x.final)) {
		i := slices.IndexFunc(before, func(o *record.Match) bool { return o.Group == mt.Group })
		if i >= 0 {
			old := before[i]
			before = slices.Delete(before, i, i+1)
			if samePair(old, mt) {
				continue
			}
		}
		x.s.out.Pairs = append(x.s.out.Pairs, mt)
	}
	x.withdraw(before)
}

// remove takes a pair away from every rule.
func (x *exchange) remove(n int32, was givenPair) {
	for _, r := range x.rs.rules {
		x.withdraw(x.taken(n, r.c, x.was, was, x.openness(r, false)))
	}
}

func (x *exchange) withdraw(all []*record.Match) {
	for _, mt := range all {
		mt.Fields = nil
		mt.Detection = &record.MatchDetection{ID: mt.Detection.ID, Update: mt.Detection.Update, RuleID: mt.Detection.RuleID, Techniques: []string{}, Tags: []string{}, Withdrawn: true}
		x.s.out.Pairs = append(x.s.out.Pairs, mt)
	}
}

// samePair tells whether two pairs of one group say the same.
func samePair(a, b *record.Match) bool {
	x, y := a.Detection, b.Detection
	return a.Time.Equal(*b.Time) && a.Copy == b.Copy && a.Partial == b.Partial && a.Excepted == b.Excepted && bytes.Equal(a.Fields, b.Fields) &&
		x.Title == y.Title && x.Severity == y.Severity && x.Open == y.Open && (x.FirstTime == nil) == (y.FirstTime == nil) &&
		(x.FirstTime == nil || x.FirstTime.Equal(*y.FirstTime))
}

// applyPair takes a Match of kind detection: it puts a pair in its place, instead of what it was, or removes it. A pair is
// never late: the clock waits for those who make them.
func (s *State) applyPair(m *memory, mt *record.Match) error {
	d := mt.Detection
	if d == nil || mt.Time == nil {
		return fmt.Errorf("evidence event %s for rule %s has no detection or time", mt.UUID, mt.RuleID)
	}
	g := m.groups[mt.Group]
	at := mt.Time.UnixMilli()
	unsure := !d.Withdrawn && len(mt.Fields) == 0
	if g == nil && d.Withdrawn {
		return nil
	}
	if g != nil && (d.Withdrawn || unsure) {
		h := &s.comes
		*h = held{time: at, sub: []byte(d.ID)}
		h.setUUID(mt.UUID)
		if i := s.pairAt(g, h); i >= 0 {
			s.removePair(g, i)
			s.changeHeld(g, h, true)
		}
	}
	if d.Withdrawn {
		s.sure(g, pairID{d.ID, mt.UUID})
		return nil
	}
	h := &s.comes
	if !unsure {
		if err := pairOf(h, m.c, mt); err != nil {
			return err
		}
	}
	if g == nil {
		if len(m.groups) >= maxGroups {
			s.limited(m.c.ID, "more than 1,000,000 groups: new keys are not tracked until old ones expire")
			return nil
		}
		g = s.newGroup(m, strings.Clone(mt.Group))
	}
	if unsure {
		s.unsure(g, pairID{strings.Clone(d.ID), strings.Clone(mt.UUID)}, at)
		return nil
	}
	s.sure(g, pairID{d.ID, mt.UUID})
	i := s.pairAt(g, h)
	if i < 0 {
		s.insert(g, h)
		return nil
	}
	old := &s.other
	g.read(i, old)
	switch {
	case h.copy < old.copy || s.same(g, old, h):
	case old.time != h.time:
		s.removePair(g, i)
		s.insert(g, h)
	default:
		s.touch(g)
		s.replace(g, i, h)
		s.changeHeld(g, h, false)
		s.changed(g, h.time)
	}
	return nil
}

func (s *State) removePair(g *group, i int) {
	s.touch(g)
	at := g.time(i)
	s.remove(g, i)
	s.changed(g, at)
}

// pairAt finds a pair, which may have been at another time; -1 where it is not held.
func (s *State) pairAt(g *group, h *held) int {
	if i, ok := s.locate(g, h); ok {
		return i
	}
	for i := range g.len() {
		if g.is(i, h) {
			return i
		}
	}
	return -1
}

// same tells whether a pair that is held says the same as one that comes.
func (s *State) same(g *group, h, o *held) bool {
	if h.time != o.time || h.copy != o.copy || h.bits&bitsKept != o.bits&bitsKept || h.flags != o.flags || h.published != o.published ||
		h.partition != o.partition || h.offset != o.offset || !bytes.Equal(h.values, o.values) || !bytes.Equal(h.ref, o.ref) {
		return false
	}
	s.kept = s.payload(s.kept[:0], g, h)
	return bytes.Equal(s.kept, o.payload)
}

// pairOf reads a pair from a Match.
func pairOf(h *held, c *rule.Compiled, mt *record.Match) error {
	if err := heldOf(h, c, mt); err != nil {
		return err
	}
	d := mt.Detection
	h.sub = []byte(d.ID)
	h.bits |= bitPair
	if d.Open {
		h.bits |= bitOpen
	}
	h.ref = appendRef(nil, c, d)
	return nil
}

// refSize is the length of a ref's length, which stands behind it in the changelog.
const refSize = 4

// splitRef takes the ref, which an entry of the changelog has behind the values, from them.
func (h *held) splitRef() bool {
	n := len(h.values) - refSize
	if n < 0 {
		return false
	}
	size := binary.LittleEndian.Uint32(h.values[n:])
	if uint64(size) > uint64(n) { //nolint:gosec // not negative
		return false
	}
	at := n - int(size)
	h.values, h.ref = h.values[:at], h.values[at:n]
	return true
}

func appendRef(b []byte, c *rule.Compiled, d *record.MatchDetection) []byte {
	text := func(field, s string) {
		if !c.KeepsRef(field) {
			s = ""
		}
		b = appendText(b, s)
	}
	text("ruleId", d.RuleID)
	text("title", d.Title)
	text("mode", d.Mode)
	b = append(b, byte(d.Severity)) //nolint:gosec // 1 to 5
	first := int64(ever)
	if d.FirstTime != nil {
		first = d.FirstTime.UnixMilli()
	}
	b = appendInt(b, first)
	for _, list := range [][]string{d.Techniques, d.Tags} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, s := range list {
			b = appendText(b, s)
		}
	}
	return b
}

// detection is event.detection of a held pair; nil of an event.
func (h *held) detection() *rule.DetectionRef {
	if h.bits&bitPair == 0 {
		return nil
	}
	out := &rule.DetectionRef{ID: string(h.sub)}
	r := &reader{b: h.ref}
	out.RuleID, out.Title, out.Mode = r.text(), r.text(), r.text()
	out.Severity = int64(r.byte())
	if t := r.int(); t != ever {
		out.FirstTime = time.UnixMilli(t).UTC()
	}
	for _, list := range []*[]string{&out.Techniques, &out.Tags} {
		for range r.size() {
			*list = append(*list, r.text())
		}
	}
	return out
}

// unsure notes a pair that is not taken but may yet be.
func (s *State) unsure(g *group, id pairID, at int64) {
	s.touch(g)
	s.enqueue(g)
	if s.pairs.unsure == nil {
		s.pairs.unsure = map[*group]map[pairID]int64{}
	}
	all := s.pairs.unsure[g]
	if all == nil {
		all = map[pairID]int64{}
		s.pairs.unsure[g] = all
	}
	was, had := all[id]
	all[id] = at
	s.undo = append(s.undo, func() {
		if had {
			all[id] = was
		} else {
			s.pairs.forget(g, id)
		}
	})
	s.change(keyOfUnsure(g, id), appendInt(nil, at))
}

// sure notes that it is taken now, or never.
func (s *State) sure(g *group, id pairID) {
	was, had := s.pairs.unsure[g][id]
	if !had {
		return
	}
	s.touch(g)
	s.enqueue(g)
	s.pairs.forget(g, id)
	s.undo = append(s.undo, func() { s.pairs.restore(g, id, was) })
	s.change(keyOfUnsure(g, id), nil)
}

func (p *pairing) forget(g *group, id pairID) {
	delete(p.unsure[g], id)
	if len(p.unsure[g]) == 0 {
		delete(p.unsure, g)
	}
}

func (p *pairing) restore(g *group, id pairID, at int64) {
	if p.unsure == nil {
		p.unsure = map[*group]map[pairID]int64{}
	}
	if p.unsure[g] == nil {
		p.unsure[g] = map[pairID]int64{}
	}
	p.unsure[g][id] = at
}

// sureOfAll forgets the pairs that a group waits for: those that are too old to change, or all.
func (s *State) sureOfAll(g *group, clock int64) {
	for id, at := range s.pairs.unsure[g] {
		if clock == never || clock != ever && at+openFor <= clock {
			s.pairs.forget(g, id)
			s.undo = append(s.undo, func() { s.pairs.restore(g, id, at) })
			s.change(keyOfUnsure(g, id), nil)
		}
	}
}

func keyOfUnsure(g *group, id pairID) string {
	return key(entryUnsure, g.m.lane.org, g.m.lane.text(), g.m.id, g.m.hash, g.id, id.id, id.uuid)
}

// entriesOfUnsure are those of the changelog.
func (s *State) entriesOfUnsure(g *group) []Change {
	var out []Change
	for id, at := range s.pairs.unsure[g] {
		out = append(out, Change{keyOfUnsure(g, id), appendInt(nil, at)})
	}
	return out
}

// open is the time of the first pair that a later update of its detection may change; never where there is none.
func (s *State) open(g *group) int64 {
	if !g.m.c.Over() {
		return never
	}
	first := int64(never)
	lasts := func(at int64) bool { return g.m.clock == ever || at+openFor > g.m.clock }
	for i := range g.len() {
		if g.bits(i)&bitOpen != 0 && lasts(g.time(i)) {
			first = g.time(i)
			break
		}
	}
	for _, at := range s.pairs.unsure[g] {
		if lasts(at) {
			first = min(first, at)
		}
	}
	return first
}

// decided is up to where nothing can change any more.
func (s *State) decided(g *group) int64 {
	if g.m.clock == ever {
		return ever
	}
	return min(g.m.clock, s.open(g)-1)
}

// distinct leaves out of some events those that came through another detection before: they count once.
func (g *group) distinct(nums []int32) []int32 {
	seen := make(map[string]bool, len(nums))
	return slices.DeleteFunc(nums, func(n int32) bool {
		uuid := g.uuid(n)
		if seen[uuid] {
			return true
		}
		seen[uuid] = true
		return false
	})
}
