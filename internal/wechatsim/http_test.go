package wechatsim_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestStart(t *testing.T) {
	t.Run("serves on a loopback port", func(t *testing.T) {
		p := onLoopback(t)
		if !strings.HasPrefix(p.url, "http://127.0.0.1:") || strings.HasSuffix(p.url, "/") {
			t.Errorf("base URL %q", p.url)
		}
		old := p.wantNew(p.normal(), 7200)
		token := p.wantNew(p.forced(), 7200, old)
		p.wantChecked(old, 40001)
		p.wantChecked(token, 0)
	})
	t.Run("stop ends the calls that hang, and the port", func(t *testing.T) {
		sim := wechatsim.New()
		url, stop, err := sim.Start()
		if err != nil {
			t.Fatal(err)
		}
		arrived := make(chan wechatsim.Call)
		sim.OnCall(func(c wechatsim.Call) { arrived <- c })
		sim.Inject(wechatsim.Fault{Kind: "hang"})
		p := &platform{sim, t, &http.Client{Transport: &http.Transport{}}, url}
		ended := make(chan error)
		go func() {
			_, _, err := p.exchange(t.Context(), "POST", "/cgi-bin/stable_token", callBody(false))
			ended <- err
		}()
		<-arrived
		stop()
		if err := <-ended; err == nil {
			t.Error("the call was answered")
		}
		if conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")); err == nil {
			_ = conn.Close()
			t.Error("the port still accepts connections")
		}
	})
}

func TestPipe(t *testing.T) {
	t.Run("connects both ways, whatever the address", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			pipe := wechatsim.NewPipe()
			go func() {
				conn, err := pipe.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
			conn, err := pipe.DialContext(t.Context(), "tcp", "anywhere:443")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			echo := make([]byte, 4)
			if _, err := io.ReadFull(conn, echo); err != nil || string(echo) != "ping" {
				t.Errorf("got %q, %v", echo, err)
			}
			for _, addr := range []net.Addr{conn.LocalAddr(), conn.RemoteAddr(), pipe.Addr()} {
				if addr.String() != "127.0.0.1:80" {
					t.Errorf("an address is %s", addr)
				}
			}
			_ = conn.Close()
		})
	})
	t.Run("gives up dialling with the context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := wechatsim.NewPipe().DialContext(ctx, "tcp", "x:1"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("neither dials nor accepts once it is closed", func(t *testing.T) {
		pipe := wechatsim.NewPipe()
		for range 2 {
			if err := pipe.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := pipe.DialContext(t.Context(), "tcp", "x:1"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("dialling: got %v", err)
		}
		if _, err := pipe.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accepting: got %v", err)
		}
	})
}

