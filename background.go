package wechat

import (
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/errgroup"
)

const (
	// loaders is how many accounts are loaded at a time after a start.
	loaders = 8

	// startHoldOff is the time between a start and the first call from the
	// background: Vault opens storage for writing only when all mounts are up.
	startHoldOff = 2 * time.Second

	// clockTolerance is how far the clock may be set back between two ticks
	// without anything having to be done: the margins bear that much.
	clockTolerance = 5 * time.Second
)

// start begins the work in the background: it loads all accounts, so that their
// tokens are replaced without any reader, and then wakes them when they are
// due. It returns at once; a second call does nothing.
func (k *keeper) start(s logical.Storage) {
	k.started.Do(func() {
		holdOff := time.Now().Add(startHoldOff)
		k.schedule.busy.Go(func() {
			k.loadAll(s)
			close(k.loaded)
			k.schedule.start(holdOff, func(t *tracked) { k.tend(s, t) })
		})
	})
}

// loadAll brings every account into memory. It goes on until storage has given
// the lists of them and of what is pending, or the mount is closed.
func (k *keeper) loadAll(s logical.Storage) {
	var all, ids []string
	for n := 1; ; n++ {
		var err error
		if all, err = logical.CollectKeys(k.ctx, logical.NewStorageView(s, configPrefix)); err == nil {
			ids, err = framework.ListWAL(k.ctx, s)
		}
		if err == nil {
			break
		}
		if k.ctx.Err() == nil {
			k.log.Error("the accounts cannot be listed", "error", err)
		}
		select {
		case <-k.ctx.Done():
			return
		case <-time.After(backoffTransient.after(n)):
		}
	}
	k.loadRevocations(s, ids)
	var group errgroup.Group
	group.SetLimit(loaders)
	for _, name := range storedNames(all) {
		if k.ctx.Err() != nil {
			break
		}
		group.Go(func() error { return k.loadOne(s, name) })
	}
	_ = group.Wait() // fails only while the mount is being closed
	k.log.Debug("accounts loaded", "accounts", len(all))
}

// loadOne loads an account unless somebody else has. It fails only while the mount
// is being closed.
func (k *keeper) loadOne(s logical.Storage, name string) error {
	t, err := k.acquire(k.ctx, name)
	if err != nil {
		return err
	}
	defer k.release(t)
	if t.current() == nil {
		k.reload(k.ctx, s, t)
	}
	return nil
}

// tend does what is due for an account, from the background.
func (k *keeper) tend(s logical.Storage, t *tracked) {
	if !t.lock.TryAcquire(1) {
		// Whoever holds it may have set the schedule already.
		k.schedule.set(t, wallClock().Add(time.Second))
		return
	}
	defer k.release(t)
	if t.gone {
		return
	}
	st := t.current()
	if st == nil {
		k.reload(k.ctx, s, t)
		return
	}
	now := wallClock()
	if r := k.pendingRevocation(t.name); r != nil && !now.Before(r.next) {
		k.revoke(s, t, st, r)
		return
	}
	if at := st.wake(); at.IsZero() || now.Before(at) {
		return
	}
	// Its error is in the state, or the account is no longer there.
	_, _ = k.refresh(k.ctx, s, t, st)
}

// tick is called once a minute. It gives the background the push that its timer
// does not give while the machine is suspended, and looks whether the clock was
// set back meanwhile: all times that are remembered are then too late, and WeChat
// is asked how long each token still lives.
func (k *keeper) tick(now clockReading) {
	k.schedule.fire()
	k.mu.Lock()
	last := k.clock
	k.clock = now
	var all []*tracked
	back := last.wall.Add(now.steady.Sub(last.steady)).Sub(now.wall)
	if back > clockTolerance && k.ctx.Err() == nil {
		all = slices.Collect(maps.Values(k.tracked))
	}
	k.mu.Unlock()
	if len(all) == 0 {
		return
	}
	k.log.Warn("the clock was set back: WeChat is asked about every token", "by", back.Round(time.Second), "accounts", len(all))
	k.schedule.busy.Go(func() {
		var group errgroup.Group
		group.SetLimit(loaders)
		for _, t := range all {
			group.Go(func() error { return k.anew(t, now.wall) })
		}
		_ = group.Wait() // fails only while the mount is being closed
	})
}

// anew has the background look at an account after the clock was set back.
func (k *keeper) anew(t *tracked, now time.Time) error {
	if err := t.lock.Acquire(k.ctx, 1); err != nil {
		return err
	}
	defer k.release(t)
	if st := t.state.Load(); st != nil {
		t.state.Store(st.anew(now))
	}
	if r := k.pendingRevocation(t.name); r != nil {
		r.next = now.Add(forcedSpacing)
	}
	return nil
}

// stop ends the work in the background and every call to WeChat. It does not
// wait for them.
func (k *keeper) stop() {
	k.cancel()
	k.schedule.stop()
	k.client.close()
}
