package wechat

import (
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
)

// failure is what is remembered of the attempts that failed since the last one that did
// not: what went wrong, and when the next may be made.
type failure struct {
	*problem
	kept.Failure
}

// after is the failure that follows f, which may be nil: an attempt that ended in p.
func (f *failure) after(p *problem, begun, now kept.Moment) *failure {
	same := f != nil && f.Backoff == p.Backoff
	return &failure{p, f.kept().After(begun.Wall, now, same, func(run int) time.Duration { return p.Backoff.After(run, randomFraction()) })}
}

// by is the failure by the clock of now. f may be nil.
func (f *failure) by(now kept.Moment) *failure {
	if f == nil || f.InEra(now) {
		return f
	}
	return &failure{f.problem, f.By(now)}
}

// kept is the failure as the rules of time see it.
func (f *failure) kept() *kept.Failure {
	if f == nil {
		return nil
	}
	return &f.Failure
}

// nextTime is when the failure lets the next attempt be made, zero for none.
func (f *failure) nextTime() time.Time {
	if f == nil {
		return time.Time{}
	}
	return f.Next
}
