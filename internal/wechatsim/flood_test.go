package wechatsim_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestFloods(t *testing.T) {
	// post makes a call of stable_token and returns the answer unread.
	post := func(p *platform) (*http.Response, error) {
		return p.client.Post(p.url+"/cgi-bin/stable_token", "application/json", strings.NewReader(callBody(false)))
	}
	t.Run("drip takes a second for each byte", func(t *testing.T) {
		inBubble(t, wechatsim.Account{TokenLength: 16}, func(p *platform) {
			p.Inject(wechatsim.Fault{Kind: "drip", Times: 1})
			start := time.Now()
			p.wantNew(p.normal(), 7200)
			if took, want := time.Since(start), time.Duration(len(`{"access_token":"0123456789012345","expires_in":7200}`))*second; took != want {
				p.t.Errorf("took %s; want %s", took, want)
			}
		})
	})
	t.Run("drip ends with its client", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.Inject(wechatsim.Fault{Kind: "drip", Hang: time.Hour})
			resp, err := post(p)
			if err != nil {
				p.t.Fatal(err)
			}
			start := time.Now()
			_ = resp.Body.Close()
			p.client.CloseIdleConnections()
			synctest.Wait()
			if took := time.Since(start); took > second {
				p.t.Errorf("took %s", took)
			}
		})
	})
	for _, kind := range []string{"headers", "interim"} {
		t.Run(kind+" goes on until the client has enough", func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(p *platform) {
				p.client.Transport.(*http.Transport).MaxResponseHeaderBytes = 64 << 10
				p.Inject(wechatsim.Fault{Kind: kind})
				resp, err := post(p)
				if err == nil {
					_ = resp.Body.Close()
					p.t.Errorf("it ended with HTTP %d", resp.StatusCode)
				}
				if p.Current(appid) == "" {
					p.t.Error("the work was not done")
				}
			})
		})
		t.Run(kind+" ends when the client does not read", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim, pipe := wechatsim.New(), wechatsim.NewPipe()
				sim.SetAccount(appid, wechatsim.Account{Secret: secret})
				sim.Inject(wechatsim.Fault{Kind: kind})
				defer sim.Serve(pipe)()
				conn, err := pipe.DialContext(t.Context(), "tcp", "x:1")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := io.WriteString(conn, "POST /cgi-bin/stable_token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, io.ErrClosedPipe) {
					t.Error(err)
				}
			})
		})
	}
	t.Run("gzip grows far beyond what an answer may be", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.Inject(wechatsim.Fault{Kind: "gzip"})
			resp, err := post(p)
			if err != nil {
				p.t.Fatal(err)
			}
			defer resp.Body.Close()
			start := make([]byte, 16)
			_, err = io.ReadFull(resp.Body, start)
			if !resp.Uncompressed || err != nil || string(start) != `{"access_token":` {
				p.t.Errorf("got %q, %v", start, err)
			}
			if n, err := io.CopyN(io.Discard, resp.Body, 64<<20); err != nil {
				p.t.Errorf("%d bytes, %v", n, err)
			}
		})
	})
}
