package engine_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"github.com/oktawatch/oktawatch/pkg/engine/internal/model"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// overConds are conditions of rules over detections. They name the rules a0 and a1.
var overConds = []struct {
	cond
	title, severity bool // what they read
}{
	{cond{`true`, func(*model.Event) bool { return true }}, false, false},
	{cond{`event.detection.ruleId == "a0"`, func(e *model.Event) bool { return e.Through.Rule == "a0" }}, false, false},
	{cond{`event.detection.ruleId in ["a0", "a1"]`, func(e *model.Event) bool { return e.Through.Rule != "" }}, false, false},
	{cond{`event.detection.mode == "alert" && event.eventType != "c"`, func(e *model.Event) bool { return e.Through.Mode == "alert" && e.Type != "c" }}, false, false},
	{cond{`event.outcome.result == "FAILURE" && event.detection.id != ""`, func(e *model.Event) bool { return e.Result == "FAILURE" }}, false, false},
	{cond{`event.detection.firstTime < event.published`, func(e *model.Event) bool { return e.Through.First < e.Published }}, false, false},
	{cond{`!event.securityContext.isProxy`, func(e *model.Event) bool { return !e.Proxy }}, false, false},
	{cond{`event.detection.severity >= 4`, func(e *model.Event) bool { return e.Through.Severity >= 4 }}, false, true},
	{cond{`event.detection.title.startsWith("u1")`, func(e *model.Event) bool { return strings.HasPrefix(e.Through.Title, "u1") }}, true, false},
}

// overAggregates and overHavings are for rules over detections.
var overAggregates = []struct {
	cel string
	agg model.Agg
}{
	{"rules: {distinct: event.detection.ruleId}", model.Agg{Name: "rules", How: "distinct", Texts: func(e *model.Event) []string { return one(e.Through.Rule) }}},
	{"dets: {distinct: event.detection.id}", model.Agg{Name: "dets", How: "distinct", Texts: func(e *model.Event) []string { return one(e.Through.ID) }}},
}

var overHavings = []having{
	{"agg.rules >= 2", func(h *model.Hit) bool { return n(h, "rules") >= 2 }},
	{"agg.dets >= 2", func(h *model.Hit) bool { return n(h, "dets") >= 2 }},
	{"agg.sev >= 4 && agg.count > 1", func(h *model.Hit) bool { return n(h, "sev") >= 4 && n(h, "count") > 1 }},
}

func pickOver(r *rand.Rand, m *model.Rule) cond {
	c := pick(r, overConds...)
	m.ReadsTitle, m.ReadsSeverity = m.ReadsTitle || c.title, m.ReadsSeverity || c.severity
	return c.cond
}

// generateMatch makes a random match rule in both languages.
func generateMatch(r *rand.Rand, id string) *pair {
	m := &model.Rule{ID: id, Kind: "match", Revision: 1, Severity: 2, Mode: "alert", Period: 3600 * second}
	c := pick(r, conds...)
	m.Where = c.ok
	m.Title = func(h *model.Hit) string { return h.Event.User }
	text := fmt.Sprintf("id: %s\ntitle: T\nseverity: low\ndetection:\n  kind: match\n  where: '%s'\nalert:\n  title: ${event.actor.id}\n", id, c.cel)
	if r.IntN(2) == 0 {
		text += "  severity_when: [{when: 'event.outcome.result == \"FAILURE\"', severity: high}]\n"
		m.SeverityWhen = func(h *model.Hit) int { return map[bool]int{true: 4}[h.Event.Result == "FAILURE"] }
	}
	return &pair{text: text, model: m}
}

// trio is two rules over events and one over their detections.
type trio struct {
	set   *rule.Set
	rules []*pair // the reader is the last
}

