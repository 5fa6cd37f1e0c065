package ingest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus/bustest"
	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

// turning stands before an org and gives each answer of the System Log a next link of its own, an empty page's too, so that a link
// tells which answer it was taken from: its turn.
type turning struct {
	mu    sync.Mutex
	given int           // turn of the last link given
	asked []int         // turns of the links asked for; 0: a first page
	gate  chan struct{} // not nil: the next request waits for its end
	held  chan int      // the turn of a request that waits
}

var turnOf = regexp.MustCompile(`[?&]turn=(\d+)`)

func turn(link string) int {
	m := turnOf.FindStringSubmatch(link)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// turn puts itself before the bench's org.
func (x *bench) turn(cfg *Config) *turning {
	x.t.Helper()
	p := &turning{held: make(chan int, 1)}
	transport := &http.Transport{}
	proxy := httputil.NewSingleHostReverseProxy(mustURL(x.t, x.org.URL()))
	proxy.Transport = transport
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) } // who asked was killed
	proxy.ModifyResponse = func(r *http.Response) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, l := range r.Header["Link"] {
			if next, err := nextOf([]string{l}); err == nil && next != "" {
				p.given++
				r.Header["Link"][i] = fmt.Sprintf(`<%s&turn=%d>; rel="next"`, next, p.given)
			}
		}
		return nil
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == logsPath {
			at := turn("?" + r.URL.RawQuery)
			p.mu.Lock()
			p.asked = append(p.asked, at)
			gate := p.gate
			p.mu.Unlock()
			if gate != nil {
				p.held <- at
				select {
				case <-gate:
				case <-r.Context().Done():
				}
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	x.t.Cleanup(func() {
		s.Close()
		transport.CloseIdleConnections()
	})
	u, err := url.Parse(s.URL)
	if err != nil {
		x.t.Fatal(err)
	}
	cfg.Sources[0].OrgURL, cfg.Sources[0].Poll.Interval = u.String(), 5*time.Millisecond
	return p
}

// hold keeps the next request waiting, and says which link it asks for.
func (p *turning) hold() int {
	p.mu.Lock()
	p.gate = make(chan struct{})
	p.mu.Unlock()
	return <-p.held
}

func (p *turning) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.gate)
	p.gate = nil
}

// mark returns how many requests came so far.
func (p *turning) mark() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.asked)
}

// since returns the links asked for after a mark.
func (p *turning) since(mark int) []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]int(nil), p.asked[mark:]...)
}

// Of an org where nothing happens one cursor a second is written, however often it is polled; polling goes on by the newest link, and
// its time goes on.
func TestEmptyPagesCostOneTransactionASecond(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	cfg := x.config(rolePoller)
	p := x.turn(&cfg)
	in := x.start("a", cfg)
	var all []*record.Cursor
	bustest.Until(t, 20*time.Second, func() error {
		all = decodeAll[record.Cursor](x, topics.Cursors)
		if len(all) == 0 || all[len(all)-1].Through.Sub(*all[0].Through) < 2*time.Second {
			return fmt.Errorf("%d cursors", len(all))
		}
		return nil
	})
	in.stop(t)
	asked := p.since(0)
	if len(asked) < 5*len(all) {
		t.Errorf("%d polls wrote %d cursors", len(asked), len(all))
	}
	for i, at := range asked {
		if at != i {
			t.Fatalf("request %d asked for link %d: %v", i, at, asked)
		}
	}
	for i, c := range decodeAll[record.Cursor](x, topics.Cursors) {
		if i > 0 && c.Through.Sub(*all[i-1].Through) < time.Second {
			t.Errorf("the cursor of %v follows the one of %v", c.Through, all[i-1].Through)
		}
		if turn(c.Previous) != turn(c.Next)-1 || int(c.Pages) != turn(c.Next) {
			t.Errorf("cursor %d: previous %q, next %q, %d pages", i, c.Previous, c.Next, c.Pages)
		}
		all = append(all[:i], c)
	}
	told := decodeAll[record.SourceStatus](x, topics.SourceStatus)
	if s := told[len(told)-1]; s.State != "stopped" || int(s.Requests) < len(asked)-1 || s.Through.Before(*all[len(all)-1].Through) {
		t.Errorf("last status: %s, %d requests of %d, through %v", s.State, s.Requests, len(asked), s.Through)
	}
}

// A poller killed after empty pages that it did not write, with events on the way, goes on from the link that stands: nothing is
// missing and nothing stands twice. After an unclean stop of the broker it begins one page before that.
func TestKilledAfterUnwrittenEmptyPage(t *testing.T) {
	x := newBench(t, oktasim.Config{})
	cfg := x.config(rolePoller)
	p := x.turn(&cfg)
	emit := func() {
		if err := x.org.Burst(20); err != nil {
			t.Fatal(err)
		}
	}
	emit()
	for range 3 {
		cmd := x.spawn("a", cfg)
		bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
		emit() // between empty pages
		bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
		bustest.Until(t, 20*time.Second, func() error {
			at, stands := p.hold(), turn(x.cursor().Next)
			if at-stands >= 3 {
				return nil
			}
			p.release()
			return fmt.Errorf("link %d is asked for, link %d stands", at, stands)
		})
		emit() // for the request that waits
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		p.release()
		stands, mark := x.cursor(), p.mark()
		cmd = x.spawn("a", cfg)
		bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 1) })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if first := p.since(mark)[0]; first != turn(stands.Next) {
			t.Errorf("began with link %d, link %d stands", first, turn(stands.Next))
		}
	}
	stands, mark := x.cursor(), p.mark()
	emit()
	x.start("a", cfg, func(d *Deps) { d.Unclean = true })
	bustest.Until(t, 20*time.Second, func() error { return x.complete(wayPoller, 2) })
	if first := p.since(mark)[0]; first != turn(stands.Previous) {
		t.Errorf("began with link %d, want %d", first, turn(stands.Previous))
	}
}
