package engine

import (
	"slices"
	"strconv"
	"time"

	"github.com/oktawatch/oktawatch/pkg/ident"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
)

const (
	maxSet        = 1000
	maxDetection  = 1<<20 - 32<<10 // of the topic's 1 MiB, less what frames a record
	maxSetText    = 1024           // a longer name is no name
	maxSetBytes   = 128 << 10
	maxDedupBytes = 4 << 10
)

// ruleParts is what all detections of a rule have in common.
func ruleParts(c *rule.Compiled) record.Detection {
	d := record.Detection{
		Revision: int32(c.Revision), Kind: string(c.Detection.Kind), RuleID: c.ID, RuleTitle: c.Name, Pack: c.Pack,
		Severity: int32(c.Severity), Confidence: c.Confidence, Mode: string(c.Mode),
		DedupPeriodMS: c.Alert.DedupPeriod.Milliseconds(),
		Description:   c.Description, Runbook: c.Runbook, FalsePositives: c.FalsePositives, References: c.References,
		Tags: c.Tags, Labels: c.Alert.Labels, ContentHash: c.ContentHash,
	}
	for _, t := range c.Mitre {
		d.Mitre = append(d.Mitre, t.String())
		if !slices.Contains(d.Techniques, t.ID) {
			d.Techniques = append(d.Techniques, t.ID)
		}
		if t.Tactic != "" && !slices.Contains(d.Tactics, t.Tactic) {
			d.Tactics = append(d.Tactics, t.Tactic)
		}
	}
	return d
}

// detect writes the detection of a hit; nil where its dedup key cannot be worked out.
func (m *Matcher) detect(p *prepared, v *record.SystemLogView, at Place) *record.Detection {
	key, err := p.DedupKeyOf(m.event)
	if err != nil {
		m.observer.Failed(err)
		return nil
	}
	d := new(record.Detection)
	*d = p.detection
	derived := v.Derived()
	severity, err := p.SeverityOf(m.event)
	m.failed(err)
	d.Severity = int32(severity)
	d.Title, err = p.TitleOf(m.event)
	m.failed(err)
	d.Context, err = p.ContextOf(m.event)
	m.failed(err)

	identity := Identity(v)
	d.ID = m.matchID(p.ID, p.Revision, derived.Org, identity)
	d.Update = int64(max(derived.Copy, 1))
	d.Org, d.Lane, d.Backfill = derived.Org, derived.Lane, derived.Backfill
	for i, k := range key {
		key[i] = clip(k, maxDedupBytes)
	}
	d.DedupKey, d.Fingerprint = key, ident.Fingerprint(derived.Org, p.ID, key)
	d.Partial, d.Unconfirmed, d.Final = derived.Partial, derived.Partial, !derived.Partial
	d.FirstTime, d.LastTime = derived.Time, derived.Time
	var published *time.Time
	if t, ok := v.Published(); ok {
		published = &t
	}
	d.Published = published
	d.EventCount = 1
	d.EvidenceUUIDs = []string{identity}
	d.Evidence = []record.Evidence{{
		UUID: identity, EventType: v.EventType(), Time: derived.Time, Published: published,
		Topic: at.Topic, Partition: at.Partition, Offset: at.Offset, Copy: int32(d.Update), JSON: v.JSON(),
	}}
	if at.Topic == "" {
		d.Evidence[0].Partition, d.Evidence[0].Offset = -1, -1
	}
	sets(d, v)
	fit(d)
	return d
}

func (m *Matcher) failed(err error) {
	if err != nil {
		m.observer.Failed(err)
	}
}

// matchID is the id of the detection that a match rule makes of an event.
func (m *Matcher) matchID(ruleID string, revision int, org, identity string) string {
	b := append(append(m.buf[:0], ruleID...), 0)
	b = append(strconv.AppendInt(b, int64(revision), 10), 0)
	b = append(append(b, org...), 0)
	b = append(b, identity...)
	m.buf = b
	return ident.ID(b)
}

// sets fills the users, addresses, sessions, devices and apps of the evidence.
func sets(d *record.Detection, v *record.SystemLogView) {
	if a := v.Actor(); a != nil && a.Type == "User" {
		d.Users = add(d.Users, a.AlternateID, a.ID)
	}
	targets := v.Target()
	for i := range targets {
		switch t := &targets[i]; t.Type {
		case "User":
			d.Users = add(d.Users, t.AlternateID, t.ID)
		case "AppInstance":
			d.Apps = add(d.Apps, t.AlternateID, t.DisplayName, t.ID)
		}
	}
	if c := v.Client(); c != nil {
		d.Addresses = add(d.Addresses, c.IPAddress)
	}
	if a := v.AuthenticationContext(); a != nil {
		d.Sessions = add(d.Sessions, a.ExternalSessionID)
	}
	if dev := v.Device(); dev != nil {
		d.Devices = add(d.Devices, dev.ID)
	}
}

// add puts the first known of some names into a set.
func add(set []string, names ...string) []string {
	if len(set) >= maxSet {
		return set
	}
	for _, n := range names {
		if !rule.Known(n) || len(n) > maxSetText {
			continue
		}
		if !slices.Contains(set, n) {
			set = append(set, n)
		}
		break
	}
	return set
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

// fit keeps a detection within its topic's limit: evidence is cut first, and says so.
func fit(d *record.Detection) {
	if size(d) <= maxDetection {
		return
	}
	for i := len(d.Evidence) - 1; i >= 0 && size(d) > maxDetection; i-- {
		d.Evidence[i].JSON = nil
		d.EvidenceTruncated = true
	}
	for _, set := range []*[]string{&d.Users, &d.Apps, &d.Addresses, &d.Sessions, &d.Devices} {
		n := 0
		for i, s := range *set {
			if n += len(s); n > maxSetBytes {
				*set = (*set)[:i:i]
				d.Truncated = true
				break
			}
		}
	}
	if size(d) > maxDetection {
		d.Context, d.Values = map[string]string{"truncated": "true"}, nil
		d.Truncated = true
	}
	if size(d) > maxDetection {
		d.Description, d.Runbook, d.FalsePositives, d.References = "", "", nil, nil
	}
}

// size is a bound of the encoded size.
func size(d *record.Detection) int {
	n := 2048 + len(d.Title) + len(d.RuleTitle) + len(d.Description) + len(d.Runbook) + len(d.Org) + len(d.Lane)
	for _, l := range [][]string{
		d.DedupKey, d.EvidenceUUIDs, d.FalsePositives, d.References, d.Mitre, d.Techniques, d.Tactics, d.Tags,
		d.Users, d.Addresses, d.Sessions, d.Devices, d.Apps,
	} {
		for _, s := range l {
			n += len(s) + 4
		}
	}
	for _, m := range []map[string]string{d.Key, d.Labels, d.Context, d.Values} {
		for k, v := range m {
			n += len(k) + len(v) + 8
		}
	}
	for i := range d.Evidence {
		e := &d.Evidence[i]
		n += 64 + len(e.UUID) + len(e.EventType) + len(e.Topic) + len(e.JSON)
	}
	return n
}
