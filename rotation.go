package wechat

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// rotated is what came of a forced refresh.
type rotated struct {
	state     *state
	same      bool // WeChat handed out the token that was to be replaced
	remaining int  // forced refreshes left today
}

// errNotBegun accompanies an error before which no forced call was made.
var errNotBegun = errors.New("no forced refresh was begun")

// notBegun counts a forced refresh that err prevents, and returns err with errNotBegun,
// and what to do about it.
func (c *common) notBegun(err error) error {
	c.metrics.forced["prevented"].Inc()
	advice := "try again"
	if forbidsWrites(err) {
		advice = adviceUnseal
	}
	return fmt.Errorf("%w: %w; what to do: %s", errNotBegun, err, advice)
}

// hadNoEffect reports whether a forced refresh that ended in err certainly left the
// token and the day's budget as they were.
func hadNoEffect(err error) bool { return upstream.NoEffect(err) || errors.Is(err, errNotBegun) }

// prove has WeChat accept the account's credentials by a normal call if it has not
// yet: only then may the account do what others feel that share its appid. The caller
// holds the lock.
func (a *account) prove(ctx context.Context, s logical.Storage, st *state) (*state, error) {
	if st.accepted {
		return st, nil
	}
	st, err := a.refresh(ctx, s, st)
	switch {
	case err != nil:
		return nil, a.notBegun(err)
	case st.failure != nil:
		return nil, a.notBegun(st.failure.problem)
	}
	return st, nil
}

// rotate replaces the account's token by force. With revoke that is the first half of a
// leak response. It returns nil if the account is not configured. An error of WeChat or of
// its limits is a *problem; with errNotBegun nothing was done.
func (k *keeper) rotate(ctx context.Context, s logical.Storage, name string, revoke bool) (*rotated, error) {
	a, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return nil, k.notBegun(err)
	}
	defer k.release(a)
	if st == nil {
		return nil, nil
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if st, err = a.prove(ctx, s, st); err != nil {
		return nil, err
	}
	cfg, err := a.configOf(ctx, s, st)
	if err != nil {
		return nil, k.notBegun(err)
	}
	return a.force(ctx, s, st, cfg, revoke)
}

// force makes one forced call, the first of a leak response with revoke. Whatever
// happens from then on, the old token is not handed out again unless the call
// certainly had no effect, or a later normal call confirms it: that is in storage
// before the call is made. An error of WeChat or of its limits is a *problem. The
// caller holds the lock.
func (a *account) force(ctx context.Context, s logical.Storage, st *state, cfg *config, revoke bool) (*rotated, error) {
	if a.ctx.Err() != nil {
		return nil, a.notBegun(errUnmounted)
	}
	ap := st.appid
	by := forcer{name: a.name, revokes: revoke}
	if st.token != nil {
		by.token, by.end = st.token.AccessToken, st.token.end()
	}
	f, err := ap.announce(ctx, s, by, cfg.RequestTimeout)
	switch {
	case problemOf(err) != nil: // the limits
		a.metrics.forced["limited"].Inc()
		return nil, err
	case err != nil:
		a.publish(ctx, s, st, st.storedToken()) // if storage fails now, the background writes it later
		return nil, a.notBegun(err)
	}
	sent := wallClock()
	g, err := a.client.stableToken(a.ctx, cfg.endpoint(), true)
	if upstream.NoEffect(err) {
		a.metrics.forced["refused"].Inc()
		ap.undo(f)
		withdrawGuard(ctx, s, f.guard)
		undone := *st
		undone.took = wallClock().Sub(sent)
		a.publish(ctx, s, &undone, st.storedToken())
		return nil, err
	}
	if err == nil {
		err = g.check()
	}
	if err != nil {
		a.metrics.forced["lost"].Inc()
		// The request may reach WeChat as long as it may take.
		ap.end(f, sent.Add(cfg.RequestTimeout), nil)
		if a.ctx.Err() != nil {
			return nil, errUnmounted
		}
		p := asProblem(err)
		a.sendFailure(p)
		failed := st.failed(p, sent, wallClock(), syncJitter())
		failed.failure.next = failed.failure.at // a normal call is to tell at once what holds
		a.publish(ctx, s, failed, st.storedToken())
		return nil, p
	}
	tok := tokenFrom(g, st.token, cfg, f.call.Epoch)
	ap.end(f, g.answered, g)
	next := a.publish(ctx, s, st.succeeded(g, tok, syncJitter()), st.storedToken())
	a.metrics.forcedTo(!st.isCurrent(tok.AccessToken))
	done := &rotated{state: next, same: st.isCurrent(tok.AccessToken), remaining: ap.budget()}
	a.log.Info("forced refresh", "account", a.name, "appid", st.appID, "replaced", !done.same, "remaining", done.remaining)
	return done, nil
}
