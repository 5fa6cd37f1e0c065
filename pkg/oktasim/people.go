package oktasim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// place is somewhere an address belongs to.
type place struct {
	city, state, country, postal string
	lat, lon                     float64
	prefix                       string // of its addresses
	asn                          int
	org, isp, domain             string
	proxy                        bool
	category, operator           string // an anonymizer's, or empty
}

var places = []place{
	{"Toronto", "Ontario", "Canada", "M6B", 43.7114, -79.4462, "174.89", 577, "bell canada", "bell canada", "bell.ca", false, "", ""},
	{"Dublin", "Leinster", "Ireland", "D02", 53.3331, -6.2489, "86.44", 5466, "eircom limited", "eircom limited", "eir.ie", false, "", ""},
	{"San Francisco", "California", "United States", "94107", 37.7697, -122.3933, "73.162", 7922, "comcast cable communications llc", "comcast cable", "comcast.net", false, "", ""},
	{"Austin", "Texas", "United States", "78701", 30.2713, -97.7426, "70.113", 11427, "charter communications inc", "spectrum", "spectrum.com", false, "", ""},
	{"Berlin", "State of Berlin", "Germany", "10115", 52.5323, 13.3846, "91.64", 3320, "deutsche telekom ag", "deutsche telekom", "t-online.de", false, "", ""},
	{"Krakow", "Lesser Poland", "Poland", "31-014", 50.0614, 19.9372, "83.24", 5617, "orange polska spolka akcyjna", "orange polska", "orange.pl", false, "", ""},
	{"Sydney", "New South Wales", "Australia", "2000", -33.8715, 151.2006, "120.148", 1221, "telstra corporation ltd", "telstra", "telstra.net", false, "", ""},
	{"São Paulo", "São Paulo", "Brazil", "01000", -23.5475, -46.6361, "177.32", 28573, "claro nxt telecomunicacoes ltda", "claro", "virtua.com.br", false, "", ""},
}

// proxy is the company's own way out, the second hop of those who work behind it.
const proxy = "198.51.100.7"

// lairs are where attackers come from.
var lairs = []place{
	{"Bucharest", "București", "Romania", "020371", 44.4268, 26.1025, "203.0.113", 64666, "quietcloud srl", "quietcloud srl", "quietcloud.example", true, "VPN", "QUIET_VPN"},
	{"Lagos", "Lagos", "Nigeria", "100001", 6.4541, 3.3947, "192.0.2", 64667, "harbour mobile ltd", "harbour mobile", "harbour.example", false, "", ""},
	{"Amsterdam", "North Holland", "Netherlands", "1012", 52.3759, 4.8975, "185.220.101", 64668, "relay hosting b.v.", "relay hosting", "relay.example", true, "Tor", "TOR"},
}

type agent struct{ raw, os, browser, device string }

