package svc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type hookSection struct {
	Listen string   `yaml:"listen"`
	Path   string   `yaml:"path"`
	Secret string   `yaml:"secret"`
	Files  []string `yaml:"secret_files"`
}

type sourceSection struct {
	ID       string        `yaml:"id"`
	Interval time.Duration `yaml:"interval"`
}

type ingestSection struct {
	Roles   []string                 `yaml:"roles"`
	Hook    hookSection              `yaml:"hook"`
	Sources []sourceSection          `yaml:"sources"`
	Limits  map[string]int           `yaml:"limits"`
	By      map[string]sourceSection `yaml:"by"`
	Wait    time.Duration            `yaml:"wait"`
	On      bool                     `yaml:"on"`
	Ptr     *hookSection             `yaml:"ptr"`
}

type whole struct {
	Common `yaml:",inline"`
	Ingest ingestSection `yaml:"ingest"`
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const good = `
instance_id: one
log: {level: warn}
registry: {url: http://r:8081/apis/ccompat/v7}
ingest:
  roles: [hook]
  wait: 3s
  hook: {listen: ":1", secret: hush}
  sources:
    - {id: a, interval: 2s}
`

func TestLoad(t *testing.T) {
	var c whole
	c.Ingest.On = true
	err := Load(write(t, good), []string{
		"OKTAWATCH_INGEST__ROLES=poller, hook", "OKTAWATCH_INGEST__SOURCES__0__ID=b", "OKTAWATCH_INGEST__SOURCES__1__INTERVAL=7s",
		"OKTAWATCH_INGEST__LIMITS__X=4", "OKTAWATCH_DATA_DIR=/x", "OKTAWATCH_TOPICS__PREFIX=dev.", "OTHER=1", "OKTAWATCH_INGEST_SERVICE_HOST=10.0.0.1",
		"OKTAWATCH_INGEST__HOOK__SECRET_FILE=" + write(t, "from a file\n"),
	}, []string{"ingest.wait=1m", "log.level=debug", "ingest.by.k.id=z", "ingest.ptr.path=/p", "instance_id=two"}, &c)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%v %v %v %v %v %v %v %v %v %v %v %v %v", c.InstanceID, c.Common.Log.Level, c.Registry.URL, c.Topics.Prefix, c.Ingest.Roles,
		c.Ingest.Wait, c.Ingest.Hook.Listen, c.Ingest.Hook.Secret, c.Ingest.Sources, c.Ingest.Limits, c.Ingest.By["k"].ID, c.Ingest.On, c.Ingest.Ptr.Path)
	want := "two debug http://r:8081/apis/ccompat/v7 dev. [poller hook] 1m0s :1 from a file [{b 2s} { 7s}] map[x:4] z true /p"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestLoadEmpty(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "ingest:\n  # nothing\n", "---\n"} {
		var c whole
		if err := Load(write(t, text), nil, nil, &c); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestLoadFallbacks(t *testing.T) {
	var c whole
	if err := Load("", []string{"SCHEMA_REGISTRY_URL=http://s"}, nil, &c); err != nil {
		t.Fatal(err)
	}
	host, _ := os.Hostname()
	if c.Registry.URL != "http://s" || c.InstanceID != host {
		t.Errorf("registry %q, instance %q", c.Registry.URL, c.InstanceID)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		yaml     string
		env, set string
		want     string
	}{
		"unknown key":           {yaml: "ingest:\n  hook:\n    listn: x\n", want: ":3:5: unknown key ingest.hook.listn; did you mean ingest.hook.listen?"},
		"unknown section":       {yaml: "injest: {}\n", want: ":1:1: unknown key injest; did you mean ingest?"},
		"unknown in a list":     {yaml: "ingest:\n  sources:\n  - {id: a}\n  - {idd: a}\n", want: ":4:6: unknown key ingest.sources.1.idd; did you mean ingest.sources.1.id?"},
		"unknown, nothing near": {yaml: "log: {zzzzzzzzz: x}\n", want: "unknown key log.zzzzzzzzz; known here: format, level"},
		"two at once":           {yaml: "a1: 1\nb1: 2\n", want: ":2:1: unknown key b1"},
		"twice the same key":    {yaml: "log: {}\nlog: {}\n", want: ":2:1:"},
		"no yaml":               {yaml: "log: [\n", want: "c.yaml:"},
		"wrong type":            {yaml: "ingest:\n  wait: soon\n", want: ":2:9:"},
		"env unknown":           {env: "OKTAWATCH_INGEST__HOK__PATH=x", want: "environment OKTAWATCH_INGEST__HOK__PATH: unknown key ingest.hok; did you mean ingest.hook?"},
		"env list index":        {env: "OKTAWATCH_INGEST__SOURCES__X__ID=x", want: `"x" is no index`},
		"env huge index":        {env: "OKTAWATCH_INGEST__SOURCES__100000000__ID=x", want: "is no index"},
		"set without value":     {set: "ingest.wait", want: "want section.key=value"},
		"set bad duration":      {set: "ingest.wait=soon", want: `--set ingest.wait: "soon" is no duration`},
		"set below a scalar":    {set: "ingest.wait.x=1", want: "ingest.wait cannot be set"},
	} {
		t.Run(name, func(t *testing.T) {
			path := ""
			if tc.yaml != "" {
				path = write(t, tc.yaml)
			}
			var sets []string
			if tc.set != "" {
				sets = []string{tc.set}
			}
			var c whole
			err := Load(path, []string{tc.env}, sets, &c)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want one with %q", err, tc.want)
			}
			if Exit(err) != ExitConfig {
				t.Errorf("exit code %d, want %d", Exit(err), ExitConfig)
			}
		})
	}
	if err := Load("/nowhere.yaml", nil, nil, &whole{}); Exit(err) != ExitConfig {
		t.Errorf("missing file: %v", err)
	}
}

func TestRedacted(t *testing.T) {
	type sink struct {
		URL      string            `yaml:"url" secret:"true"`
		Plain    string            `yaml:"plain"`
		Password string            `yaml:"password"`
		File     string            `yaml:"password_file"`
		Env      string            `yaml:"token_env"`
		Headers  map[string]string `yaml:"headers"`
		Empty    string            `yaml:"api_token"`
		Wait     time.Duration     `yaml:"wait"`
	}
	b, err := Redacted(struct {
		S []sink `yaml:"s"`
	}{[]sink{{URL: "https://hooks/AAA", Plain: "http://u:BBB@h/", Password: "CCC", File: "/run/x", Env: "TOK", Headers: map[string]string{"x_api_key": "DDD"}, Wait: time.Minute}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"AAA", "BBB", "CCC", "DDD"} {
		if strings.Contains(string(b), secret) {
			t.Errorf("%s is shown:\n%s", secret, b)
		}
	}
	for _, shown := range []string{"/run/x", "TOK", "1m0s", `api_token: ""`} {
		if !strings.Contains(string(b), shown) {
			t.Errorf("%s is missing:\n%s", shown, b)
		}
	}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }

func (b *buffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

type started struct {
	out, err buffer
	signals  chan os.Signal
	code     chan int
}

func start(t *testing.T, environ []string, run func(context.Context, *Process) error, args ...string) *started {
	t.Helper()
	s := &started{signals: make(chan os.Signal, 2), code: make(chan int, 1)}
	m := program{name: "ingest", args: args, environ: environ, stdout: &s.out, stderr: &s.err, signals: s.signals}
	go func() { s.code <- m.main(context.Background(), run) }()
	return s
}

func (s *started) wait(t *testing.T, want int) {
	t.Helper()
	select {
	case got := <-s.code:
		if got != want {
			t.Fatalf("exit code %d, want %d; stderr:\n%s", got, want, s.err.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("still running; stderr:\n%s", s.err.String())
	}
}

// adminAddr waits for the line that says where the admin port is.
func (s *started) adminAddr(t *testing.T) string {
	t.Helper()
	for range 500 {
		for line := range strings.Lines(s.err.String()) {
			var l struct{ Msg, Admin string }
			if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "started" {
				return l.Admin
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no start line:\n%s", s.err.String())
	return ""
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // nothing left over for goleak
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

const freePort = "admin.listen=127.0.0.1:0"

func TestProcess(t *testing.T) {
	var cfg ingestSection
	var mu sync.Mutex
	sick := errors.New("no\nhook")
	s := start(t, nil, func(ctx context.Context, p *Process) error {
		if err := p.Config(&cfg); err != nil {
			return err
		}
		p.Ready("hook", func(context.Context) error { mu.Lock(); defer mu.Unlock(); return sick })
		p.Metrics.Counter("oktawatch_test_total", "Test.").Inc()
		<-ctx.Done()
		return ctx.Err()
	}, "--config", write(t, good), "--set", freePort, "--set", "log.level=info", "--set", "kafka.brokers=127.0.0.1:1", "--set", "registry.url=http://127.0.0.1:1")
	addr := "http://" + s.adminAddr(t)
	if code, body := get(t, addr+"/livez"); code != 200 {
		t.Errorf("livez %d %s", code, body)
	}
	for range 200 { // run registers its check on its own time
		if code, _ := get(t, addr+"/readyz"); code == 503 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if code, body := get(t, addr+"/readyz?verbose"); code != 503 || !strings.Contains(body, "[-] hook: no hook\n") {
		t.Errorf("readyz %d %s", code, body)
	}
	if code, body := get(t, addr+"/metrics"); code != 200 || !strings.Contains(body, "oktawatch_test_total 1") {
		t.Errorf("metrics %d %s", code, body)
	}
	if code, body := get(t, addr+"/version"); code != 200 || !strings.Contains(body, `"service":"ingest"`) {
		t.Errorf("version %d %s", code, body)
	}
	if code, _ := get(t, addr+"/debug/pprof/cmdline"); code != 200 {
		t.Errorf("pprof from loopback %d", code)
	}
	var out buffer
	m := program{name: "ingest", args: []string{"healthcheck", "--set", "admin.listen=" + strings.TrimPrefix(addr, "http://")}, stdout: &out, stderr: &out}
	if code := m.main(t.Context(), nil); code != ExitRuntime || !strings.Contains(out.String(), "[-] hook: no hook") {
		t.Errorf("healthcheck %d %s", code, out.String())
	}
	mu.Lock()
	sick = nil
	mu.Unlock()
	m.main(t.Context(), nil)
	for _, want := range []string{"[+] hook\n", "[-] kafka: reach kafka at 127.0.0.1:1: ", "nobody answers there", "[-] schemas: look up schema"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("healthcheck lacks %q:\n%s", want, out.String())
		}
	}
	s.signals <- syscall.SIGTERM
	s.wait(t, ExitOK)
	if cfg.Wait != 3*time.Second {
		t.Errorf("config %+v", cfg)
	}
}

func TestExitCodes(t *testing.T) {
	cfgRun := func(ctx context.Context, p *Process) error {
		var cfg ingestSection
		return p.Config(&cfg)
	}
	for name, tc := range map[string]struct {
		run    func(context.Context, *Process) error
		args   []string
		code   int
		stderr string
	}{
		"ends by itself":     {run: cfgRun, args: []string{"--set", freePort}, code: ExitOK},
		"run fails":          {run: func(context.Context, *Process) error { return errors.New("disk full: free some") }, args: []string{"--set", freePort}, code: ExitRuntime, stderr: `"error":"disk full: free some"`},
		"bad config of own":  {run: func(context.Context, *Process) error { return BadConfig(errors.New("ingest.x: no")) }, args: []string{"--set", freePort}, code: ExitConfig, stderr: "ingest: ingest.x: no\n"},
		"unknown flag":       {args: []string{"--nope"}, code: ExitConfig, stderr: "flag provided but not defined: -nope"},
		"unknown command":    {args: []string{"dance"}, code: ExitConfig, stderr: `unknown command "dance"`},
		"unknown own key":    {run: cfgRun, args: []string{"--set", freePort, "--set", "ingest.hok=1"}, code: ExitConfig, stderr: "did you mean ingest.hook?"},
		"unknown common key": {run: cfgRun, args: []string{"--set", "admn.listen=x"}, code: ExitConfig, stderr: "did you mean admin?"},
		"bad log level":      {run: cfgRun, args: []string{"--set", "log.level=loud"}, code: ExitConfig, stderr: "want debug, info, warn or error"},
		"bad admin address":  {run: cfgRun, args: []string{"--set", "admin.listen=nowhere"}, code: ExitConfig, stderr: "listen on admin.listen nowhere"},
		"version":            {args: []string{"--version"}, code: ExitOK},
		"help":               {args: []string{"--help"}, code: ExitOK},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil, tc.run, tc.args...)
			s.wait(t, tc.code)
			if !strings.Contains(s.err.String(), tc.stderr) {
				t.Errorf("stderr %q, want %q in it", s.err.String(), tc.stderr)
			}
		})
	}
}

func TestAdminAddressInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := start(t, nil, nil, "--set", "admin.listen="+ln.Addr().String())
	s.wait(t, ExitRuntime)
	if !strings.Contains(s.err.String(), "the address is in use") {
		t.Errorf("stderr %q", s.err.String())
	}
}

func TestConfigPrint(t *testing.T) {
	s := start(t, []string{"OKTAWATCH_INGEST__ON=true"}, func(ctx context.Context, p *Process) error {
		var cfg ingestSection
		if err := p.Config(&cfg); err != nil {
			return err
		}
		t.Error("config print went on to run")
		return nil
	}, "config", "print", "--config", write(t, good))
	s.wait(t, ExitOK)
	for _, want := range []string{"instance_id: one", `"on": true`, `secret: "***"`, "  level: warn"} {
		if !strings.Contains(s.out.String(), want) {
			t.Errorf("%q is missing:\n%s", want, s.out.String())
		}
	}
	if strings.Contains(s.out.String(), "hush") {
		t.Errorf("secret shown:\n%s", s.out.String())
	}
	// What is printed can be read again, but for the secrets.
	var c whole
	if err := Load(write(t, s.out.String()), nil, nil, &c); err != nil {
		t.Error(err)
	}
}

// named is a section that takes a name from the environment.
type named struct {
	Name string `yaml:"name"`
}

func (n *named) FromEnv(getenv func(string) string) { n.Name += getenv("THEIR_NAME") }

func TestConfigPrintShowsTheEnvironment(t *testing.T) {
	s := start(t, []string{"THEIR_NAME=acme"}, func(_ context.Context, p *Process) error { return p.Config(new(named)) },
		"config", "print", "--set", "ingest.name=our ")
	s.wait(t, ExitOK)
	if !strings.Contains(s.out.String(), "name: our acme\n") {
		t.Errorf("the name is missing:\n%s", s.out.String())
	}
}

func TestSecondSignal(t *testing.T) {
	never := make(chan struct{})
	defer close(never)
	s := start(t, nil, func(context.Context, *Process) error { <-never; return nil }, "--set", freePort)
	s.adminAddr(t)
	s.signals <- syscall.SIGTERM
	s.signals <- syscall.SIGTERM // with the first
	time.Sleep(SameSignal + 100*time.Millisecond)
	if strings.Contains(s.err.String(), "second signal") {
		t.Error("two signals at once were taken for two")
	}
	s.signals <- syscall.SIGTERM
	s.wait(t, ExitRuntime)
	if !strings.Contains(s.err.String(), "second signal") {
		t.Errorf("stderr %q", s.err.String())
	}
}

func ExampleLoad() {
	type detect struct {
		RulesDir string        `yaml:"rules_dir"`
		Lateness time.Duration `yaml:"lateness"`
	}
	cfg := struct {
		Detect detect `yaml:"detect"`
	}{Detect: detect{Lateness: 10 * time.Minute}}
	err := Load("", []string{"OKTAWATCH_DETECT__RULES_DIR=/etc/rules"}, []string{"detect.lateness=5m"}, &cfg)
	fmt.Println(cfg.Detect.RulesDir, cfg.Detect.Lateness, err)
	err = Load("", nil, []string{"detect.rule_dir=x"}, &cfg)
	fmt.Println(err)
	// Output:
	// /etc/rules 5m0s <nil>
	// --set detect.rule_dir: unknown key detect.rule_dir; did you mean detect.rules_dir?
}
