package oktawatch

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"oktawatch": func() { os.Exit(Main(os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// TestScripts plays the tool as its user sees it: one file a behaviour, with exact output.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("OKTAWATCH_DATA_DIR", env.WorkDir+"/data")
			env.Setenv("KAFKA_BOOTSTRAP_SERVERS", "")
			env.Setenv("SCHEMA_REGISTRY_URL", "")
			return nil
		},
		RequireExplicitExec: true,
		Condition: func(cond string) (bool, error) {
			if cond != "hup" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return !signal.Ignored(syscall.SIGHUP), nil // as it is below nohup
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// eventually runs a program until it ends well.
			"eventually": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) == 0 {
					ts.Fatalf("usage: eventually program [args...]")
				}
				var err error
				for range 150 {
					if err = ts.Exec(args[0], args[1:]...); err == nil {
						return
					}
					time.Sleep(200 * time.Millisecond)
				}
				ts.Fatalf("%v: still %v after 30 s", args, err)
			},
			// prints runs a program until it prints what a pattern asks for; the pattern's first group becomes $FOUND.
			"prints": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: prints pattern program [args...]")
				}
				pattern := regexp.MustCompile("(?m)" + args[0])
				for range 150 {
					_ = ts.Exec(args[1], args[2:]...) // what it printed is asked
					if m := pattern.FindStringSubmatch(ts.ReadFile("stdout")); m != nil {
						ts.Setenv("FOUND", m[len(m)-1])
						return
					}
					time.Sleep(200 * time.Millisecond)
				}
				ts.Fatalf("%v: does not print %s within 30 s", args[1:], args[0])
			},
		},
	})
}

// TestTryRulesIsPlayed sees to it that the page shows no command and no rule that its script does not try.
func TestTryRulesIsPlayed(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "try-rules.md"))
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join("testdata", "script", "the_page_on_trying_rules.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for line := range strings.Lines(string(page)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "oktawatch ") {
			continue
		}
		commands++
		if line = strings.ReplaceAll(line, " ID", " $FOUND"); !strings.Contains(string(script), line+"\n") {
			t.Errorf("the script does not play %q", line)
		}
	}
	if commands == 0 {
		t.Error("the page shows no command")
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	if rule, _, ok := strings.Cut(rest, "```"); !ok || !strings.Contains(string(script), "-- mine/spray.yaml --\n"+rule+"-- ") {
		t.Error("the rule of the page is not the rule of the script")
	}
}
