package wechat

import (
	"cmp"
	"regexp"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

var timesTold = regexp.MustCompile(`; (?:WeChat|it) was last (?:asked|tried) at (\S+), and is (?:asked|tried) next at (\S+)(; what to do: )`)

// fromMemory is an answer from memory without the times that it tells: when WeChat was
// last asked, and when it is asked next.
func fromMemory(t *testing.T, text string) (fresh string, asked, next time.Time) {
	t.Helper()
	m := timesTold.FindStringSubmatch(text)
	require.NotNil(t, m, text)
	asked, err := time.Parse(time.RFC3339, m[1])
	require.NoError(t, err)
	next, err = time.Parse(time.RFC3339, m[2])
	require.NoError(t, err)
	return timesTold.ReplaceAllString(text, "$3"), asked, next
}

// What is remembered and looks fresh has its reader believe that what was just mended
// did not help.
func TestAnAnswerFromMemorySaysWhenWeChatWasAskedAndIsNext(t *testing.T) {
	url := map[string]any{"url": "https://example.com/"}
	for name, c := range map[string]struct {
		fault wechatsim.Fault
		ask   func(m *mount) (int, string)
	}{
		"a token": {
			wechatsim.Fault{Kind: "errcode", Errcode: 40164},
			func(m *mount) (int, string) { return m.refused(logical.ReadOperation, "token/new", nil) },
		},
		"a report while no token is there": {
			wechatsim.Fault{Kind: "errcode", Errcode: 45009},
			func(m *mount) (int, string) { return m.refused(logical.UpdateOperation, "refresh/new", nil) },
		},
		"a report of a token that is there": {
			wechatsim.Fault{Kind: "errcode", Errcode: 45009},
			func(m *mount) (int, string) { return m.refused(logical.UpdateOperation, "refresh/demo", nil) },
		},
		"a signature": {
			wechatsim.Fault{API: wechatsim.APITicket, Kind: "errcode", Errcode: 48001},
			func(m *mount) (int, string) { return m.refused(logical.UpdateOperation, "sign/demo", url) },
		},
		"a ticket": {
			wechatsim.Fault{API: wechatsim.APITicket, Kind: "errcode", Errcode: 45009},
			func(m *mount) (int, string) { return m.refused(logical.ReadOperation, "ticket/demo", nil) },
		},
		"a ticket for want of a token": {
			wechatsim.Fault{Kind: "errcode", Errcode: 40125},
			func(m *mount) (int, string) { return m.refused(logical.ReadOperation, "ticket/new", nil) },
		},
		"a clearing of the quota": {
			wechatsim.Fault{API: wechatsim.APIClearQuota, Kind: "errcode", Errcode: 48006},
			func(m *mount) (int, string) { return m.refused(logical.UpdateOperation, "clear-quota/demo", nil) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.write("new", map[string]any{"appid": otherAppID, "verify": false})
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.ticks(1)
				calls := func() int { return len(m.sim.CallsOf(cmp.Or(c.fault.API, wechatsim.APIToken), "")) }
				m.sim.Inject(c.fault)
				before, asked := calls(), time.Now()
				_, first := c.ask(m)
				require.NotRegexp(t, timesTold, first, "it is fresh")
				require.Equal(t, before+1, calls())

				time.Sleep(7 * time.Second)
				_, again := c.ask(m)
				fresh, saysAsked, saysNext := fromMemory(t, again)
				require.Equal(t, first, fresh)
				require.Equal(t, timestamp(asked), timestamp(saysAsked))
				time.Sleep(time.Until(saysNext.Add(-time.Second)))
				require.Equal(t, before+1, calls())
				time.Sleep(2 * time.Second)
				_, _ = c.ask(m)
				require.Equal(t, before+2, calls(), "at the time that was told")
			})
		})
	}
}

func TestALoginThatIsRefusedFromMemorySaysSo(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 40125})
		asked := time.Now()
		m.loginFailsInARow("demo")
		_, text := m.loginFails("demo", m.mini())
		_, saysAsked, _ := fromMemory(t, text)
		require.Equal(t, timestamp(asked), timestamp(saysAsked))
	})
}

func TestWhatTheEnginesOwnLimitForbidsHadNoEffect(t *testing.T) {
	require.False(t, hadNoEffect(nil), "a call that succeeded")
	require.False(t, hadNoEffect(&problem{Rule: upstream.RuleAnswer}))
	require.True(t, hadNoEffect(&problem{HadNoEffect: true}))
	require.True(t, hadNoEffect(weixin.issuers[tokenSlot].limits.problem("", nil, time.Second, time.Now())))
}
