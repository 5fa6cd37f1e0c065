package detect

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
)

// TestInAfterAnAttack: a rule over what a match rule and a windowed rule find tells who came in afterwards, at once, with the
// events of both; a rule in shadow is not read.
func TestInAfterAnAttack(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"password-spray": sprayRule, "ended": kindRules["ended"],
		"quiet":   "id: quiet\ntitle: Q\nseverity: low\nmode: shadow\ndetection: {kind: match, where: 'event.eventType == \"user.session.start\"'}\n",
		"entered": "id: entered\ntitle: In after an attack\nseverity: high\ndetection:\n  kind: sequence\n  group_by: {user: event.actor.alternateId}\n  window: 3h\n  steps:\n    - {id: attack, input: detections, where: 'true'}\n    - {id: success, where: 'event.eventType == \"user.session.start\" && event.outcome.result == \"SUCCESS\"'}\nalert:\n  title: ${key.user} after ${steps.attack.detection.title}\n",
	} {
		write(t, dir+"/site/"+name+".yaml", text)
	}
	r := newStateRig(t)
	builtin := false
	s, err := New(Config{RulesDir: dir, Rules: Rules{Builtin: &builtin}}, Deps{Log: bustest.Logger(), Bus: r.b.Bus(t, "one"), Pack: rules.FS})
	if err != nil {
		t.Fatal(err)
	}
	r.run(s)
	send := func(log *record.SystemLog) { r.put(topics.SystemLog, "eval/"+log.Actor.AlternateID, log) }
	for i := range 6 {
		send(failure(t, i, fmt.Sprintf("user%d@example.com", i), "203.0.113.7"))
	}
	end := event(t, 20, "user.session.end")
	end.Actor.AlternateID = "bob@example.com"
	send(end)
	entered := func() map[string]*record.Detection {
		out := map[string]*record.Detection{}
		for _, d := range r.found() {
			if d.RuleID == "entered" && (out[d.Key["user"]] == nil || out[d.Key["user"]].Update < d.Update) {
				out[d.Key["user"]] = d
			}
		}
		return out
	}
	bustest.Until(t, 20*time.Second, func() error { // what was found is read before people come in, as there is no clock yet
		pairs := 0
		for _, m := range r.b.Read(t, topics.Matches) {
			rec := new(record.Match)
			if err := r.b.Serde().Decode(t.Context(), m.Value, rec); err != nil {
				return err
			}
			if rec.Detection != nil && !rec.Detection.Withdrawn {
				pairs++
			}
		}
		if pairs < 7 {
			return fmt.Errorf("%d evidence events", pairs)
		}
		return nil
	})
	for i, user := range []string{"user5@example.com", "bob@example.com", "carol@example.com"} {
		in := event(t, 60+i, "user.session.start")
		in.Actor.AlternateID = user
		send(in)
	}
	r.cursor("acme", "eval", liveLane, pollKind, at.Add(30*time.Hour), false)
	bustest.Until(t, 20*time.Second, func() error {
		got := entered()
		for user, title := range map[string]string{
			"user5@example.com": "user5@example.com after 203.0.113.7 failed to log in as 6 users (6 tries)", "bob@example.com": "bob@example.com after A session ended",
		} {
			if d := got[user]; d == nil || !d.Final || d.Title != title || d.EventCount != 2 || len(d.Evidence) != 2 || len(d.Evidence[0].JSON) == 0 || d.EvidenceTruncated {
				return fmt.Errorf("%s: %+v", user, d)
			}
		}
		if len(got) != 2 {
			return fmt.Errorf("%d detections", len(got))
		}
		return nil
	})
}

