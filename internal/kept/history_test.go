package kept

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// FuzzHistory plays any history of a credential under any policy: answers, failures,
// doubts, restarts, clocks that are set and machines that sleep. After each event the rules
// hold.
func FuzzHistory(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(randomBytes(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) { newHistory(t, data).play() })
}

func TestTheRulesHoldInAnyHistory(t *testing.T) {
	const cases = 500
	var grants, failures, eras, restarts int
	for range cases {
		seed := rand.Uint64()
		h := newHistory(t, randomBytes(seed))
		h.seed = seed
		h.play()
		grants, failures, eras, restarts = grants+h.grants, failures+h.failures, eras+int(h.era), restarts+h.restarts
	}
	for _, n := range []int{grants, failures, eras, restarts} {
		require.Greater(t, n, cases, "too few for the test to tell anything")
	}
}

func randomBytes(seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	data := make([]byte, 200+rng.IntN(200))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data
}

// history is a credential, its clocks and what is known of it from outside.
type history struct {
	t    *testing.T
	seed uint64 // of randomBytes; 0 for others
	data []byte // of which each choice takes a byte

	policy Policy
	s      State
	f      *Failure
	stored Credential

	wall, steady time.Duration // of the clocks since noon
	ahead        time.Duration // of the wall clock before the steady one, at most in this era
	era          int64

	rechecked time.Time            // when the clock was last found to have been set back
	rotated   map[time.Time]string // whose each Rotated was
	values    int

	grants, failures, restarts int
}

func newHistory(t *testing.T, data []byte) *history {
	h := &history{t: t, data: data, rotated: map[time.Time]string{}}
	if h.policy = one(h, token, uncompared, ticket, wecom, Policy{}); h.policy.Life == 0 {
		h.policy = Policy{
			Life:      one(h, 7200*time.Second, 600*time.Second, 20*time.Second),
			Margin:    one(h, 0, 10*time.Second, 290*time.Second, time.Hour, 3*time.Hour),
			Overlap:   one(h, 0, 300*time.Second),
			Compare:   one(h, 0, time.Second, time.Minute, time.Hour),
			Apart:     one(h, 0, 10*time.Second),
			Prolonged: one(h, false, true),
		}
	}
	return h
}

// next is the next byte, 0 at the end.
func (h *history) next() int {
	if len(h.data) == 0 {
		return 0
	}
	b := h.data[0]
	h.data = h.data[1:]
	return int(b)
}

func one[T any](h *history, of ...T) T { return of[h.next()%len(of)] }

// some is a duration of up to most.
func (h *history) some(most time.Duration) time.Duration {
	return most * time.Duration(h.next()<<8|h.next()) / (1<<16 - 1)
}

func (h *history) jitter() float64 { return float64(h.next()) / 255 }

func (h *history) now() Moment {
	return Moment{Wall: noon.Add(h.wall), Steady: noon.Add(h.steady), Era: h.era}
}

// pass lets time pass by both clocks.
func (h *history) pass(d time.Duration) { h.wall, h.steady = h.wall+d, h.steady+d }

// set moves the wall clock alone.
func (h *history) set(by time.Duration) {
	h.wall += by
	switch ahead := h.wall - h.steady; {
	case ahead > h.ahead:
		h.ahead = ahead
	case h.ahead-ahead > Tolerance:
		h.era, h.ahead = h.era+1, ahead
	}
}

func (h *history) play() {
	for len(h.data) > 0 {
		switch h.next() % 16 {
		case 0, 1, 2:
			h.pass(one(h, h.some(10*time.Second), h.some(10*time.Minute), h.some(3*time.Hour)))
		case 3:
			h.pass(max(0, h.s.Next(h.f).Sub(h.now().Wall)) % (24 * time.Hour)) // until the background asks
		case 4:
			h.set(h.some(time.Hour)) // asleep, or set forward
		case 5:
			h.set(h.some(8*time.Second) - 4*time.Second)
		case 6:
			h.set(-h.some(8 * time.Hour))
		case 7:
			h.restart()
		case 8:
			if h.s.Value != "" {
				h.s.Doubted = h.now().Wall
			}
		case 9:
			h.s.CompareBy(h.now().Wall.Add(30 * time.Second))
		case 10, 11:
			h.check()
			h.fail(h.now())
		default:
			h.check()
			h.ask()
		}
		h.check()
	}
}

