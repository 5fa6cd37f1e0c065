package tail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

const (
	reach       = 10 * time.Second       // how long the first answer may take
	maxWait     = 500 * time.Millisecond // how long a broker holds an empty fetch
	requestTime = 15 * time.Second       // after which a broker counts as gone
	minBackoff  = 50 * time.Millisecond
	maxBackoff  = time.Second
	giveUp      = 20 // failures in a row of one partition that no wait has healed, where the broker does answer
)

// Kafka's words for the two offsets that are no timestamp.
const (
	latest   = -1
	earliest = -2
)

// readCommitted is Kafka's isolation level of that name.
const readCommitted = 1

// cluster is the connection of one Read.
type cluster struct {
	r     *Reader
	topic string

	mu        sync.Mutex
	transport *kafka.Transport
	addr      net.Addr
	known     map[string]struct{} // seeds and every broker seen
	conns     map[net.Conn]struct{}
	closed    bool
	down      bool // said so
}

func newCluster(ctx context.Context, r *Reader, topic string) *cluster {
	c := &cluster{r: r, topic: topic, known: map[string]struct{}{}, conns: map[net.Conn]struct{}{}}
	for _, b := range r.cfg.Brokers {
		c.known[b] = struct{}{}
	}
	c.transport = &kafka.Transport{
		Dial:           c.dial,
		DialTimeout:    5 * time.Second,
		MetadataTTL:    time.Second,
		MetadataTopics: []string{topic},
		ClientID:       "oktawatch-tail",
		TLS:            r.tls,
		SASL:           r.sasl,
		Context:        ctx,
	}
	c.addr = kafka.TCP(r.cfg.Brokers...)
	return c
}

// dial remembers the connection, so that close ends those that wait for an answer.
func (c *cluster) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := c.r.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	tracked := &trackedConn{Conn: conn, c: c}
	c.conns[tracked] = struct{}{}
	return tracked, nil
}

type trackedConn struct {
	net.Conn
	c *cluster
}

func (t *trackedConn) Close() error {
	t.c.mu.Lock()
	delete(t.c.conns, t)
	t.c.mu.Unlock()
	return t.Conn.Close()
}

func (c *cluster) close() {
	c.mu.Lock()
	c.closed = true
	conns := slices.Collect(maps.Keys(c.conns))
	c.mu.Unlock()
	c.transport.CloseIdleConnections()
	for _, conn := range conns {
		conn.Close()
	}
}

func (c *cluster) roundTrip(ctx context.Context, req kafka.Request) (kafka.Response, error) {
	c.mu.Lock()
	addr := c.addr
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	return c.transport.RoundTrip(ctx, addr, req)
}

// widen lets metadata come from every broker seen, not from the seeds alone.
func (c *cluster) widen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	addrs := slices.Sorted(maps.Keys(c.known))
	if next := kafka.TCP(addrs...); next.String() != c.addr.String() {
		c.addr = next
	}
}

// partitions asks the transport's metadata, which is never older than a second or two.
func (c *cluster) partitions(ctx context.Context) ([]int32, error) {
	resp, err := c.roundTrip(ctx, &metadata.Request{TopicNames: []string{c.topic}})
	if err != nil {
		return nil, err
	}
	m, ok := resp.(*metadata.Response)
	if !ok {
		return nil, fmt.Errorf("metadata answered with %T", resp)
	}
	c.mu.Lock()
	for _, b := range m.Brokers {
		c.known[net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))] = struct{}{}
	}
	c.mu.Unlock()
	for _, t := range m.Topics {
		if t.Name != c.topic {
			continue
		}
		if t.ErrorCode != 0 {
			return nil, kafka.Error(t.ErrorCode)
		}
		var ps []int32
		for _, p := range t.Partitions {
			ps = append(ps, p.PartitionIndex)
		}
		slices.Sort(ps)
		if len(ps) > 0 {
			return ps, nil
		}
	}
	return nil, kafka.UnknownTopicOrPartition
}

