package kept

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The policies that the tests below speak of.
var (
	// token is that of WeChat's access tokens.
	token = Policy{
		Life: 7200 * time.Second, Margin: 290 * time.Second, Overlap: 300 * time.Second,
		Compare: 5 * time.Minute, Apart: 10 * time.Second,
	}

	// uncompared is that of an account whose token is compared only when it is due.
	uncompared = Policy{Life: token.Life, Margin: token.Margin, Overlap: token.Overlap, Apart: token.Apart}

	// ticket is that of WeChat's tickets: each answer is good for two hours.
	ticket = Policy{
		Life: 2 * time.Hour, Margin: 2*time.Hour - 11*time.Minute, Overlap: 2 * time.Hour,
		Compare: 10 * time.Minute, Apart: 10 * time.Second, Idle: 2 * time.Hour, Prolonged: true,
	}

	// wecom is that of an issuer without overlap: it grants the same token until that has
	// ended, now and then with a longer life.
	wecom = Policy{Life: 7200 * time.Second, Margin: time.Minute, Apart: 10 * time.Second, Prolonged: true}
)

// noon is the moment at which the tests begin; after(s) is so many seconds later.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func after(seconds float64) time.Time { return noon.Add(span(seconds)) }

func span(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

// at is the moment so many seconds after noon, by clocks that agree.
func at(seconds float64) Moment { return Moment{Wall: after(seconds), Steady: after(seconds)} }

// named is an answer that came at once, asked for so many seconds after noon.
func named(value string, asked, life float64) Grant {
	return Grant{Value: value, Life: span(life), Asked: at(asked), Answered: at(asked)}
}

// fresh is the state after a first answer at noon.
func fresh(p Policy, life float64) State { return State{}.Granted(p, named("V1", 0, life), 1) }

// transient is the wait after so many failures in a row of an issuer that is busy.
func transient(run int) time.Duration { return min(time.Second<<(run-1), time.Minute) }

// failedAt is the failure that follows f, of an attempt that failed at once.
func failedAt(f *Failure, seconds float64) *Failure {
	next := f.After(after(seconds), at(seconds), true, transient)
	return &next
}

// failedTimes is the failure after so many in a row, all at the same time.
func failedTimes(times int, seconds float64) *Failure {
	var f *Failure
	for range times {
		f = failedAt(f, seconds)
	}
	return f
}

func TestAnAnswerWithTheSameCredentialLeavesItsTimesAsTheyWere(t *testing.T) {
	old := fresh(token, 7200)
	for name, c := range map[string]struct {
		before  State
		answer  Grant
		rotated time.Time
		shown   time.Time
	}{
		"a first one": {State{}, named("V1", 0, 7200), after(0), after(7200)},
		"a first one with times between the seconds": {State{}, named("V1", 0.98765, 7200), after(0.987), after(7200)},
		"the same one":                                      {old, named("V1", 1000, 6200), after(0), after(7200)},
		"the same one, said to end earlier":                 {old, named("V1", 1000, 5000), after(0), after(7200)},
		"the same one, said to end later":                   {old, named("V1", 1000, 7200), after(0), after(7200)},
		"the same one at five seconds from its end":         {old, named("V1", 7195, 7200), after(0), after(7200)},
		"the same one past its end by this machine's clock": {old, named("V1", 7195.001, 300), after(0), after(7495)},
		"another one":                                       {old, named("V2", 6910, 7200), after(6910), after(14110)},
		"another one at the same moment":                    {old, named("V2", 0, 7200), after(0.000001), after(7200)},
		"another one in the same millisecond":               {old, named("V2", 0.0009, 7200), after(0.000001), after(7200)},
		"another one at an earlier moment":                  {old, named("V2", -1, 7200), after(-0.999999), after(7199)},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.before.Granted(token, c.answer, 1)
			require.Equal(t, c.answer.Value, got.Value)
			require.Equal(t, c.rotated, got.Rotated)
			require.Equal(t, c.shown, got.Shown)
			require.True(t, got.Usable(c.answer.Answered))
		})
	}
}

