package wechat

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// mini mints a mini program's code.
func (m *mount) mini() string { return m.sim.Mint(testAppID, wechatsim.Code{}).Code }

// login exchanges a code, which has to succeed, and returns the openid.
func (m *mount) login(name, code string) string {
	m.t.Helper()
	openID, _ := m.ok(logical.UpdateOperation, "code2session/"+name, map[string]any{"js_code": code}).Data["openid"].(string)
	require.NotEmpty(m.t, openID)
	return openID
}

// loginFails exchanges a code, which has to fail, and returns the status and text.
func (m *mount) loginFails(name, code string) (int, string) {
	m.t.Helper()
	status, text := m.refused(logical.UpdateOperation, "code2session/"+name, map[string]any{"js_code": code})
	require.NotContains(m.t, text, code)
	return status, text
}

func (m *mount) logins() int { return len(m.sim.CallsOf(wechatsim.APICode2Session, "")) }

func TestACodeBecomesAnOpenID(t *testing.T) {
	for name, c := range map[string]struct {
		settings wechatsim.Account
		path     string
		code     wechatsim.Code
		data     map[string]any
		want     func(code wechatsim.Code) map[string]any // nil for what is random
	}{
		"a mini program": {
			wechatsim.Account{},
			"code2session/demo",
			wechatsim.Code{},
			nil,
			func(code wechatsim.Code) map[string]any { return map[string]any{"openid": code.OpenID, "unionid": nil} },
		},
		"a mini program that is bound": {
			wechatsim.Account{Bound: true},
			"code2session/demo",
			wechatsim.Code{},
			map[string]any{"include_session_key": false},
			func(code wechatsim.Code) map[string]any {
				return map[string]any{"openid": code.OpenID, "unionid": code.UnionID}
			},
		},
		"a mini program with its session key": {
			wechatsim.Account{},
			"code2session/demo",
			wechatsim.Code{},
			map[string]any{"include_session_key": true},
			func(code wechatsim.Code) map[string]any {
				return map[string]any{"openid": code.OpenID, "unionid": nil, "session_key": nil}
			},
		},
		"a web login": {
			wechatsim.Account{},
			"oauth2/demo",
			wechatsim.Code{API: wechatsim.APIOAuth2},
			nil,
			func(code wechatsim.Code) map[string]any {
				return map[string]any{"openid": code.OpenID, "unionid": nil, "scope": "snsapi_base", "access_token": nil, "refresh_token": nil, "expires_in": int64(7200), "is_snapshotuser": nil}
			},
		},
		"a web login in snapshot mode, with the user's consent": {
			wechatsim.Account{},
			"oauth2/demo",
			wechatsim.Code{API: wechatsim.APIOAuth2, Scope: "snsapi_userinfo", Snapshot: true},
			nil,
			func(code wechatsim.Code) map[string]any {
				return map[string]any{"openid": code.OpenID, "unionid": code.UnionID, "scope": "snsapi_userinfo", "access_token": nil, "refresh_token": nil, "expires_in": int64(7200), "is_snapshotuser": int64(1)}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, c.settings, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				code := m.sim.Mint(testAppID, c.code)
				data := map[string]any{"js_code": code.Code}
				if strings.HasPrefix(c.path, "oauth2") {
					data = map[string]any{"code": code.Code}
				}
				maps.Copy(data, c.data)
				m.changesNothing(0, func() {
					got := m.ok(logical.UpdateOperation, c.path, data).Data
					want := c.want(code)
					require.Len(t, got, len(want))
					for field, value := range want {
						switch field {
						case "access_token", "refresh_token", "session_key":
							require.NotEmpty(t, got[field], field)
						default:
							require.Equal(t, value, got[field], field)
						}
					}
				})
			})
		})
	}
}

