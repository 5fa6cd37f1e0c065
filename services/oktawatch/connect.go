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

// dir is the data directory: flag, environment, config, then the user's state directory.
func (t *tool) dir(c Config) (string, error) {
	dir := cmp.Or(t.dataDir, c.DataDir)
	if dir == "" {
		state := os.Getenv("XDG_STATE_HOME")
		if state == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("find the data directory: %w; set OKTAWATCH_DATA_DIR", err)
			}
			state = filepath.Join(home, ".local", "state")
		}
		dir = filepath.Join(state, "oktawatch")
	}
	return filepath.Abs(dir)
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
		dir, err := t.dir(cfg)
		if err != nil {
			return c, err
		}
		run, err := embedded.ReadRun(dir)
		switch {
		case err == nil && len(c.kafka.Brokers) == 0:
			c.kafka.Brokers, from = []string{run.Kafka}, embedded.RunPath(dir)
			if c.registry == "" {
				c.registry, registryFrom = run.Registry, embedded.RunPath(dir)
			}
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return c, err
		}
	}
	if len(c.kafka.Brokers) > 0 && c.registry == "" {
		c.registry, registryFrom = "http://127.0.0.1:8081", "default"
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
