package ingest

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/okta/okta-sdk-golang/v2/okta"

	"github.com/oktawatch/oktawatch/pkg/record"
)

//go:embed hook_types.txt
var hookTypes string

// maxHookTypes is how many event types Okta takes for one hook, maxHooks how many active hooks an org may have.
const (
	maxHookTypes = 300
	maxHooks     = 25
)

// eligibleTypes are the event types that Okta's hooks can carry, in order.
func eligibleTypes() []string { return strings.Fields(hookTypes) }

// The times between attempts to set the hook up; the last one repeats. Then it is looked after.
var (
	hookSchedule = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second, time.Minute}
	hookLook     = 10 * time.Minute
	hookAgain    = time.Hour // the secret is told to Okta for a wrong delivery at most so often
	hookFinding  = 3         // failures in a row until it is a finding
)

// life sees to it that the org has our hook: there, as wanted, active, verified. Every instance with the role does so; whoever comes
// second finds nothing to do.
type life struct {
	h   *hooks
	src *source
	log *slog.Logger

	told     string    // secret that Okta was given by us
	reassert time.Time // when it was last told for a wrong delivery
	failures int
}

func (l *life) run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-l.src.known():
	}
	force := false
	for ctx.Err() == nil {
		err := l.once(ctx, force)
		if ctx.Err() != nil {
			return
		}
		wait := hookLook
		if err != nil {
			wait = hookSchedule[min(l.failures, len(hookSchedule)-1)]
			l.failures++
			l.failed(ctx, err)
		} else {
			if l.failures > 0 {
				l.log.Info("the event hook is set up now")
			}
			l.failures, force = 0, false
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-l.src.hook.reassert:
			if l.told != l.h.s.firstSecret() || time.Since(l.reassert) > hookAgain {
				force, l.reassert = true, time.Now()
			}
		}
		t.Stop()
	}
}

func (l *life) failed(ctx context.Context, err error) {
	l.src.hookNote(func(s *hookState) { s.fail(err); s.st.Message = err.Error() })
	if l.failures == 1 {
		l.log.Warn("the event hook could not be set up; trying again", "error", err.Error())
	}
	if l.failures == hookFinding {
		l.h.raise(ctx, l.src, findHookSetup, err.Error())
	}
	l.src.hookNews()
}

// clean takes our secret out of an error, should Okta have echoed it.
func (l *life) clean(err error) error {
	if secret := l.h.s.firstSecret(); err != nil && strings.Contains(err.Error(), secret) {
		return errors.New(strings.ReplaceAll(err.Error(), secret, "***"))
	}
	return err
}

// once compares the org's hook with the wanted one and does what is missing. force tells Okta the secret, which it never shows.
func (l *life) once(ctx context.Context, force bool) (err error) {
	defer func() { err = l.clean(err) }()
	org, want := l.src.client, l.wanted()
	a := &answer{}
	all, _, err := org.sdk.EventHook.ListEventHooks(context.WithValue(ctx, answerKey{}, a))
	if err := org.failed("list event hooks", a, err); err != nil {
		return l.explain(err, nil)
	}
	var have *okta.EventHook
	for _, x := range all {
		if x != nil && x.Name == want.Name {
			have = x
		}
	}
	switch {
	case have == nil:
		a := &answer{}
		have, _, err = org.sdk.EventHook.CreateEventHook(context.WithValue(ctx, answerKey{}, a), want)
		if err := org.failed("create the event hook "+want.Name, a, err); err != nil {
			return l.explain(err, all)
		}
		l.told = want.Channel.Config.AuthScheme.Value
		l.log.Info("event hook created in Okta", "hook", have.Id, "event_types", len(want.Events.Items))
	case force || !sameHook(have, &want) || l.told != "" && l.told != want.Channel.Config.AuthScheme.Value:
		if have, err = l.update(ctx, have.Id, want); err != nil {
			return err
		}
		l.told = want.Channel.Config.AuthScheme.Value
		l.log.Info("event hook changed in Okta", "hook", have.Id)
	}
	l.state(have)
	if have.Status != "ACTIVE" {
		a := &answer{}
		active, _, err := org.sdk.EventHook.ActivateEventHook(context.WithValue(ctx, answerKey{}, a), have.Id)
		if err := org.failed("activate the event hook", a, err); err != nil {
			return l.explain(err, all)
		}
		have = active
		l.state(have)
	}
	if have.VerificationStatus != "VERIFIED" {
		a := &answer{}
		verified, _, err := org.sdk.EventHook.VerifyEventHook(context.WithValue(ctx, answerKey{}, a), have.Id)
		if err := org.failed("verify the event hook: does hook.public_url lead here", a, err); err != nil {
			return err
		}
		have = verified
		l.log.Info("event hook verified by Okta", "hook", have.Id, "url", l.h.url(l.src.id))
	}
	l.state(have)
	return nil
}

