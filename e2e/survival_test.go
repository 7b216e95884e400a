//go:build e2e

package e2e

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestTokenSurvives(t *testing.T) {
	t.Parallel()
	v := ownVault(t)
	e := newEngineOn(t, v)
	account := e.account(wechatsim.Account{})
	short := e.account(wechatsim.Account{Lifetime: 8 * time.Second, Overlap: 6 * time.Second})
	e.configure(t, "myapp", account, noSync)
	e.configure(t, "short", short)
	config, token := e.config(t, "myapp"), e.token(t, "myapp")

	for _, test := range []struct {
		what    string
		disturb func(t *testing.T)
	}{
		{"reload of the mount", func(t *testing.T) {
			t.Helper()
			_, err := v.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{e.path + "/"}})
			must(t, err)
		}},
		{"reload of the plugin", func(t *testing.T) {
			t.Helper()
			_, err := v.Sys().ReloadPlugin(&api.ReloadPluginInput{Plugin: pluginName})
			must(t, err)
		}},
		{"kill -9 of the plugin", func(t *testing.T) {
			t.Helper()
			killPlugin(t, v)
			// Until Vault has noticed, requests fail as if they had been in flight.
			eventually(t, patience, "the plugin works again", func() bool {
				_, err := e.readToken("myapp")
				return err == nil
			})
		}},
		{"seal and unseal of Vault", func(t *testing.T) {
			t.Helper()
			must(t, v.Sys().Seal())
			_, err := e.readToken("myapp")
			refused(t, err, http.StatusServiceUnavailable)
			pluginEnds(t, v)
			must(t, v.Unseal(t.Context()))
		}},
		{"stop and start of Vault", func(t *testing.T) {
			t.Helper()
			must(t, v.Stop())
			pluginEnds(t, v)
			must(t, v.Start(t.Context()))
		}},
		{"kill -9 of Vault", func(t *testing.T) {
			t.Helper()
			if len(pluginsOf(t, v)) == 0 {
				t.Fatal("no process of the plugin is found")
			}
			must(t, v.Kill())
			pluginEnds(t, v)
			must(t, v.Start(t.Context()))
		}},
	} {
		t.Run(test.what, func(t *testing.T) {
			test.disturb(t)
			sameToken(t, token, e.token(t, "myapp"))
			sameFields(t, config, e.config(t, "myapp"))
			if n := e.calls(account); n != 1 {
				t.Errorf("there were %d calls for the account, want the one that verified it", n)
			}
			before := e.calls(short)
			eventually(t, patience, "the other account's token is refreshed without readers", func() bool {
				return e.calls(short) >= before+2
			})
			e.token(t, "short")
		})
	}
}

// Without a reader it is Vault's tick that starts the killed plugin again, once a
// minute.
func TestKilledPluginRefreshesAgainWithoutReaders(t *testing.T) {
	t.Parallel()
	v := ownVault(t)
	e := newEngineOn(t, v)
	account := e.account(wechatsim.Account{Lifetime: 8 * time.Second, Overlap: 6 * time.Second})
	e.configure(t, "myapp", account)
	old := e.token(t, "myapp")
	killPlugin(t, v)
	pluginEnds(t, v)
	before := e.calls(account)
	eventually(t, 150*time.Second, "the token is refreshed again", func() bool { return e.calls(account) >= before+2 })
	otherToken(t, old, e.token(t, "myapp"))
}

func TestDeletedAccountStaysDeletedAcrossARestart(t *testing.T) {
	t.Parallel()
	v := ownVault(t)
	e := newEngineOn(t, v)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account)
	e.configure(t, "team-a/shop", e.account(wechatsim.Account{}), noSync)
	shop := e.token(t, "team-a/shop")
	_, err := v.Logical().Delete(e.path + "/config/myapp")
	must(t, err)
	must(t, v.Kill())
	pluginEnds(t, v)
	must(t, v.Start(t.Context()))
	e.absent(t, "myapp")
	sameToken(t, shop, e.token(t, "team-a/shop"))
	if n := e.calls(account); n != 1 {
		t.Errorf("there were %d calls for the account, want the one that verified it", n)
	}
}

