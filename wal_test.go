package wechat

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const otherAppID = "wxfedcba9876543210"

// faults are the ways in which storage goes wrong from the n-th operation on.
var faults = map[string]func(n int) func(op, key string) error{
	// The one operation fails.
	"fails": func(n int) func(string, string) error {
		return func(string, string) error {
			if n--; n == 0 {
				return errStorage
			}
			return nil
		}
	},
	// It and all that follow fail: the process, or Vault, is gone.
	"cut off": func(n int) func(string, string) error {
		return func(string, string) error {
			if n--; n <= 0 {
				return errStorage
			}
			return nil
		}
	},
}

// lostAnswer is a third way: the n-th operation takes effect, and is reported
// as failed.
const lostAnswer = "takes effect but reports an error"

// changes are the operations that take several storage operations.
var changes = map[string]func(m *mount) error{
	"create": func(m *mount) error {
		return m.try(logical.UpdateOperation, "config/new", account1(map[string]any{"appid": otherAppID}))
	},
	"create without verify": func(m *mount) error {
		return m.try(logical.UpdateOperation, "config/new", account1(map[string]any{"appid": otherAppID, "verify": false}))
	},
	"change of appid": func(m *mount) error {
		return m.try(logical.UpdateOperation, "config/demo", map[string]any{"appid": otherAppID})
	},
	"change of appid without verify": func(m *mount) error {
		return m.try(logical.UpdateOperation, "config/demo", map[string]any{"appid": otherAppID, "verify": false})
	},
	"change of base_url": func(m *mount) error {
		return m.try(logical.UpdateOperation, "config/demo", account1(map[string]any{"base_url": "http://127.0.0.2"}))
	},
	"new secret while WeChat has another token": func(m *mount) error {
		m.sim.ForceOutside(testAppID)
		return m.try(logical.UpdateOperation, "config/demo", map[string]any{"secret": testSecret})
	},
	"change of max_ttl": func(m *mount) error {
		return m.try(logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60})
	},
	"delete": func(m *mount) error {
		return m.try(logical.DeleteOperation, "config/demo", nil)
	},
	"first read": func(m *mount) error {
		return m.try(logical.ReadOperation, "token/unread", nil)
	},
	"first signature": func(m *mount) error {
		return m.try(logical.ReadOperation, "sign/demo", map[string]any{"url": testPage})
	},
	"another type of ticket": func(m *mount) error {
		return m.try(logical.ReadOperation, "ticket/signed", map[string]any{"type": "wx_card"})
	},
	"change of the appid of one with a ticket": func(m *mount) error {
		return m.try(logical.UpdateOperation, "config/signed", map[string]any{"appid": otherAppID})
	},
	"delete one with a ticket": func(m *mount) error {
		return m.try(logical.DeleteOperation, "config/signed", nil)
	},
}

// try is a request of which only the success matters.
func (m *mount) try(op logical.Operation, path string, data map[string]any) error {
	m.t.Helper()
	resp, err := m.request(op, path, data)
	if err == nil && resp != nil {
		err = resp.Error()
	}
	return err
}

func TestAnUnfinishedChangeIsCleanedUp(t *testing.T) {
	cases := 0
	for operation, change := range changes {
		for _, fault := range []string{"fails", "cut off", lostAnswer} {
			for _, restart := range []bool{false, true} {
				for _, read := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s/restart %t/read %t", operation, fault, restart, read), func(t *testing.T) {
						for n := 1; changeWithFault(t, change, fault, n, restart, read); n++ {
							cases++
						}
					})
				}
			}
		}
	}
	t.Logf("%d cases", cases)
	require.Greater(t, cases, 100)
}

// changeWithFault lets storage go wrong at the n-th operation of a change, has
// Vault roll back, and checks what holds at all times. With read, readers come
// before the rollback does: their tokens take the place of what is left behind,
// so without them the rollback alone has to remove it. It reports whether the
// change had an n-th operation.
func changeWithFault(t *testing.T, change func(*mount) error, fault string, n int, restart, read bool) bool {
	t.Helper()
	struck := false
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetAccount(otherAppID, wechatsim.Account{Secret: testSecret})
		m.write("demo", nil)
		m.sim.SetAccount("wxunread", wechatsim.Account{Secret: testSecret})
		m.write("unread", map[string]any{"appid": "wxunread", "verify": false})
		m.sim.SetAccount("wxsigned", wechatsim.Account{Secret: testSecret})
		m.write("signed", map[string]any{"appid": "wxsigned"})
		m.signs("signed")
		before := m.snapshot()
		if fault == lostAnswer {
			m.storage.losingAnswer(n)
		} else {
			m.storage.failing(faults[fault](n))
		}
		first, at := m.storage.count(), ""
		m.storage.hooked(func(op, key string) {
			if m.storage.count()-first == n-1 {
				at = op + " " + key
			}
		})
		err := change(m)
		m.storage.hooked(nil)
		struck = m.storage.count()-first >= n
		if struck && err == nil {
			// The change succeeds all the same if its announcement cannot be withdrawn, if
			// WeChat's answer cannot be stored, which is served from memory meanwhile, or if
			// unused tickets of another account cannot be removed.
			require.Regexp(t, "^(delete wal/|(put|get|delete) held/|get config/)", at)
		}
		if restart {
			m.close()
		}
		m.storage.failing(nil)
		m.storage.losingAnswer(0)
		if restart {
			m.open()
		}
		if read {
			m.checkServed(before)
		}
		m.rollback()
		m.checkStored(before)
		m.checkServed(before)
		if err != nil {
			require.NoError(t, change(m), "it can be repeated")
			m.checkServed(before)
		}
	})
	return struck
}

