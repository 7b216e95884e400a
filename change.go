package wechat

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// loadPatience is how long a change waits for the accounts to be loaded after a start,
// where it has to know them all: those that share its appid, to name them or because
// they have its history.
const loadPatience = 5 * time.Second

// configured is what came of a write of a configuration.
type configured struct {
	invalid error  // why the fields of the write are refused; nothing else is set then
	appid   *appid // which the account has now
	ended   bool   // a pending leak response has ended, incomplete: it was of another appid's token
}

// configure creates or changes an account. update makes the new configuration
// of the old, which is nil where there is none; with verify WeChat has to
// accept it before anything is stored. An error from WeChat is a *problem.
//
// What makes the account another one takes several writes. The configuration
// is the one that counts: until it is written the whole old state holds, after
// it the old token names another account and is never served. A write-ahead
// log entry sees to it that such a token is also removed.
func (k *keeper) configure(ctx context.Context, s logical.Storage, name string, verify bool, update func(*config) (*config, error)) (done *configured, err error) {
	err = patiently(ctx, func(time.Time) error {
		done, err = k.configureOnce(ctx, s, name, verify, update)
		return err
	})
	return done, err
}

// configureOnce is configure for as long as no forced call of another name is in the
// air. If one is, nothing is stored.
func (k *keeper) configureOnce(ctx context.Context, s logical.Storage, name string, verify bool, update func(*config) (*config, error)) (*configured, error) {
	a, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return nil, err
	}
	defer k.release(a)
	ctx, cancel := detached(ctx)
	defer cancel()
	old, err := loadConfig(ctx, s, name)
	if err != nil {
		return nil, err
	}
	cfg, err := update(old)
	if err != nil {
		return &configured{invalid: err}, nil
	}
	ap := k.appids.join(cfg, name, a.wake)
	defer func() {
		if a.joined != ap {
			k.appids.leave(ap, name) // nothing came of it
		}
	}()
	if err := ap.load(ctx, s); err != nil {
		return nil, err
	}
	var answer *present
	if verify {
		if answer, err = a.ask(cfg, ap, true); err != nil {
			a.logRefusal(cfg, err)
			return nil, err
		}
		if answer.outside {
			a.metrics.refreshes["outside"].Inc()
		}
	}
	done := &configured{appid: ap}
	if st.sameAccount(cfg) {
		err = a.storeSame(ctx, s, st, cfg, answer)
	} else {
		pending := st != nil && st.leak(name) != nil
		err = k.storeOther(ctx, s, a, st, cfg, answer)
		done.ended = pending && st.appID != cfg.AppID && st.appid.leak.Load() == nil
	}
	if err != nil {
		return nil, err
	}
	a.events.send(eventConfigWrite, configPrefix, name)
	return done, nil
}

// logRefusal writes to the server log why a write of a configuration was refused: it has
// what the writer is not told.
func (a *account) logRefusal(cfg *config, err error) {
	if p := problemOf(err); p != nil && !isForcing(err) {
		a.log.Warn("the configuration was not stored: WeChat gave no token for it", append([]any{
			"account", a.name, "appid", cfg.AppID,
		}, p.LogFields()...)...)
	}
}

// storeSame stores an account that stays the same one. Each of its writes leaves
// storage right, so none has to be undone. What WeChat has answered counts even if
// the configuration is not stored. The caller holds the lock.
func (a *account) storeSame(ctx context.Context, s logical.Storage, st *state, cfg *config, answer *present) error {
	if answer != nil {
		tok := tokenFrom(answer.g, st.token, cfg, answer.epoch)
		st = a.publish(ctx, s, st.succeeded(answer.g, tok, syncJitter()), st.storedToken())
	}
	if err := storeConfig(ctx, s, a.name, cfg); err != nil {
		a.reloadSame(ctx, s, st)
		return err
	}
	a.setState(st.reconfigured(cfg))
	a.configUnsure = false
	if st.leak(a.name) != nil {
		st.appid.changeLeak((*leak).mended)
	}
	a.renewTickets(cfg.way(), func(*problem) bool { return true })
	return nil
}

// storeOther stores an account that is new, or another one than before, whose
// state was st. The caller holds the lock.
func (k *keeper) storeOther(ctx context.Context, s logical.Storage, a *account, st *state, cfg *config, answer *present) error {
	err := k.writeOther(ctx, s, a, st, cfg, answer)
	if err != nil && a.state.Load() == nil { // before that nothing was changed
		a.reload(ctx, s)
	}
	ap := a.appids.find(historyKey(cfg)) // the caller has joined it
	if l := ap.leak.Load(); err != nil && a.current() != nil && a.joined != ap && l != nil && l.By == a.name {
		ap.endLeak() // it has not moved
		_ = ap.save(ctx, s)
	}
	return err
}

