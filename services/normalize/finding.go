package normalize

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/oktawatch/oktawatch/pkg/record"
)

const (
	findingOverflow = "dedup-memory-overflow"
	findingPeriod   = 24 * time.Hour
)

// overflow is the finding that the memory of a partition was too small: one detection a partition and UTC day, all of a day
// in one alert. at is the Kafka timestamp that the memory had come to, so that a repeat gives the same record.
func overflow(org string, partition int32, at time.Time, forgotten int, maxBytes int64) *record.Detection {
	day := at.UTC().Format(time.DateOnly)
	space := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/oktawatch/oktawatch"))
	id := uuid.NewSHA1(space, []byte("source_health\x00"+org+"\x00"+findingOverflow+"\x00"+strconv.Itoa(int(partition))+"\x00"+day))
	sum := sha256.Sum256([]byte(org + "\x00" + findingOverflow + "\x00" + day))
	return &record.Detection{
		ID: id.String(), Update: 1, Revision: 1, Kind: "source_health", RuleID: findingOverflow, RuleTitle: "The memory of events seen is full",
		Title: fmt.Sprintf("The memory of events seen is full: partition %d forgot %d events before their time", partition, forgotten),
		Pack:  "oktawatch", Severity: 3, Confidence: "high", Mode: "alert", Org: org, Lane: liveLane, Fingerprint: hex.EncodeToString(sum[:16]),
		DedupKey: []string{findingOverflow, day}, DedupPeriodMS: findingPeriod.Milliseconds(), Final: true, FirstTime: at, LastTime: at,
		Description: "A copy of a forgotten event that still comes would be taken for a new event.",
		Runbook:     "Raise `normalize.dedup.max_bytes`, or lower `normalize.dedup.memory` to what late copies really need; see `oktawatch_normalize_dedup_bytes`.",
		Context:     map[string]string{"partition": strconv.Itoa(int(partition)), "max_bytes": strconv.FormatInt(maxBytes, 10), "forgotten": strconv.Itoa(forgotten)},
		Tags:        []string{"oktawatch"},
	}
}
