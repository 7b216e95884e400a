package wechat

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const testPage = "https://shop.example.com/item?id=7&from=wechat"

// asked is a request of a signature of testPage.
func (m *mount) asked(name string) (*logical.Response, error) {
	m.t.Helper()
	return m.request(logical.ReadOperation, "sign/"+name, map[string]any{"url": testPage})
}

// signs asks for a signature of testPage, which WeChat's page has to accept.
func (m *mount) signs(name string) *logical.Response {
	m.t.Helper()
	resp, err := m.asked(name)
	require.NoError(m.t, err)
	require.NoError(m.t, resp.Error())
	require.True(m.t, m.accepted(resp), "WeChat does not accept the signature")
	return resp
}

// accepted reports whether WeChat's page accepts a signature.
func (m *mount) accepted(resp *logical.Response) bool {
	return m.sim.CheckSignature(wechatsim.Signature{
		AppID: resp.Data["appid"].(string), Timestamp: resp.Data["timestamp"].(int64),
		NonceStr: resp.Data["noncestr"].(string), URL: resp.Data["url"].(string), Signature: resp.Data["signature"].(string),
	})
}

// notSigned asks in vain for a signature.
func (m *mount) notSigned(name string) (status int, text string) {
	m.t.Helper()
	return m.refused(logical.ReadOperation, "sign/"+name, map[string]any{"url": testPage})
}

func (m *mount) ticketCalls() int { return len(m.sim.CallsOf(wechatsim.APITicket, "")) }

// ticketOf reads a ticket, which WeChat has to accept.
func (m *mount) ticketOf(name, kind string) map[string]any {
	m.t.Helper()
	data := m.ok(logical.ReadOperation, "ticket/"+name, map[string]any{"type": kind}).Data
	_, typ, accepted := m.sim.CheckTicket(data["ticket"].(string))
	require.True(m.t, accepted, "WeChat does not accept the ticket")
	require.Equal(m.t, kind, typ)
	return data
}

// ticketStatus is what status/ shows of the account's jsapi ticket.
func (m *mount) ticketStatus(name string) map[string]any {
	m.t.Helper()
	return m.statusOf(name)["tickets"].(map[string]any)["jsapi"].(map[string]any)
}

// storedTicket is the stored jsapi ticket, nil if there is none.
func (m *mount) storedTicket(name string) *record {
	m.t.Helper()
	t, err := readRecord(m.t.Context(), m.storage, ticketKey(jsapiTicket, m.keeper.known(name).cfg))
	require.NoError(m.t, err)
	return t
}

// ticketFault is a fault of getticket.
func ticketFault(f wechatsim.Fault) wechatsim.Fault {
	f.API = wechatsim.APITicket
	return f
}

func TestTheFirstSignatureFetchesATicketAndTheNextNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		first := m.signs("demo")
		require.Empty(t, first.Warnings)
		require.Equal(t, 1, m.ticketCalls())
		require.Equal(t, 1, m.calls(), "with the token that is there")
		require.Equal(t, []string{"config/demo", ticketKey(jsapiTicket, account1Config()), historyKey(account1Config())}, m.stored())

		ops := m.storage.count()
		for range 100 {
			second := m.signs("demo")
			require.NotEqual(t, first.Data["noncestr"], second.Data["noncestr"])
		}
		require.Equal(t, 1, m.ticketCalls())
		require.Equal(t, ops, m.storage.count())
	})
}

func TestATicketFetchesTheTokenThatIsNotThere(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.signs("demo")
		require.Equal(t, 1, m.calls())
		m.served("demo")
	})
}

func TestAThousandFirstPageViewsMakeOneCall(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"verify": false})
		m.sim.SetLatency(300 * time.Millisecond)
		var views sync.WaitGroup
		for range 1000 {
			views.Go(func() { m.signs("demo") })
			views.Go(func() { m.ticketOf("demo", "wx_card") })
		}
		views.Wait()
		require.Equal(t, 2, m.ticketCalls(), "one for each type")
		require.Equal(t, 1, m.calls())
	})
}

func TestATicketIsComparedEveryTenMinutesOnlyWhileItIsUsed(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		for range 12 * 4 { // four hours with a page view every five minutes
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			calls := m.ticketCalls()
			require.Empty(t, m.signs("demo").Warnings)
			require.Equal(t, calls, m.ticketCalls(), "no page view waits for a comparison")
		}
		calls := m.ticketCalls()
		require.GreaterOrEqual(t, calls, 1+24)
		require.LessOrEqual(t, calls, 1+27, "the distance is shortened at random by at most a tenth")

		time.Sleep(3 * time.Hour)
		synctest.Wait()
		unused := m.ticketCalls() - calls
		require.GreaterOrEqual(t, unused, 12, "two hours on")
		require.LessOrEqual(t, unused, 14)
		calls = m.ticketCalls()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		require.Equal(t, calls, m.ticketCalls(), "it is not used")
		require.Equal(t, "pending", m.ticketStatus("demo")["state"])

		m.signs("demo") // and it begins anew
		require.Equal(t, calls+1, m.ticketCalls())
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		require.Equal(t, calls+2, m.ticketCalls())
	})
}

