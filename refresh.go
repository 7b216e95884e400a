package wechat

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// maxAsks is how many normal calls are made for one request at most: only if a
// forced call of another name, or somebody else's, came in between is more than one
// needed.
const maxAsks = 3

// ruleForcing is what those are told who could not wait for another name's forced
// refresh to end. It is not remembered.
var ruleForcing = rule{
	Class: upstream.ClassTransient, Status: http.StatusBadGateway, Backoff: upstream.BackoffTransient,
	Meaning: "a forced refresh of this appid is still on its way, and no token of before is handed out", Advice: "try again in some seconds",
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
				return nil, now, true, st.told(now)
			}
		}
	}
	return nil, now, false, nil
}

// readWaiting is readMemory for what memory does not answer.
func (k *keeper) readWaiting(ctx context.Context, s logical.Storage, name string) (st *state, now time.Time, err error) {
	err = patiently(ctx, func(came time.Time) error {
		var answered bool
		if st, now, answered, err = k.readMemory(name); !answered {
			st, now, err = k.readOnce(ctx, s, name, came)
		}
		return err
	})
	return st, now, err
}

// readOnce is readWaiting, by somebody who came at the given time, for as long as no
// forced call of another name is in the air.
func (k *keeper) readOnce(ctx context.Context, s logical.Storage, name string, came time.Time) (*state, time.Time, error) {
	a, st, err := k.acquireFor(ctx, s, name, came)
	if err != nil {
		return nil, wallClock(), err
	}
	defer k.release(a)
	return a.read(ctx, s, st, came)
}

// acquireFor is acquireLoaded for somebody who came at the given time. Whoever holds the
// lock does not wait for a forced call of another name, but may be busy with what such a
// call makes void: that is not waited for when the patience for these is over.
func (k *keeper) acquireFor(ctx context.Context, s logical.Storage, name string, came time.Time) (*account, *state, error) {
	if a := k.lookup(name); a != nil {
		if st := a.current(); st != nil {
			patience, cancel := context.WithDeadline(ctx, came.Add(st.timeout))
			defer cancel()
			a, err := k.acquire(patience, name)
			switch by, over := st.appid.forcedBy(); {
			case err == nil:
				if st := a.current(); st != nil {
					return a, st, nil
				}
				k.release(a) // another node changed it
			case ctx.Err() != nil:
				return nil, nil, err
			case over != nil && by != name:
				return nil, nil, newInTheAir(over, st.timeout)
			}
		}
	}
	return k.acquireLoaded(ctx, s, name)
}

// read is keeper.readOnce for who holds the lock.
func (a *account) read(ctx context.Context, s logical.Storage, st *state, came time.Time) (_ *state, now time.Time, err error) {
	for range maxAsks {
		if st == nil {
			return nil, now, nil
		}
		now = wallClock()
		switch {
		case st.servable(now):
			return st, now, nil
		case !st.usable(now) && st.waits(now):
			return nil, now, st.told(now)
		}
		next, err := a.refreshFor(ctx, s, st, came)
		now = wallClock()
		switch {
		case (errors.Is(err, errUnmounted) || isForcing(err)) && st.usable(now):
			return st, now, nil
		case err != nil:
			return nil, now, err
		case next.usable(now):
			return next, now, nil
		case next.failure != nil:
			return nil, now, next.failure.problem
		case next.left(now) < minTTL:
			return nil, now, errTooSlow
		}
		st = next // a forced call of another name was begun meanwhile
	}
	return nil, now, &problem{Rule: ruleForcing}
}

// errTooSlow is the problem of a token that ended before it was stored.
var errTooSlow = &problem{Rule: ruleStorage, Detail: "storing the token took longer than its life"}

// inTheAir is the error of who holds an account's lock and finds a forced call of
// another name in the air. Nobody waits for that with the lock held: whoever comes for
// the account would wait behind, one after the other.
type inTheAir struct {
	*problem                 // for who does not wait at all
	over     <-chan struct{} // closed when that call has ended
	timeout  time.Duration   // the account's request_timeout
}

func newInTheAir(over <-chan struct{}, timeout time.Duration) error {
	return inTheAir{&problem{Rule: ruleForcing}, over, timeout}
}

// Unwrap makes it a *problem to all who do not look closer.
func (e inTheAir) Unwrap() error { return e.problem }

// forcedElsewhere returns an inTheAir if there is a forced call to wait for. It is
// another name's: the account's own is made by who holds the lock, as the caller does.
func (a *account) forcedElsewhere(st *state) error {
	_, forcing := st.appid.look()
	if forcing == nil {
		return nil
	}
	a.overtaken = time.Now()
	return newInTheAir(forcing, st.timeout)
}

// isForcing reports whether err is that a forced call of another name keeps, or has
// kept, a normal one from telling anything.
func isForcing(err error) bool {
	p := problemOf(err)
	return p != nil && p.Rule == ruleForcing
}

