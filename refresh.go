package wechat

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// maxAsks is how many normal calls are made for one request at most: only if a
// forced call of another name, or somebody else's, came in between is more than one
// needed.
const maxAsks = 3

// ruleForcing is what those are told who could not wait for another name's forced
// refresh to end. It is not remembered.
var ruleForcing = rule{
	classTransient, http.StatusBadGateway, backoffTransient,
	"a forced refresh of this appid is still on its way, and no token of before is handed out", "try again in some seconds",
}

// read returns the account's state with a token that is usable, asking WeChat if that
// is due. The state is nil if the account is not configured. An error from WeChat is a
// *problem.
func (k *keeper) read(ctx context.Context, s logical.Storage, name string) (*state, error) {
	st, _, answered, err := k.readMemory(name)
	if !answered {
		st, _, err = k.readWaiting(ctx, s, name)
	}
	return st, err
}

// readMemory is read as far as memory answers, where nobody waits for anything, with
// the time at which the token was usable.
func (k *keeper) readMemory(name string) (st *state, now time.Time, answered bool, err error) {
	now = wallClock()
	if a := k.lookup(name); a != nil {
		if st := a.current(); st != nil {
			switch {
			case st.servable(now):
				return st, now, true, nil
			case !st.usable(now) && st.waits(now):
				return nil, now, true, st.failure.problem
			}
		}
	}
	return nil, now, false, nil
}

// readWaiting is readMemory for what memory does not answer.
func (k *keeper) readWaiting(ctx context.Context, s logical.Storage, name string) (*state, time.Time, error) {
	a, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return nil, wallClock(), err
	}
	defer k.release(a)
	return a.read(ctx, s, st)
}

// read is keeper.readWaiting for who holds the lock.
func (a *account) read(ctx context.Context, s logical.Storage, st *state) (_ *state, now time.Time, err error) {
	for range maxAsks {
		if st == nil {
			return nil, now, nil
		}
		err := a.awaitForced(ctx, st)
		now = wallClock()
		switch {
		case err != nil:
			return nil, now, err
		case st.servable(now):
			return st, now, nil
		case !st.usable(now) && st.waits(now):
			return nil, now, st.failure.problem
		}
		next, err := a.refresh(ctx, s, st)
		now = wallClock()
		switch {
		case errors.Is(err, errUnmounted) && st.usable(now):
			return st, now, nil
		case err != nil:
			return nil, now, err
		case next.usable(now):
			return next, now, nil
		case next.failure != nil:
			return nil, now, next.failure.problem
		case next.token.end().Sub(now) < minTTL:
			return nil, now, errTooSlow
		}
		st = next // a forced call of another name was begun meanwhile
	}
	return nil, now, &problem{rule: ruleForcing}
}

// errTooSlow is the problem of a token that ended before it was stored.
var errTooSlow = &problem{rule: ruleStorage, detail: "storing the token took longer than its life"}

// awaitForced waits for another name's forced call that is in the air, but no longer
// than the account's request_timeout: it decides whether the token is good.
func (a *account) awaitForced(ctx context.Context, st *state) error {
	if !st.unconfirmed() {
		return nil
	}
	_, err := st.appid.quiet(ctx, st.timeout)
	return asForcing(err)
}

// asForcing turns errForcing, the end of a wait for somebody's forced call, into a
// *problem.
func asForcing(err error) error {
	if errors.Is(err, errForcing) {
		return &problem{rule: ruleForcing}
	}
	return err
}

// report answers an application that WeChat told its token is not valid. rejected
// is that token, or empty for the current one. It asks WeChat at most once in
// minCallInterval, and never by force. changed tells whether the account's token is
// another one than when the request came, and than the rejected one. The state is nil
// if the account is not configured.
func (k *keeper) report(ctx context.Context, s logical.Storage, name, rejected string) (st *state, changed bool, err error) {
	rejected = strings.TrimSpace(rejected) // a line end that came with it makes no other token of it
	var before *state                      // what was known when the request came
	if a := k.lookup(name); a != nil {
		before = a.current()
	}
	if before != nil && before.wasEarlier(rejected) && before.usable(wallClock()) {
		return before, true, nil
	}
	a, st, err := k.acquireLoaded(ctx, s, name)
	if err != nil {
		return nil, false, err
	}
	defer k.release(a)
	if st == nil {
		return nil, false, nil
	}
	if before == nil {
		before = st
	}
	return a.report(ctx, s, st, before, rejected)
}

