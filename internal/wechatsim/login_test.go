package wechatsim_test

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// fields are those of an answer.
type fields map[string]any

func (f fields) text(name string) string {
	s, _ := f[name].(string)
	return s
}

func (f fields) number(name string) int {
	n, _ := f[name].(float64)
	return int(n)
}

// ask calls an API, which has to answer HTTP 200 and JSON.
func (p *platform) ask(method, path string, query url.Values, body string) fields {
	p.t.Helper()
	status, raw, err := p.exchange(p.t.Context(), method, path+"?"+query.Encode(), body)
	var got fields
	if err != nil || status != 200 || json.Unmarshal([]byte(raw), &got) != nil {
		p.t.Fatalf("HTTP %d %q, %v", status, raw, err)
	}
	return got
}

// login exchanges a code of a mini program.
func (p *platform) login(code string) fields {
	p.t.Helper()
	return p.ask("GET", "/sns/jscode2session", loginQuery("js_code", code), "")
}

// oauth2 exchanges a code of WeChat's browser.
func (p *platform) oauth2(code string) fields {
	p.t.Helper()
	return p.ask("GET", "/sns/oauth2/access_token", loginQuery("code", code), "")
}

func loginQuery(name, code string) url.Values {
	return url.Values{"appid": {appid}, "secret": {secret}, name: {code}, "grant_type": {"authorization_code"}}
}

// wantAnswer checks the errcode of an answer; 0 is a good answer.
func (p *platform) wantAnswer(got fields, errcode int) {
	p.t.Helper()
	if got.number("errcode") != errcode {
		p.t.Errorf("got %v; want errcode %d", got, errcode)
	}
}

func TestCode2Session(t *testing.T) {
	t.Run("tells the user and a session key, and the unionid only of a bound account", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			got := p.login(p.Mint(appid, wechatsim.Code{OpenID: "oUser", UnionID: "uUser"}).Code)
			key, err := base64.StdEncoding.DecodeString(got.text("session_key"))
			if len(got) != 2 || got.text("openid") != "oUser" || err != nil || len(key) != 16 {
				p.t.Errorf("got %v", got)
			}
			p.Update(appid, func(a *wechatsim.Account) { a.Bound = true })
			again := p.login(p.Mint(appid, wechatsim.Code{OpenID: "oUser", UnionID: "uUser"}).Code)
			if again.text("unionid") != "uUser" || again.text("session_key") == got.text("session_key") {
				p.t.Errorf("got %v", again)
			}
		})
	})
	t.Run("users that are not named are others each time, with a unionid of their own", func(t *testing.T) {
		inBubble(t, wechatsim.Account{Bound: true}, func(p *platform) {
			a, b := p.login(p.Mint(appid, wechatsim.Code{}).Code), p.login(p.Mint(appid, wechatsim.Code{}).Code)
			same := p.login(p.Mint(appid, wechatsim.Code{OpenID: a.text("openid")}).Code)
			if a.text("openid") == b.text("openid") || a.text("unionid") == b.text("unionid") || a.text("unionid") == "" ||
				a.text("unionid") != same.text("unionid") {
				p.t.Errorf("got %v, %v and %v", a, b, same)
			}
		})
	})
	t.Run("takes a code with any character in it, when it is escaped", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			odd := "a&secret=b#c d%20+/=é"
			p.wantAnswer(p.login(p.Mint(appid, wechatsim.Code{Code: odd}).Code), 0)
			p.wantAnswer(p.login(odd), 40163)
		})
	})
}

func TestOAuth2(t *testing.T) {
	rules := []struct {
		name string
		code wechatsim.Code
		want map[string]any // beside the tokens; nil is absent
	}{
		{
			"the base scope, without a unionid",
			wechatsim.Code{OpenID: "oUser"},
			map[string]any{"openid": "oUser", "scope": "snsapi_base", "unionid": nil, "is_snapshotuser": nil, "expires_in": 7200.0},
		},
		{
			"the scope that tells the unionid",
			wechatsim.Code{Scope: "snsapi_userinfo", UnionID: "uUser"},
			map[string]any{"scope": "snsapi_userinfo", "unionid": "uUser"},
		},
		{"the snapshot mode", wechatsim.Code{Snapshot: true}, map[string]any{"is_snapshotuser": 1.0}},
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(p *platform) {
				r.code.API = wechatsim.APIOAuth2
				got := p.oauth2(p.Mint(appid, r.code).Code)
				if got.text("access_token") == "" || got.text("refresh_token") == "" {
					p.t.Errorf("got %v", got)
				}
				for name, want := range r.want {
					if got[name] != want {
						p.t.Errorf("%s is %v; want %v", name, got[name], want)
					}
				}
			})
		})
	}
}

func TestPhoneNumber(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(p *platform) {
		ask := func(token, code string) fields {
			return p.ask("POST", "/wxa/business/getuserphonenumber", url.Values{"access_token": {token}}, body(map[string]string{"code": code}))
		}
		token := p.wantNew(p.normal(), 7200)
		code := p.Mint(appid, wechatsim.Code{API: wechatsim.APIPhoneNumber, Phone: "13900139000"}).Code
		p.wantAnswer(ask("", code), 41001)
		p.wantAnswer(ask("never-issued", code), 40014)
		got := ask(token, code)
		info, _ := got["phone_info"].(map[string]any)
		if info["phoneNumber"] != "13900139000" || info["countryCode"] != "86" {
			p.t.Errorf("got %v", got)
		}
		p.wantAnswer(ask(token, code), 40163)
		p.wantAnswer(ask(token, p.Mint(appid, wechatsim.Code{}).Code), 40029)
		p.ForceOutside(appid)
		p.wantAnswer(ask(token, code), 40001)
	})
}

