package wechat

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// wallClock is the time without the monotonic reading: a token runs out by
// WeChat's clock also while this machine is suspended.
func wallClock() time.Time {
	steady := time.Now()
	wall := machineClock(steady)
	setBacks.notice(wall, steady)
	return wall
}

// machineClock is what the machine's clock shows at a moment of the steady clock. It is
// a variable only so that tests can set the clock.
var machineClock = func(steady time.Time) time.Time { return steady.Round(0) }

// setBacks knows how often the machine's clock was set back. A machine that resumes with
// its clock in local time is hours ahead until the clock is set right. What was noted in
// between lies ahead of all later readings: a failed attempt would block the next one
// for hours, and a token would outlive its end. So a state names the era in which it
// was noted, and one of another era is checked anew, see holder.current.
//
// The clock of the process has one history, whatever is mounted.
var setBacks eras

// eras counts the times that a clock was set back by more than clockTolerance.
type eras struct {
	now   atomic.Int64 // how often it was
	ahead atomic.Int64 // how far ahead of the steady clock it was at most in this era, in nanoseconds
	mu    sync.Mutex   // held while an era begins
}

// processStart is any moment of the steady clock, to compare others with.
var processStart = time.Now()

// notice compares a reading with the earlier ones. The steady clock stands still while
// the machine is suspended, which looks like a clock set forward: that is no new era.
func (e *eras) notice(wall, steady time.Time) {
	ahead := int64(wall.Sub(processStart.Round(0)) - steady.Sub(processStart))
	for {
		most := e.ahead.Load()
		switch {
		case ahead > most:
			if e.ahead.CompareAndSwap(most, ahead) {
				return
			}
		case most-ahead > int64(clockTolerance):
			e.begin(ahead)
		default:
			return
		}
	}
}

// begin begins an era. The count comes first: a reading that finds the new measure also
// finds the new era.
func (e *eras) begin(ahead int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ahead.Load()-ahead > int64(clockTolerance) {
		e.now.Add(1)
		e.ahead.Store(ahead)
	}
}

// moment is a reading of the clocks, all of one era.
func moment() kept.Moment {
	for {
		now := kept.Moment{Era: era(), Steady: time.Now(), Wall: wallClock()}
		if now.Era == era() {
			return now
		}
	}
}

// era is the present era of the machine's clock.
func era() int64 { return setBacks.now.Load() }

// timestamp is how a time is shown: RFC 3339 in UTC.
func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// orNull is how a time is shown that may have no value.
func orNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return timestamp(t)
}

// earliest returns the earlier of two times, of which one that is zero does not count.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// latest returns the later of two times.
func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// timestampUnit is the precision of what timestamp shows.
const timestampUnit = time.Second

// clockTolerance is how far the clock may be set back without an era beginning.
const clockTolerance = kept.Tolerance

const day = 24 * time.Hour