func TestControl(t *testing.T) {
	// control makes a call of the control that has to end in status.
	control := func(p *platform, method, path, body string, status int) (answer map[string]any) {
		p.t.Helper()
		got, raw, err := p.exchange(p.t.Context(), method, "/_sim/"+path, body)
		if err != nil || got != status {
			p.t.Errorf("%s %s: HTTP %d %s, %v; want HTTP %d", method, path, got, raw, err, status)
		}
		_ = json.Unmarshal([]byte(raw), &answer) // an answer without a body stays nil
		return answer
	}
	behaviours := []struct {
		name string
		test func(*platform)
	}{
		{"creates an account", func(p *platform) {
			control(p, "PATCH", "accounts/wxnew", body(map[string]string{"secret": secret}), 204)
			call := strings.Replace(callBody(false), appid, "wxnew", 1)
			p.wantNew(p.get("POST", "/cgi-bin/stable_token", call), 7200)
		}},
		{"changes the settings named and no others", func(p *platform) {
			control(p, "PATCH", "accounts/"+appid, `{"lifetime":"90s","overlap":"1s","forced_spacing":"2s","ticket_lifetime":"3s","token_length":20}`, 204)
			control(p, "PATCH", "accounts/"+appid, `{"allowed_ips":["127.0.0.1"]}`, 204)
			p.Update(appid, func(a *wechatsim.Account) {
				if a.Secret != secret || a.Lifetime != 90*second || a.Overlap != second || a.ForcedSpacing != 2*second ||
					a.TicketLifetime != 3*second ||
					a.TokenLength != 20 || len(a.AllowedIPs) != 1 {
					p.t.Error("the settings are others")
				}
			})
			if token := p.wantNew(p.normal(), 90); len(token) != 20 {
				p.t.Errorf("the token has %d characters", len(token))
			}
		}},
		{"refuses settings that are wrong, and changes nothing", func(p *platform) {
			p.Update(appid, func(a *wechatsim.Account) { a.AllowedIPs = []string{"127.0.0.1"} })
			for _, wrong := range []string{"", "[]", `{"secrets":"x"}`, `{"token_length":20,"lifetime":"soon"}`, `{"allowed_ips":["10.0.0.1",5]}`} {
				control(p, "PATCH", "accounts/"+appid, wrong, 400)
				control(p, "PATCH", "accounts/wxnew", wrong, 400)
			}
			control(p, "GET", "accounts/wxnew", "", 404)
			if token := p.wantNew(p.normal(), 7200); len(token) != 512 {
				p.t.Errorf("the token has %d characters", len(token))
			}
		}},
		{"shows an account", func(p *platform) {
			token := p.wantNew(p.normal(), 7200)
			got := control(p, "GET", "accounts/"+appid, "", 200)
			if got["access_token"] != token || got["max_in_flight"] != 1.0 {
				p.t.Error("it shows another token or count")
			}
			if got := control(p, "GET", "accounts/"+appid+"?api=getticket", "", 200); got["max_in_flight"] != 0.0 {
				p.t.Errorf("got %v", got["max_in_flight"])
			}
			control(p, "GET", "accounts/"+appid+"?api=token", "", 400)
		}},
		{"refreshes by force from outside", func(p *platform) {
			old := p.wantNew(p.normal(), 7200)
			got := control(p, "POST", "accounts/"+appid+"/force", "", 200)
			p.wantChecked(old, 40001)
			if got["access_token"] != p.Current(appid) {
				p.t.Error("it answers another token")
			}
		}},
		{"kills all tokens", func(p *platform) {
			token := p.wantNew(p.normal(), 7200)
			control(p, "POST", "accounts/"+appid+"/expire", "", 204)
			p.wantChecked(token, 42001)
		}},
		{"knows no other accounts", func(p *platform) {
			control(p, "GET", "accounts/wxnone", "", 404)
			control(p, "POST", "accounts/wxnone/force", "", 404)
			control(p, "POST", "accounts/wxnone/expire", "", 404)
		}},
		{"lists the calls", func(p *platform) {
			p.forced()
			_, raw, err := p.exchange(p.t.Context(), "GET", "/_sim/calls?appid="+appid, "")
			want := `[{"time":"2000-01-01T00:00:00Z","api":"stable_token","appid":"` + appid + `","forced":true,"errcode":0,"fault":"","issued":true}]`
			if err != nil || raw != want {
				p.t.Errorf("got %s, %v; want %s", raw, err, want)
			}
		}},
		{"checks a token", func(p *platform) {
			token := p.wantNew(p.normal(), 7200)
			query := body(map[string]string{"access_token": token})
			if got := control(p, "POST", "check", query, 200); got["appid"] != appid || got["errcode"] != 0.0 {
				p.t.Errorf("a live token: %v", got)
			}
			p.ForceOutside(appid)
			if got := control(p, "POST", "check", query, 200); got["appid"] != appid || got["errcode"] != 40001.0 {
				p.t.Errorf("a replaced token: %v", got)
			}
			control(p, "POST", "check", "token", 400)
		}},
		{"lists the calls of another API, and of all", func(p *platform) {
			p.normal()
			p.login("unknown")
			for query, want := range map[string]int{"": 1, "?api=stable_token": 1, "?api=jscode2session&appid=" + appid: 1, "?api=*": 2, "?api=getticket": 0} {
				_, raw, err := p.exchange(p.t.Context(), "GET", "/_sim/calls"+query, "")
				if got := strings.Count(raw, `"time"`); err != nil || got != want {
					p.t.Errorf("%s: got %s, %v; want %d calls", query, raw, err, want)
				}
			}
			control(p, "GET", "calls?api=token", "", 400)
		}},
		{"mints a code for whom one likes, and for anybody", func(p *platform) {
			control(p, "PATCH", "accounts/"+appid, `{"bound":true}`, 204)
			got := control(p, "POST", "accounts/"+appid+"/codes", `{"openid":"oUser","unionid":"uUser"}`, 200)
			session := p.login(fields(got).text("code"))
			if session.text("openid") != "oUser" || session.text("unionid") != "uUser" {
				p.t.Errorf("got %v, then %v", got, session)
			}
			got = control(p, "POST", "accounts/"+appid+"/codes", "", 200)
			if session := p.login(fields(got).text("code")); session["openid"] != got["openid"] || session["unionid"] != got["unionid"] {
				p.t.Errorf("got %v, then %v", got, session)
			}
			got = control(p, "POST", "accounts/"+appid+"/codes", `{"api":"oauth2","scope":"snsapi_userinfo","snapshot":true}`, 200)
			if user := p.oauth2(fields(got).text("code")); user.text("scope") != "snsapi_userinfo" || user.number("is_snapshotuser") != 1 {
				p.t.Errorf("got %v, then %v", got, user)
			}
			control(p, "POST", "accounts/wxnone/codes", "", 404)
			for _, wrong := range []string{`{"user":"x"}`, `{"api":"getticket"}`, `{"openid":5}`, "{"} {
				control(p, "POST", "accounts/"+appid+"/codes", wrong, 400)
			}
		}},
		{"shows, replaces and checks tickets", func(p *platform) {
			old := p.wantTicket(p.ticket(p.normal().Token, "jsapi"))
			got := fields(control(p, "POST", "accounts/"+appid+"/ticket", "", 200)).text("ticket")
			card := fields(control(p, "POST", "accounts/"+appid+"/ticket", `{"type":"wx_card"}`, 200)).text("ticket")
			shown, _ := control(p, "GET", "accounts/"+appid, "", 200)["tickets"].(map[string]any)
			if got == "" || got == old || shown["jsapi"] != got || shown["wx_card"] != card {
				p.t.Errorf("answered %s and %s, shows %v", got, card, shown)
			}
			check := control(p, "POST", "check", body(map[string]string{"ticket": card}), 200)
			if check["appid"] != appid || check["type"] != "wx_card" || check["accepted"] != true {
				p.t.Errorf("got %v", check)
			}
			if check := control(p, "POST", "check", `{"ticket":"never-issued"}`, 200); check["accepted"] != false {
				p.t.Errorf("got %v", check)
			}
			control(p, "POST", "accounts/"+appid+"/ticket", `{"type":"other"}`, 400)
			control(p, "POST", "accounts/wxnone/ticket", "", 404)
		}},
		{"checks a signature", func(p *platform) {
			sig := wechatsim.Signature{AppID: appid, Timestamp: 1, NonceStr: "n", URL: "https://example.com/"}
			sig.Signature = wechatsim.Sign(p.ReplaceTicket(appid, "jsapi"), sig)
			if got := control(p, "POST", "check-signature", body(sig), 200); got["accepted"] != true {
				p.t.Errorf("got %v", got)
			}
			sig.NonceStr = "m"
			if got := control(p, "POST", "check-signature", body(sig), 200); got["accepted"] != false {
				p.t.Errorf("got %v", got)
			}
			control(p, "POST", "check-signature", `{"nonceStr":5}`, 400)
		}},
		{"sets the latency of one API", func(p *platform) {
			control(p, "PUT", "latency", `{"api":"jscode2session","latency":"20ms"}`, 204)
			start := time.Now()
			p.normal()
			p.login("unknown")
			if took := time.Since(start); took != 20*ms {
				p.t.Errorf("took %s", took)
			}
			control(p, "PUT", "latency", `{"api":"token","latency":"20ms"}`, 400)
		}},
		{"adds faults of one API", func(p *platform) {
			control(p, "POST", "faults", `{"api":"jscode2session","kind":"raw","status":200,"header":{"X-Odd":"yes"},"body":"{\"errcode\":\"40029\"}"}`, 204)
			p.wantNew(p.normal(), 7200)
			if got := p.login("unknown"); got["errcode"] != "40029" {
				p.t.Errorf("got %v", got)
			}
			control(p, "POST", "faults", `{"api":"token","kind":"lost"}`, 400)
		}},
		{"sets the latency", func(p *platform) {
			control(p, "PUT", "latency", `{"latency":"250ms"}`, 204)
			start := time.Now()
			p.normal()
			if took := time.Since(start); took != 250*ms {
				p.t.Errorf("took %s", took)
			}
			control(p, "PUT", "latency", `{"latency":5}`, 400)
		}},
		{"adds and removes faults", func(p *platform) {
			control(p, "POST", "faults", `{"kind":"errcode","errcode":-1,"mode":"normal","times":1}`, 204)
			control(p, "POST", "faults", `{"kind":"hang","hang":"5s"}`, 204)
			p.wantErrcode(p.normal(), -1)
			p.client.CloseIdleConnections()
			start := time.Now()
			if got := p.force(); got.err == nil || time.Since(start) != 5*second {
				p.t.Errorf("got %v after %s", got.err, time.Since(start))
			}
			control(p, "DELETE", "faults", "", 204)
			p.wantNew(p.normal(), 7200)
		}},
		{"refuses faults that make no sense", func(p *platform) {
			for _, wrong := range []string{"", `{}`, `{"kind":"errcode"}`, `{"kind":"hang","hang":5}`, `{"kind":"hang","hangs":"5s"}`} {
				control(p, "POST", "faults", wrong, 400)
			}
			p.wantNew(p.normal(), 7200)
		}},
	}
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) { inBubble(t, wechatsim.Account{}, b.test) })
	}
}
