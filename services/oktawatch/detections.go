package oktawatch

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
)

func (t *tool) detections() *cobra.Command {
	cmd := &cobra.Command{Use: "detections", Short: "Follow what the rules find, and look at one of it"}
	cmd.AddCommand(t.detectionsTail(), t.detectionsShow())
	return cmd
}

// detection is a record of the topic, as far as people are told of it.
type detection struct {
	ID            string            `json:"id"`
	Update        int64             `json:"update"`
	Revision      int               `json:"revision"`
	Kind          string            `json:"kind"`
	RuleID        string            `json:"rule_id"`
	Title         string            `json:"title"`
	Pack          string            `json:"pack"`
	Severity      int               `json:"severity"`
	Confidence    string            `json:"confidence"`
	Mode          string            `json:"mode"`
	Org           string            `json:"org"`
	Lane          string            `json:"lane"`
	Fingerprint   string            `json:"fingerprint"`
	DedupKey      []string          `json:"dedup_key"`
	Key           map[string]string `json:"key"`
	Final         bool              `json:"final"`
	Withdrawn     bool              `json:"withdrawn"`
	Partial       bool              `json:"partial"`
	Truncated     bool              `json:"truncated"`
	FirstTime     time.Time         `json:"first_time"`
	LastTime      time.Time         `json:"last_time"`
	EventCount    int64             `json:"event_count"`
	EvidenceUUIDs []string          `json:"evidence_uuids"`
	Evidence      []evidence        `json:"evidence"`
	Context       map[string]string `json:"context"`
	Values        map[string]string `json:"values"`
	Users         []string          `json:"users"`
	Addresses     []string          `json:"addresses"`
	Apps          []string          `json:"apps"`
	ContentHash   string            `json:"content_hash"`
	StateHash     string            `json:"state_hash"`
}

type evidence struct {
	UUID      string          `json:"uuid"`
	EventType string          `json:"event_type"`
	Time      time.Time       `json:"time"`
	Topic     string          `json:"topic"`
	Partition int32           `json:"partition"`
	Offset    int64           `json:"offset"`
	Copy      int             `json:"copy"`
	JSON      json.RawMessage `json:"json"`
}

func decodeDetection(ctx context.Context, rec tail.Record) (d detection, whole json.RawMessage, err error) {
	if whole, err = rec.Plain(ctx); err != nil {
		return d, nil, err
	}
	if err := json.Unmarshal(whole, &d); err != nil {
		return d, nil, fmt.Errorf("read %s %d@%d: %w", rec.Topic, rec.Partition, rec.Offset, err)
	}
	return d, whole, nil
}

func (t *tool) detectionsTail() *cobra.Command {
	var since, mode, ruleID string
	var exit bool
	cmd := &cobra.Command{
		Use: "tail", Short: "Follow the detections: committed ones only, without joining a group", Args: cobra.NoArgs,
		Long: `Prints detections as they are written, one update a line: time of the last hit, severity, title, rule, who, id and update. A line with
the same id replaces the one before it; withdrawn takes it back. As JSON each line is the whole record.`,
		Example: "  oktawatch detections tail --since 1h --mode alert\n  oktawatch detections tail --exit -o json | jq -r .title",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"all", "alert", "signal", "shadow"}, mode) {
				return fmt.Errorf("--mode %s: want alert, signal, shadow or all", mode)
			}
			opts := tail.Options{Exit: exit}
			var err error
			if since != "" {
				if opts.Since, err = parseSince(since); err != nil {
					return err
				}
			}
			c, err := t.connect()
			if err != nil {
				return err
			}
			r, err := c.openTail()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			err = r.Read(ctx, topics.Detections.Name, opts, func(rec tail.Record) error {
				if rec.Value == nil {
					return nil
				}
				d, whole, err := decodeDetection(ctx, rec)
				if err != nil {
					return err
				}
				if mode != "all" && d.Mode != mode || ruleID != "" && d.RuleID != ruleID {
					return nil
				}
				if t.output == "json" {
					return t.jsonLine(whole)
				}
				return t.printDetection(d)
			})
			return ended(ctx, err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "start at detections written from then on: a `time` (RFC 3339) or how long ago (90s, 2h, 7d)")
	f.StringVar(&mode, "mode", "all", "only detections of this `mode`: alert, signal, shadow or all")
	f.StringVar(&ruleID, "rule", "", "only detections of the rule with this `id`")
	f.BoolVar(&exit, "exit", false, "end at the end that was there at the start")
	return cmd
}

const clock = "2006-01-02T15:04:05.000Z"

