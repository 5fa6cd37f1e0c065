package webhook_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/services/alert/sink"
	"github.com/oktawatch/oktawatch/services/alert/sink/webhook"
)

// verify says whether a request comes from who has the secret: what is in the secret file, whsec_ and base64.
func verify(secret string, header http.Header, body []byte, now time.Time) error {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(secret), "whsec_"))
	if err != nil {
		return err
	}
	id, at := header.Get("webhook-id"), header.Get("webhook-timestamp")
	if sec, err := strconv.ParseInt(at, 10, 64); err != nil || now.Sub(time.Unix(sec, 0)).Abs() > 5*time.Minute {
		return errors.New("too old, or from the future: perhaps a replay")
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + at + "."))
	mac.Write(body) // the bytes as they came, before anything parses them
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for got := range strings.FieldsSeq(header.Get("webhook-signature")) { // one of each secret in use
		if hmac.Equal([]byte(got), []byte(want)) {
			return nil
		}
	}
	return errors.New("no signature is of this secret")
}

// TestReceiverVerifies plays the receiver that docs/sinks.md shows.
func TestReceiverVerifies(t *testing.T) {
	secret := "whsec_" + base64.StdEncoding.EncodeToString([]byte("thirty-two bytes of a test secret"))
	other := "whsec_" + base64.StdEncoding.EncodeToString([]byte("thirty-two bytes of another one.."))
	var header http.Header
	var body []byte
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		header = r.Header
		body, _ = io.ReadAll(r.Body)
	}))
	defer srv.Close()
	var files []string
	for i, s := range []string{other, secret} { // the second of two that sign
		f := filepath.Join(t.TempDir(), strconv.Itoa(i))
		if err := os.WriteFile(f, []byte(s+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	with, err := json.Marshal(map[string]any{"url": srv.URL, "secret_files": files, "allow_loopback": true})
	if err != nil {
		t.Fatal(err)
	}
	w, err := webhook.Kind.New(with, sink.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Deliver(t.Context(), sink.Notification{Key: "k1", Type: sink.Opened, At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := verify(secret+"\n", header, body, time.Now()); err != nil {
		t.Error(err)
	}
	if verify(secret, header, append(body, ' '), time.Now()) == nil {
		t.Error("a changed body is taken")
	}
	if verify(secret, header, body, time.Now().Add(6*time.Minute)) == nil {
		t.Error("a replay is taken")
	}
	if verify("whsec_"+base64.StdEncoding.EncodeToString([]byte("yet another")), header, body, time.Now()) == nil {
		t.Error("another secret is taken")
	}
}
