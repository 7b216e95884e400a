//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// patience bounds everything that a healthy server does within a few seconds,
// generously: the machine may be busy with the other tests.
const patience = 60 * time.Second

// vault is a Vault server with integrated storage on a loopback port, and its
// files. It can be stopped, killed and started again. Its methods but hide are
// for one goroutine at a time, unless they only talk to the server.
type vault struct {
	*api.Client // with the root token

	dir       string
	address   string
	unsealKey string
	processes []*process // the latest one last, running or not

	mu     sync.Mutex
	hidden map[string]bool // what its files must not hold in the clear
}

// process is one run of the Vault program. It leads a process group, which the
// plugin's processes are in as well.
type process struct {
	*exec.Cmd
	exited   chan struct{}  // closed when it is gone
	watchdog io.WriteCloser // its end kills the group, a line dismisses it
}

// newVault prepares a server in a directory that does not exist yet. setUp has
// to follow, and destroy in the end.
func newVault(dir string) (*vault, error) {
	v := &vault{dir: dir, hidden: map[string]bool{}}
	if err := os.MkdirAll(filepath.Join(dir, "raft"), 0o700); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	v.address = fmt.Sprintf("http://127.0.0.1:%d", port)
	config, err := json.Marshal(map[string]any{
		"storage": map[string]any{"raft": map[string]any{
			"path": filepath.Join(dir, "raft"), "node_id": "e2e", "performance_multiplier": "1",
		}},
		"listener": map[string]any{"tcp": map[string]any{
			"address": fmt.Sprintf("127.0.0.1:%d", port), "tls_disable": true,
		}},
		"api_addr":         v.address,
		"cluster_addr":     fmt.Sprintf("http://127.0.0.1:%d", port+1),
		"disable_mlock":    true,
		"plugin_directory": subject.plugins,
		"log_level":        "trace",
		// Lets a test see what the plugin keeps in storage.
		"raw_storage_endpoint": true,
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(v.configFile(), config, 0o600); err != nil {
		return nil, err
	}
	clientConfig := api.DefaultConfig()
	if clientConfig.Error != nil {
		return nil, clientConfig.Error
	}
	clientConfig.Address = v.address
	if v.Client, err = api.NewClient(clientConfig); err != nil {
		return nil, err
	}
	v.SetMaxRetries(0) // the tests look at the first answer
	return v, nil
}

func (v *vault) configFile() string { return filepath.Join(v.dir, "vault.json") }
func (v *vault) logFile() string    { return filepath.Join(v.dir, "server.log") }
func (v *vault) auditFile() string  { return filepath.Join(v.dir, "audit.log") }

// freePort returns a port that is free, and so is the next one, where Vault
// serves its cluster. It is not one of those that the system hands out to
// clients, so that it is still free after a restart.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := 20000 + 2*rand.IntN(5000)
		var first, second net.Listener
		if first, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
			continue
		}
		second, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		first.Close()
		if err == nil {
			return port, second.Close()
		}
	}
	return 0, fmt.Errorf("no free port: %w", err)
}

// setUp starts the server for the first time, initialises it, and gives it an
// audit device and the plugin.
func (v *vault) setUp() error {
	if err := v.launch(); err != nil {
		return err
	}
	init, err := v.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return err
	}
	v.unsealKey = init.Keys[0]
	v.SetToken(init.RootToken)
	v.hide(init.RootToken)
	if err := v.unseal(); err != nil {
		return err
	}
	err = v.Sys().EnableAuditWithOptions("file", &api.EnableAuditOptions{
		Type: "file", Options: map[string]string{"file_path": v.auditFile()},
	})
	if err != nil {
		return err
	}
	return v.Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name: pluginName, Type: api.PluginTypeSecrets, Command: pluginName, SHA256: subject.sha256, Version: subject.version,
	})
}

// start starts the server again, and unseals it.
func (v *vault) start() error {
	if err := v.launch(); err != nil {
		return err
	}
	return v.unseal()
}

