//go:build e2e

package e2e

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// refresh reports a token as rejected, or no token in particular if it is empty.
func (e *engine) refresh(name, rejected string) (*api.Secret, error) {
	report := fields{}
	if rejected != "" {
		report["rejected_token"] = rejected
	}
	return e.vault.Logical().Write(e.path+"/refresh/"+name, report)
}

// refreshed makes a report that has to be answered in this way, and for this
// number of calls, none of them forced.
func (e *engine) refreshed(t *testing.T, name string, account fields, rejected string, changed bool, calls int) {
	t.Helper()
	before := e.calls(account)
	answer, err := e.refresh(name, rejected)
	must(t, err)
	if answer.Data["changed"] != changed {
		t.Errorf("changed is %v, want %t", answer.Data["changed"], changed)
	}
	if n := e.calls(account) - before; n != calls {
		t.Errorf("the report cost %d calls, want %d", n, calls)
	}
	if n := len(e.forcedCalls(account)); n != 0 {
		t.Errorf("a report led to %d forced calls", n)
	}
	want := []string{"changed", "expire_time", "known", "last_vault_rotation", "ttl"}
	if got := slices.Sorted(maps.Keys(answer.Data)); !slices.Equal(got, want) {
		t.Errorf("the fields are %v, want %v", got, want)
	}
	token := e.token(t, name)
	for _, field := range []string{"last_vault_rotation", "expire_time"} {
		if answer.Data[field] != token.Data[field] {
			t.Errorf("%s is %v, and the token's %v", field, answer.Data[field], token.Data[field])
		}
	}
	if got := ttl(t, answer); got < 5 || got > 240 {
		t.Errorf("ttl is %d, want 5 to 240", got)
	}
}

// answersHold is for how long a report is answered from WeChat's last answer.
const answersHold = 10 * time.Second

// settle waits until a report of the account is not answered from WeChat's last
// answer any more.
func (e *engine) settle(account fields) {
	calls := e.Calls(account["appid"].(string))
	time.Sleep(time.Until(calls[len(calls)-1].Time.Add(answersHold + time.Second)))
}

func TestRejectedTokenThatIsAnEarlierOneCostsNoCall(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	earlier := accessToken(e.token(t, "myapp"))
	e.settle(account)
	e.hide(e.ForceOutside(account["appid"].(string)))
	e.refreshed(t, "myapp", account, "", true, 1)
	e.settle(account)
	e.refreshed(t, "myapp", account, earlier, true, 0)
}

// The token of another account, or one cut off in a log, is no reason to believe that the
// account's own is good.
func TestRejectedTokenThatIsNotKnownCostsOneCall(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	e.settle(account)
	unknown := e.hide(random())
	e.refreshed(t, "myapp", account, unknown, false, 1)
	e.settle(account)
	e.hide(e.ForceOutside(account["appid"].(string)))
	e.refreshed(t, "myapp", account, unknown, true, 1)
}

func TestRejectedTokenThatWasReplacedOutsideCostsOneCall(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	old := e.token(t, "myapp")
	e.settle(account)
	outside := e.hide(e.ForceOutside(account["appid"].(string)))
	e.refreshed(t, "myapp", account, accessToken(old), true, 1)
	otherToken(t, old, e.token(t, "myapp"))
	if accessToken(e.token(t, "myapp")) != outside {
		t.Error("the token is not the one that was issued to another caller")
	}
	// A late report of the old one learns of the new one at once.
	e.refreshed(t, "myapp", account, accessToken(old), true, 0)
}

func TestReportReachesTheOtherNamesOfTheAppID(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	_, err := e.write("team-a/twin", account, noSync) // warns of the shared appid
	must(t, err)
	old := e.token(t, "team-a/twin")
	e.settle(account)
	before := e.calls(account)
	outside := e.hide(e.ForceOutside(account["appid"].(string)))
	answer, err := e.refresh("myapp", accessToken(old))
	must(t, err)
	is(t, answer.Data, fields{"changed": true})
	for _, name := range []string{"team-a/twin", "myapp"} {
		token := e.token(t, name)
		otherToken(t, old, token)
		if accessToken(token) != outside {
			t.Errorf("%s has not the token that was issued to another caller", name)
		}
	}
	if n := e.calls(account) - before; n != 1 {
		t.Errorf("there were %d calls, want one for both names", n)
	}
	e.sawForced(t, account, 0, 0)
}

