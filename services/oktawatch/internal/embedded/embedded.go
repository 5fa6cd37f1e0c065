// Package embedded is the broker and the schema registry of `oktawatch up`: kfake with its data on disk and pkg/registry
// on top of it, both on loopback addresses only, in a data directory that one process holds at a time. It runs the
// retention and the compaction that kfake does not do by itself or not safely, says where it listens in run.json, and
// tells whether the last stop was clean. It knows the names of our topics and nothing of what flows through them.
package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/bus/localbroker"
	"github.com/oktawatch/oktawatch/pkg/registry"
)

// Where both listen unless told otherwise. When another process has the port, any free one is taken.
const (
	DefaultKafka    = "127.0.0.1:9092"
	DefaultRegistry = "127.0.0.1:8081"
)

// Config is what an operator may say of embedded mode; all but DataDir may be left out.
type Config struct {
	DataDir        string        `yaml:"-"`               // holds everything; made where missing
	KafkaListen    string        `yaml:"kafka_listen"`    // empty: 127.0.0.1:9092, or any free port when that is taken; another address is taken or it is an error
	RegistryListen string        `yaml:"registry_listen"` // empty: 127.0.0.1:8081, likewise
	SyncWrites     bool          `yaml:"sync_writes"`     // false: a power cut may cost the last seconds, the end of the process never does
	MaxBytes       int64         `yaml:"max_bytes"`       // zero: 1 GiB; above it the oldest records of the largest topics go, whatever their retention. The process needs about half of it in memory after a restart
	Maintenance    time.Duration `yaml:"maintenance"`     // zero: 1m; how often retention, size and compaction are looked at
	CompactAfter   int64         `yaml:"compact_after"`   // zero: 16 MiB; how much compacted topics grow before they are compacted
	Prefix         string        `yaml:"-"`               // topics.prefix
}

const (
	defaultMaxBytes     = 1 << 30
	defaultMaintenance  = time.Minute
	defaultCompactAfter = 16 << 20
)

// Embedded is a running broker and registry.
type Embedded struct {
	cfg     Config
	log     *slog.Logger
	lock    *flock.Flock
	cluster *kfake.Cluster
	reg     *registry.Registry
	store   *registry.Kafka
	kafka   string
	unclean bool
	marked  bool

	cancel context.CancelFunc
	tasks  sync.WaitGroup
	done   chan struct{} // closed when the first part ended by itself

	mu        sync.Mutex
	run       Run
	recovered bool
	err       error     // why done is closed
	trouble   error     // the disk's last complaint
	troubleAt time.Time // and when
	compacted int64     // bytes in compacted topics after the last compaction
	closed    bool
}

