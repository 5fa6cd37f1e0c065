package rule

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"
)

// compileDetection loads one rule with this detection and the rest of the file.
func compileDetection(t *testing.T, detection, rest string) (*Set, []Problem) {
	t.Helper()
	l, err := NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	text := "id: x\ntitle: X\nseverity: low\nparams: {most: 5}\ndetection:\n  " + strings.ReplaceAll(detection, "\n", "\n  ") + "\n" + rest
	set, problems, err := l.Load(Source{Name: "rules", FS: fstest.MapFS{"p/x.yaml": {Data: []byte(text)}}})
	if err != nil {
		t.Fatal(err)
	}
	return set, problems
}

// TestKindFindings goes through what is refused, and where.
func TestKindFindings(t *testing.T) {
	agg := "kind: aggregate\nwindow: 5m\nhaving: agg.count > 1\n"
	seq := "kind: sequence\nwindow: 5m\nsteps:\n"
	for name, tc := range map[string]struct{ detection, rest, want string }{
		"no window":          {"kind: aggregate\nhaving: agg.count > 1", "", "6:3: missing-key: a rule of kind aggregate has no window"},
		"no having":          {"kind: aggregate\nwindow: 5m", "", "has no having"},
		"window too long":    {"kind: aggregate\nwindow: 31d\nhaving: agg.count > 1", "", "7:11: value: window 31d is out of range"},
		"settle":             {agg + "settle: 5m", "", "9:3: value: settle 5m is not below window 5m"},
		"unknown aggregate":  {"kind: aggregate\nwindow: 5m\nhaving: agg.conut > 1", "", "8:11: cel: having: "},
		"count taken":        {agg + "aggregates: {count: {distinct: event.actor.id}}", "", "the name count is taken"},
		"two in one":         {agg + "aggregates: {a: {distinct: event.actor.id, count_by: event.actor.id}}", "", "both distinct and count_by"},
		"where of count":     {agg + "aggregates: {a: {count: 'true', where: 'true'}}", "", "count takes no where"},
		"distinct of a bool": {agg + "aggregates: {a: {distinct: 'true'}}", "", "write an expression that gives string or list(string)"},
		"value over event":   {agg + "aggregates: {a: {value: event.actor.id.size()}}", "", "event"},
		"value over value":   {agg + "aggregates: {a: {value: agg.count}, b: {value: agg.a}}", "", "9:50: cel: aggregate b: agg has no such name"},
		"base without past":  {"kind: aggregate\nwindow: 5m\nhaving: base.count.n > 1", "", "base"},
		"bucket":             {agg + "baseline: 1h\nbucket: 7m", "", "10:3: value: bucket 7m does not divide 24h"},
		"whole buckets":      {agg + "baseline: 1h\nbucket: 10m", "", "not whole buckets of 10m"},
		"too many buckets":   {agg + "baseline: 30d\nbucket: 1m", "", "cost: window and baseline have 43205 buckets"},
		"bucket alone":       {agg + "bucket: 1h", "", "bucket is for rules with a baseline"},
		"seven parts":        {agg + "group_by: {a: 'a', b: 'b', c: 'c', d: 'd', e: 'e', f: 'f', g: 'g'}", "", "group_by has 7 parts"},
		"key of int":         {agg + "group_by: {a: event.target.size()}", "", "9:17: cel: group_by.a: this is a int"},
		"key in where":       {"kind: aggregate\nwindow: 5m\nhaving: agg.count > 1\ngroup_by: {u: event.actor.id}\nwhere: key.u == 'x'", "", "where: "},
		"dedup over event":   {agg, "alert: {dedup: {key: [event.actor.id]}}", "dedup.key"},
		"input":              {agg + "input: alerts", "", "input"},
		"negated first":      {seq + "  - {id: a, not: true, where: 'true'}", "", "the first step is negated"},
		"negated count":      {seq + "  - {id: a, where: 'true'}\n  - {id: b, not: true, count: 2, where: 'true'}", "", "a negated step has no count"},
		"within":             {seq + "  - {id: a, within: 6m, where: 'true'}", "", "within 6m is longer than window 5m"},
		"later step":         {seq + "  - {id: a, where: 'event.actor.id == steps.b.actor.id'}\n  - {id: b, where: 'true'}", "", "9:"},
		"negated step read":  {seq + "  - {id: a, where: 'true'}\n  - {id: b, not: true, where: 'true'}\n  - {id: c, where: 'steps.b.uuid == \"\"'}", "", "steps"},
		"same id":            {seq + "  - {id: a, where: 'true'}\n  - {id: a, where: 'true'}", "", "a second step is called a"},
		"no memory":          {"kind: first_seen\nwhere: 'true'", "", "has no memory"},
		"seen_before":        {"kind: first_seen\nmemory: 1d\ngroup_by: {user: event.actor.id, ip: event.client.ipAddress}\nseen_before: [usr]", "", "seen_before names \"usr\""},
		"seen_before all":    {"kind: first_seen\nmemory: 1d\ngroup_by: {user: event.actor.id}\nseen_before: [user]", "", "names every part"},
		"key of another":     {"kind: first_seen\nmemory: 1d\nwindow: 5m", "", "window"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := compileDetection(t, tc.detection, tc.rest)
			var all []string
			for _, p := range problems {
				all = append(all, p.String())
			}
			if len(problems) == 0 || !strings.Contains(strings.Join(all, "\n"), tc.want) {
				t.Errorf("%v", strings.Join(all, "\n"))
			}
		})
	}
}

