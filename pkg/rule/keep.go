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
	fields map[reflect.Type][]int // of each struct, those that go
	names  []string
}

// goTypes are the record's names of types that the language calls otherwise.
var goTypes = map[string]string{typeEvent: "SystemLog", typeUser: "EnrichedUser", typeDevice: "EnrichedDevice"}

func newKeepPlan(rd *reads) *keepPlan {
	keep := map[readField]bool{}
	p := &keepPlan{fields: map[reflect.Type][]int{}}
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
	return p
}

func (p *keepPlan) visit(t reflect.Type, keep map[readField]bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() || p.fields[t] != nil {
		return
	}
	p.fields[t] = []int{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("avro"), ",")
		if !keep[readField{t.Name(), name}] {
			p.fields[t] = append(p.fields[t], i)
			continue
		}
		p.visit(t.Field(i).Type, keep)
	}
}

func (p *keepPlan) text() []string { return p.names }

// prune clears what is not kept.
func (p *keepPlan) prune(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			p.prune(v.Elem())
		}
	case reflect.Slice:
		if k := v.Type().Elem().Kind(); k == reflect.Struct || k == reflect.Pointer {
			for i := range v.Len() {
				p.prune(v.Index(i))
			}
		}
	case reflect.Struct:
		go2, ok := p.fields[v.Type()]
		if !ok {
			return
		}
		next := 0
		for i := range v.NumField() {
			if next < len(go2) && go2[next] == i {
				next++
				v.Field(i).SetZero()
				continue
			}
			p.prune(v.Field(i))
		}
	}
}

// Kept is the event with only the fields that the rule reads after its filter and those that the sets of a detection
// are made of, as a payload of the System Log record.
func (c *Compiled) Kept(v *record.SystemLogView) ([]byte, error) {
	log, err := v.Full()
	if err != nil {
		return nil, err
	}
	c.plan.prune(reflect.ValueOf(log))
	return log.AppendAvro(nil)
}

// Keeps lists the fields kept, as Type.field; raw is the whole JSON.
func (c *Compiled) Keeps() []string { return slices.Clone(c.keepText) }
