package wechat

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// Each of these tests shows one fault that turned a healthy account into an outage, or
// handed out a dead token, when it was reported.

// writesFail lets all that changes storage fail.
func writesFail(op, _ string) error {
	if op == "put" || op == "delete" {
		return errStorage
	}
	return nil
}

// deletesFail lets nothing be removed from storage.
func deletesFail(op, _ string) error {
	if op == "delete" {
		return errStorage
	}
	return nil
}

// tokenOrError reads a token, which has to be one that WeChat accepts if it is handed
// out at all.
func (m *mount) tokenOrError(name string) error {
	m.t.Helper()
	resp, err := m.request(logical.ReadOperation, "token/"+name, nil)
	if err == nil {
		err = resp.Error()
	}
	if err == nil {
		_, errcode := m.sim.Check(resp.Data["access_token"].(string))
		require.Zero(m.t, errcode, "a dead token was handed out")
	}
	return err
}

// setClock puts the machine's clock forward, until the test ends.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	t.Cleanup(func() { clockAhead.Store(0) })
	clockAhead.Store(int64(by))
}

func TestWhoWaitedWhileATwinForcedHandsOutNothingOfBefore(t *testing.T) {
	for name, slow := range map[string]time.Duration{
		"behind calls that hang":      0,
		"behind a slow storage entry": time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				for _, name := range []string{"a", "b", "c"} {
					m.write(name, nil)
				}
				m.reopenWithoutBackground() // which would ask before the readers do
				time.Sleep(rotationPeriod + time.Second)
				m.storage.hooked(func(op, key string) {
					if op == "put" && key == historyKey(account1Config()) {
						time.Sleep(slow)
					}
				})
				m.sim.Inject(wechatsim.Fault{Kind: "hang", Mode: "normal", Times: 1})
				m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable, Mode: "normal"})
				m.sim.SetLatency(2 * time.Second)
				var all sync.WaitGroup
				all.Go(func() { _ = m.tokenOrError("b") }) // while its call hangs, WeChat still accepts the old one
				synctest.Wait()
				all.Go(func() { require.NoError(t, m.try(logical.UpdateOperation, "rotate/a", nil)) })
				time.Sleep(slow + time.Millisecond) // the call has reached WeChat
				all.Go(func() { _ = m.tokenOrError("c") })
				all.Go(func() { _ = m.tokenOrError("a") })
				time.Sleep(10 * time.Second)
				all.Wait()
				require.NoError(t, m.tokenOrError("b"), "it has the token that the other name's refresh has brought")
				m.sim.ClearFaults()
				time.Sleep(time.Minute)
				require.NoError(t, m.tokenOrError("b"))
				require.NoError(t, m.tokenOrError("c"))
			})
		})
	}
}

func TestARefusedForcedRefreshCostsItsTwinsNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		held := m.read("twin")["access_token"]
		calls := m.calls()
		m.sim.SetLatency(time.Second)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009})
		var rotation sync.WaitGroup
		rotation.Go(func() { m.refused(logical.UpdateOperation, "rotate/demo", nil) })
		synctest.Wait()
		require.Equal(t, held, m.read("twin")["access_token"], "sent while the call was in the air")
		rotation.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, held, m.read("twin")["access_token"])
		require.Equal(t, held, m.read("demo")["access_token"])
		require.Equal(t, calls+1, m.calls(), "only the forced call")
	})
}

