package wechat

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// config reads a configuration.
func (m *mount) config(name string) map[string]any {
	m.t.Helper()
	resp := m.ok(logical.ReadOperation, "config/"+name, nil)
	require.NotNil(m.t, resp, name)
	require.NotContains(m.t, shown(m.t, resp, nil), testSecret)
	require.Empty(m.t, resp.Warnings)
	return resp.Data
}

// update writes a configuration.
func (m *mount) update(name string, data map[string]any) *logical.Response {
	m.t.Helper()
	return m.ok(logical.UpdateOperation, "config/"+name, data)
}

// served reads a token that has to come from the cache.
func (m *mount) served(name string) map[string]any {
	m.t.Helper()
	var data map[string]any
	m.changesNothing(0, func() { data = m.read(name) })
	return data
}

func TestDefaults(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		require.Nil(t, m.update("demo", map[string]any{"appid": testAppID, "secret": testSecret, "verify": false}))
		require.Equal(t, map[string]any{
			"appid":           testAppID,
			"secret_set_time": time.Now().UTC().Format(time.RFC3339),
			"base_url":        "https://api.weixin.qq.com",
			"proxy_url":       "",
			"ca_pem":          "",
			"request_timeout": int64(5),
			"sync_interval":   int64(300),
			"max_ttl":         int64(240),
		}, m.config("demo"))
	})
}

func TestANewAccountNeedsAppIDAndSecret(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for missing, data := range map[string]map[string]any{
			"appid":  {"secret": testSecret},
			"secret": {"appid": testAppID, "base_url": testURL},
		} {
			for _, verify := range []bool{true, false} {
				data["verify"] = verify
				m.changesNothing(0, func() {
					status, text := m.refused(logical.UpdateOperation, "config/demo", data)
					require.Equal(t, http.StatusBadRequest, status)
					require.Contains(t, text, missing+" is required")
				})
			}
		}
		m.changesNothing(0, func() {
			status, _ := m.refused(logical.UpdateOperation, "config/demo", nil)
			require.Equal(t, http.StatusBadRequest, status)
		})
	})
}

func TestAWriteChangesTheFieldsThatItNames(t *testing.T) {
	cert, _ := certificate(t)
	initial := account1(map[string]any{
		"ca_pem": cert, "request_timeout": 7, "sync_interval": 120, "max_ttl": 60,
	})
	for field, c := range map[string]struct {
		with any
		want any // read back; nil is the same as was written
	}{
		"appid":           {otherAppID, nil},
		"secret":          {testSecret, nil},
		"base_url":        {"http://localhost:80", nil},
		"proxy_url":       {"", nil},
		"ca_pem":          {"", nil},
		"request_timeout": {"30s", int64(30)},
		"sync_interval":   {0, int64(0)},
		"max_ttl":         {"2h", int64(7200)},
		"verify":          {false, nil},
	} {
		t.Run(field, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.update("demo", initial)
				want := m.config("demo")
				time.Sleep(time.Minute)
				data := map[string]any{field: c.with}
				if field == "base_url" || field == "proxy_url" || field == "ca_pem" {
					data["secret"] = testSecret
				}
				m.update("demo", data)
				if _, stored := want[field]; stored {
					want[field] = c.with
				}
				if c.want != nil {
					want[field] = c.want
				}
				if data["secret"] != nil {
					want["secret_set_time"] = time.Now().UTC().Format(time.RFC3339)
				}
				require.Equal(t, want, m.config("demo"))
				m.reopen()
				require.Equal(t, want, m.config("demo"))
				m.read("demo")
			})
		})
	}
}

