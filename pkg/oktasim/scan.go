package oktasim

import (
	"encoding/json"
	"errors"
	"time"
)

// member is one key of a JSON object with its value's bytes as sent.
type member struct {
	key   string
	value []byte
}

var errNoObject = errors.New("not a JSON object")

// members splits a valid JSON object into its members without touching their bytes.
func members(b []byte) ([]member, error) {
	i := skipSpace(b, 0)
	if i >= len(b) || b[i] != '{' {
		return nil, errNoObject
	}
	var ms []member
	for i = skipSpace(b, i+1); i < len(b) && b[i] != '}'; i = skipSpace(b, i) {
		if b[i] == ',' {
			i = skipSpace(b, i+1)
		}
		k := skipValue(b, i)
		if k < 0 || b[i] != '"' {
			return nil, errNoObject
		}
		var key string
		if err := json.Unmarshal(b[i:k], &key); err != nil {
			return nil, errNoObject
		}
		i = skipSpace(b, k)
		if i >= len(b) || b[i] != ':' {
			return nil, errNoObject
		}
		i = skipSpace(b, i+1)
		v := skipValue(b, i)
		if v < 0 {
			return nil, errNoObject
		}
		ms = append(ms, member{key, b[i:v]})
		i = v
	}
	if i >= len(b) {
		return nil, errNoObject
	}
	return ms, nil
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the index after the JSON value at i, or -1. It trusts the bytes to be JSON and only finds their ends.
func skipValue(b []byte, i int) int {
	if i >= len(b) {
		return -1
	}
	switch b[i] {
	case '"':
		for i++; i < len(b); i++ {
			switch b[i] {
			case '\\':
				i++
			case '"':
				return i + 1
			}
		}
		return -1
	case '{', '[':
		for depth := 0; i < len(b); i++ {
			switch b[i] {
			case '"':
				j := skipValue(b, i)
				if j < 0 {
					return -1
				}
				i = j - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
		return -1
	}
	start := i
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' && b[i] != ' ' && b[i] != '\n' && b[i] != '\r' && b[i] != '\t' {
		i++
	}
	if i == start {
		return -1
	}
	return i
}

// peekString reads one string member, empty when there is none.
func peekString(b []byte, key string) string {
	ms, err := members(b)
	if err != nil {
		return ""
	}
	for _, m := range ms {
		if m.key == key {
			var s string
			if json.Unmarshal(m.value, &s) == nil {
				return s
			}
		}
	}
	return ""
}

// draftOf makes a draft of somebody's bytes: whatever they are, they are stored as they are.
func draftOf(raw []byte, now time.Time) draft {
	d := draft{raw: raw, odd: true, pub: now}
	ms, err := members(raw)
	if err != nil {
		return d
	}
	for _, m := range ms {
		var s string
		if json.Unmarshal(m.value, &s) != nil {
			continue
		}
		switch m.key {
		case "uuid":
			if u, ok := parseUUID(s); ok {
				d.uuid, d.odd = u, false
			}
		case "eventType":
			if len(s) <= 255 {
				d.typ = s
			}
		case "published":
			if t, err := time.Parse(time.RFC3339, s); err == nil {
				d.pub = t
			}
		}
	}
	return d
}

// hookShape turns an event as the System Log has it into the one hooks carry: client.ipChain instead of request.ipChain, no
// device, every member of the security context null, insertionTimestamp. Bytes that are no object stay as they are.
func hookShape(dst, raw []byte) []byte {
	ms, err := members(raw)
	if err != nil {
		return append(dst, raw...)
	}
	var chain []byte
	for _, m := range ms {
		if m.key == "request" {
			if rs, err := members(m.value); err == nil {
				for _, r := range rs {
					if r.key == "ipChain" {
						chain = r.value
					}
				}
			}
		}
	}
	dst = append(dst, '{')
	for _, m := range ms {
		switch m.key {
		case "request", "device", "insertionTimestamp":
			continue
		}
		dst = append(appendJSON(dst, m.key), ':')
		switch m.key {
		case "securityContext":
			dst = append(dst, `{"asNumber":null,"asOrg":null,"isp":null,"domain":null,"isProxy":null}`...)
		case "client":
			v := m.value
			if v[0] == '{' && chain != nil {
				dst = append(dst, v[:len(v)-1]...)
				if skipSpace(v, 1) != len(v)-1 {
					dst = append(dst, ',')
				}
				dst = append(append(append(dst, `"ipChain":`...), chain...), '}')
			} else {
				dst = append(dst, v...)
			}
		default:
			dst = append(dst, m.value...)
		}
		dst = append(dst, ',')
	}
	return append(dst, `"device":null,"insertionTimestamp":null}`...)
}

// appendJSON appends s as a JSON string.
func appendJSON(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= 0x7f {
			b, err := json.Marshal(s)
			if err != nil {
				b = []byte(`""`)
			}
			return append(dst, b...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}
