package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/linkedin/goavro/v2"
)

// Schema is one file of the schema directory.
type Schema struct {
	Name string // file name without .avsc
	Text string
	Root *Record
}

// Record is one Avro record type; every one becomes a Go struct.
type Record struct {
	Name, Doc string
	Fields    []*Field
	Schema    string // name of the schema that defines it
}

// Field is one field of a record.
type Field struct {
	Name, Go, Doc   string
	Okta, OktaAlso  string
	Type            Type
	HasDefault      bool
	Default         json.RawMessage
	Section         string // Go name of the top-level field of system_log it lies in
	SectionIsShared bool   // the type is used in several sections
}

// Kinds of a type.
const (
	kString = "string"
	kBytes  = "bytes"
	kInt    = "int"
	kLong   = "long"
	kDouble = "double"
	kBool   = "boolean"
	kTime   = "timestamp-millis"
	kRecord = "record"
	kArray  = "array"
	kMap    = "map" // of string
)

// Type is the subset of Avro types that schemas may use.
type Type struct {
	Kind     string
	Nullable bool // ["null", T]
	Record   *Record
	Elem     *Type
}

// readSchemas reads and checks every schema of a directory, by name.
func readSchemas(dir string) ([]*Schema, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.avsc"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("read schemas: no .avsc file in %s", dir)
	}
	slices.Sort(files)
	var out []*Schema
	goNames := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		s, err := parseSchema(strings.TrimSuffix(filepath.Base(f), ".avsc"), string(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		for _, r := range s.records() {
			if other := goNames[r.Name]; other != "" {
				return nil, fmt.Errorf("%s: record %s is also defined in %s: names are unique over all schemas", f, r.Name, other)
			}
			goNames[r.Name] = f
		}
		out = append(out, s)
	}
	return out, nil
}

func parseSchema(name, text string) (*Schema, error) {
	if _, err := goavro.NewCodec(text); err != nil {
		return nil, fmt.Errorf("goavro refuses the schema: %w", err)
	}
	if strings.Contains(text, "`") {
		return nil, errors.New("a schema must not hold a backquote: it becomes a raw string constant")
	}
	p := parser{schema: name, named: map[string]*Record{}}
	t, err := p.typ(json.RawMessage(text))
	if err != nil {
		return nil, err
	}
	if t.Kind != kRecord || t.Nullable {
		return nil, errors.New("the schema's own type must be a record")
	}
	s := &Schema{Name: name, Text: text, Root: t.Record}
	if want := goName(name); t.Record.Name != want {
		return nil, fmt.Errorf("record is called %s, want %s after the file's name", t.Record.Name, want)
	}
	return s, nil
}

// records returns the record types of the schema, the root first, each once.
func (s *Schema) records() []*Record {
	var out []*Record
	var visit func(r *Record)
	visit = func(r *Record) {
		if slices.Contains(out, r) {
			return
		}
		out = append(out, r)
		for _, f := range r.Fields {
			if n := f.Type.record(); n != nil {
				visit(n)
			}
		}
	}
	visit(s.Root)
	return out
}

// record returns the record type that t is or holds, or nil.
func (t Type) record() *Record {
	if t.Elem != nil {
		return t.Elem.record()
	}
	return t.Record
}

type parser struct {
	schema string
	named  map[string]*Record
	open   []string
}

func (p *parser) typ(raw json.RawMessage) (Type, error) {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		switch s {
		case kString, kBytes, kInt, kLong, kDouble, kBool:
			return Type{Kind: s}, nil
		}
		if slices.Contains(p.open, s) {
			return Type{}, fmt.Errorf("record %s holds itself: recursive types are not supported", s)
		}
		if r := p.named[s]; r != nil {
			return Type{Kind: kRecord, Record: r}, nil
		}
		return Type{}, fmt.Errorf("type %q is not supported", s)
	}
	var union []json.RawMessage
	if json.Unmarshal(raw, &union) == nil {
		if len(union) != 2 || string(union[0]) != `"null"` {
			return Type{}, errors.New(`the only unions supported are ["null", T]`)
		}
		t, err := p.typ(union[1])
		if err != nil {
			return Type{}, err
		}
		if t.Kind == kArray || t.Kind == kMap || t.Kind == kString {
			return Type{}, fmt.Errorf("a nullable %s is not supported: null and empty mean the same, use a default", t.Kind)
		}
		t.Nullable = true
		return t, nil
	}
	var o struct {
		Type, LogicalType, Name, Doc string
		Items, Values                json.RawMessage
		Fields                       []json.RawMessage
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return Type{}, fmt.Errorf("type %s: %w", raw, err)
	}
	switch o.Type {
	case kLong:
		if o.LogicalType != kTime {
			return Type{}, fmt.Errorf("logical type %q is not supported", o.LogicalType)
		}
		return Type{Kind: kTime}, nil
	case kMap:
		t, err := p.typ(o.Values)
		if err != nil || t.Kind != kString {
			return Type{}, errors.New("the only maps supported are of string")
		}
		return Type{Kind: kMap}, nil
	case kArray:
		t, err := p.typ(o.Items)
		if err != nil {
			return Type{}, err
		}
		if t.Nullable || (t.Kind != kString && t.Kind != kRecord) {
			return Type{}, errors.New("the only arrays supported are of string or of a record")
		}
		return Type{Kind: kArray, Elem: &t}, nil
	case kRecord:
		return p.record(o.Name, o.Doc, o.Fields)
	}
	return Type{}, fmt.Errorf("type %q is not supported", o.Type)
}

