package wechat

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// loginFaults are failures that say nothing of a code: of the account, of WeChat, of a
// user as WeChat reports some, and of the way.
func loginFaults() map[string]wechatsim.Fault {
	return map[string]wechatsim.Fault{
		"busy":            {Kind: "errcode", Errcode: -1},
		"server error":    {Kind: "status", Status: 502},
		"forbidden":       {Kind: "status", Status: 403},
		"wrong secret":    {Kind: "errcode", Errcode: 40125},
		"IP not admitted": {Kind: "errcode", Errcode: 40164},
		"account limited": {Kind: "errcode", Errcode: 50002},
		"no right":        {Kind: "errcode", Errcode: 48001},
		"too often":       {Kind: "errcode", Errcode: 45011},
		"undocumented":    {Kind: "errcode", Errcode: 12345},
		"reset":           {Kind: "reset"},
		"hang":            {Kind: "hang", Hang: 100 * time.Millisecond},
		"a page":          {Kind: "notjson"},
	}
}

// loginFailsInARow has an account's logins fail for as often as it takes to refuse the next.
func (m *mount) loginFailsInARow(name string) {
	m.t.Helper()
	for range failuresInARow {
		m.loginFails(name, m.mini())
	}
}

func TestLoginsThatFailAtRandomRefuseNoOthers(t *testing.T) {
	type traffic struct {
		percent int // of the calls that fail
		apart   time.Duration
		fault   string
	}
	var all []traffic
	for _, percent := range []int{1, 5, 25} {
		for fault := range loginFaults() {
			all = append(all, traffic{percent, 10 * time.Millisecond, fault})
		}
		all = append(all, traffic{percent, 300 * time.Millisecond, "busy"}, traffic{percent, 5 * time.Second, "busy"})
	}
	for _, c := range all {
		t.Run(fmt.Sprintf("%d%% %s, %s apart", c.percent, c.fault, c.apart), func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				const logins = 500
				draw := rand.New(rand.NewPCG(1, uint64(c.percent)))
				m.write("demo", nil)
				m.sim.SetLatencyOf(wechatsim.APICode2Session, 30*time.Millisecond)
				fault := loginFaults()[c.fault]
				fault.API, fault.Times = wechatsim.APICode2Session, 1
				struck := 0
				var failed atomic.Int64
				var all sync.WaitGroup
				for range logins {
					if draw.IntN(100) < c.percent {
						m.sim.Inject(fault)
						struck++
					}
					code := m.mini()
					all.Go(func() {
						resp, err := m.request(logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": code})
						if err != nil || resp.IsError() {
							failed.Add(1)
						}
					})
					time.Sleep(c.apart)
				}
				all.Wait()
				require.Positive(t, struck)
				require.LessOrEqual(t, int(failed.Load()), struck+logins/100, "%d calls were struck", struck)
				require.GreaterOrEqual(t, m.logins(), logins-logins/100)
			})
		})
	}
}

// Whatever the failure is, and whether or not the account's logins have ever succeeded.
func TestLoginsThatAllFailAreFiveCallsASecondAtMost(t *testing.T) {
	for name, fault := range loginFaults() {
		for _, before := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, well before: %t", name, before), func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					m.write("demo", nil)
					fault.API = wechatsim.APICode2Session
					if before {
						m.login("demo", m.mini())
						m.sim.Inject(fault)
						for start := time.Now(); time.Since(start) < successCounts; time.Sleep(100 * time.Millisecond) {
							m.loginFails("demo", m.mini())
						}
					} else {
						m.sim.Inject(fault)
					}
					start, calls := time.Now(), m.logins()
					for time.Since(start) < 20*time.Second {
						status, text := m.loginFails("demo", m.mini())
						if m.logins() == calls {
							require.Contains(t, text, `the code was not sent for account "demo": its last logins failed, and one at a time tries again: `)
						}
						calls = m.logins()
						require.NotEqual(t, http.StatusServiceUnavailable, status)
						time.Sleep(10 * time.Millisecond)
					}
					all := m.sim.CallsOf(wechatsim.APICode2Session, "")
					for i := range all {
						if !all[i].Time.Before(start) && i+5 < len(all) {
							require.GreaterOrEqual(t, all[i+5].Time.Sub(all[i].Time), time.Second, "the six calls from the %d-th on", i)
						}
					}
					require.Greater(t, len(all), 20, "it goes on finding out whether it is mended")

					m.sim.ClearFaults()
					time.Sleep(tryPause)
					for range 10 {
						m.login("demo", m.mini())
					}
				})
			})
		}
	}
}

