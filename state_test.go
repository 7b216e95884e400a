package wechat

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// noon is the moment at which the tests below begin; after(s) is so many seconds
// later.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func after(seconds float64) time.Time {
	return noon.Add(time.Duration(seconds * float64(time.Second)))
}

// granted is an answer that came at once, asked so many seconds after noon.
func granted(token string, asked, lifetime float64) *tokenAnswer {
	return &tokenAnswer{
		token: token, asked: after(asked), answered: after(asked),
		lifetime: time.Duration(lifetime) * time.Second,
	}
}

// adopted is the token that an answer makes of old.
func adopted(g *tokenAnswer, old *token) *token {
	return tokenFrom(g, old, &config{ID: "account-1"}, 0)
}

// fresh is the state after a first answer at noon.
func fresh(lifetime float64) *state {
	st := nothingFetched()
	return answered(st, granted("T1", 0, lifetime))
}

// nothingFetched is the state of an account whose token nobody has asked for yet.
func nothingFetched() *state {
	return &state{accountID: "account-1", appID: testAppID, appid: &appid{}}
}

// answered is the state after an answer.
func answered(st *state, g *tokenAnswer) *state { return st.succeeded(g, adopted(g, st.token), 1) }

// failedAt is the state after a server error so many seconds after noon.
func failedAt(st *state, at float64) *state {
	return st.failed(&problem{Rule: upstream.RuleUnavailable}, after(at), after(at), 1)
}

func TestAdopt(t *testing.T) {
	old := adopted(granted("T1", 0, 7200), nil)
	for name, c := range map[string]struct {
		answer  *tokenAnswer
		old     *token
		rotated time.Time
		expires time.Time
	}{
		"a first token": {granted("T1", 0, 7200), nil, after(0), after(7200)},
		"a first token with times between the seconds": {granted("T1", 0.98765, 7200), nil, after(0.987), after(7200)},
		"the same token":                              {granted("T1", 1000, 6200), old, after(0), after(7200)},
		"the same token, said to end earlier":         {granted("T1", 1000, 5000), old, after(0), after(7200)},
		"the same token, said to end later":           {granted("T1", 1000, 7200), old, after(0), after(7200)},
		"the same token at five seconds from its end": {granted("T1", 7195, 7200), old, after(0), after(7200)},
		"the same token past its end by our clock":    {granted("T1", 7195.001, 300), old, after(0), after(7495)},
		"another token":                               {granted("T2", 6910, 7200), old, after(6910), after(14110)},
		"another token at the same moment":            {granted("T2", 0, 7200), old, after(0.000001), after(7200)},
		"another token in the same millisecond":       {granted("T2", 0.0009, 7200), old, after(0.000001), after(7200)},
		"another token at an earlier moment":          {granted("T2", -1, 7200), old, after(-0.999999), after(7199)},
	} {
		t.Run(name, func(t *testing.T) {
			got := adopted(c.answer, c.old)
			require.Equal(t, c.answer.token, got.AccessToken)
			require.Equal(t, "account-1", got.AccountID)
			require.Equal(t, schemaVersion, got.Version)
			require.Equal(t, c.rotated, got.RotatedAt)
			require.Equal(t, c.expires, got.ExpireTime)
		})
	}
}

func TestATokenIsDueBeforeItsEndButNotAtOnce(t *testing.T) {
	for lifetime, want := range map[float64]float64{
		7200: 6910, 3600: 3310, 600: 310, 301: 11, 300: 10, 299: 10, 20: 10, 19: 9.5, 10: 5, 1: 0.5,
	} {
		require.Equal(t, after(want), dueAt(noon, time.Duration(lifetime)*time.Second), "lifetime %v", lifetime)
	}
	require.Equal(t, 6910*time.Second, rotationPeriod)
}

