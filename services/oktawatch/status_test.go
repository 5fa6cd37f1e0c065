package oktawatch

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestStatusCountsLetters: the end of each transaction takes an offset and is no dead letter, and no event is no time.
func TestStatusCountsLetters(t *testing.T) {
	b := bustest.Start(t)
	one := b.Bus(t, "one")
	txn, err := one.OpenTransactional(t.Context(), "oktawatch.test")
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if err := txn.Do(t.Context(), func(out *bus.Emit) error {
			return out.PutRaw(topics.Raw.DLQ(), "k", []byte("no event"))
		}); err != nil {
			t.Fatal(err)
		}
	}
	txn.Close()
	at := time.Now().UTC().Truncate(time.Millisecond)
	b.WriteAt(t, topics.Raw, at, "k", "x")

	var out, errs bytes.Buffer
	args := []string{"status", "-o", "json", "--kafka", strings.Join(b.Seeds, ","), "--registry", b.RegistryURL, "--set", "topics.prefix=" + b.Prefix}
	if code := Main(args, &out, &errs); code != exitFindings { // no stage runs
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	var got struct {
		Stages []struct {
			Stage   string  `json:"stage"`
			Letters int64   `json:"dead_letters"`
			AtMost  bool    `json:"dead_letters_at_most"`
			Last    *string `json:"last_event"`
		} `json:"stages"`
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, s := range got.Stages {
		want := int64(0)
		if strings.HasPrefix(s.Stage, "normalize.") {
			want = 4
		}
		if s.Letters != want || s.AtMost {
			t.Errorf("%s: %d dead letters (at most: %v), want %d", s.Stage, s.Letters, s.AtMost, want)
		}
		if s.Stage == "ingest.sources" || strings.HasPrefix(s.Stage, "normalize.") {
			if s.Last == nil || *s.Last != at.Format(time.RFC3339Nano) {
				t.Errorf("%s: last event %v, want %v", s.Stage, s.Last, at)
			}
		} else if s.Last != nil {
			t.Errorf("%s: last event %s, there was none", s.Stage, *s.Last)
		}
	}
	if len(got.Stages) == 0 {
		t.Error(out.String())
	}
}
