package detect

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

// keptSets is how many earlier sets of rules a new task of the state stage is told of.
const keptSets = 4

// folders are the site's own, in the order in which they are laid over the pack.
func (s *Service) folders() []rule.Source {
	var out []rule.Source
	for _, f := range []struct {
		dir   string
		holds rule.Holds
	}{{s.cfg.RulesDir, rule.HoldsRules}, {s.cfg.ListsDir, rule.HoldsLists}, {s.cfg.OverlaysDir, rule.HoldsOverlays}} {
		if f.dir != "" {
			out = append(out, rule.Source{Name: filepath.ToSlash(filepath.Clean(f.dir)), FS: os.DirFS(f.dir), Site: true, Holds: f.holds})
		}
	}
	return out
}

// load reads all rules and puts them in force.
func (s *Service) load() error {
	var sources []rule.Source
	if s.pack != nil {
		sources = append(sources, rule.Source{Name: "rules", FS: s.pack})
	}
	set, problems, err := s.loader.Load(append(sources, s.folders()...)...)
	if err != nil {
		return fmt.Errorf("load rules: %w", err)
	}
	s.mu.Lock()
	s.sets = append(s.sets[max(0, len(s.sets)-keptSets):], set)
	s.mu.Unlock()
	old := s.current.Swap(&generation{set, problems})
	s.m.forget()
	s.health.use(set)
	known := map[string]bool{}
	if old != nil {
		for _, p := range old.problems {
			known[p.String()] = true
		}
	}
	for _, p := range problems {
		if !known[p.String()] {
			s.log.Error("rule file refused", "problem", p.String())
		}
	}
	if old != nil {
		for _, c := range startEmpty(old.set, set) {
			s.log.Info("a rule that learns starts empty and finds nothing until it has learned; events of the past fill it: oktawatch rules seed --input FILE",
				"rule", c.ID, "learning", c.Detection.Learning, "state_hash", c.StateHash)
		}
	}
	s.m.problems.Set(float64(len(problems)))
	s.m.stale.Set(float64(len(set.Stale)))
	counts := map[rule.Mode]int{rule.ModeAlert: 0, rule.ModeSignal: 0, rule.ModeShadow: 0, rule.ModeDisabled: 0}
	var unbound []string
	for _, c := range set.Rules {
		counts[c.Mode]++
		if !c.Bound() && c.Mode != rule.ModeDisabled {
			unbound = append(unbound, c.ID)
		}
	}
	for mode, n := range counts {
		s.m.rules.With(string(mode)).Set(float64(n))
	}
	s.m.unbound.Set(float64(len(unbound)))
	if hasWindowed(set) {
		s.windowed.Store(true)
	}
	s.m.loads.Inc()
	if old == nil || old.set.Hash != set.Hash {
		s.log.Info("rules in force", "rules", len(set.Rules), "hash", set.Hash, "see_every_event", strings.Join(unbound, " "), "refused", len(problems))
	}
	return nil
}

// startEmpty are the rules that learn and hold nothing yet: those that are new or were changed under detection.
func startEmpty(old, now *rule.Set) []*rule.Compiled {
	var out []*rule.Compiled
	for _, c := range now.Rules {
		was, ok := old.Rule(c.ID)
		if engine.TakesSeeds(c) && c.Mode != rule.ModeDisabled && (!ok || was.StateHash != c.StateHash) {
			out = append(out, c)
		}
	}
	return out
}

// watch looks at the folders again and again and loads the rules when something in them has changed.
func (s *Service) watch(ctx context.Context) {
	folders := s.folders()
	if len(folders) == 0 {
		return
	}
	last := look(folders)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.cfg.Reload):
		}
		now := look(folders)
		if now == last {
			continue
		}
		last = now
		if err := s.load(); err != nil {
			s.log.Error("the rules stay as they were", "error", err)
		}
	}
}

