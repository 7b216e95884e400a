//go:build e2e

package e2e

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// statusOf reads the status of an account, which shows no secret and no token.
func (e *engine) statusOf(t *testing.T, name string) fields {
	t.Helper()
	answer, err := e.vault.Logical().Read(e.path + "/status/" + name)
	must(t, err)
	if answer == nil {
		t.Fatalf("reading status/%s: not found", name)
	}
	e.showsNothingHidden(t, answer.Data)
	return answer.Data
}

// showsNothingHidden checks that an answer holds neither a secret nor a token.
func (e *engine) showsNothingHidden(t *testing.T, answer fields) {
	t.Helper()
	text, err := json.Marshal(answer)
	must(t, err)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, hidden := range e.hidden {
		if strings.Contains(string(text), vaulttest.Telling(hidden)) {
			t.Errorf("the answer shows a secret or a token: %s", text)
		}
	}
}

// is checks some of the fields of an answer.
func is(t *testing.T, answer, want fields) {
	t.Helper()
	for field, value := range want {
		if !reflect.DeepEqual(answer[field], value) {
			t.Errorf("%s is %#v, want %#v", field, answer[field], value)
		}
	}
}

func TestStatusTellsWhatStateAnAccountIsIn(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{Lifetime: 16 * time.Second, Overlap: 12 * time.Second})
	e.configure(t, "myapp", account, unverified)
	pending := e.statusOf(t, "myapp")
	want := fields{
		"appid": account["appid"], "state": "pending", "last_vault_rotation": nil, "expire_time": nil,
		"next_refresh_time": nil, "last_success_time": nil, "last_error": nil, "consecutive_failures": json.Number("0"),
		"next_attempt_time": nil, "rotations_remaining": json.Number("20"), "revocation": nil,
		"rejections": json.Number("0"), "last_rejection_time": nil, "tickets": nil,
	}
	if !reflect.DeepEqual(pending, want) {
		t.Errorf("the status of an account without a token is\n%v, want\n%v", pending, want)
	}
	if n := e.calls(account); n != 0 {
		t.Errorf("reading the status cost %d calls", n)
	}

	token := e.token(t, "myapp")
	healthy := e.statusOf(t, "myapp")
	is(t, healthy, fields{
		"state": "healthy", "last_error": nil, "next_attempt_time": nil, "consecutive_failures": json.Number("0"),
		"last_vault_rotation": token.Data["last_vault_rotation"], "expire_time": token.Data["expire_time"],
	})
	rotated, success := timeOf(t, healthy, "last_vault_rotation"), timeOf(t, healthy, "last_success_time")
	if success.Before(rotated.Truncate(time.Second)) || success.After(time.Now()) {
		t.Errorf("last_success_time is %s, want that of the answer after %s", success, rotated)
	}
	if due := timeOf(t, healthy, "next_refresh_time").Sub(rotated); due < 6*time.Second || due > 9*time.Second {
		t.Errorf("a token of 16 s is due after %s, want after half its life", due)
	}

	e.inject(account, errcode(45011))
	for _, state := range []string{"degraded", "failing"} {
		eventually(t, patience, state, func() bool { return e.statusOf(t, "myapp")["state"] == state })
		status := e.statusOf(t, "myapp")
		is(t, status, fields{"consecutive_failures": json.Number("1"), "last_success_time": healthy["last_success_time"]})
		is(t, status["last_error"].(fields), fields{"errcode": json.Number("45011"), "class": "quota"})
		_, err := e.readToken("myapp")
		if state == "degraded" {
			must(t, err)
		} else {
			refused(t, err, http.StatusTooManyRequests, "errcode 45011")
		}
	}

	e.ClearFaults()
	e.configure(t, "myapp", unverified, account)
	is(t, e.statusOf(t, "myapp"), fields{"last_error": nil, "next_attempt_time": nil, "consecutive_failures": json.Number("0")})
	e.token(t, "myapp")
	is(t, e.statusOf(t, "myapp"), fields{"state": "healthy", "last_error": nil})
}

