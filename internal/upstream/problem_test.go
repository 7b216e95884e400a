package upstream

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWhatCallersAndOperatorsAreToldOfAProblem(t *testing.T) {
	for name, c := range map[string]struct {
		problem        Problem
		told, operator string
	}{
		"everything": {
			Problem{Rule: errcodes[40164], Errcode: 40164, RID: "1-2-3", IP: "1.2.3.4", Errmsg: "invalid ip 1.2.3.4", Cause: "dial tcp"},
			"the caller's IP is not whitelisted (errcode 40164, caller's IP 1.2.3.4)",
			`the caller's IP is not whitelisted (errcode 40164, caller's IP 1.2.3.4, rid 1-2-3, errmsg "invalid ip 1.2.3.4")`,
		},
		"errcode alone": {
			Problem{Rule: errcodes[-1], Errcode: -1},
			"WeChat is busy (errcode -1)",
			"WeChat is busy (errcode -1)",
		},
		"undocumented errcode": {
			Problem{Rule: RuleAnswer, Errcode: 7, Detail: "an errcode that is not documented", Errmsg: "odd"},
			"WeChat's answer is not the documented one: an errcode that is not documented (errcode 7)",
			`WeChat's answer is not the documented one: an errcode that is not documented (errcode 7, errmsg "odd")`,
		},
		"no errcode": {
			Problem{Rule: noAnswer.Rule, Detail: "no answer within 5s", Cause: "read tcp 10.1.2.3:443: i/o timeout"},
			"WeChat cannot be reached: no answer within 5s",
			"WeChat cannot be reached: no answer within 5s",
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.told, c.problem.Message())
			require.Equal(t, c.told+"; what to do: "+c.problem.Advice, c.problem.Error())
			require.Equal(t, c.operator+"; what to do: "+c.problem.Advice, c.problem.OperatorError())
		})
	}
}

func TestAnAnswerFromMemorySaysSo(t *testing.T) {
	fresh := &Problem{Rule: errcodes[-1], Errcode: -1}
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.FixedZone("", 8*3600))
	require.Equal(t,
		"WeChat is busy (errcode -1); WeChat was last asked at 2024-05-05T23:08:09Z, and is asked next at 2024-05-05T23:09:09Z; what to do: "+AdviceNothing,
		fresh.Remembered(at, at.Add(time.Minute)).Error())
	require.NotContains(t, fresh.Error(), "last asked", "it is told as before")
}

func TestTheServerLogIsToldAllOfAProblem(t *testing.T) {
	refused := Problem{Rule: errcodes[40013], Errcode: 40013, RID: "1-2-3", Errmsg: "invalid appid"}
	require.Equal(t, []any{
		"class", "credentials", "message", "the appid is not valid (errcode 40013)", "errcode", 40013, "rid", "1-2-3", "errmsg", "invalid appid",
	}, refused.LogFields())
	cut := noConnection
	cut.Cause = "dial tcp 10.1.2.3:443: connection refused"
	require.Equal(t, []any{
		"class", "unreachable", "message", "WeChat cannot be reached: no connection", "cause", "dial tcp 10.1.2.3:443: connection refused",
	}, cut.LogFields())
}

func TestAdviceWhereTheEngineDoesNotTryAgain(t *testing.T) {
	for _, rule := range append(slices.Collect(maps.Values(errcodes)), ownRules()...) {
		told := WithoutRetryPromise(&Problem{Rule: rule})
		require.NotContains(t, told.Error(), TriesAgain)
		require.NotEmpty(t, ProblemOf(told).Advice)
	}
	other := errors.New("another error")
	require.Equal(t, other, WithoutRetryPromise(other))
	require.Nil(t, ProblemOf(other))
}
