package oktawatch

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/topics"
)

func (t *tool) topics() *cobra.Command {
	cmd := &cobra.Command{Use: "topics", Short: "Create, compare, list and read the topics"}
	cmd.AddCommand(t.topicsApply(), t.topicsList(), t.topicsDiff(), t.topicsTail())
	return cmd
}

func planFlags(cmd *cobra.Command, p *topics.Plan) {
	cmd.Flags().Int32Var(&p.Partitions, "partitions", 0, fmt.Sprintf("partitions of topics that do not exist yet (default %d); for ever", topics.DefaultPartitions))
	cmd.Flags().Int16Var(&p.Replication, "replication", 0, "replication factor of new topics (default: the broker's)")
}

func (t *tool) topicsApply() *cobra.Command {
	var p topics.Plan
	var show bool
	cmd := &cobra.Command{
		Use: "apply", Short: "Create missing topics and mend their settings", Args: cobra.NoArgs,
		Long: "Creates every topic of the map and mends settings that differ. Running it again changes nothing. It never changes a partition\ncount: keys would move to other partitions.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.connect()
			if err != nil {
				return err
			}
			p.Prefix = c.prefix
			if show {
				brokers := strings.Join(c.kafka.Brokers, ",")
				if brokers == "" {
					brokers = "$BOOTSTRAP"
				}
				for _, line := range topics.Commands(p, brokers) {
					fmt.Fprintln(t.out, line)
				}
				return nil
			}
			return t.withBus(cmd.Context(), c, func(ctx context.Context, b *connected) error {
				done, err := topics.Apply(ctx, b.bus.Admin(), p)
				if err != nil {
					return err
				}
				if t.output == "json" {
					return t.json(done)
				}
				for _, d := range done {
					if d.What == "missing" {
						fmt.Fprintf(t.out, "created %s with %s partitions\n", d.Topic, d.Want)
					} else {
						fmt.Fprintf(t.out, "set %s %s=%s\n", d.Topic, d.Key, d.Want)
					}
				}
				if len(done) == 0 {
					fmt.Fprintf(t.out, "all %d topics are as they should be\n", len(topics.All()))
				}
				return nil
			})
		},
	}
	planFlags(cmd, &p)
	cmd.Flags().BoolVar(&show, "print", false, "only print the kafka-topics and kafka-acls commands, for clusters where one may not create")
	return cmd
}

func (t *tool) topicsDiff() *cobra.Command {
	var p topics.Plan
	cmd := &cobra.Command{
		Use: "diff", Short: "Show how the cluster differs from the map (exit 1 when it does)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.connect()
			if err != nil {
				return err
			}
			p.Prefix = c.prefix
			return t.withBus(cmd.Context(), c, func(ctx context.Context, b *connected) error {
				diffs, err := topics.Diff(ctx, b.bus.Admin(), p)
				if err != nil {
					return err
				}
				if t.output == "json" {
					if err := t.json(diffs); err != nil {
						return err
					}
				} else {
					for _, d := range diffs {
						fmt.Fprintln(t.out, d)
					}
				}
				if len(diffs) > 0 {
					return errFindings
				}
				return nil
			})
		},
	}
	planFlags(cmd, &p)
	return cmd
}

func (t *tool) topicsList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the topics: record, key, partitions, retention", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.connect()
			if err != nil {
				return err
			}
			return t.withBus(cmd.Context(), c, func(ctx context.Context, b *connected) error {
				rows, err := topics.List(ctx, b.bus.Admin(), topics.Plan{Prefix: c.prefix})
				if err != nil {
					return err
				}
				if t.output == "json" {
					type row struct {
						Topic       string   `json:"topic"`
						Record      string   `json:"record,omitempty"`
						Key         string   `json:"key"`
						Partitioner string   `json:"partitioner"`
						Partitions  int      `json:"partitions"`
						Cleanup     string   `json:"cleanup"`
						RetentionMs int64    `json:"retention_ms,omitempty"`
						MaxBytes    int      `json:"max_bytes"`
						Public      bool     `json:"public"`
						Exists      bool     `json:"exists"`
						Writers     []string `json:"writers"`
						Readers     []string `json:"readers"`
						Doc         string   `json:"doc"`
					}
					out := make([]row, 0, len(rows))
					for _, r := range rows {
						out = append(out, row{
							r.FullName, r.Record, r.Key, string(r.Partitioner), r.Partitions, string(r.Cleanup), r.Retention.Milliseconds(), r.MaxBytes, r.Public,
							r.Exists, r.Writers, r.Readers, r.Doc,
						})
					}
					return t.json(out)
				}
				w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "TOPIC\tRECORD\tKEY\tPARTITIONS\tCLEANUP\tRETENTION\tPUBLIC")
				for _, r := range rows {
					parts := "missing"
					if r.Exists {
						parts = fmt.Sprint(r.Partitions)
					}
					public := ""
					if r.Public {
						public = "yes"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.FullName, dash(r.Record), r.Key, parts, r.Cleanup, retention(r.Retention), public)
				}
				return w.Flush()
			})
		},
	}
}

func retention(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return strings.TrimSuffix(d.String(), "0m0s")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// jsonLine prints one object on one line.
func (t *tool) jsonLine(v any) error {
	enc := json.NewEncoder(t.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (t *tool) json(v any) error {
	enc := json.NewEncoder(t.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
