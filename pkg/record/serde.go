package record

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"
)

var (
	// ErrUnreadable is in every error that comes from the bytes themselves: trying again gives the same. Errors without
	// it come from the registry and may pass.
	ErrUnreadable = errors.New("unreadable record")
	// ErrNotRegistered is in the error of an Encode whose schema the registry does not have under the subject.
	ErrNotRegistered = errors.New("schema is not registered")
)

func decodeError(name string, err error) error {
	return fmt.Errorf("%w: decode %s: %w", ErrUnreadable, name, err)
}

// Serde frames records for the schema registry and reads frames of any writer. It looks ids and schemas up once and
// never registers. Safe for concurrent use.
type Serde struct {
	prefix string
	client *sr.Client
	err    error // of making the client; told by the first use

	mu  sync.RWMutex
	ids map[idKey]int
	ws  map[writerKey]*writer
}

type (
	idKey     struct{ subject, name string }
	writerKey struct {
		id   int
		name string
	}
)

// writer is a schema by which records of one of ours were written.
type writer struct {
	same     bool
	resolved *avro.Schema // reads the writer's bytes into our struct
}

// NewSerde makes a Serde on the registry at that address. Subjects must begin with topicsPrefix. It does no I/O.
func NewSerde(registryURL, topicsPrefix string, opts ...sr.ClientOpt) *Serde {
	client, err := sr.NewClient(append([]sr.ClientOpt{sr.URLs(registryURL)}, opts...)...)
	if err != nil {
		err = fmt.Errorf("make client of schema registry %s: %w", registryURL, err)
	}
	return &Serde{prefix: topicsPrefix, client: client, err: err, ids: map[idKey]int{}, ws: map[writerKey]*writer{}}
}

// Encode appends the framed record to dst. The id is that of our own schema under the subject.
func (s *Serde) Encode(ctx context.Context, subject string, r Record, dst []byte) ([]byte, error) {
	id, err := s.ID(ctx, subject, r.SchemaName())
	if err != nil {
		return dst, err
	}
	out, err := new(sr.ConfluentHeader).AppendEncode(dst, id, nil)
	if err != nil {
		return dst, fmt.Errorf("frame %s record: %w", r.SchemaName(), err)
	}
	if out, err = r.AppendAvro(out); err != nil {
		return dst, fmt.Errorf("encode %s record: %w", r.SchemaName(), err)
	}
	return out, nil
}

