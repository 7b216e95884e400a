package wechat

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// revocationAge is how long the second forced refresh of a revocation is tried
// for.
const revocationAge = day

// The distances of a revocation's attempts. One that gets the same token again
// counts at WeChat: a day of them leaves something of the day's budget.
var (
	backoffRevocation = backoff{forcedSpacing, time.Hour}
	backoffSame       = backoff{forcedSpacing, 4 * time.Hour}
)

// revocation is a leak response that is not complete: the token has to be
// replaced by force until it was Target times.
type revocation struct {
	Name      string    `json:"name"`
	AccountID string    `json:"account_id"`
	Target    int       `json:"target"` // of token.Forced
	Requested time.Time `json:"requested"`

	// In memory only, guarded by the account's lock.
	walID    string
	next     time.Time // no attempt before this
	failures int
}

// announceRevocation announces two forced refreshes in the write-ahead log,
// which keeps them from being forgotten whatever happens in between.
func (k *keeper) announceRevocation(ctx context.Context, s logical.Storage, name string, st *state) (*revocation, error) {
	r := &revocation{Name: name, AccountID: st.accountID, Target: st.forced() + 2, Requested: wallClock().UTC()}
	if err := r.announce(ctx, s); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotBegun, err)
	}
	return r, nil
}

// announce writes r into the write-ahead log.
func (r *revocation) announce(ctx context.Context, s logical.Storage) (err error) {
	if r.walID, err = framework.PutWAL(ctx, s, walRevocation, r); err != nil {
		// The entry may have been written all the same.
		_ = framework.DeleteWAL(ctx, s, r.walID)
	}
	return err
}

// moveRevocation announces the revocation of the account whose state is st, if one
// is pending, for cfg, which this name is about to stand for: with another
// base_url it still has the token that leaked. It returns nil if there is nothing
// to move. The old announcement stays; Vault's tick drops whichever of the two is
// not of the account that is configured.
func moveRevocation(ctx context.Context, s logical.Storage, name string, st *state, cfg *config) (*revocation, error) {
	if st == nil || st.appID != cfg.AppID {
		return nil, nil
	}
	// Memory need not know it yet, or still knows one of an account before.
	r, err := openRevocation(ctx, s, name, st)
	if r == nil {
		return nil, err
	}
	r.AccountID, r.Target = cfg.ID, r.Target-st.forced()
	return r, r.announce(ctx, s)
}

// expired reports whether r is tried no longer.
func (r *revocation) expired() bool { return wallClock().Sub(r.Requested) > revocationAge }

// pendRevocation has the background carry out r for the account of this name, or
// none if r is nil, and returns what was pending before.
func (k *keeper) pendRevocation(name string, r *revocation) *revocation {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.revocations[name]
	if delete(k.revocations, name); r != nil {
		k.revocations[name] = r
	}
	return old
}

// pendingRevocation returns what is pending for the account, nil if nothing is.
func (k *keeper) pendingRevocation(name string) *revocation {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.revocations[name]
}

// dropRevocation ends r, complete or not.
func (k *keeper) dropRevocation(ctx context.Context, s logical.Storage, r *revocation) {
	k.mu.Lock()
	if k.revocations[r.Name] == r {
		delete(k.revocations, r.Name)
	}
	k.mu.Unlock()
	if err := framework.DeleteWAL(ctx, s, r.walID); err != nil {
		k.log.Warn("a revocation that has ended could not be taken out of the write-ahead log: it is looked at again", "account", r.Name, "error", err)
	}
}

// revoke takes the next step of a revocation, from the background. The caller
// holds the lock.
func (k *keeper) revoke(s logical.Storage, t *tracked, st *state, r *revocation) {
	ctx, cancel := detached(k.ctx)
	defer cancel()
	cfg, err := loadConfig(ctx, s, t.name)
	switch {
	case err != nil:
		r.next = wallClock().Add(reloadInterval)
		return
	case cfg == nil || cfg.ID != r.AccountID:
		k.dropRevocation(ctx, s, r)
		return
	case r.expired():
		k.log.Error("a revocation was given up after a day: the leaked token has run out by itself", "account", t.name, "appid", cfg.AppID)
		k.dropRevocation(ctx, s, r)
		return
	}
	if st.doubted {
		// Nobody knows what became of the last forced call: WeChat does.
		if st, err = k.refresh(ctx, s, t, st); err != nil || st.doubted {
			r.retry(backoffRevocation)
			return
		}
	}
	if st.forced() < r.Target {
		done, err := k.force(ctx, s, t, st, cfg)
		switch p := problemOf(err); {
		case p != nil && p.local: // spacing or budget
			r.next = wallClock().Add(p.backoff.first)
			return
		case err != nil:
			k.log.Warn("a revocation waits for its forced refresh", "account", t.name, "appid", cfg.AppID, "error", err)
			r.retry(backoffRevocation)
			return
		case done.same:
			r.retry(backoffSame)
			return
		case done.state.forced() < r.Target: // the first of the two was never made
			r.next = wallClock().Add(forcedSpacing)
			return
		}
		st = done.state
	}
	revoked := *st.token
	revoked.RevokedAt = wallClock().UTC().Truncate(time.Second)
	if err := storeToken(ctx, s, t.name, st.token, &revoked); err != nil {
		r.next = wallClock().Add(reloadInterval)
		return
	}
	next := *st
	next.token = &revoked
	t.state.Store(&next)
	k.log.Info("revocation complete", "account", t.name, "appid", cfg.AppID)
	k.dropRevocation(ctx, s, r)
}

