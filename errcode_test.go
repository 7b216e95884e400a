package wechat

import (
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEveryDocumentedErrcodeHasItsClass(t *testing.T) {
	type want struct {
		class   class
		status  int
		backoff backoff
	}
	var (
		person      = backoff{30 * time.Second, 5 * time.Minute}
		credentials = want{"credentials", http.StatusBadRequest, person}
		admission   = want{"network admission", http.StatusBadRequest, person}
		account     = want{"account", http.StatusBadRequest, person}
		bug         = want{"bug", http.StatusBadGateway, person}
		fixed       = func(d time.Duration) backoff { return backoff{d, d} }
	)
	documented := map[int]want{
		-1:    {"transient", http.StatusBadGateway, backoff{time.Second, time.Minute}},
		40001: credentials,
		40002: bug,
		40013: credentials,
		40125: credentials,
		40164: admission,
		61004: admission,
		45035: admission,
		40243: credentials,
		41002: bug,
		41004: bug,
		43002: bug,
		47001: bug,
		45009: {"quota", http.StatusTooManyRequests, fixed(time.Hour)},
		45011: {"quota", http.StatusTooManyRequests, fixed(time.Minute)},
		89501: {"human", http.StatusBadRequest, person},
		89503: {"human", http.StatusBadRequest, person},
		89507: {"human", http.StatusBadRequest, fixed(time.Hour)},
		89506: {"human", http.StatusBadRequest, fixed(24 * time.Hour)},
		48004: account,
		50002: account,
		50004: account,
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(documented)), slices.Collect(maps.Keys(errcodes)))
	for errcode, w := range documented {
		got := errcodes[errcode]
		require.Equal(t, w, want{got.class, got.status, got.backoff}, "errcode %d", errcode)
	}
}

func TestWhetherAForcedCallDidNothingForCertain(t *testing.T) {
	for errcode := range errcodes {
		p := &problem{rule: errcodes[errcode], errcode: errcode}
		require.Equal(t, errcode != -1, p.noEffect(), "errcode %d", errcode)
	}
	for name, c := range map[string]struct {
		problem *problem
		want    bool
	}{
		"none":                    {nil, false},
		"an undocumented errcode": {&problem{rule: ruleAnswer, errcode: 99999}, false},
		"unreachable":             {&problem{rule: ruleUnreachable}, false},
		"server error":            {&problem{rule: ruleUnavailable}, false},
		"undocumented answer":     {&problem{rule: ruleAnswer}, false},
		"storage":                 {&problem{rule: ruleStorage}, false},
		"the engine's own limit":  {(&history{}).limited(time.Second), true},
	} {
		require.Equal(t, c.want, c.problem.noEffect(), name)
	}
}

func TestFailuresWithoutADocumentedErrcode(t *testing.T) {
	transient := backoff{time.Second, time.Minute}
	for name, c := range map[string]struct {
		rule   rule
		status int
	}{
		"unreachable":         {ruleUnreachable, http.StatusBadGateway},
		"server error":        {ruleUnavailable, http.StatusBadGateway},
		"undocumented answer": {ruleAnswer, http.StatusBadGateway},
		"storage":             {ruleStorage, http.StatusInternalServerError},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.status, c.rule.status)
			require.Equal(t, transient, c.rule.backoff)
		})
	}
}

func TestEveryRuleSaysWhatItMeansAndWhatToDo(t *testing.T) {
	rules := append(slices.Collect(maps.Values(errcodes)), ruleUnreachable, ruleUnavailable, ruleAnswer, ruleStorage)
	for _, r := range rules {
		require.NotEmpty(t, r.meaning)
		require.NotEmpty(t, r.advice, r.meaning)
		require.NotEmpty(t, r.class, r.meaning)
		// Both become parts of one sentence.
		require.NotRegexp(t, `[.;:\s]$|^\s|\n`, r.meaning)
		require.NotRegexp(t, `[.;:\s]$|^\s|\n`, r.advice)
		// Vault's clients repeat a request that is answered 429 or 5xx: what a
		// person must fix is neither.
		person := slices.Contains([]class{classCredentials, classAdmission, classHuman, classAccount}, r.class)
		require.Equal(t, person, r.status == http.StatusBadRequest, r.meaning)
	}
}

