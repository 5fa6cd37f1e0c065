package rule

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
)

// Names of the CEL types that the language speaks of.
const (
	typeEvent       = "Event"
	typeTarget      = "Target"
	typeRisk        = "Risk"
	typeUser        = "User"
	typeDevice      = "DeviceProfile"
	typeDetection   = "Detection"
	typeBaseline    = "Baseline"
	typeKeyBaseline = "KeyBaseline"
	typeList        = "List"
)

// fieldKind is the sort of a field's value.
type fieldKind uint8

const (
	kindString fieldKind = 1 + iota
	kindInt
	kindDouble
	kindBool
	kindTime
	kindStrings
	kindStringMap
	kindIntMap
	kindObject
	kindObjects
)

// objectType is one object type of the language: a type of the typed, total record.
type objectType struct {
	name   string
	typ    *types.Type
	fields []*field
	byName map[string]*field
}

// field is one field of an object type. Of its getters the one of its kind is set. They take the Go value behind an
// object, which is never nil, and are total; the bool tells whether the field is there.
type field struct {
	name  string
	kind  fieldKind
	elem  string // type name of object and objects
	slot  int
	owner *objectType
	ft    *types.FieldType

	str  func(o any) (string, bool)
	num  func(o any) (int64, bool)
	dbl  func(o any) (float64, bool)
	bol  func(o any) (bool, bool)
	tim  func(o any) (time.Time, bool)
	strs func(o any) []string
	smap func(o any) map[string]string
	imap func(o any) map[string]int64
	obj  func(o any) (any, bool)

	length  func(o any) int
	at      func(o any, i int) any
	ofEvent func(e *Event) (any, bool) // instead of obj
}

// typeSystem is every object type by name. It is immutable once built.
type typeSystem struct {
	byName map[string]*objectType
}

func (ts *typeSystem) add(name string, fields []*field) *objectType {
	t := &objectType{name: name, typ: types.NewObjectType(name, traits.FieldTesterType, traits.IndexerType), byName: map[string]*field{}}
	for _, f := range fields {
		f.slot, f.owner = len(t.fields), t
		t.fields = append(t.fields, f)
		t.byName[f.name] = f
	}
	ts.byName[name] = t
	return t
}

// link gives every field its CEL type and accessors.
func (ts *typeSystem) link() error {
	for _, t := range ts.byName {
		for _, f := range t.fields {
			var ct *types.Type
			switch f.kind {
			case kindString:
				ct = types.StringType
			case kindInt:
				ct = types.IntType
			case kindDouble:
				ct = types.DoubleType
			case kindBool:
				ct = types.BoolType
			case kindTime:
				ct = types.TimestampType
			case kindStrings:
				ct = types.NewListType(types.StringType)
			case kindStringMap:
				ct = types.NewMapType(types.StringType, types.StringType)
			case kindIntMap:
				ct = types.NewMapType(types.StringType, types.IntType)
			case kindObject, kindObjects:
				et := ts.byName[f.elem]
				if et == nil {
					return fmt.Errorf("field %s.%s is of unknown type %s", t.name, f.name, f.elem)
				}
				if ct = et.typ; f.kind == kindObjects {
					ct = types.NewListType(et.typ)
				}
			}
			f.ft = &types.FieldType{
				Type:    ct,
				IsSet:   func(o any) bool { return isSet(f, o) },
				GetFrom: func(o any) (any, error) { return getField(f, o) },
			}
		}
	}
	return nil
}

func getField(f *field, o any) (any, error) {
	obj, ok := o.(*object)
	if !ok || obj.t != f.owner {
		return nil, fmt.Errorf("%s is no field of %T", f.name, o)
	}
	return obj.get(f), nil
}

func isSet(f *field, o any) bool {
	obj, ok := o.(*object)
	return ok && obj.t == f.owner && obj.present(f)
}

func (o *object) present(f *field) bool {
	v := o.v
	if v == nil {
		return false
	}
	switch f.kind {
	case kindString:
		_, ok := f.str(v)
		return ok
	case kindInt:
		_, ok := f.num(v)
		return ok
	case kindDouble:
		_, ok := f.dbl(v)
		return ok
	case kindBool:
		_, ok := f.bol(v)
		return ok
	case kindTime:
		_, ok := f.tim(v)
		return ok
	case kindStrings:
		return len(f.strs(v)) > 0
	case kindStringMap:
		return len(f.smap(v)) > 0
	case kindIntMap:
		return len(f.imap(v)) > 0
	case kindObject:
		_, ok := o.child(f)
		return ok
	default:
		return f.length(v) > 0
	}
}

// object is a value of an object type: a Go value seen through its type's getters. What was read once is kept, so
// that a value is boxed once an event.
type object struct {
	t     *objectType
	v     any
	heap  *heap
	slots []ref.Val
	event *Event // set for the event itself
}

// heap hands out the memory that the values of one event need, again for each event.
type heap struct {
	types *typeSystem
	vals  []ref.Val
	objs  []object
}

func (h *heap) reset() {
	clear(h.vals)
	h.vals = h.vals[:0]
	clear(h.objs)
	h.objs = h.objs[:0]
}

