package engine_test

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"pgregory.net/rapid"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/engine/internal/model"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// pair is a rule in both languages.
type pair struct {
	text  string
	model *model.Rule
	set   *rule.Set
	c     *rule.Compiled
}

type cond struct {
	cel string
	ok  func(*model.Event) bool
}

func isType(t string) cond {
	return cond{`event.eventType == "` + t + `"`, func(e *model.Event) bool { return e.Type == t }}
}

var conds = []cond{
	isType("a"), isType("a"), isType("b"), isType("b"), isType("c"),
	{`event.eventType in ["a", "b"]`, func(e *model.Event) bool { return e.Type == "a" || e.Type == "b" }},
	{`event.outcome.result == "FAILURE"`, func(e *model.Event) bool { return e.Result == "FAILURE" }},
	{`event.eventType == "a" && event.outcome.result != "FAILURE"`, func(e *model.Event) bool { return e.Type == "a" && e.Result != "FAILURE" }},
	{`event.authenticationContext.authenticationStep > 1`, func(e *model.Event) bool { return e.Step > 1 }},
	{`!event.securityContext.isProxy`, func(e *model.Event) bool { return !e.Proxy }},
}

// against are conditions that look at an earlier step.
var against = []struct {
	cel string
	ok  func(e, s *model.Event) bool
}{
	{`event.client.ipAddress != steps.%s.client.ipAddress`, func(e, s *model.Event) bool { return e.IP != s.IP }},
	{`event.actor.id == steps.%s.actor.id`, func(e, s *model.Event) bool { return e.User == s.User }},
	{`event.authenticationContext.authenticationStep > steps.%s.authenticationContext.authenticationStep`, func(e, s *model.Event) bool { return e.Step > s.Step }},
}

func one(s string) []string { return []string{s} }

var groupings = []struct {
	cel   string
	parts []model.Part
}{
	{"", nil},
	{"{user: event.actor.id}", []model.Part{{Name: "user", Values: func(e *model.Event) []string { return one(e.User) }}}},
	{"{ip: event.client.ipAddress}", []model.Part{{Name: "ip", Values: func(e *model.Event) []string { return one(e.IP) }}}},
	{"{target: 'event.targets(\"User\").map(t, t.id)'}", []model.Part{{Name: "target", Values: func(e *model.Event) []string { return e.Targets }}}},
	{"{user: event.actor.id, ip: event.client.ipAddress}", []model.Part{
		{Name: "ip", Values: func(e *model.Event) []string { return one(e.IP) }},
		{Name: "user", Values: func(e *model.Event) []string { return one(e.User) }},
	}},
}

func n(h *model.Hit, name string) int64 { return h.Aggs[name].(int64) }

var aggregates = []struct {
	cel string
	agg model.Agg
}{
	{"fails: {count: 'event.outcome.result == \"FAILURE\"'}", model.Agg{Name: "fails", How: "count", Cond: func(e *model.Event) bool { return e.Result == "FAILURE" }}},
	{"users: {distinct: event.actor.id}", model.Agg{Name: "users", How: "distinct", Texts: func(e *model.Event) []string { return one(e.User) }}},
	{"targets: {distinct: 'event.targets(\"User\").map(t, t.id)', where: 'event.eventType != \"c\"'}", model.Agg{Name: "targets", How: "distinct", Cond: func(e *model.Event) bool { return e.Type != "c" }, Texts: func(e *model.Event) []string { return e.Targets }}},
	{"by_user: {count_by: event.actor.id}", model.Agg{Name: "by_user", How: "count_by", Texts: func(e *model.Event) []string { return one(e.User) }}},
	{"lo: {min: event.authenticationContext.authenticationStep, where: 'event.eventType == \"a\"'}", model.Agg{Name: "lo", How: "min", Cond: func(e *model.Event) bool { return e.Type == "a" }, Int: func(e *model.Event) int64 { return e.Step }}},
	{"hi: {max: event.authenticationContext.authenticationStep}", model.Agg{Name: "hi", How: "max", Int: func(e *model.Event) int64 { return e.Step }}},
	{"other: {value: agg.count - agg.fails}", model.Agg{Name: "other", How: "value", Value: func(a map[string]any) int64 { return a["count"].(int64) - a["fails"].(int64) }}},
}

