package wechatsim_test

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

const (
	second = time.Second
	life   = 7200 * second
	ms     = time.Millisecond
)

func TestNormalMode(t *testing.T) {
	behaviours := []struct {
		name    string
		account wechatsim.Account
		test    func(*platform)
	}{
		{
			name: "the same token with its remaining seconds, while it lives",
			test: func(p *platform) {
				token := p.wantNew(p.normal(), 7200)
				if len(token) != 512 {
					p.t.Errorf("the token has %d characters", len(token))
				}
				time.Sleep(1500 * ms)
				p.wantToken(p.normal(), token, 7198)
				time.Sleep(life - 300*second - 1500*ms)
				p.wantToken(p.normal(), token, 300)
			},
		},
		{
			name: "a new token within the last five minutes, in which both work",
			test: func(p *platform) {
				old := p.wantNew(p.normal(), 7200)
				time.Sleep(life - 300*second + ms)
				token := p.wantNew(p.normal(), 7200, old)
				p.wantToken(p.normal(), token, 7200)
				time.Sleep(300*second - 2*ms)
				p.wantChecked(old, 0)
				p.wantChecked(token, 0)
				time.Sleep(ms)
				p.wantChecked(old, 42001)
				p.wantChecked(token, 0)
			},
		},
		{
			name: "a new token after the end of the last one",
			test: func(p *platform) {
				old := p.wantNew(p.normal(), 7200)
				time.Sleep(life)
				p.wantChecked(old, 42001)
				p.wantNew(p.normal(), 7200, old)
			},
		},
		{
			name: "one token for all parallel calls",
			test: func(p *platform) {
				var calls sync.WaitGroup
				replies := make([]reply, 20)
				for i := range replies {
					calls.Go(func() { replies[i] = p.normal() })
				}
				calls.Wait()
				for _, r := range replies {
					p.wantToken(r, replies[0].Token, 7200)
				}
			},
		},
		{
			name:    "other lifetimes, overlaps and lengths as they are set",
			account: wechatsim.Account{Lifetime: 20 * second, Overlap: 5 * second, TokenLength: 700},
			test: func(p *platform) {
				old := p.wantNew(p.normal(), 20)
				if len(old) != 700 {
					p.t.Errorf("the token has %d characters", len(old))
				}
				time.Sleep(15 * second)
				p.wantToken(p.normal(), old, 5)
				p.Update(appid, func(a *wechatsim.Account) { a.Lifetime = 10 * second })
				time.Sleep(ms)
				token := p.wantNew(p.normal(), 10, old)
				time.Sleep(5*second - 2*ms)
				p.wantChecked(old, 0)
				time.Sleep(ms)
				p.wantChecked(old, 42001)
				p.wantChecked(token, 0)
			},
		},
		{
			name:    "no overlap where it is switched off",
			account: wechatsim.Account{Overlap: -1},
			test: func(p *platform) {
				token := p.wantNew(p.normal(), 7200)
				time.Sleep(life - second)
				p.wantToken(p.normal(), token, 1)
			},
		},
	}
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) { inBubble(t, b.account, b.test) })
	}
}

