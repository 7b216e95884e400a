package wechat

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// loadPatience is how long a change that has to know all names of an identity waits for them
// to be loaded after a start.
const loadPatience = 5 * time.Second

// configured is what came of a write of a configuration.
type configured struct {
	invalid error    // why the fields of the write are refused; nothing else is set then
	account *account // the account as it is now
	ended   bool     // a pending leak response was given up: it was of another appid's token
}

// configure creates or changes an account. update makes the new configuration of the old
// one, which is nil if there is none. With verify the issuer has to accept it before anything
// is stored. An error from the issuer is a *problem.
//
// The configuration is written in one Put. Before it the old account holds, after it the new
// one, which has no token until the issuer accepts its credentials. An account that leaves
// the record of its token announces that in the write-ahead log, so that a crash leaves no
// token without an account.
func (k *keeper) configure(ctx context.Context, s logical.Storage, name string, verify bool, update func(*config) (*config, error)) (*configured, error) {
	d, err := k.acquire(ctx, name)
	if err != nil {
		return nil, err
	}
	defer d.release()
	ctx, cancel := detached(ctx)
	defer cancel()
	a, err := d.load(ctx, s)
	if err != nil {
		return nil, err
	}
	old, err := loadConfig(ctx, s, name)
	if err != nil {
		return nil, err
	}
	cfg, err := update(old)
	if err != nil {
		return &configured{invalid: err}, nil
	}
	if a != nil && a.cfg.ID == cfg.ID && a.admitted() {
		return d.configureSame(ctx, s, a, cfg, verify)
	}
	return d.configureOther(ctx, s, a, cfg, verify)
}

// configureSame changes an account that keeps its token. The issuer's answer to the trial
// counts even if the configuration is not stored.
func (d *door) configureSame(ctx context.Context, s logical.Storage, old *account, cfg *config, verify bool) (*configured, error) {
	h := old.holder
	next := newAccount(d.common, d.name, cfg, h)
	if verify {
		if err := next.verify(ctx, s); err != nil {
			return nil, err
		}
	}
	if err := storeConfig(ctx, s, d.name, cfg); err != nil {
		d.unsure.Store(true)  // it may have been written all the same
		_, _ = d.load(ctx, s) // if that fails the old one is served, and the background tries again
		return nil, err
	}
	d.unsure.Store(false)
	d.keeper.show(d, next)
	h.mended(cfg.SyncInterval != old.cfg.SyncInterval)
	d.sendConfigured()
	return &configured{account: next}, nil
}

// verify makes a call with the credentials of a configuration that is not stored yet, for an
// account that keeps its token.
func (a *account) verify(ctx context.Context, s logical.Storage) error {
	h := a.holder
	if err := h.acquire(ctx, a.cfg.RequestTimeout); err != nil {
		return err
	}
	defer h.release()
	g, err := a.trial()
	if err != nil {
		return err
	}
	if _, outside := h.take(ctx, s, a, g); outside {
		h.metrics.refreshes["outside"].Inc()
	}
	return nil
}

// configureOther stores an account that is new, becomes another one, or whose credentials
// were never accepted.
func (d *door) configureOther(ctx context.Context, s logical.Storage, old *account, cfg *config, verify bool) (*configured, error) {
	h := d.comingTo(cfg)
	defer d.came(h)
	next := newAccount(d.common, d.name, cfg, h)
	if old == nil || old.cfg.ID != cfg.ID {
		next.takeAlong(old)
	}
	before, err := h.open(ctx, s)
	if err != nil {
		return nil, err
	}
	var g kept.Grant
	if verify {
		if g, err = next.trial(); err != nil {
			return nil, err
		}
		h.hear(next, g) // for the names that share the token, even if this write fails
	}
	leave, err := d.announceLeaving(ctx, s, old, next)
	if err != nil {
		return nil, err
	}
	d.unsure.Store(true)
	d.keeper.show(d, nil) // from here on the old token is not handed out
	if err := storeConfig(ctx, s, d.name, cfg); err != nil {
		_, _ = d.load(ctx, s) // the background tries again
		return nil, err
	}
	d.unsure.Store(false)
	d.keeper.show(d, next)
	var was kept.State // another base_url may lead to the same token
	if old != nil {
		was = old.look(tokenSlot).st.State
	}
	ended, _ := leave(ctx) // if that fails, Vault's tick does it
	done := &configured{account: next, ended: ended}
	if verify {
		if err := next.joinWithin(ctx, s, lockPatience, g, before, was, false); err != nil {
			d.log.Warn("the token of an account could not be fetched after its configuration was stored", "account", d.name, "error", err)
		}
	}
	d.sendConfigured()
	return done, nil
}

