package wechat

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

const (
	// refreshMargin is how much of its life a token has left when it is due. A
	// normal call within the last 300 s is answered with a new token; the 10 s
	// between are for clocks that differ.
	refreshMargin = 290 * time.Second

	// overlap is the last part of a token's life, in which WeChat replaces it at
	// a normal call, and the old token and the new one both work.
	overlap = 300 * time.Second

	// rotationPeriod is the usual life of a token in the cache.
	rotationPeriod = maxLifetime - refreshMargin

	// settleTime is the least time from one answer to the next call for the
	// same account while nothing is wrong: a lifetime of 300 s or less, the
	// least that WeChat documents, must not make every read a call.
	settleTime = 10 * time.Second

	// minTTL is the least ttl that a reader is told. A token with less than
	// this left counts as ended.
	minTTL = 5 * time.Second

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
)

// token is an access token as it is stored. The stored times are constant for
// one token.
type token struct {
	Version     int       `json:"version"`
	AccountID   string    `json:"account_id"` // the account.ID it belongs to
	AccessToken string    `json:"access_token"`
	RotatedAt   time.Time `json:"last_vault_rotation"` // when it was asked for first, in milliseconds
	ExpireTime  time.Time `json:"expire_time"`         // in whole seconds, its end as it was told first

	// EndTime is the token's end if WeChat has named an earlier one since, zero
	// otherwise: ExpireTime is shown, and constant for one token.
	EndTime time.Time `json:"end_time,omitzero"`

	// Epoch is that of the appid's history when WeChat confirmed the token last.
	Epoch int `json:"epoch"`

	// Forced counts how often the account's token was replaced by force.
	Forced int `json:"forced"`

	// RevokedAt is when the last revocation was complete, zero if there was none.
	RevokedAt time.Time `json:"revoked_at,omitzero"`

	// CheckAt is when WeChat is to be asked again about a token that it stood by
	// after a forced call whose outcome nobody knew: that call may still have
	// been on its way. Zero if there is nothing to check.
	CheckAt time.Time `json:"check_at,omitzero"`
}

// epoch is that of the token, if there is one.
func (t *token) epoch() int {
	if t == nil {
		return 0
	}
	return t.Epoch
}

// end is when the token ends, as far as is known.
func (t *token) end() time.Time {
	if t.EndTime.IsZero() {
		return t.ExpireTime
	}
	return t.EndTime
}

// adopt turns an answer into the token to keep. If WeChat handed out the token
// that the engine already has, its times stay as they are, but for an end that
// this machine's clock has passed and WeChat's has not.
func (g *tokenAnswer) adopt(old *token, accountID string, epoch int) *token {
	t := &token{
		Version: schemaVersion, AccountID: accountID, AccessToken: g.token, Epoch: epoch,
		RotatedAt:  g.asked.UTC().Truncate(time.Millisecond),
		ExpireTime: g.end(),
	}
	switch {
	case old == nil:
	case old.AccessToken == g.token:
		t.RotatedAt = old.RotatedAt
		if old.Epoch != epoch {
			t.CheckAt = g.answered.Add(forcedSpacing).UTC().Truncate(time.Second)
		} else if g.asked.Before(old.CheckAt) {
			t.CheckAt = old.CheckAt
		}
		if old.ExpireTime.Sub(g.answered) >= minTTL {
			t.ExpireTime, t.EndTime = old.ExpireTime, old.EndTime
		}
		// The answer tells the end to within the time it took and a second.
		if g.answered.Add(g.lifetime+time.Second).Before(t.end()) || g.end().After(t.end().Add(time.Second)) {
			t.EndTime = time.Time{}
			if g.end().Before(t.ExpireTime) {
				t.EndTime = g.end()
			}
		}
	case t.RotatedAt.Equal(old.RotatedAt):
		// Another token never has the same time, however fast they follow.
		t.RotatedAt = t.RotatedAt.Add(time.Millisecond)
	}
	if old != nil && old.AccountID == accountID {
		t.Forced, t.RevokedAt = old.Forced, old.RevokedAt
		// Near its end WeChat replaces a token by itself.
		if old.AccessToken != g.token && old.Epoch != epoch && old.end().Sub(g.asked) > overlap {
			t.Forced++
		}
	}
	return t
}

