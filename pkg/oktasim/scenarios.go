package oktasim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Scenario is an attack as a story: who does what, one event a step.
type Scenario struct {
	Name  string   `json:"name"`
	Doc   string   `json:"doc"`
	Steps []Step   `json:"steps"`
	Rules []string `json:"rules"`           // catalogue rules that it trips, one event at a time
	Later []string `json:"later,omitempty"` // catalogue rules over several events that it should trip
}

// Step is one thing that happens, once or several times.
type Step struct {
	Text  string        `json:"text"`
	After time.Duration `json:"after"` // the pause before it, also between repetitions
	Times int           `json:"times"` // zero: once
	event func(c *cast, n int) spec
}

// cast are the people of one performance.
type cast struct {
	o        *Org
	t        *traffic
	victim   *person // a colleague
	admin    *person // an administrator
	helpdesk *person // another one
	lair     *place
	ip       string
	agent    *agent
	session  string // the attacker's
	hash     string
	print    string
}

func (o *Org) newCast() *cast {
	t, c := o.traffic, o.company
	k := &cast{o: o, t: t, victim: c.people[t.r.IntN(len(c.people))], lair: &lairs[t.r.IntN(len(lairs))], agent: &oddAgent, session: t.id("idx", 22), hash: t.hex(64), print: t.hex(32)}
	k.admin = c.admins[t.r.IntN(len(c.admins))]
	k.helpdesk = c.admins[t.r.IntN(len(c.admins))]
	if k.helpdesk == k.admin && len(c.admins) > 1 {
		for k.helpdesk == k.admin {
			k.helpdesk = c.admins[t.r.IntN(len(c.admins))]
		}
	}
	for range 20 {
		if k.victim != k.admin && k.victim != k.helpdesk && !k.victim.blocked() {
			break
		}
		k.victim = c.people[t.r.IntN(len(c.people))]
	}
	k.ip = address(t.r, k.lair)
	return k
}

// origin is where the attacker comes from, signed in or not.
func (c *cast) origin(session string) origin {
	o := origin{client: clientJSON(c.lair, c.agent, c.ip), chain: chainJSON(c.lair, c.ip, false), security: securityJSON(c.lair), device: "null", session: session, dtHash: c.hash, fingerprint: c.print}
	if session != "" {
		o.root = session
	}
	return o
}

const (
	newBehaviors = `{New Geo-Location=POSITIVE, New Device=POSITIVE, New IP=POSITIVE, New Country=POSITIVE, Velocity=POSITIVE}`
	riskHigh     = `{reasons=Anomalous Device, Anomalous Location, Anomalous Geo-Distance, level=HIGH}`
	loudSecurity = `{"risk":{"level":"HIGH","reasons":"Anomalous Device, Anomalous Location"},"behaviors":{"New Geo-Location":"POSITIVE","New Device":"POSITIVE","New IP":"POSITIVE","New Country":"POSITIVE","Velocity":"POSITIVE"}}`
)

// foe makes an event done as p from the attacker's place.
func (c *cast) foe(p *person, k kind, result, reason, session, uri string, more ...string) spec {
	s := spec{kind: k, result: result, reason: reason, actor: p.actor, from: c.origin(session)}
	c.t.web(&s, uri, "", append([]string{"authnRequestId", c.t.id("req", 22), "origin", "https://" + c.t.c.domain, "risk", riskHigh, "behaviors", newBehaviors, "logOnlySecurityData", loudSecurity}, more...)...)
	return s
}

// friend makes an event that an administrator does from the usual place.
func (c *cast) friend(p *person, k kind, reason, uri string, targets ...string) spec {
	if p.session == "" {
		c.t.signIn(p)
	}
	s := admin(c.t, p, k, uri, reason, "risk", riskLow)
	s.targets = list(targets...)
	return s
}

func foeLogin(who func(c *cast) *person) func(*cast, int) spec {
	return func(c *cast, _ int) spec {
		p := who(c)
		s := c.foe(p, kSessionStart, "SUCCESS", "", c.session, "/idp/idx/identify", "oktaUserAgentExtended", "okta-auth-js/7.8.1 okta-signin-widget-7.26.1")
		s.targets = list(passwordTarget(p), dashboard())
		return s
	}
}

