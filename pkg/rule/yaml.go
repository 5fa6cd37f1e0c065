package rule

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	yaml "github.com/goccy/go-yaml"
	yamlast "github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// document is one YAML file with everything found wrong in it.
type document struct {
	file     string
	src      []byte
	lines    []int // offset of each line
	problems []Problem
}

// place is where a value stands.
type place struct {
	doc *document
	off int // byte offset of the value's first character (of the block scalar's header for block scalars)
}

func (d *document) add(off int, check, format string, args ...any) {
	if len(d.problems) >= maxProblems {
		return
	}
	line, col := d.lineCol(off)
	d.problems = append(d.problems, Problem{d.file, line, col, check, fmt.Sprintf(format, args...)})
}

func (d *document) lineCol(off int) (int, int) {
	off = min(max(off, 0), len(d.src))
	line, found := slices.BinarySearch(d.lines, off)
	if !found {
		line--
	}
	return line + 1, utf8.RuneCount(d.src[d.lines[line]:off]) + 1
}

func (d *document) position(off int) Position {
	line, col := d.lineCol(off)
	return Position{d.file, line, col}
}

// offset turns a token's line and column (in runes) into a byte offset.
func (d *document) offset(p *token.Position) int {
	if p == nil || p.Line < 1 || p.Line > len(d.lines) {
		return 0
	}
	off := d.lines[p.Line-1]
	for col := 1; col < p.Column && off < len(d.src) && d.src[off] != '\n'; col++ {
		_, n := utf8.DecodeRune(d.src[off:])
		off += n
	}
	return off
}

func (d *document) nodeOffset(n yamlast.Node) int {
	switch n := n.(type) {
	case *yamlast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return d.nodeOffset(n.Values[0])
		}
	case *yamlast.MappingValueNode:
		return d.nodeOffset(n.Key)
	case *yamlast.LiteralNode:
		return d.offset(n.Start.Position)
	}
	if n == nil || n.GetToken() == nil {
		return 0
	}
	return d.offset(n.GetToken().Position)
}

