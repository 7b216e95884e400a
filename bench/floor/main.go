// Command floor is the least that a plugin of Vault can do for a request: it
// answers with a constant, of the shape and size of the engine's answer. What that
// costs is Vault's, and what every external plugin pays that leaves the SDK and Go's
// runtime as they are; `make bench` measures the engine against it. A read is one
// round trip from Vault to the plugin, an update is two: Vault asks first whether it
// is one. For a login it makes the call of WeChat as well, and checks nothing.
package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/plugin"
)

func main() {
	if err := plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: factory}); err != nil {
		hclog.Default().Error("the floor cannot serve", "error", err)
		os.Exit(1)
	}
}

func factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	b := &framework.Backend{
		BackendType: logical.TypeLogical,
		Paths: []*framework.Path{
			{
				Pattern: "token/bench",
				Operations: map[logical.Operation]framework.OperationHandler{
					logical.ReadOperation: &framework.PathOperation{Callback: read},
				},
			},
			{
				Pattern: "login/bench",
				Fields:  map[string]*framework.FieldSchema{"call": {Type: framework.TypeString}},
				Operations: map[logical.Operation]framework.OperationHandler{
					logical.UpdateOperation: &framework.PathOperation{Callback: login},
				},
			},
			{
				Pattern: "sign/bench",
				Fields:  map[string]*framework.FieldSchema{"url": {Type: framework.TypeString}},
				Operations: map[logical.Operation]framework.OperationHandler{
					logical.UpdateOperation: &framework.PathOperation{Callback: update},
				},
			},
		},
	}
	setup := *conf
	if conf.System != nil { // there is none at registration
		setup.System = &steadySystem{SystemView: conf.System}
	}
	return b, b.Setup(ctx, &setup)
}

// accessToken is as long as one of WeChat's.
var accessToken = strings.Repeat("0123456789abcdef", 512/16)

func read(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
	return &logical.Response{Data: map[string]any{
		"access_token":        accessToken,
		"appid":               "wx0123456789abcdef",
		"ttl":                 int64(240),
		"rotation_period":     int64(6910),
		"last_vault_rotation": "2006-01-02T15:04:05.123Z",
		"expire_time":         "2006-01-02T17:04:05Z",
	}}, nil
}

func update(_ context.Context, _ *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return &logical.Response{Data: map[string]any{
		"appid":     "wx0123456789abcdef",
		"timestamp": int64(1136214245),
		"noncestr":  "0123456789ABCDEF0123456789",
		"signature": "0123456789abcdef0123456789abcdef01234567",
		"url":       data.Get("url"),
	}}, nil
}

// toWeChat keeps as many connections as there are logins at a time.
var toWeChat = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}

// login makes the call that it is told to, and passes on what a login gives.
func login(ctx context.Context, _ *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, data.Get("call").(string), http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := toWeChat.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var user struct {
		OpenID  string  `json:"openid"`
		UnionID *string `json:"unionid"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&user); err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return &logical.Response{Data: map[string]any{"openid": user.OpenID, "unionid": user.UnionID}}, err
}

// steadySystem asks Vault for the replication state once a second: the framework
// would at every request, which is a call back from the plugin to Vault.
type steadySystem struct {
	logical.SystemView
	last atomic.Pointer[answer]
}

type answer struct {
	state consts.ReplicationState
	asked time.Time
}

func (s *steadySystem) ReplicationState() consts.ReplicationState {
	last := s.last.Load()
	if now := time.Now(); last == nil || now.Sub(last.asked) >= time.Second {
		last = &answer{s.SystemView.ReplicationState(), now}
		s.last.Store(last)
	}
	return last.state
}
