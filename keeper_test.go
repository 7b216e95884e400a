package wechat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wake"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestACacheHitTouchesNeitherStorageNorWeChat(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		calls, ops := m.calls(), m.storage.count()
		for range 100 {
			m.read("demo")
		}
		require.Equal(t, calls, m.calls())
		require.Equal(t, ops, m.storage.count())
	})
}

func TestAThousandFirstReadsMakeOneCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		require.Zero(t, m.calls(), "with verify=false WeChat is not called")
		m.sim.SetLatency(300 * time.Millisecond)
		var readers sync.WaitGroup
		for range 1000 {
			readers.Go(func() { m.read("demo") })
		}
		readers.Wait()
		require.Equal(t, 1, m.calls())
		require.Equal(t, 1, m.sim.MaxInFlight(testAppID))
	})
}

func TestACallIsFinishedThoughItsReaderGoesAway(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.sim.SetLatency(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var readers sync.WaitGroup
		for range 2 { // one that makes the call, one that waits for it
			readers.Go(func() {
				_, _ = m.requestContext(ctx, logical.ReadOperation, "token/demo", nil)
			})
		}
		readers.Wait()
		m.read("demo")
		require.Equal(t, 1, m.calls(), "what the first reader's call brought is kept")
	})
}

func TestADueTokenIsReplacedByItsReader(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		first := m.read("demo")
		m.reopenWithoutBackground()
		time.Sleep(rotationPeriod - time.Second)
		require.Equal(t, first["access_token"], m.read("demo")["access_token"])
		require.Equal(t, int64(5), m.read("demo")["ttl"], "never below 5")
		time.Sleep(time.Second)
		second := m.read("demo")
		require.NotEqual(t, first["access_token"], second["access_token"])
		require.NotEqual(t, first["last_vault_rotation"], second["last_vault_rotation"])
		require.NotEqual(t, first["expire_time"], second["expire_time"])
		require.Equal(t, 2, m.calls())
	})
}

func TestDueTokensAreReplacedWithoutAnyReader(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for n := range 10 {
			time.Sleep(rotationPeriod + time.Second)
			synctest.Wait()
			require.Equal(t, n+2, m.calls())
		}
		calls := m.calls()
		m.read("demo")
		require.Equal(t, calls, m.calls())
	})
}

func TestATokenThatWasNeverReadCostsNoCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false, "sync_interval": "1m"})
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		require.Zero(t, m.calls())
	})
}

func TestWhatWasAskedForInVainIsTriedAgainWithoutAnyReader(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.sim.Inject(wechatsim.Fault{Kind: "reset", Times: 3})
		m.refused(logical.ReadOperation, "token/demo", nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 4, m.calls())
		m.read("demo")
		require.Equal(t, 4, m.calls())
	})
}

func TestRestartCostsNoCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		before := m.read("demo")
		time.Sleep(time.Hour)
		m.reopen()
		after := m.read("demo")
		delete(before, "ttl")
		delete(after, "ttl")
		require.Equal(t, before, after)
		require.Equal(t, 1, m.calls())
	})
}

func TestTokensDueDuringADownTimeAreReplacedAfterIt(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for n := range 200 {
			appid := fmt.Sprintf("wx%d", n)
			m.sim.SetAccount(appid, wechatsim.Account{Secret: testSecret})
			m.write(fmt.Sprintf("team/%d", n), map[string]any{"appid": appid})
		}
		m.close()
		time.Sleep(3 * time.Hour)
		calls := m.calls()
		m.sim.SetLatency(50 * time.Millisecond)
		m.open()
		require.Equal(t, calls, m.calls(), "the background holds off: Vault's storage may not be open for writing yet")
		time.Sleep(startHoldOff + time.Second)
		synctest.Wait()
		require.Equal(t, calls+200, m.calls(), "one call for each token that was due")
		require.LessOrEqual(t, m.sim.MaxInFlight(""), wake.Workers)
		require.Greater(t, m.sim.MaxInFlight(""), 1)
	})
}

