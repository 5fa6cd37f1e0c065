package svc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"reflect"
	"strings"
	"syscall"

	"github.com/oktawatch/oktawatch/pkg/bus"
)

// Common is the part of the config file every service has.
type Common struct {
	InstanceID string     `yaml:"instance_id"` // empty: the host's name; unique among the live processes of one service, the same after a restart
	Kafka      bus.Config `yaml:"kafka"`       // brokers empty: KAFKA_BOOTSTRAP_SERVERS, else 127.0.0.1:9092
	Registry   Registry   `yaml:"registry"`
	Topics     Topics     `yaml:"topics"`
	Admin      AdminPort  `yaml:"admin"`
	Log        Log        `yaml:"log"`
}

// Registry is where schemas are looked up.
type Registry struct {
	URL string `yaml:"url"` // empty: SCHEMA_REGISTRY_URL, else http://127.0.0.1:8081; may carry a path
}

// Topics is how the topics of this installation are called.
type Topics struct {
	Prefix string `yaml:"prefix"` // empty: none; goes before topics, groups, transactional ids and subjects
}

// AdminPort is where a process answers questions about itself.
type AdminPort struct {
	Listen string `yaml:"listen"` // empty: 127.0.0.1:9464; "off": nowhere
}

// Log is how a process writes its log, on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn or error; empty: info
	Format string `yaml:"format"` // json or text; empty: json
}

// fallbacks fills what neither file nor environment nor command line named.
func (c *Common) fallbacks(environ []string) error {
	if c.InstanceID == "" {
		host, err := os.Hostname()
		if err != nil {
			return BadConfig(fmt.Errorf("instance_id is empty and the host has no name: %w", err))
		}
		c.InstanceID = host
	}
	if len(c.Kafka.Brokers) == 0 {
		c.Kafka.Brokers = strings.Split(cmp.Or(getenv(environ, "KAFKA_BOOTSTRAP_SERVERS"), "127.0.0.1:9092"), ",")
		for i, addr := range c.Kafka.Brokers {
			c.Kafka.Brokers[i] = strings.TrimSpace(addr)
		}
	}
	c.Registry.URL = cmp.Or(c.Registry.URL, getenv(environ, "SCHEMA_REGISTRY_URL"), "http://127.0.0.1:8081")
	return nil
}

// commonKeys are the top-level keys that are not a service's section.
func commonKeys() []string {
	var out []string
	for k := range fieldsOf(reflect.TypeFor[Common]()) {
		out = append(out, k)
	}
	return out
}

func (a AdminPort) address() string { return cmp.Or(a.Listen, "127.0.0.1:9464") }

// open returns nil when the port is off.
func (a AdminPort) open(ctx context.Context) (net.Listener, error) {
	if a.Listen == "off" {
		return nil, nil
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", a.address())
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on admin.listen %s: the address is in use; stop what holds it or set admin.listen to another", a.address())
	}
	if err != nil {
		return nil, BadConfig(fmt.Errorf("listen on admin.listen %s: %w", a.address(), err))
	}
	return ln, nil
}

// NewLogger makes the logger of one service. Two services of one process have one each over the same writer.
func NewLogger(c Log, w io.Writer, service, version string) (*slog.Logger, error) {
	var level slog.Level
	if c.Level != "" {
		if err := level.UnmarshalText([]byte(c.Level)); err != nil {
			return nil, fmt.Errorf("log.level %q: want debug, info, warn or error", c.Level)
		}
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch strings.ToLower(c.Format) {
	case "", "json":
		h = slog.NewJSONHandler(w, opts)
	case "text":
		h = slog.NewTextHandler(w, opts)
	default:
		return nil, fmt.Errorf("log.format %q: want json or text", c.Format)
	}
	return slog.New(h).With("service", service, "version", version), nil
}
