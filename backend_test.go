package wechat

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const (
	testAppID  = "wx0123456789abcdef"
	testSecret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
	testURL    = "http://127.0.0.1:80"
)

func TestMain(m *testing.M) {
	// A dependency of the SDK starts this one with the process.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// mount is the engine with its storage and a simulated WeChat, all in one
// synctest bubble: hours pass in no time, and nothing may be left running.
type mount struct {
	*backend
	t       *testing.T
	storage *faultyStorage
	sim     *wechatsim.Sim
	pipe    *wechatsim.Pipe
	system  *logical.StaticSystemView
	logs    *safeBuffer
}

// inBubble runs test on a mount that Vault has initialized. The account
// testAppID exists at WeChat, with the given settings.
func inBubble(t *testing.T, settings wechatsim.Account, test func(t *testing.T, m *mount)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &mount{
			t: t, storage: newFaultyStorage(), sim: wechatsim.New(), pipe: wechatsim.NewPipe(),
			system: &logical.StaticSystemView{PluginEnvironment: &logical.PluginEnvironment{VaultVersion: "1.21.0"}}, logs: &safeBuffer{},
		}
		settings.Secret = testSecret
		m.sim.SetAccount(testAppID, settings)
		defer m.sim.Serve(m.pipe)()
		m.open()
		defer m.close()
		test(t, m)
		require.NotContains(t, m.logs.String(), testSecret)
		for _, token := range m.tokens() {
			require.NotContains(t, m.logs.String(), token)
		}
	})
}

// open mounts the engine on what is in storage, as Vault does after unsealing.
func (m *mount) open() {
	m.t.Helper()
	m.backend = m.mountedOn(m.storage)
	require.NoError(m.t, m.Initialize(m.t.Context(), &logical.InitializationRequest{Storage: m.storage}))
	synctest.Wait()
}

func (m *mount) mountedOn(s logical.Storage) *backend {
	m.t.Helper()
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: m.logs})
	b, err := newBackend(m.t.Context(), &logical.BackendConfig{
		System: m.system, Logger: logger, StorageView: s, BackendUUID: "mount-1",
	}, &client{dial: m.pipe.DialContext})
	require.NoError(m.t, err)
	return b
}

func (m *mount) close() {
	m.Cleanup(m.t.Context())
	m.keeper.schedule.busy.Wait()
}

// reopen is what a restart does: memory is lost, storage stays.
func (m *mount) reopen() {
	m.t.Helper()
	m.close()
	m.open()
}

// tokens returns the token and the tickets that are current at WeChat, to be looked
// for where none may be.
func (m *mount) tokens() []string {
	var all []string
	for kind := range ticketTypes {
		if current := m.sim.CurrentTicket(testAppID, kind.String()); current != "" {
			all = append(all, current)
		}
	}
	if current := m.sim.Current(testAppID); current != "" {
		all = append(all, current)
	}
	return all
}

func (m *mount) request(op logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	m.t.Helper()
	return m.requestContext(m.t.Context(), op, path, data)
}

func (m *mount) requestContext(ctx context.Context, op logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	if op == logical.UpdateOperation {
		// As Vault does: it asks first, to tell create from update.
		found, exists, err := m.HandleExistenceCheck(ctx, &logical.Request{
			Operation: op, Path: path, Data: data, Storage: m.storage, MountPoint: "wechat/",
		})
		if err != nil {
			return nil, err
		}
		if found && !exists {
			op = logical.CreateOperation
		}
	}
	return m.HandleRequest(ctx, &logical.Request{
		Operation: op, Path: path, Data: data, Storage: m.storage, MountPoint: "wechat/",
	})
}

// ok is a request that has to succeed.
func (m *mount) ok(op logical.Operation, path string, data map[string]any) *logical.Response {
	m.t.Helper()
	resp, err := m.request(op, path, data)
	require.NoError(m.t, err)
	if resp != nil {
		require.NoError(m.t, resp.Error())
	}
	return resp
}

// refused is a request that has to fail, and returns with which HTTP status and
// text.
func (m *mount) refused(op logical.Operation, path string, data map[string]any) (int, string) {
	m.t.Helper()
	resp, err := m.request(op, path, data)
	return m.status(resp, err)
}