// look sums up names, sizes and times of the files below some folders.
func look(folders []rule.Source) [sha256.Size]byte {
	h := sha256.New()
	for _, f := range folders {
		err := fs.WalkDir(f.FS, ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				fmt.Fprintf(h, "%s %v\n", p, err)
				return nil
			}
			if d.IsDir() {
				fmt.Fprintf(h, "%s/\n", p)
				return nil
			}
			st, err := fs.Stat(f.FS, p) // through links, as mounted config maps are
			if err != nil {
				fmt.Fprintf(h, "%s %v\n", p, err)
				return nil
			}
			fmt.Fprintf(h, "%s %d %d\n", p, st.Size(), st.ModTime().UnixNano())
			return nil
		})
		fmt.Fprintf(h, "%s %v\n", f.Name, err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// instruments are what is counted. Labels are rules and their exceptions: as many as the rule files have.
type instruments struct {
	events     *metrics.Counter
	detections *metrics.Counter
	exceptions *metrics.Counter
	failures   *metrics.Counter
	loads      *metrics.Counter
	rules      *metrics.Gauge
	unbound    *metrics.Gauge
	problems   *metrics.Gauge
	stale      *metrics.Gauge
	matches    *metrics.Counter
	late       *metrics.Counter
	limits     *metrics.Counter
	unread     *metrics.Counter
	findings   *metrics.Counter
	ill        *metrics.Gauge
	cost       *metrics.Gauge
	instances  *metrics.Gauge
	packs      *metrics.Gauge
	said       *sayOnce
}

func newInstruments(m *metrics.Set) instruments {
	return instruments{
		events:     m.Counter("oktawatch_detect_events_total", "System Log records judged."),
		detections: m.Counter("oktawatch_detect_detections_total", "Detections written, by rule and mode.", "rule", "mode"),
		exceptions: m.Counter("oktawatch_detect_exceptions_total", "Records that an exception kept from being a hit.", "rule", "exception"),
		failures:   m.Counter("oktawatch_detect_failures_total", "Expressions that failed at run time and counted as false, by rule.", "rule"),
		loads:      m.Counter("oktawatch_detect_rule_loads_total", "Times the rules were read."),
		rules:      m.Gauge("oktawatch_detect_rules", "Rules in force, by mode.", "mode"),
		unbound:    m.Gauge("oktawatch_detect_unbound_rules", "Rules without an event type, which see every event."),
		problems:   m.Gauge("oktawatch_detect_rule_problems", "Problems in rule files; each refused file keeps its last good version in force."),
		stale:      m.Gauge("oktawatch_detect_stale_rule_files", "Refused files of which an earlier version is in force."),
		matches:    m.Counter("oktawatch_detect_matches_total", "Events that windowed rules took, by rule.", "rule"),
		late:       m.Counter("oktawatch_detect_late_total", "Events that came to a windowed rule after their time was decided, by rule.", "rule"),
		limits:     m.Counter("oktawatch_detect_limits_total", "Times a limit of what a windowed rule holds was reached, by rule.", "rule"),
		unread:     m.Counter("oktawatch_detect_evidence_unread_total", "Events of evidence that the broker did not give back in time."),
		findings:   m.Counter("oktawatch_detect_findings_total", "Findings raised about rules.", "finding"),
		ill:        m.Gauge("oktawatch_detect_ill_rules", "What is wrong with rules now, told or not, by finding; at the owner of partition 0 of the state stage.", "finding"),
		cost:       m.Gauge("oktawatch_detect_rule_cost_p99_seconds", "99th percentile of the time that judging one event takes, by rule, from a sample.", "rule"),
		instances:  m.Gauge("oktawatch_detect_instances", "Instances of detect that run; at the owner of partition 0 of the state stage."),
		packs:      m.Gauge("oktawatch_detect_packs", "Different sets of rules in force among them; more than 1 for a minute is a finding."),
		said:       &sayOnce{said: map[string]bool{}},
	}
}

func (i instruments) first(what string) bool { return i.said.first(what) }
func (i instruments) forget()                { i.said.forget() }

// sayOnce remembers what was said since the rules changed.
type sayOnce struct {
	mu   sync.Mutex
	said map[string]bool
}

func (s *sayOnce) first(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.said[what] || len(s.said) > 1000 {
		return false
	}
	s.said[what] = true
	return true
}

func (s *sayOnce) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.said)
}

// hasWindowed tells whether a rule that is run looks at more than one event.
func hasWindowed(set *rule.Set) bool {
	is := func(c *rule.Compiled) bool { return c.Detection.Kind != rule.KindMatch && c.Mode != rule.ModeDisabled }
	if slices.ContainsFunc(set.Rules, is) {
		return true
	}
	for _, org := range set.Orgs() {
		if slices.ContainsFunc(set.For(org), is) {
			return true
		}
	}
	return false
}
