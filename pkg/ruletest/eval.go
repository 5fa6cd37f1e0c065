package ruletest

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
)

// maxEvent bounds one event of a file: four times what the pipeline takes.
const maxEvent = 8 << 20

// Input is the events of a file, in the order in which they are judged. It holds where each stands, not the events: some
// 150 bytes each, however large they are.
type Input struct {
	org    string
	file   io.ReaderAt
	size   int64
	events []indexed
	types  []string // event types
}

// indexed is one event of an Input.
type indexed struct {
	uuid      string
	published int64
	identity  uint64
	offset    int64
	length    int32
	kind      int32 // number in types
	reused    bool  // the uuid is another event's too
}

// ReadEvents finds the events of a file of LogEvents: JSON lines, or arrays of them as the System Log API answers. What
// cannot be judged (no readable published, no JSON) is told to skipped with its line and left out. Of copies of one event
// the complete one counts, in the place of the first.
func ReadEvents(file io.ReaderAt, size int64, org string, skipped func(line int, err error)) (*Input, error) {
	in := &Input{org: org, file: file, size: size}
	x := indexer{in: in, skipped: skipped, line: 1, known: map[[16]byte]int{}, types: map[string]int32{}, r: bufio.NewReaderSize(nil, 64<<10)}
	if err := x.run(); err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return in, nil
}

// Len is the number of events.
func (in *Input) Len() int { return len(in.events) }

// Sort puts the events into the order of published, uuid.
func (in *Input) Sort() {
	slices.SortStableFunc(in.events, func(a, b indexed) int {
		return cmp.Or(cmp.Compare(a.published, b.published), strings.Compare(a.uuid, b.uuid))
	})
}

// indexer reads a file once, line by line.
type indexer struct {
	in      *Input
	skipped func(line int, err error)
	r       *bufio.Reader
	pos     int64 // where r stands, in the file
	line    int
	buf     []byte
	known   map[[16]byte]int // place by uuid, and by uuid and identity of those whose uuid was used twice
	types   map[string]int32
}

func (x *indexer) run() error {
	x.jump(0)
	for x.pos < x.in.size {
		start := x.pos
		text, long, err := x.next()
		if err != nil {
			return err
		}
		if start == 0 {
			rest := bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
			start += int64(len(text) - len(rest))
			text = rest
		}
		left := bytes.TrimLeft(text, " \t\r\n")
		start += int64(len(text) - len(left))
		doc := bytes.TrimSpace(left)
		switch {
		case len(doc) == 0:
		case doc[0] == '[', doc[0] == '{' && !long && !json.Valid(doc):
			// An array, or an object over many lines, or none.
			if err := x.values(start, doc[0] == '['); err != nil {
				return err
			}
			continue
		case long:
			x.skipped(x.line, fmt.Errorf("longer than %d MiB: that is no event", maxEvent>>20))
		default:
			x.add(start, doc)
		}
		x.line++
	}
	return nil
}

// jump goes on reading elsewhere.
func (x *indexer) jump(to int64) {
	x.pos = to
	x.r.Reset(io.NewSectionReader(x.in.file, to, x.in.size-to))
}

// next reads the rest of a line; of one too long for an event the beginning only.
func (x *indexer) next() (text []byte, long bool, err error) {
	x.buf = x.buf[:0]
	for {
		part, err := x.r.ReadSlice('\n')
		x.pos += int64(len(part))
		if long = len(x.buf)+len(part) > maxEvent; !long {
			x.buf = append(x.buf, part...)
		}
		switch {
		case err == nil, errors.Is(err, io.EOF):
			return x.buf, long, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, false, err
		}
	}
}

// values reads a value that may go over many lines: an array of events, or one event. Behind what cannot be read it goes
// on with the next line.
func (x *indexer) values(at int64, array bool) error {
	dec := json.NewDecoder(io.NewSectionReader(x.in.file, at, x.in.size-at))
	err := func() error {
		if !array {
			return x.value(dec, at)
		}
		if _, err := dec.Token(); err != nil {
			return err
		}
		for dec.More() {
			if err := x.value(dec, at); err != nil {
				return err
			}
		}
		_, err := dec.Token()
		return err
	}()
	end := at + dec.InputOffset()
	if err != nil {
		x.skipped(x.line, fmt.Errorf("no JSON: %w", err))
	}
	line := x.line
	x.jump(at)
	for x.pos < end {
		if _, _, err := x.next(); err != nil {
			return err
		}
		line++
	}
	x.line = line
	if err == nil && x.pos > end { // the rest of the line
		x.line--
		x.jump(end)
		return nil
	}
	if x.pos == at { // nothing could be read of it
		_, _, err = x.next()
		x.line++
		return err
	}
	return nil
}

func (x *indexer) value(dec *json.Decoder, at int64) error {
	var doc json.RawMessage
	if err := dec.Decode(&doc); err != nil {
		return err
	}
	x.add(at+dec.InputOffset()-int64(len(doc)), doc)
	return nil
}

