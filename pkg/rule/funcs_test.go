package rule

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// exampleLog is the event that the functions' examples speak of.
func exampleLog() *record.SystemLog {
	at := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	return &record.SystemLog{
		UUID: "u1", Published: &at, EventType: "user.session.start",
		Actor:  &record.Actor{ID: "00uALICE", Type: "User", AlternateID: "alice@example.com"},
		Target: []record.Target{{ID: "0oaAPP", Type: "AppInstance"}, {ID: "00uBOB", Type: "User", AlternateID: "bob@example.com"}},
		DebugContext: &record.DebugContext{DebugData: map[string]string{
			"behaviors":           "{New Geo-Location=NEGATIVE, New Device=POSITIVE, New IP=NEGATIVE}",
			"risk":                "{reasons=Anomalous Location, Anomalous Device, level=HIGH}",
			"logOnlySecurityData": `{"risk":{"level":"LOW","issuer":"Okta"},"behaviors":{"New IP":"POSITIVE","Velocity":"NEGATIVE"}}`,
			"empty":               "",
		}},
		Derived: record.Derived{Org: "00oORG", Lane: "live", Copy: 1, Time: at, Received: at},
		JSON:    []byte(`{"target":[{"id":"00uBOB"}],"later":{"n":1.50,"o":{"a":[1,"<"]},"null":null}}`),
	}
}

// evalText evaluates an expression over an event as a rule's where would.
func evalText(t *testing.T, log *record.SystemLog, expr string) (ref.Val, error) {
	t.Helper()
	l, err := newLanguage()
	if err != nil {
		t.Fatal(err)
	}
	list, ps := ParseList("lists/example.csv", []byte("value,owner\nadmin@example.com,it\n192.0.2.0/24,lab\n2001:db8::1,v6\n"))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	sc, err := l.scope(nil, map[string]*List{"example": list})
	if err != nil {
		t.Fatal(err)
	}
	d := &document{file: "x.yaml", src: []byte(expr), lines: []int{0}}
	p := l.compile(sc.env, Expr{expr, place{d, 0}}, "x")
	if p == nil {
		t.Fatalf("%s: %v", expr, d.problems)
	}
	set := &Set{scope: sc, Lists: sc.lists}
	ev := set.NewEvent()
	ev.Reset(viewOf(t, log))
	c := &Compiled{names: map[string]binding{"lists.example": {list: "example"}}}
	return c.eval(ev, p)
}

func isTrue(t *testing.T, log *record.SystemLog, expr string) {
	t.Helper()
	v, err := evalText(t, log, expr)
	if err != nil || v != types.True {
		t.Errorf("%s: %v, %v", expr, v, err)
	}
}

