// Package sinktest is what every sink must do, written once. A sink's own test says how to make one that works and where
// to see what arrived; sinktest does the rest. What is particular to a sink belongs into its own tests.
package sinktest

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/services/alert/sink"
)

// Fake is a receiver of one kind's notifications.
type Fake struct {
	With    map[string]any // options of a sink that leads there
	Deps    sink.Deps
	Arrived func() []string  // what arrived so far, as text
	Fail    func(fail bool)  // makes the receiver refuse, or take again
	Broken  []map[string]any // options that New must refuse
}

// Example is a notification with everything in it.
func Example() sink.Notification {
	at := time.Date(2026, 1, 5, 10, 0, 1, 0, time.UTC)
	published := at.Add(-400 * time.Millisecond)
	return sink.Notification{
		Key: "4f2a.1.1", Type: sink.Opened, At: at,
		Alert: sink.Alert{
			ID: "4f2a.1", Title: "bob@example.com reset all factors of alice@example.com", Severity: "high", SeverityLevel: 4, Status: "open",
			Org: "00o1", TestOrg: true, Rules: []string{"mfa-all-factors-reset"}, DedupKey: []string{"00u1"},
			Users: []string{"bob@example.com", "alice@example.com"}, Addresses: []string{"198.51.100.7"}, Apps: []string{"Okta Admin Console"},
			DetectionCount: 1, EventCount: 3, Detection: "11111111-2222-5333-8444-555555555555", FirstTime: at, LastTime: at,
			Published: &published, Via: "hook", Techniques: []string{"T1556.006"}, Context: map[string]string{"n": "3"}, Runbook: "Find the ticket.",
		},
	}
}

// Run holds a kind to the contract of sink.Kind and sink.Sink.
func Run(t *testing.T, k sink.Kind, fake func(t *testing.T) Fake) {
	open := func(t *testing.T, f Fake) sink.Sink {
		t.Helper()
		raw, err := json.Marshal(f.With)
		if err != nil {
			t.Fatal(err)
		}
		s, err := k.New(raw, f.Deps)
		if err != nil {
			t.Fatalf("New(%s): %v", raw, err)
		}
		return s
	}

	t.Run("describes itself", func(t *testing.T) {
		if k.Name == "" || k.Name != strings.ToLower(k.Name) || len(k.Doc) < 20 || !strings.HasSuffix(k.Doc, ".") || k.New == nil {
			t.Errorf("name %q, doc %q", k.Name, k.Doc)
		}
		for _, o := range k.Options {
			if o.Name == "" || o.Type == "" || len(o.Doc) < 10 {
				t.Errorf("option %+v says too little", o)
			}
		}
	})

	t.Run("refuses unknown options and names those there are", func(t *testing.T) {
		f := fake(t)
		with := map[string]any{"no_such_option": 1}
		maps.Copy(with, f.With)
		raw, _ := json.Marshal(with)
		_, err := k.New(raw, f.Deps)
		if err == nil || !strings.Contains(err.Error(), "no_such_option") || len(k.Options) > 0 && !strings.Contains(err.Error(), k.Options[0].Name) {
			t.Errorf("error %v", err)
		}
	})

	t.Run("refuses broken options", func(t *testing.T) {
		f := fake(t)
		for _, with := range f.Broken {
			raw, _ := json.Marshal(with)
			if _, err := k.New(raw, f.Deps); err == nil {
				t.Errorf("%s was taken", raw)
			}
		}
	})

	t.Run("delivers", func(t *testing.T) {
		f := fake(t)
		n := Example()
		if err := open(t, f).Deliver(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		got := strings.Join(f.Arrived(), "\n")
		for _, want := range []string{n.Alert.Title, n.Alert.ID, n.Alert.Rules[0], n.Alert.Users[1], n.Alert.Addresses[0], n.Alert.Org} {
			if !strings.Contains(got, want) {
				t.Errorf("%q did not arrive in:\n%s", want, got)
			}
		}
		if !strings.Contains(strings.ToLower(got), n.Alert.Severity) {
			t.Errorf("the severity did not arrive in:\n%s", got)
		}
	})

	t.Run("takes every type, and empty alerts", func(t *testing.T) {
		f := fake(t)
		s := open(t, f)
		types := []string{sink.Opened, sink.Raised, sink.Reopened, sink.Closed}
		for _, typ := range types {
			n := Example()
			n.Type = typ
			if err := s.Deliver(t.Context(), n); err != nil {
				t.Errorf("%s: %v", typ, err)
			}
			if err := s.Deliver(t.Context(), sink.Notification{Key: "k", Type: typ}); err != nil {
				t.Errorf("%s, empty: %v", typ, err)
			}
		}
		if n := len(f.Arrived()); n != 2*len(types) {
			t.Errorf("%d arrived, want %d", n, 2*len(types))
		}
	})

	t.Run("takes what is too large or hostile", func(t *testing.T) {
		f := fake(t)
		n := Example()
		n.Alert.Title = strings.Repeat("long \x1b[31m\u202e\x00 ", 2000)
		n.Alert.Description = strings.Repeat("x", 1<<20)
		for range 5000 {
			n.Alert.Users = append(n.Alert.Users, strings.Repeat("u", 500))
		}
		n.Alert.Context = map[string]string{"a": strings.Repeat("y", 1<<20)}
		if err := open(t, f).Deliver(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if got := f.Arrived(); len(got) != 1 || strings.ContainsAny(got[0], "\x1b\x00") {
			t.Errorf("%d arrived, or control characters did", len(got))
		}
	})

	t.Run("is safe for several at once", func(t *testing.T) {
		f := fake(t)
		s := open(t, f)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := s.Deliver(t.Context(), Example()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := len(f.Arrived()); n != 20 {
			t.Errorf("%d arrived, want 20", n)
		}
	})

	t.Run("says when it failed, and works again", func(t *testing.T) {
		f := fake(t)
		s := open(t, f)
		f.Fail(true)
		err := s.Deliver(t.Context(), Example())
		if err == nil {
			t.Fatal("no error from a receiver that refuses")
		}
		var e *sink.Error
		if errors.As(err, &e) && e.Gone {
			t.Error("a receiver that refuses once is not gone")
		}
		f.Fail(false)
		if err := s.Deliver(t.Context(), Example()); err != nil {
			t.Error(err)
		}
	})

	t.Run("ends with its context", func(t *testing.T) {
		f := fake(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := open(t, f).Deliver(ctx, Example()); err == nil {
			t.Error("delivered after its context had ended")
		}
		if n := len(f.Arrived()); n != 0 {
			t.Errorf("%d arrived after the context had ended", n)
		}
	})
}
