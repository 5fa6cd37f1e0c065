package detect

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/eventtype"
	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	leastHidden    = 20 // events that exceptions took, before they hide everything
	findingsAtOnce = 50 // findings of one transaction; the others follow
	tellOf         = "health\x00"
	listed         = 20 // names in a detail
)

// illness is what is wrong with a rule.
type illness struct {
	ruleFinding
	org, rule string
	of        []string // what else tells it from others
	detail    string
}

// illnesses is what is wrong, by what the running instances say and all remember. It is a function of its input.
type illnesses struct {
	set    *rule.Set
	living []*record.RuleStatus
	facts  *facts
	now    time.Time
	budget time.Duration
	quiet  time.Duration // of event time
	differ bool          // for long enough

	out []illness
}

func (x *illnesses) add(f ruleFinding, org, ruleID, detail string, of ...string) {
	x.out = append(x.out, illness{f, org, ruleID, of, detail})
}

// find lists them in a stable order, each once.
func (x *illnesses) find() []illness {
	x.ofInstances()
	x.ofRules()
	for _, org := range slices.Sorted(maps.Keys(x.facts.orgs)) {
		x.ofOrg(org, x.facts.orgs[org])
	}
	slices.SortStableFunc(x.out, func(a, b illness) int { return strings.Compare(a.key(), b.key()) })
	return slices.CompactFunc(x.out, func(a, b illness) bool { return a.key() == b.key() })
}

// key tells an illness from every other.
func (i illness) key() string {
	return strings.Join(append([]string{i.Name, i.org, i.rule}, i.of...), "\x00")
}

// ofInstances are what the heartbeats say.
func (x *illnesses) ofInstances() {
	type failing struct {
		count int64
		text  string
	}
	today := x.now.UTC().Format(time.DateOnly)
	failed := map[[2]string]*failing{}
	for _, st := range x.living {
		told := map[string]int{}
		for _, p := range st.Refused {
			if told[p.File]++; told[p.File] > 1 {
				continue
			}
			what := rule.Problem{File: p.File, Line: int(p.Line), Col: int(p.Col), Check: p.Check, Message: p.Message}.String()
			if p.Stale {
				what += "; the version before is in force"
			}
			x.add(findRefused, "", "", what, p.File)
		}
		for _, c := range st.Costs {
			if d := time.Duration(c.P99Us * float64(time.Microsecond)); d > x.budget {
				x.add(findCostly, "", c.RuleID, fmt.Sprintf("p99 %v of %d measured at %s, budget %v", d.Round(time.Microsecond/10), c.Samples, st.Instance, x.budget))
			}
		}
		for _, e := range st.Failures {
			if e.Day != today {
				continue
			}
			k := [2]string{e.RuleID, e.Expression}
			if failed[k] == nil {
				failed[k] = &failing{text: e.Error}
			}
			failed[k].count += e.Count
		}
	}
	for k, e := range failed {
		x.add(findFailing, "", k[0], fmt.Sprintf("%s: %s; %d time(s) so far on %s", k[1], e.text, e.count, today), k[1])
	}
	if x.differ {
		var who []string
		for _, st := range x.living {
			who = append(who, st.Instance+" has "+st.Hash)
		}
		x.add(findDiffer, "", "", list(who))
	}
}

// list is the first of some names.
func list(names []string) string {
	if len(names) <= listed {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:listed], ", ") + fmt.Sprintf(" and %d more", len(names)-listed)
}

