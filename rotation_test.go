package wechat

import (
	"fmt"
	"net/http"
	"slices"
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

// forcedCalls returns how many forced calls WeChat saw, and how many of them
// replaced the token.
func (m *mount) forcedCalls() (seen, effective int) {
	for _, call := range m.sim.Calls("") {
		if call.Forced {
			seen++
			if call.Issued {
				effective++
			}
		}
	}
	return seen, effective
}

func (m *mount) statusOf(name string) map[string]any {
	m.t.Helper()
	return m.ok(logical.ReadOperation, "status/"+name, nil).Data
}

// ticks lets time pass as under Vault, which ticks once a minute.
func (m *mount) ticks(minutes int) {
	m.t.Helper()
	m.ticksEvery(time.Minute, minutes)
}

func (m *mount) ticksEvery(interval time.Duration, times int) {
	m.t.Helper()
	for range times {
		time.Sleep(interval)
		_, err := m.HandleRequest(m.t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: m.storage})
		require.NoError(m.t, err)
		synctest.Wait()
	}
}

func TestRotateReplacesTheTokenByForce(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		old := m.read("demo")
		resp := m.ok(logical.UpdateOperation, "rotate/demo", nil)
		require.Equal(t, 19, resp.Data["rotations_remaining"])
		require.Len(t, resp.Data, 3)
		require.Empty(t, resp.Warnings)
		_, errcode := m.sim.Check(old["access_token"].(string))
		require.Equal(t, 40001, errcode, "the old token is dead")
		now := m.read("demo")
		require.Equal(t, now["last_vault_rotation"], resp.Data["last_vault_rotation"])
		require.Equal(t, now["expire_time"], resp.Data["expire_time"])
		require.NotEqual(t, old["last_vault_rotation"], now["last_vault_rotation"])
		require.Equal(t, 2, m.calls())
		m.reopen()
		require.Equal(t, now["access_token"], m.read("demo")["access_token"])
		require.Equal(t, 2, m.calls())
	})
}

func TestRotateKeepsWeChatsLimits(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("team/twin", nil)
		begin := time.Now()
		m.ok(logical.UpdateOperation, "rotate/demo", nil)

		time.Sleep(29 * time.Second)
		status, text := m.refused(logical.UpdateOperation, "rotate/team/twin", nil)
		require.Equal(t, http.StatusTooManyRequests, status, "names that share an appid share its limits")
		require.Contains(t, text, "try again in 1 seconds")
		time.Sleep(2 * time.Second)
		m.ok(logical.UpdateOperation, "rotate/team/twin", nil)

		for n := 2; n < forcedPerDay; n++ {
			time.Sleep(forcedSpacing)
			resp := m.ok(logical.UpdateOperation, "rotate/demo", nil)
			require.Equal(t, forcedPerDay-1-n, resp.Data["rotations_remaining"])
		}
		time.Sleep(time.Hour)
		for name, meanwhile := range map[string]func(){
			"a restart":    m.reopen,
			"a deletion":   func() { m.ok(logical.DeleteOperation, "config/demo", nil); m.write("demo", nil) },
			"a new secret": func() { m.write("demo", nil) },
		} {
			meanwhile()
			status, text = m.refused(logical.UpdateOperation, "rotate/demo", nil)
			require.Equal(t, http.StatusTooManyRequests, status, name)
			wait := time.Until(begin.Add(day))
			require.Contains(t, text, fmt.Sprintf("try again in %d seconds", int(wait.Seconds())), name)
			require.Equal(t, 0, m.statusOf("demo")["rotations_remaining"], name)
		}
		seen, effective := m.forcedCalls()
		require.Equal(t, forcedPerDay, seen, "the 21st is not sent")
		require.Equal(t, forcedPerDay, effective)

		time.Sleep(time.Until(begin.Add(day)))
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
	})
}

