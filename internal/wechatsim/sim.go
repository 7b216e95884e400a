// Package wechatsim plays WeChat's side of the stable access token: it issues,
// renews, replaces and checks tokens by the documented rules, and misbehaves on
// request.
//
// A [Sim] is an [http.Handler] without goroutines or timers of its own. Serve it
// on a loopback port with [Sim.Start], or inside a testing/synctest bubble over a
// [Pipe], where hours of a token's life pass in no time.
package wechatsim

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// What WeChat documents, and what an [Account] has unless it says otherwise.
const (
	defaultLifetime      = 7200 * time.Second
	defaultOverlap       = 300 * time.Second
	defaultTokenLength   = 512
	defaultPerMinute     = 10_000
	defaultPerDay        = 500_000
	defaultForcedPerDay  = 20
	defaultForcedSpacing = 30 * time.Second

	day = 24 * time.Hour
)

// minTokenLength keeps random tokens unique: 16 characters carry 96 bits.
const minTokenLength = 16

// Account holds the settings of one account. A zero field stands for what WeChat
// documents.
type Account struct {
	Secret string `json:"secret"`

	// Lifetime is that of a new token; tokens already issued keep theirs.
	Lifetime time.Duration `json:"lifetime"`

	// Overlap is the last part of a token's life, in which a normal call issues a
	// new token while the old one lives on to its end. It should be well below
	// Lifetime: otherwise every normal call issues a new token. A negative one
	// switches the overlap off.
	Overlap time.Duration `json:"overlap"`

	// AllowedIPs are the addresses that may call; empty admits everybody.
	AllowedIPs []string `json:"allowed_ips"`

	// TokenLength is the number of characters of a new token, at least 16.
	TokenLength int `json:"token_length"`

	// ForceKeepsOld makes a forced call leave the token that it replaces alive for
	// the overlap, as is reported of WeChat but not documented. The next forced
	// call kills that token for certain.
	ForceKeepsOld bool `json:"force_keeps_old"`

	// PerMinute and PerDay limit all calls, ForcedPerDay only those that refresh
	// by force. The windows roll: a call counts for exactly a minute or 24 hours,
	// and a call that is refused does not count.
	PerMinute    int `json:"per_minute"`
	PerDay       int `json:"per_day"`
	ForcedPerDay int `json:"forced_per_day"`

	// ForcedSpacing is the least time between two forced refreshes. A forced call
	// that comes sooner is answered with the current token, and does not count.
	ForcedSpacing time.Duration `json:"forced_spacing"`
}

// Call is one call of stable_token, as the platform saw it.
type Call struct {
	Time    time.Time `json:"time"`    // of its arrival
	AppID   string    `json:"appid"`   // as sent, whether known or not
	Forced  bool      `json:"forced"`  // force_refresh was set
	Errcode int       `json:"errcode"` // of the answer; 0 if it carried none
	Fault   string    `json:"fault"`   // the kind of the fault that struck it, if any
	Issued  bool      `json:"issued"`  // it made a new token, delivered or not
}

// Sim is the platform. Its methods may be called at any time, also while it
// serves; times are those of [time.Now].
type Sim struct {
	mux *http.ServeMux

	mu       sync.Mutex // guards all that follows
	accounts map[string]*account
	tokens   map[string]*token // every token ever issued, by its value
	faults   []Fault
	latency  time.Duration
	onCall   func(Call)
	calls    []*Call
	rids     int // error texts written so far

	// The calls in flight and the most there ever were, by AppID; all of them
	// under "".
	inFlight, maxInFlight map[string]int
}

// account is an account with its tokens and what it has used of its limits.
type account struct {
	Account
	id                  string
	tokens              []*token // the live ones and the newest, which comes last
	minute, day, forced window
}

// token is an access token, dead or alive.
type token struct {
	value   string
	account *account
	ends    time.Time
	errcode int // what the token's user is told after its end
}

// window holds the times of the calls that count towards a limit, oldest first.
type window []time.Time

// New returns a platform without accounts, faults or latency.
func New() *Sim {
	s := &Sim{
		mux:         http.NewServeMux(),
		accounts:    map[string]*account{},
		tokens:      map[string]*token{},
		inFlight:    map[string]int{},
		maxInFlight: map[string]int{},
	}
	s.routes()
	return s
}

// SetAccount replaces the settings of an account, which keeps its tokens and what
// it has used of its limits. An account that does not exist is created.
func (s *Sim) SetAccount(appid string, a Account) {
	s.Update(appid, func(settings *Account) { *settings = a })
}

// Update lets f change the settings of an account in one step; f must not call
// the Sim. An account that does not exist is created.
func (s *Sim) Update(appid string, f func(*Account)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.account(appid)
	f(&a.Account)
	a.AllowedIPs = slices.Clone(a.AllowedIPs)
}

// SetLatency sets how long the platform holds back each answer. What the call
// does is done on arrival, so that a client who gives up sooner misses the
// outcome, not the effect.
func (s *Sim) SetLatency(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latency = d
}

// OnCall sets a function that is called with each stable_token call on its
// arrival, before the platform does anything about it; nil removes it. The
// function may block to hold the call, and may call the Sim.
func (s *Sim) OnCall(f func(Call)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onCall = f
}

