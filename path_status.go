package wechat

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// revocationPending is shown while the second forced refresh of a revocation is
// still to come.
const revocationPending = "pending"

func (b *backend) statusPaths() []*framework.Path {
	return b.paths(accountPath{
		prefix:      statusPrefix,
		noun:        "statuses",
		synopsis:    "The health of an account, without its token.",
		description: statusHelp,
		list:        b.listStatus,
		operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback:     b.readStatus,
				Summary:      "Read the account's health: its state, its token's times, its last error and what to do.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "read", OperationSuffix: "status"},
				Responses: map[int][]framework.Response{http.StatusOK: {{Description: "The account's health; a field without a value is null", Fields: map[string]*framework.FieldSchema{
					"appid":                {Type: framework.TypeString, Description: "The account's AppID."},
					"state":                {Type: framework.TypeString, Description: "pending, healthy, degraded or failing."},
					"last_vault_rotation":  {Type: framework.TypeString, Description: "When Vault got the current token."},
					"expire_time":          {Type: framework.TypeString, Description: "When the current token ends at the latest."},
					"next_refresh_time":    {Type: framework.TypeString, Description: "When the current token is due to be replaced."},
					"last_success_time":    {Type: framework.TypeString, Description: "When WeChat last answered with a token, since the plugin started."},
					"last_error":           {Type: framework.TypeMap, Description: "The last attempt, if it failed: errcode, class, message, time, advice."},
					"consecutive_failures": {Type: framework.TypeInt, Description: "Failed attempts since the last one that did not fail."},
					"next_attempt_time":    {Type: framework.TypeString, Description: "When the engine asks WeChat next by itself, after a failure."},
					"rotations_remaining":  {Type: framework.TypeInt, Description: "Forced refreshes of this appid left in the rolling 24 hours."},
					"revocation":           {Type: framework.TypeString, Description: "pending, or when the last revocation was complete."},
					"rejections":           {Type: framework.TypeInt, Description: "Reports of the current token that WeChat answered by still accepting it."},
					"last_rejection_time":  {Type: framework.TypeString, Description: "When the last such report came."},
					"tickets":              {Type: framework.TypeMap, Description: "Per type of ticket used since the plugin started: state, last_vault_rotation, last_success_time, last_error."},
				}}}},
			},
		},
	})
}

func (b *backend) readStatus(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, err := accountName(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	seen, err := b.keeper.stateOf(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if seen.account == nil {
		return unknownAccount(ctx, req, name), nil
	}
	st := seen.st
	fields := map[string]any{
		"appid":                seen.cfg.AppID,
		"state":                seen.health(),
		"last_vault_rotation":  nil,
		"expire_time":          nil,
		"next_refresh_time":    nil,
		"last_success_time":    orNull(st.Answered),
		"last_error":           nil,
		"consecutive_failures": 0,
		"next_attempt_time":    nil,
		"rotations_remaining":  nil,
		"revocation":           orNull(st.RevokedAt),
		"rejections":           st.rejections,
		"last_rejection_time":  orNull(st.lastRejection),
		"tickets":              seen.tickets(),
	}
	if st.Value != "" {
		fields["last_vault_rotation"] = st.Rotated.Format(time.RFC3339Nano)
		fields["expire_time"] = timestamp(st.Shown)
		fields["next_refresh_time"] = timestamp(st.DueTime())
	}
	if seen.forcible() {
		fields["rotations_remaining"] = seen.budget()
	}
	if seen.revoking() {
		fields["revocation"] = revocationPending
	}
	if f := seen.trouble(); f != nil {
		fields["last_error"] = f.fields()
		fields["consecutive_failures"] = f.Count
		fields["next_attempt_time"] = timestamp(seen.nextAttempt())
	}
	return &logical.Response{Data: fields}, nil
}

// fields is what status/ shows of a failure.
func (f *failure) fields() map[string]any {
	fields := map[string]any{
		"errcode": nil, "class": string(f.Class), "message": f.Message(),
		"time": timestamp(f.At), "advice": f.Advice,
	}
	if f.Errcode != 0 {
		fields["errcode"] = f.Errcode
	}
	return fields
}

// tickets is what status/ shows of the account's tickets, nil if none was used.
func (seen held) tickets() any {
	if !seen.admitted() {
		return nil // those of other names are not its own
	}
	all := map[string]any{}
	for _, t := range seen.holder.family()[1:] {
		ticket := seen.look(t.slot)
		fields := map[string]any{
			"state": ticket.health(), "last_vault_rotation": nil,
			"last_success_time": orNull(ticket.st.Answered), "last_error": nil,
		}
		if ticket.st.Value != "" {
			fields["last_vault_rotation"] = ticket.st.Rotated.Format(time.RFC3339Nano)
		}
		if f := ticket.trouble(); f != nil {
			fields["last_error"] = f.fields()
		} else if !ticket.st.Usable(ticket.now) { // it was not used for long, and is fetched at its next use
			fields["state"] = statePending
		}
		all[t.issuer.credential] = fields
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

// listStatus lists one level of the accounts, with the health of each; a level
// below has none of its own.
func (b *backend) listStatus(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	level, err := listLevel(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	var keys []string
	if data.Get("recursive").(bool) {
		keys, err = logical.CollectKeys(ctx, logical.NewStorageView(req.Storage, storageKey(configPrefix, level)))
	} else {
		keys, err = req.Storage.List(ctx, storageKey(configPrefix, level))
	}
	if err != nil {
		return nil, err
	}
	keys = page(storedNames(keys), data)
	info := make(map[string]any, len(keys))
	for _, key := range keys {
		if strings.HasSuffix(key, "/") {
			continue
		}
		seen, err := b.keeper.stateOf(ctx, req.Storage, level+key)
		fields := map[string]any{"appid": nil, "state": stateFailing, "expire_time": nil}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil: // one that storage does not give hides none of the others
		case seen.account == nil:
			continue // deleted since it was listed
		default:
			fields["appid"], fields["state"] = seen.cfg.AppID, seen.health()
			if seen.st.Value != "" {
				fields["expire_time"] = timestamp(seen.st.Shown)
			}
		}
		info[key] = fields
	}
	return logical.ListResponseWithInfo(keys, info), nil
}

const statusHelp = `
Reading status/<name> tells how an account is: "healthy", "degraded" (the last
attempt to get a token failed, the current one is valid), "failing" (there is
no valid token) or "pending" (no token was read yet). "last_error" says
what WeChat answered, in which class that falls, and what to do about it. What
failed is kept in memory: it is forgotten at a restart and at a write of the
configuration. Accounts that share a token show the same times, and each its own
failures. Neither token nor secret is ever shown.

LIST status/ gives appid, state and expire_time of each account of a level, as
key_info. With recursive=true the names of all levels below are listed in one
answer; after=<name> and limit=<n> read it in pages. A policy that may list a level may so
list all below it.
`
