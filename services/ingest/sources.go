package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oktawatch/oktawatch/pkg/bus"
	"github.com/oktawatch/oktawatch/pkg/record"
	"github.com/oktawatch/oktawatch/pkg/topics"
)

const partPoll = "poll"

// sources keeps the parts of every source running: what a source is comes from the topic, which of them this instance polls from its
// group's assignment, and every one of them has the hook.
type sources struct {
	s     *Service
	log   *slog.Logger
	table *bus.Table

	ctx     context.Context //nolint:containedctx // of run, for what the tables call
	changed chan struct{}   // something below is new

	mu         sync.Mutex
	wanted     map[string]*record.Source
	cursors    map[string][]byte
	cursorsTab *bus.Table
	assigned   map[int32]bool
	partitions int32
	running    map[string]*source
	resumed    map[string]bool   // sources that have committed a page after an unclean stop
	told       bool              // that all have
	refused    map[string]string // id: why a record of the topic is not taken
	err        error             // of the tables, until they are there
}

func newSources(s *Service) *sources {
	return &sources{
		s: s, log: s.log, changed: make(chan struct{}, 1), wanted: map[string]*record.Source{}, cursors: map[string][]byte{},
		assigned: map[int32]bool{}, running: map[string]*source{}, resumed: map[string]bool{}, refused: map[string]string{},
	}
}

func (x *sources) kick() {
	select {
	case x.changed <- struct{}{}:
	default:
	}
}

// resume says whether the poller has to begin one page back: until it has committed a page.
func (x *sources) resume(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.s.deps.Unclean && !x.resumed[id]
}

// committed notes a source's page. When every polled source has gone on after an unclean stop, whoever wants to know is told.
func (x *sources) committed(id string) {
	x.mu.Lock()
	if !x.s.deps.Unclean || x.resumed[id] {
		x.mu.Unlock()
		return
	}
	x.resumed[id] = true
	all := true
	for other, want := range x.wanted {
		all = all && (x.resumed[other] || !polled(want))
	}
	tell := all && !x.told
	x.told = x.told || all
	x.mu.Unlock()
	if tell && x.s.deps.Recovered != nil {
		x.s.deps.Recovered()
	}
}

func (x *sources) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	x.ctx = ctx
	if x.s.has(roleHook) {
		if err := x.s.hookSecrets(); err != nil {
			return err
		}
	}
	hooks, err := x.s.openHooks(ctx)
	if err != nil {
		return err
	}
	if x.s.deps.Hook != nil {
		listen := ""
		if hooks.ln != nil {
			listen = hooks.ln.Addr().String()
		}
		x.s.deps.Hook(listen, hooks.base)
	}
	g.Go(func() error { return hooks.serve(ctx) })
	g.Go(func() error {
		if err := x.open(ctx); err != nil {
			return ended(ctx, err)
		}
		g.Go(func() error { return ended(ctx, x.watch(ctx)) })
		if x.s.has(rolePoller) {
			g.Go(func() error {
				return ended(ctx, x.s.deps.Bus.RunAssigned(ctx, topics.IngestSources, x.assign))
			})
		}
		return ended(ctx, x.reconcileLoop(ctx, hooks))
	})
	return g.Wait()
}

// ended makes nothing of an error that only says that we were stopped.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// open reads the tables and writes the configured sources.
func (x *sources) open(ctx context.Context) error {
	var err error
	if x.table, err = x.openTable(ctx, topics.Sources, x.applySource); err != nil {
		return err
	}
	// Status records tell which findings were raised today, by us or by others.
	if _, err := x.openTable(ctx, topics.SourceStatus, x.applyStatus); err != nil {
		return err
	}
	if x.s.has(rolePoller) {
		if x.cursorsTab, err = x.openTable(ctx, topics.Cursors, x.applyCursor); err != nil {
			return err
		}
	}
	if err := x.try(ctx, "write the configured sources", x.writeOwn); err != nil {
		return err
	}
	if err := x.try(ctx, "read the configured sources", x.table.Sync); err != nil { // nobody acts on what an earlier configuration said
		return err
	}
	x.setErr(nil)
	return nil
}

func (x *sources) openTable(ctx context.Context, t topics.Topic, apply func(string, []byte)) (*bus.Table, error) {
	var table *bus.Table
	err := x.try(ctx, "read "+t.Name, func(ctx context.Context) (err error) {
		table, err = x.s.deps.Bus.OpenTable(ctx, t, apply)
		return err
	})
	return table, err
}

