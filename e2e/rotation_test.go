//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// revoking makes a rotation the answer to a leak.
var revoking = fields{"revoke": true}

// spacing is the least time between two forced refreshes.
const spacing = 30 * time.Second

// rotate replaces a token by force.
func (e *engine) rotate(name string, all ...fields) (*api.Secret, error) {
	return e.vault.Logical().Write(e.path+"/rotate/"+name, with(all...))
}

// rotated replaces a token by force, which has to succeed and to leave that many
// rotations. It returns the token.
func (e *engine) rotated(t *testing.T, name string, remaining int, all ...fields) *api.Secret {
	t.Helper()
	answer, err := e.rotate(name, all...)
	must(t, err)
	if len(answer.Warnings) != 0 {
		t.Errorf("there are warnings: %v", answer.Warnings)
	}
	want := []string{"expire_time", "last_vault_rotation", "rotations_remaining"}
	if got := slices.Sorted(maps.Keys(answer.Data)); !slices.Equal(got, want) {
		t.Errorf("the fields are %v, want %v", got, want)
	}
	is(t, answer.Data, fields{"rotations_remaining": number(remaining)})
	token := e.token(t, name)
	is(t, answer.Data, fields{"last_vault_rotation": token.Data["last_vault_rotation"], "expire_time": token.Data["expire_time"]})
	return token
}

// number is how an integer reads in an answer.
func number(n int) json.Number { return json.Number(strconv.Itoa(n)) }

// forcedCalls returns the forced calls for an account that the platform saw.
func (e *engine) forcedCalls(account fields) []wechatsim.Call {
	return slices.DeleteFunc(e.Calls(account["appid"].(string)), func(c wechatsim.Call) bool { return !c.Forced })
}

// sawForced checks how many forced calls the platform saw for an account, and
// how many of them replaced its token.
func (e *engine) sawForced(t *testing.T, account fields, seen, effective int) {
	t.Helper()
	calls := e.forcedCalls(account)
	issued := 0
	for _, call := range calls {
		if call.Issued {
			issued++
		}
	}
	if len(calls) != seen || issued != effective {
		t.Errorf("there were %d forced calls, and %d replaced the token; want %d and %d", len(calls), issued, seen, effective)
	}
}

// refusedWith is the errcode with which the platform refuses a token, 0 if it
// accepts it.
func (e *engine) refusedWith(token *api.Secret) int {
	_, errcode := e.Check(accessToken(token))
	return errcode
}

// secondsToWait finds in a message when the next forced refresh is possible.
var secondsToWait = regexp.MustCompile(`try again in (\d+) seconds`)

// limited checks that a rotation was refused because it comes too soon, and
// returns how long to wait.
func limited(t *testing.T, err error, words ...string) time.Duration {
	t.Helper()
	refused(t, err, http.StatusTooManyRequests, words...)
	m := secondsToWait.FindStringSubmatch(err.Error())
	if m == nil {
		t.Fatalf("the message does not tell how long to wait: %v", err)
	}
	seconds, err := strconv.Atoi(m[1])
	must(t, err)
	return time.Duration(seconds) * time.Second
}

// near checks that a time to wait is the wanted one, to within the seconds that
// a busy machine takes.
func near(t *testing.T, got, want time.Duration) {
	t.Helper()
	if got < want-5*time.Second || got > want+5*time.Second {
		t.Errorf("the time to wait is %s, want %s", got, want)
	}
}

func TestRotationReachesAReaderWhoFollowsTTL(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync, fields{"max_ttl": "10s"})
	held := e.token(t, "myapp")
	readAgain := time.Now().Add(time.Duration(ttl(t, held)+1) * time.Second)
	now := e.rotated(t, "myapp", 19)
	otherToken(t, held, now)
	if code := e.refusedWith(held); code != 40001 {
		t.Errorf("the old token is answered with errcode %d, want 40001: it is dead", code)
	}
	time.Sleep(time.Until(readAgain))
	sameToken(t, now, e.token(t, "myapp"))
	e.sawForced(t, account, 1, 1)
	if n := e.calls(account); n != 2 {
		t.Errorf("there were %d calls, want one for the write and one forced", n)
	}
}

