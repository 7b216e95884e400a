package wechat

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// unreadableEntries are what a plugin cannot read, and what its error says of it.
var unreadableEntries = map[string]struct{ value, says string }{
	"damaged": {`{"version":1,"c0ntent-that-must-not-be-seen`, "cannot be decoded"},
	"newer":   {fmt.Sprintf(`{"version":%d,"more":"c0ntent-that-must-not-be-seen"}`, schemaVersion+1), "run the version of the plugin that wrote it"},
}

// put writes an entry past the engine.
func (m *mount) put(key, value string) {
	m.t.Helper()
	require.NoError(m.t, m.storage.Put(m.t.Context(), &logical.StorageEntry{Key: key, Value: []byte(value)}))
}

func TestAnEntryThatCannotBeReadHarmsNoOtherAccount(t *testing.T) {
	history := historyKey(account1Config())
	for kind, entry := range unreadableEntries {
		// With true the account's token is read all the same.
		for key, works := range map[string]bool{
			"config/team/demo": false, history: false,
			framework.WALPrefix + "an-id": true,
		} {
			t.Run(kind+" "+key, func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
					m.write("team/demo", nil)
					m.write("team/other", map[string]any{"appid": otherAppID})
					m.signs("team/other")
					held := m.read("team/other")["access_token"]
					m.close()
					m.put(key, entry.value)
					calls := m.calls() + m.ticketCalls()
					m.open()

					require.Equal(t, held, m.read("team/other")["access_token"])
					m.signs("team/other")
					require.Equal(t, stateHealthy, m.statusOf("team/other")["state"])
					require.Equal(t, otherAppID, m.config("team/other")["appid"])
					for _, area := range []string{"config/team/", "token/team/", "status/team/"} {
						require.Equal(t, []string{"demo", "other"}, m.keys(area))
					}
					info := m.ok(logical.ListOperation, "status/team/", nil).Data["key_info"].(map[string]any)
					require.Equal(t, stateHealthy, info["other"].(map[string]any)["state"])
					require.Equal(t, calls, m.calls()+m.ticketCalls(), "all of it from memory and storage")
					m.ok(logical.UpdateOperation, "rotate/team/other", nil)
					m.write("team/third", map[string]any{"appid": otherAppID})

					if !works {
						resp, err := m.request(logical.ReadOperation, "token/team/demo", nil)
						require.ErrorContains(t, err, key)
						require.ErrorContains(t, err, entry.says)
						require.ErrorContains(t, err, "write")
						require.NotContains(t, shown(t, resp, err), "c0ntent")
						require.Equal(t, stateFailing, info["demo"].(map[string]any)["state"])
					}
					time.Sleep(walMinAge + time.Second)
					resp, err := m.request(logical.RollbackOperation, "", nil)
					require.NotContains(t, shown(t, resp, err), "c0ntent")
					require.NotContains(t, m.logs.String(), "c0ntent")

					m.ok(logical.DeleteOperation, "config/team/demo", nil)
					m.write("team/demo", nil)
					m.read("team/demo")
					m.signs("team/demo")
					m.ok(logical.UpdateOperation, "rotate/team/demo", nil)
				})
			})
		}
	}
}

// A history that cannot be read keeps every account of its appid from working. It goes
// with the last of them, and not before: how often they forced is not known then.
func TestAHistoryThatCannotBeReadGoesWithTheLastAccountOfItsAppID(t *testing.T) {
	for kind, entry := range unreadableEntries {
		t.Run(kind, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				key := historyKey(account1Config())
				m.write("a", nil)
				m.write("b", nil)
				m.ok(logical.UpdateOperation, "rotate/a", nil)
				held := m.read("a")["access_token"]
				m.ticks(6) // the forced call is in the history alone
				m.close()
				m.put(key, entry.value)
				m.open()
				for _, request := range []struct {
					op   logical.Operation
					path string
					data map[string]any
				}{
					{logical.ReadOperation, "token/a", nil},
					{logical.ReadOperation, "status/b", nil},
					{logical.UpdateOperation, "rotate/b", nil},
					{logical.UpdateOperation, "config/a", account1(nil)},
					{logical.UpdateOperation, "config/c", account1(map[string]any{"verify": false})},
				} {
					status, text := m.refused(request.op, request.path, request.data)
					require.Equal(t, http.StatusInternalServerError, status)
					require.Contains(t, text, key)
					require.Contains(t, text, testAppID)
					require.Contains(t, text, "delete every account with this appid and write them anew")
				}
				require.Equal(t, testAppID, m.config("a")["appid"])

				m.ok(logical.DeleteOperation, "config/a", nil)
				require.Equal(t, entry.value, m.snapshot()[key], "another one has the appid")
				m.refused(logical.ReadOperation, "token/b", nil)
				m.storage.failing(func(op, at string) error {
					if op == "delete" && at == key {
						return errStorage
					}
					return nil
				})
				require.Error(t, m.try(logical.DeleteOperation, "config/b", nil))
				require.NotNil(t, m.config("b"), "it can be repeated")
				m.storage.failing(nil)
				m.ok(logical.DeleteOperation, "config/b", nil)

				calls := m.calls()
				m.write("a", map[string]any{"verify": false})
				require.Equal(t, held, m.read("a")["access_token"])
				require.Equal(t, calls+1, m.calls(), "WeChat was asked whether it is dead")
				m.ok(logical.UpdateOperation, "rotate/a", nil)
				require.Equal(t, forcedPerDay-1, m.statusOf("a")["rotations_remaining"])
				m.ok(logical.DeleteOperation, "config/a", nil)
				m.reopen()
				m.write("a", nil)
				require.Equal(t, forcedPerDay-1, m.statusOf("a")["rotations_remaining"], "it is counted again")
			})
		})
	}
}

