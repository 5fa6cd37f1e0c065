package oktawatch

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	seedBatch      = 1000    // events of one transaction
	seedBatchBytes = 4 << 20 // and their size
	seedProgress   = 5 * time.Second
	seedShown      = 20 // lines that are no event are told one by one up to here
	seedTries      = 3  // of a transaction whose outcome is not known
)

// seeding is one run of `rules seed`, and what it tells of it.
type seeding struct {
	Org     string         `json:"org"`
	Run     string         `json:"run,omitempty"` // empty: a dry run
	Events  int            `json:"events"`        // written, or, in a dry run, that would be
	Outside int            `json:"outside"`       // left out by --since and --until
	Invalid int            `json:"invalid"`       // not events
	First   time.Time      `json:"first,omitzero"`
	Last    time.Time      `json:"last,omitzero"`
	Types   map[string]int `json:"event_types"`
	Rules   []*seededRule  `json:"rules,omitempty"` // dry run only
	TakenIn bool           `json:"taken_in"`        // --wait: the rules have them

	t            *tool
	since, until time.Time
	began, told  time.Time
	before, size int64 // bytes of the files before this one, and of all
	batch        []*record.RawEvent
	batched      int
	flush        func(context.Context, []*record.RawEvent) error // nil: dry run
	matcher      *engine.Matcher
	byRule       map[string]*seededRule
}

// seededRule is what a rule would take.
type seededRule struct {
	RuleID   string    `json:"rule_id"`
	Kind     string    `json:"kind"`
	Events   int       `json:"events"`
	Groups   int       `json:"groups"`
	Learning string    `json:"learning"`
	Learned  time.Time `json:"learned_at,omitzero"` // when learning is over, by the first event of the input
	groups   map[string]struct{}
}

