// Package model says what the rule language's page says about rules with memory, in the plainest way: it keeps every
// record and works everything out again from all of them. It is as slow as it likes, shares no code with the engine,
// and is only there for tests to compare the engine with. Conditions are Go functions; it knows no CEL.
package model

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/google/uuid"
)

// Event is one record. Times are milliseconds.
type Event struct {
	UUID    string
	Time    int64
	Type    string
	User    string
	IP      string
	Result  string
	Step    int64
	Proxy   bool
	Targets []string
	Seed    bool
}

// Part is one part of a key.
type Part struct {
	Name   string
	Values func(*Event) []string
}

// Agg is one aggregate.
type Agg struct {
	Name  string
	How   string // count, distinct, count_by, min, max, value
	Cond  func(*Event) bool
	Texts func(*Event) []string
	Int   func(*Event) int64
	Value func(aggs map[string]any) int64
}

// Step is one step of a sequence.
type Step struct {
	ID     string
	Where  func(e *Event, steps map[string]*Event) bool
	Count  int
	Within int64
	Not    bool
}

// Baseline is what a number was over buckets.
type Baseline struct {
	N                      int64
	Sum, Mean, Stddev, Max float64
}

// KeyBaseline is what a count_by was over buckets.
type KeyBaseline struct {
	N               int64
	Buckets, Totals map[string]int64
}

// Hit is what expressions over a hit see.
type Hit struct {
	At       int64
	Event    *Event
	Key      map[string]string
	Aggs     map[string]any // int64 or map[string]int64
	Recent   map[string]any // Baseline or KeyBaseline
	Base     map[string]any
	Steps    map[string]*Event
	Evidence []*Event
}

// Rule is a rule with memory.
type Rule struct {
	ID, StateHash string
	Revision      int
	Kind          string
	Severity      int
	Where         func(*Event) bool
	Except        func(*Event) bool
	Parts         []Part // by name
	Lateness      int64
	Period        int64
	Window        int64
	Settle        int64
	Baseline      int64
	Bucket        int64
	Learning      int64
	Memory        int64
	Aggs          []Agg
	Having        func(*Hit) bool
	Steps         []Step
	LearnFrom     func(*Event) bool // nil: Where
	SeenBefore    []string
	SeverityWhen  func(*Hit) int // 0: none
	Title         func(*Hit) string
}

// Detection is one detection.
type Detection struct {
	ID          string
	First, Last int64
	Severity    int
	Title       string
	Events      []string
	Users       []string
	Final       bool
}

// String is for messages.
func (d Detection) String() string {
	return fmt.Sprintf("%s %d..%d severity %d %q events %v users %v final %v", d.ID, d.First, d.Last, d.Severity, d.Title, d.Events, d.Users, d.Final)
}

// Judge gives every detection that the records make, when the rule's clock stands at clock and its live records began at
// begin. Learning began with them, or with the earliest seed.
func Judge(r *Rule, org string, records []*Event, begin, clock int64) []Detection {
	records = append([]*Event(nil), records...)
	sort.Slice(records, func(i, j int) bool { return before(records[i], records[j]) })
	live := begin
	var counted []*Event
	for _, e := range records {
		if e.Seed {
			begin = min(begin, e.Time)
			if r.Baseline > 0 && bucketOf(r, e.Time) >= bucketOf(r, live) {
				continue // live records are counted there
			}
		}
		counted = append(counted, e)
	}
	records = counted
	groups := map[string]map[string]string{}
	for _, e := range records {
		for _, k := range keysOf(r, e) {
			groups[keyText(r, k)] = k
		}
	}
	var names []string
	for n := range groups {
		names = append(names, n)
	}
	sort.Strings(names)
	var out []Detection
	for _, n := range names {
		var hits []*Hit
		switch r.Kind {
		case "aggregate":
			hits = aggregate(r, groups[n], records, begin)
		case "sequence":
			hits = sequence(r, groups[n], records)
		case "first_seen":
			hits = firstSeen(r, groups[n], records, begin)
		}
		var decided []*Hit
		for _, h := range hits {
			if h.At <= clock || !waits(r) {
				decided = append(decided, h)
			}
		}
		out = append(out, detections(r, org, n, decided, clock)...)
	}
	return out
}

func before(a, b *Event) bool {
	if a.Time != b.Time {
		return a.Time < b.Time
	}
	return a.UUID < b.UUID
}

func waits(r *Rule) bool {
	return r.Settle > 0 || r.Kind == "sequence" && r.Steps[len(r.Steps)-1].Not
}

func known(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "-", "null", "none", "unknown":
		return false
	}
	return true
}

