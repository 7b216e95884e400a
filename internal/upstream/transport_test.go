package upstream

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func TestTransportsAreShared(t *testing.T) {
	overSim(t, func(t *testing.T, c *Client, _ *wechatsim.Sim) {
		roots := string(pemOf(testCertificate(t)))
		// The server speaks no TLS: that a transport was made is all that counts.
		call := func(change func(e *Endpoint)) {
			t.Helper()
			e := testEndpoint()
			e.BaseURL = "https://wechat.test"
			change(&e)
			_, err := ask(t.Context(), c, e, false)
			require.Equal(t, ClassUnreachable, ProblemOf(err).Class)
		}
		proxied := func(proxy string) func(e *Endpoint) { return func(e *Endpoint) { e.Proxy = proxy } }
		const proxy = "http://user:proxy-password@127.0.0.1:3128"
		kept := func() int { return len(c.ways) }

		// Whatever else differs, the accounts share.
		call(func(*Endpoint) {})
		call(func(e *Endpoint) { e.BaseURL = "https://localhost" })
		call(func(e *Endpoint) { e.Timeout = time.Second })
		require.Equal(t, 1, kept())
		_, err := ask(t.Context(), c, testEndpoint(), false)
		require.NoError(t, err)
		require.Equal(t, 1, kept(), "http is direct as well")

		call(proxied(proxy))
		call(proxied(proxy))
		require.Equal(t, 2, kept())
		call(func(e *Endpoint) { e.CAPEM = roots })
		call(func(e *Endpoint) { e.Proxy, e.CAPEM = proxy, roots })
		call(proxied("http://user:another-password@127.0.0.1:3128"))
		require.Equal(t, 5, kept())
		for key := range c.ways {
			require.NotContains(t, fmt.Sprintf("%s", key), "password")
		}

		// Nothing is kept for an account that is not stored.
		call(func(e *Endpoint) { e.Proxy, e.Trial = "http://127.0.0.3:3128", true })
		require.Equal(t, 5, kept())

		// Those in use stay, idle ones are dropped.
		time.Sleep(transportIdle / 2)
		call(proxied(proxy))
		c.Tidy()
		require.Equal(t, 5, kept())
		time.Sleep(transportIdle/2 + time.Second)
		c.Tidy()
		require.Equal(t, 1, kept())
		call(proxied("http://127.0.0.2:3128"))
		require.Equal(t, 2, kept())
		call(proxied(proxy))
		require.Equal(t, 2, kept())

		// The least recently used goes when there are too many.
		for n := range maxTransports {
			time.Sleep(time.Second)
			call(proxied(fmt.Sprintf("http://127.0.1.%d:3128", n)))
			call(proxied(proxy))
			require.LessOrEqual(t, kept(), maxTransports)
		}
		require.Equal(t, maxTransports, kept())
		made := c.ways[way{proxy: parsed(proxy)}.key()]
		require.NotNil(t, made, "it is in use")
		require.Nil(t, c.ways[way{proxy: parsed("http://127.0.0.2:3128")}.key()])
	})
}

func parsed(raw string) *url.URL {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	return u
}

func TestATrialLeavesNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pipe := wechatsim.NewPipe()
		defer newSim().Serve(pipe)()
		open := 0
		c := &Client{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := pipe.DialContext(ctx, network, addr)
			if err == nil {
				open++
				conn = onClose{conn, func() { open-- }}
			}
			return conn, err
		}}
		defer c.Close()
		e := testEndpoint()
		e.Trial = true
		_, err := ask(t.Context(), c, e, false)
		require.NoError(t, err)
		synctest.Wait()
		require.Zero(t, open)
		e.Trial = false
		_, err = ask(t.Context(), c, e, false)
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, 1, open)
	})
}