// report is keeper.report for who holds the lock, before being what was known when
// the request came.
func (a *account) report(ctx context.Context, s logical.Storage, st, before *state, rejected string) (_ *state, changed bool, err error) {
	if err := a.awaitForced(ctx, st); err != nil {
		return nil, false, err
	}
	now := wallClock()
	switch {
	case st.usable(now) && st.isAnother(before, rejected):
		return st, true, nil
	case st.waits(now), st.failure.recent(now):
		return nil, false, st.failure.problem
	case st.usable(now) && st.failure == nil && now.Sub(st.lastSuccess) < minCallInterval:
	default:
		if st, err = a.refresh(ctx, s, st); err != nil {
			return nil, false, err
		}
		switch now = wallClock(); {
		case st.failure != nil:
			return nil, false, st.failure.problem
		case st.unconfirmed():
			return nil, false, &problem{rule: ruleForcing}
		case !st.usable(now):
			return nil, false, errTooSlow
		}
	}
	if st.isAnother(before, rejected) {
		return st, true, nil
	}
	if rejected == "" || st.isCurrent(rejected) {
		if st.rejections == 0 {
			a.log.Warn("WeChat still accepts a token that an application reported as rejected", "account", a.name, "appid", st.appID)
		}
		st = st.rejected(now)
		a.setState(st)
	}
	return st, false, nil
}

// present is what WeChat has named as its present token.
type present struct {
	g       *tokenAnswer
	epoch   int64 // by which the token is good
	outside bool  // it shows that somebody outside has replaced the token before it
}

// ask makes normal calls with a configuration until one brings what is certain to be
// WeChat's present token. trial says that the configuration is not stored. An error
// from WeChat is a *problem.
func (a *account) ask(ctx context.Context, cfg *config, ap *appid, trial bool) (*present, error) {
	e := cfg.endpoint()
	e.trial = trial
	for range maxAsks {
		v, err := ap.quiet(ctx, cfg.RequestTimeout)
		if err != nil {
			return nil, asForcing(err)
		}
		g, err := a.client.stableToken(a.ctx, e, false)
		if err == nil {
			err = g.check()
		}
		if err != nil {
			return nil, err
		}
		if epoch, outside, ok := ap.learn(v, g); ok {
			return &present{g, epoch, outside}, nil
		}
	}
	return nil, &problem{rule: ruleForcing}
}

// refresh makes a normal call, stores the token if it is another one, and remembers
// what came of it. Whether the state it returns has a usable token is for the caller
// to look. The caller holds the lock.
func (a *account) refresh(ctx context.Context, s logical.Storage, st *state) (*state, error) {
	ctx, cancel := detached(ctx)
	defer cancel()
	cfg, err := a.configOf(ctx, s, st)
	if errors.Is(err, errChanged) {
		return nil, err
	}
	begun := wallClock()
	var got *present
	if err == nil {
		got, err = a.ask(ctx, cfg, st.appid, false)
	}
	switch p := problemOf(err); {
	case a.ctx.Err() != nil:
		return nil, errUnmounted
	case p != nil && p.rule == ruleForcing:
		return nil, err
	case err != nil:
		return a.noteFailure(st, asProblem(err), begun), nil
	}
	tok, stored := tokenFrom(got.g, st.token, cfg, got.epoch, false), st.storedToken()
	changed := !st.isCurrent(tok.AccessToken)
	a.metrics.refreshed(changed, got.outside)
	if changed || !st.compared {
		// An instance of the mount that was closed before this one began may have
		// written late. If it has stored this very token, its times count.
		late, err := readToken(ctx, s, a.name)
		if err == nil {
			stored = late
		}
		if changed && late != nil && late.AccountID == cfg.ID && late.AccessToken == tok.AccessToken {
			tok = tokenFrom(got.g, late, cfg, got.epoch, false)
		}
		st.appid.rewrite()
	}
	if changed || st.failure != nil {
		a.log.Debug("token from WeChat", "account", a.name, "appid", st.appID, "expire_time", timestamp(tok.ExpireTime))
	}
	next := st.succeeded(got.g, tok, syncJitter())
	next.compared = true
	return a.publish(ctx, s, next, stored), nil
}

// sendFailure sends the event of an attempt that failed.
func (a *account) sendFailure(p *problem) {
	ev := event{kind: eventRefreshFail, name: a.name, path: statusPrefix + a.name, dataPath: statusPrefix + a.name, more: []string{"class", string(p.class)}}
	if p.errcode != 0 {
		ev.more = append(ev.more, "errcode", strconv.Itoa(p.errcode))
	}
	a.events.send(ev)
}

// noteFailure is the state after an attempt that failed. The caller holds the lock.
func (a *account) noteFailure(st *state, p *problem, begun time.Time) *state {
	st = st.failed(p, begun, wallClock(), syncJitter())
	a.setState(st)
	a.metrics.refreshes.failed.Inc()
	a.sendFailure(p)
	a.log.Warn("no token from WeChat", append([]any{
		"account", a.name, "appid", st.appID, "failures", st.failure.count, "next_attempt", timestamp(st.failure.next),
	}, p.logFields()...)...)
	return st
}
