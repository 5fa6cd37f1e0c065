//go:build tools

// Package compose pins docker compose, which .ci/compose/compose builds as a plug-in of the docker command.
package compose

import _ "github.com/docker/compose/v2/cmd"