// classes are the ways in which WeChat may fail, and what the status tells of
// each.
var classes = map[string]struct {
	fault  wechatsim.Fault
	class  string
	advice string        // a word of it
	wait   time.Duration // until the next attempt
}{
	"busy":                  {errcode(-1), "transient", "nothing", time.Second},
	"wrong secret":          {errcode(40001), "credentials", "AppSecret", 30 * time.Second},
	"grant type":            {errcode(40002), "bug", "base_url", 30 * time.Second},
	"invalid appid":         {errcode(40013), "credentials", "appid", 30 * time.Second},
	"invalid secret":        {errcode(40125), "credentials", "AppSecret", 30 * time.Second},
	"IP not whitelisted":    {errcode(40164), "network admission", "whitelist", 30 * time.Second},
	"frozen secret":         {errcode(40243), "credentials", "unfreeze", 30 * time.Second},
	"no appid":              {errcode(41002), "bug", "base_url", 30 * time.Second},
	"no secret":             {errcode(41004), "bug", "base_url", 30 * time.Second},
	"no POST":               {errcode(43002), "bug", "base_url", 30 * time.Second},
	"daily quota":           {errcode(45009), "quota", "console", time.Minute},
	"quota of a minute":     {errcode(45011), "quota", "nothing", time.Minute},
	"IP not admitted":       {errcode(45035), "network admission", "whitelist", 30 * time.Second},
	"bad body":              {errcode(47001), "bug", "base_url", 30 * time.Second},
	"API forbidden":         {errcode(48004), "account", "console", 30 * time.Second},
	"account limited":       {errcode(50002), "account", "console", 30 * time.Second},
	"account punished":      {errcode(50004), "account", "console", 30 * time.Second},
	"IP not registered":     {errcode(61004), "network admission", "whitelist", 30 * time.Second},
	"IP to be confirmed":    {errcode(89501), "human", "administrator", 30 * time.Second},
	"IP to be confirmed 2":  {errcode(89503), "human", "administrator", 30 * time.Second},
	"IP refused twice":      {errcode(89506), "human", "administrator", time.Minute},
	"IP refused once":       {errcode(89507), "human", "administrator", time.Minute},
	"undocumented errcode":  {errcode(12345), "undocumented answer", "base_url", time.Second},
	"undocumented answer":   {wechatsim.Fault{Kind: "notjson"}, "undocumented answer", "base_url", time.Second},
	"server error":          {wechatsim.Fault{Kind: "status", Status: 503}, "transient", "nothing", time.Second},
	"connection reset":      {wechatsim.Fault{Kind: "reset"}, "unreachable", "proxy_url", time.Second},
	"connection cut midway": {wechatsim.Fault{Kind: "truncate"}, "unreachable", "proxy_url", time.Second},
}

func TestStatusTellsWhatFailedAndWhatToDo(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for name, test := range classes {
		t.Run(name, func(t *testing.T) {
			path, account := inPath(name), e.account(wechatsim.Account{})
			e.configure(t, path, account, unverified)
			e.inject(account, test.fault)
			began := time.Now()
			if _, err := e.readToken(path); err == nil {
				t.Error("the read succeeded")
			}
			status := e.statusOf(t, path)
			is(t, status, fields{"state": "failing", "expire_time": nil, "last_success_time": nil})
			last, _ := status["last_error"].(fields)
			want := []string{"advice", "class", "errcode", "message", "time"}
			if got := slices.Sorted(maps.Keys(last)); !slices.Equal(got, want) {
				t.Fatalf("the fields of last_error are %v, want %v", got, want)
			}
			is(t, last, fields{"class": test.class})
			message := last["message"].(string)
			if code := test.fault.Errcode; code != 0 {
				is(t, last, fields{"errcode": json.Number(strconv.Itoa(code))})
				if !strings.Contains(message, strconv.Itoa(code)) || strings.Contains(message, "rid ") {
					t.Errorf("the message is %q, want errcode %d and no rid", message, code)
				}
				if test.class == "network admission" && !strings.Contains(message, callersIP) {
					t.Errorf("the message does not hold the caller's IP: %s", message)
				}
			} else {
				is(t, last, fields{"errcode": nil})
			}
			if advice := last["advice"].(string); !strings.Contains(advice, test.advice) {
				t.Errorf("the advice does not hold %q: %s", test.advice, advice)
			}
			failed := timeOf(t, last, "time")
			if since := time.Since(failed); since < 0 || since > patience {
				t.Errorf("the failure is said to be %s old", since)
			}
			failures, err := status["consecutive_failures"].(json.Number).Int64()
			must(t, err)
			if most := 1 + int64(time.Since(began)/test.wait); failures < 1 || failures > most {
				t.Errorf("there were %d failures, want 1 to %d", failures, most)
			}
			// Both are cut to the second.
			most := test.wait<<(failures-1) + time.Second
			if wait := timeOf(t, status, "next_attempt_time").Sub(failed); wait < test.wait-time.Second || wait > most {
				t.Errorf("the next attempt comes after %s, want %s", wait, test.wait)
			}
		})
	}
}

