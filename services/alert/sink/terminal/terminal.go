// Package terminal prints notifications for whoever looks at the process: a few aligned lines each, or one line of JSON.
// Text that came from outside is printed without control characters, so that no event can write to the terminal.
package terminal

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/oktawatch/oktawatch/services/alert/sink"
)

// Kind is the terminal sink.
var Kind = sink.Kind{
	Name:    "terminal",
	Doc:     "Prints each notification on standard output, for people or as JSON.",
	Options: sink.OptionsOf[options](),
	New:     open,
}

type options struct {
	Format string `json:"format" default:"text" doc:"text or json (one line each)."`
	Color  string `json:"color" default:"auto" doc:"auto (when the output is a terminal), always or never."`
}

type terminal struct {
	o   options
	now func() time.Time

	mu    sync.Mutex
	out   io.Writer
	color bool
}

func open(raw []byte, deps sink.Deps) (sink.Sink, error) {
	var o options
	if err := sink.Unmarshal(raw, &o); err != nil {
		return nil, err
	}
	t := &terminal{o: o, now: deps.Now, out: deps.Out}
	if t.out == nil {
		t.out = os.Stdout
	}
	if t.now == nil {
		t.now = time.Now
	}
	switch o.Format {
	case "", "text", "json":
	default:
		return nil, fmt.Errorf("with.format: %q is neither text nor json", o.Format)
	}
	switch o.Color {
	case "", "auto":
		f, ok := t.out.(*os.File)
		t.color = ok && isTerminal(f)
	case "always":
		t.color = true
	case "never":
	default:
		return nil, fmt.Errorf("with.color: %q is none of auto, always, never", o.Color)
	}
	return t, nil
}

func isTerminal(f *os.File) bool {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// Deliver prints a notification in one write.
func (t *terminal) Deliver(ctx context.Context, n sink.Notification) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var text []byte
	if t.o.Format == "json" {
		b, err := json.Marshal(n)
		if err != nil {
			return fmt.Errorf("write notification as JSON: %w", err)
		}
		text = append(b, '\n')
	} else {
		text = []byte(t.text(n))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.out.Write(text); err != nil {
		return fmt.Errorf("print alert: %w", err)
	}
	return nil
}

const (
	indent   = "                   " // below the title
	maxTitle = 160
	maxList  = 3
)

var colors = map[string]string{"critical": "1;37;41", "high": "1;31", "medium": "33", "low": "36", "info": "2"}

func (t *terminal) text(n sink.Notification) string {
	a := n.Alert
	var b strings.Builder
	head := fmt.Sprintf("%-8s", strings.ToUpper(a.Severity))
	title := plain(a.Title, maxTitle)
	if t.color {
		head = "\x1b[" + colors[a.Severity] + "m" + head + "\x1b[0m"
		title = "\x1b[1m" + title + "\x1b[0m"
	}
	fmt.Fprintf(&b, "%s  %s %s%s\n", n.At.Local().Format(time.TimeOnly), head, verb(n), title)

	var who []string
	who = append(who, list(a.Users, "users")...)
	if from := list(a.Addresses, "addresses"); len(from) > 0 {
		who = append(who, "from "+strings.Join(from, ", "))
	}
	if apps := list(a.Apps, "apps"); len(apps) > 0 {
		who = append(who, "in "+strings.Join(apps, ", "))
	}
	line(&b, t.color, strings.Join(who, "  "))

	line(&b, t.color, strings.Join([]string{
		"rule " + plain(strings.Join(a.Rules, ", "), 80),
		origin(a),
		t.latency(n),
		count(a),
	}, "  ·  "))
	line(&b, t.color, strings.Join([]string{"alert " + plain(a.ID, 90), dedup(a)}, "  ·  "))
	return b.String()
}

// verb says what happened, unless it is the usual: a new alert.
func verb(n sink.Notification) string {
	switch n.Type {
	case sink.Raised:
		return "now worse: "
	case sink.Reopened:
		return "open again: "
	case sink.Closed:
		by := ""
		if n.Alert.ClosedBy != "" {
			by = " by " + plain(n.Alert.ClosedBy, 40)
		}
		if n.Alert.CloseReason != "" {
			by += " (" + plain(n.Alert.CloseReason, 40) + ")"
		}
		return "closed" + by + ": "
	}
	return ""
}

func line(b *strings.Builder, color bool, s string) {
	for _, empty := range []string{"  ·    ·  ", "  ·    ·  "} { // parts that had nothing to say
		s = strings.ReplaceAll(s, empty, "  ·  ")
	}
	if s = strings.TrimSuffix(strings.TrimPrefix(s, "  ·  "), "  ·  "); s == "" {
		return
	}
	if color {
		s = "\x1b[2m" + s + "\x1b[0m"
	}
	b.WriteString(indent + s + "\n")
}

func origin(a sink.Alert) string {
	s := "org " + plain(a.Org, 40)
	if a.Org == "" { // of a finding about the rules
		s = "every org"
	}
	if a.TestOrg {
		s += " (test org)"
	}
	if a.Backfill || a.Lane != "" {
		s += " (backfill)"
	}
	return s
}

// dedup says by what its detections were joined.
func dedup(a sink.Alert) string {
	if len(a.DedupKey) == 0 {
		return ""
	}
	return "joined by " + plain(strings.Join(a.DedupKey, ", "), 80)
}

// latency is how long it took from Okta to here: what somebody who tries the pipeline wants to know.
func (t *terminal) latency(n sink.Notification) string {
	if n.Alert.Published == nil || n.Type == sink.Closed {
		return ""
	}
	via := ""
	if n.Alert.Via != "" {
		via = ", by " + plain(n.Alert.Via, 20)
	}
	return span(t.now().Sub(*n.Alert.Published)) + " after Okta" + via
}

// span is a duration as people say it.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(math.Round(d.Minutes())))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(math.Round(d.Hours())))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func count(a sink.Alert) string {
	if a.EventCount == 1 && a.DetectionCount == 1 {
		return ""
	}
	var parts []string
	if a.DetectionCount > 1 {
		parts = append(parts, fmt.Sprintf("%d detections", a.DetectionCount))
	}
	if a.EventCount > 1 {
		parts = append(parts, fmt.Sprintf("%d events", a.EventCount))
	}
	return strings.Join(parts, ", ")
}

func list(l []string, name string) []string {
	var out []string
	for i, s := range l {
		if i == maxList {
			return append(out, fmt.Sprintf("and %d more %s", len(l)-maxList, name))
		}
		if s = plain(s, 60); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// plain makes text printable: no control characters, nothing that turns the direction of writing, no more than n runes.
func plain(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r), r == unicode.ReplacementChar, unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r):
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
