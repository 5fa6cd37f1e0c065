package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/sr"
)

// maxBody bounds a request. A schema of every Okta field with its docs is a tenth of it.
const maxBody = 1 << 20

// Handler is the registry without a listener. Load it before the first request; until then it answers 503.
type Handler struct {
	store  Store
	global Level
	mux    *http.ServeMux

	write sync.Mutex   // one change at a time, held over its save
	mu    sync.RWMutex // guards what follows
	state *state
	view  *view
}

// NewHandler makes a registry over a store; nil means memory.
func NewHandler(cfg Config, store Store) (*Handler, error) {
	level, err := ParseLevel(cmp.Or(cfg.Compatibility, string(Backward)))
	if err != nil {
		return nil, err
	}
	if store == nil {
		store = Memory()
	}
	h := &Handler{store: store, global: level, mux: http.NewServeMux()}
	for pattern, f := range map[string]func(*http.Request) (any, error){
		"GET /{$}":           func(*http.Request) (any, error) { return struct{}{}, nil },
		"GET /schemas/types": func(*http.Request) (any, error) { return []string{"AVRO"}, nil },

		"POST /subjects/{subject}/versions":             h.register,
		"POST /subjects/{subject}":                      h.lookup,
		"DELETE /subjects/{subject}":                    h.deleteSubject,
		"DELETE /subjects/{subject}/versions/{version}": h.deleteVersion,

		"POST /compatibility/subjects/{subject}/versions":           h.compatible,
		"POST /compatibility/subjects/{subject}/versions/{version}": h.compatible,

		"GET /config":              h.getLevel,
		"GET /config/{subject}":    h.getLevel,
		"PUT /config":              h.putLevel,
		"PUT /config/{subject}":    h.putLevel,
		"DELETE /config":           h.deleteLevel,
		"DELETE /config/{subject}": h.deleteLevel,
		"GET /mode":                h.getMode,
		"GET /mode/{subject}":      h.getMode,
		"PUT /mode":                h.putMode,
		"PUT /mode/{subject}":      h.putMode,
		"DELETE /mode":             h.deleteMode,
		"DELETE /mode/{subject}":   h.deleteMode,
	} {
		h.mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) {
			v, err := f(req)
			if err != nil {
				writeError(w, err)
				return
			}
			writeJSON(w, http.StatusOK, v)
		})
	}
	h.mux.HandleFunc("/", h.read)
	return h, nil
}

// Load reads the store whole.
func (h *Handler) Load(ctx context.Context) error {
	h.write.Lock()
	defer h.write.Unlock()
	s := newState()
	if err := h.store.Load(ctx, s.apply); err != nil {
		return err
	}
	view, err := s.show()
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state, h.view = s, view
	return nil
}

// Len counts the versions in force.
func (h *Handler) Len() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	n := 0
	if h.state != nil {
		for subject := range h.state.subjects {
			n += len(h.state.active(subject))
		}
	}
	return n
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	h.mu.RLock()
	loaded := h.state != nil
	h.mu.RUnlock()
	if !loaded {
		writeError(w, &apiError{http.StatusServiceUnavailable, sr.ErrStoreError.Code, "the registry is still reading its schemas"})
		return
	}
	req.Body = http.MaxBytesReader(w, req.Body, maxBody)
	h.mux.ServeHTTP(w, req)
}

// read hands everything that changes nothing to srfake.
func (h *Handler) read(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		writeError(w, &apiError{http.StatusMethodNotAllowed, http.StatusMethodNotAllowed, req.Method + " " + req.URL.Path + " is not served here"})
		return
	}
	if rest, ok := strings.CutSuffix(req.URL.Path, "/versions/-1"); ok { // Confluent's other name for latest
		req = req.Clone(req.Context())
		req.URL.Path, req.URL.RawPath = rest+"/versions/latest", ""
	}
	h.mu.RLock()
	view := h.view
	h.mu.RUnlock()
	view.reads.ServeHTTP(w, req)
}

// body is what clients send with a schema; members we do not use are ignored.
type body struct {
	Schema     string `json:"schema"`
	Type       string `json:"schemaType"`
	References []any  `json:"references"`
	ID         int    `json:"id"`
	Version    int    `json:"version"`
}

