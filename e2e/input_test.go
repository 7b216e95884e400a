//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestBadNamesAreRefusedOnEveryPath(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	const rule = "letter or digit; at most 255"
	for name, words := range map[string]string{
		"a b": rule, " a": rule, "-a": rule, "a-": rule, "_a": rule, "a_": rule, ".a": rule, "a.": rule,
		"a/-b": rule, "a/b-": rule, "a-/b": rule, "a/.b": rule, "a/ /b": rule,
		"café": rule, "店": rule, "a+b": rule, "a:b": rule, "a@b": rule, "a%b": rule, "a\\b": rule,
		"a?b": rule, "a#b": rule, "a*": rule, "a,b": rule, "a~": rule, "ａ": rule,
		strings.Repeat("a", 256): rule, strings.Repeat("a/", 128) + "a": rule,
		// Vault itself answers these.
		"a\n": "", "a\nb": "", "a\x00b": "", "a\tb": "",
	} {
		for what, request := range map[string]func(string) error{
			"write of the configuration":  func(name string) error { _, err := e.write(name, account, unverified); return err },
			"read of the configuration":   func(name string) error { _, err := e.vault.Logical().Read(e.path + "/config/" + name); return err },
			"delete of the configuration": func(name string) error { _, err := e.vault.Logical().Delete(e.path + "/config/" + name); return err },
			"list of the configurations":  func(name string) error { _, err := e.vault.Logical().List(e.path + "/config/" + name); return err },
			"read of the token":           func(name string) error { _, err := e.readToken(name); return err },
			"list of the tokens":          func(name string) error { _, err := e.vault.Logical().List(e.path + "/token/" + name); return err },
		} {
			t.Run(fmt.Sprintf("%.12q/%s", name, what), func(t *testing.T) {
				refused(t, request(name), http.StatusBadRequest, words)
			})
		}
	}
	if keys := e.list(t, "config"); keys != nil {
		t.Errorf("something was stored: %v", keys)
	}
}

func TestNamesAtTheirLimitAreAccepted(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for _, name := range []string{
		"a", "0", "A", "a.b", "a..b", "a-b", "a_b", "a--b", "a._-b", "a/b/c", "a...b/c....d", "V1.2.3", "config", "token/a",
		strings.Repeat("a", 255), strings.Repeat("a/", 127) + "a",
	} {
		e.configure(t, name, e.account(wechatsim.Account{}))
		e.token(t, name)
		if e.config(t, name) == nil {
			t.Errorf("config/%s is not there", name)
		}
		is(t, e.statusOf(t, name), fields{"state": "healthy"})
		level, last := path.Split(name)
		if !slices.Contains(e.list(t, "config/"+level), last) {
			t.Errorf("config/%s is not listed", name)
		}
	}
	for _, name := range []string{"a..b", "a...b/c....d"} { // Vault's storage has no such keys
		_, err := e.vault.Logical().Delete(e.path + "/config/" + name)
		must(t, err)
		if e.config(t, name) != nil {
			t.Errorf("config/%s is still there", name)
		}
	}
	if e.config(t, "v1.2.3") != nil {
		t.Error("the case of a name is not kept")
	}
}

// Vault cleans such paths before it routes them; the plugin never sees them.
func TestUncleanPathsAreRedirected(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, name := range []string{"a//b", "a/../b", "a/./b"} {
		body, err := json.Marshal(with(e.account(wechatsim.Account{}), unverified))
		must(t, err)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, e.vault.Address()+"/v1/"+e.path+"/config/"+name, bytes.NewReader(body))
		must(t, err)
		request.Header.Set("X-Vault-Token", e.vault.Token())
		response, err := client.Do(request)
		must(t, err)
		response.Body.Close()
		if response.StatusCode != http.StatusTemporaryRedirect && response.StatusCode != http.StatusMovedPermanently {
			t.Errorf("%s: the status is %d, want a redirect", name, response.StatusCode)
		}
	}
	if keys := e.list(t, "config"); keys != nil {
		t.Errorf("something was stored: %v", keys)
	}
}

