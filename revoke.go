package wechat

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// rotate replaces the account's token by force. With revoke it first records in the
// write-ahead log that a second forced refresh must follow. It returns nil if the
// account is not configured. An error of WeChat or of its limits is a *problem; with
// errNotBegun nothing was done.
func (k *keeper) rotate(ctx context.Context, s logical.Storage, name string, revoke bool) (*rotated, error) {
	a, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return nil, k.notBegun(err)
	}
	defer k.release(a)
	if st == nil {
		return nil, nil
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if st, err = a.prove(ctx, s, st); err != nil {
		return nil, err
	}
	cfg, err := a.configOf(ctx, s, st)
	if err != nil {
		return nil, k.notBegun(err)
	}
	epoch := newEpoch()
	if !revoke {
		done, err := a.force(ctx, s, st, cfg, epoch)
		return done, k.tooSoon(ctx, s, a, st, err)
	}
	r := &revocation{Name: name, AccountID: st.accountID, Target: st.forced() + 2, Requested: wallClock().UTC(), Epoch: epoch}
	if err := r.announce(ctx, s); err != nil {
		return nil, k.notBegun(err)
	}
	done, err := a.force(ctx, s, st, cfg, epoch)
	if hadNoEffect(err) {
		// Nothing was done, and one that was pending before goes on. If the entry
		// cannot be taken out now, Vault's tick finds that its epoch was never begun;
		// but a restart does not, unless storage knows by then that the call was undone.
		if !a.withdraw(ctx, s, r) && st.appid.isUnstored() {
			err = fmt.Errorf("%w: %w", errStillAnnounced, err)
		}
		return nil, k.tooSoon(ctx, s, a, st, err)
	}
	r.keepDistance(st.appid)
	if old := a.revocation.Swap(r); old != nil {
		a.withdraw(ctx, s, old)
	}
	return done, err
}

// errStillAnnounced accompanies the error of a revocation that did not begin, and whose
// announcement storage has kept.
var errStillAnnounced = errors.New("the announcement of the revocation is still in storage")

// tooSoon is the error of a forced refresh that a limit forbids. A client repeats what got
// no answer, and sees only the last one: so it tells what came of the call before, and
// whether a leak is being answered.
type tooSoon struct {
	*problem
	last      *lately   // nil if the day's budget alone forbids it
	pending   string    // the account of the revocation that is pending, "" if none is
	next      time.Time // when its next step comes; zero for another account's
	completed time.Time // when the account's revocation was complete, zero if it was not lately
}

// Unwrap makes it a *problem to all who do not look closer.
func (e *tooSoon) Unwrap() error { return e.problem }

// tooSoon returns err, in which a forced refresh of the account ended, with what is known
// besides if it is a limit. The caller holds the account's lock.
func (k *keeper) tooSoon(ctx context.Context, s logical.Storage, a *account, st *state, err error) error {
	p := problemOf(err)
	if p == nil || !p.Local {
		return err
	}
	e := &tooSoon{problem: p, last: st.appid.lately()}
	if r := k.pendingRevocation(ctx, s, a.name, st); r != nil {
		e.pending, e.next = a.name, wallClock().Add(p.Backoff.First)
		if e.next.Before(r.next) {
			e.next = r.next
		}
	} else if e.last != nil && k.revoking(e.last.by) {
		e.pending = e.last.by // whose token is this one, too
	}
	if t := st.token; t != nil && e.last != nil && !t.RevokedAt.Before(e.last.at.Truncate(timestampUnit)) && t.RevokedAt.Sub(wallClock()) < clockTolerance {
		e.completed = t.RevokedAt
	}
	return e
}

// withdraw takes a revocation out of the write-ahead log, and reports whether that
// succeeded. If not, Vault's tick does it.
func (a *account) withdraw(ctx context.Context, s logical.Storage, r *revocation) bool {
	err := r.withdraw(ctx, s)
	if err != nil {
		a.log.Warn("a revocation that has ended could not be taken out of the write-ahead log: it is looked at again", "account", a.name, "error", err)
	}
	return err == nil
}

// endRevocation ends the pending revocation, complete or not. The caller holds the
// lock.
func (a *account) endRevocation(ctx context.Context, s logical.Storage) {
	if r := a.revocation.Swap(nil); r != nil {
		a.withdraw(ctx, s, r)
	}
}

// revoke takes the next step of the pending revocation r, from the background. The
// caller holds the lock.
func (a *account) revoke(s logical.Storage, st *state, r *revocation) {
	ctx, cancel := detached(a.ctx)
	defer cancel()
	cfg, err := loadConfig(ctx, s, a.name)
	switch {
	case err != nil:
		r.next = wallClock().Add(reloadInterval)
		return
	case cfg == nil || cfg.ID != r.AccountID:
		a.endRevocation(ctx, s)
		return
	case r.expired():
		a.log.Error("a revocation was given up after a day: the leaked token has run out by itself", "account", a.name, "appid", cfg.AppID)
		a.endRevocation(ctx, s)
		return
	}
	if st, err = a.confirm(ctx, s, st); err != nil {
		if isForcing(err) {
			r.next = wallClock().Add(overtakenPause)
		} else {
			r.retry(err)
		}
		return
	}
	if st.forced() < r.Target {
		done, err := a.force(ctx, s, st, cfg, newEpoch())
		switch p := problemOf(err); {
		case p != nil && p.Local: // spacing or budget
			r.next = wallClock().Add(p.Backoff.First)
			return
		case err != nil:
			a.log.Warn("a revocation waits for its forced refresh", "account", a.name, "appid", cfg.AppID, "error", err)
			if hadNoEffect(err) {
				r.retry(err)
			} else {
				r.keepDistance(st.appid)
			}
			return
		case done.same:
			r.keepDistance(st.appid)
			return
		case done.state.forced() < r.Target: // the first of the two was never made
			r.next = wallClock().Add(forcedSpacing)
			return
		}
		st = done.state
	}
	a.completeRevocation(ctx, s, st, r)
}