type having struct {
	cel string
	ok  func(*model.Hit) bool
}

var havings = []having{
	{"agg.count >= 3", func(h *model.Hit) bool { return n(h, "count") >= 3 }},
	{"agg.fails >= 2 && agg.count <= 4", func(h *model.Hit) bool { return n(h, "fails") >= 2 && n(h, "count") <= 4 }},
	{"agg.users >= 2", func(h *model.Hit) bool { return n(h, "users") >= 2 }},
	{"agg.targets >= 3 || agg.hi - agg.lo >= 2", func(h *model.Hit) bool { return n(h, "targets") >= 3 || n(h, "hi")-n(h, "lo") >= 2 }},
	{"agg.by_user.exists(u, c, c >= 2) && agg.count <= 5", func(h *model.Hit) bool {
		for _, c := range h.Aggs["by_user"].(map[string]int64) {
			if c >= 2 {
				return n(h, "count") <= 5
			}
		}
		return false
	}},
	{"agg.other % 2 == 1", func(h *model.Hit) bool { return n(h, "other")%2 == 1 }},
	{"evidence.size() == 2 || event.actor.id == \"u1\" && agg.count > 1", func(h *model.Hit) bool { return len(h.Evidence) == 2 || h.Event.User == "u1" && n(h, "count") > 1 }},
	{"agg.count <= 1", func(h *model.Hit) bool { return n(h, "count") <= 1 }},
	{"evidence[0].actor.id != event.actor.id", func(h *model.Hit) bool { return h.Evidence[0].User != h.Event.User }},
}

func num(m map[string]any, name string) model.Baseline     { return m[name].(model.Baseline) }
func keys(m map[string]any, name string) model.KeyBaseline { return m[name].(model.KeyBaseline) }

var baselineHavings = []having{
	{"base.count.n > 0 && double(agg.count) > base.count.max", func(h *model.Hit) bool {
		return num(h.Base, "count").N > 0 && float64(n(h, "count")) > num(h.Base, "count").Max
	}},
	{"zscore(recent.users.max, base.users, 0.5) > 1.0", func(h *model.Hit) bool {
		return model.Zscore(num(h.Recent, "users").Max, num(h.Base, "users"), 0.5) > 1
	}},
	{"base.by_user.buckets[\"u1\"] >= 1 && recent.by_user.totals[\"u0\"] > base.by_user.totals[\"u0\"]", func(h *model.Hit) bool {
		return keys(h.Base, "by_user").Buckets["u1"] >= 1 && keys(h.Recent, "by_user").Totals["u0"] > keys(h.Base, "by_user").Totals["u0"]
	}},
	{"base.other.sum < recent.other.sum && recent.count.n >= 1", func(h *model.Hit) bool {
		return num(h.Base, "other").Sum < num(h.Recent, "other").Sum && num(h.Recent, "count").N >= 1
	}},
	{"base.count.sum == 0.0", func(h *model.Hit) bool { return num(h.Base, "count").Sum == 0 }},
}

func pick[T any](r *rand.Rand, all ...T) T { return all[r.IntN(len(all))] }

const second = int64(1000)

func span(ms int64) string { return fmt.Sprintf("%dms", ms) }

