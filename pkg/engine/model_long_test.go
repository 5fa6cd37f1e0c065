//go:build long

package engine_test

import (
	"flag"
	"testing"
)

var (
	longSeed  = flag.Uint64("model.seed", 1000, "seed of the first pool of rules")
	longPools = flag.Uint64("model.pools", 200, "pools of rules, each with 500 streams")
)

// TestAgainstModelLong is TestAgainstModel with at least 100,000 cases.
func TestAgainstModelLong(t *testing.T) { compareWithModel(t, *longSeed, *longPools, 100, 500) }
