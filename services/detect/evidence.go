package detect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	readBackFor   = 2 * time.Second  // for all evidence of a batch
	readBackTries = 15 * time.Second // for how long a batch waits for evidence that cannot be read
	maxRemembered = 8 << 20          // of JSON
	roomForFrame  = 32 << 10         // what a detection's frame and key may add to it
)

// judged is what a batch of the state stage comes to. It is written at the end of it, so that the evidence of all detections is read back
// at once.
type judged struct {
	t     *stateTask
	ctx   context.Context //nolint:containedctx // lives as long as one call of the stage
	out   *bus.Emit
	found []*record.Detection
	seeds map[lane]time.Time // the earliest seed of this batch
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
	if err := s.evidence.fill(w.ctx, s, w.found); err != nil {
		return err
	}
	for _, d := range w.found {
		if err := w.out.Put(topics.Detections, d.Fingerprint, d); err != nil {
			return fmt.Errorf("write detection of rule %s: %w", d.RuleID, err)
		}
		s.m.detections.With(d.RuleID, d.Mode).Inc()
		if d.Lane == liveLane && !d.Withdrawn {
			s.health.facts.met(d.Org, d.RuleID, func(r *ruleFacts) { r.hit(d.LastTime.UnixMilli()) })
		}
		if what, ok := w.t.limits[d.RuleID]; ok {
			delete(w.t.limits, d.RuleID)
			s.health.facts.met(d.Org, d.RuleID, func(r *ruleFacts) { r.limited++ })
			if err := w.t.tell(w.out, findLimited.Finding, d.Org, d.RuleID, what, d.LastTime); err != nil {
				return err
			}
		}
	}
	return nil
}

// evidence gives detections of windowed rules the events they were made of: a Match carries only the fields its rule reads. It
// remembers what the match stage of this process took lately, and reads the rest back from where it lies.
type evidence struct {
	mu    sync.Mutex
	known map[engine.Place][]byte
	size  int
	since time.Time // of the first failure in a row to read back
}

// fill gives each detection its events. What retention took stays away, and the detection says so. What the broker does not give is
// asked for again with the whole batch, but not for long: an event's text is not worth the stage's standstill.
func (e *evidence) fill(ctx context.Context, s *Service, ds []*record.Detection) error {
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
	if len(wanted) > 0 {
		back, err := readBack(ctx, s.bus, wanted)
		e.mu.Lock()
		switch {
		case err == nil:
			e.since = time.Time{}
		case e.since.IsZero():
			e.since = time.Now()
			fallthrough
		case time.Since(e.since) < readBackTries:
			e.mu.Unlock()
			return err
		default:
			s.m.unread.Inc()
			s.log.Warn("evidence could not be read back: detections go without it", "error", err)
		}
		e.mu.Unlock()
		for at, text := range back {
			found[at] = text
			e.remember(at, text)
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
	return nil
}

// readBack reads events from where they lie, all partitions at once. What it could read it gives with the error too.
func readBack(ctx context.Context, b *bus.Bus, wanted map[int32][]int64) (map[engine.Place][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, readBackFor)
	defer cancel()
	out := map[engine.Place][]byte{}
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	for partition, offsets := range wanted {
		wg.Go(func() {
			got, err := b.ReadBack(ctx, topics.SystemLog, partition, offsets...)
			mu.Lock()
			defer mu.Unlock()
			for offset, m := range got {
				payload, perr := b.Payload(ctx, m, "system_log")
				var v record.SystemLogView
				switch {
				case errors.Is(perr, record.ErrUnreadable):
				case perr != nil:
					err = perr
				case v.Reset(payload) == nil:
					out[engine.Place{Topic: topics.SystemLog.Name, Partition: partition, Offset: offset}] = bytes.Clone(v.JSON())
				}
			}
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	return out, failed
}

// remember keeps an event's text for the detections that are made of it, at most maxRemembered of them.
func (e *evidence) remember(at engine.Place, text []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known == nil {
		e.known = map[engine.Place][]byte{}
	}
	if _, ok := e.known[at]; ok {
		return
	}
	if e.size += len(text); e.size > maxRemembered {
		clear(e.known)
		e.size = len(text)
	}
	e.known[at] = text
}