func TestRotationsAreSpacedForAllNamesOfAnAppID(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	_, err := e.write("team-a/twin", account, noSync) // warns of the shared appid
	must(t, err)
	old := e.token(t, "team-a/twin")

	began := time.Now()
	first := e.rotated(t, "myapp", 19)
	answered := time.Now()
	otherToken(t, old, e.token(t, "team-a/twin"))
	if accessToken(e.token(t, "team-a/twin")) != accessToken(first) {
		t.Error("two accounts with the same appid have different tokens")
	}

	// Deleting the account deletes no history.
	_, err = e.vault.Logical().Delete(e.path + "/config/myapp")
	must(t, err)
	_, err = e.write("myapp", account, noSync)
	must(t, err)
	for _, name := range []string{"myapp", "team-a/twin"} {
		_, err := e.rotate(name)
		near(t, limited(t, err, "30 seconds"), spacing-time.Since(began))
		is(t, e.statusOf(t, name), fields{"rotations_remaining": number(19)})
	}
	const left = 10 * time.Second // a busy machine may take some of them to ask
	time.Sleep(time.Until(began.Add(spacing - left)))
	_, err = e.rotate("team-a/twin")
	if wait := limited(t, err); wait < time.Second || wait > answered.Sub(began)+left+time.Second {
		t.Errorf("20 s later the time to wait is %s, want ten seconds", wait)
	}
	e.sawForced(t, account, 1, 1)
	time.Sleep(time.Until(answered.Add(spacing + time.Second)))
	second := e.rotated(t, "team-a/twin", 18)
	otherToken(t, first, second)
	if accessToken(e.token(t, "myapp")) != accessToken(second) {
		t.Error("two accounts with the same appid have different tokens")
	}
	e.sawForced(t, account, 2, 2)
}

// WeChat counts from when a call reaches it, which may be long after the engine
// began it: the first one of a process, through a proxy.
func TestTimeToWaitIsLongEnoughHoweverLongTheCallTook(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	e.OnCall(func(call wechatsim.Call) {
		if call.Forced && len(e.forcedCalls(account)) == 1 {
			time.Sleep(3 * time.Second)
		}
	})
	first := e.rotated(t, "myapp", 19)
	_, err := e.rotate("myapp")
	time.Sleep(limited(t, err))
	otherToken(t, first, e.rotated(t, "myapp", 18))
	e.sawForced(t, account, 2, 2)
}

// seedRotations puts forced refreshes into the record of the account's token in the mount's
// storage, as if they had been made at these times.
func (e *engine) seedRotations(t *testing.T, account fields, at []time.Time) {
	t.Helper()
	mounts, err := e.vault.Sys().ListMounts()
	must(t, err)
	sum := sha256.Sum256([]byte(e.url + "\x00"))
	key := "sys/raw/logical/" + mounts[e.path+"/"].UUID + "/held/wechat/token/" + account["appid"].(string) + "/" + hex.EncodeToString(sum[:16])
	entry, err := e.vault.Logical().Read(key)
	must(t, err)
	var record fields
	must(t, json.Unmarshal([]byte(entry.Data["value"].(string)), &record))
	var forced []fields
	for i, at := range at {
		forced = append(forced, fields{"at": at, "fence": i + 1})
	}
	record["forced"] = forced
	value, err := json.Marshal(record)
	must(t, err)
	_, err = e.vault.Logical().Write(key, fields{"value": string(value)})
	must(t, err)
	_, err = e.vault.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{e.path + "/"}})
	must(t, err)
}

