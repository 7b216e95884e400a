package wechat

import (
	"context"
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

	// startHoldOff is the time between a start and the first call from the
	// background: Vault opens storage for writing only when all mounts are up.
	startHoldOff = 2 * time.Second
)

// start begins the work in the background: it loads all accounts, so that their
// tokens are replaced without any reader, and then wakes them when they are
// due. It returns at once; a second call does nothing.
func (k *keeper) start(s logical.Storage) {
	k.started.Do(func() {
		holdOff := time.Now().Add(startHoldOff)
		k.tend = func(due any) {
			switch due := due.(type) {
			case *account:
				k.maintain(s, due)
			case *accountTicket:
				k.maintainTicket(s, due)
			}
		}
		k.busy.Go(func() { k.events.run(k.ctx) })
		k.busy.Go(func() {
			k.loadAll(s)
			close(k.loaded)
			time.AfterFunc(time.Until(holdOff), k.schedule.Start)
			k.sweepHistories(s)
		})
	})
}

// loadAll brings every account into memory. It goes on until storage has given
// their list, or the mount is closed.
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

// loadOne loads an account. If its lock is held it waits for that, and keeps no other
// account waiting.
func (k *keeper) loadOne(s logical.Storage, name string) {
	load := func(a *account) {
		defer k.release(a)
		if a.current() == nil {
			a.reload(k.ctx, s)
		}
	}
	if a := k.tryAcquire(name); a != nil {
		load(a)
		return
	}
	k.busy.Go(func() {
		if a, err := k.acquire(k.ctx, name); err == nil {
			load(a)
		}
	})
}

// maintain does what is due for an account, from the background.
func (k *keeper) maintain(s logical.Storage, a *account) {
	if !a.lock.TryAcquire(1) {
		// Whoever holds it may have set the schedule already.
		k.schedule.Set(&a.job, wallClock().Add(time.Second))
		return
	}
	defer k.release(a)
	if a.gone {
		return
	}
	st := a.current()
	if st == nil {
		a.reload(k.ctx, s)
		return
	}
	if a.configUnsure {
		a.reloadSame(k.ctx, s, st)
		if st = a.current(); st == nil {
			return
		}
	}
	if l := st.appid.answersLeak(a.name, st.accepted); l != nil && !wallClock().Before(l.due()) {
		k.answerLeak(s, a, st, l)
		return
	}
	a.maintain(s, st)
}

// maintain stores what could not be stored, and asks WeChat if that is due. The
// caller holds the lock.
func (a *account) maintain(s logical.Storage, st *state) {
	now := wallClock()
	if st.unstored != nil && !now.Before(st.unstored.next) {
		ctx, cancel := detached(a.ctx)
		defer cancel()
		st = a.publish(ctx, s, st, nil)
	}
	if at := st.nextAttempt(); at.IsZero() || now.Before(at) {
		return
	}
	// Its error is in the state, or the account is no longer there, or a forced call of
	// another name is in the air: nobody is kept from the lock by waiting for that, and
	// its end wakes the account.
	_, _ = a.refresh(a.ctx, s, st)
}

// tick is called once a minute. It drops what nobody uses any more, gives the
// background the push that its timer does not give while the machine is suspended, and
// looks whether the clock was set back meanwhile: all times that are remembered are
// then too late, and WeChat is asked how long each token still lives.
func (k *keeper) tick() {
	k.client.Tidy()
	k.schedule.Sweep()
	now := wallClock()
	k.mu.Lock()
	var all []*account
	if present := era(); k.era != present && k.ctx.Err() == nil {
		k.era = present
		all = slices.Collect(maps.Values(k.accounts))
	}
	k.mu.Unlock()
	if len(all) == 0 {
		return
	}
	k.log.Warn("the clock was set back: WeChat is asked about every token", "accounts", len(all))
	k.busy.Go(func() {
		var group errgroup.Group
		group.SetLimit(loaders)
		for _, a := range all {
			group.Go(func() error { return k.recheck(a, now) })
		}
		_ = group.Wait() // fails only while the mount is being closed
	})
}

// recheck has the background look at an account after the clock was set back.
func (k *keeper) recheck(a *account, now time.Time) error {
	if err := a.lock.Acquire(k.ctx, 1); err != nil {
		return err
	}
	defer k.release(a)
	if st := a.current(); st != nil {
		a.setState(st)
	}
	a.recheckTickets(now)
	return nil
}

// sweepHistories removes the histories of forced refreshes that no account has and
// that are older than a day, once a day: deleted accounts leave nothing for ever.
func (k *keeper) sweepHistories(s logical.Storage) {
	wait := startHoldOff // before that Vault takes no writes
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = day
		if err := k.sweepOnce(k.ctx, s); err != nil && k.ctx.Err() == nil {
			k.log.Warn("old histories of forced refreshes could not be removed", "error", err)
			wait = time.Hour
		}
	}
}

// settle ends the guard of a forced call when no write of an earlier instance can be
// under way: the history is written once more, whatever storage holds.
func (k *keeper) settle(ctx context.Context, s logical.Storage, g *guard) error {
	if k.appids.guards.needed() {
		return errPending
	}
	ap := k.appids.enter(g.Key, sweeper, func() {})
	defer k.appids.leave(ap, sweeper)
	if !ap.storing.TryAcquire(1) {
		return errPending
	}
	ap.storing.Release(1)
	if err := ap.load(ctx, s); err != nil {
		return err
	}
	ap.rewrite()
	return ap.save(ctx, s)
}

// stop ends the work in the background and every call to WeChat. It does not
// wait for them.
func (k *keeper) stop() {
	k.cancel()
	k.schedule.Stop()
	k.client.Close()
}
