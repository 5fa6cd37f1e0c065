// Package webhook posts notifications signed by Standard Webhooks 1.0: headers webhook-id, webhook-timestamp and
// webhook-signature, a JSON body of type, timestamp and data below 20 kB. Only 2xx is success; a redirect is not followed
// and is a failure; 410 ends the receiver. Private addresses are refused where the connection is made, so that no name can
// lead there, unless the configuration allows them.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/oktawatch/oktawatch/services/alert/sink"
)

// Kind is the webhook sink.
var Kind = sink.Kind{
	Name:    "webhook",
	Doc:     "Posts each notification to an address, signed by Standard Webhooks 1.0.",
	Options: sink.OptionsOf[options](),
	New:     open,
}

const (
	maxBody        = 20_000
	defaultTimeout = 10 * time.Second
	maxTimeout     = 30 * time.Second
	maxRetryAfter  = 24 * time.Hour
	secretPrefix   = "whsec_"
)

type options struct {
	URL           string            `json:"url" doc:"Where to post: https, unless private or loopback addresses are allowed."`
	SecretFiles   []string          `json:"secret_files" doc:"Files with a secret each: whsec_ and base64 of 24 to 64 bytes. All of them sign, so that a new one can be rolled out beside the old."`
	Timeout       sink.Duration     `json:"timeout" default:"10s" doc:"Of one try, at most 30s."`
	AllowPrivate  bool              `json:"allow_private" default:"false" doc:"Post to private, link-local and loopback addresses too."`
	AllowLoopback bool              `json:"allow_loopback" default:"false" doc:"Post to loopback addresses too."`
	Headers       map[string]string `json:"header_files" doc:"More headers: name, and the file its value is in."`
}

type webhook struct {
	o      options
	now    func() time.Time
	client *http.Client
}

func open(raw []byte, deps sink.Deps) (sink.Sink, error) {
	var o options
	if err := sink.Unmarshal(raw, &o); err != nil {
		return nil, err
	}
	u, err := url.Parse(o.URL)
	switch {
	case o.URL == "":
		return nil, errors.New("with.url is not set")
	case err != nil:
		return nil, errors.New("with.url is no URL")
	case u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("with.url: write it as https://host/path")
	case u.User != nil:
		return nil, errors.New("with.url: a password does not belong in a URL; use with.header_files and a file")
	case u.Scheme == "http" && !o.AllowPrivate && !o.AllowLoopback:
		return nil, errors.New("with.url: http is taken with allow_loopback or allow_private only; use https")
	case len(o.SecretFiles) == 0:
		return nil, errors.New("with.secret_files is not set: name a file that holds whsec_ and base64 of 24 to 64 random bytes; make one with: (printf whsec_; head -c 32 /dev/urandom | base64)")
	case o.Timeout < 0 || time.Duration(o.Timeout) > maxTimeout:
		return nil, fmt.Errorf("with.timeout: more than %v", maxTimeout)
	}
	if o.Timeout == 0 {
		o.Timeout = sink.Duration(defaultTimeout)
	}
	for name := range o.Headers {
		if canonical := http.CanonicalHeaderKey(name); strings.HasPrefix(canonical, "Webhook-") || canonical == "Content-Type" || canonical == "Host" {
			return nil, fmt.Errorf("with.header_files: %s is set by the webhook itself", name)
		}
	}
	now := deps.Now
	if now == nil {
		now = time.Now
	}
	dialer := &net.Dialer{Timeout: time.Duration(o.Timeout), Control: o.control}
	return &webhook{o: o, now: now, client: &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, ForceAttemptHTTP2: true, // no Proxy: through one, addresses could not be checked
			MaxIdleConnsPerHost: 4, MaxConnsPerHost: 16, IdleConnTimeout: 30 * time.Second,
			TLSHandshakeTimeout: time.Duration(o.Timeout), MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// carrierNAT is shared address space (RFC 6598), which net/netip does not call private.
var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

var errRefused = errors.New("a private address: set allow_private (or allow_loopback) if it is meant")

// control refuses an address after its name was resolved and before it is connected to.
func (o options) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("read address %s: %w", address, err)
	}
	a := ap.Addr().Unmap()
	switch {
	case o.AllowPrivate:
		return nil
	case a.IsLoopback():
		if o.AllowLoopback {
			return nil
		}
	case a.IsGlobalUnicast() && !a.IsPrivate() && !carrierNAT.Contains(a) && !translated(a):
		return nil
	}
	return fmt.Errorf("%s is %w", a, errRefused)
}

// translated says whether an IPv6 address stands for an IPv4 one (NAT64, 6to4): it could be a private one.
func translated(a netip.Addr) bool {
	if !a.Is6() {
		return false
	}
	b := a.As16()
	return bytes.HasPrefix(b[:], []byte{0, 0x64, 0xff, 0x9b}) || b[0] == 0x20 && b[1] == 0x02
}

