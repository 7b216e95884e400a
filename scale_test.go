package wechat

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wake"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// The sizes of the tests of scale. The default ones are quick also under the
// race detector; `go test -run Scale -v -accounts 100000 -calling 100000 .`
// prints the figures of a large mount.
var (
	scaleAccounts = flag.Int("accounts", 10_000, "accounts of the tests of scale that make no calls")
	scaleCalling  = flag.Int("calling", 2_000, "accounts of the tests of scale in which each of them calls WeChat")
)

// maxAccountMemory is what an account may take in memory besides its token, in
// bytes.
const maxAccountMemory = 4 << 10

// fleet is a number of accounts that were written straight into storage, each
// with a token of the usual length.
type fleet int

func (f fleet) name(i int) string  { return fmt.Sprintf("fleet-%06d", i) }
func (f fleet) appID(i int) string { return fmt.Sprintf("wx%016d", i) }
func (f fleet) token(i int) string { return fmt.Sprintf("%0512d", i) }

// store writes the accounts, with tokens that have this much of their life left.
func (f fleet) store(tb testing.TB, s logical.Storage, left time.Duration) {
	tb.Helper()
	end := wallClock().UTC().Truncate(time.Second).Add(left)
	cfg := newConfig()
	cfg.Secret, cfg.BaseURL, cfg.SyncInterval = testSecret, testURL, 0
	at := end.Add(-maxLifetime)
	for i := range int(f) {
		cfg.ID, cfg.AppID = fmt.Sprintf("%026d", i), f.appID(i)
		r := &record{
			Version:    schemaVersion,
			Credential: kept.Credential{Value: f.token(i), Rotated: at, Timed: at, Shown: end, End: end},
			ledger:     ledger{Names: map[string]admission{f.name(i): {cfg.ID, cfg.Credentials}}},
		}
		require.NoError(tb, storeConfig(tb.Context(), s, f.name(i), cfg))
		require.NoError(tb, writeEntry(tb.Context(), s, historyKey(cfg), r))
	}
}

// gatedStorage counts its operations, and holds back every list but that of the
// write-ahead log until its gate is opened.
type gatedStorage struct {
	logical.InmemStorage
	gate chan struct{} // closed when it is open
	ops  atomic.Int64
}

