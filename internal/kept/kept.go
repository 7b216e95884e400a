// Package kept decides when a credential is handed out, replaced, compared and given up.
//
// A credential is what an issuer grants for a while: an access token, a ticket. Its holder
// asks the issuer again before it ends, and goes on handing out the old one while the
// issuer fails. State knows how it stands and Failure what went wrong; both are values, and
// each event makes a new one. A Policy says how the credentials of an issuer live.
//
// Nothing here has a clock, a lock or a way to the outside: callers hand in the moment and
// the random fractions, and a table can test every rule.
//
// In the order of a credential's life:
//
//	Loaded    it was read from storage
//	Granted   the issuer named it, for the first time or again
//	Usable    may it be handed out?
//	Servable  may it be handed out without asking the issuer first?
//	TTL       when its reader should come again
//	Next      when the background is to ask
//	At        the clock was set back: it is due at once
package kept

import (
	"time"
)

const (
	// MinTTL is the least ttl that a reader is told. A credential with less left counts
	// as ended.
	MinTTL = 5 * time.Second

	// RetryTTL is the ttl of a credential that is due and could not be replaced.
	RetryTTL = 10 * time.Second

	// backgroundLag is how late the background may be with an attempt before readers ask
	// the issuer themselves, and readerMargin the life that has to be left by then: each
	// of them is to have two minutes of it.
	backgroundLag = RetryTTL
	readerMargin  = 2*time.Minute + 2*RetryTTL

	// quickRetries is how many times a failure is tried again by its backoff while
	// nothing is due. After that SlowRetry, or the next comparison, is early enough.
	quickRetries = 5

	// SlowRetry is the least time between the attempts that follow those.
	SlowRetry = 5 * time.Minute

	// StoreEvery is how far the stored time of a confirmation may lag behind. A restart
	// then asks earlier than it had to, and gives a credential up earlier.
	StoreEvery = 30 * time.Minute

	// firstCompare is how soon a loaded credential is compared at the latest.
	firstCompare = time.Minute

	// Tolerance is how far the wall clock may be set back without anything having to be
	// done: the margins bear that much.
	Tolerance = 5 * time.Second
)

// Policy is how the credentials of one issuer live.
type Policy struct {
	// Life is the longest life that is believed; a longer one counts as this.
	Life time.Duration

	// Margin is the life that is left when a credential is due to be replaced.
	Margin time.Duration

	// Overlap is the last part of a life in which the issuer grants another credential
	// and the old one works on. 0: it grants the same one until that has ended.
	Overlap time.Duration

	// Compare is how often a credential is compared with the issuer's while it is not
	// due. 0: never.
	Compare time.Duration

	// Apart is the least time from an answer to the next call while nothing is wrong.
	Apart time.Duration

	// Idle is how long after its last use a credential is left alone. 0: never.
	Idle time.Duration

	// Prolonged says that an answer with the same credential may give it a longer life.
	Prolonged bool
}

// Period is the usual time from one credential to the next.
func (p Policy) Period() time.Duration { return p.Life - p.Margin }

// Due returns when to replace a credential that had this life left when it was asked for.
// A short life does not make each read a call.
func (p Policy) Due(asked, answered time.Time, life time.Duration) time.Time {
	if p.Overlap == 0 && life <= p.Margin {
		return asked.Add(life) // to ask again before it has ended brings nothing else
	}
	least := min(p.Apart, life/2)
	return later(asked.Add(max(life-p.Margin, least)), answered.Add(least))
}

// Moment is a reading of the clocks.
type Moment struct {
	Wall   time.Time // without a monotonic reading; it can be set
	Steady time.Time // with one; it stands still while the machine sleeps
	Era    int64     // grows when the wall clock is set back
}

// Grant is an issuer's answer.
type Grant struct {
	Value    string
	Life     time.Duration // that was left at Asked, at least
	Asked    Moment        // when the request was sent
	Answered Moment        // when the answer was read
}

// End is the earliest second at which the credential can end by this answer.
func (g Grant) End() time.Time { return g.Asked.Wall.Add(g.Life).UTC().Truncate(time.Second) }

// Credential is a credential as it is stored. The zero value is none.
type Credential struct {
	Value string `json:"value,omitempty"`

	// Rotated is when the credential was asked for first. No two credentials of a holder
	// have the same, see distinguish. Latest is the latest Rotated of those before it
	// where this one's is not later, and SetBacks counts those whose was not.
	Rotated  time.Time `json:"last_vault_rotation,omitzero"`
	Latest   time.Time `json:"latest_rotation,omitzero"`
	SetBacks int       `json:"set_backs,omitempty"`

	// Shown is the end as it was told first, and constant for one credential. End is the
	// end as it is known, never later. Timed is when the issuer was asked for Shown.
	Shown time.Time `json:"expire_time,omitzero"`
	End   time.Time `json:"end_time,omitzero"`
	Timed time.Time `json:"timed_at,omitzero"`
}

