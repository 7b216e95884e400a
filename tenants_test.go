package wechat

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// In these tests an attacker may write accounts below team-e/ and knows an AppID, which is
// public, but not its secret. That must not disturb the account of this AppID.

const (
	ownURL = "http://127.0.0.9:80" // where the server of their own is

	// wechatsOtherPort is a port of WeChat's host that does not answer as WeChat does:
	// one that a firewall leaves without an answer, say.
	wechatsOtherPort = "127.0.0.1:81"
)

// withOwnServer gives the mount a second platform, of their own: at ownURL, at
// wechatsOtherPort and at all ports and addresses of 127.0.9.0/24, any secret is the
// right one for any AppID.
func withOwnServer(m *mount, settings wechatsim.Account) *wechatsim.Sim {
	own, pipe := wechatsim.New(), wechatsim.NewPipe()
	settings.Secret = testSecret
	own.SetAccount(testAppID, settings)
	m.t.Cleanup(own.Serve(pipe))
	m.keeper.client.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(ownURL, "http://"+addr) || strings.HasPrefix(addr, "127.0.9.") || addr == wechatsOtherPort {
			return pipe.DialContext(ctx, network, addr)
		}
		return m.pipe.DialContext(ctx, network, addr)
	}
	return own
}

// undisturbed checks that the account "victim" has the token that it had, and that no call
// was made for it and none of its forced refreshes used up.
func (m *mount) undisturbed(held any, calls int) {
	m.t.Helper()
	synctest.Wait()
	begin := time.Now()
	got := m.read("victim")
	require.Zero(m.t, time.Since(begin))
	require.Equal(m.t, held, got["access_token"])
	require.Equal(m.t, stateHealthy, m.statusOf("victim")["state"])
	require.Equal(m.t, forcedPerDay, m.statusOf("victim")["rotations_remaining"])
	require.Equal(m.t, calls, m.calls())
}

func TestAServerOfTheirOwnUsesUpNoForcedRefreshOfOthers(t *testing.T) {
	for _, after := range []string{"", "its server then fails"} {
		t.Run(after, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				own := withOwnServer(m, wechatsim.Account{})
				m.write("victim", nil)
				held, calls := m.read("victim")["access_token"], m.calls()
				m.write("team-e/x", map[string]any{"base_url": ownURL})
				if after != "" {
					own.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable})
				}
				for range forcedPerDay {
					_ = m.try(logical.UpdateOperation, "rotate/team-e/x", nil)
					m.undisturbed(held, calls)
					time.Sleep(forcedSpacing + defaultRequestTimeout)
				}
				status, _ := m.refused(logical.UpdateOperation, "rotate/team-e/x", nil)
				require.Equal(t, http.StatusTooManyRequests, status)
				m.undisturbed(held, calls)
				m.ok(logical.UpdateOperation, "rotate/victim", nil)
			})
		})
	}
}

func TestAForcedRefreshWithASecretThatWasNeverAcceptedTouchesNoOtherName(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("victim", nil)
		held := m.read("victim")["access_token"]
		m.write("team-e/x", map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
		require.Equal(t, forcedPerDay, m.statusOf("team-e/x")["rotations_remaining"])
		for range 3 {
			_, text := m.refused(logical.UpdateOperation, "rotate/team-e/x", map[string]any{"revoke": true})
			require.Contains(t, text, "was not replaced")
			m.undisturbed(held, m.calls())
			require.Empty(t, m.walEntries())
		}
		seen, _ := m.forcedCalls()
		require.Zero(t, seen, "a normal call comes first")
	})
}

func TestTheCountOfForcedRefreshesIsNotToldToOthers(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("victim", nil)
		m.ok(logical.UpdateOperation, "rotate/victim", nil)
		m.write("team-e/x", map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
		m.refused(logical.ReadOperation, "token/team-e/x", nil)
		require.Equal(t, forcedPerDay, m.statusOf("team-e/x")["rotations_remaining"])
		require.Equal(t, forcedPerDay-1, m.statusOf("victim")["rotations_remaining"])
	})
}

