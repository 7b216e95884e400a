package wechat

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
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
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func testEndpoint() endpoint {
	return endpoint{appID: testAppID, secret: testSecret, baseURL: testURL, timeout: 5 * time.Second}
}

// overPipe runs test on a client whose every connection leads to handler, in a
// synctest bubble: nothing of it may be left running.
func overPipe(t *testing.T, handler http.Handler, test func(t *testing.T, c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		pipe := wechatsim.NewPipe()
		server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(pipe) })
		defer serving.Wait()
		defer server.Close()
		c := &client{dial: pipe.DialContext}
		defer c.close()
		test(t, c)
	})
}

// overSim is overPipe with the simulated WeChat, which knows testAppID.
func overSim(t *testing.T, test func(t *testing.T, c *client, sim *wechatsim.Sim)) {
	t.Helper()
	sim := newSim()
	overPipe(t, sim, func(t *testing.T, c *client) { test(t, c, sim) })
}

func newSim() *wechatsim.Sim {
	sim := wechatsim.New()
	sim.SetAccount(testAppID, wechatsim.Account{Secret: testSecret})
	return sim
}

// answering is a WeChat that answers every call alike.
func answering(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// refusing is a WeChat that answers every call with an errcode.
func refusing(errcode int, errmsg string) http.Handler {
	body, err := json.Marshal(map[string]any{"errcode": errcode, "errmsg": errmsg})
	if err != nil {
		panic(err)
	}
	return answering(http.StatusOK, string(body))
}

// requireProblem is the problem that err has to be.
func requireProblem(t *testing.T, g *tokenAnswer, err error) *problem {
	t.Helper()
	require.Nil(t, g)
	p, ok := err.(*problem) //nolint:errorlint // the client returns it bare
	require.True(t, ok, "%T: %v", err, err)
	return p
}

func TestTheRequestIsTheDocumentedOne(t *testing.T) {
	for name, c := range map[string]struct {
		baseURL string
		force   bool
		uri     string
	}{
		"normal":             {testURL, false, "/cgi-bin/stable_token"},
		"forced":             {testURL, true, "/cgi-bin/stable_token"},
		"base_url with path": {testURL + "/relay/wechat", false, "/relay/wechat/cgi-bin/stable_token"},
	} {
		t.Run(name, func(t *testing.T) {
			var got *http.Request
			var body []byte
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got = r
				body, _ = io.ReadAll(r.Body)
				_, _ = io.WriteString(w, `{"access_token":"T","expires_in":7200}`)
			})
			overPipe(t, handler, func(t *testing.T, cl *client) {
				e := testEndpoint()
				e.baseURL = c.baseURL
				_, err := cl.stableToken(t.Context(), e, c.force)
				require.NoError(t, err)
				require.Equal(t, http.MethodPost, got.Method)
				require.Equal(t, c.uri, got.RequestURI, "neither a query string nor another path")
				require.Equal(t, "application/json", got.Header.Get("Content-Type"))
				require.NotContains(t, fmt.Sprint(got.Header), testSecret)
				var fields map[string]any
				require.NoError(t, json.Unmarshal(body, &fields))
				require.Equal(t, map[string]any{
					"grant_type": "client_credential", "appid": testAppID, "secret": testSecret, "force_refresh": c.force,
				}, fields)
			})
		})
	}
}

func TestAGrantTellsWhatIsLeftSinceWhen(t *testing.T) {
	overSim(t, func(t *testing.T, c *client, sim *wechatsim.Sim) {
		sim.SetLatency(2 * time.Second)
		start := wallClock()
		first, err := c.stableToken(t.Context(), testEndpoint(), false)
		require.NoError(t, err)
		require.Equal(t, &tokenAnswer{
			token: sim.Current(testAppID), asked: start, answered: start.Add(2 * time.Second), lifetime: 7200 * time.Second,
		}, first)

		time.Sleep(1000 * time.Second)
		second, err := c.stableToken(t.Context(), testEndpoint(), false)
		require.NoError(t, err)
		require.Equal(t, first.token, second.token)
		require.Equal(t, 6198*time.Second, second.lifetime)

		forced, err := c.stableToken(t.Context(), testEndpoint(), true)
		require.NoError(t, err)
		require.NotEqual(t, first.token, forced.token)
		require.True(t, sim.Calls("")[2].Forced)
	})
}

