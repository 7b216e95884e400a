package wechat

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/testhelpers/schema"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// validNames and invalidNames are examples of the contract's rule for the names
// of accounts.
var (
	validNames = []string{
		"a", "7", "myapp", "MyApp", "team-a/shop", "a/b/c/d/e", "0/1",
		"a-b", "a_b", "a.b", "a..b", "a--__..b", "a.....b/c..d", "wx0123456789abcdef",
		strings.Repeat("n", 255), strings.Repeat("n/", 127) + "n",
	}
	invalidNames = []string{
		"-a", "_a", ".a", "a-", "a_", "a.", ".", "..", "-",
		"/a", "a/", "/", "//", "a//b", "a/-b", "a-/b", "a/b.", "a/.b", "a/../b", "a/./b",
		"a b", " a", "a ", "a/ b", "a\n", "\na", "a\nb", "a\r", "a\tb", "a\x00b", "a\x7f",
		"ä", "müller", "a/ü", "店", "\uff41", "\uff11", "\u017f", "\u212a", "a\u200bb", "a\xff",
		"a+b", "a@b", "a*", "a:b", "a%2Fb", `a\b`, "a,b", "a=b", "{{a}}", "a?b", "a#b",
		strings.Repeat("n", 256), strings.Repeat("n/", 128) + "n",
	}
)

// known returns what is in memory.
func (m *mount) known() map[string]state {
	m.keeper.mu.RLock()
	defer m.keeper.mu.RUnlock()
	all := map[string]state{}
	for name, t := range m.keeper.doors {
		if a := t.account.Load(); a != nil && a.holder.state.Load() != nil {
			all[name] = *a.holder.state.Load()
		}
	}
	return all
}

// changesNothing runs do, which has to leave storage and memory as they are, and
// to call WeChat the given number of times.
func (m *mount) changesNothing(calls int, do func()) {
	m.t.Helper()
	stored, known, before := m.snapshot(), m.known(), m.calls()
	do()
	require.Equal(m.t, stored, m.snapshot(), "storage changed")
	require.Equal(m.t, known, m.known(), "what is in memory changed")
	require.Equal(m.t, before+calls, m.calls(), "calls of WeChat")
}

// keys returns what a LIST of the path answers.
func (m *mount) keys(path string) []string {
	m.t.Helper()
	resp := m.ok(logical.ListOperation, path, nil)
	keys, _ := resp.Data["keys"].([]string)
	return keys
}

// shown returns a response, or the error in its place, as text that holds all
// that a client can see of it.
func shown(t *testing.T, resp *logical.Response, err error) string {
	t.Helper()
	text, jsonErr := json.Marshal(resp)
	require.NoError(t, jsonErr)
	return fmt.Sprintf("%s %#v %v", text, resp, err)
}

func TestEveryPathTakesEveryValidName(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for _, name := range validNames {
			m.write(name, nil)
			require.Equal(t, testAppID, m.ok(logical.ReadOperation, "config/"+name, nil).Data["appid"], name)
			require.Equal(t, testAppID, m.read(name)["appid"], name)
			require.Equal(t, testAppID, m.signs(name).Data["appid"], name)
			require.Contains(t, m.stored(), ticketKey(jsapiTicket, account1Config()))
			require.Contains(t, m.stored(), storageKey(configPrefix, name), "case is kept")
			level, last := "", name
			if slash := strings.LastIndex(name, "/"); slash >= 0 {
				level, last = name[:slash+1], name[slash+1:]
			}
			for _, area := range []string{"config/", "token/"} {
				require.Contains(t, m.keys(area+level), last, name)
				require.Empty(t, m.keys(area+name+"/"), "nothing is below it")
			}
			require.Nil(t, m.ok(logical.DeleteOperation, "config/"+name, nil))
			require.Empty(t, m.stored(), name)
		}
	})
}

