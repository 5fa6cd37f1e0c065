package bus

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// together is the group's balancer: the cooperative-sticky plan of the first topic, and partition n of every other topic goes to
// whoever has partition n of the first. The plan for several topics at once would part them.
type together struct {
	kgo.GroupBalancer
	first string
	rest  []string
}

func newTogether(first string, rest ...string) *together {
	return &together{GroupBalancer: kgo.CooperativeStickyBalancer(), first: first, rest: rest}
}

func (*together) ProtocolName() string { return "oktawatch-together" }

// MemberBalancer shows the sticky plan the first topic alone.
func (t *together) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	wants := make(map[string][]string, len(members)) // member: topics
	reduced := slices.Clone(members)
	for i := range reduced {
		var meta kmsg.ConsumerMemberMetadata
		meta.Default()
		if err := meta.ReadFrom(reduced[i].ProtocolMetadata); err != nil {
			return nil, nil, fmt.Errorf("read metadata of member %s: %w", reduced[i].MemberID, err)
		}
		wants[reduced[i].MemberID] = meta.Topics
		meta.Topics = []string{t.first}
		meta.OwnedPartitions = slices.DeleteFunc(meta.OwnedPartitions, func(o kmsg.ConsumerMemberMetadataOwnedPartition) bool { return o.Topic != t.first })
		var sticky kmsg.StickyMemberMetadata
		sticky.Default()
		if err := sticky.ReadFrom(meta.UserData); err == nil {
			sticky.CurrentAssignment = slices.DeleteFunc(sticky.CurrentAssignment, func(a kmsg.StickyMemberMetadataCurrentAssignment) bool { return a.Topic != t.first })
			meta.UserData = sticky.AppendTo(nil)
		}
		reduced[i].ProtocolMetadata = meta.AppendTo(nil)
	}
	inner, names, err := t.GroupBalancer.MemberBalancer(reduced)
	if err != nil {
		return nil, nil, err
	}
	for _, topic := range t.rest {
		names[topic] = struct{}{} // so that the client knows their partition counts
	}
	return &togetherMembers{GroupMemberBalancer: inner, t: t, wants: wants}, names, nil
}

type togetherMembers struct {
	kgo.GroupMemberBalancer
	t     *together
	wants map[string][]string
}

// BalanceOrError plans the first topic and lets the others follow.
func (m *togetherMembers) BalanceOrError(counts map[string]int32) (kgo.IntoSyncAssignment, error) {
	inner := m.GroupMemberBalancer.(kgo.GroupMemberBalancerOrError) //nolint:forcetypeassert // the sticky balancer's own type
	into, err := inner.BalanceOrError(map[string]int32{m.t.first: counts[m.t.first]})
	if err != nil {
		return nil, err
	}
	plan, ok := into.(*kgo.BalancePlan)
	if !ok {
		return nil, fmt.Errorf("balance %s: unexpected plan %T", m.t.first, into)
	}
	for member, byTopic := range plan.AsMemberIDMap() {
		for _, topic := range m.t.rest {
			if !slices.Contains(m.wants[member], topic) {
				continue
			}
			for _, n := range byTopic[m.t.first] {
				if n < counts[topic] {
					byTopic[topic] = append(byTopic[topic], n)
				}
			}
		}
	}
	return plan, nil
}

// Balance is never called: BalanceOrError goes before it.
func (m *togetherMembers) Balance(counts map[string]int32) kgo.IntoSyncAssignment {
	into, err := m.BalanceOrError(counts)
	if err != nil {
		return nil
	}
	return into
}
