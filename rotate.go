package wechat

import (
	"context"
	"net/http"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// ruleNotForcible is the refusal for a token that its issuer does not replace on demand.
var ruleNotForcible = rule{
	Class: upstream.ClassAccount, Status: http.StatusBadRequest,
	Meaning: "there is no forced refresh of such a token", Advice: "have its secret reset in the account's console, and write the new one to its config path",
}

// rotate replaces the account's token by force. With revoke a second forced refresh follows
// in the background. It returns nil if the account is not configured. An error of the issuer
// or of its limits is a *problem. With errNotBegun no forced call was made.
func (k *keeper) rotate(ctx context.Context, s logical.Storage, name string, revoke bool) (*rotated, error) {
	a, err := k.open(ctx, s, name, lockPatience)
	if a == nil || err != nil {
		if err != nil {
			err = k.notBegun(err)
		}
		return nil, err
	}
	if a.holder.issuer.limits.perDay == 0 {
		return nil, &problem{Rule: ruleNotForcible, Local: true, HadNoEffect: true}
	}
	if err := k.prove(ctx, s, a); err != nil {
		return nil, k.notBegun(err)
	}
	h := a.holder
	if err := h.acquire(ctx, lockPatience); err != nil {
		return nil, k.notBegun(err)
	}
	defer h.release()
	ctx, cancel := detached(ctx)
	defer cancel()
	if a.replaced.Load() {
		return nil, k.notBegun(errChanged)
	}
	var asked *leak
	if revoke {
		asked = &leak{Name: name, Requested: wallClock().UTC(), Left: 2}
	}
	done, err := h.force(ctx, s, a, asked)
	if p := problemOf(err); p != nil && p.Local {
		err = h.refusal(p)
	}
	return done, err
}

// prove makes a normal call with the account's credentials, unless the issuer has accepted
// them as they are. A forced refresh voids the token for all names of the appid: an account
// may ask for one only if it knows the secret.
func (k *keeper) prove(ctx context.Context, s logical.Storage, a *account) error {
	if a.holder.state.Load().has(a.name, a.cfg) {
		if a.holder.state.Load().proven(a.name, a.cfg) {
			return nil
		}
		if err := a.holder.acquire(ctx, lockPatience); err != nil {
			return err
		}
		defer a.holder.release()
		return a.holder.refresh(ctx, s, a)
	}
	return k.admit(ctx, s, a, true)
}
