package wechat

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
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
	cfg, unknown, err := b.configured(ctx, req, name)
	if cfg == nil {
		return unknown, err
	}
	asked := time.Now()
	at, err := b.logins.clearQuota(ctx, name, cfg, func() { b.keeper.quotaCleared(cfg) })
	if err != nil {
		return clearingFailure(name, err)
	}
	if !at.Before(asked) {
		return nil, nil
	}
	resp := &logical.Response{}
	resp.AddWarning(fmt.Sprintf("The quota was cleared at %s, and WeChat was not asked again: it is from %s on.", timestamp(at), timestamp(at.Add(clearingMemory))))
	return resp, nil
}

// clearingFailure is the answer where a clearing ended in err. It stands for a minute,
// unless it is certain that WeChat was not asked.
func clearingFailure(name string, err error) (*logical.Response, error) {
	p := problemOf(err)
	if p == nil {
		return nil, err
	}
	words := fmt.Sprintf("the quota of account %q was not cleared", name)
	if !p.HadNoEffect {
		words = fmt.Sprintf("whether the quota of account %q was cleared is not known", name)
	}
	if p.Errcode != 0 || !p.HadNoEffect {
		words += ", and asking again within a minute gives this answer"
	}
	told := *p
	if isQuota(p) {
		told.Advice = "wait for the next day, or reset the quota in the account's console"
	}
	return operatorResponse(words, upstream.WithoutRetryPromise(&told))
}

const clearQuotaHelp = `
Writing clear-quota/<name> makes one call of WeChat's clear_quota/v2: the counters of
the account's API calls go back to zero, whatever application makes them.

    $ vault write -force wechat/clear-quota/myapp

WeChat allows this ten times in a month, by its own count. Asked again within a minute
the engine answers from memory, a refusal too, so that a client's retries cost none of
the ten. After a success a warning says so. If the engine waits because the daily quota
was used up (45009), it asks again at once.
`