func TestACodeThatIsSentAgainGetsTheSameAnswer(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		code := m.mini()
		first := m.login("demo", code)
		for range 3 {
			time.Sleep(3 * time.Second)
			require.Equal(t, first, m.login("demo", code))
		}
		require.Equal(t, 1, m.logins())
		time.Sleep(time.Second + 1)
		status, text := m.loginFails("demo", code)
		require.Equal(t, http.StatusBadRequest, status)
		require.Contains(t, text, `the code was not exchanged for account "demo": the code was used before (errcode 40163)`)
		require.Equal(t, 2, m.logins(), "ten seconds are over")

		_, again := m.loginFails("demo", code)
		require.Equal(t, text, again)
		require.Equal(t, 2, m.logins(), "a bad answer is remembered as well")
	})
}

// With and without the session key it is one code.
func TestTheSessionKeyIsGivenToWhoAsksForIt(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		code := m.mini()
		require.NotContains(t, m.ok(logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": code}).Data, "session_key")
		require.Len(t, m.ok(logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": code, "include_session_key": true}).Data["session_key"], 24)
		require.Equal(t, 1, m.logins())
	})
}

func TestAThousandLoginsWithOneCodeMakeOneCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.SetLatency(500 * time.Millisecond)
		code := m.sim.Mint(testAppID, wechatsim.Code{})
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() { require.Equal(t, code.OpenID, m.login("demo", code.Code)) })
		}
		all.Wait()
		require.Equal(t, 1, m.logins())
	})
}

// Another account's code, another API's and another configuration's are others.
func TestAnAnswerIsForOneAccountAndCode(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount("wxother", wechatsim.Account{Secret: testSecret})
		m.write("demo", nil)
		m.write("other", map[string]any{"appid": "wxother"})
		code := m.mini()
		openID := m.login("demo", code)
		_, text := m.loginFails("other", code)
		require.Contains(t, text, "errcode 40029")
		_, text = m.refused(logical.UpdateOperation, "oauth2/demo", map[string]any{"code": code})
		require.Contains(t, text, "errcode 40029")
		require.Equal(t, openID, m.login("demo", code))

		// The name is another account now.
		m.write("demo", map[string]any{"appid": "wxother"})
		_, text = m.loginFails("demo", code)
		require.Contains(t, text, "errcode 40029")

		// And now the first one again, which is not the one that it was.
		m.write("demo", nil)
		_, text = m.loginFails("demo", code)
		require.Contains(t, text, "errcode 40163")

		// Deleted and written anew.
		code = m.mini()
		m.login("demo", code)
		m.ok(logical.DeleteOperation, "config/demo", nil)
		status, text := m.loginFails("demo", code)
		require.Equal(t, http.StatusBadRequest, status)
		require.Contains(t, text, `no account "demo" is configured`)
		m.write("demo", nil)
		_, text = m.loginFails("demo", code)
		require.Contains(t, text, "errcode 40163")
	})
}

func TestALostAnswerIsNotRemembered(t *testing.T) {
	for _, kind := range []string{"lost", "truncate", "hang", "reset", "notjson", "oversize", "redirect", "notoken"} {
		t.Run(kind, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				code := m.mini()
				m.login("demo", m.mini()) // there is a connection to lose it on
				m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: kind, Times: 1})
				before := m.logins()
				status, _ := m.loginFails("demo", code)
				require.Equal(t, http.StatusBadGateway, status)
				require.Equal(t, before+1, m.logins(), "net/http must not send a code twice")
				resp, err := m.request(logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": code})
				require.Equal(t, before+2, m.logins(), "the next request asks WeChat again")
				if err == nil && resp.IsError() {
					require.Contains(t, resp.Error().Error(), "errcode 40163", "it had taken the code")
				}
			})
		})
	}
}