// Start takes the data directory, starts the broker and then the registry, and returns when both answer. The error of a
// second start on one directory names the process that has it.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (_ *Embedded, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.DataDir == "" {
		return nil, errors.New("start the embedded broker: no data directory given")
	}
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, defaultMaxBytes)
	cfg.Maintenance = cmp.Or(cfg.Maintenance, defaultMaintenance)
	cfg.CompactAfter = cmp.Or(cfg.CompactAfter, defaultCompactAfter)
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	if err := keepOut(brokerDir(cfg.DataDir)); err != nil {
		return nil, err
	}
	e := &Embedded{cfg: cfg, log: log, done: make(chan struct{})}
	if e.lock, err = hold(ctx, cfg.DataDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.stop()
			if !e.unclean && e.marked {
				_ = unmark(cfg.DataDir)
			}
			_ = e.lock.Unlock()
		}
	}()
	if e.unclean, err = mark(cfg.DataDir); err != nil {
		return nil, err
	}
	e.marked = true
	if restored, err := restore(cfg.DataDir); err != nil {
		return nil, err
	} else if restored > 0 {
		log.Warn("compaction was cut short by the last stop; its input is back in place", "partitions", restored)
	}
	if e.unclean {
		log.Warn("the last stop was not clean: stages may write their last batch again, under the same ids", "data_dir", cfg.DataDir)
	}

	var open []bus.OpenTransaction
	if e.unclean {
		if open, err = openOnDisk(brokerDir(cfg.DataDir)); err != nil {
			return nil, err
		}
	}

	kafkaLn, err := listen(ctx, "Kafka", cfg.KafkaListen, DefaultKafka, log)
	if err != nil {
		return nil, err
	}
	e.kafka = kafkaLn.Addr().String()
	registryLn, err := listen(ctx, "the schema registry", cfg.RegistryListen, DefaultRegistry, log)
	if err != nil {
		kafkaLn.Close()
		return nil, err
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("oktawatch-embedded"),
		kfake.DataDir(brokerDir(cfg.DataDir)),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return kafkaLn, nil }),
		kfake.WithLogger(brokerLog{e}),
	}
	if cfg.SyncWrites {
		opts = append(opts, kfake.SyncWrites())
	}
	if e.cluster, err = localbroker.Open(opts...); err != nil {
		kafkaLn.Close()
		registryLn.Close()
		return nil, fmt.Errorf("open the broker's data in %s: %w%s", brokerDir(cfg.DataDir), err, cmp.Or(hint(err), damaged(cfg.DataDir, err)))
	}

	if err := endOpen(ctx, e.kafka, open); err != nil {
		registryLn.Close()
		return nil, err
	}
	if e.store, err = registry.NewKafka(registry.KafkaConfig{Brokers: []string{e.kafka}, Topic: cfg.Prefix + registry.DefaultTopic}); err != nil {
		registryLn.Close()
		return nil, err
	}
	if e.reg, err = registry.New(registry.Config{}, registry.Deps{Log: log, Store: e.store, Listener: registryLn}); err != nil {
		registryLn.Close()
		return nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.cancel = cancel
	failed := make(chan error, 1)
	e.tasks.Go(func() {
		if err := e.reg.Run(running); err != nil {
			failed <- err
			e.fail(err)
		}
	})
	select {
	case <-e.reg.Ready():
	case err := <-failed:
		if t := e.Check(); t != nil {
			err = t
		}
		return nil, fmt.Errorf("start the registry on the embedded broker: %w", err)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	e.run = Run{PID: os.Getpid(), Kafka: e.kafka, Registry: e.reg.URL(), Started: time.Now().UTC()}
	if err := e.run.write(cfg.DataDir); err != nil {
		return nil, err
	}
	e.tasks.Go(func() { e.maintain(running) })
	return e, nil
}

// Kafka is the broker's address, host:port.
func (e *Embedded) Kafka() string { return e.kafka }

// Registry is the registry's URL.
func (e *Embedded) Registry() string { return e.reg.URL() }

// Unclean tells that the last stop was not clean, so that a transaction may stand in some partitions only: a cursor then
// goes on from what it was before (its `previous`). It stays so over further stops until Recovered is called.
func (e *Embedded) Unclean() bool { return e.unclean }

// Recovered says that everything an unclean stop may have torn has been read again. Without it the next start says
// Unclean once more, which costs repeats and loses nothing.
func (e *Embedded) Recovered() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.recovered = true
}

// Done is closed when a part ended by itself; Err then says why.
func (e *Embedded) Done() <-chan struct{} { return e.done }

// Err is why Done is closed, nil until then.
func (e *Embedded) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

func (e *Embedded) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil && !e.closed {
		e.err = err
		close(e.done)
	}
}

// Announce adds one more address to run.json, such as that of the console.
func (e *Embedded) Announce(name, addr string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.run.Addresses == nil {
		e.run.Addresses = map[string]string{}
	}
	e.run.Addresses[name] = addr
	return e.run.write(e.cfg.DataDir)
}

// minFree is how little room a disk may have before Check complains: a little more than what a stop writes.
const minFree = 32 << 20

// troubleLasts is how long a failed write counts without another: whoever writes tries again sooner than that, so that a disk with
// room again is soon called good.
const troubleLasts = 5 * time.Second

