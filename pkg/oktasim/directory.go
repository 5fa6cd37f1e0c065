package oktasim

import (
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

func (o *Org) userJSON(r *http.Request, p *person) map[string]any {
	return map[string]any{
		"id": p.id, "status": p.status, "created": stamp(p.created), "activated": stamp(p.created), "statusChanged": stamp(p.changed), "lastLogin": nil,
		"lastUpdated": stamp(p.changed), "passwordChanged": stamp(p.created), "type": map[string]string{"id": "oty1default000005d7"},
		"profile": map[string]any{
			"login": p.login, "email": p.login, "firstName": p.first, "lastName": p.last, "displayName": p.name(), "department": p.team,
			"city": p.where.city, "countryCode": p.where.country, "mobilePhone": nil, "secondEmail": nil, "userType": "Employee",
		},
		"credentials": map[string]any{"password": map[string]any{}, "provider": map[string]string{"type": "OKTA", "name": "OKTA"}},
		"_links":      map[string]any{"self": map[string]string{"href": base(r) + "/api/v1/users/" + p.id}},
	}
}

func (o *Org) deviceJSON(r *http.Request, d *device) map[string]any {
	return map[string]any{
		"id": d.id, "status": d.status, "created": stamp(d.created), "lastUpdated": stamp(d.changed), "resourceType": "UDDevice",
		"resourceId": d.id, "resourceAlternateId": nil, "resourceDisplayName": map[string]any{"value": d.name, "sensitive": false},
		"profile": map[string]any{
			"displayName": d.name, "platform": d.platform, "serialNumber": d.serial, "osVersion": d.version, "registered": true, "secureHardwarePresent": true,
			"udid": d.udid, "manufacturer": d.manufacturer, "model": d.model, "diskEncryptionType": d.encryption, "screenLockType": d.lock,
		},
		"_links": map[string]any{"self": map[string]string{"href": base(r) + "/api/v1/devices/" + d.id}, "users": map[string]string{"href": base(r) + "/api/v1/devices/" + d.id + "/users"}},
	}
}

// criterion is a part of a search: field, operator, value.
type criterion struct{ field, op, value string }

// parseCriteria knows comparisons joined by and.
func parseCriteria(s string) ([]criterion, *apiError) {
	if s == "" {
		return nil, nil
	}
	var cs []criterion
	p := &filterParser{rest: s}
	for {
		c := criterion{field: p.next(), op: strings.ToLower(p.next())}
		v := p.next()
		if len(v) < 2 || v[0] != '"' || v[len(v)-1] != '"' {
			return nil, &apiError{http.StatusBadRequest, "E0000031", "Invalid search criteria.", nil}
		}
		c.value = v[1 : len(v)-1]
		switch c.field + " " + c.op {
		case "lastUpdated gt", "lastUpdated ge", "lastUpdated lt", "lastUpdated le":
			if _, err := time.Parse(time.RFC3339, c.value); err != nil {
				return nil, invalid("search", "search: lastUpdated must be compared with a date")
			}
		case "status eq", "id eq", "profile.login eq", "profile.email eq", "profile.displayName eq", "profile.firstName eq", "profile.lastName eq", "profile.platform eq":
		default:
			return nil, &apiError{http.StatusBadRequest, "E0000031", "Invalid search criteria.", []string{c.field + " " + c.op}}
		}
		cs = append(cs, c)
		switch j := p.next(); {
		case j == "":
			return cs, nil
		case !strings.EqualFold(j, "and"):
			return nil, &apiError{http.StatusBadRequest, "E0000031", "Invalid search criteria.", nil}
		}
	}
}

func meets(cs []criterion, changed time.Time, get func(string) string) bool {
	for _, c := range cs {
		if c.field != "lastUpdated" {
			if get(c.field) != c.value {
				return false
			}
			continue
		}
		t, err := time.Parse(time.RFC3339, c.value)
		if err != nil {
			return false
		}
		n := changed.Compare(t)
		if c.op == "gt" && n <= 0 || c.op == "ge" && n < 0 || c.op == "lt" && n >= 0 || c.op == "le" && n > 0 {
			return false
		}
	}
	return true
}

// paging reads limit and after and writes the links.
func paging(r *http.Request, def, most int) (limit, after int, e *apiError) {
	limit = def
	if s := r.URL.Query().Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return 0, 0, invalid("limit", "limit: must be a number from 1")
		}
		limit = min(n, most)
	}
	if s := r.URL.Query().Get("after"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return 0, 0, errCursorParam
		}
		after = n + 1
	}
	return limit, after, nil
}

func pageLinks(w http.ResponseWriter, r *http.Request, last int, more bool) {
	w.Header().Add("Link", "<"+base(r)+r.URL.RequestURI()+`>; rel="self"`)
	if more {
		v := url.Values{}
		maps.Copy(v, r.URL.Query())
		v.Set("after", strconv.Itoa(last))
		w.Header().Add("Link", "<"+base(r)+r.URL.Path+"?"+v.Encode()+`>; rel="next"`)
	}
}

