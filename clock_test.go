package wechat

import (
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// momentsAhead is what may happen while the clock is ahead for less than the minute
// between two of Vault's ticks: each has the engine note times.
var momentsAhead = map[string]struct {
	before func(m *mount) // while the clock is right
	during func(m *mount) // while it is ahead
	after  func(m *mount) // as soon as it is right again
}{
	"a first read succeeds": {
		before: func(m *mount) { m.write("demo", map[string]any{"verify": false}) },
		during: func(m *mount) { m.read("demo") },
	},
	"a first read fails": {
		before: func(m *mount) { m.write("demo", map[string]any{"verify": false}) },
		during: func(m *mount) {
			m.sim.Inject(wechatsim.Fault{Kind: "reset"})
			m.refused(logical.ReadOperation, "token/demo", nil)
			m.sim.ClearFaults()
		},
	},
	"a token seems to have ended": {
		during: func(m *mount) { m.read("demo") },
	},
	"a token seems to have ended, and WeChat does not answer": {
		during: func(m *mount) {
			m.sim.Inject(wechatsim.Fault{Kind: "reset"})
			_ = m.try(logical.ReadOperation, "token/demo", nil)
			m.sim.ClearFaults()
		},
	},
	"a comparison fails": {
		before: func(m *mount) { m.write("demo", map[string]any{"sync_interval": "30m"}) },
		during: func(m *mount) {
			m.sim.Inject(wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable})
			m.rollbackTick()
			synctest.Wait()
			m.sim.ClearFaults()
		},
	},
	"a report": {
		during: func(m *mount) { m.refresh(m.sim.Current(testAppID)) },
		after: func(m *mount) {
			held := m.sim.Current(testAppID)
			m.sim.ForceOutside(testAppID)
			time.Sleep(minCallInterval)
			require.Equal(m.t, true, m.refresh(held)["changed"], "it is not answered from what was heard ahead")
		},
	},
	"a report that fails": {
		during: func(m *mount) {
			m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009})
			m.refused(logical.UpdateOperation, "refresh/demo", nil)
			m.sim.ClearFaults()
		},
		after: func(m *mount) { m.refresh(nil) },
	},
	"a forced refresh": {
		during: func(m *mount) { m.ok(logical.UpdateOperation, "rotate/demo", nil) },
	},
	"a forced refresh whose answer is lost": {
		during: func(m *mount) {
			m.sim.Inject(wechatsim.Fault{Kind: "lost", Mode: "forced"})
			m.refused(logical.UpdateOperation, "rotate/demo", nil)
			m.sim.ClearFaults()
		},
	},
	"a leak response": {
		during: func(m *mount) { m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true}) },
		after: func(m *mount) {
			m.ticks(3)
			require.NotContains(m.t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
			seen, effective := m.forcedCalls()
			require.Equal(m.t, []int{2, 2}, []int{seen, effective})
		},
	},
	"a leak response waits for its second step": {
		before: func(m *mount) {
			m.write("demo", nil)
			m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
			m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40164, Mode: "forced"})
		},
		during: func(m *mount) {
			m.rollbackTick()
			time.Sleep(forcedSpacing)
			m.sim.ClearFaults()
		},
		after: func(m *mount) {
			m.ticks(3)
			require.NotContains(m.t, []any{nil, revocationPending}, m.statusOf("demo")["revocation"])
		},
	},
	"a configuration is written": {
		during: func(m *mount) { m.write("demo", nil) },
	},
	"what WeChat answers cannot be stored": {
		during: func(m *mount) {
			m.storage.failing(writesFail)
			m.refresh(nil)
			m.sim.ForceOutside(testAppID)
			time.Sleep(minCallInterval)
			m.refresh(nil)
			m.storage.failing(nil)
		},
		after: func(m *mount) {
			m.ticks(2)
			require.Equal(m.t, "healthy", m.statusOf("demo")["state"])
		},
	},
	"a forced refresh that arrives late": {
		before: func(m *mount) {
			m.write("demo", nil)
			m.ticks(1)
		},
		during: func(m *mount) {
			m.sim.Inject(wechatsim.Fault{Kind: "reset", Mode: "forced"})
			m.refused(logical.UpdateOperation, "rotate/demo", nil)
			m.sim.ClearFaults()
			m.read("demo")
		},
		after: func(m *mount) {
			m.rollbackTick()
			time.Sleep(5 * time.Second)
			m.sim.ForceOutside(testAppID) // now it reaches WeChat
			time.Sleep(forcedSpacing)
			synctest.Wait()
		},
	},
	"a first read, a write of the configuration and later a restart": {
		before: func(m *mount) { m.write("demo", map[string]any{"verify": false}) },
		during: func(m *mount) { m.read("demo") },
		after: func(m *mount) {
			m.write("demo", nil)
			for range 60 {
				m.read("demo")
				m.ticks(1)
			}
			m.reopen()
		},
	},
	"a first read, an outage and a restart": {
		before: func(m *mount) { m.write("demo", map[string]any{"verify": false}) },
		during: func(m *mount) { m.read("demo") },
		after: func(m *mount) {
			m.sim.Inject(wechatsim.Fault{Kind: "reset"})
			m.ticks(55)
			m.reopen()
			m.sim.ClearFaults()
		},
	},
	"a ticket": {
		during: func(m *mount) { m.signs("demo") },
		after: func(m *mount) {
			calls := len(m.sim.CallsOf(wechatsim.APITicket, ""))
			m.ticks(11)
			require.Greater(m.t, len(m.sim.CallsOf(wechatsim.APITicket, "")), calls, "the background compares it")
		},
	},
	"no ticket": {
		during: func(m *mount) {
			m.sim.Inject(wechatsim.Fault{API: wechatsim.APITicket, Kind: "errcode", Errcode: 48001})
			m.refused(logical.UpdateOperation, "sign/demo", map[string]any{"url": "https://example.com/"})
			m.sim.ClearFaults()
		},
	},
	"a restart": {
		during: func(m *mount) {
			m.read("demo")
			m.reopen()
		},
	},
	"a replacement, and a restart after it": {
		before: func(m *mount) { m.write("demo", map[string]any{"verify": false}) },
		during: func(m *mount) { m.read("demo") },
		after:  func(m *mount) { m.reopen() },
	},
	"an extension, and a restart after it": {
		before: func(m *mount) {
			m.write("demo", nil)
			time.Sleep(maxLifetime - 45*time.Minute)
		},
		during: func(m *mount) { m.read("demo") },
		after:  func(m *mount) { m.reopen() },
	},
}

