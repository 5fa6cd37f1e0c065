// Package bus carries records between stages and is the only home of the Kafka client. A stage is one of three doors: a Handler
// without memory, a Task with memory per partition, a Table that every instance reads whole. Around them the bus keeps one promise:
// what a stage writes (records, memory, dead letters) and what it has read are committed together or not at all, whatever is killed,
// paused or moved meanwhile. A record that cannot be handled becomes a dead letter; anything else is tried again for ever, and Health
// says so.
//
// Members are static (instance id = Deps.InstanceID + "-" + stage), so that a process that returns under its id goes on at once; the
// transactions a dead one left open are found with ListTransactions and ended by the survivors. A broker without that request (before
// Apache Kafka 3.0) is seen by its ApiVersions: the bus then says so once and waits for the broker's own transaction timeout.
//
// What records mean, how topics are created, and reading as an outsider (pkg/tail) do not belong here.
package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/oktawatch/oktawatch/pkg/metrics"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// Config says how to reach Kafka.
type Config struct {
	Brokers []string `yaml:"brokers"` // host:port of some brokers; the others are learned from them
	TLS     TLS      `yaml:"tls"`     // zero: plain text
	SASL    SASL     `yaml:"sasl"`    // zero: no login
}

// TLS secures the connections. Files are read anew for every client, so that a rotated certificate needs no restart of the fleet.
type TLS struct {
	Enabled    bool   `yaml:"enabled"`     // false: plain text, unless a file below is named
	CAFile     string `yaml:"ca_file"`     // empty: the system's roots
	CertFile   string `yaml:"cert_file"`   // with key_file: a client certificate (mTLS)
	KeyFile    string `yaml:"key_file"`    // the key of cert_file
	ServerName string `yaml:"server_name"` // empty: the broker's host name
}

// SASL logs in.
type SASL struct {
	Mechanism    string `yaml:"mechanism"`     // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER; empty: no login
	Username     string `yaml:"username"`      // of all but OAUTHBEARER
	PasswordFile string `yaml:"password_file"` // a file that holds the password alone, read at each login
	TokenFile    string `yaml:"token_file"`    // of OAUTHBEARER: a file that holds the token alone, kept fresh by others
}

// Deps are what a bus works with.
type Deps struct {
	Log        *slog.Logger  // nil: discards
	Metrics    *metrics.Set  // nil: discards
	Serde      *record.Serde // needed by Put, Send and Decode
	Prefix     string        // before topics, groups, transactional ids and subjects
	InstanceID string        // the same after a restart, another one in every process; empty: the host name
}

// Bus is one process's side of Kafka. It is safe for concurrent use.
type Bus struct {
	cfg  Config
	deps Deps
	log  *slog.Logger
	m    *instruments
	rows map[string]topics.Topic // by full name

	mu     sync.Mutex
	shared *kgo.Client // for admin requests; made on first use
	sender *Sender
	stages map[string]*stageHealth
	closed bool
}

const mechanisms = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"

// New checks the configuration and builds a bus. It touches neither network nor disk.
func New(cfg Config, deps Deps) (*Bus, error) {
	if len(cfg.Brokers) == 0 {
		return nil, errors.New("kafka.brokers is empty: name at least one broker as host:port")
	}
	for _, addr := range cfg.Brokers {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return nil, fmt.Errorf("kafka.brokers: %q is no host:port: %w", addr, err)
		}
	}
	switch strings.ToUpper(cfg.SASL.Mechanism) {
	case "":
		if cfg.SASL.Username != "" || cfg.SASL.PasswordFile != "" {
			return nil, errors.New("kafka.sasl: a username without a mechanism: set kafka.sasl.mechanism to " + mechanisms)
		}
	case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		if cfg.SASL.Username == "" || cfg.SASL.PasswordFile == "" {
			return nil, fmt.Errorf("kafka.sasl: %s needs username and password_file", cfg.SASL.Mechanism)
		}
	case "OAUTHBEARER":
		if cfg.SASL.TokenFile == "" {
			return nil, errors.New("kafka.sasl: OAUTHBEARER needs token_file")
		}
	default:
		return nil, fmt.Errorf("kafka.sasl.mechanism: %q is not known: use %s", cfg.SASL.Mechanism, mechanisms)
	}
	if (cfg.TLS.CertFile == "") != (cfg.TLS.KeyFile == "") {
		return nil, errors.New("kafka.tls: cert_file and key_file go together: set both or neither")
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.InstanceID == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("instance_id is empty and the host name unknown: set instance_id: %w", err)
		}
		deps.InstanceID = host
	}
	b := &Bus{
		cfg: cfg, deps: deps, log: deps.Log, m: newInstruments(deps.Metrics),
		rows: map[string]topics.Topic{}, stages: map[string]*stageHealth{},
	}
	for _, t := range topics.All() {
		b.rows[t.Full(deps.Prefix)] = t
	}
	return b, nil
}

// InstanceID is the id this process goes by.
func (b *Bus) InstanceID() string { return b.deps.InstanceID }

// Prefix is what stands before topics, groups, transactional ids and subjects.
func (b *Bus) Prefix() string { return b.deps.Prefix }

// Ping asks the cluster for its metadata. The error says what to do.
func (b *Bus) Ping(ctx context.Context) error {
	cl, err := b.client()
	if err != nil {
		return err
	}
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{}
	if _, err := req.RequestWith(ctx, cl); err != nil {
		return b.explain("reach kafka at "+strings.Join(b.cfg.Brokers, ","), err)
	}
	return nil
}

