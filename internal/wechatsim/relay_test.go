package wechatsim_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// startRelay relays to a server until the test ends.
func startRelay(t *testing.T, url string) *wechatsim.Relay {
	t.Helper()
	_, host, _ := strings.Cut(url, "//")
	relay, err := wechatsim.StartRelay(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(relay.Close)
	return relay
}

func TestRelay(t *testing.T) {
	sim := wechatsim.New()
	sim.SetAccount(appid, wechatsim.Account{Secret: secret})
	server := httptest.NewTLSServer(sim)
	defer server.Close()
	// call calls through a relay with one set of key shares.
	call := func(t *testing.T, curves ...tls.CurveID) (*wechatsim.Relay, *http.Response, error) {
		relay := startRelay(t, server.URL)
		transport := server.Client().Transport.(*http.Transport).Clone()
		t.Cleanup(transport.CloseIdleConnections)
		transport.TLSClientConfig.CurvePreferences = curves
		req, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+relay.Addr()+"/cgi-bin/stable_token", strings.NewReader(callBody(false)))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport}).Do(req)
		return relay, resp, err
	}
	t.Run("passes a small ClientHello on, and all that follows", func(t *testing.T) {
		relay, resp, err := call(t, tls.X25519)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if raw, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(raw), sim.Current(appid)) {
			t.Errorf("got %d bytes, %v", len(raw), err)
		}
		if relay.Swallowed() != 0 {
			t.Error("it swallowed something")
		}
	})
	t.Run("swallows a large one until the client gives up", func(t *testing.T) {
		for name, hello := range map[string][]byte{"just too large": record(1396), "Go's": clientHello(t)} {
			relay := startRelay(t, server.URL)
			conn, err := net.Dial("tcp", relay.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(hello); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(conn); err != nil || len(got) > 0 || relay.Swallowed() != 1 {
				t.Errorf("%s: got %d bytes, %v; swallowed %d", name, len(got), err, relay.Swallowed())
			}
		}
	})
	t.Run("passes on what is not TLS", func(t *testing.T) {
		p := onLoopback(t)
		p.url = "http://" + startRelay(t, p.url).Addr()
		p.wantNew(p.normal(), 7200)
	})
	t.Run("ends its connections when it is closed", func(t *testing.T) {
		relay := startRelay(t, server.URL)
		conn, err := net.Dial("tcp", relay.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(record(9000)); err != nil {
			t.Fatal(err)
		}
		relay.Close()
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the connection lives on")
		}
	})
}

// record returns a TLS record of the handshake with a content of n bytes.
func record(n int) []byte {
	return append([]byte{0x16, 3, 1, byte(n >> 8), byte(n)}, make([]byte, n)...)
}

// clientHello returns what Go sends first to WeChat by default.
func clientHello(t *testing.T) []byte {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: "api.weixin.qq.com"}).HandshakeContext(t.Context())
	}()
	hello := make([]byte, 4096)
	n, err := server.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	return hello[:n]
}
