package main

import (
	"bytes"
	"os"
	"testing"
)

func TestThePageIsUpToDate(t *testing.T) {
	want, err := Page()
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("../../../docs/cel.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("docs/cel.md is not what the lists of package rule say: run make generate")
	}
}
