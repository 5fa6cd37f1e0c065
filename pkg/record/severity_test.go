package record_test

import (
	"testing"

	"github.com/oktawatch/oktawatch/pkg/record"
)

func TestSeverityName(t *testing.T) {
	for n, want := range map[int32]string{-1: "info", 0: "info", 1: "info", 3: "medium", 5: "critical", 6: "critical"} {
		if got := record.SeverityName(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
