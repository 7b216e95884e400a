package wechat

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/common/expfmt"
	prommodel "github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wake"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// metricsText reads the metrics as they are sent.
func metricsText(tb testing.TB, b *backend, s logical.Storage) string {
	tb.Helper()
	got := answer(tb, b, s, logical.ReadOperation, "metrics", nil)
	require.Equal(tb, 200, got[logical.HTTPStatusCode])
	require.Equal(tb, "text/plain; version=0.0.4; charset=utf-8", got[logical.HTTPContentType])
	return got[logical.HTTPRawBody].(string)
}

// metricValues are the values of metrics, by name and labels as they are sent.
func metricValues(tb testing.TB, text string) map[string]float64 {
	tb.Helper()
	parser := expfmt.NewTextParser(prommodel.LegacyValidation)
	_, err := parser.TextToMetricFamilies(strings.NewReader(text))
	require.NoError(tb, err)
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[at+1:], 64)
		require.NoError(tb, err)
		values[line[:at]] = value
	}
	return values
}

// measured reads the metrics.
func (m *mount) measured() map[string]float64 {
	m.t.Helper()
	text := metricsText(m.t, m.backend, m.storage)
	for _, secret := range append(m.tokens(), testSecret, testAppID) {
		require.NotContains(m.t, text, secret)
	}
	return metricValues(m.t, text)
}

// growth is by how much counters have grown between two readings.
func growth(before, after map[string]float64) map[string]float64 {
	grown := map[string]float64{}
	for name, value := range after {
		counter, _, _ := strings.Cut(name, "{")
		if strings.HasSuffix(counter, "_total") && value != before[name] {
			grown[name] = value - before[name]
		}
	}
	return grown
}

// metricNames are the names of all metrics in a text.
func metricNames(text string) []string {
	var names []string
	for line := range strings.Lines(text) {
		if rest, found := strings.CutPrefix(line, "# TYPE "); found {
			name, _, _ := strings.Cut(rest, " ")
			names = append(names, name)
		}
	}
	return names
}

// failedPut has storage take nothing below a prefix.
func failedPut(prefix string) func(op, key string) error {
	return func(op, key string) error {
		if op == "put" && strings.HasPrefix(key, prefix) {
			return errStorage
		}
		return nil
	}
}

