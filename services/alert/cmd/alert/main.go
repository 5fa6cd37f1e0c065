// Command alert runs the alert service.
package main

import (
	"context"

	"github.com/oktawatch/oktawatch/pkg/svc"
	"github.com/oktawatch/oktawatch/services/alert"
)

func main() { svc.Main("alert", run) }

func run(ctx context.Context, p *svc.Process) error {
	var cfg alert.Config
	if err := p.Config(&cfg); err != nil {
		return err
	}
	s, err := alert.New(cfg, alert.Deps{Log: p.Log, Bus: p.Bus, Metrics: p.Metrics})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
