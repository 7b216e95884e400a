//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// notRun notes that something is not tested on this machine, and why. It goes to
// the file that the variable NOT_RUN names, which `make test` shows at its end:
// what was left out must not look like what has passed.
func notRun(t *testing.T, what, why string) {
	t.Helper()
	t.Logf("NOT RUN: %s: %s", what, why)
	path := os.Getenv("NOT_RUN")
	if path == "" {
		return
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	_, err = fmt.Fprintf(file, "%s: %s\n", what, why)
	must(t, err)
	must(t, file.Close())
}

// installed tells whether the programs that something is tested with are there.
// If one is not, it notes what is not run for the lack of it.
func installed(t *testing.T, what string, programs ...string) bool {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			notRun(t, what, program+" is not installed")
			return false
		}
	}
	return true
}
