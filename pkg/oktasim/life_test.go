package oktasim_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/oktasim/simtest"
)

// trips says which catalogue rule an event trips, as its conditions are worded there.
func trips(raw []byte) string {
	var e struct {
		EventType, DisplayMessage string
		Outcome                   *struct{ Result, Reason string }
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return "no JSON: " + err.Error()
	}
	reason, result := "", ""
	if e.Outcome != nil {
		reason, result = e.Outcome.Reason, e.Outcome.Result
	}
	switch e.EventType {
	case "user.account.report_suspicious_activity_by_enduser":
		return "user-reported-suspicious-activity"
	case "user.account.lock", "user.account.lock.limit":
		return "account-locked"
	case "user.account.privilege.grant":
		return "admin-role-granted-to-user"
	case "system.api_token.create":
		return "api-token-created"
	case "system.org.rate_limit.violation", "system.client.rate_limit.violation", "system.operation.rate_limit.violation", "core.concurrency.org.limit.violation":
		return "rate-limit-violation"
	case "user.account.reset_password":
		return "password-reset"
	case "user.lifecycle.suspend":
		return "user-suspended"
	case "user.mfa.factor.deactivate":
		if !strings.HasPrefix(reason, "User reset") {
			return "mfa-factor-disabled"
		}
	case "user.mfa.factor.reset_all":
		return "mfa-all-factors-reset"
	case "user.authentication.auth_via_mfa":
		if result == "FAILURE" && reason == "FastPass declined phishing attempt" {
			return "fastpass-phishing-declined"
		}
	case "security.session.detect_client_roaming":
		return "session-client-roaming-denied"
	case "user.session.start":
		return "user-login"
	}
	return ""
}

func TestScenariosTripWhatTheySay(t *testing.T) {
	all := map[string]bool{}
	for _, sc := range oktasim.Scenarios() {
		t.Run(sc.Name, func(t *testing.T) {
			s := newStill(t, oktasim.Config{})
			seqs, err := s.Play(t.Context(), sc.Name, 0)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]bool{}
			for _, q := range seqs {
				raw, ok := s.Truth().Raw(q)
				if !ok {
					t.Fatal("not in the truth")
				}
				if r := trips(raw); r != "" {
					got[r], all[r] = true, true
				}
			}
			var rules []string
			for r := range got {
				rules = append(rules, r)
			}
			slices.Sort(rules)
			want := slices.Sorted(slices.Values(sc.Rules))
			if !slices.Equal(rules, want) {
				t.Errorf("trips %v, says %v", rules, want)
			}
			if sc.Doc == "" || len(sc.Steps) == 0 {
				t.Error("does not describe itself")
			}
		})
	}
	if len(all) != 12 {
		t.Errorf("the scenarios trip %d rules of twelve: %v", len(all), all)
	}
	if _, err := newStill(t, oktasim.Config{}).Play(t.Context(), "nothing", 0); err == nil || !strings.Contains(err.Error(), "helpdesk-takeover") {
		t.Errorf("unknown scenario: %v", err)
	}
}

func TestSmallestOrg(t *testing.T) {
	s := newStill(t, oktasim.Config{Users: 1})
	if err := s.Burst(1000); err != nil {
		t.Fatal(err)
	}
	for _, sc := range oktasim.Scenarios() {
		if _, err := s.Play(t.Context(), sc.Name, 0); err != nil {
			t.Error(err)
		}
	}
}

func TestOrdinaryTrafficTripsNothingButLogins(t *testing.T) {
	s := newStill(t, oktasim.Config{})
	if err := s.Burst(5_000); err != nil {
		t.Fatal(err)
	}
	for e := range s.Truth().Events(oktasim.Query{}) {
		raw, _ := s.Truth().Raw(e.Seq)
		if r := trips(raw); r != "" && r != "user-login" {
			t.Fatalf("%s trips %s", raw, r)
		}
	}
}

func TestSameSeedAndClockGiveTheSameEvents(t *testing.T) {
	page := func(seed uint64) string {
		s := newStill(t, oktasim.Config{Seed: seed, Limits: unlimited})
		if err := s.Burst(300); err != nil {
			t.Fatal(err)
		}
		return string(s.get("/api/v1/logs?limit=1000").body)
	}
	if a, b := page(7), page(7); a != b {
		t.Error("two orgs of one seed differ")
	}
	if page(7) == page(8) {
		t.Error("two seeds give the same")
	}
}

func TestRateInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		org, err := oktasim.New(oktasim.Config{Listen: "none", Rate: 5, ScenarioEvery: 10 * time.Minute, ScenarioPace: 1, LateShare: 0.1, LateBy: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- org.Run(ctx) }()
		time.Sleep(time.Hour)
		s := org.Truth().Summary()
		if n := s.Emitted; n < 17_900 || n > 18_300 {
			t.Errorf("%d events in an hour at 5/s", n)
		}
		if s.Late < 1600 || s.Late > 2000 || s.Waiting == 0 || s.Waiting > 60 {
			t.Errorf("%d late, %d waiting", s.Late, s.Waiting)
		}
		names := map[string]bool{}
		for e := range org.Truth().Events(oktasim.Query{Scenario: "*"}) {
			names[e.Scenario] = true
		}
		if len(names) < 4 {
			t.Errorf("scenarios played: %v", names)
		}
		org.Pause(true)
		time.Sleep(20 * time.Minute) // what had begun ends
		n := org.Truth().Summary().Emitted
		time.Sleep(time.Hour)
		if m := org.Truth().Summary().Emitted; m != n {
			t.Errorf("%d events while paused", m-n)
		}
		org.Pause(false)
		org.SetRate(1)
		time.Sleep(10 * time.Minute)
		if m := org.Truth().Summary().Emitted - n; m < 590 || m > 700 {
			t.Errorf("%d events in ten minutes at 1/s", m)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Run begins again on its directory: an old next link reads on, nothing comes twice, no uuid is used again.
func TestRestartGoesOn(t *testing.T) {
	dir := t.TempDir()
	seen := map[string]bool{}
	next := ""
	for round := range 3 {
		func() {
			org, err := oktasim.New(oktasim.Config{DataDir: dir, Limits: unlimited, Client: &http.Client{Transport: transport}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- org.Run(ctx) }()
			<-org.Ready()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			if round == 0 {
				makeHook(t, org.URL(), "kept", newReceiver(t).URL, "user.session.start")
			} else if a := get(t, org.URL()+"/api/v1/eventHooks"); !strings.Contains(string(a.body), `"kept"`) || !strings.Contains(string(a.body), `"VERIFIED"`) {
				t.Errorf("the hook is gone: %s", a.body)
			}
			// Unread ones from before the restart come too.
			if err := org.Burst(100); err != nil {
				t.Fatal(err)
			}
			url := org.URL() + "/api/v1/logs?limit=1000"
			if next != "" {
				url = org.URL() + next[strings.Index(next, "/api/"):]
			}
			a := get(t, url)
			for _, raw := range a.events(t) {
				var e struct{ UUID string }
				if err := json.Unmarshal(raw, &e); err != nil {
					t.Fatal(err)
				}
				if seen[e.UUID] {
					t.Fatalf("round %d: %s again", round, e.UUID)
				}
				seen[e.UUID] = true
			}
			next = a.link("next")
			if err := org.Burst(50); err != nil {
				t.Fatal(err)
			}
			if _, err := org.EmitLate(time.Millisecond, event(fmt.Sprint("late", round), time.Now(), "t.t")); err != nil {
				t.Fatal(err)
			}
			if s := org.Truth().Summary(); s.LastSeq < uint64((round+1)*151) || s.Emitted != int64(s.LastSeq) {
				t.Errorf("round %d: %+v", round, s)
			}
		}()
	}
	if len(seen) < 400 {
		t.Errorf("%d events seen", len(seen))
	}
}

func TestDirectoryIsForOne(t *testing.T) {
	dir := t.TempDir()
	simtest.Start(t, oktasim.Config{DataDir: dir})
	second, err := oktasim.New(oktasim.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Emit([]byte(`{}`)); err == nil {
		t.Error("emitted into a directory that is not open")
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another simulated org runs on it") {
		t.Errorf("second: %v", err)
	}
}

// TestMainProcess is the child of TestKilledOrgKeepsWhatItShowed.
func TestMainProcess(t *testing.T) {
	dir := os.Getenv("OKTASIM_KILL_DIR")
	if dir == "" {
		return // only as a child
	}
	org, err := oktasim.New(oktasim.Config{DataDir: dir, Rate: 2_000, Limits: unlimited, LateShare: 0.05, LateBy: 200 * time.Millisecond, TruthFile: filepath.Join(dir, "truth.jsonl")})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-org.Ready()
		_, _ = os.Stdout.WriteString("\nready " + org.URL() + "\n")
	}()
	if err := org.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// rawUUIDs finds the uuids of a page of generated events without parsing it.
func rawUUIDs(page []byte) (out []string) {
	for _, part := range bytes.Split(page, []byte(`"uuid":"`))[1:] {
		out = append(out, string(part[:36]))
	}
	return out
}

// A SIGKILL under load loses nothing that anybody could have seen, and nothing is numbered twice.
func TestKilledOrgKeepsWhatItShowed(t *testing.T) {
	dir := t.TempDir()
	seen := map[string]bool{}
	next := "/api/v1/logs?limit=1000"
	for round := range 4 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainProcess$")
		cmd.Env = append(os.Environ(), "OKTASIM_KILL_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		base := ""
		for sc := bufio.NewScanner(out); sc.Scan(); {
			if u, ok := strings.CutPrefix(sc.Text(), "ready "); ok {
				base = u
				break
			}
		}
		for fresh := 0; fresh < 1500; {
			a := get(t, base+next)
			page := rawUUIDs(a.body)
			fresh += len(page)
			for _, u := range page {
				if seen[u] {
					t.Fatalf("round %d: %s twice", round, u)
				}
				seen[u] = true
			}
			next = strings.TrimPrefix(a.link("next"), base)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait() // killed
	}
	org := simtest.Start(t, oktasim.Config{DataDir: dir, Limits: unlimited})
	for page := 1000; page == 1000; {
		a := get(t, org.URL()+next)
		us := rawUUIDs(a.body)
		page = len(us)
		for _, u := range us {
			seen[u] = true
		}
		next = strings.TrimPrefix(a.link("next"), org.URL())
	}
	n := 0
	for e := range org.Truth().Events(oktasim.Query{Persisted: true}) {
		n++
		if !seen[e.UUID] {
			t.Fatalf("%d %s was never seen", e.Seq, e.UUID)
		}
		delete(seen, e.UUID)
	}
	if len(seen) != 0 {
		t.Errorf("%d events seen that are not in the truth", len(seen))
	}
	t.Logf("%d events over 4 kills", n)
	// The truth file says the same, but for the last moment before each kill.
	f, err := os.Open(filepath.Join(dir, "truth.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines, bad := 0, 0
	for sc := bufio.NewScanner(f); sc.Scan(); lines++ {
		if !json.Valid(sc.Bytes()) {
			bad++
		}
	}
	if lines < n || bad > 4 {
		t.Errorf("truth file: %d lines for %d events, %d broken", lines, n, bad)
	}
}

func TestMemoryIsARing(t *testing.T) {
	for name, dir := range map[string]string{"memory": "", "disk": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			org := simtest.Start(t, oktasim.Config{MaxEvents: 5000, DataDir: dir, Limits: unlimited})
			if err := org.Burst(40_000); err != nil {
				t.Fatal(err)
			}
			s := org.Truth().Summary()
			if s.Emitted != 40_000 || s.Forgotten != 35_000 {
				t.Errorf("%+v", s)
			}
			n := 0
			for range org.Truth().Events(oktasim.Query{}) {
				n++
			}
			if n != 5000 {
				t.Errorf("%d kept", n)
			}
			if n := len(get(t, org.URL()+"/api/v1/logs?limit=1000").events(t)); n != 1000 {
				t.Errorf("page of %d", n)
			}
			if dir != "" {
				files, _ := filepath.Glob(filepath.Join(dir, "log-*"))
				if len(files) > 2 {
					t.Errorf("%d files", len(files))
				}
			}
		})
	}
}

func TestControl(t *testing.T) {
	org := simtest.Start(t, oktasim.Config{Limits: unlimited})
	base := org.URL()
	post := func(path, body string, status int) answer {
		t.Helper()
		a := do(t, "POST", base+path, "", body)
		if a.status != status {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
		return a
	}
	post("/sim/burst?n=10", "", 200)
	post("/sim/burst?n=x", "", 400)
	var played []oktasim.Emitted
	if err := json.Unmarshal(post("/sim/scenarios/phishing-proxy", "", 200).body, &played); err != nil || len(played) != 3 || played[0].Scenario != "phishing-proxy" {
		t.Errorf("played %v: %v", played, err)
	}
	post("/sim/scenarios/phishing-proxy?pace=1000", "", 202)
	post("/sim/scenarios/none", "", 404)
	eventually(t, "the second performance", func() bool { return org.Truth().Summary().Emitted == 16 })
	post("/sim/faults", `{"kind":"internal","count":1,"for":"1m"}`, 204)
	post("/sim/faults", `{"kind":"nonsense"}`, 400)
	post("/sim/faults", `{"kindd":"internal"}`, 400)
	if a := do(t, "GET", base+"/sim/faults", "", ""); !strings.Contains(string(a.body), `"for":"1m0s"`) {
		t.Errorf("faults: %s", a.body)
	}
	if a := get(t, base+"/api/v1/logs"); a.status != 500 {
		t.Errorf("faulty: %d", a.status)
	}
	post("/sim/faults", `{"kind":"read_only"}`, 204)
	if a := do(t, "DELETE", base+"/sim/faults?kind=read_only", "", ""); a.status != 204 {
		t.Errorf("clear: %d", a.status)
	}
	odd := `{"uuid":5,"broken":` + "\xff" + `}`
	post("/sim/events", odd, 200)
	post("/sim/events?lines", "{}\n{}\n", 200)
	post("/sim/events?base64", "e30=\n", 200)
	post("/sim/events?late=1h", "{}", 200)
	post("/sim/events?oversize=3000000", "", 200)
	post("/sim/events", "", 200)
	a := get(t, base+"/api/v1/logs?limit=1000")
	if !bytes.Contains(a.body, []byte(odd)) || len(a.body) < 3_000_000 {
		t.Error("odd or oversize event is not in the page as it was given")
	}
	count := func(path string) int {
		t.Helper()
		a := do(t, "GET", base+path, "", "")
		if a.status != 200 {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
		return bytes.Count(a.body, []byte("\n"))
	}
	for path, want := range map[string]int{"/sim/truth": 23, "/sim/truth?scenario=*": 6, "/sim/truth?after=20": 3, "/sim/truth?limit=4": 4, "/sim/truth?persisted": 22, "/sim/truth?type=user.account.report_suspicious_activity_by_enduser": 2} {
		if n := count(path); n != want {
			t.Errorf("%s: %d lines, want %d", path, n, want)
		}
	}
	post("/sim/rate?rate=500", "", 204)
	eventually(t, "traffic", func() bool { return org.Truth().Summary().Emitted > 100 })
	post("/sim/pause", "", 204)
	post("/sim/resume", "", 204)
	post("/sim/tokens/revoke", "", 204)
	if a := do(t, "GET", base+"/sim/", "", ""); !strings.Contains(string(a.body), "helpdesk-takeover") || !strings.Contains(string(a.body), "hook_drop") {
		t.Errorf("/sim/: %s", a.body)
	}
}

func TestSlowAndBrokenAnswers(t *testing.T) {
	org := simtest.Start(t, oktasim.Config{Limits: unlimited})
	if err := org.Burst(10); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	ask := func() ([]byte, error) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", org.URL()+"/api/v1/logs", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", ssws)
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		return io.ReadAll(res.Body)
	}
	for _, f := range []oktasim.Fault{{Kind: oktasim.FaultHang}, {Kind: oktasim.FaultLatency, Delay: 10 * time.Second}, {Kind: oktasim.FaultCut}} {
		f.Count = 1
		if err := org.Inject(f); err != nil {
			t.Fatal(err)
		}
		if b, err := ask(); err == nil {
			t.Errorf("%s: %d bytes", f.Kind, len(b))
		}
		if b, err := ask(); err != nil || !json.Valid(b) {
			t.Errorf("after %s: %v", f.Kind, err)
		}
	}
	if err := org.Inject(oktasim.Fault{Kind: oktasim.FaultHTML, Count: 1}); err != nil {
		t.Fatal(err)
	}
	if b, err := ask(); err != nil || !bytes.Contains(b, []byte("<html>")) {
		t.Errorf("html: %s %v", b, err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]oktasim.Config{
		"users":     {Users: -1},
		"rate":      {Rate: -1},
		"late":      {LateShare: 2},
		"engine":    {Engine: "v2"},
		"scenario":  {Scenarios: []string{"none"}},
		"bucket":    {Limits: map[string]int{"log": 1}},
		"client":    {Clients: []oktasim.Client{{}}},
		"key":       {Clients: []oktasim.Client{{ID: "a", PublicKey: "nonsense"}}},
		"share":     {Share: 101},
		"maxevents": {MaxEvents: -1},
	} {
		if _, err := oktasim.New(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestQuietEmitsNothingMore: in the middle of a scenario too.
func TestQuietEmitsNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		org, err := oktasim.New(oktasim.Config{Listen: "none", Rate: 10, ScenarioEvery: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- org.Run(ctx) }()
		time.Sleep(5 * time.Second)
		org.Quiet()
		before := org.Truth().Summary().Emitted
		time.Sleep(10 * time.Minute)
		if after := org.Truth().Summary().Emitted; before == 0 || after != before {
			t.Errorf("%d events before, %d after", before, after)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