func TestAValidTokenOutlivesWeChatsFailure(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		first := m.read("demo")
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: 503})
		time.Sleep(rotationPeriod + time.Second)
		synctest.Wait()
		for range 28 { // up to ten seconds before its end
			resp := m.ok(logical.ReadOperation, "token/demo", nil)
			require.Equal(t, first["access_token"], resp.Data["access_token"])
			require.Equal(t, first["last_vault_rotation"], resp.Data["last_vault_rotation"])
			require.LessOrEqual(t, resp.Data["ttl"], int64(10))
			require.GreaterOrEqual(t, resp.Data["ttl"], int64(5))
			require.Len(t, resp.Warnings, 1)
			require.Contains(t, resp.Warnings[0], "server error")
			time.Sleep(10 * time.Second)
		}
		time.Sleep(10 * time.Second)
		status, text := m.refused(logical.ReadOperation, "token/demo", nil)
		require.Equal(t, http.StatusBadGateway, status)
		require.Contains(t, text, "server error")
		require.Less(t, m.calls(), 20, "the background backs off")

		m.sim.ClearFaults()
		time.Sleep(time.Minute)
		require.Empty(t, m.ok(logical.ReadOperation, "token/demo", nil).Warnings)
	})
}

func TestAReadWaitsAtMostOnceWhileWeChatHangs(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.reopenWithoutBackground()
		time.Sleep(rotationPeriod)
		m.sim.Inject(wechatsim.Fault{Kind: "hang"})
		start := time.Now()
		m.read("demo")
		require.Equal(t, defaultRequestTimeout, time.Since(start), "the read that finds the token due waits for WeChat")
		for range 10 {
			start = time.Now()
			m.read("demo")
			require.Zero(t, time.Since(start), "after that the background retries, and reads do not wait")
			time.Sleep(time.Second)
		}
	})
}

func TestSyncNoticesATokenReplacedOutside(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"sync_interval": "5m"})
		first := m.read("demo")
		time.Sleep(time.Hour)
		require.Equal(t, first["last_vault_rotation"], m.read("demo")["last_vault_rotation"], "comparing changes nothing")
		require.InDelta(t, 13, m.calls(), 1.5, "one call each 5 minutes")
		outside := m.sim.ForceOutside(testAppID)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.Equal(t, outside, m.read("demo")["access_token"])
	})
}

func TestAFailedComparisonAddsNoWarning(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"sync_interval": "1m"})
		m.sim.Inject(wechatsim.Fault{Kind: "reset"})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Greater(t, m.calls(), 5)
		resp := m.ok(logical.ReadOperation, "token/demo", nil)
		require.Empty(t, resp.Warnings)
		require.Equal(t, int64(240), resp.Data["ttl"])
	})
}

func TestAComparisonThatFailedDoesNotKeepADueTokenFromBeingReplaced(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"sync_interval": "24h"})
		first := m.read("demo")
		m.reopenWithoutBackground()
		m.read("demo")
		m.keeper.known("demo").failures[tokenSlot].Store((*failure)(nil).after(&problem{Rule: upstream.RuleUnavailable}, moment(), moment()))
		time.Sleep(rotationPeriod)
		resp := m.ok(logical.ReadOperation, "token/demo", nil)
		require.Empty(t, resp.Warnings)
		require.NotEqual(t, first["access_token"], resp.Data["access_token"])
	})
}

