package bus

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/oktawatch/oktawatch/pkg/topics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConfig(t *testing.T) {
	ok := []string{"127.0.0.1:9092"}
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"zero but brokers":     {Config{Brokers: ok}, ""},
		"no brokers":           {Config{}, "kafka.brokers is empty"},
		"no port":              {Config{Brokers: []string{"kafka"}}, `"kafka" is no host:port`},
		"mechanism":            {Config{Brokers: ok, SASL: SASL{Mechanism: "GSSAPI"}}, `"GSSAPI" is not known`},
		"no mechanism":         {Config{Brokers: ok, SASL: SASL{Username: "u"}}, "without a mechanism"},
		"no password":          {Config{Brokers: ok, SASL: SASL{Mechanism: "PLAIN", Username: "u"}}, "needs username and password_file"},
		"no token":             {Config{Brokers: ok, SASL: SASL{Mechanism: "OAUTHBEARER"}}, "needs token_file"},
		"half a certificate":   {Config{Brokers: ok, TLS: TLS{CertFile: "c"}}, "cert_file and key_file go together"},
		"complete and lowcase": {Config{Brokers: ok, SASL: SASL{Mechanism: "scram-sha-512", Username: "u", PasswordFile: "f"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := New(tc.cfg, Deps{InstanceID: "x"})
			switch {
			case tc.want == "" && err != nil:
				t.Fatal(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Fatalf("got %v, want %q", err, tc.want)
			case err == nil:
				b.Close()
			}
		})
	}
}

func TestFilesAreReadLate(t *testing.T) {
	b, err := New(Config{Brokers: []string{"127.0.0.1:1"}, TLS: TLS{CAFile: "/does/not/exist"}}, Deps{InstanceID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "kafka.tls.ca_file") {
		t.Errorf("ping: %v", err)
	}
}

// TestBalancer lets members come and go at random: after each round of the cooperative protocol, partition n of every topic is where
// partition n of the first is, no partition has two owners, and in the end each has one.
func TestBalancer(t *testing.T) {
	const first, second, third = "a", "b", "c"
	rapid.Check(t, func(t *rapid.T) {
		parts := int32(rapid.IntRange(1, 13).Draw(t, "partitions"))
		counts := map[string]int32{first: parts, second: parts, third: parts}
		bal := newTogether(first, second, third)
		owned := map[string]map[string][]int32{}
		next := 0
		round := func(generation int32) bool {
			var members []kmsg.JoinGroupResponseMember
			for _, id := range slices.Sorted(maps.Keys(owned)) {
				m := kmsg.NewJoinGroupResponseMember()
				m.MemberID, m.InstanceID = id, &id
				m.ProtocolMetadata = bal.JoinGroupMetadata([]string{first, second, third}, owned[id], generation)
				members = append(members, m)
			}
			mb, names, err := bal.MemberBalancer(members)
			if err != nil {
				t.Fatal(err)
			}
			if len(names) != 3 {
				t.Fatalf("asks for the counts of %v", names)
			}
			into, err := mb.(kgo.GroupMemberBalancerOrError).BalanceOrError(counts)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]string{}
			settled := true
			for _, a := range into.IntoSyncAssignment() {
				got, err := bal.ParseSyncAssignment(a.MemberAssignment)
				if err != nil {
					t.Fatal(err)
				}
				for _, topic := range []string{second, third} {
					if !slices.Equal(got[first], got[topic]) {
						t.Fatalf("%s has %v of the first topic and %v of %s", a.MemberID, got[first], got[topic], topic)
					}
				}
				for _, n := range got[first] {
					key := fmt.Sprint(n)
					if seen[key] != "" {
						t.Fatalf("partition %d is at %s and %s", n, seen[key], a.MemberID)
					}
					seen[key] = a.MemberID
				}
				for _, n := range owned[a.MemberID][first] {
					settled = settled && slices.Contains(got[first], n)
				}
				// What another still owns must not be given away in the same round.
				for _, n := range got[first] {
					for other, has := range owned {
						if other != a.MemberID && slices.Contains(has[first], n) {
							t.Fatalf("partition %d goes from %s to %s without being given up first", n, other, a.MemberID)
						}
					}
				}
				owned[a.MemberID] = got
			}
			return settled && len(seen) == int(parts)
		}
		generation := int32(0)
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			if len(owned) > 1 && rapid.Bool().Draw(t, "leave") {
				ids := slices.Sorted(maps.Keys(owned))
				delete(owned, ids[rapid.IntRange(0, len(ids)-1).Draw(t, "who")])
			} else {
				owned[fmt.Sprintf("m%d", next)] = nil
				next++
			}
			done := false
			for range 5 {
				generation++
				if done = round(generation); done {
					break
				}
			}
			if !done {
				t.Fatalf("does not settle: %v", owned)
			}
		}
	})
}

