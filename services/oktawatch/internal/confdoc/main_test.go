package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestThePagesAreUpToDate(t *testing.T) {
	for name, page := range pages {
		want, err := page("../../../..")
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile("../../../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Errorf("%s is not what the source says: run make generate", name)
		}
		for line := range strings.Lines(string(want)) {
			if strings.HasPrefix(line, "| `") && strings.HasSuffix(line, "|  |\n") {
				t.Errorf("%s: a key without a meaning: %s", name, line)
			}
		}
	}
}
