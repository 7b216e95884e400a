//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const (
	// patience bounds what a healthy server does within a few seconds.
	patience = time.Minute

	enginePlugin = "vault-plugin-secrets-wechat"
	kvPlugin     = "vault-plugin-secrets-kv"
	floorPlugin  = "floor"
)

// subject is a read that is measured.
type subject struct {
	name   string
	path   string // below /v1/
	plugin string // the external plugin that answers, empty if Vault does itself
}

// subjects are indexed by these.
const (
	engine = iota
	externalKV
	builtinKV
	lookupSelf
	floor
)

var subjects = []subject{
	engine:     {"this engine, `token/:name`", "wechat/token/bench", enginePlugin},
	externalKV: {"KV v2, external plugin", "kv-external/data/bench", kvPlugin},
	builtinKV:  {"KV v2, built in", "kv-builtin/data/bench", ""},
	lookupSelf: {"`auth/token/lookup-self`", "auth/token/lookup-self", ""},
	floor:      {"floor", "floor/token/bench", floorPlugin},
}

// policy admits to the subjects, and to nothing else.
const policy = `
path "wechat/token/bench"     { capabilities = ["read"] }
path "kv-external/data/bench" { capabilities = ["read"] }
path "kv-builtin/data/bench"  { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "floor/token/bench"      { capabilities = ["read"] }
`

// programs is where the environment says they are, by their plugins' names.
var programs = map[string]string{
	enginePlugin: os.Getenv("WECHAT_PLUGIN"),
	kvPlugin:     os.Getenv("KV_PLUGIN"),
	floorPlugin:  os.Getenv("FLOOR_PLUGIN"),
}

// vault is a running server with one node on integrated storage, with all
// subjects mounted.
type vault struct {
	*api.Client // with the root token

	reader   string   // the token that reads
	expected []string // what the answers hold, by subject

	dir       string
	command   *exec.Cmd
	exited    chan struct{} // closed when the server is gone
	guard     *exec.Cmd
	dismiss   io.Closer // makes the guard end whatever is left of the server
	simulator func()    // stops the simulator

	version   string
	processes map[string][]int // by plugin, the server's under ""; nil without /proc
}

// startVault starts the server. stop has to follow, but after an error.
func startVault(ctx context.Context, dir string) (*vault, error) {
	program := os.Getenv("VAULT_BIN")
	// Neither the server nor its client here may follow what is set for another.
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "VAULT_") {
			if err := os.Unsetenv(name); err != nil {
				return nil, err
			}
		}
	}
	// Vault refuses a plugin directory that is reached by a symbolic link.
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	v := &vault{dir: dir}
	err = v.launch(ctx, program)
	if err == nil {
		err = v.unseal(ctx)
	}
	if err == nil {
		err = v.fill(ctx)
	}
	if err == nil {
		err = v.findProcesses()
	}
	if err != nil {
		v.stop()
		return nil, err
	}
	return v, nil
}