func TestFailuresAreRememberedHoweverManyReadersCome(t *testing.T) {
	for name, c := range map[string]struct {
		fault  wechatsim.Fault
		status int
		wait   time.Duration // within it no further call is made
	}{
		"frozen secret":        {wechatsim.Fault{Kind: "errcode", Errcode: 40243}, 400, 30 * time.Second},
		"wrong secret":         {wechatsim.Fault{Kind: "errcode", Errcode: 40125}, 400, 30 * time.Second},
		"IP not admitted":      {wechatsim.Fault{Kind: "errcode", Errcode: 40164}, 400, 30 * time.Second},
		"quota of the minute":  {wechatsim.Fault{Kind: "errcode", Errcode: 45011}, 429, time.Minute},
		"quota of the day":     {wechatsim.Fault{Kind: "errcode", Errcode: 45009}, 429, time.Minute},
		"refused once":         {wechatsim.Fault{Kind: "errcode", Errcode: 89507}, 400, time.Minute},
		"refused twice":        {wechatsim.Fault{Kind: "errcode", Errcode: 89506}, 400, time.Minute},
		"account limited":      {wechatsim.Fault{Kind: "errcode", Errcode: 50002}, 400, 30 * time.Second},
		"busy":                 {wechatsim.Fault{Kind: "errcode", Errcode: -1}, 502, time.Second},
		"undocumented errcode": {wechatsim.Fault{Kind: "errcode", Errcode: 99999}, 502, time.Second},
		"unreachable":          {wechatsim.Fault{Kind: "reset"}, 502, time.Second},
		"about to end":         {wechatsim.Fault{Kind: "expires_in", ExpiresIn: "4"}, 502, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", map[string]any{"verify": false})
				m.write("other", map[string]any{"verify": false, "appid": "wxother"})
				m.sim.SetAccount("wxother", wechatsim.Account{Secret: testSecret})
				c.fault.AppID = testAppID
				m.sim.Inject(c.fault)
				status, first := m.refused(logical.ReadOperation, "token/demo", nil)
				require.Equal(t, c.status, status, first)
				require.Equal(t, 1, m.calls())

				time.Sleep(c.wait - time.Millisecond)
				var readers sync.WaitGroup
				for range 100 {
					readers.Go(func() {
						status, text := m.refused(logical.ReadOperation, "token/demo", nil)
						require.Equal(t, c.status, status)
						fresh, _, _ := fromMemory(t, text)
						require.Equal(t, first, fresh, "the remembered error is the answer")
					})
				}
				readers.Wait()
				require.Equal(t, 1, m.calls())
				m.read("other") // is not concerned
				require.Equal(t, 2, m.calls())

				time.Sleep(time.Millisecond)
				m.refused(logical.ReadOperation, "token/demo", nil)
				require.Equal(t, 3, m.calls())

				m.sim.ClearFaults()
				m.write("demo", map[string]any{"verify": false})
				m.read("demo") // a configuration write clears what was remembered
			})
		})
	}
}

// Vault answers a plugin whose binary was missing when it was unsealed that it "cannot
// write to storage during setup", until it is restarted.
func TestWhatWeChatAnsweredIsServedAlthoughStorageTakesNoWrites(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.storage.failing(func(op, _ string) error {
			if op == "put" {
				return errors.New("cannot write to storage during setup")
			}
			return nil
		})
		for range 100 {
			m.read("demo")
		}
		require.Equal(t, 1, m.calls())
		status := m.statusOf("demo")
		require.Equal(t, stateDegraded, status["state"])
		require.Contains(t, status["last_error"].(map[string]any)["advice"], "restart Vault")
		require.Contains(t, m.logs.String(), "during setup")

		time.Sleep(rotationPeriod + time.Second) // it is replaced without being stored
		synctest.Wait()
		m.read("demo")
		require.Equal(t, 2, m.calls())
		code, text := m.refused(logical.UpdateOperation, "rotate/demo", nil)
		require.Equal(t, http.StatusInternalServerError, code)
		require.Contains(t, text, "was not replaced")
		for what, try := range map[string]func() (int, string){
			`account "demo" was not changed`: func() (int, string) {
				return m.refused(logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60})
			},
			`account "new" was not stored`: func() (int, string) {
				return m.refused(logical.UpdateOperation, "config/new", account1(map[string]any{"verify": false}))
			},
			`account "demo" was not deleted`: func() (int, string) { return m.refused(logical.DeleteOperation, "config/demo", nil) },
		} {
			code, text := try()
			require.Equal(t, http.StatusInternalServerError, code)
			require.Contains(t, text, what)
			require.Contains(t, text, "restart Vault")
		}
		forced, _ := m.forcedCalls()
		require.Zero(t, forced, "no forced call is made unless its announcement is stored")
		token := m.read("demo")["access_token"]

		m.storage.failing(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, stateHealthy, m.statusOf("demo")["state"])
		m.reopen()
		require.Equal(t, token, m.read("demo")["access_token"])
		require.Equal(t, 2, m.calls())
	})
}

func TestOddLifetimes(t *testing.T) {
	for name, c := range map[string]struct {
		expiresIn string
		ttl       int64         // at once
		due       time.Duration // after the answer
	}{
		"the least that WeChat documents": {"300", 10, 10 * time.Second},
		"a little more":                   {"310", 20, 20 * time.Second},
		"less than documented":            {"60", 10, 10 * time.Second},
		"very short":                      {"12", 6, 6 * time.Second},
		"very short indeed":               {"10", 5, 5 * time.Second},
		"more than two hours":             {"999999", 240, rotationPeriod},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.Inject(wechatsim.Fault{Kind: "expires_in", ExpiresIn: c.expiresIn})
				m.write("demo", nil)
				require.Equal(t, c.ttl, m.ok(logical.ReadOperation, "token/demo", nil).Data["ttl"])
				require.Equal(t, c.due, time.Until(m.look("demo").st.Due))
				calls := m.calls()
				time.Sleep(c.due - time.Millisecond)
				m.ok(logical.ReadOperation, "token/demo", nil)
				require.Equal(t, calls, m.calls(), "an odd lifetime does not make every read a call")
			})
		})
	}
}

