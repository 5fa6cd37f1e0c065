package normalize

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"reflect"
	"slices"
	"strings"

	"github.com/oktawatch/oktawatch/pkg/record"
)

// identityOf is a hash of what, beside the uuid, makes two events the same: published and eventType.
func identityOf(ev *record.SystemLog) uint64 {
	var buf [128]byte
	b := binary.BigEndian.AppendUint64(buf[:0], 0)
	if ev.Published != nil {
		b = binary.BigEndian.AppendUint64(buf[:0], uint64(ev.Published.UnixMilli()))
	}
	sum := sha256.Sum256(append(b, ev.EventType...))
	return binary.BigEndian.Uint64(sum[:])
}

// The parts of an event that a partial copy may leave open, one bit each: what differs in one that both copies carry is
// told. insertionTimestamp is the hook's alone and none of them.
const (
	partTexts uint16 = 1 << iota
	partOutcome
	partActor
	partTarget
	partClient
	partRequest
	partTransaction
	partDebug
	partAuthentication
	partSecurity
	partDevice
)

// only gives the parts of an event that are asked for, and nothing else of it.
func only(ev *record.SystemLog, parts uint16) *record.SystemLog {
	o := new(record.SystemLog)
	if parts&partTexts != 0 {
		o.Severity, o.DisplayMessage, o.Version, o.LegacyEventType = ev.Severity, ev.DisplayMessage, ev.Version, ev.LegacyEventType
	}
	if parts&partOutcome != 0 {
		o.Outcome = ev.Outcome
	}
	if parts&partActor != 0 {
		o.Actor = ev.Actor
	}
	if parts&partTarget != 0 {
		o.Target = slices.Clone(ev.Target) // their order means nothing
		slices.SortFunc(o.Target, func(a, b record.Target) int {
			return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.ID, b.ID), cmp.Compare(a.AlternateID, b.AlternateID), cmp.Compare(a.DisplayName, b.DisplayName))
		})
	}
	if parts&partClient != 0 {
		o.Client = ev.Client
	}
	if parts&partRequest != 0 {
		o.Request = ev.Request
	}
	if parts&partTransaction != 0 {
		o.Transaction = ev.Transaction
	}
	if parts&partDebug != 0 {
		o.DebugContext = ev.DebugContext
	}
	if parts&partAuthentication != 0 {
		o.AuthenticationContext = ev.AuthenticationContext
	}
	if parts&partSecurity != 0 {
		o.SecurityContext = ev.SecurityContext
	}
	if parts&partDevice != 0 {
		o.Device = ev.Device
	}
	return o
}

// carried says which parts of an event hold anything: an object whose members are all null carries nothing.
func carried(ev *record.SystemLog) uint16 {
	var parts uint16
	for _, s := range [...]struct {
		part    uint16
		section any
	}{
		{partOutcome, ev.Outcome},
		{partActor, ev.Actor},
		{partClient, ev.Client},
		{partRequest, ev.Request},
		{partTransaction, ev.Transaction},
		{partDebug, ev.DebugContext},
		{partAuthentication, ev.AuthenticationContext},
		{partSecurity, ev.SecurityContext},
		{partDevice, ev.Device},
	} {
		if v := reflect.ValueOf(s.section); !v.IsNil() && holds(v.Elem()) {
			parts |= s.part
		}
	}
	if ev.Severity != "" || ev.DisplayMessage != "" || ev.Version != "" || ev.LegacyEventType != "" {
		parts |= partTexts
	}
	if len(ev.Target) > 0 {
		parts |= partTarget
	}
	return parts
}

// holds says whether anything is written for a section beside its being there: an object inside it counts as something.
func holds(section reflect.Value) bool {
	for _, field := range section.Fields() {
		switch f := field; f.Kind() {
		case reflect.Slice, reflect.Map:
			if f.Len() > 0 {
				return true
			}
		default:
			if !f.IsZero() {
				return true
			}
		}
	}
	return false
}

// contentOf is a hash of some parts of an event. buf is scratch and comes back, grown.
func contentOf(ev *record.SystemLog, parts uint16, buf []byte) (uint64, []byte) {
	b, err := only(ev, parts).AppendAvro(buf[:0])
	if err != nil {
		return 0, buf
	}
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:]), b
}

// keyFor is the key of an event's record: its actor, or, where that says nothing, the first thing that does, so that the
// system's own events do not all lie in one partition.
func keyFor(ev *record.SystemLog) string {
	org := ev.Derived.Org + "/"
	alternate := ""
	if a := ev.Actor; a != nil {
		if a.Type != systemPrincipal && says(a.ID) {
			return org + a.ID
		}
		if alternate = a.AlternateID; strings.EqualFold(alternate, systemLogin) {
			alternate = ""
		}
	}
	if says(alternate) {
		return org + alternate
	}
	if ev.Client != nil && says(ev.Client.IPAddress) {
		return org + ev.Client.IPAddress
	}
	return org + ev.UUID
}

const (
	systemPrincipal = "SystemPrincipal"
	systemLogin     = "system@okta.com" // of every event of every system principal
)

// says is the rule language's known(): a text that stands for something.
func says(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "-", "null", "none", "unknown":
		return false
	}
	return true
}