func TestTTL(t *testing.T) {
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		lifetime float64
		maxTTL   time.Duration
		at       float64
		want     int64
	}{
		"capped":                               {7200, 4 * time.Minute, 0, 240},
		"capped to the least cap":              {7200, 10 * time.Second, 0, 10},
		"without a cap until due":              {7200, 0, 0, 6910},
		"below the cap until due":              {7200, day, 100, 6810},
		"fractions are rounded up":             {7200, 0, 0.1, 6910},
		"but not past the end":                 {7200, 0, 7190.5, 9},
		"just before it is due":                {7200, 4 * time.Minute, 6908, 5},
		"when it is due":                       {7200, 4 * time.Minute, 6910, 10},
		"due, the least cap":                   {7200, 10 * time.Second, 7000, 10},
		"due, ten seconds before the end":      {7200, 0, 7190, 10},
		"due, less than ten seconds left":      {7200, 0, 7191.5, 8},
		"due, five seconds left":               {7200, 0, 7195, 5},
		"the least documented life":            {300, 4 * time.Minute, 0, 10},
		"the least documented life, later":     {300, 4 * time.Minute, 7, 5},
		"the least documented life, due":       {300, 4 * time.Minute, 11, 10},
		"a life of ten seconds":                {10, 4 * time.Minute, 0, 5},
		"a life of ten seconds, at its middle": {10, 4 * time.Minute, 5, 5},
	} {
		t.Run(name, func(t *testing.T) {
			st := fresh(c.lifetime)
			st.maxTTL = c.maxTTL
			require.True(t, st.usable(after(c.at)))
			require.Equal(t, c.want, st.ttl(after(c.at)))
		})
	}
}

func TestATokenWithLessThanFiveSecondsLeftCountsAsEnded(t *testing.T) {
	st := fresh(7200)
	require.True(t, st.usable(after(7195)))
	require.False(t, st.usable(after(7195.001)))
	require.False(t, st.servable(after(7195.001)))
	require.False(t, failedAt(st, 7190).servable(after(7195.001)), "nor is it served because WeChat fails")
	require.False(t, (&state{}).usable(noon))
}

func TestReadsAreServedFromMemory(t *testing.T) {
	st := fresh(7200)
	for name, c := range map[string]struct {
		st   *state
		at   float64
		want bool
	}{
		"before it is due":                                   {st, 6909.999, true},
		"when it is due":                                     {st, 6910, false},
		"when it is due but clocks stepped back":             {st, -10, true},
		"while the next attempt is not due":                  {failedAt(st, 6911), 6911.5, true},
		"when the next attempt is, which the background has": {failedAt(st, 6911), 7000, true},
		"near its end, the background being in time":         {failedAt(st, 7100), 7110.9, true},
		"near its end, the background being late":            {failedAt(st, 7100), 7111, false},
		"when it is due and an earlier comparison failed":    {failedAt(st, 5000), 6910, false},
		"when it is due just after a comparison failed":      {failedAt(st, 6909.5), 6910, false},
		"without any token":                                  {failedAt(&state{}, 0), 0.5, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, c.st.servable(after(c.at)))
		})
	}
}

func TestTheBackgroundWakesForWhatIsDue(t *testing.T) {
	synced := func(lifetime float64, interval time.Duration) *state {
		st := fresh(lifetime)
		st.syncInterval = interval
		st.scheduleSync(noon, st.syncInterval, 1)
		return st
	}
	often := synced(7200, 5*time.Minute)
	for range quickRetries + 1 {
		often = failedAt(often, 300)
	}
	for name, c := range map[string]struct {
		st   *state
		want time.Time
	}{
		"no token":                             {&state{syncInterval: time.Minute, sync: after(60)}, time.Time{}},
		"no token, and a failure":              {failedAt(&state{}, 0), after(1)},
		"no comparison":                        {synced(7200, 0), after(6910)},
		"comparison first":                     {synced(7200, 5*time.Minute), after(300)},
		"due first":                            {synced(300, 5*time.Minute), after(10)},
		"comparison failed":                    {failedAt(synced(7200, 5*time.Minute), 300), after(301)},
		"comparison failed again and again":    {often, after(600)},
		"refresh failed":                       {failedAt(synced(7200, 5*time.Minute), 6910), after(6911)},
		"a failure that holds beyond due":      {failedAt(synced(300, 0), 9.5), after(10)},
		"a failure that ends before it is due": {failedAt(synced(7200, 0), 1), after(2)},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, c.st.wake())
		})
	}
}