func (o *Org) listUsers(w http.ResponseWriter, r *http.Request) *apiError {
	v := r.URL.Query()
	def := 200
	if v.Get("q") != "" {
		def = 10
	}
	limit, after, e := paging(r, def, 200)
	if e != nil {
		return e
	}
	search := v.Get("search")
	if search == "" {
		search = v.Get("filter")
	}
	cs, e := parseCriteria(search)
	if e != nil {
		return e
	}
	q := strings.ToLower(v.Get("q"))
	o.dirMu.RLock()
	defer o.dirMu.RUnlock()
	out := []any{}
	more, last := false, 0
	for i := after; i < len(o.company.people); i++ {
		p := o.company.people[i]
		if search == "" && p.status == "DEPROVISIONED" ||
			q != "" && !strings.HasPrefix(strings.ToLower(p.first), q) && !strings.HasPrefix(strings.ToLower(p.last), q) && !strings.HasPrefix(p.login, q) ||
			!meets(cs, p.changed, p.field) {
			continue
		}
		if len(out) == limit {
			more = true
			break
		}
		out, last = append(out, o.userJSON(r, p)), i
	}
	pageLinks(w, r, last, more && q == "")
	reply(w, http.StatusOK, out)
	return nil
}

func (p *person) field(name string) string {
	return map[string]string{"status": p.status, "id": p.id, "profile.login": p.login, "profile.email": p.login, "profile.firstName": p.first, "profile.lastName": p.last, "profile.displayName": p.name()}[name]
}

func (d *device) field(name string) string {
	return map[string]string{"status": d.status, "id": d.id, "profile.displayName": d.name, "profile.platform": d.platform}[name]
}

func (o *Org) person(idOrLogin string) *person {
	for _, p := range o.company.people {
		if p.id == idOrLogin || p.login == idOrLogin {
			return p
		}
	}
	return nil
}

func (o *Org) getUser(w http.ResponseWriter, r *http.Request) *apiError {
	o.dirMu.RLock()
	defer o.dirMu.RUnlock()
	p := o.person(r.PathValue("id"))
	if p == nil {
		return notFound(r.PathValue("id"), "User")
	}
	reply(w, http.StatusOK, o.userJSON(r, p))
	return nil
}

func (o *Org) userDevices(w http.ResponseWriter, r *http.Request) *apiError {
	o.dirMu.RLock()
	defer o.dirMu.RUnlock()
	p := o.person(r.PathValue("id"))
	if p == nil {
		return notFound(r.PathValue("id"), "User")
	}
	out := []any{}
	if p.device != nil {
		out = append(out, map[string]any{"created": stamp(p.device.created), "deviceUserId": "duo" + p.id[3:], "device": o.deviceJSON(r, p.device)})
	}
	reply(w, http.StatusOK, out)
	return nil
}

func (o *Org) listDevices(w http.ResponseWriter, r *http.Request) *apiError {
	if o.cfg.Engine == "v1" {
		return errNotEnabled
	}
	limit, after, e := paging(r, 200, 200)
	if e != nil {
		return e
	}
	cs, e := parseCriteria(r.URL.Query().Get("search"))
	if e != nil {
		return e
	}
	expand := r.URL.Query().Get("expand")
	o.dirMu.RLock()
	defer o.dirMu.RUnlock()
	out := []any{}
	more, last := false, 0
	for i := after; i < len(o.company.devices); i++ {
		d := o.company.devices[i]
		if !meets(cs, d.changed, d.field) {
			continue
		}
		if len(out) == limit {
			more = true
			break
		}
		j := o.deviceJSON(r, d)
		if expand == "user" || expand == "userSummary" {
			j["_embedded"] = map[string]any{"users": o.ownersJSON(r, d)}
		}
		out, last = append(out, j), i
	}
	pageLinks(w, r, last, more)
	reply(w, http.StatusOK, out)
	return nil
}

func (o *Org) device(id string) *device {
	for _, d := range o.company.devices {
		if d.id == id {
			return d
		}
	}
	return nil
}

func (o *Org) getDevice(w http.ResponseWriter, r *http.Request) *apiError {
	o.dirMu.RLock()
	defer o.dirMu.RUnlock()
	d := o.device(r.PathValue("id"))
	if o.cfg.Engine == "v1" {
		return errNotEnabled
	}
	if d == nil {
		return notFound(r.PathValue("id"), "Device")
	}
	reply(w, http.StatusOK, o.deviceJSON(r, d))
	return nil
}

func (o *Org) ownersJSON(r *http.Request, d *device) []any {
	state := "NOT_MANAGED"
	if d.managed {
		state = "MANAGED"
	}
	return []any{map[string]any{"created": stamp(d.created), "managementStatus": state, "screenLockType": d.lock, "user": o.userJSON(r, d.owner)}}
}

func (o *Org) deviceUsers(w http.ResponseWriter, r *http.Request) *apiError {
	o.dirMu.RLock()
	defer o.dirMu.RUnlock()
	d := o.device(r.PathValue("id"))
	if o.cfg.Engine == "v1" {
		return errNotEnabled
	}
	if d == nil {
		return notFound(r.PathValue("id"), "Device")
	}
	reply(w, http.StatusOK, o.ownersJSON(r, d))
	return nil
}

// setStatus changes a person's state, as a lifecycle event does. Of those who may not sign in the first is let back in when they
// become many; somebody did that on another day.
func (o *Org) setStatus(p *person, status string) {
	o.dirMu.Lock()
	defer o.dirMu.Unlock()
	now := o.now().UTC().Truncate(time.Millisecond)
	p.status, p.changed = status, now
	if !p.blocked() {
		return
	}
	o.blocked = append(o.blocked, p)
	if len(o.blocked) > max(1, len(o.company.people)/20) {
		o.blocked[0].status, o.blocked[0].changed = "ACTIVE", now
		o.blocked = o.blocked[1:]
	}
}

// blocked says whether p may not sign in.
func (p *person) blocked() bool { return p.status == "SUSPENDED" || p.status == "LOCKED_OUT" }
