package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oktawatch/oktawatch/pkg/registry"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// maintain does what a broker does in the background. kfake's own ticker does not start after a restart, and its
// compaction has two holes that this closes: it takes records of open transactions for committed ones (an abort then
// loses the key), and it deletes a partition's files before it writes the new ones (a kill between loses the partition).
func (e *Embedded) maintain(ctx context.Context) {
	tick := time.NewTicker(e.cfg.Maintenance)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.cluster.ApplyRetention()
		e.trim()
		if e.compactable()-e.compacted >= e.cfg.CompactAfter {
			e.compact(ctx)
		}
		if err := e.Check(); err != nil {
			e.log.Error("embedded broker is short of disk", "error", err.Error())
		}
	}
}

// partition names one partition and what the broker knows of it.
type partition struct {
	topic string
	*kfake.PartitionInfo
}

func (e *Embedded) partitions(want func(topics.Topic) bool) []partition {
	var ps []partition
	for _, t := range topics.All() {
		if !want(t) {
			continue
		}
		name := t.Full(e.cfg.Prefix)
		for _, p := range e.cluster.PartitionInfos(name) {
			ps = append(ps, partition{name, p})
		}
	}
	return ps
}

func compacted(t topics.Topic) bool { return t.Cleanup != topics.Delete }

// trimmable topics give way when the directory is full: what is consumed from a place, and is no stage's memory.
func trimmable(t topics.Topic) bool { return t.Cleanup == topics.Delete && t.Record != "state" }

// trim cuts the largest partitions down to one common size so that all of them fit into MaxBytes.
func (e *Embedded) trim() {
	ps := e.partitions(trimmable)
	sizes := make([]int64, len(ps))
	for i, p := range ps {
		sizes[i] = p.NumBytes
	}
	limit := level(sizes, e.cfg.MaxBytes)
	var cut int64
	for _, p := range ps {
		if p.NumBytes <= limit {
			continue
		}
		drop := float64(p.NumBytes-limit) / float64(p.NumBytes)
		upTo := p.LogStartOffset + int64(drop*float64(p.LastStableOffset-p.LogStartOffset))
		if err := e.cluster.DeleteRecords(p.topic, p.Partition, upTo); err != nil {
			e.log.Error("cannot make room", "topic", p.topic, "partition", p.Partition, "error", err.Error())
			continue
		}
		cut += p.NumBytes - limit
	}
	if cut > 0 {
		e.log.Warn("data directory is full: the oldest records of the largest topics are gone", "max_bytes", e.cfg.MaxBytes, "cut_bytes", cut)
	}
}

// level finds the greatest size that, put on each of sizes as a lid, makes their sum fit into room.
func level(sizes []int64, room int64) int64 {
	sizes = slices.Sorted(slices.Values(sizes))
	for i, s := range sizes {
		n := int64(len(sizes) - i)
		if s*n > room {
			return max(room, 0) / n
		}
		room -= s
	}
	if len(sizes) == 0 {
		return room
	}
	return sizes[len(sizes)-1]
}

// compactable is how many bytes lie in compacted topics.
func (e *Embedded) compactable() int64 {
	var n int64
	for _, p := range e.partitions(compacted) {
		n += p.NumBytes
	}
	for _, p := range e.cluster.PartitionInfos(e.cfg.Prefix + registry.DefaultTopic) {
		n += p.NumBytes
	}
	return n
}

// compact waits for a moment in which no transaction is open on a compacted topic, and compacts in it. The broker runs a
// control function before the next request and serves nobody until it returns, so nothing comes between.
func (e *Embedded) compact(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Maintenance/2)
	defer cancel()
	done := make(chan struct{})
	requests := 0
	e.cluster.ControlKey(-1, func(kmsg.Request) (kmsg.Response, error, bool) {
		if ctx.Err() != nil {
			e.cluster.DropControl()
			return nil, nil, false
		}
		if requests++; requests%8 != 1 {
			return nil, nil, false // looking costs a little, so not at every request
		}
		for _, p := range e.partitions(compacted) {
			if p.LastStableOffset != p.HighWatermark {
				return nil, nil, false
			}
		}
		e.cluster.DropControl()
		if err := e.rewrite(); err != nil {
			e.log.Error("compaction", "error", err.Error())
			e.fail(err)
		}
		close(done)
		return nil, nil, false
	})
	select {
	case <-ctx.Done(): // the next round tries again
	case <-done:
		e.compacted = e.compactable()
		e.log.Debug("compacted", "bytes", e.compacted)
	}
}