func TestAnAnswerSaysWhenACredentialEndsAndIsDue(t *testing.T) {
	sooner := fresh(token, 7200).Granted(token, named("V1", 1000, 5000), 1)
	doubted := fresh(token, 7200)
	doubted.Doubted = after(100)
	slow := named("V1", 1000, 6171)
	slow.Answered = at(1030)
	for name, c := range map[string]struct {
		policy     Policy
		before     State
		answer     Grant
		end, due   time.Time
		shown      time.Time
		comparison time.Time
	}{
		"a first one": {
			token, State{}, named("V1", 0, 7200), after(7200), after(6910), after(7200), after(300),
		},
		"another one": {
			token, fresh(token, 7200), named("V2", 6910, 7200), after(14110), after(13820), after(14110), after(7210),
		},
		"another one with a shorter life": {
			token, fresh(token, 7200), named("V2", 100, 600), after(700), after(410), after(700), after(400),
		},
		"the same one, the same end": {
			token, fresh(token, 7200), named("V1", 1000, 6200), after(7200), after(6910), after(7200), after(1300),
		},
		"the same one, the same end but for rounding": {
			token, fresh(token, 7200), named("V1", 1000.9, 6199), after(7200), after(6910), after(7200), after(1300.9),
		},
		"the same one, the same end but for the time that the answer took": {
			token, fresh(token, 7200), slow, after(7200), after(6910), after(7200), after(1330),
		},
		"the same one, an earlier end": {
			token, fresh(token, 7200), named("V1", 1000, 5000), after(6000), after(5710), after(7200), after(1300),
		},
		"the same one, a later end": {
			token, fresh(token, 7200), named("V1", 1000, 7200), after(7200), after(6910), after(7200), after(1300),
		},
		"the same one when it was due": {
			token, fresh(token, 7200), named("V1", 6910, 290), after(7200), after(6920), after(7200), after(7210),
		},
		"the same one after an end said too early": {
			token, sooner, named("V1", 1100, 6100), after(7200), after(6910), after(7200), after(1400),
		},
		"the same one past its end by this machine's clock": {
			token, fresh(token, 7200), named("V1", 7300, 300), after(7600), after(7310), after(7600), after(7600),
		},
		"the same one after a doubt": {
			token, doubted, named("V1", 101, 7099), after(7200), after(6910), after(7200), after(401),
		},
		"another one after a doubt": {
			token, doubted, named("V2", 101, 7099), after(7200), after(6910), after(7200), after(401),
		},
		"no comparison": {
			uncompared, fresh(uncompared, 7200), named("V1", 1000, 6200), after(7200), after(6910), after(7200), time.Time{},
		},
		"a ticket": {
			ticket, State{}, named("V1", 0, 7200), after(7200), after(660), after(7200), after(600),
		},
		"a ticket confirmed": {
			ticket, fresh(ticket, 7200), named("V1", 600, 7200), after(7800), after(1260), after(7800), after(1200),
		},
		"a ticket confirmed after the clock was set back": {
			ticket, fresh(ticket, 7200), named("V1", -3600, 7200), after(3600), after(-2940), after(7200), after(-3000),
		},
		"without overlap": {
			wecom, State{}, named("V1", 0, 7200), after(7200), after(7140), after(7200), time.Time{},
		},
		"without overlap, the same one when it was due": {
			wecom, fresh(wecom, 7200), named("V1", 7140, 60), after(7200), after(7200), after(7200), time.Time{},
		},
		"without overlap, the same one after that": {
			wecom, fresh(wecom, 7200).Granted(wecom, named("V1", 7140, 60), 1), named("V1", 7170, 30),
			after(7200), after(7200), after(7200),
			time.Time{},
		},
		"without overlap, the same one with a longer life": {
			wecom, fresh(wecom, 7200), named("V1", 7140, 7200), after(14340), after(14280), after(14340), time.Time{},
		},
		"without overlap, the same one with a longer life before it was due": {
			wecom, fresh(wecom, 7200), named("V1", 600, 7200), after(7800), after(7740), after(7800), time.Time{},
		},
		"without overlap, the same one, longer only by rounding": {
			wecom, fresh(wecom, 7200), named("V1", 600, 6601), after(7200), after(7140), after(7200), time.Time{},
		},
		"without overlap, another one": {
			wecom, fresh(wecom, 7200), named("V2", 7200, 7200), after(14400), after(14340), after(14400), time.Time{},
		},
		"without overlap, a first one that soon ends": {
			wecom, State{}, named("V1", 0, 40), after(40), after(40), after(40), time.Time{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := c.before
			got := c.before.Granted(c.policy, c.answer, 1)
			require.Equal(t, before, c.before, "a state is never changed")
			require.Equal(t, c.answer.Value, got.Value)
			require.Equal(t, c.end, got.End)
			require.Equal(t, c.shown, got.Shown)
			require.Equal(t, c.comparison, got.Compare)
			require.Equal(t, c.answer.Answered.Wall, got.Answered)
			require.True(t, got.Doubted.IsZero())
			require.Equal(t, c.due, got.Due)
		})
	}
}

func TestACredentialIsDueBeforeItsEndButNotAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		due    map[float64]float64 // by the life, in seconds
	}{
		"a token": {token, map[float64]float64{
			7200: 6910, 3600: 3310, 600: 310, 301: 11, 300: 10, 299: 10, 20: 10, 19: 9.5, 10: 5, 1: 0.5,
		}},
		"a ticket":        {ticket, map[float64]float64{7200: 660}},
		"without overlap": {wecom, map[float64]float64{7200: 7140, 80: 20, 65: 10, 61: 10, 60: 60, 20: 20, 5: 5}},
	} {
		t.Run(name, func(t *testing.T) {
			for life, want := range c.due {
				require.Equal(t, after(want), c.policy.Due(noon, noon, span(life)), "a life of %v s", life)
				require.Equal(t, after(want), fresh(c.policy, life).Due, "a life of %v s", life)
			}
		})
	}
}

