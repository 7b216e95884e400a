package wechat

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/semaphore"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wake"
)

// keeper is the registry of a mount: its names, and the holders of their credentials.
type keeper struct {
	*common
	cancel context.CancelFunc // ends common.ctx

	started sync.Once
	storage logical.Storage // of the background; set before the schedule starts
	loaded  chan struct{}   // closed after the first try to load each account, or when the mount is closed

	// mu guards what follows, and which account is at which holder. No call and no
	// operation of storage is made with it held.
	mu      sync.RWMutex
	doors   map[string]*door   // by name
	holders map[string]*holder // of tokens, by platform and identity
	vacant  map[string]*holder // those of them that may have no account
	era     int64              // of the clock at Vault's last tick
}

// door is one name in memory: the way to the credentials of its account.
//
// The lock is held while the account is loaded or changed in storage, and for a call with
// credentials that the issuer has not accepted yet. It is taken before a token holder's
// lock, and after a ticket holder's.
type door struct {
	name string
	*keeper

	lock *semaphore.Weighted

	// account is nil until it was loaded. It is replaced with keeper.mu held, and read
	// without.
	account atomic.Pointer[account]

	// from is the holder that the account has left and may come back to. What only that one
	// knows stays in memory meanwhile. keeper.mu guards it.
	from *holder

	// They are set under the lock, and read without.
	gone    atomic.Bool   // no longer in the registry
	unsure  atomic.Bool   // the configuration is to be read again: storage may hold another one
	changes atomic.Uint64 // counts what other nodes changed in storage

	job wake.Job
}

// reloadInterval is how often the background tries to load what storage did not give.
const reloadInterval = 30 * time.Second

func newKeeper(log hclog.Logger, c *client, sender logical.EventSender, writable func() bool) *keeper {
	k := &keeper{
		common: &common{log: log, client: c, metrics: newMetrics(), writable: writable, guards: newGuards()},
		loaded: make(chan struct{}), doors: make(map[string]*door),
		holders: make(map[string]*holder), vacant: make(map[string]*holder),
	}
	k.schedule = wake.New(wallClock, &k.busy)
	k.era = moment().Era // what was set back before the start does not matter
	c.Observe = k.metrics.called
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.metrics.registry.MustRegister(k)
	k.events = newEvents(log, sender, k.metrics.eventsDropped)
	return k
}

// lookup returns the name's door if it is in memory, nil otherwise.
func (k *keeper) lookup(name string) *door {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.doors[name]
}

// known returns the account if it is in memory, nil otherwise.
func (k *keeper) known(name string) *account {
	if d := k.lookup(name); d != nil {
		return d.account.Load()
	}
	return nil
}

// enter returns the name's door, which it makes if it is not in memory.
func (k *keeper) enter(name string) *door {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.doors[name]
	if d == nil {
		d = &door{name: name, keeper: k, lock: semaphore.NewWeighted(1)}
		d.job = wake.Job{Key: d.wakeKey, Work: func() { d.maintain(k.storage) }}
		k.doors[name] = d
	}
	return d
}

// acquire locks the name's door, whether an account is configured there or not. release has
// to follow.
func (k *keeper) acquire(ctx context.Context, name string) (*door, error) {
	for {
		d := k.enter(name)
		if err := d.lock.Acquire(ctx, 1); err != nil {
			if d.lock.TryAcquire(1) {
				d.release() // which forgets a door that leads nowhere
			}
			return nil, err
		}
		if !d.gone.Load() {
			return d, nil
		}
		d.lock.Release(1)
	}
}

// acquireWithin is acquire for a caller that waits no longer than patience.
func (k *keeper) acquireWithin(ctx context.Context, name string, patience time.Duration) (*door, error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d, err := k.acquire(waiting, name)
	if err != nil && ctx.Err() == nil {
		err = &problem{Rule: ruleBusy}
	}
	return d, err
}

// tryAcquire is acquire for a caller that must not wait: nil if the lock is held.
func (k *keeper) tryAcquire(name string) *door {
	d := k.enter(name)
	if !d.lock.TryAcquire(1) {
		return nil
	}
	if d.gone.Load() {
		d.lock.Release(1)
		return nil
	}
	return d
}

// release unlocks the door, and forgets one that leads nowhere. So requests for names that
// do not exist use no memory.
func (d *door) release() {
	if d.account.Load() == nil && !d.unsure.Load() {
		d.forget()
	}
	d.lock.Release(1)
	d.reschedule()
}

// forget takes the door out of the registry.
func (d *door) forget() {
	d.gone.Store(true)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.letGo()
	if d.doors[d.name] == d {
		delete(d.doors, d.name)
	}
}

// letGo says that the account does not come back to the holder that it has left. The caller
// holds keeper.mu.
func (d *door) letGo() {
	if d.from != nil {
		d.from.coming--
		d.from = nil
	}
}