func TestABurstOfLoginsThatAllFailIsNoBurstOfCalls(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"secret": "wrong-secret", "verify": false})
		m.sim.SetLatency(100 * time.Millisecond)
		m.loginFailsInARow("demo")
		for _, pause := range []time.Duration{time.Second, 11 * time.Second, failureAge, 11 * time.Second} {
			time.Sleep(pause)
			before := m.logins()
			var all sync.WaitGroup
			for range 1000 {
				all.Go(func() { m.loginFails("demo", m.mini()) })
			}
			all.Wait()
			require.Equal(t, before+1, m.logins(), "after %s one tries", pause)
		}
	})
}

// One at a time tries, also where that one hangs.
func TestOneLoginAtATimeTriesWhetherAnAccountIsMended(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: -1, Times: failuresInARow})
		m.loginFailsInARow("demo")
		time.Sleep(time.Second)
		m.sim.SetLatencyOf(wechatsim.APICode2Session, 3*time.Second)
		var trying sync.WaitGroup
		trying.Go(func() { m.login("demo", m.mini()) })
		synctest.Wait()
		for range 2 {
			m.loginFails("demo", m.mini())
			time.Sleep(time.Second)
		}
		require.Equal(t, failuresInARow+1, m.logins())
		trying.Wait()
		m.login("demo", m.mini())
	})
}

func TestTheMemoryOfFailedLoginsIsOfOneAPI(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		web := func() {
			code := m.sim.Mint(testAppID, wechatsim.Code{API: wechatsim.APIOAuth2}).Code
			m.ok(logical.UpdateOperation, "oauth2/demo", map[string]any{"code": code})
		}
		for _, errcode := range []int{48004, 40013, -1} {
			m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: errcode})
			m.loginFailsInARow("demo")
			before := m.logins()
			web()
			m.loginFails("demo", m.mini())
			require.Equal(t, before, m.logins(), "a success of the other clears nothing")
			m.sim.ClearFaults()
			time.Sleep(time.Second)
			m.login("demo", m.mini())
			time.Sleep(successCounts)
		}
	})
}

// What WeChat said of a code holds whatever the secret: a second call would be 40163.
func TestANewSecretCostsNoCodeItsAnswer(t *testing.T) {
	const fresh = "another-secret"
	renew := func(m *mount) {
		m.sim.Update(testAppID, func(a *wechatsim.Account) { a.Secret = fresh })
		m.write("demo", map[string]any{"secret": fresh})
	}
	t.Run("between a login and its retry", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			code := m.mini()
			first := m.login("demo", code)
			renew(m)
			require.Equal(t, first, m.login("demo", code))
			require.Equal(t, 1, m.logins())
		})
	})
	t.Run("while the login is in the air", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			m.sim.SetLatencyOf(wechatsim.APICode2Session, 2*time.Second)
			code := m.sim.Mint(testAppID, wechatsim.Code{})
			var both sync.WaitGroup
			both.Go(func() { require.Equal(t, code.OpenID, m.login("demo", code.Code)) })
			synctest.Wait()
			renew(m)
			both.Go(func() { require.Equal(t, code.OpenID, m.login("demo", code.Code)) })
			both.Wait()
			require.Equal(t, 1, m.logins())
		})
	})
	t.Run("but it is asked again what the old one was refused", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
			m.write("demo", map[string]any{"secret": "wrong-secret", "verify": false})
			code := m.mini()
			m.loginFails("demo", code)
			m.write("demo", nil)
			m.login("demo", code)
		})
	})
	t.Run("and another account of the appid does not see the answer", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			m.write("stranger", map[string]any{"secret": "not-the-secret", "verify": false})
			code := m.mini()
			m.login("demo", code)
			_, text := m.loginFails("stranger", code)
			require.Contains(t, text, "errcode 40125")
		})
	})
}

// A write of the configuration is what one does after an address was admitted.
func TestWhatMendsAnAccountEndsTheRefusalOfItsLogins(t *testing.T) {
	for name, mend := range map[string]func(m *mount){
		"verify=true":    func(m *mount) { m.ok(logical.UpdateOperation, "config/demo", map[string]any{"verify": true}) },
		"a secret":       func(m *mount) { m.write("demo", nil) },
		"a proxy_url":    func(m *mount) { m.write("demo", map[string]any{"proxy_url": "", "verify": false}) },
		"max_ttl":        func(m *mount) { m.ok(logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60}) },
		"clear-quota":    func(m *mount) { m.ok(logical.UpdateOperation, "clear-quota/demo", nil) },
		"another name's": func(m *mount) { m.ok(logical.UpdateOperation, "clear-quota/twin", nil) },
		"delete and write": func(m *mount) {
			m.ok(logical.DeleteOperation, "config/demo", nil)
			m.write("demo", nil)
		},
		"on another node": func(m *mount) { m.InvalidateKey(m.t.Context(), "config/demo") },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("twin", nil)
				m.write("demo", nil)
				m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 45009})
				m.loginFailsInARow("demo")
				var late sync.WaitGroup
				time.Sleep(2 * failureAge)
				m.sim.SetLatencyOf(wechatsim.APICode2Session, time.Second)
				for range 2 * failuresInARow {
					late.Go(func() { m.loginFails("demo", m.mini()) })
				}
				time.Sleep(time.Second / 2)
				m.sim.ClearFaults()
				m.sim.SetLatencyOf(wechatsim.APICode2Session, 0)
				mend(m)
				m.login("demo", m.mini())
				late.Wait()
				for range 3 {
					m.login("demo", m.mini())
					time.Sleep(successCounts)
				}
				m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 45009})
				m.loginFailsInARow("demo")
				status, text := m.loginFails("demo", m.mini())
				require.Equal(t, http.StatusTooManyRequests, status)
				require.Contains(t, text, "was not sent", "it can happen again")
			})
		})
	}
}

