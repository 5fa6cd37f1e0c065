package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const prefix = "github.com/oktawatch/oktawatch/"

// tree is the repository as the tests see it: every file that may be committed, and the parsed head of every Go file.
type tree struct {
	root  string
	files []string // slash-separated, from the root, sorted
	gos   []goFile
	mods  map[string]goMod // by directory, those of go.work
}

type goFile struct {
	path, dir string
	test, gen bool
	file      *ast.File
	set       *token.FileSet
}

// imports are the file's import paths.
func (f goFile) imports() []string {
	var out []string
	for _, i := range f.file.Imports {
		out = append(out, strings.Trim(i.Path.Value, `"`))
	}
	return out
}

type goMod struct {
	Module  struct{ Path string }
	Go      string
	Require []struct {
		Path, Version string
		Indirect      bool
	}
	Replace []struct {
		Old, New struct{ Path, Version string }
	}
}

var load = sync.OnceValues(read)

func repo(t *testing.T) *tree {
	t.Helper()
	r, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func read() (*tree, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for ; ; root = filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "go.work")); err == nil {
			break
		} else if root == filepath.Dir(root) {
			return nil, errors.New("no go.work above the working directory")
		}
	}
	r := &tree{root: root, mods: map[string]goMod{}}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel == "bin" || rel == "dist" || rel == ".git" || strings.HasPrefix(d.Name(), ".") && rel != "." && rel != ".ci" {
				return filepath.SkipDir
			}
			return nil
		}
		r.files = append(r.files, rel)
		if !strings.HasSuffix(rel, ".go") || strings.Contains("/"+rel, "/testdata/") {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		r.gos = append(r.gos, goFile{
			path: rel, dir: path.Dir(rel), file: f, set: set,
			test: strings.HasSuffix(rel, "_test.go"), gen: ast.IsGenerated(f),
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(r.files)
	work, err := edit[struct {
		Go  string
		Use []struct{ DiskPath string }
	}](root, "work")
	if err != nil {
		return nil, err
	}
	for _, u := range work.Use {
		m, err := edit[goMod](filepath.Join(root, u.DiskPath), "mod")
		if err != nil {
			return nil, err
		}
		r.mods[path.Clean(filepath.ToSlash(u.DiskPath))] = m
	}
	return r, nil
}

// edit reads a go.mod or go.work as `go mod edit -json` and `go work edit -json` print it.
func edit[T any](dir, kind string) (T, error) {
	var v T
	cmd := exec.Command("go", kind, "edit", "-json")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=") // the workspace is looked at, also where a build leaves it out
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return v, fmt.Errorf("go %s edit -json in %s: %w: %s", kind, dir, err, errs.String())
	}
	return v, json.Unmarshal(out, &v)
}

// text reads a file of the tree.
func (r *tree) text(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.root, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// within says whether dir is one of the homes or below one.
func within(dir string, homes []string) bool {
	return slices.ContainsFunc(homes, func(h string) bool { return dir == h || strings.HasPrefix(dir, h+"/") })
}
