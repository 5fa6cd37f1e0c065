package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/ident"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// ExampleState counts failures over a window, as a caller without Kafka does it.
func ExampleState() {
	loader, err := rule.NewLoader()
	if err != nil {
		panic(err)
	}
	set, problems, err := loader.Load(rule.Source{Name: "rules", FS: failsRule})
	if err != nil || len(problems) > 0 {
		panic(fmt.Sprint(problems, err))
	}
	matcher, state := engine.NewMatcher(set), engine.NewState(set)
	for i := range 4 {
		log := failure(fmt.Sprint("u", i), time.Duration(i)*time.Second)
		var view record.SystemLogView
		if err := view.Load(log); err != nil {
			panic(err)
		}
		for _, m := range matcher.Take(&view, engine.Place{}) {
			if err := state.Apply(m); err != nil {
				panic(err)
			}
		}
		for _, d := range state.Flush().Detections {
			fmt.Println(d.Update, d.Title, d.EventCount, d.Final)
		}
		state.Commit()
	}
	state.Advance("00oORG", "live", time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC))
	for _, d := range state.Flush().Detections {
		fmt.Println(d.Update, d.Title, d.EventCount, d.Final)
	}
	// Output:
	// 1 00uALICE failed 3 times 3 false
	// 2 00uALICE failed 4 times 4 false
	// 3 00uALICE failed 4 times 4 true
}

func failure(uuid string, after time.Duration) *record.SystemLog {
	log := login(uuid)
	at := log.Published.Add(after)
	log.Published, log.Derived.Time, log.Derived.Received = &at, at, at
	log.Outcome = &record.Outcome{Result: "FAILURE"}
	return log
}

type stateHeard struct {
	heard
	late    int
	limited []string
}

