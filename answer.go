package wechat

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
	"time"
)

const (
	// maxAnswer is the largest answer that is read, in bytes. WeChat's are
	// under 1 KiB.
	maxAnswer = 64 << 10

	// maxValue is the longest token, ticket, openid or key that is taken, in bytes.
	maxValue = 2 << 10
)

// envelope is an answer of WeChat that carries no errcode but 0: the fields of a
// JSON object, each at most once.
type envelope map[string]json.RawMessage

// tokenAnswer is WeChat's answer: a token and what is left of its life.
type tokenAnswer struct {
	token    string
	asked    time.Time     // when the request was sent: the life left counts from here at the latest
	answered time.Time     // when the answer was read
	lifetime time.Duration // whole seconds, 1 s to maxLifetime

	// era is that of the clock when the request was sent, and ends the token's end by
	// the steady clock.
	era  int64
	ends time.Time
}

// session is what a mini program's login code was worth.
type session struct {
	openID     string
	unionID    string // "" if WeChat gave none
	sessionKey string
}

// userToken is what a web login's code was worth: the user's own tokens.
type userToken struct {
	openID       string
	unionID      string // "", like the next two, if WeChat gave none
	scope        string
	refreshToken string
	accessToken  string
	expiresIn    *int64 // seconds; nil, like the next, if WeChat gave none
	snapshotUser *int64
}

// parseAnswer accepts the one documented form of an answer, and names everything
// else. known are the secrets of the call.
func parseAnswer(a api, status int, raw []byte, known []string) (envelope, *problem) {
	switch {
	case status >= 500:
		return nil, &problem{rule: ruleUnavailable, cause: fmt.Sprintf("HTTP %d", status)}
	case status >= 400: // a gateway's: WeChat answers 200
		return nil, &problem{rule: ruleAnswer, cause: fmt.Sprintf("HTTP %d", status), hadNoEffect: true}
	case status >= 300:
		return nil, undocumented("HTTP %d: redirects are refused", status)
	case status != http.StatusOK:
		return nil, undocumented("HTTP %d", status)
	case len(raw) > maxAnswer:
		return nil, undocumented("it is larger than %d bytes", maxAnswer)
	}
	fields, ok := parseObject(raw)
	if !ok {
		return nil, undocumented("it is not the JSON that WeChat documents")
	}
	errcode, given, ok := fields.number("errcode")
	switch {
	case !ok:
		return nil, undocumented("errcode is not a number")
	case given && errcode != 0:
		return nil, refusal(a, int(errcode), fields, known)
	}
	return fields, nil
}

// undocumented is the problem of an answer that is not the documented one. In what way
// it is not, is for the server log: callers could tell by it what listens in Vault's
// network. Nothing of the answer but numbers may be in that text: it may hold a token.
func undocumented(format string, args ...any) *problem {
	return &problem{rule: ruleAnswer, cause: fmt.Sprintf(format, args...)}
}

// parseObject reads the top level of a JSON object. A field that is there twice
// makes the whole answer worthless: whoever checked it on its way may have seen
// the other one.
func parseObject(raw []byte) (envelope, bool) {
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(raw, []byte("\xef\xbb\xbf"))))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	fields := make(envelope)
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

