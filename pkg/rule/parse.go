package rule

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	yamlast "github.com/goccy/go-yaml/ast"
)

var (
	idPattern        = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,79}$`)
	namePattern      = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	techniquePattern = regexp.MustCompile(`^(?:(TA[0-9]{4})/)?(T[0-9]{4}(?:\.[0-9]{3})?)$`)
)

// celKeywords are the words CEL takes for itself.
var celKeywords = []string{
	"as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop",
	"namespace", "null", "package", "return", "true", "var", "void", "while",
}

// ruleKeys is the header of a rule file.
var ruleKeys = []string{
	"id", "title", "description", "runbook", "mode", "replaced_by", "severity", "confidence", "revision", "mitre",
	"covers", "tags", "references", "false_positives", "authors", "license", "params", "vars", "detection",
	"exceptions", "alert", "tests",
}

// Parse reads one rule file. The rule is nil when there are problems. CEL is read by Compile.
func Parse(file string, src []byte) (*Rule, []Problem) {
	d, root := parseYAML(file, src)
	if root == nil {
		return nil, d.problems
	}
	r := &Rule{
		File: file, Pack: path.Base(path.Dir(file)), Mode: ModeAlert, Confidence: "medium", Revision: 1, doc: d,
	}
	if fs, ok := d.fields(root, "a rule", ruleKeys...); ok {
		r.read(d, root, fs)
	}
	if len(d.problems) > 0 {
		return nil, sortProblems(d.problems)
	}
	return r, nil
}

func (r *Rule) read(d *document, root yamlast.Node, fs map[string]pair) {
	for _, key := range []string{"id", "title", "severity", "detection"} {
		if _, ok := fs[key]; !ok {
			d.add(d.nodeOffset(root), checkMissing, "the rule has no %s: add the key %s:", key, key)
		}
	}
	text := func(key string, into *string) (pair, bool) {
		p, ok := fs[key]
		if !ok {
			return p, false
		}
		s, ok := d.text(p.value, key)
		*into = s
		return p, ok
	}
	word := func(key string, words []string, into *string) {
		if p, ok := fs[key]; ok {
			if s, ok := d.oneOf(p.value, key, words); ok {
				*into = s
			}
		}
	}
	list := func(key string, into *[]string) {
		if p, ok := fs[key]; ok {
			*into = d.texts(p.value, key)
		}
	}
	if p, ok := text("id", &r.ID); ok {
		at := d.nodeOffset(p.value)
		switch {
		case !idPattern.MatchString(r.ID):
			d.add(at, checkName, "id %q: write 1 to 80 of a-z 0-9 . _ -, beginning with a letter or digit", r.ID)
		case path.Base(d.file) != r.ID+".yaml":
			d.add(at, checkName, "the file is %s but the id is %s: name the file %s.yaml", path.Base(d.file), r.ID, r.ID)
		}
	}
	if p, ok := text("title", &r.Name); ok && strings.TrimSpace(r.Name) == "" {
		d.add(d.nodeOffset(p.value), checkMissing, "title is empty: write the rule's name")
	}
	text("description", &r.Description)
	text("runbook", &r.Runbook)
	text("license", &r.License)
	var mode, severity string
	word("mode", modes, &mode)
	if mode != "" {
		r.Mode = Mode(mode)
	}
	if p, ok := text("replaced_by", &r.ReplacedBy); ok && !idPattern.MatchString(r.ReplacedBy) {
		d.add(d.nodeOffset(p.value), checkName, "replaced_by %q is no rule id", r.ReplacedBy)
	}
	word("severity", severities, &severity)
	r.Severity, _ = ParseSeverity(severity)
	word("confidence", confidences, &r.Confidence)
	if p, ok := fs["revision"]; ok {
		if n, ok := d.integer(p.value, "revision", 1, 1_000_000); ok {
			r.Revision = int(n)
		}
	}
	if p, ok := fs["mitre"]; ok {
		r.readMitre(d, p.value)
	}
	list("covers", &r.Covers)
	list("tags", &r.Tags)
	list("references", &r.References)
	list("false_positives", &r.FalsePositives)
	list("authors", &r.Authors)
	if p, ok := fs["params"]; ok {
		r.Params = readParams(d, p.value, "params")
	}
	if p, ok := fs["vars"]; ok {
		r.Vars = readNamed(d, p.value, "vars")
	}
	r.Alert.DedupPeriod = defaultDedupPeriod
	if p, ok := fs["detection"]; ok {
		r.readDetection(d, p.value)
	}
	if p, ok := fs["exceptions"]; ok {
		r.Exceptions = readExceptions(d, p.value, "")
	}
	if p, ok := fs["title"]; ok {
		r.Title = Template{text: r.Name, parts: []templatePart{{text: r.Name}}, at: place{d, d.nodeOffset(p.value)}}
	}
	if p, ok := fs["alert"]; ok {
		r.readAlert(d, p.value)
	}
	if p, ok := fs["tests"]; ok {
		r.Tests = readTests(d, p.value)
	}
}

func (r *Rule) readMitre(d *document, n yamlast.Node) {
	items, _ := d.items(n, "mitre")
	for _, it := range items {
		s, ok := d.text(it, "an entry of mitre")
		if !ok {
			continue
		}
		m := techniquePattern.FindStringSubmatch(s)
		if m == nil {
			d.add(d.nodeOffset(it), checkValue, "mitre %q: write a technique as T1110.001, or with its tactic as TA0006/T1110.001", s)
			continue
		}
		r.Mitre = append(r.Mitre, Technique{m[1], m[2]})
	}
}

// checkedName refuses what cannot follow the dot in CEL.
func checkedName(d *document, p pair, what string) bool {
	if !namePattern.MatchString(p.key) || slices.Contains(celKeywords, p.key) {
		d.add(p.keyOff, checkName, "%s name %q: write a-z, 0-9 and _, beginning with a letter, and no CEL keyword", what, p.key)
		return false
	}
	return true
}

// atMost refuses more of something than a rule needs: each costs time to compile.
func atMost[T any](d *document, n yamlast.Node, what string, list []T, most int) []T {
	if len(list) > most {
		d.add(d.nodeOffset(n), checkCost, "%s has %d entries, at most %d are allowed", what, len(list), most)
		return nil
	}
	return list
}

func readNamed(d *document, n yamlast.Node, what string) []Named {
	ps, _ := d.pairs(n, what)
	ps = atMost(d, n, what, ps, maxNamed)
	out := make([]Named, 0, len(ps))
	for _, p := range ps {
		if !checkedName(d, p, what) {
			continue
		}
		if e, ok := d.expr(p.value, what+"."+p.key); ok {
			out = append(out, Named{p.key, e})
		}
	}
	slices.SortFunc(out, func(a, b Named) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func readParams(d *document, n yamlast.Node, what string) []Param {
	ps, _ := d.pairs(n, what)
	ps = atMost(d, n, what, ps, maxNamed)
	out := make([]Param, 0, len(ps))
	for _, p := range ps {
		if !checkedName(d, p, what) {
			continue
		}
		before := len(d.problems)
		v, err := paramValue(d.plain(p.value))
		switch {
		case len(d.problems) > before:
		case err != nil:
			d.add(d.nodeOffset(p.value), checkType, "%s.%s: %v", what, p.key, err)
		default:
			out = append(out, Param{p.key, v})
		}
	}
	slices.SortFunc(out, func(a, b Param) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// paramValue makes one of the types a param may have from a plain value.
func paramValue(v any) (any, error) {
	errType := fmt.Errorf("write a text, number, true or false, a list of one of these, or a map of text to text or whole number")
	switch v := v.(type) {
	case string, int64, float64, bool:
		return v, nil
	case []any:
		if len(v) == 0 {
			return []string{}, nil
		}
		switch v[0].(type) {
		case string:
			return listOf[string](v, errType)
		case bool:
			return listOf[bool](v, errType)
		case int64, float64:
			if ints, err := listOf[int64](v, errType); err == nil {
				return ints, nil
			}
			floats := make([]any, len(v))
			for i, e := range v {
				floats[i] = e
				if n, ok := e.(int64); ok {
					floats[i] = float64(n)
				}
			}
			return listOf[float64](floats, errType)
		}
	case map[string]any:
		texts, ints := map[string]string{}, map[string]int64{}
		for k, e := range v {
			switch e := e.(type) {
			case string:
				texts[k] = e
			case int64:
				ints[k] = e
			default:
				return nil, errType
			}
		}
		switch {
		case len(ints) == 0:
			return texts, nil
		case len(texts) == 0:
			return ints, nil
		}
	}
	return nil, errType
}

func listOf[T any](v []any, errType error) (any, error) {
	out := make([]T, 0, len(v))
	for _, e := range v {
		t, ok := e.(T)
		if !ok {
			return nil, errType
		}
		out = append(out, t)
	}
	return out, nil
}

// paramAs makes v the type of the default value like, where that loses nothing.
func paramAs(like, v any) (any, bool) {
	switch like.(type) {
	case float64:
		if n, ok := v.(int64); ok {
			return float64(n), true
		}
	case []float64:
		if ns, ok := v.([]int64); ok {
			out := make([]float64, len(ns))
			for i, n := range ns {
				out[i] = float64(n)
			}
			return out, true
		}
	}
	if s, ok := v.([]string); ok && len(s) == 0 {
		switch like.(type) {
		case []int64:
			return []int64{}, true
		case []float64:
			return []float64{}, true
		case []bool:
			return []bool{}, true
		}
	}
	if m, ok := v.(map[string]string); ok && len(m) == 0 {
		if _, ok := like.(map[string]int64); ok {
			return map[string]int64{}, true
		}
	}
	return v, fmt.Sprintf("%T", like) == fmt.Sprintf("%T", v)
}

func (r *Rule) readDetection(d *document, n yamlast.Node) {
	var spec *kindSpec
	ps, ok := d.pairs(n, "detection")
	if !ok {
		return
	}
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k.name)
	}
	i := slices.IndexFunc(ps, func(p pair) bool { return p.key == "kind" })
	if i < 0 {
		d.add(d.nodeOffset(n), checkMissing, "detection has no kind: write kind: %s", strings.Join(names, ", or kind: "))
		return
	}
	s, ok := d.text(ps[i].value, "detection.kind")
	if !ok {
		return
	}
	for j := range kinds {
		if string(kinds[j].name) == s {
			spec = &kinds[j]
		}
	}
	if spec == nil {
		d.add(d.nodeOffset(ps[i].value), checkKind, "unknown kind %q: write one of %s", s, strings.Join(names, ", "))
		return
	}
	r.Detection.Kind = spec.name
	fs, ok := d.fields(n, "detection of kind "+s, append([]string{"kind"}, spec.keys...)...)
	if !ok {
		return
	}
	if p, ok := fs["where"]; ok {
		r.Detection.Where, _ = d.expr(p.value, "where")
	}
	if r.Detection.Kind != KindMatch {
		r.readState(d, n, fs)
	}
}

var exceptionKeys = []string{"name", "when", "reason", "owner", "ticket", "expires"}

func readExceptions(d *document, n yamlast.Node, overlay string) []Exception {
	items, _ := d.items(n, "exceptions")
	items = atMost(d, n, "exceptions", items, maxNamed)
	out := make([]Exception, 0, len(items))
	for _, it := range items {
		fs, ok := d.fields(it, "an exception", exceptionKeys...)
		if !ok {
			continue
		}
		e := Exception{overlay: overlay}
		for key, into := range map[string]*string{"name": &e.Name, "reason": &e.Reason, "owner": &e.Owner, "ticket": &e.Ticket} {
			if p, ok := fs[key]; ok {
				*into, _ = d.text(p.value, key)
			}
		}
		for _, key := range []string{"name", "when", "reason"} {
			if _, ok := fs[key]; !ok {
				d.add(d.nodeOffset(it), checkMissing, "the exception has no %s: add the key %s:", key, key)
			}
		}
		if p, ok := fs["when"]; ok {
			e.When, _ = d.expr(p.value, "when")
		}
		if p, ok := fs["expires"]; ok {
			if s, ok := d.text(p.value, "expires"); ok {
				t, err := time.Parse(time.DateOnly, s)
				if err != nil {
					d.add(d.nodeOffset(p.value), checkValue, "expires %q is no date: write it as \"2027-06-30\"", s)
				}
				e.Expires = t.AddDate(0, 0, 1)
			}
		}
		if e.Name != "" && slices.ContainsFunc(out, func(o Exception) bool { return o.Name == e.Name }) {
			d.add(d.nodeOffset(it), checkRepeatedKey, "a second exception is named %q: give each its own name", e.Name)
		}
		out = append(out, e)
	}
	return out
}

func (r *Rule) readAlert(d *document, n yamlast.Node) {
	fs, ok := d.fields(n, "alert", "title", "severity_when", "context", "labels", "dedup")
	if !ok {
		return
	}
	if p, ok := fs["title"]; ok {
		if s, ok := d.text(p.value, "alert.title"); ok {
			e, _ := d.expr(p.value, "alert.title")
			r.Title = parseTemplate(s, e.at)
			r.Title.parts = atMost(d, p.value, "alert.title", r.Title.parts, maxNamed)
		}
	}
	if p, ok := fs["severity_when"]; ok {
		items, _ := d.items(p.value, "severity_when")
		items = atMost(d, p.value, "severity_when", items, maxNamed)
		for _, it := range items {
			f, ok := d.fields(it, "an entry of severity_when", "when", "severity")
			if !ok {
				continue
			}
			when, hasWhen := f["when"]
			sev, hasSev := f["severity"]
			if !hasWhen || !hasSev {
				d.add(d.nodeOffset(it), checkMissing, "an entry of severity_when needs both: write when: and severity:")
				continue
			}
			e, ok1 := d.expr(when.value, "when")
			s, ok2 := d.oneOf(sev.value, "severity", severities)
			if ok1 && ok2 {
				v, _ := ParseSeverity(s)
				r.Alert.SeverityWhen = append(r.Alert.SeverityWhen, SeverityWhen{e, v})
			}
		}
	}
	if p, ok := fs["context"]; ok {
		r.Alert.Context = readNamed(d, p.value, "context")
	}
	if p, ok := fs["labels"]; ok {
		r.Alert.Labels = readLabels(d, p.value)
	}
	if p, ok := fs["dedup"]; ok {
		f, ok := d.fields(p.value, "dedup", "key", "period")
		if !ok {
			return
		}
		if k, ok := f["key"]; ok {
			items, _ := d.items(k.value, "dedup.key")
			items = atMost(d, k.value, "dedup.key", items, maxKeyParts)
			for _, it := range items {
				if e, ok := d.expr(it, "an entry of dedup.key"); ok {
					r.Alert.DedupKey = append(r.Alert.DedupKey, e)
				}
			}
		}
		if k, ok := f["period"]; ok {
			r.Alert.DedupPeriod = readDuration(d, k.value, "dedup.period", minDedupPeriod, maxDedupPeriod)
		}
	}
}

func readLabels(d *document, n yamlast.Node) map[string]string {
	ps, _ := d.pairs(n, "labels")
	out := make(map[string]string, len(ps))
	for _, p := range ps {
		if s, ok := d.text(p.value, "label "+p.key); ok {
			out[p.key] = s
		}
	}
	return out
}

func readDuration(d *document, n yamlast.Node, what string, least, most time.Duration) time.Duration {
	s, ok := d.text(n, what)
	if !ok {
		return least
	}
	v, err := ParseDuration(s, least < 0)
	switch {
	case err != nil:
		d.add(d.nodeOffset(n), checkValue, "%s %v", what, err)
	case v < least || v > most:
		d.add(d.nodeOffset(n), checkValue, "%s %s is out of range: write %s to %s", what, s, formatDuration(least), formatDuration(most))
	}
	return v
}

// formatDuration writes a duration as rule files do.
func formatDuration(v time.Duration) string {
	if v == 0 {
		return "0s"
	}
	var b strings.Builder
	if v < 0 {
		b.WriteByte('-')
		v = -v
	}
	for _, u := range []string{"d", "h", "m", "s", "ms"} {
		if n := v / durationUnits[u]; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u)
			v -= n * durationUnits[u]
		}
	}
	return b.String()
}

var (
	testKeys      = []string{"name", "start", "until", "learned", "params", "lists", "events", "expect"}
	testEventKeys = []string{"fixture", "event", "file", "set", "each", "repeat", "every", "at", "detection"}
	expectKeys    = []string{"detections", "alerts", "events", "severity", "title", "dedup_key", "at", "context"}
)

const (
	maxTestRepeat = 10_000
	maxTestOffset = 400 * 24 * time.Hour
)

// TestStart is when a test begins unless it says otherwise: a Monday.
var testStart = time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)

func readTests(d *document, n yamlast.Node) []Test {
	items, _ := d.items(n, "tests")
	out := make([]Test, 0, len(items))
	for _, it := range items {
		fs, ok := d.fields(it, "a test", testKeys...)
		if !ok {
			continue
		}
		t := Test{Start: testStart, Learned: true, Pos: d.position(d.nodeOffset(it))}
		for _, key := range []string{"name", "events", "expect"} {
			if _, ok := fs[key]; !ok {
				d.add(d.nodeOffset(it), checkMissing, "the test has no %s: add the key %s:", key, key)
			}
		}
		if p, ok := fs["name"]; ok {
			t.Name, _ = d.text(p.value, "name")
		}
		if p, ok := fs["start"]; ok {
			if s, ok := d.text(p.value, "start"); ok {
				v, err := time.Parse(time.RFC3339, s)
				if err != nil {
					d.add(d.nodeOffset(p.value), checkValue, "start %q is no time: write it as 2026-01-05T10:00:00Z", s)
				}
				t.Start = v.UTC()
			}
		}
		if p, ok := fs["until"]; ok {
			v := readDuration(d, p.value, "until", 0, maxTestOffset)
			t.Until = &v
		}
		if p, ok := fs["learned"]; ok {
			t.Learned, _ = d.boolean(p.value, "learned")
		}
		if p, ok := fs["params"]; ok {
			t.Params = readParams(d, p.value, "params")
		}
		if p, ok := fs["lists"]; ok {
			t.Lists = map[string][]string{}
			ps, _ := d.pairs(p.value, "lists")
			for _, l := range ps {
				t.Lists[l.key] = d.texts(l.value, "lists."+l.key)
			}
		}
		if p, ok := fs["events"]; ok {
			evs, _ := d.items(p.value, "events")
			for _, ev := range evs {
				t.Events = append(t.Events, readTestEvent(d, ev))
			}
		}
		if p, ok := fs["expect"]; ok {
			t.Expect = readExpect(d, p.value)
		}
		out = append(out, t)
	}
	return out
}

func readTestEvent(d *document, n yamlast.Node) TestEvent {
	e := TestEvent{Repeat: 1, Every: time.Second, Pos: d.position(d.nodeOffset(n))}
	fs, ok := d.fields(n, "a test's event", testEventKeys...)
	if !ok {
		return e
	}
	from := 0
	for _, key := range []string{"fixture", "event", "file"} {
		if _, ok := fs[key]; ok {
			from++
		}
	}
	if from != 1 {
		d.add(d.nodeOffset(n), checkMissing, "an event of a test comes from one of fixture, event, file: write one of them")
	}
	if p, ok := fs["fixture"]; ok {
		e.Fixture, _ = d.text(p.value, "fixture")
	}
	if p, ok := fs["file"]; ok {
		e.File, _ = d.text(p.value, "file")
	}
	if p, ok := fs["event"]; ok {
		m, ok := d.plain(p.value).(map[string]any)
		if !ok {
			d.add(d.nodeOffset(p.value), checkType, "event is %s: write a LogEvent as a map", kindOf(p.value))
		}
		e.Event = m
	}
	assigns := func(key string) []Assign {
		p, ok := fs[key]
		if !ok {
			return nil
		}
		ps, _ := d.pairs(p.value, key)
		var out []Assign
		for _, a := range ps {
			if key == "each" {
				if s, ok := d.text(a.value, "each."+a.key); ok {
					out = append(out, Assign{a.key, s})
				}
				continue
			}
			out = append(out, Assign{a.key, d.plain(a.value)})
		}
		return out
	}
	e.Set, e.Each = assigns("set"), assigns("each")
	if p, ok := fs["repeat"]; ok {
		n, _ := d.integer(p.value, "repeat", 1, maxTestRepeat)
		e.Repeat = int(n)
	}
	if p, ok := fs["every"]; ok {
		e.Every = readDuration(d, p.value, "every", 0, maxTestOffset)
	}
	if p, ok := fs["at"]; ok {
		v := readDuration(d, p.value, "at", -maxTestOffset, maxTestOffset)
		e.At = &v
	}
	if p, ok := fs["detection"]; ok {
		e.Detection = readTestDetection(d, p.value)
	}
	return e
}

// readTestDetection reads event.detection of a test's event. What an author leaves out is as in a plausible detection.
func readTestDetection(d *document, n yamlast.Node) *DetectionRef {
	out := &DetectionRef{Mode: string(ModeAlert), Severity: int64(Medium)}
	fs, ok := d.fields(n, "detection of a test's event", "id", "ruleId", "title", "mode", "severity", "techniques", "tags", "firstTime")
	if !ok {
		return out
	}
	for key, into := range map[string]*string{"id": &out.ID, "ruleId": &out.RuleID, "title": &out.Title} {
		if p, ok := fs[key]; ok {
			*into, _ = d.text(p.value, key)
		}
	}
	if p, ok := fs["mode"]; ok {
		out.Mode, _ = d.oneOf(p.value, "mode", []string{string(ModeAlert), string(ModeSignal)})
	}
	if p, ok := fs["severity"]; ok {
		out.Severity, _ = d.integer(p.value, "severity", int64(Info), int64(Critical))
	}
	if p, ok := fs["techniques"]; ok {
		out.Techniques = d.texts(p.value, "techniques")
	}
	if p, ok := fs["tags"]; ok {
		out.Tags = d.texts(p.value, "tags")
	}
	if p, ok := fs["firstTime"]; ok {
		if s, ok := d.text(p.value, "firstTime"); ok {
			t, err := time.Parse(time.RFC3339, s)
			if err != nil {
				d.add(d.nodeOffset(p.value), checkValue, "firstTime %q is no time: write it as 2026-01-05T10:00:00Z", s)
			}
			out.FirstTime = t.UTC()
		}
	}
	if out.ID == "" {
		out.ID = "of " + out.RuleID
	}
	return out
}

func readExpect(d *document, n yamlast.Node) Expect {
	x := Expect{Pos: d.position(d.nodeOffset(n))}
	if s, ok := n.(*yamlast.StringNode); ok {
		if x.None = s.Value == "none"; !x.None {
			d.add(d.nodeOffset(n), checkValue, "expect %q: write none, or a map such as {detections: 1}", s.Value)
		}
		return x
	}
	ps, ok := d.pairs(n, "expect")
	if !ok {
		return x
	}
	count := func(p pair) *int {
		n, _ := d.integer(p.value, p.key, 0, 1_000_000)
		v := int(n)
		return &v
	}
	for _, p := range ps {
		switch {
		case p.key == "detections":
			x.Detections = count(p)
		case p.key == "alerts":
			x.Alerts = count(p)
		case p.key == "events":
			x.Events = count(p)
		case p.key == "severity":
			x.Severity, _ = d.oneOf(p.value, p.key, severities)
		case p.key == "title":
			if s, ok := d.text(p.value, p.key); ok {
				x.Title = &s
			}
		case p.key == "dedup_key":
			if e, ok := d.expr(p.value, p.key); ok { // a number may be a key
				x.DedupKey = &e.Text
			}
		case p.key == "at":
			v := readDuration(d, p.value, p.key, -maxTestOffset, maxTestOffset)
			x.At = &v
		case strings.HasPrefix(p.key, "context."):
			if x.Context == nil {
				x.Context = map[string]any{}
			}
			x.Context[strings.TrimPrefix(p.key, "context.")] = d.plain(p.value)
		case p.key == "context":
			m, ok := d.plain(p.value).(map[string]any)
			if !ok {
				d.add(d.nodeOffset(p.value), checkType, "context is %s: write a map, or context.<name>:", kindOf(p.value))
			}
			x.Context = m
		default:
			d.add(p.keyOff, checkUnknownKey, "expect has no key %q: %s", p.key, didYouMean(p.key, expectKeys))
		}
	}
	if len(ps) == 0 {
		d.add(d.nodeOffset(n), checkMissing, "expect says nothing: write none, or a map such as {detections: 1}")
	}
	return x
}

// Template is a text with ${CEL} in it.
type Template struct {
	text  string
	parts []templatePart
	at    place
}

type templatePart struct {
	text string
	expr bool
	off  int // where the CEL begins in the template's text
}

// parseTemplate cuts a text into words and CEL. The CEL ends at the matching brace outside quotes; $${ writes ${.
func parseTemplate(s string, at place) Template {
	t := Template{text: s, at: at}
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			t.parts = append(t.parts, templatePart{text: lit.String()})
			lit.Reset()
		}
	}
	for i := 0; i < len(s); {
		switch {
		case strings.HasPrefix(s[i:], "$${"):
			lit.WriteString("${")
			i += 3
		case strings.HasPrefix(s[i:], "${"):
			end := closingBrace(s, i+2)
			if end < 0 {
				line, col := at.locate(s, i)
				at.doc.problems = append(at.doc.problems, Problem{at.doc.file, line, col, checkCEL, "${ is not closed: write } behind the CEL, or $${ for the two characters"})
				return t
			}
			flush()
			t.parts = append(t.parts, templatePart{text: s[i+2 : end], expr: true, off: i + 2})
			i = end + 1
		default:
			_, n := utf8.DecodeRuneInString(s[i:])
			lit.WriteString(s[i : i+n])
			i += n
		}
	}
	flush()
	return t
}

// closingBrace finds the brace that ends a CEL begun at i.
func closingBrace(s string, i int) int {
	depth := 0
	for i < len(s) {
		switch c := s[i]; c {
		case '{':
			depth++
		case '}':
			if depth == 0 {
				return i
			}
			depth--
		case '"', '\'':
			raw := i > 0 && (s[i-1] == 'r' || s[i-1] == 'R')
			quote := s[i : i+1]
			if strings.HasPrefix(s[i:], strings.Repeat(quote, 3)) {
				quote = s[i : i+3]
			}
			i += len(quote)
			for i < len(s) && !strings.HasPrefix(s[i:], quote) {
				if s[i] == '\\' && !raw {
					i++
				}
				i++
			}
			i += len(quote)
			continue
		}
		i++
	}
	return -1
}

// Document reads a YAML file of the language as plain values: map[string]any, []any, string, int64, float64, bool, nil.
func Document(file string, src []byte) (any, []Problem) {
	d, root := parseYAML(file, src)
	if root == nil {
		return nil, d.problems
	}
	return d.plain(root), d.problems
}