func TestEveryPathRefusesEveryInvalidNameWithTheRule(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("a", nil) // the neighbour of many of them
		for _, name := range invalidNames {
			for _, request := range []struct {
				op   logical.Operation
				path string
				data map[string]any
			}{
				{logical.UpdateOperation, "config/" + name, account1(nil)},
				{logical.UpdateOperation, "config/" + name, account1(map[string]any{"verify": false})},
				{logical.CreateOperation, "config/" + name, account1(nil)},
				{logical.ReadOperation, "config/" + name, nil},
				{logical.DeleteOperation, "config/" + name, nil},
				{logical.ListOperation, "config/" + name + "/", nil},
				{logical.ReadOperation, "token/" + name, nil},
				{logical.ListOperation, "token/" + name + "/", nil},
				{logical.UpdateOperation, "refresh/" + name, nil},
				{logical.UpdateOperation, "rotate/" + name, nil},
				{logical.ReadOperation, "status/" + name, nil},
				{logical.ListOperation, "status/" + name + "/", nil},
				{logical.ReadOperation, "sign/" + name, map[string]any{"url": testPage}},
				{logical.UpdateOperation, "sign/" + name, map[string]any{"url": testPage}},
				{logical.ReadOperation, "ticket/" + name, nil},
			} {
				m.changesNothing(0, func() {
					status, text := m.refused(request.op, request.path, request.data)
					require.Equal(t, http.StatusBadRequest, status, "%s %q", request.op, request.path)
					require.Contains(t, text, nameRule, "%s %q", request.op, request.path)
				})
			}
		}
	})
}

func TestListsHandleTheHierarchy(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for _, path := range []string{"config/", "token/", "config/team/", "token/team/"} {
			require.Empty(t, m.keys(path), "of an empty mount")
		}
		for _, name := range []string{"myapp", "team-a/shop", "team-a/x/y", "team", "team/a", "Team/b"} {
			m.write(name, nil)
		}
		for level, want := range map[string][]string{
			"":          {"Team/", "myapp", "team", "team-a/", "team/"},
			"team/":     {"a"},
			"Team/":     {"b"},
			"team-a/":   {"shop", "x/"},
			"team-a/x/": {"y"},
			"team-a/y/": nil,
			"te/":       nil,
			"myapp/":    nil,
			"absent/":   nil,
		} {
			for _, area := range []string{"config/", "token/"} {
				m.changesNothing(0, func() {
					got := m.keys(area + level)
					slices.Sort(got)
					require.Equal(t, want, got, area+level)
				})
			}
		}
		require.ElementsMatch(t, m.keys("config/"), m.keys("config"), "with or without a trailing slash")

		m.ok(logical.DeleteOperation, "config/team", nil)
		require.Equal(t, []string{"a"}, m.keys("token/team/"), "a level does not need an account of its name")
		m.ok(logical.DeleteOperation, "config/team/a", nil)
		require.ElementsMatch(t, []string{"Team/", "myapp", "team-a/"}, m.keys("token/"))
	})
}

// Vault passes on the query of a LIST, which no policy looks at.
func TestAListShowsTheLevelOfItsPathOnly(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("team/a", nil)
		for _, area := range []string{"config/", "token/"} {
			resp := m.ok(logical.ListOperation, area, map[string]any{"name": "team"})
			require.Equal(t, []string{"team/"}, resp.Data["keys"], area)
			resp = m.ok(logical.ListOperation, area+"other/", map[string]any{"name": "team"})
			require.Empty(t, resp.Data["keys"], area)
		}
	})
}

func TestAnOperationThatAPathDoesNotHaveIsRefused(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for _, c := range []struct {
			op   logical.Operation
			path string
		}{
			{logical.UpdateOperation, "token/demo"},
			{logical.DeleteOperation, "token/demo"},
			{logical.DeleteOperation, "sign/demo"},
			{logical.UpdateOperation, "ticket/demo"},
			{logical.DeleteOperation, "ticket/demo"},
		} {
			m.changesNothing(0, func() {
				_, err := m.request(c.op, c.path, nil)
				require.ErrorIs(t, err, logical.ErrUnsupportedOperation, "%s %s", c.op, c.path)
			})
		}
	})
}

