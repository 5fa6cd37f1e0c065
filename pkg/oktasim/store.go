package oktasim

import (
	"bufio"
	"cmp"
	"container/heap"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// position is a place in the System Log: the millisecond an event was persisted in and its number within it. Positions only
// grow, also over restarts, and a polling cursor is nothing else: it stays good for ever and simply reads what is newer.
type position struct {
	ms int64
	n  uint32
}

func (p position) less(q position) bool { return p.ms < q.ms || p.ms == q.ms && p.n < q.n }

func (p position) String() string {
	return strconv.FormatInt(p.ms, 10) + "_" + strconv.FormatUint(uint64(p.n), 10)
}

func parsePosition(s string) (position, bool) {
	a, b, ok := strings.Cut(s, "_")
	if !ok {
		return position{}, false
	}
	ms, err1 := strconv.ParseInt(a, 10, 64)
	n, err2 := strconv.ParseUint(b, 10, 32)
	return position{ms, uint32(n)}, err1 == nil && err2 == nil && ms >= 0
}

// hookState is what became of an event on its way through the event hooks.
type hookState uint8

const (
	hookNone    hookState = iota // no active hook wanted it
	hookQueued                   // waiting or on its way
	hookAcked                    // a hook answered 2xx
	hookFailed                   // every attempt failed
	hookDropped                  // a fault, a full queue or the daily cap took it
)

var hookStates = [...]string{"none", "queued", "acked", "failed", "dropped"}

// entry is what memory keeps of one event; its bytes lie in a segment.
type entry struct {
	off      int64
	pub      int64 // published, ms
	at       position
	size     uint32
	typ      uint16
	scenario uint16
	uuid     [16]byte
	odd      bool // the uuid is not one, read it from the bytes
	hook     hookState
}

// draft is an event on its way into the store.
type draft struct {
	raw      []byte
	uuid     [16]byte
	odd      bool
	typ      string
	scenario string
	pub      time.Time
	late     time.Duration // how long after now it is persisted
}

// segment is a run of the log's bytes: in memory, or a file.
type segment struct {
	start, size int64
	buf         []byte
	file        *os.File
	lastSeq     uint64 // the newest event in it
}

type ripening struct {
	due int64
	seq uint64
}

type ripenings []ripening

func (r ripenings) Len() int { return len(r) }
func (r ripenings) Less(i, j int) bool {
	return r[i].due < r[j].due || r[i].due == r[j].due && r[i].seq < r[j].seq
}
func (r ripenings) Swap(i, j int) { r[i], r[j] = r[j], r[i] }
func (r *ripenings) Push(v any)   { *r = append(*r, v.(ripening)) }
func (r *ripenings) Pop() any {
	old := *r
	v := old[len(old)-1]
	*r = old[:len(old)-1]
	return v
}

const (
	memorySegment = 1 << 20
	fileSegment   = 64 << 20

	recordHeader = 68
	recordMagic  = 0x4f4b5441

	kindEvent     = 1 // persisted at once
	kindLate      = 2 // persisted later: its position is the time it is due
	kindPersisted = 3 // a late event got its position
	kindHook      = 4 // hook results: the state, then sequence numbers
)

// store is the System Log: events in the order they were emitted and in the order they were persisted, ring-bounded by count.
// With a directory every event is in a file before anybody can see it, so a killed simulator comes back with all it ever showed.
type store struct {
	dir  string
	max  int
	lock *os.File

	mu      sync.RWMutex
	segs    []*segment
	entries deque[entry]  // by sequence number
	order   deque[uint64] // sequence numbers by position
	late    ripenings
	last    position
	maxLate int64 // the longest time between published and persisted, ms
	ahead   int64 // how far an event said to be published after it was persisted, ms
	types   interner
	tales   interner
	truth   *bufio.Writer
	truthF  *os.File
	stats   counts
	scratch []byte
	shut    bool // its directory is not open
}

var errShut = errors.New("keep event: the data directory is open only while the org runs")

// interner numbers a small set of strings.
type interner struct {
	names []string
	num   map[string]uint16
}

func (i *interner) of(s string) uint16 {
	if n, ok := i.num[s]; ok {
		return n
	}
	if i.num == nil {
		i.num = map[string]uint16{}
	}
	if len(i.names) >= 1<<15 {
		s = "(other)"
		if n, ok := i.num[s]; ok {
			return n
		}
	}
	n := uint16(len(i.names))
	i.names = append(i.names, strings.Clone(s))
	i.num[i.names[n]] = n
	return n
}

func newStore(dir string, max int) *store {
	s := &store{dir: dir, max: max, shut: dir != ""}
	s.types.of("")
	s.tales.of("")
	s.entries.base, s.entries.first, s.entries.next = 1, 1, 1
	return s
}

// open reads what the directory holds; a store without one is open from the start.
func (s *store) open(truthFile string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir != "" {
		if err := s.load(); err != nil {
			return err
		}
	}
	if truthFile != "" {
		f, err := os.OpenFile(truthFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("open truth file: %w", err)
		}
		s.truthF, s.truth = f, bufio.NewWriterSize(f, 64<<10)
	}
	s.shut = false
	return nil
}

func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.truth != nil {
		errs = append(errs, s.truth.Flush(), s.truthF.Close())
		s.truth, s.truthF = nil, nil
	}
	for _, g := range s.segs {
		if g.file != nil {
			errs = append(errs, g.file.Close())
		}
	}
	s.shut = s.dir != ""
	if s.dir != "" {
		s.segs = nil
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
		s.lock = nil
	}
	return errors.Join(errs...)
}

