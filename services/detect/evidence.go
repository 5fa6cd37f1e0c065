package detect

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	readBackFor   = 2 * time.Second // for all evidence of a batch
	maxRemembered = 8 << 20         // of JSON read back
	roomForFrame  = 32 << 10        // what a detection's frame and key may add to it
)

// judged is what a batch of the state stage comes to. It is written at the end of it, so that the evidence of all detections is read back
// at once.
type judged struct {
	t     *stateTask
	ctx   context.Context //nolint:containedctx // lives as long as one call of the stage
	out   *bus.Emit
	found []*record.Detection
}

// flush has the windows judge what they took.
func (w *judged) flush() {
	o := w.t.state.Flush()
	w.found = append(w.found, o.Detections...)
	for _, c := range o.Changes {
		w.out.State([]byte(c.Key), c.Value)
	}
}

func (w *judged) write() error {
	s := w.t.s
	if len(w.found) > 0 {
		s.evidence.fill(w.ctx, s, w.found)
	}
	for _, d := range w.found {
		if err := w.out.Put(topics.Detections, d.Fingerprint, d); err != nil {
			return fmt.Errorf("write detection of rule %s: %w", d.RuleID, err)
		}
		s.m.detections.With(d.RuleID, d.Mode).Inc()
		if what, ok := w.t.limits[d.RuleID]; ok {
			delete(w.t.limits, d.RuleID)
			if err := w.t.tell(w.out, findLimited, d.Org, d.RuleID, what, d.LastTime); err != nil {
				return err
			}
		}
	}
	return nil
}

// evidence gives detections of windowed rules the events they were made of: a Match carries only the fields its rule reads.
type evidence struct {
	mu    sync.Mutex
	known map[engine.Place][]byte
	size  int
}

// fill reads the events back from where they lie. What retention took, or the broker does not give in time, stays away, and the
// detection says so: an event's text is never worth the stage's standstill.
func (e *evidence) fill(ctx context.Context, s *Service, ds []*record.Detection) {
	ctx, cancel := context.WithTimeout(ctx, readBackFor)
	defer cancel()
	wanted := map[int32][]int64{}
	found := map[engine.Place][]byte{}
	e.mu.Lock()
	for _, d := range ds {
		for i := range d.Evidence {
			ev := &d.Evidence[i]
			at := engine.Place{Topic: ev.Topic, Partition: ev.Partition, Offset: ev.Offset}
			if len(ev.JSON) > 0 || ev.Offset < 0 || ev.Partition < 0 {
				continue
			}
			if b, ok := e.known[at]; ok {
				found[at] = b
			} else {
				wanted[at.Partition] = append(wanted[at.Partition], at.Offset)
			}
		}
	}
	e.mu.Unlock()
	for partition, offsets := range wanted {
		got, err := s.bus.ReadBack(ctx, topics.SystemLog, partition, offsets...)
		if err != nil {
			s.m.unread.Add(float64(len(offsets)))
			s.log.Warn("evidence could not be read back", "partition", partition, "events", len(offsets), "error", err)
			continue
		}
		for offset, m := range got {
			payload, err := s.bus.Payload(ctx, m, "system_log")
			var v record.SystemLogView
			if err == nil {
				err = v.Reset(payload)
			}
			if err != nil {
				s.log.Warn("evidence could not be read", "record", m.String(), "error", err)
				continue
			}
			at := engine.Place{Topic: topics.SystemLog.Name, Partition: partition, Offset: offset}
			found[at] = bytes.Clone(v.JSON())
			e.remember(at, found[at])
		}
	}
	for _, d := range ds {
		room := topics.Detections.MaxBytes - roomForFrame
		if b, err := d.AppendAvro(nil); err == nil {
			room -= len(b)
		}
		for i := range d.Evidence {
			ev := &d.Evidence[i]
			if len(ev.JSON) > 0 {
				continue
			}
			text, ok := found[engine.Place{Topic: ev.Topic, Partition: ev.Partition, Offset: ev.Offset}]
			if !ok || len(text) > room {
				d.EvidenceTruncated = true
				continue
			}
			ev.JSON = text
			room -= len(text)
		}
	}
}

// remember keeps a text for the detection's next update, at most maxRemembered of them.
func (e *evidence) remember(at engine.Place, text []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known == nil {
		e.known = map[engine.Place][]byte{}
	}
	if e.size += len(text); e.size > maxRemembered {
		clear(e.known)
		e.size = len(text)
	}
	e.known[at] = text
}