// TestLongKeys: values of a key that are alike up to the limit stay apart.
func TestLongKeys(t *testing.T) {
	long := strings.Repeat("\u00e9", 600)
	a, b := keyText(long+"A"), keyText(long+"B")
	if a == b || len(a) > maxKeyBytes || !utf8.ValidString(a) || a != keyText(long+"A") {
		t.Errorf("%q\n%q", a, b)
	}
	if got := keyText("a\x00b"); got != "a\u2400b" {
		t.Errorf("%q", got)
	}
}

// TestPatternOfAParam: a pattern that a site sets is checked as one that is written.
func TestPatternOfAParam(t *testing.T) {
	rest := func(pattern string) string {
		return "params: {re: '" + pattern + "'}\nvars: {ok: event.actor.id.matches(params.re)}\ndetection: {kind: match, where: vars.ok}\n"
	}
	one(t, rest("^00u"))
	_, problems := load(t, map[string]string{"p/x.yaml": "id: x\ntitle: X\nseverity: low\n" + rest("(00u")})
	if len(problems) != 1 || !strings.Contains(problems[0].String(), "params.re is used as a pattern and does not compile") {
		t.Errorf("%v", problems)
	}
}

// TestBoundedLists: what works on a list of bounded length has a bounded cost.
func TestBoundedLists(t *testing.T) {
	for _, having := range []string{
		`evidence.map(e, e.actor.id).distinct().size() > 1`, `evidence.map(e, e.actor.id).sort()[0] == "a"`, `evidence.sortBy(e, e.published)[0].uuid == "a"`,
		`evidence.map(e, e.target.map(t, t.id)).flatten().distinct().size() > 1`,
	} {
		if _, problems := compileDetection(t, "kind: aggregate\nwindow: 5m\nhaving: "+quoted(having), ""); len(problems) > 0 {
			t.Errorf("%s: %v", having, problems)
		}
	}
}

// TestKindReads looks at what is worked out of rules with memory.
func TestKindReads(t *testing.T) {
	set, problems := compileDetection(t, `kind: sequence
where: event.outcome.result == "SUCCESS"
group_by: {user: event.actor.id}
window: 1h
steps:
  - {id: a, where: 'event.eventType == "user.a"'}
  - {id: b, where: 'event.eventType in ["user.b", "user.c"] && event.client.ipAddress != steps.a.client.ipAddress'}
  - {id: n, not: true, where: 'event.eventType == "user.n" && event.securityContext.isProxy'}`, "alert: {title: '${steps.a.displayMessage}'}\n")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	c := set.Rules[0]
	if got := strings.Join(c.Types.Exact, " "); got != "user.a user.b user.c user.n" {
		t.Errorf("types %s", got)
	}
	if c.Copies != JudgesComplete {
		t.Errorf("judges %s", c.Copies)
	}
	keeps := c.Keeps()
	for _, want := range []string{"Client.ipAddress", "Event.displayMessage", "Actor.alternateId", "Device.id"} {
		if !slices.Contains(keeps, want) {
			t.Errorf("%s is not kept: %v", want, keeps)
		}
	}
	for _, not := range []string{"Event.securityContext", "Event.outcome", "raw"} {
		if slices.Contains(keeps, not) {
			t.Errorf("%s is kept: %v", not, keeps)
		}
	}
	if !c.StepTypes[1].Dynamic || c.StepTypes[2].Dynamic || c.Alert.DedupPeriod.Hours() != 1 {
		t.Errorf("%+v, period %s", c.StepTypes, c.Alert.DedupPeriod)
	}
}