func (h *history) restart() {
	raw, err := json.Marshal(h.stored)
	require.NoError(h.t, err)
	var c Credential
	require.NoError(h.t, json.Unmarshal(raw, &c))
	h.s, h.f = Loaded(c, h.policy, h.now(), h.jitter()), nil
	h.that(c == h.stored, "what was stored is another credential: %s", raw)
	h.that(c.Value == "" || !h.s.Due.After(h.s.End) || h.s.Due.Equal(h.now().Wall), "a loaded one is due after its end")
	h.that(h.policy.Compare == 0 || c.Value == "" || !h.s.Compare.After(h.now().Wall.Add(time.Minute)), "a loaded one is not compared within a minute")
	if c.liesAhead(h.now().Wall, h.policy.Life) {
		h.rechecked = h.now().Wall
		h.that(!h.s.Usable(h.now()) && !h.s.Next(nil).After(h.now().Wall), "what lies ahead is used")
	}
	h.restarts++
}

// fail ends an attempt that was begun at the given moment.
func (h *history) fail(begun Moment) {
	h.pass(h.some(30 * time.Second))
	now := h.now()
	if by := h.f; by != nil {
		f := by.By(now)
		h.f = &f
	}
	s := h.s.At(now)
	f := h.f.After(begun.Wall, now, one(h, false, true), transient)
	f.Derived = one(h, false, false, false, true)
	h.that(!s.Next(&f).Before(f.Begun), "the background asks before the attempt that failed")
	h.that(f.Derived || s.Waits(now, &f) || f.Begun.Before(s.DueTime()), "an attempt since it was due failed, and the next does not wait")
	h.f = &f
	h.failures++
}

// ask makes a call of the issuer that succeeds, unless what it brings has almost ended.
func (h *history) ask() {
	begun := h.now()
	g := Grant{Value: h.s.Value, Life: one(h, h.some(h.policy.Life), h.policy.Life, h.policy.Margin/2, max(0, h.s.Left(begun))), Asked: begun}
	g.Life = min(g.Life, h.policy.Life).Truncate(time.Second)
	if g.Value == "" || one(h, false, true) {
		h.values++
		g.Value = fmt.Sprint("V", h.values)
	}
	h.pass(one(h, 0, h.some(30*time.Second)))
	if one(h, 0, 0, 0, 0, 1) == 1 {
		h.set(h.some(10*time.Hour) - 8*time.Hour)
	}
	g.Answered = h.now()
	if g.Life == 0 || g.End().Sub(g.Answered.Wall) < MinTTL { // as the client refuses it
		h.fail(begun)
		return
	}
	before := h.s.At(g.Answered)
	h.s, h.f = before.Granted(h.policy, g, h.jitter()), nil
	h.granted(before, g)
	if !h.s.Stored(h.stored) {
		h.stored = h.s.Credential
	}
	h.grants++
}

// granted checks the state after an answer, in itself and against that of before.
func (h *history) granted(before State, g Grant) {
	s := h.s
	took := g.Answered.Steady.Sub(g.Asked.Steady)
	h.that(s.Usable(g.Answered) || g.Life-took < MinTTL, "what was granted is not usable")
	h.that(s.Left(g.Answered) <= g.Life, "it outlives what the issuer said")
	h.that(!s.Due.After(s.End), "it is due after its end")
	h.that(!s.End.After(s.Shown), "it ends after what is shown")
	if g.Asked.Era == g.Answered.Era && h.policy.Compare > 0 {
		h.that(!s.Compare.After(g.Answered.Wall.Add(h.policy.Compare)), "it is compared too late")
	}
	if g.Value != before.Value {
		owner, taken := h.rotated[s.Rotated]
		h.that(!taken, "%s has the time of %s", g.Value, owner)
		h.rotated[s.Rotated] = g.Value
		return
	}
	h.that(s.Rotated.Equal(before.Rotated) && s.Latest.Equal(before.Latest) && s.SetBacks == before.SetBacks, "the same one has another time")
	passed := before.Shown.Sub(g.Answered.Wall) < MinTTL
	h.that(s.Shown.Equal(before.Shown) || passed || h.policy.Prolonged && s.End.After(before.End.Add(time.Second)), "the same one is shown to end at another time")
	if g.Asked.Wall.Before(before.check) {
		h.that(!s.Compare.IsZero() && !s.Compare.After(before.check), "an ordered comparison was put off")
	}
}

