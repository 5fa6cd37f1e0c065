package alert

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// finding is one thing that can be wrong with telling people. It is told by a detection of its own, which the other
// receivers get.
type finding struct {
	name, title, runbook string
}

var (
	findGone = finding{
		"alert-receiver-gone", "A receiver wants nothing any more",
		"It answered 410 Gone, so it is told nothing more. Correct its address under `alert.receivers` and restart the service; one whose configuration changed is used again.",
	}
	findGivenUp = finding{
		"alert-notification-given-up", "A notification was given up",
		"The alert it was about is on okta.alerts.v1 with the last error under `deliveries`. See why the receiver fails; new notifications are still tried.",
	}
)

const findingPeriod = 24 * time.Hour

// detection is the record of a finding about a receiver: one an org, receiver, partition and UTC day, all of a receiver in
// one alert.
func (f finding) detection(org, receiver, partition, detail string, at time.Time) *record.Detection {
	at = at.UTC().Truncate(time.Millisecond)
	space := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/oktawatch/oktawatch"))
	id := uuid.NewSHA1(space, []byte("source_health\x00"+org+"\x00"+f.name+"\x00"+receiver+"\x00"+partition+"\x00"+at.Format(time.DateOnly)))
	sum := sha256.Sum256([]byte(org + "\x00" + f.name + "\x00" + receiver))
	return &record.Detection{
		ID: id.String(), Update: 1, Revision: 1, Kind: "source_health", RuleID: f.name, RuleTitle: f.title, Title: f.title + ": " + receiver, Pack: "oktawatch",
		Severity: 4, Confidence: "high", Mode: modeAlert, Org: org, Lane: liveLane, Fingerprint: hex.EncodeToString(sum[:16]), DedupKey: []string{receiver},
		DedupPeriodMS: findingPeriod.Milliseconds(), Final: true, FirstTime: at, LastTime: at, Description: f.title + ".", Runbook: f.runbook,
		Context: map[string]string{"receiver": quote(receiver), "detail": quote(detail)}, Tags: []string{"oktawatch"},
	}
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(b)
}
