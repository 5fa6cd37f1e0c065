package rule

import (
	"cmp"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
)

// Function is one function that rules may call beside CEL's own. All are total: no odd input makes one fail.
type Function struct {
	Signature string
	Doc       string
	Examples  []Example // each is run by a test

	name  string
	reads []readField // fields of objects that a call reads
	opt   cel.EnvOption
}

// Example is an expression and what it gives, as CEL text.
type Example struct{ Expr, Gives string }

type readField struct{ typ, field string }

// Functions lists every function of the language.
func Functions() []Function { return functions(newPatterns()) }

func functions(re *patterns) []Function {
	ev, target, risk := cel.ObjectType(typeEvent), cel.ObjectType(typeTarget), cel.ObjectType(typeRisk)
	str, num, dbl, boolean := cel.StringType, cel.IntType, cel.DoubleType, cel.BoolType
	strs := cel.ListType(str)
	smap := cel.MapType(str, str)
	imap := cel.MapType(str, num)
	member := func(name, id string, args []*cel.Type, result *cel.Type, opts ...cel.OverloadOpt) cel.EnvOption {
		return cel.Function(name, cel.MemberOverload(id, args, result, opts...))
	}
	unary := func(f func(ref.Val) ref.Val) cel.OverloadOpt { return cel.UnaryBinding(f) }
	binary := func(f func(a, b ref.Val) ref.Val) cel.OverloadOpt { return cel.BinaryBinding(f) }
	location := []readField{{typeEvent, "client"}, {"Client", "geographicalContext"}, {"GeographicalContext", "geolocation"}, {"Geolocation", "lat"}, {"Geolocation", "lon"}}
	return []Function{
		{
			Signature: "event.targets(string) -> list<Target>", name: "targets",
			Doc:      "Targets of that type.",
			Examples: []Example{{`event.targets("User").map(t, t.id)`, `["00uBOB"]`}, {`event.targets("Nothing")`, `[]`}},
			reads:    []readField{{typeEvent, "target"}, {typeTarget, "type"}},
			opt: member("targets", "event_targets", []*cel.Type{ev, str}, cel.ListType(target), binary(func(a, b ref.Val) ref.Val {
				e, ok := eventVal(a)
				if !ok {
					return types.NewRefValList(types.DefaultTypeAdapter, nil)
				}
				return types.NewRefValList(types.DefaultTypeAdapter, e.targets(text(b)))
			})),
		},
		{
			Signature: "event.targetOf(string) -> Target", name: "targetOf",
			Doc:      "The first target of that type, or an empty Target.",
			Examples: []Example{{`event.targetOf("User").alternateId`, `"bob@example.com"`}, {`event.targetOf("Nothing").id`, `""`}},
			reads:    []readField{{typeEvent, "target"}, {typeTarget, "type"}},
			opt: member("targetOf", "event_target_of", []*cel.Type{ev, str}, target, binary(func(a, b ref.Val) ref.Val {
				e, ok := eventVal(a)
				if !ok {
					return types.NewErr("no event")
				}
				return e.targetOf(text(b))
			})),
		},
		{
			Signature: "event.behaviors() -> map<string,string>", name: "behaviors",
			Doc:      "Behaviour name to POSITIVE, NEGATIVE and others: name by name from securityContext.userBehaviors, else debugData.behaviors, else the JSON in debugData.logOnlySecurityData; missing reads \"\".",
			Examples: []Example{{`event.behaviors()["New Device"]`, `"POSITIVE"`}, {`event.behaviors()["New City"]`, `""`}},
			reads:    []readField{{typeEvent, "securityContext"}, {"SecurityContext", "userBehaviors"}, {"UserBehavior", "name"}, {"UserBehavior", "result"}, {typeEvent, "debugContext"}, {"DebugContext", "debugData"}},
			opt: member("behaviors", "event_behaviors", []*cel.Type{ev}, smap, unary(func(a ref.Val) ref.Val {
				e, ok := eventVal(a)
				if !ok {
					return stringMap(nil)
				}
				return e.behaviors()
			})),
		},
		{
			Signature: "event.risk() -> Risk", name: "risk",
			Doc:      "level, previousLevel, detectionName, issuer and reasons: name by name from securityContext.risk, else debugData.risk, else logOnlySecurityData.",
			Examples: []Example{{`event.risk().level`, `"HIGH"`}, {`event.risk().reasons`, `["Anomalous Location, Anomalous Device"]`}},
			reads: []readField{
				{typeEvent, "securityContext"},
				{"SecurityContext", "risk"},
				{typeRisk, "level"},
				{typeRisk, "previousLevel"},
				{typeRisk, "reasons"},
				{typeRisk, "detectionName"},
				{typeRisk, "issuer"},
				{typeEvent, "debugContext"},
				{"DebugContext", "debugData"},
			},
			opt: member("risk", "event_risk", []*cel.Type{ev}, risk, unary(func(a ref.Val) ref.Val {
				e, ok := eventVal(a)
				if !ok {
					return types.NewErr("no event")
				}
				return e.heap.object(e.heap.types.byName[typeRisk], e.riskOf())
			})),
		},
		{
			Signature: "event.user(string id) -> User", name: "user",
			Doc:      "Profile of a user as it stood when the record was written; unknown id: empty.",
			Examples: []Example{{`event.user("00uNOBODY").department`, `""`}},
			opt: member("user", "event_user", []*cel.Type{ev, str}, cel.ObjectType(typeUser), binary(func(a, b ref.Val) ref.Val {
				e, ok := eventVal(a)
				if !ok {
					return types.NewErr("no event")
				}
				return e.user(text(b))
			})),
		},
		{
			Signature: "event.deviceOf(string id) -> DeviceProfile", name: "deviceOf",
			Doc:      "Profile of a device as it stood when the record was written; unknown id: empty.",
			Examples: []Example{{`event.deviceOf("guoNONE").managed`, `false`}},
			opt: member("deviceOf", "event_device_of", []*cel.Type{ev, str}, cel.ObjectType(typeDevice), binary(func(a, b ref.Val) ref.Val {
				e, ok := eventVal(a)
				if !ok {
					return types.NewErr("no event")
				}
				return e.deviceOf(text(b))
			})),
		},
		{
			Signature: "event.raw(string path) -> string", name: "raw",
			Doc:      "Text at that path of the record's JSON, \"\" if none: for fields Okta adds later.",
			Examples: []Example{{`event.raw("addedLater.n")`, `"1.50"`}, {`event.raw("no.such.field")`, `""`}},
			opt: member("raw", "event_raw", []*cel.Type{ev, str}, str, binary(func(a, b ref.Val) ref.Val {
				e, ok := eventVal(a)
				if !ok {
					return types.String("")
				}
				return types.String(e.rawAt(text(b)))
			})),
		},
		{
			Signature: "s.known() -> bool", name: "known",
			Doc:      "False for \"\", -, null, none and unknown in any case, blanks trimmed.",
			Examples: []Example{{`" Unknown ".known()`, `false`}, {`"alice".known()`, `true`}},
			opt:      member("known", "string_known", []*cel.Type{str}, boolean, unary(func(a ref.Val) ref.Val { return types.Bool(Known(text(a))) })),
		},
		{
			Signature: "firstKnown(list<string>) -> string", name: "firstKnown",
			Doc:      "First known text, else \"\".",
			Examples: []Example{{`firstKnown(["", "unknown", "x"])`, `"x"`}, {`firstKnown([])`, `""`}},
			opt: cel.Function("firstKnown", cel.Overload("first_known", []*cel.Type{strs}, str, unary(func(a ref.Val) ref.Val {
				for _, s := range texts(a) {
					if Known(s) {
						return types.String(s)
					}
				}
				return types.String("")
			}))),
		},
		{
			Signature: "s.glob(string) -> bool", name: "glob",
			Doc:      "Whole text against a pattern with * (any text) and ? (one character).",
			Examples: []Example{{`"system.org.rate_limit.violation".glob("system.*.rate_limit.*")`, `true`}, {`"abc".glob("ab")`, `false`}},
			opt:      member("glob", "string_glob", []*cel.Type{str, str}, boolean, binary(func(a, b ref.Val) ref.Val { return types.Bool(Glob(text(b), text(a))) })),
		},
		{
			Signature: "s.containsAny(list<string>) -> bool", name: "containsAny",
			Doc:      "One of them is inside, ignoring case.",
			Examples: []Example{{`"Mozilla HeadlessChrome/1".containsAny(["headless", "curl"])`, `true`}, {`"x".containsAny([])`, `false`}},
			opt: member("containsAny", "string_contains_any", []*cel.Type{str, strs}, boolean, binary(func(a, b ref.Val) ref.Val {
				s := strings.ToLower(text(a))
				return types.Bool(slices.ContainsFunc(texts(b), func(t string) bool { return strings.Contains(s, strings.ToLower(t)) }))
			})),
		},
		{
			Signature: "s.extract(string re) -> string", name: "extract",
			Doc:      "Last group of the first match, the whole match where there is no group, else \"\".",
			Examples: []Example{{`"user/00u1/x".extract("user/([^/]+)")`, `"00u1"`}, {`"none".extract("[0-9]+")`, `""`}},
			opt: member("extract", "string_extract", []*cel.Type{str, str}, str, binary(func(a, b ref.Val) ref.Val {
				r := re.get(text(b))
				if r == nil {
					return types.String("")
				}
				m := r.FindStringSubmatch(text(a))
				if m == nil {
					return types.String("")
				}
				return types.String(m[len(m)-1])
			})),
		},
		{
			Signature: "s.emailDomain() -> string", name: "emailDomain",
			Doc:      "Domain in lower case, \"\" if the text is not an e-mail address.",
			Examples: []Example{{`"Alice@Example.COM".emailDomain()`, `"example.com"`}, {`"alice".emailDomain()`, `""`}},
			opt:      member("emailDomain", "string_email_domain", []*cel.Type{str}, str, unary(func(a ref.Val) ref.Val { return types.String(emailDomain(text(a))) })),
		},
		{
			Signature: "s.similarity(string) -> double", name: "similarity",
			Doc:      "0 to 1: twice the matched length over the summed length, by longest common blocks. Of longer texts the first 512 characters are compared.",
			Examples: []Example{{`"abcd".similarity("bcde")`, `0.75`}, {`"".similarity("")`, `1.0`}},
			opt:      member("similarity", "string_similarity", []*cel.Type{str, str}, dbl, binary(func(a, b ref.Val) ref.Val { return types.Double(similarity(text(a), text(b))) })),
		},
		{
			Signature: "s.countryCode() -> string", name: "countryCode",
			Doc:      "ISO 3166 two letters from an English name or a code, else \"\".",
			Examples: []Example{{`"Norway".countryCode()`, `"NO"`}, {`"us".countryCode()`, `"US"`}, {`"Atlantis".countryCode()`, `""`}},
			opt:      member("countryCode", "string_country_code", []*cel.Type{str}, str, unary(func(a ref.Val) ref.Val { return types.String(countryCode(text(a))) })),
		},
		{
			Signature: "s.jsonValue(string path) -> string", name: "jsonValue",
			Doc:      "First value at a path such as a.b.0.* of JSON text; JSON inside strings is opened on the way; no JSON: \"\".",
			Examples: []Example{{`r'{"a":"{\"b\":[1,2]}"}'.jsonValue("a.b.1")`, `"2"`}, {`"no json".jsonValue("a")`, `""`}},
			opt: member("jsonValue", "string_json_value", []*cel.Type{str, str}, str, binary(func(a, b ref.Val) ref.Val {
				if vs := jsonValues(text(a), text(b)); len(vs) > 0 {
					return types.String(vs[0])
				}
				return types.String("")
			})),
		},
		{
			Signature: "s.jsonValues(string path) -> list<string>", name: "jsonValues",
			Doc:      "All values at a path of JSON text; no JSON: [].",
			Examples: []Example{{`'[{"t":"VPN"},{"t":"TOR"}]'.jsonValues("*.t")`, `["VPN", "TOR"]`}, {`"no json".jsonValues("a")`, `[]`}},
			opt:      member("jsonValues", "string_json_values", []*cel.Type{str, str}, strs, binary(func(a, b ref.Val) ref.Val { return stringList(jsonValues(text(a), text(b))) })),
		},
		{
			Signature: "m.getFold(string) -> string", name: "getFold",
			Doc:      "Value of a map whose key equals ignoring case, first by key when several do, else \"\".",
			Examples: []Example{{`event.behaviors().getFold("new device")`, `"POSITIVE"`}, {`{"A": "b"}.getFold("c")`, `""`}},
			opt: member("getFold", "map_get_fold", []*cel.Type{smap, str}, str, binary(func(a, b ref.Val) ref.Val {
				best, found, key := "", "", text(b)
				for k, v := range entries(a) {
					if strings.EqualFold(k, key) && (found == "" || k < found) {
						best, found = text(v), k
					}
				}
				return types.String(best)
			})),
		},
		{
			Signature: "s.inCidr(list<string>) -> bool", name: "inCidr",
			Doc:      "Address in one of the ranges or equal to one of the addresses.",
			Examples: []Example{{`"10.1.2.3".inCidr(["10.0.0.0/8", "::1"])`, `true`}, {`"no address".inCidr(["10.0.0.0/8"])`, `false`}},
			opt:      member("inCidr", "string_in_cidr", []*cel.Type{str, strs}, boolean, binary(func(a, b ref.Val) ref.Val { return types.Bool(inCidr(text(a), texts(b))) })),
		},
		{
			Signature: "s.mask() -> string", name: "mask",
			Doc:      "First two characters and ***.",
			Examples: []Example{{`"hunter2".mask()`, `"hu***"`}, {`"é".mask()`, `"é***"`}},
			opt:      member("mask", "string_mask", []*cel.Type{str}, str, unary(func(a ref.Val) ref.Val { return types.String(Mask(text(a))) })),
		},
		{
			Signature: "lists.x.contains(string) -> bool", name: "contains",
			Doc:      "The text equals an entry ignoring case, or is an address inside a listed range.",
			Examples: []Example{{`lists.example.contains("ADMIN@example.com")`, `true`}, {`lists.example.contains("192.0.2.9")`, `true`}, {`lists.example.contains("x")`, `false`}},
			opt: member("contains", "list_contains", []*cel.Type{cel.OpaqueType(typeList), str}, boolean, binary(func(a, b ref.Val) ref.Val {
				l, _ := a.(*List)
				return types.Bool(l.Contains(text(b)))
			})),
		},
		{
			Signature: "lists.x.containsAny(list<string>) -> bool", name: "containsAny",
			Doc:      "One of the texts is in the list.",
			Examples: []Example{{`lists.example.containsAny(["x", "192.0.2.1"])`, `true`}, {`lists.example.containsAny([])`, `false`}},
			opt: member("containsAny", "list_contains_any", []*cel.Type{cel.OpaqueType(typeList), strs}, boolean, binary(func(a, b ref.Val) ref.Val {
				l, _ := a.(*List)
				return types.Bool(slices.ContainsFunc(texts(b), l.Contains))
			})),
		},
		{
			Signature: "lists.x.lookup(string) -> map<string,string>", name: "lookup",
			Doc:      "The entry's columns, empty if none.",
			Examples: []Example{{`lists.example.lookup("192.0.2.1")["owner"]`, `"lab"`}, {`lists.example.lookup("x").size()`, `0`}},
			opt: member("lookup", "list_lookup", []*cel.Type{cel.OpaqueType(typeList), str}, smap, binary(func(a, b ref.Val) ref.Val {
				l, _ := a.(*List)
				return stringMap(l.Lookup(text(b)))
			})),
		},
		{
			Signature: "sum(list<int>) -> int, sum(list<double>) -> double", name: "sum",
			Doc:      "Sum of the list, 0 for an empty one; a sum that does not fit stays at the greatest int.",
			Examples: []Example{{`sum([1, 2, 3])`, `6`}, {`sum([0.5, 0.25])`, `0.75`}},
			opt: cel.Function("sum",
				cel.Overload("sum_int", []*cel.Type{cel.ListType(num)}, num, unary(func(a ref.Val) ref.Val {
					var s int64
					for v := range items(a) {
						n, _ := v.(types.Int)
						s = addSaturating(s, int64(n))
					}
					return types.Int(s)
				})),
				cel.Overload("sum_double", []*cel.Type{cel.ListType(dbl)}, dbl, unary(func(a ref.Val) ref.Val {
					var s float64
					for v := range items(a) {
						x, _ := v.(types.Double)
						s += float64(x)
					}
					return types.Double(s)
				}))),
		},
		{
			Signature: "ratio(a, b) -> double", name: "ratio",
			Doc:      "a / b, both int or both double; 0.0 when b is 0.",
			Examples: []Example{{`ratio(1, 4)`, `0.25`}, {`ratio(1.0, 0.0)`, `0.0`}},
			opt: cel.Function("ratio",
				cel.Overload("ratio_int", []*cel.Type{num, num}, dbl, binary(ratio)),
				cel.Overload("ratio_double", []*cel.Type{dbl, dbl}, dbl, binary(ratio))),
		},
		{
			Signature: "mode(map<string,int>) -> string", name: "mode",
			Doc:      "Key with the greatest value, first by name when equal; \"\" if empty.",
			Examples: []Example{{`mode({"a": 1, "c": 3, "b": 3})`, `"b"`}, {`mode({})`, `""`}},
			opt: cel.Function("mode", cel.Overload("mode_map", []*cel.Type{imap}, str, unary(func(a ref.Val) ref.Val {
				best, most, any := "", types.Int(0), false
				for k, v := range entries(a) {
					n, _ := v.(types.Int)
					if !any || n > most || n == most && k < best {
						best, most, any = k, n, true
					}
				}
				return types.String(best)
			}))),
		},
		{
			Signature: "zscore(x, Baseline, double least) -> double", name: "zscore",
			Doc:      "(x - mean) / max(stddev, least); 0.0 when n is 0 or the divisor is 0. x is int or double.",
			Examples: []Example{{`zscore(recent.count.max, base.count, 0.25)`, `5.5`}, {`zscore(agg.count, base.count, 2.0) > 1.0`, `true`}},
			opt: cel.Function("zscore",
				cel.Overload("zscore_int", []*cel.Type{num, cel.ObjectType(typeBaseline), dbl}, dbl, cel.FunctionBinding(zscore)),
				cel.Overload("zscore_double", []*cel.Type{dbl, cel.ObjectType(typeBaseline), dbl}, dbl, cel.FunctionBinding(zscore))),
			reads: []readField{{typeBaseline, "n"}, {typeBaseline, "mean"}, {typeBaseline, "stddev"}},
		},
		{
			Signature: "distanceKm(Event, Event) -> double", name: "distanceKm",
			Doc:      "Great circle between the clients' locations, radius 6,371 km; 0.0 when a location is missing.",
			Examples: []Example{{`int(distanceKm(steps.first, event))`, `5914`}, {`distanceKm(event, event)`, `0.0`}},
			reads:    location,
			opt: cel.Function("distanceKm", cel.Overload("distance_km", []*cel.Type{ev, ev}, dbl, binary(func(a, b ref.Val) ref.Val {
				km, _ := distance(a, b)
				return types.Double(km)
			}))),
		},
		{
			Signature: "speedKmh(Event, Event) -> double", name: "speedKmh",
			Doc:      "Distance over the time between the two, at least one second; 0.0 when a location is missing.",
			Examples: []Example{{`speedKmh(steps.first, event) > 900.0`, `true`}, {`speedKmh(event, event)`, `0.0`}},
			reads:    append([]readField{{typeEvent, "published"}}, location...),
			opt:      cel.Function("speedKmh", cel.Overload("speed_kmh", []*cel.Type{ev, ev}, dbl, binary(speed))),
		},
	}
}