func (l *life) wanted() okta.EventHook {
	c := l.h.s.cfg.Hook
	types := c.EventTypes
	if w := l.src.want.Hook; w != nil && len(w.EventTypes) > 0 {
		types = w.EventTypes
	}
	if len(types) == 0 {
		types = eligibleTypes()
	}
	return okta.EventHook{
		Name:   c.Name + " " + l.h.s.deps.Bus.Prefix() + l.src.id,
		Events: &okta.EventSubscriptions{Type: "EVENT_TYPE", Items: slices.Sorted(slices.Values(types))},
		Channel: &okta.EventHookChannel{Type: "HTTP", Version: "1.0.0", Config: &okta.EventHookChannelConfig{
			Uri:        l.h.url(l.src.id),
			AuthScheme: &okta.EventHookChannelConfigAuthScheme{Type: "HEADER", Key: c.Header, Value: l.h.s.firstSecret()},
		}},
	}
}

func sameHook(have, want *okta.EventHook) bool {
	if have.Channel == nil || have.Channel.Config == nil || have.Channel.Config.AuthScheme == nil || have.Events == nil {
		return false
	}
	return have.Channel.Config.Uri == want.Channel.Config.Uri &&
		strings.EqualFold(have.Channel.Config.AuthScheme.Key, want.Channel.Config.AuthScheme.Key) &&
		slices.Equal(slices.Sorted(slices.Values(have.Events.Items)), want.Events.Items)
}

// update replaces the hook by itself with what we want, as raw JSON: the SDK's type has neither its description nor its filter, and a
// PUT replaces all. The secret goes along each time, since Okta never gives it back.
func (l *life) update(ctx context.Context, id string, want okta.EventHook) (*okta.EventHook, error) {
	at := "/api/v1/eventHooks/" + id
	body := map[string]any{}
	if err := l.src.client.call(ctx, "read the event hook", http.MethodGet, at, nil, &body); err != nil {
		return nil, err
	}
	for _, k := range []string{"_links", "created", "createdBy", "id", "lastUpdated", "status", "verificationStatus"} {
		delete(body, k)
	}
	body["name"] = want.Name
	events, channel := object(body, "events"), object(body, "channel")
	events["type"], events["items"] = want.Events.Type, want.Events.Items
	channel["type"], channel["version"] = want.Channel.Type, want.Channel.Version
	config := object(channel, "config")
	delete(config, "method")
	config["uri"] = want.Channel.Config.Uri
	config["authScheme"] = want.Channel.Config.AuthScheme
	var out okta.EventHook
	if err := l.src.client.call(ctx, "change the event hook", http.MethodPut, at, body, &out); err != nil {
		return nil, err
	}
	if out.Id == "" {
		out.Id = id
	}
	return &out, nil
}

func object(in map[string]any, key string) map[string]any {
	if m, ok := in[key].(map[string]any); ok {
		return m
	}
	m := map[string]any{}
	in[key] = m
	return m
}

// explain says what Okta leaves unsaid: that an org is at its maximum, or the token may not do this.
func (l *life) explain(err error, all []*okta.EventHook) error {
	status := statusOf(err)
	if status != http.StatusBadRequest && status != http.StatusForbidden {
		return err
	}
	var names []string
	for _, x := range all {
		if x != nil && x.Status == "ACTIVE" {
			names = append(names, x.Name)
		}
	}
	if len(names) >= maxHooks {
		return fmt.Errorf("%w; Okta takes up to %d active event hooks, %d of %d in use (%s): remove one, or leave hook.public_url empty to poll only", err, maxHooks, len(names), maxHooks, strings.Join(names, ", "))
	}
	if status == http.StatusForbidden {
		return fmt.Errorf("%w; the token's administrator may not manage event hooks: give it that right, set hook.manual and make the hook by hand, or leave hook.public_url empty to poll only", err)
	}
	return fmt.Errorf("%w; %d of up to %d active event hooks in use", err, len(names), maxHooks)
}

func (l *life) state(x *okta.EventHook) {
	if x == nil {
		return
	}
	state := "created"
	switch {
	case x.Status == "INACTIVE":
		state = "inactive"
	case x.Status == "ACTIVE" && x.VerificationStatus == "VERIFIED":
		state = "active"
	case x.VerificationStatus == "VERIFIED":
		state = "verified"
	}
	changed := false
	l.src.hookNote(func(s *hookState) {
		changed = s.st.HookState != state || s.st.HookID != x.Id
		s.st.HookState, s.st.HookID, s.st.Message = state, x.Id, ""
	})
	if changed {
		l.src.hookNews()
	}
}

// wantedHook is what the source's record says of the hook this instance sets up.
func (s *Service) wantedHook(id string) *record.SourceHook {
	c := s.cfg.Hook
	refs := make([]string, 0, len(c.SecretFiles))
	for _, f := range c.SecretFiles {
		refs = append(refs, "file:"+f)
	}
	return &record.SourceHook{
		Enabled: true, PublicURL: strings.TrimSuffix(s.public.String(), "/") + c.Path + "/" + id, Name: c.Name, Header: c.Header, SecretRefs: refs,
		EventTypes: c.EventTypes, Manage: !c.Manual,
	}
}