func theAdmin(c *cast) *person { return c.admin }

func theVictim(c *cast) *person { return c.victim }

func passwordReset(c *cast, _ int) spec {
	c.o.setStatus(c.admin, "RECOVERY")
	return c.friend(c.helpdesk, kPasswordReset, "", "/api/v1/users/"+c.admin.id+"/lifecycle/reset_password", c.admin.target)
}

func factorsReset(c *cast, _ int) spec {
	return c.friend(c.helpdesk, kFactorReset, "", "/api/v1/users/"+c.admin.id+"/lifecycle/reset_factors", c.admin.target)
}

func foeFactor(who func(c *cast) *person) func(*cast, int) spec {
	return func(c *cast, _ int) spec {
		p := who(c)
		s := c.foe(p, kFactorOn, "SUCCESS", "User set up OKTA_SOFT_TOKEN factor", c.session, "/idp/idx/challenge/answer", "factor", "OKTA_SOFT_TOKEN")
		s.targets = list(p.target, thing(c.t.id("uft", 17), "AuthenticatorEnrollment", "unknown", "Google Authenticator", ""))
		return s
	}
}

func foeAdminApp(c *cast, _ int) spec {
	s := c.foe(c.admin, kAdminApp, "SUCCESS", "", c.session, "/admin/sso/request")
	s.targets = list(thing("0oa1adminconsole0005d7", "AppInstance", "Okta Admin Console", "Okta Admin Console", ""), c.admin.target)
	return s
}

func foeGrant(c *cast, _ int) spec {
	s := c.foe(c.admin, kGrant, "SUCCESS", "", c.session, "/api/internal/administrators/"+c.victim.id, "privilegeGranted", "Super administrator")
	s.targets = list(c.victim.target)
	return s
}

func foeToken(c *cast, _ int) spec {
	s := c.foe(c.admin, kAPIToken, "SUCCESS", "", c.session, "/api/internal/tokens")
	s.targets = list(thing(c.t.id("00T", 17), "Token", "unknown", "backup-sync", ""))
	return s
}

func phishingDeclined(c *cast, _ int) spec {
	s := c.foe(c.victim, kMFAFail, "FAILURE", "FastPass declined phishing attempt", "", "/idp/idx/authenticators/poll", "factor", "SIGNED_NONCE", "factorIntent", "AUTHENTICATION")
	s.from.device = c.victim.deviceJSON
	s.provider, s.credential = "FACTOR_PROVIDER", "OKTA_CREDENTIAL_PROVIDER"
	s.authenticator = `"requestOrigin":"https://northwind-example.login.attacker.example","bindingMethod":"LOOPBACK","validationStatus":"ORIGIN_MISMATCH","userConsent":"NONE"`
	s.targets = list(c.victim.target, fastPassTarget(c.victim))
	return s
}

func reported(c *cast, _ int) spec {
	s := by(c.victim, kReport, "SUCCESS", "")
	c.t.web(&s, "/api/internal/users/me/report_suspicious_activity", "", "origin", "https://"+c.t.c.domain, "suspiciousActivityBrowser", c.agent.browser, "suspiciousActivityEventCity", c.lair.city,
		"suspiciousActivityEventCountry", c.lair.country, "suspiciousActivityEventId", c.t.id("evt", 17), "suspiciousActivityEventIp", c.ip, "suspiciousActivityEventState", c.lair.state,
		"suspiciousActivityEventTransactionId", c.t.id("", 27), "suspiciousActivityEventType", "system.email.new_device_notification.sent_message", "suspiciousActivityOs", c.agent.os, "suspiciousActivityTimestamp", stamp(c.o.now()))
	s.targets = list(c.victim.target)
	return s
}

func victimLogin(c *cast, _ int) spec { return sessionStart(c.t, c.victim) }

func victimApp(c *cast, _ int) spec { return sso(c.t, c.victim) }

func roaming(c *cast, _ int) spec {
	s := c.foe(c.victim, kRoaming, "DENY", "Session roamed to another client", c.victim.session, "/admin/sso/callback")
	s.targets = list(c.victim.target)
	return s
}