func TestTheBackgroundDoesNotAskAgainAtOnce(t *testing.T) {
	for _, lifetime := range []float64{300, 301, 305, 310, 320, 7200} {
		for _, took := range []float64{0, 1, 9, 10, 11, 30} {
			g := granted("T1", 0, lifetime)
			g.answered = after(took)
			due := fresh(lifetime)
			due.due = noon
			for name, st := range map[string]*state{
				"a first token":                 nothingFetched(),
				"the same token when it is due": due,
			} {
				require.False(t, answered(st, g).wake().Before(after(took).Add(minCallInterval)),
					"%s: a lifetime of %v s, answered after %v s, is asked for again sooner than minCallInterval", name, lifetime, took)
			}
		}
	}
}

func TestSucceeded(t *testing.T) {
	for name, c := range map[string]struct {
		before   *state
		answer   *tokenAnswer
		end, due time.Time
		expires  time.Time // as readers are told
	}{
		"a first token": {nothingFetched(), granted("T1", 0, 7200), after(7200), after(6910), after(7200)},
		"another token": {fresh(7200), granted("T2", 6910, 7200), after(14110), after(13820), after(14110)},
		"another token with a shorter life": {
			fresh(7200), granted("T2", 100, 600), after(700), after(410), after(700),
		},
		"the same token, the same end": {fresh(7200), granted("T1", 1000, 6200), after(7200), after(6910), after(7200)},
		"the same token, the same end but for rounding": {
			fresh(7200), granted("T1", 1000.9, 6199), after(7200), after(6910), after(7200),
		},
		"the same token, an earlier end": {
			fresh(7200), granted("T1", 1000, 5000), after(6000), after(5710), after(7200),
		},
		"the same token, a later end": {
			fresh(7200), granted("T1", 1000, 7200), after(7200), after(6910), after(7200),
		},
		"the same token when it was due": {
			fresh(7200), granted("T1", 6910, 290), after(7200), after(6920), after(7200),
		},
		"the same token after an end said too early": {
			answered(fresh(7200), granted("T1", 1000, 5000)), granted("T1", 1100, 6100), after(7200), after(5710), after(7200),
		},
		"the same token past its end by our clock": {
			fresh(7200), granted("T1", 7300, 300), after(7600), after(7310), after(7600),
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := *c.before
			got := answered(failedAt(c.before, -100), c.answer)
			require.Equal(t, before, *c.before, "a state is never changed")
			require.Equal(t, c.answer.token, got.token.AccessToken)
			require.Equal(t, c.end, got.token.end())
			require.Equal(t, c.due, got.due)
			require.Equal(t, c.expires, got.token.ExpireTime)
			require.Equal(t, c.answer.answered, got.lastSuccess)
			require.Nil(t, got.failure, "what failed before is forgotten")
		})
	}
}

func TestFailed(t *testing.T) {
	busy, secret, blocked := errcodes[-1], errcodes[40001], errcodes[89507]
	type attempt struct {
		rule      rule
		count     int
		least, to time.Duration // until the next attempt
	}
	for name, attempts := range map[string][]attempt{
		"the waits of one class grow": {
			{busy, 1, time.Second, time.Second},
			{busy, 2, 1500 * time.Millisecond, 2 * time.Second},
			{upstream.RuleUnavailable, 3, 3 * time.Second, 4 * time.Second},
			{busy, 4, 6 * time.Second, 8 * time.Second},
		},
		"each class begins at its first wait": {
			{busy, 1, time.Second, time.Second},
			{secret, 2, 30 * time.Second, 30 * time.Second},
			{secret, 3, 45 * time.Second, time.Minute},
			{busy, 4, time.Second, time.Second},
			{blocked, 5, time.Minute, time.Minute},
			{blocked, 6, 90 * time.Second, 2 * time.Minute},
		},
	} {
		t.Run(name, func(t *testing.T) {
			st := fresh(7200)
			before := *st
			for n, a := range attempts {
				at := after(float64(n))
				last := *st
				next := st.failed(&problem{Rule: a.rule}, at, at, 1)
				require.Equal(t, last, *st, "a state is never changed")
				st = next
				require.Equal(t, a.count, st.failure.count)
				require.Equal(t, at, st.failure.at)
				require.GreaterOrEqual(t, st.failure.next.Sub(at), a.least)
				require.LessOrEqual(t, st.failure.next.Sub(at), a.to)
				require.True(t, st.waits(at))
				require.False(t, st.waits(st.failure.next))
			}
			require.Equal(t, before.token, st.token)
			require.Equal(t, before.token.end(), st.token.end())
			require.Equal(t, before.due, st.due)
			require.Equal(t, before.lastSuccess, st.lastSuccess)
		})
	}
	require.False(t, fresh(7200).waits(noon))
}

