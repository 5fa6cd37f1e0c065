package rules

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/oktawatch/oktawatch/pkg/rule"
	"github.com/oktawatch/oktawatch/pkg/ruletest"
)

func load(t *testing.T) *rule.Set {
	t.Helper()
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: FS})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
	return set
}

// TestRules plays the tests of every rule.
func TestRules(t *testing.T) {
	set := load(t)
	for _, c := range set.Rules {
		t.Run(c.ID, func(t *testing.T) {
			dir := strings.TrimPrefix(path.Dir(c.File), "rules/")
			for _, res := range ruletest.Run(set, &c.Rule, FS, dir) {
				t.Run(res.Test, func(t *testing.T) {
					for _, f := range res.Failures {
						t.Errorf("%s: %s", res.Pos, f)
					}
				})
			}
		})
	}
}

// TestAuthors asks of our own rules what the language only asks of their authors.
func TestAuthors(t *testing.T) {
	for _, c := range load(t).Rules {
		hits, misses := 0, 0
		for _, test := range c.Tests {
			if test.Expect.None {
				misses++
			} else {
				hits++
			}
		}
		if hits < 1 || misses < 2 {
			t.Errorf("%s: %d hits and %d near misses: write one hit and two near misses", c.File, hits, misses)
		}
		if c.Description == "" || len(c.FalsePositives) == 0 {
			t.Errorf("%s: description and false_positives are needed", c.File)
		}
		if c.Mode == rule.ModeAlert && c.Rule.Severity >= rule.Medium && c.Runbook == "" {
			t.Errorf("%s: a runbook is needed", c.File)
		}
		if !strings.HasPrefix(string(c.Source()), "# yaml-language-server: $schema=../../../schemas/rule.v1.schema.json\n") {
			t.Errorf("%s: the first line names the schema for editors", c.File)
		}
	}
}

// TestJudges is the table of what each rule reads: how it is found, and which copies of an event it judges.
func TestJudges(t *testing.T) {
	want := map[string]struct {
		copies rule.Copies
		types  string
		reads  string
	}{
		"account-locked":                               {rule.JudgesBoth, "every", "actor client displayMessage eventType target"},
		"admin-role-granted-to-user":                   {rule.JudgesBoth, "user.account.privilege.grant", "actor debugContext eventType outcome target"},
		"api-token-created":                            {rule.JudgesBoth, "system.api_token.create", "actor client eventType target"},
		"api-token-or-ad-agent-change-from-new-source": {rule.JudgesBoth, "system.api_token.create system.agent.ad.create system.agent.ad.config_change_detected", "actor client eventType outcome target"},
		"fastpass-phishing-declined":                   {rule.JudgesBoth, "user.authentication.auth_via_mfa", "actor client debugContext eventType outcome"},
		"mfa-all-factors-reset":                        {rule.JudgesBoth, "user.mfa.factor.reset_all", "actor eventType outcome target"},
		"mfa-factor-disabled":                          {rule.JudgesBoth, "user.mfa.factor.deactivate", "actor debugContext eventType outcome target"},
		"mfa-removed-without-re-enrollment":            {rule.JudgesBoth, "user.mfa.factor.activate user.mfa.factor.deactivate user.mfa.factor.reset_all", "actor debugContext eventType outcome target"},
		"password-reset":                               {rule.JudgesBoth, "user.account.reset_password", "actor eventType target"},
		"password-spray-one-ip-burst":                  {rule.JudgesBoth, "user.session.start", "actor client eventType outcome"},
		"push-bombing-then-success":                    {rule.JudgesBoth, "user.authentication.auth_via_mfa user.authentication.sso user.authentication.verify user.mfa.okta_verify.deny_push user.session.start", "actor client debugContext eventType outcome"},
		"rate-limit-violation":                         {rule.JudgesBoth, "application.integration.rate_limit_exceeded core.concurrency.org.limit.violation system.client.concurrency_rate_limit.violation system.client.rate_limit.violation system.operation.rate_limit.violation system.org.rate_limit.violation system.client.concurrency_rate_limit.* system.client.rate_limit.* system.operation.rate_limit.* system.org.rate_limit.*", "client debugContext eventType target"},
		"session-client-roaming-denied":                {rule.JudgesBoth, "security.session.detect_client_roaming", "actor authenticationContext client eventType"},
		"user-login":                                   {rule.JudgesBoth, "user.session.start", "actor eventType outcome"},
		"user-reported-suspicious-activity":            {rule.JudgesBoth, "user.account.report_suspicious_activity_by_enduser", "actor debugContext eventType"},
		"user-suspended":                               {rule.JudgesBoth, "user.lifecycle.suspend", "actor eventType target"},
	}
	set := load(t)
	kinds := map[rule.Kind]bool{}
	for _, c := range set.Rules {
		kinds[c.Detection.Kind] = true
		if _, ok := want[c.ID]; !ok {
			t.Errorf("%s is not in the table", c.ID)
		}
	}
	if len(kinds) != len(rule.Kinds()) {
		t.Errorf("the pack has the kinds %v: one of each", kinds)
	}
	for id, w := range want {
		c, ok := set.Rule(id)
		if !ok {
			t.Errorf("there is no rule %s", id)
			continue
		}
		types := "every"
		if c.Bound() {
			types = strings.Join(append(slices.Clone(c.Types.Exact), c.Types.Globs...), " ")
		}
		if c.Copies != w.copies || types != w.types || strings.Join(c.Reads, " ") != w.reads {
			t.Errorf("%s: judges %s, found by %s, reads %v; the table says %+v", c.ID, c.Copies, types, c.Reads, w)
		}
	}
}

// TestReadme plays the rule that the README shows.
func TestReadme(t *testing.T) {
	src, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(src, -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks", len(blocks))
	}
	l, err := rule.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	own := fstest.MapFS{
		"mine/unmanaged-device.yaml": {Data: blocks[0][1]},
		"overlays/mine.yaml":         {Data: blocks[1][1]},
	}
	set, problems, err := l.Load(rule.Source{Name: "rules", FS: FS}, rule.Source{Name: "mine", FS: own, Site: true})
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	c, ok := set.Rule("unmanaged-device")
	if !ok || c.Copies != rule.JudgesComplete || len(c.Tests) != 3 {
		t.Fatalf("%+v", c)
	}
	for _, res := range ruletest.Run(set, &c.Rule, own, "mine") {
		if len(res.Failures) > 0 {
			t.Errorf("%s: %v", res.Test, res.Failures)
		}
	}
}
