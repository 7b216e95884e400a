package upstream

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
	"time"
)

const (
	// idleTimeout is how long a connection is kept for the next call: well below
	// what servers keep it for, as a call that meets a closing one fails.
	idleTimeout = 20 * time.Second

	// idleConns is how many connections to one host are kept for the next calls;
	// idleApart the same for calls apart, as many as may be in flight.
	idleConns = 64
	idleApart = 1024

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

// way is how connections are made. Accounts on the same way share a transport: one per
// account would cost tens of KiB each.
type way struct {
	proxy *url.URL // nil connects directly
	caPEM string   // roots besides the system's, for BaseURL only
	apart bool     // see Request.Apart
}

// key identifies the way by a digest: a proxy's URL can hold a password.
func (w way) key() [sha256.Size]byte {
	proxy := ""
	if w.proxy != nil {
		proxy = w.proxy.String()
	}
	return sha256.Sum256(fmt.Appendf(nil, "%t\x00%s\x00%s", w.apart, proxy, w.caPEM))
}

// way returns how to reach the endpoint. Plain http is for the loopback alone: a proxy,
// and what listens on the way to it, would see the secret, so it takes none.
func (e Endpoint) way(apart bool) (way, error) {
	base, err := url.Parse(e.BaseURL)
	switch {
	case err != nil:
		return way{}, errors.New("base_url is not a URL")
	case base.Scheme != "https":
		return way{apart: apart}, nil
	}
	w := way{caPEM: e.CAPEM, apart: apart}
	if e.Proxy != "" {
		if w.proxy, err = url.Parse(e.Proxy); err != nil {
			return way{}, errors.New("proxy_url is not a URL")
		}
		return w, nil
	}
	if w.proxy, err = http.ProxyFromEnvironment(&http.Request{URL: base}); err != nil {
		return way{}, errors.New("the proxy variables of the plugin's environment hold no URL")
	}
	return w, nil
}

// loginOf returns what must not be shown of a proxy's URL.
func loginOf(proxy *url.URL) []string {
	if proxy == nil || proxy.User == nil {
		return nil
	}
	password, _ := proxy.User.Password()
	return []string{proxy.User.String(), proxy.User.Username() + ":" + password, password}
}

type sharedTransport struct {
	*http.Transport
	used time.Time // guarded by Client.mu
}

// transport returns the transport of a way, which it makes if it is not there. A trial
// gets one of its own, for one call.
func (c *Client) transport(w way, trial bool) (*http.Transport, error) {
	if trial {
		made, err := c.newTransport(w)
		if err == nil {
			made.DisableKeepAlives = true
		}
		return made, err
	}
	key, now := w.key(), time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.ways[key]; t != nil {
		t.used = now
		return t.Transport, nil
	}
	made, err := c.newTransport(w)
	if err != nil {
		return nil, err
	}
	if c.ways == nil {
		c.ways = make(map[[sha256.Size]byte]*sharedTransport)
	}
	c.makeRoom()
	c.ways[key] = &sharedTransport{made, now}
	return made, nil
}

// makeRoom drops the least recently used transport if there are too many. Calls on it
// are finished. The caller holds the lock.
func (c *Client) makeRoom() {
	if len(c.ways) < maxTransports {
		return
	}
	var oldest [sha256.Size]byte
	for key, t := range c.ways {
		if last := c.ways[oldest]; last == nil || t.used.Before(last.used) {
			oldest = key
		}
	}
	c.drop(oldest)
}

// Tidy drops the ways that no call took for a minute: their accounts may be gone, or go
// another way now. It does not wait for calls.
func (c *Client) Tidy() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, t := range c.ways {
		if time.Since(t.used) > transportIdle {
			c.drop(key)
		}
	}
}

func (c *Client) drop(key [sha256.Size]byte) {
	c.ways[key].CloseIdleConnections()
	delete(c.ways, key)
}

// Ways returns how many ways are in memory.
func (c *Client) Ways() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ways)
}

// Close drops the idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.ways {
		t.CloseIdleConnections()
	}
}

// connectBy is the key under which the context of a call says until when a connection
// may be in the making.
type connectBy struct{}

// connecting returns the context for a call of this timeout. net/http takes values from
// it for the making of a connection, but not its end: it goes on for the call after.
func connecting(ctx context.Context, timeout time.Duration) context.Context {
	return context.WithValue(ctx, connectBy{}, time.Now().Add(timeout+connectGrace))
}

// dial makes a connection, and leaves it a deadline for what has to follow, handshakes
// and the words with a proxy: without one, a server that never answers would keep it
// open for ever. The call that is given the connection takes the deadline away.
func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	by, _ := ctx.Value(connectBy{}).(time.Time)
	ctx, cancel := context.WithDeadline(ctx, by)
	defer cancel()
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	conn, err := dial(ctx, network, addr)
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

func (c *Client) newTransport(w way) (*http.Transport, error) {
	t := &http.Transport{
		DialContext:            c.dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost:    idleConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeaders,
		DisableCompression:     true, // what is read is what was sent: nothing can inflate it
		// request_timeout bounds the whole call and the making of connections, so there
		// are no others. HTTP/2 is off: net/http would offer it to https proxies, and cannot
		// speak it with them.
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return proxyRefusal(resp.StatusCode)
			}
			return nil
		},
	}
	if w.apart {
		t.MaxIdleConnsPerHost = idleApart
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
		config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: w.proxy.Hostname(), RootCAs: c.ProxyRoots}
		t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := c.dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return tls.Client(conn, config), nil // the transport shakes hands
		}
	}
	return t, nil
}