func (d *door) sendConfigured() {
	d.events.send(eventConfigWrite, configPrefix, d.name)
}

// trial asks the issuer with a configuration that is not stored. The log has more of the
// failure than the writer is told.
func (a *account) trial() (kept.Grant, error) {
	g, err := a.holder.issuer.fetch(a.ctx, a.client, a.cfg.endpoint(true), input{})
	if p := problemOf(err); p != nil {
		a.log.Warn("the configuration was not stored: "+a.holder.platform.title+" gave no token for it", append([]any{
			"account", a.name, "appid", a.cfg.AppID,
		}, p.LogFields()...)...)
	}
	if err != nil && a.ctx.Err() != nil {
		err = errUnmounted
	}
	return g, err
}

// mended has the background go on at once, after an account's configuration was changed: the
// account is another one, and has no failure to wait for. reschedule says that its
// sync_interval was changed.
func (h *holder) mended(reschedule bool) {
	if p := h.pursuit.Load(); p != nil {
		h.hasten(p)
	}
	if reschedule {
		if h.retime.Store(true); h.tryAcquire() {
			h.release()
		} // else the caller that holds the lock sees to it
	}
	for _, one := range h.family() {
		one.reschedule()
	}
}

// announceLeaving notes in the write-ahead log that the account old is about to leave the
// record of its token: it is deleted if next is nil, else it becomes next. leave then takes
// it from the record, and reports whether a leak response was given up with it. After a crash
// in between Vault's rollback does so.
func (d *door) announceLeaving(ctx context.Context, s logical.Storage, old, next *account) (leave func(context.Context) (ended bool, err error), err error) {
	if old == nil || !old.admitted() || next != nil && next.holder == old.holder && next.cfg.ID == old.cfg.ID {
		return func(context.Context) (bool, error) { return false, nil }, nil
	}
	id, err := framework.PutWAL(ctx, s, walChange, &change{Name: d.name, Identity: old.holder.identity, Platform: old.holder.platform.name})
	if err != nil {
		return nil, fmt.Errorf("the change was not begun: %w", err)
	}
	return func(ctx context.Context) (bool, error) {
		leaking := old.revoking()
		last, err := old.holder.remove(ctx, s, d.name)
		ended := leaking && last && next != nil && next.cfg.Leak.Left == 0
		if err != nil {
			d.log.Warn("what an account leaves behind could not be removed: Vault's tick does", "account", d.name, "error", err)
			return ended, err
		}
		if err := framework.DeleteWAL(ctx, s, id); err != nil {
			d.log.Warn("a finished change stays in the write-ahead log until Vault drops it", "account", d.name, "error", err)
		}
		return ended, nil
	}, nil
}

// takeAlong takes along the leak response that is pending for old, if that has the same AppID:
// behind another base_url the leaked token may be the same one.
func (a *account) takeAlong(old *account) {
	a.cfg.Leak = leak{}
	if old == nil || old.cfg.AppID != a.cfg.AppID || !old.revoking() {
		return
	}
	a.cfg.Leak, a.moved = old.cfg.Leak, old.moved
	if st := old.holder.state.Load(); old.admitted() && st.Leak != nil {
		a.cfg.Leak, a.moved = *st.Leak, old.holder.pursuit.Load()
		if n := len(st.Forced); n > 0 {
			a.cfg.Leak.Called = st.Forced[n-1].At
		}
	}
	a.cfg.Leak.Name = a.name
}

