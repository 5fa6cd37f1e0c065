package rule

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// Source is a folder of rules. Below it, lib/ holds shared expressions, lists/ lists, overlays/ overlays, testdata/
// test data; every other .yaml file is a rule, but for pack.yaml, which describes its folder.
type Source struct {
	Name  string // goes before file names in problems
	FS    fs.FS
	Site  bool // the user's own: rules replace those of earlier sources, lists add to theirs
	Holds Holds
}

// Holds says what the files of a source are.
type Holds uint8

// The sorts of sources.
const (
	HoldsRules    Holds = iota // as the folders say
	HoldsLists                 // lists only
	HoldsOverlays              // overlays only
)

// Pack is a folder of rules that people switch on and off as one.
type Pack struct {
	Name, Title, Description string
}

// Set is the rules in force: immutable, to be swapped as a whole.
type Set struct {
	Rules []*Compiled // of any org without own overlays, by id
	Packs []Pack      // by name
	Lists map[string]*List
	Stale []string // files whose last good version is in force
	Hash  string   // of all content: two replicas with one hash judge alike

	byOrg map[string][]*Compiled
	scope *scope
}

// For gives the rules as they are for an org.
func (s *Set) For(org string) []*Compiled {
	if rs, ok := s.byOrg[org]; ok {
		return rs
	}
	return s.Rules
}

// Orgs lists the orgs that have rules of their own.
func (s *Set) Orgs() []string { return slices.Sorted(maps.Keys(s.byOrg)) }

// Rule finds a rule by id.
func (s *Set) Rule(id string) (*Compiled, bool) {
	i, ok := slices.BinarySearchFunc(s.Rules, id, func(c *Compiled, id string) int { return strings.Compare(c.ID, id) })
	if !ok {
		return nil, false
	}
	return s.Rules[i], true
}

// NewEvent makes the reader through which the rules of this set see records.
func (s *Set) NewEvent() *Event {
	return &Event{lists: s.Lists, heap: heap{types: s.scope.lang.types}}
}

// Only gives a set of one rule of s, with the params and lists of a test in place of its own. Overlays are left out.
func (s *Set) Only(r *Rule, params []Param, lists map[string][]string) (*Set, []Problem) {
	n := *r
	doc := *r.doc
	doc.problems = nil
	n.doc = &doc
	n.Params = slices.Clone(r.Params)
	for _, p := range params {
		i := slices.IndexFunc(n.Params, func(q Param) bool { return q.Name == p.Name })
		if i < 0 {
			return nil, []Problem{{r.File, 1, 1, checkValue, fmt.Sprintf("a test sets param %s, which the rule does not have", p.Name)}}
		}
		v, ok := paramAs(n.Params[i].Value, p.Value)
		if !ok {
			return nil, []Problem{{r.File, 1, 1, checkValue, fmt.Sprintf("a test sets param %s to another type than %s", p.Name, paramTypeName(n.Params[i].Value))}}
		}
		n.Params[i].Value = v
	}
	out := &Set{scope: s.scope, Lists: maps.Clone(s.Lists)}
	if len(lists) > 0 {
		for name, values := range lists {
			entries := make([]listEntry, len(values))
			for i, v := range values {
				entries[i].value = v
			}
			out.Lists[name] = newList(name, entries)
		}
		sc, err := s.scope.lang.scope(s.scope.libs, out.Lists)
		if err != nil {
			return nil, []Problem{{r.File, 1, 1, checkCEL, err.Error()}}
		}
		out.scope = sc
	}
	n.rebase()
	c := out.scope.compile(&n)
	if c == nil {
		return nil, sortProblems(doc.problems)
	}
	out.Rules = link([]*Compiled{c})
	return out, nil
}

