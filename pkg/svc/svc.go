// Package svc makes a process of a Run function: signals, flags, configuration, logs, the admin port, readiness, exit codes and a clean
// stop. A main is svc.Main and a run function that asks for its config, builds its service and runs it; everything else is here, once.
// One YAML file holds the common sections and the service's own, strictly read. It promises an end in words: whatever keeps a process
// from working is one line on standard error and an exit code, or a readiness that says why. What a service does is not its business.
package svc

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Exit codes of every process.
const (
	ExitOK            = 0
	ExitRuntime       = 1
	ExitConfig        = 2 // usage and configuration
	ExitInstanceTaken = 4 // another live process has this one's instance_id
)

// StopBudget is how long a clean stop may take; after it the process ends with ExitRuntime.
const StopBudget = 25 * time.Second

// Signals ask a process to end. A terminal that goes away (SIGHUP) asks too, unless the process was started not to mind (nohup).
func Signals() []os.Signal {
	list := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		list = append(list, syscall.SIGHUP)
	}
	return list
}

// SameSignal is how long after a signal another is taken for the same one, as timeout(1) sends two; later ones end the process at once.
const SameSignal = time.Second

// Process is what a run function is given.
type Process struct {
	Name       string
	Version    string
	InstanceID string
	Log        *slog.Logger
	Metrics    *metrics.Set
	Common     Common
	Clients

	admin *Admin
	load  func(into any) error
	print io.Writer // set for config print
}

// Ready adds a check to /readyz: nil is ready, an error says why not. A check is given two seconds.
func (p *Process) Ready(name string, check func(ctx context.Context) error) {
	p.admin.Ready(name, check)
}

// Config fills cfg, a pointer, from the section of the file, the environment and the command line that is named like the process.
// A cfg that has a method FromEnv then takes what the environment says under other names, such as OKTA_ORG_URL.
func (p *Process) Config(cfg any) error {
	if err := p.load(cfg); err != nil {
		return err
	}
	if p.print != nil {
		return p.printConfig(cfg)
	}
	return nil
}

// errPrinted ends run of `config print`: all is said.
var errPrinted = errors.New("config printed")

func (p *Process) printConfig(cfg any) error {
	common, err := Redacted(p.Common)
	if err != nil {
		return err
	}
	own, err := Redacted(wrap(p.Name, cfg).Interface())
	if err != nil {
		return err
	}
	if _, err := p.print.Write(append(common, own...)); err != nil {
		return err
	}
	return errPrinted
}

// wrap makes a struct with cfg's value as its one section.
func wrap(name string, cfg any) reflect.Value {
	v := reflect.ValueOf(cfg).Elem()
	w := reflect.New(reflect.StructOf([]reflect.StructField{{
		Name: "Section", Type: v.Type(), Tag: reflect.StructTag(fmt.Sprintf(`yaml:"%s"`, name)),
	}}))
	w.Elem().Field(0).Set(v)
	return w
}

// Main runs a service as a process and does not return.
func Main(name string, run func(ctx context.Context, p *Process) error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, Signals()...)
	m := program{name: name, args: os.Args[1:], environ: os.Environ(), stdout: os.Stdout, stderr: os.Stderr, signals: signals}
	os.Exit(m.main(context.Background(), run))
}

type program struct {
	name           string
	args           []string
	environ        []string
	stdout, stderr io.Writer
	signals        <-chan os.Signal
}

type flags struct {
	config  string
	sets    []string
	version bool
	live    bool
	command string
}

func (m program) flags() (flags, error) {
	var f flags
	fs := flag.NewFlagSet(m.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&f.config, "config", getenv(m.environ, EnvPrefix+"CONFIG"), "the YAML `file` of settings")
	fs.Func("set", "one setting, `section.key=value`, over file and environment (repeatable)", func(s string) error {
		f.sets = append(f.sets, s)
		return nil
	})
	fs.BoolVar(&f.version, "version", false, "print the version and end")
	fs.BoolVar(&f.live, "live", false, "healthcheck: ask whether it lives, not whether it is ready")
	var words []string
	args := m.args
	for {
		if err := fs.Parse(args); err != nil {
			var b bytes.Buffer
			fmt.Fprintf(&b, "usage: %s [flags]                run the service\n       %s [flags] config print   show the settings, secrets left out\n       %s [flags] healthcheck    ask the running service, exit 0 when ready\n       %s version\n", m.name, m.name, m.name, m.name)
			fs.SetOutput(&b)
			fs.PrintDefaults()
			if errors.Is(err, flag.ErrHelp) {
				fmt.Fprint(m.stdout, b.String())
				return f, err
			}
			return f, fmt.Errorf("%w\n%s", err, strings.TrimRight(b.String(), "\n"))
		}
		if fs.NArg() == 0 {
			break
		}
		words, args = append(words, fs.Arg(0)), fs.Args()[1:]
	}
	f.command = strings.Join(words, " ")
	if f.version {
		f.command = "version"
	}
	if !slices.Contains([]string{"", "version", "healthcheck", "config print"}, f.command) {
		return f, fmt.Errorf("unknown command %q; known: config print, healthcheck, version", f.command)
	}
	return f, nil
}

