package svc

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// EnvPrefix begins every environment variable that is a config key: OKTAWATCH_KAFKA__BROKERS is kafka.brokers.
const EnvPrefix = "OKTAWATCH_"

// BadConfig marks an error as one of configuration: the process ends with exit code 2 and the error as its one line.
func BadConfig(err error) error {
	if err == nil {
		return nil
	}
	return &configError{err: err}
}

type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

// Load fills into, a pointer to a struct with yaml tags, from the YAML file at path (empty: no file), then from those of the
// environment's variables ("NAME=value", as os.Environ gives them) that begin with OKTAWATCH_, then from sets ("section.key=value").
// What is named nowhere keeps the value into came with. An unknown key is an error with its place and the nearest key there is.
// Where into embeds Common, the usual fallbacks of the environment and the defaults of the common sections come last.
func Load(path string, environ, sets []string, into any) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("load config into %T: want a pointer to a struct", into)
	}
	var src []byte
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return BadConfig(fmt.Errorf("read config: %w", err))
		}
		src = b
	}
	if err := decodeFile(path, src, v, nil); err != nil {
		return err
	}
	if err := override(environ, sets, v.Elem(), nil); err != nil {
		return err
	}
	if c, ok := into.(interface{ fallbacks(environ []string) error }); ok {
		return c.fallbacks(environ)
	}
	return nil
}

// decodeFile reads src into v, a pointer to a struct. Top-level keys in others belong to somebody else and are left alone.
func decodeFile(path string, src []byte, v reflect.Value, others []string) error {
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		return BadConfig(place(path, err))
	}
	if len(file.Docs) > 1 {
		return BadConfig(fmt.Errorf("%s: %d documents in one file; a config is one", path, len(file.Docs)))
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil || file.Docs[0].Body.Type() == ast.NullType {
		return nil
	}
	body := file.Docs[0].Body
	var problems []error
	unknownKeys(path, body, v.Type().Elem(), nil, others, &problems)
	if len(problems) > 0 {
		return BadConfig(errors.Join(problems...))
	}
	if err := yaml.NodeToValue(body, v.Interface()); err != nil {
		return BadConfig(place(path, err))
	}
	return nil
}

// place turns an error of the YAML library into file:line:col: message.
func place(path string, err error) error {
	var ye yaml.Error
	if errors.As(err, &ye) && ye.GetToken() != nil {
		p := ye.GetToken().Position
		return fmt.Errorf("%s:%d:%d: %s", path, p.Line, p.Column, ye.GetMessage())
	}
	return fmt.Errorf("%s: %w", path, err)
}

// unknownKeys walks a node beside the type it will be decoded into, and finds what the decoder would not say well.
func unknownKeys(path string, n ast.Node, t reflect.Type, at, others []string, out *[]error) {
	for t.Kind() == reflect.Pointer {
		if opaque(t) {
			return
		}
		t = t.Elem()
	}
	if sc, ok := n.(*ast.StringNode); ok && t == reflect.TypeFor[time.Duration]() {
		if _, err := time.ParseDuration(sc.Value); err != nil { // the library's own error has no place
			pos := sc.GetToken().Position
			*out = append(*out, fmt.Errorf("%s:%d:%d: %s: %q is no duration such as 10s or 5m", path, pos.Line, pos.Column, strings.Join(at, "."), sc.Value))
		}
	}
	if opaque(t) {
		return
	}
	switch x := n.(type) {
	case *ast.AnchorNode:
		unknownKeys(path, x.Value, t, at, others, out)
	case *ast.TagNode:
		unknownKeys(path, x.Value, t, at, others, out)
	case *ast.SequenceNode:
		if t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
			for i, e := range x.Values {
				unknownKeys(path, e, t.Elem(), append(slices.Clone(at), strconv.Itoa(i)), nil, out)
			}
		}
	case ast.MapNode:
		for it := x.MapRange(); it.Next(); {
			key := keyText(it.Key())
			child := append(slices.Clone(at), key)
			switch t.Kind() {
			case reflect.Map:
				unknownKeys(path, it.Value(), t.Elem(), child, nil, out)
			case reflect.Struct:
				if key == "<<" {
					unknownKeys(path, it.Value(), t, at, others, out)
					continue
				}
				fields := fieldsOf(t)
				if f, ok := fields[key]; ok {
					unknownKeys(path, it.Value(), f.typ, child, nil, out)
					continue
				}
				if slices.Contains(others, key) {
					continue
				}
				pos := it.Key().GetToken().Position
				*out = append(*out, fmt.Errorf("%s:%d:%d: unknown key %s%s", path, pos.Line, pos.Column, strings.Join(child, "."), suggest(key, at, fields)))
			}
		}
	}
}

