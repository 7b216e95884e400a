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
// installed, and the test says which.
func TestClientsCacheAndRecover(t *testing.T) {
	t.Parallel()
	var run, left []string
	for name, command := range clients {
		if _, err := exec.LookPath(command[0]); err != nil && name != "go" {
			left = append(left, name)
			continue
		}
		run = append(run, name)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testClient(t, name, command)
		})
	}
	slices.Sort(run)
	slices.Sort(left)
	t.Logf("example clients that run here: %v; whose interpreter is not installed: %v", run, left)
}

func testClient(t *testing.T, name string, command []string) {
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

	vault := e.login(t, e.policy(t, "application"))
	c := &client{name: name}
	c.start(t, command, "VAULT_ADDR="+gate.url, "VAULT_TOKEN="+vault.Token(), "WECHAT_ACCOUNT=team-a/shop", "WECHAT_URL="+wechat.URL)

	const (
		read   = "GET token"
		report = "refresh"
	)
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
	name    string
	lines   io.Writer
	answers *bufio.Reader
}

// start runs the client until the test ends.
func (c *client) start(t *testing.T, command []string, environment ...string) {
	t.Helper()
	program, err := exec.LookPath(command[0])
	must(t, err)
	cmd := exec.Command(program, command[1:]...)
	cmd.Dir = filepath.Join("..", "examples", "clients", c.name)
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
	_, err := io.WriteString(c.lines, "\n")
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

	mu   sync.Mutex
	seen []string
}

func newGate(t *testing.T, e *engine) *gate {
	t.Helper()
	vault, err := url.Parse(e.vault.Address())
	must(t, err)
	g := &gate{}
	proxy := httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(vault)
		r.Out.URL.Path = strings.Replace(r.Out.URL.Path, "/v1/wechat/", "/v1/"+e.path+"/", 1)
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/v1/wechat/"), "/team-a/shop")
		if r.Method == http.MethodGet {
			what = "GET " + what
		}
		g.mu.Lock()
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
