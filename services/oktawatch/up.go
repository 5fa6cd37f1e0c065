package oktawatch

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/registry"
	"github.com/oktawatch/oktawatch/pkg/svc"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
	"github.com/oktawatch/oktawatch/services/alert"
	"github.com/oktawatch/oktawatch/services/detect"
	"github.com/oktawatch/oktawatch/services/ingest"
	"github.com/oktawatch/oktawatch/services/normalize"
	"github.com/oktawatch/oktawatch/services/oktawatch/internal/embedded"
)

// Config is the whole configuration file: the common sections and those of every service, so that one file serves
// `oktawatch up` and each service alone.
type Config struct {
	Common    svc.Common       `yaml:",inline"`
	DataDir   string           `yaml:"data_dir"`  // empty: $XDG_STATE_HOME/oktawatch, of the demo its folder demo
	Embedded  embedded.Config  `yaml:"embedded"`  // the broker and registry of `oktawatch up`
	Ingest    ingest.Config    `yaml:"ingest"`    //
	Normalize normalize.Config `yaml:"normalize"` //
	Detect    detect.Config    `yaml:"detect"`    //
	Alert     alert.Config     `yaml:"alert"`     //
	Sim       oktasim.Config   `yaml:"sim"`       // the simulated org of `oktawatch sim` and `up --demo`
}

// Names of addresses in run.json.
const (
	runAdmin = "admin"
	runHook  = "hook"
	runSim   = "sim"
)

func (t *tool) up() *cobra.Command {
	var demo bool
	var stopAfter time.Duration
	cmd := &cobra.Command{
		Use: "up", Short: "Run everything in one process", Args: cobra.NoArgs,
		Long: `Runs the whole pipeline in one process: an embedded Kafka broker and schema registry on loopback addresses with their data on disk,
ingest, normalize, detect and alert. Ctrl-C stops it cleanly; the next start goes on from the data it kept.

The org is named by ingest.sources in --config, or by OKTA_ORG_URL and OKTA_API_TOKEN. With --demo a simulated org is started too,
with ordinary traffic and attack scenarios.`,
		Example: "  oktawatch up --demo\n  OKTA_ORG_URL=https://acme.okta.com OKTA_API_TOKEN=... oktawatch up",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := t.settings()
			if err != nil {
				return err
			}
			if stopAfter == 0 && os.Getenv("DEMO_FOR") != "" && demo {
				if stopAfter, err = time.ParseDuration(os.Getenv("DEMO_FOR")); err != nil {
					return fmt.Errorf("DEMO_FOR: %w", err)
				}
			}
			switch {
			case stopAfter < 0:
				return fmt.Errorf("--for (DEMO_FOR) %v: want a time above zero", stopAfter)
			case stopAfter > 0 && !demo:
				return errors.New("--for ends a demo: it goes with --demo")
			}
			dir, usual, err := t.dir(cfg)
			if err != nil {
				return err
			}
			if demo && usual {
				dir = filepath.Join(dir, demoDir)
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(collectAt) // a laptop has better uses for memory than a heap that waits until it has doubled
			}
			u := &up{tool: t, cfg: cfg, dir: dir, demo: demo, stopAfter: stopAfter, orgEnded: make(chan struct{}), hook: make(chan [2]string, 1)}
			return u.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&demo, "demo", false, "start a simulated Okta org and play attack scenarios")
	cmd.Flags().DurationVar(&stopAfter, "for", 0, "end by itself after this long, with a summary (with --demo; also by DEMO_FOR)")
	return cmd
}

// collectAt is by how much, in per cent, the heap of everything in one process may grow before it is collected.
const collectAt = 40

// up is one run of everything.
type up struct {
	*tool
	cfg       Config
	dir       string
	demo      bool
	stopAfter time.Duration

	log     *slog.Logger
	set     *metrics.Set
	broker  *embedded.Embedded
	clients svc.Clients
	org     *oktasim.Org // with --demo
	started time.Time

	orgEnded chan struct{}  // closed when the org has ended
	hook     chan [2]string // where the hook listens and its public address, once
}