func TestWhatWasNoticedIsNotForgottenWhileStorageTakesNoWrites(t *testing.T) {
	for name, meanwhile := range map[string]func(m *mount){
		"a rotate that fails":           func(m *mount) { m.refused(logical.UpdateOperation, "rotate/demo", nil) },
		"a write of max_ttl that fails": func(m *mount) { m.refused(logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60}) },
		"a delete that fails":           func(m *mount) { m.refused(logical.DeleteOperation, "config/demo", nil) },
		"another account that fails":    func(m *mount) { m.refused(logical.UpdateOperation, "config/demo", moveTo2(nil)) },
		"storage that cannot be read": func(m *mount) {
			m.storage.failing(faults["cut off"](1))
			m.refused(logical.DeleteOperation, "config/demo", nil)
		},
		"a restart with sync_interval 5m": func(m *mount) { m.reopen(); time.Sleep(startHoldOff + time.Minute); synctest.Wait() },
	} {
		for _, wechat := range []string{"", "status"} {
			t.Run(name+"/"+wechat, func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					m.write("demo", map[string]any{"sync_interval": "5m"})
					m.write("twin", nil)
					dead := m.read("demo")["access_token"]
					time.Sleep(minCallInterval)
					m.storage.failing(writesFail)
					m.sim.ForceOutside(testAppID)
					require.Equal(t, true, m.refresh(dead)["changed"])
					synctest.Wait()
					restart := strings.Contains(name, "restart")
					if wechat != "" && !restart {
						m.sim.Inject(wechatsim.Fault{Kind: wechat})
					}
					meanwhile(m)
					require.NoError(t, m.tokenOrError("demo"))
					if !restart { // the twin's comparisons are switched off, so a restart knows nothing of it
						require.NoError(t, m.tokenOrError("twin"))
					}
					m.storage.failing(nil)
					m.sim.ClearFaults()
					time.Sleep(2 * time.Minute)
					synctest.Wait()
					require.NoError(t, m.tokenOrError("demo"))
					require.Equal(t, stateHealthy, m.statusOf("demo")["state"])
				})
			})
		}
	}
}

func TestAVerifiedWriteSettlesADoubt(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.reopenWithoutBackground() // which would settle it before the write
		m.sim.Inject(wechatsim.Fault{Kind: "lost", Mode: "forced", Times: 1})
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"secret": testSecret})
		m.sim.Inject(wechatsim.Fault{Kind: "reset"})
		calls := m.calls()
		m.read("demo")
		require.Equal(t, calls, m.calls(), "the write's own answer has settled it")
	})
}

func TestATwinLearnsWhatAVerifiedWriteHasBrought(t *testing.T) {
	for name, write := range map[string]func(m *mount){
		"a new name":        func(m *mount) { m.write("new", nil) },
		"a name that moves": func(m *mount) { m.ok(logical.UpdateOperation, "config/other", account1(nil)) },
		"a write that fails": func(m *mount) {
			m.storage.failing(writesFail)
			m.refused(logical.UpdateOperation, "config/new", account1(nil))
			m.storage.failing(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("twin", nil) // without comparisons
				m.write("other", map[string]any{"appid": otherAppID})
				time.Sleep(time.Minute)
				m.sim.ForceOutside(testAppID)
				write(m)
				m.read("twin")
			})
		})
	}
}

func TestALateWriteOfAMountThatIsClosedDoesNoHarm(t *testing.T) {
	// A comparison of the old instance has found another token, and storage takes its
	// time with it while the mount is closed and opened again.
	late := func(t *testing.T, then func(t *testing.T, m *mount, landed *sync.WaitGroup)) {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			time.Sleep(time.Minute)
			m.sim.ForceOutside(testAppID)
			m.at("put", historyKey(account1Config()), func() { time.Sleep(20 * time.Second) })
			var landed sync.WaitGroup
			old := m.backend
			landed.Go(func() {
				_, _ = old.HandleRequest(t.Context(), &logical.Request{Operation: logical.UpdateOperation, Path: "refresh/demo", Storage: m.storage})
			})
			synctest.Wait()
			m.Cleanup(t.Context())
			m.open()
			then(t, m, &landed)
			landed.Wait()
			old.keeper.busy.Wait()
		})
	}
	t.Run("the token keeps its last_vault_rotation", func(t *testing.T) {
		late(t, func(t *testing.T, m *mount, landed *sync.WaitGroup) {
			landed.Wait()
			require.Equal(t, true, m.refresh(nil)["changed"])
			rotated := m.read("demo")["last_vault_rotation"]
			m.reopen()
			require.Equal(t, rotated, m.read("demo")["last_vault_rotation"])
		})
	})
	t.Run("a token that both have found", func(t *testing.T) {
		late(t, func(_ *testing.T, m *mount, landed *sync.WaitGroup) {
			m.refresh(nil) // before the late write lands
			m.read("demo")
			landed.Wait()
			time.Sleep(time.Minute)
			m.reopen()
			m.read("demo")
		})
	})
	t.Run("a deleted account leaves no token", func(t *testing.T) {
		late(t, func(t *testing.T, m *mount, landed *sync.WaitGroup) {
			m.ok(logical.DeleteOperation, "config/demo", nil)
			landed.Wait()
			m.ticks(2)
			for _, key := range m.stored() {
				require.Contains(t, key, tokenRecords, "nothing is left but the history")
			}
		})
	})
}