func TestEveryRequestIsCountedByWhatCameOfIt(t *testing.T) {
	fail := func(f wechatsim.Fault) func(*mount) { return func(m *mount) { m.sim.Inject(f) } }
	for name, c := range map[string]struct {
		first   func(m *mount)
		request func(m *mount)
		want    map[string]float64
	}{
		"a read from memory": {
			nil,
			func(m *mount) { m.read("demo") },
			map[string]float64{`wechat_token_reads_total{result="cached"}`: 1},
		},
		"a read that waits for WeChat": {
			func(m *mount) { m.write("cold", map[string]any{"verify": false}) },
			func(m *mount) { m.read("cold") },
			map[string]float64{
				`wechat_token_reads_total{result="fetched"}`:                        1,
				`wechat_refreshes_total{result="confirmed"}`:                        1,
				`wechat_calls_total{api="stable_token",errcode="none",result="ok"}`: 1,
			},
		},
		"a read that fails": {
			func(m *mount) {
				m.write("cold", map[string]any{"verify": false})
				m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40164, Errmsg: "invalid ip 203.0.113.9 ipv6 ::ffff:203.0.113.9, not in whitelist rid: 65f0a1b2-0c3d4e5f-61728394"})
			},
			func(m *mount) { m.refused(logical.ReadOperation, "token/cold", nil) },
			map[string]float64{
				`wechat_token_reads_total{result="failed"}`:                                         1,
				`wechat_refreshes_total{result="failed"}`:                                           1,
				`wechat_calls_total{api="stable_token",errcode="40164",result="network admission"}`: 1,
			},
		},
		"a read that is answered from a failure before": {
			func(m *mount) {
				m.write("cold", map[string]any{"verify": false})
				m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40125})
				m.refused(logical.ReadOperation, "token/cold", nil)
			},
			func(m *mount) { m.refused(logical.ReadOperation, "token/cold", nil) },
			map[string]float64{`wechat_token_reads_total{result="failed"}`: 1},
		},
		"a read of an account that is not there": {
			nil,
			func(m *mount) { m.refused(logical.ReadOperation, "token/other", nil) },
			map[string]float64{`wechat_token_reads_total{result="unknown"}`: 1},
		},
		"a comparison with WeChat": {
			nil,
			func(m *mount) {
				m.ok(logical.UpdateOperation, "config/demo", map[string]any{"sync_interval": "1m"})
				time.Sleep(65 * time.Second)
				synctest.Wait()
			},
			map[string]float64{
				`wechat_refreshes_total{result="confirmed"}`:                        1,
				`wechat_calls_total{api="stable_token",errcode="none",result="ok"}`: 1,
			},
		},
		"a token that was replaced from outside": {
			func(m *mount) { m.sim.ForceOutside(testAppID); time.Sleep(minCallInterval) },
			func(m *mount) { m.ok(logical.UpdateOperation, "refresh/demo", nil) },
			map[string]float64{
				`wechat_refreshes_total{result="outside"}`:                          1,
				`wechat_reports_total{result="changed"}`:                            1,
				`wechat_calls_total{api="stable_token",errcode="none",result="ok"}`: 1,
			},
		},
		"a verified write that finds a token replaced outside": {
			func(m *mount) { m.sim.ForceOutside(testAppID) },
			func(m *mount) { m.ok(logical.UpdateOperation, "config/demo", map[string]any{"verify": true}) },
			map[string]float64{
				`wechat_refreshes_total{result="outside"}`:                          1,
				`wechat_calls_total{api="stable_token",errcode="none",result="ok"}`: 1,
			},
		},
		"a verified write that finds nothing new": {
			nil,
			func(m *mount) { m.ok(logical.UpdateOperation, "config/demo", map[string]any{"verify": true}) },
			map[string]float64{`wechat_calls_total{api="stable_token",errcode="none",result="ok"}`: 1},
		},
		"another name that finds a token replaced outside": {
			func(m *mount) {
				m.write("cold", map[string]any{"verify": false})
				m.sim.ForceOutside(testAppID)
			},
			func(m *mount) { m.read("cold"); time.Sleep(startHoldOff); synctest.Wait() },
			map[string]float64{
				`wechat_token_reads_total{result="fetched"}`:                        1,
				`wechat_refreshes_total{result="outside"}`:                          1, // demo has it, too
				`wechat_calls_total{api="stable_token",errcode="none",result="ok"}`: 1,
			},
		},
		"a token that has run out by itself": {
			nil,
			func(*mount) { time.Sleep(rotationPeriod); synctest.Wait() },
			map[string]float64{
				`wechat_refreshes_total{result="replaced"}`:                         1,
				`wechat_calls_total{api="stable_token",errcode="none",result="ok"}`: 1,
			},
		},
		"a report that WeChat does not bear out": {
			nil,
			func(m *mount) { m.ok(logical.UpdateOperation, "refresh/demo", nil) },
			map[string]float64{`wechat_reports_total{result="unchanged"}`: 1},
		},
		"a report of an account that is not there": {
			nil,
			func(m *mount) { m.refused(logical.UpdateOperation, "refresh/other", nil) },
			map[string]float64{`wechat_reports_total{result="unknown"}`: 1},
		},
		"a report while WeChat is away": {
			func(m *mount) { time.Sleep(minCallInterval); m.sim.Inject(wechatsim.Fault{Kind: "reset"}) },
			func(m *mount) { m.refused(logical.UpdateOperation, "refresh/demo", nil) },
			map[string]float64{
				`wechat_reports_total{result="failed"}`:                                      1,
				`wechat_refreshes_total{result="failed"}`:                                    1,
				`wechat_calls_total{api="stable_token",errcode="none",result="unreachable"}`: 1,
			},
		},
		"an errcode that is not documented": {
			fail(wechatsim.Fault{Kind: "errcode", Errcode: 31337}),
			func(m *mount) { m.refused(logical.UpdateOperation, "config/demo", account1(nil)) },
			map[string]float64{`wechat_calls_total{api="stable_token",errcode="other",result="undocumented answer"}`: 1},
		},
		"a forced refresh": {
			nil,
			func(m *mount) { m.ok(logical.UpdateOperation, "rotate/demo", nil) },
			map[string]float64{
				`wechat_forced_refreshes_total{result="replaced"}`:                  1,
				`wechat_calls_total{api="stable_token",errcode="none",result="ok"}`: 1,
			},
		},
		"a forced refresh too soon": {
			func(m *mount) { m.ok(logical.UpdateOperation, "rotate/demo", nil) },
			func(m *mount) { m.refused(logical.UpdateOperation, "rotate/demo", nil) },
			map[string]float64{`wechat_forced_refreshes_total{result="limited"}`: 1},
		},
		"a forced refresh that WeChat refuses": {
			fail(wechatsim.Fault{Kind: "errcode", Errcode: 45009, Mode: "forced"}),
			func(m *mount) { m.refused(logical.UpdateOperation, "rotate/demo", nil) },
			map[string]float64{
				`wechat_forced_refreshes_total{result="refused"}`:                       1,
				`wechat_calls_total{api="stable_token",errcode="45009",result="quota"}`: 1,
			},
		},
		"a forced refresh that brings the same token": {
			fail(wechatsim.Fault{Kind: "sametoken"}),
			func(m *mount) { m.ok(logical.UpdateOperation, "rotate/demo", nil) },
			map[string]float64{
				`wechat_forced_refreshes_total{result="same"}`:                      1,
				`wechat_calls_total{api="stable_token",errcode="none",result="ok"}`: 1,
			},
		},
		"a forced refresh whose answer is lost": {
			fail(wechatsim.Fault{Kind: "lost", Mode: "forced"}),
			func(m *mount) { m.refused(logical.UpdateOperation, "rotate/demo", nil) },
			map[string]float64{
				`wechat_forced_refreshes_total{result="lost"}`:                               1,
				`wechat_calls_total{api="stable_token",errcode="none",result="unreachable"}`: 1,
			},
		},
		"a forced refresh that storage prevents": {
			func(m *mount) { m.storage.failing(failedPut(tokenRecords)) },
			func(m *mount) { _, _ = m.request(logical.UpdateOperation, "rotate/demo", nil) },
			map[string]float64{
				`wechat_forced_refreshes_total{result="prevented"}`: 1,
				`wechat_storage_failures_total{operation="put"}`:    2, // its note, and that there was none
			},
		},
		"a leak response of which storage takes no note": {
			func(m *mount) { m.storage.failing(failedPut("wal/")) },
			func(m *mount) {
				_, _ = m.request(logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true})
			},
			map[string]float64{
				`wechat_forced_refreshes_total{result="prevented"}`: 1,
				`wechat_storage_failures_total{operation="put"}`:    1,
			},
		},
		"a forced refresh of an account whose secret is wrong": {
			func(m *mount) {
				m.write("cold", map[string]any{"verify": false})
				m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40125})
			},
			func(m *mount) { m.refused(logical.UpdateOperation, "rotate/cold", nil) },
			map[string]float64{
				`wechat_forced_refreshes_total{result="prevented"}`:                           1,
				`wechat_refreshes_total{result="failed"}`:                                     1,
				`wechat_calls_total{api="stable_token",errcode="40125",result="credentials"}`: 1,
			},
		},
		"a login": {
			nil,
			func(m *mount) { m.login("demo", m.mini()) },
			map[string]float64{
				`wechat_exchanges_total{api="jscode2session",result="ok"}`:            1,
				`wechat_calls_total{api="jscode2session",errcode="none",result="ok"}`: 1,
			},
		},
		"a login with a code that is not good": {
			nil,
			func(m *mount) { m.loginFails("demo", "unknown-code"); m.loginFails("demo", "unknown-code") },
			map[string]float64{
				`wechat_exchanges_total{api="jscode2session",result="code"}`:             2,
				`wechat_calls_total{api="jscode2session",errcode="40029",result="code"}`: 1,
			},
		},
		"a login of a user who comes too often": {
			fail(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 45011}),
			func(m *mount) { m.loginFails("demo", m.mini()) },
			map[string]float64{
				`wechat_exchanges_total{api="jscode2session",result="user"}`:             1,
				`wechat_calls_total{api="jscode2session",errcode="45011",result="user"}`: 1,
			},
		},
		"logins of an account whose secret is wrong": {
			fail(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "errcode", Errcode: 40125}),
			func(m *mount) { m.loginFailsInARow("demo"); m.loginFails("demo", m.mini()) },
			map[string]float64{
				`wechat_exchanges_total{api="jscode2session",result="credentials"}`:             failuresInARow + 1,
				`wechat_calls_total{api="jscode2session",errcode="40125",result="credentials"}`: failuresInARow,
			},
		},
		"a signature": {
			func(m *mount) {
				m.ok(logical.ReadOperation, "sign/demo", map[string]any{"url": "https://shop.example.com/"})
			},
			func(m *mount) {
				m.ok(logical.ReadOperation, "sign/demo", map[string]any{"url": "https://shop.example.com/"})
			},
			map[string]float64{`wechat_signatures_total{result="signed"}`: 1},
		},
		"a signature for which there is no ticket": {
			fail(wechatsim.Fault{API: wechatsim.APITicket, Kind: "errcode", Errcode: 40001}),
			func(m *mount) {
				m.refused(logical.UpdateOperation, "sign/demo", map[string]any{"url": "https://shop.example.com/"})
			},
			map[string]float64{
				`wechat_signatures_total{result="failed"}`:                                    1,
				`wechat_calls_total{api="getticket",errcode="40001",result="rejected token"}`: 1,
			},
		},
		"a signature of an account that is not there": {
			nil,
			func(m *mount) {
				m.refused(logical.ReadOperation, "sign/other", map[string]any{"url": "https://shop.example.com/"})
			},
			map[string]float64{`wechat_signatures_total{result="unknown"}`: 1},
		},
		"a quota that is cleared": {
			nil,
			func(m *mount) { m.ok(logical.UpdateOperation, "clear-quota/demo", nil) },
			map[string]float64{`wechat_calls_total{api="clear_quota",errcode="none",result="ok"}`: 1},
		},
		"a read whose storage fails": {
			func(m *mount) {
				m.reopen()
				m.keeper.invalidate("config/demo")
				m.storage.failing(func(op, _ string) error {
					if op == "get" {
						return errStorage
					}
					return nil
				})
			},
			func(m *mount) { _, _ = m.request(logical.ReadOperation, "token/demo", nil) },
			map[string]float64{
				`wechat_token_reads_total{result="failed"}`:      1,
				`wechat_storage_failures_total{operation="get"}`: 1,
			},
		},
		"a write that storage does not take": {
			func(m *mount) {
				m.storage.failing(failedPut(configPrefix))
			},
			func(m *mount) {
				_, _ = m.request(logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60})
			},
			map[string]float64{`wechat_storage_failures_total{operation="put"}`: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				if c.first != nil {
					c.first(m)
				}
				before := m.measured()
				c.request(m)
				require.Equal(t, c.want, growth(before, m.measured()))
			})
		})
	}
}