// generate makes a random rule in both languages; over: one that reads detections.
func generate(r *rand.Rand, id string, over bool) *pair {
	m := &model.Rule{ID: id, Revision: 1 + r.IntN(3), Severity: 2, Mode: "alert", TitleVaries: true}
	m.Kind = pick(r, "aggregate", "aggregate", "sequence", "sequence", "first_seen")
	if over {
		m.Kind = pick(r, "aggregate", "sequence")
	}
	var b strings.Builder
	where := cond{"true", func(*model.Event) bool { return true }}
	switch {
	case over && m.Kind == "aggregate":
		m.Over = true
		where = pickOver(r, m)
	case r.IntN(3) > 0:
		where = pick(r, conds...)
	}
	m.Where = where.ok
	g := pick(r, groupings...)
	if m.Kind == "first_seen" && r.IntN(2) == 0 {
		g = groupings[len(groupings)-1]
	}
	if over && m.Over && r.IntN(6) == 0 {
		g.cel = "{rule: event.detection.ruleId}"
		g.parts = []model.Part{{Name: "rule", Values: func(e *model.Event) []string {
			if e.Through == nil {
				return nil
			}
			return one(e.Through.Rule)
		}}}
	}
	m.Parts = g.parts
	m.Lateness = pick(r, 20*second, 60*second, 10*60*second)
	m.Period = pick(r, 60*second, 60*second, 120*second, 8*3600*second)
	m.Window = pick(r, 5*second, 30*second, 60*second)
	fmt.Fprintf(&b, "id: %s\ntitle: T\nseverity: low\nrevision: %d\n", id, m.Revision)
	fmt.Fprintf(&b, "detection:\n  kind: %s\n  where: '%s'\n  lateness: %s\n", m.Kind, where.cel, span(m.Lateness))
	if g.cel != "" {
		fmt.Fprintf(&b, "  group_by: %s\n", g.cel)
	}
	if m.Over || over && r.IntN(3) == 0 {
		m.Over = true
		b.WriteString("  input: detections\n")
	}
	title, titled := "${event.actor.id} ${event.client.ipAddress}", func(h *model.Hit) string { return h.Event.User + " " + h.Event.IP }
	severity := ""
	switch m.Kind {
	case "aggregate":
		severity = generateAggregate(r, m, &b)
		if r.IntN(2) == 0 {
			title, titled = "${agg.count} of ${event.actor.id}", func(h *model.Hit) string { return fmt.Sprintf("%d of %s", n(h, "count"), h.Event.User) }
		}
		if over && r.IntN(2) == 0 {
			m.ReadsTitle, m.ReadsSeverity = true, true
			title, titled = "${event.detection.title} ${event.detection.severity} ${agg.count}", func(h *model.Hit) string {
				return fmt.Sprintf("%s %d %d", h.Event.Through.Title, h.Event.Through.Severity, n(h, "count"))
			}
		}
	case "sequence":
		severity = generateSequence(r, m, &b, over)
		title, titled = "${steps.s0.actor.id} to ${event.client.ipAddress}", func(h *model.Hit) string { return h.Steps["s0"].User + " to " + h.Event.IP }
		if m.Steps[0].Over && r.IntN(2) == 0 {
			m.ReadsTitle = true
			title, titled = "${steps.s0.detection.title} ${event.client.ipAddress}", func(h *model.Hit) string { return h.Steps["s0"].Through.Title + " " + h.Event.IP }
		}
	case "first_seen":
		m.Memory = pick(r, 10*second, 60*second, 300*second)
		fmt.Fprintf(&b, "  memory: %s\n", span(m.Memory))
		if r.IntN(3) == 0 {
			c := pick(r, conds...)
			m.LearnFrom = c.ok
			fmt.Fprintf(&b, "  learn_from: '%s'\n", c.cel)
		}
		if len(m.Parts) == 2 && r.IntN(3) > 0 {
			m.SeenBefore = one(pick(r, "ip", "user"))
			fmt.Fprintf(&b, "  seen_before: [%s]\n", m.SeenBefore[0])
		}
		m.Learning = pick(r, 0, 0, 20*second)
		fmt.Fprintf(&b, "  learning: %s\n", span(m.Learning))
		severity = `event.outcome.result == "FAILURE"`
		m.SeverityWhen = func(h *model.Hit) int { return map[bool]int{true: 4}[h.Event.Result == "FAILURE"] }
	}
	m.Title = titled
	if r.IntN(4) == 0 {
		m.Except = func(e *model.Event) bool { return e.User == "u2" }
		b.WriteString("exceptions: [{name: x, when: 'event.actor.id == \"u2\"', reason: r}]\n")
	}
	fmt.Fprintf(&b, "alert:\n  title: %s\n  dedup: {period: %s}\n", title, span(m.Period))
	if severity != "" && r.IntN(2) == 0 {
		fmt.Fprintf(&b, "  severity_when: [{when: '%s', severity: high}]\n", severity)
	} else {
		m.SeverityWhen = nil
	}
	return &pair{text: b.String(), model: m}
}