// What is shown to an application that has mistyped a name, or has no right to add one.
func TestAnUnknownNameIsToldWhereTheNamesAre(t *testing.T) {
	requests := map[string]struct {
		op   logical.Operation
		data map[string]any
	}{
		"token/":        {logical.ReadOperation, nil},
		"refresh/":      {logical.UpdateOperation, nil},
		"rotate/":       {logical.UpdateOperation, nil},
		"code2session/": {logical.UpdateOperation, map[string]any{"js_code": "a-code"}},
		"oauth2/":       {logical.UpdateOperation, map[string]any{"code": "a-code"}},
		"sign/":         {logical.ReadOperation, map[string]any{"url": testPage}},
		"ticket/":       {logical.ReadOperation, nil},
		"clear-quota/":  {logical.UpdateOperation, nil},
		"status/":       {logical.ReadOperation, nil},
	}
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("team-a/eu/shop", nil)
		for area, request := range requests {
			for name, says := range map[string]string{
				"shp":        `no account "shp" is configured in the mount wechat/: its names are listed with LIST wechat/status/; `,
				"team-a/shp": `no account "team-a/shp" is configured in the mount wechat/: its names are listed with LIST wechat/status/team-a/; `,
				"team-a":     `no account "team-a" is configured in the mount wechat/: team-a is a level, its accounts are listed with LIST wechat/status/team-a/; `,
				"team-a/eu":  `no account "team-a/eu" is configured in the mount wechat/: team-a/eu is a level, its accounts are listed with LIST wechat/status/team-a/eu/; `,
				"team":       `no account "team" is configured in the mount wechat/: its names are listed with LIST wechat/status/; `,
			} {
				m.changesNothing(0, func() {
					status, text := m.refused(request.op, area+name, request.data)
					require.Equal(t, http.StatusBadRequest, status, area+name)
					require.Equal(t, says+"an operator adds an account of that name at wechat/config/"+name, text, area+name)
				})
			}
			m.storage.failing(func(op, _ string) error {
				if op == "list" {
					return errors.New("storage is away")
				}
				return nil
			})
			_, text := m.refused(request.op, area+"team-a", request.data)
			require.Contains(t, text, `no account "team-a" is configured`, area)
			m.storage.failing(nil)
		}
	})
}

func TestARequestWithoutANameSaysWhatIsMissing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for _, c := range []struct {
			op   logical.Operation
			area string
		}{
			{logical.UpdateOperation, "config"},
			{logical.ReadOperation, "config"},
			{logical.DeleteOperation, "config"},
			{logical.ReadOperation, "token"},
			{logical.UpdateOperation, "refresh"},
			{logical.UpdateOperation, "rotate"},
			{logical.UpdateOperation, "code2session"},
			{logical.UpdateOperation, "oauth2"},
			{logical.ReadOperation, "sign"},
			{logical.UpdateOperation, "sign"},
			{logical.ReadOperation, "ticket"},
			{logical.UpdateOperation, "clear-quota"},
			{logical.ReadOperation, "status"},
		} {
			for _, path := range []string{c.area, c.area + "/"} {
				m.changesNothing(0, func() {
					status, text := m.refused(c.op, path, account1(nil))
					require.Equal(t, http.StatusBadRequest, status, "%s %s", c.op, path)
					require.Contains(t, text, "the account's name is missing")
					require.Contains(t, text, "wechat/"+c.area+"/<name>")
				})
			}
		}
	})
}

