package wechat

// The harness of the unit tests: a mount in a synctest bubble.
//
//	inBubble     runs a test on an initialized mount with a simulated WeChat
//	write, read  configure an account; read a token that WeChat has to accept
//	ok, refused  a request that has to succeed; one that has to fail, with its status
//	request      any request, as Vault makes it
//	reopen       a restart: memory is lost, storage stays
//	calls        the calls of stable_token so far
//	stored       the keys in storage; snapshot has the values, too
//	storage      fails, loses answers or waits on command, see storage_test.go
//	sim          the simulated WeChat, see internal/wechatsim

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const (
	testAppID  = "wx0123456789abcdef"
	testSecret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
	testURL    = "http://127.0.0.1:80"
)

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
	}, &client{Client: upstream.Client{Dial: m.pipe.DialContext}})
	require.NoError(m.t, err)
	return b
}

func (m *mount) close() {
	m.Cleanup(m.t.Context())
	m.keeper.busy.Wait()
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
	for _, kind := range []string{"jsapi", "wx_card"} {
		if current := m.sim.CurrentTicket(testAppID, kind); current != "" {
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

// rotationPeriod is the usual life of a token in the cache.
const rotationPeriod = maxLifetime - refreshMargin

// tokenRecords is where the records of tokens are stored, and historyKey that of one.
const tokenRecords = "held/wechat/token/"

func historyKey(cfg *config) string { return ticketKey(tokenSlot, cfg) }

// ticketKey is where a ticket of the account of a configuration is stored.
func ticketKey(of slot, cfg *config) string {
	return weixin.recordKey(of, weixinIdentity(cfg))
}

// history returns the stored record of the token of account1; one without a version is none.
func (m *mount) history() *record { return m.record(account1Config()) }

func (m *mount) record(cfg *config) *record {
	m.t.Helper()
	r, err := readRecord(m.t.Context(), m.storage, historyKey(cfg))
	require.NoError(m.t, err)
	if r == nil {
		return &record{}
	}
	return r
}

// tokenKey is where the record of the account's token is stored.
func (m *mount) tokenKey(name string) string {
	m.t.Helper()
	a := m.keeper.known(name)
	require.NotNil(m.t, a, name)
	return a.holder.key
}

// look is how the account's token stands in memory.
func (m *mount) look(name string) held {
	m.t.Helper()
	a := m.keeper.known(name)
	require.NotNil(m.t, a, name)
	return a.look(tokenSlot)
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
