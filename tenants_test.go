package wechat

import (
	"context"
	"fmt"
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

// In these tests somebody may write accounts below team-e/, and knows an AppID, which
// is public, but not its secret. What they do must not disturb the account of that
// AppID.

// ownURL is where the server of their own is.
const ownURL = "http://127.0.0.9:80"

// withOwnServer gives the mount a second platform, of their own: at ownURL any secret
// is the right one for whatever AppID they like.
func withOwnServer(m *mount, settings wechatsim.Account) *wechatsim.Sim {
	own, pipe := wechatsim.New(), wechatsim.NewPipe()
	settings.Secret = testSecret
	own.SetAccount(testAppID, settings)
	m.t.Cleanup(own.Serve(pipe))
	m.keeper.client.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(ownURL, "http://"+addr) {
			return pipe.DialContext(ctx, network, addr)
		}
		return m.pipe.DialContext(ctx, network, addr)
	}
	return own
}

// undisturbed checks that the account "victim" has the token that it had, and that
// nobody has asked WeChat about it, nor used up of its forced refreshes.
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

func TestAServerOfTheirOwnUsesUpNobodysForcedRefreshes(t *testing.T) {
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

func TestAForcedRefreshWithASecretThatWasNeverAcceptedTouchesNobody(t *testing.T) {
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

func TestTheCountOfForcedRefreshesIsToldToNobodyElse(t *testing.T) {
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

func TestAReadWaitsForNobodyElsesForcedRefresh(t *testing.T) {
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

func TestWhoHasTheSecretDelaysAReadByNoMoreThanItsRequestTimeout(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("victim", map[string]any{"request_timeout": "3s"})
		for n := range 5 {
			m.write(fmt.Sprintf("team-e/%d", n), map[string]any{"request_timeout": "30s"})
		}
		m.sim.SetLatency(28 * time.Second)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40001, Mode: "forced"})
		var all sync.WaitGroup
		for n := range 5 {
			all.Go(func() { m.refused(logical.UpdateOperation, fmt.Sprintf("rotate/team-e/%d", n), nil) })
		}
		synctest.Wait()
		begin := time.Now()
		_ = m.tokenOrError("victim")
		require.LessOrEqual(t, time.Since(begin), 3*time.Second)
		all.Wait()
		m.sim.SetLatency(0)
		time.Sleep(time.Minute)
		m.read("victim")
	})
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
