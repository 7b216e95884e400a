//go:build unix

// Command bench measures what a read of a cached token, a signature and a login
// cost on a real Vault, side by side with other requests that Vault answers:
// `make bench`. It starts the server itself, on the loopback, and leaves nothing
// behind.
//
// What is measured takes turns, with the same token, policy and connections: see
// subjects. A turn is a slice of some hundred milliseconds, and the order of the
// turns is another one each time: noise of the machine meets all alike.
//
//   - subject.go says what is measured, plan.go when and for how long.
//   - vault.go, platform.go and cpu.go are what is measured: the server, WeChat,
//     and the processor time of the former. load.go asks.
//   - tally.go is the arithmetic; summary.go, targets.go, tables.go and
//     conditions.go write what came of it, and document.go keeps that.
//
// The environment names the programs: VAULT_BIN, WECHAT_PLUGIN, KV_PLUGIN and
// FLOOR_PLUGIN, and if there is another build of the engine to compare with,
// BEFORE_PLUGIN.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `Usage: bench [flags]

Measures requests of a real Vault, and prints the tables. A round takes every
measurement once, for a slice of time; a run is some rounds, whose results are
taken together; the tables hold the median of the runs and their range.

Flags:
`

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
	o := options{before: beforeProgram != ""}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	flags.IntVar(&o.runs, "runs", 5, "runs, whose range is the noise")
	flags.IntVar(&o.rounds, "rounds", 4, "rounds of a run")
	flags.DurationVar(&o.slice, "slice", 300*time.Millisecond, "`duration` of one measurement, from 100ms to 5s")
	flags.Func("document", "Markdown `file` in which to replace summary and tables, may be repeated; without it they are only printed", func(file string) error {
		doc, err := openDocument(file)
		o.documents = append(o.documents, doc)
		return err
	})
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
	f, err := measure(ctx, v, o, os.Stderr)
	if err != nil {
		return err
	}
	parts := f.parts(conditions, english)
	fmt.Print(parts["summary"], "\n", parts["tables"])
	if f.gaps() && len(o.documents) > 0 {
		return errors.New("nothing was written: in some measurements no request was answered, the machine is too busy")
	}
	for _, doc := range o.documents {
		if err := doc.replace(f.parts(conditions, doc.language)); err != nil {
			return err
		}
	}
	return nil
}
