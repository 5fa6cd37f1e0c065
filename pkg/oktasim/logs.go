package oktasim

import (
	"bytes"
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	retention  = 90 * 24 * time.Hour
	tooOld     = 180 * 24 * time.Hour
	defaultAge = 7 * 24 * time.Hour
)

// logQuery is a checked query of the System Log.
type logQuery struct {
	since, until time.Time
	bounded      bool
	descending   bool
	limit        int
	after        position
	resumed      bool
	match        func(typ string) bool // nil: all
	words        [][]byte
}

func parseLogQuery(v url.Values, now time.Time) (q logQuery, e *apiError) {
	q.limit = 100
	if s := v.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > 1000 {
			return q, invalid("limit", "limit: must be between 0 and 1000")
		}
		q.limit = n
	}
	switch s := v.Get("sortOrder"); s {
	case "", "ASCENDING":
	case "DESCENDING":
		q.descending = true
	default:
		return q, invalid("sortOrder", "sortOrder: must be ASCENDING or DESCENDING")
	}
	for _, f := range []struct {
		name string
		to   *time.Time
	}{{"since", &q.since}, {"until", &q.until}} {
		if s := v.Get(f.name); s != "" {
			t, err := time.Parse(time.RFC3339, s)
			if err != nil {
				return q, invalid(f.name, f.name+": The date format in your query is not recognized. Please enter dates using ISO8601 string format.")
			}
			*f.to = t.UTC()
		}
	}
	q.bounded = !q.until.IsZero() || q.descending
	if q.until.IsZero() {
		q.until = now
	}
	if q.since.IsZero() {
		q.since = q.until.Add(-defaultAge)
	} else if now.Sub(q.since) > tooOld {
		return q, errOldSince
	}
	if s := v.Get("after"); s != "" {
		p, ok := parsePosition(s)
		if !ok {
			return q, errCursorParam
		}
		q.after, q.resumed = p, true
	}
	if s := v.Get("filter"); s != "" {
		m, err := parseFilter(s)
		if err != nil {
			return q, err
		}
		q.match = m
	}
	words := strings.Fields(v.Get("q"))
	if len(words) > 10 {
		return q, invalid("q", "q: at most 10 keywords")
	}
	for _, w := range words {
		if len([]rune(w)) > 40 {
			return q, invalid("q", "q: a keyword must not be longer than 40 characters")
		}
		q.words = append(q.words, bytes.ToLower([]byte(w)))
	}
	return q, nil
}

func (o *Org) getLogs(w http.ResponseWriter, r *http.Request) *apiError {
	now := o.now()
	q, e := parseLogQuery(r.URL.Query(), now)
	if e != nil {
		return e
	}
	o.store.settle(now)
	var page [][]byte
	var next string
	var err error
	if q.bounded {
		page, next, err = o.store.bounded(q, now)
	} else {
		page, next, err = o.store.poll(q, now)
	}
	if err != nil {
		o.log.Error("read event log", "error", err)
		return errInternal
	}
	h := w.Header()
	link := func(rel string, v url.Values) {
		h.Add("Link", "<"+base(r)+r.URL.Path+"?"+v.Encode()+`>; rel="`+rel+`"`)
	}
	link("self", r.URL.Query())
	if next != "" {
		v := url.Values{}
		for _, k := range []string{"limit", "filter", "q", "sortOrder", "until"} {
			if s := r.URL.Query().Get(k); s != "" {
				v.Set(k, s)
			}
		}
		if q.bounded {
			v.Set("since", q.since.Format(time.RFC3339Nano))
			v.Set("until", q.until.Format(time.RFC3339Nano))
		}
		v.Set("after", next)
		link("next", v)
	}
	h.Set("Content-Type", "application/json")
	n := 2
	for _, b := range page {
		n += len(b) + 1
	}
	body := append(make([]byte, 0, n), '[')
	for i, b := range page {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, b...)
	}
	_, _ = w.Write(append(body, ']')) // the caller went away
	return nil
}

// poll reads on in the order of persistence. There is always a next place, also after an empty page.
func (s *store) poll(q logQuery, now time.Time) ([][]byte, string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at := q.after
	if !q.resumed {
		at = position{q.since.UnixMilli(), 0}
		if q.since.Nanosecond()%1e6 != 0 {
			at.ms++
		}
	}
	oldest := now.Add(-retention).UnixMilli()
	var page [][]byte
	for i := s.from(at); i < s.order.next && len(page) < q.limit; {
		var seqs []uint64
		for ; i < s.order.next && len(seqs) < q.limit-len(page); i++ {
			seq := *s.order.at(i)
			e := s.entries.at(seq)
			if e == nil {
				continue
			}
			at = e.at
			if e.at.ms >= oldest && (q.match == nil || q.match(s.types.names[e.typ])) {
				seqs = append(seqs, seq)
			}
		}
		raws, err := s.raws(seqs)
		if err != nil {
			return nil, "", err
		}
		for _, b := range raws {
			if q.has(b) {
				page = append(page, b)
			}
		}
	}
	return page, at.String(), nil
}