func text(v ref.Val) string {
	s, _ := v.(types.String)
	return string(s)
}

// items walks a list.
func items(v ref.Val) func(yield func(ref.Val) bool) {
	return func(yield func(ref.Val) bool) {
		l, ok := v.(traits.Lister)
		if !ok {
			return
		}
		for it := l.Iterator(); it.HasNext() == types.True; {
			if !yield(it.Next()) {
				return
			}
		}
	}
}

func texts(v ref.Val) []string {
	var out []string
	for e := range items(v) {
		if s, ok := e.(types.String); ok {
			out = append(out, string(s))
		}
	}
	return out
}

// entries walks a map with text keys.
func entries(v ref.Val) func(yield func(string, ref.Val) bool) {
	return func(yield func(string, ref.Val) bool) {
		m, ok := v.(traits.Mapper)
		if !ok {
			return
		}
		for it := m.Iterator(); it.HasNext() == types.True; {
			k := it.Next()
			s, ok := k.(types.String)
			if ok && !yield(string(s), m.Get(k)) {
				return
			}
		}
	}
}

// Known tells whether a text says anything.
func Known(s string) bool {
	s = strings.TrimSpace(s)
	if len(s) > 7 {
		return true
	}
	switch strings.ToLower(s) {
	case "", "-", "null", "none", "unknown":
		return false
	}
	return true
}

