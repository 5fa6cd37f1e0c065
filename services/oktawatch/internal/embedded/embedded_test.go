package embedded

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/registry"
	"github.com/oktawatch/oktawatch/pkg/tail"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// TestMain makes the test binary a second process that holds a directory, for the tests that kill one.
func TestMain(m *testing.M) {
	if dir := os.Getenv("EMBEDDED_HOLD"); dir != "" {
		holdAndWrite(dir)
	}
	goleak.VerifyTestMain(closer{m})
}

type closer struct{ m *testing.M }

func (c closer) Run() int {
	defer http.DefaultClient.CloseIdleConnections()
	return c.m.Run()
}

// lines is a log that tests look into.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func config(dir string) Config {
	return Config{DataDir: dir, KafkaListen: "127.0.0.1:0", RegistryListen: "127.0.0.1:0", Maintenance: time.Hour}
}

func start(t *testing.T, cfg Config) *Embedded {
	t.Helper()
	e, err := Start(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func stop(t *testing.T, e *Embedded) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// client is a bus on the embedded broker, with topics and schemas in place.
func client(ctx context.Context, e *Embedded) (*bus.Bus, error) {
	b, err := bus.New(bus.Config{Brokers: []string{e.Kafka()}}, bus.Deps{Serde: record.NewSerde(e.Registry(), e.cfg.Prefix), InstanceID: "test", Prefix: e.cfg.Prefix})
	if err != nil {
		return nil, err
	}
	if _, err := topics.Apply(ctx, b.Admin(), topics.Plan{Prefix: e.cfg.Prefix, Partitions: topics.EmbeddedPartitions}); err != nil {
		return nil, err
	}
	if _, err := registry.Apply(ctx, e.Registry(), e.cfg.Prefix); err != nil {
		return nil, err
	}
	return b, nil
}

func connect(t *testing.T, e *Embedded) *bus.Bus {
	t.Helper()
	b, err := client(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func count(t *testing.T, e *Embedded, topic topics.Topic) int64 {
	t.Helper()
	r, err := tail.Open(tail.Config{Brokers: []string{e.Kafka()}, Prefix: e.cfg.Prefix}, tail.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.Count(t.Context(), topic.Name, tail.Options{Exit: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Records
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestRestart: records, group offsets and schema ids are there after every kind of restart.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	for name, sync := range map[string]bool{"page cache": false, "sync writes": true} {
		t.Run(name, func(t *testing.T) {
			cfg := config(filepath.Join(dir, strconv.FormatBool(sync)))
			cfg.SyncWrites = sync
			var schemas string
			for round := range 3 {
				e := start(t, cfg)
				if e.Unclean() {
					t.Fatalf("round %d: unclean", round)
				}
				if round == 1 { // from now on the same port
					cfg.KafkaListen = e.Kafka()
				}
				b := connect(t, e)
				got := get(t, e.Registry()+"/schemas")
				if round > 0 && got != schemas {
					t.Errorf("round %d: other schemas than before", round)
				}
				schemas = got
				if n := count(t, e, topics.SystemLog); n != int64(round*100) {
					t.Errorf("round %d: %d records, want %d", round, n, round*100)
				}
				for i := range 100 {
					uuid := fmt.Sprintf("%d-%d", round, i)
					if err := b.Sender().Send(t.Context(), topics.SystemLog, "org/"+uuid, &record.SystemLog{UUID: uuid}); err != nil {
						t.Fatal(err)
					}
				}
				// The group reads on where it was.
				ctx, cancel := context.WithCancel(t.Context())
				var seen []string
				err := b.RunHandler(ctx, topics.DetectMatch, func(ctx context.Context, m bus.Message, _ *bus.Emit) error {
					ev, err := bus.Decode[record.SystemLog](ctx, b, m)
					if err != nil {
						return err
					}
					seen = append(seen, ev.UUID)
					if len(seen) == 100 {
						time.AfterFunc(200*time.Millisecond, cancel)
					}
					return nil
				})
				cancel()
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
				if len(seen) != 100 || !strings.HasPrefix(slices.Min(seen), strconv.Itoa(round)+"-") {
					t.Errorf("round %d: the group read %d records from %s on", round, len(seen), slices.Min(seen))
				}
				b.Close()
				stop(t, e)
			}
		})
	}
}

func TestOneProcessADirectory(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadRun(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing runs: %v", err)
	}
	e := start(t, config(dir))
	if err := e.Announce("console", "http://127.0.0.1:8080"); err != nil {
		t.Error(err)
	}
	run, err := ReadRun(dir)
	if err != nil || run.PID != os.Getpid() || run.Kafka != e.Kafka() || run.Registry != e.Registry() || run.Addresses["console"] == "" {
		t.Errorf("run.json says %+v, %v", run, err)
	}
	if st, err := os.Stat(RunPath(dir)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("run.json has mode %v, %v", st.Mode(), err)
	}
	_, err = Start(t.Context(), config(dir), nil)
	if err == nil || !strings.Contains(err.Error(), "in use by process "+strconv.Itoa(os.Getpid())) || strings.Contains(err.Error(), "\n") {
		t.Errorf("a second start: %v", err)
	}
	stop(t, e)
	if _, err := ReadRun(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the stop: %v", err)
	}
	stop(t, e) // a second time does nothing
	stop(t, start(t, config(dir)))
}

func TestRefusals(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no directory":      {func(c *Config) { c.DataDir = "" }, "no data directory"},
		"a file":            {func(c *Config) { c.DataDir = file }, "make the data directory"},
		"all addresses":     {func(c *Config) { c.KafkaListen = "0.0.0.0:0" }, "not a loopback address"},
		"a public address":  {func(c *Config) { c.RegistryListen = "192.0.2.1:0" }, "not a loopback address"},
		"no port":           {func(c *Config) { c.KafkaListen = "127.0.0.1" }, "is not host:port"},
		"the port is taken": {func(c *Config) { c.RegistryListen = taken.Addr().String() }, "end what has the port"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t.TempDir())
			tc.change(&cfg)
			e, err := Start(t.Context(), cfg, nil)
			if err == nil {
				stop(t, e)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want …%s…", err, tc.want)
			}
			if cfg.DataDir != "" && cfg.DataDir != file {
				if e := start(t, config(cfg.DataDir)); e.Unclean() {
					t.Error("a start that failed counts as an unclean stop")
				}
			}
		})
	}
}

func TestDefaultPortIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var log lines
	ln, err := listen(t.Context(), "Kafka", "", taken.Addr().String(), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if ln.Addr().String() == taken.Addr().String() || !strings.Contains(log.String(), "port is taken") {
		t.Errorf("listens on %s and says %s", ln.Addr(), log.String())
	}
}

// holdAndWrite is the process that gets killed: it writes as fast as it can and tells how far it is.
func holdAndWrite(dir string) {
	ctx := context.Background()
	e, err := Start(ctx, config(dir), nil)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	b, err := client(ctx, e)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for i := range 1_000_000 {
		if err := b.Sender().Send(ctx, topics.Audit, strconv.Itoa(i), &record.Audit{Actor: strconv.Itoa(i)}); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(i)
	}
}

// killed runs holdAndWrite until n records are acknowledged, kills it, and returns how many were.
func killed(t *testing.T, dir string, n int) int {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "EMBEDDED_HOLD="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := -1
	for in := bufio.NewScanner(out); in.Scan(); {
		i, err := strconv.Atoi(in.Text())
		if err != nil {
			t.Fatal(in.Text())
		}
		if last = i; last == n {
			if _, err := Start(t.Context(), config(dir), nil); err == nil || !strings.Contains(err.Error(), "process "+strconv.Itoa(cmd.Process.Pid)) {
				t.Errorf("a start beside it: %v", err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	return last + 1
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	acked := killed(t, dir, 200)
	if _, err := ReadRun(dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("run.json of the killed process: %v", err)
	}
	e := start(t, config(dir))
	if !e.Unclean() {
		t.Error("a kill counts as a clean stop")
	}
	if n := count(t, e, topics.Audit); n < int64(acked) {
		t.Errorf("%d records after the kill, %d were acknowledged", n, acked)
	}
	stop(t, e)
	e = start(t, config(dir))
	if !e.Unclean() {
		t.Error("unclean is forgotten though nobody recovered")
	}
	e.Recovered()
	stop(t, e)
	if e = start(t, config(dir)); e.Unclean() {
		t.Error("still unclean though all is recovered")
	}
}

func send(t *testing.T, b *bus.Bus, topic topics.Topic, n int, key func(i int) string) {
	t.Helper()
	var wg sync.WaitGroup
	noise := make([]byte, 1<<20) // values that no compression makes small
	_, _ = rand.Read(noise)
	for w := range 20 { // one writer a key, so that the last one is known
		wg.Go(func() {
			for i := w; i < n; i += 20 {
				if err := b.Sender().SendRaw(t.Context(), topic, key(i), fmt.Appendf(nil, "%07d%s", i, noise[i*100:i*100+500])); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// values reads a topic's newest value of each key.
func values(t *testing.T, e *Embedded, topic topics.Topic) map[string]string {
	t.Helper()
	r, err := tail.Open(tail.Config{Brokers: []string{e.Kafka()}}, tail.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	err = r.Read(t.Context(), topic.Name, tail.Options{Exit: true}, func(rec tail.Record) error {
		got[string(rec.Key)] = string(rec.Value)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for begun := time.Now(); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("waited 20s for %s", what)
		}
	}
}

func TestCompaction(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.Maintenance, cfg.CompactAfter = 50*time.Millisecond, 1<<20
	e := start(t, cfg)
	b := connect(t, e)
	size := func() (n int64) {
		for _, p := range e.cluster.PartitionInfos(topics.Cursors.Name) {
			n += p.NumBytes
		}
		return n
	}

	// A transaction whose end the broker is made to wait with: while it is open nothing may be compacted.
	release := make(chan struct{})
	asleep := make(chan struct{})
	e.cluster.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		e.cluster.DropControl()
		close(asleep)
		e.cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	txn, err := b.OpenTransactional(t.Context(), "oktawatch.ingest.poll.x")
	if err != nil {
		t.Fatal(err)
	}
	defer txn.Close()
	ended := make(chan error, 1)
	go func() {
		ended <- txn.Do(t.Context(), func(out *bus.Emit) error { return out.PutRaw(topics.Cursors, "k1", []byte("open")) })
	}()
	<-asleep
	send(t, b, topics.Cursors, 8000, func(i int) string { return "k" + strconv.Itoa(i%20) })
	full := size()
	time.Sleep(10 * cfg.Maintenance) // real time: the broker's own loop is watched, not ours
	if now := size(); now < full {
		t.Errorf("compacted from %d to %d bytes under an open transaction", full, now)
	}
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	until(t, "compaction", func() bool {
		_ = b.Ping(t.Context()) // it happens before a request
		return size() < full/4
	})
	check := func(e *Embedded) {
		t.Helper()
		got := values(t, e, topics.Cursors)
		if len(got) != 20 {
			t.Errorf("%d keys are left, want 20", len(got))
		}
		for i := 7980; i < 8000; i++ {
			if v := got["k"+strconv.Itoa(i%20)]; !strings.HasPrefix(v, fmt.Sprintf("%07d", i)) {
				t.Errorf("key %d has %.7s, want %07d", i%20, v, i)
			}
		}
	}
	check(e)
	until(t, "the copy to go", func() bool {
		_, err := os.Stat(asideDir(cfg.DataDir))
		return errors.Is(err, os.ErrNotExist)
	})
	b.Close()
	stop(t, e)
	check(start(t, config(cfg.DataDir)))
}

// TestCompactionCutShort: a process killed while kfake rewrites a partition loses nothing.
func TestCompactionCutShort(t *testing.T) {
	dir := t.TempDir()
	e := start(t, config(dir))
	b := connect(t, e)
	send(t, b, topics.Cursors, 200, func(i int) string { return "k" + strconv.Itoa(i) })
	want := values(t, e, topics.Cursors)
	b.Close()
	stop(t, e)

	files := func() []string {
		var all []string
		_ = filepath.WalkDir(brokerDir(dir), func(path string, d os.DirEntry, _ error) error {
			if !d.IsDir() && strings.HasSuffix(path, ".dat") && strings.Contains(path, topics.Cursors.Name) {
				all = append(all, path)
			}
			return nil
		})
		return all
	}
	for name, harm := range map[string]func(t *testing.T, path string){
		"files are gone": func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Remove(strings.TrimSuffix(path, ".dat")+".idx")); err != nil {
				t.Fatal(err)
			}
		},
		"files are half": func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("half"), 0o600)); err != nil {
				t.Fatal(err)
			}
		},
		"another segment": func(t *testing.T, path string) {
			if err := os.Rename(path, filepath.Join(filepath.Dir(path), "00000000000000000007.dat")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := copyAside(dir); err != nil {
				t.Fatal(err)
			}
			if len(files()) == 0 {
				t.Fatal("no log files found")
			}
			for _, f := range files() {
				harm(t, f)
			}
			e := start(t, config(dir))
			if got := values(t, e, topics.Cursors); len(got) != len(want) {
				t.Errorf("%d keys are left of %d", len(got), len(want))
			}
			stop(t, e)
			if _, err := os.Stat(asideDir(dir)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the copy is still there: %v", err)
			}
		})
	}
	t.Run("the copy is not whole", func(t *testing.T) {
		if err := os.MkdirAll(asideDir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		e := start(t, config(dir))
		if got := values(t, e, topics.Cursors); len(got) != len(want) {
			t.Errorf("%d keys are left of %d", len(got), len(want))
		}
	})
}

func TestSizeIsKept(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.Maintenance, cfg.MaxBytes = 50*time.Millisecond, 1<<20
	e := start(t, cfg)
	b := connect(t, e)
	send(t, b, topics.Detections, 20, strconv.Itoa)
	send(t, b, topics.Raw, 8000, strconv.Itoa)
	total := func() (n int64) {
		for _, p := range e.partitions(trimmable) {
			n += p.NumBytes
		}
		return n
	}
	until(t, "room", func() bool { return total() <= cfg.MaxBytes*11/10 })
	if n := count(t, e, topics.Detections); n != 20 {
		t.Errorf("%d of 20 detections are left: the small topic paid for the large one", n)
	}
	if n := count(t, e, topics.Raw); n == 0 || n == 8000 {
		t.Errorf("%d of 8000 events are left", n)
	}
}

func TestLevel(t *testing.T) {
	for name, tc := range map[string]struct {
		sizes []int64
		room  int64
		want  int64
	}{
		"all fit":       {[]int64{1, 2, 3}, 10, 3},
		"one is large":  {[]int64{1, 2, 100}, 10, 7},
		"two are large": {[]int64{1, 50, 100}, 11, 5},
		"no room":       {[]int64{5, 5}, 0, 0},
		"less than no":  {[]int64{5, 5}, -3, 0},
		"nothing":       {nil, 10, 10},
	} {
		t.Run(name, func(t *testing.T) {
			if got := level(tc.sizes, tc.room); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

// TestNobodyElseReadsIt: what Okta sent lies there, also in a data directory that anybody may look into.
func TestNobodyElseReadsIt(t *testing.T) {
	cfg := config(t.TempDir())
	if err := os.MkdirAll(brokerDir(cfg.DataDir), 0o755); err != nil { // as an earlier version left it
		t.Fatal(err)
	}
	start(t, cfg)
	st, err := os.Stat(brokerDir(cfg.DataDir))
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v; want 0700", st.Mode(), err)
	}
}

// TestDiskTrouble: what kfake only logs becomes an error that says what to do, in one line of log.
func TestDiskTrouble(t *testing.T) {
	var log lines
	e := &Embedded{cfg: Config{DataDir: t.TempDir()}, log: slog.New(slog.NewTextHandler(&log, nil))}
	full := &os.PathError{Op: "write", Path: "x.dat", Err: syscall.ENOSPC}
	for range 50 {
		brokerLog{e}.Logf(kfake.LogLevelWarn, "persist batch %s-%d: %v", "okta.raw.v1", 0, full)
	}
	err := e.Check()
	if err == nil || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("check: %v", err)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines of log, want 1", n)
	}
	brokerLog{e}.Logf(kfake.LogLevelWarn, slowCommit+" pid=%d", 7)
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines of log after a slow commit, want none more", n)
	}
	e.troubleAt = time.Now().Add(-6 * time.Second)
	if err := e.Check(); err != nil {
		t.Errorf("six seconds later: %v", err)
	}
}
