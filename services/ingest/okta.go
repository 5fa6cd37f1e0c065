package ingest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/okta/okta-sdk-golang/v2/okta"
)

const (
	logsPath     = "/api/v1/logs"
	wellKnown    = "/.well-known/okta-organization"
	askTimeout   = 60 * time.Second // Okta gives a query 30 s of its own
	maxPageBytes = 64 << 20
	maxBodyBytes = 4 << 20 // of every other answer
)

// org speaks to one Okta org. What okta-sdk-golang is sound for goes through it: its executor carries the requests and its EventHook
// calls manage the hook. Below it is our own transport, which signs, keeps the answer's headers, bounds the bytes, and hides from the
// SDK what it handles badly (facts: it would cache pages, add since to next links, panic on a broken Link header, sleep on a 429).
type org struct {
	base  *url.URL
	sdk   *okta.Client
	plain *http.Client
	rt    *transport
}

// answer is what the transport kept of one answer; it stands also where the SDK gives none.
type answer struct {
	status int
	header http.Header
	raw    bool   // the body of a good answer is wanted as bytes
	body   []byte // then it is here
}

type answerKey struct{}

// transport signs each request for the one host that the token is for.
type transport struct {
	next  http.RoundTripper
	base  *url.URL
	token func() (string, error)
}

var errTooMuch = errors.New("the answer is larger than ingest takes at once")

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != t.base.Host || req.URL.Scheme != t.base.Scheme {
		return nil, fmt.Errorf("refused to send a request for %s to %s", t.base.Host, req.URL.Host)
	}
	req = req.Clone(req.Context())
	req.Header.Del("Authorization")
	if strings.HasPrefix(req.URL.Path, "/api/") {
		token, err := t.token()
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "SSWS "+token)
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	// The whole answer is read here: the SDK leaves the body of a broken one open.
	limit := int64(maxBodyBytes)
	a, ok := req.Context().Value(answerKey{}).(*answer)
	if !ok {
		a = &answer{}
	}
	a.status, a.header = resp.StatusCode, resp.Header.Clone()
	if a.raw && resp.StatusCode == http.StatusOK {
		limit = maxPageBytes
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if int64(len(body)) > limit {
		return nil, errTooMuch
	}
	resp.Header.Del("Link")
	if a.raw && resp.StatusCode == http.StatusOK {
		a.body, body = body, nil // ours alone: the SDK would decode and copy it
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	return resp, nil
}

// newOrg makes a client without asking anything. private says whether the address may lead into a private network, which is for
// whoever writes the configuration to decide, not for a record of a topic.
func newOrg(ctx context.Context, base *url.URL, private bool, token func() (string, error)) (*org, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	if !private {
		dialer.Control = func(_, address string, _ syscall.RawConn) error { return publicOnly(address) }
	}
	rt := &transport{base: base, token: token, next: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, ForceAttemptHTTP2: true, MaxIdleConns: 8,
		IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 45 * time.Second,
	}}
	client := &http.Client{
		Transport: rt, Timeout: askTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	_, sdk, err := okta.NewClient(ctx,
		okta.WithOrgUrl(base.String()),
		okta.WithAuthorizationMode("Bearer"), okta.WithToken("set-by-the-transport"),
		okta.WithHttpClientPtr(client),
		okta.WithCache(false),
		okta.WithRateLimitMaxRetries(0), okta.WithRequestTimeout(0),
		okta.WithUserAgentExtra("oktawatch"),
		okta.WithTestingDisableHttpsCheck(true), // the address was checked before
	)
	if err != nil {
		return nil, fmt.Errorf("make okta client for %s: %w", base.Host, err)
	}
	return &org{base: base, sdk: sdk, plain: client, rt: rt}, nil
}

func (o *org) close() { o.plain.CloseIdleConnections() }

// publicOnly refuses connections into private networks.
func publicOnly(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("refused to connect to %s", address)
	}
	ip := ap.Addr().Unmap()
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || netip.MustParsePrefix("100.64.0.0/10").Contains(ip) {
		return fmt.Errorf("refused to connect to %s: not a public address", ip)
	}
	return nil
}

// statusError is an answer that is not good.
type statusError struct {
	what   string
	status int
	text   string
	header http.Header
}

func (e *statusError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("%s: okta answers %d", e.what, e.status)
	}
	return fmt.Sprintf("%s: okta answers %d: %s", e.what, e.status, e.text)
}

func statusOf(err error) int {
	if se, ok := errors.AsType[*statusError](err); ok {
		return se.status
	}
	return 0
}

// pageError is a good answer that is no page of events: something else answers in Okta's place.
type pageError struct {
	err  error
	body []byte
}

func (e *pageError) Error() string {
	return "the answer is no page of events: " + e.err.Error() + "; something else than the org answers: check org_url (OKTA_ORG_URL), and whether a proxy or a login page is in between"
}
func (e *pageError) Unwrap() error { return e.err }

// elsewhere is what to say of an answer that sends us on; empty for every other.
func elsewhere(status int, h http.Header) string {
	if status < 300 || status > 399 {
		return ""
	}
	to := "elsewhere"
	if u, err := url.Parse(h.Get("Location")); err == nil && u.Host != "" {
		to = "to " + u.Host
	}
	return "it sends us " + to + ", where no token is sent: check org_url (OKTA_ORG_URL), and whether a proxy or a login page is in between"
}

