package wechat

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestTheSignatureIsThatOfWeChatsExample(t *testing.T) {
	require.Equal(t, "0f9de62fce790f9a083d5c99e95740ceb90c27ed", signature(
		"sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg",
		"Wm3WZYTPz0wzccnW", 1414587457, "http://mp.weixin.qq.com?params=value"))
}

func TestASignatureHasTheFieldsOfWxConfig(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
			resp := m.ok(op, "sign/demo", map[string]any{"url": testPage})
			require.True(t, m.accepted(resp))
			require.Len(t, resp.Data, 5)
			require.Equal(t, testAppID, resp.Data["appid"])
			require.Equal(t, time.Now().Unix(), resp.Data["timestamp"])
			require.Regexp(t, "^[A-Z2-7]{26}$", resp.Data["noncestr"])
			require.Regexp(t, "^[0-9a-f]{40}$", resp.Data["signature"])
			require.Equal(t, testPage, resp.Data["url"])
			require.Nil(t, resp.Secret, "there is no lease")
			require.NotContains(t, shown(t, resp, nil), m.sim.CurrentTicket(testAppID, "jsapi"))
			var sent struct {
				Timestamp int64 `json:"timestamp"`
			}
			text, err := json.Marshal(resp.Data)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(text, &sent), "it is an integer")
		}
	})
}

func TestAnAddressIsSignedAsTheBrowserShowsIt(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for page, signed := range map[string]string{
			"http://mp.weixin.qq.com?params=value":   "http://mp.weixin.qq.com?params=value",
			"https://shop.example.com":               "https://shop.example.com",
			"https://shop.example.com/":              "https://shop.example.com/",
			"https://shop.example.com/#/item/7":      "https://shop.example.com/",
			"https://shop.example.com/#a#b":          "https://shop.example.com/",
			"https://shop.example.com#":              "https://shop.example.com",
			"HTTPS://Shop.Example.COM/A?b=C":         "HTTPS://Shop.Example.COM/A?b=C",
			"https://shop.example.com/%E5%BA%97?q=%": "https://shop.example.com/%E5%BA%97?q=%",
			"https://shop.example.com/%zz":           "https://shop.example.com/%zz",
			"https://店.example/店?q=店":                "https://店.example/店?q=店",
			"https://shop.example.com/a b?c= d ":     "https://shop.example.com/a b?c= d ",
			"https://shop.example.com:8443/a+b?c=+":  "https://shop.example.com:8443/a+b?c=+",
			"http://[2001:db8::1]:80/":               "http://[2001:db8::1]:80/",
			"https://user:pw@shop.example.com/x":     "https://user:pw@shop.example.com/x",
			"https://shop.example.com?u=https://x/y": "https://shop.example.com?u=https://x/y",
			"https://x/" + strings.Repeat("a", maxPageURL-10) + "#" + strings.Repeat("b", 32<<10): "https://x/" + strings.Repeat("a", maxPageURL-10),
		} {
			for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
				resp := m.ok(op, "sign/demo", map[string]any{"url": page})
				require.Equal(t, signed, resp.Data["url"])
				require.True(t, m.accepted(resp), page)
			}
		}
		require.Equal(t, 1, m.ticketCalls())
	})
}

