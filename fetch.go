package wechat

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// refresh asks the issuer in normal mode with the account's credentials. A success becomes
// the holder's state, a failure the account's. A credential that is derived from a token
// which the issuer turns out to reject has that reported, and is asked for once more.
//
// The caller holds the lock. What was begun is finished even if the caller goes away: the
// next reader needs it just the same.
func (h *holder) refresh(ctx context.Context, s logical.Storage, a *account) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	if a.replaced.Load() {
		return errChanged
	}
	before, err := h.load(ctx, s)
	if err != nil {
		return err
	}
	begun := moment()
	if st := before.at(begun); st != before { // the clock was set back
		h.state.Store(h.storeBound(ctx, s, st, begun))
	}
	in, err := h.prepare(ctx, s, a, "")
	var g kept.Grant
	if err == nil {
		g, err = h.issuer.fetch(h.ctx, h.client, a.cfg.endpoint(false), in)
	}
	if p := problemOf(err); p != nil && p.Class == upstream.ClassToken && in.parent != "" {
		// If the report fails, readers of the token are told why.
		if next, reportErr := h.prepare(ctx, s, a, in.parent); reportErr == nil && next != in {
			g, err = h.issuer.fetch(h.ctx, h.client, a.cfg.endpoint(false), next)
		}
	}
	h.slow.Store(time.Since(begun.Steady) >= slowCall)
	switch {
	case h.ctx.Err() != nil:
		// The mount was closed during the call. The next instance asks for itself, and what
		// this one wrote now could replace what that one has stored.
		return errUnmounted
	case errors.Is(err, errChanged), err != nil && ctx.Err() != nil:
		return err // no attempt failed: none was made, or it was cut short here
	case err != nil:
		if h.parent == nil {
			h.metrics.refreshes["failed"].Inc()
		}
		return a.failed(h, err, begun)
	}
	if changed, outside := h.take(ctx, s, a, g); h.parent == nil {
		h.metrics.refreshed(changed, outside)
	}
	return nil
}

// storeBound stores the end of the credential as the steady clock knows it, after the wall
// clock was set back. A restart loses the steady clock, and by the wall clock alone it would
// take the credential to live longer. The issuer's answer puts the end right, if it comes.
func (h *holder) storeBound(ctx context.Context, s logical.Storage, st *state, now kept.Moment) *state {
	next, bound := *st, *st
	bound.End = earliest(st.End, now.Wall.Add(st.Left(now)).UTC().Truncate(time.Second))
	next.stored = h.store(ctx, s, &bound).stored
	return &next
}

// take makes the answer to a normal call with the account's credentials the state, and
// stores it. It reports whether the credential is another one, and whether it was replaced
// from outside: too early for the issuer to have done so by itself, and not by a forced call
// of this engine. The caller holds the lock.
func (h *holder) take(ctx context.Context, s logical.Storage, a *account, g kept.Grant) (changed, outside bool) {
	now, p := moment(), h.policy(a)
	st := h.state.Load()
	if loaded, err := h.load(ctx, s); err == nil { // another node may have changed it
		st = loaded
	}
	st = st.at(now)
	h.hear(a, g) // readers wait for a new one, however long storage takes
	if !h.reread {
		st = h.lookAgain(ctx, s, st, g)
	}
	next := st.granted(p, g)
	if h.parent == nil {
		if !st.has(a.name, a.cfg) {
			next.bring(a.cfg.Leak)
		}
		next.admit(a.name, a.cfg)
	}
	if st.Leak == nil && next.Leak != nil {
		h.pursuit.Store(cmp.Or(a.moved, next.newPursuit(now.Wall)).keptApart(next, now.Wall))
	}
	changed = st.Value != g.Value
	if st.unanswered() {
		h.settleLost(st, next, g, st.Value == "" || st.early(p, g))
	}
	if changed || a.failures[h.slot].Load() != nil {
		h.log.Debug("granted", "credential", h.issuer.credential, "account", a.name, "appid", a.cfg.AppID, "changed", changed)
	}
	h.accepted(a)
	h.keep(ctx, s, next)
	h.done(g)
	return changed, st.replacedOutside(p, g)
}

// settleLost notes in next what g, the answer to a normal call, tells of the forced call
// whose answer was lost. early says that only that call can have replaced the credential of
// st. The caller holds the lock.
func (h *holder) settleLost(st, next *state, g kept.Grant, early bool) {
	replaced := st.Value != g.Value
	if h.attempt != nil { // for a rotate that is refused as too soon
		h.attempt = &attempt{by: h.attempt.by, at: h.attempt.at, known: true, replaced: replaced}
	}
	switch {
	case !replaced:
		// The call may still be on its way, and void this very token when it arrives.
		next.CompareBy(g.Answered.Wall.Add(h.issuer.limits.apart))
	case early && st.Leak != nil: // and not one that the account has just brought along
		h.progress(next, g.Answered.Wall)
	}
}

// lookAgain reads the record after the first answer since the start. An instance of the
// mount that was closed before may have written late, after this one read the record. If it
// has stored this very credential, its times count: what readers were told stays. Either
// way the record is written over.
func (h *holder) lookAgain(ctx context.Context, s logical.Storage, st *state, g kept.Grant) *state {
	late, err := readRecord(ctx, s, h.key)
	if err != nil {
		return st
	}
	h.reread = true
	next := *st
	if next.stored = late; late == nil {
		next.stored = &record{Version: schemaVersion}
	}
	if late != nil && late.Value == g.Value && st.Value != g.Value {
		next.Credential = late.Credential
	}
	return &next
}

// accepted ends the failures that a success of the account disproves: its own, and those
// of other names in which the platform or the way was at fault. The caller holds the lock.
func (h *holder) accepted(a *account) {
	if h.parent == nil {
		h.last.Store(a)
	}
	a.failures[h.slot].Store(nil)
	for _, other := range h.accounts() {
		if f := other.failures[h.slot].Load(); f != nil && a.shares(other, f.problem) {
			other.failures[h.slot].CompareAndSwap(f, nil)
		}
	}
}

// progress notes in next that a forced call has replaced the credential. A leak
// response is complete after the second: one may leave the leaked token alive.
func (h *holder) progress(next *state, now time.Time) {
	if next.Leak == nil {
		return
	}
	if next.Leak.Left > 1 {
		step := *next.Leak
		if step.Left--; len(next.Forced) > 0 {
			step.First = next.Forced[len(next.Forced)-1].Fence // what came before delays the next step no more
		}
		next.Leak = &step
		h.keepApart(next, now)
		return
	}
	next.Leak, next.RevokedAt = nil, now.UTC().Truncate(timestampUnit)
	h.pursuit.Store(nil)
}

// keepApart sets when the pending leak response goes on, by the forced calls of next.
func (h *holder) keepApart(next *state, now time.Time) {
	if p := h.pursuit.Load(); p != nil && next.Leak != nil {
		h.pursuit.Store(p.keptApart(next, now))
	}
}

// detached is ctx without the caller's end, and with a deadline of its own. It leaves time for
// four calls at their longest, and a minute for storage.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 2*storageTimeout+4*maxRequestTimeout)
}
