// Package ruletest runs the tests that stand in rule files. Each test is played in order, shuffled, with every event
// twice, and with an event hook's partial copy before each complete one; all four must end in the same detections.
// It has the fixtures that tests name by event type. It judges through package engine, as the service does, and knows
// neither Kafka nor the wall clock.
package ruletest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
)

// Org is the org of every test.
const Org = "eval"

// Result is how one test ended.
type Result struct {
	Rule     string
	Test     string
	Pos      rule.Position
	Failures []string // empty: it passed
}

// Run plays the tests of one rule. Files that tests name are looked up in fsys, from the rule's own folder.
func Run(set *rule.Set, r *rule.Rule, fsys fs.FS, dir string) []Result {
	var out []Result
	for i := range r.Tests {
		t := &r.Tests[i]
		res := Result{Rule: r.ID, Test: t.Name, Pos: t.Pos}
		if err := run(set, r, t, fsys, dir, &res); err != nil {
			res.Failures = append(res.Failures, err.Error())
		}
		out = append(out, res)
	}
	return out
}

func run(set *rule.Set, r *rule.Rule, t *rule.Test, fsys fs.FS, dir string, res *Result) error {
	one, problems := set.Only(r, t.Params, t.Lists)
	if len(problems) > 0 {
		return fmt.Errorf("%s", problems[0])
	}
	events, err := Events(t, fsys, dir)
	if err != nil {
		return err
	}
	for _, te := range t.Events {
		if te.Detection != nil && !one.Rules[0].Over() {
			return fmt.Errorf("%s: detection: this rule reads events, not detections: leave it out", te.Pos)
		}
	}
	var first []*record.Detection
	for _, p := range plays {
		failures := &failures{}
		ds, err := play(one, t, p.order(events, one.Rules[0].Wait()), failures)
		if err != nil {
			return err
		}
		if len(failures.errs) > 0 {
			return fmt.Errorf("an expression failed: %w", failures.errs[0])
		}
		ds = counted(ds, t)
		if p.name == plays[0].name {
			first = ds
			continue
		}
		if diff := differ(first, ds); diff != "" {
			return fmt.Errorf("played %s it ends otherwise than in order: %s", p.name, diff)
		}
	}
	res.Failures = append(res.Failures, compare(t, first)...)
	return nil
}

type failures struct{ errs []error }

func (f *failures) Excepted(string, string) {}
func (f *failures) Failed(err error)        { f.errs = append(f.errs, err) }

// Event is one record of a test: an event, or one that comes through a detection.
type Event struct {
	Log     *record.SystemLog
	Through *rule.DetectionRef // nil: it comes as an event
}

// time is the record's: a pair's is the later one of the event's and its detection's first hit.
func (r Event) time() time.Time {
	if r.Through != nil && r.Through.FirstTime.After(r.Log.Derived.Time) {
		return r.Through.FirstTime
	}
	return r.Log.Derived.Time
}

// plays are the orders in which a test is played; the first one is what expect is compared with.
var plays = []struct {
	name  string
	order func(records []Event, lateness time.Duration) []Event
}{
	{"in order", func(e []Event, _ time.Duration) []Event { return inOrder(e) }},
	{"shuffled within the lateness", func(e []Event, lateness time.Duration) []Event {
		r := rand.New(rand.NewPCG(1, uint64(len(e)))) //nolint:gosec // a fixed order
		if lateness == 0 {
			return inOrder(e)
		}
		type read struct {
			at  time.Time
			rec Event
		}
		all := make([]read, len(e))
		for i, rec := range e {
			all[i] = read{rec.time().Add(time.Duration(r.Int64N(int64(lateness)))), rec}
		}
		slices.SortStableFunc(all, func(a, b read) int { return a.at.Compare(b.at) })
		out := make([]Event, len(e))
		for i := range all {
			out[i] = all[i].rec
		}
		return out
	}},
	{"with every event twice", func(e []Event, _ time.Duration) []Event {
		e = inOrder(e)
		var out []Event
		for _, rec := range e {
			out = append(out, rec, rec)
		}
		return append(out, e...)
	}},
	{"with a partial copy before each event", func(e []Event, _ time.Duration) []Event {
		var out []Event
		for _, rec := range inOrder(e) {
			hook, full := *rec.Log, *rec.Log
			hook.Derived.Partial, full.Derived.Copy = true, 2
			hook.Device, hook.SecurityContext = nil, nil
			if hook.Request != nil {
				req := *hook.Request
				req.IPChain = slices.Clone(req.IPChain)
				for i := range req.IPChain {
					req.IPChain[i].IPDetails = nil
				}
				hook.Request = &req
			}
			out = append(out, Event{&hook, rec.Through}, Event{&full, rec.Through})
		}
		return out
	}},
}

