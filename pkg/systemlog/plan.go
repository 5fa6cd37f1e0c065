package systemlog

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// ours are the fields of a SystemLog record that Okta does not send: a key of that name in an event fills nothing.
var ours = map[string]bool{"derived": true, "enrichment": true, "json": true}

// numbersToo are the text fields that Okta's own examples also print as numbers; the number's text is taken.
var numbersToo = map[string]bool{"version": true, "postalCode": true}

// elsewhere names fields that one shape of an event has in another place than the record: an event hook's client.ipChain
// is the API's request.ipChain. What stands in the record's own place wins.
var elsewhere = map[string]string{"client.ipChain": "request.ipChain"}

type kind uint8

const (
	kindText kind = iota
	kindInt
	kindDouble
	kindBool
	kindTime
	kindObject
	kindObjects
	kindTexts
	kindOpen
)

// field says how one member of a JSON object becomes one field of a record.
type field struct {
	path    string // Okta's, for findings
	index   int    // of the Go struct's field
	kind    kind
	pointer bool // the Go field is a pointer, nil for null
	numbers bool // a text that may come as a number
	zone    bool // a text whose "null" means null
	debug   bool // debugData: more of its keys carry secrets
	plan    *plan
	home    *field // of one that is found elsewhere: the section it belongs to
}

// plan is the mapping of one object type. It is derived from the record's struct, which is generated from
// schemas/system_log.avsc: the schema is the one list of Okta's fields.
type plan struct {
	typ    reflect.Type
	fields map[string]*field
	byLen  [][]named // the same by the length of the name: quicker than the map for so few
	lends  bool      // one of its fields belongs into another section
}

type named struct {
	name  string
	field *field
}

func (p *plan) find(name string) *field {
	if len(name) >= len(p.byLen) {
		return nil
	}
	for _, n := range p.byLen[len(name)] {
		if n.name == name {
			return n.field
		}
	}
	return nil
}

// index fills byLen of a plan and of those below it.
func (p *plan) index() {
	p.byLen = nil
	for name, f := range p.fields {
		for len(p.byLen) <= len(name) {
			p.byLen = append(p.byLen, nil)
		}
		p.byLen[len(name)] = append(p.byLen[len(name)], named{name, f})
		if f.plan != nil {
			f.plan.index()
		}
	}
}

var rootPlan = sync.OnceValue(func() *plan {
	root := planOf(reflect.TypeFor[record.SystemLog](), "")
	for from, to := range elsewhere {
		section, name, _ := strings.Cut(to, ".")
		home := root.fields[section]
		f := *home.plan.fields[name]
		f.path, f.home = from, home
		section, name, _ = strings.Cut(from, ".")
		lender := root.fields[section].plan
		lender.fields[name], lender.lends = &f, true
	}
	root.index()
	return root
})

func planOf(t reflect.Type, at string) *plan {
	p := &plan{typ: t, fields: map[string]*field{}}
	for i := range t.NumField() {
		sf := t.Field(i)
		name := sf.Tag.Get("avro")
		if name == "" || at == "" && ours[name] {
			continue
		}
		path := name
		if at != "" {
			path = at + "." + name
		}
		f := &field{path: path, index: i}
		ft := sf.Type
		if ft.Kind() == reflect.Pointer {
			f.pointer = true
			ft = ft.Elem()
		}
		switch {
		case ft == reflect.TypeFor[time.Time]():
			f.kind = kindTime
		case ft.Kind() == reflect.String:
			f.kind = kindText
			f.numbers = numbersToo[name]
			f.zone = path == "client.zone"
		case ft.Kind() == reflect.Int64 || ft.Kind() == reflect.Int32:
			f.kind = kindInt
		case ft.Kind() == reflect.Float64:
			f.kind = kindDouble
		case ft.Kind() == reflect.Bool:
			f.kind = kindBool
		case ft.Kind() == reflect.Map:
			f.kind = kindOpen
			f.debug = path == "debugContext.debugData"
		case ft.Kind() == reflect.Struct:
			f.kind = kindObject
			f.plan = planOf(ft, path)
		case ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.String:
			f.kind = kindTexts
		case ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct:
			f.kind = kindObjects
			f.plan = planOf(ft.Elem(), path+"[]")
		default:
			panic(fmt.Sprintf("systemlog: field %s of the record has type %s, which no JSON is mapped to", path, sf.Type))
		}
		p.fields[name] = f
	}
	return p
}
