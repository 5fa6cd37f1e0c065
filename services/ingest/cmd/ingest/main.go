// Command ingest brings Okta's System Log onto Kafka.
package main

import (
	"context"

	"github.com/oktawatch/oktawatch/pkg/svc"
	"github.com/oktawatch/oktawatch/services/ingest"
)

func main() { svc.Main("ingest", run) }

func run(ctx context.Context, p *svc.Process) error {
	var cfg ingest.Config
	if err := p.Config(&cfg); err != nil {
		return err
	}
	s, err := ingest.New(cfg, ingest.Deps{Log: p.Log, Bus: p.Bus, Metrics: p.Metrics, Ready: p.Ready})
	if err != nil {
		return svc.BadConfig(err)
	}
	return s.Run(ctx)
}