func TestATicketThatIsUsedAgainBeforeItIsOldIsComparedOn(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		h := m.keeper.known("demo").holder.derived[jsapiTicket].Load()
		for !h.wake(moment()).IsZero() {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		calls := m.ticketCalls()
		m.signs("demo")
		require.False(t, h.wake(moment()).IsZero())
		time.Sleep(ticketInterval)
		synctest.Wait()
		require.Greater(t, m.ticketCalls(), calls)
	})
}

func TestManyIdleAccountsCostNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		m.reopen()
		time.Sleep(startHoldOff) // then old histories are swept
		synctest.Wait()
		ops := m.storage.count()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, 1, m.ticketCalls(), "after a restart no ticket was used")
		require.Equal(t, ops, m.storage.count())
		require.Nil(t, m.statusOf("demo")["tickets"])
	})
}

func TestAReplacedTicketIsNoticed(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		first := m.ticketOf("demo", "jsapi")
		for range 60 { // five hours
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			m.signs("demo")
		}
		replaced := m.sim.ReplaceTicket(testAppID, "jsapi")
		time.Sleep(ticketInterval)
		synctest.Wait()
		second := m.ticketOf("demo", "jsapi")
		require.Equal(t, replaced, second["ticket"])
		require.NotEqual(t, first["last_vault_rotation"], second["last_vault_rotation"])
		require.Equal(t, replaced, m.storedTicket("demo").Value)
	})
}

func TestLastVaultRotationChangesIfAndOnlyIfTheTicketDoes(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		rotations := map[any]any{}
		for n := range 400 { // a day and more
			switch n % 97 {
			case 20:
				m.sim.ReplaceTicket(testAppID, "jsapi")
			case 40:
				m.reopen()
			case 60:
				m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "status", Times: 20}))
			}
			data := m.ok(logical.ReadOperation, "ticket/demo", nil).Data
			if at, known := rotations[data["ticket"]]; known {
				require.Equal(t, at, data["last_vault_rotation"])
			}
			rotations[data["ticket"]] = data["last_vault_rotation"]
			time.Sleep(241 * time.Second)
			synctest.Wait()
		}
		times := map[any]bool{}
		for _, at := range rotations {
			require.False(t, times[at], "one time of two tickets")
			times[at] = true
		}
		require.Greater(t, len(rotations), 10)
	})
}

func TestATicketIsUsedForTwoHoursAfterItsLastConfirmation(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		confirmed := time.Now()
		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "errcode", Errcode: -1}))
		for time.Since(confirmed) < ticketGrace-2*time.Minute {
			time.Sleep(time.Minute)
			synctest.Wait()
			calls, begin := m.ticketCalls(), time.Now()
			resp := m.signs("demo")
			require.Equal(t, calls, m.ticketCalls(), "the background asks, no page view does")
			require.Zero(t, time.Since(begin))
			if time.Since(confirmed) > ticketInterval {
				require.Len(t, resp.Warnings, 1)
				require.Contains(t, resp.Warnings[0], "WeChat is busy (errcode -1)")
				require.Contains(t, resp.Warnings[0], timestamp(confirmed.Add(ticketGrace)))
				got := m.ticketStatus("demo")
				require.Equal(t, "degraded", got["state"])
				require.Equal(t, -1, got["last_error"].(map[string]any)["errcode"])
				require.Equal(t, timestamp(confirmed), got["last_success_time"])
			}
		}
		ttl := m.ok(logical.ReadOperation, "ticket/demo", nil).Data["ttl"].(int64)
		require.LessOrEqual(t, ttl, int64(10))
		require.GreaterOrEqual(t, ttl, int64(5))
		time.Sleep(2 * time.Minute)
		status, text := m.notSigned("demo")
		require.Equal(t, http.StatusBadGateway, status)
		require.Contains(t, text, "WeChat is busy (errcode -1)")
		require.Equal(t, "failing", m.ticketStatus("demo")["state"])
		require.Equal(t, "healthy", m.statusOf("demo")["state"], "the token is not the ticket's")
		require.Less(t, m.ticketCalls(), 160, "the background backs off")

		m.sim.ClearFaults()
		time.Sleep(time.Minute)
		require.Empty(t, m.signs("demo").Warnings)
		require.Equal(t, "healthy", m.ticketStatus("demo")["state"])
	})
}

