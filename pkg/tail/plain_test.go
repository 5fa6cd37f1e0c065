package tail_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// show reads a topic and returns each record's plain value.
func show(t *testing.T, k *bustest.Broker, topic topics.Topic) []string {
	t.Helper()
	r, err := tail.Open(tail.Config{Brokers: k.Seeds, Prefix: k.Prefix, Registry: k.RegistryURL}, tail.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	err = r.Read(t.Context(), topic.Name, tail.Options{Exit: true}, func(rec tail.Record) error {
		v, err := rec.Plain(t.Context())
		if err != nil {
			v = []byte("error: " + err.Error())
		}
		out = append(out, string(v))
		line, jsonErr := rec.JSON(t.Context())
		if (jsonErr == nil) != (err == nil) || (jsonErr == nil && !strings.Contains(string(line), `"value":`+string(v))) {
			t.Errorf("whole record: %s, %v", line, jsonErr)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPlain(t *testing.T) {
	dlq := topics.SystemLog.DLQ()
	k := bustest.StartWith(t, []bustest.Option{bustest.Partitions(1)}, topics.Raw, topics.SystemLog, topics.Sources, dlq)
	b := k.Bus(t, "a")
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	s := b.Sender()
	if err := errors.Join(
		s.Send(t.Context(), topics.Raw, "o/u", &record.RawEvent{UUID: "u", ReceivedAt: at, JSON: []byte(`{"uuid": "u", "n": [1, null]}`)}),
		s.Send(t.Context(), topics.SystemLog, "o/u", &record.SystemLog{UUID: "u"}),
		s.SendRaw(t.Context(), topics.SystemLog, "o/u", []byte("not framed")),
		s.SendRaw(t.Context(), topics.SystemLog, "o/u", []byte{0, 0, 0xff, 0xff, 0xff, 1}),
		s.SendRaw(t.Context(), topics.Sources, "gone", nil),
	); err != nil {
		t.Fatal(err)
	}
	good := k.Read(t, topics.SystemLog)[0].Value
	for _, v := range [][]byte{good, []byte(`{"a": 1}`), []byte("some text\n"), {0xff, 0, 1}, good[:len(good)-1], nil} {
		k.Produce(t, &kgo.Record{Topic: dlq.Full(k.Prefix), Key: []byte("k"), Value: v, Headers: []kgo.RecordHeader{{Key: "dlq.stage", Value: []byte("detect.match")}}})
	}

	raw := show(t, k, topics.Raw)
	for _, want := range []string{`"json":{"uuid":"u","n":[1,null]}`, `"received_at":"2026-01-02T03:04:05.006Z"`, `"uuid":"u"`} {
		if !strings.Contains(raw[0], want) {
			t.Errorf("raw event: %s has no %s", raw[0], want)
		}
	}
	log := show(t, k, topics.SystemLog)
	if !strings.Contains(log[0], `"actor":null`) || !json.Valid([]byte(log[0])) {
		t.Errorf("event: %s", log[0])
	}
	if !strings.Contains(log[1], "offset 1: value has no schema id") || !strings.Contains(log[2], "does not know it") {
		t.Errorf("unreadable records: %q", log[1:])
	}
	if got := show(t, k, topics.Sources); len(got) != 1 || got[0] != "null" {
		t.Errorf("tombstone: %q", got)
	}
	dead := show(t, k, dlq)
	want := []string{log[0], `{"a":1}`, `"some text\n"`, `{"base64":"/wAB"}`, "", "null"}
	for i, w := range want {
		if i == 4 {
			if !strings.HasPrefix(dead[i], `{"base64"`) {
				t.Errorf("a dead letter cut short: %s", dead[i])
			}
		} else if dead[i] != w {
			t.Errorf("dead letter %d: %s, want %s", i, dead[i], w)
		}
	}
}

// TestOldVersion: what an older version of us wrote is shown by its own schema.
func TestOldVersion(t *testing.T) {
	const old = `{"type":"record","name":"SystemLog","fields":[{"name":"uuid","type":"string"},{"name":"gone","type":["null","long"]}]}`
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/some/path/schemas/ids/7" {
			http.Error(w, `{"error_code":40403,"message":"no"}`, http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"schema": old})
	}))
	defer reg.Close()
	k := bustest.StartWith(t, []bustest.Option{bustest.Partitions(1)}, topics.SystemLog)
	k.Produce(t, &kgo.Record{Topic: topics.SystemLog.Full(k.Prefix), Value: []byte("\x00\x00\x00\x00\x07\x04u1\x02\x54")})
	r, err := tail.Open(tail.Config{Brokers: k.Seeds, Prefix: k.Prefix, Registry: reg.URL + "/some/path/"}, tail.Deps{HTTP: reg.Client()})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Read(t.Context(), topics.SystemLog.Name, tail.Options{Exit: true}, func(rec tail.Record) error {
		v, err := rec.Plain(t.Context())
		if err != nil || string(v) != `{"uuid":"u1","gone":42}` {
			t.Errorf("got %s, %v", v, err)
		}
		if id, err := rec.ID(t.Context()); err != nil || id != (tail.ID{ID: "u1"}) {
			t.Errorf("identity %+v, %v", id, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCount(t *testing.T) {
	k := bustest.Start(t, topics.Detections, topics.Sources)
	s := k.Bus(t, "a").Sender()
	for i := range 60 {
		d := &record.Detection{ID: fmt.Sprint("d", i%20), Update: int64(i / 30), Lane: "live"}
		if err := s.Send(t.Context(), topics.Detections, d.ID, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.SendRaw(t.Context(), topics.Detections, "x", []byte("unreadable")), s.SendRaw(t.Context(), topics.Detections, "x", nil)); err != nil {
		t.Fatal(err)
	}
	r, err := tail.Open(tail.Config{Brokers: k.Seeds, Prefix: k.Prefix, Registry: k.RegistryURL}, tail.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	got, err := r.Count(t.Context(), topics.Detections.Name, tail.Options{Exit: true}, func(rec tail.Record, id tail.ID) {
		if string(rec.Key) != id.ID || id.Lane != "live" {
			t.Errorf("key %s identity %+v", rec.Key, id)
		}
		ids[id.ID] = true
	})
	// 0..29 are update 0 of d0..d19 with 10 of them twice, 30..59 the same of update 1.
	want := tail.Count{Records: 62, Bytes: got.Bytes, Tombstones: 1, Distinct: 20, Repeated: 20, Unreadable: 1}
	if err != nil || got != want || len(ids) != 20 {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	plain, err := r.Count(t.Context(), topics.Detections.Name, tail.Options{Exit: true}, nil)
	if err != nil || plain.Records != 62 || plain.Distinct != 0 || plain.Bytes != got.Bytes {
		t.Errorf("without identities: %+v, %v", plain, err)
	}
}

func ExampleReader_Read() {
	r, err := tail.Open(tail.Config{Brokers: []string{"127.0.0.1:9092"}, Registry: "http://127.0.0.1:8081"}, tail.Deps{})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = r.Read(ctx, topics.Detections.Name, tail.Options{Since: time.Now().Add(-time.Hour), Exit: true}, func(rec tail.Record) error {
		v, err := rec.Plain(ctx)
		if err != nil {
			return err
		}
		fmt.Println(string(rec.Key), string(v))
		return nil
	})
	if err != nil {
		fmt.Println(err)
	}
}

var (
	_ = tail.TLS(bus.TLS{})
	_ = tail.SASL(bus.SASL{})
)
