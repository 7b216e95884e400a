package wechat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const rotatePrefix = "rotate/"

func (b *backend) rotatePaths() []*framework.Path {
	response := tokenFields("last_vault_rotation", "expire_time")
	response["rotations_remaining"] = &framework.FieldSchema{Type: framework.TypeInt, Description: "Forced refreshes of this appid left in the rolling 24 hours.", Required: true}
	return b.paths(accountPath{
		prefix:      rotatePrefix,
		synopsis:    "Forced refresh (force_refresh=true): replaces an account's token, and the old one dies.",
		description: rotateHelp,
		fields: map[string]*framework.FieldSchema{
			"revoke": {
				Type:         framework.TypeBool,
				Description:  "Answer a leak: a second forced refresh follows, so that the leaked token is dead for certain.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Revoke"},
			},
		},
		operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback:     b.rotateToken,
				Summary:      "Replace the account's token by force: the old one dies for everybody.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "rotate", OperationSuffix: "token"},
				Responses:    map[int][]framework.Response{http.StatusOK: {{Description: "The resulting token", Fields: response}}},
			},
		},
	})
}

func (b *backend) rotateToken(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, err := accountName(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	revoke := data.Get("revoke").(bool)
	done, err := b.keeper.rotate(ctx, req.Storage, name, revoke)
	if err != nil {
		words := b.rotateFailure(name, revoke, err)
		if problemOf(err) == nil {
			return nil, fmt.Errorf("%s: %w", words, err)
		}
		return operatorResponse(words, withoutRetryPromise(err))
	}
	if done == nil {
		return unknownAccount(ctx, req, name), nil
	}
	resp := &logical.Response{Data: map[string]any{
		"last_vault_rotation": done.state.token.RotatedAt.Format(time.RFC3339Nano),
		"expire_time":         timestamp(done.state.token.ExpireTime),
		"rotations_remaining": done.remaining,
	}}
	if done.same {
		resp.AddWarning("WeChat handed out the same token again: nothing was rotated. It counts as one of the day's forced refreshes.")
	}
	return resp, nil
}

// rotateFailure says in what err leaves the account.
func (b *backend) rotateFailure(name string, revoke bool, err error) string {
	switch {
	case errors.Is(err, errStillAnnounced):
		return fmt.Sprintf("the token of account %q was not replaced, but Vault's storage did not take the request back: "+
			"if the plugin restarts before storage takes writes again, the revocation is carried out", name)
	case hadNoEffect(err) && b.keeper.revoking(name):
		return fmt.Sprintf("the token of account %q was not replaced now, and the revocation that is pending goes on", name)
	case hadNoEffect(err):
		return fmt.Sprintf("the token of account %q was not replaced", name)
	case revoke:
		return fmt.Sprintf("whether the token of account %q was replaced is not known, and the revocation goes on in the background", name)
	}
	return fmt.Sprintf("whether the token of account %q was replaced is not known: it is not handed out until WeChat has told", name)
}

const rotateHelp = `
Writing rotate/<name> makes one forced refresh: WeChat replaces the token, and
the old one is dead at once for everybody who still holds it. WeChat allows this
20 times in 24 hours for an appid, and 30 seconds apart; the engine counts, also
across restarts and over all names with the same appid, and answers 429 with the
seconds to wait. Consumers find the new token when they read again, which is
within the account's max_ttl.

For a token that has leaked write revoke=true: a second forced refresh follows
after 30 seconds, by itself, also when Vault is sealed or restarted in between.
status/<name> shows "revocation" as "pending" until it is done.

This costs every consumer of the account a moment without a valid token. For a
token that WeChat rejected use refresh/<name>.
`
