package wechat

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *backend) tokenPaths() []*framework.Path {
	read := &framework.PathOperation{
		Callback: b.readTokenPath,
		Summary:  "Read the account's current access token.",
		DisplayAttrs: &framework.DisplayAttributes{
			OperationVerb: "read", OperationSuffix: "token",
		},
		Responses: map[int][]framework.Response{
			http.StatusOK: {{Description: "The current token", Fields: tokenResponse}},
		},
	}
	return b.paths(accountPath{
		prefix:      tokenPrefix,
		noun:        "tokens",
		synopsis:    "The current access token of an account.",
		description: tokenHelp,
		operations:  map[logical.Operation]framework.OperationHandler{logical.ReadOperation: read},
	})
}

// tokenFields returns those of tokenResponse that other answers share.
func tokenFields(names ...string) map[string]*framework.FieldSchema {
	fields := make(map[string]*framework.FieldSchema, len(names)+1)
	for _, name := range names {
		fields[name] = tokenResponse[name]
	}
	return fields
}

// tokenResponse is the shape of an answer. Between two reads of one token
// nothing but ttl may change: consumers take any other change for a new token.
var tokenResponse = map[string]*framework.FieldSchema{
	"access_token":        {Type: framework.TypeString, Description: "The access token, for WeChat's server API.", Required: true},
	"appid":               {Type: framework.TypeString, Description: "The account's AppID.", Required: true},
	"ttl":                 {Type: framework.TypeInt64, Description: "Seconds after which to read again.", Required: true},
	"rotation_period":     {Type: framework.TypeInt64, Description: "The usual life of a token in the cache, in seconds.", Required: true},
	"last_vault_rotation": {Type: framework.TypeString, Description: "When Vault got this token, RFC 3339 in UTC. It changes if and only if the token does.", Required: true},
	"expire_time":         {Type: framework.TypeString, Description: "When this token ends at the latest, RFC 3339 in UTC.", Required: true},
}

func (b *backend) readTokenPath(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return b.readToken(ctx, req, data.Get("name").(string))
}

// readToken answers a read of token/name, be name valid or not.
func (b *backend) readToken(ctx context.Context, req *logical.Request, name string) (*logical.Response, error) {
	if !b.keeper.writable() { // what onActive checks, which reads by HandleRequest do not go through
		return nil, logical.ErrReadOnly
	}
	if b.keeper.lookup(name) == nil { // what is in memory has passed the check
		if err := checkName(name); err != nil {
			return logical.ErrorResponse(err.Error()), nil
		}
	}
	result := "cached"
	seen, cached, err := b.keeper.glance(name, tokenSlot)
	if !cached {
		result = "fetched"
		seen, err = b.keeper.fetch(ctx, b.keeper.metrics.watched(req.Storage), name, tokenSlot)
	}
	b.keeper.metrics.reads.count(seen.account != nil, err, result)
	if err != nil {
		return failureResponse(fmt.Sprintf("no token for account %q", name), err)
	}
	if seen.account == nil {
		return unknownAccount(ctx, req, name), nil
	}
	st := seen.st
	resp := &logical.Response{Data: map[string]any{
		"access_token":        st.Value,
		"appid":               seen.cfg.AppID,
		"ttl":                 seen.ttl(),
		"rotation_period":     int64(seen.holder.issuer.policy(seen.cfg).Period() / time.Second),
		"last_vault_rotation": st.Rotated.Format(time.RFC3339Nano),
		"expire_time":         timestamp(st.Shown),
	}}
	if f := seen.failure; f != nil && !f.Begun.Before(st.Due) {
		resp.AddWarning(fmt.Sprintf("This token is valid until %s but could not be replaced yet: %s. Last attempt at %s, next at %s.",
			timestamp(st.End), f.problem, timestamp(f.At), timestamp(f.Next)))
	}
	return resp, nil
}

const tokenHelp = `
Reading token/<name> returns the account's current access token. It comes from
Vault's memory; WeChat is asked only when the token is due, which is 290 seconds
before its end, and the engine usually does so before any reader comes.

Read again after "ttl" seconds. A reader that does always holds a token that WeChat
accepts, with at least two minutes of its life left. There is no lease: nothing
is to be renewed or revoked.

When a token is due and WeChat fails, the token that is still valid is returned with a
warning and a short ttl, and the engine goes on trying. Before that a failure shows only
in status/<name>. Without a valid token the answer is
an error that says what WeChat answered and what to do about it.

An unknown name is answered 400. LIST token/ lists the accounts.
`