func generateAggregate(r *rand.Rand, m *model.Rule, b *strings.Builder) string {
	b.WriteString("  aggregates:\n")
	for _, a := range aggregates {
		fmt.Fprintf(b, "    %s\n", a.cel)
		m.Aggs = append(m.Aggs, a.agg)
	}
	h := pick(r, havings...)
	if m.Over {
		for _, a := range overAggregates {
			fmt.Fprintf(b, "    %s\n", a.cel)
			m.Aggs = append(m.Aggs, a.agg)
		}
		if h = pick(r, havings[0], havings[2], havings[7], havings[7], overHavings[0], overHavings[1], overHavings[2]); h.cel == overHavings[2].cel {
			m.ReadsSeverity = true
			b.WriteString("    sev: {max: event.detection.severity}\n")
			m.Aggs = append(m.Aggs, model.Agg{Name: "sev", How: "max", Int: func(e *model.Event) int64 { return int64(e.Through.Severity) }})
		}
	}
	if r.IntN(4) == 0 {
		m.Bucket = pick(r, 5*second, 20*second)
		m.Window = m.Bucket * pick(r, int64(1), 2, 3)
		m.Baseline = m.Bucket * pick(r, int64(2), 5)
		m.Learning = pick(r, 0, 10*second)
		if !m.Over {
			h = pick(r, baselineHavings...)
		}
		fmt.Fprintf(b, "  baseline: %s\n  bucket: %s\n  learning: %s\n", span(m.Baseline), span(m.Bucket), span(m.Learning))
	}
	if r.IntN(3) == 0 {
		m.Settle = pick(r, second, m.Window/2, m.Window-1)
		fmt.Fprintf(b, "  settle: %s\n", span(m.Settle))
	}
	fmt.Fprintf(b, "  window: %s\n  having: '%s'\n", span(m.Window), h.cel)
	m.Having = h.ok
	m.SeverityWhen = func(h *model.Hit) int { return map[bool]int{true: 4}[n(h, "count") >= 4] }
	return "agg.count >= 4"
}

func generateSequence(r *rand.Rand, m *model.Rule, b *strings.Builder, over bool) string {
	fmt.Fprintf(b, "  window: %s\n  steps:\n", span(m.Window))
	var ids []string
	step := func(not, canLook bool) {
		c := pick(r, conds...)
		s := model.Step{ID: fmt.Sprintf("s%d", len(m.Steps)), Count: 1, Within: m.Window, Not: not}
		if s.Over = m.Over; over && r.IntN(2) == 0 {
			s.Over = !s.Over
		}
		if s.Over {
			c = pickOver(r, m)
		}
		s.Where = func(e *model.Event, _ map[string]*model.Event) bool { return c.ok(e) }
		cel := c.cel
		if canLook && len(ids) > 0 && r.IntN(3) == 0 {
			other, a := pick(r, ids...), pick(r, against...)
			cel = "(" + c.cel + ") && " + fmt.Sprintf(a.cel, other)
			s.Where = func(e *model.Event, steps map[string]*model.Event) bool { return c.ok(e) && a.ok(e, steps[other]) }
		}
		fmt.Fprintf(b, "    - id: %s\n      where: '%s'\n", s.ID, cel)
		if s.Over != m.Over {
			fmt.Fprintf(b, "      input: %s\n", map[bool]string{true: "detections", false: "events"}[s.Over])
		}
		if not {
			b.WriteString("      not: true\n")
		} else {
			ids = append(ids, s.ID)
			if r.IntN(3) == 0 {
				s.Count = 2 + r.IntN(2)
				fmt.Fprintf(b, "      count: %d\n", s.Count)
			}
		}
		if r.IntN(3) == 0 {
			s.Within = m.Window / 2
			fmt.Fprintf(b, "      within: %s\n", span(s.Within))
		}
		m.Steps = append(m.Steps, s)
	}
	step(false, false)
	for range r.IntN(3) {
		if r.IntN(4) == 0 {
			step(true, true)
		}
		step(false, true)
	}
	for range pick(r, 0, 0, 1, 2) {
		step(true, true)
	}
	m.SeverityWhen = func(h *model.Hit) int { return map[bool]int{true: 4}[len(h.Evidence) >= 3] }
	return "evidence.size() >= 3"
}

