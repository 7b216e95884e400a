//go:build e2e

package e2e

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestConfigReadsBackEveryFieldButTheSecret(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	began := time.Now().Truncate(time.Second)
	password := e.hide(random())
	e.configure(t, "defaults", unverified, fields{"appid": "wx0123456789abcdef", "secret": e.hide(random())})
	e.configure(t, "all", unverified, fields{
		"appid": "wxfedcba9876543210", "secret": e.hide(random()),
		"base_url":        "https://api2.weixin.qq.com/",
		"proxy_url":       "http://egress:" + password + "@proxy.example.com:3128",
		"request_timeout": "30s", "sync_interval": 60, "max_ttl": "24h",
	})
	for name, want := range map[string]fields{
		"defaults": {
			"appid": "wx0123456789abcdef", "base_url": "https://api.weixin.qq.com", "proxy_url": "", "ca_pem": "",
			"request_timeout": json.Number("5"), "sync_interval": json.Number("300"), "max_ttl": json.Number("240"),
		},
		"all": {
			"appid": "wxfedcba9876543210", "base_url": "https://api2.weixin.qq.com/", "proxy_url": "http://proxy.example.com:3128", "ca_pem": "",
			"request_timeout": json.Number("30"), "sync_interval": json.Number("60"), "max_ttl": json.Number("86400"),
		},
	} {
		got := e.config(t, name)
		if set := timeOf(t, got, "secret_set_time"); set.Before(began) || set.After(time.Now()) {
			t.Errorf("secret_set_time is %s, want the time of the write, %s", set, began)
		}
		delete(got, "secret_set_time")
		if !reflect.DeepEqual(got, want) {
			t.Errorf("config/%s is\n%v, want\n%v", name, got, want)
		}
	}
}

func TestUnknownConfigIsNotFound(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	response, err := e.vault.Logical().ReadRaw(e.path + "/config/absent")
	if response == nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("the status is %d, want 404", response.StatusCode)
	}
}

func TestWriteChangesOnlyTheFieldsThatItNames(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, fields{"request_timeout": 7, "sync_interval": "10m", "max_ttl": "1m"})
	config, token := e.config(t, "myapp"), e.token(t, "myapp")
	calls := e.calls(account)
	for field, value := range map[string]string{"request_timeout": "8", "sync_interval": "0", "max_ttl": "30"} {
		e.configure(t, "myapp", fields{field: value})
		config[field] = json.Number(value)
		sameFields(t, config, e.config(t, "myapp"))
	}
	if n := e.calls(account); n != calls {
		t.Errorf("writes that name no credential cost %d calls", n-calls)
	}
	sameToken(t, token, e.token(t, "myapp"))
	if got := ttl(t, e.token(t, "myapp")); got != 30 {
		t.Errorf("ttl is %d, want that of the new max_ttl, 30", got)
	}
}

func TestNewSecretKeepsTheToken(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account)
	token := e.token(t, "myapp")
	secret := e.hide(random())
	e.Update(account["appid"].(string), func(a *wechatsim.Account) { a.Secret = secret })
	e.configure(t, "myapp", fields{"secret": secret})
	sameToken(t, token, e.token(t, "myapp"))
}

// The token that is cached when an account becomes another one is not the new
// one's.
func TestTokenOfAnotherAccountIsNeverServed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(e *engine, next fields) fields
		verify bool
	}{
		"appid":            {func(_ *engine, next fields) fields { return next }, true},
		"appid unverified": {func(_ *engine, next fields) fields { return next }, false},
		"base_url unverified": {func(e *engine, _ fields) fields {
			return fields{"base_url": e.url + "/elsewhere"}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			first, second := e.account(wechatsim.Account{}), e.account(wechatsim.Account{})
			e.configure(t, "myapp", first)
			old := e.token(t, "myapp")
			e.configure(t, "myapp", with(first, test.change(e, second), fields{"verify": test.verify}))
			if !test.verify {
				e.Inject(wechatsim.Fault{Kind: "status", Status: 503})
				_, err := e.readToken("myapp")
				refused(t, err, http.StatusBadGateway)
				return
			}
			calls := e.calls(second)
			changed := e.token(t, "myapp")
			otherToken(t, old, changed)
			if changed.Data["appid"] != second["appid"] || accessToken(changed) != e.current(second) {
				t.Error("the token is not that of the new appid")
			}
			if n := e.calls(second); n != calls {
				t.Error("the first read after a verified write cost a call")
			}
		})
	}
}

