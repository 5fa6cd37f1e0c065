package oktawatch

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	eventsShown  = 5                // of those at hand, to people
	searchFor    = 10 * time.Second // evidence that a detection does not carry
	searchBefore = 10 * time.Minute // clocks of brokers may differ from Okta's
)

// explained is what the rule's expressions were for one event.
type explained struct {
	UUID  string      `json:"uuid"`
	Parts []tracePart `json:"parts"`
}

type tracePart struct {
	What  string `json:"what,omitempty"`
	Depth int    `json:"depth"`
	Text  string `json:"text"`
	Value string `json:"value"`
	Note  string `json:"note,omitempty"`
}

// explainedHit is why a rule with memory had the hit that its detection's title is of.
type explainedHit struct {
	Time   time.Time       `json:"time"`
	From   *time.Time      `json:"from,omitempty"` // the window is (from, to]
	To     *time.Time      `json:"to,omitempty"`
	Base   *time.Time      `json:"baseline_from,omitempty"` // the baseline is what lies from there up to From
	AtHand int             `json:"events_at_hand"`
	Events int64           `json:"events"`
	Notes  []string        `json:"notes,omitempty"`
	Values []hitValue      `json:"values,omitempty"` // aggregate
	Steps  []explainedStep `json:"steps,omitempty"`  // sequence
	Key    []explainedKey  `json:"key,omitempty"`    // first_seen
	Parts  []tracePart     `json:"parts,omitempty"`  // having, severity_when
}

// hitValue is one number of the hit.
type hitValue struct {
	Name  string          `json:"name"`
	Value json.RawMessage `json:"value"`
	From  string          `json:"from"` // detection, or how it was worked out again
}

// explainedStep is what fulfilled a step of a sequence, or what did not happen.
type explainedStep struct {
	ID      string      `json:"id"`
	Not     bool        `json:"not"`
	UUID    string      `json:"uuid,omitempty"`
	Time    *time.Time  `json:"time,omitempty"`
	Further []string    `json:"further,omitempty"` // of a step with a count, in order
	From    *time.Time  `json:"from,omitempty"`    // of a negated step: nothing in (from, to] fulfilled it
	To      *time.Time  `json:"to,omitempty"`
	Note    string      `json:"note,omitempty"`
	Parts   []tracePart `json:"parts,omitempty"`
}

// explainedKey is one part of a key that was new.
type explainedKey struct {
	Part  string     `json:"part"`
	Value string     `json:"value"`
	Known bool       `json:"known"`          // seen_before names it: it had to be known
	Last  *time.Time `json:"last,omitempty"` // when it was seen last before
}

// foundEvent is one evidence event that is at hand.
type foundEvent struct {
	identity string
	copy     int64
	json     json.RawMessage
	view     *record.SystemLogView
	time     time.Time
	topic    bool // it was read back: the detection does not carry it
}

// explain works out why the detection was made. What a rule says of events is worked out again from the events at hand; what it
// knew of many events stands in the detection.
func (s *shown) explain(ctx context.Context, r *tail.Reader, set *rule.Set, c *rule.Compiled) error {
	s.of = s.d
	for _, h := range s.history { // a withdrawal says nothing of the events
		if s.d.Withdrawn && !h.Withdrawn && (s.of.Withdrawn || h.Update > s.of.Update) {
			s.of = h
		}
	}
	note, err := s.gather(ctx, r)
	if err != nil {
		return err
	}
	s.Why = []explained{}
	ev := set.NewEvent()
	for _, e := range s.events {
		ev.Reset(e.view)
		s.Why = append(s.Why, explained{e.identity, traceParts(c.Trace(ev))})
	}
	if c.Detection.Kind == rule.KindMatch || string(c.Detection.Kind) != s.of.Kind {
		return nil
	}
	x := hitExplainer{s: s, set: set, c: c}
	s.Hit = x.explain(note)
	return nil
}

func traceParts(traced []rule.Traced) []tracePart {
	out := make([]tracePart, len(traced))
	for i, p := range traced {
		out[i] = tracePart{p.What, p.Depth, strings.Join(strings.Fields(p.Text), " "), p.Value, p.Note}
	}
	return out
}

// load reads an event as the stage that judged had it.
func (s *shown) load(e *foundEvent, at time.Time, received time.Time) error {
	log, _, err := systemlog.FromJSON(e.json, nil)
	if err != nil {
		return fmt.Errorf("read event %s: %w", e.identity, err)
	}
	d := &log.Derived
	d.Org, d.Lane, d.Copy, d.Time, d.Received = s.of.Org, s.of.Lane, int32(e.copy), at, received //nolint:gosec // 1 or 2
	if _, hash, reused := strings.Cut(e.identity, "#"); reused {
		d.UUIDReused, d.ContentHash = true, hash
	}
	e.view, e.time = new(record.SystemLogView), at
	if err := e.view.Load(log); err != nil {
		return fmt.Errorf("read event %s: %w", e.identity, err)
	}
	return nil
}

