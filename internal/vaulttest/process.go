//go:build unix

package vaulttest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// process is one run of a host's program. It leads a process group, which the
// plugins' processes are in as well: an interrupt from the terminal does not reach
// them, and they can be found and ended when their server is gone.
type process struct {
	*exec.Cmd
	exited   chan struct{}  // closed when it is gone
	watchdog io.WriteCloser // its end kills the group, a line dismisses it
}

// startProcess runs a program with its output appended to a file. end has to
// follow, also after an error, unless the process is nil.
func startProcess(log, program string, args ...string) (*process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	p := &process{Cmd: exec.Command(program, args...), exited: make(chan struct{})}
	p.Stdout, p.Stderr = file, file
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.Wait() // how it ended is in its log
		close(p.exited)
	}()

	// Should the caller end without any clean-up, by a panic or by a signal, then
	// so does the pipe, and the shell kills what was started.
	watchdog := exec.Command("sh", "-c", `read -r _ || kill -s KILL -- "-$0"`, strconv.Itoa(p.Process.Pid))
	watchdog.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := watchdog.StdinPipe()
	if err != nil {
		return p, err
	}
	if err := watchdog.Start(); err != nil {
		return p, err
	}
	p.watchdog = pipe
	go func() { _ = watchdog.Wait() }() // ends with the pipe
	return p, nil
}

// running tells whether the process is there.
func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// end kills the process and its whole group, and waits until it is gone.
func (p *process) end() {
	_ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL) // fails if none is left
	<-p.exited
	if p.watchdog != nil {
		_, _ = io.WriteString(p.watchdog, "dismissed\n") // fails only if it was killed
		_ = p.watchdog.Close()
	}
}

// leads tells whether another process is alive and in this one's group.
func (p *process) leads(pid int) bool {
	group, err := syscall.Getpgid(pid)
	return err == nil && group == p.Process.Pid && !zombie(pid)
}

// zombie tells whether a process has ended and only waits for its parent to take
// note. It may wait for long in a container whose first process does not care.
// Without /proc a process counts as alive.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return bytes.HasPrefix(state, []byte("Z"))
}
