package house

import (
	"go/ast"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func functions(f goFile) []string {
	var out []string
	for _, d := range f.file.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
			out = append(out, fn.Name.Name)
		}
	}
	return out
}

// Each package has one comment: its job, what holds, and what does not belong.
func TestEachPackageHasOneDoor(t *testing.T) {
	doors, dirs := map[string][]string{}, map[string]bool{}
	for _, f := range repo(t).gos {
		if f.test {
			continue
		}
		dirs[f.dir] = true
		if f.file.Doc == nil {
			continue
		}
		doors[f.dir] = append(doors[f.dir], f.path)
		start := "Package " + f.file.Name.Name + " "
		if f.file.Name.Name == "main" {
			start = "Command " + path.Base(f.dir) + " "
		}
		if text := f.file.Doc.Text(); !strings.HasPrefix(text, start) {
			t.Errorf("%s: the package comment begins with %q, want %q", f.path, strings.SplitN(text, "\n", 2)[0], start)
		}
	}
	for dir := range dirs {
		if n := len(doors[dir]); n != 1 {
			t.Errorf("%s: %d package comments, want one: %v", dir, n, doors[dir])
		}
	}
}

func TestGeneratedFilesAreNamedSo(t *testing.T) {
	for _, f := range repo(t).gos {
		if named := strings.HasSuffix(f.path, "_gen.go"); named != f.gen {
			t.Errorf("%s: named _gen.go: %v, has the line of generated code: %v", f.path, named, f.gen)
		}
	}
}

// Every relative link of a page leads somewhere.
func TestLinksLeadSomewhere(t *testing.T) {
	r := repo(t)
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	known := map[string]bool{}
	for _, f := range r.files {
		for p := f; p != "."; p = path.Dir(p) {
			known[p] = true
		}
	}
	for _, f := range r.files {
		if !strings.HasSuffix(f, ".md") || strings.Contains(f, "/testdata/") {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(r.text(t, f), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if to := path.Join(path.Dir(f), m[1]); !known[strings.TrimSuffix(to, "/")] {
				t.Errorf("%s links to %s, which is not there", f, m[1])
			}
		}
	}
}

// What the pages tell people to type exists.
func TestMakeTargetsOfThePagesExist(t *testing.T) {
	r := repo(t)
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z-]+):.*?## `).FindAllStringSubmatch(r.text(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	for _, want := range []string{"up", "demo", "generate", "tidy", "lint", "test", "test-kafka", "test-compose", "rules", "docs", "images", "release"} {
		if !targets[want] {
			t.Errorf("Makefile has no target %s with a ## comment", want)
		}
	}
	call := regexp.MustCompile("(?m)(?:^|`)(?:[A-Z_]+=\\S+ )*make ([a-z-]+)")
	for _, f := range r.files {
		if !strings.HasSuffix(f, ".md") || strings.Contains(f, "/testdata/") {
			continue
		}
		for _, m := range call.FindAllStringSubmatch(r.text(t, f), -1) {
			if !targets[m[1]] {
				t.Errorf("%s says make %s, which the Makefile does not know", f, m[1])
			}
		}
	}
}

// Nothing of the machine a line was written on stays in it.
func TestNoPathsOfAMachine(t *testing.T) {
	r := repo(t)
	bad := regexp.MustCompile(`(^|[\s"'(=:` + "`" + `])/(work|root|home/[a-z]+|Users/[A-Za-z]+)/[^\s"'` + "`" + `]+`)
	ext := []string{".go", ".md", ".yaml", ".yml", ".mod", ".work", ".avsc", ".xml", ".sh", ".txtar", ""}
	for _, f := range r.files {
		if !slices.Contains(ext, path.Ext(f)) {
			continue
		}
		for i, line := range strings.Split(r.text(t, f), "\n") {
			if m := bad.FindString(line); m != "" {
				t.Errorf("%s:%d: %s", f, i+1, strings.TrimSpace(m))
			}
		}
	}
}
