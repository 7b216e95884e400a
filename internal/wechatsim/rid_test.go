package wechatsim_test

import (
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestLookUpOfARefusedCall(t *testing.T) {
	lookUp := func(p *platform, token, rid string) fields {
		return p.ask("POST", "/cgi-bin/openapi/rid/get", url.Values{"access_token": {token}}, body(map[string]string{"rid": rid}))
	}
	ridOf := func(p *platform, got fields) string {
		found := regexp.MustCompile(`rid: (\S+)$`).FindStringSubmatch(got.text("errmsg"))
		if found == nil {
			p.t.Fatalf("%v has no rid", got)
		}
		return found[1]
	}
	inBubble(t, wechatsim.Account{}, func(p *platform) {
		token := p.wantNew(p.normal(), 7200)
		other := "wxother"
		p.SetAccount(other, wechatsim.Account{Secret: "another"})
		query := loginQuery("js_code", "bad")
		login := p.ask("GET", "/sns/jscode2session", query, "")
		call := strings.Replace(callBody(true), `"client_credential"`, `"password"`, 1)
		refused := p.ask("POST", "/cgi-bin/stable_token", nil, call)

		got := lookUp(p, token, ridOf(p, login))
		record, _ := got["request"].(map[string]any)
		if want := "/sns/jscode2session?" + query.Encode(); record["request_url"] != want || record["request_body"] != "" ||
			record["client_ip"] != "127.0.0.1" || !strings.Contains(fields(record).text("response_body"), `"errcode":40029`) {
			p.t.Errorf("got %v", got)
		}
		got = lookUp(p, token, ridOf(p, refused))
		record, _ = got["request"].(map[string]any)
		if record["request_body"] != call {
			p.t.Errorf("got %v", got)
		}

		p.wantAnswer(lookUp(p, token, "unknown"), 76001)
		p.wantAnswer(lookUp(p, "never-issued", ridOf(p, login)), 40014)
		p.wantAnswer(lookUp(p, "", ridOf(p, login)), 41001)
		p.wantAnswer(lookUp(p, p.ForceOutside(other), ridOf(p, login)), 76003)

		time.Sleep(7*24*time.Hour - second)
		p.wantAnswer(lookUp(p, p.ForceOutside(appid), ridOf(p, login)), 0)
		time.Sleep(second)
		p.wantAnswer(lookUp(p, p.Current(appid), ridOf(p, login)), 76001)
	})
}
