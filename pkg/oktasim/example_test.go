package oktasim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/oktawatch/oktawatch/pkg/oktasim"
)

// An org plays an attack, and its System Log is read as one reads Okta's.
func Example() {
	org, err := oktasim.New(oktasim.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := org.Play(context.Background(), "account-contained", 0); err != nil {
		fmt.Println(err)
		return
	}
	req := httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/api/v1/logs?limit=1000", nil)
	req.Header.Set("Authorization", "SSWS "+oktasim.DefaultToken)
	answer := httptest.NewRecorder()
	org.Handler().ServeHTTP(answer, req)
	var events []struct{ EventType, DisplayMessage string }
	if err := json.Unmarshal(answer.Body.Bytes(), &events); err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range events {
		fmt.Println(e.EventType, "-", e.DisplayMessage)
	}
	// Output:
	// user.account.report_suspicious_activity_by_enduser - User report suspicious activity
	// user.lifecycle.suspend - Suspend Okta user
}