// What WeChat refuses of one code again and again is one failure: its client repeats it.
func TestOneCodeThatIsRepeatedRefusesNoOthers(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 50002, Times: failuresInARow})
		limited := m.mini()
		for range failuresInARow {
			m.loginFails("demo", limited)
			time.Sleep(200 * time.Millisecond)
		}
		m.sim.ClearFaults()
		m.login("demo", m.mini())
	})
}

// A user whom WeChat limits, and whose client comes again and again with new codes, leaves
// tries to the others.
func TestALimitedUserOnAQuietAccountLeavesTriesToTheOthers(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.login("demo", m.mini())
		limited := func() {
			m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 50002, Times: 1})
			_ = m.try(logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": m.mini()})
			m.sim.ClearFaults()
		}
		refused := 0
		for range 30 {
			for range 40 { // 20 s
				limited()
				time.Sleep(500 * time.Millisecond)
			}
			if m.try(logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": m.mini()}) != nil {
				refused++
			}
		}
		require.LessOrEqual(t, refused, 3)
	})
}

// A login that comes right after a limited user's is not sent. Its code is good, and
// taken a moment later.
func TestALoginThatWasNotSentIsTakenAMomentLater(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		notSent := 0
		for n := range 30 {
			for range 20 { // 10 s
				time.Sleep(500 * time.Millisecond)
				m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 50002, Times: 1})
				m.loginFails("demo", m.mini())
				m.sim.ClearFaults()
			}
			time.Sleep(time.Duration(n) * 10 * time.Millisecond)
			code := m.mini()
			if err := m.try(logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": code}); err != nil {
				notSent++
				require.ErrorContains(t, err, "the code was not sent")
				time.Sleep(tryPause)
				m.login("demo", code)
			}
		}
		require.Equal(t, int(tryPause/(10*time.Millisecond)), notSent)
	})
}

// Calls that were in the air when the account began to fail end one by one, and none of
// them lets a second login try.
func TestLateFailuresLetNoSecondLoginTry(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"request_timeout": 30})
		m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "hang", Hang: 20 * time.Second})
		var late, tries sync.WaitGroup
		for range 40 {
			late.Go(func() { m.loginFails("demo", m.mini()) })
			time.Sleep(400 * time.Millisecond)
		}
		time.Sleep(8 * time.Second) // ten of them have failed
		before := m.logins()
		for range 100 {
			tries.Go(func() { m.loginFails("demo", m.mini()) })
			time.Sleep(100 * time.Millisecond)
		}
		require.Equal(t, before+1, m.logins())
		late.Wait()
		tries.Wait()
	})
}

func TestAnAccountThatHangsCostsAnotherNoLogin(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		var flood sync.WaitGroup
		hangs := func(n int) {
			name, appid := fmt.Sprintf("hangs/%d", n), fmt.Sprintf("wxhangs%d", n)
			m.sim.SetAccount(appid, wechatsim.Account{Secret: testSecret})
			m.write(name, map[string]any{"appid": appid, "request_timeout": 10})
			m.sim.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, AppID: appid, Kind: "hang"})
			for range maxLogins + 10 {
				flood.Go(func() { m.loginFails(name, m.mini()) })
			}
			synctest.Wait()
		}
		m.write("demo", map[string]any{"request_timeout": 1})
		for n := range maxMountLogins/maxLogins - 1 {
			hangs(n)
			require.Equal(t, (n+1)*maxLogins, m.sim.MaxInFlightOf(wechatsim.APICode2Session, ""))
			start := time.Now()
			for range 60 {
				m.login("demo", m.mini())
			}
			require.Zero(t, time.Since(start))
		}
		// Only where several hang the mount has no place left.
		hangs(maxMountLogins/maxLogins - 1)
		require.Equal(t, maxMountLogins, m.sim.MaxInFlightOf(wechatsim.APICode2Session, ""))
		start := time.Now()
		status, text := m.loginFails("demo", m.mini())
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Contains(t, text, "too many calls of WeChat are in flight")
		require.Equal(t, time.Second, time.Since(start), "its request_timeout")
		flood.Wait()
		m.login("demo", m.mini())
	})
}
