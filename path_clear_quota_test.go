package wechat

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

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
		time.Sleep(58 * time.Second)
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		require.Equal(t, 1, m.clearings())
		time.Sleep(2 * time.Second)
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
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

func TestAClearingThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		fault    wechatsim.Fault
		status   int
		says     string
		repeated bool // asked again at once, WeChat is asked again
	}{
		"the ten of this month are used up": {wechatsim.Fault{Kind: "errcode", Errcode: 48006}, 429, `the quota of account "demo" was not cleared: the ten clearings of this month are used up (errcode 48006, rid `, true},
		"wrong secret":                      {wechatsim.Fault{Kind: "errcode", Errcode: 40125}, 400, "errcode 40125, rid ", true},
		"forbidden":                         {wechatsim.Fault{Kind: "status", Status: 403}, 502, "was not cleared", true},
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
				require.NotContains(t, text, triesAgain)
				_, again := m.refused(logical.UpdateOperation, "clear-quota/demo", nil)
				if c.repeated {
					require.Equal(t, 2, m.clearings())
				} else {
					require.Equal(t, text, again)
					require.Equal(t, 1, m.clearings(), "it may have cost one of the ten")
				}
				m.sim.ClearFaults()
				time.Sleep(clearingMemory)
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
		status, text := m.refused(logical.UpdateOperation, "clear-quota/nobody", nil)
		require.Equal(t, http.StatusBadRequest, status)
		require.Contains(t, text, "no account")
		resp := m.ok(logical.UpdateOperation, "clear-quota/demo", map[string]any{"unknown": "x"})
		require.NotNil(t, resp, "the framework names the unknown field")
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
