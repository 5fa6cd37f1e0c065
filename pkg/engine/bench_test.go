package engine_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/engine"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
)

// twelve are the rules that come with the product.
func twelve(b *testing.B) *rule.Set {
	b.Helper()
	l, err := rule.NewLoader()
	if err != nil {
		b.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: os.DirFS("../../rules/okta")})
	if err != nil || len(problems) > 0 {
		b.Fatal(problems, err)
	}
	return set
}

func payload(b *testing.B, eventType string) []byte {
	b.Helper()
	ev := ruletest.Fixture(eventType)
	ev["uuid"], ev["published"] = "00000000-0000-4000-8000-000000000001", "2026-01-05T10:00:00.000Z"
	log, err := ruletest.Record(ev)
	if err != nil {
		b.Fatal(err)
	}
	out, err := log.AppendAvro(nil)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// BenchmarkDecode is what the index needs of an event.
func BenchmarkDecode(b *testing.B) {
	p := payload(b, "user.authentication.sso")
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	var v record.SystemLogView
	for b.Loop() {
		if err := v.Reset(p); err != nil || v.EventType() == "" || v.Derived().Org == "" {
			b.Fatal(err)
		}
	}
}

// BenchmarkMatch judges one event by the twelve rules.
func BenchmarkMatch(b *testing.B) {
	for _, bc := range []struct{ name, eventType string }{
		{"wanted by none", "user.authentication.sso"},
		{"candidate, no hit", "user.authentication.auth_via_mfa"},
		{"signal", "user.session.start"},
		{"hit with vars and severity_when", "user.account.privilege.grant"},
	} {
		b.Run(bc.name, func(b *testing.B) {
			m := engine.NewMatcher(twelve(b))
			p := payload(b, bc.eventType)
			var v record.SystemLogView
			b.ReportAllocs()
			for b.Loop() {
				if err := v.Reset(p); err != nil {
					b.Fatal(err)
				}
				m.Match(&v, engine.Place{Topic: "t"})
			}
		})
	}
}

// BenchmarkRules judges an event that is no hit by more and more bound rules, then by rules without an event type,
// which CEL judges (plain) or which the condition alone decides (screened).
func BenchmarkRules(b *testing.B) {
	text := func(i int, where string) string {
		return fmt.Sprintf("id: r%d\ntitle: X\nseverity: low\ndetection:\n  kind: match\n  where: >-\n    %s\n", i, where)
	}
	bound := func(i int) string {
		return fmt.Sprintf(`event.eventType == "type.%d" && event.outcome.result == "SUCCESS" && event.target.exists(t, t.type == "User" && t.id != event.actor.id)`, i)
	}
	screened := func(i int) string {
		return fmt.Sprintf(`event.outcome.reason == "reason %d" || event.actor.id == "00u%d"`, i, i)
	}
	plain := func(i int) string {
		return fmt.Sprintf(`event.target.exists(t, t.type == "User" && t.id == "00u%d") && event.client.ipAddress != ""`, i)
	}
	for _, bc := range []struct {
		name                   string
		bound, screened, plain int
	}{{"15 bound", 15, 0, 0}, {"150 bound", 150, 0, 0}, {"125 bound, 25 screened", 125, 25, 0}, {"125 bound, 25 plain", 125, 0, 25}} {
		b.Run(bc.name, func(b *testing.B) {
			files := map[string]string{}
			add := func(n int, where func(int) string) {
				for i := range n {
					files[fmt.Sprintf("p/r%d.yaml", len(files))] = text(len(files), where(i))
				}
			}
			add(bc.bound, bound)
			add(bc.screened, screened)
			add(bc.plain, plain)
			m := engine.NewMatcher(load(b, files))
			p := payload(b, "user.session.start")
			var v record.SystemLogView
			b.ReportAllocs()
			for b.Loop() {
				if err := v.Reset(p); err != nil {
					b.Fatal(err)
				}
				if ds := m.Match(&v, engine.Place{}); len(ds) > 0 {
					b.Fatal(ds[0].RuleID)
				}
			}
		})
	}
}

// BenchmarkUnbound judges an event by one rule without event type, of each sort that the public catalogues have.
func BenchmarkUnbound(b *testing.B) {
	conditions, err := os.ReadFile("testdata/unbound.txt")
	if err != nil {
		b.Fatal(err)
	}
	for where := range strings.Lines(string(conditions)) {
		where = strings.TrimSpace(where)
		b.Run(where[:min(len(where), 60)], func(b *testing.B) {
			m := engine.NewMatcher(load(b, map[string]string{"p/r.yaml": "id: r\ntitle: X\nseverity: low\ndetection:\n  kind: match\n  where: >-\n    " + where + "\n"}))
			p := payload(b, "user.session.start")
			var v record.SystemLogView
			b.ReportAllocs()
			for b.Loop() {
				if err := v.Reset(p); err != nil {
					b.Fatal(err)
				}
				m.Match(&v, engine.Place{})
			}
		})
	}
}

// BenchmarkMeter judges the same events with a meter and without: what measuring a sample costs.
func BenchmarkMeter(b *testing.B) {
	began := time.Now()
	for _, bc := range []struct {
		name string
		opts []engine.Option
	}{
		{"off", nil},
		{"on", []engine.Option{engine.WithMeter(engine.Meter{
			Every: 61, Now: func() time.Duration { return time.Since(began) }, Took: func(string, time.Duration) {},
		})}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			m := engine.NewMatcher(twelve(b), bc.opts...)
			p := payload(b, "user.authentication.auth_via_mfa")
			var v record.SystemLogView
			b.ReportAllocs()
			for b.Loop() {
				if err := v.Reset(p); err != nil {
					b.Fatal(err)
				}
				m.Match(&v, engine.Place{Topic: "t"})
			}
		})
	}
}
