package wechat

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestRevokeIsFollowedByASecondForcedRefresh(t *testing.T) {
	for name, meanwhile := range map[string]func(m *mount){
		"undisturbed":        func(*mount) {},
		"restarted at once":  func(m *mount) { m.reopen() },
		"restarted twice":    func(m *mount) { m.reopen(); time.Sleep(10 * time.Second); m.reopen() },
		"sealed for an hour": func(m *mount) { m.close(); time.Sleep(time.Hour); m.open() },
		"restarted while storage fails": func(m *mount) {
			m.close()
			m.storage.failing(func(op, key string) error {
				if op == "get" && strings.HasPrefix(key, tokenRecords) {
					return errStorage
				}
				return nil
			})
			m.open()
			time.Sleep(10 * time.Second)
			m.storage.failing(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				leaked := m.read("demo")["access_token"].(string)
				begin := time.Now()
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				_, errcode := m.sim.Check(leaked)
				require.Zero(t, errcode, "one forced refresh may leave the old token alive")
				require.Equal(t, "pending", m.statusOf("demo")["revocation"])
				meanwhile(m)
				require.Equal(t, "pending", m.statusOf("demo")["revocation"])
				m.ticks(5)
				seen, effective := m.forcedCalls()
				require.Equal(t, 2, seen, "exactly once more")
				require.Equal(t, 2, effective)
				var forced []time.Time
				for _, call := range m.sim.Calls("") {
					if call.Forced {
						forced = append(forced, call.Time)
					}
				}
				require.GreaterOrEqual(t, forced[1].Sub(forced[0]), forcedSpacing)
				_, errcode = m.sim.Check(leaked)
				require.NotZero(t, errcode, "the leaked token is dead")
				at, err := time.Parse(time.RFC3339, m.statusOf("demo")["revocation"].(string))
				require.NoError(t, err)
				require.True(t, at.After(begin))
				require.Nil(t, m.history().Leak)
				m.reopen()
				m.read("demo")
				require.Equal(t, timestamp(at), m.statusOf("demo")["revocation"], "it is known after a restart, too")
				m.ticks(5)
				seen, _ = m.forcedCalls()
				require.Equal(t, 2, seen)
			})
		})
	}
}

func TestRevokeAgainDoesNotCancelWhatIsPending(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		revoke := map[string]any{"revoke": true}
		m.ok(logical.UpdateOperation, "rotate/demo", revoke)
		status, text := m.refused(logical.UpdateOperation, "rotate/demo", revoke)
		require.Equal(t, http.StatusTooManyRequests, status)
		require.Contains(t, text, "pending goes on")
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
		m.ticks(5)
		seen, _ := m.forcedCalls()
		require.Equal(t, 2, seen)
	})
}

// An answer of "try again in 29 seconds" would have the caller begin anew what is on its
// way.
func TestRevokeAgainSaysWhenThePendingOneGoesOnAndWhereToWatch(t *testing.T) {
	for name, c := range map[string]struct {
		before    func(m *mount) // the second request
		revoke    bool
		next      time.Duration // since the first
		says      []string
		neverSays string
	}{
		"at once":                {nil, true, forcedSpacing, []string{`has replaced it, and the revocation that is pending goes on by itself`}, "try again"},
		"without revoke":         {nil, false, forcedSpacing, []string{`has replaced it, and the revocation that is pending goes on by itself`}, "try again"},
		"after a restart":        {func(m *mount) { m.reopenWithoutBackground() }, true, forcedSpacing, []string{"before the engine's last start", "goes on by itself"}, "try again"},
		"at the end of the wait": {func(*mount) { time.Sleep(forcedSpacing - time.Millisecond) }, true, forcedSpacing, []string{"in 1 seconds"}, "try again"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				began := time.Now()
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				if c.before != nil {
					c.before(m)
				}
				status, text := m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": c.revoke})
				require.Equal(t, http.StatusTooManyRequests, status)
				for _, words := range c.says {
					require.Contains(t, text, words)
				}
				require.Contains(t, text, "what to do: nothing: its next step comes in ")
				require.Contains(t, text, " seconds, at "+timestamp(began.Add(c.next))+"; watch revocation in status/demo")
				require.NotContains(t, text, c.neverSays)
			})
		})
	}
}

func TestRevokeAgainWithoutBudgetSaysWhenThePendingOneGoesOn(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		began := time.Now()
		for range forcedPerDay - 1 {
			m.ok(logical.UpdateOperation, "rotate/demo", nil)
			time.Sleep(forcedSpacing)
		}
		revoke := map[string]any{"revoke": true}
		m.ok(logical.UpdateOperation, "rotate/demo", revoke)
		m.ticks(5)
		_, text := m.refused(logical.UpdateOperation, "rotate/demo", revoke)
		require.Contains(t, text, "20 forced refreshes of an appid in 24 hours")
		require.Contains(t, text, "at "+timestamp(began.Add(day))+"; watch revocation in status/demo")
		require.NotContains(t, text, "try again")
	})
}

func TestARepeatedRevokeIsToldWhetherTheLeakIsBeingAnswered(t *testing.T) {
	revoke := map[string]any{"revoke": true}
	for name, c := range map[string]struct {
		before func(m *mount)
		says   string
	}{
		"its first attempt's answer was lost": {func(m *mount) {
			m.sim.Inject(wechatsim.Fault{Kind: "lost", Mode: "forced", Times: 1})
			m.refused(logical.UpdateOperation, "rotate/demo", revoke)
		}, "the revocation that is pending goes on by itself"},
		"the attempt before was no revoke": {func(m *mount) {
			m.ok(logical.UpdateOperation, "rotate/demo", nil)
		}, "and no revocation is pending"},
		"the leak has been answered": {func(m *mount) {
			m.ok(logical.UpdateOperation, "rotate/demo", revoke)
			time.Sleep(forcedSpacing + time.Second)
			synctest.Wait()
		}, "and the revocation was complete at "},
		"a twin's is pending": {func(m *mount) {
			m.ok(logical.UpdateOperation, "rotate/twin", revoke)
		}, "the revocation that is pending goes on by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.write("twin", nil)
				c.before(m)
				status, text := m.refused(logical.UpdateOperation, "rotate/demo", revoke)
				require.Equal(t, http.StatusTooManyRequests, status)
				require.Contains(t, text, c.says)
				pending := strings.Contains(text, "goes on by itself")
				require.Equal(t, !strings.Contains(c.says, "no revocation"), pending || strings.Contains(text, "complete"))
				require.Equal(t, pending, m.statusOf("demo")["revocation"] == revocationPending || m.statusOf("twin")["revocation"] == revocationPending)
			})
		})
	}
}

