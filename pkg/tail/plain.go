package tail

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Plain shows the value as JSON for people: by the schema its writer used, with ordinary nulls, RFC 3339 times and an
// event's JSON in place. A tombstone is null. A dead letter, or anything else in a topic without a schema of its own, is
// shown as what it turns out to be: a record of ours, JSON, text, or {"base64": "…"}.
func (rec Record) Plain(ctx context.Context) (json.RawMessage, error) {
	if rec.Value == nil {
		return json.RawMessage("null"), nil
	}
	row, ok := topics.Find(rec.Topic, rec.r.cfg.Prefix)
	if ok && row.Record != "" {
		s, payload, err := rec.schema(ctx)
		if err != nil {
			return nil, err
		}
		out, err := s.plain.JSON(payload)
		if err != nil {
			return nil, fmt.Errorf("%s partition %d offset %d: %w", rec.Topic, rec.Partition, rec.Offset, err)
		}
		return out, nil
	}
	if s, payload, err := rec.schema(ctx); err == nil {
		if out, err := s.plain.JSON(payload); err == nil {
			return out, nil
		}
	} else if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return anything(rec.Value), nil
}

// anything shows bytes that nothing is known about.
func anything(b []byte) json.RawMessage {
	if record.IsPlainJSON(b) {
		var out bytes.Buffer
		if json.Compact(&out, b) == nil {
			return out.Bytes()
		}
	}
	var v any = map[string]string{"base64": base64.StdEncoding.EncodeToString(b)}
	if utf8.Valid(b) && !bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' && r != '\t' }) {
		v = string(b)
	}
	out, _ := json.Marshal(v) // strings always marshal
	return out
}

// JSON shows the whole record on one line: where it lies, when it came, key, headers and the plain value.
func (rec Record) JSON(ctx context.Context) (json.RawMessage, error) {
	value, err := rec.Plain(ctx)
	if err != nil {
		return nil, err
	}
	headers := map[string]string{}
	for _, h := range rec.Headers {
		headers[h.Key] = strings.ToValidUTF8(string(h.Value), "\uFFFD")
	}
	return json.Marshal(struct {
		Topic     string            `json:"topic"`
		Partition int32             `json:"partition"`
		Offset    int64             `json:"offset"`
		Timestamp time.Time         `json:"timestamp"`
		Key       string            `json:"key"`
		Headers   map[string]string `json:"headers,omitempty"`
		Value     json.RawMessage   `json:"value"`
	}{rec.Topic, rec.Partition, rec.Offset, rec.Timestamp, strings.ToValidUTF8(string(rec.Key), "\uFFFD"), headers, value})
}

// errNotFramed says that a value is not one that a registry client wrote.
var errNotFramed = errors.New("value has no schema id in front")

// frame splits Confluent's framing: a zero byte, the schema's id, the payload.
func frame(b []byte) (id int, payload []byte, err error) {
	if len(b) < 5 || b[0] != 0 {
		return 0, nil, errNotFramed
	}
	return int(binary.BigEndian.Uint32(b[1:5])), b[5:], nil
}

func (rec Record) schema(ctx context.Context) (*schema, []byte, error) {
	id, payload, err := frame(rec.Value)
	if err == nil {
		var s *schema
		if s, err = rec.r.schemas.get(ctx, id); err == nil {
			return s, payload, nil
		}
	}
	return nil, nil, fmt.Errorf("%s partition %d offset %d: %w", rec.Topic, rec.Partition, rec.Offset, err)
}

// schema is a writer's schema, made ready.
type schema struct {
	plain *record.Plainer
	ids   *idReader // nil: records of this schema have no identity of their own
}

// schemas keeps every schema met, by id: ids never change their meaning.
type schemas struct {
	base string
	http *http.Client

	mu   sync.Mutex
	byID map[int]*schema
	miss map[int]missed
}

// missed keeps a failure for a moment, so that a topic full of unreadable records does not ask for each.
type missed struct {
	err   error
	until time.Time
}

const (
	maxSchema = 8 << 20
	missFor   = 5 * time.Second
)

func newSchemas(base string, client *http.Client) *schemas {
	if client == nil {
		client = http.DefaultClient
	}
	return &schemas{base: strings.TrimRight(base, "/"), http: client, byID: map[int]*schema{}, miss: map[int]missed{}}
}

func (s *schemas) get(ctx context.Context, id int) (*schema, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.byID[id]; found != nil {
		return found, nil
	}
	if m, ok := s.miss[id]; ok && time.Now().Before(m.until) {
		return nil, m.err
	}
	made, err := s.fetch(ctx, id)
	if err != nil {
		err = fmt.Errorf("schema %d: %w", id, err)
		if ctx.Err() == nil && len(s.miss) < 1000 {
			s.miss[id] = missed{err, time.Now().Add(missFor)}
		}
		return nil, err
	}
	s.byID[id] = made
	delete(s.miss, id)
	return made, nil
}

func (s *schemas) fetch(ctx context.Context, id int) (*schema, error) {
	if s.base == "" {
		return nil, errors.New("no schema registry is named")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	where, err := url.JoinPath(s.base, "schemas", "ids", strconv.Itoa(id))
	if err != nil {
		return nil, fmt.Errorf("registry URL %s: %w", s.base, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("registry URL %s: %w", s.base, err)
	}
	req.Header.Set("Accept", "application/vnd.schemaregistry.v1+json, application/json")
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the registry: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxSchema))
	if err != nil {
		return nil, fmt.Errorf("ask the registry at %s: %w", s.base, err)
	}
	var answer struct {
		Schema  string `json:"schema"`
		Type    string `json:"schemaType"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(body, &answer); err != nil && resp.StatusCode == http.StatusOK {
		return nil, fmt.Errorf("ask the registry at %s: %w", s.base, err)
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("the registry at %s does not know it", s.base)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the registry at %s answered %s %s", s.base, resp.Status, answer.Message)
	case answer.Type != "" && answer.Type != "AVRO":
		return nil, fmt.Errorf("it is %s, not Avro", answer.Type)
	}
	p, err := record.NewPlainer(answer.Schema)
	if err != nil {
		return nil, err
	}
	return &schema{plain: p, ids: newIDReader(answer.Schema)}, nil
}
