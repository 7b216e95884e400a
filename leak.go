package wechat

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// leakAge is how long the forced calls of a leak response are tried for. The leaked
// credential has long ended by then.
const leakAge = day

// leakSpacing is the shortest wait between two attempts of a leak response.
const leakSpacing = 30 * time.Second

// The waits between attempts of a leak response. An attempt that brought the same credential
// again, or whose answer was lost, counts for the day's budget. Those have the longer waits,
// so that a day of them leaves some of it to operators.
var (
	backoffRevocation = backoff{First: leakSpacing, Most: 10 * time.Minute}
	backoffCounted    = backoff{First: leakSpacing, Most: 4 * time.Hour}
)

// pursuit is when the pending leak response goes on. Only memory has it: after a restart it
// follows from the forced calls in the record.
type pursuit struct {
	next     time.Time // no attempt before this
	giveUp   time.Time // nor after this, by the steady clock
	failures int       // in a row, of attempts that certainly had no effect
	turn     int       // which of the accounts tries next
	quota    bool      // the last of them failed for the daily quota
}

func (p *pursuit) nextTime() time.Time {
	if p == nil {
		return time.Time{}
	}
	return p.next
}

// newPursuit is the pursuit of the pending leak response from now on.
func (st *state) newPursuit(now time.Time) *pursuit {
	age := max(0, now.Sub(st.Leak.Requested))
	p := &pursuit{giveUp: time.Now().Add(leakAge - age)}
	return p.keptApart(st, now)
}

// keptApart is p with its next attempt after the wait that the forced calls since the
// request call for. These are in storage, so a restart does not shorten the wait.
func (p *pursuit) keptApart(st *state, now time.Time) *pursuit {
	calls := st.Leak.calls(st.Forced)
	last := now
	if n := len(calls); n > 0 {
		last = earliest(calls[n-1].At, now)
	}
	return &pursuit{giveUp: p.giveUp, next: last.Add(backoffCounted.After(max(1, len(calls)), randomFraction()))}
}

// calls are the forced calls of the leak response's present step, others that were made
// meanwhile included. Their order tells, and not the clock, which may have been set since. If
// the first is no longer in the record, all that are there came after it.
func (l *leak) calls(forced []forcedCall) []forcedCall {
	if l.First == 0 {
		return nil
	}
	return forced[max(0, slices.IndexFunc(forced, func(f forcedCall) bool { return f.Fence == l.First })):]
}

// left returns how many of the day's forced calls may still be made.
func (l limits) left(calls []forcedCall, now time.Time) int {
	return max(0, l.perDay-len(lately(calls, now)))
}

// wait returns how long no forced call may be made.
func (l limits) wait(calls []forcedCall, now time.Time) time.Duration {
	calls = lately(calls, now)
	wait := l.spacing(calls, now)
	if n := len(calls); l.perDay > 0 && n >= l.perDay {
		slices.SortFunc(calls, func(a, b forcedCall) int { return a.At.Compare(b.At) })
		wait = max(wait, calls[n-l.perDay].At.Add(day).Sub(now))
	}
	return max(0, wait)
}

// spacing is the wait that the last of the calls alone asks for.
func (l limits) spacing(calls []forcedCall, now time.Time) time.Duration {
	if len(calls) == 0 {
		return 0
	}
	last := calls[len(calls)-1].At
	// If the call lies further ahead, the clock was set back since. The day's budget counts
	// it, but its time says nothing about the wait.
	if last.Sub(now) > storageTimeout+maxRequestTimeout+time.Minute {
		return 0
	}
	return max(0, last.Add(l.apart).Sub(now))
}

// secondsUp is a wait in whole seconds. It is rounded up, so that a request after as many is
// not refused again.
func secondsUp(wait time.Duration) int64 { return int64(math.Ceil(wait.Seconds())) }

// problem is the refusal of a forced call that would come too soon.
func (l limits) problem(of string, calls []forcedCall, wait time.Duration, now time.Time) *problem {
	meaning := fmt.Sprintf("%s wants %d seconds between two forced refreshes of an appid", of, l.apart/time.Second)
	if l.left(calls, now) == 0 {
		meaning = fmt.Sprintf("%s allows %d forced refreshes of an appid in 24 hours", of, l.perDay)
	}
	return &problem{
		Rule: rule{
			Class: upstream.ClassQuota, Status: http.StatusTooManyRequests, Backoff: backoff{First: wait, Most: wait},
			Meaning: meaning, Advice: fmt.Sprintf("try again in %d seconds", secondsUp(wait)),
		},
		Local: true, HadNoEffect: true,
	}
}

// attempt is what is known of the last forced call that may have had an effect.
type attempt struct {
	by       string    // the account that made it, "" if that was before the engine's start
	at       time.Time // when it was begun, or reached WeChat at the latest
	known    bool      // its answer is
	replaced bool      // it replaced the token
}
