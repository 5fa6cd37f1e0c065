package ingest

import (
	"testing"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/svc"
)

// The file we ship is read as the service reads it, and describes a service that can be made.
func TestShippedConfig(t *testing.T) {
	var file struct {
		svc.Common `yaml:",inline"`
		Ingest     Config `yaml:"ingest"`
	}
	if err := svc.Load("../../deploy/config/ingest.yaml", nil, nil, &file); err != nil {
		t.Fatal(err)
	}
	b, err := bus.New(file.Kafka, bus.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := New(file.Ingest, Deps{Bus: b}); err != nil {
		t.Fatal(err)
	}
}
