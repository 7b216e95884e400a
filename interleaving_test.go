package wechat

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// These tests hold one thing in the middle and do another meanwhile.

// at calls do once, before the first operation op on key. Other operations go on
// meanwhile, also such ones.
func (m *mount) at(op, key string, do func()) {
	var done atomic.Bool
	m.storage.hooked(func(o, k string) {
		if o == op && k == key && done.CompareAndSwap(false, true) {
			do()
		}
	})
}

// rollbackTick is what Vault does once a minute.
func (m *mount) rollbackTick() {
	m.t.Helper()
	_, err := m.HandleRequest(m.t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: m.storage})
	require.NoError(m.t, err)
}

func TestClosingTheMountWithRequestsInFlight(t *testing.T) {
	for _, path := range []string{"rotate/", "refresh/"} {
		t.Run(path, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				names := []string{"a", "b", "c"}
				for _, name := range names {
					m.write(name, nil)
				}
				time.Sleep(time.Minute)
				m.sim.Inject(wechatsim.Fault{Kind: "hang"})
				var all sync.WaitGroup
				for _, name := range names {
					all.Go(func() { require.Error(t, m.try(logical.UpdateOperation, path+name, nil)) })
				}
				synctest.Wait()
				m.Cleanup(t.Context())
				all.Wait() // a panic in one would end the plugin, with all its mounts
			})
		})
	}
}

func TestAMountThatIsClosedWhileItLoadsStaysClosed(t *testing.T) {
	for _, at := range [][2]string{{"list", "config/"}, {"get", "config/demo"}, {"get", historyKey(account1Config())}} {
		t.Run(at[0]+" "+at[1], func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				for _, name := range []string{"b", "c", "d"} {
					m.sim.SetAccount("wx-"+name, wechatsim.Account{Secret: testSecret})
					m.write(name, map[string]any{"appid": "wx-" + name})
				}
				m.close()
				time.Sleep(rotationPeriod) // the tokens are due
				held, goOn := make(chan struct{}), make(chan struct{})
				m.at(at[0], at[1], func() { close(held); <-goOn })
				m.backend = m.mountedOn(m.storage)
				require.NoError(t, m.Initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}))
				<-held
				for _, name := range []string{"b", "c"} {
					m.ok(logical.ReadOperation, "status/"+name, nil)
				}
				m.Cleanup(t.Context())
				close(goOn)
				m.keeper.busy.Wait()
				ops, calls := m.storage.count(), m.calls()
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				require.Equal(t, ops, m.storage.count())
				require.Equal(t, calls, m.calls())
			})
		})
	}
}

func TestAReaderWhoseLoadFailsForgetsNoAccount(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.reopen() // within the hold-off nothing is woken
		m.keeper.invalidate(historyKey(account1Config()))
		ctx, cancel := context.WithCancel(t.Context())
		m.storage.failing(func(op, key string) error {
			if op == "get" && key == historyKey(account1Config()) {
				cancel() // the reader goes away
				return context.Canceled
			}
			return nil
		})
		_, err := m.requestContext(ctx, logical.ReadOperation, "token/demo", nil)
		require.Error(t, err)
		m.storage.failing(nil)
		m.ticks(5)
		seen, _ := m.forcedCalls()
		require.Equal(t, 2, seen, "the revocation was lost")
		calls := m.calls()
		time.Sleep(rotationPeriod)
		synctest.Wait()
		require.Greater(t, m.calls(), calls, "the background never looked again")
	})
}

func TestAnAccountThatWasChangedElsewhereIsNotForgotten(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		cfg, err := loadConfig(t.Context(), m.storage, "demo")
		require.NoError(t, err)
		cfg.ID = "another"
		require.NoError(t, storeConfig(t.Context(), m.storage, "demo", cfg))
		time.Sleep(rotationPeriod + time.Minute)
		synctest.Wait()
		require.Equal(t, "another", m.keeper.known("demo").cfg.ID)
	})
}

