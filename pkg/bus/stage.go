package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oktawatch/oktawatch/pkg/bus/internal/hook"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Handler serves a stage without memory. It is called for one record after the other; what it emits is committed with the record. A
// Permanent error or a panic makes the record a dead letter and drops what was emitted for it; any other error has it tried again,
// in its turn, until it works. One stage never calls it from two goroutines at once.
type Handler func(ctx context.Context, m Message, out *Emit) error

// Task serves a stage with memory: one task per partition number of the group, fed by that partition of each of its topics. Its
// methods are never called by two goroutines at once. The context of Process and Tick ends when the partition goes to another member or
// the stage stops: what a task does in goroutines of its own ends with it.
//
// What Process and Tick change goes to an overlay (Overlay makes one of a map) and, by Emit.State, to the changelog. Commit is called
// when the transaction is known to stand: the overlay joins the memory. Abort is called when it is known not to: the overlay is thrown
// away, and the records come again. When the outcome cannot be known the whole task is dropped and made anew.
type Task interface {
	// Restore takes back one entry of the changelog, in the order they were written; value nil: ended. It is called before anything
	// else.
	Restore(key, value []byte) error
	// Process judges some records, in order per topic. A Permanent error or a panic has the batch tried again in halves until the
	// record that causes it is alone and becomes a dead letter; any other error has the whole batch tried again.
	Process(ctx context.Context, batch []Message, out *Emit) error
	// Tick is called every tenth of a second, and soon after Wake. It must not wait.
	Tick(ctx context.Context, now time.Time, out *Emit) error
	Commit()
	Abort()
}

// Limits of one transaction and of a client. Memory in flight is bounded by them.
const (
	maxBatchRecords = 1000
	maxBatchBytes   = 4 << 20
	fetchBytes      = 4 << 20
	fetchPartBytes  = 1 << 20
	tickEvery       = 100 * time.Millisecond
	fetchWait       = 250 * time.Millisecond
)

// Membership. Apache Kafka's defaults allow these.
const (
	sessionTimeout   = 6 * time.Second
	heartbeat        = 1500 * time.Millisecond
	rebalanceTimeout = 20 * time.Second
	stageTimeout     = 15 * time.Second // of a transaction
	commitTimeout    = 14 * time.Second // for all of it from here; below the broker's
	stopTimeout      = 5 * time.Second  // for the goodbye; with the last commit this stays under 25 s
	surviveEvery     = time.Second
)

type stage struct {
	b        *Bus
	g        topics.Group
	name     string // the group
	label    string // service.stage
	instance string
	txnID    string
	names    []string // full names of the topics, the deciding one first
	redrive  string
	rows     map[string]topics.Topic // by full name
	log      *slog.Logger
	h        *stageHealth
	hooks    *hook.Hooks

	tellNoList sync.Once

	handler Handler
	newTask func(partition int32) (Task, error)
	changed func(ctx context.Context, partitions []int32) error
}

// RunHandler runs a stage without memory until the context ends. It returns nil on a clean stop, ErrInstanceTaken when another
// process has taken this one's id, and otherwise only returns when the stage cannot work by design.
func (b *Bus) RunHandler(ctx context.Context, g topics.Group, h Handler) error {
	if g.State != nil {
		return fmt.Errorf("%s has a state topic: run it with RunTasks", g.Name(""))
	}
	return b.runStage(ctx, &stage{g: g, handler: h})
}

// RunTasks runs a stage with memory, as RunHandler does. newTask makes the empty task of a partition number; the bus restores it.
func (b *Bus) RunTasks(ctx context.Context, g topics.Group, newTask func(partition int32) (Task, error)) error {
	return b.runStage(ctx, &stage{g: g, newTask: newTask})
}

// RunAssigned joins a group for its assignment alone: changed is told, one call after the other, which partitions of the group's
// first topic are this instance's. Records are not read. When changed fails it is called again.
func (b *Bus) RunAssigned(ctx context.Context, g topics.Group, changed func(ctx context.Context, partitions []int32) error) error {
	return b.runStage(ctx, &stage{g: g, changed: changed})
}

