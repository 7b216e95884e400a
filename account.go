package wechat

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// held is a credential as an account sees it at one moment. All that is told of it comes
// from one look, so no answer mixes two states.
type held struct {
	*account // nil if the account is not configured
	st       *state
	failure  *failure // the last attempt with the account's credentials, if it failed
	now      kept.Moment
}

// look returns how one of the account's credentials stands. Before the issuer has accepted
// its credentials, the account sees none: the token is there for the names that have proved
// that they know the secret.
func (a *account) look(of slot) held {
	now := moment()
	seen := held{account: a, now: now, failure: a.failures[of].Load().by(now)}
	h := a.holder
	if of != tokenSlot {
		h = h.derived[of].Load()
	}
	if h != nil && a.admitted() {
		seen.st = h.current(now)
	}
	if seen.st == nil {
		seen.st = &state{}
	}
	return seen
}

// settled reports whether a reader is answered from memory, with the credential or with an
// error that is remembered.
func (seen held) settled() bool {
	return seen.st.Servable(seen.now, seen.failure.kept()) ||
		!seen.st.Usable(seen.now) && seen.st.Waits(seen.now, seen.failure.kept())
}

// err is why a reader gets no credential, nil if it gets one.
func (seen held) err() error {
	switch f := seen.failure; {
	case seen.st.Usable(seen.now):
		return nil
	case f == nil && !seen.st.Doubted.IsZero():
		return &problem{Rule: ruleBusy} // a forced call has begun meanwhile
	case f == nil:
		return errTooSlow
	case !seen.st.Waits(seen.now, f.kept()):
		return f.problem
	}
	return seen.told()
}

// told is the failure as an answer from memory, with the time of the next attempt.
func (seen held) told() *problem {
	f, next := seen.failure, seen.failure.Next
	if at := seen.st.Next(f.kept()); at.Before(next) {
		next = at
	}
	if !seen.now.Wall.Before(next) {
		next = f.At.Add(seen.apart()) // see recent
	}
	return f.Remembered(f.At, next)
}

// ttl returns after how many seconds the reader should come again.
func (seen held) ttl() int64 { return seen.st.TTL(seen.now, seen.cfg.MaxTTL) }

// errTooSlow says that a credential ended before it could be handed out.
var errTooSlow = &problem{Rule: ruleStorage, Detail: "storing the token took longer than its life"}

// refresh asks the issuer, unless another reader does. It waits for that reader's call no
// longer than request_timeout, and for none if there is a credential to go on with.
func (a *account) refresh(ctx context.Context, s logical.Storage, h *holder) error {
	if !h.tryAcquire() {
		// The attempt before this one failed, so the next may hang as well.
		if seen := a.look(h.slot); seen.failure != nil && seen.st.Usable(seen.now) {
			return nil
		}
		if err := h.acquire(ctx, a.cfg.RequestTimeout); err != nil {
			return err
		}
	}
	defer h.release()
	if _, err := h.load(ctx, s); err != nil {
		return err
	}
	if seen := a.look(h.slot); seen.settled() {
		return seen.err()
	}
	return h.refresh(ctx, s, a)
}

// joinWithin is join for a caller that does not hold the lock.
func (a *account) joinWithin(ctx context.Context, s logical.Storage, patience time.Duration, g kept.Grant, before *state, was kept.State, counted bool) error {
	if err := a.holder.acquire(ctx, patience); err != nil {
		return err
	}
	defer a.holder.release()
	return a.join(ctx, s, g, before, was, counted)
}

// try makes the first call with the account's credentials. If the issuer accepts them, join is
// to follow, with the holder's state from before the call. The caller holds the door's lock,
// and not the holder's: credentials that prove wrong delay no other name.
func (a *account) try(ctx context.Context, s logical.Storage) (g kept.Grant, before *state, err error) {
	ctx, cancel := detached(ctx)
	defer cancel()
	before, begun := a.holder.state.Load(), moment()
	in, err := a.holder.prepare(ctx, s, a, "")
	if err == nil {
		g, err = a.holder.issuer.fetch(a.ctx, a.client, a.cfg.endpoint(false), in)
	}
	switch {
	case a.ctx.Err() != nil:
		return g, before, errUnmounted
	case errors.Is(err, errChanged):
		return g, before, err
	case err != nil:
		a.metrics.refreshes["failed"].Inc()
		return g, before, a.failed(a.holder, err, begun)
	}
	a.holder.hear(a, g)
	return g, before, nil
}

