package rule

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// setFields are what the sets of a detection are made of.
var setFields = []readField{
	{typeEvent, "actor"},
	{"Actor", "id"},
	{"Actor", "type"},
	{"Actor", "alternateId"},
	{typeEvent, "target"},
	{typeTarget, "id"},
	{typeTarget, "type"},
	{typeTarget, "alternateId"},
	{typeTarget, "displayName"},
	{typeEvent, "client"},
	{"Client", "ipAddress"},
	{typeEvent, "authenticationContext"},
	{"AuthenticationContext", "externalSessionId"},
	{typeEvent, "device"},
	{"Device", "id"},
}

// keepPlan says which fields of a record are kept of an event that a rule holds.
type keepPlan struct {
	fields   map[reflect.Type][]keptField // of each struct
	sections []keptSection                // of the record itself
	names    []string
}

// goTypes are the record's names of types that the language calls otherwise.
var goTypes = map[string]string{typeEvent: "SystemLog", typeUser: "EnrichedUser", typeDevice: "EnrichedDevice"}

func newKeepPlan(rd *reads) *keepPlan {
	keep := map[readField]bool{}
	p := &keepPlan{fields: map[reflect.Type][]keptField{}}
	for rf := range rd.fields {
		if rf.typ == typeBaseline || rf.typ == typeKeyBaseline || rf.typ == typeDetection {
			continue
		}
		p.names = append(p.names, rf.typ+"."+rf.field)
		if rf.typ == typeUser || rf.typ == typeDevice {
			keep[readField{"SystemLog", "enrichment"}] = true
			keep[readField{"Enrichment", "users"}] = true
			keep[readField{"Enrichment", "devices"}] = true
			keep[readField{goTypes[rf.typ], "id"}] = true
			for theirs, ours := range fieldNames {
				if ours == rf.field {
					keep[readField{goTypes[rf.typ], theirs}] = true
				}
			}
		}
		if n := goTypes[rf.typ]; n != "" {
			rf.typ = n
		}
		keep[rf] = true
	}
	for _, f := range []string{"uuid", "published", "eventType", "derived"} {
		keep[readField{"SystemLog", f}] = true
	}
	for _, f := range []string{"org", "lane", "copy", "partial", "backfill", "uuid_reused", "content_hash", "time", "received", "source"} {
		keep[readField{"Derived", f}] = true
	}
	if len(rd.raw) > 0 {
		p.names = append(p.names, "raw")
		keep[readField{"SystemLog", "json"}] = true
	}
	slices.Sort(p.names)
	p.visit(reflect.TypeFor[record.SystemLog](), keep)
	p.sections = p.sectionsOf()
	return p
}

// keptField is a field of a struct that goes along; of a whole one everything does.
type keptField struct {
	at    int
	whole bool
}

func (p *keepPlan) visit(t reflect.Type, keep map[readField]bool) {
	if t = structOf(t); t == nil || p.fields[t] != nil {
		return
	}
	p.fields[t] = []keptField{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("avro"), ",")
		if !keep[readField{t.Name(), name}] {
			continue
		}
		p.fields[t] = append(p.fields[t], keptField{i, structOf(t.Field(i).Type) == nil})
		p.visit(t.Field(i).Type, keep)
	}
}

// structOf is the struct that a field is, points to or lists; nil for anything else.
func structOf(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() {
		return nil
	}
	return t
}

func (p *keepPlan) text() []string { return p.names }

// put copies into an empty struct what is kept of another.
func (p *keepPlan) put(into, from reflect.Value) {
	for _, f := range p.fields[from.Type()] {
		src, dst := from.Field(f.at), into.Field(f.at)
		switch {
		case f.whole:
			dst.Set(src)
		case src.Kind() == reflect.Struct:
			p.put(dst, src)
		case src.Kind() == reflect.Pointer:
			if !src.IsNil() {
				dst.Set(reflect.New(src.Type().Elem()))
				p.put(dst.Elem(), src.Elem())
			}
		case src.Kind() == reflect.Slice:
			if src.IsNil() {
				continue
			}
			dst.Set(reflect.MakeSlice(src.Type(), src.Len(), src.Len()))
			for i := range src.Len() {
				if src.Type().Elem().Kind() == reflect.Struct {
					p.put(dst.Index(i), src.Index(i))
				} else if e := src.Index(i); !e.IsNil() {
					dst.Index(i).Set(reflect.New(e.Type().Elem()))
					p.put(dst.Index(i).Elem(), e.Elem())
				}
			}
		}
	}
}

// Kept is the event with only the fields that the rule reads after its filter and those that the sets of a detection
// are made of, as a payload of the System Log record. Sections of which nothing is kept are not decoded.
func (c *Compiled) Kept(v *record.SystemLogView) ([]byte, error) {
	log := &record.SystemLog{}
	into := reflect.ValueOf(log).Elem()
	for _, top := range c.plan.sections {
		top.put(c.plan, into.Field(top.at), v)
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	return log.AppendAvro(nil)
}

// keptSection is a top-level field that goes along, and how it is read.
type keptSection struct {
	at  int
	put func(p *keepPlan, into reflect.Value, v *record.SystemLogView)
}

// sectionsOf reads top-level fields by the view, which has each decoded once for all rules.
func (p *keepPlan) sectionsOf() []keptSection {
	getters := map[string]record.Field{}
	for _, t := range record.SystemLogTypes() {
		if t.Name == "SystemLog" {
			for _, f := range t.Fields {
				getters[f.Name] = f
			}
		}
	}
	t := reflect.TypeFor[record.SystemLog]()
	var out []keptSection
	for _, f := range p.fields[t] {
		name, _, _ := strings.Cut(t.Field(f.at).Tag.Get("avro"), ",")
		if put := sectionPut(getters[name]); put != nil {
			out = append(out, keptSection{f.at, put})
		}
	}
	return out
}

func sectionPut(f record.Field) func(p *keepPlan, into reflect.Value, v *record.SystemLogView) {
	switch f.Kind {
	case record.KindString:
		return func(_ *keepPlan, into reflect.Value, v *record.SystemLogView) {
			s, _ := f.Str(v)
			into.SetString(s)
		}
	case record.KindTime:
		return func(_ *keepPlan, into reflect.Value, v *record.SystemLogView) {
			if t, ok := f.Time(v); ok {
				into.Set(reflect.ValueOf(&t))
			}
		}
	case record.KindBytes:
		return func(_ *keepPlan, into reflect.Value, v *record.SystemLogView) { into.SetBytes(v.JSON()) }
	case record.KindObject:
		return func(p *keepPlan, into reflect.Value, v *record.SystemLogView) {
			o, ok := f.Obj(v)
			if !ok {
				return
			}
			from := reflect.ValueOf(o).Elem()
			if into.Kind() == reflect.Pointer {
				into.Set(reflect.New(from.Type()))
				into = into.Elem()
			}
			p.put(into, from)
		}
	case record.KindObjects:
		return func(p *keepPlan, into reflect.Value, v *record.SystemLogView) {
			n := f.Len(v)
			if n == 0 {
				return
			}
			into.Set(reflect.MakeSlice(into.Type(), n, n))
			for i := range n {
				p.put(into.Index(i), reflect.ValueOf(f.At(v, i)).Elem())
			}
		}
	case record.KindInt, record.KindDouble, record.KindBool, record.KindStrings, record.KindMap: // none at the top
	}
	return nil
}

// Keeps lists the fields kept, as Type.field; raw is the whole JSON.
func (c *Compiled) Keeps() []string { return slices.Clone(c.keepText) }