// rollback is what Vault does once a minute, after the entries' minimum age.
func (m *mount) rollback() {
	m.t.Helper()
	time.Sleep(walMinAge + time.Second)
	resp, err := m.HandleRequest(m.t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: m.storage})
	require.NoError(m.t, err)
	require.Nil(m.t, resp, "an entry could not be rolled back")
}

// snapshot returns all of storage.
func (m *mount) snapshot() map[string]string {
	m.t.Helper()
	all := map[string]string{}
	for _, key := range m.stored() {
		all[key] = string(mustGet(m, key).Value)
	}
	return all
}

// checkStored checks storage: no announcement is left, no token and no ticket stands
// without the configuration that it belongs to, and an account whose configuration is
// the old one has its old token.
func (m *mount) checkStored(before map[string]string) {
	m.t.Helper()
	for key, value := range m.snapshot() {
		require.False(m.t, strings.HasPrefix(key, framework.WALPrefix), "the write-ahead log is not empty")
		if !strings.HasPrefix(key, heldPrefix) {
			continue
		}
		of, identity, _ := strings.Cut(strings.TrimPrefix(key, heldPrefix+"wechat/"), "/")
		var token record
		require.NoError(m.t, mustGet(m, tokenRecords+identity).DecodeJSON(&token), "a %s without a token", of)
		require.True(m.t, token.Value == "" || len(token.Names) > 0, "a token without an account")
		for name, its := range token.Names {
			cfg, err := loadConfig(m.t.Context(), m.storage, name)
			require.NoError(m.t, err)
			require.NotNil(m.t, cfg, "a token without its configuration")
			require.Equal(m.t, cfg.ID, its.ID, "a token of another account")
			require.Equal(m.t, identity, storageKey("", weixinIdentity(cfg)))
			if before[configPrefix+name] == string(mustGet(m, configPrefix+name).Value) && before[key] != "" && of == "token" {
				appid, _ := m.sim.Check(token.Value)
				require.Equal(m.t, cfg.AppID, appid)
				require.True(m.t, value == before[key] || m.sim.Current(appid) == token.Value, "the old configuration has lost its token")
			}
		}
	}
	if _, ok := m.snapshot()[configPrefix+"demo"]; ok && m.snapshot()[configPrefix+"demo"] == before[configPrefix+"demo"] {
		require.Contains(m.t, m.history().Names, "demo", "the old configuration has lost its token")
	}
}

// checkServed checks what readers see: for every account that is configured a
// token and a ticket of its own appid that WeChat accepts.
func (m *mount) checkServed(before map[string]string) {
	m.t.Helper()
	for _, name := range []string{"demo", "unread", "new", "signed"} {
		cfg, err := loadConfig(m.t.Context(), m.storage, name)
		require.NoError(m.t, err)
		if cfg == nil {
			m.refused(logical.ReadOperation, "token/"+name, nil)
			m.refused(logical.ReadOperation, "sign/"+name, map[string]any{"url": testPage})
			continue
		}
		time.Sleep(2 * time.Second) // past the backoff of a failed attempt
		synctest.Wait()
		calls := m.calls()
		resp := m.ok(logical.ReadOperation, "token/"+name, nil)
		appid, errcode := m.sim.Check(resp.Data["access_token"].(string))
		require.Equal(m.t, cfg.AppID, appid, "a token of another account")
		if errcode != 0 { // replaced outside: a comparison finds that, a read does not
			require.Equal(m.t, 40001, errcode)
			require.Equal(m.t, "demo", name)
		}
		if string(mustGet(m, configPrefix+name).Value) == before[configPrefix+name] && m.accepts(before[historyKey(cfg)]) {
			require.Equal(m.t, calls, m.calls(), "the old token was lost")
		}
	}
}

// accepts reports whether WeChat accepts the token of a storage entry.
func (m *mount) accepts(entry string) bool {
	m.t.Helper()
	if entry == "" {
		return false
	}
	var tok record
	require.NoError(m.t, json.Unmarshal([]byte(entry), &tok))
	_, errcode := m.sim.Check(tok.Value)
	return errcode == 0
}

func TestRollbackLeavesAloneWhatHasGoneOn(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		// An entry of long ago, for a name that has been configured since.
		_, err := framework.PutWAL(t.Context(), m.storage, walChange, &change{Name: "demo"})
		require.NoError(t, err)
		m.write("demo", nil)
		before := m.read("demo")
		m.rollback()
		require.Equal(t, before["access_token"], m.read("demo")["access_token"])
		require.Equal(t, []string{"config/demo", historyKey(account1Config())}, m.stored())
		require.Equal(t, 1, m.calls())
	})
}

