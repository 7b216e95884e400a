//go:build e2e

// Package e2e tests the plugin as its users meet it: the built binary, run by a
// real Vault server, against the simulated platform over HTTP.
//
// Two variables of the environment name what is tested: VAULT_BIN the program of
// Vault or of OpenBao, WECHAT_PLUGIN the plugin's binary. PREVIOUS_PLUGIN may name that
// of an earlier release, from and to which TestUpgradeAndDowngradeUnderLoad then
// changes. Most tests share one
// server and have a mount and a platform of their own on it; those that kill, stop
// or seal a server start their own. Most tests run in parallel, because they
// spend their time waiting for tokens to age. Those that keep the processors busy, with
// browsers, SDKs or thousands of requests, come before them, one after the other: the
// others measure times.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
)

// pluginName is what the plugin is registered as.
const pluginName = "vault-plugin-secrets-wechat"

// subject is what the environment gave to test.
var subject struct {
	host   vaulttest.Host
	plugin vaulttest.Plugin // with the version that it prints
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (status int) {
	dir, err := os.MkdirTemp("", "wechat-e2e")
	if err == nil {
		defer os.RemoveAll(dir)
		err = findSubject(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "end-to-end tests:", err)
		return 1
	}
	shared.dir = dir
	// The parallel tests wait more than they work: unless the command line says otherwise,
	// many run at a time, however few processors there are.
	flag.Parse()
	parallel := false
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel {
		if err := flag.Set("test.parallel", "16"); err != nil {
			panic(err)
		}
	}
	status = m.Run()
	if err := shared.end(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: the shared Vault:", err)
		return 1
	}
	return status
}

// findSubject fills subject from the environment.
func findSubject(dir string) error {
	ctx := context.Background()
	var err error
	if subject.host, err = vaulttest.FindHost(ctx); err != nil {
		return err
	}
	binary := os.Getenv("WECHAT_PLUGIN")
	if binary == "" {
		return errors.New("WECHAT_PLUGIN is not set: it must be the path of the plugin's binary; `make e2e` sets it")
	}
	if subject.plugin, err = pluginAt(ctx, binary, dir); err != nil {
		return fmt.Errorf("WECHAT_PLUGIN must be the path of the plugin's binary: %w", err)
	}
	return nil
}

// pluginAt is the plugin whose binary is at a path. It keeps a copy in dir.
func pluginAt(ctx context.Context, binary, dir string) (vaulttest.Plugin, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return vaulttest.Plugin{}, err
	}
	printed, err := exec.CommandContext(ctx, binary, "-version").Output()
	if err != nil {
		return vaulttest.Plugin{}, fmt.Errorf("%s -version: %w", binary, err)
	}
	words := strings.Fields(string(printed))
	if len(words) == 0 {
		return vaulttest.Plugin{}, fmt.Errorf("%s -version prints nothing", binary)
	}
	return vaulttest.FindPlugin(pluginName, words[len(words)-1], binary, dir)
}

// shared is the server that most tests share. The first that asks for it starts
// it.
var shared sharedVault

type sharedVault struct {
	dir  string
	once sync.Once
	v    *vaulttest.Server
	err  error
}

// get returns the running server.
func (s *sharedVault) get(t *testing.T) *vaulttest.Server {
	t.Helper()
	s.once.Do(func() {
		if s.v, s.err = vaulttest.New(serverIn(filepath.Join(s.dir, "vault"))); s.err == nil {
			s.err = setUp(context.Background(), s.v)
		}
	})
	if s.err != nil {
		t.Fatalf("the shared Vault does not run: %v", s.err)
	}
	return s.v
}

// end stops the server, if it was started, and looks a last time for what its
// files must not hold, for there may be more in them than at the tests' ends.
func (s *sharedVault) end() error {
	if s.v == nil {
		return nil
	}
	defer s.v.End()
	if s.err != nil {
		return s.err
	}
	if err := s.v.Stop(); err != nil {
		return err
	}
	return s.v.Leaks(s.v.Hidden())
}
