package main

import "strings"

// writeDocs writes the reference of all records for people.
func writeDocs(w *writer, schemas []*Schema) {
	w.p("# Fields")
	w.p("")
	w.p("Generated from `schemas/*.avsc` by `make generate`: do not edit. Every record travels as Avro in the framing of the schema registry. Texts,")
	w.p("lists and maps are empty where there was none; what may be null says so. Times are UTC, milliseconds.")
	w.p("")
	for _, s := range schemas {
		w.p("- [%s](#%s)", s.Name, s.Name)
	}
	for _, s := range schemas {
		w.p("\n## %s\n", s.Name)
		w.p("%s\n", s.Root.Doc)
		for _, r := range s.records() {
			if r != s.Root {
				w.p("\n### %s.%s\n", s.Name, r.Name)
				w.p("%s\n", r.Doc)
			}
			w.p("| field | type | meaning | origin |")
			w.p("|---|---|---|---|")
			for _, f := range r.Fields {
				meaning, origin := split(f.Doc)
				if f.Okta != "" {
					origin += ", `" + f.Okta + "`"
				}
				if f.OktaAlso != "" {
					origin += " or `" + f.OktaAlso + "`"
				}
				w.p("| `%s` | %s | %s | %s |", f.Name, docType(f.Type), cell(meaning), cell(origin))
			}
		}
	}
}

func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "*", `\*`, "<", "&lt;", ">", "&gt;").Replace(s)
}

func docType(t Type) string {
	s := t.Kind
	switch t.Kind {
	case kTime:
		s = "time"
	case kMap:
		s = "map of string"
	case kRecord:
		s = t.Record.Name
	case kArray:
		s = "list of " + docType(*t.Elem)
	}
	if t.Nullable {
		s += " or null"
	}
	return s
}