func TestListsShowOneLevel(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	if keys := e.list(t, "config"); keys != nil {
		t.Errorf("a new mount lists %v", keys)
	}
	for _, name := range []string{"myapp", "team-a/shop", "team-a/blog", "team-a/eu/shop", "Team-A", "team-a"} {
		e.configure(t, name, e.account(wechatsim.Account{}), unverified)
	}
	for level, want := range map[string][]string{
		"":          {"Team-A", "myapp", "team-a", "team-a/"},
		"team-a":    {"blog", "eu/", "shop"},
		"team-a/eu": {"shop"},
		"myapp":     nil,
		"absent":    nil,
	} {
		for _, area := range []string{"config/", "token/"} {
			if got := e.list(t, area+level); !slices.Equal(got, want) {
				t.Errorf("LIST %s%s gives %v, want %v", area, level, got, want)
			}
		}
	}
	e.token(t, "team-a/eu/shop")
	e.token(t, "team-a")
}

// login returns a client that may do only what the policy says.
func (e *engine) login(t *testing.T, policy string) *api.Client {
	t.Helper()
	must(t, e.vault.Sys().PutPolicy(e.path, policy))
	login, err := e.vault.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{e.path}})
	must(t, err)
	client, err := e.vault.Clone()
	must(t, err)
	client.SetToken(e.hide(login.Auth.ClientToken))
	return client
}

// Who may list the first level learns of no other: policies look at the path,
// so nothing but the path may name a level.
func TestListTakesItsLevelFromThePathOnly(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.configure(t, "team-a/shop", e.account(wechatsim.Account{}), unverified)
	client := e.login(t, `
		path "`+e.path+`/config/" { capabilities = ["list"] }
		path "`+e.path+`/token/" { capabilities = ["list"] }`)
	for _, area := range []string{"config", "token"} {
		_, err := client.Logical().List(e.path + "/" + area + "/team-a")
		refused(t, err, http.StatusForbidden)
		for _, query := range []map[string][]string{
			{"list": {"true"}},
			{"list": {"true"}, "name": {"team-a"}},
			{"list": {"true"}, "name": {"team-a/"}},
		} {
			answer, err := client.Logical().ReadWithData(e.path+"/"+area, query)
			must(t, err)
			if answer == nil || !reflect.DeepEqual(answer.Data["keys"], []any{"team-a/"}) {
				t.Errorf("LIST %s with %v gives %+v, want the mount's first level", area, query, answer)
			}
		}
	}
}

func TestTeamPolicyIsAGlob(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for _, name := range []string{"team-a/shop", "team-b/shop"} {
		e.configure(t, name, e.account(wechatsim.Account{}))
	}
	team := e.login(t, `path "`+e.path+`/token/team-a/*" { capabilities = ["read"] }`)
	if answer, err := team.Logical().Read(e.path + "/token/team-a/shop"); err != nil || accessToken(answer) == "" {
		t.Errorf("the team cannot read its token: %v", err)
	}
	for _, path := range []string{"/token/team-b/shop", "/config/team-a/shop"} {
		_, err := team.Logical().Read(e.path + path)
		refused(t, err, http.StatusForbidden)
	}
}

func TestDeleteLeavesNothing(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	short := wechatsim.Account{Lifetime: 8 * time.Second, Overlap: 6 * time.Second}
	account, control := e.account(short), e.account(short)
	e.configure(t, "team-a/shop", account)
	e.configure(t, "control", control)
	old := e.token(t, "team-a/shop")
	for range 2 { // the second one is of what is not there
		_, err := e.vault.Logical().Delete(e.path + "/config/team-a/shop")
		must(t, err)
		e.absent(t, "team-a/shop")
		if keys := e.list(t, "config"); !slices.Equal(keys, []string{"control"}) {
			t.Errorf("the mount lists %v", keys)
		}
	}

	// Both accounts' tokens come due in the same rhythm.
	deleted, before := e.calls(account), e.calls(control)
	eventually(t, patience, "the background works", func() bool { return e.calls(control) >= before+2 })
	if n := e.calls(account); n != deleted {
		t.Errorf("WeChat was called %d times for the deleted account", n-deleted)
	}

	e.configure(t, "team-a/shop", account, unverified)
	otherToken(t, old, e.token(t, "team-a/shop"))
}

func TestSharedAppIDIsWarnedOf(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account)
	e.configure(t, "unrelated", e.account(wechatsim.Account{}))
	for _, test := range []struct{ name, whom string }{
		{"twin", "appid: myapp. "},
		{"team-a/shop", "appid: 2 at other levels. "}, // whose names are not for team-a
		{"team-a/twin", "appid: team-a/shop, and 2 at other levels. "},
	} {
		answer, err := e.write(test.name, account)
		must(t, err)
		if answer == nil || len(answer.Warnings) != 1 || !strings.Contains(answer.Warnings[0], test.whom) {
			t.Errorf("writing %s is answered %+v, want one warning, of %q", test.name, answer, test.whom)
		}
	}
	if accessToken(e.token(t, "myapp")) != accessToken(e.token(t, "team-a/twin")) {
		t.Error("two accounts with the same appid have different tokens")
	}
	beside := e.beside(t)
	beside.configure(t, "myapp", account) // warns of its own mount's accounts only
}