// hourly are the times of n forced refreshes an hour apart, the first of which is
// a day old at the given time.
func hourly(n int, leaves time.Time) []time.Time {
	var at []time.Time
	for i := range n {
		at = append(at, leaves.Add(time.Duration(i-24)*time.Hour).UTC())
	}
	return at
}

func TestTwentyRotationsInARollingDay(t *testing.T) {
	t.Parallel()
	e := newEngineOn(t, ownVault(t)) // a reload ends the process that all mounts of a server share
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	leaves := time.Now().Add(40 * time.Second)
	e.seedRotations(t, account, hourly(19, leaves))
	is(t, e.statusOf(t, "myapp"), fields{"rotations_remaining": number(1)})
	last := e.rotated(t, "myapp", 0)
	is(t, e.statusOf(t, "myapp"), fields{"rotations_remaining": number(0), "state": "healthy"})
	_, err := e.rotate("myapp")
	near(t, limited(t, err, "20 forced refreshes", "24 hours"), time.Until(leaves))
	sameToken(t, last, e.token(t, "myapp"))
	e.sawForced(t, account, 1, 1)

	time.Sleep(time.Until(leaves.Add(time.Second)))
	is(t, e.statusOf(t, "myapp"), fields{"rotations_remaining": number(1)})
	e.rotated(t, "myapp", 0)
	e.sawForced(t, account, 2, 2)
}

func TestRotationThatWeChatAnswersWithTheSameTokenCounts(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	token := e.token(t, "myapp")
	e.inject(account, wechatsim.Fault{Kind: "sametoken", Mode: "forced", Times: 1})
	answer, err := e.rotate("myapp")
	must(t, err)
	if len(answer.Warnings) != 1 || !strings.Contains(answer.Warnings[0], "nothing was rotated") {
		t.Errorf("the warnings are %v, want one that nothing was rotated", answer.Warnings)
	}
	is(t, answer.Data, fields{
		"rotations_remaining": number(19),
		"last_vault_rotation": token.Data["last_vault_rotation"], "expire_time": token.Data["expire_time"],
	})
	sameToken(t, token, e.token(t, "myapp"))
	_, err = e.rotate("myapp")
	limited(t, err)
	e.sawForced(t, account, 1, 0)
}

// A refusal, be it WeChat's or a gateway's, leaves the old token in force and costs
// nothing. After any other failure it is not known which token holds, so the next reader asks.
func TestRotationThatFailsLeavesNoDeadToken(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for name, test := range failures {
		t.Run(name, func(t *testing.T) {
			path, account := inPath(name), e.account(wechatsim.Account{})
			e.configure(t, path, account, noSync, fields{"request_timeout": "1s"})
			old := e.token(t, path)
			test.fault.Mode = "forced"
			e.inject(account, test.fault)
			_, err := e.rotate(path)
			refused(t, err, test.status, append(test.words, path, "what to do")...)
			now := e.token(t, path)
			if accessToken(now) != e.current(account) {
				t.Error("the token is not the newest one")
			}
			remaining, calls := 19, 3 // the write's, the forced one, and a normal one that tells
			refusal := test.fault.Kind == "errcode" && test.fault.Errcode != -1 || test.fault.Status/100 == 4
			if refusal {
				remaining, calls = 20, 2
			}
			is(t, e.statusOf(t, path), fields{"rotations_remaining": number(remaining)})
			if n := e.calls(account); n != calls {
				t.Errorf("there were %d calls, want %d", n, calls)
			}
			if e.refusedWith(old) == 0 {
				sameToken(t, old, now)
				e.sawForced(t, account, 1, 0)
			} else {
				otherToken(t, old, now)
				e.sawForced(t, account, 1, 1)
			}
		})
	}
}

func TestRotationDoesNotWaitForARememberedFailure(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, unverified)
	fault := errcode(89506)
	fault.Times = 1
	e.inject(account, fault)
	_, err := e.readToken("myapp")
	refused(t, err, http.StatusBadRequest, "errcode 89506")
	e.rotated(t, "myapp", 19)
	is(t, e.statusOf(t, "myapp"), fields{"state": "healthy", "last_error": nil})
}

