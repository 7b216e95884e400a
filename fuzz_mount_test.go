package wechat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/kept"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/upstream"
)

// The fuzz targets of a whole mount. WeChat cannot be reached, and storage holds two
// accounts with a token and a ticket each: "demo", which the input is about, and
// "other", which it must not harm.

const (
	fuzzPassword = "pr0xy-passw0rd-Gd82kQxw"
	fuzzToken    = "7Yq0bT3uVnR5xWc9LmKp2HsE"
	fuzzTicket   = "Zf4oJ8aDi6QvUy1Nr7BgXtMk"
	otherToken   = "P3wEhC5sOz9IjGxL0dRbTnYu"
)

// fuzzStorage returns what such a mount has in storage.
func fuzzStorage(t *testing.T) *faultyStorage {
	t.Helper()
	s := newFaultyStorage()
	now := wallClock().UTC().Truncate(time.Second)
	for name, of := range map[string][]string{
		"demo":  {testAppID, fuzzToken, fuzzTicket, "http://egress:" + fuzzPassword + "@127.0.0.1:3128"},
		"other": {otherAppID, otherToken, "sK6mVq2AfWtH8yJpUcXe4BoD", ""},
	} {
		cfg := newConfig()
		cfg.ID, cfg.Credentials, cfg.AppID, cfg.Secret, cfg.ProxyURL, cfg.SecretSetTime = name, name, of[0], testSecret, of[3], now
		holding := func(value string) *record {
			end := now.Add(maxLifetime)
			return &record{
				Version:    schemaVersion,
				Credential: kept.Credential{Value: value, Rotated: now, Shown: end, End: end, Timed: now},
				ledger:     ledger{Names: map[string]admission{name: {cfg.ID, cfg.Credentials}}},
			}
		}
		for key, entry := range map[string]any{
			storageKey(configPrefix, name): cfg,
			historyKey(cfg):                holding(of[1]),
			ticketKey(jsapiTicket, cfg):    holding(of[2]),
		} {
			require.NoError(t, writeEntry(t.Context(), s, key, entry))
		}
	}
	return s
}

var errNoNetwork = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("no network")}

// openFuzzed mounts the engine on the storage, and waits until it has loaded what is
// in there. The logs are complete when stop has returned.
func openFuzzed(t *testing.T, s logical.Storage) (b *backend, logs *safeBuffer, stop func()) {
	t.Helper()
	logs = &safeBuffer{}
	b, err := newBackend(t.Context(), &logical.BackendConfig{
		System: &logical.StaticSystemView{}, StorageView: s, BackendUUID: "mount-1",
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: logs}),
	}, &client{Client: upstream.Client{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errNoNetwork }}})
	require.NoError(t, err)
	require.NoError(t, b.Initialize(t.Context(), &logical.InitializationRequest{Storage: s}))
	<-b.keeper.loaded
	return b, logs, func() {
		b.Cleanup(context.Background())
		b.keeper.busy.Wait()
	}
}

// fuzzed makes a request as Vault does.
func fuzzed(t *testing.T, b *backend, s logical.Storage, op logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	t.Helper()
	request := func(op logical.Operation) *logical.Request {
		return &logical.Request{Operation: op, Path: path, Data: maps.Clone(data), Storage: s, MountPoint: "wechat/"}
	}
	if op == logical.UpdateOperation {
		found, exists, err := b.HandleExistenceCheck(t.Context(), request(op))
		if err != nil {
			return nil, err
		}
		if found && !exists {
			op = logical.CreateOperation
		}
	}
	return b.HandleRequest(t.Context(), request(op))
}

// requireAnswered checks that a request has an answer that is the caller's or WeChat's
// fault, and none of the engine. unreadable lets it be an entry that cannot be read.
func requireAnswered(t *testing.T, resp *logical.Response, err error, unreadable bool) {
	t.Helper()
	switch {
	case err == nil, unreadable && errors.Is(err, errUnreadable):
		return
	case errors.Is(err, logical.ErrUnsupportedOperation), errors.Is(err, logical.ErrUnsupportedPath), errors.Is(err, logical.ErrInvalidRequest):
		return
	}
	coded, ok := errors.AsType[logical.HTTPCodedError](err)
	require.True(t, ok, "%T %v", err, err)
	require.NotEqual(t, http.StatusInternalServerError, coded.Code(), err.Error())
	require.Nil(t, resp)
}