func (s *gatedStorage) List(ctx context.Context, prefix string) ([]string, error) {
	s.ops.Add(1)
	if prefix == framework.WALPrefix {
		return s.InmemStorage.List(ctx, prefix)
	}
	select {
	case <-s.gate:
		return s.InmemStorage.List(ctx, prefix)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *gatedStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	s.ops.Add(1)
	return s.InmemStorage.Get(ctx, key)
}

func (s *gatedStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	s.ops.Add(1)
	return s.InmemStorage.Put(ctx, entry)
}

func (s *gatedStorage) Delete(ctx context.Context, key string) error {
	s.ops.Add(1)
	return s.InmemStorage.Delete(ctx, key)
}

// bareMount is the engine on a storage, in real time and without a WeChat, until
// the test ends.
func bareMount(tb testing.TB, s logical.Storage) *backend {
	tb.Helper()
	b, err := newBackend(tb.Context(), &logical.BackendConfig{
		System: &logical.StaticSystemView{}, Logger: hclog.NewNullLogger(), StorageView: s, BackendUUID: "mount-1",
	}, &client{})
	require.NoError(tb, err)
	tb.Cleanup(func() {
		b.Cleanup(context.Background())
		b.keeper.busy.Wait()
	})
	return b
}

// answer is a request that has to succeed.
func answer(tb testing.TB, b *backend, s logical.Storage, op logical.Operation, path string, data map[string]any) map[string]any {
	tb.Helper()
	resp, err := b.HandleRequest(tb.Context(), &logical.Request{Operation: op, Path: path, Data: data, Storage: s})
	require.NoError(tb, err)
	require.NoError(tb, resp.Error())
	return resp.Data
}

// heapInUse is how much memory is in use, in bytes.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // what the first one found to have a finalizer
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestScaleOfAMount(t *testing.T) {
	f := fleet(*scaleAccounts)
	s := &gatedStorage{gate: make(chan struct{})}
	f.store(t, s, 2*time.Hour)
	before := heapInUse()

	begin := time.Now()
	b := bareMount(t, s)
	// It returns although storage does not even give the list of the accounts.
	require.NoError(t, b.Initialize(t.Context(), &logical.InitializationRequest{Storage: s}))
	initialized := time.Since(begin)
	for _, i := range []int{0, int(f) / 2, int(f) - 1} {
		require.Equal(t, f.token(i), answer(t, b, s, logical.ReadOperation, tokenPrefix+f.name(i), nil)["access_token"])
		if i == 0 {
			t.Logf("%d accounts: initialized after %s, the first answer after %s", f, initialized, time.Since(begin))
		}
	}
	select {
	case <-b.keeper.loaded:
		t.Fatal("the reads were to come before the accounts are loaded")
	default:
	}
	begin = time.Now()
	close(s.gate)
	<-b.keeper.loaded
	t.Logf("all loaded %s later", time.Since(begin))

	t.Run("memory", func(t *testing.T) {
		each := (heapInUse()-before)/int64(f) - int64(len(f.token(0)))
		t.Logf("%d bytes an account, besides its token", each)
		require.Positive(t, each, "the accounts are not in memory")
		require.Less(t, each, int64(maxAccountMemory))
	})

	t.Run("cached reads", func(t *testing.T) {
		ops := s.ops.Load()
		for i := range int(f) {
			if got := answer(t, b, s, logical.ReadOperation, tokenPrefix+f.name(i), nil)["access_token"]; got != f.token(i) {
				t.Fatalf("%s has another account's token", f.name(i))
			}
		}
		require.Equal(t, ops, s.ops.Load(), "a read went to storage")
	})

	t.Run("tick with nothing due", func(t *testing.T) {
		ops, fastest := s.ops.Load(), time.Hour
		for range 100 {
			begin := time.Now()
			require.NoError(t, b.PeriodicFunc(t.Context(), &logical.Request{Storage: s}))
			fastest = min(fastest, time.Since(begin)) // the others were interrupted
		}
		t.Logf("%s", fastest)
		require.Less(t, fastest, time.Millisecond)
		require.Equal(t, ops, s.ops.Load(), "a tick went to storage")

		// What Vault calls is a rollback: the framework looks once whether the
		// write-ahead log holds anything, and then ticks.
		_, err := b.HandleRequest(t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: s})
		require.NoError(t, err)
		require.Equal(t, ops+1, s.ops.Load())
	})

	t.Run("lists", func(t *testing.T) {
		for _, area := range []string{configPrefix, tokenPrefix, statusPrefix} {
			begin, ops := time.Now(), s.ops.Load()
			got := answer(t, b, s, logical.ListOperation, area, nil)
			t.Logf("%s: %s", area, time.Since(begin))
			require.Equal(t, ops+1, s.ops.Load(), area)
			keys := got["keys"].([]string)
			require.Len(t, keys, int(f))
			require.Equal(t, f.name(int(f)-1), keys[int(f)-1])
			if area == statusPrefix {
				info := got["key_info"].(map[string]any)
				require.Len(t, info, int(f))
				require.Equal(t, stateHealthy, info[f.name(0)].(map[string]any)["state"])
			}
		}
		begin, ops := time.Now(), s.ops.Load()
		require.Equal(t, stateHealthy, answer(t, b, s, logical.ReadOperation, statusPrefix+f.name(0), nil)["state"])
		t.Logf("one status: %s", time.Since(begin))
		require.Equal(t, ops, s.ops.Load(), "memory knows all of it")
	})
}

// open mounts the engine on the fleet, all of whose tokens are due but have this
// much of their life left. Until the background begins startHoldOff has to pass.
func (f fleet) open(m *mount, left time.Duration) {
	m.t.Helper()
	for i := range int(f) {
		m.sim.SetAccount(f.appID(i), wechatsim.Account{Secret: testSecret})
	}
	f.store(m.t, m.storage, left)
	m.reopen()
}

