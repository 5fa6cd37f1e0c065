package main

import "strings"

// lower is the private name of a view's member.
func lower(goName string) string { return "f" + goName }

// writeView writes the lazy view of a System Log record: which top-level fields there are and how to skip each.
func writeView(w *writer, s *Schema) {
	w.comment("", "SystemLogView reads a System Log record without decoding what nobody asks for. Reset reads the first fields; every other "+
		"top-level field (section) is found and decoded when it is first asked for, and kept until the next Reset. Texts, maps and objects "+
		"handed out point into the payload and into the view's own memory: they hold until the next Reset, and only while the payload is not "+
		"changed. Use Full for a copy that stays. Not safe for concurrent use.")
	w.p("type SystemLogView struct {")
	w.p("viewState")
	index := true
	for _, f := range s.Root.Fields {
		switch f.Type.Kind {
		case kRecord, kArray:
			index = false
			w.p("%s %s", lower(f.Go), strings.TrimPrefix(goType(f.Type), "*"))
		default:
			if index {
				w.p("%s %s", lower(f.Go), strings.TrimPrefix(goType(f.Type), "*"))
			}
		}
	}
	w.p("}\n")

	w.p("// readIndex reads the fields before the first section.")
	w.p("func (v *SystemLogView) readIndex() {")
	w.p("r := &v.r")
	w.p("*r = wire{b: v.b, alias: true}")
	n := 0
	for i, f := range s.Root.Fields {
		if f.Type.Kind == kRecord || f.Type.Kind == kArray {
			break
		}
		n = i + 1
		read := map[string]string{kString: "str", kTime: "time"}[f.Type.Kind]
		if read == "" {
			panic("an index field must be a text or a time")
		}
		if f.Type.Nullable {
			w.p("v.some &^= 1 << Section%s", f.Go)
			w.p("if r.some() {")
			w.p("v.some |= 1 << Section%s", f.Go)
			w.p("v.%s = r.%s()", lower(f.Go), read)
			w.p("}")
		} else {
			w.p("v.%s = r.%s()", lower(f.Go), read)
		}
		w.p("v.off[%d] = r.i", n)
	}
	w.p("v.walked = %d", n)
	w.p("v.keep(r)")
	w.p("}\n")

	for i, f := range s.Root.Fields {
		w.comment("", f.Go+": "+f.Doc)
		switch {
		case i < n && f.Type.Nullable:
			w.p("func (v *SystemLogView) %s() (time.Time, bool) {", f.Go)
			w.p("if v.some&(1<<Section%s) == 0 { return time.Time{}, false }", f.Go)
			w.p("return v.%s, true", lower(f.Go))
			w.p("}\n")
		case i < n:
			w.p("func (v *SystemLogView) %s() %s { return v.%s }\n", f.Go, goType(f.Type), lower(f.Go))
		case f.Type.Kind == kString || f.Type.Kind == kBytes:
			w.p("func (v *SystemLogView) %s() %s {", f.Go, goType(f.Type))
			w.p("r := v.at(Section%s)", f.Go)
			w.p("x := r.%s()", map[string]string{kString: "str", kBytes: "bytes"}[f.Type.Kind])
			w.p("v.keep(r)")
			w.p("return x")
			w.p("}\n")
		case f.Type.Kind == kRecord:
			w.p("func (v *SystemLogView) %s() *%s {", f.Go, f.Type.Record.Name)
			w.p("if v.have&(1<<Section%s) == 0 {", f.Go)
			w.p("r := v.open(Section%s)", f.Go)
			if f.Type.Nullable {
				w.p("if r.some() {")
				w.p("v.%s.decode(r)", lower(f.Go))
				w.p("v.done(Section%s, r)", f.Go)
				w.p("}")
				w.p("v.keep(r)")
			} else {
				w.p("v.%s.decode(r)", lower(f.Go))
				w.p("v.done(Section%s, r)", f.Go)
				w.p("if r.err != nil { v.%s = %s{} }", lower(f.Go), f.Type.Record.Name)
				w.p("v.keep(r)")
			}
			w.p("}")
			if f.Type.Nullable {
				w.p("if v.some&(1<<Section%s) == 0 { return nil }", f.Go)
			}
			w.p("return &v.%s", lower(f.Go))
			w.p("}\n")
		case f.Type.Kind == kArray:
			e := f.Type.Elem
			w.p("func (v *SystemLogView) %s() []%s {", f.Go, e.Record.Name)
			w.p("if v.have&(1<<Section%s) == 0 {", f.Go)
			w.p("r := v.open(Section%s)", f.Go)
			w.p("v.%s = decodeList(r, v.%s, %d, (*%s).decode)", lower(f.Go), lower(f.Go), minSize(*e), e.Record.Name)
			w.p("v.done(Section%s, r)", f.Go)
			w.p("v.keep(r)")
			w.p("}")
			w.p("if v.some&(1<<Section%s) == 0 { return nil }", f.Go)
			w.p("return v.%s", lower(f.Go))
			w.p("}\n")
		default:
			panic("a top-level field of system_log must be a text, bytes, a record or a list of records: " + f.Name)
		}
	}

	w.p("// skipSection passes over one top-level field.")
	w.p("func skipSection(r *wire, s Section) {")
	w.p("switch s {")
	for _, f := range s.Root.Fields {
		w.p("case Section%s:", f.Go)
		writeSkip(w, f.Type)
	}
	w.p("}")
	w.p("}\n")
	for _, r := range s.records()[1:] {
		w.p("func skip%s(r *wire) {", r.Name)
		for _, f := range r.Fields {
			writeSkip(w, f.Type)
		}
		w.p("}\n")
	}
}

func writeSkip(w *writer, t Type) {
	if t.Nullable {
		w.p("if r.some() {")
		defer w.p("}")
	}
	switch t.Kind {
	case kString, kBytes:
		w.p("r.raw()")
	case kInt:
		w.p("r.int()")
	case kLong, kTime:
		w.p("r.long()")
	case kDouble:
		w.p("r.double()")
	case kBool:
		w.p("r.bool()")
	case kMap:
		w.p("r.skipMap()")
	case kRecord:
		w.p("skip%s(r)", t.Record.Name)
	case kArray:
		if t.Elem.Kind == kString {
			w.p("r.skipStrings()")
		} else {
			w.p("r.skipList(%d, skip%s)", minSize(*t.Elem), t.Elem.Record.Name)
		}
	}
}