// A machine that resumes with its clock in local time, or with one that was wrong, is set
// right within the minute. Whatever was noted in between, no dead token is handed out
// afterwards, and no read fails.
func TestEveryTimeThatLiesAheadIsHarmless(t *testing.T) {
	for name, moment := range momentsAhead {
		for _, by := range []time.Duration{8 * time.Hour, 50 * time.Minute, 15 * time.Minute} {
			t.Run(name+", by "+by.String(), func(t *testing.T) {
				inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
					if moment.before != nil {
						moment.before(m)
					} else {
						m.write("demo", nil)
					}
					m.ticks(1)
					time.Sleep(10 * time.Second)
					setClock(t, by)
					moment.during(m)
					time.Sleep(time.Second)
					setClock(t, 0)
					if moment.after != nil {
						moment.after(m)
					}
					calls := m.calls()
					for range 6 * 60 {
						require.NoError(t, m.tokenOrError("demo"))
						m.signs("demo")
						m.ticks(1)
					}
					require.Less(t, m.calls()-calls, 40)
				})
			})
		}
	}
}

// A clock that is wrong takes no good token from its readers while WeChat is down.
func TestAClockThatIsWrongForAMomentTakesNoGoodToken(t *testing.T) {
	for name, moment := range map[string]struct {
		by     time.Duration
		during func(m *mount)
	}{
		"behind, and a read": {-8 * time.Hour, func(m *mount) { require.NoError(m.t, m.tokenOrError("demo")) }},
		"behind, and a tick": {-8 * time.Hour, (*mount).rollbackTick},
		"a restart, ahead":   {8 * time.Hour, (*mount).reopen},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.ticks(1)
				m.sim.Inject(wechatsim.Fault{Kind: "reset"})
				setClock(t, moment.by)
				moment.during(m)
				time.Sleep(time.Second)
				setClock(t, 0)
				for range 90 {
					require.NoError(t, m.tokenOrError("demo"))
					m.ticks(1)
				}
			})
		})
	}
}

// A machine that starts with a date of its own forgets no forced call of the day.
func TestADateThatIsWrongForAWhileForgetsNoForcedCall(t *testing.T) {
	for _, by := range []time.Duration{-25 * time.Hour, 25 * time.Hour} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			m.ok(logical.UpdateOperation, "rotate/demo", nil)
			m.ticks(6)
			m.close()
			setClock(t, by)
			m.open()
			m.refresh(nil)
			time.Sleep(5 * time.Second)
			setClock(t, 0)
			m.reopen()
			m.read("demo")
			require.Equal(t, forcedPerDay-1, m.statusOf("demo")["rotations_remaining"])
		})
	}
}