func TestAStormOfPageViewsIsNotAStormOfCalls(t *testing.T) {
	for name, c := range map[string]struct {
		fault    wechatsim.Fault
		status   int
		atMost   int // calls in ten minutes
		contains string
	}{
		"busy":        {wechatsim.Fault{Kind: "errcode", Errcode: -1}, http.StatusBadGateway, 20, "errcode -1"},
		"down":        {wechatsim.Fault{Kind: "status", Status: 503}, http.StatusBadGateway, 20, "server error"},
		"person":      {wechatsim.Fault{Kind: "errcode", Errcode: 61004, Errmsg: "access clientip is not registered ip 203.0.113.9"}, http.StatusBadRequest, 8, "203.0.113.9"},
		"quota":       {wechatsim.Fault{Kind: "errcode", Errcode: 45009}, http.StatusTooManyRequests, 5, "errcode 45009"},
		"no ticket":   {wechatsim.Fault{Kind: "notoken"}, http.StatusBadGateway, 20, "not the documented one"},
		"no JSON":     {wechatsim.Fault{Kind: "notjson"}, http.StatusBadGateway, 20, "not the documented one"},
		"not allowed": {wechatsim.Fault{Kind: "errcode", Errcode: 48004}, http.StatusBadRequest, 8, "errcode 48004"},
		"unknown":     {wechatsim.Fault{Kind: "errcode", Errcode: 12345}, http.StatusBadGateway, 20, "errcode 12345"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.sim.Inject(ticketFault(c.fault))
				for range 600 {
					status, text := m.notSigned("demo")
					require.Equal(t, c.status, status)
					require.Contains(t, text, c.contains)
					require.Contains(t, text, "what to do")
					time.Sleep(time.Second)
				}
				require.LessOrEqual(t, m.ticketCalls(), c.atMost)
				require.Greater(t, m.ticketCalls(), 1)
				require.Equal(t, 1, m.calls())
				m.sim.ClearFaults()
				m.ok(logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60})
				m.signs("demo") // a write of the configuration ends the wait
			})
		})
	}
}

func TestATicketThatIsNotReadAnyMoreIsNotTriedForEver(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "errcode", Errcode: 48004}))
		m.notSigned("demo")
		time.Sleep(ticketIdle + 10*time.Minute)
		synctest.Wait()
		calls := m.ticketCalls()
		require.Less(t, calls, 40)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		require.Equal(t, calls, m.ticketCalls())
	})
}

func TestADeadTokenThatATicketMeetsIsReported(t *testing.T) {
	for _, errcode := range []int{40001, 40014, 42001} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			before := m.read("demo")
			time.Sleep(time.Minute)
			m.sim.ForceOutside(testAppID)
			if errcode != 40001 {
				m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "errcode", Errcode: errcode, Times: 1}))
			}
			require.Empty(t, m.signs("demo").Warnings)
			require.Equal(t, 2, m.ticketCalls(), "once more with the new token")
			require.Equal(t, 2, m.calls())
			require.NotEqual(t, before["access_token"], m.served("demo")["access_token"])
		})
	}
}

func TestATokenByWhichWeChatStandsIsNotAskedForAgain(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		time.Sleep(time.Minute)
		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "errcode", Errcode: 40001}))
		status, text := m.notSigned("demo")
		require.Equal(t, http.StatusBadGateway, status)
		require.Contains(t, text, "errcode 40001")
		require.Equal(t, 1, m.ticketCalls())
		require.Equal(t, 2, m.calls())
		require.Equal(t, 1, m.statusOf("demo")["rejections"])
		for range 60 {
			m.notSigned("demo")
			time.Sleep(time.Second)
		}
		require.Less(t, m.calls(), 8, "a report in ten seconds at most")
		m.sim.ClearFaults()
		time.Sleep(time.Minute)
		m.signs("demo")
	})
}

func TestATicketOutlivesTheToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		time.Sleep(100 * time.Minute)
		m.signs("demo")
		m.sim.Inject(wechatsim.Fault{API: wechatsim.AllAPIs, Kind: "status", Status: 503})
		for range 60 { // the token ends meanwhile
			time.Sleep(time.Minute)
			synctest.Wait()
			m.signs("demo")
		}
		require.Equal(t, "failing", m.statusOf("demo")["state"])
		require.Len(t, m.signs("demo").Warnings, 1)

		// Once there is a token again the ticket does not wait any longer.
		m.sim.ClearFaults()
		time.Sleep(time.Minute)
		synctest.Wait()
		m.read("demo")
		time.Sleep(kept.RetryTTL)
		require.Empty(t, m.signs("demo").Warnings)
	})
}

