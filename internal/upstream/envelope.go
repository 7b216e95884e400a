package upstream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
)

const (
	// maxAnswer is the largest answer that is read, in bytes. WeChat's are under 1 KiB.
	maxAnswer = 64 << 10

	// MaxValue is the longest token, ticket, openid or key that is taken, in bytes.
	MaxValue = 2 << 10
)

// Envelope is an answer that carries no errcode but 0: the fields of a JSON object, each
// at most once.
type Envelope map[string]json.RawMessage

// Parse accepts the one documented form of an answer, and names everything else.
func (r Request) Parse(status int, raw []byte) (Envelope, *Problem) {
	switch {
	case status >= 500:
		return nil, &Problem{Rule: RuleUnavailable, Cause: fmt.Sprintf("HTTP %d", status)}
	case status >= 400: // a gateway's: WeChat answers 200
		return nil, &Problem{Rule: RuleAnswer, Cause: fmt.Sprintf("HTTP %d", status), HadNoEffect: true}
	case status >= 300:
		return nil, Undocumented("HTTP %d: redirects are refused", status)
	case status != http.StatusOK:
		return nil, Undocumented("HTTP %d", status)
	case len(raw) > maxAnswer:
		return nil, Undocumented("it is larger than %d bytes", maxAnswer)
	}
	fields, ok := parseObject(raw)
	if !ok {
		return nil, Undocumented("it is not the JSON that WeChat documents")
	}
	errcode, given, ok := fields.Number("errcode")
	switch {
	case !ok:
		return nil, Undocumented("errcode is not a number")
	case given && errcode != 0:
		return nil, r.refusal(int(errcode), fields)
	}
	return fields, nil
}

// Undocumented is the problem of an answer that is not the documented one. In what way
// it is not, is for the server log: callers could tell by it what listens in Vault's
// network. Nothing of the answer but numbers may be in that text: it may hold a token.
func Undocumented(format string, args ...any) *Problem {
	return &Problem{Rule: RuleAnswer, Cause: fmt.Sprintf(format, args...)}
}

// parseObject reads the top level of a JSON object. A field that is there twice makes
// the whole answer worthless: a check on its way may have seen the other one.
func parseObject(raw []byte) (Envelope, bool) {
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(raw, []byte("\xef\xbb\xbf"))))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	fields := make(Envelope)
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, false
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, false
		}
		key := name.(string) // of an object's field it is always one
		if _, twice := fields[key]; twice {
			return nil, false
		}
		fields[key] = value
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return nil, false
	}
	_, err := d.Token()
	return fields, err == io.EOF
}

// wholeNumber is a number as WeChat and relays write it: also 7200.0.
var wholeNumber = regexp.MustCompile(`^(-?[0-9]{1,19})(?:\.0{1,19})?$`)

// Number returns a field that is a whole number, be it in quotes. One that does
// not fit becomes the nearest that does. A field that is missing, or null, is
// not given.
func (a Envelope) Number(field string) (value int64, given, ok bool) {
	raw, ok := a[field]
	if !ok || string(raw) == "null" {
		return 0, false, true
	}
	text := string(raw)
	if text[0] == '"' && json.Unmarshal(raw, &text) != nil {
		return 0, true, false
	}
	m := wholeNumber.FindStringSubmatch(text)
	if m == nil {
		return 0, true, false
	}
	value, _ = strconv.ParseInt(m[1], 10, 64) // beyond its range: the nearest
	return value, true, true
}

// text returns a field that is a string, "" if it is missing or null.
func (a Envelope) text(field string) (value string, ok bool) {
	raw, there := a[field]
	if !there || string(raw) == "null" {
		return "", true
	}
	return value, json.Unmarshal(raw, &value) == nil
}

// Values reads fields that end up in headers, files and templates: strings of at
// most MaxValue bytes, printable ASCII without blanks or quotes, "" if one is missing.
func (a Envelope) Values(into map[string]*string) *Problem {
	for field, value := range into {
		text, ok := a.text(field)
		if !ok || !isPlain(text) {
			return Undocumented("%s is not a string of at most %d printable ASCII characters without blanks and quotes", field, MaxValue)
		}
		*value = text
	}
	return nil
}

func isPlain(text string) bool {
	if len(text) > MaxValue {
		return false
	}
	for i := range len(text) {
		if c := text[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\'' || c == '`' {
			return false
		}
	}
	return true
}

// holdsAny reports whether one of the fields has a value.
func (a Envelope) holdsAny(fields []string) bool {
	return slices.ContainsFunc(fields, func(field string) bool {
		value, ok := a.text(field)
		return !ok || value != ""
	})
}

// WeChat's texts vary; these find the request ID and the caller's IP in all
// the forms that have been seen.
var (
	ridPatterns = []*regexp.Regexp{
		regexp.MustCompile(`(?i)\brid\s*[:=]?\s*([0-9a-z]+(?:-[0-9a-z]+)*)`),
		regexp.MustCompile(`(?i)\breq_id\s*[:=]?\s*([0-9a-z]+(?:[-_.][0-9a-z]+)*)`),
		regexp.MustCompile(`(?i)\bhints?\s*[:=]?\s*\[\s*([0-9a-z!~._-]+)\s*\]`),
	}
	ipPattern = regexp.MustCompile(`(?i)ip(?:\s+address)?:?[^0-9a-z:]*([0-9a-f:.]*[0-9a-f])`)
)

// refusal turns an errcode and what came with it into a problem.
func (r Request) refusal(errcode int, fields Envelope) *Problem {
	p := &Problem{Errcode: errcode}
	var documented bool
	if p.Rule, documented = r.Rule(errcode); !documented {
		p.Rule, p.Detail = RuleAnswer, "an errcode that is not documented"
	}
	if fields.holdsAny(r.Confidential) {
		// An errcode and a token: it is not certain what WeChat did, nor that its words
		// do not hold the token as well.
		return p
	}
	p.HadNoEffect = p.Class != ClassTransient
	errmsg, _ := fields.text("errmsg")
	p.RID = ridIn(errmsg, r.Secrets)
	p.Errmsg = quotable(errmsg, p.RID, r.Secrets)
	if p.Class == ClassAdmission || p.Class == ClassHuman {
		if m := ipPattern.FindStringSubmatch(errmsg); m != nil && net.ParseIP(m[1]) != nil {
			p.IP = m[1]
		}
	}
	return p
}

// ridIn returns the request ID that a text names, "" if there is none that can be shown.
func ridIn(text string, secrets []string) string {
	for _, pattern := range ridPatterns {
		if m := pattern.FindStringSubmatch(text); m != nil && len(m[1]) <= maxRID && !holdsSecret(m[1], secrets) {
			return m[1]
		}
	}
	return ""
}
