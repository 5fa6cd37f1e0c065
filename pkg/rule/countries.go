package rule

import (
	"slices"
	"strings"
	"sync"
	"unicode"
)

// country is one English name, folded, with its code.
type country struct{ name, code string }

// countries lists all names in order; it is built from countryNames once.
var countries = sync.OnceValue(func() []country {
	var out []country
	for line := range strings.Lines(countryNames) {
		code, names, _ := strings.Cut(strings.TrimSpace(line), " ")
		for n := range strings.SplitSeq(names, "|") {
			out = append(out, country{foldCountry(n), code})
		}
	}
	slices.SortFunc(out, func(a, b country) int { return strings.Compare(a.name, b.name) })
	return out
})

// countryCodes lists all codes in order.
var countryCodes = sync.OnceValue(func() []string {
	var out []string
	for line := range strings.Lines(countryNames) {
		out = append(out, line[:2])
	}
	slices.Sort(out)
	return out
})

var accents = strings.NewReplacer("Å", "a", "å", "a", "ç", "c", "é", "e", "ã", "a", "í", "i", "ô", "o", "ü", "u", "&", " and ", "St.", "Saint")

// foldCountry leaves only what tells countries apart: lower-case letters and single blanks.
func foldCountry(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsLetter(r):
			return unicode.ToLower(r)
		case unicode.IsSpace(r) || r == '-' || r == ',':
			return ' '
		}
		return -1
	}, accents.Replace(s))
	return strings.TrimPrefix(strings.Join(strings.Fields(s), " "), "the ")
}

