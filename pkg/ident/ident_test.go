package ident_test

import (
	"testing"

	"github.com/oktawatch/oktawatch/pkg/ident"
)

// What is written is found again by these: they never change.
func TestForEver(t *testing.T) {
	if got := ident.ID([]byte("login\x003\x0000oORG\x00u1")); got != "87020fab-b67d-5105-aec3-69c2653af62a" {
		t.Errorf("id %s", got)
	}
	if got := ident.Fingerprint("00o1", "alert-receiver-gone", []string{"siem"}); got != "284b759c428ca65d9f5fe8abb3071a48" {
		t.Errorf("fingerprint %s", got)
	}
}

func BenchmarkFingerprint(b *testing.B) {
	key := []string{"00uALICE", "198.51.100.7"}
	for b.Loop() {
		ident.Fingerprint("00oORG", "login", key)
	}
}
