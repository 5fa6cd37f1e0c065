package alert

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/oktawatch/oktawatch/services/alert/sink"
	"github.com/oktawatch/oktawatch/services/alert/sink/sinktest"
)

// TestConformance runs the contract over the whole list: a kind without a fake here fails.
func TestConformance(t *testing.T) {
	fakes := map[string]func(t *testing.T) sinktest.Fake{"terminal": terminalFake, "webhook": webhookFake}
	for _, k := range Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			if fakes[k.Name] == nil {
				t.Fatalf("kind %s has no fake: add one to the list above", k.Name)
			}
			sinktest.Run(t, k, fakes[k.Name])
		})
	}
}

// screen is a terminal that can be full.
type screen struct {
	mu    sync.Mutex
	lines []string
	full  bool
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return 0, errors.New("no space left on device")
	}
	s.lines = append(s.lines, string(p))
	return len(p), nil
}

func (s *screen) arrived() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

func terminalFake(*testing.T) sinktest.Fake {
	s := &screen{}
	return sinktest.Fake{
		With: map[string]any{"format": "text"}, Deps: sink.Deps{Out: s}, Arrived: s.arrived,
		Fail:   func(full bool) { s.mu.Lock(); defer s.mu.Unlock(); s.full = full },
		Broken: []map[string]any{{"format": "xml"}, {"color": "blue"}, {"format": 1}},
	}
}

// hooked is a webhook's receiver: it keeps what came, in order, with its headers.
type hooked struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []string
	heads  []http.Header
	answer func(n int, w http.ResponseWriter) // n: how many came before
}

func newHooked(t testing.TB) *hooked {
	h := &hooked{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		n := len(h.heads)
		h.heads = append(h.heads, r.Header)
		if h.answer != nil {
			rec := httptest.NewRecorder()
			h.answer(n, rec)
			maps.Copy(w.Header(), rec.Header())
			if w.WriteHeader(rec.Code); rec.Code/100 != 2 {
				return
			}
		}
		h.bodies = append(h.bodies, string(body))
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hooked) arrived() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.bodies...)
}

func (h *hooked) headers() []http.Header {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]http.Header(nil), h.heads...)
}

func (h *hooked) answers(f func(n int, w http.ResponseWriter)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = f
}

func secretFile(t testing.TB, b byte) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "secret")
	text := "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) + "\n"
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func webhookFake(t *testing.T) sinktest.Fake {
	h := newHooked(t)
	secret := secretFile(t, 1)
	return sinktest.Fake{
		With: map[string]any{"url": h.URL + "/hook", "secret_files": []string{secret}, "allow_loopback": true}, Arrived: h.arrived,
		Fail: func(fail bool) {
			if fail {
				h.answers(func(_ int, w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) })
			} else {
				h.answers(nil)
			}
		},
		Broken: []map[string]any{
			{},
			{"url": "https://a.example"},
			{"url": "ftp://a.example", "secret_files": []string{secret}},
			{"url": "http://a.example", "secret_files": []string{secret}},
			{"url": "https://u:p@a.example", "secret_files": []string{secret}},
			{"url": "https://a.example", "secret_files": []string{secret}, "timeout": "1h"},
			{"url": "https://a.example", "secret_files": []string{secret}, "timeout": 5},
			{"url": "https://a.example", "secret_files": []string{secret}, "header_files": map[string]string{"webhook-id": "x"}},
			{"url": strings.Repeat(":", 5), "secret_files": []string{secret}},
		},
	}
}