// Glob matches a whole text against a pattern with * and ?.
func Glob(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
			continue
		case p < len(pattern) && pattern[p] == '?':
			_, n := utf8.DecodeRuneInString(s[i:])
			p, i = p+1, i+n
			continue
		case p < len(pattern) && pattern[p] == s[i]:
			p, i = p+1, i+1
			continue
		case star >= 0:
			_, n := utf8.DecodeRuneInString(s[mark:])
			mark += n
			p, i = star+1, mark
			continue
		}
		return false
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// Mask keeps the first two characters of a text.
func Mask(s string) string {
	n := 0
	for i := range s {
		if n == 2 {
			return s[:i] + "***"
		}
		n++
	}
	return s + "***"
}

func emailDomain(s string) string {
	s = strings.TrimSpace(s)
	at := strings.LastIndexByte(s, '@')
	if at <= 0 || strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune("<>,;()", r)
	}) {
		return ""
	}
	domain := strings.ToLower(strings.TrimSuffix(s[at+1:], "."))
	if !strings.Contains(domain, ".") || strings.HasPrefix(domain, ".") || strings.HasSuffix(domain, ".") || strings.Contains(domain, "..") {
		return ""
	}
	return domain
}

const maxSimilarityChars = 512

// similarity is Ratcliff and Obershelp's measure.
func similarity(s, t string) float64 {
	a, b := []rune(s), []rune(t)
	a, b = a[:min(len(a), maxSimilarityChars)], b[:min(len(b), maxSimilarityChars)]
	if len(a)+len(b) == 0 {
		return 1
	}
	return 2 * float64(commonBlocks(a, b)) / float64(len(a)+len(b))
}