func TestReconfiguredForgetsFailuresAndKeepsTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := failedAt(fresh(7200), 100)
		st.version = 7
		before := *st
		got := st.reconfigured(&config{ID: "account-1", AppID: testAppID, MaxTTL: time.Minute, SyncInterval: time.Hour})
		require.Equal(t, before, *st, "a state is never changed")
		want := before
		want.failure, want.maxTTL, want.syncInterval = nil, time.Minute, time.Hour
		require.WithinRange(t, got.sync, wallClock().Add(54*time.Minute), wallClock().Add(time.Hour))
		want.sync = got.sync
		require.NotNil(t, got.config)
		require.Nil(t, got.config.Load(), "what was read before is not used")
		want.config = got.config
		require.Equal(t, &want, got)

		got = got.reconfigured(&config{ID: "account-1", AppID: testAppID})
		require.Zero(t, got.maxTTL)
		require.True(t, got.sync.IsZero())
	})
}

func TestAStoredTokenIsOnlyUsedForItsAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(noon))
		stored := adopted(granted("T1", 0.9, 7200), nil)
		cfg := &config{ID: "account-1", AppID: testAppID, MaxTTL: time.Minute, SyncInterval: time.Hour}
		st := newState(cfg, &appid{}, stored, 0.25)
		require.Equal(t, stored, st.token)
		require.Equal(t, after(7200), st.token.end())
		require.Equal(t, after(6910), st.due)
		require.Equal(t, wallClock().Add(firstSync/4), st.sync)
		require.Equal(t, time.Minute, st.maxTTL)

		cfg.ID = "account-2"
		st = newState(cfg, &appid{}, stored, 0.25)
		require.Nil(t, st.token)
		require.True(t, st.wake().IsZero())
		require.False(t, st.usable(after(1)))
	})
}

func TestAnUnconfirmedTokenIsNotHandedOutUntilItIsConfirmedOrReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(after(100)))
		st := fresh(7200)
		require.True(t, st.usable(after(100)))
		st.appid.begin(7)
		require.False(t, st.usable(after(100)))
		require.False(t, st.servable(after(100)))
		require.False(t, failedAt(st, 100).servable(after(100)), "nor because WeChat fails")
		require.True(t, after(100).Equal(st.wake()), "the background asks at once")

		for name, token := range map[string]string{"confirmed": "T1", "replaced": "T2"} {
			g := granted(token, 101, 7099)
			got := st.succeeded(g, tokenFrom(g, st.token, &config{ID: "account-1"}, 7), 1)
			require.True(t, got.servable(after(101)), name)
			require.Equal(t, token, got.token.AccessToken, name)
			require.Equal(t, after(6910), got.due, name)
		}

		stored := adopted(granted("T1", 0, 7200), nil)
		got := newState(&config{ID: "account-1"}, st.appid, stored, 0)
		require.Equal(t, stored, got.token)
		require.False(t, got.usable(after(100)), "after a restart, too, a token of another epoch may be dead")
	})
}

