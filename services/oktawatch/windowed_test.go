//go:build long

package oktawatch

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// A windowed rule for the tests that kill. Events that Okta persists late (two seconds) are within its lateness.
const (
	sprayRule = `id: test-password-spray
title: One address tries many users
severity: medium
mode: signal
detection:
  kind: aggregate
  where: event.eventType == "user.session.start" && event.outcome.result == "FAILURE"
  group_by: {ip: event.client.ipAddress}
  window: 20s
  lateness: 15s
  aggregates:
    users:
      distinct: event.actor.alternateId
  having: agg.users >= 5
alert:
  dedup: {period: 1m}
`
	sprayID     = "test-password-spray"
	sprayWindow = 20 * time.Second
	sprayPeriod = time.Minute
	sprayUsers  = 5
)

// spray is a detection of that rule, as far as the ground truth tells it.
type spray struct {
	IP          string
	First, Last time.Time
	Events      int
	UUIDs       string
}

// sprays are what the rule language says that the rule finds in the ground truth, worked out over all events at once: those
// published before a time, or all for the zero time.
func sprays(t *testing.T, org *oktasim.Org, before time.Time) []spray {
	t.Helper()
	type failure struct {
		at         time.Time
		uuid, user string
	}
	byIP := map[string][]failure{}
	for e := range org.Truth().Events(oktasim.Query{EventType: "user.session.start"}) {
		if !before.IsZero() && !e.Published.Before(before) {
			continue
		}
		raw, ok := org.Truth().Raw(e.Seq)
		if !ok {
			t.Fatalf("the ground truth has lost event %d", e.Seq)
		}
		var ev struct {
			Outcome struct{ Result string }
			Actor   struct{ AlternateID string }
			Client  struct{ IPAddress string }
		}
		if err := json.Unmarshal(raw, &ev); err != nil {
			t.Fatal(err)
		}
		if ev.Outcome.Result == "FAILURE" {
			byIP[ev.Client.IPAddress] = append(byIP[ev.Client.IPAddress], failure{e.Published, e.UUID, ev.Actor.AlternateID})
		}
	}
	var out []spray
	for ip, fs := range byIP {
		slices.SortFunc(fs, func(a, b failure) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.uuid, b.uuid)) })
		var open *spray
		evidence := map[string]bool{}
		done := func() {
			if open != nil {
				open.Events, open.UUIDs = len(evidence), fmt.Sprint(slices.Sorted(maps.Keys(evidence)))
				out = append(out, *open)
			}
			open, evidence = nil, map[string]bool{}
		}
		for i, f := range fs {
			if i+1 < len(fs) && fs[i+1].at.Equal(f.at) {
				continue // of equal times the last sees all
			}
			users := map[string]bool{}
			var window []string
			for _, w := range fs {
				if w.at.After(f.at.Add(-sprayWindow)) && !w.at.After(f.at) {
					users[w.user] = true
					window = append(window, w.uuid)
				}
			}
			if len(users) < sprayUsers {
				continue
			}
			if open != nil && f.at.Sub(open.Last) > sprayPeriod {
				done()
			}
			if open == nil {
				open = &spray{IP: ip, First: f.at}
			}
			open.Last = f.at
			for _, u := range window {
				evidence[u] = true
			}
		}
		done()
	}
	return order(out)
}

func order(s []spray) []spray {
	slices.SortFunc(s, func(a, b spray) int { return cmp.Or(cmp.Compare(a.IP, b.IP), a.First.Compare(b.First)) })
	return s
}

// sprayed are the rule's detections in an org's lane as they stand in the end: the last update of each, unless it is withdrawn.
func sprayed(t *testing.T, r *tail.Reader, org, lane string) (found []spray, final, updates int) {
	t.Helper()
	type detection struct {
		RuleID    string            `json:"rule_id"`
		Org       string            `json:"org"`
		Lane      string            `json:"lane"`
		ID        string            `json:"id"`
		Update    int64             `json:"update"`
		Key       map[string]string `json:"key"`
		Final     bool              `json:"final"`
		Withdrawn bool              `json:"withdrawn"`
		Count     int               `json:"event_count"`
		UUIDs     []string          `json:"evidence_uuids"`
		First     time.Time         `json:"first_time"`
		Last      time.Time         `json:"last_time"`
	}
	last := map[string]detection{}
	for _, records := range read(t, r, topics.Detections, true).by {
		var d detection
		if err := json.Unmarshal(records[len(records)-1].plain, &d); err != nil {
			t.Fatal(err)
		}
		if d.RuleID != sprayID || d.Org != org || d.Lane != lane {
			continue
		}
		updates++
		if d.Update > last[d.ID].Update {
			last[d.ID] = d
		}
	}
	for _, d := range last {
		if d.Final || d.Withdrawn {
			final++
		}
		if d.Withdrawn {
			continue
		}
		slices.Sort(d.UUIDs)
		found = append(found, spray{IP: d.Key["ip"], First: d.First.UTC(), Last: d.Last.UTC(), Events: d.Count, UUIDs: fmt.Sprint(d.UUIDs)})
	}
	if final < len(last) {
		final = -1
	}
	return order(found), final, updates
}

// windowed waits until every live detection of the windowed rule is final, and compares them with the ground truth.
func windowed(t *testing.T, r *tail.Reader, org *oktasim.Org) {
	t.Helper()
	windowedIn(t, r, org, "live", time.Time{})
}

// windowedIn does so in one lane, of what was published before a time.
func windowedIn(t *testing.T, r *tail.Reader, org *oktasim.Org, lane string, before time.Time) {
	t.Helper()
	want := sprays(t, org, before)
	var found []spray
	var updates int
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) {
		var final int
		if found, final, updates = sprayed(t, r, org.ID(), lane); final >= 0 && len(found) >= len(want) {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("3 minutes after the last event not every detection of the windowed rule is final")
			break
		}
	}
	lost, wrong := 0, 0
	for _, w := range want {
		i := slices.IndexFunc(found, func(f spray) bool { return f.IP == w.IP && f.First.Equal(w.First) })
		switch {
		case i < 0:
			lost++
			t.Errorf("not found: %+v", w)
		case w.Events <= 100 && found[i] != w || !found[i].Last.Equal(w.Last) || found[i].Events != w.Events:
			wrong++
			t.Errorf("found %+v, want %+v", found[i], w)
		}
	}
	if len(found) != len(want) {
		t.Errorf("%d detections of the windowed rule, want %d", len(found), len(want))
	}
	t.Logf("windowed rule, org %s, lane %s: %d detections in %d updates; %d of the ground truth, %d lost, %d wrong", org.ID(), lane, len(found), updates, len(want), lost, wrong)
}
