package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

func testEndpoint() Endpoint {
	return Endpoint{BaseURL: testURL, Timeout: 5 * time.Second}
}

// overPipe runs test on a client whose every connection leads to handler, in a
// synctest bubble: nothing of it may be left running.
func overPipe(t *testing.T, handler http.Handler, test func(t *testing.T, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		pipe := wechatsim.NewPipe()
		defer wechatsim.Serve(pipe, handler)()
		c := &Client{Dial: pipe.DialContext}
		defer c.Close()
		test(t, c)
	})
}

// overSim is overPipe with the simulated WeChat, which knows testAppID.
func overSim(t *testing.T, test func(t *testing.T, c *Client, sim *wechatsim.Sim)) {
	t.Helper()
	sim := newSim()
	overPipe(t, sim, func(t *testing.T, c *Client) { test(t, c, sim) })
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
func requireProblem(t *testing.T, token string, err error) *Problem {
	t.Helper()
	require.Empty(t, token)
	p, ok := err.(*Problem) //nolint:errorlint // the client returns it bare
	require.True(t, ok, "%T: %v", err, err)
	return p
}

// requireShowable holds a text to what may be shown of one from outside.
func requireShowable(t *testing.T, text string) {
	t.Helper()
	require.LessOrEqual(t, len(text), maxDetail+len("…"))
	require.True(t, utf8.ValidString(text), "%q", text)
	require.Equal(t, -1, strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), "%q holds characters that cannot be seen", text)
}

// An answer that never ends must not fill the memory, however little of it there
// is on the wire.
func TestAnAnswerIsReadNoFurtherThanItsBound(t *testing.T) {
	beyond := append([]byte(`{"access_token":"T","expires_in":7200}`), bytes.Repeat([]byte(" "), maxAnswer)...)
	noise := make([]byte, maxAnswer+1)
	_, _ = rand.Read(noise)
	for name, send := range map[string]func(w http.ResponseWriter) error{
		"plain": func(w http.ResponseWriter) error {
			_, err := w.Write(beyond)
			return err
		},
		"compressed": func(w http.ResponseWriter) error {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, err := z.Write(noise) // as it is sent it is beyond the bound, too
			return errors.Join(err, z.Flush())
		},
	} {
		t.Run(name, func(t *testing.T) {
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = errors.Join(send(w), http.NewResponseController(w).Flush()) // the client may be gone
				<-r.Context().Done()                                            // without an end
			})
			overPipe(t, handler, func(t *testing.T, c *Client) {
				start := time.Now()
				g, err := ask(t.Context(), c, testEndpoint(), false)
				require.Equal(t, ClassAnswer, requireProblem(t, g, err).Class)
				require.Zero(t, time.Since(start), "the rest is not waited for")
			})
		})
	}
}

