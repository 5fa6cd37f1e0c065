module github.com/oktawatch/oktawatch/services/alert

go 1.26.0

require github.com/oktawatch/oktawatch/pkg v0.0.0

replace github.com/oktawatch/oktawatch/pkg => ../../pkg