func TestAWriteWithAFieldThatThePathDoesNotHaveIsRefused(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef"
	good := map[string]map[string]any{
		"config/demo":       account1(map[string]any{"max_ttl": 60}),
		"config/new":        account1(nil),
		"refresh/demo":      {"rejected_token": "a-token"},
		"rotate/demo":       {"revoke": true},
		"code2session/demo": {"js_code": "a-code"},
		"oauth2/demo":       {"code": "a-code"},
		"sign/demo":         {"url": testPage},
		"clear-quota/demo":  {},
	}
	cases := map[string][]struct {
		field, meant string // meant is empty where the field must not be shown
	}{
		"config/demo": {
			{"maxttl", "max_ttl"},
			{"maxTTL", "max_ttl"},
			{"app_id", "appid"},
			{"appId", "appid"},
			{"app_secret", "secret"},
			{"appsecret", "secret"},
			{"sekret", "secret"},
			{"secret12345678", ""},
			{"base-url", "base_url"},
			{"timeout", "request_timeout"},
			{"ttl", "max_ttl"},
			{"verfiy", "verify"},
			{"ca_cert", "ca_pem"},
			{"after", ""},
			{"limit", ""},
			{"recursive", ""},
			{"code", ""},
		},
		"config/new":        {{"app_id", "appid"}, {"app_secret", "secret"}},
		"refresh/demo":      {{"token", "rejected_token"}, {"access_token", "rejected_token"}, {"rejectedToken", "rejected_token"}, {"rejected", "rejected_token"}, {"appid", ""}},
		"rotate/demo":       {{"revok", "revoke"}, {"Revoke", "revoke"}, {"rejected_token", ""}},
		"code2session/demo": {{"code", "js_code"}, {"jscode", "js_code"}, {"session_key", "include_session_key"}, {"grant_type", ""}},
		"oauth2/demo":       {{"js_code", "code"}, {"appid", ""}},
		"sign/demo":         {{"urls", "url"}, {"type", ""}},
		"clear-quota/demo":  {{"appid", ""}, {"secret", ""}},
	}
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		refused := func(path string, data map[string]any) string {
			var text string
			m.changesNothing(0, func() {
				resp, err := m.request(logical.UpdateOperation, path, data)
				require.NotContains(t, shown(t, resp, err), secret)
				var status int
				status, text = m.status(resp, err)
				require.Equal(t, http.StatusBadRequest, status, "%s %v", path, data)
			})
			require.Contains(t, text, "nothing was changed")
			for field, schema := range m.Route(path).Fields {
				if field != "name" && (!schema.Query || field == "url") {
					require.Contains(t, text, field, "the fields there are")
				}
			}
			return text
		}
		for path, fields := range cases {
			for _, c := range fields {
				for _, data := range []map[string]any{{}, good[path]} {
					with := maps.Clone(data)
					with[c.field] = "1"
					text := refused(path, with)
					if c.meant == "" {
						require.NotContains(t, text, "did you mean")
						continue
					}
					require.Contains(t, text, fmt.Sprintf("%q (did you mean %q?)", c.field, c.meant), path)
				}
			}
			for _, name := range []string{secret, secret + "\n", "secret:" + secret, "secret" + secret, "secret " + secret, strings.Repeat(secret, 100)} {
				for _, value := range []any{"", nil, "x", map[string]any{"v": secret}} {
					with := maps.Clone(good[path])
					with[name] = value
					require.Contains(t, refused(path, with), "may be a secret", path)
				}
			}
			with := maps.Clone(good[path])
			with["name"] = "other"
			require.Contains(t, refused(path, with), "the name is in the path", path)
		}
		text := refused("config/new", map[string]any{"app_id": testAppID, "app_secret": testSecret, secret: ""})
		require.Contains(t, text, `"app_id" (did you mean "appid"?), "app_secret" (did you mean "secret"?), 1 not shown, as a name may be a secret`)
		require.NotContains(t, m.logs.String(), secret)
		require.NotContains(t, m.stored(), "config/new")
		require.Len(t, m.sim.CallsOf(wechatsim.AllAPIs, ""), 1, "that of the first write")
	})
}

