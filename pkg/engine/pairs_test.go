package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
)

const (
	pairSpray = `id: spray
title: T
severity: low
detection:
  kind: aggregate
  where: event.eventType == "user.session.start" && event.outcome.result == "FAILURE"
  group_by: {ip: event.client.ipAddress}
  window: 5m
  aggregates: {users: {distinct: event.actor.id}}
  having: agg.users >= 3 && agg.users <= 600
alert:
  title: ${agg.users} users
`
	pairReader = `id: reader
title: T
severity: low
detection:
  kind: aggregate
  input: detections
  where: event.detection.ruleId == "spray"
  group_by: {user: event.actor.id}
  window: 1h
  having: agg.count >= 1
`
)

// told is what a Match of kind detection says.
func told(ms []*record.Match) []string {
	var out []string
	for _, m := range ms {
		s := m.RuleID + " " + m.UUID + " " + m.Key["user"]
		if m.Detection.Title != "" {
			s += " " + m.Detection.Title
		}
		switch {
		case m.Detection.Withdrawn:
			s += " withdrawn"
		case m.Detection.Open:
			s += " open"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// attempt is the n-th second's failure of user n.
func attempt(n int) *record.SystemLog {
	log := failure(fmt.Sprintf("e%03d", n), time.Duration(n)*time.Second)
	log.Actor.ID = fmt.Sprintf("u%03d", n)
	return log
}

// TestPairsAreWhatChanged: what is new of a detection, what is other and what is gone is given to the rules that read it, and
// no more; also after a restart. All evidence is, not only what the detection shows.
func TestPairsAreWhatChanged(t *testing.T) {
	set := load(t, map[string]string{
		"p/spray.yaml": pairSpray, "p/reader.yaml": pairReader,
		"p/words.yaml": strings.NewReplacer("id: reader", "id: words", "severity: low", "severity: low\nalert: {title: '${event.detection.title}'}").Replace(pairReader),
	})
	m, st := engine.NewMatcher(set), engine.NewState(set)
	log := map[string][]byte{}
	flush := func(want ...string) {
		t.Helper()
		out := st.Flush()
		for _, c := range out.Changes {
			if c.Value == nil {
				delete(log, c.Key)
			} else {
				log[c.Key] = c.Value
			}
		}
		st.Commit()
		if got := told(out.Pairs); !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	take := func(n int) {
		t.Helper()
		for _, mt := range m.Take(view(t, attempt(n)), engine.Place{Topic: "t", Offset: int64(n)}) {
			if err := st.Apply(mt); err != nil {
				t.Fatal(err)
			}
		}
	}
	take(0)
	take(1)
	flush()
	take(2)
	flush("reader e000 u000", "reader e001 u001", "reader e002 u002", "words e000 u000 3 users open", "words e001 u001 3 users open", "words e002 u002 3 users open")
	take(3)
	flush("reader e003 u003", "words e000 u000 4 users open", "words e001 u001 4 users open", "words e002 u002 4 users open", "words e003 u003 4 users open")
	st = engine.NewState(set)
	for k, v := range log {
		if err := st.Restore(k, v); err != nil {
			t.Fatal(err)
		}
	}
	st.Restored()
	st.Advance("00oORG", "live", attempt(0).Derived.Time)
	flush()
	take(4)
	out := st.Flush()
	st.Abort()
	if len(out.Pairs) != 6 {
		t.Errorf("%v", told(out.Pairs))
	}
	take(4)
	flush("reader e004 u004", "words e000 u000 5 users open", "words e001 u001 5 users open", "words e002 u002 5 users open", "words e003 u003 5 users open", "words e004 u004 5 users open")
	for n := range 300 {
		take(n)
	}
	if got := st.Flush().Pairs; len(got) != 595 {
		t.Errorf("%d pairs, want 300 with other words and 295 new ones", len(got))
	}
	st.Commit()
	st.Advance("00oORG", "live", attempt(0).Derived.Time.Add(3*time.Hour))
	got := told(st.Flush().Pairs) // it is over: its words stay
	if len(got) != 300 || strings.Contains(got[0], "open") || !strings.HasPrefix(got[0], "words e000") {
		t.Errorf("%d pairs: %v", len(got), got)
	}
	st.Commit()
	for _, c := range st.Snapshot() {
		if c.Key[0] == 'P' {
			t.Errorf("an entry is left of what was given: %q", c.Key)
		}
	}
}

// TestPairsAreTakenBack: what an event out of order takes away of a detection goes from the rules that read it, and so does
// what they found.
func TestPairsAreTakenBack(t *testing.T) {
	spray := strings.Replace(pairSpray, "agg.users >= 3 && agg.users <= 600", "agg.users == 3", 1)
	set := load(t, map[string]string{"p/spray.yaml": spray, "p/reader.yaml": pairReader})
	m, st := engine.NewMatcher(set), engine.NewState(set)
	last := map[string]*record.Detection{}
	step := func(n int) []string {
		t.Helper()
		for _, mt := range m.Take(view(t, attempt(n)), engine.Place{}) {
			if err := st.Apply(mt); err != nil {
				t.Fatal(err)
			}
		}
		var pairs []string
		for out := st.Flush(); len(out.Pairs)+len(out.Detections) > 0; out = st.Flush() {
			pairs = append(pairs, told(out.Pairs)...)
			for _, d := range out.Detections {
				last[d.ID] = d
			}
			for _, mt := range out.Pairs {
				if err := st.Apply(mt); err != nil {
					t.Fatal(err)
				}
			}
		}
		st.Commit()
		return pairs
	}
	step(10)
	step(11)
	if got := step(20); len(got) != 3 {
		t.Errorf("%v", got)
	}
	if len(last) != 4 {
		t.Errorf("%d detections, want the spray and one a user", len(last))
	}
	// Three users at second 11 now, and four at 20.
	want := []string{"reader e009 u009", "reader e010 u010", "reader e011 u011", "reader e020 u020 withdrawn"}
	if got := step(9); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, d := range last {
		if d.RuleID == "reader" && d.Withdrawn != (d.Key["user"] == "u020") {
			t.Errorf("%s: withdrawn %v", d.Key["user"], d.Withdrawn)
		}
		if d.RuleID == "reader" && d.Key["user"] == "u010" && !d.FirstTime.Equal(attempt(11).Derived.Time) {
			t.Errorf("u010 was found at %v", d.FirstTime)
		}
	}
}

// TestPairsAreBounded: rules over detections read 10,000 events of one, and it says that it was cut.
func TestPairsAreBounded(t *testing.T) {
	spray := strings.NewReplacer("agg.users >= 3 && agg.users <= 600", "agg.count >= 1", "window: 5m", "window: 1m").Replace(pairSpray)
	set := load(t, map[string]string{"p/spray.yaml": spray, "p/reader.yaml": strings.Replace(pairReader, "event.actor.id", "event.outcome.reason", 1)})
	l := &limits{}
	m, st := engine.NewMatcher(set), engine.NewState(set, engine.WithStateObserver(l))
	pairs, cut := 0, false
	for n := range 21_000 {
		log := attempt(0)
		log.UUID = fmt.Sprintf("e%05d", n)
		at := log.Derived.Time.Add(time.Duration(n) * 100 * time.Millisecond)
		log.Published, log.Derived.Time = &at, at
		log.Client.IPAddress = "192.0.2.1"
		for _, mt := range m.Take(view(t, log), engine.Place{}) {
			if err := st.Apply(mt); err != nil {
				t.Fatal(err)
			}
		}
		if n%1000 == 999 {
			out := st.Flush()
			pairs += len(out.Pairs)
			for _, d := range out.Detections {
				cut = cut || d.Truncated
			}
			st.Commit()
		}
	}
	if pairs != 0 || !cut || len(l.told) == 0 { // a key that is not known gives no group: none travels, all are counted
		t.Errorf("%d pairs, cut %v, %v", pairs, cut, l.told)
	}
	given := 0
	for _, c := range st.Snapshot() {
		if c.Key[0] == 'P' {
			given++
		}
	}
	if given != 10_000 {
		t.Errorf("%d events were given", given)
	}
}

type limits struct{ told []string }

func (l *limits) Excepted(string, string) {}
func (l *limits) Failed(error)            {}
func (l *limits) Late(string)             {}
func (l *limits) Limited(id, what string) { l.told = append(l.told, id+": "+what) }

// TestNoReader: without a rule that reads it, nothing is given of a detection; nor of one in shadow.
func TestNoReader(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"none":         {"p/spray.yaml": pairSpray},
		"shadow":       {"p/spray.yaml": pairSpray + "mode: shadow\n", "p/reader.yaml": pairReader},
		"disabled":     {"p/spray.yaml": pairSpray, "p/reader.yaml": pairReader + "mode: disabled\n"},
		"others named": {"p/spray.yaml": pairSpray, "p/reader.yaml": strings.Replace(pairReader, `"spray"`, `"other"`, 1)},
	} {
		set := load(t, files)
		m, st := engine.NewMatcher(set), engine.NewState(set)
		for n := range 4 {
			for _, mt := range m.Take(view(t, attempt(n)), engine.Place{}) {
				if err := st.Apply(mt); err != nil {
					t.Fatal(err)
				}
			}
		}
		if out := st.Flush(); len(out.Pairs) > 0 || len(out.Detections) != 1 {
			t.Errorf("%s: %v, %d detections", name, told(out.Pairs), len(out.Detections))
		}
	}
}

// TestSecondCopyReplaces: a match detection's second copy takes the place of the first in what reads it.
func TestSecondCopyReplaces(t *testing.T) {
	set := load(t, map[string]string{
		"p/one.yaml":    "id: one\ntitle: T\nseverity: low\ndetection: {kind: match, where: 'event.eventType == \"user.session.start\"'}\n",
		"p/reader.yaml": strings.Replace(pairReader, `"spray"`, `"one"`, 1),
		"p/whole.yaml":  strings.NewReplacer("id: reader", "id: whole", `"spray"`, `"one"`, "agg.count >= 1", "agg.count >= 1 && !event.securityContext.isProxy").Replace(pairReader),
	})
	m, st := engine.NewMatcher(set), engine.NewState(set)
	byRule := map[string]*record.Detection{}
	for n, partial := range []bool{true, false} {
		log := attempt(0)
		log.Derived.Copy, log.Derived.Partial = int32(n+1), partial
		v := view(t, log)
		for _, d := range m.Match(v, engine.Place{}) {
			for _, mt := range m.TakeDetection(v, engine.Place{}, d) {
				if err := st.Apply(mt); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, d := range st.Flush().Detections {
			byRule[d.RuleID] = d
		}
		st.Commit()
		if want := map[bool]int{true: 1, false: 2}[partial]; len(byRule) != want {
			t.Errorf("%d rules found something, want %d", len(byRule), want)
		}
	}
	st.AdvanceSecond("00oORG", "live", attempt(0).Derived.Time.Add(24*time.Hour))
	for _, d := range st.Flush().Detections {
		byRule[d.RuleID] = d
	}
	if d := byRule["reader"]; d == nil || d.EventCount != 1 || d.Partial || !d.Final || d.Evidence[0].Copy != 2 {
		t.Errorf("%+v", d)
	}
}

// TestChangelogIsTheMemory: the changelog has every sort of entry as the memory gives it, and a memory made of it gives it
// again: events, pairs, what was given, what waits, sightings, and buckets that seeds may still come to.
func TestChangelogIsTheMemory(t *testing.T) {
	set := load(t, map[string]string{
		"p/spray.yaml":  pairSpray + "  severity_when: [{when: agg.users >= 200, severity: critical}]\n",
		"p/words.yaml":  strings.Replace(pairReader, "id: reader", "id: words", 1) + "alert: {title: '${event.detection.title}'}\n",
		"p/severe.yaml": strings.NewReplacer("id: reader", "id: severe", `event.detection.ruleId == "spray"`, "event.detection.severity >= 5").Replace(pairReader),
		"p/usual.yaml": "id: usual\ntitle: T\nseverity: low\ndetection: {kind: aggregate, group_by: {ip: event.client.ipAddress}, window: 1h, bucket: 1h, baseline: 10d, " +
			"aggregates: {users: {distinct: event.actor.id}, kinds: {count_by: event.eventType}, first: {min: event.published}}, having: base.count.n >= 100}\n",
		"p/new.yaml": "id: new\ntitle: T\nseverity: low\ndetection: {kind: first_seen, group_by: {user: event.actor.id, ip: event.client.ipAddress}, seen_before: [user], memory: 30d}\n",
	})
	m, st := engine.NewMatcher(set), engine.NewState(set)
	log := map[string]string{}
	flush := func() {
		t.Helper()
		for again := true; again; {
			out := st.Flush()
			for _, c := range out.Changes {
				if c.Value == nil {
					delete(log, c.Key)
				} else {
					log[c.Key] = string(c.Value)
				}
			}
			for _, mt := range out.Pairs {
				if err := st.Apply(mt); err != nil {
					t.Fatal(err)
				}
			}
			again = len(out.Pairs) > 0
		}
		st.Commit()
	}
	start := attempt(0).Derived.Time
	for n := range 40 {
		one := attempt(n % 10)
		one.UUID = fmt.Sprintf("3b2b0c2e-0001-11f1-8000-%012d", n)
		if n < 30 { // of the days before
			at := start.Add(time.Duration(n-60) * time.Hour / 2)
			one.Derived.Seed, one.Derived.Time, one.Published = true, at, &at
			st.Seeded("00oORG", "live", at)
		} else {
			st.Begin("00oORG", "live", start)
		}
		for _, mt := range m.Take(view(t, one), engine.Place{Topic: "t", Offset: int64(n)}) {
			if err := st.Apply(mt); err != nil {
				t.Fatal(err)
			}
		}
		if n%7 == 6 {
			flush()
		}
	}
	st.Advance("00oORG", "live", start.Add(30*time.Minute))
	flush()
	sorts := map[byte]int{}
	was := map[string]string{}
	for _, c := range st.Snapshot() {
		sorts[c.Key[0]]++
		was[c.Key] = string(c.Value)
		if c.Key[0] == 'B' && c.Value[0] != 2 {
			t.Errorf("bucket %q does not remember its seeds: %x", c.Key, c.Value)
		}
		if got := log[c.Key]; got != string(c.Value) && c.Key[0] != 'D' { // a detection that grows is not written each time
			t.Errorf("%q is %x in the changelog and %x in the memory", c.Key, got, c.Value)
		}
	}
	if len(was) != len(log) {
		t.Errorf("%d entries in the changelog and %d in the memory", len(log), len(was))
	}
	for _, sort := range []byte("WLEDGSBPU") {
		if sorts[sort] == 0 {
			t.Errorf("no entry %c", sort)
		}
	}
	again := engine.NewState(set)
	for k, v := range was {
		if err := again.Restore(k, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	again.Restored()
	for _, c := range again.Snapshot() {
		if was[c.Key] != string(c.Value) {
			t.Errorf("%q was %x and came back as %x", c.Key, was[c.Key], c.Value)
		}
		delete(was, c.Key)
	}
	for k := range was {
		t.Errorf("%q is lost", k)
	}
}
