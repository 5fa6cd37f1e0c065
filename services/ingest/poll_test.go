package ingest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

func TestNextLink(t *testing.T) {
	for name, tc := range map[string]struct {
		in   []string
		want string
		err  string
	}{
		"one a line": {in: []string{`<https://x/api/v1/logs?limit=5>; rel="self"`, `<https://x/api/v1/logs?limit=5&after=1_1>; rel="next"`}, want: "/api/v1/logs?limit=5&after=1_1"},
		"folded":     {in: []string{`<https://x/api/v1/logs?a,b>; rel="self", <https://elsewhere/api/v1/logs?after=a,b;c>; rel="next"`}, want: "/api/v1/logs?after=a,b;c"},
		"next first": {in: []string{`<https://x/api/v1/logs?after=1>; rel="next", <https://x/api/v1/logs>; rel="self"`}, want: "/api/v1/logs?after=1"},
		"none":       {in: []string{`<https://x/api/v1/logs>; rel="self"`}},
		"no headers": {},
		"nonsense":   {in: []string{"<", "<x", `rel="next"`, "", ">;<"}},
		"other path": {in: []string{`<https://x/api/v1/users?after=1>; rel="next"`}, err: "refused a next link"},
		"up a path":  {in: []string{`<https://x/api/v1/logs/../users>; rel="next"`}, err: "refused a next link"},
		"no address": {in: []string{`<http://[::1>; rel="next"`}, err: "no address"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := nextOf(tc.in)
			if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for _, tc := range []struct {
		at   string
		n    int
		want string
	}{
		{"/api/v1/logs?limit=1000&after=x%20y", 10, "/api/v1/logs?limit=10&after=x%20y"},
		{"/api/v1/logs?after=x&limit=5", 10, "/api/v1/logs?after=x&limit=5"},
		{"/api/v1/logs?after=x", 10, "/api/v1/logs?after=x&limit=10"},
		{"/api/v1/logs?after=x&limit=7", 0, "/api/v1/logs?after=x&limit=7"},
	} {
		if got := withLimit(tc.at, tc.n); got != tc.want {
			t.Errorf("%s with %d: %s", tc.at, tc.n, got)
		}
	}
	if limitOf("/api/v1/logs?after=x") != 100 || limitOf("/api/v1/logs?limit=7") != 7 {
		t.Error("limit of a link")
	}
}

func TestThrough(t *testing.T) {
	at := func(s int) time.Time { return time.Date(2026, 1, 1, 0, 0, s, 0, time.UTC) }
	for name, tc := range map[string]struct {
		full         bool
		newest, date time.Time
		want         *time.Time
	}{
		"short page":             {newest: at(3), date: at(9), want: timeOf(at(9))},
		"empty page":             {date: at(9), want: timeOf(at(9))},
		"full page":              {full: true, newest: at(3), date: at(9), want: timeOf(at(3))},
		"full page of tomorrow":  {full: true, newest: at(30), date: at(9), want: timeOf(at(9))},
		"full page without time": {full: true, date: at(9), want: nil},
		"no date":                {newest: at(3)},
	} {
		t.Run(name, func(t *testing.T) {
			got := throughOf(tc.full, tc.newest, tc.date)
			if (got == nil) != (tc.want == nil) || got != nil && !got.Equal(*tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	if got := later(timeOf(at(5)), timeOf(at(3))); !got.Equal(at(5)) {
		t.Errorf("through went back to %v", got)
	}
}

func TestPace(t *testing.T) {
	now := time.Now()
	r := func(limit, remaining int64) rate {
		return rate{known: true, limit: limit, remaining: remaining, date: now, reset: now.Add(20 * time.Second)}
	}
	share := 0.1
	for name, tc := range map[string]struct {
		full bool
		rate rate
		used int64
		want record.Source
		wait time.Duration
	}{
		"at the end":            {wait: 10 * time.Second},
		"test org":              {want: record.Source{TestOrg: true}, wait: time.Second},
		"own interval":          {want: record.Source{Poll: &record.SourcePoll{IntervalMS: 2500}}, wait: 2500 * time.Millisecond},
		"small limit":           {rate: r(10, 9), wait: 12 * time.Second},
		"small share":           {rate: r(60, 59), want: record.Source{Poll: &record.SourcePoll{RateShare: &share}}, wait: 10 * time.Second},
		"smaller share":         {rate: r(20, 19), want: record.Source{Poll: &record.SourcePoll{RateShare: &share}}, wait: 30 * time.Second},
		"nothing left":          {rate: r(600, 0), wait: 21 * time.Second},
		"full":                  {full: true, rate: r(60, 50)},
		"full, no headers":      {full: true},
		"full, share used up":   {full: true, rate: r(60, 30), used: 30, wait: 21 * time.Second},
		"full, nothing is left": {full: true, rate: r(60, 0), used: 1, wait: 21 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			p := &poller{src: &source{want: &tc.want, rate: tc.rate}, used: tc.used}
			if got := p.pace(tc.full); got != tc.wait {
				t.Errorf("waits %v, want %v", got, tc.wait)
			}
		})
	}
}

// The backoff of each class of answer, in virtual time and without a network.
func TestSleepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if err := sleep(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		for range 100 {
			if d := jitter(time.Second); d < 750*time.Millisecond || d > 1250*time.Millisecond {
				t.Errorf("jitter %v", d)
			}
		}
	})
}

// A page with an event of 3 MB goes on, cursor and all.
func TestOversizeEventInPage(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	big := `{"uuid":"u-big","published":"` + time.Now().UTC().Format(time.RFC3339Nano) + `","pad":"` + strings.Repeat("p", 3_000_000) + `"}`
	deep := `{"uuid":"u-deep","d":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`
	if _, err := x.org.Emit([]byte(`{"uuid":"u-1"}`), []byte(big), []byte(`{"uuid":"u-2","uuid":"u-3"}`), []byte(deep), []byte(`{"no":"uuid"}`)); err != nil {
		t.Fatal(err)
	}
	in := x.start("a", x.config(rolePoller))
	bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
	if _, err := x.org.Emit([]byte(`{"uuid":"u-after"}`)); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
	in.stop(t)
	seen := map[string]bool{}
	for _, r := range x.raws() {
		seen[r.UUID] = true
		if r.UUID == "u-big" && (!r.Oversize || len(r.JSON) > 0 || r.Size != int64(len(big)) || r.SHA256 != hash([]byte(big))) {
			t.Errorf("oversize event: %v %d %d", r.Oversize, len(r.JSON), r.Size)
		}
	}
	for _, u := range []string{"u-1", "u-3", "u-big", "u-deep", "", "u-after"} {
		if !seen[u] {
			t.Errorf("event %q is missing", u)
		}
	}
	f := x.findings(findOversize.Name)
	if len(f) != 1 || f[0].Kind != "source_health" || f[0].SourceID != "acme" || !slices.Equal(f[0].EvidenceUUIDs, []string{"u-big"}) {
		t.Errorf("findings %v", f)
	}
}

func TestCursorRefused(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	if err := x.org.Burst(50); err != nil {
		t.Fatal(err)
	}
	x.start("a", x.config(rolePoller))
	bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
	if err := x.org.Inject(oktasim.Fault{Kind: oktasim.FaultCursor, Count: 1}); err != nil {
		t.Fatal(err)
	}
	if err := x.org.Burst(50); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 20*time.Second, func() error {
		if n := len(x.findings(findGap.Name)); n != 1 {
			return fmt.Errorf("%d gap findings", n)
		}
		return x.complete(wayPoller, 2) // those of the overlap come twice
	})
}

func TestTokenRefusedAndReplaced(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	cfg := x.config(rolePoller)
	cfg.Sources[0].TokenFile = x.put("changing", "00a-token-okta-does-not-know")
	in := x.start("a", cfg)
	bustest.Until(t, 20*time.Second, func() error {
		found := x.findings(findToken.Name)
		if len(found) != 1 {
			return fmt.Errorf("%d findings", len(found))
		}
		if found[0].Labels["test_org"] != "true" {
			t.Error("the finding does not say that the org is a test org")
		}
		if err := in.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "401") {
			return fmt.Errorf("readiness says %v", err) //nolint:errorlint // may be nil
		}
		for _, s := range decodeAll[record.SourceStatus](x, topics.SourceStatus) {
			if s.Part == partPoll && s.State == "failing" && strings.Contains(s.LastError, "401") && len(s.Warnings) == 1 {
				return nil
			}
		}
		return errors.New("no status says so")
	})
	// Neither a restart nor a token that is not there at all raises it again that day.
	in.stop(t)
	if err := os.Remove(cfg.Sources[0].TokenFile); err != nil {
		t.Fatal(err)
	}
	in = x.start("b", cfg)
	bustest.Until(t, 20*time.Second, func() error {
		if err := in.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
			return fmt.Errorf("readiness says %v", err) //nolint:errorlint // may be nil
		}
		return nil
	})
	x.put("changing", token)
	if err := x.org.Burst(10); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 20*time.Second, func() error { return errors.Join(x.complete(wayPoller, 1), in.ready(t.Context())) })
	if n := len(x.findings(findToken.Name)); n != 1 {
		t.Errorf("%d findings, want 1", n)
	}
	x.noSecrets()
	if strings.Contains(x.log.String(), "00a-token") {
		t.Error("the log holds the refused token")
	}
}