func TestWithoutATokenATicketIsRefusedForTheTokensReason(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40164, Errmsg: "invalid ip 203.0.113.9, not in whitelist"})
		time.Sleep(maxLifetime)
		calls := m.calls()
		for range 60 {
			status, text := m.notSigned("demo")
			require.Equal(t, http.StatusBadRequest, status)
			require.Contains(t, text, "203.0.113.9")
			time.Sleep(time.Second)
		}
		require.LessOrEqual(t, m.calls()-calls, 3)
		require.Zero(t, m.ticketCalls())
		require.Equal(t, "failing", m.ticketStatus("demo")["state"])
		m.sim.ClearFaults()
		m.update("demo", map[string]any{"secret": testSecret})
		m.signs("demo")
	})
}

func TestARestartKnowsTheTicketAndAboutWhenItWasConfirmed(t *testing.T) {
	inBubble(t, wechatsim.Account{TicketLifetime: 24 * time.Hour}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		before := m.ticketOf("demo", "jsapi")
		m.reopen()
		after := m.ticketOf("demo", "jsapi")
		require.Equal(t, before, after)
		require.Equal(t, 1, m.ticketCalls(), "it was confirmed lately")

		puts := 0
		m.storage.failing(func(op, key string) error {
			if op == "put" && strings.HasPrefix(key, ticketPrefix) {
				puts++
			}
			return nil
		})
		for range 5 * 60 {
			time.Sleep(time.Minute)
			synctest.Wait()
			m.signs("demo")
			behind := time.Since(m.storedTicket("demo").Timed)
			require.LessOrEqual(t, behind, kept.StoreEvery+2*ticketInterval, "what a restart knows")
		}
		require.LessOrEqual(t, puts, 10, "a comparison is not a write")

		// WeChat is down and the plugin restarts: the ticket is used on.
		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "reset"}))
		m.reopen()
		begin := m.storedTicket("demo").Timed
		for time.Since(begin) < ticketGrace-time.Minute {
			m.signs("demo")
			time.Sleep(30 * time.Second)
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		m.notSigned("demo")
	})
}

func TestDeletingAnAccountDeletesItsTickets(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("team/a", nil)
		m.write("team/ab", nil)
		m.signs("team/a")
		m.ticketOf("team/a", "wx_card")
		m.signs("team/ab")
		m.ok(logical.DeleteOperation, "config/team/a", nil)
		require.Equal(t, []string{"config/team/ab", ticketKey(jsapiTicket, account1Config()), historyKey(account1Config()), ticketKey(cardTicket, account1Config())}, m.stored(), "another name has them too")
		status, text := m.notSigned("team/a")
		require.Equal(t, http.StatusBadRequest, status)
		require.Contains(t, text, "config/team/a")
		calls := m.ticketCalls()
		m.ok(logical.DeleteOperation, "config/team/ab", nil)
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		require.Equal(t, calls, m.ticketCalls(), "nothing is left running")
		require.Empty(t, m.stored())
	})
}

func TestATicketThatArrivesAfterItsAccountIsGoneIsNotKept(t *testing.T) {
	for name, change := range map[string]func(m *mount){
		"deleted":         func(m *mount) { m.ok(logical.DeleteOperation, "config/demo", nil) },
		"another account": func(m *mount) { m.update("demo", map[string]any{"appid": otherAppID}) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("demo", nil)
				m.sim.SetLatencyOf(wechatsim.APITicket, 2*time.Second)
				var view sync.WaitGroup
				view.Go(func() { _, _ = m.asked("demo") })
				time.Sleep(time.Second)
				change(m)
				view.Wait()
				time.Sleep(time.Hour)
				synctest.Wait()
				require.Empty(t, m.sim.CallsOf(wechatsim.APITicket, otherAppID))
				require.Equal(t, 1, m.ticketCalls())
				for _, key := range m.stored() {
					require.False(t, strings.HasPrefix(key, heldPrefix) && !strings.HasPrefix(key, tokenRecords), key)
				}
			})
		})
	}
}

