package wechat

import "time"

// wallClock is the time without the monotonic reading: a token runs out by
// WeChat's clock also while this machine is suspended. It is a variable only so
// that tests can set the clock.
var wallClock = func() time.Time { return time.Now().Round(0) }

// clockReading is a time by the machine's clock, which may be set, and by one
// that nobody can set.
type clockReading struct{ wall, steady time.Time }

func readClock() clockReading { return clockReading{wallClock(), time.Now()} }

// timestamp is how a time is shown: RFC 3339 in UTC.
func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// orNull is how a time is shown that may have no value.
func orNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return timestamp(t)
}

// timestampUnit is the precision of what timestamp shows.
const timestampUnit = time.Second

// clockTolerance is how far the clock may be set back without anything having to be
// done: the margins bear that much.
const clockTolerance = 5 * time.Second
