package record

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/linkedin/goavro/v2"
)

// Plainer turns Avro bytes of one schema, of whatever version, into JSON for people: fields in the schema's order,
// ordinary nulls, RFC 3339 times, and bytes that hold JSON as that JSON where readers can take it (IsPlainJSON): else bytes are a
// string, and `base64:…` when they are no UTF-8. Safe for concurrent use.
type Plainer struct {
	codec *goavro.Codec
	root  *node
}

// node is a type of the schema, as much of it as the projection needs.
type node struct {
	kind   string // Avro's name of the type, or union
	name   string // full name of a named type
	fields []nodeField
	elem   *node   // of arrays and maps
	size   int     // of fixed
	alts   []*node // of unions
}

type nodeField struct {
	name string
	typ  *node
}

// NewPlainer reads a schema's text.
func NewPlainer(schema string) (*Plainer, error) {
	codec, err := goavro.NewCodec(schema)
	if err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	p := &Plainer{codec: codec}
	n, err := parseNode(json.RawMessage(schema), "", map[string]*node{})
	if err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	p.root = n
	return p, nil
}

// JSON projects one unframed record.
func (p *Plainer) JSON(payload []byte) (json.RawMessage, error) {
	r := wire{b: payload}
	p.root.check(&r, 0)
	err := r.end()
	var native any
	if err == nil {
		native, err = p.native(payload)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: decode %s: %w", ErrUnreadable, p.root.name, err)
	}
	var b bytes.Buffer
	if err := p.root.write(&b, native); err != nil {
		return nil, fmt.Errorf("project %s: %w", p.root.name, err)
	}
	return b.Bytes(), nil
}

// native turns a panic of the reference codec into an error.
func (p *Plainer) native(payload []byte) (v any, err error) {
	defer func() {
		if x := recover(); x != nil {
			err = fmt.Errorf("%v", x)
		}
	}()
	v, _, err = p.codec.NativeFromBinary(payload)
	return v, err
}

const (
	maxDepth   = 1000    // of values in values
	maxNothing = 1 << 16 // items that take no byte
)

// check walks a value before the reference codec reads it, which makes room for as many items as the bytes claim.
func (n *node) check(r *wire, depth int) {
	if depth > maxDepth {
		r.fail(errors.New("values are nested too deep"))
		return
	}
	switch n.kind {
	case "null":
	case "boolean":
		r.bool()
	case "int", "enum":
		r.int()
	case "long":
		r.long()
	case "float":
		r.take(4)
	case "double":
		r.take(8)
	case "fixed":
		r.take(n.size)
	case "string", "bytes":
		r.raw()
	case "union":
		if i := r.long(); i >= 0 && i < int64(len(n.alts)) {
			n.alts[i].check(r, depth+1)
		} else {
			r.fail(fmt.Errorf("branch %d of a union of %d", i, len(n.alts)))
		}
	case "record":
		for _, f := range n.fields {
			if f.typ.check(r, depth+1); r.err != nil {
				return
			}
		}
	case "array", "map":
		least := n.elem.least(0)
		if n.kind == "map" {
			least++
		}
		total := 0
		for c := r.block(least); c > 0; c = r.block(least) {
			if total += c; least == 0 && total > maxNothing {
				r.fail(fmt.Errorf("a list of %d items of no bytes", total))
				return
			}
			for range c {
				if n.kind == "map" {
					r.raw()
				}
				if n.elem.check(r, depth+1); r.err != nil {
					return
				}
			}
		}
	default:
		r.fail(fmt.Errorf("type %s is not known", n.kind))
	}
}

// least is a number of bytes that a value takes at least.
func (n *node) least(depth int) int {
	switch n.kind {
	case "null":
		return 0
	case "float":
		return 4
	case "double":
		return 8
	case "fixed":
		return n.size
	case "record":
		sum := 0
		for _, f := range n.fields {
			if depth < 20 && sum < 1<<10 {
				sum += f.typ.least(depth + 1)
			}
		}
		return sum
	}
	return 1
}

// Plain is NewPlainer and JSON in one, for a single record.
func Plain(schema string, payload []byte) (json.RawMessage, error) {
	p, err := NewPlainer(schema)
	if err != nil {
		return nil, err
	}
	return p.JSON(payload)
}