// check refuses a token that is about to end.
func (g *tokenAnswer) check() error {
	if g.end().Sub(g.answered) < minTTL {
		return &problem{rule: ruleAnswer, detail: fmt.Sprintf("the token it holds has only %s left", g.lifetime)}
	}
	return nil
}

// end is the earliest moment at which the token can end, by this answer, cut to
// the second.
func (g *tokenAnswer) end() time.Time { return g.asked.Add(g.lifetime).UTC().Truncate(time.Second) }

// due returns when the token of this answer is to be replaced.
func (g *tokenAnswer) due() time.Time {
	due, settled := dueAt(g.asked, g.lifetime), g.answered.Add(min(settleTime, g.lifetime/2))
	if due.Before(settled) {
		return settled
	}
	return due
}

// dueAt returns when a token is to be replaced of which lifetime was left at
// asked.
func dueAt(asked time.Time, lifetime time.Duration) time.Time {
	return asked.Add(max(lifetime-refreshMargin, min(settleTime, lifetime/2)))
}

// state is what is known of one account in memory. It is replaced whole, never
// changed, so that readers take no lock.
type state struct {
	// From the configuration.
	accountID    string
	appID        string
	maxTTL       time.Duration // 0: no cap
	syncInterval time.Duration // 0: off

	token *token    // nil: none was ever fetched
	due   time.Time // when the token is to be replaced
	sync  time.Time // when it is to be compared with WeChat's, zero if never

	// doubted is set while a forced call may have killed the token: it is not
	// handed out until a normal call has confirmed or replaced it.
	doubted bool

	failure     *failure  // the last attempt, if it failed
	lastSuccess time.Time // of a call, since the plugin started

	generation uint64 // of the storage this was read from, see tracked
}

// failure is what is remembered of the attempts that failed since the last one
// that did not.
type failure struct {
	*problem
	at    time.Time
	next  time.Time     // no attempt before this
	count int           // failures in a row
	run   int           // of them, the latest that call for the same backoff
	took  time.Duration // the last attempt
}

// newState is what storage tells of an account, epoch being that of its appid's
// history. The first comparison with WeChat is spread over the interval by
// jitter, from 0 to 1.
func newState(cfg *config, t *token, epoch int, jitter float64) *state {
	st := &state{accountID: cfg.ID, appID: cfg.AppID, maxTTL: cfg.MaxTTL, syncInterval: cfg.SyncInterval}
	if t != nil && t.AccountID == cfg.ID {
		st.token = t
		st.due = dueAt(t.RotatedAt, t.end().Sub(t.RotatedAt))
		st.scheduleSync(wallClock(), jitter)
		if t.Epoch != epoch {
			st = st.doubtedSince(wallClock())
		}
	}
	return st
}

// doubtedSince is the state once a forced call may have killed the token.
func (st *state) doubtedSince(now time.Time) *state {
	next := *st
	next.doubted = true
	if now.Before(next.due) {
		next.due = now
	}
	return &next
}

// is reports whether the state is of this account, as it was or as it is to be.
func (st *state) is(cfg *config) bool { return st != nil && st.accountID == cfg.ID }

// anew is the state once the clock was set back to now: WeChat is to be asked
// about the token at once, whatever failed before.
func (st *state) anew(now time.Time) *state {
	settled := now.Add(-settleTime)
	next := *st
	next.due = now
	if next.lastSuccess.After(settled) {
		next.lastSuccess = settled
	}
	if st.failure != nil {
		f := *st.failure
		f.next = now
		if f.at.After(settled) {
			f.at = settled
		}
		next.failure = &f
	}
	return &next
}

// forced counts how often the account's token was replaced by force.
func (st *state) forced() int {
	if st.token == nil {
		return 0
	}
	return st.token.Forced
}

// reconfigured is the state after a change of the configuration that leaves the
// account the same one. What failed before is forgotten.
func (st *state) reconfigured(cfg *config, jitter float64) *state {
	next := *st
	next.maxTTL, next.syncInterval, next.failure = cfg.MaxTTL, cfg.SyncInterval, nil
	next.scheduleSync(wallClock(), jitter)
	return &next
}

