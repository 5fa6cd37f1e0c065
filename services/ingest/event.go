package ingest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// The ways an event comes.
const (
	wayHook   = "hook"
	wayPoller = "poller"
)

// raw is an event ready to be written.
type raw struct {
	key       string
	rec       *record.RawEvent
	published time.Time // zero: not readable
}

// forward makes a RawEvent of an event's bytes. One without a usable uuid travels under its hash: normalize will say what it is.
func forward(org, source, way, delivery string, partial bool, event json.RawMessage, received time.Time, most int) raw {
	h := headOf(event)
	sum := sha256.Sum256(event)
	sha := hex.EncodeToString(sum[:])
	r := &record.RawEvent{
		Org: org, SourceID: source, Source: way, Lane: "live", Partial: partial, ReceivedAt: received.UTC().Truncate(time.Millisecond),
		DeliveryID: delivery, UUID: h.uuid, Size: int64(len(event)), SHA256: sha, JSON: event,
	}
	if len(event) > most {
		r.Oversize, r.JSON = true, nil
	}
	key := org + "/" + h.uuid
	if h.uuid == "" {
		key = org + "/" + sha
	}
	return raw{key: key, rec: r, published: h.published}
}

// eventTime is the time that counts for the clock: published, unless it is missing or lies ahead of us.
func (r raw) eventTime() time.Time {
	if r.published.IsZero() || r.published.After(r.rec.ReceivedAt.Add(10*time.Minute)) {
		return r.rec.ReceivedAt
	}
	return r.published
}

const mostEvent = topics.MaxEvent
