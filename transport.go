package wechat

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	// idleTimeout is how long a connection is kept for the next call: well below
	// what servers keep it for, as a call that meets a closing one fails.
	idleTimeout = 20 * time.Second

	// idleConns is how many connections to one host are kept for the next calls;
	// idleExchangeConns the same for exchanges, as many as may be in flight.
	idleConns         = 64
	idleExchangeConns = 1024

	// maxTransports is how many transports are kept. Each costs tens of KiB, and
	// more with roots of its own.
	maxTransports = 256

	// transportIdle is how long an unused transport is kept: no call lasts as long,
	// and its connections are closed by then, so that the next one loses nothing.
	transportIdle = time.Minute

	// connectGrace is how long a connection in the making outlives the call that it is
	// made for, which tells better than the connection why it came to nothing.
	connectGrace = time.Second

	// maxHeaders bounds the headers of an answer, in bytes.
	maxHeaders = 64 << 10
)

// endpoint says whom to ask for which account, and on which way.
type endpoint struct {
	appID   string
	secret  string
	baseURL string // without a trailing slash
	proxy   string // "" follows the environment's proxy variables
	caPEM   string // roots besides the system's
	timeout time.Duration

	// trial is set while a write is verified: the account is not stored, and
	// nothing is kept for it.
	trial bool
}

// way is how connections to WeChat are made. Accounts on the same way share a
// transport: one per account would cost tens of KiB each.
type way struct {
	proxy    *url.URL // nil connects directly
	caPEM    string   // roots besides the system's, for base_url only
	exchange bool     // logins have connections of their own, so that a flood of them holds up no token
}

// key identifies the way by a digest: a proxy's URL can hold a password.
func (w way) key() [sha256.Size]byte {
	proxy := ""
	if w.proxy != nil {
		proxy = w.proxy.String()
	}
	return sha256.Sum256(fmt.Appendf(nil, "%t\x00%s\x00%s", w.exchange, proxy, w.caPEM))
}

// wayTo returns how to reach base. Plain http is for the loopback alone: through
// a proxy it would show the secret and the proxy's password to whoever listens,
// so it takes none.
func wayTo(base *url.URL, e endpoint, exchange bool) (way, error) {
	if base.Scheme != "https" {
		return way{exchange: exchange}, nil
	}
	w := way{caPEM: e.caPEM, exchange: exchange}
	var err error
	if e.proxy != "" {
		if w.proxy, err = url.Parse(e.proxy); err != nil {
			return way{}, errors.New("proxy_url is not a URL")
		}
		return w, nil
	}
	if w.proxy, err = http.ProxyFromEnvironment(&http.Request{URL: base}); err != nil {
		return way{}, errors.New("the proxy variables of the plugin's environment hold no URL")
	}
	return w, nil
}

// transports keeps the transports of the ways in use, at most maxTransports: the
// least recently used goes first. The zero value is ready for use.
type transports struct {
	mu    sync.Mutex
	inUse map[[sha256.Size]byte]*sharedTransport
}

type sharedTransport struct {
	*http.Transport
	used time.Time // guarded by transports.mu
}

// get returns the transport of this way, which it makes if it is not there.
func (ts *transports) get(w way, d dialing) (*http.Transport, error) {
	key, now := w.key(), time.Now()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.inUse[key]; t != nil {
		t.used = now
		return t.Transport, nil
	}
	made, err := newTransport(w, d)
	if err != nil {
		return nil, err
	}
	if ts.inUse == nil {
		ts.inUse = make(map[[sha256.Size]byte]*sharedTransport)
	}
	ts.makeRoom()
	ts.inUse[key] = &sharedTransport{made, now}
	return made, nil
}

// makeRoom drops the least recently used if there are too many. Calls on it are
// finished. The caller holds the lock.
func (ts *transports) makeRoom() {
	if len(ts.inUse) < maxTransports {
		return
	}
	var oldest [sha256.Size]byte
	for key, t := range ts.inUse {
		if last := ts.inUse[oldest]; last == nil || t.used.Before(last.used) {
			oldest = key
		}
	}
	ts.drop(oldest)
}

// dropUnused drops what nobody used for long: the accounts on that way may be gone, or
// go another way now.
func (ts *transports) dropUnused() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for key, t := range ts.inUse {
		if time.Since(t.used) > transportIdle {
			ts.drop(key)
		}
	}
}

func (ts *transports) drop(key [sha256.Size]byte) {
	ts.inUse[key].CloseIdleConnections()
	delete(ts.inUse, key)
}

// close drops the idle connections.
func (ts *transports) close() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range ts.inUse {
		t.CloseIdleConnections()
	}
}

// dialing is what tests replace: how TCP is dialled, nil for plainly, and the
// roots that an https proxy is held to, nil for the system's.
type dialing struct {
	dial       dialler
	proxyRoots *x509.CertPool
}

type dialler func(ctx context.Context, network, addr string) (net.Conn, error)

// connectBy is the key under which the context of a call says until when a connection
// may be in the making.
type connectBy struct{}

// connecting returns the context for a call of this timeout. net/http takes values from
// it for the making of a connection, but not its end: it goes on for whoever comes next.
func connecting(ctx context.Context, timeout time.Duration) context.Context {
	return context.WithValue(ctx, connectBy{}, time.Now().Add(timeout+connectGrace))
}

// inTime dials, and leaves the connection a deadline for what has to follow, handshakes
// and the words with a proxy: from who never answers it would stay open for ever. Who is
// given the connection takes the deadline away.
func (d dialler) inTime(ctx context.Context, network, addr string) (net.Conn, error) {
	by, _ := ctx.Value(connectBy{}).(time.Time)
	ctx, cancel := context.WithDeadline(ctx, by)
	defer cancel()
	conn, err := d(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(by); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// proxyRefusal is the status, other than 200, with which a proxy answered CONNECT.
type proxyRefusal int

func (r proxyRefusal) Error() string {
	return fmt.Sprintf("the proxy answered CONNECT with %d", int(r))
}

// loginOf returns what must not be shown of a proxy's URL.
func loginOf(proxy *url.URL) []string {
	if proxy == nil || proxy.User == nil {
		return nil
	}
	password, _ := proxy.User.Password()
	return []string{proxy.User.String(), proxy.User.Username() + ":" + password, password}
}

func newTransport(w way, d dialing) (*http.Transport, error) {
	if d.dial == nil {
		d.dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	t := &http.Transport{
		DialContext:            d.dial.inTime,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost:    idleConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeaders,
		DisableCompression:     true, // what is read is what was sent: nothing can inflate it
		// request_timeout bounds the whole exchange and the making of connections, so there
		// are no others. HTTP/2 is off: net/http would offer it to https proxies, and cannot
		// speak it with them.
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return proxyRefusal(resp.StatusCode)
			}
			return nil
		},
	}
	if w.exchange {
		t.MaxIdleConnsPerHost = idleExchangeConns
	}
	if w.caPEM != "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM([]byte(w.caPEM)) {
			return nil, errors.New("ca_pem holds no certificate")
		}
		t.TLSClientConfig.RootCAs = roots
	}
	if w.proxy == nil {
		return t, nil
	}
	t.Proxy = http.ProxyURL(w.proxy)
	if w.proxy.Scheme == "https" {
		// With an https proxy this makes the connection to the proxy, and no other:
		// the roots of ca_pem are for base_url.
		config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: w.proxy.Hostname(), RootCAs: d.proxyRoots}
		t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := d.dial.inTime(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return tls.Client(conn, config), nil // the transport shakes hands
		}
	}
	return t, nil
}
