package wechat

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/errgroup"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

const (
	// loaders is how many accounts are loaded at a time after a start.
	loaders = 8

	// startHoldOff is the time between a start and the first call from the background:
	// Vault opens storage for writing only when all mounts are up.
	startHoldOff = 2 * time.Second
)

// start begins the work in the background: it loads all accounts, so that tokens are
// replaced before a reader comes, and wakes them when they are due. It returns at once. A
// second call does nothing.
func (k *keeper) start(s logical.Storage) {
	k.started.Do(func() {
		holdOff := time.Now().Add(startHoldOff)
		k.storage = s
		k.busy.Go(func() { k.events.run(k.ctx) })
		k.busy.Go(func() {
			k.loadAll(s)
			close(k.loaded)
			time.AfterFunc(time.Until(holdOff), k.schedule.Start)
			k.sweepDaily(s)
		})
	})
}

// loadAll brings every account into memory. It asks storage for their list until it gets
// it, or the mount is closed.
func (k *keeper) loadAll(s logical.Storage) {
	var names []string
	for n := 1; ; n++ {
		var err error
		if names, err = logical.CollectKeys(k.ctx, logical.NewStorageView(s, configPrefix)); err == nil {
			break
		}
		if k.ctx.Err() == nil {
			k.log.Error("the accounts cannot be listed", "error", err)
		}
		select {
		case <-k.ctx.Done():
			return
		case <-time.After(upstream.BackoffTransient.After(n, randomFraction())):
		}
	}
	var group errgroup.Group
	group.SetLimit(loaders)
	for _, name := range storedNames(names) {
		if k.ctx.Err() != nil {
			break
		}
		group.Go(func() error { k.loadOne(s, name); return nil })
	}
	_ = group.Wait()
	k.log.Debug("accounts loaded", "accounts", len(names))
}

// loadOne loads an account. If its door is busy, the background looks at it later.
func (k *keeper) loadOne(s logical.Storage, name string) {
	d := k.tryAcquire(name)
	if d == nil {
		d = k.enter(name)
		d.unsure.Store(true) // the caller that has the lock may not load it
		d.reschedule()
		return
	}
	defer d.release()
	if _, err := d.load(k.ctx, s); err != nil && k.ctx.Err() == nil {
		d.log.Error("the account cannot be read from storage", "account", name, "error", err)
	}
}

// tick is called once a minute. It drops connections and holders that are used no more, and
// wakes what became due while the machine was suspended, when timers stand still. If the wall
// clock was set back since, each issuer is asked how long its credentials still live.
func (k *keeper) tick() {
	k.client.Tidy()
	k.dropHolders()
	k.schedule.Sweep()
	now := moment()
	k.mu.Lock()
	var all []*door
	if k.era != now.Era && k.ctx.Err() == nil {
		k.era = now.Era
		all = slices.Collect(maps.Values(k.doors))
	}
	k.mu.Unlock()
	if len(all) == 0 {
		return
	}
	k.log.Warn("the clock was set back: every token is asked about", "accounts", len(all))
	for _, d := range all {
		d.reschedule()
		if a := d.account.Load(); a != nil {
			a.holder.clockSetBack(now.Wall)
		}
	}
}

// sweepDaily finishes after a start what earlier instances and builds left behind. Once a
// day it removes the forced calls of credentials that have no account any more.
func (k *keeper) sweepDaily(s logical.Storage) {
	wait := startHoldOff // earlier Vault takes no writes
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = day
		if err := k.sweep(k.ctx, s); err != nil && k.ctx.Err() == nil {
			k.log.Warn("what is no longer needed could not be removed from storage", "error", err)
			wait = time.Hour
		}
	}
}

func (k *keeper) sweep(ctx context.Context, s logical.Storage) error {
	errs := []error{k.storeOwed(ctx, s)}
	if !k.allLoaded() {
		return errors.Join(append(errs, errors.New("not every account is loaded, so whose they are is not known"))...)
	}
	errs = append(errs, k.removeOlder(ctx, s))
	return errors.Join(append(errs, k.tidyAll(ctx, s, ""))...)
}

// storeOwed stores the records that were put together from more than one entry at the start.
func (k *keeper) storeOwed(ctx context.Context, s logical.Storage) error {
	k.mu.RLock()
	all := slices.Collect(maps.Values(k.holders))
	k.mu.RUnlock()
	for _, h := range all {
		if st := h.state.Load(); st == nil || st.stored != nil {
			continue
		}
		if err := h.acquire(ctx, lockPatience); err != nil {
			return err
		}
		if st := h.state.Load(); st != nil && st.stored == nil {
			h.keep(ctx, s, st)
		}
		h.release()
	}
	return nil
}

// settle ends the guard of a forced call, once no write of an earlier instance can be under
// way. The record is written once more before, since such a write may have replaced it.
func (k *keeper) settle(ctx context.Context, s logical.Storage, g *guard) error {
	if k.guards.needed() {
		return errPending
	}
	p, identity := tokenOf(g.Key)
	if p == nil {
		return nil // withdrawn, or of an earlier version
	}
	h := k.holderAt(p, identity)
	if !h.tryAcquire() {
		return errPending
	}
	defer h.release()
	st, err := h.load(ctx, s)
	if err != nil {
		return err
	}
	if len(st.Names) == 0 && st.stored != nil {
		return nil // nothing was put back, and there is no token to guard
	}
	h.storeAgain(ctx, s, st)
	if f := h.state.Load().unstored; f != nil {
		return f.problem
	}
	return nil
}

// stop ends the work in the background and all calls. It does not wait for them.
func (k *keeper) stop() {
	k.cancel()
	k.schedule.Stop()
	k.client.Close()
}

// quotaCleared ends the waits for the daily quota, after the issuer set its counters back to
// zero: those of all accounts with the identity of this configuration, and of their leak
// response.
func (k *keeper) quotaCleared(cfg *config) {
	p := platformOf(cfg)
	k.mu.RLock()
	h := k.holders[holderID(p, p.identity(cfg))]
	k.mu.RUnlock()
	if h == nil {
		return // an account that is not in memory waits for nothing
	}
	for _, a := range h.accounts() {
		k.endQuotaWaits(a)
	}
	if p := h.pursuit.Load(); p != nil && p.quota {
		h.hasten(p)
	}
	for _, one := range h.family() {
		one.reschedule()
	}
}

// endQuotaWaits replaces the account by one that waits for no quota. A call in progress, which
// may end with the quota of before, finds its account replaced.
func (k *keeper) endQuotaWaits(a *account) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.doors[a.name]
	if d == nil || a.replaced.Load() {
		return
	}
	next := newAccount(a.common, a.name, a.cfg, a.holder)
	next.inherit(a, func(p *problem) bool { return !isQuota(p) })
	k.replace(d, next)
}
