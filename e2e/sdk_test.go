//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// sdk is a public SDK of WeChat with the example adapter for it.
type sdk struct {
	name    string
	dir     string
	command []string
	called  string // how a call ends whose token WeChat accepts
	signing string // what the adapter asks Vault for a signature
}

// The adapters, each with the real SDK, against the real Vault: the SDK has no
// AppSecret, and gets along.
func TestSDKsNeedNoAppSecret(t *testing.T) {
	sdks := []sdk{{"silenceper", filepath.Join("..", "examples", "sdk", "silenceper"), []string{"go", "run", "."}, "ok: 1 addresses", "GET ticket"}}
	if what := "the adapters for the SDKs of npm"; installed(t, what, "node", "npm") {
		dir := npmInstalled(t, filepath.Join("..", "examples", "sdk", "node"))
		add := func(name, called, signing string) {
			sdks = append(sdks, sdk{name, dir, []string{"node", "try.mjs", name}, called, signing})
		}
		add("node-easywechat", "ok: errcode 0", "GET sign")
		add("nest-wechat", "ok: errcode 40029", "GET ticket") // a bad code of a user, and no word of the token
		add("wechat-api", "ok: errcode 0", "GET ticket")
		add("wechat-jssdk", "ok: errcode 0", "GET sign")
	}
	for _, s := range sdks {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.test(t)
		})
	}
}

// npmInstalled copies a folder with a package.json to where npm may put what it
// needs, and has npm do so: exactly what the lock file says, and no scripts of it.
func npmInstalled(t *testing.T, folder string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(dir, os.DirFS(folder)))
	npm := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	npm.Dir = dir
	if output, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, output)
	}
	return dir
}

func (s sdk) test(t *testing.T) {
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "team-a/shop", account, noSync)
	gate := newGate(t, e)
	gate.expect("apps/wechat", "admin/shop")
	vault := e.login(t, e.policy(t, "application")+`
		path "`+e.path+`/sign/team-a/shop" { capabilities = ["read"] }
		path "`+e.path+`/ticket/team-a/shop" { capabilities = ["read"] }`)
	c := &client{dir: s.dir}
	c.start(t, s.command, "VAULT_ADDR="+gate.url, "VAULT_TOKEN="+vault.Token(), "VAULT_NAMESPACE=admin/shop",
		"WECHAT_MOUNT=apps/wechat", "WECHAT_ACCOUNT=team-a/shop", "WECHAT_APPID="+account["appid"].(string), "WECHAT_URL="+e.platformFor(t, "/cgi-bin/getcallbackip", "/wxa/business/getuserphonenumber"))
	calls := func(when string, requests ...string) {
		t.Helper()
		if answer := c.asked(t, "call"); strings.TrimSpace(answer) != s.called {
			t.Errorf("%s: the call ended with %q, want %q", when, answer, s.called)
		}
		gate.saw(t, when, requests...)
	}

	calls("the first call", "GET token")
	asked := time.Now()
	calls("a call soon after")

	const page = "https://shop.example.com/cart?item=1&name=%E8%8C%B6"
	kind, found := strings.CutPrefix(c.asked(t, "sign "+page), "ok: ")
	if !found {
		t.Fatalf("no signature: %s", kind)
	}
	gate.saw(t, "a signature", s.signing)
	if signature := signatureFor(t, []byte(kind), page); !e.CheckSignature(signature) {
		t.Errorf("WeChat's browser refuses the signature %+v", signature)
	}

	// The engine answers reports from the last answer for ten seconds.
	eventually(t, patience, "the engine asks WeChat again", func() bool { return time.Since(asked) > 11*time.Second })
	e.hide(e.ForceOutside(account["appid"].(string)))
	calls("a call with a token that was replaced outside", "refresh", "GET token")
	calls("the call after that")
}

// signatureFor reads what an SDK gives to a page. Some write names as wx.config
// does, some otherwise, and some the time as a string.
func signatureFor(t *testing.T, text []byte, page string) wechatsim.Signature {
	t.Helper()
	var given map[string]any
	must(t, json.Unmarshal(text, &given))
	signature := wechatsim.Signature{URL: page}
	for name, value := range given {
		switch strings.ReplaceAll(strings.ToLower(name), "_", "") {
		case "appid":
			signature.AppID, _ = value.(string)
		case "noncestr":
			signature.NonceStr, _ = value.(string)
		case "signature":
			signature.Signature, _ = value.(string)
		case "timestamp":
			number, err := json.Marshal(value)
			must(t, err)
			must(t, json.Unmarshal([]byte(strings.Trim(string(number), `"`)), &signature.Timestamp))
		}
	}
	return signature
}
