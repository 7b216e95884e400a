//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// A server was unsealed without the plugin's binary, which came later, with a reload:
// Vault then refuses the mount every write, "cannot write to storage during setup",
// until it is sealed and unsealed. What WeChat has answered is served all the same, without
// being asked for again, status/ names the remedy, and nothing is forced.
func TestServerThatCameUpWithoutTheBinary(t *testing.T) {
	t.Parallel()
	v := ownVault(t)
	e := newEngineOn(t, v)
	lasting, brief := e.account(wechatsim.Account{}), e.account(wechatsim.Account{Lifetime: 40 * time.Second, Overlap: 30 * time.Second})
	e.configure(t, "lasting", lasting, noSync)
	e.configure(t, "brief", brief, noSync)
	token, stored := e.token(t, "lasting"), e.token(t, "brief")

	binary := filepath.Join(v.PluginDir(), subject.plugin.Command())
	must(t, v.Stop())
	pluginEnds(t, v)
	must(t, os.Remove(binary))
	must(t, v.Start(t.Context()))
	if answer, err := e.readToken("lasting"); err == nil && answer != nil {
		t.Fatal("a token was read from a plugin without a binary")
	}

	must(t, v.Install(subject.plugin))
	_, err := v.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{e.path + "/"}})
	must(t, err)
	sameToken(t, token, e.tokenAgain(t, "lasting"))
	var served *api.Secret
	eventually(t, patience, "the token that was due is replaced", func() bool {
		answer, err := e.readToken("brief")
		if err != nil || accessToken(answer) == accessToken(stored) {
			return false
		}
		served = answer
		return true
	})
	otherToken(t, stored, served)
	calls := e.calls(brief)
	status := e.statusOf(t, "brief")
	is(t, status, fields{"state": "degraded", "last_vault_rotation": served.Data["last_vault_rotation"]})
	last, _ := status["last_error"].(fields)
	is(t, last, fields{"class": "storage", "errcode": nil})
	for field, word := range map[string]string{"message": "during setup", "advice": "restart"} {
		if text, _ := last[field].(string); !strings.Contains(text, word) {
			t.Errorf("%s does not hold %q: %v", field, word, last[field])
		}
	}
	for range 20 {
		sameToken(t, served, e.token(t, "brief"))
	}
	if n := e.calls(brief) - calls; n != 0 {
		t.Errorf("WeChat was asked %d times more for a token that it had given", n)
	}
	_, err = e.rotate("lasting")
	refused(t, err, http.StatusInternalServerError, "during setup", "was not replaced", "what to do: restart Vault")
	if strings.Contains(err.Error(), "try again") {
		t.Errorf("trying again is no use: %v", err)
	}
	e.sawForced(t, lasting, 0, 0)
	sameToken(t, token, e.token(t, "lasting"))

	// The remedy.
	must(t, v.Sys().Seal())
	pluginEnds(t, v)
	must(t, v.Unseal(t.Context()))
	sameToken(t, token, e.tokenAgain(t, "lasting"))
	e.tokenAgain(t, "brief")
	eventually(t, patience, "the account is healthy", func() bool { return e.statusOf(t, "brief")["state"] == "healthy" })
	is(t, e.statusOf(t, "brief"), fields{"last_error": nil})
	e.rotated(t, "lasting", 19)
}
