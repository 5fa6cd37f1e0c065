package detect

import (
	"strconv"
	"time"

	"github.com/oktawatch/oktawatch/pkg/finding"
)

// What a person should know of a rule that does not do what it says.
var (
	findUnknown = finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-unknown-to-state-stage", Severity: 3,
		Title:       "Events of a rule became dead letters, because it is not loaded in that version",
		Description: "The match stage took events for a rule, and the state stage does not have that rule in that version.",
		Runbook:     "If the rule was removed on purpose, purge the dead letters. Else compare the rules of all detect instances, and redrive the dead letters when they agree.",
	}
	findLimited = finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-over-its-limit", Severity: 3,
		Title:       "A rule holds more than the limits allow",
		Description: "What is over the limits is not judged, and the rule's detections say truncated.",
		Runbook:     "Narrow the rule's where, shorten its window, or group by a key that attackers cannot choose.",
	}
)

// aboutRule is what such a finding is about: one a rule, partition and UTC day; all of a rule's day are in one alert. at is a time that
// does not depend on when it is judged, so that a repeat gives the same record.
func aboutRule(f finding.Finding, org, ruleID, detail string, partition int32, at time.Time) finding.About {
	n := strconv.Itoa(int(partition))
	return finding.About{
		Org: org, Of: []string{ruleID, n}, Key: []string{ruleID, at.UTC().Format(time.DateOnly)}, At: at,
		Title: f.Title + ": " + ruleID, Detail: map[string]any{"rule": ruleID, "detail": detail, "partition": n},
	}
}
