package upstream

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestBackoff holds the wait after the n-th failure in a row to
// first·2^(n-1), at most most, less a jitter of up to a quarter.
func TestBackoff(t *testing.T) {
	const samples = 500
	for name, c := range map[string]struct {
		backoff Backoff
		full    []time.Duration // without jitter, for n from 1; the last one stays
	}{
		"transient": {BackoffTransient, []time.Duration{
			time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute,
		}},
		"person": {person, []time.Duration{
			30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 5 * time.Minute,
		}},
		"quota": {quota, []time.Duration{
			time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var longest time.Duration // after the failure before
			for _, n := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 63, 64, 65, 1000, 1 << 30} {
				full := c.full[min(n, len(c.full))-1]
				waits := make([]time.Duration, samples)
				for i := range waits {
					waits[i] = c.backoff.After(n, rand.Float64())
				}
				least, most := slices.Min(waits), slices.Max(waits)
				require.LessOrEqual(t, most, full, "n=%d", n)
				require.GreaterOrEqual(t, least, max(c.backoff.First, full*3/4), "n=%d", n)
				if full == c.backoff.First {
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

// ownRules are those of failures without a documented errcode.
func ownRules() []Rule {
	rules := []Rule{RuleUnavailable, RuleAnswer}
	for _, p := range []Problem{noName, noConnection, refusedByProxy, noTLS, silentTLS, noAnswer, cutOff, notHTTP, *unsent(errors.New("no way"))} {
		rules = append(rules, p.Rule)
	}
	return rules
}

func TestTheOwnRulesSayWhatTheyMeanAndWhatToDo(t *testing.T) {
	for _, r := range ownRules() {
		require.Equal(t, http.StatusBadGateway, r.Status)
		require.Equal(t, Backoff{time.Second, time.Minute}, r.Backoff)
		require.Contains(t, Classes, r.Class)
		// Both become parts of one sentence.
		for _, text := range []string{r.Meaning, r.Advice} {
			require.NotRegexp(t, `^$|[.;:\s]$|^\s|\n`, text)
		}
	}
}