// calls returns how often WeChat was called for each account of the fleet.
func (f fleet) calls(m *mount) map[string]int {
	calls := map[string]int{}
	for _, c := range m.sim.Calls("") {
		if c.AppID != testAppID {
			calls[c.AppID]++
		}
	}
	return calls
}

// timedRead returns how long a read takes, and what it brings.
func (m *mount) timedRead(name string) (took time.Duration, token string, resp *logical.Response) {
	m.t.Helper()
	begin := time.Now()
	resp = m.ok(logical.ReadOperation, tokenPrefix+name, nil)
	return time.Since(begin), resp.Data["access_token"].(string), resp
}

func TestScaleAllTokensDueAtOnce(t *testing.T) {
	const (
		latency = 50 * time.Millisecond
		left    = 280 * time.Second
		margin  = 2 * time.Minute // what has to be left of each token, by the contract
	)
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		f := fleet(*scaleCalling)
		m.write("other", nil)
		f.open(m, left)
		m.sim.SetLatency(latency)
		begin := time.Now()
		for i := 0; len(f.calls(m)) < int(f); i++ {
			require.Less(t, time.Since(begin), left-margin, "tokens are not replaced in time")
			took, _, resp := m.timedRead("other")
			require.Zero(t, took, "a reader of an account that is not due had to wait")
			require.Empty(t, resp.Warnings)
			took, token, _ := m.timedRead(f.name(i * 37 % int(f)))
			require.LessOrEqual(t, took, latency, "a reader of an account that is due waits for one call")
			_, errcode := m.sim.Check(token)
			require.Zero(t, errcode)
			time.Sleep(latency)
		}
		time.Sleep(latency)
		synctest.Wait()
		t.Logf("%d tokens replaced %s after the mount, at most %d calls at a time", f, time.Since(begin), m.sim.MaxInFlight(""))
		require.LessOrEqual(t, m.sim.MaxInFlight(""), wake.Workers+1, "the background's and the reader's")
		time.Sleep(time.Minute)
		for appID, n := range f.calls(m) {
			require.Equal(t, 1, n, "calls for %s", appID)
		}
		for i := range int(f) {
			_, token, resp := m.timedRead(f.name(i))
			_, errcode := m.sim.Check(token)
			require.Zero(t, errcode)
			require.Empty(t, resp.Warnings)
		}
	})
}

// attempts is the most that an account may try within the given time if each
// attempt fails.
func attempts(b backoff, within time.Duration) int {
	n := 0
	for spent := time.Duration(0); spent <= within; n++ {
		wait := b.Most
		if n < 30 {
			wait = min(b.Most, b.First<<n)
		}
		spent += max(b.First, wait-wait/4)
	}
	return n
}