func TestOneCallAtATimeForAnAccount(t *testing.T) {
	// Readers, ticks, writes of the configuration and the background, over many
	// short lives: never two calls of one account at a time.
	inBubble(t, wechatsim.Account{Lifetime: 20 * time.Second, Overlap: 12 * time.Second}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.SetLatency(700 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		var all sync.WaitGroup
		repeat := func(every time.Duration, do func()) {
			all.Go(func() {
				for ctx.Err() == nil {
					do()
					time.Sleep(every)
				}
			})
		}
		for n := range 8 {
			repeat(time.Duration(300+n*70)*time.Millisecond, func() { m.read("demo") })
		}
		repeat(3*time.Second, func() { require.NoError(t, m.tick(ctx, nil)) })
		repeat(7*time.Second, func() { m.write("demo", nil) })
		all.Wait()
		require.Equal(t, 1, m.sim.MaxInFlight(testAppID))
		require.Greater(t, m.calls(), 30)
	})
}

func TestUnknownNamesLeaveNothingInMemory(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for n := range 100 {
			status, text := m.refused(logical.ReadOperation, fmt.Sprintf("token/unknown-%d", n), nil)
			require.Equal(t, http.StatusBadRequest, status)
			require.Contains(t, text, fmt.Sprintf("wechat/config/unknown-%d", n))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _ = m.requestContext(ctx, logical.ReadOperation, "token/unknown", nil)
		require.Empty(t, m.keeper.doors)
		require.Zero(t, m.keeper.schedule.Len())
		require.Zero(t, m.calls())
	})
}

func TestClosingTheMountEndsACallInFlight(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false, "request_timeout": "30s"})
		m.sim.Inject(wechatsim.Fault{Kind: "hang"})
		start := time.Now()
		var reader sync.WaitGroup
		reader.Go(func() {
			_, err := m.request(logical.ReadOperation, "token/demo", nil)
			require.Error(t, err)
		})
		synctest.Wait()
		m.Cleanup(t.Context())
		reader.Wait()
		require.Zero(t, time.Since(start))
	})
}

func TestClosingTheMountTakesNoValidTokenFromAReader(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.reopenWithoutBackground()
		time.Sleep(rotationPeriod)
		m.sim.Inject(wechatsim.Fault{Kind: "hang"})
		var reader sync.WaitGroup
		reader.Go(func() { m.read("demo") })
		synctest.Wait()
		m.Cleanup(t.Context())
		reader.Wait()
	})
}

func TestTheBackgroundTriesAgainToListTheAccounts(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.close()
		m.storage.failing(func(op, _ string) error {
			if op == "list" {
				return errStorage
			}
			return nil
		})
		m.open()
		time.Sleep(time.Hour)
		m.storage.failing(nil)
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		require.Greater(t, m.calls(), 1, "the token was due without a reader")
	})
}

func TestAnAccountThatStorageDidNotGiveIsLoadedLater(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.close()
		m.storage.failing(func(op, key string) error {
			if op == "get" && key == historyKey(account1Config()) {
				return errStorage
			}
			return nil
		})
		m.open()
		m.storage.failing(nil)
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		require.Greater(t, m.calls(), 1)
	})
}

func TestATokenWhoseLifeWeChatShortensIsNotHandedOutPastIt(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"sync_interval": "1m"})
		first := m.read("demo")
		m.sim.Inject(wechatsim.Fault{Kind: "expires_in", ExpiresIn: "100", Times: 1})
		time.Sleep(time.Minute)
		synctest.Wait()
		require.WithinDuration(t, wallClock().Add(100*time.Second), m.look("demo").st.End, 10*time.Second)
		require.Equal(t, first["expire_time"], m.read("demo")["expire_time"], "constant for one token")
		require.LessOrEqual(t, m.read("demo")["ttl"], int64(10))
	})
}

