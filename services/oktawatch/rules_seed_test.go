package oktawatch

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/rules"
	"github.com/oktawatch/oktawatch/services/detect"
	"github.com/oktawatch/oktawatch/services/normalize"
)

const (
	newCountryRule = `id: new-country
title: A country new to a person
severity: medium
detection:
  kind: first_seen
  where: event.eventType == "user.session.access_admin_app"
  group_by: {user: event.actor.id, country: event.client.geographicalContext.country}
  memory: 90d
  learning: 7d
alert:
  title: ${event.actor.id} from ${event.client.geographicalContext.country}
`
	// It has a memory too, and hears nothing of seeds.
	anyAccessRule = `id: any-access
title: Access
severity: low
detection:
  kind: match
  where: event.eventType == "user.session.access_admin_app"
alert:
  title: ${event.actor.id} from ${event.client.geographicalContext.country}
`
	unusualRule = `id: unusual
title: More than ever
severity: low
detection:
  kind: aggregate
  where: event.eventType == "user.session.access_admin_app"
  group_by: {user: event.actor.id}
  window: 1d
  bucket: 1d
  baseline: 30d
  learning: 7d
  having: base.count.n >= 20 && base.count.max == 2.0 && agg.count == 3
`
	seedOrg = "00oSEED"
)

func access(uuid, user, country string, at time.Time) string {
	return fmt.Sprintf(`{"uuid":%q,"published":%q,"eventType":"user.session.access_admin_app","actor":{"id":%q,"type":"User"},"outcome":{"result":"SUCCESS"},"client":{"ipAddress":"203.0.113.7","geographicalContext":{"country":%q}}}`,
		uuid, at.UTC().Format("2006-01-02T15:04:05.000Z"), user, country)
}

