package alert

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/services/alert/sink"
)

const (
	shownItems = 50   // of a list
	shownText  = 4000 // of a text, bytes
	shownTitle = 256
	leastName  = 3 // shorter names are not looked for in other texts
)

// forPeople is an alert as a notification shows it.
func forPeople(a *alertState, d *record.Detection, test bool) sink.Alert {
	r := &a.Alert
	m := newMasker(r.Users, r.DedupKey)
	out := sink.Alert{
		ID: r.ID, Title: clip(m.text(r.Title), shownTitle), Severity: record.SeverityName(r.Severity), SeverityLevel: int(r.Severity), Status: r.Status,
		Org: r.Org, TestOrg: test, Backfill: r.Backfill, Rules: first(r.RuleIDs), DedupKey: m.list(first(r.DedupKey)), Users: m.list(first(r.Users)),
		Addresses: first(r.Addresses), Apps: first(r.Apps), Devices: first(r.Devices), DetectionCount: r.DetectionCount, EventCount: r.EventCount,
		FirstTime: r.FirstTime, LastTime: r.LastTime, Published: a.Pub, Via: a.Via, Techniques: first(r.Techniques), Tags: first(r.Tags),
		Labels: r.Labels, Description: clip(r.Description, shownText), Runbook: clip(r.Runbook, shownText), ClosedBy: r.ClosedBy, CloseReason: r.CloseReason,
	}
	if r.Lane != liveLane {
		out.Lane = r.Lane
	}
	if d != nil {
		out.Detection = d.ID
		out.Health = finding.IsHealth(d.Kind)
	}
	if len(r.Context) > 0 {
		out.Context = map[string]string{}
		for k, v := range r.Context {
			out.Context[k] = clip(m.text(v), shownText)
		}
	}
	return out
}

func first(l []string) []string { return slices.Clone(l[:min(len(l), shownItems)]) }

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// masker hides names that do not look like accounts: who fails to sign in may have typed a password where the name goes.
type masker struct{ names []string }

func newMasker(lists ...[]string) masker {
	var m masker
	for i, l := range lists {
		for _, s := range l {
			// Of the dedup key only what is also no id or address: it holds whatever the rule groups by.
			if i > 0 && !slices.Contains(lists[0], s) {
				continue
			}
			if !looksLikeAccount(s) && !slices.Contains(m.names, s) {
				m.names = append(m.names, s)
			}
		}
	}
	slices.SortFunc(m.names, func(a, b string) int { return cmp.Compare(len(b), len(a)) }) // longest first: one may hold another
	return m
}

func (m masker) list(l []string) []string {
	for i, s := range l {
		if slices.Contains(m.names, s) {
			l[i] = mask(s)
		}
	}
	return l
}

func (m masker) text(s string) string {
	for _, n := range m.names {
		if utf8.RuneCountInString(n) >= leastName {
			s = strings.ReplaceAll(s, n, mask(n))
		}
	}
	return s
}

// mask keeps the first two characters, as the rule language's mask() does.
func mask(s string) string {
	r := []rune(s)
	return string(r[:min(2, len(r))]) + "***"
}

var (
	mailLike   = regexp.MustCompile(`^[^\s@]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}$`)
	domainLike = regexp.MustCompile(`^[A-Za-z0-9.-]+\\[A-Za-z0-9._$-]+$`)
	plainLike  = regexp.MustCompile(`^[a-z]+([._-][a-z]+)*$`)
)

// looksLikeAccount says whether a text is written as logins are: an e-mail address, DOMAIN\name, or lower-case words.
func looksLikeAccount(s string) bool {
	return mailLike.MatchString(s) || domainLike.MatchString(s) || plainLike.MatchString(s) && len(s) <= 32
}