// TestOverDetectionsSurvive kills and moves members while events come in that rules find, and rules over detections find in
// them: what is found is what all events at once give, and no update is there twice.
func TestOverDetectionsSurvive(t *testing.T) {
	dir := t.TempDir()
	for name, text := range kindRules {
		write(t, dir+"/site/"+name+".yaml", text)
	}
	r := newStateRig(t)
	rnd := rand.New(rand.NewPCG(7, 7)) //nolint:gosec // a test's own
	members := map[string]*exec.Cmd{}
	start := func(name string) { members[name] = spawn(t, r.b, name, childRules+"="+dir) }
	start("a")
	start("b")
	var all []*record.SystemLog
	for i := range 400 {
		log := event(t, i*7, []string{"user.session.start", "user.session.start", "user.session.start", "user.session.end"}[rnd.IntN(4)])
		log.Actor.AlternateID = fmt.Sprintf("user%d@example.com", rnd.IntN(8))
		log.Client.IPAddress = fmt.Sprintf("203.0.113.%d", rnd.IntN(3))
		if rnd.IntN(5) < 3 && log.EventType == "user.session.start" {
			log.Outcome.Result = "FAILURE"
		}
		all = append(all, log)
	}
	r.cursor("acme", "eval", liveLane, pollKind, all[0].Derived.Time, false) // learning begins with the first
	r.awaitClock("eval", liveLane, all[0].Derived.Time, false)
	stop := make(chan struct{})
	killed := make(chan int, 1)
	go func() {
		n := 0
		rnd := rand.New(rand.NewPCG(4, 4)) //nolint:gosec // a test's own
		defer func() { killed <- n }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(300+rnd.IntN(600)) * time.Millisecond):
			}
			name := []string{"a", "b"}[rnd.IntN(2)]
			kill(members[name])
			n++
			if rnd.IntN(3) > 0 {
				time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
			}
			start(name)
		}
	}()
	for i, log := range all {
		r.put(topics.SystemLog, "eval/"+log.Actor.AlternateID, log)
		if i%25 == 24 {
			r.cursor("acme", "eval", liveLane, pollKind, log.Derived.Time, false)
		}
		time.Sleep(15 * time.Millisecond)
	}
	close(stop)
	kills := <-killed
	r.cursor("acme", "eval", liveLane, pollKind, all[len(all)-1].Derived.Time, true)

	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: os.DirFS(dir), Site: true})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	want := last(atOnce(t, set, all))
	var found []*record.Detection
	bustest.Until(t, 60*time.Second, func() error {
		found = r.found()
		if got := last(found); !maps.Equal(got, want) {
			for _, id := range slices.Sorted(maps.Keys(want)) {
				if got[id] != want[id] {
					return fmt.Errorf("%d detections, want %d; one is\n%s\nwant\n%s", len(got), len(want), got[id], want[id])
				}
			}
			return fmt.Errorf("%d detections, want %d", len(got), len(want))
		}
		return nil
	})
	once, kinds := map[string]bool{}, map[string]int{}
	for _, d := range found {
		u := fmt.Sprint(d.Lane, d.ID, d.Update)
		if once[u] {
			t.Errorf("update %d of %s is there twice", d.Update, d.RuleID)
		}
		once[u] = true
		kinds[d.RuleID]++
	}
	if kinds["entered"] == 0 || kinds["several"] == 0 {
		t.Errorf("too little was found: %v", kinds)
	}
	t.Logf("%d kills; updates: %v", kills, kinds)
	for _, cmd := range members {
		kill(cmd)
	}
}

// TestEndOfSecondTime: the end of a lane is handed on to rules over detections behind the others, once, also by an owner that
// comes later.
func TestEndOfSecondTime(t *testing.T) {
	r := newStateRig(t)
	second := func(s *Service) { s.second = func() bool { return true } }
	stop := r.start("one", second)
	r.cursor("acme", "00oA", liveLane, pollKind, at, true)
	ended := func() error {
		all := r.clocks()
		for n := range int32(topics.EmbeddedPartitions) {
			if ms := all[n]; len(ms) != 2 || ms[0].Clock != firstClock || ms[1].Clock != secondClock || !ms[0].Ended || !ms[1].Ended {
				return fmt.Errorf("partition %d: %+v", n, ms)
			}
		}
		return nil
	}
	bustest.Until(t, 20*time.Second, ended)
	stop()
	r.start("two", second)
	time.Sleep(3 * roundEvery)
	if err := ended(); err != nil {
		t.Error(err)
	}
}