func TestTheSecretsTimeChangesOnlyWithTheSecret(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
		m.update("demo", account1(nil))
		set := m.config("demo")["secret_set_time"]
		at, err := time.Parse(time.RFC3339, set.(string))
		require.NoError(t, err)
		require.Equal(t, time.UTC, at.Location())
		require.WithinDuration(t, time.Now(), at, time.Second)
		for _, data := range []map[string]any{
			{"appid": otherAppID},
			{"max_ttl": 60},
			{"sync_interval": 0},
			{"request_timeout": 9},
			{"verify": true},
			{"verify": false},
		} {
			time.Sleep(time.Minute)
			m.update("demo", data)
			require.Equal(t, set, m.config("demo")["secret_set_time"], "%v", data)
		}
		_, _ = m.refused(logical.UpdateOperation, "config/demo", map[string]any{"secret": "wrong"})
		require.Equal(t, set, m.config("demo")["secret_set_time"], "a refused secret is not set")
		m.update("demo", map[string]any{"secret": testSecret})
		require.NotEqual(t, set, m.config("demo")["secret_set_time"])
	})
}

func TestWritesThatNameCredentialsOrTheWayTryThem(t *testing.T) {
	cert, _ := certificate(t)
	for _, c := range []struct {
		data  map[string]any
		calls int
	}{
		{map[string]any{"verify": true}, 1},
		{map[string]any{"verify": false}, 0},
		{map[string]any{"max_ttl": 60}, 0},
		{map[string]any{"sync_interval": "2m", "request_timeout": "9s", "verify": true}, 1},
		{map[string]any{"appid": testAppID}, 1},
		{map[string]any{"secret": testSecret}, 1},
		{map[string]any{"base_url": testURL, "secret": testSecret}, 1},
		{map[string]any{"proxy_url": "", "secret": testSecret}, 1},
		{map[string]any{"ca_pem": "", "secret": testSecret}, 1},
		{map[string]any{"ca_pem": cert, "secret": testSecret, "max_ttl": 30}, 1},
		{account1(nil), 1},
		{account1(map[string]any{"verify": "true"}), 1},
		{account1(map[string]any{"verify": json.Number("1")}), 1},
		{account1(map[string]any{"verify": false}), 0},
		{account1(map[string]any{"verify": "false"}), 0},
		{account1(map[string]any{"verify": "0"}), 0},
		{map[string]any{"appid": testAppID, "verify": false}, 0},
	} {
		t.Run(fmt.Sprint(c.data), func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				before := m.calls()
				m.update("demo", c.data)
				require.Equal(t, before+c.calls, m.calls())
				for _, call := range m.sim.Calls("") {
					require.False(t, call.Forced)
				}
			})
		})
	}
}

func TestACallToTryTheCredentialsGoesTheNewWay(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false, "base_url": "https://192.0.2.1", "request_timeout": "1s"})
		m.update("demo", account1(nil)) // back to where the simulator is
		m.sim.Inject(wechatsim.Fault{Kind: "hang"})
		start := time.Now()
		m.refused(logical.UpdateOperation, "config/demo", account1(map[string]any{"request_timeout": "7s"}))
		require.Equal(t, 7*time.Second, time.Since(start), "the request_timeout of this write")
	})
}

