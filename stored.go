package wechat

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// load brings the record into memory unless it is there. A forced call that an earlier
// instance noted and the record lacks is put back, which leaves the credential in doubt.
// The caller holds the lock.
func (h *holder) load(ctx context.Context, s logical.Storage) (*state, error) {
	if st := h.fresh(); st != nil {
		return st, nil
	}
	changes := h.changes.Load() // before the read: what changes during it makes it stale
	r, err := readRecord(ctx, s, h.key)
	stored := r // what was put together from other entries is still to be stored
	if err == nil && r == nil && h.parent == nil {
		r, err = readOlder(ctx, s, h.identity)
	}
	if err != nil {
		return nil, err
	}
	if r == nil {
		r, stored = &record{Version: schemaVersion}, &record{Version: schemaVersion}
	}
	restored, err := h.guards.restore(ctx, s, h.key, r)
	if err != nil {
		return nil, err
	}
	if restored {
		stored = nil
	}
	now := moment()
	st := h.loaded(r, now)
	st.stored, st.readAt = stored, changes
	h.pursuit.Store(nil)
	if st.Leak != nil {
		h.pursuit.Store(st.newPursuit(now.Wall))
	}
	h.state.Store(st)
	return st, nil
}

// open is load for a caller that does not hold the lock.
func (h *holder) open(ctx context.Context, s logical.Storage) (*state, error) {
	if err := h.acquire(ctx, lockPatience); err != nil {
		return nil, err
	}
	defer h.release()
	return h.load(ctx, s)
}

// loadFor is load for an account that comes to the holder. What earlier builds stored
// under its name is taken over.
func (h *holder) loadFor(ctx context.Context, s logical.Storage, a *account, patience time.Duration) error {
	st := h.fresh()
	var older bool
	var err error
	if st != nil && !st.has(a.name, a.cfg) {
		if older, err = hasOlder(ctx, s, a.name); err != nil {
			return err
		}
	}
	if st != nil && !older {
		if h.tryAcquire() {
			h.compareSoon(a)
			h.release()
		} // else a call is under way, which compares it
		return nil
	}
	if err := h.acquire(ctx, a.within(patience)); err != nil {
		return err
	}
	defer h.release()
	st, err = h.load(ctx, s)
	if err == nil && !st.has(a.name, a.cfg) {
		st, err = h.adoptOlder(ctx, s, a, st)
	}
	if err != nil {
		return err
	}
	h.state.Store(st)
	h.compareSoon(a)
	return nil
}

// compareSoon has the credential compared within a minute of the account's load: the names
// that came before may have a longer sync_interval. The caller holds the lock.
func (h *holder) compareSoon(a *account) {
	st := h.state.Load()
	every := h.issuer.policy(a.cfg).Compare
	if every == 0 || st == nil || st.Value == "" || !st.has(a.name, a.cfg) {
		return
	}
	next := *st
	next.CompareBy(wallClock().Add(time.Duration(randomFraction() * float64(min(every, time.Minute)))))
	h.state.Store(&next)
}

// adoptOlder is st with what earlier builds stored under the account's name. A pending leak
// response among it goes on.
func (h *holder) adoptOlder(ctx context.Context, s logical.Storage, a *account, st *state) (*state, error) {
	log, err := h.guards.log(ctx, s)
	if err != nil {
		return nil, err
	}
	next, err := adoptOlder(ctx, s, a.name, a.cfg, st, h.policy(a), log.leaks)
	if err == nil && next.Leak != nil && h.pursuit.Load() == nil {
		h.pursuit.Store(next.newPursuit(wallClock()))
	}
	return next, err
}

