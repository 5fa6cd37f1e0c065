package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommittedFilesAreGenerated(t *testing.T) {
	files, err := generate("../../../schemas")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		have, err := os.ReadFile(filepath.Join("../../..", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(have, want) {
			t.Errorf("%s differs from what the schemas give: run `make generate`", name)
		}
	}
	have, err := filepath.Glob("../../record/*_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range have {
		if files["pkg/record/"+filepath.Base(f)] == nil {
			t.Errorf("%s is left over: run `make generate`", f)
		}
	}
}

func TestRunWritesOnceAndClears(t *testing.T) {
	root := t.TempDir()
	stale := filepath.Join(root, "pkg/record/gone_gen.go")
	if err := os.MkdirAll(filepath.Dir(stale), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stale, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := run("../../../schemas", root); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("stale file is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(root, "docs/fields.md")); err != nil {
		t.Error(err)
	}
}

func TestRefusedSchemas(t *testing.T) {
	record := func(fields string) string {
		return `{"type":"record","name":"X","doc":"d","fields":[` + fields + `]}`
	}
	for name, tc := range map[string]struct{ in, want string }{
		"no schema":       {`{"type":"nonsense"}`, "goavro refuses"},
		"no doc":          {`{"type":"record","name":"X","fields":[]}`, "has no doc"},
		"no origin":       {record(`{"name":"a","type":"string","doc":"Text."}`), "Origin"},
		"other union":     {record(`{"name":"a","type":["string","null"],"doc":"Origin: x."}`), "only unions"},
		"nullable text":   {record(`{"name":"a","type":["null","string"],"doc":"Origin: x."}`), "nullable string"},
		"map of long":     {record(`{"name":"a","type":{"type":"map","values":"long"},"doc":"Origin: x."}`), "only maps"},
		"array of long":   {record(`{"name":"a","type":{"type":"array","items":"long"},"doc":"Origin: x."}`), "only arrays"},
		"float":           {record(`{"name":"a","type":"float","doc":"Origin: x."}`), `"float" is not supported`},
		"logical type":    {record(`{"name":"a","type":{"type":"long","logicalType":"timestamp-micros"},"doc":"Origin: x."}`), "timestamp-micros"},
		"recursive":       {record(`{"name":"a","type":["null","X"],"doc":"Origin: x."}`), "recursive"},
		"same Go name":    {record(`{"name":"a_b","type":"string","doc":"Origin: x."},{"name":"aB","type":"string","doc":"Origin: x."}`), "both AB"},
		"name and file":   {`{"type":"record","name":"Y","doc":"d","fields":[]}`, "want X"},
		"backquote":       {record("{\"name\":\"a\",\"type\":\"string\",\"doc\":\"` Origin: x.\"}"), "backquote"},
		"not a record":    {`{"type":"map","values":"string"}`, "must be a record"},
		"no such default": {record(`{"name":"a","type":"long","default":"x","doc":"Origin: x."}`), "goavro refuses"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseSchema("x", tc.in)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestGoName(t *testing.T) {
	for in, want := range map[string]string{
		"uuid": "UUID", "eventType": "EventType", "ipAddress": "IPAddress", "asNumber": "ASNumber", "source_id": "SourceID",
		"os_version": "OSVersion", "rule_ids": "RuleIDs", "raw_sha256": "RawSHA256", "dedup_period_ms": "DedupPeriodMS", "isProxy": "IsProxy",
	} {
		if got := goName(in); got != want {
			t.Errorf("goName(%q) = %s, want %s", in, got, want)
		}
	}
}
