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
)

// FuzzParseAnswer holds the parser to the contract whatever comes: it accepts only
// a token with a life, and what it shows of anything else is short, plain and
// without secrets. Like those of all targets its corpus is in testdata/fuzz.
func FuzzParseAnswer(f *testing.F) {
	f.Fuzz(func(t *testing.T, status int, raw []byte) {
		g, p := parseAnswer(status, raw)
		require.NotEqual(t, g == nil, p == nil, "either a grant or a problem")
		if g != nil {
			require.Equal(t, http.StatusOK, status)
			require.LessOrEqual(t, len(raw), maxAnswer)
			require.NotEmpty(t, g.token)
			require.GreaterOrEqual(t, g.lifetime, time.Second)
			require.LessOrEqual(t, g.lifetime, maxLifetime)
			require.Zero(t, g.lifetime%time.Second)
			return
		}
		require.NotZero(t, p.status)
		require.NotEmpty(t, p.advice)
		e := testEndpoint()
		shown := []string{scrub(p.detail, e), scrub(p.rid, e), p.ip}
		for _, text := range shown {
			requireShowable(t, text)
			require.NotContains(t, text, e.secret)
		}
		// A token that is long enough not to turn up by chance.
		var answer struct {
			Token string `json:"access_token"`
		}
		if json.Unmarshal(raw, &answer) == nil && len(answer.Token) >= 32 {
			for _, text := range shown {
				require.NotContains(t, text, answer.Token)
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
