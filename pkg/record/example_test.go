package record_test

import (
	"fmt"
	"time"

	"github.com/oktawatch/oktawatch/pkg/record"
)

func Example() {
	at := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	payload, err := (&record.SystemLog{
		UUID: "8f2b", Published: &at, EventType: "user.session.start",
		Actor:   &record.Actor{ID: "00uALICE", AlternateID: "alice@example.com"},
		Outcome: &record.Outcome{Result: "FAILURE"},
	}).AppendAvro(nil)
	if err != nil {
		fmt.Println(err)
		return
	}

	var v record.SystemLogView // decodes a section when it is asked for
	if err := v.Reset(payload); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(v.EventType(), v.OutcomeResult(), v.Actor().AlternateID, v.Client() == nil)
	// Output: user.session.start FAILURE alice@example.com true
}

func ExamplePlain() {
	payload, err := (&record.State{Transaction: 7, Value: []byte(`{"count": 2}`)}).AppendAvro(nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	plain, err := record.Plain(record.StateSchema, payload)
	fmt.Println(string(plain), err)
	// Output: {"transaction":7,"value":{"count":2}} <nil>
}