func TestRefusalsTellTheRequestID(t *testing.T) {
	const rid = "65f0a1b2-0c3d4e5f-61728394"
	for errmsg, want := range map[string]string{
		"invalid appid rid: " + rid:                         rid,
		"invalid appid, rid: " + rid:                        rid,
		"invalid appid, rid: 65f0a1b2":                      "65f0a1b2",
		"invalid appid rid:" + rid:                          rid,
		"invalid appid RID: " + rid:                         rid,
		"invalid appid hint: [x] rid: " + rid:               rid,
		"invalid appid (rid: " + rid + ")":                  rid,
		"invalid appid rid: " + rid + ".":                   rid,
		"invalid appid rid : " + rid:                        rid,
		"invalid appid rid=" + rid:                          rid,
		"rid: " + rid + ", invalid appid":                   rid,
		"invalid appid\nrid:\t" + rid:                       rid,
		"invalid code, hints: [ req_id: eFEbR7yFe-gjd.pA ]": "eFEbR7yFe-gjd.pA",
		"invalid code, req_id=eFEbR7yFe":                    "eFEbR7yFe",
		"invalid appid hint: [Sj8aFA0461age6!]":             "Sj8aFA0461age6!",
		"invalid appid":                                     "",
		"the grid: 12 is invalid":                           "",
		"":                                                  "",
	} {
		t.Run(errmsg, func(t *testing.T) {
			for _, errcode := range []int{40013, 40164, 12345} {
				overPipe(t, refusing(errcode, errmsg), func(t *testing.T, c *Client) {
					g, err := ask(t.Context(), c, testEndpoint(), false)
					p := requireProblem(t, g, err)
					require.Equal(t, want, p.RID)
					require.Equal(t, errcode, p.Errcode)
					if strings.Contains(errmsg, "\n") {
						require.Equal(t, withheld, p.Errmsg)
					} else {
						require.Equal(t, errmsg, p.Errmsg)
					}
					require.Contains(t, p.Message(), fmt.Sprintf("errcode %d", errcode))
					require.Equal(t, want != "", strings.Contains(p.OperatorError(), ", rid "+want+","), p.OperatorError())
					if want != "" { // it opens the record of the call, which holds the secret
						require.NotContains(t, p.Error(), want)
					}
					if errmsg != "" {
						require.NotContains(t, p.Error(), errmsg)
					}
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
				overPipe(t, refusing(errcode, errmsg), func(t *testing.T, c *Client) {
					g, err := ask(t.Context(), c, testEndpoint(), false)
					p := requireProblem(t, g, err)
					require.Equal(t, want, p.IP)
					require.Equal(t, want != "", strings.Contains(p.Message(), ", caller's IP "+want), p.Message())
				})
			}
		})
	}
}

func TestTextsFromOutsideAreShortAndPlain(t *testing.T) {
	for name, c := range map[string]struct{ errmsg, shown string }{
		"line ends":              {"first\r\nsecond\tthird", withheld},
		"terminal sequences":     {"\x1b[31mred\x1b[0m \u009b31mred \x7f\x00", withheld},
		"turned around":          {"a\u202egpj\u2066.exe\u200b\u2028z\ufeff", withheld},
		"very long":              {strings.Repeat("long ", 10_000), "long long"},
		"very long in Chinese":   {strings.Repeat("系统繁忙", 5_000), "系统繁忙系统"},
		"a very long request ID": {"odd rid: " + strings.Repeat("0123abcd-", 1_000) + "0", "odd rid"},
		"a very long IP":         {"odd ip " + strings.Repeat("1.", 10_000) + "1", "odd ip"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, errcode := range []int{12345, 40013, 40164} {
				overPipe(t, refusing(errcode, c.errmsg), func(t *testing.T, cl *Client) {
					g, err := ask(t.Context(), cl, testEndpoint(), false)
					p := requireProblem(t, g, err)
					for _, text := range []string{p.Detail, p.RID, p.IP, p.Errmsg} {
						requireShowable(t, text)
					}
					require.Contains(t, p.Errmsg, c.shown)
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
				overPipe(t, refusing(errcode, errmsg), func(t *testing.T, c *Client) {
					e := testEndpoint()
					e.Proxy = "http://user:" + url.QueryEscape(password) + "@127.0.0.1:3128"
					g, err := ask(t.Context(), c, e, false)
					p := requireProblem(t, g, err)
					require.Equal(t, errcode, p.Errcode)
					require.NotContains(t, p.OperatorError(), testSecret[:8])
					for _, text := range []string{p.Error(), p.RID, p.IP, p.Detail} {
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
				overPipe(t, handler, func(t *testing.T, c *Client) {
					e := testEndpoint()
					e.Timeout = timeout
					start := time.Now()
					g, err := ask(t.Context(), c, e, false)
					p := requireProblem(t, g, err)
					require.Equal(t, timeout, time.Since(start))
					require.Equal(t, ClassUnreachable, p.Class)
					require.Equal(t, "no answer within "+timeout.String(), p.Detail)
				})
			})
		}
	}
	t.Run("an answer in time is taken", func(t *testing.T) {
		overSim(t, func(t *testing.T, c *Client, sim *wechatsim.Sim) {
			sim.SetLatency(4900 * time.Millisecond)
			_, err := ask(t.Context(), c, testEndpoint(), false)
			require.NoError(t, err)
		})
	})
}

func TestACancelledCallIsPassedOnAsCancelled(t *testing.T) {
	errClosing := errors.New("the mount is closing")
	t.Run("while WeChat is waited for", func(t *testing.T) {
		overSim(t, func(t *testing.T, c *Client, sim *wechatsim.Sim) {
			sim.Inject(wechatsim.Fault{Kind: "hang"})
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(errClosing) })
			start := time.Now()
			g, err := ask(ctx, c, testEndpoint(), false)
			require.Empty(t, g)
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
		overPipe(t, handler, func(t *testing.T, c *Client) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			g, err := ask(ctx, c, testEndpoint(), false)
			require.Empty(t, g)
			require.Equal(t, context.Canceled, err)
		})
	})
	t.Run("before it begins", func(t *testing.T) {
		overSim(t, func(t *testing.T, c *Client, sim *wechatsim.Sim) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			g, err := ask(ctx, c, testEndpoint(), false)
			require.Empty(t, g)
			require.Equal(t, context.Canceled, err)
			require.Empty(t, sim.Calls(""))
		})
	})
}

func TestCallsOneAfterTheOtherUseOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pipe := wechatsim.NewPipe()
		defer newSim().Serve(pipe)()
		dialled := 0
		c := &Client{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialled++
			return pipe.DialContext(ctx, network, addr)
		}}
		defer c.Close()
		for range 5 {
			_, err := ask(t.Context(), c, testEndpoint(), false)
			require.NoError(t, err)
			time.Sleep(idleTimeout / 2)
		}
		require.Equal(t, 1, dialled)
		time.Sleep(2 * idleTimeout) // the connection is given up before the server does so
		_, err := ask(t.Context(), c, testEndpoint(), false)
		require.NoError(t, err)
		require.Equal(t, 2, dialled)
	})
}

