//go:build unix

// Command bench measures what a read of a cached token costs on a real Vault,
// side by side with other reads that Vault offers: `make bench`. It starts the
// server itself, on the loopback, and leaves nothing behind.
//
// Five reads take turns, with the same token, policy and connections: this
// engine's, KV v2 as an external plugin, the KV v2 that is built into Vault,
// Vault's own auth/token/lookup-self, and the floor, a plugin that answers with
// a constant. A turn is a slice of some hundred milliseconds, and the order of
// the turns is another one each time: noise of the machine meets all alike.
//
// The environment names the programs: VAULT_BIN, WECHAT_PLUGIN, KV_PLUGIN and
// FLOOR_PLUGIN.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `Usage: bench [flags]

Measures reads of a real Vault, and prints the tables. A round takes every
measurement once, for a slice of time; a run is some rounds, whose results are
taken together; the tables hold the median of the runs and their range.

Flags:
`

// options is how much to measure, and where to keep the result.
type options struct {
	runs, rounds int
	slice        time.Duration
	document     string
}

// planned is the time that the measurements alone take.
func (o options) planned() time.Duration {
	slices := o.runs * o.rounds * len(audits) * len(connections) * len(subjects)
	return time.Duration(slices) * (o.slice + settling)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:])
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	flags.IntVar(&o.runs, "runs", 5, "runs, whose range is the noise")
	flags.IntVar(&o.rounds, "rounds", 4, "rounds of a run")
	flags.DurationVar(&o.slice, "slice", 300*time.Millisecond, "`duration` of one measurement, from 100ms to 5s")
	flags.StringVar(&o.document, "document", "", "Markdown `file` in which to replace the tables; empty only prints them")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.runs < 1 || o.rounds < 1:
		return errors.New("there must be at least one run and one round")
	case o.slice < 100*time.Millisecond || o.slice > 5*time.Second:
		return errors.New("a slice takes from 100ms to 5s")
	}
	var doc *document
	if o.document != "" {
		var err error
		if doc, err = openDocument(o.document); err != nil {
			return err
		}
	}

	// Starting takes seconds; whatever hangs must not hang for ever.
	ctx, cancel := context.WithTimeout(ctx, 2*o.planned()+2*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "wechat-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	v, err := startVault(ctx, dir)
	if err != nil {
		return err
	}
	defer v.stop()
	conditions, err := v.conditions(o)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "Measuring for %s.\n", o.planned().Round(time.Second))
	all, err := measure(ctx, v, o, os.Stderr)
	if err != nil {
		return err
	}
	tables := report(all, conditions)
	fmt.Print(tables)
	if doc != nil {
		return doc.replace(tables)
	}
	return nil
}

// connections is at how many connections at a time each read is measured.
var connections = []int{1, 16, 64}

// audits is whether there is an audit device, which writes a file.
var audits = []bool{false, true}

// cell is what one measurement is of.
type cell struct {
	audit       bool
	connections int
	subject     int // index of subjects
}

// results are those of one run.
type results map[cell]*tally

// measure takes all measurements, and tells progress how far it is.
func measure(ctx context.Context, v *vault, o options, progress io.Writer) ([]results, error) {
	load, err := newLoad(ctx, v)
	if err != nil {
		return nil, err
	}
	defer load.close()
	all := make([]results, o.runs)
	for r := range all {
		all[r] = results{}
		for range o.rounds {
			for _, audit := range audits {
				if err := v.setAudit(ctx, audit); err != nil {
					return nil, err
				}
				for _, n := range connections {
					for _, s := range rand.Perm(len(subjects)) { //nolint:gosec // need not be hard to guess
						c := cell{audit, n, s}
						if all[r][c] == nil {
							all[r][c] = &tally{}
						}
						if err := load.slice(ctx, all[r][c], c, o.slice); err != nil {
							return nil, fmt.Errorf("%s: %w", subjects[s].name, err)
						}
					}
				}
			}
		}
		fmt.Fprintf(progress, "Run %d of %d is done.\n", r+1, o.runs)
	}
	return all, nil
}