func TestARevocationThatIsAcceptedTakesThePlaceOfThePendingOne(t *testing.T) {
	for name, meanwhile := range map[string]func(m *mount){
		"undisturbed": func(*mount) {},
		"restarted":   func(m *mount) { m.reopen() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				revoke := map[string]any{"revoke": true}
				m.ok(logical.UpdateOperation, "rotate/demo", revoke)
				m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced", Times: 1})
				time.Sleep(forcedSpacing)
				synctest.Wait()
				_, effective := m.forcedCalls()
				require.Equal(t, 1, effective)
				require.Equal(t, "pending", m.statusOf("demo")["revocation"], "the second forced refresh was refused")

				m.ok(logical.UpdateOperation, "rotate/demo", revoke)
				meanwhile(m)
				require.Equal(t, "pending", m.statusOf("demo")["revocation"])
				m.ticks(5)
				_, effective = m.forcedCalls()
				require.Equal(t, 3, effective, "two of the second request")
				require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
				require.Nil(t, m.history().Leak)
			})
		})
	}
}

func TestRevokeOfAnAccountThatWasNeverRead(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.ticks(5)
		seen, _ := m.forcedCalls()
		require.Equal(t, 2, seen)
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
	})
}

func TestARevocationStaysPendingWhileWeChatHandsOutTheSameToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.sim.Inject(wechatsim.Fault{Kind: "sametoken", Times: 2})
		m.ticks(1)
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
		m.ticks(10)
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
	})
}

func TestForcedCallsThatCountAndDoNotHelpAreMadeWithGrowingDistance(t *testing.T) {
	for name, fault := range map[string]wechatsim.Fault{
		"the same token again": {Kind: "sametoken", Mode: "forced"},
		"WeChat is busy":       {Kind: "errcode", Errcode: -1, Mode: "forced"},
	} {
		t.Run(name, func(t *testing.T) { growingDistance(t, fault) })
	}
}

func growingDistance(t *testing.T, fault wechatsim.Fault) {
	t.Helper()
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.sim.Inject(fault)
		m.ticks(60)
		var forced []time.Time
		for _, call := range m.sim.Calls("") {
			if call.Forced {
				forced = append(forced, call.Time)
			}
		}
		require.GreaterOrEqual(t, len(forced), 6)
		require.Equal(t, forcedPerDay-len(forced), m.statusOf("demo")["rotations_remaining"], "each of them counts")
		require.LessOrEqual(t, len(forced), forcedPerDay/2, "an hour leaves half of the day's to operators")
		for n := 3; n < len(forced); n++ {
			require.Greater(t, forced[n].Sub(forced[n-1]), forced[n-1].Sub(forced[n-2]), "the %d. distance", n)
		}
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
		m.sim.ClearFaults()
		m.ticks(int(backoffCounted.Most / time.Minute))
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
		_, effective := m.forcedCalls()
		require.Equal(t, 2, effective)
	})
}

func TestTheSecondForcedRefreshFollowsAtOnceAlsoWhenTheFirstCameLate(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: -1, Mode: "forced", Times: 7})
		m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.ticks(4 * 60)
		var forced []time.Time
		for _, call := range m.sim.Calls("") {
			if call.Forced {
				forced = append(forced, call.Time)
			}
		}
		require.Len(t, forced, 7+2)
		require.Greater(t, forced[7].Sub(forced[6]), 20*time.Minute)
		require.Less(t, forced[8].Sub(forced[7]), 2*forcedSpacing)
	})
}

// The clock says of each forced call of the day that it came before the request.
func TestARevocationThatWasAskedForWhileTheClockWasAheadIsNotLate(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for range 8 {
			m.ok(logical.UpdateOperation, "rotate/demo", nil)
			time.Sleep(time.Minute)
		}
		setClock(t, 8*time.Hour)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		setClock(t, 0)
		m.ticks(3)
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
	})
}

// What a process knew of the calls that did not help must not go with it: each of them
// counts for the day.
func TestNothingShortensTheGrowingDistanceOfForcedCalls(t *testing.T) {
	faults := map[string]wechatsim.Fault{
		"the same token again": {Kind: "sametoken", Mode: "forced"},
		"WeChat is busy":       {Kind: "errcode", Errcode: -1, Mode: "forced"},
		"the way is cut off":   {Kind: "reset", Mode: "forced"},
	}
	for name, again := range map[string]func(m *mount, n int){
		"reloads":                  func(m *mount, _ int) { m.reopen() },
		"a clock that is set back": func(m *mount, n int) { m.setClockBack(time.Duration(n) * time.Hour) },
	} {
		for what, fault := range faults {
			t.Run(name+"/"+what, func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					m.write("demo", nil)
					m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
					m.sim.Inject(fault)
					for n := range 7 {
						m.ticks(2)
						again(m, n+1)
					}
					m.ticks(1)
					seen, _ := m.forcedCalls()
					require.LessOrEqual(t, seen, 7, "30 s, twice as much each time, make no more in a quarter of an hour")
					require.Equal(t, forcedPerDay-seen, m.statusOf("demo")["rotations_remaining"])
					require.Equal(t, revocationPending, m.statusOf("demo")["revocation"])
					m.sim.ClearFaults()
					m.ticks(int(backoffCounted.Most / time.Minute))
					require.NotContains(t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
				})
			})
		}
	}
}

func TestWhatBecomesOfARevocationWhenItsAccountGoes(t *testing.T) {
	for name, c := range map[string]func(m *mount){
		"deleted":               func(m *mount) { m.ok(logical.DeleteOperation, "config/demo", nil) },
		"deleted and recreated": func(m *mount) { m.ok(logical.DeleteOperation, "config/demo", nil); m.write("demo", nil) },
		"another appid": func(m *mount) {
			m.write("demo", map[string]any{"appid": otherAppID})
		},
		"deleted while the log cannot be written": func(m *mount) {
			m.storage.failing(func(op, key string) error {
				if op == "delete" && strings.HasPrefix(key, framework.WALPrefix) {
					return errStorage
				}
				return nil
			})
			m.ok(logical.DeleteOperation, "config/demo", nil)
			m.storage.failing(nil)
		},
		"deleted while its history cannot be written": func(m *mount) {
			m.storage.failing(historyFails)
			m.refused(logical.DeleteOperation, "config/demo", nil)
			m.storage.failing(nil)
		},
		"deleted by a process that dies before it writes the history": func(m *mount) {
			m.storage.failing(historyFails)
			m.refused(logical.DeleteOperation, "config/demo", nil)
			m.close()
			m.storage.failing(nil)
			m.open()
		},
		"another appid while the history cannot be written": func(m *mount) {
			m.storage.failing(historyFails)
			m.write("demo", map[string]any{"appid": otherAppID})
			m.storage.failing(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("demo", nil)
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				c(m)
				m.ticks(5)
				m.reopen()
				m.ticks(5)
				seen, _ := m.forcedCalls()
				require.Equal(t, 1, seen)
				require.Empty(t, m.walEntries())
				require.Nil(t, m.history().Leak)
			})
		})
	}
}