func TestMountsAreSeparate(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	other := e.beside(t)
	short := wechatsim.Account{Lifetime: 8 * time.Second, Overlap: 6 * time.Second}
	here, there := e.account(short), e.account(short)
	e.configure(t, "myapp", here)
	other.configure(t, "myapp", there)
	if accessToken(e.token(t, "myapp")) == accessToken(other.token(t, "myapp")) {
		t.Error("two mounts have the same token for different accounts")
	}
	_, err := e.vault.Logical().Delete(e.path + "/config/myapp")
	must(t, err)
	e.absent(t, "myapp")
	other.token(t, "myapp")
}

func TestUnmountEndsTheCalls(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	other := e.beside(t)
	short := wechatsim.Account{Lifetime: 8 * time.Second, Overlap: 6 * time.Second}
	here, there := e.account(short), e.account(short)
	e.configure(t, "myapp", here)
	other.configure(t, "myapp", there)
	must(t, e.vault.Sys().Unmount(e.path))
	unmounted, before := e.calls(here), e.calls(there)
	eventually(t, patience, "the other mount's tokens are refreshed", func() bool { return e.calls(there) >= before+2 })
	if n := e.calls(here); n != unmounted {
		t.Errorf("WeChat was called %d times for the unmounted account", n-unmounted)
	}
	other.token(t, "myapp")
}

// inPEM returns the certificate of a server.
func inPEM(server *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
}

func TestOwnRootsAreTrusted(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	platform := httptest.NewUnstartedServer(e.recorder(e.Sim))
	platform.Config.ErrorLog = log.New(io.Discard, "", 0) // it would tell of the handshake that is refused
	platform.StartTLS()
	t.Cleanup(platform.Close)
	roots := inPEM(platform)
	account := with(e.account(wechatsim.Account{}), fields{"base_url": platform.URL})
	_, err := e.write("myapp", account)
	refused(t, err, http.StatusBadGateway, "certificate", "ca_pem", "verify=false")
	e.configure(t, "myapp", account, fields{"ca_pem": roots})
	e.token(t, "myapp")
	if got := e.config(t, "myapp")["ca_pem"]; got != roots {
		t.Errorf("ca_pem reads back as %q", got)
	}
}

func TestProxyIsUsedAndItsPasswordHidden(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	password := e.hide(random())
	platform := httptest.NewTLSServer(e.recorder(e.Sim))
	t.Cleanup(platform.Close)
	var passed, refusals atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.SetBasicAuth("egress", password)
		if r.Header.Get("Proxy-Authorization") != r.Header.Get("Authorization") {
			refusals.Add(1)
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		upstream, err := net.Dial("tcp", platform.Listener.Addr().String())
		if err != nil || r.Method != http.MethodConnect || "https://"+r.Host != platform.URL {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer upstream.Close()
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		passed.Add(1)
		_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() { _, _ = io.Copy(upstream, conn) }()
		_, _ = io.Copy(conn, upstream)
	}))
	t.Cleanup(proxy.Close)
	through := func(address, password string) fields {
		u, err := url.Parse(address)
		must(t, err)
		u.User = url.UserPassword("egress", password)
		return fields{"proxy_url": u.String()}
	}

	account := with(e.account(wechatsim.Account{}), fields{"base_url": platform.URL, "ca_pem": inPEM(platform)})
	e.configure(t, "myapp", account, through(proxy.URL, password))
	token := e.token(t, "myapp")
	if passed.Load() == 0 {
		t.Error("nothing went through the proxy")
	}
	if got := e.config(t, "myapp")["proxy_url"]; got != proxy.URL {
		t.Errorf("proxy_url reads back as %v, want it without user and password, %s", got, proxy.URL)
	}

	wrong := e.hide(random())
	for what, bad := range map[string]fields{
		"a wrong password":         through(proxy.URL, wrong),
		"no listener at that port": through(unreachable(t), wrong),
	} {
		_, err := e.write("myapp", account, bad)
		if err == nil {
			t.Errorf("%s: the write was accepted", what)
			continue
		}
		refused(t, err, http.StatusBadGateway, "verify=false")
		for _, hidden := range []string{wrong, password, account["secret"].(string)} {
			if strings.Contains(err.Error(), hidden) {
				t.Errorf("%s: the message holds a secret or a password: %v", what, err)
			}
		}
	}
	if refusals.Load() == 0 {
		t.Error("the wrong password was never tried")
	}
	sameToken(t, token, e.token(t, "myapp"))
	if _, err := e.write("myapp", fields{"proxy_url": ""}); err == nil {
		t.Error("the proxy was taken away without the secret")
	}
}
