package oktasim

import (
	"fmt"
	"time"
)

// step is one thing a person is about to do.
type step func(t *traffic, p *person) spec

// traffic is the ordinary life of the org: people sign in, open apps, sign out; administrators administrate. Only what ordinary
// orgs do all day: nothing here trips a rule but those that watch every sign-in.
type traffic struct {
	*forge
	c *company
}

const riskLow = `{reasons=, level=LOW}`

var quietBehaviors = `{New Geo-Location=NEGATIVE, New Device=NEGATIVE, New IP=NEGATIVE, Velocity=NEGATIVE}`

var quietSecurity = `{"risk":{"level":"LOW"},"behaviors":{"New Geo-Location":"NEGATIVE","New Device":"NEGATIVE","New IP":"NEGATIVE","Velocity":"NEGATIVE"}}`

// next makes the next ordinary event.
func (t *traffic) next() spec {
	p := t.c.people[t.r.IntN(len(t.c.people))]
	for range 10 { // a company where everybody is locked out still makes events
		if !p.blocked() {
			break
		}
		p.todo, p.session, p.root = nil, "", ""
		p = t.c.people[t.r.IntN(len(t.c.people))]
	}
	if len(p.todo) == 0 {
		t.plan(p)
	}
	s := p.todo[0]
	p.todo = p.todo[1:]
	return s(t, p)
}

// plan decides what p does next.
func (t *traffic) plan(p *person) {
	n := t.r.IntN(1000)
	if p.session == "" {
		switch {
		case n < 60: // a slip of the finger first
			p.todo = append(p.todo, badPassword)
		case n < 80:
			p.todo = []step{viaIDP}
			return
		case n < 100:
			p.todo = []step{viaAD, evaluate, sessionStart}
			return
		case n < 110:
			p.todo = []step{resetMail}
			return
		}
		if p.device != nil {
			p.todo = append(p.todo, evaluate, verify, fastPass, sessionStart)
		} else {
			p.todo = append(p.todo, evaluate, verify, push, pushYes, sessionStart)
		}
		return
	}
	if p.admin && n >= 900 {
		steps := []step{adminApp, groupAdd, groupRemove, appAdd, appRemove, createUser, activateUser, policyRule, appUpdate, unlock, adminProfile}
		p.todo = append(p.todo, steps[0], steps[1+t.r.IntN(len(steps)-1)])
		return
	}
	switch {
	case n < 640:
		p.todo = append(p.todo, appSignOn, sso)
	case n < 720:
		p.todo = append(p.todo, oauthToken)
	case n < 780:
		p.todo = append(p.todo, customToken)
	case n < 800:
		p.todo = append(p.todo, profile)
	case n < 810:
		p.todo = append(p.todo, newPassword)
	case n < 820:
		p.todo = append(p.todo, newFactor)
	case n < 824:
		p.todo = append(p.todo, ownReset, newFactor)
	case n < 830:
		p.todo = append(p.todo, phoneCheck)
	case n < 836:
		p.todo = append(p.todo, enrollDevice, newDeviceMail)
	case n < 838:
		p.todo = append(p.todo, limitWarning)
	case n < 850:
		p.todo = append(p.todo, importJob)
	default:
		p.todo = append(p.todo, sessionEnd)
	}
}

// by makes a spec of something p does from the usual place.
func by(p *person, k kind, result, reason string) spec {
	return spec{kind: k, result: result, reason: reason, actor: p.actor, from: p.origin()}
}

func passwordTarget(p *person) string {
	return thing(p.passwordID, "AuthenticatorEnrollment", "unknown", "Password", "")
}

func (a app) target() string {
	return thing(a.id, "AppInstance", a.label, a.label, `{"signOnModeType":"`+a.mode+`"}`)
}

func dashboard() string {
	return thing("0oa1dashboard0000005d7", "AppInstance", "Okta Dashboard", "Okta Dashboard", "")
}

func badPassword(t *traffic, p *person) spec {
	s := by(p, kSessionFail, "FAILURE", "INVALID_CREDENTIALS")
	s.from.session, s.from.root, s.from.device = "", "", "null"
	t.web(&s, "/idp/idx/identify", "", "loginResult", "INVALID_CREDENTIALS", "authnRequestId", t.id("req", 22), "origin", "https://"+t.c.domain, "risk", riskLow, "behaviors", quietBehaviors, "logOnlySecurityData", quietSecurity)
	s.targets = list(passwordTarget(p), dashboard())
	return s
}