func (h *heap) slots(n int) []ref.Val {
	if cap(h.vals)-len(h.vals) < n {
		h.vals = make([]ref.Val, 0, max(2*cap(h.vals), n, 64))
	}
	at := len(h.vals)
	h.vals = h.vals[:at+n]
	return h.vals[at : at+n : at+n]
}

func (h *heap) object(t *objectType, v any) *object {
	if len(h.objs) == cap(h.objs) {
		h.objs = make([]object, 0, max(2*cap(h.objs), 16))
	}
	h.objs = h.objs[:len(h.objs)+1]
	o := &h.objs[len(h.objs)-1]
	*o = object{t: t, v: v, heap: h}
	return o
}

func (o *object) get(f *field) ref.Val {
	if o.slots == nil {
		o.slots = o.heap.slots(len(o.t.fields))
	}
	if v := o.slots[f.slot]; v != nil {
		return v
	}
	v := o.read(f)
	o.slots[f.slot] = v
	return v
}

// child is the object behind a field.
func (o *object) child(f *field) (any, bool) {
	if f.ofEvent != nil {
		if o.event == nil {
			return nil, false
		}
		return f.ofEvent(o.event)
	}
	return f.obj(o.v)
}

// read is total: in an empty object every field is empty.
func (o *object) read(f *field) ref.Val {
	if o.v == nil {
		return o.empty(f)
	}
	switch f.kind {
	case kindString:
		s, _ := f.str(o.v)
		return types.String(s)
	case kindInt:
		n, _ := f.num(o.v)
		return types.Int(n)
	case kindDouble:
		x, _ := f.dbl(o.v)
		return types.Double(x)
	case kindBool:
		b, _ := f.bol(o.v)
		return types.Bool(b)
	case kindTime:
		t, ok := f.tim(o.v)
		if !ok {
			t = time.Unix(0, 0).UTC()
		}
		return types.Timestamp{Time: t}
	case kindStrings:
		return stringList(f.strs(o.v))
	case kindStringMap:
		return stringMap(f.smap(o.v))
	case kindIntMap:
		return intMap(f.imap(o.v))
	case kindObject:
		v, ok := o.child(f)
		if !ok {
			v = nil
		}
		return o.heap.object(o.heap.types.byName[f.elem], v)
	default:
		t := o.heap.types.byName[f.elem]
		vals := make([]ref.Val, f.length(o.v))
		for i := range vals {
			vals[i] = o.heap.object(t, f.at(o.v, i))
		}
		return types.NewRefValList(types.DefaultTypeAdapter, vals)
	}
}

func (o *object) empty(f *field) ref.Val {
	switch f.kind {
	case kindString:
		return types.String("")
	case kindInt:
		return types.IntZero
	case kindDouble:
		return types.Double(0)
	case kindBool:
		return types.False
	case kindTime:
		return types.Timestamp{Time: time.Unix(0, 0).UTC()}
	case kindStringMap:
		return stringMap(nil)
	case kindIntMap:
		return intMap(nil)
	case kindObject:
		return o.heap.object(o.heap.types.byName[f.elem], nil)
	default:
		return types.NewRefValList(types.DefaultTypeAdapter, nil)
	}
}

// ConvertToNative implements ref.Val.
func (o *object) ConvertToNative(t reflect.Type) (any, error) {
	if reflect.TypeOf(o).AssignableTo(t) {
		return o, nil
	}
	return nil, fmt.Errorf("%s is not to be had as %v", o.t.name, t)
}

// ConvertToType implements ref.Val.
func (o *object) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case o.t.typ:
		return o
	case types.TypeType:
		return o.t.typ
	}
	return types.NewErr("%s cannot become %s", o.t.name, t.TypeName())
}

// Equal implements ref.Val: objects are equal when all their fields are.
func (o *object) Equal(other ref.Val) ref.Val {
	p, ok := other.(*object)
	if !ok || p.t != o.t {
		return types.False
	}
	if p == o {
		return types.True
	}
	for _, f := range o.t.fields {
		if o.get(f).Equal(p.get(f)) != types.True {
			return types.False
		}
	}
	return types.True
}

// Type implements ref.Val.
func (o *object) Type() ref.Type { return o.t.typ }

// Value implements ref.Val.
func (o *object) Value() any { return o }

// Get implements traits.Indexer, for values whose type CEL does not know beforehand.
func (o *object) Get(index ref.Val) ref.Val {
	name, _ := index.(types.String)
	if f := o.t.byName[string(name)]; f != nil {
		return o.get(f)
	}
	return types.NewErr("%s has no field %s", o.t.name, name)
}

// IsSet implements traits.FieldTester.
func (o *object) IsSet(index ref.Val) ref.Val {
	name, _ := index.(types.String)
	f := o.t.byName[string(name)]
	return types.Bool(f != nil && o.present(f))
}

func stringList(s []string) ref.Val {
	vals := make([]ref.Val, len(s))
	for i, e := range s {
		vals[i] = types.String(e)
	}
	return types.NewRefValList(types.DefaultTypeAdapter, vals)
}