// Deliver posts a notification once.
func (w *webhook) Deliver(ctx context.Context, n sink.Notification) error {
	secrets, err := w.secrets()
	if err != nil {
		return err
	}
	body, err := Body(n)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(w.o.Timeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.o.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("make request: the url cannot be used")
	}
	at := strconv.FormatInt(w.now().Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "oktawatch")
	req.Header.Set("Webhook-Id", n.Key)
	req.Header.Set("Webhook-Timestamp", at)
	req.Header.Set("Webhook-Signature", Sign(secrets, n.Key, at, body))
	for name, file := range w.o.Headers {
		value, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read with.header_files %s: %w", name, err)
		}
		req.Header.Set(name, strings.TrimSpace(string(value)))
	}
	resp, err := w.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL: its path or query may hold a token
		}
		return fmt.Errorf("post to %s: %w", req.URL.Host, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection is used again
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return nil
	}
	failure := &sink.Error{Err: fmt.Errorf("post to %s: answered %d", req.URL.Host, resp.StatusCode)}
	switch resp.StatusCode {
	case http.StatusGone:
		failure.Gone = true
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		failure.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), w.now())
	}
	if resp.StatusCode >= 300 && resp.StatusCode <= 399 {
		failure.Err = fmt.Errorf("%w: redirects are not followed, set with.url to where it leads", failure.Err)
	}
	return failure
}

// retryAfter reads the header: seconds, or a date.
func retryAfter(s string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 32); err == nil {
		d = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(s); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

func (w *webhook) secrets() ([][]byte, error) {
	var out [][]byte
	for _, f := range w.o.SecretFiles {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read with.secret_files: %w", err)
		}
		secret, err := ParseSecret(strings.TrimSpace(string(text)))
		if err != nil {
			return nil, fmt.Errorf("read with.secret_files %s: %w", f, err)
		}
		out = append(out, secret)
	}
	return out, nil
}

// ParseSecret reads a secret as Standard Webhooks writes it.
func ParseSecret(s string) ([]byte, error) {
	body, ok := strings.CutPrefix(s, secretPrefix)
	if !ok {
		return nil, errors.New("a secret begins with whsec_")
	}
	secret, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		return nil, errors.New("after whsec_ there is no base64")
	}
	if len(secret) < 24 || len(secret) > 64 {
		return nil, fmt.Errorf("a secret has 24 to 64 bytes, this one %d", len(secret))
	}
	return secret, nil
}

// Sign gives the webhook-signature header: one signature for each secret.
func Sign(secrets [][]byte, id, timestamp string, body []byte) string {
	var sigs []string
	for _, s := range secrets {
		h := hmac.New(sha256.New, s)
		h.Write([]byte(id + "." + timestamp + "."))
		h.Write(body)
		sigs = append(sigs, "v1,"+base64.StdEncoding.EncodeToString(h.Sum(nil)))
	}
	return strings.Join(sigs, " ")
}

// Body is what is posted. A notification that would be too large is cut: context, then texts, then lists.
func Body(n sink.Notification) ([]byte, error) {
	a := &n.Alert
	for _, cut := range []func(){
		func() {},
		func() { a.Context = map[string]string{"cut": `"the context is too large for a webhook"`} },
		func() { a.Description, a.Runbook = clip(a.Description, 1000), clip(a.Runbook, 1000) },
		func() {
			a.Users, a.Addresses, a.Apps, a.Devices = head(a.Users), head(a.Addresses), head(a.Apps), head(a.Devices)
			a.Rules, a.DedupKey, a.Tags, a.Techniques = head(a.Rules), head(a.DedupKey), head(a.Tags), head(a.Techniques)
		},
		func() { a.Description, a.Runbook, a.Context, a.Labels = "", "", nil, nil },
		func() {
			a.Title = clip(a.Title, 256)
			a.Users, a.Addresses, a.Apps, a.Devices, a.DedupKey, a.Tags, a.Techniques = nil, nil, nil, nil, nil, nil, nil
		},
	} {
		cut()
		body, err := json.Marshal(struct {
			Type      string            `json:"type"`
			Timestamp time.Time         `json:"timestamp"`
			Data      sink.Notification `json:"data"`
		}{n.Type, n.At, n})
		if err != nil {
			return nil, fmt.Errorf("write body: %w", err)
		}
		if len(body) < maxBody {
			return body, nil
		}
	}
	return nil, errors.New("write body: larger than 20 kB even when everything that can be cut is")
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + " …"
}

func head(l []string) []string {
	if len(l) > 10 {
		l = append(l[:10:10], "…")
	}
	out := make([]string, len(l))
	for i, s := range l {
		out[i] = clip(s, 200)
	}
	return out
}
