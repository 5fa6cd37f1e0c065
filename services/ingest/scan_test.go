package ingest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestElements(t *testing.T) {
	for in, want := range map[string][]string{
		`[]`:                                {},
		` [ ] `:                             {},
		`[1]`:                               {"1"},
		`[ {"a" : [1,{"b":"]"}]} , "x,]" ]`: {`{"a" : [1,{"b":"]"}]}`, `"x,]"`},
		`["a\"]","\\"]`:                     {`"a\"]"`, `"\\"`},
		`[null,true,-1.5e3]`:                {"null", "true", "-1.5e3"},
		"[\"\xff\"]":                        {"\"\xff\""},
	} {
		got, err := elements([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		var texts []string
		for _, e := range got {
			texts = append(texts, string(e))
		}
		if !slices.Equal(texts, want) && len(texts)+len(want) > 0 {
			t.Errorf("%s: %q", in, texts)
		}
	}
	for _, in := range []string{``, `{}`, `[`, `[1`, `[1,`, `[1,]`, `[1 2]`, `["a]`, `[{]`, `<html>`, `[,]`, `"[]"`, `[}`, `[:]`} {
		if got, err := elements([]byte(in)); err == nil {
			t.Errorf("%s: %q, want an error", in, got)
		}
	}
}

func TestHead(t *testing.T) {
	for in, want := range map[string]string{
		`{"uuid":"a"}`:                                "a",
		`{"uuid":"a","uuid":"b"}`:                     "b",
		`{"x":{"uuid":"inner"},"uuid":"a"}`:           "a",
		`{"u\u0075id":"esc\u0061ped"}`:                "escaped",
		`{"uuid":null}`:                               "",
		`{"uuid":""}`:                                 "",
		`{"uuid":"a b"}`:                              "",
		`{"uuid":"a/b"}`:                              "",
		`{"uuid":"` + strings.Repeat("x", 101) + `"}`: "",
		`{"uuid":"a"`:                                 "",
		`[{"uuid":"a"}]`:                              "",
		`{"uuid":"ü"}`:                                "",
		`{"d":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `,"uuid":"deep"}`: "deep",
	} {
		if got := headOf([]byte(in)).uuid; got != want {
			t.Errorf("%.60s: %q, want %q", in, got, want)
		}
	}
	if got := headOf([]byte(`{"uuid":"a","published":"2026-01-02T03:04:05.678Z"}`)).published; !got.Equal(time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)) {
		t.Errorf("published %v", got)
	}
}

func TestClaimsOkta(t *testing.T) {
	full := wrapped(`{"uuid":"x"}`)
	for in, want := range map[string]bool{full: true, full[:120]: true, `{"eventType":"other"}`: false, `hello`: false, ``: false, `{"data":{"eventType":"com.okta.event_hook"}}`: false} {
		if got := claimsOkta([]byte(in)); got != want {
			t.Errorf("%.50s: %v", in, got)
		}
	}
}

// Whatever comes, nothing panics; and where encoding/json reads an array, so do we, element by element and byte for byte.
func FuzzScan(f *testing.F) {
	for _, s := range []string{`[1,{"a":"\\"},[]]`, wrapped(`{"uuid":"x"}`), `{"a":1,"a":2}`, "[\"\xff\"]", `[{"uuid":"a"},null]`, `["\u0041\""]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		headOf(in)
		claimsOkta(in)
		_, _ = readEnvelope(in)
		got, err := elements(in)
		var want []json.RawMessage
		if json.Unmarshal(in, &want) != nil || want == nil {
			return
		}
		if err != nil || len(got) != len(want) {
			t.Fatalf("%q: %d elements, %v; want %d", in, len(got), err, len(want))
		}
		for i := range want {
			if string(got[i]) != string(want[i]) {
				t.Fatalf("%q: element %d is %q, want %q", in, i, got[i], want[i])
			}
		}
		var env struct {
			Data struct{ Events []json.RawMessage }
		}
		if json.Unmarshal(in, &env) == nil && env.Data.Events != nil {
			_, _ = readEnvelope(in)
		}
	})
}

func BenchmarkHead(b *testing.B) {
	event := []byte(`{"actor":{"id":"00u1","type":"User","alternateId":"a@example.com","displayName":"A","detailEntry":null},"client":{"userAgent":{"rawUserAgent":"` + strings.Repeat("Mozilla ", 200) + `"}},"published":"2026-01-02T03:04:05.678Z","uuid":"0a1b"}`)
	b.SetBytes(int64(len(event)))
	for b.Loop() {
		headOf(event)
	}
}