func wrongPassword(c *cast, n int) spec {
	s := c.foe(c.victim, kSessionFail, "FAILURE", "INVALID_CREDENTIALS", "", "/api/v1/authn", "loginResult", "INVALID_CREDENTIALS")
	s.targets = list(passwordTarget(c.victim))
	return s
}

func sprayed(c *cast, n int) spec {
	p := c.o.company.people[(c.victim.num+n)%len(c.o.company.people)]
	s := c.foe(p, kSessionFail, "FAILURE", "INVALID_CREDENTIALS", "", "/api/v1/authn", "loginResult", "INVALID_CREDENTIALS")
	s.targets = list(passwordTarget(p))
	return s
}

func locked(c *cast, _ int) spec {
	c.o.setStatus(c.victim, "LOCKED_OUT")
	s := c.foe(c.victim, kLock, "FAILURE", "LOCKED_OUT", "", "/api/v1/authn")
	s.targets = list(c.victim.target)
	return s
}

func flooded(c *cast, _ int) spec {
	s := c.foe(c.victim, kOrgLimit, "", "", "", "/api/v1/users", "userId", c.victim.id, "threshold", "600", "timeSpan", "1", "timeUnit", "MINUTES", "rateLimitScopeType", "ORG", "rateLimitSecondsToReset", "41", "rateLimitBucketUuid", "0f1c9a3e-55d2-4b7f-9a53-2f7c1f4b8a10")
	s.actor = systemActor
	s.targets = list(thing("/api/v1/users", "URL Pattern", "", "", ""), thing("0f1c9a3e-55d2-4b7f-9a53-2f7c1f4b8a10", "Bucket Uuid", "", "", ""))
	return s
}

func apiCall(c *cast, _ int) spec {
	s := c.foe(c.victim, kToken, "SUCCESS", "", "", "/oauth2/v1/token", "grantType", "client_credentials", "grantedScopes", "okta.users.read", "requestedScopes", "okta.users.read")
	s.targets = list(c.victim.target)
	return s
}

func suspended(c *cast, _ int) spec {
	c.o.setStatus(c.victim, "SUSPENDED")
	return c.friend(c.admin, kUserSuspend, "", "/api/v1/users/"+c.victim.id+"/lifecycle/suspend", c.victim.target)
}

func factorOff(c *cast, _ int) spec {
	s := c.foe(c.admin, kFactorOff, "SUCCESS", "Admin reset OKTA_VERIFY_PUSH factor", c.session, "/api/v1/users/"+c.victim.id+"/factors/"+c.victim.pushID, "factor", "OKTA_VERIFY_PUSH")
	s.targets = list(c.victim.target, thing(c.victim.pushID, "AuthenticatorEnrollment", "unknown", "Okta Verify", ""))
	return s
}

func pushSent(c *cast, _ int) spec {
	s := c.foe(c.victim, kPush, "SUCCESS", "", "", "/idp/idx/challenge", "factor", "OKTA_VERIFY_PUSH")
	s.targets = list(c.victim.target, thing(c.victim.pushID, "AuthenticatorEnrollment", "unknown", "Okta Verify", ""))
	return s
}

func pushNo(c *cast, _ int) spec {
	s := c.foe(c.victim, kDenyPush, "DENY", "User rejected Okta push verify", "", "/idp/idx/authenticators/poll", "factor", "OKTA_VERIFY_PUSH", "pushOnlyResponseType", "OV_RESPONSE_DENY")
	s.targets = list(c.victim.target, thing(c.victim.pushID, "AuthenticatorEnrollment", "unknown", "Okta Verify", ""))
	return s
}

func pushGivenIn(c *cast, _ int) spec {
	s := c.foe(c.victim, kMFA, "SUCCESS", "", "", "/idp/idx/authenticators/poll", "factor", "OKTA_VERIFY_PUSH", "pushOnlyResponseType", "OV_RESPONSE_APPROVE")
	s.targets = list(c.victim.target, thing(c.victim.pushID, "AuthenticatorEnrollment", "unknown", "Okta Verify", ""))
	return s
}

