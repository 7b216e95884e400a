//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestTokenOfAConfiguredAccount(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	began := time.Now()
	e.configure(t, "myapp", account)
	if n := e.calls(account); n != 1 {
		t.Errorf("the configuration was verified with %d calls, want 1", n)
	}

	answer := e.token(t, "myapp")
	want := []string{"access_token", "appid", "expire_time", "last_vault_rotation", "rotation_period", "ttl"}
	if got := slices.Sorted(maps.Keys(answer.Data)); !slices.Equal(got, want) {
		t.Errorf("the fields are %v, want %v", got, want)
	}
	if answer.Data["appid"] != account["appid"] {
		t.Errorf("appid is %v, want %v", answer.Data["appid"], account["appid"])
	}
	if got := answer.Data["rotation_period"]; got != json.Number("6910") {
		t.Errorf("rotation_period is %#v, want the number 6910", got)
	}
	if got := ttl(t, answer); got != 240 {
		t.Errorf("ttl is %d, want that of max_ttl, 240", got)
	}
	rotated, expires := timeOf(t, answer.Data, "last_vault_rotation"), timeOf(t, answer.Data, "expire_time")
	if rotated.Before(began.Truncate(time.Millisecond)) || rotated.After(time.Now()) {
		t.Errorf("last_vault_rotation is %s, want the time of the write, %s", rotated, began)
	}
	if life := expires.Sub(rotated); life > 7200*time.Second || life < 7190*time.Second {
		t.Errorf("the token lives for %s, want two hours", life)
	}
	if answer.LeaseID != "" || answer.LeaseDuration != 0 || answer.Renewable || answer.Auth != nil || answer.WrapInfo != nil {
		t.Errorf("the token has a lease: %+v", answer)
	}
	if len(answer.Warnings) != 0 {
		t.Errorf("the answer has warnings: %v", answer.Warnings)
	}

	// As an application uses it.
	response, err := http.Get(e.url + "/cgi-bin/getcallbackip?access_token=" + url.QueryEscape(accessToken(answer)))
	must(t, err)
	defer response.Body.Close()
	var use struct {
		IPs []string `json:"ip_list"`
	}
	if err := json.NewDecoder(response.Body).Decode(&use); err != nil || len(use.IPs) == 0 {
		t.Errorf("the platform refuses the token: %v", err)
	}
}

var semver = regexp.MustCompile(`^v\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?$`)

func TestMountRunsTheRegisteredVersion(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	if !semver.MatchString(subject.plugin.Version) {
		t.Errorf("the plugin prints %q as its version, want a semantic one with a leading v", subject.plugin.Version)
	}
	mounts, err := e.vault.Sys().ListMounts()
	must(t, err)
	if m := mounts[e.path+"/"]; m.RunningVersion != subject.plugin.Version || m.RunningSha256 != subject.plugin.SHA256 {
		t.Errorf("version %q with checksum %q runs, want %q with %q", m.RunningVersion, m.RunningSha256, subject.plugin.Version, subject.plugin.SHA256)
	}
}

func TestReadsOfACachedTokenCostNoCall(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account)
	first := e.token(t, "myapp")
	for range 100 {
		sameToken(t, first, e.token(t, "myapp"))
	}
	if n := e.calls(account); n != 1 {
		t.Errorf("there were %d calls, want the one that verified the configuration", n)
	}
}

func TestConcurrentFirstReadsCostOneCall(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, unverified)
	if n := e.calls(account); n != 0 {
		t.Fatalf("verify=false made %d calls", n)
	}
	e.SetLatency(time.Second)

	const readers = 200
	tokens := make([]string, readers)
	var reading sync.WaitGroup
	for i := range readers {
		reading.Go(func() {
			answer, err := e.readToken("myapp")
			if err != nil {
				t.Errorf("reader %d: %v", i, err)
				return
			}
			tokens[i] = accessToken(answer)
		})
	}
	reading.Wait()
	if n := e.calls(account); n != 1 {
		t.Errorf("%d readers cost %d calls, want 1", readers, n)
	}
	if got := slices.Compact(tokens); len(got) != 1 || got[0] != e.current(account) {
		t.Errorf("the readers did not all get the current token")
	}
}

