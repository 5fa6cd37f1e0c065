package registry_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/registry"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestKafka: everything is there again after a restart, compaction between them or not.
func TestKafka(t *testing.T) {
	b := bustest.Start(t, topics.Audit)
	restart := func() (api, *registry.Kafka) {
		t.Helper()
		store, err := registry.NewKafka(registry.KafkaConfig{Brokers: b.Seeds, Topic: b.Prefix + registry.DefaultTopic})
		if err != nil {
			t.Fatal(err)
		}
		return open(t, store), store
	}
	a, store := restart()
	a.want("PUT", "/config/s", `{"compatibility":"NONE"}`, 200, "")
	for i := range 30 {
		text := strings.Replace(v1, `"name":"a"`, fmt.Sprintf(`"name":"a%d"`, i), 1)
		a.want("POST", "/subjects/s/versions", schema(text), 200, fmt.Sprintf(`{"id":%d}`, i+1))
	}
	a.want("POST", "/subjects/big/versions", schema(`{"type":"record","name":"R","doc":"`+strings.Repeat("d", 900_000)+`","fields":[]}`), 200, `"id":31`)
	a.want("DELETE", "/subjects/s/versions/30", "", 200, "30")
	a.want("DELETE", "/subjects/s/versions/30?permanent=true", "", 200, "30")
	a.want("DELETE", "/subjects/s/versions/7", "", 200, "7")

	paths := []string{"/subjects", "/schemas?deleted=true", "/config/s", "/subjects/s/versions", "/subjects/s/versions?deleted=true", "/schemas/ids/12", "/schemas/ids/31"}
	before := map[string]string{}
	for _, p := range paths {
		_, before[p] = a.do("GET", p, "")
	}
	for round := range 3 {
		store.Close()
		if b.Cluster != nil && round == 1 {
			b.Cluster.Compact()
		}
		a, store = restart()
		for _, p := range paths {
			a.want("GET", p, "", 200, before[p])
		}
		a.want("GET", "/schemas/ids/30", "", 404, "40403")
	}
	a.want("POST", "/subjects/s/versions", schema(v2), 200, `{"id":32}`)
	a.want("GET", "/subjects/s/versions/latest", "", 200, `"version":31`)
	store.Close()

	dead, err := registry.NewKafka(registry.KafkaConfig{Brokers: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	h, err := registry.NewHandler(registry.Config{}, dead)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "schema topic "+registry.DefaultTopic) {
		t.Errorf("no broker: %v", err)
	}
}
