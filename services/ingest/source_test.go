package ingest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/eventtype"
	"github.com/oktawatch/oktawatch/pkg/record"
)

func TestOrgURL(t *testing.T) {
	for _, tc := range []struct {
		in     string
		custom bool
		want   string // empty: refused
		test   bool
		err    string
	}{
		{in: "https://acme.okta.com", want: "https://acme.okta.com"},
		{in: "https://ACME.okta.com/", want: "https://acme.okta.com"},
		{in: " https://trial-1234567.okta.com ", want: "https://trial-1234567.okta.com"},
		{in: "https://acme.oktapreview.com", want: "https://acme.oktapreview.com"},
		{in: "https://acme.okta-emea.com", want: "https://acme.okta-emea.com"},
		{in: "https://acme.okta-gov.com", want: "https://acme.okta-gov.com"},
		{in: "https://acme.okta.mil", want: "https://acme.okta.mil"},
		{in: "https://login.acme.com", custom: true, want: "https://login.acme.com"},
		{in: "http://127.0.0.1:7070", want: "http://127.0.0.1:7070", test: true},
		{in: "https://localhost:7070/", want: "https://localhost:7070", test: true},
		{in: "http://[::1]:80", want: "http://[::1]:80", test: true},

		{in: "https://login.acme.com", err: "custom_domain"},
		{in: "https://this-is-not-okta.com", err: "custom_domain"},
		{in: "https://acme.okta.com.evil.org", err: "custom_domain"},
		{in: "http://acme.okta.com", err: "only https"},
		{in: "http://sim:8080", err: "only https"},
		{in: "https://okta.com", err: "names no org"},
		{in: "https://acme-admin.okta.com", err: "the org is https://acme.okta.com"},
		{in: "https://acme.okta.com:443", err: "no port"},
		{in: "https://acme.okta.com:", err: "no port"},
		{in: "https://acme.okta.com/oauth2", err: "without path"},
		{in: "https://acme.okta.com?x=1", err: "without path"},
		{in: "https://user:hush@acme.okta.com", err: "user or a password"},
		{in: "https://10.0.0.1", custom: true, err: "in numbers"},
		{in: "https://[2001:db8::1]", custom: true, err: "in numbers"},
		{in: "https://169.254.169.254", custom: true, err: "in numbers"},
		{in: "https://okta", custom: true, err: "not a public host"},
		{in: "https://okta.internal", custom: true, err: "not a public host"},
		{in: "https://acme..com", custom: true, err: "not a public host"},
		{in: "https://ac_me.example.com", custom: true, err: "not a host name"},
		{in: "ftp://acme.okta.com", err: "want https"},
		{in: "acme.okta.com", err: "want https"},
		{in: "", err: "want https"},
		{in: "http://[::1", err: "not an address"},
	} {
		u, test, err := checkOrgURL(tc.in, tc.custom)
		switch {
		case tc.want != "" && (err != nil || u.String() != tc.want || test != tc.test):
			t.Errorf("%q: %v, test %v, %v", tc.in, u, test, err)
		case tc.want == "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%q: %v, %v; want an error with %q", tc.in, u, err, tc.err)
		case err != nil && strings.Contains(err.Error(), "hush"):
			t.Errorf("%q: the error shows the password", tc.in)
		}
	}
}

