package oktasim

const chunk = 4096

// deque is an append-only list that forgets from the front: elements keep their number, no growth ever copies the whole list.
type deque[T any] struct {
	chunks [][]T
	base   uint64 // number of chunks[0][0]
	first  uint64 // number of the oldest element kept
	next   uint64 // number the next element gets
}

func (d *deque[T]) len() int { return int(d.next - d.first) }

func (d *deque[T]) push(v T) uint64 {
	n := len(d.chunks)
	if n == 0 || len(d.chunks[n-1]) == chunk {
		size := chunk
		if n == 0 {
			size = 64 // small orgs stay small
		}
		d.chunks = append(d.chunks, make([]T, 0, size))
		n++
	}
	d.chunks[n-1] = append(d.chunks[n-1], v)
	d.next++
	return d.next - 1
}

// at returns the element with number i, or nil when it was forgotten or never was.
func (d *deque[T]) at(i uint64) *T {
	if i < d.first || i >= d.next {
		return nil
	}
	i -= d.base
	return &d.chunks[i/chunk][i%chunk]
}

// forget drops every element before number i.
func (d *deque[T]) forget(i uint64) {
	if i > d.next {
		i = d.next
	}
	if i <= d.first {
		return
	}
	d.first = i
	for len(d.chunks) > 1 && d.base+chunk <= d.first {
		d.chunks[0] = nil
		d.chunks = d.chunks[1:]
		d.base += chunk
	}
}
