package wechat

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// minTTL is the least ttl that a reader is told. A token with less than this left
// counts as ended.
const minTTL = 5 * time.Second

// token is an access token as it is stored. The times that are shown are constant
// for one token.
type token struct {
	Version     int       `json:"version"`
	AccountID   string    `json:"account_id"` // the config.ID it belongs to
	AccessToken string    `json:"access_token"`
	RotatedAt   time.Time `json:"last_vault_rotation"` // when it was asked for first, in milliseconds; see distinguish
	ExpireTime  time.Time `json:"expire_time"`         // in whole seconds, its end as it was told first

	// EndTime is the token's end if WeChat has named an earlier one since, zero
	// otherwise: ExpireTime is shown, and constant for one token.
	EndTime time.Time `json:"end_time,omitzero"`

	// TimedAt is when WeChat was asked for what ExpireTime says, zero if that was at
	// RotatedAt.
	TimedAt time.Time `json:"timed_at,omitzero"`

	// LatestRotation is the latest RotatedAt of all tokens before, zero if this one's is
	// later. SetBacks counts the tokens whose was not, because the clock was set back.
	LatestRotation time.Time `json:"latest_rotation,omitzero"`
	SetBacks       int       `json:"set_backs,omitempty"`

	// Epoch is that of the appid when WeChat confirmed the token last.
	Epoch int64 `json:"epoch"`

	// Credentials is the config.Credentials that WeChat accepted last.
	Credentials string `json:"credentials"`

	// Forced counts how often the account's token was replaced by force, and RevokedAt is
	// when its last leak response was complete. Only builds before this one have written
	// them: the history holds both now.
	Forced    int       `json:"forced,omitempty"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`

	// CheckAt is when WeChat is to be asked again about a token that it still
	// handed out after a forced call whose outcome nobody knew: that call may
	// still have been on its way. Zero if there is nothing to check.
	CheckAt time.Time `json:"check_at,omitzero"`
}

// end is when the token ends, as far as is known.
func (t *token) end() time.Time {
	if t.EndTime.IsZero() {
		return t.ExpireTime
	}
	return t.EndTime
}

// tokenFrom turns an answer of WeChat into the token to keep instead of old, which
// is nil where there is none. epoch is that of the appid at the time of the answer.
//
// If WeChat handed out the token that the engine already has, its times stay as
// they are, but for an end that this machine's clock has passed and WeChat's has
// not.
func tokenFrom(g *tokenAnswer, old *token, cfg *config, epoch int64) *token {
	t := &token{
		Version: schemaVersion, AccountID: cfg.ID, Credentials: cfg.Credentials,
		AccessToken: g.token, Epoch: epoch,
		RotatedAt:  g.asked.UTC().Truncate(time.Millisecond),
		ExpireTime: g.end(),
	}
	switch {
	case old == nil:
	case old.AccessToken == g.token:
		t.keepTimes(g, old)
	default:
		t.RotatedAt, t.LatestRotation, t.SetBacks = distinguish(t.RotatedAt, old.RotatedAt, old.LatestRotation, old.SetBacks)
	}
	return t
}

// distinguish returns the RotatedAt, LatestRotation and SetBacks of what WeChat was asked
// for first at the given time, from those of what it replaces: no token, and no ticket,
// has the RotatedAt of one before it. One that is not later than all of theirs, because
// the clock was set back or two follow in one millisecond, is told apart by its
// microseconds: a thousand such tokens bring another one with the same time only if they
// meet in the same millisecond as well.
func distinguish(asked, rotatedAt, latest time.Time, setBacks int) (time.Time, time.Time, int) {
	if rotatedAt.After(latest) {
		latest = rotatedAt
	}
	if asked.After(latest) {
		return asked, time.Time{}, setBacks
	}
	setBacks++
	return asked.Add(time.Duration(setBacks%1000) * time.Microsecond), latest, setBacks
}

// liesAhead reports whether times of the token can only have been noted while the clock
// was ahead of now.
func (t *token) liesAhead(now time.Time) bool {
	return t.RotatedAt.Sub(now) > clockTolerance || t.CheckAt.Sub(now) > forcedSpacing+clockTolerance || t.TimedAt.Sub(now) > clockTolerance || t.end().Sub(now) > maxLifetime+clockTolerance
}

// keepTimes gives t, made of an answer that brought the old token again, the times
// of that token.
func (t *token) keepTimes(g *tokenAnswer, old *token) {
	t.RotatedAt, t.LatestRotation, t.SetBacks = old.RotatedAt, old.LatestRotation, old.SetBacks
	if old.Epoch != t.Epoch {
		t.CheckAt = g.answered.Add(forcedSpacing).UTC().Truncate(time.Second)
	} else if g.asked.Before(old.CheckAt) {
		t.CheckAt = old.CheckAt
	}
	if old.ExpireTime.Sub(g.answered) >= minTTL {
		t.ExpireTime, t.EndTime, t.TimedAt = old.ExpireTime, old.EndTime, old.TimedAt
	} else {
		t.TimedAt = g.asked.UTC().Truncate(time.Second)
	}
	// The answer tells the end to within the time it took and a second.
	if g.answered.Add(g.lifetime+time.Second).Before(t.end()) || g.end().After(t.end().Add(time.Second)) {
		t.EndTime = time.Time{}
		if g.end().Before(t.ExpireTime) {
			t.EndTime = g.end()
		}
	}
}

// check refuses a token that is about to end.
func (g *tokenAnswer) check() error {
	if g.end().Sub(g.answered) < minTTL {
		return &problem{Rule: upstream.RuleAnswer, Detail: fmt.Sprintf("the token it holds has only %s left", g.lifetime)}
	}
	return nil
}

// end is the earliest moment at which the token can end, by this answer, cut to
// the second.
func (g *tokenAnswer) end() time.Time { return g.asked.Add(g.lifetime).UTC().Truncate(time.Second) }

// readToken returns the stored token, nil if there is none. One without Credentials was
// stored before the first release: the next answer of WeChat replaces it.
func readToken(ctx context.Context, s logical.Storage, name string) (*token, error) {
	t := &token{}
	found, err := readEntry(ctx, s, storageKey(tokenPrefix, name), t)
	if err != nil || !found || t.Credentials == "" {
		return nil, err
	}
	return t, nil
}

// storeToken writes the token unless it is the stored one.
func storeToken(ctx context.Context, s logical.Storage, name string, stored, t *token) error {
	if stored != nil && *stored == *t {
		return nil
	}
	return writeEntry(ctx, s, storageKey(tokenPrefix, name), t)
}