func evaluate(t *traffic, p *person) spec { return evaluateFor(t, p, "ALLOW", dashboard()) }

func evaluateFor(t *traffic, p *person, result, target string) spec {
	s := by(p, kEvaluate, result, "Sign-on policy evaluation resulted in "+result)
	t.web(&s, "/idp/idx/identify", "", "authnRequestId", t.id("req", 22), "risk", riskLow, "behaviors", quietBehaviors, "logOnlySecurityData", quietSecurity)
	s.targets = list(target, thing("rst1catchall00000005d7", "Rule", "unknown", "Catch-all Rule", ""), thing("00p1default000000005d7", "PolicyEntity", "unknown", "Any two factors", `{"policyType":"Okta:SignOn"}`))
	return s
}

func verify(t *traffic, p *person) spec {
	s := by(p, kVerify, "SUCCESS", "")
	t.web(&s, "/idp/idx/challenge/answer", "", "authnRequestId", t.id("req", 22), "origin", "https://"+t.c.domain, "behaviors", quietBehaviors, "risk", riskLow)
	s.targets = list(p.target, passwordTarget(p), dashboard())
	s.credential = "OKTA_CREDENTIAL_PROVIDER"
	return s
}

func fastPass(t *traffic, p *person) spec {
	s := by(p, kMFA, "SUCCESS", "")
	t.web(&s, "/idp/idx/authenticators/poll", "", "authnRequestId", t.id("req", 22), "factor", "SIGNED_NONCE", "factorIntent", "AUTHENTICATION", "origin", "https://"+t.c.domain, "keyTypeUsedForAuthentication", "PROOF_OF_POSSESSION", "risk", riskLow, "behaviors", quietBehaviors)
	s.provider, s.credential = "FACTOR_PROVIDER", "OKTA_CREDENTIAL_PROVIDER"
	s.targets = list(p.target, fastPassTarget(p))
	return s
}

func fastPassTarget(p *person) string {
	return thing(p.fastID, "AuthenticatorEnrollment", "unknown", "Okta Verify", `{"methodTypeUsed":"Use Okta FastPass","methodUsedVerifiedProperties":"[DEVICE_BOUND, HARDWARE_PROTECTED, PHISHING_RESISTANT, USER_PRESENCE]"}`)
}

func push(t *traffic, p *person) spec {
	s := by(p, kPush, "SUCCESS", "")
	t.web(&s, "/idp/idx/challenge", "", "authnRequestId", t.id("req", 22), "factor", "OKTA_VERIFY_PUSH", "origin", "https://"+t.c.domain, "behaviors", quietBehaviors, "risk", riskLow)
	s.targets = list(p.target, thing(p.pushID, "AuthenticatorEnrollment", "unknown", "Okta Verify", `{"methodTypeUsed":"Get a push notification"}`))
	return s
}

func pushYes(t *traffic, p *person) spec {
	s := by(p, kMFA, "SUCCESS", "")
	t.web(&s, "/idp/idx/authenticators/poll", "", "authnRequestId", t.id("req", 22), "factor", "OKTA_VERIFY_PUSH", "pushOnlyResponseType", "OV_RESPONSE_APPROVE", "origin", "https://"+t.c.domain, "behaviors", quietBehaviors, "risk", riskLow)
	s.provider, s.credential = "FACTOR_PROVIDER", "OKTA_CREDENTIAL_PROVIDER"
	s.targets = list(p.target, thing(p.pushID, "AuthenticatorEnrollment", "unknown", "Okta Verify", `{"methodTypeUsed":"Get a push notification","methodUsedVerifiedProperties":"[USER_PRESENCE]"}`))
	return s
}

func sessionStart(t *traffic, p *person) spec {
	t.signIn(p)
	s := by(p, kSessionStart, "SUCCESS", "")
	t.web(&s, "/idp/idx/identify", "", "authnRequestId", t.id("req", 22), "origin", "https://"+t.c.domain, "oktaUserAgentExtended", "okta-auth-js/7.8.1 okta-signin-widget-7.26.1", "risk", riskLow, "behaviors", quietBehaviors, "logOnlySecurityData", quietSecurity)
	s.targets = list(passwordTarget(p), dashboard())
	return s
}