func commonBlocks(a, b []rune) int {
	if len(a) == 0 || len(b) == 0 {
		return 0
	}
	bestA, bestB, best := 0, 0, 0
	prev, cur := make([]int, len(b)+1), make([]int, len(b)+1)
	for i := range a {
		for j := range b {
			cur[j+1] = 0
			if a[i] == b[j] {
				if cur[j+1] = prev[j] + 1; cur[j+1] > best {
					best = cur[j+1]
					bestA, bestB = i+1-best, j+1-best
				}
			}
		}
		prev, cur = cur, prev
	}
	if best == 0 {
		return 0
	}
	return commonBlocks(a[:bestA], b[:bestB]) + best + commonBlocks(a[bestA+best:], b[bestB+best:])
}

func inCidr(s string, ranges []string) bool {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return false
	}
	a = a.Unmap().WithZone("")
	for _, r := range ranges {
		if p, err := netip.ParsePrefix(r); err == nil {
			if p.Contains(a) {
				return true
			}
		} else if b, err := netip.ParseAddr(r); err == nil && b.Unmap() == a {
			return true
		}
	}
	return false
}

func addSaturating(a, b int64) int64 {
	s := a + b
	switch {
	case a > 0 && b > 0 && s < 0:
		return math.MaxInt64
	case a < 0 && b < 0 && s >= 0:
		return math.MinInt64
	}
	return s
}

