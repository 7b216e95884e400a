package wechat

import (
	"encoding/json"
	"math/big"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// fuzzAnswers holds what reads one call's answers to the contract whatever comes:
// it accepts only the documented form, and what it shows of anything else is short,
// plain and without secrets. read returns the texts of an answer that was taken.
// Like those of all targets the corpora are in testdata/fuzz.
func fuzzAnswers(f *testing.F, call string, read func(t *testing.T, e upstream.Envelope) ([]string, *problem)) {
	f.Helper()
	f.Fuzz(func(t *testing.T, status int, raw []byte) {
		fields, p := testEndpoint().request(upstream.Request{API: call}).Parse(status, raw)
		require.NotEqual(t, fields == nil, p == nil, "either an answer or a problem")
		if p == nil {
			require.Equal(t, http.StatusOK, status)
			require.LessOrEqual(t, len(raw), maxAnswer)
			var texts []string
			if texts, p = read(t, fields); p == nil {
				for _, text := range texts {
					require.LessOrEqual(t, len(text), upstream.MaxValue)
					require.Equal(t, -1, strings.IndexFunc(text, func(r rune) bool {
						return r <= ' ' || r > '~' || strings.ContainsRune("\"'`", r)
					}), "%q", text)
				}
				return
			}
			require.False(t, p.HadNoEffect, "WeChat may have done it")
		}
		require.NotZero(t, p.Status)
		require.NotEmpty(t, p.Advice)
		require.True(t, !p.HadNoEffect || p.Errcode != 0 && p.Errcode != -1 || status >= 400 && status < 500)
		for _, text := range []string{p.Detail, p.RID, p.IP, p.Errmsg, p.Cause} {
			requireShowable(t, text)
			require.NotContains(t, text, testSecret)
		}
		// What is long enough not to turn up by chance.
		var answer map[string]any
		if json.Unmarshal(raw, &answer) != nil {
			return
		}
		for _, field := range secretFields {
			if value, _ := answer[field].(string); len(value) >= 32 {
				require.NotContains(t, p.OperatorError(), value)
			}
		}
	})
}

func FuzzStableTokenAnswer(f *testing.F) {
	fuzzAnswers(f, apiStableToken, func(t *testing.T, e upstream.Envelope) ([]string, *problem) {
		got, p := parseToken(e)
		if p != nil {
			return nil, p
		}
		require.NotEmpty(t, got.Value)
		require.GreaterOrEqual(t, got.Life, time.Second)
		require.LessOrEqual(t, got.Life, maxLifetime)
		require.Zero(t, got.Life%time.Second)
		return []string{got.Value}, nil
	})
}

func FuzzCode2SessionAnswer(f *testing.F) {
	fuzzAnswers(f, apiCode2Session, func(t *testing.T, e upstream.Envelope) ([]string, *problem) {
		got, p := parseSession(e)
		if p != nil {
			return nil, p
		}
		require.NotEmpty(t, got.openID)
		require.NotEmpty(t, got.sessionKey)
		return []string{got.openID, got.unionID, got.sessionKey}, nil
	})
}

func FuzzOAuth2Answer(f *testing.F) {
	fuzzAnswers(f, apiOAuth2, func(t *testing.T, e upstream.Envelope) ([]string, *problem) {
		got, p := parseUserToken(e)
		if p != nil {
			return nil, p
		}
		require.NotEmpty(t, got.openID)
		require.NotEmpty(t, got.accessToken)
		require.True(t, got.expiresIn == nil || *got.expiresIn > 0)
		return []string{got.openID, got.unionID, got.scope, got.accessToken, got.refreshToken}, nil
	})
}

func FuzzTicketAnswer(f *testing.F) {
	fuzzAnswers(f, apiTicket, func(t *testing.T, e upstream.Envelope) ([]string, *problem) {
		got, p := parseTicket(e)
		if p != nil {
			return nil, p
		}
		require.NotEmpty(t, got.Value)
		return []string{got.Value}, nil
	})
}

func FuzzClearQuotaAnswer(f *testing.F) {
	fuzzAnswers(f, apiClearQuota, func(_ *testing.T, e upstream.Envelope) ([]string, *problem) {
		_, p := parseCleared(e)
		return nil, p
	})
}

// FuzzCheckName holds checkName to the contract's rule, told once more without a
// pattern.
func FuzzCheckName(f *testing.F) {
	f.Fuzz(func(t *testing.T, name string) {
		const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
		valid := len(name) <= 255
		for segment := range strings.SplitSeq(name, "/") {
			valid = valid && segment != "" &&
				strings.Trim(segment, alphanumeric+"_-.") == "" &&
				strings.ContainsAny(segment[:1], alphanumeric) &&
				strings.ContainsAny(segment[len(segment)-1:], alphanumeric)
		}
		require.Equal(t, valid, checkName(name) == nil, "%q", name)
	})
}

// FuzzWholeSeconds holds wholeSeconds to exact arithmetic, for what JSON and the
// command line can bring.
func FuzzWholeSeconds(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		inputs := []any{text}
		var number any
		if json.Unmarshal([]byte(text), &number) == nil {
			if _, ok := number.(float64); ok {
				inputs = append(inputs, number, json.Number(text))
			}
		}
		for _, input := range inputs {
			got, err := wholeSeconds(input)
			if err != nil {
				require.Zero(t, got, "%T %q", input, input)
				continue
			}
			require.GreaterOrEqual(t, got, time.Duration(0), "%T %v", input, input)
			require.Zero(t, got%time.Second, "%T %v", input, input)
			if want := exactSeconds(text); want != nil {
				require.Zero(t, want.Cmp(big.NewRat(int64(got), int64(time.Second))), "%T %v is %s s, not %s", input, input, want, got)
			}
		}
	})
}

var simpleDuration = regexp.MustCompile(`^([+-]?[0-9]{1,30}(?:\.[0-9]{1,9})?)(s|m|h|d|)$`)

// exactSeconds is what a simply written duration says, nil if it is not one.
func exactSeconds(text string) *big.Rat {
	m := simpleDuration.FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	seconds, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return nil
	}
	unit := map[string]int64{"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[m[2]]
	return seconds.Mul(seconds, big.NewRat(unit, 1))
}