// net/http goes on with a connection in the making after its call, for the next one. With a
// host that never answers it would go on for ever.
func TestAConnectionInTheMakingEndsWithItsCall(t *testing.T) {
	const target = "https://192.0.2.1"
	for name, c := range map[string]struct{ baseURL, proxy string }{
		"TLS":             {target, ""},
		"an http proxy":   {target, "http://127.0.0.1:3128"},
		"an https proxy":  {target, "https://127.0.0.1:3128"},
		"a socks5 proxy":  {target, "socks5://127.0.0.1:3128"},
		"an answer":       {"http://127.0.0.1", ""},
		"a dial, forever": {target, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pipe := wechatsim.NewPipe()
				var open atomic.Int64
				client := &Client{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
					open.Add(1)
					if name == "a dial, forever" {
						defer open.Add(-1)
						<-ctx.Done()
						return nil, ctx.Err()
					}
					conn, err := pipe.DialContext(ctx, network, addr)
					return onClose{conn, func() { open.Add(-1) }}, err
				}}
				defer client.Close()
				var serving sync.WaitGroup
				serveConns(pipe, &serving, silently)
				defer serving.Wait()
				defer pipe.Close()

				e := testEndpoint()
				e.BaseURL, e.Proxy, e.Timeout = c.baseURL, c.proxy, 2*time.Second
				var calls sync.WaitGroup
				for range 50 {
					calls.Go(func() {
						start := time.Now()
						_, err := ask(t.Context(), client, e, false)
						require.Contains(t, ProblemOf(err).Detail, "within 2s")
						require.Equal(t, e.Timeout, time.Since(start))
					})
				}
				calls.Wait()
				time.Sleep(connectGrace)
				synctest.Wait()
				require.Zero(t, open.Load())
			})
		})
	}
}

// serveConns hands every connection to handle, until the listener is closed. serving
// ends with the last of them.
func serveConns(listener net.Listener, serving *sync.WaitGroup, handle func(conn net.Conn)) {
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
}

// silently takes whatever is sent, and never says a word.
func silently(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// onClose tells of the first closing of a connection.
type onClose struct {
	net.Conn
	closed func()
}

func (c onClose) Close() error {
	err := c.Conn.Close()
	if err == nil {
		c.closed()
	}
	return err
}

// The tests from here on run over the loopback: with TLS, proxies and redirects
// as they are.

// overTCP returns a client, and the Endpoint for it to reach a server at baseURL.
func overTCP(t *testing.T, baseURL string) (*Client, Endpoint) {
	t.Helper()
	c := &Client{}
	t.Cleanup(c.Close)
	e := testEndpoint()
	e.BaseURL = baseURL
	return c, e
}

// serve serves handler on the loopback, with TLS if the scheme is https: then it
// offers HTTP/2 as well, as servers and proxies do.
func serve(t *testing.T, scheme string, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that fail are expected
	server.EnableHTTP2 = true
	if scheme == "https" {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server
}

// rootsOf returns the PEM of the certificate that a server identifies itself with.
func rootsOf(server *httptest.Server) string {
	return string(pemOf(server.Certificate().Raw))
}

func pemOf(certificate []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
}

// testCertificate returns the certificate of all servers of these tests.
func testCertificate(t *testing.T) []byte {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	defer server.Close()
	return server.Certificate().Raw
}

func TestTLS(t *testing.T) {
	sim := newSim()
	server := serve(t, "https", sim)
	t.Run("extra roots are accepted", func(t *testing.T) {
		c, e := overTCP(t, server.URL)
		e.CAPEM = rootsOf(server)
		_, err := ask(t.Context(), c, e, false)
		require.NoError(t, err)
		require.Len(t, sim.Calls(""), 1)
	})
	t.Run("an unknown authority is refused before anything is sent", func(t *testing.T) {
		c, e := overTCP(t, server.URL)
		g, err := ask(t.Context(), c, e, false)
		p := requireProblem(t, g, err)
		require.Equal(t, ClassUnreachable, p.Class)
		require.Equal(t, "no TLS connection", p.Detail)
		require.Contains(t, p.Cause, "certificate signed by unknown authority")
		require.True(t, p.HadNoEffect)
		require.Contains(t, p.Advice, "ca_pem")
		require.Len(t, sim.Calls(""), 1)
	})
	t.Run("a certificate of another host is refused", func(t *testing.T) {
		_, port, err := net.SplitHostPort(server.Listener.Addr().String())
		require.NoError(t, err)
		c, e := overTCP(t, "https://localhost:"+port)
		e.CAPEM = rootsOf(server)
		g, err := ask(t.Context(), c, e, false)
		p := requireProblem(t, g, err)
		require.Equal(t, "no TLS connection", p.Detail)
		require.Contains(t, p.Cause, "certificate is valid for")
		require.Len(t, sim.Calls(""), 1)
	})
	t.Run("roots without a certificate are refused", func(t *testing.T) {
		c, e := overTCP(t, server.URL)
		e.CAPEM = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"
		g, err := ask(t.Context(), c, e, false)
		require.Equal(t, "ca_pem holds no certificate", requireProblem(t, g, err).Detail)
	})
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			target := newSim()
			elsewhere := serve(t, "http", target)
			server := serve(t, "http", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, elsewhere.URL+r.URL.Path, status)
			}))
			c, e := overTCP(t, server.URL)
			g, err := ask(t.Context(), c, e, false)
			p := requireProblem(t, g, err)
			require.Equal(t, fmt.Sprintf("HTTP %d: redirects are refused", status), p.Cause)
			require.Equal(t, http.StatusBadGateway, p.Status)
			require.Empty(t, target.Calls(""))
		})
	}
}