// A value of the wrong type must not get into an error: that would reach the
// client, Vault's log and the audit log in the clear.
func TestAFieldOfTheWrongTypeIsRefusedWithoutItsValue(t *testing.T) {
	const value = "v4lue-that-must-not-be-seen"
	text := map[string]any{
		"a map":           map[string]any{"v": value},
		"a map in a map":  map[string]any{"v": map[string]any{value: value}},
		"a list":          []any{value},
		"a list of lists": []any{[]any{value}},
		"true":            true,
		"a number":        12345678,
		"a fraction":      1.5,
		"null":            nil,
	}
	duration := map[string]any{
		"a map":      map[string]any{"v": value},
		"a list":     []any{value},
		"a text":     value,
		"true":       true,
		"null":       nil,
		"empty":      "",
		"a fraction": json.Number("1.5"),
	}
	boolean := map[string]any{
		"a map":  map[string]any{"v": value},
		"a list": []any{value},
		"a text": value,
		"null":   nil,
		"empty":  "",
	}
	for field, values := range map[string]map[string]any{
		"appid": text, "secret": text, "base_url": text, "proxy_url": text, "ca_pem": text, "name": text,
		"request_timeout": duration, "sync_interval": duration, "max_ttl": duration,
		"verify": boolean,
	} {
		for kind, wrong := range values {
			t.Run(field+"/"+kind, func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					m.write("demo", nil)
					for _, name := range []string{"demo", "new"} {
						data := account1(map[string]any{field: wrong})
						m.changesNothing(0, func() {
							for _, op := range []logical.Operation{logical.CreateOperation, logical.UpdateOperation} {
								req := func() *logical.Request {
									return &logical.Request{Operation: op, Path: "config/" + name, Data: maps.Clone(data), Storage: m.storage}
								}
								found, exists, err := m.HandleExistenceCheck(t.Context(), req())
								require.NoError(t, err)
								require.True(t, found)
								require.Equal(t, name == "demo", exists)

								resp, err := m.HandleRequest(t.Context(), req())
								require.NotContains(t, shown(t, resp, err), value)
								status, message := m.status(resp, err)
								require.Equal(t, http.StatusBadRequest, status)
								require.Contains(t, message, field+" must be")
							}
						})
					}
					require.NotContains(t, m.logs.String(), value)
				})
			})
		}
	}
}

func TestAParameterOfTheWrongTypeIsRefusedWithoutItsValue(t *testing.T) {
	const value = "v4lue-that-must-not-be-seen"
	structured := map[string]any{
		"a map":           map[string]any{"v": value},
		"a list":          []any{value},
		"a list of lists": []any{[]any{value}},
	}
	with := func(more map[string]any) map[string]any {
		all := maps.Clone(structured)
		maps.Copy(all, more)
		return all
	}
	boolean := with(map[string]any{
		"a text":                 value,
		"null":                   nil,
		"empty":                  "",
		"a fraction":             12345.5,
		"a fraction as a text":   "0.5",
		"two":                    2,
		"two as a text":          "2",
		"two as Vault passes it": json.Number("2"),
		"negative":               -1,
	})
	number := with(map[string]any{
		"a text":                      value,
		"true":                        true,
		"a fraction as a text":        "1.5",
		"a fraction":                  json.Number("1.5"),
		"negative":                    -2,
		"negative as a text":          "-2",
		"negative as Vault passes it": json.Number("-2"),
		"too large":                   int64(math.MaxInt32) + 1,
		"too large as a text":         "99999999999999999999",
	})
	text := with(map[string]any{"null": nil, "true": true, "a number": 12345678, "a fraction": 1.5})
	for _, c := range []struct {
		op          logical.Operation
		path, field string
		wrong       map[string]any
		says        string
	}{
		{logical.UpdateOperation, "rotate/demo", "revoke", boolean, "revoke must be true or false"},
		{logical.UpdateOperation, "refresh/demo", "rejected_token", text, "rejected_token must be a string"},
		{logical.ListOperation, "status/", "recursive", boolean, "recursive must be true or false"},
		{logical.ListOperation, "status/team/", "recursive", boolean, "recursive must be true or false"},
		{logical.ListOperation, "status/", "limit", number, "limit must be a whole number, or -1 for all"},
		{logical.ListOperation, "status/team/", "limit", number, "limit must be a whole number, or -1 for all"},
		{logical.ListOperation, "token/", "limit", number, "limit must be a whole number, or -1 for all"},
		{logical.ListOperation, "config/team/", "after", text, "after must be a string"},
		{logical.ListOperation, "status/", "after", text, "after must be a string"},
		{logical.ListOperation, "status/team/", "after", text, "after must be a string"},
		{logical.ReadOperation, "sign/demo", "url", text, "url must be a string"},
		{logical.UpdateOperation, "sign/demo", "url", text, "url must be a string"},
		{logical.ReadOperation, "ticket/demo", "type", text, "type must be a string"},
		{logical.ReadOperation, "sign/demo", "name", text, "name must be a string"},
		{logical.ReadOperation, "ticket/demo", "name", text, "name must be a string"},
	} {
		t.Run(c.path+" "+c.field, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.write("team/demo", nil)
				for kind, wrong := range c.wrong {
					m.changesNothing(0, func() {
						resp, err := m.request(c.op, c.path, map[string]any{c.field: wrong})
						status, message := m.status(resp, err)
						require.Equal(t, http.StatusBadRequest, status, kind)
						require.Equal(t, c.says, message, kind)
						require.NotContains(t, shown(t, resp, err), value)
					})
				}
				require.NotContains(t, m.logs.String(), value)
			})
		})
	}
}