func TestForcedMode(t *testing.T) {
	behaviours := []struct {
		name    string
		account wechatsim.Account
		test    func(*platform)
	}{
		{
			name: "replaces the token, which dies at once",
			test: func(p *platform) {
				old := p.wantNew(p.normal(), 7200)
				token := p.wantNew(p.forced(), 7200, old)
				p.wantChecked(old, 40001)
				p.wantChecked(token, 0)
				p.wantToken(p.normal(), token, 7200)
				time.Sleep(life)
				p.wantChecked(old, 40001)
				p.wantChecked(token, 42001)
			},
		},
		{
			name: "kills both tokens of an overlap",
			test: func(p *platform) {
				first := p.wantNew(p.normal(), 7200)
				time.Sleep(life - 200*second)
				second := p.wantNew(p.normal(), 7200, first)
				p.wantNew(p.forced(), 7200, first, second)
				p.wantChecked(first, 40001)
				p.wantChecked(second, 40001)
			},
		},
		{
			name: "refreshes nothing sooner than 30 s after the last forced refresh",
			test: func(p *platform) {
				token := p.wantNew(p.forced(), 7200)
				time.Sleep(30*second - ms)
				p.wantToken(p.forced(), token, 7170)
				p.wantChecked(token, 0)
				time.Sleep(ms)
				p.wantNew(p.forced(), 7200, token)
				p.wantChecked(token, 40001)
			},
		},
		{
			name:    "refreshes nothing so soon in the overlap either, where a normal call does",
			account: wechatsim.Account{Lifetime: 20 * second, Overlap: 5 * second},
			test: func(p *platform) {
				token := p.wantNew(p.forced(), 20)
				time.Sleep(16 * second)
				p.wantToken(p.forced(), token, 4)
				p.wantChecked(token, 0)
				p.wantNew(p.normal(), 20, token)
				p.wantChecked(token, 0)
			},
		},
		{
			name: "issues a token where none lives, however soon",
			test: func(p *platform) {
				old := p.wantNew(p.forced(), 7200)
				p.ExpireAll(appid)
				p.wantNew(p.forced(), 7200, old)
			},
		},
		{
			name: "is refused with 45009 the 21st time within 24 hours",
			test: func(p *platform) {
				var token string
				for range 20 {
					token = p.wantNew(p.forced(), 7200, token)
					p.wantToken(p.forced(), token, 7200) // too soon: does not count
					time.Sleep(30 * second)
				}
				p.wantErrcode(p.forced(), 45009)
				p.wantChecked(token, 0)
				p.wantToken(p.normal(), token, 7170)
				time.Sleep(24*time.Hour - 20*30*second - ms)
				p.wantErrcode(p.forced(), 45009)
				time.Sleep(ms)
				p.wantNew(p.forced(), 7200, token)
			},
		},
		{
			name:    "has other limits as they are set",
			account: wechatsim.Account{ForcedPerDay: 2, ForcedSpacing: second},
			test: func(p *platform) {
				first := p.wantNew(p.forced(), 7200)
				time.Sleep(second)
				p.wantNew(p.forced(), 7200, first)
				time.Sleep(second)
				p.wantErrcode(p.forced(), 45009)
			},
		},
		{
			name:    "in the reported variant leaves the old token alive during the overlap",
			account: wechatsim.Account{ForceKeepsOld: true},
			test: func(p *platform) {
				old := p.wantNew(p.normal(), 7200)
				p.wantNew(p.forced(), 7200, old)
				time.Sleep(300*second - ms)
				p.wantChecked(old, 0)
				time.Sleep(ms)
				p.wantChecked(old, 40001)
			},
		},
		{
			name:    "in the reported variant prolongs no life",
			account: wechatsim.Account{ForceKeepsOld: true},
			test: func(p *platform) {
				old := p.wantNew(p.normal(), 7200)
				time.Sleep(life - second)
				p.wantNew(p.forced(), 7200, old)
				p.wantChecked(old, 0)
				time.Sleep(second)
				p.wantChecked(old, 42001)
			},
		},
		{
			name: "leaves an expired token expired",
			test: func(p *platform) {
				old := p.wantNew(p.normal(), 7200)
				time.Sleep(life)
				p.wantNew(p.forced(), 7200, old)
				p.wantChecked(old, 42001)
			},
		},
		{
			name:    "twice kills a leaked token for certain, in the reported variant too",
			account: wechatsim.Account{ForceKeepsOld: true},
			test: func(p *platform) {
				leaked := p.wantNew(p.normal(), 7200)
				first := p.wantNew(p.forced(), 7200, leaked)
				time.Sleep(30 * second)
				p.wantNew(p.forced(), 7200, leaked, first)
				p.wantChecked(leaked, 40001)
				p.wantChecked(first, 0)
			},
		},
	}
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) { inBubble(t, b.account, b.test) })
	}
}