// patiently calls try, and again each time that a forced call of another name has
// ended which kept it from its work. For all of these together nobody waits longer than
// the account's request_timeout since they came. The caller holds no lock.
func patiently(ctx context.Context, try func(came time.Time) error) error {
	came := time.Now()
	for {
		err := try(came)
		air, ok := errors.AsType[inTheAir](err)
		if !ok || time.Since(came) >= air.timeout {
			return err
		}
		left := time.NewTimer(time.Until(came.Add(air.timeout)))
		select {
		case <-air.over:
		case <-left.C:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
		left.Stop()
	}
}

// refreshFor is refresh for somebody who came at the given time. Once their patience
// with forced calls of other names is over, and somebody has asked in vain since they
// came, WeChat is not asked again for them.
func (a *account) refreshFor(ctx context.Context, s logical.Storage, st *state, came time.Time) (*state, error) {
	if time.Since(came) >= st.timeout && !a.overtaken.Before(came) {
		return nil, &problem{Rule: ruleForcing}
	}
	return a.refresh(ctx, s, st)
}

// report answers an application that WeChat told its token is not valid. rejected
// is that token, or empty for the current one. It asks WeChat at most once in
// minCallInterval, and never by force. changed tells whether the account's token is
// another one than when the request came, and than the rejected one. The state is nil
// if the account is not configured.
func (k *keeper) report(ctx context.Context, s logical.Storage, name, rejected string) (st *state, changed bool, err error) {
	var before *state // what was known when the request came
	if a := k.lookup(name); a != nil {
		before = a.current()
	}
	if before != nil && before.wasEarlier(rejected) && before.usable(wallClock()) {
		return before, true, nil
	}
	err = patiently(ctx, func(came time.Time) error {
		var a *account
		if a, st, err = k.acquireFor(ctx, s, name, came); err != nil {
			return err
		}
		defer k.release(a)
		if st == nil {
			return nil
		}
		if before == nil {
			before = st
		}
		st, changed, err = a.report(ctx, s, st, before, rejected, came)
		return err
	})
	return st, changed, err
}

// report is keeper.report for who holds the lock, before being what was known when
// the request came, at the given time.
func (a *account) report(ctx context.Context, s logical.Storage, st, before *state, rejected string, came time.Time) (_ *state, changed bool, err error) {
	if err := a.forcedElsewhere(st); err != nil {
		return nil, false, err
	}
	now := wallClock()
	switch {
	case st.usable(now) && st.isAnother(before, rejected):
		return st, true, nil
	case st.waits(now), st.failure.recent(now):
		return nil, false, st.told(now)
	case st.usable(now) && st.failure == nil && now.Sub(st.lastSuccess) < minCallInterval:
	default:
		if st, err = a.refreshFor(ctx, s, st, came); err != nil {
			return nil, false, err
		}
		switch now = wallClock(); {
		case st.failure != nil:
			return nil, false, st.failure.problem
		case st.unconfirmed():
			return nil, false, &problem{Rule: ruleForcing}
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
// from WeChat is a *problem, inTheAir among them.
func (a *account) ask(cfg *config, ap *appid, trial bool) (*present, error) {
	e := cfg.endpoint()
	e.Trial = trial
	for range maxAsks {
		v, forcing := ap.look()
		if forcing != nil {
			return nil, newInTheAir(forcing, cfg.RequestTimeout)
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
	return nil, &problem{Rule: ruleForcing}
}

// refresh makes a normal call, stores the token if it is another one, and remembers
// what came of it. Whether the state it returns has a usable token is for the caller
// to look. The caller holds the lock.
func (a *account) refresh(ctx context.Context, s logical.Storage, st *state) (*state, error) {
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := a.forcedElsewhere(st); err != nil {
		return nil, err
	}
	cfg, err := a.configOf(ctx, s, st)
	if errors.Is(err, errChanged) {
		return nil, err
	}
	begun := wallClock()
	var got *present
	if err == nil {
		got, err = a.ask(cfg, st.appid, false)
	}
	switch {
	case a.ctx.Err() != nil:
		return nil, errUnmounted
	case isForcing(err):
		a.overtaken = time.Now()
		return nil, err
	case err != nil:
		return a.noteFailure(a.storeBound(ctx, s, st), asProblem(err), begun), nil
	}
	tok, stored := tokenFrom(got.g, st.token, cfg, got.epoch), st.storedToken()
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
			tok = tokenFrom(got.g, late, cfg, got.epoch)
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

// storeBound sees to it that a restart takes a token that was noted while the clock was
// ahead for no longer than the steady clock allows, should WeChat not answer before.
func (a *account) storeBound(ctx context.Context, s logical.Storage, st *state) *state {
	now := wallClock()
	if st.compared || st.token == nil {
		return st
	}
	bound := *st.token
	if bound.EndTime = now.Add(st.left(now)).UTC().Truncate(time.Second); !bound.EndTime.Before(st.token.end()) {
		return st
	}
	if err := storeToken(ctx, s, a.name, nil, &bound); err != nil {
		a.log.Warn("the end of a token cannot be corrected in storage", "account", a.name, "error", err)
		return st
	}
	next := *st
	next.compared = true
	return &next
}

// sendFailure sends the event of an attempt that failed.
func (a *account) sendFailure(p *problem) {
	more := []string{"class", string(p.Class)}
	if p.Errcode != 0 {
		more = append(more, "errcode", strconv.Itoa(p.Errcode))
	}
	a.events.send(eventRefreshFail, statusPrefix, a.name, more...)
}

// noteFailure is the state after an attempt that failed. The caller holds the lock.
func (a *account) noteFailure(st *state, p *problem, begun time.Time) *state {
	st = st.failed(p, begun, wallClock(), syncJitter())
	a.setState(st)
	a.metrics.refreshes["failed"].Inc()
	a.sendFailure(p)
	a.log.Warn("no token from WeChat", append([]any{
		"account", a.name, "appid", st.appID, "failures", st.failure.count, "next_attempt", timestamp(st.failure.next),
	}, p.LogFields()...)...)
	return st
}