// trios makes rules for one seed.
func trios(t testing.TB, seed uint64, n int) []*trio {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 2)) //nolint:gosec // repeatable
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	var out []*trio
	for range n {
		one := &trio{}
		fsys := fstest.MapFS{}
		for i := range 2 {
			id := fmt.Sprintf("a%d", i)
			p := generateMatch(r, id)
			if r.IntN(4) > 0 {
				p = generate(r, id, false)
			}
			p.model.Mode = pick(r, "alert", "alert", "signal", "shadow")
			p.text += "mode: " + p.model.Mode + "\n"
			one.rules = append(one.rules, p)
		}
		reader := generate(r, "reader", true)
		for i := 0; !strings.Contains(reader.text, "input: detections") || i < 2 && !reader.model.ReadsTitle && !reader.model.ReadsSeverity; i++ {
			reader = generate(r, "reader", true)
		}
		one.rules = append(one.rules, reader)
		short := r.IntN(3) > 0 // clocks pass what later hits speak of
		for _, p := range one.rules {
			if short {
				p.text = strings.Replace(p.text, "lateness: "+span(p.model.Lateness), "lateness: "+span(10*second), 1)
				p.model.Lateness = 10 * second
				long := map[bool]int64{true: 60 * second, false: 8 * 3600 * second}[p == reader]
				if p.model.Kind != "match" {
					p.text = strings.Replace(p.text, "period: "+span(p.model.Period), "period: "+span(long), 1)
					p.model.Period = long
				}
			}
			fsys["p/"+p.model.ID+".yaml"] = &fstest.MapFile{Data: []byte(p.text)}
		}
		set, problems, err := l.Load(rule.Source{Name: "rules", FS: fsys})
		if err != nil || len(problems) > 0 {
			t.Fatalf("seed %d: %v %v\n%s", seed, problems, err, fsys[strings.TrimPrefix(problems[0].File, "rules/")].Data)
		}
		one.set = set
		for _, p := range one.rules {
			p.c, _ = set.Rule(p.model.ID)
			p.model.StateHash = p.c.StateHash
		}
		out = append(out, one)
	}
	return out
}

// checkOver compares engine and model over one drawn stream, for rules over events and one over their detections.
func checkOver(t *rapid.T, all []*trio, sum map[string]int) {
	d := newDice(t)
	one := all[d.n(0, int64(len(all))-1, "rules")]
	reader := one.rules[2].model
	sources := []*model.Rule{one.rules[0].model, one.rules[1].model}
	like := &model.Rule{Kind: "aggregate", Lateness: reader.Lateness} // how the stream is drawn
	longest := reader.Lateness
	for _, m := range sources {
		if m.Kind == "match" {
			continue
		}
		like.Lateness, longest = min(like.Lateness, m.Lateness), max(longest, m.Lateness)
		if m.Kind == "first_seen" {
			like.Kind = m.Kind
		}
		like.Baseline = max(like.Baseline, m.Baseline)
	}
	events, come, begin := stream(d, like)
	tail := []int64{0, 5 * second, 30 * second, 70 * second, 130 * second, 20 * 3600 * second, 60 * 3600 * second}[d.n(0, 6, "tail")]
	end := events[len(events)-1].Time + longest + tail
	got := play(t, d, one.set, like.Lateness, come, begin, end, sum)

	want := map[string]model.Detection{}
	put := func(m *model.Rule, ds []model.Detection) {
		for _, w := range ds {
			if _, twice := want[w.ID]; twice {
				t.Fatalf("the model has two detections %s", w)
			}
			want[w.ID] = w
			sum[m.Kind+" over"]++
		}
	}
	records := slices.DeleteFunc(slices.Clone(events), func(e *model.Event) bool { return e.Seed }) // the reader has no part in seeds
	for _, m := range sources {
		ds := model.Judge(m, org, events, begin, end+1-m.Lateness)
		put(m, ds)
		records = append(records, model.Pairs(reader, m, ds)...)
	}
	found := model.Judge(reader, org, records, begin, end+1-one.rules[2].c.Wait().Milliseconds())
	if w := model.Waits(reader, sources); w < one.rules[2].c.Wait().Milliseconds() {
		t.Fatalf("the reader waits %v", one.rules[2].c.Wait())
	}
	for i, w := range found {
		for _, e := range records {
			// It is final only when no detection can say something else of a record that it may depend on.
			if e.Through != nil && e.Through.Open && e.Time <= w.Last+reader.Period {
				found[i].Final = got[w.ID] != nil && got[w.ID].Final
			}
		}
		sum["evidence of readers"] += len(w.Events)
	}
	sum["found by readers "+reader.Kind] += len(found)
	put(reader, found)
	if diff := differ(want, got); len(diff) > 0 {
		var texts []string
		for _, p := range one.rules {
			texts = append(texts, p.text)
		}
		t.Fatalf("%s\nrules\n%s\nrecords\n%s", strings.Join(diff, "\n"), strings.Join(texts, "---\n"), list(records))
	}
}

// compareOver compares engine and model over pools of rules that read what others find, each with so many streams.
func compareOver(t *testing.T, first, pools uint64, rules, streams int) {
	sum := map[string]int{}
	eachPool(t, first, pools, streams, func(seed uint64) func(*rapid.T) {
		all := trios(t, seed, rules)
		return func(t *rapid.T) { checkOver(t, all, sum) }
	})
	t.Logf("over detections: seeds %d to %d, %d cases: %v", first, first+pools-1, int(pools)*streams, sum) //nolint:gosec // small
	for _, k := range []string{"aggregate", "sequence"} {
		if sum["found by readers "+k] < streams/10 {
			t.Errorf("rules over detections of kind %s found too little: %v", k, sum)
		}
	}
}
