package rule

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func TestDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "14d": 14 * 24 * time.Hour, "5ms": 5 * time.Millisecond, "0s": 0, "0": 0} {
		if got, err := ParseDuration(in, false); err != nil || got != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "-", "5", "s", "1w", "1h 5m", "-5s", "1.5h", "99999999999d", "9999999999h", "1hh"} {
		if got, err := ParseDuration(in, false); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
	if got, err := ParseDuration("-1d", true); err != nil || got != -24*time.Hour {
		t.Error(got, err)
	}
	for _, v := range []time.Duration{0, 90 * time.Second, -25 * time.Hour, 1501 * time.Millisecond} {
		if got, err := ParseDuration(formatDuration(v), true); err != nil || got != v {
			t.Errorf("%v: %v, %v", v, got, err)
		}
	}
}

func TestTemplate(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                           "plain|",
		"${a} and ${b}":                   "<a>| and |<b>|",
		"$${not} ${ {'}': 1}['}'] }x":     "${not} |< {'}': 1}['}'] >|x|",
		`${"a}b"}${r"\}"}${'''it's }'''}`: `<"a}b">|<r"\}">|<'''it's }'''>|`,
		"$ $$ {x}":                        "$ $$ {x}|",
	} {
		d := &document{file: "x", src: []byte(in), lines: []int{0}}
		var b strings.Builder
		for _, p := range parseTemplate(in, place{d, 0}).parts {
			if p.expr {
				b.WriteString("<" + p.text + ">|")
			} else {
				b.WriteString(p.text + "|")
			}
		}
		if b.String() != want || len(d.problems) > 0 {
			t.Errorf("%s: %s %v", in, b.String(), d.problems)
		}
	}
	d := &document{file: "x", src: []byte("a ${b"), lines: []int{0}}
	if parseTemplate("a ${b", place{d, 0}); len(d.problems) != 1 || d.problems[0].Col != 3 {
		t.Error(d.problems)
	}
}

func TestLists(t *testing.T) {
	for name, tc := range map[string]struct{ file, text, want string }{
		"txt":       {"a.txt", "# hosts\n10.0.0.0/8\n\nx\n", ""},
		"csv":       {"a.csv", "owner,value\nme,10.1.1.1\n", ""},
		"yaml":      {"a.yaml", "values: [a, 10.0.0.0/8]\nreplace: true\n", ""},
		"no value":  {"a.csv", "owner,name\nme,x\n", "no column value"},
		"bad csv":   {"a.csv", "value\n\"x\n", "a.csv:2:"},
		"bad name":  {"A-b.txt", "x\n", "list name"},
		"keyword":   {"in.txt", "x\n", "list name"},
		"yaml type": {"a.yaml", "values: [1]\n", "put it in quotes"},
	} {
		t.Run(name, func(t *testing.T) {
			l, ps := ParseList(tc.file, []byte(tc.text))
			if tc.want == "" {
				if len(ps) > 0 || !l.Contains("10.1.1.1") {
					t.Error(ps)
				}
			} else if len(ps) == 0 || !strings.Contains(ps[0].String(), tc.want) {
				t.Error(ps)
			}
		})
	}
	l := newList("x", []listEntry{{value: "10.0.0.0/8"}, {value: "10.1.0.0/16"}, {value: "2001:DB8::/32"}, {value: "Word"}, {value: "0.0.0.0/0"}})
	for s, want := range map[string]int{"10.1.2.3": 1, "10.2.2.3": 0, "2001:db8:1::1": 2, "WORD": 3, "9.9.9.9": 4, "words": -1, "::1": -1, "10.0.0.0/8": 0} {
		i, ok := l.find(s)
		if ok != (want >= 0) || ok && i != want {
			t.Errorf("%s: %d %v", s, i, ok)
		}
	}
}

// disk is a folder that tests change between loads.
type disk struct {
	t      *testing.T
	loader *Loader
	pack   fstest.MapFS
	site   fstest.MapFS
}

func newDisk(t *testing.T) *disk {
	l, err := NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	return &disk{t, l, fstest.MapFS{}, fstest.MapFS{}}
}

func (d *disk) load() (string, string) {
	d.t.Helper()
	set, ps, err := d.loader.Load(Source{Name: "pack", FS: d.pack}, Source{Name: "site", FS: d.site, Site: true})
	if err != nil {
		d.t.Fatal(err)
	}
	var rules, problems []string
	for _, c := range set.Rules {
		rules = append(rules, fmt.Sprintf("%s(%s %s %s)", c.ID, c.Rule.Severity, c.Mode, c.Name))
	}
	for _, p := range ps {
		problems = append(problems, p.String())
	}
	if len(set.Stale) > 0 {
		rules = append(rules, "stale "+strings.Join(set.Stale, " "))
	}
	return strings.Join(rules, " "), strings.Join(problems, "\n")
}

