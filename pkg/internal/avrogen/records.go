package main

import "strings"

// writeRecords writes the structs of one schema with their codec.
func writeRecords(w *writer, s *Schema) {
	w.p("// %sSchema is schemas/%s.avsc as it was when this package was generated.", s.Root.Name, s.Name)
	w.p("const %sSchema = `%s`\n", s.Root.Name, strings.TrimSuffix(s.Text, "\n"))
	for _, r := range s.records() {
		w.comment("", r.Name+": "+r.Doc)
		w.p("type %s struct {", r.Name)
		for _, f := range r.Fields {
			w.comment("\t", f.Doc)
			w.p("\t%s %s `avro:%q json:%q`", f.Go, goType(f.Type), f.Name, f.Name)
		}
		w.p("}\n")
	}
	n := s.Root.Name
	w.p("// SchemaName returns %q.", s.Name)
	w.p("func (*%s) SchemaName() string { return %q }\n", n, s.Name)
	w.p("// AppendAvro appends the record's Avro bytes, unframed, to dst. The same record always gives the same bytes.")
	w.p("func (v *%s) AppendAvro(dst []byte) ([]byte, error) { return v.append(dst), nil }\n", n)
	w.p("// DecodeAvro replaces the record by what b holds: unframed bytes written with this package's own schema. Nothing in")
	w.p("// the record aliases b. After an error the record is empty.")
	w.p("func (v *%s) DecodeAvro(b []byte) error {", n)
	w.p("\t*v = %s{}", n)
	w.p("\tr := wire{b: b}")
	w.p("\tv.decode(&r)")
	w.p("\tif err := r.end(); err != nil {")
	w.p("\t\t*v = %s{}", n)
	w.p("\t\treturn decodeError(%q, err)", s.Name)
	w.p("\t}")
	w.p("\treturn nil")
	w.p("}\n")
	for _, r := range s.records() {
		w.p("func (v *%s) append(b []byte) []byte {", r.Name)
		for _, f := range r.Fields {
			writeAppend(w, f)
		}
		w.p("return b")
		w.p("}\n")
		w.p("// decode overwrites every field; it keeps the memory of maps, slices and pointers it finds.")
		w.p("func (v *%s) decode(r *wire) {", r.Name)
		for _, f := range r.Fields {
			writeDecode(w, f)
		}
		w.p("}\n")
	}
}

func writeAppend(w *writer, f *Field) {
	x := "v." + f.Go
	if f.Type.Nullable {
		w.p("if %s == nil {", x)
		w.p("b = append(b, 0)")
		w.p("} else {")
		w.p("b = append(b, 2)")
		defer w.p("}")
		if f.Type.Kind != kRecord && f.Type.Kind != kTime && f.Type.Kind != kBytes {
			x = "*" + x
		}
	}
	switch f.Type.Kind {
	case kString:
		w.p("b = appendString(b, %s)", x)
	case kBytes:
		w.p("b = appendBytes(b, %s)", x)
	case kInt:
		w.p("b = appendLong(b, int64(%s))", x)
	case kLong:
		w.p("b = appendLong(b, %s)", x)
	case kDouble:
		w.p("b = appendDouble(b, %s)", x)
	case kBool:
		w.p("b = appendBool(b, %s)", x)
	case kTime:
		w.p("b = appendLong(b, %s.UnixMilli())", x)
	case kRecord:
		w.p("b = %s.append(b)", x)
	case kMap:
		w.p("b = appendMap(b, %s)", x)
	case kArray:
		if f.Type.Elem.Kind == kString {
			w.p("b = appendStrings(b, %s)", x)
			return
		}
		w.p("if len(%s) > 0 {", x)
		w.p("b = appendLong(b, int64(len(%s)))", x)
		w.p("for i := range %s {", x)
		w.p("b = %s[i].append(b)", x)
		w.p("}")
		w.p("}")
		w.p("b = append(b, 0)")
	}
}

func writeDecode(w *writer, f *Field) {
	x, deref := "v."+f.Go, ""
	if f.Type.Nullable {
		w.p("if !r.some() {")
		w.p("%s = nil", x)
		w.p("} else {")
		defer w.p("}")
		if f.Type.Kind != kBytes {
			w.p("if %s == nil { %s = new(%s) }", x, x, strings.TrimPrefix(goType(f.Type), "*"))
		}
		if f.Type.Kind != kRecord && f.Type.Kind != kBytes {
			deref = "*"
		}
	}
	switch f.Type.Kind {
	case kString:
		w.p("%s = r.str()", x)
	case kBytes:
		w.p("%s = r.bytes()", x)
		if f.Type.Nullable {
			w.p("if %s == nil { %s = []byte{} }", x, x)
		}
	case kInt:
		w.p("%s%s = r.int()", deref, x)
	case kLong:
		w.p("%s%s = r.long()", deref, x)
	case kDouble:
		w.p("%s%s = r.double()", deref, x)
	case kBool:
		w.p("%s%s = r.bool()", deref, x)
	case kTime:
		w.p("%s%s = r.time()", deref, x)
	case kRecord:
		w.p("%s.decode(r)", x)
	case kMap:
		w.p("%s = r.strMap(%s)", x, x)
	case kArray:
		if f.Type.Elem.Kind == kString {
			w.p("%s = r.strs(%s)", x, x)
			return
		}
		w.p("%s = decodeList(r, %s, %d, (*%s).decode)", x, x, minSize(*f.Type.Elem), f.Type.Elem.Record.Name)
	}
}

// writeSchemas writes the list of schemas and of empty records.
func writeSchemas(w *writer, schemas []*Schema) {
	w.p("// Schemas returns every schema of this package, by name.")
	w.p("func Schemas() []SchemaText {")
	w.p("return []SchemaText{")
	for _, s := range schemas {
		w.p("{%q, %sSchema},", s.Name, s.Root.Name)
	}
	w.p("}")
	w.p("}\n")
	w.p("// New returns an empty record of that schema, nil when there is none of that name.")
	w.p("func New(name string) Record {")
	w.p("switch name {")
	for _, s := range schemas {
		w.p("case %q:", s.Name)
		w.p("return new(%s)", s.Root.Name)
	}
	w.p("}")
	w.p("return nil")
	w.p("}")
}
