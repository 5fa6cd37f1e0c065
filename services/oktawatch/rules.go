package oktawatch

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
	"github.com/oktawatch/oktawatch/rules"
)

func (t *tool) rules() *cobra.Command {
	cmd := &cobra.Command{Use: "rules", Short: "Try, test and look at rules"}
	cmd.AddCommand(t.rulesEval(), t.rulesTest(), t.rulesList(), t.rulesShow(), t.rulesStatus(), t.rulesSeed())
	return cmd
}

// ruleSet is what a rules command works on.
type ruleSet struct {
	*rule.Set
	fsys fs.FS
	name string // goes before file names
}

func rulesFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "rules", "", "`directory` of the rules (default: rules beside you, else the pack of the binary)")
}

// loadRules reads the rules of a folder, or those of the binary. Refused files are told on stderr; they are findings.
func (t *tool) loadRules(dir string) (ruleSet, []rule.Problem, error) {
	s := ruleSet{fsys: rules.FS, name: "rules"}
	if dir == "" {
		if st, err := os.Stat("rules"); err == nil && st.IsDir() {
			dir = "rules"
		}
	}
	if dir != "" {
		if st, err := os.Stat(dir); err != nil {
			return s, nil, fmt.Errorf("read rules: %w", err)
		} else if !st.IsDir() {
			return s, nil, fmt.Errorf("read rules: %s is a file, name its folder", dir)
		}
		s.fsys, s.name = os.DirFS(dir), filepath.ToSlash(filepath.Clean(dir))
	}
	l, err := rule.NewLoader()
	if err != nil {
		return s, nil, err
	}
	set, problems, err := l.Load(rule.Source{Name: s.name, FS: s.fsys})
	if err != nil {
		return s, nil, err
	}
	s.Set = set
	for _, p := range problems {
		fmt.Fprintln(t.errs, p)
	}
	if len(set.Rules) == 0 {
		return s, problems, fmt.Errorf("read rules: there is no sound rule in %s", s.name)
	}
	return s, problems, nil
}

// found is a detection as `rules eval` prints it: one object a line.
type found struct {
	RuleID     string    `json:"rule_id"`
	Severity   string    `json:"severity"`
	Title      string    `json:"title"`
	DedupKey   string    `json:"dedup_key"`
	EventUUIDs []string  `json:"event_uuids"`
	EventCount int64     `json:"event_count"`
	FirstTime  time.Time `json:"first_time"`
	LastTime   time.Time `json:"last_time"`
	Kind       string    `json:"kind"`
	Mode       string    `json:"mode"`
	Lane       string    `json:"lane"`
	ID         string    `json:"id"`
	Update     int64     `json:"update"`
	Final      bool      `json:"final"`
	Withdrawn  bool      `json:"withdrawn"`
}

func foundOf(d *record.Detection) found {
	uuids := slices.Clone(d.EvidenceUUIDs)
	slices.Sort(uuids)
	return found{
		d.RuleID, rule.Severity(d.Severity).String(), d.Title, strings.Join(d.DedupKey, "|"), uuids, d.EventCount, d.FirstTime.UTC(), d.LastTime.UTC(),
		d.Kind, d.Mode, d.Lane, d.ID, d.Update, d.Final, d.Withdrawn,
	}
}