func TestParametersAreTakenAsVaultsClientsWriteThem(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for _, name := range []string{"a", "b", "team/c"} {
			m.write(name, nil)
		}
		listed := func(data map[string]any) any {
			return m.ok(logical.ListOperation, "status/", data).Data["keys"]
		}
		for _, yes := range []any{true, "true", "1", 1, 1.0, json.Number("1")} {
			require.Equal(t, []string{"a", "b", "team/c"}, listed(map[string]any{"recursive": yes}), "%#v", yes)
		}
		for _, no := range []any{false, "false", "0", 0, 0.0, json.Number("0")} {
			require.Equal(t, []string{"a", "b", "team/"}, listed(map[string]any{"recursive": no}), "%#v", no)
		}
		for _, one := range []any{1, "1", json.Number("1")} {
			require.Equal(t, []string{"a"}, listed(map[string]any{"limit": one}), "%#v", one)
		}
		for _, all := range []any{0, "0", -1, "-1", json.Number("-1"), math.MaxInt32} {
			require.Len(t, listed(map[string]any{"limit": all}), 3, "%#v", all)
		}
		for _, area := range []string{"config/", "token/", "status/"} {
			require.Equal(t, []string{"b"}, m.ok(logical.ListOperation, area, map[string]any{"after": "a", "limit": 1}).Data["keys"], area)
		}
		for _, after := range []any{"a", "aa"} {
			require.Equal(t, []string{"b", "team/"}, listed(map[string]any{"after": after}), "%#v", after)
		}
		for _, no := range []any{false, "false", "0", 0, json.Number("0")} {
			m.ok(logical.UpdateOperation, "rotate/a", map[string]any{"revoke": no})
			require.Nil(t, m.statusOf("a")["revocation"], "%#v", no)
			time.Sleep(forcedSpacing)
		}
		for _, yes := range []any{true, "true", "1", 1, json.Number("1")} {
			m.ok(logical.UpdateOperation, "rotate/a", map[string]any{"revoke": yes})
			require.Equal(t, revocationPending, m.statusOf("a")["revocation"], "%#v", yes)
			time.Sleep(2 * forcedSpacing)
			synctest.Wait()
			require.NotEqual(t, revocationPending, m.statusOf("a")["revocation"], "%#v", yes)
		}
	})
}

func TestWhatIsSecretIsMarked(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		sensitive := map[string]bool{}
		for _, area := range []string{"config/", "token/", "refresh/", "rotate/", "status/", "sign/", "ticket/"} {
			for name, field := range m.Route(area + "demo").Fields {
				if field.DisplayAttrs != nil && field.DisplayAttrs.Sensitive {
					sensitive[area+name] = true
				}
			}
		}
		require.Equal(t, map[string]bool{
			"config/secret": true, "config/proxy_url": true, "refresh/rejected_token": true,
		}, sensitive)

		special := m.SpecialPaths()
		require.Contains(t, special.LocalStorage, framework.WALPrefix, "an entry is of the cluster that wrote it")
		require.NotEmpty(t, special.SealWrapStorage)
		for _, prefix := range special.SealWrapStorage {
			require.True(t, strings.HasSuffix(prefix, "/"), "%q is one key, not all below it", prefix)
		}
	})
}

