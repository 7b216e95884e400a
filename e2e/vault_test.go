//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
)

// patience bounds everything that a healthy server does within a few seconds,
// generously: the machine may be busy with the other tests.
const patience = vaulttest.Patience

// serverIn is how a server of these tests is configured: its log tells everything,
// and a test can see what the plugin keeps in storage.
func serverIn(dir string) vaulttest.Config {
	return vaulttest.Config{Host: subject.host, Dir: dir, LogLevel: "trace", Raw: true}
}

// setUp starts a server for the first time, and gives it an audit device and the
// plugin.
func setUp(ctx context.Context, v *vaulttest.Server) error {
	if err := v.SetUp(ctx); err != nil {
		return err
	}
	if err := v.EnableAudit(ctx); err != nil {
		return err
	}
	if err := v.Install(subject.plugin); err != nil {
		return err
	}
	return v.Register(ctx, subject.plugin)
}

// ownVault starts a server for one test.
func ownVault(t *testing.T) *vaulttest.Server {
	t.Helper()
	v, err := vaulttest.New(serverIn(filepath.Join(t.TempDir(), "vault")))
	must(t, err)
	t.Cleanup(func() {
		defer v.End()
		if t.Failed() {
			return
		}
		must(t, v.Stop())
		must(t, v.Leaks(v.Hidden()))
	})
	must(t, setUp(t.Context(), v))
	return v
}

// buildPlugin builds a version of the plugin, as the Makefile does.
func buildPlugin(t *testing.T, version string) vaulttest.Plugin {
	t.Helper()
	const module = "github.com/vault-wechat/vault-plugin-secrets-wechat"
	dir := t.TempDir()
	binary := filepath.Join(dir, "built")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X "+module+".Version="+version, "-o", binary, "../cmd/"+pluginName)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", version, err, output)
	}
	p, err := vaulttest.FindPlugin(pluginName, version, binary, dir)
	must(t, err)
	return p
}

// pluginsOf returns the running processes of a server's plugin.
func pluginsOf(t *testing.T, v *vaulttest.Server) []int {
	t.Helper()
	pids, err := v.Plugins()
	must(t, err)
	return pids
}

// pluginEnds waits until no process of the plugin runs any more. One whose Vault
// is gone has to notice by itself, within seconds.
func pluginEnds(t *testing.T, v *vaulttest.Server) {
	t.Helper()
	eventually(t, 15*time.Second, "the plugin's processes end", func() bool { return len(pluginsOf(t, v)) == 0 })
}

// killPlugin kills the plugin's processes, one of which has to be there.
func killPlugin(t *testing.T, v *vaulttest.Server) {
	t.Helper()
	must(t, v.KillPlugins())
}
