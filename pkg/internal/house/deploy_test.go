package house

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// services are the directories below services/ that have a main.
func (r *tree) services() []string {
	var out []string
	for _, f := range r.files {
		if parts := strings.Split(f, "/"); len(parts) == 5 && parts[0] == "services" && parts[2] == "cmd" && parts[4] == "main.go" {
			out = append(out, parts[1])
			if parts[3] != parts[1] {
				panic(f + ": a service's command has the service's name")
			}
		}
	}
	return out
}

func TestEachServiceIsDeployable(t *testing.T) {
	r := repo(t)
	for _, s := range r.services() {
		if s == "oktawatch" {
			continue
		}
		if !slices.Contains(r.files, "deploy/config/"+s+".yaml") {
			t.Errorf("deploy/config/%s.yaml is missing", s)
		}
	}
	for _, f := range r.files {
		if path.Dir(f) == "deploy/config" && !slices.Contains(r.services(), strings.TrimSuffix(path.Base(f), ".yaml")) {
			t.Errorf("%s belongs to no service", f)
		}
	}
}

type composeService struct {
	Image       string         `yaml:"image"`
	Build       any            `yaml:"build"`
	Restart     string         `yaml:"restart"`
	ReadOnly    bool           `yaml:"read_only"`
	CapDrop     []string       `yaml:"cap_drop"`
	Healthcheck any            `yaml:"healthcheck"`
	DependsOn   map[string]any `yaml:"depends_on"`
	Environment map[string]any `yaml:"environment"`
}

func TestCompose(t *testing.T) {
	r := repo(t)
	var c struct {
		Services map[string]composeService `yaml:"services"`
	}
	// A key beside a merge replaces the merged one.
	if err := yaml.NewDecoder(strings.NewReader(r.text(t, "docker-compose.yml")), yaml.AllowDuplicateMapKey()).Decode(&c); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Services)) {
		s := c.Services[name]
		for dep := range s.DependsOn {
			if _, ok := c.Services[dep]; !ok {
				t.Errorf("%s depends on %s, which is no service", name, dep)
			}
		}
		if s.Build == nil && !regexp.MustCompile(`:\d+\.\d+\.\d+$`).MatchString(s.Image) {
			t.Errorf("%s: image %q names no exact version", name, s.Image)
		}
		if s.Build != nil && (!s.ReadOnly || !slices.Contains(s.CapDrop, "ALL")) {
			t.Errorf("%s: ours run with a read-only root and no capabilities", name)
		}
		for key := range s.Environment {
			if regexp.MustCompile(`(?i)(token|secret|password|private_key)$`).MatchString(key) {
				t.Errorf("%s: %s in the environment; secrets are files", name, key)
			}
		}
	}
	for _, s := range r.services() {
		if s == "oktawatch" {
			continue
		}
		got, ok := c.Services[s]
		if !ok {
			t.Errorf("docker-compose.yml does not run %s", s)
		} else if got.Healthcheck == nil || len(got.DependsOn) == 0 {
			t.Errorf("%s: a service has a health check and waits for what it needs", s)
		}
	}
}

func TestDockerfile(t *testing.T) {
	text := repo(t).text(t, "deploy/Dockerfile")
	for _, want := range []string{"ARG SERVICE", "GOWORK=off", "CGO_ENABLED=0", "USER 65532", "HEALTHCHECK", "-trimpath"} {
		if !strings.Contains(text, want) {
			t.Errorf("deploy/Dockerfile has no %s", want)
		}
	}
	for _, bad := range []string{"--mount", "<<", ":latest"} {
		if strings.Contains(text, bad) {
			t.Errorf("deploy/Dockerfile has %s, which the plain builder does not know or nobody can repeat", bad)
		}
	}
}