func TestEveryErrcodeOfALoginHasItsStatus(t *testing.T) {
	for errcode, status := range map[int]int{
		-1: 502, 40029: 400, 40163: 400, 41008: 400, 40226: 400, 45011: 429, 40013: 400, 40125: 400, 40164: 400, 41002: 502, 41004: 502,
		45009: 429, 48001: 400, 50002: 400, 12345: 502,
	} {
		for _, request := range []struct{ api, path, field string }{{wechatsim.APICode2Session, "code2session/demo", "js_code"}, {wechatsim.APIOAuth2, "oauth2/demo", "code"}} {
			t.Run(fmt.Sprintf("%s %d", request.path, errcode), func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					m.write("demo", nil)
					m.sim.Inject(wechatsim.Fault{API: request.api, Kind: "errcode", Errcode: errcode, Errmsg: "no, hints: [ req_id: eFEbR7yFe-gjd.pA ] ip 1.2.3.4"})
					m.changesNothing(0, func() {
						got, text := m.refused(logical.UpdateOperation, request.path, map[string]any{request.field: m.mini()})
						require.Equal(t, status, got, text)
						require.Contains(t, text, fmt.Sprintf("errcode %d", errcode))
						require.NotContains(t, text, upstream.TriesAgain, "the engine does not")
						require.NotContains(t, text, "eFEbR7yFe", "a rid is for the log")
						require.Equal(t, errcode == 40164, strings.Contains(text, "1.2.3.4"))
						require.Contains(t, m.logs.String(), "eFEbR7yFe")
					})
					require.Equal(t, stateHealthy, m.statusOf("demo")["state"], "it is not the token's")
				})
			})
		}
	}
}

// A storm of logins with a wrong secret is not a storm of calls.
func TestFailedLoginsOfAnAccountAreNoOtherAccounts(t *testing.T) {
	for name, fault := range loginFaults() {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount("wxother", wechatsim.Account{Secret: testSecret})
				m.write("demo", nil)
				m.write("other", map[string]any{"appid": "wxother"})
				fault.API, fault.AppID = wechatsim.APICode2Session, testAppID
				m.sim.Inject(fault)
				m.loginFailsInARow("demo")
				var all sync.WaitGroup
				for range 1000 {
					all.Go(func() { m.loginFails("demo", m.mini()) })
				}
				all.Wait()
				require.Equal(t, failuresInARow, m.logins())
				m.login("other", m.sim.Mint("wxother", wechatsim.Code{}).Code)
			})
		})
	}
	t.Run("a user's own fault is no other user's", func(t *testing.T) {
		inBubble(t, wechatsim.Account{LoginsPerMinute: 1}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			user := wechatsim.Code{OpenID: "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o"}
			m.login("demo", m.sim.Mint(testAppID, user).Code)
			for range 2 * failuresInARow {
				status, text := m.loginFails("demo", m.sim.Mint(testAppID, user).Code)
				require.Equal(t, http.StatusTooManyRequests, status)
				require.Contains(t, text, "this user or this appid logs in more often")
			}
			for range 2 * failuresInARow {
				status, _ := m.loginFails("demo", m.sim.Mint(testAppID, wechatsim.Code{Risky: true}).Code)
				require.Equal(t, http.StatusBadRequest, status)
			}
			time.Sleep(successCounts)
			m.login("demo", m.mini())

			web := func() string { return m.sim.Mint(testAppID, wechatsim.Code{API: wechatsim.APIOAuth2}).Code }
			m.sim.Inject(wechatsim.Fault{API: wechatsim.APIOAuth2, Kind: "errcode", Errcode: 45011, Times: 1})
			status, text := m.refused(logical.UpdateOperation, "oauth2/demo", map[string]any{"code": web()})
			require.Equal(t, http.StatusTooManyRequests, status)
			require.Contains(t, text, "this user or this appid logs in more often")
			m.ok(logical.UpdateOperation, "oauth2/demo", map[string]any{"code": web()})
		})
	})
}

// A login hours after a failure is not told of it while another finds out.
func TestAFailureOfLongAgoRefusesNoLogin(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 40164, Times: failuresInARow})
		m.loginFailsInARow("demo")
		time.Sleep(time.Hour)
		m.sim.SetLatency(100 * time.Millisecond)
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() { m.login("demo", m.mini()) })
		}
		all.Wait()
	})
}

func TestLoginsThatFailNowAndThenAreLoggedOnceAMinute(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for range 2 {
			for range 50 {
				m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: -1, Times: 1})
				m.loginFails("demo", m.mini())
				time.Sleep(time.Second)
				m.login("demo", m.mini())
			}
			time.Sleep(10 * time.Second)
		}
		require.Equal(t, 2, strings.Count(m.logs.String(), "WeChat was asked for a login in vain"))
		m.ok(logical.DeleteOperation, "config/demo", nil)
		require.Empty(t, m.backend.logins.accounts, "nothing is left of it")
	})
}

