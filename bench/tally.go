//go:build unix

package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// tally sums up the slices of one cell.
type tally struct {
	latencies []time.Duration // of every request, in no order
	elapsed   time.Duration
	cpu       cpuTime
}

// rate is in requests per second.
func (t *tally) rate() float64 { return float64(len(t.latencies)) / t.elapsed.Seconds() }

// quantile returns the latency, in milliseconds, that the given part of the
// requests did not exceed.
func (t *tally) quantile(part float64) float64 {
	if len(t.latencies) == 0 {
		return math.NaN()
	}
	slices.Sort(t.latencies)
	rank := int(math.Ceil(part * float64(len(t.latencies))))
	return float64(t.latencies[max(rank, 1)-1]) / float64(time.Millisecond)
}

func (t *tally) p50() float64 { return t.quantile(0.5) }
func (t *tally) p99() float64 { return t.quantile(0.99) }

// perRequest is processor time per request, in microseconds.
func (t *tally) perRequest(used time.Duration) float64 {
	return float64(used) / float64(len(t.latencies)) / float64(time.Microsecond)
}

// spread is a figure of every run.
type spread []float64

func (s spread) median() float64 { return (s[(len(s)-1)/2] + s[len(s)/2]) / 2 }

// show writes the median and the range of the runs, or a dash where a run has no
// figure: on a machine that was far too busy a slice may end without an answer.
func (s spread) show(decimals int) string {
	if slices.ContainsFunc(s, func(figure float64) bool { return math.IsNaN(figure) || math.IsInf(figure, 0) }) {
		return "–"
	}
	text := fmt.Sprintf("%.*f", decimals, s.median())
	if len(s) > 1 {
		text += fmt.Sprintf(" (%.*f–%.*f)", decimals, s[0], decimals, s[len(s)-1])
	}
	return text
}

// gaps tells whether a measurement of some run ended without an answer.
func (f *figures) gaps() bool {
	for _, run := range f.runs {
		for _, t := range run {
			if len(t.latencies) == 0 {
				return true
			}
		}
	}
	return false
}

// of evaluates a figure of a cell for every run.
func (f *figures) of(c cell, figure func(*tally) float64) spread {
	return f.both(c, c.subject, func(t, _ *tally) float64 { return figure(t) })
}

// both evaluates a figure of a cell and of another subject's, within the same run.
func (f *figures) both(c cell, other int, figure func(t, u *tally) float64) spread {
	to := c
	to.subject = other
	var s spread
	for _, run := range f.runs {
		s = append(s, figure(run[c], run[to]))
	}
	slices.Sort(s)
	return s
}

// ratio is that of a cell's requests per second to another subject's.
func (f *figures) ratio(c cell, to int) spread {
	return f.both(c, to, func(t, u *tally) float64 { return t.rate() / u.rate() })
}

// added is by how much the median of a cell is above another subject's, in
// milliseconds.
func (f *figures) added(c cell, to int) spread {
	return f.both(c, to, func(t, u *tally) float64 { return t.p50() - u.p50() })
}
