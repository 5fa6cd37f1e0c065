package oktawatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/svc"
	"github.com/oktawatch/oktawatch/services/oktawatch/internal/embedded"
)

// connection is where a command finds Kafka and the registry, and why there.
type connection struct {
	common   svc.Common
	kafka    bus.Config
	registry string
	prefix   string
}

// connected is a connection with its client.
type connected struct {
	connection
	bus *bus.Bus
}

// settings loads the whole configuration file without its fallbacks, so that what a person named can be told from a default.
func (t *tool) settings() (Config, error) {
	var c struct {
		Config Config `yaml:",inline"`
	}
	c.Config.Sim = simDefaults()
	err := svc.Load(t.config, os.Environ(), t.sets, &c)
	return c.Config, err
}

// usualVariables fills in what the configuration leaves out from the variables that other Kafka programs read too, and says what came
// from where.
func usualVariables(c *svc.Common) (kafka, registry string) {
	kafka, registry = "configuration", "configuration"
	if env := os.Getenv("KAFKA_BOOTSTRAP_SERVERS"); env != "" && len(c.Kafka.Brokers) == 0 {
		c.Kafka.Brokers, kafka = strings.Split(env, ","), "KAFKA_BOOTSTRAP_SERVERS"
	}
	if env := os.Getenv("SCHEMA_REGISTRY_URL"); env != "" && c.Registry.URL == "" {
		c.Registry.URL, registry = env, "SCHEMA_REGISTRY_URL"
	}
	return kafka, registry
}

// demoDir is where the demo keeps its data below the usual directory: there it never meets the sources and cursors of a real org.
const demoDir = "demo"

// dir is the data directory: flag, environment, config, then (usual) one below the user's state directory.
func (t *tool) dir(c Config) (dir string, usual bool, err error) {
	dir = cmp.Or(t.dataDir, c.DataDir)
	if usual = dir == ""; usual {
		state := os.Getenv("XDG_STATE_HOME")
		if state == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", usual, fmt.Errorf("find the data directory: %w; set OKTAWATCH_DATA_DIR", err)
			}
			state = filepath.Join(home, ".local", "state")
		}
		dir = filepath.Join(state, "oktawatch")
	}
	dir, err = filepath.Abs(dir)
	return dir, usual, err
}

// running is the `oktawatch up` to ask: that of the data directory or, where none was named, else the demo beside it. The error wraps
// os.ErrNotExist when there is none.
func (t *tool) running(c Config) (embedded.Run, string, error) {
	dir, usual, err := t.dir(c)
	if err != nil {
		return embedded.Run{}, "", err
	}
	run, err := embedded.ReadRun(dir)
	if !usual {
		return run, embedded.RunPath(dir), err
	}
	demo, demoErr := embedded.ReadRun(filepath.Join(dir, demoDir))
	switch {
	case demoErr != nil:
		return run, embedded.RunPath(dir), err
	case err == nil:
		if t.verbose {
			fmt.Fprintf(t.errs, "a demo runs too: --data-dir %s asks it\n", filepath.Join(dir, demoDir))
		}
		return run, embedded.RunPath(dir), nil
	case !errors.Is(err, os.ErrNotExist):
		return run, embedded.RunPath(dir), err
	}
	return demo, embedded.RunPath(filepath.Join(dir, demoDir)), nil
}

// connect finds the broker and the registry: by flag, environment, config, then the run.json of a running `oktawatch up`.
func (t *tool) connect() (connection, error) {
	cfg, err := t.settings()
	if err != nil {
		return connection{}, err
	}
	from, registryFrom := usualVariables(&cfg.Common)
	c := connection{common: cfg.Common, kafka: cfg.Common.Kafka, registry: cfg.Common.Registry.URL, prefix: cfg.Common.Topics.Prefix}
	if t.kafka != "" {
		c.kafka.Brokers, from = strings.Split(t.kafka, ","), "--kafka"
	}
	if t.registry != "" {
		c.registry, registryFrom = t.registry, "--registry"
	}
	if len(c.kafka.Brokers) == 0 || c.registry == "" {
		run, path, err := t.running(cfg)
		switch {
		case err == nil && len(c.kafka.Brokers) == 0:
			c.kafka.Brokers, from = []string{run.Kafka}, path
			if c.registry == "" {
				c.registry, registryFrom = run.Registry, path
			}
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return c, err
		}
	}
	if len(c.kafka.Brokers) > 0 && c.registry == "" {
		c.registry, registryFrom = "http://127.0.0.1:8081", "default"
	}
	if len(c.kafka.Brokers) == 0 {
		from = "nowhere: none is named and no `oktawatch up` runs"
	}
	if c.registry == "" {
		registryFrom = "nowhere"
	}
	if t.verbose {
		fmt.Fprintf(t.errs, "kafka %s (from %s)\nregistry %s (from %s)\n", dash(strings.Join(c.kafka.Brokers, ",")), from, dash(c.registry), registryFrom)
	}
	c.common.Kafka, c.common.Registry.URL = c.kafka, c.registry
	return c, nil
}

var errNoBroker = errors.New("no Kafka to ask: start `oktawatch up`, or name one by --kafka, KAFKA_BOOTSTRAP_SERVERS or kafka.brokers in --config")

func (c connection) needBroker() error {
	if len(c.kafka.Brokers) == 0 {
		return errNoBroker
	}
	return nil
}

func (c connection) needRegistry() error {
	if c.registry == "" {
		return errors.New("no schema registry to ask: start `oktawatch up`, or name one by --registry, SCHEMA_REGISTRY_URL or registry.url in --config")
	}
	return nil
}

// withBus runs f with a client that has reached the broker.
func (t *tool) withBus(ctx context.Context, c connection, f func(ctx context.Context, b *connected) error) error {
	if err := c.needBroker(); err != nil {
		return err
	}
	if c.common.InstanceID == "" {
		c.common.InstanceID = "cli"
	}
	clients, err := svc.NewClients(c.common, slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		return err
	}
	defer clients.Close()
	if err := clients.Bus.Ping(ctx); err != nil {
		return err
	}
	return f(ctx, &connected{connection: c, bus: clients.Bus})
}