func TestEveryFaultIsOneNamedProblemAndOneCall(t *testing.T) {
	for name, c := range map[string]struct {
		fault  wechatsim.Fault
		class  class
		status int
		text   string // in the message
	}{
		"busy":                   {wechatsim.Fault{Kind: "errcode", Errcode: -1}, classTransient, 502, "errcode -1"},
		"refused credentials":    {wechatsim.Fault{Kind: "errcode", Errcode: 40125}, classCredentials, 400, "errcode 40125"},
		"quota":                  {wechatsim.Fault{Kind: "errcode", Errcode: 45009}, classQuota, 429, "errcode 45009"},
		"undocumented errcode":   {wechatsim.Fault{Kind: "errcode", Errcode: 12345, Errmsg: "odd"}, classAnswer, 502, "not documented: odd (errcode 12345)"},
		"server error":           {wechatsim.Fault{Kind: "status", Status: 500}, classTransient, 502, "HTTP 500"},
		"unavailable":            {wechatsim.Fault{Kind: "status", Status: 503}, classTransient, 502, "HTTP 503"},
		"forbidden":              {wechatsim.Fault{Kind: "status", Status: 403}, classAnswer, 502, "HTTP 403"},
		"no content":             {wechatsim.Fault{Kind: "status", Status: 204}, classAnswer, 502, "HTTP 204"},
		"redirect":               {wechatsim.Fault{Kind: "redirect"}, classAnswer, 502, "redirects are refused"},
		"redirect to GET":        {wechatsim.Fault{Kind: "redirect", Status: 302}, classAnswer, 502, "redirects are refused"},
		"hang":                   {wechatsim.Fault{Kind: "hang"}, classUnreachable, 502, "no answer within 5s"},
		"reset":                  {wechatsim.Fault{Kind: "reset"}, classUnreachable, 502, "EOF"},
		"lost":                   {wechatsim.Fault{Kind: "lost"}, classUnreachable, 502, "EOF"},
		"truncated":              {wechatsim.Fault{Kind: "truncate"}, classUnreachable, 502, "EOF"},
		"oversized":              {wechatsim.Fault{Kind: "oversize"}, classAnswer, 502, "larger than 65536 bytes"},
		"not JSON":               {wechatsim.Fault{Kind: "notjson"}, classAnswer, 502, "not the JSON"},
		"no token":               {wechatsim.Fault{Kind: "notoken"}, classAnswer, 502, "no access_token"},
		"without expires_in":     {wechatsim.Fault{Kind: "expires_in"}, classAnswer, 502, "expires_in is 0"},
		"expires_in of zero":     {wechatsim.Fault{Kind: "expires_in", ExpiresIn: "0"}, classAnswer, 502, "expires_in is 0"},
		"expires_in below zero":  {wechatsim.Fault{Kind: "expires_in", ExpiresIn: "-1"}, classAnswer, 502, "expires_in is -1"},
		"expires_in as a string": {wechatsim.Fault{Kind: "expires_in", ExpiresIn: `"7200"`}, classAnswer, 502, "not the JSON"},
		"expires_in as a float":  {wechatsim.Fault{Kind: "expires_in", ExpiresIn: "7200.5"}, classAnswer, 502, "not the JSON"},
	} {
		for mode, force := range map[string]bool{"normal": false, "forced": true} {
			t.Run(name+", "+mode, func(t *testing.T) {
				overSim(t, func(t *testing.T, cl *client, sim *wechatsim.Sim) {
					// On a new connection, and on one that served a call before: net/http
					// must not repeat a call that WeChat may have acted on.
					for n, reused := range []bool{false, true} {
						if reused {
							sim.ClearFaults()
							_, err := cl.stableToken(t.Context(), testEndpoint(), false)
							require.NoError(t, err)
						}
						sim.Inject(c.fault)
						before := len(sim.Calls(""))
						g, err := cl.stableToken(t.Context(), testEndpoint(), force)
						p := requireProblem(t, g, err)
						require.Equal(t, c.class, p.class)
						require.Equal(t, c.status, p.status)
						require.Contains(t, p.message(), c.text)
						require.Contains(t, p.Error(), "; what to do: "+p.advice)
						require.Len(t, sim.Calls(""), before+1, "round %d", n)
						require.NotContains(t, p.Error(), testSecret)
						if current := sim.Current(testAppID); current != "" {
							require.NotContains(t, p.Error(), current)
						}
					}
				})
			})
		}
	}
}

