package systemlog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// The reference: the same mapping done slowly, from encoding/json's generic values and the schema's own text, with
// nothing of the package's. It gives a generic value; shape gives the same of a record.

type reference struct{ named map[string]map[string]any }

func newReference(t testing.TB) (reference, map[string]any) {
	t.Helper()
	for _, s := range record.Schemas() {
		if s.Name != "system_log" {
			continue
		}
		var schema map[string]any
		if err := json.Unmarshal([]byte(s.Text), &schema); err != nil {
			t.Fatal(err)
		}
		r := reference{map[string]map[string]any{}}
		r.collect(schema)
		return r, schema
	}
	t.Fatal("no schema system_log")
	return reference{}, nil
}

func (r reference) collect(v any) {
	switch v := v.(type) {
	case map[string]any:
		if v["type"] == "record" {
			r.named[v["name"].(string)] = v
		}
		for _, x := range v {
			r.collect(x)
		}
	case []any:
		for _, x := range v {
			r.collect(x)
		}
	}
}

func (r reference) want(typ any, name, path string, v any) any {
	switch typ := typ.(type) {
	case []any:
		if v == nil {
			return nil
		}
		return r.want(typ[1], name, path, v)
	case string:
		switch typ {
		case "string":
			switch v := v.(type) {
			case string:
				if path == "client.zone" && v == "null" {
					return ""
				}
				return v
			case json.Number:
				if name == "version" || name == "postalCode" {
					return v.String()
				}
			}
			return ""
		case "long":
			if n, ok := v.(json.Number); ok {
				if i, err := n.Int64(); err == nil {
					return i
				}
				if f, err := n.Float64(); err == nil && f == math.Trunc(f) && math.Abs(f) <= 1<<53 {
					return int64(f)
				}
			}
			return nil
		case "double":
			if n, ok := v.(json.Number); ok {
				if f, err := n.Float64(); err == nil {
					return f
				}
			}
			return nil
		case "boolean":
			if b, ok := v.(bool); ok {
				return b
			}
			return nil
		}
		return r.want(r.named[typ], name, path, v)
	case map[string]any:
		switch typ["type"] {
		case "long": // timestamp-millis
			if s, ok := v.(string); ok {
				if at, err := time.Parse(time.RFC3339Nano, s); err == nil {
					return at.UTC()
				}
			}
			return nil
		case "map":
			out := map[string]any{}
			m, _ := v.(map[string]any)
			for k, x := range m {
				switch x := x.(type) {
				case nil:
					out[k] = ""
				case string:
					out[k] = x
				default:
					b, err := json.Marshal(x)
					if err != nil {
						panic(err)
					}
					out[k] = string(b)
				}
			}
			return out
		case "array":
			out := []any{}
			l, _ := v.([]any)
			for _, x := range l {
				if typ["items"] == "string" {
					if s, ok := x.(string); ok {
						out = append(out, s)
					}
				} else if m, ok := x.(map[string]any); ok {
					out = append(out, r.want(typ["items"], name, path+"[]", m))
				}
			}
			return out
		case "record":
			m, ok := v.(map[string]any)
			if !ok {
				return nil
			}
			out := map[string]any{}
			for _, f := range typ["fields"].([]any) {
				f := f.(map[string]any)
				if f["okta"] == nil {
					continue
				}
				name := f["name"].(string)
				at := name
				if path != "" {
					at = path + "." + name
				}
				x := m[name]
				if f["okta_also"] == "client.ipChain" {
					x = m["ipChain"]
				}
				out[name] = r.want(f["type"], name, at, x)
			}
			return out
		}
	}
	panic(fmt.Sprintf("schema type %v", typ))
}

// root moves the hook's chain to where the API has it, then maps.
func (r reference) root(schema map[string]any, v any) any {
	m := v.(map[string]any)
	client, _ := m["client"].(map[string]any)
	own, _ := r.chain(m["request"])
	if also, ok := client["ipChain"].([]any); ok && len(objects(own)) == 0 {
		request := map[string]any{"ipChain": also}
		m["request"] = request
	}
	return r.want(schema, "", "", v)
}

func (r reference) chain(request any) ([]any, bool) {
	m, _ := request.(map[string]any)
	l, ok := m["ipChain"].([]any)
	return l, ok
}

func objects(l []any) []any {
	var out []any
	for _, x := range l {
		if _, ok := x.(map[string]any); ok {
			out = append(out, x)
		}
	}
	return out
}

// shape gives a record as the reference's generic value.
func shape(v reflect.Value, root bool) any {
	if at, ok := reflect.TypeAssert[time.Time](v); ok {
		return at
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return shape(v.Elem(), root)
	case reflect.Struct:
		out := map[string]any{}
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("avro")
			if root && ours[name] {
				continue
			}
			out[name] = shape(v.Field(i), false)
		}
		return out
	case reflect.Slice:
		out := []any{}
		for i := range v.Len() {
			out = append(out, shape(v.Index(i), false))
		}
		return out
	case reflect.Map:
		out := map[string]any{}
		for k, x := range v.Seq2() {
			out[k.String()] = x.String()
		}
		return out
	case reflect.Int32, reflect.Int64:
		return v.Int()
	default:
		return v.Interface()
	}
}

