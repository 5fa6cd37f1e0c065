package svc

import (
	"context"
	"errors"
	"log/slog"

	"github.com/oktawatch/oktawatch/pkg/metrics"
)

// Clients are what the common sections describe.
type Clients struct{}

// NewClients makes them, without I/O.
func NewClients(c Common, log *slog.Logger, set *metrics.Set) (Clients, error) {
	return Clients{}, nil
}

// Close ends them.
func (c Clients) Close() {}

// checks adds what every service needs to be ready.
func (c Clients) checks(ready func(name string, ask func(ctx context.Context) error)) {}

func exitCode(err error) int {
	if _, ok := errors.AsType[*configError](err); ok {
		return ExitConfig
	}
	return ExitRuntime
}
