package ingest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// oktaDomains are Okta's own; every other name is a custom domain and has to be said so.
var oktaDomains = []string{
	"okta.com", "oktapreview.com", "okta-emea.com", "okta-gov.com", "okta.mil", "okta-miltest.com", "trex-govcloud.com",
}

// localSuffixes are names that are never public.
var localSuffixes = []string{"localhost", "local", "internal", "intranet", "lan", "home", "corp", "test", "invalid", "example", "arpa"}

// checkOrgURL says what address an org may have: https on a public host; or, for a test org, a loopback address with any scheme and
// port. The check compares on dots: this-is-not-okta.com is no Okta domain.
func checkOrgURL(raw string, customDomain bool) (base *url.URL, test bool, err error) {
	bad := func(format string, a ...any) (*url.URL, bool, error) {
		return nil, false, fmt.Errorf("org_url %q: "+format, append([]any{raw}, a...)...)
	}
	u, err := url.Parse(strings.TrimSuffix(strings.TrimSpace(raw), "/"))
	if err != nil {
		return nil, false, errors.New("org_url: not an address")
	}
	if u.User != nil {
		return nil, false, errors.New("org_url: a user or a password in the address: leave it out")
	}
	host := strings.ToLower(u.Hostname())
	if host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return bad("want https://<your org>.okta.com")
	}
	if u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return bad("want the host alone, without path or query")
	}
	ip := net.ParseIP(host)
	if host == "localhost" || ip != nil && ip.IsLoopback() {
		return &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}, true, nil
	}
	labels := strings.Split(host, ".")
	switch {
	case u.Scheme != "https":
		return bad("only https is used; plain http is for a test org on a loopback address")
	case ip != nil || strings.Contains(host, ":"):
		return bad("an address in numbers is no org's; write the host's name")
	case u.Port() != "" || strings.HasSuffix(u.Host, ":"):
		return bad("no port belongs here")
	case len(labels) < 2 || slices.Contains(labels, ""):
		return bad("not a public host")
	case slices.Contains(localSuffixes, labels[len(labels)-1]):
		return bad("not a public host")
	}
	for _, label := range labels {
		if !hostLabel.MatchString(label) {
			return bad("not a host name")
		}
	}
	for _, d := range oktaDomains {
		if host == d {
			return bad("names no org: want <your org>.%s", d)
		}
		if rest, ok := strings.CutSuffix(host, "."+d); ok {
			first, _, _ := strings.Cut(rest, ".")
			if org, ok := strings.CutSuffix(first, "-admin"); ok {
				return bad("that is the admin console; the org is https://%s.%s", org, d)
			}
			return &url.URL{Scheme: "https", Host: host}, false, nil
		}
	}
	if !customDomain {
		return bad("not one of Okta's domains; if it is your org's custom domain, set custom_domain: true")
	}
	return &url.URL{Scheme: "https", Host: host}, false, nil
}