// pool makes rules for one seed.
func pool(t testing.TB, seed uint64, n int) []*pair {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable
	fsys := fstest.MapFS{}
	byID := map[string]*pair{}
	for i := range n {
		p := generate(r, fmt.Sprintf("r%d", i), false)
		byID[p.model.ID] = p
		fsys["p/"+p.model.ID+".yaml"] = &fstest.MapFile{Data: []byte(p.text)}
	}
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: fsys})
	if err != nil || len(problems) > 0 {
		t.Fatalf("seed %d: %v %v\n%s", seed, problems, err, fsys[strings.TrimPrefix(problems[0].File, "rules/")].Data)
	}
	out := make([]*pair, 0, n)
	for _, c := range set.Rules {
		one, problems := set.Only(&c.Rule, nil, nil)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		p := byID[c.ID]
		p.set, p.c = one, one.Rules[0]
		p.model.StateHash = p.c.StateHash
		out = append(out, p)
	}
	return out
}

const org = "00oORG"

// logOf is the record of an event; a partial copy leaves open what a hook's does.
func logOf(e *model.Event, copyNo int32, partial bool) *record.SystemLog {
	at := time.UnixMilli(e.Published).UTC()
	log := &record.SystemLog{
		UUID: e.UUID, Published: &at, EventType: e.Type, Outcome: &record.Outcome{Result: e.Result},
		Actor:                 &record.Actor{ID: e.User, Type: "User", AlternateID: e.User},
		Client:                &record.Client{IPAddress: e.IP},
		AuthenticationContext: &record.AuthenticationContext{AuthenticationStep: &e.Step},
		Derived:               record.Derived{Org: org, Lane: "live", Copy: copyNo, Partial: partial, Time: at, Received: at, Seed: e.Seed},
	}
	for _, t := range e.Targets {
		log.Target = append(log.Target, record.Target{ID: t, Type: "User", AlternateID: t})
	}
	if !partial {
		log.SecurityContext = &record.SecurityContext{IsProxy: &e.Proxy}
	}
	return log
}

// delivery is one record as it comes.
type delivery struct {
	at      int64 // order of coming
	e       *model.Event
	seed    bool // a seed of an event that is live
	copy    int32
	partial bool
}

// dice draws numbers: evenly from a seed, or one by one from rapid, which leans to small ones and can make a failing case
// smaller.
type dice struct {
	t *rapid.T
	r *rand.Rand
}

func newDice(t *rapid.T) *dice {
	if rapid.IntRange(0, 4).Draw(t, "small") == 0 {
		return &dice{t: t}
	}
	return &dice{t, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))} //nolint:gosec // repeatable
}

func (d *dice) n(least, most int64, what string) int64 {
	if d.r == nil {
		return rapid.Int64Range(least, most).Draw(d.t, what)
	}
	return least + d.r.Int64N(most-least+1)
}

func (d *dice) bits(what string) uint64 {
	if d.r == nil {
		return rapid.Uint64().Draw(d.t, what)
	}
	return d.r.Uint64()
}

