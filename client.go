package wechat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hashicorp/go-cleanhttp"
)

const (
	tokenPath = "/cgi-bin/stable_token"

	// maxAnswer is the largest answer that is read, in bytes. WeChat's are
	// under 1 KiB.
	maxAnswer = 64 << 10

	// maxLifetime is the longest life WeChat documents for a token.
	maxLifetime = 7200 * time.Second

	// idleTimeout is how long a connection is kept for the next call: well below
	// what servers keep it for, as a call that meets a closing one fails.
	idleTimeout = 20 * time.Second

	// maxDetail bounds, in bytes, what is shown of a text from outside.
	maxDetail = 256
)

// endpoint says whom to ask for which account's token, and on which way.
type endpoint struct {
	appID   string
	secret  string
	baseURL string // without a trailing slash
	proxy   string // "" follows the environment's proxy variables
	caPEM   string // roots besides the system's
	timeout time.Duration
	trial   bool // the account is not stored
}

// tokenAnswer is WeChat's answer: a token and what is left of its life.
type tokenAnswer struct {
	token    string
	asked    time.Time     // when the request was sent: the life left counts from here at the latest
	answered time.Time     // when the answer was read
	lifetime time.Duration // whole seconds, 1 s to maxLifetime
}

// client calls WeChat's stable_token. It is safe for concurrent use and knows
// nothing of Vault.
type client struct {
	// dial replaces the transports' dialler in tests; nil dials TCP.
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	mu         sync.Mutex
	transports map[[sha256.Size]byte]*sharedTransport // by proxy and roots
}

// sharedTransport serves all accounts with the same proxy and roots: one
// transport per account would cost tens of KiB each.
type sharedTransport struct {
	*http.Transport
	used time.Time // guarded by client.mu
}

// transportIdle is how long an unused transport is kept. Accounts compare
// their token far more often than that.
const transportIdle = 24 * time.Hour

// stableToken asks WeChat for the account's token. A forced call kills the
// previous token. Every error is a *problem, unless ctx was cancelled.
func (c *client) stableToken(ctx context.Context, e endpoint, force bool) (*tokenAnswer, error) {
	transport, err := c.transport(e)
	if err != nil {
		return nil, &problem{rule: ruleUnreachable, detail: scrub(err.Error(), e)}
	}
	body, err := json.Marshal(map[string]any{
		"grant_type":    "client_credential",
		"appid":         e.appID,
		"secret":        e.secret,
		"force_refresh": force,
	})
	if err != nil {
		return nil, &problem{rule: ruleAnswer, detail: "the request could not be built"}
	}

	callCtx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(callCtx, http.MethodPost, e.baseURL+tokenPath, bytes.NewReader(body))
	if err != nil {
		return nil, &problem{rule: ruleUnreachable, detail: "base_url is not usable"}
	}
	req.Header.Set("Content-Type", "application/json")
	asked := wallClock()
	resp, err := (&http.Client{Transport: transport, CheckRedirect: noRedirect}).Do(req)
	if err != nil {
		return nil, unreachable(ctx, err, e)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, unreachable(ctx, err, e)
	}
	g, p := parseAnswer(resp.StatusCode, raw)
	if p != nil {
		p.detail, p.rid = scrub(p.detail, e), scrub(p.rid, e)
		return nil, p
	}
	g.asked, g.answered = asked, wallClock()
	return g, nil
}

// noRedirect refuses redirects: the secret goes to base_url and nowhere else.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// unreachable describes an exchange that ended without an answer. The caller's
// own cancellation is passed on as it is.
func unreachable(ctx context.Context, err error, e endpoint) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return &problem{rule: ruleUnreachable, detail: fmt.Sprintf("no answer within %s", e.timeout)}
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	return &problem{rule: ruleUnreachable, detail: scrub(err.Error(), e)}
}

