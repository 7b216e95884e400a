package kept

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// These tests try readers that follow ttl against issuers as they are documented, over
// random lives, latencies, clocks, settings and other readers.

func TestAReaderAlwaysHoldsALiveToken(t *testing.T) {
	// While WeChat answers, two minutes of its life are left.
	const cases = 1000
	rotations := 0
	for range cases {
		seed := rand.Uint64()
		f := newFollowed(seed, token, normalMode)
		f.slow = f.pick(0, time.Second, 30*time.Second)
		f.steps, f.least = f.rng.IntN(4) == 0, 2*time.Minute
		rotations += f.follow(t, seed) - 1
	}
	require.Greater(t, rotations, 5*cases, "too few for the test to tell anything")
}

func TestWithoutOverlapAReaderHoldsNoTokenForLongAfterItsEnd(t *testing.T) {
	// While WeCom answers, ten seconds at most.
	const cases = 1000
	rotations := 0
	for range cases {
		seed := rand.Uint64()
		f := newFollowed(seed, wecom, sameUntilItsEnd)
		f.slow, f.least = f.pick(0, time.Second), -10*time.Second
		rotations += f.follow(t, seed) - 1
		require.LessOrEqual(t, f.calls, 8*len(f.issuer.ends)+3*f.restarts, "seed %#x: calls for %d tokens", seed, len(f.issuer.ends))
	}
	require.Greater(t, rotations, 2*cases, "too few for the test to tell anything")
}

// issuer grants credentials in its own way.
type issuer struct {
	rng    *rand.Rand
	value  string
	ends   map[string]time.Time // of each that was granted
	grants func(w *issuer, now time.Time, left time.Duration)
}

// call returns the credential of now and what is left of its life.
func (w *issuer) call(now time.Time) (value string, left time.Duration) {
	w.grants(w, now, w.ends[w.value].Sub(now))
	return w.value, w.ends[w.value].Sub(now).Truncate(time.Second)
}

func (w *issuer) another(now time.Time, life time.Duration) {
	w.value = fmt.Sprintf("V%d", len(w.ends))
	w.ends[w.value] = now.Add(life)
}

// normalMode is WeChat's: the same token until the last 300 s of its life, then another one
// beside it.
func normalMode(w *issuer, now time.Time, left time.Duration) {
	const overlap = 300 * time.Second
	if left > overlap || left == overlap && w.rng.IntN(2) == 0 {
		return
	}
	life := overlap
	switch w.rng.IntN(3) {
	case 0:
		life += time.Duration(w.rng.IntN(20)) * time.Second
	case 1:
		life += time.Duration(w.rng.IntN(6901)) * time.Second
	}
	w.another(now, life)
}

// sameUntilItsEnd is WeCom's: the same token until it has ended, now and then with a longer
// life.
func sameUntilItsEnd(w *issuer, now time.Time, left time.Duration) {
	life := 7200 * time.Second
	switch {
	case left <= 0:
		if w.rng.IntN(4) == 0 {
			life = time.Duration(30+w.rng.IntN(600)) * time.Second
		}
		w.another(now, life)
	case left <= 60*time.Second && w.rng.IntN(4) == 0:
		w.ends[w.value] = now.Add(life)
	}
}

// followed is a holder with one reader that follows ttl. Its times are the issuer's; the
// holder's wall clock differs by skew.
type followed struct {
	rng    *rand.Rand
	policy Policy
	issuer issuer
	now    time.Time
	skew   time.Duration
	ahead  time.Duration // the most that skew was in this era
	era    int64
	limit  time.Duration // of ttl

	steps bool          // the clock is set every now and then
	slow  time.Duration // the longest that a call takes
	least time.Duration // that is left of the life of what the reader holds

	s        State
	f        *Failure
	inFlight *Grant    // nil if no call is
	answerAt time.Time // when it is answered

	held     Credential // the reader's
	calls    int
	restarts int
	asked    [2]time.Time // the last two calls since the start
	hasty    bool         // it made three within policy.Apart: a comparison and one that was due are two
}

func newFollowed(seed uint64, p Policy, grants func(*issuer, time.Time, time.Duration)) *followed {
	rng := rand.New(rand.NewPCG(seed, 0))
	f := &followed{
		rng: rng, policy: p, now: noon.Add(time.Duration(rng.Int64N(int64(time.Hour)))),
		issuer: issuer{rng: rng, ends: map[string]time.Time{}, grants: grants},
	}
	f.limit = f.pick(0, 10*time.Second, 4*time.Minute, 4*time.Minute, time.Hour)
	if p.Compare > 0 {
		f.policy.Compare = f.pick(0, time.Minute, 5*time.Minute, 24*time.Hour)
	}
	f.setClock()
	f.issuer.call(f.now.Add(-f.between(7000 * time.Second))) // its credential may be older than what the holder knows of it
	return f
}

func (f *followed) pick(of ...time.Duration) time.Duration { return of[f.rng.IntN(len(of))] }

// between returns a random duration from 0 to most.
func (f *followed) between(most time.Duration) time.Duration {
	return time.Duration(f.rng.Int64N(int64(most) + 1))
}

func (f *followed) setClock() {
	f.skew = f.between(10*time.Second) - 5*time.Second
	if f.ahead-f.skew > Tolerance {
		f.era, f.ahead = f.era+1, f.skew
	}
	f.ahead = max(f.ahead, f.skew)
}

func (f *followed) clock() Moment { return f.clockAt(f.now) }

func (f *followed) clockAt(now time.Time) Moment {
	return Moment{Wall: now.Add(f.skew), Steady: now, Era: f.era}
}

