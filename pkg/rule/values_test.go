package rule

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
)

// tracedEvent is an event as an expression sees it.
func tracedEvent(t *testing.T, set *Set, text string) *Event {
	t.Helper()
	log, _, err := systemlog.FromJSON([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	v := new(record.SystemLogView)
	if err := v.Load(log); err != nil {
		t.Fatal(err)
	}
	ev := set.NewEvent()
	ev.Reset(v)
	return ev
}

func tracedText(traced []Traced) string {
	var b strings.Builder
	for _, s := range traced {
		fmt.Fprintf(&b, "%s%s[%s] = %s", strings.Repeat("  ", s.Depth), s.What, strings.Join(strings.Fields(s.Text), " "), s.Value)
		if s.Note != "" {
			fmt.Fprintf(&b, " (%s)", s.Note)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

const everyAggregate = `kind: aggregate
where: event.eventType == "a"
group_by: {user: event.actor.id}
window: 2h
baseline: 6h
aggregates:
  bad: {count: event.outcome.result == "FAILURE"}
  ips: {distinct: event.client.ipAddress}
  by: {count_by: event.client.ipAddress}
  last: {max: event.published}
  steps: {min: event.authenticationContext.authenticationStep}
  share: {value: 'ratio(agg.bad, agg.count)'}
`

func hitOf(set *Set, t *testing.T) *Hit {
	return &Hit{
		Event: tracedEvent(t, set, `{"uuid":"u","published":"2026-01-05T10:00:00.000Z","eventType":"a","actor":{"id":"00u1","alternateId":"a@example.com"}}`),
		Key:   []string{"00u1"}, Count: 4,
		Agg:    []Value{{Int: 3}, {Counts: map[string]int64{"192.0.2.1": 3, "192.0.2.2": 1}}, {Int: 2}, {Int: 1767607200000000}, {}, {Int: 1}},
		Recent: []any{nil, &KeyBaseline{N: 1}, nil, nil, nil, nil, &Baseline{N: 1, Sum: 4, Max: 4, Mean: 4}},
		Base:   []any{nil, &KeyBaseline{N: 2, Buckets: map[string]int64{"192.0.2.1": 2}, Totals: map[string]int64{"192.0.2.1": 5}}, nil, nil, nil, nil, &Baseline{N: 3, Sum: 3.75, Mean: 1.25, Max: 2, Stddev: 0.1}},
	}
}

// TestHitValues tells the numbers of a hit and has another hit read them: it sees the same.
func TestHitValues(t *testing.T) {
	set, problems := compileDetection(t, everyAggregate+`having: agg.share > 0.5 && base.count.mean < 2.0 && base.by.totals["192.0.2.1"] == 5 && recent.by.n == 1`, "")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	c := set.Rules[0]
	told := c.HitValues(hitOf(set, t))
	var got strings.Builder
	for _, k := range slices.Sorted(maps.Keys(told)) {
		fmt.Fprintln(&got, k, told[k])
	}
	want := `agg.bad 3
agg.by {"192.0.2.1":3,"192.0.2.2":1}
agg.count 4
agg.ips 2
agg.last "2026-01-05T10:00:00Z"
agg.share 0.75
agg.steps 1
base.by {"buckets":{"192.0.2.1":2},"n":2,"totals":{"192.0.2.1":5}}
base.count {"max":2,"mean":1.25,"n":3,"stddev":0.1,"sum":3.75}
recent.by {"n":1}
`
	if got.String() != want {
		t.Errorf("told\n%swant\n%s", got.String(), want)
	}
	again := &Hit{Event: hitOf(set, t).Event, Key: []string{"00u1"}}
	if missing := c.ReadHitValues(again, told); len(missing) > 0 {
		t.Errorf("missing %v", missing)
	}
	if back := c.HitValues(again); !maps.Equal(back, told) {
		t.Errorf("read back %v", back)
	}
	if ok, err := c.Having(again); !ok || err != nil {
		t.Errorf("having is %v, %v", ok, err)
	}
	delete(told, "agg.by")
	told["agg.count"] = "many"
	if missing := c.ReadHitValues(again, told); !slices.Equal(missing, []string{"agg.by", "agg.count"}) {
		t.Errorf("missing %v", missing)
	}
}

// TestHitValuesAreBounded leaves out what is too long.
func TestHitValuesAreBounded(t *testing.T) {
	set, problems := compileDetection(t, everyAggregate+`having: agg.count > 1`, "")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	h := hitOf(set, t)
	for i := range 60 {
		h.Agg[1].Counts[strings.Repeat("x", 100)+fmt.Sprint(i)] = 1
	}
	if told := set.Rules[0].HitValues(h); told["agg.by"] != "" || told["agg.count"] != "4" {
		t.Errorf("told %v", told)
	}
}

// TestTraceHit traces what is asked of a hit.
func TestTraceHit(t *testing.T) {
	for name, tc := range map[string]struct {
		having, rest string
		at           AtHand
		want         string
	}{
		"numbers": {
			"agg.bad >= 3 && (agg.by.all(ip, n, n < 9) || agg.share > 1.0)", "",
			AtHand{true, true},
			`having[agg.bad >= 3 && (agg.by.all(ip, n, n < 9) || agg.share > 1.0)] = true
  [agg.bad >= 3] = true
    [agg.bad] = 3
  [agg.by.all(ip, n, n < 9) || agg.share > 1.0] = true
    [agg.by.all(ip, n, n < 9)] = true
      [agg.by] = {"192.0.2.1":3,"192.0.2.2":1}
    [agg.share > 1.0] = 
`,
		},
		"the past": {
			"zscore(recent.count.max, base.count, 0.5) > 3.0", "",
			AtHand{true, true},
			`having[zscore(recent.count.max, base.count, 0.5) > 3.0] = true
  [zscore(recent.count.max, base.count, 0.5)] = 5.5
    [recent.count.max] = 4
    [base.count] = {"max":2,"mean":1.25,"n":3,"stddev":0.1,"sum":3.75}
`,
		},
		"key and event": {
			`key.user == event.actor.id`, "alert: {severity_when: [{when: 'agg.count > params.most', severity: high}]}\n",
			AtHand{true, true},
			`having[key.user == event.actor.id] = true
  [key.user] = "00u1"
  [event.actor.id] = "00u1"
severity high[agg.count > params.most] = false
  [agg.count] = 4
  [params.most] = 5
`,
		},
		"no event": {
			`agg.count > 1 && vars.v != ""`, "vars: {v: event.actor.id}\nalert: {severity_when: [{when: agg.count > 2, severity: high}]}\n",
			AtHand{false, true},
			`having[agg.count > 1 && vars.v != ""] =  (reads the hit's last event, which is not at hand)
severity high[agg.count > 2] = true
  [agg.count] = 4
`,
		},
		"part of the evidence": {
			`evidence.exists(e, e.actor.id == "00u1")`, "",
			AtHand{true, false},
			`having[evidence.exists(e, e.actor.id == "00u1")] = false (reads the evidence, of which only a part is at hand)
`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			set, problems := compileDetection(t, everyAggregate+"having: >-\n  "+tc.having, tc.rest)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			if got := tracedText(set.Rules[0].TraceHit(hitOf(set, t), tc.at)); got != tc.want {
				t.Errorf("traced\n%swant\n%s", got, tc.want)
			}
		})
	}
}

// TestTraceStep traces steps that look at earlier ones.
func TestTraceStep(t *testing.T) {
	set, problems := compileDetection(t, `kind: sequence
window: 1h
steps:
  - {id: one, where: 'event.eventType == "a"'}
  - {id: two, where: 'event.eventType == "b" && event.client.ipAddress != steps.one.client.ipAddress && speedKmh(steps.one, event) >= 0.0'}`, "")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	c := set.Rules[0]
	one := tracedEvent(t, set, `{"uuid":"1","published":"2026-01-05T10:00:00.000Z","eventType":"a","client":{"ipAddress":"192.0.2.1"}}`)
	two := tracedEvent(t, set, `{"uuid":"2","published":"2026-01-05T10:01:00.000Z","eventType":"b","client":{"ipAddress":"192.0.2.2"}}`)
	want := `where[event.eventType == "b" && event.client.ipAddress != steps.one.client.ipAddress && speedKmh(steps.one, event) >= 0.0] = true
  [event.eventType == "b"] = true
    [event.eventType] = "b"
  [event.client.ipAddress != steps.one.client.ipAddress] = true
    [event.client.ipAddress] = "192.0.2.2"
    [steps.one.client.ipAddress] = "192.0.2.1"
  [speedKmh(steps.one, event) >= 0.0] = true
    [speedKmh(steps.one, event)] = 0
`
	if got := tracedText(c.TraceStep(1, &Hit{Steps: []*Event{one, nil}}, two)); got != want {
		t.Errorf("traced\n%swant\n%s", got, want)
	}
	if got := tracedText(c.TraceStep(1, &Hit{Steps: make([]*Event, 2)}, two)); !strings.HasSuffix(got, "=  (a step before is not at hand)\n") {
		t.Errorf("without the first step: %s", got)
	}
	if got := tracedText(c.TraceStep(0, &Hit{Steps: make([]*Event, 2)}, one)); !strings.HasPrefix(got, `where[event.eventType == "a"] = true`) {
		t.Errorf("the first step: %s", got)
	}
}