// A client repeats by itself what got no good answer, and shows only the last one.
func TestARepetitionIsToldWhatTheForcedRefreshBeforeItDid(t *testing.T) {
	lost := wechatsim.Fault{Kind: "lost", Mode: "forced", Times: 1}
	busy := wechatsim.Fault{Kind: "errcode", Errcode: -1, Mode: "forced", Times: 1}
	asked := func(m *mount) { m.read("demo") }
	for name, c := range map[string]struct {
		fault wechatsim.Fault
		then  func(m *mount)
		name  string // that repeats
		says  string // "AT" stands for the time of the first
	}{
		"it was answered":                  {wechatsim.Fault{}, nil, "demo", `was not replaced again, as the forced refresh of account "demo" at AT has replaced it`},
		"its answer was lost":              {lost, nil, "demo", `and whether the forced refresh of account "demo" at AT has replaced it is not known yet`},
		"its answer was lost, WeChat told": {lost, asked, "demo", `was not replaced again, as the forced refresh of account "demo" at AT has replaced it`},
		"WeChat was busy":                  {busy, nil, "demo", `and whether the forced refresh of account "demo" at AT has replaced it is not known yet`},
		"WeChat was busy, and told later":  {busy, asked, "demo", `was not replaced, nor has the forced refresh of account "demo" at AT replaced it`},
		"WeChat handed out the same token": {wechatsim.Fault{Kind: "sametoken", Times: 1}, nil, "demo", `was not replaced, nor has the forced refresh of account "demo" at AT replaced it`},
		"by another name":                  {wechatsim.Fault{}, nil, "twin", `the token of account "twin" was not replaced again, as the forced refresh of account "demo" at AT has`},
		"from another level":               {wechatsim.Fault{}, nil, "team/twin", `as the forced refresh of an account at another level at AT has replaced it`},
		"after a restart":                  {wechatsim.Fault{}, func(m *mount) { m.reopen() }, "demo", `and whether a forced refresh at AT, before the engine's last start, has replaced it is not known:`},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				for _, name := range []string{"demo", "twin", "team/twin"} {
					m.write(name, nil)
				}
				if c.fault.Kind != "" {
					m.sim.Inject(c.fault)
				}
				at := timestamp(time.Now())
				_ = m.try(logical.UpdateOperation, "rotate/demo", nil)
				if c.then != nil {
					c.then(m)
				}
				status, text := m.refused(logical.UpdateOperation, "rotate/"+c.name, nil)
				require.Equal(t, http.StatusTooManyRequests, status)
				require.Contains(t, text, strings.ReplaceAll(c.says, "AT", at))
				require.Contains(t, text, "try again in ")
				require.NotContains(t, text, "revocation")
				time.Sleep(2 * forcedSpacing)
				m.ok(logical.UpdateOperation, "rotate/demo", nil)
			})
		})
	}
}

func TestRotateReachesTheOtherNamesOfTheAppID(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		m.read("twin")
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		require.Equal(t, m.read("demo")["access_token"], m.read("twin")["access_token"])

		// Also if the twin is not in memory when it happens, and read first after
		// a restart.
		time.Sleep(time.Minute)
		m.reopenWithoutBackground()
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		m.reopenWithoutBackground()
		m.read("twin")
	})
}

func TestRotateAnswersTheSameTokenWithAWarning(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		old := m.read("demo")
		m.sim.Inject(wechatsim.Fault{Kind: "sametoken", Times: 1})
		resp := m.ok(logical.UpdateOperation, "rotate/demo", nil)
		require.Len(t, resp.Warnings, 1)
		require.Contains(t, resp.Warnings[0], "nothing was rotated")
		require.Equal(t, 19, resp.Data["rotations_remaining"], "it counts")
		require.Equal(t, old["last_vault_rotation"], m.read("demo")["last_vault_rotation"])
		calls := m.calls()
		m.read("demo")
		require.Equal(t, calls, m.calls(), "WeChat confirmed the token")
	})
}

func TestRotateThatWeChatRefusesChangesNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		old := m.read("demo")
		calls := m.calls()
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40125})
		status, text := m.refused(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		require.Equal(t, http.StatusBadRequest, status)
		require.Contains(t, text, "40125")
		require.Equal(t, old["access_token"], m.read("demo")["access_token"], "a definite errcode restores the token")
		require.Equal(t, old["access_token"], m.read("twin")["access_token"])
		require.Equal(t, calls+1, m.calls())
		got := m.statusOf("demo")
		require.Equal(t, 20, got["rotations_remaining"])
		require.Nil(t, got["revocation"])
		m.ticks(3)
		require.Equal(t, calls+1, m.calls(), "nothing follows")
		m.sim.ClearFaults()
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
	})
}

func TestRotateDoesNotWaitForRememberedFailures(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 89506, Times: 1})
		m.refused(logical.ReadOperation, "token/demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		m.read("demo")
	})
}