// offsets asks for one offset of each partition: earliest, latest, or the first at a time in milliseconds.
func (c *cluster) offsets(ctx context.Context, parts []int32, at int64) (map[int32]int64, error) {
	req := &listoffsets.Request{ReplicaID: -1, IsolationLevel: readCommitted, Topics: []listoffsets.RequestTopic{{Topic: c.topic}}}
	for _, p := range parts {
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, listoffsets.RequestPartition{Partition: p, CurrentLeaderEpoch: -1, Timestamp: at})
	}
	resp, err := c.roundTrip(ctx, req)
	if err != nil {
		return nil, err
	}
	lo, ok := resp.(*listoffsets.Response)
	if !ok {
		return nil, fmt.Errorf("list offsets answered with %T", resp)
	}
	out := map[int32]int64{}
	for _, t := range lo.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				return nil, fmt.Errorf("partition %d: %w", p.Partition, kafka.Error(p.ErrorCode))
			}
			out[p.Partition] = p.Offset
		}
	}
	if len(out) != len(parts) {
		return nil, fmt.Errorf("offsets of %d partitions came instead of %d", len(out), len(parts))
	}
	return out, nil
}

// start finds the partitions and where each begins and, with Exit, ends.
func (c *cluster) start(ctx context.Context, opts Options) ([]*partition, error) {
	begun := time.Now()
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		parts, err := c.tryStart(ctx, opts)
		if err == nil || ctx.Err() != nil {
			return parts, errors.Join(err, context.Cause(ctx))
		}
		missing := errors.Is(err, kafka.UnknownTopicOrPartition)
		if !retriable(err) || time.Since(begun) > reach || (missing && time.Since(begun) > 1500*time.Millisecond) {
			if missing {
				return nil, fmt.Errorf("there is no such topic on %s; `oktawatch topics list` names ours", strings.Join(c.r.cfg.Brokers, ", "))
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: the broker hangs up, check kafka.tls and kafka.sasl", err)
			}
			return nil, fmt.Errorf("reach Kafka at %s: %w", strings.Join(c.r.cfg.Brokers, ", "), err)
		}
		pause(ctx, wait)
	}
}

func (c *cluster) tryStart(ctx context.Context, opts Options) ([]*partition, error) {
	ids, err := c.partitions(ctx)
	if err != nil {
		return nil, err
	}
	first, err := c.offsets(ctx, ids, earliest)
	if err != nil {
		return nil, err
	}
	last, err := c.offsets(ctx, ids, latest)
	if err != nil {
		return nil, err
	}
	from := first
	switch {
	case opts.FromEnd:
		from = last
	case !opts.Since.IsZero():
		if from, err = c.offsets(ctx, ids, opts.Since.UnixMilli()); err != nil {
			return nil, err
		}
	}
	var parts []*partition
	for _, id := range ids {
		p := &partition{id: id, next: from[id], end: -1}
		if p.next < 0 { // nothing is that young
			p.next = last[id]
		}
		if o, ok := opts.Offsets[id]; ok {
			p.next = o
		}
		p.next = max(p.next, first[id])
		if opts.Exit {
			p.end = last[id]
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// trouble and healed say once that the cluster cannot be read, and once that it can again.
func (c *cluster) trouble(err error) {
	c.mu.Lock()
	said := c.down
	c.down = true
	c.mu.Unlock()
	if !said {
		c.r.log.Warn("reading is interrupted, trying again", "topic", c.topic, "error", err.Error())
	}
}

func (c *cluster) healed() {
	c.mu.Lock()
	said := c.down
	c.down = false
	c.mu.Unlock()
	if said {
		c.r.log.Info("reading again", "topic", c.topic)
	}
}

// retriable tells what time may heal: everything but what the broker refuses for good.
func retriable(err error) bool {
	var code kafka.Error
	if !errors.As(err, &code) {
		return true
	}
	switch code { //nolint:exhaustive // the rest heals
	case kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed, kafka.SASLAuthenticationFailed,
		kafka.UnsupportedSASLMechanism, kafka.InvalidTopic, kafka.UnsupportedVersion:
		return false
	}
	return true
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
