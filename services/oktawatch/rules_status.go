package oktawatch

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/services/detect"
)

// ruleStatus is a rule with what the topic says of it.
type ruleStatus struct {
	RuleID      string         `json:"rule_id"`
	Kind        string         `json:"kind,omitempty"`
	Mode        string         `json:"mode,omitempty"`
	AtHand      bool           `json:"at_hand"`                // false: only the topic knows it
	ContentHash string         `json:"content_hash,omitempty"` // of the rule at hand
	Detections  int            `json:"detections"`             // on the topic, without the withdrawn ones
	Withdrawn   int            `json:"withdrawn"`
	LastHit     time.Time      `json:"last_hit,omitzero"`
	Judged      map[string]int `json:"judged_by"` // content hash to detections whose last update it wrote
	Findings    []string       `json:"findings"`  // names of findings about it that were told so lately that they may still hold
	Notes       []string       `json:"notes"`
	report
}

// report is what the instances report of a rule, together, in the version that is in force there.
type report struct {
	Taken      int64            `json:"taken"` // events that its filter took
	Hits       int64            `json:"hits"`  // detections written, each update counted
	LastMatch  time.Time        `json:"last_match,omitzero"`
	Errors     int64            `json:"errors"` // today and yesterday, by UTC
	Excepted   map[string]int64 `json:"exceptions"`
	Late       int64            `json:"late"`
	Limited    int64            `json:"limited"`
	CostP50us  float64          `json:"cost_p50_us,omitempty"` // of the slowest instance
	CostP99us  float64          `json:"cost_p99_us,omitempty"`
	CostSample int64            `json:"cost_samples,omitempty"`
}

type statusOfRules struct {
	Hash      string           `json:"hash"` // of the rules at hand
	Same      bool             `json:"same"` // the running instances have one set of rules, if any runs
	Instances []instanceStatus `json:"instances"`
	Rules     []*ruleStatus    `json:"rules"`
	Health    []health         `json:"health"`
}

// instanceStatus is what one instance of detect says of its rules.
type instanceStatus struct {
	Instance  string    `json:"instance"`
	Part      int       `json:"part"`
	State     string    `json:"state"` // running, stopped or gone
	Seen      time.Time `json:"heartbeat_at"`
	StartedAt time.Time `json:"started_at"`
	Stopped   bool      `json:"stopped"`
	Hash      string    `json:"hash"`
	LoadedAt  time.Time `json:"loaded_at"`
	Rules     int       `json:"rules"`
	Problems  int       `json:"refused_count"`
	Refused   []refused `json:"refused"`
}

type refused struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Col     int    `json:"col"`
	Check   string `json:"check"`
	Message string `json:"message"`
	Stale   bool   `json:"stale"` // the version before is in force
}

// reported is a record of the status topic, as far as people are told of it.
type reported struct {
	instanceStatus
	Costs []struct {
		RuleID  string  `json:"rule_id"`
		Samples int64   `json:"samples"`
		P50     float64 `json:"p50_us"`
		P99     float64 `json:"p99_us"`
	} `json:"costs"`
	Failures []struct {
		RuleID string `json:"rule_id"`
		Count  int64  `json:"count"`
	} `json:"failures"`
	Orgs []struct {
		Newest time.Time `json:"newest"`
	} `json:"orgs"`
	Met []struct {
		RuleID  string    `json:"rule_id"`
		Taken   int64     `json:"taken"`
		TakenAt time.Time `json:"taken_at"`
		Hits    int64     `json:"hits"`
		Late    int64     `json:"late"`
		Limited int64     `json:"limited"`
	} `json:"seen"`
	Exceptions []struct {
		RuleID    string `json:"rule_id"`
		Exception string `json:"exception"`
		Used      int64  `json:"used"`
	} `json:"exceptions"`
}

// health is the last finding of a kind about a rule.
type health struct {
	Finding string    `json:"finding"`
	RuleID  string    `json:"rule_id"`
	Title   string    `json:"title"`
	Detail  string    `json:"detail,omitempty"`
	At      time.Time `json:"at"`
}

