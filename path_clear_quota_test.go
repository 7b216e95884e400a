package wechat

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func (m *mount) clearings() int { return len(m.sim.CallsOf(wechatsim.APIClearQuota, "")) }

func TestClearingTheQuotaIsOneCallAMinute(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.SetLatency(time.Second)
		var retries sync.WaitGroup
		for range 10 {
			retries.Go(func() { require.Nil(t, m.ok(logical.UpdateOperation, "clear-quota/demo", nil)) })
		}
		retries.Wait()
		cleared := time.Now()
		time.Sleep(58 * time.Second)
		resp := m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		require.Equal(t, []string{fmt.Sprintf("The quota was cleared at %s, and WeChat was not asked again: it is from %s on.",
			timestamp(cleared), timestamp(cleared.Add(clearingMemory)))}, resp.Warnings)
		require.Equal(t, 1, m.clearings())
		time.Sleep(2*time.Second + 1)
		require.Nil(t, m.ok(logical.UpdateOperation, "clear-quota/demo", nil))
		require.Equal(t, 2, m.clearings())
	})
}

func TestClearingTheQuotaEndsTheWaitForIt(t *testing.T) {
	inBubble(t, wechatsim.Account{PerDay: 2}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.write("twin", map[string]any{"verify": false})
		m.write("other", map[string]any{"verify": false, "appid": "wxother"})
		m.sim.SetAccount("wxother", wechatsim.Account{Secret: testSecret})
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009})
		for _, name := range []string{"demo", "twin", "other"} {
			status, _ := m.refused(logical.ReadOperation, "token/"+name, nil)
			require.Equal(t, http.StatusTooManyRequests, status)
		}
		m.sim.ClearFaults()
		m.refused(logical.ReadOperation, "token/demo", nil)
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		m.read("demo")
		m.read("twin")
		status, _ := m.refused(logical.ReadOperation, "token/other", nil)
		require.Equal(t, http.StatusTooManyRequests, status, "it is of another appid")
	})
	t.Run("of a login", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
			m.write("demo", nil)
			m.write("twin", nil)
			m.write("other", map[string]any{"appid": "wxother", "verify": false})
			m.sim.SetAccount("wxother", wechatsim.Account{Secret: testSecret})
			m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 45009})
			for _, name := range []string{"demo", "twin", "other"} {
				m.loginFailsInARow(name)
			}
			m.sim.ClearFaults()
			m.loginFails("demo", m.mini())
			m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
			m.login("demo", m.mini())
			m.login("twin", m.mini())
			m.loginFails("other", m.sim.Mint("wxother", wechatsim.Code{}).Code)
		})
	})
	t.Run("of a revocation", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
			m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced"})
			time.Sleep(20 * time.Minute)
			synctest.Wait()
			m.sim.ClearFaults()
			require.Equal(t, "pending", m.statusOf("demo")["revocation"])
			m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
			time.Sleep(time.Second)
			synctest.Wait()
			require.NotEqual(t, "pending", m.statusOf("demo")["revocation"])
		})
	})
	t.Run("also if the client has gone away", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", map[string]any{"verify": false})
			m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009})
			m.refused(logical.ReadOperation, "token/demo", nil)
			m.sim.ClearFaults()
			m.sim.SetLatencyOf(wechatsim.APIClearQuota, 3*time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := m.requestContext(ctx, logical.UpdateOperation, "clear-quota/demo", nil)
			require.Equal(t, context.DeadlineExceeded, err)
			time.Sleep(5 * time.Second)
			m.read("demo")
		})
	})
	t.Run("also if a call was in the air", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", map[string]any{"verify": false})
			m.write("twin", map[string]any{"verify": false})
			m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Times: 1})
			m.sim.SetLatency(3 * time.Second)
			var late sync.WaitGroup
			late.Go(func() { m.refused(logical.ReadOperation, "token/twin", nil) })
			synctest.Wait()
			m.sim.SetLatency(0)
			start := time.Now()
			m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
			require.Zero(t, time.Since(start))
			late.Wait()
			m.read("twin")
		})
	})
	t.Run("and no other wait", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", map[string]any{"verify": false})
			m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 50002})
			m.refused(logical.ReadOperation, "token/demo", nil)
			m.sim.ClearFaults()
			m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
			status, _ := m.refused(logical.ReadOperation, "token/demo", nil)
			require.Equal(t, http.StatusBadRequest, status)
		})
	})
}

