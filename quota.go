package wechat

import (
	"context"

	"github.com/hashicorp/vault/sdk/logical"
)

// errcodeQuota is WeChat's refusal for a daily quota that is used up.
const errcodeQuota = 45009

// quotaCleared ends the wait of an account, and of the others with its appid, and of
// their tickets, for the daily quota: the counters at WeChat went back to zero. It is
// called after that succeeded, and what cannot be told is tried again by itself in
// minutes.
func (k *keeper) quotaCleared(ctx context.Context, s logical.Storage, name string) {
	ctx, cancel := detached(ctx)
	defer cancel()
	names := []string{name}
	if st, err := k.stateOf(ctx, s, name); err == nil && st != nil {
		names = append(names, st.appid.others(name)...)
	}
	for _, of := range names {
		a, st, err := k.acquireLoaded(ctx, s, of)
		if err != nil {
			k.log.Warn("a wait for the quota goes on, though it was cleared", "account", of, "error", err)
			continue
		}
		if st != nil && st.failure != nil && st.failure.errcode == errcodeQuota {
			next := *st
			next.failure = nil
			a.setState(&next)
		}
		a.retryTickets(func(p *problem) bool { return p.errcode == errcodeQuota })
		k.release(a)
	}
}