// inOrder sorts records by time.
func inOrder(e []Event) []Event {
	e = slices.Clone(e)
	slices.SortStableFunc(e, func(a, b Event) int { return a.time().Compare(b.time()) })
	return e
}

// longAfter is more than any rule waits.
const longAfter = 20 * 365 * 24 * time.Hour

// play judges records and gives the last update of each detection that is not withdrawn, in order of time. At the end
// the clock runs on until nothing waits.
func play(set *rule.Set, t *rule.Test, records []Event, o engine.Observer) ([]*record.Detection, error) {
	last := map[string]*record.Detection{}
	c := newCourse(set, o, Org, func(d *record.Detection) error {
		if old := last[d.ID]; old == nil || old.Update <= d.Update {
			last[d.ID] = d
		}
		return nil
	})
	if t.Learned {
		c.st.Begin(Org, lane, time.Unix(0, 0))
	}
	var now time.Time
	for _, rec := range records {
		if rec.Through == nil {
			c.st.Begin(Org, lane, rec.Log.Derived.Time)
		}
		err := c.judge(rec)
		if at := rec.time(); err == nil && at.After(now) {
			now = at
			err = c.advance(now)
		}
		if err != nil {
			return nil, fmt.Errorf("judge event %s: %w", rec.Log.UUID, err)
		}
	}
	if err := c.advance(now.Add(longAfter)); err != nil {
		return nil, err
	}
	out := make([]*record.Detection, 0, len(last))
	for _, d := range last {
		if !d.Withdrawn {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b *record.Detection) int {
		return cmp.Or(a.LastTime.Compare(b.LastTime), a.FirstTime.Compare(b.FirstTime), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// counted leaves out history and what is not to count yet.
func counted(ds []*record.Detection, t *rule.Test) []*record.Detection {
	return slices.DeleteFunc(ds, func(d *record.Detection) bool {
		return d.LastTime.Before(t.Start) || t.Until != nil && d.FirstTime.After(t.Start.Add(*t.Until))
	})
}

// differ says in what two ends differ; how many updates there were is not part of it.
func differ(a, b []*record.Detection) string {
	text := func(ds []*record.Detection) []string {
		var out []string
		for _, d := range ds {
			c := *d
			c.Update = 0
			c.Evidence = nil
			j, err := json.Marshal(c)
			if err != nil {
				return []string{err.Error()}
			}
			out = append(out, string(j))
		}
		return out
	}
	x, y := text(a), text(b)
	if len(x) != len(y) {
		return fmt.Sprintf("%d detections instead of %d", len(y), len(x))
	}
	for i := range x {
		if x[i] != y[i] {
			return fmt.Sprintf("detection %d is %s instead of %s", i+1, y[i], x[i])
		}
	}
	return ""
}

// compare says what of expect does not hold.
func compare(t *rule.Test, ds []*record.Detection) []string {
	var out []string
	fail := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	x := t.Expect
	if x.None {
		if len(ds) > 0 {
			fail("expected none, got %d: %s", len(ds), brief(ds))
		}
		return out
	}
	if x.Detections != nil && len(ds) != *x.Detections {
		fail("expected %d detections, got %d%s", *x.Detections, len(ds), brief(ds))
	}
	if x.Alerts != nil {
		if n := alerts(ds); n != *x.Alerts {
			fail("expected %d alerts, got %d", *x.Alerts, n)
		}
	}
	if x.Events == nil && x.Severity == "" && x.Title == nil && x.DedupKey == nil && x.At == nil && len(x.Context) == 0 {
		return out
	}
	if len(ds) == 0 {
		if len(out) == 0 {
			fail("expected a detection, got none")
		}
		return out
	}
	d := ds[len(ds)-1]
	if x.Events != nil && d.EventCount != int64(*x.Events) {
		fail("expected %d events, got %d", *x.Events, d.EventCount)
	}
	if got := rule.Severity(d.Severity).String(); x.Severity != "" && got != x.Severity {
		fail("expected severity %s, got %s", x.Severity, got)
	}
	if x.Title != nil && d.Title != *x.Title {
		fail("expected title %q, got %q", *x.Title, d.Title)
	}
	if got := strings.Join(d.DedupKey, "|"); x.DedupKey != nil && got != *x.DedupKey {
		fail("expected dedup_key %q, got %q", *x.DedupKey, got)
	}
	if x.At != nil && !d.FirstTime.Equal(t.Start.Add(*x.At)) {
		fail("expected the first hit %s after the start, got %s", *x.At, d.FirstTime.Sub(t.Start))
	}
	for name, want := range x.Context {
		w, err := json.Marshal(want)
		got, ok := d.Context[name]
		switch {
		case err != nil:
			fail("context.%s: %v", name, err)
		case !ok:
			fail("expected context.%s, which the rule does not have", name)
		case !sameJSON(w, []byte(got)):
			fail("expected context.%s to be %s, got %s", name, w, got)
		}
	}
	return out
}

func sameJSON(a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return bytes.Equal(a, b)
	}
	p, err1 := json.Marshal(x)
	q, err2 := json.Marshal(y)
	return err1 == nil && err2 == nil && bytes.Equal(p, q)
}

func brief(ds []*record.Detection) string {
	var b strings.Builder
	for i, d := range ds {
		if i == 3 {
			b.WriteString(" …")
			break
		}
		fmt.Fprintf(&b, " [%s %q]", rule.Severity(d.Severity), d.Title)
	}
	return b.String()
}

// alerts counts the alerts that detections, in order of time, become.
func alerts(ds []*record.Detection) int {
	last := map[string]time.Time{}
	n := 0
	for _, d := range ds {
		if d.Mode != string(rule.ModeAlert) {
			continue
		}
		until, open := last[d.Fingerprint]
		if !open || d.FirstTime.After(until.Add(time.Duration(d.DedupPeriodMS)*time.Millisecond)) {
			n++
			until = d.LastTime
		}
		if d.LastTime.After(until) {
			until = d.LastTime
		}
		last[d.Fingerprint] = until
	}
	return n
}

// Events makes the records of a test, in the order of the file.
func Events(t *rule.Test, fsys fs.FS, dir string) ([]Event, error) {
	var out []Event
	at := t.Start.Add(-time.Second)
	for _, te := range t.Events {
		for i := range te.Repeat {
			switch {
			case i > 0:
				at = at.Add(te.Every)
			case te.At != nil:
				at = t.Start.Add(*te.At)
			default:
				at = at.Add(time.Second)
			}
			ev, err := base(te, fsys, dir)
			if err != nil {
				return nil, err
			}
			if _, ok := ev["uuid"].(string); !ok || te.Repeat > 1 {
				ev["uuid"] = uuid.NewSHA1(uuid.NameSpaceOID, []byte(t.Name+"\x00"+strconv.Itoa(len(out)))).String()
			}
			ev["published"] = at.UTC().Format("2006-01-02T15:04:05.000Z")
			for _, a := range te.Set {
				if err := assign(ev, a.Path, a.Value); err != nil {
					return nil, fmt.Errorf("%s: set: %w", te.Pos, err)
				}
			}
			for _, a := range te.Each {
				s, _ := a.Value.(string)
				if err := assign(ev, a.Path, strings.ReplaceAll(s, "${i}", strconv.Itoa(i))); err != nil {
					return nil, fmt.Errorf("%s: each: %w", te.Pos, err)
				}
			}
			log, err := Record(ev)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", te.Pos, err)
			}
			out = append(out, Event{log, te.Detection})
		}
	}
	return out, nil
}

// Record makes the record that normalize would make of a LogEvent, received when it was published.
func Record(ev map[string]any) (*record.SystemLog, error) {
	doc, err := json.Marshal(ev)
	if err != nil {
		return nil, fmt.Errorf("write event as JSON: %w", err)
	}
	log, _, err := systemlog.FromJSON(doc, nil)
	if err != nil {
		return nil, err
	}
	if log.Published == nil {
		return nil, fmt.Errorf("published %v is no time", ev["published"])
	}
	log.Derived.Org, log.Derived.Lane, log.Derived.Copy = Org, "live", 1
	log.Derived.Time, log.Derived.Received = *log.Published, *log.Published
	return log, nil
}

// base is the event before set and each.
func base(te rule.TestEvent, fsys fs.FS, dir string) (map[string]any, error) {
	switch {
	case te.Fixture != "":
		return Fixture(te.Fixture), nil
	case te.File != "":
		return fromFile(te, fsys, dir)
	}
	return clone(te.Event).(map[string]any), nil
}

func fromFile(te rule.TestEvent, fsys fs.FS, dir string) (map[string]any, error) {
	name, lineText, ok := strings.Cut(te.File, "#")
	line, err := strconv.Atoi(lineText)
	if !ok || err != nil || line < 1 {
		return nil, fmt.Errorf("%s: file %q: write path#line, lines from 1", te.Pos, te.File)
	}
	src, err := fs.ReadFile(fsys, path.Join(dir, name))
	if err != nil {
		return nil, fmt.Errorf("%s: read test data: %w", te.Pos, err)
	}
	lines := bytes.Split(src, []byte("\n"))
	if line > len(lines) || len(bytes.TrimSpace(lines[line-1])) == 0 {
		return nil, fmt.Errorf("%s: %s has no line %d", te.Pos, name, line)
	}
	var ev map[string]any
	dec := json.NewDecoder(bytes.NewReader(lines[line-1]))
	dec.UseNumber()
	if err := dec.Decode(&ev); err != nil {
		return nil, fmt.Errorf("%s: line %d of %s is no JSON object: %w", te.Pos, line, name, err)
	}
	return ev, nil
}

// assign sets the value at a path such as a.b.0.c and makes the objects on the way.
func assign(ev map[string]any, p string, value any) error {
	segs := strings.Split(p, ".")
	var cur any = ev
	for i, seg := range segs {
		last := i == len(segs)-1
		switch c := cur.(type) {
		case map[string]any:
			if last {
				c[seg] = clone(value)
				return nil
			}
			next := c[seg]
			switch next.(type) {
			case map[string]any, []any:
			default:
				next = map[string]any{}
				c[seg] = next
			}
			cur = next
		case []any:
			n, err := strconv.Atoi(seg)
			if err != nil || n < 0 || n >= len(c) {
				return fmt.Errorf("%s: %s is no place in a list of %d", p, seg, len(c))
			}
			if last {
				c[n] = clone(value)
				return nil
			}
			cur = c[n]
		default:
			return fmt.Errorf("%s: there is no object before %s", p, seg)
		}
	}
	return nil
}

func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = clone(e)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i, e := range v {
			l[i] = clone(e)
		}
		return l
	}
	return v
}
