package wechatsim

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"slices"
	"time"
)

// token is an access token, dead or alive.
type token struct {
	value   string
	account *account
	ends    time.Time
	errcode int // what the token's user is told after its end
}

// Check tells whether a token would be accepted now, and whose it is or was. The
// errcode is 0 for a token that is accepted, 42001 for an expired one, 40001 for
// one that a forced call replaced and 40014 for one that was never issued.
func (s *Sim) Check(value string) (appid string, errcode int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, errcode := s.check(value)
	if t == nil {
		return "", errcode
	}
	return t.account.id, errcode
}

// check returns a token, or nil if it was never issued, and the errcode that its
// user is told; s.mu is held.
func (s *Sim) check(value string) (*token, int) {
	t, known := s.tokens[value]
	switch {
	case !known:
		return nil, 40014
	case t.live(time.Now()):
		return t, 0
	default:
		return t, t.errcode
	}
}

// Current returns the newest token of an account, or "" if that is dead or there
// is none.
func (s *Sim) Current(appid string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, known := s.accounts[appid]; known {
		if t := a.current(time.Now()); t != nil {
			return t.value
		}
	}
	return ""
}

// ForceOutside refreshes the token of an account by force, as another owner of
// the secret would, and returns the new token. It is subject to no limit,
// uses up none, and is not one of [Sim.Calls].
func (s *Sim) ForceOutside(appid string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	a := s.account(appid)
	a.replace(now)
	return s.issue(a, now).value
}

// ExpireAll ends the life of every token of an account at once, as an incident at
// the platform would.
func (s *Sim) ExpireAll(appid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.account(appid).tokens {
		t.end(time.Now(), 42001)
	}
}

// stableToken hands out the account's token, or a new one.
func (s *Sim) stableToken(req *request) (_ answer, issued bool) {
	refusal := 0
	switch {
	case req.method != http.MethodPost:
		refusal = 43002
	case req.badBody:
		refusal = 47001
	case req.AppID != "" && req.Secret != "" && req.GrantType != "client_credential":
		refusal = 40002
	}
	if refusal != 0 {
		return s.refuse(refusal, req.ip), false
	}
	now := time.Now()
	a, refusal := s.admit(req.AppID, req.Secret, req.ip)
	switch {
	case refusal != 0:
		return s.refuse(refusal, req.ip), false
	case a.day.count(now, day) >= cmp.Or(a.PerDay, defaultPerDay):
		return s.refuse(45009, req.ip), false
	case a.minute.count(now, time.Minute) >= cmp.Or(a.PerMinute, defaultPerMinute):
		return s.refuse(45011, req.ip), false
	}

	refresh := req.ForceRefresh && !req.unforced && a.spaced(now)
	if refresh && a.forced.count(now, day) >= cmp.Or(a.ForcedPerDay, defaultForcedPerDay) {
		return s.refuse(45009, req.ip), false
	}
	a.day = append(a.day, now)
	a.minute = append(a.minute, now)
	if refresh {
		a.forced = append(a.forced, now)
		a.replace(now)
		return granted(s.issue(a, now), now), true
	}

	t := a.current(now)
	due := t != nil && !req.ForceRefresh && t.ends.Sub(now) < a.overlap()
	if t == nil || due {
		return granted(s.issue(a, now), now), true
	}
	return granted(t, now), false
}

// issue makes a new current token; s.mu is held.
func (s *Sim) issue(a *account, now time.Time) *token {
	t := &token{
		value:   randomToken(max(cmp.Or(a.TokenLength, defaultTokenLength), minTokenLength)),
		account: a,
		ends:    now.Add(cmp.Or(a.Lifetime, defaultLifetime)),
		errcode: 42001,
	}
	s.tokens[t.value] = t
	a.tokens = slices.DeleteFunc(a.tokens, func(t *token) bool { return !t.live(now) })
	a.tokens = append(a.tokens, t)
	return t
}

// replace ends the account's tokens in favour of a new one.
func (a *account) replace(now time.Time) {
	current := a.current(now)
	for _, t := range a.tokens {
		if a.ForceKeepsOld && t == current {
			t.end(now.Add(a.overlap()), 40001)
		} else {
			t.end(now, 40001)
		}
	}
}

// current returns the newest token, or nil if that is dead or there is none.
func (a *account) current(now time.Time) *token {
	if n := len(a.tokens); n > 0 && a.tokens[n-1].live(now) {
		return a.tokens[n-1]
	}
	return nil
}

// spaced tells whether the last forced refresh is long enough ago for another.
func (a *account) spaced(now time.Time) bool {
	n := len(a.forced)
	return n == 0 || now.Sub(a.forced[n-1]) >= cmp.Or(a.ForcedSpacing, defaultForcedSpacing)
}

// overlap returns how long an old token lives on beside a new one.
func (a *account) overlap() time.Duration {
	return cmp.Or(a.Overlap, defaultOverlap)
}

// live tells whether the token would be accepted.
func (t *token) live(now time.Time) bool {
	return now.Before(t.ends)
}

// end moves the token's end forward to at, after which it is refused with errcode.
// A token that ends before that keeps its end and its reason.
func (t *token) end(at time.Time, errcode int) {
	if at.Before(t.ends) {
		t.ends, t.errcode = at, errcode
	}
}

// granted is the answer that hands out a token, with the whole seconds that it
// has left.
func granted(t *token, now time.Time) answer {
	seconds := int64(t.ends.Sub(now) / time.Second)
	return answered(field{"access_token", t.value}, field{"expires_in", seconds})
}

// randomToken returns n random characters.
func randomToken(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, by its documentation
	return base64.RawURLEncoding.EncodeToString(b)[:n]
}
