//go:build e2e

package e2e

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// post writes to a path of the mount.
func (e *engine) post(path string, data fields) (*api.Secret, error) {
	return e.vault.Logical().Write(e.path+"/"+path, data)
}

// mint gives a user's code, which must not be found in the server's files.
func (e *engine) mint(account fields, c wechatsim.Code) wechatsim.Code {
	code := e.Mint(account["appid"].(string), c)
	e.hide(code.Code)
	e.hide(code.OpenID)
	return code
}

func TestUsersLogInWithoutTheAppSecret(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{Bound: true})
	e.configure(t, "myapp", account)

	t.Run("in a mini program", func(t *testing.T) {
		code := e.mint(account, wechatsim.Code{})
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				got, err := e.post("code2session/myapp", fields{"js_code": code.Code})
				if err != nil {
					t.Error(err)
					return
				}
				if got.LeaseID != "" || len(got.Data) != 2 || got.Data["openid"] != code.OpenID || got.Data["unionid"] != code.UnionID {
					t.Errorf("got %v, want openid %s and unionid %s without a lease", got, code.OpenID, code.UnionID)
				}
			})
		}
		all.Wait()
		if n := len(e.CallsOf(wechatsim.APICode2Session, "")); n != 1 {
			t.Errorf("one code cost %d calls", n)
		}
		got, err := e.post("code2session/myapp", fields{"js_code": code.Code, "include_session_key": true})
		must(t, err)
		key, _ := got.Data["session_key"].(string)
		if e.hide(key); len(key) != 24 {
			t.Errorf("the session key has %d characters", len(key))
		}
	})
	t.Run("on a web site", func(t *testing.T) {
		code := e.mint(account, wechatsim.Code{API: wechatsim.APIOAuth2})
		got, err := e.post("oauth2/myapp", fields{"code": code.Code})
		must(t, err)
		if got.Data["openid"] != code.OpenID || got.Data["unionid"] != nil || got.Data["scope"] != "snsapi_base" || got.Data["expires_in"] != number(7200) {
			t.Errorf("got %v", got.Data)
		}
		for _, field := range []string{"access_token", "refresh_token"} {
			if token, _ := got.Data[field].(string); e.hide(token) == "" {
				t.Errorf("there is no %s", field)
			}
		}
	})
	t.Run("or not", func(t *testing.T) {
		for path, data := range map[string]fields{
			"code2session/myapp": {"js_code": e.hide(random())},
			"oauth2/myapp":       {"code": e.hide(random())},
		} {
			_, err := e.post(path, data)
			refused(t, err, http.StatusBadRequest, "myapp", "errcode 40029", "what to do")
		}
		_, err := e.post("code2session/absent", fields{"js_code": e.hide(random())})
		refused(t, err, http.StatusBadRequest, "no account", e.path+"/config/absent")
		_, err = e.post("code2session/myapp", nil)
		refused(t, err, http.StatusBadRequest, "js_code is missing")
	})
	t.Run("at a relay that shows what it is sent", func(t *testing.T) {
		for _, status := range []int{http.StatusOK, http.StatusForbidden, http.StatusBadGateway} {
			relay := httptest.NewServer(wechatsim.Echo(status))
			t.Cleanup(relay.Close)
			echoed := e.account(wechatsim.Account{})
			e.configure(t, "echoed", echoed, fields{"base_url": relay.URL}, unverified)
			for path, field := range map[string]string{"code2session/echoed": "js_code", "oauth2/echoed": "code", "clear-quota/echoed": ""} {
				code := e.hide(random())
				data := fields{}
				if field != "" {
					data[field] = code
				}
				_, err := e.post(path, data)
				if err == nil {
					t.Errorf("%s, HTTP %d: no error", path, status)
					continue
				}
				for _, secret := range []string{code, echoed["secret"].(string)} {
					if strings.Contains(err.Error(), secret[:12]) || strings.Contains(err.Error(), secret[12:24]) {
						t.Errorf("%s, HTTP %d: the error shows a secret", path, status)
					}
				}
			}
		}
	})
}

func TestTheQuotaIsClearedOnce(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account)
	if answer, err := e.post("clear-quota/myapp", nil); err != nil || answer != nil {
		t.Errorf("got %v, %v", answer, err)
	}
	for range 2 {
		answer, err := e.post("clear-quota/myapp", nil)
		must(t, err)
		if len(answer.Warnings) != 1 || !strings.Contains(answer.Warnings[0], "WeChat was not asked again") {
			t.Errorf("warnings: %q", answer.Warnings)
		}
	}
	if n := len(e.CallsOf(wechatsim.APIClearQuota, "")); n != 1 {
		t.Errorf("WeChat was asked %d times", n)
	}
}

// There are ways to WeChat on which a large ClientHello gets lost, and what the error
// advises about it helps.
func TestAWayThatSwallowsLargeHandshakes(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	platform := httptest.NewTLSServer(e.recorder(e.Sim))
	t.Cleanup(platform.Close)
	relay, err := wechatsim.StartRelay(platform.Listener.Addr().String())
	must(t, err)
	t.Cleanup(relay.Close)
	account := with(e.account(wechatsim.Account{}), fields{
		"base_url": "https://" + relay.Addr(), "ca_pem": inPEM(platform), "request_timeout": 2,
	})
	_, err = e.write("myapp", account)
	refused(t, err, http.StatusBadGateway, "the TLS handshake got no answer within 2s", "GODEBUG=tlsmlkem=0")

	other := &engine{Sim: e.Sim, vault: e.vault, path: e.path + "-small", url: e.url}
	const small = pluginName + "-small"
	must(t, e.vault.Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name: small, Type: api.PluginTypeSecrets, Command: subject.plugin.Command(), SHA256: subject.plugin.SHA256,
		Version: subject.plugin.Version, Env: []string{"GODEBUG=tlsmlkem=0"},
	}))
	must(t, e.vault.Sys().Mount(other.path, &api.MountInput{Type: small}))
	other.unmountAtEnd(t)
	other.configure(t, "myapp", account)
	other.token(t, "myapp")
}