func TestTheTimeOfCallsIsMeasured(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.sim.SetLatency(700 * time.Millisecond)
		m.write("demo", nil)
		got := m.measured()
		require.InDelta(t, 0.7, got[`wechat_call_duration_seconds_sum{api="stable_token"}`], 0.001)
		require.Zero(t, got[`wechat_call_duration_seconds_bucket{api="stable_token",le="0.5"}`])
		require.Equal(t, 1.0, got[`wechat_call_duration_seconds_bucket{api="stable_token",le="1"}`])
		require.Contains(t, got, `wechat_call_duration_seconds_count{api="getticket"}`, "also before the first call")
	})
}

func TestLoginsInFlightAndTurnedAwayAreCounted(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", map[string]any{"request_timeout": "10s"})
		m.sim.SetLatencyOf(wechatsim.APICode2Session, 3*time.Second)
		before := m.measured()
		for range maxLogins {
			code := m.mini()
			go func() {
				_, _ = m.requestContext(context.Background(), logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": code})
			}()
		}
		synctest.Wait()
		require.Equal(t, float64(maxLogins), m.measured()["wechat_exchanges_in_flight"])
		m.ok(logical.UpdateOperation, "config/demo", map[string]any{"request_timeout": "1s"})
		m.loginFails("demo", m.mini())
		time.Sleep(3 * time.Second)
		synctest.Wait()
		after := m.measured()
		require.Zero(t, after["wechat_exchanges_in_flight"])
		require.Equal(t, map[string]float64{
			"wechat_exchanges_turned_away_total":                                  1,
			`wechat_exchanges_total{api="jscode2session",result="ok"}`:            maxLogins,
			`wechat_calls_total{api="jscode2session",errcode="none",result="ok"}`: maxLogins,
		}, growth(before, after))
	})
}