// check finds out how things stand and checks the rules that hold at any time.
func (h *history) check() {
	now := h.now()
	if s := h.s.At(now); s != h.s {
		h.s, h.rechecked = s, now.Wall
		h.that(s.Value == "" || !s.Servable(now, nil), "it is served by a clock that was wrong")
	}
	if h.f != nil {
		noted := *h.f
		by := noted.By(now)
		h.that(by == noted || !h.s.Waits(now, &by), "what failed by a clock that was wrong delays an attempt")
		h.f = &by
	}
	h.reader(now)
	h.background(now)
}

// reader checks what a reader gets.
func (h *history) reader(now Moment) {
	s, f := h.s, h.f
	h.that(s.At(now) == s, "the state was checked already")
	for _, f := range []*Failure{f, nil} {
		h.that(!s.Servable(now, f) || s.Usable(now), "it is served and not usable")
		h.that(!s.Usable(now) || !now.Wall.Before(s.Due) || s.Servable(now, f), "it is not due and not served")
		if f == nil || f.Begun.Before(s.DueTime()) && s.Value != "" {
			h.that(now.Wall.Before(s.DueTime()) || !s.Waits(now, f), "a failure of before it was due delays it")
			h.that(now.Wall.Before(s.DueTime()) || !s.Servable(now, f), "it is due and served though it was not tried to be replaced")
		}
	}
	if !s.Usable(now) {
		return
	}
	left := min(s.End.Sub(now.Wall), s.Left(now))
	h.that(s.Value != "" && s.Doubted.IsZero() && left >= MinTTL, "it is usable")
	for _, limit := range []time.Duration{0, 10 * time.Second, 4 * time.Minute} {
		ttl := time.Duration(s.TTL(now, limit)) * time.Second
		h.that(ttl >= MinTTL && ttl <= left && (limit == 0 || ttl <= limit), "a ttl of %s, limited to %s", ttl, limit)
		h.that(!s.Servable(now, f) || ttl < max(s.Due.Sub(now.Wall), RetryTTL)+time.Second, "a ttl of %s beyond the time when it is due", ttl)
	}
}

// background checks when the background asks.
func (h *history) background(now Moment) {
	s, f := h.s, h.f
	next, due := s.Next(f), s.DueTime()
	if s.Value == "" {
		h.that(next.IsZero() == (f == nil), "none is asked for by itself")
		return
	}
	h.that(!s.Due.After(later(s.End, h.rechecked)) || s.Due.Equal(h.rechecked), "it is due after its end")
	h.that(!s.Next(nil).After(due) && !s.Next(nil).IsZero(), "the background is late for it")
	if f == nil {
		return
	}
	h.that(!next.Before(f.Begun), "the background asks before the attempt that failed")
	if f.Begun.Before(due) {
		h.that(!next.After(due), "a failure of before it was due delays it")
	} else {
		h.that(next.Equal(f.Next), "a failure since it was due holds for its backoff")
	}
	h.that(!s.Waits(now, f) || now.Wall.Before(f.Next), "it waits for longer than the backoff")
}

func (h *history) that(ok bool, format string, args ...any) {
	if !ok {
		h.t.Helper()
		h.t.Fatalf(format+"\n  seed %#x\n  now %v\n  state %+v\n  failure %+v\n  policy %+v", append(args, h.seed, h.now(), h.s, h.f, h.policy)...)
	}
}