// launch starts the program, and waits until it answers.
func (v *vault) launch(ctx context.Context, program string) error {
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	settings, err := json.Marshal(map[string]any{
		"storage":          map[string]any{"raft": map[string]any{"path": v.dir, "node_id": "bench"}},
		"listener":         map[string]any{"tcp": map[string]any{"address": address, "tls_disable": true}},
		"api_addr":         "http://" + address,
		"cluster_addr":     fmt.Sprintf("http://127.0.0.1:%d", port+1),
		"disable_mlock":    true,
		"plugin_directory": v.pluginDir(),
		"log_level":        "warn",
	})
	if err != nil {
		return err
	}
	file := filepath.Join(v.dir, "vault.json")
	if err := os.WriteFile(file, settings, 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(v.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()

	// In a group of its own with its plugins, so that an interrupt from the
	// terminal reaches only us, and we end it in order.
	v.command = exec.Command(program, "server", "-config", file) //nolint:gosec,noctx // the program to measure; stop ends it
	v.command.Stdout, v.command.Stderr = log, log
	v.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := v.command.Start(); err != nil {
		v.command = nil
		return fmt.Errorf("VAULT_BIN: %w", err)
	}
	v.exited = make(chan struct{})
	go func() {
		_ = v.command.Wait() // how it ended is in its log
		close(v.exited)
	}()

	// However we end, so does the pipe, and the shell kills what we started.
	v.guard = exec.Command("sh", "-c", `read -r _; kill -s KILL -- "-$0"`, strconv.Itoa(v.command.Process.Pid)) //nolint:gosec,noctx // a number; stop ends it
	v.guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if v.dismiss, err = v.guard.StdinPipe(); err != nil {
		return err
	}
	if err := v.guard.Start(); err != nil {
		return err
	}

	conf := api.DefaultConfig()
	if conf.Error != nil {
		return conf.Error
	}
	conf.Address = "http://" + address
	if v.Client, err = api.NewClient(conf); err != nil {
		return err
	}
	return v.await(ctx, "answer", func() error {
		_, err := v.Sys().SealStatusWithContext(ctx)
		return err
	})
}

func (v *vault) logFile() string   { return filepath.Join(v.dir, "server.log") }
func (v *vault) auditFile() string { return filepath.Join(v.dir, "audit.log") }
func (v *vault) pluginDir() string { return filepath.Join(v.dir, "plugins") }

// freePort returns a port that is free, and so is the next one, where Vault
// serves its cluster. The system does not hand such ports out to clients.
func freePort(ctx context.Context) (int, error) {
	var listen net.ListenConfig
	var err error
	for range 100 {
		port := 25000 + 2*mathrand.IntN(2500) //nolint:gosec // need not be hard to guess
		var first, second net.Listener
		if first, err = listen.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
			continue
		}
		second, err = listen.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		_ = first.Close()
		if err == nil {
			return port, second.Close()
		}
	}
	return 0, fmt.Errorf("no free port: %w", err)
}

// await repeats what the server needs a moment for.
func (v *vault) await(ctx context.Context, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
			continue
		case <-v.exited:
		case <-ctx.Done():
		}
		log, _ := os.ReadFile(v.logFile()) // the error tells enough without it
		return fmt.Errorf("the server does not %s: %w; its log is\n%s", what, err, log)
	}
}

// unseal initialises the server, and waits until it is active.
func (v *vault) unseal(ctx context.Context) error {
	keys, err := v.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return err
	}
	v.SetToken(keys.RootToken)
	if _, err := v.Sys().UnsealWithContext(ctx, keys.Keys[0]); err != nil {
		return err
	}
	return v.await(ctx, "become active", func() error {
		health, err := v.Sys().HealthWithContext(ctx)
		if err == nil && (health.Sealed || health.Standby) {
			err = fmt.Errorf("sealed: %t, standby: %t", health.Sealed, health.Standby)
		}
		if err == nil {
			v.version = health.Version
		}
		return err
	})
}

