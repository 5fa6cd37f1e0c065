package oktasim

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"strconv"
	"time"
)

// kind is what is always the same about an event type.
type kind struct{ typ, message, legacy, severity string }

var (
	kSessionStart   = kind{"user.session.start", "User login to Okta", "core.user_auth.login_success", "INFO"}
	kSessionFail    = kind{"user.session.start", "User login to Okta", "core.user_auth.login_failed", "WARN"}
	kSessionEnd     = kind{"user.session.end", "User logout from Okta", "core.user_auth.logout_success", "INFO"}
	kEvaluate       = kind{"policy.evaluate_sign_on", "Evaluation of sign-on policy", "", "INFO"}
	kMFA            = kind{"user.authentication.auth_via_mfa", "Authentication of user via MFA", "core.user.factor.attempt_success", "INFO"}
	kMFAFail        = kind{"user.authentication.auth_via_mfa", "Authentication of user via MFA", "core.user.factor.attempt_fail", "WARN"}
	kVerify         = kind{"user.authentication.verify", "Verify user identity", "", "INFO"}
	kPush           = kind{"system.push.send_factor_verify_push", "Send verify push notification to a user", "", "INFO"}
	kDenyPush       = kind{"user.mfa.okta_verify.deny_push", "User rejected Okta push verify", "", "INFO"}
	kSSO            = kind{"user.authentication.sso", "User single sign on to app", "app.auth.sso", "INFO"}
	kIDP            = kind{"user.authentication.auth_via_IDP", "Authenticate user via IDP", "core.user_auth.idp.saml.login_success", "INFO"}
	kAD             = kind{"user.authentication.auth_via_AD_agent", "Authenticate user with AD agent", "", "INFO"}
	kAdminApp       = kind{"user.session.access_admin_app", "User accessing Okta admin app", "app.admin.sso.login.success", "INFO"}
	kToken          = kind{"app.oauth2.token.grant.access_token", "OAuth2 access token is granted", "app.oauth2.token.grant.access_token_success", "INFO"}
	kASToken        = kind{"app.oauth2.as.token.grant.access_token", "OAuth2 access token is granted", "app.oauth2.as.token.grant.access_token_success", "INFO"}
	kGroupAdd       = kind{"group.user_membership.add", "Add user to group membership", "core.user_group_member.user_add", "INFO"}
	kGroupRemove    = kind{"group.user_membership.remove", "Remove user from group membership", "core.user_group_member.user_remove", "INFO"}
	kAppAdd         = kind{"application.user_membership.add", "Add user to application membership", "app.generic.provision.assign_user_to_app", "INFO"}
	kAppRemove      = kind{"application.user_membership.remove", "Remove user's application membership", "app.generic.provision.deassign_user_from_app", "INFO"}
	kUserCreate     = kind{"user.lifecycle.create", "Create Okta user", "core.user.config.user_creation.success", "INFO"}
	kUserActivate   = kind{"user.lifecycle.activate", "Activate Okta user", "core.user.config.user_activated", "INFO"}
	kUserSuspend    = kind{"user.lifecycle.suspend", "Suspend Okta user", "core.user.config.user_status.suspended", "INFO"}
	kProfile        = kind{"user.account.update_profile", "Update user profile for Okta", "core.user.config.profile_update.success", "INFO"}
	kPasswordUpdate = kind{"user.account.update_password", "User update password for Okta", "core.user.config.password_update.success", "INFO"}
	kPasswordReset  = kind{"user.account.reset_password", "User reset password for Okta (by admin)", "core.user.config.user_status.password_reset", "INFO"}
	kUnlock         = kind{"user.account.unlock", "Unlock user account for Okta", "core.user.config.user_status.unlock", "INFO"}
	kLock           = kind{"user.account.lock", "Max sign in attempts exceeded", "core.user_auth.account_locked", "DEBUG"}
	kGrant          = kind{"user.account.privilege.grant", "Grant user privilege", "core.user.admin_privilege.granted", "INFO"}
	kReport         = kind{"user.account.report_suspicious_activity_by_enduser", "User report suspicious activity", "core.user.account.report_suspicious_activity_by_enduser", "WARN"}
	kFactorOn       = kind{"user.mfa.factor.activate", "Activate factor or authenticator enrollment for user", "core.user.factor.activate", "INFO"}
	kFactorOff      = kind{"user.mfa.factor.deactivate", "Reset factor for user", "core.user.factor.reset", "INFO"}
	kFactorReset    = kind{"user.mfa.factor.reset_all", "Reset all factors for user", "core.user.factor.reset_all", "INFO"}
	kAPIToken       = kind{"system.api_token.create", "Create API token", "api.token.create", "INFO"}
	kRoaming        = kind{"security.session.detect_client_roaming", "Detected a change in client for the session", "", "WARN"}
	kOrgLimitWarn   = kind{"system.org.rate_limit.warning", "Rate limit warning", "core.framework.ratelimit.warning", "WARN"}
	kOrgLimit       = kind{"system.org.rate_limit.violation", "Rate limit violation", "core.framework.ratelimit.exceeded", "WARN"}
	kOperationWarn  = kind{"system.operation.rate_limit.warning", "Operation rate limit warning", "", "WARN"}
	kOperationLimit = kind{"system.operation.rate_limit.violation", "Operation rate limit violation", "", "WARN"}
	kEnrollment     = kind{"device.enrollment.create", "Enroll a device", "", "INFO"}
	kPolicyRule     = kind{"policy.rule.update", "Update policy rule", "policy.rule.update", "INFO"}
	kAppUpdate      = kind{"application.lifecycle.update", "Update application", "app.generic.config.app_updated", "INFO"}
	kSMS            = kind{"system.sms.send_phone_verification_message", "Send phone verification SMS message", "", "INFO"}
	kEmailReset     = kind{"system.email.password_reset.sent_message", "Send password reset email", "", "INFO"}
	kNewDevice      = kind{"system.email.new_device_notification.sent_message", "Send new device notification email", "", "INFO"}
	kHookDelivery   = kind{"event_hook.delivery", "Event hook delivery failed", "", "WARN"}
	kHookCreated    = kind{"event_hook.created", "Event hook created", "", "INFO"}
	kHookUpdated    = kind{"event_hook.updated", "Event hook updated", "", "INFO"}
	kHookDeleted    = kind{"event_hook.deleted", "Event hook deleted", "", "INFO"}
	kHookVerified   = kind{"event_hook.verified", "Event hook verified", "", "INFO"}
	kHookOn         = kind{"event_hook.activated", "Event hook activated", "", "INFO"}
	kHookOff        = kind{"event_hook.deactivated", "Event hook deactivated", "", "INFO"}
)

