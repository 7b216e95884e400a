package wechat

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
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
				var tok token
				require.NoError(t, json.Unmarshal(mustGet(m, "token/team/shop").Value, &tok))
				m.backend = m.mountedOn(m.storage) // and nothing in the background

				require.Equal(t, map[string]any{
					"appid": testAppID, "secret_set_time": timestamp(cfg.SecretSetTime), "base_url": testURL, "proxy_url": "", "ca_pem": "",
					"request_timeout": int64(7), "sync_interval": int64(0), "max_ttl": int64(60),
				}, m.ok(logical.ReadOperation, "config/team/shop", nil).Data)
				read := m.ok(logical.ReadOperation, "token/team/shop", nil).Data
				require.Equal(t, tok.AccessToken, read["access_token"])
				require.Equal(t, timestamp(tok.ExpireTime), read["expire_time"])
				status := m.statusOf("team/shop")
				require.Equal(t, stateHealthy, status["state"])
				require.Equal(t, forcedPerDay-1, status["rotations_remaining"])
				require.Equal(t, revocationPending, status["revocation"])
				if entry, err := m.storage.Get(t.Context(), "ticket/jsapi/team/shop"); err == nil && entry != nil {
					ticket := m.ok(logical.ReadOperation, "ticket/team/shop", nil).Data
					require.Equal(t, "TICKET-of-schema-v1", ticket["ticket"])
				}
				require.Zero(t, m.calls())
			})
		})
	}
}

// Builds before the first release counted epochs from 1, told no upstreams apart and noted
// no credentials. Of what they wrote the account is read; WeChat is asked for its token.
func TestEntriesOfBeforeTheFirstReleaseAreReplaced(t *testing.T) {
	for name, sameKey := range map[string]bool{"where the history is today": true, "where no history is today": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.close()
				m.holdSchema("v0.1.0")
				var cfg config
				require.NoError(t, json.Unmarshal(mustGet(m, "config/team/shop").Value, &cfg))
				older := mustGet(m, "rotation/"+cfg.AppID)
				if sameKey { // as at WeChat itself
					older.Key = historyKey(&cfg)
					require.NoError(t, m.storage.Put(t.Context(), older))
				}
				require.NoError(t, m.storage.Delete(t.Context(), "wal/1ddbce57-66b8-cc55-0402-2da19412ff54"))
				old := mustGet(m, "token/team/shop")
				old.Value = bytes.Replace(old.Value, []byte(`"epoch":1`), []byte(`"epoch":0`), 1) // the answer of that call was lost
				require.NoError(t, m.storage.Put(t.Context(), old))
				time.Sleep(time.Until(cfg.SecretSetTime.Add(10 * time.Second)))
				m.open()

				m.read("team/shop")
				require.Equal(t, 1, m.calls())
				require.Equal(t, forcedPerDay, m.statusOf("team/shop")["rotations_remaining"])
				require.NotEqual(t, old.Value, mustGet(m, "token/team/shop").Value)
				time.Sleep(startHoldOff)
				synctest.Wait()
				entry, err := m.storage.Get(t.Context(), older.Key)
				require.NoError(t, err)
				if sameKey {
					require.NotEqual(t, older.Value, entry.Value)
				} else {
					require.Nil(t, entry)
				}
				token := m.read("team/shop")["access_token"]
				m.reopen()
				require.Equal(t, token, m.read("team/shop")["access_token"])
				require.Equal(t, 1, m.calls(), "what replaced them is read")
			})
		})
	}
}

func TestANewerSchemaIsAClearErrorForItsAccountOnly(t *testing.T) {
	for _, key := range []string{"config/demo", "token/demo", historyKey(account1Config())} {
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
