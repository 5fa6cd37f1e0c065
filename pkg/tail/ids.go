package tail

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// idReader finds the few fields of an Avro record that make its identity, skipping what lies before them. It works on the
// schema the writer used, so it needs no generated code and no version.
type idReader struct{ root *avroType }

// The fields, by full path, in the records that have them. Both spellings of a lane and of a number are never in one.
var (
	idPaths   = []string{"uuid", "id"}
	nPaths    = []string{"derived.copy", "copy", "update"}
	lanePaths = []string{"derived.lane", "lane"}
)

// avroType is as much of a schema as walking needs.
type avroType struct {
	kind   string
	fields []avroField
	elem   *avroType
	alts   []*avroType
	size   int64 // of fixed
	wanted int   // how many wanted fields lie within, so that the walk can stop
}

type avroField struct {
	name string
	typ  *avroType
	role role
}

type role int

const (
	none role = iota
	isID
	isN
	isLane
)

// newIDReader returns nil when the schema is no record with a uuid or an id.
func newIDReader(text string) *idReader {
	root, err := readType(json.RawMessage(text), "", map[string]*avroType{}, 0)
	if err != nil || root.kind != "record" {
		return nil
	}
	found := root.mark("")
	if !slices.Contains(found, isID) {
		return nil
	}
	return &idReader{root}
}

func (t *avroType) mark(path string) (found []role) {
	for i := range t.fields {
		f := &t.fields[i]
		at := path + f.name
		switch {
		case slices.Contains(idPaths, at) && f.typ.kind == "string":
			f.role = isID
		case slices.Contains(nPaths, at) && (f.typ.kind == "int" || f.typ.kind == "long"):
			f.role = isN
		case slices.Contains(lanePaths, at) && f.typ.kind == "string":
			f.role = isLane
		}
		if f.role != none {
			found = append(found, f.role)
			t.wanted++
		} else if path == "" && f.typ.kind == "record" && at == "derived" {
			below := f.typ.mark(at + ".")
			found = append(found, below...)
			t.wanted += len(below)
		}
	}
	return found
}

const maxNesting = 64

var errSchema = errors.New("schema cannot be walked")

func readType(raw json.RawMessage, space string, named map[string]*avroType, depth int) (*avroType, error) {
	if depth > maxNesting {
		return nil, errSchema
	}
	var name string
	if json.Unmarshal(raw, &name) == nil {
		for _, full := range []string{name, space + "." + name} {
			if t := named[full]; t != nil {
				return t, nil
			}
		}
		return &avroType{kind: name}, nil
	}
	var union []json.RawMessage
	if json.Unmarshal(raw, &union) == nil {
		t := &avroType{kind: "union"}
		for _, u := range union {
			a, err := readType(u, space, named, depth+1)
			if err != nil {
				return nil, err
			}
			t.alts = append(t.alts, a)
		}
		return t, nil
	}
	var o struct {
		Type      json.RawMessage `json:"type"`
		Name      string          `json:"name"`
		Namespace string          `json:"namespace"`
		Items     json.RawMessage `json:"items"`
		Values    json.RawMessage `json:"values"`
		Size      int64           `json:"size"`
		Fields    []struct {
			Name string          `json:"name"`
			Type json.RawMessage `json:"type"`
		} `json:"fields"`
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, fmt.Errorf("%w: %w", errSchema, err)
	}
	if json.Unmarshal(o.Type, &name) != nil {
		return readType(o.Type, space, named, depth+1)
	}
	t := &avroType{kind: name, size: o.Size}
	if o.Namespace != "" {
		space = o.Namespace
	}
	if o.Name != "" {
		named[o.Name] = t
		named[space+"."+o.Name] = t
	}
	var err error
	switch name {
	case "record", "error":
		t.kind = "record"
		for _, f := range o.Fields {
			ft, err := readType(f.Type, space, named, depth+1)
			if err != nil {
				return nil, err
			}
			t.fields = append(t.fields, avroField{name: f.Name, typ: ft})
		}
	case "array":
		t.elem, err = readType(o.Items, space, named, depth+1)
	case "map":
		t.elem, err = readType(o.Values, space, named, depth+1)
	case "enum", "fixed":
	default: // {"type": "string", …} or a name
		return readType(o.Type, space, named, depth+1)
	}
	return t, err
}

var errShort = errors.New("record ends too early")

func (r *idReader) read(b []byte) (ID, error) {
	var id ID
	w := walker{b: b, id: &id, left: r.root.wanted}
	w.skip(r.root, 0)
	if w.err != nil && w.left > 0 {
		return ID{}, w.err
	}
	return id, nil
}

// walker goes over one record's bytes until the wanted fields are met.
type walker struct {
	b    []byte
	id   *ID
	left int
	err  error
}

func (w *walker) fail(err error) { w.err, w.b = err, nil }

func (w *walker) long() int64 {
	x, n := binary.Varint(w.b)
	if n <= 0 {
		w.fail(errShort)
		return 0
	}
	w.b = w.b[n:]
	return x
}

func (w *walker) bytes() []byte { return w.take(w.long()) }

func (w *walker) take(n int64) []byte {
	if w.err != nil || n < 0 || n > int64(len(w.b)) {
		w.fail(errShort)
		return nil
	}
	out := w.b[:n]
	w.b = w.b[n:]
	return out
}

func (w *walker) skip(t *avroType, depth int) {
	if w.err != nil || w.left == 0 {
		return
	}
	if depth > maxNesting {
		w.fail(errSchema)
		return
	}
	switch t.kind {
	case "null":
	case "boolean":
		w.take(1)
	case "int", "long", "enum":
		w.long()
	case "float":
		w.take(4)
	case "double":
		w.take(8)
	case "bytes", "string":
		w.bytes()
	case "fixed":
		w.take(t.size)
	case "union":
		if i := w.long(); w.err == nil {
			if i < 0 || i >= int64(len(t.alts)) {
				w.fail(fmt.Errorf("union has no branch %d", i))
				return
			}
			w.skip(t.alts[i], depth+1)
		}
	case "array", "map":
		w.blocks(t, depth)
	case "record":
		for i := range t.fields {
			if w.err != nil || w.left == 0 {
				return
			}
			w.field(&t.fields[i], depth)
		}
	default:
		w.fail(fmt.Errorf("%w: type %q", errSchema, t.kind))
	}
}

func (w *walker) field(f *avroField, depth int) {
	switch f.role {
	case none:
		w.skip(f.typ, depth+1)
		return
	case isN:
		w.id.N = w.long()
	case isID:
		w.id.ID = string(w.bytes())
	case isLane:
		w.id.Lane = string(w.bytes())
	}
	if w.err == nil {
		w.left--
	}
}

func (w *walker) blocks(t *avroType, depth int) {
	for w.err == nil {
		n := w.long()
		if n == 0 || w.err != nil {
			return
		}
		if n < 0 { // the block's size in bytes follows
			w.bytes()
			continue
		}
		for range n {
			before := len(w.b)
			if t.kind == "map" {
				w.bytes()
			}
			w.skip(t.elem, depth+1)
			if w.err != nil {
				return
			}
			if len(w.b) == before { // items without bytes: any number of them is nothing
				break
			}
		}
	}
}
