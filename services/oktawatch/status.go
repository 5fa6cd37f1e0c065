package oktawatch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

type statusReport struct {
	Kafka   []string            `json:"kafka"`
	Stages  []topics.StageState `json:"stages"`
	Sources []sourceState       `json:"sources"`
}

type sourceState struct {
	Source   string    `json:"source"`
	Part     string    `json:"part"`
	URL      string    `json:"url"`
	TestOrg  bool      `json:"test_org"`
	State    string    `json:"state"`
	Alive    bool      `json:"alive"`
	Seen     time.Time `json:"heartbeat_at"`
	Events   int64     `json:"events"`
	Through  time.Time `json:"through,omitzero"`
	Message  string    `json:"message,omitempty"`
	LastErr  string    `json:"last_error,omitempty"`
	ErrAt    time.Time `json:"last_error_at,omitzero"`
	Warnings []string  `json:"warnings,omitempty"`
}

// heartbeatsMissed is how long a part may be silent before it counts as gone; it reports each 30 seconds.
const heartbeatsMissed = 95 * time.Second

func (t *tool) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show each stage: alive, lag, dead letters, last event (exit 1 when one is not alive)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.connect()
			if err != nil {
				return err
			}
			return t.withBus(cmd.Context(), c, func(ctx context.Context, b *connected) error {
				r := statusReport{Kafka: c.kafka.Brokers}
				if r.Stages, err = topics.Stages(ctx, b.bus.Admin(), c.prefix); err != nil {
					return err
				}
				if r.Sources, err = sources(ctx, b.bus); err != nil {
					return err
				}
				c.countLetters(ctx, r.Stages)
				if t.output == "json" {
					err = t.json(r)
				} else {
					err = t.printStatus(r)
				}
				if err != nil {
					return err
				}
				for _, s := range r.Stages {
					if !s.Alive {
						return errFindings
					}
				}
				return nil
			})
		},
	}
}

// countFor bounds how long dead letters are counted before a bound of their number has to do.
const countFor = 5 * time.Second

// countLetters puts the true number of dead letters where the offsets gave a bound: markers of transactions and what was aborted are no
// letters. A topic that cannot be counted in time keeps its bound.
func (c connection) countLetters(ctx context.Context, stages []topics.StageState) {
	ctx, cancel := context.WithTimeout(ctx, countFor)
	defer cancel()
	r, err := c.openTail()
	if err != nil {
		return
	}
	var mu sync.Mutex
	counted := map[string]int64{}
	var wg sync.WaitGroup
	asked := map[string]bool{}
	for _, s := range stages {
		if !s.AtMost {
			continue
		}
		for _, in := range s.Group.Inputs {
			name := in.DLQ().Name
			if asked[name] {
				continue
			}
			asked[name] = true
			wg.Go(func() {
				if n, err := r.Count(ctx, name, tail.Options{Exit: true}, nil); err == nil {
					mu.Lock()
					defer mu.Unlock()
					counted[name] = n.Records
				}
			})
		}
	}
	wg.Wait()
	for i := range stages {
		s := &stages[i]
		sum := int64(0)
		for _, in := range s.Group.Inputs {
			n, ok := counted[in.DLQ().Name]
			if !ok {
				sum = -1
				break
			}
			sum += n
		}
		if s.AtMost && sum >= 0 {
			s.DeadLetters, s.AtMost = sum, false
		}
	}
}

func sources(ctx context.Context, b *bus.Bus) ([]sourceState, error) {
	ctx, stop := context.WithTimeout(ctx, 15*time.Second)
	defer stop()
	rows := map[string]sourceState{}
	var mu sync.Mutex
	var bad error
	_, err := b.OpenTable(ctx, topics.SourceStatus, func(key string, value []byte) {
		mu.Lock()
		defer mu.Unlock()
		if value == nil {
			delete(rows, key)
			return
		}
		s, err := bus.Decode[record.SourceStatus](ctx, b, bus.Message{Topic: topics.SourceStatus, Key: []byte(key), Value: value})
		if err != nil {
			bad = err
			return
		}
		st := sourceState{
			Source: s.SourceID, Part: s.Part, URL: s.URL, TestOrg: s.TestOrg, State: s.State, Seen: s.HeartbeatAt, Events: s.Events,
			Message: s.Message, LastErr: s.LastError, Warnings: s.Warnings, Alive: time.Since(s.HeartbeatAt) < heartbeatsMissed,
		}
		if s.Through != nil {
			st.Through = *s.Through
		}
		if s.LastErrorAt != nil {
			st.ErrAt = *s.LastErrorAt
		}
		rows[key] = st
	})
	mu.Lock()
	defer mu.Unlock()
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, fmt.Errorf("read source status: %w", err)
	}
	out := make([]sourceState, 0, len(rows))
	for _, s := range rows {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b sourceState) int { return strings.Compare(a.Source+"/"+a.Part, b.Source+"/"+b.Part) })
	return out, nil
}

func (t *tool) printStatus(r statusReport) error {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STAGE\tALIVE\tMEMBERS\tLAG\tDEAD LETTERS\tLAST EVENT")
	for _, s := range r.Stages {
		alive := "yes"
		if !s.Alive {
			alive = "NO"
		}
		letters, last := fmt.Sprint(s.DeadLetters), time.Time{}
		if s.AtMost {
			letters = "at most " + letters
		}
		if s.LastEvent != nil {
			last = *s.LastEvent
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", s.Stage, alive, s.Members, s.Lag, letters, ago(last))
	}
	if len(r.Sources) > 0 {
		fmt.Fprintln(w, "\nSOURCE\tPART\tSTATE\tEVENTS\tCOMPLETE TO\tHEARTBEAT\tORG")
	}
	for _, s := range r.Sources {
		state := s.State
		if !s.Alive {
			state = "GONE"
		}
		org := s.URL
		if s.TestOrg {
			org += " (test org)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", s.Source, s.Part, state, s.Events, ago(s.Through), ago(s.Seen), org)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range r.Sources {
		for _, m := range s.Warnings {
			fmt.Fprintf(t.out, "%s/%s: %s\n", s.Source, s.Part, m)
		}
		if s.LastErr != "" {
			fmt.Fprintf(t.out, "%s/%s: last error, %s: %s\n", s.Source, s.Part, ago(s.ErrAt), s.LastErr)
		}
	}
	return nil
}

func ago(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	d := time.Since(at)
	switch {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	}
	return at.UTC().Format("2006-01-02 15:04 UTC")
}