func TestLimits(t *testing.T) {
	t.Run("10,000 calls a minute, then 45011 until the minute is over", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			token := p.wantNew(p.normal(), 7200)
			p.directly(9_999, token)
			p.wantErrcode(p.normal(), 45011)
			p.wantErrcode(p.forced(), 45011)
			time.Sleep(time.Minute - ms)
			p.wantErrcode(p.normal(), 45011)
			time.Sleep(ms)
			p.wantToken(p.normal(), token, 7140)
		})
	})
	t.Run("as many calls a day as are set, then 45009 until the day is over", func(t *testing.T) {
		inBubble(t, wechatsim.Account{PerDay: 3}, func(p *platform) {
			for range 3 {
				p.wantNew(p.normal(), 7200)
			}
			p.wantErrcode(p.normal(), 45009)
			time.Sleep(24*time.Hour - ms)
			p.wantErrcode(p.normal(), 45009)
			time.Sleep(ms)
			p.wantNew(p.normal(), 7200)
		})
	})
	t.Run("of one account leave the others alone", func(t *testing.T) {
		inBubble(t, wechatsim.Account{PerMinute: 1}, func(p *platform) {
			p.SetAccount("wxother", wechatsim.Account{Secret: secret})
			p.wantNew(p.normal(), 7200)
			p.wantErrcode(p.normal(), 45011)
			other := strings.Replace(callBody(false), appid, "wxother", 1)
			p.wantNew(p.get("POST", "/cgi-bin/stable_token", other), 7200)
		})
	})
}

