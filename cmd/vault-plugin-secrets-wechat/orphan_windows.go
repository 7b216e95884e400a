package main

import (
	"errors"
	"os"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/windows"
)

// host is the Vault that started this process, as far as the process sees it.
// Windows keeps the parent's id in a process for good and gives the id of an ended
// process to another one, so it is the parent's handle that is looked at.
type host struct {
	// process is the parent's handle; zero if it has none that could be opened.
	process windows.Handle
	// early says that the parent had ended before the first look.
	early bool
}

// findHost opens the parent process. A parent that can't be opened for another
// reason than that it has ended is not watched, which the log says.
func findHost(logger hclog.Logger) host {
	h, err := openHost(os.Getppid())
	if err != nil {
		logger.Warn("the plugin can't see whether Vault is there; end it yourself if Vault is killed", "error", err)
	}
	return h
}

func openHost(parent int) (host, error) {
	if parent <= 0 {
		return host{}, errors.New("the parent process is not known")
	}
	process, err := windows.OpenProcess(windows.SYNCHRONIZE|windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(parent))
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) {
		return host{early: true}, nil // There is no process of this id.
	}
	if err != nil {
		return host{}, err
	}
	started, err := startTime(process)
	if err != nil {
		return host{}, errors.Join(err, windows.CloseHandle(process))
	}
	own, err := startTime(windows.CurrentProcess())
	if err != nil {
		return host{}, errors.Join(err, windows.CloseHandle(process))
	}
	if started > own {
		// A parent is older than its child: this one got the id afterwards.
		return host{early: true}, windows.CloseHandle(process)
	}
	return host{process: process}, nil
}

// startTime returns when a process started, in nanoseconds of the Unix epoch.
func startTime(process windows.Handle) (int64, error) {
	var creation, exit, kernel, user windows.Filetime
	if err := windows.GetProcessTimes(process, &creation, &exit, &kernel, &user); err != nil {
		return 0, err
	}
	return creation.Nanoseconds(), nil
}

// dead tells whether the parent process has ended.
func (h host) dead() bool {
	if h.early || h.process == 0 {
		return h.early
	}
	event, err := windows.WaitForSingleObject(h.process, 0)
	return err == nil && event == windows.WAIT_OBJECT_0
}

// deaf is always false: the write end of a pipe does not tell on Windows whether it
// is read. So behind a wrapper that stays, the plugin stays with the wrapper.
func (host) deaf() bool {
	return false
}
