// Command oktawatch runs the whole pipeline on a laptop and is the tool for everything around it.
package main

import (
	"os"
	_ "time/tzdata" // rules name time zones, and an image may have none

	"github.com/oktawatch/oktawatch/services/oktawatch"
)

func main() { os.Exit(oktawatch.Main(os.Args[1:], os.Stdout, os.Stderr)) }
