package rule

// Name is one name, or a family of names, that expressions may read beside functions.
type Name struct {
	Name     string
	Type     string
	Where    string // the expressions that may read it
	Doc      string
	Examples []Example // each is run by a test
}

const (
	everywhere = "everywhere"
	ofHits     = "having, alert"
)

// Names lists every name of the language.
func Names() []Name {
	return []Name{
		{
			"event", "Event", "everywhere but value and dedup.key of rules with memory",
			"The record. In having and alert the last record of the hit; of a sequence that of its last step that is not negated.",
			[]Example{{`event.actor.alternateId`, `"alice@example.com"`}, {`event.outcome.reason`, `""`}, {`has(event.outcome.reason)`, `false`}},
		},
		{
			"vars.x", "that of the expression", everywhere, "An expression of the rule, computed at most once a record.",
			[]Example{{`vars.user.alternateId`, `"bob@example.com"`}},
		},
		{
			"lib.x", "that of the expression", everywhere, "An expression of lib/*.yaml, computed at most once a record.",
			[]Example{{`lib.sign_in`, `true`}},
		},
		{
			"params.x", "that of the default", everywhere, "What a site may change.",
			[]Example{{`params.least`, `3`}},
		},
		{
			"lists.x", "List", everywhere, "A list, to be asked by contains, containsAny and lookup.",
			[]Example{{`lists.example.contains(event.client.ipAddress)`, `true`}},
		},
		{
			"key.part", "string", ofHits + ", dedup.key; not match", "A part of the group's key.",
			[]Example{{`key.user`, `"00uALICE"`}},
		},
		{
			"evidence", "list<Event>", ofHits + "; not match", "The hit's records in order, the last 1,000.",
			[]Example{{`evidence.size()`, `2`}, {`evidence.map(e, e.client.ipAddress)`, `["203.0.113.9", "192.0.2.7"]`}},
		},
		{
			"agg.count", "int", ofHits + "; aggregate", "The number of records in the window.",
			[]Example{{`agg.count >= params.least`, `true`}, {`agg.count`, `4`}},
		},
		{
			"agg.x (count, distinct)", "int", ofHits + "; aggregate", "The records for which a condition is true; the number of different values.",
			[]Example{{`agg.failed`, `3`}, {`agg.addresses`, `2`}},
		},
		{
			"agg.x (count_by)", "map<string,int>", ofHits + "; aggregate", "Value to number of records; a missing key reads 0.",
			[]Example{{`agg.per_address["192.0.2.7"]`, `3`}, {`agg.per_address["198.51.100.1"]`, `0`}, {`agg.per_address.all(a, n, n <= 3)`, `true`}},
		},
		{
			"agg.x (min, max)", "that of the expression", ofHits + "; aggregate", "The least and the greatest; 0 or the epoch where there is none.",
			[]Example{{`agg.last`, `timestamp("2026-01-05T10:00:00Z")`}},
		},
		{
			"agg.x (value)", "int or double", ofHits + "; aggregate", "Computed from the other aggregates.",
			[]Example{{`agg.share`, `0.75`}},
		},
		{
			"recent.x, base.x", "Baseline", ofHits + "; aggregate with baseline", "A number over the buckets of the window, and over those before.",
			[]Example{{`base.count.mean`, `1.25`}, {`recent.count.max`, `4.0`}, {`base.count.n == 0`, `false`}},
		},
		{
			"recent.x, base.x (count_by)", "KeyBaseline", ofHits + "; aggregate with baseline", "In how many buckets a value occurs, and in how many records in all; missing reads 0.",
			[]Example{{`base.per_address.buckets["192.0.2.7"]`, `2`}, {`base.per_address.totals["192.0.2.7"]`, `5`}, {`base.per_address.totals["x"]`, `0`}},
		},
		{
			"steps.id", "Event", "later steps, " + ofHits + "; sequence", "The record of a step that is not negated.",
			[]Example{{`steps.first.client.ipAddress`, `"203.0.113.9"`}, {`event.published - steps.first.published`, `duration("3600s")`}},
		},
	}
}

// Object is a type of the language that is no part of Okta's record.
type Object struct {
	Name   string
	Fields []ObjectField
}

// ObjectField is one of its fields.
type ObjectField struct{ Name, Type string }

// Objects lists these types.
func Objects() ([]Object, error) {
	ts, err := newTypeSystem()
	if err != nil {
		return nil, err
	}
	var out []Object
	for _, name := range []string{typeRisk, typeUser, typeDevice, typeDetection, typeBaseline, typeKeyBaseline} {
		o := Object{Name: name}
		for _, f := range ts.byName[name].fields {
			o.Fields = append(o.Fields, ObjectField{f.name, describe(f.ft.Type)})
		}
		out = append(out, o)
	}
	return out, nil
}

// ExampleEvent is the event that the examples speak of.
const ExampleEvent = `{
  "uuid": "u1", "published": "2026-01-05T10:00:00.000Z", "eventType": "user.session.start",
  "actor": {"id": "00uALICE", "type": "User", "alternateId": "alice@example.com"},
  "client": {"ipAddress": "192.0.2.7", "geographicalContext": {"city": "New York", "geolocation": {"lat": 40.7128, "lon": -74.006}}},
  "outcome": {"result": "SUCCESS", "reason": null},
  "target": [{"id": "0oaAPP", "type": "AppInstance"}, {"id": "00uBOB", "type": "User", "alternateId": "bob@example.com"}],
  "debugContext": {"debugData": {
    "behaviors": "{New Geo-Location=NEGATIVE, New Device=POSITIVE, New IP=NEGATIVE}",
    "risk": "{reasons=Anomalous Location, Anomalous Device, level=HIGH}"}},
  "addedLater": {"n": 1.50}
}`

// ExampleFirst is the event of the step first, an hour before.
const ExampleFirst = `{
  "uuid": "u0", "published": "2026-01-05T09:00:00.000Z", "eventType": "user.session.start",
  "actor": {"id": "00uALICE", "type": "User", "alternateId": "alice@example.com"},
  "client": {"ipAddress": "203.0.113.9", "geographicalContext": {"city": "Oslo", "geolocation": {"lat": 59.9127, "lon": 10.7461}}}
}`

// ExampleList is the list example, as a file.
const ExampleList = `value,owner
admin@example.com,it
192.0.2.0/24,lab
`