func (t *tool) printDetection(d detection) error {
	end := ""
	if d.Mode != "" && d.Mode != string(rule.ModeAlert) {
		end += "  " + d.Mode
	}
	_, err := fmt.Fprintf(t.out, "%s  %-8s  %s  ·  rule %s  ·  %s  ·  %s.%d%s%s\n", d.LastTime.UTC().Format(clock), rule.Severity(d.Severity),
		visible(d.Title, 160), visible(d.RuleID, 80), who(d), d.ID, d.Update, stateOf(d), end)
	return err
}

// stateOf is final, withdrawn or nothing.
func stateOf(d detection) string {
	switch {
	case d.Withdrawn:
		return "  withdrawn"
	case d.Final:
		return "  final"
	}
	return ""
}

// who names the people of a detection, or from where it came.
func who(d detection) string {
	people := make([]string, len(d.Users))
	for i, u := range d.Users {
		people[i] = account(u)
	}
	return cmp.Or(few(people), few(d.Addresses), few(d.DedupKey), "-")
}

// account is a login as people may see it. What does not look like one may be a password in the wrong field.
func account(s string) string {
	if strings.Contains(s, "@") || strings.HasPrefix(s, "00u") || strings.HasPrefix(s, "system") {
		return s
	}
	return rule.Mask(s)
}

const namesShown = 3

func few(names []string) string {
	var out []string
	for i, n := range names {
		if i == namesShown {
			out = append(out, fmt.Sprintf("and %d more", len(names)-i))
			break
		}
		out = append(out, visible(n, 60))
	}
	return strings.Join(out, ", ")
}

// visible is text from outside as a terminal may have it: no control characters, nothing that turns the direction of
// writing, at most n characters.
func visible(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r), unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp), r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// shown is a detection as `detections show` prints it.
type shown struct {
	Detection json.RawMessage   `json:"detection"`     // the latest update
	Updates   []json.RawMessage `json:"updates"`       // all that there are, in order
	Alert     json.RawMessage   `json:"alert"`         // that it joined; null: none
	Rule      *shownRule        `json:"rule"`          // the rule at hand; null: there is none of this id
	Why       []explained       `json:"why,omitempty"` // each event at hand
	Hit       *explainedHit     `json:"hit,omitempty"` // of rules with memory: the hit that the title is of

	d       detection
	of      detection // the update that is explained
	history []detection
	alert   shownAlert
	events  []*foundEvent // at hand, in record order
}

type shownRule struct {
	RuleID      string `json:"rule_id"`
	File        string `json:"file"`
	Revision    int    `json:"revision"`
	ContentHash string `json:"content_hash"`
	Judged      bool   `json:"judged"` // it is the one that judged: the content hashes are the same
	Text        string `json:"text"`
}

type shownAlert struct {
	ID         string    `json:"id"`
	Status     string    `json:"status"`
	Title      string    `json:"title"`
	OpenedAt   time.Time `json:"opened_at"`
	Detections []struct {
		ID   string `json:"id"`
		Lane string `json:"lane"`
	} `json:"detections"`
}

