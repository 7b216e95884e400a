package wechat

import (
	"bytes"
	"crypto/sha256"
	"time"
)

// leakAge is how long the second forced refresh of a leak response is tried for. A
// leaked token has run out by then.
const leakAge = day

// The distances of a leak response's calls. One that brings the same token again, or an
// answer that does not tell what became of it, counts for the day's budget: a day of them
// leaves something of it.
var (
	backoffLeak    = backoff{First: forcedSpacing, Most: 10 * time.Minute}
	backoffCounted = backoff{First: forcedSpacing, Most: 4 * time.Hour}
)

// latest is the token that WeChat named last.
type latest struct {
	token     string // "" if none is known
	rotatedAt time.Time
	end       time.Time
}

// leak is the answer to a leaked token, as long as it is not complete. WeChat lets a
// token live on for a while after the forced refresh that replaced it, and kills it at
// the next one, so the token is to be replaced twice.
//
// It stands in the history of its appid. The Put that announces its first forced call
// stores it: the two are made together, undone together, and found together after a
// crash. It is replaced whole, never changed, so that it is read without a lock.
type leak struct {
	By        string    `json:"by"`   // the account that asked for it
	Turn      string    `json:"turn"` // the account whose credentials make the next call
	Requested time.Time `json:"requested"`
	Left      int       `json:"left"`  // how often the token is still to be replaced by force
	Calls     int       `json:"calls"` // forced calls since the request, but those that certainly did nothing
	Next      time.Time `json:"next"`  // no forced call before this

	// Token is the digest of the token that WeChat named last, and End that token's end.
	// Another token that WeChat names long before End shows that a forced call whose answer
	// was lost has replaced it.
	Token []byte    `json:"token"`
	End   time.Time `json:"end,omitzero"`

	// In memory only: a restart forgets what failed.
	giveUp   time.Time // no call after this, by the clock that cannot be set
	retry    time.Time // no call before this: the last attempt failed
	failures int       // of attempts in a row, since the last forced call was announced
	quota    bool      // the last of them failed because the daily quota is used up
}

// newLeak is a leak response by the account, whose first call is yet to be made.
func newLeak(by, token string, end time.Time) *leak {
	return &leak{
		By: by, Turn: by, Requested: wallClock().UTC(), Left: 2, Token: tokenDigest(token), End: end,
		giveUp: time.Now().Add(leakAge),
	}
}

func tokenDigest(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// due is when the next call is to be made.
func (l *leak) due() time.Time {
	if l.retry.After(l.Next) {
		return l.retry
	}
	return l.Next
}

// expired reports whether l is given up.
func (l *leak) expired() bool { return time.Now().After(l.giveUp) }

// distance is how long after a forced call the next one may be made.
func (l *leak) distance() time.Duration {
	return backoffCounted.After(max(1, l.Calls-1), randomFraction())
}

// called is l after one more forced call, which reaches WeChat at the given time at the
// latest.
func (l *leak) called(at time.Time) *leak {
	next := *l
	next.Calls++
	next.Next = at.Add(next.distance()).UTC()
	next.retry, next.failures, next.quota = time.Time{}, 0, false
	return &next
}

// named is l after WeChat has named this token. One token in the place of another counts
// as replaced by force if a forced call brought it, or if WeChat itself would not have
// replaced the other yet.
func (l *leak) named(named latest, forced bool) *leak {
	next := *l
	sum := tokenDigest(named.token)
	switch same := bytes.Equal(sum, l.Token); {
	case same && !l.End.IsZero():
		return l
	case !same && (forced || l.End.Sub(named.rotatedAt) > overlap):
		next.Left--
	}
	next.Token, next.End = sum, named.end.UTC()
	return &next
}

// checked is l as it is read from storage, or after the clock was set back to now: what
// lies ahead further than it can have been noted is brought near. The clock that can be
// set decides only once, here, when l is given up.
func (l *leak) checked(now time.Time) *leak {
	next := *l
	if latest := now.Add(l.distance()); l.Next.After(latest) {
		next.Next = latest
	}
	if l.End.Sub(now) > maxLifetime+clockTolerance {
		next.End = time.Time{} // then a normal call's answer shows no replacement
	}
	if l.giveUp.IsZero() {
		next.giveUp = time.Now().Add(leakAge - max(0, now.Sub(l.Requested)))
	}
	next.retry = time.Time{}
	return &next
}

// failed notes an attempt that ended in err.
func (l *leak) failed(err error) {
	l.failures++
	l.quota = isQuota(problemOf(err))
	l.retry = wallClock().Add(backoffLeak.After(l.failures, randomFraction()))
}

// mended ends the wait for what a person has mended, but not the one between two forced
// calls.
func (l *leak) mended() {
	l.retry, l.failures, l.quota = time.Time{}, 0, false
	if next := wallClock().Add(forcedSpacing); l.Next.After(next) {
		l.Next = next
	}
}

// olderLeak is a leak response as builds before this one stored it: an entry of the
// write-ahead log. It is turned into a field of the history when its account is loaded,
// and Vault's tick drops the entry.
type olderLeak struct {
	Name      string    `json:"name"`
	AccountID string    `json:"account_id"`
	Target    int       `json:"target"` // of token.Forced
	Requested time.Time `json:"requested"`
	Epoch     int64     `json:"epoch"` // the one that its first forced call began; 0 if that call is known to have been made
}