func TestReadersWaitWhileATokenIsBeingReplacedByForce(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		m.sim.SetLatency(time.Second)
		var all sync.WaitGroup
		all.Go(func() { m.ok(logical.UpdateOperation, "rotate/demo", nil) })
		synctest.Wait() // the forced call is on its way
		for _, name := range []string{"demo", "twin"} {
			for range 10 {
				all.Go(func() { m.read(name) }) // checks that WeChat accepts it
			}
		}
		all.Wait()
		require.Equal(t, 1, m.sim.MaxInFlight(testAppID), "nothing else is asked meanwhile")
	})
}

// walEntries returns what the write-ahead log announces. The records of forced calls,
// which go when no late write can come, are for guards.
func (m *mount) walEntries() []string {
	m.t.Helper()
	ids, err := framework.ListWAL(m.t.Context(), m.storage)
	require.NoError(m.t, err)
	return slices.DeleteFunc(ids, func(id string) bool {
		entry, err := framework.GetWAL(m.t.Context(), &m.storage.InmemStorage, id)
		return err == nil && entry.Kind == walGuard
	})
}

// putOlderLeak stores a leak response as builds before this one did.
func (m *mount) putOlderLeak(r olderLeak) {
	m.t.Helper()
	_, err := framework.PutWAL(m.t.Context(), &m.storage.InmemStorage, walRevocation, r)
	require.NoError(m.t, err)
}

func (m *mount) guards() []guard {
	m.t.Helper()
	all, err := readLog(m.t.Context(), &m.storage.InmemStorage)
	require.NoError(m.t, err)
	return all.guards
}

func TestAForcedRefreshThatFailsShowsInTheStatus(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: 503})
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		got := m.statusOf("demo")
		require.Equal(t, "failing", got["state"])
		require.Contains(t, got["last_error"].(map[string]any)["message"], "server error")
		m.sim.ClearFaults()
		m.read("demo") // without waiting
		require.Equal(t, "healthy", m.statusOf("demo")["state"])
	})
}

func TestASecondForcedRefreshThatFailsIsTriedForADay(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced"})
		m.ticks(60)
		seen, effective := m.forcedCalls()
		require.Equal(t, 1, effective)
		require.Greater(t, seen, 3)
		require.Less(t, seen, 15, "with backoff")
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
		m.read("demo") // the failing second refresh takes no token away
		m.sim.ClearFaults()
		m.ticks(61)
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
	})
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced"})
		m.ticks(25 * 60)
		require.Nil(t, m.statusOf("demo")["revocation"])
		require.Empty(t, m.walEntries())
		require.Contains(t, m.logs.String(), "given up")
	})
}

func TestADayOfTheSameTokenAgainLeavesSomeOfTheBudget(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.sim.Inject(wechatsim.Fault{Kind: "sametoken", Mode: "forced"})
		time.Sleep(day - time.Second)
		synctest.Wait()
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
		require.Greater(t, m.statusOf("demo")["rotations_remaining"], 2)
	})
}

func TestTheSecondForcedRefreshWaitsForTheBudget(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		begin := time.Now()
		for range forcedPerDay - 1 {
			m.ok(logical.UpdateOperation, "rotate/demo", nil)
			time.Sleep(forcedSpacing)
		}
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.ticks(60)
		require.Equal(t, "pending", m.statusOf("demo")["revocation"])
		seen, _ := m.forcedCalls()
		require.Equal(t, forcedPerDay, seen, "waiting costs no call")
		m.ticks(23 * 60)
		require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
		require.Greater(t, time.Since(begin), day)
	})
}

func TestAForcedRefreshThatBringsATokenAboutToEndIsAFailure(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		stored := m.snapshot()["token/demo"]
		m.sim.Inject(wechatsim.Fault{Kind: "expires_in", ExpiresIn: "4", Mode: "forced", Times: 1})
		status, text := m.refused(logical.UpdateOperation, "rotate/demo", nil)
		require.Equal(t, http.StatusBadGateway, status)
		require.Contains(t, text, "only 4s left")
		require.Contains(t, text, "is not known")
		require.Equal(t, stored, m.snapshot()["token/demo"], "it is not stored")
		got := m.statusOf("demo")
		require.Equal(t, "failing", got["state"])
		require.Equal(t, 19, got["rotations_remaining"])
		m.read("demo")
		require.Equal(t, "healthy", m.statusOf("demo")["state"])
	})
}

