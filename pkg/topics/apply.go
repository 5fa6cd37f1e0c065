package topics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// Default partition counts of topics that do not exist yet. They are for ever: see Problem.
const (
	DefaultPartitions  = 12
	EmbeddedPartitions = 4
)

// Plan is how the map is to stand on a cluster.
type Plan struct {
	Prefix      string // before topics, groups, transactional ids and subjects
	Partitions  int32  // of topics that do not exist yet; zero: DefaultPartitions
	Replication int16  // zero: the broker's default
	// Retention, if positive, caps each topic's retention in milliseconds, so that an embedded broker's directory stays small.
	Retention int64
}

func (p Plan) partitions() int32 { return cmp.Or(p.Partitions, DefaultPartitions) }

func (p Plan) configs(t Topic) map[string]string {
	c := t.Configs()
	if p.Retention > 0 && t.Retention.Milliseconds() > p.Retention {
		c["retention.ms"] = itoa(p.Retention)
	}
	return c
}

// Difference is one way in which the cluster differs from the map.
type Difference struct {
	Topic  string `json:"topic"` // full name
	What   string `json:"what"`  // missing, config or partitions
	Key    string `json:"key,omitempty"`
	Have   string `json:"have,omitempty"`
	Want   string `json:"want,omitempty"`
	Remedy string `json:"remedy,omitempty"` // what a person must do where apply will not

	row Topic
}

// String is the line people read.
func (d Difference) String() string {
	switch d.What {
	case "missing":
		return d.Topic + ": missing, want " + d.Want + " partitions"
	case "config":
		return fmt.Sprintf("%s: %s is %s, want %s", d.Topic, d.Key, cmp.Or(d.Have, "unset"), d.Want)
	}
	return fmt.Sprintf("%s: has %s partitions, want %s: %s", d.Topic, d.Have, d.Want, d.Remedy)
}

// Status is one row of the map beside what the cluster has.
type Status struct {
	Topic
	FullName   string
	Exists     bool
	Partitions int
}

// List returns every row with its state on the cluster.
func List(ctx context.Context, adm *kadm.Client, p Plan) ([]Status, error) {
	have, err := adm.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var out []Status
	for _, t := range All() {
		d, ok := have[t.Full(p.Prefix)]
		ok = ok && d.Err == nil
		s := Status{Topic: t, FullName: t.Full(p.Prefix), Exists: ok}
		if ok {
			s.Partitions = len(d.Partitions)
		}
		out = append(out, s)
	}
	return out, nil
}

// Diff compares the cluster with the map. Topics that meet must have one partition count: what counts is that of the
// first of them that exists.
func Diff(ctx context.Context, adm *kadm.Client, p Plan) ([]Difference, error) {
	rows, err := List(ctx, adm, p)
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	var present []string
	for _, r := range rows {
		if !r.Exists {
			continue
		}
		present = append(present, r.FullName)
		if r.Meets != "" && count[r.Meets] == 0 {
			count[r.Meets] = r.Partitions
		}
	}
	configs := map[string]map[string]string{}
	if len(present) > 0 {
		rcs, err := adm.DescribeTopicConfigs(ctx, present...)
		if err != nil {
			return nil, fmt.Errorf("describe topic configs: %w", err)
		}
		for _, rc := range rcs {
			if rc.Err != nil {
				return nil, fmt.Errorf("describe configs of topic %s: %w", rc.Name, rc.Err)
			}
			m := map[string]string{}
			for _, c := range rc.Configs {
				m[c.Key] = c.MaybeValue()
			}
			configs[rc.Name] = m
		}
	}
	var out []Difference
	for _, r := range rows {
		want := int(p.partitions())
		if r.Meets != "" && count[r.Meets] != 0 {
			want = count[r.Meets]
		}
		if !r.Exists {
			out = append(out, Difference{Topic: r.FullName, What: "missing", Want: itoa(int64(want)), row: r.Topic})
			continue
		}
		if r.Meets != "" && r.Partitions != want || p.Partitions != 0 && r.Partitions != int(p.Partitions) {
			want = cmp.Or(int(p.Partitions), want)
			out = append(out, Difference{
				Topic: r.FullName, What: "partitions", Have: itoa(int64(r.Partitions)), Want: itoa(int64(want)), row: r.Topic,
				Remedy: "a keyed topic's partition count is for ever; create a second set under another topics.prefix, copy what is to be kept, then point every service at it",
			})
		}
		w := p.configs(r.Topic)
		for _, k := range slices.Sorted(maps.Keys(w)) {
			if have := configs[r.FullName][k]; have != w[k] {
				out = append(out, Difference{Topic: r.FullName, What: "config", Key: k, Have: have, Want: w[k], row: r.Topic})
			}
		}
	}
	return out, nil
}