// egress is a proxy on the loopback, and what it saw.
type egress struct {
	mu      sync.Mutex
	targets []string // what it was asked to reach
	logins  []string // user:password as sent, "" for none
	relays  sync.WaitGroup
}

func (p *egress) saw(target, login string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = append(p.targets, target)
	p.logins = append(p.logins, login)
}

// relay connects two connections until one of them ends.
func (p *egress) relay(a, b net.Conn) {
	var copying sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		copying.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_ = a.Close()
			_ = b.Close()
		})
	}
	copying.Wait()
}

// ServeHTTP is that of an HTTP proxy: CONNECT, and requests with a whole URL.
func (p *egress) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	login, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Proxy-Authorization"), "Basic "))
	if r.Method != http.MethodConnect {
		p.saw(r.URL.Host, string(login))
		r.RequestURI = ""
		r.Header.Del("Proxy-Authorization")
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
		return
	}
	p.saw(r.Host, string(login))
	upstream, err := net.Dial("tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	p.relays.Add(1)
	defer p.relays.Done()
	// The answer follows the hijacking: the server could still read what the
	// client sends on it.
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	p.relay(conn, upstream)
}

// serveSOCKS answers connections to listener as a SOCKS 5 server (RFC 1928) that
// asks for user and password (RFC 1929).
func (p *egress) serveSOCKS(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		p.relays.Go(func() {
			defer conn.Close()
			if upstream := p.socks(conn); upstream != nil {
				p.relay(conn, upstream)
			}
		})
	}
}

// socks takes one client to the connection that it asked for, nil if it did not.
func (p *egress) socks(conn net.Conn) net.Conn {
	read := func(n int) []byte {
		b := make([]byte, n)
		_, _ = io.ReadFull(conn, b) // what is missing reads as zeros, and leads nowhere
		return b
	}
	const byPassword, ipv4, domain = 2, 1, 3
	login := ""
	if methods := read(int(read(2)[1])); slices.Contains(methods, byPassword) {
		_, _ = conn.Write([]byte{5, byPassword})
		user := read(int(read(2)[1]))
		login = string(user) + ":" + string(read(int(read(1)[0])))
		_, _ = conn.Write([]byte{1, 0})
	} else {
		_, _ = conn.Write([]byte{5, 0})
	}
	host := ""
	switch read(4)[3] {
	case ipv4:
		host = net.IP(read(4)).String()
	case domain:
		host = string(read(int(read(1)[0])))
	}
	port := read(2)
	target := net.JoinHostPort(host, strconv.Itoa(int(port[0])<<8|int(port[1])))
	p.saw(target, login)
	upstream, err := net.Dial("tcp", target)
	if err != nil {
		return nil
	}
	_, _ = conn.Write([]byte{5, 0, 0, ipv4, 0, 0, 0, 0, 0, 0})
	return upstream
}