func TestRejectedTokenThatWeChatStandsByIsNotForced(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	token := e.token(t, "myapp")
	e.refreshed(t, "myapp", account, accessToken(token), false, 0) // the write has just asked
	for range 2 {
		e.settle(account)
		e.refreshed(t, "myapp", account, accessToken(token), false, 1)
		for range 20 {
			e.refreshed(t, "myapp", account, accessToken(token), false, 0)
		}
		e.refreshed(t, "myapp", account, "", false, 0)
	}
	sameToken(t, token, e.token(t, "myapp"))
}

func TestReportOfAnAccountThatWasNeverReadGetsItsFirstToken(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, unverified)
	e.refreshed(t, "myapp", account, "", true, 1)
}

func TestParallelReportsCostOneCall(t *testing.T) {
	t.Parallel()
	for name, replaced := range map[string]bool{"replaced outside": true, "still the same": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			account := e.account(wechatsim.Account{})
			e.configure(t, "myapp", account, noSync)
			rejected := accessToken(e.token(t, "myapp"))
			e.settle(account)
			if replaced {
				e.ForceOutside(account["appid"].(string))
			}
			e.SetLatency(time.Second)
			before := e.calls(account)
			const reports = 200
			var reporting sync.WaitGroup
			for range reports {
				reporting.Go(func() {
					answer, err := e.refresh("myapp", rejected)
					if err != nil || answer.Data["changed"] != replaced {
						t.Errorf("the answer is %+v, %v; want changed=%t", answer, err, replaced)
					}
				})
			}
			reporting.Wait()
			if n := e.calls(account) - before; n != 1 {
				t.Errorf("%d reports cost %d calls, want 1", reports, n)
			}
			if n := len(e.forcedCalls(account)); n != 0 {
				t.Errorf("%d calls were forced", n)
			}
			e.token(t, "myapp")
		})
	}
}

func TestReportThatWeChatDoesNotAnswerIsAnErrorAndTheTokenStays(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	accounts := map[string]fields{}
	for name := range failures {
		account := e.account(wechatsim.Account{})
		accounts[name] = account
		e.configure(t, inPath(name), account, noSync, fields{"request_timeout": "1s"})
	}
	time.Sleep(answersHold + time.Second)
	for name, test := range failures {
		t.Run(name, func(t *testing.T) {
			path, account := inPath(name), accounts[name]
			token := e.token(t, path)
			before := e.calls(account)
			e.inject(account, test.fault)
			var failed time.Time
			for range 3 {
				_, err := e.refresh(path, accessToken(token))
				refused(t, err, test.status, append(test.words, path, "what to do")...)
				if failed.IsZero() {
					failed = time.Now()
				}
			}
			most := 1
			if !test.kept { // it may be tried again after a second, which jitter shortens
				most += int(time.Since(failed) / (750 * time.Millisecond))
			}
			if n := e.calls(account) - before; n < 1 || n > most {
				t.Errorf("three reports cost %d calls, want 1 to %d", n, most)
			}
			sameToken(t, token, e.token(t, path))
		})
	}
}

// inPath is how the name of a test is written as that of an account.
func inPath(name string) string { return strings.ReplaceAll(name, " ", "-") }

func TestReportOfAnUnknownAccountNamesThePathToWrite(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	_, err := e.refresh("team-a/shop", e.hide(random()))
	refused(t, err, http.StatusBadRequest, e.path+"/config/team-a/shop")
}

// The end of the test looks for the token in the server's files.
func TestRejectedTokenOfTheWrongTypeIsNotShown(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	e.configure(t, "myapp", e.account(wechatsim.Account{}))
	token := accessToken(e.token(t, "myapp"))
	for _, wrong := range []any{fields{"v": token}, []string{token}} {
		_, err := e.vault.Logical().Write(e.path+"/refresh/myapp", fields{"rejected_token": wrong})
		refused(t, err, http.StatusBadRequest, "rejected_token must be a string")
		if strings.Contains(err.Error(), token) {
			t.Errorf("the message holds the token: %v", err)
		}
	}
}