func TestOnlyTheDocumentedAnswerIsAccepted(t *testing.T) {
	// padded is a good answer of exactly size bytes.
	padded := func(size int) string {
		const head, tail = `{"access_token":"`, `","expires_in":7200}`
		return head + strings.Repeat("T", size-len(head)-len(tail)) + tail
	}
	blank := func(size int) string {
		const body = `{"access_token":"T","expires_in":7200}`
		return body + strings.Repeat(" ", size-len(body))
	}
	expires := func(raw string) string { return `{"access_token":"T","expires_in":` + raw + `}` }
	for name, c := range map[string]struct {
		body string
		want time.Duration // of life, 0 for an answer that is refused
	}{
		"as documented":                {expires("7200"), 7200 * time.Second},
		"one second":                   {expires("1"), time.Second},
		"300 s":                        {expires("300"), 300 * time.Second},
		"7201 s":                       {expires("7201"), 7200 * time.Second},
		"more than fits a duration":    {expires("9223372037"), 7200 * time.Second},
		"the largest int64":            {expires("9223372036854775807"), 7200 * time.Second},
		"with an errcode of 0":         {`{"errcode":0,"errmsg":"ok","access_token":"T","expires_in":7200}`, 7200 * time.Second},
		"with fields besides":          {`{"access_token":"T","expires_in":7200,"more":{"x":[1]}}`, 7200 * time.Second},
		"64 KiB of token":              {padded(maxAnswer), 7200 * time.Second},
		"64 KiB with blanks":           {blank(maxAnswer), 7200 * time.Second},
		"64 KiB and one byte of token": {padded(maxAnswer + 1), 0},
		"64 KiB and one blank":         {blank(maxAnswer + 1), 0},
		"zero":                         {expires("0"), 0},
		"negative":                     {expires("-7200"), 0},
		"as a string":                  {expires(`"7200"`), 0},
		"as a fraction":                {expires("0.5"), 0},
		"null":                         {expires("null"), 0},
		"missing":                      {`{"access_token":"T"}`, 0},
		"below the smallest int64":     {expires("-9223372036854775809"), 0},
		"empty token":                  {`{"access_token":"","expires_in":7200}`, 0},
		"null token":                   {`{"access_token":null,"expires_in":7200}`, 0},
		"token of another type":        {`{"access_token":{"x":1},"expires_in":7200}`, 0},
		"token with an errcode":        {`{"errcode":-1,"errmsg":"no","access_token":"T","expires_in":7200}`, 0},
		"errcode of another type":      {`{"errcode":"40001","errmsg":"no"}`, 0},
		"nothing":                      {``, 0},
		"JSON's null":                  {`null`, 0},
		"a list":                       {`[{"access_token":"T","expires_in":7200}]`, 0},
		"two answers":                  {expires("7200") + expires("7200"), 0},
		"half an answer":               {expires("7200")[:30], 0},
	} {
		t.Run(name, func(t *testing.T) {
			overPipe(t, answering(http.StatusOK, c.body), func(t *testing.T, cl *client) {
				g, err := cl.stableToken(t.Context(), testEndpoint(), false)
				if c.want > 0 {
					require.NoError(t, err)
					require.Equal(t, c.want, g.lifetime)
					require.NotEmpty(t, g.token)
					require.Empty(t, strings.Trim(g.token, "T"))
					return
				}
				p := requireProblem(t, g, err)
				require.Equal(t, http.StatusBadGateway, p.status)
			})
		})
	}
}