// append stores the drafts and returns the number of the first; they are numbered without gaps.
func (s *store) append(now time.Time, ds []draft) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return 0, errShut
	}
	s.ripen(now)
	g, err := s.room()
	if err != nil {
		return 0, err
	}
	first := s.entries.next
	last, maxLate, buf := s.last, s.maxLate, s.scratch[:0]
	es := make([]entry, len(ds))
	for i, d := range ds {
		e := entry{pub: d.pub.UnixMilli(), size: uint32(len(d.raw)), uuid: d.uuid, odd: d.odd, typ: s.types.of(d.typ), scenario: s.tales.of(d.scenario)}
		kind := byte(kindEvent)
		at := position{}
		if d.late > 0 {
			kind = kindLate
			at.ms = now.Add(d.late).UnixMilli()
		} else {
			last = after(last, now.UnixMilli())
			at, e.at = last, last
			maxLate = max(maxLate, at.ms-e.pub)
			s.ahead = max(s.ahead, e.pub-at.ms)
		}
		if s.dir != "" {
			buf = appendHeader(buf, kind, d.odd, first+uint64(i), e.pub, at, d.uuid, len(d.typ), len(d.scenario), len(d.raw))
			buf = append(append(buf, d.typ...), d.scenario...)
		}
		e.off = g.start + g.size + int64(len(buf))
		if kind == kindLate {
			e.at = at // replaced when it ripens
		}
		buf = append(buf, d.raw...)
		es[i] = e
	}
	if err := g.write(buf); err != nil {
		return 0, err
	}
	s.scratch = buf[:0]
	if cap(buf) > 8<<20 {
		s.scratch = nil
	}
	s.last, s.maxLate = last, maxLate
	for i, e := range es {
		seq := s.entries.push(e)
		s.stats.Emitted++
		s.stats.Hook[hookNone]++
		s.stats.Bytes += int64(e.size)
		if ds[i].late > 0 {
			heap.Push(&s.late, ripening{e.at.ms, seq})
			s.entries.at(seq).at = position{}
			s.stats.Late++
		} else {
			s.order.push(seq)
		}
		g.lastSeq = seq
		s.tell(seq, s.entries.at(seq))
	}
	if s.truth != nil {
		if err := s.truth.Flush(); err != nil {
			return 0, fmt.Errorf("write truth file: %w", err)
		}
	}
	s.trim()
	return first, nil
}

func after(last position, ms int64) position {
	if ms > last.ms {
		return position{ms, 1}
	}
	return position{last.ms, last.n + 1}
}