// totalMap is a map of texts in which a missing key reads as the empty value.
type totalMap[V any] struct {
	m    map[string]V
	zero ref.Val
	box  func(V) ref.Val
}

func stringMap(m map[string]string) ref.Val {
	return &totalMap[string]{m, types.String(""), func(s string) ref.Val { return types.String(s) }}
}

func intMap(m map[string]int64) ref.Val {
	return &totalMap[int64]{m, types.IntZero, func(n int64) ref.Val { return types.Int(n) }}
}

func (m *totalMap[V]) key(k ref.Val) (V, bool) {
	s, ok := k.(types.String)
	if !ok {
		var none V
		return none, false
	}
	v, ok := m.m[string(s)]
	return v, ok
}

// Find implements traits.Mapper: every key is found.
func (m *totalMap[V]) Find(k ref.Val) (ref.Val, bool) { return m.Get(k), true }

// Get implements traits.Indexer.
func (m *totalMap[V]) Get(k ref.Val) ref.Val {
	if v, ok := m.key(k); ok {
		return m.box(v)
	}
	return m.zero
}

// Contains implements traits.Container: it tells what is really there.
func (m *totalMap[V]) Contains(k ref.Val) ref.Val {
	_, ok := m.key(k)
	return types.Bool(ok)
}

// Size implements traits.Sizer.
func (m *totalMap[V]) Size() ref.Val { return types.Int(len(m.m)) }

// Iterator implements traits.Iterable: keys in order, so that nothing depends on Go's map order.
func (m *totalMap[V]) Iterator() traits.Iterator {
	keys := make([]ref.Val, 0, len(m.m))
	for _, k := range m.sorted() {
		keys = append(keys, types.String(k))
	}
	return types.NewRefValList(types.DefaultTypeAdapter, keys).Iterator()
}

// Fold implements traits.Foldable.
func (m *totalMap[V]) Fold(f traits.Folder) {
	for _, k := range m.sorted() {
		if !f.FoldEntry(types.String(k), m.box(m.m[k])) {
			return
		}
	}
}

func (m *totalMap[V]) sorted() []string {
	keys := make([]string, 0, len(m.m))
	for k := range m.m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// ConvertToNative implements ref.Val.
func (m *totalMap[V]) ConvertToNative(t reflect.Type) (any, error) {
	if reflect.TypeOf(m.m).AssignableTo(t) {
		return m.m, nil
	}
	return nil, fmt.Errorf("a map is not to be had as %v", t)
}

// ConvertToType implements ref.Val.
func (m *totalMap[V]) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return m
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("a map cannot become %s", t.TypeName())
}

// Equal implements ref.Val.
func (m *totalMap[V]) Equal(other ref.Val) ref.Val {
	o, ok := other.(traits.Mapper)
	if !ok || o.Size() != m.Size() {
		return types.False
	}
	for k, v := range m.m {
		w, found := o.Find(types.String(k))
		if !found || o.Contains(types.String(k)) != types.True || m.box(v).Equal(w) != types.True {
			return types.False
		}
	}
	return types.True
}

// Type implements ref.Val.
func (m *totalMap[V]) Type() ref.Type { return types.MapType }

// Value implements ref.Val.
func (m *totalMap[V]) Value() any { return m.m }

// provider tells cel-go of our types and leaves the rest to the standard one.
type provider struct {
	types.Provider
	types *typeSystem
}

// FindIdent implements types.Provider.
func (p *provider) FindIdent(name string) (ref.Val, bool) {
	if t := p.types.byName[name]; t != nil {
		return t.typ, true
	}
	return p.Provider.FindIdent(name)
}

// FindStructType implements types.Provider.
func (p *provider) FindStructType(name string) (*types.Type, bool) {
	if t := p.types.byName[name]; t != nil {
		return types.NewTypeTypeWithParam(t.typ), true
	}
	return p.Provider.FindStructType(name)
}

// FindStructFieldNames implements types.Provider.
func (p *provider) FindStructFieldNames(name string) ([]string, bool) {
	if t := p.types.byName[name]; t != nil {
		names := make([]string, len(t.fields))
		for i, f := range t.fields {
			names[i] = f.name
		}
		return names, true
	}
	return p.Provider.FindStructFieldNames(name)
}

// FindStructFieldType implements types.Provider.
func (p *provider) FindStructFieldType(name, fieldName string) (*types.FieldType, bool) {
	if t := p.types.byName[name]; t != nil {
		if f := t.byName[fieldName]; f != nil {
			return f.ft, true
		}
		return nil, false
	}
	return p.Provider.FindStructFieldType(name, fieldName)
}

// NewValue implements types.Provider: objects come from records only.
func (p *provider) NewValue(name string, fields map[string]ref.Val) ref.Val {
	if p.types.byName[name] != nil {
		return types.NewErr("a %s cannot be written in a rule", name)
	}
	return p.Provider.NewValue(name, fields)
}

// describe names a CEL type as the language's page does.
func describe(t *types.Type) string {
	s := t.String()
	return strings.NewReplacer("google.protobuf.Timestamp", "timestamp", "google.protobuf.Duration", "duration").Replace(s)
}
