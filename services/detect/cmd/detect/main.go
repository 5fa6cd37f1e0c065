// Command detect runs the detect service.
package main

import (
	"context"
	_ "time/tzdata" // rules name time zones; the image has none

	"github.com/oktawatch/oktawatch/pkg/svc"
	"github.com/oktawatch/oktawatch/rules"
	"github.com/oktawatch/oktawatch/services/detect"
)

func main() { svc.Main("detect", run) }

func run(ctx context.Context, p *svc.Process) error {
	var cfg detect.Config
	if err := p.Config(&cfg); err != nil {
		return err
	}
	s, err := detect.New(cfg, detect.Deps{Log: p.Log, Bus: p.Bus, Metrics: p.Metrics, Pack: rules.FS})
	if err != nil {
		return err
	}
	p.Ready("rules", s.Ready)
	return s.Run(ctx)
}
