package wechat

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// sentEvents has the mount send its events to the SDK's test double, and returns those
// that were sent since it was called last.
func (m *mount) sentEvents() func() []map[string]string {
	mock := logical.NewMockEventSender()
	m.keeper.events.sender = mock
	return func() []map[string]string {
		synctest.Wait()
		mock.Lock()
		defer mock.Unlock()
		var all []map[string]string
		for _, e := range mock.Events {
			fields := map[string]string{"type": string(e.Type)}
			for key, value := range e.Event.GetMetadata().GetFields() {
				fields[key] = value.GetStringValue()
			}
			all = append(all, fields)
			for _, secret := range append(m.tokens(), testSecret) {
				require.NotContains(m.t, e.Event.String(), secret)
			}
		}
		mock.Events = nil
		return all
	}
}

func TestWhatHappensToAnAccountIsAnEvent(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		sent := m.sentEvents()
		about := func(kind, path, dataPath, modified string, more ...string) map[string]string {
			fields := map[string]string{"type": "wechat/" + kind, "operation": kind, "name": "team/demo", "path": path + "/team/demo", "modified": modified}
			if dataPath != "" {
				fields["data_path"] = dataPath + "/team/demo"
			}
			for i := 0; i < len(more); i += 2 {
				fields[more[i]] = more[i+1]
			}
			return fields
		}
		expires := func() string { return timestamp(m.look("team/demo").st.Shown) }

		m.write("team/demo", nil)
		require.Equal(t, []map[string]string{
			about("token-rotate", "token", "token", "true", "expire_time", expires()),
			about("config-write", "config", "config", "true"),
		}, sent())

		m.ok(logical.UpdateOperation, "config/team/demo", account1(map[string]any{"base_url": "http://127.0.0.2:80"}))
		m.ok(logical.UpdateOperation, "config/team/demo", account1(nil))
		written := about("config-write", "config", "config", "true")
		require.Equal(t, []map[string]string{written, written}, sent(), "WeChat's token is still the same")

		m.read("team/demo")
		m.refused(logical.UpdateOperation, "config/team/demo", map[string]any{"max_ttl": 1})
		require.Empty(t, sent(), "neither a read nor what is refused changes anything")

		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40164, Times: 1})
		time.Sleep(rotationPeriod)
		require.Equal(t, []map[string]string{about("refresh-fail", "status", "status", "false", "class", "network admission", "errcode", "40164")}, sent())
		time.Sleep(time.Minute)
		require.Equal(t, []map[string]string{about("token-rotate", "token", "token", "true", "expire_time", expires())}, sent())

		m.sim.Inject(wechatsim.Fault{Kind: "reset", Mode: "forced", Times: 1})
		m.refused(logical.UpdateOperation, "rotate/team/demo", nil)
		require.Equal(t, about("refresh-fail", "status", "status", "false", "class", "unreachable"), sent()[0])

		time.Sleep(time.Minute)
		sent()
		m.ok(logical.UpdateOperation, "rotate/team/demo", map[string]any{"revoke": true})
		require.Equal(t, []map[string]string{about("token-rotate", "token", "token", "true", "expire_time", expires())}, sent())
		time.Sleep(forcedSpacing + time.Second)
		require.Equal(t, []map[string]string{
			about("token-rotate", "token", "token", "true", "expire_time", expires()),
			about("revocation-complete", "status", "status", "true"),
		}, sent())

		m.reopen()
		sent = m.sentEvents()
		time.Sleep(time.Minute)
		m.read("team/demo")
		require.Empty(t, sent(), "what comes from storage has not just happened")

		m.ok(logical.DeleteOperation, "config/team/demo", nil)
		m.ok(logical.DeleteOperation, "config/team/demo", nil)
		require.Equal(t, []map[string]string{about("config-delete", "config", "", "true")}, sent(), "once: nothing is left to delete")
	})
}

func TestWhereTheHostHasNoEventsNothingIsSaid(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		// Nothing was handed to the mount that it could send with.
		m.write("demo", nil)
		synctest.Wait()
		require.NotContains(t, m.logs.String(), "[ERROR]")
		require.NotContains(t, m.logs.String(), "[WARN]")
		require.Zero(t, m.measured()["wechat_events_dropped_total"])
	})
}

// stuckSender takes an event and never comes back before its context ends.
type stuckSender struct{ begun int }

func (s *stuckSender) SendEvent(ctx context.Context, _ logical.EventType, _ *logical.EventData) error {
	s.begun++
	<-ctx.Done()
	return ctx.Err()
}

func TestAHostThatIsStuckDelaysNothing(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		stuck := &stuckSender{}
		m.keeper.events.sender = stuck
		start := time.Now()
		m.write("demo", nil)
		m.ok(logical.UpdateOperation, "rotate/demo", nil)
		m.read("demo")
		require.Equal(t, start, time.Now(), "no request waits for it")
		synctest.Wait()
		require.Equal(t, 1, stuck.begun, "one at a time")

		for range maxEvents + 10 {
			m.keeper.events.send(eventTokenRotate, tokenPrefix, "demo")
		}
		require.Equal(t, 12.0, m.measured()["wechat_events_dropped_total"], "two of the three were still waiting")
		m.close() // does not wait for the host either
		require.Less(t, time.Since(start), eventTimeout)
		m.open()
	})
}

func TestEventsAfterTheEndOfAMountAreNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := logical.NewMockEventSender()
		k := newKeeper(hclog.NewNullLogger(), &client{}, sent, func() bool { return true })
		k.start(&logical.InmemStorage{})
		synctest.Wait()
		k.events.send(eventConfigWrite, configPrefix, "demo")
		synctest.Wait()
		require.Len(t, sent.Events, 1)
		k.stop()
		k.events.send(eventConfigDelete, configPrefix, "demo")
		k.busy.Wait()
		require.Len(t, sent.Events, 1)
	})
}
