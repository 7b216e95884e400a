package wechat

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func (m *mount) refresh(rejected any) map[string]any {
	m.t.Helper()
	data := map[string]any{}
	if rejected != nil {
		data["rejected_token"] = rejected
	}
	return m.ok(logical.UpdateOperation, "refresh/demo", data).Data
}

func TestARejectedTokenThatIsNoLongerTheCurrentOneCostsNoCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		old := m.read("demo")["access_token"]
		time.Sleep(rotationPeriod + time.Second)
		now := m.read("demo")
		calls := m.calls()
		got := m.refresh(old)
		require.Equal(t, map[string]any{
			"changed": true, "known": true, "last_vault_rotation": now["last_vault_rotation"], "expire_time": now["expire_time"], "ttl": now["ttl"],
		}, got)
		require.Equal(t, calls, m.calls())
	})
}

func TestARejectedTokenIsReplacedIfWeChatHasAnother(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		old := m.read("demo")
		time.Sleep(minCallInterval)
		outside := m.sim.ForceOutside(testAppID)
		got := m.refresh(old["access_token"])
		require.Equal(t, true, got["changed"])
		require.NotEqual(t, old["last_vault_rotation"], got["last_vault_rotation"])
		require.Equal(t, outside, m.read("demo")["access_token"])
	})
}

func TestARejectedTokenThatWeChatStillAcceptsIsNotForced(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		token := m.read("demo")
		time.Sleep(minCallInterval)
		calls := m.calls()
		for range 100 {
			got := m.refresh(token["access_token"])
			require.Equal(t, false, got["changed"])
			require.Equal(t, token["last_vault_rotation"], got["last_vault_rotation"])
		}
		require.Equal(t, calls+1, m.calls(), "within ten seconds WeChat is asked once")
		time.Sleep(minCallInterval)
		m.refresh(nil)
		require.Equal(t, calls+2, m.calls())
		seen, _ := m.forcedCalls()
		require.Zero(t, seen)
	})
}

func TestAReportSaysWhetherTheTokenIsOrWasTheAccounts(t *testing.T) {
	const unknown = "of-another-account"
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		says := func(rejected, changed, known any) {
			t.Helper()
			got := m.refresh(rejected)
			require.Equal(t, changed, got["changed"])
			require.Contains(t, got, "known")
			require.Equal(t, known, got["known"])
		}
		first := m.read("demo")["access_token"].(string)
		for range 2 { // from memory, and from WeChat
			says(first, false, true)
			says(" "+first+"\n", false, true)
			says(unknown, false, false)
			says(first[:len(first)-1], false, false)
			says(nil, false, nil)
			time.Sleep(minCallInterval)
		}

		m.sim.ForceOutside(testAppID)
		says(unknown, true, false)
		says(first, true, true)
		time.Sleep(minCallInterval)
		second := m.read("demo")["access_token"].(string)
		m.sim.ForceOutside(testAppID)
		says(second, true, true)
		says(first, true, true)
		says(nil, false, nil)

		time.Sleep(forcedSpacing)
		third := m.read("demo")["access_token"].(string)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		says(third, true, true)

		m.reopen() // what was current before is not remembered
		says(third, false, false)
		says(m.read("demo")["access_token"], false, true)
		m.ok(logical.DeleteOperation, "config/demo", nil)
		m.write("demo", map[string]any{"verify": false})
		says(nil, true, nil)
		says(third, false, false)
	})
}

func TestAnEmptyRejectedTokenIsRefused(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		time.Sleep(minCallInterval)
		for _, name := range []string{"demo", "unknown"} {
			for _, empty := range []string{"", " ", "\n", "\r\n", "\t \u00a0"} {
				m.changesNothing(0, func() {
					status, text := m.refused(logical.UpdateOperation, "refresh/"+name, map[string]any{"rejected_token": empty})
					require.Equal(t, http.StatusBadRequest, status)
					require.Contains(t, text, "rejected_token is empty")
				})
			}
		}
		require.Zero(t, m.statusOf("demo")["rejections"])
	})
}

func TestAThousandReportsMakeOneCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		old := m.read("demo")["access_token"]
		time.Sleep(minCallInterval)
		calls := m.calls()
		m.sim.ForceOutside(testAppID)
		m.sim.SetLatency(500 * time.Millisecond)
		var reporters sync.WaitGroup
		for n := range 1000 {
			reporters.Go(func() {
				rejected := old
				if n%2 == 0 {
					rejected = nil
				}
				require.Equal(t, true, m.refresh(rejected)["changed"], "the token is another one than when the report came")
			})
		}
		reporters.Wait()
		require.Equal(t, calls+1, m.calls())
	})
}

func TestAReportRightAfterAnAnswerIsAnsweredFromIt(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		token := m.read("demo")["access_token"]
		m.sim.ForceOutside(testAppID)
		require.Equal(t, false, m.refresh(token)["changed"], "the write asked WeChat less than ten seconds ago")
		time.Sleep(minCallInterval)
		require.Equal(t, true, m.refresh(token)["changed"])
	})
}

func TestAReportIsTheFirstToAsk(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		require.Equal(t, true, m.refresh(nil)["changed"])
		m.read("demo")
		require.Equal(t, 1, m.calls())
	})
}

func TestAReportWeChatCannotAnswerIsAnErrorAndTheTokenStays(t *testing.T) {
	for name, c := range map[string]struct {
		fault  wechatsim.Fault
		status int
	}{
		"unreachable":  {wechatsim.Fault{Kind: "reset"}, http.StatusBadGateway},
		"wrong secret": {wechatsim.Fault{Kind: "errcode", Errcode: 40125}, http.StatusBadRequest},
		"quota":        {wechatsim.Fault{Kind: "errcode", Errcode: 45009}, http.StatusTooManyRequests},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				token := m.read("demo")["access_token"]
				time.Sleep(minCallInterval)
				m.sim.Inject(c.fault)
				calls := m.calls()
				for range 20 {
					status, _ := m.refused(logical.UpdateOperation, "refresh/demo", map[string]any{"rejected_token": token})
					require.Equal(t, c.status, status)
				}
				require.Equal(t, calls+1, m.calls())
				require.Equal(t, token, m.read("demo")["access_token"])
			})
		})
	}
}

func TestAReportSoonAfterAFailedAnswerIsAnsweredFromIt(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		token := m.read("demo")["access_token"]
		m.reopenWithoutBackground() // which would try again in between
		time.Sleep(minCallInterval)
		m.sim.Inject(wechatsim.Fault{Kind: "status", Status: 503, Times: 1})
		calls := m.calls()
		report := map[string]any{"rejected_token": token}
		_, first := m.refused(logical.UpdateOperation, "refresh/demo", report)
		require.Contains(t, first, "server error")
		for _, after := range []time.Duration{2 * time.Second, minCallInterval - time.Millisecond} { // the backoff is a second
			time.Sleep(time.Until(m.sim.Calls("")[calls].Time.Add(after)))
			status, text := m.refused(logical.UpdateOperation, "refresh/demo", report)
			require.Equal(t, http.StatusBadGateway, status)
			fresh, _, next := fromMemory(t, text)
			require.Equal(t, first, fresh)
			require.Equal(t, minCallInterval, next.Sub(m.sim.Calls("")[calls].Time.Truncate(time.Second)), "when a report has it asked")
			require.Equal(t, calls+1, m.calls(), "after %s", after)
		}
		time.Sleep(time.Millisecond)
		require.Equal(t, false, m.refresh(token)["changed"])
		require.Equal(t, calls+2, m.calls())
	})
}

func TestAReportAfterAForcedRefreshThatFailedIsAnsweredByWeChat(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		token := m.read("demo")["access_token"]
		m.reopenWithoutBackground()
		m.sim.Inject(wechatsim.Fault{Kind: "lost", Mode: "forced", Times: 1})
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		calls := m.calls()
		require.Equal(t, true, m.refresh(token)["changed"], "at once: what holds is not known yet")
		require.Equal(t, calls+1, m.calls())
	})
}

