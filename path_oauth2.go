package wechat

import (
	"context"
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const oauth2Prefix = "oauth2/"

func (b *backend) oauth2Paths() []*framework.Path {
	return b.paths(accountPath{
		prefix:      oauth2Prefix,
		synopsis:    "A login in WeChat's browser, on a web site or in a mobile app: the user's code becomes an openid.",
		description: oauth2Help,
		fields: map[string]*framework.FieldSchema{
			"code": {
				Type:         framework.TypeString,
				Description:  "The code with which WeChat redirected the user, or that the mobile app got. It is good once, for five minutes.",
				Required:     true,
				DisplayAttrs: &framework.DisplayAttributes{Name: "Code", Sensitive: true},
			},
		},
		operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback:     b.exchangeOAuth2,
				Summary:      "Exchange a web or app login's code for the user's openid and tokens.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "exchange", OperationSuffix: "oauth2-code"},
				Responses: map[int][]framework.Response{http.StatusOK: {{Description: "The user; a field that WeChat did not give is null", Fields: map[string]*framework.FieldSchema{
					"openid":          {Type: framework.TypeString, Description: "The user, as this account knows them.", Required: true, DisplayAttrs: sensitive},
					"unionid":         {Type: framework.TypeString, Description: "The user, as all accounts of the open-platform account know them.", DisplayAttrs: sensitive},
					"scope":           {Type: framework.TypeString, Description: "What the user has granted."},
					"access_token":    {Type: framework.TypeString, Description: "The user's access token: another one than the account's.", Required: true, DisplayAttrs: sensitive},
					"refresh_token":   {Type: framework.TypeString, Description: "Renews the user's access token, without the AppSecret.", DisplayAttrs: sensitive},
					"expires_in":      {Type: framework.TypeInt64, Description: "Seconds that the user's access token lives."},
					"is_snapshotuser": {Type: framework.TypeInt64, Description: "1 where WeChat showed the page to a stand-in for the user."},
				}}}},
			},
		},
	})
}

func (b *backend) exchangeOAuth2(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, cfg, refused, err := b.exchangeOf(ctx, req, data, "code", "WeChat gave for the login")
	if refused != nil || err != nil {
		return refused, err
	}
	got, err := b.exchanges.userToken(ctx, name, cfg, data.Get("code").(string))
	if err != nil {
		return exchangeFailure(name, err)
	}
	return &logical.Response{Data: map[string]any{
		"openid":          got.openID,
		"unionid":         textOrNull(got.unionID),
		"scope":           textOrNull(got.scope),
		"access_token":    got.accessToken,
		"refresh_token":   textOrNull(got.refreshToken),
		"expires_in":      numberOrNull(got.expiresIn),
		"is_snapshotuser": numberOrNull(got.snapshotUser),
	}}, nil
}

// numberOrNull is how a number is shown that WeChat may not have given.
func numberOrNull(n *int64) any {
	if n == nil {
		return nil
	}
	return *n
}

const oauth2Help = `
A back end sends the code that WeChat gave for the login, and gets the user's openid
and the user's own tokens. It needs no AppSecret:

    $ vault write wechat/oauth2/myapp code=-

The tokens are the user's, not the account's: they read what the user has granted,
and sns/oauth2/refresh_token renews them without the AppSecret. What WeChat did not
give is null.

WeChat takes a code once. The same code sent again within ten seconds gets the same
answer; after that, or if WeChat's answer was lost, WeChat is asked again, and if it then
refuses the code the message says that the answer was lost. Nothing is stored. A code that is not good is answered 400: have the user log in
again and send the new one.
`