func viaIDP(t *traffic, p *person) spec {
	s := by(p, kIDP, "SUCCESS", "")
	t.web(&s, "/sso/saml2/0oa1partner000000005d7", "", "authnRequestId", t.id("req", 22), "behaviors", quietBehaviors, "risk", riskLow, "initiationType", "IDP_INITIATED", "origin", "https://idp.partner.example")
	s.provider = "FEDERATION"
	s.targets = list(p.target, thing("0oa1partner000000005d7", "AppInstance", "Partner IdP", "Partner IdP", ""))
	return s
}

func viaAD(t *traffic, p *person) spec {
	s := by(p, kAD, "SUCCESS", "")
	t.web(&s, "/idp/idx/identify", "", "authnRequestId", t.id("req", 22), "origin", "https://"+t.c.domain, "behaviors", quietBehaviors, "risk", riskLow)
	s.provider = "ACTIVE_DIRECTORY"
	s.targets = list(p.target, thing("a531northwindad00005d7", "AD Agent", "unknown", "nw-ad-agent-01", ""))
	return s
}

func resetMail(t *traffic, p *person) spec {
	s := by(p, kEmailReset, "SUCCESS", "")
	t.web(&s, "/idp/idx/recover", "", "authnRequestId", t.id("req", 22), "origin", "https://"+t.c.domain, "behaviors", quietBehaviors)
	s.targets = list(p.target)
	return s
}

func (t *traffic) app() app { return t.c.apps[t.r.IntN(len(t.c.apps))] }

func appSignOn(t *traffic, p *person) spec { return evaluateFor(t, p, "ALLOW", t.app().target()) }

func sso(t *traffic, p *person) spec {
	a := t.app()
	s := by(p, kSSO, "SUCCESS", "")
	mode := "SAML 2.0"
	if a.mode == "OPENID_CONNECT" {
		mode = "OpenID Connect"
	}
	t.web(&s, "/app/"+a.name+"/"+a.id+"/sso/saml", "fromLogin=true", "authnRequestId", t.id("req", 22), "initiationType", "SP_INITIATED", "signOnMode", mode, "audience", "https://"+a.name+".example/saml", "subject", p.login, "issuer", "http://www.okta.com/"+a.id)
	s.targets = list(a.target(), thing("0ua"+p.id[3:], "AppUser", p.login, p.name(), ""))
	s.provider = "OKTA_AUTHENTICATION_PROVIDER"
	return s
}

func oauthToken(t *traffic, p *person) spec {
	s := by(p, kToken, "SUCCESS", "")
	t.web(&s, "/oauth2/v1/token", "", "grantType", "authorization_code", "grantedScopes", "openid, email, profile", "requestedScopes", "openid, email, profile", "clientAuthType", "client_secret_post", "redirectUri", "https://portal.northwind.example/callback", "responseTime", itoa(40+t.r.IntN(300)))
	a := t.c.apps[6]
	s.actor = person0(a.id, "PublicClientApp", a.id, a.label)
	s.targets = list(p.target, thing(t.id("AT.", 32), "access_token", "", "Access Token", `{"expires":"`+time.Unix(1900000000, 0).UTC().Format(time.RFC3339)+`","hash":"`+t.id("", 22)+`"}`))
	return s
}

func customToken(t *traffic, p *person) spec {
	s := by(p, kASToken, "SUCCESS", "")
	t.web(&s, "/oauth2/aus1northwind00005d7/v1/token", "", "grantType", "refresh_token", "grantedScopes", "offline_access, orders.read", "requestedScopes", "offline_access, orders.read", "authorizationServer", "aus1northwind00005d7", "authorizationServerName", "orders", "clientAuthType", "private_key_jwt", "responseTime", itoa(40+t.r.IntN(300)))
	a := t.c.apps[9]
	s.actor = person0(a.id, "PublicClientApp", a.id, a.label)
	s.targets = list(p.target, thing(t.id("AT.", 32), "access_token", "", "Access Token", `{"expires":"`+time.Unix(1900000000, 0).UTC().Format(time.RFC3339)+`","hash":"`+t.id("", 22)+`"}`))
	return s
}

func profile(t *traffic, p *person) spec {
	s := by(p, kProfile, "SUCCESS", "")
	t.web(&s, "/enduser/api/v1/settings/profile", "", "changedAttributes", "mobilePhone", "origin", "https://"+t.c.domain, "oktaUserAgentExtended", "okta-auth-js/7.8.1", "behaviors", quietBehaviors)
	s.targets = list(p.target)
	return s
}

