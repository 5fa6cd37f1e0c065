package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/topics"
)

// ownerTimeout is after how long the broker ends the transaction of an owner that was killed and has no successor.
const ownerTimeout = 10 * time.Second

// Transactional writes transactions under an id that has one owner: whoever opened it last. For writers that are no stage, such as a
// source's poller.
type Transactional struct {
	b  *Bus
	id string
	cl *kgo.Client

	mu     sync.Mutex
	broken error
}

// OpenTransactional takes the id over: a transaction its last owner left open is ended, and that owner is fenced, before this returns.
// What the last owner committed can then be read to its end.
func (b *Bus) OpenTransactional(ctx context.Context, id string) (*Transactional, error) {
	opts, err := b.options("owner")
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(append(opts,
		kgo.TransactionalID(b.deps.Prefix+id),
		kgo.TransactionTimeout(ownerTimeout),
		kgo.MaxBufferedRecords(50_000),
		kgo.UnknownTopicRetries(3),
	)...)
	if err != nil {
		return nil, fmt.Errorf("make kafka client: %w", err)
	}
	if _, _, err := cl.ProducerID(ctx); err != nil {
		cl.Close()
		return nil, b.explain("take over transactional id "+b.deps.Prefix+id, err)
	}
	return &Transactional{b: b, id: id, cl: cl}, nil
}

// Close ends the client. The id stays until another opens it.
func (t *Transactional) Close() { t.cl.Close() }

// Do commits what fn emits as one transaction, or nothing of it when fn returns an error. fn runs before the transaction is opened.
// ErrFenced: a newer owner exists. ErrOutcomeUnknown: commit was sent and not answered. After either the Transactional is of no more
// use: open it again, and read back what was committed.
func (t *Transactional) Do(ctx context.Context, fn func(out *Emit) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken != nil {
		return t.broken
	}
	e := &Emit{b: t.b, ctx: ctx, g: topics.Group{}}
	if err := fn(e); err != nil {
		return err
	}
	if len(e.recs) == 0 {
		return nil
	}
	// Once opened, a transaction is brought to its end whatever becomes of the caller: the broker's own timeout is the limit.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ownerTimeout)
	defer cancel()
	what := "write a transaction as " + t.b.deps.Prefix + t.id
	err := commitRecords(ctx, t.cl, e.recs, nil)
	var end *endError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &end) && !end.clean:
		t.broken = ErrOutcomeUnknown
		if fencedProducer(err) && !end.committing {
			t.broken = ErrFenced
		}
		t.broken = fmt.Errorf("%s: %w (%w)", what, t.broken, end.err)
		return t.broken
	case isTooLarge(err):
		return tooLarge(fmt.Errorf("%s: %w", what, err))
	}
	return t.b.explain(what, err)
}

// endError is a transaction that did not commit. clean: it is known to be aborted, and the producer can go on.
type endError struct {
	err        error
	clean      bool
	committing bool // the commit itself was sent
	refused    *emitted
}

func (e *endError) Error() string { return e.err.Error() }
func (e *endError) Unwrap() error { return e.err }

// commitRecords writes one transaction. beforeEnd, if any, adds the read offsets to it after all records stand.
func commitRecords(ctx context.Context, cl *kgo.Client, recs []emitted, beforeEnd func(context.Context) error) error {
	if err := cl.BeginTransaction(); err != nil {
		return &endError{err: fmt.Errorf("begin: %w", err)}
	}
	var mu sync.Mutex
	var first *endError
	for i := range recs {
		em := &recs[i]
		cl.Produce(ctx, em.rec, func(r *kgo.Record, err error) {
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			// One refused record fails its batch: the one that says so itself is the culprit.
			if first == nil || isTooLarge(err) && !isTooLarge(first.err) {
				first = &endError{err: fmt.Errorf("write to %s: %w", r.Topic, err), refused: em}
			}
		})
	}
	err := cl.Flush(ctx)
	mu.Lock()
	failed := first
	mu.Unlock()
	switch {
	case failed != nil:
	case err != nil:
		failed = &endError{err: fmt.Errorf("write: %w", err)}
	case beforeEnd != nil:
		if err := beforeEnd(ctx); err != nil {
			failed = &endError{err: err}
		}
	}
	if failed == nil {
		err := cl.EndTransaction(ctx, kgo.TryCommit)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, kerr.OperationNotAttempted), errors.Is(err, kerr.TransactionAbortable):
			failed = &endError{err: fmt.Errorf("commit: %w", err)}
		default:
			return &endError{err: fmt.Errorf("commit: %w", err), committing: true}
		}
	}
	if fencedProducer(failed.err) {
		return failed
	}
	if err := cl.AbortBufferedRecords(ctx); err != nil {
		return failed
	}
	if err := cl.EndTransaction(ctx, kgo.TryAbort); err != nil {
		failed.err = fmt.Errorf("%w; abort: %w", failed.err, err)
		return failed
	}
	failed.clean = true
	return failed
}