// refusals are the ways in which WeChat does not give a token to who tries the
// credentials.
var refusals = map[string]struct {
	fault    *wechatsim.Fault
	settings func(*wechatsim.Account)
	data     map[string]any // besides the right ones
	status   int
	says     []string
}{
	"wrong secret":         {data: map[string]any{"secret": "wrong"}, status: 400, says: []string{"errcode 40125", "the secret is not valid", "write the account's current AppSecret"}},
	"wrong appid":          {data: map[string]any{"appid": "wxnobody"}, status: 400, says: []string{"errcode 40013", "the appid is not valid", "write the right appid"}},
	"IP not admitted":      {settings: func(a *wechatsim.Account) { a.AllowedIPs = []string{"192.0.2.1"} }, status: 400, says: []string{"errcode 40164", "caller's IP 127.0.0.1", "whitelist"}},
	"IP, other kind":       {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 61004}, status: 400, says: []string{"errcode 61004", "whitelist"}},
	"IP, third kind":       {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 45035}, status: 400, says: []string{"errcode 45035", "whitelist"}},
	"secret as of old":     {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 40001}, status: 400, says: []string{"errcode 40001", "AppSecret"}},
	"frozen secret":        {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 40243}, status: 400, says: []string{"errcode 40243", "unfreeze"}},
	"to be confirmed":      {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 89501}, status: 400, says: []string{"errcode 89501", "confirm", "127.0.0.1"}},
	"to be confirmed, too": {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 89503}, status: 400, says: []string{"errcode 89503", "confirm"}},
	"refused twice":        {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 89506}, status: 400, says: []string{"errcode 89506", "24 h"}},
	"refused once":         {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 89507}, status: 400, says: []string{"errcode 89507", "hour"}},
	"API forbidden":        {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 48004}, status: 400, says: []string{"errcode 48004", "console"}},
	"account limited":      {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 50002}, status: 400, says: []string{"errcode 50002", "console"}},
	"account punished":     {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 50004}, status: 400, says: []string{"errcode 50004", "console"}},
	"quota of the day":     {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 45009}, status: 429, says: []string{"errcode 45009", "next day"}},
	"quota of the minute":  {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 45011}, status: 429, says: []string{"errcode 45011", "minute"}},
	"busy":                 {fault: &wechatsim.Fault{Kind: "errcode", Errcode: -1}, status: 502, says: []string{"errcode -1", "busy"}},
	"undocumented errcode": {fault: &wechatsim.Fault{Kind: "errcode", Errcode: 99999}, status: 502, says: []string{"errcode 99999", "not documented"}},
	"server error":         {fault: &wechatsim.Fault{Kind: "status", Status: 503}, status: 502, says: []string{"WeChat answered with a server error"}},
	"not found":            {fault: &wechatsim.Fault{Kind: "status", Status: 404}, status: 502, says: []string{"not the documented one"}},
	"redirect":             {fault: &wechatsim.Fault{Kind: "redirect"}, status: 502, says: []string{"not the documented one"}},
	"no answer":            {fault: &wechatsim.Fault{Kind: "hang"}, status: 502, says: []string{"no answer within 5s"}},
	"reset":                {fault: &wechatsim.Fault{Kind: "reset"}, status: 502, says: []string{"cannot be reached"}},
	"not JSON":             {fault: &wechatsim.Fault{Kind: "notjson"}, status: 502, says: []string{"not the documented one"}},
	"no token":             {fault: &wechatsim.Fault{Kind: "notoken"}, status: 502, says: []string{"not the documented one"}},
	"cut off":              {fault: &wechatsim.Fault{Kind: "truncate"}, status: 502, says: []string{"cannot be reached"}},
	"lost":                 {fault: &wechatsim.Fault{Kind: "lost"}, status: 502, says: []string{"cannot be reached"}},
	"oversize":             {fault: &wechatsim.Fault{Kind: "oversize"}, status: 502, says: []string{"not the documented one"}},
	"no life":              {fault: &wechatsim.Fault{Kind: "expires_in", ExpiresIn: "0"}, status: 502, says: []string{"not the documented one"}},
	"negative life":        {fault: &wechatsim.Fault{Kind: "expires_in", ExpiresIn: "-1"}, status: 502, says: []string{"not the documented one"}},
	"life as a text":       {fault: &wechatsim.Fault{Kind: "expires_in", ExpiresIn: `"soon"`}, status: 502, says: []string{"not the documented one"}},
	"life without a value": {fault: &wechatsim.Fault{Kind: "expires_in"}, status: 502, says: []string{"not the documented one"}},
}