func TestACredentialIsDueByItsEndHoweverLateTheAnswerCame(t *testing.T) {
	g := named("V1", 0, 20)
	g.Answered = at(14.9)
	got := State{}.Granted(token, g, 1)
	require.True(t, got.Usable(g.Answered))
	require.Equal(t, got.End, got.Due)
}

func TestTheIssuerIsNotAskedAgainAtOnce(t *testing.T) {
	for _, p := range []Policy{token, uncompared, wecom} {
		for _, life := range []float64{300, 301, 305, 310, 320, 7200} {
			for _, took := range []float64{0, 1, 9, 10, 11, 30} {
				g := named("V1", 0, life)
				g.Answered = at(took)
				due := fresh(p, life)
				due.Due = noon
				for name, before := range map[string]State{"a first one": {}, "the same one when it was due": due} {
					require.False(t, before.Granted(p, g, 1).Next(nil).Before(after(took).Add(p.Apart)),
						"%s: a life of %v s, answered after %v s, is asked for again too soon", name, life, took)
				}
			}
		}
	}
}

func TestTTL(t *testing.T) {
	const limit, day = 4 * time.Minute, 24 * time.Hour
	for name, c := range map[string]struct {
		policy Policy
		life   float64
		limit  time.Duration
		at     float64
		want   int64
	}{
		"capped":                               {token, 7200, limit, 0, 240},
		"capped to the least cap":              {token, 7200, 10 * time.Second, 0, 10},
		"without a cap until due":              {token, 7200, 0, 0, 6910},
		"below the cap until due":              {token, 7200, day, 100, 6810},
		"fractions are rounded up":             {token, 7200, 0, 0.1, 6910},
		"but not past the end":                 {token, 7200, 0, 7190.5, 9},
		"just before it is due":                {token, 7200, limit, 6908, 5},
		"when it is due":                       {token, 7200, limit, 6910, 10},
		"due, the least cap":                   {token, 7200, 10 * time.Second, 7000, 10},
		"due, ten seconds before the end":      {token, 7200, 0, 7190, 10},
		"due, less than ten seconds left":      {token, 7200, 0, 7191.5, 8},
		"due, five seconds left":               {token, 7200, 0, 7195, 5},
		"the least documented life":            {token, 300, limit, 0, 10},
		"the least documented life, later":     {token, 300, limit, 7, 5},
		"the least documented life, due":       {token, 300, limit, 11, 10},
		"a life of ten seconds":                {token, 10, limit, 0, 5},
		"a life of ten seconds, at its middle": {token, 10, limit, 5, 5},
		"a cap below the least":                {token, 7200, time.Second, 0, 5},
		"a ticket":                             {ticket, 7200, 0, 0, 660},
		"a ticket, capped":                     {ticket, 7200, limit, 0, 240},
		"a ticket that is due":                 {ticket, 7200, 0, 660, 10},
		"without overlap":                      {wecom, 7200, 0, 0, 7140},
		"without overlap, due":                 {wecom, 7200, 0, 7140, 10},
		"without overlap, a short life":        {wecom, 40, 0, 0.5, 39},
	} {
		t.Run(name, func(t *testing.T) {
			s := fresh(c.policy, c.life)
			require.True(t, s.Usable(at(c.at)))
			require.Equal(t, c.want, s.TTL(at(c.at), c.limit))
		})
	}
}

func TestACredentialWithLessThanFiveSecondsLeftCountsAsEnded(t *testing.T) {
	for _, p := range []Policy{token, ticket, wecom} {
		s := fresh(p, 7200)
		require.True(t, s.Usable(at(7195)))
		require.False(t, s.Usable(at(7195.001)))
		require.False(t, s.Servable(at(7195.001), nil))
		require.False(t, s.Servable(at(7195.001), failedAt(nil, 7190)), "nor is it served because the issuer fails")
	}
	require.False(t, State{}.Usable(at(0)))
}