func TestScaleAFailureOfWeChatIsNoStorm(t *testing.T) {
	const (
		latency = 50 * time.Millisecond
		left    = 285 * time.Second
		outage  = 4 * time.Minute
	)
	for name, c := range map[string]struct {
		fault   wechatsim.Fault
		backoff backoff
		attempt time.Duration // how long one takes
	}{
		"server error":       {wechatsim.Fault{Kind: "status", Status: http.StatusServiceUnavailable}, upstream.BackoffTransient, latency},
		"busy":               {wechatsim.Fault{Kind: "errcode", Errcode: -1}, upstream.BackoffTransient, latency},
		"quota of a minute":  {wechatsim.Fault{Kind: "errcode", Errcode: 45011}, backoffQuota, latency},
		"IP not whitelisted": {wechatsim.Fault{Kind: "errcode", Errcode: 40164}, backoffPerson, latency},
		"hang":               {wechatsim.Fault{Kind: "hang"}, upstream.BackoffTransient, defaultRequestTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				f := fleet(max(1, *scaleCalling/10))
				m.sim.Inject(c.fault)
				m.sim.SetLatency(latency)
				f.open(m, left)
				begin := time.Now()
				time.Sleep(startHoldOff)
				took, _, _ := m.timedRead(f.name(0))
				require.LessOrEqual(t, took, c.attempt, "the reader that finds the token due waits for one call")
				for time.Since(begin) < outage {
					took, token, resp := m.timedRead(f.name(0))
					if left-time.Since(begin) > (2*time.Minute + 2*kept.RetryTTL) {
						require.Zero(t, took, "a reader of a token that is still valid waited again")
					}
					require.LessOrEqual(t, took, c.attempt)
					require.Equal(t, f.token(0), token)
					require.Len(t, resp.Warnings, 1)
					time.Sleep(time.Second)
				}
				calls, most := f.calls(m), 0
				for _, n := range calls {
					most = max(most, n)
				}
				arrivals := m.sim.Calls("")
				t.Logf("%d accounts: %d calls in %s, at most %d for one account", f, len(arrivals), outage, most)
				tried := wake.Workers * int((outage-startHoldOff)/c.attempt)
				require.GreaterOrEqual(t, len(calls), min(int(f), tried), "accounts were not tried")
				require.LessOrEqual(t, most, attempts(c.backoff, outage))
				atOnce := wake.Workers + wake.SlowWorkers + 1 // the background's and the reader's
				for i := atOnce; i < len(arrivals); i++ {
					between := arrivals[i].Time.Sub(arrivals[i-atOnce].Time)
					require.GreaterOrEqual(t, between, c.attempt, "more than %d calls at a time", atOnce)
				}

				// When it is over each account is asked for once more.
				m.sim.ClearFaults()
				over := c.backoff.Most + c.attempt + latency*time.Duration(f)/time.Duration(wake.SlowWorkers)
				time.Sleep(over)
				synctest.Wait()
				for appID, n := range f.calls(m) {
					require.LessOrEqual(t, n, calls[appID]+1, "calls for %s", appID)
				}
				for i := range int(f) {
					require.Equal(t, stateHealthy, m.look(f.name(i)).health(), "%s, %s after the outage", f.name(i), over)
				}
			})
		})
	}
}

// An account that failed once must not wait for those that time out.
func TestScaleOneFailureAmongManyTimeouts(t *testing.T) {
	for name, fault := range map[string]wechatsim.Fault{
		"busy":      {Kind: "errcode", Errcode: -1},
		"reset":     {Kind: "reset"},
		"a timeout": {Kind: "hang"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("demo", nil)
				f := fleet(3000)
				f.store(t, m.storage, rotationPeriod)
				for i := range int(f) {
					m.sim.Inject(wechatsim.Fault{AppID: f.appID(i), Kind: "hang"})
				}
				m.reopen()
				st := m.look("demo").st
				time.Sleep(time.Until(st.Due) - minCallInterval)
				fault.AppID, fault.Times = testAppID, 1
				m.sim.Inject(fault)
				for begin := time.Now(); m.look("demo").st.Value == st.Value; {
					if fault.Kind == "errcode" {
						require.Less(t, time.Since(begin), time.Minute, "WeChat answered, so it does not wait at all")
					}
					resp := m.ok(logical.ReadOperation, "token/demo", nil)
					if resp.Data["access_token"] == st.Value {
						require.Greater(t, time.Until(st.End), 2*time.Minute)
					}
					time.Sleep(kept.MinTTL)
				}
				m.read("demo")
			})
		})
	}
}

// While WeChat refuses slowly and nothing is due, accounts are not asked for more
// often than they are compared, after the first few times, and keep no other waiting.
func TestScaleSlowRefusalsWhileNothingIsDue(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		const n = 3000
		f := fleet(n)
		f.store(t, m.storage, 2*time.Hour)
		for i := range n {
			cfg, err := loadConfig(t.Context(), m.storage, f.name(i))
			require.NoError(t, err)
			cfg.SyncInterval = defaultSyncInterval
			require.NoError(t, storeConfig(t.Context(), m.storage, f.name(i), cfg))
			m.sim.SetAccount(f.appID(i), wechatsim.Account{Secret: testSecret})
			m.sim.Inject(wechatsim.Fault{AppID: f.appID(i), Kind: "hang", Hang: 4 * time.Second})
		}
		m.write("demo", map[string]any{"sync_interval": "1m"})
		m.reopen()
		time.Sleep(8 * time.Minute)
		m.sim.ForceOutside(testAppID)
		time.Sleep(time.Minute + 5*time.Second)
		synctest.Wait()
		m.read("demo")
		time.Sleep(30 * time.Minute)
		calls := m.calls()
		time.Sleep(20 * time.Minute)
		require.Less(t, m.calls()-calls, 5*n)
	})
}

