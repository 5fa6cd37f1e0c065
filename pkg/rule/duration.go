package rule

import (
	"fmt"
	"strconv"
	"time"
)

var durationUnits = map[string]time.Duration{
	"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
}

// ParseDuration reads one or more number-unit pairs of ms s m h d, as in 90s, 1h30m or 14d. A leading minus is
// taken where signed.
func ParseDuration(s string, signed bool) (time.Duration, error) {
	rest, neg := s, false
	if signed && rest != "" && rest[0] == '-' {
		rest, neg = rest[1:], true
	}
	var sum time.Duration
	if rest == "0" && s != "" {
		return 0, nil
	}
	for i := 0; rest != ""; i++ {
		n := 0
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		u := n
		for u < len(rest) && rest[u] >= 'a' && rest[u] <= 'z' {
			u++
		}
		unit, ok := durationUnits[rest[n:u]]
		num, err := strconv.ParseInt(rest[:n], 10, 32)
		if n == 0 || !ok || err != nil || num > int64((100*365*24*time.Hour)/unit) {
			return 0, badDuration(s)
		}
		sum += time.Duration(num) * unit
		if sum > 100*365*24*time.Hour {
			return 0, badDuration(s)
		}
		rest = rest[u:]
	}
	if s == "" || s == "-" {
		return 0, badDuration(s)
	}
	if neg {
		sum = -sum
	}
	return sum, nil
}

func badDuration(s string) error {
	return fmt.Errorf("%q is no duration: write number and unit (ms s m h d), as in 90s, 1h30m or 14d", s)
}
