package embedded

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/gofrs/flock"
)

// Run is what run.json says of the process that has the data directory.
type Run struct {
	PID       int               `json:"pid"`
	Kafka     string            `json:"kafka"`    // host:port
	Registry  string            `json:"registry"` // URL
	Started   time.Time         `json:"started"`
	Addresses map[string]string `json:"addresses,omitempty"` // of the rest: admin, hook, sim, …
}

// RunPath is where run.json lies.
func RunPath(dataDir string) string { return filepath.Join(dataDir, "run.json") }

// ReadRun tells where the process that has the data directory listens. The error wraps os.ErrNotExist when there is none,
// also when the file is left over from one that was killed.
func ReadRun(dataDir string) (Run, error) {
	b, err := os.ReadFile(RunPath(dataDir))
	if err != nil {
		return Run{}, fmt.Errorf("find the running oktawatch: %w", err)
	}
	var r Run
	if err := json.Unmarshal(b, &r); err != nil {
		return Run{}, fmt.Errorf("read %s: %w", RunPath(dataDir), err)
	}
	lock := flock.New(lockPath(dataDir), flock.SetFlag(os.O_RDONLY))
	if free, err := lock.TryRLock(); err == nil && free {
		_ = lock.Unlock()
		return Run{}, fmt.Errorf("find the running oktawatch: process %d of %s is gone: %w", r.PID, RunPath(dataDir), os.ErrNotExist)
	}
	return r, nil
}

// write replaces the file at once; nobody else may read it.
func (r Run) write(dataDir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := RunPath(dataDir) + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write run.json: %w%s", err, hint(err))
	}
	if err := os.Rename(tmp, RunPath(dataDir)); err != nil {
		return fmt.Errorf("write run.json: %w", err)
	}
	return nil
}

func lockPath(dataDir string) string { return filepath.Join(dataDir, "lock") }

// hold takes the directory for this process. It tries for a moment, since ReadRun touches the lock too.
func hold(ctx context.Context, dataDir string) (*flock.Flock, error) {
	lock := flock.New(lockPath(dataDir), flock.SetPermissions(0o600))
	tries, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	ok, err := lock.TryLockContext(tries, 20*time.Millisecond)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("lock the data directory %s: %w", dataDir, err)
	}
	if !ok {
		holder := "another process"
		if b, err := os.ReadFile(lockPath(dataDir)); err == nil {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(b))); err == nil {
				holder = "process " + strconv.Itoa(pid)
			}
		}
		return nil, fmt.Errorf("data directory %s is in use by %s: stop it, or choose another with OKTAWATCH_DATA_DIR", dataDir, holder)
	}
	if err := os.WriteFile(lockPath(dataDir), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		_ = lock.Unlock()
		return nil, fmt.Errorf("lock the data directory %s: %w%s", dataDir, err, hint(err))
	}
	return lock, nil
}

func markPath(dataDir string) string { return filepath.Join(dataDir, "running") }

// mark leaves a file that only a clean stop removes and tells whether one was there.
func mark(dataDir string) (unclean bool, err error) {
	if _, err := os.Lstat(markPath(dataDir)); err == nil {
		return true, nil
	}
	f, err := os.OpenFile(markPath(dataDir), os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), syncDir(dataDir))
	}
	if err != nil {
		return false, fmt.Errorf("mark the data directory: %w%s", err, hint(err))
	}
	return false, nil
}

func unmark(dataDir string) error {
	if err := os.Remove(markPath(dataDir)); err != nil {
		return fmt.Errorf("mark the clean stop: %w", err)
	}
	return syncDir(dataDir)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
