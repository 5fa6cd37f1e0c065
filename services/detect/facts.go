package detect

import (
	"cmp"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// Limits of what is remembered. Names of event types come from outside.
const (
	maxFactOrgs   = 1000
	maxFactTypes  = 4000 // of an org
	maxFailures   = 500
	maxErrorText  = 200
	entriesAPart  = 2500 // of a record: far below its limit of 1 MiB
	minSamples    = 500  // of a rule's cost, before it is told
	meterEvery    = 61
	oldestSamples = 1 << 14 // beyond it all counts are halved: what was long ago counts less
)

// facts are what an instance remembers of the events it read and of what its rules met. They come back from the topic after a restart,
// and two instances' facts of one org make one. Times are event time, in milliseconds; zero: never.
type facts struct {
	mu       sync.Mutex
	orgs     map[string]*orgFacts
	failures map[failureKey]*failures
	costs    map[string]*costs
	changed  bool          // since parts was asked
	news     chan struct{} // there is something that should not wait for the next heartbeat

	last *orgFacts // that was asked for
}

type orgFacts struct {
	org           string
	since, newest int64
	settled       bool // the rules that were in force when it came are noted: others came later
	types         map[string]*int64
	rules         map[string]*ruleFacts
}

type ruleFacts struct {
	hash       string
	since      int64
	taken      int64
	takenAt    int64
	hits       int64
	hitAt      int64
	late       int64
	limited    int64
	exceptions map[string]*exceptionFacts
}

type exceptionFacts struct{ used, usedAt, alone int64 }

type failureKey struct{ rule, expression, day string }

type failures struct {
	text  string
	count int64
	first time.Time
}

func newFacts() *facts {
	return &facts{orgs: map[string]*orgFacts{}, failures: map[failureKey]*failures{}, costs: map[string]*costs{}, news: make(chan struct{}, 1)}
}

func (f *facts) tell() {
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// of is the org's facts, nil where there are too many orgs.
func (f *facts) of(org string) *orgFacts {
	if f.last != nil && f.last.org == org {
		return f.last
	}
	o := f.orgs[org]
	if o == nil {
		if len(f.orgs) >= maxFactOrgs {
			return nil
		}
		org = strings.Clone(org)
		o = &orgFacts{org: org, types: map[string]*int64{}, rules: map[string]*ruleFacts{}}
		f.orgs[org] = o
	}
	f.last = o
	return o
}

func (o *orgFacts) rule(id string) *ruleFacts {
	r := o.rules[id]
	if r == nil {
		r = &ruleFacts{since: o.since}
		if o.settled {
			r.since = o.newest
		}
		o.rules[strings.Clone(id)] = r
	}
	return r
}

// saw notes that an event of the live lane was read.
func (f *facts) saw(org, eventType string, at int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.of(org)
	if o == nil {
		return
	}
	f.changed = true
	if o.since == 0 || at < o.since {
		o.since = at
	}
	o.newest = max(o.newest, at)
	last := o.types[eventType]
	if last == nil {
		if len(o.types) >= maxFactTypes {
			return
		}
		last = new(int64)
		o.types[strings.Clone(eventType)] = last
	}
	*last = max(*last, at)
}

// met changes what is remembered of a rule in an org.
func (f *facts) met(org, ruleID string, change func(r *ruleFacts)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.of(org); o != nil {
		f.changed = true
		change(o.rule(ruleID))
	}
}

func (r *ruleFacts) take(at int64) {
	r.taken++
	r.takenAt = max(r.takenAt, at)
	for _, x := range r.exceptions {
		x.alone = 0
	}
}

func (r *ruleFacts) hit(at int64) {
	r.hits++
	r.hitAt = max(r.hitAt, at)
}

func (r *ruleFacts) exception(name string) *exceptionFacts {
	x := r.exceptions[name]
	if x == nil {
		if r.exceptions == nil {
			r.exceptions = map[string]*exceptionFacts{}
		}
		x = &exceptionFacts{}
		r.exceptions[strings.Clone(name)] = x
	}
	return x
}

// failed notes that an expression failed, on the UTC day of now.
func (f *facts) failed(err *rule.EvalError, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := failureKey{err.Rule, err.What, now.UTC().Format(time.DateOnly)}
	x := f.failures[k]
	if x == nil {
		if len(f.failures) >= maxFailures {
			return
		}
		x = &failures{text: errorClass(err.Err), first: now}
		f.failures[k] = x
		f.tell()
	}
	x.count++
}

// errorClass is what CEL says without the values it says it of: those are an event's, and not everybody's.
func errorClass(err error) string {
	text, _, _ := strings.Cut(err.Error(), ":")
	return clip(text, maxErrorText)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// took notes what judging by a rule cost once.
func (f *facts) took(ruleID string, d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.costs[ruleID]
	if c == nil {
		c = &costs{}
		f.costs[ruleID] = c
	}
	c.add(d)
}

// use makes the facts those of the rules in force: what a rule met before its content changed is not said of it any more.
func (f *facts) use(set *rule.Set) {
	f.mu.Lock()
	defer f.mu.Unlock()
	there := map[string]bool{}
	for org, o := range f.orgs {
		now := map[string]bool{}
		for _, c := range set.For(org) {
			if c.Mode == rule.ModeDisabled {
				continue
			}
			there[c.ID], now[c.ID] = true, true
			r := o.rule(c.ID)
			switch r.hash {
			case c.ContentHash:
				continue
			case "":
			default:
				*r = ruleFacts{since: o.newest}
			}
			r.hash = c.ContentHash
			f.changed = true
		}
		o.settled = true
		maps.DeleteFunc(o.rules, func(id string, _ *ruleFacts) bool { return !now[id] })
	}
	if len(f.orgs) > 0 {
		maps.DeleteFunc(f.costs, func(id string, _ *costs) bool { return !there[id] })
	}
}

// add joins what a record says: of this instance before, or of another.
func (f *facts) add(st *record.RuleStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = true
	for _, x := range st.Orgs {
		if o := f.of(x.Org); o != nil {
			if at := x.Since.UnixMilli(); o.since == 0 || at < o.since {
				o.since = at
			}
			o.newest = max(o.newest, x.Newest.UnixMilli())
			o.settled = true
		}
	}
	for _, x := range st.Types {
		o := f.of(x.Org)
		if o == nil {
			continue
		}
		last := o.types[x.EventType]
		if last == nil {
			last = new(int64)
			o.types[x.EventType] = last
		}
		*last = max(*last, x.At.UnixMilli())
	}
	for _, x := range st.Seen {
		o := f.of(x.Org)
		if o == nil {
			continue
		}
		r := o.rules[x.RuleID]
		since := x.Since.UnixMilli()
		switch {
		case r == nil:
			r = &ruleFacts{hash: x.ContentHash, since: since}
			o.rules[x.RuleID] = r
		case r.hash == "":
			r.hash = x.ContentHash
		case r.hash != x.ContentHash:
			if since <= r.since {
				continue // of an earlier version
			}
			*r = ruleFacts{hash: x.ContentHash, since: since}
		}
		r.since = min(r.since, since)
		r.taken += x.Taken
		r.hits += x.Hits
		r.late += x.Late
		r.limited += x.Limited
		r.takenAt = max(r.takenAt, milli(x.TakenAt))
		r.hitAt = max(r.hitAt, milli(x.HitAt))
	}
	for _, x := range st.Exceptions {
		o := f.of(x.Org)
		if o == nil {
			continue
		}
		if r := o.rules[x.RuleID]; r != nil && r.hash == x.ContentHash {
			e := r.exception(x.Exception)
			e.used += x.Used
			e.alone += x.Alone
			e.usedAt = max(e.usedAt, milli(x.UsedAt))
		}
	}
}

func milli(t *time.Time) int64 {
	if t == nil {
		return 0
	}
	return t.UnixMilli()
}

func moment(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

func momentOf(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	return new(moment(ms))
}

// parts are the facts as records from part 1 on, nil where nothing has changed since they were asked for.
func (f *facts) parts() []*record.RuleStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.changed {
		return nil
	}
	f.changed = false
	out := []*record.RuleStatus{{Part: 1}}
	n := 0
	part := func() *record.RuleStatus {
		if n++; n > entriesAPart {
			out = append(out, &record.RuleStatus{Part: int32(len(out) + 1)})
			n = 1
		}
		return out[len(out)-1]
	}
	for _, org := range slices.Sorted(maps.Keys(f.orgs)) {
		o := f.orgs[org]
		if o.since > 0 {
			p := part()
			p.Orgs = append(p.Orgs, record.OrgSeen{Org: org, Since: moment(o.since), Newest: moment(o.newest)})
		}
		for _, t := range slices.Sorted(maps.Keys(o.types)) {
			p := part()
			p.Types = append(p.Types, record.TypeSeen{Org: org, EventType: t, At: moment(*o.types[t])})
		}
		for _, id := range slices.Sorted(maps.Keys(o.rules)) {
			r := o.rules[id]
			p := part()
			p.Seen = append(p.Seen, record.RuleSeen{
				Org: org, RuleID: id, ContentHash: r.hash, Since: moment(r.since), Taken: r.taken, TakenAt: momentOf(r.takenAt),
				Hits: r.hits, HitAt: momentOf(r.hitAt), Late: r.late, Limited: r.limited,
			})
			for _, name := range slices.Sorted(maps.Keys(r.exceptions)) {
				x := r.exceptions[name]
				p := part()
				p.Exceptions = append(p.Exceptions, record.RuleExcepted{
					Org: org, RuleID: id, Exception: name, ContentHash: r.hash, Used: x.used, UsedAt: momentOf(x.usedAt), Alone: x.alone,
				})
			}
		}
	}
	return out
}

// report fills the heartbeat with the failures of today and yesterday and with the costs that are known well enough.
func (f *facts) report(st *record.RuleStatus, now time.Time, least int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	yesterday := now.UTC().AddDate(0, 0, -1).Format(time.DateOnly)
	maps.DeleteFunc(f.failures, func(k failureKey, _ *failures) bool { return k.day < yesterday })
	for k, x := range f.failures {
		st.Failures = append(st.Failures, record.RuleFailure{RuleID: k.rule, Expression: k.expression, Error: x.text, Day: k.day, Count: x.count, FirstAt: new(x.first)})
	}
	slices.SortFunc(st.Failures, func(a, b record.RuleFailure) int {
		return cmp.Or(cmp.Compare(a.RuleID, b.RuleID), cmp.Compare(a.Expression, b.Expression), cmp.Compare(a.Day, b.Day))
	})
	for _, id := range slices.Sorted(maps.Keys(f.costs)) {
		if c := f.costs[id]; c.n >= int64(least) {
			st.Costs = append(st.Costs, record.RuleCost{RuleID: id, Samples: c.n, P50Us: micros(c.at(0.5)), P99Us: micros(c.at(0.99))})
		}
	}
}

// recall takes back today's failures from a heartbeat of this instance before.
func (f *facts) recall(st *record.RuleStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range st.Failures {
		k := failureKey{x.RuleID, x.Expression, x.Day}
		e := f.failures[k]
		if e == nil {
			e = &failures{text: x.Error}
			f.failures[k] = e
		}
		e.count += x.Count
		if x.FirstAt != nil {
			e.first = *x.FirstAt
		}
	}
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// costs counts durations in buckets an eighth apart, so that a quantile is right to about 12 per cent.
type costs struct {
	n       int64 // measured
	in      int64 // in the buckets
	buckets [8 * 40]uint32
}

const subBits = 3

func (c *costs) add(d time.Duration) {
	n := uint64(max(d, 1))
	b := int(n)
	if n >= 1<<subBits {
		e := bits.Len64(n) - 1 - subBits
		b = (e+1)<<subBits + int(n>>e) - 1<<subBits
	}
	c.buckets[min(b, len(c.buckets)-1)]++
	c.n++
	if c.in++; c.in >= oldestSamples {
		c.in = 0
		for i := range c.buckets {
			c.buckets[i] /= 2
			c.in += int64(c.buckets[i])
		}
	}
}

// at is the upper end of the bucket that a quantile lies in.
func (c *costs) at(q float64) time.Duration {
	left := int64(q * float64(c.in))
	for b, n := range c.buckets {
		if left -= int64(n); left < 0 {
			if b < 1<<subBits {
				return time.Duration(b)
			}
			e := b>>subBits - 1
			return time.Duration((uint64(b&(1<<subBits-1))+1<<subBits+1)<<e - 1)
		}
	}
	return 0
}

// again has parts give everything once more.
func (f *facts) again() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = true
}