var agents = []agent{
	{"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36", "Mac OS 14.5.0 (Sonoma)", "CHROME", "Computer"},
	{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36", "Windows 10", "CHROME", "Computer"},
	{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0", "Windows 10", "CHROMIUM_EDGE", "Computer"},
	{"Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:143.0) Gecko/20100101 Firefox/143.0", "Mac OS X", "FIREFOX", "Computer"},
	{"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1", "iOS (iPhone)", "MOBILE_SAFARI", "Mobile"},
	{"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36", "Linux", "CHROME", "Computer"},
}

var oddAgent = agent{"Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0", "Linux", "FIREFOX", "Computer"}

var (
	firstNames = []string{"Aoife", "Bruno", "Chloé", "Daniel", "Emeka", "Fatima", "Grace", "Hiroshi", "Ines", "Jakub", "Kavya", "Liam", "Marta", "Nora", "Oscar", "Priya", "Quentin", "Rosa", "Samuel", "Tomasz", "Uma", "Viktor", "Wen", "Ximena", "Yara", "Zoë"}
	lastNames  = []string{"Adeyemi", "Brandt", "Costa", "Dvořák", "Eriksen", "Fischer", "García", "Hughes", "Ivanov", "Jansen", "Kowalski", "Laurent", "Murphy", "Nakamura", "O'Neill", "Patel", "Quinn", "Rossi", "Sato", "Tran", "Ueda", "Vega", "Walsh", "Xu", "Young", "Zhang"}
	teams      = []string{"Engineering", "Sales", "Finance", "People", "Support", "Marketing", "Legal", "IT"}
	appNames   = []struct{ name, label, mode string }{
		{"salesforce", "Salesforce", "SAML_2_0"},
		{"slack", "Slack", "SAML_2_0"},
		{"github_enterprise", "GitHub Enterprise", "SAML_2_0"},
		{"google", "Google Workspace", "SAML_2_0"},
		{"office365", "Microsoft Office 365", "WS_FEDERATION"},
		{"zoomus", "Zoom", "SAML_2_0"},
		{"oidc_client", "Northwind Portal", "OPENID_CONNECT"},
		{"workday", "Workday", "SAML_2_0"},
		{"atlassian", "Atlassian Cloud", "SAML_2_0"},
		{"oidc_client", "Expense Desk", "OPENID_CONNECT"},
	}
	groupNames = []string{"Everyone", "Engineering", "Sales", "Finance", "VPN Users", "Contractors", "GitHub Writers", "Salesforce Users", "On Call", "Payroll"}
)

// person is a user of the org with everything that stays the same from event to event, rendered once.
type person struct {
	num                        int
	id, login, first, last     string
	team                       string
	admin                      bool
	status                     string
	created, changed           time.Time
	where                      *place
	agent                      *agent
	ip                         string
	actor, target              string // rendered
	client, chain, security    string // rendered, from the usual place
	device                     *device
	deviceJSON                 string
	dtHash, fingerprint        string
	session, root              string // empty: signed out
	passwordID, pushID, fastID string
	todo                       []step
}

func (p *person) name() string { return p.first + " " + p.last }

// device is a machine enrolled with Okta Verify.
type device struct {
	num                         int
	id, name, platform, version string // platform as the Devices API spells it
	serial, udid                string
	owner                       *person
	managed                     bool
	encryption, lock            string
	created, changed            time.Time
	status, model, manufacturer string
}

type app struct{ id, name, label, mode, instance string }

type group struct{ id, name string }

// company is the whole simulated org as a function of its seed.
type company struct {
	orgID, domain string
	people        []*person
	devices       []*device
	apps          []app
	groups        []group
	admins        []*person
}

const alnum = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// oktaID makes an id as Okta's: prefix, random middle, the org's cell mark.
func oktaID(r *rand.Rand, prefix string) string {
	b := make([]byte, 20)
	copy(b, prefix)
	for i := len(prefix); i < 17; i++ {
		b[i] = alnum[r.IntN(len(alnum))]
	}
	copy(b[17:], "5d7")
	return string(b)
}

func hexID(r *rand.Rand, n int) string {
	const digits = "0123456789abcdef"
	b := make([]byte, n)
	for i := range b {
		b[i] = digits[r.IntN(16)]
	}
	return string(b)
}

func newCompany(seed uint64, users int, now time.Time) *company {
	r := rand.New(rand.NewPCG(seed, 0x6f6b7461))
	c := &company{orgID: oktaID(r, "00o"), domain: "northwind.example"}
	for _, a := range appNames {
		id := oktaID(r, "0oa")
		c.apps = append(c.apps, app{id, a.name, a.label, a.mode, id})
	}
	for _, g := range groupNames {
		c.groups = append(c.groups, group{oktaID(r, "00g"), g})
	}
	seen := map[string]int{}
	for i := range users {
		p := &person{num: i, id: oktaID(r, "00u"), first: firstNames[r.IntN(len(firstNames))], last: lastNames[r.IntN(len(lastNames))], team: teams[r.IntN(len(teams))], status: "ACTIVE"}
		local := asciiLower(p.first) + "." + asciiLower(p.last)
		if seen[local]++; seen[local] > 1 {
			local += fmt.Sprint(seen[local])
		}
		p.login = local + "@" + c.domain
		p.created = now.Add(-time.Duration(30+r.IntN(1500)) * 24 * time.Hour).UTC().Truncate(time.Millisecond)
		p.changed = p.created.Add(time.Duration(r.IntN(29*24)) * time.Hour)
		p.where = &places[r.IntN(len(places))]
		p.agent = &agents[r.IntN(len(agents))]
		p.ip = address(r, p.where)
		p.dtHash, p.fingerprint = hexID(r, 64), hexID(r, 32)
		p.passwordID, p.pushID, p.fastID = oktaID(r, "lae"), oktaID(r, "opf"), oktaID(r, "pfd")
		p.actor = person0(p.id, "User", p.login, p.name())
		p.target = p.actor
		p.client, p.security = clientJSON(p.where, p.agent, p.ip), securityJSON(p.where)
		p.chain = chainJSON(p.where, p.ip, r.IntN(3) == 0)
		p.deviceJSON = "null"
		if r.IntN(10) < 6 {
			p.device = newDevice(r, len(c.devices), p, now)
			p.deviceJSON = p.device.logJSON()
			c.devices = append(c.devices, p.device)
		}
		if p.team == "IT" || i < 3 {
			p.admin = true
			c.admins = append(c.admins, p)
		}
		c.people = append(c.people, p)
	}
	return c
}

func asciiLower(s string) string {
	s = strings.ToLower(s)
	return strings.NewReplacer("é", "e", "ë", "e", "ř", "r", "á", "a", "í", "i", "'", "", "ã", "a").Replace(s)
}

func address(r *rand.Rand, p *place) string {
	if strings.Count(p.prefix, ".") == 2 {
		return fmt.Sprintf("%s.%d", p.prefix, 1+r.IntN(254))
	}
	return fmt.Sprintf("%s.%d.%d", p.prefix, r.IntN(256), 1+r.IntN(254))
}

func newDevice(r *rand.Rand, num int, p *person, now time.Time) *device {
	d := &device{num: num, id: oktaID(r, "guo"), owner: p, managed: r.IntN(4) > 0, status: "ACTIVE", serial: strings.ToUpper(hexID(r, 12)), udid: strings.ToUpper(hexID(r, 32))}
	switch p.agent.os {
	case "Windows 10", "Linux":
		d.platform, d.version, d.encryption, d.lock, d.model, d.manufacturer = "WINDOWS", "10.0.22631.4317", "ALL_INTERNAL_VOLUMES", "BIOMETRIC", "Latitude 7450", "Dell Inc."
		d.name = "NW-" + d.serial[:7]
	case "iOS (iPhone)":
		d.platform, d.version, d.encryption, d.lock, d.model, d.manufacturer = "IOS", "18.6.2", "FULL", "BIOMETRIC", "iPhone15,2", "APPLE"
		d.name = p.first + "'s iPhone"
	default:
		d.platform, d.version, d.encryption, d.lock, d.model, d.manufacturer = "MACOS", "15.6.1", "ALL_INTERNAL_VOLUMES", "BIOMETRIC", "MacBookPro18,3", "APPLE"
		d.name = p.first + "'s MacBook Pro"
	}
	d.created = p.created.Add(24 * time.Hour)
	if d.created.After(now) {
		d.created = now.UTC().Truncate(time.Millisecond)
	}
	d.changed = d.created
	return d
}

// logJSON is the device as the System Log shows it: snake case, and OSX where the Devices API says MACOS.
func (d *device) logJSON() string {
	platform := d.platform
	if platform == "MACOS" {
		platform = "OSX"
	}
	b := append([]byte(`{"id":`), appendJSON(nil, d.id)...)
	b = appendJSON(append(b, `,"name":`...), d.name)
	b = appendJSON(append(b, `,"os_platform":`...), platform)
	b = appendJSON(append(b, `,"os_version":`...), d.version)
	b = fmt.Appendf(b, `,"managed":%t,"registered":true,"device_integrator":null,"disk_encryption_type":%q,"screen_lock_type":%q,"jailbreak":null,"secure_hardware_present":true}`, d.managed, d.encryption, d.lock)
	return string(b)
}

// person0 renders an actor or a target without detail.
func person0(id, typ, alternate, display string) string {
	b := append([]byte(`{"id":`), appendJSON(nil, id)...)
	b = appendJSON(append(b, `,"type":`...), typ)
	b = appendJSON(append(b, `,"alternateId":`...), alternate)
	b = appendJSON(append(b, `,"displayName":`...), display)
	return string(append(b, `,"detailEntry":null}`...))
}

func geoJSON(p *place) string {
	b := append([]byte(`{"city":`), appendJSON(nil, p.city)...)
	b = appendJSON(append(b, `,"state":`...), p.state)
	b = appendJSON(append(b, `,"country":`...), p.country)
	b = appendJSON(append(b, `,"postalCode":`...), p.postal)
	return string(fmt.Appendf(b, `,"geolocation":{"lat":%v,"lon":%v}}`, p.lat, p.lon))
}

func clientJSON(p *place, a *agent, ip string) string {
	b := append([]byte(`{"userAgent":{"rawUserAgent":`), appendJSON(nil, a.raw)...)
	b = appendJSON(append(b, `,"os":`...), a.os)
	b = appendJSON(append(b, `,"browser":`...), a.browser)
	b = appendJSON(append(b, `},"zone":"null","device":`...), a.device)
	return string(fmt.Appendf(b, `,"id":null,"ipAddress":%q,"geographicalContext":%s}`, ip, geoJSON(p)))
}

func chainJSON(p *place, ip string, viaProxy bool) string {
	s := fmt.Sprintf(`[{"ip":%q,"geographicalContext":%s,"version":"V4","source":null}`, ip, geoJSON(p))
	if viaProxy {
		s += fmt.Sprintf(`,{"ip":%q,"geographicalContext":null,"version":"V4","source":null}`, proxy)
	}
	return s + "]"
}

func securityJSON(p *place) string {
	b := fmt.Appendf(nil, `{"asNumber":%d,"asOrg":`, p.asn)
	b = appendJSON(b, p.org)
	b = appendJSON(append(b, `,"isp":`...), p.isp)
	b = appendJSON(append(b, `,"domain":`...), p.domain)
	b = fmt.Appendf(b, `,"isProxy":%t`, p.proxy)
	if p.category != "" {
		b = fmt.Appendf(b, `,"ipDetails":{"asNumber":%d,"asOrg":%q,"isp":%q,"domain":%q,"ipServiceCategories":[{"type":%q,"operator":%q,"isAnonymous":true}]}`, p.asn, p.org, p.isp, p.domain, p.category, p.operator)
	}
	return string(append(b, '}'))
}
