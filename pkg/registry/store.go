package registry

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// Store keeps the registry's entries: the newest value of each key.
type Store interface {
	// Load hands over every entry kept, each key's newest value last.
	Load(ctx context.Context, apply func(key string, value []byte) error) error
	// Save keeps value under key. It is durable when Save returns nil; after an error it may or may not be kept.
	Save(ctx context.Context, key string, value []byte) error
}

// Memory is a Store that ends with the process.
func Memory() Store { return &memory{entries: map[string][]byte{}} }

type memory struct {
	mu      sync.Mutex
	entries map[string][]byte
}

func (m *memory) Load(_ context.Context, apply func(string, []byte) error) error {
	m.mu.Lock()
	entries := maps.Clone(m.entries)
	m.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(entries)) {
		if err := apply(k, entries[k]); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Save(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[key] = slices.Clone(value)
	return nil
}
