//go:build e2e

package e2e

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// signed checks the answer of sign/ as WeChat's page does.
func (e *engine) signed(t *testing.T, answer *api.Secret, page string) {
	t.Helper()
	want := []string{"appid", "noncestr", "signature", "timestamp", "url"}
	if got := slices.Sorted(maps.Keys(answer.Data)); !slices.Equal(got, want) {
		t.Fatalf("the fields are %v, want %v", got, want)
	}
	number, ok := answer.Data["timestamp"].(json.Number)
	if !ok {
		t.Fatalf("timestamp is %#v, want a number", answer.Data["timestamp"])
	}
	timestamp, err := number.Int64()
	must(t, err)
	text := func(field string) string { return answer.Data[field].(string) }
	if got := text("url"); got != page {
		t.Errorf("the address that was signed is %q, want %q", got, page)
	}
	if !e.CheckSignature(wechatsim.Signature{
		AppID: text("appid"), Timestamp: timestamp, NonceStr: text("noncestr"), URL: page, Signature: text("signature"),
	}) {
		t.Errorf("WeChat does not accept the signature of %q", page)
	}
	warnings := 0
	if strings.ContainsFunc(page, func(r rune) bool { return r > unicode.MaxASCII }) {
		warnings = 1 // no browser shows that
	}
	if answer.LeaseID != "" || len(answer.Warnings) != warnings {
		t.Errorf("the answer has a lease, or not %d warnings: %+v", warnings, answer)
	}
}

func TestPageIsSignedByReadAndByUpdateWithOneTicket(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	appid := account["appid"].(string)
	e.configure(t, "team-a/shop", account)
	path := e.path + "/sign/team-a/shop"
	for sent, page := range map[string]string{
		"https://shop.example.com/item?id=7&from=wechat#top": "https://shop.example.com/item?id=7&from=wechat",
		"https://shop.example.com/%E5%BA%97?q=a%2Bb+c&r=%26": "https://shop.example.com/%E5%BA%97?q=a%2Bb+c&r=%26",
		"https://店.example/店?q=店":                            "https://店.example/店?q=店",
	} {
		answer, err := e.vault.Logical().ReadWithData(path, map[string][]string{"url": {sent}})
		must(t, err)
		e.signed(t, answer, page)
		answer, err = e.vault.Logical().Write(path, fields{"url": sent})
		must(t, err)
		e.signed(t, answer, page)
	}
	if n := len(e.CallsOf(wechatsim.APITicket, appid)); n != 1 {
		t.Errorf("%d calls for a ticket, want 1", n)
	}
	for _, query := range []map[string][]string{
		nil,
		{"url": {"https://a.example", "https://b.example"}},
		{"url": {"https://a.example/?a=1"}, "b": {"2"}},
		{"url": {"weixin://a"}},
	} {
		_, err := e.vault.Logical().ReadWithData(path, query)
		refused(t, err, http.StatusBadRequest, "url")
	}

	for _, kind := range []string{"jsapi", "wx_card"} {
		answer, err := e.vault.Logical().ReadWithData(e.path+"/ticket/team-a/shop", map[string][]string{"type": {kind}})
		must(t, err)
		ticket := e.hide(answer.Data["ticket"].(string))
		if of, typ, accepted := e.CheckTicket(ticket); of != appid || typ != kind || !accepted {
			t.Errorf("the ticket is of %s, type %s, accepted %t", of, typ, accepted)
		}
		if answer.Data["rotation_period"] != json.Number("7200") || ttl(t, answer) != 240 {
			t.Errorf("the ticket's times are %v", answer.Data)
		}
	}
}