func TestARefusedWriteStoresAndChangesNothing(t *testing.T) {
	for name, c := range refusals {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				time.Sleep(time.Minute)
				config, token := m.config("demo"), m.served("demo")
				if c.settings != nil {
					m.sim.Update(testAppID, c.settings)
				}
				if c.fault != nil {
					m.sim.Inject(*c.fault)
				}
				data := account1(map[string]any{"max_ttl": 60, "request_timeout": 5})
				maps.Copy(data, c.data)
				for account, says := range map[string]string{
					"demo": `account "demo" was not changed, and keeps the settings and the token that it had: `,
					"new":  `account "new" was not stored: `,
				} {
					m.changesNothing(1, func() {
						status, text := m.refused(logical.UpdateOperation, "config/"+account, data)
						require.Equal(t, c.status, status, text)
						require.True(t, strings.HasPrefix(text, says), text)
						require.Contains(t, text, "what to do:")
						for _, words := range c.says {
							require.Contains(t, text, words)
						}
						if strings.Contains(text, "errcode") {
							require.Contains(t, text, "rid ")
						}
						mayBeGood := c.status == http.StatusBadGateway || name == "quota of the day"
						require.Equal(t, mayBeGood, strings.Contains(text, "verify=false to store this"), text)
						require.NotContains(t, text, upstream.TriesAgain, "a write is not repeated")
						require.NotContains(t, text, token["access_token"])
					})
				}
				require.Nil(t, m.ok(logical.ReadOperation, "config/new", nil))
				require.Equal(t, []string{"demo"}, m.keys("config/"))

				// The account that was there goes on as if nothing had happened.
				m.sim.ClearFaults()
				require.Equal(t, config, m.config("demo"))
				again := m.served("demo")
				delete(token, "ttl")
				delete(again, "ttl")
				require.Equal(t, token, again)
				require.Equal(t, token["access_token"], m.sim.Current(testAppID), "at WeChat, too")
			})
		})
	}
}

func TestAStoredAccountThatIsTriedInVainIsToldToBeAsItWas(t *testing.T) {
	for name, c := range refusals {
		if c.fault == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.sim.Inject(*c.fault)
				m.changesNothing(1, func() {
					status, text := m.refused(logical.UpdateOperation, "config/demo", map[string]any{"verify": true})
					require.Equal(t, c.status, status, text)
					require.True(t, strings.HasPrefix(text, `the credentials of account "demo" could not be confirmed, and nothing was changed: `), text)
					require.NotContains(t, text, "verify=false", "there is nothing to store")
				})
			})
		})
	}
}

// The writer may want to know what listens in Vault's network.
func TestWhatWasNotWeChatIsInTheServerLogOnly(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusTeapot})
		_, told := m.refused(logical.UpdateOperation, "config/demo", account1(nil))
		m.ok(logical.UpdateOperation, "config/demo", account1(map[string]any{"verify": false}))
		_, read := m.refused(logical.ReadOperation, "token/demo", nil)
		_, forced := m.refused(logical.UpdateOperation, "rotate/demo", nil)
		for _, text := range []string{told, read, forced, fmt.Sprint(m.statusOf("demo"))} {
			require.Contains(t, text, upstream.RuleAnswer.Meaning)
			require.NotContains(t, text, "418")
		}
		require.Equal(t, 3, strings.Count(m.logs.String(), "HTTP 418"), m.logs.String())
	})
}

func TestARefusedWriteLeavesRememberedFailures(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 89507, Times: 1})
		_, remembered := m.refused(logical.ReadOperation, "token/demo", nil)
		for _, data := range []map[string]any{{"secret": "wrong"}, {"appid": "wxnobody"}} {
			m.changesNothing(1, func() { m.refused(logical.UpdateOperation, "config/demo", data) })
			m.changesNothing(0, func() {
				_, text := m.refused(logical.ReadOperation, "token/demo", nil)
				fresh, _, _ := fromMemory(t, text)
				require.Equal(t, remembered, fresh)
			})
		}
		m.update("demo", map[string]any{"max_ttl": 60})
		m.read("demo") // an accepted write, whatever it names, clears them
	})
}

func TestAnAcceptedWriteBringsTheToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		require.Equal(t, []string{"config/demo", m.tokenKey("demo")}, m.stored())
		token := m.served("demo")
		require.Equal(t, m.sim.Current(testAppID), token["access_token"])
		m.reopen()
		require.Equal(t, token, m.read("demo"), "it is in storage, not only in memory")
		require.Equal(t, 1, m.calls())
	})
}