func (d *disk) want(rules, problem string) {
	d.t.Helper()
	got, ps := d.load()
	if got != rules {
		d.t.Errorf("rules %s, want %s (%s)", got, rules, ps)
	}
	if problem == "" && ps != "" || !strings.Contains(ps, problem) {
		d.t.Errorf("problems %q, want %q", ps, problem)
	}
}

func put(fsys fstest.MapFS, name, text string) { fsys[name] = &fstest.MapFile{Data: []byte(text)} }

func simple(id, title, rest string) string {
	return "id: " + id + "\ntitle: " + title + "\nseverity: low\ndetection: {kind: match, where: 'event.eventType == \"a\"'}\n" + rest
}

func TestReloads(t *testing.T) {
	d := newDisk(t)
	put(d.pack, "okta/one/a.yaml", simple("a", "A", "params: {n: 1, words: [x]}\n"))
	put(d.pack, "okta/two/b.yaml", simple("b", "B", ""))
	d.want("a(low alert A) b(low alert B)", "")

	// The site's own replaces the pack's of the same id; gone, the pack's comes back.
	put(d.site, "mine/a.yaml", simple("a", "Mine", "params: {n: 1, words: [x]}\n"))
	d.want("a(low alert Mine) b(low alert B)", "")
	put(d.site, "mine/a.yaml", "id: a\n")
	d.want("a(low alert Mine) b(low alert B) stale site/mine/a.yaml", "site/mine/a.yaml:1:1: missing-key: the rule has no title")
	put(d.site, "mine/a.yaml", simple("a", "Bad CEL", "vars: {x: event.nope}\n"))
	d.want("a(low alert Mine) b(low alert B) stale site/mine/a.yaml", "there is no field nope here")
	delete(d.site, "mine/a.yaml")
	d.want("a(low alert A) b(low alert B)", "")
	put(d.site, "mine/c.yaml", "id: c\n")
	d.want("a(low alert A) b(low alert B)", "site/mine/c.yaml") // never good: left out
	delete(d.site, "mine/c.yaml")

	// Two rules of one id in one source.
	put(d.pack, "okta/two/a.yaml", simple("a", "Again", ""))
	d.want("a(low alert A) b(low alert B)", "rule a is already in pack/okta/one/a.yaml")
	delete(d.pack, "okta/two/a.yaml")

	// Overlays.
	put(d.site, "overlays/1.yaml", "- {rules: [pack:two], severity: high, mode: signal}\n- {rules: [a], params: {n: 5}, labels: {k: v}}\n")
	put(d.site, "overlays/2.yaml", "- {rules: ['*'], severity: critical}\n")
	d.want("a(critical alert A) b(critical signal B)", "")
	put(d.site, "overlays/2.yaml", "- {rules: [aa], severity: critical}\n")
	d.want("a(critical alert A) b(critical signal B) stale site/overlays/2.yaml", "site/overlays/2.yaml:1:12: overlay: no rule is called aa: did you mean a?")
	delete(d.site, "overlays/2.yaml")
	d.want("a(low alert A) b(high signal B)", "")
	for text, problem := range map[string]string{
		"- {rules: [a], params: {n: x}}\n":  "param n of rule a is a int",
		"- {rules: [a], params: {nn: 5}}\n": `rule a has no param nn: did you mean "n"?`,
		"- {rules: [pack:three]}\n":         "no rule is called pack:three",
		"- {rules: [a], severty: high}\n":   `an overlay has no key "severty": did you mean "severity"?`,
		"rules: [a]\n":                      "an overlay file is a map: write a list",
		"- {rules: [a], exceptions: [{name: e, when: event.nope == 1, reason: r}]}\n": "site/overlays/3.yaml:1:50: cel: exception e: there is no field nope here",
	} {
		put(d.site, "overlays/3.yaml", text)
		d.want("a(low alert A) b(high signal B)", problem)
	}
	put(d.site, "overlays/3.yaml", "- {rules: [a], severity: medium}\n")
	d.want("a(medium alert A) b(high signal B)", "")
	for _, text := range []string{"- {rules: [a], severty: high}\n", "- {rules: [none], severity: high}\n"} {
		put(d.site, "overlays/3.yaml", text)
		d.want("a(medium alert A) b(high signal B) stale site/overlays/3.yaml", "site/overlays/3.yaml")
	}
	delete(d.site, "overlays/3.yaml")
	d.want("a(low alert A) b(high signal B)", "")

	// Lib and lists: what breaks keeps the rules that use it as they were.
	put(d.pack, "okta/two/b.yaml", strings.Replace(simple("b", "B", ""), "'event.", "'lib.known && lists.good.contains(event.actor.id) && event.", 1))
	put(d.pack, "lib/x.yaml", "lib: {known: event.actor.id.known()}\n")
	put(d.pack, "lists/good.txt", "00uA\n")
	d.want("a(low alert A) b(high signal B)", "")
	put(d.pack, "lib/x.yaml", "lib: {known: event.actor.idd.known()}\n")
	d.want("a(low alert A) b(high signal B) stale pack/okta/two/b.yaml", "pack/lib/x.yaml:1:25: cel: lib.known: there is no field idd here: did you mean id?")
	put(d.pack, "lib/x.yaml", "lib: {known: event.actor.id.known()}\n")
	delete(d.pack, "lists/good.txt")
	d.want("a(low alert A) b(high signal B) stale pack/okta/two/b.yaml", "lists has no such name")
	put(d.pack, "lists/good.txt", "00uA\n")
	put(d.site, "lists/good.txt", "00uB\n")
	d.want("a(low alert A) b(high signal B)", "")
	if set, _, _ := d.loader.Load(Source{Name: "pack", FS: d.pack}, Source{Name: "site", FS: d.site, Site: true}); !set.Lists["good"].Contains("00uA") || !set.Lists["good"].Contains("00uB") {
		t.Error("the site's list does not add to the pack's")
	}

	// A folder that cannot be read leaves what was read of it.
	gone := fstest.MapFS{}
	set, ps, err := d.loader.Load(Source{Name: "pack", FS: d.pack}, Source{Name: "site", FS: unreadable{gone}, Site: true})
	if err != nil || len(ps) != 1 || !strings.Contains(ps[0].String(), "the folder cannot be read") || set.Rules[1].Rule.Severity != High {
		t.Error(ps, err)
	}
}

