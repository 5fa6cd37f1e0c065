package record

import "slices"

// severities are the words for severity 1 to 5.
var severities = [...]string{"info", "low", "medium", "high", "critical"}

// Severities lists the words for severity 1 to 5, in that order.
func Severities() []string { return slices.Clone(severities[:]) }

// SeverityName is the word for a severity; what lies outside of 1 to 5 counts as the nearest of them.
func SeverityName(n int32) string { return severities[min(max(n, 1), int32(len(severities)))-1] }
