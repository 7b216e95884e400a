package wechat

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wake"
)

// overtakenPause is how long the background leaves an account alone whose call came to
// nothing because of a forced call of another name.
const overtakenPause = time.Second

// keeper is the registry of a mount's accounts. What is done with one of them is in
// the files that are named after it: refresh.go, rotation.go, leak.go, change.go,
// background.go.
type keeper struct {
	*common
	cancel context.CancelFunc // ends common.ctx

	started sync.Once
	loaded  chan struct{} // closed when every account was tried to be loaded, or the mount is closed

	mu       sync.RWMutex
	accounts map[string]*account // guarded by mu
	era      int64               // of the clock at Vault's last tick; guarded by mu
}

func newKeeper(log hclog.Logger, c *client, sender logical.EventSender, writable func() bool) *keeper {
	k := &keeper{
		common: &common{log: log, client: c, metrics: newMetrics(), writable: writable, appids: appids{guards: newGuards()}},
		loaded: make(chan struct{}), accounts: make(map[string]*account),
	}
	k.schedule = wake.New(wallClock, &k.busy)
	wallClock() // whatever was set back before is history
	k.era = era()
	c.Observe = k.metrics.called
	k.metrics.registry.MustRegister(k)
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.events = newEvents(log, sender, k.metrics.eventsDropped)
	return k
}

// lookup returns the account if it is in memory, nil otherwise.
func (k *keeper) lookup(name string) *account {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.accounts[name]
}

// remembered returns what memory holds of an account, nil if that is nothing.
func (k *keeper) remembered(name string) *state {
	if a := k.lookup(name); a != nil {
		return a.state.Load()
	}
	return nil
}

// enter returns the account of this name in memory, where it puts it if need be.
func (k *keeper) enter(name string) *account {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.accounts[name]
	if a == nil {
		a = newAccount(k.common, name)
		k.accounts[name] = a
	}
	return a
}

// acquire locks the account of this name, whether it is configured or not.
// release has to follow.
func (k *keeper) acquire(ctx context.Context, name string) (*account, error) {
	for {
		a := k.enter(name)
		if err := a.lock.Acquire(ctx, 1); err != nil {
			if a.lock.TryAcquire(1) {
				k.release(a)
			}
			return nil, err
		}
		if !a.gone {
			return a, nil
		}
		a.lock.Release(1)
	}
}

// tryAcquire is acquire for who must not wait: it returns nil if somebody else holds
// the lock.
func (k *keeper) tryAcquire(name string) *account {
	a := k.enter(name)
	if !a.lock.TryAcquire(1) {
		return nil
	}
	if a.gone {
		a.lock.Release(1)
		return nil
	}
	return a
}

// release unlocks the account, sets when the background looks at it next, and
// forgets it if it is not configured: asking for names that are not there
// leaves nothing behind.
func (k *keeper) release(a *account) {
	defer k.heed(a) // its quota may be cleared up to the last moment
	defer a.lock.Release(1)
	a.endQuotaWait()
	now := wallClock()
	switch st := a.current(); {
	case a.gone:
	case st != nil:
		for {
			epoch := st.appid.epoch.Load()
			at, pending := st.wake(), st.appid.leak.Load()
			if l := st.appid.answersLeak(a.name, st.accepted); l != nil && (at.IsZero() || l.due().Before(at)) {
				at = l.due()
			}
			if reload := now.Add(reloadInterval); a.configUnsure && (at.IsZero() || reload.Before(at)) {
				at = reload
			}
			if wait := time.Until(a.overtaken.Add(overtakenPause)); wait > 0 && !at.IsZero() && at.Before(now.Add(wait)) {
				at = now.Add(wait) // unless the end of that call wakes it before
			}
			k.schedule.Set(&a.job, at)
			// A change of the epoch, or of a leak response, wakes the account after that, and
			// must not have been overtaken by this.
			if st.appid.epoch.Load() == epoch && st.appid.leak.Load() == pending {
				break
			}
		}
	case a.state.Load() != nil: // overtaken by a change in storage
		k.schedule.Set(&a.job, now)
	case a.needsLoad:
		k.schedule.Set(&a.job, now.Add(reloadInterval))
	default:
		a.remove()
		a.gone = true
		k.schedule.Set(&a.job, time.Time{})
		k.forgetAccount(a)
	}
}

// heed ends the account's wait if its quota was cleared and nobody holds its lock: who
// does heeds it on release.
func (k *keeper) heed(a *account) {
	if a.quotaCleared.Load() && a.lock.TryAcquire(1) {
		k.release(a)
	}
}

// forgetAccount takes an account out of the registry.
func (k *keeper) forgetAccount(a *account) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.accounts, a.name)
}

// acquireLoaded is acquire for an account whose state is needed. The state is nil
// if the account is not configured.
func (k *keeper) acquireLoaded(ctx context.Context, s logical.Storage, name string) (*account, *state, error) {
	a, err := k.acquire(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	st := a.current()
	if st == nil {
		if st, err = a.load(ctx, s); err != nil {
			k.release(a)
			return nil, nil, err
		}
	}
	return a, st, nil
}

// stateOf returns the account's state as it is, nil if it is not configured.
func (k *keeper) stateOf(ctx context.Context, s logical.Storage, name string) (*state, error) {
	if a := k.lookup(name); a != nil {
		if st := a.current(); st != nil {
			return st, nil
		}
	}
	a, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return nil, err
	}
	k.release(a)
	return st, nil
}

// configOf returns the account's configuration, nil if it is not configured. It is
// read from storage once for each change: a login is not to wait for that as well.
func (k *keeper) configOf(ctx context.Context, s logical.Storage, name string) (*config, error) {
	var st *state
	if a := k.lookup(name); a != nil {
		if st = a.current(); st != nil {
			if cfg := st.config.Load(); cfg != nil {
				return cfg, nil
			}
		}
	}
	cfg, err := loadConfig(ctx, s, name)
	if st.sameAccount(cfg) {
		st.config.Store(cfg)
	}
	return cfg, err
}

// invalidate forgets what another node changed in storage. It may be called
// while the account is being loaded.
func (k *keeper) invalidate(key string) {
	if strings.HasPrefix(key, rotationPrefix) {
		if ap := k.appids.find(key); ap != nil {
			ap.invalidate()
		}
	}
	for _, prefix := range []string{configPrefix, tokenPrefix} {
		if name, ok := strings.CutPrefix(key, prefix); ok {
			if a := k.lookup(storedName(name)); a != nil {
				a.generation.Add(1)
			}
		}
	}
	for kind := range ticketTypes {
		if name, ok := strings.CutPrefix(key, ticketKey(kind, "")); ok {
			if a := k.lookup(storedName(name)); a != nil {
				a.forgetTicket(kind)
			}
		}
	}
}

// allLoaded reports whether every account in memory is a member of its appid.
func (k *keeper) allLoaded() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, a := range k.accounts {
		if a.state.Load() == nil {
			return false
		}
	}
	return true
}

func (k *keeper) sweepOnce(ctx context.Context, s logical.Storage) error {
	keys, err := logical.CollectKeys(ctx, logical.NewStorageView(s, rotationPrefix))
	if err != nil {
		return err
	}
	if !k.allLoaded() {
		return errPending // whose they are is not known yet
	}
	var errs []error
	for _, key := range keys {
		errs = append(errs, k.appids.sweep(ctx, s, rotationPrefix+key))
	}
	return errors.Join(errs...)
}