// ripen persists the late events that are due.
func (s *store) ripen(now time.Time) {
	if s.shut {
		return
	}
	for len(s.late) > 0 && s.late[0].due <= now.UnixMilli() {
		r := heap.Pop(&s.late).(ripening)
		e := s.entries.at(r.seq)
		if e == nil {
			continue
		}
		at := after(s.last, now.UnixMilli())
		if s.dir != "" {
			g, err := s.room()
			if err == nil {
				err = g.write(appendHeader(nil, kindPersisted, false, r.seq, e.pub, at, e.uuid, 0, 0, 0))
			}
			if err != nil { // try again next time
				heap.Push(&s.late, r)
				return
			}
		}
		s.last, e.at = at, at
		s.maxLate = max(s.maxLate, at.ms-e.pub)
		s.order.push(r.seq)
		s.tell(r.seq, e)
	}
}

// settle is ripen for readers; it tells when the next late event is due.
func (s *store) settle(now time.Time) (next time.Time, any bool) {
	s.mu.RLock()
	due := len(s.late) > 0 && s.late[0].due <= now.UnixMilli()
	if len(s.late) > 0 {
		next, any = time.UnixMilli(s.late[0].due), true
	}
	s.mu.RUnlock()
	if due {
		s.mu.Lock()
		s.ripen(now)
		next, any = time.Time{}, false
		if len(s.late) > 0 {
			next, any = time.UnixMilli(s.late[0].due), true
		}
		s.mu.Unlock()
	}
	return next, any
}

// hooked notes what became of events on their way through the hooks.
func (s *store) hooked(seqs []uint64, st hookState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return
	}
	var buf []byte
	for _, q := range seqs {
		e := s.entries.at(q)
		if e == nil {
			continue
		}
		if e.hook == hookAcked || e.hook == st { // one hook's success stands
			continue
		}
		s.stats.Hook[e.hook]--
		e.hook = st
		s.stats.Hook[st]++
		if st != hookQueued {
			buf = binary.LittleEndian.AppendUint64(buf, q)
			s.tell(q, e)
		}
	}
	if s.truth != nil {
		_ = s.truth.Flush() // the next append reports it
	}
	if s.dir == "" || len(buf) == 0 {
		return
	}
	if g, err := s.room(); err == nil {
		b := appendHeader(nil, kindHook, false, uint64(st), 0, position{}, [16]byte{}, 0, 0, len(buf))
		_ = g.write(append(b, buf...)) // truth about hooks is lost with the disk, nothing else
	}
}

func (s *store) trim() {
	if s.entries.len() <= s.max {
		return
	}
	first := s.entries.next - uint64(s.max)
	s.stats.Forgotten += int64(first - s.entries.first)
	s.entries.forget(first)
	for s.order.len() > 0 && *s.order.at(s.order.first) < first {
		s.order.forget(s.order.first + 1)
	}
	for len(s.segs) > 1 && s.segs[0].lastSeq < first {
		s.segs[0].drop()
		s.segs = s.segs[1:]
	}
}

