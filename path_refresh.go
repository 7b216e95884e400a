package wechat

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const refreshPrefix = "refresh/"

func (b *backend) refreshPaths() []*framework.Path {
	response := tokenFields("last_vault_rotation", "expire_time", "ttl")
	response["changed"] = &framework.FieldSchema{Type: framework.TypeBool, Description: "Whether the account's token is another one now: read it at token/<name>.", Required: true}
	response["known"] = &framework.FieldSchema{Type: framework.TypeBool, Description: "Whether rejected_token is the account's token or was, as far as is remembered; null without one."}
	return b.paths(accountPath{
		prefix:      refreshPrefix,
		synopsis:    "Report a rejected token (normal mode): asks WeChat which token is current, and invalidates none.",
		description: refreshHelp,
		fields: map[string]*framework.FieldSchema{
			"rejected_token": {
				Type:         framework.TypeString,
				Description:  "The token that WeChat rejected, not empty. White space around it does not count. Left out, the current token is meant.",
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
	rejected := strings.TrimSpace(data.Get("rejected_token").(string)) // a line end that came with it makes no other token of it
	if rejected == "" && sets(data, "rejected_token") {
		return logical.ErrorResponse("rejected_token is empty: write the token that WeChat rejected, or leave the field out to mean the current one"), nil
	}
	seen, changed, err := b.keeper.report(ctx, req.Storage, name, rejected)
	result := "unchanged"
	if changed {
		result = "changed"
	}
	b.keeper.metrics.reports.count(seen.account != nil, err, result)
	if err != nil {
		return failureResponse(fmt.Sprintf("the token of account %q was not refreshed", name), err)
	}
	if seen.account == nil {
		return unknownAccount(ctx, req, name), nil
	}
	var known any
	if rejected != "" {
		known = seen.st.is(rejected) || seen.st.was(rejected)
	}
	return &logical.Response{Data: map[string]any{
		"changed":             changed,
		"known":               known,
		"last_vault_rotation": seen.st.Rotated.Format(time.RFC3339Nano),
		"expire_time":         timestamp(seen.st.Shown),
		"ttl":                 seen.ttl(),
	}}, nil
}

const refreshHelp = `
An application whose call WeChat answered with 40001, 40014 or 42001 reports the
token it used:

    $ vault write wechat/refresh/myapp rejected_token=-

If it is one that Vault has handed out before the current one, the answer is
changed=true at once. Otherwise WeChat is asked, in normal mode, which leaves the
current token valid, and at most once in ten seconds however many applications
report. A report never replaces a token by force.

"changed" says whether the account's token is another one now: if so, read it at
token/<name>. changed=false says only that the account's token is the one that it
was. What that means for the reported one says "known", which is null where none was
reported:

    known=true   it is the account's token, and WeChat still accepts it. WeChat has been
                 seen to reject one for half a minute: repeat the call once after
                 that. status/<name> counts such reports.
    known=false  it is not the account's, as far as Vault remembers: another
                 account's, one that was cut off, or an old one. A restart of the
                 plugin forgets all but the current token.
`