// requireUnharmed checks that the other account is as it was.
func requireUnharmed(t *testing.T, b *backend, s logical.Storage) {
	t.Helper()
	ok := func(op logical.Operation, path string, data map[string]any) map[string]any {
		resp, err := fuzzed(t, b, s, op, path, data)
		require.NoError(t, err, path)
		require.NoError(t, resp.Error(), path)
		require.Empty(t, resp.Warnings, path)
		return resp.Data
	}
	require.Equal(t, otherToken, ok(logical.ReadOperation, "token/other", nil)["access_token"])
	require.NotEmpty(t, ok(logical.ReadOperation, "sign/other", map[string]any{"url": testPage})["signature"])
	require.Equal(t, stateHealthy, ok(logical.ReadOperation, "status/other", nil)["state"])
	require.Equal(t, otherAppID, ok(logical.ReadOperation, "config/other", nil)["appid"])
	require.Contains(t, ok(logical.ListOperation, "config/", nil)["keys"], "other")
	info := ok(logical.ListOperation, "status/", map[string]any{"recursive": true})["key_info"].(map[string]any)
	require.Equal(t, stateHealthy, info["other"].(map[string]any)["state"])
}

// pieces returns the pieces by which a longer secret is found in a text: so long that
// no text has them by chance.
func pieces(secret string) []string {
	const length = 12
	var all []string
	for i := 0; i+length <= len(secret); i++ {
		all = append(all, secret[i:i+length])
	}
	return all
}

var fuzzOperations = []logical.Operation{
	logical.ReadOperation, logical.UpdateOperation, logical.DeleteOperation, logical.ListOperation,
}

// FuzzRequest holds every path to its contract whatever a request brings: one field
// with any value, beside what makes the request a good one if it is so. There is no
// panic, no internal error, and no secret in an answer or in the log.
func FuzzRequest(f *testing.F) {
	f.Fuzz(func(t *testing.T, op byte, path, field, value string, asJSON, complete bool) {
		data := map[string]any{field: value}
		if asJSON {
			d := json.NewDecoder(strings.NewReader(value))
			d.UseNumber() // as Vault does
			var decoded any
			if d.Decode(&decoded) != nil {
				return
			}
			data[field] = decoded
		}
		operation := fuzzOperations[int(op)%len(fuzzOperations)]
		s := fuzzStorage(t)
		b, logs, stop := openFuzzed(t, s)
		if route := b.Route(path); complete && route != nil {
			for other, good := range map[string]any{
				"appid": testAppID, "secret": testSecret, "verify": false, "url": testPage,
				"js_code": "a-code", "code": "a-code", "type": "jsapi",
			} {
				if route.Fields[other] != nil && other != field {
					data[other] = good
				}
			}
		}
		resp, err := fuzzed(t, b, s, operation, path, data)
		requireAnswered(t, resp, err, false)
		if !strings.Contains(path, "other") {
			requireUnharmed(t, b, s)
		}
		stop()

		answer := shown(t, resp, err)
		hidden := []string{testSecret, fuzzPassword}
		if !strings.HasPrefix(path, tokenPrefix) {
			hidden = append(hidden, fuzzToken)
		}
		if !strings.HasPrefix(path, ticketPrefix) {
			hidden = append(hidden, fuzzTicket)
		}
		if slices.Contains([]string{"secret", "rejected_token", "js_code", "code"}, field) && !strings.Contains(path, value) && len(value) < 256 {
			hidden = append(hidden, value)
		}
		for _, secret := range hidden {
			for _, piece := range pieces(secret) {
				require.NotContains(t, answer, piece)
				require.NotContains(t, logs.String(), piece)
			}
		}
		keys, err := logical.CollectKeys(t.Context(), logical.NewStorageView(s, configPrefix))
		require.NoError(t, err)
		for _, name := range storedNames(keys) {
			require.NoError(t, checkName(name), "it was stored")
		}
	})
}