// equal reports whether r and the other are of the same request.
func (r *revocation) equal(other *revocation) bool {
	return r != nil && r.Name == other.Name && r.AccountID == other.AccountID && r.Requested.Equal(other.Requested)
}

// retry sets the next attempt.
func (r *revocation) retry(b backoff) {
	r.failures++
	r.next = wallClock().Add(b.after(r.failures))
}

// resumeRevocation takes up a revocation that the write-ahead log still holds.
// It returns nil if the entry can go. The caller holds the account's lock.
func (k *keeper) resumeRevocation(ctx context.Context, s logical.Storage, t *tracked, r *revocation) error {
	if k.pendingRevocation(r.Name).equal(r) {
		return errPending
	}
	entry, err := findRevocation(ctx, s, r)
	if err != nil || entry == nil {
		return err // it ended while the framework handed it out
	}
	cfg, err := loadConfig(ctx, s, r.Name)
	if err != nil {
		return err
	}
	if cfg == nil || cfg.ID != r.AccountID || r.expired() {
		return nil
	}
	tok, err := readToken(ctx, s, r.Name)
	if err != nil {
		return err
	}
	if tok != nil && tok.AccountID == r.AccountID && tok.Forced >= r.Target && !tok.RevokedAt.Before(r.Requested.Truncate(time.Second)) {
		return nil
	}
	if k.pendingRevocation(r.Name) == nil {
		k.pendRevocation(r.Name, entry)
		if t.current() == nil {
			k.reload(ctx, s, t)
		}
	}
	return errPending
}

// isRevoking reports whether a revocation of the account is pending. Until the
// accounts are loaded, which on a standby they never are, storage tells.
func (k *keeper) isRevoking(ctx context.Context, s logical.Storage, name string, st *state) bool {
	if k.pendingRevocation(name) != nil {
		return true
	}
	select {
	case <-k.loaded:
		return false
	default:
	}
	r, _ := openRevocation(ctx, s, name, st) // what cannot be read is not shown
	return r != nil
}

// openRevocation returns the revocation in the write-ahead log by which a forced
// refresh of the account whose state is st is still to come, the latest if there
// are several. With nil the error tells what could not be read.
func openRevocation(ctx context.Context, s logical.Storage, name string, st *state) (*revocation, error) {
	ids, err := framework.ListWAL(ctx, s)
	if err != nil {
		return nil, err
	}
	all, err := revocations(ctx, s, ids)
	var latest *revocation
	for _, r := range all {
		open := r.Name == name && r.AccountID == st.accountID && st.forced() < r.Target && !r.expired()
		if open && (latest == nil || latest.Requested.Before(r.Requested)) {
			latest = r
		}
	}
	return latest, err
}

// revocations reads those of the write-ahead log's entries. One that cannot be
// read keeps none of the others back.
func revocations(ctx context.Context, s logical.Storage, ids []string) ([]*revocation, error) {
	var all []*revocation
	var errs []error
	for _, id := range ids {
		entry, err := framework.GetWAL(ctx, s, id)
		if err != nil || entry == nil || entry.Kind != walRevocation {
			errs = append(errs, err)
			continue
		}
		r := &revocation{}
		if err := decodeWAL(entry.Data, r); err != nil {
			errs = append(errs, err)
			continue
		}
		r.walID, r.next = id, r.Requested.Add(forcedSpacing)
		if latest := wallClock().Add(forcedSpacing); latest.Before(r.next) {
			r.next = latest // the clock was set back since
		}
		all = append(all, r)
	}
	return all, errors.Join(errs...)
}

// findRevocation returns the entry of the write-ahead log that says the same as
// r, nil if there is none any more.
func findRevocation(ctx context.Context, s logical.Storage, r *revocation) (*revocation, error) {
	ids := []string{r.walID}
	if r.walID == "" { // Vault hands out entries without it
		var err error
		if ids, err = framework.ListWAL(ctx, s); err != nil {
			return nil, err
		}
	}
	all, err := revocations(ctx, s, ids)
	for _, entry := range all {
		if entry.equal(r) {
			return entry, nil
		}
	}
	return nil, err
}
