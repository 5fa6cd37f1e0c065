package terminal

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/services/alert/sink"
	"github.com/oktawatch/oktawatch/services/alert/sink/sinktest"
)

var update = flag.Bool("update", false, "write testdata anew")

func print(t *testing.T, with map[string]any, ns ...sink.Notification) string {
	t.Helper()
	raw, err := json.Marshal(with)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s, err := Kind.New(raw, sink.Deps{Out: &out, Now: func() time.Time { return sinktest.Example().At.Add(25 * time.Millisecond) }})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range ns {
		if err := s.Deliver(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

func examples() []sink.Notification {
	n := sinktest.Example()
	all := []sink.Notification{n}

	n = sinktest.Example()
	n.Type, n.Alert.Severity = sink.Raised, "critical"
	n.Alert.DetectionCount, n.Alert.EventCount, n.Alert.TestOrg, n.Alert.Via = 4, 1200, false, "poller"
	n.Alert.Users = []string{"a@example.com", "b@example.com", "c@example.com", "d@example.com", "e@example.com"}
	long := n.At.Add(-7 * time.Minute)
	n.Alert.Published = &long
	all = append(all, n)

	n = sinktest.Example()
	n.Type, n.Alert.Severity, n.Alert.ClosedBy, n.Alert.CloseReason = sink.Closed, "low", "bob", "false_positive"
	all = append(all, n)

	n = sinktest.Example()
	n.Type, n.Alert.Severity = sink.Reopened, "info"
	n.Alert.Users, n.Alert.Addresses, n.Alert.Apps, n.Alert.Published, n.Alert.EventCount = nil, nil, nil, nil, 1
	all = append(all, n)

	n = sinktest.Example()
	n.Alert.Severity, n.Alert.Title = "medium", "a title \x1b[2Jfrom\u202e outside\nwith everything \x00in it"
	n.Alert.Users = []string{"eve\x1b]0;x\x07@example.com"}
	return append(all, n)
}

func TestText(t *testing.T) {
	t.Setenv("TZ", "UTC")
	time.Local = time.UTC //nolint:gosmopolitan // the terminal shows local time
	for file, color := range map[string]string{"testdata/plain.txt": "never", "testdata/color.txt": "always"} {
		got := print(t, map[string]any{"color": color}, examples()...)
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s (write it anew with -update):\n%s", file, got)
		}
	}
}

func TestJSON(t *testing.T) {
	got := print(t, map[string]any{"format": "json"}, examples()...)
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != len(examples()) {
		t.Fatalf("%d lines", len(lines))
	}
	for i, l := range lines {
		var n sink.Notification
		if err := json.Unmarshal([]byte(l), &n); err != nil || n.Alert.Title != examples()[i].Alert.Title {
			t.Errorf("line %d: %v, %q", i, err, n.Alert.Title)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 42 * time.Millisecond: "0.04 s", 420 * time.Millisecond: "0.42 s", 3400 * time.Millisecond: "3.4 s",
		90 * time.Second: "2 min", 5 * time.Hour: "5 h", 100 * time.Hour: "4 days",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// A buffer is no terminal: no colour unless asked for.
func TestColorIsForTerminals(t *testing.T) {
	if got := print(t, nil, examples()...); strings.Contains(got, "\x1b") {
		t.Errorf("%q", got)
	}
}