func TestAnAppIDWithTwoDotsIsAnAppID(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for _, appid := range []string{"wx..0123", "../../config/demo", ".."} {
			m.sim.SetAccount(appid, wechatsim.Account{Secret: testSecret})
			m.write("demo", map[string]any{"appid": appid})
			m.read("demo")
			m.ok(logical.UpdateOperation, "rotate/demo", nil)
			m.reopen()
			require.Equal(t, forcedPerDay-1, m.statusOf("demo")["rotations_remaining"])
			require.Equal(t, appid, m.config("demo")["appid"])
		}
	})
}

// fieldLimits are the longest texts that the fields of each path take, in bytes; the
// others take words of a fixed list, or numbers.
var fieldLimits = map[string]map[string]int{
	"config/":       {"appid": maxCredential, "secret": maxCredential, "base_url": maxURL, "proxy_url": maxURL, "ca_pem": maxCAPEM, "request_timeout": maxText, "sync_interval": maxText, "max_ttl": maxText, "verify": maxText},
	"token/":        {},
	"refresh/":      {"rejected_token": maxText},
	"code2session/": {"js_code": maxCode, "include_session_key": maxText},
	"oauth2/":       {"code": maxCode},
	"sign/":         {"url": maxPageURL},
	"ticket/":       {"type": maxText},
	"rotate/":       {"revoke": maxText},
	"clear-quota/":  {},
	"status/":       {"recursive": maxText},
}

func TestEveryFieldHasALimit(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		paths := map[string]bool{}
		for _, path := range m.Paths {
			area, _, _ := strings.Cut(strings.TrimPrefix(path.Pattern, "^"), "(")
			limits, known := fieldLimits[area]
			if !strings.Contains(path.Pattern, "(?P<name>") {
				continue // a list; its fields are the item's, too
			}
			require.True(t, known, area)
			paths[area] = true
			for field := range path.Fields {
				limit := map[string]int{"name": maxText, "after": maxText, "limit": maxText, "recursive": maxText}[field]
				if own, ok := limits[field]; ok {
					limit = own
				}
				require.NotZero(t, limit, "%s has a field %s without a limit", area, field)
				value := strings.Repeat("9", limit+1)
				switch field {
				case "base_url", "proxy_url", "url":
					value = "https://" + strings.Repeat("9", limit)
				}
				for operation := range path.Operations {
					if area == "config/" && limit < maxText && operation != logical.CreateOperation && operation != logical.UpdateOperation {
						continue // it is not looked at, however long
					}
					data := map[string]any{field: value}
					if area == "config/" && field != "secret" {
						data["secret"] = testSecret
					}
					m.changesNothing(0, func() {
						resp, err := m.request(operation, area+"demo", data)
						require.True(t, err != nil || resp.IsError(), "%s %s %s is not refused", operation, area, field)
						status, text := m.status(resp, err)
						require.Equal(t, http.StatusBadRequest, status, "%s %s %s", operation, area, field)
						require.Contains(t, text, field)
						require.NotContains(t, text, "99999999")
					})
				}
			}
		}
		require.Len(t, paths, len(fieldLimits))
	})
}

func TestRefusedWritesKeepNoTransport(t *testing.T) {
	cert, _ := certificate(t)
	for name, change := range map[string]func(n int) map[string]any{
		"proxy_url": func(n int) map[string]any {
			return map[string]any{"proxy_url": fmt.Sprintf("http://127.0.1.%d:3128", n)}
		},
		"ca_pem": func(n int) map[string]any { return map[string]any{"ca_pem": strings.Repeat(cert+"\n", n+1)} },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				kept := m.keeper.client.Ways
				before, stored := kept(), m.snapshot()
				for n := range 100 {
					data := account1(change(n))
					data["base_url"] = "https://192.0.2.1"
					for _, account := range []string{"config/demo", "config/new"} {
						status, _ := m.refused(logical.UpdateOperation, account, data)
						require.Equal(t, http.StatusBadGateway, status)
					}
				}
				synctest.Wait()
				require.Equal(t, before, kept())
				require.Equal(t, stored, m.snapshot())
			})
		})
	}
}