// loaded is the state of a record that was read from storage. If the record's fence is not
// the one under which the issuer named the credential, a forced call may have voided it:
// the credential is in doubt until the issuer answers.
func (h *holder) loaded(r *record, now kept.Moment) *state {
	st := &state{State: kept.Loaded(r.Credential, h.policy(nil), now, randomFraction()), ledger: r.ledger}
	if st.Named != st.Fence {
		st.Doubted = now.Wall
	}
	if n := len(st.Forced); n > 0 && st.Value != "" && st.Forced[n-1].At.Add(h.issuer.limits.apart).After(now.Wall) {
		// The forced call may still be on its way, and the record from before it.
		st.CompareBy(now.Wall.Add(h.issuer.limits.apart))
	}
	return st
}

// keep stores next if storage differs, and makes it the state. In this order, what a reader
// was told survives a crash. If storage fails, the answer is served from memory: no token
// stops an application, and one that a crash would lose does not. The background tries to store it again. The caller holds the lock.
func (h *holder) keep(ctx context.Context, s logical.Storage, next *state) {
	before := h.state.Load()
	published := *next
	if published.storable() {
		published = *h.store(ctx, s, &published)
	}
	h.state.Store(&published)
	if h.parent != nil || before == nil {
		return // events are of tokens, and of what happens after the start
	}
	if published.Value != "" && before.Value != published.Value {
		h.sendRotated(&published)
	}
	if before.Leak != nil && published.Leak == nil && !published.RevokedAt.Equal(before.RevokedAt) {
		name := before.Leak.Name
		h.log.Info("revocation complete", "account", name)
		h.events.send(eventRevocationComplete, statusPrefix, name)
	}
}

// storeAgain is keep where another write may have replaced the record, or may do so yet. The
// caller holds the lock.
func (h *holder) storeAgain(ctx context.Context, s logical.Storage, st *state) {
	next := *st
	next.stored = nil
	h.keep(ctx, s, &next)
}

// store writes the record, and returns the state with what came of it. A closed mount
// writes nothing. One that is closed during the write cannot take it back, but removes what
// would outlive its accounts. The caller holds the lock.
func (h *holder) store(ctx context.Context, s logical.Storage, st *state) *state {
	next := *st
	if h.ctx.Err() != nil { // another instance of the mount may be at work already
		next.unstored = st.unstored.after(storageProblem(errUnmounted), moment(), moment())
		return &next
	}
	r := st.record()
	err := writeEntry(ctx, s, h.key, r)
	switch {
	case h.gone.Load():
		_ = removeEntry(ctx, s, h.key)
	case h.ctx.Err() != nil:
		_ = h.tidy(ctx, s)
	}
	if next.stored, next.unstored = r, nil; err == nil {
		return &next
	}
	next.stored = nil // it may have been written all the same, or be yet
	h.guards.extend()
	next.unstored = st.unstored.after(storageProblem(err), moment(), moment())
	if st.unstored == nil {
		h.log.Error("what the issuer answered cannot be stored: it is served from memory, and storing it is tried again",
			"credential", h.issuer.credential, "accounts", h.root().admitted(h.root().state.Load()), "error", err)
	}
	return &next
}

// sendRotated tells the host for each name that shares the token: subscribers watch names.
func (h *holder) sendRotated(st *state) {
	for _, name := range h.admitted(st) {
		h.events.send(eventTokenRotate, tokenPrefix, name, "expire_time", timestamp(st.Shown))
	}
}

// remove takes names from the record whose accounts have left the holder. It reports whether
// they were the last: then the credential is gone, and all that was derived from it.
func (h *holder) remove(ctx context.Context, s logical.Storage, names ...string) (last bool, err error) {
	if err := h.acquire(ctx, lockPatience); err != nil {
		return false, err
	}
	defer h.release()
	st, err := h.load(ctx, s)
	if err != nil {
		return false, err
	}
	return h.removeLocked(ctx, s, st, names)
}