func TestWithoutVerifyTheFirstReadCalls(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.Inject(wechatsim.Fault{Kind: "reset"}) // which is why
		m.write("demo", map[string]any{"verify": false})
		require.Equal(t, []string{"config/demo"}, m.stored())
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Zero(t, m.calls())
		m.sim.ClearFaults()
		m.read("demo")
		require.Equal(t, 1, m.calls())
		m.served("demo")
	})
}

func TestANewSecretKeepsTheToken(t *testing.T) {
	const next = "a-new-secret-0123456789"
	for name, verify := range map[string]bool{"verified": true, "not verified": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				before := m.served("demo")
				stored := m.snapshot()[historyKey(account1Config())]
				time.Sleep(10 * time.Minute)
				m.sim.Update(testAppID, func(a *wechatsim.Account) { a.Secret = next })
				calls := m.calls()
				m.update("demo", map[string]any{"secret": next, "verify": verify})
				require.Equal(t, verify, m.calls() == calls+1)

				after := m.served("demo")
				require.Equal(t, before, after)
				now := m.snapshot()[historyKey(account1Config())]
				require.Equal(t, !verify, stored == now, "which credentials WeChat has accepted is stored, and nothing else changes")
				var was, is record
				require.NoError(t, json.Unmarshal([]byte(stored), &was))
				require.NoError(t, json.Unmarshal([]byte(now), &is))
				was.Names = is.Names
				require.Equal(t, was, is)
				time.Sleep(rotationPeriod)
				require.NotEqual(t, before["access_token"], m.read("demo")["access_token"], "the next one comes with the new secret")
				require.NotContains(t, m.logs.String(), next)
			})
		})
	}
}

func TestAnotherAppIDOrBaseURLEndsTheOldTokenAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		there, back map[string]any
	}{
		"appid":                {map[string]any{"appid": otherAppID}, map[string]any{"appid": testAppID}},
		"base_url":             {map[string]any{"base_url": "http://localhost", "secret": testSecret}, map[string]any{"base_url": testURL, "secret": testSecret}},
		"appid and base_url":   {map[string]any{"appid": otherAppID, "base_url": "http://localhost", "secret": testSecret}, account1(nil)},
		"appid and the secret": {map[string]any{"appid": otherAppID, "secret": testSecret}, account1(nil)},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("demo", nil)
				m.served("demo")
				for n, change := range []map[string]any{c.there, c.back, c.there, c.back, c.there} {
					verify := n%2 == 0
					data := maps.Clone(change)
					data["verify"] = verify
					appid := m.config("demo")["appid"]
					if to, ok := change["appid"]; ok {
						appid = to
					}
					calls := m.calls()
					m.update("demo", data)
					if verify {
						require.Equal(t, calls+1, m.calls())
						require.Equal(t, []string{"config/demo", m.tokenKey("demo")}, m.stored())
					} else {
						require.Equal(t, calls, m.calls())
						require.Equal(t, []string{"config/demo"}, m.stored(), "the old token is gone")
						m.sim.Inject(wechatsim.Fault{Kind: "reset", Times: 1})
						status, _ := m.refused(logical.ReadOperation, "token/demo", nil)
						require.Equal(t, http.StatusBadGateway, status, "the old token is not served for want of a new one")
						time.Sleep(time.Second)
					}
					token := m.read("demo")
					require.Equal(t, appid, token["appid"])
					of, _ := m.sim.Check(token["access_token"].(string))
					require.Equal(t, appid, of, "the token is one of the new account")
					m.served("demo")
				}
			})
		})
	}
}

func TestTokensThatFollowEachOtherAtOnceHaveDifferentTimes(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
		m.write("demo", nil)
		first := m.served("demo")
		m.update("demo", map[string]any{"appid": otherAppID})
		require.NotEqual(t, first["last_vault_rotation"], m.served("demo")["last_vault_rotation"])
	})
}