func (t *tool) rulesEval() *cobra.Command {
	var dir, input, org string
	var sorted, final, failOnDetection bool
	cmd := &cobra.Command{
		Use: "eval", Short: "Judge a file of events by rules", Args: cobra.NoArgs,
		Long: `Judges LogEvents, as JSON lines or arrays of them, by every rule whatever its mode, and prints one detection a line. It is the
engine that runs live. The clock follows the greatest event time read; at the end it is the time of the last event, and what
would need later time stays undecided. Rules with memory print a detection again when it grows: --final keeps the last word.
Events that come later than a rule's lateness allows are counted on stderr. Exit 0 also when something is detected; see
--fail-on-detection.`,
		Example: "  oktawatch rules eval --input events.jsonl --sort\n  oktawatch topics tail okta.systemlog.v1 --exit -o json | jq -c .value.json | oktawatch rules eval --rules ./rules",
		RunE: func(*cobra.Command, []string) error {
			set, problems, err := t.loadRules(dir)
			if err != nil {
				return err
			}
			file, size, done, err := openInput(input)
			if err != nil {
				return err
			}
			defer done()
			in, err := ruletest.ReadEvents(file, size, org, func(line int, err error) { fmt.Fprintf(t.errs, "%s:%d: skipped: %v\n", input, line, err) })
			if err != nil {
				return err
			}
			if sorted {
				in.Sort()
			}
			n, last := 0, map[string]found{}
			t.sayDisabled(set.Rules)
			met := newMet(t.errs)
			report := met.report()
			report.Found = func(d *record.Detection) error {
				f := foundOf(d)
				if final {
					if old, ok := last[f.ID]; !ok || old.Update <= f.Update {
						last[f.ID] = f
					}
					return nil
				}
				n++
				return t.printFound(f)
			}
			if err := ruletest.Eval(set.Set, in, report); err != nil {
				return err
			}
			for _, f := range lastUpdates(last) {
				n++
				if err := t.printFound(f); err != nil {
					return err
				}
			}
			met.end(set.Set, org)
			if len(problems) > 0 || failOnDetection && n > 0 {
				return errFindings
			}
			return nil
		},
	}
	rulesFlag(cmd, &dir)
	f := cmd.Flags()
	f.StringVar(&input, "input", "-", "`file` of events, - for standard input")
	f.StringVar(&org, "org", ruletest.Org, "the `org` the events are of, for overlays")
	f.BoolVar(&sorted, "sort", false, "judge in the order of published, uuid")
	f.BoolVar(&final, "final", false, "print the last update of each detection alone, and none that was withdrawn")
	f.BoolVar(&failOnDetection, "fail-on-detection", false, "exit 1 when something is detected")
	return cmd
}

// openInput opens a file of events for reading back and forth; what cannot be (a pipe) is copied into a file that goes
// away at the end.
func openInput(name string) (file io.ReaderAt, size int64, done func(), err error) {
	f := os.Stdin
	if name != "-" {
		if f, err = os.Open(name); err != nil {
			return nil, 0, nil, fmt.Errorf("read events: %w", err)
		}
	}
	done = func() { f.Close() } //nolint:gosec // only read
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = fmt.Errorf("%s is a folder, name a file", name)
	}
	if err != nil {
		done()
		return nil, 0, nil, fmt.Errorf("read events: %w", err)
	}
	if st.Mode().IsRegular() {
		return f, st.Size(), done, nil
	}
	defer done()
	tmp, err := os.CreateTemp("", "oktawatch-events-")
	if err != nil {
		return nil, 0, nil, fmt.Errorf("read events: %w", err)
	}
	done2 := func() { tmp.Close() }               //nolint:gosec // it is gone
	if err := os.Remove(tmp.Name()); err != nil { // its name; what is in it stays as long as it is open
		done2 = func() { tmp.Close(); os.Remove(tmp.Name()) } //nolint:gosec // nothing more to do
	}
	if size, err = io.Copy(tmp, f); err != nil {
		done2()
		return nil, 0, nil, fmt.Errorf("read events: %w", err)
	}
	return tmp, size, done2, nil
}

// met is what an evaluation met beside detections, for stderr.
type met struct {
	out     io.Writer
	late    map[string]int
	failed  map[string]int
	limited map[string]bool
}

func newMet(out io.Writer) *met {
	return &met{out, map[string]int{}, map[string]int{}, map[string]bool{}}
}

// failuresShown is how many failed expressions of a rule are told one by one.
const failuresShown = 3

func (m *met) report() ruletest.Report {
	return ruletest.Report{
		Failed: func(err error) {
			id := ""
			if e, ok := errors.AsType[*rule.EvalError](err); ok {
				id = e.Rule
			}
			if m.failed[id]++; m.failed[id] <= failuresShown {
				fmt.Fprintln(m.out, err)
			}
		},
		Late: func(id string) { m.late[id]++ },
		Limited: func(id, what string) {
			if text := "rule " + id + ": " + what; !m.limited[text] {
				m.limited[text] = true
				fmt.Fprintln(m.out, text)
			}
		},
		Excepted: func(string, string) {},
	}
}

// end tells the sums.
func (m *met) end(set *rule.Set, org string) {
	for _, c := range set.For(org) {
		if n := m.failed[c.ID] - failuresShown; n > 0 {
			fmt.Fprintf(m.out, "rule %s: %d more failures\n", c.ID, n)
		}
		if n := m.late[c.ID]; n > 0 {
			what := "left out"
			if c.Detection.Kind == rule.KindFirstSeen {
				what = "remembered, not judged"
			}
			fmt.Fprintf(m.out, "rule %s: %d late record(s) %s: older than its lateness of %s allows (--sort reads in the order of time)\n", c.ID, n, what, c.Detection.Lateness)
		}
	}
}

