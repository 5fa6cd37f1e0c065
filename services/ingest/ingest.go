// Package ingest brings an Okta org's System Log onto okta.raw.v1: by polling, which is complete, and by an event hook, which is fast.
// An event leaves here with exactly the bytes Okta sent, or, above 2 MiB, with its uuid, size and hash. A page of the poller, its
// cursor and the time up to which it is complete stand in one transaction under an id that has one owner; a hook delivery is answered
// 200 only when every event of it is acknowledged. Reading events beyond their uuid and published time is normalize's.
package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/record"
)

// The roles of an instance.
const (
	roleHook   = "hook"
	rolePoller = "poller"
)

// Config is the section ingest of the config file. All instances have the same sources; roles and hook may differ.
type Config struct {
	Roles      []string       `yaml:"roles"`       // empty: hook and poller
	Sources    []SourceConfig `yaml:"sources"`     // empty: those that others wrote to okta.sources.v1
	Hook       HookConfig     `yaml:"hook"`        //
	SecretsDir string         `yaml:"secrets_dir"` // empty: none; sources written by others may refer to files below it alone
}

// SourceConfig is one Okta org.
type SourceConfig struct {
	ID           string     `yaml:"id"`            // name of the source in every topic and metric; lower-case letters, digits, - and _
	Name         string     `yaml:"name"`          // empty: none; for people
	OrgURL       string     `yaml:"org_url"`       // https://<org>.okta.com; a loopback address is a test org
	Org          string     `yaml:"-"`             // the org's id where it is known beforehand; empty: asked for
	CustomDomain bool       `yaml:"custom_domain"` // true: org_url is a domain of the org's own
	TokenFile    string     `yaml:"token_file"`    // file with the API token; read again when it changes
	TokenEnv     string     `yaml:"token_env"`     // or: name of the environment variable that holds it
	HookOnly     bool       `yaml:"hook_only"`     // true: never polled; events that Okta's hooks do not carry are then missed
	Paused       bool       `yaml:"paused"`        // true: not polled for now; its time stands still
	Poll         PollConfig `yaml:"poll"`          //
}

// PollConfig is how a source is polled. Zero values are good.
type PollConfig struct {
	Interval  time.Duration `yaml:"interval"`   // zero: 10s, of a test org 1s, longer where rate_share asks for it; time between polls at the end of the log
	Since     string        `yaml:"since"`      // empty: lookback counts; where a first poll begins, RFC 3339
	Lookback  time.Duration `yaml:"lookback"`   // zero: 1h; a first poll begins so long ago
	Limit     int           `yaml:"limit"`      // zero: 1000; events a page
	RateShare float64       `yaml:"rate_share"` // zero: 0.5; share of the org's rate limit for the System Log that polling may use
}

// HookConfig is the endpoint for Okta's event hooks and how it is made known to Okta.
type HookConfig struct {
	PublicURL   string   `yaml:"public_url"`    // empty: no hook; https://host under which Okta reaches listen; auto: the listen address itself, for a test org
	Listen      string   `yaml:"listen"`        // empty: 127.0.0.1:8090
	Path        string   `yaml:"path"`          // empty: /okta/events; the source's id follows it
	Header      string   `yaml:"header"`        // empty: Authorization; header that carries the secret
	SecretFiles []string `yaml:"secret_files"`  // one or two files; the first is given to Okta, both are accepted
	Name        string   `yaml:"name"`          // empty: oktawatch; name of the hook in Okta, the source's id follows it
	Manual      bool     `yaml:"manual"`        // true: somebody else makes the hook in Okta
	EventTypes  []string `yaml:"event_types"`   // empty: all that Okta's hooks can carry
	TLSCertFile string   `yaml:"tls_cert_file"` // empty: plain http, behind something that ends TLS
	TLSKeyFile  string   `yaml:"tls_key_file"`  // the key of tls_cert_file
}

// FromEnv adds the source that OKTA_ORG_URL and OKTA_API_TOKEN name where the configuration has none.
func (c *Config) FromEnv(getenv func(string) string) {
	if len(c.Sources) > 0 || getenv("OKTA_ORG_URL") == "" {
		return
	}
	s := SourceConfig{ID: "okta", OrgURL: getenv("OKTA_ORG_URL"), TokenEnv: "OKTA_API_TOKEN"}
	if f := getenv("OKTA_API_TOKEN_FILE"); f != "" {
		s.TokenEnv, s.TokenFile = "", f
	}
	s.CustomDomain = getenv("OKTA_CUSTOM_DOMAIN") == "true"
	c.Sources = []SourceConfig{s}
}

// Deps are what the service works with.
type Deps struct {
	Log     *slog.Logger // nil: discards
	Bus     *bus.Bus
	Metrics *metrics.Set // nil: discards

	Ready   func(name string, check func(ctx context.Context) error) // nil: nobody asks
	Getenv  func(string) string                                      // nil: os.Getenv
	DataDir string                                                   // set: a hook without secret_files makes its secret there
	Unclean bool                                                     // the embedded broker was not stopped cleanly: begin one page before the cursors

	Hook func(listen, public string) // nil: it is logged; called once, with where the hook listens and what Okta is told, both empty where there is none

	Recovered func() // nil: nobody asks; called once, when after an unclean stop every polled source has committed a page
}

