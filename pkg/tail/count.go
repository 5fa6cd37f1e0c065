package tail

import (
	"context"
	"errors"
	"fmt"
)

// ID is what makes a record unique in its topic: the uuid and copy of an event, the id and update of a detection.
type ID struct {
	Lane string // empty where the record has none
	ID   string
	N    int64 // copy or update; 0 where the record has none
}

// ErrNoID says that a record has no identity of its own: its topic is no log of events or detections.
var ErrNoID = errors.New("record has neither uuid nor id")

// ID reads the record's identity straight from the bytes, by the writer's schema, without decoding the rest. A tombstone
// and a dead letter have none.
func (rec Record) ID(ctx context.Context) (ID, error) {
	if rec.Value == nil {
		return ID{}, ErrNoID
	}
	s, payload, err := rec.schema(ctx)
	if err != nil {
		return ID{}, err
	}
	if s.ids == nil {
		return ID{}, ErrNoID
	}
	id, err := s.ids.read(payload)
	if err != nil {
		return ID{}, fmt.Errorf("%s partition %d offset %d: %w", rec.Topic, rec.Partition, rec.Offset, err)
	}
	return id, nil
}

// Count is what Reader.Count found.
type Count struct {
	Records    int64 // committed records, tombstones too
	Bytes      int64 // of keys and values
	Tombstones int64
	// The rest only where Count was asked for identities.
	Distinct   int64 // different ids, whatever their copy or update
	Repeated   int64 // records whose identity came before
	Unreadable int64 // records without a readable identity
}

// Count reads a topic and counts. With each, it also reads every record's identity, hands it over, and counts distinct and
// repeated ones; it then remembers them all, some 100 bytes a record. Without, it decodes nothing.
func (r *Reader) Count(ctx context.Context, topic string, opts Options, each func(Record, ID)) (Count, error) {
	var c Count
	seen := map[ID]struct{}{}
	ids := map[ID]struct{}{}
	err := r.Read(ctx, topic, opts, func(rec Record) error {
		c.Records++
		c.Bytes += int64(len(rec.Key) + len(rec.Value))
		if rec.Value == nil {
			c.Tombstones++
			return nil
		}
		if each == nil {
			return nil
		}
		id, err := rec.ID(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			c.Unreadable++
			return nil
		}
		if _, ok := seen[id]; ok {
			c.Repeated++
		}
		seen[id] = struct{}{}
		ids[ID{Lane: id.Lane, ID: id.ID}] = struct{}{}
		each(rec, id)
		return nil
	})
	c.Distinct = int64(len(ids))
	return c, err
}