func TestAFieldThatIsNotKnownIsNeverShown(t *testing.T) {
	const value = "v4lue-that-must-not-be-seen"
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation, logical.DeleteOperation} {
			for _, path := range []string{"config/demo", "token/demo", "sign/demo", "ticket/demo"} {
				resp, err := m.request(op, path, map[string]any{"unknown": map[string]any{value: value}})
				require.NotContains(t, shown(t, resp, err), value)
			}
		}
		require.NotContains(t, m.logs.String(), value)
	})
}

func TestResponsesAreAsDeclared(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for _, name := range []string{"failing", "unread"} {
			m.write(name, map[string]any{"appid": "wxnobody", "verify": false})
		}
		m.refused(logical.ReadOperation, "token/failing", nil)
		for _, c := range []struct {
			op   logical.Operation
			path string
			data map[string]any
		}{
			{logical.UpdateOperation, "config/team/a", account1(nil)},
			{logical.UpdateOperation, "config/team/b", account1(nil)}, // with a warning
			{logical.UpdateOperation, "config/team/a", map[string]any{"max_ttl": 60}},
			{logical.ReadOperation, "config/team/a", nil},
			{logical.ReadOperation, "token/team/a", nil},
			{logical.ReadOperation, "sign/team/a", map[string]any{"url": testPage}},
			{logical.UpdateOperation, "sign/team/a", map[string]any{"url": testPage}},
			{logical.ReadOperation, "ticket/team/a", nil},
			{logical.ReadOperation, "ticket/team/a", map[string]any{"type": "wx_card"}},
			{logical.ListOperation, "config/", nil},
			{logical.ListOperation, "config/team/", nil},
			{logical.ListOperation, "config/absent/", nil},
			{logical.ListOperation, "token/", nil},
			{logical.ListOperation, "token/team/", nil},
			{logical.ReadOperation, "status/team/a", nil},
			{logical.UpdateOperation, "refresh/team/a", nil},
			{logical.UpdateOperation, "refresh/team/a", map[string]any{"rejected_token": "of-another-time"}},
			{logical.UpdateOperation, "rotate/team/a", map[string]any{"revoke": true}},
			{logical.ReadOperation, "status/team/a", nil}, // with a revocation
			{logical.ReadOperation, "status/unread", nil},
			{logical.ReadOperation, "status/failing", nil},
			{logical.ListOperation, "status/", nil},
			{logical.ListOperation, "status/team/", nil},
			{logical.ListOperation, "status/absent/", nil},
			{logical.ListOperation, "status/", map[string]any{"recursive": true}},
			{logical.DeleteOperation, "config/team/a", nil},
		} {
			resp := m.ok(c.op, c.path, c.data)
			declared := schema.GetResponseSchema(t, m.Route(c.path), c.op)
			require.NotNil(t, declared, c.path)
			if c.op != logical.ListOperation && len(declared.Fields) > 0 {
				require.ElementsMatch(t, slices.Collect(maps.Keys(declared.Fields)), slices.Collect(maps.Keys(resp.Data)), c.path)
			}
			schema.ValidateResponse(t, declared, resp, true)
		}
	})
}

func TestEntriesCarryTheSchemaVersion(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("team/a", nil)
		m.signs("team/a")
		stored := m.snapshot()
		require.Len(t, stored, 3)
		for key, value := range stored {
			var entry struct {
				Version *int `json:"version"`
			}
			require.NoError(t, json.Unmarshal([]byte(value), &entry), key)
			require.NotNil(t, entry.Version, key)
			require.Equal(t, schemaVersion, *entry.Version, key)
		}
	})
}

