// Package topics is the map of the pipeline: one row per Kafka topic and one per consumer group. Everything that
// creates, documents, authorizes or lists topics derives from these rows; nothing else in the tree spells a topic's
// name. Names in rows carry no prefix: callers add theirs with Full. Reading and writing records does not belong here.
package topics

import (
	"slices"
	"strings"
	"time"
)

// Partitioner says how a record finds its partition.
type Partitioner string

const (
	// ByKey is murmur2 of the whole key, as every Kafka client does by default.
	ByKey Partitioner = "key"
	// ByKeyToDot is murmur2 of the key up to its first dot, so that `<fingerprint>.<n>` lies beside `<fingerprint>`.
	ByKeyToDot Partitioner = "key to first dot"
	// Explicit means the writer names the partition: that of the stage's input.
	Explicit Partitioner = "explicit"
)

// Cleanup is Kafka's cleanup.policy.
type Cleanup string

const (
	Delete        Cleanup = "delete"
	Compact       Cleanup = "compact"
	CompactDelete Cleanup = "compact,delete"
)

// Size limits of records, in bytes.
const (
	MaxEvent   = 2 << 20 // one Okta event; a larger one travels without its bytes
	oneMiB     = 1 << 20
	dlqHeaders = 64 << 10 // what a dead letter's headers may add to the record
)

const day = 24 * time.Hour

// Topic is one row of the map.
type Topic struct {
	Name        string        // without prefix, for example okta.raw.v1
	Doc         string        // one sentence: what its records are
	Key         string        // the key's form
	Record      string        // name of the record in schemas/; empty: no schema of its own
	Partitioner Partitioner   //
	Meets       string        // topics with one name here have one partition count and are assigned together; empty: on its own
	Cleanup     Cleanup       //
	Retention   time.Duration // zero: as long as compaction keeps it
	MaxBytes    int           // max.message.bytes
	Public      bool          // other teams may read it; its schema is FULL_TRANSITIVE
	Writers     []string      // principals that produce
	Readers     []string      // principals that consume, beside other teams where Public
}

// The principals that hold rights: each service, and the tool people use.
const (
	Ingest    = "ingest"
	Normalize = "normalize"
	Detect    = "detect"
	AlertSvc  = "alert"
	Console   = "console"
	CLI       = "cli"
)

// Principals lists them in flow order.
func Principals() []string { return []string{Ingest, Normalize, Detect, AlertSvc, Console, CLI} }