func TestATicketOfAnotherAccountIsNeverUsed(t *testing.T) {
	for name, changed := range map[string]map[string]any{
		"another appid":    {"appid": otherAppID},
		"another base_url": account1(map[string]any{"base_url": "http://127.0.0.2"}),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
				m.write("demo", nil)
				m.signs("demo")
				left := m.storedTicket("demo")
				// Storage keeps the ticket although it was to be removed.
				m.storage.failing(func(op, key string) error {
					if op != "put" && key == ticketKey(jsapiTicket, account1Config()) {
						return errStorage
					}
					return nil
				})
				m.update("demo", changed)
				m.storage.failing(nil)
				require.Contains(t, m.stored(), ticketKey(jsapiTicket, account1Config()))
				for _, restart := range []bool{false, true} {
					if restart {
						m.reopen()
					}
					m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "reset", Times: 1}))
					m.notSigned("demo")
				}
				m.rollback()
				require.NotContains(t, m.stored(), ticketKey(jsapiTicket, account1Config()), "Vault's tick removes what was left")
				m.signs("demo")
				require.NotNil(t, left)
				require.NotNil(t, m.storedTicket("demo"), "its own")
			})
		})
	}
}

func TestAWriteThatLeavesTheAccountTheSameKeepsItsTicket(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		m.update("demo", map[string]any{"secret": testSecret})
		m.update("demo", map[string]any{"max_ttl": 60})
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		m.signs("demo")
		require.Equal(t, 1, m.ticketCalls())
	})
}

func TestAFailingStorageLosesNoTicket(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.storage.failing(func(op, _ string) error {
			if op == "put" {
				return errStorage
			}
			return nil
		})
		for range 60 {
			m.signs("demo")
			time.Sleep(time.Second)
			synctest.Wait()
		}
		require.Equal(t, 1, m.ticketCalls(), "it is not asked for again")
		got := m.ticketStatus("demo")
		require.Equal(t, "degraded", got["state"])
		require.Equal(t, "storage", got["last_error"].(map[string]any)["class"])
		require.Nil(t, m.storedTicket("demo"))
		require.Equal(t, 1, strings.Count(m.logs.String(), "cannot be stored: it is served from memory"))

		m.storage.failing(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.NotNil(t, m.storedTicket("demo"))
		require.Equal(t, "healthy", m.ticketStatus("demo")["state"])
		require.Equal(t, 1, m.ticketCalls())
	})
}

func TestAStorageThatCannotBeReadLosesNoTicket(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		m.storage.failing(func(string, string) error { return errStorage })
		for range 60 {
			time.Sleep(time.Minute)
			synctest.Wait()
			m.signs("demo")
		}
		require.Equal(t, "degraded", m.ticketStatus("demo")["state"])
		m.storage.failing(nil)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Empty(t, m.signs("demo").Warnings)
	})
}

func TestAHangingGetTicketDelaysNoTokensRefresh(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		const accounts = 120 // more than a queue has workers
		var names []string
		for n := range accounts {
			name := fleet(accounts).name(n)
			m.sim.SetAccount(fleet(accounts).appID(n), wechatsim.Account{Secret: testSecret})
			m.write(name, map[string]any{"appid": fleet(accounts).appID(n), "request_timeout": 30})
			names = append(names, name)
		}
		time.Sleep(rotationPeriod - 12*time.Minute)
		synctest.Wait()
		for _, name := range names {
			m.signs(name)
		}
		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "hang"}))
		time.Sleep(10*time.Minute + 30*time.Second) // all of them are compared, and hang
		synctest.Wait()
		flood := make(chan struct{})
		var views sync.WaitGroup
		for _, name := range names {
			views.Go(func() {
				for {
					select {
					case <-flood:
						return
					case <-time.After(5 * time.Second):
						_, _ = m.asked(name)
						_, _ = m.request(logical.ReadOperation, "ticket/"+name, map[string]any{"type": "wx_card"})
					}
				}
			})
		}
		before := m.calls()
		time.Sleep(2 * time.Minute)
		calls := m.sim.Calls("")[before:]
		require.Len(t, calls, accounts, "every token was replaced once")
		for _, call := range calls {
			due := call.Time.Sub(m.sim.Calls(call.AppID)[0].Time)
			require.InDelta(t, rotationPeriod.Seconds(), due.Seconds(), 2, "in time")
		}
		for _, name := range names {
			begin := time.Now()
			m.read(name)
			require.Zero(t, time.Since(begin))
		}
		close(flood)
		views.Wait()
	})
}

func TestAPageViewWaitsAtMostOnceWhileGetTicketHangs(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		m.reopen()
		time.Sleep(30 * time.Minute)
		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "hang"}))
		begin := time.Now()
		m.signs("demo")
		require.Equal(t, defaultRequestTimeout, time.Since(begin), "the first after a restart asks")
		for range 600 {
			begin = time.Now()
			require.Len(t, m.signs("demo").Warnings, 1)
			require.Zero(t, time.Since(begin))
			time.Sleep(time.Second)
		}
	})
}

