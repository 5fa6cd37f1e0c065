package oktawatch

import (
	"cmp"
	"context"
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
	Notes       []string       `json:"notes"`
}

type statusOfRules struct {
	Rules  []*ruleStatus `json:"rules"`
	Health []health      `json:"health"`
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
topic still holds of the live lane. What a running instance has loaded is not on the topic: a rule without detections may not be
loaded anywhere. Findings of kind rule_health come last.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts := tail.Options{Exit: true}
			var err error
			if since != "" {
				if opts.Since, err = parseSince(since); err != nil {
					return err
				}
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
			s, err := statusOf(cmd.Context(), r, opts, set)
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
func statusOf(ctx context.Context, r *tail.Reader, opts tail.Options, set *rule.Set) (*statusOfRules, error) {
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
			s = &ruleStatus{RuleID: id, Judged: map[string]int{}, Notes: []string{}}
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
			h := health{d.RuleID, d.Context["rule"], d.Title, d.Context["detail"], d.LastTime}
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
	for _, s := range rules {
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
	out := &statusOfRules{
		Rules: slices.SortedFunc(maps.Values(rules), func(a, b *ruleStatus) int { return strings.Compare(a.RuleID, b.RuleID) }),
		Health: slices.SortedFunc(maps.Values(ill), func(a, b health) int {
			return cmp.Or(strings.Compare(a.RuleID, b.RuleID), strings.Compare(a.Finding, b.Finding))
		}),
	}
	if out.Health == nil {
		out.Health = []health{}
	}
	return out, nil
}

func (t *tool) printRulesStatus(s *statusOfRules, all bool) error {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RULE\tKIND\tMODE\tDETECTIONS\tLAST HIT\tNOTES")
	quiet := 0
	for _, r := range s.Rules {
		if !all && r.Detections == 0 && len(r.Notes) == 0 {
			quiet++
			continue
		}
		hit := "-"
		if !r.LastHit.IsZero() {
			hit = r.LastHit.UTC().Format(clock)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", visible(r.RuleID, 80), dash(r.Kind), dash(r.Mode), r.Detections, hit, strings.Join(r.Notes, "; "))
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