var (
	hostLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	sourceID  = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$`)
)

// check makes the source one config entry stands for.
func (c SourceConfig) check() (*record.Source, error) {
	if !sourceID.MatchString(c.ID) {
		return nil, fmt.Errorf("id %q: want 1 to 63 lower-case letters, digits, - and _", c.ID)
	}
	base, test, err := checkOrgURL(c.OrgURL, c.CustomDomain)
	if err != nil {
		return nil, err
	}
	s := &record.Source{
		ID: c.ID, Name: c.Name, Org: c.Org, URL: base.String(), TestOrg: test, Paused: c.Paused, Labels: map[string]string{}, UpdatedBy: "config",
		Poll: &record.SourcePoll{Enabled: !c.HookOnly, IntervalMS: c.Poll.Interval.Milliseconds(), Limit: int32(c.Poll.Limit)},
	}
	if c.Poll.Limit < 0 || c.Poll.Limit > maxLimit {
		return nil, fmt.Errorf("poll.limit %d: want 1 to %d", c.Poll.Limit, maxLimit)
	}
	if c.Poll.Interval < 0 || c.Poll.Lookback < 0 {
		return nil, errors.New("poll.interval and poll.lookback are not negative")
	}
	if c.Poll.RateShare < 0 || c.Poll.RateShare > 1 {
		return nil, fmt.Errorf("poll.rate_share %v: want 0 to 1", c.Poll.RateShare)
	}
	if c.Poll.RateShare > 0 {
		share := c.Poll.RateShare
		s.Poll.RateShare = &share
	}
	if c.Poll.Since != "" {
		t, err := time.Parse(time.RFC3339, c.Poll.Since)
		if err != nil {
			return nil, fmt.Errorf("poll.since %q: want a time such as 2026-01-31T00:00:00Z", c.Poll.Since)
		}
		t = t.UTC().Truncate(time.Millisecond)
		s.Poll.Since = &t
	}
	if custom := c.CustomDomain; custom {
		s.Labels[customDomainLabel] = "true"
	}
	switch {
	case c.TokenFile != "" && c.TokenEnv != "":
		return nil, errors.New("token_file and token_env exclude each other")
	case c.TokenFile != "":
		abs, err := filepath.Abs(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("token_file: %w", err)
		}
		s.Auth = &record.SourceAuth{Method: "ssws", TokenRef: "file:" + abs}
	case c.TokenEnv != "":
		s.Auth = &record.SourceAuth{Method: "ssws", TokenRef: "env:" + c.TokenEnv}
	case !c.HookOnly:
		return nil, errors.New("neither token_file nor token_env: name where the API token is, or set hook_only: true")
	}
	return s, nil
}

// TestOrg says whether the source's address is one of a test org.
func (c SourceConfig) TestOrg() bool {
	_, test, err := checkOrgURL(c.OrgURL, c.CustomDomain)
	return err == nil && test
}

const customDomainLabel = "custom_domain"

// sameWanted says whether two sources want the same. What ingest itself adds and who wrote it when does not count.
func sameWanted(a, b *record.Source) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := normal(a), normal(b)
	xb, err1 := x.AppendAvro(nil)
	yb, err2 := y.AppendAvro(nil)
	return err1 == nil && err2 == nil && maps.Equal(a.Labels, b.Labels) && string(xb) == string(yb)
}

func normal(s *record.Source) *record.Source {
	c := *s
	c.Org, c.UpdatedAt, c.UpdatedBy, c.Name = "", time.Time{}, "", ""
	if len(c.Labels) > 1 { // a map's order is no difference
		c.Labels = nil
	}
	return &c
}

// secrets resolves references. References that the configuration itself holds are good; one that came by the topic may name nothing
// but a file below the secrets directory, or whoever can write to the topic could read this machine's files.
type secrets struct {
	own    map[string]bool
	dir    string
	getenv func(string) string
}

func (s secrets) read(ref string) (string, error) {
	kind, name, _ := strings.Cut(ref, ":")
	if !s.own[ref] {
		if s.dir == "" || kind != "file" {
			return "", fmt.Errorf("the reference %q is not in this instance's configuration: add the source there, or set secrets_dir and keep the secret below it", ref)
		}
		rel, err := filepath.Rel(s.dir, filepath.Clean(name))
		if err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return "", fmt.Errorf("the reference %q is not below secrets_dir", ref)
		}
		return readSecret(func() ([]byte, error) {
			root, err := os.OpenRoot(s.dir) // follows no link out of it
			if err != nil {
				return nil, err
			}
			b, err := root.ReadFile(rel)
			return b, errors.Join(err, root.Close())
		})
	}
	if kind == "env" {
		if v := strings.TrimSpace(s.getenv(name)); v != "" {
			return v, nil
		}
		return "", fmt.Errorf("the environment variable %s is empty", name)
	}
	return readSecret(func() ([]byte, error) { return os.ReadFile(name) })
}

func readSecret(read func() ([]byte, error)) (string, error) {
	b, err := read()
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	v := strings.TrimSpace(string(b))
	if v == "" {
		return "", errors.New("read secret: the file is empty")
	}
	for i := range len(v) {
		if v[i] < ' ' || v[i] >= 0x7f {
			return "", errors.New("read secret: the file holds more than one line of plain text")
		}
	}
	return v, nil
}