// TestAReaderAlwaysHoldsALiveToken tries readers that follow ttl against WeChat as
// it is documented, over random lifetimes, latencies, clocks, settings and other
// readers.
func TestAReaderAlwaysHoldsALiveToken(t *testing.T) {
	const cases = 20_000
	rotations := 0
	for range cases {
		seed := rand.Uint64()
		tokens, err := followTTL(seed)
		if err != nil {
			t.Fatalf("followTTL(%#x): %v", seed, err)
		}
		rotations += tokens - 1
	}
	require.Greater(t, rotations, 5*cases, "too few for the test to tell anything")
}

// normalMode is WeChat's normal mode: the current token until the last 300 s of
// its life, then another one beside it.
type normalMode struct {
	rng     *rand.Rand
	current string
	ends    map[string]time.Time // of every token issued
}

func (w *normalMode) call(now time.Time) (token string, left time.Duration) {
	const overlap = 300 * time.Second
	left = w.ends[w.current].Sub(now)
	if left < overlap || left == overlap && w.rng.IntN(2) == 0 {
		left = 300 * time.Second
		switch w.rng.IntN(3) {
		case 0:
			left += time.Duration(w.rng.IntN(20)) * time.Second
		case 1:
			left += time.Duration(w.rng.IntN(6901)) * time.Second
		}
		w.current = fmt.Sprintf("T%d", len(w.ends))
		w.ends[w.current] = now.Add(left)
	}
	return w.current, left.Truncate(time.Second)
}

// followed is the engine with one account and a reader that follows ttl. Its
// times are WeChat's; the engine's clock differs by skew.
type followed struct {
	rng    *rand.Rand
	wechat normalMode
	now    time.Time
	skew   time.Duration
	steps  bool          // the clock is set every now and then
	slow   time.Duration // the longest that a call takes

	st       *state
	inFlight *tokenAnswer // nil if no call is
	answerAt time.Time    // when it is answered

	asked [2]time.Time // the last two calls since the engine started
	hasty bool         // it made three within minCallInterval: a comparison and one that was due are two
}

func (f *followed) clock() time.Time { return f.now.Add(f.skew).UTC() }

// between returns a random duration from 0 to most.
func (f *followed) between(most time.Duration) time.Duration {
	return time.Duration(f.rng.Int64N(int64(most) + 1))
}

// ask begins a call, unless one is on its way.
func (f *followed) ask() {
	if f.inFlight != nil {
		return
	}
	f.hasty = f.hasty || !f.steps && f.now.Sub(f.asked[0]) < minCallInterval
	f.asked = [2]time.Time{f.asked[1], f.now}
	there, back := f.between(f.slow/2), f.between(f.slow/2)
	g := &tokenAnswer{asked: f.clock(), answered: f.clock().Add(there + back)}
	g.token, g.lifetime = f.wechat.call(f.now.Add(there))
	f.inFlight, f.answerAt = g, f.now.Add(there+back)
}

// take ends the call on its way.
func (f *followed) take() {
	g := f.inFlight
	f.st, f.inFlight = f.st.succeeded(g, adopted(g, f.st.token), 0.9+0.1*f.rng.Float64()), nil
}

// restart forgets what is not stored.
func (f *followed) restart() {
	if f.st.token != nil {
		st := newState(&config{ID: "account-1", MaxTTL: f.st.maxTTL, SyncInterval: f.st.syncInterval}, f.st.appid, f.st.token, 0)
		st.scheduleSync(f.clock(), st.syncInterval, f.rng.Float64())
		f.st, f.asked = st, [2]time.Time{}
	}
}