// Calls returns the stable_token calls that named an AppID, in the order of their
// arrival; "" stands for all calls, also those that named none.
func (s *Sim) Calls(appid string) []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := []Call{}
	for _, c := range s.calls {
		if appid == "" || c.AppID == appid {
			calls = append(calls, *c)
		}
	}
	return calls
}

// MaxInFlight returns the highest number of stable_token calls for an AppID that
// ever were at the platform at the same time; "" stands for all calls.
func (s *Sim) MaxInFlight(appid string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.maxInFlight[appid]
}

// Check tells whether a token would be accepted now, and whose it is or was. The
// errcode is 0 for a token that is accepted, 42001 for an expired one, 40001 for
// one that a forced call replaced and 40014 for one that was never issued.
func (s *Sim) Check(value string) (appid string, errcode int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, known := s.tokens[value]
	switch {
	case !known:
		return "", 40014
	case t.live(time.Now()):
		return t.account.id, 0
	default:
		return t.account.id, t.errcode
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

// ForceOutside refreshes the token of an account by force, as somebody else who
// knows the secret would, and returns the new token. It is subject to no limit,
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

// account returns the account of an AppID, which it creates if need be; s.mu is
// held.
func (s *Sim) account(appid string) *account {
	a, known := s.accounts[appid]
	if !known {
		a = &account{id: appid}
		s.accounts[appid] = a
	}
	return a
}

// call takes a stable_token call from its arrival until its answer is due.
func (s *Sim) call(ctx context.Context, req request) (answer, Fault) {
	call, onCall := s.arrive(req)
	defer s.depart(req)
	if onCall != nil {
		onCall(Call{Time: call.Time, AppID: call.AppID, Forced: call.Forced})
	}
	ans, fault, latency := s.handle(call, req)
	wait(ctx, latency)
	if fault.Kind == "hang" {
		hang(ctx, fault.Hang)
	}
	return ans, fault
}

// arrive records a call that came in.
func (s *Sim) arrive(req request) (*Call, func(Call)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := &Call{Time: time.Now().UTC(), AppID: req.AppID, Forced: req.ForceRefresh}
	s.calls = append(s.calls, call)
	for _, appid := range req.countedAs() {
		s.inFlight[appid]++
		s.maxInFlight[appid] = max(s.maxInFlight[appid], s.inFlight[appid])
	}
	return call, s.onCall
}

// depart undoes what arrive counted as in flight.
func (s *Sim) depart(req request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, appid := range req.countedAs() {
		s.inFlight[appid]--
	}
}

// handle does what a call asks for, or what a fault makes of it, and records the
// outcome in call.
func (s *Sim) handle(call *Call, req request) (answer, Fault, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fault := s.nextFault(req)
	call.Fault = fault.Kind
	var ans answer
	switch {
	case fault.Kind == "errcode":
		ans = s.refuse(fault.Errcode, req.ip)
		ans.Errmsg = cmp.Or(fault.Errmsg, ans.Errmsg)
	case kinds[fault.Kind].works:
		ans, call.Issued = s.work(req, fault.Kind == "sametoken")
	}
	call.Errcode = ans.Errcode
	return ans, fault, s.latency
}

// work answers a call by the platform's rules, and says whether it issued a new
// token. With unforced set, a forced call refreshes nothing. s.mu is held.
func (s *Sim) work(req request, unforced bool) (_ answer, issued bool) {
	now := time.Now()
	a, known := s.accounts[req.AppID]
	switch {
	case req.malformed != 0:
		return s.refuse(req.malformed, req.ip), false
	case !known:
		return s.refuse(40013, req.ip), false
	case subtle.ConstantTimeCompare([]byte(req.Secret), []byte(a.Secret)) == 0:
		return s.refuse(40125, req.ip), false
	case len(a.AllowedIPs) > 0 && !slices.Contains(a.AllowedIPs, req.ip):
		return s.refuse(40164, req.ip), false
	case a.day.count(now, day) >= cmp.Or(a.PerDay, defaultPerDay):
		return s.refuse(45009, req.ip), false
	case a.minute.count(now, time.Minute) >= cmp.Or(a.PerMinute, defaultPerMinute):
		return s.refuse(45011, req.ip), false
	}

	refresh := req.ForceRefresh && !unforced && a.spaced(now)
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

// count returns how many calls lie less than span back, and forgets the others.
func (w *window) count(now time.Time, span time.Duration) int {
	for len(*w) > 0 && now.Sub((*w)[0]) >= span {
		*w = (*w)[1:]
	}
	return len(*w)
}

// granted is the answer that hands out a token, with the whole seconds that it
// has left.
func granted(t *token, now time.Time) answer {
	seconds := int64(t.ends.Sub(now) / time.Second)
	return answer{Token: t.value, ExpiresIn: json.RawMessage(strconv.FormatInt(seconds, 10))}
}

// randomToken returns n random characters.
func randomToken(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, by its documentation
	return base64.RawURLEncoding.EncodeToString(b)[:n]
}

// wait returns after d, or when the client has given up.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
