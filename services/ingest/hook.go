package ingest

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	maxHookBody    = 5 << 20
	maxHookMemory  = 64 << 20 // of bodies at once
	answerWithin   = 2 * time.Second
	hookOnlyBehind = 5 * time.Minute
	glance         = 64 << 10 // what is read of a body whose secret is wrong
	maxChallenge   = 4 << 10
	sendsAtOnce    = 256
	secretsEvery   = 10 * time.Second
)

// hooks is the endpoint for event hooks. Below its path it answers 200, 401, 410, 413 or 503 and nothing else: Okta never repeats what was answered
// with another 4xx, and drops it after one repeat otherwise.
type hooks struct {
	s    *Service
	log  *slog.Logger
	ln   net.Listener // nil: no hook
	mem  *semaphore.Weighted
	base string // public address, without the source's id

	mu     sync.RWMutex
	by     map[string]*source
	wanted map[string]bool // nil until the sources are known
}

// hookState is what a source's hook part counts at this instance.
type hookState struct {
	started  bool
	st       record.SourceStatus
	warn     warnings
	news     chan struct{} // the status should be written now
	reassert chan struct{} // Okta should be told the secret
}

func (s *Service) openHooks(ctx context.Context) (*hooks, error) {
	h := &hooks{s: s, log: s.log, mem: semaphore.NewWeighted(maxHookMemory), by: map[string]*source{}}
	if !s.has(roleHook) {
		return h, nil
	}
	if s.public == nil {
		if s.deps.Hook == nil {
			s.log.Info("no event hook: ingest.hook.public_url is not set; events come by polling alone")
		}
		return h, nil
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.Hook.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on ingest.hook.listen %s: %w; set it to a free address", s.cfg.Hook.Listen, err)
	}
	h.ln = ln
	h.base = strings.TrimSuffix(s.public.String(), "/") + s.cfg.Hook.Path
	if s.public.Host == "" {
		addr := ln.Addr().String()
		if host, port, err := net.SplitHostPort(addr); err == nil && net.ParseIP(host).IsUnspecified() {
			addr = net.JoinHostPort("127.0.0.1", port)
		}
		h.base = "http://" + addr + s.cfg.Hook.Path
	}
	if s.deps.Hook == nil {
		s.log.Info("event hook endpoint", "listen", ln.Addr().String(), "public_url", h.base)
	}
	return h, nil
}

func (h *hooks) serve(ctx context.Context) error {
	if h.ln == nil {
		<-ctx.Done()
		return nil
	}
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 3 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(end); err != nil {
			_ = srv.Close()
		}
		return nil
	})
	g.Go(func() error {
		for sleep(ctx, secretsEvery) == nil {
			h.rereadSecrets()
		}
		return nil
	})
	g.Go(func() error {
		var err error
		if c := h.s.cfg.Hook; c.TLSCertFile != "" {
			err = srv.ServeTLS(h.ln, c.TLSCertFile, c.TLSKeyFile)
		} else {
			err = srv.Serve(h.ln)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("serve the event hook: %w", err)
	})
	return g.Wait()
}

// set tells which sources there are and starts what each needs of the hook.
func (h *hooks) set(running map[string]*source, wanted map[string]*record.Source) {
	if h.ln == nil {
		return
	}
	by := make(map[string]*source, len(running))
	for id, src := range running {
		if src.want.Hook != nil && !src.want.Hook.Enabled {
			continue
		}
		by[id] = src
		if !src.hook.started {
			st := src.status(h.part())
			st.HookURL, st.HookState, st.State = h.url(id), "none", "running"
			src.hookNote(func(s *hookState) { s.started, s.st, s.warn = true, st, h.s.find.before(id, h.part()) })
			src.wg.Go(func() { h.report(src.ctx, src) })
			if !h.s.cfg.Hook.Manual && src.want.Auth != nil {
				src.wg.Go(func() { (&life{h: h, src: src, log: h.log.With("source", id, "part", h.part())}).run(src.ctx) })
			}
		}
	}
	known := make(map[string]bool, len(wanted))
	for id, w := range wanted {
		known[id] = w.Hook == nil || w.Hook.Enabled
	}
	h.mu.Lock()
	h.by, h.wanted = by, known
	h.mu.Unlock()
}

func (h *hooks) part() string         { return "hook." + h.s.deps.Bus.InstanceID() }
func (h *hooks) url(id string) string { return h.base + "/" + id }

