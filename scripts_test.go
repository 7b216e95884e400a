package wechat

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// stub writes a program for tests into a folder.
func stub(t *testing.T, folder, name, script string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700))
}

func TestABuildTellsWhatItDoesAndEveryHalfMinuteThatItGoesOn(t *testing.T) {
	folder := t.TempDir()
	// The clock is a file, which each sleep sets forward by ten seconds.
	stub(t, folder, "date", `cat "$CLOCK"`)
	stub(t, folder, "sleep", `[ -e "$DONE" ] && exec /bin/sleep 1; echo $(($(cat "$CLOCK") + 10)) >"$CLOCK.next" && mv "$CLOCK.next" "$CLOCK"`)
	clock, done := filepath.Join(folder, "clock"), filepath.Join(folder, "done")
	require.NoError(t, os.WriteFile(clock, []byte("1000\n"), 0o600))
	said := filepath.Join(folder, "said")
	stderr, err := os.Create(said)
	require.NoError(t, err)
	defer stderr.Close()

	// The build lasts until it was told of twice.
	build := `until [ "$(grep -c 'goes on' "$SAID")" -ge 2 ]; do :; done; touch "$DONE"; echo built; exit 7`
	cmd := exec.CommandContext(t.Context(), "scripts/aloud.sh", "Building it", "a minute", "sh", "-c", build)
	cmd.Env = []string{"PATH=" + folder + string(os.PathListSeparator) + os.Getenv("PATH"), "CLOCK=" + clock, "SAID=" + said, "DONE=" + done}
	var stdout bytes.Buffer
	// Through a pipe, which is read to its end: so the test ends after what goes on telling,
	// and no sleep writes to the folder while it is removed.
	cmd.Stdout, cmd.Stderr = &stdout, struct{ io.Writer }{stderr}
	var ended *exec.ExitError
	require.ErrorAs(t, cmd.Run(), &ended)
	require.Equal(t, 7, ended.ExitCode(), "the status is the build's")
	require.Equal(t, "built\n", stdout.String(), "the output is the build's")

	text, err := os.ReadFile(said)
	require.NoError(t, err)
	lines := strings.Split(string(text), "\n")
	require.Equal(t, []string{"Building it: a minute.", "  0m30s  Building it goes on", "  1m00s  Building it goes on"}, lines[:3])
}

// silent finds what prints nothing for minutes where nothing is cached.
var silent = regexp.MustCompile(`\bgo (?:build|list -mod|run|test|vet|mod verify)\b|golangci_lint" run|"\$govulncheck"`)

func TestNothingThatTakesMinutesIsSilent(t *testing.T) {
	files, err := filepath.Glob("scripts/*.sh")
	require.NoError(t, err)
	found := 0
	for _, file := range append(files, "Makefile") {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
			if strings.HasPrefix(strings.TrimSpace(line), "#") || !silent.MatchString(line) {
				continue
			}
			found++
			// pinned.sh tells by itself how far it is, every ten seconds.
			pinned := file == filepath.Join("scripts", "pinned.sh") && strings.HasPrefix(line, "run ")
			if !strings.Contains(line, "aloud.sh ") && !pinned {
				t.Errorf("%s: a command does not say what it does, and that it goes on:\n%s", file, line)
			}
		}
	}
	require.Greater(t, found, 15)
}