func TestAccountsAreShownAsTheyAre(t *testing.T) {
	const odd = "team-a/Shop_1.x-y"
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write(odd, nil)
		m.write("pending", map[string]any{"verify": false})
		got := m.measured()
		for state, n := range map[string]float64{"healthy": 1, "pending": 1, "degraded": 0, "failing": 0, "unloaded": 0} {
			require.Equal(t, n, got[`wechat_accounts{state="`+state+`"}`], state)
		}
		require.Equal(t, 7200.0, got[`wechat_token_remaining_seconds{account="`+odd+`"}`])
		require.Equal(t, unixSeconds(time.Now()), got[`wechat_last_success_timestamp_seconds{account="`+odd+`"}`])
		require.Equal(t, 20.0, got[`wechat_forced_refreshes_remaining{account="`+odd+`"}`])
		require.Equal(t, 0.0, got[`wechat_consecutive_failures{account="pending"}`])
		require.NotContains(t, got, `wechat_token_remaining_seconds{account="pending"}`, "no application waits for its token")
		require.NotContains(t, got, `wechat_last_success_timestamp_seconds{account="pending"}`)

		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40125})
		time.Sleep(rotationPeriod)
		synctest.Wait()
		got = m.measured()
		require.Equal(t, 1.0, got[`wechat_accounts{state="degraded"}`])
		require.Equal(t, 1.0, got[`wechat_accounts_last_error{class="credentials"}`])
		require.Zero(t, got[`wechat_accounts_last_error{class="network admission"}`])
		require.Equal(t, 290.0, got[`wechat_token_remaining_seconds{account="`+odd+`"}`])
		require.Equal(t, 1.0, got[`wechat_consecutive_failures{account="`+odd+`"}`])
		time.Sleep(refreshMargin)
		synctest.Wait()
		got = m.measured()
		require.Equal(t, 1.0, got[`wechat_accounts{state="failing"}`])
		require.Contains(t, got, `wechat_token_remaining_seconds{account="`+odd+`"}`)
		require.Zero(t, got[`wechat_token_remaining_seconds{account="`+odd+`"}`])

		m.sim.ClearFaults()
		time.Sleep(5 * time.Minute)
		m.ok(logical.UpdateOperation, "rotate/"+odd, map[string]any{"revoke": true})
		got = m.measured()
		require.Equal(t, 1.0, got["wechat_revocations_pending"])
		require.Equal(t, 19.0, got[`wechat_forced_refreshes_remaining{account="`+odd+`"}`])
		time.Sleep(forcedSpacing + time.Second)
		synctest.Wait()
		got = m.measured()
		require.Zero(t, got["wechat_revocations_pending"])
		require.Zero(t, got[`wechat_accounts_last_error{class="credentials"}`])

		m.ok(logical.DeleteOperation, "config/"+odd, nil)
		for name := range m.measured() {
			require.NotContains(t, name, odd, "a deleted account leaves no series")
		}
		m.keeper.invalidate("config/pending")
		got = m.measured()
		require.Equal(t, 1.0, got[`wechat_accounts{state="unloaded"}`])
		require.Zero(t, got[`wechat_accounts{state="pending"}`])
		for name := range got {
			require.NotContains(t, name, `account="pending"`, "what is not known has no series")
		}
	})
}