// An answer that never ends must not fill the memory, however little of it there
// is on the wire.
func TestAnAnswerIsReadNoFurtherThanItsBound(t *testing.T) {
	beyond := append([]byte(`{"access_token":"T","expires_in":7200}`), bytes.Repeat([]byte(" "), maxAnswer)...)
	for name, send := range map[string]func(w http.ResponseWriter) error{
		"plain": func(w http.ResponseWriter) error {
			_, err := w.Write(beyond)
			return err
		},
		"compressed": func(w http.ResponseWriter) error {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, err := z.Write(beyond)
			return errors.Join(err, z.Flush())
		},
	} {
		t.Run(name, func(t *testing.T) {
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = errors.Join(send(w), http.NewResponseController(w).Flush()) // the client may be gone
				<-r.Context().Done()                                            // without an end
			})
			overPipe(t, handler, func(t *testing.T, c *client) {
				start := time.Now()
				g, err := c.stableToken(t.Context(), testEndpoint(), false)
				require.Contains(t, requireProblem(t, g, err).message(), "larger than 65536 bytes")
				require.Zero(t, time.Since(start), "nobody waits for the rest")
			})
		})
	}
}

func TestRefusalsTellTheRequestID(t *testing.T) {
	const rid = "65f0a1b2-0c3d4e5f-61728394"
	for errmsg, want := range map[string]string{
		"invalid appid rid: " + rid:           rid,
		"invalid appid, rid: " + rid:          rid,
		"invalid appid, rid: 65f0a1b2":        "65f0a1b2",
		"invalid appid rid:" + rid:            rid,
		"invalid appid RID: " + rid:           rid,
		"invalid appid hint: [x] rid: " + rid: rid,
		"invalid appid (rid: " + rid + ")":    rid,
		"invalid appid rid: " + rid + ".":     rid,
		"invalid appid rid : " + rid:          rid,
		"invalid appid rid=" + rid:            rid,
		"rid: " + rid + ", invalid appid":     rid,
		"invalid appid\nrid:\t" + rid:         rid,
		"invalid appid":                       "",
		"the grid: 12 is invalid":             "",
		"":                                    "",
	} {
		t.Run(errmsg, func(t *testing.T) {
			for _, errcode := range []int{40013, 40164, 12345} {
				overPipe(t, refusing(errcode, errmsg), func(t *testing.T, c *client) {
					g, err := c.stableToken(t.Context(), testEndpoint(), false)
					p := requireProblem(t, g, err)
					require.Equal(t, want, p.rid)
					require.Equal(t, errcode, p.errcode)
					require.Contains(t, p.message(), fmt.Sprintf("errcode %d", errcode))
					require.Equal(t, want != "", strings.Contains(p.message(), ", rid "+want+")"), p.message())
				})
			}
		})
	}
}

