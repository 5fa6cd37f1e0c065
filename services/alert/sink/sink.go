// Package sink is what a place to tell people is: a Kind that describes itself, a Sink that takes one Notification at a
// time, and the errors it may give. Each kind lives in a directory of its own; the list of them is alert.Kinds, and every
// one passes sinktest. When to send, how often to try and what to remember is the alert service's, not a sink's.
package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// Types of notifications.
const (
	Opened   = "alert.opened"
	Raised   = "alert.raised"   // its severity rose
	Reopened = "alert.reopened" // it was closed, and its severity rose
	Closed   = "alert.closed"
)

// Notification is one thing told to one receiver: an alert after a change. It is what JSON receivers get as data.
type Notification struct {
	Key   string    `json:"key"`  // the same over retries, and never again for another notification
	Type  string    `json:"type"` // alert.opened, alert.raised, alert.reopened, alert.closed
	At    time.Time `json:"at"`   // when the change was made
	Alert Alert     `json:"alert"`
}

// Alert is an alert for people: long lists and texts are cut, names that look like no account are masked.
type Alert struct {
	ID             string            `json:"id"`
	Title          string            `json:"title"`
	Severity       string            `json:"severity"` // info, low, medium, high, critical
	SeverityLevel  int               `json:"severity_level"`
	Status         string            `json:"status"`
	Org            string            `json:"org"`
	TestOrg        bool              `json:"test_org,omitempty"`
	Lane           string            `json:"lane,omitempty"` // empty: live
	Backfill       bool              `json:"backfill,omitempty"`
	Rules          []string          `json:"rules,omitempty"`
	Health         bool              `json:"health,omitempty"` // about oktawatch itself
	DedupKey       []string          `json:"dedup_key,omitempty"`
	Users          []string          `json:"users,omitempty"`
	Addresses      []string          `json:"addresses,omitempty"`
	Apps           []string          `json:"apps,omitempty"`
	Devices        []string          `json:"devices,omitempty"`
	DetectionCount int64             `json:"detections"`
	EventCount     int64             `json:"events"`
	Detection      string            `json:"detection_id,omitempty"` // the one that made the change
	FirstTime      time.Time         `json:"first_time"`
	LastTime       time.Time         `json:"last_time"`
	Published      *time.Time        `json:"published,omitempty"` // Okta's, of the event that made the change
	Via            string            `json:"via,omitempty"`       // how that event came: hook, poller, …
	Techniques     []string          `json:"techniques,omitempty"`
	Tags           []string          `json:"tags,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Context        map[string]string `json:"context,omitempty"`
	Description    string            `json:"description,omitempty"`
	Runbook        string            `json:"runbook,omitempty"`
	ClosedBy       string            `json:"closed_by,omitempty"`
	CloseReason    string            `json:"close_reason,omitempty"`
}

// Sink tells one receiver. Deliver returns nil when the receiver has taken the notification, an error when it has to be
// tried again: as it is, with an Error that says when, or never (Gone). It is called by several goroutines at once and
// must end soon after its context.
type Sink interface {
	Deliver(ctx context.Context, n Notification) error
}

// Error is a failure that says more than "try again".
type Error struct {
	Gone       bool          // the receiver wants nothing any more
	RetryAfter time.Duration // not before this has passed; zero: as usual
	Err        error         // for people, without secrets
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Deps are what a sink works with.
type Deps struct {
	Out io.Writer        // of the terminal; nil: standard output
	Now func() time.Time // nil: time.Now
}

// Kind describes a sink: its documentation, the check of its configuration and its constructor derive from it.
type Kind struct {
	Name    string
	Doc     string   // one or two sentences
	Options []Option // of a receiver's `with`
	// New makes a sink of the options as JSON, an object. It touches neither network nor disk.
	New func(raw []byte, deps Deps) (Sink, error)
}

// Option is one key of a receiver's `with`.
type Option struct {
	Name    string
	Type    string // text, bool, duration, list of text, map of text to text
	Default string // as written in the file; empty: none
	Doc     string
}

// OptionsOf describes the options struct of a kind: each field has the tags json, doc and, where there is one, default.
func OptionsOf[T any]() []Option {
	t := reflect.TypeFor[T]()
	var out []Option
	for f := range t.Fields() {
		o := Option{Name: f.Tag.Get("json"), Default: f.Tag.Get("default"), Doc: f.Tag.Get("doc")}
		switch f.Type {
		case reflect.TypeFor[string]():
			o.Type = "text"
		case reflect.TypeFor[bool]():
			o.Type = "bool"
		case reflect.TypeFor[Duration]():
			o.Type = "duration"
		case reflect.TypeFor[[]string]():
			o.Type = "list of text"
		case reflect.TypeFor[map[string]string]():
			o.Type = "map of text to text"
		default:
			panic("sink: option " + o.Name + " has a type that is not described")
		}
		out = append(out, o)
	}
	return out
}

// Unmarshal reads options strictly: an unknown key is an error that names those there are.
func Unmarshal[T any](raw []byte, into *T) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		raw = []byte("{}")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		return nil
	}
	var names []string
	for _, o := range OptionsOf[T]() {
		names = append(names, o.Name)
	}
	what := strings.TrimPrefix(err.Error(), "json: ")
	if typ, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		what = "with." + typ.Field + " is not of the type it must be"
	}
	return fmt.Errorf("%s; the options of this sink are %s", what, strings.Join(names, ", "))
}

// Duration is an option of type duration, written as in 10s.
type Duration time.Duration

// UnmarshalText reads it.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no duration: write it as in 10s", b)
	}
	*d = Duration(v)
	return nil
}
