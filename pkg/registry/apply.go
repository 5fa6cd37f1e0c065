package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Applied is what Apply did about one topic's schema.
type Applied struct {
	Subject string `json:"subject"`
	Record  string `json:"record"`
	Level   string `json:"level"`
	Version int    `json:"version"`
	ID      int    `json:"id"`
	New     bool   `json:"new"` // a version that was not there before
}

// Apply registers the schema of every topic of the map under `<topic>-value` and sets the subject's compatibility level.
// Running it again changes nothing. An incompatible schema is an error that carries our own reasons: registries differ in
// what they tell.
func Apply(ctx context.Context, url, prefix string) ([]Applied, error) {
	client, err := sr.NewClient(sr.URLs(url), sr.UserAgent("oktawatch"))
	if err != nil {
		return nil, fmt.Errorf("schema registry %s: %w", url, err)
	}
	texts := schemaTexts()
	var out []Applied
	for _, t := range topics.All() {
		if t.Record == "" {
			continue
		}
		subject, level := t.Subject(prefix), t.Compatibility()
		text, ok := texts[t.Record]
		if !ok {
			return out, fmt.Errorf("topic %s: record %s has no schema", t.Name, t.Record)
		}
		a := Applied{Subject: subject, Record: t.Record, Level: level}
		var want sr.CompatibilityLevel
		if err := want.UnmarshalText([]byte(level)); err != nil {
			return out, err
		}
		for _, r := range client.SetCompatibility(ctx, sr.SetCompatibility{Level: want}, subject) {
			if r.Err != nil {
				return out, fmt.Errorf("set compatibility of %s in the registry %s: %w", subject, url, r.Err)
			}
		}
		s := sr.Schema{Schema: text, Type: sr.TypeAvro}
		if have, err := client.LookupSchema(ctx, subject, s); err == nil {
			a.Version, a.ID = have.Version, have.ID
			out = append(out, a)
			continue
		}
		made, err := client.CreateSchema(ctx, subject, s)
		if err != nil {
			if reasons := againstRegistry(ctx, client, subject, text, Level(level)); len(reasons) > 0 {
				return out, fmt.Errorf("register %s in %s: not %s: %s", subject, url, level, strings.Join(reasons, "; "))
			}
			return out, fmt.Errorf("register %s in the registry %s: %w", subject, url, err)
		}
		a.Version, a.ID, a.New = made.Version, made.ID, true
		out = append(out, a)
	}
	return out, nil
}

func schemaTexts() map[string]string {
	texts := map[string]string{}
	for _, s := range record.Schemas() {
		texts[s.Name] = s.Text
	}
	return texts
}

func againstRegistry(ctx context.Context, client *sr.Client, subject, text string, level Level) []string {
	have, err := client.Schemas(ctx, subject)
	if err != nil {
		return nil
	}
	slices.SortFunc(have, func(a, b sr.SubjectSchema) int { return a.Version - b.Version })
	var earlier []Version
	for _, h := range have {
		earlier = append(earlier, Version{Version: h.Version, Schema: h.Schema.Schema})
	}
	return level.Check(text, earlier)
}

// Released compares the compiled schemas with every released version under dir (`<dir>/<release>/<record>.avsc`, releases
// named v1, v2, … or by semantic version) and returns one finding a broken promise, each naming the record, the level
// and the reason. The number of releases is returned too: zero means that nothing is released and fields may still move.
func Released(dir string) (findings []string, releases int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, fmt.Errorf("read released schemas: %w; name the directory with --released", err)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read released schemas: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, compareReleases)
	texts := schemaTexts()
	judged := map[string]bool{}
	for _, t := range topics.All() {
		if t.Record == "" || judged[t.Record] {
			continue
		}
		judged[t.Record] = true
		for i, name := range names {
			text, err := os.ReadFile(filepath.Join(dir, name, t.Record+".avsc"))
			if errors.Is(err, os.ErrNotExist) {
				continue // the record came after that release
			}
			if err != nil {
				return nil, len(names), fmt.Errorf("read released schema: %w", err)
			}
			for _, reason := range Level(t.Compatibility()).Check(texts[t.Record], []Version{{Version: i + 1, Schema: string(text)}}) {
				findings = append(findings, fmt.Sprintf("%s: not %s with release %s: %s", t.Record, t.Compatibility(), name, reason))
			}
		}
	}
	return findings, len(names), nil
}

// compareReleases orders v1.9.0 before v1.10.0.
func compareReleases(a, b string) int {
	as, bs := strings.Split(strings.TrimPrefix(a, "v"), "."), strings.Split(strings.TrimPrefix(b, "v"), ".")
	for i := range min(len(as), len(bs)) {
		x, errX := strconv.Atoi(as[i])
		y, errY := strconv.Atoi(bs[i])
		if errX != nil || errY != nil {
			if c := strings.Compare(as[i], bs[i]); c != 0 {
				return c
			}
			continue
		}
		if x != y {
			return x - y
		}
	}
	return len(as) - len(bs)
}