// An instance forces shortly after its start and crashes, and then a history that the
// instance before it was writing lands in storage: it agrees with the token of before.
func TestALateHistoryOfAClosedInstanceBringsNoDeadTokenBack(t *testing.T) {
	for name, c := range map[string]struct {
		data  map[string]any
		fault *wechatsim.Fault
	}{
		"a forced refresh":                           {nil, nil},
		"a forced refresh whose answer is lost":      {nil, &wechatsim.Fault{Kind: "lost", Mode: "forced"}},
		"a leak response":                            {map[string]any{"revoke": true}, nil},
		"a leak response whose first answer is lost": {map[string]any{"revoke": true}, &wechatsim.Fault{Kind: "lost", Mode: "forced"}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.write("twin", nil)
				m.ok(logical.UpdateOperation, "rotate/demo", nil)
				leaked := m.read("demo")["access_token"]
				m.read("twin")
				time.Sleep(10 * time.Minute)
				m.reopen()
				late, err := m.storage.InmemStorage.Get(t.Context(), historyKey(account1Config()))
				require.NoError(t, err)

				m.sim.OnCall(func(call wechatsim.Call) {
					if call.Forced { // from here on the instance is as good as dead
						m.storage.failing(writesFail)
					}
				})
				if c.fault != nil {
					m.sim.Inject(*c.fault)
				}
				_ = m.try(logical.UpdateOperation, "rotate/demo", c.data)
				m.close()
				m.storage.failing(nil)
				m.sim.ClearFaults()
				m.sim.OnCall(nil)
				require.NoError(t, m.storage.InmemStorage.Put(t.Context(), late))

				m.open()
				for _, name := range []string{"demo", "twin"} {
					require.NotEqual(t, leaked, m.read(name)["access_token"])
				}
				require.Equal(t, 18, m.statusOf("twin")["rotations_remaining"], "it counts")
				if c.data != nil {
					m.ticks(3)
					require.NotContains(t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
				}
				m.ticks(6)
				require.Empty(t, m.guards(), "when no late write can come the record goes")
			})
		})
	}
}

// What a late write has replaced in storage is written again, though nothing else
// happens.
func TestAHistoryThatALateWriteReplacedIsWrittenAgain(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		late := mustGet(m, historyKey(account1Config()))
		m.reopen()
		time.Sleep(forcedSpacing)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		require.NoError(t, m.storage.InmemStorage.Put(t.Context(), late))
		m.ticks(7)
		require.Len(t, m.history().Forced, 2)
		m.reopen()
		require.Equal(t, 18, m.statusOf("demo")["rotations_remaining"])
	})
}

func TestNoFenceIsEverUsedTwice(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		seen := map[int64]bool{}
		m.sim.OnCall(func(call wechatsim.Call) {
			if call.Forced {
				fence := m.look("demo").st.Fence
				require.False(t, seen[fence])
				seen[fence] = true
			}
		})
		for range 5 {
			m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40125, Mode: "forced", Times: 1})
			m.refused(logical.UpdateOperation, "rotate/demo", nil) // which is undone
			m.ok(logical.UpdateOperation, "rotate/demo", nil)
			time.Sleep(forcedSpacing)
			m.reopen()
			m.read("demo")
		}
		require.Len(t, seen, 10)
	})
}