// historyFails lets every write of a history fail.
func historyFails(op, key string) error {
	if op == "put" && strings.HasPrefix(key, tokenRecords) {
		return errStorage
	}
	return nil
}

func TestAnAccountThatIsCreatedAgainHasNoRevocationPending(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
		m.ok(logical.DeleteOperation, "config/demo", nil)
		require.Nil(t, m.keeper.lookup("demo"))
		m.write("demo", nil) // before the background would have looked at it
		require.Nil(t, m.statusOf("demo")["revocation"])
		m.ticks(5)
		require.Nil(t, m.statusOf("demo")["revocation"])
		seen, _ := m.forcedCalls()
		require.Equal(t, 1, seen)
	})
}

func TestATickDuringARefusedRevocationDoesNotTakeItUp(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"request_timeout": 30})
		m.sim.SetLatency(15 * time.Second)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45011, Times: 1})
		var caller sync.WaitGroup
		caller.Go(func() {
			status, _ := m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
			require.Equal(t, http.StatusTooManyRequests, status)
		})
		time.Sleep(walMinAge + 2*time.Second)
		m.rollbackTick()
		caller.Wait()
		m.sim.SetLatency(0)
		m.ticks(10)
		_, effective := m.forcedCalls()
		require.Zero(t, effective, "the caller was told that nothing was replaced")
		require.Nil(t, m.statusOf("demo")["revocation"])
	})
}

func TestAnUnreadableEntryOfTheLogKeepsNoRevocationBack(t *testing.T) {
	for _, unreadable := range []string{`not json`, `{"type":"revocation","data":{"name":7}}`} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			m.close()
			cfg, err := loadConfig(t.Context(), m.storage, "demo")
			require.NoError(t, err)
			m.putOlderLeak(olderLeak{Name: "demo", AccountID: cfg.ID, Target: 2, Requested: time.Now()})
			require.NoError(t, m.storage.Put(t.Context(), &logical.StorageEntry{Key: framework.WALPrefix + "zzz", Value: []byte(unreadable)}))
			m.open()
			m.ticks(5)
			_, effective := m.forcedCalls()
			require.Equal(t, 2, effective)
		})
	}
}

func TestARevokeThatWasNotBegunPromisesNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.storage.failing(func(op, key string) error {
			if op == "put" && key == historyKey(account1Config()) {
				return errStorage
			}
			return nil
		})
		err := m.try(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.storage.failing(nil)
		require.ErrorContains(t, err, "was not replaced")
		require.Nil(t, m.statusOf("demo")["revocation"])
	})
}

func TestARevokeRefusedWhileTheMountStartsIsNotCarriedOut(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.close()
		require.NoError(t, m.storage.Put(t.Context(), &logical.StorageEntry{
			Key: framework.WALPrefix + "zzz", Value: []byte(`{"type":"change","data":{"name":"demo"},"created_at":1}`),
		}))
		m.sim.SetLatency(time.Second)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45011, Times: 1})
		var caller sync.WaitGroup
		m.at("list", "config/", func() {
			caller.Go(func() { m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true}) })
			time.Sleep(100 * time.Millisecond) // it is announced
			m.at("get", framework.WALPrefix+"zzz", func() { time.Sleep(3 * time.Second) })
		})
		m.open()
		time.Sleep(5 * time.Second)
		caller.Wait()
		m.sim.SetLatency(0)
		m.ticks(10)
		_, effective := m.forcedCalls()
		require.Zero(t, effective)
	})
}

func TestAnotherAccountDoesNotShowTheOldOnesRevocation(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.write("demo", map[string]any{"appid": otherAppID})
		require.Nil(t, m.statusOf("demo")["revocation"])
		require.Nil(t, m.history().Leak)
	})
}

func TestAPendingRevocationIsTakenUpThoughReadersAreBusyAtTheStart(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.close()
		// A reader holds the account while the write-ahead log is read.
		held, goOn := make(chan struct{}), make(chan struct{})
		m.at("list", "config/", func() { close(held); <-goOn })
		m.backend = m.mountedOn(m.storage)
		require.NoError(t, m.Initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}))
		<-held
		require.Equal(t, "pending", m.statusOf("demo")["revocation"], "before the accounts are loaded")
		busy, err := m.keeper.acquire(t.Context(), "demo")
		require.NoError(t, err)
		close(goOn)
		synctest.Wait()
		busy.release()
		time.Sleep(forcedSpacing + startHoldOff) // no tick is needed
		synctest.Wait()
		seen, _ := m.forcedCalls()
		require.Equal(t, 2, seen)
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
	})
}

func TestARevocationSurvivesAnotherBaseURL(t *testing.T) {
	for name, c := range map[string]struct {
		changes map[string]any
		fail    string // the write that fails the first time
		reopens bool
	}{
		"tried":                              {nil, "", false},
		"not tried":                          {map[string]any{"verify": false}, "", false},
		"restarted":                          {nil, "", true},
		"not tried, restarted":               {map[string]any{"verify": false}, "", true},
		"its configuration fails":            {nil, "config/demo", false},
		"its token fails":                    {nil, "token/demo", false},
		"its configuration fails, restarted": {nil, "config/demo", true},
		"its token fails, restarted":         {nil, "token/demo", true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				leaked := m.read("demo")["access_token"].(string)
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				change := moveTo2(c.changes)
				if c.fail != "" {
					m.storage.failing(func(op, key string) error {
						if op == "put" && key == c.fail {
							return errStorage
						}
						return nil
					})
					_, err := m.request(logical.UpdateOperation, "config/demo", change)
					require.Equal(t, c.fail == "config/demo", err != nil, "a token that is not stored is served from memory")
					m.storage.failing(nil)
				} else {
					resp := m.ok(logical.UpdateOperation, "config/demo", change)
					require.Nil(t, resp, "without a warning")
				}
				if c.reopens {
					m.reopen()
				}
				m.ticks(4)
				m.hasRevoked(leaked)
			})
		})
	}
}

