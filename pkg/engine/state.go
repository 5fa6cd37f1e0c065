package engine

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// Limits of what a State holds; what is cut marks the detection and is told to the StateObserver.
const (
	maxHeld   = 10_000    // records of a group, values of one aggregate
	maxGroups = 1_000_000 // of a rule
)

// keptSets is how many earlier sets of rules stay known.
const keptSets = 4

const (
	never = math.MaxInt64
	ever  = math.MinInt64
)

// ErrUnknownRule says that no rule of the set has the id and state hash of a Match.
var ErrUnknownRule = errors.New("no rule has this id and state hash")

// Change is one change of the memory, for a changelog: the last value of each key makes the State again.
type Change struct {
	Key   string
	Value []byte // nil: the key is gone
}

// Output is what happened since the last Flush.
type Output struct {
	Detections []*record.Detection // in order; evidence has its place and no JSON
	Changes    []Change
}

// State judges rules with memory: it holds what Take took, by org, lane, rule and group, and writes detections with
// their updates. What it says is a function of the records, the rules and the clock, whatever the order in which
// records came before the clock. It serves one goroutine.
type State struct {
	set      *rule.Set
	before   []*rule.Set // the newest first
	observer Observer
	topic    string
	lanes    map[laneID]*lane
	event    *rule.Event // for expressions over hits
	view     record.SystemLogView
	empty    record.SystemLogView
	queue    []*group
	touched  []snapshot
	lanesWas map[*lane]int64
	undo     []func()
	closing  bool // what is pending goes out at the next Flush
	out      Output
	lens     lens
	hit      rule.Hit
	agg      accumulator
	sum      hasher
	nums     []int32
	buf      []byte
	last     map[string]int64
	from     int64 // hits before it are as they were
	meter    meter
}

// StateOption changes a State.
type StateOption func(*State)

// WithStateObserver tells o what judging meets.
func WithStateObserver(o Observer) StateOption { return func(s *State) { s.observer = o } }

// WithTopic names the topic that Match.Partition and Offset speak of, for evidence.
func WithTopic(topic string) StateOption { return func(s *State) { s.topic = topic } }

// NewState makes an empty memory.
func NewState(set *rule.Set, opts ...StateOption) *State {
	s := &State{lanes: map[laneID]*lane{}, lanesWas: map[*lane]int64{}, observer: silent{}}
	for _, o := range opts {
		o(s)
	}
	s.SetRules(set)
	return s
}

type laneID struct{ org, lane string }

type lane struct {
	laneID
	watermark int64
	rules     map[ruleID]*memory
	timers    timers
}

type ruleID struct{ id, hash string }

// memory is what one rule holds of one org and lane.
type memory struct {
	ruleID
	lane   *lane
	c      *rule.Compiled // nil: no rule of this id and hash is known
	clock  int64          // what lies at or before is decided
	begin  int64          // first record of the org since this memory began; never until one came
	seeded int64          // earliest seed of the org; never until one came
	groups map[string]*group
	part   *record.Detection
}

// held is one event that a group holds.
type held struct {
	time      int64 // event time, milliseconds
	uuid      string
	sub       string // key within the group, of rules with seen_before
	after     int64  // of a sighting that came late: it counts behind this time only
	published int64
	offset    int64
	partition int32
	flags     uint32
	bits      uint8
	copy      uint8
	values    uint32 // length of the values in front of the payload
	blob      []byte
}

const (
	bitExcepted = 1 << iota
	bitSeed
	bitPartial
	bitBackfill
	bitPublished
)

func (h *held) payload() []byte { return h.blob[h.values:] }

func (h *held) order(o *held) int {
	return cmp.Or(cmp.Compare(h.time, o.time), strings.Compare(h.uuid, o.uuid), strings.Compare(h.sub, o.sub))
}

// group is what is held of one key of a rule.
type group struct {
	m      *memory
	id     string
	events []held // in record order

	floor     int64 // hits at or before are over and forgotten
	swept     int64 // hits at or before that are found, as far as the clock decides them
	dirty     int64 // what changed is at or behind
	hits      []hit
	dets      map[string]sent
	seen      []sighting // first_seen: last sighting at or before floor, by key; never changed in place
	cover     *cover
	buckets   []bucket // baseline: closed buckets, in order of time
	due       int64    // watermark at which there is something to do
	queued    bool
	touched   bool
	truncated bool
	gone      bool
	meta      bool // floor is in the changelog
}