func TestRotationOfAnUnknownAccountNamesThePathToWrite(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	_, err := e.rotate("team-a/shop", revoking)
	refused(t, err, http.StatusBadRequest, e.path+"/config/team-a/shop")
}

// revocationEnds waits for the second forced refresh that a leaked token needs,
// and checks that the token was alive until then, that WeChat saw this many
// forced calls, at their distance, and that nothing is left to follow.
func (e *engine) revocationEnds(t *testing.T, name string, account fields, leaked *api.Secret, forced int) {
	t.Helper()
	within := time.Duration(forced)*spacing + patience
	eventually(t, within, "the revocation is complete", func() bool {
		effective := func() int {
			return len(slices.DeleteFunc(e.forcedCalls(account), func(c wechatsim.Call) bool { return !c.Issued }))
		}
		if e.refusedWith(leaked) != 0 && effective() < 2 {
			t.Fatal("the platform killed the leaked token before the second forced refresh: this tests nothing")
		}
		answer, err := e.vault.Logical().Read(e.path + "/status/" + name)
		switch {
		case err != nil: // the disturbance is not over
			return false
		case answer.Data["revocation"] == "pending":
			return false
		}
		if n := effective(); n != 2 {
			t.Fatalf("the revocation is said to be %v after %d forced refreshes", answer.Data["revocation"], n)
		}
		return true
	})
	if e.refusedWith(leaked) == 0 {
		t.Error("the leaked token is still alive")
	}
	e.token(t, name)
	completed := timeOf(t, e.statusOf(t, name), "revocation")
	calls := e.forcedCalls(account)
	if completed.Before(calls[0].Time.Add(spacing).Truncate(time.Second)) || completed.After(time.Now()) {
		t.Errorf("the revocation is said to be complete at %s; the first forced refresh was at %s", completed, calls[0].Time)
	}
	for i := range calls[1:] {
		if gap := calls[i+1].Time.Sub(calls[i].Time); gap < spacing {
			t.Errorf("forced calls are %s apart", gap)
		}
	}
	e.sawForced(t, account, forced, 2)
	eventually(t, patience, "the write-ahead log is empty", func() bool { return e.announced(t) == nil })
	is(t, e.statusOf(t, name), fields{"state": "healthy"})
}

func TestRevocationForcesASecondTime(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault  wechatsim.Fault // of the call after the first
		forced int             // calls in all
		moves  bool            // to another base_url in between
	}{
		"undisturbed":               {forced: 2},
		"base_url changes":          {forced: 2, moves: true},
		"second answer is lost":     {fault: wechatsim.Fault{Kind: "lost", Mode: "forced", Times: 1}, forced: 2},
		"second is refused":         {fault: wechatsim.Fault{Kind: "errcode", Errcode: 45011, Mode: "forced", Times: 1}, forced: 3},
		"second finds WeChat busy":  {fault: wechatsim.Fault{Kind: "errcode", Errcode: -1, Mode: "forced", Times: 1}, forced: 3},
		"second gets the same back": {fault: wechatsim.Fault{Kind: "sametoken", Mode: "forced", Times: 1}, forced: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			account := e.account(wechatsim.Account{ForceKeepsOld: true})
			e.configure(t, "myapp", account, noSync)
			is(t, e.statusOf(t, "myapp"), fields{"revocation": nil})
			leaked := e.token(t, "myapp")
			otherToken(t, leaked, e.rotated(t, "myapp", 19, revoking))
			is(t, e.statusOf(t, "myapp"), fields{"revocation": "pending", "rotations_remaining": number(19)})
			if code := e.refusedWith(leaked); code != 0 {
				t.Errorf("the platform killed the leaked token at once, with errcode %d: this tests nothing", code)
			}
			if test.fault.Kind != "" {
				e.inject(account, test.fault)
			}
			e.watch(t, "myapp", account)
			if test.moves {
				e.configure(t, "myapp", account, fields{"base_url": strings.Replace(account["base_url"].(string), "127.0.0.1", "localhost", 1)})
			}
			e.revocationEnds(t, "myapp", account, leaked, test.forced)
		})
	}
}