func TestWritesOfATwinCostNoCall(t *testing.T) {
	for name, changes := range map[string]map[string]any{
		"verified at their own server": {"base_url": ownURL},
		"not verified":                 {"verify": false, "secret": "not-the-secret-0123456789"},
		"not verified, own server":     {"verify": false, "base_url": ownURL},
	} {
		for _, waiting := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/waiting %t", name, waiting), func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					withOwnServer(m, wechatsim.Account{})
					m.write("victim", nil)
					held := m.read("victim")["access_token"]
					if waiting { // for its quota
						time.Sleep(minCallInterval)
						m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009})
						m.refused(logical.UpdateOperation, "refresh/victim", nil)
					}
					calls := m.calls()
					for range 20 {
						m.write("team-e/x", changes)
						require.Equal(t, held, m.read("victim")["access_token"])
						m.ok(logical.DeleteOperation, "config/team-e/x", nil)
					}
					synctest.Wait()
					require.Equal(t, calls, m.calls())
				})
			})
		}
	}
}

func TestAReadDoesNotWaitForTheForcedRefreshOfAnother(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(_ *testing.T, m *mount) {
		own := withOwnServer(m, wechatsim.Account{})
		m.write("victim", nil)
		held, calls := m.read("victim")["access_token"], m.calls()
		for n := range 5 {
			m.write(fmt.Sprintf("team-e/%d", n), map[string]any{"base_url": ownURL, "request_timeout": "30s"})
		}
		own.SetLatency(28 * time.Second)
		own.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40001})
		var all sync.WaitGroup
		for n := range 5 {
			all.Go(func() { m.refused(logical.UpdateOperation, fmt.Sprintf("rotate/team-e/%d", n), nil) })
		}
		for range 30 {
			m.undisturbed(held, calls)
			time.Sleep(time.Second)
		}
		all.Wait()
	})
}

// hold are accounts that have the secret of "victim", whose request_timeout is 3 s.
// While test runs one of them after the other makes a forced refresh, which is refused
// as fault says and so costs nothing of the day's budget.
func (m *mount) hold(fault wechatsim.Fault, test func()) {
	m.t.Helper()
	m.write("victim", map[string]any{"request_timeout": "3s"})
	const twins = 5
	for n := range twins {
		m.write(fmt.Sprintf("team-e/%d", n), map[string]any{"request_timeout": "30s"})
	}
	fault.Mode, fault.Errcode, fault.Errmsg = "forced", 40001, "x"
	m.sim.Inject(fault)
	ctx, cancel := context.WithCancel(m.t.Context())
	var all sync.WaitGroup
	for n := range twins {
		all.Go(func() {
			for ctx.Err() == nil {
				m.refused(logical.UpdateOperation, fmt.Sprintf("rotate/team-e/%d", n), nil)
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	defer all.Wait()
	defer cancel()
	time.Sleep(time.Second)
	test()
	cancel()
	all.Wait()
	m.sim.ClearFaults()
	m.sim.SetLatency(0)
	time.Sleep(time.Minute)
	m.read("victim")
	require.LessOrEqual(m.t, m.sim.MaxInFlight(testAppID), twins+1, "one call of each account")
}

// longest calls do n times at once, and returns how long the longest call took.
func longest(n int, do func()) time.Duration {
	var mu sync.Mutex
	var longest time.Duration
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			begin := time.Now()
			do()
			mu.Lock()
			defer mu.Unlock()
			longest = max(longest, time.Since(begin))
		})
	}
	all.Wait()
	return longest
}

// forTheirs is a forced refresh that is on its way for 27 s.
var forTheirs = wechatsim.Fault{Kind: "drip", Hang: 907 * time.Millisecond}

func TestWhoHasTheSecretDelaysReadsByNoMoreThanTheirRequestTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		fault   wechatsim.Fault
		latency time.Duration
		own     time.Duration // how long the account's own call takes, which a report makes
	}{
		"their forced refreshes are slow": {forTheirs, 0, 0},
		"all of WeChat is slow":           {wechatsim.Fault{Kind: "errcode"}, 28 * time.Second, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.hold(c.fault, func() {
					m.sim.SetLatency(c.latency)
					time.Sleep(30 * time.Second)
					for range 5 {
						require.LessOrEqual(t, longest(10, func() { _ = m.tokenOrError("victim") }), 3*time.Second)
						time.Sleep(7 * time.Second)
						var all sync.WaitGroup
						all.Go(func() {
							require.LessOrEqual(t, longest(10, func() { _ = m.try(logical.UpdateOperation, "refresh/victim", nil) }), 3*time.Second+c.own)
						})
						require.LessOrEqual(t, longest(10, func() { _ = m.tokenOrError("victim") }), 3*time.Second+c.own)
						all.Wait()
						time.Sleep(8 * time.Second)
					}
				})
			})
		})
	}
}

