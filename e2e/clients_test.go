//go:build e2e

package e2e

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-wechat/vault-plugin-secrets-wechat/internal/wechatsim"
)

// clients are the example clients, and the command that runs each, in its
// directory.
var clients = map[string][]string{
	"go":     {"go", "run", "."},
	"java":   {"java", "Shop.java"},
	"node":   {"node", "shop.mjs"},
	"php":    {"php", "shop.php"},
	"python": {"python3", "shop.py"},
}

// The example clients, each in its language, run against the real Vault. Go is
// there wherever these tests are; of the others those run whose interpreter is
// installed.
func TestClientsCacheAndRecover(t *testing.T) {
	t.Parallel()
	for name, command := range clients {
		if !installed(t, "the example client for "+name, command[0]) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testClient(t, filepath.Join("..", "examples", "clients", name), command)
		})
	}
}

// Spring itself is not here: an application with a stand-in for Spring's client of
// Vault drives the class of the example, which has to do what the clients do.
func TestSpringClassCachesAndRecovers(t *testing.T) {
	t.Parallel()
	if !installed(t, "the class for Spring", "javac", "java") {
		return
	}
	classes := t.TempDir()
	output, err := exec.Command("javac", "-d", classes, "-sourcepath", filepath.Join("testdata", "spring"),
		filepath.Join("testdata", "spring", "Shop.java"),
		filepath.Join("..", "examples", "spring-boot", "WechatToken.java")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	testClient(t, classes, []string{"java", "-cp", classes, "Shop"})
}

// testClient runs a client, which does not know the test's mount: the gate leads
// it there from the mount that it was told.
func testClient(t *testing.T, dir string, command []string) {
	e := newEngine(t)
	account := e.account(wechatsim.Account{})
	e.configure(t, "team-a/shop", account, noSync, fields{"max_ttl": "1m"})
	gate := newGate(t, e)
	var refuse atomic.Bool // the platform refuses every token
	wechat := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuse.Load() {
			_, _ = io.WriteString(w, `{"errcode":40001,"errmsg":"invalid credential"}`)
			return
		}
		e.ServeHTTP(w, r)
	}))
	t.Cleanup(wechat.Close)

	const (
		read   = "GET token"
		report = "refresh"
	)
	vault := e.login(t, e.policy(t, "application"))
	environment := []string{"VAULT_ADDR=" + gate.url, "VAULT_TOKEN=" + vault.Token(), "WECHAT_ACCOUNT=team-a/shop", "WECHAT_URL=" + wechat.URL}
	c := &client{dir: dir}
	c.start(t, command, environment...)
	c.succeeds(t)
	gate.saw(t, "a client that is told nothing of mount and namespace", read)

	gate.expect("apps/wechat", "admin/shop")
	c = &client{dir: dir}
	c.start(t, command, append(environment, "WECHAT_MOUNT=apps/wechat", "VAULT_NAMESPACE=admin/shop")...)
	c.succeeds(t)
	started := time.Now()
	gate.saw(t, "the first call", read)
	c.succeeds(t)
	gate.saw(t, "a call soon after")

	// Something else is wrong, and WeChat stands by the token.
	refuse.Store(true)
	c.fails(t, "40001")
	gate.saw(t, "a call that is refused with a token that WeChat stands by", report)
	refuse.Store(false)
	c.succeeds(t)
	gate.saw(t, "the next call")

	// The engine answers reports from the last answer for ten seconds.
	asked := time.Now()
	eventually(t, patience, "the engine asks WeChat again", func() bool { return time.Since(asked) > 11*time.Second })
	e.hide(e.ForceOutside(account["appid"].(string)))
	c.succeeds(t)
	gate.saw(t, "a call with a token that was replaced outside", report, read)
	c.succeeds(t)
	gate.saw(t, "the call after that")
	if elapsed := time.Since(started); elapsed > 50*time.Second {
		t.Errorf("this took %s: the ttl is over before it is put to the test", elapsed)
	}

	// After its ttl the token is read again; while Vault is away the old one serves.
	replaced := time.Now()
	gate.closed.Store(true)
	eventually(t, 2*time.Minute, "the ttl is over", func() bool { return time.Since(replaced) > 61*time.Second })
	c.succeeds(t)
	gate.saw(t, "a call while Vault is away", read)
	gate.closed.Store(false)
	eventually(t, patience, "Vault is asked again", func() bool {
		c.succeeds(t)
		return len(gate.requests()) == 1
	})
	gate.saw(t, "a call when Vault is back", read)
	c.succeeds(t)
	gate.saw(t, "the last call")
}

