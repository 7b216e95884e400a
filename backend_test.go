package wechat

import (
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// clockAhead is how far the machine's clock was set ahead, in nanoseconds. The test
// that sets it puts it back to zero.
var clockAhead atomic.Int64

func TestMain(m *testing.M) {
	machineClock = func(steady time.Time) time.Time { return steady.Round(0).Add(time.Duration(clockAhead.Load())) }
	// A dependency of the SDK starts this one with the process.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.opencensus.io/stats/view.(*worker).start"))
}

func TestAnAccountGoesInAndItsTokenComesOut(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		require.Nil(t, m.ok(logical.UpdateOperation, "config/demo", account1(nil)))
		require.Equal(t, 1, m.calls(), "the write tries the credentials once")

		got := m.read("demo")
		require.Equal(t, 1, m.calls(), "the first read is served from the cache")
		require.Equal(t, testAppID, got["appid"])
		require.Equal(t, int64(240), got["ttl"])
		require.Equal(t, int64(6910), got["rotation_period"])
		require.Len(t, got, 6)
		for _, field := range []string{"last_vault_rotation", "expire_time"} {
			at, err := time.Parse(time.RFC3339, got[field].(string))
			require.NoError(t, err)
			require.Equal(t, time.UTC, at.Location())
		}
		require.Equal(t, []string{"config/demo", historyKey(account1Config())}, m.stored(), "nothing else is left in storage")
	})
}

func TestTheFactoryOnlyWires(t *testing.T) {
	// At registration there is neither storage nor a system view.
	b, err := Factory(t.Context(), &logical.BackendConfig{Logger: hclog.NewNullLogger()})
	require.NoError(t, err)
	require.Equal(t, logical.TypeLogical, b.Type())
	require.Equal(t, Version, b.(*backend).PluginVersion().Version)
	require.Equal(t, []string{"config/", "held/"}, b.SpecialPaths().SealWrapStorage)
	b.Cleanup(t.Context())
}

func TestHelpAndOpenAPI(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		root := m.ok(logical.HelpOperation, "", nil)
		require.Contains(t, root.Data["help"], "stable access tokens")
		for _, path := range []string{"config/demo", "config", "token/demo", "token", "sign/demo", "ticket/demo"} {
			help := m.ok(logical.HelpOperation, path, nil).Data["help"].(string)
			require.Contains(t, help, "DESCRIPTION", path)
		}
		doc := root.Data["openapi"].(*framework.OASDocument)
		ids := map[string]bool{}
		for path, item := range doc.Paths {
			for _, op := range []*framework.OASOperation{item.Get, item.Post, item.Delete} {
				if op != nil {
					require.False(t, ids[op.OperationID], "operation id %s twice", op.OperationID)
					ids[op.OperationID] = true
					require.NotEmpty(t, op.Summary, path)
				}
			}
		}
		for _, id := range []string{
			"wechat-read-token", "wechat-list-tokens", "wechat-list-tokens-below",
			"wechat-configure-account", "wechat-read-account", "wechat-delete-account",
			"wechat-list-accounts", "wechat-list-accounts-below",
			"wechat-read-ticket", "wechat-sign-page", "wechat-read-signature-of-page",
		} {
			require.Contains(t, ids, id)
		}
		secret := m.Route("config/x").Fields["secret"]
		require.True(t, secret.DisplayAttrs.Sensitive)
	})
}