func TestABusyWeChatMayHaveReplacedTheToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		old := m.read("demo")
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: -1, Mode: "forced", Times: 1})
		calls := m.calls()
		status, text := m.refused(logical.UpdateOperation, "rotate/demo", nil)
		require.Equal(t, http.StatusBadGateway, status)
		require.Contains(t, text, "errcode -1")
		require.Contains(t, text, "is not known")
		require.Equal(t, 19, m.statusOf("demo")["rotations_remaining"], "it may have counted")
		require.Equal(t, calls+1, m.calls())
		require.Equal(t, old["access_token"], m.read("demo")["access_token"])
		require.Equal(t, calls+2, m.calls(), "only after WeChat has confirmed it")
	})
}

func TestTheBudgetIsThatOfTheLast24Hours(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		begin := time.Now()
		for range forcedPerDay {
			m.ok(logical.UpdateOperation, "rotate/demo", nil)
			time.Sleep(forcedSpacing)
		}
		refusedFor := func(seconds string) {
			t.Helper()
			require.Equal(t, 0, m.statusOf("demo")["rotations_remaining"])
			status, text := m.refused(logical.UpdateOperation, "rotate/demo", nil)
			require.Equal(t, http.StatusTooManyRequests, status)
			require.Contains(t, text, "20 forced refreshes of an appid in 24 hours")
			require.Contains(t, text, "try again in "+seconds+" seconds")
		}
		time.Sleep(time.Until(begin.Add(23*time.Hour + 30*time.Minute)))
		refusedFor("1800")
		time.Sleep(time.Until(begin.Add(day - 1500*time.Millisecond)))
		refusedFor("2") // who waits that long is not refused again
		time.Sleep(time.Until(begin.Add(day - time.Millisecond)))
		refusedFor("1")

		time.Sleep(time.Millisecond)
		require.Equal(t, 1, m.statusOf("demo")["rotations_remaining"], "the first no longer counts")
		time.Sleep(4 * forcedSpacing)
		require.Equal(t, 5, m.statusOf("demo")["rotations_remaining"])
		resp := m.ok(logical.UpdateOperation, "rotate/demo", nil)
		require.Equal(t, 4, resp.Data["rotations_remaining"])
		require.Len(t, m.history().Forced, forcedPerDay, "storage keeps the latest, and no more than a day allows")
		time.Sleep(day)
		require.Equal(t, forcedPerDay, m.statusOf("demo")["rotations_remaining"])
	})
}

func TestTheSecondsToWaitAreRoundedUp(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		for _, c := range []struct {
			after time.Duration
			says  string
		}{
			{0, "try again in 30 seconds"},
			{time.Millisecond, "try again in 30 seconds"},
			{forcedSpacing - 1500*time.Millisecond, "try again in 2 seconds"},
			{forcedSpacing - time.Second, "try again in 1 seconds"},
			{forcedSpacing - time.Millisecond, "try again in 1 seconds"},
		} {
			time.Sleep(time.Until(m.sim.Calls("")[1].Time.Add(c.after)))
			_, text := m.refused(logical.UpdateOperation, "rotate/demo", nil)
			require.Contains(t, text, c.says, "after %s", c.after)
		}
		time.Sleep(time.Millisecond)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
	})
}

// forcing are the operations after which a token may be dead.
var forcing = map[string]func(m *mount){
	"rotate":  func(m *mount) { _ = m.try(logical.UpdateOperation, "rotate/demo", nil) },
	"refresh": func(m *mount) { _ = m.try(logical.UpdateOperation, "refresh/demo", nil) },
	"revoke": func(m *mount) {
		_ = m.try(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		time.Sleep(forcedSpacing + time.Second)
		synctest.Wait()
	},
	"refresh after a replacement outside": func(m *mount) {
		m.sim.ForceOutside(testAppID)
		_ = m.try(logical.UpdateOperation, "refresh/demo", nil)
	},
}

// wechatFaults are what WeChat, or the way to it, may do to the calls of an
// operation; "" is nothing.
var wechatFaults = []wechatsim.Fault{
	{},
	{Kind: "errcode", Errcode: 40125},
	{Kind: "errcode", Errcode: 45009},
	{Kind: "errcode", Errcode: -1},
	{Kind: "errcode", Errcode: 99999},
	{Kind: "status", Status: 503},
	{Kind: "reset"},
	{Kind: "lost"},
	{Kind: "hang"},
	{Kind: "truncate"},
	{Kind: "oversize"},
	{Kind: "notjson"},
	{Kind: "notoken"},
	{Kind: "expires_in", ExpiresIn: "0"},
	{Kind: "redirect"},
	{Kind: "sametoken"},
}

// bothAtOnce are the faults that are tried together with each of storage's: one
// for each way in which a call can end. The others end like one of them.
var bothAtOnce = map[string]bool{"": true, "errcode": true, "lost": true, "hang": true, "sametoken": true}

func TestNoFaultMakesTheEngineHandOutAKilledToken(t *testing.T) {
	var mu sync.Mutex
	cases := map[string]int{}
	for operation := range forcing {
		for _, wechat := range wechatFaults {
			for _, storage := range []string{"well", "fails", "cut off", lostAnswer} {
				if storage != "well" && !bothAtOnce[wechat.Kind] {
					continue
				}
				for _, restart := range []bool{false, true} {
					name := fmt.Sprintf("%s/%s%d/storage %s/restart %t", operation, wechat.Kind, wechat.Errcode, storage, restart)
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						n := 1
						for forceWithFaults(t, operation, wechat, storage, n, restart) && storage != "well" {
							n++
						}
						mu.Lock()
						defer mu.Unlock()
						cases[operation] += n
					})
				}
			}
		}
	}
	t.Cleanup(func() {
		total := 0
		for operation, n := range cases {
			t.Logf("%s: %d cases", operation, n)
			total += n
		}
		require.Greater(t, total, 900)
	})
}

