package oktawatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
	"github.com/oktawatch/oktawatch/services/ingest"
)

// The demo's source, by which a data directory of the demo is known.
const (
	demoSource = "demo"
	demoName   = "simulated org"
)

// startOrg starts the simulated org and waits until it answers.
func (u *up) startOrg(ctx context.Context, g *errgroup.Group) error {
	c := u.cfg.Sim
	if c.DataDir == "" {
		c.DataDir = u.dir + "/okta"
	}
	token, err := u.secret("okta.token")
	if err != nil {
		return err
	}
	text, err := readSecret(token)
	if err != nil {
		return err
	}
	c.APITokens = []string{text}
	if c.Log, err = u.logger("sim"); err != nil {
		return err
	}
	if u.org, err = oktasim.New(c); err != nil {
		return err
	}
	g.Go(func() error {
		defer close(u.orgEnded)
		if err := ended(ctx, u.org.Run(ctx)); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				what, _, _ := strings.Cut(err.Error(), "\n") // each of its files may say the same
				return fmt.Errorf("the simulated org: %s: free some space on that disk, or set another data directory by OKTAWATCH_DATA_DIR", what)
			}
			return fmt.Errorf("the simulated org: %w", err)
		}
		return nil
	})
	select {
	case <-u.org.Ready():
	case <-u.orgEnded:
		return g.Wait()
	case <-ctx.Done():
		return ctx.Err()
	}
	u.cfg.Ingest.Sources = []ingest.SourceConfig{{ID: demoSource, Name: demoName, Org: u.org.ID(), OrgURL: u.org.URL(), TokenFile: token}}
	if u.cfg.Ingest.Hook.PublicURL == "" {
		u.cfg.Ingest.Hook.PublicURL = "auto"
		if u.cfg.Ingest.Hook.Listen == "" {
			u.cfg.Ingest.Hook.Listen = "127.0.0.1:0"
		}
	}
	return u.broker.Announce(runSim, u.org.URL())
}

// watchDemo counts what comes out as an outsider of the pipeline would, until the demo is over, and prints the summary.
// It is over when its time is, or when somebody asks it to end.
func (u *up) watchDemo(ctx context.Context, asked <-chan struct{}) error {
	c := connection{kafka: u.cfg.Common.Kafka, registry: u.cfg.Common.Registry.URL, prefix: u.cfg.Common.Topics.Prefix}
	r, err := c.openTail()
	if err != nil {
		return err
	}
	n := newCount(u.org.Truth().Summary().LastSeq)
	counting, stopCounting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCounting()
	g, counting := errgroup.WithContext(counting)
	for _, t := range []topics.Topic{topics.Raw, topics.SystemLog, topics.Detections, topics.Alerts, topics.Raw.DLQ(), topics.SystemLog.DLQ(), topics.Matches.DLQ(), topics.Detections.DLQ(), topics.AlertCommands.DLQ()} {
		g.Go(func() error {
			err := r.Read(counting, t.Name, tail.Options{Since: u.started}, func(rec tail.Record) error { return n.add(counting, t, rec) })
			return ended(counting, err)
		})
	}
	if u.cfg.Sim.Scenarios == nil { // the first story begins at once: nobody wants to wait for the first alert
		g.Go(func() error {
			if _, err := u.org.Play(counting, firstStory, u.cfg.Sim.ScenarioPace); err != nil {
				u.log.Info("the first story broke off", "error", err) // why, the org says itself
			}
			return nil
		})
	}
	over := make(<-chan time.Time)
	if u.stopAfter > 0 {
		timer := time.NewTimer(u.stopAfter)
		defer timer.Stop()
		over = timer.C
	}
	interrupted := false
	select {
	case <-ctx.Done():
		interrupted = true // a part failed, and the pipeline with it
	case <-asked:
		interrupted = true
		u.org.Quiet()
		u.drain(ctx, n, hurry)
	case <-over:
		u.org.Quiet()
		u.drain(ctx, n, drainFor)
	}
	stopCounting()
	if err := g.Wait(); err != nil {
		return fmt.Errorf("count the topics: %w", err)
	}
	missing := n.missing(u.org.Truth())
	n.print(u, missing, interrupted)
	if missing > 0 && !interrupted {
		return fmt.Errorf("%d events that Okta sent are missing in %s", missing, topics.SystemLog.Name)
	}
	return nil
}

const firstStory = "phishing-proxy"

// How long the end of a demo waits for the last events: one that ends by itself, and one that somebody waits for.
const (
	drainFor = 30 * time.Second
	hurry    = 3 * time.Second
)

func (u *up) drain(ctx context.Context, n *count, most time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	settled, last := 0, ""
	for settled < 5 { // a second without anything new: the tails of the stages are through
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := n.fingerprint()
		late := most > hurry && u.org.Truth().Summary().Waiting > 0
		if n.missing(u.org.Truth()) == 0 && !late && now == last {
			settled++
		} else {
			settled = 0
		}
		last = now
	}
}