// confirm asks WeChat what holds if nobody knows what became of the last forced call,
// or whether the credentials are good.
func (a *account) confirm(ctx context.Context, s logical.Storage, st *state) (*state, error) {
	if !st.unconfirmed() {
		return a.prove(ctx, s, st)
	}
	st, err := a.refresh(ctx, s, st)
	switch {
	case err != nil:
		return nil, err
	case st.failure != nil:
		return nil, st.failure.problem
	case st.unconfirmed():
		return nil, &problem{Rule: ruleForcing}
	}
	return st, nil
}

// completeRevocation notes that r is complete, and ends it. The caller holds the lock.
func (a *account) completeRevocation(ctx context.Context, s logical.Storage, st *state, r *revocation) {
	revoked := *st.token
	revoked.RevokedAt = wallClock().UTC().Truncate(timestampUnit)
	next := *st
	next.token = &revoked
	if a.publish(ctx, s, &next, st.storedToken()).unstored != nil {
		r.next = wallClock().Add(reloadInterval)
		return
	}
	a.log.Info("revocation complete", "account", a.name, "appid", st.appID)
	a.events.send(eventRevocationComplete, statusPrefix, a.name)
	a.endRevocation(ctx, s)
}

// moveRevocation announces the revocation of the account whose state is st, if one
// is pending, for cfg, which this name is about to stand for: with another
// base_url it still has the token that leaked. It returns nil if there is nothing
// to move. The new upstream's history does not hold the forced calls that were made
// by the old one, and WeChat may count them all the same: the announcement carries the
// spacing along. The old announcement stays; Vault's tick drops whichever of the two is
// not of the account that is configured.
func (a *account) moveRevocation(ctx context.Context, s logical.Storage, st *state, cfg *config) (*revocation, error) {
	if st == nil || st.appID != cfg.AppID {
		return nil, nil
	}
	// Memory need not know it yet, or still knows one of an account before.
	r, err := openRevocation(ctx, s, a.name, st)
	if known := a.revocation.Load(); r == nil && known != nil && known.open(a.name, st) {
		moved := *known // by the clock that was set it would be over
		r = &moved
	}
	if r == nil {
		return nil, err
	}
	r.AccountID, r.Target, r.Epoch = cfg.ID, r.Target-st.forced(), 0
	if last := st.appid.lastForced(); last.After(r.Requested) {
		r.Requested = last
	}
	r.keepDistance(st.appid)
	return r, r.announce(ctx, s)
}

// resumeRevocation takes up a revocation that stands in the write-ahead log.
// It returns nil if the entry can go. The caller holds the lock.
func (a *account) resumeRevocation(ctx context.Context, s logical.Storage, r *revocation) error {
	if a.revocation.Load().equal(r) {
		return errPending
	}
	entry, err := findRevocation(ctx, s, r)
	if err != nil || entry == nil {
		return err // it ended while Vault handed it out
	}
	st := a.current()
	if st == nil {
		if st, err = a.load(ctx, s); err != nil {
			return err
		}
	}
	switch {
	case st == nil || entry.AccountID != st.accountID || entry.expired():
		return nil
	case entry.Epoch != 0 && !st.appid.begun(entry.Epoch):
		return nil // its first forced call was never made, or certainly did nothing
	case st.forced() >= entry.Target && st.token != nil && !st.token.RevokedAt.Before(entry.Requested.Truncate(timestampUnit)):
		return nil // it is complete
	}
	entry.keepDistance(st.appid)
	a.revocation.CompareAndSwap(nil, entry)
	return errPending
}

// resumeIfIdle is resumeRevocation for Vault's tick, which does not wait for whoever is
// busy with the account.
func (k *keeper) resumeIfIdle(ctx context.Context, s logical.Storage, r *revocation) error {
	a := k.tryAcquire(r.Name)
	if a == nil {
		return errPending
	}
	defer k.release(a)
	return a.resumeRevocation(ctx, s, r)
}

// revoking reports whether memory knows of a revocation of the account that is pending.
func (k *keeper) revoking(name string) bool {
	a := k.lookup(name)
	return a != nil && a.revocation.Load() != nil
}

// isRevoking reports whether a revocation of the account is pending.
func (k *keeper) isRevoking(ctx context.Context, s logical.Storage, name string, st *state) bool {
	return k.pendingRevocation(ctx, s, name, st) != nil
}

// pendingRevocation returns the revocation of the account that is pending, nil if there
// is none. Until those of before the start are taken up storage tells.
func (k *keeper) pendingRevocation(ctx context.Context, s logical.Storage, name string, st *state) *revocation {
	if a := k.lookup(name); a != nil {
		if r := a.revocation.Load(); r != nil {
			return r
		}
	}
	select {
	case <-k.loaded:
		if k.resuming.Load() == 0 {
			return nil
		}
	default:
	}
	r, _ := openRevocation(ctx, s, name, st) // what cannot be read is not shown
	if r != nil {
		r.keepDistance(st.appid)
	}
	return r
}
