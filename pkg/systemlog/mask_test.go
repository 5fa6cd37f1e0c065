package systemlog

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const (
	secretA = "02.id.a24XWi4WJQ4CkRHchZD_i94_g2HCTacic43z7NOl"
	jwt     = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIwMHVBTElDRSJ9.c2lnbmF0dXJl"
)

func TestMask(t *testing.T) {
	m := testMask(t)
	a := m.Value(secretA)
	for name, tc := range map[string]struct{ data, want string }{
		"key":                   {`{"stateToken":"` + secretA + `"}`, `{"stateToken":"` + a + `"}`},
		"key of another case":   {`{"STATE_TOKEN":"` + secretA + `"}`, `{"STATE_TOKEN":"` + a + `"}`},
		"escaped key":           {`{"state\u0054oken":"` + secretA + `"}`, `{"state\u0054oken":"` + a + `"}`},
		"blanks stay":           {`{ "stateToken" :  "` + secretA + `" , "x":1 }`, `{ "stateToken" :  "` + a + `" , "x":1 }`},
		"both of two keys":      {`{"stateToken":"` + secretA + `","stateToken":"b"}`, `{"stateToken":"` + a + `","stateToken":"` + m.Value("b") + `"}`},
		"escaped value":         {`{"clientSecret":"a\"b\u00e9"}`, `{"clientSecret":"` + m.Value("a\"bé") + `"}`},
		"number":                {`{"passCode":123456}`, `{"passCode":"` + m.Value("123456") + `"}`},
		"list":                  {`{"clientSecrets":["a", "b"]}`, `{"clientSecrets":"` + m.Value(`["a","b"]`) + `"}`},
		"null, empty, boolean":  {`{"password":null,"stateToken":"","otp":true}`, ``},
		"masked before":         {`{"stateToken":"***0123abcd","url":"/x?stateToken=***0123abcd"}`, ``},
		"inside an object":      {`{"x":{"y":[{"sessionToken":"` + secretA + `"}]}}`, `{"x":{"y":[{"sessionToken":"` + a + `"}]}}`},
		"query":                 {`{"url":"/login/token/redirect?stateToken=` + secretA + `&x=1"}`, `{"url":"/login/token/redirect?stateToken=` + a + `&x=1"}`},
		"query, escaped slash":  {`{"url":"\/login?a=b&state_token=` + secretA + `#f"}`, `{"url":"\/login?a=b&state_token=` + a + `#f"}`},
		"encoded value":         {`{"url":"/x?token=a%2Bb"}`, `{"url":"/x?token=` + m.Value("a+b") + `"}`},
		"url in a url":          {`{"url":"/x?fromURI=%2Flogin%3FstateToken%3D` + secretA + `%26y%3D1"}`, `{"url":"/x?fromURI=%2Flogin%3FstateToken%3D` + a + `%26y%3D1"}`},
		"twice encoded":         {`{"url":"/x?a=%252Fb%253Fcode%253Dq1w2e3%2526y"}`, `{"url":"/x?a=%252Fb%253Fcode%253D` + m.Value("q1w2e3") + `%2526y"}`},
		"fragment":              {`{"redirectUri":"https://a.example/cb#id_token=` + jwt + `&state=s"}`, `{"redirectUri":"https://a.example/cb#id_token=` + m.Value(jwt) + `&state=s"}`},
		"code of a url":         {`{"url":"https://a.example/cb?code=abc&state=xyz"}`, `{"url":"https://a.example/cb?code=` + m.Value("abc") + `&state=xyz"}`},
		"code of an error":      {`{"errors":"{code=E0000011, token=x}","errorCode":"E0000011","url":"/x?error_code=5"}`, ``},
		"name=value text":       {`{"dump":"{stateToken=` + secretA + `, level=LOW}"}`, `{"dump":"{stateToken=` + a + `, level=LOW}"}`},
		"json in a text":        {`{"blob":"{\"a\":1,\"stateToken\":\"` + secretA + `\"}"}`, `{"blob":"{\"a\":1,\"stateToken\":\"` + a + `\"}"}`},
		"json in json":          {`{"blob":"{\"a\":\"{\\\"password\\\":\\\"p\\\",\\\"otp\\\":12}\"}"}`, `{"blob":"{\"a\":\"{\\\"password\\\":\\\"` + m.Value("p") + `\\\",\\\"otp\\\":\\\"` + m.Value("12") + `\\\"}\"}"}`},
		"url in json in a text": {`{"blob":"[\"é /x?stateToken=` + secretA + `\"]"}`, `{"blob":"[\"é /x?stateToken=` + a + `\"]"}`},
		"signed token":          {`{"note":"sent ` + jwt + ` twice"}`, `{"note":"sent ` + m.Value(jwt) + ` twice"}`},
		"no signed token":       {`{"note":"eyJust.a.word and keyJ.x.y"}`, ``},
		"mail link":             {`{"requestUri":"/signin/reset-password/drpFxYt6JZzk2Yx1abcd?x=1"}`, `{"requestUri":"/signin/reset-password/` + m.Value("drpFxYt6JZzk2Yx1abcd") + `?x=1"}`},
		"api path":              {`{"requestUri":"/api/v1/users/00u1/lifecycle/reset_password"}`, ``},
		"ids and hashes stay":   {`{"stateTokenHash":"abc","dtHash":"d","tokenId":"t","requestApiTokenId":"00T","assertionId":"a","url":"/x?client_id=1&nonce=2&state=3&code_challenge=4"}`, ``},
		"personal data stay":    {`{"username":"alice@example.com","phoneNumber":"+1555","deviceFingerprint":"f"}`, ``},
		"the catalogue's shout": {`{"RECOVERYTOKEN":"r"}`, `{"RECOVERYTOKEN":"` + m.Value("r") + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			const head, tail = "{\"uuid\":\"u\",\"eventType\":\"e\",\"debugContext\":{\"debugData\":", "}}"
			if tc.want == "" {
				tc.want = tc.data
			}
			doc := []byte(head + tc.data + tail)
			ev, _, err := FromJSON(doc, m)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(ev.JSON); got != head+tc.want+tail {
				t.Errorf("\n got %s\nwant %s", got, head+tc.want+tail)
			}
			if (ev.Derived.Masked > 0) != (tc.want != tc.data) {
				t.Errorf("masked %d", ev.Derived.Masked)
			}
			var want map[string]any
			if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(err)
			}
			for k, v := range want {
				if s, ok := v.(string); ok && ev.DebugContext.DebugData[k] != s {
					t.Errorf("debugData[%s] = %q, json has %q", k, ev.DebugContext.DebugData[k], s)
				}
			}
			if plain, _, _ := FromJSON(doc, nil); !bytes.Equal(plain.JSON, doc) || plain.Derived.Masked != 0 {
				t.Errorf("without a mask: %d masked, %s", plain.Derived.Masked, plain.JSON)
			}
		})
	}
}

