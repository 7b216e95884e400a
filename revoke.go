package wechat

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// answerLeak takes the next step of the leak response l, from the background. The caller
// holds the account's lock.
func (k *keeper) answerLeak(s logical.Storage, a *account, st *state, l *leak) {
	ctx, cancel := detached(a.ctx)
	defer cancel()
	ap := st.appid
	if l.expired() {
		a.log.Error("a revocation was given up after a day: the leaked token has run out by itself", "account", a.name, "appid", st.appID)
		ap.endLeak()
		a.publish(ctx, s, st, st.storedToken())
		return
	}
	if l.Turn != a.name {
		ap.changeLeak(func(l *leak) { l.Turn = a.name }) // the others leave it alone
	}
	err := a.replaceLeaked(ctx, s, st)
	if err == nil {
		return
	}
	p := problemOf(err)
	limited := p != nil && p.Local // by spacing or budget
	if !limited {
		a.log.Warn("a revocation waits for its forced refresh", "account", a.name, "appid", st.appID, "error", err)
	}
	other := k.sharer(ap, a.name) // whose credentials and way may be better
	ap.changeLeak(func(l *leak) {
		switch {
		case limited:
			l.retry = wallClock().Add(p.Backoff.First)
		case isForcing(err):
			l.retry = wallClock().Add(overtakenPause)
		default:
			l.failed(err)
			l.Turn = cmp.Or(other, a.name)
		}
	})
}

// replaceLeaked replaces the account's token by force, if its leak response still wants
// that when it is known what became of the call before. The caller holds the lock.
func (a *account) replaceLeaked(ctx context.Context, s logical.Storage, st *state) error {
	st, err := a.confirm(ctx, s, st)
	if err != nil || st.appid.leak.Load() == nil {
		return err
	}
	cfg, err := a.configOf(ctx, s, st)
	if err != nil {
		return a.notBegun(err)
	}
	_, err = a.force(ctx, s, st, cfg, false)
	return err
}

// confirm asks WeChat what holds if it is not known what became of the last forced call,
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

// sharer returns the account after the one of this name, in the order of names, of the
// others that are told of the leak response of ap; "" if there is none.
func (k *keeper) sharer(ap *appid, name string) string {
	others := ap.others(name)
	after, _ := slices.BinarySearch(others, name)
	for _, other := range slices.Concat(others[after:], others[:after]) {
		if st := k.remembered(other); st != nil && st.leak(other) != nil {
			return other
		}
	}
	return ""
}

// leaveLeak is called when the account of this name no longer has the appid: the leak
// response goes on with the credentials of another account, or ends with the last.
func (k *keeper) leaveLeak(ctx context.Context, s logical.Storage, ap *appid, name string) error {
	if ap == nil || ap.leak.Load() == nil {
		return nil
	}
	if next := k.sharer(ap, name); next == "" {
		ap.endLeak()
	} else {
		ap.changeLeak(func(l *leak) {
			if l.By == name {
				l.By = next
			}
			if l.Turn == name {
				l.Turn = next
			}
		})
	}
	return ap.save(ctx, s)
}

// moveLeak stores a copy of the leak response l for ap, which the account of this name is
// about to have: at another base_url it still has the token that leaked.
func (ap *appid) moveLeak(ctx context.Context, s logical.Storage, l *leak, name string) error {
	moved := *l
	moved.By, moved.Turn = name, name
	moved.End = time.Time{} // the token there may be another
	ap.mu.Lock()
	if ap.leak.Load() == nil {
		ap.setLeak(&moved)
	}
	ap.mu.Unlock()
	return ap.save(ctx, s)
}

// adopt is called by Vault's tick, which drops the entry of the write-ahead log that r was
// read from if it returns nil. It does not wait for what is under way with the account.
func (k *keeper) adopt(ctx context.Context, s logical.Storage, r olderLeak) error {
	if !k.allLoaded() {
		return errPending
	}
	st := k.remembered(r.Name)
	if st == nil {
		return nil
	}
	st.adopt(r, r.Name)
	return st.appid.save(ctx, s)
}