func TestAWarningNamesTheOthersWithTheSameAppID(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
		warning := func(resp *logical.Response) string {
			if resp == nil {
				return ""
			}
			require.Len(t, resp.Warnings, 1)
			require.NotContains(t, resp.Warnings[0], testSecret)
			_, names, found := strings.Cut(resp.Warnings[0], "same appid: ")
			require.True(t, found, resp.Warnings[0])
			names, what, _ := strings.Cut(names, ". ")
			require.Contains(t, what, "forced refresh")
			return names
		}
		require.Empty(t, warning(m.write("team-a/shop", nil)))
		require.Empty(t, warning(m.write("other", map[string]any{"appid": otherAppID})))
		require.Equal(t, "1 at other levels", warning(m.write("team-a/shop/till", nil)), "on create, and no name of another level")
		require.Equal(t, "2 at other levels", warning(m.write("a", map[string]any{"verify": false})), "without verify, too")
		require.Equal(t, "2 at other levels", warning(m.update("team-a/shop", map[string]any{"max_ttl": 60})), "on update")
		m.write("team-a/till", nil)
		require.Equal(t, "team-a/till, and 2 at other levels", warning(m.update("team-a/shop", map[string]any{"verify": false})))
		m.ok(logical.DeleteOperation, "config/team-a/till", nil)
		require.Equal(t, "other", warning(m.update("a", map[string]any{"appid": otherAppID})), "by what it is now")
		require.Equal(t, "1 at other levels", warning(m.update("team-a/shop/till", map[string]any{"verify": false})))
		m.reopen()
		require.Equal(t, "1 at other levels", warning(m.update("team-a/shop", map[string]any{"verify": false})), "after a restart")
		m.ok(logical.DeleteOperation, "config/team-a/shop/till", nil)
		require.Empty(t, warning(m.update("team-a/shop", map[string]any{"verify": false})), "not the deleted")
		require.Empty(t, warning(m.write("case", map[string]any{"appid": strings.ToUpper(testAppID), "verify": false})), "case matters")
	})
}

func TestTheOthersWithTheSameAppIDAreNamedAsSoonAsTheyAreLoaded(t *testing.T) {
	const incomplete = "Not all accounts of this mount are loaded yet"
	for name, c := range map[string]struct {
		loading, waits time.Duration
		named          bool
	}{
		"in time":  {loadPatience - time.Second, loadPatience - time.Second, true},
		"too late": {loadPatience + time.Second, loadPatience, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("team/twin", nil)
				m.close()
				m.at("list", configPrefix, func() { time.Sleep(c.loading) })
				m.backend = m.mountedOn(m.storage)
				require.NoError(t, m.Initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}))
				synctest.Wait()
				start := time.Now()
				resp := m.write("demo", map[string]any{"verify": false})
				require.Equal(t, c.waits, time.Since(start))
				require.NotNil(t, resp)
				require.Len(t, resp.Warnings, 1)
				require.Equal(t, c.named, strings.Contains(resp.Warnings[0], "same appid: 1 at other levels."), resp.Warnings[0])
				require.Equal(t, !c.named, strings.Contains(resp.Warnings[0], incomplete), resp.Warnings[0])

				time.Sleep(time.Minute)
				resp = m.update("demo", map[string]any{"verify": false})
				require.NotNil(t, resp)
				require.Len(t, resp.Warnings, 1)
				require.Contains(t, resp.Warnings[0], "same appid: 1 at other levels.")
			})
		})
	}
}

func TestAWriteOfNothingIsRefusedAndSaysWhatToWrite(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for _, data := range []map[string]any{nil, {}} {
			m.changesNothing(0, func() {
				status, text := m.refused(logical.UpdateOperation, "config/demo", data)
				require.Equal(t, http.StatusBadRequest, status)
				require.Contains(t, text, "names no field")
				require.Contains(t, text, "verify=true")
				for field := range configFields {
					require.Contains(t, text, field)
				}
			})
		}
	})
}

