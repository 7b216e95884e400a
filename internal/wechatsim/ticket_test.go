package wechatsim_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// ticket asks for a ticket.
func (p *platform) ticket(token, typ string) fields {
	p.t.Helper()
	return p.ask("GET", "/cgi-bin/ticket/getticket", url.Values{"access_token": {token}, "type": {typ}}, "")
}

// wantTicket checks that a call was answered with a ticket, and returns it.
func (p *platform) wantTicket(got fields) string {
	p.t.Helper()
	if got["errcode"] != 0.0 || got["errmsg"] != "ok" || got.number("expires_in") != 7200 || got.text("ticket") == "" {
		p.t.Fatalf("got %v; want a ticket", got)
	}
	return got.text("ticket")
}

func (p *platform) wantAccepted(ticket string, want bool) {
	p.t.Helper()
	if _, _, accepted := p.CheckTicket(ticket); accepted != want {
		p.t.Errorf("the ticket is accepted: %t; want %t", accepted, want)
	}
}

func TestTickets(t *testing.T) {
	rules := []struct {
		name string
		test func(p *platform, token string)
	}{
		{"stay the same for two hours and always say 7200", func(p *platform, token string) {
			first := p.wantTicket(p.ticket(token, "jsapi"))
			time.Sleep(life - ms)
			token = p.normal().Token
			if again := p.wantTicket(p.ticket(token, "jsapi")); again != first {
				p.t.Error("it is another ticket")
			}
			time.Sleep(ms)
			if next := p.wantTicket(p.ticket(token, "jsapi")); next == first {
				p.t.Error("it is the old ticket")
			}
		}},
		{"are accepted for an hour after they were replaced", func(p *platform, token string) {
			first := p.wantTicket(p.ticket(token, "jsapi"))
			time.Sleep(life + 10*time.Minute)
			p.wantAccepted(first, true)
			next := p.wantTicket(p.ticket(p.normal().Token, "jsapi"))
			time.Sleep(time.Hour - ms)
			p.wantAccepted(first, true)
			time.Sleep(ms)
			p.wantAccepted(first, false)
			p.wantAccepted(next, true)
		}},
		{"can be replaced before their time", func(p *platform, token string) {
			first := p.wantTicket(p.ticket(token, "jsapi"))
			next := p.ReplaceTicket(appid, "jsapi")
			if next == first || p.wantTicket(p.ticket(token, "jsapi")) != next || p.CurrentTicket(appid, "jsapi") != next {
				p.t.Error("the new ticket is not the current one")
			}
			p.wantAccepted(first, true)
		}},
		{"are one for each type", func(p *platform, token string) {
			jsapi, card := p.wantTicket(p.ticket(token, "jsapi")), p.wantTicket(p.ticket(token, "wx_card"))
			for ticket, want := range map[string]string{jsapi: "jsapi", card: "wx_card"} {
				if owner, typ, accepted := p.CheckTicket(ticket); owner != appid || typ != want || !accepted {
					p.t.Errorf("%q, %q, %t", owner, typ, accepted)
				}
			}
			if owner, _, accepted := p.CheckTicket("never-issued"); owner != "" || accepted {
				p.t.Error("a ticket that was never issued is accepted")
			}
			p.wantAnswer(p.ticket(token, "other"), 40097)
		}},
		{"outlive the token that they were asked with", func(p *platform, token string) {
			first := p.wantTicket(p.ticket(token, "jsapi"))
			next := p.ForceOutside(appid)
			if p.wantTicket(p.ticket(next, "jsapi")) != first {
				p.t.Error("a new token brought a new ticket")
			}
		}},
		{"need a living token", func(p *platform, token string) {
			p.wantAnswer(p.ticket("", "jsapi"), 41001)
			p.wantAnswer(p.ticket("never-issued", "jsapi"), 40014)
			p.ForceOutside(appid)
			p.wantAnswer(p.ticket(token, "jsapi"), 40001)
			token = p.Current(appid)
			p.ExpireAll(appid)
			p.wantAnswer(p.ticket(token, "jsapi"), 42001)
		}},
		{"want a GET", func(p *platform, token string) {
			p.wantAnswer(p.ask("POST", "/cgi-bin/ticket/getticket", url.Values{"access_token": {token}, "type": {"jsapi"}}, ""), 43001)
		}},
		{"are limited by the day, until the quota is cleared", func(p *platform, token string) {
			p.Update(appid, func(a *wechatsim.Account) { a.TicketsPerDay = 1 })
			p.wantTicket(p.ticket(token, "jsapi"))
			p.wantAnswer(p.ticket(token, "jsapi"), 45009)
			p.wantAnswer(p.clearQuota(), 0)
			p.wantTicket(p.ticket(token, "jsapi"))
			p.wantAnswer(p.ticket(token, "jsapi"), 45009)
			time.Sleep(24 * time.Hour)
			p.wantTicket(p.ticket(p.normal().Token, "jsapi"))
		}},
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(p *platform) { r.test(p, p.wantNew(p.normal(), 7200)) })
		})
	}
}

func TestSignatures(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(p *platform) {
		sig := wechatsim.Signature{AppID: appid, Timestamp: 1414587457, NonceStr: "n", URL: "https://example.com/a?b=c#d"}
		if p.CheckSignature(sig) {
			p.t.Error("nothing is accepted")
		}
		ticket := p.ReplaceTicket(appid, "jsapi")
		sig.Signature = wechatsim.Sign(ticket, sig)
		want := func(accepted bool, change func(*wechatsim.Signature)) {
			p.t.Helper()
			changed := sig
			change(&changed)
			if p.CheckSignature(changed) != accepted {
				p.t.Errorf("%+v is accepted: %t", changed, !accepted)
			}
		}
		want(true, func(*wechatsim.Signature) {})
		want(true, func(s *wechatsim.Signature) { s.URL = "https://example.com/a?b=c#another" })
		want(true, func(s *wechatsim.Signature) { s.URL = "https://example.com/a?b=c" })
		want(false, func(s *wechatsim.Signature) { s.URL = "https://example.com/a?b=C" })
		want(false, func(s *wechatsim.Signature) { s.NonceStr = "N" })
		want(false, func(s *wechatsim.Signature) { s.Timestamp++ })
		want(false, func(s *wechatsim.Signature) { s.AppID = "wxother" })
		want(false, func(s *wechatsim.Signature) { s.Signature = "" })
		want(false, func(s *wechatsim.Signature) { s.Signature = wechatsim.Sign(p.ReplaceTicket(appid, "wx_card"), *s) })
		p.ReplaceTicket(appid, "jsapi")
		time.Sleep(time.Hour - ms)
		want(true, func(*wechatsim.Signature) {})
		time.Sleep(ms)
		want(false, func(*wechatsim.Signature) {})
	})
}

func TestSignatureOfTheDocumentsExample(t *testing.T) {
	got := wechatsim.Sign("sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg", wechatsim.Signature{
		NonceStr: "Wm3WZYTPz0wzccnW", Timestamp: 1414587457, URL: "http://mp.weixin.qq.com?params=value",
	})
	if want := "0f9de62fce790f9a083d5c99e95740ceb90c27ed"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}