// client is an example client that runs. It makes a call for each line that it is
// sent, and tells in a line how that ended.
type client struct {
	dir     string // in which its command runs
	lines   io.Writer
	answers *bufio.Reader
}

// start runs the client until the test ends.
func (c *client) start(t *testing.T, command []string, environment ...string) {
	t.Helper()
	program, err := exec.LookPath(command[0])
	must(t, err)
	cmd := exec.Command(program, command[1:]...)
	cmd.Dir = c.dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.Contains(strings.ToLower(variable), "proxy=") // all is on the loopback
	}), environment...)
	cmd.Env = append(cmd.Env, "PYTHONDONTWRITEBYTECODE=1")
	log := &strings.Builder{}
	cmd.Stderr = log
	lines, err := cmd.StdinPipe()
	must(t, err)
	answers, err := cmd.StdoutPipe()
	must(t, err)
	c.lines, c.answers = lines, bufio.NewReader(answers)
	must(t, cmd.Start())
	t.Cleanup(func() {
		lines.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the client ends with %v", err)
		}
		// What an application logs may be read by many.
		if strings.Contains(log.String(), "access_token=") {
			t.Error("the client logs a token")
		}
		if t.Failed() {
			t.Logf("the client says\n%s", log)
		}
	})
}

// calls has the client make a call, and returns how it ended.
func (c *client) calls(t *testing.T) string {
	t.Helper()
	return c.asked(t, "")
}

// asked sends the client a line, and returns the line that it answers.
func (c *client) asked(t *testing.T, line string) string {
	t.Helper()
	_, err := io.WriteString(c.lines, line+"\n")
	must(t, err)
	answer, err := c.answers.ReadString('\n')
	if err != nil {
		t.Fatalf("the client ended: %v", err)
	}
	return answer
}

func (c *client) succeeds(t *testing.T) {
	t.Helper()
	if answer := c.calls(t); !strings.HasPrefix(answer, "ok: ") {
		t.Errorf("the call ended with %q", answer)
	}
}

func (c *client) fails(t *testing.T, word string) {
	t.Helper()
	answer := c.calls(t)
	if !strings.HasPrefix(answer, "failed: ") || !strings.Contains(answer, word) {
		t.Errorf("the call ended with %q, want a failure with %q", answer, word)
	}
	if strings.Contains(answer, "access_token") {
		t.Errorf("the failure shows a token: %q", answer)
	}
}

// gate stands before Vault for one client: it notes the client's requests, leads
// the mount of the examples to the engine's, and can be closed.
type gate struct {
	url    string
	closed atomic.Bool

	mu        sync.Mutex
	mount     string // that the client is to ask
	namespace string // that the client is to ask in; "" if it is to name none
	seen      []string
}

// expect tells the mount and the namespace that the client is to use from now on.
// The Vault of these tests knows no namespaces, so the gate takes them away.
func (g *gate) expect(mount, namespace string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mount, g.namespace = mount, namespace
}

func newGate(t *testing.T, e *engine) *gate {
	t.Helper()
	vault, err := url.Parse(e.vault.Address())
	must(t, err)
	g := &gate{mount: "wechat"}
	proxy := proxyTo(vault)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		rest := strings.TrimPrefix(r.URL.Path, "/v1/"+g.mount+"/")
		what := strings.TrimSuffix(rest, "/team-a/shop")
		if r.Method == http.MethodGet {
			what = "GET " + what
		}
		if namespace := r.Header.Get("X-Vault-Namespace"); namespace != g.namespace {
			what += " in the namespace " + namespace
		}
		r.Header.Del("X-Vault-Namespace")
		r.URL.Path = "/v1/" + e.path + "/" + rest
		g.seen = append(g.seen, what)
		g.mu.Unlock()
		if g.closed.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	g.url = server.URL
	return g
}

// proxyTo hands requests on.
func proxyTo(target *url.URL) http.Handler {
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
}

// requests returns what the client has asked since saw was called.
func (g *gate) requests() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.seen)
}

// saw checks what the client has asked since saw was called last.
func (g *gate) saw(t *testing.T, when string, want ...string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Equal(g.seen, want) {
		t.Errorf("%s: the client asked Vault for %q, want %q", when, g.seen, want)
	}
	g.seen = nil
}
