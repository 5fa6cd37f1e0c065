package detect

import (
	"context"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/record"
)

// payload is a System Log record that is kept as bytes: the view decodes what rules ask for.
type payload struct{ b []byte }

// SchemaName implements record.Record.
func (p *payload) SchemaName() string { return "system_log" }

// AppendAvro implements record.Record.
func (p *payload) AppendAvro(dst []byte) ([]byte, error) { return append(dst, p.b...), nil }

// DecodeAvro implements record.Record.
func (p *payload) DecodeAvro(b []byte) error {
	p.b = b
	return nil
}

// open takes the frame off a message. A record of a writer with another schema is decoded and written anew in ours.
func open(ctx context.Context, b *bus.Bus, m bus.Message) ([]byte, error) {
	p, err := bus.Decode[payload](ctx, b, m)
	if err == nil && p.b != nil {
		return p.b, nil
	}
	log, err := bus.Decode[record.SystemLog](ctx, b, m)
	if err != nil {
		return nil, err
	}
	return log.AppendAvro(nil)
}