// forceWithFaults carries out an operation while WeChat misbehaves at its first
// call and storage at its n-th operation, and checks that from then on no reader
// of any name is handed a token that WeChat does not accept. It reports whether
// there was an n-th operation.
func forceWithFaults(t *testing.T, operation string, wechat wechatsim.Fault, storage string, n int, restart bool) bool {
	t.Helper()
	struck := false
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		leaked := m.read("demo")["access_token"].(string)
		time.Sleep(minCallInterval) // or a refresh would be answered from the last answer
		if wechat.Kind != "" {
			wechat.Times = 1
			m.sim.Inject(wechat)
		}
		switch storage {
		case "well":
		case lostAnswer:
			m.storage.losingAnswer(n)
		default:
			m.storage.failing(faults[storage](n))
		}
		first := m.storage.count()
		forcing[operation](m)
		struck = m.storage.count()-first >= n

		outside := operation == "refresh after a replacement outside"
		acceptable := func(name string) bool {
			resp, err := m.request(logical.ReadOperation, "token/"+name, nil)
			if err != nil || resp.IsError() {
				return false
			}
			token := resp.Data["access_token"].(string)
			_, errcode := m.sim.Check(token)
			if outside && token == leaked {
				return true // replaced from outside: it is noticed in time, not at once
			}
			require.Zero(t, errcode, "%s: the engine handed out a killed token", name)
			return true
		}
		// Storage may still be out of order, WeChat may be well.
		acceptable("demo")
		acceptable("twin")
		if restart {
			m.close()
		}
		m.storage.failing(nil)
		m.storage.losingAnswer(0)
		if restart {
			m.open()
		}
		acceptable("twin")
		acceptable("demo")
		m.sim.ClearFaults()
		m.ticks(2)
		acceptable("demo")
		m.ticksEvery(10*time.Minute, 13) // longer than any failure here is remembered
		for _, name := range []string{"demo", "twin"} {
			require.True(t, acceptable(name), "%s: no token after everything is well again", name)
		}
		seen, effective := m.forcedCalls()
		require.Empty(t, m.walEntries())
		switch operation {
		case "revoke":
			require.LessOrEqual(t, effective, 2)
			if effective > 0 {
				require.Equal(t, 2, effective, "one forced refresh is only half an answer to a leak")
				require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
			}
		case "rotate":
			require.LessOrEqual(t, seen, 1)
		default:
			require.Zero(t, seen, "a report never forces")
		}
	})
	return struck
}

func TestTheSpacingCountsFromWhenWeChatSawTheCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.SetLatency(3 * time.Second) // WeChat works at once and answers late
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		m.sim.SetLatency(0)
		status, text := m.refused(logical.UpdateOperation, "rotate/demo", nil)
		require.Equal(t, http.StatusTooManyRequests, status)
		require.Contains(t, text, "try again in 30 seconds")
		time.Sleep(forcedSpacing)
		require.Empty(t, m.ok(logical.UpdateOperation, "rotate/demo", nil).Warnings)

		// An answer that never came may have been on its way for request_timeout.
		time.Sleep(forcedSpacing)
		m.sim.Inject(wechatsim.Fault{Kind: "reset", Times: 1})
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		_, text = m.refused(logical.UpdateOperation, "rotate/demo", nil)
		require.Contains(t, text, "try again in 35 seconds")
		require.Equal(t, 17, m.statusOf("demo")["rotations_remaining"])
	})
}