// Two pollers share sources by the group's assignment; one that goes leaves its sources to the other, and nothing is missing or twice.
func TestPollersShareSources(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	var orgs []*oktasim.Org
	cfg := x.config(rolePoller)
	cfg.Sources = nil
	for i := range 6 {
		org := x.org
		if i > 0 {
			org = simulate(t, oktasim.Config{Seed: uint64(100 + i)})
		}
		orgs = append(orgs, org)
		cfg.Sources = append(cfg.Sources, SourceConfig{ID: fmt.Sprintf("org-%d", i), OrgURL: org.URL(), TokenFile: x.dir + "/token", Poll: PollConfig{Interval: 50 * time.Millisecond}})
	}
	burst := func() {
		for _, o := range orgs {
			if err := o.Burst(40); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := func() error {
		seen := map[string]int{}
		for _, r := range x.raws() {
			seen[r.SHA256]++
		}
		for i, o := range orgs {
			missing := 0
			for e := range o.Truth().Events(oktasim.Query{Persisted: true}) {
				b, _ := o.Truth().Raw(e.Seq)
				switch seen[hash(b)] {
				case 0:
					missing++
				case 1:
				default:
					return fmt.Errorf("an event of org %d stands %d times", i, seen[hash(b)])
				}
			}
			if missing > 0 {
				return fmt.Errorf("org %d: %d missing", i, missing)
			}
		}
		return nil
	}
	burst()
	a := x.start("a", cfg)
	bustest.Until(t, 30*time.Second, all)
	b := x.start("b", cfg)
	both := func() error {
		na, nb := a.polls(), b.polls()
		if na == 0 || nb == 0 || na+nb != 6 {
			return fmt.Errorf("a polls %d, b %d", na, nb)
		}
		return nil
	}
	bustest.Until(t, 30*time.Second, both)
	burst()
	bustest.Until(t, 30*time.Second, all)
	a.stop(t)
	burst()
	bustest.Until(t, 30*time.Second, func() error {
		if n := b.polls(); n != 6 {
			return fmt.Errorf("b polls %d", n)
		}
		return all()
	})
}

func (in *instance) polls() (n int) {
	in.s.sources.mu.Lock()
	defer in.s.sources.mu.Unlock()
	for _, src := range in.s.sources.running {
		if src.polling() {
			n++
		}
	}
	return n
}

// An owner that was taken over writes nothing more and does not fight for the source.
func TestFencedOwner(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	if err := x.org.Burst(30); err != nil {
		t.Fatal(err)
	}
	x.start("a", x.config(rolePoller))
	bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
	other := x.b.Bus(t, "z")
	txn, err := other.OpenTransactional(t.Context(), topics.PollTransactionalID("acme"))
	if err != nil {
		t.Fatal(err)
	}
	defer txn.Close()
	if err := x.org.Burst(30); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 20*time.Second, func() error {
		if !strings.Contains(x.log.String(), "another instance polls this source now") {
			return errors.New("the old owner has not noticed")
		}
		return nil
	})
	// The assignment is still its own, so it takes the source back, and reads on where the cursor stands: nothing twice.
	bustest.Until(t, 30*time.Second, func() error { return x.complete(wayPoller, 1) })
	if err := txn.Do(t.Context(), func(out *bus.Emit) error {
		return out.PutRaw(topics.Cursors, "acme", nil)
	}); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("the one that was taken over in turn could write: %v", err)
	}
}