func TestACallForATicketIsFinishedThoughItsReaderGoesAway(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.SetLatencyOf(wechatsim.APITicket, time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var views sync.WaitGroup
		for range 2 { // one that makes the call, one that waits for it
			views.Go(func() {
				_, _ = m.requestContext(ctx, logical.ReadOperation, "sign/demo", map[string]any{"url": testPage})
			})
		}
		views.Wait()
		m.signs("demo")
		require.Equal(t, 1, m.ticketCalls())
		require.NotNil(t, m.storedTicket("demo"))
	})
}

func TestTheMountClosesWhileATicketIsFetched(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "hang"}))
		var view sync.WaitGroup
		view.Go(func() {
			_, err := m.asked("demo")
			require.ErrorIs(t, err, errUnmounted)
		})
		time.Sleep(time.Second)
		m.close()
		view.Wait()
		require.Nil(t, m.storedTicket("demo"))
		m.sim.ClearFaults()
		m.open()
		m.signs("demo")
	})
}

func TestAnotherNodesTicketIsSeen(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		other := *m.storedTicket("demo")
		other.Value = m.sim.ReplaceTicket(testAppID, "jsapi")
		key := ticketKey(jsapiTicket, account1Config())
		require.NoError(t, writeEntry(t.Context(), m.storage, key, &other))
		m.InvalidateKey(t.Context(), key)
		require.Equal(t, other.Value, m.ticketOf("demo", "jsapi")["ticket"])
		require.Equal(t, 1, m.ticketCalls())
		m.InvalidateKey(t.Context(), "held/wechat/jsapi/never-there") // and nothing happens
		m.InvalidateKey(t.Context(), "ticket/of-the-future/demo")
	})
}

func TestTicketsAreTheActiveNodes(t *testing.T) {
	for name, state := range map[string]consts.ReplicationState{
		"performance standby":   consts.ReplicationPerformanceStandby,
		"performance secondary": consts.ReplicationPerformanceSecondary,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.signs("demo")
				m.close()
				m.system.ReplicationStateVal = state
				m.open()
				calls, ops := m.ticketCalls(), m.storage.written()
				for _, c := range []struct {
					op   logical.Operation
					path string
					data map[string]any
				}{
					{logical.ReadOperation, "sign/demo", map[string]any{"url": testPage}},
					{logical.ReadOperation, "sign/demo", map[string]any{"url": "not an address"}},
					{logical.ReadOperation, "sign/_", map[string]any{"url": testPage}},
					{logical.ReadOperation, "sign/demo", nil},
					{logical.UpdateOperation, "sign/demo", map[string]any{"url": testPage}},
					{logical.ReadOperation, "ticket/demo", nil},
				} {
					_, err := m.request(c.op, c.path, c.data)
					require.Equal(t, logical.ErrReadOnly, err, "%s %s", c.op, c.path)
				}
				require.Equal(t, calls, m.ticketCalls())
				require.Equal(t, ops, m.storage.written())
			})
		})
	}
}

func TestATicketOfAClockThatWasSetBackIsComparedAtOnce(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		setBack := func(by time.Duration) { // what was remembered is then of later times
			h := m.keeper.known("demo").holder.derived[jsapiTicket].Load()
			later := *h.state.Load()
			later.Timed, later.Due, later.End = later.Timed.Add(by), later.Due.Add(by), later.End.Add(by)
			h.state.Store(&later)
			setClock(t, time.Hour) // which is set back now
			wallClock()
			setClock(t, 0)
		}
		setBack(30 * time.Minute)
		m.signs("demo")
		require.Equal(t, 2, m.ticketCalls())
	})
}

func TestATicketThatCannotBeReadIsNamedAndNotShown(t *testing.T) {
	const content = "c0ntent-that-must-not-be-seen"
	for _, value := range []string{content, `{"version":2,"ticket":"` + content + `"}`, `{"version":1,"value":{"v":"` + content + `"}}`} {
		inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
			m.write("demo", nil)
			require.NoError(t, m.storage.Put(t.Context(), &logical.StorageEntry{Key: ticketKey(jsapiTicket, account1Config()), Value: []byte(value)}))
			resp, err := m.asked("demo")
			require.ErrorContains(t, err, ticketKey(jsapiTicket, account1Config()))
			require.NotContains(t, shown(t, resp, err), content)
			require.NotContains(t, m.logs.String(), content)
			m.read("demo")
			m.ticketOf("demo", "wx_card")
			m.ok(logical.DeleteOperation, "config/demo", nil) // the way out
			require.Empty(t, m.stored())
		})
	}
}

