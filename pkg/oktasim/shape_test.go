package oktasim

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// documented are the paths of ../record/testdata/logevent-fields.csv and the objects around them.
func documented(t testing.TB) map[string]bool {
	t.Helper()
	f, err := os.Open("../record/testdata/logevent-fields.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]bool{}
	for _, r := range rows[1:] {
		for p := r[0]; p != ""; {
			m[p] = true
			m[strings.TrimSuffix(p, "[]")] = true
			p = p[:max(strings.LastIndexByte(p, '.'), 0)]
		}
	}
	// Of some objects the table says only whose shape they have.
	for _, same := range [][2]string{{"client.geographicalContext", "request.ipChain[].geographicalContext"}, {"securityContext.ipDetails", "request.ipChain[].ipDetails"}, {"request.ipChain[]", "client.ipChain[]"}} {
		for p := range maps.Clone(m) {
			if rest, ok := strings.CutPrefix(p, same[0]); ok {
				m[same[1]+rest] = true
			}
		}
	}
	return m
}

// open are the objects whose keys Okta leaves open.
var open = []string{"debugContext.debugData", "transaction.detail", "target[].detailEntry", "actor.detailEntry", "target[].changeDetails.from", "target[].changeDetails.to", "device.device_integrator"}

// undocumented lists the paths of v that the table does not have.
func undocumented(doc map[string]bool, path string, v any) []string {
	var out []string
	if path != "" && !doc[path] {
		out = append(out, path)
	}
	if slices.Contains(open, path) {
		return out
	}
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			out = append(out, undocumented(doc, strings.TrimPrefix(path+"."+k, "."), x)...)
		}
	case []any:
		for _, x := range v {
			out = append(out, undocumented(doc, path+"[]", x)...)
		}
	}
	return out
}

func TestEventsLookLikeOktas(t *testing.T) {
	doc := documented(t)
	now := time.Date(2026, 3, 4, 5, 6, 7, 891e6, time.UTC)
	org, err := New(Config{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	if err := org.Burst(3_000); err != nil {
		t.Fatal(err)
	}
	for _, s := range Scenarios() {
		if _, err := org.Play(t.Context(), s.Name, 0); err != nil {
			t.Fatal(err)
		}
	}
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	types, seen := map[string]int{}, map[string]bool{}
	small, sizes := 0, 0
	catalogue := org.eligible
	for e := range org.Truth().Events(Query{}) {
		raw, _ := org.Truth().Raw(e.Seq)
		var v map[string]any
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatalf("%s: %v\n%s", e.EventType, err, raw)
		}
		if bad := undocumented(doc, "", v); len(bad) > 0 {
			t.Fatalf("%s: paths Okta does not have: %v", e.EventType, bad)
		}
		if hooked := hookShape(nil, raw); !json.Valid(hooked) {
			t.Fatalf("hook shape of %s: %s", e.EventType, hooked)
		} else {
			var h map[string]any
			_ = json.Unmarshal(hooked, &h)
			if bad := undocumented(doc, "", h); len(bad) > 0 {
				t.Fatalf("hook shape of %s: paths Okta does not have: %v", e.EventType, bad)
			}
		}
		if _, ok := catalogue[e.EventType]; !ok {
			t.Errorf("%s is not in Okta's list", e.EventType)
		}
		if !uuid.MatchString(e.UUID) || v["uuid"] != e.UUID || seen[e.UUID] {
			t.Fatalf("uuid %s of %s is bad or was used before", e.UUID, v["uuid"])
		}
		seen[e.UUID] = true
		if v["published"] != "2026-03-04T05:06:07.891Z" || v["eventType"] != e.EventType {
			t.Fatalf("published %v, type %v", v["published"], v["eventType"])
		}
		types[e.EventType]++
		sizes += e.Size
		if web := v["transaction"].(map[string]any)["type"] == "WEB"; web && (e.Size < 1900 || e.Size > 3100 && e.Scenario == "") || e.Size < 1000 || e.Size > 3400 {
			t.Errorf("%s has %d bytes", e.EventType, e.Size)
			small++
			if small > 60 {
				t.FailNow()
			}
		}
	}
	var names []string
	for n, c := range types {
		names = append(names, fmt.Sprintf("%s %d", n, c))
	}
	slices.Sort(names)
	t.Logf("%d types, mean %d bytes\n%s", len(types), sizes/len(seen), strings.Join(names, "\n"))
	if len(types) < 30 {
		t.Errorf("only %d event types", len(types))
	}
}

// pathsOf adds the paths of v to m, without those below objects whose keys are open.
func pathsOf(m map[string]bool, path string, v any) {
	m[path] = true
	if slices.Contains(open, path) {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			pathsOf(m, strings.TrimPrefix(path+"."+k, "."), x)
		}
	case []any:
		for _, x := range v {
			pathsOf(m, path+"[]", x)
		}
	}
}

// Every path that Okta's printed events have, generated ones have too, in the shape of the one door or of the other.
func TestEventsHaveWhatPrintedOnesHave(t *testing.T) {
	org, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := org.Burst(2000); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for e := range org.Truth().Events(Query{}) {
		raw, _ := org.Truth().Raw(e.Seq)
		for _, b := range [][]byte{raw, hookShape(nil, raw)} {
			var v any
			if err := json.Unmarshal(b, &v); err != nil {
				t.Fatal(err)
			}
			pathsOf(have, "", v)
		}
	}
	f, err := os.Open("testdata/samples.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for d := json.NewDecoder(f); d.More(); n++ {
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		want := map[string]bool{}
		pathsOf(want, "", v)
		for p := range want {
			if !have[p] {
				t.Errorf("printed event %d has %s, no generated one does", n+1, p)
			}
		}
	}
	if n != 6 {
		t.Errorf("%d printed events", n)
	}
}

func BenchmarkBurst(b *testing.B) {
	for name, dir := range map[string]string{"memory": "", "disk": b.TempDir()} {
		b.Run(name, func(b *testing.B) {
			org, err := New(Config{DataDir: dir, MaxEvents: 10_000})
			if err != nil {
				b.Fatal(err)
			}
			if err := org.store.open(""); err != nil {
				b.Fatal(err)
			}
			defer org.store.close()
			b.ReportAllocs()
			b.ResetTimer()
			if err := org.Burst(b.N); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkPollPage(b *testing.B) {
	for name, dir := range map[string]string{"memory": "", "disk": b.TempDir()} {
		b.Run(name, func(b *testing.B) {
			org, err := New(Config{DataDir: dir})
			if err != nil {
				b.Fatal(err)
			}
			if err := org.store.open(""); err != nil {
				b.Fatal(err)
			}
			defer org.store.close()
			if err := org.Burst(20_000); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for b.Loop() {
				page, _, err := org.store.poll(logQuery{limit: 1000}, time.Now())
				if err != nil || len(page) != 1000 {
					b.Fatal(len(page), err)
				}
			}
		})
	}
}

func BenchmarkHookShape(b *testing.B) {
	org, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	if err := org.Burst(1); err != nil {
		b.Fatal(err)
	}
	raw, _ := org.Truth().Raw(1)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		hookShape(nil, raw)
	}
}