func (h *Handler) body(req *http.Request) (body, error) {
	var b body
	if err := decode(req, &b); err != nil {
		return b, invalidSchema(err.Error())
	}
	if err := subjectName(req.PathValue("subject")); err != nil {
		return b, err
	}
	switch {
	case b.Type != "" && b.Type != "AVRO":
		return b, invalidSchema("schemaType " + strconv.Quote(b.Type) + " is not served here, only AVRO")
	case len(b.References) > 0:
		return b, invalidSchema("references are not served here: put the whole schema into one text")
	case b.Schema == "":
		return b, invalidSchema("the body has no schema")
	case b.ID > 0 || b.Version > 0:
		return b, &apiError{422, sr.ErrOperationNotPermitted.Code, "ids and versions are given by the registry; it has no IMPORT mode"}
	}
	return b, nil
}

func (h *Handler) register(req *http.Request) (any, error) {
	b, err := h.body(req)
	if err != nil {
		return nil, err
	}
	subject := req.PathValue("subject")
	if err := parse(b.Schema); err != nil {
		return nil, invalidSchema("schema for " + subject + " is no Avro: " + err.Error())
	}
	norm, err := normal(b.Schema)
	if err != nil {
		return nil, invalidSchema(err.Error())
	}

	h.write.Lock()
	defer h.write.Unlock()
	active := h.state.active(subject)
	for _, v := range active {
		if v.norm == norm {
			return map[string]int{"id": v.ID}, nil
		}
	}
	if err := h.writable(subject); err != nil {
		return nil, err
	}
	if reasons := h.level(subject).Check(b.Schema, active); len(reasons) > 0 {
		return nil, &apiError{http.StatusConflict, sr.ErrIncompatibleSchema.Code, fmt.Sprintf(
			"Schema being registered is incompatible with an earlier schema for subject %q (compatibility %s): %s",
			subject, h.level(subject), strings.Join(reasons, "; "))}
	}
	v := h.state.next(subject, b.Schema, norm)
	if err := h.saveVersions(req.Context(), v); err != nil {
		return nil, err
	}
	return map[string]int{"id": v.ID}, nil
}

func (h *Handler) lookup(req *http.Request) (any, error) {
	b, err := h.body(req)
	if err != nil {
		return nil, err
	}
	norm, err := normal(b.Schema)
	if err != nil {
		return nil, invalidSchema("schema is not JSON")
	}
	subject, deleted := req.PathValue("subject"), req.URL.Query().Get("deleted") == "true"
	h.mu.RLock()
	defer h.mu.RUnlock()
	vs := h.state.active(subject)
	if deleted {
		vs = h.state.kept(subject)
	}
	if len(vs) == 0 {
		return nil, noSubject(subject)
	}
	for _, v := range slices.Backward(vs) {
		if v.norm == norm {
			return v, nil
		}
	}
	return nil, &apiError{404, sr.ErrSchemaNotFound.Code, fmt.Sprintf("subject %q has no such schema", subject)}
}

func (h *Handler) compatible(req *http.Request) (any, error) {
	b, err := h.body(req)
	if err != nil {
		return nil, err
	}
	subject := req.PathValue("subject")
	if err := parse(b.Schema); err != nil {
		return nil, invalidSchema("schema for " + subject + " is no Avro: " + err.Error())
	}
	h.mu.RLock()
	against, level := h.state.active(subject), h.level(subject)
	h.mu.RUnlock()
	if name := req.PathValue("version"); name != "" {
		v, err := find(subject, against, name)
		if err != nil {
			return nil, err
		}
		against = []Version{v}
	}
	reasons := level.Check(b.Schema, against)
	answer := struct {
		Is       bool     `json:"is_compatible"`
		Messages []string `json:"messages,omitzero"`
	}{Is: len(reasons) == 0}
	if req.URL.Query().Get("verbose") == "true" {
		answer.Messages = append([]string{}, reasons...)
	}
	return answer, nil
}

func (h *Handler) deleteSubject(req *http.Request) (any, error) {
	h.write.Lock()
	defer h.write.Unlock()
	subject, permanent := req.PathValue("subject"), req.URL.Query().Get("permanent") == "true"
	active, kept := h.state.active(subject), h.state.kept(subject)
	switch {
	case len(kept) == 0:
		return nil, noSubject(subject)
	case permanent && len(active) > 0:
		return nil, &apiError{404, sr.ErrSubjectNotSoftDeleted.Code, fmt.Sprintf("subject %q was not deleted first before being permanently deleted", subject)}
	case !permanent && len(active) == 0:
		return nil, &apiError{404, sr.ErrSubjectSoftDeleted.Code, fmt.Sprintf("subject %q was deleted already", subject)}
	}
	if err := h.writable(subject); err != nil {
		return nil, err
	}
	targets := active
	if permanent {
		targets = kept
	}
	numbers := []int{}
	for i := range targets {
		numbers = append(numbers, targets[i].Version)
		targets[i] = drop(targets[i], permanent)
	}
	return numbers, h.saveVersions(req.Context(), targets...)
}