// stream draws events and how they come: in any order within the lateness, twice, as two copies. Before them lie seeds,
// which come first, whatever the clock, and some again at any time, as do seeds of live events. Live events begin at begin.
func stream(d *dice, m *model.Rule) (events []*model.Event, come []delivery, begin int64) {
	users, ips := []string{"u0", "u1", "u2", "unknown"}, []string{"i0", "i1", "-"}
	gaps := []int64{0, 0, 1, second, 2 * second, 4 * second, 7 * second, 15 * second, 40 * second, 61 * second, 150 * second}
	now := int64(1_767_600_000_000) + d.n(0, 100_000, "start")
	count := d.n(1, 24, "events")
	pace := d.n(0, 2, "pace")
	takesSeeds := m.Kind == "first_seen" || m.Baseline > 0
	history := int64(0)
	if takesSeeds {
		history = max(0, d.n(-8, 16, "history"))
		count += history
	}
	for i := range count {
		now += gaps[max(0, d.n(0, int64(len(gaps))-1, "gap")-2*pace)]
		bits := d.bits("event")
		take := func(n uint64) uint64 { v := bits % n; bits /= n; return v }
		e := &model.Event{
			UUID: fmt.Sprintf("e%02d", (i*7)%100), Time: now, Published: now, Type: string("aabbcd"[take(6)]), User: users[min(take(5), 3)%4], IP: ips[take(3)],
			Result: []string{"SUCCESS", "FAILURE"}[take(2)], Step: int64(take(4)), Proxy: take(4) == 0, //nolint:gosec // small
		}
		for range take(3) {
			e.Targets = append(e.Targets, users[take(4)])
		}
		e.Seed = take(12) == 0 && takesSeeds
		how := take(5)
		events = append(events, e)
		if i < history {
			e.Seed = true
			come = append(come, delivery{at: -int64(take(8)), e: e, copy: 1})
			for range take(3) {
				come = append(come, delivery{at: now + d.n(0, 200*second, "again"), e: e, copy: 1})
			}
			if i == history-1 && take(3) > 0 {
				now += d.n(0, m.Lateness+30*second, "pause")
			}
			continue
		}
		if begin == 0 {
			e.Seed = false
			begin = e.Time
		}
		if takesSeeds && take(4) == 0 {
			come = append(come, delivery{at: now + d.n(0, m.Lateness-1, "late"), e: e, seed: true, copy: 1})
		}
		first := now + d.n(0, m.Lateness-1, "late")
		switch how {
		case 0: // the hook's copy, then the poller's
			second := now + d.n(0, m.Lateness-1, "late")
			come = append(come, delivery{min(first, second), e, false, 1, true}, delivery{max(first, second), e, false, 2, false})
		case 1: // twice the same
			come = append(come, delivery{at: first, e: e, copy: 1}, delivery{at: now + d.n(0, m.Lateness-1, "late"), e: e, copy: 1})
		default:
			come = append(come, delivery{at: first, e: e, copy: 1})
		}
	}
	slices.SortStableFunc(come, func(a, b delivery) int { return cmp.Compare(a.at, b.at) })
	return events, come, begin
}

// brought is one partition of the state stage with its changelog.
type brought struct {
	st  *engine.State
	log map[string][]byte
}

