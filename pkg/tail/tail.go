// Package tail reads our topics as an outsider: without a group, with another client than the pipeline's, and committed
// records only. It fetches through kafka-go's Transport and drops what kafka-go's own Reader would hand out: the records
// of aborted transactions and the markers. Every record can be shown as plain JSON by the schema its writer used, whatever
// version that is. Nothing is ever written, no offset is kept: whoever needs to go on where it was keeps the offsets.
package tail

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Config says where to read. TLS and SASL have the fields of pkg/bus, so that one converts into the other.
type Config struct {
	Brokers  []string
	TLS      TLS
	SASL     SASL
	Prefix   string // topics.prefix
	Registry string // base URL, may carry a path; needed by Plain and ID alone
}

// TLS secures the connections.
type TLS struct {
	Enabled    bool
	CAFile     string // empty: the system's roots
	CertFile   string // with KeyFile: a client certificate
	KeyFile    string
	ServerName string // empty: the broker's host name
}

// SASL logs in.
type SASL struct {
	Mechanism    string // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER; empty: no login
	Username     string
	PasswordFile string
	TokenFile    string // of OAUTHBEARER
}

// Deps is what a reader works with; the zero value works.
type Deps struct {
	Log  *slog.Logger                                                      // nil: silent
	Dial func(ctx context.Context, network, addr string) (net.Conn, error) // nil: the system's
	HTTP *http.Client                                                      // for the registry; nil: the default one
}

// Reader reads topics. It is safe for concurrent use and holds no connection between reads.
type Reader struct {
	cfg     Config
	log     *slog.Logger
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	tls     *tls.Config
	sasl    sasl.Mechanism
	schemas *schemas
}

// Open checks the configuration. It reads the files it names and touches no network.
func Open(cfg Config, deps Deps) (*Reader, error) {
	if len(cfg.Brokers) == 0 {
		return nil, errors.New("read topics: no broker is named")
	}
	r := &Reader{cfg: cfg, log: deps.Log, dial: deps.Dial, schemas: newSchemas(cfg.Registry, deps.HTTP)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.dial == nil {
		r.dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	var err error
	if r.tls, err = cfg.TLS.open(); err != nil {
		return nil, err
	}
	if r.sasl, err = cfg.SASL.open(); err != nil {
		return nil, err
	}
	return r, nil
}

func (t TLS) open() (*tls.Config, error) {
	if !t.Enabled && t.CAFile == "" && t.CertFile == "" {
		return nil, nil //nolint:nilnil // no TLS is what nil says to kafka-go
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read kafka.tls.ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read kafka.tls.ca_file: %s holds no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" || t.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read kafka.tls.cert_file and key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

func (s SASL) open() (sasl.Mechanism, error) {
	if s.Mechanism == "" {
		return nil, nil //nolint:nilnil // no login is what nil says to kafka-go
	}
	if strings.EqualFold(s.Mechanism, "OAUTHBEARER") {
		return bearer{s.TokenFile}, nil
	}
	b, err := os.ReadFile(s.PasswordFile)
	if err != nil {
		return nil, fmt.Errorf("read kafka.sasl.password_file: %w", err)
	}
	password := strings.TrimRight(string(b), "\r\n")
	switch strings.ToUpper(s.Mechanism) {
	case "PLAIN":
		return plain.Mechanism{Username: s.Username, Password: password}, nil
	case "SCRAM-SHA-256":
		return scram.Mechanism(scram.SHA256, s.Username, password)
	case "SCRAM-SHA-512":
		return scram.Mechanism(scram.SHA512, s.Username, password)
	}
	return nil, fmt.Errorf("kafka.sasl.mechanism: %q is not known: use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER", s.Mechanism)
}

// bearer is OAUTHBEARER (RFC 7628), which kafka-go does not have. The token is read at each login: others keep it fresh.
type bearer struct{ file string }

func (bearer) Name() string { return "OAUTHBEARER" }

func (b bearer) Start(context.Context) (sasl.StateMachine, []byte, error) {
	token, err := os.ReadFile(b.file)
	if err != nil {
		return nil, nil, fmt.Errorf("read kafka.sasl.token_file: %w", err)
	}
	return b, fmt.Appendf(nil, "n,,\x01auth=Bearer %s\x01\x01", strings.TrimSpace(string(token))), nil
}

// Next is asked only when the broker refused: its answer says why.
func (bearer) Next(_ context.Context, challenge []byte) (bool, []byte, error) {
	if len(challenge) == 0 {
		return true, nil, nil
	}
	return false, nil, fmt.Errorf("the broker refuses the token: %.200s", challenge)
}

// Record is one committed record. Key, Value and Headers are valid until the function that got it returns.
type Record struct {
	Topic     string // full name
	Partition int32
	Offset    int64
	Timestamp time.Time
	Key       []byte
	Value     []byte // as on the wire; nil: a tombstone
	Headers   []Header

	r *Reader
}

// Header is one record header.
type Header struct {
	Key   string
	Value []byte
}

// Options say which part of a topic is read; the zero value is all of it, and then whatever comes.
type Options struct {
	Since   time.Time       // start at the first record with this timestamp or a later one
	Offsets map[int32]int64 // start of single partitions; goes before Since
	FromEnd bool            // start at what is not yet visible
	// Exit ends the read at the end offsets found at the start. That end is the last stable offset: a transaction then open
	// is not waited for, and nothing behind its first record is read, committed or not.
	Exit bool
}

// Stop, returned by the function that gets the records, ends Read without an error.
var Stop = errors.New("stop reading") //nolint:errname,staticcheck // a word, as io.EOF

// Read hands every committed record of a topic to f, one at a time, in order within each partition. topic is a row's name,
// or any topic's full name. It goes on over broker restarts and changes of leader, until f fails, ctx ends (its cause is
// then the error) or, with Exit, the end is reached. When no broker can be reached at the start it gives up after 10 s.
func (r *Reader) Read(ctx context.Context, topic string, opts Options, f func(Record) error) error {
	if row, ok := topics.Find(topic, r.cfg.Prefix); ok {
		topic = row.Full(r.cfg.Prefix)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := newCluster(ctx, r, topic)
	defer c.close()

	parts, err := c.start(ctx, opts)
	if err != nil {
		return fmt.Errorf("read %s: %w", topic, err)
	}
	var (
		wg sync.WaitGroup
		mu sync.Mutex // one record at a time
	)
	for _, p := range parts {
		wg.Go(func() {
			if err := p.run(ctx, c, &mu, f); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	switch err := context.Cause(ctx); {
	case err == nil, errors.Is(err, Stop):
		return nil
	default:
		return err
	}
}
