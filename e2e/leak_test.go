//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/vaulttest"
	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// search drives the engine, keeps every answer, and knows what must not be in it.
type search struct {
	*engine

	mu      sync.Mutex
	answers map[string]string // by the request; what the answer is for is cut out
	inputs  int
}

// secret makes something secret that is hidden: long, and with characters that every
// encoding writes in its own way.
func (s *search) secret() string { return s.hide(random()[:16] + `+/"\&%=<>` + random()[:16]) }

// meant are the fields of an answer that may hold a secret, by the path of the request.
var meant = map[string][]string{
	"token":        {"access_token"},
	"ticket":       {"ticket"},
	"code2session": {"openid", "unionid", "session_key"},
	"oauth2":       {"openid", "unionid", "access_token", "refresh_token"},
	"sign":         {"url"},
}

// send makes a request with a body as it is, and keeps the answer.
func (s *search) send(t *testing.T, method, path, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, s.vault.Address()+"/v1/"+s.path+"/"+path, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	request.Header.Set("X-Vault-Token", s.vault.Token())
	response, err := http.DefaultClient.Do(request)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inputs++
	what := fmt.Sprintf("%d: %s of %s with %d bytes", s.inputs, method, path, len(body))
	if err != nil {
		s.answers[what] = "" // Vault answers nothing to what it cannot read
		return
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	var answer struct {
		Data map[string]any `json:"data"`
	}
	if json.Unmarshal(text, &answer) == nil && response.StatusCode == http.StatusOK {
		area, _, _ := strings.Cut(path, "/")
		for _, field := range meant[area] {
			if value, ok := answer.Data[field].(string); ok {
				quoted, err := json.Marshal(value)
				must(t, err)
				text = bytes.Replace(text, quoted, nil, 1)
			}
		}
	}
	var header strings.Builder
	_ = response.Header.Write(&header) // a builder takes everything
	s.answers[what] = header.String() + string(text)
}

// put sends fields.
func (s *search) put(t *testing.T, path string, data fields) {
	t.Helper()
	body, err := json.Marshal(data)
	must(t, err)
	s.send(t, http.MethodPut, path, string(body))
}

// useAll makes every request that a good client makes of an account, each of which may
// fail.
func (s *search) useAll(t *testing.T, name string, account fields) {
	t.Helper()
	appid := account["appid"].(string)
	s.put(t, "config/"+name, account)
	s.put(t, "config/"+name, with(account, unverified))
	s.put(t, "config/"+name, fields{"max_ttl": 60})
	for _, read := range []string{
		"config/" + name, "token/" + name, "sign/" + name + "?url=" + url.QueryEscape("https://shop.example.com/?code="+s.secret()),
		"ticket/" + name, "ticket/" + name + "?type=wx_card", "status/" + name,
	} {
		s.send(t, http.MethodGet, read, "")
	}
	s.put(t, "refresh/"+name, fields{"rejected_token": s.Current(appid)})
	s.put(t, "refresh/"+name, fields{"rejected_token": s.secret()})
	s.put(t, "code2session/"+name, fields{"js_code": s.secret(), "include_session_key": true})
	s.put(t, "oauth2/"+name, fields{"code": s.secret()})
	s.put(t, "code2session/"+name, fields{"js_code": s.mint(account, wechatsim.Code{}).Code, "include_session_key": true})
	s.put(t, "oauth2/"+name, fields{"code": s.mint(account, wechatsim.Code{API: wechatsim.APIOAuth2}).Code})
	s.put(t, "rotate/"+name, fields{"revoke": true})
	s.put(t, "clear-quota/"+name, fields{})
	s.send(t, http.MethodGet, "token/"+name, "")
	s.send(t, http.MethodGet, "status/"+name, "")
	s.send(t, "LIST", "status/?recursive=true", "")
	s.send(t, http.MethodGet, "metrics", "")
}

// writable are the fields of each path that a request can set, besides those of others.
var writable = map[string][]string{
	"config":       {"appid", "secret", "base_url", "proxy_url", "ca_pem", "request_timeout", "sync_interval", "max_ttl", "verify"},
	"refresh":      {"rejected_token"},
	"code2session": {"js_code", "include_session_key"},
	"oauth2":       {"code"},
	"sign":         {"url"},
	"ticket":       {"type"},
	"rotate":       {"revoke"},
	"clear-quota":  {},
	"token":        {},
	"status":       {},
	"metrics":      {},
	"no-such-path": {},
}

// othersNames are parameters of other paths and of other programs.
var othersNames = []string{"name", "secret", "appsecret", "access_token", "rejected_token", "js_code", "code", "password", "token", "path", "url", "type", "after", "limit", "recursive", "data"}

// misuse sends every kind of value in every field of every path.
func (s *search) misuse(t *testing.T, name string, account fields) {
	t.Helper()
	secret := s.secret()
	quoted, err := json.Marshal(secret)
	must(t, err)
	text := string(quoted)
	inner := text[1 : len(text)-1]
	kinds := []string{
		text, `{"v":` + text + `}`, `[` + text + `]`, `[[{"v":[` + text + `]}]]`, `null`, `true`, `-1`, `1.5`, `1e400`, strings.Repeat("9", 400), `""`,
		`"` + inner + `\n"`, `"` + inner + `\u0000"`, `"\u001b[31m` + inner + `"`, `"\u202e` + inner + `"`, `"\ufffd` + inner + `"`,
		`"` + strings.Repeat(inner, 3000) + `"`, `"http://egress:` + random() + `@` + inner + `"`,
		strings.Repeat("[", 2000) + text + strings.Repeat("]", 2000),
	}
	for path, own := range writable {
		for _, field := range slices.Concat(own, othersNames) {
			for n, value := range kinds {
				if path == "config" && field == "appid" && n == 0 {
					continue // an AppID is no secret, and this is a good one
				}
				data := with(account, unverified)
				switch path {
				case "config":
				case "code2session":
					data = fields{"js_code": secret}
				case "oauth2":
					data = fields{"code": secret}
				default:
					data = fields{}
				}
				delete(data, field)
				rest, err := json.Marshal(data)
				must(t, err)
				body := `{"` + field + `":` + value + `,` + string(rest[1:])
				if len(data) == 0 {
					body = `{"` + field + `":` + value + `}`
				}
				s.send(t, http.MethodPut, path+"/"+name, body)
			}
		}
		// What is not JSON, or says a thing twice.
		for _, body := range []string{
			text, `{"secret":` + text, `{"secret":` + text + `,"secret":{"v":` + text + `}}`, `{"secret":` + text + `}}`,
			`[` + text + `]`, "\xff" + text, `secret=` + url.QueryEscape(secret),
		} {
			s.send(t, http.MethodPut, path+"/"+name, body)
		}
		for _, field := range slices.Concat(own, othersNames) {
			for _, method := range []string{http.MethodGet, "LIST", http.MethodDelete} {
				if method == http.MethodDelete && path == "config" {
					continue
				}
				s.send(t, method, path+"/"+name+"?"+url.Values{field: {secret}}.Encode(), "")
			}
		}
	}
}

// requestURI is where Vault's audit shows the query of a request in the clear, before
// the plugin sees it: a secret does not belong there, as docs/security.md says.
var requestURI = regexp.MustCompile(`"request_uri":"[^"]*"`)

// Whatever comes in and whatever happens: a secret is in no log, no audit file, no list
// of processes, and in no answer but the one that is for it.
func TestNothingSecretIsFoundAnywhere(t *testing.T) {
	v := ownVault(t)
	s := &search{engine: newEngineOn(t, v), answers: map[string]string{}}
	account := func(more fields) fields {
		appid, secret := "wx"+random()[:16], s.secret()
		s.SetAccount(appid, wechatsim.Account{Secret: secret, Bound: true})
		return with(fields{"appid": appid, "secret": secret, "base_url": s.url, "request_timeout": 1}, more)
	}
	good := account(nil)
	s.useAll(t, "good", good)
	s.misuse(t, "good", good)
	// Values of their own may have been stored: it is to work again.
	s.configure(t, "good", good)

	var all sync.WaitGroup
	broken := func(name string, a fields) { all.Go(func() { s.useAll(t, name, a) }) }
	for _, fault := range []wechatsim.Fault{
		{Kind: "errcode", Errcode: 40001},
		{Kind: "errcode", Errcode: 40164},
		{Kind: "errcode", Errcode: -1},
		{Kind: "errcode", Errcode: 45009},
		{Kind: "errcode", Errcode: 12345},
		{Kind: "status", Status: 503},
		{Kind: "status", Status: 404},
		{Kind: "redirect"},
		{Kind: "notjson"},
		{Kind: "echo"},
		{Kind: "echo", Status: 500},
		{Kind: "echoafter"},
		{Kind: "reset"},
		{Kind: "hang"},
		{Kind: "lost"},
		{Kind: "truncate"},
		{Kind: "oversize"},
		{Kind: "notoken"},
		{Kind: "drip"},
		{Kind: "headers"},
		{Kind: "interim"},
		{Kind: "gzip"},
		{Kind: "bom"},
		{Kind: "quoted"},
		{Kind: "sametoken"},
		{Kind: "field", Field: "errcode", Value: "40001"},
		{Kind: "field", Field: "access_token", Value: `"` + s.hide(random()) + `\n"`},
	} {
		a := account(nil)
		fault.API, fault.AppID = wechatsim.AllAPIs, a["appid"].(string)
		if fault.Kind == "errcode" {
			fault.Errmsg = "sent were " + fmt.Sprint(a) + " and " + s.Current(a["appid"].(string)) + " rid: " + a["secret"].(string)
		}
		s.Inject(fault)
		broken(fmt.Sprintf("fault/%s-%d-%d-%s", fault.Kind, fault.Status, max(fault.Errcode, 0), strings.ReplaceAll(fault.Field+"x", "_", "")), a)
	}
	for _, status := range []int{http.StatusOK, http.StatusForbidden, http.StatusBadGateway} {
		relay := httptest.NewServer(wechatsim.Echo(status))
		t.Cleanup(relay.Close)
		broken(fmt.Sprintf("relay/%d", status), account(fields{"base_url": relay.URL}))
	}
	elsewhere := httptest.NewServer(http.RedirectHandler(s.url+"/cgi-bin/stable_token", http.StatusTemporaryRedirect))
	t.Cleanup(elsewhere.Close)
	broken("redirected", account(fields{"base_url": elsewhere.URL}))
	proxy := httptest.NewServer(wechatsim.Echo(http.StatusProxyAuthRequired))
	t.Cleanup(proxy.Close)
	for _, scheme := range []string{"http", "https", "socks5"} {
		password := s.hide(random())
		broken("proxied/"+scheme, account(fields{
			"base_url": "https://192.0.2.1", "proxy_url": scheme + "://egress:" + password + "@" + strings.TrimPrefix(proxy.URL, "http://"),
		}))
	}
	broken("unreachable", account(fields{"base_url": unreachable(t)}))
	all.Wait()

	// The plugin dies while it is busy.
	hanging := account(nil)
	s.inject(hanging, wechatsim.Fault{API: wechatsim.AllAPIs, Kind: "hang"})
	s.put(t, "config/hanging", with(hanging, unverified))
	texts, err := v.ProcessTexts()
	must(t, err)
	for range 4 {
		all.Go(func() { s.useAll(t, "hanging", hanging) })
		all.Go(func() { s.useAll(t, "good", good) })
	}
	eventually(t, patience, "the calls are made", func() bool { return s.calls(hanging) > 0 })
	killPlugin(t, v)
	all.Wait()
	eventually(t, patience, "the plugin is there again", func() bool { _, err := s.readToken("good"); return err == nil })
	s.useAll(t, "good", good)
	more, err := v.ProcessTexts()
	must(t, err)
	maps.Copy(texts, more)

	for _, file := range []string{v.LogFile(), v.AuditFile()} {
		content, err := os.ReadFile(file)
		must(t, err)
		texts[file] = requestURI.ReplaceAllString(string(content), "")
	}
	maps.Copy(texts, s.answers)
	s.mustHoldNothing(t, texts)
}

// mustHoldNothing looks for everything that was ever secret.
func (s *search) mustHoldNothing(t *testing.T, texts map[string]string) {
	t.Helper()
	var traces vaulttest.Traces
	hidden := s.vault.Hidden()
	for n, value := range hidden {
		must(t, traces.Add(fmt.Sprintf("secret %d, which begins with %.4s", n, value), value))
	}
	searched, leaks := 0, 0
	for name, text := range texts {
		searched += len(text)
		for _, found := range traces.In(text) {
			if leaks++; leaks <= 20 {
				t.Errorf("%s holds %s", name, found)
			}
		}
	}
	t.Logf("%d inputs; %d secrets looked for in %d texts of %d bytes", s.inputs, len(hidden), len(texts), searched)
	if s.inputs < 1000 || searched < 1<<20 {
		t.Error("that is not all")
	}
}
