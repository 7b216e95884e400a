//go:build unix

package main

import (
	"debug/buildinfo"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
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

// perRequest is processor time per request, in microseconds.
func (t *tally) perRequest(used time.Duration) float64 {
	return float64(used) / float64(len(t.latencies)) / float64(time.Microsecond)
}

// spread is a figure of every run.
type spread []float64

// of evaluates a figure for every run.
func of(all []results, figure func(results) float64) spread {
	var s spread
	for _, r := range all {
		s = append(s, figure(r))
	}
	slices.Sort(s)
	return s
}

func (s spread) median() float64 { return (s[(len(s)-1)/2] + s[len(s)/2]) / 2 }

// show writes the median and the range of the runs.
func (s spread) show(decimals int) string {
	text := fmt.Sprintf("%.*f", decimals, s.median())
	if len(s) > 1 {
		text += fmt.Sprintf(" (%.*f–%.*f)", decimals, s[0], decimals, s[len(s)-1])
	}
	return text
}

// targets are what this engine is to reach at each number of connections, as the
// ratio of its requests per second to another subject's.
var targets = []struct {
	connections int
	externalKV  float64
}{{1, 4}, {16, 3}, {64, 2.3}}

const floorTarget = 0.97

// report writes all tables in Markdown.
func report(all []results, conditions string) string {
	var b strings.Builder
	b.WriteString(conditions)
	b.WriteString("\n### What the engine is to reach\n\n")
	b.WriteString("Ratios of requests per second, within the same run. The floor is a plugin that only returns a constant.\n\n")
	b.WriteString("| connections | audit | to external KV v2 | at least | floor to external KV v2 | to the floor | at least | p99, ms | external KV v2's | |\n")
	b.WriteString("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n")
	for _, target := range targets {
		for _, audit := range audits {
			ratio := func(s, to int) spread {
				return of(all, func(r results) float64 {
					return r[cell{audit, target.connections, s}].rate() / r[cell{audit, target.connections, to}].rate()
				})
			}
			p99 := func(s int) spread {
				return of(all, func(r results) float64 { return r[cell{audit, target.connections, s}].quantile(0.99) })
			}
			toKV, toFloor := ratio(engine, externalKV), ratio(engine, floor)
			own, other := p99(engine), p99(externalKV)
			verdict := "missed"
			if toKV.median() >= target.externalKV && toFloor.median() >= floorTarget && own.median() < other.median() {
				verdict = "reached"
			}
			fmt.Fprintf(&b, "| %d | %s | %s | %.1f | %s | %s | %.2f | %s | %s | %s |\n", target.connections, onOff(audit),
				toKV.show(2), target.externalKV, ratio(floor, externalKV).show(2), toFloor.show(3), floorTarget,
				own.show(2), other.show(2), verdict)
		}
	}
	for _, audit := range audits {
		fmt.Fprintf(&b, "\n### Audit %s\n\n", onOff(audit))
		b.WriteString("| connections | read | requests/s | p50, ms | p99, ms | CPU of Vault, µs | CPU of the plugin, µs |\n")
		b.WriteString("| ---: | --- | ---: | ---: | ---: | ---: | ---: |\n")
		for _, n := range connections {
			for s, subject := range subjects {
				column := func(decimals int, figure func(*tally) float64) string {
					return of(all, func(r results) float64 { return figure(r[cell{audit, n, s}]) }).show(decimals)
				}
				// Without /proc no time is known to have passed, and without a
				// plugin none does.
				processor := func(used func(*tally) time.Duration) string {
					if used(all[0][cell{audit, n, s}]) == 0 {
						return "–"
					}
					return column(0, func(t *tally) float64 { return t.perRequest(used(t)) })
				}
				fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | %s | %s |\n", n, subject.name,
					column(0, (*tally).rate),
					column(2, func(t *tally) float64 { return t.quantile(0.5) }),
					column(2, func(t *tally) float64 { return t.quantile(0.99) }),
					processor(func(t *tally) time.Duration { return t.cpu.vault }),
					processor(func(t *tally) time.Duration { return t.cpu.plugin }))
			}
		}
	}
	return b.String()
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// conditions tells what was measured where and how.
func (v *vault) conditions(o options) (string, error) {
	engine, err := buildinfo.ReadFile(programs[enginePlugin])
	if err != nil {
		return "", err
	}
	kv, err := buildinfo.ReadFile(programs[kvPlugin])
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s/%s, %d processors", time.Now().UTC().Format(time.DateOnly), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, after, found := strings.Cut(string(info), "model name\t: "); found {
			model, _, _ := strings.Cut(after, "\n")
			fmt.Fprintf(&b, " (%s)", model)
		}
	}
	fmt.Fprintf(&b, ".\n%s; this engine with SDK %s and %s; external KV %s with SDK %s and %s.\n",
		v.Host, sdkOf(engine), engine.GoVersion, kv.Main.Version, sdkOf(kv), kv.GoVersion)
	fmt.Fprintf(&b, "Runs: %d, each of %d rounds with slices of %s. The figures are the medians of the runs, with their range in parentheses.\n",
		o.runs, o.rounds, o.slice)
	return b.String(), nil
}

// sdkOf returns the version of Vault's SDK in a program.
func sdkOf(program *buildinfo.BuildInfo) string {
	for _, module := range program.Deps {
		if module.Path == "github.com/hashicorp/vault/sdk" {
			return module.Version
		}
	}
	return "none"
}

// document is a Markdown file that holds the tables between two marks.
type document struct {
	file, before, after string
}

const (
	beginMark = "<!-- make bench writes from here -->\n"
	endMark   = "<!-- to here -->\n"
)

// openDocument makes sure, before anything is measured, that there is a place for
// the tables.
func openDocument(file string) (*document, error) {
	content, err := os.ReadFile(file) //nolint:gosec // named by the caller
	if err != nil {
		return nil, err
	}
	before, rest, begins := strings.Cut(string(content), beginMark)
	_, after, ends := strings.Cut(rest, endMark)
	if !begins || !ends {
		return nil, fmt.Errorf("%s lacks the line %q or, after it, %q", file, strings.TrimSpace(beginMark), strings.TrimSpace(endMark))
	}
	return &document{file, before + beginMark, endMark + after}, nil
}

// replace writes the tables in the place of the former ones.
func (d *document) replace(tables string) error {
	content := d.before + "\n" + tables + "\n" + d.after
	return os.WriteFile(d.file, []byte(content), 0o644) //nolint:gosec // for all to read
}