// launch starts the program and waits until it answers.
func (v *vault) launch() error {
	log, err := os.OpenFile(v.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p := &process{Cmd: exec.Command(subject.vault, "server", "-config", v.configFile()), exited: make(chan struct{})}
	p.Stdout, p.Stderr = log, log
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.Start(); err != nil {
		return err
	}
	v.processes = append(v.processes, p)
	go func() {
		_ = p.Wait() // how it ended is in the log
		close(p.exited)
	}()

	// Should the tests end without any clean-up, by a panic or by a signal, then
	// so does the pipe, and the shell kills what they started.
	watchdog := exec.Command("sh", "-c", `read -r _ || kill -s KILL -- "-$0"`, strconv.Itoa(p.Process.Pid))
	watchdog.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if p.watchdog, err = watchdog.StdinPipe(); err != nil {
		return err
	}
	if err := watchdog.Start(); err != nil {
		return err
	}
	go func() { _ = watchdog.Wait() }() // ends with the pipe

	return v.await("does not answer", func() bool {
		_, err := v.Sys().SealStatus()
		return err == nil
	})
}

// unseal unseals the server and waits until it is active.
func (v *vault) unseal() error {
	if _, err := v.Sys().Unseal(v.unsealKey); err != nil {
		return err
	}
	return v.await("does not become active", func() bool {
		health, err := v.Sys().Health()
		return err == nil && health.Initialized && !health.Sealed && !health.Standby
	})
}

// process is the latest one.
func (v *vault) process() *process { return v.processes[len(v.processes)-1] }

// await waits for a condition of the server.
func (v *vault) await(complaint string, condition func() bool) error {
	for deadline := time.Now().Add(patience); ; {
		select {
		case <-v.process().exited:
			return fmt.Errorf("Vault ended; its log ends with\n%s", v.logTail())
		case <-time.After(50 * time.Millisecond):
		}
		switch {
		case condition():
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("Vault %s; its log ends with\n%s", complaint, v.logTail())
		}
	}
}

// stop ends the server as an operator would, with SIGTERM.
func (v *vault) stop() error { return v.end(syscall.SIGTERM) }

// kill ends the server, and nothing but it, with SIGKILL.
func (v *vault) kill() error { return v.end(syscall.SIGKILL) }

func (v *vault) end(signal os.Signal) error {
	if err := v.process().Process.Signal(signal); err != nil {
		return err
	}
	select {
	case <-v.process().exited:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("Vault does not end on the signal %q; its log ends with\n%s", signal, v.logTail())
	}
}

// destroy ends every process of the server that is still there.
func (v *vault) destroy() {
	for _, p := range v.processes {
		_ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL) // mostly nobody is left
		<-p.exited
		if p.watchdog != nil {
			_, _ = io.WriteString(p.watchdog, "dismissed\n") // gone only if somebody killed it
		}
	}
}

// pluginStarted is how Vault's log tells of a new process of the plugin.
var pluginStarted = regexp.MustCompile(`plugin started: .*\bpid=(\d+)`)

// plugins returns the running processes of the plugin.
func (v *vault) plugins() ([]int, error) {
	log, err := os.ReadFile(v.logFile())
	if err != nil {
		return nil, err
	}
	var running []int
	for _, m := range pluginStarted.FindAllSubmatch(log, -1) {
		pid, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return nil, err
		}
		group, err := syscall.Getpgid(pid)
		ours := slices.ContainsFunc(v.processes, func(p *process) bool { return p.Process.Pid == group })
		if err == nil && ours && !zombie(pid) {
			running = append(running, pid)
		}
	}
	return running, nil
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

// hide notes what the server's files must not hold in the clear.
func (v *vault) hide(values ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, value := range values {
		v.hidden[value] = true
	}
}

// visible is how many characters of a hidden value tell that it is one.
const visible = 24

// everyHidden returns all that was ever hidden.
func (v *vault) everyHidden() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Collect(maps.Keys(v.hidden))
}

// leaks looks into the server's log and audit file for hidden values, and for
// the beginning of the long ones: a token that was cut off on its way into a
// message has leaked all the same.
func (v *vault) leaks(hidden []string) error {
	var found []error
	for file, mark := range map[string]string{v.logFile(): "core: post-unseal setup complete", v.auditFile(): `"mount_type":"` + pluginName} {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		// What is not the right file in the right format could hide anything.
		if !bytes.Contains(content, []byte(mark)) {
			found = append(found, fmt.Errorf("%s does not hold %q: is it the file?", filepath.Base(file), mark))
		}
		for _, value := range hidden {
			at := bytes.Index(content, []byte(value[:min(len(value), visible)]))
			if at < 0 {
				continue
			}
			line := content[bytes.LastIndexByte(content[:at], '\n')+1:]
			line, _, _ = bytes.Cut(line, []byte("\n"))
			found = append(found, fmt.Errorf("%s holds a secret, a token or a password in the clear: %s", filepath.Base(file), line))
		}
	}
	return errors.Join(found...)
}

// noise are the lines of the server's log that tell nothing of a plugin's fault.
var noise = regexp.MustCompile(`\[TRACE\]|\[DEBUG\] (?:audit|core|identity|expiration|storage)`)

// logTail returns the last lines of the server's log, without the noise.
func (v *vault) logTail() string {
	const lines = 20
	log, err := os.ReadFile(v.logFile())
	if err != nil {
		return err.Error()
	}
	telling := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(log)), "\n"), noise.MatchString)
	return strings.Join(telling[max(0, len(telling)-lines):], "\n")
}

// ownVault starts a server for one test.
func ownVault(t *testing.T) *vault {
	t.Helper()
	v, err := newVault(filepath.Join(t.TempDir(), "vault"))
	must(t, err)
	t.Cleanup(func() {
		defer v.destroy()
		if t.Failed() {
			return
		}
		must(t, v.stop())
		must(t, v.leaks(v.everyHidden()))
	})
	must(t, v.setUp())
	return v
}
