package wechat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// errNotBegun marks an error before which no forced call was made.
var errNotBegun = errors.New("no forced refresh was begun")

// notBegun counts a forced refresh that err prevents, and returns err with errNotBegun and
// the remedy.
func (c *common) notBegun(err error) error {
	c.metrics.forced["prevented"].Inc()
	advice := "try again"
	if forbidsWrites(err) {
		advice = adviceUnseal
	}
	return fmt.Errorf("%w: %w; what to do: %s", errNotBegun, err, advice)
}

// hadNoEffect reports whether a forced refresh that ended in err certainly left the
// credential and the day's budget as they were.
func hadNoEffect(err error) bool { return upstream.NoEffect(err) || errors.Is(err, errNotBegun) }

// tooSoon is the error of a forced refresh that a limit forbids. A client repeats a request
// whose answer it did not get, and sees only this error. So the error tells what came of the
// call before, and whether a leak is being answered.
type tooSoon struct {
	*problem
	last      *attempt  // the call before; nil if the day's budget alone forbids another
	next      time.Time // when the pending leak response goes on; zero if none is pending
	completed time.Time // when the last leak response was complete; zero if before that call
}

// Unwrap makes it a *problem to all that do not look closer.
func (e *tooSoon) Unwrap() error { return e.problem }

// refusal returns p with what is known besides. The caller holds the lock.
func (h *holder) refusal(p *problem) *tooSoon {
	now := wallClock()
	e, st := &tooSoon{problem: p}, h.state.Load()
	switch calls := lately(st.Forced, now); {
	case h.attempt != nil && time.Now().Before(h.spaced):
		last := *h.attempt
		e.last = &last
	case h.issuer.limits.spacing(calls, now) > 0:
		e.last = &attempt{at: earliest(calls[len(calls)-1].At, now)}
	}
	if at := h.pursuit.Load().nextTime(); !at.IsZero() {
		e.next = latest(at, now.Add(p.Backoff.First))
	}
	if e.last != nil && !st.RevokedAt.Before(e.last.at.Truncate(timestampUnit)) && st.RevokedAt.Sub(now) < clockTolerance {
		e.completed = st.RevokedAt
	}
	return e
}

// rotated is what came of a forced refresh.
type rotated struct {
	st        *state
	same      bool // the issuer handed out the token that was to be replaced
	remaining int  // forced refreshes left today
}

// force makes one forced call with the account's credentials.
//
// Its announcement is in storage before it is sent: a new fence, under which no token was
// named yet, the call itself, and asked, the leak response of which it may be the first
// step. From then on the old token is handed out again in two cases only: the call certainly
// had no effect, or a later normal call confirms the token. The engine may crash at any
// point, and the answer may be lost.
//
// An error of the issuer or of its limits is a *problem. The caller holds the lock.
func (h *holder) force(ctx context.Context, s logical.Storage, a *account, asked *leak) (*rotated, error) {
	if _, err := h.prepare(ctx, s, a, ""); err != nil {
		return nil, h.notBegun(err)
	}
	if h.ctx.Err() != nil {
		return nil, h.notBegun(errUnmounted)
	}
	now := moment()
	before := h.current(now)
	if before == nil {
		return nil, h.notBegun(errChanged) // another node has changed the record
	}
	// The budget is in the record, and survives a restart. Two clocks measure the spacing:
	// the wall clock may have been set since the last call, the steady one begins with the
	// process.
	if wait := max(h.issuer.limits.wait(before.Forced, now.Wall), time.Until(h.spaced)); wait > 0 {
		h.metrics.forced["limited"].Inc()
		return nil, h.issuer.limits.problem(h.platform.title, before.Forced, max(wait, time.Second), now.Wall)
	}
	announced, guard, err := h.announce(ctx, s, a, before, asked)
	if err != nil {
		return nil, h.notBegun(err)
	}
	// What memory knows of the call before holds again if this one had no effect.
	prior, pursued := h.attempt, h.pursuit.Load()
	h.attempt = &attempt{by: a.name, at: now.Wall}
	// Memory follows the record. Until the answer is here, the call counts as one that may
	// have had its effect.
	if asked != nil {
		h.pursuit.Store(announced.newPursuit(now.Wall))
	}
	sent := moment()
	g, err := h.issuer.fetch(h.ctx, h.client, a.cfg.endpoint(false), input{force: true})
	h.slow.Store(time.Since(sent.Steady) >= slowCall)
	switch {
	case upstream.NoEffect(err):
		h.metrics.forced["refused"].Inc()
		h.attempt = prior
		h.pursuit.Store(pursued)
		h.undo(ctx, s, before, guard, announced.Fence)
		return nil, err
	case err != nil:
		// Also if the mount was closed meanwhile: the fence is stored, so the next instance
		// finds the token in doubt.
		h.lost(ctx, s, a, announced, sent, err)
		if h.ctx.Err() != nil {
			return nil, errUnmounted
		}
		return nil, asProblem(err)
	}
	return h.forced(ctx, s, a, announced, g), nil
}

