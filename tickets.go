package wechat

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// ticket returns the account's ticket of a type, usable at the given time, and the
// account's state; both are nil if the account is not configured. WeChat is asked if
// the ticket is not in memory or storage, or was not confirmed for long. An error from
// WeChat is a *problem. A failure in the ticket's state has to be told to whoever uses
// it.
func (k *keeper) ticket(ctx context.Context, s logical.Storage, name string, kind ticketType) (ts *ticketState, st *state, now time.Time, err error) {
	now = wallClock()
	a := k.lookup(name)
	if a != nil {
		st = a.current()
	}
	if st == nil {
		if a, st, err = k.acquireLoaded(ctx, k.metrics.watched(s), name); err != nil {
			return nil, nil, now, err
		}
		k.release(a)
		if st == nil {
			return nil, nil, now, nil
		}
	}
	t := a.ticket(kind, st.way)
	t.touch(now)
	if ts := t.state.Load(); ts.of(st) && !ts.asleep {
		switch {
		case ts.servable(now):
			return ts, st, now, nil
		case !ts.usable(now) && ts.waits(now):
			return nil, st, now, ts.told()
		}
	}
	ts, now, err = k.freshTicket(ctx, k.metrics.watched(s), t, st)
	return ts, st, now, err
}

// of reports whether the ticket belongs to the account whose state is st.
func (ts *ticketState) of(st *state) bool { return ts != nil && ts.accountID == st.accountID }

// freshTicket is keeper.ticket for one that is not simply there.
func (k *keeper) freshTicket(ctx context.Context, s logical.Storage, t *accountTicket, st *state) (_ *ticketState, now time.Time, err error) {
	now = wallClock()
	if !t.lock.TryAcquire(1) {
		// Somebody asks WeChat. Where that has failed before, nobody else waits for it.
		if ts := t.state.Load(); ts.of(st) && ts.failure != nil && ts.usable(now) {
			return ts, now, nil
		}
		if err := t.lock.Acquire(ctx, 1); err != nil {
			return nil, now, err
		}
	}
	defer t.lock.Release(1)
	ts := t.state.Load()
	if !ts.of(st) {
		if ts, err = k.loadTicket(ctx, s, t, st); err != nil {
			return nil, now, err
		}
	}
	switch now = wallClock(); {
	case ts.servable(now):
		return k.awaken(t, ts), now, nil
	case !ts.usable(now) && ts.waits(now):
		return nil, now, ts.told()
	}
	next, err := k.fetchTicket(ctx, s, t, ts)
	now = wallClock()
	switch {
	case errors.Is(err, errUnmounted) && ts.usable(now):
		return ts, now, nil
	case err != nil:
		return nil, now, err
	case next.usable(now), next.failure == nil:
		return next, now, nil
	}
	return nil, now, next.failure.problem
}

// loadTicket reads the ticket from storage. The caller holds the ticket's lock.
func (k *keeper) loadTicket(ctx context.Context, s logical.Storage, t *accountTicket, st *state) (*ticketState, error) {
	stored, err := readTicket(ctx, s, t.kind, t.name)
	if err != nil {
		return nil, err
	}
	ts := &ticketState{accountID: st.accountID}
	if stored != nil && stored.AccountID == st.accountID {
		ts.ticket, ts.stored = stored, stored
		if stored.ConfirmedAt.Sub(wallClock()) > clockTolerance {
			// By a clock that was ahead: how long ago that was is not known.
			unsure := *stored
			unsure.ConfirmedAt = wallClock().Add(-ticketGrace).UTC()
			ts.ticket = &unsure
		}
		ts.schedule()
	}
	k.setTicket(t, ts)
	return ts, nil
}

// awaken has the background compare a ticket again that was not used for long. The
// caller holds the ticket's lock.
func (k *keeper) awaken(t *accountTicket, ts *ticketState) *ticketState {
	if !ts.asleep {
		return ts
	}
	awake := *ts
	awake.asleep = false
	k.setTicket(t, &awake)
	return &awake
}

// setTicket replaces the state, and sets when the background looks at the ticket next.
// The caller holds the ticket's lock.
func (k *keeper) setTicket(t *accountTicket, ts *ticketState) {
	t.state.Store(ts)
	k.schedule.Set(&t.job, ts.wake())
}

// fetchTicket asks WeChat, stores the ticket if storage is to have it, and remembers
// what came of it. Whether the state that it returns has a usable ticket is for the
// caller to look. The caller holds the ticket's lock.
func (k *keeper) fetchTicket(ctx context.Context, s logical.Storage, t *accountTicket, ts *ticketState) (*ticketState, error) {
	value, asked, ofToken, err := k.askTicket(ctx, s, t, ts.accountID)
	now := wallClock()
	t.slow.Store(!asked.IsZero() && now.Sub(asked) >= slowCall)
	switch {
	case k.ctx.Err() != nil:
		return nil, errUnmounted
	case errors.Is(err, errChanged), err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		p := asProblem(err)
		next := ts.failed(p, ofToken, now)
		k.setTicket(t, next)
		if !ofToken { // which has been logged already
			k.log.Warn("no ticket from WeChat", append([]any{
				"account", t.name, "type", t.kind.String(), "failures", next.failure.count, "next_attempt", timestamp(next.failure.next),
			}, p.LogFields()...)...)
		}
		return next, nil
	}
	next := ts.confirmed(value, asked, now)
	if changed := ts.ticket == nil || ts.ticket.Ticket != value; changed || ts.failure != nil {
		k.log.Debug("ticket from WeChat", "account", t.name, "type", t.kind.String(), "changed", changed)
	}
	k.setTicket(t, next) // before it is stored: nobody has to wait for that
	return k.storeTicket(ctx, s, t, next), nil
}