// liesAhead reports whether its times can only have been noted by a clock that was ahead.
func (c Credential) liesAhead(now time.Time, life time.Duration) bool {
	return c.Rotated.Sub(now) > Tolerance || c.Timed.Sub(now) > Tolerance || c.End.Sub(now) > life+Tolerance
}

// Stored reports whether storage, which holds old, need not be told of c: it is the same,
// or differs by a confirmation that came less than StoreEvery later.
func (c Credential) Stored(old Credential) bool {
	if c.Timed.Sub(old.Timed).Abs() < StoreEvery && !c.End.Before(old.End) && c.Shown.Equal(c.End) {
		c.Shown, c.End, c.Timed = old.Shown, old.End, old.Timed
	}
	return c == old
}

// State is what is known of a credential. The zero value is of one that was never granted.
type State struct {
	Credential

	Due      time.Time // when it is to be replaced
	Compare  time.Time // when it is to be compared with the issuer's; zero is never
	check    time.Time // a comparison that no answer from before it puts off; zero if none
	Doubted  time.Time // since when it may be dead; zero if it is not in doubt
	Answered time.Time // the issuer's last answer; zero if there was none since the start

	steady time.Time // the end by the steady clock
	era    int64     // of the wall clock that these times were read from
}

// Loaded is the state of a credential that was read from storage. The first comparison
// comes within a minute, since what was noticed before a restart may not be in storage; a
// jitter from 0 to 1 spreads those that were loaded together.
func Loaded(c Credential, p Policy, now Moment, jitter float64) State {
	if c.Value == "" {
		return State{Credential: c, era: now.Era}
	}
	s := State{Credential: c, era: now.Era, steady: now.Steady.Add(p.Life)}
	s.Due = p.Due(c.Timed, c.Timed, c.Shown.Sub(c.Timed))
	if c.End.Before(c.Shown) {
		s.Due = s.Due.Add(c.End.Sub(c.Shown))
	}
	s.Compare = comparison(now.Wall, min(p.Compare, firstCompare), jitter)
	if c.liesAhead(now.Wall, p.Life) {
		// The clock was set back since. When the credential really ends the issuer has to
		// tell.
		s.Due, s.steady = now.Wall, now.Steady
	}
	return s
}

// InEra reports whether the clock was not set back since the state was noted: then At is the
// state itself.
func (s *State) InEra(now Moment) bool { return s.era == now.Era }

// At is the state by the clock of now: one of another era is due at once. The caller keeps
// it before it asks the issuer. With the state of before, each later At would be due anew,
// and an attempt that failed in between would delay none.
func (s State) At(now Moment) State {
	if s.InEra(now) {
		return s
	}
	s.era = now.Era
	if !s.check.IsZero() { // as far off as it was when it was set
		s.check = now.Wall.Add(min(s.check.Sub(s.Answered), firstCompare))
	}
	s.Answered = earlier(s.Answered, now.Wall.Add(-RetryTTL))
	if s.Value != "" {
		s.Due = now.Wall
	}
	return s
}

// Left returns what is left of its life by the clock that says less: the wall clock may
// have been set back, and the steady one stands still while the machine sleeps.
func (s State) Left(now Moment) time.Duration {
	return min(s.End.Sub(now.Wall), s.steady.Sub(now.Steady))
}

// Usable reports whether the credential may be handed out.
func (s State) Usable(now Moment) bool {
	return s.Value != "" && s.Doubted.IsZero() && s.Left(now) >= MinTTL
}

// DueTime returns when the credential is, or was, to be replaced or confirmed.
func (s State) DueTime() time.Time {
	if !s.Doubted.IsZero() {
		return earlier(s.Doubted, s.Due)
	}
	return s.Due
}

// Waits reports whether it is too early for another attempt after f, which may be nil. A
// failure of before the credential was due does not delay the first attempt at the due one.
func (s State) Waits(now Moment, f *Failure) bool {
	if f == nil || f.Derived || !now.Wall.Before(f.Next) {
		return false
	}
	due := s.DueTime()
	return s.Value == "" || now.Wall.Before(due) || !f.Begun.Before(due)
}

// Servable reports whether a reader gets the credential as it is: it is not due, or could
// not be replaced since, and the background goes on trying in time.
func (s State) Servable(now Moment, f *Failure) bool {
	switch {
	case !s.Usable(now):
		return false
	case now.Wall.Before(s.Due), s.Waits(now, f):
		return true
	case f == nil || f.Begun.Before(s.Due):
		return false
	}
	return now.Wall.Sub(f.Next) < backgroundLag || s.Left(now) > readerMargin
}

