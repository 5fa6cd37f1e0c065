package systemlog

// place says where a name marks a secret.
type place uint8

const (
	inData  place = 1 << iota // key of debugContext.debugData and of objects in it
	inAny                     // key of any object of the event
	inQuery                   // parameter of a URL or of a name=value text
	inURL                     // parameter of a URL only, for names that mean something else in other texts
)

const anywhere = inData | inAny | inQuery

// secrets is the list of names that carry secrets, each with why. Names are compared without regard to case, '_' and
// '-'. Okta marks as sensitive what is personal (logins, addresses, fingerprints); rules need that and it stays. Ids of
// tokens (tokenId, requestApiTokenId) and hashes of them (dtHash, stateTokenHash) open nothing and stay too.
var secrets = []struct {
	name  string
	where place
	why   string
}{
	{"stateToken", anywhere, "whoever holds it goes on with the sign-in it belongs to"},
	{"stateHandle", anywhere, "the same on Identity Engine"},
	{"interactionHandle", anywhere, "the same for an embedded sign-in"},
	{"interactionCode", anywhere, "is exchanged for tokens"},
	{"sessionToken", anywhere, "is exchanged for a session"},
	{"oneTimeToken", anywhere, "is exchanged for a session"},
	{"loginToken", anywhere, "is exchanged for a session"},
	{"recoveryToken", anywhere, "sets a new password; Okta's catalogue writes it RECOVERYTOKEN"},
	{"activationToken", anywhere, "sets the first password"},
	{"registrationToken", anywhere, "finishes a self-service registration"},
	{"accessToken", anywhere, "bearer token"},
	{"refreshToken", anywhere, "is exchanged for bearer tokens"},
	{"idToken", anywhere, "signed claims that some apps take as a sign-in"},
	{"idTokenHint", anywhere, "an id token"},
	{"deviceToken", anywhere, "the device cookie's value: makes another browser a known device"},
	{"deviceSecret", anywhere, "native single sign-on: is exchanged for tokens"},
	{"deviceCode", anywhere, "device flow: is exchanged for tokens"},
	{"userCode", anywhere, "device flow: binds a device to whoever enters it"},
	{"apiToken", anywhere, "an API token's value"},
	{"authorization", anywhere, "header with a bearer or API token"},
	{"cookie", anywhere, "header with the session"},
	{"setCookie", anywhere, "header with the session"},
	{"clientSecret", anywhere, "an app's credential"},
	{"clientSecrets", anywhere, "an app's credentials"},
	{"clientAssertion", anywhere, "an app's signed credential"},
	{"codeVerifier", anywhere, "PKCE: with the code it gives tokens"},
	{"privateKey", anywhere, "key material"},
	{"password", anywhere, "password"},
	{"newPassword", anywhere, "password"},
	{"oldPassword", anywhere, "password"},
	{"tempPassword", anywhere, "password"},
	{"passCode", anywhere, "a factor's code"},
	{"oneTimePassword", anywhere, "a factor's code"},
	{"samlResponse", anywhere, "signed assertion that an app takes as a sign-in"},
	{"samlRequest", anywhere, "may carry a signed request"},
	{"samlAssertion", anywhere, "signed assertion that an app takes as a sign-in"},
	{"wresult", anywhere, "WS-Federation's signed assertion"},
	{"assertion", inData | inURL, "signed assertion; in the catalogue also its id, which rules do not need"},
	{"authCode", inData | inQuery, "authorization code: is exchanged for tokens"},
	{"invalidToken", inData, "the token as it was sent; refused here may be good elsewhere"},
	{"token", inData | inURL, "a token, whatever kind"},
	{"otp", inData | inURL, "a factor's code"},
	{"secret", inData | inURL, "says so itself; TOTP seeds in enrolment URLs"},
	{"code", inURL, "authorization code; as a key it is an error's code"},
	{"importLastToken", inData, "a directory's paging token, issued to the agent"},
	{"tokenEncryptionKey", inData, "key material, marked as the customer's"},
	{"response", inData, "marked sensitive: a third party's answer as it came, with what it carries"},
	{"usernameTypingPattern", inData, "marked sensitive: typing rhythm, can be replayed to the behaviour check"},
}

// pathSecrets are parts of a URL's path that a token follows, as in Okta's mails.
var pathSecrets = []string{"/reset-password/", "/reset_password/", "/welcome/"}