func TestStatusOfAnUnknownAccountNamesThePathToWrite(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	_, err := e.vault.Logical().Read(e.path + "/status/team-a/shop")
	refused(t, err, http.StatusBadRequest, e.path+"/config/team-a/shop")
}

// listStatus lists a level of the statuses, with the parameters of a query.
func (e *engine) listStatus(t *testing.T, level string, query url.Values) (keys []string, info fields) {
	t.Helper()
	parameters := url.Values{"list": {"true"}}
	maps.Copy(parameters, query)
	answer, err := e.vault.Logical().ReadWithData(e.path+"/status/"+level, parameters)
	must(t, err)
	if answer == nil {
		return nil, nil
	}
	e.showsNothingHidden(t, answer.Data)
	for _, key := range answer.Data["keys"].([]any) {
		keys = append(keys, key.(string))
	}
	info, _ = answer.Data["key_info"].(fields)
	return keys, info
}

func TestListOfStatusesTellsOfEachAccount(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	appids := map[string]any{}
	for _, name := range []string{"myapp", "pending", "failing", "team-a/shop", "team-a/eu/shop", "team-b"} {
		account := e.account(wechatsim.Account{})
		appids[name] = account["appid"]
		e.configure(t, name, account, fields{"verify": name != "pending" && name != "failing"})
		if name == "failing" {
			e.inject(account, errcode(40243))
			_, err := e.readToken(name)
			refused(t, err, http.StatusBadRequest)
		}
	}
	for _, test := range []struct {
		what, level string
		query       url.Values
		want        []string
	}{
		{"the first level", "", nil, []string{"failing", "myapp", "pending", "team-a/", "team-b"}},
		{"a level below", "team-a", nil, []string{"eu/", "shop"}},
		{"the lowest level", "team-a/eu", nil, []string{"shop"}},
		{"an empty level", "absent", nil, nil},
		{"all levels", "", url.Values{"recursive": {"true"}}, []string{"failing", "myapp", "pending", "team-a/eu/shop", "team-a/shop", "team-b"}},
		{"all below a level", "team-a", url.Values{"recursive": {"true"}}, []string{"eu/shop", "shop"}},
		{"the first page", "", url.Values{"recursive": {"true"}, "limit": {"2"}}, []string{"failing", "myapp"}},
		{"the next page", "", url.Values{"recursive": {"true"}, "limit": {"2"}, "after": {"myapp"}}, []string{"pending", "team-a/eu/shop"}},
		{"the last page", "", url.Values{"recursive": {"true"}, "limit": {"9"}, "after": {"team-a/shop"}}, []string{"team-b"}},
		{"nothing after the last", "", url.Values{"recursive": {"true"}, "after": {"team-b"}}, nil},
		{"after a name that is not there", "", url.Values{"after": {"n"}, "limit": {"1"}}, []string{"pending"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			keys, info := e.listStatus(t, test.level, test.query)
			if !slices.Equal(keys, test.want) {
				t.Errorf("the keys are %v, want %v", keys, test.want)
			}
			for _, key := range keys {
				of, found := info[key].(fields)
				if strings.HasSuffix(key, "/") {
					if found {
						t.Errorf("the level %s has the status %v", key, of)
					}
					continue
				}
				name := strings.TrimPrefix(test.level+"/"+key, "/")
				want := fields{"appid": appids[name], "state": "healthy", "expire_time": nil}
				if name == "pending" || name == "failing" {
					want["state"] = name
				} else {
					want["expire_time"] = e.token(t, name).Data["expire_time"]
				}
				if !reflect.DeepEqual(of, want) {
					t.Errorf("key_info of %s is %v, want %v", key, of, want)
				}
			}
		})
	}
}

