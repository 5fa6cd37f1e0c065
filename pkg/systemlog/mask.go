package systemlog

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/url"
	"strings"
	"sync"
)

// minKey is the shortest masking key taken: masks of short secrets could be tried out with a guessed one.
const minKey = 16

// minPathSecret is the shortest path segment taken as a token.
const minPathSecret = 16

// Mask replaces secrets by `***` and eight hex digits of a keyed hash, so that equal secrets stay equal and nothing else
// is told. The zero of *Mask, nil, replaces nothing. Safe for concurrent use.
type Mask struct {
	key   []byte
	names *nameSet
}

// NewMask makes a mask. Every process that writes records for one org must use the same key.
func NewMask(key []byte) (*Mask, error) {
	if len(key) < minKey {
		return nil, errors.New("masking key: shorter than 16 bytes; make one with: head -c 32 /dev/urandom | base64")
	}
	return &Mask{key: bytes.Clone(key), names: names()}, nil
}

const maskPrefix = "***"

// Value is what a secret is replaced by.
func (m *Mask) Value(secret string) string {
	h := hmac.New(sha256.New, m.key)
	h.Write([]byte(secret))
	var sum [sha256.Size]byte
	return maskPrefix + hex.EncodeToString(h.Sum(sum[:0])[:4])
}

