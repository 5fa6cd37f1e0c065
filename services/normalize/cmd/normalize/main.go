// Command normalize runs the normalize service.
package main

import (
	"context"

	"github.com/oktawatch/oktawatch/pkg/svc"
	"github.com/oktawatch/oktawatch/services/normalize"
)

func main() { svc.Main("normalize", run) }

func run(ctx context.Context, p *svc.Process) error {
	var cfg normalize.Config
	if err := p.Config(&cfg); err != nil {
		return err
	}
	s, err := normalize.New(cfg, normalize.Deps{Log: p.Log, Bus: p.Bus, Metrics: p.Metrics})
	if err != nil {
		return err
	}
	p.Ready("masking key", s.Ready)
	return s.Run(ctx)
}
