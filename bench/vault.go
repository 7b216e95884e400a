//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// programs is where the environment says they are, by their plugins' names.
var programs = map[string]string{
	enginePlugin: os.Getenv("WECHAT_PLUGIN"),
	kvPlugin:     os.Getenv("KV_PLUGIN"),
	floorPlugin:  os.Getenv("FLOOR_PLUGIN"),
}

// beforeProgram is another build of the engine to compare with, if there is one.
var beforeProgram = os.Getenv("BEFORE_PLUGIN")

// vault is a running server with one node on integrated storage, with all
// subjects mounted.
type vault struct {
	*vaulttest.Server

	platform *platform
	requests []request         // by subject
	plugins  map[string]string // the programs of the plugins that are mounted, by their names

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

// hasBefore tells whether there is another build of the engine to compare with.
func (v *vault) hasBefore() bool { return v.plugins[beforePlugin] != "" }

// fill mounts the subjects, gives each something to answer, and makes the token
// with which they are asked. It keeps copies of the plugins' programs in dir.
func (v *vault) fill(ctx context.Context, dir string) error {
	if err := v.mount(ctx, dir); err != nil {
		return err
	}
	var err error
	if v.platform, err = startPlatform(); err != nil {
		return err
	}
	account := map[string]any{"appid": v.platform.engine.appid, "secret": v.platform.engine.secret, "base_url": v.platform.baseURL}
	var cached *api.Secret
	for _, s := range []int{token, before} {
		if s == before && !v.hasBefore() {
			continue
		}
		mount, _, _ := strings.Cut(subjects[s].path, "/")
		if _, err := v.Logical().WriteWithContext(ctx, mount+"/config/bench", account); err != nil {
			return err
		}
		if cached, err = v.Logical().ReadWithContext(ctx, subjects[s].path); err != nil {
			return err
		}
	}
	for _, s := range []int{externalKV, builtinKV} {
		// Just mounted, it may still be occupied with its upgrade from version 1.
		err := v.Await(ctx, "store a secret", func() error {
			_, err := v.Logical().WriteWithContext(ctx, subjects[s].path, map[string]any{"data": cached.Data})
			return err
		})
		if err != nil {
			return err
		}
	}
	if _, err := v.Logical().WriteWithContext(ctx, "transit/keys/bench", nil); err != nil {
		return err
	}
	if err := v.checkSignature(ctx); err != nil {
		return err
	}

	if err := v.Sys().PutPolicyWithContext(ctx, "bench", policy()); err != nil {
		return err
	}
	client, err := v.Auth().Token().CreateWithContext(ctx, &api.TokenCreateRequest{
		Policies: []string{"bench"}, NoDefaultPolicy: true, Period: "24h",
	})
	if err != nil {
		return err
	}
	held := fmt.Sprint(cached.Data["access_token"])
	return v.prepare(ctx, client.Auth.ClientToken, []string{
		token: held, before: held, externalKV: held, builtinKV: held,
		lookupSelf: client.Auth.Accessor,
		floor:      `"access_token":"0123456789abcdef`,
		signRead:   `"url":"` + page + `"`, signWrite: `"url":"` + page + `"`, floorWrite: `"url":"` + page + `"`,
		transit: `"hmac":"vault:v1:`,
		login:   "", floorLogin: "",
	})
}

// mount installs, registers and mounts all that is measured.
func (v *vault) mount(ctx context.Context, dir string) error {
	v.plugins = maps.Clone(programs)
	mounts := map[string]string{
		"wechat": enginePlugin, "kv-external": kvPlugin, "kv-builtin": "kv", "floor": floorPlugin, "transit": "transit",
	}
	if beforeProgram != "" {
		v.plugins[beforePlugin], mounts["before"] = beforeProgram, beforePlugin
	}
	for name, program := range v.plugins {
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
	for path, plugin := range mounts {
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
	return nil
}

// checkSignature looks once whether WeChat accepts what is measured; the load looks
// only at the address.
func (v *vault) checkSignature(ctx context.Context) error {
	answer, err := v.Logical().WriteWithContext(ctx, subjects[signWrite].path, map[string]any{"url": page})
	if err != nil {
		return err
	}
	fields, err := json.Marshal(answer.Data)
	if err != nil {
		return err
	}
	var signature wechatsim.Signature
	if err := json.Unmarshal(fields, &signature); err != nil {
		return err
	}
	if !v.platform.CheckSignature(signature) {
		return errors.New("WeChat does not accept a signature")
	}
	return nil
}

// prepare makes the requests, which clientToken is sent with. The answers have to
// hold what is expected.
func (v *vault) prepare(ctx context.Context, clientToken string, expected []string) error {
	for s, text := range expected {
		subject := subjects[s]
		body := strings.Replace(subject.body, callPlace, v.platform.loginURL(), 1)
		req, err := http.NewRequestWithContext(ctx, subject.method, v.Address()+"/v1/"+subject.path, strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("X-Vault-Request", "true") // as Vault's own client does
		req.Header.Set("X-Vault-Token", clientToken)
		wire, err := onWire(req)
		if err != nil {
			return err
		}
		v.requests = append(v.requests, request{wire: wire, expected: text})
	}
	v.requests[login] = v.platform.minting(v.requests[login], v.platform.engine)
	v.requests[floorLogin] = v.platform.minting(v.requests[floorLogin], v.platform.user)
	call, err := v.platform.login(ctx)
	v.requests = append(v.requests, call)
	return err
}

// findProcesses notes whose processor time is measured.
func (v *vault) findProcesses() error {
	v.processes = children(v.PID())
	if v.processes == nil {
		return nil // not on Linux
	}
	for plugin := range v.plugins {
		if len(v.processes[plugin]) == 0 {
			return fmt.Errorf("the server runs %s in no process of its own", plugin)
		}
	}
	return nil
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
	if v.platform != nil && v.platform.stop != nil {
		v.platform.stop()
	}
}
