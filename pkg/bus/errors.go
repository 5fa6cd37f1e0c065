package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// ErrInstanceTaken ends a stage whose instance id another process has taken: two processes run under one instance_id, and the broker
// gives it to the newer. The older stops.
var ErrInstanceTaken = errors.New("another process runs under this instance_id and has taken over: give each process its own")

// ErrFenced ends a Transactional whose id has a newer owner, or whose transaction the broker gave up on.
var ErrFenced = errors.New("fenced: the transactional id has a newer owner, or its transaction took too long")

// ErrOutcomeUnknown ends a Transactional whose commit was sent and not answered: what it wrote may stand or not. Open it again (which
// ends what is open) and read back what was committed.
var ErrOutcomeUnknown = errors.New("the outcome of the transaction is unknown")

// ErrTooLarge is the Permanent error of a record beyond its topic's max.message.bytes.
var ErrTooLarge = errors.New("the record is larger than its topic takes")

// classError marks an error as permanent under a class.
type classError struct {
	class string
	err   error
	stack []byte // of a panic
}

func (e *classError) Error() string { return e.err.Error() }
func (e *classError) Unwrap() error { return e.err }

// Permanent marks an error that trying again will not cure: the record that caused it becomes a dead letter.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &classError{class: "permanent", err: err}
}

func tooLarge(err error) error {
	return &classError{class: "too_large", err: fmt.Errorf("%w: %w", ErrTooLarge, err)}
}

// isPermanent says whether the error makes a dead letter, and of which class.
func isPermanent(err error) (class string, ok bool) {
	if ce, ok := errors.AsType[*classError](err); ok {
		return ce.class, true
	}
	return "", false
}

// decodeClass tells the record's own fault, which is permanent, from a registry that cannot be asked.
func decodeClass(err error) error {
	if errors.Is(err, record.ErrUnreadable) {
		return &classError{class: "decode", err: err}
	}
	return err
}

// explain says what was attempted and, where the cause is known, what to do.
func (b *Bus) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	var dns *net.DNSError
	var op *net.OpError
	var cert *tls.CertificateVerificationError
	var plainText tls.RecordHeaderError
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
		hint = "run oktawatch topics apply"
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.GroupAuthorizationFailed),
		errors.Is(err, kerr.TransactionalIDAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		hint = "the principal lacks rights: oktawatch topics apply --print shows the ACLs it needs"
	case errors.Is(err, kerr.SaslAuthenticationFailed), errors.Is(err, kerr.UnsupportedSaslMechanism), errors.Is(err, kerr.IllegalSaslState):
		hint = "check kafka.sasl: mechanism, username and password_file"
	case errors.As(err, &cert), errors.As(err, &plainText), errors.As(err, &op) && op.Op == "remote error":
		hint = "check kafka.tls: whether this listener speaks TLS, ca_file, the name in its certificate, and whether it wants ours (cert_file, key_file)"
	case errors.Is(err, kerr.UnknownServerError), errors.Is(err, kerr.KafkaStorageError):
		hint = "the broker failed on its own side, often a full disk: see its log; tried again until it works"
	case errors.Is(err, kerr.NotEnoughReplicas), errors.Is(err, kerr.NotEnoughReplicasAfterAppend):
		hint = "fewer replicas are in sync than min.insync.replicas asks for"
	case errors.Is(err, kerr.InvalidTransactionTimeout):
		hint = "the broker's transaction.max.timeout.ms is below what oktawatch asks for"
	case errors.As(err, &dns):
		hint = "the name does not resolve: check kafka.brokers"
	case errors.As(err, &op) && op.Op == "dial" && op.Timeout() && (b.cfg.TLS.Enabled || b.cfg.TLS.CAFile != "" || b.cfg.TLS.CertFile != ""):
		hint = "no answer: check kafka.brokers, and kafka.tls: that listener may not speak TLS"
	case errors.As(err, &op) && op.Op == "dial":
		hint = "nobody answers there: check kafka.brokers and whether the broker runs"
	case errors.Is(err, io.EOF) && (b.cfg.SASL.Mechanism != "" || b.cfg.TLS.Enabled):
		hint = "the broker hung up: check kafka.sasl and kafka.tls against that listener"
	case errors.Is(err, io.EOF):
		hint = "the broker hung up: does that listener want TLS or SASL (kafka.tls, kafka.sasl)?"
	}
	if hint == "" || strings.Contains(err.Error(), hint) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %s", what, err, hint)
}

// fencedProducer says that the transactional id is another's now, or that the broker gave up on the transaction.
func fencedProducer(err error) bool {
	return errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.InvalidProducerIDMapping) ||
		errors.Is(err, kerr.InvalidTxnState) || errors.Is(err, kerr.TransactionCoordinatorFenced)
}

// movedOn says that the group went on without us: the transaction is aborted, nothing else is wrong.
func movedOn(err error) bool {
	return errors.Is(err, kerr.IllegalGeneration) || errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.RebalanceInProgress) ||
		errors.Is(err, kerr.GroupIDNotFound) || errors.Is(err, kerr.StaleMemberEpoch)
}

func isTooLarge(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge)
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, kgo.ErrClientClosed)
}