func TestARevocationCountsNoRotationThatWeChatMadeByItself(t *testing.T) {
	inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		time.Sleep(maxLifetime - overlap - 30*time.Second)
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable})
		m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		time.Sleep(40 * time.Second)
		m.sim.ClearFaults()
		m.ticks(4)
		require.NotContains(t, []any{nil, "pending"}, m.statusOf("demo")["revocation"])
		_, effective := m.forcedCalls()
		require.Equal(t, 2, effective)
	})
}

func TestARevocationThatMovesIsNeitherLostNorDoubled(t *testing.T) {
	for _, fault := range []string{"fails", "loses its answer", "is cut off"} {
		for _, verify := range []bool{true, false} {
			for _, restarts := range []bool{true, false} {
				for n, reached := 1, true; reached; n++ {
					t.Run(fmt.Sprintf("operation %d %s, verify %t, restarts %t", n, fault, verify, restarts), func(t *testing.T) {
						inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(_ *testing.T, m *mount) {
							m.write("demo", nil)
							leaked := m.read("demo")["access_token"].(string)
							m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
							before := m.storage.count()
							if fault == "loses its answer" {
								m.storage.losingAnswer(n)
							} else {
								m.storage.failing(func(string, string) error {
									if at := m.storage.ops - before; at == n || fault == "is cut off" && at > n {
										return errStorage
									}
									return nil
								})
							}
							_, _ = m.request(logical.UpdateOperation, "config/demo", moveTo2(map[string]any{"verify": verify}))
							reached = m.storage.count()-before >= n
							m.storage.losingAnswer(0)
							m.storage.failing(nil)
							if restarts {
								m.reopen()
							}
							m.ticks(6)
							m.hasRevoked(leaked)
						})
					})
				}
			}
		}
	}
}

func TestARevocationThatMovesKeepsItsDistanceFromTheFirstForcedCall(t *testing.T) {
	inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(_ *testing.T, m *mount) {
		m.write("demo", nil)
		leaked := m.read("demo")["access_token"].(string)
		m.storage.hooked(func(op, key string) {
			if op == "put" && strings.HasPrefix(key, tokenRecords) {
				time.Sleep(5 * time.Second) // the call is made long after it was asked for
			}
		})
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.storage.hooked(nil)
		m.ok(logical.UpdateOperation, "config/demo", moveTo2(nil))
		m.ticks(4)
		m.hasRevoked(leaked)
	})
}

func TestARevocationMovesThoughItIsNotInMemoryYet(t *testing.T) {
	inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.close()
		m.backend = m.mountedOn(m.storage)
		require.NoError(t, m.Initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}))
		m.ok(logical.UpdateOperation, "config/demo", moveTo2(nil))
		m.ticks(5)
		seen, _ := m.forcedCalls()
		require.Equal(t, 2, seen)
	})
}

func TestARevocationOfAnAccountBeforeIsNotMoved(t *testing.T) {
	for name, c := range map[string]struct {
		first, then map[string]any
		forced      int // calls that reach WeChat, besides the first
	}{
		"there and back":            {moveTo2(nil), account1(nil), 1},
		"another appid, then moved": {account1(map[string]any{"appid": otherAppID, "verify": false}), moveTo2(map[string]any{"appid": otherAppID, "verify": false}), 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("demo", nil)
				for range 3 {
					m.ok(logical.UpdateOperation, "rotate/demo", nil)
					time.Sleep(forcedSpacing)
				}
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				m.storage.failing(func(op, key string) error { // after the configuration is written
					if op != "get" && key == "token/demo" {
						return errStorage
					}
					return nil
				})
				_, _ = m.request(logical.UpdateOperation, "config/demo", c.first)
				m.storage.failing(nil)
				m.ok(logical.UpdateOperation, "config/demo", c.then)
				m.ticks(10)
				seen, _ := m.forcedCalls()
				require.Equal(t, 4+c.forced, seen)
				require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
			})
		})
	}
}

func TestARevocationThatIsCompleteIsNotMoved(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.sim.OnCall(func(c wechatsim.Call) {
			if c.Forced {
				m.storage.failing(historyFails)
			}
		})
		time.Sleep(forcedSpacing + time.Second)
		synctest.Wait()
		m.sim.OnCall(nil)
		m.storage.failing(nil)
		require.NotNil(t, m.history().Leak, "its end could not be stored")
		m.ok(logical.UpdateOperation, "config/demo", moveTo2(nil))
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
		m.ticks(5)
		seen, _ := m.forcedCalls()
		require.Equal(t, 2, seen)
		require.Empty(t, m.walEntries())
	})
}

// moveTo2 gives the account another base_url of the same platform.
func moveTo2(changes map[string]any) map[string]any {
	data := account1(map[string]any{"base_url": "http://127.0.0.2"})
	maps.Copy(data, changes)
	return data
}

// hasRevoked checks that the revocation of the account demo took two forced calls,
// that the leaked token is dead, and that nothing is left to do.
func (m *mount) hasRevoked(leaked string) {
	m.t.Helper()
	require.NotContains(m.t, []any{nil, "pending"}, m.statusOf("demo")["revocation"])
	require.Empty(m.t, m.walEntries())
	seen, _ := m.forcedCalls()
	require.Equal(m.t, 2, seen)
	_, errcode := m.sim.Check(leaked)
	require.NotZero(m.t, errcode)
	m.read("demo")
}

func TestAClockThatIsSetBackPostponesNoRevocation(t *testing.T) {
	for name, after := range map[string]func(m *mount){
		"over a restart": func(m *mount) {
			m.close()
			m.storedLater(8 * time.Hour)
			m.open()
		},
		"before the account moves": func(m *mount) {
			m.setClockBack(8 * time.Hour)
			m.storedLater(8 * time.Hour)
			require.NoError(m.t, m.tick(m.t.Context(), nil))
			synctest.Wait()
			m.ok(logical.UpdateOperation, "config/demo", moveTo2(nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				after(m)
				m.ticks(3)
				seen, _ := m.forcedCalls()
				require.Equal(t, 2, seen)
			})
		})
	}
}

