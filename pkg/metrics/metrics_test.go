package metrics_test

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/metrics"
)

func page(s *metrics.Set) string {
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

func TestSameNameIsSameMetric(t *testing.T) {
	s := metrics.NewSet()
	s.Counter("oktawatch_x_total", "x.", "topic").With("a").Inc()
	s.Counter("oktawatch_x_total", "x.", "topic").With("a").Add(2)
	s.Gauge("oktawatch_g", "g.").Set(4)
	s.Gauge("oktawatch_g", "g.").Dec()
	s.Histogram("oktawatch_h_seconds", "h.").Observe(0.2)
	got := page(s)
	for _, want := range []string{
		`oktawatch_x_total{topic="a"} 3`, "oktawatch_g 3", "oktawatch_h_seconds_count 1", "go_goroutines",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("page lacks %q", want)
		}
	}
}

func TestNilDiscards(t *testing.T) {
	var s *metrics.Set
	s.Counter("a", "", "l").With("x").Inc()
	s.Counter("a", "").Inc()
	s.Gauge("b", "", "l").With("x").Set(1)
	s.Gauge("b", "").Add(1)
	s.Gauge("b", "", "l").Delete("x")
	s.Histogram("c", "", "l").With("x").Observe(1)
	s.Histogram("c", "").Observe(1)
	if got := page(s); got != "" {
		t.Errorf("nil set serves %q", got)
	}
}

func TestOtherLabelsPanic(t *testing.T) {
	s := metrics.NewSet()
	s.Counter("oktawatch_x_total", "x.", "topic")
	defer func() {
		if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "oktawatch_x_total") {
			t.Errorf("recovered %v, want a message that names the metric", r)
		}
	}()
	s.Counter("oktawatch_x_total", "x.", "stage")
}

func ExampleSet() {
	s := metrics.NewSet()
	seen := s.Counter("oktawatch_events_total", "Events seen.", "source").With("hook")
	seen.Inc()
	for line := range strings.SplitSeq(page(s), "\n") {
		if strings.HasPrefix(line, "oktawatch_") {
			fmt.Println(line)
		}
	}
	// Output: oktawatch_events_total{source="hook"} 1
}