// Scenarios is the whole list: the command's help, the control API and the tests read it.
func Scenarios() []Scenario {
	const s = time.Second
	return []Scenario{
		{
			Name: "helpdesk-takeover", Doc: "The help desk is talked into resetting an administrator; the caller makes himself at home.",
			Rules: []string{"password-reset", "mfa-all-factors-reset", "user-login", "admin-role-granted-to-user", "api-token-created"},
			Later: []string{"api-token-or-ad-agent-change-from-new-source"},
			Steps: []Step{
				{Text: "the help desk resets the administrator's password", event: passwordReset},
				{Text: "and all factors, on the same call", After: 20 * s, event: factorsReset},
				{Text: "sign-in as the administrator from another country on a new device", After: 60 * s, event: foeLogin(theAdmin)},
				{Text: "a factor of the attacker is enrolled", After: 15 * s, event: foeFactor(theAdmin)},
				{Text: "the admin console is opened", After: 10 * s, event: foeAdminApp},
				{Text: "a colleague's account is made super administrator", After: 30 * s, event: foeGrant},
				{Text: "an API token is made to stay", After: 30 * s, event: foeToken},
			},
		},
		{
			Name: "phishing-proxy", Doc: "A user follows a link to a proxy of the sign-in page; FastPass refuses, the user reports it.",
			Rules: []string{"fastpass-phishing-declined", "user-reported-suspicious-activity"},
			Steps: []Step{
				{Text: "FastPass declines a sign-in whose origin is not the org", event: phishingDeclined},
				{Text: "and once more", After: 10 * s, event: phishingDeclined},
				{Text: "the user reports suspicious activity", After: 90 * s, event: reported},
			},
		},
		{
			Name: "stolen-session", Doc: "A session cookie taken by malware is used from elsewhere.",
			Rules: []string{"user-login", "session-client-roaming-denied"},
			Steps: []Step{
				{Text: "the user signs in as every day", event: victimLogin},
				{Text: "and opens an app", After: 15 * s, event: victimApp},
				{Text: "the same session turns up on another client and is refused", After: 60 * s, event: roaming},
			},
		},
		{
			Name: "password-guessing", Doc: "One account is guessed at until Okta locks it.",
			Rules: []string{"user-login", "account-locked"},
			Steps: []Step{
				{Text: "a wrong password from an anonymizer", After: 2 * s, Times: 10, event: wrongPassword},
				{Text: "Okta locks the account", After: 1 * s, event: locked},
			},
		},
		{
			Name: "password-spray", Doc: "One address tries one password on many accounts.",
			Rules: []string{"user-login"}, Later: []string{"password-spray-one-ip-burst", "password-spray-one-ip-hourly", "login-failures-by-ip"},
			Steps: []Step{{Text: "a wrong password, another account each time", After: 2 * s, Times: 25, event: sprayed}},
		},
		{
			Name: "push-fatigue", Doc: "The password is known; pushes are sent until the user gives in.",
			Rules: []string{"user-login"}, Later: []string{"push-denied", "push-denials-repeated", "push-bombing", "push-bombing-then-success"},
			Steps: []Step{
				{Text: "a push is sent", After: 5 * s, Times: 6, event: pushSent},
				{Text: "the user denies", After: 3 * s, Times: 5, event: pushNo},
				{Text: "and in the end approves", After: 20 * s, event: pushGivenIn},
				{Text: "the attacker is in", After: 1 * s, event: foeLogin(theVictim)},
			},
		},
		{
			Name: "api-flood", Doc: "A leaked credential reads the whole directory until the org's limit is hit.",
			Rules: []string{"rate-limit-violation"},
			Steps: []Step{
				{Text: "tokens are taken one after the other", After: 1 * s, Times: 5, event: apiCall},
				{Text: "the org's rate limit is exceeded", After: 5 * s, event: flooded},
			},
		},
		{
			Name: "factor-swap", Doc: "With a stolen admin session a colleague's factor is removed and replaced.",
			Rules: []string{"mfa-factor-disabled", "user-login"},
			Steps: []Step{
				{Text: "the admin's session removes the colleague's push factor", event: factorOff},
				{Text: "the attacker signs in as the colleague", After: 45 * s, event: foeLogin(theVictim)},
				{Text: "and enrolls a factor", After: 15 * s, event: foeFactor(theVictim)},
			},
		},
		{
			Name: "account-contained", Doc: "A user reports activity that was not theirs; an administrator suspends the account.",
			Rules: []string{"user-reported-suspicious-activity", "user-suspended"},
			Steps: []Step{
				{Text: "the user reports suspicious activity", event: reported},
				{Text: "an administrator suspends the account", After: 60 * s, event: suspended},
			},
		},
	}
}