func TestReadersAreServedFromMemory(t *testing.T) {
	fresh := func(p Policy) State { return fresh(p, 7200) }
	sameAgain := fresh(wecom).Granted(wecom, named("V1", 7140, 60), 1)
	ofParent := func(seconds float64) *Failure {
		f := failedAt(nil, seconds)
		f.Derived, f.Next = true, f.At.Add(RetryTTL)
		return f
	}
	for name, c := range map[string]struct {
		state   State
		failure *Failure
		at      float64
		want    bool
	}{
		"before it is due":                                 {fresh(token), nil, 6909.999, true},
		"when it is due":                                   {fresh(token), nil, 6910, false},
		"before its time":                                  {fresh(token), nil, -4, true},
		"while the next attempt is not due":                {fresh(token), failedAt(nil, 6911), 6911.5, true},
		"when the next attempt is the background's":        {fresh(token), failedAt(nil, 6911), 7000, true},
		"near its end, the background being in time":       {fresh(token), failedAt(nil, 7100), 7110.9, true},
		"near its end, the background being late":          {fresh(token), failedAt(nil, 7100), 7111, false},
		"when it is due and an earlier comparison failed":  {fresh(token), failedAt(nil, 5000), 6910, false},
		"when it is due just after a comparison failed":    {fresh(token), failedAt(nil, 6909.5), 6910, false},
		"without any":                                      {State{}, failedAt(nil, 0), 0.5, false},
		"a ticket confirmed lately":                        {fresh(ticket), nil, 659.9, true},
		"a ticket that the background has not compared":    {fresh(ticket), nil, 660, false},
		"a ticket whose comparison has just failed":        {fresh(ticket), failedAt(nil, 600), 659, true},
		"a ticket at eleven minutes after that":            {fresh(ticket), failedAt(nil, 600), 660, false},
		"a ticket that could not be compared since":        {fresh(ticket), failedAt(nil, 660), 7000, true},
		"a ticket near its end, the background being late": {fresh(ticket), failedAt(nil, 7100), 7111, false},
		"a ticket that wants a token, not yet due":         {fresh(ticket), ofParent(600), 659, true},
		"a ticket that wants a token, in time":             {fresh(ticket), ofParent(7090), 7109, true},
		"a ticket that wants a token, late":                {fresh(ticket), ofParent(7090), 7110, false},
		"without overlap, when it is due":                  {fresh(wecom), nil, 7140, false},
		"without overlap, once the same one came again":    {sameAgain, nil, 7195, true},
		"without overlap, while the issuer fails":          {fresh(wecom), failedAt(nil, 7140), 7141, true},
		"without overlap, the background being late":       {fresh(wecom), failedAt(nil, 7140), 7151, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, c.state.Servable(at(c.at), c.failure))
		})
	}
}

func TestTheBackgroundAsksWhenThatIsDue(t *testing.T) {
	checked := fresh(uncompared, 7200)
	checked.CompareBy(after(30))
	doubted := fresh(token, 7200)
	doubted.Doubted = after(100)
	for name, c := range map[string]struct {
		state   State
		failure *Failure
		want    time.Time
	}{
		"none":                                     {State{}, nil, time.Time{}},
		"none, and a failure":                      {State{}, failedAt(nil, 0), after(1)},
		"none, and many failures":                  {State{}, failedTimes(9, 0), after(60)},
		"no comparison":                            {fresh(uncompared, 7200), nil, after(6910)},
		"comparison first":                         {fresh(token, 7200), nil, after(300)},
		"due first":                                {fresh(token, 300), nil, after(10)},
		"comparison failed":                        {fresh(token, 7200), failedAt(nil, 300), after(301)},
		"comparison failed five times":             {fresh(token, 7200), failedTimes(5, 300), after(316)},
		"comparison failed again and again":        {fresh(token, 7200), failedTimes(6, 300), after(600)},
		"a report failed, comparison first":        {fresh(token, 7200), failedTimes(6, 100), after(300)},
		"a report failed, no comparison":           {fresh(uncompared, 7200), failedTimes(6, 100), after(400)},
		"a report failed, due first":               {fresh(uncompared, 7200), failedTimes(6, 6800), after(6910)},
		"the attempt when it was due failed":       {fresh(token, 7200), failedAt(nil, 6910), after(6911)},
		"the attempts when it was due failed":      {fresh(token, 7200), failedTimes(9, 6910), after(6970)},
		"a failure that holds beyond due":          {fresh(uncompared, 300), failedAt(nil, 9.5), after(10)},
		"a failure that ends before it is due":     {fresh(uncompared, 7200), failedAt(nil, 1), after(2)},
		"a comparison that was ordered":            {checked, nil, after(30)},
		"in doubt":                                 {doubted, nil, after(100)},
		"in doubt, and a failure from before that": {doubted, failedTimes(9, 99), after(100)},
		"in doubt, and a failure since":            {doubted, failedAt(nil, 100), after(101)},
		"a ticket":                                 {fresh(ticket, 7200), nil, after(600)},
		"a ticket that could not be compared":      {fresh(ticket, 7200), failedAt(nil, 600), after(601)},
		"a ticket, at eleven minutes":              {fresh(ticket, 7200), failedTimes(9, 640), after(660)},
		"without overlap":                          {fresh(wecom, 7200), nil, after(7140)},
		"without overlap, the same one came again": {
			fresh(wecom, 7200).Granted(wecom, named("V1", 7140, 60), 1), nil, after(7200),
		},
		"without overlap, an attempt in the last seconds failed": {
			fresh(wecom, 7200).Granted(wecom, named("V1", 7140, 60), 1), failedTimes(9, 7199), after(7200),
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, c.state.Next(c.failure))
		})
	}
}

