package wechat

import (
	"crypto/sha256"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// refreshMargin is how much of its life a token has left when it is due. A
	// normal call within the last 300 s is answered with a new token; the 10 s
	// between are for clocks that differ.
	refreshMargin = 290 * time.Second

	// rotationPeriod is the usual life of a token in the cache.
	rotationPeriod = maxLifetime - refreshMargin

	// minCallInterval is the least time from one answer to the next call for the
	// same account while nothing is wrong: a lifetime of 300 s or less, the least
	// that WeChat documents, must not make every read a call.
	minCallInterval = 10 * time.Second

	// retryTTL is the ttl of a token that is due but could not be replaced.
	retryTTL = 10 * time.Second

	// readerMargin is how much of a token's life is left when its readers ask
	// WeChat themselves if the background is late by backgroundLag, busy with
	// accounts that time out: every reader is to have two minutes of that life.
	readerMargin  = 2*time.Minute + 2*retryTTL
	backgroundLag = retryTTL

	// quickRetries is how many times a failure is tried again by its backoff while
	// no token is due. After that slowRetry, or the next comparison, is early
	// enough.
	quickRetries = 5
	slowRetry    = defaultSyncInterval

	// firstSync is how soon after its loading a token is compared with WeChat's for
	// the first time: what was noticed before a restart, and could not be stored, is
	// not known any longer.
	firstSync = time.Minute

	// earlierTokens is how many of the tokens before the current one are remembered,
	// to know a report of one of them.
	earlierTokens = 8
)

// The states of an account.
const (
	statePending  = "pending"  // no token was ever fetched
	stateHealthy  = "healthy"  // the token holds and the last attempt succeeded
	stateDegraded = "degraded" // the token holds, but the last attempt failed or storage does
	stateFailing  = "failing"  // there is no valid token
)

// state is what is known of one account in memory. It is replaced whole, never
// changed, so that readers take no lock. Only the epoch of its appid changes beside
// it.
type state struct {
	// From the configuration.
	accountID    string
	appID        string
	accepted     bool          // WeChat has accepted the credentials as they are
	maxTTL       time.Duration // 0: no cap
	syncInterval time.Duration // 0: off
	timeout      time.Duration // request_timeout
	way          string        // as config.way gives it

	// config is the configuration itself, once a login has read it; nil inside until
	// then, since few accounts have any. Every change of the configuration brings
	// another place for it, so that nobody puts back what was read before.
	config *atomic.Pointer[config]

	appid *appid
	token *token    // nil: none was ever fetched
	due   time.Time // when the token is to be replaced
	sync  time.Time // when it is to be compared with WeChat's, zero if never

	failure     *failure      // the last attempt, if it failed
	took        time.Duration // the last attempt, whatever came of it
	unstored    *failure      // the last attempt to store what WeChat has answered, if it failed
	lastSuccess time.Time     // of a call, since the plugin started
	compared    bool          // what is stored was looked at again after a normal call, since the plugin started

	// Reports of the current token by which WeChat stood.
	rejections    int
	lastRejection time.Time

	earlier [][sha256.Size]byte // digests of the tokens before the current one, the latest first

	version uint64 // of the storage this was read from, see account.version

	era  int64     // of the machine's clock when the first of these times was noted
	ends time.Time // the token's end by the steady clock
}

// failure is what is remembered of the attempts that failed since the last one
// that did not.
type failure struct {
	*problem
	begun time.Time // the attempt
	at    time.Time // its end
	next  time.Time // no attempt before this
	count int       // failures in a row
	run   int       // of them, the latest that call for the same backoff
}

// after returns the failure that follows f, which may be nil: an attempt that ended
// in p.
func (f *failure) after(p *problem, now time.Time) *failure {
	next := &failure{problem: p, begun: now, at: now, count: 1, run: 1}
	if f != nil {
		next.count = f.count + 1
		if f.Backoff == p.Backoff {
			next.run = f.run + 1
		}
	}
	next.next = now.Add(p.Backoff.After(next.run, randomFraction()))
	return next
}

// recent reports whether the attempt was made so shortly ago that a report is
// answered from it, unless it left something to be told at once.
func (f *failure) recent(now time.Time) bool {
	return f != nil && f.next.After(f.at) && now.Sub(f.at) < minCallInterval
}

// syncJitter is the part of sync_interval until the next comparison. Accounts that
// were loaded together drift apart by up to a tenth of it each time.
func syncJitter() float64 { return 0.9 + 0.1*randomFraction() }

