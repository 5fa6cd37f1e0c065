// Package ident makes the ids that detections carry. It owns the namespace that all of them lie in and the form of a
// fingerprint; what goes into an id is its caller's to say.
//
// Invariant: one name gives one id, for ever: readers drop what they have seen by it, and alerts are kept under it.
package ident

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/google/uuid"
)

var namespace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/oktawatch/oktawatch"))

// ID is the version 5 UUID of a name: parts with a zero byte between them.
func ID(name []byte) string { return uuid.NewSHA1(namespace, name).String() }

// Fingerprint is the hash of org, rule and dedup key: detections of one fingerprint join one alert.
func Fingerprint(org, ruleID string, key []string) string {
	var buf [512]byte
	b := append(append(append(buf[:0], org...), 0), ruleID...)
	for _, k := range key {
		b = append(append(b, 0), k...)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
