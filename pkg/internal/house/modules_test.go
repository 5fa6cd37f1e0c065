package house

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var topLevel = []string{
	"services", "pkg", "schemas", "rules", "docs", "deploy", ".ci",
	"README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "docker-compose.yml", "go.work", "go.work.sum",
	".gitignore", ".gitattributes", ".editorconfig", ".dockerignore",
}

func TestTopLevel(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range repo(t).files {
		top, _, _ := strings.Cut(f, "/")
		seen[top] = true
	}
	for _, top := range slices.Sorted(maps.Keys(seen)) {
		if !slices.Contains(topLevel, top) {
			t.Errorf("%s at the top of the tree: everything has a place further down", top)
		}
	}
	for _, want := range topLevel[:15] {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestModules(t *testing.T) {
	r := repo(t)
	work, err := edit[struct{ Go string }](r.root, "work")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.files {
		dir, name := filepath.Split(f)
		dir = strings.TrimSuffix(dir, "/")
		if name != "go.mod" || strings.Contains(f, "/testdata/") {
			continue
		}
		m, listed := r.mods[dir]
		if !listed {
			if !strings.HasPrefix(dir, ".ci/") {
				t.Errorf("%s is not in go.work", f)
				continue
			}
			if m, err = edit[goMod](filepath.Join(r.root, dir), "mod"); err != nil {
				t.Fatal(err)
			}
		}
		if m.Go != work.Go {
			t.Errorf("%s says go %s, go.work says %s", f, m.Go, work.Go)
		}
		if want := prefix + strings.TrimPrefix(dir, "."); m.Module.Path != want {
			t.Errorf("%s: module %s, want %s", f, m.Module.Path, want)
		}
		if dir == "pkg" && len(m.Replace) > 0 {
			t.Errorf("pkg/go.mod replaces %s: others import pkg, and their build would not see it", m.Replace[0].Old.Path)
		}
		for _, x := range m.Replace {
			if !strings.HasPrefix(x.Old.Path, prefix) || !strings.HasPrefix(x.New.Path, "../") {
				t.Errorf("%s replaces %s by %s: only our own modules, by their place in the tree", f, x.Old.Path, x.New.Path)
			}
		}
	}
}

// A workspace hides what a module alone would be built with; the same version everywhere leaves nothing to hide.
func TestOneVersionOfEachDependency(t *testing.T) {
	versions := map[string]map[string][]string{}
	for dir, m := range repo(t).mods {
		for _, q := range m.Require {
			if versions[q.Path] == nil {
				versions[q.Path] = map[string][]string{}
			}
			versions[q.Path][q.Version] = append(versions[q.Path][q.Version], dir)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(versions)) {
		if len(versions[p]) > 1 {
			t.Errorf("%s in several versions: %v; run make tidy", p, versions[p])
		}
	}
}
