package registry

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"
)

// Version is one version of a subject.
type Version struct {
	Subject string `json:"subject"`
	Version int    `json:"version"`
	ID      int    `json:"id"`
	Schema  string `json:"schema,omitempty"`
	Deleted bool   `json:"deleted,omitempty"`
	Gone    bool   `json:"gone,omitempty"` // deleted for good; kept so that neither number is given again

	norm string
}

// entryKey is a key of the store, laid out as Confluent's own _schemas topic does.
type entryKey struct {
	Type    string `json:"keytype"` // SCHEMA, CONFIG, MODE
	Subject string `json:"subject,omitempty"`
	Version int    `json:"version,omitempty"`
	Magic   int    `json:"magic"`
}

func (k entryKey) String() string {
	b, _ := json.Marshal(k)
	return string(b)
}

// setting is the value of a CONFIG or MODE entry; empty means not set.
type setting struct {
	Value string `json:"value"`
}

// state is everything the store keeps, in memory. It gives numbers; srfake only shows them.
type state struct {
	subjects map[string][]Version // ascending
	levels   map[string]string    // subject, "" for the global one
	modes    map[string]string
	maxID    int
}

func newState() *state {
	return &state{subjects: map[string][]Version{}, levels: map[string]string{}, modes: map[string]string{}}
}

// apply takes one entry in; a later one of the same key replaces the earlier.
func (s *state) apply(key string, value []byte) error {
	var k entryKey
	if err := json.Unmarshal([]byte(key), &k); err != nil {
		return fmt.Errorf("read registry entry %q: %w", key, err)
	}
	switch k.Type {
	case "SCHEMA":
		var v Version
		if err := json.Unmarshal(value, &v); err != nil {
			return fmt.Errorf("read registry entry %q: %w", key, err)
		}
		if !v.Gone {
			norm, err := normal(v.Schema)
			if err != nil {
				return fmt.Errorf("read registry entry %q: %w", key, err)
			}
			v.norm = norm
		}
		s.put(v)
	case "CONFIG", "MODE":
		var v setting
		if err := json.Unmarshal(value, &v); err != nil {
			return fmt.Errorf("read registry entry %q: %w", key, err)
		}
		m := s.levels
		if k.Type == "MODE" {
			m = s.modes
		}
		if v.Value == "" {
			delete(m, k.Subject)
		} else {
			m[k.Subject] = v.Value
		}
	}
	return nil
}

func (s *state) put(v Version) {
	vs := s.subjects[v.Subject]
	i, found := slices.BinarySearchFunc(vs, v.Version, func(a Version, n int) int { return a.Version - n })
	if found {
		vs[i] = v
	} else {
		vs = slices.Insert(vs, i, v)
	}
	s.subjects[v.Subject] = vs
	s.maxID = max(s.maxID, v.ID)
}

// active lists a subject's versions that are in force, ascending.
func (s *state) active(subject string) []Version {
	return slices.DeleteFunc(slices.Clone(s.subjects[subject]), func(v Version) bool { return v.Deleted || v.Gone })
}

// kept lists those that are in force or could be asked for with ?deleted=true.
func (s *state) kept(subject string) []Version {
	return slices.DeleteFunc(slices.Clone(s.subjects[subject]), func(v Version) bool { return v.Gone })
}

// next numbers a new version of a schema: the id of the same schema anywhere, else a new one.
func (s *state) next(subject, text, norm string) Version {
	v := Version{Subject: subject, Version: 1, Schema: text, norm: norm}
	if vs := s.subjects[subject]; len(vs) > 0 {
		v.Version = vs[len(vs)-1].Version + 1
	}
	for _, vs := range s.subjects {
		for _, other := range vs {
			if !other.Gone && other.norm == norm {
				v.ID = other.ID
				return v
			}
		}
	}
	v.ID = s.maxID + 1
	return v
}

// view is the srfake that answers what is read.
type view struct {
	fake   *srfake.Registry
	reads  http.Handler
	seeded map[int]bool // ids it has
}

// show builds the view of all there is. That is how numbers stay ours: srfake would give its own.
func (s *state) show() (*view, error) {
	fake := srfake.NewRegistry()
	w := &view{fake: fake, reads: fake.Handler(), seeded: map[int]bool{}}
	for _, subject := range slices.Sorted(maps.Keys(s.subjects)) {
		kept := s.kept(subject)
		if len(kept) == 0 {
			continue
		}
		for _, v := range kept {
			if err := w.add(v); err != nil {
				return nil, err
			}
			if v.Deleted {
				call(w.reads, http.MethodDelete, versionPath(v))
			}
		}
		if len(s.active(subject)) == 0 {
			call(w.reads, http.MethodDelete, "/subjects/"+url.PathEscape(subject))
		}
	}
	return w, nil
}

// add shows one more version, the newest of its subject.
func (w *view) add(v Version) error {
	schema := sr.Schema{Schema: v.Schema, Type: sr.TypeAvro}
	if w.seeded[v.ID] {
		return again(w.fake, w.reads, v, schema)
	}
	w.seeded[v.ID] = true
	w.fake.SeedSchema(v.Subject, v.Version, v.ID, schema)
	return nil
}

// again puts a schema that srfake already has under one more version. Seeding refuses that, and registering takes the
// next free number, so numbers that were deleted for good are first taken and given up.
func again(fake *srfake.Registry, h http.Handler, v Version, schema sr.Schema) error {
	for {
		id, version, err := fake.RegisterSchema(v.Subject, schema)
		if err != nil {
			return fmt.Errorf("show version %d of %s: %w", v.Version, v.Subject, err)
		}
		if id != v.ID || version > v.Version {
			return fmt.Errorf("show version %d of %s: it got version %d and id %d instead of %d", v.Version, v.Subject, version, id, v.ID)
		}
		if version == v.Version {
			return nil
		}
		call(h, http.MethodDelete, versionPath(Version{Subject: v.Subject, Version: version})+"?permanent=true")
	}
}

func versionPath(v Version) string {
	return "/subjects/" + url.PathEscape(v.Subject) + "/versions/" + strconv.Itoa(v.Version)
}

// call sends one request through a handler and drops the answer.
func call(h http.Handler, method, path string) {
	if req, err := http.NewRequest(method, path, http.NoBody); err == nil { //nolint:noctx // never leaves the process
		h.ServeHTTP(discard{}, req)
	}
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}
