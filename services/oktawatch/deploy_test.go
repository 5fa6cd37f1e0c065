package oktawatch

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/svc"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestDeployedConfigs reads every file of deploy/config as strictly as the services do.
func TestDeployedConfigs(t *testing.T) {
	files, err := filepath.Glob("../../deploy/config/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, path := range files {
		var c struct {
			Config Config `yaml:",inline"`
		}
		if err := svc.Load(path, nil, nil, &c); err != nil {
			t.Error(err)
		}
		have = append(have, strings.TrimSuffix(filepath.Base(path), ".yaml"))
	}
	for _, g := range topics.Groups() {
		if !slices.Contains(have, g.Service) {
			t.Errorf("there is no deploy/config/%s.yaml", g.Service)
		}
	}
}
