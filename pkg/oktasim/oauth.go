package oktasim

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Client is an OAuth service app of the org.
type Client struct {
	ID        string   `yaml:"id"`         // client id
	Secret    string   `yaml:"secret"`     // set: Basic authentication works, as for a service integration
	PublicKey string   `yaml:"public_key"` // PEM; set: private_key_jwt is verified by it; empty: any well-formed assertion is believed
	Scopes    []string `yaml:"scopes"`     // empty: every scope the org knows
}

var allScopes = []string{"okta.logs.read", "okta.eventHooks.read", "okta.eventHooks.manage", "okta.users.read", "okta.devices.read", "okta.groups.read", "okta.orgs.read"}

const tokenLife = 3600 * time.Second

type grant struct {
	scopes map[string]bool
	until  time.Time
}

type tokens struct {
	ssws    []string
	clients []Client
	keys    map[string]crypto.PublicKey

	mu     sync.Mutex
	grants map[string]grant
}

func (t *tokens) init(cfg Config) error {
	t.ssws, t.clients, t.grants, t.keys = cfg.APITokens, cfg.Clients, map[string]grant{}, map[string]crypto.PublicKey{}
	for _, c := range cfg.Clients {
		if c.ID == "" {
			return errors.New("clients: one has no id")
		}
		if c.PublicKey == "" {
			continue
		}
		b, _ := pem.Decode([]byte(c.PublicKey))
		if b == nil {
			return fmt.Errorf("clients: public_key of %s is no PEM", c.ID)
		}
		k, err := x509.ParsePKIXPublicKey(b.Bytes)
		if err != nil {
			return fmt.Errorf("clients: public_key of %s: %w", c.ID, err)
		}
		t.keys[c.ID] = k
	}
	return nil
}

// who finds the token of a request; nil scopes mean all rights.
func (t *tokens) who(r *http.Request, now time.Time) (token string, scopes map[string]bool, ok bool) {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case strings.EqualFold(kind, "SSWS"):
		for _, s := range t.ssws {
			if subtle.ConstantTimeCompare([]byte(s), []byte(token)) == 1 {
				return token, nil, true
			}
		}
	case strings.EqualFold(kind, "Bearer"):
		t.mu.Lock()
		defer t.mu.Unlock()
		if g, ok := t.grants[token]; ok && now.Before(g.until) {
			return token, g.scopes, true
		}
	}
	return "", nil, false
}

// grantToken is the token endpoint of the org authorization server. The parameters may stand in the body or, as one SDK sends
// them, in the query.
func (o *Org) grantToken(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, code, why string) {
		reply(w, status, map[string]string{"error": code, "error_description": why})
	}
	if f, ok := o.faults.strike(o.now(), func(f *Fault) bool {
		return strings.HasPrefix(r.URL.Path, f.Path) && f.Path != "" && (f.Kind == FaultInternal || f.Kind == FaultReadOnly || f.Kind == FaultRateLimit || f.Kind == FaultLatency)
	}); ok {
		switch f.Kind {
		case FaultRateLimit:
			o.fail(w, errLimit)
			return
		case FaultLatency:
			if !sleep(r.Context(), f.Delay) {
				return
			}
		default:
			o.fail(w, errInternal)
			return
		}
	}
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	if err := r.ParseForm(); err != nil {
		refuse(http.StatusBadRequest, "invalid_request", "The request body is malformed.")
		return
	}
	if r.Form.Get("grant_type") != "client_credentials" {
		refuse(http.StatusBadRequest, "unsupported_grant_type", "The authorization grant type is not supported by the authorization server.")
		return
	}
	c, err := o.tokens.client(r, o.now())
	if err != nil {
		refuse(http.StatusUnauthorized, "invalid_client", err.Error())
		return
	}
	asked := strings.Fields(r.Form.Get("scope"))
	granted := c.Scopes
	if len(granted) == 0 {
		granted = allScopes
	}
	if len(asked) == 0 {
		refuse(http.StatusBadRequest, "invalid_scope", "The scope parameter must be present and not empty.")
		return
	}
	scopes := map[string]bool{}
	for _, s := range asked {
		if !slices.Contains(granted, s) && !slices.Contains(granted, strings.Replace(s, ".read", ".manage", 1)) {
			refuse(http.StatusBadRequest, "invalid_scope", "One or more scopes are not configured for the client: "+s)
			return
		}
		scopes[s] = true
	}
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	token := "eyJzaW0." + base64.RawURLEncoding.EncodeToString(b[:])
	t := &o.tokens
	t.mu.Lock()
	if len(t.grants) > 1000 {
		for k, g := range t.grants {
			if !o.now().Before(g.until) || len(t.grants) > 5000 {
				delete(t.grants, k)
			}
		}
	}
	t.grants[token] = grant{scopes, o.now().Add(tokenLife)}
	t.mu.Unlock()
	w.Header().Set("Cache-Control", "no-store")
	reply(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": int(tokenLife.Seconds()), "access_token": token, "scope": strings.Join(asked, " ")})
}