func TestAnAccountMayGetAnAppIDWhoseTokenIsReplacedMeanwhile(t *testing.T) {
	for _, at := range []string{"config/x", "token/x", "wal/"} {
		t.Run(at, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("y", nil)
				m.write("x", map[string]any{"appid": otherAppID})
				var begun atomic.Bool
				var rotation sync.WaitGroup
				m.storage.hooked(func(op, key string) {
					if op == "put" && (key == at || at == framework.WALPrefix && len(key) > len(at) && key[:len(at)] == at) && begun.CompareAndSwap(false, true) {
						rotation.Go(func() { m.ok(logical.UpdateOperation, "rotate/y", nil) })
						time.Sleep(time.Second) // it waits, or comes before
					}
				})
				m.write("x", nil) // to y's appid
				rotation.Wait()
				m.storage.hooked(nil)
				synctest.Wait()
				m.read("x") // with a token that WeChat accepts
			})
		})
	}
}

func TestTheTickDoesNotWaitForWeChat(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"request_timeout": 30, "verify": false})
		// Of an earlier write whose withdrawal failed.
		_, err := framework.PutWAL(t.Context(), m.storage, walChange, &change{Name: "demo", Platform: "wechat", Identity: weixinIdentity(account1Config())})
		require.NoError(t, err)
		time.Sleep(walMinAge + time.Second)
		m.sim.Inject(wechatsim.Fault{Kind: "hang"})
		var reader sync.WaitGroup
		reader.Go(func() { m.refused(logical.ReadOperation, "token/demo", nil) })
		synctest.Wait()
		start := time.Now()
		m.rollbackTick()
		require.Zero(t, time.Since(start))
		reader.Wait()
		m.sim.ClearFaults()
		m.ticks(2)
		require.Empty(t, m.walEntries())
	})
}

func TestAnAnnouncementThatFailedButWasWrittenIsNotCarriedOut(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.storage.hooked(func(op, key string) {
			if op == "put" && strings.HasPrefix(key, tokenRecords) {
				m.storage.hooked(nil)
				m.storage.losingAnswer(1)
			}
		})
		m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		require.Nil(t, m.history().Leak, "it is taken back")
		m.reopen()
		m.ticks(5)
		seen, _ := m.forcedCalls()
		require.Zero(t, seen)
		require.Nil(t, m.statusOf("demo")["revocation"])
	})
}

// standby is another node of the cluster, on the same storage, that serves reads
// and may not write.
func (m *mount) standby() *mount {
	m.t.Helper()
	other := *m
	other.system = &logical.StaticSystemView{
		PluginEnvironment: m.system.PluginEnvironment, ReplicationStateVal: consts.ReplicationPerformanceStandby,
	}
	other.backend = other.mountedOn(m.storage)
	require.NoError(m.t, other.Initialize(m.t.Context(), &logical.InitializationRequest{Storage: m.storage}))
	return &other
}

func TestAStandbyHandsOutNoTokenThatTheActiveNodeHasKilled(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		standby := m.standby()
		defer standby.Cleanup(t.Context())
		// The active node forces for demo, and then cannot reach WeChat for twin.
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: 503, Mode: "normal"})
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		// An invalidation may come late: whether it has come makes no difference.
		for _, key := range []string{"", historyKey(account1Config())} {
			standby.InvalidateKey(t.Context(), key)
			for _, path := range []string{"token/demo", "token/twin", "status/twin"} {
				_, err := standby.request(logical.ReadOperation, path, nil)
				require.Equal(t, logical.ErrReadOnly, err, "the active node is to answer")
			}
		}
	})
}

func TestAStandbyLeavesTheWriteAheadLogAlone(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		standby := m.standby()
		defer standby.Cleanup(t.Context())
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		time.Sleep(walMinAge + time.Second)
		writes := m.storage.written()
		standby.rollbackTick()
		require.Equal(t, writes, m.storage.written())
		m.ticks(5)
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
	})
}

