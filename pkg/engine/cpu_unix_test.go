//go:build unix

package engine_test

import (
	"syscall"
	"time"
)

// cpu is the processor time that this process has used: on a machine that does other work too it tells what one core of
// its own would have done. The collector's work is in it.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