func (k *keeper) writeOther(ctx context.Context, s logical.Storage, a *account, st *state, cfg *config, answer *present) error {
	stored, err := readToken(ctx, s, a.name)
	if err != nil {
		return err
	}
	old := stored
	if st != nil && st.token != nil {
		old = st.token
	}
	var tok *token
	if answer != nil {
		tok = tokenFrom(answer.g, old, cfg, answer.epoch)
	}
	done, err := a.beginChange(ctx, s)
	if err != nil {
		return err
	}
	before, ap := a.joined, a.appids.find(historyKey(cfg))
	if st != nil && st.appID == cfg.AppID && st.leak(a.name) != nil {
		if err := ap.moveLeak(ctx, s, st.leak(a.name), a.name); err != nil {
			return err // Vault's tick sweeps what was written all the same
		}
	}
	a.forget() // the old token is not served from here on
	if err := storeConfig(ctx, s, a.name, cfg); err != nil {
		return err
	}
	if tok == nil && stored != nil {
		if err := s.Delete(ctx, storageKey(tokenPrefix, a.name)); err != nil {
			return err
		}
	}
	a.forgetTickets()
	// No ticket of another account is ever used, so this spoils nothing if it fails.
	left := a.removeTickets(ctx, s)
	if before != ap {
		left = errors.Join(left, k.leaveLeak(ctx, s, before, a.name))
	}
	next := newState(cfg, a.join(cfg), nil, 0)
	next.version = a.version(next.appid)
	if tok != nil {
		next = a.publish(ctx, s, next.succeeded(answer.g, tok, syncJitter()), stored)
	} else {
		a.setState(next)
	}
	if left != nil {
		a.log.Warn("what is left of the account that was could not be removed: Vault's tick does", "account", a.name, "error", left)
	}
	if next.unstored == nil && left == nil {
		done()
	}
	return nil
}

// beginChange announces a change of several writes in the write-ahead log. done
// withdraws the announcement after the last of them.
func (a *account) beginChange(ctx context.Context, s logical.Storage) (done func(), err error) {
	id, err := framework.PutWAL(ctx, s, walChange, &change{Name: a.name})
	if err != nil {
		return nil, fmt.Errorf("the change was not begun: %w", err)
	}
	return func() {
		if err := framework.DeleteWAL(ctx, s, id); err != nil {
			a.log.Warn("a finished change stays in the write-ahead log until Vault drops it", "account", a.name, "error", err)
		}
	}, nil
}

// delete removes an account, its configuration first: without that nothing else
// counts, and what is left of it is removed by the write-ahead log.
func (k *keeper) delete(ctx context.Context, s logical.Storage, name string) error {
	a, err := k.acquire(ctx, name)
	if err != nil {
		return err
	}
	defer k.release(a)
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := k.renewHistory(ctx, s, a); err != nil {
		return err
	}
	begun, err := k.deleteStored(ctx, s, a)
	if err != nil {
		if begun {
			a.reload(ctx, s)
		}
		return err
	}
	a.remove()
	if begun {
		a.events.send(eventConfigDelete, configPrefix, name)
	}
	return nil
}

// renewHistory sees to it that a history of forced refreshes that cannot be read, which
// keeps every account of its appid from working, goes with the last of them. The caller
// holds the account's lock.
func (k *keeper) renewHistory(ctx context.Context, s logical.Storage, a *account) error {
	if a.joined == nil || a.joined.known() {
		return nil
	}
	timeout := time.NewTimer(loadPatience)
	defer timeout.Stop()
	select {
	case <-k.loaded: // before that it is not known who else has the appid
		return a.joined.renew(ctx, s, a.name)
	case <-timeout.C:
		return errors.New("the accounts of this mount are not loaded yet: try again")
	}
}

// deleteStored removes what storage holds of an account, its configuration first and its
// leak response last, and reports whether it has begun to: if not, storage is as it was. The caller holds the
// lock.
func (k *keeper) deleteStored(ctx context.Context, s logical.Storage, a *account) (begun bool, err error) {
	keys := []string{storageKey(configPrefix, a.name), storageKey(tokenPrefix, a.name)}
	for kind := range ticketTypes {
		keys = append(keys, ticketKey(kind, a.name))
	}
	var there []string
	for _, key := range keys {
		entry, err := s.Get(ctx, key)
		if err != nil {
			return false, err
		}
		if entry != nil {
			there = append(there, key)
		}
	}
	if len(there) == 0 {
		return false, nil
	}
	done, err := a.beginChange(ctx, s)
	if err != nil {
		return false, err
	}
	for _, key := range there {
		if err := s.Delete(ctx, key); err != nil {
			return true, err
		}
	}
	if err := k.leaveLeak(ctx, s, a.joined, a.name); err != nil {
		return true, err
	}
	done()
	return true, nil
}

// reconcile removes what an unfinished change left in storage: of the account, and a leak
// response that no account has any more. It may run at any time and any number of times,
// and does not wait for the account's lock.
func (k *keeper) reconcile(ctx context.Context, s logical.Storage, name string) error {
	a := k.tryAcquire(name)
	if a == nil {
		return errPending
	}
	err := a.removeOrphan(ctx, s)
	if err == nil && a.current() == nil {
		_, err = a.load(ctx, s) // which appid it has is to be known
	}
	k.release(a)
	if err != nil {
		return err
	}
	return k.sweepOnce(ctx, s)
}
