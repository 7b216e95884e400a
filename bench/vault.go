//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const (
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
	*vaulttest.Server

	reader    string   // the token that reads
	expected  []string // what the answers hold, by subject
	simulator func()   // stops the simulator

	processes map[string][]int // by plugin, the server's under ""; nil without /proc
}

// startVault starts the server. stop has to follow, but after an error.
func startVault(ctx context.Context, dir string) (*vault, error) {
	host, err := vaulttest.FindHost(ctx)
	if err != nil {
		return nil, err
	}
	server, err := vaulttest.New(vaulttest.Config{Host: host, Dir: filepath.Join(dir, "vault"), LogLevel: "warn"})
	if err != nil {
		return nil, err
	}
	v := &vault{Server: server}
	err = v.SetUp(ctx)
	if err == nil {
		err = v.fill(ctx, dir)
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

// fill mounts the subjects, gives each something to answer, and makes the token
// that reads them. It keeps copies of the plugins' programs in dir.
func (v *vault) fill(ctx context.Context, dir string) error {
	for name, program := range programs {
		plugin, err := vaulttest.FindPlugin(name, "", program, dir)
		if err == nil {
			err = v.Install(plugin)
		}
		if err == nil {
			err = v.Register(ctx, plugin)
		}
		if err != nil {
			return fmt.Errorf("%s from %q: %w", name, program, err)
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
		err := v.Await(ctx, "store a secret", func() error {
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

// findProcesses notes whose processor time is measured.
func (v *vault) findProcesses() error {
	v.processes = children(v.PID())
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
	if err := v.DisableAudit(ctx); err != nil || !on {
		return err
	}
	return v.EnableAudit(ctx)
}

// stop ends the server, its plugins and the simulator.
func (v *vault) stop() {
	if v.Running() {
		_ = v.Stop() // what does not end in order is ended by force
	}
	v.End()
	if v.simulator != nil {
		v.simulator()
	}
}