// An operator may try a new account before its IP is on the whitelist.
func TestAWriteThatWeChatRefusesIsNoAccountsError(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.sim.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 40164})
		m.refused(logical.UpdateOperation, "config/demo", account1(nil))
		m.refused(logical.UpdateOperation, "config/new", account1(nil))
		const admission = `wechat_accounts_last_error{class="network admission"}`
		require.Zero(t, m.measured()[admission])
		m.refused(logical.UpdateOperation, "rotate/demo", nil)
		require.Zero(t, m.measured()[admission], "the token holds, and nothing else was asked for")
		time.Sleep(rotationPeriod)
		synctest.Wait()
		require.Equal(t, 1.0, m.measured()[admission])
	})
}

// What storage refuses shows as well, and has a class of its own.
func TestAnAccountWhoseTokenIsNotStoredHasAnErrorOfStorage(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.storage.failing(failedPut(heldPrefix))
		time.Sleep(rotationPeriod)
		synctest.Wait()
		require.Equal(t, 1.0, m.measured()[`wechat_accounts_last_error{class="storage"}`])
	})
}

// To Prometheus a series that begins with 1 has not grown.
func TestWhatAlertsCountIsThereFromTheBeginning(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		want := []string{
			`wechat_calls_total{api="stable_token",errcode="45011",result="quota"}`,
			`wechat_refreshes_total{result="outside"}`,
			`wechat_reports_total{result="unchanged"}`,
			`wechat_exchanges_turned_away_total`,
		}
		for _, operation := range []string{"list", "get", "put", "delete"} {
			want = append(want, `wechat_storage_failures_total{operation="`+operation+`"}`)
		}
		for _, a := range apis {
			want = append(want, `wechat_calls_total{api="`+a+`",errcode="45009",result="quota"}`)
		}
		for _, a := range []string{apiCode2Session, apiOAuth2} {
			for _, result := range append(slices.Clone(upstream.Classes), upstream.ResultOK) {
				want = append(want, `wechat_exchanges_total{api="`+a+`",result="`+string(result)+`"}`)
			}
		}
		got := m.measured()
		for _, name := range want {
			require.Contains(t, got, name)
			require.Zero(t, got[name], name)
		}
	})
}