// Only the user's browser would say that such a signature is good for nothing.
func TestAnAddressThatNoBrowserShowsIsSignedWithAWarning(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for page, names := range map[string]string{
			"https://shop.example.com/item?id=7":                    "",
			"https://shop.example.com/":                             "",
			"https://shop.example.com/?":                            "",
			"https://shop.example.com/%E5%BA%97?p=%e4%B8%AD&q=a+b":  "",
			"https://shop.example.com:8443/a;b=~'()*!$,@:|^`{}[]\\": "",
			"https://xn--fiq228c.example/?u=https://X/Y&amp=1":      "",
			"http://[2001:db8::1]:8080/":                            "",
			"http://192.0.2.1:443/":                                 "",
			"https://user:pw@shop.example.com/":                     "",
			"https://shop.example.com/#中 <&amp;>":                   "",
			"https://shop.example.com/?p=中":                         "a character beyond ASCII",
			"https://shop.example.com/店/":                           "a character beyond ASCII",
			"https://店.example/":                                    "punycode",
			"https://shop.example.com/?p=a b":                       "a blank, which is + or %20 in a browser",
			"https://shop.example.com/a ":                           "a blank",
			"https://shop.example.com/?a=1&amp;b=2":                 "&amp;, which is & in a browser",
			"https://shop.example.com/?p=\"x\"":                     "a \", which a browser shows percent-encoded",
			"https://shop.example.com/<id>":                         "a <, which",
			"HTTPS://shop.example.com/":                             "a capital letter in scheme or host",
			"https://Shop.example.com/":                             "a capital letter in scheme or host",
			"https://shop.example.com:443/":                         "the scheme's own port",
			"http://shop.example.com:80/":                           "the scheme's own port",
			"https://shop.example.com":                              "no / after its host",
			"https://shop.example.com?a=/":                          "no / after its host",
			"https://shop.example.com?p=a b&amp;c":                  "a blank, which is + or %20 in a browser, and &amp;, which is & in a browser, and no / after its host",
		} {
			for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
				resp := m.ok(op, "sign/demo", map[string]any{"url": page})
				require.True(t, m.accepted(resp), page)
				signed, _, _ := strings.Cut(page, "#")
				require.Equal(t, signed, resp.Data["url"], "nothing else is changed")
				if names == "" {
					require.Empty(t, resp.Warnings, page)
					continue
				}
				require.Len(t, resp.Warnings, 1, page)
				require.Contains(t, resp.Warnings[0], names, page)
				require.Contains(t, resp.Warnings[0], "encodeURIComponent(location.href.split('#')[0])")
			}
		}
	})
}

func TestWhatIsNoAddressOfAPageIsRefusedAndNotShown(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for page, says := range map[string]string{
			"":                                              "url is required",
			"#":                                             "url is required",
			"#/item/v4lue":                                  "url is required",
			"shop.example.com/v4lue":                        "begin with http",
			"//shop.example.com/v4lue":                      "begin with http",
			"ftp://shop.example.com/v4lue":                  "begin with http",
			"weixin://v4lue":                                "begin with http",
			"javascript:v4lue":                              "begin with http",
			"https:/shop.example.com/v4lue":                 "begin with http",
			" https://shop.example.com":                     "begin with http",
			"https://":                                      "no host",
			"https:///v4lue":                                "no host",
			"https://?v4lue":                                "no host",
			"https://#v4lue":                                "no host",
			"https://:443/v4lue":                            "no host",
			"https://user@/v4lue":                           "no host",
			"https:// /v4lue":                               "no host",
			"https%3A%2F%2Fshop.example.com%2Fv4lue":        "still percent-encoded",
			"https://shop.example.com%2Fv4lue":              "no host has",
			"https://{{v4lue}}/":                            "no host has",
			"https://${v4lue}/x":                            "no host has",
			"https://<v4lue>/x":                             "no host has",
			"https://[object v4lue]/":                       "no host",
			"https://shop.example.com:v4lue/":               "port that is not a number",
			"https://x/v4lue\n":                             "control character",
			"https://x/\x00v4lue":                           "control character",
			"https://x/v4lue\x7f":                           "control character",
			"https://x/v4lue\u0085":                         "control character",
			"https://x/\xffv4lue":                           "UTF-8",
			"https://x/" + strings.Repeat("v4lue", 1<<10):   "longer than 2048 bytes",
			"https://y/" + strings.Repeat("v4lue", 64<<10):  "longer than",
			"https://z/#" + strings.Repeat("v4lue", 64<<10): "longer than",
		} {
			for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
				m.changesNothing(0, func() {
					status, text := m.refused(op, "sign/demo", map[string]any{"url": page})
					require.Equal(t, http.StatusBadRequest, status)
					require.Contains(t, text, says, "%q", page)
					require.NotContains(t, text, "v4lue")
				})
			}
		}
		require.Zero(t, m.ticketCalls())
	})
}

func TestAnAddressThatIsMissingOrCutOffIsRefused(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
			status, text := m.refused(op, "sign/demo", nil)
			require.Equal(t, http.StatusBadRequest, status)
			require.Contains(t, text, "url is required")
			// What becomes of ?url=https://x/?a=1&v4lue=2 whose & was not escaped.
			status, text = m.refused(op, "sign/demo", map[string]any{"url": "https://x/?a=1", "v4lue": "2"})
			require.Equal(t, http.StatusBadRequest, status)
			require.Contains(t, text, "percent-encode its value, & as %26")
			require.NotContains(t, text, "v4lue")
		}
		require.Zero(t, m.ticketCalls())
	})
}

