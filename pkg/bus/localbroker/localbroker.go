// Package localbroker opens kfake as a broker in this process, for embedded mode and for tests, and keeps from it what it does wrong
// by Kafka's rules and can be told not to do. Every kfake of the project is opened here, so that tests meet the broker that
// `oktawatch up` runs. Where it listens, where its data lies and when that is compacted is the caller's.
package localbroker

import (
	"math"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Open starts a broker with these options. Close of the cluster ends it.
func Open(opts ...kfake.Opt) (*kfake.Cluster, error) {
	c, err := kfake.NewCluster(append([]kfake.Opt{
		// Its own compaction takes records of open transactions for committed ones and has no second copy while it rewrites.
		kfake.BrokerConfigs(map[string]string{"log.cleaner.backoff.ms": "315360000000"}),
	}, opts...)...)
	if err != nil {
		return nil, err
	}
	boundFetches(c, renewAfter)
	return c, nil
}

// renewAfter is how many requests one control function sees: kfake remembers every connection of a control for as long as it is there.
const renewAfter = 10_000

// boundFetches has every fetch bounded by its partitions alone. When an answer reaches the limit of the whole request, kfake leaves
// out the partition's list of aborted transactions, and a reader of committed records takes what was aborted for committed.
func boundFetches(c *kfake.Cluster, renewAfter int) {
	seen := 0 // controls run one at a time
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		if seen++; seen == renewAfter {
			c.DropControl()
			boundFetches(c, renewAfter)
		}
		if r, ok := req.(*kmsg.FetchRequest); ok {
			bound(r)
		}
		return nil, nil, false
	})
}

// small is what each partition may fill of an answer, however many there are; a client's usual limit for one.
const small = 1 << 20

// bound shares the request's limit out among its partitions. Each keeps at least small, so that an answer can be larger than asked for,
// as Kafka's may where a batch is.
func bound(r *kmsg.FetchRequest) {
	n := 0
	for _, t := range r.Topics {
		n += len(t.Partitions)
	}
	limit := max(r.MaxBytes/int32(max(n, 1)), min(r.MaxBytes, small))
	for i := range r.Topics {
		for j := range r.Topics[i].Partitions {
			p := &r.Topics[i].Partitions[j]
			p.PartitionMaxBytes = min(p.PartitionMaxBytes, limit)
		}
	}
	r.MaxBytes = math.MaxInt32
}