// agree reads doc both ways and compares everything: whether it can be read, and what is in the record.
func agree(t interface {
	Helper()
	Errorf(string, ...any)
}, r reference, schema map[string]any, doc []byte,
) {
	t.Helper()
	ev, _, err := FromJSON(doc, nil)
	var v any
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	valid := json.Valid(doc)
	if valid {
		if err := d.Decode(&v); err != nil {
			t.Errorf("reference: %v", err)
			return
		}
	}
	m, isObject := v.(map[string]any)
	id, _ := m["uuid"].(string)
	kind, _ := m["eventType"].(string)
	if readable := valid && isObject && (id != "" || kind != ""); readable != (err == nil) {
		t.Errorf("encoding/json says readable %v, FromJSON says %v: %.200q", readable, err, doc)
		return
	}
	if err != nil {
		return
	}
	if id == "" || len(id) > maxUUID {
		m["uuid"] = ev.UUID
	}
	if diff := cmp.Diff(r.root(schema, v), shape(reflect.ValueOf(ev), true)); diff != "" {
		t.Errorf("reference and FromJSON differ (-reference +FromJSON) on %.2000q:\n%s", doc, diff)
	}
	if !bytes.Equal(ev.JSON, doc) {
		t.Errorf("json is not the input")
	}
}

// value draws any JSON value, hostile texts included.
func value(depth int) *rapid.Generator[string] {
	scalars := rapid.SampledFrom([]string{
		"null", "true", "false", "0", "-1", "7922", "1.5", "1e3", "1e999", "12345678901234567890", "-0.0",
		`""`, `"null"`, `"x"`, `"2026-01-05T10:00:00.123Z"`, `"2017-09-31T22:23:07.777Z"`, `"2026-01-05T10:00:00+02:00"`,
		`"\ud83d\ude00"`, `"\ud83d"`, `"\ude00x"`, `"\ud83d\ud83d\ude00"`, "\"\xff\xfe\"", `"a\u0000b"`, `"\"\\\/\b\f\n\r\t"`, `"<&>"`, "\"é\"",
	})
	if depth == 0 {
		return scalars
	}
	inner := value(depth - 1)
	return rapid.OneOf(scalars,
		rapid.Custom(func(t *rapid.T) string {
			var b bytes.Buffer
			b.WriteByte('[')
			for i, x := range rapid.SliceOfN(inner, 0, 3).Draw(t, "list") {
				if i > 0 {
					b.WriteString(", ")
				}
				b.WriteString(x)
			}
			return b.String() + "]"
		}),
		rapid.Custom(func(t *rapid.T) string {
			keys := rapid.SliceOfN(rapid.SampledFrom([]string{
				"id", "type", "ipChain", "geographicalContext", "geolocation", "lat", "postalCode", "version", "detailEntry", "ip", "from", "to",
				"changeDetails", "zone", "k", `k\u0061`, "ID", "debugData", "risk", "reasons", "ipDetails", "asNumber",
			}), 0, 4).Draw(t, "keys")
			var b bytes.Buffer
			b.WriteByte('{')
			for i, k := range keys {
				if i > 0 {
					b.WriteByte(',')
				}
				b.WriteString(`"` + k + `" : ` + inner.Draw(t, "value"))
			}
			return b.String() + "}"
		}))
}

func TestAgreesWithReferenceOnDrawnEvents(t *testing.T) {
	r, schema := newReference(t)
	keys := []string{
		"uuid", "published", "eventType", "version", "severity", "actor", "target", "client", "request", "device", "outcome", "transaction",
		"debugContext", "authenticationContext", "securityContext", "json", "derived", "enrichment", "more", "insertionTimestamp",
	}
	rapid.Check(t, func(t *rapid.T) {
		var b bytes.Buffer
		b.WriteString(`{"uuid":"u"`)
		for _, k := range rapid.SliceOfN(rapid.SampledFrom(keys), 0, 8).Draw(t, "keys") {
			b.WriteString("\t," + strconv.Quote(k) + ":" + value(4).Draw(t, "value"))
		}
		b.WriteString("}\n")
		agree(t, r, schema, b.Bytes())
	})
}

// Damage to a full event: what one byte does, encoding/json and FromJSON see alike.
func TestAgreesWithReferenceOnDamagedEvents(t *testing.T) {
	r, schema := newReference(t)
	docs := fixtures(t)
	rapid.Check(t, func(t *rapid.T) {
		doc := bytes.Clone(rapid.SampledFrom(docs).Draw(t, "doc"))
		for range rapid.IntRange(0, 3).Draw(t, "damages") {
			if len(doc) == 0 {
				break
			}
			i := rapid.IntRange(0, len(doc)-1).Draw(t, "at")
			switch rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				doc[i] = rapid.Byte().Draw(t, "byte")
			case 1:
				doc = append(doc[:i], doc[i+1:]...)
			case 2:
				doc = doc[:max(i, 1)]
			}
		}
		agree(t, r, schema, doc)
	})
}

func FuzzFromJSON(f *testing.F) {
	r, schema := newReference(f)
	for _, doc := range fixtures(f) {
		f.Add(doc)
	}
	mask := testMask(f)
	f.Fuzz(func(t *testing.T, doc []byte) {
		agree(t, r, schema, doc)
		if ev, _, err := FromJSON(doc, mask); err == nil && !json.Valid(ev.JSON) {
			t.Errorf("masking broke the document: %q became %q", doc, ev.JSON)
		}
	})
}