// TestTotal reads everything of an event that has nothing.
func TestTotal(t *testing.T) {
	empty := &record.SystemLog{UUID: "u"}
	for _, expr := range []string{
		`event.outcome.result == ""`, `event.outcome.result != "SUCCESS"`, `!event.outcome.reason.startsWith("User reset")`,
		`event.client.geographicalContext.geolocation.lat == 0.0`, `event.securityContext.asNumber == 0`, `!event.securityContext.isProxy`,
		`event.target.size() == 0`, `!event.target.exists(t, t.id == "x")`, `event.request.ipChain == []`,
		`event.debugContext.debugData.nothing == ""`, `event.debugContext.debugData["New Device"] == ""`, `!("x" in event.debugContext.debugData)`,
		`event.published == timestamp(0)`, `event.detection.ruleId == ""`, `event.detection.severity == 0`, `!has(event.detection.title)`,
		`!has(event.outcome)`, `!has(event.outcome.result)`, `!has(event.client.geographicalContext.geolocation.lat)`, `!has(event.target)`,
		`event.securityContext.ipDetails.ipServiceCategories.filter(c, c.isAnonymous).size() == 0`,
		`event.targetOf("User").changeDetails.from.a == ""`, `event.behaviors() == {}`, `event.risk().level == "" && event.risk().reasons == []`,
		`event.raw("a.b") == ""`, `event.user("x").created == timestamp(0)`, `event.deviceOf("x").name == ""`, `distanceKm(event, event) == 0.0`,
		`event.securityContext.asNumber < 0.5`, `!event.backfill`, `event.org == ""`, `event.client.userAgent.rawUserAgent.lowerAscii() == ""`,
		`cel.bind(c, event.client, c.ipAddress == "")`, `event.debugContext.debugData.exists(k, v, v != "") == false`,
	} {
		isTrue(t, empty, expr)
	}
	full := exampleLog()
	for _, expr := range []string{
		`event.debugContext.debugData.empty == "" && "empty" in event.debugContext.debugData`,
		`event.behaviors()["New IP"] == "NEGATIVE" && event.behaviors().Velocity == "NEGATIVE" && event.behaviors().size() == 4`,
		`event.risk().level == "HIGH" && event.risk().issuer == "Okta"`,
		`event.raw("later.n") == "1.50" && event.raw("later.o") == "{\"a\":[1,\"\\u003c\"]}" && event.raw("later.null") == ""`,
		`event.debugContext.debugData.transformList(k, v, v == "", k) == ["empty"]`,
		`event.published.getHours("Europe/Berlin") == 11 && event.published.getDayOfWeek() == 1`,
		`event.target.exists_one(t, t.type == "User")`, `has(event.target) && has(event.actor.id) && !has(event.actor.displayName)`,
		`lists.example.lookup("2001:db8::1").owner == "v6" && !lists.example.contains("192.0.3.1") && lists.example.contains("::ffff:192.0.2.9")`,
	} {
		isTrue(t, full, expr)
	}
	for _, expr := range []string{`event.target[7].id`, `1 / event.securityContext.asNumber`, `event.published.getHours("No/Where")`} {
		if _, err := evalText(t, full, expr); err == nil {
			t.Errorf("%s does not fail", expr)
		}
	}
}

func TestRiskAndBehaviours(t *testing.T) {
	for name, tc := range map[string]struct {
		log  func(*record.SystemLog)
		want string
	}{
		"Risk{…}": {func(s *record.SystemLog) { s.DebugContext.DebugData = map[string]string{"risk": "Risk{level=LOW}"} }, `event.risk().level == "LOW"`},
		"JSON text": {func(s *record.SystemLog) {
			s.DebugContext.DebugData = map[string]string{"risk": `{"level":"MEDIUM","reasons":["a","b"]}`}
		}, `event.risk().level == "MEDIUM" && event.risk().reasons == ["a", "b"]`},
		"commas in reasons": {func(s *record.SystemLog) {
			s.DebugContext.DebugData = map[string]string{"risk": "{level=HIGH, reasons=A, B, C}"}
		}, `event.risk().level == "HIGH" && event.risk().reasons == ["A, B, C"]`},
		"detection name": {func(s *record.SystemLog) {
			s.DebugContext.DebugData = map[string]string{"risk": "{reasons=Session Influenced Risk, level=HIGH, previousLevel=LOW, detectionName=Session IP Change, issuer=Okta}"}
		}, `event.risk().previousLevel == "LOW" && event.risk().detectionName == "Session IP Change" && event.risk().issuer == "Okta"`},
		"structured first": {func(s *record.SystemLog) {
			s.SecurityContext = &record.SecurityContext{Risk: &record.Risk{Level: "LOW"}, UserBehaviors: []record.UserBehavior{{Name: "New IP", Result: "UNKNOWN"}}}
		}, `event.risk().level == "LOW" && event.risk().reasons.size() == 1 && event.behaviors()["New IP"] == "UNKNOWN" && event.behaviors()["New Device"] == "POSITIVE"`},
		"list of pairs": {func(s *record.SystemLog) {
			s.DebugContext.DebugData = map[string]string{"behaviors": `["New City=POSITIVE","Velocity=NEGATIVE"]`}
		}, `event.behaviors() == {"New City": "POSITIVE", "Velocity": "NEGATIVE"}`},
		"list of maps": {func(s *record.SystemLog) {
			s.DebugContext.DebugData = map[string]string{"behaviors": `[{"New City":"POSITIVE"}]`}
		}, `event.behaviors() == {"New City": "POSITIVE"}`},
		"text list": {func(s *record.SystemLog) {
			s.DebugContext.DebugData = map[string]string{"behaviors": `[{New City=POSITIVE}, {Velocity=NEGATIVE}]`}
		}, `event.behaviors() == {"New City": "POSITIVE", "Velocity": "NEGATIVE"}`},
		"nonsense": {func(s *record.SystemLog) {
			s.DebugContext.DebugData = map[string]string{"behaviors": `}=,{==`, "risk": "=", "logOnlySecurityData": "{"}
		}, `event.behaviors() == {} && event.risk().level == ""`},
	} {
		t.Run(name, func(t *testing.T) {
			log := exampleLog()
			tc.log(log)
			isTrue(t, log, tc.want)
		})
	}
}

