// Package hook lets the bus's own tests stop a stage at a named step, or cut it off from its broker as SIGKILL would. Nothing but
// pkg/bus and its tests can import it, and a stage without hooks in its context pays one map look-up.
package hook

import (
	"context"
	"net"
)

// The steps of a transaction and of a restore, in their order.
const (
	Processed       = "processed"         // the stage has run, nothing is written
	Produced        = "produced"          // the records stand, uncommitted
	OffsetsSent     = "offsets sent"      // the offsets are in the transaction
	Committed       = "committed"         // the broker has answered the commit, the memory is not told
	OffsetsFetched  = "offsets fetched"   // restore: the committed offset is known
	EndFetched      = "end fetched"       // restore: the changelog's end is known
	BeforeTickWrite = "before tick write" // a Tick has run, nothing is written
)

// Hooks are what a test does to a stage.
type Hooks struct {
	// At is called at each step; an error makes the step fail. Nil: nothing.
	At func(ctx context.Context, step string, partition int32) error
	// Dial replaces the network. Nil: the real one.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Killed, once closed, ends the stage without any goodbye.
	Killed <-chan struct{}
}

type key struct{}

// With returns a context that carries the hooks.
func With(ctx context.Context, h *Hooks) context.Context { return context.WithValue(ctx, key{}, h) }

// From returns the context's hooks; without any, those that do nothing.
func From(ctx context.Context) *Hooks {
	if h, ok := ctx.Value(key{}).(*Hooks); ok {
		return h
	}
	return &none
}

var none Hooks

// Step calls At.
func (h *Hooks) Step(ctx context.Context, step string, partition int32) error {
	if h.At == nil {
		return nil
	}
	return h.At(ctx, step, partition)
}