func (h *Handler) deleteVersion(req *http.Request) (any, error) {
	h.write.Lock()
	defer h.write.Unlock()
	subject, name := req.PathValue("subject"), req.PathValue("version")
	permanent := req.URL.Query().Get("permanent") == "true"
	among := h.state.kept(subject)
	if _, err := strconv.Atoi(name); err != nil || name == "-1" {
		among = h.state.active(subject)
	}
	v, err := find(subject, among, name)
	if err != nil {
		return nil, err
	}
	switch {
	case permanent && !v.Deleted:
		return nil, &apiError{404, sr.ErrSchemaVersionNotSoftDeleted.Code, fmt.Sprintf("version %d of subject %q was not deleted first before being permanently deleted", v.Version, subject)}
	case !permanent && v.Deleted:
		return nil, &apiError{404, sr.ErrSchemaVersionSoftDeleted.Code, fmt.Sprintf("version %d of subject %q was deleted already", v.Version, subject)}
	}
	if err := h.writable(subject); err != nil {
		return nil, err
	}
	return v.Version, h.saveVersions(req.Context(), drop(v, permanent))
}

func drop(v Version, permanent bool) Version {
	if permanent {
		return Version{Subject: v.Subject, Version: v.Version, ID: v.ID, Deleted: true, Gone: true}
	}
	v.Deleted = true
	return v
}

func find(subject string, vs []Version, name string) (Version, error) {
	if len(vs) == 0 {
		return Version{}, noSubject(subject)
	}
	if name == "latest" || name == "-1" {
		return vs[len(vs)-1], nil
	}
	n, err := strconv.Atoi(name)
	if err != nil || n < 1 {
		return Version{}, &apiError{422, sr.ErrInvalidVersion.Code, fmt.Sprintf("%q is neither a version number nor latest", name)}
	}
	for _, v := range vs {
		if v.Version == n {
			return v, nil
		}
	}
	return Version{}, &apiError{404, sr.ErrVersionNotFound.Code, fmt.Sprintf("subject %q has no version %d", subject, n)}
}

// level is what a subject is judged by. The caller holds either lock.
func (h *Handler) level(subject string) Level {
	return Level(cmp.Or(h.state.levels[subject], h.state.levels[""], string(h.global)))
}

func (h *Handler) getLevel(req *http.Request) (any, error) {
	subject := req.PathValue("subject")
	h.mu.RLock()
	defer h.mu.RUnlock()
	if subject != "" && h.state.levels[subject] == "" && req.URL.Query().Get("defaultToGlobal") != "true" {
		return nil, &apiError{404, sr.ErrSubjectLevelCompatibilityNotConfigured.Code, fmt.Sprintf("subject %q has no compatibility level of its own", subject)}
	}
	return map[string]Level{"compatibilityLevel": h.level(subject)}, nil
}

func (h *Handler) putLevel(req *http.Request) (any, error) {
	var b struct {
		Compatibility string `json:"compatibility"`
	}
	if err := decode(req, &b); err != nil {
		return nil, &apiError{422, sr.ErrInvalidCompatibilityLevel.Code, err.Error()}
	}
	level, err := ParseLevel(b.Compatibility)
	if err != nil {
		return nil, &apiError{422, sr.ErrInvalidCompatibilityLevel.Code, err.Error()}
	}
	return map[string]Level{"compatibility": level}, h.set(req, "CONFIG", string(level))
}