func TestAForcedCallThatDidNothingLeavesTokenAndBudget(t *testing.T) {
	for name, fail := range map[string]func(m *mount){
		"no connection":        func(m *mount) { _ = m.pipe.Close() },
		"HTTP 404":             func(m *mount) { m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusNotFound}) },
		"HTTP 407":             func(m *mount) { m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusProxyAuthRequired}) },
		"HTTP 429":             func(m *mount) { m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusTooManyRequests}) },
		"quota":                func(m *mount) { m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009}) },
		"undocumented errcode": func(m *mount) { m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 99999}) },
	} {
		for _, revoke := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					m.write("demo", nil)
					m.write("twin", nil)
					held := m.read("demo")["access_token"]
					m.keeper.client.Close() // no connection is left over
					fail(m)
					_, text := m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": revoke})
					require.Contains(t, text, "was not replaced")
					for _, name := range []string{"demo", "twin"} {
						got := m.read(name)
						require.Equal(t, held, got["access_token"])
						require.Equal(t, int64(240), got["ttl"])
					}
					require.Equal(t, forcedPerDay, m.statusOf("demo")["rotations_remaining"])
					require.Nil(t, m.statusOf("demo")["revocation"])
					require.Empty(t, m.walEntries())
					m.reopen()
					require.Equal(t, forcedPerDay, m.statusOf("demo")["rotations_remaining"])
					require.Equal(t, held, m.read("demo")["access_token"])
				})
			})
		}
	}
}

func TestTheSpacingCountsFromTheCallHoweverLongStorageTook(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.at("put", historyKey(account1Config()), func() { time.Sleep(25 * time.Second) })
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		_, text := m.refused(logical.UpdateOperation, "rotate/demo", nil)
		require.Contains(t, text, "try again in 30 seconds")
		time.Sleep(forcedSpacing)
		require.Empty(t, m.ok(logical.UpdateOperation, "rotate/demo", nil).Warnings, "WeChat was ready for it")
	})
}

func TestOneRefusalForItsQuotaIsNoOutage(t *testing.T) {
	for name, before := range map[string]time.Duration{
		"when the token is due":                      0,
		"at a comparison twenty minutes before that": 20 * time.Minute,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", map[string]any{"sync_interval": "5m"})
				time.Sleep(rotationPeriod - before - time.Second)
				m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009})
				begin := time.Now()
				for m.statusOf("demo")["last_error"] == nil {
					require.Less(t, time.Since(begin), 6*time.Minute)
					time.Sleep(time.Second)
				}
				m.sim.ClearFaults()
				for range 60 { // at no time is there no token
					m.read("demo")
					time.Sleep(time.Minute)
				}
				require.Equal(t, stateHealthy, m.statusOf("demo")["state"])
			})
		})
	}
}

func TestNoWaitIsLongerThanTenMinutes(t *testing.T) {
	for _, errcode := range []int{-1, 40125, 40164, 45009, 45011, 89501, 89507, 89506, 50002, 99999} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", map[string]any{"verify": false})
			m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: errcode})
			m.refused(logical.ReadOperation, "token/demo", nil)
			time.Sleep(3 * time.Hour)
			synctest.Wait()
			calls := m.sim.Calls("")
			for i := range calls[1:] {
				require.LessOrEqual(t, calls[i+1].Time.Sub(calls[i].Time), 10*time.Minute+time.Second, "errcode %d", errcode)
			}
			m.sim.ClearFaults()
			time.Sleep(10*time.Minute + time.Second)
			m.read("demo")
		})
	}
}

