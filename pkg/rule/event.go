package rule

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/cel-go/common/types/ref"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// Event is one System Log record as rules see it. It is reused from record to record and serves one goroutine at a
// time; nothing read from it outlives the next Reset.
type Event struct {
	view      *record.SystemLogView
	detection *DetectionRef
	self      *object
	heap      heap
	lists     map[string]*List
	act       activation
	ready     bool // what CEL needs is made for the present record

	risk    *record.Risk
	behave  ref.Val
	raw     any
	rawRead bool
	libs    map[*program]ref.Val
}

// eventVal finds the event behind a CEL value.
func eventVal(v ref.Val) (*Event, bool) {
	o, ok := v.(*object)
	if !ok || o.event == nil {
		return nil, false
	}
	return o.event, true
}

// Reset turns the event to another record.
func (e *Event) Reset(v *record.SystemLogView) { e.view, e.ready, e.detection = v, false, nil }

// SetDetection says through which detection the present record comes; nil: through none.
func (e *Event) SetDetection(d *DetectionRef) { e.detection, e.ready = d, false }

// View is the record behind the event.
func (e *Event) View() *record.SystemLogView { return e.view }

// prepare makes what CEL needs, for the first expression of a record that needs CEL.
func (e *Event) prepare() {
	if e.ready {
		return
	}
	e.ready = true
	e.heap.reset()
	e.self = e.heap.object(e.heap.types.byName[typeEvent], e.view)
	e.self.event = e
	e.risk, e.behave, e.raw, e.rawRead = nil, nil, nil, false
	clear(e.libs)
	e.act = activation{ev: e, vars: e.act.vars[:0]}
}

func (e *Event) targets(kind string) []ref.Val {
	var out []ref.Val
	t := e.heap.types.byName[typeTarget]
	targets := e.view.Target()
	for i := range targets {
		if targets[i].Type == kind {
			out = append(out, e.heap.object(t, &targets[i]))
		}
	}
	return out
}

func (e *Event) debugData() map[string]string {
	if d := e.view.DebugContext(); d != nil {
		return d.DebugData
	}
	return nil
}

// logOnly is debugData.logOnlySecurityData: JSON inside a string.
func (e *Event) logOnly() map[string]any {
	m, _ := decodeJSON(e.debugData()["logOnlySecurityData"]).(map[string]any)
	return m
}

// behaviors reads the three places where Okta writes verdicts of behaviours, name by name from the first that has it.
func (e *Event) behaviors() ref.Val {
	if e.behave != nil {
		return e.behave
	}
	out := map[string]string{}
	put := func(name, verdict string) {
		if _, ok := out[name]; !ok && name != "" {
			out[name] = verdict
		}
	}
	if s := e.view.SecurityContext(); s != nil {
		for _, b := range s.UserBehaviors {
			put(b.Name, b.Result)
		}
	}
	readBehaviors(decodeJSONOrText(e.debugData()["behaviors"]), put)
	readBehaviors(e.logOnly()["behaviors"], put)
	e.behave = stringMap(out)
	return e.behave
}

func readBehaviors(v any, put func(name, verdict string)) {
	switch v := v.(type) {
	case string:
		for _, p := range pairsOf(v, anyKey) {
			put(p[0], p[1])
		}
	case []any:
		for _, e := range v {
			readBehaviors(e, put)
		}
	case map[string]any:
		for _, k := range sortedKeys(v) {
			put(k, textOf(v[k]))
		}
	}
}

// riskOf reads the three places where Okta writes its risk verdict, name by name from the first that has it.
func (e *Event) riskOf() *record.Risk {
	if e.risk != nil {
		return e.risk
	}
	r := &record.Risk{}
	if s := e.view.SecurityContext(); s != nil && s.Risk != nil {
		*r = *s.Risk
	}
	readRisk(decodeJSONOrText(e.debugData()["risk"]), r)
	readRisk(e.logOnly()["risk"], r)
	e.risk = r
	return r
}

func readRisk(v any, r *record.Risk) {
	m := map[string]any{}
	switch v := v.(type) {
	case string:
		for _, p := range pairsOf(v, letterKey) {
			m[p[0]] = p[1]
		}
	case map[string]any:
		m = v
	}
	fill := func(into *string, key string) {
		if *into == "" {
			*into = textOf(m[key])
		}
	}
	fill(&r.Level, "level")
	fill(&r.PreviousLevel, "previousLevel")
	fill(&r.DetectionName, "detectionName")
	fill(&r.Issuer, "issuer")
	if len(r.Reasons) == 0 {
		switch v := m["reasons"].(type) {
		case []any:
			for _, e := range v {
				r.Reasons = append(r.Reasons, textOf(e))
			}
		case nil:
		default:
			if s := textOf(v); s != "" {
				r.Reasons = []string{s}
			}
		}
	}
}

func anyKey(c byte) bool { return c != ',' && c != '=' && c != '{' && c != '}' && c != '[' && c != ']' }

