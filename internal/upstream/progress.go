package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptrace"
	"strings"
	"sync"
	"syscall"
	"time"
)

// progress is how far a request came. net/http tells of it from several goroutines.
type progress struct {
	mu       sync.Mutex
	stage    int
	sent     bool // it was given a connection: from then on it may have been written
	answered bool // a first byte came back
}

// How far the making of a connection came.
const (
	stageNone    = iota
	stageNaming  // the host's name is looked up
	stageDialing // a connection is being made
	stageTLS     // a TLS handshake is under way
	stageProxy   // there is a connection to a proxy, which was asked for the rest
)

func (p *progress) at(stage int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = stage
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

// problem describes a call that ended in err, without an answer.
func (p *progress) problem(err error, timedOut bool, timeout time.Duration) *Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := p.cause(err, timedOut)
	if timedOut {
		found.Detail = fmt.Sprintf("%s within %s", strings.TrimSuffix(found.Detail, " in time"), timeout)
	}
	found.HadNoEffect = !p.sent
	return &found
}

func (p *progress) cause(err error, timedOut bool) Problem {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		timedOut = true
	}
	cut := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err)
	switch {
	case p.sent && timedOut:
		return noAnswer
	case p.sent && p.answered && !cut:
		return notHTTP
	case p.sent:
		return cutOff
	}
	_, unnamed := errors.AsType[*net.DNSError](err)
	_, refused := errors.AsType[proxyRefusal](err)
	op, isOp := errors.AsType[*net.OpError](err)
	switch {
	case unnamed, p.stage == stageNaming:
		return noName
	case p.stage == stageTLS && (timedOut || cut):
		return silentTLS
	case p.stage == stageTLS:
		return noTLS
	case p.stage == stageProxy && timedOut:
		return noAnswer
	case refused, isOp && strings.HasPrefix(op.Op, "socks"), p.stage == stageProxy:
		return refusedByProxy
	}
	return noConnection
}

// isReset reports whether the other side cut the connection.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// Why there is no answer, in one fixed phrase each. Nothing of what the other side said
// is in it: to a caller that would tell what listens in Vault's network. The server log
// has it, as Cause.
var (
	noName         = unreachable("the host's name was not found", "check the host in base_url, or that in proxy_url, and the name resolution of Vault's host")
	noConnection   = unreachable("no connection", "check that Vault's host may connect to base_url, or to proxy_url")
	refusedByProxy = unreachable("the proxy refused", "check proxy_url, its user and password, and that the proxy may connect to base_url")
	noTLS          = unreachable("no TLS connection", "check that base_url speaks TLS with a certificate of its name, and ca_pem if its authority is not a public one")
	silentTLS      = unreachable("the TLS handshake got no answer", "a middlebox on the way may drop large ClientHellos: set GODEBUG=tlsmlkem=0 in the environment of Vault, which makes them small, and restart it; check the way from Vault to base_url")
	noAnswer       = unreachable("no answer in time", "check the way from Vault to base_url, and request_timeout")
	cutOff         = unreachable("the connection ended before the answer was complete", adviceWay)
	notHTTP        = Problem{Rule: RuleAnswer, Detail: "it is not an HTTP response, or its headers are too large"}
)

// adviceWay is for what may be wrong anywhere between Vault and the platform.
const adviceWay = "check the way from Vault to base_url (network, proxy_url, ca_pem)"

func unreachable(detail, advice string) Problem {
	return Problem{Rule: Rule{ClassUnreachable, 502, BackoffTransient, "WeChat cannot be reached", advice + "; " + TriesAgain}, Detail: detail}
}

// unsent is the problem of a request that could not be made.
func unsent(err error) *Problem {
	p := unreachable(err.Error(), adviceWay)
	p.HadNoEffect = true
	return &p
}