// What a restart finds with times that lie ahead has an end that only WeChat knows.
func TestAStoredTokenWhoseTimesLieAheadIsNotUsedBeforeWeChatIsAsked(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.sim.Inject(wechatsim.Fault{Kind: "expires_in", ExpiresIn: "600", Times: 1})
		setClock(t, 8*time.Hour)
		m.read("demo")
		setClock(t, 0)
		m.reopen()
		m.sim.Inject(wechatsim.Fault{Kind: "reset"})
		require.Error(t, m.tokenOrError("demo"))
		m.sim.ClearFaults()
		m.ticks(2)
		require.NoError(t, m.tokenOrError("demo"))
	})
}

func TestATokenLivesNoLongerThanTheSteadyClockAllows(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.ticks(1)
		setClock(t, 8*time.Hour)
		m.read("demo")
		setClock(t, 0)
		m.sim.Inject(wechatsim.Fault{Kind: "reset"})
		for begin := time.Now(); time.Since(begin) < maxLifetime-kept.MinTTL; {
			require.NoError(t, m.tokenOrError("demo"))
			m.ticks(1)
		}
		m.ticks(1)
		require.Error(t, m.tokenOrError("demo"))
	})
}

func TestATicketOfAClockThatWasAheadIsNotUsedForLonger(t *testing.T) {
	for _, by := range []time.Duration{50 * time.Minute, 8 * time.Hour} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			m.signs("demo")
			m.ticks(1)
			setClock(t, by)
			m.signs("demo")
			confirmed := time.Now()
			setClock(t, 0)
			m.reopen()
			m.sim.Inject(wechatsim.Fault{API: wechatsim.APITicket, Kind: "reset"})
			for time.Since(confirmed) < 12*time.Hour {
				m.ticks(10)
				_, err := m.asked("demo")
				require.True(t, err != nil || time.Since(confirmed) < ticketGrace, "%s after WeChat confirmed it", time.Since(confirmed))
			}
		})
	}
}

// Of two kinds of values each has a last_vault_rotation of its own, also when the clock is
// set back to the very millisecond of the first.
func TestNoTwoValuesHaveTheSameTimeHoweverOftenTheClockIsSetBack(t *testing.T) {
	for kind, next := range map[string]func(m *mount) map[string]any{
		"tokens": func(m *mount) map[string]any {
			m.sim.ForceOutside(testAppID)
			time.Sleep(minCallInterval)
			m.refresh(nil)
			return m.read("demo")
		},
		"tickets": func(m *mount) map[string]any {
			m.sim.ReplaceTicket(testAppID, "jsapi")
			time.Sleep((ticketInterval + time.Minute))
			return m.ticketOf("demo", "jsapi")
		},
	} {
		t.Run(kind, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				start := time.Now()
				times := map[any]bool{}
				for range 10 {
					setClock(t, -time.Since(start))
					for range 3 {
						at := next(m)["last_vault_rotation"]
						require.NotContains(t, times, at)
						times[at] = true
					}
					m.reopen()
				}
			})
		})
	}
}

func TestAnEraBeginsWhenTheClockIsSetBack(t *testing.T) {
	var e eras
	begin := time.Now()
	for _, step := range []struct {
		passes, ahead time.Duration // since begin, by the steady clock; of the wall clock before that
		era           int64
	}{
		{0, 0, 0},
		{time.Minute, 0, 0},
		{time.Minute, 3 * time.Second, 0},           // corrected forward
		{2 * time.Minute, -time.Second, 0},          // and back, within the tolerance
		{2 * time.Minute, -3 * time.Second, 1},      // little by little it is more
		{3 * time.Minute, 8 * time.Hour, 1},         // asleep, or set forward
		{4 * time.Minute, 8 * time.Hour, 1},         //
		{4 * time.Minute, 0, 2},                     // set right
		{5 * time.Minute, 0, 2},                     //
		{5 * time.Minute, -24 * time.Hour, 3},       //
		{5 * time.Minute, 8*time.Hour + 1, 3},       //
		{5*time.Minute + 1, 8*time.Hour - 4e9, 3},   //
		{5*time.Minute + 1, 8*time.Hour - 501e7, 4}, //
	} {
		e.notice(begin.Round(0).Add(step.passes+step.ahead), begin.Add(step.passes))
		require.Equal(t, step.era, e.now.Load(), "%v", step)
	}
}

func TestAForcedCallThatTheClockIsSetBackDuringForbidsTheNextNoLongerThanAnyOther(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.read("demo")
		m.sim.Inject(wechatsim.Fault{Kind: "hang", Mode: "forced", Times: 1})
		setClock(t, 8*time.Hour)
		var rotating sync.WaitGroup
		rotating.Go(func() {
			status, _ := m.refused(logical.UpdateOperation, "rotate/demo", nil)
			require.Equal(t, http.StatusBadGateway, status)
		})
		time.Sleep(time.Second)
		setClock(t, 0)
		rotating.Wait()
		time.Sleep(forcedSpacing + maxRequestTimeout)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
	})
}
