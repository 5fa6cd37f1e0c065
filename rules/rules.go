// Package rules embeds the rules that come with oktawatch: okta/<pack>/<rule>.yaml, one rule a file, its tests inside.
// It is data; what a rule means is pkg/rule, how its tests run is pkg/ruletest.
package rules

import "embed"

// FS holds the packs.
//
//go:embed okta
var FS embed.FS