func TestAConfigurationThatIsNotThereIsNotFound(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("team/a", nil)
		for _, name := range []string{"demo", "team", "team/a/b", "TEAM/a", "team/b"} {
			m.changesNothing(0, func() {
				resp, err := m.request(logical.ReadOperation, "config/"+name, nil)
				require.NoError(t, err)
				require.Nil(t, resp, "which Vault answers with 404")
			})
		}
	})
}

func TestDeleteRemovesConfigurationAndToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for _, name := range []string{"demo", "team", "team/a"} {
			m.write(name, map[string]any{"sync_interval": "1m"})
		}
		first := m.served("demo")
		require.Nil(t, m.ok(logical.DeleteOperation, "config/team", nil))
		require.Equal(t, []string{"config/demo", "config/team/a", m.tokenKey("demo")}, m.stored(), "what is below the name stays")
		require.Nil(t, m.ok(logical.DeleteOperation, "config/demo", nil))
		require.Nil(t, m.ok(logical.DeleteOperation, "config/team/a", nil))
		require.Empty(t, m.stored())
		require.Empty(t, m.known())

		require.Nil(t, m.ok(logical.ReadOperation, "config/demo", nil))
		status, _ := m.refused(logical.ReadOperation, "token/demo", nil)
		require.Equal(t, http.StatusBadRequest, status)
		for _, name := range []string{"demo", "team", "never-there", "never/there"} {
			m.changesNothing(0, func() { require.Nil(t, m.ok(logical.DeleteOperation, "config/"+name, nil)) })
		}
		calls := m.calls()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		require.Equal(t, calls, m.calls(), "nothing is refreshed for it")

		m.write("demo", nil)
		require.NotEqual(t, first["last_vault_rotation"], m.served("demo")["last_vault_rotation"], "an account of that name begins anew")
	})
}

func TestDeleteEndsWhatWasRemembered(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 89506, Times: 1})
		m.refused(logical.ReadOperation, "token/demo", nil)
		m.ok(logical.DeleteOperation, "config/demo", nil)
		m.write("demo", map[string]any{"verify": false})
		m.read("demo")
	})
}

func TestATickDuringATrialLosesNoToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetLatency(3 * time.Second)
		done := make(chan struct{})
		go func() { defer close(done); m.write("demo", nil) }()
		time.Sleep(time.Second)
		m.rollbackTick()
		<-done
		synctest.Wait()
		if m.keeper.known("demo") == nil {
			t.Error("the account is in memory of none")
		}
		if m.history().Value == "" {
			t.Error("the token is not stored")
		}
		begin := time.Now()
		m.read("demo")
		require.Zero(t, time.Since(begin), "the first read is served from the cache")
	})
}

func TestTheLastNameTakesTheTokenWithIt(t *testing.T) {
	for _, how := range []string{"deleted", "moved"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("a", nil)
				m.write("b", nil)
				m.storage.failing(func(op, key string) error { // the configuration's write is carried out, its answer lost
					if key != "config/a" || op == "get" {
						return nil
					}
					m.storage.lose = 1
					return nil
				})
				if how == "deleted" {
					require.Error(t, m.try(logical.DeleteOperation, "config/a", nil))
				} else {
					require.Error(t, m.try(logical.UpdateOperation, "config/a", map[string]any{"appid": otherAppID, "verify": false}))
				}
				m.storage.failing(nil)
				m.ticks(2)
				require.Empty(t, m.walEntries())
				require.NotContains(t, m.history().Names, "a")
				m.ok(logical.DeleteOperation, "config/b", nil)
				m.ticks(2)
				r := m.history()
				require.Empty(t, r.Names, "a name without its configuration")
				require.Empty(t, r.Value, "a token without its configuration")
			})
		})
	}
}