// find returns the source of a path, or the answer where there is none: 410 is for a source that is known to be gone, and never for one
// that is only not there yet.
func (h *hooks) find(path string) (*source, int) {
	rest, ok := strings.CutPrefix(path, h.s.cfg.Hook.Path)
	if !ok || rest != "" && rest[0] != '/' {
		return nil, http.StatusNotFound
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	id := strings.Trim(rest, "/")
	if id == "" && len(h.wanted) == 1 { // one source needs no name
		for id = range h.wanted {
			break
		}
	}
	switch src := h.by[id]; {
	case src != nil:
		return src, 0
	case h.wanted == nil || h.wanted[id]:
		return nil, http.StatusServiceUnavailable
	}
	return nil, http.StatusGone
}

func (h *hooks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	src, status := h.find(r.URL.Path)
	if status == http.StatusNotFound {
		http.NotFound(w, r)
		return
	}
	id := ""
	if src != nil {
		id = src.id
		if status = h.handle(w, r, src, began); status == 0 {
			status = http.StatusOK // the challenge, already written
		} else {
			w.WriteHeader(status)
		}
		h.s.m.accept.With(id).Observe(time.Since(began).Seconds())
	} else {
		w.WriteHeader(status)
	}
	h.s.m.answers.With(id, strconv.Itoa(status)).Inc()
}

// handle returns the answer, 0 when it is already written.
func (h *hooks) handle(w http.ResponseWriter, r *http.Request, src *source, began time.Time) int {
	ctx, cancel := context.WithDeadline(context.WithoutCancel(r.Context()), began.Add(answerWithin)) // a delivery we have is written, whoever hangs up
	defer cancel()
	_ = http.NewResponseController(w).SetReadDeadline(began.Add(answerWithin))

	if c := r.Header.Get("X-Okta-Verification-Challenge"); r.Method == http.MethodGet && c != "" && len(c) <= maxChallenge {
		body, err := json.Marshal(map[string]string{"verification": c})
		if err != nil {
			return http.StatusServiceUnavailable
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(body)
		return 0
	}
	if !h.s.rightSecret(r.Header.Values(h.s.cfg.Hook.Header)) {
		start, _ := io.ReadAll(io.LimitReader(r.Body, glance))
		hearOut(r.Body)
		h.unauthorized(ctx, src, claimsOkta(start))
		return http.StatusUnauthorized
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return http.StatusOK
	}

	// The bodies of all deliveries at once have one bound.
	size := int64(maxHookBody)
	if r.ContentLength >= 0 {
		size = min(r.ContentLength, maxHookBody)
	}
	if err := h.mem.Acquire(ctx, size+1); err != nil {
		return http.StatusServiceUnavailable
	}
	defer h.mem.Release(size + 1)
	if r.ContentLength > maxHookBody {
		hearOut(r.Body)
		h.tooLarge(ctx, src, r.ContentLength)
		return http.StatusRequestEntityTooLarge
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxHookBody+1))
	switch {
	case err != nil:
		return http.StatusServiceUnavailable // cut off: Okta sends it again
	case len(body) > maxHookBody:
		hearOut(r.Body)
		h.tooLarge(ctx, src, int64(len(body)))
		return http.StatusRequestEntityTooLarge
	}
	if err := h.take(ctx, src, body, began); err != nil {
		src.hookNote(func(s *hookState) { s.fail(err) })
		h.log.Debug("delivery not taken", "source", src.id, "error", err.Error())
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}

// hearOut lets a sender end, within bounds, who would else see a broken connection in place of our answer.
func hearOut(body io.Reader) { _, _ = io.CopyN(io.Discard, body, 4*maxHookBody) }

// take writes a delivery and returns when all of it is acknowledged.
func (h *hooks) take(ctx context.Context, src *source, body []byte, received time.Time) error {
	env, err := readEnvelope(body)
	if err != nil {
		return h.bury(ctx, src, body, err)
	}
	org, err := src.org()
	if err != nil {
		return err
	}
	partial := polled(src.want)
	sender := h.s.deps.Bus.Sender()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(sendsAtOnce) // the sender makes batches of what comes at once
	raws := make([]raw, len(env.events))
	var oversize []raw
	var last time.Time
	for i, ev := range env.events {
		if gctx.Err() != nil {
			break // too late for an answer that says yes: Okta is not kept waiting for the rest
		}
		r := forward(org, src.id, wayHook, env.delivery, partial, ev, received, mostEvent)
		raws[i] = r
		if r.rec.Oversize {
			oversize = append(oversize, r)
		}
		if r.published.After(last) {
			last = r.published
		}
		g.Go(func() error {
			err := sender.Send(gctx, topics.Raw, r.key, r.rec)
			if errors.Is(err, bus.ErrTooLarge) && !r.rec.Oversize { // the topic takes less than we were made for
				small := *r.rec
				small.Oversize, small.JSON = true, nil
				err = sender.Send(gctx, topics.Raw, r.key, &small)
			}
			return err
		})
	}
	if err := cmp.Or(g.Wait(), ctx.Err()); err != nil {
		return err
	}
	now := time.Now()
	src.hookNote(func(s *hookState) {
		s.st.State, s.st.Message = "running", ""
		s.st.Requests++
		s.st.Events += int64(len(raws))
		s.st.Oversize += int64(len(oversize))
		s.st.LastSuccessAt, s.st.LastEventAt = timeOf(now), timeOf(now)
		s.st.LastPublished = later(s.st.LastPublished, timeOf(last))
	})
	h.s.m.events.With(src.id, wayHook).Add(float64(len(raws)))
	for _, r := range raws {
		if !r.published.IsZero() {
			h.s.m.age.With(wayHook).Observe(max(0, now.Sub(r.published).Seconds()))
		}
	}
	if len(oversize) > 0 {
		h.s.m.oversize.With(src.id, wayHook).Add(float64(len(oversize)))
		h.raise(ctx, src, findOversize, sizeAndUUID(biggest(oversize), oversize[0].rec.UUID))
	}
	return nil
}

// bury keeps a body that nobody can read, and counts it.
func (h *hooks) bury(ctx context.Context, src *source, body []byte, reason error) error {
	org, err := src.org()
	if err != nil {
		return err
	}
	if err := h.s.bury(ctx, "hook", src.id, org, body, int64(len(body)), fmt.Errorf("event hook delivery: %w", reason)); err != nil {
		return err
	}
	src.hookNote(func(s *hookState) { s.st.Requests++; s.fail(fmt.Errorf("a delivery could not be read: %w", reason)) })
	h.log.Warn("event hook delivery with the right secret is not readable; it is among the dead letters", "source", src.id, "bytes", len(body), "reason", reason.Error())
	return nil
}

// bury puts a body that nobody can read among the dead letters, in parts where it is larger than they may be. way is the stage, and
// begins the headers; size is that of the whole body, of which the end may be left out.
func (s *Service) bury(ctx context.Context, way, source, org string, body []byte, size int64, reason error) error {
	sum := sha256.Sum256(body)
	sha := hex.EncodeToString(sum[:])
	parts := slices.Collect(slices.Chunk(body, topics.Raw.MaxBytes-(64<<10)))
	if len(parts) == 0 {
		parts = [][]byte{{}}
	}
	for i, part := range parts {
		err := s.deps.Bus.Sender().DeadLetter(ctx, topics.Raw, topics.Group{Service: topics.Ingest, Stage: way}, org+"/"+sha, part, "unreadable", reason,
			bus.WithHeader(way+".source", []byte(source)),
			bus.WithHeader(way+".part", fmt.Appendf(nil, "%d/%d", i+1, len(parts))),
			bus.WithHeader(way+".size", strconv.AppendInt(nil, size, 10)),
			bus.WithHeader(way+".sha256", []byte(sha)))
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *hooks) unauthorized(ctx context.Context, src *source, okta bool) {
	src.hookNote(func(s *hookState) { s.st.Unauthorized++ })
	if !okta {
		return
	}
	select {
	case src.hook.reassert <- struct{}{}: // perhaps Okta has an old secret: tell it ours
	default:
	}
	h.raise(ctx, src, findHook401, "")
}

func (h *hooks) tooLarge(ctx context.Context, src *source, size int64) {
	src.hookNote(func(s *hookState) {
		s.st.Requests++
		s.fail(fmt.Errorf("a delivery of %d bytes is over %d", size, maxHookBody))
	})
	h.raise(ctx, src, findHook413, fmt.Sprintf("%d bytes or more", size))
}

// raise writes a finding once a day. That it could not be written keeps nothing back: the next one tries again.
func (h *hooks) raise(ctx context.Context, src *source, f finding.Finding, detail string) {
	org, err := src.org()
	now := time.Now()
	if err != nil || !h.s.find.new(src.id, f, now) {
		return
	}
	d := src.finding(f, org, now, detail)
	if err := h.s.deps.Bus.Sender().Send(ctx, topics.Detections, d.Fingerprint, d); err != nil {
		h.s.find.takeBack(src.id, f, now)
		h.log.Warn("finding not written", "source", src.id, "finding", f.Name, "error", err.Error())
		return
	}
	h.s.m.findings.With(src.id, f.Name).Inc()
	h.log.Warn("finding raised", "source", src.id, "finding", f.Name, "title", f.Title, "detail", detail)
	src.hookNote(func(s *hookState) { s.warn.add(now, warningOf(f, now, detail)) })
	src.hookNews()
}

// report writes the heartbeat of the source's hook part at this instance, and takes it back at the end.
func (h *hooks) report(ctx context.Context, src *source) {
	key := src.id + "/" + h.part()
	sender := h.s.deps.Bus.Sender()
	for ctx.Err() == nil {
		now := time.Now()
		var st record.SourceStatus
		src.hookNote(func(s *hookState) {
			s.st.HeartbeatAt, s.st.Warnings, s.st.Org = milli(now), slices.Clone(s.warn.list), src.orgID
			if !polled(src.want) {
				s.st.Through = timeOf(now.Add(-hookOnlyBehind))
			}
			st = s.st
		})
		if st.Warnings == nil {
			st.Warnings = []string{}
		}
		wait := beatEvery
		if err := sender.Send(ctx, topics.SourceStatus, key, &st); err != nil {
			wait = 5 * time.Second
			h.log.Debug("heartbeat not written", "source", src.id, "error", err.Error())
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-src.hook.news:
			_ = sleep(ctx, 200*time.Millisecond) // several at once are one
		}
		t.Stop()
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := sender.SendRaw(end, topics.SourceStatus, key, nil); err != nil {
		h.log.Debug("status not taken back", "source", src.id, "error", err.Error())
	}
}

func (src *source) hookNote(change func(s *hookState)) {
	src.mu.Lock()
	defer src.mu.Unlock()
	change(&src.hook)
}

func (src *source) hookNews() {
	select {
	case src.hook.news <- struct{}{}:
	default:
	}
}

func (s *hookState) fail(err error) {
	s.st.Errors++
	s.st.LastError, s.st.LastErrorAt = err.Error(), timeOf(time.Now())
}

// hookSecret holds the accepted secrets; the first is the one Okta is given.
type hookSecret struct {
	mu   sync.RWMutex
	list []string
}

// hookSecrets reads the secrets for the first time; in embedded mode it makes one.
func (s *Service) hookSecrets() error {
	if s.public == nil {
		return nil
	}
	if len(s.cfg.Hook.SecretFiles) == 0 {
		path := filepath.Join(s.deps.DataDir, "hook.secret")
		if err := makeSecret(path); err != nil {
			return fmt.Errorf("make the event hook's secret: %w", err)
		}
		s.cfg.Hook.SecretFiles = []string{path}
	}
	list, err := s.readHookSecrets()
	if err != nil {
		return err
	}
	s.hookSecret.list = list
	return nil
}

func (s *Service) readHookSecrets() ([]string, error) {
	var list []string
	for _, f := range s.cfg.Hook.SecretFiles {
		v, err := readSecret(func() ([]byte, error) { return os.ReadFile(f) })
		if err != nil {
			return nil, fmt.Errorf("ingest.hook.secret_files: %w", err)
		}
		if len(v) < 16 {
			return nil, fmt.Errorf("ingest.hook.secret_files: %s holds %d characters; use 16 or more, for example from openssl rand -hex 32", f, len(v))
		}
		list = append(list, v)
	}
	return list, nil
}

func makeSecret(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := f.WriteString(base64.RawURLEncoding.EncodeToString(b) + "\n"); err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	return f.Close()
}

func (h *hooks) rereadSecrets() {
	list, err := h.s.readHookSecrets()
	if err != nil {
		h.log.Warn("the hook's secrets stay as they were", "error", err.Error())
		return
	}
	h.s.hookSecret.mu.Lock()
	first := len(h.s.hookSecret.list) > 0 && h.s.hookSecret.list[0] != list[0]
	h.s.hookSecret.list = list
	h.s.hookSecret.mu.Unlock()
	if !first {
		return
	}
	h.log.Info("the hook's secret has changed; Okta is told")
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, src := range h.by {
		select {
		case src.hook.reassert <- struct{}{}:
		default:
		}
	}
}

// rightSecret compares in constant time with each accepted secret.
func (s *Service) rightSecret(values []string) bool {
	if len(values) != 1 {
		return false
	}
	got := sha256.Sum256([]byte(values[0]))
	s.hookSecret.mu.RLock()
	defer s.hookSecret.mu.RUnlock()
	right := 0
	for _, secret := range s.hookSecret.list {
		want := sha256.Sum256([]byte(secret))
		right |= subtle.ConstantTimeCompare(got[:], want[:])
	}
	return right == 1
}

func (s *Service) firstSecret() string {
	s.hookSecret.mu.RLock()
	defer s.hookSecret.mu.RUnlock()
	return s.hookSecret.list[0]
}
