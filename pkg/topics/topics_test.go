package topics

import (
	"regexp"
	"strings"
	"testing"
)

func TestMurmur2HoldsKafkasVectors(t *testing.T) {
	// From Apache Kafka's UtilsTest.
	for in, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := murmur2([]byte(in)); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", in, got, want)
		}
	}
}

func TestAnAlertLiesBesideItsFingerprint(t *testing.T) {
	for _, n := range []int32{1, 4, 12, 64} {
		if got, want := Alerts.PartitionFor("0f3a.17", n), Detections.PartitionFor("0f3a", n); got != want {
			t.Errorf("of %d partitions the alert is in %d, its detections in %d", n, got, want)
		}
	}
}

func TestRowsAreWhole(t *testing.T) {
	name := regexp.MustCompile(`^okta(watch)?(\.[a-z-]+)+\.v[0-9]+(\.dlq)?$`)
	seen := map[string]bool{}
	for _, row := range All() {
		if !name.MatchString(row.Name) || seen[row.Name] {
			t.Errorf("%s: a name is lower case words with dots, ends in its version, and is there once", row.Name)
		}
		seen[row.Name] = true
		switch {
		case row.Doc == "" || row.Key == "" || row.Partitioner == "" || row.Cleanup == "" || row.MaxBytes == 0:
			t.Errorf("%s: a cell is empty: %+v", row.Name, row)
		case len(row.Writers) == 0:
			t.Errorf("%s: nobody writes it", row.Name)
		case row.Cleanup != Compact && row.Retention == 0:
			t.Errorf("%s: is deleted by time, but has no retention", row.Name)
		case row.Record == "" && !row.IsDLQ() && !strings.Contains(row.Name, ".redrive.") && row.Name != DetectionsOCSF.Name:
			t.Errorf("%s: has no record", row.Name)
		}
	}
	for _, g := range Groups() {
		for _, in := range g.Topics() {
			if in.Meets != g.Inputs[0].Meets {
				t.Errorf("%s: %s is assigned with %s but does not meet it", g.Name(""), in.Name, g.Inputs[0].Name)
			}
		}
		if g.State != nil && g.State.Meets != g.Inputs[0].Meets {
			t.Errorf("%s: its state does not meet its input", g.Name(""))
		}
	}
}

// Raw events may carry secrets: one service reads them. The tool writes seeds.
func TestOnlyNormalizeReadsRawEvents(t *testing.T) {
	for _, a := range ACLs("") {
		if a.Resource != "topic" || a.Name != Raw.Name {
			continue
		}
		ops := strings.Join(a.Operations, " ")
		want := map[string]string{Ingest: "Write Describe", Normalize: "Read Describe", Detect: "Describe", CLI: "Write Describe"}[a.Principal]
		if ops != want {
			t.Errorf("%s may %q on %s, want %q", a.Principal, ops, a.Name, want)
		}
	}
}

func TestCommandsNameEveryTopicWithItsPrefix(t *testing.T) {
	all := strings.Join(Commands(Plan{Prefix: "acme.", Replication: 3}, "broker:9092"), "\n")
	for _, row := range All() {
		if !strings.Contains(all, "--topic acme."+row.Name+" ") {
			t.Errorf("no command creates %s", row.Name)
		}
	}
	if strings.Contains(all, " okta.") || strings.Contains(all, "--group oktawatch") {
		t.Error("a command names a topic or group without the prefix")
	}
}
