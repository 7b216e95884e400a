// Command wechatsim serves a simulated WeChat platform with one account on a
// loopback address, until it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// secretVariable names the environment variable that holds the AppSecret, because
// everybody on the machine can read command lines.
const secretVariable = "WECHATSIM_SECRET"

const usage = `Usage: WECHATSIM_SECRET=... wechatsim -appid APPID [flags]

Simulates WeChat's calls that take an AppSecret, and some that take the token, on
a loopback address until interrupted. When it is ready it prints its base URL on a
line of its own. The account's AppSecret is read from the environment.

A code for the login of a user, as wx.login gives one to a mini program:

  curl -X POST BASE_URL/_sim/accounts/APPID/codes

Flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Getenv(secretVariable), os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "wechatsim:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. It prints the base URL to stdout, and help to stderr.
func run(ctx context.Context, args []string, secret string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("wechatsim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
		fmt.Fprint(stderr, "\n", wechatsim.ControlHelp)
	}
	listen := flags.String("listen", "127.0.0.1:0", "loopback `address` to listen on; port 0 takes a free one")
	appid := flags.String("appid", "", "AppID of the account")
	lifetime := flags.Duration("lifetime", 0, "life of a new token (default 2h)")
	overlap := flags.Duration("overlap", 0, "last part of a token's life, in which a call issues the next one (default 5m)")
	bound := flags.Bool("bound", false, "the account is bound to an open-platform account: a login tells the unionid")
	latency := flags.Duration("latency", 0, "how long each answer is held back")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case *appid == "":
		return errors.New("-appid is missing")
	case secret == "":
		return errors.New("the environment variable " + secretVariable + " is missing")
	}

	l, err := listenLoopback(ctx, *listen)
	if err != nil {
		return err
	}
	sim := wechatsim.New()
	sim.SetAccount(*appid, wechatsim.Account{Secret: secret, Lifetime: *lifetime, Overlap: *overlap, Bound: *bound})
	sim.SetLatency(*latency)
	stop := sim.Serve(l)
	defer stop()
	if _, err := fmt.Fprintf(stdout, "http://%s\n", l.Addr()); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// listenLoopback refuses addresses that other machines could reach, since the
// control gives the tokens away.
func listenLoopback(ctx context.Context, address string) (net.Listener, error) {
	tcp, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	if !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("%s is not a loopback address", address)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", tcp.String())
}