func TestATickAtEveryStepOfAnOperationDoesNoHarm(t *testing.T) {
	for name, do := range map[string]func(m *mount) error{
		"rotate": func(m *mount) error { return m.try(logical.UpdateOperation, "rotate/demo", nil) },
		"revoke": func(m *mount) error {
			return m.try(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		},
		"another appid": func(m *mount) error {
			return m.try(logical.UpdateOperation, "config/demo", map[string]any{"appid": otherAppID})
		},
		"delete": func(m *mount) error { return m.try(logical.DeleteOperation, "config/demo", nil) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("demo", nil)
				m.write("twin", nil)
				busy := false
				m.storage.hooked(func(_, _ string) {
					if busy {
						return
					}
					busy = true
					defer func() { busy = false }()
					_, err := m.HandleRequest(m.t.Context(), &logical.Request{
						Operation: logical.RollbackOperation, Storage: m.storage,
						Data: map[string]any{"immediate": true}, // whatever the age of the entries
					})
					require.NoError(m.t, err)
				})
				require.NoError(t, do(m))
				m.storage.hooked(nil)
				m.ticks(5)
				require.Empty(t, m.walEntries())
				m.read("twin")
				if name == "delete" {
					require.NotContains(t, m.stored(), "token/demo")
					return
				}
				m.read("demo")
				seen, _ := m.forcedCalls()
				require.Equal(t, map[string]int{"rotate": 1, "revoke": 2}[name], seen)
			})
		})
	}
}

func TestATokenThatWeChatHasDisownedIsNotServedAlthoughItsSuccessorCannotBeStored(t *testing.T) {
	for _, key := range []string{historyKey(account1Config())} {
		t.Run(key, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", map[string]any{"sync_interval": "5m"})
				m.sim.ForceOutside(testAppID)
				m.storage.failing(func(op, k string) error {
					if op == "put" && k == key {
						return errStorage
					}
					return nil
				})
				time.Sleep(5*time.Minute + time.Second)
				synctest.Wait()
				calls := m.calls()
				token := m.read("demo")["access_token"]
				status := m.statusOf("demo")
				require.Equal(t, stateDegraded, status["state"])
				require.Equal(t, string(upstream.ClassStorage), status["last_error"].(map[string]any)["class"])
				require.Equal(t, calls, m.calls(), "WeChat is not asked for it again")
				m.storage.failing(nil)
				time.Sleep(2 * time.Minute)
				require.Equal(t, stateHealthy, m.statusOf("demo")["state"])
				require.Equal(t, calls, m.calls())
				m.reopen()
				require.Equal(t, token, m.read("demo")["access_token"])
				require.Equal(t, calls, m.calls())
			})
		})
	}
}

func TestATwinsForcedRefreshDoesNotMakeAFailingAccountForgotten(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", map[string]any{"verify": false, "secret": "wrong-secret-0123456789"})
		m.refused(logical.ReadOperation, "token/twin", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		synctest.Wait()
		calls := m.calls()
		require.Equal(t, "failing", m.statusOf("twin")["state"])
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		require.Greater(t, m.calls(), calls)
	})
}

func TestATokenOnItsWayIntoMemoryIsNotOvertakenByAForcedRefresh(t *testing.T) {
	for name, begin := range map[string]func(m *mount){
		"of a read":           func(m *mount) { m.read("twin") },
		"of a verified write": func(m *mount) { m.write("twin", map[string]any{"secret": testSecret}) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
				m.write("demo", nil)
				m.write("twin", map[string]any{"verify": false})
				var rotation sync.WaitGroup
				var begun sync.Once
				m.storage.hooked(func(op, key string) {
					switch {
					case op == "put" && key == historyKey(account1Config()):
						time.Sleep(time.Second) // the rotation comes after the reader's look at the token
					case op == "put" && key == historyKey(account1Config()):
						begun.Do(func() {
							rotation.Go(func() { m.ok(logical.UpdateOperation, "rotate/demo", nil) })
							time.Sleep(3 * time.Second)
						})
					}
				})
				begin(m) // a token that WeChat accepts when it is handed out
				m.storage.hooked(nil)
				rotation.Wait()
				m.read("twin")
			})
		})
	}
}

