package wechat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
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
		if early, ok := errors.AsType[*tooSoon](err); ok {
			words, err = early.words(name, revoke), early.advised(name, revoke)
		}
		if problemOf(err) == nil {
			return nil, fmt.Errorf("%s: %w", words, err)
		}
		return operatorResponse(words, upstream.WithoutRetryPromise(err))
	}
	if done == nil {
		return unknownAccount(ctx, req, name), nil
	}
	resp := &logical.Response{Data: map[string]any{
		"last_vault_rotation": done.st.Rotated.Format(time.RFC3339Nano),
		"expire_time":         timestamp(done.st.Shown),
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
	case hadNoEffect(err) && b.keeper.revoking(name):
		return fmt.Sprintf("the token of account %q was not replaced now, and the revocation that is pending goes on by itself", name)
	case hadNoEffect(err):
		return fmt.Sprintf("the token of account %q was not replaced", name)
	case revoke:
		return fmt.Sprintf("whether the token of account %q was replaced is not known, and the revocation goes on in the background", name)
	}
	return fmt.Sprintf("whether the token of account %q was replaced is not known: it is not handed out until WeChat has told", name)
}

// words says what became of the token of the account name, and of a leak's answer: by the
// last attempt, which may have been the same client's.
func (e *tooSoon) words(name string, revoke bool) string {
	words := fmt.Sprintf("the token of account %q was not replaced", name)
	if e.last != nil {
		before := e.last.described(name)
		switch {
		case e.last.replaced:
			words += " again, as " + before + " has replaced it"
		case e.last.known:
			words += ", nor has " + before + " replaced it"
		case e.last.by == "":
			words += " now, and whether " + before + " has replaced it is not known"
		default:
			words += " now, and whether " + before + " has replaced it is not known yet"
		}
	}
	switch {
	case !e.next.IsZero():
		words += ", and the revocation that is pending goes on by itself"
	case !e.completed.IsZero():
		words += ", and the revocation was complete at " + timestamp(e.completed)
	case revoke:
		words += ", and no revocation is pending"
	}
	return words
}

// advised is the problem with what to do about it.
func (e *tooSoon) advised(name string, revoke bool) *problem {
	told := *e.problem
	switch {
	case !e.next.IsZero():
		told.Advice = fmt.Sprintf("nothing: its next step comes in %d seconds, at %s; watch revocation in status/%s",
			secondsUp(e.next.Sub(wallClock())), timestamp(e.next), name)
	case e.last == nil:
	case e.last.replaced && (!revoke || !e.completed.IsZero()):
		told.Advice = "nothing if that is what you wanted; otherwise " + told.Advice
	case !e.last.known:
		told.Advice = fmt.Sprintf("see last_vault_rotation in status/%s: it changes when the token does; to replace it again, %s", name, told.Advice)
	}
	return &told
}

// described names the forced call to the account name: of another level's accounts only
// that they are there.
func (a *attempt) described(name string) string {
	switch {
	case a.by == "":
		return fmt.Sprintf("a forced refresh at %s, before the engine's last start,", timestamp(a.at))
	case levelOf(a.by) != levelOf(name):
		return fmt.Sprintf("the forced refresh of an account at another level at %s", timestamp(a.at))
	}
	return fmt.Sprintf("the forced refresh of account %q at %s", a.by, timestamp(a.at))
}

const rotateHelp = `
Writing rotate/<name> makes one forced refresh: WeChat replaces the token, and
the old one is dead at once for every application that still holds it. WeChat allows this
20 times in 24 hours for an appid, and 30 seconds apart; the engine counts, also
across restarts and over all names with the same appid, and answers 429 with the
seconds to wait, and with what the last one did: it may have been an attempt of
this very client, whose answer was lost. Consumers find the new token when they
read again, which is within the account's max_ttl.

    $ vault write -force wechat/rotate/myapp

For a token that has leaked write revoke=true: a second forced refresh follows
after 30 seconds, by itself, also when Vault is sealed or restarted in between.
status/<name> shows "revocation" as "pending" until it is done. Written again
meanwhile, rotate/<name> says when the next step comes.

    $ vault write wechat/rotate/myapp revoke=true

This costs every consumer of the account a moment without a valid token. For a
token that WeChat rejected use refresh/<name>.
`