// lastUpdates are those of detections that were not withdrawn, in the order of time.
func lastUpdates(last map[string]found) []found {
	out := make([]found, 0, len(last))
	for _, f := range last {
		if !f.Withdrawn {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b found) int {
		return cmp.Or(a.FirstTime.Compare(b.FirstTime), strings.Compare(a.RuleID, b.RuleID), strings.Compare(a.ID, b.ID))
	})
	return out
}

func (t *tool) printFound(f found) error {
	if t.output == "json" {
		return t.jsonLine(f)
	}
	end := ""
	switch {
	case f.Withdrawn:
		end = "  withdrawn"
	case f.Update > 1 && f.Final:
		end = fmt.Sprintf("  update %d, final", f.Update)
	case f.Update > 1:
		end = fmt.Sprintf("  update %d", f.Update)
	}
	_, err := fmt.Fprintf(t.out, "%s  %-8s  %s  %s  [%s]  %d event(s)%s\n", f.FirstTime.Format("2006-01-02T15:04:05.000Z"), f.Severity, f.RuleID, f.Title, f.DedupKey, f.EventCount, end)
	return err
}

func (t *tool) rulesTest() *cobra.Command {
	var dir, run string
	cmd := &cobra.Command{
		Use: "test", Short: "Play the tests that stand in the rules (exit 1 when one fails)", Args: cobra.NoArgs,
		Long: "Plays each test in order, shuffled, with every event twice and with an event hook's partial copy before each event; all must end alike.\nFailures are printed, then one line: rules, tests, failures. No test at all is a failure.",
		RunE: func(*cobra.Command, []string) error {
			only, err := regexp.Compile(run)
			if err != nil {
				return fmt.Errorf("--run: %w", err)
			}
			set, problems, err := t.loadRules(dir)
			if err != nil {
				return err
			}
			type failure struct {
				RuleID   string   `json:"rule_id"`
				Test     string   `json:"test"`
				Place    string   `json:"place"`
				Failures []string `json:"failures"`
			}
			report := struct {
				Rules    int       `json:"rules"`
				Tests    int       `json:"tests"`
				Failures int       `json:"failures"`
				Refused  int       `json:"refused"`
				Failed   []failure `json:"failed"`
			}{Refused: len(problems), Failed: []failure{}}
			t.sayDisabled(slices.DeleteFunc(slices.Clone(set.Rules), func(c *rule.Compiled) bool { return !only.MatchString(c.ID) }))
			for _, c := range set.Rules {
				if !only.MatchString(c.ID) {
					continue
				}
				report.Rules++
				below := strings.TrimPrefix(strings.TrimPrefix(path.Dir(c.File), set.name), "/")
				for _, res := range ruletest.Run(set.Set, &c.Rule, set.fsys, below) {
					report.Tests++
					if len(res.Failures) > 0 {
						report.Failures++
						report.Failed = append(report.Failed, failure{c.ID, res.Test, res.Pos.String(), res.Failures})
					}
				}
			}
			if t.output == "json" {
				if err := t.json(report); err != nil {
					return err
				}
			} else {
				for _, f := range report.Failed {
					fmt.Fprintf(t.out, "%s: %s: %s\n", f.Place, f.RuleID, f.Test)
					for _, what := range f.Failures {
						fmt.Fprintf(t.out, "    %s\n", what)
					}
				}
				fmt.Fprintf(t.out, "%d rules, %d tests, %d failures\n", report.Rules, report.Tests, report.Failures)
			}
			if report.Failures > 0 || report.Refused > 0 || report.Tests == 0 {
				return errFindings
			}
			return nil
		},
	}
	rulesFlag(cmd, &dir)
	cmd.Flags().StringVar(&run, "run", "", "only rules whose id matches this `regular expression`")
	return cmd
}

// summary is a rule as `rules list` and `rules show` tell it.
type summary struct {
	RuleID      string   `json:"rule_id"`
	Title       string   `json:"title"`
	Pack        string   `json:"pack"`
	Kind        string   `json:"kind"`
	Mode        string   `json:"mode"`
	Severity    string   `json:"severity"`
	Techniques  []string `json:"techniques"`
	EventTypes  string   `json:"event_types"` // which wake it
	Bound       bool     `json:"bound"`       // false: it sees every event
	Copies      string   `json:"copies"`      // which copies of an event it judges
	Reads       []string `json:"reads"`       // sections
	Tests       int      `json:"tests"`
	ContentHash string   `json:"content_hash"`
	StateHash   string   `json:"state_hash"`
	Learning    string   `json:"learning,omitempty"` // of a rule that `rules seed` fills
	File        string   `json:"file"`
}