func letterKey(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// pairsOf reads text such as {a=b, c=d}, Risk{level=LOW} or a list of them. A value ends only where the next key and
// its = begin.
func pairsOf(s string, inKey func(byte) bool) [][2]string {
	type keyAt struct{ from, eq int }
	var keys []keyAt
	for i := 0; i < len(s); i++ {
		if s[i] != '=' {
			continue
		}
		from := i
		for from > 0 && inKey(s[from-1]) {
			from--
		}
		for from < i && s[from] == ' ' {
			from++
		}
		// A key begins the text or follows a bracket or comma.
		before := strings.TrimRight(s[:from], " ")
		if from < i && (before == "" || strings.ContainsRune("{[,", rune(before[len(before)-1]))) {
			keys = append(keys, keyAt{from, i})
		}
	}
	out := make([][2]string, 0, len(keys))
	for i, k := range keys {
		end := len(s)
		if i+1 < len(keys) {
			end = keys[i+1].from
		}
		val := strings.TrimRight(s[k.eq+1:end], " ,{[}]")
		out = append(out, [2]string{strings.TrimSpace(s[k.from:k.eq]), strings.TrimSpace(val)})
	}
	return out
}

func (e *Event) rawAt(path string) string {
	if !e.rawRead {
		e.raw, e.rawRead = decodeJSON(string(e.view.JSON())), true
	}
	cur := e.raw
	for seg := range strings.SplitSeq(path, ".") {
		next, ok := step(cur, seg)
		if !ok {
			return ""
		}
		cur = next
	}
	return textOf(cur)
}

func step(v any, seg string) (any, bool) {
	switch v := v.(type) {
	case map[string]any:
		next, ok := v[seg]
		return next, ok
	case []any:
		i, err := strconv.Atoi(seg)
		if err != nil || i < 0 || i >= len(v) {
			return nil, false
		}
		return v[i], true
	}
	return nil, false
}

// decodeJSON reads JSON with its numbers as written; nil where it is none.
func decodeJSON(s string) any {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil
	}
	dec := json.NewDecoder(strings.NewReader(s))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil || dec.More() {
		return nil
	}
	return v
}

// decodeJSONOrText is the JSON in s, or s where it is none.
func decodeJSONOrText(s string) any {
	if s != "" && strings.ContainsRune("{[\"", rune(s[0])) {
		if v := decodeJSON(s); v != nil {
			return v
		}
	}
	return s
}

// textOf is a JSON value as text: texts as they are, null as nothing, the rest as compact JSON.
func textOf(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case json.Number:
		return v.String()
	}
	var b bytes.Buffer
	if json.NewEncoder(&b).Encode(v) != nil {
		return ""
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// jsonValues follows a path into JSON text; * takes every element, and JSON inside strings is opened on the way.
func jsonValues(s, path string) []string {
	cur := []any{decodeJSON(s)}
	if cur[0] == nil {
		return nil
	}
	for seg := range strings.SplitSeq(path, ".") {
		var next []any
		for _, v := range cur {
			if text, ok := v.(string); ok {
				v = decodeJSON(text)
			}
			if seg != "*" {
				if n, ok := step(v, seg); ok {
					next = append(next, n)
				}
				continue
			}
			switch v := v.(type) {
			case []any:
				next = append(next, v...)
			case map[string]any:
				for _, k := range sortedKeys(v) {
					next = append(next, v[k])
				}
			}
		}
		cur = next
	}
	out := make([]string, 0, len(cur))
	for _, v := range cur {
		out = append(out, textOf(v))
	}
	return out
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (e *Event) user(id string) ref.Val {
	var found any
	if en := e.view.Enrichment(); en != nil && id != "" {
		for i := range en.Users {
			if en.Users[i].ID == id {
				found = &en.Users[i]
			}
		}
	}
	return e.heap.object(e.heap.types.byName[typeUser], found)
}

func (e *Event) deviceOf(id string) ref.Val {
	var found any
	if en := e.view.Enrichment(); en != nil && id != "" {
		for i := range en.Devices {
			if en.Devices[i].ID == id {
				found = &en.Devices[i]
			}
		}
	}
	return e.heap.object(e.heap.types.byName[typeDevice], found)
}

// targetOf is the first target of a type, or an empty one.
func (e *Event) targetOf(kind string) ref.Val {
	var found any
	targets := e.view.Target()
	for i := range targets {
		if targets[i].Type == kind {
			found = &targets[i]
			break
		}
	}
	return e.heap.object(e.heap.types.byName[typeTarget], found)
}

// Time is the event time: what windows, clocks and exceptions go by.
func (e *Event) Time() time.Time { return e.view.Derived().Time }

// location is where the client is, as far as Okta says.
func (e *Event) location() (lat, lon float64, ok bool) {
	c := e.view.Client()
	if c == nil || c.GeographicalContext == nil || c.GeographicalContext.Geolocation == nil {
		return 0, 0, false
	}
	g := c.GeographicalContext.Geolocation
	if g.Lat == nil || g.Lon == nil {
		return 0, 0, false
	}
	return *g.Lat, *g.Lon, true
}
