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
		quota       = backoff{time.Minute, 10 * time.Minute}
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
		45009: {"quota", http.StatusTooManyRequests, quota},
		45011: {"quota", http.StatusTooManyRequests, quota},
		89501: {"human", http.StatusBadRequest, person},
		89503: {"human", http.StatusBadRequest, person},
		89507: {"human", http.StatusBadRequest, quota},
		89506: {"human", http.StatusBadRequest, quota},
		48001: account,
		48004: account,
		48006: {"quota", http.StatusTooManyRequests, quota},
		// Of a token or a code, which stable_token does not send.
		40014: bug,
		42001: bug,
		40029: bug,
		40163: bug,
		40226: bug,
		41008: bug,
		50002: account,
		50004: account,
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(documented)), slices.Collect(maps.Keys(errcodes)))
	for errcode, w := range documented {
		got := errcodes[errcode]
		require.Equal(t, w, want{got.class, got.status, got.backoff}, "errcode %d", errcode)
	}

	// In the other calls an errcode means the same, but for these.
	var (
		code   = want{"code", http.StatusBadRequest, backoff{}}
		user   = want{"user", http.StatusBadRequest, backoff{}}
		right  = want{"account", http.StatusBadRequest, backoff{}}
		often  = want{"user", http.StatusTooManyRequests, backoff{}}
		tokens = want{"rejected token", http.StatusBadGateway, backoff{time.Second, time.Minute}}
		daily  = want{"quota", http.StatusTooManyRequests, quota}
	)
	own := map[api]map[int]want{
		apiCode2Session: {40029: code, 40163: code, 41008: code, 40226: user, 45011: often, 48001: right},
		apiOAuth2:       {40029: code, 40163: code, 41008: code, 40226: user, 45011: often, 48001: right},
		apiTicket:       {40001: tokens, 40014: tokens, 42001: tokens, 45009: daily, 48001: account},
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(own)), slices.Collect(maps.Keys(ownErrcodes)))
	for call, table := range own {
		require.ElementsMatch(t, slices.Collect(maps.Keys(table)), slices.Collect(maps.Keys(ownErrcodes[call])), call)
		for errcode, w := range table {
			got, documented := ruleOf(call, errcode)
			require.True(t, documented)
			require.Equal(t, w, want{got.class, got.status, got.backoff}, "%s, errcode %d", call, errcode)
		}
		for errcode := range errcodes {
			if _, another := table[errcode]; !another {
				got, documented := ruleOf(call, errcode)
				require.True(t, documented)
				require.Equal(t, errcodes[errcode], got, "%s, errcode %d", call, errcode)
			}
		}
	}
}

// WeChat's errcodes are one numbering: one that is known of a call and unknown of another
// would be answered there as if base_url led elsewhere.
func TestAnErrcodeThatIsKnownOfOneCallIsKnownOfAll(t *testing.T) {
	known := slices.Collect(maps.Keys(errcodes))
	for _, table := range ownErrcodes {
		known = slices.AppendSeq(known, maps.Keys(table))
	}
	for _, call := range apis {
		for _, errcode := range known {
			_, documented := ruleOf(call, errcode)
			require.True(t, documented, "%s, errcode %d", call, errcode)
		}
		_, documented := ruleOf(call, 12345)
		require.False(t, documented)
		r, _ := ruleOf(call, 48001)
		require.Equal(t, classAccount, r.class, call)
		require.Equal(t, http.StatusBadRequest, r.status, call)
	}
	r, _ := ruleOf(apiOAuth2, 48001)
	require.Contains(t, r.advice, "a mini program's code belongs to code2session/")
}

func TestNoFailureWaitsLongerThanTenMinutes(t *testing.T) {
	for _, r := range everyRule() {
		for n := range 20 {
			require.LessOrEqual(t, r.backoff.after(n+1), 10*time.Minute, r.meaning)
		}
	}
}

// everyRule returns all rules that there are.
func everyRule() []rule {
	rules := append(slices.Collect(maps.Values(errcodes)), ruleUnreachable, ruleUnavailable, ruleAnswer, ruleStorage)
	for _, table := range ownErrcodes {
		rules = slices.AppendSeq(rules, maps.Values(table))
	}
	for _, c := range []cause{causeNoName, causeNoConnection, causeProxy, causeNoTLS, causeTLSSilent, causeNoAnswer, causeCut, causeNotHTTP} {
		rules = append(rules, c.rule)
	}
	return rules
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
	for _, r := range everyRule() {
		require.NotEmpty(t, r.meaning)
		require.NotEmpty(t, r.advice, r.meaning)
		require.Contains(t, classes, r.class, r.meaning)
		// Both become parts of one sentence.
		require.NotRegexp(t, `[.;:\s]$|^\s|\n`, r.meaning)
		require.NotRegexp(t, `[.;:\s]$|^\s|\n`, r.advice)
		// Vault's clients repeat a request that is answered 429 or 5xx: what a
		// person must fix is neither. A user who comes too often only has to wait.
		person := slices.Contains([]class{classCredentials, classAdmission, classHuman, classAccount, classCode, classUser}, r.class)
		tooOften := r == ownErrcodes[apiCode2Session][45011]
		require.Equal(t, person && !tooOften, r.status == http.StatusBadRequest, r.meaning)
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
		"quota": {backoffQuota, []time.Duration{
			time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute,
		}},
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
				if n <= 4 {
					require.Greater(t, least, longest, "n=%d", n)
				}
				longest = most
			}
		})
	}
}
