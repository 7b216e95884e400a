package wechat

import (
	"context"
	"errors"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"
)

// adoptLeak takes a leak response of an earlier build into the record, unless that was done
// when its account was loaded.
func (k *keeper) adoptLeak(ctx context.Context, s logical.Storage, l *olderLeak) error {
	if !k.allLoaded() {
		return errPending
	}
	a := k.known(l.Name)
	if a == nil || a.cfg.ID != l.AccountID {
		return nil
	}
	h := a.holder
	if !h.tryAcquire() {
		return errPending
	}
	defer h.release()
	st, err := h.load(ctx, s)
	if err != nil {
		return err
	}
	next := *st
	if st.Leak == nil {
		t := &olderToken{}
		if _, err := readEntry(ctx, s, storageKey(olderTokens, l.Name), t); err != nil && !errors.Is(err, errUnreadable) {
			return err
		}
		next.Leak = l.pending(st, t.Forced)
	}
	if next.Leak == nil {
		return nil
	}
	if h.pursuit.Load() == nil {
		h.pursuit.Store(next.newPursuit(wallClock()))
	}
	if h.keep(ctx, s, &next); h.state.Load().unstored != nil {
		return errPending
	}
	return nil
}

// removeOlder removes the entries of earlier builds, once every account is loaded and what
// they held is in its record.
func (k *keeper) removeOlder(ctx context.Context, s logical.Storage) error {
	if log, err := readLog(ctx, s); err != nil || len(log.leaks) > 0 {
		return err // Vault's tick takes them over, and needs the tokens' counts for that
	}
	k.mu.RLock()
	for _, h := range k.holders {
		if st := h.state.Load(); len(*h.present.Load()) > 0 && (st == nil || st.stored == nil) {
			k.mu.RUnlock()
			return errors.New("not every record is stored yet")
		}
	}
	k.mu.RUnlock()
	var errs []error
	for _, prefix := range []string{olderTokens, olderTickets, olderHistories} {
		keys, err := logical.CollectKeys(ctx, logical.NewStorageView(s, prefix))
		errs = append(errs, err)
		for _, key := range keys {
			errs = append(errs, k.removeOne(ctx, s, prefix, key))
		}
	}
	return errors.Join(errs...)
}

// removeOne removes an entry. A history of forced calls without an account is kept for its
// day.
func (k *keeper) removeOne(ctx context.Context, s logical.Storage, prefix, key string) error {
	if prefix == olderHistories {
		identity := storedName(key)
		k.mu.RLock()
		h := k.holders[holderID(weixin, identity)]
		k.mu.RUnlock()
		if h == nil {
			if r, err := readOlder(ctx, s, identity); err == nil && r != nil && !r.empty(wallClock()) {
				return nil
			}
		}
	}
	return s.Delete(ctx, prefix+strings.TrimPrefix(key, prefix))
}
