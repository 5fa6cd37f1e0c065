package main

import (
	"fmt"
	"strings"
)

// sections gives each record type of the schema the top-level field it lies in, "" when it lies in several.
func sections(s *Schema) map[string]string {
	out := map[string]string{}
	for _, top := range s.Root.Fields {
		var visit func(r *Record)
		visit = func(r *Record) {
			if r == nil {
				return
			}
			if have, ok := out[r.Name]; ok && have != top.Go {
				out[r.Name] = ""
			} else {
				out[r.Name] = top.Go
			}
			for _, f := range r.Fields {
				visit(f.Type.record())
			}
		}
		visit(top.Type.record())
	}
	return out
}

// split takes "… Origin: X." apart.
func split(doc string) (meaning, origin string) {
	meaning, origin, _ = strings.Cut(doc, "Origin: ")
	return strings.TrimSpace(meaning), strings.TrimSuffix(strings.TrimSpace(origin), ".")
}

// writeFields writes the table of System Log object types with a getter per field.
func writeFields(w *writer, s *Schema) {
	in := sections(s)
	w.p("// Sections of a System Log record: its top-level fields in the order of the bytes.")
	w.p("const (")
	for i, f := range s.Root.Fields {
		if i == 0 {
			w.p("Section%s Section = 1 + iota", f.Go)
		} else {
			w.p("Section%s", f.Go)
		}
	}
	w.p(")\n")
	w.p("const sectionCount = %d\n", len(s.Root.Fields))
	w.p("var sectionNames = [sectionCount + 1]string{")
	w.p(`"",`)
	for _, f := range s.Root.Fields {
		w.p("%q,", f.Name)
	}
	w.p("}\n")
	w.p("// SystemLogTypes returns the object types of a System Log record, SystemLog first. The getters of SystemLog take a")
	w.p("// *SystemLogView, those of the others a pointer to their struct.")
	w.p("func SystemLogTypes() []ObjectType {")
	w.p("return []ObjectType{")
	for _, r := range s.records() {
		w.p("{Name: %q, Doc: %q, Fields: []Field{", r.Name, r.Doc)
		for _, f := range r.Fields {
			section := "0"
			switch {
			case r == s.Root:
				section = "Section" + f.Go
			case in[r.Name] != "":
				section = "Section" + in[r.Name]
			}
			writeField(w, r, f, section, r == s.Root)
		}
		w.p("}},")
	}
	w.p("}")
	w.p("}")
}

func writeField(w *writer, r *Record, f *Field, section string, root bool) {
	meaning, origin := split(f.Doc)
	w.p("{")
	attrs := fmt.Sprintf("Name: %q, Section: %s, Doc: %q, Origin: %q,", f.Name, section, meaning, origin)
	if f.Type.Nullable {
		attrs += " Nullable: true,"
	}
	if f.Okta != "" {
		attrs += fmt.Sprintf(" Okta: %q,", f.Okta)
	}
	if f.OktaAlso != "" {
		attrs += fmt.Sprintf(" OktaAlso: %q,", f.OktaAlso)
	}
	w.p("%s", attrs)
	defer w.p("},")
	typ, x := r.Name, "v."+f.Go
	if root {
		typ, x = "SystemLogView", "v."+f.Go+"()"
	}
	get := func(kind, name, result, zero, body string) {
		w.p("Kind: %s,", kind)
		w.p("%s: func(o any) %s {", name, result)
		if root {
			w.p("v := o.(*%s)", typ)
		} else {
			w.p("v, _ := o.(*%s)", typ)
			w.p("if v == nil { return %s }", zero)
		}
		w.p("%s", body)
		w.p("},")
	}
	// value returns the body of a getter of (T, bool).
	value := func(conv, zero string) string {
		switch {
		case root && f.Type.Nullable && f.Type.Kind == kTime:
			return "return " + x
		case f.Type.Nullable:
			return fmt.Sprintf("if %s == nil { return %s, false }\nreturn %s, true", x, zero, fmt.Sprintf(conv, "*"+x))
		}
		return fmt.Sprintf("return %s, true", fmt.Sprintf(conv, x))
	}
	switch f.Type.Kind {
	case kString:
		get("KindString", "Str", "(string, bool)", `"", false`, fmt.Sprintf("s := %s\nreturn s, s != \"\"", x))
	case kBytes:
		get("KindBytes", "Bytes", "[]byte", "nil", "return "+x)
	case kInt:
		get("KindInt", "Int", "(int64, bool)", "0, false", value("int64(%s)", "0"))
	case kLong:
		get("KindInt", "Int", "(int64, bool)", "0, false", value("%s", "0"))
	case kDouble:
		get("KindDouble", "Double", "(float64, bool)", "0, false", value("%s", "0"))
	case kBool:
		get("KindBool", "Bool", "(bool, bool)", "false, false", value("%s", "false"))
	case kTime:
		get("KindTime", "Time", "(time.Time, bool)", "time.Time{}, false", value("%s", "time.Time{}"))
	case kMap:
		get("KindMap", "Map", "map[string]string", "nil", "return "+x)
	case kRecord:
		w.p("Object: %q,", f.Type.Record.Name)
		if f.Type.Nullable || root {
			get("KindObject", "Obj", "(any, bool)", "nil, false", fmt.Sprintf("p := %s\nif p == nil { return nil, false }\nreturn p, true", x))
		} else {
			get("KindObject", "Obj", "(any, bool)", "nil, false", fmt.Sprintf("return &%s, true", x))
		}
	case kArray:
		if f.Type.Elem.Kind == kString {
			get("KindStrings", "Strings", "[]string", "nil", "return "+x)
			return
		}
		w.p("Object: %q,", f.Type.Elem.Record.Name)
		get("KindObjects", "Len", "int", "0", fmt.Sprintf("return len(%s)", x))
		w.p("At: func(o any, i int) any {")
		if root {
			w.p("v := o.(*%s)", typ)
		} else {
			w.p("v, _ := o.(*%s)", typ)
			w.p("if v == nil { return (*%s)(nil) }", f.Type.Elem.Record.Name)
		}
		w.p("return &%s[i]", x)
		w.p("},")
	}
}