func (h *stateHeard) Late(string)             { h.late++ }
func (h *stateHeard) Limited(id, what string) { h.limited = append(h.limited, id+": "+what) }
func bring(t *testing.T, set *rule.Set, st *engine.State, log *record.SystemLog) {
	t.Helper()
	for _, m := range engine.NewMatcher(set).Take(view(t, log), engine.Place{Topic: "t", Offset: 7}) {
		if err := st.Apply(m); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLateRecords(t *testing.T) {
	set := load(t, failsFiles)
	h := &stateHeard{}
	st := engine.NewState(set, engine.WithStateObserver(h), engine.WithTopic("okta.systemlog.v1"))
	start := *login("x").Published
	st.Advance("00oORG", "live", start.Add(10*time.Minute)) // lateness 10m: the clock stands at start
	for i := range 3 {
		bring(t, set, st, failure(fmt.Sprint("late", i), 0))
		bring(t, set, st, failure(fmt.Sprint("u", i), time.Second))
	}
	ds := st.Flush().Detections
	if len(ds) != 1 || ds[0].EventCount != 3 || h.late != 3 {
		t.Fatalf("%v, %d late", ds, h.late)
	}
	d := ds[0]
	if strings.Join(d.EvidenceUUIDs, " ") != "u0 u1 u2" || d.Evidence[0].Topic != "okta.systemlog.v1" || d.Evidence[0].Offset != 7 || d.StateHash == "" || d.Key["user"] != "00uALICE" || d.Fingerprint != ident.Fingerprint("00oORG", "fails", []string{"00uALICE"}) {
		t.Errorf("%+v", d)
	}
}

func TestUnknownRule(t *testing.T) {
	st := engine.NewState(load(t, failsFiles))
	at := time.Now()
	if err := st.Apply(&record.Match{Kind: engine.MatchEvent, Org: "o", Lane: "live", RuleID: "fails", StateHash: "other", Time: &at}); !errors.Is(err, engine.ErrUnknownRule) {
		t.Error(err)
	}
}

// TestLimitOfRecords floods one group: the oldest go, the detection stays the one it was and says that it was cut.
func TestLimitOfRecords(t *testing.T) {
	set := load(t, failsFiles)
	h := &stateHeard{}
	st := engine.NewState(set, engine.WithStateObserver(h))
	ids := map[string]bool{}
	var last *record.Detection
	for i := range 23_000 {
		log := failure(fmt.Sprintf("u%05d", i), time.Duration(i)*10*time.Millisecond)
		log.JSON = nil
		bring(t, set, st, log)
		if i%500 == 0 || i == 22_999 {
			st.Advance("00oORG", "live", log.Derived.Time)
			for _, d := range st.Flush().Detections {
				ids[d.ID], last = true, d
			}
			st.Commit()
		}
	}
	st.Advance("00oORG", "live", last.LastTime.Add(48*time.Hour))
	for _, d := range st.Flush().Detections {
		ids[d.ID], last = true, d
	}
	if len(ids) != 1 || last.Withdrawn || !last.Final || !last.Truncated || !last.FirstTime.Equal(login("x").Published.Add(20*time.Millisecond)) || len(h.limited) == 0 {
		t.Errorf("%d detections, last %v first %v truncated %v final %v, limited %v", len(ids), last.Title, last.FirstTime, last.Truncated, last.Final, h.limited)
	}
	if n := len(st.Snapshot()); n != 1 {
		t.Errorf("%d entries are left when all is over", n)
	}
}

// TestReload keeps what is held when text and having change, and starts empty when the rest does.
func TestReload(t *testing.T) {
	text := failsFiles["p/fails.yaml"]
	for name, tc := range map[string]struct {
		from, to string
		same     bool
	}{
		"title":    {"failed", "was refused", true},
		"having":   {">= 3", ">= 4", true},
		"severity": {"severity: low", "severity: high", true},
		"window":   {"5m", "6m", false},
		"where":    {"FAILURE", "DENY", false},
		"group":    {"event.actor.id", "event.actor.alternateId", false},
		"keeps":    {"failed", "${event.displayMessage} failed", false},
	} {
		a, b := load(t, failsFiles).Rules[0], load(t, map[string]string{"p/fails.yaml": strings.Replace(text, tc.from, tc.to, 1)}).Rules[0]
		if (a.StateHash == b.StateHash) != tc.same {
			t.Errorf("%s: state hash %s and %s", name, a.StateHash, b.StateHash)
		}
	}
	st := engine.NewState(load(t, failsFiles))
	for i := range 2 {
		bring(t, load(t, failsFiles), st, failure(fmt.Sprint("u", i), 0))
	}
	next := load(t, map[string]string{"p/fails.yaml": strings.Replace(text, "failed", "was refused", 1)})
	st.SetRules(next)
	bring(t, next, st, failure("u2", 0))
	if ds := st.Flush().Detections; len(ds) != 1 || ds[0].Title != "00uALICE was refused 3 times" {
		t.Error(ds)
	}
}

// TestValues reads in detections what their numbers were at the hit.
func TestValues(t *testing.T) {
	for name, tc := range map[string]struct {
		detection string
		events    []string // type, seconds, address
		want      map[string]string
	}{
		"aggregate": {
			"kind: aggregate\n  where: event.eventType == \"a\"\n  window: 5m\n  aggregates: {ips: {distinct: event.client.ipAddress}}\n  having: agg.count >= 2\n",
			[]string{"a 0 192.0.2.1", "a 10 192.0.2.2", "b 15 192.0.2.3", "a 20 192.0.2.1"},
			map[string]string{"hit": `"2026-01-05T10:00:20Z"`, "event": `"u3"`, "agg.count": "3", "agg.ips": "2"},
		},
		"baseline": {
			"kind: aggregate\n  window: 1h\n  baseline: 3h\n  learning: 0s\n  having: base.count.n == 1\n",
			[]string{"a 0 192.0.2.1", "a 1 192.0.2.1", "a 3600 192.0.2.1"},
			map[string]string{"hit": `"2026-01-05T11:00:00Z"`, "event": `"u2"`, "agg.count": "1", "base.count": `{"max":2,"mean":2,"n":1,"stddev":0,"sum":2}`},
		},
		"sequence": {
			"kind: sequence\n  window: 5m\n  steps:\n    - {id: one, where: 'event.eventType == \"a\"', count: 2}\n    - {id: none, not: true, where: 'event.eventType == \"c\"'}\n    - {id: two, where: 'event.eventType == \"b\"'}\n",
			[]string{"a 0 192.0.2.1", "a 10 192.0.2.1", "b 20 192.0.2.1"},
			map[string]string{"hit": `"2026-01-05T10:00:20Z"`, "event": `"u2"`, "steps.one": `"u1"`, "steps.two": `"u2"`},
		},
		"first_seen": {
			"kind: first_seen\n  group_by: {user: event.actor.id, ip: event.client.ipAddress}\n  seen_before: [user]\n  memory: 1d\n  learning: 10s\n",
			[]string{"a 0 192.0.2.1", "a 5 192.0.2.1", "a 20 192.0.2.2"},
			map[string]string{"hit": `"2026-01-05T10:00:20Z"`, "event": `"u2"`, "learned": `"2026-01-05T10:00:10Z"`, "seen_before": `"2026-01-05T10:00:05Z"`},
		},
		"first_seen after a seed": {
			"kind: first_seen\n  group_by: {user: event.actor.id, ip: event.client.ipAddress}\n  seen_before: [user]\n  memory: 1d\n  learning: 10s\n",
			[]string{"seed 0 192.0.2.1", "a 60 192.0.2.2"},
			map[string]string{"hit": `"2026-01-05T10:01:00Z"`, "event": `"u1"`, "learned": `"2026-01-05T10:00:10Z"`, "seen_before": `"2026-01-05T10:00:00Z"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			loader, err := rule.NewLoader()
			if err != nil {
				t.Fatal(err)
			}
			set, problems, err := loader.Load(rule.Source{Name: "rules", FS: fstest.MapFS{"p/x.yaml": {Data: []byte("id: x\ntitle: X\nseverity: low\ndetection:\n  " + tc.detection)}}})
			if err != nil || len(problems) > 0 {
				t.Fatal(problems, err)
			}
			m, st := engine.NewMatcher(set), engine.NewState(set)
			var last *record.Detection
			var views []*record.SystemLogView
			for i, e := range tc.events {
				f := strings.Fields(e)
				seconds, _ := strconv.Atoi(f[1])
				log := failure(fmt.Sprint("u", i), time.Duration(seconds)*time.Second)
				log.EventType, log.Client = f[0], &record.Client{IPAddress: f[2]}
				if f[0] == "seed" {
					log.Derived.Seed = true
					st.Seeded("00oORG", "live", log.Derived.Time)
				} else {
					st.Begin("00oORG", "live", log.Derived.Time)
				}
				v := new(record.SystemLogView)
				if err := v.Load(log); err != nil {
					t.Fatal(err)
				}
				views = append(views, v)
				for _, mt := range m.Take(v, engine.Place{}) {
					if err := st.Apply(mt); err != nil {
						t.Fatal(err)
					}
				}
				for _, d := range st.Flush().Detections {
					last = d
				}
				st.Commit()
			}
			st.Advance("00oORG", "live", time.Date(2026, 1, 6, 12, 0, 0, 0, time.UTC))
			for _, d := range st.Flush().Detections {
				last = d
			}
			if last == nil || !maps.Equal(last.Values, tc.want) {
				t.Fatalf("%+v", last)
			}
			if name != "aggregate" {
				return
			}
			values, count := engine.Recount(set.Rules[0], set.NewEvent(), nil, views)
			if count != 3 || values[0].Int != 2 {
				t.Errorf("counted again: %d, %+v", count, values)
			}
			from, to := engine.Window(set.Rules[0], last.LastTime)
			if to.Sub(from) != 5*time.Minute || !to.Equal(last.LastTime) {
				t.Errorf("window (%s, %s]", from, to)
			}
		})
	}
}
