// Package fleet runs the shipped binaries as child processes for the tests that kill them: it builds them once, starts,
// kills, restarts and stops them by name, and keeps their logs. It judges nothing: what must hold afterwards is the
// test's business.
package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Binaries are the built programs: name to path.
type Binaries map[string]string

// Build builds the named programs of the tree: a service, or oktawatch itself.
func Build(t testing.TB, names ...string) Binaries {
	t.Helper()
	dir, err := os.MkdirTemp("", "oktawatch-fleet-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	root := Root(t)
	bins := Binaries{}
	for _, name := range names {
		path := filepath.Join(dir, name)
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./cmd/"+name)
		cmd.Dir = filepath.Join(root, "services", name)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
		bins[name] = path
	}
	return bins
}

// Root is the top of the tree the test stands in.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
		if filepath.Dir(dir) == dir {
			t.Fatal("no go.work above " + dir)
		}
		dir = filepath.Dir(dir)
	}
}

// Fleet is a set of running processes.
type Fleet struct {
	t    testing.TB
	bins Binaries

	mu    sync.Mutex
	procs map[string]*Process
}

// New makes an empty fleet that kills what is left at the end of the test and prints the logs when it failed.
func New(t testing.TB, bins Binaries) *Fleet {
	f := &Fleet{t: t, bins: bins, procs: map[string]*Process{}}
	t.Cleanup(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, name := range sortedKeys(f.procs) {
			p := f.procs[name]
			p.kill()
			if t.Failed() {
				t.Logf("--- log of %s (%d starts)\n%s", name, p.starts, p.log.tail())
			}
		}
	})
	return f
}

func sortedKeys(m map[string]*Process) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Process is one program of the fleet, over its restarts.
type Process struct {
	Name   string // its name in the fleet
	bin    string
	args   []string
	env    []string
	starts int
	log    *logKeeper
	cmd    *exec.Cmd
	done   chan struct{}
	err    error
}

// Start runs a program under a name of the test's choice.
func (f *Fleet) Start(name, program string, env []string, args ...string) *Process {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.procs[name]
	if p == nil {
		p = &Process{Name: name, bin: f.bins[program], log: &logKeeper{}}
		f.procs[name] = p
	}
	p.args, p.env = args, env
	p.start(f.t)
	return p
}

func (p *Process) start(t testing.TB) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), p.bin, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", p.Name, err)
	}
	p.starts++
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		p.err = cmd.Wait()
		close(done)
	}()
}

func (p *Process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Kill ends the process by SIGKILL and waits until it is gone.
func (f *Fleet) Kill(p *Process) { p.kill() }

// Signal sends the process a signal, such as SIGSTOP and SIGCONT.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to %s: %w", s, p.Name, err)
	}
	return nil
}

// Restart starts a killed or stopped process again with what it was started with.
func (f *Fleet) Restart(p *Process) {
	f.t.Helper()
	p.start(f.t)
}

// Stop asks the process to end by SIGTERM and fails the test when it does not end with exit code 0 within 25 seconds.
func (f *Fleet) Stop(p *Process) {
	f.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		f.t.Fatalf("stop %s: %v", p.Name, err)
	}
	select {
	case <-p.done:
		if p.err != nil {
			f.t.Errorf("%s ended with %v after SIGTERM", p.Name, p.err)
		}
	case <-time.After(25 * time.Second):
		f.t.Errorf("%s did not stop within 25 s", p.Name)
		p.kill()
	}
}

// Ended says whether the process has ended, and how.
func (p *Process) Ended() (bool, error) {
	select {
	case <-p.done:
		return true, p.err
	default:
		return false, nil
	}
}

// Log is what the process has printed lately.
func (p *Process) Log() string { return p.log.tail() }

// logKeeper keeps the end of a log.
type logKeeper struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const keepLog = 256 << 10

func (l *logKeeper) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(b)
	if over := l.buf.Len() - keepLog; over > keepLog {
		l.buf.Next(over)
	}
	return len(b), nil
}

func (l *logKeeper) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buf.Bytes()
	if len(b) > keepLog {
		b = b[len(b)-keepLog:]
	}
	return string(b)
}

// Env renders NAME=value pairs.
func Env(pairs map[string]string) []string {
	var out []string
	for k, v := range pairs {
		out = append(out, fmt.Sprintf("%s=%s", k, v))
	}
	slices.Sort(out)
	return out
}