// followTTL plays one random case. It returns how many tokens the reader was
// served, and what it may not see as an error.
func followTTL(seed uint64) (tokens int, err error) {
	rng := rand.New(rand.NewPCG(seed, 0))
	pick := func(of ...time.Duration) time.Duration { return of[rng.IntN(len(of))] }
	f := &followed{
		rng: rng, now: noon.Add(time.Duration(rng.Int64N(int64(time.Hour)))),
		wechat: normalMode{rng: rng, ends: map[string]time.Time{}},
		steps:  rng.IntN(4) == 0, slow: pick(0, time.Second, 30*time.Second),
		st: &state{
			accountID:    "account-1",
			appid:        &appid{},
			maxTTL:       pick(0, 10*time.Second, 4*time.Minute, 4*time.Minute, time.Hour),
			syncInterval: pick(0, time.Minute, 5*time.Minute, 24*time.Hour),
		},
	}
	f.skew = f.between(10*time.Second) - 5*time.Second
	f.wechat.call(f.now.Add(-f.between(7000 * time.Second))) // WeChat's token may be older than the engine's knowledge of it
	background, pause := rng.IntN(4) > 0, time.Second
	jitter := 0.0
	if rng.IntN(2) == 0 {
		pause, jitter = 500*time.Millisecond, 0.1
	}

	var held *token // the reader's
	readAt := f.now
	otherAt := f.now.Add(f.between(time.Hour))
	waiting := false // the reader, for the call on its way
	asked := false   // that call is its own
	for range 120 {
		next := otherAt
		if !waiting {
			next = earlier(next, readAt)
		}
		if f.inFlight != nil {
			next = earlier(next, f.answerAt)
		} else if wake := f.st.wake(); background && !wake.IsZero() {
			next = earlier(next, wake.Add(-f.skew))
		}
		if next.After(f.now) {
			f.now = next
		}

		switch {
		case f.inFlight != nil && !f.now.Before(f.answerAt):
			f.take()
		case !f.now.Before(otherAt): // another reader, or a restart of Vault
			if !f.st.servable(f.clock()) {
				f.ask()
			} else if f.inFlight == nil && rng.IntN(10) == 0 {
				f.restart()
			}
			otherAt = f.now.Add(f.between(pick(time.Second, time.Minute, time.Hour)))
			if f.inFlight == nil && f.steps {
				f.skew = f.between(10*time.Second) - 5*time.Second
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
		if !asked && !f.st.servable(f.clock()) { // as keeper.read does, which holds the lock then
			asked = f.inFlight == nil
			f.ask()
			continue
		}

		// The reader gets an answer.
		waiting = false
		ttl := f.st.ttl(f.clock())
		if err := f.seen(held, ttl); err != nil {
			return tokens, err
		}
		if held == nil || held.AccessToken != f.st.token.AccessToken {
			tokens++
		}
		held = f.st.token
		sleep := time.Duration(ttl)*time.Second + pause
		readAt = f.now.Add(sleep + min(f.between(time.Duration(float64(sleep)*jitter)), 3*time.Second))
	}
	if f.hasty {
		return tokens, errors.New("WeChat was asked three times within minCallInterval")
	}
	return tokens, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// seen checks an answer against what the reader held until now.
func (f *followed) seen(held *token, ttl int64) error {
	const least = 2 * time.Minute
	told := time.Duration(ttl) * time.Second
	served := f.st.token
	switch {
	case !f.st.usable(f.clock()):
		return fmt.Errorf("token %s is not usable", served.AccessToken)
	case told < 5*time.Second:
		return fmt.Errorf("a ttl of %d", ttl)
	case f.st.maxTTL > 0 && told > f.st.maxTTL:
		return fmt.Errorf("a ttl of %d, past max_ttl %s", ttl, f.st.maxTTL)
	case f.clock().Add(told).After(f.st.token.end()) || f.clock().Add(told).After(served.ExpireTime):
		return fmt.Errorf("a ttl of %d, past the end", ttl)
	case f.wechat.ends[served.AccessToken].Sub(f.now) < least:
		return fmt.Errorf("token %s was served with %s left", served.AccessToken, f.wechat.ends[served.AccessToken].Sub(f.now))
	case held == nil:
		return nil
	case f.wechat.ends[held.AccessToken].Sub(f.now) < least:
		return fmt.Errorf("token %s was held until %s before its end", held.AccessToken, f.wechat.ends[held.AccessToken].Sub(f.now))
	case held.AccessToken == served.AccessToken && (held.RotatedAt != served.RotatedAt || held.ExpireTime != served.ExpireTime):
		return fmt.Errorf("the same token came with other times: %v, %v", held, served)
	case held.AccessToken != served.AccessToken && held.RotatedAt.Equal(served.RotatedAt):
		return fmt.Errorf("another token came with the same last_vault_rotation")
	}
	return nil
}