func TestFailuresAreCountedAndEachBackoffBeginsAtItsFirstWait(t *testing.T) {
	busy, person := transient, func(run int) time.Duration { return min(30*time.Second<<(run-1), 5*time.Minute) }
	type attempt struct {
		wait  func(int) time.Duration
		same  bool
		count int
		next  time.Duration
	}
	for name, attempts := range map[string][]attempt{
		"the waits of one backoff grow": {
			{busy, false, 1, time.Second}, {busy, true, 2, 2 * time.Second}, {busy, true, 3, 4 * time.Second},
		},
		"each backoff begins at its first wait": {
			{busy, false, 1, time.Second},
			{person, false, 2, 30 * time.Second},
			{person, true, 3, time.Minute},
			{busy, false, 4, time.Second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := fresh(token, 7200)
			var f *Failure
			for n, a := range attempts {
				now := at(float64(n))
				next := f.After(now.Wall.Add(-time.Second), now, a.same, a.wait)
				f = &next
				require.Equal(t, a.count, f.Count)
				require.Equal(t, now.Wall, f.At)
				require.Equal(t, now.Wall.Add(-time.Second), f.Begun)
				require.Equal(t, now.Wall.Add(a.next), f.Next)
				require.True(t, s.Waits(now, f))
				require.False(t, s.Waits(at(float64(n)+a.next.Seconds()), f))
			}
		})
	}
}

func TestAnAttemptWaitsForTheBackoffOfThoseSinceItWasDue(t *testing.T) {
	doubted := fresh(token, 7200)
	doubted.Doubted = after(100)
	derived := failedAt(nil, 6920)
	derived.Derived = true
	for name, c := range map[string]struct {
		state   State
		failure *Failure
		at      float64
		want    bool
	}{
		"nothing failed":                      {fresh(token, 7200), nil, 0, false},
		"a comparison failed":                 {fresh(token, 7200), failedAt(nil, 300), 300.9, true},
		"a comparison failed, the wait over":  {fresh(token, 7200), failedAt(nil, 300), 301, false},
		"a comparison failed, it is due":      {fresh(token, 7200), failedTimes(9, 6909), 6910, false},
		"the attempt when it was due failed":  {fresh(token, 7200), failedTimes(9, 6910), 6969, true},
		"it has ended since":                  {fresh(token, 7200), failedTimes(9, 7190), 7210, true},
		"none, and an attempt failed":         {State{}, failedAt(nil, 0), 0.9, true},
		"before a doubt an attempt failed":    {doubted, failedTimes(9, 99), 100, false},
		"since a doubt an attempt failed":     {doubted, failedTimes(9, 100), 159, true},
		"there was nothing to ask with":       {fresh(token, 7200), derived, 6920.5, false},
		"there was nothing to ask with, none": {State{}, derived, 6920.5, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, c.state.Waits(at(c.at), c.failure))
		})
	}
}

func TestALoadedCredentialIsUsedAndComparedWithinAMinute(t *testing.T) {
	stored := fresh(token, 7200).Credential
	sooner := stored
	sooner.End = after(6000)
	for name, c := range map[string]struct {
		stored     Credential
		policy     Policy
		jitter     float64
		due        time.Time
		comparison time.Time
	}{
		"a token":                        {stored, token, 0.25, after(6910), after(115)},
		"a token, the latest comparison": {stored, token, 1, after(6910), after(160)},
		"a token, named to end earlier":  {sooner, token, 0, after(5710), after(100)},
		"a token, compared each half":    {stored, Policy{Life: token.Life, Margin: token.Margin, Overlap: token.Overlap, Compare: 30 * time.Second}, 1, after(6910), after(130)},
		"a token that is never compared": {stored, uncompared, 0.25, after(6910), time.Time{}},
		"a ticket":                       {fresh(ticket, 7200).Credential, ticket, 0.5, after(660), after(130)},
		"without overlap":                {fresh(wecom, 7200).Credential, wecom, 0.5, after(7140), time.Time{}},
		"without overlap, a life prolonged": {
			fresh(wecom, 7200).Granted(wecom, named("V1", 60, 7200), 1).Credential, wecom, 0, after(7200), time.Time{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := Loaded(c.stored, c.policy, at(100), c.jitter)
			require.Equal(t, c.stored, s.Credential)
			require.Equal(t, c.due, s.Due)
			require.Equal(t, c.comparison, s.Compare)
			require.True(t, s.Servable(at(100), nil))
			require.Equal(t, c.stored.End.Sub(after(100)), s.Left(at(100)))
			require.True(t, s.Answered.IsZero(), "since the start there was no answer")
		})
	}
	none := Loaded(Credential{}, token, at(100), 0.25)
	require.True(t, none.Next(nil).IsZero(), "one that no reader has asked for is left alone")
	require.False(t, none.Usable(at(100)))
}

