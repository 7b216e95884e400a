//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// runningVersion returns the version of the plugin that the mount runs.
func (e *engine) runningVersion(t *testing.T) string {
	t.Helper()
	mounts, err := e.vault.Sys().ListMounts()
	must(t, err)
	return mounts[e.path+"/"].RunningVersion
}

// runVersion lets the mount run another registered version of the plugin, in the
// two steps in which an operator does it: the first takes effect with the second.
// The scope is that of the reload, empty or "global".
func (e *engine) runVersion(t *testing.T, version, scope string) {
	t.Helper()
	before := e.runningVersion(t)
	must(t, e.vault.Sys().TuneMountAllowNil(e.path, api.TuneMountConfigInput{PluginVersion: new(version)}))
	if got := e.runningVersion(t); got != before {
		t.Errorf("before the reload version %s runs, want still %s", got, before)
	}
	_, err := e.vault.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{e.path + "/"}, Scope: scope})
	must(t, err)
	if got := e.runningVersion(t); got != version {
		t.Errorf("version %s runs, want %s", got, version)
	}
}

// otherVersion is an earlier release if there is one to be had, or else the same under
// another version.
func otherVersion(t *testing.T) vaulttest.Plugin {
	t.Helper()
	previous := os.Getenv("PREVIOUS_PLUGIN")
	if previous == "" {
		return buildPlugin(t, "v99.0.0")
	}
	p, err := pluginAt(t.Context(), previous, t.TempDir())
	must(t, err)
	return p
}

// The plugin is replaced by another version on a running Vault, up and down again,
// while readers read on: they see no failure and no dead token, and WeChat sees no
// call that is not due. What is stored, and a leak response halfway, come through.
func TestUpgradeAndDowngradeUnderLoad(t *testing.T) {
	t.Parallel()
	const (
		readers = 8
		// A token is replaced period after it was issued.
		life   = 30 * time.Second
		period = 10 * time.Second
	)
	v := ownVault(t)
	e := newEngineOn(t, v)
	beside := e.beside(t) // a mount that is not upgraded
	lasting, brief, all := map[string]fields{}, map[string]fields{}, map[string]fields{}
	for i := range 4 {
		name := fmt.Sprintf("team-%d/lasting", i)
		lasting[name] = e.account(wechatsim.Account{})
		all[name] = lasting[name]
		name = fmt.Sprintf("team-%d/brief", i)
		brief[name] = e.account(wechatsim.Account{Lifetime: life, Overlap: life - 5*time.Second})
		all[name] = brief[name]
	}
	leaking := e.account(wechatsim.Account{ForceKeepsOld: true})
	all["leaked"] = leaking
	for name, account := range all {
		e.configure(t, name, account, noSync)
	}
	beside.configure(t, "myapp", e.account(wechatsim.Account{}), noSync)
	configured := time.Now()
	tokens, configs := map[string]*api.Secret{}, map[string]fields{}
	for name := range lasting {
		tokens[name], configs[name] = e.token(t, name), e.config(t, name)
	}
	other := beside.token(t, "myapp")
	leaked := e.token(t, "leaked")

	built := otherVersion(t)
	must(t, v.Install(built))
	must(t, v.Register(t.Context(), built))
	e.SetLatency(answerTime)
	load := newLoad(t, []*vaulttest.Server{v}, readers, e, all)
	_, err := e.rotate("leaked", revoking)
	must(t, err)

	replaced := 0
	for _, step := range []struct{ what, version string }{
		{"to the other version", built.Version},
		{"back", subject.plugin.Version},
		{"to the other version once more", built.Version},
	} {
		if !t.Run(step.what, func(t *testing.T) {
			began := time.Now()
			before := pluginsOf(t, v)
			e.runVersion(t, step.version, "")
			replaced++
			t.Logf("the new version runs after %s", time.Since(began).Round(time.Millisecond))
			for name := range lasting {
				sameToken(t, tokens[name], e.token(t, name))
				sameFields(t, configs[name], e.config(t, name))
			}
			if status := e.statusOf(t, "leaked"); len(e.forcedCalls(leaking)) == 1 {
				is(t, status, fields{"revocation": "pending", "rotations_remaining": number(19)})
			}
			// The version that came is at work in the background, too.
			for name, account := range brief {
				calls := e.calls(account)
				eventually(t, patience, name+" is refreshed", func() bool { return e.calls(account) > calls })
			}
			if after := pluginsOf(t, v); slices.Equal(before, after) {
				t.Errorf("the plugin's processes are still %v", before)
			}
			sameToken(t, other, beside.token(t, "myapp"))
			seen := load.take(t)
			t.Logf("readers saw %s", seen)
			if seen.reads == 0 || len(seen.failures) > 0 {
				t.Error("Vault holds requests back while it reloads: every read has to succeed")
			}
		}) {
			return
		}
	}
	if got := beside.runningVersion(t); got != subject.plugin.Version {
		t.Errorf("the other mount runs version %s, want %s", got, subject.plugin.Version)
	}
	e.revocationEnds(t, "leaked", leaking, leaked, 2)
	load.end()
	load.take(t)

	for name, account := range lasting {
		if n := e.calls(account); n != 1 {
			t.Errorf("there were %d calls for %s, want the one that verified it", n, name)
		}
	}
	// A version may end between an answer and its storage.
	most := int(time.Since(configured)/period) + 1 + replaced
	for name, account := range brief {
		if n := e.calls(account); n > most {
			t.Errorf("there were %d calls for %s, want no more than %d", n, name, most)
		}
		e.sawForced(t, account, 0, 0)
	}
}

// A pin holds every mount of a plugin at one version. Vault refuses to tune a mount to
// another, and starts the version to which the pin is moved.
func TestAPinIsMovedInPlaceOfATune(t *testing.T) {
	t.Parallel()
	if !subject.host.IsVault(1, 17) {
		t.Skip("it has no pins")
	}
	v := ownVault(t)
	e := newEngineOn(t, v)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account)
	token := e.token(t, "myapp")
	other := buildPlugin(t, "v99.0.0")
	must(t, v.Install(other))
	must(t, v.Register(t.Context(), other))

	administrator := e.login(t, e.policy(t, "administrator"))
	pin := func(version string) {
		t.Helper()
		_, err := administrator.Logical().Write(aPin, fields{"version": version})
		must(t, err)
		answer, err := administrator.Logical().Read(aPin)
		must(t, err)
		is(t, answer.Data, fields{"version": version})
	}
	pin(subject.plugin.Version)
	err := v.Sys().TuneMountAllowNil(e.path, api.TuneMountConfigInput{PluginVersion: new(other.Version)})
	refused(t, err, http.StatusBadRequest, "plugin_version cannot be set")
	pin(other.Version)
	_, err = administrator.Sys().RootReloadPlugin(t.Context(), &api.RootReloadPluginInput{Plugin: pluginName})
	must(t, err)
	if got := e.runningVersion(t); got != other.Version {
		t.Errorf("version %s runs, want that of the pin, %s", got, other.Version)
	}
	sameToken(t, token, e.token(t, "myapp"))
	_, err = administrator.Logical().Delete(aPin)
	must(t, err)
}
