package webhook

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/services/alert/sink"
	"github.com/oktawatch/oktawatch/services/alert/sink/sinktest"
)

// The example of the specification's own libraries.
func TestSign(t *testing.T) {
	secret, err := ParseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	const want = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	body := []byte(`{"test": 2432232314}`)
	if got := Sign([][]byte{secret}, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	two := Sign([][]byte{secret, []byte(strings.Repeat("x", 24))}, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body)
	if parts := strings.Split(two, " "); len(parts) != 2 || parts[0] != want || !strings.HasPrefix(parts[1], "v1,") {
		t.Errorf("two secrets sign as %q", two)
	}
}

func TestParseSecret(t *testing.T) {
	long := func(n int) string { return "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for s, ok := range map[string]bool{long(24): true, long(64): true, long(23): false, long(65): false, "whsec_!": false, "abc": false, "": false} {
		if _, err := ParseSecret(s); (err == nil) != ok {
			t.Errorf("%.20s (%d): %v", s, len(s), err)
		}
	}
}

func secretFile(t *testing.T, fill string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(f, []byte("whsec_"+base64.StdEncoding.EncodeToString([]byte(strings.Repeat(fill, 24)))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func opened(t *testing.T, with map[string]any, now time.Time) sink.Sink {
	t.Helper()
	raw, err := json.Marshal(with)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Kind.New(raw, sink.Deps{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPost(t *testing.T) {
	now := time.Date(2026, 1, 5, 10, 0, 2, 0, time.UTC)
	var body []byte
	var head http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ = io.ReadAll(r.Body)
		head = r.Header
	}))
	defer srv.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("Bearer abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, b := secretFile(t, "a"), secretFile(t, "b")
	s := opened(t, map[string]any{
		"url": srv.URL, "secret_files": []string{a, b}, "allow_loopback": true, "header_files": map[string]string{"Authorization": token},
	}, now)
	n := sinktest.Example()
	if err := s.Deliver(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if head.Get("Webhook-Id") != n.Key || head.Get("Webhook-Timestamp") != "1767607202" || head.Get("Content-Type") != "application/json" || head.Get("Authorization") != "Bearer abc" {
		t.Errorf("headers %v", head)
	}
	want := Sign([][]byte{[]byte(strings.Repeat("a", 24)), []byte(strings.Repeat("b", 24))}, n.Key, "1767607202", body)
	if got := head.Get("Webhook-Signature"); got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
	var got struct {
		Type      string
		Timestamp time.Time
		Data      sink.Notification
	}
	if err := json.Unmarshal(body, &got); err != nil || got.Type != n.Type || !got.Timestamp.Equal(n.At) || got.Data.Alert.ID != n.Alert.ID {
		t.Errorf("%v, body %s", err, body)
	}
	if err := os.Remove(b); err != nil {
		t.Fatal(err)
	}
	if err := s.Deliver(t.Context(), n); err == nil || !strings.Contains(err.Error(), "secret_files") {
		t.Errorf("a secret that cannot be read: %v", err)
	}
}

func TestAnswers(t *testing.T) {
	now := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	var code int
	var header string
	redirected := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			redirected = true
			return
		}
		w.Header().Set("Location", "/elsewhere")
		if header != "" {
			w.Header().Set("Retry-After", header)
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, "a body that nobody reads, with a secret")
	}))
	defer srv.Close()
	s := opened(t, map[string]any{"url": srv.URL, "secret_files": []string{secretFile(t, "a")}, "allow_loopback": true}, now)
	for _, tc := range []struct {
		code   int
		header string
		ok     bool
		gone   bool
		after  time.Duration
	}{
		{200, "", true, false, 0},
		{202, "", true, false, 0},
		{204, "", true, false, 0},
		{301, "", false, false, 0},
		{302, "", false, false, 0},
		{307, "", false, false, 0},
		{400, "", false, false, 0},
		{401, "60", false, false, 0},
		{404, "", false, false, 0},
		{410, "", false, true, 0},
		{429, "", false, false, 0},
		{429, "120", false, false, 2 * time.Minute},
		{502, "5", false, false, 5 * time.Second},
		{504, "1", false, false, time.Second},
		{503, "Mon, 05 Jan 2026 10:01:30 GMT", false, false, 90 * time.Second},
		{503, "-5", false, false, 0},
		{503, "soon", false, false, 0},
		{503, "99999999", false, false, 24 * time.Hour},
		{500, "7", false, false, 0},
	} {
		code, header = tc.code, tc.header
		err := s.Deliver(t.Context(), sinktest.Example())
		if tc.ok {
			if err != nil {
				t.Errorf("%d: %v", tc.code, err)
			}
			continue
		}
		var e *sink.Error
		if !errors.As(err, &e) || e.Gone != tc.gone || e.RetryAfter != tc.after || strings.Contains(err.Error(), "secret") {
			t.Errorf("%d %q: %#v (%v)", tc.code, tc.header, e, err)
		}
	}
	if redirected {
		t.Error("a redirect was followed")
	}
}

func TestPrivateAddresses(t *testing.T) {
	for address, want := range map[string][3]bool{ // plain, allow_loopback, allow_private
		"93.184.215.14:443":       {true, true, true},
		"[2606:2800:220:1::]:443": {true, true, true},
		"127.0.0.1:80":            {false, true, true},
		"[::1]:80":                {false, true, true},
		"[::ffff:127.0.0.1]:80":   {false, true, true},
		"10.1.2.3:80":             {false, false, true},
		"172.16.0.1:80":           {false, false, true},
		"192.168.1.1:80":          {false, false, true},
		"[::ffff:192.168.1.1]:80": {false, false, true},
		"100.64.0.1:80":           {false, false, true},
		"169.254.169.254:80":      {false, false, true},
		"[fe80::1]:80":            {false, false, true},
		"[fd00::1]:80":            {false, false, true},
		"0.0.0.0:80":              {false, false, true},
		"224.0.0.1:80":            {false, false, true},
		"255.255.255.255:80":      {false, false, true},
		"[64:ff9b::a01:203]:80":   {false, false, true},
		"[2002:a01:203::1]:80":    {false, false, true},
	} {
		for i, o := range []options{{}, {AllowLoopback: true}, {AllowPrivate: true}} {
			if got := o.control("tcp", address, nil) == nil; got != want[i] {
				t.Errorf("%s with %+v: allowed %v", address, o, got)
			}
		}
	}
}

// The address is judged where the connection is made: a name that leads to a private address does not get there.
func TestNameOfPrivateAddress(t *testing.T) {
	reached := false
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer srv.Close()
	url := strings.Replace(srv.URL, "127.0.0.1", "localhost", 1) + "/hook?token=do-not-show"
	s := opened(t, map[string]any{"url": url, "secret_files": []string{secretFile(t, "a")}}, time.Now())
	err := s.Deliver(t.Context(), sinktest.Example())
	if err == nil || reached || !strings.Contains(err.Error(), "private address") || strings.Contains(err.Error(), "do-not-show") {
		t.Errorf("reached %v, error %v", reached, err)
	}
}

func TestBodyIsBelowTwentyKilobytes(t *testing.T) {
	n := sinktest.Example()
	whole, err := Body(n)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(whole), "Find the ticket.") {
		t.Error("a small notification was cut")
	}
	for _, grow := range []func(*sink.Alert){
		func(a *sink.Alert) { a.Context = map[string]string{"a": strings.Repeat("x", 1<<20)} },
		func(a *sink.Alert) { a.Runbook = strings.Repeat("é", 1<<20) },
		func(a *sink.Alert) { a.Users = make([]string, 10_000) },
		func(a *sink.Alert) { a.Labels = map[string]string{"a": strings.Repeat("x", 1<<20)} },
		func(a *sink.Alert) { a.Title = strings.Repeat("\x00", 10_000) },
	} {
		grow(&n.Alert)
		b, err := Body(n)
		if err != nil || len(b) >= maxBody || !json.Valid(b) || !strings.Contains(string(b), n.Alert.ID) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	}
}
