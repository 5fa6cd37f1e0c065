package rule

import (
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// typeNames are the names the language gives to the record's types where they differ. Types named "" are hidden.
var typeNames = map[string]string{
	"SystemLog": typeEvent, "EnrichedUser": typeUser, "EnrichedDevice": typeDevice, "Derived": "", "Enrichment": "",
}

// fieldNames are the names the language gives to fields of profiles; "" hides one.
var fieldNames = map[string]string{
	"user_type": "userType", "country_code": "countryCode", "last_login": "lastLogin", "os_version": "osVersion",
	"serial_number": "serialNumber", "fetched_at": "",
}

// newTypeSystem builds the language's object types: those of the record, and the few of our own.
func newTypeSystem() (*typeSystem, error) {
	ts := &typeSystem{byName: map[string]*objectType{}}
	name := func(n string) string {
		if own, ok := typeNames[n]; ok {
			return own
		}
		return n
	}
	for _, rt := range record.SystemLogTypes() {
		tn := name(rt.Name)
		if tn == "" {
			continue
		}
		var fields []*field
		for _, rf := range rt.Fields {
			f := fieldOf(rf)
			f.elem = name(rf.Object)
			if tn == typeUser || tn == typeDevice {
				if own, ok := fieldNames[f.name]; ok {
					f.name = own
				}
			}
			if f.name == "" || f.kind == 0 || (f.kind == kindObject || f.kind == kindObjects) && f.elem == "" {
				continue
			}
			fields = append(fields, f)
		}
		if tn == typeEvent {
			fields = append(fields, ownEventFields()...)
		}
		ts.add(tn, fields)
	}
	ts.add(typeDetection, detectionFields())
	ts.add(typeBaseline, []*field{
		intField("n", func(b *Baseline) int64 { return b.N }),
		doubleField("sum", func(b *Baseline) float64 { return b.Sum }),
		doubleField("mean", func(b *Baseline) float64 { return b.Mean }),
		doubleField("stddev", func(b *Baseline) float64 { return b.Stddev }),
		doubleField("max", func(b *Baseline) float64 { return b.Max }),
	})
	ts.add(typeKeyBaseline, []*field{
		intField("n", func(b *KeyBaseline) int64 { return b.N }),
		{name: "buckets", kind: kindIntMap, imap: func(o any) map[string]int64 { return o.(*KeyBaseline).Buckets }},
		{name: "totals", kind: kindIntMap, imap: func(o any) map[string]int64 { return o.(*KeyBaseline).Totals }},
	})
	return ts, ts.link()
}

// fieldOf takes a field of the record as it is; kind 0 is one that the language does not show.
func fieldOf(rf record.Field) *field {
	f := &field{name: rf.Name}
	switch rf.Kind {
	case record.KindString:
		f.kind, f.str = kindString, rf.Str
	case record.KindInt:
		f.kind, f.num = kindInt, rf.Int
	case record.KindDouble:
		f.kind, f.dbl = kindDouble, rf.Double
	case record.KindBool:
		f.kind, f.bol = kindBool, rf.Bool
	case record.KindTime:
		f.kind, f.tim = kindTime, rf.Time
	case record.KindStrings:
		f.kind, f.strs = kindStrings, rf.Strings
	case record.KindMap:
		f.kind, f.smap = kindStringMap, rf.Map
	case record.KindObject:
		f.kind, f.obj = kindObject, rf.Obj
	case record.KindObjects:
		f.kind, f.length, f.at = kindObjects, rf.Len, rf.At
	case record.KindBytes: // the JSON, read by event.raw
	}
	return f
}

// ownEventFields are the fields of an event that are not Okta's.
func ownEventFields() []*field {
	derived := func(o any) *record.Derived { return o.(*record.SystemLogView).Derived() }
	return []*field{
		{name: "org", kind: kindString, str: func(o any) (string, bool) { s := derived(o).Org; return s, s != "" }},
		{name: "received", kind: kindTime, tim: func(o any) (time.Time, bool) { t := derived(o).Received; return t, !t.IsZero() }},
		{name: "backfill", kind: kindBool, bol: func(o any) (bool, bool) { return derived(o).Backfill, true }},
		{name: "detection", kind: kindObject, elem: typeDetection, ofEvent: func(e *Event) (any, bool) {
			if e.detection == nil {
				return nil, false
			}
			return e.detection, true
		}},
	}
}

// DetectionRef is event.detection: the detection through which a record reaches a rule over detections.
type DetectionRef struct {
	ID, RuleID, Title, Mode string
	Severity                int64
	Techniques, Tags        []string
	FirstTime               time.Time
}

func detectionFields() []*field {
	text := func(name string, get func(*DetectionRef) string) *field {
		return &field{name: name, kind: kindString, str: func(o any) (string, bool) { s := get(o.(*DetectionRef)); return s, s != "" }}
	}
	list := func(name string, get func(*DetectionRef) []string) *field {
		return &field{name: name, kind: kindStrings, strs: func(o any) []string { return get(o.(*DetectionRef)) }}
	}
	return []*field{
		text("id", func(d *DetectionRef) string { return d.ID }),
		text("ruleId", func(d *DetectionRef) string { return d.RuleID }),
		text("title", func(d *DetectionRef) string { return d.Title }),
		text("mode", func(d *DetectionRef) string { return d.Mode }),
		intField("severity", func(d *DetectionRef) int64 { return d.Severity }),
		list("techniques", func(d *DetectionRef) []string { return d.Techniques }),
		list("tags", func(d *DetectionRef) []string { return d.Tags }),
		{name: "firstTime", kind: kindTime, tim: func(o any) (time.Time, bool) { t := o.(*DetectionRef).FirstTime; return t, !t.IsZero() }},
	}
}

// Baseline sums up one number over the buckets of the past.
type Baseline struct {
	N                      int64
	Sum, Mean, Stddev, Max float64
}

// KeyBaseline sums up one count_by over the buckets of the past.
type KeyBaseline struct {
	N               int64
	Buckets, Totals map[string]int64
}

func intField[T any](name string, get func(*T) int64) *field {
	return &field{name: name, kind: kindInt, num: func(o any) (int64, bool) { return get(o.(*T)), true }}
}

func doubleField[T any](name string, get func(*T) float64) *field {
	return &field{name: name, kind: kindDouble, dbl: func(o any) (float64, bool) { return get(o.(*T)), true }}
}
