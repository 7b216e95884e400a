// Package upstream makes one HTTP call of a platform of WeChat and reads its answer. A
// secret goes to the one address that it is meant for. What comes back is the documented
// answer or a Problem, in bounded time and memory, and neither shows a secret.
//
// Call sends a Request to an Endpoint. Redirects are refused, plain http takes no proxy,
// and a call that the platform may have acted on is not repeated. The answer is taken as
// an Envelope: a small JSON object without an errcode. Everything else is a Problem,
// which says what happened, whether it is certain that nothing did, and how long to wait
// (its Rule). A text from outside is shown only if it is plain.
//
// The package knows no account and no errcode: a Request brings the rules of its
// platform, the secrets that it carries, and the fields of its answer that are secret.
package upstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Client makes calls. It is safe for concurrent use. The zero value is ready for it.
type Client struct {
	// Dial makes the connections; nil dials TCP. ProxyRoots are the roots that an https
	// proxy is held to; nil are the system's. Tests replace both.
	Dial       func(ctx context.Context, network, addr string) (net.Conn, error)
	ProxyRoots *x509.CertPool

	// Observe is told of every call when it is over, unless it is nil. It must not block.
	Observe func(Observed)

	mu   sync.Mutex
	ways map[[sha256.Size]byte]*sharedTransport
}

// Observed is one call as it is counted.
type Observed struct {
	API      string
	Errcode  int    // 0 if the answer gave none
	Result   string // ResultOK, ResultCancelled, or the class of the problem
	Duration time.Duration
}

// The results of calls that are no problem.
const (
	ResultOK        = "ok"
	ResultCancelled = "cancelled"
)

// Endpoint says where to call, and on which way.
type Endpoint struct {
	BaseURL string        // without a trailing slash
	Proxy   string        // "" follows the environment's proxy variables
	CAPEM   string        // roots for BaseURL besides the system's
	Timeout time.Duration // of the whole call

	// Trial keeps nothing of the call in memory: the account may never be stored.
	Trial bool
}

// Request is one call: a POST if it has a body, a GET if not.
type Request struct {
	API   string     // its name, for Observe
	Path  string     // below BaseURL
	Query url.Values // may hold a secret: no text shows the URL
	Body  any        // sent as JSON; nil is none

	// Apart gives the call connections of its own kind, so that a flood of these holds
	// up no other call.
	Apart bool

	// Secrets are what the request carries and no text may show.
	Secrets []string

	// Confidential are the fields of an answer that no text may show. A refusal that has
	// one is not quoted, and leaves open what the platform did.
	Confidential []string

	// Rule tells what an errcode means, and whether it is documented.
	Rule func(errcode int) (rule Rule, documented bool)
}

// Call makes one call and has its answer read by read. The error is a *Problem, or the
// cause for which ctx was cancelled.
func Call[T any](ctx context.Context, c *Client, e Endpoint, r Request, read func(Envelope) (T, *Problem)) (got T, err error) {
	begun := time.Now()
	fields, err := c.roundTrip(ctx, e, r)
	if err == nil {
		var p *Problem
		if got, p = read(fields); p != nil {
			err = p
		}
	}
	c.observe(r.API, err, time.Since(begun))
	return got, err
}

func (c *Client) observe(api string, err error, took time.Duration) {
	if c.Observe == nil {
		return
	}
	seen := Observed{API: api, Result: ResultOK, Duration: took}
	if p := ProblemOf(err); p != nil {
		seen.Errcode, seen.Result = p.Errcode, string(p.Class)
	} else if err != nil {
		seen.Result = ResultCancelled
	}
	c.Observe(seen)
}

// roundTrip sends the request and reads the answer.
func (c *Client) roundTrip(ctx context.Context, e Endpoint, r Request) (Envelope, error) {
	w, err := e.way(r.Apart)
	if err != nil {
		return nil, unsent(err)
	}
	r.Secrets = slices.Concat(r.Secrets, loginOf(w.proxy))
	transport, err := c.transport(w, e.Trial)
	if err != nil {
		return nil, unsent(err)
	}
	if e.Trial {
		defer transport.CloseIdleConnections()
	}
	callCtx, cancel := context.WithTimeout(ctx, e.Timeout)
	defer cancel()
	reached := &progress{}
	req, err := r.build(httptrace.WithClientTrace(connecting(callCtx, e.Timeout), reached.trace()), e.BaseURL)
	if err != nil { // its text may hold the URL
		return nil, unsent(errors.New("base_url is not usable"))
	}
	// Not by an http.Client: no redirect is followed, and errors do not quote the URL.
	resp, err := transport.RoundTrip(req)
	var raw []byte
	if err == nil {
		defer resp.Body.Close()
		raw, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	}
	switch {
	case err == nil:
		fields, p := r.Parse(resp.StatusCode, raw)
		if p != nil {
			return nil, p
		}
		return fields, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	p := reached.problem(err, callCtx.Err() != nil, e.Timeout)
	p.Cause = quotable(err.Error(), "", r.Secrets)
	return nil, p
}

// build makes the HTTP request. The values of a query are escaped, whatever they
// hold; a body has a Content-Length, since WeChat answers a chunked one with 412.
func (r Request) build(ctx context.Context, baseURL string) (*http.Request, error) {
	target := baseURL + r.Path
	if len(r.Query) > 0 {
		target += "?" + r.Query.Encode()
	}
	if r.Body == nil {
		// net/http repeats a GET whose answer was lost, on a connection that served
		// another one before, and WeChat takes a code once. A body that is empty, and
		// not known to be, makes it a request that cannot be repeated; none is sent.
		return http.NewRequestWithContext(ctx, http.MethodGet, target, io.MultiReader())
	}
	body, err := json.Marshal(r.Body)
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