// gather collects the evidence: what the detection carries, and what the topic still has of the rest. note says what is missing, and
// why.
func (s *shown) gather(ctx context.Context, r *tail.Reader) (note string, err error) {
	have := map[string]*foundEvent{}
	missing := map[string]bool{}
	for _, id := range s.of.EvidenceUUIDs {
		missing[id] = true
	}
	for _, e := range s.of.Evidence {
		if len(e.JSON) == 0 || e.JSON[0] != '{' {
			missing[e.UUID] = true
			continue
		}
		f := &foundEvent{identity: e.UUID, copy: int64(e.Copy), json: e.JSON}
		if err := s.load(f, e.Time, e.Time); err != nil {
			return "", err
		}
		have[e.UUID] = f
		delete(missing, e.UUID)
	}
	gaveUp := false
	if len(missing) > 0 {
		if gaveUp, err = s.search(ctx, r, missing, have); err != nil {
			return "", err
		}
	}
	for _, f := range have {
		s.events = append(s.events, f)
	}
	slices.SortFunc(s.events, func(a, b *foundEvent) int {
		return cmp.Or(a.time.Compare(b.time), strings.Compare(a.identity, b.identity))
	})
	if int64(len(have)) >= s.of.EventCount {
		return "", nil
	}
	note = fmt.Sprintf("%d of its %d events are at hand: what follows is worked out from these", len(have), s.of.EventCount)
	if n := s.of.EventCount - int64(len(s.of.EvidenceUUIDs)); n > 0 {
		note += fmt.Sprintf("; of %d events a detection does not even name the uuid", n)
	}
	if gaveUp {
		note += fmt.Sprintf("; the rest was not found in %s within %s", topics.SystemLog.Name, searchFor)
	} else if missing := len(s.of.EvidenceUUIDs) - len(have); missing > 0 {
		note += fmt.Sprintf("; %s does not hold the rest any more", topics.SystemLog.Name)
	}
	return note, nil
}