func newPassword(t *traffic, p *person) spec {
	s := by(p, kPasswordUpdate, "SUCCESS", "")
	t.web(&s, "/enduser/api/v1/settings/password", "", "origin", "https://"+t.c.domain, "oktaUserAgentExtended", "okta-auth-js/7.8.1", "behaviors", quietBehaviors, "risk", riskLow)
	s.targets = list(p.target)
	return s
}

func newFactor(t *traffic, p *person) spec {
	s := by(p, kFactorOn, "SUCCESS", "User set up OKTA_VERIFY_PUSH factor")
	t.web(&s, "/idp/idx/challenge/answer", "", "authnRequestId", t.id("req", 22), "factor", "OKTA_VERIFY_PUSH", "origin", "https://"+t.c.domain, "behaviors", quietBehaviors, "risk", riskLow)
	s.targets = list(p.target, thing(p.pushID, "AuthenticatorEnrollment", "unknown", "Okta Verify", ""))
	return s
}

// ownReset is a near miss: a factor goes, but its owner took it off.
func ownReset(t *traffic, p *person) spec {
	s := by(p, kFactorOff, "SUCCESS", "User reset OKTA_VERIFY_PUSH factor")
	t.web(&s, "/enduser/api/v1/settings/authenticators", "", "factor", "OKTA_VERIFY_PUSH", "origin", "https://"+t.c.domain, "behaviors", quietBehaviors, "risk", riskLow)
	s.targets = list(p.target)
	return s
}

func phoneCheck(t *traffic, p *person) spec {
	s := by(p, kSMS, "SUCCESS", "")
	t.web(&s, "/idp/idx/challenge", "", "authnRequestId", t.id("req", 22), "phoneNumber", "+1555010"+fmt.Sprintf("%04d", p.num%10000), "countryCallingCode", "1", "smsProvider", "TWILIO", "behaviors", quietBehaviors, "risk", riskLow)
	s.targets = list(p.target)
	return s
}

func enrollDevice(t *traffic, p *person) spec {
	s := by(p, kEnrollment, "SUCCESS", "")
	t.web(&s, "/idp/authenticators", "", "behaviors", quietBehaviors, "risk", riskLow, "oktaUserAgentExtended", "OktaVerify/9.30.0")
	d := `{"osPlatform":"OSX","osVersion":"15.6.1","managed":"false","deviceStatus":"ACTIVE","tpmPresent":"true"}`
	id := "guo" + p.id[3:]
	if p.device != nil {
		id = p.device.id
	}
	s.targets = list(thing(id, "Device", "", p.first+"'s machine", d), p.target)
	return s
}

func newDeviceMail(t *traffic, p *person) spec {
	s := by(p, kNewDevice, "SUCCESS", "")
	t.web(&s, "/idp/idx/identify", "", "authnRequestId", t.id("req", 22), "emailProvider", "SENDGRID", "behaviors", quietBehaviors, "risk", riskLow)
	s.targets = list(p.target)
	return s
}

func limitWarning(t *traffic, p *person) spec {
	s := spec{kind: kOrgLimitWarn, actor: systemActor, from: p.origin()}
	s.from.session, s.from.root, s.from.device = "", "", "null"
	t.web(&s, "/api/v1/users", "limit=200", "userId", p.id, "threshold", "600", "timeSpan", "1", "timeUnit", "MINUTES", "warningPercent", "60", "rateLimitScopeType", "ORG", "rateLimitSecondsToReset", "21", "rateLimitBucketUuid", "0f1c9a3e-55d2-4b7f-9a53-2f7c1f4b8a10")
	s.targets = list(thing("/api/v1/users", "URL Pattern", "", "", ""), thing("0f1c9a3e-55d2-4b7f-9a53-2f7c1f4b8a10", "Bucket Uuid", "", "", ""))
	return s
}

// importJob is the event without a client: a job of the directory import.
func importJob(t *traffic, p *person) spec {
	a := t.app()
	s := spec{kind: kAppAdd, result: "SUCCESS", actor: systemActor, job: true, txn: t.id("gam", 17)}
	s.from = origin{client: noClient, chain: "[]", security: noSecurity, device: "null"}
	s.debug = kv(kv(kv(nil, "appname", a.name), "changedAttributes", "department, manager, title, mobilePhone"), "traceId", formatUUID(t.uuid(time.Unix(0, 0))))
	s.targets = list(thing("0ua"+p.id[3:], "AppUser", p.login, p.name(), ""), thing(a.id, "AppInstance", a.label, a.label, ""), p.target)
	return s
}