func TestALoadedCredentialWhoseTimesLieAheadIsNotUsedBeforeTheIssuerIsAsked(t *testing.T) {
	for name, c := range map[string]struct {
		stored Credential
		life   float64 // that is left when the issuer is asked
	}{
		"asked for by a clock that was ahead":   {fresh(token, 7200).Credential, 600},
		"an end beyond the longest life":        {Credential{Value: "V1", Rotated: after(-30000), Timed: after(-30000), Shown: after(60), End: after(60)}, 600},
		"its end asked for by such a clock":     {Credential{Value: "V1", Rotated: after(-30000), Timed: after(0), Shown: after(-24000), End: after(-24000)}, 600},
		"and the issuer names the longest life": {fresh(token, 7200).Credential, 7200},
	} {
		t.Run(name, func(t *testing.T) {
			s := Loaded(c.stored, token, at(-28800), 0)
			require.False(t, s.Usable(at(-28800)))
			require.Equal(t, after(-28800), s.Next(nil), "it is asked at once")
			require.True(t, s.Waits(at(-28799.5), failedAt(nil, -28800)), "a failure of that attempt counts")

			got := s.Granted(token, named("V1", -28790, c.life), 1)
			require.True(t, got.Usable(at(-28790)))
			require.LessOrEqual(t, got.Left(at(-28790)), span(c.life))
			require.Equal(t, c.stored.Rotated, got.Rotated)
		})
	}
	nearly := Loaded(fresh(token, 7200).Credential, token, at(-5), 0)
	require.True(t, nearly.Servable(at(-5), nil), "the margins bear the tolerance")
}

func TestACredentialInDoubtIsNotHandedOutUntilItIsConfirmedOrReplaced(t *testing.T) {
	s := fresh(token, 7200)
	require.True(t, s.Usable(at(100)))
	s.Doubted = after(100)
	require.False(t, s.Usable(at(100)))
	require.False(t, s.Servable(at(100), nil))
	require.False(t, s.Servable(at(100), failedAt(nil, 100)), "nor because the issuer fails")
	require.Equal(t, after(100), s.Next(nil), "the background asks at once")
	require.Equal(t, after(100), s.DueTime())
	for _, value := range []string{"V1", "V2"} {
		got := s.Granted(token, named(value, 101, 7099), 1)
		require.True(t, got.Servable(at(101), nil), value)
		require.Equal(t, after(6910), got.DueTime(), value)
	}
	s.Doubted = after(7000)
	require.Equal(t, after(6910), s.DueTime(), "it was due before the doubt")
}

func TestComparisonsOfCredentialsThatWereGrantedTogetherDriftApart(t *testing.T) {
	for _, p := range []Policy{token, ticket} {
		least := State{}.Granted(p, named("V1", 0, 7200), 0)
		most := State{}.Granted(p, named("V1", 0, 7200), 1)
		require.Equal(t, noon.Add(p.Compare*9/10), least.Compare)
		require.Equal(t, noon.Add(p.Compare), most.Compare)
	}
	s := fresh(token, 7200)
	s.Reschedule(uncompared, at(50), 1)
	require.True(t, s.Compare.IsZero(), "with another policy")
	s.Reschedule(ticket, at(50), 1)
	require.Equal(t, after(650), s.Compare)
}

func TestAnOrderedComparisonIsMade(t *testing.T) {
	ordered := fresh(uncompared, 7200)
	ordered.CompareBy(after(30))
	moot := fresh(token, 7200)
	moot.CompareBy(after(1000))
	require.Equal(t, after(300), moot.Compare, "one that comes before will do")
	for name, c := range map[string]struct {
		answer Grant
		want   time.Time
	}{
		"an answer from before does not put it off": {named("V1", 10, 7190), after(30)},
		"an answer from then on is it":              {named("V1", 30, 7170), time.Time{}},
		"another credential needs none":             {named("V2", 10, 7200), time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, ordered.Granted(uncompared, c.answer, 1).Compare)
		})
	}
	ordered.Reschedule(token, at(10), 1)
	require.Equal(t, after(30), ordered.Compare, "nor does another policy")
}

func TestATicketIsComparedEveryTenMinutesAndUsedForTwoHours(t *testing.T) {
	s := fresh(ticket, 7200)
	var comparisons []float64
	for range 3 {
		asked := s.Next(nil)
		comparisons = append(comparisons, asked.Sub(noon).Seconds())
		require.True(t, s.Servable(at(comparisons[len(comparisons)-1]), nil), "no reader waits for it")
		s = s.Granted(ticket, named("V1", asked.Sub(noon).Seconds(), 7200), 1)
	}
	require.Equal(t, []float64{600, 1200, 1800}, comparisons)
	require.Equal(t, noon, s.Rotated)

	// From now on the issuer fails.
	var f *Failure
	for now := 2400.0; now < 1800+7195; now++ {
		if next := s.Next(f); !next.After(after(now)) {
			f = failedAt(f, now)
		}
		require.True(t, s.Servable(at(now), f), "%v", now)
		require.True(t, s.Next(f).Before(after(now+61)), "the background goes on")
	}
	require.False(t, s.Usable(at(1800+7195.001)))
}

