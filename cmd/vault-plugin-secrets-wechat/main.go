// Command vault-plugin-secrets-wechat is the plugin binary that Vault runs.
package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/plugin"

	wechat "github.com/vault-wechat/vault-plugin-secrets-wechat"
)

func main() {
	for _, arg := range os.Args[1:] {
		switch arg {
		case "-version", "--version", "-v", "version":
			fmt.Println("vault-plugin-secrets-wechat", wechat.Version)
			return
		}
	}
	// net/http writes what comes on a connection after the answer to the standard log: a
	// relay that echoes would have the AppSecret in Vault's log.
	log.SetOutput(io.Discard)
	fitRuntime()
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: os.Stderr, JSONFormat: true})
	exitWithVault(logger)
	err := plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: wechat.Factory, Logger: logger})
	if err != nil {
		logger.Error("the plugin cannot serve", "error", err)
		os.Exit(1)
	}
}

// fitRuntime fits Go's runtime to a process that answers one short call after
// the other, for a Vault that spends four times as much on each and needs the
// processors more. Half of them are enough here, and fewer threads are woken per
// call; a small heap is collected half as often. docs/benchmarks.md has what that
// brings. Go's own variables in the environment come first.
func fitRuntime() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}
}