func keyText(k ast.MapKeyNode) string {
	if s, ok := k.(ast.ScalarNode); ok {
		return fmt.Sprint(s.GetValue())
	}
	return k.String()
}

// opaque types decode themselves: what keys they take is their business.
func opaque(t reflect.Type) bool {
	if t == reflect.TypeFor[time.Time]() || t == reflect.TypeFor[time.Duration]() || t.Kind() == reflect.Interface {
		return true
	}
	p := t
	if p.Kind() != reflect.Pointer {
		p = reflect.PointerTo(t)
	}
	return p.Implements(reflect.TypeFor[yaml.BytesUnmarshaler]()) || p.Implements(reflect.TypeFor[yaml.InterfaceUnmarshaler]()) ||
		p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

type field struct {
	index  []int
	typ    reflect.Type
	secret bool
}

// fieldsOf lists a struct's config keys, those of inlined structs among them.
func fieldsOf(t reflect.Type) map[string]field {
	out := map[string]field{}
	for i := range t.NumField() {
		f := t.Field(i)
		tag, rest, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if tag == "-" || !f.IsExported() {
			continue
		}
		if strings.Contains(rest, "inline") {
			ft := f.Type
			if ft.Kind() == reflect.Struct {
				for k, sub := range fieldsOf(ft) {
					sub.index = append([]int{i}, sub.index...)
					out[k] = sub
				}
			}
			continue
		}
		out[cmp.Or(tag, strings.ToLower(f.Name))] = field{index: []int{i}, typ: f.Type, secret: f.Tag.Get("secret") == "true"}
	}
	return out
}

// suggest names the nearest known key, or all of them where none is near.
func suggest(key string, at []string, fields map[string]field) string {
	best, dist := "", 1+len(key)/2
	var all []string
	for k := range fields {
		all = append(all, k)
		if d := distance(key, k); d < dist || d == dist && k < best {
			best, dist = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %s?", strings.Join(append(slices.Clone(at), best), "."))
	}
	slices.Sort(all)
	return "; known here: " + strings.Join(all, ", ")
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := prev
			if a[i-1] != b[j-1] {
				cost++
			}
			prev = row[j]
			row[j] = min(row[j]+1, row[j-1]+1, cost)
		}
	}
	return row[len(b)]
}

// override puts what environment and command line say over what the file said.
func override(environ, sets []string, v reflect.Value, others []string) error {
	var problems []error
	environ = slices.Clone(environ)
	slices.Sort(environ) // list items in their order
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		rest, ok := strings.CutPrefix(name, EnvPrefix)
		if !ok {
			continue
		}
		keys := strings.Split(strings.ToLower(rest), "__")
		if len(keys) == 1 {
			// One word: only what is a key of the file's top level. Others (OKTAWATCH_DATA_DIR, those Kubernetes makes up) are not ours.
			if f, ok := fieldsOf(v.Type())[keys[0]]; !ok || f.typ.Kind() == reflect.Struct || f.typ.Kind() == reflect.Interface {
				continue
			}
		}
		if _, own := fieldsOf(v.Type())[keys[0]]; !own && slices.Contains(others, keys[0]) {
			continue
		}
		if err := set(v, nil, keys, value); err != nil {
			problems = append(problems, fmt.Errorf("environment %s: %w", name, err))
		}
	}
	for _, kv := range sets {
		name, value, ok := strings.Cut(kv, "=")
		if !ok {
			problems = append(problems, fmt.Errorf("--set %s: want section.key=value", kv))
			continue
		}
		keys := strings.Split(name, ".")
		if _, own := fieldsOf(v.Type())[keys[0]]; !own && slices.Contains(others, keys[0]) {
			continue
		}
		if err := set(v, nil, keys, value); err != nil {
			problems = append(problems, fmt.Errorf("--set %s: %w", name, err))
		}
	}
	if len(problems) > 0 {
		return BadConfig(errors.Join(problems...))
	}
	return nil
}

// maxListIndex bounds what one environment variable can make of a list.
const maxListIndex = 255

