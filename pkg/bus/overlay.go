package bus

import "iter"

// Overlay is a map with a batch's writes laid over it. Get sees them; Commit joins them to the map; Abort throws them away. The zero
// value is ready. It is what a Task's memory is made of, so that a transaction that did not happen leaves no trace.
type Overlay[K comparable, V any] struct {
	base map[K]V
	over map[K]change[V]
}

type change[V any] struct {
	value   V
	deleted bool
}

// Get returns the value of a key, written in this batch or before.
func (o *Overlay[K, V]) Get(k K) (V, bool) {
	if c, ok := o.over[k]; ok {
		return c.value, !c.deleted
	}
	v, ok := o.base[k]
	return v, ok
}

// Put writes a value. A value that holds pointers is replaced, never changed in place: the map below may still need it.
func (o *Overlay[K, V]) Put(k K, v V) {
	if o.over == nil {
		o.over = map[K]change[V]{}
	}
	o.over[k] = change[V]{value: v}
}

// Delete removes a key.
func (o *Overlay[K, V]) Delete(k K) {
	if o.over == nil {
		o.over = map[K]change[V]{}
	}
	o.over[k] = change[V]{deleted: true}
}

// Load writes below the overlay: for Restore.
func (o *Overlay[K, V]) Load(k K, v V) {
	if o.base == nil {
		o.base = map[K]V{}
	}
	o.base[k] = v
}

// Unload deletes below the overlay: for Restore.
func (o *Overlay[K, V]) Unload(k K) { delete(o.base, k) }

// Commit joins the batch's writes to the map.
func (o *Overlay[K, V]) Commit() {
	if len(o.over) == 0 {
		return
	}
	if o.base == nil {
		o.base = make(map[K]V, len(o.over))
	}
	for k, c := range o.over {
		if c.deleted {
			delete(o.base, k)
		} else {
			o.base[k] = c.value
		}
	}
	o.Abort()
}

// Abort throws the batch's writes away.
func (o *Overlay[K, V]) Abort() {
	if len(o.over) > 4096 {
		o.over = nil // a map keeps the size it once had
		return
	}
	clear(o.over)
}

// Len counts the keys as Get sees them.
func (o *Overlay[K, V]) Len() int {
	n := len(o.base)
	for k, c := range o.over {
		_, below := o.base[k]
		switch {
		case c.deleted && below:
			n--
		case !c.deleted && !below:
			n++
		}
	}
	return n
}

// All goes over keys and values as Get sees them, in no order. Put and Delete of other keys are allowed while it runs.
func (o *Overlay[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k, c := range o.over {
			if !c.deleted && !yield(k, c.value) {
				return
			}
		}
		for k, v := range o.base {
			if _, ok := o.over[k]; !ok && !yield(k, v) {
				return
			}
		}
	}
}