func TestAForcedCallThatArrivesLateIsNoticed(t *testing.T) {
	for name, meanwhile := range map[string]func(m *mount){
		"undisturbed": func(*mount) {},
		"restarted":   func(m *mount) { m.reopen() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil) // without comparisons
				m.sim.Inject(wechatsim.Fault{Kind: "hang", Mode: "forced"})
				m.refused(logical.UpdateOperation, "rotate/demo", nil)
				m.read("demo") // WeChat stands by the token
				meanwhile(m)
				m.sim.ForceOutside(testAppID) // and then the call reaches it
				time.Sleep(forcedSpacing + startHoldOff)
				synctest.Wait()
				m.read("demo")
				calls := m.calls()
				time.Sleep(time.Hour)
				m.reopen()
				time.Sleep(time.Hour / 2)
				require.Equal(t, calls, m.calls(), "it is checked once")
			})
		})
	}
}

func TestAClockThatWasSetBackBlocksNoRefreshAndLosesNoCount(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		ahead := make([]forcedCall, forcedPerDay-1)
		for i := range ahead {
			ahead[i].At = wallClock().Add(time.Hour)
		}
		require.NoError(t, writeEntry(t.Context(), m.storage, historyKey(account1Config()), &record{Version: schemaVersion, ledger: ledger{Forced: ahead}}))
		m.reopen()
		require.Equal(t, 0, m.ok(logical.UpdateOperation, "rotate/demo", nil).Data["rotations_remaining"])
		time.Sleep(forcedSpacing)
		status, _ := m.refused(logical.UpdateOperation, "rotate/demo", nil)
		require.Equal(t, http.StatusTooManyRequests, status)
		time.Sleep(day + time.Hour)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
	})
}

func TestALateRecordOfAForcedCallShortensNoSpacing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		time.Sleep(forcedSpacing)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		m.close()
		late := &guard{Key: historyKey(account1Config()), At: time.Now().Add(-20 * time.Second), Fence: 7}
		_, err := framework.PutWAL(t.Context(), m.storage, walGuard, late)
		require.NoError(t, err)
		time.Sleep(15 * time.Second)
		m.open()
		status, _ := m.refused(logical.UpdateOperation, "rotate/demo", nil)
		require.Equal(t, http.StatusTooManyRequests, status)
		require.Equal(t, forcedPerDay-2, m.statusOf("demo")["rotations_remaining"], "it counts")
	})
}

func TestAClockSetForwardBringsNoForcedCallTooSoon(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		time.Sleep(2 * time.Second)
		setClock(t, time.Minute)
		m.ticksEvery(time.Second, 1)
		m.ticks(5)
		seen, effective := m.forcedCalls()
		require.Equal(t, 2, effective)
		require.Equal(t, 2, seen)
	})
}

func TestAClockSetBackBringsNoForcedCallTooSoon(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		time.Sleep(2 * time.Second)
		setClock(t, -time.Hour)
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
	})
}

func TestTheFailureOfALostCallIsReadWhileItIsNoted(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("a", nil)
		stop := make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					a := m.keeper.known("a")
					if f := a.failures[tokenSlot].Load(); f != nil {
						_ = f.Next.IsZero()
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
		for range 5 {
			m.sim.Inject(wechatsim.Fault{Kind: "lost", Mode: "forced"})
			_ = m.try(logical.UpdateOperation, "rotate/a", nil)
			time.Sleep(40 * time.Second)
		}
		close(stop)
		all.Wait()
		status := m.statusOf("a")
		require.Equal(t, stateHealthy, status["state"])
		require.EqualValues(t, forcedPerDay-5, status["rotations_remaining"])
	})
}

func TestARotateIsNotKeptWaitingByTheBackground(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for i := range 20 {
			m.write(fmt.Sprintf("n%02d", i), nil)
		}
		time.Sleep(rotationPeriod - time.Second)
		m.sim.Inject(wechatsim.Fault{Kind: "hang", Mode: "normal"})
		time.Sleep(2 * time.Second)
		begin := time.Now()
		err := m.try(logical.UpdateOperation, "rotate/n00", nil)
		t.Logf("after %s: %v", time.Since(begin), err)
		require.NoError(t, err)
		m.sim.ClearFaults()
	})
}