func number(v ref.Val) float64 {
	switch v := v.(type) {
	case types.Int:
		return float64(v)
	case types.Double:
		return float64(v)
	}
	return 0
}

func ratio(a, b ref.Val) ref.Val {
	d := number(b)
	if d == 0 {
		return types.Double(0)
	}
	return types.Double(number(a) / d)
}

func zscore(args ...ref.Val) ref.Val {
	o, _ := args[1].(*object)
	if o == nil {
		return types.Double(0)
	}
	b, _ := o.v.(*Baseline)
	if b == nil || b.N == 0 {
		return types.Double(0)
	}
	div := max(b.Stddev, number(args[2]))
	if div == 0 {
		return types.Double(0)
	}
	return types.Double((number(args[0]) - b.Mean) / div)
}

const earthKm = 6371

func distance(a, b ref.Val) (float64, bool) {
	x, ok1 := eventVal(a)
	y, ok2 := eventVal(b)
	if !ok1 || !ok2 {
		return 0, false
	}
	lat1, lon1, ok1 := x.location()
	lat2, lon2, ok2 := y.location()
	if !ok1 || !ok2 {
		return 0, false
	}
	rad := func(d float64) float64 { return d * math.Pi / 180 }
	dLat, dLon := rad(lat2-lat1), rad(lon2-lon1)
	h := math.Pow(math.Sin(dLat/2), 2) + math.Cos(rad(lat1))*math.Cos(rad(lat2))*math.Pow(math.Sin(dLon/2), 2)
	return 2 * earthKm * math.Asin(math.Sqrt(min(1, max(0, h)))), true
}