func TestNoRequestWaitsForAnothersForcedRefreshWithTheDoorsLock(t *testing.T) {
	inBubble(t, wechatsim.Account{Lifetime: 400 * time.Second}, func(t *testing.T, m *mount) {
		m.hold(forTheirs, func() {
			token := m.look("victim").st.Value
			var all sync.WaitGroup
			for range 300 {
				all.Go(func() { _ = m.tokenOrError("victim") })
				all.Go(func() { _ = m.try(logical.UpdateOperation, "refresh/victim", nil) })
				synctest.Wait()
				begin := time.Now()
				m.ok(logical.UpdateOperation, "config/victim", map[string]any{"max_ttl": 60})
				require.Zero(t, time.Since(begin))
				time.Sleep(time.Second)
			}
			all.Wait()
			require.NotEqual(t, token, m.look("victim").st.Value, "it was due meanwhile")
		})
	})
}

func TestTheBackgroundIsWokenByTheEndOfAnothersForcedRefresh(t *testing.T) {
	for name, fault := range map[string]wechatsim.Fault{
		"refused": {Kind: "drip", Hang: 907 * time.Millisecond, Errcode: 40001, Errmsg: "x", Mode: "forced"},
		"lost":    {Kind: "hang", Hang: 20500 * time.Millisecond, Mode: "forced"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{Lifetime: 400 * time.Second}, func(t *testing.T, m *mount) {
				m.write("victim", nil)
				m.write("twin", map[string]any{"request_timeout": 30})
				time.Sleep(105 * time.Second) // the two are due in 5 s
				m.sim.Inject(fault)
				calls := m.calls()
				m.refused(logical.UpdateOperation, "rotate/twin", nil)
				ended := time.Now()
				synctest.Wait()
				require.Equal(t, calls+2, m.calls(), "one for both")
				for _, call := range m.sim.Calls("")[calls+1:] {
					require.False(t, call.Time.Before(ended), "it is no use to ask meanwhile")
				}
				begin := time.Now()
				m.read("victim")
				m.read("twin")
				require.Zero(t, time.Since(begin))
			})
		})
	}
}

// slowTenants is how many accounts whose server is slow keep the engine busy.
const slowTenants = 1000

func TestTheSecondForcedRefreshOfARevocationIsOnTimeHoweverBusyOthersKeepTheEngine(t *testing.T) {
	inBubble(t, wechatsim.Account{TokenLength: 16}, func(t *testing.T, m *mount) {
		own := withOwnServer(m, wechatsim.Account{})
		m.write("victim", nil)
		for n := range slowTenants {
			appid := fmt.Sprintf("wx%016d", n)
			own.SetAccount(appid, wechatsim.Account{Secret: testSecret, Lifetime: 20 * time.Second, TokenLength: 16})
			m.write(fmt.Sprintf("team-e/%d", n), map[string]any{"appid": appid, "base_url": ownURL, "request_timeout": "30s"})
		}
		own.SetLatency(8 * time.Second) // with expires_in 20: nothing about it fails
		time.Sleep(5 * time.Minute)
		m.ok(logical.UpdateOperation, "rotate/victim", map[string]any{"revoke": true})
		time.Sleep(2 * time.Minute)
		var forced []time.Time
		for _, call := range m.sim.Calls(testAppID) {
			if call.Forced {
				forced = append(forced, call.Time)
			}
		}
		require.Len(t, forced, 2)
		after := forced[1].Sub(forced[0])
		t.Logf("%d slow accounts: the second forced refresh came after %s", slowTenants, after)
		require.LessOrEqual(t, after, forcedSpacing+time.Second)
		require.Greater(t, len(own.Calls("")), slowTenants, "they were busy")
	})
}

