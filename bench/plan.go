//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

const (
	// wechatTakes is how long the simulator holds back its answer to a login, and
	// slowly how long when as many logins as there may be are to be in flight.
	wechatTakes = 20 * time.Millisecond
	slowly      = 500 * time.Millisecond

	// loginSlices is how many slices the measurement of a login takes: one connection
	// makes fifty logins a second, and a quantile wants some. crowdLasts is how long
	// that of a crowd takes, once a run: a multiple of slowly.
	loginSlices = 3
	crowdLasts  = 4 * slowly
)

// options is how much to measure, and where to keep the result.
type options struct {
	runs, rounds int
	slice        time.Duration
	documents    []*document
	before       bool // there is another build to compare with
}

// planned is the time that the measurements alone take.
func (o options) planned() time.Duration {
	answered, logins := measured(o.before)
	round := time.Duration(len(audits)*len(connections)*len(answered)) * (settling + o.slice)
	round += time.Duration(len(connections)*len(logins)) * (settling + wechatTakes + loginSlices*o.slice)
	once := time.Duration(len(logins)) * (settling + slowly + crowdLasts)
	return time.Duration(o.runs) * (time.Duration(o.rounds)*round + once)
}

// results are those of one run.
type results map[cell]*tally

// figures are what the reports are made of.
type figures struct {
	runs     []results
	inFlight int  // the most logins through Vault that ever were at the simulator
	before   bool // another build was measured, too
}

// measure takes all measurements, and tells progress how far it is.
func measure(ctx context.Context, v *vault, o options, progress io.Writer) (*figures, error) {
	load, err := newLoad(ctx, v)
	if err != nil {
		return nil, err
	}
	defer load.close()
	f := &figures{before: o.before}
	for r := range o.runs {
		run := results{}
		for range o.rounds {
			if err := load.round(ctx, run, o); err != nil {
				return nil, err
			}
		}
		if err := load.crowd(ctx, run); err != nil {
			return nil, err
		}
		f.runs = append(f.runs, run)
		fmt.Fprintf(progress, "Run %d of %d is done.\n", r+1, o.runs)
	}
	f.inFlight = v.platform.inFlight()
	return f, nil
}

// round takes a slice of each measurement.
func (l *load) round(ctx context.Context, run results, o options) error {
	answered, logins := measured(o.before)
	for _, audit := range audits {
		if err := l.vault.setAudit(ctx, audit); err != nil {
			return err
		}
		for _, n := range connections {
			if err := l.turns(ctx, run, answered, cell{audit: audit, connections: n}, o.slice, 0); err != nil {
				return err
			}
			if audit {
				continue // what it costs is seen without WeChat
			}
			if err := l.turns(ctx, run, logins, cell{connections: n}, loginSlices*o.slice, wechatTakes); err != nil {
				return err
			}
		}
	}
	return nil
}

// crowd measures as many logins at a time as an account has in flight.
func (l *load) crowd(ctx context.Context, run results) error {
	if err := l.vault.setAudit(ctx, false); err != nil {
		return err
	}
	_, logins := measured(false)
	return l.turns(ctx, run, logins, cell{connections: crowd}, crowdLasts, slowly)
}

// turns measures some subjects one after the other, in an order drawn anew.
func (l *load) turns(ctx context.Context, run results, these []int, c cell, length, wechat time.Duration) error {
	l.vault.platform.take(wechat)
	for _, i := range rand.Perm(len(these)) { //nolint:gosec // need not be hard to guess
		c.subject = these[i]
		if run[c] == nil {
			run[c] = &tally{}
		}
		if err := l.slice(ctx, run[c], c, length, wechat); err != nil {
			return fmt.Errorf("%s: %w", subjects[c.subject].name[english], err)
		}
	}
	return nil
}
