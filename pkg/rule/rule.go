// Package rule is the rule language: it reads rule files, checks them, compiles their CEL and says what each rule
// reads. What it returns is immutable and safe for concurrent use. It is the only home of cel-go. It judges nothing
// over time (that is package engine) and knows no Kafka, no clock and no folder but the fs.FS it is given.
package rule

import (
	"fmt"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

//go:generate go run ../internal/celdoc

// Mode says what becomes of a rule's detections.
type Mode string

// The modes.
const (
	ModeAlert    Mode = "alert"    // detections become alerts
	ModeSignal   Mode = "signal"   // written and shown, read by rules over detections, no alert
	ModeShadow   Mode = "shadow"   // written with the mark shadow, read by no rule, no alert
	ModeDisabled Mode = "disabled" // not run
)

var modes = []string{string(ModeAlert), string(ModeSignal), string(ModeShadow), string(ModeDisabled)}

// Severity is 1 (info) to 5 (critical); 0 is none.
type Severity int

// The severities.
const (
	Info Severity = 1 + iota
	Low
	Medium
	High
	Critical
)

var severities = record.Severities()

// String is the word the rule file uses.
func (s Severity) String() string {
	if s < Info || s > Critical {
		return ""
	}
	return severities[s-1]
}

// ParseSeverity reads the word a rule file uses.
func ParseSeverity(s string) (Severity, bool) {
	for i, name := range severities {
		if s == name {
			return Severity(i + 1), true
		}
	}
	return 0, false
}

var confidences = []string{"low", "medium", "high"}

// Kind is the sort of detection a rule makes.
type Kind string

// KindMatch is a rule over one record.
const KindMatch Kind = "match"

// kindSpec is what the parser must know of a kind. The kinds list is the one list of them.
type kindSpec struct {
	name Kind
	keys []string // keys of detection beside kind
	doc  string
}

var kinds = []kindSpec{
	{KindMatch, []string{"where"}, "each record for which where is true is a hit"},
	{KindAggregate, []string{
		"where", "input", "group_by", "window", "lateness", "learning", "aggregates", "having", "settle", "baseline", "bucket",
	}, "numbers over a window"},
	{KindSequence, []string{"where", "input", "group_by", "window", "lateness", "steps"}, "steps in order, or a step that does not come"},
	{KindFirstSeen, []string{"where", "group_by", "lateness", "learning", "memory", "learn_from", "seen_before"}, "a key that is new"},
}

// Kinds names the kinds that rule files may use.
func Kinds() []Kind {
	out := make([]Kind, len(kinds))
	for i, k := range kinds {
		out[i] = k.name
	}
	return out
}

// Limits of the language.
const (
	MaxFileBytes       = 256 << 10
	maxYAMLDepth       = 64
	maxProblems        = 50  // told of one file
	maxNamed           = 200 // vars, params, values of context, exceptions, cases of severity_when
	maxKeyParts        = 6
	maxExprChars       = 4000
	maxComprehensions  = 3 // nested
	maxExprCost        = 2_000_000
	maxTitleChars      = 256
	maxContextBytes    = 4 << 10
	defaultDedupPeriod = time.Hour
	minDedupPeriod     = time.Minute
	maxDedupPeriod     = 7 * 24 * time.Hour
)

// Rule is one rule file as written, before CEL is compiled and overlays are laid over it.
type Rule struct {
	File string // path, as loaded
	Pack string // name of the folder

	ID          string
	Title       Template // alert.title, or the title
	Name        string   // the key title
	Description string
	Runbook     string
	Mode        Mode
	ReplacedBy  string
	Severity    Severity
	Confidence  string
	Revision    int

	Mitre          []Technique
	Covers         []string
	Tags           []string
	References     []string
	FalsePositives []string
	Authors        []string
	License        string

	Params     []Param // by name
	Vars       []Named // by name
	Detection  Detection
	Exceptions []Exception
	Alert      Alert
	Tests      []Test

	doc *document
}

// Source is the rule file's text.
func (r *Rule) Source() []byte { return r.doc.src }

// Technique is an ATT&CK technique id with, where the file gives one, its tactic.
type Technique struct {
	Tactic string // TA0006 or empty
	ID     string // T1110.001
}

// String is the form of the rule file.
func (t Technique) String() string {
	if t.Tactic == "" {
		return t.ID
	}
	return t.Tactic + "/" + t.ID
}

// Named is a named expression.
type Named struct {
	Name string
	Expr Expr
}

// Param is what a site may change. Its value is a string, int64, float64, bool, a slice of one of these, or a
// map[string]string or map[string]int64.
type Param struct {
	Name  string
	Value any
}

// Detection is the rule's detection key.
type Detection struct {
	Kind  Kind
	Where Expr // empty text: true

	GroupBy    []Named // by name
	Lateness   time.Duration
	Learning   time.Duration
	Window     time.Duration // aggregate, sequence
	Aggregates []Aggregate   // by name
	Having     Expr
	Settle     time.Duration
	Baseline   time.Duration // 0: none
	Bucket     time.Duration
	Steps      []Step
	Memory     time.Duration // first_seen
	LearnFrom  Expr          // empty: same as where
	SeenBefore []string      // by name
}

// Exception says which records are not judged, and why.
type Exception struct {
	Name    string
	When    Expr
	Reason  string
	Owner   string
	Ticket  string
	Expires time.Time // the first moment it is no longer in force; zero: never
	overlay string    // file of the overlay that added it
}

// Alert is the rule's alert key.
type Alert struct {
	SeverityWhen []SeverityWhen
	Context      []Named
	Labels       map[string]string
	DedupKey     []Expr
	DedupPeriod  time.Duration
}

// SeverityWhen gives a hit another severity.
type SeverityWhen struct {
	When     Expr
	Severity Severity
}

// Expr is CEL text that knows where it stands.
type Expr struct {
	Text string
	at   place
}

// Empty tells that no expression was written.
func (e Expr) Empty() bool { return strings.TrimSpace(e.Text) == "" }

// Test is one inline test of a rule; package ruletest runs it.
type Test struct {
	Name    string
	Start   time.Time
	Until   *time.Duration // nil: all is decided
	Learned bool
	Params  []Param
	Lists   map[string][]string
	Events  []TestEvent
	Expect  Expect
	Pos     Position
}

// TestEvent describes one or more events of a test.
type TestEvent struct {
	Fixture   string
	Event     map[string]any
	File      string // path#line
	Set       []Assign
	Each      []Assign
	Repeat    int
	Every     time.Duration
	At        *time.Duration
	Detection map[string]any
	Pos       Position
}

// Assign sets the value at a path of an event.
type Assign struct {
	Path  string
	Value any
}

// Expect is what a test asks of the detections; nil members are not asked.
type Expect struct {
	None       bool
	Detections *int
	Alerts     *int
	Events     *int
	Severity   string
	Title      *string
	DedupKey   *string
	At         *time.Duration
	Context    map[string]any
	Pos        Position
}

// Position is a place in a file, counted from 1.
type Position struct {
	File      string
	Line, Col int
}

// String is file:line:col.
func (p Position) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col) }
