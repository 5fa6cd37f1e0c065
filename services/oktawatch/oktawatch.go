// Package oktawatch is the one tool: `up` composes every service with an embedded broker and registry in one process,
// the other commands look at and prepare any cluster the services run on. It holds no pipeline logic: what a command
// needs lives in pkg, what a stage does lives in its service.
package oktawatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/svc"
)

// Exit codes, the same for every command.
const (
	exitGood     = 0
	exitFindings = 1 // something was found: a difference, an incompatible schema, a stage that is not alive
	exitUsage    = 2 // usage, configuration, files, network
)

//go:generate go run ./internal/confdoc

// errFindings ends a command whose findings are already printed.
var errFindings = errors.New("findings")

// tool is what the commands share: the global flags and where to print.
type tool struct {
	out, errs io.Writer
	config    string   // --config
	sets      []string // --set
	kafka     string   // --kafka
	registry  string   // --registry
	dataDir   string   // --data-dir
	verbose   bool
	output    string
	flagsSet  func(name string) bool
}

// Main runs one command and returns the process's exit code.
func Main(args []string, out, errs io.Writer) int {
	signals, stop := signal.NotifyContext(context.Background(), svc.Signals()...)
	defer stop()
	ctx, cancel := context.WithCancel(context.Background()) // one that is asked to end, whoever asks
	defer cancel()
	go func() {
		<-signals.Done()
		cancel()
		time.Sleep(svc.SameSignal)
		stop() // from now on a signal ends the process at once
	}()
	t := &tool{out: out, errs: errs}
	root := t.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitGood
	case errors.Is(err, errFindings):
		return exitFindings
	}
	fmt.Fprintln(errs, "oktawatch: "+err.Error())
	if code := svc.Exit(err); code == svc.ExitInstanceTaken {
		return code
	}
	return exitUsage
}

func (t *tool) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "oktawatch",
		Short: "Okta System Log to detections that people act on",
		Long: `oktawatch turns an Okta org's System Log into detections that people act on.

  oktawatch up --demo     everything in one process, with a simulated Okta org
  oktawatch up            the same against a real org: set OKTA_ORG_URL and OKTA_API_TOKEN
  oktawatch status        each stage: alive, lag, dead letters, last event`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: false},
	}
	f := root.PersistentFlags()
	f.StringVar(&t.config, "config", "", "configuration `file` (YAML)")
	f.StringArrayVar(&t.sets, "set", nil, "one configuration `key=value`, over file and environment; may be repeated")
	f.StringVar(&t.kafka, "kafka", "", "Kafka `brokers`, host:port, comma between them")
	f.StringVar(&t.registry, "registry", "", "schema registry `URL`, a path is allowed")
	f.StringVar(&t.dataDir, "data-dir", "", "`directory` of `oktawatch up` (default $OKTAWATCH_DATA_DIR, else $XDG_STATE_HOME/oktawatch, and below it demo for --demo)")
	f.BoolVarP(&t.verbose, "verbose", "v", false, "say on stderr which broker and registry are used, and why")
	f.StringVarP(&t.output, "output", "o", "text", "output `format`: text or json")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		t.flagsSet = func(name string) bool { f := cmd.Flags().Lookup(name); return f != nil && f.Changed }
		if t.output != "text" && t.output != "json" {
			return fmt.Errorf("--output %s: want text or json", t.output)
		}
		return nil
	}
	root.AddCommand(t.up(), t.sim(), t.topics(), t.schemas(), t.rules(), t.detections(), t.status(), t.configuration(), t.healthcheck(), t.version())
	for _, c := range root.Commands() {
		if c.HasSubCommands() && !c.Runnable() {
			c.RunE = needSubcommand
		}
	}
	return root
}

// needSubcommand is what a command does that only holds others: help, or the word that may have been meant.
func needSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2
	meant := ""
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		meant = ": did you mean " + strings.Join(like, " or ") + "?"
	}
	return fmt.Errorf("%s has no command %q%s", cmd.CommandPath(), args[0], meant)
}
