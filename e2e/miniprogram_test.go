//go:build e2e

package e2e

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// startServer runs a server of the examples until the test ends, and returns where
// it listens, which it says in its first line.
func startServer(t *testing.T, dir string, command []string, environment ...string) string {
	t.Helper()
	// The shell ends the server when the test closes the pipe, or when the tests end
	// in whichever way.
	shell := []string{"sh", "-c", `"$@" & server=$!; read -r _; kill "$server"; wait "$server"; exit 0`, "sh"}
	c := &client{dir: dir}
	c.start(t, append(shell, command...), append(environment, "LISTEN=127.0.0.1:0")...)
	line, err := c.answers.ReadString('\n')
	url, found := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !found {
		t.Fatalf("the server says %q (%v)", line, err)
	}
	return url
}

// platformFor starts the platform for an application that may ask it for these paths
// only, none of which takes the AppSecret. It returns the address.
func (e *engine) platformFor(t *testing.T, paths ...string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(paths, r.URL.Path) {
			t.Errorf("the application asks WeChat for %s", r.URL.Path)
		}
		e.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// built builds a Go program of the examples.
func built(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = dir
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return program
}

// The backends for mini programs, in Go and in Node: users log in, and only
// Vault has the AppSecret.
func TestMiniProgramsNeedNoAppSecret(t *testing.T) {
	t.Run("go", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join("..", "examples", "mini-program", "go")
		testMiniProgram(t, dir, []string{built(t, dir)})
	})
	if installed(t, "the mini program's backend in Node", "node") {
		t.Run("node", func(t *testing.T) {
			t.Parallel()
			testMiniProgram(t, filepath.Join("..", "examples", "mini-program", "node"), []string{"node", "server.mjs"})
		})
	}
}

// sessionKey finds the session key in an answer of the platform.
var sessionKey = regexp.MustCompile(`"session_key":"([^"]+)`)

func testMiniProgram(t *testing.T, dir string, command []string) {
	e := newEngine(t)
	keys := make(chan string, 10) // of the users that the platform has logged in
	platform := httptest.NewServer(e.recorder(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &recording{ResponseWriter: w}
		e.ServeHTTP(answer, r)
		if m := sessionKey.FindSubmatch(answer.body.Bytes()); m != nil {
			keys <- e.hide(string(m[1]))
		}
	})))
	t.Cleanup(platform.Close)
	account := e.account(wechatsim.Account{})
	account["base_url"] = platform.URL
	appid := account["appid"].(string)
	e.configure(t, "team-a/shop", account, noSync)

	gate := newGate(t, e)
	gate.expect("apps/wechat", "admin/shop")
	vault := e.login(t, e.policy(t, "mini-program"))
	url := startServer(t, dir, command, "VAULT_ADDR="+gate.url, "VAULT_TOKEN="+vault.Token(), "VAULT_NAMESPACE=admin/shop",
		"WECHAT_MOUNT=apps/wechat", "WECHAT_ACCOUNT=team-a/shop", "WECHAT_URL="+e.platformFor(t, "/wxa/business/getuserphonenumber"))

	mint := func(api string) wechatsim.Code {
		t.Helper()
		code := e.Mint(appid, wechatsim.Code{API: api})
		e.hide(code.Code)
		return code
	}
	// ask is what the mini program does.
	ask := func(path, session string, body fields, wantStatus int) fields {
		t.Helper()
		text, err := json.Marshal(body)
		must(t, err)
		req, err := http.NewRequest(http.MethodPost, url+path, bytes.NewReader(text))
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+session)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		must(t, err)
		if resp.StatusCode != wantStatus {
			t.Fatalf("%s is answered %d %s, want %d", path, resp.StatusCode, answer, wantStatus)
		}
		if wantStatus != http.StatusOK {
			return nil
		}
		var data fields
		must(t, json.Unmarshal(answer, &data))
		return data
	}
	phone := func(session, when string, requests ...string) {
		t.Helper()
		code := mint(wechatsim.APIPhoneNumber)
		if got := ask("/phone", session, fields{"code": code.Code}, http.StatusOK)["phone"]; got != code.Phone {
			t.Errorf("%s: the user's number is %v, want %s", when, got, code.Phone)
		}
		gate.saw(t, when, requests...)
	}

	user := mint(wechatsim.APICode2Session)
	login := ask("/login", "", fields{"code": user.Code}, http.StatusOK)
	session, _ := login["session"].(string)
	if session == "" || len(login) != 1 {
		t.Fatalf("the login is answered %v, want a session and nothing else", login)
	}
	gate.saw(t, "a login", "code2session")
	key := <-keys
	// A double tap gets another session of the same user, and costs no call.
	ask("/login", "", fields{"code": user.Code}, http.StatusOK)
	gate.saw(t, "a double tap", "code2session")
	if n := len(e.CallsOf(wechatsim.APICode2Session, appid)); n != 1 {
		t.Errorf("WeChat was asked %d times about one code", n)
	}
	ask("/login", "", fields{"code": e.hide(random())}, http.StatusBadRequest)
	gate.saw(t, "a login with a bad code", "code2session")

	phone(session, "the first phone number", "GET token")
	asked := time.Now()
	phone(session, "another one")
	ask("/phone", "of no session", fields{"code": "any"}, http.StatusUnauthorized)
	ask("/phone", session, fields{"code": "bad"}, http.StatusBadRequest)
	gate.saw(t, "phone numbers that there are not")

	// The session key is what the backend has kept, and serves to tell what WeChat
	// has signed.
	profile := `{"nickName":"小明"}`
	sum := sha1.Sum([]byte(profile + key))
	signature := hex.EncodeToString(sum[:])
	ask("/profile", session, fields{"rawData": profile, "signature": signature}, http.StatusOK)
	ask("/profile", session, fields{"rawData": profile + " ", "signature": signature}, http.StatusForbidden)

	// While Vault is away no user can log in, and those who have go on.
	gate.closed.Store(true)
	ask("/login", "", fields{"code": mint(wechatsim.APICode2Session).Code}, http.StatusServiceUnavailable)
	gate.saw(t, "a login while Vault is away", "code2session")
	phone(session, "a phone number while Vault is away")
	gate.closed.Store(false)

	// The engine answers reports from the last answer for ten seconds.
	eventually(t, patience, "the engine asks WeChat again", func() bool { return time.Since(asked) > 11*time.Second })
	e.hide(e.ForceOutside(appid))
	phone(session, "a phone number with a token that was replaced outside", "refresh", "GET token")
	phone(session, "the one after that")
}
