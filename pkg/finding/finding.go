// Package finding makes the detections by which the pipeline tells of itself: a source, a rule or a receiver that is ill.
// It owns what they all have in common; what is found, and when, is the service's that finds it, and so is how often it
// is told.
//
// Invariant: the same finding of the same thing on the same UTC day is the same detection, whoever makes it and however
// often. Rules judge no finding; people are always told.
package finding

import (
	"cmp"
	"encoding/json"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/ident"
	"github.com/oktawatch/oktawatch/pkg/record"
)

// The kinds of detections that are findings.
const (
	SourceHealth = "source_health" // events, or what is told of them, may be missing or late
	RuleHealth   = "rule_health"   // a rule may miss something
)

// IsHealth says whether a detection of this kind is a finding.
func IsHealth(kind string) bool { return kind == SourceHealth || kind == RuleHealth }

// TestOrg is the label of findings about a test org, "true": they may be told before anything else is known of it.
const TestOrg = "test_org"

const (
	period   = 24 * time.Hour
	maxTitle = 256
)

// Finding is one thing that can be wrong.
type Finding struct {
	Kind        string
	Name        string // rule_id of its detections
	Title       string
	Severity    int32
	Description string // empty: the title as a sentence
	Runbook     string
}

// About is what a finding is about.
type About struct {
	Org    string
	Source string   // set: its id stands in the detection's for the org's
	Of     []string // what tells it from the org's, or source's, others of the same day
	Key    []string // dedup key: those of one key join one alert
	At     time.Time
	Title  string         // empty: the finding's
	Detail map[string]any // its context; what is empty is left out
}

// Detection is the record of a finding about something.
func (f Finding) Detection(a About) *record.Detection {
	at := a.At.UTC().Truncate(time.Millisecond)
	name := append([]string{f.Kind, cmp.Or(a.Source, a.Org), f.Name}, a.Of...)
	context := map[string]string{}
	for k, v := range a.Detail {
		if b, err := json.Marshal(v); err == nil && v != "" {
			context[k] = string(b)
		}
	}
	return &record.Detection{
		ID:     ident.ID([]byte(strings.Join(append(name, at.Format(time.DateOnly)), "\x00"))),
		Update: 1, Revision: 1, Kind: f.Kind, RuleID: f.Name, RuleTitle: f.Title, Title: clip(cmp.Or(a.Title, f.Title)), Pack: "oktawatch",
		Severity: f.Severity, Confidence: "high", Mode: "alert", Org: a.Org, Lane: "live",
		Fingerprint: ident.Fingerprint(a.Org, f.Name, a.Key), DedupKey: a.Key, DedupPeriodMS: period.Milliseconds(),
		Final: true, FirstTime: at, LastTime: at, Description: cmp.Or(f.Description, f.Title+"."), Runbook: f.Runbook,
		Context: context, Tags: []string{"oktawatch"}, SourceID: a.Source,
	}
}

func clip(s string) string {
	if len(s) <= maxTitle {
		return s
	}
	return strings.ToValidUTF8(s[:maxTitle], "")
}