func TestZscore(t *testing.T) {
	ts, err := newTypeSystem()
	if err != nil {
		t.Fatal(err)
	}
	h := &heap{types: ts}
	for _, tc := range []struct {
		b     Baseline
		x     ref.Val
		least float64
		want  float64
	}{
		{Baseline{N: 4, Mean: 10, Stddev: 2}, types.Int(16), 0.5, 3},
		{Baseline{N: 4, Mean: 10, Stddev: 0}, types.Double(11), 0.5, 2},
		{Baseline{N: 4, Mean: 10, Stddev: 0}, types.Int(11), 0, 0},
		{Baseline{}, types.Int(11), 1, 0},
	} {
		if got := zscore(tc.x, h.object(ts.byName[typeBaseline], &tc.b), types.Double(tc.least)); got != types.Double(tc.want) {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestDistance(t *testing.T) {
	place := func(lat, lon float64, at time.Time) *record.SystemLog {
		log := exampleLog()
		log.Derived.Time = at
		log.Client = &record.Client{GeographicalContext: &record.GeographicalContext{Geolocation: &record.Geolocation{Lat: &lat, Lon: &lon}}}
		return log
	}
	l, err := newLanguage()
	if err != nil {
		t.Fatal(err)
	}
	event := func(log *record.SystemLog) ref.Val {
		ev := &Event{heap: heap{types: l.types}}
		ev.Reset(viewOf(t, log))
		ev.prepare()
		return ev.self
	}
	t0 := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	oslo, ny := event(place(59.9127, 10.7461, t0)), event(place(40.7128, -74.0060, t0.Add(2*time.Hour)))
	km, ok := distance(oslo, ny)
	if !ok || math.Abs(km-5918) > 10 {
		t.Errorf("%v km", km)
	}
	if v := float64(speed(oslo, ny).(types.Double)); math.Abs(v-km/2) > 0.001 {
		t.Errorf("%v km/h", v)
	}
	if v := float64(speed(oslo, oslo).(types.Double)); v != 0 {
		t.Errorf("%v km/h", v)
	}
}

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		p, s string
		want bool
	}{
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"a*b*c", "axxbyyc", true},
		{"a*b*c", "axxbyy", false},
		{"?", "é", true},
		{"??", "é", false},
		{"*é", "aé", true},
		{"a*", "b", false},
		{strings.Repeat("*a", 50), strings.Repeat("a", 2000), true},
		{strings.Repeat("*a", 50) + "b", strings.Repeat("a", 2000), false},
	} {
		if got := Glob(tc.p, tc.s); got != tc.want {
			t.Errorf("%q against %.20q: %v", tc.p, tc.s, got)
		}
	}
}

func TestCountryCode(t *testing.T) {
	for in, want := range map[string]string{
		"United States": "US", "the netherlands": "NL", "Côte d'Ivoire": "CI", "South Korea": "KR", "Korea, Republic of": "KR", "Türkiye": "TR",
		"Czech Republic": "CZ", "Bosnia and Herzegovina": "BA", "St. Lucia": "LC", "Saint Lucia": "LC", "no": "NO", "xx": "", "": "", "U.S. Virgin Islands": "VI",
		"Réunion": "RE", "Timor-Leste": "TL", "Hong Kong": "HK", "Russian Federation": "RU", "gb": "GB",
	} {
		if got := countryCode(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if n := len(countryCodes()); n != 250 {
		t.Errorf("%d codes", n)
	}
}