// search reads evidence back from the topic of events.
func (s *shown) search(ctx context.Context, r *tail.Reader, missing map[string]bool, have map[string]*foundEvent) (gaveUp bool, err error) {
	uuids := map[string]bool{}
	for id := range missing {
		uuid, _, _ := strings.Cut(id, "#")
		uuids[uuid] = true
	}
	since := s.of.FirstTime
	for _, e := range s.of.Evidence {
		if e.Time.Before(since) {
			since = e.Time
		}
	}
	ctx, cancel := context.WithTimeout(ctx, searchFor)
	defer cancel()
	err = r.Read(ctx, topics.SystemLog.Name, tail.Options{Since: since.Add(-searchBefore), Exit: true}, func(rec tail.Record) error {
		if rec.Value == nil {
			return nil
		}
		id, err := rec.ID(ctx)
		if err != nil || !uuids[id.ID] || id.Lane != s.of.Lane {
			return nil //nolint:nilerr // what cannot be read is no evidence
		}
		plain, err := rec.Plain(ctx)
		if err != nil {
			return err
		}
		var v struct {
			JSON    json.RawMessage `json:"json"`
			Derived struct {
				Org      string    `json:"org"`
				Time     time.Time `json:"time"`
				Received time.Time `json:"received"`
				Reused   bool      `json:"uuid_reused"`
				Hash     string    `json:"content_hash"`
			} `json:"derived"`
		}
		if err := json.Unmarshal(plain, &v); err != nil {
			return fmt.Errorf("read %s %d@%d: %w", rec.Topic, rec.Partition, rec.Offset, err)
		}
		f := &foundEvent{identity: id.ID, copy: id.N, json: bytes.Clone(v.JSON), topic: true}
		if v.Derived.Reused {
			f.identity += "#" + v.Derived.Hash
		}
		if v.Derived.Org != s.of.Org || !missing[f.identity] || len(f.json) == 0 || f.json[0] != '{' {
			return nil
		}
		if old := have[f.identity]; old != nil && old.copy >= f.copy {
			return nil
		}
		if err := s.load(f, v.Derived.Time, v.Derived.Received); err != nil {
			return err
		}
		have[f.identity] = f
		return nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("find its events: %w", err)
	}
	return false, nil
}

// hitExplainer explains one hit of a rule with memory.
type hitExplainer struct {
	s   *shown
	set *rule.Set
	c   *rule.Compiled
	out *explainedHit
	by  map[string]*foundEvent
}

func (x *hitExplainer) explain(note string) *explainedHit {
	d := &x.s.of
	x.out = &explainedHit{Time: d.LastTime.UTC(), AtHand: len(x.s.events), Events: d.EventCount}
	if note != "" {
		x.out.Notes = append(x.out.Notes, note)
	}
	if d.Update != x.s.d.Update {
		x.out.Notes = append(x.out.Notes, fmt.Sprintf("the detection is withdrawn; this is why update %d was made", d.Update))
	}
	if d.Truncated {
		x.out.Notes = append(x.out.Notes, "the group was larger than what is kept: numbers are lower bounds")
	}
	if !x.told("hit", &x.out.Time) {
		x.out.Notes = append(x.out.Notes, "the detection does not carry what the hit knew")
	}
	x.by = map[string]*foundEvent{}
	for _, e := range x.s.events {
		x.by[e.identity] = e
	}
	h := &rule.Hit{Key: make([]string, len(x.c.Detection.GroupBy))}
	for i, g := range x.c.Detection.GroupBy {
		h.Key[i] = d.Key[g.Name]
	}
	var last string
	x.told("event", &last)
	at := rule.AtHand{Event: x.by[last] != nil, Evidence: int64(len(x.s.events)) >= d.EventCount}
	h.Event = x.event(x.by[last])
	switch x.c.Detection.Kind {
	case rule.KindMatch: // has no memory
	case rule.KindAggregate:
		x.aggregate(h, &at)
	case rule.KindSequence:
		x.sequence(h)
	case rule.KindFirstSeen:
		x.firstSeen()
	}
	if h.Evidence == nil {
		h.Evidence = func() []*rule.Event { return x.evidence(time.Time{}, x.out.Time) }
	}
	x.out.Parts = traceParts(x.c.TraceHit(h, at))
	return x.out
}

// told reads one of the detection's values.
func (x *hitExplainer) told(name string, into any) bool {
	text, ok := x.s.of.Values[name]
	return ok && json.Unmarshal([]byte(text), into) == nil
}

// event shows an event to expressions; one that is not at hand reads empty.
func (x *hitExplainer) event(e *foundEvent) *rule.Event {
	ev := x.set.NewEvent()
	if e == nil {
		ev.Reset(new(record.SystemLogView))
	} else {
		ev.Reset(e.view)
	}
	return ev
}

func (x *hitExplainer) within(from, to time.Time) []*foundEvent {
	var out []*foundEvent
	for _, e := range x.s.events {
		if e.time.After(from) && !e.time.After(to) {
			out = append(out, e)
		}
	}
	return out
}

func (x *hitExplainer) evidence(from, to time.Time) []*rule.Event {
	var out []*rule.Event
	for _, e := range x.within(from, to) {
		out = append(out, x.event(e))
	}
	return out
}

func (x *hitExplainer) window() (from, to time.Time) {
	from, to = engine.Window(x.c, x.out.Time)
	x.out.From, x.out.To = &from, &to
	return from, to
}

func (x *hitExplainer) aggregate(h *rule.Hit, at *rule.AtHand) {
	from, to := x.window()
	h.Evidence = func() []*rule.Event { return x.evidence(from, to) }
	if past := x.c.Detection.Baseline; past > 0 {
		base := from.Add(time.Millisecond - past) // the window begins with its first bucket
		x.out.Base = &base
	}
	missing := x.c.ReadHitValues(h, x.s.of.Values)
	how := ""
	if len(missing) > 0 {
		events := x.within(from, to)
		views := make([]*record.SystemLogView, len(events))
		for i, e := range events {
			views[i] = e.view
		}
		values, count := engine.Recount(x.c, x.set.NewEvent(), h.Key, views)
		h.Agg = values
		if slices.Contains(missing, "agg.count") {
			h.Count = count
		}
		how = fmt.Sprintf("worked out again from %d events of the window", count)
		if !at.Evidence {
			how += ": a lower bound"
		}
	}
	for _, name := range x.c.ShownValues() {
		text, ok := x.c.HitValue(h, name)
		if !ok {
			continue
		}
		v := hitValue{name, json.RawMessage(text), "detection"}
		if slices.Contains(missing, name) {
			v.From = how
		}
		x.out.Values = append(x.out.Values, v)
	}
	if len(missing) > 0 {
		x.out.Notes = append(x.out.Notes, strings.Join(missing, ", ")+": not in the detection, "+how)
	}
}

func (x *hitExplainer) sequence(h *rule.Hit) {
	from, to := x.window()
	c := x.c
	h.Steps = make([]*rule.Event, len(c.StepTypes))
	at := make([]*foundEvent, len(c.StepTypes))
	own := map[string]bool{}
	for i, st := range c.StepTypes {
		var uuid string
		if !st.Not && x.told("steps."+st.ID, &uuid) {
			own[uuid] = true
			if at[i] = x.by[uuid]; at[i] != nil {
				h.Steps[i] = x.event(at[i])
			}
		}
	}
	before := from
	for i, st := range c.StepTypes {
		e := explainedStep{ID: st.ID, Not: st.Not}
		if st.Not {
			x.negated(&e, i, at, before, to)
			x.out.Steps = append(x.out.Steps, e)
			continue
		}
		x.told("steps."+st.ID, &e.UUID)
		switch {
		case e.UUID == "":
			e.Note = "the detection does not tell which event fulfilled it"
		case at[i] == nil:
			e.Note = "its event is not at hand"
		default:
			t := at[i].time
			e.Time = &t
			e.Parts = traceParts(c.TraceStep(i, h, h.Steps[i]))
			e.Further = x.further(i, h, at[i], before, own)
			if n := st.Count - 1 - len(e.Further); n > 0 {
				e.Note = fmt.Sprintf("%d further events that fulfil it are not at hand", n)
			}
			before = t.Add(-time.Millisecond) // equal times are in order both ways
		}
		x.out.Steps = append(x.out.Steps, e)
	}
}

// further finds the further records of a step with a count: the latest that fulfil it, none of them a step's own.
func (x *hitExplainer) further(i int, h *rule.Hit, step *foundEvent, before time.Time, own map[string]bool) []string {
	want := x.c.StepTypes[i].Count - 1
	var out []string
	events := x.within(before, step.time)
	for n := len(events) - 1; n >= 0 && len(out) < want; n-- {
		e := events[n]
		if own[e.identity] {
			continue
		}
		ev := x.event(e)
		if hit, _, err := x.c.Judge(ev); !hit || err != nil {
			continue
		}
		if ok, err := x.c.StepHolds(i, h, ev); ok && err == nil {
			own[e.identity] = true
			out = append(out, e.identity)
		}
	}
	slices.Reverse(out)
	return out
}

// negated tells where a negated step did not happen.
func (x *hitExplainer) negated(e *explainedStep, i int, at []*foundEvent, from, to time.Time) {
	steps := x.c.StepTypes
	e.Parts = []tracePart{{What: "where", Text: strings.Join(strings.Fields(x.c.Detection.Steps[i].Where.Text), " ")}}
	prev := i - 1
	for prev >= 0 && steps[prev].Not {
		prev--
	}
	next := i + 1
	for next < len(steps) && steps[next].Not {
		next++
	}
	switch {
	case next == len(steps): // at the end
		end := to.Add(steps[i].Within)
		e.From, e.To = &to, &end
	case prev >= 0 && at[prev] != nil && at[next] != nil:
		e.From, e.To = &at[prev].time, &at[next].time
	default:
		e.Note = "the steps around it are not at hand"
	}
}

func (x *hitExplainer) firstSeen() {
	d := &x.c.Detection
	from := x.out.Time.Add(-d.Memory)
	to := x.out.Time
	x.out.From, x.out.To = &from, &to
	for _, g := range d.GroupBy {
		k := explainedKey{Part: g.Name, Value: x.s.of.Key[g.Name], Known: slices.Contains(d.SeenBefore, g.Name)}
		var last time.Time
		if k.Known && x.told("seen_before", &last) {
			k.Last = &last
		}
		x.out.Key = append(x.out.Key, k)
	}
	var learned time.Time
	switch {
	case d.Learning == 0:
		x.out.Notes = append(x.out.Notes, "the rule has no time of learning")
	case x.told("learned", &learned):
		x.out.Notes = append(x.out.Notes, "learning was over at "+learned.UTC().Format(clock))
	}
}

func (t *tool) printWhy(s *shown) error {
	if s.Rule == nil {
		_, err := fmt.Fprintf(t.out, "\nThe rule %s is not among the rules at hand (--rules, detect.rules_dir): it cannot be explained.\n", visible(s.d.RuleID, 80))
		return err
	}
	var b strings.Builder
	if !s.Rule.Judged {
		fmt.Fprintf(&b, "\nThe rule at hand is NOT the one that judged: its content hash is %s, its revision %d. What follows is what it says today;\n"+
			"name the folder of the rules as they were then with --rules.\n", s.Rule.ContentHash, s.Rule.Revision)
	}
	if s.Hit != nil {
		s.Hit.print(&b)
	}
	for i, x := range s.Why {
		if i == eventsShown {
			fmt.Fprintf(&b, "\n(and of %d more events: --output json has them all)\n", len(s.Why)-i)
			break
		}
		fmt.Fprintf(&b, "\nWhy, event %s:\n", visible(x.UUID, 80))
		printParts(&b, x.Parts, "  ")
	}
	if len(s.Why) == 0 {
		fmt.Fprint(&b, "\nThe JSON of its events is no longer kept: there is no event to try the rule on.\n")
	}
	for i, e := range s.events {
		if i == eventsShown {
			break
		}
		from := ""
		if e.topic {
			from = ", from " + topics.SystemLog.Name
		}
		fmt.Fprintf(&b, "\nEvent %s%s:\n", visible(e.identity, 80), from)
		var pretty bytes.Buffer
		if json.Indent(&pretty, e.json, "", "  ") != nil {
			continue
		}
		for line := range strings.Lines(pretty.String()) {
			fmt.Fprintf(&b, "  %s\n", visible(strings.TrimSuffix(line, "\n"), 4096))
		}
	}
	fmt.Fprintf(&b, "\n# %s\n%s", s.Rule.File, s.Rule.Text)
	_, err := t.out.Write([]byte(b.String()))
	return err
}

func printParts(b *strings.Builder, parts []tracePart, indent string) {
	for _, p := range parts {
		name := ""
		if p.What != "" {
			name = p.What + ": "
		}
		value := cmp.Or(visible(p.Value, 400), "(not looked at)")
		switch {
		case p.Note != "" && p.Value == "":
			value = "(" + p.Note + ")"
		case p.Note != "":
			value += "  (" + p.Note + ")"
		}
		fmt.Fprintf(b, "%s%s%s%s = %s\n", indent, strings.Repeat("  ", p.Depth), name, visible(p.Text, 400), value)
	}
}

func (h *explainedHit) print(b *strings.Builder) {
	fmt.Fprintf(b, "\nWhy, hit at %s:\n", h.Time.UTC().Format(clock))
	for _, n := range h.Notes {
		fmt.Fprintf(b, "  note: %s\n", n)
	}
	span := func(from, to *time.Time) string {
		return "(" + from.UTC().Format(clock) + ", " + to.UTC().Format(clock) + "]"
	}
	switch {
	case h.From == nil:
	case h.Key != nil:
		for _, k := range h.Key {
			fmt.Fprintf(b, "  key.%s = %q", k.Part, visible(k.Value, 200))
			switch {
			case k.Known && k.Last != nil:
				fmt.Fprintf(b, ", which had to be known: last seen before at %s", k.Last.UTC().Format(clock))
			case k.Known:
				fmt.Fprint(b, ", which had to be known")
			}
			fmt.Fprintln(b)
		}
		fmt.Fprintf(b, "  the key was not seen in [%s, %s)\n", h.From.UTC().Format(clock), h.To.UTC().Format(clock))
	default:
		fmt.Fprintf(b, "  window %s\n", span(h.From, h.To))
	}
	if h.Base != nil {
		fmt.Fprintf(b, "  baseline [%s, %s)\n", h.Base.UTC().Format(clock), h.From.Add(time.Millisecond).UTC().Format(clock))
	}
	for _, v := range h.Values {
		from := ""
		if v.From != "detection" {
			from = "  (" + v.From + ")"
		}
		fmt.Fprintf(b, "  %s = %s%s\n", v.Name, visible(string(v.Value), 400), from)
	}
	for _, st := range h.Steps {
		switch {
		case st.Not && st.From != nil:
			fmt.Fprintf(b, "  step %s did not happen in %s\n", st.ID, span(st.From, st.To))
		case st.Not:
			fmt.Fprintf(b, "  step %s did not happen\n", st.ID)
		case st.Time != nil:
			fmt.Fprintf(b, "  step %s: event %s at %s\n", st.ID, visible(st.UUID, 80), st.Time.UTC().Format(clock))
		default:
			fmt.Fprintf(b, "  step %s: event %s\n", st.ID, dash(visible(st.UUID, 80)))
		}
		for _, u := range st.Further {
			fmt.Fprintf(b, "    and event %s\n", visible(u, 80))
		}
		if st.Note != "" {
			fmt.Fprintf(b, "    note: %s\n", st.Note)
		}
		if st.Not {
			for _, p := range st.Parts {
				fmt.Fprintf(b, "    %s: %s\n", p.What, visible(p.Text, 400))
			}
			continue
		}
		printParts(b, st.Parts, "    ")
	}
	printParts(b, h.Parts, "  ")
}
