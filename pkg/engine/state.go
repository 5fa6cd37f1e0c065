package engine

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
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
	maxBytes  = 1 << 30   // of a group's records
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
	Pairs      []*record.Match     // what rules over detections take of these, to be brought to the State that holds the group
	Changes    []Change
}

// State judges rules with memory: it holds what Take took, by org, lane, rule and group, and writes detections with
// their updates. What it says is a function of the records, the rules and the clock, whatever the order in which
// records came before the clock. It serves one goroutine.
type State struct {
	set        *rule.Set
	before     []*rule.Set // the newest first
	observer   Observer
	topic      string
	lanes      map[laneID]*lane
	event      *rule.Event // for expressions over hits
	view       record.SystemLogView
	empty      record.SystemLogView
	queue      []*group
	touched    []snapshot
	fuller     [][]snapshot // those before touched
	lanesWas   map[*lane]int64
	undo       []func()
	closing    bool // what is pending goes out at the next Flush
	out        Output
	lens       lens
	hit        rule.Hit
	agg        accumulator
	sum        hasher
	nums       []int32
	buf        []byte
	shapes     *shapes
	lastLane   *lane
	lastMemory *memory
	keys       []string // of keysFor
	restored   map[*group]*loose
	changes    int // of the last batch
	keysFor    *group
	seed       maphash.Seed
	record     []byte      // the event that is written
	fresh      []uint32    // places of its texts
	inner      []innerText // of its values
	comes      held
	other      held
	kept       []byte // payload of the event that is read
	spare      []*work
	chunk      chunk
	last       map[string]int64
	sightings  []maybeSeen // of the group that is judged
	from       int64       // hits before it are as they were
	pairs      pairing
	meter      meter
}

// StateOption changes a State.
type StateOption func(*State)

// WithStateObserver tells o what judging meets.
func WithStateObserver(o Observer) StateOption { return func(s *State) { s.observer = o } }

// WithTopic names the topic that Match.Partition and Offset speak of, for evidence.
func WithTopic(topic string) StateOption { return func(s *State) { s.topic = topic } }

// NewState makes an empty memory.
func NewState(set *rule.Set, opts ...StateOption) *State {
	s := &State{lanes: map[laneID]*lane{}, lanesWas: map[*lane]int64{}, observer: silent{}, shapes: newShapes(), seed: maphash.MakeSeed()}
	for _, o := range opts {
		o(s)
	}
	s.SetRules(set)
	return s
}

type laneID struct {
	org, lane string
	second    bool // what rules over detections hold of it, which have a watermark of their own
}

type lane struct {
	laneID
	watermark int64
	rules     map[ruleID]*memory
	timers    timers
	soon      []*group // to be looked at when the watermark moves
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
	most   int       // groups there were since the map was made
	back   []*group  // restored, in that order
	seen   sightings // last sightings at or before the clock, of first_seen rules without seen_before
	part   *record.Detection
	reads  readers
	head   string // what the keys of its entries begin with
}

// group is what is held of one key of a rule. There are many with one event and nothing else: what those do not need is
// in work.
type group struct {
	m    *memory
	id   string
	data []byte // held events, see held.go
	*work

	floor     int64 // hits at or before are over and forgotten
	due       int64 // watermark at which there is something to do
	single    bool  // there is one event, and no index
	anew      bool  // what was found is to be found again
	queued    bool
	touched   bool
	truncated bool
	gone      bool
	meta      bool // floor is in the changelog
	lent      lent
}

// lent says what of a group's work a snapshot has too: it is copied before it is changed.
type lent uint8

const (
	lentDets lent = 1 << iota
	lentIndex
)

// work is what a group has while it is judged, and keeps where it has more than one event or something was found.
type work struct {
	index   []uint32 // places of the events in data, in record order
	dict    []uint32 // places of texts
	words   int32    // in dict
	dead    uint32   // bytes of data, about, that no event needs
	swept   int64    // hits at or before that are found, as far as the clock decides them
	dirty   int64    // what changed is at or behind
	hits    []hit
	dets    map[string]sent
	seen    seenList // first_seen with seen_before: last sighting at or before floor, by key
	cover   *cover
	buckets bucketList // baseline: closed buckets, in order of time
}

