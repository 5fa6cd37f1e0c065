// Package systemlog turns the JSON of one Okta System Log event into a record: the one mapping, used by normalize, by
// rule tests and by eval. An event of the API and the same event as an event hook sends it give the same record.
//
// It is total: a field of the wrong type is left empty and told as a Finding, never a reason to lose the event. The
// mapping itself is not written here but derived from the record, whose schema is the one list of Okta's fields. With a
// Mask, secrets are replaced in the bytes first and the fields are read from what is left, so that no field can show what
// the JSON hides. Where an event came from, which copy it is and who its actor was do not belong here: that is normalize.
package systemlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// maxUUID is the longest text taken as a uuid: it is part of keys and of the dedup memory.
const maxUUID = 128

// maxFindings bounds what one event can say about itself.
const maxFindings = 32

// Why an event cannot be read at all: Error.Class.
const (
	ClassNotJSON   = "not_json"   // the bytes are no JSON document
	ClassTooDeep   = "too_deep"   // nested deeper than encoding/json allows
	ClassNotObject = "not_object" // JSON, but no object
	ClassNoEvent   = "no_event"   // an object with neither uuid nor eventType
)

// Error says why an event cannot be read. Such an event is a dead letter.
type Error struct {
	Class  string
	Offset int // byte offset in the input
	what   string
}

func (e *Error) Error() string {
	return fmt.Sprintf("read system log event: %s at byte %d", e.what, e.Offset)
}

// What can be wrong with one field: Finding.Problem.
const (
	ProblemType  = "wrong_type"   // of a type that cannot be taken
	ProblemRange = "out_of_range" // a number that does not fit, a text that is too long
	ProblemTime  = "bad_time"     // a text that is no time
	ProblemGone  = "missing"      // uuid or eventType is not there
)

// Finding is a field that was there and could not be taken, or one that must be there and was not. Field is Okta's path
// as in the schema, so there are as many different ones as the schema has fields.
type Finding struct {
	Field   string
	Problem string
}

func (f Finding) String() string { return f.Field + ": " + f.Problem }

// FromJSON reads one event. Its bytes end in the record's JSON, but for what mask replaces; a nil mask replaces nothing.
// Only derived.masked is set of the record's derived block. An event without a readable uuid gets one made of its bytes
// and a Finding for the field uuid.
func FromJSON(doc []byte, mask *Mask) (*record.SystemLog, []Finding, error) {
	ev := new(record.SystemLog)
	found, err := Read(bytes.Clone(doc), mask, ev)
	if err != nil {
		return nil, nil, err
	}
	return ev, found, nil
}

// Read is FromJSON into a record of the caller's, which is overwritten, and without copying: doc becomes part of the record
// (its JSON, and what its texts point into) and must not be changed afterwards.
func Read(doc []byte, mask *Mask, ev *record.SystemLog) ([]Finding, error) {
	r := reader{scanner: scanner{s: unsafe.String(unsafe.SliceData(doc), len(doc))}, mask: mask, ev: ev}
	if err := r.read(); err != nil {
		return nil, err
	}
	kept, masked := doc, len(r.edits)
	if masked > 0 {
		kept = applyEdits(doc, r.edits)
		r = reader{scanner: scanner{s: unsafe.String(unsafe.SliceData(kept), len(kept))}, ev: ev}
		if err := r.read(); err != nil {
			return nil, err // the edits broke the document: tests say this cannot be
		}
	}
	ev.JSON = kept
	ev.Derived.Masked = int32(masked)
	if ev.EventType == "" {
		if ev.UUID == "" {
			return nil, &Error{Class: ClassNoEvent, what: "neither uuid nor eventType"}
		}
		r.finding("eventType", ProblemGone)
	}
	if len(ev.UUID) > maxUUID {
		r.finding("uuid", ProblemRange)
		ev.UUID = ""
	}
	if ev.UUID == "" {
		r.finding("uuid", ProblemGone)
		sum := sha256.Sum256(doc)
		id := uuid.UUID(sum[:16])
		id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8: made by us
		ev.UUID = id.String()
	}
	return r.found, nil
}

// maxAhead is how far published may lie after received and still be believed.
const maxAhead = 10 * time.Minute

// EventTime is the event time of a record: published, or received where that is missing, unreadable or more than ten
// minutes after received.
func EventTime(published *time.Time, received time.Time) time.Time {
	if published == nil || published.After(received.Add(maxAhead)) {
		return received
	}
	return *published
}

// reader reads one document into a record.
type reader struct {
	scanner
	mask  *Mask
	edits []edit
	ev    *record.SystemLog
	found []Finding
	moved []moved
}