func parseNode(raw json.RawMessage, space string, named map[string]*node) (*node, error) {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		for _, full := range []string{s, space + "." + s} {
			if n := named[full]; n != nil {
				return n, nil
			}
		}
		return &node{kind: s, name: s}, nil
	}
	var union []json.RawMessage
	if json.Unmarshal(raw, &union) == nil {
		n := &node{kind: "union"}
		for _, u := range union {
			a, err := parseNode(u, space, named)
			if err != nil {
				return nil, err
			}
			n.alts = append(n.alts, a)
		}
		return n, nil
	}
	var o struct {
		Type                         json.RawMessage
		LogicalType, Name, Namespace string
		Items, Values                json.RawMessage
		Size                         int
		Fields                       []struct {
			Name string
			Type json.RawMessage
		}
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, err
	}
	if json.Unmarshal(o.Type, &s) != nil { // a type in a type
		return parseNode(o.Type, space, named)
	}
	n := &node{kind: s, name: s}
	if o.LogicalType != "" {
		n.name += "." + o.LogicalType
	}
	var err error
	switch s {
	case "array":
		n.elem, err = parseNode(o.Items, space, named)
	case "map":
		n.elem, err = parseNode(o.Values, space, named)
	case "record", "error", "enum", "fixed":
		n.kind = strings.Replace(s, "error", "record", 1)
		if o.Namespace != "" {
			space = o.Namespace
		}
		n.name = o.Name
		if i := strings.LastIndexByte(o.Name, '.'); i >= 0 {
			space = o.Name[:i]
		} else if space != "" {
			n.name = space + "." + o.Name
		}
		n.size = o.Size
		named[n.name] = n
		for _, f := range o.Fields {
			t, err := parseNode(f.Type, space, named)
			if err != nil {
				return nil, err
			}
			n.fields = append(n.fields, nodeField{f.Name, t})
		}
	}
	return n, err
}

func (n *node) write(b *bytes.Buffer, v any) error {
	if n.kind == "union" {
		if v == nil {
			b.WriteString("null")
			return nil
		}
		m, ok := v.(map[string]any)
		if !ok || len(m) != 1 {
			return fmt.Errorf("union value %T", v)
		}
		for name, x := range m {
			for i := range n.alts {
				if n.alts[i].name == name {
					return n.alts[i].write(b, x)
				}
			}
			return fmt.Errorf("union branch %s", name)
		}
	}
	switch x := v.(type) {
	case map[string]any:
		b.WriteByte('{')
		if n.kind == "record" {
			for i, f := range n.fields {
				if i > 0 {
					b.WriteByte(',')
				}
				writeText(b, f.name)
				b.WriteByte(':')
				if err := f.typ.write(b, x[f.name]); err != nil {
					return fmt.Errorf("%s: %w", f.name, err)
				}
			}
		} else {
			if n.elem == nil {
				return errors.New("a map where the schema has none")
			}
			for i, k := range slices.Sorted(maps.Keys(x)) {
				if i > 0 {
					b.WriteByte(',')
				}
				writeText(b, k)
				b.WriteByte(':')
				if err := n.elem.write(b, x[k]); err != nil {
					return fmt.Errorf("%s: %w", k, err)
				}
			}
		}
		b.WriteByte('}')
	case []any:
		if n.elem == nil {
			return errors.New("an array where the schema has none")
		}
		b.WriteByte('[')
		for i, y := range x {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := n.elem.write(b, y); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	case []byte:
		switch {
		case IsPlainJSON(x):
			return json.Compact(b, x)
		case utf8.Valid(x):
			writeText(b, string(x))
		default:
			writeText(b, "base64:"+base64.StdEncoding.EncodeToString(x))
		}
	case string:
		writeText(b, x)
	case time.Time:
		writeText(b, x.UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	case float64:
		writeFloat(b, x)
	case float32:
		writeFloat(b, float64(x))
	case nil:
		b.WriteString("null")
	default:
		j, err := json.Marshal(x)
		if err != nil {
			return err
		}
		b.Write(j)
	}
	return nil
}

// plainDepth is how deep JSON may be nested to be shown as such: jq 1.6, for one, ends at 256.
const plainDepth = 200

// IsPlainJSON says whether bytes can stand in a JSON document for any reader: JSON, in UTF-8 (which encoding/json does not ask for
// inside strings), and not nested so deep that readers give up.
func IsPlainJSON(b []byte) bool {
	if len(b) == 0 || !utf8.Valid(b) || !json.Valid(b) {
		return false
	}
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > plainDepth {
				return false
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return true
}

func writeFloat(b *bytes.Buffer, x float64) {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		writeText(b, fmt.Sprint(x))
		return
	}
	j, _ := json.Marshal(x)
	b.Write(j)
}

func writeText(b *bytes.Buffer, s string) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s)
	b.Truncate(b.Len() - 1)
}
