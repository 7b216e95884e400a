package wechat

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"unicode"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

const (
	code2SessionPrefix = "code2session/"
	oauth2Prefix       = "oauth2/"
)

// maxCode is the longest code that is sent on, in bytes. WeChat's have 32.
const maxCode = 1 << 10

func (b *backend) code2SessionPaths() []*framework.Path {
	return b.paths(accountPath{
		prefix:      code2SessionPrefix,
		synopsis:    "A mini program's login: the user's code becomes an openid.",
		description: code2SessionHelp,
		fields: map[string]*framework.FieldSchema{
			"js_code": {
				Type:         framework.TypeString,
				Description:  "The code that wx.login gave. It is good once, for five minutes.",
				Required:     true,
				DisplayAttrs: &framework.DisplayAttributes{Name: "Code", Sensitive: true},
			},
			"include_session_key": {
				Type:         framework.TypeBool,
				Default:      false,
				Description:  "Answer with the session key as well, to decrypt what the mini program gets of its user. Default: false.",
				DisplayAttrs: &framework.DisplayAttributes{Name: "Include session key"},
			},
		},
		operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback:     b.codeToSession,
				Summary:      "Exchange a mini program's login code for the user's openid.",
				DisplayAttrs: &framework.DisplayAttributes{OperationVerb: "exchange", OperationSuffix: "mini-program-code"},
				Responses: map[int][]framework.Response{http.StatusOK: {{Description: "The user; a field that WeChat did not give is null", Fields: map[string]*framework.FieldSchema{
					"openid":      {Type: framework.TypeString, Description: "The user, as this account knows them.", Required: true, DisplayAttrs: sensitive},
					"unionid":     {Type: framework.TypeString, Description: "The user, as all accounts of the open-platform account know them.", DisplayAttrs: sensitive},
					"session_key": {Type: framework.TypeString, Description: "The session key, if it was asked for.", DisplayAttrs: sensitive},
				}}}},
			},
		},
	})
}

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
				Callback:     b.oauth2,
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

// sensitive marks a field of an answer.
var sensitive = &framework.DisplayAttributes{Sensitive: true}

func (b *backend) codeToSession(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return b.login(ctx, req, data, "js_code", "wx.login gave", func(name string, cfg *config, code string) (map[string]any, error) {
		got, err := b.logins.session(ctx, name, cfg, code)
		if err != nil {
			return nil, err
		}
		fields := map[string]any{"openid": got.openID, "unionid": textOrNull(got.unionID)}
		if data.Get("include_session_key").(bool) {
			fields["session_key"] = got.sessionKey
		}
		return fields, nil
	})
}

func (b *backend) oauth2(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return b.login(ctx, req, data, "code", "WeChat gave for the login", func(name string, cfg *config, code string) (map[string]any, error) {
		got, err := b.logins.userToken(ctx, name, cfg, code)
		if err != nil {
			return nil, err
		}
		return map[string]any{
			"openid":          got.openID,
			"unionid":         textOrNull(got.unionID),
			"scope":           textOrNull(got.scope),
			"access_token":    got.accessToken,
			"refresh_token":   textOrNull(got.refreshToken),
			"expires_in":      numberOrNull(got.expiresIn),
			"is_snapshotuser": numberOrNull(got.snapshotUser),
		}, nil
	})
}

// login answers the request for a login with the fields that exchange gets for the code
// in field.
func (b *backend) login(ctx context.Context, req *logical.Request, data *framework.FieldData, field, origin string,
	exchange func(name string, cfg *config, code string) (map[string]any, error),
) (*logical.Response, error) {
	name, err := accountName(data)
	if err == nil {
		err = checkCode(data, field, origin)
	}
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	cfg, unknown, err := b.configured(ctx, req, name)
	if cfg == nil {
		return unknown, err
	}
	fields, err := exchange(name, cfg, data.Get(field).(string))
	if err != nil {
		words := fmt.Sprintf("the code was not exchanged for account %q", name)
		if p := problemOf(err); p != nil && p.Local { // the code is as good as before
			words = fmt.Sprintf("the code was not sent for account %q", name)
		}
		return failureResponse(words, upstream.WithoutRetryPromise(err))
	}
	return &logical.Response{Data: fields}, nil
}

// checkCode refuses what cannot be a code. It never quotes it.
func checkCode(data *framework.FieldData, field, origin string) error {
	code, _ := data.Get(field).(string)
	switch {
	case code == "":
		return fmt.Errorf("%s is missing: send the code that %s", field, origin)
	case len(code) > maxCode:
		return fmt.Errorf("%s is longer than %d bytes: send the code that %s, and nothing else", field, maxCode, origin)
	case strings.ContainsFunc(code, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) || r == unicode.ReplacementChar }):
		return fmt.Errorf("%s holds white space or a character that cannot be seen: check for a line end at its end", field)
	}
	return nil
}

// textOrNull is how a text is shown that WeChat may not have given.
func textOrNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// numberOrNull is how a number is shown that WeChat may not have given.
func numberOrNull(n *int64) any {
	if n == nil {
		return nil
	}
	return *n
}

const code2SessionHelp = `
A back end sends the code that wx.login gave its mini program, and gets the user's
openid, and the unionid where WeChat gives one. It needs no AppSecret:

    $ vault write wechat/code2session/myapp js_code=-

With include_session_key=true the answer holds the session key, too. Keep it on the
back end: it reads and forges what WeChat encrypts for the mini
program. A policy can forbid that field with denied_parameters.

WeChat takes a code once. The same code sent again within ten seconds gets the same
answer; after that, or if WeChat's answer was lost, WeChat is asked again. Nothing is
stored. A code that is not good is answered 400: have the client log in again and send the
new one.
`

const oauth2Help = `
A back end sends the code that WeChat gave for the login, and gets the user's openid
and the user's own tokens. It needs no AppSecret:

    $ vault write wechat/oauth2/myapp code=-

The tokens are the user's, not the account's: they read what the user has granted,
and sns/oauth2/refresh_token renews them without the AppSecret. What WeChat did not
give is null.

WeChat takes a code once. The same code sent again within ten seconds gets the same
answer; after that, or if WeChat's answer was lost, WeChat is asked again. Nothing is
stored. A code that is not good is answered 400: have the user log in again and send the
new one.
`
