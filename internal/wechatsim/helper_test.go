package wechatsim_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const (
	appid  = "wx0123456789abcdef"
	secret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
)

// platform is a Sim with one account, behind the real net/http.
type platform struct {
	*wechatsim.Sim
	t      *testing.T
	client *http.Client
	url    string
}

// reply is what a client sees of an answer.
type reply struct {
	Token     string `json:"access_token"`
	ExpiresIn int    `json:"expires_in"`
	Errcode   int    `json:"errcode"`
	Errmsg    string `json:"errmsg"`
}

// inBubble runs test in a synctest bubble, which fails if anything is left over.
func inBubble(t *testing.T, account wechatsim.Account, test func(p *platform)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		pipe := wechatsim.NewPipe()
		transport := &http.Transport{DialContext: pipe.DialContext}
		defer transport.CloseIdleConnections()
		p := &platform{wechatsim.New(), t, &http.Client{Transport: transport}, "http://wechat.test"}
		account.Secret = secret
		p.SetAccount(appid, account)
		defer p.Serve(pipe)()
		test(p)
	})
}

// onLoopback returns a platform that serves on a real port until the test ends.
func onLoopback(t *testing.T) *platform {
	t.Helper()
	sim := wechatsim.New()
	sim.SetAccount(appid, wechatsim.Account{Secret: secret})
	url, stop, err := sim.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &platform{sim, t, &http.Client{Transport: transport}, url}
}

// exchange returns the status and the body of an answer.
func (p *platform) exchange(ctx context.Context, method, path, body string) (int, string, error) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

// get returns an answer of the platform's API, which has to be HTTP 200 and JSON.
func (p *platform) get(method, path, body string) reply {
	p.t.Helper()
	status, raw, err := p.exchange(p.t.Context(), method, path, body)
	if err != nil {
		p.t.Fatal(err)
	}
	var r reply
	if err := json.Unmarshal([]byte(raw), &r); err != nil || status != http.StatusOK {
		p.t.Fatalf("HTTP %d, JSON error %v", status, err)
	}
	if strings.Contains(raw, secret) {
		p.t.Error("the answer holds the secret")
	}
	return r
}

func (p *platform) normal() reply {
	p.t.Helper()
	return p.get("POST", "/cgi-bin/stable_token", callBody(false))
}

func (p *platform) forced() reply {
	p.t.Helper()
	return p.get("POST", "/cgi-bin/stable_token", callBody(true))
}

// use calls an API with a token.
func (p *platform) use(token string) reply {
	p.t.Helper()
	return p.get("GET", "/cgi-bin/getcallbackip?access_token="+token, "")
}

// wantToken checks that a call was answered with a token.
func (p *platform) wantToken(got reply, token string, seconds int) {
	p.t.Helper()
	if got.Errcode != 0 || got.Token != token || got.ExpiresIn != seconds {
		p.t.Errorf("got errcode %d, the wanted token %t, %d s; want %d s",
			got.Errcode, got.Token == token, got.ExpiresIn, seconds)
	}
}

// wantNew checks that a call was answered with a token that is none of the old
// ones, and returns it.
func (p *platform) wantNew(got reply, seconds int, old ...string) string {
	p.t.Helper()
	if got.Errcode != 0 || got.Token == "" || got.ExpiresIn != seconds {
		p.t.Fatalf("got errcode %d, a token %t, %d s; want a token with %d s",
			got.Errcode, got.Token != "", got.ExpiresIn, seconds)
	}
	for i, token := range old {
		if got.Token == token {
			p.t.Errorf("got the %d. old token; want a new one", i+1)
		}
	}
	return got.Token
}

// wantErrcode checks that a call was refused.
func (p *platform) wantErrcode(got reply, errcode int) {
	p.t.Helper()
	if got.Errcode != errcode || got.Token != "" {
		p.t.Errorf("got errcode %d %q, a token %t; want errcode %d",
			got.Errcode, got.Errmsg, got.Token != "", errcode)
	}
}

// wantChecked checks whether a token would be accepted, and that the API which
// uses it says the same.
func (p *platform) wantChecked(token string, errcode int) {
	p.t.Helper()
	if _, got := p.Check(token); got != errcode {
		p.t.Errorf("Check says %d; want %d", got, errcode)
	}
	if got := p.use(token).Errcode; got != errcode {
		p.t.Errorf("the API says %d; want %d", got, errcode)
	}
}

func callBody(forced bool) string {
	return body(map[string]any{
		"grant_type": "client_credential", "appid": appid, "secret": secret, "force_refresh": forced,
	})
}

func body(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(raw)
}