// play brings a stream to the engine, with restarts and aborts, and gives the last updates that are not withdrawn.
func play(t *rapid.T, d *dice, set *rule.Set, lateness int64, come []delivery, begin, end int64, sum map[string]int) map[string]*record.Detection {
	partitions := int(d.n(1, 8, "partitions"))
	all := make([]*brought, partitions)
	for i := range all {
		all[i] = &brought{engine.NewState(set), map[string][]byte{}}
	}
	m := engine.NewMatcher(set)
	last := map[string]*record.Detection{}
	seen := map[string]bool{}
	heard := func(d *record.Detection) {
		id := fmt.Sprintf("%s/%d", d.ID, d.Update)
		if seen[id] && d.Kind != "match" { // what comes twice is dropped before
			t.Fatalf("update %s of rule %s was written twice", id, d.RuleID)
		}
		seen[id] = true
		sum["updates"]++
		if d.Withdrawn {
			sum["withdrawn"]++
		}
		if old := last[d.ID]; old == nil || old.Update <= d.Update {
			last[d.ID] = d
		}
	}
	// What waits to be brought to rules over detections: their Matches, and behind those of a watermark that watermark.
	type waiting struct {
		mt      *record.Match
		through int64
	}
	var queue []waiting
	put := func(ms []*record.Match) {
		for _, mt := range ms {
			sum["pairs"]++
			queue = append(queue, waiting{mt: mt})
		}
	}
	flush := func(s *brought, commit bool) {
		out := s.st.Flush()
		if !commit {
			s.st.Abort()
			return
		}
		put(out.Pairs)
		for _, d := range out.Detections {
			heard(d)
		}
		for _, c := range out.Changes {
			if c.Value == nil {
				delete(s.log, c.Key)
			} else {
				s.log[c.Key] = c.Value
			}
		}
		s.st.Commit()
	}
	restart := func(s *brought) {
		st := engine.NewState(set)
		for _, k := range slices.Sorted(maps.Keys(s.log)) {
			if err := st.Restore(k, s.log[k]); err != nil {
				t.Fatal(err)
			}
		}
		st.Restored()
		have := st.Snapshot()
		if len(have) != len(s.log) {
			t.Fatalf("the changelog has %d entries, the memory %d", len(s.log), len(have))
		}
		for _, c := range have {
			if c.Key[0] == 'E' && !bytes.Equal(c.Value, s.log[c.Key]) {
				t.Fatalf("held event %q is %x in the changelog and %x in the memory", c.Key, s.log[c.Key], c.Value)
			}
		}
		s.st = st
	}
	apply := func(ms []*record.Match) {
		for _, mt := range ms {
			h := fnv.New32a()
			_, _ = h.Write([]byte(engine.MatchKey(mt)))
			if err := all[h.Sum32()%uint32(partitions)].st.Apply(mt); err != nil { //nolint:gosec // 1 to 8
				t.Fatal(err)
			}
		}
	}
	bring := func(n int) {
		for _, w := range queue[:n] {
			if w.mt != nil {
				apply([]*record.Match{w.mt})
				continue
			}
			for _, s := range all {
				s.st.AdvanceSecond(org, "live", time.UnixMilli(w.through))
			}
		}
	}
	watermark, started := int64(0), false
	for i := 0; i < len(come); {
		upTo := min(len(come), i+int(d.n(1, 6, "batch")))
		batch := come[i:upTo]
		bound := end
		for _, c := range come[upTo:] {
			if c.e.Time >= begin || c.at <= 0 {
				bound = min(bound, max(c.e.Time, begin)+lateness-1)
			}
		}
		started = started || bound >= begin || d.n(0, 3, "start") == 0
		advance := d.n(0, 3, "advance")
		if bound > watermark && advance > 0 {
			watermark = max(watermark, bound-(advance-1)*3*second)
		}
		abort := d.n(0, 9, "abort") == 0
		brought := len(queue)
		if brought > 0 {
			brought = int(d.n(0, int64(brought), "brought"))
		}
		for try := range 1 + map[bool]int{true: 1}[abort] {
			for _, s := range all {
				if started {
					s.st.Begin(org, "live", time.UnixMilli(begin))
				}
			}
			bring(brought)
			for _, d := range batch {
				var v record.SystemLogView
				log := logOf(d.e, d.copy, d.partial)
				log.Derived.Seed = log.Derived.Seed || d.seed
				if log.Derived.Seed {
					sum["seeds"]++
					if d.e.Seed { // that of a live event says nothing new
						for _, s := range all {
							s.st.Seeded(org, "live", time.UnixMilli(d.e.Time))
						}
					}
				}
				if err := v.Load(log); err != nil {
					t.Fatal(err)
				}
				at := engine.Place{Topic: "t", Offset: int64(i)}
				apply(m.Take(&v, at))
				if try == 0 {
					for _, d := range m.Match(&v, at) {
						heard(d)
						put(m.TakeDetection(&v, at, d))
					}
				}
			}
			for _, s := range all {
				if watermark > 0 {
					s.st.Advance(org, "live", time.UnixMilli(watermark))
				}
				flush(s, !abort)
			}
			abort = false
		}
		queue = append(queue[brought:], waiting{through: watermark})
		if d.n(0, 7, "restart") == 0 {
			restart(all[d.n(0, int64(partitions)-1, "which")])
		}
		i = upTo
	}
	for _, through := range []int64{end, end + 1} {
		for _, s := range all {
			s.st.Begin(org, "live", time.UnixMilli(begin))
			s.st.Advance(org, "live", time.UnixMilli(through))
			flush(s, true)
			restart(s)
		}
		queue = append(queue, waiting{through: through})
		bring(len(queue))
		queue = nil
		for _, s := range all {
			flush(s, true)
			restart(s)
		}
	}
	maps.DeleteFunc(last, func(_ string, d *record.Detection) bool { return d.Withdrawn })
	return last
}