// askTicket asks WeChat for the ticket with the account's token. A token that WeChat
// does not accept is reported, as by an application, and if it is replaced then WeChat
// is asked once more. ofToken tells that there is no token to ask with.
func (k *keeper) askTicket(ctx context.Context, s logical.Storage, t *accountTicket, accountID string) (value string, asked time.Time, ofToken bool, err error) {
	st, err := k.read(ctx, s, t.name)
	if err != nil {
		return "", asked, true, err
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	for again := false; ; again = true {
		if st == nil || st.accountID != accountID {
			return "", asked, false, errChanged
		}
		cfg, err := loadConfig(ctx, s, t.name)
		switch {
		case err != nil:
			return "", asked, false, err
		case cfg == nil || cfg.ID != accountID:
			return "", asked, false, errChanged
		}
		rejected := st.token.AccessToken
		asked = wallClock()
		value, err = k.client.ticket(k.ctx, cfg.endpoint(), rejected, t.kind.String())
		if p := problemOf(err); p == nil || p.Class != upstream.ClassToken || again {
			return value, asked, false, err
		}
		// Its error is told to who asks for the token.
		next, changed, reportErr := k.report(ctx, s, t.name, rejected)
		if reportErr != nil || !changed {
			return "", asked, false, err
		}
		st = next
	}
}

// storeTicket stores the ticket if it is time to. If storage does not take it, or
// somebody is busy with the account, the ticket is used all the same, and the
// background goes on trying. The caller holds the ticket's lock.
func (k *keeper) storeTicket(ctx context.Context, s logical.Storage, t *accountTicket, ts *ticketState) *ticketState {
	now := wallClock()
	if ts.storeAt.IsZero() || now.Before(ts.storeAt) {
		return ts
	}
	next := *ts
	if a := k.tryAcquire(t.name); a == nil {
		next.storeAt = now.Add(time.Second)
	} else {
		a.storeTicket(ctx, s, t, &next)
		k.release(a)
	}
	k.setTicket(t, &next)
	return &next
}

// storeTicket is keeper.storeTicket for who holds both locks. It puts into next what
// came of it.
func (a *account) storeTicket(ctx context.Context, s logical.Storage, t *accountTicket, next *ticketState) {
	st := a.current()
	switch {
	case st == nil && (a.needsLoad || a.state.Load() != nil):
		next.storeAt = wallClock().Add(time.Second) // until it is loaded again
		return
	case st == nil, !next.of(st), a.tickets[t.kind].Load() != t, a.ctx.Err() != nil:
		next.storeAt = time.Time{} // it is nobody's any more
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	err := writeEntry(ctx, s, ticketKey(t.kind, t.name), next.ticket)
	if a.ctx.Err() != nil {
		_ = a.removeOrphan(ctx, s) // what was written late must not outlive the account
	}
	if err == nil {
		next.stored, next.storeAt, next.unstored = next.ticket, time.Time{}, nil
		return
	}
	if next.unstored == nil {
		a.log.Error("a ticket cannot be stored: it is used from memory, and tried to be stored again", "account", t.name, "type", t.kind.String(), "error", err)
	}
	next.stored = nil // it may have been written all the same
	next.unstored = next.unstored.after(storageProblem(err), wallClock())
	next.storeAt = next.unstored.next
}

// maintainTicket does what is due for a ticket, from the background: nothing if nobody
// has used it for long.
func (k *keeper) maintainTicket(s logical.Storage, t *accountTicket) {
	a := k.lookup(t.name)
	if a == nil || a.tickets[t.kind].Load() != t {
		return
	}
	if !t.lock.TryAcquire(1) {
		// Whoever holds it may have set the schedule already.
		k.schedule.Set(&t.job, wallClock().Add(time.Second))
		return
	}
	defer t.lock.Release(1)
	ts := t.state.Load()
	if ts == nil {
		return
	}
	ts = k.storeTicket(k.ctx, s, t, ts)
	now := wallClock()
	if t.idle(now) {
		asleep := *ts
		asleep.asleep = true
		k.setTicket(t, &asleep)
		return
	}
	if at := ts.nextAttempt(); !at.IsZero() && !now.Before(at) {
		if _, err := k.fetchTicket(k.ctx, s, t, ts); err == nil {
			return // it has set the schedule
		}
		// The account is changed, or storage does not give it: whoever uses it finds out.
		k.schedule.Set(&t.job, now.Add(reloadInterval))
		return
	}
	k.schedule.Set(&t.job, ts.wake())
}
