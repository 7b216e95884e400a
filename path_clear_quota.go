package wechat

import (
	"context"
	"fmt"
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const clearQuotaPrefix = "clear-quota/"

func (b *backend) clearQuotaPaths() []*framework.Path {
	return b.paths(accountPath{
		prefix:      clearQuotaPrefix,
		synopsis:    "Set WeChat's counters of an account's API calls back to zero.",
		description: clearQuotaHelp,
		operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback:     b.clearQuota,
				Summary:      "Set WeChat's counters of the account's API calls back to zero: ten times a month at most.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "clear", OperationSuffix: "quota"},
				Responses:    map[int][]framework.Response{http.StatusNoContent: {{Description: "Done"}}},
			},
		},
	})
}

func (b *backend) clearQuota(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, err := accountName(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	cfg, err := b.keeper.configOf(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		return unknownAccount(ctx, req, name), nil
	}
	if err := b.exchanges.clear(ctx, name, cfg, func() { b.keeper.quotaCleared(cfg) }); err != nil {
		words := fmt.Sprintf("the quota of account %q was not cleared", name)
		if p := problemOf(err); p != nil && !p.noEffect() {
			words = fmt.Sprintf("whether the quota of account %q was cleared is not known", name)
		}
		if clearingStands(err) {
			words += ", and asking again within a minute gives this answer"
		}
		return operatorResponse(words, withoutRetryPromise(err))
	}
	return nil, nil
}

const clearQuotaHelp = `
Writing clear-quota/<name> makes one call of WeChat's clear_quota/v2: the counters of
this account's API calls go back to zero, for whoever makes them.

    $ vault write -force wechat/clear-quota/myapp

WeChat allows this ten times in a month, by its own count. Asked again within a minute
the engine answers from memory, a refusal too, so that a client's retries cost none of
the ten. If the engine waits because the daily quota was used up (45009), it asks again
at once.
`
