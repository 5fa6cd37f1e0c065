package oktawatch

import (
	"testing"

	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestDuplicatesAreWhatWentNowhere sees to it that only the letters of records that were in okta.raw.v1 are taken off.
func TestDuplicatesAreWhatWentNowhere(t *testing.T) {
	letter := func(service string) tail.Record {
		return tail.Record{Value: []byte("x"), Headers: []tail.Header{{Key: "dlq.service", Value: []byte(service)}}}
	}
	n := newCount(0)
	n.raw["hook"], n.raw["poller"], n.records = 4, 6, 7
	for _, l := range []struct {
		topic   topics.Topic
		service string
	}{
		{topics.Raw.DLQ(), topics.Normalize},
		{topics.Raw.DLQ(), topics.Ingest},
		{topics.Raw.DLQ(), topics.Ingest},
		{topics.SystemLog.DLQ(), topics.Detect},
		{topics.Detections.DLQ(), topics.AlertSvc},
	} {
		if err := n.add(t.Context(), l.topic, letter(l.service)); err != nil {
			t.Fatal(err)
		}
	}
	if n.letters != 5 || n.duplicates() != 2 {
		t.Errorf("%d letters and %d duplicates, want 5 and 2: 10 came in, 7 went on, 1 was refused", n.letters, n.duplicates())
	}
}