// A reader that follows ttl sleeps ttl+1 s between reads. The shortest life of a
// token that leaves it room is twelve seconds: it is due after half its life,
// and who reads it just before is told the least ttl, 5 s.
func TestReaderWhoFollowsTTLAlwaysHoldsAnAcceptedToken(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{Lifetime: 18 * time.Second, Overlap: 14 * time.Second})
	e.configure(t, "myapp", account)

	held := e.token(t, "myapp")
	readAgain := time.Now().Add(time.Duration(ttl(t, held)+1) * time.Second)
	rotations := 0
	eventually(t, 2*time.Minute, "three rotations", func() bool {
		if _, errcode := e.Check(accessToken(held)); errcode != 0 {
			t.Fatalf("after %d rotations the reader holds a token that is refused with %d", rotations, errcode)
		}
		if time.Now().Before(readAgain) {
			return false
		}
		next := e.token(t, "myapp")
		if accessToken(next) == accessToken(held) {
			sameToken(t, held, next)
		} else {
			otherToken(t, held, next)
			rotations++
		}
		held, readAgain = next, time.Now().Add(time.Duration(ttl(t, next)+1)*time.Second)
		return rotations == 3
	})
	if n := e.MaxInFlight(account["appid"].(string)); n != 1 {
		t.Errorf("%d calls for the account were in flight at a time, want 1", n)
	}
}

func TestTokenIsRefreshedWithoutReaders(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{Lifetime: 8 * time.Second, Overlap: 6 * time.Second})
	e.configure(t, "myapp", account)
	first := e.token(t, "myapp")
	eventually(t, patience, "three tokens issued without a reader", func() bool {
		issued := 0
		for _, call := range e.Calls(account["appid"].(string)) {
			if call.Issued {
				issued++
			}
		}
		return issued >= 3
	})
	otherToken(t, first, e.token(t, "myapp"))
}

func TestUnreadTokenOfAnUnverifiedAccountIsNotFetched(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	quiet, control := e.account(wechatsim.Account{}), e.account(wechatsim.Account{Lifetime: 8 * time.Second, Overlap: 6 * time.Second})
	e.configure(t, "quiet", quiet, unverified)
	e.configure(t, "control", control)
	eventually(t, patience, "the background works", func() bool { return e.calls(control) >= 3 })
	if n := e.calls(quiet); n != 0 {
		t.Errorf("WeChat was called %d times for an account that was never read", n)
	}
}

func TestTokenReplacedOutsideIsNoticed(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, fields{"sync_interval": "1m"})
	first := e.token(t, "myapp")
	outside := e.hide(e.ForceOutside(account["appid"].(string)))
	eventually(t, 2*time.Minute, "the token that was issued to another caller is read", func() bool {
		answer, err := e.readToken("myapp")
		return err == nil && accessToken(answer) == outside
	})
	otherToken(t, first, e.token(t, "myapp"))
	if n := e.calls(account); n != 2 {
		t.Errorf("there were %d calls, want one for the write and one for the comparison", n)
	}
}

func TestTTLNeverPassesMaxTTLOrTheTokensEnd(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for name, test := range map[string]struct {
		lifetime time.Duration
		maxTTL   any
		min, max int64
	}{
		"capped":             {7200 * time.Second, "10s", 10, 10},
		"without-a-cap":      {7200 * time.Second, 0, 6900, 6910},
		"at-the-latest":      {300 * time.Second, 0, 5, 10},
		"due-before-the-cap": {400 * time.Second, "4m", 100, 110},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e.configure(t, name, e.account(wechatsim.Account{Lifetime: test.lifetime}), fields{"max_ttl": test.maxTTL})
			if got := ttl(t, e.token(t, name)); got < test.min || got > test.max {
				t.Errorf("ttl is %d, want %d to %d", got, test.min, test.max)
			}
		})
	}
}

func TestLifetimeBeyondTheDocumentedIsCutToIt(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.inject(account, wechatsim.Fault{Kind: "expires_in", ExpiresIn: "99999"})
	e.configure(t, "myapp", account)
	answer := e.token(t, "myapp")
	if life := timeOf(t, answer.Data, "expire_time").Sub(timeOf(t, answer.Data, "last_vault_rotation")); life > 7200*time.Second {
		t.Errorf("the token is said to live for %s", life)
	}
}

func TestUnknownNameIsRefusedWithThePathToWrite(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	_, err := e.readToken("team-a/shop")
	refused(t, err, http.StatusBadRequest, fmt.Sprintf("%s/config/team-a/shop", e.path))
}