// number returns a field that is a whole number, be it in quotes. One that does
// not fit becomes the nearest that does. A field that is missing, or null, is
// not given.
func (a envelope) number(field string) (value int64, given, ok bool) {
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
func (a envelope) text(field string) (value string, ok bool) {
	raw, there := a[field]
	if !there || string(raw) == "null" {
		return "", true
	}
	return value, json.Unmarshal(raw, &value) == nil
}

// values reads fields that end up in headers, files and templates: strings of at
// most maxValue bytes, printable ASCII without blanks or quotes.
func (a envelope) values(into map[string]*string) *problem {
	for field, value := range into {
		text, ok := a.text(field)
		if !ok || !isPlain(text) {
			return undocumented("%s is not a string of at most %d printable ASCII characters without blanks and quotes", field, maxValue)
		}
		*value = text
	}
	return nil
}

func isPlain(text string) bool {
	if len(text) > maxValue {
		return false
	}
	for i := range len(text) {
		if c := text[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\'' || c == '`' {
			return false
		}
	}
	return true
}

// stableToken reads the answer of stable_token.
func (a envelope) stableToken() (*tokenAnswer, *problem) {
	got := &tokenAnswer{lifetime: maxLifetime}
	if p := a.values(map[string]*string{"access_token": &got.token}); p != nil {
		return nil, p
	}
	expiresIn, _, ok := a.number("expires_in")
	switch {
	case got.token == "":
		return nil, undocumented("it holds no access_token")
	case !ok:
		return nil, undocumented("expires_in is not a whole number")
	case expiresIn <= 0:
		return nil, undocumented("expires_in is %d", expiresIn)
	case expiresIn < int64(maxLifetime/time.Second):
		got.lifetime = time.Duration(expiresIn) * time.Second
	}
	return got, nil
}

// session reads the answer of jscode2session.
func (a envelope) session() (*session, *problem) {
	got := &session{}
	p := a.values(map[string]*string{"openid": &got.openID, "unionid": &got.unionID, "session_key": &got.sessionKey})
	switch {
	case p != nil:
		return nil, p
	case got.openID == "":
		return nil, undocumented("it holds no openid")
	case got.sessionKey == "":
		return nil, undocumented("it holds no session_key")
	}
	return got, nil
}

// userToken reads the answer of sns/oauth2/access_token.
func (a envelope) userToken() (*userToken, *problem) {
	got := &userToken{}
	p := a.values(map[string]*string{
		"openid": &got.openID, "unionid": &got.unionID, "scope": &got.scope,
		"refresh_token": &got.refreshToken, "access_token": &got.accessToken,
	})
	switch {
	case p != nil:
		return nil, p
	case got.openID == "":
		return nil, undocumented("it holds no openid")
	case got.accessToken == "":
		return nil, undocumented("it holds no access_token")
	}
	for field, value := range map[string]**int64{"expires_in": &got.expiresIn, "is_snapshotuser": &got.snapshotUser} {
		switch n, given, ok := a.number(field); {
		case !ok:
			return nil, undocumented("%s is not a whole number", field)
		case given:
			*value = &n
		}
	}
	if got.expiresIn != nil && *got.expiresIn <= 0 {
		return nil, undocumented("expires_in is %d", *got.expiresIn)
	}
	return got, nil
}

// ticket reads the answer of getticket. Its expires_in says nothing: it is always
// the same.
func (a envelope) ticket() (string, *problem) {
	var got string
	if p := a.values(map[string]*string{"ticket": &got}); p != nil {
		return "", p
	}
	if got == "" {
		return "", undocumented("it holds no ticket")
	}
	return got, nil
}

// cleared reads the answer of clear_quota, which has to say that it succeeded.
func (a envelope) cleared() (struct{}, *problem) {
	if _, given, _ := a.number("errcode"); !given {
		return struct{}{}, undocumented("it holds no errcode")
	}
	return struct{}{}, nil
}

// secretFields are those of WeChat's answers that may be shown to nobody but
// whom the answer is for.
var secretFields = []string{"access_token", "refresh_token", "session_key", "ticket", "openid", "unionid"}

// holdSecrets reports whether one of secretFields has a value.
func (a envelope) holdSecrets() bool {
	return slices.ContainsFunc(secretFields, func(field string) bool {
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
func refusal(a api, errcode int, fields envelope, known []string) *problem {
	p := &problem{errcode: errcode, hadNoEffect: errcode != -1}
	errmsg, _ := fields.text("errmsg")
	if fields.holdSecrets() {
		// An errcode and a token: it is not certain what WeChat did, nor that its words
		// do not hold the token as well.
		p.hadNoEffect, errmsg = false, ""
	}
	for _, pattern := range ridPatterns {
		if m := pattern.FindStringSubmatch(errmsg); m != nil {
			if len(m[1]) <= maxRID && !holdsSecret(m[1], known) {
				p.rid = m[1]
			}
			break
		}
	}
	p.errmsg = quotable(errmsg, p.rid, known)
	var documented bool
	if p.rule, documented = ruleOf(a, errcode); !documented {
		p.rule, p.detail = ruleAnswer, "an errcode that is not documented"
	}
	if p.class == classAdmission || p.class == classHuman {
		if m := ipPattern.FindStringSubmatch(errmsg); m != nil && net.ParseIP(m[1]) != nil {
			p.ip = m[1]
		}
	}
	return p
}