func TestAnEntryThatCannotBeReadIsNamedAndNotShown(t *testing.T) {
	const content = "c0ntent-that-must-not-be-seen"
	newer := fmt.Sprint(schemaVersion + 1)
	for name, c := range map[string]struct {
		value string
		says  string
	}{
		"a newer version":                {`{"version":` + newer + `,"secret":"` + content + `"}`, "version " + newer},
		"a newer version of other types": {`{"version":` + newer + `,"secret":{"v":"` + content + `"},"access_token":["` + content + `"],"max_ttl":"4m"}`, "version " + newer},
		"no version":                     {`{"secret":"` + content + `"}`, "version 0"},
		"other types":                    {`{"version":1,"secret":{"v":"` + content + `"},"value":{"v":"` + content + `"}}`, "decoded"},
		"cut off":                        {`{"version":1,"secret":"` + content, "decoded"},
		"garbage":                        {content, "decoded"},
		"nothing":                        {``, "decoded"},
	} {
		for _, key := range []string{"config/demo", historyKey(account1Config())} {
			t.Run(name+" at "+key, func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					m.write("demo", nil)
					m.close()
					require.NoError(t, m.storage.Put(t.Context(), &logical.StorageEntry{Key: key, Value: []byte(c.value)}))
					m.open()

					refuse := func(op logical.Operation, path string, data map[string]any) {
						m.changesNothing(0, func() {
							resp, err := m.request(op, path, data)
							require.NotContains(t, shown(t, resp, err), content)
							require.ErrorContains(t, err, key)
							require.ErrorContains(t, err, c.says)
							status, _ := m.status(resp, err)
							require.Equal(t, http.StatusInternalServerError, status)
						})
					}
					refuse(logical.ReadOperation, "token/demo", nil)
					if key == "config/demo" {
						refuse(logical.ReadOperation, "config/demo", nil)
						refuse(logical.UpdateOperation, "config/demo", account1(nil))
						refuse(logical.UpdateOperation, "config/demo", account1(map[string]any{"verify": false}))
					} else {
						require.Equal(t, testAppID, m.ok(logical.ReadOperation, "config/demo", nil).Data["appid"])
					}
					require.NotContains(t, m.logs.String(), content)

					// The way out.
					require.Nil(t, m.ok(logical.DeleteOperation, "config/demo", nil))
					require.Empty(t, m.stored())
					m.write("demo", nil)
					m.read("demo")
				})
			})
		}
	}
}

// At every moment of an account's life, also halfway through a change, a secret
// is only in its configuration and a token only in its token entry.
func TestEachSecretIsInOneEntryOnly(t *testing.T) {
	const password = "pr0xy-passw0rd"
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
		looked := 0
		look := func(string, string) error {
			looked++
			s := &m.storage.InmemStorage // the one of the mount is in use
			keys, err := logical.CollectKeys(t.Context(), logical.NewStorageView(s, ""))
			require.NoError(t, err)
			for _, key := range keys {
				entry, err := s.Get(t.Context(), key)
				require.NoError(t, err)
				value := string(entry.Value)
				for _, where := range []struct{ prefix, secret string }{
					{"config/", testSecret},
					{"config/", password},
					{"held/wechat/token/", m.sim.Current(testAppID)},
					{"held/wechat/token/", m.sim.Current(otherAppID)},
					{"held/wechat/jsapi/", m.sim.CurrentTicket(testAppID, "jsapi")},
					{"held/wechat/jsapi/", m.sim.CurrentTicket(otherAppID, "jsapi")},
				} {
					if where.secret == "" {
						continue
					}
					require.NotContains(t, key, where.secret)
					if !strings.HasPrefix(key, where.prefix) {
						require.NotContains(t, value, where.secret, key)
					}
				}
			}
			return nil
		}
		m.storage.failing(look)
		route := map[string]any{"proxy_url": "http://egress:" + password + "@127.0.0.1:3128", "base_url": "https://192.0.2.1", "verify": false}
		m.write("team/a", nil)
		m.read("team/a")
		m.signs("team/a")
		m.write("team/b", route)
		m.write("team/a", map[string]any{"appid": otherAppID})
		m.read("team/a")
		m.signs("team/a")
		m.write("team/a", map[string]any{"verify": false})
		m.read("team/a")
		m.signs("team/a")
		stored := m.snapshot()
		require.Contains(t, stored["config/team/a"], testSecret)
		require.Contains(t, stored[m.tokenKey("team/a")], m.sim.Current(testAppID))
		require.Contains(t, stored[ticketKey(jsapiTicket, account1Config())], m.sim.CurrentTicket(testAppID, "jsapi"))
		require.Contains(t, stored["config/team/b"], password)
		m.ok(logical.DeleteOperation, "config/team/a", nil)
		require.NoError(t, look("", ""))
		require.Greater(t, looked, 10)
	})
}