// keysOf are the groups of a record: parts multiply, a part without known value gives none.
func keysOf(r *Rule, e *Event) []map[string]string {
	keys := []map[string]string{{}}
	for _, p := range r.Parts {
		var next []map[string]string
		for _, k := range keys {
			seen := map[string]bool{}
			for _, v := range p.Values(e) {
				if !known(v) || seen[v] {
					continue
				}
				seen[v] = true
				n := map[string]string{p.Name: v}
				maps.Copy(n, k)
				next = append(next, n)
			}
		}
		keys = next
	}
	return keys
}

func keyText(r *Rule, k map[string]string) string {
	var parts []string
	for _, p := range r.Parts {
		parts = append(parts, p.Name+"="+k[p.Name])
	}
	return strings.Join(parts, "\x00")
}

func inGroup(r *Rule, key map[string]string, e *Event) bool {
	for _, k := range keysOf(r, e) {
		if keyText(r, k) == keyText(r, key) {
			return true
		}
	}
	return false
}

func excepted(r *Rule, e *Event) bool { return r.Except != nil && r.Except(e) }

func learned(r *Rule, begin, t int64) bool { return r.Learning == 0 || t >= begin+r.Learning }

func aggregate(r *Rule, key map[string]string, records []*Event, begin int64) []*Hit {
	var group []*Event
	for _, e := range records {
		if r.Where(e) && !excepted(r, e) && inGroup(r, key, e) && (!e.Seed || r.Baseline > 0) {
			group = append(group, e)
		}
	}
	var hits []*Hit
	done := map[int64]bool{}
	for _, e := range group {
		if e.Seed || done[e.Time] {
			continue
		}
		done[e.Time] = true
		t := e.Time + r.Settle
		from := t - r.Window
		if r.Baseline > 0 {
			from = (bucketOf(r, t)-r.Window/r.Bucket+1)*r.Bucket - 1
		}
		h := &Hit{At: t, Key: key}
		for _, x := range group {
			if !x.Seed && x.Time > from && x.Time <= t {
				h.Evidence = append(h.Evidence, x)
			}
		}
		if len(h.Evidence) == 0 {
			continue
		}
		h.Event = h.Evidence[len(h.Evidence)-1]
		h.Aggs = aggs(r, h.Evidence)
		if r.Baseline > 0 {
			h.Recent, h.Base = baselines(r, group, t)
			if !learned(r, begin, t) {
				continue
			}
		}
		if r.Having(h) {
			hits = append(hits, h)
		}
	}
	return hits
}

func bucketOf(r *Rule, t int64) int64 { return int64(math.Floor(float64(t) / float64(r.Bucket))) }

func aggs(r *Rule, window []*Event) map[string]any {
	out := map[string]any{"count": int64(len(window))}
	for _, a := range r.Aggs {
		switch a.How {
		case "count":
			n := int64(0)
			for _, e := range window {
				if a.Cond(e) {
					n++
				}
			}
			out[a.Name] = n
		case "distinct", "count_by":
			counts := map[string]int64{}
			for _, e := range window {
				if a.Cond != nil && !a.Cond(e) {
					continue
				}
				mine := map[string]bool{}
				for _, v := range a.Texts(e) {
					if known(v) && !mine[v] {
						mine[v] = true
						counts[v]++
					}
				}
			}
			if a.How == "distinct" {
				out[a.Name] = int64(len(counts))
			} else {
				out[a.Name] = counts
			}
		case "min", "max":
			best, any := int64(0), false
			for _, e := range window {
				if a.Cond != nil && !a.Cond(e) {
					continue
				}
				v := a.Int(e)
				if !any || a.How == "min" && v < best || a.How == "max" && v > best {
					best, any = v, true
				}
			}
			out[a.Name] = best
		}
	}
	for _, a := range r.Aggs {
		if a.How == "value" {
			out[a.Name] = a.Value(out)
		}
	}
	return out
}

