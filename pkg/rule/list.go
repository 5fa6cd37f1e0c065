package rule

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
)

// List is a named list of values, addresses and address ranges, with columns where its file has them. It is immutable.
type List struct {
	Name    string
	replace bool
	entries []listEntry
	byValue map[string]int       // lower case
	byRange map[netip.Prefix]int // masked
	bits    []int                // lengths of the ranges, longest first; IPv6 as 1000+
}

type listEntry struct {
	value   string
	columns map[string]string
}

var listType = types.NewOpaqueType(typeList)

// newList makes a list of its values; of equal ones the last counts.
func newList(name string, entries []listEntry) *List {
	l := &List{Name: name, entries: entries, byValue: map[string]int{}, byRange: map[netip.Prefix]int{}}
	for i, e := range entries {
		l.byValue[strings.ToLower(e.value)] = i
		p, err := netip.ParsePrefix(e.value)
		if err != nil {
			a, aerr := netip.ParseAddr(e.value)
			if aerr != nil {
				continue
			}
			p = netip.PrefixFrom(a.Unmap().WithZone(""), a.Unmap().BitLen())
		}
		p = p.Masked()
		l.byRange[p] = i
		if k := rangeKind(p); !slices.Contains(l.bits, k) {
			l.bits = append(l.bits, k)
		}
	}
	slices.Sort(l.bits)
	slices.Reverse(l.bits)
	return l
}

func rangeKind(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 1000 + p.Bits()
	}
	return p.Bits()
}

func (l *List) find(s string) (int, bool) {
	if l == nil {
		return 0, false
	}
	if i, ok := l.byValue[strings.ToLower(s)]; ok {
		return i, true
	}
	if len(l.bits) == 0 {
		return 0, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return 0, false
	}
	a = a.Unmap().WithZone("")
	for _, k := range l.bits {
		if a.Is6() != (k >= 1000) {
			continue
		}
		p, err := a.Prefix(k % 1000)
		if err != nil {
			continue
		}
		if i, ok := l.byRange[p]; ok {
			return i, true
		}
	}
	return 0, false
}

// Contains tells whether s is a listed value, ignoring case, or an address inside a listed range.
func (l *List) Contains(s string) bool {
	_, ok := l.find(s)
	return ok
}

// Lookup returns the columns of the entry for s.
func (l *List) Lookup(s string) map[string]string {
	if i, ok := l.find(s); ok {
		return l.entries[i].columns
	}
	return nil
}

// Len is the number of entries.
func (l *List) Len() int { return len(l.entries) }

// ConvertToNative implements ref.Val.
func (l *List) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("list %s is not to be had as %v", l.Name, t)
}

// ConvertToType implements ref.Val.
func (l *List) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return listType
	}
	return types.NewErr("list %s cannot become %s", l.Name, t.TypeName())
}

// Equal implements ref.Val.
func (l *List) Equal(other ref.Val) ref.Val { return types.Bool(other == ref.Val(l)) }

// Type implements ref.Val.
func (l *List) Type() ref.Type { return listType }

// Value implements ref.Val.
func (l *List) Value() any { return l }

const maxListBytes = 64 << 20

// ParseList reads a list file: .txt with a value a line, .csv with a header that has value, or .yaml with values:.
func ParseList(file string, src []byte) (*List, []Problem) {
	d := &document{file: file, src: src, lines: []int{0}}
	base := path.Base(file)
	name := strings.TrimSuffix(base, path.Ext(base))
	if !namePattern.MatchString(name) || slices.Contains(celKeywords, name) {
		d.add(0, checkName, "list name %q: name the file with a-z, 0-9 and _, beginning with a letter", name)
		return nil, d.problems
	}
	if len(src) > maxListBytes {
		d.add(0, checkList, "the list has %d bytes, at most %d are read", len(src), maxListBytes)
		return nil, d.problems
	}
	var entries []listEntry
	replace := false
	switch path.Ext(base) {
	case ".txt":
		for line := range strings.Lines(string(src)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				entries = append(entries, listEntry{value: line})
			}
		}
	case ".csv":
		rows := csv.NewReader(bytes.NewReader(src))
		rows.TrimLeadingSpace = true
		header, err := rows.Read()
		if err != nil {
			d.add(0, checkList, "no header: write value and the other columns' names in the first line")
			return nil, d.problems
		}
		col := slices.Index(header, "value")
		if col < 0 {
			d.add(0, checkList, "the header has no column value: name the column of the values so")
			return nil, d.problems
		}
		for {
			row, err := rows.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				line, col := 1, 1
				if at, ok := errors.AsType[*csv.ParseError](err); ok {
					line, col = at.StartLine, max(at.Column, 1)
				}
				d.problems = append(d.problems, Problem{file, line, col, checkList, fmt.Sprintf("not CSV: %v", err)})
				return nil, d.problems
			}
			e := listEntry{value: strings.TrimSpace(row[col]), columns: map[string]string{}}
			for i, h := range header {
				if i != col {
					e.columns[h] = row[i]
				}
			}
			if e.value != "" {
				entries = append(entries, e)
			}
		}
	case ".yaml", ".yml":
		yd, root := parseYAML(file, src)
		if root != nil {
			if fs, ok := yd.fields(root, "a list", "values", "replace"); ok {
				if p, ok := fs["values"]; ok {
					for _, v := range yd.texts(p.value, "values") {
						entries = append(entries, listEntry{value: v})
					}
				} else {
					yd.add(0, checkMissing, "the list has no values: add the key values:")
				}
				if p, ok := fs["replace"]; ok {
					replace, _ = yd.boolean(p.value, "replace")
				}
			}
		}
		if len(yd.problems) > 0 {
			return nil, yd.problems
		}
	default:
		d.add(0, checkList, "a list is a .txt, .csv or .yaml file")
		return nil, d.problems
	}
	l := newList(name, entries)
	l.replace = replace
	return l, nil
}

// mergeLists lays the site's list over the pack's: it adds to it, or replaces it where it says so.
func mergeLists(pack, site *List) *List {
	if pack == nil || site.replace {
		return site
	}
	return newList(pack.Name, append(slices.Clone(pack.entries), site.entries...))
}