// ofRules are what can be said of the rules alone. A type that some org has sent exists, whatever the list says.
func (x *illnesses) ofRules() {
	seen := map[string]bool{}
	for _, o := range x.facts.orgs {
		for t := range o.types {
			seen[t] = true
		}
	}
	names := eventtype.Names()
	told := map[string]bool{}
	for _, org := range append([]string{""}, x.set.Orgs()...) {
		for _, c := range x.set.For(org) {
			if c.Mode == rule.ModeDisabled || told[c.ID+"\x00"+c.ContentHash] {
				continue
			}
			told[c.ID+"\x00"+c.ContentHash] = true
			if impossible(c) {
				x.add(findImpossible, "", c.ID, "no event type fulfils its conditions")
			}
			for _, t := range c.Types.Exact {
				if seen[t] || eventtype.Known(t) {
					continue
				}
				detail := strconv.Quote(t) + " is not in Okta's list"
				if n := rule.Nearest(t, names); n != "" {
					detail += ": did you mean " + strconv.Quote(n) + "?"
				}
				x.add(findUnknownType, "", c.ID, detail, t)
			}
			for _, g := range c.Types.Globs {
				like := func(t string) bool { return rule.Glob(g, t) }
				if !slices.ContainsFunc(names, like) && !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), like) {
					x.add(findUnknownType, "", c.ID, "no type of Okta's list is like "+strconv.Quote(g), g)
				}
			}
		}
	}
}

// impossible tells whether no event type fulfils what a rule needs.
func impossible(c *rule.Compiled) bool {
	return slices.ContainsFunc(c.Needs(), func(n rule.EventTypes) bool { return !n.All && len(n.Exact)+len(n.Globs) == 0 })
}

// ofOrg are what an org's events say of its rules.
func (x *illnesses) ofOrg(org string, o *orgFacts) {
	quiet := x.quiet.Milliseconds()
	from := o.newest - quiet
	days := strconv.FormatInt(quiet/(24*time.Hour).Milliseconds(), 10) + " days"
	for _, c := range x.set.For(org) {
		if c.Mode == rule.ModeDisabled {
			continue
		}
		r := o.rules[c.ID]
		if r == nil || r.hash != c.ContentHash { // what is remembered is of another version
			r = &ruleFacts{since: o.newest}
		}
		for _, e := range c.Exceptions {
			if !e.Expires.IsZero() && o.newest >= e.Expires.UnixMilli() {
				x.add(findExpired, org, c.ID, fmt.Sprintf("%s, in force through %s", e.Name, e.Expires.AddDate(0, 0, -1).Format(time.DateOnly)), e.Name)
			}
		}
		if r.takenAt == 0 || r.takenAt <= from {
			var alone, last int64
			var names []string
			for _, name := range slices.Sorted(maps.Keys(r.exceptions)) {
				e := r.exceptions[name]
				alone += e.alone
				last = max(last, e.usedAt)
				names = append(names, fmt.Sprintf("%s (%d)", name, e.alone))
			}
			if alone >= leastHidden && last > from {
				x.add(findHidden, org, c.ID, "kept away by "+list(names))
				continue
			}
		}
		if o.since > from || impossible(c) {
			continue
		}
		missing := slices.DeleteFunc(c.Needs(), func(n rule.EventTypes) bool { return n.All || o.has(n, from) })
		switch {
		case len(missing) > 0:
			x.add(findUnseen, org, c.ID, fmt.Sprintf("in %s none of %s", days, list(slices.Concat(missing[0].Exact, missing[0].Globs))))
		case r.hits == 0 && r.since <= from:
			x.add(findNever, org, c.ID, fmt.Sprintf("in force since %s; its filter took %d event(s)", moment(r.since).Format(time.DateOnly), r.taken))
		}
	}
}

// has tells whether one of some event types came after a time.
func (o *orgFacts) has(types rule.EventTypes, from int64) bool {
	for t, at := range o.types {
		if *at > from && types.Has(t) {
			return true
		}
	}
	return false
}

// doctor is at the owner of partition 0 of the state stage: it alone raises what is found in what all report, in transactions of its
// task, which also remember that it did.
type doctor struct {
	h       *health
	looked  time.Time
	version int
	differs time.Time // since when the running instances have different rules
	left    []illness // to be told
	day     string
}