func (m *mount) status(resp *logical.Response, err error) (int, string) {
	m.t.Helper()
	if coded, ok := errors.AsType[logical.HTTPCodedError](err); ok {
		require.Nil(m.t, resp, "Vault takes the status only without a response")
		return coded.Code(), err.Error()
	}
	status, err := logical.RespondErrorCommon(&logical.Request{Operation: logical.UpdateOperation}, resp, err)
	require.Error(m.t, err, "the request was not refused")
	require.NotContains(m.t, err.Error(), testSecret)
	return status, err.Error()
}

// account1 is what it takes to write the account testAppID, with changes.
func account1(changes map[string]any) map[string]any {
	data := map[string]any{"appid": testAppID, "secret": testSecret, "base_url": testURL}
	maps.Copy(data, changes)
	return data
}

// account1Config is that configuration as far as it says which history is its.
func account1Config() *config { return &config{AppID: testAppID, BaseURL: testURL} }

// history returns the stored history of the appid of account1.
func (m *mount) history() *history {
	m.t.Helper()
	h := &history{}
	_, err := readEntry(m.t.Context(), m.storage, historyKey(account1Config()), h)
	require.NoError(m.t, err)
	return h
}

// write configures an account with sync_interval 0, unless changes say
// otherwise: then every call that WeChat sees is one that the test is about.
func (m *mount) write(name string, changes map[string]any) *logical.Response {
	m.t.Helper()
	data := account1(map[string]any{"sync_interval": 0})
	maps.Copy(data, changes)
	return m.ok(logical.UpdateOperation, "config/"+name, data)
}

// read reads a token, which WeChat has to accept.
func (m *mount) read(name string) map[string]any {
	m.t.Helper()
	resp := m.ok(logical.ReadOperation, "token/"+name, nil)
	_, errcode := m.sim.Check(resp.Data["access_token"].(string))
	require.Zero(m.t, errcode, "WeChat does not accept the token")
	return resp.Data
}

func (m *mount) calls() int { return len(m.sim.Calls("")) }

// stored returns all keys in storage.
func (m *mount) stored() []string {
	m.t.Helper()
	keys, err := logical.CollectKeys(m.t.Context(), logical.NewStorageView(m.storage, ""))
	require.NoError(m.t, err)
	slices.Sort(keys)
	return keys
}

// safeBuffer collects logs.
type safeBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// faultyStorage fails or is cut off at an operation of the test's choice, and
// counts operations.
type faultyStorage struct {
	logical.InmemStorage
	mu     sync.Mutex
	ops    int                        // operations so far
	writes int                        // of them, those that change something
	fail   func(op, key string) error // called before an operation; nil lets all through
	hook   func(op, key string)       // called before that, without the lock: it may use the storage
	lose   int                        // counts down to the operation whose answer is lost
}

var errStorage = errors.New("storage is out of order")

func newFaultyStorage() *faultyStorage { return &faultyStorage{} }

func (s *faultyStorage) begin(op, key string) error {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook != nil {
		hook(op, key)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops++
	if op == "put" || op == "delete" {
		s.writes++
	}
	if strings.Contains(key, "..") {
		return logical.ErrRelativePath // as Vault's storage does
	}
	if s.fail != nil {
		return s.fail(op, key)
	}
	return nil
}

// end reports a failure although the operation took effect, if the test says so.
func (s *faultyStorage) end(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lose > 0 {
		if s.lose--; s.lose == 0 {
			return errStorage
		}
	}
	return err
}

// losingAnswer lets the n-th operation from now report a failure although it
// takes effect; 0 is none.
func (s *faultyStorage) losingAnswer(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose = n
}

func (s *faultyStorage) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ops
}

// written returns how many operations would have changed something.
func (s *faultyStorage) written() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