func TestRefusalsForAnIPTellWhich(t *testing.T) {
	for errmsg, want := range map[string]string{
		"invalid ip 1.2.3.4 ipv6 ::ffff:1.2.3.4, not in whitelist rid: 65f0a1b2-0c3d4e5f-61728394": "1.2.3.4",
		"invalid ip 1.2.3.4, not in whitelist rid: 65f0a1b2":                                       "1.2.3.4",
		"invalid ip 2001:db8::1 ipv6 2001:db8::1, not in whitelist rid: 65f0a1b2":                  "2001:db8::1",
		"invalid ip ::ffff:1.2.3.4, not in whitelist":                                              "::ffff:1.2.3.4",
		"invalid ip: 1.2.3.4": "1.2.3.4",
		"access clientip is not registered, requestIP: 1.2.3.4 rid: 65f0a1b2":             "1.2.3.4",
		"access clientip is not registered, not in ip-white-list, requestIP: 2001:DB8::1": "2001:DB8::1",
		"access clientip is not registered, requestIP:1.2.3.4":                            "1.2.3.4",
		"ip address 1.2.3.4 is not registered":                                            "1.2.3.4",
		"ip 1.2.3.4.":                                                                     "1.2.3.4",
		"ip 1.2.3.4 waits for the administrator to confirm, rid: 65f0a1b2":                "1.2.3.4",
		"invalid ip [1.2.3.4], not in whitelist":                                          "1.2.3.4",
		"access clientip is not registered, rid: 65f0a1b2":                                "",
		"invalid ip 1.2.3.4.5, not in whitelist":                                          "",
		"invalid ip 999.2.3.4, not in whitelist":                                          "",
		"not in whitelist":                                                                "",
	} {
		t.Run(errmsg, func(t *testing.T) {
			for _, errcode := range []int{40164, 61004, 45035, 89501, 89503, 89506, 89507} {
				overPipe(t, refusing(errcode, errmsg), func(t *testing.T, c *client) {
					g, err := c.stableToken(t.Context(), testEndpoint(), false)
					p := requireProblem(t, g, err)
					require.Equal(t, want, p.ip)
					require.Equal(t, want != "", strings.Contains(p.message(), ", caller's IP "+want), p.message())
				})
			}
		})
	}
}

// requireShowable holds a text to what may be shown of one from outside.
func requireShowable(t *testing.T, text string) {
	t.Helper()
	require.LessOrEqual(t, len(text), maxDetail+len("…"))
	require.Equal(t, -1, strings.IndexFunc(text, unicode.IsControl), "%q holds control characters", text)
}

func TestTextsFromOutsideAreShortAndPlain(t *testing.T) {
	for name, c := range map[string]struct{ errmsg, shown string }{
		"line ends":              {"first\r\nsecond\tthird", "first  second third"},
		"terminal sequences":     {"\x1b[31mred\x1b[0m \u009b31mred \x7f\x00", "31mred"},
		"very long":              {strings.Repeat("long ", 10_000), "long long"},
		"very long in Chinese":   {strings.Repeat("系统繁忙", 5_000), "系统繁忙系统"},
		"a very long request ID": {"odd rid: " + strings.Repeat("0123abcd-", 1_000) + "0", "odd rid"},
		"a very long IP":         {"odd ip " + strings.Repeat("1.", 10_000) + "1", "odd ip"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, errcode := range []int{12345, 40013, 40164} {
				overPipe(t, refusing(errcode, c.errmsg), func(t *testing.T, cl *client) {
					g, err := cl.stableToken(t.Context(), testEndpoint(), false)
					p := requireProblem(t, g, err)
					for _, text := range []string{p.detail, p.rid, p.ip} {
						requireShowable(t, text)
					}
					if errcode == 12345 {
						require.Contains(t, p.detail, c.shown)
					}
				})
			}
		})
	}
}

func TestSecretsThatAMiddleboxEchoesAreNotShown(t *testing.T) {
	const password = "proxy-p@ss"
	for name, errmsg := range map[string]string{
		"the secret":                    "refused " + testSecret + " as sent",
		"the whole request":             `bad request {"appid":"` + testAppID + `","secret":"` + testSecret + `"}`,
		"the secret at the cut":         strings.Repeat("x", maxDetail-50) + testSecret,
		"the secret as the request ID":  "refused rid: " + testSecret,
		"a long request ID's cut":       "refused rid: " + strings.Repeat("0", maxDetail-16) + "-" + testSecret,
		"the secret in the request ID":  "refused rid: 65f0a1b2-" + testSecret,
		"the proxy's password":          "refused " + password,
		"the proxy's user and password": "refused user:proxy-p%40ss",
	} {
		t.Run(name, func(t *testing.T) {
			for _, errcode := range []int{12345, 40013, 40164, 45009} {
				overPipe(t, refusing(errcode, errmsg), func(t *testing.T, c *client) {
					e := testEndpoint()
					e.proxy = "http://user:" + url.QueryEscape(password) + "@127.0.0.1:3128"
					g, err := c.stableToken(t.Context(), e, false)
					p := requireProblem(t, g, err)
					require.Equal(t, errcode, p.errcode)
					for _, text := range []string{p.Error(), p.rid, p.ip, p.detail} {
						require.NotContains(t, text, testSecret)
						require.NotContains(t, text, testSecret[:8], "not a part of it either")
						require.NotContains(t, text, password)
						require.NotContains(t, text, url.QueryEscape(password))
					}
				})
			}
		})
	}
}

