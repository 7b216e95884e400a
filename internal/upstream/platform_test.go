package upstream

import (
	"context"
	"net/http"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const (
	testAppID  = "wx0123456789abcdef"
	testSecret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
	testURL    = "http://127.0.0.1:80"
)

// The platform of these tests: WeChat's token call, and some of its errcodes.
var (
	person   = Backoff{30 * time.Second, 5 * time.Minute}
	quota    = Backoff{time.Minute, 10 * time.Minute}
	errcodes = map[int]Rule{
		-1:    {ClassTransient, http.StatusBadGateway, BackoffTransient, "WeChat is busy", AdviceNothing},
		40013: {ClassCredentials, http.StatusBadRequest, person, "the appid is not valid", "write the right appid"},
		45009: {ClassQuota, http.StatusTooManyRequests, quota, "the account's daily quota is used up", "wait for the next day"},
		40164: {ClassAdmission, http.StatusBadRequest, person, "the caller's IP is not whitelisted", "add this IP to the whitelist"},
		45035: {ClassAdmission, http.StatusBadRequest, person, "the caller's IP is not whitelisted", "add this IP to the whitelist"},
		61004: {ClassAdmission, http.StatusBadRequest, person, "the caller's IP is not whitelisted", "add this IP to the whitelist"},
		89501: {ClassHuman, http.StatusBadRequest, person, "an administrator has to confirm the caller's IP", "have it confirmed"},
		89503: {ClassHuman, http.StatusBadRequest, person, "an administrator has to confirm the caller's IP", "have it confirmed"},
		89506: {ClassHuman, http.StatusBadRequest, quota, "an administrator refused the caller's IP", "talk to the administrator"},
		89507: {ClassHuman, http.StatusBadRequest, quota, "an administrator refused the caller's IP", "talk to the administrator"},
	}
)

func ruleOf(errcode int) (Rule, bool) {
	rule, documented := errcodes[errcode]
	return rule, documented
}

// tokenRequest is the request for a token of an account.
func tokenRequest(appID, secret string, force bool) Request {
	return Request{
		API: wechatsim.APIToken, Path: "/cgi-bin/stable_token",
		Body:    map[string]any{"grant_type": "client_credential", "appid": appID, "secret": secret, "force_refresh": force},
		Secrets: []string{secret}, Confidential: []string{"access_token"}, Rule: ruleOf,
	}
}

// ask asks for the token of testAppID.
func ask(ctx context.Context, c *Client, e Endpoint, force bool) (string, error) {
	return Call(ctx, c, e, tokenRequest(testAppID, testSecret, force), func(a Envelope) (token string, p *Problem) {
		p = a.Values(map[string]*string{"access_token": &token})
		if p == nil && token == "" {
			p = Undocumented("it holds no access_token")
		}
		return token, p
	})
}
