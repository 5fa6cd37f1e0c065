package bus_test

import (
	"fmt"

	"github.com/oktawatch/oktawatch/pkg/bus"
)

// A task's memory is a map with the batch's writes laid over it: they join it when the transaction is known to stand.
func ExampleOverlay() {
	var seen bus.Overlay[string, int]
	seen.Put("a", 1)
	seen.Commit()
	seen.Put("a", 2)
	seen.Abort()
	n, _ := seen.Get("a")
	fmt.Println(n)
	// Output: 1
}