func TestReplicationStatesGateWritesAndCalls(t *testing.T) {
	for name, c := range map[string]struct {
		state    consts.ReplicationState
		local    bool
		writable bool
	}{
		"active node":                            {0, false, true},
		"performance standby":                    {consts.ReplicationPerformanceStandby, false, false},
		"performance secondary":                  {consts.ReplicationPerformanceSecondary, false, false},
		"local mount on a performance secondary": {consts.ReplicationPerformanceSecondary, true, true},
		"disaster recovery secondary":            {consts.ReplicationDRSecondary, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("warm", nil)
				m.write("cold", map[string]any{"verify": false})
				m.close()
				m.system.ReplicationStateVal, m.system.LocalMountVal = c.state, c.local
				m.open()
				before, writes := m.calls(), m.storage.written()

				for _, path := range []string{"token/warm", "status/warm"} {
					_, err := m.request(logical.ReadOperation, path, nil)
					if c.writable {
						require.NoError(t, err)
					} else {
						require.Equal(t, logical.ErrReadOnly, err, "what is in memory there may be stale: %s", path)
					}
				}
				require.Equal(t, before, m.calls())
				m.ok(logical.ReadOperation, "config/warm", nil) // which storage answers
				require.Equal(t, []string{"cold", "warm"}, m.ok(logical.ListOperation, "token/", nil).Data["keys"])

				_, err := m.request(logical.ReadOperation, "token/cold", nil)
				_, writeErr := m.request(logical.UpdateOperation, "config/cold", account1(nil))
				time.Sleep(3 * time.Hour) // the warm token is due
				synctest.Wait()
				if c.writable {
					require.NoError(t, err)
					require.NoError(t, writeErr)
					require.Greater(t, m.calls(), before)
					return
				}
				require.Equal(t, logical.ErrReadOnly, err, "Vault forwards on the bare error only")
				if c.state != consts.ReplicationDRSecondary { // which answers no requests
					require.Equal(t, logical.ErrReadOnly, writeErr)
					require.Equal(t, before, m.calls())
					require.Equal(t, writes, m.storage.written())
				}
			})
		})
	}
}

// countingSystem counts how often Vault is asked for its replication state.
type countingSystem struct {
	*logical.StaticSystemView
	asked int
}

func (s *countingSystem) ReplicationState() consts.ReplicationState {
	s.asked++
	return s.StaticSystemView.ReplicationState()
}

func TestTheReplicationStateIsAskedForOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counting := &countingSystem{StaticSystemView: &logical.StaticSystemView{}}
		system := &cachedSystemView{SystemView: counting}
		for range 1000 {
			system.ReplicationState()
		}
		require.Equal(t, 1, counting.asked)
		counting.ReplicationStateVal = consts.ReplicationPerformanceStandby
		time.Sleep(replicationMemory)
		require.Equal(t, consts.ReplicationPerformanceStandby, system.ReplicationState())
		require.Equal(t, 2, counting.asked)
	})
}

func TestAnotherNodesChangeIsSeen(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		first := m.read("demo")

		// Another node stores another token; this one reads on from memory until
		// it is told.
		r := m.history()
		r.Value = m.sim.ForceOutside(testAppID)
		require.NoError(t, writeEntry(t.Context(), m.storage, historyKey(account1Config()), r))
		m.InvalidateKey(t.Context(), historyKey(account1Config()))
		require.NotEqual(t, first["access_token"], m.read("demo")["access_token"])

		require.NoError(t, m.storage.Delete(t.Context(), "config/demo"))
		m.InvalidateKey(t.Context(), "config/demo")
		status, _ := m.refused(logical.ReadOperation, "token/demo", nil)
		require.Equal(t, http.StatusBadRequest, status)

		m.InvalidateKey(t.Context(), "config/never-there") // and nothing happens
		m.InvalidateKey(t.Context(), "elsewhere")
	})
}

func mustGet(m *mount, key string) *logical.StorageEntry {
	m.t.Helper()
	entry, err := m.storage.Get(m.t.Context(), key)
	require.NoError(m.t, err)
	require.NotNil(m.t, entry, key)
	return entry
}

func TestALoadInFlightDoesNotPutBackWhatIsStale(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.reopenWithoutBackground()
		// While the account is loaded, another node changes it: after its
		// configuration was read here, before its token is.
		m.storage.failing(func(op, key string) error {
			if op == "get" && key == historyKey(account1Config()) {
				m.keeper.invalidate("config/demo")
			}
			return nil
		})
		m.read("demo")
		m.storage.failing(nil)
		require.Nil(t, m.keeper.known("demo"), "the stale state was kept")
		m.read("demo")
		require.NotNil(t, m.keeper.known("demo"))
	})
}

// reopenWithoutBackground restarts as on a node that only serves reads.
func (m *mount) reopenWithoutBackground() {
	m.t.Helper()
	m.close()
	m.backend = m.mountedOn(m.storage)
}