func summaryOf(c *rule.Compiled) summary {
	s := summary{
		RuleID: c.ID, Title: c.Name, Pack: c.Pack, Kind: string(c.Detection.Kind), Mode: string(c.Mode), Severity: c.Severity.String(), Techniques: []string{},
		EventTypes: wokenBy(c), Bound: c.Bound(), Copies: string(c.Copies), Reads: c.Reads, Tests: len(c.Tests), ContentHash: c.ContentHash,
		StateHash: c.StateHash, File: c.File,
	}
	if engine.TakesSeeds(c) {
		s.Learning = c.Detection.Learning.String()
	}
	for _, m := range c.Mitre {
		s.Techniques = append(s.Techniques, m.String())
	}
	return s
}

func wokenBy(c *rule.Compiled) string {
	if c.Types.All {
		return "every event"
	}
	woken := append(slices.Clone(c.Types.Exact), c.Types.Globs...)
	if c.Over() {
		woken = append(woken, c.Sources())
	}
	return strings.Join(woken, ", ")
}

func (t *tool) rulesList() *cobra.Command {
	var dir, pack string
	cmd := &cobra.Command{
		Use: "list", Short: "List the rules, and those that every event wakes", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			set, _, err := t.loadRules(dir)
			if err != nil {
				return err
			}
			out, unbound := []summary{}, []string{}
			for _, c := range set.Rules {
				if pack == "" || c.Pack == pack {
					out = append(out, summaryOf(c))
				}
			}
			if t.output == "json" {
				return t.json(out)
			}
			w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "RULE\tPACK\tKIND\tMODE\tSEVERITY\tTESTS\tTITLE")
			for _, s := range out {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", s.RuleID, s.Pack, s.Kind, s.Mode, s.Severity, s.Tests, s.Title)
				if !s.Bound {
					unbound = append(unbound, s.RuleID)
				}
			}
			if err := w.Flush(); err != nil || len(unbound) == 0 {
				return err
			}
			_, err = fmt.Fprintf(t.out, "\nwoken by every event, since no event type follows from the filter: %s\n", strings.Join(unbound, ", "))
			return err
		},
	}
	rulesFlag(cmd, &dir)
	cmd.Flags().StringVar(&pack, "pack", "", "only rules of this `pack`")
	return cmd
}

func (t *tool) rulesShow() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show a rule: which events wake it, what it reads, which copies it judges", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			set, _, err := t.loadRules(dir)
			if err != nil {
				return err
			}
			c, ok := set.Rule(args[0])
			if !ok {
				return errors.New("there is no rule " + args[0] + " in " + set.name + "; `oktawatch rules list` names them")
			}
			s := summaryOf(c)
			if t.output == "json" {
				return t.json(s)
			}
			w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
			for _, row := range [][2]string{
				{"rule", s.RuleID},
				{"title", s.Title},
				{"file", s.File},
				{"pack", dash(s.Pack)},
				{"kind", s.Kind},
				{"mode", s.Mode},
				{"severity", s.Severity},
				{"techniques", dash(strings.Join(s.Techniques, ", "))},
				{"woken by", s.EventTypes},
				{"reads", strings.Join(s.Reads, ", ")},
				{"judges", s.Copies},
				{"tests", fmt.Sprint(s.Tests)},
				{"content hash", s.ContentHash},
				{"state hash", s.StateHash},
			} {
				fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
			}
			if s.Learning != "" {
				fmt.Fprintf(w, "learns\t%s, anew after each change of the state hash; `oktawatch rules seed --input FILE` spares the wait\n", s.Learning)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			_, err = fmt.Fprintf(t.out, "\n%s", c.Source())
			return err
		},
	}
	rulesFlag(cmd, &dir)
	return cmd
}

// sayDisabled says that rules which detect would not run are judged here all the same.
func (t *tool) sayDisabled(rules []*rule.Compiled) {
	var ids []string
	for _, c := range rules {
		if c.Mode == rule.ModeDisabled {
			ids = append(ids, c.ID)
		}
	}
	switch {
	case len(ids) == 0:
	case len(ids) > 3:
		fmt.Fprintf(t.errs, "%d rules of mode disabled are judged too: %s, …\n", len(ids), strings.Join(ids[:3], ", "))
	default:
		fmt.Fprintf(t.errs, "judged too, though disabled: %s\n", strings.Join(ids, ", "))
	}
}
