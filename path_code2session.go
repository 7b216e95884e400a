package wechat

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"unicode"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const code2SessionPrefix = "code2session/"

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

// sensitive marks a field of an answer.
var sensitive = &framework.DisplayAttributes{Sensitive: true}

func (b *backend) codeToSession(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, cfg, refused, err := b.exchangeOf(ctx, req, data, "js_code", "wx.login gave")
	if refused != nil || err != nil {
		return refused, err
	}
	got, err := b.exchanges.session(ctx, name, cfg, data.Get("js_code").(string))
	if err != nil {
		return exchangeFailure(name, err)
	}
	fields := map[string]any{"openid": got.openID, "unionid": textOrNull(got.unionID)}
	if data.Get("include_session_key").(bool) {
		fields["session_key"] = got.sessionKey
	}
	return &logical.Response{Data: fields}, nil
}

// exchangeOf checks what a login came with, and reads the account's configuration.
// With a response or an error the request is answered.
func (b *backend) exchangeOf(ctx context.Context, req *logical.Request, data *framework.FieldData, field, origin string) (string, *config, *logical.Response, error) {
	name, err := accountName(data)
	if err == nil {
		err = checkCode(data, field, origin)
	}
	if err != nil {
		return "", nil, logical.ErrorResponse(err.Error()), nil
	}
	cfg, err := b.keeper.configOf(ctx, req.Storage, name)
	if err != nil {
		return "", nil, nil, err
	}
	if cfg == nil {
		return "", nil, unknownAccount(ctx, req, name), nil
	}
	return name, cfg, nil, nil
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

// exchangeFailure is the answer where nothing came of a login. A code that was not sent
// is as good as before.
func exchangeFailure(name string, err error) (*logical.Response, error) {
	words := fmt.Sprintf("the code was not exchanged for account %q", name)
	if p := problemOf(err); p != nil && p.local {
		words = fmt.Sprintf("the code was not sent for account %q", name)
	}
	return failureResponse(words, withoutRetryPromise(err))
}

// textOrNull is how a text is shown that WeChat may not have given.
func textOrNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

const code2SessionHelp = `
A back end sends the code that wx.login gave its mini program, and gets the user's
openid, and the unionid where WeChat gives one. It needs no AppSecret:

    $ vault write wechat/code2session/myapp js_code=-

With include_session_key=true the answer holds the session key, too. Keep it on the
back end: whoever has it can read and forge what WeChat encrypts for the mini
program. A policy can forbid that field with denied_parameters.

WeChat takes a code once. The same code sent again within ten seconds gets the same
answer; after that, or if WeChat's answer was lost, WeChat is asked again, and if it then
refuses the code the message says that the answer was lost. Nothing is stored. A code
that is not good is answered 400: have the client log in again and send the new one.
`
