package wechat

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWhatCallersAndOperatorsAreToldOfAProblem(t *testing.T) {
	for name, c := range map[string]struct {
		problem        problem
		told, operator string
	}{
		"everything": {
			problem{rule: errcodes[40164], errcode: 40164, rid: "1-2-3", ip: "1.2.3.4", errmsg: "invalid ip 1.2.3.4", cause: "dial tcp"},
			"the caller's IP is not whitelisted (errcode 40164, caller's IP 1.2.3.4)",
			`the caller's IP is not whitelisted (errcode 40164, caller's IP 1.2.3.4, rid 1-2-3, errmsg "invalid ip 1.2.3.4")`,
		},
		"errcode alone": {
			problem{rule: errcodes[-1], errcode: -1},
			"WeChat is busy (errcode -1)",
			"WeChat is busy (errcode -1)",
		},
		"undocumented errcode": {
			problem{rule: ruleAnswer, errcode: 7, detail: "an errcode that is not documented", errmsg: "odd"},
			"WeChat's answer is not the documented one: an errcode that is not documented (errcode 7)",
			`WeChat's answer is not the documented one: an errcode that is not documented (errcode 7, errmsg "odd")`,
		},
		"no errcode": {
			problem{rule: ruleUnreachable, detail: "no answer within 5s", cause: "read tcp 10.1.2.3:443: i/o timeout"},
			"WeChat cannot be reached: no answer within 5s",
			"WeChat cannot be reached: no answer within 5s",
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.told, c.problem.message())
			require.Equal(t, c.told+"; what to do: "+c.problem.advice, c.problem.Error())
			require.Equal(t, c.operator, c.problem.operatorMessage())
			require.Equal(t, c.operator+"; what to do: "+c.problem.advice, c.problem.operatorError())
		})
	}
}

func TestTheServerLogIsToldAllOfAProblem(t *testing.T) {
	refused := problem{rule: errcodes[40013], errcode: 40013, rid: "1-2-3", errmsg: "invalid appid"}
	require.Equal(t, []any{
		"class", "credentials", "message", "the appid is not valid (errcode 40013)", "errcode", 40013, "rid", "1-2-3", "errmsg", "invalid appid",
	}, refused.logFields())
	cut := problem{rule: ruleUnreachable, detail: "no connection", cause: "dial tcp 10.1.2.3:443: connection refused"}
	require.Equal(t, []any{
		"class", "unreachable", "message", "WeChat cannot be reached: no connection", "cause", "dial tcp 10.1.2.3:443: connection refused",
	}, cut.logFields())
}

func TestWhatHadNoEffect(t *testing.T) {
	require.False(t, (*problem)(nil).noEffect(), "a call that succeeded")
	require.False(t, (&problem{rule: ruleAnswer}).noEffect())
	require.True(t, (&problem{rule: ruleUnreachable, hadNoEffect: true}).noEffect())
	require.True(t, (&history{}).limited(time.Second).noEffect(), "the engine's own limit")
}

func TestAdviceToWhoeverIsNotServedLater(t *testing.T) {
	for _, rule := range everyRule() {
		told := withoutRetryPromise(&problem{rule: rule})
		require.NotContains(t, told.Error(), triesAgain)
		require.NotEmpty(t, problemOf(told).advice)
	}
	require.Equal(t, errStorage, withoutRetryPromise(errStorage))
}