// isMasked says whether a text is a mask already: an event that is read again stays as it is.
func isMasked(s string) bool {
	if len(s) != len(maskPrefix)+8 || !strings.HasPrefix(s, maskPrefix) {
		return false
	}
	for i := len(maskPrefix); i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// edit is a part of a text and what stands there instead.
type edit struct {
	from, to int
	by       string
}

// applyEdits copies doc with edits made, which are in order and apart.
func applyEdits(doc []byte, edits []edit) []byte {
	out := make([]byte, 0, len(doc)+16*len(edits))
	at := 0
	for _, e := range edits {
		out = append(append(out, doc[at:e.from]...), e.by...)
		at = e.to
	}
	return append(out, doc[at:]...)
}

// names is the list of secrets as a lookup: by folded name, with a filter of first letter and length before it, since
// nearly every key of an event is asked for and nearly none is in it.
var names = sync.OnceValue(func() *nameSet {
	n := &nameSet{byName: map[string]place{}}
	for _, s := range secrets {
		var buf [maxName]byte
		folded := fold(s.name, &buf)
		n.byName[string(folded)] = s.where
		for seps := range 4 { // up to three separators in the name as it comes
			n.lengths[folded[0]-'a'] |= 1 << (len(folded) + seps)
		}
	}
	return n
})

const maxName = 32

type nameSet struct {
	byName  map[string]place
	lengths ['z' - 'a' + 1]uint64
}

func fold(name string, buf *[maxName]byte) []byte {
	n := 0
	for i := range len(name) {
		c := name[i]
		switch {
		case c == '_' || c == '-':
			continue
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		}
		if n == maxName {
			return nil
		}
		buf[n] = c
		n++
	}
	return buf[:n]
}

func (set *nameSet) places(name string) place {
	if name == "" || len(name) > maxName {
		return 0
	}
	c := name[0] | 0x20
	if c < 'a' || c > 'z' || set.lengths[c-'a']&(1<<len(name)) == 0 {
		return 0
	}
	var buf [maxName]byte
	return set.byName[string(fold(name, &buf))]
}

// secretKey says whether a key's value is a secret; debug, whether the key stands in debugData.
func (set *nameSet) secretKey(name string, debug bool) bool {
	p := set.places(name)
	return p&inAny != 0 || debug && p&inData != 0
}

// whole is the edit for a value that is a secret as a whole: the JSON s[from:to], which begins with c.
func (m *Mask) whole(s string, from, to int, c byte) (edit, bool) {
	var secret string
	switch c {
	case 'n', 't', 'f':
		return edit{}, false // null and booleans tell nothing
	case '"':
		secret, _ = unescape(s[from+1:to-1], false)
		if secret == "" || isMasked(secret) {
			return edit{}, false
		}
	default:
		secret = compact(s[from:to])
	}
	return edit{from, to, `"` + m.Value(secret) + `"`}, true
}

// inText notes the secrets inside a string value of the document s.
func (m *Mask) inText(s string, t text, edits []edit) []edit {
	if t.cls&(clsAssign|clsSlash|clsDot|clsEscape) == 0 {
		return edits
	}
	raw := s[t.from:t.to]
	if t.cls&clsEscape == 0 {
		n := len(edits)
		edits = m.find(raw, edits)
		for i := n; i < len(edits); i++ {
			edits[i].from += t.from
			edits[i].to += t.from
		}
		return edits
	}
	plain, _ := unescape(raw, false)
	found := m.find(plain, nil)
	if len(found) == 0 {
		return edits
	}
	_, at := unescape(raw, true)
	for _, e := range found {
		by := strings.ReplaceAll(strings.ReplaceAll(e.by, `\`, `\\`), `"`, `\"`)
		edits = append(edits, edit{t.from + at[e.from], t.from + at[e.to], by})
	}
	return edits
}

// find gives the secrets in a text: JSON is read as JSON, whatever else as names, values and tokens.
func (m *Mask) find(s string, edits []edit) []edit {
	if trimmed := strings.TrimLeft(s, " \t\r\n"); trimmed != "" && (trimmed[0] == '{' || trimmed[0] == '[') {
		r := reader{scanner: scanner{s: s}, mask: m}
		r.skip(true)
		if r.err == nil && r.peek() == 0 && r.i == len(s) {
			return append(edits, r.edits...)
		}
	}
	for i := 0; i < len(s); {
		var e edit
		var ok bool
		switch s[i] {
		case '=':
			e, ok = m.param(s, i, i+1, 0)
		case '%':
			switch {
			case hasFold(s[i:], "%3d"):
				e, ok = m.param(s, i, i+3, 1)
			case hasFold(s[i:], "%253d"):
				e, ok = m.param(s, i, i+5, 2)
			}
		case '/':
			e, ok = m.inPath(s, i)
		case 'e':
			e, ok = m.signed(s, i)
		}
		if ok {
			edits = append(edits, e)
			i = e.to
			continue
		}
		i++
	}
	return edits
}

func hasFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// param is the edit for a parameter whose name ends before end and whose value begins at from. level says how often the
// text was URL-encoded around it.
func (m *Mask) param(s string, end, from, level int) (edit, bool) {
	start := end
	for start > 0 && end-start <= maxName+4 && nameByte(s[start-1]) {
		start--
	}
	first := start == 0
	if start > 0 && s[start-1] == '%' { // the digits of an encoded separator, as in %26code
		switch {
		case hasFold(s[start:end], "253f"), hasFold(s[start:end], "2526"), hasFold(s[start:end], "2523"):
			start += 4
		case end-start >= 2:
			start += 2
		}
		first = true
	} else if start > 0 {
		first = s[start-1] == '?' || s[start-1] == '&' || s[start-1] == '#'
	}
	p := m.names.places(s[start:end])
	if p&inQuery == 0 && (p&inURL == 0 || !first) {
		return edit{}, false
	}
	to := from
	for to < len(s) && !endsValue(s[to:], level) {
		to++
	}
	value := s[from:to]
	if value == "" || isMasked(value) {
		return edit{}, false
	}
	for range level + 1 {
		if plain, err := url.PathUnescape(value); err == nil {
			value = plain
		}
	}
	return edit{from, to, m.Value(value)}, true
}

func endsValue(s string, level int) bool {
	switch s[0] {
	case '&', '#', ';', ',', ' ', '\t', '\r', '\n', '"', '\'', '<', '>', '\\', '(', ')', '[', ']', '{', '}':
		return true
	case '%':
		return level >= 1 && (hasFold(s, "%26") || hasFold(s, "%23")) ||
			level >= 2 && (hasFold(s, "%2526") || hasFold(s, "%2523"))
	}
	return false
}

// inPath is the edit for a token after a part of a URL's path that announces one.
func (m *Mask) inPath(s string, i int) (edit, bool) {
	for _, p := range pathSecrets {
		if !strings.HasPrefix(s[i:], p) {
			continue
		}
		from := i + len(p)
		to := from
		for to < len(s) && (nameByte(s[to]) || s[to] == '.' || s[to] == '~') {
			to++
		}
		if to-from >= minPathSecret {
			return edit{from, to, m.Value(s[from:to])}, true
		}
	}
	return edit{}, false
}

// signed is the edit for a JSON Web Token at i: three parts in base64 of which the first is an object.
func (m *Mask) signed(s string, i int) (edit, bool) {
	if !strings.HasPrefix(s[i:], "eyJ") || i > 0 && nameByte(s[i-1]) {
		return edit{}, false
	}
	to, dots := i, 0
	for ; to < len(s) && (nameByte(s[to]) || s[to] == '.' && dots < 4); to++ { // five parts: an encrypted one
		if s[to] == '.' {
			dots++
		}
	}
	if dots < 2 || to-i < 32 {
		return edit{}, false
	}
	return edit{i, to, m.Value(s[i:to])}, true
}