func TestRollbackKeepsAnEntryItDoesNotKnow(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		_, err := framework.PutWAL(t.Context(), m.storage, "of-the-future", map[string]any{})
		require.NoError(t, err)
		time.Sleep(walMinAge + time.Second)
		resp, err := m.HandleRequest(t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: m.storage})
		require.NoError(t, err)
		require.ErrorContains(t, resp.Error(), "of-the-future")
		require.Len(t, m.stored(), 1)
	})
}

func TestAnAnnouncementThatFailsChangesNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		before := m.snapshot()
		m.storage.failing(func(op, key string) error {
			if op == "put" && strings.HasPrefix(key, framework.WALPrefix) {
				return errStorage
			}
			return nil
		})
		err := m.try(logical.UpdateOperation, "config/demo", map[string]any{"appid": otherAppID, "verify": false})
		require.ErrorIs(t, err, errStorage)
		err = m.try(logical.DeleteOperation, "config/demo", nil)
		require.True(t, errors.Is(err, errStorage))
		require.Equal(t, before, m.snapshot())
	})
}

// Storage failed, and carries the write out after the next one.
func TestAWriteThatFailedAndIsCarriedOutLate(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		time.Sleep(10 * time.Minute)
		key := historyKey(account1Config())
		puts := 0
		m.storage.failing(func(op, k string) error {
			if op == "put" && k == key {
				if puts++; puts == 2 { // the announcement is stored, its withdrawal hangs
					return errStorage
				}
			}
			return nil
		})
		late := mustGet(m, key) // what the withdrawal writes
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced"})
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		m.storage.failing(nil)
		m.sim.ClearFaults()
		m.sim.Inject(wechatsim.Fault{Kind: "lost", Mode: "forced"})
		time.Sleep(100 * time.Millisecond)
		m.sim.OnCall(func(c wechatsim.Call) {
			if c.Forced {
				m.storage.failing(writesFail) // the crash
			}
		})
		_ = m.try(logical.UpdateOperation, "rotate/demo", nil)
		m.close()
		m.storage.failing(nil)
		m.sim.ClearFaults()
		seen, effective := m.forcedCalls()
		t.Logf("%d forced, %d effective", seen, effective)
		require.NoError(t, m.storage.Put(t.Context(), late))
		m.open()
		m.read("demo")
	})
}

func TestAChangeThatAClosedMountDidNotFinishIsRolledBack(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("x", nil)
		m.write("y", nil)
		m.at("delete", "config/x", func() { m.Cleanup(t.Context()) })
		_ = m.try(logical.DeleteOperation, "config/x", nil)
		m.storage.hooked(nil)
		m.reopen()
		time.Sleep(time.Minute)
		m.rollbackTick()
		m.ok(logical.DeleteOperation, "config/y", nil)
		m.ticks(10)
		require.NotContains(t, m.stored(), historyKey(account1Config()))
	})
}

func TestADeletedAccountThatCouldNotBeReadKeepsNoToken(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("x", nil)
		m.write("y", nil)
		m.close()
		require.NoError(t, m.storage.Put(t.Context(), &logical.StorageEntry{Key: "config/x", Value: []byte("{")}))
		m.open()
		time.Sleep(5 * time.Second)
		m.ok(logical.DeleteOperation, "config/x", nil)
		m.ok(logical.DeleteOperation, "config/y", nil)
		m.ticks(10)
		require.NotContains(t, m.stored(), historyKey(account1Config()))
	})
}

func TestAnAccountComesWhileAGuardIsSettled(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		key := historyKey(account1Config())
		_, err := framework.PutWAL(t.Context(), &m.storage.InmemStorage, walGuard, &guard{Key: key, At: time.Now(), Fence: 7})
		require.NoError(t, err)
		m.reopen()
		time.Sleep(lateWrites + time.Minute)
		var all sync.WaitGroup
		m.at("put", key, func() {
			all.Go(func() {
				m.write("demo", nil)
				m.ok(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
			})
			time.Sleep(time.Second)
		})
		m.rollback()
		all.Wait()
		m.storage.hooked(nil)
		m.reopen() // as a crash
		require.Contains(t, m.history().Names, "demo")
		m.ticks(5)
		seen, _ := m.forcedCalls()
		require.Equal(t, 2, seen)
	})
}

func TestADeleteSucceedsThoughATwinCannotBeRead(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("team-a/x", nil)
		m.write("team-b/y", nil)
		m.write("team-b/z", nil)
		m.close()
		require.NoError(t, m.storage.Put(t.Context(), &logical.StorageEntry{Key: "config/team-b/y", Value: []byte("{")}))
		m.open()
		time.Sleep(5 * time.Second)
		m.ok(logical.DeleteOperation, "config/team-a/x", nil)
		m.rollback()
		require.NotContains(t, m.history().Names, "team-a/x")
		require.Contains(t, m.history().Names, "team-b/y")
	})
}
