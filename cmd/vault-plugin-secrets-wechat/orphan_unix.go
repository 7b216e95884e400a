//go:build unix

package main

import (
	"os"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// host is the Vault that started this process, as far as the process sees it.
type host struct {
	// parent is the id of the parent process at the first look. It may be another
	// process than Vault: a wrapper that starts the plugin and waits for it, or the
	// one that adopted the plugin because Vault died before the first look. So that
	// it is 1 says nothing either: in a container Vault itself may be process 1.
	parent int
	// outputs are the write ends of the pipes that Vault reads the plugin's standard
	// output and standard error from. Vault alone holds their read ends, from before
	// it starts the plugin until it has seen it end.
	outputs []int
}

// findHost must be called before the plugin is served, which gives the names of the
// standard output and error to pipes within the process.
func findHost(hclog.Logger) host {
	return newHost(os.Getppid(), unix.Stdout, unix.Stderr)
}

// newHost keeps those of the outputs that are pipes. A terminal, a file or
// /dev/null does not tell whether anybody reads it.
func newHost(parent int, outputs ...int) host {
	h := host{parent: parent}
	for _, fd := range outputs {
		var stat unix.Stat_t
		if unix.Fstat(fd, &stat) == nil && stat.Mode&unix.S_IFMT == unix.S_IFIFO {
			h.outputs = append(h.outputs, fd)
		}
	}
	return h
}

// dead tells whether the parent process has ended: the process then has another.
func (h host) dead() bool {
	return os.Getppid() != h.parent
}

// deaf tells whether all pipes have lost their reader. Linux reports that as an
// error, the BSDs and macOS as a hang-up, macOS only to those who ask for POLLOUT.
func (h host) deaf() bool {
	for _, fd := range h.outputs {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}} //nolint:gosec // 1 and 2, and what tests open
		if n, err := unix.Poll(poll, 0); n != 1 || err != nil {
			return false
		}
		if poll[0].Revents&(unix.POLLERR|unix.POLLHUP) == 0 {
			return false
		}
	}
	return len(h.outputs) > 0
}