// The rows. A topic that is not here does not exist.
var (
	Raw = Topic{
		Name: "okta.raw.v1", Doc: "Events as Okta sent them, byte for byte.", Key: "<org>/<uuid>", Record: "raw_event",
		Partitioner: ByKey, Meets: "raw", Cleanup: Delete, Retention: 7 * day, MaxBytes: 3 * oneMiB,
		Writers: []string{Ingest, CLI}, Readers: []string{Normalize}, // the tool writes seeds
	}
	SystemLog = Topic{
		Name: "okta.systemlog.v1", Doc: "Normalized System Log events.", Key: "<org>/<actor id>", Record: "system_log",
		Partitioner: ByKey, Meets: "systemlog", Cleanup: Delete, Retention: 30 * day, MaxBytes: 6 * oneMiB, Public: true,
		Writers: []string{Normalize}, Readers: []string{Detect, Console},
	}
	Matches = Topic{
		Name: "oktawatch.matches.v1", Doc: "Events that windowed rules took, the clock of each org, and how far back its seeds go.", Key: "<org>/<rule>/<group key>", Record: "match",
		Partitioner: ByKey, Meets: "matches", Cleanup: Delete, Retention: 7 * day, MaxBytes: 3 * oneMiB,
		Writers: []string{Detect}, Readers: []string{Detect},
	}
	Detections = Topic{
		Name: "okta.detections.v1", Doc: "What the rules found; the latest update of an id wins.", Key: "<fingerprint>", Record: "detection",
		Partitioner: ByKeyToDot, Meets: "alerts", Cleanup: Delete, Retention: 365 * day, MaxBytes: oneMiB, Public: true,
		Writers: []string{Detect, Ingest, Normalize, AlertSvc}, Readers: []string{Detect, AlertSvc, Console},
	}
	DetectionsOCSF = Topic{
		Name: "okta.detections.ocsf.v1", Doc: "Detections as OCSF 2004 in JSON; written only where switched on.", Key: "<fingerprint>",
		Partitioner: ByKeyToDot, Cleanup: Delete, Retention: 365 * day, MaxBytes: oneMiB, Public: true,
		Writers: []string{Detect},
	}
	Alerts = Topic{
		Name: "okta.alerts.v1", Doc: "The state of each alert after each change.", Key: "<fingerprint>.<n>", Record: "alert",
		Partitioner: ByKeyToDot, Meets: "alerts", Cleanup: CompactDelete, Retention: 365 * day, MaxBytes: oneMiB, Public: true,
		Writers: []string{AlertSvc}, Readers: []string{Console},
	}
	AlertCommands = Topic{
		Name: "okta.alert-commands.v1", Doc: "What people do with alerts: acknowledge, assign, close.", Key: "<fingerprint>.<n>", Record: "alert_command",
		Partitioner: ByKeyToDot, Meets: "alerts", Cleanup: Delete, Retention: 30 * day, MaxBytes: oneMiB,
		Writers: []string{Console, CLI}, Readers: []string{AlertSvc},
	}
	Silences = Topic{
		Name: "okta.silences.v1", Doc: "Wanted silences.", Key: "silence id", Record: "silence",
		Partitioner: ByKey, Cleanup: Compact, MaxBytes: oneMiB,
		Writers: []string{Console, CLI, AlertSvc}, Readers: []string{AlertSvc, Console},
	}
	Sources = Topic{
		Name: "okta.sources.v1", Doc: "Wanted sources, with references to secrets and never secrets.", Key: "source id", Record: "source",
		Partitioner: ByKeyToDot, Meets: "sources", Cleanup: Compact, MaxBytes: oneMiB,
		Writers: []string{Console, CLI, Ingest}, Readers: []string{Ingest, Console},
	}
	SourceCommands = Topic{
		Name: "okta.source-commands.v1", Doc: "One-time orders to a source: validate, backfill, replay, sweep, rotate.", Key: "source id", Record: "source_command",
		Partitioner: ByKeyToDot, Meets: "sources", Cleanup: Delete, Retention: 7 * day, MaxBytes: oneMiB,
		Writers: []string{Console, CLI}, Readers: []string{Ingest},
	}
	Cursors = Topic{
		Name: "okta.cursors.v1", Doc: "Where each source's poller stands.", Key: "<source id>, of a backfill <source id>/<run>", Record: "cursor",
		Partitioner: ByKey, Cleanup: Compact, MaxBytes: oneMiB,
		Writers: []string{Ingest}, Readers: []string{Ingest, Detect},
	}
	SourceStatus = Topic{
		Name: "okta.source-status.v1", Doc: "Heartbeats of each part of each source.", Key: "<source id>/<part>", Record: "source_status",
		Partitioner: ByKey, Cleanup: Compact, MaxBytes: oneMiB,
		Writers: []string{Ingest}, Readers: []string{AlertSvc, Detect, Console, CLI},
	}
	RuleStatus = Topic{
		Name: "oktawatch.rule-status.v1", Doc: "Heartbeats of detect instances, and what their rules met.", Key: "<instance id>/<part>", Record: "rule_status",
		Partitioner: ByKey, Cleanup: Compact, MaxBytes: oneMiB,
		Writers: []string{Detect}, Readers: []string{Detect, Console, CLI},
	}
	UserProfiles = Topic{
		Name: "okta.profiles.user.v1", Doc: "Okta users as last seen.", Key: "<org>/<user id>", Record: "user_profile",
		Partitioner: ByKey, Cleanup: Compact, MaxBytes: oneMiB,
		Writers: []string{Ingest}, Readers: []string{Normalize, Console},
	}
	DeviceProfiles = Topic{
		Name: "okta.profiles.device.v1", Doc: "Okta devices as last seen.", Key: "<org>/<device id>", Record: "device_profile",
		Partitioner: ByKey, Cleanup: Compact, MaxBytes: oneMiB,
		Writers: []string{Ingest}, Readers: []string{Normalize, Console},
	}
	Audit = Topic{
		Name: "okta.audit.v1", Doc: "Who did what in the console and on the command line.", Key: "actor", Record: "audit",
		Partitioner: ByKey, Cleanup: Delete, Retention: 365 * day, MaxBytes: oneMiB,
		Writers: []string{Ingest, Normalize, Detect, AlertSvc, Console, CLI}, Readers: []string{Console},
	}

	// The dedup memory holds a uuid for 14 days at most: older changelog is of no use, so it is cut by time.
	NormalizeDedupState = state(Normalize, "dedup", "raw", Delete, 14*day+time.Hour)
	DetectStateState    = state(Detect, "state", "matches", Compact, 0)
	AlertStateState     = state(AlertSvc, "state", "alerts", Compact, 0)

	NormalizeDedupRedrive = redrive(Normalize, "dedup", Raw)
	DetectMatchRedrive    = redrive(Detect, "match", SystemLog)
	DetectStateRedrive    = redrive(Detect, "state", Matches)
	AlertStateRedrive     = redrive(AlertSvc, "state", Detections)
)