func TestOfManyAccountsTheWorstAreShownAndTheOthersCounted(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		f := fleet(maxListed + 20)
		f.store(t, m.storage, 2*time.Hour)
		m.reopen()
		got := m.measured()
		require.Equal(t, 20.0, got["wechat_unlisted_accounts"])
		listed := func(got map[string]float64) (names []string) {
			for _, name := range slices.Sorted(maps.Keys(got)) {
				if rest, found := strings.CutPrefix(name, `wechat_token_remaining_seconds{account="`); found {
					names = append(names, strings.TrimSuffix(rest, `"}`))
				}
			}
			return names
		}
		require.Len(t, listed(got), maxListed)
		require.Equal(t, f.name(0), listed(got)[0])
		last := f.name(maxListed + 19)
		m.sim.SetAccount(f.appID(maxListed+19), wechatsim.Account{Secret: testSecret})
		m.ok(logical.UpdateOperation, "rotate/"+last, nil)
		require.Contains(t, listed(m.measured()), last, "the budget of the others is whole")

		for i := maxListed + 10; i < maxListed+12; i++ {
			a := m.keeper.known(f.name(i))
			a.failures[tokenSlot].Store((*failure)(nil).after(&problem{Rule: upstream.RuleUnavailable}, moment(), moment()))
			if i > maxListed+10 {
				dead := *a.holder.state.Load()
				dead.End = time.Now()
				a.holder.state.Store(&dead)
			}
		}
		got = m.measured()
		require.Contains(t, listed(got), f.name(maxListed+10))
		require.Contains(t, listed(got), f.name(maxListed+11))
		require.NotContains(t, listed(got), f.name(maxListed-1))
		require.Equal(t, 20.0, got["wechat_unlisted_accounts"])
		require.Equal(t, float64(maxListed+20), got[`wechat_accounts{state="healthy"}`]+got[`wechat_accounts{state="degraded"}`]+got[`wechat_accounts{state="failing"}`])
	})
}

