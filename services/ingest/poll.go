package ingest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/finding"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const (
	beatEvery        = 30 * time.Second
	emptyEvery       = time.Second     // the clock that reads cursors takes no more than one step a second
	restartOverlap   = 5 * time.Minute // before the last good poll, when a cursor is refused
	retention        = 90 * 24 * time.Hour
	slowly           = 30 * time.Second // after an answer that only a person can cure
	defaultInterval  = 10 * time.Second
	testInterval     = time.Second
	defaultRateShare = 0.5
	rateWindow       = time.Minute
	maxWait          = 5 * time.Minute
)

// poller polls one source as its one owner. Everything it writes, its status too, goes through its transactional id, so that whoever
// lost the source can write nothing more.
type poller struct {
	s   *Service
	src *source
	log *slog.Logger

	txn  *bus.Transactional
	cur  record.Cursor
	st   record.SourceStatus
	warn warnings

	stood    time.Time // by Okta's clock: the answer whose cursor was last written
	beat     time.Time // when the status was last written
	told     string    // state last written
	failures int       // in a row
	refusal  string    // what kind of refusal was last logged; empty: Okta answers
	kept     []string  // day and hash of the answers put among the dead letters, newest last
	token    string    // of the last request
	limit    int       // events a page while Okta cannot answer larger ones; 0: what the link says
	window   time.Time // end of the rate window
	used     int64     // requests of ours in it
}

func newPoller(s *Service, src *source) *poller {
	return &poller{s: s, src: src, log: s.log.With("source", src.id, "part", "poll")}
}

// run owns the source until ctx ends.
func (p *poller) run(ctx context.Context) {
	wait := time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := p.own(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			wait = time.Second
		}
		switch {
		case errors.Is(err, bus.ErrFenced):
			p.log.Info("another instance polls this source now; looking again", "error", err.Error())
			wait = 3 * time.Second
		case errors.Is(err, bus.ErrOutcomeUnknown):
			p.log.Warn("a page's transaction has an unknown end; the cursor is read again", "error", err.Error())
		default:
			p.log.Warn("polling interrupted", "error", err.Error())
		}
		p.src.trouble(partPoll, err)
		if sleep(ctx, jitter(wait)) != nil {
			return
		}
		wait = min(2*wait, slowly)
	}
}