// A code's rules hold for both kinds of logins.
func TestCodes(t *testing.T) {
	apis := map[string]func(*platform, string) fields{
		wechatsim.APICode2Session: (*platform).login,
		wechatsim.APIOAuth2:       (*platform).oauth2,
	}
	rules := []struct {
		name string
		test func(p *platform, mint func(openid string) string, login func(code string) fields)
	}{
		{"are good once", func(p *platform, mint func(string) string, login func(string) fields) {
			code := mint("")
			p.wantAnswer(login(code), 0)
			p.wantAnswer(login(code), 40163)
			time.Sleep(time.Hour)
			p.wantAnswer(login(code), 40163)
		}},
		{"are good for five minutes", func(p *platform, mint func(string) string, login func(string) fields) {
			first, second := mint(""), mint("")
			time.Sleep(5*time.Minute - ms)
			p.wantAnswer(login(first), 0)
			time.Sleep(ms)
			p.wantAnswer(login(second), 40029)
		}},
		{"are known or refused", func(p *platform, _ func(string) string, login func(string) fields) {
			p.wantAnswer(login("unknown"), 40029)
			p.wantAnswer(login(""), 41008)
		}},
		{"are limited by the minute and user", func(p *platform, mint func(string) string, login func(string) fields) {
			for range 100 {
				p.wantAnswer(login(mint("oUser")), 0)
			}
			code := mint("oUser")
			p.wantAnswer(login(code), 45011)
			p.wantAnswer(login(mint("oOther")), 0)
			time.Sleep(time.Minute)
			p.wantAnswer(login(code), 0)
		}},
	}
	for api, login := range apis {
		for _, r := range rules {
			t.Run(api+" "+r.name, func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(p *platform) {
					mint := func(openid string) string { return p.Mint(appid, wechatsim.Code{API: api, OpenID: openid}).Code }
					r.test(p, mint, func(code string) fields { return login(p, code) })
				})
			})
		}
		t.Run(api+" knows only its own account's and kind", func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(p *platform) {
				p.SetAccount("wxother", wechatsim.Account{Secret: secret})
				p.wantAnswer(login(p, p.Mint("wxother", wechatsim.Code{API: api}).Code), 40029)
				p.wantAnswer(login(p, p.Mint(appid, wechatsim.Code{API: wechatsim.APIPhoneNumber}).Code), 40029)
			})
		})
	}
	t.Run("are used up by a call whose answer is lost", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			code := p.Mint(appid, wechatsim.Code{}).Code
			p.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "lost", Times: 1})
			_, _, err := p.exchange(p.t.Context(), "GET", "/sns/jscode2session?"+loginQuery("js_code", code).Encode(), "")
			if err == nil {
				p.t.Error("the answer came")
			}
			if calls := p.CallsOf(wechatsim.APICode2Session, appid); len(calls) != 1 || !calls[0].Issued || calls[0].Fault != "lost" {
				p.t.Errorf("recorded %+v", calls)
			}
			p.wantAnswer(p.login(code), 40163)
		})
	})
	t.Run("of a risky user are refused, and used up", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			code := p.Mint(appid, wechatsim.Code{Risky: true}).Code
			p.wantAnswer(p.login(code), 40226)
			p.wantAnswer(p.login(code), 40163)
		})
	})
	t.Run("that nothing takes can't be minted", func(t *testing.T) {
		defer func() {
			if recover() == nil {
				t.Error("it was minted")
			}
		}()
		wechatsim.New().Mint(appid, wechatsim.Code{API: wechatsim.APITicket})
	})
}

func TestLoginRefusals(t *testing.T) {
	refusals := []struct {
		name    string
		change  url.Values
		account wechatsim.Account
		method  string
		errcode int
	}{
		{name: "an unknown appid", change: url.Values{"appid": {"wxunknown"}}, errcode: 40013},
		{name: "a wrong secret", change: url.Values{"secret": {"wrong"}}, errcode: 40125},
		{name: "no appid", change: url.Values{"appid": {""}}, errcode: 41002},
		{name: "no secret", change: url.Values{"secret": {""}}, errcode: 41004},
		{name: "another grant type", change: url.Values{"grant_type": {"client_credential"}}, errcode: 40002},
		{name: "an IP not on the whitelist", account: wechatsim.Account{AllowedIPs: []string{"1.2.3.4"}}, errcode: 40164},
		{name: "a POST", method: "POST", errcode: 43001},
	}
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			inBubble(t, r.account, func(p *platform) {
				code := p.Mint(appid, wechatsim.Code{}).Code
				query := loginQuery("js_code", code)
				maps.Copy(query, r.change)
				got := p.ask(cmp.Or(r.method, "GET"), "/sns/jscode2session", query, "")
				p.wantAnswer(got, r.errcode)
				if !strings.Contains(got.text("errmsg"), "rid: ") {
					p.t.Errorf("errmsg %q", got.text("errmsg"))
				}
				p.Update(appid, func(a *wechatsim.Account) { a.AllowedIPs = nil })
				p.wantAnswer(p.login(code), 0) // a refusal uses up no code
			})
		})
	}
}
