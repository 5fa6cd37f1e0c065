package finding_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
)

var at = time.Date(2026, 3, 4, 23, 59, 58, 123_456_789, time.UTC)

// The ids are those that stand on topics already: they never change.
func TestIDs(t *testing.T) {
	for name, tc := range map[string]struct {
		f               finding.Finding
		about           finding.About
		id, fingerprint string
	}{
		"source": {
			finding.Finding{Kind: finding.SourceHealth, Name: "source-gap"},
			finding.About{Org: "00o1", Source: "okta", Key: []string{"okta"}},
			"00b076a4-69ff-50dd-b547-aaec266a5729", "1360f2a4eb363ef12a4fa6e563244230",
		},
		"receiver": {
			finding.Finding{Kind: finding.SourceHealth, Name: "alert-receiver-gone"},
			finding.About{Org: "00o1", Of: []string{"siem", "3"}, Key: []string{"siem"}},
			"5f67e624-28a9-51ef-a298-ebd61fd7308e", "284b759c428ca65d9f5fe8abb3071a48",
		},
		"partition": {
			finding.Finding{Kind: finding.SourceHealth, Name: "dedup-memory-overflow"},
			finding.About{Org: "00o1", Of: []string{"3"}, Key: []string{"2026-03-04"}},
			"e7c6af47-40f5-5dd2-bbd6-40aaaa5be7aa", "dd7c2cf2707d7abe94d3c873b633c65a",
		},
		"rule": {
			finding.Finding{Kind: finding.RuleHealth, Name: "rule-over-its-limit"},
			finding.About{Org: "00o1", Of: []string{"login", "3"}, Key: []string{"login", "2026-03-04"}},
			"53b4a8da-1496-56b1-9c86-0df1b3543fc4", "6be757e42c9e17c7281c87579a0aa308",
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.about.At = at
			if d := tc.f.Detection(tc.about); d.ID != tc.id || d.Fingerprint != tc.fingerprint {
				t.Errorf("id %s, fingerprint %s", d.ID, d.Fingerprint)
			}
		})
	}
}

func TestDetection(t *testing.T) {
	f := finding.Finding{Kind: finding.SourceHealth, Name: "source-gap", Title: "Events may be missing", Severity: 3, Runbook: "Backfill."}
	got := f.Detection(finding.About{
		Org: "00o1", Source: "okta", Key: []string{"okta"}, At: at, Title: "Events may be missing: " + strings.Repeat("ä", 200),
		Detail: map[string]any{"source": "okta", "detail": "", "partition": 3},
	})
	when := at.Truncate(time.Millisecond).UTC()
	want := &record.Detection{
		ID: "00b076a4-69ff-50dd-b547-aaec266a5729", Update: 1, Revision: 1, Kind: "source_health", RuleID: "source-gap", RuleTitle: "Events may be missing",
		Title: "Events may be missing: " + strings.Repeat("ä", 116), Pack: "oktawatch", Severity: 3, Confidence: "high", Mode: "alert", Org: "00o1", Lane: "live",
		Fingerprint: "1360f2a4eb363ef12a4fa6e563244230", DedupKey: []string{"okta"}, DedupPeriodMS: 86_400_000, Final: true, FirstTime: when, LastTime: when,
		Description: "Events may be missing.", Runbook: "Backfill.", Context: map[string]string{"source": `"okta"`, "partition": "3"}, Tags: []string{"oktawatch"},
		SourceID: "okta",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !finding.IsHealth(got.Kind) || !finding.IsHealth(finding.RuleHealth) || finding.IsHealth("match") {
		t.Error("kinds are confused")
	}
}