// rewrite compacts with a second copy of every file at hand. An error means that the copy is needed: the process must end
// and the next start puts it back.
func (e *Embedded) rewrite() error {
	if err := copyAside(e.cfg.DataDir); err != nil {
		// Nothing is lost yet, and without the copy nothing is risked.
		e.log.Warn("compaction is put off", "error", err.Error())
		return forget(e.cfg.DataDir)
	}
	e.mu.Lock()
	before := e.troubleAt
	e.mu.Unlock()
	e.cluster.Compact()
	e.mu.Lock()
	after, trouble := e.troubleAt, e.trouble
	e.mu.Unlock()
	if after != before {
		return fmt.Errorf("compaction was cut short and is undone at the next start: %w", trouble)
	}
	return forget(e.cfg.DataDir)
}

func asideDir(dataDir string) string { return filepath.Join(dataDir, "kafka.compacting") }

// asideDone lies in the directory once the copy is whole.
const asideDone = "complete"

// forget drops what was set aside, its mark first: half a copy must never be taken for a whole one.
func forget(dataDir string) error {
	aside := asideDir(dataDir)
	if err := os.Remove(filepath.Join(aside, asideDone)); err == nil {
		if err := syncDir(aside); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(aside)
}

// copyAside links every partition's log files into a directory of their own. Compaction removes files and makes new ones,
// so the links keep the old content.
func copyAside(dataDir string) error {
	aside := asideDir(dataDir)
	if err := forget(dataDir); err != nil {
		return err
	}
	src := brokerDir(dataDir)
	err := filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !logFile(path) {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		to := filepath.Join(aside, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		if err := os.Link(path, to); err != nil {
			return copyFile(path, to)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(aside, 0o700), os.WriteFile(filepath.Join(aside, asideDone), nil, 0o600), syncDir(aside))
}

func logFile(path string) bool {
	return strings.HasSuffix(path, ".dat") || strings.HasSuffix(path, ".idx")
}

// restore undoes a compaction that was cut short: in each partition that was set aside, the files set aside replace those
// that are there. It returns how many partitions it put back.
func restore(dataDir string) (int, error) {
	aside, dst := asideDir(dataDir), brokerDir(dataDir)
	if _, err := os.Lstat(filepath.Join(aside, asideDone)); err != nil {
		return 0, forget(dataDir) // the copy was cut short: compaction had not begun
	}
	parts := map[string][]string{}
	err := filepath.WalkDir(aside, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !logFile(path) {
			return err
		}
		rel, err := filepath.Rel(aside, path)
		if err != nil {
			return err
		}
		parts[filepath.Dir(rel)] = append(parts[filepath.Dir(rel)], filepath.Base(rel))
		return nil
	})
	for part, files := range parts {
		if err != nil {
			break
		}
		to := filepath.Join(dst, part)
		there, globErr := filepath.Glob(filepath.Join(to, "*"))
		err = errors.Join(globErr, os.MkdirAll(to, 0o755))
		for _, f := range there {
			if logFile(f) || filepath.Base(f) == "snapshot.json" { // the latter describes the files that go
				err = errors.Join(err, os.Remove(f))
			}
		}
		for _, f := range files {
			// A copy, not a move: should this be killed too, the next start does it again.
			if linkErr := os.Link(filepath.Join(aside, part, f), filepath.Join(to, f)); linkErr != nil {
				err = errors.Join(err, copyFile(filepath.Join(aside, part, f), filepath.Join(to, f)))
			}
		}
	}
	if err != nil {
		return 0, fmt.Errorf("undo the compaction that was cut short: %w%s", err, hint(err))
	}
	return len(parts), forget(dataDir)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}