// FuzzStoredEntry puts anything in the place of an entry of one account. It may keep
// that account from working, with an error that names the entry and the way out, and
// that way works; the other account is not harmed.
func FuzzStoredEntry(f *testing.F) {
	keys := []string{
		storageKey(configPrefix, "demo"),
		ticketKey(jsapiTicket, &config{AppID: testAppID, BaseURL: defaultBaseURL}), historyKey(&config{AppID: testAppID, BaseURL: defaultBaseURL}),
	}
	f.Fuzz(func(t *testing.T, which byte, value []byte) {
		key := keys[int(which)%len(keys)]
		s := fuzzStorage(t)
		require.NoError(t, s.Put(t.Context(), &logical.StorageEntry{Key: key, Value: value}))
		b, logs, stop := openFuzzed(t, s)
		defer stop()
		requireUnharmed(t, b, s)
		for _, request := range []struct {
			op   logical.Operation
			path string
			data map[string]any
		}{
			{logical.ReadOperation, "config/demo", nil},
			{logical.ReadOperation, "token/demo", nil},
			{logical.ReadOperation, "status/demo", nil},
			{logical.ReadOperation, "ticket/demo", nil},
			{logical.ReadOperation, "sign/demo", map[string]any{"url": testPage}},
			{logical.UpdateOperation, "refresh/demo", map[string]any{"rejected_token": fuzzToken}},
			{logical.UpdateOperation, "code2session/demo", map[string]any{"js_code": "a-code"}},
			{logical.UpdateOperation, "rotate/demo", map[string]any{"revoke": true}},
			{logical.UpdateOperation, "config/demo", map[string]any{"max_ttl": 60}},
		} {
			resp, err := fuzzed(t, b, s, request.op, request.path, request.data)
			requireAnswered(t, resp, err, true)
			if errors.Is(err, errUnreadable) {
				require.ErrorContains(t, err, key)
				require.ErrorContains(t, err, "write")
				for _, piece := range pieces(string(value)) {
					if strings.ContainsAny(piece, `{"}`) {
						require.NotContains(t, err.Error(), piece)
					}
				}
			}
		}
		require.NotContains(t, logs.String(), fuzzPassword)
		require.NotContains(t, logs.String(), testSecret)

		// The way out.
		_, err := fuzzed(t, b, s, logical.DeleteOperation, "config/demo", nil)
		require.NoError(t, err)
		_, err = fuzzed(t, b, s, logical.UpdateOperation, "config/demo", map[string]any{"appid": testAppID, "secret": testSecret, "verify": false})
		require.NoError(t, err)
		resp, err := fuzzed(t, b, s, logical.ReadOperation, "token/demo", nil)
		requireAnswered(t, resp, err, false)
		require.Equal(t, http.StatusBadGateway, problemOf(b.unreached(t, s)).Status)
		requireUnharmed(t, b, s)
	})
}

// unreached returns the error of the token of demo, which WeChat was to be asked for.
func (b *backend) unreached(t *testing.T, s logical.Storage) error {
	t.Helper()
	_, err := b.keeper.get(t.Context(), s, "demo", tokenSlot)
	require.Error(t, err)
	return err
}

// FuzzLogEntry puts anything into the write-ahead log, where the start and Vault's
// rollback find it. No account is harmed, whatever it names.
func FuzzLogEntry(f *testing.F) {
	f.Fuzz(func(t *testing.T, kind string, data []byte, whole bool) {
		s := fuzzStorage(t)
		var decoded any
		if whole { // it is the entry itself
			require.NoError(t, s.Put(t.Context(), &logical.StorageEntry{Key: framework.WALPrefix + "an-id", Value: data}))
		} else {
			if json.Unmarshal(data, &decoded) != nil {
				return
			}
			_, err := framework.PutWAL(t.Context(), s, kind, decoded)
			require.NoError(t, err)
		}
		before := configsOf(t, s)
		b, _, stop := openFuzzed(t, s)
		defer stop()
		for range 2 {
			// Its error keeps the entry; that is all it may do.
			_ = b.rollback(t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: s}, kind, decoded)
			requireUnharmed(t, b, s)
			resp, err := fuzzed(t, b, s, logical.ReadOperation, "token/demo", nil)
			requireAnswered(t, resp, err, false)
			resp, err = fuzzed(t, b, s, logical.ReadOperation, "status/demo", nil)
			requireAnswered(t, resp, err, false)
		}
		require.Equal(t, before, configsOf(t, s))
	})
}

// configsOf returns the configurations in storage.
func configsOf(t *testing.T, s logical.Storage) map[string]string {
	t.Helper()
	keys, err := logical.CollectKeys(t.Context(), logical.NewStorageView(s, configPrefix))
	require.NoError(t, err)
	all := map[string]string{}
	for _, key := range keys {
		entry, err := s.Get(t.Context(), configPrefix+key)
		require.NoError(t, err)
		all[key] = string(bytes.TrimSpace(entry.Value))
	}
	return all
}