// parseAnswer accepts the one documented success, and names everything else.
func parseAnswer(status int, raw []byte) (*tokenAnswer, *problem) {
	switch {
	case status >= 500:
		return nil, &problem{rule: ruleUnavailable, detail: fmt.Sprintf("HTTP %d", status)}
	case status >= 300 && status < 400:
		return nil, &problem{rule: ruleAnswer, detail: fmt.Sprintf("HTTP %d: redirects are refused", status)}
	case status != http.StatusOK:
		return nil, &problem{rule: ruleAnswer, detail: fmt.Sprintf("HTTP %d", status)}
	case len(raw) > maxAnswer:
		return nil, &problem{rule: ruleAnswer, detail: fmt.Sprintf("it is larger than %d bytes", maxAnswer)}
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
		Errcode     int    `json:"errcode"`
		Errmsg      string `json:"errmsg"`
	}
	// The decoder's error may quote the answer, which may hold a token.
	if json.Unmarshal(raw, &answer) != nil {
		return nil, &problem{rule: ruleAnswer, detail: "it is not the JSON that WeChat documents"}
	}
	switch {
	case answer.Errcode != 0:
		if answer.AccessToken != "" {
			answer.Errmsg = strings.ReplaceAll(answer.Errmsg, answer.AccessToken, "[redacted]")
		}
		return nil, refusal(answer.Errcode, answer.Errmsg)
	case answer.AccessToken == "":
		return nil, &problem{rule: ruleAnswer, detail: "it holds no access_token"}
	case answer.ExpiresIn <= 0:
		return nil, &problem{rule: ruleAnswer, detail: fmt.Sprintf("expires_in is %d", answer.ExpiresIn)}
	}
	lifetime := maxLifetime
	if answer.ExpiresIn < int64(maxLifetime/time.Second) {
		lifetime = time.Duration(answer.ExpiresIn) * time.Second
	}
	return &tokenAnswer{token: answer.AccessToken, lifetime: lifetime}, nil
}

// WeChat's texts vary; these find the request ID and the caller's IP in all
// the forms that have been seen.
var (
	ridPattern = regexp.MustCompile(`(?i)\brid\s*[:=]?\s*([0-9a-z]+(?:-[0-9a-z]+)*)`)
	ipPattern  = regexp.MustCompile(`(?i)ip(?:\s+address)?:?[^0-9a-z:]*([0-9a-f:.]*[0-9a-f])`)
)

// refusal turns an errcode and its text into a problem.
func refusal(errcode int, errmsg string) *problem {
	p := &problem{errcode: errcode}
	if m := ridPattern.FindStringSubmatch(errmsg); m != nil {
		p.rid = m[1] // scrubbed, and with that truncated, by the caller
	}
	known, ok := errcodes[errcode]
	if !ok {
		p.rule, p.detail = ruleAnswer, "an errcode that is not documented: "+errmsg
		return p
	}
	p.rule = known
	if known.class == classAdmission || known.class == classHuman {
		if m := ipPattern.FindStringSubmatch(errmsg); m != nil && net.ParseIP(m[1]) != nil {
			p.ip = m[1]
		}
	}
	return p
}

// scrub makes a text from outside fit to be shown: without the account's
// secrets, should a middlebox echo them, without control characters, and short.
func scrub(text string, e endpoint) string {
	secrets := []string{e.secret}
	if u, err := url.Parse(e.proxy); err == nil && u.User != nil {
		password, _ := u.User.Password()
		login := u.User.Username() + ":" + password
		secrets = append(secrets, u.User.String(), login, base64.StdEncoding.EncodeToString([]byte(login)), password)
	}
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "[redacted]")
		}
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	return truncate(text)
}

func truncate(text string) string {
	if len(text) > maxDetail {
		return strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}

// transport returns the transport for e's proxy and roots, making it if none
// is there. Its key is a digest: a proxy URL can hold a password.
func (c *client) transport(e endpoint) (*http.Transport, error) {
	key := sha256.Sum256([]byte(e.proxy + "\x00" + e.caPEM))
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if t := c.transports[key]; t != nil {
		t.used = now
		return t.Transport, nil
	}
	t, err := newTransport(e.proxy, e.caPEM)
	if err != nil {
		return nil, err
	}
	if c.dial != nil {
		t.DialContext = c.dial
	}
	if c.transports == nil {
		c.transports = make(map[[sha256.Size]byte]*sharedTransport)
	}
	for k, old := range c.transports {
		if now.Sub(old.used) > transportIdle {
			old.CloseIdleConnections()
			delete(c.transports, k)
		}
	}
	c.transports[key] = &sharedTransport{Transport: t, used: now}
	return t, nil
}

func newTransport(proxy, caPEM string) (*http.Transport, error) {
	t := cleanhttp.DefaultPooledTransport()
	t.MaxIdleConnsPerHost = laneLimits[fastLane].perHost
	t.IdleConnTimeout = idleTimeout
	t.TLSHandshakeTimeout = 0   // request_timeout bounds the whole exchange
	t.ForceAttemptHTTP2 = false // net/http would offer it to https proxies, and cannot speak it with them
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil {
			return nil, errors.New("proxy_url is not a URL")
		}
		t.Proxy = http.ProxyURL(u)
	}
	if caPEM != "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM([]byte(caPEM)) {
			return nil, errors.New("ca_pem holds no certificate")
		}
		t.TLSClientConfig.RootCAs = roots
	}
	return t, nil
}

// close drops the idle connections.
func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}
