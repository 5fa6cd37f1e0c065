package ingest

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// answering is an org whose answers to a poll the test gives.
type answering struct {
	*bench
	asked atomic.Int64
	logs  atomic.Pointer[http.HandlerFunc]
	cfg   Config
}

func newAnswering(t *testing.T, logs http.HandlerFunc) *answering {
	x := &answering{bench: &bench{t: t, b: bustest.Start(t, rows...), dir: t.TempDir()}}
	x.put("token", token)
	x.logs.Store(&logs)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == wellKnown {
			fmt.Fprint(w, `{"id":"00oanswering"}`)
			return
		}
		x.asked.Add(1)
		(*x.logs.Load())(w, r)
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", x.log.String())
		}
	})
	x.cfg = Config{Roles: []string{rolePoller}, Sources: []SourceConfig{{
		ID: "acme", OrgURL: srv.URL, TokenFile: filepath.Join(x.dir, "token"), Poll: PollConfig{Interval: 50 * time.Millisecond},
	}}}
	return x
}

// TestAnswerThatIsNoPage: what a proxy answers in Okta's place is kept once, said in readiness with what to do, and polling goes on.
func TestAnswerThatIsNoPage(t *testing.T) {
	login := []byte("<html>please log in</html>")
	x := newAnswering(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(login) })
	in := x.start("one", x.cfg)
	bustest.Until(t, 30*time.Second, func() error {
		if n := x.asked.Load(); n < 4 {
			return fmt.Errorf("asked %d times", n)
		}
		err := in.ready(t.Context())
		if err == nil || !strings.Contains(err.Error(), "check org_url (OKTA_ORG_URL)") {
			return fmt.Errorf("readiness says %v", err) //nolint:errorlint // may be nil
		}
		return nil
	})
	letters := x.b.Read(t, topics.Raw.DLQ())
	if len(letters) != 1 || string(letters[0].Value) != string(login) {
		t.Fatalf("%d dead letters: %v", len(letters), letters)
	}
	if why := letters[0].Header("dlq.error.message"); !strings.Contains(string(why), "no page of events: not JSON") {
		t.Errorf("reason %q", why)
	}
	if stage := letters[0].Header("dlq.stage"); string(stage) != "poller" {
		t.Errorf("stage %q", stage)
	}
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `[{"uuid":"u1","published":"2026-01-05T08:00:00.000Z"}]`)
	})
	x.logs.Store(&page)
	bustest.Until(t, 30*time.Second, func() error {
		if len(x.raws()) == 0 {
			return errors.New("nothing polled")
		}
		return in.ready(t.Context())
	})
}

// TestAnswerThatSendsElsewhere: a redirect is not followed and said with what to do.
func TestAnswerThatSendsElsewhere(t *testing.T) {
	x := newAnswering(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://login.example.com/sso", http.StatusFound)
	})
	in := x.start("one", x.cfg)
	bustest.Until(t, 30*time.Second, func() error {
		err := in.ready(t.Context())
		if err == nil || !strings.Contains(err.Error(), "okta answers 302: it sends us to login.example.com") || !strings.Contains(err.Error(), "check org_url") {
			return fmt.Errorf("readiness says %v", err) //nolint:errorlint // may be nil
		}
		return nil
	})
}

// TestOneEventTooLarge: when a page of one event is too much there is nothing less to ask for, and no use in asking again at once.
func TestOneEventTooLarge(t *testing.T) {
	block := make([]byte, 1<<20)
	x := newAnswering(t, func(w http.ResponseWriter, _ *http.Request) {
		for range maxPageBytes>>20 + 1 {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	x.cfg.Sources[0].Poll.Limit = 1
	in := x.start("one", x.cfg)
	bustest.Until(t, 30*time.Second, func() error {
		if n := len(x.findings(findPage.Name)); n != 1 {
			return fmt.Errorf("%d findings", n)
		}
		return nil
	})
	if err := in.ready(t.Context()); err == nil {
		t.Error("ready")
	}
	time.Sleep(time.Second) // a busy loop would ask many times
	if n := x.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// TestRefusalsAreLoggedByKind: another kind of refusal is news, whatever came before it.
func TestRefusalsAreLoggedByKind(t *testing.T) {
	x := newAnswering(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	x.start("one", x.cfg)
	bustest.Until(t, 30*time.Second, func() error {
		if x.asked.Load() < 2 {
			return errors.New("not asked")
		}
		return nil
	})
	refuse := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	x.logs.Store(&refuse)
	bustest.Until(t, 30*time.Second, func() error {
		if n := strings.Count(x.log.String(), "okta refuses to be polled"); n != 1 {
			return fmt.Errorf("said %d times", n)
		}
		return nil
	})
}

func TestSizeAndUUID(t *testing.T) {
	if got := sizeAndUUID(3, "u"); got != "3 bytes, uuid u" {
		t.Error(got)
	}
	if got := sizeAndUUID(3, ""); got != "3 bytes, without a uuid" {
		t.Error(got)
	}
}
