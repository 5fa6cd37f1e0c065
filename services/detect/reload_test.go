package detect

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/oktawatch/oktawatch/pkg/rule"
)

// TestStartEmpty names the rules that learn and have to begin anew: new ones and those changed under detection.
func TestStartEmpty(t *testing.T) {
	novel := kindRules["novel"]
	load := func(files map[string]string) *rule.Set {
		t.Helper()
		fsys := fstest.MapFS{}
		for name, text := range files {
			fsys["p/"+name+".yaml"] = &fstest.MapFile{Data: []byte(text)}
		}
		l, err := rule.NewLoader()
		if err != nil {
			t.Fatal(err)
		}
		set, problems, err := l.Load(rule.Source{Name: "rules", FS: fsys})
		if err != nil || len(problems) > 0 {
			t.Fatal(err, problems)
		}
		return set
	}
	old := load(map[string]string{"novel": novel, "chain": kindRules["chain"]})
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"the same":                {map[string]string{"novel": novel, "chain": kindRules["chain"]}, ""},
		"another title":           {map[string]string{"novel": strings.Replace(novel, "An address", "Addresses", 1)}, ""},
		"a longer memory":         {map[string]string{"novel": strings.Replace(novel, "30d", "60d", 1)}, "novel"},
		"switched off":            {map[string]string{"novel": strings.Replace(strings.Replace(novel, "30d", "60d", 1), "severity: info", "severity: info\nmode: disabled", 1)}, ""},
		"one more":                {map[string]string{"novel": novel, "other": strings.Replace(novel, "id: novel", "id: other", 1)}, "other"},
		"one that does not learn": {map[string]string{"novel": novel, "chain": strings.Replace(kindRules["chain"], "10m", "20m", 1)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, r := range startEmpty(old, load(c.files)) {
				got = append(got, r.ID)
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("%q, want %q", s, c.want)
			}
		})
	}
}
