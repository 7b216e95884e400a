package wechat

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *backend) ticketPaths() []*framework.Path {
	return b.paths(accountPath{
		prefix:      ticketPrefix,
		synopsis:    "A ticket of an account, for what cannot use sign/.",
		description: ticketHelp,
		fields: map[string]*framework.FieldSchema{
			"type": {
				Type:          framework.TypeString,
				Default:       "jsapi",
				AllowedValues: []any{"jsapi", "wx_card"},
				Query:         true,
				Description:   "jsapi, for pages, or wx_card, for cards. Default: jsapi.",
			},
		},
		operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback:     b.readTicket,
				Summary:      "Read a ticket of the account.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "read", OperationSuffix: "ticket"},
				Responses: map[int][]framework.Response{http.StatusOK: {{Description: "The ticket", Fields: map[string]*framework.FieldSchema{
					"ticket":              {Type: framework.TypeString, Description: "The ticket. It is used as it is, and it alone signs for the account.", Required: true},
					"appid":               {Type: framework.TypeString, Description: "The account's AppID.", Required: true},
					"type":                {Type: framework.TypeString, Description: "jsapi or wx_card.", Required: true},
					"ttl":                 {Type: framework.TypeInt64, Description: "Seconds after which to read again.", Required: true},
					"rotation_period":     {Type: framework.TypeInt64, Description: "The usual life of a ticket, in seconds.", Required: true},
					"last_vault_rotation": {Type: framework.TypeString, Description: "When Vault got this ticket, RFC 3339 in UTC. It changes if and only if the ticket does.", Required: true},
				}}}},
			},
		},
	})
}

func (b *backend) readTicket(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, err := accountName(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	kind := data.Get("type").(string)
	of, err := weixin.slotNamed(kind)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	seen, err := b.keeper.get(ctx, req.Storage, name, of)
	if err != nil {
		return failureResponse(fmt.Sprintf("no %s ticket for account %q", kind, name), err)
	}
	if seen.account == nil {
		return unknownAccount(ctx, req, name), nil
	}
	resp := &logical.Response{Data: map[string]any{
		"ticket":              seen.st.Value,
		"appid":               seen.cfg.AppID,
		"type":                kind,
		"ttl":                 seen.ttl(),
		"rotation_period":     int64(maxLifetime / time.Second),
		"last_vault_rotation": seen.st.Rotated.Format(time.RFC3339Nano),
	}}
	seen.warn(resp)
	return resp, nil
}

// warn tells the user of a ticket that WeChat could not be asked about it.
func (seen held) warn(resp *logical.Response) {
	if seen.failure == nil {
		return
	}
	resp.AddWarning(fmt.Sprintf("WeChat confirmed the ticket at %s and could not be asked about it since: %s. Last attempt at %s. It is used until %s.",
		timestamp(seen.st.Timed), seen.failure.problem, timestamp(seen.failure.At), timestamp(seen.st.End)))
}

const ticketHelp = `
Reading ticket/<name> returns the account's ticket of the given "type": jsapi, the
default, signs pages for JS-SDK, wx_card is for cards. A ticket can
sign any page of the account, and nothing revokes it. For pages, read sign/<name>
instead: the ticket then stays in Vault.

A ticket is fetched from WeChat at its first use, with the account's token. It is
compared with WeChat's every ten minutes as long as it was used in the last two
hours; read it again after "ttl" seconds. While WeChat fails, the last ticket is
returned with a warning, for up to two hours after WeChat last confirmed it.

An unknown name is answered 400.
`