func (t *tool) detectionsShow() *cobra.Command {
	var dir, lane string
	var explain bool
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one detection: its updates, its events, its alert and why it fired", Args: cobra.ExactArgs(1),
		Long: `Reads the topics for a detection (the beginning of its id is enough where it is the only one) and prints its latest update, the updates
before, the events it rests on and the alert it joined. --explain adds why it fired: what the rule's expressions and their parts were for
each event; of a rule with memory also the hit, with the numbers that the detection carries, which event fulfilled which step, and what a
new key was compared with; and the rule's text. Events that the detection does not carry are looked for in okta.systemlog.v1, for 10 s at
most. The rules are those of the binary and of detect.rules_dir, or of --rules; where the rule at hand is not the one that judged, that is
said.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.connect()
			if err != nil {
				return err
			}
			r, err := c.openTail()
			if err != nil {
				return err
			}
			s, err := findDetection(cmd.Context(), r, strings.TrimSpace(args[0]), lane)
			if err != nil {
				return err
			}
			if err := s.findAlert(cmd.Context(), r); err != nil {
				return err
			}
			set, err := t.rulesInForce(dir)
			if err != nil {
				return err
			}
			compiled := s.findRule(set)
			if explain && compiled != nil {
				if err := s.explain(cmd.Context(), r, set, compiled); err != nil {
					return err
				}
			}
			if t.output == "json" {
				return t.json(s)
			}
			return t.printShown(s, explain)
		},
	}
	cmd.Flags().BoolVar(&explain, "explain", false, "add the rule's text and why it fired")
	cmd.Flags().StringVar(&lane, "lane", "live", "the `lane` of the detection: live, or the id of a backfill")
	cmd.Flags().StringVar(&dir, "rules", "", "`directory` of the rules (default: those of the binary and of detect.rules_dir)")
	return cmd
}

// rulesInForce loads the rules as detect does with this configuration, or those of a folder.
func (t *tool) rulesInForce(dir string) (*rule.Set, error) {
	l, err := rule.NewLoader()
	if err != nil {
		return nil, err
	}
	var sources []rule.Source
	folder := func(dir string, site bool, holds rule.Holds) {
		if dir != "" {
			sources = append(sources, rule.Source{Name: filepath.ToSlash(filepath.Clean(dir)), FS: os.DirFS(dir), Site: site, Holds: holds})
		}
	}
	if dir != "" {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return nil, fmt.Errorf("read rules: %s is no folder", dir)
		}
		folder(dir, false, rule.HoldsRules)
	} else {
		c, err := t.settings()
		if err != nil {
			return nil, err
		}
		if c.Detect.Rules.Builtin == nil || *c.Detect.Rules.Builtin {
			sources = append(sources, rule.Source{Name: "rules", FS: rules.FS})
		}
		folder(c.Detect.RulesDir, true, rule.HoldsRules)
		folder(c.Detect.ListsDir, true, rule.HoldsLists)
		folder(c.Detect.OverlaysDir, true, rule.HoldsOverlays)
	}
	set, problems, err := l.Load(sources...)
	if err != nil {
		return nil, err
	}
	for _, p := range problems {
		fmt.Fprintln(t.errs, p)
	}
	return set, nil
}

// findDetection reads all updates of a detection.
func findDetection(ctx context.Context, r *tail.Reader, id, lane string) (*shown, error) {
	if id, _, _ = strings.Cut(id, "."); len(id) < 4 { // as tail prints it: id.update
		return nil, errors.New("an id has more letters: `oktawatch detections tail` prints them")
	}
	found := map[string]*shown{}
	lanes := map[string]bool{}
	err := r.Read(ctx, topics.Detections.Name, tail.Options{Exit: true}, func(rec tail.Record) error {
		n, err := rec.ID(ctx)
		if err != nil || !strings.HasPrefix(n.ID, id) {
			return err
		}
		if lanes[n.Lane] = true; n.Lane != lane {
			return nil
		}
		d, whole, err := decodeDetection(ctx, rec)
		if err != nil {
			return err
		}
		s := found[d.ID]
		if s == nil {
			s = &shown{Alert: json.RawMessage("null")}
			found[d.ID] = s
		}
		if i := slices.IndexFunc(s.history, func(o detection) bool { return o.Update == d.Update }); i >= 0 {
			return nil // written again after a crash: the same
		}
		s.history, s.Updates = append(s.history, d), append(s.Updates, whole)
		if d.Update >= s.d.Update {
			s.d, s.Detection = d, whole
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0 && len(lanes) > 0:
		return nil, fmt.Errorf("detection %s is of another lane: --lane %s", id, strings.Join(slices.Sorted(maps.Keys(lanes)), " or --lane "))
	case len(found) == 0:
		return nil, fmt.Errorf("there is no detection %s in %s (any more)", id, topics.Detections.Name)
	case len(found) > 1:
		return nil, fmt.Errorf("%d detections begin with %s: write more of the id", len(found), id)
	}
	for _, s := range found {
		return s, nil
	}
	return nil, nil
}

// findAlert reads the alert that the detection joined, as it is now.
func (s *shown) findAlert(ctx context.Context, r *tail.Reader) error {
	err := r.Read(ctx, topics.Alerts.Name, tail.Options{Exit: true}, func(rec tail.Record) error {
		if rec.Value == nil || !strings.HasPrefix(string(rec.Key), s.d.Fingerprint+".") {
			return nil
		}
		whole, err := rec.Plain(ctx)
		if err != nil {
			return err
		}
		var a shownAlert
		if err := json.Unmarshal(whole, &a); err != nil {
			return fmt.Errorf("read alert %s: %w", rec.Key, err)
		}
		for _, d := range a.Detections {
			if d.ID == s.d.ID && d.Lane == s.d.Lane {
				s.alert, s.Alert = a, whole
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("find its alert: %w", err)
	}
	return nil
}

// findRule finds the rule at hand, best the one that judged.
func (s *shown) findRule(set *rule.Set) *rule.Compiled {
	for _, c := range set.For(s.d.Org) {
		if c.ID == s.d.RuleID {
			s.Rule = &shownRule{c.ID, c.File, c.Revision, c.ContentHash, c.ContentHash == s.d.ContentHash, string(c.Source())}
			return c
		}
	}
	return nil
}

func (t *tool) printShown(s *shown, explain bool) error {
	d := s.d
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	row("detection", d.ID)
	row("update", strconv.FormatInt(d.Update, 10)+strings.Replace(stateOf(d), "  ", ", ", 1))
	row("title", visible(d.Title, 256))
	row("severity", rule.Severity(d.Severity).String())
	row("mode", d.Mode)
	row("rule", fmt.Sprintf("%s, %s, revision %d, content hash %s", visible(d.RuleID, 80), d.Kind, d.Revision, dash(d.ContentHash)))
	row("org", visible(d.Org, 60)+", lane "+visible(d.Lane, 60))
	row("hits", d.FirstTime.UTC().Format(clock)+" to "+d.LastTime.UTC().Format(clock))
	for _, k := range slices.Sorted(maps.Keys(d.Key)) {
		row("key."+k, visible(d.Key[k], 200))
	}
	row("dedup key", visible(strings.Join(d.DedupKey, " | "), 300))
	people := make([]string, len(d.Users))
	for i, u := range d.Users {
		people[i] = account(u)
	}
	row("users", few(people))
	row("addresses", few(d.Addresses))
	row("apps", few(d.Apps))
	for _, k := range slices.Sorted(maps.Keys(d.Context)) {
		row("context."+k, visible(d.Context[k], 300))
	}
	switch {
	case s.alert.ID != "":
		row("alert", fmt.Sprintf("%s, %s: %s", s.alert.ID, s.alert.Status, visible(s.alert.Title, 160)))
	case d.Mode == string(rule.ModeAlert):
		row("alert", "none (yet)")
	default:
		row("alert", "none: its mode is "+d.Mode)
	}
	if d.Partial {
		row("note", "judged from an event hook's copy of some event")
	}
	if d.Truncated {
		row("note", "the group was larger than what is kept: numbers are lower bounds")
	}
	fmt.Fprintln(w, "\nUPDATE\tLAST HIT\tSEVERITY\tEVENTS\tTITLE\t")
	slices.SortFunc(s.history, func(a, b detection) int { return cmp.Compare(a.Update, b.Update) })
	if n := len(s.history) - updatesShown; n > 0 {
		fmt.Fprintf(w, "(%d before)\t\t\t\t\t\n", n)
		s.history = s.history[n:]
	}
	for _, h := range s.history {
		fmt.Fprintf(w, "%d%s\t%s\t%s\t%d\t%s\t\n", h.Update, strings.Replace(stateOf(h), "  ", " ", 1), h.LastTime.UTC().Format(clock), rule.Severity(h.Severity), h.EventCount, visible(h.Title, 160))
	}
	shownOf := ""
	if d.EventCount > int64(len(d.Evidence)) {
		shownOf = fmt.Sprintf(" (the first %d of %d)", len(d.Evidence), d.EventCount)
	}
	fmt.Fprintf(w, "\nEVENT%s\tTYPE\tACTOR\tFROM\tOUTCOME\tUUID\tPLACE\n", shownOf)
	for _, e := range d.Evidence {
		var f struct {
			Actor struct {
				AlternateID string `json:"alternateId"`
				ID          string `json:"id"`
			} `json:"actor"`
			Client struct {
				IPAddress string `json:"ipAddress"`
			} `json:"client"`
			Outcome struct {
				Result string `json:"result"`
				Reason string `json:"reason"`
			} `json:"outcome"`
		}
		_ = json.Unmarshal(e.JSON, &f) // what is not there is shown as a dash
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Time.UTC().Format(clock), visible(e.EventType, 80), dash(visible(account(cmp.Or(f.Actor.AlternateID, f.Actor.ID)), 60)),
			dash(visible(f.Client.IPAddress, 60)), dash(visible(strings.TrimSpace(f.Outcome.Result+" "+f.Outcome.Reason), 60)), visible(e.UUID, 80), place(e))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !explain {
		return nil
	}
	return t.printWhy(s)
}

// updatesShown is how many updates people see; --output json has all.
const updatesShown = 20

func place(e evidence) string {
	if e.Topic == "" || e.Offset < 0 {
		return "-"
	}
	return fmt.Sprintf("%s %d@%d", e.Topic, e.Partition, e.Offset)
}