// try does something until it works; readiness says why it does not.
func (x *sources) try(ctx context.Context, what string, do func(ctx context.Context) error) error {
	last := ""
	for wait := 500 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		err := do(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		x.setErr(err)
		if err.Error() != last {
			last = err.Error()
			x.log.Warn("waiting for kafka; trying again", "attempt", what, "error", last)
		}
		if err := sleep(ctx, jitter(wait)); err != nil {
			return err
		}
	}
}

func (x *sources) setErr(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.err = err
}

// watch ends the service when a table does.
func (x *sources) watch(ctx context.Context) error {
	var cursors <-chan struct{}
	if x.cursorsTab != nil {
		cursors = x.cursorsTab.Done()
	}
	select {
	case <-ctx.Done():
		return nil
	case <-x.table.Done():
		return x.table.Err()
	case <-cursors:
		return x.cursorsTab.Err()
	}
}

// decode reads a table's record, and waits for the registry where that is what fails: a record passed over would be missing for good.
func decode[R any, P interface {
	*R
	record.Record
}](x *sources, t topics.Topic, key string, value []byte,
) (P, error) {
	var r P
	err := x.try(x.ctx, "decode "+t.Name, func(ctx context.Context) (err error) {
		r, err = bus.Decode[R, P](ctx, x.s.deps.Bus, bus.Message{Topic: t, Key: []byte(key), Value: value})
		if passing(err) {
			return err
		}
		return nil
	})
	if err == nil && r == nil {
		err = fmt.Errorf("record %q of %s is no %s", key, t.Name, t.Record)
	}
	return r, err
}

// passing says whether an error of decoding is the registry's, not the record's.
func passing(err error) bool {
	var temporary interface{ Temporary() bool }
	if errors.As(err, &temporary) && temporary.Temporary() {
		return true
	}
	_, isNet := errors.AsType[net.Error](err)
	return isNet || errors.Is(err, context.DeadlineExceeded)
}

func (x *sources) applySource(key string, value []byte) {
	var src *record.Source
	if len(value) > 0 {
		r, err := decode[record.Source](x, topics.Sources, key, value)
		if err != nil || r.ID != key {
			x.log.Error("a record of okta.sources.v1 is not readable and is passed over", "source", key, "error", fmt.Sprint(err))
			return
		}
		src = r
	}
	x.mu.Lock()
	if src == nil {
		delete(x.wanted, key)
	} else {
		x.wanted[key] = src
	}
	x.mu.Unlock()
	x.kick()
}

func (x *sources) applyStatus(key string, value []byte) {
	if len(value) == 0 {
		return
	}
	r, err := decode[record.SourceStatus](x, topics.SourceStatus, key, value)
	if err == nil {
		x.s.find.learn(r.SourceID, r.Part, r.Warnings)
	}
}

func (x *sources) applyCursor(key string, value []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(value) == 0 {
		delete(x.cursors, key)
		return
	}
	x.cursors[key] = slices.Clone(value)
}

// cursor is the source's cursor as it stands when nobody but the caller can write it.
func (x *sources) cursor(ctx context.Context, id string) (*record.Cursor, error) {
	if err := x.cursorsTab.Sync(ctx); err != nil {
		return nil, fmt.Errorf("read the cursor: %w", err)
	}
	x.mu.Lock()
	value := x.cursors[id]
	x.mu.Unlock()
	if value == nil {
		return nil, nil
	}
	c, err := bus.Decode[record.Cursor](ctx, x.s.deps.Bus, bus.Message{Topic: topics.Cursors, Key: []byte(id), Value: value})
	if err != nil {
		return nil, fmt.Errorf("read the cursor: %w", err)
	}
	return c, nil
}