func TestWhatBecomesOfARevocationWhenItsAccountChanges(t *testing.T) {
	for name, c := range map[string]struct {
		change map[string]any
		ends   bool
	}{
		"appid":              {map[string]any{"appid": otherAppID}, true},
		"appid, not tried":   {map[string]any{"appid": otherAppID, "verify": false}, true},
		"appid and base_url": {map[string]any{"appid": otherAppID, "base_url": "http://localhost:80", "secret": testSecret}, true},
		"base_url":           {map[string]any{"base_url": "http://localhost:80", "secret": testSecret}, false},
		"base_url, not tried": {map[string]any{
			"base_url": "http://localhost:80", "secret": testSecret, "verify": false,
		}, false},
		"secret":  {map[string]any{"secret": testSecret}, false},
		"max_ttl": {map[string]any{"max_ttl": 60}, false},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/restart %t", name, restart), func(t *testing.T) {
				inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
					m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
					m.write("demo", map[string]any{"appid": otherAppID})
					require.Nil(t, m.write("demo", nil), "nothing is pending that could end")
					leaked := m.read("demo")["access_token"].(string)
					m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
					resp := m.update("demo", c.change)
					if c.ends {
						require.NotNil(t, resp)
						require.Len(t, resp.Warnings, 1)
						require.Contains(t, resp.Warnings[0], "revocation that was pending has ended, incomplete")
						require.Nil(t, m.statusOf("demo")["revocation"])
						require.Nil(t, m.history().Leak)
					} else {
						require.Nil(t, resp, "there is nothing to warn of")
						require.Equal(t, revocationPending, m.statusOf("demo")["revocation"])
					}
					require.Nil(t, m.update("demo", c.change), "the second time there is nothing to warn of")
					if restart {
						m.reopen()
					}
					m.ticks(5)
					require.Empty(t, m.walEntries())
					seen, effective := m.forcedCalls()
					_, errcode := m.sim.Check(leaked)
					if c.ends {
						require.Equal(t, 1, seen)
						require.Nil(t, m.statusOf("demo")["revocation"])
						return
					}
					require.Equal(t, 2, seen, "in all")
					require.Equal(t, 2, effective)
					require.NotZero(t, errcode, "the leaked token is dead")
					_, err := time.Parse(time.RFC3339, m.statusOf("demo")["revocation"].(string))
					require.NoError(t, err)
				})
			})
		}
	}
}

func TestARevocationInTheLastMinutesOfATokenTakesTwoForcedCalls(t *testing.T) {
	for name, account := range map[string]wechatsim.Account{
		"a token near its end":       {Lifetime: maxLifetime},
		"tokens that live for 300 s": {Lifetime: overlap, Overlap: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, account, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.reopenWithoutBackground() // which would replace it
				time.Sleep(account.Lifetime - 100*time.Second)
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				m.open()
				m.ticks(30)
				seen, effective := m.forcedCalls()
				require.Equal(t, 2, seen)
				require.Equal(t, 2, effective)
				require.NotContains(t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
			})
		})
	}
}

func TestARevokeThatWasRefusedIsNeverCarriedOut(t *testing.T) {
	for name, then := range map[string]func(m *mount){
		"while the plugin lives": func(*mount) {},
		"after a restart":        func(m *mount) { m.reopen() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.storage.failing(deletesFail)
				m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced", Times: 1})
				_, text := m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				require.Contains(t, text, "was not replaced")
				require.Nil(t, m.statusOf("demo")["revocation"])
				then(m)
				m.storage.failing(nil)
				m.ticks(10)
				_, effective := m.forcedCalls()
				require.Zero(t, effective)
				require.Empty(t, m.walEntries())
			})
		})
	}
}

func TestAConfigWriteEndsTheWaitOfAPendingRevocation(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40164, Mode: "forced"})
		m.ticks(60) // and its attempts are ten minutes apart
		m.sim.ClearFaults()
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60})
		time.Sleep(time.Second)
		synctest.Wait()
		require.NotEqual(t, revocationPending, m.statusOf("demo")["revocation"])
	})
}

func TestADeleteThatFailsHalfwayLeavesNoRevocation(t *testing.T) {
	for _, key := range []string{"config/demo", historyKey(account1Config())} {
		t.Run(key, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				m.storage.failing(func(op, k string) error {
					if op != "get" && k == key {
						return errStorage
					}
					return nil
				})
				m.refused(logical.DeleteOperation, "config/demo", nil)
				m.storage.failing(nil)
				m.ok(logical.DeleteOperation, "config/demo", nil)
				m.ticks(2)
				require.Empty(t, m.walEntries())
				require.Empty(t, m.known())
				m.write("demo", nil)
				require.Nil(t, m.statusOf("demo")["revocation"])
				m.ticks(5)
				seen, _ := m.forcedCalls()
				require.Equal(t, 1, seen)
			})
		})
	}
}

func TestAClockSetForwardByADayDropsNoPendingRevocation(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		setClock(t, day+time.Hour)
		m.ticks(3)
		seen, effective := m.forcedCalls()
		require.Equal(t, 2, seen)
		require.Equal(t, 2, effective)
		require.NotContains(t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
	})
}

func TestARefusedRevokeWhoseUndoIsNotStoredIsNotCarriedOut(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.OnCall(func(c wechatsim.Call) {
			if c.Forced {
				m.storage.failing(writesFail)
			}
		})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced", Times: 1})
		status, text := m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		require.Equal(t, http.StatusTooManyRequests, status)
		require.Contains(t, text, "was not replaced")
		require.Contains(t, text, "errcode 45009")
		require.Equal(t, stateDegraded, m.statusOf("demo")["state"], "storage does not take the undo")
		m.sim.OnCall(nil)
		m.storage.failing(nil)
		m.ticks(10)
		_, effective := m.forcedCalls()
		require.Zero(t, effective, "as long as the plugin lives it knows")
		require.Empty(t, m.walEntries())
	})
}

func TestAClockSetForwardByADayDropsNoRevocationThatMoves(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		setClock(t, day+time.Hour)
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"base_url": "http://127.0.0.2:80", "secret": testSecret})
		m.ticks(5)
		_, effective := m.forcedCalls()
		require.Equal(t, 2, effective)
	})
}

