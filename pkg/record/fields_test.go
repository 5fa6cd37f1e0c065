package record

import (
	"encoding/csv"
	"os"
	"strings"
	"testing"
)

func typesByName(t *testing.T) map[string]ObjectType {
	t.Helper()
	out := map[string]ObjectType{}
	for _, o := range SystemLogTypes() {
		out[o.Name] = o
	}
	return out
}

// resolve follows a path of Okta's through the table; keys of maps end it.
func resolve(types map[string]ObjectType, path string) (last Field, rest string, ok bool) {
	typ := "SystemLog"
	names := strings.Split(path, ".")
	for i, name := range names {
		name, list := strings.CutSuffix(name, "[]")
		found := false
		for _, f := range types[typ].Fields {
			if f.Name != name {
				continue
			}
			if list != (f.Kind == KindObjects || f.Kind == KindStrings) && i < len(names)-1 {
				return f, "", false
			}
			last, found, typ = f, true, f.Object
			break
		}
		switch {
		case !found:
			return last, "", false
		case last.Kind == KindMap:
			return last, strings.Join(names[i+1:], "."), true
		}
	}
	return last, "", true
}

func TestEveryDocumentedPathResolves(t *testing.T) {
	f, err := os.Open("testdata/logevent-fields.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	rows = rows[1:]
	if len(rows) != 169 {
		t.Errorf("%d documented paths, want 169", len(rows))
	}
	kinds := map[string][]Kind{
		"string": {KindString, KindTime}, "integer": {KindInt}, "double": {KindDouble}, "boolean": {KindBool},
		"object": {KindObject, KindMap}, "map<string,any>": {KindMap}, "array of object": {KindObjects}, "array of string": {KindStrings},
	}
	types := typesByName(t)
	for _, row := range rows {
		path, typ := row[0], row[1]
		at := path
		if path == "client.ipChain" {
			at = "request.ipChain" // where an event hook's chain is found
		}
		got, key, ok := resolve(types, at)
		if !ok {
			t.Errorf("%s: not in the schema", path)
			continue
		}
		if key != "" {
			continue // a key of an open object
		}
		if want := kinds[typ]; want != nil {
			found := false
			for _, k := range want {
				found = found || k == got.Kind
			}
			if !found {
				t.Errorf("%s is documented as %s, kind is %d", path, typ, got.Kind)
			}
		}
		if got.Okta != at && got.OktaAlso != path {
			t.Errorf("%s: the schema says it is Okta's %s", path, got.Okta)
		}
		if strings.HasPrefix(typ, "string date-time") && got.Kind != KindTime {
			t.Errorf("%s: kind %d, want a time", path, got.Kind)
		}
	}
	documented := map[string]bool{}
	for _, row := range rows {
		for path := row[0]; path != ""; path = path[:max(0, strings.LastIndexByte(path, '.'))] {
			documented[path] = true // a path that only its members have a row for, too
		}
	}
	for _, o := range types {
		for _, f := range o.Fields {
			if f.Okta != "" && !documented[f.Okta] {
				t.Errorf("%s.%s is said to be Okta's %s, which is not documented", o.Name, f.Name, f.Okta)
			}
			if f.Doc == "" || f.Origin == "" {
				t.Errorf("%s.%s: no meaning or no origin", o.Name, f.Name)
			}
		}
	}
}

func TestIndexFieldsComeFirst(t *testing.T) {
	want := []string{"uuid", "published", "eventType", "derived"}
	for i, f := range SystemLogTypes()[0].Fields[:len(want)] {
		if f.Name != want[i] || f.Section != Section(i+1) {
			t.Errorf("field %d is %s of section %d, want %s", i, f.Name, f.Section, want[i])
		}
	}
	if SectionOf("json") != sectionCount {
		t.Error("json is not the last section")
	}
	if s := SectionSet(0).Add(SectionActor).Add(SectionUUID).String(); s != "uuid actor" {
		t.Errorf("set is %q", s)
	}
}

// TestGettersAreTotal calls every getter on a nil object and on an empty record.
func TestGettersAreTotal(t *testing.T) {
	var v SystemLogView
	if err := v.Load(&SystemLog{}); err != nil {
		t.Fatal(err)
	}
	for _, o := range SystemLogTypes() {
		var obj any = &v
		if o.Name != "SystemLog" {
			obj = nil
		}
		for _, f := range o.Fields {
			set := 0
			count := func(there, ok bool) {
				if there {
					set++
				}
				if ok && (f.Nullable || obj == nil) {
					t.Errorf("%s.%s: there in nothing", o.Name, f.Name)
				}
			}
			if f.Str != nil {
				_, ok := f.Str(obj)
				count(f.Kind == KindString, ok)
			}
			if f.Int != nil {
				_, ok := f.Int(obj)
				count(f.Kind == KindInt, ok)
			}
			if f.Double != nil {
				_, ok := f.Double(obj)
				count(f.Kind == KindDouble, ok)
			}
			if f.Bool != nil {
				_, ok := f.Bool(obj)
				count(f.Kind == KindBool, ok)
			}
			if f.Time != nil {
				_, ok := f.Time(obj)
				count(f.Kind == KindTime, ok)
			}
			if f.Bytes != nil {
				count(f.Kind == KindBytes, len(f.Bytes(obj)) > 0)
			}
			if f.Strings != nil {
				count(f.Kind == KindStrings, len(f.Strings(obj)) > 0)
			}
			if f.Map != nil {
				count(f.Kind == KindMap, len(f.Map(obj)) > 0)
			}
			if f.Obj != nil {
				_, ok := f.Obj(obj)
				count(f.Kind == KindObject, ok)
			}
			if f.Len != nil {
				count(f.Kind == KindObjects && f.At != nil, f.Len(obj) > 0)
			}
			if set != 1 {
				t.Errorf("%s.%s of kind %d: %d getters", o.Name, f.Name, f.Kind, set)
			}
		}
	}
}
