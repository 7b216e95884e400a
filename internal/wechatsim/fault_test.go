package wechatsim_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// answered is what a client sees of a call, decoded as far as it goes.
type answered struct {
	status int
	body   string
	fields map[string]json.RawMessage // nil if the body is not JSON
	err    error
}

// force makes a forced call that may end in any way; redirects are not followed.
func (p *platform) force() answered {
	p.t.Helper()
	p.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	var got answered
	got.status, got.body, got.err = p.exchange(p.t.Context(), "POST", "/cgi-bin/stable_token", callBody(true))
	if json.Unmarshal([]byte(got.body), &got.fields) != nil {
		got.fields = nil
	}
	return got
}

func TestFaults(t *testing.T) {
	text := func(got answered, field string) string {
		var s string
		_ = json.Unmarshal(got.fields[field], &s)
		return s
	}
	isPage := func(got answered, status int) bool {
		return got.err == nil && got.status == status && got.fields == nil && strings.HasPrefix(got.body, "<html>")
	}
	expiresIn := func(raw string) func(answered) bool {
		return func(got answered) bool {
			return got.err == nil && text(got, "access_token") != "" && string(got.fields["expires_in"]) == raw
		}
	}
	faults := []struct {
		name   string
		fault  wechatsim.Fault
		seen   func(answered) bool
		issued bool // the work was done: the old token is dead
	}{
		{"errcode with a text of the platform's", wechatsim.Fault{Kind: "errcode", Errcode: -1}, func(got answered) bool {
			return string(got.fields["errcode"]) == "-1" && strings.HasPrefix(text(got, "errmsg"), "system error rid: ")
		}, false},
		{"errcode with a text of its own", wechatsim.Fault{Kind: "errcode", Errcode: 12345, Errmsg: "odd"}, func(got answered) bool {
			return got.body == `{"errcode":12345,"errmsg":"odd"}`
		}, false},
		{"errcode that names the IP", wechatsim.Fault{Kind: "errcode", Errcode: 61004}, func(got answered) bool {
			return strings.Contains(text(got, "errmsg"), "requestIP: 127.0.0.1 rid: ")
		}, false},
		{"status", wechatsim.Fault{Kind: "status", Status: 503}, func(got answered) bool { return isPage(got, 503) }, false},
		{"status by default", wechatsim.Fault{Kind: "status"}, func(got answered) bool { return isPage(got, 500) }, false},
		{"redirect", wechatsim.Fault{Kind: "redirect"}, func(got answered) bool { return got.status == 307 }, false},
		{"redirect with another status", wechatsim.Fault{Kind: "redirect", Status: 302}, func(got answered) bool { return got.status == 302 }, false},
		{"notjson", wechatsim.Fault{Kind: "notjson"}, func(got answered) bool { return isPage(got, 200) }, false},
		{"reset", wechatsim.Fault{Kind: "reset"}, func(got answered) bool { return errors.Is(got.err, io.EOF) }, false},
		{"hang", wechatsim.Fault{Kind: "hang", Hang: time.Minute}, func(got answered) bool { return errors.Is(got.err, io.EOF) }, false},
		{"lost", wechatsim.Fault{Kind: "lost"}, func(got answered) bool { return errors.Is(got.err, io.EOF) }, true},
		{"truncate", wechatsim.Fault{Kind: "truncate"}, func(got answered) bool {
			return errors.Is(got.err, io.ErrUnexpectedEOF) && strings.HasPrefix(got.body, `{"access_token":"`)
		}, true},
		{"oversize", wechatsim.Fault{Kind: "oversize"}, func(got answered) bool {
			return got.err == nil && len(got.body) > 1<<20 && text(got, "access_token") != ""
		}, true},
		{"notoken", wechatsim.Fault{Kind: "notoken"}, func(got answered) bool { return got.body == `{"expires_in":7200}` }, true},
		{"expires_in of nothing", wechatsim.Fault{Kind: "expires_in", ExpiresIn: `0`}, expiresIn(`0`), true},
		{"expires_in of text", wechatsim.Fault{Kind: "expires_in", ExpiresIn: `"7200"`}, expiresIn(`"7200"`), true},
		{"expires_in left out", wechatsim.Fault{Kind: "expires_in"}, expiresIn(``), true},
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(p *platform) {
				old := p.wantNew(p.normal(), 7200)
				// The transport repeats calls on connections that it has used before.
				p.client.CloseIdleConnections()
				f.fault.Times = 1
				p.Inject(f.fault)
				start := time.Now()
				got := p.force()
				if !f.seen(got) {
					p.t.Errorf("HTTP %d, %d bytes, error %v", got.status, len(got.body), got.err)
				}
				if took := time.Since(start); took != f.fault.Hang {
					p.t.Errorf("took %s", took)
				}
				call := p.Calls(appid)[1]
				if call.Fault != f.fault.Kind || call.Issued != f.issued || call.Errcode != f.fault.Errcode {
					p.t.Errorf("recorded %+v", call)
				}
				if f.issued {
					p.wantChecked(old, 40001)
					p.wantToken(p.forced(), p.Current(appid), 7200-int(f.fault.Hang/time.Second))
				} else {
					p.wantChecked(old, 0)
					p.wantNew(p.forced(), 7200, old)
				}
			})
		})
	}

	t.Run("sametoken answers a forced call with the current token", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			token := p.wantNew(p.normal(), 7200)
			p.Inject(wechatsim.Fault{Kind: "sametoken"})
			p.wantToken(p.forced(), token, 7200)
			p.ClearFaults()
			p.wantNew(p.forced(), 7200, token) // the other one did not count
		})
	})
	t.Run("hang without a duration ends when the client gives up", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.Inject(wechatsim.Fault{Kind: "hang"})
			p.wantTimeout(5 * second)
		})
	})
	t.Run("hang with a duration ends when the client gives up sooner", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.Inject(wechatsim.Fault{Kind: "hang", Hang: time.Hour})
			p.wantTimeout(5 * second)
		})
	})
	t.Run("a redirect that is followed comes back to the platform", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.Inject(wechatsim.Fault{Kind: "redirect", Times: 1})
			p.wantNew(p.normal(), 7200)
			if got := len(p.Calls(appid)); got != 2 {
				p.t.Errorf("%d calls; want 2", got)
			}
		})
	})
}