func TestARevocationIsShownByEveryNameThatSharesTheToken(t *testing.T) {
	inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("team/twin", nil)
		m.write("stranger", map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		for _, reopen := range []bool{false, true} {
			if reopen {
				m.reopen()
			}
			require.Equal(t, revocationPending, m.statusOf("demo")["revocation"])
			require.Equal(t, revocationPending, m.statusOf("team/twin")["revocation"])
			require.Nil(t, m.statusOf("stranger")["revocation"], "its credentials were never accepted")
		}
		m.ticks(3)
		require.NotContains(t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
		require.Equal(t, m.statusOf("demo")["revocation"], m.statusOf("team/twin")["revocation"])
		require.Nil(t, m.statusOf("stranger")["revocation"])
		seen, effective := m.forcedCalls()
		require.Equal(t, 2, seen)
		require.Equal(t, 2, effective)
		m.read("team/twin")
	})
}

func TestARevocationGoesOnWithTheCredentialsOfAnotherName(t *testing.T) {
	for name, spoil := range map[string]func(m *mount){
		"those of the first are refused": func(m *mount) {
			m.update("demo", map[string]any{"secret": "not-the-secret-0123456789", "verify": false})
		},
		"the first is deleted": func(m *mount) { m.ok(logical.DeleteOperation, "config/demo", nil) },
		"the first gets another appid": func(m *mount) {
			require.Nil(m.t, m.update("demo", map[string]any{"appid": otherAppID}), "nothing has ended that could be warned of")
		},
		"the first is gone after a restart": func(m *mount) {
			m.close()
			require.NoError(m.t, m.storage.Delete(m.t.Context(), "config/demo"))
			m.open()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("demo", nil)
				m.write("twin", nil)
				m.write("stranger", map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
				leaked := m.read("twin")["access_token"].(string)
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				spoil(m)
				require.Equal(t, revocationPending, m.statusOf("twin")["revocation"])
				m.ticks(4)
				require.NotContains(t, []any{nil, revocationPending}, m.statusOf("twin")["revocation"])
				_, effective := m.forcedCalls()
				require.Equal(t, 2, effective)
				_, errcode := m.sim.Check(leaked)
				require.NotZero(t, errcode, "the leaked token is dead")
				m.read("twin")
			})
		})
	}
}

func TestARevocationEndsWithTheLastNameThatSharesTheToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		m.write("stranger", map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.ok(logical.DeleteOperation, "config/twin", nil)
		m.ok(logical.DeleteOperation, "config/demo", nil)
		m.update("stranger", map[string]any{"secret": testSecret})
		require.Nil(t, m.statusOf("stranger")["revocation"], "nothing of those before it")
		m.ticks(5)
		seen, _ := m.forcedCalls()
		require.Equal(t, 1, seen)
	})
}

// makeOlder turns what is stored of the account into what builds before this one stored,
// with a token that was replaced by force so many times.
func (m *mount) makeOlder(name string, forced int) {
	m.t.Helper()
	ctx := m.t.Context()
	cfg, err := loadConfig(ctx, m.storage, name)
	require.NoError(m.t, err)
	r := m.record(cfg)
	require.NoError(m.t, writeEntry(ctx, m.storage, "token/"+name, map[string]any{
		"version": 1, "account_id": cfg.ID, "access_token": r.Value, "last_vault_rotation": r.Rotated, "expire_time": r.Shown,
		"epoch": r.Fence, "credentials": cfg.Credentials, "forced": forced,
	}))
	times, epochs := []time.Time{}, []int64{}
	for _, f := range r.Forced {
		times, epochs = append(times, f.At), append(epochs, f.Fence)
	}
	require.NoError(m.t, writeEntry(ctx, m.storage, "rotation/"+weixinIdentity(cfg), map[string]any{
		"version": 1, "epoch": r.Fence, "by_upstream": true, "forced": times, "epochs": epochs,
	}))
	require.NoError(m.t, m.storage.Delete(ctx, historyKey(cfg)))
}

// Builds before this one kept a leak response in the write-ahead log.
func TestARevocationOfAnOlderBuildIsKept(t *testing.T) {
	whole := func(*olderLeak) {}
	for name, c := range map[string]struct {
		change func(r *olderLeak)
		then   func(m *mount)
		forced int
	}{
		"one of its two calls is made": {whole, nil, 1},
		"neither call is made":         {func(r *olderLeak) { r.Target = 3 }, nil, 2},
		"restarted again":              {whole, func(m *mount) { m.reopen() }, 1},
		"storage fails at the start": {whole, func(m *mount) {
			m.storage.failing(writesFail)
			m.rollbackTick()
			m.reopen()
			m.storage.failing(nil)
		}, 1},
		"it is complete":                        {func(r *olderLeak) { r.Target = 1 }, nil, 0},
		"a day has passed":                      {func(r *olderLeak) { r.Requested = r.Requested.Add(-day) }, nil, 0},
		"it is of another account of this name": {func(r *olderLeak) { r.AccountID = "another" }, nil, 0},
		"its account is gone":                   {func(r *olderLeak) { r.Name = "gone" }, nil, 0},
		"its first call was never made":         {func(r *olderLeak) { r.Epoch = 1 }, nil, 0},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/found by the tick %t", name, late), func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					m.write("demo", nil)
					m.ok(logical.UpdateOperation, "rotate/demo", nil)
					m.close()
					cfg, err := loadConfig(t.Context(), m.storage, "demo")
					require.NoError(t, err)
					r := olderLeak{Name: "demo", AccountID: cfg.ID, Target: 2, Requested: time.Now().Add(-time.Second), Epoch: m.history().Fence}
					m.makeOlder("demo", 1)
					c.change(&r)
					if late {
						m.open()
					}
					m.putOlderLeak(r)
					if !late {
						m.open()
						require.Equal(t, c.forced > 0, m.statusOf("demo")["revocation"] == revocationPending)
					}
					if c.then != nil {
						time.Sleep(walMinAge + time.Second)
						c.then(m)
					}
					m.ticks(6)
					seen, _ := m.forcedCalls()
					require.Equal(t, 1+c.forced, seen)
					require.Equal(t, c.forced == 0, m.statusOf("demo")["revocation"] == nil)
					require.Empty(t, m.walEntries())
					require.Nil(t, m.history().Leak)
				})
			})
		}
	}
}

