//go:build e2e

// Package e2e tests the plugin as its users meet it: the built binary, run by a
// real Vault server, against the simulated platform over HTTP.
//
// Two variables of the environment name what is tested: VAULT_BIN the Vault
// program, WECHAT_PLUGIN the plugin's binary. Most tests share one server and
// have a mount and a platform of their own on it; those that kill, stop or seal
// a server start their own. All tests run in parallel, because most of them
// spend their time waiting for tokens to age.
package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// pluginName is what the plugin is registered as.
const pluginName = "vault-plugin-secrets-wechat"

// subject is what the environment gave to test.
var subject struct {
	vault   string // the Vault program
	plugins string // the servers' plugin directory, which holds a copy of the plugin
	sha256  string // the plugin's checksum, in hex
	version string // the plugin's version, as it prints it
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
	// The tests wait more than they work: all may run at a time, however few
	// processors there are.
	if err := flag.Set("test.parallel", "64"); err != nil {
		panic(err)
	}
	status = m.Run()
	if err := shared.end(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: the shared Vault:", err)
		return 1
	}
	return status
}

// findSubject fills subject from the environment, and takes every other setting
// for a Vault away: neither servers nor clients here may follow it.
func findSubject(dir string) error {
	given := map[string]string{}
	for name, what := range map[string]string{"VAULT_BIN": "a Vault program", "WECHAT_PLUGIN": "the plugin's binary"} {
		path, err := filepath.Abs(os.Getenv(name))
		if os.Getenv(name) == "" {
			return fmt.Errorf("%s is not set: it must be the path of %s; `make e2e` sets it", name, what)
		}
		if err == nil {
			_, err = exec.LookPath(path)
		}
		if err != nil {
			return fmt.Errorf("%s must be the path of %s: %w", name, what, err)
		}
		given[name] = path
	}
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "VAULT_") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	subject.vault = given["VAULT_BIN"]

	// Vault refuses a plugin directory that is reached by a symbolic link.
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	subject.plugins = filepath.Join(dir, "plugins")
	binary, err := os.ReadFile(given["WECHAT_PLUGIN"])
	if err != nil {
		return err
	}
	if err := os.Mkdir(subject.plugins, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(subject.plugins, pluginName), binary, 0o700); err != nil {
		return err
	}
	sum := sha256.Sum256(binary)
	subject.sha256 = hex.EncodeToString(sum[:])
	printed, err := exec.Command(given["WECHAT_PLUGIN"], "-version").Output()
	if err != nil {
		return fmt.Errorf("%s -version: %w", given["WECHAT_PLUGIN"], err)
	}
	fields := strings.Fields(string(printed))
	if len(fields) == 0 {
		return fmt.Errorf("%s -version prints nothing", given["WECHAT_PLUGIN"])
	}
	subject.version = fields[len(fields)-1]
	return nil
}

// shared is the server that most tests share. The first that asks for it starts
// it.
var shared sharedVault

type sharedVault struct {
	dir  string
	once sync.Once
	v    *vault
	err  error
}

// get returns the running server.
func (s *sharedVault) get(t *testing.T) *vault {
	t.Helper()
	s.once.Do(func() {
		if s.v, s.err = newVault(filepath.Join(s.dir, "vault")); s.err == nil {
			s.err = s.v.setUp()
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
	defer s.v.destroy()
	if s.err != nil {
		return s.err
	}
	if err := s.v.stop(); err != nil {
		return err
	}
	return s.v.leaks(s.v.everyHidden())
}
