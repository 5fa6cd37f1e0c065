package oktasim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

func timeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}

// tell puts an event about a hook into the System Log soon; the caller holds the lock.
func (h *hooks) tell(k kind, x *hook) {
	id, name := x.ID, x.Name
	h.notice(func(t *traffic) spec {
		s := by(t.c.people[0], k, "SUCCESS", "")
		t.web(&s, "/api/v1/eventHooks/"+id, "", "origin", "https://admin."+t.c.domain)
		s.targets = list(thing(id, "EventHook", "unknown", name, ""))
		return s
	})
}

// notice queues an event of the org about itself.
func (h *hooks) notice(f func(t *traffic) spec) {
	if len(h.notices) < 10_000 {
		h.notices = append(h.notices, f)
	}
	h.poke()
}

// wanted queues new events for the hooks that asked for them.
func (h *hooks) wanted(o *Org, now time.Time, first uint64, ds []draft) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var queued, dropped []uint64
	for i, d := range ds {
		took, full := false, false
		for _, k := range h.list {
			if !k.Active || !k.Verified || !k.wants[d.typ] {
				continue
			}
			if !took && !full && !h.room(o, now) {
				h.stats.Capped++
				full = true
			}
			if full {
				break
			}
			if len(k.queue) >= maxHookQueue {
				h.stats.Overflow++
				full = true
				continue
			}
			k.queue = append(k.queue, first+uint64(i))
			took, full = true, false
		}
		switch {
		case took:
			queued = append(queued, first+uint64(i))
		case full:
			dropped = append(dropped, first+uint64(i))
		}
	}
	if len(queued) > 0 {
		o.store.hooked(queued, hookQueued)
		h.poke()
	}
	if len(dropped) > 0 {
		o.store.hooked(dropped, hookDropped)
	}
}

// room counts an event against the daily cap. The 24 hours begin with the first event; beyond the cap nothing is delivered.
func (h *hooks) room(o *Org, now time.Time) bool {
	limit := o.cfg.HookDailyCap
	if limit < 0 {
		return true
	}
	if h.day.IsZero() || now.Sub(h.day) >= 24*time.Hour {
		h.day, h.today, h.warned, h.capped = now, 0, false, false
	}
	if h.today >= limit {
		if !h.capped {
			h.capped = true
			h.notice(func(t *traffic) spec { return capEvent(t, kOperationLimit, "DENY", limit) })
		}
		return false
	}
	h.today++
	if !h.warned && h.today >= limit*7/10 {
		h.warned = true
		h.notice(func(t *traffic) spec { return capEvent(t, kOperationWarn, "ALLOW", limit) })
	}
	return true
}

func capEvent(t *traffic, k kind, result string, limit int) spec {
	s := spec{kind: k, result: result, reason: "Event hook deliveries of the last 24 hours", actor: systemActor}
	s.from = origin{client: noClient, chain: "[]", security: noSecurity, device: "null"}
	t.web(&s, "/api/v1/eventHooks", "", "operationRateLimitType", "event_hook_delivery", "operationRateLimitScopeType", "org", "operationRateLimitThreshold", itoa(limit),
		"operationRateLimitTimeSpan", "1440", "operationRateLimitTimeUnit", "MINUTES", "operationRateLimitSecondsToReset", "3600")
	s.targets = list(thing("event_hook_delivery", "Operation Type", "", "", ""))
	return s
}

// dispatch hands queued events to the hooks until ctx ends.
func (o *Org) dispatch(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	client := o.client()
	h := &o.hooks
	h.poke() // what was there before
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		}
		if err := o.notify(); err != nil {
			return err
		}
		if !sleep(ctx, o.cfg.HookLinger) {
			return nil
		}
		h.mu.Lock()
		for _, k := range h.list {
			for len(k.queue) > 0 && k.flying < o.cfg.HookParallel {
				n := min(len(k.queue), o.cfg.HookMax)
				batch := append([]uint64(nil), k.queue[:n]...)
				if k.queue = k.queue[n:]; len(k.queue) == 0 {
					k.queue = nil
				}
				k.flying++
				c := *k // what it was when the delivery began
				wg.Go(func() {
					o.deliver(ctx, client, &c, batch)
					h.mu.Lock()
					k.flying--
					h.mu.Unlock()
					h.poke()
				})
			}
		}
		h.mu.Unlock()
	}
}

// notify publishes the org's events about itself.
func (o *Org) notify() error {
	o.hooks.mu.Lock()
	fs := o.hooks.notices
	o.hooks.notices = nil
	o.hooks.mu.Unlock()
	if len(fs) == 0 {
		return nil
	}
	o.genMu.Lock()
	now := o.now()
	ds := make([]draft, len(fs))
	for i, f := range fs {
		s := f(o.traffic)
		ds[i] = o.traffic.render(&s, now)
	}
	o.genMu.Unlock()
	_, err := o.publish(now, ds)
	return err
}

