package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/oktawatch/oktawatch/pkg/bus"
)

// After a crash kfake takes the transactions that were open for aborted, in memory alone: it writes no marker. Two things
// follow, both seen. A reader that meets such a batch and a later, committed one of the same producer in one fetch drops
// both, since only a marker ends an abort. And after the next crash the later commit's marker makes the aborted batch look
// committed. So what is open on disk is found before the broker starts, and ended by real markers before anybody writes.

// Layout of a record batch, and its attributes.
const (
	batchHeader   = 61
	atLength      = 8
	atAttributes  = 21
	atProducerID  = 43
	atEpoch       = 51
	transactional = 0x10
	control       = 0x20
)

// openOnDisk lists the transactions that the logs below dir show begun and not ended. The end of a log that was torn does
// not count: the broker cuts it off.
func openOnDisk(dir string) ([]bus.OpenTransaction, error) {
	parts, err := os.ReadDir(filepath.Join(dir, "partitions"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for open transactions: %w", err)
	}
	var out []bus.OpenTransaction
	for _, p := range parts {
		dash := strings.LastIndexByte(p.Name(), '-')
		if dash < 0 || !p.IsDir() {
			continue
		}
		topic, err := url.PathUnescape(p.Name()[:dash])
		n, err2 := strconv.ParseInt(p.Name()[dash+1:], 10, 32)
		if err != nil || err2 != nil {
			continue
		}
		open, err := openIn(filepath.Join(dir, "partitions", p.Name()))
		if err != nil {
			return nil, fmt.Errorf("look for open transactions in %s/%d: %w", topic, n, err)
		}
		for id, epoch := range open {
			out = append(out, bus.OpenTransaction{Topic: topic, Partition: int32(n), ProducerID: id, Epoch: epoch})
		}
	}
	return out, nil
}

// endOpen writes the markers.
func endOpen(ctx context.Context, broker string, open []bus.OpenTransaction) error {
	if len(open) == 0 {
		return nil
	}
	b, err := bus.New(bus.Config{Brokers: []string{broker}}, bus.Deps{InstanceID: "embedded"})
	if err != nil {
		return err
	}
	defer b.Close()
	return b.AbortOpen(ctx, open)
}

// openIn reads one partition's segments: producer id to epoch.
func openIn(dir string) (map[int64]int16, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.dat"))
	if err != nil {
		return nil, err
	}
	base := func(path string) int64 {
		n, _ := strconv.ParseInt(strings.TrimSuffix(filepath.Base(path), ".dat"), 10, 64)
		return n
	}
	slices.SortFunc(files, func(a, b string) int { return int(base(a) - base(b)) })
	open := map[int64]int16{}
	for _, path := range files {
		if err := scanSegment(path, open); err != nil {
			return nil, err
		}
	}
	return open, nil
}

func scanSegment(path string, open map[int64]int16) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var h [batchHeader]byte
	for at := int64(0); at+batchHeader <= st.Size(); {
		if _, err := f.ReadAt(h[:], at); err != nil {
			return err
		}
		size := int64(int32(binary.BigEndian.Uint32(h[atLength:]))) + atLength + 4
		if size < batchHeader || at+size > st.Size() {
			return nil // torn
		}
		attributes := binary.BigEndian.Uint16(h[atAttributes:])
		id, epoch := int64(binary.BigEndian.Uint64(h[atProducerID:])), int16(binary.BigEndian.Uint16(h[atEpoch:]))
		switch {
		case attributes&control != 0:
			delete(open, id)
		case attributes&transactional != 0:
			open[id] = epoch
		}
		at += size
	}
	return nil
}
