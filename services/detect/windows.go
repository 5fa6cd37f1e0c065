package detect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	maxUnknown   = time.Minute // how long a Match waits for a rule of its state hash to be loaded
	classUnknown = "unknown_rule"
	classDecode  = "decode"
	toldPrefix   = "\x00told\x00"
)

// windows are the memory of the windowed rules in one partition: engine.State. What they take is judged by Flush, stands with Commit and
// is undone by Abort.
type windows interface {
	SetRules(set *rule.Set)
	Restore(key string, value []byte) error
	Restored()
	Orphans() int
	Apply(m *record.Match) error
	Begin(org, lane string, t time.Time)
	Seeded(org, lane string, t time.Time)
	Advance(org, lane string, t time.Time)
	Close(org, lane string, at time.Time)
	Forget(org, lane string)
	Flush() engine.Output
	Commit()
	Abort()
}

// stateTask is one partition of the state stage: what the windowed rules hold, the time that is written to it, and, in partition 0,
// the clock that writes it.
type stateTask struct {
	s         *Service
	partition int32
	gen       *generation
	state     windows
	parts     int32   // of the input, once asked
	clock     *clock  // of partition 0
	doctor    *doctor // of partition 0
	org       string  // of the Match that is taken

	changelog map[string][]byte // while it is read back
	held      bool              // there was something in it: time must go on for that
	since     time.Time         // when it was read back; zero: it holds nothing of a rule that is not loaded

	unknown map[string]time.Time        // state hash: since when it is waited for
	limits  map[string]string           // what was cut since the last flush, by rule
	told    bus.Overlay[string, string] // changelog key of a finding: the day it was raised
	ctx     context.Context             //nolint:containedctx // of the last Tick: what Commit begins ends with it
}

func (s *Service) newStateTask(partition int32) (bus.Task, error) {
	t := &stateTask{s: s, partition: partition, gen: s.current.Load(), changelog: map[string][]byte{}, unknown: map[string]time.Time{}, limits: map[string]string{}}
	for i, set := range s.lately() {
		if i == 0 {
			t.state = s.newWindows(set, t)
		} else {
			t.state.SetRules(set)
		}
	}
	if partition == 0 {
		t.clock = newClock(s.bus, s.log, &s.clocks, s.second)
		t.doctor = &doctor{h: s.health}
	}
	return t, nil
}

func (t *stateTask) Restore(key, value []byte) error {
	switch k := string(key); {
	case strings.HasPrefix(k, toldPrefix) && value == nil:
		t.told.Unload(k)
	case strings.HasPrefix(k, toldPrefix):
		t.told.Load(k, string(value))
	case strings.HasPrefix(k, endedPrefix):
		if t.clock != nil {
			t.clock.restore(k, value)
		}
	case value == nil:
		delete(t.changelog, k)
	default:
		t.changelog[k] = bytes.Clone(value)
	}
	return nil
}

// ready hands over what was read back, once, and has the rules in force judge from here on.
func (t *stateTask) ready() {
	if t.changelog != nil {
		t.held = len(t.changelog) > 0
		for _, key := range slices.Sorted(maps.Keys(t.changelog)) {
			if err := t.state.Restore(key, t.changelog[key]); err != nil {
				t.s.log.Error("an entry of the changelog cannot be read: what it held is lost", "partition", t.partition, "error", err)
			}
		}
		t.changelog = nil
		t.state.Restored()
		t.since = time.Now()
	}
	if gen := t.s.current.Load(); gen != t.gen {
		t.gen = gen
		t.state.SetRules(gen.set)
	}
}

func (t *stateTask) Process(ctx context.Context, batch []bus.Message, out *bus.Emit) error {
	t.ready()
	w := &judged{t: t, ctx: ctx, out: out}
	for _, m := range batch {
		match, err := bus.Decode[record.Match](ctx, t.s.bus, m)
		if err != nil {
			if !errors.Is(err, record.ErrUnreadable) {
				return err // the registry: it may pass
			}
			out.DeadLetter(m, classDecode, err)
			continue
		}
		if err := t.take(m, match, w); err != nil {
			return err
		}
	}
	if err := w.tellSeeds(); err != nil {
		return err
	}
	w.flush()
	return w.write()
}

