package wechatsim_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const clearPath = "/cgi-bin/clear_quota/v2"

// clearQuota clears the quota with the parameters in the query.
func (p *platform) clearQuota() fields {
	p.t.Helper()
	return p.ask("POST", clearPath, url.Values{"appid": {appid}, "appsecret": {secret}}, "")
}

func TestClearQuota(t *testing.T) {
	rules := []struct {
		name    string
		account wechatsim.Account
		test    func(*platform)
	}{
		{"puts the day's count of stable_token to zero", wechatsim.Account{PerDay: 1}, func(p *platform) {
			token := p.wantNew(p.normal(), 7200)
			p.wantErrcode(p.normal(), 45009)
			p.wantAnswer(p.clearQuota(), 0)
			p.wantToken(p.normal(), token, 7200)
		}},
		{"leaves the limits of a minute and of forced calls", wechatsim.Account{PerMinute: 2, ForcedPerDay: 1}, func(p *platform) {
			p.wantNew(p.forced(), 7200)
			time.Sleep(30 * second)
			p.wantAnswer(p.clearQuota(), 0)
			p.wantErrcode(p.forced(), 45009)
			p.normal()
			p.wantAnswer(p.clearQuota(), 0)
			p.wantErrcode(p.normal(), 45011)
		}},
		{"takes its parameters from the body too", wechatsim.Account{}, func(p *platform) {
			p.wantAnswer(p.ask("POST", clearPath, nil, body(map[string]string{"appid": appid, "appsecret": secret})), 0)
		}},
		{"is good ten times a month, of China's time", wechatsim.Account{}, func(p *platform) {
			for range 10 {
				p.wantAnswer(p.clearQuota(), 0)
			}
			p.wantAnswer(p.clearQuota(), 48006)
			time.Sleep(time.Until(time.Date(2000, 1, 31, 16, 0, 0, 0, time.UTC)) - ms)
			p.wantAnswer(p.clearQuota(), 48006)
			time.Sleep(ms)
			p.wantAnswer(p.clearQuota(), 0)
		}},
		{"refuses what is wrong, and does not count it", wechatsim.Account{ClearingsPerMonth: 1}, func(p *platform) {
			for _, r := range []struct {
				method  string
				query   url.Values
				body    string
				errcode int
			}{
				{"GET", url.Values{"appid": {appid}, "appsecret": {secret}}, "", 43002},
				{"POST", nil, "", 41002},
				{"POST", url.Values{"appid": {appid}}, "", 41004},
				{"POST", url.Values{"appid": {appid}, "secret": {secret}}, "", 41004},
				{"POST", url.Values{"appid": {"wxunknown"}, "appsecret": {secret}}, "", 40013},
				{"POST", url.Values{"appid": {appid}, "appsecret": {"wrong"}}, "", 40125},
				{"POST", nil, "appid=" + appid, 47001},
			} {
				p.wantAnswer(p.ask(r.method, clearPath, r.query, r.body), r.errcode)
			}
			p.wantAnswer(p.clearQuota(), 0)
			p.wantAnswer(p.clearQuota(), 48006)
		}},
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) { inBubble(t, r.account, r.test) })
	}
}
