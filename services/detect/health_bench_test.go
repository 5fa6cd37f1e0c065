package detect

import (
	"testing"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// BenchmarkFacts is what the health of rules adds to each event that is read, and to each that a rule takes.
func BenchmarkFacts(b *testing.B) {
	log := event(b, 1, "user.session.start")
	payload, err := log.AppendAvro(nil)
	if err != nil {
		b.Fatal(err)
	}
	var v record.SystemLogView
	if err := v.Reset(payload); err != nil {
		b.Fatal(err)
	}
	f := newFacts()
	w := worker{s: &Service{health: &health{facts: f}}}
	w.view = v
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.begin()
		}
	})
	b.Run("taken", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f.met(w.org, "a-rule", func(r *ruleFacts) { r.take(w.at); r.hit(w.at) })
		}
	})
}
