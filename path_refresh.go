package wechat

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const refreshPrefix = "refresh/"

func (b *backend) refreshPaths() []*framework.Path {
	response := tokenFields("last_vault_rotation", "expire_time", "ttl")
	response["changed"] = &framework.FieldSchema{Type: framework.TypeBool, Description: "Whether the account's token is another one now: read it at token/<name>.", Required: true}
	return b.paths(accountPath{
		prefix:      refreshPrefix,
		synopsis:    "Report a rejected token (normal mode): asks WeChat which token is current, and invalidates none.",
		description: refreshHelp,
		fields: map[string]*framework.FieldSchema{
			"rejected_token": {
				Type:         framework.TypeString,
				Description:  "The token that WeChat rejected. White space around it does not count. Left out, the current token is meant.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Rejected token", Sensitive: true},
			},
		},
		operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback:     b.refreshToken,
				Summary:      "Report a rejected token; WeChat is asked once if need be.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "refresh", OperationSuffix: "token"},
				Responses:    map[int][]framework.Response{http.StatusOK: {{Description: "The resulting token", Fields: response}}},
			},
		},
	})
}

func (b *backend) refreshToken(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, err := accountName(data)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	st, changed, err := b.keeper.report(ctx, req.Storage, name, data.Get("rejected_token").(string))
	b.keeper.metrics.reported(st != nil, changed, err)
	if err != nil {
		return failureResponse(fmt.Sprintf("the token of account %q was not refreshed", name), err)
	}
	if st == nil {
		return unknownAccount(req, name), nil
	}
	return &logical.Response{Data: map[string]any{
		"changed":             changed,
		"last_vault_rotation": st.token.RotatedAt.Format(time.RFC3339Nano),
		"expire_time":         timestamp(st.token.ExpireTime),
		"ttl":                 st.ttl(wallClock()),
	}}, nil
}

const refreshHelp = `
An application whose call WeChat answered with 40001, 40014 or 42001 reports the
token it used:

    $ vault write wechat/refresh/myapp rejected_token=-

If it is one that Vault has handed out before the current one, the answer is
changed=true at once. Otherwise WeChat is asked, in normal mode, which leaves the
current token valid, and at most once in ten seconds however many applications
report: changed says whether the account's token is another one now. If so, read it
at token/<name>. If not, WeChat still accepts the token; it has been seen to reject one
for half a minute, so repeat the call once after that. status/<name> counts such
reports. A report never replaces a token by force.
`
