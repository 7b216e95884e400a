//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// standIn stands in for WeChat's script, and for the browser that WeChat has: it
// tells the test what wx.config gets and where, learns from it whether the signature
// is good, and calls back as the page has asked for.
const standIn = `
let told = Promise.resolve(), ready, error;
const send = (what, body) => fetch("%ORIGIN%/" + what, { method: "POST", body: JSON.stringify(body) });
const tell = (what, body) => (told = told.then(() => send(what, body))); // one after the other
window.wx = {
  ready: (callback) => (ready = callback),
  error: (callback) => (error = callback),
  async config(config) {
    const { accepted } = await (await tell("config", { config, address: location.href })).json();
    accepted ? ready() : error({ errMsg: "config:invalid signature" });
    tell("state", document.getElementById("state").textContent);
  },
  updateAppMessageShareData: (data) => tell("share", data),
};
`

// A headless browser opens the page of the example: what the page gives to wx.config
// has to be what WeChat's browser accepts.
func TestPageIsSigned(t *testing.T) {
	if !installed(t, "the page with WeChat's JS-SDK", "chromium") {
		return
	}
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "team-a/shop", account)
	gate := newGate(t, e)
	gate.expect("apps/wechat", "admin/shop")
	vault := e.login(t, e.policy(t, "page-server"))

	type call struct {
		what string
		body []byte
	}
	calls := make(chan call, 10)
	mux := http.NewServeMux()
	browser := httptest.NewServer(mux)
	t.Cleanup(browser.Close)
	mux.HandleFunc("GET /jweixin.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		_, _ = io.WriteString(w, strings.ReplaceAll(standIn, "%ORIGIN%", browser.URL))
	})
	var tampered string // is put behind the signature before it is looked at
	mux.HandleFunc("POST /{what}", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Access-Control-Allow-Origin", "*")
		accepted := false
		if r.PathValue("what") == "config" {
			var given struct {
				Config  json.RawMessage `json:"config"`
				Address string          `json:"address"`
			}
			if err := json.Unmarshal(body, &given); err != nil {
				t.Error(err)
			}
			signature := signatureFor(t, given.Config, given.Address)
			signature.Signature += tampered
			accepted = e.CheckSignature(signature)
		}
		_ = json.NewEncoder(w).Encode(map[string]bool{"accepted": accepted})
		calls <- call{r.PathValue("what"), body}
	})

	dir := filepath.Join("..", "examples", "js-sdk")
	// Where the page is found is known when it listens: a proxy before it, as most
	// servers have one, has the address that users see.
	public := httptest.NewUnstartedServer(nil)
	origin := "http://" + public.Listener.Addr().String()
	listens := startServer(t, dir, []string{built(t, dir)}, "VAULT_ADDR="+gate.url, "VAULT_TOKEN="+vault.Token(), "VAULT_NAMESPACE=admin/shop",
		"WECHAT_MOUNT=apps/wechat", "WECHAT_ACCOUNT=team-a/shop", "ORIGIN="+origin, "WECHAT_JSSDK="+browser.URL+"/jweixin.js")
	target, err := url.Parse(listens)
	must(t, err)
	public.Config.Handler = proxyTo(target)
	public.Start()
	t.Cleanup(public.Close)

	next := func(what string) []byte {
		t.Helper()
		select {
		case c := <-calls:
			if c.what != what {
				t.Fatalf("the page calls %s with %s, want %s", c.what, c.body, what)
			}
			return c.body
		case <-time.After(patience):
			t.Fatalf("the page does not call %s", what)
			return nil
		}
	}
	page := origin + "/cart?item=1&name=茶#top"
	open(t, page)
	if config := next("config"); !bytes.Contains(config, []byte(`"appId":"`+account["appid"].(string)+`"`)) ||
		!bytes.Contains(config, []byte(`"jsApiList":["updateAppMessageShareData"]`)) {
		t.Errorf("wx.config gets %s", config)
	}
	next("share")
	if state := next("state"); string(state) != `"ready"` {
		t.Errorf("with a good signature the page is %s", state)
	}
	gate.saw(t, "a page", "GET sign")

	tampered = "0"
	open(t, page)
	next("config")
	if state := next("state"); string(state) != `"config:invalid signature"` {
		t.Errorf("with a bad signature the page is %s", state)
	}
	gate.saw(t, "the page once more", "GET sign")

	// A foreign page gets no signature.
	for _, address := range []string{"https://evil.example.com/", origin, origin + ".evil.example.com/", ""} {
		resp, err := http.Get(origin + "/signature?" + url.Values{"url": {address}}.Encode())
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%q is signed: %s", address, resp.Status)
		}
	}
	gate.saw(t, "foreign pages")
}

// open opens a page in a browser until the test ends.
func open(t *testing.T, page string) {
	t.Helper()
	dir := t.TempDir()
	browser := exec.Command("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--no-proxy-server", "--user-data-dir="+dir, page)
	browser.Env = append(os.Environ(), "HOME="+dir)
	browser.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log := &strings.Builder{}
	browser.Stdout, browser.Stderr = log, log
	must(t, browser.Start())
	t.Cleanup(func() {
		_ = syscall.Kill(-browser.Process.Pid, syscall.SIGKILL) // it and its processes
		_ = browser.Wait()                                      // killed
		// Its processes may still write while they die.
		eventually(t, patience, "the browser's files are removed", func() bool { return os.RemoveAll(dir) == nil })
		if t.Failed() {
			t.Logf("the browser says\n%s", log)
		}
	})
}
