package wechat

import (
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

func TestEveryDocumentedErrcodeHasItsClass(t *testing.T) {
	type want struct {
		class   class
		status  int
		backoff backoff
	}
	var (
		person      = backoff{First: 30 * time.Second, Most: 5 * time.Minute}
		credentials = want{"credentials", http.StatusBadRequest, person}
		admission   = want{"network admission", http.StatusBadRequest, person}
		account     = want{"account", http.StatusBadRequest, person}
		bug         = want{"bug", http.StatusBadGateway, person}
		quota       = backoff{First: time.Minute, Most: 10 * time.Minute}
	)
	documented := map[int]want{
		-1:    {"transient", http.StatusBadGateway, backoff{First: time.Second, Most: time.Minute}},
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
		require.Equal(t, w, want{got.Class, got.Status, got.Backoff}, "errcode %d", errcode)
	}

	// In the other calls an errcode means the same, but for these.
	var (
		code   = want{"code", http.StatusBadRequest, backoff{}}
		user   = want{"user", http.StatusBadRequest, backoff{}}
		right  = want{"account", http.StatusBadRequest, backoff{}}
		often  = want{"user", http.StatusTooManyRequests, backoff{}}
		tokens = want{"rejected token", http.StatusBadGateway, backoff{First: time.Second, Most: time.Minute}}
		daily  = want{"quota", http.StatusTooManyRequests, quota}
	)
	own := map[string]map[int]want{
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
			require.Equal(t, w, want{got.Class, got.Status, got.Backoff}, "%s, errcode %d", call, errcode)
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
		require.Equal(t, upstream.ClassAccount, r.Class, call)
		require.Equal(t, http.StatusBadRequest, r.Status, call)
	}
	r, _ := ruleOf(apiOAuth2, 48001)
	require.Contains(t, r.Advice, "a mini program's code belongs to code2session/")
}

func TestNoFailureWaitsLongerThanTenMinutes(t *testing.T) {
	for _, r := range everyRule() {
		for n := range 20 {
			require.LessOrEqual(t, r.Backoff.After(n+1, 0), 10*time.Minute, r.Meaning)
		}
	}
}

// everyRule returns all rules that there are.
func everyRule() []rule {
	rules := append(slices.Collect(maps.Values(errcodes)), ruleStorage)
	for _, table := range ownErrcodes {
		rules = slices.AppendSeq(rules, maps.Values(table))
	}
	return rules
}

func TestAFailureOfStorageIsVaults(t *testing.T) {
	require.Equal(t, http.StatusInternalServerError, ruleStorage.Status)
	require.Equal(t, backoff{First: time.Second, Most: time.Minute}, ruleStorage.Backoff)
}

func TestEveryRuleSaysWhatItMeansAndWhatToDo(t *testing.T) {
	for _, r := range everyRule() {
		require.NotEmpty(t, r.Meaning)
		require.NotEmpty(t, r.Advice, r.Meaning)
		require.Contains(t, upstream.Classes, r.Class, r.Meaning)
		// Both become parts of one sentence.
		require.NotRegexp(t, `[.;:\s]$|^\s|\n`, r.Meaning)
		require.NotRegexp(t, `[.;:\s]$|^\s|\n`, r.Advice)
		// Vault's clients repeat a request that is answered 429 or 5xx: what a
		// person must fix is neither. A user who comes too often only has to wait.
		person := slices.Contains([]class{upstream.ClassCredentials, upstream.ClassAdmission, upstream.ClassHuman, upstream.ClassAccount, upstream.ClassCode, upstream.ClassUser}, r.Class)
		tooOften := r == ownErrcodes[apiCode2Session][45011]
		require.Equal(t, person && !tooOften, r.Status == http.StatusBadRequest, r.Meaning)
	}
}