const (
	systemActor = `{"id":"okta.system","type":"SystemPrincipal","alternateId":"system@okta.com","displayName":"Okta System","detailEntry":null}`
	noClient    = `{"userAgent":null,"zone":null,"device":null,"id":null,"ipAddress":null,"geographicalContext":null}`
	noSecurity  = `{"asNumber":null,"asOrg":null,"isp":null,"domain":null,"isProxy":null}`
)

// origin is where an event comes from: rendered client, chain, security context and device, and the session it belongs to.
type origin struct {
	client, chain, security, device string
	session, root                   string // empty: null
	dtHash, fingerprint             string
}

func (p *person) origin() origin {
	return origin{p.client, p.chain, p.security, p.deviceJSON, p.session, p.root, p.dtHash, p.fingerprint}
}

// spec is one event to be rendered. Text members are JSON already where it says so.
type spec struct {
	kind
	result, reason       string // no result: null outcome
	actor                string // JSON
	from                 origin
	debug                []byte // JSON members of debugData, without the braces
	targets              string // JSON array, or empty for null
	provider, credential string // empty: null
	authenticator        string // JSON members of authenticatorContext, or empty
	job                  bool
	detail               string // JSON members of transaction.detail
	txn                  string // empty: a new one
	at                   time.Time
	scenario             string
}

