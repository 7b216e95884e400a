package wechat

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"
)

// client calls WeChat. It is safe for concurrent use and knows nothing of Vault.
// All calls go through one funnel, call.
type client struct {
	// dial replaces the transports' dialler in tests; nil dials TCP.
	dial dialler

	// proxyRoots are the roots that an https proxy is held to in tests; nil are
	// the system's.
	proxyRoots *x509.CertPool

	// observe is told of every call, when it is over; nil tells nobody. It must
	// not block.
	observe func(observedCall)

	transports transports
}

// observedCall is one call as it is counted.
type observedCall struct {
	api      api
	errcode  int    // 0 if WeChat gave none
	result   string // resultOK, resultCancelled, or the class of what went wrong
	duration time.Duration
}

const (
	resultOK        = "ok"
	resultCancelled = "cancelled"
)

// stableToken asks WeChat for the account's token. A forced call kills the
// previous token. Every error, of this call and of the others, is a *problem,
// unless ctx was cancelled.
func (c *client) stableToken(ctx context.Context, e endpoint, force bool) (*tokenAnswer, error) {
	var sent, received time.Time
	noted, begun := era(), time.Now()
	got, err := call(ctx, c, e, request{
		api: apiStableToken, path: "/cgi-bin/stable_token",
		body: map[string]any{
			"grant_type":    "client_credential",
			"appid":         e.appID,
			"secret":        e.secret,
			"force_refresh": force,
		},
		sent: &sent, received: &received,
	}, envelope.stableToken)
	if err != nil {
		return nil, err
	}
	got.asked, got.answered = sent, received
	got.era, got.ends = noted, begun.Add(got.lifetime)
	return got, nil
}

// codeToSession exchanges the code of wx.login for the user's session. WeChat
// takes a code once.
func (c *client) codeToSession(ctx context.Context, e endpoint, code string) (*session, error) {
	return call(ctx, c, e, request{
		api: apiCode2Session, path: "/sns/jscode2session",
		query:   url.Values{"appid": {e.appID}, "secret": {e.secret}, "js_code": {code}, "grant_type": {"authorization_code"}},
		secrets: []string{code}, exchange: true,
	}, envelope.session)
}

// userToken exchanges the code of a web login for the user's tokens. WeChat takes
// a code once.
func (c *client) userToken(ctx context.Context, e endpoint, code string) (*userToken, error) {
	return call(ctx, c, e, request{
		api: apiOAuth2, path: "/sns/oauth2/access_token",
		query:   url.Values{"appid": {e.appID}, "secret": {e.secret}, "code": {code}, "grant_type": {"authorization_code"}},
		secrets: []string{code}, exchange: true,
	}, envelope.userToken)
}

// clearQuota sets the counters of the account's API calls back to zero. WeChat
// documents the credentials in the body in one place and in the query in another.
// In the query they would end up in the logs of a relay, so the body comes first:
// where WeChat says that it saw none, nothing was done, and the query follows.
func (c *client) clearQuota(ctx context.Context, e endpoint) error {
	const path = "/cgi-bin/clear_quota/v2"
	_, err := call(ctx, c, e, request{
		api: apiClearQuota, path: path,
		body: map[string]any{"appid": e.appID, "appsecret": e.secret},
	}, envelope.cleared)
	if p := problemOf(err); p == nil || p.errcode != 41002 && p.errcode != 41004 {
		return err
	}
	_, err = call(ctx, c, e, request{
		api: apiClearQuota, path: path,
		query: url.Values{"appid": {e.appID}, "appsecret": {e.secret}},
		body:  struct{}{},
	}, envelope.cleared)
	return err
}

// ticket asks WeChat for a ticket of this kind, jsapi or wx_card, with the
// account's token.
func (c *client) ticket(ctx context.Context, e endpoint, accessToken, kind string) (string, error) {
	return call(ctx, c, e, request{
		api: apiTicket, path: "/cgi-bin/ticket/getticket",
		query:   url.Values{"access_token": {accessToken}, "type": {kind}},
		secrets: []string{accessToken},
	}, envelope.ticket)
}

// tidy drops the ways that nobody uses any more. It does not wait for calls.
func (c *client) tidy() { c.transports.dropUnused() }

// close drops the idle connections.
func (c *client) close() { c.transports.close() }

// request is one call: a POST if it has a body, a GET if not.
type request struct {
	api      api
	path     string     // below base_url
	query    url.Values // may hold the secret: no error may show the URL
	body     any        // sent as JSON; nil is none
	secrets  []string   // what it carries and nobody else may see, besides the endpoint's
	exchange bool       // of a login, see way

	// sent and received, if they are set, are told when the request was sent and
	// when its answer was read.
	sent, received *time.Time
}

// call is the funnel: it makes one call of WeChat, has its answer read by read,
// and counts it.
func call[T any](ctx context.Context, c *client, e endpoint, r request, read func(envelope) (T, *problem)) (got T, err error) {
	begun := time.Now()
	defer func() {
		if c.observe == nil {
			return
		}
		seen := observedCall{api: r.api, result: resultOK, duration: time.Since(begun)}
		if p := problemOf(err); p != nil {
			seen.errcode, seen.result = p.errcode, string(p.class)
		} else if err != nil {
			seen.result = resultCancelled
		}
		c.observe(seen)
	}()
	fields, err := c.exchange(ctx, e, r)
	if err != nil {
		return got, err
	}
	got, p := read(fields)
	if p != nil {
		return got, p
	}
	return got, nil
}

