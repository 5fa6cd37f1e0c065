package oktawatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/svc"
)

// simDefaults is the org of `oktawatch sim` and of `up --demo` as people want to see one, where they say nothing else.
func simDefaults() oktasim.Config {
	return oktasim.Config{Rate: 5, ScenarioEvery: 10 * time.Second, ScenarioPace: 5}
}

const simListen = "127.0.0.1:7070"

func (t *tool) sim() *cobra.Command {
	var c oktasim.Config
	var list, quiet bool
	cmd := &cobra.Command{
		Use: "sim", Short: "Run a simulated Okta org", Args: cobra.NoArgs,
		Long: `Runs a fake Okta org that speaks HTTP as Okta does: System Log, event hooks, users, devices, OAuth, rate limits. It lives: ordinary
traffic and attack scenarios. Its control API is under /sim/ (GET /sim/truth, POST /sim/scenarios/NAME, POST /sim/faults, …).
Settings not named by a flag come from the section sim of --config.

It believes whoever has one of its API tokens (sim.api_tokens); named none, that is ` + oktasim.DefaultToken + `, which is no secret:
there is nothing real behind it.`,
		Example: "  oktawatch sim --rate 20\n  OKTA_ORG_URL=http://" + simListen + " OKTA_API_TOKEN=" + oktasim.DefaultToken + " oktawatch up",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if list && t.output == "json" {
				return t.json(oktasim.Scenarios())
			}
			if list {
				for _, s := range oktasim.Scenarios() {
					fmt.Fprintf(t.out, "%-28s %s\n", s.Name, s.Doc)
				}
				return nil
			}
			settings, err := t.settings()
			if err != nil {
				return err
			}
			merged := settings.Sim
			for name, set := range map[string]func(){
				"listen": func() { merged.Listen = c.Listen }, "sim-dir": func() { merged.DataDir = c.DataDir }, "rate": func() { merged.Rate = c.Rate },
				"users": func() { merged.Users = c.Users }, "seed": func() { merged.Seed = c.Seed }, "scenario-every": func() { merged.ScenarioEvery = c.ScenarioEvery },
				"scenario": func() { merged.Scenarios = c.Scenarios },
			} {
				if t.flagsSet(name) {
					set()
				}
			}
			merged.Listen = cmp.Or(merged.Listen, simListen)
			log, err := svc.NewLogger(settings.Common.Log, t.errs, "sim", svc.Version())
			if err != nil {
				return err
			}
			merged.Log = log
			org, err := oktasim.New(merged)
			if err != nil {
				return err
			}
			g, ctx := errgroup.WithContext(cmd.Context())
			g.Go(func() error { return org.Run(ctx) })
			g.Go(func() error {
				select {
				case <-org.Ready():
					if !quiet {
						t.greetSim(org, merged.APITokens)
					}
				case <-ctx.Done():
				}
				return nil
			})
			return ended(ctx, g.Wait())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Listen, "listen", simListen, "`address` to serve on")
	f.StringVar(&c.DataDir, "sim-dir", "", "`directory` that keeps the org over restarts (default: memory)")
	f.Float64Var(&c.Rate, "rate", simDefaults().Rate, "ordinary events a `second`; 0: none")
	f.IntVar(&c.Users, "users", 0, "`users` of the org (default 200)")
	f.Uint64Var(&c.Seed, "seed", 0, "`seed` of the org's people (default 1)")
	f.DurationVar(&c.ScenarioEvery, "scenario-every", simDefaults().ScenarioEvery, "play one scenario that often; 0: never")
	f.StringArrayVar(&c.Scenarios, "scenario", nil, "play only this scenario; may be repeated")
	f.BoolVar(&list, "list", false, "list the scenarios and end")
	f.BoolVarP(&quiet, "quiet", "q", false, "do not print address and token")
	return cmd
}

// greetSim says where the org is and how to come in.
func (t *tool) greetSim(org *oktasim.Org, tokens []string) {
	token := oktasim.DefaultToken
	if len(tokens) > 0 {
		token = "…" // chosen by whoever runs it, who knows it
	}
	fmt.Fprintf(t.out, "simulated Okta org %s at %s\n", org.ID(), org.URL())
	if len(tokens) == 0 {
		fmt.Fprintf(t.out, "  API token  %s\n", token)
	} else {
		fmt.Fprintln(t.out, "  API token  one of sim.api_tokens")
	}
	fmt.Fprintf(t.out, "  try        OKTA_ORG_URL=%s OKTA_API_TOKEN=%s oktawatch up\n", org.URL(), token)
}

// ended tells a clean stop from an error.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) && isCanceled(err) {
		return nil
	}
	return err
}
