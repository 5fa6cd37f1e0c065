package topics

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// StageState is how a stage looks from outside: what its group, its inputs and its dead letters on the cluster say.
type StageState struct {
	Group   Group  `json:"-"`
	Stage   string `json:"stage"`   // service.stage
	Alive   bool   `json:"alive"`   // has members
	Members int    `json:"members"` //
	State   string `json:"state"`   // the group's state, as Kafka names it
	Lag     int64  `json:"lag"`     // records written to its inputs and not yet committed
	// DeadLetters are the records in the dead letter topics of its inputs. Offsets alone, which is all that is read here, count the
	// markers of transactions too: AtMost says so, until somebody has counted.
	DeadLetters int64      `json:"dead_letters"`
	AtMost      bool       `json:"dead_letters_at_most,omitempty"`
	LastEvent   *time.Time `json:"last_event"` // timestamp of the newest record of its inputs, of ingest the newest it took; nil: none
}

// Stages reads the state of every stage from the cluster.
func Stages(ctx context.Context, adm *kadm.Client, prefix string) ([]StageState, error) {
	var names, inputs, letters []string
	for _, g := range Groups() {
		names = append(names, g.Name(prefix))
		for _, in := range g.Inputs {
			inputs = append(inputs, in.Full(prefix))
			if g.Redrive != nil {
				letters = append(letters, in.DLQ().Full(prefix))
			}
		}
	}
	lags, err := adm.Lag(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("read lag of the consumer groups: %w", err)
	}
	starts, err := adm.ListStartOffsets(ctx, letters...)
	if err != nil {
		return nil, fmt.Errorf("list start offsets of dead letters: %w", err)
	}
	ends, err := adm.ListEndOffsets(ctx, letters...)
	if err != nil {
		return nil, fmt.Errorf("list end offsets of dead letters: %w", err)
	}
	newest, err := adm.ListMaxTimestampOffsets(ctx, inputs...)
	if err != nil {
		newest = nil // a broker without KIP-734: the age is left out
	}
	var out []StageState
	for _, g := range Groups() {
		s := StageState{Group: g, Stage: g.Service + "." + g.Stage}
		l := lags[g.Name(prefix)]
		s.Members, s.State = len(l.Members), l.State
		s.Alive = s.Members > 0
		if g.Redrive != nil { // a group without commits has no lag to speak of
			s.Lag = l.Lag.Total()
		}
		for _, in := range g.Inputs {
			for p, end := range ends[in.DLQ().Full(prefix)] {
				if start, ok := starts.Lookup(in.DLQ().Full(prefix), p); ok && end.Err == nil && start.Err == nil {
					s.DeadLetters += end.Offset - start.Offset
				}
			}
		}
		events := g.Inputs
		if g.Service == Ingest { // its input is a table, whose times are no event's: what it took stands here
			events = []Topic{Raw}
		}
		for _, in := range events {
			for _, o := range newest[in.Full(prefix)] {
				if t := time.UnixMilli(o.Timestamp).UTC(); o.Err == nil && o.Timestamp > 0 && (s.LastEvent == nil || t.After(*s.LastEvent)) {
					s.LastEvent = &t
				}
			}
		}
		s.AtMost = s.DeadLetters > 0
		out = append(out, s)
	}
	return out, nil
}