func state(service, stage, meets string, cleanup Cleanup, retention time.Duration) Topic {
	return Topic{
		Name: "oktawatch." + service + "." + stage + ".state.v1", Doc: "Changelog of the stage's memory.", Key: "state key", Record: "state",
		Partitioner: Explicit, Meets: meets, Cleanup: cleanup, Retention: retention, MaxBytes: 3 * oneMiB,
		Writers: []string{service}, Readers: []string{service},
	}
}

func redrive(service, stage string, input Topic) Topic {
	return Topic{
		Name: "oktawatch." + service + "." + stage + ".redrive.v1", Doc: "Dead letters of the stage, to be tried again.", Key: "as the dead letter",
		Partitioner: Explicit, Meets: input.Meets, Cleanup: Delete, Retention: 7 * day, MaxBytes: input.MaxBytes + dlqHeaders,
		Writers: []string{CLI, Console}, Readers: []string{service},
	}
}

// named lists the rows that are not derived from others.
func named() []Topic {
	return []Topic{
		Raw, SystemLog, Matches, Detections, DetectionsOCSF, Alerts, AlertCommands, Silences, Sources, SourceCommands, Cursors,
		SourceStatus, RuleStatus, UserProfiles, DeviceProfiles, Audit, NormalizeDedupState, DetectStateState, AlertStateState,
		NormalizeDedupRedrive, DetectMatchRedrive, DetectStateRedrive, AlertStateRedrive,
	}
}

// Group is a consumer group: one stage of one service.
type Group struct {
	Service, Stage string
	Inputs         []Topic // assigned together; the first decides the plan
	State          *Topic  // changelog of its tasks, nil for a stage without memory
	Redrive        *Topic  // dead letters to be tried again, nil where nothing is dead-lettered
}

// The groups. A stage that is not here does not exist.
var (
	IngestSources  = Group{Service: Ingest, Stage: "sources", Inputs: []Topic{Sources}}
	NormalizeDedup = Group{Service: Normalize, Stage: "dedup", Inputs: []Topic{Raw}, State: &NormalizeDedupState, Redrive: &NormalizeDedupRedrive}
	DetectMatch    = Group{Service: Detect, Stage: "match", Inputs: []Topic{SystemLog}, Redrive: &DetectMatchRedrive}
	DetectState    = Group{Service: Detect, Stage: "state", Inputs: []Topic{Matches}, State: &DetectStateState, Redrive: &DetectStateRedrive}
	AlertState     = Group{Service: AlertSvc, Stage: "state", Inputs: []Topic{Detections, AlertCommands}, State: &AlertStateState, Redrive: &AlertStateRedrive}
)

// Groups lists every group in flow order.
func Groups() []Group {
	return []Group{IngestSources, NormalizeDedup, DetectMatch, DetectState, AlertState}
}