// from returns the number, in persistence order, of the first event after p.
func (s *store) from(p position) uint64 {
	lo, hi := s.order.first, s.order.next
	for lo < hi {
		m := lo + (hi-lo)/2
		e := s.entries.at(*s.order.at(m))
		if e == nil || !p.less(e.at) {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

func (s *store) seg(off int64) *segment {
	i, ok := slices.BinarySearchFunc(s.segs, off, func(g *segment, off int64) int { return cmp.Compare(g.start, off) })
	if !ok {
		i--
	}
	if i < 0 {
		return nil
	}
	return s.segs[i]
}

// raws returns the bytes of events; the caller holds the read lock, the bytes are good for ever. Neighbours are read at once.
func (s *store) raws(seqs []uint64) ([][]byte, error) {
	if s.shut {
		return nil, errShut
	}
	out := make([][]byte, 0, len(seqs))
	for i := 0; i < len(seqs); {
		e := s.entries.at(seqs[i])
		if e == nil {
			out = append(out, nil)
			i++
			continue
		}
		g := s.seg(e.off)
		if g.file == nil {
			o := e.off - g.start
			out = append(out, g.buf[o:o+int64(e.size):o+int64(e.size)])
			i++
			continue
		}
		end, j := e.off+int64(e.size), i+1
		for ; j < len(seqs); j++ {
			n := s.entries.at(seqs[j])
			if n == nil || n.off < end || n.off > end+8<<10 || n.off >= g.start+g.size {
				break
			}
			end = n.off + int64(n.size)
		}
		buf := make([]byte, end-e.off)
		if _, err := g.file.ReadAt(buf, e.off-g.start); err != nil {
			return nil, fmt.Errorf("read event log: %w", err)
		}
		for ; i < j; i++ {
			n := s.entries.at(seqs[i])
			out = append(out, buf[n.off-e.off:][:n.size:n.size])
		}
	}
	return out, nil
}

// room returns the segment to write to.
func (s *store) room() (*segment, error) {
	limit := int64(memorySegment)
	if s.dir != "" {
		limit = fileSegment
	}
	if n := len(s.segs); n > 0 && s.segs[n-1].size < limit {
		return s.segs[n-1], nil
	}
	g := &segment{}
	if n := len(s.segs); n > 0 {
		g.start = s.segs[n-1].start + s.segs[n-1].size
		g.lastSeq = s.segs[n-1].lastSeq
	}
	if s.dir != "" {
		f, err := os.OpenFile(filepath.Join(s.dir, fmt.Sprintf("log-%020d", g.start)), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("extend event log: %w", err)
		}
		g.file = f
	}
	s.segs = append(s.segs, g)
	return g, nil
}

func (g *segment) write(b []byte) error {
	if g.file == nil {
		g.buf = append(g.buf, b...)
		g.size += int64(len(b))
		return nil
	}
	if _, err := g.file.WriteAt(b, g.size); err != nil {
		return errors.Join(fmt.Errorf("write event log: %w", err), g.file.Truncate(g.size))
	}
	g.size += int64(len(b))
	return nil
}

func (g *segment) drop() {
	if g.file != nil {
		name := g.file.Name()
		_ = g.file.Close() // forgotten anyway
		_ = os.Remove(name)
	}
	g.buf = nil
}

func appendHeader(b []byte, kind byte, odd bool, seq uint64, pub int64, at position, uuid [16]byte, typ, tale, raw int) []byte {
	b = binary.LittleEndian.AppendUint32(b, recordMagic)
	flag := byte(0)
	if odd {
		flag = 1
	}
	b = append(b, kind, flag)
	b = binary.LittleEndian.AppendUint16(b, uint16(typ))
	b = binary.LittleEndian.AppendUint32(b, uint32(tale))
	b = binary.LittleEndian.AppendUint64(b, uint64(raw))
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(pub))
	b = binary.LittleEndian.AppendUint64(b, uint64(at.ms))
	b = binary.LittleEndian.AppendUint64(b, uint64(at.n))
	return append(b, uuid[:]...)
}

// load reads the directory again: only the headers and the names, so a big log opens fast. A record cut by a kill is cut off.
func (s *store) load() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open lock of data directory: %w", err)
	}
	s.lock = f
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("lock data directory %s: another simulated org runs on it: stop it or choose another directory: %w", s.dir, err)
	}
	names, err := filepath.Glob(filepath.Join(s.dir, "log-*"))
	if err != nil {
		return fmt.Errorf("list event log: %w", err)
	}
	slices.Sort(names)
	pending := map[uint64]int64{}
	for _, name := range names {
		start, err := strconv.ParseInt(strings.TrimPrefix(filepath.Base(name), "log-"), 10, 64)
		if err != nil {
			return fmt.Errorf("read event log: %s is no segment of it: move it away", name)
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("read event log: %w", err)
		}
		g := &segment{start: start, file: f}
		s.segs = append(s.segs, g)
		if err := s.loadSegment(g, pending); err != nil {
			return err
		}
	}
	s.stats.Emitted, s.stats.Forgotten = int64(s.entries.next-1), int64(s.entries.first-1)
	for seq, due := range pending {
		heap.Push(&s.late, ripening{due, seq})
	}
	s.trim()
	return nil
}

