package systemlog

import (
	"encoding/json"
	"testing"
)

func BenchmarkRead(b *testing.B) {
	doc := fixtures(b)[len(fixtures(b))-3] // one of the largest recorded events
	m := testMask(b)
	b.Run("FromJSON", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := FromJSON(doc, m); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding_json_into_a_map", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		b.ReportAllocs()
		for b.Loop() {
			var ev map[string]any
			if err := json.Unmarshal(doc, &ev); err != nil {
				b.Fatal(err)
			}
		}
	})
}