func (m program) main(ctx context.Context, run func(ctx context.Context, p *Process) error) int {
	f, err := m.flags()
	if errors.Is(err, flag.ErrHelp) {
		return ExitOK
	}
	if err != nil {
		return m.fail(BadConfig(err))
	}
	p := &Process{Name: m.name, Version: Version(), Metrics: metrics.NewSet()}
	if f.command == "version" {
		fmt.Fprintf(m.stdout, "%s %s\n", p.Name, p.Version)
		return ExitOK
	}
	var common struct {
		Common `yaml:",inline"`
	}
	if err := m.loadSections(f, reflect.ValueOf(&common), append(sections(), m.name)...); err != nil {
		return m.fail(err)
	}
	if err := common.fallbacks(m.environ); err != nil {
		return m.fail(err)
	}
	p.Common = common.Common
	p.InstanceID = p.Common.InstanceID
	p.load = func(into any) error {
		w := wrap(m.name, into)
		if err := m.loadSections(f, w, append(sections(), commonKeys()...)...); err != nil {
			return err
		}
		reflect.ValueOf(into).Elem().Set(w.Elem().Field(0))
		if c, ok := into.(interface {
			FromEnv(getenv func(string) string)
		}); ok {
			c.FromEnv(func(name string) string { return getenv(m.environ, name) })
		}
		return nil
	}
	switch f.command {
	case "healthcheck":
		return m.healthcheck(ctx, p.Common.Admin.address(), f.live)
	case "config print":
		p.print = m.stdout
		p.Log = slog.New(slog.DiscardHandler)
		p.admin = NewAdmin(p.Name, p.Version, p.Log, p.Metrics)
		if err := run(ctx, p); !errors.Is(err, errPrinted) {
			return m.fail(err)
		}
		return ExitOK
	}
	return m.serve(ctx, p, run)
}

// sections are the top-level keys of the one file that serves every service and `oktawatch up` alike: a process reads its own and passes
// the others over.
func sections() []string {
	return append(topics.Principals(), "data_dir", "embedded", "sim")
}

// loadSections fills the struct v points to; others are the top-level keys that are somebody else's.
func (m program) loadSections(f flags, v reflect.Value, others ...string) error {
	if f.config != "" {
		src, err := os.ReadFile(f.config)
		if err != nil {
			return BadConfig(fmt.Errorf("read config: %w", err))
		}
		if err := decodeFile(f.config, src, v, others); err != nil {
			return err
		}
	}
	return override(m.environ, f.sets, v.Elem(), others)
}

func (m program) serve(ctx context.Context, p *Process, run func(ctx context.Context, p *Process) error) int {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	log, err := NewLogger(p.Common.Log, m.stderr, p.Name, p.Version)
	if err != nil {
		return m.fail(BadConfig(err))
	}
	p.Log = log
	p.admin = NewAdmin(p.Name, p.Version, log, p.Metrics)
	if p.Clients, err = NewClients(p.Common, log, p.Metrics); err != nil {
		return m.fail(BadConfig(err))
	}
	defer p.Close()
	p.Checks(p.Name, p.Common.Topics.Prefix, p.admin.Ready)

	ln, err := p.Common.Admin.open(ctx)
	if err != nil {
		return m.fail(err)
	}
	adminDone := make(chan struct{})
	go func() {
		defer close(adminDone)
		p.admin.Serve(ctx, ln)
	}()
	addr := "off"
	if ln != nil {
		addr = ln.Addr().String()
	}
	log.Info("started", "instance", p.InstanceID, "admin", addr)

	done := make(chan error, 1)
	go func() { done <- run(ctx, p) }()

	var budget <-chan time.Time
	var signalled time.Time
	for {
		select {
		case err = <-done:
			p.admin.Stopping()
			stop()
			<-adminDone
			if err != nil && !(budget != nil && errors.Is(err, context.Canceled)) {
				return m.failed(log, err)
			}
			log.Info("stopped")
			return ExitOK
		case s := <-m.signals:
			if budget != nil && time.Since(signalled) < SameSignal {
				continue
			}
			if budget != nil {
				log.Error("stopped at once by a second signal", "signal", s.String())
				return ExitRuntime
			}
			log.Info("stopping", "signal", s.String())
			p.admin.Stopping()
			t := time.NewTimer(StopBudget)
			defer t.Stop()
			budget, signalled = t.C, time.Now()
			stop()
		case <-budget:
			log.Error("did not stop in time; ended hard", "budget", StopBudget.String())
			return ExitRuntime
		}
	}
}

// fail says why before there is a logger.
func (m program) fail(err error) int {
	fmt.Fprintf(m.stderr, "%s: %v\n", m.name, err)
	return exitCode(err)
}

func (m program) failed(log *slog.Logger, err error) int {
	code := exitCode(err)
	if code == ExitConfig {
		fmt.Fprintf(m.stderr, "%s: %v\n", m.name, err)
		return code
	}
	log.Error("stopped", "error", err.Error(), "exit_code", code)
	return code
}

// Exit is the code a command that runs services in its own way ends with.
func Exit(err error) int {
	if err == nil {
		return ExitOK
	}
	return exitCode(err)
}

func (m program) healthcheck(ctx context.Context, addr string, live bool) int {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "0" {
		return m.fail(BadConfig(fmt.Errorf("healthcheck needs a fixed admin.listen, it is %q", addr)))
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	path := "/readyz?verbose"
	if live {
		path = "/livez"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+path, nil)
	if err != nil {
		return m.fail(BadConfig(err))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return m.fail(fmt.Errorf("healthcheck: %w", err))
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	fmt.Fprint(m.stdout, string(body))
	if resp.StatusCode != http.StatusOK {
		return ExitRuntime
	}
	return ExitOK
}

// Version is what the build knows of itself: the module's version, else the commit.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	return cmp.Or(rev+dirty, "devel")
}

func getenv(environ []string, name string) string {
	for _, kv := range slices.Backward(environ) { // the last one holds
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v
		}
	}
	return ""
}
