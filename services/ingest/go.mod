module github.com/oktawatch/oktawatch/services/ingest

go 1.26.0

require github.com/oktawatch/oktawatch/pkg v0.0.0

require (
	github.com/go-jose/go-jose/v3 v3.0.5 // indirect
	github.com/okta/okta-sdk-golang/v2 v2.20.0 // indirect
	golang.org/x/crypto v0.19.0 // indirect
)

replace github.com/oktawatch/oktawatch/pkg => ../../pkg