// tick looks at the health of the rules now and then, and tells of what was not told lately.
func (d *doctor) tick(t *stateTask, now time.Time, out *bus.Emit) error {
	if len(d.left) == 0 {
		if now.Sub(d.looked) < d.h.every.look {
			return nil
		}
		states, version, ok := d.h.statuses()
		if !ok {
			return nil
		}
		d.looked = now
		if version != d.version || !d.differs.IsZero() {
			d.version = version
			d.look(t, states, now)
		}
	}
	if day := now.UTC().Format(time.DateOnly); d.day != day {
		d.day = day
		d.forget(t, now, out)
	}
	told := 0
	for len(d.left) > 0 && told < findingsAtOnce {
		i := d.left[0]
		fresh, err := t.raise(out, i, now)
		if err != nil {
			return err
		}
		if fresh {
			told++
		}
		d.left = d.left[1:]
	}
	return nil
}

func (d *doctor) look(t *stateTask, states map[string]*record.RuleStatus, now time.Time) {
	living := d.h.every.living(states, now)
	hashes := map[string]bool{}
	for _, st := range living {
		hashes[st.Hash] = true
	}
	switch {
	case len(hashes) < 2:
		d.differs = time.Time{}
	case d.differs.IsZero():
		d.differs = now
	}
	x := illnesses{
		set: t.gen.set, living: living, facts: remembered(states), now: now, budget: t.s.cfg.Rules.Budget,
		quiet: time.Duration(t.s.cfg.Rules.QuietDays) * 24 * time.Hour, differ: !d.differs.IsZero() && now.Sub(d.differs) > d.h.every.differ,
	}
	d.left = x.find()
	counts := map[string]int{}
	for _, i := range d.left {
		counts[i.Name]++
	}
	for _, f := range ruleFindings() {
		t.s.m.ill.With(f.Name).Set(float64(counts[f.Name]))
	}
	t.s.m.instances.Set(float64(len(living)))
	t.s.m.packs.Set(float64(len(hashes)))
}

// forget lets go of what was told long ago, so that what is remembered of rules that are no more does not grow.
func (d *doctor) forget(t *stateTask, now time.Time, out *bus.Emit) {
	days := max(t.s.cfg.Rules.QuietDays, 1) + 1
	before := now.UTC().AddDate(0, 0, -days).Format(time.DateOnly)
	for key, day := range maps.Collect(t.told.All()) {
		if day < before {
			t.told.Delete(key)
			out.State([]byte(key), nil)
		}
	}
}

// raise tells of an illness, if it was not told today, or lately where it is slow.
func (t *stateTask) raise(out *bus.Emit, i illness, now time.Time) (fresh bool, err error) {
	day := now.UTC().Format(time.DateOnly)
	key := toldPrefix + tellOf + i.key()
	since := day
	if i.slow {
		since = now.UTC().AddDate(0, 0, 1-max(t.s.cfg.Rules.QuietDays, 1)).Format(time.DateOnly)
	}
	if last, _ := t.told.Get(key); last >= since {
		return false, nil
	}
	t.told.Put(key, day)
	out.State([]byte(key), []byte(day))
	title := i.Title
	about := cmp.Or(i.rule, strings.Join(i.of, " "))
	if about != "" {
		title += ": " + about
	}
	dedup := []string{day}
	if about != "" && !i.slow { // slow ones of a day make one alert for all rules: nobody reads a hundred
		dedup = []string{about, day}
	}
	det := i.Detection(finding.About{
		Org: i.org, Of: append([]string{i.rule}, i.of...), Key: dedup, At: now, Title: title,
		Detail: map[string]any{"rule": i.rule, "detail": i.detail},
	})
	if err := out.Put(topics.Detections, det.Fingerprint, det); err != nil {
		return false, fmt.Errorf("tell of %s: %w", i.key(), err)
	}
	t.s.m.findings.With(i.Name).Inc()
	t.s.log.Warn("finding raised", "finding", i.Name, "rule", i.rule, "org", i.org, "title", title, "detail", i.detail)
	return true, nil
}