// With a server of its own that accepts the account, a leak response is begun there, and the
// account then moves to where another name has the token.
func TestARevocationMovesIntoNoStrangersRecord(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		withOwnServer(m, wechatsim.Account{})
		m.write("victim", nil)
		held, calls := m.read("victim")["access_token"], m.calls()
		m.write("team-e/x", map[string]any{"base_url": ownURL})
		m.ok(logical.UpdateOperation, "rotate/team-e/x", map[string]any{"revoke": true})
		_ = m.try(logical.UpdateOperation, "config/team-e/x", map[string]any{"base_url": testURL, "secret": "not-the-secret-0123456789", "verify": false})
		if v := m.statusOf("victim")["revocation"]; v != nil {
			t.Errorf("the victim shows a revocation: %v", v)
		}
		m.ticks(3)
		_, effective := m.forcedCalls()
		if effective != 0 {
			t.Errorf("the victim's token was replaced by force %d times", effective)
		}
		_ = calls
		m.undisturbed(held, m.calls())
	})
}

func TestAStrangersMoveCostsARevocationNoStep(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		withOwnServer(m, wechatsim.Account{})
		m.write("victim", nil)
		m.write("team-e/x", map[string]any{"base_url": ownURL})
		m.ok(logical.UpdateOperation, "rotate/team-e/x", map[string]any{"revoke": true}) // one left
		m.sim.Inject(wechatsim.Fault{Kind: "sametoken", Mode: "forced"})
		m.ok(logical.UpdateOperation, "rotate/victim", map[string]any{"revoke": true}) // two left
		require.Equal(t, 2, m.history().Leak.Left)
		_ = m.try(logical.UpdateOperation, "config/team-e/x", map[string]any{"base_url": testURL, "secret": "not-the-secret-0123456789", "verify": false})
		first := m.history().Forced[0].Fence
		require.Equal(t, leak{Name: "victim", Requested: m.history().Leak.Requested, Left: 2, First: first}, *m.history().Leak)
	})
}

func TestADeletedAccountLeavesNoRevocation(t *testing.T) {
	inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.ok(logical.UpdateOperation, "config/demo", moveTo2(map[string]any{"verify": false}))
		m.ok(logical.DeleteOperation, "config/demo", nil)
		m.rollbackTick()
		other := &config{AppID: testAppID, BaseURL: "http://127.0.0.2"}
		if r := m.record(other); r.Leak != nil {
			t.Errorf("a leak response is left in storage: %+v", r.Leak)
		}
		before, _ := m.forcedCalls()
		m.write("new", moveTo2(nil))
		m.ticks(5)
		after, _ := m.forcedCalls()
		require.Equal(t, before, after, "a forced refresh that was not asked for")
	})
}

// To another way and back, before WeChat has accepted it there.
func TestARevocationSurvivesTwoMoves(t *testing.T) {
	inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		leaked := m.read("demo")["access_token"].(string)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.ok(logical.UpdateOperation, "config/demo", moveTo2(map[string]any{"verify": false}))
		resp := m.ok(logical.UpdateOperation, "config/demo", account1(nil))
		require.Nil(t, resp, "no warning that it has ended")
		m.ticks(5)
		m.hasRevoked(leaked)
	})
}

func TestATickDuringATrialEndsNoRevocation(t *testing.T) {
	inBubble(t, wechatsim.Account{ForceKeepsOld: true}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		leaked := m.read("demo")["access_token"].(string)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.sim.SetLatency(3 * time.Second)
		done := make(chan error)
		go func() { done <- m.try(logical.UpdateOperation, "config/demo", moveTo2(nil)) }()
		time.Sleep(time.Second)
		m.rollbackTick()
		require.NoError(t, <-done)
		m.sim.SetLatency(0)
		m.ticks(6)
		m.hasRevoked(leaked)
	})
}

func TestAMoveThatFailsLeavesNoRevocation(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("other", moveTo2(nil))
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.storage.failing(func(op, key string) error {
			if op == "put" && key == "config/demo" {
				return errStorage
			}
			return nil
		})
		require.Error(t, m.try(logical.UpdateOperation, "config/demo", moveTo2(nil)))
		m.storage.failing(nil)
		require.Nil(t, m.statusOf("other")["revocation"])
		m.ticks(5)
		seen, _ := m.forcedCalls()
		require.Equal(t, 2, seen)
	})
}

func TestARevocationThatAnotherNodeEndedIsNotPursued(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		key := historyKey(account1Config())
		r := m.history()
		r.Leak, r.RevokedAt = nil, time.Now().UTC().Truncate(time.Second)
		require.NoError(t, writeEntry(t.Context(), m.storage, key, r))
		m.InvalidateKey(t.Context(), key)
		m.read("demo")
		m.ticks(3)
		seen, _ := m.forcedCalls()
		require.Equal(t, 1, seen)
	})
}

// eachNamesTurn is the minutes in which each of two names has made a call of a pending leak
// response: no wait after a failure is longer than backoffRevocation.Most.
const eachNamesTurn = 2*10 + 1

// An AppID is public. Were the response carried on by the names that are there, a stranger who
// had begun one at a server of their own could use up their forced refreshes.
func TestARevocationThatMovesToOthersWaitsForAnAcceptedSecret(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", map[string]any{"base_url": "http://127.0.0.2"})
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.ok(logical.UpdateOperation, "config/demo", moveTo2(map[string]any{"secret": "not-the-secret-0123456789", "verify": false}))
		m.ticks(eachNamesTurn)
		require.Equal(t, revocationPending, m.statusOf("demo")["revocation"])
		require.Nil(t, m.statusOf("twin")["revocation"])
		seen, _ := m.forcedCalls()
		require.Equal(t, 1, seen)
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"secret": testSecret})
		m.ticks(3)
		require.NotContains(t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
		require.Equal(t, m.statusOf("twin")["revocation"], m.statusOf("demo")["revocation"])
	})
}

func TestARevocationStaysWithANameOfAnUntriedSecret(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.update("demo", map[string]any{"secret": "not-the-secret-0123456789", "verify": false})
		m.write("twin", nil)
		m.ok(logical.DeleteOperation, "config/twin", nil)
		require.Equal(t, revocationPending, m.statusOf("demo")["revocation"])
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"secret": testSecret})
		m.ticks(3)
		require.NotContains(t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
	})
}

func TestTheNameThatAskedForARevocationIsToldOfItWithAnUntriedSecret(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.update("demo", map[string]any{"secret": "not-the-secret-0123456789", "verify": false})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced"})
		m.ticks(5)
		require.Equal(t, revocationPending, m.statusOf("demo")["revocation"], "though another name's credentials carry it on")
		m.sim.ClearFaults()
		m.ticks(eachNamesTurn)
		require.NotContains(t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
		require.Equal(t, m.statusOf("twin")["revocation"], m.statusOf("demo")["revocation"])
	})
}