// A flood of logins that WeChat does not answer must not take the connections of the
// token calls.
func TestCallsApartHaveConnectionsOfTheirOwn(t *testing.T) {
	overSim(t, func(t *testing.T, c *Client, _ *wechatsim.Sim) {
		call := func(apart bool, ways int) {
			r := tokenRequest(testAppID, testSecret, false)
			r.Apart = apart
			_, err := Call(t.Context(), c, testEndpoint(), r, func(Envelope) (struct{}, *Problem) { return struct{}{}, nil })
			require.NoError(t, err)
			require.Equal(t, ways, c.Ways())
		}
		call(false, 1)
		call(true, 2)
		call(true, 2)
		call(false, 2)
	})
}

func TestEveryCallIsObservedOnce(t *testing.T) {
	overSim(t, func(t *testing.T, c *Client, sim *wechatsim.Sim) {
		var seen []Observed
		c.Observe = func(o Observed) { seen = append(seen, o) }
		sim.SetLatency(100 * time.Millisecond)
		_, err := ask(t.Context(), c, testEndpoint(), false)
		require.NoError(t, err)
		for _, fault := range []wechatsim.Fault{{Kind: "errcode", Errcode: 45009}, {Kind: "hang"}, {Kind: "notoken"}} {
			sim.Inject(fault)
			_, err := ask(t.Context(), c, testEndpoint(), false)
			require.Error(t, err)
			sim.ClearFaults()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err = ask(ctx, c, testEndpoint(), false)
		require.Equal(t, context.DeadlineExceeded, err)
		const took = 100 * time.Millisecond
		require.Equal(t, []Observed{
			{wechatsim.APIToken, 0, "ok", took},
			{wechatsim.APIToken, 45009, "quota", took},
			{wechatsim.APIToken, 0, "unreachable", 5 * time.Second},
			{wechatsim.APIToken, 0, "undocumented answer", took},
			{wechatsim.APIToken, 0, "cancelled", 50 * time.Millisecond},
		}, seen)
	})
}

// Two answers of platforms may differ in every errcode: the rules come with the request.
func TestTheRulesOfARefusalAreThoseOfItsPlatform(t *testing.T) {
	r := tokenRequest(testAppID, testSecret, true)
	r.Confidential = []string{"suite_ticket"}
	r.Rule = func(errcode int) (Rule, bool) { return Rule{Class: ClassTransient, Meaning: "wait"}, errcode == 40013 }
	for raw, want := range map[string]Problem{
		`{"errcode":40013,"errmsg":"invalid corpid, hint: [1470123456789012345678901], from ip: 1.2.3.4"}`: {
			Rule: Rule{Class: ClassTransient, Meaning: "wait"}, Errcode: 40013,
			RID: "1470123456789012345678901", Errmsg: "invalid corpid, hint: [1470123456789012345678901], from ip: 1.2.3.4",
		},
		`{"errcode":-1,"errmsg":"no"}`:                    {Rule: RuleAnswer, Detail: "an errcode that is not documented", Errcode: -1, Errmsg: "no", HadNoEffect: true},
		`{"errcode":-1,"errmsg":"no","suite_ticket":"T"}`: {Rule: RuleAnswer, Detail: "an errcode that is not documented", Errcode: -1},
		`{"errcode":-1,"errmsg":"no","suite_ticket":""}`:  {Rule: RuleAnswer, Detail: "an errcode that is not documented", Errcode: -1, Errmsg: "no", HadNoEffect: true},
	} {
		fields, p := r.Parse(http.StatusOK, []byte(raw))
		require.Nil(t, fields)
		require.Equal(t, &want, p)
	}
}