// startEgress starts a proxy of the given scheme, and returns its address.
func startEgress(t *testing.T, scheme string) (p *egress, addr string) {
	t.Helper()
	p = &egress{}
	t.Cleanup(p.relays.Wait)
	if scheme != "socks5" {
		return p, serve(t, scheme, p).Listener.Addr().String()
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var accepting sync.WaitGroup
	accepting.Go(func() { p.serveSOCKS(listener) })
	t.Cleanup(func() {
		_ = listener.Close()
		accepting.Wait()
	})
	return p, listener.Addr().String()
}

func TestTheEgressProxyIsUsed(t *testing.T) {
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(pemOf(testCertificate(t))))
	for _, scheme := range []string{"http", "https", "socks5"} {
		for userinfo, login := range map[string]string{"": "", "user:proxy-p%40ss@": "user:proxy-p@ss"} {
			t.Run(fmt.Sprintf("%s proxy, login %q", scheme, login), func(t *testing.T) {
				sim := newSim()
				server := serve(t, "https", sim)
				proxy, addr := startEgress(t, scheme)
				c, e := overTCP(t, server.URL)
				c.ProxyRoots = roots
				e.Proxy = scheme + "://" + userinfo + addr
				e.CAPEM = rootsOf(server)
				g, err := ask(t.Context(), c, e, false)
				require.NoError(t, err)
				require.Equal(t, sim.Current(testAppID), g)
				require.Equal(t, []string{server.Listener.Addr().String()}, proxy.targets)
				require.Equal(t, []string{login}, proxy.logins)
			})
		}
	}
}

// Through a proxy plain http would show the secret to it, and the proxy's password to all on
// the way.
func TestHTTPTakesNoProxy(t *testing.T) {
	for _, scheme := range []string{"http", "https", "socks5"} {
		t.Run(scheme, func(t *testing.T) {
			sim := newSim()
			server := serve(t, "http", sim)
			proxy, addr := startEgress(t, scheme)
			c, e := overTCP(t, server.URL)
			e.Proxy = scheme + "://user:proxy-p%40ss@" + addr
			_, err := ask(t.Context(), c, e, false)
			require.NoError(t, err)
			require.Len(t, sim.Calls(""), 1)
			require.Empty(t, proxy.targets)
		})
	}
}

func TestTheRootsForWeChatAreNotThoseForAProxy(t *testing.T) {
	sim := newSim()
	server := serve(t, "https", sim)
	proxy, addr := startEgress(t, "https")
	c, e := overTCP(t, server.URL)
	e.Proxy = "https://user:proxy-p%40ss@" + addr
	e.CAPEM = rootsOf(server) // all servers of these tests have the same certificate
	g, err := ask(t.Context(), c, e, false)
	p := requireProblem(t, g, err)
	require.Equal(t, "no TLS connection", p.Detail)
	require.Contains(t, p.Cause, "unknown authority")
	require.True(t, p.HadNoEffect)
	require.Empty(t, proxy.logins)
	require.Empty(t, sim.Calls(""))
}

