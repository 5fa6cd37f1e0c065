//go:build !unix

package engine_test

import "time"

func cpu() time.Duration { return 0 }