// newState is what storage tells of an account. The first comparison with WeChat
// comes within firstSync, spread over it by jitter, from 0 to 1.
func newState(cfg *config, ap *appid, t *token, jitter float64) *state {
	st := (&state{appid: ap, era: era()}).configured(cfg)
	if t == nil || t.AccountID != cfg.ID {
		return st
	}
	st.token = t
	st.ends = time.Now().Add(maxLifetime) // the wall clock may be wrong
	st.accepted = t.Credentials == cfg.Credentials
	st.due = dueAt(t.RotatedAt, t.end().Sub(t.RotatedAt))
	st.scheduleSync(wallClock(), min(st.syncInterval, firstSync), jitter)
	return st
}

// remember returns st, which was read from storage, completed by what last knew of the
// same account and storage does not.
func (st *state) remember(last *state) *state {
	next := *st
	if last.unstored != nil {
		next.token, next.due, next.sync, next.ends = last.token, last.due, last.sync, last.ends
	}
	next.era = min(next.era, last.era)
	next.failure, next.took, next.unstored, next.lastSuccess, next.compared = last.failure, last.took, last.unstored, last.lastSuccess, last.compared
	next.rejections, next.lastRejection, next.earlier = last.rejections, last.lastRejection, last.earlier
	return &next
}

// configured is the state with what the configuration says, the token aside.
func (st *state) configured(cfg *config) *state {
	next := *st
	next.accountID, next.appID, next.maxTTL, next.syncInterval = cfg.ID, cfg.AppID, cfg.MaxTTL, cfg.SyncInterval
	next.timeout, next.way = cfg.RequestTimeout, cfg.way()
	next.config = &atomic.Pointer[config]{}
	return &next
}

// reconfigured is the state after a change of the configuration that leaves the
// account the same one. What failed before is forgotten.
func (st *state) reconfigured(cfg *config) *state {
	next := st.configured(cfg)
	next.failure = nil
	if next.token != nil {
		next.accepted = next.token.Credentials == cfg.Credentials
		next.scheduleSync(wallClock(), next.syncInterval, syncJitter())
	}
	return next
}

// sameAccount reports whether the state is of this account, as it was or as it is to
// be.
func (st *state) sameAccount(cfg *config) bool {
	return st != nil && cfg != nil && st.accountID == cfg.ID
}

// scheduleSync sets the next comparison, a fraction of interval from now.
func (st *state) scheduleSync(now time.Time, interval time.Duration, fraction float64) {
	st.sync = time.Time{}
	if interval > 0 {
		st.sync = now.Add(time.Duration(float64(interval) * fraction))
	}
	if t := st.token; t != nil && !t.CheckAt.IsZero() && (st.sync.IsZero() || t.CheckAt.Before(st.sync)) {
		st.sync = t.CheckAt
	}
}

// unconfirmed reports whether the token may be dead: a forced call was begun, or a
// replacement by somebody outside was noticed, since WeChat confirmed it last.
func (st *state) unconfirmed() bool {
	return st.token != nil && st.token.Epoch != st.appid.epoch.Load()
}

// left returns what is left of the token's life, by the clock that says less: the wall
// clock may have been set back, and the steady one stands still while the machine sleeps.
func (st *state) left(now time.Time) time.Duration {
	left := st.token.end().Sub(now)
	if !st.ends.IsZero() {
		left = min(left, time.Until(st.ends))
	}
	return left
}

// usable reports whether the token may be handed out.
func (st *state) usable(now time.Time) bool {
	return st.token != nil && st.left(now) >= minTTL && !st.unconfirmed()
}

// dueTime returns when the token is, or was, to be replaced or confirmed.
func (st *state) dueTime() time.Time {
	if st.unconfirmed() {
		if at := st.appid.changedAt(); at.Before(st.due) {
			return at
		}
	}
	return st.due
}

// waits reports whether it is too early for another attempt. A failure of before the
// token was due does not delay the first attempt at the due one.
func (st *state) waits(now time.Time) bool {
	f := st.failure
	if f == nil || !now.Before(f.next) {
		return false
	}
	due := st.dueTime()
	return st.token == nil || now.Before(due) || !f.begun.Before(due)
}

// servable reports whether a read is answered from memory: with a token that is
// not due, or with one that could not be replaced since it is due, while the
// background keeps trying in time.
func (st *state) servable(now time.Time) bool {
	if !st.usable(now) {
		return false
	}
	return now.Before(st.due) || st.waits(now) || st.overdue(now)
}

