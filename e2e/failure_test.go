//go:build e2e

package e2e

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// callersIP is whom the platform sees calling.
const callersIP = "127.0.0.1"

// failures are what WeChat may do, and what the engine makes of it while it has
// no valid token.
var failures = map[string]struct {
	fault  wechatsim.Fault
	status int
	words  []string // in the message
	kept   bool     // it is not tried again by the next read
}{
	"wrong secret":         {errcode(40001), 400, []string{"errcode 40001", "secret"}, true},
	"invalid secret":       {errcode(40125), 400, []string{"errcode 40125", "secret"}, true},
	"invalid appid":        {errcode(40013), 400, []string{"errcode 40013", "appid"}, true},
	"frozen secret":        {errcode(40243), 400, []string{"errcode 40243", "frozen", "console"}, true},
	"IP not whitelisted":   {errcode(40164), 400, []string{"errcode 40164", "whitelist", callersIP}, true},
	"IP not registered":    {errcode(61004), 400, []string{"errcode 61004", "whitelist", callersIP}, true},
	"IP not admitted":      {errcode(45035), 400, []string{"errcode 45035", "whitelist", callersIP}, true},
	"IP to be confirmed":   {errcode(89501), 400, []string{"errcode 89501", "administrator", callersIP}, true},
	"IP to be confirmed 2": {errcode(89503), 400, []string{"errcode 89503", "administrator", callersIP}, true},
	"IP refused once":      {errcode(89507), 400, []string{"errcode 89507", "administrator", callersIP}, true},
	"IP refused twice":     {errcode(89506), 400, []string{"errcode 89506", "administrator", callersIP}, true},
	"API forbidden":        {errcode(48004), 400, []string{"errcode 48004", "console"}, true},
	"account limited":      {errcode(50002), 400, []string{"errcode 50002", "console"}, true},
	"account punished":     {errcode(50004), 400, []string{"errcode 50004", "console"}, true},
	"daily quota":          {errcode(45009), 429, []string{"errcode 45009", "quota", "console"}, true},
	"quota of a minute":    {errcode(45011), 429, []string{"errcode 45011", "quota"}, true},
	"busy":                 {errcode(-1), 502, []string{"errcode -1", "busy"}, false},
	"undocumented errcode": {errcode(12345), 502, []string{"errcode 12345", "not documented"}, false},
	"server error":         {wechatsim.Fault{Kind: "status", Status: 503}, 502, []string{"server error"}, false},
	"no page":              {wechatsim.Fault{Kind: "status", Status: 404}, 502, []string{"not the documented one"}, false},
	"hanging":              {wechatsim.Fault{Kind: "hang"}, 502, []string{"no answer within 1s"}, false},
	"connection reset":     {wechatsim.Fault{Kind: "reset"}, 502, []string{"cannot be reached"}, false},
	"answer lost":          {wechatsim.Fault{Kind: "lost"}, 502, []string{"cannot be reached"}, false},
	"answer cut off":       {wechatsim.Fault{Kind: "truncate"}, 502, []string{"cannot be reached"}, false},
	"answer too large":     {wechatsim.Fault{Kind: "oversize"}, 502, []string{"not the documented one"}, false},
	"no JSON":              {wechatsim.Fault{Kind: "notjson"}, 502, []string{"not the documented one"}, false},
	"redirect":             {wechatsim.Fault{Kind: "redirect"}, 502, []string{"not the documented one"}, false},
	"no token":             {wechatsim.Fault{Kind: "notoken"}, 502, []string{"not the documented one"}, false},
	"expires_in 0":         {wechatsim.Fault{Kind: "expires_in", ExpiresIn: "0"}, 502, []string{"not the documented one"}, false},
	"expires_in negative":  {wechatsim.Fault{Kind: "expires_in", ExpiresIn: "-1"}, 502, []string{"not the documented one"}, false},
	"expires_in missing":   {wechatsim.Fault{Kind: "expires_in"}, 502, []string{"not the documented one"}, false},
	"expires_in no number": {wechatsim.Fault{Kind: "expires_in", ExpiresIn: `"soon"`}, 502, []string{"not the documented one"}, false},
}

func errcode(code int) wechatsim.Fault { return wechatsim.Fault{Kind: "errcode", Errcode: code} }

