package rule

import (
	"reflect"
	"strings"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// TestKept holds what goes along of an event against the whole of it with everything else cleared, for rules that keep little and for
// one that keeps every field there is.
func TestKept(t *testing.T) {
	var view record.SystemLogView
	if err := view.Load(exampleLog()); err != nil {
		t.Fatal(err)
	}
	every := &keepPlan{fields: map[reflect.Type][]keptField{}}
	all := map[readField]bool{}
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		if t = structOf(t); t == nil {
			return
		}
		for field := range t.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("avro"), ",")
			if f := (readField{t.Name(), name}); !all[f] {
				all[f] = true
				walk(field.Type)
			}
		}
	}
	walk(reflect.TypeFor[record.SystemLog]())
	every.visit(reflect.TypeFor[record.SystemLog](), all)
	every.sections = every.sectionsOf()
	if n := reflect.TypeFor[record.SystemLog]().NumField(); len(every.sections) != n {
		t.Errorf("%d top-level fields can be kept, there are %d", len(every.sections), n)
	}
	little := one(t, "detection: {kind: aggregate, window: 5m, group_by: {user: event.actor.id}, having: 'agg.count > 1 && event.client.geographicalContext.country != \"\"'}\nalert: {context: {d: event.debugContext.debugData, t: 'event.target.map(t, t.detailEntry)'}}\n")
	for name, plan := range map[string]*keepPlan{"every field": every, "little": little.plan} {
		t.Run(name, func(t *testing.T) {
			got, err := (&Compiled{stateful: stateful{plan: plan}}).Kept(&view)
			if err != nil {
				t.Fatal(err)
			}
			whole, err := view.Full()
			if err != nil {
				t.Fatal(err)
			}
			clearBut(plan, reflect.ValueOf(whole))
			want, err := whole.AppendAvro(nil)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				var g record.SystemLog
				if err := g.DecodeAvro(got); err != nil {
					t.Fatal(err)
				}
				t.Errorf("kept %+v\nwant %+v", g, whole)
			}
		})
	}
}

func clearBut(p *keepPlan, v reflect.Value) {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		clearBut(p, v.Elem())
	case v.Kind() == reflect.Slice && structOf(v.Type()) != nil:
		for i := range v.Len() {
			clearBut(p, v.Index(i))
		}
	case v.Kind() == reflect.Struct && structOf(v.Type()) != nil:
		kept := map[int]bool{}
		for _, f := range p.fields[v.Type()] {
			kept[f.at] = true
		}
		for i := range v.NumField() {
			if !kept[i] {
				v.Field(i).SetZero()
				continue
			}
			clearBut(p, v.Field(i))
		}
	}
}

// BenchmarkKept is what the match stage pays to send an event along.
func BenchmarkKept(b *testing.B) {
	l, err := newLanguage()
	if err != nil {
		b.Fatal(err)
	}
	rd := newReads(l, func(string) *program { return nil })
	for _, f := range setFields {
		rd.fields[f] = true
	}
	c := &Compiled{stateful: stateful{plan: newKeepPlan(rd)}}
	var view record.SystemLogView
	payload, err := exampleLog().AppendAvro(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := view.Reset(payload); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Kept(&view); err != nil {
			b.Fatal(err)
		}
	}
}
