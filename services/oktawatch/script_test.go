package oktawatch

import (
	"os"
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
		},
	})
}