// failed makes one error of what the SDK and the transport say.
func (o *org) failed(what string, a *answer, err error) error {
	if a.status != 0 && (a.status < 200 || a.status > 299) {
		e := &statusError{what: what, status: a.status, header: a.header, text: elsewhere(a.status, a.header)}
		if oe, ok := errors.AsType[*okta.Error](err); ok {
			e.text = strings.TrimSpace(oe.ErrorCode + " " + oe.ErrorSummary)
			for _, c := range oe.ErrorCauses {
				e.text += fmt.Sprintf("; %v", c["errorSummary"])
			}
			if len(e.text) > 500 {
				e.text = e.text[:500]
			}
		}
		return e
	}
	if err == nil {
		return nil
	}
	if te, ok := errors.AsType[*tokenError](err); ok {
		err = te // without the address around it
	}
	return fmt.Errorf("%s: %w", what, err)
}

// identity asks who the org is: its id is the key of everything we write.
func (o *org) identity(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.base.JoinPath(wellKnown).String(), nil)
	if err != nil {
		return "", err
	}
	what := "ask " + o.base.Host + " for its organization"
	resp, err := o.plain.Do(req)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	if resp.StatusCode != http.StatusOK {
		text := cmp.Or(elsewhere(resp.StatusCode, resp.Header), "is it an Okta org's address?")
		return "", &statusError{what: what, status: resp.StatusCode, text: text, header: resp.Header}
	}
	var who struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(body, &who); err != nil || !orgID.MatchString(who.ID) {
		return "", fmt.Errorf("%s: the answer names no organization: is it an Okta org's address?", what)
	}
	return who.ID, nil
}

var orgID = regexp.MustCompile(`^[0-9A-Za-z_-]{1,64}$`)

// page is one answer of the System Log.
type page struct {
	events []json.RawMessage // bytes as sent
	next   string            // path and query; empty: the answer had none
	date   time.Time         // of the answer, by Okta's clock
	rate   rate
}

// rate is what Okta says of its limit.
type rate struct {
	known            bool
	limit, remaining int64
	reset, date      time.Time
}

// logs asks for one page; at is path and query as Okta gave them.
func (o *org) logs(ctx context.Context, at string) (page, error) {
	const what = "read the system log"
	a := &answer{raw: true}
	rq := o.sdk.CloneRequestExecutor()
	req, err := rq.NewRequest(http.MethodGet, at, nil)
	if err != nil {
		return page{}, fmt.Errorf("%s: %w", what, err)
	}
	_, err = rq.Do(context.WithValue(ctx, answerKey{}, a), req, nil)
	p := page{rate: rateOf(a.header)}
	p.date = p.rate.date
	if err := o.failed(what, a, err); err != nil {
		return p, err
	}
	if p.events, err = elements(a.body); err != nil {
		return p, fmt.Errorf("%s: %w", what, &pageError{err, a.body})
	}
	if p.next, err = nextOf(a.header.Values("Link")); err != nil {
		return p, fmt.Errorf("%s: %w", what, err)
	}
	return p, nil
}

func rateOf(h http.Header) rate {
	var r rate
	if h == nil {
		return r
	}
	r.date, _ = http.ParseTime(h.Get("Date"))
	limit, err1 := strconv.ParseInt(h.Get("X-Rate-Limit-Limit"), 10, 64)
	remaining, err2 := strconv.ParseInt(h.Get("X-Rate-Limit-Remaining"), 10, 64)
	reset, err3 := strconv.ParseInt(h.Get("X-Rate-Limit-Reset"), 10, 64)
	if err1 == nil && err2 == nil && err3 == nil {
		r.known, r.limit, r.remaining, r.reset = true, limit, remaining, time.Unix(reset, 0).UTC()
	}
	return r
}

// untilReset is how long the window lasts, by Okta's clock alone.
func (r rate) untilReset() time.Duration {
	if !r.known || r.date.IsZero() {
		return 0
	}
	return max(0, r.reset.Sub(r.date))
}

// nextOf takes the next link of the Link headers, one link a line or several folded into one, as path and query.
func nextOf(headers []string) (string, error) {
	for _, h := range headers {
		for h != "" {
			open := strings.IndexByte(h, '<')
			if open < 0 {
				break
			}
			end := strings.IndexByte(h[open:], '>')
			if end < 0 {
				break
			}
			link, rest := h[open+1:open+end], h[open+end+1:]
			params := rest
			if i := strings.IndexByte(rest, '<'); i >= 0 {
				params, h = rest[:i], rest[i:]
			} else {
				h = ""
			}
			if !strings.Contains(strings.ReplaceAll(strings.ToLower(params), " ", ""), `rel="next"`) {
				continue
			}
			u, err := url.Parse(link)
			if err != nil {
				return "", errors.New("the next link is no address")
			}
			if u.Path != logsPath {
				return "", fmt.Errorf("refused a next link to %q: only %s is followed", u.Path, logsPath)
			}
			return u.Path + "?" + u.RawQuery, nil
		}
	}
	return "", nil
}

// call does one request of the hook's life as raw JSON, where the SDK's own types would drop what they do not know.
func (o *org) call(ctx context.Context, what, method, at string, body any, into any) error {
	a := &answer{}
	rq := o.sdk.CloneRequestExecutor()
	req, err := rq.NewRequest(method, at, body)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var raw json.RawMessage
	_, err = rq.Do(context.WithValue(ctx, answerKey{}, a), req, &raw)
	if err := o.failed(what, a, err); err != nil {
		return err
	}
	if len(raw) == 0 || into == nil {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s: read the answer: %w", what, err)
	}
	return nil
}
