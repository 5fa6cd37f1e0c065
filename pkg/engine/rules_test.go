package engine_test

import "testing/fstest"

const failsText = `id: fails
title: Failures
severity: low
detection:
  kind: aggregate
  where: event.eventType == "user.session.start" && event.outcome.result == "FAILURE"
  group_by: {user: event.actor.id}
  window: 5m
  having: agg.count >= 3
alert:
  title: ${key.user} failed ${agg.count} times
`

var (
	failsFiles = map[string]string{"p/fails.yaml": failsText}
	failsRule  = fstest.MapFS{"p/fails.yaml": {Data: []byte(failsText)}}
)