func TestTwinsThatNoticeAReplacementTogetherCountItOnce(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
		m.write("a", nil)
		m.write("b", nil)
		time.Sleep(time.Minute)
		m.sim.ForceOutside(testAppID)
		m.sim.SetLatency(100 * time.Millisecond)
		var reports sync.WaitGroup
		for _, name := range []string{"a", "b"} {
			reports.Go(func() { m.ok(logical.UpdateOperation, "refresh/"+name, nil) })
		}
		time.Sleep(50 * time.Millisecond) // both have reached WeChat, and nothing reaches it later
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable})
		reports.Wait()
		synctest.Wait()
		m.read("a")
		m.read("b")
	})
}

func TestAClosedMountCountsNoForcedRefresh(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.at("get", "config/demo", func() { m.Cleanup(t.Context()) })
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		m.open()
		require.Equal(t, forcedPerDay, m.statusOf("demo")["rotations_remaining"])
	})
}

func TestATickReadsNothingForPendingRevocations(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		const n = 50
		f := fleet(n)
		f.open(m, time.Hour)
		time.Sleep(lateWrites) // from here on a forced call is not recorded in the log as well
		m.sim.Inject(wechatsim.Fault{Kind: "reset", Mode: "forced"})
		for i := range n {
			m.refused(logical.UpdateOperation, "rotate/"+f.name(i), map[string]any{"revoke": true})
		}
		require.Equal(t, revocationPending, m.statusOf(f.name(n - 1))["revocation"])
		time.Sleep(walMinAge + time.Second)
		synctest.Wait()
		ops := m.storage.count()
		m.rollbackTick()
		require.LessOrEqual(t, m.storage.count()-ops, 1, "the framework lists its log")
	})
}

// leavingContext ends the request's context after a list.
type leavingContext struct {
	*faultyStorage
	leave func()
}

func (s *leavingContext) List(ctx context.Context, prefix string) ([]string, error) {
	defer s.leave()
	return s.faultyStorage.List(ctx, prefix)
}

func TestAListOfStatusesWhoseCallerLeavesIsNotEmpty(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := m.HandleRequest(ctx, &logical.Request{
			Operation: logical.ListOperation, Path: "status/", MountPoint: "wechat/",
			Storage: &leavingContext{m.storage, cancel},
		})
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestALateTokenOfAClosedInstanceBringsNoDeadOneBack(t *testing.T) {
	for _, rotates := range []bool{false, true} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			time.Sleep(time.Hour)
			m.sim.ForceOutside(testAppID)
			held, goOn := make(chan struct{}), make(chan struct{})
			m.at("put", historyKey(account1Config()), func() { close(held); <-goOn })
			var old sync.WaitGroup
			old.Go(func() { _ = m.try(logical.UpdateOperation, "refresh/demo", nil) })
			<-held
			first := m.backend
			first.Cleanup(t.Context())
			m.open()
			m.storage.hooked(nil)
			if rotates {
				m.ok(logical.UpdateOperation, "rotate/demo", nil)
			} else {
				m.ok(logical.UpdateOperation, "refresh/demo", nil)
			}
			close(goOn)
			old.Wait()
			first.keeper.busy.Wait()
			before := m.read("demo")
			time.Sleep(time.Minute)
			m.ok(logical.UpdateOperation, "refresh/demo", nil) // the first comparison
			m.reopen()
			time.Sleep(time.Minute)
			after := m.read("demo")
			require.Equal(t, before["access_token"], after["access_token"])
			require.Equal(t, before["last_vault_rotation"], after["last_vault_rotation"], "rotates %t", rotates)
		})
	}
}