func testBus(t *testing.T) *bus.Bus {
	t.Helper()
	b, err := bus.New(bus.Config{Brokers: []string{"127.0.0.1:1"}}, bus.Deps{InstanceID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func TestConfigRefused(t *testing.T) {
	src := func(change func(*SourceConfig)) Config {
		s := SourceConfig{ID: "a", OrgURL: "https://acme.okta.com", TokenEnv: "T"}
		change(&s)
		return Config{Sources: []SourceConfig{s}}
	}
	hook := func(h HookConfig) Config {
		return Config{Sources: []SourceConfig{{ID: "a", OrgURL: "https://acme.okta.com", TokenEnv: "T"}}, Hook: h}
	}
	good := []string{"/x"}
	for name, tc := range map[string]struct {
		cfg Config
		err string
	}{
		"role":             {Config{Roles: []string{"sweep"}}, `"sweep" is no role`},
		"id":               {src(func(s *SourceConfig) { s.ID = "A/b" }), "lower-case"},
		"no token":         {src(func(s *SourceConfig) { s.TokenEnv = "" }), "neither token_file nor token_env"},
		"two tokens":       {src(func(s *SourceConfig) { s.TokenFile = "/t" }), "exclude each other"},
		"limit":            {src(func(s *SourceConfig) { s.Poll.Limit = 1001 }), "poll.limit"},
		"share":            {src(func(s *SourceConfig) { s.Poll.RateShare = 2 }), "poll.rate_share"},
		"since":            {src(func(s *SourceConfig) { s.Poll.Since = "yesterday" }), "poll.since"},
		"interval":         {src(func(s *SourceConfig) { s.Poll.Interval = -time.Second }), "not negative"},
		"url":              {src(func(s *SourceConfig) { s.OrgURL = "http://acme.okta.com" }), "ingest.sources.0: org_url"},
		"hook http":        {hook(HookConfig{PublicURL: "http://hooks.acme.com", SecretFiles: good}), "https only"},
		"hook no address":  {hook(HookConfig{PublicURL: "hooks.acme.com", SecretFiles: good}), "want https://host"},
		"hook no secret":   {hook(HookConfig{PublicURL: "https://hooks.acme.com"}), "secret_files is empty"},
		"hook secrets":     {hook(HookConfig{PublicURL: "https://hooks.acme.com", SecretFiles: []string{"1", "2", "3"}}), "at most two"},
		"hook event types": {hook(HookConfig{PublicURL: "https://hooks.acme.com", SecretFiles: good, EventTypes: []string{"policy.evaluate_sign_on"}}), "not an event type"},
		"hook tls":         {hook(HookConfig{PublicURL: "https://hooks.acme.com", SecretFiles: good, TLSCertFile: "c"}), "go together"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(tc.cfg, Deps{Bus: testBus(t)}); err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want one with %q", err, tc.err)
			}
		})
	}
	if _, err := New(Config{}, Deps{Bus: testBus(t)}); err != nil {
		t.Errorf("the zero value: %v", err)
	}
}

func TestFromEnv(t *testing.T) {
	env := map[string]string{"OKTA_ORG_URL": "https://acme.okta.com", "OKTA_API_TOKEN": "t"}
	var c Config
	c.FromEnv(func(k string) string { return env[k] })
	if len(c.Sources) != 1 || c.Sources[0].ID != "okta" || c.Sources[0].TokenEnv != "OKTA_API_TOKEN" {
		t.Errorf("%+v", c.Sources)
	}
	env["OKTA_API_TOKEN_FILE"] = "/run/token"
	c.FromEnv(func(k string) string { return env[k] })
	if c.Sources[0].TokenFile != "" {
		t.Error("configured sources were changed")
	}
	c = Config{}
	c.FromEnv(func(k string) string { return env[k] })
	if c.Sources[0].TokenFile != "/run/token" || c.Sources[0].TokenEnv != "" {
		t.Errorf("%+v", c.Sources)
	}
}

func TestSecretReferences(t *testing.T) {
	dir := t.TempDir()
	put := func(path, text string) string {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	own := put("own", "one\r\n")
	below := put("secrets/acme/token", " two \n")
	outside := put("outside", "three")
	empty, lines := put("secrets/empty", "\n"), put("secrets/lines", "a\nb\n")
	link := filepath.Join(dir, "secrets", "link")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	s := secrets{own: map[string]bool{"file:" + own: true, "env:MINE": true, "env:NONE": true}, dir: filepath.Join(dir, "secrets"), getenv: func(k string) string {
		return map[string]string{"MINE": "four", "OTHER": "five"}[k]
	}}
	for ref, want := range map[string]string{
		"file:" + own: "one", "file:" + below: "two", "env:MINE": "four",
		"env:OTHER": "", "env:NONE": "", "file:" + outside: "", "file:" + link: "", "file:" + empty: "", "file:" + lines: "",
		"file:" + dir + "/secrets/../outside": "", "file:/etc/hostname": "", "vault:x": "", "": "",
	} {
		got, err := s.read(ref)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", ref, got, err)
		}
		if err != nil && (strings.Contains(err.Error(), "three") || strings.Contains(err.Error(), "five")) {
			t.Errorf("%s: the error shows a secret: %v", ref, err)
		}
	}
	if _, err := (secrets{getenv: os.Getenv}).read("file:" + below); err == nil {
		t.Error("a file was read without secrets_dir")
	}
}

// A record of the topic gets no more than the configuration gives.
func TestSourceFromTheTopicIsNotTrusted(t *testing.T) {
	s, err := New(Config{Sources: []SourceConfig{{ID: "mine", OrgURL: "http://127.0.0.1:1", TokenEnv: "T"}}}, Deps{Bus: testBus(t)})
	if err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"http://127.0.0.1:2": "own configuration", "http://169.254.169.254": "only https", "https://login.acme.com": "custom_domain",
	} {
		if _, err := s.newSource(t.Context(), &record.Source{ID: "theirs", URL: url}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, addr := range []string{"10.0.0.1:443", "127.0.0.1:443", "[::1]:443", "169.254.1.1:443", "100.64.0.1:443", "[fd00::1]:443", "[::ffff:10.0.0.1]:443", "0.0.0.0:443", "nonsense"} {
		if publicOnly(addr) == nil {
			t.Errorf("%s would be connected to", addr)
		}
	}
	if err := publicOnly("93.184.216.34:443"); err != nil {
		t.Error(err)
	}
}

func TestHookTypesAreOktas(t *testing.T) {
	types := eligibleTypes()
	if len(types) < 200 || len(types) > maxHookTypes {
		t.Errorf("%d event types; Okta takes at most %d for one hook", len(types), maxHookTypes)
	}
	// A type added to the list belongs here too.
	var want []string
	for _, t := range eventtype.All() {
		if t.HookEligible {
			want = append(want, t.Name)
		}
	}
	if strings.Join(types, " ") != strings.Join(want, " ") {
		t.Error("hook_types.txt does not hold the hook-eligible types of pkg/eventtype in order")
	}
}
