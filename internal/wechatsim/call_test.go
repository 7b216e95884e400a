package wechatsim_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestCallsByAPI(t *testing.T) {
	t.Run("are recorded with their API, beside those of stable_token", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			start := time.Now().UTC()
			token := p.normal().Token
			p.login(p.Mint(appid, wechatsim.Code{}).Code)
			p.ticket(token, "jsapi")
			p.clearQuota()
			p.use(token)
			p.login("unknown")
			if got := len(p.Calls("")); got != 1 {
				p.t.Errorf("%d calls of stable_token; want 1", got)
			}
			want := []wechatsim.Call{
				{Time: start, API: "stable_token", AppID: appid, Issued: true},
				{Time: start, API: "jscode2session", AppID: appid, Issued: true},
				{Time: start, API: "getticket", AppID: appid, Issued: true},
				{Time: start, API: "clear_quota", AppID: appid},
				{Time: start, API: "getcallbackip", AppID: appid},
				{Time: start, API: "jscode2session", AppID: appid, Errcode: 40029},
			}
			got := p.CallsOf(wechatsim.AllAPIs, appid)
			if len(got) != len(want) {
				p.t.Fatalf("recorded %v; want %v", got, want)
			}
			for i, call := range got {
				if call != want[i] {
					p.t.Errorf("call %d is %+v; want %+v", i, call, want[i])
				}
			}
			if got := p.CallsOf(wechatsim.APICode2Session, ""); len(got) != 2 {
				p.t.Errorf("recorded %v", got)
			}
		})
	})
	t.Run("are counted in flight by API, and all together", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.SetLatencyOf(wechatsim.APICode2Session, second)
			var calls sync.WaitGroup
			for range 3 {
				code := p.Mint(appid, wechatsim.Code{}).Code
				calls.Go(func() { p.wantAnswer(p.login(code), 0) })
			}
			calls.Wait()
			p.normal()
			for api, want := range map[string]int{wechatsim.APICode2Session: 3, wechatsim.APIToken: 1, wechatsim.AllAPIs: 3, wechatsim.APITicket: 0} {
				if got := p.MaxInFlightOf(api, appid); got != want {
					p.t.Errorf("%s: %d in flight; want %d", api, got, want)
				}
			}
		})
	})
	t.Run("can be held on their arrival by API", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			var seen []wechatsim.Call
			p.OnCallOf(wechatsim.APIOAuth2, func(c wechatsim.Call) { seen = append(seen, c) })
			p.normal()
			p.oauth2("unknown")
			if len(seen) != 1 || seen[0].API != wechatsim.APIOAuth2 || seen[0].AppID != appid {
				p.t.Errorf("seen %+v", seen)
			}
		})
	})
	t.Run("have a latency by API, until all get one", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			took := func(call func()) time.Duration {
				start := time.Now()
				call()
				return time.Since(start)
			}
			token, login := func() { p.normal() }, func() { p.login("unknown") }
			p.SetLatency(second)
			p.SetLatencyOf(wechatsim.APICode2Session, 20*ms)
			if a, b := took(token), took(login); a != second || b != 20*ms {
				p.t.Errorf("took %s and %s", a, b)
			}
			p.SetLatency(0)
			if a, b := took(token), took(login); a != 0 || b != 0 {
				p.t.Errorf("took %s and %s", a, b)
			}
		})
	})
	t.Run("of no known API are none", func(t *testing.T) {
		sim := wechatsim.New()
		for name, f := range map[string]func(){
			"a hook":    func() { sim.OnCallOf("token", nil) },
			"a latency": func() { sim.SetLatencyOf("token", second) },
			"calls":     func() { sim.CallsOf("token", "") },
			"in flight": func() { sim.MaxInFlightOf("token", "") },
		} {
			t.Run(name, func(t *testing.T) {
				defer func() {
					if recover() == nil {
						t.Error("it was taken")
					}
				}()
				f()
			})
		}
	})
}

func TestChunkedBody(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(p *platform) {
		unsized := struct{ io.Reader }{strings.NewReader(callBody(false))}
		resp, err := p.client.Post(p.url+"/cgi-bin/stable_token", "application/json", unsized)
		if err != nil {
			p.t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusPreconditionFailed || len(p.CallsOf(wechatsim.AllAPIs, "")) != 0 {
			p.t.Errorf("HTTP %d, recorded %v", resp.StatusCode, p.CallsOf(wechatsim.AllAPIs, ""))
		}
	})
}
