package wechat

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// This file reads what earlier builds of v0.2 stored: a token for each name, a history of
// forced calls for each appid, and leak responses in the history or, before that, in the
// write-ahead log. From builds before those only the account is read. The file can go when no
// mount has such entries any more; removeOlder drops them at a start.

const (
	olderTokens    = "token/"
	olderTickets   = "ticket/"
	olderHistories = "rotation/"

	// Kinds of entries of the write-ahead log: a leak response, and the guard of a forced
	// call.
	walRevocation = "revocation"
	walForced     = "forced"
)

type olderToken struct {
	AccountID   string    `json:"account_id"`
	AccessToken string    `json:"access_token"`
	RotatedAt   time.Time `json:"last_vault_rotation"`
	ExpireTime  time.Time `json:"expire_time"`
	EndTime     time.Time `json:"end_time"`
	TimedAt     time.Time `json:"timed_at"`
	Latest      time.Time `json:"latest_rotation"`
	SetBacks    int       `json:"set_backs"`
	Epoch       int64     `json:"epoch"`
	Credentials string    `json:"credentials"`
	Forced      int       `json:"forced"`
	RevokedAt   time.Time `json:"revoked_at"`
}

func (t *olderToken) credential() kept.Credential {
	c := kept.Credential{
		Value: t.AccessToken, Rotated: t.RotatedAt, Latest: t.Latest, SetBacks: t.SetBacks,
		Shown: t.ExpireTime, End: t.EndTime, Timed: t.TimedAt,
	}
	if c.End.IsZero() {
		c.End = c.Shown
	}
	if c.Timed.IsZero() {
		c.Timed = c.Rotated
	}
	return c
}

// hasOlder reports whether an earlier build stored a token for this name.
func hasOlder(ctx context.Context, s logical.Storage, name string) (bool, error) {
	entry, err := s.Get(ctx, storageKey(olderTokens, name))
	return entry != nil, err
}

// readOlder returns a record with what an older history holds, nil if there is none.
func readOlder(ctx context.Context, s logical.Storage, identity string) (*record, error) {
	var older struct {
		Epoch  int64       `json:"epoch"`
		Forced []time.Time `json:"forced"`
		Epochs []int64     `json:"epochs"`

		Leak *struct {
			By        string    `json:"by"`
			Requested time.Time `json:"requested"`
			Left      int       `json:"left"`
		} `json:"leak"`
		Revoked time.Time `json:"revoked"`
	}
	found, err := readEntry(ctx, s, storageKey(olderHistories, identity), &older)
	if err != nil || !found || len(older.Forced) != len(older.Epochs) {
		return nil, err
	}
	r := &record{Version: schemaVersion, ledger: ledger{Fence: older.Epoch, RevokedAt: older.Revoked}}
	for i, at := range older.Forced {
		r.Forced = append(r.Forced, forcedCall{At: at, Fence: older.Epochs[i]})
	}
	if l := older.Leak; l != nil && l.Left > 0 && wallClock().Sub(l.Requested) < leakAge {
		r.Leak = &leak{Name: l.By, Requested: l.Requested, Left: l.Left}
		r.Leak.begunAt(r.Forced)
	}
	return r, nil
}

// adoptOlder returns st with what an earlier build stored for this name: its token, whether
// WeChat has accepted its credentials, and a pending leak response.
func adoptOlder(ctx context.Context, s logical.Storage, name string, cfg *config, st *state, p kept.Policy, leaks []olderLeak) (*state, error) {
	t := &olderToken{}
	found, err := readEntry(ctx, s, storageKey(olderTokens, name), t)
	if errors.Is(err, errUnreadable) {
		return st, nil // WeChat gives the token once more
	}
	if err != nil || !found || t.AccountID != cfg.ID || t.Credentials == "" { // those of before v0.2 name none
		return st, err
	}
	next := *st
	next.stored = nil
	// Each name had a copy of the token. The latest counts.
	later := st.Value == "" || st.Answered.IsZero() && t.RotatedAt.After(st.Rotated)
	if later && t.Epoch == st.Fence {
		next.State, next.Named = kept.Loaded(t.credential(), p, moment(), randomFraction()), st.Fence
	}
	next.RevokedAt = latest(next.RevokedAt, t.RevokedAt)
	next.admit(name, cfg)
	next.Names[name] = admission{ID: cfg.ID, Credentials: t.Credentials}
	for _, l := range leaks {
		if l.Name == name && l.AccountID == cfg.ID {
			next.Leak = l.pending(&next, t.Forced)
		}
	}
	return &next, nil
}

// olderLeak is a leak response in the write-ahead log: the token of the name was to
// be replaced by force until it was Target times.
type olderLeak struct {
	Name      string    `json:"name"`
	AccountID string    `json:"account_id"`
	Target    int       `json:"target"`
	Requested time.Time `json:"requested"`
	Epoch     int64     `json:"epoch"` // of the first of its calls; 0 if that is known to have been made
}

// pending is the leak response as the record is to hold it after so many forced refreshes,
// nil if nothing is to follow.
func (l *olderLeak) pending(st *state, forced int) *leak {
	begun := l.Epoch == 0 || slices.ContainsFunc(st.Forced, func(f forcedCall) bool { return f.Fence == l.Epoch })
	complete := !st.RevokedAt.Before(l.Requested.Truncate(timestampUnit))
	left := min(2, l.Target-forced)
	if st.Leak != nil || !begun || complete || left <= 0 || wallClock().Sub(l.Requested) >= leakAge {
		return st.Leak
	}
	adopted := &leak{Name: l.Name, Requested: l.Requested, Left: left}
	adopted.begunAt(st.Forced)
	return adopted
}
