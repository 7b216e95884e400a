package wechatsim_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// answered is what a client sees of a call, decoded as far as it goes.
type answered struct {
	status int
	header http.Header
	body   string
	fields map[string]json.RawMessage // nil if the body is not JSON
	err    error
}

// force makes a forced call that may end in any way; redirects are not followed.
func (p *platform) force() answered {
	p.t.Helper()
	p.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	var got answered
	p.client.Transport = keepHeader{p.client.Transport, &got.header}
	defer func() { p.client.Transport = p.client.Transport.(keepHeader).RoundTripper }()
	got.status, got.body, got.err = p.exchange(p.t.Context(), "POST", "/cgi-bin/stable_token", callBody(true))
	if json.Unmarshal([]byte(got.body), &got.fields) != nil {
		got.fields = nil
	}
	return got
}

// keepHeader keeps the header of the last answer.
type keepHeader struct {
	http.RoundTripper
	header *http.Header
}

func (k keepHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := k.RoundTripper.RoundTrip(r)
	if err == nil {
		*k.header = resp.Header
	}
	return resp, err
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
	errmsgIs := func(pattern string) func(answered) bool {
		return func(got answered) bool { return regexp.MustCompile(pattern).MatchString(text(got, "errmsg")) }
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
		{"field of its own", wechatsim.Fault{Kind: "field", Field: "scope", Value: `[1]`}, func(got answered) bool {
			return strings.HasSuffix(got.body, `,"expires_in":7200,"scope":[1]}`)
		}, true},
		{"field left out", wechatsim.Fault{Kind: "field", Field: "expires_in"}, expiresIn(``), true},
		{"quoted", wechatsim.Fault{Kind: "quoted"}, expiresIn(`"7200"`), true},
		{"quoted errcode", wechatsim.Fault{Kind: "quoted", Errcode: -1, Errmsg: "odd"}, func(got answered) bool {
			return got.body == `{"errcode":"-1","errmsg":"odd"}`
		}, false},
		{"bom", wechatsim.Fault{Kind: "bom"}, func(got answered) bool {
			return strings.HasPrefix(got.body, "\xef\xbb\xbf{\"access_token\":\"")
		}, true},
		{"plain", wechatsim.Fault{Kind: "plain"}, func(got answered) bool {
			return got.header.Get("Content-Type") == "text/plain" && text(got, "access_token") != ""
		}, true},
		{"raw", wechatsim.Fault{Kind: "raw", Status: 201, Header: map[string]string{"X-Odd": "yes"}, Body: "{"}, func(got answered) bool {
			return got.status == 201 && got.body == "{" && got.header.Get("X-Odd") == "yes" && got.header.Get("Content-Type") == ""
		}, false},
		{"raw by default", wechatsim.Fault{Kind: "raw"}, func(got answered) bool { return got.status == 200 && got.body == "" }, false},
		{"echo", wechatsim.Fault{Kind: "echo"}, func(got answered) bool {
			return string(got.fields["errcode"]) == "50000" && strings.Contains(text(got, "errmsg"), "\n"+secret+"\n")
		}, false},
		{"echo with a status", wechatsim.Fault{Kind: "echo", Status: 502}, func(got answered) bool {
			return got.status == 502 && got.fields == nil && strings.Contains(got.body, "\n"+secret+"\n")
		}, false},
		{"hint for a rid", wechatsim.Fault{Kind: "errcode", Errcode: 40001, Trace: "hint"}, errmsgIs(`^invalid credential, .* hint: \[[0-9A-V]{13}\]$`), false},
		{"req_id for a rid", wechatsim.Fault{Kind: "errcode", Errcode: 40001, Trace: "req_id"}, errmsgIs(`^invalid credential, .*, hints: \[ req_id: [0-9A-V]{13} \]$`), false},
		{"none for a rid", wechatsim.Fault{Kind: "errcode", Errcode: 40002, Trace: "none"}, errmsgIs(`^invalid grant_type$`), false},
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
	t.Run("notoken leaves out what a login is for", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.Inject(wechatsim.Fault{API: wechatsim.APICode2Session, Kind: "notoken"})
			if got := p.login(p.Mint(appid, wechatsim.Code{}).Code); got.text("session_key") == "" || len(got) != 1 {
				p.t.Errorf("got %v", got)
			}
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

func TestFaultsStrikeByAPI(t *testing.T) {
	rules := []struct {
		name, api    string
		token, login int // the errcodes of a call of each
	}{
		{"stable_token unless they name another", "", 50002, 0},
		{"the one that they name", wechatsim.APICode2Session, 0, 50002},
		{"every one if they say so", wechatsim.AllAPIs, 50002, 50002},
		{"no other", wechatsim.APITicket, 0, 0},
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			inBubble(t, wechatsim.Account{}, func(p *platform) {
				p.Inject(wechatsim.Fault{API: r.api, AppID: appid, Kind: "errcode", Errcode: 50002})
				if got := p.normal().Errcode; got != r.token {
					p.t.Errorf("stable_token: errcode %d; want %d", got, r.token)
				}
				p.wantAnswer(p.login(p.Mint(appid, wechatsim.Code{}).Code), r.login)
			})
		})
	}
	t.Run("calls with a token by the token's account", func(t *testing.T) {
		inBubble(t, wechatsim.Account{}, func(p *platform) {
			p.SetAccount("wxother", wechatsim.Account{Secret: secret})
			p.Inject(wechatsim.Fault{API: wechatsim.APITicket, AppID: "wxother", Kind: "errcode", Errcode: 48001})
			p.wantTicket(p.ticket(p.ForceOutside(appid), "jsapi"))
			p.wantAnswer(p.ticket(p.ForceOutside("wxother"), "jsapi"), 48001)
			if calls := p.CallsOf(wechatsim.APITicket, "wxother"); len(calls) != 1 || calls[0].Errcode != 48001 {
				p.t.Errorf("recorded %+v", calls)
			}
		})
	})
}

func TestFaultsThatMakeNoSense(t *testing.T) {
	for name, fault := range map[string]wechatsim.Fault{
		"no kind":          {},
		"an unknown kind":  {Kind: "hangs"},
		"an unknown mode":  {Kind: "hang", Mode: "force"},
		"no errcode":       {Kind: "errcode"},
		"no HTTP status":   {Kind: "status", Status: 42},
		"no JSON":          {Kind: "expires_in", ExpiresIn: "soon"},
		"negative times":   {Kind: "hang", Times: -1},
		"an unknown API":   {Kind: "hang", API: "token"},
		"an unknown trace": {Kind: "errcode", Errcode: 1, Trace: "id"},
		"no field":         {Kind: "field"},
		"no JSON value":    {Kind: "field", Field: "scope", Value: "x"},
		"a negative hang":  {Kind: "hang", Hang: -1},
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