func set(v reflect.Value, at, keys []string, value string) error {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		if opaque(v.Type()) {
			break
		}
		v = v.Elem()
	}
	if len(keys) == 0 {
		return setValue(v, value)
	}
	key, rest := keys[0], keys[1:]
	child := append(slices.Clone(at), key)
	switch {
	case opaque(v.Type()):
		return fmt.Errorf("%s cannot be set from here key by key", strings.Join(at, "."))
	case v.Kind() == reflect.Struct:
		fields := fieldsOf(v.Type())
		f, ok := fields[key]
		if plain, isFile := strings.CutSuffix(key, "_file"); !ok && isFile && len(rest) == 0 {
			if f, ok = fields[plain]; ok { // NAME_FILE: the value is in a file
				secret, err := ReadSecret(value)
				if err != nil {
					return err
				}
				value = secret
			}
		}
		if !ok {
			return fmt.Errorf("unknown key %s%s", strings.Join(child, "."), suggest(key, at, fields))
		}
		return set(v.FieldByIndex(f.index), child, rest, value)
	case v.Kind() == reflect.Slice:
		i, err := strconv.Atoi(key)
		if err != nil || i < 0 || i > maxListIndex {
			return fmt.Errorf("%s is a list: %q is no index of it", strings.Join(at, "."), key)
		}
		for v.Len() <= i {
			v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
		}
		return set(v.Index(i), child, rest, value)
	case v.Kind() == reflect.Map && v.Type().Key().Kind() == reflect.String:
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
		e := reflect.New(v.Type().Elem()).Elem()
		k := reflect.ValueOf(key).Convert(v.Type().Key())
		if old := v.MapIndex(k); old.IsValid() {
			e.Set(old)
		}
		if err := set(e, child, rest, value); err != nil {
			return err
		}
		v.SetMapIndex(k, e)
		return nil
	}
	return fmt.Errorf("%s has no keys below it", strings.Join(at, "."))
}

func setValue(v reflect.Value, value string) error {
	if opaque(v.Type()) && v.Type() != reflect.TypeFor[time.Duration]() && v.Kind() != reflect.Interface {
		return yaml.Unmarshal([]byte(strconv.Quote(value)), v.Addr().Interface())
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(value)
		return nil
	case reflect.Slice:
		if strings.HasPrefix(strings.TrimSpace(value), "[") {
			break
		}
		list := reflect.MakeSlice(v.Type(), 0, 4)
		for part := range strings.SplitSeq(value, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			e := reflect.New(v.Type().Elem()).Elem()
			if err := setValue(e, part); err != nil {
				return err
			}
			list = reflect.Append(list, e)
		}
		v.Set(list)
		return nil
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("%q is no duration such as 10s or 5m", value)
		}
		v.SetInt(int64(d))
		return nil
	}
	if err := yaml.UnmarshalWithOptions([]byte(value), v.Addr().Interface(), yaml.Strict()); err != nil {
		if ye, ok := errors.AsType[yaml.Error](err); ok {
			return fmt.Errorf("%q: %s", value, ye.GetMessage())
		}
		return fmt.Errorf("%q: %w", value, err)
	}
	return nil
}

// Redacted is the config as YAML with every secret replaced: a value whose key ends in password, secret, token, key or credentials
// (but not its _file or _env neighbour), whatever is tagged secret:"true", and the password of a URL.
func Redacted(cfg any) ([]byte, error) {
	return yaml.Marshal(redact(reflect.ValueOf(cfg), false))
}

func redact(v reflect.Value, secret bool) any {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	if secret && v.Kind() != reflect.Slice && !v.IsZero() { // of a list, each element
		return "***"
	}
	if d, ok := reflect.TypeAssert[time.Duration](v); ok {
		return d.String()
	}
	if opaque(v.Type()) {
		return v.Interface()
	}
	switch v.Kind() {
	case reflect.Struct:
		out := yaml.MapSlice{}
		t := v.Type()
		for i := range t.NumField() {
			f := t.Field(i)
			tag, rest, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if tag == "-" || !f.IsExported() {
				continue
			}
			if strings.Contains(rest, "inline") {
				if m, ok := redact(v.Field(i), false).(yaml.MapSlice); ok {
					out = append(out, m...)
				}
				continue
			}
			key := cmp.Or(tag, strings.ToLower(f.Name))
			out = append(out, yaml.MapItem{Key: key, Value: redact(v.Field(i), f.Tag.Get("secret") == "true" || secretKey(key))})
		}
		return out
	case reflect.Map:
		out := map[string]any{}
		for it := v.MapRange(); it.Next(); {
			key := fmt.Sprint(it.Key())
			out[key] = redact(it.Value(), secretKey(key))
		}
		return out
	case reflect.Slice, reflect.Array:
		out := make([]any, 0, v.Len())
		for i := range v.Len() {
			out = append(out, redact(v.Index(i), secret))
		}
		return out
	case reflect.String:
		s := v.String()
		if u, err := url.Parse(s); err == nil && u.User != nil {
			return u.Redacted()
		}
		return s
	}
	return v.Interface()
}

func secretKey(key string) bool {
	key = strings.ToLower(key)
	for _, end := range []string{"password", "secret", "secrets", "token", "tokens", "key", "credentials", "passphrase"} {
		if key == end || strings.HasSuffix(key, "_"+end) {
			return true
		}
	}
	return false
}

// ReadSecret reads a secret from the file a *_file key names, without the line end editors leave. Read it again to follow a rotation.
func ReadSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" {
		return "", fmt.Errorf("read secret: %s is empty", path)
	}
	return s, nil
}
