package systemlog

import (
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is the nesting encoding/json allows; deeper documents are refused by both.
const maxDepth = 10_000

// Classes of bytes inside a JSON string. A scan ors those it meets together, so that one pass over the text tells both
// how to decode it and whether it can hold a secret at all.
const (
	clsQuote  uint8 = 1 << iota
	clsEscape       // backslash
	clsCtrl         // below 0x20: not allowed raw
	clsHigh         // not ASCII
	clsAssign       // '=' or '%': a query parameter, plain or encoded
	clsSlash        // '/': a path
	clsDot          // '.': parts of a signed token
)

var classes = func() (t [256]uint8) {
	for c := range 0x20 {
		t[c] = clsCtrl
	}
	for c := 0x80; c < 0x100; c++ {
		t[c] = clsHigh
	}
	t['"'], t['\\'], t['='], t['%'], t['/'], t['.'] = clsQuote, clsEscape, clsAssign, clsAssign, clsSlash, clsDot
	return t
}()

// text is a JSON string found in a document: the place of what is between the quotes, and the classes of its bytes.
type text struct {
	from, to int
	cls      uint8
}

// scanner walks one JSON document. It accepts what encoding/json accepts, and nothing else. An error is sticky: once
// set, the position is at the end and every step ends at once.
type scanner struct {
	s     string
	i     int
	depth int
	err   *Error
}

func (r *scanner) fail(class, what string) {
	if r.err == nil {
		r.err = &Error{Class: class, Offset: r.i, what: what}
	}
	r.i = len(r.s)
}

func (r *scanner) space() {
	for r.i < len(r.s) {
		switch r.s[r.i] {
		case ' ', '\t', '\n', '\r':
			r.i++
		default:
			return
		}
	}
}

// peek skips blanks and gives the next byte, 0 at the end.
func (r *scanner) peek() byte {
	if r.i < len(r.s) && r.s[r.i] > ' ' {
		return r.s[r.i]
	}
	r.space()
	if r.i < len(r.s) {
		return r.s[r.i]
	}
	return 0
}

func (r *scanner) enter() bool {
	r.depth++
	if r.depth > maxDepth {
		r.fail(ClassTooDeep, "nested deeper than 10000")
		return false
	}
	return true
}

// str reads a string; the position is at its opening quote.
func (r *scanner) str() text {
	from := r.i + 1
	var cls uint8
	for i := from; i < len(r.s); i++ {
		c := classes[r.s[i]]
		if c == 0 {
			continue
		}
		switch c {
		case clsQuote:
			r.i = i + 1
			return text{from, i, cls}
		case clsCtrl:
			r.i = i
			r.fail(ClassNotJSON, "control character in a string")
			return text{}
		case clsEscape:
			i++
			if i >= len(r.s) {
				continue
			}
			switch r.s[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if hex4(r.s[i+1:]) < 0 {
					r.i = i
					r.fail(ClassNotJSON, "bad \\u escape")
					return text{}
				}
				i += 4
			default:
				r.i = i
				r.fail(ClassNotJSON, "unknown escape")
				return text{}
			}
		}
		cls |= c
	}
	r.i = len(r.s)
	r.fail(ClassNotJSON, "unfinished string")
	return text{}
}

// number reads a number literal and gives its text.
func (r *scanner) number() string {
	s, i := r.s, r.i
	from := i
	digits := func() bool {
		n := i
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		return i > n
	}
	if s[i] == '-' {
		i++
	}
	ok := true
	if i < len(s) && s[i] == '0' {
		i++
	} else {
		ok = digits()
	}
	if ok && i < len(s) && s[i] == '.' {
		i++
		ok = digits()
	}
	if ok && i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		i++
		if i < len(s) && (s[i] == '+' || s[i] == '-') {
			i++
		}
		ok = digits()
	}
	r.i = i
	if !ok {
		r.fail(ClassNotJSON, "bad number")
		return ""
	}
	return s[from:i]
}

func (r *scanner) word(w string) {
	if !strings.HasPrefix(r.s[r.i:], w) {
		r.fail(ClassNotJSON, "unknown word")
		return
	}
	r.i += len(w)
}

// next moves to the next member of the object or array that closes with end and says whether there is one. first is
// true before the first member.
func (r *scanner) next(end byte, first bool) bool {
	c := r.peek()
	if c == end {
		r.i++
		r.depth--
		return false
	}
	if first {
		return r.err == nil && c != 0 || r.unfinished()
	}
	if c != ',' {
		if c == 0 {
			return r.unfinished()
		}
		r.fail(ClassNotJSON, "a comma is missing")
		return false
	}
	r.i++
	if r.peek() == end {
		r.fail(ClassNotJSON, "a comma before the end")
		return false
	}
	return true
}

func (r *scanner) unfinished() bool {
	r.fail(ClassNotJSON, "unfinished document")
	return false
}

// key reads the key of the next member and its colon.
func (r *scanner) key() (text, bool) {
	if r.peek() != '"' {
		r.fail(ClassNotJSON, "a key is missing")
		return text{}, false
	}
	k := r.str()
	if r.err != nil {
		return text{}, false
	}
	if r.peek() != ':' {
		r.fail(ClassNotJSON, "a colon is missing")
		return text{}, false
	}
	r.i++
	return k, true
}

// decode gives the value of a string as encoding/json would: escapes resolved, what is no UTF-8 and half surrogates
// replaced by U+FFFD. Without either it is a part of the document itself and nothing is copied.
func (r *scanner) decode(t text) string {
	s := r.s[t.from:t.to]
	if t.cls&clsEscape == 0 && (t.cls&clsHigh == 0 || utf8.ValidString(s)) {
		return s
	}
	out, _ := unescape(s, false)
	return out
}

// unescape resolves the inside of a JSON string. With places it also gives, for each byte of the result and its end,
// where in s it came from.
func unescape(s string, places bool) (string, []int) {
	out := make([]byte, 0, len(s)+utf8.UTFMax)
	var at []int
	add := func(i int, r rune) {
		n := len(out)
		out = utf8.AppendRune(out, r)
		if places {
			for range len(out) - n {
				at = append(at, i)
			}
		}
	}
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '\\':
			from := i
			i += 2
			switch s[from+1] {
			case 'b':
				add(from, '\b')
			case 'f':
				add(from, '\f')
			case 'n':
				add(from, '\n')
			case 'r':
				add(from, '\r')
			case 't':
				add(from, '\t')
			case 'u':
				u := hex4(s[i:])
				i += 4
				if utf16.IsSurrogate(u) {
					low := rune(-1)
					if strings.HasPrefix(s[i:], `\u`) {
						low = hex4(s[i+2:])
					}
					if pair := utf16.DecodeRune(u, low); pair != utf8.RuneError {
						u = pair
						i += 6
					} else {
						u = utf8.RuneError
					}
				}
				add(from, u)
			default:
				add(from, rune(s[from+1]))
			}
		case c < utf8.RuneSelf:
			add(i, rune(c))
			i++
		default:
			u, n := utf8.DecodeRuneInString(s[i:])
			add(i, u)
			i += n
		}
	}
	if places {
		at = append(at, len(s))
	}
	return string(out), at
}

// hex4 gives the value of four hex digits, -1 if they are not there.
func hex4(s string) rune {
	if len(s) < 4 {
		return -1
	}
	var v rune
	for i := range 4 {
		c := s[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		v = v<<4 | rune(c)
	}
	return v
}
