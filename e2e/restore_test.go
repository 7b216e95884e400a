//go:build e2e

package e2e

import (
	"bytes"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// Storage is set back by a restored snapshot, and WeChat is not. What an operator
// wrote is right at once, as of the snapshot. A token that was replaced by force since
// then is dead, and served until it is compared with WeChat's or until
// `vault write -f wechat/refresh/<name>`, which makes it right with one normal call.
// Forced refreshes since the snapshot are forgotten, and a leak response that was
// half done then is completed once more.
func TestRestoredSnapshotIsMadeRightByOneCommandPerAccount(t *testing.T) {
	t.Parallel()
	v := ownVault(t)
	e := newEngineOn(t, v)
	account, compared, untouched, leaking := e.account(wechatsim.Account{}), e.account(wechatsim.Account{}), e.account(wechatsim.Account{}), e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	e.configure(t, "compared", compared, fields{"sync_interval": "1m"})
	e.configure(t, "untouched", untouched, noSync)
	e.configure(t, "leaked", leaking, noSync)
	e.configure(t, "removed", e.account(wechatsim.Account{}), noSync)
	old, config := e.token(t, "myapp"), e.config(t, "myapp")
	others := map[string]string{
		"compared":  accessToken(e.token(t, "compared")),
		"untouched": accessToken(e.token(t, "untouched")),
	}
	e.rotated(t, "leaked", 19, revoking)

	var snapshot bytes.Buffer
	must(t, v.Sys().RaftSnapshot(&snapshot))

	// What the snapshot knows nothing of.
	otherToken(t, old, e.rotated(t, "myapp", 19))
	e.rotated(t, "compared", 19)
	e.configure(t, "myapp", fields{"max_ttl": "1m"})
	e.configure(t, "later", e.account(wechatsim.Account{}), noSync)
	_, err := v.Logical().Delete(e.path + "/config/removed")
	must(t, err)
	eventually(t, patience, "the revocation is complete", func() bool { return e.statusOf(t, "leaked")["revocation"] != "pending" })
	if n := len(e.forcedCalls(leaking)); n != 2 {
		t.Errorf("the revocation took %d forced calls, want 2", n)
	}

	must(t, v.Sys().RaftSnapshotRestore(&snapshot, false))
	restored := time.Now()

	// At once: the accounts, the old token, and nothing of what was forced.
	eventually(t, patience, "the snapshot is served", func() bool {
		answer, err := e.readToken("myapp")
		return err == nil && accessToken(answer) == accessToken(old)
	})
	dead, err := e.readToken("myapp")
	must(t, err)
	sameToken(t, old, dead)
	if code := e.refusedWith(dead); code != 40001 {
		t.Errorf("the platform answers the old token with errcode %d, want 40001: this tests nothing", code)
	}
	sameFields(t, config, e.config(t, "myapp"))
	is(t, e.statusOf(t, "myapp"), fields{"state": "healthy", "rotations_remaining": number(20)})
	e.absent(t, "later")
	e.token(t, "removed")
	if got := accessToken(e.token(t, "untouched")); got != others["untouched"] {
		t.Error("a token that was not replaced is another one")
	}

	// The command.
	before := e.calls(account)
	answer, err := e.vault.Logical().Write(e.path+"/refresh/myapp", nil)
	must(t, err)
	is(t, answer.Data, fields{"changed": true})
	now := e.token(t, "myapp")
	otherToken(t, old, now)
	if accessToken(now) != e.current(account) {
		t.Error("the token is not the one that WeChat has")
	}
	if n := e.calls(account) - before; n != 1 {
		t.Errorf("the command cost %d calls, want 1", n)
	}
	e.sawForced(t, account, 1, 1)

	// And without it: the first comparison.
	eventually(t, 2*time.Minute, "the token is compared with WeChat's", func() bool {
		answer, err := e.readToken("compared")
		return err == nil && accessToken(answer) == e.current(compared)
	})
	t.Logf("without the command the token was right %s after the restore", time.Since(restored).Round(time.Second))
	e.sawForced(t, compared, 1, 1)
	if n := e.calls(untouched); n != 1 {
		t.Errorf("there were %d calls for the untouched account, want the one that verified it", n)
	}

	eventually(t, 2*time.Minute, "the revocation is complete once more", func() bool {
		return e.statusOf(t, "leaked")["revocation"] != "pending"
	})
	if n := len(e.forcedCalls(leaking)); n < 3 {
		t.Errorf("there were %d forced calls for the leaked token, want one that completes the restored revocation", n)
	}
	e.token(t, "leaked")
}