// wake returns when the background has to look at the door, zero if never. It looks at a
// door that could not be loaded, and at one whose credentials the issuer has not accepted.
// For the others the holder is woken.
func (d *door) wake(now kept.Moment) time.Time {
	a := d.account.Load()
	switch {
	case d.gone.Load():
		return time.Time{}
	case a == nil, d.unsure.Load(), a.holder.fresh() == nil:
		return now.Wall.Add(reloadInterval)
	case a.admitted():
		return time.Time{}
	case a.revoking() && a.failures[tokenSlot].Load() == nil:
		return now.Wall // the leak response goes on when the issuer has accepted the account
	}
	return a.failures[tokenSlot].Load().by(now).nextTime()
}

func (d *door) reschedule() {
	d.schedule.Set(&d.job, d.wake(moment()))
	if a := d.account.Load(); a != nil {
		a.holder.reschedule()
	}
}

// open returns the account, nil if it is not configured. It is loaded if it is not in
// memory. patience is how long to wait for each lock.
func (k *keeper) open(ctx context.Context, s logical.Storage, name string, patience time.Duration) (*account, error) {
	a := k.known(name)
	if a != nil && a.holder.fresh() != nil {
		return a, nil
	}
	d, err := k.acquireWithin(ctx, name, a.within(patience))
	if err != nil {
		return nil, err
	}
	defer d.release()
	return d.loadWithin(ctx, s, patience)
}

// load reads the account and the record of its token from storage, unless they are in
// memory. The caller holds the lock.
func (d *door) load(ctx context.Context, s logical.Storage) (*account, error) {
	return d.loadWithin(ctx, s, lockPatience)
}

// loadWithin is load for a caller with this patience.
func (d *door) loadWithin(ctx context.Context, s logical.Storage, patience time.Duration) (*account, error) {
	a := d.account.Load()
	switch {
	case a == nil, d.unsure.Load():
		changes := d.changes.Load()
		d.unsure.Store(true)
		cfg, err := loadConfig(ctx, s, d.name)
		if err != nil {
			return nil, err
		}
		if cfg != nil && platformOf(cfg) == nil {
			return nil, unreadable(storageKey(configPrefix, d.name), "its kind of account is unknown to this version of the plugin", otherVersion)
		}
		d.unsure.Store(false)
		if a = d.show(cfg); a == nil {
			return nil, nil
		}
		if d.changes.Load() != changes { // good for this request only
			d.unsure.Store(true)
			d.keeper.show(d, nil)
		}
	case a.holder.fresh() != nil:
		return a, nil
	}
	err := a.holder.loadFor(ctx, s, a, patience)
	if err != nil && a.holder.fresh() != nil {
		// The record is there. What an earlier build stored for the account is not, so the
		// account does not count as loaded.
		d.unsure.Store(true)
		d.keeper.show(d, nil)
	}
	return a, err
}

// show leads the door to an account of this configuration, to none if cfg is nil. The
// caller holds the lock.
func (d *door) show(cfg *config) *account {
	if cfg == nil {
		d.keeper.show(d, nil)
		return nil
	}
	h := d.comingTo(cfg)
	defer d.came(h)
	a := newAccount(d.common, d.name, cfg, h)
	if old := d.account.Load(); old != nil && old.cfg.ID == cfg.ID && old.cfg.Credentials == cfg.Credentials {
		a.inherit(old, func(*problem) bool { return true })
	}
	d.keeper.show(d, a)
	return a
}

// show leads a door to the account, which it brings to its holder.
func (k *keeper) show(d *door, a *account) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.replace(d, a)
}

// replace is show for a caller that holds mu.
func (k *keeper) replace(d *door, a *account) {
	old := d.account.Swap(a)
	if a != nil {
		d.letGo()
	} else if old != nil && d.unsure.Load() {
		d.from = old.holder
		d.from.coming++
	}
	if old != nil {
		old.replaced.Store(true)
		old.holder.setPresent(slices.DeleteFunc(slices.Clone(*old.holder.present.Load()), func(one *account) bool { return one == old }))
		k.vacant[old.holder.id()] = old.holder
	}
	if a != nil && a.holder.gone.Load() { // dropped meanwhile: the background loads the account again
		d.unsure.Store(true)
		d.account.Store(nil)
		return
	}
	if a != nil {
		all := *a.holder.present.Load()
		at, _ := slices.BinarySearchFunc(all, a.name, func(one *account, name string) int { return cmp.Compare(one.name, name) })
		a.holder.setPresent(slices.Insert(slices.Clone(all), at, a))
	}
}

// holderAt returns the holder of the token of this identity, which it makes if it is not in
// memory. Vault's tick drops those to which no account has come.
func (k *keeper) holderAt(p *platform, identity string) *holder {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.holders[holderID(p, identity)]
	if h == nil {
		h = k.newHolder(p, identity, tokenSlot)
		h.prepare = func(ctx context.Context, s logical.Storage, a *account, _ string) (input, error) {
			return input{}, k.recheck(ctx, s, a)
		}
		k.holders[h.id()], k.vacant[h.id()] = h, h
	}
	return h
}

