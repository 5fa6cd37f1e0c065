package normalize

import (
	"fmt"
	"strconv"
	"time"

	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
)

var findOverflow = finding.Finding{
	Kind: finding.SourceHealth, Name: "dedup-memory-overflow", Title: "The memory of events seen is full", Severity: 3,
	Description: "A copy of a forgotten event that still comes would be taken for a new event.",
	Runbook:     "Raise `normalize.dedup.max_bytes`, or lower `normalize.dedup.memory` to what late copies really need; see `oktawatch_normalize_dedup_bytes`.",
}

// overflow is the finding that the memory of a partition was too small: one detection a partition and UTC day, all of a day
// in one alert. at is the Kafka timestamp that the memory had come to, so that a repeat gives the same record.
func overflow(org string, partition int32, at time.Time, forgotten int, maxBytes int64) *record.Detection {
	return findOverflow.Detection(finding.About{
		Org: org, Of: []string{strconv.Itoa(int(partition))}, Key: []string{at.UTC().Format(time.DateOnly)}, At: at,
		Title:  fmt.Sprintf("%s: partition %d forgot %d events before their time", findOverflow.Title, partition, forgotten),
		Detail: map[string]any{"partition": partition, "max_bytes": maxBytes, "forgotten": forgotten},
	})
}