type moved struct {
	home, field *field
	value       reflect.Value
}

func (r *reader) finding(path, problem string) {
	if len(r.found) < maxFindings {
		r.found = append(r.found, Finding{path, problem})
	}
}

func (r *reader) read() error {
	*r.ev = record.SystemLog{}
	root := reflect.ValueOf(r.ev).Elem()
	if r.peek() == '{' {
		r.object(rootPlan(), root)
	} else {
		r.skip(false)
		if r.err == nil {
			r.i = 0
			r.fail(ClassNotObject, "not an object")
		}
	}
	if r.err == nil && r.peek() != 0 || r.err == nil && r.i < len(r.s) {
		r.fail(ClassNotJSON, "bytes after the end")
	}
	if r.err != nil {
		return r.err
	}
	for _, m := range r.moved {
		home := root.Field(m.home.index)
		if m.home.pointer {
			if home.IsNil() {
				home.Set(reflect.New(m.home.plan.typ))
			}
			home = home.Elem()
		}
		if own := home.Field(m.field.index); own.Len() == 0 {
			own.Set(m.value)
		}
	}
	return nil
}

// object reads an object into the struct v. Of a key that comes twice the last one counts, as in encoding/json.
func (r *reader) object(p *plan, v reflect.Value) {
	if !r.enter() {
		return
	}
	r.i++
	for first := true; r.next('}', first); first = false {
		t, ok := r.key()
		if !ok {
			return
		}
		name := r.decode(t)
		if r.secret(name, false) {
			continue
		}
		f := p.find(name)
		switch {
		case f == nil:
			r.skip(false)
		case f.home != nil:
			r.away(f)
		default:
			r.value(f, v.Field(f.index))
		}
	}
}

// away reads a field that belongs into another section of the record.
func (r *reader) away(f *field) {
	list := reflect.New(reflect.SliceOf(f.plan.typ)).Elem()
	there := r.peek() == '['
	r.value(f, list)
	r.moved = r.moved[:0]
	if there {
		r.moved = append(r.moved, moved{f.home, f, list})
	}
}

// value reads one value into fv, which is the field's zero if it is null or cannot be taken.
func (r *reader) value(f *field, fv reflect.Value) {
	if f.plan != nil && f.plan.lends {
		r.moved = r.moved[:0] // the section comes again: what it held before is gone
	}
	c := r.peek()
	if c == 'n' {
		r.word("null")
		fv.SetZero()
		return
	}
	switch f.kind {
	case kindText:
		switch {
		case c == '"':
			s := r.text()
			if f.zone && s == "null" {
				s = ""
			}
			fv.SetString(s)
			return
		case f.numbers && (c == '-' || c >= '0' && c <= '9'):
			fv.SetString(r.number())
			return
		}
	case kindTime:
		if c == '"' {
			s := r.text()
			at, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				fv.SetZero()
				if s != "" {
					r.finding(f.path, ProblemTime)
				}
				return
			}
			at = at.UTC()
			if f.pointer {
				fv.Set(reflect.ValueOf(&at))
			} else {
				fv.Set(reflect.ValueOf(at))
			}
			return
		}
	case kindInt:
		if c == '-' || c >= '0' && c <= '9' {
			if n, ok := integer(r.number()); !ok || scalar(f, fv).OverflowInt(n) {
				r.finding(f.path, ProblemRange)
				fv.SetZero()
			} else {
				scalar(f, fv).SetInt(n)
			}
			return
		}
	case kindDouble:
		if c == '-' || c >= '0' && c <= '9' {
			if d, err := strconv.ParseFloat(r.number(), 64); err != nil {
				r.finding(f.path, ProblemRange)
				fv.SetZero()
			} else {
				scalar(f, fv).SetFloat(d)
			}
			return
		}
	case kindBool:
		switch c {
		case 't':
			r.word("true")
			scalar(f, fv).SetBool(true)
			return
		case 'f':
			r.word("false")
			scalar(f, fv).SetBool(false)
			return
		}
	case kindObject:
		if c == '{' {
			if !f.pointer {
				fv.SetZero()
				r.object(f.plan, fv)
				return
			}
			o := reflect.New(f.plan.typ)
			r.object(f.plan, o.Elem())
			fv.Set(o)
			return
		}
	case kindObjects, kindTexts:
		if c == '[' {
			r.list(f, fv)
			return
		}
	case kindOpen:
		if c == '{' {
			fv.Set(reflect.ValueOf(r.open(f.debug)))
			return
		}
	}
	if r.skip(false); r.err == nil {
		r.finding(f.path, ProblemType)
		fv.SetZero()
	}
}

