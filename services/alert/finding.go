package alert

import (
	"time"

	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
)

// What can be wrong with telling people. It is told by a detection of its own, which the other receivers get.
var (
	findGone = finding.Finding{
		Kind: finding.SourceHealth, Name: "alert-receiver-gone", Title: "A receiver wants nothing any more", Severity: 4,
		Runbook: "It answered 410 Gone, so it is told nothing more. Correct its address under `alert.receivers` and restart the service; one whose configuration changed is used again.",
	}
	findGivenUp = finding.Finding{
		Kind: finding.SourceHealth, Name: "alert-notification-given-up", Title: "A notification was given up", Severity: 4,
		Runbook: "The alert it was about is on okta.alerts.v1 with the last error under `deliveries`. See why the receiver fails; new notifications are still tried.",
	}
)

// receiverFinding is the record of a finding about a receiver: one an org, receiver, partition and UTC day, all of a
// receiver in one alert.
func receiverFinding(f finding.Finding, org, receiver, partition, detail string, at time.Time) *record.Detection {
	return f.Detection(finding.About{
		Org: org, Of: []string{receiver, partition}, Key: []string{receiver}, At: at, Title: f.Title + ": " + receiver,
		Detail: map[string]any{"receiver": receiver, "detail": detail},
	})
}
