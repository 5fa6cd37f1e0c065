package normalize

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/systemlog"
)

var testKey = []byte("a key for tests only, 32 bytes..")

// offline is a service that has no bus: enough for a task's own judgement.
func offline(t testing.TB, cfg Config) *Service {
	t.Helper()
	cfg.Masking.Key = testKey
	s, err := New(cfg, Deps{Bus: new(bus.Bus)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var testTime = time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)

// copyOf makes an event's copy as systemlog and derive leave it.
func copyOf(uuid string, published time.Time, partial bool) *record.SystemLog {
	ev := &record.SystemLog{
		UUID: uuid, Published: &published, EventType: "user.session.start", DisplayMessage: "User login to Okta",
		Actor: &record.Actor{ID: "00u1"}, SecurityContext: &record.SecurityContext{},
		Target: []record.Target{{ID: "1", Type: "User"}, {ID: "2", Type: "AppInstance"}},
	}
	ev.Derived = record.Derived{Org: "00o1", Lane: "live", Copy: 1, Partial: partial}
	if !partial {
		asn := int64(64500)
		ev.SecurityContext.ASNumber = &asn
		ev.Device = &record.Device{ID: "guo1"}
		ev.Target = []record.Target{{ID: "2", Type: "AppInstance"}, {ID: "1", Type: "User"}}
	} else {
		ev.InsertionTimestamp = "2026-01-05T10:00:01Z"
	}
	return ev
}

func TestCopies(t *testing.T) {
	type step struct {
		partial bool
		after   time.Duration // since the first
		want    result
	}
	const p, c = true, false
	for name, steps := range map[string][]step{
		"complete alone":                    {{c, 0, wroteFirst}, {c, time.Hour, dropDuplicate}},
		"hook, poller":                      {{p, 0, wroteFirst}, {c, time.Minute, wroteSecond}, {c, time.Hour, dropDuplicate}, {p, time.Hour, dropPartial}},
		"poller, hook":                      {{c, 0, wroteFirst}, {p, time.Minute, dropPartial}, {c, time.Hour, dropDuplicate}},
		"hook twice":                        {{p, 0, wroteFirst}, {p, time.Second, dropDuplicate}, {c, time.Minute, wroteSecond}},
		"known for three days":              {{c, 0, wroteFirst}, {c, 72 * time.Hour, dropDuplicate}, {c, 72*time.Hour + time.Second, wroteFirst}},
		"partial known for fourteen":        {{p, 0, wroteFirst}, {c, 14 * 24 * time.Hour, wroteSecond}},
		"partial forgotten after fourteen":  {{p, 0, wroteFirst}, {c, 14*24*time.Hour + time.Second, wroteFirst}},
		"an older timestamp is no surprise": {{c, 0, wroteFirst}, {c, -time.Hour, dropDuplicate}},
	} {
		t.Run(name, func(t *testing.T) {
			task := newTask(offline(t, Config{}), nil, 0)
			for i, st := range steps {
				ev := copyOf("u", testTime, st.partial)
				what, keep := task.judge(ev, uint32(testTime.Add(st.after).Unix()))
				if what != st.want {
					t.Fatalf("step %d: %s, want %s", i, what, st.want)
				}
				if keep != nil {
					keep()
				}
				if wantCopy := map[result]int32{wroteSecond: 2}[what]; what == wroteSecond && (ev.Derived.Copy != wantCopy || ev.Derived.Differs) {
					t.Errorf("step %d: copy %d, differs %v", i, ev.Derived.Copy, ev.Derived.Differs)
				}
			}
		})
	}
}

func TestDiffers(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(partial, complete *record.SystemLog)
		want   bool
	}{
		"nothing":                      {func(_, _ *record.SystemLog) {}, false},
		"another display message":      {func(_, c *record.SystemLog) { c.DisplayMessage = "x" }, true},
		"another target":               {func(_, c *record.SystemLog) { c.Target[0].ID = "3" }, true},
		"a section the hook left open": {func(_, c *record.SystemLog) { c.SecurityContext.ISP = "x"; c.Device.Name = "y" }, false},
		"a section the poller lacks":   {func(_, c *record.SystemLog) { c.Actor = nil }, true},
		"one key of debugData": {func(p, c *record.SystemLog) {
			p.DebugContext = &record.DebugContext{DebugData: map[string]string{"a": "1", "b": "2"}}
			c.DebugContext = &record.DebugContext{DebugData: map[string]string{"b": "2", "a": "2"}}
		}, true},
		"the same debugData": {func(p, c *record.SystemLog) {
			p.DebugContext = &record.DebugContext{DebugData: map[string]string{"a": "1", "b": "2"}}
			c.DebugContext = &record.DebugContext{DebugData: map[string]string{"b": "2", "a": "1"}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			task := newTask(offline(t, Config{}), nil, 0)
			p, c := copyOf("u", testTime, true), copyOf("u", testTime, false)
			tc.change(p, c)
			_, keep := task.judge(p, 1000)
			keep()
			what, _ := task.judge(c, 1001)
			if what != wroteSecond || c.Derived.Differs != tc.want {
				t.Errorf("%s, differs %v, want %v", what, c.Derived.Differs, tc.want)
			}
		})
	}
}

func TestReusedUUID(t *testing.T) {
	task := newTask(offline(t, Config{}), nil, 0)
	first, second := copyOf("123", testTime, false), copyOf("123", testTime.Add(time.Hour), false)
	for i, ev := range []*record.SystemLog{first, second} {
		what, keep := task.judge(ev, 1000)
		if what != wroteFirst {
			t.Fatalf("event %d: %s", i, what)
		}
		keep()
	}
	if first.Derived.UUIDReused || first.Derived.ContentHash != "" {
		t.Errorf("the first event is flagged: %+v", first.Derived)
	}
	if !second.Derived.UUIDReused || len(second.Derived.ContentHash) != 16 {
		t.Errorf("the second event is not flagged: %+v", second.Derived)
	}
	for i, ev := range []*record.SystemLog{copyOf("123", testTime, false), copyOf("123", testTime.Add(time.Hour), false)} {
		if what, _ := task.judge(ev, 1001); what != dropDuplicate {
			t.Errorf("event %d again: %s", i, what)
		}
	}
	other := copyOf("123", testTime, false)
	other.Derived.Lane = "run1"
	if what, _ := task.judge(other, 1001); what != wroteFirst || other.Derived.UUIDReused {
		t.Errorf("another lane has a memory of its own: %s", what)
	}
}

// Whatever order copies come in, however often, whatever is aborted and restarted in between: each event has one or two
// records, the last is complete if a complete copy came, and nothing is written that was written before.
func TestCopiesInAnyOrder(t *testing.T) {
	s := offline(t, Config{})
	rapid.Check(t, func(t *rapid.T) {
		task := newTask(s, nil, 0)
		var changelog [][]byte
		type written struct{ copies []bool }
		all := map[string]*written{}
		complete := map[string]bool{}
		for range rapid.IntRange(1, 20).Draw(t, "batches") {
			type one struct {
				id  string
				rec *record.SystemLog
			}
			var wrote []one
			batch := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *record.SystemLog {
				id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "uuid")
				return copyOf(id, testTime.Add(time.Duration(rapid.IntRange(0, 1).Draw(t, "published"))*time.Hour), rapid.Bool().Draw(t, "partial"))
			}), 1, 6).Draw(t, "batch")
			for _, ev := range batch {
				what, keep := task.judge(ev, 1000)
				if keep != nil {
					keep()
				}
				if what == wroteFirst || what == wroteSecond {
					wrote = append(wrote, one{ev.UUID + ev.Published.String(), ev})
				}
			}
			b := slices.Clone(task.memory.flush())
			if rapid.IntRange(0, 3).Draw(t, "abort") == 0 {
				task.Abort()
				continue
			}
			task.Commit()
			if b != nil {
				changelog = append(changelog, b)
			}
			for _, ev := range batch {
				if !ev.Derived.Partial {
					complete[ev.UUID+ev.Published.String()] = true
				}
			}
			for _, w := range wrote {
				a := all[w.id]
				if a == nil {
					a = &written{}
					all[w.id] = a
				}
				a.copies = append(a.copies, w.rec.Derived.Partial)
				if int(w.rec.Derived.Copy) != len(a.copies) {
					t.Fatalf("%s: record %d says it is copy %d", w.id, len(a.copies), w.rec.Derived.Copy)
				}
			}
			if rapid.IntRange(0, 3).Draw(t, "restart") == 0 {
				task = newTask(s, nil, 0)
				for _, b := range changelog {
					if err := task.Restore(nil, b); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for id, a := range all {
			switch {
			case len(a.copies) > 2:
				t.Fatalf("%s: %d records", id, len(a.copies))
			case len(a.copies) == 2 && (!a.copies[0] || a.copies[1]):
				t.Fatalf("%s: the second record is not the complete one: %v", id, a.copies)
			case complete[id] == a.copies[len(a.copies)-1]:
				t.Fatalf("%s: complete copy came: %v, last record partial: %v", id, complete[id], a.copies)
			}
		}
	})
}

func TestMemorySize(t *testing.T) {
	const n = 300_000
	m := memory{cfg: Dedup{Memory: defaultMemory, PartialMemory: defaultPartialMemory, MaxBytes: 1 << 40}}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		m.put(keyOf("live", "00o1", fmt.Sprint(i)), seen{identity: 1, at: 1000})
		if i%1000 == 999 {
			m.flush()
			m.events.Commit()
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := float64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%.0f bytes an event", per)
	if per > entryBytes*1.25 {
		t.Errorf("an event takes %.0f bytes, entryBytes says %d", per, entryBytes)
	}
	if m.events.Len() != n {
		t.Error(m.events.Len())
	}
}

func TestMemoryForgets(t *testing.T) {
	m := memory{cfg: Dedup{Memory: defaultMemory, PartialMemory: defaultPartialMemory, MaxBytes: minMaxBytes}}
	limit := m.limit()
	for i := range limit + 100 {
		m.put(keyOf("live", "00o1", fmt.Sprint(i)), seen{at: uint32(1000 + i)})
	}
	m.events.Commit()
	dropped := m.evict()
	if m.events.Len() > limit || dropped < 100 || dropped > limit/2 {
		t.Errorf("%d dropped, %d kept of %d allowed", dropped, m.events.Len(), limit)
	}
	if _, ok := m.get(keyOf("live", "00o1", "0"), 2000); ok {
		t.Error("the oldest is still known")
	}
	if _, ok := m.get(keyOf("live", "00o1", fmt.Sprint(limit+99)), 2000); !ok {
		t.Error("the newest is not known")
	}
	m.put(keyOf("live", "00o1", "later"), seen{at: 1000 + uint32((15 * 24 * time.Hour).Seconds())})
	m.events.Commit()
	m.sweep()
	if n := m.events.Len(); n != 1 {
		t.Errorf("%d are known fifteen days later, want 1", n)
	}
}

func TestForeignChangelog(t *testing.T) {
	for _, b := range [][]byte{{}, {2, 0}, {1, 0, 0}} {
		if err := newTask(offline(t, Config{}), nil, 0).Restore(nil, b); err == nil {
			t.Errorf("%v was taken", b)
		}
	}
}

func TestKeyFor(t *testing.T) {
	for name, tc := range map[string]struct {
		ev   record.SystemLog
		want string
	}{
		"user":                        {record.SystemLog{Actor: &record.Actor{ID: "00u1", Type: "User"}}, "00o1/00u1"},
		"unknown actor, a login":      {record.SystemLog{Actor: &record.Actor{ID: "Unknown", AlternateID: "a@b.example"}}, "00o1/a@b.example"},
		"system, an address":          {record.SystemLog{UUID: "u", Actor: &record.Actor{ID: "okta", Type: "SystemPrincipal", AlternateID: "system@okta.com"}, Client: &record.Client{IPAddress: "192.0.2.1"}}, "00o1/192.0.2.1"},
		"system, a login of its own":  {record.SystemLog{UUID: "u", Actor: &record.Actor{ID: "x", Type: "SystemPrincipal", AlternateID: "agent@b.example"}}, "00o1/agent@b.example"},
		"system, nothing":             {record.SystemLog{UUID: "u", Actor: &record.Actor{ID: "okta", Type: "SystemPrincipal", AlternateID: "system@okta.com"}}, "00o1/u"},
		"nobody":                      {record.SystemLog{UUID: "u"}, "00o1/u"},
		"nobody, an address of blank": {record.SystemLog{UUID: "u", Client: &record.Client{IPAddress: " "}}, "00o1/u"},
	} {
		tc.ev.Derived.Org = "00o1"
		if got := keyFor(&tc.ev); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

func TestConfig(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"zero":               {Config{}, ""},
		"memory too long":    {Config{Dedup: Dedup{Memory: 400 * time.Hour}}, "normalize.dedup.memory"},
		"partial too long":   {Config{Dedup: Dedup{PartialMemory: 337 * time.Hour}}, "normalize.dedup.partial_memory"},
		"partial too short":  {Config{Dedup: Dedup{PartialMemory: time.Hour}}, "normalize.dedup.partial_memory"},
		"bytes too few":      {Config{Dedup: Dedup{MaxBytes: 1}}, "normalize.dedup.max_bytes"},
		"key too short":      {Config{Masking: Masking{Key: []byte("short")}}, "normalize.masking"},
		"memory of one hour": {Config{Dedup: Dedup{Memory: time.Hour}}, ""},
	} {
		_, err := New(tc.cfg, Deps{Bus: new(bus.Bus)})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestMaskFromFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/key", []byte("a key of more than sixteen\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := maskFromFile(dir + "/key")
	if err != nil {
		t.Fatal(err)
	}
	want, err := systemlog.NewMask([]byte("a key of more than sixteen"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Value("x") != want.Value("x") {
		t.Error("a line end at the end of the file is part of the key")
	}
	if _, err := maskFromFile(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := maskFromFile(""); err == nil || !strings.Contains(err.Error(), "key_file") {
		t.Error(err)
	}
}