func TestNothingSecretOfATicketIsLogged(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		var secret []string
		for _, kind := range []string{"echo", "truncate", "lost", "reset", "notjson", "notoken", "oversize", "errcode", ""} {
			if kind != "" {
				m.sim.Inject(ticketFault(wechatsim.Fault{Kind: kind, Errcode: map[string]int{"errcode": 45009}[kind], Times: 1}))
			}
			time.Sleep(6 * time.Hour)
			synctest.Wait()
			resp, err := m.asked("demo")
			text := shown(t, resp, err)
			for _, kind := range []string{"jsapi", "wx_card"} {
				_, _ = m.request(logical.ReadOperation, "ticket/demo", map[string]any{"type": kind})
				secret = append(secret, m.sim.CurrentTicket(testAppID, kind))
			}
			secret = append(secret, m.sim.Current(testAppID))
			for _, s := range secret {
				if s != "" {
					require.NotContains(t, text, s)
					require.NotContains(t, m.logs.String(), s)
				}
			}
			require.NotContains(t, m.logs.String(), "shop.example.com")
		}
		require.NotContains(t, shown(t, m.ok(logical.ReadOperation, "status/demo", nil), nil), m.sim.CurrentTicket(testAppID, "jsapi"))
	})
}

// What an operator has mended is mended for a call that is still in the air, too: its
// refusal is of before.
func TestWhatMendsAnAccountEndsItsTicketsWaitsAlsoWithACallInTheAir(t *testing.T) {
	for name, c := range map[string]struct {
		errcode int
		mend    func(m *mount)
	}{
		"a configuration is written": {45009, func(m *mount) { m.update("demo", map[string]any{"verify": true}) }},
		"an address was admitted":    {61004, func(m *mount) { m.update("demo", map[string]any{"verify": true}) }},
		"the quota is cleared":       {45009, func(m *mount) { m.ok(logical.UpdateOperation, "clear-quota/demo", nil) }},
		"a twin's quota is cleared":  {45009, func(m *mount) { m.ok(logical.UpdateOperation, "clear-quota/twin", nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				m.write("twin", nil)
				m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "errcode", Errcode: c.errcode}))
				m.notSigned("demo")
				m.sim.SetLatencyOf(wechatsim.APITicket, 2*time.Second)
				for calls := m.ticketCalls(); m.ticketCalls() < calls+4; {
					time.Sleep(time.Second) // the background tries again
				}
				m.sim.ClearFaults() // the call in the air was refused already
				m.sim.SetLatencyOf(wechatsim.APITicket, 0)
				c.mend(m)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				m.signs("demo")
				require.Equal(t, "healthy", m.statusOf("demo")["tickets"].(map[string]any)["jsapi"].(map[string]any)["state"])
			})
		})
	}
}

func TestTicketsThatHangDelayNoneThatIsWell(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.signs("demo")
		const hanging = 400
		f := fleet(hanging)
		for n := range hanging {
			m.sim.SetAccount(f.appID(n), wechatsim.Account{Secret: testSecret})
			m.write(f.name(n), map[string]any{"appid": f.appID(n), "request_timeout": 30, "sync_interval": 0})
			m.signs(f.name(n))
			m.sim.Inject(ticketFault(wechatsim.Fault{AppID: f.appID(n), Kind: "hang"}))
		}
		time.Sleep(15 * time.Minute) // the engine has found out which ones hang
		for range 45 {
			time.Sleep(time.Minute)
			synctest.Wait()
			last, err := time.Parse(time.RFC3339, m.ticketStatus("demo")["last_success_time"].(string))
			require.NoError(t, err)
			require.LessOrEqual(t, time.Since(last), ticketInterval+time.Second)
		}
		require.Greater(t, m.ticketCalls(), 10*hanging, "they were busy")
	})
}

func TestATicketIsAskedForByTheWayOfTheConfiguration(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"base_url": "https://127.0.0.1:443", "verify": false})
		cfg := m.keeper.known("demo").cfg
		r := &record{Version: schemaVersion}
		r.admit("demo", cfg)
		require.NoError(t, writeEntry(t.Context(), m.storage, historyKey(cfg), r))
		m.reopen()
		m.notSigned("demo")
		ticket := func() *holder { return m.keeper.known("demo").holder.derived[jsapiTicket].Load() }
		require.Equal(t, "127.0.0.1:443", ticket().wakeKey().Way)
		m.update("demo", map[string]any{"secret": testSecret, "proxy_url": "http://proxy.example.com:3128", "verify": false})
		require.Equal(t, "127.0.0.1:443 by proxy.example.com:3128", ticket().wakeKey().Way)
	})
}