type sighting struct {
	sub  string
	time int64
}

type snapshot struct {
	g     *group
	was   group
	isNew bool
}

// SetRules brings new definitions into force. What is held of rules that are no more there is judged by their last one.
// A few sets that went before stay known for the Matches that were taken by them.
func (s *State) SetRules(set *rule.Set) {
	if s.set != nil && s.set != set {
		s.before = append([]*rule.Set{s.set}, s.before[:min(len(s.before), keptSets-1)]...)
	}
	s.set = set
	s.event = set.NewEvent()
	s.lens = lens{}
	for _, l := range s.lanes {
		for _, m := range l.rules {
			c := s.find(l.org, m.ruleID)
			if c == nil {
				continue
			}
			orphaned := m.c == nil
			m.use(c)
			if orphaned {
				m.advance()
				for _, id := range sortedGroups(m) {
					s.schedule(m.groups[id], ever+1)
				}
			}
		}
	}
}

// Orphans counts the rules that something was restored of and that no set so far has. The next Advance of their lane forgets it.
func (s *State) Orphans() int {
	n := 0
	for _, l := range s.lanes {
		for _, m := range l.rules {
			if m.c == nil && len(m.groups) > 0 {
				n++
			}
		}
	}
	return n
}

func (m *memory) use(c *rule.Compiled) {
	m.c = c
	d := ruleParts(c)
	d.StateHash = c.StateHash
	m.part = &d
}

func (s *State) find(org string, id ruleID) *rule.Compiled {
	if c := findIn(s.set, org, id); c != nil {
		return c
	}
	for _, set := range s.before {
		if c := findIn(set, org, id); c != nil {
			return c
		}
	}
	return nil
}

func findIn(set *rule.Set, org string, id ruleID) *rule.Compiled {
	rules := set.For(org)
	i := sort.Search(len(rules), func(i int) bool { return rules[i].ID >= id.id })
	if i < len(rules) && rules[i].ID == id.id && rules[i].StateHash == id.hash {
		return rules[i]
	}
	return nil
}

func (s *State) lane(org, name string) *lane {
	id := laneID{org, name}
	l := s.lanes[id]
	if l == nil {
		id = laneID{strings.Clone(org), strings.Clone(name)}
		l = &lane{laneID: id, watermark: ever, rules: map[ruleID]*memory{}}
		s.lanes[id] = l
	}
	return l
}

func (s *State) memory(l *lane, id ruleID, must bool) *memory {
	m := l.rules[id]
	if m == nil {
		c := s.find(l.org, id)
		if c == nil && must {
			return nil
		}
		id = ruleID{strings.Clone(id.id), strings.Clone(id.hash)}
		m = &memory{ruleID: id, lane: l, clock: ever, begin: never, seeded: never, groups: map[string]*group{}}
		if c != nil {
			m.use(c)
			m.advance()
		}
		l.rules[id] = m
	}
	if m.c == nil && must {
		return nil
	}
	return m
}

func (m *memory) advance() {
	if m.c == nil || m.lane.watermark == ever {
		return
	}
	if c := m.lane.watermark - m.c.Detection.Lateness.Milliseconds(); c > m.clock {
		m.clock = c
	}
}

// Begin says that the org had a record at t, of any type: learning begins with the first.
func (s *State) Begin(org, laneName string, t time.Time) {
	l := s.lane(org, laneName)
	ms := t.UnixMilli()
	for _, c := range s.set.For(org) {
		if c.Detection.Learning > 0 || c.Detection.Kind == rule.KindFirstSeen || c.Detection.Baseline > 0 {
			s.begin(s.memory(l, ruleID{c.ID, c.StateHash}, true), ms)
		}
	}
}

func (s *State) begin(m *memory, ms int64) {
	if m == nil || ms >= m.begin || ms <= m.clock {
		return
	}
	was := m.begin
	s.undo = append(s.undo, func() { m.begin = was })
	m.begin = ms
	s.change(keyOfBegin(m), appendBegin(nil, m))
	s.again(m, ms)
}

// again has every group of a rule judged anew from a time on.
func (s *State) again(m *memory, from int64) {
	for _, id := range sortedGroups(m) {
		g := m.groups[id]
		s.touch(g)
		g.dirty = min(g.dirty, from)
		s.enqueue(g)
	}
}