// TestSeedsSpareTheWait feeds thirty days to rules that learn, by the command, twice and with a restart between, and then
// lets events come: what is known is no news, what is new is told at once, and an event that was fed is judged when it comes.
func TestSeedsSpareTheWait(t *testing.T) {
	b := bustest.Start(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"new-country": newCountryRule, "any-access": anyAccessRule, "unusual": unusualRule} {
		write(t, filepath.Join(dir, "rules", "site", name+".yaml"), text)
	}
	outside := b.Bus(t, "outside")
	put := func(row topics.Topic, key string, rec record.Record) {
		t.Helper()
		if err := outside.Sender().Send(t.Context(), row, key, rec); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now().UTC().Truncate(24 * time.Hour).Add(12 * time.Hour) // noon, so that no day ends meanwhile
	through := func(at time.Time) {
		t.Helper()
		put(topics.Cursors, "acme", &record.Cursor{SourceID: "acme", Org: seedOrg, Lane: "live", Kind: "poll", Through: &at, UpdatedAt: at, Slices: []record.CursorSlice{}})
	}
	live := func(doc, uuid string, at time.Time) {
		t.Helper()
		put(topics.Raw, seedOrg+"/"+uuid, &record.RawEvent{Org: seedOrg, SourceID: "acme", Source: "poller", Lane: "live", ReceivedAt: at, UUID: uuid, JSON: []byte(doc)})
	}
	run := func(instance string) (stop func()) {
		t.Helper()
		made := b.Bus(t, instance)
		off := false
		n, err := normalize.New(normalize.Config{Masking: normalize.Masking{Key: bytes.Repeat([]byte("k"), 32)}}, normalize.Deps{Log: bustest.Logger(), Bus: made})
		if err != nil {
			t.Fatal(err)
		}
		d, err := detect.New(detect.Config{RulesDir: filepath.Join(dir, "rules"), Rules: detect.Rules{Builtin: &off}}, detect.Deps{Log: bustest.Logger(), Bus: made, Pack: rules.FS})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 2)
		go func() { done <- n.Run(ctx) }()
		go func() { done <- d.Run(ctx) }()
		stop = func() {
			cancel()
			if err := errors.Join(<-done, <-done); err != nil {
				t.Error("run:", err)
			}
		}
		return stop
	}
	done := func() {
		t.Helper()
		if err := (&seeding{t: &tool{errs: io.Discard}, told: time.Now()}).takenIn(t.Context(), outside); err != nil {
			t.Fatal(err)
		}
	}
	found := func() []string {
		t.Helper()
		done()
		var out []string
		for _, m := range b.Read(t, topics.Detections) {
			d := new(record.Detection)
			if err := b.Serde().Decode(t.Context(), m.Value, d); err != nil {
				t.Fatal(err)
			}
			if d.RuleID != "" && !d.Final || d.Kind == "match" {
				out = append(out, d.RuleID+": "+d.Title+" "+strings.Join(d.EvidenceUUIDs, " "))
			}
		}
		slices.Sort(out)
		return out
	}

	// Thirty days of two a day, in two files, one of them compressed.
	var plain, packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	for i := range 60 {
		line := access(fmt.Sprintf("old-%02d", i), "00uANN", "Norway", now.Add(time.Duration(i/2-30)*24*time.Hour+time.Duration(i%2)*time.Hour)) + "\n"
		if i < 30 {
			fmt.Fprint(z, line)
		} else {
			plain.WriteString(line)
		}
	}
	fed := access("fed", "00uANN", "Peru", now.Add(-2*time.Minute))
	plain.WriteString(fed + "\n")
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "one.jsonl.gz"), packed.String())
	write(t, filepath.Join(dir, "two.jsonl"), plain.String())
	seed := func(args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		all := append([]string{
			"rules", "seed", "--kafka", strings.Join(b.Seeds, ","), "--registry", b.RegistryURL, "--set", "topics.prefix=" + b.Prefix,
			"--input", filepath.Join(dir, "one.jsonl.gz"), "--input", filepath.Join(dir, "two.jsonl"), "--wait", "-o", "json",
		}, args...)
		if code := Main(all, &out, &errs); code != 0 || errs.Len() > 0 {
			t.Fatalf("exit %d: %s", code, errs.String())
		}
		var told seeding
		if err := json.Unmarshal(out.Bytes(), &told); err != nil || told.Events != 61 || told.Org != seedOrg || !told.TakenIn {
			t.Fatalf("%v %s", err, out.String())
		}
	}

	through(now.Add(-10 * time.Minute))
	stop := run("one")
	live(access("early", "00uANN", "Norway", now.Add(-9*time.Minute)), "early", now)
	done()
	through(now.Add(-8 * time.Minute))
	if got, want := found(), []string{"any-access: 00uANN from Norway early"}; !slices.Equal(got, want) {
		t.Fatalf("before: %q, want %q", got, want)
	}
	seed()
	if got := found(); len(got) != 1 {
		t.Fatalf("something was found by seeds: %q", got)
	}
	stop()
	stop = run("two")
	defer func() { stop() }()
	seed()
	if got := found(); len(got) != 1 {
		t.Fatalf("something was found by seeds: %q", got)
	}
	live(access("known", "00uANN", "Norway", now.Add(-time.Minute)), "known", now)
	live(fed, "fed", now)
	done()
	want := []string{
		"any-access: 00uANN from Norway early", "any-access: 00uANN from Norway known", "any-access: 00uANN from Peru fed",
		"new-country: 00uANN from Peru fed", "unusual: More than ever early fed known",
	}
	if got := found(); !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
	live(access("later", "00uANN", "Peru", now.Add(-30*time.Second)), "later", now)
	live(access("other", "00uANN", "Chile", now), "other", now)
	done()
	if got := found(); !slices.Contains(got, "new-country: 00uANN from Chile other") || strings.Contains(strings.Join(got, "\n"), "new-country: 00uANN from Peru later") {
		t.Fatalf("%q", got)
	}
	if n := len(b.Read(t, topics.Matches.DLQ())) + len(b.Read(t, topics.Raw.DLQ())); n > 0 {
		t.Errorf("%d dead letters", n)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// FuzzObjectReader finds every object of JSON lines, whatever stands between, and of any text at least comes to its end.
func FuzzObjectReader(f *testing.F) {
	f.Add([]byte("{\"a\":\"}\\\"\"}\n[{\"b\":[{}]},\n{}]\nx\n{\"c\":"))
	f.Add([]byte("\xef\xbb\xbf{}{}\r\n{\"a\"\n{\"b\":1}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		o := objectReader{r: bufio.NewReaderSize(bytes.NewReader(text), 16), atStart: true}
		for n := 0; ; n++ {
			doc, line, err := o.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if broken, ok := errors.AsType[*brokenObject](err); ok {
				line, err = broken.line, nil
			} else if !bytes.Contains(text, doc) || doc[0] != '{' {
				t.Fatalf("%q is not in %q", doc, text)
			}
			if err != nil || line < 1 || line > 1+bytes.Count(text, []byte("\n")) || n > len(text) {
				t.Fatalf("line %d: %v", line, err)
			}
		}
		var lines []byte // as many objects as there are lines of them, each with the text within
		for i := range 3 {
			one, _ := json.Marshal(map[string]any{"n": i, "t": string(text)})
			lines = append(append(lines, one...), "\nno object\n"...)
		}
		o = objectReader{r: bufio.NewReaderSize(bytes.NewReader(lines), 16), atStart: true}
		good, bad := 0, 0
		for {
			doc, line, err := o.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				bad++
				continue
			}
			var got struct{ N int }
			if err := json.Unmarshal(doc, &got); err != nil || got.N != good || line != 1+2*good {
				t.Fatalf("object %d, line %d: %v in %q", good, line, err, lines)
			}
			good++
		}
		if good != 3 || bad != 3 {
			t.Fatalf("%d objects and %d broken lines of %q", good, bad, lines)
		}
	})
}