// bounded reads a window in the order of publishing; its last page has no next place.
func (s *store) bounded(q logQuery, now time.Time) ([][]byte, string, error) {
	type hit struct {
		at  position // published, and the sequence number
		seq uint64
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	since, until := max(q.since.UnixMilli(), now.Add(-retention).UnixMilli()), q.until.UnixMilli()
	begin := since
	if q.resumed && !q.descending {
		begin = max(begin, q.after.ms)
	}
	var hits []hit
	var words [][]byte
	stop := int64(1<<63 - 1)
	for i := s.from(position{begin - s.ahead, 0}); i < s.order.next; i++ {
		seq := *s.order.at(i)
		e := s.entries.at(seq)
		if e == nil {
			continue
		}
		if e.at.ms > until+s.maxLate || e.at.ms > stop {
			break
		}
		p := position{e.pub, uint32(seq)}
		if e.pub < since || e.pub >= until || q.match != nil && !q.match(s.types.names[e.typ]) ||
			q.resumed && (!q.descending && !q.after.less(p) || q.descending && !p.less(q.after)) {
			continue
		}
		if len(q.words) > 0 {
			var err error
			if words, err = s.raws([]uint64{seq}); err != nil {
				return nil, "", err
			}
			if !q.has(words[0]) {
				continue
			}
		}
		hits = append(hits, hit{p, seq})
		if !q.descending && len(hits) == q.limit+1 { // what comes later than this was published after them all
			stop = slices.MaxFunc(hits, func(a, b hit) int { return cmp.Compare(a.at.ms, b.at.ms) }).at.ms + s.maxLate
		}
	}
	slices.SortFunc(hits, func(a, b hit) int {
		if q.descending {
			a, b = b, a
		}
		if a.at.less(b.at) {
			return -1
		}
		return 1
	})
	next := ""
	if len(hits) > q.limit {
		hits = hits[:q.limit]
		if q.limit > 0 {
			next = hits[q.limit-1].at.String()
		}
	}
	seqs := make([]uint64, len(hits))
	for i, h := range hits {
		seqs[i] = h.seq
	}
	page, err := s.raws(seqs)
	return page, next, err
}

// has says whether every keyword occurs as a whole word in the event, case aside.
func (q *logQuery) has(b []byte) bool {
	if len(q.words) == 0 {
		return true
	}
	low := bytes.ToLower(b)
	for _, w := range q.words {
		found := false
		for i := 0; !found; {
			j := bytes.Index(low[i:], w)
			if j < 0 {
				return false
			}
			j += i
			end := j + len(w)
			found = (j == 0 || !wordByte(low[j-1])) && (end == len(low) || !wordByte(low[end]))
			i = j + 1
		}
	}
	return true
}

func wordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c >= 0x80
}

// parseFilter knows a sound part of the filter language: eventType eq and sw, and, or, parentheses. The rest is refused.
func parseFilter(s string) (func(string) bool, *apiError) {
	p := &filterParser{rest: s}
	m, err := p.or()
	if err == nil && p.peek() != "" {
		err = badFilter("unexpected " + p.peek())
	}
	return m, err
}

func badFilter(why string) *apiError {
	return &apiError{http.StatusBadRequest, "E0000053", "Invalid filter: " + why, nil}
}

type filterParser struct {
	rest  string
	depth int
}

func (p *filterParser) peek() string {
	s := strings.TrimLeft(p.rest, " ")
	p.rest = s
	switch {
	case s == "":
		return ""
	case s[0] == '(' || s[0] == ')':
		return s[:1]
	case s[0] == '"':
		for i := 1; i < len(s); i++ {
			if s[i] == '\\' {
				i++
			} else if s[i] == '"' {
				return s[:i+1]
			}
		}
		return s
	}
	if i := strings.IndexAny(s, ` ()"`); i > 0 {
		return s[:i]
	}
	return s
}

func (p *filterParser) next() string {
	t := p.peek()
	p.rest = p.rest[len(t):]
	return t
}

func (p *filterParser) or() (func(string) bool, *apiError) {
	a, err := p.and()
	for err == nil && strings.EqualFold(p.peek(), "or") {
		p.next()
		var b func(string) bool
		left := a
		b, err = p.and()
		a = func(t string) bool { return left(t) || b(t) }
	}
	return a, err
}

func (p *filterParser) and() (func(string) bool, *apiError) {
	a, err := p.term()
	for err == nil && strings.EqualFold(p.peek(), "and") {
		p.next()
		var b func(string) bool
		left := a
		b, err = p.term()
		a = func(t string) bool { return left(t) && b(t) }
	}
	return a, err
}

func (p *filterParser) term() (func(string) bool, *apiError) {
	if p.depth++; p.depth > 100 {
		return nil, badFilter("nested too deep")
	}
	defer func() { p.depth-- }()
	if p.peek() == "(" {
		p.next()
		m, err := p.or()
		if err == nil && p.next() != ")" {
			err = badFilter("missing )")
		}
		return m, err
	}
	field, op, val := p.next(), strings.ToLower(p.next()), p.next()
	if field == "" || op == "" || len(val) < 2 || val[0] != '"' || val[len(val)-1] != '"' {
		return nil, badFilter(fmt.Sprintf("expected attribute, operator and value at %q", field))
	}
	val = val[1 : len(val)-1]
	if field != "eventType" || op != "eq" && op != "sw" {
		return nil, &apiError{http.StatusBadRequest, "E0000031", "Invalid search criteria.", []string{"the simulated org knows eventType eq and sw only, not " + field + " " + op}}
	}
	if op == "sw" {
		return func(t string) bool { return strings.HasPrefix(t, val) }, nil
	}
	return func(t string) bool { return t == val }, nil
}