// hooked has f called before each operation; nil has nothing called.
func (s *faultyStorage) hooked(f func(op, key string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// failing sets what fails; nil is nothing.
func (s *faultyStorage) failing(fail func(op, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

func (s *faultyStorage) List(ctx context.Context, prefix string) ([]string, error) {
	if err := s.begin("list", prefix); err != nil {
		return nil, err
	}
	keys, err := s.InmemStorage.List(ctx, prefix)
	return keys, s.end(err)
}

func (s *faultyStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	if err := s.begin("get", key); err != nil {
		return nil, err
	}
	entry, err := s.InmemStorage.Get(ctx, key)
	return entry, s.end(err)
}

func (s *faultyStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	if err := s.begin("put", entry.Key); err != nil {
		return err
	}
	return s.end(s.InmemStorage.Put(ctx, entry))
}

func (s *faultyStorage) Delete(ctx context.Context, key string) error {
	if err := s.begin("delete", key); err != nil {
		return err
	}
	return s.end(s.InmemStorage.Delete(ctx, key))
}

func TestAnAccountGoesInAndItsTokenComesOut(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		require.Nil(t, m.ok(logical.UpdateOperation, "config/demo", account1(nil)))
		require.Equal(t, 1, m.calls(), "the write tries the credentials once")

		got := m.read("demo")
		require.Equal(t, 1, m.calls(), "the first read is served from the cache")
		require.Equal(t, testAppID, got["appid"])
		require.Equal(t, int64(240), got["ttl"])
		require.Equal(t, int64(6910), got["rotation_period"])
		require.Len(t, got, 6)
		for _, field := range []string{"last_vault_rotation", "expire_time"} {
			at, err := time.Parse(time.RFC3339, got[field].(string))
			require.NoError(t, err)
			require.Equal(t, time.UTC, at.Location())
		}
		require.Equal(t, []string{"config/demo", "token/demo"}, m.stored(), "nothing else is left in storage")
	})
}

func TestTheFactoryOnlyWires(t *testing.T) {
	// At registration there is neither storage nor a system view.
	b, err := Factory(t.Context(), &logical.BackendConfig{Logger: hclog.NewNullLogger()})
	require.NoError(t, err)
	require.Equal(t, logical.TypeLogical, b.Type())
	require.Equal(t, Version, b.(*backend).PluginVersion().Version)
	require.Equal(t, []string{"config/", "token/", "ticket/"}, b.SpecialPaths().SealWrapStorage)
	b.Cleanup(t.Context())
}

func TestHelpAndOpenAPI(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		root := m.ok(logical.HelpOperation, "", nil)
		require.Contains(t, root.Data["help"], "stable access tokens")
		for _, path := range []string{"config/demo", "config", "token/demo", "token", "sign/demo", "ticket/demo"} {
			help := m.ok(logical.HelpOperation, path, nil).Data["help"].(string)
			require.Contains(t, help, "DESCRIPTION", path)
		}
		doc := root.Data["openapi"].(*framework.OASDocument)
		ids := map[string]bool{}
		for path, item := range doc.Paths {
			for _, op := range []*framework.OASOperation{item.Get, item.Post, item.Delete} {
				if op != nil {
					require.False(t, ids[op.OperationID], "operation id %s twice", op.OperationID)
					ids[op.OperationID] = true
					require.NotEmpty(t, op.Summary, path)
				}
			}
		}
		for _, id := range []string{
			"wechat-read-token", "wechat-list-tokens", "wechat-list-tokens-below",
			"wechat-configure-account", "wechat-read-account", "wechat-delete-account",
			"wechat-list-accounts", "wechat-list-accounts-below",
			"wechat-read-ticket", "wechat-sign-page", "wechat-read-signature-of-page",
		} {
			require.Contains(t, ids, id)
		}
		secret := m.Route("config/x").Fields["secret"]
		require.True(t, secret.DisplayAttrs.Sensitive)
	})
}