// writeOwn makes the topic say what the configuration says. A source that an earlier configuration wrote and this one no longer has
// is removed; an instance without any sources configured removes none.
func (x *sources) writeOwn(ctx context.Context) error {
	x.mu.Lock()
	have := maps.Clone(x.wanted)
	x.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(x.s.own)) {
		want := *x.s.own[id]
		if old := have[id]; old != nil {
			want.Hook = old.Hook
			if old.URL == want.URL {
				want.Org = cmp.Or(want.Org, old.Org)
			}
		}
		if x.s.public != nil && x.s.cfg.Hook.PublicURL != "auto" {
			want.Hook = x.s.wantedHook(id)
		}
		if sameWanted(have[id], &want) && have[id].Name == want.Name {
			continue
		}
		want.UpdatedAt = milli(time.Now())
		if err := x.s.deps.Bus.Sender().Send(ctx, topics.Sources, id, &want); err != nil {
			return err
		}
		x.log.Info("source written from the configuration", "source", id, "org_url", want.URL, "test_org", want.TestOrg)
	}
	if len(x.s.own) == 0 {
		return nil
	}
	for id, old := range have {
		if old.UpdatedBy == "config" && x.s.own[id] == nil {
			if err := x.s.deps.Bus.Sender().SendRaw(ctx, topics.Sources, id, nil); err != nil {
				return err
			}
			x.log.Warn("source removed: the configuration has it no more", "source", id)
		}
	}
	return nil
}

// assign takes the group's word on which partitions, and with them which sources, this instance polls.
func (x *sources) assign(ctx context.Context, partitions []int32) error {
	name := topics.Sources.Full(x.s.deps.Bus.Prefix())
	adm := x.s.deps.Bus.Admin()
	if adm == nil {
		return errors.New("no kafka client")
	}
	listed, err := adm.ListTopics(ctx, name)
	if err != nil {
		return fmt.Errorf("count the partitions of %s: %w", name, err)
	}
	n := len(listed[name].Partitions)
	if n == 0 {
		return fmt.Errorf("%s has no partitions: run oktawatch topics apply", name)
	}
	x.mu.Lock()
	x.partitions, x.assigned = int32(n), map[int32]bool{}
	for _, p := range partitions {
		x.assigned[p] = true
	}
	x.mu.Unlock()
	x.kick()
	return nil
}

func (x *sources) mine(id string) bool {
	return x.partitions > 0 && x.assigned[topics.Sources.PartitionFor(id, x.partitions)]
}

// reconcileLoop is the only place where parts are started and stopped.
func (x *sources) reconcileLoop(ctx context.Context, hooks *hooks) error {
	defer func() {
		x.mu.Lock()
		all := slices.Collect(maps.Values(x.running))
		x.running = map[string]*source{}
		x.mu.Unlock()
		for _, src := range all {
			src.stop()
		}
		for _, src := range all {
			src.wait()
		}
	}()
	x.kick()
	t := time.NewTicker(30 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-x.changed:
		case <-t.C: // a refused source may have become good
		}
		x.reconcile(ctx, hooks)
	}
}

func (x *sources) reconcile(ctx context.Context, hooks *hooks) {
	x.mu.Lock()
	wanted, running := maps.Clone(x.wanted), maps.Clone(x.running)
	x.mu.Unlock()

	var gone []*source
	for id, src := range running {
		org, _ := src.org()
		if want := wanted[id]; want == nil || !sameWanted(want, src.want) || org != "" && x.other(id, org) != "" {
			src.stop()
			gone = append(gone, src)
			delete(running, id)
		}
	}
	for _, src := range gone {
		src.wait()
		if wanted[src.id] == nil {
			x.log.Info("source removed", "source", src.id)
		}
	}
	for id, want := range wanted {
		if running[id] != nil {
			continue
		}
		src, err := x.s.newSource(ctx, want)
		x.mu.Lock()
		said := x.refused[id]
		delete(x.refused, id)
		if err != nil {
			x.refused[id] = err.Error()
		}
		x.mu.Unlock()
		if err != nil {
			if said != err.Error() {
				x.log.Error("source not taken", "source", id, "error", err.Error())
			}
			continue
		}
		running[id] = src
		if said != "" {
			x.log.Info("source taken after all", "source", id)
		}
	}
	x.mu.Lock()
	x.running = running
	var lost []*source
	for id, src := range running {
		poll := x.s.has(rolePoller) && x.mine(id) && polled(src.want) && !src.want.Paused
		if !poll && src.polling() {
			lost = append(lost, src)
		}
		if poll {
			src.startPolling()
		}
	}
	var ending []string
	for id, value := range x.cursors {
		if wanted[id] == nil && !strings.Contains(id, "/") && x.mine(id) && value != nil {
			ending = append(ending, id)
		}
	}
	x.mu.Unlock()
	for _, src := range lost {
		src.stopPolling()
	}
	hooks.set(running, wanted)
	for _, id := range ending {
		if err := x.end(ctx, id); err != nil && ctx.Err() == nil {
			x.log.Warn("the removed source's lane could not be ended; trying again", "source", id, "error", err.Error())
		}
	}
}