// fill mounts the subjects, gives each something to answer, and makes the token
// that reads them.
func (v *vault) fill(ctx context.Context) error {
	if err := os.Mkdir(v.pluginDir(), 0o700); err != nil {
		return err
	}
	for plugin, program := range programs {
		if err := v.register(ctx, plugin, program); err != nil {
			return fmt.Errorf("%s from %q: %w", plugin, program, err)
		}
	}
	for path, plugin := range map[string]string{"wechat": enginePlugin, "kv-external": kvPlugin, "kv-builtin": "kv", "floor": floorPlugin} {
		if err := v.Sys().MountWithContext(ctx, path, &api.MountInput{Type: plugin}); err != nil {
			return err
		}
	}
	// Vault takes the version of KV for an external plugin only by tuning.
	second := map[string]string{"version": "2"}
	for _, path := range []string{"kv-external", "kv-builtin"} {
		if err := v.Sys().TuneMountAllowNilWithContext(ctx, path, api.TuneMountConfigInput{Options: &second}); err != nil {
			return err
		}
	}

	simulator := wechatsim.New()
	account, secret := "wx"+hex.EncodeToString(random(8)), hex.EncodeToString(random(16))
	simulator.SetAccount(account, wechatsim.Account{Secret: secret})
	platform, stop, err := simulator.Start()
	if err != nil {
		return err
	}
	v.simulator = stop
	_, err = v.Logical().WriteWithContext(ctx, "wechat/config/bench", map[string]any{
		"appid": account, "secret": secret, "base_url": platform,
	})
	if err != nil {
		return err
	}
	token, err := v.Logical().ReadWithContext(ctx, subjects[engine].path)
	if err != nil {
		return err
	}
	for _, s := range []int{externalKV, builtinKV} {
		// Just mounted, it may still be occupied with its upgrade from version 1.
		err := v.await(ctx, "store a secret", func() error {
			_, err := v.Logical().WriteWithContext(ctx, subjects[s].path, map[string]any{"data": token.Data})
			return err
		})
		if err != nil {
			return err
		}
	}

	if err := v.Sys().PutPolicyWithContext(ctx, "bench", policy); err != nil {
		return err
	}
	reader, err := v.Auth().Token().CreateWithContext(ctx, &api.TokenCreateRequest{
		Policies: []string{"bench"}, NoDefaultPolicy: true, Period: "24h",
	})
	if err != nil {
		return err
	}
	v.reader = reader.Auth.ClientToken
	held := fmt.Sprint(token.Data["access_token"])
	v.expected = []string{
		engine: held, externalKV: held, builtinKV: held,
		lookupSelf: reader.Auth.Accessor,
		floor:      `"access_token":"0123456789abcdef`,
	}
	return nil
}

// register copies a program into the plugin directory, and makes it known.
func (v *vault) register(ctx context.Context, name, program string) error {
	binary, err := os.ReadFile(program) //nolint:gosec // that is what the caller asks for
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(v.pluginDir(), name), binary, 0o700); err != nil { //nolint:gosec // a program
		return err
	}
	sum := sha256.Sum256(binary)
	return v.Sys().RegisterPluginWithContext(ctx, &api.RegisterPluginInput{
		Name: name, Type: api.PluginTypeSecrets, Command: name, SHA256: hex.EncodeToString(sum[:]),
	})
}

// findProcesses notes whose processor time is measured.
func (v *vault) findProcesses() error {
	v.processes = children(v.command.Process.Pid)
	if v.processes == nil {
		return nil // not on Linux
	}
	for plugin := range programs {
		if len(v.processes[plugin]) == 0 {
			return fmt.Errorf("the server runs %s in no process of its own", plugin)
		}
	}
	return nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// setAudit gives the server an audit device with an empty file, or none.
func (v *vault) setAudit(ctx context.Context, on bool) error {
	if err := v.Sys().DisableAuditWithContext(ctx, "file"); err != nil { // succeeds without one
		return err
	}
	if err := os.RemoveAll(v.auditFile()); err != nil || !on {
		return err
	}
	return v.Sys().EnableAuditWithOptionsWithContext(ctx, "file", &api.EnableAuditOptions{
		Type: "file", Options: map[string]string{"file_path": v.auditFile()},
	})
}

// stop ends the server, its plugins and the simulator.
func (v *vault) stop() {
	if v.command != nil {
		_ = v.command.Process.Signal(syscall.SIGTERM) // fails if it has ended
		select {
		case <-v.exited:
		case <-time.After(patience):
		}
	}
	if v.dismiss != nil {
		_ = v.dismiss.Close() // now the guard kills what is left
		_ = v.guard.Wait()    // which fails if nothing was left
	}
	if v.simulator != nil {
		v.simulator()
	}
}