func TestReadWithoutATokenTellsWhatFailed(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for name, test := range failures {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := strings.ReplaceAll(name, " ", "-")
			account := e.account(wechatsim.Account{})
			e.configure(t, path, account, unverified, fields{"request_timeout": "1s"})
			e.inject(account, test.fault)
			_, err := e.readToken(path)
			refused(t, err, test.status, append(test.words, path, "what to do")...)
			if strings.Contains(err.Error(), "rid ") {
				t.Errorf("a reader of tokens is shown the rid of a call that carried the AppSecret: %v", err)
			}
			if test.kept {
				_, err = e.readToken(path)
				refused(t, err, test.status, append(test.words, path, "what to do")...)
				if n := e.calls(account); n != 1 {
					t.Errorf("two reads cost %d calls, want 1: the failure is to be remembered", n)
				}
			}
		})
	}
}

// A redirect is a way to lead the secret elsewhere.
func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	var followed atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	t.Cleanup(elsewhere.Close)
	for _, status := range []int{301, 302, 303, 307, 308} {
		front := httptest.NewServer(http.RedirectHandler(elsewhere.URL+"/cgi-bin/stable_token", status))
		t.Cleanup(front.Close)
		_, err := e.write("myapp", e.account(wechatsim.Account{}), fields{"base_url": front.URL})
		refused(t, err, http.StatusBadGateway, "not the documented one")
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

// The end of the test looks for the secret in the server's files.
func TestSecretThatIsEchoedIsNotShown(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for _, code := range []int{-1, 40125, 40164, 12345} {
		account := e.account(wechatsim.Account{})
		secret := account["secret"].(string)
		fault := errcode(code)
		fault.Errmsg = "the secret " + secret + " is wrong, ip " + secret + " rid: " + secret
		e.inject(account, fault)
		_, err := e.write("myapp", account)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("errcode %d: the answer is %v, want an error without the secret", code, err)
		}
		e.configure(t, "myapp", account, unverified)
		_, err = e.readToken("myapp")
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("errcode %d: the answer is %v, want an error without the secret", code, err)
		}
	}
}

func TestAccountWorksAgainAfterATransientFailure(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, unverified)
	fault := errcode(-1)
	fault.Times = 1
	e.inject(account, fault)
	_, err := e.readToken("myapp")
	refused(t, err, http.StatusBadGateway)
	eventually(t, patience, "the next attempt succeeds", func() bool {
		_, err := e.readToken("myapp")
		return err == nil
	})
	e.token(t, "myapp")
}

func TestConfigWriteClearsARememberedFailure(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, unverified, fields{"secret": e.hide(random())})
	_, err := e.readToken("myapp")
	refused(t, err, http.StatusBadRequest, "errcode 40125")
	e.configure(t, "myapp", account, unverified)
	e.token(t, "myapp")
}

// A token of 300 s is due after 10 s, and is then still good for long.
func TestValidTokenIsServedWhileWeChatFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault    wechatsim.Fault
		word     string // in the warning
		attempts int    // calls, the first of which succeeded, to wait for
	}{
		"server-error": {wechatsim.Fault{Kind: "status", Status: 503}, "server error", 4},
		"hanging":      {wechatsim.Fault{Kind: "hang"}, "no answer", 4},
		"refusal":      {errcode(40125), "errcode 40125", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			account := e.account(wechatsim.Account{Lifetime: 300 * time.Second})
			e.configure(t, "myapp", account, fields{"request_timeout": "2s"})
			first := e.token(t, "myapp")
			if len(first.Warnings) != 0 {
				t.Errorf("there are warnings while nothing is wrong: %v", first.Warnings)
			}
			e.Inject(test.fault)
			eventually(t, patience, "the failed attempts", func() bool {
				sameToken(t, first, e.token(t, "myapp"))
				return e.calls(account) >= test.attempts
			})
			eventually(t, patience, "a warning of what fails", func() bool {
				answer := e.token(t, "myapp")
				sameToken(t, first, answer)
				if got := ttl(t, answer); got < 5 || got > 10 {
					t.Errorf("ttl is %d while WeChat fails, want a short one", got)
				}
				return len(answer.Warnings) == 1 && strings.Contains(answer.Warnings[0], test.word)
			})
			e.ClearFaults()
			eventually(t, 2*time.Minute, "the token is replaced", func() bool {
				return accessToken(e.token(t, "myapp")) != accessToken(first)
			})
			recovered := e.token(t, "myapp")
			otherToken(t, first, recovered)
			if len(recovered.Warnings) != 0 {
				t.Errorf("a warning stays after WeChat has recovered: %v", recovered.Warnings)
			}
		})
	}
}