// An account of the same AppID may be busy for as long as it likes: a stranger's, whose
// proxy never answers.
func TestClearingTheQuotaWaitsForNoOtherCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("victim", nil)
		for n := range 3 {
			m.write(fmt.Sprintf("team-e/%d", n), map[string]any{"secret": "not-the-secret", "verify": false, "request_timeout": 30})
		}
		m.sim.Inject(wechatsim.Fault{Kind: "hang"})
		var busy sync.WaitGroup
		for n := range 3 {
			busy.Go(func() { m.refused(logical.ReadOperation, fmt.Sprintf("token/team-e/%d", n), nil) })
		}
		synctest.Wait()
		start := time.Now()
		m.ok(logical.UpdateOperation, "clear-quota/victim", nil)
		require.Zero(t, time.Since(start))
		busy.Wait()
		require.Equal(t, 30*time.Second, time.Since(start), "they were busy")
	})
}

func TestAClearingThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		fault    wechatsim.Fault
		status   int
		says     string
		repeated bool // asked again at once, WeChat is asked again
	}{
		"the ten of this month are used up": {wechatsim.Fault{Kind: "errcode", Errcode: 48006}, 429, `the quota of account "demo" was not cleared, and asking again within a minute gives this answer: the ten clearings of this month are used up (errcode 48006, rid `, false},
		"the day's are used up":             {wechatsim.Fault{Kind: "errcode", Errcode: 45009}, 429, "wait for the next day, or reset the quota in the account's console", false},
		"wrong secret":                      {wechatsim.Fault{Kind: "errcode", Errcode: 40125}, 400, "errcode 40125, rid ", false},
		"IP not admitted":                   {wechatsim.Fault{Kind: "errcode", Errcode: 40164}, 400, "errcode 40164, ", false},
		"forbidden":                         {wechatsim.Fault{Kind: "status", Status: 403}, 502, `the quota of account "demo" was not cleared: `, true},
		"busy":                              {wechatsim.Fault{Kind: "errcode", Errcode: -1}, 502, "whether the quota of account \"demo\" was cleared is not known", false},
		"lost":                              {wechatsim.Fault{Kind: "lost"}, 502, "is not known", false},
		"hang":                              {wechatsim.Fault{Kind: "hang"}, 502, "is not known", false},
		"an answer that says nothing":       {wechatsim.Fault{Kind: "raw", Body: "{}"}, 502, "is not known", false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				c.fault.API = wechatsim.APIClearQuota
				m.sim.Inject(c.fault)
				status, text := m.refused(logical.UpdateOperation, "clear-quota/demo", nil)
				require.Equal(t, c.status, status)
				require.Contains(t, text, c.says)
				require.NotContains(t, text, upstream.TriesAgain)
				_, again := m.refused(logical.UpdateOperation, "clear-quota/demo", nil)
				if c.repeated {
					require.Equal(t, 2, m.clearings())
				} else {
					require.Equal(t, text, timesTold.ReplaceAllString(again, "$3"))
					require.Equal(t, 1, m.clearings(), "it may have cost one of the ten")
				}
				m.sim.ClearFaults()
				time.Sleep(clearingMemory + 1)
				m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
			})
		})
	}
}

func TestAClearingIsOfOneAccount(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		m.write("demo", map[string]any{"request_timeout": 3})
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		require.Equal(t, 1, m.clearings())
		m.write("twin", nil)
		m.ok(logical.UpdateOperation, "clear-quota/twin", nil)
		require.Equal(t, 2, m.clearings())
		status, text := m.refused(logical.UpdateOperation, "clear-quota/absent", nil)
		require.Equal(t, http.StatusBadRequest, status)
		require.Contains(t, text, "no account")
	})
}

// An operator writes the configuration after a mend. What WeChat did stays done.
func TestAConfigWriteEndsTheRefusalOfAClearingAndNoClearing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{API: wechatsim.APIClearQuota, Kind: "errcode", Errcode: 40164})
		m.sim.SetLatencyOf(wechatsim.APIClearQuota, time.Second)
		m.refused(logical.UpdateOperation, "clear-quota/demo", nil)
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"verify": true})
		var late sync.WaitGroup
		late.Go(func() { m.refused(logical.UpdateOperation, "clear-quota/demo", nil) })
		synctest.Wait()
		m.sim.ClearFaults()
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"verify": true})
		late.Wait()
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		require.Equal(t, 3, m.clearings())

		m.sim.Update(testAppID, func(a *wechatsim.Account) { a.Secret = "another-secret" })
		m.write("demo", map[string]any{"secret": "another-secret"})
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		require.Equal(t, 3, m.clearings(), "it would be another of the ten")
	})
}

func TestAClearingIsFinishedWithoutItsRequest(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.SetLatency(2 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := m.requestContext(ctx, logical.UpdateOperation, "clear-quota/demo", nil)
		require.Equal(t, context.DeadlineExceeded, err)
		time.Sleep(5 * time.Second)
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		require.Equal(t, 1, m.clearings())
	})
}