var errKilled = errors.New("killed by a test")

func (b *Bus) runStage(ctx context.Context, st *stage) error {
	if len(st.g.Inputs) == 0 {
		return fmt.Errorf("%s has no inputs", st.g.Name(""))
	}
	st.b = b
	st.name = st.g.Name(b.deps.Prefix)
	st.label = st.g.Service + "." + st.g.Stage
	st.instance = b.deps.InstanceID + "-" + st.g.Stage
	if st.changed == nil {
		st.txnID = st.name + "." + st.instance
	}
	st.rows = map[string]topics.Topic{}
	for _, t := range st.g.Topics() {
		st.names = append(st.names, t.Full(b.deps.Prefix))
		st.rows[t.Full(b.deps.Prefix)] = t
	}
	if st.g.Redrive != nil {
		st.redrive = st.g.Redrive.Full(b.deps.Prefix)
	}
	st.log = b.log.With("stage", st.label, "instance", st.instance)
	st.h = b.stage(st.g)
	st.hooks = hook.From(ctx)

	defer st.h.set(func(s *StageHealth) { s.Alive, s.Partitions, s.Restoring = false, nil, 0 })
	lastText, wait := "", time.Duration(0)
	for {
		began := time.Now()
		err := st.session(ctx)
		if errors.Is(err, ErrInstanceTaken) {
			err = fmt.Errorf("%s as %s: %w", st.label, st.instance, ErrInstanceTaken)
			st.h.failed(err)
			return err
		}
		if errors.Is(err, errKilled) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = errors.New("the session ended") // cannot be, but must not spin
		}
		b.m.restarts.With(st.label).Inc()
		st.h.failed(err)
		st.h.set(func(s *StageHealth) { s.Alive, s.Partitions, s.Restoring = false, nil, 0 })
		if text := err.Error(); text != lastText {
			st.log.Warn("stage begins again", "err", err)
			lastText = text
		}
		if time.Since(began) > time.Minute {
			wait, lastText = 0, ""
		}
		wait = min(max(2*wait, 50*time.Millisecond), 5*time.Second)
		select {
		case <-time.After(jitter(wait)):
		case <-ctx.Done():
			return nil
		case <-st.hooks.Killed:
			return errKilled
		}
	}
}

func jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(rand.Int64N(int64(d/2)+1)) //nolint:gosec // spreads load, guards nothing
}

// session runs the stage with one client until something ends it.
func (st *stage) session(ctx context.Context) error {
	s, err := st.open(ctx)
	if err != nil {
		return err
	}
	err = s.loop(ctx)
	killed := errors.Is(err, errKilled)
	s.close(ctx.Err() != nil && !killed && !errors.Is(err, ErrInstanceTaken))
	if err != nil && !killed && !errors.Is(err, ErrInstanceTaken) && ctx.Err() == nil && s.taken(ctx) {
		return ErrInstanceTaken
	}
	return err
}