// forge makes ids, uuids and bytes. One goroutine at a time.
type forge struct {
	r     *rand.Rand
	node  [8]byte // clock sequence and node of the uuids
	ticks int64   // of 100 ns: the last one used
	marks func(typ string) string
}

// newForge seeds a forge. The uuids are version 1 as Okta's: their time only grows, and their node is a mix of the seed, the time
// of the start and how many events there were before, so no uuid comes twice in one org, restarts included.
func newForge(seed uint64, start time.Time, before uint64) *forge {
	mix := uint64(start.UnixNano()) ^ before<<1
	f := &forge{r: rand.New(rand.NewPCG(seed, mix))}
	binary.BigEndian.PutUint64(f.node[:], rand.New(rand.NewPCG(seed^0x756964, mix)).Uint64())
	f.node[0] = f.node[0]&0x3f | 0x80
	f.node[2] |= 1
	return f
}

func (f *forge) uuid(now time.Time) (u [16]byte) {
	const epoch = 0x01b21dd213814000 // 1582-10-15 to 1970
	t := now.UnixNano()/100 + epoch
	f.ticks = max(f.ticks+1, t)
	binary.BigEndian.PutUint32(u[0:4], uint32(f.ticks))
	binary.BigEndian.PutUint16(u[4:6], uint16(f.ticks>>32))
	binary.BigEndian.PutUint16(u[6:8], uint16(f.ticks>>48)&0x0fff|0x1000)
	copy(u[8:], f.node[:])
	return u
}

func (f *forge) id(prefix string, n int) string {
	const set = alnum + "-_"
	var b [64]byte
	k := copy(b[:], prefix)
	for k < len(prefix)+n {
		x := f.r.Uint64()
		for range 10 {
			if k == len(prefix)+n {
				break
			}
			b[k] = set[x&63]
			x >>= 6
			k++
		}
	}
	return string(b[:k])
}

func (f *forge) hex(n int) string {
	var b [32]byte
	var x [64]byte
	for i := 0; i < 32; i += 8 {
		binary.BigEndian.PutUint64(b[i:], f.r.Uint64())
	}
	hex.Encode(x[:], b[:])
	return string(x[:n])
}

func (f *forge) signIn(p *person) {
	p.session, p.root = f.id("idx", 22), f.id("idx", 22)
}

// kv appends a debugData member; values are strings, as everywhere in Okta's.
func kv(dst []byte, key, value string) []byte {
	if len(dst) > 0 {
		dst = append(dst, ',')
	}
	dst = append(append(append(dst, '"'), key...), `":`...)
	return appendJSON(dst, value)
}

func orNull(dst []byte, s string) []byte {
	if s == "" {
		return append(dst, "null"...)
	}
	return appendJSON(dst, s)
}

// web renders the debugData that every event of a web request carries, then what the caller adds.
func (f *forge) web(s *spec, uri, query string, more ...string) {
	if s.txn == "" {
		s.txn = f.id("", 27)
	}
	d := make([]byte, 0, 768)
	d = kv(d, "requestId", s.txn)
	if s.from.dtHash != "" {
		d = kv(d, "dtHash", s.from.dtHash)
	}
	if s.from.fingerprint != "" {
		d = kv(d, "deviceFingerprint", s.from.fingerprint)
	}
	d = kv(d, "requestUri", uri)
	d = kv(d, "threatSuspected", "false")
	d = kv(d, "url", uri+"?"+query)
	for i := 0; i+1 < len(more); i += 2 {
		d = kv(d, more[i], more[i+1])
	}
	s.debug = d
}