// Apply makes the cluster as the map wants it and returns what it changed. It refuses, before it changes anything, when
// a partition count differs.
func Apply(ctx context.Context, adm *kadm.Client, p Plan) ([]Difference, error) {
	diffs, err := Diff(ctx, adm, p)
	if err != nil {
		return nil, err
	}
	for _, d := range diffs {
		if d.What == "partitions" {
			return nil, errors.New(d.String())
		}
	}
	replication := p.Replication
	if replication == 0 {
		replication = -1
	}
	for _, d := range diffs {
		switch d.What {
		case "missing":
			cfg := map[string]*string{}
			for k, v := range p.configs(d.row) {
				cfg[k] = new(v)
			}
			var n int32
			if _, err := fmt.Sscan(d.Want, &n); err != nil {
				return nil, err
			}
			res, err := adm.CreateTopic(ctx, n, replication, cfg, d.Topic)
			if err == nil {
				err = res.Err
			}
			if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
				return nil, fmt.Errorf("create topic %s: %w; where topics may not be created, run oktawatch topics apply --print and hand the commands to those who may", d.Topic, err)
			}
		case "config":
			res, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: d.Key, Value: new(d.Want)}}, d.Topic)
			if err == nil {
				for _, r := range res {
					err = cmp.Or(err, r.Err)
				}
			}
			if err != nil {
				return nil, fmt.Errorf("set %s of topic %s: %w", d.Key, d.Topic, err)
			}
		}
	}
	return diffs, nil
}

// Commands are the kafka-topics and kafka-acls commands that do what Apply does and give each principal its least
// rights, for clusters where we may not create.
func Commands(p Plan, bootstrap string) []string {
	var out []string
	for _, t := range All() {
		var b strings.Builder
		fmt.Fprintf(&b, "kafka-topics.sh --bootstrap-server %s --create --if-not-exists --topic %s --partitions %d", bootstrap, t.Full(p.Prefix), p.partitions())
		if p.Replication > 0 {
			fmt.Fprintf(&b, " --replication-factor %d", p.Replication)
		}
		cfg := p.configs(t)
		for _, k := range slices.Sorted(maps.Keys(cfg)) {
			fmt.Fprintf(&b, " --config %s=%s", k, cfg[k])
		}
		out = append(out, b.String())
	}
	for _, a := range ACLs(p.Prefix) {
		out = append(out, a.command(bootstrap))
	}
	return out
}

// ACL is one right of one principal.
type ACL struct {
	Principal  string   `json:"principal"`
	Resource   string   `json:"resource"` // topic, group or transactional-id
	Name       string   `json:"name"`
	Prefixed   bool     `json:"prefixed,omitempty"`
	Operations []string `json:"operations"`
}

func (a ACL) command(bootstrap string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kafka-acls.sh --bootstrap-server %s --add --allow-principal User:%s", bootstrap, a.Principal)
	for _, op := range a.Operations {
		fmt.Fprintf(&b, " --operation %s", op)
	}
	fmt.Fprintf(&b, " --%s %s", a.Resource, a.Name)
	if a.Prefixed {
		b.WriteString(" --resource-pattern-type prefixed")
	}
	return b.String()
}

// ACLs lists the least rights of every principal, derived from the rows.
func ACLs(prefix string) []ACL {
	var out []ACL
	for _, who := range Principals() {
		for _, t := range All() {
			var ops []string
			if slices.Contains(t.Readers, who) {
				ops = append(ops, "Read")
			}
			if slices.Contains(t.Writers, who) {
				ops = append(ops, "Write")
			}
			if who == CLI && t.Name != Raw.Name && !slices.Contains(ops, "Read") {
				ops = append([]string{"Read"}, ops...) // topics tail
			}
			if len(ops) == 0 && who == Detect && t.Name == Raw.Name {
				ops = []string{"Describe"} // its clock compares normalize's offsets with the end of the topic
			} else if len(ops) > 0 {
				ops = append(ops, "Describe")
			}
			if len(ops) > 0 {
				out = append(out, ACL{Principal: who, Resource: "topic", Name: t.Full(prefix), Operations: ops})
			}
		}
		for _, g := range Groups() {
			switch {
			case g.Service == who:
				out = append(out,
					ACL{Principal: who, Resource: "group", Name: g.Name(prefix), Operations: []string{"Read", "Describe"}},
					ACL{Principal: who, Resource: "transactional-id", Name: g.TransactionalPrefix(prefix), Prefixed: true, Operations: []string{"Describe", "Write"}})
			case who == Detect && g.Service == Normalize, who == CLI:
				out = append(out, ACL{Principal: who, Resource: "group", Name: g.Name(prefix), Operations: []string{"Describe"}})
			}
		}
		if ids := map[string]string{Ingest: pollTransactionalPrefix, CLI: seedTransactionalPrefix}[who]; ids != "" {
			out = append(out, ACL{Principal: who, Resource: "transactional-id", Name: prefix + ids, Prefixed: true, Operations: []string{"Describe", "Write"}})
		}
	}
	return out
}