// rebase points the rule's expressions at its own document, so that what is found wrong lands there.
func (r *Rule) rebase() {
	old := func(e Expr) Expr { e.at.doc = r.doc; return e }
	r.Detection.rebase(old)
	r.Vars = slices.Clone(r.Vars)
	for i := range r.Vars {
		r.Vars[i].Expr = old(r.Vars[i].Expr)
	}
	r.Exceptions = slices.Clone(r.Exceptions)
	for i := range r.Exceptions {
		r.Exceptions[i].When = old(r.Exceptions[i].When)
	}
	r.Alert.SeverityWhen = slices.Clone(r.Alert.SeverityWhen)
	for i := range r.Alert.SeverityWhen {
		r.Alert.SeverityWhen[i].When = old(r.Alert.SeverityWhen[i].When)
	}
	r.Alert.Context = slices.Clone(r.Alert.Context)
	for i := range r.Alert.Context {
		r.Alert.Context[i].Expr = old(r.Alert.Context[i].Expr)
	}
	r.Alert.DedupKey = slices.Clone(r.Alert.DedupKey)
	for i := range r.Alert.DedupKey {
		r.Alert.DedupKey[i] = old(r.Alert.DedupKey[i])
	}
	r.Title.at.doc = r.doc
}

// Loader reads folders of rules again and again and keeps, for each file, the last version that was good.
type Loader struct {
	lang     *language
	files    map[string][]byte    // by full name, last read
	good     map[string][]byte    // by full name, last good text
	compiled map[string]*Compiled // by full name and org
	lists    map[string]*List
	overlays map[string][]*overlay // by full name, last that fitted the rules
}

// NewLoader makes a loader that has read nothing.
func NewLoader() (*Loader, error) {
	l, err := newLanguage()
	if err != nil {
		return nil, err
	}
	return &Loader{lang: l, files: map[string][]byte{}, good: map[string][]byte{}, compiled: map[string]*Compiled{}, lists: map[string]*List{}}, nil
}

// fileKind is what a file in a source is.
type fileKind uint8

const (
	ruleFile fileKind = iota
	packFile
	libFile
	listFile
	overlayFile
	otherFile
)

func kindOfFile(p string, h Holds) fileKind {
	dirs := strings.Split(path.Dir(p), "/")
	isYAML := path.Ext(p) == ".yaml" || path.Ext(p) == ".yml"
	switch {
	case h == HoldsLists && (isYAML || path.Ext(p) == ".txt" || path.Ext(p) == ".csv"):
		return listFile
	case h == HoldsOverlays && isYAML:
		return overlayFile
	case h != HoldsRules:
		return otherFile
	case slices.Contains(dirs, "testdata"):
		return otherFile
	case slices.Contains(dirs, "lists"):
		return listFile
	case !isYAML:
		return otherFile
	case slices.Contains(dirs, "lib"):
		return libFile
	case slices.Contains(dirs, "overlays"):
		return overlayFile
	case path.Base(p) == "pack.yaml":
		return packFile
	}
	return ruleFile
}

type sourceFile struct {
	source int
	name   string // with the source's name before it
	path   string // in the source
	kind   fileKind
	site   bool
	src    []byte
}

// read lists all files of a source. Where a folder cannot be read, what was read of it last time stays.
func (l *Loader) read(i int, s Source, problems *[]Problem) []sourceFile {
	var out []sourceFile
	err := fs.WalkDir(s.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") && p != "." {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		kind := kindOfFile(p, s.Holds)
		if d.IsDir() || kind == otherFile {
			return nil
		}
		name := path.Join(s.Name, p)
		src, rerr := readBounded(s.FS, p, kind)
		if rerr != nil {
			if errors.Is(rerr, fs.ErrNotExist) {
				return nil // gone between listing and reading
			}
			*problems = append(*problems, Problem{name, 0, 0, checkRead, fmt.Sprintf("cannot be read: %v", rerr)})
			if src = l.files[name]; src == nil {
				return nil
			}
		}
		out = append(out, sourceFile{i, name, p, kind, s.Site, src})
		return nil
	})
	if err != nil {
		*problems = append(*problems, Problem{s.Name, 0, 0, checkRead, fmt.Sprintf("the folder cannot be read, what was read of it before stays in force: %v", err)})
		out = nil
		for _, name := range slices.Sorted(maps.Keys(l.files)) {
			if p, ok := strings.CutPrefix(name, s.Name+"/"); ok {
				out = append(out, sourceFile{i, name, p, kindOfFile(p, s.Holds), s.Site, l.files[name]})
			}
		}
	}
	return out
}