// render writes the event with the keys in Okta's order.
func (f *forge) render(s *spec, now time.Time) draft {
	if s.at.IsZero() {
		s.at = now
	}
	pub := s.at.UTC().Truncate(time.Millisecond)
	d := draft{uuid: f.uuid(now), typ: s.typ, scenario: s.scenario, pub: pub}
	b := make([]byte, 0, 3072)
	b = append(append(b, `{"actor":`...), s.actor...)
	b = append(append(b, `,"client":`...), s.from.client...)
	b = append(append(b, `,"device":`...), s.from.device...)
	b = orNull(append(b, `,"authenticationContext":{"authenticationProvider":`...), s.provider)
	b = orNull(append(b, `,"credentialProvider":`...), s.credential)
	b = append(b, `,"credentialType":null,"issuer":null,"interface":null,"authenticationStep":0`...)
	b = orNull(append(b, `,"rootSessionId":`...), s.from.root)
	if s.from.session == "" && s.result != "FAILURE" && !s.job {
		b = appendJSON(append(b, `,"externalSessionId":`...), "unknown")
	} else {
		b = orNull(append(b, `,"externalSessionId":`...), s.from.session)
	}
	if s.authenticator != "" {
		b = append(append(append(b, `,"authenticatorContext":{`...), s.authenticator...), '}')
	}
	b = appendJSON(append(b, `},"displayMessage":`...), s.message)
	b = appendJSON(append(b, `,"eventType":`...), s.typ)
	if s.result == "" {
		b = append(b, `,"outcome":null`...)
	} else {
		b = appendJSON(append(b, `,"outcome":{"result":`...), s.result)
		b = append(orNull(append(b, `,"reason":`...), s.reason), '}')
	}
	b = append(pub.AppendFormat(append(b, `,"published":"`...), "2006-01-02T15:04:05.000Z"), '"')
	b = append(append(b, `,"securityContext":`...), s.from.security...)
	b = appendJSON(append(b, `,"severity":`...), s.severity)
	debug := s.debug
	if f.marks != nil {
		if ids := f.marks(s.typ); ids != "" {
			debug = kv(debug, "targetEventHookIds", ids)
		}
	}
	b = append(append(append(b, `,"debugContext":{"debugData":{`...), debug...), "}}"...)
	b = orNull(append(b, `,"legacyEventType":`...), s.legacy)
	if s.txn == "" {
		s.txn = f.id("", 27)
	}
	if s.job {
		b = append(b, `,"transaction":{"type":"JOB"`...)
	} else {
		b = append(b, `,"transaction":{"type":"WEB"`...)
	}
	b = appendJSON(append(b, `,"id":`...), s.txn)
	b = append(append(append(b, `,"detail":{`...), s.detail...), `}},"uuid":"`...)
	n := len(b)
	b = append(b, "00000000-0000-0000-0000-000000000000"...)
	putUUID(b[n:], d.uuid)
	b = append(b, `","version":"0","request":{"ipChain":`...)
	b = append(append(b, s.from.chain...), `},"target":`...)
	if s.targets == "" {
		b = append(b, "null}"...)
	} else {
		b = append(append(b, s.targets...), '}')
	}
	d.raw = b
	return d
}

func putUUID(b []byte, u [16]byte) {
	hex.Encode(b[0:8], u[0:4])
	hex.Encode(b[9:13], u[4:6])
	hex.Encode(b[14:18], u[6:8])
	hex.Encode(b[19:23], u[8:10])
	hex.Encode(b[24:36], u[10:16])
}

// thing renders a target that is no person; detail is JSON or empty for null.
func thing(id, typ, alternate, display, detail string) string {
	b := append([]byte(`{"id":`), appendJSON(nil, id)...)
	b = appendJSON(append(b, `,"type":`...), typ)
	b = orNull(append(b, `,"alternateId":`...), alternate)
	b = orNull(append(b, `,"displayName":`...), display)
	if detail == "" {
		detail = "null"
	}
	return string(append(append(append(b, `,"detailEntry":`...), detail...), '}'))
}

func list(targets ...string) string {
	n := 2
	for _, t := range targets {
		n += len(t) + 1
	}
	b := append(make([]byte, 0, n), '[')
	for i, t := range targets {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, t...)
	}
	return string(append(b, ']'))
}

func itoa(n int) string { return strconv.Itoa(n) }