// What hammering is: so many reads within that time.
const (
	hammerBlows = 1000
	hammerTime  = 10 * time.Second
)

// hammer reads a token in this way, while other readers still wait for an answer.
// Every read has to be refused with this status.
func (e *engine) hammer(t *testing.T, name string, status int, words ...string) {
	t.Helper()
	var reading sync.WaitGroup
	began := time.Now()
	for n := range hammerBlows {
		time.Sleep(time.Until(began.Add(hammerTime * time.Duration(n) / hammerBlows)))
		reading.Go(func() {
			_, err := e.readToken(name)
			refused(t, err, status, words...)
		})
	}
	reading.Wait()
	if took := time.Since(began); took > 2*hammerTime {
		t.Errorf("the reads took %s: answers that are remembered come at once", took)
	}
}

func TestHammeringReadersCostWeChatLittle(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault  wechatsim.Fault
		status int
		words  string
		most   int // calls
	}{
		"frozen secret":     {errcode(40243), http.StatusBadRequest, "errcode 40243", 1},
		"quota of a minute": {errcode(45011), http.StatusTooManyRequests, "errcode 45011", 1},
		// After 0, 1, 3 and 7 seconds; jitter shortens waits by up to a quarter.
		"server error": {wechatsim.Fault{Kind: "status", Status: 503}, http.StatusBadGateway, "server error", 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			account, other := e.account(wechatsim.Account{}), e.account(wechatsim.Account{})
			e.configure(t, "myapp", account, unverified)
			e.configure(t, "other", other, unverified)
			e.inject(account, test.fault)

			var hammering sync.WaitGroup
			hammering.Go(func() { e.hammer(t, "myapp", test.status, test.words) })
			eventually(t, patience, "the first failure", func() bool { return e.statusOf(t, "myapp")["state"] == "failing" })
			first := e.token(t, "other")
			for range 20 {
				sameToken(t, first, e.token(t, "other"))
			}
			hammering.Wait()
			t.Logf("%d reads in %s cost %d calls", hammerBlows, hammerTime, e.calls(account))
			if n := e.calls(account); n == 0 || n > test.most {
				t.Errorf("%d reads cost %d calls, want 1 to %d", hammerBlows, n, test.most)
			}
			if n := e.calls(other); n != 1 {
				t.Errorf("the other account cost %d calls, want 1", n)
			}

			// A write forgets what failed, whatever it changes: the next read asks.
			failed := e.calls(account)
			e.configure(t, "myapp", fields{"max_ttl": "2m"})
			is(t, e.statusOf(t, "myapp"), fields{"state": "pending", "last_error": nil, "consecutive_failures": json.Number("0"), "next_attempt_time": nil})
			_, err := e.readToken("myapp")
			refused(t, err, test.status, test.words)
			e.ClearFaults()
			e.configure(t, "myapp", fields{"max_ttl": "3m"})
			e.token(t, "myapp")
			if n := e.calls(account) - failed; n < 2 || n > 1+test.most {
				t.Errorf("the reads after the writes cost %d calls, want one each", n)
			}
			is(t, e.statusOf(t, "myapp"), fields{"state": "healthy", "last_error": nil})
		})
	}
}
