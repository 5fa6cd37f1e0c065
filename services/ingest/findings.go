package ingest

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
)

// What can be wrong with a source. Each is raised once a UTC day and source, whoever sees it and however often.
var (
	findOversize = finding.Finding{
		Kind: finding.SourceHealth, Name: "source-oversize-event", Title: "An event over 2 MiB was taken without its content", Severity: 2,
		Runbook: "The event is known by its uuid, size and hash; look it up in Okta's System Log. Everything after it goes on.",
	}
	findToken = finding.Finding{
		Kind: finding.SourceHealth, Name: "source-token-refused", Title: "Okta refuses the API token: nothing is polled", Severity: 4,
		Runbook: "Make a new token (Security > API > Tokens) for an administrator who may read the System Log and put it where the source's token_file or token_env points: it is read again by itself. Nothing is lost: polling goes on where it stood.",
	}
	findGap = finding.Finding{
		Kind: finding.SourceHealth, Name: "source-gap", Title: "Okta refused the poller's cursor: events may be missing", Severity: 3,
		Runbook: "Polling began again shortly before its last good answer. Events that Okta stored while the cursor was of no use can be fetched by a backfill of that time.",
	}
	findPage = finding.Finding{
		Kind: finding.SourceHealth, Name: "source-page-too-large", Title: "Okta's answer is over 64 MiB for a single event: polling stands still", Severity: 4,
		Runbook: "Look at what answers at the source's org_url: no event of Okta's is so large. Polling asks again each half minute and goes on where it stood.",
	}
	findHook401 = finding.Finding{
		Kind: finding.SourceHealth, Name: "hook-unauthorized", Title: "Event hook deliveries carry a wrong secret", Severity: 3,
		Runbook: "Either the secret in Okta's event hook is not the one in hook.secret_files, or somebody else sends what looks like Okta's deliveries. The poller still brings every event.",
	}
	findHook413 = finding.Finding{
		Kind: finding.SourceHealth, Name: "hook-too-large", Title: "An event hook delivery over 5 MiB was refused", Severity: 3,
		Runbook: "Okta does not send it again; the poller brings its events.",
	}
	findHookSetup = finding.Finding{
		Kind: finding.SourceHealth, Name: "hook-setup", Title: "The event hook could not be set up in Okta", Severity: 3,
		Runbook: "The message says what Okta answered. Until it is cured events come by the poller alone, later but complete.",
	}
)

// findings remembers what was raised today. It learns from the status records what others, and its own past, have raised.
type findings struct {
	log *slog.Logger

	mu     sync.Mutex
	raised map[string]bool     // <source>/<day> <name>
	parts  map[string][]string // <source>/<part>: its warnings
}

func newFindings(log *slog.Logger) *findings {
	return &findings{log: log, raised: map[string]bool{}, parts: map[string][]string{}}
}

func mark(source, day, name string) string { return source + "/" + day + " " + name }

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// learn takes the warnings of a part's status.
func (f *findings) learn(source, part string, warnings []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.parts[source+"/"+part] = warnings; len(warnings) == 0 {
		delete(f.parts, source+"/"+part)
	}
	for _, w := range warnings {
		if head, _, ok := strings.Cut(w, ":"); ok {
			f.raised[source+"/"+head] = true
		}
	}
}

// before is what a part that begins anew has told before.
func (f *findings) before(source, part string) warnings {
	f.mu.Lock()
	defer f.mu.Unlock()
	return warnings{slices.Clone(f.parts[source+"/"+part])}
}

// new says whether the finding is still to be raised today, and if so that it now is: whoever fails to write it takes it back.
func (f *findings) new(source string, what finding.Finding, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := mark(source, day(now), what.Name)
	if f.raised[k] {
		return false
	}
	if len(f.raised) > 10_000 {
		for old := range f.raised {
			if !strings.Contains(old, "/"+day(now)+" ") {
				delete(f.raised, old)
			}
		}
	}
	f.raised[k] = true
	return true
}

func (f *findings) takeBack(source string, what finding.Finding, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.raised, mark(source, day(now), what.Name))
}

// warningOf is what stands of a finding in the source's status.
func warningOf(f finding.Finding, now time.Time, detail string) string {
	w := day(now) + " " + f.Name + ": " + f.Title
	if detail != "" {
		w += " (" + detail + ")"
	}
	return w
}

// finding is the record of a finding about the source.
func (src *source) finding(f finding.Finding, org string, now time.Time, detail string, uuids ...string) *record.Detection {
	about := finding.About{
		Org: org, Source: src.id, Key: []string{src.id}, At: now, Title: f.Title,
		Detail: map[string]any{"source": src.id, "detail": detail},
	}
	if detail != "" {
		about.Title += ": " + detail
	}
	d := f.Detection(about)
	d.EventCount, d.EvidenceUUIDs = int64(len(uuids)), uuids
	if src.want.TestOrg {
		d.Labels = map[string]string{finding.TestOrg: "true"}
	}
	return d
}

// sizeAndUUID says which event is meant, as far as it says so itself.
func sizeAndUUID(size int64, uuid string) string {
	if uuid == "" {
		return fmt.Sprintf("%d bytes, without a uuid", size)
	}
	return fmt.Sprintf("%d bytes, uuid %s", size, uuid)
}

// warnings keeps the last days' findings of one part, newest last.
type warnings struct{ list []string }

func (w *warnings) add(now time.Time, text string) {
	w.list = append(w.list, text)
	oldest := day(now.Add(-48 * time.Hour))
	w.list = slices.DeleteFunc(w.list, func(s string) bool { return s < oldest })
	if len(w.list) > 20 {
		w.list = slices.Delete(w.list, 0, len(w.list)-20)
	}
}
