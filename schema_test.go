package wechat

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// schemas holds what versions of the plugin have written: one folder a version, one
// file a storage key, "%2F" in its name standing for a slash. Files of a released
// version are never changed. What is written today is in the folder current, which a
// release copies into one of its own.
const schemas = "testdata/schema"

// holdSchema puts what a version has written into storage.
func (m *mount) holdSchema(folder string) {
	m.t.Helper()
	files, err := os.ReadDir(filepath.Join(schemas, folder))
	require.NoError(m.t, err)
	require.NotEmpty(m.t, files)
	for _, file := range files {
		value, err := os.ReadFile(filepath.Join(schemas, folder, file.Name()))
		require.NoError(m.t, err)
		key := keyOfFile(file.Name())
		require.NoError(m.t, m.storage.Put(m.t.Context(), &logical.StorageEntry{Key: key, Value: value}))
	}
}

// Whatever a release has written is read, and used without a call of WeChat.
func TestEveryEarlierSchemaIsRead(t *testing.T) {
	folders, err := os.ReadDir(schemas)
	require.NoError(t, err)
	for _, folder := range folders {
		if folder.Name() == "v0.1.0" {
			continue // it was never released
		}
		t.Run(folder.Name(), func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.close()
				m.holdSchema(folder.Name())
				var cfg config
				require.NoError(t, json.Unmarshal(mustGet(m, "config/team/shop").Value, &cfg))
				time.Sleep(time.Until(cfg.SecretSetTime.Add(10 * time.Second)))
				m.open()
				time.Sleep(startHoldOff)
				synctest.Wait()

				require.Equal(t, map[string]any{
					"appid": testAppID, "secret_set_time": timestamp(cfg.SecretSetTime), "base_url": testURL, "proxy_url": "", "ca_pem": "",
					"request_timeout": int64(7), "sync_interval": int64(0), "max_ttl": int64(60),
				}, m.ok(logical.ReadOperation, "config/team/shop", nil).Data)
				read := m.ok(logical.ReadOperation, "token/team/shop", nil).Data
				require.Equal(t, "TOKEN-of-schema-v1", read["access_token"])
				require.Equal(t, "2026-11-25T13:59:59Z", read["expire_time"])
				require.Equal(t, "2026-11-25T11:59:59.5Z", read["last_vault_rotation"])
				status := m.statusOf("team/shop")
				require.Equal(t, stateHealthy, status["state"])
				require.Equal(t, forcedPerDay-1, status["rotations_remaining"])
				require.Equal(t, revocationPending, status["revocation"])
				require.Zero(t, m.calls())
				m.ticks(3)
				seen, _ := m.forcedCalls()
				require.Equal(t, 1, seen, "the second of the two")
				m.reopen()
				time.Sleep(startHoldOff)
				synctest.Wait()
				require.Equal(t, []string{"config/team/shop", historyKey(&cfg)}, slices.DeleteFunc(m.stored(), func(key string) bool {
					return key == ticketKey(jsapiTicket, &cfg) || strings.HasPrefix(key, "wal/")
				}), "nothing of an earlier form is left")
			})
		})
	}
}

// Of what builds before the first release wrote the account is read; WeChat is asked for its
// token, and the rest is removed.
func TestEntriesOfBeforeTheFirstReleaseAreReplaced(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.close()
		m.holdSchema("v0.1.0")
		var cfg config
		require.NoError(t, json.Unmarshal(mustGet(m, "config/team/shop").Value, &cfg))
		require.NoError(t, m.storage.Delete(t.Context(), "wal/1ddbce57-66b8-cc55-0402-2da19412ff54"))
		time.Sleep(time.Until(cfg.SecretSetTime.Add(10 * time.Second)))
		m.open()
		m.read("team/shop")
		require.Equal(t, 1, m.calls())
		require.Equal(t, forcedPerDay, m.statusOf("team/shop")["rotations_remaining"])
		time.Sleep(startHoldOff)
		synctest.Wait()
		require.Equal(t, []string{"config/team/shop", historyKey(&cfg)}, m.stored())
	})
}

func TestANewerSchemaIsAClearErrorForItsAccountOnly(t *testing.T) {
	for _, key := range []string{"config/demo", historyKey(account1Config())} {
		t.Run(key, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("demo", nil)
				m.ok(logical.UpdateOperation, "rotate/demo", nil)
				m.write("other", map[string]any{"appid": otherAppID})
				var entry map[string]any
				require.NoError(t, json.Unmarshal(mustGet(m, key).Value, &entry))
				entry["version"] = schemaVersion + 1
				require.NoError(t, writeEntry(t.Context(), m.storage, key, entry))
				m.reopen()
				status, text := m.refused(logical.ReadOperation, "token/demo", nil)
				require.Equal(t, http.StatusInternalServerError, status)
				require.Contains(t, text, "schema version 2")
				require.Contains(t, text, key)
				m.read("other")
				require.Equal(t, []string{"demo", "other"}, m.ok(logical.ListOperation, "status/", nil).Data["keys"])
			})
		})
	}
}

// keyOfFile is the storage key that a file in testdata stands for.
func keyOfFile(name string) string { return strings.ReplaceAll(name, "%2F", "/") }

func TestOfSeveralOlderTokensTheLatestCounts(t *testing.T) {
	for _, stale := range []string{"a", "b"} {
		t.Run(stale+" is stale", func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("a", nil)
				m.write("b", nil)
				m.close()
				dead := m.sim.Current(testAppID)
				time.Sleep(time.Minute)
				current := m.sim.ForceOutside(testAppID) // which the other name's comparison has noticed
				require.NoError(t, m.storage.Delete(t.Context(), historyKey(account1Config())))
				for _, name := range []string{"a", "b"} {
					cfg, err := loadConfig(t.Context(), m.storage, name)
					require.NoError(t, err)
					value, at := current, time.Now()
					if name == stale {
						value, at = dead, at.Add(-time.Minute)
					}
					require.NoError(t, writeEntry(t.Context(), m.storage, "token/"+name, map[string]any{
						"version": 1, "account_id": cfg.ID, "access_token": value, "last_vault_rotation": at.UTC().Truncate(time.Millisecond),
						"expire_time": at.Add(maxLifetime).UTC().Truncate(time.Second), "credentials": cfg.Credentials,
					}))
				}
				m.open()
				m.read("b")
				m.read("a")
			})
		})
	}
}
