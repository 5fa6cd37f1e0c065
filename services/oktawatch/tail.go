package oktawatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// openTail opens the outsider's reader on a connection.
func (c connection) openTail() (*tail.Reader, error) {
	if err := c.needBroker(); err != nil {
		return nil, err
	}
	return tail.Open(tail.Config{
		Brokers: c.kafka.Brokers, TLS: tail.TLS(c.kafka.TLS), SASL: tail.SASL(c.kafka.SASL), Prefix: c.prefix, Registry: c.registry,
	}, tail.Deps{})
}

// line is one record as `topics tail --output json` prints it.
type line struct {
	Topic     string            `json:"topic"`
	Partition int32             `json:"partition"`
	Offset    int64             `json:"offset"`
	Timestamp time.Time         `json:"timestamp"`
	Key       string            `json:"key"`
	Headers   map[string]string `json:"headers,omitempty"`
	Value     json.RawMessage   `json:"value"` // null: deleted
	Error     string            `json:"error,omitempty"`
}

func (t *tool) topicsTail() *cobra.Command {
	var since, search string
	var exit, fromEnd bool
	cmd := &cobra.Command{
		Use: "tail TOPIC", Short: "Read any topic: committed records only, without joining a group", Args: cobra.ExactArgs(1),
		Long: `Prints the records of a topic, decoded by the schema they were written with, oldest first within each partition, and then whatever
comes. It joins no group and takes nothing from anybody. Records of aborted transactions are not shown.`,
		Example: "  oktawatch topics tail okta.detections.v1 --since 1h -o json | jq .value.title\n  oktawatch topics tail okta.raw.v1.dlq --exit",
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, row := range topics.All() {
				names = append(names, row.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.connect()
			if err != nil {
				return err
			}
			r, err := c.openTail()
			if err != nil {
				return err
			}
			opts := tail.Options{FromEnd: fromEnd, Exit: exit}
			if since != "" {
				if fromEnd {
					return errors.New("--since and --from-end exclude each other")
				}
				if opts.Since, err = parseSince(since); err != nil {
					return err
				}
			}
			search = strings.ToLower(search)
			err = r.Read(cmd.Context(), args[0], opts, func(rec tail.Record) error { return t.printRecord(cmd.Context(), rec, search) })
			return ended(cmd.Context(), err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "start at records from then on: a `time` (RFC 3339) or how long ago (90s, 2h, 7d)")
	f.StringVar(&search, "search", "", "only records whose key or JSON holds this `text`, whatever its case")
	f.BoolVar(&exit, "exit", false, "end at the end that was there at the start")
	f.BoolVar(&fromEnd, "from-end", false, "start at what comes next")
	return cmd
}

func parseSince(s string) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n float64
		if _, scanErr := fmt.Sscanf(days+"!", "%g!", &n); scanErr == nil {
			d, err = time.Duration(n*24*float64(time.Hour)), nil
		}
	}
	if err != nil || d < 0 {
		return time.Time{}, fmt.Errorf("--since %q: want a time such as 2026-01-31T08:00:00Z or a duration such as 90s, 2h, 7d", s)
	}
	return time.Now().Add(-d), nil
}

func (t *tool) printRecord(ctx context.Context, rec tail.Record, search string) error {
	l := line{
		Topic: rec.Topic, Partition: rec.Partition, Offset: rec.Offset, Timestamp: rec.Timestamp.UTC(), Key: printable(rec.Key), Value: json.RawMessage("null"),
	}
	if len(rec.Headers) > 0 {
		l.Headers = map[string]string{}
		for _, h := range rec.Headers {
			l.Headers[h.Key] = printable(h.Value)
		}
	}
	if rec.Value != nil {
		plain, err := rec.Plain(ctx)
		if err != nil { // bytes nobody can read are shown as they are: dead letters are read here too
			l.Error = err.Error()
			if plain, err = json.Marshal(printable(rec.Value)); err != nil {
				return err
			}
		}
		l.Value = plain
	}
	if search != "" && !strings.Contains(strings.ToLower(l.Key), search) && !strings.Contains(strings.ToLower(string(l.Value)), search) {
		return nil
	}
	if t.output == "json" {
		return t.jsonLine(l)
	}
	_, err := fmt.Fprintf(t.out, "%s  %d@%d  %s\n", l.Timestamp.Format("2006-01-02T15:04:05.000Z"), l.Partition, l.Offset, l.Key)
	for _, k := range slices.Sorted(maps.Keys(l.Headers)) {
		if err == nil {
			_, err = fmt.Fprintf(t.out, "  %s: %s\n", k, l.Headers[k])
		}
	}
	if l.Error != "" && err == nil {
		_, err = fmt.Fprintf(t.out, "  (not decoded: %s)\n", l.Error)
	}
	if err == nil {
		_, err = fmt.Fprintf(t.out, "  %s\n", l.Value)
	}
	return err
}

// printable is text as it is, and bytes that are none as %q would show them.
func printable(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	q := fmt.Sprintf("%q", b)
	return q[1 : len(q)-1]
}