func TestAccountsThatWaitForAWorkerAreShown(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		f := fleet(100)
		f.store(t, m.storage, time.Minute) // all are due soon
		for i := range 100 {
			m.sim.SetAccount(f.appID(i), wechatsim.Account{Secret: testSecret})
		}
		m.sim.Inject(wechatsim.Fault{Kind: "hang", Hang: 10 * time.Second})
		m.reopen()
		time.Sleep(startHoldOff)
		synctest.Wait()
		got := m.measured()
		require.Equal(t, float64(100-wake.Workers), got["wechat_accounts_due"])
		first := got["wechat_accounts_due_lag_seconds"]
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.InDelta(t, first+2, m.measured()["wechat_accounts_due_lag_seconds"], 0.001)
	})
}

func TestMetricsAreTheActiveNodes(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.close()
		m.system.ReplicationStateVal = consts.ReplicationPerformanceStandby
		m.open()
		_, err := m.request(logical.ReadOperation, "metrics", nil)
		require.Equal(t, logical.ErrReadOnly, err)
	})
}

func TestEachMountCountsForItself(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		other := m.mountedOn(&logical.InmemStorage{})
		defer other.Cleanup(t.Context())
		m.write("demo", nil)
		m.read("demo")
		require.Equal(t, 1.0, m.measured()[`wechat_token_reads_total{result="cached"}`])
		require.Zero(t, metricValues(t, metricsText(t, other, &logical.InmemStorage{}))[`wechat_token_reads_total{result="cached"}`])
	})
}

func TestACancelledRequestIsNoFailureOfStorage(t *testing.T) {
	m := newMetrics()
	ctx, cancel := context.WithCancel(t.Context())
	s := m.watched(&logical.InmemStorage{}).(*watchedStorage)
	_ = s.count(ctx, "get", nil)
	cancel()
	require.ErrorIs(t, s.count(ctx, "get", context.Canceled), context.Canceled)
	families, err := m.registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "wechat_storage_failures_total" {
			for _, metric := range f.GetMetric() {
				require.Zero(t, metric.GetCounter().GetValue())
			}
		}
	}
	slow, cancelSlow := context.WithTimeout(t.Context(), 0)
	defer cancelSlow()
	require.Error(t, s.count(slow, "put", errors.New("too slow")), "a deadline that storage missed is a failure")
}

func TestACachedReadIsCountedWithoutAllocating(t *testing.T) {
	m := newMetrics()
	require.Zero(t, testing.AllocsPerRun(100, func() { m.reads.count(true, nil, "cached") }))
}

// TestNamesAndUnits holds the names to Prometheus's conventions.
func TestNamesAndUnits(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		text := metricsText(t, m.backend, m.storage)
		for line := range strings.Lines(text) {
			kind := strings.Fields(line)
			if kind[0] != "#" || kind[1] != "TYPE" {
				continue
			}
			require.True(t, strings.HasPrefix(kind[2], "wechat_"), kind[2])
			require.Equal(t, kind[3] == "counter", strings.HasSuffix(kind[2], "_total"), "%s is a %s", kind[2], kind[3])
		}
		require.GreaterOrEqual(t, len(metricNames(text)), 20)
		require.Contains(t, text, `wechat_build_info{goversion="go1.`)
	})
}
