// Package simtest starts simulated orgs in tests: one line, stopped with the test. The org itself is pkg/oktasim.
package simtest

import (
	"context"
	"net/http"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/oktasim"
)

// Start runs an org until the test ends; it serves at URL when Start returns. A test with its own listener in a synctest bubble
// puts it into the config.
func Start(t testing.TB, cfg oktasim.Config) *oktasim.Org {
	t.Helper()
	if cfg.Client == nil {
		tr := &http.Transport{}
		cfg.Client = &http.Client{Transport: tr}
		t.Cleanup(tr.CloseIdleConnections)
	}
	org, err := oktasim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- org.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("simulated org: %v", err)
		}
	})
	select {
	case <-org.Ready():
	case err := <-done:
		done <- err
		t.Fatalf("start simulated org: %v", err)
	}
	return org
}