func TestASuspendedMachineFindsItsTokensDueAtTheNextTick(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		time.Sleep(time.Minute)
		// Timers stand still while the machine is suspended, the wall clock does not.
		setClock(t, rotationPeriod)
		synctest.Wait()
		require.Equal(t, 1, m.calls())
		require.NoError(t, m.tick(t.Context(), nil))
		synctest.Wait()
		require.Equal(t, 2, m.calls())
	})
}

func TestTheEndThatWeChatNamedSurvivesARestart(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		expireTime := m.read("demo")["expire_time"]
		m.sim.Inject(wechatsim.Fault{Kind: "expires_in", ExpiresIn: "600", Times: 1})
		time.Sleep(minCallInterval)
		m.ok(logical.UpdateOperation, "refresh/demo", nil)
		m.reopen()
		require.Equal(t, expireTime, m.read("demo")["expire_time"])
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable})
		time.Sleep(597 * time.Second)
		m.refused(logical.ReadOperation, "token/demo", nil)
	})
}

func TestFailuresOfSeveralKindsBackOffTogether(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		faults := []wechatsim.Fault{
			{Kind: "status", Status: http.StatusServiceUnavailable, Times: 1},
			{Kind: "notjson", Times: 1},
			{Kind: "reset", Times: 1},
		}
		n := 0
		next := func(wechatsim.Call) {
			m.sim.Inject(faults[n%len(faults)])
			n++
		}
		next(wechatsim.Call{})
		m.sim.OnCall(next)
		m.refused(logical.ReadOperation, "token/demo", nil)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.InDelta(t, attempts(upstream.BackoffTransient, 10*time.Minute), m.calls(), 3)
	})
}

func TestAFailureWhileNothingIsDuePassesByItself(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil) // without comparisons
		time.Sleep(minCallInterval)
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable, Times: 2})
		m.refused(logical.UpdateOperation, "refresh/demo", nil)
		require.Equal(t, "degraded", m.statusOf("demo")["state"])
		time.Sleep(3 * time.Second)
		synctest.Wait()
		require.Equal(t, "healthy", m.statusOf("demo")["state"])
		calls := m.calls()
		time.Sleep(time.Hour)
		require.Equal(t, calls, m.calls())
	})
}

func TestAVerifiedWriteThatLearnsOfAnOutsideReplacementServesNoDeadToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.ForceOutside(testAppID)
		m.storage.failing(func(op, key string) error {
			if op == "put" && key == historyKey(account1Config()) {
				return errStorage
			}
			return nil
		})
		calls := m.calls()
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"secret": testSecret})
		m.read("demo")
		m.storage.failing(nil)
		m.read("demo")
		require.Equal(t, calls+1, m.calls(), "the write's own answer has settled it")
	})
}

// storedLater makes what is stored of the account demo as much later: the clock
// was set back since.
func (m *mount) storedLater(by time.Duration) {
	m.t.Helper()
	ctx := m.t.Context()
	r := m.history()
	r.Rotated, r.Timed, r.Shown, r.End = r.Rotated.Add(by), r.Timed.Add(by), r.Shown.Add(by), r.End.Add(by)
	for i := range r.Forced {
		r.Forced[i].At = r.Forced[i].At.Add(by)
	}
	if r.Leak != nil {
		r.Leak.Requested = r.Leak.Requested.Add(by)
	}
	require.NoError(m.t, writeEntry(ctx, m.storage, historyKey(account1Config()), r))
}

// setClockBack sets the machine's clock back, until the test ends.
func (m *mount) setClockBack(by time.Duration) {
	m.t.Helper()
	setClock(m.t, -by)
}

func TestAClockThatIsSetBackMakesNoDeadTokenLiveOn(t *testing.T) {
	for name, c := range map[string]struct {
		syncInterval string
		passes       time.Duration // after the clock was set back
	}{
		"without comparisons, at once":  {"0", 0},
		"with comparisons, at once":     {"5m", 0},
		"without comparisons, for long": {"0", 3 * time.Hour},
		"with comparisons, for long":    {"5m", 3 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", map[string]any{"sync_interval": c.syncInterval})
				time.Sleep(time.Minute)
				m.sim.ForceOutside(testAppID)
				m.setClockBack(8 * time.Hour) // a machine that took its clock for local time
				require.NoError(t, m.tick(t.Context(), nil))
				synctest.Wait()
				for begin := time.Now(); time.Since(begin) < c.passes; {
					m.read("demo")
					time.Sleep(time.Minute)
					require.NoError(t, m.tick(t.Context(), nil))
				}
				m.read("demo")
				require.Less(t, m.calls(), 60)
			})
		})
	}
}

func TestAClockThatIsSetBackPostponesNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.write("failing", map[string]any{"verify": false, "secret": "wrong-secret-0123456789"})
		m.refused(logical.ReadOperation, "token/failing", nil)
		require.Equal(t, "failing", m.statusOf("failing")["state"])
		m.setClockBack(8 * time.Hour)
		calls := m.calls()
		require.NoError(t, m.tick(t.Context(), nil))
		time.Sleep(forcedSpacing + time.Second)
		synctest.Wait()
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
		require.Greater(t, m.calls(), calls+1)
		m.read("demo")
	})
}

func TestAClockThatIsSetForwardOrBackALittleCostsNoCall(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, time.Minute, -clockTolerance} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			setClock(t, by)
			require.NoError(t, m.tick(t.Context(), nil))
			time.Sleep(time.Minute)
			require.NoError(t, m.tick(t.Context(), nil))
			synctest.Wait()
			require.Equal(t, 1, m.calls())
		})
	}
}

func TestAClockThatWasSetBackIsNoticedAfterARestart(t *testing.T) {
	for name, before := range map[string]func(m *mount){
		"set back while the plugin ran": func(m *mount) {
			m.setClockBack(8 * time.Hour)
			require.NoError(m.t, m.tick(m.t.Context(), nil))
			synctest.Wait()
			m.close()
		},
		"set back while it was down": func(m *mount) {
			m.close()
			m.storedLater(8 * time.Hour)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				time.Sleep(time.Minute)
				before(m)
				m.open()
				for begin := time.Now(); time.Since(begin) < 5*time.Hour; {
					held := m.read("demo")["access_token"].(string)
					time.Sleep(2 * time.Minute)
					_, errcode := m.sim.Check(held)
					require.Zero(t, errcode)
				}
				require.Zero(t, m.history().Fence, "WeChat replaced the tokens by itself")
			})
		})
	}
}

func TestAClockThatIsSetBackInventsNoSuccess(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.setClockBack(time.Hour)
		require.NoError(t, m.tick(t.Context(), nil))
		synctest.Wait()
		require.Nil(t, m.statusOf("demo")["last_success_time"])
		require.Zero(t, m.calls())
	})
}

func TestAReportInAnOutageIsNotForgotten(t *testing.T) {
	for _, syncInterval := range []string{"0", "5m", "24h"} {
		t.Run("sync_interval "+syncInterval, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", map[string]any{"sync_interval": syncInterval})
				time.Sleep(time.Minute)
				m.sim.ForceOutside(testAppID)
				m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable})
				m.refused(logical.UpdateOperation, "refresh/demo", nil)
				time.Sleep(10 * time.Minute)
				m.sim.ClearFaults()
				time.Sleep(kept.SlowRetry)
				synctest.Wait()
				m.read("demo")
				require.Equal(t, "healthy", m.statusOf("demo")["state"])
			})
		})
	}
}

// The order in which the background takes names is read without the lock.
func TestNamesOfOneTokenAreWrittenAndReadAtTheSameTime(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("a", nil)
		m.write("b", nil)
		var all sync.WaitGroup
		for range 20 {
			for _, name := range []string{"a", "b"} {
				all.Go(func() { _ = m.try(logical.UpdateOperation, "config/"+name, map[string]any{"verify": true}) })
				all.Go(func() { _ = m.try(logical.UpdateOperation, "config/"+name, map[string]any{"max_ttl": 60}) })
			}
			all.Wait()
			time.Sleep(time.Second)
		}
		token := m.ok(logical.ReadOperation, "token/a", nil).Data["access_token"]
		require.Equal(t, token, m.ok(logical.ReadOperation, "token/b", nil).Data["access_token"])
		_, errcode := m.sim.Check(token.(string))
		require.Zero(t, errcode)
	})
}

func TestARecordThatAnotherNodeChangesDuringACall(t *testing.T) {
	for _, path := range []string{"refresh/demo", "rotate/demo"} {
		t.Run(path, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				time.Sleep(time.Minute)
				m.sim.SetLatency(2 * time.Second)
				done := make(chan struct{})
				go func() { defer close(done); _ = m.try(logical.UpdateOperation, path, nil) }()
				time.Sleep(time.Second)
				m.InvalidateKey(t.Context(), historyKey(account1Config()))
				<-done
			})
		})
	}
}