// end marks the lane of a removed source as over.
func (x *sources) end(ctx context.Context, id string) error {
	c, err := x.cursor(ctx, id)
	if err != nil || c == nil || c.Ended {
		return err
	}
	txn, err := x.s.deps.Bus.OpenTransactional(ctx, topics.PollTransactionalID(id))
	if err != nil {
		return err
	}
	defer txn.Close()
	if c, err = x.cursor(ctx, id); err != nil || c == nil || c.Ended {
		return err
	}
	c.Ended, c.State, c.UpdatedAt = true, "done", milli(time.Now())
	if err := txn.Do(ctx, func(out *bus.Emit) error {
		if err := out.PutRaw(topics.SourceStatus, id+"/"+partPoll, nil); err != nil {
			return err
		}
		return out.Put(topics.Cursors, id, c)
	}); err != nil {
		return err
	}
	x.log.Info("the lane of a removed source has ended", "source", id)
	return nil
}

// ready says whether what this instance has to do can be done.
func (x *sources) ready(context.Context) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	errs := []error{x.err}
	for _, id := range slices.Sorted(maps.Keys(x.refused)) {
		errs = append(errs, fmt.Errorf("source %s: %s", id, x.refused[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(x.running)) {
		if err := x.running[id].trouble1(); err != nil {
			errs = append(errs, fmt.Errorf("source %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// other returns the source that already stands for an org.
func (x *sources) other(id, org string) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	me := x.wanted[id]
	for _, o := range slices.Sorted(maps.Keys(x.wanted)) {
		if o == id || x.wanted[o].Org != org {
			continue
		}
		if me != nil && me.Org == org && id < o {
			continue // both were first: the smaller id stays
		}
		return o
	}
	return ""
}

// recorded is the org's id as the topic has it.
func (x *sources) recorded(id string) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if w := x.wanted[id]; w != nil {
		return w.Org
	}
	return ""
}

func polled(s *record.Source) bool { return s.Auth != nil && (s.Poll == nil || s.Poll.Enabled) }

// source is one source at this instance.
type source struct {
	s      *Service
	id     string
	want   *record.Source
	client *org
	rate   rate // of the poller alone

	ctx    context.Context //nolint:containedctx // lives as long as the source
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	orgID    string
	orgErr   error
	gotOrg   chan struct{}
	troubles map[string]error
	poll     atomic.Pointer[part] // changed by reconcile alone
	hook     hookState
}

type part struct {
	cancel context.CancelFunc
	done   chan struct{}
}

var errUnknownYet = errors.New("the org's id is not known yet")

// newSource checks a record as if it came from anywhere, for it did, and begins to ask who the org is.
func (s *Service) newSource(ctx context.Context, want *record.Source) (*source, error) {
	if !sourceID.MatchString(want.ID) {
		return nil, fmt.Errorf("id %q: want 1 to 63 lower-case letters, digits, - and _", want.ID)
	}
	base, test, err := checkOrgURL(want.URL, want.Labels[customDomainLabel] == "true")
	if err != nil {
		return nil, err
	}
	own := s.own[want.ID]
	if test && (own == nil || own.URL != base.String()) {
		return nil, fmt.Errorf("%s is a loopback address: a test org has to stand in this instance's own configuration", want.URL)
	}
	src := &source{s: s, id: want.ID, want: want, gotOrg: make(chan struct{}), orgErr: errUnknownYet, troubles: map[string]error{}}
	src.hook.news, src.hook.reassert = make(chan struct{}, 1), make(chan struct{}, 1)
	if src.client, err = newOrg(ctx, base, own != nil && own.URL == base.String(), src.token); err != nil {
		return nil, err
	}
	src.ctx, src.cancel = context.WithCancel(ctx)
	if want.Org != "" && !test && s.sources.other(want.ID, want.Org) == "" {
		src.setOrg(want.Org)
	}
	src.wg.Go(func() { src.identify(src.ctx) })
	return src, nil
}

func (src *source) token() (string, error) {
	if src.want.Auth == nil {
		return "", errors.New("the source has no API token")
	}
	if m := src.want.Auth.Method; m != "" && m != "ssws" {
		return "", fmt.Errorf("auth method %q is not known to this version", m)
	}
	token, err := src.s.secrets.read(src.want.Auth.TokenRef)
	if err != nil {
		return "", &tokenError{err}
	}
	return token, nil
}

// tokenError says that there is no token to ask with.
type tokenError struct{ err error }

func (e *tokenError) Error() string { return "API token: " + e.err.Error() }
func (e *tokenError) Unwrap() error { return e.err }

func (src *source) stop() { src.cancel() }

func (src *source) wait() {
	src.stopPolling()
	src.wg.Wait()
	src.client.close()
}

func (src *source) setOrg(id string) {
	src.mu.Lock()
	defer src.mu.Unlock()
	if src.orgID == "" {
		close(src.gotOrg)
	}
	src.orgID, src.orgErr = id, nil
	src.hookNews()
}

func (src *source) org() (string, error) {
	src.mu.Lock()
	defer src.mu.Unlock()
	if src.orgID == "" {
		return "", src.orgErr
	}
	return src.orgID, nil
}

func (src *source) known() <-chan struct{} { return src.gotOrg }

// identify asks the org for its id until it answers, and sees to it that it is nobody else's.
func (src *source) identify(ctx context.Context) {
	last := ""
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, slowly) {
		err := src.identify1(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		src.mu.Lock()
		src.orgErr = err
		src.mu.Unlock()
		src.trouble("org", err)
		if err.Error() != last {
			last = err.Error()
			src.s.log.Warn("source waits", "source", src.id, "error", last)
		}
		if sleep(ctx, jitter(wait)) != nil {
			return
		}
	}
}

func (src *source) identify1(ctx context.Context) error {
	id, err := src.client.identity(ctx)
	if err != nil {
		return err
	}
	if was := src.want.Org; was != "" && was != id && !src.want.TestOrg {
		return fmt.Errorf("%s is org %s now, it was %s: make it a new source under another id", src.want.URL, id, was)
	}
	if err := src.alone(id); err != nil {
		return err
	}
	if src.s.sources.recorded(src.id) != id {
		known := *src.want
		known.Org, known.UpdatedAt = id, milli(time.Now())
		if err := src.s.deps.Bus.Sender().Send(ctx, topics.Sources, src.id, &known); err != nil {
			return err
		}
		if err := src.s.sources.table.Sync(ctx); err != nil {
			return err
		}
		if err := src.alone(id); err != nil { // somebody was as fast as we
			return err
		}
	}
	src.trouble("org", nil)
	src.setOrg(id)
	src.s.log.Info("source known", "source", src.id, "org", id, "org_url", src.want.URL, "test_org", src.want.TestOrg)
	return nil
}

func (src *source) alone(org string) error {
	if other := src.s.sources.other(src.id, org); other != "" {
		return fmt.Errorf("org %s is already the source %q: an org has one source; remove one of them", org, other)
	}
	return nil
}

// trouble notes what keeps a part from working; nil: nothing.
func (src *source) trouble(part string, err error) {
	src.mu.Lock()
	defer src.mu.Unlock()
	if err == nil {
		delete(src.troubles, part)
		return
	}
	src.troubles[part] = err
}

func (src *source) trouble1() error {
	src.mu.Lock()
	defer src.mu.Unlock()
	for _, part := range slices.Sorted(maps.Keys(src.troubles)) {
		return fmt.Errorf("%s: %w", part, src.troubles[part])
	}
	return nil
}

func (src *source) polling() bool { return src.poll.Load() != nil }

func (src *source) startPolling() {
	if src.polling() {
		return
	}
	ctx, cancel := context.WithCancel(src.ctx)
	p := &part{cancel: cancel, done: make(chan struct{})}
	src.poll.Store(p)
	go func() {
		defer close(p.done)
		newPoller(src.s, src).run(ctx)
	}()
}

func (src *source) stopPolling() {
	p := src.poll.Load()
	if p == nil {
		return
	}
	p.cancel()
	<-p.done
	src.poll.Store(nil)
	src.trouble(partPoll, nil)
}

// status begins a status record of one of the source's parts.
func (src *source) status(part string) record.SourceStatus {
	now := time.Now()
	src.mu.Lock()
	defer src.mu.Unlock()
	return record.SourceStatus{
		SourceID: src.id, Part: part, Instance: src.s.deps.Bus.InstanceID(), Org: src.orgID, URL: src.want.URL, TestOrg: src.want.TestOrg,
		HeartbeatAt: milli(now), StartedAt: timeOf(now), State: "starting", Warnings: []string{},
	}
}