func TestWithoutOverlapTheSameCredentialIsAskedForAgainOnlyAtItsEnd(t *testing.T) {
	s := State{}.Granted(wecom, named("V1", 0, 7200), 1)
	var asked []float64
	for !s.Next(nil).After(after(7200)) {
		now := s.Next(nil).Sub(noon).Seconds()
		asked = append(asked, now)
		if now < 7200 {
			s = s.Granted(wecom, named("V1", now, 7200-now), 1)
		} else {
			s = s.Granted(wecom, named("V2", now, 7200), 1)
		}
	}
	require.Equal(t, []float64{7140, 7200}, asked)
	require.Equal(t, after(14340), s.Due)
}

func TestWithoutOverlapAConfirmationBeforeTheMarginTakesNothingFromIt(t *testing.T) {
	s := fresh(wecom, 7200)
	doubted := s
	doubted.Doubted = after(100)
	later := at(100)
	later.Era++
	for name, before := range map[string]State{"a doubt": doubted, "a clock that was set back": s.At(later)} {
		g := named("V1", 100, 7100)
		g.Asked.Era = later.Era
		require.Equal(t, after(7140), before.Granted(wecom, g, 1).Due, name)
	}
}

// A clock that was ahead by eight hours is set right.
func TestAClockThatWasSetBackMakesACredentialDueAtOnce(t *testing.T) {
	ahead := func(seconds float64) Moment { return Moment{Wall: after(seconds + 28800), Steady: after(seconds)} }
	right := func(seconds float64) Moment { return Moment{Wall: after(seconds), Steady: after(seconds), Era: 1} }
	noted := State{}.Granted(token, Grant{Value: "V1", Life: span(7200), Asked: ahead(0), Answered: ahead(0)}, 1)
	require.Equal(t, noted, noted.At(ahead(10)), "while it is ahead nothing is known of it")

	s := noted.At(right(20))
	require.Equal(t, s, s.At(right(30)), "an era begins once")
	require.True(t, s.Usable(right(20)), "it takes no good credential from its readers")
	require.False(t, s.Servable(right(20), nil))
	require.Equal(t, after(20), s.Next(nil))
	require.Equal(t, after(10), s.Answered, "a report is not answered from what was heard ahead")
	require.Equal(t, int64(10), s.TTL(right(20), 0))

	before := (*Failure)(nil).After(ahead(5).Wall, ahead(6), false, transient)
	failed := before.By(right(20))
	require.False(t, s.Waits(right(20), &failed), "what failed before delays nothing")
	require.False(t, s.Servable(right(20), &failed))
	require.Equal(t, after(20), s.Next(&failed))
	require.Equal(t, after(10), failed.At, "nor is a report answered from it")
	require.Equal(t, failed, failed.By(right(21)))
	require.Equal(t, before, before.By(ahead(7)))

	since := failed.After(after(20), right(21), true, transient)
	require.Equal(t, 2, since.Count)
	require.True(t, s.Waits(right(21.5), &since), "but what fails since does")
	require.True(t, s.Servable(right(21.5), &since))
	require.Equal(t, after(23), s.Next(&since))

	across := (*Failure)(nil).After(ahead(19).Wall, right(20), false, transient)
	require.Equal(t, after(20), across.Begun, "an attempt that the clock was set back during")

	end := right(7195)
	require.True(t, s.Usable(end), "the steady clock knows its end")
	require.False(t, s.Usable(right(7195.001)))

	got := s.Granted(token, Grant{Value: "V1", Life: span(7179), Asked: right(21), Answered: right(21)}, 1)
	require.Equal(t, after(7200), got.End)
	require.Equal(t, after(6910), got.Due)
	require.Equal(t, noted.Rotated, got.Rotated)
	require.Equal(t, noted.Shown, got.Shown, "what is told is constant")
	require.Equal(t, got, got.At(right(22)))

	require.Equal(t, State{era: 1}, State{}.At(right(0)), "there is nothing to ask about")
}

func TestAnAnswerThatTheClockWasSetBackDuringIsCheckedAgain(t *testing.T) {
	g := Grant{Value: "V1", Life: span(7200), Asked: at(28800), Answered: Moment{Wall: after(1), Steady: after(28801), Era: 1}}
	now := g.Answered
	for name, before := range map[string]State{"a first one": {}, "the same one": fresh(token, 7200).At(now)} {
		got := before.Granted(token, g, 1).At(now)
		require.Equal(t, now.Wall, got.Next(nil), name)
		require.True(t, got.Usable(now), name)
	}
	g.Asked = now
	got := fresh(token, 7200).Granted(token, g, 1)
	require.Equal(t, now.Wall, got.At(now).Next(nil), "times that stay are of the era in which they were noted")
	require.Equal(t, now.Era, fresh(token, 7200).Granted(token, Grant{Value: "V2", Life: span(7200), Asked: now, Answered: now}, 1).era)
}

