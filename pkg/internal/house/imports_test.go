package house

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// homes says where a library may be imported; a directory includes those below it. Moving to another library is then an edit
// in one place. The longest matching row counts. A library without a row is not in use: add it here when it comes.
var homes = map[string][]string{
	"github.com/google/cel-go":              {"pkg/rule"},
	"cel.dev/expr":                          {"pkg/rule"},
	"google.golang.org/protobuf":            {"pkg/rule"},
	"google.golang.org/genproto":            {"pkg/rule"},
	"github.com/linkedin/goavro/v2":         {"pkg/record", "pkg/internal/avrogen", "pkg/registry", "pkg/tail", "pkg/detections"},
	"github.com/twmb/avro":                  {"pkg/record", "pkg/registry"},
	"github.com/twmb/franz-go/pkg/kgo":      {"pkg/bus", "pkg/registry"},
	"github.com/twmb/franz-go/pkg/kmsg":     {"pkg/bus", "pkg/registry", "services/oktawatch/internal/embedded"},
	"github.com/twmb/franz-go/pkg/kerr":     {"pkg/bus", "pkg/registry", "pkg/topics"},
	"github.com/twmb/franz-go/pkg/sasl":     {"pkg/bus"},
	"github.com/twmb/franz-go/pkg/kversion": {"pkg/bus"},
	"github.com/twmb/franz-go/pkg/kfake":    {"pkg/bus/localbroker", "pkg/bus/bustest", "services/oktawatch"},
	"github.com/twmb/franz-go/pkg/kadm":     {"pkg/topics", "pkg/bus"},
	"github.com/twmb/franz-go/pkg/sr":       {"pkg/record", "pkg/registry"},
	"github.com/twmb/franz-go/pkg/srfake":   {"pkg/registry"},
	"github.com/segmentio/kafka-go":         {"pkg/tail", "pkg/detections"},
	"github.com/okta/okta-sdk-golang/v2":    {"services/ingest"},
	"github.com/prometheus/client_golang":   {"pkg/metrics"},
	"github.com/prometheus/client_model":    {"pkg/metrics"},
	"github.com/goccy/go-yaml":              {"pkg/rule", "pkg/svc", "pkg/internal/house"},
	"github.com/goccy/go-json":              {"pkg/systemlog", "services/normalize"},
	"github.com/go-json-experiment/json":    {"pkg/systemlog", "services/normalize"},
	"github.com/santhosh-tekuri/jsonschema": {"pkg/rule", "rules"},
	"github.com/spf13/cobra":                {"services/oktawatch"},
	"github.com/spf13/pflag":                {"services/oktawatch"},
	"github.com/gofrs/flock":                {"services/oktawatch"},
	"github.com/google/uuid":                {"pkg", "services"},
	"golang.org/x/sync":                     {"pkg", "services"},
	"golang.org/x/sys":                      {"services/oktawatch"},
	"golang.org/x/tools":                    {"pkg/internal/avrogen"},
}

// testHomes are further homes that hold for tests alone.
var testHomes = map[string][]string{
	"github.com/twmb/franz-go/pkg/kgo":  {"pkg/tail", "services/oktawatch/internal/embedded"}, // its read-committed consumer is the judge of ours
	"github.com/twmb/franz-go/pkg/kmsg": {"pkg/tail"},
}

// testLibraries may be used by any test.
var testLibraries = []string{
	"github.com/google/go-cmp",
	"github.com/rogpeppe/go-internal/testscript",
	"github.com/rogpeppe/go-internal/txtar",
	"go.uber.org/goleak",
	"pgregory.net/rapid",
}

func TestEachLibraryHasItsHome(t *testing.T) {
	used := map[string]bool{}
	for _, f := range repo(t).gos {
		if strings.HasPrefix(f.dir, ".ci/") {
			continue // tools are pinned there in modules of their own
		}
		for _, imp := range f.imports() {
			first, _, _ := strings.Cut(imp, "/")
			if !strings.Contains(first, ".") || strings.HasPrefix(imp, prefix) {
				continue
			}
			if (f.test || strings.HasSuffix(f.dir, "test")) && within(imp, testLibraries) {
				continue
			}
			row := ""
			for lib := range homes {
				if within(imp, []string{lib}) && len(lib) > len(row) {
					row = lib
				}
			}
			used[row] = true
			switch {
			case row == "":
				t.Errorf("%s imports %s, which has no home: decide on one in homes", f.path, imp)
			case f.test && within(f.dir, testHomes[row]):
			case !within(f.dir, homes[row]):
				t.Errorf("%s imports %s, whose home is %s", f.path, imp, strings.Join(homes[row], ", "))
			}
		}
	}
}

// A kfake opened elsewhere would have the faults that pkg/bus/localbroker keeps from ours.
func TestOneDoorToTheBrokerInProcess(t *testing.T) {
	for _, f := range repo(t).gos {
		if f.dir == "pkg/bus/localbroker" {
			continue
		}
		ast.Inspect(f.file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "NewCluster" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "kfake" {
					t.Errorf("%s: kfake.NewCluster: open it with localbroker.Open", f.set.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

func TestWhoKnowsWhom(t *testing.T) {
	module := func(dir string) string { // pkg, rules, services/x
		parts := strings.SplitN(dir, "/", 3)
		if parts[0] == "services" && len(parts) > 1 {
			return parts[0] + "/" + parts[1]
		}
		return parts[0]
	}
	for _, f := range repo(t).gos {
		from := module(f.dir)
		for _, imp := range f.imports() {
			if !strings.HasPrefix(imp, prefix) {
				continue
			}
			to := module(strings.TrimPrefix(imp, prefix))
			switch {
			case from == to || from == "services/oktawatch":
			case from == "pkg":
				t.Errorf("%s imports %s: pkg knows neither services nor rules", f.path, imp)
			case strings.HasPrefix(to, "services/"):
				t.Errorf("%s imports %s: services meet through topics only", f.path, imp)
			case to == "rules" && from != "services/detect":
				t.Errorf("%s imports %s: the pack is for services/detect and services/oktawatch", f.path, imp)
			}
		}
	}
}

// A program that is made of what it imports by name can be read; one that is made of side effects cannot.
func TestNoHiddenRegistration(t *testing.T) {
	for _, f := range repo(t).gos {
		main := f.file.Name.Name == "main" || strings.HasPrefix(f.dir, ".ci/")
		for _, imp := range f.file.Imports {
			p := strings.Trim(imp.Path.Value, `"`)
			if imp.Name != nil && imp.Name.Name == "_" && !main && !f.test && p != "embed" && !strings.HasPrefix(p, "crypto/") { // hashes are called by number
				t.Errorf("%s: blank import of %s", f.path, p)
			}
		}
		for _, name := range functions(f) {
			if name == "init" && !main {
				t.Errorf("%s: func init", f.path)
			}
		}
	}
}

func TestPackageNamesSayWhatTheyHold(t *testing.T) {
	empty := []string{"util", "utils", "common", "helper", "helpers", "types", "models", "misc", "base", "shared"}
	for _, f := range repo(t).gos {
		if slices.Contains(empty, f.file.Name.Name) {
			t.Errorf("%s: package %s says nothing of what is in it", f.path, f.file.Name.Name)
		}
	}
}