// A start after an unclean stop of the embedded broker reads the last page again; a clean one does not.
func TestUncleanStartResumesOnePageBack(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	cfg := x.config(rolePoller)
	cfg.Sources[0].Poll.Interval = time.Hour
	if err := x.org.Burst(20); err != nil {
		t.Fatal(err)
	}
	in := x.start("a", cfg)
	bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
	in.stop(t)
	in = x.start("a", cfg)
	if err := x.org.Burst(20); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
	in.stop(t)
	// The first answer after it is no page: what follows must begin one page back all the same.
	if err := x.org.Inject(oktasim.Fault{Kind: oktasim.FaultCut, Count: 1}); err != nil {
		t.Fatal(err)
	}
	recovered := make(chan struct{}, 2)
	x.start("a", cfg, func(d *Deps) { d.Unclean, d.Recovered = true, func() { recovered <- struct{}{} } })
	bustest.Until(t, 20*time.Second, func() error {
		if n := len(x.raws()); n != 60 {
			return fmt.Errorf("%d records, want the 40 events and the last 20 once more", n)
		}
		return nil
	})
	select {
	case <-recovered:
	case <-time.After(10 * time.Second):
		t.Error("nobody was told that all sources have gone on")
	}
}

// A configuration that has a source no more removes it, and its lane ends; added again it begins anew.
func TestRemovedSourceEndsItsLane(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	other := simulate(t, oktasim.Config{Seed: 99})
	cfg := x.config(rolePoller)
	if err := x.org.Burst(20); err != nil {
		t.Fatal(err)
	}
	in := x.start("a", cfg)
	bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
	in.stop(t)
	next := x.config(rolePoller)
	next.Sources[0].ID, next.Sources[0].OrgURL = "other", other.URL()
	in = x.start("a", next)
	bustest.Until(t, 20*time.Second, func() error {
		for _, c := range decodeAll[record.Cursor](x, topics.Cursors) {
			if c.SourceID == "acme" && c.Ended {
				return nil
			}
		}
		return errors.New("the lane has not ended")
	})
	in.stop(t)
	x.start("a", cfg)
	bustest.Until(t, 20*time.Second, func() error {
		if n := len(x.raws()); n < 40 {
			return fmt.Errorf("%d records, want the 20 events once more", n)
		}
		return nil
	})
}