// While the token is not due, no reader waits for a comparison with WeChat's, or is told
// that it fails.
func TestFailingComparisonDisturbsNoReader(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "myapp", account, fields{"sync_interval": 60, "request_timeout": 4})
	first := e.token(t, "myapp")
	e.Inject(wechatsim.Fault{Kind: "hang"})
	eventually(t, 2*time.Minute, "the comparison begins", func() bool { return e.calls(account) == 2 })
	began := time.Now()
	eventually(t, patience, "the comparison has failed", func() bool {
		asked := time.Now()
		answer := e.token(t, "myapp")
		if waited := time.Since(asked); waited > 3*time.Second {
			t.Errorf("a read took %s", waited)
		}
		sameToken(t, first, answer)
		if got := ttl(t, answer); got != 240 || len(answer.Warnings) != 0 {
			t.Errorf("ttl is %d with the warnings %v, want 240 and none", got, answer.Warnings)
		}
		return time.Since(began) > 6*time.Second
	})
}

func TestReadFailsAfterTheTokensEnd(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	account := e.account(wechatsim.Account{Lifetime: 16 * time.Second, Overlap: 12 * time.Second})
	e.configure(t, "myapp", account)
	first := e.token(t, "myapp")
	e.inject(account, wechatsim.Fault{Kind: "status", Status: 503})
	var err error
	eventually(t, patience, "the token ends", func() bool {
		if _, err = e.readToken("myapp"); err == nil {
			if _, errcode := e.Check(accessToken(first)); errcode != 0 {
				t.Fatal("a token was read after its end")
			}
		}
		return err != nil
	})
	refused(t, err, http.StatusBadGateway, "server error", "what to do")
	e.ClearFaults()
	eventually(t, patience, "there is a token again", func() bool {
		_, err := e.readToken("myapp")
		return err == nil
	})
	otherToken(t, first, e.token(t, "myapp"))
}

// unreachable is the URL of a port without a listener.
func unreachable(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	return "http://" + listener.Addr().String()
}

// verifyRefusals are ways in which the verification of a write ends badly: the
// settings of the account, the fault, or the fields of the write make it so.
var verifyRefusals = map[string]struct {
	spoil  func(t *testing.T, e *engine, account fields) fields // returns fields for the write
	status int
	words  []string
}{
	"bad secret": {func(_ *testing.T, e *engine, _ fields) fields {
		return fields{"secret": e.hide(random())}
	}, 400, []string{"errcode 40125", "secret", "rid", "what to do"}},
	"unknown appid": {func(*testing.T, *engine, fields) fields {
		return fields{"appid": "wx" + random()[:16]}
	}, 400, []string{"errcode 40013", "appid", "rid", "what to do"}},
	"IP not admitted": {func(_ *testing.T, e *engine, account fields) fields {
		e.Update(account["appid"].(string), func(a *wechatsim.Account) { a.AllowedIPs = []string{"192.0.2.1"} })
		return nil
	}, 400, []string{"errcode 40164", callersIP, "whitelist", "rid", "what to do"}},
	"daily quota": {func(_ *testing.T, e *engine, account fields) fields {
		e.inject(account, errcode(45009))
		return nil
	}, 429, []string{"errcode 45009", "rid", "what to do"}},
	"quota of a minute": {func(_ *testing.T, e *engine, account fields) fields {
		e.inject(account, errcode(45011))
		return nil
	}, 429, []string{"errcode 45011", "rid", "what to do"}},
	"busy": {func(_ *testing.T, e *engine, account fields) fields {
		e.inject(account, errcode(-1))
		return nil
	}, 502, []string{"errcode -1", "verify=false"}},
	"unreachable": {func(t *testing.T, _ *engine, _ fields) fields {
		return fields{"base_url": unreachable(t)}
	}, 502, []string{"cannot be reached", "verify=false"}},
	"no JSON": {func(_ *testing.T, e *engine, account fields) fields {
		e.inject(account, wechatsim.Fault{Kind: "notjson"})
		return nil
	}, 502, []string{"verify=false"}},
}

func TestRefusedVerificationLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for name, test := range verifyRefusals {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := strings.ReplaceAll(name, " ", "-")
			account := e.account(wechatsim.Account{})
			_, err := e.write(path, account, test.spoil(t, e, account))
			refused(t, err, test.status, append(test.words, path)...)
			e.absent(t, path)
		})
	}
}

func TestRefusedVerificationLeavesTheAccountAsItWas(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for name, test := range verifyRefusals {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := strings.ReplaceAll(name, " ", "-")
			account := e.account(wechatsim.Account{})
			e.configure(t, path, account)
			config, token := e.config(t, path), e.token(t, path)
			_, err := e.write(path, account, fields{"max_ttl": "30s"}, test.spoil(t, e, account))
			refused(t, err, test.status, append(test.words, path)...)
			sameFields(t, config, e.config(t, path))
			sameToken(t, token, e.token(t, path))
		})
	}
}
