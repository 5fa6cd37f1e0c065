package rule

import (
	"slices"
	"strings"
	"time"

	yamlast "github.com/goccy/go-yaml/ast"
)

// The kinds of detections with memory.
const (
	KindAggregate Kind = "aggregate"  // numbers over a window
	KindSequence  Kind = "sequence"   // steps in order
	KindFirstSeen Kind = "first_seen" // a key that is new
)

// Limits of the kinds with memory.
const (
	MaxGroups       = 100 // of one record
	MaxSteps        = 8
	maxStepCount    = 1000
	maxAggregates   = 20
	maxParts        = 6
	maxBuckets      = 2400
	maxWindow       = 30 * 24 * time.Hour
	maxLateness     = 24 * time.Hour
	maxMemory       = 90 * 24 * time.Hour
	defaultLateness = 10 * time.Minute
	defaultBucket   = time.Hour
	maxLearning     = 7 * 24 * time.Hour
	day             = 24 * time.Hour
)

// AggregateHow says how an aggregate is made.
type AggregateHow string

// The sorts of aggregates.
const (
	AggCount    AggregateHow = "count"
	AggDistinct AggregateHow = "distinct"
	AggCountBy  AggregateHow = "count_by"
	AggMin      AggregateHow = "min"
	AggMax      AggregateHow = "max"
	AggValue    AggregateHow = "value"
)

var aggregateHows = []string{"count", "distinct", "count_by", "min", "max", "value"}

// Aggregate is one number or table over the records of a window.
type Aggregate struct {
	Name  string
	How   AggregateHow
	Expr  Expr
	Where Expr // empty: every record
}

// Step is one step of a sequence.
type Step struct {
	ID         string
	Where      Expr
	Count      int
	Within     time.Duration
	Not        bool
	Detections bool // its input are detections; as the rule where the step does not say
}

// readState reads what the kinds with memory have in detection.
func (r *Rule) readState(d *document, n yamlast.Node, fs map[string]pair) {
	det := &r.Detection
	det.Lateness = defaultLateness
	dur := func(key string, into *time.Duration, least, most time.Duration) bool {
		p, ok := fs[key]
		if !ok {
			return false
		}
		*into = readDuration(d, p.value, key, least, most)
		return true
	}
	required := func(keys ...string) {
		for _, key := range keys {
			if _, ok := fs[key]; !ok {
				d.add(d.nodeOffset(n), checkMissing, "a rule of kind %s has no %s: add the key %s:", det.Kind, key, key)
			}
		}
	}
	if p, ok := fs["input"]; ok {
		det.Detections = readInput(d, p)
	}
	if p, ok := fs["group_by"]; ok {
		det.GroupBy = readNamed(d, p.value, "group_by")
		if len(det.GroupBy) > maxParts {
			d.add(p.keyOff, checkCost, "group_by has %d parts, at most %d are allowed", len(det.GroupBy), maxParts)
		}
	}
	dur("lateness", &det.Lateness, 0, maxLateness)
	switch det.Kind {
	case KindMatch: // has no keys of its own
	case KindAggregate:
		required("window", "having")
		hasWindow := dur("window", &det.Window, time.Millisecond, maxWindow)
		r.readAggregates(d, fs)
		if p, ok := fs["having"]; ok {
			det.Having, _ = d.expr(p.value, "having")
		}
		if dur("settle", &det.Settle, 0, maxWindow) && hasWindow && det.Settle >= det.Window {
			d.add(fs["settle"].keyOff, checkValue, "settle %s is not below window %s: write a shorter one", formatDuration(det.Settle), formatDuration(det.Window))
		}
		r.readBaseline(d, fs, dur)
	case KindSequence:
		required("window", "steps")
		dur("window", &det.Window, time.Millisecond, maxWindow)
		if p, ok := fs["steps"]; ok {
			r.readSteps(d, p)
		}
	case KindFirstSeen:
		required("memory")
		dur("memory", &det.Memory, time.Millisecond, maxMemory)
		det.Learning = min(maxLearning, det.Memory)
		dur("learning", &det.Learning, 0, maxMemory)
		if p, ok := fs["learn_from"]; ok {
			det.LearnFrom, _ = d.expr(p.value, "learn_from")
		}
		if p, ok := fs["seen_before"]; ok {
			items, _ := d.items(p.value, "seen_before")
			for _, it := range items {
				s, ok := d.text(it, "an entry of seen_before")
				if !ok {
					continue
				}
				switch {
				case !slices.ContainsFunc(det.GroupBy, func(g Named) bool { return g.Name == s }):
					d.add(d.nodeOffset(it), checkValue, "seen_before names %q, which is no part of group_by: %s", s, didYouMean(s, namesOf(det.GroupBy)))
				case !slices.Contains(det.SeenBefore, s):
					det.SeenBefore = append(det.SeenBefore, s)
				}
			}
			slices.Sort(det.SeenBefore)
			if len(det.SeenBefore) > 0 && len(det.SeenBefore) == len(det.GroupBy) {
				d.add(p.keyOff, checkValue, "seen_before names every part of group_by: then no key is ever new; leave one out")
			}
		}
	}
	if det.Window > 0 {
		r.Alert.DedupPeriod = min(max(det.Window, time.Hour), day)
	}
}

func namesOf(ns []Named) []string {
	out := make([]string, len(ns))
	for i, n := range ns {
		out[i] = n.Name
	}
	return out
}

// readInput tells whether a rule or step reads detections.
func readInput(d *document, p pair) bool {
	s, _ := d.oneOf(p.value, "input", []string{"events", "detections"})
	return s == "detections"
}

var aggregateKeys = append(slices.Clone(aggregateHows), "where")