// exchange sends the request and reads the answer.
func (c *client) exchange(ctx context.Context, e endpoint, r request) (envelope, error) {
	known := append([]string{e.secret}, r.secrets...)
	unsent := func(detail string) *problem {
		return &problem{rule: ruleUnreachable, detail: detail, hadNoEffect: true}
	}
	base, err := url.Parse(e.baseURL)
	if err != nil {
		return nil, unsent("base_url is not a URL")
	}
	w, err := wayTo(base, e, r.exchange)
	if err != nil {
		return nil, unsent(err.Error())
	}
	known = append(known, loginOf(w.proxy)...)
	transport, err := c.transport(w, e.trial)
	if err != nil {
		return nil, unsent(err.Error())
	}
	if e.trial {
		defer transport.CloseIdleConnections()
	}

	callCtx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	way := &progress{}
	req, err := r.build(httptrace.WithClientTrace(connecting(callCtx, e.timeout), way.trace()), e.baseURL)
	if err != nil { // its text may hold the URL
		return nil, unsent("base_url is not usable")
	}
	sent := wallClock()
	resp, err := (&http.Client{Transport: transport, CheckRedirect: noRedirect}).Do(req)
	if err == nil {
		defer resp.Body.Close()
		var raw []byte
		if raw, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1)); err == nil {
			if r.sent != nil {
				*r.sent, *r.received = sent, wallClock()
			}
			fields, p := parseAnswer(r.api, resp.StatusCode, raw, known)
			if p != nil {
				return nil, p
			}
			return fields, nil
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	// The error of net/http quotes the URL, which may hold the secret.
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	p := way.problem(err, callCtx.Err() != nil, e.timeout)
	p.cause = quotable(err.Error(), "", known)
	return nil, p
}

// build makes the HTTP request. The values of a query are escaped, whatever they
// hold; a body has a Content-Length, since WeChat answers a chunked one with 412.
func (r request) build(ctx context.Context, baseURL string) (*http.Request, error) {
	target := baseURL + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	if r.body == nil {
		// net/http repeats a GET whose answer was lost, on a connection that served
		// another one before, and WeChat takes a code once. A body that is empty, and
		// not known to be, makes it a request that cannot be repeated; none is sent.
		return http.NewRequestWithContext(ctx, http.MethodGet, target, io.MultiReader())
	}
	body, err := json.Marshal(r.body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return req, nil
}

// noRedirect refuses redirects: the secret goes to base_url and nowhere else.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// transport returns the transport of this way. Nothing is kept for a trial: it
// gets one of its own, for one call.
func (c *client) transport(w way, trial bool) (*http.Transport, error) {
	d := dialing{c.dial, c.proxyRoots}
	if !trial {
		return c.transports.get(w, d)
	}
	t, err := newTransport(w, d)
	if err == nil {
		t.DisableKeepAlives = true
	}
	return t, err
}

// progress is how far a request came, by what net/http tells of it from several
// goroutines.
type progress struct {
	mu       sync.Mutex
	stage    stage
	sent     bool // it was given a connection: from then on it may have been written
	answered bool // a first byte came back
}

// stage is how far the making of a connection came.
type stage int

const (
	stageNone    stage = iota
	stageNaming        // the host's name is looked up
	stageDialing       // a connection is being made
	stageTLS           // a TLS handshake is under way
	stageProxy         // there is a connection to a proxy, which was asked for the rest
)

func (p *progress) at(s stage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = s
}

func (p *progress) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		// net/http repeats a POST only if nothing of it was written.
		GetConn: func(string) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.stage, p.sent = stageNone, false
		},
		GotConn: func(got httptrace.GotConnInfo) {
			_ = got.Conn.SetDeadline(time.Time{}) // it is ready; if it is closed, that shows next
			p.mu.Lock()
			defer p.mu.Unlock()
			p.sent = true
		},
		GotFirstResponseByte: func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.answered = true
		},
		DNSStart:          func(httptrace.DNSStartInfo) { p.at(stageNaming) },
		ConnectStart:      func(string, string) { p.at(stageDialing) },
		TLSHandshakeStart: func() { p.at(stageTLS) },
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				p.at(stageProxy)
			}
		},
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			if err == nil {
				p.at(stageProxy)
			}
		},
	}
}

// problem describes an exchange that ended in err, without an answer.
func (p *progress) problem(err error, timedOut bool, timeout time.Duration) *problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := p.cause(err, timedOut)
	detail := found.phrase
	if timedOut {
		detail = fmt.Sprintf("%s within %s", strings.TrimSuffix(detail, " in time"), timeout)
	}
	return &problem{rule: found.rule, detail: detail, hadNoEffect: !p.sent}
}

func (p *progress) cause(err error, timedOut bool) cause {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		timedOut = true
	}
	cut := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err)
	switch {
	case p.sent && timedOut:
		return causeNoAnswer
	case p.sent && p.answered && !cut:
		return causeNotHTTP
	case p.sent:
		return causeCut
	}
	_, noName := errors.AsType[*net.DNSError](err)
	_, refused := errors.AsType[proxyRefusal](err)
	op, isOp := errors.AsType[*net.OpError](err)
	switch {
	case noName, p.stage == stageNaming:
		return causeNoName
	case p.stage == stageTLS && (timedOut || cut):
		return causeTLSSilent
	case p.stage == stageTLS:
		return causeNoTLS
	case p.stage == stageProxy && timedOut:
		return causeNoAnswer
	case refused, isOp && strings.HasPrefix(op.Op, "socks"), p.stage == stageProxy:
		return causeProxy
	}
	return causeNoConnection
}

// isReset reports whether the other side cut the connection.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}