// RevokeTokens makes every OAuth token given so far invalid.
func (o *Org) RevokeTokens() {
	o.tokens.mu.Lock()
	clear(o.tokens.grants)
	o.tokens.mu.Unlock()
}

func (t *tokens) client(r *http.Request, now time.Time) (*Client, error) {
	find := func(id string) *Client {
		for i := range t.clients {
			if t.clients[i].ID == id {
				return &t.clients[i]
			}
		}
		return nil
	}
	if id, secret, ok := r.BasicAuth(); ok {
		c := find(id)
		if c == nil || c.Secret == "" || subtle.ConstantTimeCompare([]byte(c.Secret), []byte(secret)) != 1 {
			return nil, errors.New("The client secret supplied for a confidential client is invalid.") //nolint:staticcheck // Okta's words
		}
		return c, nil
	}
	if r.Form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		return nil, errors.New("Client authentication failed. Either the client or the client credentials are invalid.") //nolint:staticcheck // Okta's words
	}
	parts := strings.Split(r.Form.Get("client_assertion"), ".")
	if len(parts) != 3 {
		return nil, errors.New("The client_assertion token is malformed.") //nolint:staticcheck // Okta's words
	}
	var head struct {
		Alg string `json:"alg"`
	}
	var claims struct {
		Iss string          `json:"iss"`
		Sub string          `json:"sub"`
		Aud json.RawMessage `json:"aud"`
		Exp int64           `json:"exp"`
	}
	h, err1 := base64.RawURLEncoding.DecodeString(parts[0])
	p, err2 := base64.RawURLEncoding.DecodeString(parts[1])
	sig, err3 := base64.RawURLEncoding.DecodeString(parts[2])
	if errors.Join(err1, err2, err3) != nil || json.Unmarshal(h, &head) != nil || json.Unmarshal(p, &claims) != nil {
		return nil, errors.New("The client_assertion token is malformed.") //nolint:staticcheck // Okta's words
	}
	c := find(claims.Iss)
	exp := time.Unix(claims.Exp, 0)
	switch {
	case c == nil || claims.Sub != claims.Iss:
		return nil, errors.New("Invalid value for 'client_id' parameter.") //nolint:staticcheck // Okta's words
	case !strings.Contains(string(claims.Aud), `/oauth2/v1/token"`):
		return nil, errors.New("The audience claim for client_assertion must be the endpoint invoked for the request.") //nolint:staticcheck // Okta's words
	case !exp.After(now):
		return nil, errors.New("The client_assertion token is expired.") //nolint:staticcheck // Okta's words
	case exp.After(now.Add(time.Hour + time.Minute)):
		return nil, errors.New("The client_assertion token has an expiration too far into the future.") //nolint:staticcheck // Okta's words
	}
	if !slices.Contains([]string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"}, head.Alg) {
		return nil, errors.New("The client_assertion must be signed by RS256, RS384, RS512, ES256, ES384 or ES512.") //nolint:staticcheck // Okta's words
	}
	if k := t.keys[c.ID]; k != nil && !verifySignature(k, head.Alg, parts[0]+"."+parts[1], sig) {
		return nil, errors.New("The client_assertion signature is invalid.") //nolint:staticcheck // Okta's words
	}
	return c, nil
}

func verifySignature(k crypto.PublicKey, alg, text string, sig []byte) bool {
	hash, sum := crypto.SHA256, []byte(nil)
	switch alg[2:] {
	case "256":
		d := sha256.Sum256([]byte(text))
		sum = d[:]
	case "384":
		d := sha512.Sum384([]byte(text))
		hash, sum = crypto.SHA384, d[:]
	default:
		d := sha512.Sum512([]byte(text))
		hash, sum = crypto.SHA512, d[:]
	}
	switch k := k.(type) {
	case *rsa.PublicKey:
		return alg[:2] == "RS" && rsa.VerifyPKCS1v15(k, hash, sum, sig) == nil
	case *ecdsa.PublicKey:
		n := len(sig) / 2
		return alg[:2] == "ES" && n > 0 && ecdsa.Verify(k, sum, new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:]))
	}
	return false
}