func speed(a, b ref.Val) ref.Val {
	km, ok := distance(a, b)
	if !ok {
		return types.Double(0)
	}
	x, _ := eventVal(a)
	y, _ := eventVal(b)
	hours := y.Time().Sub(x.Time()).Abs().Hours()
	return types.Double(km / max(hours, 1.0/3600))
}

// patterns keeps compiled regular expressions, a bounded number of them.
type patterns struct {
	mu sync.RWMutex
	m  map[string]*regexp.Regexp // nil for one that does not compile
}

const maxPatterns = 1024

func newPatterns() *patterns { return &patterns{m: map[string]*regexp.Regexp{}} }

func (p *patterns) get(s string) *regexp.Regexp {
	p.mu.RLock()
	re, ok := p.m[s]
	p.mu.RUnlock()
	if ok {
		return re
	}
	re, _ = regexp.Compile(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.m) >= maxPatterns {
		clear(p.m)
	}
	p.m[s] = re
	return re
}

func countryCode(s string) string {
	s = strings.TrimSpace(s)
	if len(s) == 2 {
		up := strings.ToUpper(s)
		if _, ok := slices.BinarySearchFunc(countryCodes(), up, strings.Compare); ok {
			return up
		}
		return ""
	}
	names := countries()
	fold := foldCountry(s)
	i, ok := slices.BinarySearchFunc(names, fold, func(c country, n string) int { return cmp.Compare(c.name, n) })
	if !ok {
		return ""
	}
	return names[i].code
}
