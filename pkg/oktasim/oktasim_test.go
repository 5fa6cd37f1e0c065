package oktasim_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/oktawatch/oktawatch/pkg/oktasim"
	"github.com/oktawatch/oktawatch/pkg/oktasim/simtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// unlimited is for tests that ask more often than Okta allows.
var unlimited = map[string]int{"logs": -1, "users": -1, "user": -1, "devices": -1, "other": -1}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// links returns the targets of the answer's Link lines by relation.
func (a answer) link(rel string) string {
	for _, l := range a.header.Values("Link") {
		if u, ok := strings.CutSuffix(l, `>; rel="`+rel+`"`); ok {
			return strings.TrimPrefix(u, "<")
		}
	}
	return ""
}

func (a answer) events(t testing.TB) []json.RawMessage {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	var page []json.RawMessage
	if err := json.Unmarshal(a.body, &page); err != nil {
		t.Fatalf("page: %v", err)
	}
	return page
}

func (a answer) code() string {
	var e struct {
		ErrorCode string `json:"errorCode"`
	}
	_ = json.Unmarshal(a.body, &e)
	return e.ErrorCode
}

var transport = &http.Transport{}

func do(t testing.TB, method, url, auth, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer transport.CloseIdleConnections()
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, b}
}

func get(t testing.TB, url string) answer {
	t.Helper()
	return do(t, http.MethodGet, url, "SSWS "+oktasim.DefaultToken, "")
}

func TestPollReadsEverythingOnce(t *testing.T) {
	org := simtest.Start(t, oktasim.Config{Limits: unlimited, DataDir: t.TempDir()})
	if err := org.Burst(2500); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for e := range org.Truth().Events(oktasim.Query{}) {
		want[e.UUID] = true
	}
	if len(want) != 2500 {
		t.Fatalf("truth has %d uuids", len(want))
	}
	next := org.URL() + "/api/v1/logs?limit=1000&sortOrder=ASCENDING"
	for range 4 {
		a := get(t, next)
		for _, e := range a.events(t) {
			var v struct{ UUID string }
			if err := json.Unmarshal(e, &v); err != nil {
				t.Fatal(err)
			}
			if !want[v.UUID] {
				t.Fatalf("%s: unknown or twice", v.UUID)
			}
			delete(want, v.UUID)
		}
		if next = a.link("next"); next == "" {
			t.Fatal("no next link")
		}
	}
	if len(want) != 0 {
		t.Errorf("%d events missing", len(want))
	}
}