// countryNames is ISO 3166-1: a code a line, its English names divided by |, the usual one first.
const countryNames = `AD Andorra
AE United Arab Emirates|UAE
AF Afghanistan
AG Antigua & Barbuda
AI Anguilla
AL Albania
AM Armenia
AO Angola
AQ Antarctica
AR Argentina
AS American Samoa
AT Austria
AU Australia
AW Aruba
AX Åland Islands|Aland Islands
AZ Azerbaijan
BA Bosnia & Herzegovina
BB Barbados
BD Bangladesh
BE Belgium
BF Burkina Faso
BG Bulgaria
BH Bahrain
BI Burundi
BJ Benin
BL St. Barthélemy|Saint Barthelemy
BM Bermuda
BN Brunei|Brunei Darussalam
BO Bolivia|Plurinational State of Bolivia|Bolivia, Plurinational State of
BQ Caribbean Netherlands|Bonaire, Sint Eustatius and Saba|Bonaire
BR Brazil
BS Bahamas|The Bahamas
BT Bhutan
BV Bouvet Island
BW Botswana
BY Belarus
BZ Belize
CA Canada
CC Cocos (Keeling) Islands|Cocos Islands
CD DR Congo|Congo - Kinshasa|Democratic Republic of the Congo|The Democratic Republic of the Congo|Congo, The Democratic Republic of the|Zaire
CF Central African Republic
CG Congo|Congo - Brazzaville|Republic of the Congo
CH Switzerland
CI Côte d’Ivoire|Ivory Coast|Cote d'Ivoire
CK Cook Islands
CL Chile
CM Cameroon
CN China|People's Republic of China
CO Colombia
CR Costa Rica
CU Cuba
CV Cape Verde|Cabo Verde
CW Curaçao
CX Christmas Island
CY Cyprus
CZ Czechia|Czech Republic
DE Germany
DJ Djibouti
DK Denmark
DM Dominica
DO Dominican Republic
DZ Algeria
EC Ecuador
EE Estonia
EG Egypt
EH Western Sahara
ER Eritrea
ES Spain
ET Ethiopia
FI Finland
FJ Fiji
FK Falkland Islands|Falkland Islands (Malvinas)
FM Micronesia|Federated States of Micronesia|Micronesia, Federated States of
FO Faroe Islands
FR France
GA Gabon
GB United Kingdom|Great Britain|UK|United Kingdom of Great Britain and Northern Ireland|England|Scotland|Wales|Northern Ireland
GD Grenada
GE Georgia
GF French Guiana
GG Guernsey
GH Ghana
GI Gibraltar
GL Greenland
GM Gambia|The Gambia
GN Guinea
GP Guadeloupe
GQ Equatorial Guinea
GR Greece
GS South Georgia & South Sandwich Islands|South Georgia and the South Sandwich Islands
GT Guatemala
GU Guam
GW Guinea-Bissau
GY Guyana
HK Hong Kong|Hong Kong SAR China
HM Heard & McDonald Islands|Heard Island and McDonald Islands
HN Honduras
HR Croatia
HT Haiti
HU Hungary
ID Indonesia
IE Ireland
IL Israel
IM Isle of Man
IN India
IO British Indian Ocean Territory
IQ Iraq
IR Iran|Islamic Republic of Iran|Iran, Islamic Republic of
IS Iceland
IT Italy
JE Jersey
JM Jamaica
JO Jordan
JP Japan
KE Kenya
KG Kyrgyzstan
KH Cambodia
KI Kiribati
KM Comoros
KN St. Kitts & Nevis|Saint Kitts and Nevis
KP North Korea|Democratic People's Republic of Korea|Korea, Democratic People's Republic of
KR South Korea|Korea|Republic of Korea|Korea, Republic of
KW Kuwait
KY Cayman Islands
KZ Kazakhstan
LA Laos|Lao People's Democratic Republic|Lao
LB Lebanon
LC St. Lucia|Saint Lucia
LI Liechtenstein
LK Sri Lanka
LR Liberia
LS Lesotho
LT Lithuania
LU Luxembourg
LV Latvia
LY Libya|Libyan Arab Jamahiriya
MA Morocco
MC Monaco
MD Moldova|Republic of Moldova|Moldova, Republic of
ME Montenegro
MF St. Martin|Saint Martin|Saint Martin (French part)
MG Madagascar
MH Marshall Islands
MK North Macedonia|Macedonia
ML Mali
MM Myanmar|Myanmar (Burma)|Burma
MN Mongolia
MO Macao|Macau SAR China|Macau
MP Northern Mariana Islands
MQ Martinique
MR Mauritania
MS Montserrat
MT Malta
MU Mauritius
MV Maldives
MW Malawi
MX Mexico
MY Malaysia
MZ Mozambique
NA Namibia
NC New Caledonia
NE Niger
NF Norfolk Island
NG Nigeria
NI Nicaragua
NL Netherlands|The Netherlands|Holland
NO Norway
NP Nepal
NR Nauru
NU Niue
NZ New Zealand
OM Oman
PA Panama
PE Peru
PF French Polynesia
PG Papua New Guinea
PH Philippines
PK Pakistan
PL Poland
PM St. Pierre & Miquelon|Saint Pierre and Miquelon
PN Pitcairn Islands|Pitcairn
PR Puerto Rico
PS Palestinian Territories|Palestine|State of Palestine|Palestinian Territory
PT Portugal
PW Palau
PY Paraguay
QA Qatar
RE Réunion
RO Romania
RS Serbia
RU Russia|Russian Federation
RW Rwanda
SA Saudi Arabia
SB Solomon Islands
SC Seychelles
SD Sudan
SE Sweden
SG Singapore
SH St. Helena|Saint Helena|Saint Helena, Ascension and Tristan da Cunha
SI Slovenia
SJ Svalbard & Jan Mayen|Svalbard and Jan Mayen
SK Slovakia
SL Sierra Leone
SM San Marino
SN Senegal
SO Somalia
SR Suriname
SS South Sudan
ST São Tomé & Príncipe
SV El Salvador
SX Sint Maarten|Sint Maarten (Dutch part)
SY Syria|Syrian Arab Republic
SZ Eswatini|Swaziland
TC Turks & Caicos Islands
TD Chad
TF French Southern Territories
TG Togo
TH Thailand
TJ Tajikistan
TK Tokelau
TL Timor-Leste|East Timor
TM Turkmenistan
TN Tunisia
TO Tonga
TR Turkey|Türkiye|Turkiye
TT Trinidad & Tobago
TV Tuvalu
TW Taiwan|Taiwan, Province of China|Republic of China
TZ Tanzania|United Republic of Tanzania|Tanzania, United Republic of
UA Ukraine
UG Uganda
UM U.S. Outlying Islands|United States Minor Outlying Islands
US United States|United States of America|USA|U.S.A.
UY Uruguay
UZ Uzbekistan
VA Vatican City|Holy See|Vatican|Holy See (Vatican City State)
VC St. Vincent & Grenadines|Saint Vincent and the Grenadines
VE Venezuela|Bolivarian Republic of Venezuela|Venezuela, Bolivarian Republic of
VG British Virgin Islands|Virgin Islands, British
VI U.S. Virgin Islands|Virgin Islands, U.S.
VN Vietnam|Viet Nam
VU Vanuatu
WF Wallis & Futuna
WS Samoa
XK Kosovo
YE Yemen
YT Mayotte
ZA South Africa
ZM Zambia
ZW Zimbabwe`
