package record

import (
	"strings"
	"time"
)

// Section is a top-level field of a System Log record, the unit a view decodes. The zero Section is none.
type Section uint8

// String is the field's name.
func (s Section) String() string {
	if s > sectionCount {
		return ""
	}
	return sectionNames[s]
}

// SectionOf finds a section by its name, the zero Section when there is none.
func SectionOf(name string) Section {
	for i, n := range sectionNames {
		if n == name {
			return Section(i)
		}
	}
	return 0
}

// SectionSet is a set of sections.
type SectionSet uint32

// Add returns the set with s in it.
func (x SectionSet) Add(s Section) SectionSet { return x | 1<<s }

// Has says whether s is in the set.
func (x SectionSet) Has(s Section) bool { return x&(1<<s) != 0 }

// String lists the names, in the order of the bytes.
func (x SectionSet) String() string {
	var out []string
	for s := Section(1); s <= sectionCount; s++ {
		if x.Has(s) {
			out = append(out, s.String())
		}
	}
	return strings.Join(out, " ")
}

// Kind is the kind of value of a field; it says which getter is set.
type Kind uint8

// The kinds, with the getter each sets.
const (
	KindString  Kind = 1 + iota // Str
	KindInt                     // Int
	KindDouble                  // Double
	KindBool                    // Bool
	KindTime                    // Time
	KindBytes                   // Bytes
	KindStrings                 // Strings
	KindMap                     // Map
	KindObject                  // Obj
	KindObjects                 // Len and At
)

// ObjectType is one record type with its fields.
type ObjectType struct {
	Name, Doc string
	Fields    []Field
}

// Field is one field of an object type. Getters take a pointer to the object's struct (of SystemLog a *SystemLogView) and
// are total: from a nil pointer they give the zero value. Their bool says that the value is there and not null; for a text
// that it is not empty, for the record's json tells no more.
type Field struct {
	Name     string
	Kind     Kind
	Object   string // type of an object or of a list's objects
	Nullable bool
	Section  Section // 0 where the type lies in several: the first name of the path tells
	Okta     string  // path in Okta's event, list elements as []
	OktaAlso string  // second path that an event hook uses
	Doc      string
	Origin   string

	Str     func(o any) (string, bool)
	Int     func(o any) (int64, bool)
	Double  func(o any) (float64, bool)
	Bool    func(o any) (bool, bool)
	Time    func(o any) (time.Time, bool)
	Bytes   func(o any) []byte
	Strings func(o any) []string
	Map     func(o any) map[string]string
	Obj     func(o any) (any, bool)
	Len     func(o any) int
	At      func(o any, i int) any
}