func TestAProxyThatRefusesShowsNoCredentials(t *testing.T) {
	const userinfo, login = "user:proxy-p%40ss", "user:proxy-p@ss"
	encoded := base64.StdEncoding.EncodeToString([]byte(login))
	for name, status := range map[string]string{
		"plainly":                       "407 Proxy Authentication Required",
		"echoing the password":          "407 proxy-p@ss is not valid",
		"echoing the login":             "407 user:proxy-p@ss is not valid",
		"echoing the login as in URLs":  "407 user:proxy-p%40ss is not valid",
		"echoing the login as received": "407 Basic " + encoded + " is not valid",
		"with control characters":       "407 \x1b[31mno",
		"at length":                     "407 " + strings.Repeat("no ", 1000),
	} {
		for _, trial := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, trial %t", name, trial), func(t *testing.T) {
				server := serve(t, "http", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					conn, _, err := http.NewResponseController(w).Hijack()
					if err != nil {
						panic(err)
					}
					defer conn.Close()
					_, _ = io.WriteString(conn, "HTTP/1.1 "+status+"\r\nContent-Length: 0\r\n\r\n")
				}))
				c, e := overTCP(t, "https://127.0.0.1:1")
				e.Trial = trial
				e.Proxy = "http://" + userinfo + "@" + server.Listener.Addr().String()
				g, err := ask(t.Context(), c, e, false)
				p := requireProblem(t, g, err)
				require.Equal(t, http.StatusBadGateway, p.Status)
				require.Equal(t, "the proxy refused", p.Detail)
				require.Contains(t, p.Cause, "the proxy answered CONNECT with 407")
				require.True(t, p.HadNoEffect)
				requireShowable(t, p.Cause)
				for _, secret := range []string{"proxy-p@ss", "proxy-p%40ss", encoded} {
					require.NotContains(t, p.OperatorError(), secret)
					require.NotContains(t, p.Cause, secret)
				}
			})
		}
	}
}

// childProxy names the environment variable that tells this test binary, run
// again, to be the child of TestTheEnvironmentsProxy, and where WeChat is.
const childProxy = "WECHAT_TEST_CHILD_BASE_URL"

// TestTheEnvironmentsProxy runs itself in a process of its own, as net/http reads
// the proxy variables once.
func TestTheEnvironmentsProxy(t *testing.T) {
	if baseURL := os.Getenv(childProxy); baseURL != "" {
		c, e := overTCP(t, baseURL)
		_, err := ask(t.Context(), c, e, false)
		if strings.HasPrefix(baseURL, "http://") {
			require.NoError(t, err)
			return
		}
		p := ProblemOf(err)
		require.Equal(t, "the proxy refused", p.Detail)
		require.NotContains(t, p.Cause, "environment-password")
		return
	}
	server := serve(t, "http", newSim())
	for name, c := range map[string]struct {
		baseURL string
		proxied []string
	}{
		"is used":             {"https://wechat.test", []string{"wechat.test:443"}},
		"is not for loopback": {server.URL, nil},
		"is not for http":     {strings.Replace(server.URL, "127.0.0.1", "localhost", 1), nil},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := &egress{}
			refusing := serve(t, "http", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				proxy.saw(r.Host, "")
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					panic(err)
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, "HTTP/1.1 403 environment-password is not valid\r\n\r\n")
			}))
			executable, err := os.Executable()
			require.NoError(t, err)
			cmd := exec.CommandContext(t.Context(), executable, "-test.run=^TestTheEnvironmentsProxy$")
			through := strings.Replace(refusing.URL, "http://", "http://user:environment-password@", 1)
			cmd.Env = append(os.Environ(), childProxy+"="+c.baseURL, "HTTP_PROXY="+through, "HTTPS_PROXY="+through, "NO_PROXY=", "no_proxy=")
			output, err := cmd.CombinedOutput()
			require.NoError(t, err, string(output))
			require.Equal(t, c.proxied, proxy.targets)
		})
	}
}

// raw serves connections with whatever is to be tried, and returns the address.
func raw(t *testing.T, handle func(conn net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serveConns(listener, &serving, handle)
	t.Cleanup(func() {
		_ = listener.Close()
		serving.Wait()
	})
	return listener.Addr().String()
}

// readRequest waits for a request as a whole: what comes before it net/http takes for a
// connection that ends.
func readRequest(conn net.Conn) {
	if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
		_, _ = io.Copy(io.Discard, req.Body)
	}
}