// announce stores that a forced call is about to be made, and publishes it to the readers,
// who are not given the old token from then on. If storage fails, no call is made. It may
// have taken the announcement all the same, so the record is then written as it was.
func (h *holder) announce(ctx context.Context, s logical.Storage, a *account, before *state, asked *leak) (*state, string, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	now := moment()
	// The issuer counts from when the call arrives. Storage takes its time before the call
	// is sent, so the stored time is the latest at which that can be.
	call := forcedCall{At: now.Wall.Add(storageTimeout + a.cfg.RequestTimeout).UTC(), Fence: newFence()}
	next := *before
	next.Fence, next.Doubted = call.Fence, now.Wall
	// The record keeps as many calls as a day allows: older ones limit nothing.
	next.Forced = append(slices.Clone(before.Forced[max(0, len(before.Forced)-h.issuer.limits.perDay+1):]), call)
	if asked != nil {
		begun := *asked
		begun.First = call.Fence
		next.Leak = &begun
	}
	// The guard comes first: a record that announces a call has one from then on.
	guard, err := h.guards.put(ctx, s, h.key, &next)
	unsure := err != nil // storage may hold the guard all the same
	if err == nil && h.ctx.Err() != nil {
		err = errUnmounted // a closed instance begins no write of the record
	}
	if err == nil {
		r := next.record()
		if err = writeEntry(ctx, s, h.key, r); err == nil {
			err = ctx.Err()
		}
		next.stored = r
	}
	if err != nil {
		ctx := context.WithoutCancel(ctx) // its time is over
		h.rewrite(ctx, s, before, call.Fence, unsure || !withdrawGuard(ctx, s, guard))
		return nil, "", err
	}
	h.state.Store(&next)
	return &next, guard, nil
}

// rewrite writes the record again as it was, after a write of which it is not known
// whether storage carried it out. guarded says that storage may hold a guard with this
// fence, of a call that had no effect.
func (h *holder) rewrite(ctx context.Context, s logical.Storage, before *state, fence int64, guarded bool) {
	next := *before
	if guarded {
		next.Void = append(slices.Clone(before.Void[max(0, len(before.Void)-h.issuer.limits.perDay+1):]), fence)
	}
	h.storeAgain(ctx, s, &next)
}

// undo ends a forced call that certainly had no effect: the state of before holds again.
func (h *holder) undo(ctx context.Context, s logical.Storage, before *state, guard string, fence int64) {
	h.state.Store(before) // first: readers need not wait for storage
	h.rewrite(ctx, s, before, fence, !withdrawGuard(ctx, s, guard))
}

// lost ends a forced call whose effect is not known. The fence stays, so the token is in
// doubt until a normal call has told which one holds. That call is due at once.
func (h *holder) lost(ctx context.Context, s logical.Storage, a *account, announced *state, sent kept.Moment, err error) {
	h.metrics.forced["lost"].Inc()
	// The request may still arrive, for as long as a request may take.
	next := h.ended(announced, sent.Wall.Add(a.cfg.RequestTimeout))
	if h.ctx.Err() == nil {
		_ = a.failed(h, err, sent)
		at := *a.failures[h.slot].Load()
		at.Next = wallClock() // the normal call waits for no backoff
		a.failures[h.slot].Store(&at)
	}
	h.keep(ctx, s, next)
}