func TestClearingTheQuotaEndsATicketsWait(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.write("twin", nil)
		time.Sleep(time.Second)
		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Times: 1}))
		for _, name := range []string{"demo", "twin"} {
			status, _ := m.notSigned(name)
			require.Equal(t, http.StatusTooManyRequests, status)
		}
		m.ok(logical.UpdateOperation, "clear-quota/demo", nil)
		m.signs("demo")
		m.signs("twin")

		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "errcode", Errcode: 61004, Times: 1}))
		m.refused(logical.ReadOperation, "ticket/demo", map[string]any{"type": "wx_card"})
		time.Sleep(time.Second)
		require.Equal(t, "failing", m.statusOf("demo")["tickets"].(map[string]any)["wx_card"].(map[string]any)["state"], "another wait goes on")
	})
}

func TestANameThatWasNeverAcceptedDelaysNoTicket(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("victim", nil)
		m.write("team-e/x", map[string]any{"verify": false, "secret": "not-the-secret-0123456789", "request_timeout": "30s"})
		m.sim.Inject(wechatsim.Fault{Kind: "hang"}) // the call of x
		done := make(chan struct{})
		go func() { defer close(done); _, _ = m.asked("team-e/x") }()
		time.Sleep(time.Second)
		begin := time.Now()
		resp, err := m.asked("victim")
		t.Logf("took %s: %v %v", time.Since(begin), resp, err)
		if err != nil || time.Since(begin) > time.Second {
			t.Error("the victim's signature waits for one that was never accepted")
		}
		<-done
	})
}

func TestANameThatWasNeverAcceptedSeesNoTickets(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("victim", nil)
		m.signs("victim")
		m.write("team-e/x", map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
		require.Nil(t, m.statusOf("team-e/x")["tickets"])
	})
}

func TestANameThatWasNeverAcceptedKeepsNoTicketInUse(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("victim", nil)
		m.signs("victim")
		m.write("team-e/x", map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
		time.Sleep(3 * time.Hour)
		before := m.ticketCalls()
		for range 60 {
			_, _ = m.asked("team-e/x")
			time.Sleep(time.Minute)
		}
		require.Equal(t, before, m.ticketCalls())
	})
}

func TestALeakResponseThatMovesIsNotTheTickets(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
		m.ok(logical.UpdateOperation, "config/demo", moveTo2(nil))
		m.ok(logical.ReadOperation, "ticket/demo", nil)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		m.ok(logical.ReadOperation, "ticket/demo", nil)
		require.Nil(t, m.storedTicket("demo").Leak)
	})
}

func TestTheBackgroundTriesNoCredentialsForATicketThatWereNeverUsed(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("victim", nil)
		m.write("team-e/x", map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
		m.reopen()
		time.Sleep(5 * time.Second)
		m.signs("victim")
		calls := m.calls()
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		require.Equal(t, calls, m.calls(), "team-e/x was never read, and the token of victim is not due")
	})
}

func TestAFailingTicketHasNoUntriedCredentialsTried(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("victim", nil)
		m.write("team-e/x", map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
		m.signs("victim")
		calls := m.calls()
		m.sim.Inject(ticketFault(wechatsim.Fault{Kind: "status", Status: 503, Times: 1}))
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		require.Equal(t, calls, m.calls())
		require.Equal(t, "pending", m.statusOf("team-e/x")["state"])
	})
}

func TestSignaturesWaitForNoUntriedCredentials(t *testing.T) {
	for _, strangers := range []int{0, 40} {
		t.Run(fmt.Sprint(strangers), func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("victim", nil)
				for i := range strangers {
					m.write(fmt.Sprintf("team-e/%02d", i), map[string]any{"verify": false, "secret": "not-the-secret-0123456789"})
				}
				m.reopen()
				time.Sleep(5 * time.Second)
				m.signs("victim")
				m.sim.SetLatency(4 * time.Second)
				var worst time.Duration
				for range 20 * 60 {
					begin := time.Now()
					m.signs("victim")
					worst = max(worst, time.Since(begin))
					time.Sleep(time.Second)
				}
				require.Zero(t, worst)
			})
		})
	}
}

func TestATicketsRecordNamesNoAccount(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("x", nil)
		m.write("y", nil)
		m.signs("x")
		m.ok(logical.DeleteOperation, "config/x", nil)
		m.signs("y")
		time.Sleep(time.Hour)
		m.signs("y")
		require.Empty(t, m.storedTicket("y").Names)
	})
}