const (
	maxLimit        = 1000
	defaultLookback = time.Hour
)

// Service is ingest.
type Service struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	m       instruments
	own     map[string]*record.Source // by id
	conf    map[string]SourceConfig
	public  *url.URL // nil: no hook
	secrets secrets
	find    *findings

	hookSecret hookSecret
	sources    *sources
}

// New checks the configuration. It does no I/O.
func New(cfg Config, deps Deps) (*Service, error) {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Getenv == nil {
		deps.Getenv = os.Getenv
	}
	if deps.Ready == nil {
		deps.Ready = func(string, func(context.Context) error) {}
	}
	if deps.Bus == nil {
		return nil, errors.New("ingest needs a bus")
	}
	s, err := build(cfg, deps)
	if err != nil {
		return nil, err
	}
	deps.Ready("sources", s.sources.ready)
	return s, nil
}

// Check says what New would find wrong with the configuration, to who has no bus yet. dataDir is that of Deps.
func (c Config) Check(dataDir string) error {
	_, err := build(c, Deps{Log: slog.New(slog.DiscardHandler), Getenv: os.Getenv, DataDir: dataDir})
	return err
}

func build(cfg Config, deps Deps) (*Service, error) {
	if len(cfg.Roles) == 0 {
		cfg.Roles = []string{roleHook, rolePoller}
	}
	for _, r := range cfg.Roles {
		if r != roleHook && r != rolePoller {
			return nil, fmt.Errorf("ingest.roles: %q is no role; known: hook, poller", r)
		}
	}
	s := &Service{
		cfg: cfg, deps: deps, log: deps.Log, m: newInstruments(deps.Metrics), find: newFindings(deps.Log),
		own: map[string]*record.Source{}, conf: map[string]SourceConfig{},
		secrets: secrets{own: map[string]bool{}, getenv: deps.Getenv},
	}
	if cfg.SecretsDir != "" {
		dir, err := filepath.Abs(cfg.SecretsDir)
		if err != nil {
			return nil, fmt.Errorf("ingest.secrets_dir: %w", err)
		}
		s.secrets.dir = dir
	}
	hosts := map[string]string{}
	for i, c := range cfg.Sources {
		src, err := c.check()
		if err != nil {
			return nil, fmt.Errorf("ingest.sources.%d: %w", i, err)
		}
		if s.own[src.ID] != nil {
			return nil, fmt.Errorf("ingest.sources.%d: the id %q is taken by another source", i, src.ID)
		}
		if other := hosts[src.URL]; other != "" {
			return nil, fmt.Errorf("ingest.sources.%d: the sources %q and %q are one org; an org has one source", i, other, src.ID)
		}
		hosts[src.URL] = src.ID
		s.own[src.ID], s.conf[src.ID] = src, c
		if src.Auth != nil {
			s.secrets.own[src.Auth.TokenRef] = true
		}
	}
	if err := s.checkHook(); err != nil {
		return nil, fmt.Errorf("ingest.hook: %w", err)
	}
	s.sources = newSources(s)
	return s, nil
}

func (s *Service) checkHook() error {
	h := &s.cfg.Hook
	h.Listen = cmp.Or(h.Listen, "127.0.0.1:8090")
	h.Path = "/" + strings.Trim(cmp.Or(h.Path, "/okta/events"), "/")
	h.Header = http.CanonicalHeaderKey(cmp.Or(h.Header, "Authorization"))
	h.Name = cmp.Or(h.Name, "oktawatch")
	if h.PublicURL == "" || !slices.Contains(s.cfg.Roles, roleHook) {
		return nil
	}
	if len(h.SecretFiles) > 2 {
		return errors.New("secret_files: at most two, the new one first")
	}
	if len(h.SecretFiles) == 0 && s.deps.DataDir == "" {
		return errors.New("secret_files is empty: name a file with the secret that Okta sends")
	}
	if (h.TLSCertFile == "") != (h.TLSKeyFile == "") {
		return errors.New("tls_cert_file and tls_key_file go together")
	}
	types := eligibleTypes()
	for _, t := range h.EventTypes {
		if _, ok := slices.BinarySearch(types, t); !ok {
			return fmt.Errorf("event_types: %q is not an event type that Okta's hooks can carry", t)
		}
	}
	if len(h.EventTypes) > maxHookTypes {
		return fmt.Errorf("event_types: %d, Okta takes at most %d", len(h.EventTypes), maxHookTypes)
	}
	if h.PublicURL == "auto" {
		s.public = &url.URL{}
		return nil
	}
	u, err := url.Parse(strings.TrimSuffix(h.PublicURL, "/"))
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("public_url %q: want https://host", h.PublicURL)
	}
	if u.Scheme == "http" {
		for _, src := range s.own {
			if !src.TestOrg {
				return fmt.Errorf("public_url %q: Okta posts to https only", h.PublicURL)
			}
		}
	}
	s.public = u
	return nil
}

func (s *Service) has(role string) bool { return slices.Contains(s.cfg.Roles, role) }

// Run ingests until ctx ends; nil on a clean stop.
func (s *Service) Run(ctx context.Context) error {
	if len(s.own) == 0 {
		s.log.Info("no source in the configuration: those of " + "okta.sources.v1 are used")
	}
	return s.sources.run(ctx)
}
