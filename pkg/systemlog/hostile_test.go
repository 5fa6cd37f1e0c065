package systemlog

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// The time an event takes is bounded by its size, whatever somebody puts into the texts an event carries.
func TestHostileTextsTakeLinearTime(t *testing.T) {
	const size = 1 << 20
	fill := func(s string) string { return strings.Repeat(s, size/len(s)) }
	nested := `"x"`
	for len(nested) < size/4 {
		b, err := json.Marshal(`{"a":` + nested + `,"stateToken":"s"}`)
		if err != nil {
			t.Fatal(err)
		}
		nested = string(b)
	}
	m := testMask(t)
	for name, text := range map[string]string{
		"equal signs":        fill("="),
		"encoded ones":       fill("%3D"),
		"twice encoded":      fill("%253D"),
		"parameters":         fill("&token=x"),
		"empty parameters":   fill("token="),
		"one long name":      strings.Repeat("a", size-1) + "=",
		"mail links":         fill("/welcome/"),
		"token beginnings":   fill("eyJ."),
		"token parts":        fill("eyJabcdef.eyJabcdef."),
		"dots":               fill("."),
		"slashes":            fill("/"),
		"escapes":            fill("\"\\"),
		"lists without end":  fill("["),
		"objects":            "[" + fill(`{"token":"a"},`) + "1]",
		"almost objects":     fill(`{"a":`),
		"texts in a list":    "[" + fill(`"{",`) + "1]",
		"json in json":       nested,
		"not UTF-8":          fill("\xff"),
		"surrogates by half": fill("\ud7ff"),
	} {
		t.Run(name, func(t *testing.T) {
			value, err := json.Marshal(text)
			if err != nil {
				t.Fatal(err)
			}
			doc := []byte(`{"uuid":"u","eventType":"e","debugContext":{"debugData":{"x":` + string(value) + `}}}`)
			began := time.Now()
			ev, _, err := FromJSON(doc, m)
			if err != nil || !json.Valid(ev.JSON) {
				t.Fatal(err)
			}
			// Some ten times what it takes on a busy machine; what grows with the square takes minutes.
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%d bytes took %v", len(doc), took)
			} else if took > 300*time.Millisecond {
				t.Logf("%d bytes took %v", len(doc), took)
			}
		})
	}
}
