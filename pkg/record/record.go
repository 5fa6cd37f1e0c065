// Package record holds the records that travel on the pipeline's topics: Go structs, their Avro codec, the framing of
// the schema registry, a lazy view of a System Log record and the table of fields that rules are checked against. All of
// it is generated from schemas/*.avsc: a field exists once, there.
//
// Invariant: what AppendAvro writes, goavro reads to the same values, and the other way round; any bytes give a record or
// an error, with memory bounded by their length.
//
// Nulls: a nullable number, boolean, time or object is a pointer, nil for null. Texts, lists and maps have no null: where
// Okta sent none they are empty. Times are UTC with milliseconds; the zero time.Time survives a round trip. A struct is written as it
// stands: the schema's defaults are for readers of bytes that lack a field, they fill no empty one. Topics, keys and the
// judging of records do not belong here.
package record

import (
	"fmt"
	"sync"

	"github.com/twmb/avro"
)

//go:generate go run ../internal/avrogen -schemas ../../schemas -root ../..

// Record is a record of one of our schemas: *SystemLog, *Detection and the others.
type Record interface {
	SchemaName() string                    // file name of the schema without .avsc
	AppendAvro(dst []byte) ([]byte, error) // unframed
	DecodeAvro(b []byte) error             // unframed, written with this package's own schema
}

// SchemaText is one schema of this package.
type SchemaText struct {
	Name string // file name without .avsc
	Text string
}

// Schema returns the text of a schema by name.
func Schema(name string) (string, bool) {
	for _, s := range Schemas() {
		if s.Name == name {
			return s.Text, true
		}
	}
	return "", false
}

// compiled parses our own schemas once.
var compiled = sync.OnceValues(func() (map[string]*avro.Schema, error) {
	out := map[string]*avro.Schema{}
	for _, s := range Schemas() {
		c, err := avro.Parse(s.Text)
		if err != nil {
			return nil, fmt.Errorf("parse schema %s: %w", s.Name, err)
		}
		out[s.Name] = c
	}
	return out, nil
})