// A writer of accounts can have Vault's host open connections: what is told of them must not
// say what listens there.
func TestEveryWayToFailHasOnePhraseAndTellsNothingElse(t *testing.T) {
	const banner = "SSH-2.0-OpenSSH_9.6"
	says := func(text string) string {
		return raw(t, func(conn net.Conn) {
			_, _ = io.WriteString(conn, text)
			_, _ = io.Copy(io.Discard, conn)
		})
	}
	hangsUp := raw(t, func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) })
	silent := raw(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed := listener.Addr().String()
	require.NoError(t, listener.Close())
	greets := says(banner + "\r\n")
	answersOddly := raw(t, func(conn net.Conn) {
		readRequest(conn)
		_, _ = io.WriteString(conn, banner+"\r\n")
	})
	socksRefuses := raw(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 3))
		_, _ = conn.Write([]byte{5, 0xff})
	})
	socksUnreachable := raw(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 3))
		_, _ = conn.Write([]byte{5, 0})
		_, _ = conn.Read(make([]byte, 64))
		_, _ = conn.Write([]byte{5, 4, 0, 1, 0, 0, 0, 0, 0, 0})
	})

	const target = "https://127.0.0.1:1"
	for name, c := range map[string]struct {
		baseURL, proxy string
		detail         string
		class          Class
		noEffect       bool
		advice         string
	}{
		"no name":                            {"https://nowhere.invalid", "", "the host's name was not found", ClassUnreachable, true, "name resolution"},
		"no name of the proxy":               {target, "http://nowhere.invalid:3128", "the host's name was not found", ClassUnreachable, true, "proxy_url"},
		"a closed port":                      {"https://" + closed, "", "no connection", ClassUnreachable, true, "base_url"},
		"a closed port, http":                {"http://" + closed, "", "no connection", ClassUnreachable, true, "base_url"},
		"no http proxy listens":              {target, "http://user:proxy-password@" + closed, "no connection", ClassUnreachable, true, "proxy_url"},
		"no https proxy listens":             {target, "https://user:proxy-password@" + closed, "no connection", ClassUnreachable, true, "proxy_url"},
		"no socks5 proxy listens":            {target, "socks5://user:proxy-password@" + closed, "no connection", ClassUnreachable, true, "proxy_url"},
		"no TLS":                             {"https://" + greets, "", "no TLS connection", ClassUnreachable, true, "ca_pem"},
		"no TLS at the proxy":                {target, "https://" + greets, "no TLS connection", ClassUnreachable, true, "ca_pem"},
		"a handshake without an answer":      {"https://" + silent, "", "the TLS handshake got no answer within 1s", ClassUnreachable, true, "GODEBUG=tlsmlkem=0"},
		"a handshake that is cut":            {"https://" + hangsUp, "", "the TLS handshake got no answer", ClassUnreachable, true, "GODEBUG=tlsmlkem=0"},
		"no http proxy":                      {target, "http://user:proxy-password@" + greets, "the proxy refused", ClassUnreachable, true, "proxy_url"},
		"a silent http proxy":                {target, "http://user:proxy-password@" + silent, "no answer within 1s", ClassUnreachable, true, "request_timeout"},
		"a silent socks5 proxy":              {target, "socks5://user:proxy-password@" + silent, "no answer within 1s", ClassUnreachable, true, "request_timeout"},
		"no socks5 proxy":                    {target, "socks5://user:proxy-password@" + greets, "the proxy refused", ClassUnreachable, true, "proxy_url"},
		"a socks5 proxy that admits no one":  {target, "socks5://user:proxy-password@" + socksRefuses, "the proxy refused", ClassUnreachable, true, "proxy_url"},
		"a socks5 proxy without a way there": {target, "socks5://user:proxy-password@" + socksUnreachable, "the proxy refused", ClassUnreachable, true, "proxy_url"},
		"no HTTP":                            {"http://" + answersOddly, "", "it is not an HTTP response, or its headers are too large", ClassAnswer, false, "base_url"},
		"silence":                            {"http://" + silent, "", "no answer within 1s", ClassUnreachable, false, "request_timeout"},
		"a connection that ends":             {"http://" + hangsUp, "", "the connection ended before the answer was complete", ClassUnreachable, false, "base_url"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, e := overTCP(t, c.baseURL)
			e.Proxy, e.Timeout = c.proxy, time.Second
			if strings.Contains(name, "no name") {
				e.Timeout = 5 * time.Second // a resolver may be slow to say so
			}
			g, err := ask(t.Context(), client, e, true)
			p := requireProblem(t, g, err)
			require.Equal(t, c.detail, p.Detail)
			require.Equal(t, c.class, p.Class)
			require.Equal(t, http.StatusBadGateway, p.Status)
			require.Equal(t, c.noEffect, p.HadNoEffect, p.Cause)
			require.Contains(t, p.Advice, c.advice)
			require.NotEmpty(t, p.Cause)
			for _, text := range []string{p.Error(), p.OperatorError()} {
				for _, hidden := range []string{"SSH", "127.0.0.1", "nowhere", "refused:", "dial", "lookup", "EOF", "proxy-password"} {
					require.NotContains(t, text, hidden)
				}
			}
			require.NotContains(t, p.Cause, "proxy-password")
			require.NotContains(t, p.Cause, testSecret)
		})
	}
}