func TestMaskOutsideDebugData(t *testing.T) {
	m := testMask(t)
	doc := `{"uuid":"u","eventType":"e","client":{"apiToken":"PrivateToken","http":{"defaultHeaders":{"Authorization":"SSWS PrivateToken"}}},` +
		`"target":[{"id":"t","detailEntry":{"access_token":"x","hash":"h"}}],"more":"/x?sessionToken=y","response":"ok","token":"kept"}`
	ev, _, err := FromJSON([]byte(doc), m)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"PrivateToken", `"x"`, "=y"} {
		if bytes.Contains(ev.JSON, []byte(secret)) {
			t.Errorf("%s is still in %s", secret, ev.JSON)
		}
	}
	if ev.Derived.Masked != 4 || ev.Target[0].DetailEntry["access_token"] != m.Value("x") || ev.Target[0].DetailEntry["hash"] != "h" {
		t.Errorf("masked %d, detailEntry %v", ev.Derived.Masked, ev.Target[0].DetailEntry)
	}
	if !bytes.Contains(ev.JSON, []byte(`"response":"ok","token":"kept"`)) {
		t.Errorf("names that are secret in debugData only were masked elsewhere: %s", ev.JSON)
	}
}

func TestEqualStaysEqual(t *testing.T) {
	a, b := testMask(t), testMask(t)
	other, err := NewMask([]byte("another key, also long enough"))
	if err != nil {
		t.Fatal(err)
	}
	if a.Value("x") != b.Value("x") || a.Value("x") == a.Value("y") || a.Value("x") == other.Value("x") {
		t.Error("a mask must depend on the secret and the key, and on nothing else")
	}
	if _, err := NewMask([]byte("short")); err == nil {
		t.Error("a short key was taken")
	}
}