func (k *keeper) newHolder(p *platform, identity string, of slot) *holder {
	h := newHolder(k.common, p, identity, of)
	h.job = wake.Job{Key: h.wakeKey, Work: func() { h.maintain(k.storage) }}
	return h
}

// recheck reads the configuration again before a call is made with it. An instance of the
// mount that was closed may have written it late, and a call with a secret that was replaced
// would say nothing about the account. If storage fails, memory counts.
func (k *keeper) recheck(ctx context.Context, s logical.Storage, a *account) error {
	cfg, err := loadConfig(ctx, s, a.name)
	if err != nil || cfg != nil && *cfg == *a.cfg {
		return nil
	}
	if d := k.lookup(a.name); d != nil && k.forget(d, a) {
		d.reschedule()
	}
	return errChanged
}

// forget has the account loaded again, unless it was replaced meanwhile.
func (k *keeper) forget(d *door, a *account) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d.account.Load() != a {
		return false
	}
	d.unsure.Store(true)
	k.replace(d, nil)
	return true
}

// comingTo returns the holder of the token of an account of this configuration, which the
// caller is about to bring. The holder is not dropped before the caller calls came.
func (k *keeper) comingTo(cfg *config) *holder {
	p := platformOf(cfg)
	for {
		h := k.holderAt(p, p.identity(cfg))
		k.mu.Lock()
		there := !h.gone.Load()
		if there {
			h.coming++
		}
		k.mu.Unlock()
		if there {
			return h
		}
	}
}

func (k *keeper) came(h *holder) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h.coming--
}

// dropHolders takes the holders out of memory that have no account any more.
func (k *keeper) dropHolders() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, h := range k.vacant {
		if len(*h.present.Load()) > 0 {
			delete(k.vacant, id)
			continue
		}
		if st := h.state.Load(); st != nil && st.unstored != nil {
			continue // only memory has it
		}
		if h.coming == 0 && h.lock.TryAcquire(1) {
			h.gone.Store(true)
			h.forgetDerived()
			h.schedule.Set(&h.job, time.Time{})
			delete(k.holders, id)
			delete(k.vacant, id)
			h.lock.Release(1)
		}
	}
}

// invalidate forgets what another node changed in storage. A read in progress may have seen
// the entry of before: the counters tell it so when it ends.
func (k *keeper) invalidate(key string) {
	if name, ok := strings.CutPrefix(key, configPrefix); ok {
		if d := k.lookup(storedName(name)); d != nil {
			d.changes.Add(1)
			d.unsure.Store(true)
			k.show(d, nil)
		}
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, h := range k.holders {
		for _, one := range h.family() {
			if one.key == key {
				one.changes.Add(1)
			}
		}
	}
}

// configOf returns the account's configuration, nil if it is not configured.
func (k *keeper) configOf(ctx context.Context, s logical.Storage, name string) (*config, error) {
	a, err := k.open(ctx, s, name, asReader)
	if err != nil || a == nil {
		return nil, err
	}
	return a.cfg, nil
}

// revoking reports whether a leak response of the account's token is pending.
func (k *keeper) revoking(name string) bool {
	a := k.known(name)
	return a != nil && a.revoking()
}

// wakeKey says which work of the background the door's shares a queue with.
func (d *door) wakeKey() wake.Key {
	if a := d.account.Load(); a != nil {
		return a.wakeKey("token", false)
	}
	return wake.Key{Kind: "load"}
}

// maintain loads an account that could not be loaded, and tries one again whose credentials
// the issuer has not accepted yet.
func (d *door) maintain(s logical.Storage) {
	if !d.lock.TryAcquire(1) {
		d.schedule.Set(&d.job, wallClock().Add(time.Second)) // the caller that has the lock may not set it again
		return
	}
	if d.gone.Load() {
		d.lock.Release(1)
		return
	}
	defer d.release()
	a, err := d.load(d.ctx, s)
	switch {
	case err != nil:
		if d.ctx.Err() == nil {
			d.log.Error("the account cannot be read from storage", "account", d.name, "error", err)
		}
	case a != nil && !a.admitted():
		if f := a.failures[tokenSlot].Load().by(moment()); f == nil && a.revoking() || f != nil && !wallClock().Before(f.Next) {
			if g, before, err := a.try(d.ctx, s); err == nil { // else it is in the view
				_ = a.joinWithin(d.ctx, s, lockPatience, g, before, kept.State{}, true)
			}
		}
	}
}

// allLoaded reports whether the record of every account in memory is there.
func (k *keeper) allLoaded() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, d := range k.doors {
		if a := d.account.Load(); a == nil || a.holder.state.Load() == nil {
			return false
		}
	}
	return true
}