// count is what the outside reader has seen.
type count struct {
	mu         sync.Mutex
	from       uint64 // ground truth before this run does not count
	raw        map[string]int
	events     map[string]bool
	records    int
	second     int
	detections map[string]string // id to rule
	alerts     map[string]string // id to status
	letters    int
	refused    int // letters of records that normalize read and could not handle
}

func newCount(from uint64) *count {
	return &count{from: from, raw: map[string]int{}, events: map[string]bool{}, detections: map[string]string{}, alerts: map[string]string{}}
}

func (n *count) add(ctx context.Context, t topics.Topic, rec tail.Record) error {
	if t.IsDLQ() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.letters++
		if t.Name == topics.Raw.DLQ().Name && writer(rec) == topics.Normalize {
			n.refused++ // what the hook buries never was in okta.raw.v1
		}
		return nil
	}
	if rec.Value == nil {
		return nil
	}
	plain, err := rec.Plain(ctx)
	if err != nil {
		return err
	}
	var v struct {
		Source  string `json:"source"`
		UUID    string `json:"uuid"`
		Derived struct {
			Copy int `json:"copy"`
		} `json:"derived"`
		ID     string `json:"id"`
		RuleID string `json:"rule_id"`
		Status string `json:"status"`
	}
	if err := json.Unmarshal(plain, &v); err != nil {
		return fmt.Errorf("record %s %d@%d: %w", rec.Topic, rec.Partition, rec.Offset, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch t.Name {
	case topics.Raw.Name:
		n.raw[v.Source]++
	case topics.SystemLog.Name:
		n.records++
		n.events[v.UUID] = true
		if v.Derived.Copy > 1 {
			n.second++
		}
	case topics.Detections.Name:
		n.detections[v.ID] = v.RuleID
	case topics.Alerts.Name:
		n.alerts[v.ID] = v.Status
	}
	return nil
}

// writer is the service that made a record a dead letter.
func writer(letter tail.Record) string {
	for _, h := range letter.Headers {
		if h.Key == "dlq.service" {
			return string(h.Value)
		}
	}
	return ""
}

// duplicates is what came in and went nowhere: neither on as a record nor among the dead letters.
func (n *count) duplicates() int {
	taken := 0
	for _, by := range n.raw {
		taken += by
	}
	return taken - n.records - n.refused
}

func (n *count) fingerprint() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return fmt.Sprint(n.raw, n.records, len(n.events), len(n.detections), len(n.alerts), n.letters)
}

// missing is how many events of the ground truth have not come out.
func (n *count) missing(truth oktasim.Truth) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	missing := 0
	for e := range truth.Events(oktasim.Query{After: n.from, Persisted: true}) {
		if !n.events[e.UUID] {
			missing++
		}
	}
	return missing
}

func (n *count) print(u *up, missing int, interrupted bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sent := 0
	for range u.org.Truth().Events(oktasim.Query{After: n.from, Persisted: true}) {
		sent++
	}
	taken, by := 0, []string{}
	for _, source := range slices.Sorted(maps.Keys(n.raw)) {
		taken += n.raw[source]
		by = append(by, fmt.Sprintf("%s %d", source, n.raw[source]))
	}
	rules := map[string]int{}
	for _, r := range n.detections {
		rules[r]++
	}
	what := make([]string, 0, len(rules))
	for _, r := range slices.Sorted(maps.Keys(rules)) {
		what = append(what, fmt.Sprintf("%s %d", r, rules[r]))
	}
	w := tabwriter.NewWriter(u.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nSummary of %s, counted by an outside reader of the topics\n", time.Since(u.started).Round(time.Second))
	fmt.Fprintf(w, "  events sent by Okta\t%d\n", sent)
	fmt.Fprintf(w, "  through ingest\t%d\t%s\n", taken, strings.Join(by, ", "))
	fmt.Fprintf(w, "  through normalize\t%d\trecords of %d events, %d of them again when the complete copy came\n", n.records, len(n.events), n.second)
	fmt.Fprintf(w, "  duplicates removed\t%d\n", n.duplicates())
	fmt.Fprintf(w, "  detections\t%d\t%s\n", len(n.detections), strings.Join(what, ", "))
	fmt.Fprintf(w, "  alerts\t%d\n", len(n.alerts))
	fmt.Fprintf(w, "  dead letters\t%d\n", n.letters)
	fmt.Fprintf(w, "  missing: %d\n", missing)
	_ = w.Flush()
	if interrupted && missing > 0 {
		fmt.Fprintln(u.out, "  (interrupted: what was on its way is taken up by the next run, which does not count it)")
	}
}

func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read a secret: %w", err)
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", errors.New("read a secret: " + path + " is empty; remove it and start again")
	}
	return text, nil
}