func (r *Rule) readAggregates(d *document, fs map[string]pair) {
	p, ok := fs["aggregates"]
	if !ok {
		return
	}
	det := &r.Detection
	ps, _ := d.pairs(p.value, "aggregates")
	for _, a := range ps {
		if !checkedName(d, a, "aggregate") {
			continue
		}
		if a.key == "count" {
			d.add(a.keyOff, checkName, "the name count is taken: agg.count is the number of records of the window, always; give this one another name")
			continue
		}
		f, ok := d.fields(a.value, "aggregate "+a.key, aggregateKeys...)
		if !ok {
			continue
		}
		agg := Aggregate{Name: a.key}
		for _, how := range aggregateHows {
			q, there := f[how]
			if !there {
				continue
			}
			if agg.How != "" {
				d.add(q.keyOff, checkValue, "aggregate %s is both %s and %s: write one of them, and another aggregate for the other", a.key, agg.How, how)
				continue
			}
			agg.How = AggregateHow(how)
			agg.Expr, _ = d.expr(q.value, how)
		}
		if agg.How == "" {
			d.add(a.keyOff, checkMissing, "aggregate %s says nothing: write one of %s", a.key, strings.Join(aggregateHows, ", "))
			continue
		}
		if w, ok := f["where"]; ok {
			if agg.How == AggCount || agg.How == AggValue {
				d.add(w.keyOff, checkUnknownKey, "%s takes no where: write the condition into it", agg.How)
			} else {
				agg.Where, _ = d.expr(w.value, "where")
			}
		}
		det.Aggregates = append(det.Aggregates, agg)
	}
	slices.SortFunc(det.Aggregates, func(a, b Aggregate) int { return strings.Compare(a.Name, b.Name) })
	if len(det.Aggregates) > maxAggregates {
		d.add(p.keyOff, checkCost, "%d aggregates, at most %d are allowed", len(det.Aggregates), maxAggregates)
	}
}

func (r *Rule) readBaseline(d *document, fs map[string]pair, dur func(string, *time.Duration, time.Duration, time.Duration) bool) {
	det := &r.Detection
	if !dur("baseline", &det.Baseline, time.Millisecond, maxBuckets*day) {
		for _, key := range []string{"bucket", "learning"} {
			if p, ok := fs[key]; ok {
				d.add(p.keyOff, checkValue, "%s is for rules with a baseline: add the key baseline: or leave it out", key)
			}
		}
		return
	}
	at := fs["baseline"].keyOff
	det.Bucket = defaultBucket
	if dur("bucket", &det.Bucket, time.Second, day) {
		at = fs["bucket"].keyOff
	}
	det.Learning = min(maxLearning, det.Baseline)
	dur("learning", &det.Learning, 0, maxBuckets*day)
	b := max(det.Bucket, time.Millisecond)
	switch {
	case day%b != 0:
		d.add(at, checkValue, "bucket %s does not divide 24h: write one that does", formatDuration(b))
	case det.Window%b != 0 || det.Baseline%b != 0:
		d.add(at, checkValue, "window %s and baseline %s are not whole buckets of %s: write multiples of it", formatDuration(det.Window), formatDuration(det.Baseline), formatDuration(b))
	case (det.Window+det.Baseline)/b > maxBuckets:
		d.add(at, checkCost, "window and baseline have %d buckets, at most %d are allowed: write a longer bucket", (det.Window+det.Baseline)/b, maxBuckets)
	}
}

var stepKeys = []string{"id", "where", "count", "within", "not", "input"}

func (r *Rule) readSteps(d *document, p pair) {
	det := &r.Detection
	items, _ := d.items(p.value, "steps")
	if len(items) == 0 || len(items) > MaxSteps {
		d.add(p.keyOff, checkCost, "%d steps: write 1 to %d", len(items), MaxSteps)
	}
	for i, it := range items {
		fs, ok := d.fields(it, "a step", stepKeys...)
		if !ok {
			continue
		}
		s := Step{Count: 1, Within: det.Window, Detections: det.Detections}
		for _, key := range []string{"id", "where"} {
			if _, ok := fs[key]; !ok {
				d.add(d.nodeOffset(it), checkMissing, "the step has no %s: add the key %s:", key, key)
			}
		}
		if q, ok := fs["id"]; ok {
			if s.ID, ok = d.text(q.value, "id"); ok {
				switch {
				case !checkedName(d, pair{key: s.ID, keyOff: d.nodeOffset(q.value), value: q.value}, "step"):
				case slices.ContainsFunc(det.Steps, func(o Step) bool { return o.ID == s.ID }):
					d.add(d.nodeOffset(q.value), checkRepeatedKey, "a second step is called %s: give each its own id", s.ID)
				}
			}
		}
		if q, ok := fs["where"]; ok {
			s.Where, _ = d.expr(q.value, "where")
		}
		if q, ok := fs["not"]; ok {
			s.Not, _ = d.boolean(q.value, "not")
			if s.Not && i == 0 {
				d.add(q.keyOff, checkValue, "the first step is negated: begin with one that happens")
			}
		}
		if q, ok := fs["count"]; ok {
			n, _ := d.integer(q.value, "count", 1, maxStepCount)
			s.Count = int(max(n, 1))
			if s.Not {
				d.add(q.keyOff, checkValue, "a negated step has no count: leave it out")
			}
		}
		if q, ok := fs["within"]; ok {
			s.Within = readDuration(d, q.value, "within", time.Millisecond, maxWindow)
			if s.Within > det.Window {
				d.add(q.keyOff, checkValue, "within %s is longer than window %s: write a shorter one", formatDuration(s.Within), formatDuration(det.Window))
			}
		}
		if q, ok := fs["input"]; ok {
			s.Detections = readInput(d, q)
		}
		det.Steps = append(det.Steps, s)
	}
}
