package oktawatch

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// maxDocument bounds one JSON object of a file: the largest body of an event hook is 5 MiB.
const maxDocument = 8 << 20

// seedFile is a file of events being read once, from its beginning to its end; plain or compressed by gzip.
type seedFile struct {
	name    string
	file    *os.File
	size    int64 // zero: not known
	read    int64
	objects objectReader
}

func openSeeds(name string) (*seedFile, error) {
	s := &seedFile{name: name, file: os.Stdin}
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		s.file = f
	}
	st, err := s.file.Stat()
	switch {
	case err != nil:
	case st.IsDir():
		err = fmt.Errorf("%s is a folder, name a file", name)
	case st.Mode().IsRegular():
		s.size = st.Size()
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("read events: %w", err)
	}
	in := bufio.NewReaderSize(counted{s.file, &s.read}, 256<<10)
	if head, err := in.Peek(2); err == nil && head[0] == 0x1f && head[1] == 0x8b {
		z, err := gzip.NewReader(in)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("read events: %s: %w", name, err)
		}
		in = bufio.NewReaderSize(z, 256<<10)
	}
	s.objects = objectReader{r: in, atStart: true}
	return s, nil
}

func (s *seedFile) close() { s.file.Close() } //nolint:gosec // only read

// counted counts what is read.
type counted struct {
	r io.Reader
	n *int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	*c.n += int64(n)
	return n, err
}

// objectReader finds the JSON objects of a text: one a line, in arrays, or over many lines. A broken one costs no other: an
// object that has not ended is given up at the next line that begins with a brace.
type objectReader struct {
	r       *bufio.Reader
	rest    []byte // of what was read last
	atStart bool   // rest is the beginning of a line
	line    int    // of rest
	doc     []byte
	began   int // line of doc
	depth   int
	text    bool // within a string
	escaped bool
	err     error
}

// brokenObject is what is no JSON object.
type brokenObject struct {
	line int
	what string
}

func (b *brokenObject) Error() string { return b.what }

// next gives the next object and its line. The bytes are good until the next call. After a *brokenObject it goes on.
func (o *objectReader) next() (doc []byte, line int, err error) {
	o.doc = o.doc[:0]
	for {
		if len(o.rest) == 0 {
			if o.err != nil {
				if o.depth > 0 && errors.Is(o.err, io.EOF) {
					o.depth = 0
					return nil, 0, &brokenObject{o.began, "the file ends within this object"}
				}
				return nil, 0, o.err
			}
			o.rest, o.err = o.r.ReadSlice('\n')
			if errors.Is(o.err, bufio.ErrBufferFull) {
				o.err = nil
			}
			if o.atStart {
				o.line++
				if o.line == 1 {
					o.rest = bytes.TrimPrefix(o.rest, []byte("\xef\xbb\xbf"))
				}
			}
			another := o.depth > 0 && o.atStart && len(o.rest) > 0 && o.rest[0] == '{'
			o.atStart = bytes.HasSuffix(o.rest, []byte("\n"))
			if another {
				o.depth = 0
				return nil, 0, &brokenObject{o.began, "this object does not end"}
			}
		}
		done, err := o.scan()
		switch {
		case err != nil:
			return nil, 0, err
		case done && len(o.doc) > maxDocument:
			return nil, 0, &brokenObject{o.began, fmt.Sprintf("longer than %d MiB: that is no event", maxDocument>>20)}
		case done:
			return o.doc, o.began, nil
		}
	}
}

// scan takes from rest what belongs to an object and tells whether it is whole.
func (o *objectReader) scan() (done bool, err error) {
	if o.depth == 0 {
		o.rest = bytes.TrimLeft(o.rest, " \t\r\n,[]")
		if len(o.rest) == 0 {
			return false, nil
		}
		if o.rest[0] != '{' {
			o.skipLine()
			return false, &brokenObject{o.line, "no JSON object"}
		}
		o.began, o.text, o.escaped = o.line, false, false
	}
	for i, c := range o.rest {
		switch {
		case o.escaped:
			o.escaped = false
		case o.text && c == '\\':
			o.escaped = true
		case o.text && c == '\n':
			o.rest, o.depth, o.text = nil, 0, false
			return false, &brokenObject{o.line, "a text does not end on its line"}
		case c == '"':
			o.text = !o.text
		case o.text:
		case c == '{' || c == '[':
			o.depth++
		case c == '}' || c == ']':
			if o.depth--; o.depth == 0 {
				o.take(i + 1)
				return true, nil
			}
		}
	}
	o.take(len(o.rest))
	return false, nil
}

func (o *objectReader) take(n int) {
	if len(o.doc) <= maxDocument {
		o.doc = append(o.doc, o.rest[:n]...)
	}
	o.rest = o.rest[n:]
}

func (o *objectReader) skipLine() {
	for !o.atStart && o.err == nil {
		o.rest, o.err = o.r.ReadSlice('\n')
		if errors.Is(o.err, bufio.ErrBufferFull) {
			o.err = nil
		}
		o.atStart = bytes.HasSuffix(o.rest, []byte("\n"))
	}
	o.rest = nil
}

// eventsOf gives the events of a JSON object: itself, or those of an event hook's body.
func eventsOf(doc []byte) ([]json.RawMessage, error) {
	if bytes.Contains(doc, []byte(`"com.okta.event_hook"`)) {
		var hook struct {
			EventType string `json:"eventType"`
			Data      struct {
				Events []json.RawMessage `json:"events"`
			} `json:"data"`
		}
		if err := json.Unmarshal(doc, &hook); err != nil {
			return nil, fmt.Errorf("no JSON: %w", err)
		}
		if hook.EventType == "com.okta.event_hook" {
			return hook.Data.Events, nil
		}
	}
	return []json.RawMessage{doc}, nil
}

// seedEvent reads an event of a file; a seed needs an identity and a time of its own.
func seedEvent(doc []byte) (*record.SystemLog, error) {
	if len(doc) > topics.MaxEvent {
		return nil, fmt.Errorf("longer than %d MiB, which is not carried", topics.MaxEvent>>20)
	}
	ev, found, err := systemlog.FromJSON(doc, nil)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if f.Field == "uuid" {
			return nil, errors.New("no event: no readable uuid")
		}
	}
	switch {
	case ev.Published == nil:
		return nil, errors.New("no event: no readable published")
	case ev.EventType == "":
		return nil, errors.New("no event: no eventType")
	}
	return ev, nil
}
