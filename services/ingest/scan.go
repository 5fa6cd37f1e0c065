package ingest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The scanner cuts JSON into pieces without looking into them: it knows strings and nesting, no more, so that no depth, no broken
// escape and no bad UTF-8 inside one event can spoil its neighbours. Whether a piece is an event is normalize's to say.

var errJSON = errors.New("not JSON")

func spaces(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipString returns the place after the string that begins at i.
func skipString(b []byte, i int) (int, error) {
	for i++; i < len(b); {
		switch n := bytes.IndexByte(b[i:], '"'); {
		case n < 0:
			return 0, fmt.Errorf("%w: a string does not end", errJSON)
		default:
			end := i + n
			slashes := 0
			for end-1-slashes >= i && b[end-1-slashes] == '\\' {
				slashes++
			}
			if slashes%2 == 0 {
				return end + 1, nil
			}
			i = end + 1
		}
	}
	return 0, fmt.Errorf("%w: a string does not end", errJSON)
}

// skipValue returns the place after the value that begins at i.
func skipValue(b []byte, i int) (int, error) {
	if i >= len(b) {
		return 0, fmt.Errorf("%w: it ends where a value should be", errJSON)
	}
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		depth := 0
		for i < len(b) {
			switch b[i] {
			case '"':
				end, err := skipString(b, i)
				if err != nil {
					return 0, err
				}
				i = end
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1, nil
				}
			}
			i++
		}
		return 0, fmt.Errorf("%w: %d brackets are not closed", errJSON, depth)
	}
	start := i
	for i < len(b) {
		switch b[i] {
		case ',', ']', '}', ' ', '\t', '\n', '\r', ':', '"', '[', '{':
			if i == start {
				return 0, fmt.Errorf("%w: %q where a value should be", errJSON, b[i])
			}
			return i, nil
		}
		i++
	}
	return i, nil
}

// elements cuts an array. The pieces share b's memory.
func elements(b []byte) ([]json.RawMessage, error) {
	i := spaces(b, 0)
	if i >= len(b) || b[i] != '[' {
		return nil, fmt.Errorf("%w: want an array", errJSON)
	}
	var out []json.RawMessage
	i = spaces(b, i+1)
	if i < len(b) && b[i] == ']' {
		return out, nil
	}
	for {
		i = spaces(b, i)
		end, err := skipValue(b, i)
		if err != nil {
			return nil, err
		}
		out = append(out, json.RawMessage(b[i:end:end]))
		i = spaces(b, end)
		if i >= len(b) {
			return nil, fmt.Errorf("%w: the array does not end", errJSON)
		}
		switch b[i] {
		case ']':
			return out, nil
		case ',':
			i++
		default:
			return nil, fmt.Errorf("%w: %q between two elements", errJSON, b[i])
		}
	}
}

// members calls visit with each key (decoded) and value of an object, stops early when visit says no, and returns the place after it.
func members(b []byte, visit func(key string, value []byte) bool) (int, error) {
	i := spaces(b, 0)
	if i >= len(b) || b[i] != '{' {
		return 0, fmt.Errorf("%w: want an object", errJSON)
	}
	i = spaces(b, i+1)
	if i < len(b) && b[i] == '}' {
		return i + 1, nil
	}
	for {
		i = spaces(b, i)
		if i >= len(b) || b[i] != '"' {
			return 0, fmt.Errorf("%w: want a key", errJSON)
		}
		end, err := skipString(b, i)
		if err != nil {
			return 0, err
		}
		key := text(b[i:end])
		i = spaces(b, end)
		if i >= len(b) || b[i] != ':' {
			return 0, fmt.Errorf("%w: want a colon", errJSON)
		}
		i = spaces(b, i+1)
		end, err = skipValue(b, i)
		if err != nil {
			return 0, err
		}
		if !visit(key, b[i:end]) {
			return end, nil
		}
		i = spaces(b, end)
		if i >= len(b) {
			return 0, fmt.Errorf("%w: the object does not end", errJSON)
		}
		switch b[i] {
		case '}':
			return i + 1, nil
		case ',':
			i++
		default:
			return 0, fmt.Errorf("%w: %q between two members", errJSON, b[i])
		}
	}
}

// text decodes a string value; of what is no string it is empty.
func text(value []byte) string {
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return ""
	}
	inside := value[1 : len(value)-1]
	if bytes.IndexByte(inside, '\\') < 0 {
		return string(inside)
	}
	var s string
	if json.Unmarshal(value, &s) != nil {
		return ""
	}
	return s
}

// head is what ingest reads of an event. Of a member told twice the last one counts, as for every reader after us.
type head struct {
	uuid      string // empty: none that can be a key
	published time.Time
}

const maxUUID = 100 // Okta's have 36

func headOf(event []byte) head {
	var h head
	_, err := members(event, func(key string, value []byte) bool {
		switch key {
		case "uuid":
			h.uuid = text(value)
		case "published":
			h.published, _ = time.Parse(time.RFC3339Nano, text(value))
		}
		return true
	})
	if err != nil || !usableUUID(h.uuid) {
		h.uuid = ""
	}
	return h
}

func usableUUID(s string) bool {
	if s == "" || len(s) > maxUUID {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '/' {
			return false
		}
	}
	return true
}

// envelope is an event hook's body.
type envelope struct {
	delivery string
	okta     bool // says that it is Okta's
	events   []json.RawMessage
}

const envelopeType = "com.okta.event_hook"

func readEnvelope(body []byte) (envelope, error) {
	var e envelope
	var data []byte
	end, err := members(body, func(key string, value []byte) bool {
		switch key {
		case "eventId":
			e.delivery = text(value)
		case "eventType":
			e.okta = text(value) == envelopeType
		case "data":
			data = value
		}
		return true
	})
	if err != nil {
		return e, err
	}
	if spaces(body, end) != len(body) {
		return e, fmt.Errorf("%w: something follows the object", errJSON)
	}
	var list []byte
	if data != nil {
		_, err = members(data, func(key string, value []byte) bool {
			if key == "events" {
				list = value
			}
			return true
		})
	}
	if err != nil || list == nil {
		return e, errors.New("no data.events in the body")
	}
	if e.events, err = elements(list); err != nil {
		return e, fmt.Errorf("data.events: %w", err)
	}
	return e, nil
}

// claimsOkta says whether the beginning of a body looks like an event hook's, for bodies that may be cut off.
func claimsOkta(start []byte) bool {
	found := false
	_, _ = members(start, func(key string, value []byte) bool {
		if key == "eventType" && text(value) == envelopeType {
			found = true
		}
		return !found
	})
	return found
}
