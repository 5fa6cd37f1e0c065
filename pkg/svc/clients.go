package svc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Clients are what the common sections describe.
type Clients struct {
	Serde *record.Serde
	Bus   *bus.Bus
}

// NewClients makes them, without I/O.
func NewClients(c Common, log *slog.Logger, set *metrics.Set) (Clients, error) {
	serde := record.NewSerde(c.Registry.URL, c.Topics.Prefix)
	b, err := bus.New(c.Kafka, bus.Deps{Log: log, Metrics: set, Serde: serde, Prefix: c.Topics.Prefix, InstanceID: c.InstanceID})
	if err != nil {
		return Clients{}, err
	}
	return Clients{Serde: serde, Bus: b}, nil
}

// Close ends them.
func (c Clients) Close() {
	if c.Bus != nil {
		c.Bus.Close()
	}
}

// Checks adds what a service of that name needs to be ready: a broker that answers, its topics, the schemas it writes with.
func (c Clients) Checks(service, prefix string, ready func(name string, ask func(ctx context.Context) error)) {
	var written, used []topics.Topic
	for _, t := range topics.All() {
		writes := slices.Contains(t.Writers, service)
		if writes && t.Record != "" {
			written = append(written, t)
		}
		if writes || slices.Contains(t.Readers, service) {
			used = append(used, t)
		}
	}
	ready("kafka", c.Bus.Ping)
	ready("topics", rarely(func(ctx context.Context) error {
		adm := c.Bus.Admin()
		if adm == nil {
			return errors.New("no kafka client")
		}
		rows, err := topics.List(ctx, adm, topics.Plan{Prefix: prefix})
		if err != nil {
			return err
		}
		var missing []string
		for _, r := range rows {
			if !r.Exists && slices.ContainsFunc(used, func(t topics.Topic) bool { return t.Name == r.Name }) {
				missing = append(missing, r.FullName)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("%s missing: run oktawatch topics apply", strings.Join(missing, ", "))
		}
		return nil
	}))
	ready("stages", func(context.Context) error {
		var errs []error
		for _, h := range c.Bus.Health() {
			if !h.Alive {
				errs = append(errs, fmt.Errorf("%s.%s does not work yet: %s", h.Service, h.Stage, cmp.Or(h.LastError, "joining its group")))
			}
		}
		return errors.Join(errs...)
	})
	ready("schemas", rarely(func(ctx context.Context) error {
		for _, t := range written {
			if _, err := c.Serde.ID(ctx, t.Subject(prefix), t.Record); err != nil {
				return err
			}
		}
		return nil
	}))
}

// rarely asks again a minute after a good answer only: what it asks seldom changes and costs something.
func rarely(ask func(ctx context.Context) error) func(ctx context.Context) error {
	var mu sync.Mutex
	var good time.Time
	return func(ctx context.Context) error {
		mu.Lock()
		fresh := time.Since(good) < time.Minute
		mu.Unlock()
		if fresh {
			return nil
		}
		if err := ask(ctx); err != nil {
			return err
		}
		mu.Lock()
		good = time.Now()
		mu.Unlock()
		return nil
	}
}

func exitCode(err error) int {
	if _, ok := errors.AsType[*configError](err); ok {
		return ExitConfig
	}
	if errors.Is(err, bus.ErrInstanceTaken) {
		return ExitInstanceTaken
	}
	return ExitRuntime
}