func TestAtMost256LoginsAreInFlight(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.SetLatencyOf(wechatsim.APICode2Session, 2*time.Second)
		var all sync.WaitGroup
		start := time.Now()
		for range 2 * maxLogins {
			all.Go(func() { m.login("demo", m.mini()) })
		}
		all.Wait()
		require.Equal(t, 4*time.Second, time.Since(start), "two rounds")
		require.Equal(t, maxLogins, m.sim.MaxInFlightOf(wechatsim.APICode2Session, ""))
	})
}

// A flood of logins that hang must not delay a token, and what finds no place is
// told so.
func TestAFloodOfLoginsAtAHangingWeChat(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"request_timeout": 10})
		m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "hang"})
		var flood sync.WaitGroup
		for range maxLogins {
			flood.Go(func() {
				status, text := m.loginFails("demo", m.mini())
				require.Equal(t, http.StatusBadGateway, status)
				require.Contains(t, text, "no answer within 10s")
			})
		}
		synctest.Wait()
		require.Equal(t, maxLogins, m.logins())

		start := time.Now()
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"request_timeout": 2})
		status, text := m.loginFails("demo", m.mini())
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Contains(t, text, `the code was not sent for account "demo": too many calls of WeChat are in flight`)
		require.Equal(t, 2*time.Second, time.Since(start), "its request_timeout, and the write gives it no more places")
		require.Equal(t, maxLogins, m.logins())

		start = time.Now()
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		m.read("demo")
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		require.Zero(t, time.Since(start), "neither waits for a login")
		flood.Wait()
		require.Equal(t, stateHealthy, m.statusOf("demo")["state"])
	})
}

func TestALoginThatWasSentIsFinished(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.SetLatencyOf(wechatsim.APICode2Session, 2*time.Second)
		code := m.sim.Mint(testAppID, wechatsim.Code{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := m.requestContext(ctx, logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": code.Code})
		require.Equal(t, context.DeadlineExceeded, err)
		time.Sleep(5 * time.Second)
		require.Equal(t, code.OpenID, m.login("demo", code.Code), "the client's retry finds it")
		require.Equal(t, 1, m.logins())
	})
}

func TestASealEndsLogins(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "hang"})
		var all sync.WaitGroup
		for range maxLogins + 10 {
			all.Go(func() {
				_, err := m.request(logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": m.mini()})
				require.Equal(t, errClosing, err)
			})
		}
		synctest.Wait()
		start := time.Now()
		m.close()
		all.Wait()
		require.Zero(t, time.Since(start))
	})
}

func TestLoginsLeaveNothingBehind(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for range 100 {
			m.login("demo", m.mini())
			time.Sleep(50 * time.Millisecond)
		}
		m.loginFails("demo", "unknown-code")
		m.refused(logical.UpdateOperation, "oauth2/absent", map[string]any{"code": "c"})
		require.Len(t, m.backend.logins.accounts, 1)
		m.ok(logical.DeleteOperation, "config/demo", nil)
		require.Empty(t, m.backend.logins.accounts)
	})
}