// Name is the group's id: `oktawatch.<service>.<stage>` after the prefix.
func (g Group) Name(prefix string) string { return prefix + "oktawatch." + g.Service + "." + g.Stage }

// Topics lists what a member consumes: the inputs, then the redrive topic if there is one.
func (g Group) Topics() []Topic {
	ts := slices.Clone(g.Inputs)
	if g.Redrive != nil {
		ts = append(ts, *g.Redrive)
	}
	return ts
}

// TransactionalPrefix is what the transactional ids of the group's members begin with.
func (g Group) TransactionalPrefix(prefix string) string { return g.Name(prefix) + "." }

// PollTransactionalID is the transactional id under which a source's pages and cursor are written.
func PollTransactionalID(source string) string { return pollTransactionalPrefix + source }

// SeedTransactionalID is the transactional id under which the tool writes the events of a run that seeds rules.
func SeedTransactionalID(run string) string { return seedTransactionalPrefix + run }

const (
	pollTransactionalPrefix = "oktawatch.ingest.poll."
	seedTransactionalPrefix = "oktawatch.cli.seed."
)

const dlqSuffix = ".dlq"

// DLQ is the row of a topic's dead letters. A redrive topic's letters go back to where its records came from.
func (t Topic) DLQ() Topic {
	var stages []string
	for _, g := range Groups() {
		if slices.ContainsFunc(g.Inputs, func(in Topic) bool { return in.Name == t.Name }) {
			stages = append(stages, g.Service)
		}
	}
	for _, w := range t.Writers {
		// The hook endpoint keeps bodies it cannot read.
		if t.Name == Raw.Name && w == Ingest {
			stages = append(stages, w)
		}
	}
	return Topic{
		Name: t.Name + dlqSuffix, Doc: "Dead letters of " + t.Name + ": original bytes, and headers saying where, when and why.", Key: t.Key,
		Partitioner: ByKey, Cleanup: Delete, Retention: 90 * day, MaxBytes: t.MaxBytes + dlqHeaders,
		Writers: stages, Readers: []string{CLI, Console},
	}
}

// IsDLQ says whether a topic holds dead letters.
func (t Topic) IsDLQ() bool { return strings.HasSuffix(t.Name, dlqSuffix) }

// All lists every topic: the named rows, then the dead letters of each stage's inputs.
func All() []Topic {
	all := named()
	seen := map[string]bool{}
	for _, g := range Groups() {
		for _, in := range g.Inputs {
			if g.Redrive != nil && !seen[in.Name] {
				seen[in.Name] = true
				all = append(all, in.DLQ())
			}
		}
	}
	return all
}

// Find returns the row of a name given with or without the prefix.
func Find(name, prefix string) (Topic, bool) {
	for _, t := range All() {
		if t.Name == name || t.Full(prefix) == name {
			return t, true
		}
	}
	return Topic{}, false
}

// Full is the topic's name on the cluster.
func (t Topic) Full(prefix string) string { return prefix + t.Name }

// Subject is the registry's subject of the topic's values.
func (t Topic) Subject(prefix string) string { return t.Full(prefix) + "-value" }

// Compatibility is the registry's rule for the topic's schema.
func (t Topic) Compatibility() string {
	if t.Public {
		return "FULL_TRANSITIVE"
	}
	return "BACKWARD_TRANSITIVE"
}

// Configs are the topic's settings on the broker.
func (t Topic) Configs() map[string]string {
	c := map[string]string{
		"cleanup.policy":    string(t.Cleanup),
		"max.message.bytes": itoa(int64(t.MaxBytes)),
	}
	switch {
	case t.Retention > 0:
		c["retention.ms"] = itoa(t.Retention.Milliseconds())
	default:
		c["retention.ms"] = "-1"
	}
	return c
}

// PartitionFor is the partition of a key among n, as the row's partitioner says. It must not be asked of a topic whose
// writer names the partition.
func (t Topic) PartitionFor(key string, n int32) int32 {
	if t.Partitioner == ByKeyToDot {
		key, _, _ = strings.Cut(key, ".")
	}
	return int32(uint32(murmur2([]byte(key))&0x7fffffff) % uint32(n))
}