// add takes one event, or a better copy of one.
func (x *indexer) add(at int64, doc []byte) {
	if len(doc) > maxEvent {
		x.skipped(x.line, fmt.Errorf("longer than %d MiB: that is no event", maxEvent>>20))
		return
	}
	ev, _, err := systemlog.FromJSON(doc, nil)
	switch {
	case err != nil:
		x.skipped(x.line, err)
		return
	case ev.Published == nil:
		x.skipped(x.line, errors.New("no readable published"))
		return
	}
	e := indexed{uuid: strings.Clone(ev.UUID), published: ev.Published.UnixMilli(), offset: at, length: int32(len(doc)), kind: x.kind(ev.EventType)} //nolint:gosec // at most maxEvent
	sum := sha256.Sum256(append(binary.BigEndian.AppendUint64(nil, uint64(e.published)), ev.EventType...))                                           //nolint:gosec // bits
	e.identity = binary.BigEndian.Uint64(sum[:])
	key := keyOf(e.uuid)
	i, known := x.known[key]
	if known && x.in.events[i].identity != e.identity { // the uuid is another event's
		e.reused = true
		key = keyOf(fmt.Sprintf("%s\x00%016x", e.uuid, e.identity))
		i, known = x.known[key]
	}
	if !known {
		x.known[key] = len(x.in.events)
		x.in.events = append(x.in.events, e)
		return
	}
	if first, err := x.in.doc(&x.in.events[i]); err == nil && hookShaped(first) && !hookShaped(doc) {
		x.in.events[i] = e
	}
}

func keyOf(text string) [16]byte {
	sum := sha256.Sum256([]byte(text))
	return [16]byte(sum[:16])
}

func (x *indexer) kind(eventType string) int32 {
	n, ok := x.types[eventType]
	if !ok {
		n = int32(len(x.in.types)) //nolint:gosec // one an event at most
		eventType = strings.Clone(eventType)
		x.types[eventType] = n
		x.in.types = append(x.in.types, eventType)
	}
	return n
}

// doc reads an event's JSON.
func (in *Input) doc(e *indexed) ([]byte, error) {
	doc := make([]byte, e.length)
	if _, err := in.file.ReadAt(doc, e.offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read event %s again: %w", e.uuid, err)
	}
	return doc, nil
}

// load makes the record that normalize would make of an event, received when it was published.
func (in *Input) load(e *indexed) (*record.SystemLog, error) {
	doc, err := in.doc(e)
	if err != nil {
		return nil, err
	}
	ev := new(record.SystemLog)
	if _, err := systemlog.Read(doc, nil, ev); err != nil || ev.Published == nil {
		return nil, fmt.Errorf("read event %s again: the file has changed meanwhile", e.uuid)
	}
	d := &ev.Derived
	d.Org, d.Lane, d.Copy, d.RawPartition, d.RawOffset = in.org, lane, 1, -1, -1
	d.Time, d.Received = *ev.Published, *ev.Published
	if e.reused {
		d.UUIDReused, d.ContentHash = true, fmt.Sprintf("%016x", e.identity)
	}
	return ev, nil
}

const lane = "live"

// hookShaped tells the body of an event hook from the System Log API's: its chain of addresses is in client.
func hookShaped(doc []byte) bool {
	var ev struct {
		Client struct {
			IPChain json.RawMessage `json:"ipChain"`
		} `json:"client"`
		Request json.RawMessage `json:"request"`
	}
	there := func(m json.RawMessage) bool { return m != nil && string(m) != "null" }
	return json.Unmarshal(doc, &ev) == nil && there(ev.Client.IPChain) && !there(ev.Request)
}

// Report hears what an evaluation meets. Every member must be there.
type Report struct {
	Found    func(*record.Detection) error
	Failed   func(error)                 // an expression failed and counted as false
	Late     func(ruleID string)         // an event came after its time was decided: once an event and rule
	Limited  func(ruleID, what string)   // a limit of the language cut something
	Excepted func(ruleID, except string) // an exception kept an event from being judged
}

// Eval judges the events in their order by every rule of the set whatever its mode. The clock follows the greatest event
// time; at the end it is the time of the last record.
func Eval(set *rule.Set, in *Input, r Report) error {
	if len(in.events) == 0 {
		return nil
	}
	o := &heard{Report: r}
	c := newCourse(set, o, in.org, r.Found)
	wanted := make([]bool, len(in.types))
	for i, t := range in.types {
		wanted[i] = c.m.Wanted(in.org, t)
	}
	first, last := int64(math.MaxInt64), int64(math.MinInt64)
	for i := range in.events {
		first = min(first, in.events[i].published)
	}
	c.st.Begin(in.org, lane, time.UnixMilli(first).UTC()) // learning counts from the earliest record of the input
	for i := range in.events {
		e := &in.events[i]
		if wanted[e.kind] {
			ev, err := in.load(e)
			if err != nil {
				return err
			}
			o.next()
			if err := c.judge(Event{Log: ev}); err != nil {
				return fmt.Errorf("judge event %s: %w", e.uuid, err)
			}
		}
		var err error
		if e.published > last {
			last = e.published
			err = c.advance(time.UnixMilli(last).UTC())
		} else {
			err = c.tell()
		}
		if err != nil {
			return err
		}
	}
	return c.end(time.UnixMilli(last).UTC())
}

// heard passes on what the engine says; that an event is late is said once for each rule, however many groups it has.
type heard struct {
	Report
	late map[string]bool
}

func (h *heard) next() { clear(h.late) }

func (h *heard) Failed(err error)            { h.Report.Failed(err) }
func (h *heard) Excepted(id, except string)  { h.Report.Excepted(id, except) }
func (h *heard) Limited(ruleID, what string) { h.Report.Limited(ruleID, what) }
func (h *heard) Late(ruleID string) {
	if h.late == nil {
		h.late = map[string]bool{}
	}
	if !h.late[ruleID] {
		h.late[ruleID] = true
		h.Report.Late(ruleID)
	}
}
