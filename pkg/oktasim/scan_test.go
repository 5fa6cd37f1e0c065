package oktasim

import (
	"encoding/json"
	"testing"
)

// Whatever JSON object comes, its hook shape is JSON and says the same, but for what hooks lack; whatever else comes stays as it is.
func FuzzHookShape(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1}`, `{"client":{},"request":{"ipChain":[]}}`, `{"client":null,"request":{"ipChain":[{"ip":"1.2.3.4"}]}}`, `{"client":{"a":"}\""},"request":null}`,
		` { "securityContext" : null , "device":{"id":"x"} , "\u0061":[[],{}] } `, `[]`, `nonsense`, `{"a":`, `{"a"`, `{`, `{"a":tru}`, `{"client": { } ,"request":{"ipChain":[1]}}`, "{\"\xff\":1}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got := hookShape(nil, raw)
		var in, out map[string]json.RawMessage
		if json.Unmarshal(raw, &in) != nil || in == nil {
			return
		}
		if err := json.Unmarshal(got, &out); err != nil {
			t.Fatalf("%q gives %q: %v", raw, got, err)
		}
		if string(out["device"]) != "null" || string(out["insertionTimestamp"]) != "null" {
			t.Fatalf("%q gives %q", raw, got)
		}
		for k, v := range in {
			switch k {
			case "device", "insertionTimestamp", "securityContext", "client", "request":
				continue
			}
			if string(out[k]) != string(v) {
				t.Fatalf("%q: %q became %q", k, v, out[k])
			}
		}
	})
}

func TestPositionsOnlyGrow(t *testing.T) {
	p := position{}
	for i, ms := range []int64{5, 5, 7, 6, 6, 7, 8} {
		q := after(p, ms)
		if !p.less(q) {
			t.Errorf("%d: %v after %v", i, q, p)
		}
		back, ok := parsePosition(q.String())
		if !ok || back != q {
			t.Errorf("%v is written %s", q, q)
		}
		p = q
	}
	for _, s := range []string{"", "5", "_", "a_1", "1_b", "-1_1", "1_-1", "1_99999999999"} {
		if _, ok := parsePosition(s); ok {
			t.Errorf("%q is taken", s)
		}
	}
}
