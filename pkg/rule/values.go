package rule

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
)

// Bounds of what HitValues tells.
const (
	maxValueBytes  = 4 << 10
	maxValuesBytes = 16 << 10
	maxValueKeys   = 200 // of a count_by
)

// findShown lists the numbers of a hit that are worth telling: every aggregate, and what of the past an expression reads.
func (c *Compiled) findShown() {
	used := map[string]bool{}
	for _, p := range c.afterFilter() {
		for _, place := range []string{"recent", "base"} {
			for _, n := range identsOf(p.ast.Expr(), place) {
				used[place+"."+n] = true
			}
		}
	}
	for name, b := range c.names {
		if b.hit.kind == nameAgg || used[name] && (b.hit.kind == nameRecent || b.hit.kind == nameBase) {
			c.shown = append(c.shown, name)
		}
	}
	slices.Sort(c.shown)
}

// ShownValues names the numbers of a hit that are worth telling, sorted, such as agg.users.
func (c *Compiled) ShownValues() []string { return slices.Clone(c.shown) }

// HitValue is one of these numbers, as JSON; ok is false where the hit does not have it.
func (c *Compiled) HitValue(h *Hit, name string) (text string, ok bool) {
	h.Event.prepare()
	h.Event.act.use(c)
	h.Event.act.hit = h
	v, ok := h.value(c, c.names[name].hit)
	h.Event.act.hit = nil
	if !ok || types.IsUnknownOrError(v) {
		return "", false
	}
	return jsonText(v), true
}

// HitValues are the numbers of a hit by name, each as JSON. What is longer than 4 kB, or would make them more than 16 kB,
// is left out.
func (c *Compiled) HitValues(h *Hit) map[string]string {
	if len(c.shown) == 0 {
		return nil
	}
	out := make(map[string]string, len(c.shown))
	size := 0
	for _, name := range c.shown {
		if n := c.names[name].hit; n.kind == nameAgg && n.i < len(h.Agg) && len(h.Agg[n.i].Counts) > maxValueKeys {
			continue
		}
		text, ok := c.HitValue(h, name)
		if !ok || len(text) > maxValueBytes || size+len(text) > maxValuesBytes {
			continue
		}
		size += len(text)
		out[name] = text
	}
	return out
}

// ReadHitValues gives a hit the numbers that HitValues told. It names the aggregates that are not among them: those h.Agg
// and h.Count must hold.
func (c *Compiled) ReadHitValues(h *Hit, values map[string]string) (missing []string) {
	n := len(c.AggregateTypes)
	h.values = make([]ref.Val, n)
	if len(h.Agg) != n {
		h.Agg = make([]Value, n)
	}
	h.Recent, h.Base = make([]any, n+1), make([]any, n+1)
	for _, name := range slices.Sorted(maps.Keys(c.names)) {
		b := c.names[name].hit
		if b.kind != nameAgg && b.kind != nameRecent && b.kind != nameBase {
			continue
		}
		text, told := values[name]
		if told {
			if err := c.readHitValue(h, b, text); err == nil {
				continue
			}
		}
		if b.kind == nameAgg {
			missing = append(missing, name)
		}
	}
	return missing
}

func (c *Compiled) readHitValue(h *Hit, n hitName, text string) error {
	if n.kind != nameAgg {
		all := h.Recent
		if n.kind == nameBase {
			all = h.Base
		}
		var v any = new(Baseline)
		if n.i < len(c.AggregateTypes) && c.AggregateTypes[n.i].Type == CountsValue {
			v = new(KeyBaseline)
		}
		if err := json.Unmarshal([]byte(text), v); err != nil { // names are the fields', in lower case
			return fmt.Errorf("read a value: %w", err)
		}
		all[n.i] = v
		return nil
	}
	var err error
	if n.i == len(c.AggregateTypes) {
		err = json.Unmarshal([]byte(text), &h.Count)
		return err //nolint:wrapcheck // the caller only asks whether
	}
	var val ref.Val
	switch c.AggregateTypes[n.i].Type {
	case IntValue:
		var v int64
		err = json.Unmarshal([]byte(text), &v)
		val = types.Int(v)
	case DoubleValue:
		var v float64
		err = json.Unmarshal([]byte(text), &v)
		val = types.Double(v)
	case TimeValue:
		var v time.Time
		err = json.Unmarshal([]byte(text), &v)
		val = types.Timestamp{Time: v}
	case CountsValue:
		v := map[string]int64{}
		err = json.Unmarshal([]byte(text), &v)
		val = intMap(v)
	}
	if err != nil {
		return fmt.Errorf("read a value: %w", err)
	}
	h.values[n.i] = val
	return nil
}

// AtHand says what of a hit there is besides its numbers.
type AtHand struct {
	Event    bool // its last event
	Evidence bool // all of its events
}

// Notes of what is traced.
const (
	noteNoEvent  = "reads the hit's last event, which is not at hand"
	notePartial  = "reads the evidence, of which only a part is at hand"
	noteNotAsked = "a step before is not at hand"
)

// TraceHit evaluates what a rule asks of a hit (having, severity_when) and tells what each expression and its parts were.
// Where the hit's event is not at hand, h.Event must be an event that reads empty; expressions that read it are told
// without a value.
func (c *Compiled) TraceHit(h *Hit, at AtHand) []Traced {
	t := tracer{c: c, ev: h.Event, hit: h, at: at, done: map[string]bool{}}
	if c.having != nil {
		t.program("having", c.having)
	}
	for _, w := range c.severity {
		t.program("severity "+w.severity.String(), w.when)
	}
	return t.out
}

// TraceStep evaluates the filter of step i over an event, with the earlier steps that h holds. An earlier step that the
// filter reads and h does not hold is said.
func (c *Compiled) TraceStep(i int, h *Hit, ev *Event) []Traced {
	t := tracer{c: c, ev: ev, hit: h, at: AtHand{true, true}, done: map[string]bool{}}
	for _, r := range c.StepTypes[i].Refs {
		if r < 0 || r >= len(h.Steps) || h.Steps[r] == nil {
			return []Traced{{What: "where", Text: c.steps[i].text, Note: noteNotAsked}}
		}
	}
	t.program("where", c.steps[i])
	return t.out
}

// readsEvent tells whether a program looks at the event, through vars and lib too.
func (c *Compiled) readsEvent(p *program) bool {
	seen := map[*program]bool{}
	var reads func(p *program) bool
	reads = func(p *program) bool {
		if seen[p] {
			return false
		}
		seen[p] = true
		return usesIdent(p.ast.Expr(), func(n string) bool {
			if n == "event" {
				return true
			}
			if b := c.names[n]; b.variable != nil {
				return reads(b.variable)
			} else if b.lib != nil {
				return reads(b.lib)
			}
			return false
		})
	}
	return reads(p)
}

// note says why a value of the program would be none, or not the one that was.
func (t *tracer) note(p *program) (note string, value bool) {
	switch {
	case t.hit == nil:
	case !t.at.Event && t.c.readsEvent(p):
		return noteNoEvent, false
	case !t.at.Evidence && usesIdent(p.ast.Expr(), func(n string) bool { return n == "evidence" }):
		return notePartial, true
	}
	return "", true
}

// isRecord tells names that stand for whole records, which say nothing by themselves.
func isRecord(name string) bool {
	return name == "event" || name == "evidence" || strings.HasPrefix(name, "steps.")
}