// join makes the account one of those that share the token, after the issuer accepted its
// credentials with the answer g.
//
// before is the holder's state from before that call. If it has changed, another call was
// made meanwhile, and which of the two answers is the later one is not known: the issuer is
// asked again. was is the account's token at another holder until now; if it is the same
// token, its times stay. counted says that the call counts as a refresh, and is no trial of
// a configuration. The caller holds the holder's lock.
func (a *account) join(ctx context.Context, s logical.Storage, g kept.Grant, before *state, was kept.State, counted bool) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	h := a.holder
	if a.replaced.Load() {
		return errChanged
	}
	st, err := h.load(ctx, s)
	if err != nil {
		return err
	}
	if st != before {
		return h.refresh(ctx, s, a)
	}
	if st.Value == "" && was.Value != "" {
		moved := *st
		if moved.State = was; was.Value != g.Value {
			moved.Value = "" // only that its time is another one
		}
		h.state.Store(&moved)
	}
	changed, outside := h.take(ctx, s, a, g)
	if counted || outside {
		h.metrics.refreshed(changed, outside)
	}
	return nil
}

// reported asks the issuer about a token that an application reported, unless the answer is
// known. If the issuer stands by the token, the report is counted. The caller holds the
// holder's lock.
func (a *account) reported(ctx context.Context, s logical.Storage, rejected string, isAnother func(held) bool) error {
	switch seen := a.look(tokenSlot); {
	case a.replaced.Load():
		return errChanged
	case seen.st.Usable(seen.now) && isAnother(seen):
		return nil
	case seen.st.Waits(seen.now, seen.failure.kept()), seen.recent():
		return seen.told()
	case seen.st.Usable(seen.now) && seen.failure == nil && seen.now.Wall.Sub(seen.st.Answered) < seen.apart():
	default:
		if err := a.holder.refresh(ctx, s, a); err != nil {
			return err
		}
	}
	seen := a.look(tokenSlot)
	if err := seen.err(); err != nil {
		return err
	}
	if !isAnother(seen) && (rejected == "" || seen.st.is(rejected)) {
		a.stoodBy(seen)
	}
	return nil
}

// recent reports whether the last attempt failed so shortly ago that a report is answered
// from it. A failure that is to be tried again at once does not count.
func (seen held) recent() bool {
	f := seen.failure
	return f != nil && f.Next.After(f.At) && seen.now.Wall.Sub(f.At) < seen.apart()
}

// stoodBy counts a report of a token that the issuer stands by. The caller holds the
// holder's lock.
func (a *account) stoodBy(seen held) {
	if seen.st.rejections == 0 {
		a.log.Warn(a.holder.platform.title+" still accepts a token that an application reported as rejected", "account", a.name, "appid", a.cfg.AppID)
	}
	next := *seen.st
	next.rejections++
	next.lastRejection = seen.now.Wall
	a.holder.state.Store(&next)
}

// trouble returns what last_error shows: the failure of the last attempt, else that of
// storage, else nil.
func (seen held) trouble() *failure {
	if seen.failure != nil {
		return seen.failure
	}
	return seen.st.unstored
}

// health is how the credential stands, in one word.
func (seen held) health() string {
	switch {
	case seen.st.Value == "" && seen.failure == nil:
		return statePending
	case !seen.st.Usable(seen.now):
		return stateFailing
	case seen.trouble() != nil:
		return stateDegraded
	}
	return stateHealthy
}

// nextAttempt returns when the engine acts next by itself.
func (seen held) nextAttempt() time.Time {
	return earliest(seen.st.Next(seen.failure.kept()), seen.st.unstored.nextTime())
}

// revoking reports whether a leak of the account's token is being answered. It may be a
// response that the account brings along from another base_url: that goes on once the issuer
// has accepted the account there.
func (a *account) revoking() bool {
	if st := a.holder.state.Load(); a.admitted() {
		return st.Leak != nil
	}
	return a.cfg.Leak.Left > 0 && (a.moved != nil || wallClock().Sub(a.cfg.Leak.Requested) < leakAge)
}

// apart is the least time between two calls for the token while nothing is wrong.
func (seen held) apart() time.Duration { return seen.holder.issuer.policy(seen.cfg).Apart }

// forcible reports whether the account's token is replaced on demand.
func (seen held) forcible() bool { return seen.holder.issuer.limits.perDay > 0 }

// budget returns how many forced refreshes the account may still make today. Before the
// issuer has accepted its credentials, it does not learn of those of other names.
func (seen held) budget() int { return seen.holder.issuer.limits.left(seen.st.Forced, seen.now.Wall) }

// The states of an account.
const (
	statePending  = "pending"  // no token was ever fetched
	stateHealthy  = "healthy"  // the token holds and the last attempt succeeded
	stateDegraded = "degraded" // the token holds, but the last attempt failed or storage does
	stateFailing  = "failing"  // there is no valid token
)
