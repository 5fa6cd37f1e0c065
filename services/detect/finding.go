package detect

import (
	"cmp"
	"strconv"
	"time"

	"github.com/oktawatch/oktawatch/pkg/finding"
)

// ruleFinding is a finding about a rule, with when it is raised.
type ruleFinding struct {
	finding.Finding
	slow bool   // told again after quiet_days, not each day: nobody has to act today
	when string // it is raised, for docs/rule-health.md
}

// What a person should know of a rule that does not do what it says.
var (
	findUnknown = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-unknown-to-state-stage", Severity: 3,
		Title:       "Events of a rule became dead letters, because it is not loaded in that version",
		Description: "The match stage took events for a rule, and the state stage does not have that rule in that version.",
		Runbook:     "If the rule was removed on purpose, purge the dead letters. Else compare the rules of all detect instances, and redrive the dead letters when they agree.",
	}, when: "An event that a rule with memory took waited a minute for an instance that has the rule in that version."}
	findLimited = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-over-its-limit", Severity: 3,
		Title:       "A rule holds more than the limits allow",
		Description: "What is over the limits is not judged, and the rule's detections say truncated.",
		Runbook:     "Narrow the rule's where, shorten its window, or group by a key that attackers cannot choose.",
	}, when: "A limit of what a rule may hold cut something of a detection."}
	findRefused = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-refused", Severity: 3,
		Title:       "A file of rules was refused",
		Description: "The file cannot be used as it is, or its expressions may cost too much. Its last good version stays in force; without one it is left out.",
		Runbook:     "Mend the file at the line that is named. oktawatch rules test --rules DIR says the same before it is deployed.",
	}, when: "A running instance found a problem in a file of its rules, lists or overlays."}
	findFailing = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-failing", Severity: 3,
		Title:       "An expression of a rule fails",
		Description: "The expression failed at run time and counted as false: the rule may miss what it is there to find.",
		Runbook:     "Guard the expression: has() before a number, size() before an index, ratio() for a division. oktawatch rules eval on such events shows the failure.",
	}, when: "An expression failed at least once that UTC day."}
	findCostly = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-over-budget", Severity: 2,
		Title:       "Judging by a rule takes longer than its budget",
		Description: "The 99th percentile of the time that judging one event, or one group of events held, by the rule takes is over detect.rules.budget.",
		Runbook:     "Test cheap texts such as event.eventType first, filter before comprehensions, narrow the window or group by more. Or raise detect.rules.budget.",
	}, when: "The p99 of a sample of at least 500 is over detect.rules.budget in a running instance."}
	findImpossible = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-cannot-fire", Severity: 3,
		Title:       "A rule can never find anything",
		Description: "The conditions of the rule, or of a step it needs, contradict each other: no event type fulfils them.",
		Runbook:     "Look at the rule's where and those of its steps: an event has one type. oktawatch rules show prints the types that wake the rule.",
	}, when: "No event type can fulfil the rule's filter, or the filter together with a step that must happen."}
	findUnknownType = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-unknown-event-type", Severity: 2,
		Title:       "A rule waits for an event type that Okta does not list",
		Description: "The rule is bound to an event type that is not in Okta's list as this version of oktawatch has it, and no such event has come.",
		Runbook:     "Correct the event type. If Okta has added it lately, leave the rule: the finding ends with the first such event.",
	}, slow: true, when: "A rule is bound to a type, or to a pattern of types, that the list does not have and that no org has sent."}
	findUnseen = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-types-unseen", Severity: 1,
		Title:       "A rule depends on event types that do not come",
		Description: "None of the event types that the rule, or a step it needs, is bound to has come from this org for detect.rules.quiet_days.",
		Runbook:     "Expected where the org does not use that part of Okta: set the rule's mode to disabled for the org by an overlay. Else look why the events do not come.",
	}, slow: true, when: "An org is known for detect.rules.quiet_days of event time, and none of the event types of the rule, or of a step that must happen, has come in them."}
	findNever = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-never-matched", Severity: 1,
		Title:       "A rule has never matched",
		Description: "Events of the rule's types come, but the rule has found nothing since it is in force in this version, for detect.rules.quiet_days or longer.",
		Runbook:     "Nothing is wrong where what it looks for has not happened. Play the attack in a test org, or judge old events: oktawatch rules eval --input FILE.",
	}, slow: true, when: "A rule has been in force for detect.rules.quiet_days of event time, its event types come, and it has no hit."}
	findHidden = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-hidden-by-exceptions", Severity: 3,
		Title:       "The exceptions of a rule hide everything",
		Description: "Exceptions kept at least 20 events from the rule, and it took no other in detect.rules.quiet_days.",
		Runbook:     "Compare the exceptions' when with the rule's where: one of them is likely wider than meant. Or disable the rule.",
	}, when: "Exceptions kept 20 events or more from a rule since it last took one, which was more than detect.rules.quiet_days of event time ago, or never."}
	findExpired = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rule-exception-expired", Severity: 2,
		Title:       "An exception has expired",
		Description: "The exception is not in force any more, so what it kept away is judged again.",
		Runbook:     "Remove the exception, or give it a later expires if its reason still holds.",
	}, slow: true, when: "An event of the org came that is later than the last day of an exception."}
	findDiffer = ruleFinding{Finding: finding.Finding{
		Kind: finding.RuleHealth, Name: "rules-differ", Severity: 3,
		Title:       "Instances of detect judge by different rules",
		Description: "For more than a minute the running instances had different rules or lists in force, so what is found depends on which of them reads an event.",
		Runbook:     "oktawatch rules status lists the instances with the hash of their rules and their refused files. Give all the same folders, and restart one that does not follow.",
	}, when: "The heartbeats of running instances named different hashes for more than a minute."}
)

// ruleFindings lists them all: docs/rule-health.md has a row for each, and metrics a series.
func ruleFindings() []ruleFinding {
	return []ruleFinding{
		findRefused, findFailing, findImpossible, findHidden, findDiffer, findLimited, findUnknown, findCostly, findUnknownType, findExpired, findUnseen, findNever,
	}
}

// Lasts is how long a finding about a rule may hold after it was told: later it would have been told again. quietDays is
// detect.rules.quiet_days, zero its default.
func Lasts(name string, quietDays int) time.Duration {
	days := 1
	for _, f := range ruleFindings() {
		if f.Name == name && f.slow {
			days = max(cmp.Or(quietDays, defaultQuietDays), 1)
		}
	}
	return time.Duration(days+1) * 24 * time.Hour
}

// aboutRule is what a finding of one partition is about: one a rule, partition and UTC day; all of a rule's day are in one alert. at is a
// time that does not depend on when it is judged, so that a repeat gives the same record.
func aboutRule(f finding.Finding, org, ruleID, detail string, partition int32, at time.Time) finding.About {
	n := strconv.Itoa(int(partition))
	return finding.About{
		Org: org, Of: []string{ruleID, n}, Key: []string{ruleID, at.UTC().Format(time.DateOnly)}, At: at,
		Title: f.Title + ": " + ruleID, Detail: map[string]any{"rule": ruleID, "detail": detail, "partition": n},
	}
}