func TestOneOrgOneSource(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	cfg := x.config(rolePoller)
	alias := *mustURL(t, x.org.URL())
	alias.Host = "localhost:" + alias.Port()
	cfg.Sources = append(cfg.Sources, cfg.Sources[0])
	cfg.Sources[1].ID, cfg.Sources[1].OrgURL = "twin", alias.String()
	if err := x.org.Burst(20); err != nil {
		t.Fatal(err)
	}
	in := x.start("a", cfg)
	bustest.Until(t, 20*time.Second, func() error {
		if err := in.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "an org has one source") {
			return fmt.Errorf("readiness says %v", err) //nolint:errorlint // may be nil
		}
		return nil
	})
	sources := map[string]int{}
	for _, r := range x.raws() {
		sources[r.SourceID]++
	}
	if len(sources) > 1 {
		t.Errorf("both poll: %v", sources)
	}
	if _, err := New(Config{Sources: []SourceConfig{cfg.Sources[0], {ID: "b", OrgURL: cfg.Sources[0].OrgURL, TokenEnv: "X"}}}, Deps{Bus: in.bus}); err == nil || !strings.Contains(err.Error(), "one org") {
		t.Errorf("two sources with one address: %v", err)
	}
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// One process of each role: hook and poller bring the same events, the hook's marked partial.
func TestOneProcessOfEachRole(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	x.start("hook-0", x.config(roleHook))
	x.endpoint()
	p := x.config(rolePoller)
	x.start("poll-0", p)
	bustest.Until(t, 15*time.Second, func() error {
		if n := len(x.hooks()); n != 1 {
			return fmt.Errorf("%d hooks", n)
		}
		if x.hooks()[0]["verificationStatus"] != "VERIFIED" {
			return errors.New("not verified")
		}
		return nil
	})
	if err := x.org.Burst(200); err != nil {
		t.Fatal(err)
	}
	bustest.Until(t, 30*time.Second, func() error {
		s := x.org.Truth().Summary()
		if s.Hook["acked"] == 0 || s.Hook["queued"] > 0 {
			return fmt.Errorf("deliveries %v", s.Hook)
		}
		return x.complete(wayPoller, 1)
	})
	ways := map[string]int{}
	for _, r := range x.raws() {
		if r.Partial != (r.Source == wayHook) {
			t.Fatalf("%s copy, partial %v", r.Source, r.Partial)
		}
		ways[r.Source]++
	}
	if ways[wayHook] == 0 || ways[wayPoller] == 0 {
		t.Errorf("ways %v", ways)
	}
}