func TestTheTimeoutBoundsTheWholeExchange(t *testing.T) {
	slow := func(deliver func(w http.ResponseWriter, ctx context.Context)) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			deliver(w, r.Context())
		})
	}
	// pause returns false when the client has given up.
	pause := func(ctx context.Context, d time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(d):
			return true
		}
	}
	for name, handler := range map[string]http.Handler{
		"no answer": slow(func(_ http.ResponseWriter, ctx context.Context) { <-ctx.Done() }),
		"a body that drips": slow(func(w http.ResponseWriter, ctx context.Context) {
			for pause(ctx, 100*time.Millisecond) {
				_, _ = io.WriteString(w, " ")
				_ = http.NewResponseController(w).Flush()
			}
		}),
		"a late answer": slow(func(w http.ResponseWriter, ctx context.Context) {
			if pause(ctx, 31*time.Second) {
				_, _ = io.WriteString(w, `{"access_token":"T","expires_in":7200}`)
			}
		}),
	} {
		for _, timeout := range []time.Duration{time.Second, 5 * time.Second, 30 * time.Second} {
			t.Run(fmt.Sprintf("%s, %s", name, timeout), func(t *testing.T) {
				overPipe(t, handler, func(t *testing.T, c *client) {
					e := testEndpoint()
					e.timeout = timeout
					start := time.Now()
					g, err := c.stableToken(t.Context(), e, false)
					p := requireProblem(t, g, err)
					require.Equal(t, timeout, time.Since(start))
					require.Equal(t, classUnreachable, p.class)
					require.Equal(t, "no answer within "+timeout.String(), p.detail)
				})
			})
		}
	}
	t.Run("an answer in time is taken", func(t *testing.T) {
		overSim(t, func(t *testing.T, c *client, sim *wechatsim.Sim) {
			sim.SetLatency(4900 * time.Millisecond)
			_, err := c.stableToken(t.Context(), testEndpoint(), false)
			require.NoError(t, err)
		})
	})
}

func TestACancelledCallIsPassedOnAsCancelled(t *testing.T) {
	errClosing := errors.New("the mount is closing")
	t.Run("while WeChat is waited for", func(t *testing.T) {
		overSim(t, func(t *testing.T, c *client, sim *wechatsim.Sim) {
			sim.Inject(wechatsim.Fault{Kind: "hang"})
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(errClosing) })
			start := time.Now()
			g, err := c.stableToken(ctx, testEndpoint(), false)
			require.Nil(t, g)
			require.Equal(t, errClosing, err)
			require.Equal(t, time.Second, time.Since(start))
		})
	})
	t.Run("while the answer is read", func(t *testing.T) {
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		overPipe(t, handler, func(t *testing.T, c *client) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			g, err := c.stableToken(ctx, testEndpoint(), false)
			require.Nil(t, g)
			require.Equal(t, context.Canceled, err)
		})
	})
	t.Run("before it begins", func(t *testing.T) {
		overSim(t, func(t *testing.T, c *client, sim *wechatsim.Sim) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			g, err := c.stableToken(ctx, testEndpoint(), false)
			require.Nil(t, g)
			require.Equal(t, context.Canceled, err)
			require.Empty(t, sim.Calls(""))
		})
	})
}