// ID returns the registry's id of our schema under the subject.
func (s *Serde) ID(ctx context.Context, subject, name string) (int, error) {
	k := idKey{subject, name}
	s.mu.RLock()
	id, ok := s.ids[k]
	s.mu.RUnlock()
	if ok {
		return id, nil
	}
	if s.err != nil {
		return 0, s.err
	}
	if !strings.HasPrefix(subject, s.prefix) {
		return 0, fmt.Errorf("look up schema %s: subject %s does not begin with the prefix %q of this installation", name, subject, s.prefix)
	}
	text, ok := Schema(name)
	if !ok {
		return 0, fmt.Errorf("look up schema %s: there is no such schema", name)
	}
	found, err := s.client.LookupSchema(ctx, subject, sr.Schema{Schema: text, Type: sr.TypeAvro})
	if err != nil {
		var re *sr.ResponseError
		if errors.As(err, &re) && (re.StatusCode == 404 || sr.IsNotFoundError(re.ErrorCode)) {
			return 0, fmt.Errorf("%w: %s under subject %s: run `oktawatch schemas apply`: %w", ErrNotRegistered, name, subject, err)
		}
		return 0, fmt.Errorf("look up schema %s under subject %s: %w", name, subject, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[k] = found.ID
	return found.ID, nil
}

// Decode reads a framed record of any writer.
func (s *Serde) Decode(ctx context.Context, framed []byte, into Record) error {
	payload, w, err := s.open(ctx, framed, into.SchemaName())
	if err != nil {
		return err
	}
	if w.same {
		return into.DecodeAvro(payload)
	}
	return w.read(payload, into)
}

// Payload returns the unframed bytes of a record in our own schema. They are part of framed when the writer's schema is
// laid out as ours (same), else they were made anew.
func (s *Serde) Payload(ctx context.Context, framed []byte, name string) (payload []byte, same bool, err error) {
	payload, w, err := s.open(ctx, framed, name)
	if err != nil || w.same {
		return payload, err == nil, err
	}
	r := New(name)
	if err := w.read(payload, r); err != nil {
		return nil, false, err
	}
	payload, err = r.AppendAvro(nil)
	return payload, false, err
}

// read decodes by a writer's schema. The record is emptied first: the codec would merge maps.
func (w *writer) read(payload []byte, into Record) error {
	reflect.ValueOf(into).Elem().SetZero()
	rest, err := w.resolved.Decode(payload, into)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes are left after the record", len(rest))
	}
	if err != nil {
		reflect.ValueOf(into).Elem().SetZero()
		return decodeError(into.SchemaName(), fmt.Errorf("by its writer's schema: %w", err))
	}
	return nil
}

// open takes the frame off and finds the writer's schema.
func (s *Serde) open(ctx context.Context, framed []byte, name string) ([]byte, *writer, error) {
	id, payload, err := new(sr.ConfluentHeader).DecodeID(framed)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s record of %d bytes has no registry frame", ErrUnreadable, name, len(framed))
	}
	k := writerKey{id, name}
	s.mu.RLock()
	w := s.ws[k]
	s.mu.RUnlock()
	if w != nil {
		return payload, w, nil
	}
	if s.err != nil {
		return nil, nil, s.err
	}
	found, err := s.client.SchemaByID(ctx, id)
	if err != nil {
		var re *sr.ResponseError
		if errors.As(err, &re) && (re.StatusCode == 404 || sr.IsNotFoundError(re.ErrorCode)) {
			return nil, nil, fmt.Errorf("%w: %s record names schema id %d, which the registry does not know: %w", ErrUnreadable, name, id, err)
		}
		return nil, nil, fmt.Errorf("look up schema id %d: %w", id, err)
	}
	if w, err = newWriter(name, found.Schema); err != nil {
		return nil, nil, fmt.Errorf("%w: %s record of schema id %d: %w", ErrUnreadable, name, id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ws[k] = w
	return payload, w, nil
}

func newWriter(name, text string) (*writer, error) {
	own, err := compiled()
	if err != nil {
		return nil, err
	}
	reader := own[name]
	if reader == nil {
		return nil, fmt.Errorf("there is no schema %s", name)
	}
	ws, err := avro.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("parse the writer's schema: %w", err)
	}
	if string(ws.Canonical()) == string(reader.Canonical()) {
		return &writer{same: true}, nil
	}
	resolved, err := avro.Resolve(ws, reader)
	if err != nil {
		return nil, fmt.Errorf("read the writer's schema as ours: %w", err)
	}
	return &writer{resolved: resolved}, nil
}

// CheckCompatibility says why data of the writer's schema cannot be read with the reader's, nil when they can.
func CheckCompatibility(reader, writer string) error {
	r, err := avro.Parse(reader)
	if err != nil {
		return fmt.Errorf("parse the reader's schema: %w", err)
	}
	w, err := avro.Parse(writer)
	if err != nil {
		return fmt.Errorf("parse the writer's schema: %w", err)
	}
	err = avro.CheckCompatibility(w, r)
	if ce, ok := errors.AsType[*avro.CompatibilityError](err); ok {
		at := ce.Path
		if at == "" {
			at = "the record"
		}
		return fmt.Errorf("%s: writer has %s, reader has %s: %s", at, ce.WriterType, ce.ReaderType, ce.Detail)
	}
	return err
}