func TestATwinsForcedRefreshForgetsNoFailure(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		time.Sleep(minCallInterval)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40164, Mode: "normal"})
		m.refused(logical.UpdateOperation, "refresh/demo", nil)
		m.ok(logical.UpdateOperation, "rotate/twin", nil)
		synctest.Wait()
		status := m.statusOf("demo")
		require.NotEqual(t, stateHealthy, status["state"])
		require.NotNil(t, status["last_error"])
		calls := m.calls()
		for range 20 {
			m.refused(logical.UpdateOperation, "refresh/demo", nil)
		}
		require.Equal(t, calls, m.calls())
	})
}

func TestNoTTLIsBelowFiveHoweverLongStorageTakes(t *testing.T) {
	for path, op := range map[string]logical.Operation{"token/demo": logical.ReadOperation, "refresh/demo": logical.UpdateOperation} {
		for took, inTime := range map[time.Duration]bool{11 * time.Second: true, 16 * time.Second: false, 25 * time.Second: false} {
			t.Run(fmt.Sprint(path, took), func(t *testing.T) {
				inBubble(t, wechatsim.Account{Lifetime: 20 * time.Second, Overlap: time.Second}, func(t *testing.T, m *mount) {
					m.write("demo", map[string]any{"verify": false})
					m.reopenWithoutBackground() // which may bring the next one before the answer
					m.at("put", historyKey(account1Config()), func() { time.Sleep(took) })
					resp, err := m.request(op, path, nil)
					if !inTime {
						status, text := m.status(resp, err)
						require.Equal(t, http.StatusInternalServerError, status)
						require.Contains(t, text, "longer than its life")
						return
					}
					require.NoError(t, err)
					require.GreaterOrEqual(t, resp.Data["ttl"], int64(5))
				})
			})
		}
	}
}

func TestALockedAccountHoldsUpTheLoadingOfNoOther(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
		m.write("locked", nil)
		m.ok(logical.UpdateOperation, "rotate/locked", map[string]any{"revoke": true})
		m.write("other", map[string]any{"appid": otherAppID})
		m.close()
		held, goOn := make(chan struct{}), make(chan struct{})
		m.at("list", "config/", func() { close(held); <-goOn })
		m.backend = m.mountedOn(m.storage)
		require.NoError(t, m.Initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}))
		<-held
		busy, err := m.keeper.acquire(t.Context(), "locked")
		require.NoError(t, err)
		close(goOn)
		synctest.Wait()
		require.NotNil(t, m.keeper.lookup("other"), "it was not loaded")
		<-m.keeper.loaded
		time.Sleep(rotationPeriod + time.Second)
		synctest.Wait()
		require.Len(t, m.sim.Calls(otherAppID), 2, "it was not refreshed when it was due")
		busy.release()
		m.ticks(2)
		_, effective := m.forcedCalls()
		require.Equal(t, 2, effective)
	})
}

func TestAReportOfATokenThatIsNotKnownIsAnsweredByWeChat(t *testing.T) {
	for name, rejected := range map[string]func(token string) string{
		"of another account": func(string) string { return strings.Repeat("x", 512) },
		"cut off":            func(token string) string { return token[:100] },
		"with a line end":    func(token string) string { return token + "\n" },
		"with blanks around": func(token string) string { return " " + token + "\t" },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				token := m.read("demo")["access_token"].(string)
				time.Sleep(minCallInterval)
				calls := m.calls()
				require.Equal(t, false, m.refresh(rejected(token))["changed"], "the application would read the same token again")
				require.Equal(t, calls+1, m.calls())
				time.Sleep(minCallInterval)
				m.sim.ForceOutside(testAppID)
				require.Equal(t, true, m.refresh(rejected(token))["changed"])
				seen, _ := m.forcedCalls()
				require.Zero(t, seen)
			})
		})
	}
}

