package engine

import (
	"fmt"
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	var now time.Duration
	took := map[string]int{}
	m := meter{Meter: Meter{Every: 7, Now: func() time.Duration { return now }, Took: func(id string, d time.Duration) {
		if d != time.Millisecond {
			t.Errorf("%s took %v", id, d)
		}
		took[id]++
	}}}
	for range 700 { // events with four candidates each
		for i := range 4 {
			m.next(fmt.Sprint(i))
			now += time.Millisecond
		}
		m.stop()
		now += time.Hour // what lies between events is not the rules'
	}
	n := 0
	for id, k := range took {
		n += k
		if k < 90 || k > 110 {
			t.Errorf("rule %s was measured %d times: the sample is not even", id, k)
		}
	}
	if n != 400 {
		t.Errorf("%d of 2,800 measured, want one in 7", n)
	}
	var none meter
	for range 10 {
		none.next("x")
		none.stop()
	}
}