func TestRevocationWhoseFirstRefreshGetsTheSameTokenBackStaysPending(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{ForceKeepsOld: true})
	e.configure(t, "myapp", account, noSync)
	leaked := e.token(t, "myapp")
	e.inject(account, wechatsim.Fault{Kind: "sametoken", Mode: "forced", Times: 1})
	answer, err := e.rotate("myapp", revoking)
	must(t, err)
	if len(answer.Warnings) != 1 || !strings.Contains(answer.Warnings[0], "nothing was rotated") {
		t.Errorf("the warnings are %v, want one that nothing was rotated", answer.Warnings)
	}
	sameToken(t, leaked, e.token(t, "myapp"))
	is(t, e.statusOf(t, "myapp"), fields{"revocation": "pending", "rotations_remaining": number(19)})
	e.revocationEnds(t, "myapp", account, leaked, 3)
}

func TestRevocationIsNotBegunIfTheFirstIsRefused(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	token := e.token(t, "myapp")
	fault := errcode(45009)
	fault.Mode = "forced"
	e.inject(account, fault)
	_, err := e.rotate("myapp", revoking)
	refused(t, err, http.StatusTooManyRequests, "errcode 45009")
	is(t, e.statusOf(t, "myapp"), fields{"revocation": nil, "rotations_remaining": number(20)})
	if left := e.announced(t); left != nil {
		t.Errorf("the write-ahead log holds %v", left)
	}
	sameToken(t, token, e.token(t, "myapp"))
}

