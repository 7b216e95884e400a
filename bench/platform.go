//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"net/url"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// platform is WeChat: the simulator, with one account that the engine has and one
// whose logins are made directly.
type platform struct {
	*wechatsim.Sim

	baseURL      string
	stop         func()
	engine, user credentials
}

type credentials struct{ appid, secret string }

// startPlatform starts the simulator in this process.
func startPlatform() (*platform, error) {
	p := &platform{Sim: wechatsim.New()}
	for _, c := range []*credentials{&p.engine, &p.user} {
		*c = credentials{"wx" + hex.EncodeToString(random(8)), hex.EncodeToString(random(16))}
		p.SetAccount(c.appid, wechatsim.Account{Secret: c.secret})
	}
	var err error
	p.baseURL, p.stop, err = p.Start()
	return p, err
}

// take sets how long a login takes at WeChat.
func (p *platform) take(d time.Duration) { p.SetLatencyOf(wechatsim.APICode2Session, d) }

// inFlight is the most logins through Vault that ever were there at a time.
func (p *platform) inFlight() int {
	return p.MaxInFlightOf(wechatsim.APICode2Session, p.engine.appid)
}

// request is what a subject sends, and what the answer has to hold.
type request struct {
	wire     []byte
	expected string

	// mint gives the code of a login, whose openid is what the answer has to hold;
	// nil for all others.
	mint func() wechatsim.Code
}

// next returns what to send now.
func (r request) next() (wire []byte, expected string) {
	if r.mint == nil {
		return r.wire, r.expected
	}
	code := r.mint()
	return bytes.Replace(r.wire, []byte(codePlace), []byte(code.Code), 1), code.OpenID
}

// minting has a request carry a code of this account, another one each time.
func (p *platform) minting(r request, c credentials) request {
	r.mint = func() wechatsim.Code { return p.Mint(c.appid, wechatsim.Code{}) }
	return r
}

// loginURL is the call of a login that needs no Vault, but for its code.
func (p *platform) loginURL() string {
	query := url.Values{
		"appid": {p.user.appid}, "secret": {p.user.secret}, "js_code": {codePlace}, "grant_type": {"authorization_code"},
	}
	return p.baseURL + "/sns/jscode2session?" + query.Encode()
}

// login is the call that a back end makes without Vault.
func (p *platform) login(ctx context.Context) (request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.loginURL(), http.NoBody)
	if err != nil {
		return request{}, err
	}
	wire, err := onWire(req)
	return p.minting(request{wire: wire}, p.user), err
}

// onWire is a request as it is sent.
func onWire(req *http.Request) ([]byte, error) {
	var wire bytes.Buffer
	err := req.Write(&wire)
	return wire.Bytes(), err
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