func TestLoginsReadTheConfigurationOncePerChange(t *testing.T) {
	const fresh = "another-secret"
	renew := func(m *mount) { m.sim.SetAccount(testAppID, wechatsim.Account{Secret: fresh}) }
	for name, change := range map[string]func(m *mount){
		"nothing": func(*mount) {},
		"a secret": func(m *mount) {
			renew(m)
			m.write("demo", map[string]any{"secret": fresh})
		},
		"a secret, not tried": func(m *mount) {
			renew(m)
			m.write("demo", map[string]any{"secret": fresh, "verify": false})
		},
		"a secret, on another node": func(m *mount) {
			renew(m)
			cfg, err := loadConfig(m.t.Context(), m.storage, "demo")
			require.NoError(m.t, err)
			cfg.Secret = fresh
			require.NoError(m.t, storeConfig(m.t.Context(), m.storage, "demo", cfg))
			m.InvalidateKey(m.t.Context(), "config/demo")
			m.login("demo", m.mini()) // from storage, until the account is loaded
			m.read("demo")
		},
		"the account, by one of the same name": func(m *mount) {
			renew(m)
			m.ok(logical.DeleteOperation, "config/demo", nil)
			m.write("demo", map[string]any{"secret": fresh})
		},
		"what is not the secret": func(m *mount) {
			m.ok(logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.login("demo", m.mini())
				change(m)
				m.login("demo", m.mini())
				ops := m.storage.count()
				m.login("demo", m.mini())
				require.Equal(t, ops, m.storage.count())
				m.ok(logical.DeleteOperation, "config/demo", nil)
				status, _ := m.loginFails("demo", m.mini())
				require.Equal(t, http.StatusBadRequest, status)
			})
		})
	}
}

func TestALoginIsMadeWithTheConfigurationOfTheMoment(t *testing.T) {
	for name, change := range map[string]func(m *mount){
		"here": func(m *mount) { m.write("demo", map[string]any{"request_timeout": 9}) },
		"on another node": func(m *mount) {
			cfg, err := loadConfig(m.t.Context(), m.storage, "demo")
			require.NoError(m.t, err)
			cfg.RequestTimeout = 9 * time.Second
			require.NoError(m.t, storeConfig(m.t.Context(), m.storage, "demo", cfg))
			m.InvalidateKey(m.t.Context(), "config/demo")
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				change(m)
				now, err := m.keeper.configOf(t.Context(), m.storage, "demo")
				require.NoError(t, err)
				require.Equal(t, 9*time.Second, now.RequestTimeout)
			})
		})
	}
}

func TestBadInputToALoginIsNamedAndNotShown(t *testing.T) {
	const secret = "c0de-that-must-not-be-seen"
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for _, request := range []struct{ path, field string }{{"code2session/demo", "js_code"}, {"oauth2/demo", "code"}} {
			for kind, c := range map[string]struct {
				data map[string]any
				says string
			}{
				"missing":            {nil, request.field + " is missing: send the code that "},
				"empty":              {map[string]any{request.field: ""}, request.field + " is missing"},
				"null":               {map[string]any{request.field: nil}, request.field + " must be a string"},
				"an object":          {map[string]any{request.field: map[string]any{"v": secret}}, request.field + " must be a string"},
				"a list":             {map[string]any{request.field: []any{secret}}, request.field + " must be a string"},
				"a bool":             {map[string]any{request.field: true}, request.field + " must be a string"},
				"64 KiB":             {map[string]any{request.field: strings.Repeat(secret, 64<<10/len(secret))}, "is longer than 1024 bytes"},
				"a line end":         {map[string]any{request.field: secret + "\n"}, "check for a line end at its end"},
				"a blank":            {map[string]any{request.field: "a " + secret}, "holds white space"},
				"NUL":                {map[string]any{request.field: secret + "\x00"}, "cannot be seen"},
				"a direction":        {map[string]any{request.field: secret + "\u202e"}, "cannot be seen"},
				"no UTF-8":           {map[string]any{request.field: secret + "\xff"}, "cannot be seen"},
				"the other's field":  {map[string]any{"rejected_token": secret}, "nothing was changed"},
				"the others' fields": {map[string]any{"secret": secret, "appid": secret}, request.field},
			} {
				m.changesNothing(0, func() {
					resp, err := m.request(logical.UpdateOperation, request.path, c.data)
					require.NotContains(t, shown(t, resp, err), secret, kind)
					status, text := m.status(resp, err)
					require.Equal(t, http.StatusBadRequest, status, kind)
					require.Contains(t, text, c.says, kind)
				})
			}
			status, text := m.refused(logical.UpdateOperation, strings.Replace(request.path, "demo", "absent", 1), map[string]any{request.field: "c"})
			require.Equal(t, http.StatusBadRequest, status)
			require.Contains(t, text, "an operator adds an account of that name at wechat/config/absent")
			status, text = m.refused(logical.UpdateOperation, strings.Replace(request.path, "demo", "no..body-", 1), map[string]any{request.field: "c"})
			require.Equal(t, http.StatusBadRequest, status)
			require.Contains(t, text, nameRule)
		}
		for _, wrong := range []any{secret, nil, "", 2, []any{secret}} {
			resp, err := m.request(logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": "c", "include_session_key": wrong})
			require.NotContains(t, shown(t, resp, err), secret)
			status, text := m.status(resp, err)
			require.Equal(t, http.StatusBadRequest, status)
			require.Equal(t, "include_session_key must be true or false", text)
		}
		require.Zero(t, m.logins())
		require.NotContains(t, m.logs.String(), secret)
	})
}

