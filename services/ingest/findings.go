package ingest

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// finding is one thing that can be wrong with a source. It is raised once a UTC day and source, whoever sees it and however often.
type finding struct {
	name     string // rule_id of its detections
	title    string
	severity int32
	runbook  string
}

var (
	findOversize = finding{
		"source-oversize-event", "An event over 2 MiB was taken without its content", 2,
		"The event is known by its uuid, size and hash; look it up in Okta's System Log. Everything after it goes on.",
	}
	findToken = finding{
		"source-token-refused", "Okta refuses the API token: nothing is polled", 4,
		"Make a new token (Security > API > Tokens) for an administrator who may read the System Log and put it where the source's token_file or token_env points: it is read again by itself. Nothing is lost: polling goes on where it stood.",
	}
	findGap = finding{
		"source-gap", "Okta refused the poller's cursor: events may be missing", 3,
		"Polling began again shortly before its last good answer. Events that Okta stored while the cursor was of no use can be fetched by a backfill of that time.",
	}
	findHook401 = finding{
		"hook-unauthorized", "Event hook deliveries carry a wrong secret", 3,
		"Either the secret in Okta's event hook is not the one in hook.secret_files, or somebody else sends what looks like Okta's deliveries. The poller still brings every event.",
	}
	findHook413 = finding{
		"hook-too-large", "An event hook delivery over 5 MiB was refused", 3,
		"Okta does not send it again; the poller brings its events.",
	}
	findHookSetup = finding{
		"hook-setup", "The event hook could not be set up in Okta", 3,
		"The message says what Okta answered. Until it is cured events come by the poller alone, later but complete.",
	}
)

// urlNamespace is the UUID namespace of addresses (RFC 9562); that of all ids of oktawatch lies in it.
var urlNamespace = [16]byte{0x6b, 0xa7, 0xb8, 0x11, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}

// uuid5 names a thing in oktawatch's namespace.
func uuid5(name string) string {
	id := sha1uuid(sha1uuid(urlNamespace, "https://github.com/oktawatch/oktawatch"), name)
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

func sha1uuid(space [16]byte, name string) [16]byte {
	sum := sha1.Sum(append(space[:], name...)) // what version 5 is made of; nothing hangs on its strength
	id := [16]byte(sum[:16])
	id[6] = id[6]&0x0f | 0x50
	id[8] = id[8]&0x3f | 0x80
	return id
}

const dedupPeriod = 24 * time.Hour

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
func (f *findings) new(source string, find finding, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := mark(source, day(now), find.name)
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

func (f *findings) takeBack(source string, find finding, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.raised, mark(source, day(now), find.name))
}

// warning is what stands of it in the source's status.
func (find finding) warning(now time.Time, detail string) string {
	w := day(now) + " " + find.name + ": " + find.title
	if detail != "" {
		w += " (" + detail + ")"
	}
	return w
}

// detection is the record of a finding.
func (find finding) detection(source, org string, now time.Time, detail string, uuids ...string) *record.Detection {
	now = now.UTC().Truncate(time.Millisecond)
	key := []string{source, find.name}
	title := find.title
	if detail != "" {
		title += ": " + detail
	}
	if len(title) > 256 {
		title = strings.ToValidUTF8(title[:256], "")
	}
	context := map[string]string{}
	for k, v := range map[string]string{"source": source, "detail": detail} {
		if b, err := json.Marshal(v); err == nil && v != "" {
			context[k] = string(b)
		}
	}
	return &record.Detection{
		ID:     uuid5(strings.Join([]string{"source_health", source, find.name, day(now)}, "\x00")),
		Update: 1, Revision: 1, Kind: "source_health", RuleID: find.name, RuleTitle: find.title, Title: title, Pack: "oktawatch",
		Severity: find.severity, Confidence: "high", Mode: "alert", Org: org, Lane: "live",
		Fingerprint: fingerprint(org, find.name, key), DedupKey: key, DedupPeriodMS: dedupPeriod.Milliseconds(),
		Key: map[string]string{}, Final: true, FirstTime: now, LastTime: now, EventCount: int64(len(uuids)), EvidenceUUIDs: uuids,
		Evidence: []record.Evidence{}, Description: find.title + ".", Runbook: find.runbook, Labels: map[string]string{}, Context: context,
		Tags: []string{"oktawatch"}, SourceID: source,
	}
}

func fingerprint(org, rule string, key []string) string {
	h := sha256.New()
	for _, part := range append([]string{org, rule}, key...) {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
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