func TestTransportsAreShared(t *testing.T) {
	overSim(t, func(t *testing.T, c *client, sim *wechatsim.Sim) {
		const proxy = "http://user:proxy-password@127.0.0.1:3128"
		roots := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: testCertificate(t)}))
		call := func(change func(e *endpoint)) {
			t.Helper()
			e := testEndpoint()
			change(&e)
			_, err := c.stableToken(t.Context(), e, false)
			require.NoError(t, err)
		}

		// Whatever else differs, the accounts share.
		call(func(*endpoint) {})
		sim.SetAccount("wxanother", wechatsim.Account{Secret: "another"})
		call(func(e *endpoint) { e.appID, e.secret = "wxanother", "another" })
		call(func(e *endpoint) { e.baseURL = "http://localhost" })
		call(func(e *endpoint) { e.timeout = time.Second })
		require.Len(t, c.transports, 1)

		call(func(e *endpoint) { e.proxy = proxy })
		call(func(e *endpoint) { e.proxy = proxy })
		require.Len(t, c.transports, 2)
		call(func(e *endpoint) { e.caPEM = roots })
		call(func(e *endpoint) { e.proxy, e.caPEM = proxy, roots })
		call(func(e *endpoint) { e.proxy = "http://user:another-password@127.0.0.1:3128" })
		require.Len(t, c.transports, 5)
		for key := range c.transports {
			require.NotContains(t, fmt.Sprintf("%s", key), "password")
		}

		// Those in use stay, those that nobody used for long are dropped when
		// another is made.
		time.Sleep(transportIdle / 2)
		call(func(e *endpoint) { e.proxy = proxy })
		time.Sleep(transportIdle/2 + time.Second)
		require.Len(t, c.transports, 5)
		call(func(e *endpoint) { e.proxy = "http://127.0.0.2:3128" })
		require.Len(t, c.transports, 2)
		call(func(e *endpoint) { e.proxy = proxy })
		require.Len(t, c.transports, 2)
	})
}

func TestCallsOneAfterTheOtherUseOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pipe := wechatsim.NewPipe()
		defer newSim().Serve(pipe)()
		dialled := 0
		c := &client{dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialled++
			return pipe.DialContext(ctx, network, addr)
		}}
		defer c.close()
		for range 5 {
			_, err := c.stableToken(t.Context(), testEndpoint(), false)
			require.NoError(t, err)
			time.Sleep(idleTimeout / 2)
		}
		require.Equal(t, 1, dialled)
		time.Sleep(2 * idleTimeout) // the connection is given up before the server does so
		_, err := c.stableToken(t.Context(), testEndpoint(), false)
		require.NoError(t, err)
		require.Equal(t, 2, dialled)
	})
}

// The tests from here on run over the loopback: with TLS, proxies and redirects
// as they are.

// overTCP returns a client, and the endpoint for it to reach a server at baseURL.
func overTCP(t *testing.T, baseURL string) (*client, endpoint) {
	t.Helper()
	c := &client{}
	t.Cleanup(c.close)
	e := testEndpoint()
	e.baseURL = baseURL
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
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
}

// testCertificate returns some certificate.
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
		e.caPEM = rootsOf(server)
		_, err := c.stableToken(t.Context(), e, false)
		require.NoError(t, err)
		require.Len(t, sim.Calls(""), 1)
	})
	t.Run("an unknown authority is refused before anything is sent", func(t *testing.T) {
		c, e := overTCP(t, server.URL)
		g, err := c.stableToken(t.Context(), e, false)
		p := requireProblem(t, g, err)
		require.Equal(t, classUnreachable, p.class)
		require.Contains(t, p.detail, "certificate signed by unknown authority")
		require.Contains(t, p.advice, "ca_pem")
		require.Len(t, sim.Calls(""), 1)
	})
	t.Run("a certificate of another host is refused", func(t *testing.T) {
		_, port, err := net.SplitHostPort(server.Listener.Addr().String())
		require.NoError(t, err)
		c, e := overTCP(t, "https://localhost:"+port)
		e.caPEM = rootsOf(server)
		g, err := c.stableToken(t.Context(), e, false)
		require.Contains(t, requireProblem(t, g, err).detail, "certificate is valid for")
		require.Len(t, sim.Calls(""), 1)
	})
	t.Run("roots without a certificate are refused", func(t *testing.T) {
		c, e := overTCP(t, server.URL)
		e.caPEM = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"
		g, err := c.stableToken(t.Context(), e, false)
		require.Equal(t, "ca_pem holds no certificate", requireProblem(t, g, err).detail)
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
			g, err := c.stableToken(t.Context(), e, false)
			p := requireProblem(t, g, err)
			require.Equal(t, fmt.Sprintf("HTTP %d: redirects are refused", status), p.detail)
			require.Equal(t, http.StatusBadGateway, p.status)
			require.Empty(t, target.Calls(""))
		})
	}
}

