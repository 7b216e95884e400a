package wechat

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fuzzAnswers holds what reads one call's answers to the contract whatever comes:
// it accepts only the documented form, and what it shows of anything else is short,
// plain and without secrets. read returns the texts of an answer that was taken.
// Like those of all targets the corpora are in testdata/fuzz.
func fuzzAnswers(f *testing.F, call api, read func(t *testing.T, e envelope) ([]string, *problem)) {
	f.Helper()
	f.Fuzz(func(t *testing.T, status int, raw []byte) {
		fields, p := parseAnswer(call, status, raw, []string{testSecret})
		require.NotEqual(t, fields == nil, p == nil, "either an answer or a problem")
		if p == nil {
			require.Equal(t, http.StatusOK, status)
			require.LessOrEqual(t, len(raw), maxAnswer)
			var texts []string
			if texts, p = read(t, fields); p == nil {
				for _, text := range texts {
					require.LessOrEqual(t, len(text), maxValue)
					require.Equal(t, -1, strings.IndexFunc(text, func(r rune) bool {
						return r <= ' ' || r > '~' || strings.ContainsRune("\"'`", r)
					}), "%q", text)
				}
				return
			}
			require.False(t, p.noEffect(), "WeChat may have done it")
		}
		require.NotZero(t, p.status)
		require.NotEmpty(t, p.advice)
		require.True(t, !p.hadNoEffect || p.errcode != 0 && p.errcode != -1 || status >= 400 && status < 500)
		for _, text := range []string{p.detail, p.rid, p.ip, p.errmsg, p.cause} {
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
				require.NotContains(t, p.operatorError(), value)
			}
		}
	})
}

func FuzzStableTokenAnswer(f *testing.F) {
	fuzzAnswers(f, apiStableToken, func(t *testing.T, e envelope) ([]string, *problem) {
		got, p := e.stableToken()
		if p != nil {
			return nil, p
		}
		require.NotEmpty(t, got.token)
		require.GreaterOrEqual(t, got.lifetime, time.Second)
		require.LessOrEqual(t, got.lifetime, maxLifetime)
		require.Zero(t, got.lifetime%time.Second)
		return []string{got.token}, nil
	})
}

func FuzzCode2SessionAnswer(f *testing.F) {
	fuzzAnswers(f, apiCode2Session, func(t *testing.T, e envelope) ([]string, *problem) {
		got, p := e.session()
		if p != nil {
			return nil, p
		}
		require.NotEmpty(t, got.openID)
		require.NotEmpty(t, got.sessionKey)
		return []string{got.openID, got.unionID, got.sessionKey}, nil
	})
}

func FuzzOAuth2Answer(f *testing.F) {
	fuzzAnswers(f, apiOAuth2, func(t *testing.T, e envelope) ([]string, *problem) {
		got, p := e.userToken()
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
	fuzzAnswers(f, apiTicket, func(t *testing.T, e envelope) ([]string, *problem) {
		got, p := e.ticket()
		if p != nil {
			return nil, p
		}
		require.NotEmpty(t, got)
		return []string{got}, nil
	})
}

func FuzzClearQuotaAnswer(f *testing.F) {
	fuzzAnswers(f, apiClearQuota, func(_ *testing.T, e envelope) ([]string, *problem) {
		_, p := e.cleared()
		return nil, p
	})
}

// FuzzQuotable holds what is quoted to its promise: wherever in a text a secret is,
// however it is written, the text is withheld or ends before it, and it can be shown.
func FuzzQuotable(f *testing.F) {
	f.Fuzz(func(t *testing.T, secret, before, after string) {
		if len(secret) < pieceLength || !isPlain(secret) {
			return
		}
		for _, text := range []string{secret, url.QueryEscape(secret), hex.EncodeToString([]byte(secret)), base64.RawStdEncoding.EncodeToString([]byte(secret))} {
			shown := quotable(before+text+after, "", []string{secret})
			requireShowable(t, shown)
			if shown == withheld {
				continue
			}
			require.Greater(t, len(before)+pieceLength, maxDetail, "%q", shown)
			for i := range len(text) - pieceLength + 1 {
				require.NotContains(t, shown, text[i:i+pieceLength])
			}
		}
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