func (t *tool) rulesSeed() *cobra.Command {
	var inputs []string
	var org, dir, since, until string
	var dry, skip, wait bool
	cmd := &cobra.Command{
		Use: "seed", Short: "Fill rules that learn (first_seen, baselines) from past events", Args: cobra.NoArgs,
		Long: `Feeds LogEvents of the past to rules of kind first_seen and with a baseline, so that they need not wait weeks to know what is usual.
Nothing is detected from these events, and rules without such a memory never see them. A rule counts each event once: feeding a file
again, or one whose events came live too, changes nothing, and an interrupted run is simply run again. A rule that was changed under
detection starts empty: feed it again.

A file holds JSON objects as the System Log API gives them, one a line or in arrays, or bodies of event hooks; it may be compressed by
gzip. A line that is no event is named, left out, and makes the exit code 1 (with --skip-invalid 0).`,
		Example: "  oktawatch rules seed --input events.jsonl --dry-run\n  oktawatch rules seed --input events.jsonl.gz --since 90d --wait",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := &seeding{t: t, Org: org, Types: map[string]int{}, began: time.Now(), told: time.Now()}
			var err error
			if s.since, err = whenOf("--since", since); err != nil {
				return err
			}
			if s.until, err = whenOf("--until", until); err != nil {
				return err
			}
			if strings.ContainsAny(org, "/ \t\n") {
				return fmt.Errorf("--org %q: want Okta's org id, such as 00o1abcd; it stands in https://YOUR-ORG/.well-known/okta-organization", org)
			}
			files, err := s.open(inputs)
			if err != nil {
				return err
			}
			defer func() {
				for _, f := range files {
					f.close()
				}
			}()
			if dry {
				s.Org = cmp.Or(org, ruletest.Org)
				if err := s.try(dir); err != nil {
					return err
				}
				if err := s.feed(cmd.Context(), files); err != nil {
					return err
				}
				return s.end(skip)
			}
			c, err := t.connect()
			if err != nil {
				return err
			}
			if err := c.needBroker(); err != nil {
				return err
			}
			if err := c.needRegistry(); err != nil {
				return err
			}
			return t.withBus(cmd.Context(), c, func(ctx context.Context, b *connected) error {
				if err := s.whose(ctx, b.bus); err != nil {
					return err
				}
				if err := s.write(ctx, b.bus, files); err != nil {
					return err
				}
				if wait {
					if err := s.takenIn(ctx, b.bus); err != nil {
						return err
					}
				}
				return s.end(skip)
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&inputs, "input", nil, "`file` of events, - for standard input; may be repeated")
	f.StringVar(&org, "org", "", "Okta's id of the `org` the events are of (default: that of the one source)")
	f.StringVar(&since, "since", "", "only events published from then on: a `time` (RFC 3339) or how long ago (2h, 90d)")
	f.StringVar(&until, "until", "", "only events published before: a `time` (RFC 3339) or how long ago (2h, 90d)")
	f.BoolVar(&dry, "dry-run", false, "write nothing: count event types, and what each rule would take")
	f.StringVar(&dir, "rules", "", "dry run: `directory` of the rules (default: those of the binary and of detect.rules_dir)")
	f.BoolVar(&skip, "skip-invalid", false, "exit 0 also when lines were no events")
	f.BoolVar(&wait, "wait", false, "return when the rules have taken the events in")
	cobra.CheckErr(cmd.MarkFlagRequired("input"))
	return cmd
}

func whenOf(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	at, err := parseSince(s)
	if err != nil {
		return at, fmt.Errorf("%s %q: want a time such as 2026-01-31T08:00:00Z or a duration such as 2h, 90d", flag, s)
	}
	return at, nil
}

// open opens all files before anything is written, so that a wrong name writes nothing.
func (s *seeding) open(inputs []string) ([]*seedFile, error) {
	var files []*seedFile
	for _, name := range inputs {
		f, err := openSeeds(name)
		if err != nil {
			for _, f := range files {
				f.close()
			}
			return nil, err
		}
		s.size += f.size
		files = append(files, f)
	}
	return files, nil
}

// try has the rules at hand take the events.
func (s *seeding) try(dir string) error {
	set, err := s.t.rulesInForce(dir)
	if err != nil {
		return err
	}
	s.matcher = engine.NewMatcher(set)
	s.byRule = map[string]*seededRule{}
	for _, c := range set.For(s.Org) {
		if engine.TakesSeeds(c) && c.Mode != rule.ModeDisabled {
			r := &seededRule{RuleID: c.ID, Kind: string(c.Detection.Kind), Learning: c.Detection.Learning.String(), groups: map[string]struct{}{}}
			s.byRule[c.ID] = r
			s.Rules = append(s.Rules, r)
		}
	}
	if len(s.Rules) == 0 {
		fmt.Fprintln(s.t.errs, "none of the rules learns: events of the past would go to no rule")
	}
	return nil
}

// whose finds the org.
func (s *seeding) whose(ctx context.Context, b *bus.Bus) error {
	known, err := orgsOf(ctx, b)
	if err != nil {
		return err
	}
	names := strings.Join(slices.Sorted(maps.Keys(known)), ", ")
	switch {
	case s.Org != "" && !known[s.Org]:
		fmt.Fprintf(s.t.errs, "no source has told of org %s yet (known: %s): what is fed waits until it has\n", s.Org, dash(names))
	case s.Org != "":
	case len(known) == 1:
		s.Org = names
	case len(known) == 0:
		return errors.New("whose events are they? No source has told of its org yet: name Okta's org id by --org; it stands in https://YOUR-ORG/.well-known/okta-organization")
	default:
		return fmt.Errorf("whose events are they? Name one org by --org: %s", names)
	}
	return nil
}

// orgsOf are the orgs of the sources.
func orgsOf(ctx context.Context, b *bus.Bus) (map[string]bool, error) {
	ctx, stop := context.WithTimeout(ctx, 15*time.Second)
	defer stop()
	var mu sync.Mutex
	rows := map[string]string{}
	var bad error
	for _, row := range []topics.Topic{topics.Cursors, topics.SourceStatus} {
		_, err := b.OpenTable(ctx, row, func(key string, value []byte) {
			mu.Lock()
			defer mu.Unlock()
			id := row.Name + "\x00" + key
			delete(rows, id)
			if value == nil {
				return
			}
			m := bus.Message{Topic: row, Key: []byte(key), Value: value}
			if row.Name == topics.SourceStatus.Name {
				st, err := bus.Decode[record.SourceStatus](ctx, b, m)
				if err != nil {
					bad = err
					return
				}
				rows[id] = st.Org
				return
			}
			cur, err := bus.Decode[record.Cursor](ctx, b, m)
			if err != nil {
				bad = err
				return
			}
			if !cur.Ended {
				rows[id] = cur.Org
			}
		})
		if err != nil {
			return nil, fmt.Errorf("find the org: %w", err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if bad != nil {
		return nil, fmt.Errorf("find the org: %w", bad)
	}
	out := map[string]bool{}
	for _, org := range rows {
		if org != "" {
			out[org] = true
		}
	}
	return out, nil
}

// write feeds the files in transactions of their own id.
func (s *seeding) write(ctx context.Context, b *bus.Bus, files []*seedFile) error {
	s.Run = newRun()
	w, err := b.OpenTransactional(ctx, topics.SeedTransactionalID(s.Run))
	if err != nil {
		return err
	}
	defer func() { w.Close() }()
	s.flush = func(ctx context.Context, batch []*record.RawEvent) error {
		for try := 1; ; try++ {
			err := w.Do(ctx, func(out *bus.Emit) error {
				for _, r := range batch {
					if err := out.Put(topics.Raw, r.Org+"/"+r.UUID, r); err != nil {
						return fmt.Errorf("write event %s: %w", r.UUID, err)
					}
				}
				return nil
			})
			if err == nil || try == seedTries || !errors.Is(err, bus.ErrOutcomeUnknown) {
				return err
			}
			// What may stand is written again: a rule counts it once.
			w.Close()
			if w, err = b.OpenTransactional(ctx, topics.SeedTransactionalID(s.Run)); err != nil {
				return err
			}
		}
	}
	if err := s.feed(ctx, files); err != nil {
		if s.Events > 0 {
			fmt.Fprintf(s.t.errs, "%d events are written; run it again to go on: a rule counts each event once\n", s.Events)
		}
		return err
	}
	return nil
}

func newRun() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// feed reads the files to their ends.
func (s *seeding) feed(ctx context.Context, files []*seedFile) error {
	for _, f := range files {
		for {
			doc, line, err := f.objects.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if broken, ok := errors.AsType[*brokenObject](err); ok {
				s.invalid(f.name, broken.line, broken)
				continue
			}
			if err != nil {
				return fmt.Errorf("read events: %s: %w", f.name, err)
			}
			events, err := eventsOf(doc)
			if err != nil {
				s.invalid(f.name, line, err)
				continue
			}
			for _, one := range events {
				ev, err := seedEvent(one)
				if err != nil {
					s.invalid(f.name, line, err)
					continue
				}
				if err := s.take(ctx, ev, one); err != nil {
					return err
				}
			}
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("seed rules: stopped at %s:%d: %w", f.name, line, err)
			}
			s.progress(f)
		}
		s.before += f.size
	}
	return s.send(ctx)
}

func (s *seeding) invalid(file string, line int, err error) {
	if s.Invalid++; s.Invalid <= seedShown {
		fmt.Fprintf(s.t.errs, "%s:%d: left out: %v\n", file, line, err)
	}
}

func (s *seeding) take(ctx context.Context, ev *record.SystemLog, doc []byte) error {
	at := *ev.Published
	if !s.since.IsZero() && at.Before(s.since) || !s.until.IsZero() && !at.Before(s.until) {
		s.Outside++
		return nil
	}
	if s.First.IsZero() || at.Before(s.First) {
		s.First = at
	}
	if at.After(s.Last) {
		s.Last = at
	}
	s.Types[strings.Clone(ev.EventType)]++
	if s.flush == nil {
		s.Events++
		return s.judge(ev)
	}
	doc = bytes.Clone(doc)
	sum := sha256.Sum256(doc)
	s.batch = append(s.batch, &record.RawEvent{
		Org: s.Org, SourceID: "seed-" + s.Run, Source: "backfill", Lane: "live", Seed: true, ReceivedAt: time.Now().UTC().Truncate(time.Millisecond),
		UUID: strings.Clone(ev.UUID), Size: int64(len(doc)), SHA256: hex.EncodeToString(sum[:]), JSON: doc,
	})
	if s.batched += len(doc); len(s.batch) < seedBatch && s.batched < seedBatchBytes {
		return nil
	}
	return s.send(ctx)
}

func (s *seeding) send(ctx context.Context) error {
	if len(s.batch) == 0 {
		return nil
	}
	if err := s.flush(ctx, s.batch); err != nil {
		return err
	}
	s.Events += len(s.batch)
	s.batch, s.batched = s.batch[:0], 0
	return nil
}

func (s *seeding) judge(ev *record.SystemLog) error {
	ev.Derived = record.Derived{Org: s.Org, Lane: "live", Copy: 1, Seed: true, Time: *ev.Published, Received: *ev.Published, RawPartition: -1, RawOffset: -1}
	var v record.SystemLogView
	if err := v.Load(ev); err != nil {
		return fmt.Errorf("judge event %s: %w", ev.UUID, err)
	}
	last := ""
	for _, m := range s.matcher.Take(&v, engine.Place{}) {
		r := s.byRule[m.RuleID]
		if r == nil {
			continue
		}
		r.groups[m.Group] = struct{}{}
		if m.RuleID != last {
			r.Events++
		}
		last = m.RuleID
	}
	return nil
}

func (s *seeding) progress(f *seedFile) {
	now := time.Now()
	if now.Sub(s.told) < seedProgress {
		return
	}
	s.told = now
	part := ""
	if s.size > 0 && f.size > 0 {
		part = fmt.Sprintf(", %d%% of the input", min(100*(s.before+f.read)/s.size, 100))
	}
	fmt.Fprintf(s.t.errs, "%d events, %.0f/s%s\n", s.Events, float64(s.Events)/now.Sub(s.began).Seconds(), part)
}

// takenIn waits until each stage has passed what was written.
func (s *seeding) takenIn(ctx context.Context, b *bus.Bus) error {
	for _, step := range []struct {
		topic topics.Topic
		group topics.Group
	}{{topics.Raw, topics.NormalizeDedup}, {topics.SystemLog, topics.DetectMatch}, {topics.Matches, topics.DetectState}, {topics.Matches, topics.DetectState}} { // the last twice: how far back seeds go is told in it
		ends, err := b.Ends(ctx, step.topic)
		for done := false; err == nil && !done; {
			if done, err = b.Passed(ctx, step.group, ends); err != nil || done {
				break
			}
			if now := time.Now(); now.Sub(s.told) >= seedProgress {
				s.told = now
				fmt.Fprintf(s.t.errs, "waiting for %s\n", step.group.Name(b.Prefix()))
			}
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
		}
		if err != nil {
			return fmt.Errorf("wait for the rules to take in what is written: %w", err)
		}
	}
	s.TakenIn = true
	return nil
}

// end tells what was done.
func (s *seeding) end(skip bool) error {
	for _, r := range s.Rules {
		r.Groups = len(r.groups)
		if d, err := time.ParseDuration(r.Learning); err == nil && !s.First.IsZero() {
			r.Learned = s.First.Add(d)
		}
	}
	if err := s.print(); err != nil {
		return err
	}
	if s.Invalid > seedShown {
		fmt.Fprintf(s.t.errs, "%d more were left out\n", s.Invalid-seedShown)
	}
	if s.Invalid > 0 && !skip {
		return errFindings
	}
	return nil
}

func (s *seeding) print() error {
	out := s.t.out
	if s.t.output == "json" {
		return s.t.json(s)
	}
	what := fmt.Sprintf("wrote %d events of org %s as run %s", s.Events, s.Org, s.Run)
	if s.flush == nil {
		what = fmt.Sprintf("would write %d events", s.Events)
	}
	if s.Events > 0 {
		what += fmt.Sprintf(", published %s to %s", s.First.UTC().Format(time.RFC3339), s.Last.UTC().Format(time.RFC3339))
	}
	for _, n := range []struct {
		n    int
		what string
	}{{s.Outside, "outside --since and --until"}, {s.Invalid, "no events"}} {
		if n.n > 0 {
			what += fmt.Sprintf("; %d %s", n.n, n.what)
		}
	}
	fmt.Fprintln(out, what)
	if s.TakenIn {
		fmt.Fprintln(out, "the rules have taken them in")
	}
	if s.flush != nil {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(s.Rules) > 0 {
		fmt.Fprintln(w, "\nRULE\tKIND\tTAKES\tGROUPS\tLEARNED AT")
		for _, r := range s.Rules {
			learned := "-"
			if !r.Learned.IsZero() {
				learned = r.Learned.UTC().Format(time.RFC3339)
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", r.RuleID, r.Kind, r.Events, r.Groups, learned)
		}
	}
	if len(s.Types) > 0 {
		fmt.Fprintln(w, "\nEVENT TYPE\tEVENTS")
		for _, name := range slices.SortedFunc(maps.Keys(s.Types), func(a, b string) int {
			return cmp.Or(cmp.Compare(s.Types[b], s.Types[a]), strings.Compare(a, b))
		}) {
			fmt.Fprintf(w, "%s\t%d\n", name, s.Types[name])
		}
	}
	return w.Flush()
}
