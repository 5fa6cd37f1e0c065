// Package registry is the schema registry of embedded mode: Confluent's HTTP API over one compacted Kafka topic (or over
// memory, for tests). It wraps srfake, which serves what is read; what srfake leaves out is here: every schema is checked
// by goavro and twmb/avro before it is taken, compatibility is really judged, and an id, once given, belongs to its schema
// over every restart. A registration is durable before it is answered. There is one writer, this process, and no
// authentication: it listens on loopback only. Avro without references is all it takes. Encoding records does not belong
// here (pkg/record), nor does knowing which schemas ought to be registered (`oktawatch schemas apply`).
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Config is what an operator may say of the registry; the zero value works.
type Config struct {
	Compatibility string // the level of subjects that have none of their own; empty: BACKWARD
}

// Deps is what the registry is given.
type Deps struct {
	Log      *slog.Logger // nil: silent
	Store    Store        // nil: memory, gone with the process
	Listener net.Listener // loopback; closed by Run
}

// Registry serves Confluent's HTTP API on a listener.
type Registry struct {
	log     *slog.Logger
	ln      net.Listener
	handler *Handler
	ready   chan struct{}
	once    sync.Once
}

// New checks the configuration. It reads nothing yet: Run does.
func New(cfg Config, deps Deps) (*Registry, error) {
	if deps.Listener == nil {
		return nil, errors.New("open the registry: no listener given")
	}
	host, _, err := net.SplitHostPort(deps.Listener.Addr().String())
	if err != nil || !loopback(host) {
		return nil, fmt.Errorf("open the registry: %s is not a loopback address, and this registry asks nobody for a password", deps.Listener.Addr())
	}
	h, err := NewHandler(cfg, deps.Store)
	if err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	return &Registry{log: deps.Log, ln: deps.Listener, handler: h, ready: make(chan struct{})}, nil
}

// Addr is where the registry listens, as host:port.
func (r *Registry) Addr() string { return r.ln.Addr().String() }

// URL is Addr as clients want it.
func (r *Registry) URL() string { return "http://" + r.Addr() }

// Ready is closed when every schema has been read and requests are answered.
func (r *Registry) Ready() <-chan struct{} { return r.ready }

// Run reads the store to its end, then serves until ctx ends. It returns nil on a clean stop.
func (r *Registry) Run(ctx context.Context) error {
	defer r.ln.Close()
	if err := r.handler.Load(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	srv := &http.Server{
		Handler:           guard(r.handler),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:          slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(r.ln) }()
	r.once.Do(func() { close(r.ready) })
	r.log.Debug("registry serves", "url", r.URL(), "schemas", r.handler.Len())

	select {
	case err := <-served:
		return fmt.Errorf("serve the registry on %s: %w", r.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		r.log.Debug("registry ended", "error", err)
	}
	return nil
}

// guard refuses what a browser could be made to send: requests of another origin, and such as came by a name that
// resolves to loopback but is not ours.
func guard(next http.Handler) http.Handler {
	return http.NewCrossOriginProtection().Handler(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		host := req.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if host != "" && !loopback(host) {
			writeError(w, &apiError{http.StatusForbidden, http.StatusForbidden, "this registry answers on loopback addresses only, not as " + req.Host})
			return
		}
		next.ServeHTTP(w, req)
	}))
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	if n := len(host); n > 2 && host[0] == '[' && host[n-1] == ']' {
		host = host[1 : n-1]
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