// overdue reports whether the token is due, the last attempt to replace it
// failed, and the background is in time with the next.
func (st *state) overdue(now time.Time) bool {
	if now.Before(st.due) || st.failure == nil || st.failure.begun.Before(st.due) {
		return false
	}
	return now.Sub(st.failure.next) < backgroundLag || st.left(now) > readerMargin
}

// ttl returns after how many seconds the token should be read again. It is rounded
// up, so that whoever waits for it does not come just before the token is due.
func (st *state) ttl(now time.Time) int64 {
	ttl := retryTTL
	if now.Before(st.due) {
		ttl = st.due.Sub(now)
	}
	if st.maxTTL > 0 {
		ttl = min(ttl, st.maxTTL)
	}
	seconds := int64((max(ttl, minTTL) + time.Second - 1) / time.Second)
	return min(seconds, int64(st.left(now)/time.Second))
}

// told is the failure as an answer from memory.
func (st *state) told(now time.Time) *problem {
	f, next := st.failure, st.failure.next
	if at := st.nextAttempt(); at.Before(next) {
		next = at
	}
	if !now.Before(next) {
		next = f.at.Add(minCallInterval) // see recent
	}
	return f.Remembered(f.at, next)
}

// wake returns when the background has to look at the account, zero if never:
// an account whose token nobody has asked for yet is left alone.
func (st *state) wake() time.Time {
	at := st.nextAttempt()
	if st.unstored != nil && (at.IsZero() || st.unstored.next.Before(at)) {
		return st.unstored.next
	}
	return at
}

// nextAttempt returns when WeChat is to be asked next, zero if never.
func (st *state) nextAttempt() time.Time {
	f := st.failure
	if st.token == nil {
		if f == nil {
			return time.Time{}
		}
		return f.next
	}
	due := st.dueTime()
	if f != nil && !f.begun.Before(due) {
		return f.next
	}
	at := due
	if !st.sync.IsZero() && st.sync.Before(at) {
		at = st.sync
	}
	if f == nil {
		return at
	}
	retry := f.next
	if f.run > quickRetries && retry.Before(f.at.Add(slowRetry)) {
		retry = f.at.Add(slowRetry)
	}
	if at.Before(f.next) || retry.Before(at) {
		at = retry
	}
	if due.Before(at) {
		return due
	}
	return at
}

// dueAt returns when a token is to be replaced of which lifetime was left at
// asked.
func dueAt(asked time.Time, lifetime time.Duration) time.Time {
	return asked.Add(max(lifetime-refreshMargin, min(minCallInterval, lifetime/2)))
}

// due returns when the token of this answer is to be replaced.
func (g *tokenAnswer) due() time.Time {
	due, earliest := dueAt(g.asked, g.lifetime), g.answered.Add(min(minCallInterval, g.lifetime/2))
	if due.Before(earliest) {
		return earliest
	}
	return due
}

// succeeded is the state after an answer from WeChat, t being the token that
// was made of it.
func (st *state) succeeded(g *tokenAnswer, t *token, jitter float64) *state {
	next := *st
	next.failure, next.lastSuccess, next.accepted = nil, g.answered, true
	next.era, next.ends = min(st.era, g.era), g.ends
	next.took = g.answered.Sub(g.asked)
	changed := st.token == nil || st.token.AccessToken != t.AccessToken
	if changed || t.end().Before(st.token.end()) || !g.asked.Before(st.dueTime()) {
		next.due = g.due()
	}
	if changed {
		next.rejections, next.lastRejection = 0, time.Time{}
		if st.token != nil {
			next.earlier = slices.Insert(slices.Clone(st.earlier), 0, sha256.Sum256([]byte(st.token.AccessToken)))
			next.earlier = next.earlier[:min(len(next.earlier), earlierTokens)]
		}
	}
	next.token = t
	next.scheduleSync(g.answered, next.syncInterval, jitter)
	return &next
}

// failed is the state after an attempt, begun at the given time, that ended in p.
func (st *state) failed(p *problem, begun, now time.Time, jitter float64) *state {
	next := *st
	next.failure, next.took = st.failure.after(p, now), now.Sub(begun)
	next.failure.begun = begun
	next.scheduleSync(now, next.syncInterval, jitter)
	return &next
}