func TestAReportIsNotAnsweredByTheRejectedTokenItself(t *testing.T) {
	for name, forget := range map[string]func(m *mount){
		"a restart that knows no token": func(m *mount) {
			m.storage.failing(writesFail) // it is served from memory
			m.read("demo")
			m.reopen()
			m.storage.failing(nil)
		},
		"a twin had it before": func(m *mount) {
			m.write("demo", map[string]any{"secret": testSecret})
			time.Sleep(minCallInterval)
			m.sim.ForceOutside(testAppID)
			m.sim.Inject(wechatsim.Fault{Kind: "reset", Times: 1}) // of the demo's comparison
			m.refused(logical.UpdateOperation, "refresh/demo", nil)
			m.write("twin", nil)
			time.Sleep(minCallInterval)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", map[string]any{"verify": false})
				forget(m)
				rejected := m.sim.Current(testAppID)
				require.Equal(t, false, m.refresh(rejected)["changed"], "the application would read the same token again")
				require.Equal(t, rejected, m.read("demo")["access_token"])
			})
		})
	}
}

func TestReportsThatWeChatDoesNotConfirmLeaveATrace(t *testing.T) {
	const words = "WeChat still accepts a token that an application reported as rejected"
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		token := m.read("demo")["access_token"]
		for range 50 {
			time.Sleep(minCallInterval)
			m.refresh(token)
		}
		m.refresh("another-one")
		status := m.statusOf("demo")
		require.Equal(t, 50, status["rejections"], "of this token")
		require.Equal(t, timestamp(time.Now()), status["last_rejection_time"])
		require.Equal(t, stateHealthy, status["state"])
		require.Equal(t, 1, strings.Count(m.logs.String(), words), "one line when they begin")
		time.Sleep(minCallInterval)
		m.sim.ForceOutside(testAppID)
		m.refresh(token)
		status = m.statusOf("demo")
		require.Equal(t, 0, status["rejections"], "of the token there is now")
		require.Nil(t, status["last_rejection_time"])
	})
}

func TestAFailureOfAnAttemptBegunBeforeTheDueTimeDelaysNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		time.Sleep(rotationPeriod - 2*time.Second) // nothing is due
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Times: 1})
		m.sim.SetLatency(3 * time.Second)
		begun, calls := time.Now(), m.calls()
		m.refused(logical.UpdateOperation, "refresh/demo", nil)
		require.Equal(t, 3*time.Second, time.Since(begun))
		m.sim.SetLatency(0) // the next attempt may have begun already
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Greater(t, m.calls(), calls+1, "the first attempt at the due token is delayed by a failure of an attempt begun before it was due")
	})
}

func TestAComparisonRefusedDuringATwinsForcedCallTakesNoToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("a", nil)
		m.write("b", nil)
		time.Sleep(time.Hour)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "normal", Times: 1})
		m.sim.SetLatency(2 * time.Second)
		var report sync.WaitGroup
		report.Go(func() { m.refused(logical.UpdateOperation, "refresh/b", nil) })
		time.Sleep(time.Second)
		m.sim.SetLatency(0)
		m.ok(logical.UpdateOperation, "rotate/a", nil) // WeChat is well
		report.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		require.NoError(t, m.tokenOrError("b"))
	})
}

func TestAComparisonThatFailsPastTheDueTimeMakesNoOutage(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		time.Sleep(rotationPeriod - 2*time.Second) // nothing is due
		a := m.keeper.known("demo")
		require.NoError(t, a.holder.acquire(t.Context(), time.Second))
		p := &problem{Rule: errcodes[45009], Errcode: 45009}
		long := wallClock().Add(-10 * time.Minute)
		failed := (*failure)(nil).after(p, moment(), moment())
		failed.Begun, failed.At, failed.Next, failed.Count, failed.Run = long, long, wallClock(), 6, 6
		a.failures[tokenSlot].Store(failed)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Times: 1})
		m.sim.SetLatency(3 * time.Second)
		a.holder.release() // the background compares
		time.Sleep(4 * time.Second)
		m.sim.SetLatency(0) // WeChat is well from here on
		for range 60 {
			require.NoError(t, m.tokenOrError("demo"), time.Now())
			time.Sleep(10 * time.Second)
		}
	})
}