// TTL returns after how many seconds a reader should come again. It is rounded up, so that
// none comes just before the credential is due. limit caps it; 0 is no limit.
func (s State) TTL(now Moment, limit time.Duration) int64 {
	ttl := RetryTTL
	if now.Wall.Before(s.Due) {
		ttl = s.Due.Sub(now.Wall)
	}
	if limit > 0 {
		ttl = min(ttl, limit)
	}
	seconds := int64((max(ttl, MinTTL) + time.Second - 1) / time.Second)
	return min(seconds, int64(s.Left(now)/time.Second))
}

// Next returns when the issuer is to be asked after f, which may be nil; zero is never, as
// of a credential that no reader has asked for yet.
func (s State) Next(f *Failure) time.Time {
	if s.Value == "" {
		if f == nil {
			return time.Time{}
		}
		return f.Next
	}
	due := s.DueTime()
	if f != nil && !f.Begun.Before(due) {
		return f.Next
	}
	at := due
	if !s.Compare.IsZero() {
		at = earlier(due, s.Compare)
	}
	if f == nil {
		return at
	}
	retry := f.Next
	if f.Run > quickRetries {
		retry = later(retry, f.At.Add(SlowRetry))
	}
	if at.Before(f.Next) || retry.Before(at) {
		at = retry
	}
	return earlier(due, at)
}

// Granted is the state after an answer. A jitter from 0 to 1 shortens the time until the
// next comparison by up to a tenth, so that credentials drift apart.
func (s State) Granted(p Policy, g Grant, jitter float64) State {
	next := State{Answered: g.Answered.Wall, era: g.Asked.Era, steady: g.Asked.Steady.Add(g.Life)}
	if s.Value == g.Value {
		next.Credential = s.confirmed(p, g)
	} else {
		next.Credential = s.replaced(g)
	}
	next.Due = earlier(p.Due(g.Asked.Wall, g.Answered.Wall, g.Life), next.End)
	if s.Value == g.Value {
		next.era = min(next.era, s.era) // of its times, of which some stay
		if next.End.Equal(s.End) && g.Asked.Wall.Before(s.DueTime()) {
			next.Due = s.Due
		}
		if g.Asked.Wall.Before(s.check) {
			next.check = s.check
		}
	}
	next.Reschedule(p, g.Answered, jitter)
	return next
}

// replaced is the credential of an answer that brought another one.
func (s State) replaced(g Grant) Credential {
	c := Credential{Value: g.Value, Shown: g.End(), End: g.End(), Timed: g.Asked.Wall.UTC().Truncate(time.Millisecond)}
	c.Rotated, c.Latest, c.SetBacks = distinguish(c.Timed, s.Credential)
	return c
}

// confirmed is the credential of an answer that brought it again. Its times stay, but for
// an end that this machine's clock has passed and the issuer's has not, and for one that
// the issuer now names earlier, or prolongs.
func (s State) confirmed(p Policy, g Grant) Credential {
	c := s.Credential
	end := g.End()
	// The answer tells the end to within the time it took and a second: what differs by
	// less is the same end.
	latest := g.Answered.Wall.Add(g.Life + time.Second)
	switch {
	case c.Shown.Sub(g.Answered.Wall) < MinTTL, p.Prolonged && end.After(c.End.Add(time.Second)):
		c.Shown, c.End, c.Timed = end, end, g.Asked.Wall.UTC().Truncate(time.Millisecond)
	case latest.Before(c.End), end.After(c.End):
		c.End = earlier(end, c.Shown)
	}
	return c
}

// distinguish returns Rotated, Latest and SetBacks of what was asked for at the given time
// and replaces old. A time that is not later than those of all before, because the clock
// was set back or two follow in one millisecond, is told apart by its microseconds: a
// thousand such credentials bring another one with the same time only if they meet in the
// same millisecond as well.
func distinguish(asked time.Time, old Credential) (rotated, latest time.Time, setBacks int) {
	latest = later(old.Rotated, old.Latest)
	if asked.After(latest) {
		return asked, time.Time{}, old.SetBacks
	}
	setBacks = old.SetBacks + 1
	return asked.Add(time.Duration(setBacks%1000) * time.Microsecond), latest, setBacks
}

// Reschedule sets the next comparison, a part of the policy's interval from now.
func (s *State) Reschedule(p Policy, now Moment, jitter float64) {
	s.Compare = comparison(now.Wall, p.Compare, 0.9+0.1*jitter)
	if !s.check.IsZero() {
		s.CompareBy(s.check)
	}
}

// CompareBy sets the next comparison to the given time at the latest. An answer that was
// asked for before that time does not put it off, unless it brings another credential.
func (s *State) CompareBy(at time.Time) {
	s.check = at
	if s.Compare.IsZero() || at.Before(s.Compare) {
		s.Compare = at
	}
}

func comparison(now time.Time, interval time.Duration, part float64) time.Time {
	if interval <= 0 {
		return time.Time{}
	}
	return now.Add(time.Duration(float64(interval) * part))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