// recheck is the state once the clock was set back to now: WeChat is to be asked
// about the token at once, whatever failed before.
//
// present is the era, read before now was: another set-back may have been noticed since.
func (st *state) recheck(now time.Time, present int64) *state {
	longAgo := now.Add(-minCallInterval)
	next := *st
	next.era, next.due, next.compared = present, now, false
	if t := st.token; t != nil && t.CheckAt.Sub(now) > forcedSpacing {
		sooner := *t
		sooner.CheckAt = now.Add(forcedSpacing).UTC().Truncate(time.Second)
		next.token = &sooner
	}
	if next.lastSuccess.After(longAgo) {
		next.lastSuccess = longAgo
	}
	if st.failure != nil {
		f := *st.failure
		f.next = now
		if f.at.After(longAgo) {
			f.at = longAgo
		}
		if f.begun.After(longAgo) {
			f.begun = longAgo
		}
		next.failure = &f
	}
	if st.unstored != nil {
		f := *st.unstored
		f.next = now
		next.unstored = &f
	}
	return &next
}

// rejected is the state after a report of the current token by which WeChat stood.
func (st *state) rejected(now time.Time) *state {
	next := *st
	next.rejections++
	next.lastRejection = now
	return &next
}

// wasEarlier reports whether value is one of the tokens before the current one, as
// far as they are remembered.
func (st *state) wasEarlier(value string) bool {
	return len(st.earlier) > 0 && value != "" && !st.isCurrent(value) && slices.Contains(st.earlier, sha256.Sum256([]byte(value)))
}

// isCurrent reports whether value is the current token.
func (st *state) isCurrent(value string) bool {
	return st.token != nil && st.token.AccessToken == value
}

// storedToken is the token of the state as far as it is known to be in storage.
func (st *state) storedToken() *token {
	if st == nil || st.unstored != nil {
		return nil
	}
	return st.token
}

// sameToken reports whether the token is that of the other state. The nil state has
// none.
func (st *state) sameToken(other *state) bool {
	return st != nil && other.token != nil && st.isCurrent(other.token.AccessToken)
}

// isAnother reports whether somebody to whom WeChat rejected a token, which may be
// empty, will find another one by reading again, before being what was known when
// they said so. After a restart that can be the rejected one though nothing was known.
func (st *state) isAnother(before *state, rejected string) bool {
	return st.wasEarlier(rejected) || !st.sameToken(before) && !st.isCurrent(rejected)
}

// budget returns how many forced refreshes the account may still make today. One
// whose credentials WeChat has not accepted does not learn what the others made.
func (st *state) budget() int {
	if !st.accepted {
		return forcedPerDay
	}
	return st.appid.budget()
}

// leak returns the leak response that the account of this name is told of, nil if there is
// none: of its own, or of another account that has the same token. What has a token was
// accepted, and is told on when it gets a secret that WeChat has not tried.
func (st *state) leak(name string) *leak {
	if l := st.appid.leak.Load(); l != nil && (st.token != nil || l.By == name) {
		return l
	}
	return nil
}

// adopt takes r up if it is of the account of this name, unless it is complete, given up or
// was never begun.
func (st *state) adopt(r olderLeak, name string) {
	ap := st.appid
	ap.mu.Lock()
	defer ap.mu.Unlock()
	h, now := &ap.history, wallClock()
	begun := r.Epoch == 0 || slices.ContainsFunc(h.Forced, func(f forcedCall) bool { return f.Epoch == r.Epoch })
	over := !h.Revoked.Before(r.Requested) || now.Sub(r.Requested) >= leakAge
	if r.Name != name || r.AccountID != st.accountID || ap.leak.Load() != nil || !begun || over {
		return
	}
	l := &leak{By: name, Turn: name, Requested: r.Requested, Left: min(2, r.Target), Next: now}
	if t := st.token; t != nil {
		l.Left, l.Token, l.End = min(2, r.Target-t.Forced), tokenDigest(t.AccessToken), t.end()
	}
	for _, f := range h.Forced {
		if !f.At.Before(r.Requested) {
			l = l.called(f.At)
		}
	}
	if l.Left > 0 {
		ap.setLeak(l.checked(now))
		ap.wakeAll()
	}
}

// revokedAt returns when the last leak response for the account's token was complete, zero
// if none was, or if the account may not know.
func (st *state) revokedAt() time.Time {
	if st.token == nil {
		return time.Time{}
	}
	return st.appid.revokedAt()
}

// trouble returns what last_error shows: the failure of the last attempt, or else
// that of storage. It is nil if there is neither.
func (st *state) trouble() *failure {
	if st.failure != nil {
		return st.failure
	}
	return st.unstored
}

// health is the account's state in one word.
func (st *state) health(now time.Time) string {
	switch {
	case st.token == nil && st.failure == nil:
		return statePending
	case !st.usable(now):
		return stateFailing
	case st.trouble() != nil:
		return stateDegraded
	}
	return stateHealthy
}