// scheduleSync sets the next comparison. Accounts that were loaded together
// drift apart by up to a tenth of their interval each time.
func (st *state) scheduleSync(now time.Time, fraction float64) {
	st.sync = time.Time{}
	if st.syncInterval > 0 {
		st.sync = now.Add(time.Duration(float64(st.syncInterval) * fraction))
	}
	if t := st.token; t != nil && !t.CheckAt.IsZero() && (st.sync.IsZero() || t.CheckAt.Before(st.sync)) {
		st.sync = t.CheckAt
	}
}

// usable reports whether the token may be handed out.
func (st *state) usable(now time.Time) bool {
	return st.token != nil && !st.doubted && st.token.end().Sub(now) >= minTTL
}

// settled reports whether a read is answered from memory: with a token that is
// not due, or with one that could not be replaced since it is due, while the
// background keeps trying in time.
func (st *state) settled(now time.Time) bool {
	if !st.usable(now) {
		return false
	}
	return now.Before(st.due) || st.failure.holds(now) || st.overdue(now)
}

// overdue reports whether the token is due, the last attempt to replace it
// failed, and the background is in time with the next.
func (st *state) overdue(now time.Time) bool {
	if now.Before(st.due) || st.failure == nil || st.failure.at.Before(st.due) {
		return false
	}
	return now.Sub(st.failure.next) < backgroundLag || st.token.end().Sub(now) > readerMargin
}

// recent reports whether the attempt was made so shortly ago that a report is
// answered from it, unless it left something to be told at once.
func (f *failure) recent(now time.Time) bool {
	return f != nil && f.next.After(f.at) && now.Sub(f.at) < settleTime
}

// holds reports whether it is too early for another attempt.
func (f *failure) holds(now time.Time) bool { return f != nil && now.Before(f.next) }

// ttl returns after how many seconds the token should be read again.
func (st *state) ttl(now time.Time) int64 {
	ttl := retryTTL
	if now.Before(st.due) {
		ttl = st.due.Sub(now)
	}
	if st.maxTTL > 0 {
		ttl = min(ttl, st.maxTTL)
	}
	ttl = min(max(ttl, minTTL), st.token.end().Sub(now))
	return int64(ttl / time.Second)
}

// wake returns when the background has to look at the account, zero if never:
// an account whose token nobody has asked for yet is left alone.
func (st *state) wake() time.Time {
	switch {
	case st.token == nil && st.failure == nil:
		return time.Time{}
	case st.token == nil, st.failure != nil && st.failure.run <= quickRetries:
		return st.failure.next
	}
	at := st.due
	if !st.sync.IsZero() && st.sync.Before(at) {
		at = st.sync
	}
	if f := st.failure; f != nil {
		if retry := f.at.Add(slowRetry); retry.Before(at) {
			at = retry
		}
		if at.Before(f.next) {
			at = f.next
		}
	}
	return at
}

// succeeded is the state after an answer from WeChat, t being the token that
// was made of it.
func (st *state) succeeded(g *tokenAnswer, t *token, jitter float64) *state {
	next := *st
	next.failure, next.lastSuccess = nil, g.answered
	if st.token == nil || st.token.AccessToken != t.AccessToken || t.end().Before(st.token.end()) || !g.asked.Before(st.due) {
		next.due = g.due()
	}
	next.doubted = false
	next.token = t
	next.scheduleSync(g.answered, jitter)
	return &next
}

// failed is the state after an attempt, begun at the given time, that ended in p.
func (st *state) failed(p *problem, begun, now time.Time, jitter float64) *state {
	next := *st
	f := &failure{problem: p, at: now, count: 1, run: 1, took: now.Sub(begun)}
	if last := st.failure; last != nil {
		f.count = last.count + 1
		if last.backoff == p.backoff {
			f.run = last.run + 1
		}
	}
	f.next = now.Add(p.backoff.after(f.run))
	next.failure = f
	next.scheduleSync(now, jitter)
	return &next
}

// readToken returns the stored token, nil if there is none.
func readToken(ctx context.Context, s logical.Storage, name string) (*token, error) {
	t := &token{}
	found, err := readEntry(ctx, s, storageKey(tokenPrefix, name), t)
	if err != nil || !found {
		return nil, err
	}
	return t, nil
}