// check compares engine and model over one drawn stream.
func check(t *rapid.T, rules []*pair, sum map[string]int) {
	d := newDice(t)
	p := rules[d.n(0, int64(len(rules))-1, "rule")]
	events, come, begin := stream(d, p.model)
	tail := []int64{0, 5 * second, 30 * second, 70 * second, 130 * second, 20 * 3600 * second}[d.n(0, 5, "tail")]
	end := events[len(events)-1].Time + p.model.Lateness + tail
	got := play(t, d, p.set, p.model.Lateness, come, begin, end, sum)
	want := map[string]model.Detection{}
	for _, w := range model.Judge(p.model, org, events, begin, end+1-p.model.Lateness) {
		if _, twice := want[w.ID]; twice {
			t.Fatalf("the model has two detections %s", w)
		}
		want[w.ID] = w
		sum[p.model.Kind+" detections"]++
		sum["evidence"] += len(w.Events)
	}
	sum[p.model.Kind+" cases"]++
	if diff := differ(want, got); len(diff) > 0 {
		t.Fatalf("%s\nrule\n%s\nevents\n%s", strings.Join(diff, "\n"), p.text, list(events))
	}
}

func list(events []*model.Event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "%+v\n", *e)
	}
	return b.String()
}

// differ says in what the engine's detections differ from the model's.
func differ(want map[string]model.Detection, got map[string]*record.Detection) []string {
	var diff []string
	for _, id := range slices.Sorted(maps.Keys(want)) {
		w := want[id]
		g, ok := got[id]
		if !ok {
			diff = append(diff, "missing "+w.String())
			continue
		}
		slices.Sort(g.Users)
		if s := asModel(g).String(); s != w.String() {
			// What only grew may wait for its minute until the detection is over.
			if w.Final || g.Final || s2(asModel(g)) != s2(w) {
				diff = append(diff, "got  "+s+"\nwant "+w.String())
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[id]; !ok {
			diff = append(diff, "not wanted "+asModel(got[id]).String())
		}
	}
	return diff
}

func s2(d model.Detection) string { return fmt.Sprint(d.ID, d.First, d.Severity, d.Title, d.Users) }

func asModel(d *record.Detection) model.Detection {
	return model.Detection{
		ID: d.ID, First: d.FirstTime.UnixMilli(), Last: d.LastTime.UnixMilli(), Severity: int(d.Severity), Title: d.Title,
		Events: d.EvidenceUUIDs, Users: d.Users, Final: d.Final,
	}
}

// eachPool plays so many streams to each pool of rules, until one differs.
func eachPool(t *testing.T, first, pools uint64, streams int, compare func(seed uint64) func(*rapid.T)) {
	t.Helper()
	was := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", fmt.Sprint(streams)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = flag.Set("rapid.checks", was) }()
	for seed := first; seed < first+pools && !t.Failed(); seed++ {
		rapid.Check(t, compare(seed))
	}
}

// compareWithModel compares engine and model over pools of rules, each with so many streams, and prints what it did.
func compareWithModel(t *testing.T, first, pools uint64, rules, streams int) {
	compareOver(t, first, pools, rules/3, streams)
	sum := map[string]int{}
	eachPool(t, first, pools, streams, func(seed uint64) func(*rapid.T) {
		all := pool(t, seed, rules)
		return func(t *rapid.T) { check(t, all, sum) }
	})
	t.Logf("seeds %d to %d, %d cases: %v", first, first+pools-1, int(pools)*streams, sum) //nolint:gosec // small
	for _, k := range rule.Kinds() {
		if k != rule.KindMatch && (sum[string(k)+" detections"] < streams/10 || sum["withdrawn"] == 0) {
			t.Errorf("too few detections of kind %s: %v", k, sum)
		}
	}
}

// TestAgainstModel compares the engine with the model over random rules and streams.
func TestAgainstModel(t *testing.T) { compareWithModel(t, 1, 5, 60, 1000) }