// directly makes n normal calls past the network, each of which has to be
// answered with the token.
func (p *platform) directly(n int, token string) {
	p.t.Helper()
	r := httptest.NewRequest("POST", "/cgi-bin/stable_token", http.NoBody)
	call := callBody(false)
	for i := range n {
		r.Body = io.NopCloser(strings.NewReader(call))
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"`+token+`"`) {
			p.t.Fatalf("the %d. call is not answered with the token", i+1)
		}
	}
}

func TestRefusals(t *testing.T) {
	call := func(change map[string]any) string {
		fields := map[string]any{"grant_type": "client_credential", "appid": appid, "secret": secret}
		maps.Copy(fields, change)
		return body(fields)
	}
	refusals := []struct {
		name         string
		method, body string // POST and a good call, unless set
		account      wechatsim.Account
		errcode      int
		text         string
	}{
		{name: "an unknown appid", body: call(map[string]any{"appid": "wxunknown"}), errcode: 40013, text: "invalid appid"},
		{name: "an appid in another case", body: call(map[string]any{"appid": strings.ToUpper(appid)}), errcode: 40013, text: "invalid appid"},
		{name: "a wrong secret", body: call(map[string]any{"secret": "wrong"}), errcode: 40125, text: "invalid appsecret"},
		{name: "no appid", body: call(map[string]any{"appid": ""}), errcode: 41002, text: "appid missing"},
		{name: "no secret", body: call(map[string]any{"secret": ""}), errcode: 41004, text: "appsecret missing"},
		{name: "another grant type", body: call(map[string]any{"grant_type": "password"}), errcode: 40002, text: "invalid grant_type"},
		{name: "a GET", method: "GET", errcode: 43002, text: "require POST method"},
		{name: "no body", body: " ", errcode: 47001, text: "data format error"},
		{name: "a form", body: "grant_type=client_credential&appid=" + appid, errcode: 47001, text: "data format error"},
		{name: "a field of the wrong type", body: call(map[string]any{"force_refresh": "true"}), errcode: 47001, text: "data format error"},
		{
			name: "an IP not on the whitelist", account: wechatsim.Account{AllowedIPs: []string{"1.2.3.4"}}, errcode: 40164,
			text: "invalid ip 127.0.0.1 ipv6 ::ffff:127.0.0.1, not in whitelist",
		},
	}
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			inBubble(t, r.account, func(p *platform) {
				if r.method == "" {
					r.method = "POST"
				}
				if r.body == "" {
					r.body = callBody(false)
				}
				got := p.get(r.method, "/cgi-bin/stable_token", r.body)
				p.wantErrcode(got, r.errcode)
				if !strings.HasPrefix(got.Errmsg, r.text) || !strings.Contains(got.Errmsg, "rid: ") {
					p.t.Errorf("errmsg %q; want %q and a rid", got.Errmsg, r.text)
				}
				if calls := p.Calls(""); len(calls) != 1 || calls[0].Errcode != r.errcode || calls[0].Issued {
					p.t.Errorf("recorded %+v", calls)
				}
				if p.Current(appid) != "" {
					p.t.Error("a token was issued")
				}
			})
		})
	}
}

func TestErrorTexts(t *testing.T) {
	const group = `[0-9a-f]{8}`
	t.Run("carry the rid in several forms", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.Inject(wechatsim.Fault{Kind: "errcode", Errcode: 48004})
			for _, form := range []string{
				` rid: ` + group + `-` + group + `-` + group,
				`, rid: ` + group + `-` + group + `-` + group,
				`, rid: ` + group,
			} {
				want := regexp.MustCompile(`^api forbidden for irregularities` + form + `$`)
				if got := p.normal().Errmsg; !want.MatchString(got) {
					p.t.Errorf("got %q; want %s", got, want)
				}
			}
		})
	})
	t.Run("name the IP always in the documented form", func(t *testing.T) {
		want := regexp.MustCompile(`^invalid ip 127\.0\.0\.1 ipv6 ::ffff:127\.0\.0\.1, not in whitelist rid: ` +
			group + `-` + group + `-` + group + `$`)
		inBubble(t, wechatsim.Account{AllowedIPs: []string{"::1", "10.0.0.1"}}, func(p *platform) {
			for range 4 {
				if got := p.normal().Errmsg; !want.MatchString(got) {
					p.t.Errorf("got %q", got)
				}
			}
			p.Update(appid, func(a *wechatsim.Account) { a.AllowedIPs = append(a.AllowedIPs, "127.0.0.1") })
			p.wantNew(p.normal(), 7200)
		})
	})
}

func TestCallerOverIPv6(t *testing.T) {
	sim := wechatsim.New()
	sim.SetAccount(appid, wechatsim.Account{Secret: secret, AllowedIPs: []string{"1.2.3.4"}})
	r := httptest.NewRequest("POST", "/cgi-bin/stable_token", strings.NewReader(callBody(false)))
	r.RemoteAddr = "[2001:db8::1]:4711"
	w := httptest.NewRecorder()
	sim.ServeHTTP(w, r)
	if want := "invalid ip 2001:db8::1 ipv6 2001:db8::1, not in whitelist rid: "; !strings.Contains(w.Body.String(), want) {
		t.Errorf("got %s; want %s", w.Body, want)
	}
}

func TestTokenUse(t *testing.T) {
	inBubble(t, wechatsim.Account{}, func(p *platform) {
		p.wantErrcode(p.use(""), 41001)
		p.wantChecked("never-issued", 40014)
		p.wantChecked(p.wantNew(p.normal(), 7200), 0)
		_, raw, err := p.exchange(p.t.Context(), "GET", "/cgi-bin/getcallbackip?access_token="+p.Current(appid), "")
		if want := `{"ip_list":["127.0.0.1"]}`; err != nil || raw != want {
			p.t.Errorf("got %s, %v; want %s", raw, err, want)
		}
		if len(p.Calls("")) != 1 {
			p.t.Error("the use of a token is recorded as a call for one")
		}
	})
}

func TestOutside(t *testing.T) {
	t.Run("a forced refresh outside replaces the token past all limits", func(t *testing.T) {
		inBubble(t, wechatsim.Account{ForcedPerDay: 1}, func(p *platform) {
			old := p.wantNew(p.forced(), 7200)
			token := p.ForceOutside(appid)
			p.wantChecked(old, 40001)
			p.wantToken(p.normal(), token, 7200)
			if calls := p.Calls(appid); len(calls) != 2 {
				p.t.Errorf("recorded %d calls; want 2", len(calls))
			}
		})
	})
	t.Run("an incident expires every token", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			first := p.wantNew(p.normal(), 7200)
			time.Sleep(life - 100*second)
			second := p.wantNew(p.normal(), 7200, first)
			p.ExpireAll(appid)
			p.wantChecked(first, 42001)
			p.wantChecked(second, 42001)
			if p.Current(appid) != "" {
				p.t.Error("a dead token is current")
			}
			p.wantNew(p.normal(), 7200, first, second)
		})
	})
	t.Run("a new secret leaves the token alone", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			token := p.wantNew(p.normal(), 7200)
			p.SetAccount(appid, wechatsim.Account{Secret: "another"})
			p.wantErrcode(p.normal(), 40125)
			p.wantChecked(token, 0)
			if owner, _ := p.Check(token); owner != appid {
				p.t.Errorf("the token is said to be %q's", owner)
			}
		})
	})
}

func TestRecord(t *testing.T) {
	t.Run("calls are recorded in the order of their arrival, by account", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			start := time.Now().UTC()
			p.forced()
			time.Sleep(second)
			p.Inject(wechatsim.Fault{Kind: "sametoken"})
			p.normal()
			p.get("POST", "/cgi-bin/stable_token", strings.Replace(callBody(false), appid, "wxother", 1))
			want := []wechatsim.Call{
				{Time: start, API: wechatsim.APIToken, AppID: appid, Forced: true, Issued: true},
				{Time: start.Add(second), API: wechatsim.APIToken, AppID: appid, Fault: "sametoken"},
				{Time: start.Add(second), API: wechatsim.APIToken, AppID: "wxother", Fault: "sametoken", Errcode: 40013},
			}
			for id, want := range map[string][]wechatsim.Call{"": want, appid: want[:2], "wxother": want[2:], "wxnone": {}} {
				if got := p.Calls(id); !slices.Equal(got, want) {
					p.t.Errorf("calls of %q: got %v; want %v", id, got, want)
				}
			}
		})
	})
	t.Run("a call can be held on its arrival, before it has any effect", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			arrived, proceed := make(chan wechatsim.Call), make(chan struct{})
			p.OnCall(func(c wechatsim.Call) {
				arrived <- c
				<-proceed
			})
			var calls sync.WaitGroup
			for range 3 {
				calls.Go(func() { p.forced() })
			}
			for range 3 {
				if c := <-arrived; c.AppID != appid || !c.Forced {
					p.t.Errorf("arrived: %+v", c)
				}
			}
			if p.Current(appid) != "" {
				p.t.Error("a held call issued a token")
			}
			close(proceed)
			calls.Wait()
			p.OnCall(nil)
			p.normal()
			for id, want := range map[string]int{"": 3, appid: 3, "wxother": 0} {
				if got := p.MaxInFlight(id); got != want {
					p.t.Errorf("in flight for %q: got %d; want %d", id, got, want)
				}
			}
		})
	})
	t.Run("calls one after the other do not overlap", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			for range 5 {
				p.normal()
			}
			if got := p.MaxInFlight(appid); got != 1 {
				p.t.Errorf("got %d in flight; want 1", got)
			}
		})
	})
}

func TestLatency(t *testing.T) {
	t.Run("holds back every answer", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.SetLatency(3 * second)
			start := time.Now()
			token := p.wantNew(p.normal(), 7200)
			p.wantErrcode(p.use(token), 0)
			if took := time.Since(start); took != 6*second {
				p.t.Errorf("took %s", took)
			}
		})
	})
	t.Run("ends when the client gives up, who misses what was done", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.SetLatency(time.Hour)
			p.wantTimeout(second)
			if p.Current(appid) == "" {
				p.t.Error("no token was issued")
			}
		})
	})
}

// wantTimeout makes a normal call that has to end when the client gives up, at the
// client and at the platform.
func (p *platform) wantTimeout(d time.Duration) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), d)
	defer cancel()
	start := time.Now()
	if _, _, err := p.exchange(ctx, http.MethodPost, "/cgi-bin/stable_token", callBody(false)); err == nil {
		p.t.Error("the call was answered")
	}
	synctest.Wait()
	if took := time.Since(start); took != d {
		p.t.Errorf("took %s; want %s", took, d)
	}
	p.SetLatency(0)
	p.ClearFaults()
	p.normal()
	if got := p.MaxInFlight(appid); got != 1 {
		p.t.Errorf("%d calls in flight; want 1", got)
	}
}
