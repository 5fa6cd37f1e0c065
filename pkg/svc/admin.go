package svc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/oktawatch/oktawatch/pkg/metrics"
)

const (
	checkTimeout = 2 * time.Second
	watchEvery   = 5 * time.Second
)

// Admin answers /livez, /readyz (?verbose), /healthz, /metrics, /version and, to loopback only, /debug/pprof. It also asks the ready
// checks itself every five seconds and logs each change, so that a process that is not ready says why in its log too.
type Admin struct {
	name, version string
	log           *slog.Logger
	mux           *http.ServeMux
	ready         *metrics.Gauge

	mu       sync.Mutex
	checks   []check
	stopping bool
}

type check struct {
	name string
	ask  func(ctx context.Context) error
}

// NewAdmin makes an admin port without checks.
func NewAdmin(name, version string, log *slog.Logger, set *metrics.Set) *Admin {
	a := &Admin{name: name, version: version, log: log, mux: http.NewServeMux()}
	a.ready = set.Gauge("oktawatch_ready", "1 when every ready check of the process passes.", "service")
	a.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	a.mux.HandleFunc("GET /readyz", a.readyz)
	a.mux.HandleFunc("GET /healthz", a.readyz)
	a.mux.Handle("GET /metrics", set.Handler())
	a.mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"service": name, "version": version, "go": runtime.Version()})
	})
	a.mux.HandleFunc("/debug/pprof/", a.loopback(pprof.Index))
	a.mux.HandleFunc("/debug/pprof/cmdline", a.loopback(pprof.Cmdline))
	a.mux.HandleFunc("/debug/pprof/profile", a.loopback(pprof.Profile))
	a.mux.HandleFunc("/debug/pprof/symbol", a.loopback(pprof.Symbol))
	a.mux.HandleFunc("/debug/pprof/trace", a.loopback(pprof.Trace))
	return a
}

// Ready adds a check; a name told twice is replaced.
func (a *Admin) Ready(name string, ask func(ctx context.Context) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.checks {
		if a.checks[i].name == name {
			a.checks[i].ask = ask
			return
		}
	}
	a.checks = append(a.checks, check{name, ask})
}

// Stopping makes /readyz answer 503 from now on.
func (a *Admin) Stopping() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopping = true
}

// Serve answers on ln (nil: nowhere) and watches the checks until ctx ends.
func (a *Admin) Serve(ctx context.Context, ln net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.watch(ctx) })
	if ln == nil {
		return
	}
	srv := &http.Server{Handler: a.mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug)}
	wg.Go(func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := srv.Shutdown(end); err != nil {
			_ = srv.Close()
		}
	})
	if err := srv.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) {
		a.log.Error("admin port ended", "error", err.Error())
	}
}

type result struct {
	name string
	err  error
}

func (a *Admin) ask(ctx context.Context) (results []result, stopping bool) {
	a.mu.Lock()
	checks := append([]check(nil), a.checks...)
	stopping = a.stopping
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	results = make([]result, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { results[i] = result{c.name, c.ask(ctx)} })
	}
	wg.Wait()
	return results, stopping
}

func (a *Admin) readyz(w http.ResponseWriter, r *http.Request) {
	results, stopping := a.ask(r.Context())
	bad := stopping
	for _, c := range results {
		bad = bad || c.err != nil
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if bad {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if r.URL.Query().Has("verbose") {
		for _, c := range results {
			if c.err != nil {
				fmt.Fprintf(w, "[-] %s: %s\n", c.name, oneLine(c.err))
			} else {
				fmt.Fprintf(w, "[+] %s\n", c.name)
			}
		}
	}
	switch {
	case stopping:
		fmt.Fprintln(w, "stopping")
	case bad:
		fmt.Fprintln(w, "not ready")
		for _, c := range results {
			if c.err != nil && !r.URL.Query().Has("verbose") {
				fmt.Fprintf(w, "%s: %s\n", c.name, oneLine(c.err))
			}
		}
	default:
		fmt.Fprintln(w, "ok")
	}
}

func (a *Admin) watch(ctx context.Context) {
	was := map[string]string{}
	t := time.NewTimer(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			a.ready.With(a.name).Set(0)
			return
		case <-t.C:
		}
		results, stopping := a.ask(ctx)
		if ctx.Err() != nil || stopping {
			continue
		}
		value := 1.0
		for _, c := range results {
			now := ""
			if c.err != nil {
				now, value = oneLine(c.err), 0
			}
			switch before := was[c.name]; {
			case now == before:
			case now == "":
				a.log.Info("ready again", "check", c.name)
			default:
				a.log.Warn("not ready", "check", c.name, "reason", now)
			}
			was[c.name] = now
		}
		a.ready.With(a.name).Set(value)
		t.Reset(watchEvery)
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// loopback lets a handler answer to this machine alone, and not through a proxy on it.
func (a *Admin) loopback(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		ip := net.ParseIP(host)
		if err != nil || ip == nil || !ip.IsLoopback() || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "" {
			http.Error(w, "profiles are for loopback only", http.StatusForbidden)
			return
		}
		h(w, r)
	}
}