// Wherever a secret is put, in whatever dress, it is gone from the record, and what is not secret is still there.
func TestNoSecretSurvives(t *testing.T) {
	m := testMask(t)
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringMatching(`[A-Za-z0-9_-]{12,40}`).Draw(t, "secret")
		name := rapid.SampledFrom(secrets).Draw(t, "name")
		var data string
		switch query := name.where&(inQuery|inURL) != 0; rapid.IntRange(0, 3).Draw(t, "dress") {
		case 0:
			if query {
				data = "https://x.example/y?z=1&" + name.name + "=" + secret + "&w=2"
			}
		case 1:
			if name.where&inData != 0 {
				b, _ := json.Marshal(map[string]any{"v": 1, name.name: secret})
				data = string(b)
			}
		case 2:
			if query {
				data = "/y?fromURI=%2Fz%3Fa%3D1%26" + name.name + "%3D" + secret
			}
		}
		member := map[string]any{"kept": "value", "text": data}
		if data == "" {
			if name.where&inData == 0 {
				return
			}
			member = map[string]any{"kept": "value", name.name: secret}
		}
		for range rapid.IntRange(0, 3).Draw(t, "wraps") {
			b, _ := json.Marshal(member)
			member = map[string]any{"kept": "value", "wrapped": string(b)}
		}
		doc, _ := json.Marshal(map[string]any{"uuid": "u", "eventType": "e", "debugContext": map[string]any{"debugData": member}})
		ev, _, err := FromJSON(doc, m)
		if err != nil {
			t.Fatal(err)
		}
		avro, err := ev.AppendAvro(nil)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(avro, []byte(secret)) || !bytes.Contains(avro, []byte(m.Value(secret))) {
			t.Fatalf("%s in %s became %s", secret, doc, ev.JSON)
		}
		if !json.Valid(ev.JSON) || ev.DebugContext.DebugData["kept"] != "value" || ev.Derived.Masked != 1 {
			t.Fatalf("masked %d: %s", ev.Derived.Masked, ev.JSON)
		}
		again, _, err := FromJSON(ev.JSON, m)
		if err != nil || !bytes.Equal(again.JSON, ev.JSON) {
			t.Fatalf("masking twice changed %s to %s (%v)", ev.JSON, again.JSON, err)
		}
	})
}

// Every key of Okta's catalogue that sounds like a secret is in the list or is known to be none.
func TestCatalogueKeysAreJudged(t *testing.T) {
	harmless := regexp.MustCompile(`(?i)(ids?|hash|type|types|lifetime|alg|audience|issuer|kind|count|set|tasks|reason|enum|time|requests|name|label|level|size|url|uri|host|port|challenge|used|for.*)$`)
	judged := map[string]string{
		"authenticatorKey": "name of a kind of authenticator", "idpIdsWithSecrets": "ids", "passkey": "a boolean", "credential": "a kind",
		"reasonCode": "a reason", "powershellReasonCode": "a reason", "errorCode": "an error", "appErrorCode": "an error", "responseCode": "a status",
		"countryCallingCode": "a country", "countryCodeIso2": "a country",
		"byoEmailServerErrorResponse": "an error text", "customEmailServerErrorResponse": "an error text", "thirdPartyApiResponse": "not marked; an error text",
		"pushOnlyResponseType": "a kind", "authorizationServer": "an id", "threatSuspected": "a boolean",
		"newRuleEnforceMaxSessionAge": "a boolean", "oldRuleEnforceMaxSessionAge": "a boolean", "newRuleMaxSessionAge": "a duration", "oldRuleMaxSessionAge": "a duration",
		"sessionRevocation": "a boolean", "keyTypeUsedForAuthentication": "a kind", "inResponseTo": "an id",
	}
	f, err := os.Open("testdata/debug_data_keys.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	sounds := regexp.MustCompile(`(?i)token|secret|passw|passcode|assertion|saml|jwt|otp|credential|cookie|privatekey|encryptionkey|(auth|interaction|device|user)code|response$|session|typing`)
	for _, row := range rows[1:] {
		key := row[0]
		if !sounds.MatchString(key) || names().places(key)&inData != 0 || harmless.MatchString(key) || judged[key] != "" {
			continue
		}
		t.Errorf("%s sounds like a secret: add it to secrets, or here with what it is", key)
	}
	seen := map[string]bool{}
	for _, s := range secrets {
		var buf [maxName]byte
		name := string(fold(s.name, &buf))
		if name == "" || seen[name] || s.why == "" || s.where == 0 || strings.ContainsAny(name, " .") {
			t.Errorf("row %+v: empty, twice, or without a reason", s)
		}
		seen[name] = true
	}
}