func TestReplicationStatesGateWritesAndCalls(t *testing.T) {
	for name, c := range map[string]struct {
		state    consts.ReplicationState
		local    bool
		writable bool
	}{
		"active node":                            {0, false, true},
		"performance standby":                    {consts.ReplicationPerformanceStandby, false, false},
		"performance secondary":                  {consts.ReplicationPerformanceSecondary, false, false},
		"local mount on a performance secondary": {consts.ReplicationPerformanceSecondary, true, true},
		"disaster recovery secondary":            {consts.ReplicationDRSecondary, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
				m.write("warm", nil)
				m.write("cold", map[string]any{"verify": false})
				m.close()
				m.system.ReplicationStateVal, m.system.LocalMountVal = c.state, c.local
				m.open()
				before, writes := m.calls(), m.storage.written()

				for _, path := range []string{"token/warm", "status/warm"} {
					_, err := m.request(logical.ReadOperation, path, nil)
					if c.writable {
						require.NoError(t, err)
					} else {
						require.Equal(t, logical.ErrReadOnly, err, "what is in memory there may be stale: %s", path)
					}
				}
				require.Equal(t, before, m.calls())
				m.ok(logical.ReadOperation, "config/warm", nil) // which storage answers
				require.Equal(t, []string{"cold", "warm"}, m.ok(logical.ListOperation, "token/", nil).Data["keys"])

				_, err := m.request(logical.ReadOperation, "token/cold", nil)
				_, writeErr := m.request(logical.UpdateOperation, "config/cold", account1(nil))
				time.Sleep(3 * time.Hour) // the warm token is due
				synctest.Wait()
				if c.writable {
					require.NoError(t, err)
					require.NoError(t, writeErr)
					require.Greater(t, m.calls(), before)
					return
				}
				require.Equal(t, logical.ErrReadOnly, err, "Vault forwards on the bare error only")
				if c.state != consts.ReplicationDRSecondary { // which answers no requests
					require.Equal(t, logical.ErrReadOnly, writeErr)
					require.Equal(t, before, m.calls())
					require.Equal(t, writes, m.storage.written())
				}
			})
		})
	}
}

// countingSystem counts how often Vault is asked for its replication state.
type countingSystem struct {
	*logical.StaticSystemView
	asked int
}

func (s *countingSystem) ReplicationState() consts.ReplicationState {
	s.asked++
	return s.StaticSystemView.ReplicationState()
}

func TestTheReplicationStateIsAskedForOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counting := &countingSystem{StaticSystemView: &logical.StaticSystemView{}}
		system := &cachedSystemView{SystemView: counting}
		for range 1000 {
			system.ReplicationState()
		}
		require.Equal(t, 1, counting.asked)
		counting.ReplicationStateVal = consts.ReplicationPerformanceStandby
		time.Sleep(replicationMemory)
		require.Equal(t, consts.ReplicationPerformanceStandby, system.ReplicationState())
		require.Equal(t, 2, counting.asked)
	})
}

func TestAnotherNodesChangeIsSeen(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		first := m.read("demo")

		// Another node stores another token; this one reads on from memory until
		// it is told.
		var tok token
		require.NoError(t, mustGet(m, "token/demo").DecodeJSON(&tok))
		tok.AccessToken = m.sim.ForceOutside(testAppID)
		require.NoError(t, writeEntry(t.Context(), m.storage, "token/demo", &tok))
		m.InvalidateKey(t.Context(), "token/demo")
		require.NotEqual(t, first["access_token"], m.read("demo")["access_token"])

		require.NoError(t, m.storage.Delete(t.Context(), "config/demo"))
		m.InvalidateKey(t.Context(), "config/demo")
		status, _ := m.refused(logical.ReadOperation, "token/demo", nil)
		require.Equal(t, http.StatusBadRequest, status)

		m.InvalidateKey(t.Context(), "config/never-there") // and nothing happens
		m.InvalidateKey(t.Context(), "elsewhere")
	})
}

func mustGet(m *mount, key string) *logical.StorageEntry {
	m.t.Helper()
	entry, err := m.storage.Get(m.t.Context(), key)
	require.NoError(m.t, err)
	require.NotNil(m.t, entry, key)
	return entry
}

func TestALoadInFlightDoesNotPutBackWhatIsStale(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(t *testing.T, m *mount) {
		m.write("demo", nil)
		m.reopenWithoutBackground()
		// While the account is loaded, another node changes it: after its
		// configuration was read here, before its token is.
		m.storage.failing(func(op, key string) error {
			if op == "get" && key == "token/demo" {
				m.keeper.invalidate("config/demo")
			}
			return nil
		})
		m.read("demo")
		m.storage.failing(nil)
		require.Nil(t, m.keeper.lookup("demo").current(), "the stale state was kept")
		m.read("demo")
		require.NotNil(t, m.keeper.lookup("demo").current())
	})
}

// reopenWithoutBackground restarts as on a node that only serves reads.
func (m *mount) reopenWithoutBackground() {
	m.t.Helper()
	m.close()
	m.backend = m.mountedOn(m.storage)
}