// scalar is where the value of a scalar field goes: a new one behind a pointer, the field itself else.
func scalar(f *field, fv reflect.Value) reflect.Value {
	if !f.pointer {
		return fv
	}
	if fv.IsNil() {
		fv.Set(reflect.New(fv.Type().Elem()))
	}
	return fv.Elem()
}

// integer takes a whole number however it is written.
func integer(s string) (int64, bool) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, true
	}
	d, err := strconv.ParseFloat(s, 64)
	if err != nil || d != math.Trunc(d) || math.Abs(d) > 1<<53 {
		return 0, false
	}
	return int64(d), true
}

// list reads an array. A null in it is left out; so is what has the wrong type, which is told.
func (r *reader) list(f *field, fv reflect.Value) {
	if !r.enter() {
		return
	}
	r.i++
	fv.SetZero()
	for first := true; r.next(']', first); first = false {
		c := r.peek()
		switch {
		case c == 'n':
			r.word("null")
		case f.kind == kindTexts && c == '"':
			fv.Set(reflect.Append(fv, reflect.ValueOf(r.text())))
		case f.kind == kindObjects && c == '{':
			n := fv.Len()
			fv.Grow(1)
			fv.SetLen(n + 1)
			o := fv.Index(n)
			o.SetZero()
			r.object(f.plan, o)
		default:
			if r.skip(false); r.err == nil {
				r.finding(f.path+"[]", ProblemType)
			}
		}
	}
}

// open reads an open object: texts as they are, null as an empty text, everything else as compact JSON.
func (r *reader) open(debug bool) map[string]string {
	if !r.enter() {
		return nil
	}
	r.i++
	m := make(map[string]string, 8)
	for first := true; r.next('}', first); first = false {
		t, ok := r.key()
		if !ok {
			break
		}
		name := r.decode(t)
		if r.secret(name, debug) {
			continue
		}
		switch r.peek() {
		case '"':
			m[name] = r.text()
		case 'n':
			r.word("null")
			m[name] = ""
		case '{', '[':
			from := r.i
			r.skip(debug)
			if r.err == nil {
				m[name] = compact(r.s[from:r.i])
			}
		default:
			from := r.i
			r.skip(debug)
			if r.err == nil {
				m[name] = r.s[from:r.i]
			}
		}
	}
	return m
}

// compact writes an object or array as encoding/json writes the value it decodes to; numbers keep their digits.
func compact(s string) string {
	d := json.NewDecoder(bytes.NewReader([]byte(s)))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return s // valid by the scanner's word
	}
	out, err := json.Marshal(v)
	if err != nil {
		return s
	}
	return string(out)
}

// text reads a string value and notes what is secret in it.
func (r *reader) text() string {
	t := r.str()
	if r.err != nil {
		return ""
	}
	if r.mask != nil {
		r.edits = r.mask.inText(r.s, t, r.edits)
	}
	return r.decode(t)
}

// secret reads the value of a key that carries a secret and notes it. False: the key carries none, nothing was read.
func (r *reader) secret(name string, debug bool) bool {
	if r.mask == nil || !r.mask.names.secretKey(name, debug) {
		return false
	}
	c := r.peek()
	from := r.i
	mask := r.mask
	r.mask = nil
	r.skip(false)
	r.mask = mask
	if r.err != nil {
		return true
	}
	e, ok := mask.whole(r.s, from, r.i, c)
	if ok {
		r.edits = append(r.edits, e)
		return true
	}
	r.i = from
	return false
}

// skip reads a value of any shape. Secrets are noted in it too.
func (r *reader) skip(debug bool) {
	switch c := r.peek(); {
	case c == '"':
		if t := r.str(); r.err == nil && r.mask != nil {
			r.edits = r.mask.inText(r.s, t, r.edits)
		}
	case c == '{':
		if !r.enter() {
			return
		}
		r.i++
		for first := true; r.next('}', first); first = false {
			t, ok := r.key()
			if !ok {
				return
			}
			if r.mask == nil || !r.secret(r.decode(t), debug) {
				r.skip(debug)
			}
		}
	case c == '[':
		if !r.enter() {
			return
		}
		r.i++
		for first := true; r.next(']', first); first = false {
			r.skip(debug)
		}
	case c == 't':
		r.word("true")
	case c == 'f':
		r.word("false")
	case c == 'n':
		r.word("null")
	case c == '-' || c >= '0' && c <= '9':
		r.number()
	case c == 0 && r.i >= len(r.s):
		r.unfinished()
	default:
		r.fail(ClassNotJSON, "no value")
	}
}