func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	for _, scheme := range []string{"", "http", "https", "socks5"} {
		t.Run(fmt.Sprintf("proxy scheme %q", scheme), func(t *testing.T) {
			c, e := overTCP(t, "http://"+listener.Addr().String())
			if scheme != "" {
				e.proxy = scheme + "://user:proxy-password@" + listener.Addr().String()
			}
			g, err := c.stableToken(t.Context(), e, false)
			p := requireProblem(t, g, err)
			require.Equal(t, classUnreachable, p.class)
			require.Contains(t, p.detail, "connection refused")
			require.NotContains(t, p.Error(), "proxy-password")
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
	for _, proxyScheme := range []string{"http", "https", "socks5"} {
		for _, scheme := range []string{"http", "https"} {
			for userinfo, login := range map[string]string{"": "", "user:proxy-p%40ss@": "user:proxy-p@ss"} {
				t.Run(fmt.Sprintf("%s proxy to %s, login %q", proxyScheme, scheme, login), func(t *testing.T) {
					sim := newSim()
					server := serve(t, scheme, sim)
					proxy, addr := startEgress(t, proxyScheme)
					c, e := overTCP(t, server.URL)
					e.proxy = proxyScheme + "://" + userinfo + addr
					e.caPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: testCertificate(t)}))
					g, err := c.stableToken(t.Context(), e, false)
					require.NoError(t, err)
					require.Equal(t, sim.Current(testAppID), g.token)
					require.Equal(t, []string{server.Listener.Addr().String()}, proxy.targets)
					require.Equal(t, []string{login}, proxy.logins)
				})
			}
		}
	}
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
		for _, baseURL := range []string{"http://127.0.0.1:1", "https://127.0.0.1:1"} {
			t.Run(name+", "+baseURL, func(t *testing.T) {
				server := serve(t, "http", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					conn, _, err := http.NewResponseController(w).Hijack()
					if err != nil {
						panic(err)
					}
					defer conn.Close()
					_, _ = io.WriteString(conn, "HTTP/1.1 "+status+"\r\nContent-Length: 0\r\n\r\n")
				}))
				c, e := overTCP(t, baseURL)
				e.proxy = "http://" + userinfo + "@" + server.Listener.Addr().String()
				g, err := c.stableToken(t.Context(), e, false)
				p := requireProblem(t, g, err)
				require.Equal(t, http.StatusBadGateway, p.status)
				requireShowable(t, p.detail)
				for _, secret := range []string{"proxy-p@ss", "proxy-p%40ss", encoded} {
					require.NotContains(t, p.Error(), secret)
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
		_, err := c.stableToken(t.Context(), e, false)
		require.NoError(t, err)
		return
	}
	server := serve(t, "http", newSim())
	for name, c := range map[string]struct {
		baseURL string
		proxied []string
	}{
		"is used":             {"http://wechat.test", []string{"wechat.test"}},
		"is not for loopback": {server.URL, nil},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := &egress{}
			sim := newSim()
			way := serve(t, "http", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				proxy.saw(r.URL.Host, "")
				sim.ServeHTTP(w, r)
			}))
			executable, err := os.Executable()
			require.NoError(t, err)
			cmd := exec.CommandContext(t.Context(), executable, "-test.run=^TestTheEnvironmentsProxy$")
			cmd.Env = append(os.Environ(), childProxy+"="+c.baseURL, "HTTP_PROXY="+way.URL, "HTTPS_PROXY="+way.URL, "NO_PROXY=", "no_proxy=")
			output, err := cmd.CombinedOutput()
			require.NoError(t, err, string(output))
			require.Equal(t, c.proxied, proxy.targets)
		})
	}
}
