package wechat

import (
	"github.com/hashicorp/vault/sdk/logical"
)

// maintain does what is due for the holder, from the background.
func (h *holder) maintain(s logical.Storage) {
	// It waits for its turn, however long: requests that follow each other must not keep it
	// from asking.
	if h.acquire(h.ctx, day) != nil {
		return // the last name has left, or the mount is being closed
	}
	defer h.release()
	now := moment()
	st := h.current(now)
	if st == nil {
		return
	}
	ctx, cancel := detached(h.ctx)
	defer cancel()
	if f := st.unstored.by(now); f != nil && !now.Wall.Before(f.Next) {
		h.state.Store(h.store(ctx, s, st))
	}
	if p := h.pursuit.Load(); p != nil && st.Leak != nil && !now.Wall.Before(p.next) {
		h.pursue(ctx, s, p)
		return
	}
	if h.idle(now.Wall, h.used.Load()) {
		return
	}
	for _, a := range h.accounts() {
		st = h.current(now)
		if !a.admitted() {
			continue // its own door tries it
		}
		if at := st.Next(a.failures[h.slot].Load().by(now).kept()); at.IsZero() || now.Wall.Before(at) {
			continue
		}
		// The account has noted an error. The next account comes after the lock was
		// released: held for the calls of many names, it would keep readers waiting.
		_ = h.refresh(ctx, s, a)
		return
	}
}