// parseYAML reads one document. It returns nil where the file cannot be read on.
func parseYAML(file string, src []byte) (d *document, root yamlast.Node) {
	d = &document{file: file, src: src, lines: []int{0}}
	for i, c := range src {
		if c == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	switch {
	case len(src) > MaxFileBytes:
		d.add(0, checkSize, "the file has %d bytes, at most %d are read: put long event data into a file of their own and name it by file:", len(src), MaxFileBytes)
		return d, nil
	case !utf8.Valid(src):
		off := 0
		for off < len(src) {
			r, n := utf8.DecodeRune(src[off:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			off += n
		}
		d.add(off, checkSize, "the file is not UTF-8 here: save it as UTF-8")
		return d, nil
	}
	if off := tooDeep(src); off >= 0 {
		d.add(off, checkSize, "nested more than %d deep: a rule is flat", maxYAMLDepth)
		return d, nil
	}
	// The parser's own faults on odd input must not take the loader down.
	defer func() {
		if p := recover(); p != nil {
			d.add(0, checkSyntax, "the YAML reader gave up on this file (%v): simplify it", p)
			root = nil
		}
	}()
	f, err := parser.ParseBytes(src, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		off, msg := 0, err.Error()
		if syn, ok := errors.AsType[yaml.Error](err); ok {
			msg = syn.GetMessage()
			if syn.GetToken() != nil {
				off = d.offset(syn.GetToken().Position)
			}
		}
		d.add(off, checkSyntax, "not YAML: %s", strings.TrimSpace(msg))
		return d, nil
	}
	var bodies []yamlast.Node
	for _, doc := range f.Docs {
		if doc.Body != nil && doc.Body.Type() != yamlast.CommentType {
			bodies = append(bodies, doc.Body)
		}
	}
	switch len(bodies) {
	case 0:
		d.add(0, checkSyntax, "the file says nothing: a rule begins with id:")
		return d, nil
	case 1:
	default:
		d.add(d.nodeOffset(bodies[1]), checkSyntax, "a second document begins here: one rule a file")
		return d, nil
	}
	n := len(d.problems)
	d.refuseFeatures(bodies[0], 0)
	if len(d.problems) > n {
		return d, nil
	}
	return d, bodies[0]
}

// tooDeep finds nesting that the YAML parser would follow by recursion. It counts brackets without reading
// quotes, so it errs towards refusing.
func tooDeep(src []byte) int {
	depth, dashes, lineStart := 0, 0, true
	for i, c := range src {
		switch c {
		case '[', '{':
			if depth++; depth > 4*maxYAMLDepth {
				return i
			}
		case ']', '}':
			depth = max(depth-1, 0)
		case '\n':
			lineStart, dashes = true, 0
			continue
		}
		if lineStart {
			switch c {
			case '-', '?', ':':
				if dashes++; dashes > maxYAMLDepth {
					return i
				}
			case ' ', '\t':
			default:
				lineStart = false
			}
		}
	}
	return -1
}

// refuseFeatures reports what the language leaves out of YAML.
func (d *document) refuseFeatures(n yamlast.Node, depth int) {
	if n == nil {
		return
	}
	if depth > maxYAMLDepth {
		d.add(d.nodeOffset(n), checkSize, "nested more than %d deep: a rule is flat", maxYAMLDepth)
		return
	}
	switch n := n.(type) {
	case *yamlast.AnchorNode:
		d.add(d.nodeOffset(n), checkFeature, "an anchor (&name) is not allowed: write the value where it is needed")
	case *yamlast.AliasNode:
		d.add(d.nodeOffset(n), checkFeature, "an alias (*name) is not allowed: write the value where it is needed; a text that begins with * goes in quotes")
	case *yamlast.MergeKeyNode:
		d.add(d.nodeOffset(n), checkFeature, "a merge key (<<) is not allowed: write the keys where they are needed")
	case *yamlast.TagNode:
		d.add(d.nodeOffset(n), checkFeature, "YAML reads %s as a tag: put the whole text in single quotes", n.Start.Value)
	case *yamlast.MappingNode:
		for _, v := range n.Values {
			d.refuseFeatures(v, depth)
		}
	case *yamlast.MappingValueNode:
		if k, ok := n.Key.(*yamlast.MappingKeyNode); ok {
			d.add(d.nodeOffset(k), checkFeature, "a complex key (? key) is not allowed: write key: value")
			return
		}
		d.refuseFeatures(n.Key, depth+1)
		d.refuseFeatures(n.Value, depth+1)
	case *yamlast.SequenceNode:
		for _, v := range n.Values {
			d.refuseFeatures(v, depth+1)
		}
	}
}

// pair is one key of a map.
type pair struct {
	key    string
	keyOff int
	value  yamlast.Node
}

// pairs reads a map of any text keys, in the file's order.
func (d *document) pairs(n yamlast.Node, what string) ([]pair, bool) {
	var values []*yamlast.MappingValueNode
	switch n := n.(type) {
	case *yamlast.MappingNode:
		values = n.Values
	case *yamlast.MappingValueNode:
		values = []*yamlast.MappingValueNode{n}
	default:
		d.add(d.nodeOffset(n), checkType, "%s is %s: write a map, key: value", what, kindOf(n))
		return nil, false
	}
	out := make([]pair, 0, len(values))
	first := make(map[string]int, len(values))
	for _, v := range values {
		off := d.nodeOffset(v.Key)
		var key string
		switch k := v.Key.(type) {
		case *yamlast.StringNode:
			key = k.Value
		case yamlast.ScalarNode:
			key = v.Key.GetToken().Value
		default:
			d.add(off, checkType, "a key of %s is no text: write key: value", what)
			continue
		}
		if at, ok := first[key]; ok {
			line, _ := d.lineCol(at)
			d.add(off, checkRepeatedKey, "%s stands here a second time, first in line %d: keep one", key, line)
			continue
		}
		first[key] = off
		out = append(out, pair{key, off, v.Value})
	}
	return out, true
}

// fields reads a map of known keys.
func (d *document) fields(n yamlast.Node, what string, known ...string) (map[string]pair, bool) {
	ps, ok := d.pairs(n, what)
	if !ok {
		return nil, false
	}
	out := make(map[string]pair, len(ps))
	for _, p := range ps {
		if !slices.Contains(known, p.key) {
			d.add(p.keyOff, checkUnknownKey, "%s has no key %q: %s", what, p.key, didYouMean(p.key, known))
			continue
		}
		out[p.key] = p
	}
	return out, true
}

func (d *document) items(n yamlast.Node, what string) ([]yamlast.Node, bool) {
	seq, ok := n.(*yamlast.SequenceNode)
	if !ok {
		d.add(d.nodeOffset(n), checkType, "%s is %s: write a list", what, kindOf(n))
		return nil, false
	}
	return seq.Values, true
}

func kindOf(n yamlast.Node) string {
	switch n := n.(type) {
	case nil, *yamlast.NullNode:
		return "empty"
	case *yamlast.MappingNode, *yamlast.MappingValueNode:
		return "a map"
	case *yamlast.SequenceNode:
		return "a list"
	case *yamlast.StringNode, *yamlast.LiteralNode:
		return "a text"
	case *yamlast.BoolNode:
		return "true or false"
	case *yamlast.IntegerNode, *yamlast.FloatNode:
		return "a number"
	default:
		return strings.ToLower(n.Type().String())
	}
}

// text reads a text. A number or true is refused, for YAML would change what was written.
func (d *document) text(n yamlast.Node, what string) (string, bool) {
	switch n := n.(type) {
	case *yamlast.StringNode:
		return n.Value, true
	case *yamlast.LiteralNode:
		return n.Value.Value, true
	case *yamlast.IntegerNode, *yamlast.FloatNode, *yamlast.BoolNode:
		d.add(d.nodeOffset(n), checkType, "%s is %s to YAML: put it in quotes", what, kindOf(n))
	case *yamlast.MappingNode, *yamlast.MappingValueNode:
		if s, ok := d.colonText(n); ok {
			return s, true
		}
		d.add(d.nodeOffset(n), checkType, "%s is a map: write a text", what)
	default:
		d.add(d.nodeOffset(n), checkType, "%s is %s: write a text", what, kindOf(n))
	}
	return "", false
}

// colonText mends what the parser does to [pack:name] inside { }: without a blank behind the colon it is a text to
// YAML, but the parser makes a map of it.
func (d *document) colonText(n yamlast.Node) (string, bool) {
	if m, ok := n.(*yamlast.MappingNode); ok {
		if len(m.Values) != 1 || m.Start == nil || d.offset(m.Start.Position) < len(d.src) && d.src[d.offset(m.Start.Position)] == '{' {
			return "", false
		}
		n = m.Values[0]
	}
	v, ok := n.(*yamlast.MappingValueNode)
	if !ok {
		return "", false
	}
	key, ok1 := v.Key.(*yamlast.StringNode)
	val, ok2 := v.Value.(*yamlast.StringNode)
	if !ok1 || !ok2 || d.nodeOffset(val) != d.nodeOffset(key)+len(key.Value)+1 {
		return "", false
	}
	return key.Value + ":" + val.Value, true
}

func (d *document) texts(n yamlast.Node, what string) []string {
	items, ok := d.items(n, what)
	if !ok {
		return nil
	}
	out := make([]string, 0, len(items))
	for _, it := range items {
		if s, ok := d.text(it, "an entry of "+what); ok {
			out = append(out, s)
		}
	}
	return out
}

func (d *document) oneOf(n yamlast.Node, what string, words []string) (string, bool) {
	s, ok := d.text(n, what)
	if !ok {
		return "", false
	}
	if !slices.Contains(words, s) {
		d.add(d.nodeOffset(n), checkValue, "%s %q is unknown: write one of %s", what, s, strings.Join(words, ", "))
		return "", false
	}
	return s, true
}

func (d *document) integer(n yamlast.Node, what string, least, most int64) (int64, bool) {
	in, ok := n.(*yamlast.IntegerNode)
	if !ok {
		d.add(d.nodeOffset(n), checkType, "%s is %s: write a whole number", what, kindOf(n))
		return 0, false
	}
	v, ok := intValue(in)
	if !ok || v < least || v > most {
		d.add(d.nodeOffset(n), checkValue, "%s is %s: write a number from %d to %d", what, in.Token.Value, least, most)
		return 0, false
	}
	return v, true
}

func intValue(n *yamlast.IntegerNode) (int64, bool) {
	switch v := n.Value.(type) {
	case int64:
		return v, true
	case uint64:
		return int64(v), v <= 1<<63-1
	}
	return 0, false
}

func (d *document) boolean(n yamlast.Node, what string) (bool, bool) {
	b, ok := n.(*yamlast.BoolNode)
	if !ok {
		d.add(d.nodeOffset(n), checkType, "%s is %s: write true or false", what, kindOf(n))
		return false, false
	}
	return b.Value, true
}

// expr reads CEL: a text, or a word that YAML takes for a number or a bool.
func (d *document) expr(n yamlast.Node, what string) (Expr, bool) {
	e := Expr{at: place{d, d.nodeOffset(n)}}
	switch n := n.(type) {
	case *yamlast.StringNode:
		e.Text = n.Value
	case *yamlast.LiteralNode:
		e.Text = n.Value.Value
		for e.at.off < len(d.src) && d.src[e.at.off] != '\n' {
			e.at.off++ // behind the header, >- or |
		}
	case *yamlast.IntegerNode, *yamlast.FloatNode, *yamlast.BoolNode:
		e.Text = n.GetToken().Value
	default:
		d.add(e.at.off, checkType, "%s is %s: write CEL; an expression with { or [ in front goes in single quotes", what, kindOf(n))
		return e, false
	}
	if e.Empty() {
		d.add(e.at.off, checkMissing, "%s is empty: write CEL", what)
		return e, false
	}
	return e, true
}

// locate finds where the character at offset i of an expression's text stands in the file, whatever the style of
// the scalar: it walks text and file side by side over the blanks, quotes and marks that YAML takes away.
func (p place) locate(text string, i int) (line, col int) {
	src, at := p.doc.src, p.off
	for j := 0; j <= i && j < len(text); j++ {
		c := text[j]
		blank := c == ' ' || c == '\n'
		k := at
		for k < len(src) && src[k] != c && (!blank || src[k] != '\n') {
			k++
		}
		if k >= len(src) || k-at > 200 {
			break // not found nearby: stay at the last place that is sure
		}
		if j == i {
			at = k
			break
		}
		at = k + 1
	}
	return p.doc.lineCol(at)
}

// plain turns a YAML value into Go values: map[string]any, []any, string, int64, float64, bool, nil.
func (d *document) plain(n yamlast.Node) any {
	switch n := n.(type) {
	case *yamlast.MappingNode, *yamlast.MappingValueNode:
		ps, _ := d.pairs(n, "this map")
		m := make(map[string]any, len(ps))
		for _, p := range ps {
			m[p.key] = d.plain(p.value)
		}
		return m
	case *yamlast.SequenceNode:
		l := make([]any, 0, len(n.Values))
		for _, v := range n.Values {
			l = append(l, d.plain(v))
		}
		return l
	case *yamlast.StringNode:
		return n.Value
	case *yamlast.LiteralNode:
		return n.Value.Value
	case *yamlast.IntegerNode:
		if v, ok := intValue(n); ok {
			return v
		}
		d.add(d.nodeOffset(n), checkValue, "%s does not fit into 64 bits", n.Token.Value)
	case *yamlast.FloatNode:
		return n.Value
	case *yamlast.BoolNode:
		return n.Value
	case nil, *yamlast.NullNode:
	default:
		d.add(d.nodeOffset(n), checkType, "%s is not allowed here: write a text, number, bool, list or map", kindOf(n))
	}
	return nil
}

// didYouMean names the nearest known word, else all of them.
func didYouMean(word string, known []string) string {
	best, bestD := "", 3
	for _, k := range known {
		if dist := editDistance(strings.ToLower(word), k, bestD); dist < bestD {
			best, bestD = k, dist
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "write one of " + strings.Join(known, ", ")
}

// editDistance is the Levenshtein distance, or limit where it is at least that.
func editDistance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit || len(a) > 64 {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			prev, row[j] = row[j], min(row[j]+1, row[j-1]+1, prev+cost)
		}
	}
	return min(row[len(b)], limit)
}