// baselines sums up the buckets of the window (recent) and those before them (base), of those that have a record.
func baselines(r *Rule, group []*Event, t int64) (recent, base map[string]any) {
	now := bucketOf(r, t)
	n, nb := r.Window/r.Bucket, r.Baseline/r.Bucket
	over := func(from, to int64, seeds bool) map[string]any {
		var each []map[string]any
		for b := from; b <= to; b++ {
			var in []*Event
			for _, e := range group {
				if bucketOf(r, e.Time) == b && (seeds || !e.Seed && e.Time <= t) {
					in = append(in, e)
				}
			}
			if len(in) > 0 {
				each = append(each, aggs(r, in))
			}
		}
		out := map[string]any{}
		names := []string{"count"}
		byKey := map[string]bool{}
		for _, a := range r.Aggs {
			names = append(names, a.Name)
			byKey[a.Name] = a.How == "count_by"
		}
		for _, name := range names {
			if byKey[name] {
				k := KeyBaseline{N: int64(len(each)), Buckets: map[string]int64{}, Totals: map[string]int64{}}
				for _, m := range each {
					for v, c := range m[name].(map[string]int64) {
						k.Buckets[v]++
						k.Totals[v] += c
					}
				}
				out[name] = k
				continue
			}
			b := Baseline{N: int64(len(each))}
			for i, m := range each {
				v := float64(m[name].(int64))
				b.Sum += v
				if i == 0 || v > b.Max {
					b.Max = v
				}
			}
			if len(each) > 0 {
				b.Mean = b.Sum / float64(len(each))
				for _, m := range each {
					d := float64(m[name].(int64)) - b.Mean
					b.Stddev += d * d
				}
				b.Stddev = math.Sqrt(b.Stddev / float64(len(each)))
			}
			out[name] = b
		}
		return out
	}
	return over(now-n+1, now, false), over(now-n-nb+1, now-n, true)
}

// Zscore is the language's.
func Zscore(x float64, b Baseline, least float64) float64 {
	div := math.Max(b.Stddev, least)
	if b.N == 0 || div == 0 {
		return 0
	}
	return (x - b.Mean) / div
}

// sequence tries every chain.
func sequence(r *Rule, key map[string]string, records []*Event) []*Hit {
	var group, all []*Event // all has what exceptions name
	for _, e := range records {
		if e.Seed || !r.Where(e) || !inGroup(r, key, e) {
			continue
		}
		all = append(all, e)
		if !excepted(r, e) {
			group = append(group, e)
		}
	}
	var real []int
	trail := int64(0)
	for i, s := range r.Steps {
		if !s.Not {
			real = append(real, i)
			trail = 0
		} else {
			trail = max(trail, s.Within)
		}
	}
	var hits []*Hit
	for _, last := range group {
		var best []*Event
		var bestEvidence []*Event
		chain := make([]*Event, len(real))
		chain[len(real)-1] = last
		var fill func(i int)
		fill = func(i int) {
			if i == len(real)-1 {
				if ev, ok := valid(r, real, chain, group, all); ok && (best == nil || later(chain, best)) {
					best, bestEvidence = append([]*Event(nil), chain...), ev
				}
				return
			}
			for _, e := range group {
				chain[i] = e
				fill(i + 1)
			}
		}
		fill(0)
		if best == nil {
			continue
		}
		h := &Hit{At: last.Time + trail, Event: last, Key: key, Steps: map[string]*Event{}, Evidence: bestEvidence}
		for i, n := range real {
			h.Steps[r.Steps[n].ID] = best[i]
		}
		hits = append(hits, h)
	}
	sort.SliceStable(hits, func(i, j int) bool { return hits[i].At < hits[j].At })
	return hits
}

// later compares chains from the last step back.
func later(a, b []*Event) bool {
	for i, v := range slices.Backward(a) {
		if v != b[i] {
			return before(b[i], v)
		}
	}
	return false
}

func valid(r *Rule, real []int, chain, group, all []*Event) ([]*Event, bool) {
	t0 := chain[len(chain)-1].Time
	inWindow := func(e *Event) bool { return e.Time > t0-r.Window && e.Time <= t0 }
	bound := map[string]*Event{}
	own := map[*Event]bool{}
	for i, n := range real {
		e := chain[i]
		if own[e] || !inWindow(e) {
			return nil, false
		}
		own[e] = true
		if i > 0 && (e.Time < chain[i-1].Time || e.Time-chain[i-1].Time > r.Steps[n].Within) {
			return nil, false
		}
		if !r.Steps[n].Where(e, bound) {
			return nil, false
		}
		bound[r.Steps[n].ID] = e
	}
	used := map[*Event]bool{}
	for i, n := range real {
		s := r.Steps[n]
		want := s.Count - 1
		for k := len(group) - 1; k >= 0 && want > 0; k-- {
			e := group[k]
			if own[e] || used[e] || !inWindow(e) || e.Time > chain[i].Time || i > 0 && e.Time < chain[i-1].Time {
				continue
			}
			if s.Where(e, upTo(r, real, chain, i)) {
				used[e] = true
				want--
			}
		}
		if want > 0 {
			return nil, false
		}
	}
	for n, s := range r.Steps {
		if !s.Not {
			continue
		}
		i := -1 // number in real of the step before
		for j, m := range real {
			if m < n {
				i = j
			}
		}
		var lo, hi int64
		var spared *Event
		if i+1 < len(real) {
			lo, hi, spared = chain[i].Time, chain[i+1].Time, chain[i+1]
		} else {
			lo, hi = t0, t0+s.Within
		}
		for _, e := range all {
			if e != spared && e.Time > lo && e.Time <= hi && s.Where(e, upTo(r, real, chain, i+1)) {
				return nil, false
			}
		}
	}
	var evidence []*Event
	for _, e := range group {
		if own[e] || used[e] {
			evidence = append(evidence, e)
		}
	}
	return evidence, true
}