func TestADeleteWhileTheBackgroundHangs(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		const n = 15
		for i := range n {
			m.write(fmt.Sprintf("n%02d", i), nil)
		}
		time.Sleep(rotationPeriod - time.Second)
		for range n {
			m.sim.Inject(wechatsim.Fault{Kind: "hang"})
		}
		time.Sleep(2 * time.Second)
		begin := time.Now()
		err := m.try(logical.DeleteOperation, "config/n00", nil)
		t.Logf("delete took %s: %v", time.Since(begin), err)
		m.ticks(10)
		require.Empty(t, m.walEntries())
		for i := range n {
			m.ok(logical.DeleteOperation, fmt.Sprintf("config/n%02d", i), nil)
		}
		m.ticks(2)
		require.Empty(t, m.history().Names)
		require.Empty(t, m.history().Value)
	})
}

// Whatever becomes of the write.
func TestWhatATrialNoticesIsHeardByTheOthers(t *testing.T) {
	for _, fails := range []string{"wal/", "config/c"} {
		t.Run(fails, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("a", nil)
				m.write("c", map[string]any{"appid": otherAppID})
				m.sim.ForceOutside(testAppID)
				m.storage.failing(func(op, key string) error {
					if op == "put" && strings.HasPrefix(key, fails) {
						return errStorage
					}
					return nil
				})
				require.Error(t, m.try(logical.UpdateOperation, "config/c", map[string]any{"appid": testAppID}))
				m.storage.failing(nil)
				m.read("a")
			})
		})
	}
}

func TestWhatATrialNoticesIsHeardWhileStorageIsSlow(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("a", nil)
		m.sim.ForceOutside(testAppID)
		m.storage.hooked(func(op, key string) {
			if op == "put" && key == "config/c" {
				time.Sleep(20 * time.Second)
			}
		})
		var all sync.WaitGroup
		all.Go(func() { m.write("c", nil) })
		time.Sleep(10 * time.Second)
		resp := m.ok(logical.ReadOperation, "token/a", nil)
		_, errcode := m.sim.Check(resp.Data["access_token"].(string))
		all.Wait()
		require.Zero(t, errcode, "a dead token is handed out")
	})
}

func TestWhatTheTickFinishesOfADeleteMemoryForgets(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		const n = 20
		for i := range n {
			m.write(fmt.Sprintf("n%02d", i), nil)
		}
		time.Sleep(rotationPeriod - time.Second)
		m.sim.Inject(wechatsim.Fault{Kind: "hang"})
		time.Sleep(2 * time.Second)
		err := m.try(logical.DeleteOperation, "config/n00", nil)
		t.Logf("delete: %v", err)
		m.sim.ClearFaults()
		m.ticks(10)
		require.Empty(t, m.walEntries())
		for i := 1; i < n; i++ {
			m.ok(logical.DeleteOperation, fmt.Sprintf("config/n%02d", i), nil)
		}
		m.ticks(2)
		require.Empty(t, m.history().Names)
		require.Empty(t, m.history().Value)
	})
}

func TestATrialLeavesATokenThatStillWorks(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("twin", nil)
		m.reopenWithoutBackground()
		held := m.read("twin")["access_token"].(string)
		time.Sleep(rotationPeriod + 20*time.Second)
		m.at("put", "config/new", func() { m.sim.Inject(wechatsim.Fault{Kind: "status", Status: 503}) })
		m.write("new", nil)
		_, errcode := m.sim.Check(held)
		require.Zero(t, errcode)
		require.NoError(t, m.tokenOrError("twin"))
		require.NoError(t, m.tokenOrError("new"))
	})
}

func TestAReaderOfANameThatMovesWaitsForItsRequestTimeout(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
		m.write("other", map[string]any{"request_timeout": 30})
		m.write("demo", map[string]any{"request_timeout": 1})
		m.sim.Inject(wechatsim.Fault{Kind: "hang", Mode: "forced"})
		var all sync.WaitGroup
		all.Go(func() { m.refused(logical.UpdateOperation, "rotate/other", nil) })
		synctest.Wait()
		all.Go(func() { m.write("demo", map[string]any{"appid": otherAppID}) })
		synctest.Wait()
		begin := time.Now()
		_ = m.tokenOrError("demo")
		took := time.Since(begin)
		all.Wait()
		require.LessOrEqual(t, took, 2*time.Second)
	})
}