// own takes the source over and polls it. It returns when ctx ends or its transactional id is of no more use.
func (p *poller) own(ctx context.Context) error {
	// First the id: from here on an older owner writes nothing. Then the cursor, to its end. Then Okta.
	txn, err := p.s.deps.Bus.OpenTransactional(ctx, topics.PollTransactionalID(p.src.id))
	if err != nil {
		return err
	}
	defer txn.Close()
	p.txn = txn
	p.stood, p.beat, p.told, p.failures = time.Time{}, time.Time{}, "", 0
	p.st, p.warn = p.src.status(partPoll), p.s.find.before(p.src.id, partPoll)
	defer p.farewell(ctx)

	org, err := p.identify(ctx)
	if err != nil {
		return err
	}
	if err := p.readCursor(ctx, org); err != nil {
		return err
	}
	for ctx.Err() == nil {
		wait, err := p.poll(ctx, org)
		if err != nil {
			return err
		}
		if err := p.rest(ctx, wait); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// farewell says in the status that nobody polls, unless somebody else already does.
func (p *poller) farewell(ctx context.Context) {
	if ctx.Err() == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	p.st.State, p.st.Message = "stopped", ""
	if err := p.writeStatus(ctx); err != nil {
		p.log.Debug("last status not written", "error", err.Error())
	}
}

// identify waits until the org's id is known.
func (p *poller) identify(ctx context.Context) (string, error) {
	for {
		if org, err := p.src.org(); err == nil {
			p.st.Org = org
			p.src.trouble(partPoll, nil)
			return org, nil
		} else if err != errUnknownYet { //nolint:errorlint // a sentinel of our own, never wrapped
			p.fail(err)
		}
		select {
		case <-p.src.known():
			continue
		default:
		}
		if err := p.rest(ctx, 500*time.Millisecond); err != nil {
			return "", err
		}
	}
}

func (p *poller) readCursor(ctx context.Context, org string) error {
	c, err := p.s.sources.cursor(ctx, p.src.id)
	if err != nil {
		return err
	}
	p.cur = record.Cursor{SourceID: p.src.id, Kind: "poll", Org: org, Lane: "live", State: "running", Slices: []record.CursorSlice{}}
	if c != nil {
		switch {
		case c.Ended:
			p.log.Info("the source was removed before; polling begins anew")
		case c.Org != org:
			p.log.Warn("the cursor is another org's; polling begins anew", "was", c.Org, "is", org)
		default:
			p.cur = *c
		}
	}
	if p.cur.Next == "" {
		p.cur.Next = p.firstPage(time.Now())
	} else if p.s.sources.resume(p.src.id) && p.cur.Previous != "" {
		p.log.Info("the broker was not stopped cleanly: the last page is read again")
		p.cur.Next = p.cur.Previous
	}
	return nil
}

// firstPage is the request that begins a polling query.
func (p *poller) firstPage(now time.Time) string {
	since := now.Add(-defaultLookback)
	if c, ok := p.s.conf[p.src.id]; ok && c.Poll.Lookback > 0 {
		since = now.Add(-c.Poll.Lookback)
	}
	if w := p.src.want.Poll; w != nil && w.Since != nil {
		since = *w.Since
	}
	return p.pageSince(since, now)
}

func (p *poller) pageSince(since, now time.Time) string {
	if oldest := now.Add(-retention); since.Before(oldest) {
		since = oldest // Okta keeps no more, and refuses what lies far behind
	}
	limit, filter := maxLimit, ""
	if w := p.src.want.Poll; w != nil {
		if w.Limit > 0 {
			limit = min(int(w.Limit), maxLimit)
		}
		filter = w.Filter
	}
	at := logsPath + "?since=" + url.QueryEscape(since.UTC().Format("2006-01-02T15:04:05.000Z")) + "&limit=" + strconv.Itoa(limit) + "&sortOrder=ASCENDING"
	if filter != "" {
		at += "&filter=" + url.QueryEscape(filter)
	}
	return at
}

// poll asks for one page and commits it. It says how long to wait; an error ends the ownership.
func (p *poller) poll(ctx context.Context, org string) (time.Duration, error) {
	at := p.cur.Next
	if p.limit > 0 {
		at = withLimit(at, p.limit)
	}
	began := time.Now()
	p.token, _ = p.src.token()
	pg, err := p.src.client.logs(ctx, at)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	p.st.Requests++
	p.s.m.requests.With(p.src.id, statusText(err)).Inc()
	p.noteRate(pg.rate)
	if err != nil {
		return p.refused(ctx, org, err)
	}
	full := len(pg.events) >= limitOf(at)
	if pg.next == "" { // not in Okta's manner: go on from the time of this answer
		pg.next = p.cur.Next
		if len(pg.events) > 0 {
			pg.next = p.pageSince(oktaNow(pg).Add(-restartOverlap), time.Now())
		}
	}
	if pg.next == p.cur.Next {
		full = false // a link that leads to itself is not followed at once
	}
	written, err := p.commit(ctx, org, pg, full, mostEvent)
	if err != nil {
		p.limit = max(1, len(pg.events)/2) // should it be that the page is too much for one transaction
		return 0, err
	}
	if written {
		p.s.sources.committed(p.src.id)
		p.s.m.page.With(p.src.id).Observe(time.Since(began).Seconds())
	}
	p.failures, p.refusal = 0, ""
	p.src.trouble(partPoll, nil)
	if p.limit > 0 && full {
		p.limit = min(2*p.limit, maxLimit)
	} else {
		p.limit = 0
	}
	return p.pace(full), nil
}

// commit writes a page's events, its cursor and, where due, the status in one transaction. An empty page tells no more than that time
// has gone on: unless that is a second, or the status is due, it is not written and polling goes on from its link in memory. Whoever
// resumes asks from the older link once more, behind which are the same events.
func (p *poller) commit(ctx context.Context, org string, pg page, full bool, most int) (written bool, err error) {
	now := time.Now()
	raws := make([]raw, len(pg.events))
	cur, st, warn := p.cur, p.st, warnings{append([]string(nil), p.warn.list...)}
	var newest, lastPublished time.Time
	var big []string
	for i, ev := range pg.events {
		raws[i] = forward(org, p.src.id, wayPoller, "", false, ev, now, most)
		if t := raws[i].eventTime(); t.After(newest) {
			newest = t
		}
		if t := raws[i].published; t.After(lastPublished) {
			lastPublished = t
		}
		if raws[i].rec.Oversize {
			big = append(big, raws[i].rec.UUID)
		}
	}
	cur.Previous, cur.Next = p.cur.Next, pg.next
	cur.Org, cur.Ended, cur.State = org, false, "running"
	cur.Through = later(cur.Through, throughOf(full, newest, pg.date))
	cur.Pages++
	cur.Events += int64(len(raws))
	cur.UpdatedAt = milli(now)

	st.State, st.Message = "running", ""
	if full {
		st.State = "catching_up"
	}
	st.LastSuccessAt, st.Through = timeOf(now), cur.Through
	st.Events += int64(len(raws))
	st.Oversize += int64(len(big))
	if len(raws) > 0 {
		st.LastEventAt = timeOf(now)
		st.LastPublished = later(st.LastPublished, timeOf(lastPublished))
	}
	st.LagMS = nil
	if cur.Through != nil {
		lag := max(0, oktaNow(pg).Sub(*cur.Through).Milliseconds())
		st.LagMS = &lag
	}
	var found *record.Detection
	if len(big) > 0 && p.s.find.new(p.src.id, findOversize, now) {
		detail := sizeAndUUID(biggest(raws), big[0])
		found = p.src.finding(findOversize, org, now, detail, slices.DeleteFunc(slices.Clone(big[:1]), func(uuid string) bool { return uuid == "" })...)
		warn.add(now, warningOf(findOversize, now, detail))
	}
	st.Warnings = warn.list
	due := found != nil || st.State != p.told || now.Sub(p.beat) >= beatEvery
	if len(raws) == 0 && !due && oktaNow(pg).Sub(p.stood) < emptyEvery {
		p.cur, p.st = cur, st
		return false, nil
	}

	err = p.write(ctx, func(out *bus.Emit) error {
		for _, r := range raws {
			if err := out.Put(topics.Raw, r.key, r.rec); err != nil {
				return err
			}
		}
		if found != nil {
			if err := out.Put(topics.Detections, found.Fingerprint, found); err != nil {
				return err
			}
		}
		if due {
			st.HeartbeatAt = milli(now)
			if err := out.Put(topics.SourceStatus, p.src.id+"/"+partPoll, &st); err != nil {
				return err
			}
		}
		return out.Put(topics.Cursors, p.src.id, &cur)
	})
	if err != nil {
		if found != nil {
			p.s.find.takeBack(p.src.id, findOversize, now)
		}
		if errors.Is(err, bus.ErrTooLarge) && most > smallEvent {
			// The topic takes less than we were made for: what does not fit travels without its bytes.
			p.log.Warn("okta.raw.v1 refuses an event as too large; it is written without its bytes. Raise max.message.bytes by oktawatch topics apply", "error", err.Error())
			return p.commit(ctx, org, pg, full, smallEvent)
		}
		return false, err
	}
	p.cur, p.st, p.warn, p.stood = cur, st, warn, oktaNow(pg)
	if due {
		p.beat, p.told = now, st.State
	}
	for _, r := range raws {
		if !r.published.IsZero() {
			p.s.m.age.With(wayPoller).Observe(max(0, time.Since(r.published).Seconds()))
		}
	}
	p.s.m.events.With(p.src.id, wayPoller).Add(float64(len(raws)))
	if len(big) > 0 {
		p.s.m.oversize.With(p.src.id, wayPoller).Add(float64(len(big)))
	}
	if found != nil {
		p.s.m.findings.With(p.src.id, findOversize.Name).Inc()
	}
	if cur.Through != nil {
		p.s.m.through.With(p.src.id).Set(float64(cur.Through.UnixMilli()) / 1000)
	}
	return true, nil
}

// smallEvent fits where a topic was left at Kafka's own limit of 1 MiB.
const smallEvent = 900 << 10

// throughOf is the time up to which all that Okta had is delivered: at the end of the log the time of the answer; before it the
// greatest event time delivered, but never later than the answer.
func throughOf(full bool, newest, date time.Time) *time.Time {
	if date.IsZero() {
		return nil
	}
	if full && newest.Before(date) {
		return timeOf(newest)
	}
	return timeOf(date)
}

// write commits, trying for as long as nothing is wrong with the id itself.
func (p *poller) write(ctx context.Context, fill func(out *bus.Emit) error) error {
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		err := p.txn.Do(ctx, fill)
		if err == nil || errors.Is(err, bus.ErrFenced) || errors.Is(err, bus.ErrOutcomeUnknown) || errors.Is(err, bus.ErrTooLarge) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.src.trouble(partPoll, err)
		if wait == 200*time.Millisecond {
			p.log.Warn("a page could not be written; trying again", "error", err.Error())
		}
		if err := sleep(ctx, jitter(wait)); err != nil {
			return err
		}
	}
}

// refused decides by the status what to do about a page that did not come.
func (p *poller) refused(ctx context.Context, org string, err error) (time.Duration, error) {
	p.failures++
	now := time.Now()
	status := statusOf(err)
	_, noToken := errors.AsType[*tokenError](err)
	switch {
	case status == http.StatusTooManyRequests:
		p.st.State, p.st.Message = "waiting", "Okta's rate limit is used up"
		p.failures = 0
		var r rate
		if se, ok := errors.AsType[*statusError](err); ok {
			r = rateOf(se.header)
		}
		switch {
		case r.known && r.limit == 0: // too many at once: Reset is a guess
			return jitter(2 * time.Second), p.tell(ctx)
		case r.known:
			return min(r.untilReset()+time.Second, maxWait), p.tell(ctx)
		}
		return jitter(10 * time.Second), p.tell(ctx)

	case status == http.StatusBadRequest && strings.Contains(p.cur.Next, "after="):
		good := p.cur.UpdatedAt
		if good.IsZero() {
			good = now.Add(-defaultLookback)
		}
		next := p.pageSince(good.Add(-restartOverlap), now)
		p.log.Warn("okta refused the cursor; polling begins again before the last good answer", "since", good.Add(-restartOverlap).UTC().Format(time.RFC3339), "error", err.Error())
		detail := fmt.Sprintf("polling begins again at %s; the last good answer was at %s", good.Add(-restartOverlap).UTC().Format(time.RFC3339), good.UTC().Format(time.RFC3339))
		if err := p.raise(ctx, org, findGap, detail); err != nil {
			return 0, err
		}
		p.cur.Next, p.told = next, "" // stands with the next page, an empty one too
		return 0, nil

	case noToken, status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusBadRequest, status == http.StatusNotFound:
		if status == http.StatusUnauthorized || status == http.StatusForbidden {
			err = fmt.Errorf("%w; put a good API token where the source's token_file or token_env points", err)
		}
		p.fail(err)
		p.src.trouble(partPoll, err)
		if kind := fmt.Sprint(status, noToken); kind != p.refusal {
			p.refusal = kind
			p.log.Error("okta refuses to be polled; trying on slowly", "error", err.Error())
		}
		if noToken || status == http.StatusUnauthorized || status == http.StatusForbidden {
			if err := p.raise(ctx, org, findToken, err.Error()); err != nil {
				return 0, err
			}
		}
		return p.untilTokenChanges(ctx)
	}
	// Everything else passes: 5xx, timeouts, the network, what a proxy answers in Okta's place.
	p.refusal = ""
	p.fail(err)
	if pe, ok := errors.AsType[*pageError](err); ok {
		p.keep(ctx, org, pe)
	}
	if p.failures == 3 {
		p.log.Warn("okta cannot be polled; trying on", "error", err.Error())
	}
	if p.failures >= 3 {
		p.src.trouble(partPoll, err)
	}
	tooMuch := errors.Is(err, errTooMuch)
	if tooMuch && limitOf(withLimit(p.cur.Next, p.limit)) == 1 { // less cannot be asked for
		p.src.trouble(partPoll, err)
		if err := p.raise(ctx, org, findPage, ""); err != nil {
			return 0, err
		}
		return slowly + jitter(slowly/2), nil
	}
	if status == http.StatusInternalServerError && p.failures >= 2 || tooMuch {
		p.limit = max(1, limitOf(withLimit(p.cur.Next, p.limit))/2) // its queries end after 30 s: ask for less
	}
	backoff := time.Second << min(p.failures-1, 6)
	if tooMuch {
		backoff = 0
	}
	if se, ok := errors.AsType[*statusError](err); ok {
		if n, err := strconv.Atoi(se.header.Get("Retry-After")); err == nil && n > 0 {
			backoff = max(backoff, time.Duration(min(n, 300))*time.Second)
		}
	}
	if p.src.want.TestOrg {
		backoff = min(backoff, 2*time.Second)
	}
	return jitter(min(backoff, time.Minute)), p.tellFailing(ctx)
}

// mostKept bounds what is kept a day of answers that are no pages, should each be another.
const mostKept = 10

// keep puts an answer that is no page among the dead letters, each a UTC day once. No event is in it that would be lost: that it cannot
// be kept stops nothing.
func (p *poller) keep(ctx context.Context, org string, pe *pageError) {
	today := day(time.Now())
	sum := sha256.Sum256(pe.body)
	mark := today + " " + hex.EncodeToString(sum[:])
	p.kept = slices.DeleteFunc(p.kept, func(k string) bool { return !strings.HasPrefix(k, today) })
	if slices.Contains(p.kept, mark) || len(p.kept) >= mostKept {
		return
	}
	body := pe.body[:min(len(pe.body), maxHookBody)]
	if err := p.s.bury(ctx, "poller", p.src.id, org, body, int64(len(pe.body)), fmt.Errorf("answer to a poll: %w", pe)); err != nil {
		p.log.Warn("an answer that is no page of events could not be kept", "error", err.Error())
		return
	}
	p.kept = append(p.kept, mark)
	p.log.Warn("okta's answer is no page of events; it is among the dead letters, and polling goes on", "bytes", len(pe.body), "error", pe.Error())
}

// fail puts an error into the status.
func (p *poller) fail(err error) {
	now := time.Now()
	if p.st.LastError != err.Error() || p.st.State != "failing" {
		p.told = "" // news
	}
	p.st.State, p.st.Message, p.st.LastError, p.st.LastErrorAt = "failing", err.Error(), err.Error(), timeOf(now)
	p.st.Errors++
}

// tellFailing writes the status only when it lasts: a single 503 is no news.
func (p *poller) tellFailing(ctx context.Context) error {
	if p.failures < 3 {
		return nil
	}
	return p.tell(ctx)
}

// tell writes the status if its state is news.
func (p *poller) tell(ctx context.Context) error {
	if p.told == p.st.State {
		return nil
	}
	return p.writeStatus(ctx)
}

func (p *poller) writeStatus(ctx context.Context) error {
	now := time.Now()
	p.st.HeartbeatAt, p.st.Warnings = milli(now), p.warn.list
	if err := p.write(ctx, func(out *bus.Emit) error { return out.Put(topics.SourceStatus, p.src.id+"/"+partPoll, &p.st) }); err != nil {
		return err
	}
	p.beat, p.told = now, p.st.State
	return nil
}

// raise writes a finding once a day, with the status that remembers it.
func (p *poller) raise(ctx context.Context, org string, f finding.Finding, detail string) error {
	now := time.Now()
	if !p.s.find.new(p.src.id, f, now) {
		return p.tell(ctx)
	}
	d := p.src.finding(f, org, now, detail)
	p.warn.add(now, warningOf(f, now, detail))
	p.st.HeartbeatAt, p.st.Warnings = milli(now), p.warn.list
	err := p.write(ctx, func(out *bus.Emit) error {
		if err := out.Put(topics.Detections, d.Fingerprint, d); err != nil {
			return err
		}
		return out.Put(topics.SourceStatus, p.src.id+"/"+partPoll, &p.st)
	})
	if err != nil {
		p.s.find.takeBack(p.src.id, f, now)
		return err
	}
	p.s.m.findings.With(p.src.id, f.Name).Inc()
	p.beat, p.told = now, p.st.State
	return nil
}

// untilTokenChanges waits slowly, but no longer than the token stays the same.
func (p *poller) untilTokenChanges(ctx context.Context) (time.Duration, error) {
	if err := p.tell(ctx); err != nil {
		return 0, err
	}
	for waited := time.Duration(0); waited < slowly; waited += time.Second {
		if err := p.rest(ctx, time.Second); err != nil {
			return 0, err
		}
		if now, err := p.src.token(); err == nil && now != p.token {
			p.log.Info("the token has changed: trying again")
			return 0, nil
		}
	}
	return 0, nil
}

// rest waits, with a heartbeat where one is due.
func (p *poller) rest(ctx context.Context, d time.Duration) error {
	end := time.Now().Add(d)
	for {
		now := time.Now()
		if now.Sub(p.beat) >= beatEvery && p.txn != nil {
			if err := p.writeStatus(ctx); err != nil {
				return err
			}
		}
		left := end.Sub(now)
		if left <= 0 {
			return ctx.Err()
		}
		if err := sleep(ctx, min(left, max(time.Millisecond, beatEvery-now.Sub(p.beat)))); err != nil {
			return err
		}
	}
}

// noteRate counts our requests in Okta's window.
func (p *poller) noteRate(r rate) {
	if !r.known {
		return
	}
	if !r.reset.Equal(p.window) {
		p.window, p.used = r.reset, 0
	}
	p.used++
	limit, remaining, reset := r.limit, r.remaining, milli(r.reset)
	p.st.RateLimit, p.st.RateRemaining, p.st.RateResetAt, p.st.RateShare = &limit, &remaining, &reset, nil
	if limit > 0 {
		share := float64(p.used) / float64(limit)
		p.st.RateShare = &share
	}
	p.src.rate = r
	p.s.m.rate.With(p.src.id).Set(float64(remaining))
}

// pace is the time to the next request: none while pages are full and the share of the limit is not used up.
func (p *poller) pace(full bool) time.Duration {
	w := p.src.want.Poll
	share := defaultRateShare
	if w != nil && w.RateShare != nil && *w.RateShare > 0 {
		share = *w.RateShare
	}
	r := p.src.rate
	allowed := int64(0)
	if r.known && r.limit > 0 {
		allowed = max(1, int64(share*float64(r.limit)))
	}
	if full {
		if r.known && (r.remaining <= 0 || allowed > 0 && p.used >= allowed) {
			return min(r.untilReset()+time.Second, maxWait)
		}
		return 0
	}
	interval := defaultInterval
	if p.src.want.TestOrg {
		interval = testInterval
	}
	if w != nil && w.IntervalMS > 0 {
		interval = time.Duration(w.IntervalMS) * time.Millisecond
	}
	if allowed > 0 {
		interval = max(interval, rateWindow/time.Duration(allowed))
	}
	if r.known && r.limit > 0 && r.remaining <= 0 {
		interval = max(interval, min(r.untilReset()+time.Second, maxWait))
	}
	return interval
}

// limitOf is how many events a request may bring.
func limitOf(at string) int {
	_, q, _ := strings.Cut(at, "?")
	if v, err := url.ParseQuery(q); err == nil {
		if n, err := strconv.Atoi(v.Get("limit")); err == nil && n > 0 {
			return min(n, maxLimit)
		}
	}
	return 100 // Okta's own default
}

// withLimit asks for fewer events by the same link; 0 leaves it as it is.
func withLimit(at string, n int) string {
	path, q, _ := strings.Cut(at, "?")
	if n <= 0 {
		return at
	}
	parts := strings.Split(q, "&")
	for i, part := range parts {
		if strings.HasPrefix(part, "limit=") {
			parts[i] = "limit=" + strconv.Itoa(min(n, limitOf(at)))
			return path + "?" + strings.Join(parts, "&")
		}
	}
	return at + "&limit=" + strconv.Itoa(n)
}

func statusText(err error) string {
	if err == nil {
		return "200"
	}
	if n := statusOf(err); n != 0 {
		return strconv.Itoa(n)
	}
	return "none"
}

func oktaNow(pg page) time.Time {
	if pg.date.IsZero() {
		return time.Now()
	}
	return pg.date
}

func biggest(raws []raw) (size int64) {
	for _, r := range raws {
		size = max(size, r.rec.Size)
	}
	return size
}

func milli(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func timeOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = milli(t)
	return &t
}

func later(a, b *time.Time) *time.Time {
	if a == nil || b != nil && b.After(*a) {
		return b
	}
	return a
}

func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d*3/4 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
