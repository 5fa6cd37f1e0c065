package ingest

import "github.com/oktawatch/oktawatch/pkg/metrics"

type instruments struct {
	events   *metrics.Counter
	oversize *metrics.Counter
	requests *metrics.Counter
	answers  *metrics.Counter
	findings *metrics.Counter
	age      *metrics.Histogram
	page     *metrics.Histogram
	accept   *metrics.Histogram
	through  *metrics.Gauge
	rate     *metrics.Gauge
}

func newInstruments(m *metrics.Set) instruments {
	return instruments{
		events:   m.Counter("oktawatch_ingest_events_total", "Events written to okta.raw.v1.", "source", "way"),
		oversize: m.Counter("oktawatch_ingest_oversize_total", "Events over 2 MiB, written without their bytes.", "source", "way"),
		requests: m.Counter("oktawatch_ingest_okta_requests_total", "Requests to the System Log API by answer.", "source", "status"),
		answers:  m.Counter("oktawatch_ingest_hook_answers_total", "Event hook requests by answer.", "source", "status"),
		findings: m.Counter("oktawatch_ingest_findings_total", "Findings raised about sources.", "source", "finding"),
		age:      m.Histogram("oktawatch_ingest_event_age_seconds", "Time from Okta's published to the event standing in okta.raw.v1.", "way"),
		page:     m.Histogram("oktawatch_ingest_page_seconds", "Time from asking for a page to its transaction standing.", "source"),
		accept:   m.Histogram("oktawatch_ingest_hook_seconds", "Time a hook delivery takes to be answered.", "source"),
		through:  m.Gauge("oktawatch_ingest_through_seconds", "Event time up to which the source is complete, Unix seconds.", "source"),
		rate:     m.Gauge("oktawatch_ingest_rate_remaining", "Requests that Okta's rate limit leaves in its window.", "source"),
	}
}