func (u *up) run(ctx context.Context) (err error) {
	u.started = time.Now()
	if err := u.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(u.dir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	if u.cfg.Common.Log.Format == "" {
		u.cfg.Common.Log.Format = "text"
	}
	if u.cfg.Common.Log.Level == "" {
		u.cfg.Common.Log.Level = "warn" // the alerts are what is to be read here
		if u.verbose {
			u.cfg.Common.Log.Level = "info"
		}
	}
	if u.log, err = u.logger("up"); err != nil {
		return err
	}
	u.set = metrics.NewSet()

	u.cfg.Embedded.DataDir, u.cfg.Embedded.Prefix = u.dir, u.cfg.Common.Topics.Prefix
	if u.broker, err = embedded.Start(ctx, u.cfg.Embedded, u.log); err != nil {
		return err
	}
	defer func() {
		if closeErr := u.broker.Close(); err == nil {
			err = closeErr
		}
	}()

	u.cfg.Common.InstanceID = cmp.Or(u.cfg.Common.InstanceID, "up")
	u.cfg.Common.Kafka.Brokers = []string{u.broker.Kafka()}
	u.cfg.Common.Registry.URL = u.broker.Registry()
	if u.clients, err = svc.NewClients(u.cfg.Common, u.log, u.set); err != nil {
		return err
	}
	defer u.clients.Close()
	prefix := u.cfg.Common.Topics.Prefix
	if _, err := topics.Apply(ctx, u.clients.Bus.Admin(), topics.Plan{Prefix: prefix, Partitions: topics.EmbeddedPartitions}); err != nil {
		return err
	}
	if _, err := registry.Apply(ctx, u.broker.Registry(), prefix); err != nil {
		return err
	}

	if err := u.sameKind(ctx); err != nil {
		return err
	}

	// The org lives longer than the pipeline: its last deliveries are still taken.
	orgCtx, stopOrg := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOrg()
	var org errgroup.Group
	if u.demo {
		if err := u.startOrg(orgCtx, &org); err != nil {
			return err
		}
	}
	if err := u.secrets(); err != nil {
		return err
	}
	if err := u.needSource(ctx); err != nil {
		return err
	}
	err = u.pipeline(ctx)
	stopOrg()
	return errors.Join(err, org.Wait())
}

// check refuses what is wrong with the org and the receivers before anything is made for them.
func (u *up) check() error {
	if err := u.cfg.Alert.Check(); err != nil {
		return err
	}
	if u.demo {
		return nil // its org is not there yet
	}
	u.cfg.Ingest.FromEnv(os.Getenv)
	if _, err := os.Stat(u.dir); len(u.cfg.Ingest.Sources) == 0 && errors.Is(err, os.ErrNotExist) {
		return errNoOrg // nor can there be one from before
	}
	return u.cfg.Ingest.Check(u.dir)
}

// pipeline runs the services until ctx ends, or as long as the demo is to last.
func (u *up) pipeline(ctx context.Context) error {
	runs, admin, err := u.services()
	if err != nil {
		return err
	}
	asked := ctx.Done()
	if u.demo { // asked to end, it first lets through what is on its way
		ctx = context.WithoutCancel(ctx)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	for name, run := range runs {
		g.Go(func() error {
			if err := run(ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	ln, err := listenAdmin(ctx, u.cfg.Common.Admin)
	if err != nil {
		return errors.Join(err, stopAnd(stop, g))
	}
	g.Go(func() error { admin.Serve(ctx, ln); return nil })
	if ln != nil {
		if err := u.broker.Announce(runAdmin, "http://"+ln.Addr().String()); err != nil {
			return errors.Join(err, stopAnd(stop, g))
		}
	}
	g.Go(func() error { // the broker is a part like any other: without it nothing goes on
		select {
		case <-ctx.Done():
			return nil
		case <-u.broker.Done():
			return u.broker.Err()
		}
	})
	g.Go(func() error { // a demo without its org is over; run says why
		select {
		case <-ctx.Done():
		case <-u.orgEnded:
			stop()
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case at := <-u.hook:
			return u.greet(ln, at[0], at[1])
		}
	})
	g.Go(func() error {
		if !u.demo {
			<-ctx.Done()
			return nil
		}
		defer stop()
		return u.watchDemo(ctx, asked)
	})
	err = g.Wait()
	admin.Stopping()
	return ended(ctx, err)
}

func stopAnd(stop context.CancelFunc, g *errgroup.Group) error {
	stop()
	return g.Wait()
}

// services builds every service over the one bus, with a logger of its own each.
func (u *up) services() (map[string]func(context.Context) error, *svc.Admin, error) {
	admin := svc.NewAdmin("up", svc.Version(), u.log, u.set)
	admin.Ready("disk", func(context.Context) error { return u.broker.Check() })
	logger := func(name string) *slog.Logger {
		log, _ := u.logger(name) // the one of `up` had the same settings
		return log
	}
	b := u.clients.Bus

	in, err := ingest.New(u.cfg.Ingest, ingest.Deps{
		Log: logger("ingest"), Bus: b, Metrics: u.set, Ready: admin.Ready, DataDir: u.dir, Unclean: u.broker.Unclean(), Recovered: u.broker.Recovered,
		Hook: func(listen, public string) { u.hook <- [2]string{listen, public} },
	})
	if err != nil {
		return nil, nil, err
	}
	no, err := normalize.New(u.cfg.Normalize, normalize.Deps{Log: logger("normalize"), Bus: b, Metrics: u.set})
	if err != nil {
		return nil, nil, err
	}
	de, err := detect.New(u.cfg.Detect, detect.Deps{Log: logger("detect"), Bus: b, Metrics: u.set, Pack: rules.FS})
	if err != nil {
		return nil, nil, err
	}
	al, err := alert.New(u.cfg.Alert, alert.Deps{Log: logger("alert"), Bus: b, Metrics: u.set, Out: u.out})
	if err != nil {
		return nil, nil, err
	}
	admin.Ready("masking key", no.Ready)
	admin.Ready("rules", de.Ready)
	return map[string]func(context.Context) error{"ingest": in.Run, "normalize": no.Run, "detect": de.Run, "alert": al.Run}, admin, nil
}

// logger is that of one service: each line names one service.
func (u *up) logger(service string) (*slog.Logger, error) {
	return svc.NewLogger(u.cfg.Common.Log, u.errs, service, svc.Version())
}

// known are the sources that the topic holds.
func (u *up) known(ctx context.Context) (map[string]*record.Source, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	known := map[string]*record.Source{}
	var bad error
	_, err := u.clients.Bus.OpenTable(ctx, topics.Sources, func(key string, value []byte) {
		if value == nil {
			delete(known, key)
			return
		}
		src, err := bus.Decode[record.Source](ctx, u.clients.Bus, bus.Message{Topic: topics.Sources, Key: []byte(key), Value: value})
		if err != nil {
			bad = err
			return
		}
		known[key] = src
	})
	if err = cmp.Or(err, bad); err != nil {
		return nil, fmt.Errorf("read the sources: %w", err)
	}
	return known, nil
}

// sameKind keeps the demo and other orgs out of each other's data: each would take the other's source for one that its configuration
// has no more, remove it, and with it the place where polling goes on.
func (u *up) sameKind(ctx context.Context) error {
	known, err := u.known(ctx)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		src := known[id]
		ours := id == demoSource && src.TestOrg && src.Name == demoName
		switch {
		case u.demo && !ours:
			return fmt.Errorf("data directory %s holds the source %q (%s), which the demo would remove: leave OKTAWATCH_DATA_DIR out for the demo, or set another", u.dir, id, src.URL)
		case !u.demo && ours:
			return fmt.Errorf("data directory %s holds the demo's org: set another OKTAWATCH_DATA_DIR for a real one, or remove the directory", u.dir)
		}
	}
	return nil
}

// needSource refuses to run for nobody: without a source in the configuration there must be one on the topic.
func (u *up) needSource(ctx context.Context) error {
	if len(u.cfg.Ingest.Sources) > 0 {
		return nil
	}
	known, err := u.known(ctx)
	if err == nil && len(known) == 0 {
		err = errNoOrg
	}
	return err
}

var errNoOrg = errors.New("no Okta org is named: set OKTA_ORG_URL and OKTA_API_TOKEN, or ingest.sources in --config, or try --demo")

// secrets makes the keys that an installation of one process makes for itself, readable by its user alone.
func (u *up) secrets() error {
	if u.cfg.Normalize.Masking.KeyFile == "" {
		path, err := u.secret("masking.key")
		if err != nil {
			return err
		}
		u.cfg.Normalize.Masking.KeyFile = path
	}
	return nil
}

// secret is a file of the data directory with 32 random bytes in hex, made at the first start.
func (u *up) secret(name string) (string, error) {
	path := filepath.Join(u.dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	b := make([]byte, 32)
	rand.Read(b)
	return path, writeSecret(path, hex.EncodeToString(b))
}

// writeSecret writes whole or not at all, for its owner alone.
func writeSecret(path, text string) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text+"\n"), 0o600); err != nil {
		return fmt.Errorf("write a secret: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write a secret: %w", err)
	}
	return nil
}

// listenAdmin takes the usual port, or any free one when that is taken and nobody asked for it.
func listenAdmin(ctx context.Context, c svc.AdminPort) (net.Listener, error) {
	if c.Listen == "off" {
		return nil, nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", cmp.Or(c.Listen, "127.0.0.1:9464"))
	if err != nil && c.Listen == "" {
		ln, err = lc.Listen(ctx, "tcp", "127.0.0.1:0")
	}
	if err != nil {
		return nil, fmt.Errorf("listen on admin.listen %s: %w", c.Listen, err)
	}
	return ln, nil
}

// greet says where to look.
func (u *up) greet(admin net.Listener, hookListen, hookPublic string) error {
	var b strings.Builder
	say := func(what, where string) { fmt.Fprintf(&b, "  %-10s %s\n", what, where) }
	fmt.Fprintf(&b, "oktawatch %s is up\n", svc.Version())
	say("kafka", u.broker.Kafka())
	say("registry", u.broker.Registry())
	if admin != nil {
		say("admin", "http://"+admin.Addr().String()+"/readyz?verbose  /metrics")
	}
	switch {
	case hookListen != "":
		say("hook", hookPublic+" (listens on "+hookListen+")")
		if err := u.broker.Announce(runHook, hookPublic); err != nil {
			return err
		}
	case u.cfg.Ingest.Hook.PublicURL == "":
		say("hook", "none, since ingest.hook.public_url is empty: events come by polling alone")
	}
	for _, src := range u.cfg.Ingest.Sources {
		where := src.OrgURL
		switch {
		case u.org != nil:
			where += " (simulated, test org)"
		case src.TestOrg():
			where += " (test org)"
		}
		say("okta", where)
	}
	say("data", u.dir)
	say("look", "oktawatch status; oktawatch topics tail okta.detections.v1")
	fmt.Fprintln(u.errs, b.String())
	return nil
}