func TestFaultsStrike(t *testing.T) {
	busy := func(f wechatsim.Fault) wechatsim.Fault {
		f.Kind, f.Errcode = "errcode", -1
		return f
	}
	rules := []struct {
		name   string
		faults []wechatsim.Fault
		normal []int // errcodes of three normal calls
		forced []int // errcodes of the three forced calls that follow
	}{
		{"every call", []wechatsim.Fault{busy(wechatsim.Fault{})}, []int{-1, -1, -1}, []int{-1, -1, -1}},
		{"as often as they say", []wechatsim.Fault{busy(wechatsim.Fault{Times: 2})}, []int{-1, -1, 0}, []int{0, 0, 0}},
		{"only calls of the account that they name", []wechatsim.Fault{busy(wechatsim.Fault{AppID: "wxother"})}, []int{0, 0, 0}, []int{0, 0, 0}},
		{"only normal calls", []wechatsim.Fault{busy(wechatsim.Fault{Mode: "normal"})}, []int{-1, -1, -1}, []int{0, 0, 0}},
		{"only forced calls", []wechatsim.Fault{busy(wechatsim.Fault{Mode: "forced", Times: 1})}, []int{0, 0, 0}, []int{-1, 0, 0}},
		{"in the order in which they were injected", []wechatsim.Fault{
			busy(wechatsim.Fault{AppID: appid, Times: 1}),
			{Kind: "errcode", Errcode: 50002, Times: 1},
			{Kind: "errcode", Errcode: 50004, Mode: "forced"},
		}, []int{-1, 50002, 0}, []int{50004, 50004, 50004}},
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(p *platform) {
				for _, f := range r.faults {
					p.Inject(f)
				}
				for i, want := range append(r.normal, r.forced...) {
					call := p.normal
					if i >= len(r.normal) {
						call = p.forced
					}
					if got := call().Errcode; got != want {
						p.t.Errorf("call %d: got errcode %d; want %d", i, got, want)
					}
				}
				p.ClearFaults()
				if got := p.normal().Errcode; got != 0 {
					p.t.Errorf("without faults: errcode %d", got)
				}
			})
		})
	}
}

func TestFaultsThatMakeNoSense(t *testing.T) {
	for name, fault := range map[string]wechatsim.Fault{
		"no kind":         {},
		"an unknown kind": {Kind: "hangs"},
		"an unknown mode": {Kind: "hang", Mode: "force"},
		"no errcode":      {Kind: "errcode"},
		"no HTTP status":  {Kind: "status", Status: 42},
		"no JSON":         {Kind: "expires_in", ExpiresIn: "soon"},
		"negative times":  {Kind: "hang", Times: -1},
		"a negative hang": {Kind: "hang", Hang: -1},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("Inject took it")
				}
			}()
			wechatsim.New().Inject(fault)
		})
	}
}

func TestFaultsOnSockets(t *testing.T) {
	t.Run("reset is a TCP reset", func(t *testing.T) {
		p := onLoopback(t)
		p.Inject(wechatsim.Fault{Kind: "reset"})
		if got := p.force(); !errors.Is(got.err, syscall.ECONNRESET) {
			t.Errorf("got %v; want a reset", got.err)
		}
	})
	t.Run("lost is the end of the connection", func(t *testing.T) {
		p := onLoopback(t)
		p.Inject(wechatsim.Fault{Kind: "lost"})
		if got := p.force(); !errors.Is(got.err, io.EOF) || p.Current(appid) == "" {
			t.Errorf("got %v; want EOF and a new token", got.err)
		}
	})
}