func TestAConfigWriteThatFailsWithStorageTakesNoToken(t *testing.T) {
	for name, tookEffect := range map[string]bool{"it took effect": true, "it did not": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.storage.hooked(func(op, key string) {
					if op == "put" && key == "config/demo" {
						m.storage.failing(func(string, string) error { return errStorage })
					}
				})
				m.refused(logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60})
				m.storage.hooked(nil)
				if tookEffect {
					cfg, err := loadConfig(t.Context(), &m.storage.InmemStorage, "demo")
					require.NoError(t, err)
					cfg.MaxTTL = time.Minute
					require.NoError(t, storeConfig(t.Context(), &m.storage.InmemStorage, "demo", cfg))
				}
				for range 5 {
					require.NoError(t, m.tokenOrError("demo"))
					time.Sleep(time.Minute)
				}
				m.storage.failing(nil)
				time.Sleep(reloadInterval + time.Second)
				synctest.Wait()
				want := int64(defaultMaxTTL / time.Second)
				if tookEffect {
					want = 60
				}
				require.Equal(t, want, m.read("demo")["ttl"], "what storage holds is found out")
			})
		})
	}
}

func TestAHistoryIsNotSweptWhileAnAccountIsNotLoaded(t *testing.T) {
	for _, trouble := range []bool{false, true} {
		t.Run(fmt.Sprint(trouble), func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
				m.write("a", nil)
				m.write("b", nil)
				time.Sleep(time.Hour)
				m.sim.ForceOutside(testAppID)
				// b notices; a's own call fails
				m.ok(logical.UpdateOperation, "refresh/b", nil)
				m.sim.Inject(wechatsim.Fault{Kind: "status", Status: 503})
				synctest.Wait()
				_ = m.tokenOrError("a")
				m.close()
				if trouble {
					m.storage.failing(func(op, key string) error {
						if op == "get" && strings.HasPrefix(key, configPrefix) {
							return errStorage
						}
						return nil
					})
				}
				m.open()
				m.storage.failing(nil)
				time.Sleep(31 * time.Second)
				synctest.Wait()
				_ = m.tokenOrError("a") // which checks that no dead one is given
			})
		})
	}
}

func TestAHistoryIsSweptThoughVaultTakesNoWritesAtFirst(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		m.ok(logical.DeleteOperation, "config/demo", nil)
		for range 10 {
			m.close()
			m.storage.failing(writesFail) // until all mounts are up
			m.open()
			time.Sleep(startHoldOff / 2)
			m.storage.failing(nil)
			time.Sleep(day - time.Minute)
			synctest.Wait()
		}
		m.ticks(1) // the record of the forced call goes
		require.Empty(t, m.stored())
	})
}

// A write whose outcome storage neither took nor gave to read again leaves one of two
// secrets: which one, and whether WeChat has accepted that, is to be found out.
func TestNoForcedCallIsMadeWithASecretOfWhichStorageTellsNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"secret": "wrong-secret-0123456789", "verify": false})
		m.storage.hooked(func(op, key string) {
			if op == "put" && key == "config/demo" {
				m.storage.failing(func(string, string) error { return errStorage })
			}
		})
		m.refused(logical.UpdateOperation, "config/demo", map[string]any{"secret": testSecret})
		m.storage.hooked(nil)
		m.storage.failing(nil)
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		seen, _ := m.forcedCalls()
		require.Zero(t, seen, "a forced call was made with a secret that WeChat never accepted")
	})
}

func TestNoForcedCallIsMadeWithASecretThatIsNotStored(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"secret": "wrong", "verify": false})
		m.storage.failing(func(op, key string) error { // the write of the right secret is not stored
			if op == "put" && (key == "config/demo" || key == historyKey(account1Config())) {
				return errStorage
			}
			return nil
		})
		m.refused(logical.UpdateOperation, "config/demo", map[string]any{"secret": testSecret})
		m.storage.failing(nil)
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		seen, _ := m.forcedCalls()
		require.Zero(t, seen, "a forced call was made with a secret that WeChat never accepted")
	})
}