// stored lists the keys that the mount keeps in storage under a prefix.
func (e *engine) stored(t *testing.T, prefix string) []string {
	t.Helper()
	mounts, err := e.vault.Sys().ListMounts()
	must(t, err)
	answer, err := e.vault.Logical().List("sys/raw/logical/" + mounts[e.path+"/"].UUID + "/" + prefix)
	must(t, err)
	return keys(answer)
}

// announced lists the entries of the mount's write-ahead log but for the records of forced
// calls: these stay for the five minutes after a start in which an instance before it may
// still write.
func (e *engine) announced(t *testing.T) []string {
	t.Helper()
	mounts, err := e.vault.Sys().ListMounts()
	must(t, err)
	var all []string
	for _, id := range e.stored(t, "wal") {
		entry, err := e.vault.Logical().Read("sys/raw/logical/" + mounts[e.path+"/"].UUID + "/wal/" + id)
		must(t, err)
		if entry == nil {
			continue // withdrawn meanwhile
		}
		if value, _ := entry.Data["value"].(string); !strings.Contains(value, `"type":"guard"`) {
			all = append(all, id)
		}
	}
	return all
}

// killPluginInAChange kills the plugin's processes at a moment at which a change
// is announced and not finished, and adds the announcements that this leaves
// behind to cut, which holds those of earlier kills. A stopped process announces
// nothing and withdraws nothing, so that there is time to look.
func (e *engine) killPluginInAChange(t *testing.T, cut map[string]bool) {
	t.Helper()
	eventually(t, patience, "the plugin is killed in the midst of a change", func() bool {
		pids := pluginsOf(t, e.vault)
		signal := func(s syscall.Signal) {
			for _, pid := range pids {
				must(t, syscall.Kill(pid, s))
			}
		}
		signal(syscall.SIGSTOP)
		announced := slices.DeleteFunc(e.announced(t), func(id string) bool { return cut[id] })
		if len(announced) == 0 {
			signal(syscall.SIGCONT)
			return false
		}
		signal(syscall.SIGKILL)
		before := len(cut)
		left := e.announced(t) // without those whose withdrawal was on its way
		for _, id := range announced {
			if slices.Contains(left, id) {
				cut[id] = true
			}
		}
		return len(cut) > before
	})
}

// Creating an account, its becoming another one, and its deletion take several
// writes. Whatever moment the plugin is killed at, what is left behind is
// removed by the rollback of the write-ahead log, within two of Vault's ticks.
func TestChangesCutOffByAKillAreCleanedUp(t *testing.T) {
	t.Parallel()
	v := ownVault(t)
	e := newEngineOn(t, v)
	names := []string{"a", "b", "c", "d"}

	ctx, finish := context.WithCancel(t.Context())
	var changing sync.WaitGroup
	var changes atomic.Int32
	for _, name := range names {
		first, second := e.account(wechatsim.Account{}), e.account(wechatsim.Account{})
		changing.Go(func() {
			// Errors are what a kill looks like from here.
			for ctx.Err() == nil {
				_, _ = e.write(name, first)
				_, _ = e.write(name, second)
				if _, err := v.Logical().Delete(e.path + "/config/" + name); err == nil {
					changes.Add(1)
				}
			}
		})
	}
	cut := map[string]bool{}
	for range 5 {
		before := changes.Load()
		eventually(t, patience, "changes", func() bool { return changes.Load() >= before+4 })
		e.killPluginInAChange(t, cut)
	}
	finish()
	changing.Wait()
	eventually(t, patience, "the plugin works again", func() bool {
		_, err := v.Logical().List(e.path + "/config")
		return err == nil
	})
	t.Logf("%d of the changes were cut off", len(cut))
	eventually(t, 3*time.Minute, "the write-ahead log is worked off", func() bool { return e.announced(t) == nil })
	configs := e.stored(t, "config")
	for _, name := range e.stored(t, "token") {
		if !slices.Contains(configs, name) {
			t.Errorf("the token of %s is stored, and no configuration", name)
		}
	}
	for _, name := range names {
		if !slices.Contains(configs, name) {
			e.absent(t, name)
			continue
		}
		token, want := e.token(t, name), e.config(t, name)["appid"]
		if appid, _ := e.Check(accessToken(token)); appid != want || token.Data["appid"] != want {
			t.Errorf("%s has the token of %s, said to be that of %s; its appid is %s", name, appid, token.Data["appid"], want)
		}
	}
}
