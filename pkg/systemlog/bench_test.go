package systemlog

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/oktawatch/oktawatch/pkg/record"
)

func BenchmarkRead(b *testing.B) {
	all := fixtures(b)
	secret := all[len(all)-3] // one of the largest recorded events, with a token in a URL
	doc := bytes.ReplaceAll(secret, []byte("stateToken"), []byte("someOthers"))
	m := testMask(b)
	var ev record.SystemLog
	b.Run("masked", func(b *testing.B) {
		b.SetBytes(int64(len(secret)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Read(secret, m, &ev); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Read", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Read(doc, m, &ev); err != nil {
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
