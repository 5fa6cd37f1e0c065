package eventtype_test

import (
	"testing"

	"github.com/oktawatch/oktawatch/pkg/eventtype"
)

func TestList(t *testing.T) {
	all := eventtype.All()
	if len(all) < 1200 || len(eventtype.Names()) != len(all) {
		t.Fatalf("%d types, %d names", len(all), len(eventtype.Names()))
	}
	eligible := map[string]bool{}
	for i, e := range all {
		if i > 0 && all[i-1].Name >= e.Name {
			t.Errorf("%s is not behind %s, or twice", e.Name, all[i-1].Name)
		}
		eligible[e.Name] = e.HookEligible
	}
	if !eligible["user.session.start"] || eligible["policy.evaluate_sign_on"] {
		t.Error("what hooks can carry is wrong")
	}
	for name, want := range map[string]bool{"user.session.start": true, "policy.evaluate_sign_on": true, "user.sesion.start": false, "": false} {
		if eventtype.Known(name) != want {
			t.Errorf("%q is known: %v", name, !want)
		}
	}
}