// ask begins a call, unless one is on its way.
func (f *followed) ask() {
	if f.inFlight != nil {
		return
	}
	f.calls++
	f.hasty = f.hasty || !f.steps && f.now.Sub(f.asked[0]) < f.policy.Apart
	f.asked = [2]time.Time{f.asked[1], f.now}
	there, back := f.between(f.slow/2), f.between(f.slow/2)
	f.answerAt = f.now.Add(there + back)
	f.inFlight = &Grant{Asked: f.clock(), Answered: f.clockAt(f.answerAt)}
	f.inFlight.Value, f.inFlight.Life = f.issuer.call(f.now.Add(there))
}

// take ends the call on its way. What has almost ended is refused.
func (f *followed) take() {
	g := *f.inFlight
	f.inFlight = nil
	if g.Life <= 0 || g.End().Sub(g.Answered.Wall) < MinTTL {
		failure := f.f.After(g.Asked.Wall, f.clock(), true, transient)
		f.f = &failure
		return
	}
	f.s, f.f = f.s.Granted(f.policy, g, f.rng.Float64()), nil
}

// restart forgets what is not stored.
func (f *followed) restart() {
	if f.s.Value != "" {
		f.s, f.f = Loaded(f.s.Credential, f.policy, f.clock(), f.rng.Float64()), nil
		f.asked = [2]time.Time{}
		f.restarts++
	}
}

// settled reports whether memory answers a reader, with the credential or an error.
func (f *followed) settled() bool {
	now := f.clock()
	return f.s.Servable(now, f.f) || !f.s.Usable(now) && f.s.Waits(now, f.f)
}

// follow plays one random case. It returns how many credentials the reader was served.
func (f *followed) follow(t *testing.T, seed uint64) (served int) {
	background, pause, jitter := f.rng.IntN(4) > 0, time.Second, 0.0
	if f.rng.IntN(2) == 0 {
		pause, jitter = 500*time.Millisecond, 0.1
	}
	readAt, otherAt := f.now, f.now.Add(f.between(time.Hour))
	waiting := false // the reader, for the call on its way
	asked := false   // that call is its own
	for range 120 {
		f.s = f.s.At(f.clock())
		next := otherAt
		if !waiting {
			next = earlier(next, readAt)
		}
		if f.inFlight != nil {
			next = earlier(next, f.answerAt)
		} else if wake := f.s.Next(f.f); background && !wake.IsZero() {
			next = earlier(next, wake.Add(-f.skew))
		}
		f.now = later(f.now, next)

		switch {
		case f.inFlight != nil && !f.now.Before(f.answerAt):
			f.take()
		case !f.now.Before(otherAt): // another reader, or a restart
			if !f.settled() {
				f.ask()
			} else if f.inFlight == nil && f.rng.IntN(10) == 0 {
				f.restart()
			}
			otherAt = f.now.Add(f.between(f.pick(time.Second, time.Minute, time.Hour)))
			if f.inFlight == nil && f.steps {
				f.setClock()
			}
			continue
		case !waiting && !f.now.Before(readAt):
			waiting, asked = true, false
		default:
			f.ask() // the background
			continue
		}
		if !waiting {
			continue
		}
		f.s = f.s.At(f.clock())
		if !asked && !f.settled() {
			asked = f.inFlight == nil
			f.ask()
			continue
		}

		// The reader gets an answer.
		waiting = false
		if !f.s.Usable(f.clock()) {
			require.Negative(t, f.least, "seed %#x: an error", seed)
			require.NoError(t, f.holds(), "seed %#x", seed)
			readAt = f.now.Add(time.Second)
			continue
		}
		ttl := f.s.TTL(f.clock(), f.limit)
		require.NoError(t, errors.Join(f.holds(), f.seen(ttl)), "seed %#x", seed)
		if f.held.Value != f.s.Value {
			served++
		}
		f.held = f.s.Credential
		sleep := time.Duration(ttl)*time.Second + pause
		readAt = f.now.Add(sleep + min(f.between(time.Duration(float64(sleep)*jitter)), 3*time.Second))
	}
	require.False(t, f.hasty && f.least > 0, "seed %#x: the issuer was asked three times at once", seed)
	return served
}

// holds checks what the reader held until now.
func (f *followed) holds() error {
	if left := f.issuer.ends[f.held.Value].Sub(f.now); f.held.Value != "" && left < f.least {
		return fmt.Errorf("%s was held until %s before its end", f.held.Value, left)
	}
	return nil
}

// seen checks an answer against what the reader held until now.
func (f *followed) seen(ttl int64) error {
	told, served, held := time.Duration(ttl)*time.Second, f.s.Credential, f.held
	left := f.issuer.ends[served.Value].Sub(f.now)
	switch {
	case told < MinTTL:
		return fmt.Errorf("a ttl of %d", ttl)
	case f.limit > 0 && told > f.limit:
		return fmt.Errorf("a ttl of %d, past its limit %s", ttl, f.limit)
	case f.clock().Wall.Add(told).After(served.End), f.clock().Wall.Add(told).After(served.Shown):
		return fmt.Errorf("a ttl of %d, past the end", ttl)
	case left < f.least:
		return fmt.Errorf("%s was served with %s left", served.Value, left)
	case held.Value == served.Value && (held.Rotated != served.Rotated || held.Shown != served.Shown && !f.policy.Prolonged):
		return fmt.Errorf("the same one came with other times: %v, %v", held, served)
	case held.Value != "" && held.Value != served.Value && held.Rotated.Equal(served.Rotated):
		return fmt.Errorf("another one came with the same time")
	}
	return nil
}