// own gives a group its work.
func (s *State) own(g *group) {
	if g.work != nil {
		return
	}
	n := len(s.spare)
	if n == 0 {
		g.work = new(work)
	} else {
		g.work, s.spare = s.spare[n-1], s.spare[:n-1]
	}
	*g.work = work{dirty: never, swept: g.floor}
}

// trim takes the work from a group that can do without.
func (s *State) trim(g *group) {
	if g.work == nil || g.len() > 1 {
		return
	}
	if g.len() == 1 && g.index != nil {
		if g.index[0] != 0 || g.dead > 0 {
			s.compact(g)
		}
		g.index, g.dict, g.words, g.single = nil, nil, 0, true
	}
	if len(g.hits) == 0 && len(g.dets) == 0 && g.seen == "" && g.buckets == "" {
		s.release(g.work)
		g.work = nil
	}
}

func (s *State) release(w *work) {
	if w != nil && len(s.spare) < 1<<10 {
		*w = work{}
		s.spare = append(s.spare, w)
	}
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
				m.seen.at = m.clock
				for _, id := range sortedGroups(m) {
					s.schedule(m.groups[id], atOnce)
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
			if m.c == nil && len(m.groups)+m.seen.len() > 0 {
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

// lane is that of an id, the last one at hand.
func (s *State) lane(id laneID) *lane {
	if l := s.lastLane; l != nil && l.laneID == id {
		return l
	}
	l := s.lanes[id]
	if l == nil {
		id.org, id.lane = strings.Clone(id.org), strings.Clone(id.lane)
		l = &lane{laneID: id, watermark: ever, rules: map[ruleID]*memory{}}
		s.lanes[id] = l
	}
	s.lastLane = l
	return l
}

func (s *State) memory(l *lane, id ruleID, must bool) *memory {
	if m := s.lastMemory; m != nil && m.c != nil && m.lane == l && m.ruleID == id {
		return m
	}
	m := l.memory(s, id, must)
	s.lastMemory = m
	return m
}

func (l *lane) memory(s *State, id ruleID, must bool) *memory {
	m := l.rules[id]
	if m == nil {
		c := s.find(l.org, id)
		if c == nil && must {
			return nil
		}
		id = ruleID{strings.Clone(id.id), strings.Clone(id.hash)}
		m = &memory{ruleID: id, lane: l, clock: ever, begin: never, seeded: never, groups: map[string]*group{}, seen: sightings{seed: s.seed, at: ever}}
		m.head = key(0, l.org, l.text(), id.id, id.hash)[1:]
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
	if c := m.lane.watermark - m.c.Wait().Milliseconds(); c > m.clock {
		m.clock = c
	}
}

// Begin says that the org had a record at t, of any type: learning begins with the first.
func (s *State) Begin(org, laneName string, t time.Time) {
	ms := t.UnixMilli()
	for _, c := range s.set.For(org) {
		l := s.lane(laneID{org, laneName, c.Over()})
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
		s.changed(g, from)
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

// Apply takes a Match of kind event or detection. What it changes is judged at the next Flush.
func (s *State) Apply(mt *record.Match) error {
	m := s.memoryOf(mt)
	if m == nil {
		return fmt.Errorf("rule %s, state hash %s: %w", mt.RuleID, mt.StateHash, ErrUnknownRule)
	}
	if mt.Kind == MatchPair {
		return s.applyPair(m, mt)
	}
	if mt.Time == nil {
		return fmt.Errorf("match of event %s for rule %s has no time", mt.UUID, mt.RuleID)
	}
	h := &s.comes
	if err := heldOf(h, m.c, mt); err != nil {
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
	if h.bits&bitSeed != 0 && m.needless(g, h) {
		return nil
	}
	if g == nil {
		if len(m.groups)+m.seen.len() >= maxGroups && !m.seen.has(mt.Group) {
			s.limited(m.c.ID, "more than 1,000,000 groups: new keys are not tracked until old ones expire")
			return nil
		}
		g = s.newGroup(m, strings.Clone(mt.Group))
	}
	s.insert(g, h)
	return nil
}

func (s *State) newGroup(m *memory, id string) *group {
	g := &group{m: m, id: id, floor: ever, due: never}
	m.groups[id] = g
	m.most = max(m.most, len(m.groups))
	s.remembers(snapshot{g: g, isNew: true})
	g.touched = true
	return g
}

// insert puts an event in its place. A second copy of an event takes the place of the first, a partial one never that
// of a complete one.
func (s *State) insert(g *group, h *held) {
	s.touch(g)
	i, same := s.locate(g, h)
	last := i == g.len()
	if same {
		old := &s.other
		g.read(i, old)
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
		s.replace(g, i, h)
	} else {
		s.add(g, i, h)
	}
	s.changeHeld(g, h, false)
	at := h.time
	if h.after != 0 && last { // else the numbers of the hits' events have changed
		at = max(at, h.after+1)
	}
	s.changed(g, at)
}

// changed has a group judged anew from a time on.
func (s *State) changed(g *group, from int64) {
	s.own(g)
	g.dirty = min(g.dirty, from)
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
	if g.work != nil {
		was.work = nil
		s.own(&was)
		*was.work = *g.work
		g.lent = lentDets | lentIndex
	}
	g.touched = true
	s.remembers(snapshot{g: g, was: was})
}

// snapshotsAtOnce is how many snapshots lie together: what is restored touches every group at once, and a list that grows
// is copied.
const snapshotsAtOnce = 1 << 11

func (s *State) remembers(one snapshot) {
	if len(s.touched) == snapshotsAtOnce {
		s.fuller = append(s.fuller, s.touched)
		s.touched = make([]snapshot, 0, snapshotsAtOnce)
	}
	s.touched = append(s.touched, one)
}

func (s *State) change(key string, value []byte) {
	if s.out.Changes == nil {
		s.out.Changes = make([]Change, 0, min(s.changes+s.changes/8, 1<<12))
	}
	s.out.Changes = append(s.out.Changes, Change{key, value})
}

// changeHeld writes the entry of an event that comes, or that it is gone.
func (s *State) changeHeld(g *group, h *held, gone bool) {
	s.buf = appendKeyOfHeld(s.buf[:0], g, h)
	key := s.chunk.text(s.buf)
	if gone {
		s.change(key, nil)
		return
	}
	s.buf = appendHeld(s.buf[:0], h, h.payload)
	s.change(key, s.chunk.bytes(s.buf))
}

// chunk gives many small texts and values of one piece of memory, which lives as long as one of them.
type chunk struct {
	texts strings.Builder
	rest  []byte
}

const chunkSize = 16 << 10

func (c *chunk) text(b []byte) string {
	if c.texts.Cap()-c.texts.Len() < len(b) {
		c.texts.Reset()
		c.texts.Grow(max(len(b), chunkSize))
	}
	n := c.texts.Len()
	c.texts.Write(b)
	return c.texts.String()[n:]
}

func (c *chunk) bytes(b []byte) []byte {
	if len(c.rest) < len(b) {
		c.rest = make([]byte, max(len(b), chunkSize))
	}
	n := copy(c.rest, b)
	out := c.rest[:n:n]
	c.rest = c.rest[n:]
	return out
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
	s.advance(s.lane(laneID{org, laneName, false}), through.UnixMilli())
	if l := s.lanes[laneID{org, laneName, true}]; l != nil {
		for _, m := range l.rules {
			if m.c == nil { // there may be no second watermark any more
				s.orphan(m)
			}
		}
	}
}

// AdvanceSecond moves the watermark of rules over detections: every pair that the first one decided has been applied.
func (s *State) AdvanceSecond(org, laneName string, through time.Time) {
	s.advance(s.lane(laneID{org, laneName, true}), through.UnixMilli())
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
			continue
		}
		s.expireSeen(m)
	}
	wake := func(g *group, at int64) {
		if g.due == at && !g.gone {
			s.touch(g)
			g.due = never
			s.enqueue(g)
		}
	}
	for _, g := range l.soon {
		wake(g, atOnce)
	}
	l.soon = emptied(l.soon)
	for len(l.timers) > 0 && l.timers[0].at <= through {
		t := l.timers.pop()
		wake(t.g, t.at)
	}
}

// orphan forgets what is held of a rule that nobody knows any more, once the restart that lost its definition is over.
func (s *State) orphan(m *memory) {
	for _, id := range sortedGroups(m) {
		g := m.groups[id]
		s.touch(g)
		s.drop(g)
	}
	for _, id := range m.seen.keys() {
		s.forgetSeen(m, id)
	}
}

// Close decides everything up to at for every rule, whatever its lateness, and sends how far each detection has grown:
// what the end of an input does. Rules over detections are closed behind it, by CloseSecond.
func (s *State) Close(org, laneName string, at time.Time) {
	s.close(s.lane(laneID{org, laneName, false}), at.UnixMilli())
}

// CloseSecond is Close for rules over detections: every pair that Close made has been applied.
func (s *State) CloseSecond(org, laneName string, at time.Time) {
	s.close(s.lane(laneID{org, laneName, true}), at.UnixMilli())
}

func (s *State) close(l *lane, ms int64) {
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

// Forget drops an org's lane with all it holds, without a word; what rules over detections hold only when there is none
// of them.
func (s *State) Forget(org, laneName string) {
	s.forget(s.lanes[laneID{org, laneName, false}])
	if l := s.lanes[laneID{org, laneName, true}]; l != nil {
		for _, m := range l.rules {
			if m.c != nil {
				return
			}
		}
		s.forget(l)
	}
}

// ForgetSecond drops what rules over detections hold of an org's lane.
func (s *State) ForgetSecond(org, laneName string) { s.forget(s.lanes[laneID{org, laneName, true}]) }

func (s *State) forget(l *lane) {
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
	s.lastLane, s.lastMemory = nil, nil
	s.undo = append(s.undo, func() { s.lanes[l.laneID], s.lastLane, s.lastMemory = l, nil, nil })
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
	s.out, s.changes = Output{}, len(out.Changes) // the next batch is much like this one
	return out
}

// Commit keeps what happened since the last Commit or Abort.
func (s *State) Commit() {
	for _, list := range append(s.fuller, s.touched) {
		for i := range list {
			list[i].g.touched = false
			s.release(list[i].was.work)
		}
	}
	s.fuller = nil
	s.touched, s.undo = emptied(s.touched), emptied(s.undo)
	clear(s.lanesWas)
}

// emptied is the slice without what is in it; a long one gives its memory back.
func emptied[T any](list []T) []T {
	if cap(list) > 1<<11 {
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
	s.fuller = append(s.fuller, s.touched)
	for _, list := range slices.Backward(s.fuller) {
		s.undoAll(list)
	}
	s.fuller = nil
	s.queue = emptied(s.queue)
	s.out, s.closing = Output{}, false
	s.touched, s.undo = emptied(s.touched), emptied(s.undo)
	clear(s.lanesWas)
}

// undoAll brings groups back to what they were.
func (s *State) undoAll(list []snapshot) {
	for _, t := range slices.Backward(list) {
		g := t.g
		if t.isNew {
			g.gone = true
			delete(g.m.groups, g.id)
			continue
		}
		*g = t.was
		if g.work != nil {
			g.dict, g.words = nil, 0 // what was added lies where others will
		}
		g.anew, g.touched, g.queued = true, false, false
		g.m.groups[g.id] = g
		g.due = never
		s.schedule(g, atOnce)
	}
}

// timer is when a group is to be looked at, in terms of the watermark.
type timer struct {
	at int64
	g  *group
}

// timers is a heap, the earliest first. A timer whose group is due at another time by now is of no use.
type timers []timer

func (t *timers) push(x timer) {
	*t = append(*t, x)
	h := *t
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if h[up].at <= x.at {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = x
}

func (t *timers) pop() timer {
	h := *t
	first, n := h[0], len(h)-1
	x := h[n]
	h[n] = timer{}
	*t = h[:n]
	if 4*n < cap(h) && n > 1<<10 {
		*t = append(make(timers, 0, 2*n), *t...)
	}
	if n > 0 {
		(*t).sink(0, x)
	}
	return first
}

// sink puts x in at i or below.
func (t timers) sink(i int, x timer) {
	for {
		down := 2*i + 1
		if down >= len(t) {
			break
		}
		if down+1 < len(t) && t[down+1].at < t[down].at {
			down++
		}
		if x.at <= t[down].at {
			break
		}
		t[i] = t[down]
		i = down
	}
	t[i] = x
}

// tidy takes the useless ones out.
func (t *timers) tidy() {
	h := slices.DeleteFunc(*t, func(x timer) bool { return x.g.gone || x.g.due != x.at })
	if len(h) > cap(h)-cap(h)/8 || cap(h) > 2*len(h)+64 {
		h = append(make(timers, 0, len(h)+len(h)/8+8), h...)
	}
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.sink(i, h[i])
	}
	*t = h
}

// atOnce is due when the watermark moves.
const atOnce = ever + 1

// schedule wakes the group when the watermark reaches at.
func (s *State) schedule(g *group, at int64) {
	if at == g.due {
		return
	}
	g.due = at
	l := g.m.lane
	switch {
	case at == never:
	case at <= atOnce:
		l.soon = append(l.soon, g)
	default:
		if len(l.timers) == cap(l.timers) {
			l.timers.tidy()
		}
		l.timers.push(timer{at, g})
	}
}

// drop forgets a group.
func (s *State) drop(g *group) {
	s.own(g)
	g.each(0, g.len(), func(h *held) { s.changeHeld(g, h, true) })
	for _, id := range sortedKeys(g.dets) {
		s.change(keyOfSent(g, id), nil)
		s.unlist(g, id, g.dets[id].given)
	}
	for _, one := range g.seen.all() {
		s.change(keyOfSeen(g, one.sub), nil)
	}
	for _, b := range g.buckets.all() {
		s.change(keyOfBucket(g, b.start), nil)
	}
	if g.meta {
		s.change(keyOfMeta(g), nil)
	}
	s.sureOfAll(g, never)
	g.gone = true
	delete(g.m.groups, g.id)
	if m := g.m; m.most > 1<<10 && 4*len(m.groups) < m.most {
		small := make(map[string]*group, len(m.groups)) // a map does not give its memory back
		maps.Copy(small, m.groups)
		m.groups, m.most = small, len(small)
	}
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
			m.seen.at = m.clock
			for _, g := range m.back {
				s.sort(g)
				g.pack(s.restored[g])
				g.due = never
				s.schedule(g, atOnce)
			}
			m.back = nil
		}
	}
	s.restored = nil
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
			for _, id := range m.seen.keys() {
				t, _ := m.seen.get(id)
				out = append(out, Change{keyOfSighting(m, id), appendInt(nil, t)})
			}
			for _, g := range m.groups {
				g.each(0, g.len(), func(h *held) {
					value := appendHeld(nil, h, s.payload(nil, g, h))
					out = append(out, Change{string(appendKeyOfHeld(nil, g, h)), value})
				})
				if g.meta {
					out = append(out, Change{keyOfMeta(g), appendMeta(nil, g)})
				}
				out = append(out, s.entriesOfUnsure(g)...)
				if g.work == nil {
					continue
				}
				for id, d := range g.dets {
					out = append(out, Change{keyOfSent(g, id), appendSent(nil, &d)})
					out = append(out, d.given.entries(g, id)...)
				}
				for _, one := range g.seen.all() {
					out = append(out, Change{keyOfSeen(g, one.sub), appendInt(nil, one.time)})
				}
				for _, b := range g.buckets.all() {
					out = append(out, Change{keyOfBucket(g, b.start), appendBucket(nil, &b)})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
	return out
}