// delete removes an account. Its configuration goes first: without it nothing else counts,
// and after a crash the write-ahead log has what is left removed.
func (k *keeper) delete(ctx context.Context, s logical.Storage, name string) error {
	d, err := k.acquire(ctx, name)
	if err != nil {
		return err
	}
	defer d.release()
	ctx, cancel := detached(ctx)
	defer cancel()
	entry, err := s.Get(ctx, storageKey(configPrefix, name))
	if err != nil || entry == nil {
		return err
	}
	a, err := d.load(ctx, s)
	if err != nil && !errors.Is(err, errUnreadable) {
		return err
	}
	if a != nil && errors.Is(err, errUnreadable) {
		if err := d.dropUnreadable(ctx, s, a.holder); err != nil {
			return err
		}
	}
	leave, err := d.announceLeaving(ctx, s, a, nil)
	if err != nil {
		return err
	}
	d.unsure.Store(true)
	d.keeper.show(d, nil)
	if err := s.Delete(ctx, entry.Key); err != nil {
		_, _ = d.load(ctx, s) // the background tries again
		return err
	}
	d.unsure.Store(false)
	_, err = leave(ctx)
	if a == nil { // its configuration could not be read, so what it had is looked for
		err = k.tidyAll(ctx, s, name)
	}
	d.events.send(eventConfigDelete, configPrefix, name)
	return err
}

// dropUnreadable removes a record that this version of the plugin cannot read, when the last
// account of its identity is deleted. Until then none of them works.
func (d *door) dropUnreadable(ctx context.Context, s logical.Storage, h *holder) error {
	select {
	case <-d.loaded: // before that it is not known which other names have it
	case <-time.After(loadPatience):
		return errors.New("the accounts of this mount are not loaded yet: try again")
	}
	if len(h.others(d.name)) > 0 {
		return nil
	}
	if err := h.acquire(ctx, lockPatience); err != nil {
		return err
	}
	defer h.release()
	return s.Delete(ctx, h.key)
}

// change is the data of a walChange entry: an account that leaves a record. The rollback
// compares the record with the configurations in storage, so an entry that is stale, or is
// rolled back twice, does no harm.
type change struct {
	Name     string `json:"name"`
	Platform string `json:"platform"`
	Identity string `json:"identity"`
}

// reconcile rolls a change back or forward: it takes from the record the names that no
// configuration leads to. It does not wait for a holder that is busy.
func (k *keeper) reconcile(ctx context.Context, s logical.Storage, c *change) error {
	p := platforms[c.Platform]
	if p == nil {
		return nil // of an earlier version: see older.go
	}
	if d := k.lookup(c.Name); d != nil {
		if !d.lock.TryAcquire(1) {
			return errPending // the change may still be under way
		}
		defer d.release()
	}
	h := k.holderAt(p, c.Identity)
	if !h.tryAcquire() {
		return errPending
	}
	defer h.release()
	return h.reconcile(ctx, s)
}

// tidyAll is reconcile for the records that list a name, or, if that is "", for those without
// an account in memory.
func (k *keeper) tidyAll(ctx context.Context, s logical.Storage, name string) error {
	var errs []error
	for _, p := range platforms {
		prefix := p.recordKey(tokenSlot, "")
		keys, err := logical.CollectKeys(ctx, logical.NewStorageView(s, prefix))
		errs = append(errs, err)
		for _, key := range keys {
			h := k.holderAt(p, storedName(key))
			if name == "" && len(*h.present.Load()) > 0 || !h.tryAcquire() {
				continue
			}
			if st, err := h.load(ctx, s); err == nil && (name == "" || st.Names[name].ID != "") {
				errs = append(errs, h.reconcile(ctx, s))
			}
			h.release()
		}
	}
	return errors.Join(errs...)
}