func TestManyNamesOfOneTokenMakeFewCallsWhileWeChatIsDown(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		const n = 50
		for i := range n {
			m.write(fmt.Sprintf("n%02d", i), nil)
		}
		time.Sleep(rotationPeriod - time.Second)
		for range 5000 {
			m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009})
		}
		before := m.calls()
		time.Sleep(2 * time.Minute)
		require.Less(t, m.calls()-before, 20, "a quota waits from a minute to ten")
		m.sim.ClearFaults()
	})
}

func TestATokenWithoutAccountsIsNotWoken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("a", nil)
		m.storage.failing(func(op, key string) error {
			if key == "config/a" && op == "delete" {
				m.storage.lose = 1
			}
			return nil
		})
		require.Error(t, m.try(logical.DeleteOperation, "config/a", nil))
		m.storage.failing(nil)
		m.ticks(3)
		require.Empty(t, m.stored())
		require.Zero(t, m.keeper.schedule.Len())
	})
}

func TestWhatChangesWhileItIsLoadedIsReadAgain(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.keeper.invalidate(historyKey(account1Config()))
		key := historyKey(account1Config())
		m.at("get", key, func() {})
		m.storage.hooked(nil)
		var reads atomic.Int32
		m.storage.failing(func(op, k string) error {
			if op == "get" && k == key && reads.Add(1) == 1 {
				go m.keeper.invalidate(key)
				time.Sleep(time.Millisecond)
			}
			return nil
		})
		m.read("demo")
		m.read("demo")
		require.EqualValues(t, 2, reads.Load(), "what was read first is stale")
	})
}

func TestATokenThatTwoAccountsHaveLeftIsNotWoken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("a", map[string]any{"sync_interval": 300})
		m.storage.failing(func(op, key string) error {
			if op == "delete" && key == "config/a" {
				m.storage.lose = 1
			}
			return nil
		})
		require.Error(t, m.try(logical.DeleteOperation, "config/a", nil))
		m.storage.failing(nil)
		m.rollbackTick()
		require.Zero(t, m.keeper.schedule.Len())
	})
}

func TestAFirstReadWaitsForItsRequestTimeout(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("other", map[string]any{"request_timeout": 30})
		m.write("demo", map[string]any{"verify": false, "request_timeout": 1})
		m.sim.Inject(wechatsim.Fault{Kind: "hang", Mode: "forced"})
		var all sync.WaitGroup
		all.Go(func() { m.refused(logical.UpdateOperation, "rotate/other", nil) })
		synctest.Wait()
		begin := time.Now()
		_ = m.tokenOrError("demo")
		took := time.Since(begin)
		all.Wait()
		require.LessOrEqual(t, took, 2*time.Second)
	})
}

func TestAnAccountIsDeletedDuringATick(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.at("delete", "config/demo", func() { require.NoError(t, m.tick(t.Context(), nil)) })
		m.ok(logical.DeleteOperation, "config/demo", nil)
		require.NotContains(t, m.stored(), historyKey(account1Config()))
	})
}

func TestWhatStorageDidNotTakeSurvivesATickDuringADelete(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		dead := m.read("demo")["access_token"]
		time.Sleep(minCallInterval)
		m.storage.failing(func(op, key string) error {
			if op == "put" && key == historyKey(account1Config()) || op == "delete" {
				return errStorage
			}
			return nil
		})
		m.sim.ForceOutside(testAppID)
		require.Equal(t, true, m.refresh(dead)["changed"])
		m.at("delete", "config/demo", func() { require.NoError(t, m.tick(t.Context(), nil)) })
		m.refused(logical.DeleteOperation, "config/demo", nil)
		m.storage.failing(nil)
		require.NoError(t, m.tokenOrError("demo"))
		time.Sleep(time.Minute)
		require.NoError(t, m.tokenOrError("demo"))
	})
}

// loadedLate leaves a mount in which a and b share a token, b could not be loaded at the start,
// and a comparison by a hangs: so many calls hang, 0 for all. The caller waits for all.
func (m *mount) loadedLate(calls int) (all *sync.WaitGroup) {
	m.t.Helper()
	m.write("a", map[string]any{"request_timeout": "30s"})
	m.write("b", nil)
	m.close()
	m.storage.failing(func(op, key string) error {
		if op == "get" && key == "config/b" {
			return errStorage
		}
		return nil
	})
	m.open()
	m.storage.failing(nil)
	time.Sleep(5 * time.Second)
	m.sim.Inject(wechatsim.Fault{Kind: "hang", Mode: "normal", Times: calls})
	all = &sync.WaitGroup{}
	all.Go(func() { _ = m.try(logical.UpdateOperation, "refresh/a", nil) })
	time.Sleep(time.Second)
	return all
}