// ways are how a team that writes accounts below team-e/ may spread n of them, and where
// they call.
var ways = map[string]func(n int) (name, url string){
	"one server": func(n int) (string, string) { return fmt.Sprintf("team-e/%d", n), ownURL },
	"a port of WeChat's host": func(n int) (string, string) {
		return fmt.Sprintf("team-e/%d", n), "http://" + wechatsOtherPort
	},
	"a port for each": func(n int) (string, string) {
		return fmt.Sprintf("team-e/%d", n), fmt.Sprintf("%s:%d", "http://127.0.9.1", 1000+n)
	},
	"an address for each": func(n int) (string, string) {
		return fmt.Sprintf("team-e/%d", n), fmt.Sprintf("http://127.0.9.%d:%d", n%250+1, 1000+n)
	},
	"and a level for each": func(n int) (string, string) {
		return fmt.Sprintf("team-e/%d/%d/x", n%20, n), fmt.Sprintf("http://127.0.9.%d:%d", n%250+1, 1000+n)
	},
}

// settle writes n accounts of theirs, spread like that.
func (m *mount) settle(own *wechatsim.Sim, n int, way func(n int) (name, url string), account wechatsim.Account, changes map[string]any) {
	m.t.Helper()
	account.Secret, account.TokenLength = testSecret, 16
	for i := range n {
		name, url := way(i)
		appid := fmt.Sprintf("wx%016d", i)
		own.SetAccount(appid, account)
		data := map[string]any{"appid": appid, "base_url": url, "request_timeout": 30}
		maps.Copy(data, changes)
		m.write(name, data)
	}
}

func TestTheSecondForcedRefreshOfARevocationIsOnTimeHoweverManyOthersHang(t *testing.T) {
	for name, way := range ways {
		for _, fault := range []wechatsim.Fault{{Kind: "hang"}, {Kind: "drip", Hang: 907 * time.Millisecond, Errcode: 40001, Errmsg: "x", Mode: "forced"}} {
			t.Run(name+"/"+fault.Kind, func(t *testing.T) {
				inBubble(t, wechatsim.Account{TokenLength: 16}, func(t *testing.T, m *mount) {
					own := withOwnServer(m, wechatsim.Account{})
					m.write("victim", nil)
					const n = 400
					m.settle(own, n, way, wechatsim.Account{}, map[string]any{"verify": false})
					for i := range n {
						name, _ := way(i)
						m.ok(logical.UpdateOperation, "rotate/"+name, map[string]any{"revoke": true})
					}
					own.Inject(fault)
					for range 3 {
						time.Sleep(20 * time.Second)
						m.ok(logical.UpdateOperation, "rotate/victim", map[string]any{"revoke": true})
						time.Sleep(forcedSpacing + 2*time.Second)
						require.NotEqual(t, "pending", m.statusOf("victim")["revocation"])
						time.Sleep(2 * time.Minute)
					}
					require.Greater(t, len(own.Calls("")), 4*n, "they were busy")
				})
			})
		}
	}
}

func TestAReplacementIsNoticedInTimeHoweverManyOthersBeginToHang(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{TokenLength: 16}, func(_ *testing.T, m *mount) {
				own := withOwnServer(m, wechatsim.Account{})
				m.write("victim", map[string]any{"sync_interval": 60})
				m.settle(own, slowTenants, way, wechatsim.Account{Lifetime: 400 * time.Second}, nil)
				own.Inject(wechatsim.Fault{Kind: "hang"})
				time.Sleep(112 * time.Second) // they are due
				m.sim.ForceOutside(testAppID)
				time.Sleep(62 * time.Second)
				m.read("victim")
			})
		})
	}
}