func TestWhenARevocationOfAnOlderBuildWasCompleteIsKept(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.close()
		cfg, err := loadConfig(t.Context(), m.storage, "demo")
		require.NoError(t, err)
		now := time.Now().UTC().Truncate(time.Second)
		revoked := now.Add(-time.Hour)
		require.NoError(t, m.storage.Delete(t.Context(), historyKey(cfg)))
		require.NoError(t, writeEntry(t.Context(), m.storage, "token/demo", map[string]any{
			"version": 1, "account_id": cfg.ID, "access_token": m.sim.Current(testAppID), "last_vault_rotation": now,
			"expire_time": now.Add(maxLifetime), "credentials": cfg.Credentials, "revoked_at": revoked,
		}))
		m.open()
		require.Equal(t, timestamp(revoked), m.statusOf("demo")["revocation"])
		time.Sleep(2 * rotationPeriod)
		m.reopen()
		require.Equal(t, timestamp(revoked), m.statusOf("demo")["revocation"], "with another token, too")
	})
}

func TestAReplacementFromOutsideIsNoStepOfALeakResponse(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		time.Sleep(5 * time.Second)
		m.sim.ForceOutside(testAppID)
		m.write("new", nil)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		n, _ := m.forcedCalls()
		require.Equal(t, 2, n)
	})
}

func TestACompleteLeakResponseIsNotRepeatedAfterALateWrite(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		old := mustGet(m, historyKey(account1Config()))
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		time.Sleep(2 * time.Minute)
		require.NotContains(t, []any{nil, "pending"}, m.statusOf("demo")["revocation"])
		m.close()
		require.NoError(t, m.storage.Put(t.Context(), old)) // late, by an instance that was closed
		m.open()
		m.ticks(10)
		seen, _ := m.forcedCalls()
		require.Equal(t, 2, seen)
	})
}

func TestALeakResponseTriesOneAccountAtATime(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for i := range 20 {
			m.write(fmt.Sprintf("team-e/%02d", i), nil)
		}
		m.write("victim", nil)
		m.sim.SetAccount(testAppID, wechatsim.Account{Secret: "another-secret-0123456789abcdef0"})
		m.ok(logical.UpdateOperation, "config/victim", map[string]any{"secret": "another-secret-0123456789abcdef0"})
		m.sim.Inject(wechatsim.Fault{Kind: "lost", Mode: "forced", Times: 1})
		m.refused(logical.UpdateOperation, "rotate/victim", map[string]any{"revoke": true})
		m.close()
		time.Sleep(time.Minute)
		m.sim.SetLatency(4 * time.Second) // less than request_timeout
		m.open()
		time.Sleep(3 * time.Second)
		begin := time.Now()
		for m.tokenOrError("victim") != nil {
			time.Sleep(time.Second)
		}
		require.LessOrEqual(t, time.Since(begin), 20*time.Second)
	})
}

func TestAnEarlierLeakResponseIsTakenOverThoughStorageFailsOnce(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprint(fails), func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
				m.close()
				requested := m.history().Leak.Requested
				m.makeOlder("demo", 1)
				key := "rotation/" + weixinIdentity(m.keeper.known("demo").cfg)
				var history map[string]any
				require.NoError(t, mustGet(m, key).DecodeJSON(&history))
				history["leak"] = map[string]any{"by": "demo", "requested": requested, "left": 1}
				require.NoError(t, writeEntry(t.Context(), m.storage, key, history))
				failed := false
				m.storage.failing(func(op, key string) error {
					if fails && !failed && op == "get" && key == "token/demo" {
						failed = true
						return errStorage
					}
					return nil
				})
				m.open()
				m.ticks(30)
				require.Equal(t, fails, failed)
				seen, _ := m.forcedCalls()
				require.Equal(t, 2, seen, "revocation %v", m.statusOf("demo")["revocation"])
			})
		})
	}
}

func TestTheGuardOfARefusedCallEndsNoLaterLeakResponse(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		put := false
		m.storage.failing(func(op, key string) error {
			if !strings.HasPrefix(key, "wal/") {
				return nil
			}
			if op == "put" && !put {
				put = true
				return nil
			}
			if op == "put" || op == "delete" {
				return errStorage
			}
			return nil
		})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced", Times: 1})
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		m.storage.failing(nil)
		require.Len(t, m.guards(), 1)
		time.Sleep(40 * time.Second)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
		m.reopen()
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
		m.ticks(5)
		_, effective := m.forcedCalls()
		require.Equal(t, 2, effective)
	})
}

func TestTheGuardOfARefusedStepRepeatsNoCompleteLeakResponse(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		puts := 0
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.storage.failing(func(op, key string) error {
			if !strings.HasPrefix(key, "wal/") {
				return nil
			}
			if op == "put" {
				if puts++; puts == 1 {
					return nil
				}
			}
			if puts <= 2 && (op == "put" || op == "delete") {
				return errStorage
			}
			return nil
		})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced", Times: 1})
		time.Sleep(45 * time.Second)
		m.storage.failing(nil)
		time.Sleep(2 * time.Minute)
		require.NotContains(t, []any{nil, "pending"}, m.statusOf("demo")["revocation"])
		_, effective := m.forcedCalls()
		require.Equal(t, 2, effective)
		m.reopen()
		m.ticks(5)
		_, effective = m.forcedCalls()
		require.Equal(t, 2, effective)
	})
}

func TestGuardsAreInTheOrderOfTheirCallsThoughTheClockWasSetBack(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		old := mustGet(m, historyKey(account1Config()))
		setClock(t, time.Hour)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		time.Sleep(40 * time.Second)
		setClock(t, 0)
		m.ticks(1)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.close()
		require.NoError(t, m.storage.Put(t.Context(), old)) // late, by an instance that was closed
		m.open()
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
	})
}

func TestOfTwoRevocationsAtOnceOneIsCarriedOut(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("a", nil)
		m.write("b", nil)
		m.sim.SetLatency(time.Second)
		var all sync.WaitGroup
		for _, path := range []string{"rotate/a", "rotate/b"} {
			all.Go(func() { _ = m.try(logical.UpdateOperation, path, map[string]any{"revoke": true}) })
		}
		all.Wait()
		m.ticks(5)
		_, effective := m.forcedCalls()
		require.Equal(t, 2, effective)
		require.Equal(t, m.statusOf("a")["revocation"], m.statusOf("b")["revocation"])
	})
}
