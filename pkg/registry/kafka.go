package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DefaultTopic is where the schemas lie unless told otherwise.
const DefaultTopic = "_oktawatch.schemas"

// KafkaConfig says where the schemas lie.
type KafkaConfig struct {
	Brokers []string
	Topic   string // empty: DefaultTopic; one partition, compacted, made when missing
}

// Kafka is a Store on a compacted topic of one partition.
type Kafka struct {
	topic string
	opts  []kgo.Opt
	cl    *kgo.Client
}

// NewKafka touches no network: Load is the first to. Close it after use.
func NewKafka(cfg KafkaConfig) (*Kafka, error) {
	k := &Kafka{topic: cmp.Or(cfg.Topic, DefaultTopic)}
	k.opts = []kgo.Opt{
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.ClientID("oktawatch-registry"),
		kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.RetryTimeout(10 * time.Second),
	}
	cl, err := kgo.NewClient(append(slices.Clone(k.opts),
		kgo.DefaultProduceTopic(k.topic),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordDeliveryTimeout(10*time.Second),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(maxMessage),
	)...)
	if err != nil {
		return nil, fmt.Errorf("open the schema topic %s: %w", k.topic, err)
	}
	k.cl = cl
	return k, nil
}

// Close ends the connection to the broker.
func (k *Kafka) Close() { k.cl.Close() }

// maxMessage holds the largest schema the handler takes, JSON-quoted.
const maxMessage = 4 << 20

// Save writes one entry and waits until every in-sync replica has it.
func (k *Kafka) Save(ctx context.Context, key string, value []byte) error {
	r := &kgo.Record{Topic: k.topic, Partition: 0, Key: []byte(key), Value: value}
	if err := k.cl.ProduceSync(ctx, r).FirstErr(); err != nil {
		return fmt.Errorf("write %s to the schema topic %s: %w", key, k.topic, err)
	}
	return nil
}

// Load makes the topic where it is missing and reads it whole. It first writes a mark of its own and reads until it
// meets it: offsets alone cannot tell a slow broker from a tail that compaction took.
func (k *Kafka) Load(ctx context.Context, apply func(key string, value []byte) error) error {
	if err := k.create(ctx); err != nil {
		return fmt.Errorf("make the schema topic %s: %w", k.topic, err)
	}
	mark := &kgo.Record{Topic: k.topic, Partition: 0, Key: []byte(markKey), Value: []byte("{}")}
	if err := k.cl.ProduceSync(ctx, mark).FirstErr(); err != nil {
		return fmt.Errorf("write to the schema topic %s: %w", k.topic, err)
	}
	if err := k.read(ctx, mark.Offset, apply); err != nil {
		return fmt.Errorf("read the schema topic %s: %w", k.topic, err)
	}
	return nil
}

const markKey = `{"keytype":"NOOP","magic":0}`

func (k *Kafka) read(ctx context.Context, last int64, apply func(key string, value []byte) error) error {
	cl, err := kgo.NewClient(append(slices.Clone(k.opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{k.topic: {0: kgo.NewOffset().AtStart()}}),
		kgo.FetchMaxWait(100*time.Millisecond),
	)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return err
		}
		for it := fs.RecordIter(); !it.Done(); {
			r := it.Next()
			if r.Offset > last {
				return nil
			}
			if k := string(r.Key); k != markKey {
				if err := apply(k, r.Value); err != nil {
					return fmt.Errorf("offset %d: %w", r.Offset, err)
				}
			}
			if r.Offset == last {
				return nil
			}
		}
	}
}

func (k *Kafka) create(ctx context.Context) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 10000
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = k.topic, 1, -1
	for _, kv := range [][2]string{{"cleanup.policy", "compact"}, {"max.message.bytes", fmt.Sprint(maxMessage)}} {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = kv[0], new(kv[1])
		t.Configs = append(t.Configs, c)
	}
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, k.cl)
	if err != nil {
		return err
	}
	for _, t := range resp.Topics {
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return err
		}
	}
	return nil
}