func (h *Handler) deleteLevel(req *http.Request) (any, error) {
	if err := h.set(req, "CONFIG", ""); err != nil {
		return nil, err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	return map[string]Level{"compatibility": h.level("")}, nil
}

// The modes served. IMPORT is not: every id here is given by the registry.
var modes = []string{"READWRITE", "READONLY"}

func (h *Handler) mode(subject string) string {
	return cmp.Or(h.state.modes[subject], h.state.modes[""], modes[0])
}

func (h *Handler) writable(subject string) error {
	if m := h.mode(subject); m != modes[0] {
		return &apiError{422, sr.ErrOperationNotPermitted.Code, fmt.Sprintf("subject %q is in mode %s", subject, m)}
	}
	return nil
}

func (h *Handler) getMode(req *http.Request) (any, error) {
	subject := req.PathValue("subject")
	h.mu.RLock()
	defer h.mu.RUnlock()
	if subject != "" && h.state.modes[subject] == "" && req.URL.Query().Get("defaultToGlobal") != "true" {
		return nil, &apiError{404, sr.ErrSubjectLevelModeNotConfigured.Code, fmt.Sprintf("subject %q has no mode of its own", subject)}
	}
	return map[string]string{"mode": h.mode(subject)}, nil
}

func (h *Handler) putMode(req *http.Request) (any, error) {
	var b struct {
		Mode string `json:"mode"`
	}
	if err := decode(req, &b); err != nil {
		return nil, &apiError{422, sr.ErrInvalidMode.Code, err.Error()}
	}
	if !slices.Contains(modes, b.Mode) {
		return nil, &apiError{422, sr.ErrInvalidMode.Code, fmt.Sprintf("mode %q is none of %s", b.Mode, strings.Join(modes, ", "))}
	}
	return map[string]string{"mode": b.Mode}, h.set(req, "MODE", b.Mode)
}

func (h *Handler) deleteMode(req *http.Request) (any, error) {
	h.mu.RLock()
	was := h.mode(req.PathValue("subject"))
	h.mu.RUnlock()
	return map[string]string{"mode": was}, h.set(req, "MODE", "")
}

func (h *Handler) set(req *http.Request, what, value string) error {
	subject := req.PathValue("subject")
	if subject != "" {
		if err := subjectName(subject); err != nil {
			return err
		}
	}
	h.write.Lock()
	defer h.write.Unlock()
	if (what == "CONFIG" && h.state.levels[subject] == value) || (what == "MODE" && h.state.modes[subject] == value) {
		return nil
	}
	v, err := json.Marshal(setting{value})
	if err != nil {
		return err
	}
	return h.save(req.Context(), entryKey{Type: what, Subject: subject}.String(), v)
}

// saveVersions keeps versions and shows them: one that only joins is added to the view, any other change makes a new one.
func (h *Handler) saveVersions(ctx context.Context, vs ...Version) error {
	h.mu.RLock()
	joins := len(vs) == 1 && !vs[0].Deleted && (len(h.state.subjects[vs[0].Subject]) == 0 || len(h.state.active(vs[0].Subject)) > 0)
	h.mu.RUnlock()
	var failed error
	for _, v := range vs {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if failed = h.save(ctx, entryKey{Type: "SCHEMA", Subject: v.Subject, Version: v.Version, Magic: 1}.String(), b); failed != nil {
			break // those before it are kept and must be shown
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if joins && failed == nil {
		return storeError(h.view.add(vs[0]))
	}
	view, err := h.state.show()
	if err != nil {
		return storeError(err)
	}
	h.view = view
	return failed
}

// save makes one change durable and only then known. The caller holds h.write. A client that hangs up does not stop it.
func (h *Handler) save(ctx context.Context, key string, value []byte) error {
	if err := h.store.Save(context.WithoutCancel(ctx), key, value); err != nil {
		return storeError(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return storeError(h.state.apply(key, value))
}

func storeError(err error) error {
	if err == nil {
		return nil
	}
	return &apiError{http.StatusInternalServerError, sr.ErrStoreError.Code, err.Error()}
}

// apiError is an error in Confluent's form.
type apiError struct {
	status  int
	code    int
	message string
}

func (e *apiError) Error() string { return e.message }

func invalidSchema(msg string) error { return &apiError{422, sr.ErrInvalidSchema.Code, msg} }

func noSubject(subject string) error {
	return &apiError{404, sr.ErrSubjectNotFound.Code, fmt.Sprintf("subject %q not found", subject)}
}

func subjectName(s string) error {
	if s == "" || len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '�' }) {
		return &apiError{422, sr.ErrInvalidSubject.Code, "a subject is 1 to 255 bytes of printable text"}
	}
	return nil
}

func decode(req *http.Request, into any) error {
	dec := json.NewDecoder(req.Body)
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("read the request: something follows the JSON object")
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error_code":50001,"message":"answer cannot be written"}`)
	}
	w.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

func writeError(w http.ResponseWriter, err error) {
	e := &apiError{http.StatusInternalServerError, sr.ErrStoreError.Code, err.Error()}
	errors.As(err, &e)
	writeJSON(w, e.status, map[string]any{"error_code": e.code, "message": e.message})
}
