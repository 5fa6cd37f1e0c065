package ruletest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
)

// maxLine bounds one event of a file: four times what the pipeline takes.
const maxLine = 8 << 20

// ReadEvents reads LogEvents as JSON lines, or as arrays of them as the System Log API answers. An event that cannot be
// judged (no readable published, no JSON) is told to skipped with its line and left out. Of copies of one event the
// complete one counts, wherever it stands.
func ReadEvents(r io.Reader, org string, skipped func(line int, err error)) ([]*record.SystemLog, error) {
	var out []*record.SystemLog
	place := map[string]int{}
	add := func(line int, doc []byte) {
		log, _, err := systemlog.FromJSON(doc, nil)
		switch {
		case err != nil:
			skipped(line, err)
			return
		case log.Published == nil:
			skipped(line, errors.New("no readable published"))
			return
		}
		d := &log.Derived
		d.Org, d.Lane, d.Copy, d.RawPartition, d.RawOffset = org, "live", 1, -1, -1
		d.Time, d.Received = *log.Published, *log.Published
		id := strings.Join([]string{log.UUID, log.Published.String(), log.EventType}, "\x00")
		if at, ok := place[id]; ok {
			if hookShaped(out[at].JSON) && !hookShaped(doc) {
				out[at] = log
			}
			return
		}
		place[id] = len(out)
		out = append(out, log)
	}
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), maxLine)
	for line := 1; sc.Scan(); line++ {
		doc := bytes.TrimSpace(sc.Bytes())
		switch {
		case len(doc) == 0:
		case doc[0] == '[':
			var events []json.RawMessage
			if err := json.Unmarshal(doc, &events); err != nil {
				skipped(line, fmt.Errorf("array of events: %w", err))
				continue
			}
			for _, e := range events {
				add(line, e)
			}
		default:
			add(line, doc)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return out, nil
}

// hookShaped tells the body of an event hook from the System Log API's: its chain of addresses is in client.
func hookShaped(doc []byte) bool {
	var ev struct {
		Client struct {
			IPChain json.RawMessage `json:"ipChain"`
		} `json:"client"`
		Request json.RawMessage `json:"request"`
	}
	return json.Unmarshal(doc, &ev) == nil && ev.Client.IPChain != nil && ev.Request == nil
}

// Eval judges events in the order they stand in, by every rule of the set whatever its mode, and returns the detections
// in the order they came. The clock follows the greatest event time; at the end it is the time of the last record.
func Eval(set *rule.Set, events []*record.SystemLog, failed func(error)) ([]*record.Detection, error) {
	m := engine.NewMatcher(set, engine.WithDisabled(), engine.WithObserver(told(failed)))
	st := engine.NewState(set, engine.WithStateObserver(told(failed)))
	type laneOf struct{ org, lane string }
	last := map[laneOf]time.Time{}
	var lanes []laneOf
	var out []*record.Detection
	for _, ev := range events { // learning counts from the earliest record of the input
		l := laneOf{ev.Derived.Org, ev.Derived.Lane}
		if t, ok := last[l]; !ok || ev.Derived.Time.Before(t) {
			if !ok {
				lanes = append(lanes, l)
			}
			last[l] = ev.Derived.Time
		}
	}
	for _, l := range lanes {
		st.Begin(l.org, l.lane, last[l])
		last[l] = time.Time{}
	}
	for _, ev := range events {
		var v record.SystemLogView
		if err := v.Load(ev); err != nil {
			return nil, fmt.Errorf("judge event %s: %w", ev.UUID, err)
		}
		out = append(out, m.Match(&v, engine.Place{})...)
		for _, mt := range m.Take(&v, engine.Place{}) {
			if err := st.Apply(mt); err != nil {
				return nil, fmt.Errorf("judge event %s: %w", ev.UUID, err)
			}
		}
		l := laneOf{ev.Derived.Org, ev.Derived.Lane}
		if ev.Derived.Time.After(last[l]) {
			last[l] = ev.Derived.Time
			st.Advance(l.org, l.lane, ev.Derived.Time)
		}
		out = append(out, st.Flush().Detections...)
		st.Commit()
	}
	for _, l := range lanes {
		st.Close(l.org, l.lane, last[l])
	}
	return append(out, st.Flush().Detections...), nil
}

type told func(error)

func (told) Excepted(string, string) {}
func (t told) Failed(err error)      { t(err) }