// watch reads the token of an account again and again until the test ends, and
// checks that no read is answered with a token that was dead when it began. A
// read may fail.
func (e *engine) watch(t *testing.T, name string, account fields) {
	t.Helper()
	ctx, finish := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	reads := 0
	reading.Go(func() {
		for ctx.Err() == nil {
			alive := e.current(account)
			if answer, err := e.readToken(name); err == nil {
				reads++
				if code := e.refusedWith(answer); code != 0 && accessToken(answer) != alive {
					t.Errorf("a read gave a token that the platform refuses with errcode %d", code)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	t.Cleanup(func() {
		finish()
		reading.Wait()
		if reads == 0 {
			t.Error("no read succeeded")
		}
	})
}

// disturbances are what may befall Vault and the plugin.
var disturbances = map[string]func(t *testing.T, v *vaulttest.Server){
	"kill -9 of the plugin": killPlugin,
	"kill -9 of Vault": func(t *testing.T, v *vaulttest.Server) {
		t.Helper()
		must(t, v.Kill())
		pluginEnds(t, v)
		must(t, v.Start(t.Context()))
	},
	"stop and start of Vault": func(t *testing.T, v *vaulttest.Server) {
		t.Helper()
		must(t, v.Stop())
		pluginEnds(t, v)
		must(t, v.Start(t.Context()))
	},
	"seal and unseal of Vault": func(t *testing.T, v *vaulttest.Server) {
		t.Helper()
		must(t, v.Sys().Seal())
		pluginEnds(t, v)
		must(t, v.Unseal(t.Context()))
	},
	"reload of the plugin": func(t *testing.T, v *vaulttest.Server) {
		t.Helper()
		_, err := v.Sys().ReloadPlugin(&api.ReloadPluginInput{Plugin: pluginName})
		must(t, err)
	},
}

// moments are those at which a disturbance is worst: each leads a mount there,
// and returns what has to hold afterwards.
var moments = []struct {
	name string
	lead func(t *testing.T, e *engine) (afterwards func(t *testing.T))
}{
	{"report answered late", reportAnsweredLate},
	{"rotations of a day used up", rotationsUsedUp},
	{"rotation carried out late", carriedOutLate},
	{"rotation answered late", rotationAnsweredLate},
	{"revocation answered late", revocationAnsweredLate},
	{"revocation half done", revocationHalfDone},
}

func TestNoDisturbanceBringsADeadTokenBack(t *testing.T) {
	t.Parallel()
	for what, disturb := range disturbances {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			v := ownVault(t)
			afterwards := map[string]func(*testing.T){}
			for _, moment := range moments {
				e := newPlatform(t, v)
				e.path += "-" + inPath(moment.name)
				e.mount(t)
				afterwards[moment.name] = moment.lead(t, e)
			}
			disturb(t, v)
			t.Run("afterwards", func(t *testing.T) {
				for moment, check := range afterwards {
					t.Run(moment, func(t *testing.T) {
						t.Parallel()
						check(t)
					})
				}
			})
		})
	}
}

// tokenAgain waits until a token can be read again after a disturbance.
func (e *engine) tokenAgain(t *testing.T, name string) *api.Secret {
	t.Helper()
	eventually(t, patience, "a token is read again", func() bool {
		_, err := e.readToken(name)
		return err == nil
	})
	return e.token(t, name)
}

// The first forced refresh of a revocation was answered, the second is to come.
func revocationHalfDone(t *testing.T, e *engine) func(*testing.T) {
	t.Helper()
	account := e.account(wechatsim.Account{ForceKeepsOld: true})
	e.configure(t, "myapp", account, noSync)
	leaked := e.token(t, "myapp")
	first := e.rotated(t, "myapp", 19, revoking)
	e.watch(t, "myapp", account)
	return func(t *testing.T) {
		again := e.tokenAgain(t, "myapp")
		if len(e.forcedCalls(account)) == 1 {
			sameToken(t, first, again)
		}
		e.revocationEnds(t, "myapp", account, leaked, 2)
		is(t, e.statusOf(t, "myapp"), fields{"rotations_remaining": number(18)})
	}
}

// WeChat has replaced the token, and its answer is on its way.
func rotationAnsweredLate(t *testing.T, e *engine) func(*testing.T) {
	t.Helper()
	account := e.account(wechatsim.Account{})
	old := e.answeredLate(t, account, nil)
	return func(t *testing.T) {
		otherToken(t, old, e.tokenAgain(t, "myapp"))
		is(t, e.statusOf(t, "myapp"), fields{"rotations_remaining": number(19), "revocation": nil, "state": "healthy"})
		e.sawForced(t, account, 1, 1)
	}
}

// WeChat has replaced a leaked token for the first time, and its answer is on
// its way.
func revocationAnsweredLate(t *testing.T, e *engine) func(*testing.T) {
	t.Helper()
	account := e.account(wechatsim.Account{ForceKeepsOld: true})
	leaked := e.answeredLate(t, account, revoking)
	return func(t *testing.T) {
		otherToken(t, leaked, e.tokenAgain(t, "myapp"))
		e.revocationEnds(t, "myapp", account, leaked, 2)
		is(t, e.statusOf(t, "myapp"), fields{"rotations_remaining": number(18)})
	}
}

// answeredLate configures an account under two names, and replaces its token by
// force. It returns the old token when WeChat has done so, and its answer is on
// its way. The readers of neither name may be given a dead token.
func (e *engine) answeredLate(t *testing.T, account, with fields) *api.Secret {
	t.Helper()
	e.configure(t, "myapp", account, noSync, slow)
	_, err := e.write("team-a/twin", account, noSync) // warns of the shared appid
	must(t, err)
	old := e.token(t, "myapp")
	e.SetLatency(late)
	e.asking(t, func() { _, _ = e.rotate("myapp", with) })
	eventually(t, patience, "the token is replaced", func() bool { return e.current(account) != accessToken(old) })
	e.SetLatency(0)
	e.watch(t, "myapp", account)
	e.watch(t, "team-a/twin", account)
	return old
}

// late is when WeChat's answer comes, after an undisturbed wait, and slow lets the plugin wait for it.
const late = 12 * time.Second

var slow = fields{"request_timeout": "15s"}

// asking makes a request in the background, whose answer may get lost.
func (e *engine) asking(t *testing.T, request func()) {
	t.Helper()
	var waiting sync.WaitGroup
	waiting.Go(request)
	t.Cleanup(waiting.Wait)
}

// A forced call is held up on its way to WeChat, and takes effect when the old
// token was already confirmed. Only the next comparison can tell.
func carriedOutLate(t *testing.T, e *engine) func(*testing.T) {
	t.Helper()
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, slow, fields{"sync_interval": "1m"})
	old := e.token(t, "myapp")
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	e.OnCall(func(call wechatsim.Call) {
		if call.Forced {
			<-held
		}
	})
	e.asking(t, func() { _, _ = e.rotate("myapp") })
	eventually(t, patience, "the forced call is on its way", func() bool { return len(e.forcedCalls(account)) == 1 })
	return func(t *testing.T) {
		sameToken(t, old, e.tokenAgain(t, "myapp"))
		release()
		eventually(t, patience, "the token is replaced", func() bool { return e.refusedWith(old) != 0 })
		eventually(t, 75*time.Second, "the new token is read", func() bool {
			answer, err := e.readToken("myapp")
			return err == nil && e.refusedWith(answer) == 0
		})
		otherToken(t, old, e.token(t, "myapp"))
		e.sawForced(t, account, 1, 1)
		is(t, e.statusOf(t, "myapp"), fields{"rotations_remaining": number(19)})
	}
}

// The twentieth rotation of a day was answered.
func rotationsUsedUp(t *testing.T, e *engine) func(*testing.T) {
	t.Helper()
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync)
	leaves := time.Now().Add(time.Hour)
	e.seedRotations(t, account, hourly(19, leaves))
	last := e.rotated(t, "myapp", 0)
	return func(t *testing.T) {
		sameToken(t, last, e.tokenAgain(t, "myapp"))
		is(t, e.statusOf(t, "myapp"), fields{"rotations_remaining": number(0)})
		for _, all := range []fields{nil, revoking} {
			_, err := e.rotate("myapp", all)
			near(t, limited(t, err, "20 forced refreshes", "24 hours"), time.Until(leaves))
		}
		is(t, e.statusOf(t, "myapp"), fields{"revocation": nil, "state": "healthy"})
		e.sawForced(t, account, 1, 1)
	}
}

// A token was replaced outside, and the answer to the report of it is on its way.
func reportAnsweredLate(t *testing.T, e *engine) func(*testing.T) {
	t.Helper()
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, noSync, slow)
	old := e.token(t, "myapp")
	// A new start knows of no answer that a report could be answered from.
	_, err := e.vault.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{e.path + "/"}})
	must(t, err)
	e.hide(e.ForceOutside(account["appid"].(string)))
	e.inject(account, wechatsim.Fault{Kind: "hang", Times: 1})
	e.asking(t, func() { _, _ = e.refresh("myapp", accessToken(old)) })
	eventually(t, patience, "the call is on its way", func() bool { return e.calls(account) == 2 })
	return func(t *testing.T) {
		var answer *api.Secret
		eventually(t, patience, "the report is answered", func() bool {
			var err error
			answer, err = e.refresh("myapp", accessToken(old))
			return err == nil
		})
		otherToken(t, old, e.token(t, "myapp"))
		e.sawForced(t, account, 0, 0)
		// A client repeats a report whose answer the disturbance took. The instance that
		// comes then may find the new token in storage, and knows nothing of the old one.
		switch n := e.calls(account); {
		case n <= 3:
			is(t, answer.Data, fields{"changed": true})
		case n > 4:
			t.Errorf("there were %d calls, want at most those of the write, of the two reports and of one that was repeated", n)
		}
	}
}