func TestAnOrderedComparisonIsNoFurtherAwayOnceTheClockIsSetBack(t *testing.T) {
	s := fresh(uncompared, 7200)
	s.CompareBy(after(30))
	now := Moment{Wall: after(-3590), Steady: after(10), Era: 1}
	got := s.At(now).Granted(uncompared, Grant{Value: "V1", Life: span(7190), Asked: now, Answered: now}, 1)
	require.Equal(t, now.Wall.Add(30*time.Second), got.Compare)
	loaded := Loaded(fresh(uncompared, 7200).Credential, uncompared, at(0), 1)
	loaded.CompareBy(after(30))
	require.Equal(t, now.Wall.Add(time.Minute), loaded.At(now).Granted(uncompared, named("V1", -3590, 7200), 1).check)
}

func TestACredentialLivesNoLongerThanEitherClockAllows(t *testing.T) {
	s := fresh(token, 7200)
	for name, c := range map[string]struct {
		wall, steady float64
		want         float64
	}{
		"clocks that agree":          {100, 100, 7100},
		"a wall clock that is slow":  {96, 100, 7100},
		"a machine that slept":       {7000, 100, 200},
		"a wall clock set back":      {-28800, 7190, 10},
		"both beyond the end":        {7300, 7300, -100},
		"a wall clock set far ahead": {28900, 100, -21700},
	} {
		t.Run(name, func(t *testing.T) {
			now := Moment{Wall: after(c.wall), Steady: after(c.steady)}
			require.Equal(t, span(c.want), s.Left(now))
			require.Equal(t, c.want >= 5, s.Usable(now))
		})
	}
	loaded := Loaded(s.Credential, token, at(100), 0)
	require.Equal(t, span(10), loaded.Left(Moment{Wall: after(-20), Steady: after(7290)}), "loaded: the longest life from then on")
}

func TestNoTwoCredentialsHaveTheSameTimeHoweverOftenTheClockIsSetBack(t *testing.T) {
	seen := map[time.Time]bool{}
	s := State{}
	for n := range 1000 {
		// Back to the same millisecond, over and over, and on in between.
		s = s.Granted(token, named(fmt.Sprint("V", n), float64(n%3), 7200), 1)
		require.False(t, seen[s.Rotated], "%d: %v", n, s.Rotated)
		seen[s.Rotated] = true
		require.WithinDuration(t, after(float64(n%3)), s.Rotated, time.Millisecond)
	}
}

func TestACredentialRemembersTheLatestTimeOfThoseBefore(t *testing.T) {
	s := fresh(token, 7200)
	s = s.Granted(token, named("V2", -100, 7200), 1)
	require.Equal(t, noon, s.Latest)
	require.Equal(t, 1, s.SetBacks)
	s = s.Granted(token, named("V3", -50, 7200), 1)
	require.Equal(t, noon, s.Latest, "that of before the one before")
	require.Equal(t, after(-49.999998), s.Rotated)
	confirmed := s.Granted(token, named("V3", -40, 7190), 1)
	require.Equal(t, s.Credential, confirmed.Credential)
	s = confirmed.Granted(token, named("V4", 1, 7200), 1)
	require.True(t, s.Latest.IsZero(), "this one's is later")
	require.Equal(t, 2, s.SetBacks, "no count comes again")
	require.Equal(t, after(1), s.Rotated)
}

func TestStorageIsToldOfWhatMatters(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		before State
		answer Grant
		stored bool // already
	}{
		"a first one":                            {token, State{}, named("V1", 0, 7200), false},
		"the same one":                           {token, fresh(token, 7200), named("V1", 1000, 6200), true},
		"another one":                            {token, fresh(token, 7200), named("V2", 6910, 7200), false},
		"another one with the same end":          {token, fresh(token, 7200), named("V2", 1000, 6200), false},
		"an earlier end":                         {token, fresh(token, 7200), named("V1", 1000, 5000), false},
		"past its end by this machine's clock":   {token, fresh(token, 7200), named("V1", 7300, 300), false},
		"a ticket confirmed":                     {ticket, fresh(ticket, 7200), named("V1", 1799, 7200), true},
		"a ticket confirmed after half an hour":  {ticket, fresh(ticket, 7200), named("V1", 1800, 7200), false},
		"a ticket confirmed by a clock set back": {ticket, fresh(ticket, 7200), named("V1", -60, 7200), false},
		"without overlap, the same one":          {wecom, fresh(wecom, 7200), named("V1", 7140, 60), true},
		"without overlap, with a longer life":    {wecom, fresh(wecom, 7200), named("V1", 7140, 7200), false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.stored, c.before.Granted(c.policy, c.answer, 1).Stored(c.before.Credential))
		})
	}
}

func TestACredentialIsTheSameAfterItWasStored(t *testing.T) {
	odd := named("V1", 0.123456789, 7200)
	odd.Asked.Wall = odd.Asked.Wall.In(time.FixedZone("", 8*3600))
	for _, s := range []State{{}, State{}.Granted(token, odd, 1), fresh(token, 7200).Granted(token, named("V2", -1.5, 700), 1)} {
		raw, err := json.Marshal(s.Credential)
		require.NoError(t, err)
		var got Credential
		require.NoError(t, json.Unmarshal(raw, &got))
		require.True(t, got == s.Credential, "%s", raw)
		require.True(t, got.Stored(s.Credential))
	}
}