func scenarioNamed(name string) (Scenario, bool) {
	for _, s := range Scenarios() {
		if s.Name == name {
			return s, true
		}
	}
	return Scenario{}, false
}

func scenarioNames() string {
	var names []string
	for _, s := range Scenarios() {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

// maxPlays is how many scenarios go on at once.
const maxPlays = 256

// play is a performance asked for, to be run in the background.
type play struct {
	name string
	pace float64
}

// Play performs a scenario and returns the sequence numbers of its events, in order. With pace 1 it takes the story's time, with
// 10 a tenth of it, with 0 or less no time at all. The pauses need no Run.
func (o *Org) Play(ctx context.Context, name string, pace float64) ([]uint64, error) {
	sc, ok := scenarioNamed(name)
	if !ok {
		return nil, fmt.Errorf("play scenario %q: there is none: choose of %s", name, scenarioNames())
	}
	o.genMu.Lock()
	c := o.newCast()
	o.genMu.Unlock()
	var seqs []uint64
	for _, st := range sc.Steps {
		for n := range max(st.Times, 1) {
			if pace > 0 && st.After > 0 && !sleep(ctx, time.Duration(float64(st.After)/pace)) {
				return seqs, fmt.Errorf("play scenario %s: %w", name, ctx.Err())
			}
			o.genMu.Lock()
			if o.quiet {
				o.genMu.Unlock()
				return seqs, fmt.Errorf("play scenario %s: %w", name, errQuiet)
			}
			now := o.now()
			s := st.event(c, n)
			s.scenario = name
			seq, err := o.publish(now, []draft{o.traffic.render(&s, now)})
			o.genMu.Unlock()
			if err != nil {
				return seqs, fmt.Errorf("play scenario %s: %w", name, err)
			}
			seqs = append(seqs, seq)
		}
	}
	return seqs, nil
}

// perform runs the performances asked for, each in its own time.
func (o *Org) perform(ctx context.Context) error {
	done := make(chan struct{})
	n := 0
	defer func() {
		for ; n > 0; n-- {
			<-done
		}
	}()
	for {
		plays := o.plays
		if n >= maxPlays {
			plays = nil // they wait, then are refused
		}
		select {
		case <-ctx.Done():
			return nil
		case <-done:
			n--
		case p := <-plays:
			n++
			o.log.Info("scenario begins", "scenario", p.name, "pace", p.pace)
			go func() {
				if _, err := o.Play(ctx, p.name, p.pace); err != nil && ctx.Err() == nil && !errors.Is(err, errQuiet) {
					o.log.Warn("scenario broke off", "scenario", p.name, "error", err)
				}
				done <- struct{}{}
			}()
		}
	}
}

// takeTurns plays the configured scenarios one after the other.
func (o *Org) takeTurns(ctx context.Context) error {
	names := o.cfg.Scenarios
	if len(names) == 0 {
		for _, s := range Scenarios() {
			names = append(names, s.Name)
		}
	}
	for i := 0; ; i++ {
		if i%len(names) == 0 && i > 0 {
			r := rand.New(rand.NewPCG(o.cfg.Seed, uint64(i)))
			names = append([]string(nil), names...)
			r.Shuffle(len(names), func(a, b int) { names[a], names[b] = names[b], names[a] })
		}
		if !sleep(ctx, o.cfg.ScenarioEvery) {
			return nil
		}
		if o.paused.Load() {
			continue
		}
		select {
		case o.plays <- play{names[i%len(names)], o.cfg.ScenarioPace}:
		default: // too many go on; this turn is missed
		}
	}
}