// A misused field, such as a secret in an object, must not bring its value into
// an error: that reaches the client, the server's log and the audit file. The
// end of the test looks for it there.
func TestBadFieldsAreRefusedAndChangeNothing(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account)
	config, token := e.config(t, "myapp"), e.token(t, "myapp")
	calls := len(e.Calls(""))

	elsewhere := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	hidden := e.hide(random())
	bad := map[string][]any{
		"appid":           {"", "wx 1", "wx\n", "wxé", strings.Repeat("w", 300), true, 1.5, []any{"wx1"}, fields{"v": hidden}, nil},
		"secret":          {"", hidden + "\n", " " + hidden, strings.Repeat(hidden, 20), true, []any{hidden}, fields{"v": hidden}, []any{fields{"v": hidden}}, nil},
		"base_url":        {"http://api.weixin.qq.com", "http://127.0.0.1.example.com", "http://10.0.0.1", "https://egress:" + hidden + "@api.weixin.qq.com", "https://api.weixin.qq.com?a=b", "https://api.weixin.qq.com?", "https://api.weixin.qq.com#a", "ftp://api.weixin.qq.com", "api.weixin.qq.com", "https://", "https:api.weixin.qq.com", "://", " https://api.weixin.qq.com", "https://api.weixin.qq.com:port", true, fields{"v": hidden}, []any{hidden}},
		"proxy_url":       {"ftp://egress:" + hidden + "@proxy.example.com", "proxy.example.com:3128", "http://", "egress:" + hidden + "@proxy.example.com", "http://egress:" + hidden + "@proxy.example.com:port", "http://proxy.example.com/path", "http://egress:" + hidden + "%zz@proxy.example.com", fields{"v": hidden}, []any{hidden}},
		"ca_pem":          {"not PEM", "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----", strings.Repeat("a", 70_000), fields{"v": hidden}, []any{hidden}},
		"request_timeout": {0, "0s", "500ms", "-500ms", 31, "31s", "25h", -5, "-5", "-5s", 1.5, "1.5", "1.5s", "1s500ms", "soon", "", " ", true, []any{5}, fields{"v": hidden}, nil},
		"sync_interval":   {1, "59s", "61500ms", "500ms", "-500ms", "25h", 86401, -60, "-60", 60.5, "1.5m1ms", "often", "", true, []any{60}, fields{"v": hidden}, nil},
		"max_ttl":         {1, "9s", "10500ms", "500ms", "-500ms", "25h", "2d", -10, "-10s", 10.5, "long", "", true, []any{10}, fields{"v": hidden}, nil},
		"verify":          {"perhaps", "2", "", nil, []any{true, false}, fields{"v": hidden}},
	}
	for field, values := range bad {
		for _, value := range values {
			// With the secret, because a route may not be changed without, and
			// unverified, so that nothing but the value is refused.
			for name, write := range map[string]fields{
				"myapp":  with(fields{"secret": account["secret"]}, unverified, fields{field: value}),
				"absent": with(account, unverified, fields{field: value}),
			} {
				t.Run(fmt.Sprintf("%s=%.30v/%s", field, value, name), func(t *testing.T) {
					_, err := e.write(name, write)
					refused(t, err, http.StatusBadRequest, field)
					if err != nil && strings.Contains(err.Error(), vaulttest.Telling(hidden)) {
						t.Error("the message holds the value")
					}
				})
			}
		}
	}
	for what, write := range map[string]fields{
		"base_url without the secret":  {"base_url": e.url + "/elsewhere", "verify": false},
		"proxy_url without the secret": {"proxy_url": "http://proxy.example.com:3128", "verify": false},
		"ca_pem without the secret":    {"ca_pem": inPEM(elsewhere), "verify": false},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := e.write("myapp", write)
			refused(t, err, http.StatusBadRequest, "secret")
		})
	}
	for _, missing := range []string{"appid", "secret"} {
		t.Run("a new account without "+missing, func(t *testing.T) {
			write := with(account, unverified)
			delete(write, missing)
			_, err := e.write("incomplete", write)
			refused(t, err, http.StatusBadRequest, missing, "required")
		})
	}

	e.absent(t, "absent")
	e.absent(t, "incomplete")
	sameFields(t, config, e.config(t, "myapp"))
	sameToken(t, token, e.token(t, "myapp"))
	if n := len(e.Calls("")); n != calls {
		t.Errorf("WeChat was called %d times", n-calls)
	}
}

// The end of the test looks for the secret in the server's files.
func TestSecretOnAWrongPathIsNotShown(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.configure(t, "myapp", e.account(wechatsim.Account{}))
	secret := e.hide(random())
	for path, status := range map[string]int{
		"config":      http.StatusBadRequest,
		"token":       http.StatusMethodNotAllowed,
		"token/myapp": http.StatusMethodNotAllowed,
		"confg/myapp": http.StatusNotFound,
		"":            http.StatusNotFound,
	} {
		for what, value := range map[string]any{"string": secret, "object": fields{"v": secret}, "list": []any{secret}} {
			t.Run(path+"/"+what, func(t *testing.T) {
				_, err := e.vault.Logical().Write(e.path+"/"+path, fields{"appid": value, "secret": value})
				refused(t, err, status)
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Error("the message holds the value")
				}
			})
		}
	}
}