// Whatever a code is made of, it is one parameter of one call.
func TestOddCodesAreSentAsTheyAre(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for _, odd := range []string{"a&secret=x", "a%00b", "a#b?c=d", "+", "/../..", "ä店", `"'\`, ";", strings.Repeat("x", maxCode)} {
			code := m.sim.Mint(testAppID, wechatsim.Code{Code: odd})
			require.Equal(t, code.OpenID, m.login("demo", odd), odd)
		}
	})
}

func TestLoginsAreTheActiveNodes(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		for path, data := range map[string]map[string]any{
			"code2session/demo": {"js_code": "c"}, "oauth2/demo": {"code": "c"}, "clear-quota/demo": nil,
			"code2session/absent": nil, "oauth2/-": nil, "clear-quota/absent": nil,
		} {
			op, ok := m.Route(path).Operations[logical.UpdateOperation]
			require.True(t, ok)
			require.True(t, op.Properties().ForwardPerformanceStandby, path)
			require.True(t, op.Properties().ForwardPerformanceSecondary, path)
			require.Len(t, m.Route(path).Operations, 1, path)
			writable := m.keeper.writable
			m.keeper.writable = func() bool { return false }
			_, err := m.request(logical.UpdateOperation, path, data)
			require.Equal(t, logical.ErrReadOnly, err, "Vault forwards on the bare error only: %s", path)
			m.keeper.writable = writable
		}
		require.Len(t, m.sim.CallsOf(wechatsim.AllAPIs, ""), 1, "the write's")
	})
}

// Whatever happens, no secret, code, key or token is in a log or in an error.
func TestNothingOfALoginIsShownOrLogged(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		var secrets []string
		for _, fault := range []wechatsim.Fault{
			{Kind: "echo"},
			{Kind: "echo", Status: 403},
			{Kind: "echo", Status: 502},
			{Kind: "redirect"},
			{Kind: "hang"},
			{Kind: "lost"},
			{Kind: "truncate"},
			{Kind: "oversize"},
			{Kind: "notjson"},
			{Kind: "field", Field: "openid", Value: `"with blank"`},
			{Kind: "drip"},
			{Kind: "headers"},
			{Kind: "gzip"},
			{Kind: "sametoken"},
		} {
			for _, request := range []struct{ api, path, field string }{{wechatsim.APICode2Session, "code2session/demo", "js_code"}, {wechatsim.APIOAuth2, "oauth2/demo", "code"}} {
				code := m.sim.Mint(testAppID, wechatsim.Code{API: request.api}).Code
				secrets = append(secrets, code)
				fault.API, fault.Times = request.api, 1
				m.sim.Inject(fault)
				data := map[string]any{request.field: code}
				if request.api == wechatsim.APICode2Session {
					data["include_session_key"] = true
				}
				resp, err := m.request(logical.UpdateOperation, request.path, data)
				if err != nil || resp.IsError() {
					requireNoPieceOf(t, shown(t, resp, err), code, testSecret)
				} else {
					for _, field := range []string{"session_key", "access_token", "refresh_token", "openid"} {
						if value, _ := resp.Data[field].(string); value != "" {
							secrets = append(secrets, value)
						}
					}
				}
				m.sim.ClearFaults()
				time.Sleep(tryPause)
			}
		}
		require.Greater(t, len(secrets), 30)
		requireNoPieceOf(t, m.logs.String(), append(secrets, testSecret)...)
	})
}