func (t *tool) rulesStatus() *cobra.Command {
	var dir, since string
	var all bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show what the rules found, which versions of them judged, and what is wrong with them", Args: cobra.NoArgs,
		Long: `Reads the detections topic and sets it beside the rules at hand (those of the binary and of detect.rules_dir, or of --rules): how many
detections each rule has there, when the last hit was, and whether they were judged by the rule as it is at hand. It counts what the
topic still holds of the live lane. Before that come the running instances of detect, with the hash of the rules they have loaded and the
files they refuse; beside it what they report of each rule: events its filter took (MATCHED), expressions that failed today and
yesterday, events that exceptions kept away, late events, and the time that judging one event takes (p99 of a sample, slowest
instance). They report each 15 seconds. Findings of kind rule_health come last.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts := tail.Options{Exit: true}
			var err error
			if since != "" {
				if opts.Since, err = parseSince(since); err != nil {
					return err
				}
			}
			cfg, err := t.settings()
			if err != nil {
				return err
			}
			set, err := t.rulesInForce(dir)
			if err != nil {
				return err
			}
			c, err := t.connect()
			if err != nil {
				return err
			}
			r, err := c.openTail()
			if err != nil {
				return err
			}
			s, err := statusOf(cmd.Context(), r, opts, set, cfg.Detect.Rules.QuietDays, time.Now())
			if err != nil {
				return err
			}
			if t.output == "json" {
				return t.json(s)
			}
			return t.printRulesStatus(s, all)
		},
	}
	cmd.Flags().StringVar(&dir, "rules", "", "`directory` of the rules (default: those of the binary and of detect.rules_dir)")
	cmd.Flags().StringVar(&since, "since", "", "only detections written from then on: a `time` (RFC 3339) or how long ago (90s, 2h, 7d)")
	cmd.Flags().BoolVar(&all, "all", false, "list rules without detections too")
	return cmd
}

// statusOf counts the detections of the live lane by rule.
func statusOf(ctx context.Context, r *tail.Reader, opts tail.Options, set *rule.Set, quietDays int, now time.Time) (*statusOfRules, error) {
	type last struct {
		rule, hash string
		update     int64
		withdrawn  bool
	}
	byID := map[string]last{}
	rules := map[string]*ruleStatus{}
	of := func(id string) *ruleStatus {
		s := rules[id]
		if s == nil {
			s = &ruleStatus{RuleID: id, Judged: map[string]int{}, Findings: []string{}, Notes: []string{}, report: report{Excepted: map[string]int64{}}}
			rules[id] = s
		}
		return s
	}
	ill := map[string]health{}
	var newest time.Time
	err := r.Read(ctx, topics.Detections.Name, opts, func(rec tail.Record) error {
		if rec.Value == nil {
			return nil
		}
		d, _, err := decodeDetection(ctx, rec)
		if err != nil || d.Lane != "live" {
			return err
		}
		if d.LastTime.After(newest) {
			newest = d.LastTime
		}
		switch d.Kind {
		case "rule_health":
			h := health{d.RuleID, textOf(d.Context["rule"]), d.Title, textOf(d.Context["detail"]), d.LastTime}
			if k := h.Finding + "\x00" + h.RuleID; !ill[k].At.After(h.At) {
				ill[k] = h
			}
			return nil
		case "source_health":
			return nil
		}
		s := of(strings.Clone(d.RuleID))
		if d.LastTime.After(s.LastHit) && !d.Withdrawn {
			s.LastHit = d.LastTime
		}
		if d.Update >= byID[d.ID].update {
			byID[d.ID] = last{s.RuleID, d.ContentHash, d.Update, d.Withdrawn}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := &statusOfRules{Hash: set.Hash}
	reports, err := reportsOf(ctx, r)
	if err != nil {
		return nil, err
	}
	sums, latest := out.sumUp(reports, now)
	for id, m := range sums {
		of(id).report = *m
	}
	if latest.After(newest) {
		newest = latest
	}
	for _, l := range byID {
		s := of(l.rule)
		if l.withdrawn {
			s.Withdrawn++
			continue
		}
		s.Detections++
		s.Judged[l.hash]++
	}
	for _, c := range set.Rules {
		s := of(c.ID)
		s.AtHand, s.Kind, s.Mode, s.ContentHash = true, string(c.Detection.Kind), string(c.Mode), c.ContentHash
		if c.ReplacedBy != "" {
			s.Notes = append(s.Notes, "goes away: "+c.ReplacedBy+" replaces it")
		}
		for _, e := range c.Exceptions {
			if !e.Expires.IsZero() && !newest.Before(e.Expires) {
				s.Notes = append(s.Notes, fmt.Sprintf("its exception %q has expired", e.Name))
			}
		}
	}
	atHand := map[string]bool{} // content hashes: overlays give an org's rules others
	for _, org := range append(set.Orgs(), "") {
		for _, c := range set.For(org) {
			atHand[c.ContentHash] = true
		}
	}
	for _, h := range ill {
		if s := rules[h.RuleID]; s != nil && now.Sub(h.At) < detect.Lasts(h.Finding, quietDays) {
			s.Findings = append(s.Findings, h.Finding)
		}
	}
	for _, s := range rules {
		slices.Sort(s.Findings)
		if !s.AtHand {
			s.Notes = append(s.Notes, "not among the rules at hand")
			continue
		}
		others, n := 0, 0
		for hash, judged := range s.Judged {
			if !atHand[hash] {
				others, n = others+1, n+judged
			}
		}
		if others > 0 {
			s.Notes = append(s.Notes, fmt.Sprintf("%d of its detections were judged by %d other version(s)", n, others))
		}
	}
	out.Rules = slices.SortedFunc(maps.Values(rules), func(a, b *ruleStatus) int { return strings.Compare(a.RuleID, b.RuleID) })
	out.Health = append([]health{}, slices.SortedFunc(maps.Values(ill), func(a, b health) int {
		return cmp.Or(strings.Compare(a.RuleID, b.RuleID), strings.Compare(a.Finding, b.Finding))
	})...)
	return out, nil
}

// textOf is a text of a detection's context, where each value is JSON.
func textOf(value string) string {
	var s string
	if json.Unmarshal([]byte(value), &s) != nil {
		return value
	}
	return s
}

// reportsOf reads what stands on the status topic.
func reportsOf(ctx context.Context, r *tail.Reader) ([]reported, error) {
	stands := map[string]reported{}
	err := r.Read(ctx, topics.RuleStatus.Name, tail.Options{Exit: true}, func(rec tail.Record) error {
		key := string(rec.Key)
		if rec.Value == nil {
			delete(stands, key)
			return nil
		}
		plain, err := rec.Plain(ctx)
		if err != nil {
			return err
		}
		var st reported
		if err := json.Unmarshal(plain, &st); err != nil {
			return fmt.Errorf("read %s %d@%d: %w", rec.Topic, rec.Partition, rec.Offset, err)
		}
		stands[key] = st
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what the instances report: %w", err)
	}
	return slices.SortedFunc(maps.Values(stands), func(a, b reported) int {
		return cmp.Or(strings.Compare(a.Instance, b.Instance), cmp.Compare(a.Part, b.Part))
	}), nil
}

// sumUp lists the instances and adds up what they met by rule. newest is the latest event time that one of them has seen.
func (s *statusOfRules) sumUp(reports []reported, now time.Time) (rules map[string]*report, newest time.Time) {
	rules = map[string]*report{}
	of := func(id string) *report {
		if rules[id] == nil {
			rules[id] = &report{Excepted: map[string]int64{}}
		}
		return rules[id]
	}
	s.Instances, s.Same = []instanceStatus{}, true
	hash := ""
	for _, st := range reports {
		if st.Part == 0 {
			i := st.instanceStatus
			switch {
			case i.Stopped:
				i.State = "stopped"
			case now.Sub(i.Seen) < detect.InstanceAlive:
				i.State = "running"
				s.Same = s.Same && (hash == "" || hash == i.Hash)
				hash = i.Hash
			default:
				i.State = "gone"
			}
			if i.Refused == nil {
				i.Refused = []refused{}
			}
			s.Instances = append(s.Instances, i)
		}
		for _, c := range st.Costs {
			if m := of(c.RuleID); c.P99 > m.CostP99us {
				m.CostP50us, m.CostP99us, m.CostSample = c.P50, c.P99, c.Samples
			}
		}
		for _, f := range st.Failures {
			of(f.RuleID).Errors += f.Count
		}
		for _, o := range st.Orgs {
			if o.Newest.After(newest) {
				newest = o.Newest
			}
		}
		for _, x := range st.Met {
			m := of(x.RuleID)
			m.Taken += x.Taken
			m.Hits += x.Hits
			m.Late += x.Late
			m.Limited += x.Limited
			if x.TakenAt.After(m.LastMatch) {
				m.LastMatch = x.TakenAt
			}
		}
		for _, x := range st.Exceptions {
			of(x.RuleID).Excepted[x.Exception] += x.Used
		}
	}
	return rules, newest
}

func (t *tool) printInstances(s *statusOfRules) error {
	if len(s.Instances) == 0 {
		fmt.Fprintln(t.out, "no instance of detect has reported")
		return nil
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "INSTANCE\tSTATE\tRULES\tHASH\tLOADED\tHEARTBEAT")
	running := 0
	for _, i := range s.Instances {
		if i.State == "running" {
			running++
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", visible(i.Instance, 80), i.State, i.Rules, i.Hash, ago(i.LoadedAt), ago(i.Seen))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	switch {
	case running == 0:
		fmt.Fprintln(t.out, "WARNING: no instance of detect runs: nothing is judged")
	case !s.Same:
		fmt.Fprintln(t.out, "WARNING: the running instances judge by different rules: give all the same folders")
	default:
		hash := ""
		for _, i := range s.Instances {
			if i.State == "running" {
				hash = i.Hash
			}
		}
		if hash != s.Hash {
			fmt.Fprintf(t.out, "the rules at hand are not those that are in force there: their hash is %s\n", s.Hash)
		}
	}
	for _, i := range s.Instances {
		for _, p := range i.Refused {
			force := ""
			if p.Stale {
				force = " (the version before is in force)"
			}
			fmt.Fprintf(t.out, "%s refuses %s:%d:%d: %s: %s%s\n", visible(i.Instance, 80), visible(p.File, 200), p.Line, p.Col, p.Check, visible(p.Message, 500), force)
		}
		if more := i.Problems - len(i.Refused); more > 0 {
			fmt.Fprintf(t.out, "%s has %d more problem(s) in files of rules\n", visible(i.Instance, 80), more)
		}
	}
	fmt.Fprintln(t.out)
	return nil
}

// quiet tells whether there is nothing to say of a rule.
func (r *ruleStatus) quiet() bool {
	return r.Detections == 0 && len(r.Notes) == 0 && len(r.Findings) == 0 && r.Taken+r.Errors+r.Late == 0 && len(r.Excepted) == 0
}

func (t *tool) printRulesStatus(s *statusOfRules, all bool) error {
	if err := t.printInstances(s); err != nil {
		return err
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RULE\tKIND\tMODE\tDETECTIONS\tLAST HIT\tMATCHED\tERRORS\tEXCEPTED\tLATE\tP99\tNOTES")
	quiet := 0
	for _, r := range s.Rules {
		if !all && r.quiet() {
			quiet++
			continue
		}
		hit, cost, excepted := "-", "-", int64(0)
		if !r.LastHit.IsZero() {
			hit = r.LastHit.UTC().Format(clock)
		}
		if r.CostSample > 0 {
			cost = time.Duration(r.CostP99us * float64(time.Microsecond)).Round(100 * time.Nanosecond).String()
		}
		for _, n := range r.Excepted {
			excepted += n
		}
		notes := slices.Clone(r.Notes)
		if len(r.Findings) > 0 {
			notes = append(notes, strings.Join(r.Findings, ", "))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", visible(r.RuleID, 80), dash(r.Kind), dash(r.Mode), r.Detections, hit,
			r.Taken, r.Errors, excepted, r.Late, cost, strings.Join(notes, "; "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if quiet > 0 {
		fmt.Fprintf(t.out, "and %d rule(s) without detections on the topic (--all lists them)\n", quiet)
	}
	for _, h := range s.Health {
		fmt.Fprintf(t.out, "%s  %s: %s", h.At.UTC().Format(clock), h.Finding, visible(h.Title, 200))
		if h.Detail != "" {
			fmt.Fprintf(t.out, " (%s)", visible(h.Detail, 200))
		}
		fmt.Fprintln(t.out)
	}
	return nil
}