func TestATokenAtHandIsReadThoughAComparisonHangs(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		all := m.loadedLate(0)
		require.NoError(t, m.tokenOrError("a"))
		err := m.tokenOrError("b")
		all.Wait()
		require.NoError(t, err)
	})
}

func TestAfterAFailoverADueTokenIsReadThoughWeChatHangs(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		const names = 30
		for i := range names {
			m.write(fmt.Sprintf("n%02d", i), nil)
		}
		m.close()
		time.Sleep(rotationPeriod + time.Second)
		m.sim.Inject(wechatsim.Fault{Kind: "hang", Mode: "normal"})
		m.at("list", "config/", func() { time.Sleep(10 * time.Second) }) // storage is slow at a start
		m.backend = m.mountedOn(m.storage)
		require.NoError(t, m.Initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}))
		var mu sync.Mutex
		failed := map[string]int{}
		var all sync.WaitGroup
		begin := time.Now()
		for i := range names {
			all.Go(func() {
				for time.Since(begin) < 60*time.Second {
					if err := m.tokenOrError(fmt.Sprintf("n%02d", i)); err != nil {
						mu.Lock()
						failed[err.Error()]++
						mu.Unlock()
					}
					time.Sleep(time.Second)
				}
			})
		}
		all.Wait()
		require.Empty(t, failed)
	})
}

func TestADoorThatIsGoneTakesNoOtherWithIt(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		stale := m.keeper.enter("demo")
		require.True(t, stale.lock.TryAcquire(1)) // a request for an unknown name
		stale.release()
		m.write("demo", nil)
		stale.maintain(m.storage) // its job was set before the door was left
		require.NotNil(t, m.keeper.known("demo"))
		m.read("demo")
		require.Len(t, *m.keeper.known("demo").holder.present.Load(), 1)
	})
}

func TestAnAcceptedFirstCallIsNotRepeatedWhileAnotherNamesCallHangs(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("a", map[string]any{"request_timeout": "30s"})
		m.write("b", map[string]any{"verify": false})
		time.Sleep(time.Minute)
		m.sim.Inject(wechatsim.Fault{Kind: "hang", Mode: "normal", Times: 1})
		var all sync.WaitGroup
		all.Go(func() { _ = m.try(logical.UpdateOperation, "refresh/a", nil) })
		time.Sleep(time.Second)
		calls := m.calls()
		for range 3 {
			_ = m.tokenOrError("b")
		}
		all.Wait()
		synctest.Wait()
		require.Equal(t, calls+1, m.calls())
		require.NoError(t, m.tokenOrError("b"))
	})
}

func TestWhatATrialShowedOutlivesADeleteThatFails(t *testing.T) {
	for _, tick := range []bool{false, true} {
		t.Run(fmt.Sprint(tick), func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.sim.ForceOutside(testAppID)
				m.storage.failing(func(op, key string) error {
					if op == "put" && key == "config/new" {
						m.sim.Inject(wechatsim.Fault{Kind: "status", Status: 503})
						return errStorage
					}
					return nil
				})
				_ = m.try(logical.UpdateOperation, "config/new", account1(nil))
				m.storage.failing(nil)
				require.Error(t, m.tokenOrError("demo"), "it is known to be dead")
				m.storage.hooked(func(op, key string) {
					if op == "delete" && key == "config/demo" {
						m.storage.failing(func(string, string) error { return errStorage })
					}
				})
				m.refused(logical.DeleteOperation, "config/demo", nil)
				m.storage.hooked(nil)
				if tick {
					m.keeper.tick()
				}
				m.storage.failing(nil)
				for range 10 {
					_ = m.tokenOrError("demo") // which checks that no dead one is given
					time.Sleep(time.Minute)
				}
			})
		})
	}
}

func TestStatusTellsAHealthyAccountThoughAComparisonHangs(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		all := m.loadedLate(1)
		listed := m.ok(logical.ListOperation, "status/", nil).Data["key_info"].(map[string]any)
		all.Wait()
		require.Equal(t, stateHealthy, listed["b"].(map[string]any)["state"])
	})
}
