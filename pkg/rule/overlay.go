package rule

import (
	"maps"
	"slices"
	"strings"
)

// overlay is one entry of an overlay file: a site's changes to rules that it does not own.
type overlay struct {
	file              string
	rules             []overlayTarget
	orgs              []string // empty: all
	mode              Mode     // empty: unchanged
	severity          Severity // 0: unchanged
	params            []Param
	paramsAt          map[string]int
	labels            map[string]string
	exceptions        []Exception
	replaceExceptions bool
	doc               *document
}

type overlayTarget struct {
	text string
	off  int
}

var overlayKeys = []string{"rules", "orgs", "mode", "severity", "params", "labels", "exceptions", "replace_exceptions"}

// parseOverlays reads one overlay file: a list of entries.
func parseOverlays(file string, src []byte) ([]*overlay, []Problem) {
	d, root := parseYAML(file, src)
	if root == nil {
		return nil, d.problems
	}
	items, _ := d.items(root, "an overlay file")
	var out []*overlay
	for _, it := range items {
		fs, ok := d.fields(it, "an overlay", overlayKeys...)
		if !ok {
			continue
		}
		o := &overlay{file: file, doc: d, paramsAt: map[string]int{}}
		p, ok := fs["rules"]
		if !ok {
			d.add(d.nodeOffset(it), checkMissing, "the overlay has no rules: add rules: with ids, globs or pack:<name>")
		} else if names, ok := d.items(p.value, "rules"); ok {
			for _, n := range names {
				if s, ok := d.text(n, "an entry of rules"); ok {
					o.rules = append(o.rules, overlayTarget{s, d.nodeOffset(n)})
				}
			}
		}
		if p, ok := fs["orgs"]; ok {
			if o.orgs = d.texts(p.value, "orgs"); slices.Contains(o.orgs, "all") {
				o.orgs = nil
			}
		}
		if p, ok := fs["mode"]; ok {
			s, _ := d.oneOf(p.value, "mode", modes)
			o.mode = Mode(s)
		}
		if p, ok := fs["severity"]; ok {
			s, _ := d.oneOf(p.value, "severity", severities)
			o.severity, _ = ParseSeverity(s)
		}
		if p, ok := fs["params"]; ok {
			o.params = readParams(d, p.value, "params")
			if ps, ok := d.pairs(p.value, "params"); ok {
				for _, q := range ps {
					o.paramsAt[q.key] = d.nodeOffset(q.value)
				}
			}
		}
		if p, ok := fs["labels"]; ok {
			o.labels = readLabels(d, p.value)
		}
		if p, ok := fs["exceptions"]; ok {
			o.exceptions = readExceptions(d, p.value, file)
		}
		if p, ok := fs["replace_exceptions"]; ok {
			o.replaceExceptions, _ = d.boolean(p.value, "replace_exceptions")
		}
		out = append(out, o)
	}
	if len(d.problems) > 0 {
		return nil, d.problems
	}
	return out, nil
}

// check finds names that are not there and values of another type.
func (o *overlay) check(rules []*Rule) {
	for _, t := range o.rules {
		hit := false
		for _, r := range rules {
			if !t.takes(r) {
				continue
			}
			hit = true
			for _, p := range o.params {
				i := slices.IndexFunc(r.Params, func(q Param) bool { return q.Name == p.Name })
				// A glob or pack may reach rules that do not have the param; a rule named by id must.
				if i < 0 {
					if t.text == r.ID {
						o.doc.add(o.paramsAt[p.Name], checkOverlay, "rule %s has no param %s: %s", r.ID, p.Name, didYouMean(p.Name, paramNames(r)))
					}
					continue
				}
				if _, ok := paramAs(r.Params[i].Value, p.Value); !ok {
					o.doc.add(o.paramsAt[p.Name], checkOverlay, "param %s of rule %s is a %s: write a value of that type", p.Name, r.ID, paramTypeName(r.Params[i].Value))
				}
			}
		}
		if !hit {
			known := make([]string, 0, len(rules))
			for _, r := range rules {
				known = append(known, r.ID)
			}
			hint := Nearest(t.text, known)
			if hint != "" {
				hint = ": did you mean " + hint + "?"
			} else {
				hint = ": name a rule's id, a glob of ids, or pack:<name>"
			}
			o.doc.add(t.off, checkOverlay, "no rule is called %s%s", t.text, hint)
		}
	}
}

func paramNames(r *Rule) []string {
	var out []string
	for _, p := range r.Params {
		out = append(out, p.Name)
	}
	return out
}

func paramTypeName(v any) string {
	t, _ := paramCEL(v)
	return describe(t)
}

func (t overlayTarget) takes(r *Rule) bool {
	if pack, ok := strings.CutPrefix(t.text, "pack:"); ok {
		return r.Pack == pack
	}
	return Glob(t.text, r.ID)
}

func (o *overlay) takes(r *Rule, org string) bool {
	if len(o.orgs) > 0 && !slices.Contains(o.orgs, org) {
		return false
	}
	return slices.ContainsFunc(o.rules, func(t overlayTarget) bool { return t.takes(r) })
}

// lay gives the rule with the overlay's changes.
func (o *overlay) lay(r *Rule) *Rule {
	n := *r
	if o.mode != "" {
		n.Mode = o.mode
	}
	if o.severity != 0 {
		n.Severity = o.severity
	}
	if len(o.params) > 0 {
		n.Params = slices.Clone(r.Params)
		for i, p := range n.Params {
			for _, q := range o.params {
				if v, ok := paramAs(p.Value, q.Value); ok && q.Name == p.Name {
					n.Params[i].Value = v
				}
			}
		}
	}
	if len(o.labels) > 0 {
		n.Alert.Labels = maps.Clone(r.Alert.Labels)
		if n.Alert.Labels == nil {
			n.Alert.Labels = map[string]string{}
		}
		maps.Copy(n.Alert.Labels, o.labels)
	}
	if o.replaceExceptions {
		n.Exceptions = slices.Clone(o.exceptions)
	} else {
		n.Exceptions = append(slices.Clone(r.Exceptions), o.exceptions...)
	}
	return &n
}
