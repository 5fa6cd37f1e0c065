package oktawatch

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestExplainScripts plays `detections show --explain` on topics whose content is the same each time, so that what it prints can be
// compared to the letter. UPDATE_SCRIPTS=1 writes what it prints into the scripts.
func TestExplainScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/explain",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			tb, ok := env.T().(testing.TB)
			if !ok {
				tb = t
			}
			b := bustest.Start(tb, topics.SystemLog, topics.Detections, topics.Alerts)
			env.Values["broker"] = b
			env.Setenv("KAFKA_BOOTSTRAP_SERVERS", strings.Join(b.Seeds, ","))
			env.Setenv("SCHEMA_REGISTRY_URL", b.RegistryURL)
			env.Setenv("PREFIX", b.Prefix)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// judged RULES EVENTS [lost] writes the events to their topic and what the rules find in them to that of detections. Of the
			// events of the type lost nothing is kept, neither by the detection nor on the topic. The one detection is $FOUND.
			"judged": func(ts *testscript.TestScript, _ bool, args []string) {
				lost := ""
				if len(args) > 2 {
					lost = args[2]
				}
				id, err := judged(t, ts.Value("broker").(*bustest.Broker), ts.MkAbs(args[0]), ts.ReadFile(args[1]), lost)
				ts.Check(err)
				ts.Setenv("FOUND", id)
			},
		},
	})
}

func judged(t *testing.T, b *bustest.Broker, rules, events, lost string) (id string, err error) {
	l, err := rule.NewLoader()
	if err != nil {
		return "", err
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: os.DirFS(rules)})
	if err != nil || len(problems) > 0 {
		return "", fmt.Errorf("%v %w", problems, err)
	}
	sender := b.Bus(t, "test").Sender()
	texts := map[string][]byte{}
	m, st := engine.NewMatcher(set), engine.NewState(set, engine.WithTopic(topics.SystemLog.Name))
	var updates []*record.Detection
	lines := bufio.NewScanner(strings.NewReader(events))
	for lines.Scan() {
		text := bytes.TrimSpace(bytes.Clone(lines.Bytes()))
		if len(text) == 0 {
			continue
		}
		log, _, err := systemlog.FromJSON(text, nil)
		if err != nil {
			return "", fmt.Errorf("%s: %w", text, err)
		}
		d := &log.Derived
		d.Org, d.Lane, d.Copy, d.Time, d.Received, d.RawPartition, d.RawOffset = "00oTEST", "live", 1, *log.Published, *log.Published, -1, -1
		at := engine.Place{}
		if log.EventType != lost {
			if err := sender.Send(t.Context(), topics.SystemLog, "00oTEST/"+log.UUID, log); err != nil {
				return "", err
			}
			var at0 *bus.Message
			for _, msg := range b.Read(t, topics.SystemLog) {
				if string(msg.Key) == "00oTEST/"+log.UUID {
					at0 = &msg
				}
			}
			at = engine.Place{Topic: topics.SystemLog.Name, Partition: at0.Partition, Offset: at0.Offset}
			texts[log.UUID] = text
		}
		var v record.SystemLogView
		if err := v.Load(log); err != nil {
			return "", err
		}
		st.Begin("00oTEST", "live", d.Time)
		for _, mt := range m.Take(&v, at) {
			if err := st.Apply(mt); err != nil {
				return "", err
			}
		}
		updates = append(updates, st.Flush().Detections...)
		st.Commit()
	}
	st.Advance("00oTEST", "live", time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
	updates = append(updates, st.Flush().Detections...)
	ids := map[string]bool{}
	for _, found := range updates {
		for i := range found.Evidence {
			found.Evidence[i].JSON = texts[found.Evidence[i].UUID]
		}
		id = found.ID
		ids[id] = true
		if err := sender.Send(t.Context(), topics.Detections, found.Fingerprint, found); err != nil {
			return "", err
		}
	}
	if len(ids) != 1 {
		return "", fmt.Errorf("%d detections", len(ids))
	}
	return id, nil
}
