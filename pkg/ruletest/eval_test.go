package ruletest_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
)

func TestReadEvents(t *testing.T) {
	const a = `{"uuid":"a","published":"2026-01-05T10:00:01.000Z","eventType":"t"}`
	const b = `{"uuid":"b","published":"2026-01-05T10:00:02.000Z","eventType":"t"}`
	for name, tc := range map[string]struct {
		text    string
		n       int
		skipped string // lines
	}{
		"nothing":                  {"", 0, ""},
		"blank":                    {"\n \r\n\n", 0, ""},
		"lines":                    {a + "\n" + b, 2, ""},
		"lines of Windows":         {"\xef\xbb\xbf" + a + "\r\n" + b + "\r\n", 2, ""},
		"an array":                 {"[" + a + "," + b + "]", 2, ""},
		"arrays and lines":         {"[" + a + "]\n" + b + "\n[]\n", 2, ""},
		"an array over lines":      {"[\n" + a + ",\n" + b + "\n]\n{", 2, "5"},
		"an event over lines":      {strings.ReplaceAll(a, ",", ",\n") + "\n" + b + "\nx", 2, "5"},
		"two in a line":            {a + " " + b, 2, ""},
		"copies":                   {a + "\n" + a + "\n" + b, 2, ""},
		"no JSON":                  {"x\n" + a + "\n{y\n" + b, 2, "1 3"},
		"no time":                  {`{"uuid":"c","eventType":"t"}` + "\n" + a, 1, "1"},
		"no event":                 {`{}` + "\n[1]\n" + a, 1, "1 2"},
		"a broken array":           {"[" + a + ",{\n" + b, 2, "1"},
		"a broken end":             {a + "\n" + b[:20], 1, "2"},
		"the same uuid, two times": {a + "\n" + strings.Replace(a, ":01", ":03", 1) + "\n" + a, 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var skipped []string
			in, err := ruletest.ReadEvents(strings.NewReader(tc.text), int64(len(tc.text)), "eval", func(line int, _ error) { skipped = append(skipped, fmt.Sprint(line)) })
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(skipped, " "); in.Len() != tc.n || got != tc.skipped {
				t.Errorf("%d events, skipped lines %q; want %d, %q", in.Len(), got, tc.n, tc.skipped)
			}
		})
	}
}

// TestEvalTellsReusedUUIDs sees to it that two events of one uuid are two detections, as in the pipeline.
func TestEvalTellsReusedUUIDs(t *testing.T) {
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: fstest.MapFS{"x.yaml": {Data: []byte("id: x\ntitle: X\nseverity: low\ndetection: {kind: match, where: event.eventType == \"t\"}\n")}}})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	const text = `{"uuid":"a","published":"2026-01-05T10:00:01.000Z","eventType":"t"}
{"uuid":"a","published":"2026-01-05T10:00:02.000Z","eventType":"t"}
`
	in, err := ruletest.ReadEvents(strings.NewReader(text), int64(len(text)), "eval", func(int, error) {})
	if err != nil {
		t.Fatal(err)
	}
	in.Sort()
	ids := map[string]string{}
	err = ruletest.Eval(set, in, ruletest.Report{
		Found:    func(d *record.Detection) error { ids[d.ID] = d.EvidenceUUIDs[0]; return nil },
		Failed:   func(err error) { t.Error(err) },
		Late:     func(id string) { t.Errorf("late for %s", id) },
		Limited:  func(id, what string) { t.Errorf("%s: %s", id, what) },
		Excepted: func(string, string) {},
	})
	if err != nil || len(ids) != 2 {
		t.Errorf("detections of %v, %v; want two", ids, err)
	}
}
