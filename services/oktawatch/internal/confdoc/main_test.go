package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestThePageIsUpToDate(t *testing.T) {
	want, err := Page("../../../..")
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("../../../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("docs/configuration.md is not what the Config structs say: run make generate")
	}
	for line := range strings.Lines(string(want)) {
		if strings.HasPrefix(line, "| `") && strings.HasSuffix(line, "|  |\n") {
			t.Errorf("a key without a meaning: %s", line)
		}
	}
}
