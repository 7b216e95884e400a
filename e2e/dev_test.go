//go:build e2e

package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// madeUp is the AppID of an account that make dev makes up.
var madeUp = regexp.MustCompile(`wx[0-9a-f]{16}`)

func TestMakeDevDoesAsTheREADMEShows(t *testing.T) {
	t.Parallel()
	if !subject.host.IsVault(1, 0) {
		t.Skip("make dev starts a Vault")
	}
	folder := t.TempDir()
	for _, sub := range []string{"bin", "scripts", "tmp"} {
		must(t, os.Mkdir(filepath.Join(folder, sub), 0o700))
	}
	for _, name := range []string{"dev.sh", "vault.sh"} {
		text, err := os.ReadFile(filepath.Join("..", "scripts", name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(folder, "scripts", name), text, 0o700))
	}
	program, err := os.ReadFile(os.Getenv("WECHAT_PLUGIN"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(folder, "bin", pluginName), program, 0o700)) // Vault refuses a link that leads elsewhere
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(folder, "bin", "wechatsim"), "../cmd/wechatsim")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}

	dev := exec.CommandContext(t.Context(), filepath.Join(folder, "scripts", "dev.sh"))
	dev.Env = []string{"PATH=" + os.Getenv("PATH"), "VAULT_BIN=" + subject.host.Path, "HOME=" + folder, "TMPDIR=" + filepath.Join(folder, "tmp")}
	dev.Cancel = func() error { return dev.Process.Signal(syscall.SIGTERM) }
	dev.WaitDelay = patience
	printing, err := dev.StdoutPipe()
	must(t, err)
	dev.Stderr = dev.Stdout
	must(t, dev.Start())
	ended := time.AfterFunc(2*patience, func() { _ = dev.Process.Signal(syscall.SIGTERM) })
	defer ended.Stop()
	var printed []string
	for lines := bufio.NewScanner(printing); lines.Scan(); {
		printed = append(printed, lines.Text())
		if strings.HasPrefix(lines.Text(), "Ready") {
			must(t, dev.Process.Signal(syscall.SIGINT))
		}
	}
	if err := dev.Wait(); err != nil {
		t.Fatalf("make dev: %v\n%s", err, strings.Join(printed, "\n"))
	}
	if left, err := os.ReadDir(filepath.Join(folder, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("make dev leaves %v (%v)", left, err)
	}

	var shown []string
	for _, block := range codeBlocks(t, "README.md") {
		if len(block) == 0 || block[0].text != "make dev" {
			continue
		}
		shown = append(shown, block[0].output...)
		for _, c := range block[1:] {
			shown = append(append(shown, "$ "+c.text), c.output...)
		}
	}
	for _, lines := range [][]string{printed, shown} {
		for i, line := range lines {
			lines[i] = madeUp.ReplaceAllString(line, "wx0123456789abcdef")
		}
	}
	if len(shown) == 0 || !showsAs(general(printed), general(shown)) {
		t.Errorf("make dev prints\n%s\nand the README shows\n%s", strings.Join(printed, "\n"), strings.Join(shown, "\n"))
	}
}
