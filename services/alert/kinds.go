package alert

import (
	"github.com/oktawatch/oktawatch/services/alert/sink"
	"github.com/oktawatch/oktawatch/services/alert/sink/terminal"
	"github.com/oktawatch/oktawatch/services/alert/sink/webhook"
)

// Kinds is the whole list: a sink that is not here does not exist.
func Kinds() []sink.Kind {
	return []sink.Kind{
		terminal.Kind,
		webhook.Kind,
	}
}