func (s *store) loadSegment(g *segment, pending map[uint64]int64) error {
	fi, err := g.file.Stat()
	if err != nil {
		return fmt.Errorf("read event log: %w", err)
	}
	var h [recordHeader + 512]byte
	for {
		n, err := g.file.ReadAt(h[:], g.size)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read event log: %w", err)
		}
		le := binary.LittleEndian
		if n < recordHeader || le.Uint32(h[0:]) != recordMagic {
			break
		}
		kind, odd, typ, tale := h[4], h[5] == 1, int(le.Uint16(h[6:])), int(le.Uint32(h[8:]))
		raw, seq := int64(le.Uint64(h[12:])), le.Uint64(h[20:])
		e := entry{pub: int64(le.Uint64(h[28:])), at: position{int64(le.Uint64(h[36:])), uint32(le.Uint64(h[44:]))}, odd: odd}
		copy(e.uuid[:], h[52:68])
		size := recordHeader + int64(typ) + int64(tale) + raw
		if g.size+size > fi.Size() || recordHeader+typ+tale > n {
			break
		}
		switch kind {
		case kindEvent, kindLate:
			if s.entries.len() == 0 {
				s.entries.base, s.entries.first, s.entries.next = seq, seq, seq
			}
			if seq != s.entries.next {
				return fmt.Errorf("read event log: %s: event %d where %d should be: remove the directory to begin anew", g.file.Name(), seq, s.entries.next)
			}
			e.typ = s.types.of(string(h[recordHeader : recordHeader+typ]))
			e.scenario = s.tales.of(string(h[recordHeader+typ : recordHeader+typ+tale]))
			e.off, e.size = g.start+g.size+recordHeader+int64(typ)+int64(tale), uint32(raw)
			g.lastSeq = seq
			s.stats.Emitted++
			s.stats.Bytes += raw
			s.stats.Hook[hookNone]++
			if kind == kindLate {
				pending[seq] = e.at.ms
				e.at = position{}
				s.stats.Late++
				s.entries.push(e)
				break
			}
			s.entries.push(e)
			s.order.push(seq)
			s.last, s.maxLate, s.ahead = e.at, max(s.maxLate, e.at.ms-e.pub), max(s.ahead, e.pub-e.at.ms)
		case kindPersisted:
			delete(pending, seq)
			s.last = e.at
			if x := s.entries.at(seq); x != nil {
				x.at = e.at
				s.maxLate = max(s.maxLate, e.at.ms-x.pub)
				s.order.push(seq)
			}
		case kindHook:
			b := make([]byte, raw)
			if _, err := g.file.ReadAt(b, g.size+recordHeader); err != nil {
				return fmt.Errorf("read event log: %w", err)
			}
			for ; len(b) >= 8; b = b[8:] {
				if x := s.entries.at(le.Uint64(b)); x != nil {
					s.stats.Hook[x.hook]--
					x.hook = hookState(seq)
					s.stats.Hook[x.hook]++
				}
			}
		}
		g.size += size
	}
	if g.size < fi.Size() {
		if err := g.file.Truncate(g.size); err != nil {
			return fmt.Errorf("cut torn record of event log: %w", err)
		}
	}
	return nil
}

// uuidOf is the uuid as the event's bytes have it.
func (s *store) uuidOf(seq uint64, e *entry) string {
	if !e.odd {
		return formatUUID(e.uuid)
	}
	b, err := s.raws([]uint64{seq})
	if err != nil || len(b) == 0 {
		return ""
	}
	return peekString(b[0], "uuid")
}

func formatUUID(u [16]byte) string {
	var b [36]byte
	hex.Encode(b[0:8], u[0:4])
	hex.Encode(b[9:13], u[4:6])
	hex.Encode(b[14:18], u[6:8])
	hex.Encode(b[19:23], u[8:10])
	hex.Encode(b[24:36], u[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

func parseUUID(s string) (u [16]byte, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' || strings.ToLower(s) != s {
		return u, false
	}
	_, err := hex.Decode(u[:], []byte(s[0:8]+s[9:13]+s[14:18]+s[19:23]+s[24:36]))
	return u, err == nil
}