func readBounded(fsys fs.FS, p string, kind fileKind) ([]byte, error) {
	f, err := fsys.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	limit := int64(MaxFileBytes + 1)
	if kind == listFile {
		limit = maxListBytes + 1
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// Load reads the sources, later ones over earlier ones, and gives the rules in force with everything found wrong. A
// refused file keeps its last good version in force; without one it is left out. Only an error of the language itself
// gives no set.
func (l *Loader) Load(sources ...Source) (*Set, []Problem, error) {
	var problems []Problem
	var files []sourceFile
	for i, s := range sources {
		files = append(files, l.read(i, s, &problems)...)
	}
	stale := map[string]bool{}
	sum := sha256.New()
	now := map[string][]byte{}
	for _, f := range files {
		now[f.name] = f.src
	}
	maps.DeleteFunc(l.good, func(name string, _ []byte) bool { return now[name] == nil })
	l.files = now

	set := &Set{byOrg: map[string][]*Compiled{}}
	libs, libDocs := l.loadLibs(files, &problems, stale)
	l.loadLists(files, set, &problems, stale)
	l.loadPacks(files, set, &problems)
	sc, err := l.lang.scope(nil, set.Lists)
	if err != nil {
		return nil, problems, err
	}
	progs, _, _ := sc.compileNamed(sc.env, libs, "lib")
	for _, d := range libDocs {
		problems = append(problems, d.problems...)
	}
	if sc, err = l.lang.scope(progs, set.Lists); err != nil {
		return nil, problems, err
	}
	set.scope = sc

	rules := l.loadRules(files, &problems, stale)
	overlays := l.loadOverlays(files, &problems, stale)
	l.compileAll(set, rules, overlays, &problems, stale)

	for _, c := range set.Rules {
		fmt.Fprintln(sum, c.ID, c.ContentHash)
	}
	for _, org := range set.Orgs() {
		for _, c := range set.byOrg[org] {
			fmt.Fprintln(sum, org, c.ID, c.ContentHash)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set.Lists)) {
		fmt.Fprintf(sum, "%s %v\n", name, set.Lists[name].entries)
	}
	set.Hash = hex.EncodeToString(sum.Sum(nil)[:16])
	maps.DeleteFunc(stale, func(_ string, is bool) bool { return !is })
	set.Stale = slices.Sorted(maps.Keys(stale))
	problems = slices.Compact(sortProblems(problems))
	return set, problems, nil
}

// lastGood tries a file's text, then its last good text.
func lastGood[T any](l *Loader, f sourceFile, parse func(file string, src []byte) (T, []Problem), problems *[]Problem, stale map[string]bool) (T, bool) {
	v, ps := parse(f.name, f.src)
	if len(ps) == 0 {
		l.good[f.name] = f.src
		return v, true
	}
	*problems = append(*problems, ps...)
	old, ok := l.good[f.name]
	if !ok || bytes.Equal(old, f.src) {
		return v, false
	}
	if v, ps = parse(f.name, old); len(ps) > 0 {
		return v, false
	}
	stale[f.name] = true
	return v, true
}

type libEntries struct {
	named []Named
	doc   *document
}

func parseLib(file string, src []byte) (libEntries, []Problem) {
	d, root := parseYAML(file, src)
	if root == nil {
		return libEntries{}, d.problems
	}
	var out libEntries
	if fs, ok := d.fields(root, "a lib file", "lib"); ok {
		if p, ok := fs["lib"]; ok {
			out = libEntries{readNamed(d, p.value, "lib"), d}
		} else {
			d.add(0, checkMissing, "the file has no lib: write lib: with name: CEL below it")
		}
	}
	return out, d.problems
}

func (l *Loader) loadLibs(files []sourceFile, problems *[]Problem, stale map[string]bool) ([]Named, []*document) {
	var out []Named
	var docs []*document
	from := map[string]sourceFile{}
	for _, f := range files {
		if f.kind != libFile {
			continue
		}
		e, ok := lastGood(l, f, parseLib, problems, stale)
		if !ok {
			continue
		}
		docs = append(docs, e.doc)
		for _, n := range e.named {
			first, taken := from[n.Name]
			switch {
			case !taken:
				out = append(out, n)
			case f.source > first.source: // the site's own replaces the pack's
				i := slices.IndexFunc(out, func(o Named) bool { return o.Name == n.Name })
				out[i] = n
			default:
				line, col := n.Expr.at.locate(n.Expr.Text, 0)
				*problems = append(*problems, Problem{f.name, line, col, checkName, fmt.Sprintf("lib.%s is already in %s: give it another name", n.Name, first.name)})
				continue
			}
			from[n.Name] = f
		}
	}
	slices.SortFunc(out, func(a, b Named) int { return strings.Compare(a.Name, b.Name) })
	return out, docs
}

func (l *Loader) loadLists(files []sourceFile, set *Set, problems *[]Problem, stale map[string]bool) {
	lists := map[string]*List{}
	for _, f := range files {
		if f.kind != listFile {
			continue
		}
		v, ok := lastGood(l, f, ParseList, problems, stale)
		switch old := lists[listName(f.path)]; {
		case !ok:
		case f.site:
			lists[v.Name] = mergeLists(old, v)
		case old != nil:
			*problems = append(*problems, Problem{f.name, 0, 0, checkName, fmt.Sprintf("a list %s is already there: give it another name", v.Name)})
		default:
			lists[v.Name] = v
		}
	}
	set.Lists = lists
}

func listName(p string) string { return strings.TrimSuffix(path.Base(p), path.Ext(p)) }

func (l *Loader) loadPacks(files []sourceFile, set *Set, problems *[]Problem) {
	packs := map[string]Pack{}
	for _, f := range files {
		dir := path.Base(path.Dir(f.name))
		switch f.kind {
		case packFile:
			p, ps := parsePack(f.name, f.src)
			*problems = append(*problems, ps...)
			p.Name = dir
			packs[dir] = p
		case ruleFile:
			if _, ok := packs[dir]; !ok {
				packs[dir] = Pack{Name: dir, Title: dir}
			}
		default:
		}
	}
	for _, name := range slices.Sorted(maps.Keys(packs)) {
		set.Packs = append(set.Packs, packs[name])
	}
}

func parsePack(file string, src []byte) (Pack, []Problem) {
	var p Pack
	d, root := parseYAML(file, src)
	if root == nil {
		return p, d.problems
	}
	if fs, ok := d.fields(root, "a pack", "title", "description"); ok {
		if t, ok := fs["title"]; ok {
			p.Title, _ = d.text(t.value, "title")
		} else {
			d.add(0, checkMissing, "the pack has no title: add the key title:")
		}
		if t, ok := fs["description"]; ok {
			p.Description, _ = d.text(t.value, "description")
		}
	}
	return p, d.problems
}

// loadRules gives the rules in force, by id; of two with one id that of the later source.
func (l *Loader) loadRules(files []sourceFile, problems *[]Problem, stale map[string]bool) []*Rule {
	byID := map[string]*Rule{}
	from := map[string]sourceFile{}
	for _, f := range files {
		if f.kind != ruleFile {
			continue
		}
		r, ok := lastGood(l, f, Parse, problems, stale)
		if !ok {
			continue
		}
		if first, taken := from[r.ID]; taken && first.source == f.source {
			*problems = append(*problems, Problem{f.name, 1, 1, checkName, fmt.Sprintf("rule %s is already in %s: give it another id", r.ID, first.name)})
			continue
		}
		byID[r.ID], from[r.ID] = r, f
	}
	out := make([]*Rule, 0, len(byID))
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		out = append(out, byID[id])
	}
	return out
}

func (l *Loader) loadOverlays(files []sourceFile, problems *[]Problem, stale map[string]bool) []*overlay {
	var sorted []sourceFile
	for _, f := range files {
		if f.kind == overlayFile {
			sorted = append(sorted, f)
		}
	}
	slices.SortStableFunc(sorted, func(a, b sourceFile) int { return strings.Compare(path.Base(a.path), path.Base(b.path)) })
	var out []*overlay
	for _, f := range sorted {
		os, ps := parseOverlays(f.name, f.src)
		if len(ps) > 0 {
			*problems = append(*problems, ps...)
			os = l.overlays[f.name] // the last that also fitted the rules
			stale[f.name] = len(os) > 0
		}
		out = append(out, os...)
	}
	return out
}

// compileAll fills the set. An overlay file in which something is wrong is left out as a whole.
func (l *Loader) compileAll(set *Set, rules []*Rule, overlays []*overlay, problems *[]Problem, stale map[string]bool) {
	for _, o := range overlays {
		o.check(rules)
	}
	for {
		bad := map[string]bool{}
		for _, o := range overlays {
			if len(o.doc.problems) > 0 {
				bad[o.file] = true
				*problems = append(*problems, o.doc.problems...)
				o.doc.problems = nil
			}
		}
		if len(bad) > 0 {
			var next []*overlay
			for i, o := range overlays {
				if !bad[o.file] {
					next = append(next, o)
				} else if first := i == 0 || overlays[i-1].file != o.file; first && !stale[o.file] {
					next = append(next, l.overlays[o.file]...)
					stale[o.file] = len(l.overlays[o.file]) > 0
				}
			}
			overlays = next
		}
		orgs := map[string]bool{}
		for _, o := range overlays {
			for _, org := range o.orgs {
				orgs[org] = true
			}
		}
		set.Rules, set.byOrg = nil, map[string][]*Compiled{}
		var ruleProblems []Problem
		kept := map[string]bool{}
		now := map[string]*Compiled{}
		compile := func(r *Rule, org string) *Compiled {
			key := r.File + "\x00" + org
			eff := r
			for _, o := range overlays {
				if o.takes(r, org) {
					eff = o.lay(eff)
				}
			}
			r.doc.problems = nil
			c := set.scope.compile(eff)
			if c != nil && !c.readable(rules) {
				c = nil
			}
			ruleProblems = append(ruleProblems, r.doc.problems...)
			r.doc.problems = nil
			if c == nil {
				if c = l.compiled[key]; c != nil {
					kept[r.File] = true
				}
			}
			if c != nil {
				now[key] = c
			}
			return c
		}
		for _, r := range rules {
			if c := compile(r, ""); c != nil {
				set.Rules = append(set.Rules, c)
			}
		}
		for org := range orgs {
			for _, r := range rules {
				own := slices.ContainsFunc(overlays, func(o *overlay) bool { return len(o.orgs) > 0 && o.takes(r, org) })
				var c *Compiled
				if own {
					c = compile(r, org)
				} else {
					c = now[r.File+"\x00"]
				}
				if c != nil {
					set.byOrg[org] = append(set.byOrg[org], c)
				}
			}
		}
		if slices.ContainsFunc(overlays, func(o *overlay) bool { return len(o.doc.problems) > 0 }) {
			continue
		}
		*problems = append(*problems, ruleProblems...)
		for name := range kept {
			stale[name] = true
		}
		l.compiled = now
		set.Rules = link(set.Rules)
		for org, own := range set.byOrg {
			set.byOrg[org] = link(own)
		}
		// A list that is gone stays for the rules whose last good version reads it.
		for _, c := range now {
			for _, b := range c.names {
				if _, ok := set.Lists[b.list]; b.list != "" && !ok && l.lists[b.list] != nil {
					set.Lists[b.list] = l.lists[b.list]
				}
			}
		}
		l.lists = set.Lists
		l.overlays = map[string][]*overlay{}
		for _, o := range overlays {
			l.overlays[o.file] = append(l.overlays[o.file], o)
		}
		return
	}
}