func TestHeadersAndInterimResponsesAreBounded(t *testing.T) {
	const good = "HTTP/1.1 200 OK\r\nContent-Length: 38\r\n"
	const body = `{"access_token":"T","expires_in":7200}`
	forever := func(text string) func(conn net.Conn) {
		return func(conn net.Conn) {
			for {
				if _, err := io.WriteString(conn, text); err != nil {
					return
				}
			}
		}
	}
	for name, c := range map[string]struct {
		answer func(conn net.Conn)
		detail string // empty: it is taken
	}{
		"some headers": {func(conn net.Conn) {
			_, _ = io.WriteString(conn, good+strings.Repeat("X: y\r\n", 1000)+"\r\n"+body)
		}, ""},
		"an interim response": {func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\n"+good+"\r\n"+body)
		}, ""},
		"a header without an end": {func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: ")
			forever("0123456789")(conn)
		}, notHTTP.Detail},
		"headers without an end": {func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
			forever("X: y\r\n")(conn)
		}, notHTTP.Detail},
		"a status line without an end":     {forever("HTTP/1.1 200 OK OK"), notHTTP.Detail},
		"interim responses without an end": {forever("HTTP/1.1 103 Early Hints\r\n\r\n"), notHTTP.Detail},
	} {
		t.Run(name, func(t *testing.T) {
			addr := raw(t, func(conn net.Conn) {
				readRequest(conn)
				c.answer(conn)
			})
			client, e := overTCP(t, "http://"+addr)
			g, err := ask(t.Context(), client, e, false)
			if c.detail == "" {
				require.NoError(t, err)
				require.Equal(t, "T", g)
				return
			}
			p := requireProblem(t, g, err)
			require.Equal(t, c.detail, p.Detail, p.Cause)
			require.Equal(t, ClassAnswer, p.Class)
		})
	}
}

// There are ways to WeChat on which a large ClientHello gets lost.
func TestAWayThatSwallowsLargeHandshakes(t *testing.T) {
	sim := newSim()
	server := serve(t, "https", sim)
	relay, err := wechatsim.StartRelay(server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(relay.Close)
	call := func(timeout time.Duration) (string, error) {
		c, e := overTCP(t, "https://"+relay.Addr())
		e.CAPEM, e.Timeout = rootsOf(server), timeout
		return ask(t.Context(), c, e, true)
	}
	g, err := call(time.Second)
	p := requireProblem(t, g, err)
	require.Equal(t, 1, relay.Swallowed())
	require.Equal(t, "the TLS handshake got no answer within 1s", p.Detail)
	require.Contains(t, p.Advice, "GODEBUG=tlsmlkem=0 in the environment of Vault")
	require.True(t, p.HadNoEffect)
	require.Empty(t, sim.Calls(""))

	t.Setenv("GODEBUG", "tlsmlkem=0")
	_, err = call(5 * time.Second)
	require.NoError(t, err)
}