// upTo binds the first n steps with records.
func upTo(r *Rule, real []int, chain []*Event, n int) map[string]*Event {
	out := map[string]*Event{}
	for i := range n {
		out[r.Steps[real[i]].ID] = chain[i]
	}
	return out
}

func firstSeen(r *Rule, key map[string]string, records []*Event, begin int64) []*Hit {
	learn := r.LearnFrom
	if learn == nil {
		learn = r.Where
	}
	var hits []*Hit
	done := map[int64]bool{}
	for _, e := range records {
		if e.Seed || !r.Where(e) || excepted(r, e) || !inGroup(r, key, e) || done[e.Time] || !learned(r, begin, e.Time) {
			continue
		}
		fresh, partKnown := true, len(r.SeenBefore) == 0
		for _, x := range records {
			if !learn(x) || x.Time >= e.Time || x.Time < e.Time-r.Memory {
				continue
			}
			if inGroup(r, key, x) {
				fresh = false
			}
			for _, k := range keysOf(r, x) {
				same := true
				for _, p := range r.SeenBefore {
					same = same && k[p] == key[p]
				}
				partKnown = partKnown || same
			}
		}
		if !fresh || !partKnown {
			continue
		}
		done[e.Time] = true
		h := &Hit{At: e.Time, Key: key}
		for _, x := range records {
			if x.Time == e.Time && !x.Seed && r.Where(x) && !excepted(r, x) && inGroup(r, key, x) {
				h.Evidence = append(h.Evidence, x)
			}
		}
		h.Event = h.Evidence[len(h.Evidence)-1]
		hits = append(hits, h)
	}
	return hits
}

// detections joins the hits of one group.
func detections(r *Rule, org, group string, hits []*Hit, clock int64) []Detection {
	const day = 24 * 60 * 60 * 1000
	var out []Detection
	var open []*Hit
	done := func() {
		if len(open) > 0 {
			out = append(out, detection(r, org, group, open, clock))
		}
		open = nil
	}
	for _, h := range hits {
		if len(open) > 0 && (h.At-open[len(open)-1].At > r.Period || h.At-open[0].At >= max(day, r.Period)) {
			done()
		}
		open = append(open, h)
	}
	done()
	return out
}

func detection(r *Rule, org, group string, hits []*Hit, clock int64) Detection {
	d := Detection{First: hits[0].At, Last: hits[len(hits)-1].At}
	var best *Hit
	seen := map[*Event]bool{}
	var evidence []*Event
	for _, h := range hits {
		sev := r.Severity
		if r.SeverityWhen != nil {
			if s := r.SeverityWhen(h); s > 0 {
				sev = s
			}
		}
		if sev >= d.Severity {
			d.Severity, best = sev, h
		}
		for _, e := range h.Evidence {
			if !seen[e] {
				seen[e] = true
				evidence = append(evidence, e)
			}
		}
	}
	d.Title = r.Title(best)
	sort.Slice(evidence, func(i, j int) bool { return before(evidence[i], evidence[j]) })
	users := map[string]bool{}
	for _, e := range evidence {
		d.Events = append(d.Events, e.UUID)
		if known(e.User) {
			users[e.User] = true
		}
		for _, t := range e.Targets {
			if known(t) {
				users[t] = true
			}
		}
	}
	for u := range users {
		d.Users = append(d.Users, u)
	}
	sort.Strings(d.Users)
	parts := []string{r.ID, fmt.Sprint(r.Revision), org, r.StateHash}
	if group != "" {
		parts = append(parts, group)
	}
	slot := int64(math.Floor(float64(d.First) / float64(r.Period)))
	ns := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/oktawatch/oktawatch"))
	d.ID = uuid.NewSHA1(ns, []byte(strings.Join(append(parts, fmt.Sprint(slot)), "\x00"))).String()
	d.Final = clock >= d.Last+r.Period
	return d
}