const hookBodyLimit = 1 << 20 // of events in one POST; a bigger event goes alone

// deliver sends events to a hook: one POST, or more where they would be too big for one.
func (o *Org) deliver(ctx context.Context, client *http.Client, k *hook, seqs []uint64) {
	o.store.mu.RLock()
	raws, err := o.store.raws(seqs)
	o.store.mu.RUnlock()
	if err != nil {
		o.log.Error("read events for hook", "hook", k.ID, "error", err)
		return
	}
	for len(seqs) > 0 && ctx.Err() == nil {
		n, size := 0, 0
		for n < len(seqs) && (n == 0 || size+len(raws[n]) <= hookBodyLimit) {
			size += len(raws[n])
			n++
		}
		o.deliverOne(ctx, client, k, seqs[:n], raws[:n], size)
		seqs, raws = seqs[n:], raws[n:]
	}
}

func (o *Org) deliverOne(ctx context.Context, client *http.Client, k *hook, seqs []uint64, raws [][]byte, size int) {
	now := o.now()
	if _, ok := o.faults.take(FaultHookDrop, "", now); ok {
		o.store.hooked(seqs, hookDropped)
		o.count(func(s *HookStats) { s.Dropped++ })
		return
	}
	if f, ok := o.faults.take(FaultHookDelay, "", now); ok && !sleep(ctx, f.Delay) {
		return
	}
	o.genMu.Lock()
	id := o.traffic.uuid(now)
	o.genMu.Unlock()
	body := make([]byte, 0, size+size/4+512)
	body = append(body, `{"eventType":"com.okta.event_hook","eventTypeVersion":"1.0","cloudEventsVersion":"0.1","source":`...)
	body = appendJSON(body, o.selfURL()+"/api/v1/eventHooks/"+k.ID)
	body = fmt.Appendf(body, `,"eventId":%q,"data":{"events":[`, formatUUID(id))
	for i, r := range raws {
		if r == nil {
			continue // forgotten meanwhile
		}
		if i > 0 && body[len(body)-1] != '[' {
			body = append(body, ',')
		}
		body = hookShape(body, r)
	}
	body = fmt.Appendf(body, `]},"eventTime":%q,"contentType":"application/json"}`, stamp(now))
	err := o.post(ctx, client, k, body)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		o.store.hooked(seqs, hookFailed)
		o.count(func(s *HookStats) { s.Failed++ })
		o.hooks.mu.Lock()
		why, hookID, name := err.Error(), k.ID, k.Name
		o.hooks.notice(func(t *traffic) spec { return deliveryFailed(t, hookID, name, why) })
		o.hooks.mu.Unlock()
		return
	}
	o.store.hooked(seqs, hookAcked)
	o.count(func(s *HookStats) { s.Acked++ })
	if _, ok := o.faults.take(FaultHookTwice, "", now); ok {
		o.count(func(s *HookStats) { s.Duplicated++ })
		if err := o.post(ctx, client, k, body); err != nil {
			o.log.Debug("duplicate delivery", "error", err)
		}
	}
}

func (o *Org) count(f func(*HookStats)) {
	o.hooks.mu.Lock()
	f(&o.hooks.stats)
	o.hooks.mu.Unlock()
}

// selfURL is how the org calls itself in deliveries.
func (o *Org) selfURL() string {
	if u := o.URL(); u != "" {
		return u
	}
	return "https://" + o.company.domain
}

func deliveryFailed(t *traffic, id, name, why string) spec {
	s := spec{kind: kHookDelivery, result: "FAILURE", reason: why, actor: systemActor, job: true}
	s.from = origin{client: noClient, chain: "[]", security: noSecurity, device: "null"}
	s.debug = kv(kv(nil, "errorMessage", why), "eventHookId", id)
	s.targets = list(thing(id, "EventHook", "unknown", name, ""))
	return s
}

// post tries once, and once more after a timeout, a broken connection or a 5xx; never after another answer.
func (o *Org) post(ctx context.Context, client *http.Client, k *hook, body []byte) error {
	var err error
	for range 2 {
		var retry bool
		if retry, err = o.try(ctx, client, k, body); err == nil || !retry || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (o *Org) try(ctx context.Context, client *http.Client, k *hook, body []byte) (retry bool, err error) {
	o.count(func(s *HookStats) { s.Deliveries++ })
	ctx, cancel := timeout(ctx, o.cfg.HookTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.URI, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	k.dress(req)
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return true, errors.New("the endpoint did not answer in time")
		}
		return true, errors.New("no connection to the endpoint: " + strings.TrimPrefix(err.Error(), "Post "))
	}
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
	if err2 := res.Body.Close(); err != nil || err2 != nil {
		return true, errors.New("the endpoint's answer broke off")
	}
	if res.StatusCode/100 != 2 {
		return res.StatusCode >= 500, fmt.Errorf("the endpoint answered %d", res.StatusCode)
	}
	return false, nil
}
