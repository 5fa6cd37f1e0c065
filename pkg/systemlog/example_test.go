package systemlog_test

import (
	"fmt"

	"github.com/oktawatch/oktawatch/pkg/systemlog"
)

func ExampleFromJSON() {
	mask, err := systemlog.NewMask([]byte("the same key for every process"))
	if err != nil {
		fmt.Println(err)
		return
	}
	ev, found, err := systemlog.FromJSON([]byte(`{
	  "uuid": "5d1f0f2e-ea1b-11f0-8a3e-0242ac120002", "eventType": "user.session.start", "severity": 3,
	  "client": {"zone": "null", "ipChain": [{"ip": "198.51.100.7"}]},
	  "debugContext": {"debugData": {"url": "/login?stateToken=00abcdef", "threatSuspected": "false"}}
	}`), mask)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(ev.EventType, ev.Request.IPChain[0].IP)
	fmt.Println(ev.DebugContext.DebugData["url"])
	fmt.Println(found)
	// Output:
	// user.session.start 198.51.100.7
	// /login?stateToken=***df795ef5
	// [severity: wrong_type]
}