func sortedGroups(m *memory) []string {
	if len(m.groups) == 0 {
		return nil
	}
	ids := make([]string, 0, len(m.groups))
	for id := range m.groups {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Apply takes a Match of kind event. What it changes is judged at the next Flush.
func (s *State) Apply(mt *record.Match) error {
	l := s.lane(mt.Org, mt.Lane)
	m := s.memory(l, ruleID{mt.RuleID, mt.StateHash}, true)
	if m == nil {
		return fmt.Errorf("rule %s, state hash %s: %w", mt.RuleID, mt.StateHash, ErrUnknownRule)
	}
	if mt.Time == nil {
		return fmt.Errorf("match of event %s for rule %s has no time", mt.UUID, mt.RuleID)
	}
	h, err := heldOf(m.c, mt)
	if err != nil {
		return err
	}
	kind := m.c.Detection.Kind
	if h.time <= m.clock {
		switch {
		case kind == rule.KindFirstSeen:
			if h.bits&bitSeed == 0 {
				s.late(m.c.ID)
			}
			if h.flags&rule.Sighting == 0 {
				return nil
			}
			h.flags, h.after = rule.Sighting, m.clock
		case h.bits&bitSeed != 0 && m.c.Detection.Baseline > 0:
		default:
			s.late(m.c.ID)
			return nil
		}
	}
	if h.bits&bitSeed != 0 {
		h.flags &^= rule.Judged
	}
	g := m.groups[mt.Group]
	if h.bits&bitSeed != 0 && m.needless(g, &h) {
		return nil
	}
	if g == nil {
		if len(m.groups) >= maxGroups {
			s.limited(m.c.ID, "more than 1,000,000 groups: new keys are not tracked until old ones expire")
			return nil
		}
		g = s.newGroup(m, strings.Clone(mt.Group))
	}
	s.insert(g, h)
	return nil
}

func (s *State) newGroup(m *memory, id string) *group {
	g := &group{m: m, id: id, floor: ever, swept: ever, dirty: never, due: never}
	m.groups[id] = g
	s.touched = append(s.touched, snapshot{g: g, isNew: true})
	g.touched = true
	return g
}

// insert puts an event in its place. A second copy of an event takes the place of the first, a partial one never that
// of a complete one.
func (s *State) insert(g *group, h held) {
	s.touch(g)
	n := len(g.events)
	i := n
	if n > 0 && g.events[n-1].order(&h) >= 0 {
		i = sort.Search(n, func(i int) bool { return g.events[i].order(&h) >= 0 })
	}
	switch {
	case i < n && g.events[i].order(&h) == 0:
		old := &g.events[i]
		if seed, was := h.bits&bitSeed, old.bits&bitSeed; seed != was { // a seed never takes the place of an event that is judged
			if seed != 0 {
				return
			}
		} else if h.copy < old.copy || h.copy == old.copy && (h.bits&bitPartial != 0 || old.bits&bitPartial == 0) {
			return
		}
		h.after = old.after
		if old.flags&rule.Judged == 0 && g.m.c.Detection.Kind == rule.KindFirstSeen && old.after != 0 {
			h.flags &^= rule.Judged
		}
		g.events = slices.Clone(g.events)
		g.events[i] = h
	case i == n:
		g.events = append(g.events, h)
	default:
		events := make([]held, 0, max(n+1, 2*n))
		g.events = append(append(append(events, g.events[:i]...), h), g.events[i:]...)
	}
	s.change(keyOfHeld(g, &h), appendHeld(nil, &h))
	at := h.time
	if h.after != 0 && i == n { // else the numbers of the hits' events have changed
		at = max(at, h.after+1)
	}
	g.dirty = min(g.dirty, at)
	s.enqueue(g)
}

func (s *State) enqueue(g *group) {
	if !g.queued {
		g.queued = true
		s.queue = append(s.queue, g)
	}
}

// touch remembers a group as it was, for Abort.
func (s *State) touch(g *group) {
	if g.touched {
		return
	}
	was := *g
	if len(g.dets) > 0 {
		was.dets = make(map[string]sent, len(g.dets))
		maps.Copy(was.dets, g.dets)
	}
	was.events = slices.Clip(g.events)
	g.touched = true
	s.touched = append(s.touched, snapshot{g: g, was: was})
}

func (s *State) change(key string, value []byte) {
	s.out.Changes = append(s.out.Changes, Change{key, value})
}

func (s *State) late(id string) {
	if o, ok := s.observer.(StateObserver); ok {
		o.Late(id)
	}
}

func (s *State) limited(id, what string) {
	if o, ok := s.observer.(StateObserver); ok {
		o.Limited(id, what)
	}
}

func (s *State) failed(err error) {
	if err != nil {
		s.observer.Failed(err)
	}
}

// Advance moves the watermark of an org and lane: no record at or before it less the lateness of a rule counts any
// more. It never goes back.
func (s *State) Advance(org, laneName string, through time.Time) {
	l := s.lane(org, laneName)
	s.advance(l, through.UnixMilli())
}

func (s *State) advance(l *lane, through int64) {
	if through <= l.watermark {
		return
	}
	if _, ok := s.lanesWas[l]; !ok {
		s.lanesWas[l] = l.watermark
	}
	l.watermark = through
	s.change(keyOfLane(l), appendInt(nil, through))
	for _, m := range l.rules {
		was := m.clock
		m.advance()
		if m.clock != was {
			s.undo = append(s.undo, func() { m.clock = was })
		}
		if m.c == nil {
			s.orphan(m)
		}
	}
	for len(l.timers) > 0 && l.timers[0].at <= through {
		t, _ := heap.Pop(&l.timers).(timer)
		if t.g.due == t.at && !t.g.gone {
			s.touch(t.g)
			t.g.due = never
			s.enqueue(t.g)
		}
	}
}

// orphan forgets what is held of a rule that nobody knows any more, once the restart that lost its definition is over.
func (s *State) orphan(m *memory) {
	for _, id := range sortedGroups(m) {
		g := m.groups[id]
		s.touch(g)
		s.drop(g)
	}
}

// Close decides everything up to at for every rule, whatever its lateness, and sends how far each detection has grown:
// what the end of an input does.
func (s *State) Close(org, laneName string, at time.Time) {
	l := s.lane(org, laneName)
	ms := at.UnixMilli()
	s.advance(l, ms)
	s.closing = true
	for _, m := range l.rules {
		if m.c == nil {
			continue
		}
		was := m.clock
		s.undo = append(s.undo, func() { m.clock = was })
		m.clock = max(m.clock, ms)
		for _, id := range sortedGroups(m) {
			g := m.groups[id]
			s.touch(g)
			s.enqueue(g)
		}
	}
}

// Forget drops an org's lane with all it holds, without a word.
func (s *State) Forget(org, laneName string) {
	l := s.lanes[laneID{org, laneName}]
	if l == nil {
		return
	}
	ids := make([]ruleID, 0, len(l.rules))
	for id := range l.rules {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b ruleID) int { return cmp.Or(strings.Compare(a.id, b.id), strings.Compare(a.hash, b.hash)) })
	for _, id := range ids {
		m := l.rules[id]
		s.orphan(m)
		if m.began() != never {
			s.change(keyOfBegin(m), nil)
		}
	}
	s.change(keyOfLane(l), nil)
	delete(s.lanes, l.laneID)
	s.undo = append(s.undo, func() { s.lanes[l.laneID] = l })
}

// Flush judges what changed and gives what came of it. The Output is the caller's.
func (s *State) Flush() Output {
	for i := 0; i < len(s.queue); i++ {
		g := s.queue[i]
		g.queued = false
		if g.gone {
			continue
		}
		s.meter.next(g.m.id)
		s.process(g)
	}
	s.meter.stop()
	s.queue = emptied(s.queue)
	s.closing = false
	out := s.out
	s.out = Output{}
	return out
}

// Commit keeps what happened since the last Commit or Abort.
func (s *State) Commit() {
	for i := range s.touched {
		s.touched[i].g.touched = false
	}
	s.touched, s.undo = emptied(s.touched), emptied(s.undo)
	clear(s.lanesWas)
}

// emptied is the slice without what is in it; a long one gives its memory back.
func emptied[T any](list []T) []T {
	if cap(list) > 1<<12 {
		return nil
	}
	clear(list)
	return list[:0]
}

// Abort undoes what happened since the last Commit or Abort.
func (s *State) Abort() {
	for _, v := range slices.Backward(s.undo) {
		v()
	}
	for l, was := range s.lanesWas {
		l.watermark = was
	}
	for _, t := range slices.Backward(s.touched) {

		g := t.g
		if t.isNew {
			g.gone = true
			delete(g.m.groups, g.id)
			continue
		}
		*g = t.was
		g.hits, g.cover, g.swept, g.dirty, g.touched, g.queued = nil, nil, g.floor, ever, false, false
		g.m.groups[g.id] = g
		g.due = never
		s.schedule(g, ever)
	}
	s.queue = emptied(s.queue)
	s.out, s.closing = Output{}, false
	s.touched, s.undo = emptied(s.touched), emptied(s.undo)
	clear(s.lanesWas)
}

// timer is when a group is to be looked at, in terms of the watermark.
type timer struct {
	at int64
	g  *group
}

type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at < t[j].at }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }

// Push implements heap.Interface.
func (t *timers) Push(x any) { *t = append(*t, x.(timer)) } //nolint:forcetypeassert // only timers are pushed

// Pop implements heap.Interface.
func (t *timers) Pop() any {
	old := *t
	n := len(old) - 1
	x := old[n]
	old[n] = timer{}
	*t = old[:n]
	return x
}

// schedule wakes the group when the watermark reaches at.
func (s *State) schedule(g *group, at int64) {
	if at == g.due {
		return
	}
	g.due = at
	if at != never {
		heap.Push(&g.m.lane.timers, timer{at, g})
	}
}

// drop forgets a group.
func (s *State) drop(g *group) {
	for i := range g.events {
		s.change(keyOfHeld(g, &g.events[i]), nil)
	}
	for _, id := range sortedKeys(g.dets) {
		s.change(keyOfSent(g, id), nil)
	}
	for _, one := range g.seen {
		s.change(keyOfSeen(g, one.sub), nil)
	}
	for _, b := range g.buckets {
		s.change(keyOfBucket(g, b.start), nil)
	}
	if g.meta {
		s.change(keyOfMeta(g), nil)
	}
	g.gone = true
	delete(g.m.groups, g.id)
}

func sortedKeys[V any](m map[string]V) []string {
	if len(m) == 0 {
		return nil
	}
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Restored ends a restore: everything that was held is judged again at the next Flush, and what was sent is known.
func (s *State) Restored() {
	for _, l := range s.lanes {
		for _, m := range l.rules {
			m.advance()
			for _, id := range sortedGroups(m) {
				g := m.groups[id]
				slices.SortFunc(g.events, func(a, b held) int { return a.order(&b) })
				slices.SortFunc(g.seen, func(a, b sighting) int { return strings.Compare(a.sub, b.sub) })
				g.buckets = slices.DeleteFunc(g.buckets, func(b bucket) bool {
					n := len(b.keys)
					return len(b.nums) != n+1 || m.c != nil && n != len(m.c.AggregateTypes)
				})
				slices.SortFunc(g.buckets, func(a, b bucket) int { return cmp.Compare(a.start, b.start) })
				g.due = never
				s.schedule(g, ever+1)
			}
		}
	}
}

// Snapshot gives every entry that makes this State again.
func (s *State) Snapshot() []Change {
	var out []Change
	for _, l := range s.lanes {
		if l.watermark != ever {
			out = append(out, Change{keyOfLane(l), appendInt(nil, l.watermark)})
		}
		for _, m := range l.rules {
			if m.began() != never {
				out = append(out, Change{keyOfBegin(m), appendBegin(nil, m)})
			}
			for _, g := range m.groups {
				for i := range g.events {
					out = append(out, Change{keyOfHeld(g, &g.events[i]), appendHeld(nil, &g.events[i])})
				}
				for id, d := range g.dets {
					out = append(out, Change{keyOfSent(g, id), appendSent(nil, &d)})
				}
				for _, one := range g.seen {
					out = append(out, Change{keyOfSeen(g, one.sub), appendInt(nil, one.time)})
				}
				for i := range g.buckets {
					out = append(out, Change{keyOfBucket(g, g.buckets[i].start), appendBucket(nil, &g.buckets[i])})
				}
				if g.meta {
					out = append(out, Change{keyOfMeta(g), appendMeta(nil, g)})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
	return out
}
