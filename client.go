package wechat

import (
	"context"
	"fmt"
	"net/url"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// client makes WeChat's calls. It is safe for concurrent use and knows nothing of Vault.
// Every error is a *problem, unless ctx was cancelled.
type client struct{ upstream.Client }

// endpoint says whom to ask for which account.
type endpoint struct {
	upstream.Endpoint
	rule   func(api string, errcode int) (rule, bool)
	appID  string
	secret string
}

// input is what a call takes besides the configuration.
type input struct {
	parent string // the credential that this one is derived from
	force  bool   // replace the credential, which dies
}

// request completes a request for the account: with the platform's rules, and with what no
// text may show.
func (e endpoint) request(r upstream.Request) upstream.Request {
	r.Rule = func(errcode int) (rule, bool) { return e.rule(r.API, errcode) }
	r.Secrets, r.Confidential = append(r.Secrets, e.secret), secretFields
	return r
}

// stableToken asks WeChat for the account's token. A forced call kills the
// previous token.
func stableToken(ctx context.Context, c *client, e endpoint, in input) (kept.Grant, error) {
	return upstream.Call(ctx, &c.Client, e.Endpoint, e.request(upstream.Request{
		API: apiStableToken, Path: "/cgi-bin/stable_token",
		Body: map[string]any{
			"grant_type":    "client_credential",
			"appid":         e.appID,
			"secret":        e.secret,
			"force_refresh": in.force,
		},
	}), grantedFrom(moment(), parseToken))
}

// grantedFrom reads the answer to a call that is sent now and brings a credential.
func grantedFrom(now kept.Moment, parse func(upstream.Envelope) (kept.Grant, *problem)) func(upstream.Envelope) (kept.Grant, *problem) {
	return func(fields upstream.Envelope) (kept.Grant, *problem) {
		g, p := parse(fields)
		if p != nil {
			return kept.Grant{}, p
		}
		g.Asked, g.Answered = now, moment()
		if g.End().Sub(g.Answered.Wall) < kept.MinTTL {
			return kept.Grant{}, &problem{Rule: upstream.RuleAnswer, Detail: fmt.Sprintf("what it holds has only %s left", g.Life)}
		}
		return g, nil
	}
}

// codeToSession exchanges the code of wx.login for the user's session. WeChat
// takes a code once.
func (c *client) codeToSession(ctx context.Context, e endpoint, code string) (*session, error) {
	return upstream.Call(ctx, &c.Client, e.Endpoint, e.request(upstream.Request{
		API: apiCode2Session, Path: "/sns/jscode2session", Apart: true,
		Query:   url.Values{"appid": {e.appID}, "secret": {e.secret}, "js_code": {code}, "grant_type": {"authorization_code"}},
		Secrets: []string{code},
	}), parseSession)
}

// userToken exchanges the code of a web login for the user's tokens. WeChat takes
// a code once.
func (c *client) userToken(ctx context.Context, e endpoint, code string) (*userToken, error) {
	return upstream.Call(ctx, &c.Client, e.Endpoint, e.request(upstream.Request{
		API: apiOAuth2, Path: "/sns/oauth2/access_token", Apart: true,
		Query:   url.Values{"appid": {e.appID}, "secret": {e.secret}, "code": {code}, "grant_type": {"authorization_code"}},
		Secrets: []string{code},
	}), parseUserToken)
}

// clearQuota sets the counters of the account's API calls back to zero. WeChat
// documents the credentials in the body in one place and in the query in another.
// In the query they would end up in the logs of a relay, so the body comes first:
// where WeChat says that it saw none, nothing was done, and the query follows.
func (c *client) clearQuota(ctx context.Context, e endpoint) error {
	const path = "/cgi-bin/clear_quota/v2"
	_, err := upstream.Call(ctx, &c.Client, e.Endpoint, e.request(upstream.Request{
		API: apiClearQuota, Path: path,
		Body: map[string]any{"appid": e.appID, "appsecret": e.secret},
	}), parseCleared)
	if p := problemOf(err); p == nil || p.Errcode != 41002 && p.Errcode != 41004 {
		return err
	}
	_, err = upstream.Call(ctx, &c.Client, e.Endpoint, e.request(upstream.Request{
		API: apiClearQuota, Path: path,
		Query: url.Values{"appid": {e.appID}, "appsecret": {e.secret}},
		Body:  struct{}{},
	}), parseCleared)
	return err
}

// ticket asks WeChat for a ticket of this kind, jsapi or wx_card, with the
// account's token.
func (c *client) ticket(ctx context.Context, e endpoint, accessToken, kind string) (kept.Grant, error) {
	return upstream.Call(ctx, &c.Client, e.Endpoint, e.request(upstream.Request{
		API: apiTicket, Path: "/cgi-bin/ticket/getticket",
		Query:   url.Values{"access_token": {accessToken}, "type": {kind}},
		Secrets: []string{accessToken},
	}), grantedFrom(moment(), parseTicket))
}
