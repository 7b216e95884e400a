package wechat

import (
	"context"
	"errors"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// glance answers a reader from memory, without a lock or a wait. ok is false if that is not
// possible.
func (k *keeper) glance(name string, of slot) (seen held, ok bool, err error) {
	a := k.known(name)
	if a == nil {
		return held{}, false, nil
	}
	seen = a.look(of)
	if of != tokenSlot && a.admitted() {
		k.holderOf(a, of).touch(seen.now.Wall)
	}
	if !seen.settled() {
		return held{}, false, nil
	}
	return seen, true, seen.err()
}

// get returns one of the account's credentials, which is usable at the moment that it names.
// The issuer is asked if one is due. The account is nil if it is not configured. An error
// from the issuer is a *problem.
func (k *keeper) get(ctx context.Context, s logical.Storage, name string, of slot) (held, error) {
	if seen, ok, err := k.glance(name, of); ok {
		return seen, err
	}
	return k.fetch(ctx, s, name, of)
}

// fetch is get where memory has no answer. A change of the configuration meanwhile has it
// begin anew.
func (k *keeper) fetch(ctx context.Context, s logical.Storage, name string, of slot) (held, error) {
	for {
		a, err := k.open(ctx, s, name, asReader)
		if err != nil || a == nil {
			return held{}, err
		}
		was := a.admitted()
		if !was {
			err = k.admit(ctx, s, a, false)
		}
		if err == nil && a.admitted() && (was || of != tokenSlot) {
			h := k.holderOf(a, of)
			if of != tokenSlot {
				h.touch(wallClock())
			}
			err = a.refresh(ctx, s, h)
		}
		if errors.Is(err, errChanged) && ctx.Err() == nil {
			continue
		}
		seen := a.look(of)
		if seen.st.Usable(seen.now) {
			return seen, nil
		}
		if err == nil {
			err = seen.err()
		}
		return seen, err
	}
}

// admit makes the first call with the account's credentials. Until the issuer accepts them,
// the account shares nothing with the names of the same identity, since an AppID is public.
// The call takes only the door's lock: one that hangs delays no other name.
func (k *keeper) admit(ctx context.Context, s logical.Storage, a *account, atOnce bool) error {
	patience := asReader
	if atOnce {
		patience = lockPatience
	}
	d, err := k.acquireWithin(ctx, a.name, a.within(patience))
	if err != nil {
		return err
	}
	handedOn := false
	defer func() {
		if !handedOn {
			d.release()
		}
	}()
	switch seen := a.look(tokenSlot); {
	case a.replaced.Load():
		return errChanged
	case a.admitted():
		return nil
	case !atOnce && seen.st.Waits(seen.now, seen.failure.kept()):
		return seen.err()
	}
	g, before, err := a.try(ctx, s)
	if err != nil {
		return err
	}
	if err := a.holder.acquire(ctx, a.within(patience)); err != nil {
		// Another name's call is under way. The answer waits for its end, and the door with
		// it: readers that come meanwhile make no further call.
		handedOn = true
		k.busy.Go(func() {
			defer d.release()
			_ = a.joinWithin(k.ctx, s, lockPatience, g, before, kept.State{}, true)
		})
		return err
	}
	defer a.holder.release()
	return a.join(ctx, s, g, before, kept.State{}, true)
}

// report answers an application that was told its token is not valid. rejected is that
// token, or empty for the current one. The issuer is asked at most once in the policy's
// Apart, and never by force: an application's mistake must void no token. changed tells
// whether the account's token now differs from the rejected one, and from the current one of
// when the request came. The account is nil if it is not configured.
func (k *keeper) report(ctx context.Context, s logical.Storage, name, rejected string) (seen held, changed bool, err error) {
	a, err := k.open(ctx, s, name, asReader)
	if err != nil || a == nil {
		return held{}, false, err
	}
	before := a.look(tokenSlot)
	if before.st.was(rejected) && before.st.Usable(before.now) {
		return before, true, nil
	}
	isAnother := func(seen held) bool {
		return seen.st.was(rejected) || seen.st.Value != before.st.Value && !seen.st.is(rejected)
	}
	for {
		if !a.admitted() {
			err = k.admit(ctx, s, a, false)
		} else if err = a.holder.acquire(ctx, a.cfg.RequestTimeout); err == nil {
			err = a.reported(ctx, s, rejected, isAnother)
			a.holder.release()
		}
		if !errors.Is(err, errChanged) || ctx.Err() != nil {
			break
		}
		if a, err = k.open(ctx, s, name, asReader); err != nil || a == nil {
			return held{}, false, err
		}
	}
	if err != nil {
		return a.look(tokenSlot), false, err
	}
	seen = a.look(tokenSlot)
	return seen, isAnother(seen), seen.err()
}

// stateOf returns how the account's token stands, without a call. The account is nil if it
// is not configured.
func (k *keeper) stateOf(ctx context.Context, s logical.Storage, name string) (held, error) {
	a, err := k.open(ctx, s, name, asReader)
	if err != nil || a == nil {
		return held{}, err
	}
	return a.look(tokenSlot), nil
}

// derive returns the account's token as what a derived credential takes. A token that the
// issuer has rejected is first reported, as an application would.
func (k *keeper) derive(ctx context.Context, s logical.Storage, a *account, rejected string) (input, error) {
	var token held
	var err error
	if rejected == "" {
		token, err = k.get(ctx, s, a.name, tokenSlot)
	} else {
		token, _, err = k.report(ctx, s, a.name, rejected)
	}
	switch {
	case err != nil:
		return input{}, &parentError{err}
	case token.account != a:
		return input{}, errChanged
	}
	return input{parent: token.st.Value}, nil
}

// holderOf returns the holder of one of the account's credentials.
func (k *keeper) holderOf(a *account, of slot) *holder {
	if of == tokenSlot {
		return a.holder
	}
	for {
		if t := a.holder.derived[of].Load(); t != nil {
			return t
		}
		t := k.newHolder(a.holder.platform, a.holder.identity, of)
		t.parent, t.prepare = a.holder, k.derive
		a.holder.derived[of].CompareAndSwap(nil, t)
	}
}