// forced makes the answer to a forced call the state.
func (h *holder) forced(ctx context.Context, s logical.Storage, a *account, announced *state, g kept.Grant) *rotated {
	next := h.ended(announced, g.Answered.Wall).granted(h.policy(a), g)
	next.admit(a.name, a.cfg)
	same := announced.Value == g.Value
	if !same {
		h.progress(next, g.Answered.Wall)
	} else {
		// The issuer took the call and gave the old token out again. The leak response is
		// where it was, and waits the longer.
		h.keepApart(next, g.Answered.Wall)
	}
	h.attempt.known, h.attempt.replaced = true, !same
	h.accepted(a)
	h.keep(ctx, s, next)
	h.done(g)
	h.metrics.forcedTo(!same)
	done := &rotated{st: h.state.Load(), same: same, remaining: h.issuer.limits.left(next.Forced, g.Answered.Wall)}
	h.log.Info("forced refresh", "account", a.name, "appid", a.cfg.AppID, "replaced", !same, "remaining", done.remaining)
	return done
}

// ended is the state after a forced call that reached the issuer at the given time at the
// latest. The announcement named a later one.
func (h *holder) ended(announced *state, reached time.Time) *state {
	// The state is shared with readers: the call's time is changed in a copy.
	next := *announced
	next.Forced = slices.Clone(announced.Forced)
	next.Forced[len(next.Forced)-1].At = reached.UTC()
	// If reached is further ahead than a request may take, the clock was set back meanwhile.
	ahead := min(max(0, reached.Sub(wallClock())), maxRequestTimeout)
	h.spaced = time.Now().Add(h.issuer.limits.apart + ahead)
	h.keepApart(&next, wallClock())
	return &next
}

// pursue takes the next step of the pending leak response with the credentials of one
// account. If these fail, it is the next account's turn after the lock was released: a
// secret may have been reset since. The caller holds the lock.
func (h *holder) pursue(ctx context.Context, s logical.Storage, p *pursuit) {
	st := h.state.Load().at(moment())
	if time.Now().After(p.giveUp) {
		h.log.Error("a revocation was given up after a day: the leaked token has run out by itself", "account", st.Leak.Name)
		h.endLeak(ctx, s, st)
		return
	}
	// Only accounts that the issuer has accepted share the token. One that comes or goes
	// between two turns costs a turn at most.
	able := slices.DeleteFunc(slices.Clone(h.accounts()), func(a *account) bool { return !a.admitted() })
	err := errChanged
	if p.turn < len(able) {
		err = h.step(ctx, s, able[p.turn])
	}
	if err == nil {
		return
	}
	now := wallClock()
	next := *p
	switch problem := problemOf(err); {
	case problem != nil && problem.Local: // spacing or budget, which tell when
		next.next = now.Add(problem.Backoff.First)
	case p.turn+1 < len(able) && (errors.Is(err, errChanged) || problem != nil && ownFault(problem)):
		next.turn++
		next.next = now
	default: // the next account would fail at the same, or there is none
		next.turn = 0
		next.failures++
		next.quota = isQuota(problem)
		next.next = now.Add(backoffRevocation.After(next.failures, randomFraction()))
	}
	// If a call was made, or a person has mended something, the next attempt is set already.
	h.pursuit.CompareAndSwap(p, &next)
}

// step makes the next forced call of a leak response with the account's credentials. If the
// token is in doubt, a normal call is made first: the forced call that was lost may have
// been the second.
func (h *holder) step(ctx context.Context, s logical.Storage, a *account) error {
	st := h.current(moment())
	if st == nil {
		return errChanged // another node has changed the record
	}
	if !st.Doubted.IsZero() || !st.proven(a.name, a.cfg) {
		if err := h.refresh(ctx, s, a); err != nil {
			return err
		}
		if h.state.Load().Leak == nil {
			return nil
		}
	}
	_, err := h.force(ctx, s, a, nil)
	return err
}

// endLeak gives the pending leak response up. It is not complete, so RevokedAt stays as it
// is.
func (h *holder) endLeak(ctx context.Context, s logical.Storage, st *state) {
	next := *st
	next.Leak = nil
	h.pursuit.Store(nil) // before the record: the background must not begin again
	h.keep(ctx, s, &next)
}

// hasten lets the leak response go on at once after a person has mended what it failed at.
// The issuer's spacing of forced calls still holds.
func (h *holder) hasten(p *pursuit) {
	if st := h.state.Load(); st != nil {
		now := wallClock()
		// An attempt in progress may have set its own time meanwhile: that one holds.
		h.pursuit.CompareAndSwap(p, &pursuit{giveUp: p.giveUp, next: now.Add(h.issuer.limits.spacing(st.Forced, now))})
	}
}
