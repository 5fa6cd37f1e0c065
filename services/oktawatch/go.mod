module github.com/oktawatch/oktawatch/services/oktawatch

go 1.26.0

require github.com/oktawatch/oktawatch/pkg v0.0.0

require github.com/oktawatch/oktawatch/rules v0.0.0

require github.com/oktawatch/oktawatch/services/ingest v0.0.0

require github.com/oktawatch/oktawatch/services/normalize v0.0.0

require github.com/oktawatch/oktawatch/services/detect v0.0.0

require github.com/oktawatch/oktawatch/services/alert v0.0.0

require (
	github.com/gofrs/flock v0.13.2 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/rogpeppe/go-internal v1.16.0 // indirect
	github.com/spf13/cobra v1.10.2 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/oktawatch/oktawatch/pkg => ../../pkg

replace github.com/oktawatch/oktawatch/rules => ../../rules

replace github.com/oktawatch/oktawatch/services/ingest => ../../services/ingest

replace github.com/oktawatch/oktawatch/services/normalize => ../../services/normalize

replace github.com/oktawatch/oktawatch/services/detect => ../../services/detect

replace github.com/oktawatch/oktawatch/services/alert => ../../services/alert
