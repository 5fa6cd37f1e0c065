package record

import (
	"reflect"
	"testing"

	"github.com/twmb/avro"
)

// bench is the sample with the most fields as record, as our bytes and as the reference codec's value.
func bench(b *testing.B) (*SystemLog, []byte, map[string]any) {
	b.Helper()
	var s *SystemLog
	var raw []byte
	for _, x := range samples(b) {
		enc, err := x.AppendAvro(nil)
		must(b, err)
		if s == nil || len(enc)-len(x.JSON) > len(raw)-len(s.JSON) {
			s, raw = x, enc
		}
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	return s, raw, native(reflect.ValueOf(s).Elem()).(map[string]any)
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func BenchmarkEncode(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		s, buf, _ := bench(b)
		for b.Loop() {
			buf, _ = s.AppendAvro(buf[:0])
		}
	})
	b.Run("twmb", func(b *testing.B) {
		s, buf, _ := bench(b)
		c := avro.MustParse(SystemLogSchema)
		for b.Loop() {
			var err error
			buf, err = c.AppendEncode(buf[:0], s)
			must(b, err)
		}
	})
	b.Run("goavro/ready", func(b *testing.B) {
		_, buf, n := bench(b)
		c := codecOf(b, "system_log")
		for b.Loop() {
			var err error
			buf, err = c.BinaryFromNative(buf[:0], n)
			must(b, err)
		}
	})
	b.Run("goavro/struct", func(b *testing.B) {
		s, buf, _ := bench(b)
		c := codecOf(b, "system_log")
		for b.Loop() {
			var err error
			buf, err = c.BinaryFromNative(buf[:0], native(reflect.ValueOf(s).Elem()))
			must(b, err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		_, raw, _ := bench(b)
		var s SystemLog
		for b.Loop() {
			must(b, s.DecodeAvro(raw))
		}
	})
	b.Run("view/all", func(b *testing.B) {
		_, raw, _ := bench(b)
		var v SystemLogView
		for b.Loop() {
			must(b, v.Reset(raw))
			v.Derived()
			v.Outcome()
			v.Actor()
			v.Target()
			v.Client()
			v.Request()
			v.Transaction()
			v.DebugContext()
			v.AuthenticationContext()
			v.SecurityContext()
			v.Device()
			v.Enrichment()
			v.JSON()
			must(b, v.Err())
		}
	})
	b.Run("view/rule", func(b *testing.B) { // what a typical rule reads
		_, raw, _ := bench(b)
		var v SystemLogView
		for b.Loop() {
			must(b, v.Reset(raw))
			v.Derived()
			v.Outcome()
			v.Actor()
			v.Target()
			v.Client()
			must(b, v.Err())
		}
	})
	b.Run("view/walk", func(b *testing.B) { // all offsets, nothing decoded
		_, raw, _ := bench(b)
		var v SystemLogView
		for b.Loop() {
			must(b, v.Reset(raw))
			v.JSON()
		}
	})
	b.Run("view/peek", func(b *testing.B) { // what the rule index reads of an event nobody wants
		_, raw, _ := bench(b)
		var v SystemLogView
		for b.Loop() {
			must(b, v.Reset(raw))
			_ = v.EventType()
		}
	})
	b.Run("view/peekderived", func(b *testing.B) {
		_, raw, _ := bench(b)
		var v SystemLogView
		for b.Loop() {
			must(b, v.Reset(raw))
			v.Derived()
			v.OutcomeResult()
		}
	})
	b.Run("twmb", func(b *testing.B) {
		_, raw, _ := bench(b)
		c := avro.MustParse(SystemLogSchema)
		for b.Loop() {
			var s SystemLog
			_, err := c.Decode(raw, &s)
			must(b, err)
		}
	})
	b.Run("twmb/alias", func(b *testing.B) {
		_, raw, _ := bench(b)
		c := avro.MustParse(SystemLogSchema)
		for b.Loop() {
			var s SystemLog
			_, err := c.Decode(raw, &s, avro.AliasInput())
			must(b, err)
		}
	})
	b.Run("goavro", func(b *testing.B) {
		_, raw, _ := bench(b)
		c := codecOf(b, "system_log")
		for b.Loop() {
			_, _, err := c.NativeFromBinary(raw)
			must(b, err)
		}
	})
}