type unreadable struct{ fstest.MapFS }

func (unreadable) Open(string) (fs.File, error) { return nil, errors.New("gone") }

func (unreadable) Stat(string) (fs.FileInfo, error) { return nil, errors.New("gone") }

func (unreadable) ReadDir(string) ([]fs.DirEntry, error) { return nil, errors.New("gone") }

func TestHashes(t *testing.T) {
	hashes := func(text string, more ...string) (string, string) {
		files := map[string]string{"p/x.yaml": text, "lib/l.yaml": "lib: {a: event.actor.id == 'x'}\n"}
		for i := 0; i < len(more); i += 2 {
			files[more[i]] = more[i+1]
		}
		set, ps := load(t, files)
		if len(ps) > 0 {
			t.Fatal(ps)
		}
		return set.Rules[0].ContentHash, set.Rules[0].StateHash
	}
	base := "id: x\ntitle: X\nseverity: low\nparams: {n: 1, m: 2}\ndetection: {kind: match, where: 'lib.a && params.n == 1'}\nalert: {context: {m: params.m}}\n"
	c0, s0 := hashes(base)
	for name, tc := range map[string]struct {
		text           string
		more           []string
		content, state bool // differ
	}{
		"same":           {base, nil, false, false},
		"title":          {strings.Replace(base, "title: X", "title: Y", 1), nil, true, false},
		"where":          {strings.Replace(base, "lib.a", "!lib.a", 1), nil, true, true},
		"param used":     {strings.Replace(base, "n: 1", "n: 2", 1), nil, true, true},
		"param of alert": {strings.Replace(base, "m: 2", "m: 3", 1), nil, true, false},
		"lib":            {base, []string{"lib/l.yaml", "lib: {a: event.actor.id == 'y'}\n"}, true, true},
		"unused lib":     {base, []string{"lib/m.yaml", "lib: {b: event.actor.id == 'y'}\n"}, false, false},
		"overlay":        {base, []string{"overlays/o.yaml", "- {rules: [x], severity: high}\n"}, true, false},
		"list":           {base, []string{"lists/a.txt", "x\n"}, false, false},
	} {
		c, s := hashes(tc.text, tc.more...)
		if (c != c0) != tc.content || (s != s0) != tc.state {
			t.Errorf("%s: content differs %v, state differs %v", name, c != c0, s != s0)
		}
	}
}

func TestKindsAreOneList(t *testing.T) {
	if !slices.Contains(Kinds(), KindMatch) {
		t.Error(Kinds())
	}
	for _, c := range Checks {
		if c.ID == "" || !strings.HasSuffix(c.Doc, ".") {
			t.Errorf("%+v", c)
		}
	}
}