// removeLocked is remove for a caller that holds the lock. Names that an earlier change left behind
// go with it: one that no configuration leads to must not keep the token.
func (h *holder) removeLocked(ctx context.Context, s logical.Storage, st *state, names []string) (last bool, err error) {
	for _, name := range names {
		st = st.without(name)
	}
	if len(h.admitted(st)) == 0 { // of those that are left, none is in memory
		strays, err := h.strays(ctx, s, st.Names)
		if err != nil {
			return false, err
		}
		for _, name := range strays {
			st = st.without(name)
		}
	}
	if h.ctx.Err() != nil {
		return false, errUnmounted
	}
	if len(st.Names) > 0 {
		// The change stays in the write-ahead log until storage has taken this.
		next := h.store(ctx, s, st)
		h.state.Store(next)
		if next.unstored != nil {
			return false, next.unstored.problem
		}
		return false, nil
	}
	// Memory forgets first. From here on a reader with the old account finds nothing, even if
	// storage fails to remove it.
	h.pursuit.Store(nil)
	h.forgetDerived()
	h.state.Store(st)
	return true, h.clear(ctx, s, st)
}

// forgetDerived drops what is derived from the credential. A fetch in progress finds its
// holder gone, and discards the result.
func (h *holder) forgetDerived() {
	for i := range h.derived {
		if t := h.derived[i].Swap(nil); t != nil {
			t.gone.Store(true)
			h.schedule.Set(&t.job, time.Time{})
		}
	}
}

// reconcile takes from the record the names whose configuration is gone, or leads to
// another holder. The caller holds the lock.
func (h *holder) reconcile(ctx context.Context, s logical.Storage) error {
	st, err := h.load(ctx, s)
	if err != nil {
		return err
	}
	gone, err := h.strays(ctx, s, st.Names)
	if err == nil && (len(gone) > 0 || len(st.Names) == 0) {
		_, err = h.removeLocked(ctx, s, st, gone)
	}
	return err
}

// strays are those of the names that no configuration in storage leads to. A change that
// was interrupted leaves them behind.
func (h *holder) strays(ctx context.Context, s logical.Storage, names map[string]admission) ([]string, error) {
	var gone []string
	for name, admitted := range names {
		cfg, err := loadConfig(ctx, s, name)
		if errors.Is(err, errUnreadable) {
			continue // the account is there
		}
		if err != nil {
			return nil, err
		}
		if cfg == nil || cfg.ID != admitted.ID {
			gone = append(gone, name)
		}
	}
	return gone, nil
}

// tidy is reconcile for a closed mount, after a write that ended late. Memory may be wrong by
// then, so it looks only at storage, and removes only a record that has no name left.
func (h *holder) tidy(ctx context.Context, s logical.Storage) error {
	root := h.root()
	r, err := readRecord(ctx, s, root.key)
	if err != nil || r == nil {
		return err
	}
	gone, err := h.strays(ctx, s, r.Names)
	if err != nil || len(gone) < len(r.Names) {
		return err
	}
	return root.clear(ctx, s, &state{ledger: ledger{Fence: r.Fence, Forced: r.Forced}})
}

// clear removes what storage holds of a credential that the last account has left. The
// forced calls of the day stay: the issuer counts them for the appid, by whatever name they were made.
func (h *holder) clear(ctx context.Context, s logical.Storage, st *state) error {
	var errs []error
	// What is derived goes first. A crash in between leaves the record, by which the next
	// sweep finds the rest.
	for of := tokenSlot + 1; int(of) < len(h.platform.issuers); of++ {
		errs = append(errs, removeEntry(ctx, s, h.platform.recordKey(of, h.identity)))
	}
	r := st.record()
	r.Leak = nil // it goes with the last name
	if r.empty(wallClock()) {
		errs = append(errs, removeEntry(ctx, s, h.key))
	} else {
		errs = append(errs, writeEntry(ctx, s, h.key, r))
	}
	return errors.Join(errs...)
}

// removeEntry removes the entry at key if there is one. To look first costs less than a
// write.
func removeEntry(ctx context.Context, s logical.Storage, key string) error {
	entry, err := s.Get(ctx, key)
	if err == nil && entry != nil {
		err = s.Delete(ctx, key)
	}
	return err
}
