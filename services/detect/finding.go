package detect

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// finding is something wrong with a rule that a person should know of.
type finding struct {
	name, what, description, runbook string
}

var (
	findUnknown = finding{
		name: "rule-unknown-to-state-stage", what: "events of it became dead letters, because it is not loaded in that version",
		description: "The match stage took events for a rule, and the state stage does not have that rule in that version.",
		runbook:     "If the rule was removed on purpose, purge the dead letters. Else compare the rules of all detect instances, and redrive the dead letters when they agree.",
	}
	findLimited = finding{
		name: "rule-over-its-limit", what: "a limit of what is held was reached",
		description: "A windowed rule holds more than the limits allow: what is over them is not judged, and its detections say truncated.",
		runbook:     "Narrow the rule's where, shorten its window, or group by a key that attackers cannot choose.",
	}
)

// detection is one for a rule, partition and UTC day; all of a rule's day are in one alert. at is a time that does not depend on when it
// is judged, so that a repeat gives the same record.
func (f finding) detection(org, ruleID, detail string, partition int32, at time.Time) *record.Detection {
	day := at.UTC().Format(time.DateOnly)
	space := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/oktawatch/oktawatch"))
	id := uuid.NewSHA1(space, []byte("rule_health\x00"+org+"\x00"+f.name+"\x00"+ruleID+"\x00"+strconv.Itoa(int(partition))+"\x00"+day))
	sum := sha256.Sum256([]byte(org + "\x00" + f.name + "\x00" + ruleID + "\x00" + day))
	return &record.Detection{
		ID: id.String(), Update: 1, Revision: 1, Kind: "rule_health", RuleID: f.name, RuleTitle: "A rule is ill",
		Title: "Rule " + ruleID + ": " + f.what,
		Pack:  "oktawatch", Severity: 3, Confidence: "high", Mode: "alert", Org: org, Lane: liveLane, Fingerprint: hex.EncodeToString(sum[:16]),
		DedupKey: []string{f.name, ruleID, day}, DedupPeriodMS: (24 * time.Hour).Milliseconds(), Final: true,
		FirstTime: at.UTC(), LastTime: at.UTC(), Description: f.description, Runbook: f.runbook,
		Context: map[string]string{"rule": ruleID, "detail": detail, "partition": strconv.Itoa(int(partition))},
		Tags:    []string{"oktawatch"},
	}
}
