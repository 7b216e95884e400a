package kept

import "time"

// Failure is what is remembered of the attempts that failed since the last one that did
// not. What went wrong, the caller knows.
type Failure struct {
	Begun time.Time // the attempt
	At    time.Time // its end
	Next  time.Time // no attempt before this
	Count int       // failures in a row
	Run   int       // of them, the latest that call for the same backoff

	// Derived says that there was nothing to ask with: the credential that this one is
	// derived from failed, and has a backoff of its own.
	Derived bool

	era int64
}

// After is the failure that follows f, which may be nil: an attempt that was begun at the
// given time and ended now. same says that it calls for the same backoff as f, and wait is
// how long after so many in a row.
func (f *Failure) After(begun time.Time, now Moment, same bool, wait func(run int) time.Duration) Failure {
	begun = earlier(begun, now.Wall) // the clock may have been set back meanwhile
	next := Failure{Begun: begun, At: now.Wall, Count: 1, Run: 1, era: now.Era}
	if f != nil {
		next.Count = f.Count + 1
		if same {
			next.Run = f.Run + 1
		}
	}
	next.Next = now.Wall.Add(wait(next.Run))
	return next
}

// InEra reports whether the clock was not set back since the failure was noted: then By is the
// failure itself.
func (f *Failure) InEra(now Moment) bool { return f.era == now.Era }

// By is the failure by the clock of now: one that was noted in another era delays nothing.
func (f Failure) By(now Moment) Failure {
	if f.InEra(now) {
		return f
	}
	longAgo := now.Wall.Add(-RetryTTL)
	f.era, f.Next = now.Era, now.Wall
	f.At, f.Begun = earlier(f.At, longAgo), earlier(f.Begun, longAgo)
	return f
}