func TestOverlay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var o Overlay[int, int]
		committed, pending := map[int]int{}, map[int]int{}
		check := func() {
			if o.Len() != len(pending) {
				t.Fatalf("len %d, want %d", o.Len(), len(pending))
			}
			if got := maps.Collect(o.All()); !maps.Equal(got, pending) {
				t.Fatalf("%v, want %v", got, pending)
			}
			for k := range 8 {
				got, ok := o.Get(k)
				want, wok := pending[k]
				if got != want || ok != wok {
					t.Fatalf("get %d: %d %v, want %d %v", k, got, ok, want, wok)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k, v := rapid.IntRange(0, 7).Draw(t, "k"), rapid.Int().Draw(t, "v")
				o.Put(k, v)
				pending[k] = v
			},
			"delete": func(t *rapid.T) {
				k := rapid.IntRange(0, 7).Draw(t, "k")
				o.Delete(k)
				delete(pending, k)
			},
			"commit": func(*rapid.T) {
				o.Commit()
				committed = maps.Clone(pending)
			},
			"abort": func(*rapid.T) {
				o.Abort()
				pending = maps.Clone(committed)
			},
			"": func(*rapid.T) { check() },
		})
	})
}

func TestDeadLetterFits(t *testing.T) {
	b, err := New(Config{Brokers: []string{"127.0.0.1:1"}}, Deps{InstanceID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	g := topics.NormalizeDedup
	m := Message{Topic: topics.Raw, Timestamp: time.UnixMilli(5), Key: []byte("k"), Value: make([]byte, topics.Raw.MaxBytes)}
	rec := b.deadLetter(g, m, strings.Repeat("c", 1000), errors.New(strings.Repeat("é\x00\xff", 5000)))
	if len(rec.Value) != len(m.Value) || sizeOf(rec) > topics.Raw.DLQ().MaxBytes {
		t.Errorf("a record of the topic's full size becomes a letter of %d bytes, %d of value", sizeOf(rec), len(rec.Value))
	}
	for _, h := range rec.Headers {
		if len(h.Value) > maxErrorText || !utf8.Valid(h.Value) || strings.ContainsAny(string(h.Value), "\x00\n") {
			t.Errorf("%s: %d bytes", h.Key, len(h.Value))
		}
	}
	m.Value = make([]byte, 2*topics.Raw.MaxBytes)
	if rec = b.deadLetter(g, m, "c", nil); rec.Value != nil || rec.Headers[len(rec.Headers)-1].Key != dlqCut {
		t.Error("a letter that cannot fit keeps its value")
	}
}

func TestPanicsArePermanent(t *testing.T) {
	for name, f := range map[string]func() error{
		"text":  func() error { panic("x") },
		"error": func() error { var m map[int]int; m[1] = 1; return nil }, //nolint:staticcheck // the panic is the point
	} {
		t.Run(name, func(t *testing.T) {
			err := safely(f)
			class, ok := isPermanent(err)
			var ce *classError
			if !ok || class != "panic" || !errors.As(err, &ce) || len(ce.stack) == 0 {
				t.Errorf("%v", err)
			}
		})
	}
	if err := Permanent(nil); err != nil {
		t.Errorf("Permanent(nil) is %v", err)
	}
	if _, ok := isPermanent(fmt.Errorf("wrapped: %w", Permanent(errors.New("x")))); !ok {
		t.Error("wrapping hides it")
	}
}