func sessionEnd(t *traffic, p *person) spec {
	s := by(p, kSessionEnd, "SUCCESS", "")
	t.web(&s, "/login/signout", "fromURI=https%3A%2F%2Fportal.northwind.example", "origin", "https://"+t.c.domain, "behaviors", quietBehaviors, "risk", riskLow)
	s.targets = list(p.target)
	p.session, p.root = "", ""
	return s
}

func (t *traffic) other(p *person) *person {
	for {
		q := t.c.people[t.r.IntN(len(t.c.people))]
		if q != p || len(t.c.people) == 1 {
			return q
		}
	}
}

func adminApp(t *traffic, p *person) spec {
	s := by(p, kAdminApp, "SUCCESS", "")
	t.web(&s, "/admin/sso/request", "", "origin", "https://"+t.c.domain, "behaviors", quietBehaviors, "risk", riskLow)
	s.targets = list(thing("0oa1adminconsole0005d7", "AppInstance", "Okta Admin Console", "Okta Admin Console", ""), p.target)
	return s
}

func admin(t *traffic, p *person, k kind, uri, reason string, more ...string) spec {
	s := by(p, k, "SUCCESS", reason)
	t.web(&s, uri, "", append([]string{"origin", "https://admin." + t.c.domain, "oktaUserAgentExtended", "okta-admin-ui/2026.11.0", "behaviors", quietBehaviors}, more...)...)
	return s
}

func groupAdd(t *traffic, p *person) spec { return membership(t, p, kGroupAdd) }

func groupRemove(t *traffic, p *person) spec { return membership(t, p, kGroupRemove) }

func membership(t *traffic, p *person, k kind) spec {
	q, g := t.other(p), t.c.groups[1+t.r.IntN(len(t.c.groups)-1)]
	s := admin(t, p, k, "/api/v1/groups/"+g.id+"/users/"+q.id, "")
	s.targets = list(q.target, thing(g.id, "UserGroup", "unknown", g.name, ""))
	return s
}

func appAdd(t *traffic, p *person) spec { return assignment(t, p, kAppAdd) }

func appRemove(t *traffic, p *person) spec { return assignment(t, p, kAppRemove) }

func assignment(t *traffic, p *person, k kind) spec {
	q, a := t.other(p), t.app()
	s := admin(t, p, k, "/api/v1/apps/"+a.id+"/users", "", "appname", a.name)
	s.targets = list(thing("0ua"+q.id[3:], "AppUser", q.login, q.name(), ""), thing(a.id, "AppInstance", a.label, a.label, ""), q.target)
	return s
}

func createUser(t *traffic, p *person) spec {
	s := admin(t, p, kUserCreate, "/api/v1/users", "")
	s.targets = list(t.other(p).target)
	return s
}

func activateUser(t *traffic, p *person) spec {
	q := t.other(p)
	s := admin(t, p, kUserActivate, "/api/v1/users/"+q.id+"/lifecycle/activate", "")
	s.targets = list(q.target)
	return s
}

func unlock(t *traffic, p *person) spec {
	q := t.other(p)
	s := admin(t, p, kUnlock, "/api/v1/users/"+q.id+"/lifecycle/unlock", "")
	s.targets = list(q.target)
	return s
}

func adminProfile(t *traffic, p *person) spec {
	q := t.other(p)
	s := admin(t, p, kProfile, "/api/v1/users/"+q.id, "", "changedAttributes", "title, department")
	s.targets = list(q.target)
	return s
}

func policyRule(t *traffic, p *person) spec {
	s := admin(t, p, kPolicyRule, "/api/v1/policies/00p1default000000005d7/rules/rul1office0000005d7", "")
	s.targets = list(thing("rul1office0000005d7", "PolicyRule", "unknown", "Office network", `{"policyId":"00p1default000000005d7","policyName":"Any two factors","policyType":"OktaSignOn","policyRulePriority":"2"}`))
	return s
}

func appUpdate(t *traffic, p *person) spec {
	a := t.app()
	s := admin(t, p, kAppUpdate, "/api/v1/apps/"+a.id, "")
	target := thing(a.id, "AppInstance", a.label, a.label, "")
	s.targets = list(target[:len(target)-1] + `,"changeDetails":{"from":{"label":"` + a.label + ` (old)"},"to":{"label":"` + a.label + `"}}}`)
	return s
}