// open checks the topics and makes the client. It joins the group at once.
func (st *stage) open(stageCtx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(stageCtx, 10*time.Second)
	defer cancel()
	if err := st.checkTopics(ctx); err != nil {
		return nil, err
	}
	can, err := st.b.abilities(ctx)
	if err != nil {
		return nil, err
	}
	if !can.listTransactions && st.txnID != "" {
		st.tellNoList.Do(func() {
			st.log.Warn("this broker cannot list transactions: what a killed member leaves open stands still until the broker ends it", "timeout", stageTimeout)
		})
	}
	s := newSession(stageCtx, st, can)
	opts, err := st.b.options(st.label)
	if err != nil {
		return nil, err
	}
	opts = append(opts,
		kgo.ConsumerGroup(st.name),
		kgo.ConsumeTopics(st.names...),
		kgo.InstanceID(st.instance),
		kgo.Balancers(newTogether(st.names[0], st.names[1:]...)),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(heartbeat),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // else a committed offset never passes a transaction's marker
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMinBytes(1),
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.FetchMaxPartitionBytes(fetchPartBytes),
		kgo.MaxConcurrentFetches(4),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(s.assigned),
		kgo.OnPartitionsRevoked(s.revoked),
		kgo.OnPartitionsLost(s.revoked),
		kgo.WithHooks(s),
	)
	if st.txnID != "" {
		kind := int16(maxTxnOffsetCommit)
		if !can.secondKind {
			kind = 4
		}
		opts = append(opts,
			kgo.TransactionalID(st.txnID),
			kgo.TransactionTimeout(stageTimeout),
			kgo.MaxVersions(versions(kind)),
			kgo.UnknownTopicRetries(3),
		)
	}
	if st.hooks.Dial != nil {
		opts = append(opts, kgo.Dialer(st.hooks.Dial))
	}
	if s.cl, err = kgo.NewClient(opts...); err != nil {
		return nil, fmt.Errorf("make kafka client: %w", err)
	}
	close(s.made)
	return s, nil
}

// checkTopics says what is missing before a client waits for it without a word.
func (st *stage) checkTopics(ctx context.Context) error {
	cl, err := st.b.client()
	if err != nil {
		return err
	}
	names := append([]string(nil), st.names...)
	if st.g.State != nil {
		names = append(names, st.g.State.Full(st.b.deps.Prefix))
	}
	counts, err := st.b.partitions(ctx, cl, names...)
	if err != nil {
		return err
	}
	for _, name := range names[1:] {
		if counts[name] != counts[names[0]] {
			return fmt.Errorf("%s has %d partitions and %s has %d: topics of one stage need one count: run oktawatch topics diff", name, counts[name], names[0], counts[names[0]])
		}
	}
	return nil
}

// partitions counts the partitions of topics that must exist.
func (b *Bus) partitions(ctx context.Context, cl *kgo.Client, names ...string) (map[string]int32, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = new(name)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, b.explain("read metadata of "+names[0], err)
	}
	counts := make(map[string]int32, len(names))
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return nil, b.explain("read metadata of "+*t.Topic, err)
		}
		counts[*t.Topic] = int32(len(t.Partitions))
	}
	return counts, nil
}

// abilities are what the bus does differently on some brokers.
type abilities struct {
	secondKind       bool // transactions of the second kind (KIP-890): offsets are added to a transaction by being sent
	listTransactions bool
}

func (b *Bus) abilities(ctx context.Context) (can abilities, err error) {
	cl, err := b.client()
	if err != nil {
		return can, err
	}
	req := kmsg.NewPtrApiVersionsRequest()
	req.ClientSoftwareName, req.ClientSoftwareVersion = "oktawatch", "1"
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return can, b.explain("ask the broker what it can do", err)
	}
	for _, f := range resp.FinalizedFeatures {
		can.secondKind = can.secondKind || f.Name == "transaction.version" && f.MaxVersionLevel >= 2
	}
	for _, k := range resp.ApiKeys {
		can.listTransactions = can.listTransactions || k.ApiKey == int16(kmsg.ListTransactions)
	}
	return can, nil
}

type wakeKey struct{}

// Wake asks for a Tick of the task whose Process or Tick was given this context, soon. A task that has handed work to a goroutine
// lets it call Wake when there is something to collect.
func Wake(ctx context.Context) {
	if wake, ok := ctx.Value(wakeKey{}).(func()); ok {
		wake()
	}
}

// safely turns a panic into a Permanent error.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &classError{class: "panic", err: fmt.Errorf("panic: %v", p)}
			if perr, ok := p.(error); ok {
				err = &classError{class: "panic", err: fmt.Errorf("panic: %w", perr)}
			}
			panicStack(err, debug.Stack())
		}
	}()
	return f()
}

// panicStack keeps where it happened, for the log alone.
func panicStack(err error, stack []byte) {
	if ce, ok := errors.AsType[*classError](err); ok {
		ce.stack = stack
	}
}