func TestASignatureForAnUnknownAccountNamesThePathToWrite(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for _, path := range []string{"sign/absent", "ticket/absent"} {
			m.changesNothing(0, func() {
				data := map[string]any{"url": testPage}
				if path == "ticket/absent" {
					data = nil
				}
				status, text := m.refused(logical.ReadOperation, path, data)
				require.Equal(t, http.StatusBadRequest, status)
				require.Contains(t, text, "wechat/config/absent")
			})
		}
		require.Empty(t, m.keeper.doors, "nothing is left behind")
	})
}

func TestTheTicketsTTLFollowsTheComparisons(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for cap, want := range map[int]struct{ first, most int64 }{0: {660, 660}, 10: {10, 10}, 240: {240, 240}} {
			m.write("demo", map[string]any{"max_ttl": cap})
			m.ok(logical.DeleteOperation, "config/demo", nil)
			m.write("demo", map[string]any{"max_ttl": cap})
			require.Equal(t, want.first, m.ticketOf("demo", "jsapi")["ttl"])
			for range 600 {
				time.Sleep(7 * time.Second)
				synctest.Wait()
				ttl := m.ticketOf("demo", "jsapi")["ttl"].(int64)
				require.GreaterOrEqual(t, ttl, int64(5))
				require.LessOrEqual(t, ttl, want.most)
			}
		}
	})
}

func TestATicketIsReadWithItsSixFields(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for _, kind := range []string{"jsapi", "wx_card"} {
			asked := time.Now().UTC()
			want := map[string]any{
				"ticket": "", "appid": testAppID, "type": kind, "ttl": int64(240), "rotation_period": int64(7200),
				"last_vault_rotation": asked.Format(time.RFC3339Nano),
			}
			resp := m.ok(logical.ReadOperation, "ticket/demo", map[string]any{"type": kind})
			want["ticket"] = m.sim.CurrentTicket(testAppID, kind)
			require.Equal(t, &logical.Response{Data: want}, resp, "there is nothing but data")
			time.Sleep(time.Minute)
			want["ttl"] = int64(240)
			require.Equal(t, want, m.ok(logical.ReadOperation, "ticket/demo", map[string]any{"type": kind}).Data)
		}
		require.Equal(t, "jsapi", m.ok(logical.ReadOperation, "ticket/demo", nil).Data["type"], "the default")
		require.Equal(t, []string{"config/demo", ticketKey(jsapiTicket, account1Config()), historyKey(account1Config()), ticketKey(cardTicket, account1Config())}, m.stored())
		for _, kind := range []string{"", "JSAPI", "jsapi ", "card", strings.Repeat("v4lue", 1<<10), "v4lue\n"} {
			status, text := m.refused(logical.ReadOperation, "ticket/demo", map[string]any{"type": kind})
			require.Equal(t, http.StatusBadRequest, status)
			require.Equal(t, "type must be jsapi or wx_card", text)
		}
	})
}

func TestStatusTellsOfTheTicketsThatWereUsed(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		require.Nil(t, m.statusOf("demo")["tickets"])
		m.signs("demo")
		at := time.Now().UTC()
		require.Equal(t, map[string]any{"jsapi": map[string]any{
			"state": "healthy", "last_vault_rotation": at.Format(time.RFC3339Nano), "last_success_time": timestamp(at), "last_error": nil,
		}}, m.statusOf("demo")["tickets"])

		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "errcode", Errcode: 45009}))
		m.refused(logical.ReadOperation, "ticket/demo", map[string]any{"type": "wx_card"})
		got := m.statusOf("demo")["tickets"].(map[string]any)
		require.Len(t, got, 2)
		card := got["wx_card"].(map[string]any)
		require.Equal(t, "failing", card["state"])
		require.Nil(t, card["last_vault_rotation"])
		require.Nil(t, card["last_success_time"])
		last := card["last_error"].(map[string]any)
		require.Len(t, last, 5)
		require.Equal(t, 45009, last["errcode"])
		require.Equal(t, "quota", last["class"])
		require.NotContains(t, shown(t, m.ok(logical.ReadOperation, "status/demo", nil), nil), "rid")
		require.Equal(t, "healthy", m.statusOf("demo")["state"])
		require.Nil(t, m.statusOf("demo")["last_error"])
	})
}