// Check is readiness: nil, or what is wrong with the disk and what to do.
func (e *Embedded) Check() error {
	e.mu.Lock()
	trouble, at := e.trouble, e.troubleAt
	e.mu.Unlock()
	if trouble != nil && time.Since(at) < troubleLasts {
		return trouble
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(e.cfg.DataDir, &st); err == nil {
		if free := int64(st.Bavail) * int64(st.Bsize); free < minFree { //nolint:unconvert // the fields' types differ by system
			return fmt.Errorf("%s has %d MiB left: %s", e.cfg.DataDir, free>>20, makeRoom)
		}
	}
	return nil
}

const makeRoom = "free some space on that disk, or lower embedded.max_bytes"

func hint(err error) string {
	if errors.Is(err, syscall.ENOSPC) {
		return ": " + makeRoom
	}
	return ""
}

// damaged says what to do about files that were read and make no sense.
func damaged(dataDir string, err error) string {
	if errors.As(err, new(*fs.PathError)) || errors.As(err, new(*os.SyscallError)) {
		return "" // of the system, which says enough
	}
	return ": a file there is damaged; put back a copy of " + dataDir + ", or move it away and start anew (polling then begins ingest.sources[].poll.lookback ago, and what was there is not read again)"
}

// Close stops the registry and then the broker, which writes what it keeps in memory, and gives the directory free. Stop
// everything that talks to them first.
func (e *Embedded) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	clean := (!e.unclean || e.recovered) && e.err == nil
	e.mu.Unlock()
	e.stop()
	err := errors.Join(os.Remove(RunPath(e.cfg.DataDir)), e.Check())
	if clean && err == nil {
		err = unmark(e.cfg.DataDir)
	}
	return errors.Join(err, e.lock.Unlock())
}

func (e *Embedded) stop() {
	if e.cancel != nil {
		e.cancel()
		e.tasks.Wait()
	}
	if e.store != nil {
		e.store.Close()
	}
	if e.cluster != nil {
		e.cluster.Close()
	}
}

func brokerDir(dataDir string) string { return filepath.Join(dataDir, "kafka") }

// listen takes the address asked for. Only where none was asked for does it move to another port, and says so.
func listen(ctx context.Context, what, addr, def string, log *slog.Logger) (net.Listener, error) {
	asked := addr != "" && addr != def
	addr = cmp.Or(addr, def)
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %q is not host:port: %w", what, addr, err)
	}
	ip := net.ParseIP(host)
	if host == "localhost" {
		ip = net.IPv4(127, 0, 0, 1)
	}
	if ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("listen for %s: %s is not a loopback address; the embedded broker asks nobody for a password: use 127.0.0.1, or a real Kafka", what, addr)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err == nil {
		return ln, nil
	}
	if asked || !errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen for %s: %w: end what has the port, or choose another", what, err)
	}
	if ln, err = lc.Listen(ctx, "tcp", net.JoinHostPort(ip.String(), "0")); err != nil {
		return nil, fmt.Errorf("listen for %s: %w", what, err)
	}
	log.Warn("port is taken, using another", "for", what, "wanted", addr, "got", ln.Addr().String())
	return ln, nil
}

// keepOut makes the broker's directory its owner's alone: kfake writes files that anybody may read, with what Okta sent in them, and
// the data directory may be one that somebody else made.
func keepOut(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("make the broker's directory: %w", err)
	}
	return nil
}

// slowCommit begins what the broker says of each commit over 5 ms, which is any on a busy machine and nothing to act on.
const slowCommit = "txn: EndTxn slow"

// brokerLog hands the broker's complaints on and remembers those about the disk.
type brokerLog struct{ e *Embedded }

// Logf implements kfake.Logger.
func (l brokerLog) Logf(level kfake.LogLevel, format string, args ...any) {
	if level > kfake.LogLevelWarn || level == kfake.LogLevelNone {
		return
	}
	msg := fmt.Sprintf(format, args...)
	var cause error
	for _, a := range args {
		if err, ok := a.(error); ok {
			cause = err
		}
	}
	if pathErr := (*os.PathError)(nil); errors.As(cause, &pathErr) || errors.Is(cause, syscall.ENOSPC) {
		l.e.mu.Lock()
		first := time.Since(l.e.troubleAt) > 10*time.Second
		l.e.trouble, l.e.troubleAt = fmt.Errorf("the embedded broker cannot write to %s: %w%s", l.e.cfg.DataDir, cause, hint(cause)), time.Now()
		l.e.mu.Unlock()
		if !first {
			return // one line says it
		}
	}
	if strings.HasPrefix(format, slowCommit) {
		l.e.log.Debug("embedded broker", "message", msg)
		return
	}
	l.e.log.Warn("embedded broker", "message", msg)
}