func BenchmarkCachedRead(b *testing.B) {
	f, s := fleet(10_000), &gatedStorage{gate: make(chan struct{})}
	close(s.gate)
	f.store(b, s, 2*time.Hour)
	mounted := bareMount(b, s)
	require.NoError(b, mounted.Initialize(b.Context(), &logical.InitializationRequest{Storage: s}))
	<-mounted.keeper.loaded
	b.ReportAllocs()
	for b.Loop() {
		req := &logical.Request{Operation: logical.ReadOperation, Path: tokenPrefix + "fleet-001234", Storage: s}
		if _, err := mounted.HandleRequest(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkClientCall calls a WeChat on the loopback.
func BenchmarkClientCall(b *testing.B) {
	sim := wechatsim.New()
	sim.SetAccount(testAppID, wechatsim.Account{Secret: testSecret, PerMinute: 1 << 30, PerDay: 1 << 30})
	url, stop, err := sim.Start()
	require.NoError(b, err)
	defer stop()
	c := &client{}
	defer c.Close()
	e := testEndpoint()
	e.BaseURL = url
	b.ReportAllocs()
	for b.Loop() {
		if _, err := stableToken(b.Context(), c, e, input{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseAnswer(b *testing.B) {
	for name, raw := range map[string]string{
		"token":   `{"access_token":"` + strings.Repeat("x", 512) + `","expires_in":7200}`,
		"refusal": `{"errcode":40164,"errmsg":"invalid ip 203.0.113.9 ipv6 ::ffff:203.0.113.9, not in whitelist rid: 65f0a1b2-0c3d4e5f-61728394"}`,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if g, p := testEndpoint().request(upstream.Request{API: apiStableToken}).Parse(http.StatusOK, []byte(raw)); g == nil && p == nil {
					b.Fatal("neither a token nor a problem")
				}
			}
		})
	}
}

// BenchmarkSign signs a page with a cached ticket, and BenchmarkTokenRead reads the
// token of the same account: a page's signature is to cost no more.
func BenchmarkSign(b *testing.B) {
	benchmarkHit(b, signPrefix, map[string]any{"url": testPage})
}

func BenchmarkTokenRead(b *testing.B) { benchmarkHit(b, tokenPrefix, nil) }

func benchmarkHit(b *testing.B, prefix string, data map[string]any) {
	f, s := fleet(10_000), &gatedStorage{gate: make(chan struct{})}
	close(s.gate)
	f.store(b, s, 2*time.Hour)
	const i = 1234
	at := wallClock().UTC()
	ticket := kept.Credential{Value: strings.Repeat("t", 86), Rotated: at, Timed: at, Shown: at.Add(ticketGrace), End: at.Add(ticketGrace)}
	require.NoError(b, writeEntry(b.Context(), s, ticketKey(jsapiTicket, &config{AppID: f.appID(i), BaseURL: testURL}), &record{Version: schemaVersion, Credential: ticket}))
	mounted := bareMount(b, s)
	require.NoError(b, mounted.Initialize(b.Context(), &logical.InitializationRequest{Storage: s}))
	<-mounted.keeper.loaded
	answer(b, mounted, s, logical.ReadOperation, prefix+f.name(i), data)
	before := s.ops.Load()
	b.ReportAllocs()
	for b.Loop() {
		req := &logical.Request{Operation: logical.ReadOperation, Path: prefix + f.name(i), Data: data, Storage: s}
		if _, err := mounted.HandleRequest(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
	require.Equal(b, before, s.ops.Load(), "a hit costs no operation of storage")
}