// Admin is a client for administration, closed with the bus. Nil when the configured files cannot be read; Ping says why.
func (b *Bus) Admin() *kadm.Client {
	cl, err := b.client()
	if err != nil {
		return nil
	}
	return kadm.NewClient(cl)
}

// Close ends the shared clients. Stages and tables end with their contexts.
func (b *Bus) Close() {
	b.mu.Lock()
	shared, sender := b.shared, b.sender
	b.shared, b.sender, b.closed = nil, nil, true
	b.mu.Unlock()
	if sender != nil {
		sender.close()
	}
	if shared != nil {
		shared.Close()
	}
}

var errClosed = errors.New("the bus is closed")

func (b *Bus) client() (*kgo.Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errClosed
	}
	if b.shared == nil {
		opts, err := b.options("admin")
		if err != nil {
			return nil, err
		}
		if b.shared, err = kgo.NewClient(opts...); err != nil {
			return nil, fmt.Errorf("make kafka client: %w", err)
		}
	}
	return b.shared, nil
}

// Requests that carry topic ids from these versions on are held below them: the bus names topics by name.
const (
	maxOffsetCommit    = 9
	maxOffsetFetch     = 9
	maxTxnOffsetCommit = 5 // 4 where the cluster runs transactions of the first kind
)

func versions(txnOffsetCommit int16) *kversion.Versions {
	v := kversion.Stable()
	v.SetMaxKeyVersion(int16(kmsg.OffsetCommit), maxOffsetCommit)
	v.SetMaxKeyVersion(int16(kmsg.OffsetFetch), maxOffsetFetch)
	v.SetMaxKeyVersion(int16(kmsg.TxnOffsetCommit), txnOffsetCommit)
	return v
}

// options are what every client of ours has. Reading the files it names is the only thing that can fail.
func (b *Bus) options(role string) ([]kgo.Opt, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(b.cfg.Brokers...),
		kgo.ClientID("oktawatch-" + b.deps.InstanceID + "-" + role),
		kgo.WithLogger(kafkaLog{b.log.With("client", role)}),
		kgo.MetadataMinAge(50 * time.Millisecond), // a new transaction's first produce is retried after a metadata refresh only
		kgo.MaxVersions(versions(maxTxnOffsetCommit)),
		kgo.DisableClientMetrics(),
		kgo.DialTimeout(5 * time.Second),
		kgo.RecordPartitioner(kgo.BasicConsistentPartitioner(func(topic string) func(*kgo.Record, int) int {
			row := b.rows[topic]
			return func(r *kgo.Record, n int) int {
				if r.Partition >= 0 {
					return int(r.Partition)
				}
				return int(row.PartitionFor(string(r.Key), int32(n)))
			}
		})),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 {
			if row, ok := b.rows[topic]; ok {
				return int32(row.MaxBytes)
			}
			return 1 << 20
		}),
		kgo.ProducerBatchCompression(kgo.SnappyCompression()),
		kgo.ProducerLinger(0),
		kgo.RequiredAcks(kgo.AllISRAcks()),
	}
	t := b.cfg.TLS
	if t.Enabled || t.CAFile != "" || t.CertFile != "" {
		conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
		if t.CAFile != "" {
			pem, err := os.ReadFile(t.CAFile)
			if err != nil {
				return nil, fmt.Errorf("read kafka.tls.ca_file: %w", err)
			}
			conf.RootCAs = x509.NewCertPool()
			if !conf.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("kafka.tls.ca_file: %s holds no PEM certificate", t.CAFile)
			}
		}
		if t.CertFile != "" {
			pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("read kafka.tls.cert_file and key_file: %w", err)
			}
			conf.Certificates = []tls.Certificate{pair}
		}
		opts = append(opts, kgo.DialTLSConfig(conf))
	}
	if s := b.cfg.SASL; s.Mechanism != "" {
		// Read at each login: a rotated one works without a restart.
		password := func() (string, error) { return secret("kafka.sasl.password_file", s.PasswordFile) }
		token := func() (string, error) { return secret("kafka.sasl.token_file", s.TokenFile) }
		scramAuth := func(context.Context) (scram.Auth, error) {
			pass, err := password()
			return scram.Auth{User: s.Username, Pass: pass}, err
		}
		var mechanism sasl.Mechanism
		read := password
		switch strings.ToUpper(s.Mechanism) {
		case "OAUTHBEARER":
			read = token
			mechanism = oauth.Oauth(func(context.Context) (oauth.Auth, error) {
				t, err := token()
				return oauth.Auth{Token: t}, err
			})
		case "PLAIN":
			mechanism = plain.Plain(func(context.Context) (plain.Auth, error) {
				pass, err := password()
				return plain.Auth{User: s.Username, Pass: pass}, err
			})
		case "SCRAM-SHA-256":
			mechanism = scram.Sha256(scramAuth)
		default:
			mechanism = scram.Sha512(scramAuth)
		}
		if _, err := read(); err != nil {
			return nil, err
		}
		opts = append(opts, kgo.SASL(mechanism))
	}
	return opts, nil
}

func secret(what, file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// kafkaLog passes what the client says on. Its warnings are news of retries, which the bus judges itself: debug.
type kafkaLog struct{ log *slog.Logger }

func (l kafkaLog) Level() kgo.LogLevel {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		return kgo.LogLevelWarn
	}
	return kgo.LogLevelNone
}

func (l kafkaLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	l.log.Debug("kafka client", slices.Concat([]any{"says", msg, "kafka_level", level.String()}, keyvals)...)
}