func (p *parser) record(name, doc string, fields []json.RawMessage) (Type, error) {
	if doc == "" {
		return Type{}, fmt.Errorf("record %s has no doc", name)
	}
	r := &Record{Name: name, Doc: doc, Schema: p.schema}
	p.named[name] = r
	p.open = append(p.open, name)
	defer func() { p.open = p.open[:len(p.open)-1] }()
	for _, raw := range fields {
		var o struct {
			Name, Doc, Okta string
			OktaAlso        string `json:"okta_also"`
			Type, Default   json.RawMessage
		}
		if err := json.Unmarshal(raw, &o); err != nil {
			return Type{}, fmt.Errorf("record %s: %w", name, err)
		}
		if !strings.Contains(o.Doc, "Origin: ") {
			return Type{}, fmt.Errorf("field %s.%s: doc must say meaning, unit and \"Origin: \"", name, o.Name)
		}
		t, err := p.typ(o.Type)
		if err != nil {
			return Type{}, fmt.Errorf("field %s.%s: %w", name, o.Name, err)
		}
		f := &Field{Name: o.Name, Go: goName(o.Name), Doc: o.Doc, Okta: o.Okta, OktaAlso: o.OktaAlso, Type: t, HasDefault: o.Default != nil, Default: o.Default}
		for _, other := range r.Fields {
			if other.Go == f.Go {
				return Type{}, fmt.Errorf("fields %s and %s of %s are both %s in Go", other.Name, f.Name, name, f.Go)
			}
		}
		r.Fields = append(r.Fields, f)
	}
	return Type{Kind: kRecord, Record: r}, nil
}

// initialisms are words that Go writes in capitals.
var initialisms = map[string]string{
	"id": "ID", "ids": "IDs", "uuid": "UUID", "uuids": "UUIDs", "url": "URL", "json": "JSON", "sha256": "SHA256",
	"ip": "IP", "os": "OS", "isp": "ISP", "as": "AS", "ms": "MS",
}

// goName turns a snake_case or camelCase name into Go's.
func goName(name string) string {
	var words []string
	for part := range strings.SplitSeq(name, "_") {
		start := 0
		for i, c := range part {
			if i > start && unicode.IsUpper(c) {
				words = append(words, part[start:i])
				start = i
			}
		}
		words = append(words, part[start:])
	}
	var b strings.Builder
	for _, w := range words {
		l := strings.ToLower(w)
		if up, ok := initialisms[l]; ok {
			b.WriteString(up)
			continue
		}
		if l != "" {
			b.WriteString(strings.ToUpper(l[:1]) + l[1:])
		}
	}
	return b.String()
}

// goType is the type of a field in Go.
func goType(t Type) string {
	star := ""
	if t.Nullable {
		star = "*"
	}
	switch t.Kind {
	case kString:
		return "string"
	case kBytes:
		return "[]byte"
	case kInt:
		return star + "int32"
	case kLong:
		return star + "int64"
	case kDouble:
		return star + "float64"
	case kBool:
		return star + "bool"
	case kTime:
		return star + "time.Time"
	case kRecord:
		return star + t.Record.Name
	case kArray:
		return "[]" + goType(*t.Elem)
	case kMap:
		return "map[string]string"
	}
	panic("kind " + t.Kind)
}

// minSize is the least number of bytes a value takes on the wire: what bounds an array's count before it is believed.
func minSize(t Type) int {
	if t.Nullable {
		return 1
	}
	switch t.Kind {
	case kDouble:
		return 8
	case kRecord:
		n := 0
		for _, f := range t.Record.Fields {
			n += minSize(f.Type)
		}
		return n
	}
	return 1
}
