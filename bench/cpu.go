//go:build unix

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpuTime is processor time, user and system together.
type cpuTime struct {
	vault, plugin time.Duration
}

func (t cpuTime) plus(u cpuTime) cpuTime { return cpuTime{t.vault + u.vault, t.plugin + u.plugin} }

func (t cpuTime) minus(u cpuTime) cpuTime { return cpuTime{t.vault - u.vault, t.plugin - u.plugin} }

func (t cpuTime) scaled(by float64) cpuTime {
	return cpuTime{time.Duration(float64(t.vault) * by), time.Duration(float64(t.plugin) * by)}
}

// cpu returns what the server and the subject's plugin have used up to now, zero
// where the system does not tell.
func (v *vault) cpu(s int) cpuTime {
	t := cpuTime{vault: used(v.processes[""])}
	if plugin := subjects[s].plugin; plugin != "" {
		t.plugin = used(v.processes[plugin])
	}
	return t
}

// tick is the unit of processor time in Linux's /proc.
const tick = time.Second / 100

// stat returns the fields of a process that follow its name in /proc, of which
// the first is the third in Linux's documentation; nil if there is none.
func stat(pid int) []string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The name is in parentheses, and may hold anything.
	return strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
}

// used is the processor time of processes.
func used(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		if fields := stat(pid); len(fields) > 12 {
			for _, ticks := range fields[11:13] {
				n, _ := strconv.ParseInt(ticks, 10, 64) // always a number
				sum += time.Duration(n) * tick
			}
		}
	}
	return sum
}

// children returns a process under the empty name, and its children by the names
// of their programs; nil without Linux's /proc.
func children(parent int) map[string][]int {
	if stat(parent) == nil {
		return nil
	}
	found := map[string][]int{"": {parent}}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if fields := stat(pid); len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			if program, err := os.Readlink(filepath.Join(dir, "exe")); err == nil {
				found[filepath.Base(program)] = append(found[filepath.Base(program)], pid)
			}
		}
	}
	return found
}