// TestBackoff holds the wait after the n-th failure in a row to
// first·2^(n-1), at most most, less a jitter of up to a quarter.
func TestBackoff(t *testing.T) {
	const samples = 500
	for name, c := range map[string]struct {
		backoff backoff
		full    []time.Duration // without jitter, for n from 1; the last one stays
	}{
		"transient": {backoffTransient, []time.Duration{
			time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute,
		}},
		"person": {backoffPerson, []time.Duration{
			30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 5 * time.Minute,
		}},
		"45011": {errcodes[45011].backoff, []time.Duration{time.Minute}},
		"45009": {errcodes[45009].backoff, []time.Duration{time.Hour}},
		"89507": {errcodes[89507].backoff, []time.Duration{time.Hour}},
		"89506": {errcodes[89506].backoff, []time.Duration{24 * time.Hour}},
	} {
		t.Run(name, func(t *testing.T) {
			var longest time.Duration // after the failure before
			for _, n := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 63, 64, 65, 1000, 1 << 30} {
				full := c.full[min(n, len(c.full))-1]
				waits := make([]time.Duration, samples)
				for i := range waits {
					waits[i] = c.backoff.after(n)
				}
				least, most := slices.Min(waits), slices.Max(waits)
				require.LessOrEqual(t, most, full, "n=%d", n)
				require.GreaterOrEqual(t, least, max(c.backoff.first, full*3/4), "n=%d", n)
				if full == c.backoff.first {
					require.Equal(t, least, most, "n=%d", n)
				} else {
					// 500 samples all in one half would be no jitter.
					require.Less(t, least, full*7/8, "n=%d", n)
					require.Greater(t, most, full*7/8, "n=%d", n)
				}
				if n <= 4 && len(c.full) > 4 {
					require.Greater(t, least, longest, "n=%d", n)
				}
				longest = most
			}
		})
	}
}

func TestAProblemTellsEverythingOnce(t *testing.T) {
	for name, c := range map[string]struct {
		problem problem
		want    string
	}{
		"errcode, IP and request ID": {
			problem{rule: errcodes[40164], errcode: 40164, rid: "1-2-3", ip: "1.2.3.4"},
			"the caller's IP is not whitelisted (errcode 40164, caller's IP 1.2.3.4, rid 1-2-3)",
		},
		"errcode alone": {
			problem{rule: errcodes[-1], errcode: -1},
			"WeChat is busy (errcode -1)",
		},
		"undocumented errcode": {
			problem{rule: ruleAnswer, errcode: 7, detail: "an errcode that is not documented: odd"},
			"WeChat's answer is not the documented one: an errcode that is not documented: odd (errcode 7)",
		},
		"no errcode": {
			problem{rule: ruleUnreachable, detail: "no answer within 5s"},
			"WeChat cannot be reached: no answer within 5s",
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, c.problem.message())
			require.Equal(t, c.want+"; what to do: "+c.problem.advice, c.problem.Error())
		})
	}
}

func TestAdviceToWhoeverIsNotServedLater(t *testing.T) {
	for errcode, rule := range errcodes {
		told := withoutRetryPromise(&problem{rule: rule, errcode: errcode})
		require.NotContains(t, told.Error(), triesAgain)
		require.NotEmpty(t, problemOf(told).advice)
	}
	for _, rule := range []rule{ruleUnreachable, ruleUnavailable, ruleAnswer, ruleStorage} {
		require.NotContains(t, withoutRetryPromise(&problem{rule: rule}).Error(), triesAgain)
	}
	require.Equal(t, errStorage, withoutRetryPromise(errStorage))
}