// take gives one Match to the windows.
func (t *stateTask) take(m bus.Message, match *record.Match, w *judged) error {
	if match.Kind == engine.MatchSeed || match.Kind == engine.MatchSeeded {
		t.takeSeed(m, match, w)
		return nil
	}
	t.org = match.Org
	if match.Kind == engine.MatchClock {
		if match.Through == nil {
			w.out.DeadLetter(m, classDecode, errors.New("a clock without a time"))
			return nil
		}
		if match.Clock != firstClock {
			return nil // no rule reads what others found
		}
		if err := t.orphans(); err != nil {
			return err
		}
		t.state.Begin(match.Org, match.Lane, *match.Through)
		if !match.Ended {
			t.state.Advance(match.Org, match.Lane, *match.Through)
			return nil
		}
		t.state.Close(match.Org, match.Lane, *match.Through)
		w.flush()
		t.state.Forget(match.Org, match.Lane)
		return nil
	}
	err := t.state.Apply(match)
	switch {
	case errors.Is(err, engine.ErrUnknownRule):
		return t.strange(m, match, w, err)
	case err != nil:
		w.out.DeadLetter(m, classDecode, err)
	default:
		delete(t.unknown, match.StateHash)
	}
	return nil
}

// orphans holds the time back while there may be a rule yet for what was read back: with the time the windows of a rule that nobody
// knows are forgotten.
func (t *stateTask) orphans() error {
	if t.since.IsZero() {
		return nil
	}
	n := t.state.Orphans()
	switch {
	case n > 0 && time.Since(t.since) < t.s.patience:
		return fmt.Errorf("what %d rules held was read back and they are not loaded here: waiting for the rules to be read again", n)
	case n > 0:
		t.s.log.Warn("what rules held that are not there any more is forgotten", "partition", t.partition, "rules", n)
	}
	t.since = time.Time{}
	return nil
}

// strange is a Match of a rule as this instance does not have it. Another instance has loaded it already, or it was removed when the
// Match was on its way: the partition waits for the former, a dead letter and a finding tell of the latter.
func (t *stateTask) strange(m bus.Message, match *record.Match, w *judged, err error) error {
	since, ok := t.unknown[match.StateHash]
	if !ok {
		since = time.Now()
		t.unknown[match.StateHash] = since
	}
	if time.Since(since) < t.s.patience {
		return fmt.Errorf("%w: waiting for the rules to be read again", err)
	}
	w.out.DeadLetter(m, classUnknown, err)
	return t.tell(w.out, findUnknown.Finding, match.Org, match.RuleID, match.StateHash, m.Timestamp)
}

// tell raises a finding of a rule, once a day.
func (t *stateTask) tell(out *bus.Emit, f finding.Finding, org, ruleID, detail string, at time.Time) error {
	day := at.UTC().Format(time.DateOnly)
	key := toldPrefix + f.Name + "\x00" + org + "\x00" + ruleID
	if last, _ := t.told.Get(key); last >= day {
		return nil
	}
	t.told.Put(key, day)
	out.State([]byte(key), []byte(day))
	d := f.Detection(aboutRule(f, org, ruleID, detail, t.partition, at))
	if err := out.Put(topics.Detections, d.Fingerprint, d); err != nil {
		return fmt.Errorf("tell of rule %s: %w", ruleID, err)
	}
	t.s.m.findings.With(f.Name).Inc()
	return nil
}

func (t *stateTask) Tick(ctx context.Context, now time.Time, out *bus.Emit) error {
	t.ready()
	t.ctx = ctx
	if t.doctor != nil {
		if err := t.doctor.tick(t, now, out); err != nil {
			return err
		}
	}
	if t.clock == nil || !t.held && !t.s.windowed.Load() {
		return nil
	}
	return t.clock.tick(ctx, now, out)
}

// Excepted implements engine.Observer.
func (t *stateTask) Excepted(ruleID, exception string) { t.s.Excepted(ruleID, exception) }

// Failed implements engine.Observer.
func (t *stateTask) Failed(err error) { t.s.Failed(err) }

// Late implements engine.StateObserver.
func (t *stateTask) Late(ruleID string) {
	t.s.Late(ruleID)
	t.s.health.facts.met(t.org, ruleID, func(r *ruleFacts) { r.late++ })
}

// Limited implements engine.StateObserver.
func (t *stateTask) Limited(ruleID, what string) {
	t.s.Limited(ruleID, what)
	t.limits[ruleID] = what
}

func (t *stateTask) Commit() {
	t.state.Commit()
	t.told.Commit()
	if t.clock != nil {
		t.clock.commit(t.ctx)
	}
}

func (t *stateTask) Abort() {
	t.state.Abort()
	t.told.Abort()
	if t.clock != nil {
		t.clock.abort()
	}
}