func TestAReportOfATokenThatWasReplacedDoesNotWait(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		old := m.read("demo")["access_token"]
		time.Sleep(minCallInterval)
		m.sim.ForceOutside(testAppID)
		require.Equal(t, true, m.refresh(old)["changed"])
		time.Sleep(minCallInterval)

		m.sim.Inject(wechatsim.Fault{Kind: "hang"})
		calls := m.calls()
		var other sync.WaitGroup
		other.Go(func() { m.refused(logical.UpdateOperation, "refresh/demo", nil) })
		synctest.Wait()
		require.Equal(t, calls+1, m.calls(), "another caller's call is in flight")
		start := time.Now()
		require.Equal(t, true, m.refresh(old)["changed"])
		require.Zero(t, time.Since(start))
		other.Wait()
		require.Equal(t, defaultRequestTimeout, time.Since(start))
	})
}

func TestAReportIsNeverForwardedHalfDone(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for _, path := range []string{"refresh/demo", "rotate/demo"} {
			op := m.Route(path).Operations[logical.UpdateOperation].Properties()
			require.True(t, op.ForwardPerformanceStandby && op.ForwardPerformanceSecondary, path)
		}
		for path, forwarded := range map[string]bool{"token/demo": true, "status/demo": true, "config/demo": false} {
			op := m.Route(path).Operations[logical.ReadOperation].Properties()
			require.Equal(t, forwarded, op.ForwardPerformanceStandby && op.ForwardPerformanceSecondary, path)
		}
	})
}

func TestRefreshRotateAndStatusOfAnUnknownOrImpossibleName(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		for path, op := range map[string]logical.Operation{
			"refresh/": logical.UpdateOperation, "rotate/": logical.UpdateOperation, "status/": logical.ReadOperation,
		} {
			status, text := m.refused(op, path+"team/unknown", nil)
			require.Equal(t, http.StatusBadRequest, status)
			require.Contains(t, text, "wechat/config/team/unknown")
			for _, name := range []string{"-a", "a-", "a b", "a\nb", "ä", "a/", "a//b"} {
				status, text = m.refused(op, path+name, nil)
				require.Equal(t, http.StatusBadRequest, status)
				require.Contains(t, text, nameRule)
			}
		}
		require.Empty(t, m.stored())
		require.Empty(t, m.keeper.doors)
	})
}

func TestARejectedTokenOfTheWrongTypeIsNotShown(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		_, text := m.refused(logical.UpdateOperation, "refresh/demo", map[string]any{"rejected_token": map[string]any{"v": "s3cr3t"}})
		require.Contains(t, text, "rejected_token must be a string")
		require.NotContains(t, text, "s3cr3t")
		require.NotContains(t, m.logs.String(), "s3cr3t")
	})
}

func TestAnOutsideReplacementThatOneNameNoticesReachesAllOfItsAppID(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		token := m.read("twin")["access_token"]
		time.Sleep(minCallInterval)
		m.sim.ForceOutside(testAppID)
		require.Equal(t, true, m.refresh(token)["changed"])
		synctest.Wait()
		m.read("twin") // with a token that WeChat accepts
	})
}

func TestATokenThatComesBackIsNoEarlierOne(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		first := m.read("demo")["access_token"].(string)
		time.Sleep(time.Minute)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		time.Sleep(time.Minute)
		// A replica of WeChat's that has not heard of it yet.
		m.sim.Inject(wechatsim.Fault{Kind: "raw", Body: fmt.Sprintf(`{"access_token":%q,"expires_in":7000}`, first), Times: 1})
		m.ok(logical.UpdateOperation, "refresh/demo", nil)
		resp := m.ok(logical.ReadOperation, "token/demo", nil)
		require.Equal(t, first, resp.Data["access_token"])
		time.Sleep(time.Minute)
		calls := m.calls()
		for range 3 {
			m.ok(logical.UpdateOperation, "refresh/demo", map[string]any{"rejected_token": first})
			time.Sleep(15 * time.Second)
		}
		require.Greater(t, m.calls(), calls, "the current token was reported, and WeChat was not asked")
		m.read("demo")
	})
}
