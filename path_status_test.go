package wechat

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestStatusTellsTheStateOfAnAccount(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		require.Equal(t, map[string]any{
			"appid": testAppID, "state": "pending", "last_vault_rotation": nil, "expire_time": nil, "next_refresh_time": nil,
			"last_success_time": nil, "last_error": nil, "consecutive_failures": 0, "next_attempt_time": nil,
			"rotations_remaining": 20, "revocation": nil, "rejections": 0, "last_rejection_time": nil,
			"tickets": nil,
		}, m.statusOf("demo"))

		token := m.read("demo")
		at := time.Now()
		got := m.statusOf("demo")
		require.Equal(t, "healthy", got["state"])
		require.Equal(t, token["last_vault_rotation"], got["last_vault_rotation"])
		require.Equal(t, token["expire_time"], got["expire_time"])
		require.Equal(t, timestamp(at.Add(rotationPeriod)), got["next_refresh_time"])
		require.Equal(t, timestamp(at), got["last_success_time"])

		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40164, Errmsg: "invalid ip 1.2.3.4 ipv6 ::ffff:1.2.3.4, not in whitelist rid: 65f0a1b2-0c3d4e5f-61728394"})
		time.Sleep(rotationPeriod)
		synctest.Wait()
		got = m.statusOf("demo")
		require.Equal(t, "degraded", got["state"])
		require.Equal(t, 1, got["consecutive_failures"])
		require.Equal(t, timestamp(time.Now().Add(30*time.Second)), got["next_attempt_time"])
		last := got["last_error"].(map[string]any)
		require.Equal(t, 40164, last["errcode"])
		require.Equal(t, "network admission", last["class"])
		require.Contains(t, last["message"], "1.2.3.4")
		require.NotContains(t, last, "rid", "with a token of the account it may open the AppSecret")
		require.Equal(t, timestamp(time.Now()), last["time"])
		require.Contains(t, last["advice"], "whitelist")
		require.Len(t, last, 5)

		time.Sleep(5 * time.Minute)
		require.Equal(t, "failing", m.statusOf("demo")["state"])
		require.Greater(t, m.statusOf("demo")["consecutive_failures"], 2)

		m.sim.ClearFaults()
		require.NotNil(t, m.statusOf("demo")["last_error"])
		m.write("demo", map[string]any{"verify": false}) // forgets the failure
		require.Nil(t, m.statusOf("demo")["last_error"])
		m.read("demo")
		require.Equal(t, "healthy", m.statusOf("demo")["state"])
		m.reopen()
		got = m.statusOf("demo")
		require.Equal(t, "healthy", got["state"])
		require.Nil(t, got["last_success_time"], "it lives in memory")
	})
}

func TestStatusOfAnAccountThatNeverWorked(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.sim.Inject(wechatsim.Fault{Kind: "reset"})
		m.refused(logical.ReadOperation, "token/demo", nil)
		got := m.statusOf("demo")
		require.Equal(t, "failing", got["state"])
		last := got["last_error"].(map[string]any)
		require.Nil(t, last["errcode"])
		require.Nil(t, last["rid"])
		require.Equal(t, "unreachable", last["class"])
	})
}

func TestStatusOfManyAccountsInOneCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		const n = 10_000
		var names []string
		at, end := wallClock().UTC(), wallClock().UTC().Add(2*time.Hour)
		r := &record{Version: schemaVersion, Credential: kept.Credential{Value: "a-token-of-which-nothing-is-shown", Rotated: at, Timed: at, Shown: end, End: end}}
		cfg := newConfig()
		cfg.Secret = testSecret
		for i := range n {
			name := fmt.Sprintf("team-%d/app-%05d", i%7, i)
			names = append(names, name)
			cfg.ID, cfg.AppID = fmt.Sprint(i), fmt.Sprintf("wx%d", i)
			r.Names = map[string]admission{name: {cfg.ID, cfg.Credentials}}
			require.NoError(t, storeConfig(t.Context(), m.storage, name, cfg))
			require.NoError(t, writeEntry(t.Context(), m.storage, historyKey(cfg), r))
		}
		m.reopen()
		<-m.keeper.loaded
		slices.Sort(names)

		ops := m.storage.count()
		resp := m.ok(logical.ListOperation, "status/", map[string]any{"recursive": true})
		require.Less(t, m.storage.count()-ops, 10, "the states come from memory")
		require.Equal(t, names, resp.Data["keys"])
		info := resp.Data["key_info"].(map[string]any)
		require.Len(t, info, n)
		require.Equal(t, map[string]any{
			"appid": "wx3", "state": "healthy", "expire_time": timestamp(r.Shown),
		}, info["team-3/app-00003"])
		raw, err := json.Marshal(resp.Data)
		require.NoError(t, err)
		require.NotContains(t, string(raw), r.Value)
		require.NotContains(t, string(raw), testSecret)

		top := m.ok(logical.ListOperation, "status/", nil)
		require.Len(t, top.Data["keys"], 7)
		require.Empty(t, top.Data["key_info"])
		team := m.ok(logical.ListOperation, "status/team-3/", nil)
		require.Contains(t, team.Data["key_info"], "app-00003")

		var paged []string
		for after := ""; ; after = paged[len(paged)-1] {
			resp := m.ok(logical.ListOperation, "status/", map[string]any{"recursive": true, "after": after, "limit": 3000})
			keys, _ := resp.Data["keys"].([]string)
			if len(keys) == 0 {
				break
			}
			require.LessOrEqual(t, len(keys), 3000)
			paged = append(paged, keys...)
		}
		require.Equal(t, names, paged)
	})
}

func TestAnAccountThatCannotBeReadHidesNoOther(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("later", nil)
		require.NoError(t, m.storage.Put(t.Context(), &logical.StorageEntry{Key: "config/later", Value: []byte(`{"version": 99}`)}))
		m.reopen()
		info := m.ok(logical.ListOperation, "status/", nil).Data["key_info"].(map[string]any)
		require.Equal(t, "healthy", info["demo"].(map[string]any)["state"])
		require.Equal(t, map[string]any{"appid": nil, "state": "failing", "expire_time": nil}, info["later"])
	})
}

func TestStatusShowsNeitherTokenNorSecret(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		token := m.read("demo")["access_token"].(string)
		for _, answer := range []map[string]any{
			m.statusOf("demo"),
			m.ok(logical.ListOperation, "status/", nil).Data,
			m.ok(logical.UpdateOperation, "refresh/demo", map[string]any{"rejected_token": token}).Data,
		} {
			raw, err := json.Marshal(answer)
			require.NoError(t, err)
			require.False(t, strings.Contains(string(raw), token) || strings.Contains(string(raw), testSecret))
		}
	})
}
